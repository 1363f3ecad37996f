//! Collects the rounds, and shows each figure with its ratio to the bare proxy of the same round.

use std::{collections::BTreeMap, io, time::Duration};

use anyhow::ensure;
use serde_json::{Map, Value, json};

use crate::{
    load::Load,
    mock::CHUNKS,
    process::Memory,
    subjects::{BARE, DIRECT, GATEWAY, NGINX},
};

/// Which load was on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Measured {
    /// As many calls as it can take.
    Saturated,
    /// Half of what the gateway can take.
    HalfLoad,
    /// Paced event streams.
    Streams,
}

/// The figures: what they are called, and their unit.
const FIGURES: [(&str, &str); 14] = [
    ("calls", "/s"),
    ("cpu_per_call", "µs"),
    ("p50_saturated", "µs"),
    ("p99_saturated", "µs"),
    ("p50_half_load", "µs"),
    ("p99_half_load", "µs"),
    ("added_p50_half_load", "µs"),
    ("added_p99_half_load", "µs"),
    ("cpu_per_chunk", "µs"),
    ("rss_idle", "MiB"),
    ("own_idle", "MiB"),
    ("rss_loaded", "MiB"),
    ("rss_peak", "MiB"),
    ("start_to_ready", "ms"),
];

/// Rounds of one figure, by subject.
type Rounds = BTreeMap<&'static str, Vec<f64>>;

/// All figures of a run.
pub(crate) struct Report {
    connections: usize,
    window: Duration,
    figures: BTreeMap<&'static str, Rounds>,
    gateway_calls: u64,
}

impl Report {
    /// Nothing yet.
    pub(crate) fn new(connections: usize, window: Duration) -> Report {
        Report { connections, window, figures: BTreeMap::new(), gateway_calls: 0 }
    }

    fn push(&mut self, figure: &'static str, subject: &'static str, value: f64) {
        self.figures.entry(figure).or_default().entry(subject).or_default().push(value);
    }

    /// Adds one window.
    pub(crate) fn add(&mut self, subject: &'static str, measured: Measured, load: &Load) {
        if subject == GATEWAY {
            self.gateway_calls += load.latencies_ns.len() as u64;
        }
        let (p50, p99) = (load.quantile_us(0.5), load.quantile_us(0.99));
        match measured {
            Measured::Saturated => {
                self.push("calls", subject, load.calls_per_second());
                self.push("cpu_per_call", subject, load.cpu_us_per_call());
                self.push("p50_saturated", subject, p50);
                self.push("p99_saturated", subject, p99);
            }
            Measured::HalfLoad => {
                self.push("p50_half_load", subject, p50);
                self.push("p99_half_load", subject, p99);
                for (added, of) in [("added_p50_half_load", "p50_half_load"), ("added_p99_half_load", "p99_half_load")]
                {
                    let latest = |subject| self.figures.get(of)?.get(subject)?.last().copied();
                    if let (Some(direct), Some(own)) = (latest(DIRECT), latest(subject))
                        && subject != DIRECT
                    {
                        self.push(added, subject, own - direct);
                    }
                }
            }
            Measured::Streams => self.push("cpu_per_chunk", subject, load.cpu_us_per_call() / CHUNKS as f64),
        }
    }

    /// Adds timed starts.
    pub(crate) fn starts(&mut self, starts: &[(&'static str, Duration)]) {
        for (subject, time) in starts {
            self.push("start_to_ready", subject, time.as_secs_f64() * 1e3);
        }
    }

    /// Adds the memory before the first call.
    pub(crate) fn idle_rss(&mut self, subject: &'static str, memory: Memory) {
        self.push("rss_idle", subject, memory.resident_kib as f64 / 1024.0);
        self.push("own_idle", subject, memory.own_kib as f64 / 1024.0);
    }

    /// Adds the memory after the last call.
    pub(crate) fn loaded_rss(&mut self, subject: &'static str, memory: Memory) {
        self.push("rss_loaded", subject, memory.resident_kib as f64 / 1024.0);
        self.push("rss_peak", subject, memory.peak_kib as f64 / 1024.0);
    }

    /// Checks that the gateway accounted for every call that was measured.
    ///
    /// # Errors
    /// When it recorded fewer: then the figures are of something else.
    pub(crate) fn calls_recorded(&self, recorded: u64) -> anyhow::Result<()> {
        ensure!(recorded >= self.gateway_calls, "{} calls were answered, {recorded} recorded", self.gateway_calls);
        Ok(())
    }

    fn median(&self, figure: &str, subject: &str) -> Option<f64> {
        median(self.figures.get(figure)?.get(subject)?.clone())
    }

    /// The median over the rounds of the ratio to the bare proxy.
    fn ratio(&self, figure: &str, subject: &str) -> Option<f64> {
        let rounds = self.figures.get(figure)?;
        median(rounds.get(subject)?.iter().zip(rounds.get(BARE)?).map(|(own, bare)| own / bare).collect())
    }

    fn subjects(&self) -> Vec<&'static str> {
        let known = |name: &&str| self.median("calls", name).is_some();
        [DIRECT, BARE, NGINX, GATEWAY].into_iter().filter(known).collect()
    }

    /// The table for people.
    pub(crate) fn print(&self, out: &mut impl io::Write) -> io::Result<()> {
        let subjects = self.subjects();
        write!(out, "{:<26}", "median of rounds")?;
        for subject in &subjects {
            write!(out, "{subject:>18}")?;
        }
        writeln!(out, "{:>18}", "tollgate : bare")?;
        for (figure, unit) in FIGURES {
            write!(out, "{:<26}", format!("{} {unit}", figure.replace('_', " ")))?;
            for subject in &subjects {
                let value = self.median(figure, subject);
                write!(out, "{:>18}", value.map_or("–".to_owned(), shown))?;
            }
            let ratio = self.ratio(figure, GATEWAY);
            writeln!(out, "{:>18}", ratio.map_or("–".to_owned(), |ratio| format!("{ratio:.2}")))?;
        }
        Ok(())
    }

    /// Everything for machines: medians, ratios, and each round.
    pub(crate) fn json(&self) -> String {
        let figures: Map<String, Value> =
            FIGURES.iter().map(|(name, unit)| ((*name).to_owned(), self.figure(name, unit))).collect();
        let report = json!({
            "cores": std::thread::available_parallelism().map_or(0, usize::from),
            "connections": self.connections,
            "window_ms": self.window.as_millis() as u64,
            "gateway_calls": self.gateway_calls,
            "figures": figures,
        });
        format!("{report:#}\n")
    }

    fn figure(&self, figure: &str, unit: &str) -> Value {
        let subject = |name: &&str| {
            let rounds = self.figures.get(figure)?.get(name)?;
            let value = json!({"median": self.median(figure, name), "ratio_to_bare": self.ratio(figure, name), "rounds": rounds});
            Some(((*name).to_owned(), value))
        };
        let subjects: Map<String, Value> = self.subjects().iter().filter_map(subject).collect();
        json!({"unit": unit, "subjects": subjects})
    }
}

fn shown(value: f64) -> String {
    if value.abs() >= 100.0 { format!("{value:.0}") } else { format!("{value:.2}") }
}

fn median(mut values: Vec<f64>) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    match values.len() {
        0 => None,
        n if n % 2 == 1 => Some(values[middle]),
        _ => Some((values[middle - 1] + values[middle]) / 2.0),
    }
}
