//! Which variant of an experiment a unit belongs to: weighted rendezvous hashing, no state.
//!
//! Every variant draws a number for the unit, and the highest wins. The draw depends only on salt, variant and unit, so it is
//! the same on every replica and after every restart. A variant's weight scales only its own draws: raising it moves units
//! only into it, lowering it only out of it. Cumulative ranges and rings of hashed points do neither.

use std::sync::Arc;

use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

use super::stats::{
    Kind,
    report::{Goal, Guardrail},
};

/// What is hashed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Unit {
    /// The user, or the key when the call names none.
    User,
    /// The virtual key.
    Key,
    /// The session, else the user.
    Session,
    /// A request header by this lower-case name, else the user.
    Header(Box<str>),
}

/// An experiment on a model.
#[derive(Debug, Clone)]
pub struct Experiment {
    /// Its name, also its label in metrics and headers.
    pub name: Arc<str>,
    /// The model whose calls take part.
    pub model: Arc<str>,
    /// How far it is.
    pub phase: Phase,
    /// What is hashed.
    pub unit: Unit,
    /// The variant that the others are compared with: the one that is configured, else the one named `control`, else the first.
    pub control: Arc<str>,
    /// What it should change; `None` where nothing is decided.
    pub goal: Option<Goal>,
    /// What it must not harm.
    pub guardrails: Vec<Guardrail>,
    /// The layer that it is in: of experiments on a model with the same layer, a unit is in at most one.
    pub layer: Option<Arc<str>>,
    /// The share of its layer's units, or of all units, that takes part: 0 to 1.
    pub share: f64,
    /// What it does with calls of coding agents.
    pub coding_agents: CodingAgents,
    /// Whether a variant has another prompt than the live version.
    pub changes_prompt: bool,
    /// Variants that were stopped: their units are the control's.
    pub halted: Vec<Arc<str>>,
    variants: Vec<Variant>,
    /// The seed of each variant's draws, beside `variants`.
    seeds: Vec<u64>,
    /// Who takes part; `None`: everybody.
    place: Option<Place>,
}

/// How far an experiment is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Phase {
    /// It has not begun.
    Draft,
    /// Units are in its variants.
    #[default]
    Running,
    /// Nobody is in a variant for now.
    Paused,
    /// It will never run again.
    Over,
}

/// An experiment's place among those that share units out.
#[derive(Debug, Clone)]
struct Place {
    /// The seed of each draw and its share, those that take no part in any experiment included.
    entrants: Arc<[(u64, f64)]>,
    /// Its own entry.
    own: usize,
}

/// What an experiment that changes prompts does with calls of coding agents, which rely on theirs.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum CodingAgents {
    /// They take no part.
    #[default]
    Skip,
    /// They take part like any other call.
    Force,
}

/// One arm of an experiment: what it changes about a call. What it does not set stays as the model says.
#[derive(Debug, Clone, PartialEq)]
pub struct Variant {
    /// Its name; part of what is hashed, so renaming it deals its units anew.
    pub name: Arc<str>,
    /// Its share, relative to the others'. 0 or less gets nobody.
    pub weight: f64,
    /// Version of the model to use instead of the live one.
    pub version: Option<Arc<str>>,
    /// `provider/model` to use instead of the version's targets.
    pub target: Option<String>,
    /// Prompt name and version to inject instead of the model's.
    pub prompt: Option<(Arc<str>, Arc<str>)>,
    /// Parameters to set: name and JSON text.
    pub parameters: Vec<(Box<str>, Box<str>)>,
}

/// The name that a control has where nothing else is configured.
const CONTROL: &str = "control";

/// What a built-in metric is; `None` for one of feedback, whose ratings tell.
#[must_use]
pub fn built_in_kind(metric: &str) -> Option<Kind> {
    match metric {
        "error_rate" | "refusal_rate" => Some(Kind::Share),
        "cost_per_call" | "latency" | "time_to_first_token" | "tokens" | "input_tokens" => Some(Kind::Amount),
        _ => None,
    }
}

impl Experiment {
    /// An experiment over `variants`. The salt is the name unless one is given; experiments with different salts deal the
    /// same units independently.
    #[must_use]
    pub fn new(name: Arc<str>, salt: Option<&str>, unit: Unit, variants: Vec<Variant>) -> Experiment {
        let salt = salt.unwrap_or(&name);
        let seeds = variants.iter().map(|variant| seed(salt, &variant.name)).collect();
        let named_control = variants.iter().find(|variant| &*variant.name == CONTROL).or(variants.first());
        let control = named_control.map_or_else(|| CONTROL.into(), |variant| variant.name.clone());
        Experiment {
            name,
            model: "".into(),
            phase: Phase::Running,
            unit,
            control,
            goal: None,
            guardrails: Vec::new(),
            layer: None,
            share: 1.0,
            coding_agents: CodingAgents::Skip,
            changes_prompt: false,
            halted: Vec::new(),
            variants,
            seeds,
            place: None,
        }
    }

