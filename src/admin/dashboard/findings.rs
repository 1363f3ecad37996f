//! What an experiment decided, as its page shows it: the verdict, intervals drawn and in figures, guardrails.

use std::time::Duration;

use serde::Serialize;

use super::{
    figures,
    language::Language,
    units::{self, Growth},
    visit::Visit,
};
use crate::{
    analysis::{Analyst, Course, Findings, figures::Trouble},
    policy::{
        experiment::{Experiment, Phase},
        stats::{
            self, Estimate, Kind,
            guardrail::State,
            report::{ArmReport, MetricReport},
            srm::Split,
        },
    },
    record::COST_PER,
};

/// How long a page waits for figures; it shows what was counted before, or that counting goes on.
pub(super) const PATIENCE: Duration = Duration::from_millis(300);
/// What is shown of every experiment.
const ALWAYS: [&str; 4] = ["error_rate", "cost_per_call", "latency", "tokens"];
/// The drawing's width, in its own units, and the room that is left at both ends.
const WIDTH: f64 = 400.0;
const ROOM: f64 = 12.0;

/// What is shown of an experiment.
#[derive(Debug, Serialize)]
pub(super) struct Shown {
    /// `better`, `worse`, … as in the API.
    kind: String,
    sentence: String,
    split: &'static str,
    split_sentence: String,
    units: u64,
    age_s: u64,
    goal: Option<String>,
    arms: Vec<String>,
    rows: Vec<Row>,
    guardrails: Vec<Guarded>,
    forest: Option<Forest>,
    growth: Option<Growth>,
}

/// One metric over the arms.
#[derive(Debug, Serialize)]
struct Row {
    metric: String,
    is_goal: bool,
    cells: Vec<Cell>,
}

/// What a metric is of one arm, alone and against the first one; empty where it is not known.
#[derive(Debug, Serialize)]
pub(super) struct Cell {
    pub(super) value: String,
    interval: String,
    difference: String,
}

#[derive(Debug, Serialize)]
struct Guarded {
    arm: String,
    sentence: String,
    state: &'static str,
}

/// The goal's differences from the control, drawn: one line an arm, a mark at the estimate, and where nothing differs.
#[derive(Debug, Serialize)]
struct Forest {
    zero: f64,
    lines: Vec<Line>,
}

#[derive(Debug, Serialize)]
struct Line {
    arm: String,
    low: f64,
    high: f64,
    at: f64,
    said: String,
}

/// What is known of `experiment` by now; `None` while it is counted for the first time.
///
/// # Errors
/// When the log does not answer.
pub(super) async fn of(
    analyst: &Analyst,
    experiment: &Experiment,
    course: &Course,
    visit: &Visit,
) -> Result<Option<Shown>, Trouble> {
    let words = match visit.language {
        Language::English => stats::Language::English,
        Language::German => stats::Language::German,
    };
    match analyst.findings(experiment, course, words, PATIENCE).await {
        Ok(findings) => Ok(Some(shown(experiment, &findings, visit))),
        Err(Trouble::Counting) => Ok(None),
        Err(trouble) => Err(trouble),
    }
}

fn shown(experiment: &Experiment, Findings { report, counted }: &Findings, visit: &Visit) -> Shown {
    let language = visit.language;
    let goal = experiment.goal.as_ref().map(|goal| goal.metric.as_str());
    // Of one that is over, nothing comes after its last unit.
    let until_ms = if experiment.phase == Phase::Over { 0 } else { visit.now_ms() };
    let kind = serde_json::to_value(&report.verdict.outcome).unwrap_or_default();
    let guardrails = report.arms.iter().flat_map(|arm| {
        arm.guardrails.iter().map(|guardrail| Guarded {
            arm: arm.name.clone(),
            sentence: guardrail.sentence.clone(),
            state: match guardrail.state {
                State::Breached => "breached",
                State::Held => "held",
                State::Undecided => "undecided",
            },
        })
    });
    Shown {
        kind: kind["kind"].as_str().unwrap_or_default().to_owned(),
        sentence: report.verdict.sentence.clone(),
        split: match report.split.split {
            Split::Sound => "sound",
            Split::Suspicious => "suspicious",
            Split::Broken => "broken",
        },
        split_sentence: report.split_sentence.clone(),
        units: report.units,
        age_s: counted.age().as_secs(),
        goal: goal.map(str::to_owned),
        arms: report.arms.iter().map(|arm| arm.name.clone()).collect(),
        rows: rows(experiment, &report.arms, language),
        guardrails: guardrails.collect(),
        forest: goal.and_then(|goal| forest(goal, &report.arms, language)),
        growth: units::growth(experiment, &counted.arms, until_ms),
    }
}

