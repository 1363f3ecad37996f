//! `tollgate eval run`: from the suite's file to the exit code.

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};

use anyhow::{Context, anyhow};
use bytes::Bytes;
use http::{HeaderMap, Method};
use jiff::Timestamp;

use super::{Failure, RunOptions, note, progress::Line, say};
use crate::{
    cli::calls,
    config::{self, ConfigError, Snapshot, secret::SecretString},
    eval::{
        client::Client,
        mlflow,
        prices::Prices,
        recorded,
        report::{Report, html, junit, terminal},
        run::{
            Ended, Run,
            estimate::{self, Estimate},
            journal::{Header, Journal, Rows},
            meter::Stopped,
        },
        suite::{self, Calls, Suite},
    },
    store::records::evaluations::REPORT_BYTES_MAX,
};

/// The report's name in the directory of a run.
pub(super) const REPORT: &str = "report.json";
/// Where a gateway with default listeners answers.
const DEFAULT_URL: &str = "http://127.0.0.1:8080";
const DEFAULT_ADMIN_URL: &str = "http://127.0.0.1:9090";
/// For questions that no model answers.
const ASIDE_TIMEOUT: Duration = Duration::from_secs(30);

/// Runs the suite in `file`; whether all gates hold.
pub(super) async fn of_file(file: &Path, options: &RunOptions) -> Result<bool, Failure> {
    let suite = suite::read(file).map_err(Failure::wrong)?;
    of_suite(suite, options).await
}

/// Runs a suite; whether all gates hold.
pub(super) async fn of_suite(suite: Suite, options: &RunOptions) -> Result<bool, Failure> {
    let configuration = configuration(options)?;
    let suite = with_recorded_calls(suite, configuration.as_deref()).await?;
    let prices = Prices { configuration: configuration.clone() };
    let estimate = estimate::estimate(&suite, &prices, Timestamp::now());
    note(&in_words(&suite, &estimate));
    if options.dry_run {
        return Ok(true);
    }
    let client = client(&suite, options, configuration.as_deref())?;
    is_there(&client).await?;
    let (dir, mut journal, mut rows) = open(&suite, options)?;
    let ended = go(&suite, &client, &prices, &mut rows, &mut journal).await?;
    let report = Report::of(&suite, &journal.header, &rows, &ended, Timestamp::now().to_string());
    write(&report, &dir, options)?;
    say(&terminal::text(&report))?;
    if ended != Ended::Complete {
        note(&format!("Go on with: tollgate eval … --resume {}", dir.display()));
    }
    log_to_mlflow(&suite, &report).await;
    if options.upload {
        upload(&report, options, configuration.as_deref()).await?;
    }
    if let Ended::Stopped(refused @ Stopped::Key(_)) = ended {
        return Err(Failure::wrong(refused));
    }
    if nobody_answered(&report) {
        return Err(Failure::unreachable(anyhow!("{} did not answer a single case", client.base())));
    }
    Ok(report.passed)
}

/// What is configured, if anything is.
fn configuration(options: &RunOptions) -> Result<Option<Arc<Snapshot>>, Failure> {
    match config::load(options.config.as_deref()) {
        Ok(loaded) => Ok(Some(Arc::new(loaded.snapshot))),
        Err(ConfigError::NothingConfigured) => Ok(None),
        // A suite may run far away from the gateway, where the secrets of its configuration are not known.
        Err(error) if options.config.is_none() => {
            let said = error.to_string();
            note(&format!(
                "The configuration here is left out of account: {}",
                said.lines().next().unwrap_or_default()
            ));
            Ok(None)
        }
        Err(error) => Err(Failure::wrong(error)),
    }
}

async fn with_recorded_calls(suite: Suite, configuration: Option<&Snapshot>) -> Result<Suite, Failure> {
    let Some(wanted) = suite.calls.clone() else { return Ok(suite) };
    let found = recorded_calls(&wanted, configuration).await?;
    Ok(suite.with_cases(found.cases))
}

