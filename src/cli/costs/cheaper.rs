//! Models that an evaluation found as good as a dearer one: what `tollgate costs advice` says of them.

use std::sync::Arc;

use serde_json::Value;

use super::CostsError;
use crate::store::records::ports::CallLog;

/// No worse is: by at most so much of a score, at the unfavourable end of the interval.
const MARGIN: f64 = 0.02;
/// Reports that are looked at: the latest.
const REPORTS_MAX: usize = 50;

/// A target whose calls another one could answer.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Cheaper {
    /// `provider/model` that serves now.
    pub(super) from: String,
    /// And the one that is no worse.
    pub(super) to: String,
    /// What a call costs there, as a share of what it costs now.
    pub(super) cost_ratio: f64,
    /// The suite that says so.
    pub(super) suite: String,
}

/// What the latest report of each suite says; of several ways to replace a target, the cheapest.
pub(super) async fn of_log(log: &dyn CallLog) -> Result<Vec<Cheaper>, CostsError> {
    let mut found: Vec<Cheaper> = Vec::new();
    let mut suites: Vec<Arc<str>> = Vec::new();
    for head in log.evaluations(None, None, REPORTS_MAX).await?.rows {
        if suites.contains(&head.suite) {
            continue;
        }
        suites.push(head.suite);
        let Some(evaluation) = log.evaluation(head.id).await? else { continue };
        found.extend(of_report(&serde_json::from_str(&evaluation.report).unwrap_or_default()));
    }
    found.sort_by(|one, other| one.from.cmp(&other.from).then(one.cost_ratio.total_cmp(&other.cost_ratio)));
    found.dedup_by(|later, first| later.from == first.from);
    Ok(found)
}

/// Pairs of candidates of which the cheaper one is no worse in any score. A candidate that several targets served says nothing of one.
fn of_report(report: &Value) -> Vec<Cheaper> {
    let suite = report["suite"].as_str().unwrap_or_default();
    let candidates: Vec<&Value> = report["candidates"].as_array().into_iter().flatten().collect();
    let named = |name: &Value| candidates.iter().find(|candidate| candidate["name"] == *name);
    let mut pairs: Vec<(&Value, &Value)> = Vec::new();
    for difference in report["differences"].as_array().into_iter().flatten() {
        let pair = (&difference["candidate"], &difference["reference"]);
        if !pairs.contains(&pair) {
            pairs.push(pair);
        }
    }
    let both_ways = pairs.into_iter().flat_map(|(one, other)| [(one, other, 1.0), (other, one, -1.0)]);
    let cheaper = |(better, than, sign): (&Value, &Value, f64)| {
        let (to, from) = (named(better)?, named(than)?);
        let (Some([to_target]), Some([from_target])) =
            (to["served"].as_array().map(Vec::as_slice), from["served"].as_array().map(Vec::as_slice))
        else {
            return None;
        };
        let cost = |candidate: &Value| candidate["cost_per_call"]["value"].as_f64().filter(|cost| *cost > 0.0);
        let cost_ratio = cost(to)? / cost(from)?;
        let is_good = cost_ratio < 1.0 && to_target != from_target && no_worse(report, better, than, sign);
        is_good.then(|| Cheaper {
            from: from_target.as_str().unwrap_or_default().to_owned(),
            to: to_target.as_str().unwrap_or_default().to_owned(),
            cost_ratio,
            suite: suite.to_owned(),
        })
    };
    both_ways.filter_map(cheaper).collect()
}

/// Whether each score of `one` is at most [`MARGIN`] below that of `other`, as far as the intervals of their differences tell; `sign` is
/// −1 where the report has the difference the other way round.
fn no_worse(report: &Value, one: &Value, other: &Value, sign: f64) -> bool {
    let (candidate, reference) = if sign > 0.0 { (one, other) } else { (other, one) };
    let scores = report["differences"].as_array().into_iter().flatten().filter(|difference| {
        difference["unit"] == "score" && difference["candidate"] == *candidate && difference["reference"] == *reference
    });
    let worst = scores.map(|difference| {
        let end = if sign > 0.0 { &difference["difference"]["low"] } else { &difference["difference"]["high"] };
        end.as_f64().map_or(f64::NEG_INFINITY, |end| sign * end)
    });
    worst.reduce(f64::min).is_some_and(|worst| worst >= -MARGIN)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn report(difference: [f64; 2], small_served: &[&str]) -> Value {
        let candidate = |name: &str, served: &[&str], cost: f64| json!({"name": name, "served": served, "cost_per_call": {"value": cost}});
        json!({
            "suite": "support",
            "candidates": [candidate("large", &["p/large"], 0.004), candidate("small", small_served, 0.001)],
            "differences": [
                {"metric": "exact", "unit": "score", "candidate": "small", "reference": "large",
                 "difference": {"low": difference[0], "high": difference[1]}},
                {"metric": "latency", "unit": "seconds", "candidate": "small", "reference": "large", "difference": {"low": -9.0, "high": 9.0}},
            ],
        })
    }

    #[test]
    fn a_cheaper_target_is_named_where_no_score_is_surely_much_worse() {
        let found = of_report(&report([-0.01, 0.03], &["p/small"]));
        let expected =
            Cheaper { from: "p/large".into(), to: "p/small".into(), cost_ratio: 0.25, suite: "support".into() };
        assert_eq!(found, [expected]);
        assert_eq!(of_report(&report([-0.05, 0.03], &["p/small"])), [], "it may be five points worse");
        assert_eq!(of_report(&report([-0.01, 0.03], &["p/small", "p/large"])), [], "two targets answered");
        assert_eq!(of_report(&report([-0.01, 0.03], &["p/large"])), [], "it is the same");
        assert_eq!(of_report(&Value::Null), []);
    }

    #[test]
    fn the_baseline_may_be_the_cheaper_one() {
        let mut turned = report([-0.01, 0.015], &["p/small"]);
        for difference in turned["differences"].as_array_mut().unwrap() {
            difference["candidate"] = json!("large");
            difference["reference"] = json!("small");
        }
        assert_eq!(of_report(&turned).len(), 1);
        turned["differences"][0]["difference"]["high"] = json!(0.2);
        assert_eq!(of_report(&turned), [], "large may be twenty points better");
    }
}
