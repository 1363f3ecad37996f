//! Runs a suite: each case goes to each candidate through the gateway, is scored, and is written down as it finishes.

pub mod estimate;
pub mod journal;
pub mod meter;
pub mod row;
mod scoring;

use std::{
    collections::HashMap,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};

use futures_util::{StreamExt, stream};
use http::{HeaderMap, HeaderValue, StatusCode};
use jiff::Timestamp;
use serde_json::{Map, Value, json};

use self::{
    journal::{Journal, JournalError, Rows},
    meter::{Meter, Stopped},
    row::Row,
};
use crate::{
    eval::{
        answer::Answer,
        client::{Client, ClientError, Reply},
        prices::{Prices, Spent},
        suite::{Candidate, Case, Suite},
    },
    units::NanoUsd,
};

/// What a run needs.
#[derive(Debug)]
pub struct Run<'a> {
    /// What is run.
    pub suite: &'a Suite,
    /// Where.
    pub client: &'a Client,
    /// At which prices.
    pub prices: &'a Prices,
    /// Set from outside: nothing new is begun any more.
    pub interrupted: &'a AtomicBool,
    meter: Meter,
    embeddings: Mutex<HashMap<String, Vec<f64>>>,
}

/// How a run ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ended {
    /// Every case is there.
    Complete,
    /// Money ended it.
    Stopped(Stopped),
    /// It was interrupted.
    Interrupted,
}

/// How far a run is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// Answers that are scored.
    pub done: usize,
    /// Of so many.
    pub all: usize,
    /// What was spent.
    pub spent: NanoUsd,
}

/// One case, asked for one time, of all candidates.
#[derive(Debug, Clone, Copy)]
struct Unit<'a> {
    case: &'a Case,
    repeat: u32,
}

