//! What came of a run: figures of each candidate, differences between them, gates, and every case with its answers.

pub mod compare;
pub mod html;
pub mod junit;
pub mod table;
pub mod terminal;

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use self::table::Table;
use super::{
    answer::text_of,
    gates::{Latency, Metric, Verdict},
    run::{Ended, journal::Header, journal::Rows, row::Row},
    scorers::{Unit, judge::Preference},
    suite::{Case, Suite},
};
use crate::{
    policy::stats::{Estimate, agreement},
    units::NanoUsd,
};

/// The form of reports; a reader of another one says so.
pub const FORMAT: u32 = 1;

/// A report. Also the JSON of `--json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// Its form: see [`FORMAT`].
    pub format: u32,
    /// The release that wrote it.
    pub tollgate: String,
    /// The suite's name.
    pub suite: String,
    /// What its results depend on.
    pub fingerprint: String,
    /// When the run began, in RFC 3339.
    pub started: String,
    /// When the report was made.
    pub finished: String,
    /// `complete`, or why the run ended before.
    pub ended: String,
    /// Whether it is complete and all gates hold.
    pub passed: bool,
    /// How often each case was asked.
    pub repeat: u32,
    /// The candidate that the others are compared with.
    pub baseline: String,
    /// What was measured.
    pub scorers: Vec<ScorerInfo>,
    /// What answered.
    pub candidates: Vec<CandidateFigures>,
    /// Each candidate against the baseline.
    pub differences: Vec<DifferenceFigures>,
    /// What had to hold.
    pub gates: Vec<Verdict>,
    /// What the candidates' calls cost in this run, in nano-USD, as far as it is known.
    pub cost_nanousd: u64,
    /// What scoring cost beside that.
    pub scoring_nanousd: u64,
    /// Calls whose cost is not known.
    pub unknown_costs: u64,
    /// Every case, the worst first.
    pub cases: Vec<CaseResult>,
}

/// A scorer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ScorerInfo {
    /// Its id.
    pub id: String,
    /// What its scores are.
    pub unit: Unit,
    /// What passes.
    pub threshold: f64,
}

/// The figures of a candidate.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CandidateFigures {
    /// Its name.
    pub name: String,
    /// What it asked for.
    pub model: String,
    /// With which prompt.
    pub prompt: Option<String>,
    /// What served it.
    pub served: Vec<String>,
    /// Answers asked for.
    pub calls: u64,
    /// Of them none.
    pub errors: u64,
    /// Prompt tokens.
    pub input_tokens: u64,
    /// Output tokens.
    pub output_tokens: u64,
    /// Nano-USD of its calls, as far as known.
    pub cost_nanousd: u64,
    /// Calls whose cost is not known.
    pub unknown_costs: u64,
    /// USD of a call.
    pub cost_per_call: Option<Interval>,
    /// Seconds of a call.
    pub latency: Option<Interval>,
    /// Seconds that half of the calls keep.
    pub latency_p50: Option<f64>,
    /// And 95 of a hundred.
    pub latency_p95: Option<f64>,
    /// And 99 of a hundred.
    pub latency_p99: Option<f64>,
    /// By scorer.
    pub scores: Vec<ScoreFigures>,
}

/// What a scorer says of a candidate.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ScoreFigures {
    /// The scorer.
    pub scorer: String,
    /// Its mean over cases; `None` where no case has a score.
    pub mean: Option<Interval>,
    /// Cases that have one.
    pub cases: u64,
    /// Of them passed, where something was asked for.
    pub passed: Option<u64>,
    /// Answers that could not be scored.
    pub unscored: u64,
    /// Of judges: how far they agree with people's labels.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub labels: Option<LabelAgreement>,
    /// Of pairwise judges: the share of cases where both orders said the same.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub orders_agree: Option<f64>,
}

/// How far a judge agrees with people.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct LabelAgreement {
    /// Answers with a label.
    pub cases: u64,
    /// The share judged alike.
    pub observed: f64,
    /// Cohen's kappa.
    pub kappa: Option<f64>,
}