    /// The variants, as configured.
    #[must_use]
    pub fn variants(&self) -> &[Variant] {
        &self.variants
    }

    /// The variant that `unit` belongs to; `None` when it takes no part, or every weight is 0.
    ///
    /// The logarithm may differ between platforms in its last bit. That matters only where two scores are equal to that bit:
    /// about one unit in 10^15.
    #[must_use]
    pub fn assign(&self, unit: &str) -> Option<&Variant> {
        if self.phase != Phase::Running || !self.place.as_ref().is_none_or(|place| place.takes(unit)) {
            return None;
        }
        let drawn = self.draw(unit)?;
        if !self.halted.contains(&drawn.name) {
            return Some(drawn);
        }
        self.variants.iter().find(|variant| variant.name == self.control)
    }

    /// The variant with the highest draw, be it stopped or not: so a stopped one gives its own units back, and no others move.
    fn draw(&self, unit: &str) -> Option<&Variant> {
        self.variants
            .iter()
            .zip(&self.seeds)
            .filter(|(variant, _)| variant.weight > 0.0)
            .map(|(variant, &seed)| (variant, score(variant.weight, seed, unit)))
            .max_by(|(_, one), (_, other)| one.total_cmp(other))
            .map(|(variant, _)| variant)
    }
}

impl Place {
    fn takes(&self, unit: &str) -> bool {
        let scores =
            self.entrants.iter().map(|&(seed, share)| if share > 0.0 { score(share, seed, unit) } else { 0.0 });
        let highest = scores.enumerate().max_by(|(_, one), (_, other)| one.total_cmp(other));
        highest.is_some_and(|(entrant, _)| entrant == self.own)
    }
}

/// Gives each of `experiments` its share of the units, so that a unit is in at most one of them. What they leave takes no part.
///
/// Experiments with different salts share units out independently.
pub fn share_out(salt: &str, experiments: &mut [&mut Experiment]) {
    let salt = format!("share:{salt}");
    let taken: f64 = experiments.iter().map(|experiment| experiment.share).sum();
    let rest = (seed(&salt, ""), (1.0 - taken).max(0.0));
    let own = experiments.iter().map(|experiment| (seed(&salt, &experiment.name), experiment.share));
    let entrants: Arc<[(u64, f64)]> = own.chain([rest]).collect();
    for (own, experiment) in experiments.iter_mut().enumerate() {
        experiment.place = Some(Place { entrants: entrants.clone(), own });
    }
}

/// The seed of a variant's draws. The length keeps `("ab", "c")` and `("a", "bc")` apart.
fn seed(salt: &str, variant: &str) -> u64 {
    xxh3_64(format!("{}:{salt}:{variant}", salt.len()).as_bytes())
}

/// What the variant draws for this unit: exponentially distributed draws, so that each wins in proportion to its weight.
fn score(weight: f64, seed: u64, unit: &str) -> f64 {
    -weight / uniform(xxh3_64_with_seed(unit.as_bytes(), seed)).ln()
}

/// The upper 53 bits as a number strictly between 0 and 1. The lowest is set to stay off 0, and off 1 by the other end.
fn uniform(hash: u64) -> f64 {
    const TWO_TO_53: f64 = 9_007_199_254_740_992.0;
    ((hash >> 11) | 1) as f64 / TWO_TO_53
}

#[cfg(test)]
mod tests {
    use super::*;

    const USERS: usize = 100_000;

    fn variant(name: &str, weight: f64) -> Variant {
        Variant { name: name.into(), weight, version: None, target: None, prompt: None, parameters: Vec::new() }
    }

    fn experiment(name: &str, weights: &[(&str, f64)]) -> Experiment {
        let variants = weights.iter().map(|&(name, weight)| variant(name, weight)).collect();
        Experiment::new(name.into(), None, Unit::User, variants)
    }

    fn assignments(experiment: &Experiment) -> Vec<&str> {
        (0..USERS).map(|n| &*experiment.assign(&format!("user-{n}")).expect("a weight above 0").name).collect()
    }

    fn share(assignments: &[&str], name: &str) -> f64 {
        assignments.iter().filter(|assigned| **assigned == name).count() as f64 / assignments.len() as f64
    }

