//! Structured logs on standard error: JSON lines, or plain text on a terminal.

use std::{
    io::{IsTerminal, Write},
    sync::mpsc::{self, SyncSender},
    thread::JoinHandle,
    time::SystemTime,
};

use tracing_subscriber::EnvFilter;

use crate::{record::Record, telemetry::metrics};

/// The log target of the line per call: `TOLLGATE_LOG=info,tollgate::calls=off` silences it.
const CALLS: &str = "tollgate::calls";
/// Batches of lines that may wait for a slow log sink.
const BATCHES_MAX: usize = 64;

/// Starts logging once per process. `TOLLGATE_LOG` (or `RUST_LOG`) filters, such as `info` or `tollgate=debug`, else
/// `default_filter` does; `TOLLGATE_LOG_FORMAT=json|text` overrides the choice by terminal.
///
/// The JSON writer escapes control characters, so no logged value can forge a line.
pub fn init(default_filter: &str) {
    let filter = EnvFilter::try_from_env("TOLLGATE_LOG")
        .or_else(|_| EnvFilter::try_from_default_env())
        .unwrap_or_else(|_| EnvFilter::new(default_filter));
    let text = match std::env::var("TOLLGATE_LOG_FORMAT").as_deref() {
        Ok("text") => true,
        Ok("json") => false,
        _ => std::io::stderr().is_terminal(),
    };
    let logs = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    // A second start in one process (tests) keeps the first subscriber, which is what we want.
    let _ = if text {
        logs.with_target(false).compact().try_init()
    } else {
        logs.json().flatten_event(true).with_current_span(false).with_span_list(false).try_init()
    };
}

/// The line per finished call, written in batches: at tens of thousands of calls a second the general logger's formatting would
/// cost more than the calls do.
///
/// A thread of its own writes them: a log sink that hangs loses lines, counted, and delays no call.
#[derive(Debug)]
pub struct CallLog {
    lines: Vec<u8>,
    count: u64,
    writer: SyncSender<Vec<u8>>,
    thread: Option<JoinHandle<()>>,
}

/// One line. Names are dotted, units last; no prompt, completion, key or user id is among them.
#[derive(serde::Serialize)]
struct Line<'a> {
    timestamp: String,
    level: &'static str,
    target: &'static str,
    message: &'static str,
    #[serde(rename = "call.id")]
    id: &'a str,
    endpoint: &'a str,
    key: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    team: Option<&'a str>,
    model: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    version: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    experiment: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    variant: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    prompt: Option<&'a str>,
    provider: &'a str,
    #[serde(rename = "call.target", skip_serializing_if = "Option::is_none")]
    call_target: Option<&'a str>,
    status: u16,
    outcome: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    refusal: Option<&'static str>,
    streamed: bool,
    prompt_tokens: u64,
    cached_tokens: u64,
    completion_tokens: u64,
    reasoning_tokens: u64,
    usage_source: &'static str,
    cost_nanousd: u64,
    priced: bool,
    attempts: u32,
    duration_ms: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    ttft_ms: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    overhead_us: Option<u64>,
}

impl CallLog {
    /// Starts the writer's thread, which ends with the log, everything written.
    #[must_use]
    pub fn start() -> CallLog {
        let (writer, batches) = mpsc::sync_channel::<Vec<u8>>(BATCHES_MAX);
        let write = move || {
            for batch in batches {
                // A standard error that cannot be written to is no reason to stop serving.
                let _ = std::io::stderr().write_all(&batch);
            }
        };
        let thread = std::thread::Builder::new().name("call-log".to_owned()).spawn(write).ok();
        if thread.is_none() {
            tracing::error!("no thread for the call log: lines are dropped and counted");
        }
        CallLog { lines: Vec::new(), count: 0, writer, thread }
    }

    /// Writes the rest and waits for it.
    pub fn finish(mut self) {
        self.flush();
        let CallLog { writer, thread, .. } = self;
        drop(writer);
        if let Some(thread) = thread {
            let _ = thread.join();
        }
    }

    /// Adds a call's line, unless the filter says otherwise.
    pub fn add(&mut self, record: &Record) {
        if !tracing::enabled!(target: CALLS, tracing::Level::INFO) {
            return;
        }
        let line = Line {
            timestamp: jiff::Timestamp::try_from(SystemTime::now()).unwrap_or_default().to_string(),
            level: "INFO",
            target: CALLS,
            message: "call completed",
            id: &record.id,
            endpoint: record.endpoint,
            key: &record.key,
            team: record.team.as_deref(),
            model: &record.model_label,
            version: record.version.as_deref(),
            experiment: record.variants.first().map(|(experiment, _)| &**experiment),
            variant: record.variants.first().map(|(_, variant)| &**variant),
            prompt: record.prompt.as_deref(),
            provider: &record.provider,
            call_target: record.target.as_deref(),
            status: record.status.as_u16(),
            outcome: record.outcome.label(),
            refusal: record.refusal,
            streamed: record.streamed,
            prompt_tokens: record.usage.input.0,
            cached_tokens: record.usage.cached.0,
            completion_tokens: record.usage.output.0,
            reasoning_tokens: record.usage.reasoning.0,
            usage_source: record.usage_source.label(),
            cost_nanousd: record.cost.0,
            priced: record.priced,
            attempts: record.attempts,
            duration_ms: millis(record.duration),
            ttft_ms: record.first_token.map(millis),
            overhead_us: record.overhead.map(|o| u64::try_from(o.as_micros()).unwrap_or(u64::MAX)),
        };
        if serde_json::to_writer(&mut self.lines, &line).is_ok() {
            self.lines.push(b'\n');
            self.count += 1;
        }
    }

    /// Hands on what was added.
    pub fn flush(&mut self) {
        if self.lines.is_empty() {
            return;
        }
        if self.writer.try_send(std::mem::take(&mut self.lines)).is_err() {
            metrics::records_dropped(self.count);
        }
        self.count = 0;
    }
}

fn millis(duration: std::time::Duration) -> f64 {
    (duration.as_secs_f64() * 1e6).round() / 1e3
}
