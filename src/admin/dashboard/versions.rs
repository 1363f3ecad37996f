//! Two versions of a model or prompt side by side: what their calls used, what evaluations said of them, and how they differ.

use std::collections::{BTreeMap, BTreeSet};

use http::StatusCode;
use serde::Serialize;
use serde_json::{Value, json};

use super::{
    super::{
        analysis::{self, Comparison, EvaluationScores, ScoreInfo},
        calls::moment,
        registry::content,
    },
    diff::{self, Line},
    findings::{self, Cell, PATIENCE},
    visit::{Shown, Sorry, Visit, word},
};
use crate::{
    config::Snapshot,
    record::BUILT_IN_METRICS,
    registry::{Kind, compare_versions, differences},
};

/// How far back a page may look, instead of at all calls.
const SPANS: [&str; 3] = ["24h", "7d", "30d"];

/// What is compared.
struct Pair {
    kind: Kind,
    name: String,
    /// All versions, the newest first.
    all: Vec<String>,
    from: String,
    to: String,
}

/// A metric of both.
#[derive(Debug, Serialize)]
struct Row {
    metric: String,
    cells: Vec<Cell>,
}

/// What the latest evaluations of one suite said of each; `None` where none did.
#[derive(Debug, Serialize)]
struct Scores {
    suite: String,
    scorer: String,
    cells: [Option<Score>; 2],
}

/// One score.
#[derive(Debug, Serialize)]
struct Score {
    evaluation: String,
    mean: Option<String>,
    interval: Option<String>,
    passed: Option<u64>,
    cases: u64,
}

/// A field that is not the same.
#[derive(Debug, Serialize)]
struct Field {
    path: String,
    lines: Vec<Line>,
}

pub(super) async fn of_model(visit: Visit) -> Shown {
    show(&visit, Kind::Models).await
}

pub(super) async fn of_prompt(visit: Visit) -> Shown {
    show(&visit, Kind::Prompts).await
}

async fn show(visit: &Visit, kind: Kind) -> Shown {
    let pair = Pair::chosen(visit, kind)?;
    let since = visit.parameter("since");
    let mut page = json!({
        "section": kind.section(),
        "name": &pair.name,
        "all": &pair.all,
        "from": &pair.from,
        "to": &pair.to,
        "since": since,
        "spans": SPANS,
        "log": visit.calls().is_some(),
        "same": pair.from == pair.to,
        "found": null,
        "fields": fields(visit, &pair)?,
    });
    if pair.from != pair.to && visit.calls().is_some() {
        let since_ms = since.map(|text| moment("since", text, visit.now)).transpose();
        let since_ms = since_ms.map_err(|problem| visit.refused(problem))?;
        let names = [pair.from.clone(), pair.to.clone()];
        let found = analysis::compared(&visit.admin, kind, &pair.name, &names, since_ms, PATIENCE).await;
        let found = found.map_err(|problem| visit.refused(problem))?;
        page["found"] = found.map_or(Value::Null, |found| shown(&found, &names, visit));
    }
    Ok(visit.page("versions.html", page))
}

fn shown(found: &Comparison, names: &[String; 2], visit: &Visit) -> Value {
    let version = |version: &analysis::VersionReport| json!({ "users": version.users, "calls": version.calls });
    json!({
        "versions": found.versions.iter().map(version).collect::<Vec<_>>(),
        "rows": rows(found, visit),
        "scores": scores(&found.evaluations, names, visit),
        "age_s": found.age_s as u64,
    })
}

/// What the log measures first, then what is said of calls.
fn rows(found: &Comparison, visit: &Visit) -> Vec<Row> {
    let known: BTreeSet<&str> =
        found.versions.iter().flat_map(|version| version.metrics.keys().map(String::as_str)).collect();
    let said = known.into_iter().filter(|name| !BUILT_IN_METRICS.contains(name));
    let row = |metric: &str| Row {
        metric: metric.to_owned(),
        cells: found
            .versions
            .iter()
            .map(|version| findings::cell(metric, version.metrics.get(metric), visit.language))
            .collect(),
    };
    let rows = BUILT_IN_METRICS.iter().copied().chain(said).map(row);
    rows.filter(|row| row.cells.iter().any(|cell| !cell.value.is_empty())).collect()
}

