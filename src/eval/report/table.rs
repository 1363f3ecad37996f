//! The figures of a run: by case, so that repeats of one case are no independent draws, and then over cases.

use std::collections::BTreeMap;

use crate::{
    eval::{
        gates::{Difference, Figure, Figures, Latency, Metric},
        run::row::Row,
    },
    policy::stats::{
        Estimate,
        bootstrap::{self, Resampling},
        paired::{self, McNemar},
        proportion,
    },
    units::NanoUsd,
};

/// Resamples of an interval; fewer of many cases, where they tremble less and take longer.
const RESAMPLES: usize = 10_000;
const RESAMPLES_OF_MANY: usize = 2_000;
const MANY: usize = 1_000;
/// Of all intervals.
pub(super) const LEVEL: f64 = 0.95;

/// Rows by candidate and case.
#[derive(Debug, Default)]
pub struct Table<'r>(BTreeMap<&'r str, BTreeMap<&'r str, Vec<&'r Row>>>);

impl<'r> Table<'r> {
    /// The table of `rows`.
    #[must_use]
    pub fn of(rows: impl IntoIterator<Item = &'r Row>) -> Table<'r> {
        let mut table = Table::default();
        for row in rows {
            table.0.entry(&row.candidate).or_default().entry(&row.case).or_default().push(row);
        }
        table
    }

    /// The rows of a candidate.
    pub(super) fn rows(&self, candidate: &str) -> impl Iterator<Item = &'r Row> {
        self.0.get(candidate).into_iter().flat_map(BTreeMap::values).flatten().copied()
    }

    /// The mean over the repeats of each case.
    #[must_use]
    pub fn by_case(&self, candidate: &str, metric: &Metric) -> BTreeMap<&'r str, f64> {
        let Some(cases) = self.0.get(candidate) else { return BTreeMap::new() };
        let mean_of = |(case, rows): (&&'r str, &Vec<&'r Row>)| {
            let values: Vec<f64> = rows.iter().filter_map(|row| value(row, metric)).collect();
            Some((*case, mean(&values)?))
        };
        cases.iter().filter_map(mean_of).collect()
    }

    /// The mean over cases and its interval: Wilson's where each case is passed or failed, the bootstrap's otherwise.
    #[must_use]
    pub fn estimate(&self, candidate: &str, metric: &Metric) -> Option<Estimate> {
        let values: Vec<f64> = self.by_case(candidate, metric).into_values().collect();
        let is_share = !matches!(metric, Metric::CostPerCall | Metric::Latency(_));
        if is_share && values.iter().all(|value| *value == 0.0 || *value == 1.0) {
            let passed = values.iter().filter(|value| **value == 1.0).count();
            return proportion::wilson(passed as u64, values.len() as u64, LEVEL);
        }
        bootstrap::mean(&values, &resampling(values.len()))
    }

    /// The mean of the differences of cases that both have, candidate minus reference, and its bootstrap interval.
    #[must_use]
    pub fn difference(&self, candidate: &str, reference: &str, metric: &Metric) -> Option<Estimate> {
        let pairs = self.pairs(candidate, reference, metric);
        paired::difference(&pairs, &resampling(pairs.len()))
    }

    /// How many cases both have.
    #[must_use]
    pub fn shared(&self, candidate: &str, reference: &str, metric: &Metric) -> usize {
        self.pairs(candidate, reference, metric).len()
    }

    /// Of the reference and the candidate.
    fn pairs(&self, candidate: &str, reference: &str, metric: &Metric) -> Vec<(f64, f64)> {
        let of_reference = self.by_case(reference, metric);
        let of_candidate = self.by_case(candidate, metric);
        of_candidate.iter().filter_map(|(case, value)| Some((*of_reference.get(case)?, *value))).collect()
    }

    /// McNemar's test on cases passed; a case is passed when more than half of its repeats are.
    #[must_use]
    pub fn mcnemar(&self, candidate: &str, reference: &str, metric: &Metric) -> McNemar {
        let pairs = self.pairs(candidate, reference, metric);
        paired::mcnemar(pairs.into_iter().map(|(reference, candidate)| (reference > 0.5, candidate > 0.5)))
    }

    /// The latency that so many of a hundred calls keep, in seconds: the nearest rank.
    #[must_use]
    pub fn percentile(&self, candidate: &str, percentile: u8) -> Option<f64> {
        let mut all: Vec<f64> = self.rows(candidate).filter_map(|row| value(row, &LATENCY)).collect();
        all.sort_by(f64::total_cmp);
        let rank = (f64::from(percentile) / 100.0 * all.len() as f64).ceil() as usize;
        all.get(rank.saturating_sub(1)).copied()
    }

    /// The share of answers that a figure says nothing of.
    #[must_use]
    pub fn missing(&self, candidate: &str, metric: &Metric) -> f64 {
        let (mut asked, mut missing) = (0_u64, 0_u64);
        for row in self.rows(candidate) {
            let (is_asked, is_known) = match metric {
                Metric::Score(name) | Metric::PassRate(Some(name)) => {
                    let score = row.scores.get(name);
                    (score.is_some(), score.is_some_and(|score| score.value.is_some()))
                }
                Metric::CostPerCall | Metric::Latency(_) => (row.error.is_none(), value(row, metric).is_some()),
                Metric::PassRate(None) | Metric::ErrorRate => (true, true),
            };
            asked += u64::from(is_asked);
            missing += u64::from(is_asked && !is_known);
        }
        if asked == 0 { 0.0 } else { missing as f64 / asked as f64 }
    }
}

