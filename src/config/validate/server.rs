//! Listeners: their addresses, certificates and limits.

use std::{net::SocketAddr, time::Duration};

use super::{Check, shown};
use crate::{
    config::{
        file::{self, File},
        snapshot::{AdminToken, Auth, Role, Server, Tls},
        tree::Path,
    },
    policy::keys::KeyDigest,
};

impl Check<'_, '_, '_> {
    pub(super) fn server(&mut self, file: &File) -> Option<Server> {
        let at = Path::default().key("server");
        let typed = &file.server;
        let listen = typed.listen.map_or(SocketAddr::from(([127, 0, 0, 1], 8080)), |address| address.0);
        let admin = typed.admin.map_or(SocketAddr::from(([127, 0, 0, 1], 9090)), |address| address.0);
        if overlap(listen, admin) {
            self.problem(&at.key("admin"), format!("takes the port of `listen` ({listen}); give it a port of its own"));
        }
        if super::keys::auth(file) == Auth::None && !listen.ip().is_loopback() {
            let message = format!(
                "`none` would let everybody who reaches {listen} spend; listen on 127.0.0.1, or write `required`"
            );
            self.problem(&Path::default().key("auth"), message);
        }
        let admin_token = typed.admin_token.as_ref().and_then(|token| self.secret(&at.key("admin_token"), token));
        let admin_tokens = self.admin_tokens(&at.key("admin_tokens"), &typed.admin_tokens);
        let oidc = typed.oidc.as_ref().map(|oidc| self.oidc(&at.key("oidc"), oidc));
        let is_open = typed.admin_token.is_none() && typed.admin_tokens.is_empty() && typed.oidc.is_none();
        if is_open && !admin.ip().is_loopback() {
            let mend = format!(
                "`admin` listens on {admin}, beyond loopback; write `admin_token: \"${{TOLLGATE_ADMIN_TOKEN}}\"`"
            );
            self.required(&at, "admin_token", None::<()>, &mend);
        }
        if !admin.ip().is_loopback() {
            self.warn_if_guessable(&at.key("admin_token"), typed.admin_token.as_ref());
        }
        let tls = typed.tls.as_ref().map(|tls| self.tls(&at.key("tls"), tls));
        let limits_at = at.key("limits");
        let limits = &typed.limits;
        Some(Server {
            listen,
            admin,
            admin_token,
            admin_tokens,
            oidc: match oidc {
                Some(oidc) => Some(oidc?),
                None => None,
            },
            tls: match tls {
                Some(tls) => Some(tls?),
                None => None,
            },
            body_bytes_max: self.body_bytes_max(&limits_at, limits)?,
            in_flight_max: self.in_flight_max(&limits_at, limits)?,
            header_timeout: self.above_zero(
                &limits_at.key("header_timeout"),
                limits.header_timeout,
                Duration::from_secs(10),
            ),
            drain: limits.drain.map_or(Duration::from_secs(30), |drain| drain.0),
        })
    }

    fn admin_tokens(&mut self, section: &Path, typed: &[file::AdminToken]) -> Vec<AdminToken> {
        let mut tokens: Vec<AdminToken> = Vec::with_capacity(typed.len());
        for (i, typed) in typed.iter().enumerate() {
            let at = section.index(i);
            let name = self.required(&at, "name", typed.name.as_deref(), "name its owner: the audit log shows it");
            let role = self.required(&at, "role", typed.role, "write viewer, operator or admin");
            let digest = self.token_digest(&at, typed);
            let (Some(name), Some(role), Some(digest)) = (name, role, digest) else { continue };
            if !self.name(&at.key("name"), "token", name) {
                continue;
            }
            if let Some(other) = tokens.iter().find(|other| *other.name == *name || other.digest == digest) {
                let what = if *other.name == *name { "name" } else { "token" };
                self.problem(&at, format!("has the {what} of `{}` too; each token has one name", shown(&other.name)));
                continue;
            }
            let role = match role {
                file::Role::Viewer => Role::Viewer,
                file::Role::Operator => Role::Operator,
                file::Role::Admin => Role::Admin,
            };
            tokens.push(AdminToken { name: name.into(), digest, role });
        }
        tokens
    }

    fn token_digest(&mut self, at: &Path, typed: &file::AdminToken) -> Option<KeyDigest> {
        match (&typed.secret, &typed.hash) {
            (Some(_), Some(_)) => {
                self.problem(&at.key("hash"), "stands beside `secret`; keep one of them");
                None
            }
            (Some(secret), None) => {
                self.secret(&at.key("secret"), secret).map(|secret| KeyDigest::of(secret.expose(), None))
            }
            (None, Some(hash)) => match KeyDigest::parse(hash.trim()) {
                Ok(digest) if !digest.is_peppered() => Some(digest),
                _ => {
                    self.problem(&at.key("hash"), "is no `sha256:` with 64 hexadecimal digits after it");
                    None
                }
            },
            (None, None) => {
                if !self.document.has_struck(&at.key("hash")) {
                    self.required(at, "secret", None::<()>, "write `secret: \"${NAME}\"`, or a `hash`");
                }
                None
            }
        }
    }

    fn tls(&mut self, at: &Path, typed: &file::Tls) -> Option<Tls> {
        let cert = self.required(at, "cert", typed.cert.as_deref(), "name the PEM file with the certificate chain");
        let key = self.required(at, "key", typed.key.as_deref(), "name the PEM file with the private key");
        let files = [("cert", cert), ("key", key), ("client_ca", typed.client_ca.as_deref())];
        for (name, file) in files {
            if let Some(file) = file {
                self.readable(&at.key(name), file);
            }
        }
        Some(Tls {
            cert: self.sources.resolve(cert?),
            key: self.sources.resolve(key?),
            client_ca: typed.client_ca.as_deref().map(|ca| self.sources.resolve(ca)),
        })
    }

    fn body_bytes_max(&mut self, at: &Path, limits: &file::ServerLimits) -> Option<usize> {
        let bytes = limits.body.map_or(32 << 20, |size| size.0);
        if !(1024..=1 << 30).contains(&bytes) {
            self.problem(&at.key("body"), "must be from 1KiB to 1GiB");
            return None;
        }
        usize::try_from(bytes).ok()
    }

    fn in_flight_max(&mut self, at: &Path, limits: &file::ServerLimits) -> Option<usize> {
        let calls = limits.in_flight.unwrap_or(4096);
        if !(1..=1_000_000).contains(&calls) {
            self.problem(&at.key("in_flight"), format!("must be from 1 to 1000000, got {calls}"));
            return None;
        }
        Some(calls)
    }
}

/// Whether both addresses cannot be listened on at once. Port 0 takes any free one.
fn overlap(a: SocketAddr, b: SocketAddr) -> bool {
    let same_ip = a.ip() == b.ip() || a.ip().is_unspecified() || b.ip().is_unspecified();
    a.port() == b.port() && a.port() != 0 && same_ip
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn listeners_overlap_on_one_port_of_one_interface() {
        let overlaps = |a: &str, b: &str| overlap(a.parse().expect("an address"), b.parse().expect("an address"));
        assert!(overlaps("127.0.0.1:80", "127.0.0.1:80"));
        assert!(overlaps("0.0.0.0:80", "127.0.0.1:80"));
        assert!(!overlaps("127.0.0.1:80", "127.0.0.1:81"));
        assert!(!overlaps("127.0.0.1:0", "127.0.0.1:0"));
    }
}