/// A mean and its 95 % interval.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Interval {
    /// The mean.
    pub value: f64,
    /// The lower end.
    pub low: f64,
    /// The upper end.
    pub high: f64,
}

impl From<Estimate> for Interval {
    fn from(found: Estimate) -> Interval {
        Interval { value: found.value, low: found.low, high: found.high }
    }
}

/// A candidate against another one.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DifferenceFigures {
    /// The scorer; `latency` and `cost_per_call` beside them.
    pub metric: String,
    /// What it is a quantity of.
    pub unit: Unit,
    /// The candidate.
    pub candidate: String,
    /// What it is compared with.
    pub reference: String,
    /// Cases that both have.
    pub cases: u64,
    /// Candidate minus reference.
    pub difference: Interval,
    /// Cases that only the candidate passed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub only_candidate: Option<u64>,
    /// Cases that only the reference passed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub only_reference: Option<u64>,
    /// McNemar's exact test, two-sided.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub p_value: Option<f64>,
}

/// A case and what was made of it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CaseResult {
    /// The case.
    pub id: String,
    /// What was asked last.
    pub question: String,
    /// What was expected.
    pub expected: Value,
    /// Words to group by.
    pub tags: Vec<String>,
    /// By candidate and repeat.
    pub rows: Vec<Row>,
}

impl Report {
    /// The report of a run.
    #[must_use]
    pub fn of(suite: &Suite, header: &Header, rows: &Rows, ended: &Ended, finished: String) -> Report {
        let table = Table::of(rows.values());
        let scorers: Vec<ScorerInfo> = suite
            .scorers
            .iter()
            .map(|named| ScorerInfo { id: named.id.clone(), unit: named.scorer.unit(), threshold: named.threshold })
            .collect();
        let candidates: Vec<CandidateFigures> =
            suite.candidates.iter().map(|candidate| figures(suite, &candidate.name, &scorers, &table)).collect();
        let baseline = suite.baseline().name.clone();
        let others = suite.candidates.iter().filter(|candidate| candidate.name != baseline);
        let differences =
            others.flat_map(|candidate| differences(&scorers, &candidate.name, &baseline, &table)).collect();
        let gates = gates(suite, &table);
        let live = |candidate: &str| suite.candidates.iter().any(|known| known.name == candidate && !known.recorded);
        let made = || rows.values().filter(|row| live(&row.candidate));
        let unknown = made().filter(|row| row.error.is_none() && row.cost_nanousd.is_none()).count() as u64;
        Report {
            format: FORMAT,
            tollgate: env!("CARGO_PKG_VERSION").to_owned(),
            suite: suite.name.clone(),
            fingerprint: header.fingerprint.clone(),
            started: header.started.clone(),
            finished,
            ended: match ended {
                Ended::Complete => "complete".to_owned(),
                Ended::Interrupted => "interrupted".to_owned(),
                Ended::Stopped(stopped) => stopped.to_string(),
            },
            passed: *ended == Ended::Complete && gates.iter().all(|gate| gate.passed),
            repeat: suite.repeat,
            baseline,
            scorers,
            candidates,
            differences,
            gates,
            cost_nanousd: made().filter_map(|row| row.cost_nanousd).sum(),
            scoring_nanousd: rows.values().map(|row| row.scoring_nanousd).sum(),
            unknown_costs: unknown + rows.values().map(|row| u64::from(row.scoring_unknown)).sum::<u64>(),
            cases: cases(&suite.cases, rows, &suite.score_ids()),
        }
    }

    /// All rows.
    pub fn rows(&self) -> impl Iterator<Item = &Row> {
        self.cases.iter().flat_map(|case| &case.rows)
    }

    /// What the run cost, as far as it is known.
    #[must_use]
    pub fn cost(&self) -> NanoUsd {
        NanoUsd(self.cost_nanousd).saturating_add(NanoUsd(self.scoring_nanousd))
    }
}

