//! TLS on both sides, through the binary: clients by ALPN, and providers that nobody vouches for.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering::SeqCst},
};

use http_body_util::{BodyExt as _, Full};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls::{
    ClientConfig, RootCertStore, ServerConfig,
    crypto::{CryptoProvider, aws_lc_rs},
    pki_types::{PrivateKeyDer, ServerName},
};
use tokio::{
    io::AsyncReadExt as _,
    net::{TcpListener, TcpStream},
};
use tokio_rustls::{TlsAcceptor, TlsConnector, client::TlsStream};

use crate::support::{Call, Gateway, KEY, Upstream};

type Issuer = CertifiedIssuer<'static, KeyPair>;

fn provider() -> Arc<CryptoProvider> {
    Arc::new(aws_lc_rs::default_provider())
}

fn authority() -> Issuer {
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
}

fn issue(authority: &Issuer, name: &str) -> (rcgen::Certificate, KeyPair) {
    let key = KeyPair::generate().unwrap();
    let params = CertificateParams::new(vec![name.to_owned()]).unwrap();
    (params.signed_by(&key, authority).unwrap(), key)
}

/// A connection to `gateway` on which `alpn` was offered.
async fn connect(gateway: &Gateway, authority: &Issuer, alpn: &str) -> TlsStream<TcpStream> {
    let mut roots = RootCertStore::empty();
    roots.add(authority.der().clone()).unwrap();
    let versions = ClientConfig::builder_with_provider(provider()).with_safe_default_protocol_versions().unwrap();
    let mut config = versions.with_root_certificates(roots).with_no_client_auth();
    config.alpn_protocols = vec![alpn.as_bytes().to_vec()];
    let stream = TcpStream::connect(gateway.listen).await.unwrap();
    let name = ServerName::try_from("gateway.test").unwrap();
    let stream = TlsConnector::from(Arc::new(config)).connect(name, stream).await.unwrap();
    assert_eq!(stream.get_ref().1.alpn_protocol(), Some(alpn.as_bytes()));
    stream
}

fn chat(uri: String) -> http::Request<Full<bytes::Bytes>> {
    let body = r#"{"model":"upstream/m","messages":[{"role":"user","content":"hi"}]}"#;
    http::Request::post(uri)
        .header("host", "gateway.test")
        .header("authorization", format!("Bearer {KEY}"))
        .header("content-type", "application/json")
        .body(Full::from(body))
        .unwrap()
}

#[tokio::test]
async fn clients_are_served_over_tls_in_the_protocol_that_alpn_chose() {
    let upstream = Upstream::run().await;
    let server = r#"{ listen: "127.0.0.1:0", admin: "127.0.0.1:0", tls: { cert: tls.crt, key: tls.key } }"#;
    let setup = Gateway::before(&upstream).top("server", server);
    let authority = authority();
    let (certificate, key) = issue(&authority, "gateway.test");
    std::fs::write(setup.directory().join("tls.crt"), certificate.pem()).unwrap();
    std::fs::write(setup.directory().join("tls.key"), key.serialize_pem()).unwrap();
    let gateway = setup.run().await;

    let stream = TokioIo::new(connect(&gateway, &authority, "http/1.1").await);
    let (mut client, connection) = hyper::client::conn::http1::handshake(stream).await.unwrap();
    tokio::spawn(connection);
    let over_1 = client.send_request(chat("/v1/chat/completions".to_owned())).await.unwrap();
    let stream = TokioIo::new(connect(&gateway, &authority, "h2").await);
    let (mut client, connection) = hyper::client::conn::http2::handshake(TokioExecutor::new(), stream).await.unwrap();
    tokio::spawn(connection);
    let over_2 = client.send_request(chat("https://gateway.test/v1/chat/completions".to_owned())).await.unwrap();

    for response in [over_1, over_2] {
        assert_eq!(response.status(), 200);
        let body = response.into_body().collect().await.unwrap().to_bytes();
        let body: serde_json::Value = serde_json::from_slice(&body).unwrap();
        assert_eq!(body["object"], "chat.completion");
    }
    assert_eq!(upstream.request_count(), 2);
    let played =
        Call::new(gateway.admin, "POST", "/playground/send").header("x-playground-key", &format!("Bearer {KEY}"));
    let played =
        played.json(&serde_json::json!({"model": "upstream/m", "messages": [{"role": "user", "content": "hi"}]}));
    assert_eq!(played.send().await.expect(200).json()["object"], "chat.completion", "the playground goes the same way");
    assert_eq!(upstream.request_count(), 3);
    let mut plain = TcpStream::connect(gateway.listen).await.unwrap();
    tokio::io::AsyncWriteExt::write_all(&mut plain, b"GET /healthz HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
    let mut said = Vec::new();
    // Closed or reset: either way nothing is answered in the clear.
    let _ = plain.read_to_end(&mut said).await;
    assert!(!said.starts_with(b"HTTP/"), "{:?}", String::from_utf8_lossy(&said));
}

/// Speaks TLS with this certificate; counts the clients that went on to say something.
async fn impostor(certificate: &rcgen::Certificate, key: &KeyPair) -> (String, Arc<AtomicUsize>) {
    let versions = ServerConfig::builder_with_provider(provider()).with_safe_default_protocol_versions().unwrap();
    let key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
    let config = versions.with_no_client_auth().with_single_cert(vec![certificate.der().clone()], key).unwrap();
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("https://localhost:{}/v1", listener.local_addr().unwrap().port());
    let heard = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&heard);
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let Ok(mut stream) = acceptor.accept(stream).await else { continue };
            if stream.read_u8().await.is_ok() {
                counter.fetch_add(1, SeqCst);
            }
        }
    });
    (url, heard)
}

#[tokio::test]
async fn a_provider_that_nobody_vouches_for_gets_neither_key_nor_prompt() {
    let authority = authority();
    for name in ["localhost", "other.test"] {
        let (certificate, key) = issue(&authority, name);
        let (url, heard) = impostor(&certificate, &key).await;
        let provider = format!(r#"kind: openai, base_url: "{url}", api_key: sk-CANARY"#);
        let gateway = Gateway::bare().provider("far", &provider).key("dev", KEY, "").run().await;

        let refused = gateway.hello("far/m").send().await.expect(502);

        assert_eq!(refused.error_code(), "upstream_unreachable");
        assert_eq!(heard.load(SeqCst), 0, "something was said to an impostor as {name}");
        assert!(!refused.text().contains("localhost"), "{}", refused.text());
    }
}
