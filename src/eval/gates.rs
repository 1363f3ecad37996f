//! Gates: sentences that decide whether a candidate is good enough, such as `exact >= 0.95` or `no worse than v1 by 2 points`.
//!
//! Pure: a sentence is parsed, its names are checked against a suite, and it is decided on figures that others computed.

use std::fmt;

use crate::config::foreign::suggestion;

/// One gate.
#[derive(Debug, Clone, PartialEq)]
pub struct Gate {
    /// The sentence.
    pub text: String,
    /// Of which candidate; `None`: of each one but the baseline.
    pub candidate: Option<String>,
    /// What must hold.
    pub check: Check,
}

/// What must hold.
#[derive(Debug, Clone, PartialEq)]
pub enum Check {
    /// `METRIC >= BOUND`
    Bound {
        /// The figure.
        metric: Metric,
        /// How it compares.
        relation: Relation,
        /// With what, in the metric's unit.
        bound: f64,
    },
    /// `[METRIC] no worse than REFERENCE [by MARGIN]`, `METRIC better than REFERENCE [by MARGIN]`
    Against {
        /// The figure; `None`: each scorer whose scores are from 0 to 1.
        metric: Option<Metric>,
        /// `baseline`, or a candidate.
        reference: String,
        /// Better, or at least not worse.
        better: bool,
        /// By how much.
        margin: Margin,
    },
}

/// A figure of one candidate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Metric {
    /// The mean of a scorer.
    Score(String),
    /// The share of cases that pass: of one scorer, or of all of them.
    PassRate(Option<String>),
    /// Mean USD of a call.
    CostPerCall,
    /// Seconds.
    Latency(Latency),
    /// The share of calls that failed.
    ErrorRate,
}

/// Which latency.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Latency {
    /// The mean.
    Mean,
    /// So many of a hundred calls are at most as slow.
    Percentile(u8),
}

/// How a figure compares with a bound.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Relation {
    /// `>=`
    AtLeast,
    /// `>`
    Above,
    /// `<=`
    AtMost,
    /// `<`
    Below,
}

/// How much worse, or how much better.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Margin {
    /// In the metric's unit.
    Absolute(f64),
    /// A share of the reference's figure.
    Relative(f64),
}

/// What is known of candidates.
pub trait Figures {
    /// A figure of a candidate, and how many of its cases could not be scored.
    fn figure(&self, candidate: &str, metric: &Metric) -> Option<Figure>;

    /// The mean of the paired differences, candidate minus reference, with its 95 % interval.
    fn difference(&self, candidate: &str, reference: &str, metric: &Metric) -> Option<Difference>;
}

/// A figure.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Figure {
    /// In the metric's unit.
    pub value: f64,
    /// The share of cases that it says nothing of.
    pub missing: f64,
}

/// A paired difference.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Difference {
    /// Its mean.
    pub mean: f64,
    /// The lower end of its 95 % interval.
    pub low: f64,
    /// The upper end.
    pub high: f64,
    /// The reference's own figure over the same cases.
    pub reference: f64,
}

/// Cases that may stay unscored before a gate cannot be passed any more.
const MISSING_MAX: f64 = 0.05;

/// How a gate went for one candidate.
#[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Verdict {
    /// The sentence.
    pub gate: String,
    /// Whose.
    pub candidate: String,
    /// Whether it holds.
    pub passed: bool,
    /// The figures, in words.
    pub said: String,
}

// === parsing ===

impl Gate {
    /// Reads a sentence.
    ///
    /// # Errors
    /// What is wrong with it, and how it is written.
    pub fn parse(sentence: &str) -> Result<Gate, String> {
        let text = sentence.split_whitespace().collect::<Vec<_>>().join(" ");
        let (rest, candidate) = match text.rsplit_once(" for ") {
            Some((rest, candidate)) => (rest, Some(candidate.to_owned())),
            None => (text.as_str(), None),
        };
        let check = parse_check(rest)?;
        Ok(Gate { text: text.clone(), candidate, check })
    }

