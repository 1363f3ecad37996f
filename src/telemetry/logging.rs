//! Structured logs on standard error: JSON lines, or plain text on a terminal.

use std::{
    io::{IsTerminal, Write},
    sync::mpsc::{self, SyncSender},
    thread::JoinHandle,
    time::{Duration, Instant, SystemTime},
};

use tracing_subscriber::{Layer, filter::Targets, layer::SubscriberExt, util::SubscriberInitExt};

use crate::{record::Record, telemetry::metrics};

/// The log target of the line per call: `TOLLGATE_LOG=info,tollgate::calls=off` silences it.
const CALLS: &str = "tollgate::calls";
/// Batches of lines that may wait for a slow log sink.
const BATCHES_MAX: usize = 16;
/// Under load, lines are written when there are so many bytes of them, or when the first has waited for so long: handing on each
/// few would wake the writer's thread, and take a core from calls, hundreds of times a second.
const BATCH_BYTES: usize = 128 * 1024;
const BATCH_AGE: Duration = Duration::from_millis(50);

/// Starts logging once per process. `TOLLGATE_LOG` (or `RUST_LOG`) filters by target and level, such as `info` or
/// `warn,tollgate=debug`, else `default_filter` does; `TOLLGATE_LOG_FORMAT=json|text` overrides the choice by terminal.
///
/// The JSON writer escapes control characters, so no logged value can forge a line.
pub fn init(default_filter: &str) {
    let said = |name| std::env::var(name).ok()?.parse::<Targets>().ok();
    let filter = said("TOLLGATE_LOG").or_else(|| said("RUST_LOG"));
    let filter = filter.unwrap_or_else(|| default_filter.parse().expect("a filter of ours"));
    let text = match std::env::var("TOLLGATE_LOG_FORMAT").as_deref() {
        Ok("text") => true,
        Ok("json") => false,
        _ => std::io::stderr().is_terminal(),
    };
    let (registry, lines) =
        (tracing_subscriber::registry(), tracing_subscriber::fmt::layer().with_writer(std::io::stderr));
    // A second start in one process (tests) keeps the first subscriber, which is what we want.
    let _ = if text {
        registry.with(lines.with_target(false).compact().with_filter(filter)).try_init()
    } else {
        let lines = lines.json().flatten_event(true).with_current_span(false).with_span_list(false);
        registry.with(lines.with_filter(filter)).try_init()
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
    /// What lines begin with, the time in it. Empty when no lines are wanted.
    opening: String,
    /// When the first of `lines` was added.
    since: Instant,
    writer: SyncSender<Vec<u8>>,
    thread: Option<JoinHandle<()>>,
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
        CallLog { lines: Vec::new(), count: 0, opening: String::new(), since: Instant::now(), writer, thread }
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

    /// Sets the time that the next lines bear: calls that end together are added together.
    pub fn set_time(&mut self) {
        self.opening = opening();
    }

    /// Adds a call's line, unless the filter says otherwise.
    pub fn add(&mut self, record: &Record) {
        if self.opening.is_empty() {
            return;
        }
        if self.lines.is_empty() {
            self.since = Instant::now();
        }
        write_line(&mut self.lines, &self.opening, record);
        self.count += 1;
    }

    /// Hands on what was added when it is time to. `idle`: nothing more is to be added for now.
    pub fn flush_if_due(&mut self, idle: bool) {
        if idle || self.lines.len() >= BATCH_BYTES || self.since.elapsed() >= BATCH_AGE {
            self.flush();
        }
    }

    /// Hands on what was added.
    fn flush(&mut self) {
        if self.lines.is_empty() {
            return;
        }
        if self.writer.try_send(std::mem::take(&mut self.lines)).is_err() {
            metrics::records_dropped(self.count);
        }
        self.count = 0;
    }
}

/// The beginning of a line, up to the time; empty where the filter takes no lines of calls.
fn opening() -> String {
    if !tracing::enabled!(target: CALLS, tracing::Level::INFO) {
        return String::new();
    }
    let now = jiff::Timestamp::try_from(SystemTime::now()).unwrap_or_default();
    format!(r#"{{"timestamp":"{now}","level":"INFO","target":"{CALLS}","message":"call completed""#)
}

/// One line. Names are dotted, units last; no prompt, completion, key or user id is among them.
///
/// Written field by field: with a serializer in between this was half of what the recorder's thread did.
fn write_line(lines: &mut Vec<u8>, opening: &str, record: &Record) {
    lines.extend_from_slice(opening.as_bytes());
    let mut line = Fields(lines);
    line.text("call.id", &record.id);
    line.text("endpoint", record.endpoint);
    line.text("key", &record.key);
    line.optional("team", record.team.as_deref());
    line.text("model", &record.model_label);
    line.optional("version", record.version.as_deref());
    if let Some((experiment, variant)) = record.variants.first() {
        line.text("experiment", experiment);
        line.text("variant", variant);
    }
    line.optional("prompt", record.prompt.as_deref());
    line.text("provider", &record.provider);
    line.optional("call.target", record.target.as_deref());
    line.number("status", u64::from(record.status.as_u16()));
    line.text("outcome", record.outcome.label());
    line.optional("refusal", record.refusal);
    line.flag("streamed", record.streamed);
    line.number("prompt_tokens", record.usage.input.0);
    line.number("cached_tokens", record.usage.cached.0);
    line.number("completion_tokens", record.usage.output.0);
    line.number("reasoning_tokens", record.usage.reasoning.0);
    line.text("usage_source", record.usage_source.label());
    line.number("cost_nanousd", record.cost.0);
    line.flag("priced", record.priced);
    line.number("attempts", u64::from(record.attempts));
    line.millis("duration_ms", record.duration);
    if let Some(first_token) = record.first_token {
        line.millis("ttft_ms", first_token);
    }
    if let Some(overhead) = record.overhead {
        line.number("overhead_us", micros(overhead));
    }
    lines.extend_from_slice(b"}\n");
}

/// The fields of a JSON object that has some already.
struct Fields<'l>(&'l mut Vec<u8>);

impl Fields<'_> {
    fn name(&mut self, name: &str) {
        self.0.extend_from_slice(b",\"");
        self.0.extend_from_slice(name.as_bytes());
        self.0.extend_from_slice(b"\":");
    }

    fn text(&mut self, name: &str, value: &str) {
        self.name(name);
        if value.bytes().all(|byte| byte >= b' ' && byte != b'"' && byte != b'\\') {
            self.0.push(b'"');
            self.0.extend_from_slice(value.as_bytes());
            self.0.push(b'"');
        } else {
            self.json(&value);
        }
    }

    fn optional(&mut self, name: &str, value: Option<&str>) {
        if let Some(value) = value {
            self.text(name, value);
        }
    }

    fn number(&mut self, name: &str, value: u64) {
        self.name(name);
        self.json(&value);
    }

    fn flag(&mut self, name: &str, value: bool) {
        self.name(name);
        self.json(&value);
    }

    /// Milliseconds with three decimals.
    fn millis(&mut self, name: &str, duration: Duration) {
        let micros = micros(duration);
        self.number(name, micros / 1000);
        let digit = |unit: u64| b'0' + (micros / unit % 10) as u8;
        self.0.extend_from_slice(&[b'.', digit(100), digit(10), digit(1)]);
    }

    fn json(&mut self, value: &impl serde::Serialize) {
        serde_json::to_writer(&mut *self.0, value).expect("memory takes all, and these are plain values");
    }
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::recorder::blank;

    #[test]
    fn a_line_is_one_json_object_whatever_its_values_hold() {
        let nasty = "a\"b\\c\nd\u{7f}é";
        let mut record = blank(Arc::from("id"), "chat_completions");
        record.key = Arc::from(nasty);
        record.variants = vec![(Arc::from("tone"), Arc::from(nasty))];
        record.duration = Duration::from_micros(12_034);
        record.first_token = Some(Duration::from_micros(7));
        record.overhead = Some(Duration::from_micros(55));
        let mut line = Vec::new();
        write_line(&mut line, r#"{"timestamp":"now""#, &record);
        assert_eq!(line.iter().filter(|byte| **byte == b'\n').count(), 1);
        let line: serde_json::Value = serde_json::from_slice(&line).unwrap();
        for (name, value) in [("key", nasty), ("variant", nasty), ("call.id", "id"), ("timestamp", "now")] {
            assert_eq!(line[name], value, "{name}");
        }
        assert_eq!((&line["duration_ms"], &line["ttft_ms"]), (&12.034.into(), &0.007.into()));
        assert_eq!((&line["status"], &line["overhead_us"], &line["team"]), (&200.into(), &55.into(), &().into()));
        assert_eq!(line["streamed"], false);
    }
}
