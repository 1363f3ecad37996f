//! Scores an answer with every scorer of the suite; those that ask a model do so through the gateway, too.

use http::HeaderMap;
use jiff::Timestamp;
use serde_json::{Map, Value, json};

use super::{Run, latency_of, row::Row};
use crate::{
    eval::{
        answer::{Answer, text_of},
        scorers::{
            Measured, Named, Score, Scorer, Unit, expected_texts,
            judge::{self, Exhibit, Judge, Preference},
            similar,
        },
        suite::Case,
    },
    units::NanoUsd,
};

/// How often a judge is asked for a verdict that can be read.
const VERDICTS_MAX: u32 = 3;

impl Run<'_> {
    /// Scores `row`; `None` when money forbids it. `baseline` is the row to compare with.
    pub(super) async fn score(
        &self,
        case: &Case,
        row: &mut Row,
        baseline: Option<&Row>,
        is_baseline: bool,
    ) -> Option<()> {
        for named in &self.suite.scorers {
            if named.scorer.needs_expected() && case.expected.is_null() {
                continue;
            }
            let score = match (&row.answer, &row.error) {
                (Some(answer), _) => {
                    let answer = answer.clone();
                    self.score_answer(named, case, &answer, row, baseline, is_baseline).await?
                }
                (None, _) if named.scorer.unit() != Unit::Score => continue,
                (None, error) => {
                    Score::failed(format!("no answer: {}", error.as_deref().unwrap_or("nobody knows why")))
                }
            };
            row.scores.insert(named.id.clone(), score);
        }
        Some(())
    }

    async fn score_answer(
        &self,
        named: &Named,
        case: &Case,
        answer: &Answer,
        row: &mut Row,
        baseline: Option<&Row>,
        is_baseline: bool,
    ) -> Option<Score> {
        let score = match &named.scorer {
            Scorer::EmbeddingSimilarity(similarity) => self.embed(&similarity.model, case, answer, row).await?,
            // A draw with itself.
            Scorer::Judge(judge) if judge.pairwise && is_baseline => {
                Score { preference: Some(Preference::Tie), ..Score::of(Preference::Tie.value(), "the baseline itself") }
            }
            Scorer::Judge(judge) if judge.pairwise => self.compare(judge, case, answer, row, baseline).await?,
            Scorer::Judge(judge) => self.judge(judge, case, answer, row).await?,
            Scorer::Latency(_) if row.latency_ms.is_none() => Score::missing("how long it took was not recorded"),
            _ => {
                let latency = latency_of(row).unwrap_or_default();
                let measured = Measured { latency, cost: row.cost_nanousd.map(NanoUsd) };
                return named.score(&case.expected, answer, measured);
            }
        };
        Some(match named.scorer {
            Scorer::Latency(_) => score,
            _ => score.against(named.threshold),
        })
    }

    // === judges ===

    async fn judge(&self, judge: &Judge, case: &Case, answer: &Answer, row: &mut Row) -> Option<Score> {
        let question = transcript(&case.messages);
        let said = shown(answer);
        let exhibit = Exhibit { question: &question, expected: &case.expected, answer: &said };
        let verdict = self.verdict(judge, judge.ask_score(&exhibit), row, |reply| judge.read_score(reply)).await?;
        Some(match verdict {
            Ok((score, reason)) => Score::of(score, reason),
            Err(why) => Score::missing(why),
        })
    }

    async fn compare(
        &self,
        judge: &Judge,
        case: &Case,
        answer: &Answer,
        row: &mut Row,
        baseline: Option<&Row>,
    ) -> Option<Score> {
        let Some(other) = baseline.and_then(|row| row.answer.as_ref()) else {
            return Some(Score::missing("the baseline has no answer to compare with"));
        };
        let question = transcript(&case.messages);
        let (own, other) = (shown(answer), shown(other));
        let exhibit = Exhibit { question: &question, expected: &case.expected, answer: &own };
        let as_first = judge.ask_preference(&exhibit, &own, &other);
        let as_first = self.verdict(judge, as_first, row, Judge::read_preference).await?;
        let as_second = judge.ask_preference(&exhibit, &other, &own);
        let as_second = self.verdict(judge, as_second, row, Judge::read_preference).await?;
        Some(match (as_first, as_second) {
            (Ok(as_first), Ok(as_second)) => judge::pairwise_score(&as_first, &as_second),
            (Err(why), _) | (_, Err(why)) => Score::missing(why),
        })
    }

    /// Asks until the verdict can be read; the inner error says why there is none.
    async fn verdict<V>(
        &self,
        judge: &Judge,
        mut messages: Vec<Value>,
        row: &mut Row,
        read: impl Fn(&str) -> Result<V, String>,
    ) -> Option<Result<V, String>> {
        let mut why = String::new();
        for _ in 0..VERDICTS_MAX {
            let mut body =
                Map::from_iter([("model".to_owned(), json!(judge.model)), ("messages".to_owned(), json!(messages))]);
            body.extend(judge.parameters.clone());
            let reply = match self.scoring_call("/v1/chat/completions", &Value::Object(body), row).await? {
                Ok(reply) => reply,
                Err(error) => return Some(Err(format!("the judge does not answer: {error}"))),
            };
            let said = Answer::of_reply(&reply).unwrap_or_default().text;
            match read(&said) {
                Ok(verdict) => return Some(Ok(verdict)),
                Err(error) => why = error,
            }
            messages = judge::ask_again(messages, &said, &why);
        }
        Some(Err(format!("the judge's verdict cannot be read: {why}")))
    }

    /// A call that scoring needs: its cost is counted apart from the candidate's.
    async fn scoring_call(&self, path: &str, body: &Value, row: &mut Row) -> Option<Result<Value, String>> {
        let headers = self.tags("scoring").unwrap_or_else(|_| HeaderMap::new());
        let (_, asked) = self.paid(path, &headers, body, self.price_of(body)).await?;
        Some(asked.map(|(reply, spent)| {
            match spent.cost {
                Some(cost) => row.scoring_nanousd = row.scoring_nanousd.saturating_add(cost.0),
                None => row.scoring_unknown += 1,
            }
            reply.json()
        }))
    }

    /// What the tokens that are sent cost: verdicts and embeddings are short.
    fn price_of(&self, body: &Value) -> Option<NanoUsd> {
        let model = body["model"].as_str()?;
        let price = self.prices.of_named(model)?;
        let input = crate::policy::tokens::chat::count(body, model).tokens;
        let usage = crate::wire::usage::Usage { input, ..Default::default() };
        Some(price.cost(&usage, None, Timestamp::now()))
    }

    // === embeddings ===

    async fn embed(&self, model: &str, case: &Case, answer: &Answer, row: &mut Row) -> Option<Score> {
        if answer.text.trim().is_empty() {
            return Some(Score::failed("the answer has no text"));
        }
        let said = match self.embedding(model, &answer.text, row).await? {
            Ok(vector) => vector,
            Err(why) => return Some(Score::missing(why)),
        };
        let mut best: Option<f64> = None;
        for wanted in expected_texts(&case.expected) {
            let wanted = match self.embedding(model, &wanted, row).await? {
                Ok(vector) => vector,
                Err(why) => return Some(Score::missing(why)),
            };
            let Some(near) = similar::cosine(&said, &wanted) else {
                return Some(Score::missing("the embeddings cannot be compared"));
            };
            best = Some(best.map_or(near, |best| best.max(near)));
        }
        Some(best.map_or_else(
            || Score::missing("the case expects no text"),
            |best| Score::of(best, format!("cosine {best:.3}")),
        ))
    }

    async fn embedding(&self, model: &str, text: &str, row: &mut Row) -> Option<Result<Vec<f64>, String>> {
        let key = format!("{model}\0{text}");
        if let Some(known) = self.cached_embedding(&key) {
            return Some(Ok(known));
        }
        let body = json!({"model": model, "input": text, "encoding_format": "float"});
        let reply = match self.scoring_call("/v1/embeddings", &body, row).await? {
            Ok(reply) => reply,
            Err(error) => return Some(Err(format!("no embedding: {error}"))),
        };
        let vector = reply["data"][0]["embedding"].as_array().map(Vec::as_slice).unwrap_or_default();
        let vector: Option<Vec<f64>> = vector.iter().map(Value::as_f64).collect();
        let Some(vector) = vector.filter(|vector| !vector.is_empty()) else {
            return Some(Err("the reply of the embedding model holds no vector of numbers".to_owned()));
        };
        self.cache_embedding(&key, &vector);
        Some(Ok(vector))
    }
}

/// What was asked, for a judge: a single message as it is, several with their roles.
fn transcript(messages: &[Value]) -> String {
    match messages {
        [one] => text_of(&one["content"]),
        several => {
            let line = |message: &Value| {
                format!("{}: {}", message["role"].as_str().unwrap_or_default(), text_of(&message["content"]))
            };
            several.iter().map(line).collect::<Vec<_>>().join("\n")
        }
    }
}

/// An answer, for a judge: its text, and the tools that it calls.
fn shown(answer: &Answer) -> String {
    let calls = answer.tool_calls.iter().map(|call| format!("\n[calls the tool {}({})]", call.name, call.arguments));
    format!("{}{}", answer.text, calls.collect::<String>()).trim().to_owned()
}
