//! `tollgate health`: asks a running gateway whether it is well, for containers that have neither a shell nor curl.
//!
//! Plain HTTP/1.1 on a blocking socket: the admin listener never speaks TLS, and a probe must start in a millisecond.

use std::{
    io::{self, Read, Write},
    net::{TcpStream, ToSocketAddrs},
    time::{Duration, Instant},
};

use anyhow::{Context, bail, ensure};
use http::Uri;

/// Where a gateway with default listeners answers. The admin listener: the client's may ask for TLS.
pub(super) const DEFAULT_URL: &str = "http://127.0.0.1:9090/healthz";

/// Time for everything together; orchestrators kill slower probes anyway.
const DEADLINE: Duration = Duration::from_secs(2);

/// Between two questions to a gateway that is waited for.
const PAUSE: Duration = Duration::from_millis(50);

/// `HTTP/1.1 200`: as much of the reply as says how the gateway is.
const STATUS_BYTES: usize = 12;

/// A place to ask, known to be of the form `http://host[:port]/path`.
#[derive(Debug, Clone)]
pub(super) struct Target {
    host: String,
    port: u16,
    path: String,
}

impl Target {
    /// Reads a URL; the message says what is wrong with it.
    pub(super) fn parse(url: &str) -> Result<Target, String> {
        let uri: Uri = url.parse().map_err(|error| format!("{error}"))?;
        if uri.scheme_str() != Some("http") {
            return Err(format!("only plain http is asked, as in {DEFAULT_URL}"));
        }
        let host = uri.host().ok_or("names no host")?;
        // Without a path it is the listener that is named, as `TOLLGATE_ADMIN_URL` does.
        let path = uri.path_and_query().map_or("/", |path| path.as_str());
        let path = if path == "/" { "/healthz" } else { path };
        Ok(Target {
            // The brackets of an IPv6 address belong to the URL.
            host: host.trim_start_matches('[').trim_end_matches(']').to_owned(),
            port: uri.port_u16().unwrap_or(80),
            path: path.to_owned(),
        })
    }
}

/// Succeeds when `target` answers 200 in time; one that does not is asked again for as long as `wait` says.
///
/// # Errors
/// When nobody listens there, when the answer is another, or when it takes longer than 2 s; the last of these.
pub(super) fn run(target: &Target, wait: Duration) -> anyhow::Result<()> {
    let begun = Instant::now();
    loop {
        match ask(target, Instant::now() + DEADLINE) {
            Err(_) if begun.elapsed() < wait => std::thread::sleep(PAUSE),
            answer => return answer,
        }
    }
}

fn ask(target: &Target, deadline: Instant) -> anyhow::Result<()> {
    let Target { host, port, path } = target;
    let mut stream = connect(target, deadline).with_context(|| format!("{host}:{port} cannot be reached"))?;
    stream.set_write_timeout(Some(left(deadline)?))?;
    write!(stream, "GET {path} HTTP/1.1\r\nhost: {host}:{port}\r\nconnection: close\r\n\r\n")?;
    let status = status(&mut stream, deadline).with_context(|| format!("{host}:{port} did not answer"))?;
    ensure!(status == "200", "{path} answered {status}");
    Ok(())
}

fn connect(target: &Target, deadline: Instant) -> anyhow::Result<TcpStream> {
    let mut failure = None;
    for address in (target.host.as_str(), target.port).to_socket_addrs()? {
        match TcpStream::connect_timeout(&address, left(deadline)?) {
            Ok(stream) => return Ok(stream),
            Err(error) => failure = Some(error),
        }
    }
    match failure {
        Some(error) => Err(error.into()),
        None => bail!("the name has no address"),
    }
}

/// The three digits of the reply's first line.
fn status(stream: &mut TcpStream, deadline: Instant) -> anyhow::Result<String> {
    let mut head = [0; STATUS_BYTES];
    let mut filled = 0;
    while filled < STATUS_BYTES {
        // Per read, or a server that sends a byte now and then would hold the probe for ever.
        stream.set_read_timeout(Some(left(deadline)?))?;
        match stream.read(&mut head[filled..])? {
            0 => bail!("it hung up"),
            read => filled += read,
        }
    }
    let head = std::str::from_utf8(&head)?;
    match head.strip_prefix("HTTP/1.1 ").or_else(|| head.strip_prefix("HTTP/1.0 ")) {
        Some(status) => Ok(status.to_owned()),
        None => bail!("it does not speak HTTP/1"),
    }
}

fn left(deadline: Instant) -> io::Result<Duration> {
    let left = deadline.saturating_duration_since(Instant::now());
    if left.is_zero() { Err(io::ErrorKind::TimedOut.into()) } else { Ok(left) }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    /// A server for one connection that sends `reply` and then holds the connection until the other side hangs up.
    fn server(reply: &'static [u8]) -> Target {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let port = listener.local_addr().expect("bound").port();
        std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().expect("a probe");
            stream.write_all(reply).expect("taken");
            let _ = stream.read_to_end(&mut Vec::new());
        });
        Target { host: "127.0.0.1".to_owned(), port, path: "/healthz".to_owned() }
    }

    fn within(target: &Target, wait: Duration) -> Result<(), String> {
        ask(target, Instant::now() + wait).map_err(|error| format!("{error:#}"))
    }

    #[test]
    fn only_200_is_well() {
        assert_eq!(within(&server(b"HTTP/1.1 200 OK\r\n\r\nok"), DEADLINE), Ok(()));

        let answered = within(&server(b"HTTP/1.1 503 Service Unavailable\r\n\r\n"), DEADLINE);
        assert_eq!(answered, Err("/healthz answered 503".to_owned()));

        let error = within(&server(b"SSH-2.0-OpenSSH_9.2\r\n"), DEADLINE).expect_err("no HTTP");
        assert!(error.ends_with("it does not speak HTTP/1"), "{error}");
    }

    #[test]
    fn a_server_that_stays_silent_or_stops_half_way_is_not_waited_for() {
        for reply in [&b""[..], b"HTTP/1.1"] {
            let began = Instant::now();
            within(&server(reply), Duration::from_millis(50)).expect_err("no answer");
            assert!(began.elapsed() < DEADLINE, "{:?}", began.elapsed());
        }
    }

    #[test]
    fn a_port_where_nobody_listens_is_an_error() {
        let port = TcpListener::bind("127.0.0.1:0").and_then(|closed| closed.local_addr()).expect("a port").port();
        let target = Target { host: "127.0.0.1".to_owned(), port, path: "/".to_owned() };
        let error = within(&target, DEADLINE).expect_err("nobody");
        assert!(error.contains("cannot be reached"), "{error}");
    }

    #[test]
    fn a_url_is_taken_apart_or_refused() {
        let parsed = |url| Target::parse(url).map(|target| (target.host, target.port, target.path));
        let target = |host: &str, port, path: &str| Ok((host.to_owned(), port, path.to_owned()));
        assert_eq!(parsed(DEFAULT_URL), target("127.0.0.1", 9090, "/healthz"));
        assert_eq!(parsed("http://[::1]:81/readyz?x=1"), target("::1", 81, "/readyz?x=1"));
        for listener in ["http://gateway", "http://gateway/"] {
            assert_eq!(parsed(listener), target("gateway", 80, "/healthz"), "{listener}");
        }
        for wrong in ["https://127.0.0.1/healthz", "127.0.0.1:9090", "/healthz", "", "http://a b/"] {
            parsed(wrong).expect_err(wrong);
        }
    }
}
