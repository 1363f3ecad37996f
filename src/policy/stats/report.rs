//! The whole analysis of an experiment as plain values: what the API answers, the command prints and the page draws.

use std::collections::BTreeMap;

use serde::Serialize;

use super::{
    Arm, Estimate, Kind, Moments,
    guardrail::{self, Limit, State},
    sequence::{Sequence, TARGET_UNITS},
    srm::{self, Epoch, RatioCheck, Split},
    verdict::{Comparison, Direction, Effect, Outcome},
    words::{self, Language, Subject},
};
use crate::policy::experiment::Unit;

/// What the experiment should change.
#[derive(Debug, Clone, PartialEq)]
pub struct Goal {
    /// The metric's name.
    pub metric: String,
    /// Which way is better.
    pub direction: Direction,
    /// Differences up to this do not matter: 0.01 for a point of a share, 0.05 for 5 % of the control's amount. Defaults are
    /// [`super::verdict::SHARE_MARGIN`] and [`super::verdict::AMOUNT_MARGIN`].
    pub margin: Option<f64>,
}

/// What it must not harm.
#[derive(Debug, Clone, PartialEq)]
pub struct Guardrail {
    /// The metric's name.
    pub metric: String,
    /// The limit.
    pub limit: Limit,
}

/// An experiment and what happened in it so far.
#[derive(Debug, Clone, PartialEq)]
pub struct Study {
    /// The name of the arm that the others are compared with.
    pub control: String,
    /// What is assigned to an arm, for the words.
    pub unit: Unit,
    /// Probability of any false verdict over the experiment's life: 0.05. Guardrails have as much of their own.
    pub alpha: f64,
    /// What is decided.
    pub goal: Option<Goal>,
    /// What stops an arm.
    pub guardrails: Vec<Guardrail>,
    /// What the metrics are. One that is not named is a [`Kind::Amount`].
    pub kinds: BTreeMap<String, Kind>,
    /// The arms, in the order in which they are shown.
    pub arms: Vec<Arm>,
    /// Weights and new units over time, arms in the same order. Empty: the arms' weights and units, for an experiment whose
    /// weights never changed.
    pub epochs: Vec<Epoch>,
}

/// A decision and its sentence.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Verdict {
    /// What is decided.
    #[serde(flatten)]
    pub outcome: Outcome,
    /// The arm that it is about.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub arm: Option<String>,
    /// The effect on the goal's metric, as the sentence says it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub effect: Option<Effect>,
    /// What a person reads.
    pub sentence: String,
}

/// All that is known of an experiment.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Report {
    /// The decision on the experiment: that of the arm to act on.
    pub verdict: Verdict,
    /// Whether the split can be believed.
    pub split: RatioCheck,
    /// The split in words.
    pub split_sentence: String,
    /// Units over all arms.
    pub units: u64,
    /// The arms.
    pub arms: Vec<ArmReport>,
}

/// What is known of an arm.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ArmReport {
    /// Its name.
    pub name: String,
    /// Whether the others are compared with it.
    pub is_control: bool,
    /// Units in it.
    pub units: u64,
    /// Its metrics by name.
    pub metrics: BTreeMap<String, MetricReport>,
    /// Its guardrails; none for the control. A breach wants to be acted on even where a broken split voids the verdict.
    pub guardrails: Vec<GuardrailReport>,
    /// The decision on it; none for the control.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub verdict: Option<Verdict>,
}

/// A metric in one arm. Each interval holds at all looks; all of them together make no such promise: the goal decides.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct MetricReport {
    /// What it is.
    pub kind: Kind,
    /// Units that it is over.
    pub units: u64,
    /// `Σx / Σn`, as soon as there is any.
    pub value: Option<f64>,
    /// The same with its interval, once there are enough units.
    pub estimate: Option<Estimate>,
    /// How much higher than in the control, in the metric's unit.
    pub difference: Option<Estimate>,
    /// How much higher than in the control, as a share of that.
    pub relative: Option<Estimate>,
}

/// A guardrail on one arm.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct GuardrailReport {
    /// The metric's name.
    pub metric: String,
    /// The limit.
    pub limit: Limit,
    /// Whether it is kept.
    pub state: State,
    /// The value in the limit's terms.
    pub value: Option<f64>,
    /// What a person reads.
    pub sentence: String,
}

