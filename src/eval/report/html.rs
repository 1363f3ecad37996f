//! A report as one HTML file: no script, no asset from elsewhere, light and dark, everything that a model said escaped.

use minijinja::{AutoEscape, Environment, context};
use serde::Serialize;

use super::{CandidateFigures, Report, ScorerInfo, terminal};
use crate::{
    eval::{run::row::Row, scorers::Unit},
    units::NanoUsd,
};

/// Cases that are shown; the JSON has all of them.
const CASES_MAX: usize = 500;
/// Characters of an answer that are shown.
const TEXT_MAX: usize = 4_000;
/// Characters of a question in its case's title.
const TITLE_MAX: usize = 120;

const PAGE: &str = include_str!("page.html");
const FIGURES: &str = include_str!("figures.html");

/// The report as a page.
///
/// # Panics
/// Never: the templates are constant, and tests render them.
#[must_use]
pub fn page(report: &Report) -> String {
    let mut templates = Environment::new();
    templates.set_auto_escape_callback(|_| AutoEscape::Html);
    for (name, source) in [("page.html", PAGE), ("figures.html", FIGURES)] {
        templates.add_template(name, source).expect("a constant template that a test renders");
    }
    let template = templates.get_template("page.html").expect("added above");
    let view = View::of(report);
    template
        .render(context! { report => minijinja::value::Serde(&view) })
        .expect("a template that a test renders takes any view")
}

/// A report in words.
#[derive(Debug, Serialize)]
struct View<'r> {
    suite: &'r str,
    started: &'r str,
    finished: &'r str,
    ended: &'r str,
    is_complete: bool,
    passed: bool,
    baseline: &'r str,
    tollgate: &'r str,
    fingerprint: &'r str,
    cost: String,
    scoring: Option<String>,
    unknown_costs: u64,
    repeat: u32,
    all_cases: usize,
    scores: Vec<ScoreView<'r>>,
    candidates: Vec<CandidateView<'r>>,
    gates: &'r [crate::eval::gates::Verdict],
    cases: Vec<CaseView<'r>>,
}

#[derive(Debug, Serialize)]
struct ScoreView<'r> {
    scorer: &'r str,
    candidate: &'r str,
    is_baseline: bool,
    mean: String,
    interval: String,
    passed: String,
    against: String,
    /// From 0 to 100, for a bar; of scores only.
    bar: Option<[f64; 3]>,
    unscored: u64,
    labels: Option<String>,
    orders: Option<String>,
}

#[derive(Debug, Serialize)]
struct CandidateView<'r> {
    name: &'r str,
    model: &'r str,
    prompt: Option<&'r str>,
    served: String,
    calls: u64,
    errors: u64,
    input_tokens: u64,
    output_tokens: u64,
    cost_per_call: String,
    p50: String,
    p95: String,
}

#[derive(Debug, Serialize)]
struct CaseView<'r> {
    id: &'r str,
    title: String,
    question: String,
    expected: Option<String>,
    tags: &'r [String],
    failed: bool,
    rows: Vec<RowView<'r>>,
}

#[derive(Debug, Serialize)]
struct RowView<'r> {
    candidate: &'r str,
    answer: String,
    error: Option<&'r str>,
    model: Option<&'r str>,
    call: Option<&'r str>,
    latency: Option<String>,
    cost: Option<String>,
    scores: Vec<RowScore<'r>>,
}

#[derive(Debug, Serialize)]
struct RowScore<'r> {
    id: &'r str,
    value: String,
    pass: Option<bool>,
    reason: &'r str,
}

impl<'r> View<'r> {
    fn of(report: &'r Report) -> View<'r> {
        let pairs = report.scorers.iter().flat_map(|scorer| report.candidates.iter().map(move |one| (scorer, one)));
        View {
            suite: &report.suite,
            started: &report.started,
            finished: &report.finished,
            ended: &report.ended,
            is_complete: report.ended == "complete",
            passed: report.passed,
            baseline: &report.baseline,
            tollgate: &report.tollgate,
            fingerprint: &report.fingerprint,
            cost: report.cost().to_string(),
            scoring: (report.scoring_nanousd > 0).then(|| NanoUsd(report.scoring_nanousd).to_string()),
            unknown_costs: report.unknown_costs,
            repeat: report.repeat,
            all_cases: report.cases.len(),
            scores: pairs.map(|(scorer, candidate)| score(report, scorer, candidate)).collect(),
            candidates: report.candidates.iter().map(candidate_view).collect(),
            gates: &report.gates,
            cases: report.cases.iter().take(CASES_MAX).map(|case| case_view(report, case)).collect(),
        }
    }
}

fn score<'r>(report: &'r Report, scorer: &'r ScorerInfo, candidate: &'r CandidateFigures) -> ScoreView<'r> {
    let found = candidate.scores.iter().find(|score| score.scorer == scorer.id);
    let mean = found.and_then(|score| score.mean);
    let (shown, interval) = terminal::shown_interval(mean, scorer.unit);
    let metric = match scorer.unit {
        Unit::Score => scorer.id.as_str(),
        Unit::Seconds => "latency",
        Unit::Usd => "cost_per_call",
    };
    let difference = report.differences.iter().find(|one| one.metric == metric && one.candidate == candidate.name);
    let percent = |value: f64| (value * 100.0).clamp(0.0, 100.0);
    ScoreView {
        scorer: &scorer.id,
        candidate: &candidate.name,
        is_baseline: candidate.name == report.baseline,
        mean: shown,
        interval,
        passed: found
            .and_then(|score| score.passed.map(|passed| format!("{passed} of {}", score.cases)))
            .unwrap_or_default(),
        against: difference.map(|difference| terminal::against(difference, scorer.unit)).unwrap_or_default(),
        bar: mean
            .filter(|_| scorer.unit == Unit::Score)
            .map(|mean| [percent(mean.value), percent(mean.low), percent(mean.high - mean.low)]),
        unscored: found.map_or(0, |score| score.unscored),
        labels: found.and_then(|score| score.labels).map(|labels| {
            let kappa = labels.kappa.map_or_else(String::new, |kappa| format!(", kappa {kappa:.2}"));
            format!("{:.0} % of {} labels{kappa}", labels.observed * 100.0, labels.cases)
        }),
        orders: found.and_then(|score| score.orders_agree).map(|agree| format!("{:.0} %", agree * 100.0)),
    }
}

