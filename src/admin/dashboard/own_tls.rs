//! A connection to our own client listener where it speaks TLS: trusted is the very certificate that stands in its file, and no other.
//!
//! The listener is reached by its address, for which its certificate need not be made; so names are not compared, and no authority is
//! asked. Whoever holds that certificate's key is the listener.

use std::{fs, io, net::SocketAddr, sync::Arc};

use axum::body::Body;
use hyper::{body::Incoming, client::conn::http1};
use hyper_util::rt::TokioIo;
use rustls::{
    ClientConfig, DigitallySignedStruct, Error, SignatureScheme,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature},
    pki_types::{CertificateDer, ServerName, UnixTime, pem::PemObject},
};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::{config::snapshot::Tls, upstream::tls::crypto_provider};

/// Sends one request to the listener at `address`, whose certificate is in the files of `tls`.
pub(super) async fn request(
    address: SocketAddr,
    tls: &Tls,
    request: http::Request<Body>,
) -> io::Result<http::Response<Incoming>> {
    let connector = TlsConnector::from(Arc::new(client_config(tls)?));
    let stream = TcpStream::connect(address).await?;
    let stream = connector.connect(ServerName::from(address.ip()), stream).await?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(io::Error::other)?;
    // Ends with the reply's body, or when the visitor leaves.
    tokio::spawn(connection);
    sender.send_request(request).await.map_err(io::Error::other)
}

fn client_config(tls: &Tls) -> io::Result<ClientConfig> {
    let chain = fs::read(&tls.cert)?;
    let certificate = CertificateDer::from_pem_slice(&chain).map_err(io::Error::other)?;
    let provider = crypto_provider();
    let config = ClientConfig::builder_with_provider(provider.clone()).with_safe_default_protocol_versions();
    let verifier = Arc::new(Own { certificate, provider });
    Ok(config.map_err(io::Error::other)?.dangerous().with_custom_certificate_verifier(verifier).with_no_client_auth())
}

/// Trusts one certificate.
#[derive(Debug)]
struct Own {
    certificate: CertificateDer<'static>,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for Own {
    fn verify_server_cert(
        &self,
        shown: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _name: &ServerName<'_>,
        _ocsp: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        if *shown != self.certificate {
            return Err(Error::General("another certificate is shown than the one of `server.tls`".to_owned()));
        }
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, certificate, signed, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, certificate, signed, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