/// By suite and scorer; of each version the latest, which comes first.
fn scores(evaluations: &[EvaluationScores], names: &[String; 2], visit: &Visit) -> Vec<Scores> {
    let mut found: BTreeMap<(&str, &str), [Option<Score>; 2]> = BTreeMap::new();
    for evaluation in evaluations {
        let Some(at) = names.iter().position(|name| *name == evaluation.version) else { continue };
        for info in &evaluation.scores {
            let cells = found.entry((&evaluation.suite, &info.scorer)).or_default();
            cells[at].get_or_insert_with(|| score(&evaluation.evaluation, info, visit));
        }
    }
    let of = |((suite, scorer), cells): ((&str, &str), _)| Scores {
        suite: suite.to_owned(),
        scorer: scorer.to_owned(),
        cells,
    };
    found.into_iter().map(of).collect()
}

fn score(evaluation: &str, info: &ScoreInfo, visit: &Visit) -> Score {
    let number = |name: &str| info.mean.as_ref()?[name].as_f64();
    let said = |number: f64| super::figures::decimal(number, 3, visit.language);
    let interval = number("low").zip(number("high"));
    Score {
        evaluation: evaluation.to_owned(),
        mean: number("value").map(said),
        interval: interval.map(|(low, high)| format!("{} {} {}", said(low), visit.language.say("to"), said(high))),
        passed: info.passed,
        cases: info.cases,
    }
}

/// How the two differ, field by field; `None` for who may not read prompts.
fn fields(visit: &Visit, pair: &Pair) -> Result<Option<Vec<Field>>, Sorry> {
    if !visit.may_read_bodies() {
        return Ok(None);
    }
    let registry = &visit.admin.shared.live.load_full().registry;
    let says =
        |version: &str| content(registry, pair.kind, &pair.name, version).map_err(|problem| visit.refused(problem));
    let (from, to) = (says(&pair.from)?, says(&pair.to)?);
    let found = differences((&pair.from, &from), (&pair.to, &to)).fields;
    let field = |field: crate::registry::Field| Field {
        lines: diff::lines(&text(&field.from), &text(&field.to)),
        path: field.path,
    };
    Ok(Some(found.into_iter().map(field).collect()))
}

/// A value as it reads: texts as they are, nothing where there is none.
fn text(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::String(said) => said.clone(),
        other => other.to_string(),
    }
}

// === impl Pair ===

impl Pair {
    /// The two that were chosen; else the live one and the newest other one.
    fn chosen(visit: &Visit, kind: Kind) -> Result<Pair, Sorry> {
        let name = visit.parameter("name").unwrap_or_default();
        let snapshot = visit.admin.shared.live.load_full();
        let there = versions(&snapshot, kind, name).filter(|(_, all)| all.len() > 1);
        let Some((live, all)) = there else {
            return Err(visit.sorry(StatusCode::NOT_FOUND, word("There are no two versions to compare."), name));
        };
        let other = all.iter().find(|version| **version != live).cloned().unwrap_or_default();
        let chosen = |parameter: &str, unless: &str| {
            let chosen = visit.parameter(parameter).unwrap_or(unless).to_owned();
            match all.contains(&chosen) {
                true => Ok(chosen),
                false => Err(visit.sorry(StatusCode::NOT_FOUND, word("There is no such version."), &chosen)),
            }
        };
        let (from, to) = (chosen("from", &live)?, chosen("to", &other)?);
        Ok(Pair { kind, name: name.to_owned(), all, from, to })
    }
}

/// The live version, and all that can serve.
fn versions(snapshot: &Snapshot, kind: Kind, name: &str) -> Option<(String, Vec<String>)> {
    let (live, mut all): (String, Vec<String>) = match kind {
        Kind::Models => {
            let model = snapshot.models.get(name)?;
            (model.live.to_string(), model.versions.keys().map(ToString::to_string).collect())
        }
        Kind::Prompts => {
            let prompt = snapshot.prompts.get(name)?;
            (prompt.live.to_string(), prompt.versions.keys().map(ToString::to_string).collect())
        }
    };
    all.sort_by(|one, other| compare_versions(other, one));
    Some((live, all))
}