/// The goal first, then what a success costs, then what every experiment has.
fn rows(experiment: &Experiment, arms: &[ArmReport], language: Language) -> Vec<Row> {
    let goal = experiment.goal.as_ref().map(|goal| goal.metric.clone());
    let per_success = goal.as_ref().map(|goal| format!("{COST_PER}{goal}"));
    let mut names: Vec<String> = goal.clone().into_iter().chain(per_success).collect();
    let guarded = experiment.guardrails.iter().map(|guardrail| guardrail.metric.clone());
    for name in ALWAYS.into_iter().map(str::to_owned).chain(guarded) {
        if !names.contains(&name) {
            names.push(name);
        }
    }
    let row = |metric: String| {
        let cells: Vec<Cell> = arms.iter().map(|arm| cell(&metric, arm.metrics.get(&metric), language)).collect();
        Row { is_goal: goal.as_ref() == Some(&metric), metric, cells }
    };
    let has_value = |row: &Row| row.cells.iter().any(|cell| !cell.value.is_empty());
    names.into_iter().map(row).filter(has_value).collect()
}

pub(super) fn cell(metric: &str, found: Option<&MetricReport>, language: Language) -> Cell {
    let Some(MetricReport { kind, value: Some(value), estimate, difference, relative, .. }) = found else {
        return Cell { value: String::new(), interval: String::new(), difference: String::new() };
    };
    let value_of = |number: f64| quantity(metric, *kind, number, language);
    Cell {
        value: value_of(*value),
        interval: estimate.map_or_else(String::new, |of| span(&of, &value_of, language)),
        difference: difference_of(*kind, *difference, *relative, language).unwrap_or_default(),
    }
}

/// `41.2% to 48.8%`.
fn span(of: &Estimate, said: &impl Fn(f64) -> String, language: Language) -> String {
    format!("{} {} {}", said(of.low), language.say("to"), said(of.high))
}

/// A number in its metric's unit.
fn quantity(metric: &str, kind: Kind, number: f64, language: Language) -> String {
    match metric {
        _ if kind == Kind::Share => figures::percent(number.clamp(0.0, 1.0), language),
        // An interval's lower end may be below nothing.
        metric if metric.starts_with(COST_PER) => figures::money((number.max(0.0) * 1e9).round() as u64, language),
        "latency" | "time_to_first_token" => figures::duration((number.max(0.0) * 1e6).round() as u64, language),
        _ => signed(number, if number.abs() < 10.0 { 2 } else { 0 }, language).trim_start_matches('+').to_owned(),
    }
}

/// `+3.1 points (1.2 to 5.0)`: shares in points, amounts in percent of the control's.
fn difference_of(
    kind: Kind,
    difference: Option<Estimate>,
    relative: Option<Estimate>,
    language: Language,
) -> Option<String> {
    let (of, unit) = match kind {
        Kind::Share => (difference?, language.say("points")),
        Kind::Amount => (relative?, "%"),
    };
    let said = |number: f64| signed(number * 100.0, 1, language);
    Some(format!("{} {unit} ({} {} {})", said(of.value), said(of.low), language.say("to"), said(of.high)))
}

fn signed(number: f64, decimals: usize, language: Language) -> String {
    let sign = if number < 0.0 { "−" } else { "+" };
    format!("{sign}{}", figures::decimal(number.abs(), decimals, language))
}

fn forest(goal: &str, arms: &[ArmReport], language: Language) -> Option<Forest> {
    let drawn: Vec<(&ArmReport, Estimate, String)> = arms
        .iter()
        .filter_map(|arm| {
            let found = arm.metrics.get(goal)?;
            let of = if found.kind == Kind::Share { found.difference } else { found.relative };
            Some((arm, of?, difference_of(found.kind, found.difference, found.relative, language)?))
        })
        .collect();
    // As far to either side as the widest interval goes, so that no difference is in the middle.
    let reach = drawn.iter().flat_map(|(_, of, _)| [of.low.abs(), of.high.abs()]).fold(0.0, f64::max);
    if reach <= 0.0 {
        return None;
    }
    let place = |number: f64| ((WIDTH / 2.0 + number / reach * (WIDTH / 2.0 - ROOM)) * 10.0).round() / 10.0;
    let line = |(arm, of, said): (&ArmReport, Estimate, String)| Line {
        arm: arm.name.clone(),
        low: place(of.low),
        high: place(of.high),
        at: place(of.value),
        said,
    };
    Some(Forest { zero: place(0.0), lines: drawn.into_iter().map(line).collect() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn differences_are_said_in_points_or_percent() {
        let of = |value, low, high| Some(Estimate { value, low, high });
        let (points, percent) = (of(0.031, 0.012, 0.05), of(-0.12, -0.18, -0.06));
        let english = Language::English;
        assert_eq!(difference_of(Kind::Share, points, None, english).unwrap(), "+3.1 points (+1.2 to +5.0)");
        assert_eq!(difference_of(Kind::Amount, points, percent, english).unwrap(), "−12.0 % (−18.0 to −6.0)");
        assert_eq!(difference_of(Kind::Amount, points, None, english), None);
    }
}
