//! What the arms of an experiment, of a roll-out or of a prompt did, as moments over units: one query, in the dialect of either
//! store. Nothing here decides anything: see `policy`.
//!
//! A unit is what was assigned (of versions: the user). In an experiment all calls of a unit count for the variant that it was
//! seen in first; in a comparison of versions each call counts for the version that served it, since users move from one to the
//! other as a roll-out goes on.

use std::{collections::BTreeMap, sync::Arc};

use super::filter::{Dialect, Value};
use crate::{
    policy::stats::Moments,
    record::{BUILT_IN_METRICS, COST_PER, Outcome},
};

/// Metrics of feedback that are summed up: those with the most ratings.
const FEEDBACK_METRICS_MAX: usize = 50;
/// Words of a metric that are shown of each arm.
const WORDS_MAX: usize = 10;
/// Milliseconds of a day.
const DAY_MS: u64 = 86_400_000;

/// Which calls to compare.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ArmsQuery {
    /// What tells the arms apart.
    pub arms: Arms,
    /// Received then (milliseconds since 1970) or later.
    pub since_ms: Option<u64>,
    /// Received before then.
    pub until_ms: Option<u64>,
}

/// What tells the arms apart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Arms {
    /// The variants of an experiment.
    Experiment(String),
    /// Versions of an alias that served; all of them where none is named.
    Model {
        /// The alias.
        alias: String,
        /// Its versions.
        versions: Vec<String>,
    },
    /// Versions of a prompt that were put in; all of them where none is named.
    Prompt {
        /// The prompt.
        name: String,
        /// Its versions.
        versions: Vec<String>,
    },
}

/// What one arm did.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct ArmFigures {
    /// The variant or version.
    pub arm: Arc<str>,
    /// Units.
    pub units: u64,
    /// Of them seen in another arm too.
    pub crossed: u64,
    /// Their calls, those that the gateway refused included.
    pub calls: u64,
    /// By metric: all of [`BUILT_IN_METRICS`]; each of feedback; and `cost_per_` each of feedback, of the units that have it: the cost
    /// of all their calls by the sum of its values. Costs in USD, times in seconds.
    pub metrics: BTreeMap<Arc<str>, Moments>,
    /// By metric of feedback whose values are words: the most frequent ones and how often.
    pub words: BTreeMap<Arc<str>, Vec<(Arc<str>, u64)>>,
    /// Units that were seen for the first time, by day: its beginning (milliseconds since 1970) and how many, ascending.
    pub new_units: Vec<(u64, u64)>,
}

/// What a row of the answer says.
mod part {
    pub(super) const ARM: i64 = 0;
    pub(super) const METRIC: i64 = 1;
    pub(super) const FEEDBACK: i64 = 2;
    pub(super) const WORD: i64 = 3;
    pub(super) const DAY: i64 = 4;
}

/// A row of the answer, its columns in this order.
#[derive(Debug)]
pub(super) struct ArmRow {
    pub(super) part: i64,
    pub(super) arm: Arc<str>,
    /// The metric.
    pub(super) name: Arc<str>,
    pub(super) word: Arc<str>,
    pub(super) count: u64,
    /// Σ x, Σ n, Σ x², Σ n², Σ x n; then of cost c: Σ c, Σ c², Σ c x.
    pub(super) sums: [f64; 8],
}

/// Figures in the making.
#[derive(Debug, Default)]
pub(super) struct ArmCollector(BTreeMap<Arc<str>, ArmFigures>);

impl ArmCollector {
    pub(super) fn add(&mut self, row: ArmRow) {
        let ArmRow { part, arm, name, word, count, sums } = row;
        let [sum_x, sum_n, sum_xx, sum_nn, sum_xn, sum_c, sum_cc, sum_cx] = sums;
        let figures = self.0.entry(arm.clone()).or_insert_with(|| ArmFigures {
            arm,
            metrics: BUILT_IN_METRICS.iter().map(|metric| ((*metric).into(), Moments::default())).collect(),
            ..ArmFigures::default()
        });
        let moments = Moments { units: count, sum_x, sum_n, sum_xx, sum_nn, sum_xn };
        match part {
            part::ARM => {
                figures.units = count;
                (figures.calls, figures.crossed) = (sum_x as u64, sum_n as u64);
            }
            part::METRIC => drop(figures.metrics.insert(name, moments)),
            part::FEEDBACK => {
                let cost = Moments {
                    units: count,
                    sum_x: sum_c,
                    sum_n: sum_x,
                    sum_xx: sum_cc,
                    sum_nn: sum_xx,
                    sum_xn: sum_cx,
                };
                figures.metrics.insert(format!("{COST_PER}{name}").into(), cost);
                figures.metrics.insert(name, moments);
            }
            part::WORD => figures.words.entry(name).or_default().push((word, count)),
            part::DAY => figures.new_units.push((sum_x as u64 * DAY_MS, count)),
            _ => {}
        }
    }

