//! Every metric's name, labels and buckets. Nothing else in the tree names a metric macro.
//!
//! Labels come from closed sets: names in the configuration, rows of the price catalog, statuses, outcomes. What a client
//! can invent (models, users, paths, ids) is `other` or not a label at all.

#![expect(clippy::disallowed_macros, reason = "this is the one place that they are disallowed in favour of")]

use std::{
    collections::{BTreeMap, HashMap},
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use http::StatusCode;
use metrics::{
    Counter, Histogram, SharedString, Unit, counter, describe_counter, describe_gauge, describe_histogram, gauge,
    histogram,
};
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};

use crate::{record::Record, units::NanoUsd};

const REQUESTS: &str = "tollgate_requests_total";
const DURATION: &str = "tollgate_request_duration_seconds";
const FIRST_TOKEN: &str = "tollgate_time_to_first_token_seconds";
const PER_OUTPUT_TOKEN: &str = "tollgate_time_per_output_token_seconds";
const OVERHEAD: &str = "tollgate_overhead_seconds";
const TOKENS: &str = "tollgate_tokens_total";
const COST: &str = "tollgate_cost_usd_total";
const TEAM_COST: &str = "tollgate_team_cost_usd_total";
const EXPERIMENT_COST: &str = "tollgate_experiment_cost_usd_total";
const SPENT_RATIO: &str = "tollgate_budget_spent_ratio";
const BUDGET_STARTED: &str = "tollgate_budget_started_timestamp_seconds";
const BUDGET_RESETS: &str = "tollgate_budget_resets_timestamp_seconds";
const REFUSALS: &str = "tollgate_refusals_total";
const EXPERIMENT_CALLS: &str = "tollgate_experiment_calls_total";
const EXPERIMENT_FAILURES: &str = "tollgate_experiment_failures_total";
const ATTEMPTS: &str = "tollgate_upstream_attempts_total";
const CIRCUIT: &str = "tollgate_circuit_state";
const STORE_UP: &str = "tollgate_store_up";
const RECORDS_DROPPED: &str = "tollgate_records_dropped_total";
const RECORDS_WAITING: &str = "tollgate_records_waiting";
const RECORDS_UP: &str = "tollgate_records_store_up";
const RELOADS: &str = "tollgate_config_reloads_total";
const CONFIG_INFO: &str = "tollgate_config_info";
const IN_FLIGHT: &str = "tollgate_in_flight";
const PANICS: &str = "tollgate_panics_total";
const DROPPED_RESERVATIONS: &str = "tollgate_reservations_dropped_total";
const UNBOOKED: &str = "tollgate_calls_unbooked_total";
const DRIFT: &str = "tollgate_ledger_drift_nanousd";
const ALERTS: &str = "tollgate_alerts_total";
const FEEDBACK: &str = "tollgate_feedback_total";
const OTLP: &str = "tollgate_otlp_total";

/// Seconds; from a fast cache answer to a long reasoning call.
const DURATION_BUCKETS: [f64; 15] =
    [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0];
/// Seconds per token.
const PER_TOKEN_BUCKETS: [f64; 10] = [0.001, 0.0025, 0.005, 0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64];
/// Seconds of our own work.
const OVERHEAD_BUCKETS: [f64; 12] =
    [0.00001, 0.000025, 0.00005, 0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.05, 0.25];

static RECORDS_DROPPED_SO_FAR: AtomicU64 = AtomicU64::new(0);

static HANDLE: OnceLock<PrometheusHandle> = OnceLock::new();

/// Installs the recorder once per process and describes every metric.
///
/// # Panics
/// Never: bucket lists are constant and not empty, and a second call is a no-op.
pub fn init() {
    HANDLE.get_or_init(|| {
        let buckets = |builder: PrometheusBuilder, name: &str, values: &[f64]| {
            builder.set_buckets_for_metric(Matcher::Full(name.to_owned()), values).expect("constant, not empty")
        };
        let mut builder = PrometheusBuilder::new();
        builder = buckets(builder, DURATION, &DURATION_BUCKETS);
        builder = buckets(builder, FIRST_TOKEN, &DURATION_BUCKETS);
        builder = buckets(builder, PER_OUTPUT_TOKEN, &PER_TOKEN_BUCKETS);
        builder = buckets(builder, OVERHEAD, &OVERHEAD_BUCKETS);
        let handle = builder.install_recorder().expect("the first recorder of this process");
        describe();
        handle
    });
}

/// The exposition in Prometheus' text format.
#[must_use]
pub fn render() -> String {
    let mut text = HANDLE.get().map(PrometheusHandle::render).unwrap_or_default();
    costs().render(&mut text);
    text
}

/// Folds histogram samples into buckets: without it they pile up until the next scrape. Call it every few seconds.
pub fn upkeep() {
    if let Some(handle) = HANDLE.get() {
        handle.run_upkeep();
    }
}