    /// Whether its names are those of scorers and candidates.
    ///
    /// # Errors
    /// The name that is none.
    pub fn check_names(&self, scorers: &[&str], candidates: &[&str]) -> Result<(), String> {
        let known_candidate = |name: &str| {
            let known = name == BASELINE || candidates.contains(&name);
            let names = || candidates.iter().copied().chain([BASELINE]);
            if known { Ok(()) } else { Err(format!("there is no candidate `{name}`{}", suggestion(name, names()))) }
        };
        self.candidate.as_deref().map_or(Ok(()), known_candidate)?;
        let metric = match &self.check {
            Check::Bound { metric, .. } => Some(metric),
            Check::Against { metric, reference, .. } => {
                known_candidate(reference)?;
                metric.as_ref()
            }
        };
        match metric {
            Some(Metric::Score(name) | Metric::PassRate(Some(name))) if !scorers.contains(&name.as_str()) => {
                let known = scorers.iter().copied().chain(METRICS);
                Err(format!("there is no scorer or figure `{name}`{}", suggestion(name, known)))
            }
            _ => Ok(()),
        }
    }
}

/// The candidate that others are compared with, whatever its name.
pub const BASELINE: &str = "baseline";
/// Figures that need no scorer.
const METRICS: [&str; 9] = [
    "pass_rate",
    "error_rate",
    "cost_per_call",
    "latency",
    "latency_mean",
    "latency_p50",
    "latency_p90",
    "latency_p95",
    "latency_p99",
];
const FORMS: &str = "write `exact >= 0.95`, `cost_per_call <= 0.002 USD`, `latency_p95 <= 2s`, `no worse than baseline by 2 points` or `judge better than baseline`";

fn parse_check(text: &str) -> Result<Check, String> {
    for (words, better) in [("no worse than", false), ("better than", true)] {
        if let Some((before, after)) = split_words(text, words) {
            return parse_against(before, after, better);
        }
    }
    let relations =
        [(">=", Relation::AtLeast), ("<=", Relation::AtMost), (">", Relation::Above), ("<", Relation::Below)];
    for (sign, relation) in relations {
        if let Some((name, bound)) = text.split_once(sign) {
            let metric = parse_metric(name.trim())?;
            let bound = Amount::parse(bound.trim())?.bound_of(&metric)?;
            return Ok(Check::Bound { metric, relation, bound });
        }
    }
    Err(format!("`{text}` is no gate: {FORMS}"))
}

/// What stands before and after `words`.
fn split_words<'t>(text: &'t str, words: &str) -> Option<(&'t str, &'t str)> {
    let (before, after) = text.split_once(words)?;
    let apart = (before.is_empty() || before.ends_with(' ')) && (after.is_empty() || after.starts_with(' '));
    apart.then(|| (before.trim(), after.trim()))
}

fn parse_against(before: &str, after: &str, better: bool) -> Result<Check, String> {
    let metric = if before.is_empty() { None } else { Some(parse_metric(before)?) };
    if matches!(metric, Some(Metric::Latency(Latency::Percentile(_)))) {
        return Err(
            "percentiles of two candidates are not compared; write `latency no worse than …`, which is the mean"
                .to_owned(),
        );
    }
    if metric.is_none() && better {
        return Err("say what is to be better, as in `exact better than baseline`".to_owned());
    }
    let (reference, margin) = match split_words(after, "by") {
        Some((reference, margin)) => (reference, Amount::parse(margin)?.margin_of(metric.as_ref())?),
        None => (after, Margin::Absolute(0.0)),
    };
    if reference.is_empty() {
        return Err("name a candidate or `baseline` after `than`".to_owned());
    }
    Ok(Check::Against { metric, reference: reference.to_owned(), better, margin })
}

