//! Evaluations: the reports that were kept, and one of them: gates, scores, calls, cases.

use axum::extract::Path;
use http::StatusCode;
use serde_json::{Value, json};

use super::{
    figures,
    language::Language,
    visit::{Shown, Visit, word},
};
use crate::store::{ports::StoreError, records::evaluations::EvaluationHead};

/// Evaluations of one page.
const PAGE: usize = 50;
/// Cases of a report that are shown.
const CASES_MAX: usize = 200;

/// A page of evaluations.
pub(super) async fn list(visit: Visit) -> Shown {
    let Some(calls) = visit.calls() else { return Ok(visit.page("evaluations.html", json!({ "log": false }))) };
    let after = visit.parameter("after").map(Into::into);
    let suite = visit.parameter("suite").map(str::to_owned);
    let found = calls.log.evaluations(suite, after, PAGE).await;
    let found = found.map_err(|error: StoreError| visit.store_away(&error))?;
    let rows: Vec<Value> = found.rows.iter().map(row).collect();
    let suite = visit.parameter("suite");
    Ok(visit.page("evaluations.html", json!({ "log": true, "rows": rows, "next": found.next, "suite": suite })))
}

/// One report.
pub(super) async fn show(visit: Visit, Path(id): Path<String>) -> Shown {
    let Some(calls) = visit.calls() else { return Ok(visit.page("evaluations.html", json!({ "log": false }))) };
    let found = calls.log.evaluation(id.as_str().into()).await;
    let found = found.map_err(|error: StoreError| visit.store_away(&error))?;
    let nothing = || visit.sorry(StatusCode::NOT_FOUND, word("There is no such evaluation."), &id);
    let report: Value = found.and_then(|found| serde_json::from_str(&found.report).ok()).ok_or_else(nothing)?;
    let suite = report["suite"].as_str().map(str::to_owned);
    let of_suite = calls.log.evaluations(suite, None, PAGE).await;
    let of_suite = of_suite.map_err(|error: StoreError| visit.store_away(&error))?;
    let others: Vec<Value> = of_suite.rows.iter().filter(|head| *head.id != *id).map(row).collect();
    Ok(visit.page("evaluation.html", json!({ "report": shown(report, visit.language), "id": id, "others": others })))
}

fn row(head: &EvaluationHead) -> Value {
    json!({ "id": head.id, "suite": head.suite, "candidate": head.candidate, "created_ms": head.created_ms })
}

/// The report with what the page needs and cannot work out: scores in words, and no more cases than can be read.
fn shown(mut report: Value, language: Language) -> Value {
    let scorers = report["scorers"].as_array().cloned().unwrap_or_default();
    let candidates = report["candidates"].as_array().cloned().unwrap_or_default();
    let mut scores = Vec::new();
    for scorer in &scorers {
        scores.extend(candidates.iter().map(|candidate| score(&report, scorer, candidate, language)));
    }
    report["scores"] = json!(scores);
    if let Some(cases) = report["cases"].as_array_mut() {
        let all = cases.len();
        cases.truncate(CASES_MAX);
        cases.iter_mut().for_each(mark);
        report["cases_left_out"] = json!(all - all.min(CASES_MAX));
    }
    report
}

fn score(report: &Value, scorer: &Value, candidate: &Value, language: Language) -> Value {
    let (id, unit) = (&scorer["id"], scorer["unit"].as_str().unwrap_or_default());
    let metric = match unit {
        "seconds" => "latency",
        "usd" => "cost_per_call",
        _ => id.as_str().unwrap_or_default(),
    };
    let of = |list: &Value, is: &dyn Fn(&Value) -> bool| {
        list.as_array().and_then(|list| list.iter().find(|one| is(one)).cloned()).unwrap_or_default()
    };
    let found = of(&candidate["scores"], &|one| one["scorer"] == *id);
    let against = of(&report["differences"], &|one| one["metric"] == metric && one["candidate"] == candidate["name"]);
    json!({
        "scorer": id,
        "candidate": candidate["name"],
        "is_baseline": candidate["name"] == report["baseline"],
        "mean": words(&found["mean"]["value"], unit, false, language),
        "low": words(&found["mean"]["low"], unit, false, language),
        "high": words(&found["mean"]["high"], unit, false, language),
        "passed": found["passed"],
        "cases": found["cases"],
        "unscored": found["unscored"],
        "difference": words(&against["difference"]["value"], unit, true, language),
        "difference_low": words(&against["difference"]["low"], unit, true, language),
        "difference_high": words(&against["difference"]["high"], unit, true, language),
        "p_value": against["p_value"].as_f64().map(|p| figures::decimal(p, 3, language)),
    })
}

/// A figure in its unit; with its sign where it is a difference.
pub(super) fn words(value: &Value, unit: &str, signed: bool, language: Language) -> Option<String> {
    let value = value.as_f64()?;
    let sign = match (signed, value < 0.0) {
        (true, false) => "+",
        (_, true) => "−",
        (false, false) => "",
    };
    let number = |decimals| figures::decimal(value.abs(), decimals, language);
    Some(match unit {
        "seconds" => format!("{sign}{} s", number(2)),
        "usd" => format!("{sign}{} USD", number(6)),
        _ => format!("{sign}{}", number(3)),
    })
}

/// Says of a case whether one of its answers failed.
fn mark(case: &mut Value) {
    let failed = |row: &Value| {
        let scores = row["scores"].as_object();
        scores.is_some_and(|scores| scores.values().any(|score| score["pass"] == false))
    };
    case["failed"] = json!(case["rows"].as_array().is_some_and(|rows| rows.iter().any(failed)));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_is_shown_by_scorer_and_candidate() {
        let report = json!({
            "baseline": "v1",
            "scorers": [{"id": "exact", "unit": "score"}, {"id": "latency", "unit": "seconds"}],
            "candidates": [{"name": "v2", "scores": [{"scorer": "exact", "mean": {"value": 0.5, "low": 0.25, "high": 0.75}, "passed": 1, "cases": 2}]}],
            "differences": [{"metric": "latency", "candidate": "v2", "difference": {"value": -0.5, "low": -1.0, "high": 0.125}}],
            "cases": [{"rows": [{"scores": {"exact": {"pass": false}}}]}, {"rows": []}],
        });
        let shown = shown(report, Language::English);
        assert_eq!((&shown["scores"][0]["mean"], &shown["scores"][0]["difference"]), (&json!("0.500"), &Value::Null));
        assert_eq!((&shown["scores"][1]["mean"], &shown["scores"][1]["difference"]), (&Value::Null, &json!("−0.50 s")));
        assert_eq!(shown["scores"][1]["difference_high"], "+0.12 s");
        assert_eq!((&shown["cases"][0]["failed"], &shown["cases"][1]["failed"]), (&json!(true), &json!(false)));
    }

    #[test]
    fn a_report_without_anything_in_it_is_shown_all_the_same() {
        assert_eq!(shown(json!({}), Language::German)["scores"], json!([]));
    }
}