    pub(super) fn finish(self) -> Vec<ArmFigures> {
        let mut all: Vec<ArmFigures> = self.0.into_values().collect();
        for figures in &mut all {
            figures.new_units.sort_unstable();
            for words in figures.words.values_mut() {
                words.sort_by(|a, b| b.1.cmp(&a.1).then_with(|| a.0.cmp(&b.0)));
            }
        }
        all
    }
}

/// A built-in metric of a unit: the sum of what over which of its calls, in which unit.
struct BuiltIn {
    name: &'static str,
    sum_of: &'static str,
    calls: &'static str,
    scale: &'static str,
}

/// In the order of [`BUILT_IN_METRICS`]. Calls that the gateway refused are in none but the second.
const BUILT_IN: [BuiltIn; 7] = [
    BuiltIn { name: "error_rate", sum_of: "failed", calls: "outcome <> 'refused'", scale: "1.0" },
    BuiltIn { name: "refusal_rate", sum_of: "refused", calls: "id IS NOT NULL", scale: "1.0" },
    BuiltIn { name: "cost_per_call", sum_of: "cost_nanousd", calls: "outcome <> 'refused' AND priced", scale: "1e-9" },
    BuiltIn { name: "latency", sum_of: "duration_us", calls: "outcome <> 'refused' AND attempts > 0", scale: "1e-6" },
    BuiltIn {
        name: "time_to_first_token",
        sum_of: "first_token_us",
        calls: "outcome <> 'refused' AND first_token_us IS NOT NULL",
        scale: "1e-6",
    },
    BuiltIn { name: "tokens", sum_of: "output_tokens", calls: "outcome <> 'refused' AND attempts > 0", scale: "1.0" },
    BuiltIn {
        name: "input_tokens",
        sum_of: "input_tokens",
        calls: "outcome <> 'refused' AND attempts > 0",
        scale: "1.0",
    },
];

/// A query in the making.
struct Builder<'q> {
    query: &'q ArmsQuery,
    dialect: Dialect,
    values: Vec<Value>,
}

/// The query, and its parameters. Its rows are [`ArmRow`]s.
pub(super) fn sql(query: &ArmsQuery, dialect: Dialect) -> (String, Vec<Value>) {
    let mut builder = Builder { query, dialect, values: Vec::new() };
    let span = builder.span();
    let sql = builder.whole(&span);
    (sql, builder.values)
}