/// Reads calls from the log of the configuration, or of the directory `data`.
async fn recorded_calls(wanted: &Calls, configuration: Option<&Snapshot>) -> Result<recorded::Found, Failure> {
    let place = match configuration {
        Some(snapshot) => calls::Place {
            records: snapshot.records.clone(),
            data_dir: snapshot.data_dir.clone(),
            users: snapshot.calls.users,
        },
        None => calls::beside(Path::new("data")),
    };
    let log = calls::open(&place).map_err(|error| match error {
        calls::CallsError::NoLog => {
            Failure::wrong(anyhow!("the configuration keeps no calls: write `records: sqlite`"))
        }
        calls::CallsError::Wrong(error) => Failure::wrong(error),
        calls::CallsError::Failed(error) => Failure::unreachable(error),
        calls::CallsError::Unknown(id) => Failure::wrong(anyhow!("no call has the id {id}")),
    })?;
    let now_ms = u64::try_from(Timestamp::now().as_millisecond()).unwrap_or(0);
    let found = recorded::read(&*log, wanted, now_ms).await.map_err(Failure::unreachable)?;
    if found.cases.is_empty() {
        return Err(Failure::wrong(anyhow!(found.nothing())));
    }
    let left_out = found.without_bodies + found.unreadable;
    if left_out > 0 {
        note(&format!("{left_out} calls are left out: their bodies are not kept whole."));
    }
    Ok(found)
}

fn in_words(suite: &Suite, estimate: &Estimate) -> String {
    let repeats = if suite.repeat > 1 { format!(" × {}", suite.repeat) } else { String::new() };
    let size = format!(
        "{} cases × {} candidates{repeats}, {} calls",
        suite.cases.len(),
        suite.candidates.len(),
        estimate.calls
    );
    match estimate.unpriced.as_slice() {
        [] => format!("About {} USD for {size}.", estimate.cost),
        unpriced => format!(
            "About {} USD for {size}, and what {} costs, which has no price here.",
            estimate.cost,
            unpriced.join(", ")
        ),
    }
}

fn client(suite: &Suite, options: &RunOptions, configuration: Option<&Snapshot>) -> Result<Client, Failure> {
    let configured = configuration.map(|snapshot| {
        let scheme = if snapshot.server.tls.is_some() { "https" } else { "http" };
        format!("{scheme}://{}", reachable(snapshot.server.listen))
    });
    let url = options.url.clone().or_else(|| suite.url.clone()).or(configured);
    let typed = options.key.as_deref().filter(|key| !key.is_empty()).map(SecretString::new);
    let key = typed.or_else(|| suite.key.clone());
    Client::new(url.as_deref().unwrap_or(DEFAULT_URL), key.as_ref(), suite.timeout).map_err(Failure::wrong)
}

/// Where a listener answers that listens everywhere.
fn reachable(mut address: std::net::SocketAddr) -> std::net::SocketAddr {
    if address.ip().is_unspecified() {
        address.set_ip(if address.is_ipv4() { [127, 0, 0, 1].into() } else { std::net::Ipv6Addr::LOCALHOST.into() });
    }
    address
}

/// Asks whether anybody is there, so that a wrong address ends the run before it began. Whatever the answer is, it is one.
async fn is_there(client: &Client) -> Result<(), Failure> {
    let reply = client.once(&Method::GET, "/healthz", &HeaderMap::new(), Bytes::new()).await;
    reply.map(drop).map_err(|error| Failure::unreachable(anyhow!(error).context("is the gateway running? (--url)")))
}

/// The run's directory, its journal, and what is in that already.
fn open(suite: &Suite, options: &RunOptions) -> Result<(PathBuf, Journal, Rows), Failure> {
    if let Some(dir) = &options.resume {
        let (journal, rows) = Journal::resume(dir, &suite.fingerprint()).map_err(Failure::wrong)?;
        return Ok((dir.clone(), journal, rows));
    }
    let now = Timestamp::now();
    let dir = options.output.clone().unwrap_or_else(|| {
        let name: String =
            suite.name.chars().map(|c| if c.is_alphanumeric() || "-_.".contains(c) { c } else { '-' }).collect();
        Path::new("runs").join(format!("{name}-{}", now.strftime("%Y%m%d-%H%M%S")))
    });
    let header = Header {
        suite: suite.name.clone(),
        fingerprint: suite.fingerprint(),
        tollgate: env!("CARGO_PKG_VERSION").to_owned(),
        started: now.to_string(),
    };
    let journal = Journal::begin(&dir, header).map_err(Failure::wrong)?;
    Ok((dir, journal, Rows::new()))
}

async fn go(
    suite: &Suite,
    client: &Client,
    prices: &Prices,
    rows: &mut Rows,
    journal: &mut Journal,
) -> Result<Ended, Failure> {
    let interrupted = AtomicBool::new(false);
    let run = Run::new(suite, client, prices, rows, &interrupted);
    let mut line = Line::new();
    let ended = {
        let mut show = |progress| line.show(progress);
        let mut going = std::pin::pin!(run.go(rows, journal, &mut show));
        loop {
            tokio::select! {
                ended = &mut going => break ended,
                // What is in flight is paid for, so it is waited for; who asks again does not want to wait.
                _ = tokio::signal::ctrl_c() => {
                    if interrupted.swap(true, Relaxed) {
                        break Ok(Ended::Interrupted);
                    }
                    note("\nEnding: waiting for calls in flight. Once more to end at once.");
                }
            }
        }
    };
    line.end();
    ended.map_err(Failure::failed)
}

