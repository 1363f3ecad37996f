//! Two reports of evaluations side by side: what a candidate of each made of the same cases.

use std::collections::BTreeMap;

use http::StatusCode;
use serde::Serialize;
use serde_json::{Value, json};

use super::{
    diff::{self, Line},
    evaluations::words,
    language::Language,
    visit::{Shown, Sorry, Visit, word},
};
use crate::{
    eval::{
        report::{
            CandidateFigures, CaseResult, DifferenceFigures, Interval, Report,
            compare::{CompareError, Comparison, compare},
        },
        run::row::Row,
        scorers::Unit,
    },
    store::{ports::StoreError, records::Calls},
};

/// Cases that are shown of each pair of candidates.
const CASES_MAX: usize = 50;

/// What two candidates made of the same cases.
#[derive(Debug, Serialize)]
struct Compared {
    first: String,
    second: String,
    same_suite: bool,
    rows: Vec<Figure>,
    /// Those that only one passed; first those that the second one fails.
    cases: Vec<Case>,
    cases_left_out: usize,
}

/// One figure of both.
#[derive(Debug, Serialize)]
struct Figure {
    metric: String,
    cases: u64,
    first: Option<Said>,
    second: Option<Said>,
    difference: Said,
    only_first: Option<u64>,
    only_second: Option<u64>,
    p_value: Option<f64>,
}

/// A figure and its interval, in words.
#[derive(Debug, Serialize)]
struct Said {
    value: Option<String>,
    low: Option<String>,
    high: Option<String>,
}

/// A case that only one of the two passed.
#[derive(Debug, Serialize)]
struct Case {
    id: String,
    question: String,
    /// Whether it is the second one that passed.
    gained: bool,
    /// How the answers differ.
    lines: Vec<Line>,
}

pub(super) async fn show(visit: Visit) -> Shown {
    let Some(calls) = visit.calls() else { return Ok(visit.page("evaluations.html", json!({ "log": false }))) };
    let (one, other) = (report(&visit, calls, "first").await?, report(&visit, calls, "second").await?);
    let chosen = |name: &str| visit.parameter(name).map(str::to_owned);
    let (first, second) = (chosen("first_candidate"), chosen("second_candidate"));
    let mut page = json!({
        "log": true,
        "first": head(&visit, "first", &one),
        "second": head(&visit, "second", &other),
        "first_candidate": &first,
        "second_candidate": &second,
    });
    let language = visit.language;
    // Intervals are drawn from the cases again and again: not beside calls.
    let found = tokio::task::spawn_blocking(move || {
        let found = compare(&one, &other, first.as_deref(), second.as_deref())?;
        let compared = |comparison| compared(&one, &other, comparison, language);
        Ok::<_, CompareError>(found.into_iter().map(compared).collect::<Vec<_>>())
    });
    match found.await {
        Ok(Ok(found)) => page["found"] = json!(found),
        Ok(Err(why)) => page["refusal"] = json!(why.to_string()),
        Err(broken) => page["refusal"] = json!(broken.to_string()),
    }
    Ok(visit.page("runs.html", page))
}

/// The report whose id is in the parameter `name`.
async fn report(visit: &Visit, calls: &Calls, name: &str) -> Result<Report, Sorry> {
    let id = visit.parameter(name).unwrap_or_default();
    let found = calls.log.evaluation(id.into()).await;
    let found = found.map_err(|error: StoreError| visit.store_away(&error))?;
    let nothing = || visit.sorry(StatusCode::NOT_FOUND, word("There is no such evaluation."), id);
    found.and_then(|found| serde_json::from_str(&found.report).ok()).ok_or_else(nothing)
}

/// What is said of a report as a whole.
fn head(visit: &Visit, name: &str, report: &Report) -> Value {
    let candidates: Vec<&str> = report.candidates.iter().map(|candidate| candidate.name.as_str()).collect();
    json!({
        "id": visit.parameter(name),
        "suite": &report.suite,
        "started": &report.started,
        "passed": report.passed,
        "candidates": candidates,
    })
}

