//! Two reports side by side: what one candidate of each makes of the same cases.

use std::collections::BTreeSet;

use serde::Serialize;

use super::{DifferenceFigures, Report, difference, table::Table, terminal};
use crate::eval::{
    gates::{Latency, Metric},
    run::row::Row,
    scorers::Unit,
};

/// What two reports say.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Comparison {
    /// The candidate of the first report.
    pub first: String,
    /// The candidate of the second one.
    pub second: String,
    /// Whether both ran the same cases with the same scorers: otherwise only cases with the same id are compared.
    pub same_suite: bool,
    /// Second minus first.
    pub differences: Vec<DifferenceFigures>,
}

/// Why two reports cannot be compared.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CompareError {
    /// No candidate stands in both.
    #[error("the reports have no candidate in common ({0} / {1}): name one of each with --first and --second")]
    NoCandidate(String, String),
    /// A candidate that was named is not there.
    #[error("the {0} report has no candidate `{1}`; it has {2}")]
    Unknown(&'static str, String, String),
    /// They share no case.
    #[error("the reports have no case in common that a scorer of both has scored")]
    NoCase,
}

/// Compares a candidate of `one` with one of `other`; without names, each candidate that both have.
///
/// # Errors
/// When there is nothing to compare.
pub fn compare(
    one: &Report,
    other: &Report,
    first: Option<&str>,
    second: Option<&str>,
) -> Result<Vec<Comparison>, CompareError> {
    let pairs = pairs(one, other, first, second)?;
    let all: Vec<Comparison> = pairs.into_iter().map(|(first, second)| pair(one, other, first, second)).collect();
    if all.iter().all(|comparison| comparison.differences.is_empty()) {
        return Err(CompareError::NoCase);
    }
    Ok(all)
}

fn pairs<'r>(
    one: &'r Report,
    other: &'r Report,
    first: Option<&'r str>,
    second: Option<&'r str>,
) -> Result<Vec<(&'r str, &'r str)>, CompareError> {
    let named = |which, report: &Report, name: &str| match names(report).contains(&name) {
        true => Ok(()),
        false => Err(CompareError::Unknown(which, name.to_owned(), names(report).join(", "))),
    };
    if let Some(name) = first.or(second) {
        let (first, second) = (first.unwrap_or(name), second.unwrap_or(name));
        named("first", one, first)?;
        named("second", other, second)?;
        return Ok(vec![(first, second)]);
    }
    if let ([first], [second]) = (names(one).as_slice(), names(other).as_slice()) {
        return Ok(vec![(first, second)]);
    }
    let shared: Vec<(&str, &str)> =
        names(one).into_iter().filter(|name| names(other).contains(name)).map(|name| (name, name)).collect();
    match shared.is_empty() {
        true => Err(CompareError::NoCandidate(names(one).join(", "), names(other).join(", "))),
        false => Ok(shared),
    }
}

fn names(report: &Report) -> Vec<&str> {
    report.candidates.iter().map(|candidate| candidate.name.as_str()).collect()
}

fn pair(one: &Report, other: &Report, first: &str, second: &str) -> Comparison {
    let rename = |report: &Report, candidate: &str, name: &str| -> Vec<Row> {
        let rows = report.rows().filter(|row| row.candidate == candidate);
        rows.map(|row| Row { candidate: name.to_owned(), ..row.clone() }).collect()
    };
    let rows = [rename(one, first, "first"), rename(other, second, "second")].concat();
    let table = Table::of(&rows);
    let ids = |report: &Report| -> BTreeSet<String> {
        let scores = report.scorers.iter().filter(|scorer| scorer.unit == Unit::Score);
        scores.map(|scorer| scorer.id.clone()).collect()
    };
    let (of_one, of_other) = (ids(one), ids(other));
    let scores = of_one.intersection(&of_other).map(|id| (Metric::Score(id.clone()), Unit::Score));
    let always = [(Metric::Latency(Latency::Mean), Unit::Seconds), (Metric::CostPerCall, Unit::Usd)];
    let all = scores.chain(always);
    Comparison {
        first: first.to_owned(),
        second: second.to_owned(),
        same_suite: one.fingerprint == other.fingerprint,
        differences: all.filter_map(|(metric, unit)| difference(&metric, unit, "second", "first", &table)).collect(),
    }
}

/// A comparison for a terminal.
#[must_use]
pub fn text(comparisons: &[Comparison]) -> String {
    let mut text = String::new();
    for comparison in comparisons {
        let (first, second) = (terminal::clean(&comparison.first), terminal::clean(&comparison.second));
        text += &format!("{second} (second) against {first} (first)\n");
        if !comparison.same_suite {
            text += "The two ran different suites; cases with the same id are compared.\n";
        }
        let header = ["FIGURE", "CASES", "SECOND - FIRST", "ONLY SECOND PASSED", "ONLY FIRST PASSED"];
        let count = |value: Option<u64>| value.map_or_else(|| "-".to_owned(), |value| value.to_string());
        let row = |found: &DifferenceFigures| {
            vec![
                terminal::clean(&found.metric),
                found.cases.to_string(),
                terminal::against(found, found.unit),
                count(found.only_candidate),
                count(found.only_reference),
            ]
        };
        let rows: Vec<Vec<String>> = comparison.differences.iter().map(row).collect();
        text += &format!("{}\n", terminal::table(&header, &rows));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::eval::report::tests::report;

    #[test]
    fn candidates_of_two_reports_are_paired_by_case() {
        let report = report();
        let same = compare(&report, &report, None, None).unwrap();
        assert_eq!(same.iter().map(|c| c.first.as_str()).collect::<Vec<_>>(), ["v1", "v2"]);
        assert_eq!(same[0].differences[0].difference.value, 0.0);
        let across = compare(&report, &report, Some("v1"), Some("v2")).unwrap();
        let exact = &across[0].differences[0];
        assert!((exact.difference.value - 1.0 / 3.0).abs() < 1e-9);
        assert_eq!((exact.only_candidate, exact.only_reference), (Some(1), Some(0)));
        assert!(text(&across).contains("v2 (second) against v1 (first)"));
    }

    #[test]
    fn what_cannot_be_compared_is_said() {
        let one = report();
        let mut other = one.clone();
        other.candidates.iter_mut().for_each(|candidate| candidate.name += "x");
        assert!(matches!(compare(&one, &other, None, None), Err(CompareError::NoCandidate(..))));
        assert!(matches!(compare(&one, &other, Some("v1"), Some("v3")), Err(CompareError::Unknown("second", ..))));
        let mut empty = one.clone();
        empty.cases.clear();
        assert_eq!(compare(&one, &empty, None, None), Err(CompareError::NoCase));
    }
}
