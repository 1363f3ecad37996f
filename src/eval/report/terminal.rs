//! A report for a terminal: tables of plain text, the worst cases, the gates.

use super::{CandidateFigures, DifferenceFigures, Interval, Report, ScorerInfo};
use crate::{eval::scorers::Unit, units::NanoUsd};

/// Cases that are shown.
const WORST_MAX: usize = 5;
/// Characters of a reason that are shown.
const REASON_MAX: usize = 160;

/// The report as text.
#[must_use]
pub fn text(report: &Report) -> String {
    let mut text = head(report);
    text += &scores(report);
    text += &calls(report);
    text += &worst(report);
    text += &gates(report);
    text
}

fn head(report: &Report) -> String {
    let scoring = match report.scoring_nanousd {
        0 => String::new(),
        cost => format!(", of which {} USD for scoring", NanoUsd(cost)),
    };
    let unknown = match report.unknown_costs {
        0 => String::new(),
        calls => format!(" (the cost of {calls} calls is not known)"),
    };
    let repeats = if report.repeat > 1 { format!(" × {}", report.repeat) } else { String::new() };
    let ended =
        if report.ended == "complete" { String::new() } else { format!("\nNot complete: {}.", clean(&report.ended)) };
    format!(
        "{}: {} cases{repeats}, {} candidates, {} USD{scoring}{unknown}{ended}\n\n",
        clean(&report.suite),
        report.cases.len(),
        report.candidates.len(),
        report.cost(),
    )
}

fn scores(report: &Report) -> String {
    let header = ["SCORER", "CANDIDATE", "MEAN", "95 % INTERVAL", "PASSED", "AGAINST BASELINE", ""];
    let mut rows = Vec::new();
    for scorer in &report.scorers {
        for candidate in &report.candidates {
            rows.push(score_row(report, scorer, candidate));
        }
    }
    table(&header, &rows)
}

fn score_row(report: &Report, scorer: &ScorerInfo, candidate: &CandidateFigures) -> Vec<String> {
    let found = candidate.scores.iter().find(|score| score.scorer == scorer.id);
    let (mean, interval) = shown_interval(found.and_then(|score| score.mean), scorer.unit);
    let passed = found.and_then(|score| score.passed.map(|passed| format!("{passed} of {}", score.cases)));
    let metric = match scorer.unit {
        Unit::Score => scorer.id.as_str(),
        Unit::Seconds => "latency",
        Unit::Usd => "cost_per_call",
    };
    let of = |difference: &&DifferenceFigures| difference.metric == metric && difference.candidate == candidate.name;
    let difference = report.differences.iter().find(of);
    let mut notes = Vec::new();
    if let Some(score) = found {
        if score.unscored > 0 {
            notes.push(format!("{} not scored", score.unscored));
        }
        if let Some(labels) = score.labels {
            let kappa = labels.kappa.map_or_else(String::new, |kappa| format!(", kappa {kappa:.2}"));
            notes.push(format!("agrees with {:.0} % of {} labels{kappa}", labels.observed * 100.0, labels.cases));
        }
        if let Some(agree) = score.orders_agree {
            notes.push(format!("both orders agree in {:.0} %", agree * 100.0));
        }
    }
    let baseline = if candidate.name == report.baseline { " *" } else { "" };
    vec![
        clean(&scorer.id),
        format!("{}{baseline}", clean(&candidate.name)),
        mean,
        interval,
        passed.unwrap_or_else(|| "-".to_owned()),
        difference.map_or_else(|| "-".to_owned(), |difference| against(difference, scorer.unit)),
        notes.join(", "),
    ]
}

/// A difference with its interval, and McNemar's p-value where cases are passed or failed.
#[must_use]
pub(super) fn against(found: &DifferenceFigures, unit: Unit) -> String {
    let Interval { value, low, high } = found.difference;
    let test = found.p_value.map_or_else(String::new, |p| format!(", p = {p:.3}"));
    format!("{} ({} to {}){test}", signed(value, unit), signed(low, unit), signed(high, unit))
}

