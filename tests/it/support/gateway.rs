//! The real binary, started with a configuration of the test's own, watched through its log, metrics and admin API.

use std::{
    collections::BTreeMap,
    io::{BufRead, BufReader, Read},
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering::SeqCst},
        mpsc,
    },
    time::Duration,
};

use serde_json::Value;
use tempfile::TempDir;

use super::{Call, DEADLINE, Response, Upstream, metrics::Metrics, wait_until};

/// The virtual key that clients present in these tests.
pub(crate) const KEY: &str = "tg-test-client-0123456789abcdef0123456789abcdef";

/// The key that the provider expects.
pub(crate) const PROVIDER_KEY: &str = "sk-upstream-fedcba9876543210";

const LISTENERS: &str = r#"{ listen: "127.0.0.1:0", admin: "127.0.0.1:0" }"#;

/// A gateway that is not running yet: its configuration, its environment, its directory.
#[derive(Debug, Clone)]
pub(crate) struct Setup {
    yaml: Option<String>,
    top: BTreeMap<String, String>,
    maps: BTreeMap<&'static str, Vec<String>>,
    lists: BTreeMap<&'static str, Vec<String>>,
    environment: BTreeMap<String, String>,
    behind: Vec<String>,
    directory: Arc<TempDir>,
}

impl Setup {
    fn new(yaml: Option<String>) -> Self {
        let directory = Arc::new(TempDir::new().expect("a temporary directory"));
        let (top, maps, lists) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
        let data = directory.path().join("data").display().to_string();
        let environment = BTreeMap::from([("DATA_DIR".to_owned(), data)]);
        Self { yaml, top, maps, lists, environment, behind: Vec::new(), directory }
    }

    /// Sets an environment variable of the process.
    pub(crate) fn env(mut self, name: &str, value: &str) -> Self {
        self.environment.insert(name.to_owned(), value.to_owned());
        self
    }

    /// Starts it by another command that becomes it: `.behind(&["nsenter", …])`.
    pub(crate) fn behind(mut self, command: &[&str]) -> Self {
        self.behind = command.iter().map(|&word| word.to_owned()).collect();
        self
    }

    /// Sets a top-level entry: `.top("routing", "{ attempts: 1 }")`.
    pub(crate) fn top(mut self, name: &str, value: &str) -> Self {
        self.top.insert(name.to_owned(), value.to_owned());
        self
    }

    /// An OpenAI-speaking provider at `upstream`, called `upstream` unless another is wanted.
    pub(crate) fn upstream(self, upstream: &Upstream) -> Self {
        self.provider_at("upstream", &upstream.url())
    }

