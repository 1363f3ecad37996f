//! TLS of a listener: TLS 1.2 and 1.3, HTTP/2 and 1.1 by ALPN, optional client certificates, and files that are read
//! again when they change.
//!
//! The whole configuration is swapped, client roots included, so that a session which was agreed under old roots is
//! not resumed under new ones. A new file that doesn't do is reported, and the last good ones stay.

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use arc_swap::ArcSwap;
use rustls::{
    RootCertStore, ServerConfig,
    pki_types::{CertificateDer, PrivateKeyDer, pem, pem::PemObject},
    server::{NoServerSessionStorage, VerifierBuilderError, WebPkiClientVerifier, danger::ClientCertVerifier},
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    time::MissedTickBehavior,
};
use tokio_rustls::server::TlsStream;

use crate::{
    config::snapshot,
    upstream::tls::{RootsError, add_pem_roots, crypto_provider},
};

/// Time for a client's handshake; one that trickles it would otherwise hold a connection for nothing.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);
/// How often files are looked at.
const WATCH_INTERVAL: Duration = Duration::from_secs(1);

/// Why certificate files don't do. Each names its file.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// Can't be read.
    #[error("`{}` cannot be read", .0.display())]
    Read(PathBuf, #[source] io::Error),
    /// No certificate chain in it.
    #[error("`{}` holds no certificate chain in PEM", .0.display())]
    Chain(PathBuf, #[source] Option<pem::Error>),
    /// No private key in it.
    #[error("`{}` holds no private key in PEM", .0.display())]
    Key(PathBuf, #[source] pem::Error),
    /// The chain and the key can't be used together.
    #[error("the certificate and its key cannot be used")]
    Pair(#[source] rustls::Error),
    /// No roots for client certificates in it.
    #[error("`{}` gives no roots for client certificates", .0.display())]
    ClientCa(PathBuf, #[source] RootsError),
    /// Roots that can't verify a client.
    #[error("client certificates cannot be verified")]
    ClientVerifier(#[source] VerifierBuilderError),
}

/// Accepts TLS connections with what the files held last.
#[derive(Debug, Clone)]
pub struct TlsAcceptor(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    files: snapshot::Tls,
    config: ArcSwap<ServerConfig>,
    /// What was read last, whether it did or not, so that a bad file is reported once.
    last_read: Mutex<Contents>,
}

/// The files' bytes.
#[derive(Debug, PartialEq, Eq)]
struct Contents {
    cert: Vec<u8>,
    key: Vec<u8>,
    client_ca: Option<Vec<u8>>,
}

impl TlsAcceptor {
    /// Reads the files; blocks for that.
    ///
    /// # Errors
    /// When a file can't be read or used.
    pub fn new(files: &snapshot::Tls) -> Result<TlsAcceptor, TlsError> {
        let contents = Contents::read(files)?;
        let config = ArcSwap::from_pointee(contents.server_config(files)?);
        Ok(TlsAcceptor(Arc::new(Shared { files: files.clone(), config, last_read: Mutex::new(contents) })))
    }

    /// Shakes hands with a client within 5 s. Its certificate, if any, is in the stream's `ServerConnection`.
    ///
    /// # Errors
    /// When the handshake fails; [`io::ErrorKind::TimedOut`] when it takes too long.
    pub async fn accept<S>(&self, stream: S) -> io::Result<TlsStream<S>>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        self.accept_within(HANDSHAKE_TIMEOUT, stream).await
    }

    async fn accept_within<S>(&self, timeout: Duration, stream: S) -> io::Result<TlsStream<S>>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let acceptor = tokio_rustls::TlsAcceptor::from(self.0.config.load_full());
        tokio::time::timeout(timeout, acceptor.accept(stream)).await?
    }

    /// Reads the files again, and uses them from the next connection on if they changed; blocks for that.
    /// Says whether they did.
    ///
    /// # Errors
    /// When they changed to something that doesn't do (told once), or can't be read; the last good ones stay.
    pub fn reload(&self) -> Result<bool, TlsError> {
        let contents = Contents::read(&self.0.files)?;
        let mut last_read = self.0.last_read.lock().unwrap_or_else(PoisonError::into_inner);
        if *last_read == contents {
            return Ok(false);
        }
        let config = contents.server_config(&self.0.files);
        *last_read = contents;
        self.0.config.store(Arc::new(config?));
        Ok(true)
    }

    /// Looks at the files each second, for ever: to be run in a task of its own, and dropped to end it.
    pub async fn watch(self) {
        let mut ticks = tokio::time::interval(WATCH_INTERVAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut unreadable = false;
        loop {
            ticks.tick().await;
            let acceptor = self.clone();
            let Ok(reloaded) = tokio::task::spawn_blocking(move || acceptor.reload()).await else {
                // The runtime is shutting down.
                return;
            };
            let was_unreadable = std::mem::replace(&mut unreadable, matches!(reloaded, Err(TlsError::Read(..))));
            match reloaded {
                Ok(false) => {}
                Ok(true) => tracing::info!(cert = %self.0.files.cert.display(), "certificates reloaded"),
                Err(TlsError::Read(..)) if was_unreadable => {}
                Err(error) => {
                    let error = &error as &dyn std::error::Error;
                    tracing::warn!(error, "changed certificates refused, the last good ones stay");
                }
            }
        }
    }
}

impl Contents {
    fn read(files: &snapshot::Tls) -> Result<Contents, TlsError> {
        let read = |path: &Path| fs::read(path).map_err(|error| TlsError::Read(path.to_owned(), error));
        Ok(Contents {
            cert: read(&files.cert)?,
            key: read(&files.key)?,
            client_ca: files.client_ca.as_deref().map(read).transpose()?,
        })
    }

    fn server_config(&self, files: &snapshot::Tls) -> Result<ServerConfig, TlsError> {
        let chain = CertificateDer::pem_slice_iter(&self.cert)
            .collect::<Result<Vec<_>, _>>()
            .map_err(|error| TlsError::Chain(files.cert.clone(), Some(error)))?;
        if chain.is_empty() {
            return Err(TlsError::Chain(files.cert.clone(), None));
        }
        let key = PrivateKeyDer::from_pem_slice(&self.key).map_err(|error| TlsError::Key(files.key.clone(), error))?;
        let mut config = ServerConfig::builder_with_provider(crypto_provider())
            .with_safe_default_protocol_versions()
            .map_err(TlsError::Pair)?
            .with_client_cert_verifier(self.client_verifier(files)?)
            .with_single_cert(chain, key)
            .map_err(TlsError::Pair)?;
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        if self.client_ca.is_some() {
            // A client proves itself on every connection.
            config.session_storage = Arc::new(NoServerSessionStorage {});
            config.send_tls13_tickets = 0;
        }
        Ok(config)
    }

    fn client_verifier(&self, files: &snapshot::Tls) -> Result<Arc<dyn ClientCertVerifier>, TlsError> {
        let (Some(pem), Some(path)) = (&self.client_ca, &files.client_ca) else {
            return Ok(WebPkiClientVerifier::no_client_auth());
        };
        let mut roots = RootCertStore::empty();
        add_pem_roots(&mut roots, pem).map_err(|error| TlsError::ClientCa(path.clone(), error))?;
        WebPkiClientVerifier::builder_with_provider(Arc::new(roots), crypto_provider())
            .build()
            .map_err(TlsError::ClientVerifier)
    }
}

#[cfg(test)]
mod tests {
    use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
    use rustls::{ClientConfig, pki_types::ServerName};
    use tempfile::TempDir;
    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

    use super::*;

    type Issuer = CertifiedIssuer<'static, KeyPair>;

    fn authority() -> Issuer {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
    }

    fn issue(authority: &Issuer) -> (rcgen::Certificate, KeyPair) {
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new(vec!["gateway.test".to_owned()]).unwrap();
        (params.signed_by(&key, authority).unwrap(), key)
    }

    struct Files {
        dir: TempDir,
        paths: snapshot::Tls,
        authority: Issuer,
    }

    impl Files {
        fn new() -> Files {
            let dir = tempfile::tempdir().unwrap();
            let path = |name: &str| dir.path().join(name);
            let paths = snapshot::Tls { cert: path("tls.crt"), key: path("tls.key"), client_ca: None };
            let files = Files { paths, authority: authority(), dir };
            files.renew();
            files
        }

        /// Writes a new certificate and gives it.
        fn renew(&self) -> CertificateDer<'static> {
            let (certificate, key) = issue(&self.authority);
            fs::write(&self.paths.cert, certificate.pem()).unwrap();
            fs::write(&self.paths.key, key.serialize_pem()).unwrap();
            certificate.der().clone()
        }

        fn require_clients_of(&mut self, authority: &Issuer) {
            let path = self.dir.path().join("clients.crt");
            fs::write(&path, authority.pem()).unwrap();
            self.paths.client_ca = Some(path);
        }

        fn client(&self, alpn: &[&str], identity: Option<(rcgen::Certificate, KeyPair)>) -> ClientConfig {
            let mut roots = RootCertStore::empty();
            roots.add(self.authority.der().clone()).unwrap();
            let builder = ClientConfig::builder_with_provider(crypto_provider())
                .with_safe_default_protocol_versions()
                .unwrap()
                .with_root_certificates(roots);
            let mut config = match identity {
                None => builder.with_no_client_auth(),
                Some((certificate, key)) => {
                    let key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
                    builder.with_client_auth_cert(vec![certificate.der().clone()], key).unwrap()
                }
            };
            config.alpn_protocols = alpn.iter().map(|name| name.as_bytes().to_vec()).collect();
            config
        }
    }

    /// Connects, exchanges a byte, and gives the server's certificate and the protocol agreed.
    async fn connect(acceptor: &TlsAcceptor, client: ClientConfig) -> io::Result<(CertificateDer<'static>, Vec<u8>)> {
        let (near, far) = duplex(64 * 1024);
        let serve = async {
            let mut stream = acceptor.accept(far).await?;
            stream.write_all(b"x").await?;
            stream.shutdown().await
        };
        let call = async {
            let name = ServerName::try_from("gateway.test").unwrap();
            let mut stream = tokio_rustls::TlsConnector::from(Arc::new(client)).connect(name, near).await?;
            stream.read_u8().await?;
            let (_, connection) = stream.get_ref();
            let certificate = connection.peer_certificates().unwrap()[0].clone().into_owned();
            Ok((certificate, connection.alpn_protocol().unwrap_or_default().to_vec()))
        };
        let (served, called) = tokio::join!(serve, call);
        served.and(called)
    }

    #[tokio::test]
    async fn http_2_is_preferred_and_http_1_spoken() {
        let files = Files::new();
        let acceptor = TlsAcceptor::new(&files.paths).unwrap();
        for (offered, agreed) in [(vec!["http/1.1", "h2"], "h2"), (vec!["http/1.1"], "http/1.1"), (vec![], "")] {
            let (_, alpn) = connect(&acceptor, files.client(&offered, None)).await.unwrap();
            assert_eq!(alpn, agreed.as_bytes());
        }
        assert!(connect(&acceptor, files.client(&["spdy/3"], None)).await.is_err());
    }

    #[tokio::test]
    async fn a_renewed_certificate_is_served_after_a_reload() {
        let files = Files::new();
        let first = files.renew();
        let acceptor = TlsAcceptor::new(&files.paths).unwrap();
        assert_eq!(connect(&acceptor, files.client(&[], None)).await.unwrap().0, first);
        assert!(!acceptor.reload().unwrap());

        let second = files.renew();
        assert!(acceptor.reload().unwrap());
        assert_eq!(connect(&acceptor, files.client(&[], None)).await.unwrap().0, second);
    }

    #[tokio::test]
    async fn a_bad_file_is_told_once_and_the_good_one_stays() {
        let files = Files::new();
        let good = files.renew();
        let acceptor = TlsAcceptor::new(&files.paths).unwrap();

        fs::write(&files.paths.cert, "half a fi").unwrap();
        assert!(matches!(acceptor.reload(), Err(TlsError::Chain(_, None))));
        assert!(!acceptor.reload().unwrap());
        // A renewed key whose certificate is still to be written.
        fs::write(&files.paths.cert, issue(&files.authority).0.pem()).unwrap();
        assert!(matches!(acceptor.reload(), Err(TlsError::Pair(_))));
        fs::remove_file(&files.paths.key).unwrap();
        assert!(matches!(acceptor.reload(), Err(TlsError::Read(..))));

        assert_eq!(connect(&acceptor, files.client(&[], None)).await.unwrap().0, good);
    }

    #[tokio::test]
    async fn only_clients_of_the_given_authority_get_in() {
        let mut files = Files::new();
        let (ours, others) = (authority(), authority());
        files.require_clients_of(&ours);
        let acceptor = TlsAcceptor::new(&files.paths).unwrap();

        assert!(connect(&acceptor, files.client(&[], Some(issue(&ours)))).await.is_ok());
        assert!(connect(&acceptor, files.client(&[], Some(issue(&others)))).await.is_err());
        assert!(connect(&acceptor, files.client(&[], None)).await.is_err());
    }

    #[tokio::test]
    async fn changed_client_roots_hold_from_the_next_connection() {
        let mut files = Files::new();
        let (old, new) = (authority(), authority());
        files.require_clients_of(&old);
        let acceptor = TlsAcceptor::new(&files.paths).unwrap();
        files.require_clients_of(&new);
        assert!(acceptor.reload().unwrap());

        assert!(connect(&acceptor, files.client(&[], Some(issue(&old)))).await.is_err());
        assert!(connect(&acceptor, files.client(&[], Some(issue(&new)))).await.is_ok());
    }

    #[tokio::test]
    async fn a_silent_client_is_dropped() {
        let files = Files::new();
        let acceptor = TlsAcceptor::new(&files.paths).unwrap();
        let (_silent, far) = duplex(64);
        let error = acceptor.accept_within(Duration::from_millis(10), far).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    }
}