fn describe() {
    describe_counter!(REQUESTS, "Calls that ended, by endpoint, model, provider, status and outcome");
    describe_histogram!(DURATION, Unit::Seconds, "From the request's head to the reply's last byte");
    describe_histogram!(
        FIRST_TOKEN,
        Unit::Seconds,
        "From the request's head to the first token that the client was sent"
    );
    describe_histogram!(PER_OUTPUT_TOKEN, Unit::Seconds, "Time per output token after the first, streams only");
    describe_histogram!(OVERHEAD, Unit::Seconds, "Time that the gateway added before the upstream was called");
    describe_counter!(TOKENS, "Tokens by direction: input, cached, cache_write, output, reasoning");
    describe_gauge!(
        SPENT_RATIO,
        "Spent share of a budget's limit and credits in its current period; the fullest account of the budget"
    );
    describe_gauge!(BUDGET_STARTED, Unit::Seconds, "When a budget's current period began, in seconds since 1970");
    describe_gauge!(BUDGET_RESETS, Unit::Seconds, "When a budget's current period ends, in seconds since 1970");
    describe_counter!(REFUSALS, "Calls that the gateway refused, by error code");
    describe_counter!(EXPERIMENT_CALLS, "Calls by experiment and assigned variant");
    describe_counter!(EXPERIMENT_FAILURES, "Calls that failed through no fault of their client, by assigned variant");
    describe_counter!(ATTEMPTS, "Attempts at a provider, by result");
    describe_gauge!(CIRCUIT, "0 closed (healthy), 1 half open (probing), 2 open (ejected)");
    describe_gauge!(STORE_UP, "Whether the ledger's store answers");
    describe_counter!(RECORDS_DROPPED, "Records that could not be kept");
    describe_gauge!(RECORDS_WAITING, "Finished calls that are not in the call log yet, in memory and on disk");
    describe_gauge!(RECORDS_UP, "Whether the call log's store takes calls");
    describe_counter!(RELOADS, "Configuration reloads, by result");
    describe_gauge!(CONFIG_INFO, "1 for the hash of the configuration that is serving");
    describe_gauge!(IN_FLIGHT, "Calls in flight");
    describe_counter!(FEEDBACK, "Ratings of calls and sessions that were taken");
    describe_counter!(PANICS, "Requests that ended by a panic: each is a bug");
    describe_counter!(
        DROPPED_RESERVATIONS,
        "Reservations that were never settled and so charged at their bound: each is a bug"
    );
    describe_counter!(
        UNBOOKED,
        "Calls that a lenient budget let through while they could not be written to its journal"
    );
    describe_gauge!(
        DRIFT,
        "By how much purses differ from what their attempts were settled at, in nano-dollars: 0 unless there is a bug"
    );
    describe_counter!(OTLP, "Messages to the OTLP collector, calls and spans that did not get there, by result");
    describe_counter!(ALERTS, "Alerts for a webhook, by what became of them: sent, failed, dropped");
    counter!(RECORDS_DROPPED).absolute(0);
    counter!(PANICS).absolute(0);
    counter!(FEEDBACK).absolute(0);
    // A series that begins at 1 shows no increase, and the first refusal is the one to alert on.
    for result in ["ok", "refused"] {
        counter!(RELOADS, "result" => result).absolute(0);
    }
    for result in ["sent", "failed", "dropped"] {
        counter!(ALERTS, "result" => result).absolute(0);
    }
    gauge!(IN_FLIGHT).set(0.0);
}

/// Counts finished calls. Looking a series up by its labels costs more than counting in it, so the series found are kept: as many
/// as the labels' closed sets allow.
#[derive(Debug, Default)]
pub struct CallMetrics {
    requests: HashMap<RequestLabels, Counter>,
    by_endpoint: HashMap<&'static str, EndpointSeries>,
    overhead: Option<Histogram>,
    experiments: HashMap<(Arc<str>, Arc<str>), Counter>,
    attempts: HashMap<(Arc<str>, &'static str), Counter>,
    tokens: Option<[Counter; 5]>,
}

/// Model, provider, endpoint, status and outcome.
type RequestLabels = (Arc<str>, Arc<str>, &'static str, u16, &'static str);

#[derive(Debug)]
struct EndpointSeries {
    duration: Histogram,
    first_token: Histogram,
}

impl CallMetrics {
    /// Counts one finished call.
    pub fn call_ended(&mut self, record: &Record) {
        self.requests(record).increment(1);
        let series = self.by_endpoint.entry(record.endpoint).or_insert_with(|| EndpointSeries {
            duration: histogram!(DURATION, "endpoint" => record.endpoint),
            first_token: histogram!(FIRST_TOKEN, "endpoint" => record.endpoint),
        });
        series.duration.record(record.duration.as_secs_f64());
        if let Some(first) = record.first_token {
            series.first_token.record(first.as_secs_f64());
            per_output_token(record, first);
        }
        if let Some(overhead) = record.overhead {
            self.overhead.get_or_insert_with(|| histogram!(OVERHEAD)).record(overhead.as_secs_f64());
        }
        self.tokens(record);
        self.attempts(record);
        if record.cost > NanoUsd::ZERO {
            costs().add(record);
        }
        if let Some(code) = record.refusal {
            counter!(REFUSALS, "reason" => code).increment(1);
        }
        for assigned in &record.variants {
            let series = self.experiments.entry(assigned.clone()).or_insert_with(|| {
                let (experiment, variant) = assigned.clone();
                counter!(EXPERIMENT_CALLS, "experiment" => experiment, "variant" => variant)
            });
            series.increment(1);
            if record.outcome.is_error() {
                let (experiment, variant) = assigned.clone();
                counter!(EXPERIMENT_FAILURES, "experiment" => experiment, "variant" => variant).increment(1);
            }
        }
    }