impl<'a> Run<'a> {
    /// A run that counts what `rows` cost already.
    #[must_use]
    pub fn new(
        suite: &'a Suite,
        client: &'a Client,
        prices: &'a Prices,
        rows: &Rows,
        interrupted: &'a AtomicBool,
    ) -> Run<'a> {
        let of_candidates = rows.values().filter(|row| !is_recorded(suite, &row.candidate));
        let answers: NanoUsd = of_candidates.filter_map(|row| row.cost_nanousd.map(NanoUsd)).sum();
        let scoring: NanoUsd = rows.values().map(|row| NanoUsd(row.scoring_nanousd)).sum();
        let meter = Meter::new(suite.max_cost, answers.saturating_add(scoring));
        Run { suite, client, prices, interrupted, meter, embeddings: Mutex::default() }
    }

    /// What was spent.
    #[must_use]
    pub fn spent(&self) -> NanoUsd {
        self.meter.spent()
    }

    /// Runs what `rows` lacks, adds it there and to the journal, and tells how far it is.
    ///
    /// # Errors
    /// When the journal cannot be written: what is not written down would be paid for twice.
    pub async fn go(
        &self,
        rows: &mut Rows,
        journal: &mut Journal,
        show: &mut dyn FnMut(Progress),
    ) -> Result<Ended, JournalError> {
        let all = self.suite.cases.len() * self.suite.candidates.len() * self.suite.repeat as usize;
        let repeats = 0..self.suite.repeat;
        let units = repeats.flat_map(|repeat| self.suite.cases.iter().map(move |case| Unit { case, repeat }));
        let units: Vec<(Unit<'_>, Vec<Option<Row>>)> = units.map(|unit| (unit, self.known(unit, rows))).collect();
        let missing = units.into_iter().filter(|(_, known)| known.iter().any(Option::is_none));
        let mut finished =
            stream::iter(missing.map(|(unit, known)| self.unit(unit, known))).buffer_unordered(self.suite.concurrency);
        show(Progress { done: rows.len(), all, spent: self.spent() });
        while let Some(new) = finished.next().await {
            for row in new {
                journal.add(&row)?;
                rows.insert(row.key(), row);
            }
            show(Progress { done: rows.len(), all, spent: self.spent() });
        }
        Ok(match self.meter.stopped() {
            _ if rows.len() >= all => Ended::Complete,
            Some(stopped) => Ended::Stopped(stopped),
            None => Ended::Interrupted,
        })
    }

    /// What is there of a unit already, by candidate.
    fn known(&self, unit: Unit<'_>, rows: &Rows) -> Vec<Option<Row>> {
        let key = |candidate: &Candidate| (unit.case.id.clone(), candidate.name.clone(), unit.repeat);
        self.suite.candidates.iter().map(|candidate| rows.get(&key(candidate)).cloned()).collect()
    }

    /// The new rows of a unit. The baseline comes first, since others may be compared with its answer.
    async fn unit(&self, unit: Unit<'_>, mut known: Vec<Option<Row>>) -> Vec<Row> {
        let mut new = Vec::new();
        let others = (0..self.suite.candidates.len()).filter(|i| *i != self.suite.baseline);
        for i in std::iter::once(self.suite.baseline).chain(others) {
            if known[i].is_some() {
                continue;
            }
            if self.interrupted.load(Relaxed) {
                break;
            }
            let baseline = known[self.suite.baseline].as_ref();
            let Some(row) = self.row(unit, i, baseline).await else { break };
            known[i] = Some(row.clone());
            new.push(row);
        }
        new
    }

    /// One candidate's row; `None` when money forbids it.
    async fn row(&self, unit: Unit<'_>, i: usize, baseline: Option<&Row>) -> Option<Row> {
        let candidate = &self.suite.candidates[i];
        let mut row = Row {
            case: unit.case.id.clone(),
            candidate: candidate.name.clone(),
            repeat: unit.repeat,
            ..Row::default()
        };
        match candidate.recorded {
            true => recall(unit.case, &mut row),
            false => self.ask(unit.case, candidate, &mut row).await?,
        }
        let is_baseline = i == self.suite.baseline;
        self.score(unit.case, &mut row, baseline.filter(|_| !is_baseline), is_baseline).await?;
        Some(row)
    }

    async fn ask(&self, case: &Case, candidate: &Candidate, row: &mut Row) -> Option<()> {
        let headers = match self.headers(case, candidate) {
            Ok(headers) => headers,
            Err(error) => {
                row.error = Some(error.to_string());
                return Some(());
            }
        };
        let estimate = estimate::call(candidate, case, self.prices, Timestamp::now());
        let (attempts, asked) =
            self.paid("/v1/chat/completions", &headers, &request(case, candidate), estimate).await?;
        row.attempts = attempts;
        match asked {
            Ok((reply, spent)) => take(row, &reply, spent),
            Err(error) => row.error = Some(error),
        }
        Some(())
    }

    /// Makes a call that costs something; `None` when money forbids it. The inner error is what to tell of the call.
    async fn paid(
        &self,
        path: &str,
        headers: &HeaderMap,
        body: &Value,
        estimate: Option<NanoUsd>,
    ) -> Option<(u32, Result<(Reply, Spent), String>)> {
        let reserved = self.meter.reserve(estimate)?;
        let (attempts, reply) = self.client.post(path, headers, body).await;
        let asked = match reply {
            Ok(reply) if reply.status.is_success() => {
                let served = reply.header("x-tollgate-model");
                let said = reply.header("x-tollgate-cost-usd");
                let spent = self.prices.of_reply(said, served, &reply.json(), Timestamp::now());
                let named = body["model"].as_str().unwrap_or_default();
                self.meter.settle(reserved, spent.cost, served.unwrap_or(named));
                Ok((reply, spent))
            }
            Ok(reply) => {
                self.meter.release(reserved);
                if reply.status == StatusCode::UNAUTHORIZED {
                    self.meter.stop(Stopped::Key(reply.complaint()));
                }
                Err(reply.complaint())
            }
            // It may have been answered, and charged, all the same; nobody can tell here.
            Err(error) => {
                self.meter.release(reserved);
                Err(error.to_string())
            }
        };
        Some((attempts, asked))
    }

    fn headers(&self, case: &Case, candidate: &Candidate) -> Result<HeaderMap, ClientError> {
        let mut headers = self.tags(&candidate.name)?;
        if let Some(prompt) = &candidate.prompt {
            let prompt = HeaderValue::from_str(prompt).map_err(|_| ClientError::Header("prompt's name"))?;
            headers.insert("x-tollgate-prompt", prompt);
        }
        if !case.variables.is_empty() {
            let variables = ascii_json(&Value::Object(case.variables.clone()));
            let variables = HeaderValue::from_str(&variables).map_err(|_| ClientError::Header("variables"))?;
            headers.insert("x-tollgate-vars", variables);
        }
        Ok(headers)
    }

    /// So that what evaluations cost can be told apart.
    fn tags(&self, candidate: &str) -> Result<HeaderMap, ClientError> {
        let word = |text: &str| -> String {
            text.chars().map(|c| if c.is_ascii_alphanumeric() || "-_.@/".contains(c) { c } else { '-' }).collect()
        };
        let tags = format!("eval={},candidate={}", word(&self.suite.name), word(candidate));
        let tags = HeaderValue::from_str(&tags).map_err(|_| ClientError::Header("suite's name"))?;
        Ok(HeaderMap::from_iter([(http::HeaderName::from_static("x-tollgate-tags"), tags)]))
    }

    fn cached_embedding(&self, text: &str) -> Option<Vec<f64>> {
        self.embeddings.lock().unwrap_or_else(PoisonError::into_inner).get(text).cloned()
    }

    fn cache_embedding(&self, text: &str, vector: &[f64]) {
        self.embeddings.lock().unwrap_or_else(PoisonError::into_inner).insert(text.to_owned(), vector.to_vec());
    }
}