/// Gates go for each candidate but the baseline, unless they name one, or there is no other.
fn gates(suite: &Suite, table: &Table<'_>) -> Vec<Verdict> {
    let baseline = &suite.baseline().name;
    let scorers = suite.score_ids();
    let mut verdicts = Vec::new();
    for gate in &suite.gates {
        let named = gate.candidate.as_deref().map(|name| if name == super::gates::BASELINE { baseline } else { name });
        let meant = suite.candidates.iter().filter(|candidate| match named {
            Some(name) => candidate.name == name,
            None => candidate.name != *baseline || suite.candidates.len() == 1,
        });
        verdicts.extend(meant.map(|candidate| gate.decide(&candidate.name, baseline, &scorers, table)));
    }
    verdicts
}

fn figures(suite: &Suite, name: &str, scorers: &[ScorerInfo], table: &Table<'_>) -> CandidateFigures {
    let rows: Vec<&Row> = table.rows(name).collect();
    let candidate = suite.candidates.iter().find(|candidate| candidate.name == name);
    let served: BTreeSet<&str> = rows.iter().filter_map(|row| row.model.as_deref()).collect();
    let answered = || rows.iter().filter(|row| row.error.is_none());
    let estimate = |metric: &Metric| table.estimate(name, metric).map(Interval::from);
    CandidateFigures {
        name: name.to_owned(),
        model: candidate.map_or_else(String::new, |candidate| match candidate.recorded {
            true => "recorded".to_owned(),
            false => candidate.model.clone(),
        }),
        prompt: candidate.and_then(|candidate| candidate.prompt.clone()),
        served: served.into_iter().map(str::to_owned).collect(),
        calls: rows.len() as u64,
        errors: (rows.len() - answered().count()) as u64,
        input_tokens: rows.iter().filter_map(|row| row.input_tokens).sum(),
        output_tokens: rows.iter().filter_map(|row| row.output_tokens).sum(),
        cost_nanousd: rows.iter().filter_map(|row| row.cost_nanousd).sum(),
        unknown_costs: answered().filter(|row| row.cost_nanousd.is_none()).count() as u64,
        cost_per_call: estimate(&Metric::CostPerCall),
        latency: estimate(&Metric::Latency(Latency::Mean)),
        latency_p50: table.percentile(name, 50),
        latency_p95: table.percentile(name, 95),
        latency_p99: table.percentile(name, 99),
        scores: scorers.iter().map(|scorer| score_figures(suite, name, &scorer.id, &rows, table)).collect(),
    }
}

fn score_figures(suite: &Suite, name: &str, scorer: &str, rows: &[&Row], table: &Table<'_>) -> ScoreFigures {
    let metric = Metric::Score(scorer.to_owned());
    let passes = table.by_case(name, &Metric::PassRate(Some(scorer.to_owned())));
    let scores = || rows.iter().filter_map(|row| Some((row, row.scores.get(scorer)?)));
    let orders: Vec<f64> =
        scores().filter_map(|(_, score)| score.orders_agree.map(|agree| f64::from(u8::from(agree)))).collect();
    ScoreFigures {
        scorer: scorer.to_owned(),
        mean: table.estimate(name, &metric).map(Interval::from),
        cases: table.by_case(name, &metric).len() as u64,
        passed: (!passes.is_empty()).then(|| passes.values().filter(|share| **share > 0.5).count() as u64),
        unscored: scores().filter(|(_, score)| score.value.is_none()).count() as u64,
        labels: scorer.starts_with("judge").then(|| label_agreement(suite, scorer, rows)).flatten(),
        orders_agree: table::mean(&orders),
    }
}

/// How far a judge and people say the same of the answers that people judged.
fn label_agreement(suite: &Suite, scorer: &str, rows: &[&Row]) -> Option<LabelAgreement> {
    let threshold = suite.scorers.iter().find(|named| named.id == scorer)?.threshold;
    let pairs = rows.iter().filter_map(|row| {
        let case = suite.cases.iter().find(|case| case.id == row.case)?;
        let score = row.scores.get(scorer)?;
        match score.preference {
            Some(preference) => Some((preference.label(), preference_of(&case.label)?.label())),
            None => Some((pass_word(score.pass?), pass_word(is_good(&case.label, threshold)?))),
        }
    });
    let found = agreement::agreement(&pairs.collect::<Vec<_>>())?;
    Some(LabelAgreement { cases: found.cases, observed: found.observed, kappa: found.kappa })
}