/// Analyses `study`; sentences are in `language`.
///
/// With several arms the error is divided among the comparisons with the control (Bonferroni): an interval and the decision
/// on it then never contradict each other, which Holm's steps would allow.
///
/// Without an arm of the control's name there is nothing to compare with, and every verdict is to keep running.
#[must_use]
pub fn analyse(study: &Study, language: Language) -> Report {
    let split = srm::check(&study.epochs_or_arms());
    let names: Vec<&str> = study.arms.iter().map(|arm| arm.name.as_str()).collect();
    let split_sentence = words::ratio(&split, &names, &study.unit, language).unwrap_or_default();
    let analysis = Analysis { study, language, split: split.split, split_sentence: &split_sentence };
    let arms: Vec<ArmReport> = study.arms.iter().map(|arm| analysis.arm(arm)).collect();
    let verdict = headline(&arms, study.goal.as_ref()).unwrap_or_else(|| analysis.nothing_to_compare());
    Report { verdict, split, split_sentence, units: study.units(), arms }
}

/// The verdict to act on: the best of the better arms; else one that may still become so, the soonest; else what the others
/// are, the equal before the worse before the stopped.
fn headline(arms: &[ArmReport], goal: Option<&Goal>) -> Option<Verdict> {
    let upward = goal.is_none_or(|goal| goal.direction == Direction::Up);
    let key = |verdict: &Verdict| {
        let effect = verdict.effect.map_or(0.0, |effect| effect.estimate.value);
        match verdict.outcome {
            Outcome::Void | Outcome::NoGoal => (0, 0.0),
            Outcome::Better => (1, if upward { -effect } else { effect }),
            Outcome::KeepRunning { more_units } => (2, more_units.map_or(f64::MAX, |more| more as f64)),
            Outcome::Equal { .. } => (3, 0.0),
            Outcome::Worse => (4, 0.0),
            Outcome::Stopped { .. } => (5, 0.0),
        }
    };
    let verdicts = arms.iter().filter_map(|arm| arm.verdict.as_ref());
    verdicts.min_by(|one, other| key(one).0.cmp(&key(other).0).then(key(one).1.total_cmp(&key(other).1))).cloned()
}

// === impl Study ===

impl Study {
    fn units(&self) -> u64 {
        self.arms.iter().map(|arm| arm.units).sum()
    }

    /// Arms that are compared with the control; at least 1, to divide by.
    fn comparisons(&self) -> usize {
        self.arms.len().saturating_sub(1).max(1)
    }

    fn kind(&self, metric: &str) -> Kind {
        self.kinds.get(metric).copied().unwrap_or(Kind::Amount)
    }

    fn epochs_or_arms(&self) -> Vec<Epoch> {
        if !self.epochs.is_empty() {
            return self.epochs.clone();
        }
        let weights = self.arms.iter().map(|arm| arm.weight).collect();
        vec![Epoch { weights, new_units: self.arms.iter().map(|arm| arm.units).collect() }]
    }

    fn control_moments(&self, metric: &str) -> Moments {
        let control = self.arms.iter().find(|arm| arm.name == self.control);
        control.map(|control| moments(control, metric)).unwrap_or_default()
    }

    fn sequence(&self) -> Sequence {
        Sequence::new(self.alpha / self.comparisons() as f64, TARGET_UNITS)
    }
}

/// A study while it is judged.
struct Analysis<'a> {
    study: &'a Study,
    language: Language,
    split: Split,
    split_sentence: &'a str,
}

// === impl Analysis ===