fn parse_metric(name: &str) -> Result<Metric, String> {
    let is_name = !name.is_empty() && !name.contains(char::is_whitespace);
    if !is_name {
        return Err(format!("`{name}` is no figure: {FORMS}"));
    }
    Ok(match name {
        "pass_rate" => Metric::PassRate(None),
        "error_rate" => Metric::ErrorRate,
        "cost" | "cost_per_call" => Metric::CostPerCall,
        "latency" | "latency_mean" => Metric::Latency(Latency::Mean),
        name => match (name.strip_prefix("pass_rate."), name.strip_prefix("latency_p")) {
            (Some(scorer), _) => Metric::PassRate(Some(scorer.to_owned())),
            (None, Some(percentile)) => Metric::Latency(Latency::Percentile(parse_percentile(percentile)?)),
            (None, None) => Metric::Score(name.to_owned()),
        },
    })
}

fn parse_percentile(text: &str) -> Result<u8, String> {
    let percentile = text.parse().ok().filter(|percentile| (1..=99).contains(percentile));
    percentile.ok_or_else(|| format!("`latency_p{text}` is no percentile; write `latency_p95`"))
}

/// A number with its unit.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Amount {
    Number(f64),
    Percent(f64),
    Points(f64),
    Usd(f64),
    Seconds(f64),
}

impl Amount {
    fn parse(text: &str) -> Result<Amount, String> {
        let unit_at = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
        let (number, unit) = text.split_at(unit_at);
        let wrong = || format!("`{text}` is no amount: write `0.95`, `95%`, `2 points`, `0.002 USD` or `2s`");
        let number: f64 = number.parse().map_err(|_| wrong())?;
        match unit.trim() {
            "" => Ok(Amount::Number(number)),
            "%" => Ok(Amount::Percent(number)),
            "point" | "points" => Ok(Amount::Points(number)),
            "USD" => Ok(Amount::Usd(number)),
            "ms" => Ok(Amount::Seconds(number / 1000.0)),
            "s" => Ok(Amount::Seconds(number)),
            "m" | "min" => Ok(Amount::Seconds(number * 60.0)),
            _ => Err(wrong()),
        }
    }

    fn bound_of(self, metric: &Metric) -> Result<f64, String> {
        match (metric, self) {
            (Metric::CostPerCall, Amount::Usd(usd)) => Ok(usd),
            (Metric::CostPerCall, _) => {
                Err("a cost is an amount of USD: write `cost_per_call <= 0.002 USD`".to_owned())
            }
            (Metric::Latency(_), Amount::Seconds(seconds)) => Ok(seconds),
            (Metric::Latency(_), _) => Err("a latency is a time: write `latency_p95 <= 2s`".to_owned()),
            (_, Amount::Number(number)) if number <= 1.0 => Ok(number),
            (_, Amount::Percent(percent)) if percent <= 100.0 => Ok(percent / 100.0),
            _ => Err("scores and rates are from 0 to 1: write `0.95` or `95%`".to_owned()),
        }
    }

    fn margin_of(self, metric: Option<&Metric>) -> Result<Margin, String> {
        match (metric, self) {
            (Some(Metric::CostPerCall | Metric::Latency(_)), Amount::Percent(percent)) => {
                Ok(Margin::Relative(percent / 100.0))
            }
            (Some(Metric::CostPerCall), Amount::Usd(usd)) => Ok(Margin::Absolute(usd)),
            (Some(Metric::Latency(_)), Amount::Seconds(seconds)) => Ok(Margin::Absolute(seconds)),
            (Some(Metric::CostPerCall), _) => Err("write the margin of a cost as `10%` or `0.001 USD`".to_owned()),
            (Some(Metric::Latency(_)), _) => Err("write the margin of a latency as `10%` or `200ms`".to_owned()),
            (_, Amount::Points(points)) => Ok(Margin::Absolute(points / 100.0)),
            (_, Amount::Number(number)) if number <= 1.0 => Ok(Margin::Absolute(number)),
            _ => Err("write the margin of a score as `2 points`, which is 0.02".to_owned()),
        }
    }
}

// === deciding ===