const fn pass_word(pass: bool) -> &'static str {
    if pass { "pass" } else { "fail" }
}

fn preference_of(label: &Value) -> Option<Preference> {
    [Preference::Win, Preference::Tie, Preference::Loss].into_iter().find(|known| label == known.label())
}

/// Whether people found an answer good: their word, or a score that reaches the threshold.
fn is_good(label: &Value, threshold: f64) -> Option<bool> {
    match label {
        Value::Bool(good) => Some(*good),
        Value::Number(score) => score.as_f64().map(|score| score >= threshold),
        Value::String(word) if word == "pass" || word == "good" => Some(true),
        Value::String(word) if word == "fail" || word == "bad" => Some(false),
        _ => None,
    }
}

fn differences(scorers: &[ScorerInfo], candidate: &str, reference: &str, table: &Table<'_>) -> Vec<DifferenceFigures> {
    let of_scorers = scorers.iter().filter(|scorer| scorer.unit == Unit::Score);
    let of_scorers = of_scorers.map(|scorer| (Metric::Score(scorer.id.clone()), Unit::Score));
    let always = [(Metric::Latency(Latency::Mean), Unit::Seconds), (Metric::CostPerCall, Unit::Usd)];
    let all = of_scorers.chain(always);
    all.filter_map(|(metric, unit)| difference(&metric, unit, candidate, reference, table)).collect()
}

fn difference(
    metric: &Metric,
    unit: Unit,
    candidate: &str,
    reference: &str,
    table: &Table<'_>,
) -> Option<DifferenceFigures> {
    let found = table.difference(candidate, reference, metric)?;
    let passed = match metric {
        Metric::Score(name) => Some(Metric::PassRate(Some(name.clone()))),
        _ => None,
    };
    let passed = passed.filter(|passed| table.shared(candidate, reference, passed) > 0);
    let test = passed.map(|passed| table.mcnemar(candidate, reference, &passed));
    Some(DifferenceFigures {
        metric: metric.to_string(),
        unit,
        candidate: candidate.to_owned(),
        reference: reference.to_owned(),
        cases: table.shared(candidate, reference, metric) as u64,
        difference: found.into(),
        only_candidate: test.map(|test| test.only_second),
        only_reference: test.map(|test| test.only_first),
        p_value: test.map(|test| test.p_value),
    })
}

/// Cases with their rows; those that went worst come first.
fn cases(cases: &[Case], rows: &Rows, scorers: &[&str]) -> Vec<CaseResult> {
    let result = |case: &Case| {
        let of_case = rows.values().filter(|row| row.case == case.id).cloned().collect();
        let question = case.messages.last().map(|message| text_of(&message["content"])).unwrap_or_default();
        CaseResult {
            id: case.id.clone(),
            question,
            expected: case.expected.clone(),
            tags: case.tags.clone(),
            rows: of_case,
        }
    };
    let mut all: Vec<CaseResult> = cases.iter().map(result).collect();
    all.sort_by(|one, other| goodness(one, scorers).total_cmp(&goodness(other, scorers)));
    all
}

/// How well a case went: its answers that failed count before its scores.
fn goodness(case: &CaseResult, scorers: &[&str]) -> f64 {
    let share = |values: Vec<f64>| table::mean(&values).unwrap_or(1.0);
    let passed = share(case.rows.iter().filter_map(|row| row.passed().map(|pass| f64::from(u8::from(pass)))).collect());
    let scores = case.rows.iter().flat_map(|row| &row.scores).filter(|(id, _)| scorers.contains(&id.as_str()));
    passed * 10.0 + share(scores.filter_map(|(_, score)| score.value).collect())
}

#[cfg(test)]
pub(in crate::eval) mod tests {
    use serde_json::json;