impl Builder<'_> {
    fn whole(&mut self, span: &str) -> String {
        let source = self.source();
        let (by_time, by_call, by_session) = match self.dialect {
            Dialect::Sqlite => (
                format!("calls AS c INDEXED BY {}", self.index()),
                // In this order: few calls are rated.
                "feedback AS f CROSS JOIN calls AS c".to_owned(),
                "feedback AS f CROSS JOIN calls AS c INDEXED BY calls_session".to_owned(),
            ),
            Dialect::Postgres => {
                let both = "feedback AS f CROSS JOIN calls AS c".to_owned();
                ("calls AS c".to_owned(), both.clone(), both)
            }
        };
        let Source { unit, arm, join, condition } = &source;
        let key = self.key();
        let units = self.units();
        let owner = r#"f.owner = CASE WHEN c.team IS NULL THEN 'key/' || c."key" ELSE 'team/' || c.team END"#;
        // A day's partition is found by the time, which stands in the rating too.
        let same_call = "f.about = 'call' AND c.id = f.subject AND c.received_ms = f.received_ms";
        let same_session = "f.about = 'session' AND c.session = f.subject AND c.session IS NOT NULL";
        let rated = |calls: &str, same: &str| {
            format!(
                "SELECT {key}, id, metric, number, text FROM (SELECT {unit} AS unit, {arm} AS arm, f.id, f.metric, f.number, f.text
                 FROM {calls}{join} WHERE {same} AND {owner} AND {span} AND {condition}) AS r"
            )
        };
        let join_units = match self.counts_first_arm() {
            true => "u.unit = r.unit",
            false => "u.unit = r.unit AND u.arm = r.arm",
        };
        format!(
            "WITH seen AS (SELECT {unit} AS unit, {arm} AS arm, c.id, c.received_ms, c.outcome, c.priced, c.cost_nanousd,
                 c.attempts, c.duration_us, c.first_token_us, c.output_tokens, c.input_tokens,
                 CASE WHEN c.outcome IN ({errors}) THEN 1 ELSE 0 END AS failed,
                 CASE WHEN c.outcome = 'refused' THEN 1 ELSE 0 END AS refused
                 FROM {by_time}{join} WHERE {span} AND {condition}),
             units AS MATERIALIZED ({units}),
             ratings AS MATERIALIZED ({of_calls} UNION {of_sessions}),
             metrics AS (SELECT metric FROM ratings GROUP BY metric ORDER BY count(*) DESC, metric LIMIT {FEEDBACK_METRICS_MAX}),
             rated AS (SELECT {key}, metric, sum(number) AS x, CAST(count(number) AS double precision) AS n FROM ratings
                 WHERE metric IN (SELECT metric FROM metrics) GROUP BY {key}, metric HAVING count(number) > 0),
             words AS (SELECT u.arm, r.metric, r.text, count(*) AS count,
                 row_number() OVER (PARTITION BY u.arm, r.metric ORDER BY count(*) DESC, r.text) AS place
                 FROM ratings AS r JOIN units AS u ON {join_units}
                 WHERE r.text IS NOT NULL AND r.metric IN (SELECT metric FROM metrics) GROUP BY u.arm, r.metric, r.text)
             {selects}",
            errors = errors(),
            of_calls = rated(&by_call, same_call),
            of_sessions = rated(&by_session, same_session),
            selects = selects(join_units),
        )
    }

    /// Whether a unit has one arm only: the first.
    fn counts_first_arm(&self) -> bool {
        matches!(self.query.arms, Arms::Experiment(_))
    }

    /// What a unit's figures are summed up by.
    fn key(&self) -> &'static str {
        if self.counts_first_arm() { "unit" } else { "unit, arm" }
    }

    /// One row per unit, or per unit and arm.
    fn units(&self) -> String {
        let sums: Vec<String> = BUILT_IN
            .iter()
            .map(|BuiltIn { name, sum_of, calls, scale }| {
                format!(
                    "CAST(coalesce(sum({sum_of}) FILTER (WHERE {calls}), 0) AS double precision) * {scale} AS x_{name},
                     CAST(count(*) FILTER (WHERE {calls}) AS double precision) AS n_{name}"
                )
            })
            .collect();
        let (arm, crossed) = match self.counts_first_arm() {
            // Ids sort by time and have 32 characters.
            true => ("substr(min(id || arm), 33)", "min(arm) <> max(arm)"),
            false => ("arm", "count(*) OVER (PARTITION BY unit) > 1"),
        };
        format!(
            "SELECT unit, {arm} AS arm, min(received_ms) / {DAY_MS} AS day, count(*) AS calls,
             CASE WHEN {crossed} THEN 1 ELSE 0 END AS crossed, {} FROM seen GROUP BY {}",
            sums.join(", "),
            self.key()
        )
    }

    fn span(&mut self) -> String {
        let integer = |ms: u64| Value::Integer(i64::try_from(ms).unwrap_or(i64::MAX));
        let since = self.parameter(integer(self.query.since_ms.unwrap_or(0)));
        let until = self.parameter(integer(self.query.until_ms.unwrap_or(u64::MAX)));
        format!("c.received_ms >= {since} AND c.received_ms < {until}")
    }

    /// The index of SQLite's that leads to the calls: its planner knows nothing of the values.
    fn index(&self) -> &'static str {
        if self.counts_first_arm() { "calls_variants" } else { "calls_received" }
    }

    fn source(&mut self) -> Source {
        match &self.query.arms {
            Arms::Experiment(name) => self.source_of_experiment(name.clone()),
            Arms::Model { alias, versions } => {
                let (alias, versions) = (self.parameter(Value::Text(alias.clone())), self.list(versions.clone()));
                let condition = format!("c.model = {alias} AND c.version IS NOT NULL{}", among("c.version", &versions));
                Source::of_versions("c.version".to_owned(), condition)
            }
            Arms::Prompt { name, versions } => {
                let prefix = format!("{name}@");
                // Characters, as both stores count them.
                let length = prefix.chars().count();
                let (prefix, versions) = (self.parameter(Value::Text(prefix)), self.list(versions.clone()));
                let arm = format!("substr(c.prompt, {})", length + 1);
                let condition = format!("substr(c.prompt, 1, {length}) = {prefix}{}", among(&arm, &versions));
                Source::of_versions(arm, condition)
            }
        }
    }

    fn source_of_experiment(&mut self, name: String) -> Source {
        let quoted = serde_json::Value::from(name.as_str());
        let name = self.parameter(Value::Text(name));
        match self.dialect {
            Dialect::Sqlite => {
                // As the row's JSON is written: it leaves few to take apart.
                let written = self.parameter(Value::Text(format!("\"experiment\":{quoted},")));
                Source {
                    unit: "v.value ->> '$.unit'".to_owned(),
                    arm: "v.value ->> '$.variant'".to_owned(),
                    join: " CROSS JOIN json_each(c.variants) AS v",
                    condition: format!(
                        "c.variants IS NOT NULL AND instr(c.variants, {written}) > 0 AND v.value ->> '$.experiment' = {name}"
                    ),
                }
            }
            Dialect::Postgres => {
                let written = self.parameter(Value::Text(format!("[{{\"experiment\":{quoted}}}]")));
                Source {
                    unit: "v.value ->> 'unit'".to_owned(),
                    arm: "v.value ->> 'variant'".to_owned(),
                    join: " CROSS JOIN LATERAL jsonb_array_elements(c.variants) AS v",
                    condition: format!(
                        "c.variants <> '[]' AND c.variants @> {written}::text::jsonb AND v.value ->> 'experiment' = {name}"
                    ),
                }
            }
        }
    }

    fn list(&mut self, values: Vec<String>) -> Vec<String> {
        values.into_iter().map(|value| self.parameter(Value::Text(value))).collect()
    }

    fn parameter(&mut self, value: Value) -> String {
        self.values.push(value);
        match self.dialect {
            Dialect::Sqlite => format!("?{}", self.values.len()),
            Dialect::Postgres => format!("${}", self.values.len()),
        }
    }
}

