//! What is compared, each as a process of its own.

use std::{
    net::{SocketAddr, TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, bail};
use tempfile::TempDir;

use crate::process::{Memory, Process};

/// The upstream itself.
pub(crate) const DIRECT: &str = "direct";
/// The yardstick.
pub(crate) const BARE: &str = "bare hyper proxy";
/// Where it is installed.
pub(crate) const NGINX: &str = "nginx";
/// With every policy on.
pub(crate) const GATEWAY: &str = "tollgate";

/// The key that the gateway wants.
pub(crate) const CLIENT_KEY: &str = "sk-overhead-0123456789abcdef0123456789abcdef";

const CONFIG: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/contract/everything.yaml");

/// One address to load.
pub(crate) struct Subject {
    /// What it is called in the report.
    pub(crate) name: &'static str,
    /// Where it listens.
    pub(crate) address: SocketAddr,
    process: Process,
}

/// All of them.
pub(crate) struct Subjects {
    all: Vec<Subject>,
    /// The gateway's admin listener.
    pub(crate) admin: SocketAddr,
    gateway: PathBuf,
    data: TempDir,
}

impl Subject {
    /// CPU time so far.
    pub(crate) fn cpu(&self) -> anyhow::Result<Duration> {
        self.process.cpu()
    }

    /// Memory now.
    pub(crate) fn rss(&self) -> anyhow::Result<Memory> {
        self.process.memory()
    }
}

impl Subjects {
    /// Starts everything.
    pub(crate) fn start(gateway: &Path) -> anyhow::Result<Subjects> {
        let data = tempfile::tempdir()?;
        let mock = start_mock()?;
        let upstream = mock.ready.parse()?;
        let bare = start_bare(upstream)?;
        let bare = Subject { name: BARE, address: bare.ready.parse()?, process: bare };
        let nginx = start_nginx(upstream, data.path())?;
        let process = start_gateway(gateway, upstream, &data.path().join("gateway"))?;
        let [listen, admin] = ["listen=", "admin="].map(|name| announced(&process.ready, name));
        let gateway_subject = Subject { name: GATEWAY, address: listen?, process };
        let direct = Subject { name: DIRECT, address: upstream, process: mock };
        let all = [direct, bare].into_iter().chain(nginx).chain([gateway_subject]).collect();
        Ok(Subjects { all, admin: admin?, gateway: gateway.to_owned(), data })
    }

    /// In the order in which they are loaded.
    pub(crate) fn all(&self) -> &[Subject] {
        &self.all
    }

    /// Times of fresh starts, from the start of the process to its readiness.
    pub(crate) fn time_starts(&self, count: usize) -> anyhow::Result<Vec<(&'static str, Duration)>> {
        let upstream = self.all.iter().find(|subject| subject.name == DIRECT).context("the upstream")?.address;
        let mut times = Vec::new();
        for i in 0..count {
            times.push((BARE, start_bare(upstream)?.started_in));
            let data = self.data.path().join(format!("start-{i}"));
            times.push((GATEWAY, start_gateway(&self.gateway, upstream, &data)?.started_in));
        }
        Ok(times)
    }

    /// Ends them from the client's side inward.
    pub(crate) fn stop(&mut self) {
        while self.all.pop().is_some() {}
    }
}

fn myself(role: &str) -> anyhow::Result<Command> {
    let mut command = Command::new(std::env::current_exe()?);
    command.arg(role);
    Ok(command)
}

fn start_mock() -> anyhow::Result<Process> {
    Process::start(&mut myself("mock")?)
}

fn start_bare(upstream: SocketAddr) -> anyhow::Result<Process> {
    Process::start(myself("proxy")?.arg(upstream.to_string()))
}

/// The log line per call is written, to where it costs a write and nothing more.
fn start_gateway(binary: &Path, upstream: SocketAddr, data: &Path) -> anyhow::Result<Process> {
    let mut command = Command::new(binary);
    command.args(["serve", "--config", CONFIG]).stderr(Stdio::null());
    command.env("UPSTREAM", format!("http://{upstream}")).env("CLIENT_KEY", CLIENT_KEY).env("DATA_DIR", data);
    command.env("PORT", "0").env("ADMIN_PORT", "0").env_remove("TOLLGATE_LOG").env_remove("RUST_LOG");
    Process::start(&mut command)
}

fn announced(line: &str, name: &str) -> anyhow::Result<SocketAddr> {
    let word = line.split_whitespace().find_map(|word| word.strip_prefix(name));
    Ok(word.with_context(|| format!("no {name} in `{line}`"))?.parse()?)
}

/// nginx as one would put it before such an upstream; `None` where it isn't installed.
fn start_nginx(upstream: SocketAddr, dir: &Path) -> anyhow::Result<Option<Subject>> {
    if Command::new("nginx").arg("-v").stderr(Stdio::null()).status().is_err() {
        return Ok(None);
    }
    // nginx can't say which port it was given.
    let address = TcpListener::bind(("127.0.0.1", 0))?.local_addr()?;
    let workers = std::thread::available_parallelism()?;
    let root = dir.display();
    let config = format!(
        "daemon off; worker_processes {workers}; pid {root}/nginx.pid; error_log /dev/null;
events {{ worker_connections 4096; }}
http {{
  access_log off; keepalive_requests 1000000000; keepalive_timeout 75s;
  client_body_temp_path {root}/nginx-body; proxy_temp_path {root}/nginx-proxy;
  fastcgi_temp_path {root}/nginx-fastcgi; uwsgi_temp_path {root}/nginx-uwsgi; scgi_temp_path {root}/nginx-scgi;
  upstream provider {{ server {upstream}; keepalive 256; keepalive_requests 1000000000; }}
  server {{
    listen {address};
    location / {{ proxy_pass http://provider; proxy_http_version 1.1; proxy_set_header Connection \"\"; proxy_buffering off; }}
  }}
}}
"
    );
    let file = dir.join("nginx.conf");
    std::fs::write(&file, config)?;
    let mut command = Command::new("nginx");
    command.arg("-c").arg(&file).args(["-e", "/dev/null"]).stderr(Stdio::null());
    let process = Process::start_silent(&mut command)?;
    let deadline = Instant::now() + Duration::from_secs(5);
    while TcpStream::connect(address).is_err() {
        if Instant::now() > deadline {
            bail!("nginx does not answer");
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    Ok(Some(Subject { name: NGINX, address, process }))
}