impl Analysis<'_> {
    fn arm(&self, arm: &Arm) -> ArmReport {
        let is_control = arm.name == self.study.control;
        let metrics = arm.metrics.iter().map(|(name, sums)| (name.clone(), self.metric(name, sums, is_control)));
        let metrics = metrics.collect();
        let guardrails = if is_control { Vec::new() } else { self.guardrails(arm) };
        let verdict = (!is_control).then(|| self.verdict(arm, &guardrails));
        ArmReport { name: arm.name.clone(), is_control, units: arm.units, metrics, guardrails, verdict }
    }

    fn metric(&self, name: &str, sums: &Moments, is_control: bool) -> MetricReport {
        let (kind, control) = (self.study.kind(name), self.study.control_moments(name));
        let sequence = self.study.sequence();
        let compared = |compare: fn(&Sequence, &Moments, &Moments, Kind) -> Option<Estimate>| {
            if is_control { None } else { compare(&sequence, &control, sums, kind) }
        };
        MetricReport {
            kind,
            units: sums.units,
            value: sums.ratio(),
            estimate: Sequence::new(self.study.alpha, TARGET_UNITS).mean(sums, kind).map(|found| possible(found, kind)),
            difference: compared(Sequence::difference),
            relative: compared(Sequence::relative),
        }
    }

    fn guardrails(&self, arm: &Arm) -> Vec<GuardrailReport> {
        let study = self.study;
        let alpha = study.alpha / (study.guardrails.len().max(1) * study.comparisons()) as f64;
        let report = |Guardrail { metric, limit }: &Guardrail| {
            let kind = study.kind(metric);
            let finding = guardrail::check(*limit, &study.control_moments(metric), &moments(arm, metric), kind, alpha);
            let sentence = words::guardrail(metric, *limit, kind, &finding, self.language);
            GuardrailReport {
                metric: metric.clone(),
                limit: *limit,
                state: finding.state,
                value: finding.value,
                sentence,
            }
        };
        study.guardrails.iter().map(report).collect()
    }

    fn verdict(&self, arm: &Arm, guardrails: &[GuardrailReport]) -> Verdict {
        let breached = guardrails.iter().find(|guardrail| guardrail.state == State::Breached);
        let (outcome, effect, because) = match (&self.study.goal, breached) {
            _ if self.split == Split::Broken => (Outcome::Void, None, Some(self.split_sentence)),
            (_, Some(breached)) => {
                (Outcome::Stopped { metric: breached.metric.clone() }, None, Some(breached.sentence.as_str()))
            }
            (None, None) => (Outcome::NoGoal, None, None),
            (Some(goal), None) => {
                let (outcome, effect) = self.compared(arm, goal);
                (outcome, effect, None)
            }
        };
        let said = self.subject(&arm.name).verdict(&outcome, effect.as_ref());
        let sentence = because.map_or_else(|| said.clone(), |because| format!("{said}: {because}"));
        Verdict { outcome, arm: Some(arm.name.clone()), effect, sentence }
    }

    fn compared(&self, arm: &Arm, goal: &Goal) -> (Outcome, Option<Effect>) {
        let sequence = self.study.sequence();
        let comparison = Comparison {
            sequence: &sequence,
            control: &self.study.control_moments(&goal.metric),
            arm: &moments(arm, &goal.metric),
            kind: self.study.kind(&goal.metric),
            all_units: self.study.units(),
        };
        (comparison.outcome(goal.direction, goal.margin), comparison.effect())
    }

    /// The verdict of an experiment without an arm beside the control.
    fn nothing_to_compare(&self) -> Verdict {
        let outcome = match &self.study.goal {
            Some(_) => Outcome::KeepRunning { more_units: None },
            None => Outcome::NoGoal,
        };
        let sentence = self.subject("").verdict(&outcome, None);
        Verdict { outcome, arm: None, effect: None, sentence }
    }

    fn subject<'a>(&'a self, arm: &'a str) -> Subject<'a> {
        let Study { control, goal, unit, .. } = self.study;
        let metric = goal.as_ref().map_or("", |goal| &goal.metric);
        Subject { language: self.language, arm, control, metric, unit }
    }
}

/// The metric's sums in an arm; empty sums where it has none.
fn moments(arm: &Arm, metric: &str) -> Moments {
    arm.metrics.get(metric).copied().unwrap_or_default()
}