impl Metric {
    /// Whether more of it is better.
    #[must_use]
    pub const fn more_is_better(&self) -> bool {
        matches!(self, Metric::Score(_) | Metric::PassRate(_))
    }

    /// A value of it in words.
    #[must_use]
    pub fn shown(&self, value: f64) -> String {
        match self {
            Metric::CostPerCall => format!("{value:.6} USD"),
            Metric::Latency(_) => format!("{value:.2} s"),
            _ => format!("{value:.3}"),
        }
    }
}

/// As it is written.
impl fmt::Display for Metric {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Metric::Score(name) => f.write_str(name),
            Metric::PassRate(None) => f.write_str("pass_rate"),
            Metric::PassRate(Some(name)) => write!(f, "pass_rate.{name}"),
            Metric::CostPerCall => f.write_str("cost_per_call"),
            Metric::Latency(Latency::Mean) => f.write_str("latency"),
            Metric::Latency(Latency::Percentile(percentile)) => write!(f, "latency_p{percentile}"),
            Metric::ErrorRate => f.write_str("error_rate"),
        }
    }
}

impl Relation {
    fn holds(self, value: f64, bound: f64) -> bool {
        // A mean of thirds must not fail for its last bit.
        let slack = 1e-9 * bound.abs().max(1e-9);
        match self {
            Relation::AtLeast => value >= bound - slack,
            Relation::Above => value > bound,
            Relation::AtMost => value <= bound + slack,
            Relation::Below => value < bound,
        }
    }

    const fn sign(self) -> &'static str {
        match self {
            Relation::AtLeast => ">=",
            Relation::Above => ">",
            Relation::AtMost => "<=",
            Relation::Below => "<",
        }
    }
}

impl Gate {
    /// Decides the gate for `candidate`. `scorers` are those whose scores are from 0 to 1, `baseline` is the candidate that the others
    /// are compared with.
    #[must_use]
    pub fn decide(&self, candidate: &str, baseline: &str, scorers: &[&str], figures: &dyn Figures) -> Verdict {
        let (passed, said) = match &self.check {
            Check::Bound { metric, relation, bound } => {
                bounded(figures.figure(candidate, metric), metric, *relation, *bound)
            }
            Check::Against { metric, reference, better, margin } => {
                let reference = if reference == BASELINE { baseline } else { reference };
                let compared: Vec<Metric> = match metric {
                    Some(metric) => vec![metric.clone()],
                    None => scorers.iter().map(|name| Metric::Score((*name).to_owned())).collect(),
                };
                let verdicts = compared.iter().map(|metric| {
                    let missing =
                        [candidate, reference].map(|name| figures.figure(name, metric).map_or(0.0, |f| f.missing));
                    let missing = missing.into_iter().fold(0.0, f64::max);
                    compare(figures.difference(candidate, reference, metric), missing, metric, *better, *margin)
                });
                let verdicts: Vec<(bool, String)> = verdicts.collect();
                let said: Vec<&str> = verdicts.iter().map(|(_, said)| said.as_str()).collect();
                (!verdicts.is_empty() && verdicts.iter().all(|(passed, _)| *passed), said.join("; "))
            }
        };
        Verdict { gate: self.text.clone(), candidate: candidate.to_owned(), passed, said }
    }
}

fn bounded(figure: Option<Figure>, metric: &Metric, relation: Relation, bound: f64) -> (bool, String) {
    let Some(figure) = figure else { return (false, format!("{metric} is not known")) };
    let said = format!("{metric} is {}", metric.shown(figure.value));
    if figure.missing > MISSING_MAX {
        return (false, format!("{said}, but {} of the cases could not be scored", percent(figure.missing)));
    }
    if relation.holds(figure.value, bound) {
        return (true, said);
    }
    (false, format!("{said}, not {} {}", relation.sign(), metric.shown(bound)))
}