/// Where arms and units are found in a call.
struct Source {
    unit: String,
    arm: String,
    join: &'static str,
    condition: String,
}

impl Source {
    fn of_versions(arm: String, condition: String) -> Source {
        Source { unit: "c.\"user\"".to_owned(), arm, join: "", condition }
    }
}

fn among(column: &str, values: &[String]) -> String {
    if values.is_empty() { String::new() } else { format!(" AND {column} IN ({})", values.join(", ")) }
}

fn errors() -> String {
    let errors =
        Outcome::ALL.iter().filter(|outcome| outcome.is_error()).map(|outcome| format!("'{}'", outcome.label()));
    errors.collect::<Vec<String>>().join(", ")
}

/// All rows of the answer.
fn selects(join_units: &str) -> String {
    let row = |part: i64, [name, word]: [&str; 2], sums: [&str; 8], from: &str| {
        let sums = sums.map(|sum| format!("CAST({sum} AS double precision)")).join(", ");
        format!("SELECT {part}, u.arm, CAST({name} AS text), CAST({word} AS text), count(*), {sums} FROM {from}")
    };
    let none = "0";
    let mut selects = vec![
        row(
            part::ARM,
            ["''", "''"],
            ["sum(u.calls)", "sum(u.crossed)", none, none, none, none, none, none],
            "units AS u GROUP BY u.arm",
        ),
        row(
            part::DAY,
            ["''", "''"],
            ["u.day", none, none, none, none, none, none, none],
            "units AS u GROUP BY u.arm, u.day",
        ),
        row(
            part::FEEDBACK,
            ["r.metric", "''"],
            [
                "sum(r.x)",
                "sum(r.n)",
                "sum(r.x * r.x)",
                "sum(r.n * r.n)",
                "sum(r.x * r.n)",
                "sum(u.x_cost_per_call)",
                "sum(u.x_cost_per_call * u.x_cost_per_call)",
                "sum(u.x_cost_per_call * r.x)",
            ],
            &format!("rated AS r JOIN units AS u ON {join_units} GROUP BY u.arm, r.metric"),
        ),
        format!(
            "SELECT {}, arm, metric, text, count, {} FROM words WHERE place <= {WORDS_MAX}",
            part::WORD,
            ["CAST(0 AS double precision)"; 8].join(", ")
        ),
    ];
    for BuiltIn { name, .. } in &BUILT_IN {
        let (x, n) = (format!("u.x_{name}"), format!("u.n_{name}"));
        let sum = |what: String| format!("sum({what})");
        let sums = [
            sum(x.clone()),
            sum(n.clone()),
            sum(format!("{x} * {x}")),
            sum(format!("{n} * {n}")),
            sum(format!("{x} * {n}")),
        ];
        let [x, n_sum, xx, nn, xn] = &sums;
        let all = [x.as_str(), n_sum, xx, nn, xn, none, none, none];
        selects.push(row(
            part::METRIC,
            [&format!("'{name}'"), "''"],
            all,
            &format!("units AS u WHERE {n} > 0 GROUP BY u.arm"),
        ));
    }
    selects.join(" UNION ALL ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_built_in_metric_has_its_sql() {
        assert_eq!(BUILT_IN.map(|metric| metric.name), BUILT_IN_METRICS);
    }
}