const LATENCY: Metric = Metric::Latency(Latency::Mean);

impl Figures for Table<'_> {
    fn figure(&self, candidate: &str, metric: &Metric) -> Option<Figure> {
        let value = match metric {
            Metric::Latency(Latency::Percentile(percentile)) => self.percentile(candidate, *percentile),
            metric => mean(&self.by_case(candidate, metric).into_values().collect::<Vec<_>>()),
        };
        Some(Figure { value: value?, missing: self.missing(candidate, metric) })
    }

    fn difference(&self, candidate: &str, reference: &str, metric: &Metric) -> Option<Difference> {
        let found = Table::difference(self, candidate, reference, metric)?;
        let of_reference: Vec<f64> = self.pairs(candidate, reference, metric).into_iter().map(|(one, _)| one).collect();
        Some(Difference { mean: found.value, low: found.low, high: found.high, reference: mean(&of_reference)? })
    }
}

/// A figure of one row.
fn value(row: &Row, metric: &Metric) -> Option<f64> {
    let yes = |is: bool| f64::from(u8::from(is));
    match metric {
        Metric::Score(name) => row.scores.get(name)?.value,
        Metric::PassRate(Some(name)) => row.scores.get(name)?.pass.map(yes),
        Metric::PassRate(None) => row.passed().map(yes),
        Metric::ErrorRate => Some(yes(row.error.is_some())),
        Metric::CostPerCall if row.error.is_none() => row.cost_nanousd.map(|cost| NanoUsd(cost).as_usd()),
        Metric::Latency(_) if row.error.is_none() => row.latency_ms.map(|ms| ms / 1000.0),
        Metric::CostPerCall | Metric::Latency(_) => None,
    }
}

pub(super) fn mean(values: &[f64]) -> Option<f64> {
    (!values.is_empty()).then(|| values.iter().sum::<f64>() / values.len() as f64)
}

fn resampling(cases: usize) -> Resampling {
    let resamples = if cases > MANY { RESAMPLES_OF_MANY } else { RESAMPLES };
    Resampling { resamples, level: LEVEL, ..Resampling::default() }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::eval::scorers::Score;

    /// A row with one score.
    pub(in crate::eval::report) fn row(candidate: &str, case: &str, repeat: u32, score: Option<f64>) -> Row {
        let score = match score {
            Some(value) => Score::of(value, "why").against(1.0),
            None => Score::missing("the judge is silent"),
        };
        Row {
            case: case.to_owned(),
            candidate: candidate.to_owned(),
            repeat,
            latency_ms: Some(1000.0 * f64::from(repeat + 1)),
            cost_nanousd: Some(1_000_000),
            scores: BTreeMap::from([("exact".to_owned(), score)]),
            ..Row::default()
        }
    }

    #[test]
    fn repeats_are_averaged_within_their_case() {
        let rows = [row("a", "1", 0, Some(1.0)), row("a", "1", 1, Some(0.0)), row("a", "2", 0, Some(1.0))];
        let table = Table::of(&rows);
        let exact = Metric::Score("exact".to_owned());
        assert_eq!(table.by_case("a", &exact), BTreeMap::from([("1", 0.5), ("2", 1.0)]));
        assert_eq!(table.figure("a", &exact).unwrap().value, 0.75);
        assert_eq!(table.percentile("a", 50), Some(1.0));
        assert_eq!(table.percentile("a", 95), Some(2.0));
    }

    #[test]
    fn what_is_passed_or_failed_has_wilsons_interval() {
        let rows: Vec<Row> = (0..20).map(|case| row("a", &case.to_string(), 0, Some(1.0))).collect();
        let all = Table::of(&rows).estimate("a", &Metric::Score("exact".to_owned())).unwrap();
        assert_eq!((all.value, all.high), (1.0, 1.0));
        assert!((all.low - 0.839).abs() < 0.001, "20 of 20 do not prove all: {all:?}");
    }

    #[test]
    fn differences_are_paired_by_case() {
        let mut rows = Vec::new();
        for case in 0..30 {
            let name = case.to_string();
            rows.push(row("old", &name, 0, Some(f64::from(case % 3) / 4.0)));
            rows.push(row("new", &name, 0, Some(f64::from(case % 3) / 4.0 + 0.1)));
        }
        rows.push(row("new", "only here", 0, Some(0.0)));
        let found = Table::of(&rows).difference("new", "old", &Metric::Score("exact".to_owned())).unwrap();
        assert!((found.value - 0.1).abs() < 1e-9 && found.low > 0.09, "cases differ, but each by the same: {found:?}");
    }

    #[test]
    fn what_could_not_be_scored_is_missing_and_what_failed_is_not_timed() {
        let failed = Row { error: Some("no".to_owned()), ..row("a", "3", 0, Some(0.0)) };
        let rows = [row("a", "1", 0, Some(1.0)), row("a", "2", 0, None), failed];
        let table = Table::of(&rows);
        assert!((table.missing("a", &Metric::Score("exact".to_owned())) - 1.0 / 3.0).abs() < 1e-9);
        assert_eq!(table.by_case("a", &LATENCY).len(), 2);
        assert_eq!(table.figure("a", &Metric::ErrorRate).unwrap().value, 1.0 / 3.0);
    }
}