    pub(crate) fn provider_at(self, name: &str, url: &str) -> Self {
        self.provider(name, &format!(r#"kind: openai, base_url: "{url}/v1", api_key: {PROVIDER_KEY}"#))
    }

    pub(crate) fn provider(self, name: &str, body: &str) -> Self {
        self.entry("providers", name, body)
    }

    /// A model alias with a single live version `v1`.
    pub(crate) fn model(self, name: &str, version: &str) -> Self {
        self.entry("models", name, &format!("live: v1, versions: {{ v1: {{ {version} }} }}"))
    }

    /// A prompt with a single live version `v1`.
    pub(crate) fn prompt(self, name: &str, version: &str) -> Self {
        self.entry("prompts", name, &format!("live: v1, versions: {{ v1: {{ {version} }} }}"))
    }

    pub(crate) fn experiment(self, name: &str, body: &str) -> Self {
        self.entry("experiments", name, body)
    }

    pub(crate) fn price(self, target: &str, body: &str) -> Self {
        self.entry("prices", target, body)
    }

    pub(crate) fn key(self, name: &str, secret: &str, more: &str) -> Self {
        self.item("keys", &format!(r#"name: {name}, secret: "{secret}"{more}"#))
    }

    pub(crate) fn budget(self, body: &str) -> Self {
        self.item("budgets", body)
    }

    pub(crate) fn limit(self, body: &str) -> Self {
        self.item("limits", body)
    }

    pub(crate) fn entry(mut self, section: &'static str, name: &str, body: &str) -> Self {
        self.maps.entry(section).or_default().push(format!("  {name}: {{ {body} }}\n"));
        self
    }

    fn item(mut self, section: &'static str, body: &str) -> Self {
        self.lists.entry(section).or_default().push(format!("  - {{ {body} }}\n"));
        self
    }

    /// The configuration file's text.
    pub(crate) fn text(&self) -> String {
        if let Some(yaml) = &self.yaml {
            return yaml.clone();
        }
        let top = self.top.iter().map(|(name, value)| format!("{name}: {value}\n"));
        let sections = self.maps.iter().chain(&self.lists).map(|(name, rows)| format!("{name}:\n{}", rows.concat()));
        top.chain(sections).collect()
    }

    pub(crate) fn config_path(&self) -> PathBuf {
        self.directory.path().join("tollgate.yaml")
    }

    pub(crate) fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// `tollgate ARGUMENTS` with this environment, in this directory.
    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        let binary = env!("CARGO_BIN_EXE_tollgate");
        let mut words = self.behind.iter().map(String::as_str).chain([binary]);
        let mut command = Command::new(words.next().expect("the binary at least"));
        command.args(words).args(arguments).current_dir(self.directory.path()).env_clear().envs(&self.environment);
        command.env("PATH", std::env::var_os("PATH").unwrap_or_default());
        command
    }

    /// Starts it and waits until it takes calls.
    pub(crate) async fn run(self) -> Gateway {
        std::fs::write(self.config_path(), self.text()).expect("a writable directory");
        self.start().await
    }

    /// Starts it with the file that is there.
    pub(crate) async fn start(self) -> Gateway {
        let config = self.config_path();
        let mut process = self
            .command(&["serve", "--config", config.to_str().expect("a UTF-8 path")])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the binary was built with the tests");
        let log = Arc::new(Log::default());
        let ready = watch_stdout(process.stdout.take().expect("piped above"));
        log.follow(process.stderr.take().expect("piped above"));
        let mut gateway =
            Gateway { process, listen: UNBOUND, admin: UNBOUND, log, setup: self, records_read: AtomicUsize::new(0) };
        let line = tokio::task::spawn_blocking(move || ready.recv_timeout(DEADLINE)).await.expect("no panic");
        let line = line.unwrap_or_else(|_| panic!("the gateway did not become ready"));
        gateway.listen = address_in(&line, "listen=");
        gateway.admin = address_in(&line, "admin=");
        gateway
    }
}

const UNBOUND: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::UNSPECIFIED), 0);

fn watch_stdout(stdout: impl Read + Send + 'static) -> mpsc::Receiver<String> {
    let (sender, receiver) = mpsc::sync_channel(1);
    std::thread::spawn(move || {
        for line in BufReader::new(stdout).lines().map_while(Result::ok) {
            if line.starts_with("ready ") {
                // The receiver is gone once the first line was taken; further output is not of interest.
                let _ = sender.send(line);
            }
        }
    });
    receiver
}

fn address_in(line: &str, label: &str) -> SocketAddr {
    let word = line.split(' ').find_map(|word| word.strip_prefix(label));
    word.and_then(|address| address.parse().ok()).unwrap_or_else(|| panic!("no {label}ADDRESS in {line:?}"))
}

/// What the process wrote to its standard error.
#[derive(Debug, Default)]
pub(crate) struct Log {
    lines: Mutex<Vec<String>>,
}

impl Log {
    fn follow(self: &Arc<Self>, stderr: impl Read + Send + 'static) {
        let log = Arc::clone(self);
        std::thread::spawn(move || {
            for line in BufReader::new(stderr).lines().map_while(Result::ok) {
                log.lines.lock().unwrap().push(line);
            }
        });
    }

    fn text(&self) -> String {
        self.lines.lock().unwrap().join("\n")
    }
}

/// One finished call, as logged.
#[derive(Debug, Clone)]
pub(crate) struct Record(Value);

impl Record {
    fn of(line: &Value) -> Option<Self> {
        let completed = line["message"].as_str().is_some_and(|message| message.starts_with("call completed"));
        (completed || line.get("call.id").is_some_and(|_| line.get("outcome").is_some())).then(|| Self(line.clone()))
    }

    pub(crate) fn text(&self, field: &str) -> &str {
        self.0[field].as_str().unwrap_or_default()
    }

    #[track_caller]
    pub(crate) fn number(&self, field: &str) -> i64 {
        let value = &self.0[field];
        value
            .as_i64()
            .or_else(|| value.as_str()?.parse().ok())
            .unwrap_or_else(|| panic!("no number {field}: {}", self.0))
    }
}

/// A busy machine's disk is no store that is away: the wait for it is as long as the tests' own.
const PATIENT: &str = "{ budget_wait: 10s }";

/// A running gateway. Dropped, it is killed; its log is shown when the test failed.
#[derive(Debug)]
pub(crate) struct Gateway {
    process: Child,
    pub(crate) listen: SocketAddr,
    pub(crate) admin: SocketAddr,
    log: Arc<Log>,
    setup: Setup,
    records_read: AtomicUsize,
}

impl Gateway {
    /// Nothing but the two listeners on free ports, the embedded store, one attempt per call, a price for every model.
    pub(crate) fn bare() -> Setup {
        let setup = Setup::new(None).top("data_dir", "data").top("records", "none");
        let setup = setup.top("unpriced", "{ charge: { input: 1 USD/1M, output: 1 USD/1M } }");
        let setup = setup.top("ledger", PATIENT);
        setup.top("server", LISTENERS).top("routing", "{ attempts: 1, eject: off }")
    }

