//! What a study is made of.

use std::collections::BTreeMap;

use super::*;
use crate::policy::{
    experiment::{Unit, Variant},
    stats::{
        guardrail::Limit,
        report::{Goal, Guardrail},
        verdict::{Direction, Outcome},
    },
};

fn experiment(weights: &[(&str, f64)]) -> Experiment {
    let variant = |&(name, weight): &(&str, f64)| Variant {
        name: name.into(),
        weight,
        version: None,
        target: None,
        prompt: None,
        parameters: Vec::new(),
    };
    let mut experiment = Experiment::new("tone".into(), None, Unit::User, weights.iter().map(variant).collect());
    experiment.goal = Some(Goal { metric: "resolved".to_owned(), direction: Direction::Up, margin: None });
    experiment.guardrails = vec![Guardrail { metric: "error_rate".to_owned(), limit: Limit::Max(0.05) }];
    experiment
}

/// Units with one call each, so many of them resolved and so many failed; a call costs a cent.
fn figures(arm: &str, units: u64, resolved: u64, failed: u64) -> ArmFigures {
    let sums = |x: &dyn Fn(u64) -> f64| {
        let mut moments = Moments::default();
        (0..units).for_each(|unit| moments.add(x(unit), 1.0));
        moments
    };
    let mut cost = Moments::default();
    (0..units).for_each(|unit| cost.add(0.01, f64::from(u8::from(unit < resolved))));
    let metrics = [
        ("resolved", sums(&|unit| f64::from(u8::from(unit < resolved)))),
        ("error_rate", sums(&|unit| f64::from(u8::from(unit < failed)))),
        ("stars", sums(&|unit| (unit % 5 + 1) as f64)),
        ("score", sums(&|unit| (unit % 3) as f64 / 4.0)),
        ("cost_per_resolved", cost),
    ];
    let metrics = metrics.map(|(name, moments)| (name.into(), moments));
    ArmFigures { arm: arm.into(), units, metrics: BTreeMap::from(metrics), ..ArmFigures::default() }
}

#[test]
fn a_study_has_the_experiments_arms_in_order_and_knows_what_a_metric_is() {
    let experiment = experiment(&[("control", 60.0), ("warm", 30.0), ("late", 10.0)]);
    let study = study_of(&experiment, &[figures("warm", 40, 9, 1), figures("control", 50, 7, 2)], Vec::new());
    let arms: Vec<(&str, f64, u64)> = study.arms.iter().map(|arm| (arm.name.as_str(), arm.weight, arm.units)).collect();
    assert_eq!(arms, [("control", 60.0, 50), ("warm", 30.0, 40), ("late", 10.0, 0)]);
    for (metric, kind) in [
        ("resolved", Kind::Share),
        ("error_rate", Kind::Share),
        ("stars", Kind::Amount),
        ("score", Kind::Amount),
        ("cost_per_resolved", Kind::Amount),
    ] {
        assert_eq!(study.kinds[metric], kind, "{metric}");
    }
    assert_eq!(
        (study.control.as_str(), study.goal.as_ref().map(|goal| goal.metric.as_str())),
        ("control", Some("resolved"))
    );
}

#[test]
fn figures_lead_to_the_verdict_that_they_deserve() {
    let experiment = experiment(&[("control", 50.0), ("warm", 50.0)]);
    for (control, warm, expected) in [
        ((4_000, 2_000, 40), (4_010, 2_310, 40), "better"),
        ((4_000, 2_000, 40), (4_010, 2_005, 40), "keep_running"),
        ((4_000, 2_000, 40), (2_000, 1_310, 40), "void"),
        ((4_000, 2_000, 40), (4_010, 2_310, 800), "stopped"),
    ] {
        let of = |name, (units, resolved, failed)| figures(name, units, resolved, failed);
        let study = study_of(&experiment, &[of("control", control), of("warm", warm)], Vec::new());
        let report = analyse(&study, Language::English);
        let kind = serde_json::to_value(&report.verdict.outcome).expect("JSON")["kind"].clone();
        assert_eq!(kind, expected, "{}", report.verdict.sentence);
    }
}

#[test]
fn a_breach_is_named_even_where_the_split_is_broken() {
    let experiment = experiment(&[("control", 50.0), ("warm", 50.0)]);
    let study = study_of(&experiment, &[figures("control", 4_000, 9, 9), figures("warm", 2_000, 9, 900)], Vec::new());
    let report = analyse(&study, Language::English);
    assert_eq!(report.verdict.outcome, Outcome::Void);
    let expected = "error_rate is 45%, at most 5% allowed: breached".to_owned();
    assert_eq!(breaches(&report), [("warm".to_owned(), expected)]);
}

#[test]
fn new_units_of_a_stretch_are_those_since_the_one_before() {
    let experiment = experiment(&[("control", 50.0), ("warm", 50.0)]);
    let stretch = |since_ms, control, warm| Stretch {
        since_ms,
        weights: BTreeMap::from([("control".to_owned(), control), ("warm".to_owned(), warm)]),
    };
    let of = |control, warm| vec![figures("control", control, 0, 0), figures("warm", warm, 0, 0)];
    let (first, second) = (of(900, 100), of(1_400, 600));
    let epochs = epochs_of(&experiment, &[stretch(1, 90.0, 10.0), stretch(2, 50.0, 50.0)], &[&first, &second]);
    let expected = [([90.0, 10.0], [900, 100]), ([50.0, 50.0], [500, 500])];
    let expected = expected.map(|(weights, units)| Epoch { weights: weights.to_vec(), new_units: units.to_vec() });
    assert_eq!(epochs, expected);
    let report = analyse(&study_of(&experiment, &second, epochs), Language::English);
    assert_eq!(
        report.split.split,
        crate::policy::stats::srm::Split::Sound,
        "by the last weights alone it would be broken"
    );
}

#[test]
fn versions_are_compared_with_the_first_and_nothing_is_said_of_their_split() {
    let versions = ["v2".to_owned(), "v1".to_owned()];
    let study = versions::study_of(&versions, &[figures("v1", 4_000, 2_000, 40), figures("v2", 90, 50, 1)], Vec::new());
    let report = analyse(&study, Language::English);
    assert_eq!((report.arms[0].name.as_str(), report.arms[0].is_control), ("v2", true));
    assert_eq!(report.split.split, crate::policy::stats::srm::Split::Sound);
    assert_eq!(report.verdict.outcome, Outcome::NoGoal);
}

#[test]
fn guardrails_of_a_rollout_are_numbers_or_percentages() {
    let typed = serde_json::json!([
        {"metric": "error_rate", "max": "5%"}, {"metric": "cost_per_call", "max_increase": 0.2}, {"metric": "latency"},
    ]);
    let expected = [("error_rate", Limit::Max(0.05)), ("cost_per_call", Limit::MaxIncrease(0.2))];
    let expected = expected.map(|(metric, limit)| Guardrail { metric: metric.to_owned(), limit });
    assert_eq!(versions::guardrails(&typed), expected);
    assert_eq!(versions::guardrails(&serde_json::Value::Null), []);
}