    fn assert_near(actual: f64, expected: f64, tolerance: f64) {
        assert!((actual - expected).abs() <= tolerance, "{actual} is not {expected} ± {tolerance}");
    }

    #[test]
    fn a_90_10_split_is_within_half_a_point() {
        assert_near(share(&assignments(&experiment("tone", &[("a", 90.0), ("b", 10.0)])), "b"), 0.10, 0.005);
    }

    #[test]
    fn going_to_80_20_moves_a_tenth_from_a_to_b_and_none_back() {
        let (before, after) =
            (experiment("tone", &[("a", 90.0), ("b", 10.0)]), experiment("tone", &[("a", 80.0), ("b", 20.0)]));
        let moves: Vec<_> = assignments(&before).into_iter().zip(assignments(&after)).collect();
        assert_eq!(moves.iter().filter(|(from, to)| *from == "b" && *to == "a").count(), 0);
        let moved = moves.iter().filter(|(from, to)| *from == "a" && *to == "b").count();
        assert_near(moved as f64 / USERS as f64, 0.10, 0.005);
    }

    #[test]
    fn weights_are_shares_of_any_sum_and_order_does_not_matter() {
        let forward = experiment("tone", &[("a", 1.0), ("b", 2.0), ("c", 5.0)]);
        let backward = experiment("tone", &[("c", 50.0), ("b", 20.0), ("a", 10.0)]);
        let assigned = assignments(&forward);
        assert_near(share(&assigned, "a"), 0.125, 0.005);
        assert_near(share(&assigned, "b"), 0.250, 0.005);
        assert_eq!(assigned, assignments(&backward));
    }

    #[test]
    fn a_new_variant_takes_from_the_others_and_moves_nobody_between_them() {
        let (two, three) = (
            experiment("tone", &[("a", 50.0), ("b", 50.0)]),
            experiment("tone", &[("a", 50.0), ("b", 50.0), ("c", 50.0)]),
        );
        let stayed_or_new = |(from, to): (&str, &str)| from == to || to == "c";
        assert!(assignments(&two).into_iter().zip(assignments(&three)).all(stayed_or_new));
    }

    #[test]
    fn two_experiments_deal_independently() {
        let (tone, length) =
            (experiment("tone", &[("a", 1.0), ("b", 1.0)]), experiment("length", &[("a", 1.0), ("b", 1.0)]));
        let both = assignments(&tone).into_iter().zip(assignments(&length)).filter(|pair| *pair == ("a", "a")).count();
        assert_near(both as f64 / USERS as f64, 0.25, 0.005);
    }

    #[test]
    fn one_salt_deals_two_experiments_alike() {
        let variants = || vec![variant("a", 1.0), variant("b", 1.0)];
        let first = Experiment::new("first".into(), Some("shared"), Unit::User, variants());
        let second = Experiment::new("second".into(), Some("shared"), Unit::User, variants());
        assert_eq!(assignments(&first), assignments(&second));
    }

    #[test]
    fn weight_0_gets_nobody() {
        let one_off = experiment("tone", &[("a", 0.0), ("b", 1e-9)]);
        assert_near(share(&assignments(&one_off), "b"), 1.0, 0.0);
        assert_eq!(experiment("tone", &[("a", 0.0), ("b", -1.0), ("c", f64::NAN)]).assign("user-1"), None);
        assert_eq!(experiment("tone", &[]).assign("user-1"), None);
    }

    #[test]
    fn stopping_a_variant_moves_its_units_alone_and_all_of_them_to_the_control() {
        let before = experiment("tone", &[("brief", 20.0), ("control", 50.0), ("warm", 30.0)]);
        let after = Experiment { halted: vec!["warm".into()], ..before.clone() };
        let moves: Vec<_> = assignments(&before).into_iter().zip(assignments(&after)).collect();
        for (from, to) in moves {
            assert_eq!(to, if from == "warm" { "control" } else { from });
        }
    }

    #[test]
    fn nobody_is_assigned_in_a_pause_and_everybody_comes_back_to_the_same() {
        let running = experiment("tone", &[("a", 1.0), ("b", 1.0)]);
        for phase in [Phase::Draft, Phase::Paused, Phase::Over] {
            assert_eq!(Experiment { phase, ..running.clone() }.assign("user-1"), None, "{phase:?}");
        }
        let resumed = Experiment { phase: Phase::Running, ..Experiment { phase: Phase::Paused, ..running.clone() } };
        assert_eq!(assignments(&running), assignments(&resumed));
    }