    /// A provider `upstream`, the default one, and the key [`KEY`] that may name every model.
    pub(crate) fn before(upstream: &Upstream) -> Setup {
        Self::bare().upstream(upstream).top("default_provider", "upstream").key(
            "dev",
            KEY,
            r#", team: red, models: ["*"]"#,
        )
    }

    /// The text of a configuration file, whole.
    pub(crate) fn yaml(text: impl Into<String>) -> Setup {
        Setup::new(Some(text.into()))
    }

    /// The contract's `everything.yaml` in front of `upstream`.
    pub(crate) fn everything(upstream: &Upstream) -> Setup {
        Self::contract("everything", upstream)
    }

    /// The contract's `transparent.yaml` in front of `upstream`.
    pub(crate) fn transparent(upstream: &Upstream) -> Setup {
        Self::contract("transparent", upstream)
    }

    fn contract(name: &str, upstream: &Upstream) -> Setup {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/data/contract/{name}.yaml"));
        let text = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        let setup = Self::yaml(format!("{text}\nledger: {PATIENT}\n"))
            .env("PORT", "0")
            .env("ADMIN_PORT", "0")
            .env("UPSTREAM", &upstream.url());
        setup.env("UPSTREAM_KEY", PROVIDER_KEY).env("CLIENT_KEY", KEY)
    }

    // === calls ===

    pub(crate) fn get(&self, target: &str) -> Call {
        Call::new(self.listen, "GET", target)
    }

    pub(crate) fn post(&self, target: &str) -> Call {
        Call::new(self.listen, "POST", target)
    }

    /// A chat completion with the key [`KEY`].
    pub(crate) fn chat(&self, body: &Value) -> Call {
        self.post("/v1/chat/completions").key(KEY).json(body)
    }

    /// "hello" to `model`, with the key [`KEY`].
    pub(crate) fn hello(&self, model: &str) -> Call {
        self.chat(&serde_json::json!({"model": model, "messages": [{"role": "user", "content": "hello"}]}))
    }

    /// "hello" to `model` as a stream, with the key [`KEY`].
    pub(crate) fn hello_stream(&self, model: &str) -> Call {
        self.chat(
            &serde_json::json!({"model": model, "stream": true, "messages": [{"role": "user", "content": "hello"}]}),
        )
    }

    // === what it shows ===

    pub(crate) async fn admin_get(&self, target: &str) -> Response {
        Call::new(self.admin, "GET", target).send().await
    }

    pub(crate) async fn metrics(&self) -> Metrics {
        Metrics::parse(&self.admin_get("/metrics").await.expect(200).text())
    }

    /// Every account of every budget, as the admin API lists them.
    pub(crate) async fn budgets(&self) -> Vec<Budget> {
        let (mut all, mut page) = (Vec::new(), Some("/api/budgets".to_owned()));
        while let Some(target) = page {
            let response = self.admin_get(&target).await.expect(200);
            let listed = response.json();
            let rows = listed.as_array().unwrap_or_else(|| panic!("a JSON list of budgets, not {listed}"));
            all.extend(rows.iter().map(Budget::of));
            let next = response.header("link").and_then(|link| link.strip_prefix('<')?.split_once('>'));
            page = next.map(|(target, _)| target.to_owned());
        }
        all
    }

    /// The only account of `budget`; zeros where nothing was ever charged to it.
    pub(crate) async fn budget(&self, budget: &str) -> Budget {
        let accounts: Vec<_> = self.budgets().await.into_iter().filter(|row| row.budget == budget).collect();
        assert!(accounts.len() <= 1, "one account of {budget} expected: {accounts:?}");
        accounts.into_iter().next().unwrap_or_default()
    }

    /// Everything logged so far, as text.
    pub(crate) fn log_text(&self) -> String {
        self.log.text()
    }

    /// The log lines so far: the fields of each, its message among them, in one object.
    pub(crate) fn log_lines(&self) -> Vec<Value> {
        let lines = self.log.lines.lock().unwrap();
        lines.iter().filter_map(|line| serde_json::from_str(line).ok()).map(flat).collect()
    }

    /// The finished calls so far.
    pub(crate) fn records(&self) -> Vec<Record> {
        self.log_lines().iter().filter_map(Record::of).collect()
    }