fn write(report: &Report, dir: &Path, options: &RunOptions) -> Result<(), Failure> {
    let json = serde_json::to_string_pretty(report).map_err(Failure::failed)? + "\n";
    let to = |path: &Path, text: &str| -> Result<(), Failure> {
        if let Some(parent) = path.parent().filter(|parent| !parent.as_os_str().is_empty()) {
            fs::create_dir_all(parent).map_err(|error: io::Error| Failure::failed(error))?;
        }
        fs::write(path, text).with_context(|| format!("{} cannot be written", path.display())).map_err(Failure::failed)
    };
    to(&dir.join(REPORT), &json)?;
    if let Some(path) = &options.json {
        to(path, &json)?;
    }
    if let Some(path) = &options.junit {
        to(path, &junit::xml(report))?;
    }
    if let Some(path) = &options.html {
        to(path, &html::page(report))?;
    }
    Ok(())
}

/// A tracking server that is away is no reason to lose a run that was paid for: it is told, and the gates decide.
async fn log_to_mlflow(suite: &Suite, report: &Report) {
    let given = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
    let typed = suite.mlflow.as_ref().and_then(|mlflow| mlflow.tracking_uri.clone());
    let Some(uri) = typed.or_else(|| given("MLFLOW_TRACKING_URI")) else {
        if suite.mlflow.is_some() {
            note("Not logged to MLflow: neither `mlflow.tracking_uri` nor MLFLOW_TRACKING_URI is set.");
        }
        return;
    };
    let experiment = suite.mlflow.as_ref().and_then(|mlflow| mlflow.experiment.clone());
    let experiment = experiment.or_else(|| given("MLFLOW_EXPERIMENT_NAME")).unwrap_or_else(|| suite.name.clone());
    let token = given("MLFLOW_TRACKING_TOKEN").map(SecretString::new);
    let logged = match Client::new(&uri, token.as_ref(), ASIDE_TIMEOUT) {
        Ok(client) => mlflow::log(&client, &experiment, suite, report).await,
        Err(error) => Err(error.into()),
    };
    match logged {
        Ok(logged) => {
            let artifact =
                logged.without_artifact.map(|why| format!(", without the report: {why}")).unwrap_or_default();
            note(&format!("Logged to MLflow: experiment {}, {} runs{artifact}.", logged.experiment, logged.runs.len()));
        }
        Err(error) => note(&format!("Not logged to MLflow: {error}")),
    }
}

async fn upload(report: &Report, options: &RunOptions, configuration: Option<&Snapshot>) -> Result<(), Failure> {
    let configured = configuration.map(|snapshot| format!("http://{}", reachable(snapshot.server.admin)));
    let url = options.admin_url.clone().or(configured);
    let typed = options.admin_token.as_deref().filter(|token| !token.is_empty()).map(SecretString::new);
    let token = typed.or_else(|| configuration?.server.admin_token.clone());
    let url = url.as_deref().unwrap_or(DEFAULT_ADMIN_URL);
    let client = Client::new(url, token.as_ref(), ASIDE_TIMEOUT).map_err(Failure::wrong)?;
    let body = fitting(report).map_err(Failure::failed)?;
    let (_, reply) = client.post("/api/evaluations", &HeaderMap::new(), &body).await;
    let reply = reply.map_err(Failure::unreachable)?;
    if !reply.status.is_success() {
        return Err(Failure::failed(anyhow!("the report was not kept: {}", reply.complaint())));
    }
    note(&format!("Kept as {}.", reply.json()["id"].as_str().unwrap_or_default()));
    Ok(())
}

/// The report, as much of it as is kept: the best cases, which stand at the end, are left out first.
fn fitting(report: &Report) -> serde_json::Result<serde_json::Value> {
    let mut report = report.clone();
    while serde_json::to_vec(&report)?.len() > REPORT_BYTES_MAX && !report.cases.is_empty() {
        report.cases.truncate(report.cases.len() / 2);
    }
    serde_json::to_value(&report)
}

/// Whether each call failed for want of anybody who answers.
fn nobody_answered(report: &Report) -> bool {
    let mut rows = report.rows().peekable();
    rows.peek().is_some() && rows.all(|row| row.error.as_deref().is_some_and(|why| why.contains("cannot be reached")))
}
