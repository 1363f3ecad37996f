//! What a run will cost, before it begins: prompt tokens counted, output guessed, at the prices at hand.

use jiff::Timestamp;
use serde_json::{Value, json};

use crate::{
    eval::{
        prices::Prices,
        scorers::{Scorer, judge::Judge},
        suite::{Candidate, Case, Suite},
    },
    policy::tokens::chat,
    units::{NanoUsd, Tokens},
    wire::usage::Usage,
};

/// Output of a call that sets no cap, in tokens: a guess.
const OUTPUT_TOKENS: u64 = 300;
/// Output of a verdict, in tokens: a guess.
const VERDICT_TOKENS: u64 = 80;

/// An estimate.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Estimate {
    /// What is known.
    pub cost: NanoUsd,
    /// Calls, those for scoring among them.
    pub calls: u64,
    /// Models without a price here.
    pub unpriced: Vec<String>,
}

/// What all of `suite` would cost.
#[must_use]
pub fn estimate(suite: &Suite, prices: &Prices, at: Timestamp) -> Estimate {
    let mut all = Estimate::default();
    for case in &suite.cases {
        for (i, candidate) in suite.candidates.iter().enumerate() {
            if !candidate.recorded {
                all.add(&candidate.model, call(candidate, case, prices, at), suite.repeat);
            }
            for named in &suite.scorers {
                let Scorer::Judge(judge) = &named.scorer else { continue };
                let verdicts = match (judge.pairwise, i == suite.baseline) {
                    (false, _) => 1,
                    (true, true) => 0,
                    (true, false) => 2,
                };
                for _ in 0..verdicts {
                    all.add(&judge.model, verdict(judge, case, prices, at), suite.repeat);
                }
            }
        }
    }
    all
}

/// What one call would cost; `None` without a price.
#[must_use]
pub fn call(candidate: &Candidate, case: &Case, prices: &Prices, at: Timestamp) -> Option<NanoUsd> {
    let mut body =
        json!({"messages": case.messages, "tools": case.parameters.get("tools").cloned().unwrap_or_default()});
    if let Some(system) = &candidate.system {
        body["system"] = json!(system);
    }
    let cap = ["max_completion_tokens", "max_tokens"].iter().find_map(|name| {
        let value = candidate.parameters.get(*name).or_else(|| case.parameters.get(*name));
        value.and_then(Value::as_u64)
    });
    cost(&candidate.model, &body, OUTPUT_TOKENS.min(cap.unwrap_or(u64::MAX)), prices, at)
}

/// What one verdict would cost.
fn verdict(judge: &Judge, case: &Case, prices: &Prices, at: Timestamp) -> Option<NanoUsd> {
    let answers = if judge.pairwise { 2 } else { 1 };
    let mut messages = case.messages.clone();
    messages.push(json!({"role": "system", "content": judge.rubric}));
    let body = json!({"messages": messages});
    let answers = prices.of_named(&judge.model)?.cost(&usage(answers * OUTPUT_TOKENS, 0), None, at);
    Some(cost(&judge.model, &body, VERDICT_TOKENS, prices, at)?.saturating_add(answers))
}

fn cost(model: &str, body: &Value, output: u64, prices: &Prices, at: Timestamp) -> Option<NanoUsd> {
    let price = prices.of_named(model)?;
    let counted = chat::count(body, model.rsplit('/').next().unwrap_or(model)).tokens;
    Some(price.cost(&usage(counted.0, output), None, at))
}

fn usage(input: u64, output: u64) -> Usage {
    Usage { input: Tokens(input), output: Tokens(output), ..Usage::default() }
}

impl Estimate {
    fn add(&mut self, model: &str, cost: Option<NanoUsd>, times: u32) {
        self.calls += u64::from(times);
        match cost {
            Some(cost) => self.cost = self.cost.saturating_add(NanoUsd(cost.0.saturating_mul(u64::from(times)))),
            None if self.unpriced.iter().any(|known| known == model) => {}
            None => self.unpriced.push(model.to_owned()),
        }
    }
}
