//! Listeners: their addresses, certificates and limits.

use std::{net::SocketAddr, time::Duration};

use super::Check;
use crate::config::{
    file::{self, File},
    snapshot::{Auth, Server, Tls},
    tree::Path,
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
        if typed.admin_token.is_none() && !admin.ip().is_loopback() {
            let mend = format!(
                "`admin` listens on {admin}, beyond loopback; write `admin_token: \"${{TOLLGATE_ADMIN_TOKEN}}\"`"
            );
            self.required(&at, "admin_token", None::<()>, &mend);
        }
        let tls = typed.tls.as_ref().map(|tls| self.tls(&at.key("tls"), tls));
        let limits_at = at.key("limits");
        let limits = &typed.limits;
        Some(Server {
            listen,
            admin,
            admin_token,
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
