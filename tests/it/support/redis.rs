//! A real redis-server, started by the test on a free port and gone with it: alone, with replicas, under Sentinels, as a Cluster.
//!
//! Used by the unit tests of the store as well, so it needs nothing but the standard library and `tempfile`.
#![allow(dead_code, reason = "each suite that shares this file uses a part of it")]

use std::{
    io::{BufRead as _, BufReader, Write as _},
    net::{TcpListener, TcpStream},
    path::Path,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use tempfile::TempDir;

/// How long anything may take that should be quick. Long, because a busy machine is not a failure.
const PATIENCE: Duration = Duration::from_secs(20);
const INSTALL: &str = "redis-server is needed for this test: apt-get install redis-server";

/// A running server. Dropped, it is killed.
#[derive(Debug)]
pub(crate) struct RedisServer {
    pub(crate) port: u16,
    arguments: Vec<String>,
    process: Child,
    directory: TempDir,
}

impl RedisServer {
    /// A server that keeps what it is told: append-only file, no eviction.
    pub(crate) fn start() -> RedisServer {
        RedisServer::with(&["--appendonly", "yes"])
    }

    /// A server with arguments of its own, as on its command line.
    pub(crate) fn with(arguments: &[&str]) -> RedisServer {
        let directory = TempDir::new().expect("a temporary directory");
        let arguments: Vec<String> = arguments.iter().map(|&argument| argument.to_owned()).collect();
        // A free port may be taken by another test before the server has it.
        for _ in 0..10 {
            let port = free_port();
            let mut process = spawn(port, &arguments, &directory);
            if is_up(port, &mut process) {
                return RedisServer { port, arguments, process, directory };
            }
        }
        panic!("redis-server does not start with {arguments:?}");
    }

    /// A server that also speaks TLS, with the `server.crt` and `server.key` of `directory`; and the port of that.
    pub(crate) fn tls(directory: &Path) -> (RedisServer, u16) {
        let port = free_port();
        let file = |name: &str| directory.join(name).to_str().expect("UTF-8").to_owned();
        let (certificate, key) = (file("server.crt"), file("server.key"));
        let files = ["--tls-cert-file", &certificate, "--tls-ca-cert-file", &certificate, "--tls-key-file", &key];
        let rest = ["--tls-auth-clients", "no", "--appendonly", "yes", "--tls-port", &port.to_string()];
        (RedisServer::with(&[&files[..], &rest[..]].concat()), port)
    }

    /// A replica of this server, in step with it.
    pub(crate) fn replica(&self) -> RedisServer {
        RedisServer::replica_by(self.port)
    }

    /// A replica of the server that `port` leads to, in step with it.
    pub(crate) fn replica_by(port: u16) -> RedisServer {
        let replica = RedisServer::with(&["--appendonly", "yes", "--replicaof", &format!("127.0.0.1 {port}")]);
        until("the replica is in step", || replica.command(&["INFO", "replication"]).contains("master_link_status:up"));
        replica
    }

    /// A Sentinel that watches `primary` as `main`, alone, and replaces it once it was silent for `patience_ms`.
    pub(crate) fn sentinel(primary: &RedisServer, patience_ms: u32) -> RedisServer {
        RedisServer::sentinel_of(primary, patience_ms, 1)
    }

    /// Sentinels that watch `primary` as `main` and replace it once most of them found it silent for `patience_ms`. They know
    /// each other.
    pub(crate) fn sentinels(primary: &RedisServer, patience_ms: u32, count: usize) -> Vec<RedisServer> {
        let sentinel = || RedisServer::sentinel_of(primary, patience_ms, count / 2 + 1);
        let sentinels: Vec<RedisServer> = (0..count).map(|_| sentinel()).collect();
        let knows_all =
            |sentinel: &RedisServer| sentinel.command(&["INFO", "sentinel"]).contains(&format!("sentinels={count}"));
        until("the Sentinels know each other", || sentinels.iter().all(knows_all));
        sentinels
    }

    fn sentinel_of(primary: &RedisServer, patience_ms: u32, quorum: usize) -> RedisServer {
        let directory = TempDir::new().expect("a temporary directory");
        let config = directory.path().join("sentinel.conf");
        let watched = primary.port;
        let text = format!(
            "sentinel monitor main 127.0.0.1 {watched} {quorum}\nsentinel down-after-milliseconds main {patience_ms}\nsentinel failover-timeout main 3000\n"
        );
        std::fs::write(&config, text).expect("a writable directory");
        let arguments = vec!["--sentinel".to_owned()];
        for _ in 0..10 {
            let port = free_port();
            let mut process = spawn_with(&[config.to_str().expect("UTF-8")], port, &arguments, &directory);
            if is_up(port, &mut process) {
                return RedisServer { port, arguments, process, directory };
            }
        }
        panic!("no Sentinel starts");
    }

    /// A Cluster of three primaries, each with a third of the slots, and as many replicas as asked for.
    pub(crate) fn cluster(replicas: usize) -> Vec<RedisServer> {
        let node = || RedisServer::with(&["--cluster-enabled", "yes", "--cluster-node-timeout", "1000"]);
        let nodes: Vec<RedisServer> = (0..3 + replicas).map(|_| node()).collect();
        for (node, range) in nodes.iter().zip(["0 5460", "5461 10922", "10923 16383"]) {
            let (first, last) = range.split_once(' ').expect("two numbers");
            assert!(node.command(&["CLUSTER", "ADDSLOTSRANGE", first, last]).starts_with("OK"));
        }
        for node in &nodes[1..] {
            node.command(&["CLUSTER", "MEET", "127.0.0.1", &nodes[0].port.to_string()]);
        }
        let knows_all = |node: &RedisServer| node.command(&["CLUSTER", "NODES"]).lines().count() >= nodes.len();
        until("all nodes know each other", || nodes.iter().all(knows_all));
        for (index, replica) in nodes[3..].iter().enumerate() {
            let primary = nodes[index % 3].command(&["CLUSTER", "MYID"]);
            until("the node follows", || replica.command(&["CLUSTER", "REPLICATE", primary.trim()]).starts_with("OK"));
            until("the replica is in step", || {
                replica.command(&["INFO", "replication"]).contains("master_link_status:up")
            });
        }
        until("the Cluster serves", || {
            nodes.iter().all(|node| node.command(&["CLUSTER", "INFO"]).contains("cluster_state:ok"))
        });
        nodes
    }

    pub(crate) fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    /// Sends a command, and returns what the server answers as plain text, an error with its leading `-`.
    ///
    /// # Panics
    /// When there is no answer.
    pub(crate) fn command(&self, words: &[&str]) -> String {
        ask(self.port, words).unwrap_or_else(|error| panic!("{words:?}: {error}"))
    }

    /// Whether it takes writes. One that changes its role hangs up meanwhile.
    pub(crate) fn is_primary(&self) -> bool {
        ask(self.port, &["ROLE"]).is_ok_and(|role| role.starts_with("master"))
    }

    /// Sends a signal: `STOP`, `CONT`.
    pub(crate) fn signal(&self, name: &str) {
        let script = format!("kill -{name} {}", self.process.id());
        let status = Command::new("sh").args(["-c", &script]).status().expect("a shell");
        assert!(status.success(), "{script}");
    }

    /// `kill -9`.
    pub(crate) fn kill(&mut self) {
        self.process.kill().expect("our own child");
        self.process.wait().expect("our own child");
    }

    /// Starts it again, on the same port with the same data, after it was killed.
    pub(crate) fn restart(&mut self) {
        self.process = spawn(self.port, &self.arguments, &self.directory);
        assert!(is_up(self.port, &mut self.process), "the server does not start again");
    }

    /// How often a command was called, by `INFO commandstats`.
    pub(crate) fn calls(&self, command: &str) -> u64 {
        let stats = self.command(&["INFO", "commandstats"]);
        let line = stats.lines().find_map(|line| line.strip_prefix(&format!("cmdstat_{command}:calls=")));
        line.and_then(|line| line.split(',').next()?.parse().ok()).unwrap_or_default()
    }
}

impl Drop for RedisServer {
    fn drop(&mut self) {
        // Both fail only when the process has ended by itself.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn free_port() -> u16 {
    // Cluster nodes talk on the port ten thousand above.
    loop {
        let port =
            TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr()).expect("a free port").port();
        if port < 55_000 {
            return port;
        }
    }
}

fn spawn(port: u16, arguments: &[String], directory: &TempDir) -> Child {
    spawn_with(&[], port, arguments, directory)
}

fn spawn_with(first: &[&str], port: u16, arguments: &[String], directory: &TempDir) -> Child {
    Command::new("redis-server")
        .args(first)
        .args([
            "--port",
            &port.to_string(),
            "--bind",
            "127.0.0.1",
            "--save",
            "",
            "--daemonize",
            "no",
            "--logfile",
            "log",
        ])
        .args(["--repl-diskless-sync-delay", "0"])
        .args(arguments)
        .current_dir(directory.path())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap_or_else(|error| panic!("{INSTALL} ({error})"))
}

/// Waits until it answers; `false` when it has ended instead.
fn is_up(port: u16, process: &mut Child) -> bool {
    let begun = Instant::now();
    while begun.elapsed() < PATIENCE {
        if process.try_wait().expect("our own child").is_some() {
            return false;
        }
        if ask(port, &["PING"]).is_ok_and(|answer| answer.starts_with("PONG") || answer.starts_with("-NOAUTH")) {
            return true;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    panic!("redis-server on port {port} does not answer");
}

fn until(what: &str, done: impl Fn() -> bool) {
    let begun = Instant::now();
    while !done() {
        assert!(begun.elapsed() < PATIENCE, "waited {PATIENCE:?} in vain: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn ask(port: u16, words: &[&str]) -> std::io::Result<String> {
    let mut stream = TcpStream::connect(("127.0.0.1", port))?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut request = format!("*{}\r\n", words.len());
    for word in words {
        request.push_str(&format!("${}\r\n{word}\r\n", word.len()));
    }
    stream.write_all(request.as_bytes())?;
    let mut text = String::new();
    read_answer(&mut BufReader::new(stream), &mut text)?;
    Ok(text)
}

/// Appends an answer: lists a line per item, texts as they are, errors with their `-`.
fn read_answer(stream: &mut BufReader<TcpStream>, text: &mut String) -> std::io::Result<()> {
    let mut line = String::new();
    stream.read_line(&mut line)?;
    let line = line.trim_end();
    let count = || line.get(1..).and_then(|count| count.parse::<usize>().ok());
    match line.as_bytes().first() {
        Some(b'$') => {
            let mut bytes = vec![0; count().map_or(0, |count| count + 2)];
            std::io::Read::read_exact(stream, &mut bytes)?;
            text.push_str(String::from_utf8_lossy(&bytes).trim_end());
            text.push('\n');
        }
        Some(b'*') => {
            for _ in 0..count().unwrap_or_default() {
                read_answer(stream, text)?;
            }
        }
        Some(b'-') => text.push_str(line),
        Some(_) => text.push_str(&line[1..]),
        None => return Err(std::io::ErrorKind::UnexpectedEof.into()),
    }
    Ok(())
}
