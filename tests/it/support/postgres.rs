//! A real PostgreSQL, started by the test on a free port and gone with it.
//!
//! Used by the unit tests of the store as well, so it needs nothing but the standard library and `tempfile`.
#![allow(dead_code, reason = "each suite that shares this file uses a part of it")]

use std::{
    net::{TcpListener, TcpStream},
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use tempfile::TempDir;

/// How long anything may take that should be quick. Long, because a busy machine is not a failure.
const PATIENCE: Duration = Duration::from_secs(60);
const INSTALL: &str = "postgres is needed for this test: apt-get install postgresql-15";

/// A running server. Dropped, it is killed.
#[derive(Debug)]
pub(crate) struct PostgresServer {
    pub(crate) port: u16,
    process: Child,
    directory: TempDir,
}

impl PostgresServer {
    /// An empty server, to which everybody on this machine may connect as `postgres`.
    pub(crate) fn start() -> PostgresServer {
        let directory = TempDir::new().expect("a temporary directory");
        let data = directory.path().join("data");
        std::fs::create_dir(&data).expect("a writable directory");
        if let Some((user, group)) = unprivileged() {
            // The server refuses to run as root; what it may reach is its own directory.
            std::os::unix::fs::chown(directory.path(), Some(user), Some(group)).expect("root may");
            std::os::unix::fs::chown(&data, Some(user), Some(group)).expect("root may");
        }
        let arguments = ["--username=postgres", "--auth=trust", "--no-sync", "--encoding=UTF8", "--locale=C", "-D"];
        let made = command("initdb").args(arguments).arg(&data).stdout(Stdio::null()).status();
        assert!(made.expect(INSTALL).success(), "initdb fails");
        for _ in 0..10 {
            let port = free_port();
            let mut process = spawn(port, &data);
            if is_up(port, &mut process) {
                return PostgresServer { port, process, directory };
            }
        }
        panic!("no PostgreSQL starts");
    }

    pub(crate) fn url(&self) -> String {
        format!("postgres://postgres@127.0.0.1:{}/postgres", self.port)
    }

    /// Sends a signal to the server and to each of its workers: `STOP`, `CONT`.
    pub(crate) fn signal(&self, name: &str) {
        let id = self.process.id();
        let script = format!("kill -{name} {id} $(cat /proc/{id}/task/{id}/children)");
        let status = Command::new("sh").args(["-c", &script]).status().expect("a shell");
        assert!(status.success(), "{script}");
    }

    /// Stops it at once, as a crash would.
    pub(crate) fn kill(&mut self) {
        // Its workers end by themselves once they see that it is gone; an immediate shutdown is seen to the end.
        let script = format!("kill -QUIT {}", self.process.id());
        assert!(Command::new("sh").args(["-c", &script]).status().expect("a shell").success());
        self.process.wait().expect("our own child");
    }

    /// Starts it again, on the same port with the same data, after it was killed.
    pub(crate) fn restart(&mut self) {
        self.process = spawn(self.port, &self.directory.path().join("data"));
        assert!(is_up(self.port, &mut self.process), "the server does not start again");
    }
}

impl Drop for PostgresServer {
    fn drop(&mut self) {
        let script = format!("kill -CONT {0}; kill -QUIT {0}", self.process.id());
        let _ = Command::new("sh").args(["-c", &script]).stderr(Stdio::null()).status();
        let _ = self.process.wait();
    }
}

fn spawn(port: u16, data: &Path) -> Child {
    // `-F`: a test's data need not survive a power loss.
    let (port, sockets) = (port.to_string(), data.display().to_string());
    let arguments =
        ["-F", "-p", &port, "-k", &sockets, "-c", "listen_addresses=127.0.0.1", "-c", "max_connections=50", "-D"];
    let mut postgres = command("postgres");
    postgres.args(arguments).arg(data).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    postgres.spawn().expect(INSTALL)
}

/// A program of PostgreSQL's, not as root.
fn command(program: &str) -> Command {
    let mut command = Command::new(installed(program));
    command.current_dir("/").env("LC_ALL", "C");
    if let Some((user, group)) = unprivileged() {
        command.uid(user).gid(group);
    }
    command
}

/// Debian keeps the server's programs out of the search path.
fn installed(program: &str) -> PathBuf {
    let versions = std::fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    let mut found: Vec<PathBuf> = versions.map(|version| version.path().join("bin").join(program)).collect();
    found.retain(|path| path.is_file());
    found.sort();
    found.pop().unwrap_or_else(|| PathBuf::from(program))
}

/// User and group to run as where this is root: `nobody`, who owns nothing.
fn unprivileged() -> Option<(u32, u32)> {
    use std::os::unix::fs::MetadataExt as _;
    let root = std::fs::metadata("/proc/self").is_ok_and(|own| own.uid() == 0);
    root.then_some((65_534, 65_534))
}

fn free_port() -> u16 {
    TcpListener::bind(("127.0.0.1", 0)).and_then(|listener| listener.local_addr()).expect("a free port").port()
}

/// Whether it takes connections, once it does or has ended.
fn is_up(port: u16, process: &mut Child) -> bool {
    let began = Instant::now();
    while began.elapsed() < PATIENCE {
        if process.try_wait().expect("our own child").is_some() {
            return false;
        }
        let ready = command("pg_isready").args(["-q", "-h", "127.0.0.1", "-p", &port.to_string()]).status();
        if ready.is_ok_and(|ready| ready.success()) && TcpStream::connect(("127.0.0.1", port)).is_ok() {
            return true;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    panic!("a PostgreSQL neither starts nor ends");
}