fn compared(one: &Report, other: &Report, comparison: Comparison, language: Language) -> Compared {
    let Comparison { first, second, same_suite, differences } = comparison;
    let (of_first, of_second) = (candidate(one, &first), candidate(other, &second));
    let mut cases = changed_cases((one, &first), (other, &second));
    let all = cases.len();
    cases.truncate(CASES_MAX);
    Compared {
        same_suite,
        rows: differences.iter().map(|found| figure(found, of_first, of_second, language)).collect(),
        cases,
        cases_left_out: all.saturating_sub(CASES_MAX),
        first,
        second,
    }
}

fn candidate<'r>(report: &'r Report, name: &str) -> Option<&'r CandidateFigures> {
    report.candidates.iter().find(|candidate| candidate.name == name)
}

fn figure(
    found: &DifferenceFigures,
    first: Option<&CandidateFigures>,
    second: Option<&CandidateFigures>,
    language: Language,
) -> Figure {
    let mean =
        |of: Option<&CandidateFigures>| Some(Said::of(&mean_of(of?, &found.metric)?, found.unit, false, language));
    Figure {
        metric: found.metric.clone(),
        cases: found.cases,
        first: mean(first),
        second: mean(second),
        difference: Said::of(&found.difference, found.unit, true, language),
        only_first: found.only_reference,
        only_second: found.only_candidate,
        p_value: found.p_value,
    }
}

fn mean_of(candidate: &CandidateFigures, metric: &str) -> Option<Interval> {
    match metric {
        "latency" => candidate.latency,
        "cost_per_call" => candidate.cost_per_call,
        scorer => candidate.scores.iter().find(|score| score.scorer == scorer)?.mean,
    }
}

/// Cases that a candidate of one report passed and that of the other did not.
fn changed_cases(one: (&Report, &str), other: (&Report, &str)) -> Vec<Case> {
    let of_other: BTreeMap<&str, &CaseResult> = other.0.cases.iter().map(|case| (case.id.as_str(), case)).collect();
    let changed = one.0.cases.iter().filter_map(|case| {
        let (before, after) = (rows(case, one.1), rows(of_other.get(case.id.as_str())?, other.1));
        let (was, is) = (passed(&before)?, passed(&after)?);
        (was != is).then(|| Case {
            id: case.id.clone(),
            question: case.question.clone(),
            gained: is,
            lines: diff::lines(&said(&before), &said(&after)),
        })
    });
    let mut changed: Vec<Case> = changed.collect();
    changed.sort_by_key(|case| case.gained);
    changed
}

fn rows<'r>(case: &'r CaseResult, candidate: &str) -> Vec<&'r Row> {
    case.rows.iter().filter(|row| row.candidate == candidate).collect()
}

/// Whether more than half of a case's repeats were passed; `None` where nothing was asked for.
fn passed(rows: &[&Row]) -> Option<bool> {
    let asked: Vec<bool> = rows.iter().filter_map(|row| row.passed()).collect();
    let passed = asked.iter().filter(|passed| **passed).count();
    (!asked.is_empty()).then_some(passed * 2 > asked.len())
}

/// The first answer; else why there is none.
fn said(rows: &[&Row]) -> String {
    let Some(row) = rows.first() else { return String::new() };
    let Some(answer) = &row.answer else { return row.error.clone().unwrap_or_default() };
    let calls = answer.tool_calls.iter().map(|call| format!("\n→ {}({})", call.name, call.arguments));
    answer.text.clone() + &calls.collect::<String>()
}

// === impl Said ===

impl Said {
    fn of(found: &Interval, unit: Unit, signed: bool, language: Language) -> Said {
        let unit = match unit {
            Unit::Score => "score",
            Unit::Seconds => "seconds",
            Unit::Usd => "usd",
        };
        let said = |number: f64| words(&json!(number), unit, signed, language);
        Said { value: said(found.value), low: said(found.low), high: said(found.high) }
    }
}