    fn layer(shares: &[(&str, f64)]) -> Vec<Experiment> {
        let mut all: Vec<Experiment> = shares
            .iter()
            .map(|&(name, share)| Experiment { share, ..experiment(name, &[("a", 1.0), ("b", 1.0)]) })
            .collect();
        share_out("support/checkout", &mut all.iter_mut().collect::<Vec<_>>());
        all
    }

    /// The experiment that each user is in.
    fn taken<'e>(layer: &'e [Experiment]) -> Vec<Option<&'e str>> {
        let of = |n| {
            let unit = format!("user-{n}");
            let mut those = layer.iter().filter(|experiment| experiment.assign(&unit).is_some());
            let first = those.next();
            assert!(those.next().is_none(), "{unit} is in two of them");
            first.map(|experiment: &'e Experiment| &*experiment.name)
        };
        (0..10_000).map(of).collect()
    }

    fn part(taken: &[Option<&str>], name: Option<&str>) -> f64 {
        taken.iter().filter(|one| **one == name).count() as f64 / taken.len() as f64
    }

    #[test]
    fn a_user_is_in_at_most_one_experiment_of_a_layer_by_its_share() {
        let shared = layer(&[("tone", 0.5), ("length", 0.3)]);
        let taken = taken(&shared);
        assert_near(part(&taken, Some("tone")), 0.5, 0.015);
        assert_near(part(&taken, Some("length")), 0.3, 0.015);
        assert_near(part(&taken, None), 0.2, 0.015);
    }

    #[test]
    fn a_layer_that_is_given_away_whole_leaves_nobody_out() {
        let shared = layer(&[("tone", 0.5), ("length", 0.5)]);
        assert_near(part(&taken(&shared), None), 0.0, 0.0);
    }

    #[test]
    fn an_experiment_that_leaves_its_layer_moves_few() {
        let (before, after) = (layer(&[("tone", 0.5), ("length", 0.3)]), layer(&[("tone", 0.5)]));
        let moves: Vec<_> = taken(&before).into_iter().zip(taken(&after)).collect();
        let out = moves.iter().filter(|(from, to)| *from == Some("tone") && *to != Some("tone")).count();
        // The others' part grows from 20 % to 50 %: it takes from each in proportion, 19 % here, where an anew deal takes 50 %.
        assert!((out as f64 / moves.len() as f64) < 0.2, "{out}");
    }

    #[test]
    fn a_share_and_the_variants_are_drawn_independently() {
        let shared = layer(&[("tone", 0.5)]);
        let assigned: Vec<&str> =
            (0..USERS).filter_map(|n| shared[0].assign(&format!("user-{n}")).map(|variant| &*variant.name)).collect();
        assert_near(assigned.len() as f64 / USERS as f64, 0.5, 0.005);
        assert_near(share(&assigned, "a"), 0.5, 0.008);
    }

    #[test]
    fn the_control_is_the_one_of_that_name_else_the_first() {
        for (weights, control) in
            [(&[("a", 1.0), ("control", 1.0)][..], "control"), (&[("b", 1.0), ("c", 1.0)], "b"), (&[], "control")]
        {
            assert_eq!(&*experiment("tone", weights).control, control);
        }
    }

    #[test]
    fn every_built_in_metric_has_its_kind() {
        for metric in crate::record::BUILT_IN_METRICS {
            assert!(built_in_kind(metric).is_some(), "{metric}");
        }
        assert_eq!(built_in_kind("resolved"), None);
    }

    #[test]
    fn draws_stay_strictly_between_0_and_1() {
        for hash in [0, 1, 1 << 11, u64::MAX, u64::MAX - 1] {
            let drawn = uniform(hash);
            assert!(0.0 < drawn && drawn < 1.0, "{hash}: {drawn}");
        }
    }

    /// If this fails, an upgrade would move users between variants of running experiments.
    #[test]
    fn assignments_stay_the_same_from_release_to_release() {
        let experiment = experiment("tone", &[("control", 50.0), ("warm", 30.0), ("brief", 20.0)]);
        let golden = [
            ("user-1", "brief"),
            ("user-2", "control"),
            ("user-3", "control"),
            ("user-4", "brief"),
            ("user-11", "warm"),
            ("user-19", "warm"),
            ("user-23", "warm"),
            ("", "control"),
            ("größe", "control"),
            ("a@example.com", "brief"),
            ("550e8400-e29b-41d4-a716-446655440000", "brief"),
        ];
        let assigned = golden.map(|(unit, _)| (unit, &*experiment.assign(unit).expect("weights").name));
        assert_eq!(assigned, golden);
        assert_eq!(seed("tone", "control"), 16_664_642_772_371_062_645);
    }
}