/// Holds when even the worse end of the 95 % interval of the paired difference is within the margin.
fn compare(
    difference: Option<Difference>,
    missing: f64,
    metric: &Metric,
    better: bool,
    margin: Margin,
) -> (bool, String) {
    let Some(found) = difference else { return (false, format!("{metric}: no case is scored for both")) };
    let said = format!(
        "{metric}: {} ({} to {})",
        signed(found.mean, metric),
        signed(found.low, metric),
        signed(found.high, metric)
    );
    if missing > MISSING_MAX {
        return (false, format!("{said}, but {} of the cases could not be scored", percent(missing)));
    }
    // Turned so that more is better.
    let worst = if metric.more_is_better() { found.low } else { -found.high };
    let margin = match margin {
        Margin::Absolute(amount) => amount,
        Margin::Relative(share) => share * found.reference.abs(),
    };
    let passed = if better { worst > margin } else { worst >= -margin - 1e-9 * margin.abs() };
    let limit = match (better, margin == 0.0) {
        (true, true) => "not surely better".to_owned(),
        (true, false) => format!("not surely better by {}", metric.shown(margin)),
        (false, _) => format!("may be worse by more than {}", metric.shown(margin)),
    };
    (passed, if passed { said } else { format!("{said}: {limit}") })
}

fn signed(value: f64, metric: &Metric) -> String {
    let sign = if value < 0.0 { "-" } else { "+" };
    format!("{sign}{}", metric.shown(value.abs()))
}