/// An interval without what cannot be: no share is below 0 or above 1. It holds as often as before.
fn possible(found: Estimate, kind: Kind) -> Estimate {
    match kind {
        Kind::Share => Estimate { low: found.low.clamp(0.0, 1.0), high: found.high.clamp(0.0, 1.0), ..found },
        Kind::Amount => found,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn binary(successes: u64, units: u64) -> Moments {
        let (x, n) = (successes as f64, units as f64);
        Moments { units, sum_x: x, sum_n: n, sum_xx: x, sum_nn: n, sum_xn: x }
    }

    /// An arm of `units`, with so many resolved and so many failed.
    fn arm(name: &str, units: u64, resolved: u64, failed: u64) -> Arm {
        let metrics = [("resolved", resolved), ("error_rate", failed)];
        let metrics = metrics.map(|(name, count)| (name.to_owned(), binary(count, units)));
        Arm { name: name.to_owned(), weight: 1.0, units, metrics: BTreeMap::from(metrics) }
    }

    fn study(arms: Vec<Arm>) -> Study {
        let kinds = ["resolved", "error_rate"].map(|name| (name.to_owned(), Kind::Share));
        Study {
            control: "control".to_owned(),
            unit: Unit::User,
            alpha: 0.05,
            goal: Some(Goal { metric: "resolved".to_owned(), direction: Direction::Up, margin: None }),
            guardrails: vec![Guardrail { metric: "error_rate".to_owned(), limit: Limit::Max(0.05) }],
            kinds: BTreeMap::from(kinds),
            arms,
            epochs: Vec::new(),
        }
    }

    fn sentence(study: &Study) -> String {
        analyse(study, Language::English).verdict.sentence
    }

    #[test]
    fn a_better_arm_is_named_with_its_effect() {
        let found =
            analyse(&study(vec![arm("control", 4_000, 2_000, 40), arm("warm", 4_010, 2_310, 40)]), Language::English);
        assert_eq!(found.verdict.outcome, Outcome::Better);
        assert_eq!(found.verdict.arm.as_deref(), Some("warm"));
        assert_eq!(found.verdict.sentence, "warm is better: resolved +7.6 points (4.2 to 11.0)");
        assert_eq!((found.units, found.arms[1].guardrails[0].state), (8_010, State::Held));
        assert!(found.arms[0].verdict.is_none() && found.arms[0].metrics["resolved"].difference.is_none());
    }

    #[test]
    fn a_broken_split_voids_whatever_was_found() {
        let found = analyse(
            &study(vec![arm("control", 5_000, 2_000, 40), arm("warm", 4_000, 3_000, 4_000)]),
            Language::English,
        );
        assert_eq!(found.verdict.outcome, Outcome::Void);
        assert_eq!(found.split.split, Split::Broken);
        assert_eq!(
            found.verdict.sentence,
            "void, because the split is broken: 55.6% of users are in control, 50.0% should be (p < 0.0001)"
        );
    }

    #[test]
    fn a_breached_guardrail_stops_even_a_better_arm() {
        let found = sentence(&study(vec![arm("control", 4_000, 2_000, 40), arm("warm", 4_000, 2_600, 400)]));
        assert_eq!(found, "warm is stopped, it breaks a guardrail: error_rate is 10%, at most 5% allowed: breached");
    }

    #[test]
    fn of_several_arms_the_best_one_is_the_verdict() {
        let arms =
            vec![arm("control", 5_000, 2_500, 50), arm("warm", 5_000, 2_900, 50), arm("brief", 5_000, 3_100, 50)];
        let found = analyse(&study(arms), Language::German);
        assert_eq!(found.verdict.arm.as_deref(), Some("brief"));
        assert_eq!(found.arms[1].verdict.as_ref().unwrap().outcome, Outcome::Better);
    }

    #[test]
    fn several_arms_are_judged_more_strictly() {
        let two = study(vec![arm("control", 4_000, 2_000, 40), arm("warm", 4_000, 2_300, 40)]);
        let mut three = two.clone();
        three.arms.push(arm("brief", 4_000, 2_000, 40));
        let width = |study: &Study| {
            let difference = analyse(study, Language::English).arms[1].metrics["resolved"].difference.unwrap();
            difference.high - difference.low
        };
        assert!(width(&three) > width(&two));
    }

    #[test]
    fn what_is_not_there_is_no_verdict() {
        assert_eq!(sentence(&study(Vec::new())), "keep running: nothing is known of resolved yet");
        assert_eq!(
            sentence(&study(vec![arm("control", 0, 0, 0), arm("warm", 0, 0, 0)])),
            "keep running: nothing is known of resolved yet"
        );
        let mut without_goal = study(vec![arm("control", 500, 250, 5), arm("warm", 500, 300, 5)]);
        without_goal.goal = None;
        assert_eq!(sentence(&without_goal), "no goal is set: nothing to decide");
    }

    /// Cost per success is a ratio like any other: cost over successes, per user.
    #[test]
    fn cost_per_success_has_an_interval() {
        let mut study = study(vec![arm("control", 400, 200, 4), arm("warm", 400, 220, 4)]);
        for (at, cost) in [(0, 0.02), (1, 0.01)] {
            let mut sums = Moments::default();
            (0..400_u32).for_each(|user| sums.add(cost * f64::from(1 + user % 3), f64::from(user % 2)));
            study.arms[at].metrics.insert("cost_per_success".to_owned(), sums);
        }
        let found = analyse(&study, Language::English).arms[1].metrics["cost_per_success"];
        assert!((found.value.unwrap() - 0.04).abs() < 0.001, "{found:?}");
        assert!((found.relative.unwrap().value + 0.5).abs() < 1e-9 && found.relative.unwrap().high < 0.0, "{found:?}");
    }

    #[test]
    fn a_report_is_plain_json() {
        let found =
            analyse(&study(vec![arm("control", 4_000, 2_000, 40), arm("warm", 4_010, 2_310, 40)]), Language::English);
        let json = serde_json::to_value(&found).unwrap();
        assert_eq!(json["verdict"]["kind"], "better");
        assert_eq!(json["verdict"]["effect"]["scale"], "points");
        assert_eq!(json["split"]["split"], "sound");
        assert_eq!(json["arms"][1]["guardrails"][0]["limit"]["max"], 0.05);
    }

    #[test]
    fn no_interval_of_a_share_says_what_cannot_be() {
        let wide = Estimate { value: 0.95, low: -0.1, high: 1.06 };
        let found = possible(wide, Kind::Share);
        assert_eq!((found.value, found.low, found.high), (0.95, 0.0, 1.0));
        assert_eq!(possible(wide, Kind::Amount).high, 1.06);
    }
}
