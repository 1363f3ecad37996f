//! The one place that names the crypto provider, and whom we trust when we connect out.

use std::sync::Arc;

use rustls::{
    ClientConfig, RootCertStore,
    crypto::CryptoProvider,
    pki_types::{CertificateDer, pem::PemObject},
};

/// The crypto provider of every TLS configuration in this program, passed explicitly: a process-wide default would
/// panic as soon as a second provider came into the tree through some dependency.
#[must_use]
pub fn crypto_provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::aws_lc_rs::default_provider())
}

/// Mozilla's roots as compiled in, and the machine's own, so that a minimal container works as well as a company's
/// root that an administrator installed.
#[must_use]
pub fn public_roots() -> RootCertStore {
    let mut roots = RootCertStore::empty();
    roots.extend(webpki_roots::TLS_SERVER_ROOTS.iter().cloned());
    let native = rustls_native_certs::load_native_certs();
    for error in &native.errors {
        tracing::debug!(%error, "a root certificate of this machine could not be read");
    }
    roots.add_parsable_certificates(native.certs);
    roots
}

/// Why a PEM bundle gives no roots.
#[derive(Debug, thiserror::Error)]
pub enum RootsError {
    /// Not PEM.
    #[error("not a PEM file")]
    Pem(#[source] rustls::pki_types::pem::Error),
    /// PEM, but no certificate in it.
    #[error("no certificate in it")]
    Empty,
    /// A certificate that can't be a root.
    #[error("a certificate in it cannot be used as a root")]
    Certificate(#[source] rustls::Error),
}

/// Adds every certificate of a PEM bundle to `roots`.
///
/// # Errors
/// When the text is no PEM, holds no certificate, or one that can't be a root.
pub fn add_pem_roots(roots: &mut RootCertStore, pem: &[u8]) -> Result<(), RootsError> {
    let certificates: Vec<CertificateDer<'static>> =
        CertificateDer::pem_slice_iter(pem).collect::<Result<_, _>>().map_err(RootsError::Pem)?;
    if certificates.is_empty() {
        return Err(RootsError::Empty);
    }
    certificates.into_iter().try_for_each(|certificate| roots.add(certificate).map_err(RootsError::Certificate))
}

/// A client configuration that trusts `roots`, TLS 1.2 and 1.3, without a client certificate. ALPN is the connector's.
///
/// # Errors
/// When the crypto provider lacks what TLS 1.2 or 1.3 needs.
pub fn client_config(roots: Arc<RootCertStore>) -> Result<ClientConfig, rustls::Error> {
    Ok(ClientConfig::builder_with_provider(crypto_provider())
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_no_client_auth())
}