    use super::{table::tests::row, *};
    use crate::eval::{gates::Gate, scorers::Named, suite::file::ScorerWord};
    use crate::eval::{scorers::Scorer, suite::Candidate};

    /// Two candidates, three cases, one gate that holds and one that does not.
    pub(in crate::eval) fn suite() -> Suite {
        let candidate = |name: &str| Candidate {
            name: name.to_owned(),
            model: format!("support@{name}"),
            prompt: None,
            parameters: Default::default(),
            system: None,
            recorded: false,
        };
        let case = |id: &str| Case {
            id: id.to_owned(),
            messages: vec![json!({"role": "user", "content": format!("<b>{id}?</b>")})],
            variables: Default::default(),
            expected: json!("x"),
            label: json!(true),
            parameters: Default::default(),
            tags: Vec::new(),
            recorded: None,
        };
        Suite {
            name: "demo".to_owned(),
            cases: ["1", "2", "3"].map(case).to_vec(),
            calls: None,
            candidates: vec![candidate("v1"), candidate("v2")],
            baseline: 0,
            scorers: vec![Named::plain(Scorer::of_word(ScorerWord::Exact))],
            gates: ["exact >= 0.5", "exact >= 0.9"].map(|gate| Gate::parse(gate).unwrap()).to_vec(),
            repeat: 1,
            concurrency: 1,
            max_cost: None,
            timeout: std::time::Duration::from_secs(1),
            url: None,
            key: None,
            mlflow: None,
        }
    }

    pub(in crate::eval) fn report() -> Report {
        let suite = suite();
        let scores = [
            ("v1", "1", 1.0),
            ("v1", "2", 0.0),
            ("v1", "3", 0.0),
            ("v2", "1", 1.0),
            ("v2", "2", 0.0),
            ("v2", "3", 1.0),
        ];
        let rows = scores.map(|(candidate, case, score)| row(candidate, case, 0, Some(score)));
        let rows: Rows = rows.into_iter().map(|row| (row.key(), row)).collect();
        let header = Header {
            suite: "demo".to_owned(),
            fingerprint: suite.fingerprint(),
            tollgate: "0.1.0".to_owned(),
            started: "2026-11-23T12:00:00Z".to_owned(),
        };
        Report::of(&suite, &header, &rows, &Ended::Complete, "2026-11-23T12:00:10Z".to_owned())
    }

    #[test]
    fn a_report_holds_figures_differences_and_gates() {
        let report = report();
        let of_v2 = &report.candidates[1].scores[0];
        assert!((of_v2.mean.unwrap().value - 2.0 / 3.0).abs() < 1e-9);
        assert_eq!((of_v2.passed, of_v2.cases, of_v2.unscored), (Some(2), 3, 0));
        let difference = &report.differences[0];
        assert_eq!(
            (difference.metric.as_str(), difference.only_candidate, difference.only_reference),
            ("exact", Some(1), Some(0))
        );
        assert_eq!(difference.p_value, Some(1.0));
        assert_eq!(report.gates.iter().map(|gate| gate.passed).collect::<Vec<_>>(), [true, false]);
        assert!(!report.passed);
        assert_eq!(report.cost_nanousd, 6_000_000);
    }

    #[test]
    fn the_worst_case_comes_first_and_a_report_reads_back() {
        let report = report();
        assert_eq!(report.cases.iter().map(|case| case.id.as_str()).collect::<Vec<_>>(), ["2", "3", "1"]);
        let read: Report = serde_json::from_str(&serde_json::to_string(&report).unwrap()).unwrap();
        assert_eq!((&read.cases, &read.gates, &read.scorers), (&report.cases, &report.gates, &report.scorers));
    }

    #[test]
    fn people_and_judges_are_compared_by_what_they_find_good() {
        assert_eq!(is_good(&json!(true), 0.5), Some(true));
        assert_eq!(is_good(&json!(0.4), 0.5), Some(false));
        assert_eq!(is_good(&json!("bad"), 0.5), Some(false));
        assert_eq!(is_good(&Value::Null, 0.5), None);
        assert_eq!(preference_of(&json!("win")), Some(Preference::Win));
    }
}