fn calls(report: &Report) -> String {
    let header = ["CANDIDATE", "MODEL", "SERVED BY", "CALLS", "ERRORS", "TOKENS", "USD A CALL", "P50", "P95"];
    let seconds = |value: Option<f64>| value.map_or_else(|| "-".to_owned(), |value| quantity(value, Unit::Seconds));
    let row = |candidate: &CandidateFigures| {
        let prompt = candidate.prompt.as_ref().map(|prompt| format!(" + {prompt}")).unwrap_or_default();
        vec![
            clean(&candidate.name),
            clean(&format!("{}{prompt}", candidate.model)),
            clean(&candidate.served.join(", ")),
            candidate.calls.to_string(),
            candidate.errors.to_string(),
            format!("{}+{}", candidate.input_tokens, candidate.output_tokens),
            candidate.cost_per_call.map_or_else(|| "unknown".to_owned(), |cost| quantity(cost.value, Unit::Usd)),
            seconds(candidate.latency_p50),
            seconds(candidate.latency_p95),
        ]
    };
    format!("\n{}", table(&header, &report.candidates.iter().map(row).collect::<Vec<_>>()))
}

fn worst(report: &Report) -> String {
    let mut text = String::new();
    let failed = report.cases.iter().filter(|case| case.rows.iter().any(|row| row.passed() == Some(false)));
    for case in failed.take(WORST_MAX) {
        for row in case.rows.iter().filter(|row| row.passed() == Some(false)) {
            for (id, score) in row.scores.iter().filter(|(_, score)| score.pass == Some(false)) {
                let reason: String = clean(&score.reason).chars().take(REASON_MAX).collect();
                text += &format!("  {} · {} · {}: {reason}\n", clean(&case.id), clean(&row.candidate), clean(id));
            }
        }
    }
    if text.is_empty() { text } else { format!("\nWORST CASES\n{text}") }
}

fn gates(report: &Report) -> String {
    let line = |gate: &crate::eval::gates::Verdict| {
        let word = if gate.passed { "pass" } else { "FAIL" };
        format!("  {word}  {} ({}): {}\n", clean(&gate.gate), clean(&gate.candidate), clean(&gate.said))
    };
    let lines: String = report.gates.iter().map(line).collect();
    if lines.is_empty() { lines } else { format!("\nGATES\n{lines}") }
}

/// A mean, and its interval, in words.
pub(super) fn shown_interval(found: Option<Interval>, unit: Unit) -> (String, String) {
    match found {
        Some(found) => {
            (quantity(found.value, unit), format!("{} to {}", quantity(found.low, unit), quantity(found.high, unit)))
        }
        None => ("-".to_owned(), "-".to_owned()),
    }
}

/// A value with its unit.
pub(super) fn quantity(value: f64, unit: Unit) -> String {
    match unit {
        Unit::Score => format!("{value:.3}"),
        Unit::Seconds => format!("{value:.2} s"),
        Unit::Usd => format!("{value:.6} USD"),
    }
}

pub(super) fn signed(value: f64, unit: Unit) -> String {
    let sign = if value < 0.0 { "-" } else { "+" };
    format!("{sign}{}", quantity(value.abs(), unit))
}

/// A text without control characters: answers and names must not speak to the terminal.
pub(super) fn clean(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}

/// Columns of equal width.
pub(super) fn table(header: &[&str], rows: &[Vec<String>]) -> String {
    let header: Vec<String> = header.iter().map(|&name| name.to_owned()).collect();
    let lines: Vec<&Vec<String>> = std::iter::once(&header).chain(rows).collect();
    let width = |column: usize| lines.iter().map(|line| line[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..header.len()).map(width).collect();
    let padded = |line: &&Vec<String>| {
        let cells = line.iter().zip(&widths).map(|(cell, &width)| format!("{cell:width$}"));
        cells.collect::<Vec<_>>().join("  ").trim_end().to_owned() + "\n"
    };
    lines.iter().map(padded).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::eval::report::tests::report;

    #[test]
    fn a_report_is_tables_cases_and_gates() {
        let said = text(&report());
        for line in [
            "demo: 3 cases, 2 candidates, 0.006 USD",
            "exact   v1 *       0.333  0.061 to 0.792  1 of 3  -",
            "exact   v2         0.667  0.208 to 0.939  2 of 3  +0.333 (",
            "  2 · v1 · exact: why",
            "  pass  exact >= 0.5 (v2): exact is 0.667",
            "  FAIL  exact >= 0.9 (v2): exact is 0.667, not >= 0.900",
        ] {
            assert!(said.contains(line), "{line}\n--\n{said}");
        }
    }

    #[test]
    fn nothing_in_it_speaks_to_the_terminal() {
        let mut report = report();
        report.cases[0].rows[0].scores.get_mut("exact").unwrap().reason = "\u{1b}[2Jgone".to_owned();
        report.gates[0].said = "a\nb".to_owned();
        assert!(!text(&report).contains('\u{1b}'));
        assert!(text(&report).contains("a\u{fffd}b"));
    }
}