fn percent(share: f64) -> String {
    format!("{:.0} %", (share * 100.0).ceil())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn bound(text: &str) -> (Metric, Relation, f64) {
        match Gate::parse(text).unwrap_or_else(|error| panic!("{text}: {error}")).check {
            Check::Bound { metric, relation, bound } => (metric, relation, bound),
            other => panic!("{text}: {other:?}"),
        }
    }

    #[test]
    fn bounds_are_read_in_the_unit_of_their_figure() {
        let score = |name: &str| Metric::Score(name.to_owned());
        for (text, expected) in [
            ("exact >= 0.95", (score("exact"), Relation::AtLeast, 0.95)),
            ("exact>=95%", (score("exact"), Relation::AtLeast, 0.95)),
            ("judge.helpful > 0.5", (score("judge.helpful"), Relation::Above, 0.5)),
            ("cost_per_call <= 0.002 USD", (Metric::CostPerCall, Relation::AtMost, 0.002)),
            ("latency_p95 <= 2s", (Metric::Latency(Latency::Percentile(95)), Relation::AtMost, 2.0)),
            ("latency < 250ms", (Metric::Latency(Latency::Mean), Relation::Below, 0.25)),
            ("pass_rate.exact >= 1", (Metric::PassRate(Some("exact".to_owned())), Relation::AtLeast, 1.0)),
            ("error_rate <= 1%", (Metric::ErrorRate, Relation::AtMost, 0.01)),
        ] {
            assert_eq!(bound(text), expected, "{text}");
        }
        assert_eq!(Gate::parse("exact >= 0.9 for v2").unwrap().candidate.as_deref(), Some("v2"));
    }

    #[test]
    fn comparisons_name_a_reference_and_a_margin() {
        let against = |text: &str| match Gate::parse(text).unwrap_or_else(|error| panic!("{text}: {error}")).check {
            Check::Against { metric, reference, better, margin } => {
                (metric.map(|metric| metric.to_string()), reference, better, margin)
            }
            other => panic!("{text}: {other:?}"),
        };
        assert_eq!(
            against("no worse than support@v1 by 2 points"),
            (None, "support@v1".to_owned(), false, Margin::Absolute(0.02))
        );
        assert_eq!(
            against("judge.helpful better than baseline"),
            (Some("judge.helpful".to_owned()), "baseline".to_owned(), true, Margin::Absolute(0.0))
        );
        assert_eq!(
            against("cost_per_call no worse than v1 by 10%"),
            (Some("cost_per_call".to_owned()), "v1".to_owned(), false, Margin::Relative(0.1))
        );
        assert_eq!(against("latency no worse than v1 by 200ms").3, Margin::Absolute(0.2));
    }

    #[test]
    fn a_wrong_sentence_is_refused_with_the_mend() {
        for (text, said) in [
            ("exact", "is no gate: write `exact >= 0.95`"),
            ("", "is no gate"),
            ("exact >= many", "is no amount"),
            ("exact >= 95", "from 0 to 1"),
            ("cost_per_call <= 2", "write `cost_per_call <= 0.002 USD`"),
            ("latency_p95 <= 0.5", "write `latency_p95 <= 2s`"),
            ("latency_p0 <= 2s", "write `latency_p95`"),
            ("latency_p95 no worse than v1", "write `latency no worse than …`"),
            ("better than v1", "say what is to be better"),
            ("exact better than", "name a candidate"),
            ("no worse than v1 by 2%", "`2 points`"),
            ("exact score >= 0.9", "is no figure"),
        ] {
            let error = Gate::parse(text).expect_err(text);
            assert!(error.contains(said), "{text}: {error}");
        }
    }

    #[test]
    fn names_are_checked_with_the_nearest_one() {
        let check = |text: &str| Gate::parse(text).unwrap().check_names(&["exact", "judge.helpful"], &["v1", "newer"]);
        assert_eq!(check("exact >= 0.9"), Ok(()));
        assert_eq!(check("exact no worse than v1 for newer"), Ok(()));
        assert_eq!(check("exakt >= 0.9").unwrap_err(), "there is no scorer or figure `exakt`; did you mean `exact`?");
        assert_eq!(check("no worse than newre").unwrap_err(), "there is no candidate `newre`; did you mean `newer`?");
    }

    struct Table;

    impl Figures for Table {
        fn figure(&self, candidate: &str, metric: &Metric) -> Option<Figure> {
            let value = match metric {
                Metric::Score(name) if name == "exact" => 0.9,
                Metric::Score(name) if name == "judge" => 0.6,
                Metric::CostPerCall => 0.002,
                _ => return None,
            };
            Some(Figure { value, missing: if candidate == "patchy" { 0.1 } else { 0.0 } })
        }

        fn difference(&self, _: &str, _: &str, metric: &Metric) -> Option<Difference> {
            match metric {
                Metric::Score(_) => Some(Difference { mean: 0.01, low: -0.02, high: 0.04, reference: 0.89 }),
                Metric::CostPerCall => Some(Difference { mean: 0.0001, low: 0.0, high: 0.0002, reference: 0.002 }),
                _ => None,
            }
        }
    }

    #[test]
    fn a_gate_holds_or_says_why_not() {
        let decide = |text: &str, candidate: &str| {
            Gate::parse(text).unwrap().decide(candidate, "v1", &["exact", "judge"], &Table)
        };
        for (text, passed) in [
            ("exact >= 0.9", true),
            ("exact > 0.9", false),
            ("cost_per_call <= 0.002 USD", true),
            ("latency <= 1s", false),
            ("no worse than baseline by 2 points", true),
            ("no worse than baseline by 1 points", false),
            ("exact better than baseline", false),
            ("cost_per_call no worse than baseline by 10%", true),
            ("cost_per_call no worse than baseline by 5%", false),
        ] {
            let verdict = decide(text, "v2");
            assert_eq!(verdict.passed, passed, "{verdict:?}");
        }
        assert_eq!(decide("exact >= 0.95", "v2").said, "exact is 0.900, not >= 0.950");
        assert_eq!(
            decide("exact better than baseline", "v2").said,
            "exact: +0.010 (-0.020 to +0.040): not surely better"
        );
        let patchy = decide("exact >= 0.5", "patchy");
        assert!(!patchy.passed && patchy.said.ends_with("10 % of the cases could not be scored"), "{patchy:?}");
    }

    proptest! {
        #[test]
        fn no_sentence_makes_it_panic(text in "(exact|latency_p|pass_rate\\.|no worse than|better than|by|>=|<|[0-9.]{1,4}|%|USD|points|ms| for | |ä|\\PC){0,12}") {
            let _ = Gate::parse(&text);
        }
    }
}