fn is_recorded(suite: &Suite, candidate: &str) -> bool {
    suite.candidates.iter().any(|known| known.recorded && known.name == candidate)
}

/// The request of a case to a candidate: the case's parameters, then the candidate's.
fn request(case: &Case, candidate: &Candidate) -> Value {
    let system = candidate.system.iter().map(|text| json!({"role": "system", "content": text}));
    let messages: Vec<Value> = system.chain(case.messages.iter().cloned()).collect();
    let mut body =
        Map::from_iter([("model".to_owned(), json!(candidate.model)), ("messages".to_owned(), json!(messages))]);
    let parameters = case.parameters.iter().chain(&candidate.parameters);
    body.extend(parameters.map(|(name, value)| (name.clone(), value.clone())));
    Value::Object(body)
}

/// Takes what a reply says.
fn take(row: &mut Row, reply: &Reply, spent: Spent) {
    let text = |name: &str| reply.header(name).map(str::to_owned);
    row.call = text("x-tollgate-call");
    row.model = text("x-tollgate-model");
    row.prompt = text("x-tollgate-prompt");
    row.latency_ms = Some(reply.took.as_secs_f64() * 1000.0);
    row.input_tokens = spent.usage.map(|usage| usage.input.0);
    row.output_tokens = spent.usage.map(|usage| usage.output.0);
    row.cost_nanousd = spent.cost.map(|cost| cost.0);
    row.answer = Answer::of_reply(&reply.json());
    if row.answer.is_none() {
        row.error = Some("the reply is no chat completion".to_owned());
    }
}

/// Takes what was answered at another time.
fn recall(case: &Case, row: &mut Row) {
    match &case.recorded {
        Some(recorded) => {
            row.answer = Some(recorded.answer.clone());
            row.model = recorded.model.clone();
            row.latency_ms = recorded.latency.map(|took| took.as_secs_f64() * 1000.0);
            row.input_tokens = recorded.input_tokens;
            row.output_tokens = recorded.output_tokens;
            row.cost_nanousd = recorded.cost.map(|cost| cost.0);
        }
        None => row.error = Some("no answer was recorded".to_owned()),
    }
}

/// JSON without any byte beyond ASCII, as headers want it.
fn ascii_json(value: &Value) -> String {
    let mut text = String::new();
    for c in value.to_string().chars() {
        match c {
            ' '..='~' => text.push(c),
            c => {
                let mut units = [0; 2];
                c.encode_utf16(&mut units).iter().for_each(|unit| text += &format!("\\u{unit:04x}"));
            }
        }
    }
    text
}

/// A row's latency.
fn latency_of(row: &Row) -> Option<Duration> {
    Duration::try_from_secs_f64(row.latency_ms? / 1000.0).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variables_survive_a_header() {
        let variables = json!({"name": "Jürgen 🎈\u{7f}", "lines": "a\nb"});
        let text = ascii_json(&variables);
        assert!(text.bytes().all(|byte| (b' '..=b'~').contains(&byte)), "{text}");
        assert_eq!(serde_json::from_str::<Value>(&text).unwrap(), variables);
    }

    #[test]
    fn a_candidates_parameters_win_and_its_system_message_stands_first() {
        let candidate = Candidate {
            name: "c".to_owned(),
            model: "m".to_owned(),
            prompt: None,
            parameters: Map::from_iter([("temperature".to_owned(), json!(0))]),
            system: Some("Be kind.".to_owned()),
            recorded: false,
        };
        let case = Case {
            id: "1".to_owned(),
            messages: vec![json!({"role": "user", "content": "hi"})],
            variables: Map::new(),
            expected: Value::Null,
            label: Value::Null,
            parameters: Map::from_iter([("temperature".to_owned(), json!(1)), ("top_p".to_owned(), json!(0.5))]),
            tags: Vec::new(),
            recorded: None,
        };
        let body = request(&case, &candidate);
        assert_eq!((&body["model"], &body["temperature"], &body["top_p"]), (&json!("m"), &json!(0), &json!(0.5)));
        assert_eq!(body["messages"][0]["role"], "system");
        assert_eq!(body["messages"][1]["content"], "hi");
    }
}
