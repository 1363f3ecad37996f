//! A filter as the condition of a query, in the dialect of either store. Values are always parameters, never text of the query.

use super::{feedback::FeedbackFilter, ports::Filter};
use crate::record::Outcome;

/// Whose SQL.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Dialect {
    /// SQLite.
    Sqlite,
    /// PostgreSQL.
    Postgres,
}

/// Which rows are filtered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Table {
    /// Calls.
    Calls,
    /// Sums of combinations over so long.
    Cube {
        /// An hour or a day, in milliseconds.
        width_ms: u64,
    },
}

/// A parameter of a query.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Value {
    /// Text.
    Text(String),
    /// An integer.
    Integer(i64),
}

/// A condition in the making: `WHERE` and what follows it.
#[derive(Debug)]
pub(super) struct Conditions {
    dialect: Dialect,
    sql: Vec<String>,
    values: Vec<Value>,
}

impl Conditions {
    /// The condition that `filter` sets.
    pub(super) fn of(filter: &Filter, dialect: Dialect, table: Table) -> Conditions {
        let mut all = Conditions { dialect, sql: Vec::new(), values: Vec::new() };
        let time = match table {
            Table::Calls => "received_ms",
            Table::Cube { .. } => "bucket_ms",
        };
        if let Table::Cube { width_ms } = table {
            all.add(Some(integer(width_ms)), |p| format!("width_ms = {p}"));
        }
        all.add(filter.since_ms.map(integer), |p| format!("{time} >= {p}"));
        all.add(filter.until_ms.map(integer), |p| format!("{time} < {p}"));
        for (column, value) in [
            ("model", &filter.model),
            ("team", &filter.team),
            ("key", &filter.key),
            ("provider", &filter.provider),
            ("user", &filter.user),
            ("session", &filter.session),
            ("endpoint", &filter.endpoint),
        ] {
            all.add(value.clone().map(Value::Text), |p| format!("\"{column}\" = {p}"));
        }
        all.add(filter.outcome.map(|o| Value::Text(o.label().to_owned())), |p| format!("outcome = {p}"));
        if filter.errors || filter.outcome.is_some_and(|outcome| outcome != Outcome::Ok) {
            // Said in the words of the index over such calls: of a parameter no planner knows that it is another word.
            all.sql.push("outcome <> 'ok'".to_owned());
        }
        if filter.errors {
            let errors: Vec<String> =
                Outcome::ALL.iter().filter(|o| o.is_error()).map(|o| format!("'{}'", o.label())).collect();
            all.sql.push(format!("outcome IN ({})", errors.join(", ")));
        }
        if let Some((experiment, variant)) = &filter.variant {
            all.variant(experiment, variant, table);
        }
        if let Some((tag, value)) = &filter.tag {
            all.tag(tag, value);
        }
        all
    }

    /// The condition that `filter` sets on ratings, of which only those that come after this one are meant, the latest first.
    pub(super) fn of_feedback(filter: &FeedbackFilter, after: Option<&str>, dialect: Dialect) -> Conditions {
        let mut all = Conditions { dialect, sql: Vec::new(), values: Vec::new() };
        all.add(filter.since_ms.map(integer), |p| format!("rated_ms >= {p}"));
        all.add(filter.until_ms.map(integer), |p| format!("rated_ms < {p}"));
        all.add(filter.call.clone().map(Value::Text), |p| format!("about = 'call' AND subject = {p}"));
        all.add(filter.session.clone().map(Value::Text), |p| format!("about = 'session' AND subject = {p}"));
        for (column, value) in [("metric", &filter.metric), ("source", &filter.source), ("owner", &filter.owner)] {
            all.add(value.clone().map(Value::Text), |p| format!("{column} = {p}"));
        }
        all.add(after.map(|id| Value::Text(id.to_owned())), |p| format!("id < {p}"));
        all
    }

    /// Only calls that come after this one, the latest first.
    pub(super) fn after(&mut self, received_ms: u64, id: &str) {
        let received = self.parameter(integer(received_ms));
        let id = self.parameter(Value::Text(id.to_owned()));
        self.sql.push(format!("(received_ms, id) < ({received}, {id})"));
    }

    /// The condition with its `WHERE`, or nothing, and the parameters.
    pub(super) fn finish(self) -> (String, Vec<Value>) {
        let sql = if self.sql.is_empty() { String::new() } else { format!("WHERE {}", self.sql.join(" AND ")) };
        (sql, self.values)
    }

    fn add(&mut self, value: Option<Value>, condition: impl Fn(&str) -> String) {
        if let Some(value) = value {
            let place = self.parameter(value);
            self.sql.push(condition(&place));
        }
    }

    fn parameter(&mut self, value: Value) -> String {
        self.values.push(value);
        match self.dialect {
            Dialect::Sqlite => format!("?{}", self.values.len()),
            Dialect::Postgres => format!("${}", self.values.len()),
        }
    }

    fn variant(&mut self, experiment: &str, variant: &str, table: Table) {
        if table != Table::Calls {
            // Several variants stand there with commas between.
            let label = self.parameter(Value::Text(format!(",{experiment}={variant},")));
            self.sql.push(match self.dialect {
                Dialect::Sqlite => format!("instr(',' || variant || ',', {label}) > 0"),
                Dialect::Postgres => format!("strpos(',' || variant || ',', {label}) > 0"),
            });
            return;
        }
        let pair = format!("\"experiment\":{},\"variant\":{}", quoted(experiment), quoted(variant));
        match self.dialect {
            // As the row's JSON is written. In a string of it the quotes would be escaped, so nothing else reads like this.
            Dialect::Sqlite => {
                let pair = self.parameter(Value::Text(pair));
                self.sql.push(format!("variants IS NOT NULL AND instr(variants, {pair}) > 0"));
            }
            Dialect::Postgres => {
                let pair = self.parameter(Value::Text(format!("[{{{pair}}}]")));
                self.sql.push(format!("variants <> '[]' AND variants @> {pair}::text::jsonb"));
            }
        }
    }

    fn tag(&mut self, tag: &str, value: &str) {
        let pair = format!("{}:{}", quoted(tag), quoted(value));
        match self.dialect {
            // Looking for the pair as the row's JSON is written is quick, and leaves few to take apart.
            Dialect::Sqlite => {
                let tag = self.parameter(Value::Text(tag.to_owned()));
                let value = self.parameter(Value::Text(value.to_owned()));
                let pair = self.parameter(Value::Text(pair));
                self.sql.push(format!("tags IS NOT NULL AND instr(tags, {pair}) > 0"));
                let is_in = format!("t.key = {tag} AND t.value = {value}");
                self.sql.push(format!("EXISTS (SELECT 1 FROM json_each(calls.tags) AS t WHERE {is_in})"));
            }
            Dialect::Postgres => {
                let pair = self.parameter(Value::Text(format!("{{{pair}}}")));
                self.sql.push(format!("tags <> '{{}}' AND tags @> {pair}::text::jsonb"));
            }
        }
    }
}

/// As a string of JSON.
fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

/// A time as the stores' integers; one beyond them is the last.
fn integer(value: u64) -> Value {
    Value::Integer(i64::try_from(value).unwrap_or(i64::MAX))
}