    fn requests(&mut self, record: &Record) -> &Counter {
        let (model, provider) = (record.model_label.clone(), record.provider.clone());
        let labels = (model, provider, record.endpoint, record.status.as_u16(), record.outcome.label());
        self.requests.entry(labels).or_insert_with(|| {
            counter!(
                REQUESTS,
                "endpoint" => record.endpoint,
                "model" => record.model_label.clone(),
                "provider" => record.provider.clone(),
                "status" => status_label(record.status),
                "outcome" => record.outcome.label(),
            )
        })
    }

    fn attempts(&mut self, record: &Record) {
        for attempt in &record.attempt_list {
            let labels = (attempt.provider.clone(), attempt.result.unwrap_or("error"));
            let series = self.attempts.entry(labels).or_insert_with_key(
                |(provider, result)| counter!(ATTEMPTS, "provider" => provider.clone(), "result" => *result),
            );
            series.increment(1);
        }
    }

    fn tokens(&mut self, record: &Record) {
        const DIRECTIONS: [&str; 5] = ["input", "cached", "cache_write", "output", "reasoning"];
        let series = self.tokens.get_or_insert_with(|| DIRECTIONS.map(|name| counter!(TOKENS, "direction" => name)));
        let usage = &record.usage;
        let cache_write = usage.cache_write.saturating_add(usage.cache_write_1h);
        let counts = [usage.input, usage.cached, cache_write, usage.output, usage.reasoning];
        for (series, count) in series.iter().zip(counts) {
            series.increment(count.0);
        }
    }
}

fn per_output_token(record: &Record, first: Duration) {
    let after_first = record.usage.output.0.saturating_sub(1);
    if record.streamed && after_first > 0 {
        histogram!(PER_OUTPUT_TOKEN).record(record.duration.saturating_sub(first).as_secs_f64() / after_first as f64);
    }
}

/// The status as a label. Upstreams may invent statuses, so what is not a known code is shown by its class.
fn status_label(status: StatusCode) -> SharedString {
    match status.canonical_reason() {
        Some(_) => status.as_str().to_owned().into(),
        None => format!("{}xx", status.as_u16() / 100).into(),
    }
}

/// Sums of cost. The metrics library counts in integers; a counter in dollars needs its own few lines.
#[derive(Default)]
struct Costs {
    by_model: BTreeMap<(ModelLabel, ProviderName), NanoUsd>,
    by_team: BTreeMap<Arc<str>, NanoUsd>,
    by_variant: BTreeMap<(ExperimentName, VariantName), NanoUsd>,
}

type ModelLabel = Arc<str>;
type ProviderName = Arc<str>;
type ExperimentName = Arc<str>;
type VariantName = Arc<str>;

static COSTS: Mutex<Costs> =
    Mutex::new(Costs { by_model: BTreeMap::new(), by_team: BTreeMap::new(), by_variant: BTreeMap::new() });

impl Costs {
    fn add(&mut self, record: &Record) {
        let add = |sum: &mut NanoUsd| *sum = sum.saturating_add(record.cost);
        add(self.by_model.entry((record.model_label.clone(), record.provider.clone())).or_default());
        if let Some(team) = &record.team {
            add(self.by_team.entry(team.clone()).or_default());
        }
        for variant in &record.variants {
            add(self.by_variant.entry(variant.clone()).or_default());
        }
    }