    /// The next finished call that no one has looked at; waits for it.
    pub(crate) async fn next_record(&self) -> Record {
        let index = self.records_read.fetch_add(1, SeqCst);
        self.wait_for_records(index + 1).await.swap_remove(index)
    }

    /// Waits until `count` calls have finished.
    pub(crate) async fn wait_for_records(&self, count: usize) -> Vec<Record> {
        wait_until(&format!("{count} finished calls are logged"), DEADLINE, || self.records().len() >= count).await;
        self.records()
    }

    /// A size of the process in bytes, by its name in `/proc/PID/status`: `VmRSS`, `VmHWM`.
    pub(crate) fn memory_bytes(&self, name: &str) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.process.id())).expect("a live process");
        let line = status.lines().find_map(|line| line.strip_prefix(name)).expect("a line of that name");
        let kibibytes: u64 = line.split_whitespace().next().and_then(|number| number.parse().ok()).expect("a number");
        kibibytes * 1024
    }

    // === its life ===

    pub(crate) fn config_path(&self) -> PathBuf {
        self.setup.config_path()
    }

    /// Where it keeps its own files.
    pub(crate) fn data_dir(&self) -> PathBuf {
        self.setup.directory().join("data")
    }

    /// `tollgate ARGUMENTS` beside it, in its directory.
    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        self.setup.command(arguments)
    }

    pub(crate) fn process_id(&self) -> u32 {
        self.process.id()
    }

    /// Puts a new configuration in the file's place, in one step as editors and deployments do.
    pub(crate) fn replace_config(&self, text: &str) {
        let draft = self.setup.directory().join("tollgate.yaml.new");
        std::fs::write(&draft, text).expect("a writable directory");
        std::fs::rename(draft, self.config_path()).expect("the same file system");
    }

    /// Sends a signal: `TERM`, `STOP`.
    pub(crate) fn signal(&self, name: &str) {
        let script = format!("kill -{name} {}", self.process.id());
        let status = Command::new("sh").args(["-c", &script]).status().expect("a shell");
        assert!(status.success(), "{script}");
    }

    /// Waits for the process to end by itself.
    pub(crate) async fn exit(&mut self, deadline: Duration) -> ExitStatus {
        let mut status = None;
        let process = &mut self.process;
        wait_until("the gateway exits", deadline, || {
            status = process.try_wait().expect("our own child");
            status.is_some()
        })
        .await;
        status.expect("waited for above")
    }

    /// `kill -9`; what is left can be started again, with the same configuration and data.
    pub(crate) fn kill(mut self) -> Setup {
        self.process.kill().expect("a live process");
        self.process.wait().expect("our own child");
        self.setup.clone()
    }

    /// `kill -9`, then the same configuration and data again.
    pub(crate) async fn kill_and_restart(self) -> Self {
        self.kill().start().await
    }
}

/// `tracing`'s `fields` lifted beside the line's own.
fn flat(mut line: Value) -> Value {
    if let Some(Value::Object(fields)) = line.as_object_mut().and_then(|line| line.remove("fields")) {
        line.as_object_mut().expect("an object, since it had fields").extend(fields);
    }
    line
}

impl Drop for Gateway {
    fn drop(&mut self) {
        // Both fail only when the process has ended by itself.
        let _ = self.process.kill();
        let _ = self.process.wait();
        if std::thread::panicking() {
            eprintln!("--- configuration\n{}\n--- log of the gateway\n{}", self.setup.text(), self.log.text());
        } else {
            assert!(!self.log.text().contains("panicked at"), "the gateway panicked:\n{}", self.log.text());
        }
    }
}

/// One account of a budget.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Budget {
    pub(crate) budget: String,
    pub(crate) account: String,
    pub(crate) limit_nanousd: i64,
    pub(crate) charged_nanousd: i64,
    pub(crate) reserved_nanousd: i64,
    pub(crate) granted_nanousd: i64,
    pub(crate) debt_nanousd: i64,
}

impl Budget {
    fn of(row: &Value) -> Self {
        let text = |field: &str| row[field].as_str().unwrap_or_else(|| panic!("no text {field}: {row}")).to_owned();
        let number = |field: &str| row[field].as_i64().unwrap_or_else(|| panic!("no number {field}: {row}"));
        Self {
            budget: text("budget"),
            account: text("account"),
            limit_nanousd: number("limit_nanousd"),
            charged_nanousd: number("charged_nanousd"),
            reserved_nanousd: number("reserved_nanousd"),
            granted_nanousd: number("granted_nanousd"),
            debt_nanousd: number("debt_nanousd"),
        }
    }
}