fn candidate_view(candidate: &CandidateFigures) -> CandidateView<'_> {
    let seconds = |value: Option<f64>| {
        value.map_or_else(|| "unknown".to_owned(), |value| terminal::quantity(value, Unit::Seconds))
    };
    CandidateView {
        name: &candidate.name,
        model: &candidate.model,
        prompt: candidate.prompt.as_deref(),
        served: candidate.served.join(", "),
        calls: candidate.calls,
        errors: candidate.errors,
        input_tokens: candidate.input_tokens,
        output_tokens: candidate.output_tokens,
        cost_per_call: candidate
            .cost_per_call
            .map_or_else(|| "unknown".to_owned(), |cost| terminal::quantity(cost.value, Unit::Usd)),
        p50: seconds(candidate.latency_p50),
        p95: seconds(candidate.latency_p95),
    }
}

fn case_view<'r>(report: &'r Report, case: &'r super::CaseResult) -> CaseView<'r> {
    CaseView {
        id: &case.id,
        title: case.question.chars().take(TITLE_MAX).collect(),
        question: cut(&case.question),
        expected: match &case.expected {
            serde_json::Value::Null => None,
            serde_json::Value::String(text) => Some(cut(text)),
            other => Some(cut(&other.to_string())),
        },
        tags: &case.tags,
        failed: case.rows.iter().any(|row| row.passed() == Some(false)),
        rows: case.rows.iter().map(|row| row_view(report, row)).collect(),
    }
}

fn row_view<'r>(report: &'r Report, row: &'r Row) -> RowView<'r> {
    let unit =
        |id: &str| report.scorers.iter().find(|scorer| scorer.id == id).map_or(Unit::Score, |scorer| scorer.unit);
    let answer = row.answer.as_ref();
    let calls = answer.into_iter().flat_map(|answer| &answer.tool_calls);
    let calls: String = calls.map(|call| format!("\n→ {}({})", call.name, call.arguments)).collect();
    RowView {
        candidate: &row.candidate,
        answer: cut(&format!("{}{calls}", answer.map(|answer| answer.text.as_str()).unwrap_or_default())),
        error: row.error.as_deref(),
        model: row.model.as_deref(),
        call: row.call.as_deref(),
        latency: row.latency_ms.map(|ms| terminal::quantity(ms / 1000.0, Unit::Seconds)),
        cost: row.cost_nanousd.map(|cost| NanoUsd(cost).to_string()),
        scores: row
            .scores
            .iter()
            .map(|(id, score)| RowScore {
                id,
                value: score.value.map_or_else(|| "-".to_owned(), |value| terminal::quantity(value, unit(id))),
                pass: score.pass,
                reason: &score.reason,
            })
            .collect(),
    }
}

fn cut(text: &str) -> String {
    match text.char_indices().nth(TEXT_MAX) {
        Some((at, _)) => format!("{}…", &text[..at]),
        None => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::eval::report::tests::report;

    #[test]
    fn everything_that_was_said_is_escaped() {
        let mut report = report();
        let evil = "<script>alert(1)</script>\" onload='x'";
        report.suite = evil.to_owned();
        report.ended = evil.to_owned();
        report.gates[0].said = evil.to_owned();
        report.candidates[1].served = vec![evil.to_owned()];
        for case in &mut report.cases {
            (case.id, case.question) = (evil.to_owned(), evil.to_owned());
            (case.expected, case.tags) = (serde_json::json!(evil), vec![evil.to_owned()]);
            for row in &mut case.rows {
                row.answer = Some(crate::eval::answer::Answer::text(evil));
                row.error = Some(evil.to_owned());
                row.model = Some(evil.to_owned());
                row.scores.values_mut().for_each(|score| score.reason = evil.to_owned());
            }
        }
        let page = page(&report);
        assert!(!page.contains("<script") && !page.contains("onload='x'"), "{page}");
        assert!(page.contains("&lt;script&gt;alert(1)"));
    }

    #[test]
    fn a_page_stands_alone_and_says_what_counts() {
        let page = page(&report());
        for part in [
            "<!doctype html>",
            "prefers-color-scheme: dark",
            "exact &gt;= 0.9",
            "not &gt;= 0.900",
            "+0.333",
            "&lt;b&gt;2?",
        ] {
            assert!(page.contains(part), "{part}\n--\n{page}");
        }
        for outside in ["http://", "https://", "src=", "@import", "url("] {
            assert!(!page.contains(outside), "{outside}");
        }
    }
}
