//! Redis over TLS with a user of its own, and what is said to one that nobody vouches for: nothing.

use std::path::{Path, PathBuf};

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};

use crate::support::{
    fleet::{USD, attempt, billing_upstream, costing, fleet, member, quiet_books, team_budget},
    redis::RedisServer,
};

/// As `docs/ledger.md` has it.
const ACL: &str = "on >s3cret resetkeys ~tollgate:* resetchannels -@all +evalsha +eval +hgetall +hset +hdel +get +set +time +info +scan +wait";

type Issuer = CertifiedIssuer<'static, KeyPair>;

/// A new authority, whose certificate is written beside those it vouches for.
fn authority(directory: &Path, name: &str) -> (Issuer, PathBuf) {
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.distinguished_name.push(DnType::CommonName, name);
    let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
    let path = directory.join(format!("{name}.pem"));
    std::fs::write(&path, issuer.pem()).unwrap();
    (issuer, path)
}

fn guarded_server(directory: &Path, authority: &Issuer) -> (RedisServer, String) {
    let key = KeyPair::generate().unwrap();
    let params = CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
    let certificate = params.signed_by(&key, authority).unwrap();
    std::fs::write(directory.join("server.crt"), certificate.pem()).unwrap();
    std::fs::write(directory.join("server.key"), key.serialize_pem()).unwrap();
    let (server, port) = RedisServer::tls(directory);
    let words = ["ACL", "SETUSER", "ledger"].into_iter().chain(ACL.split(' '));
    assert_eq!(server.command(&words.collect::<Vec<_>>()), "OK");
    (server, format!("rediss://ledger:s3cret@localhost:{port}"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fleet_shares_its_limit_over_tls_as_a_user_of_its_own() {
    let directory = tempfile::tempdir().unwrap();
    let (issuer, roots) = authority(directory.path(), "right");
    let (redis, url) = guarded_server(directory.path(), &issuer);
    let upstream = billing_upstream().await;
    let gateways = fleet(2, || {
        let setup = member(&upstream, &format!("\"{url}\"")).budget(&team_budget("limit: 0.1 USD"));
        setup.env("SSL_CERT_FILE", roots.to_str().unwrap())
    })
    .await;

    let mut served = 0;
    for number in 0..14 {
        served += usize::from(attempt(gateways[number % 2].listen, &costing(1000)).await.is(200));
    }

    assert_eq!(served, 10);
    assert_eq!(quiet_books(&redis).await.charged, USD / 10);
    for gateway in &gateways {
        assert!(!gateway.log_text().contains("s3cret"));
    }
}

#[tokio::test]
async fn a_redis_that_nobody_vouches_for_is_refused_and_the_reason_said() {
    let directory = tempfile::tempdir().unwrap();
    let (issuer, right) = authority(directory.path(), "right");
    let (_, wrong) = authority(directory.path(), "wrong");
    let (_redis, url) = guarded_server(directory.path(), &issuer);
    let upstream = billing_upstream().await;
    // An authority that did not sign it; and a name that it does not have.
    for (roots, url) in [(&wrong, url.clone()), (&right, url.replace("localhost", "127.0.0.1"))] {
        let setup = member(&upstream, &format!("\"{url}\"")).budget(&team_budget("limit: 1 USD"));
        let setup = setup.env("SSL_CERT_FILE", roots.to_str().unwrap());
        std::fs::write(setup.config_path(), setup.text()).unwrap();
        let output = setup.command(&["serve", "--config", "tollgate.yaml"]).output().unwrap();
        let told = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(3), "{told}");
        assert!(told.contains("invalid peer certificate") && told.contains("SSL_CERT_FILE"), "{told}");
        assert!(told.contains("rediss://") && !told.contains("s3cret"), "{told}");
    }
}