    fn render(&self, text: &mut String) {
        text.push_str(&format!("# HELP {COST} Cost of all calls in USD\n# TYPE {COST} counter\n"));
        for ((model, provider), cost) in &self.by_model {
            let (model, provider) = (escaped(model), escaped(provider));
            text.push_str(&format!("{COST}{{model=\"{model}\",provider=\"{provider}\"}} {cost}\n"));
        }
        text.push_str(&format!("# HELP {TEAM_COST} Cost of a team's calls in USD\n# TYPE {TEAM_COST} counter\n"));
        for (team, cost) in &self.by_team {
            text.push_str(&format!("{TEAM_COST}{{team=\"{}\"}} {cost}\n", escaped(team)));
        }
        text.push_str(&format!("# HELP {EXPERIMENT_COST} Cost of calls in USD, by assigned variant\n"));
        text.push_str(&format!("# TYPE {EXPERIMENT_COST} counter\n"));
        for ((experiment, variant), cost) in &self.by_variant {
            let (experiment, variant) = (escaped(experiment), escaped(variant));
            text.push_str(&format!("{EXPERIMENT_COST}{{experiment=\"{experiment}\",variant=\"{variant}\"}} {cost}\n"));
        }
    }
}

fn costs() -> MutexGuard<'static, Costs> {
    COSTS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A label value as the text format wants it.
fn escaped(value: &str) -> String {
    value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

/// Shows a provider's circuit: 0 closed, 1 half open, 2 open.
pub fn circuit(provider: &str, state: f64) {
    gauge!(CIRCUIT, "provider" => provider.to_owned()).set(state);
}

/// Shows the spent share of a budget.
pub fn budget_spent(budget: &str, ratio: f64) {
    gauge!(SPENT_RATIO, "budget" => budget.to_owned()).set(ratio);
}

/// Shows when a budget's period began and ends, in seconds since 1970.
pub fn budget_period(budget: &str, started: i64, resets: Option<i64>) {
    gauge!(BUDGET_STARTED, "budget" => budget.to_owned()).set(started as f64);
    if let Some(resets) = resets {
        gauge!(BUDGET_RESETS, "budget" => budget.to_owned()).set(resets as f64);
    }
}

/// Shows whether the store answers.
pub fn store_up(up: bool) {
    gauge!(STORE_UP).set(f64::from(u8::from(up)));
}

/// Counts a reload: `ok`, `refused`.
pub fn config_reload(result: &'static str) {
    counter!(RELOADS, "result" => result).increment(1);
}

/// Shows the hash that serves and clears the one before.
pub fn config_hash(previous: Option<&str>, hash: &str) {
    if let Some(previous) = previous.filter(|p| *p != hash) {
        gauge!(CONFIG_INFO, "hash" => previous.to_owned()).set(0.0);
    }
    gauge!(CONFIG_INFO, "hash" => hash.to_owned()).set(1.0);
}

/// Shows the number of calls in flight.
pub fn in_flight(count: usize) {
    gauge!(IN_FLIGHT).set(count as f64);
}

/// Counts a request that ended by a panic.
pub fn panicked() {
    counter!(PANICS).increment(1);
}

/// Counts ratings that were taken.
pub fn feedback(count: usize) {
    counter!(FEEDBACK).increment(count as u64);
}

/// Counts calls that were served without being booked.
pub fn calls_unbooked(total: u64) {
    counter!(UNBOOKED).absolute(total);
}

/// By how much purses differ from the journal.
pub fn ledger_drift(amount: NanoUsd) {
    gauge!(DRIFT).set(amount.0 as f64);
}

/// Counts reservations that were dropped unsettled.
pub fn reservations_dropped(total: u64) {
    counter!(DROPPED_RESERVATIONS).absolute(total);
}

/// Counts records that could not be kept.
pub fn records_dropped(count: u64) {
    RECORDS_DROPPED_SO_FAR.fetch_add(count, Ordering::Relaxed);
    counter!(RECORDS_DROPPED).increment(count);
}

/// Records that could not be kept since the process began: a counter cannot be read back.
#[must_use]
pub fn records_dropped_so_far() -> u64 {
    RECORDS_DROPPED_SO_FAR.load(Ordering::Relaxed)
}

/// Counts what became of `count` messages of `traces` or `metrics` (`sent`, `failed`, `dropped`), of `calls` that were never
/// encoded (`dropped`), or of `spans` that the collector refused (`rejected`).
pub fn otlp(signal: &'static str, result: &'static str, count: u64) {
    counter!(OTLP, "signal" => signal, "result" => result).increment(count);
}

/// Counts an alert for a webhook: `sent`, `failed`, `dropped`, or `left` to another gateway.
pub fn alert(result: &'static str) {
    counter!(ALERTS, "result" => result).increment(1);
}

/// Shows how far the call log is behind, and whether its store takes calls.
pub fn records(waiting: u64, store_up: bool) {
    gauge!(RECORDS_WAITING).set(waiting as f64);
    gauge!(RECORDS_UP).set(f64::from(u8::from(store_up)));
}
