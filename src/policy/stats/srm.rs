//! Whether units went to the variants in the configured ratio: the sample-ratio check, before anything else is believed.
//!
//! Where an arm has units missing or in excess, something lost or added them for a reason, and that reason likely changes the
//! metrics, too: no estimate repairs it. The check is sequential like everything here, so that a broken split is found while
//! it is young.
//!
//! # The test
//! For weights `w` and counts `k` of `n` units, the e-value is the evidence of a Dirichlet mixture against the weights:
//!
//! ```text
//! E = Γ(c) / Γ(c + n) · Π Γ(c wᵢ + kᵢ) / Γ(c wᵢ) / Π wᵢ^kᵢ
//! ```
//!
//! Where the weights are true it is a martingale that starts at 1, so it ever reaches 1/α with probability at most α (Ville):
//! Lindon and Malek (2022), "Anytime-Valid Inference for Multinomial Count Data", NeurIPS. Epochs of different
//! weights multiply. The concentration `c` says how far off splits are expected: about `√(w (1 − w) / c)`.
//!
//! # What it finds
//! A split that is a little off takes many units to see, whatever the test: of 10,000 units at 51 to 49 even a test that looks
//! once, at the end, finds 28 % at α = 1 %. The shares below are of simulated experiments found within 10,000 units, with a look
//! after every unit, for a [`CONCENTRATION`] that was chosen for this (300 and 3,000 find less). A test holds them.
//!
//! | configured | true | broken, α = 1 % | suspicious, α = 5 % | one look at the end, α = 1 % |
//! |---|---|---|---|---|
//! | 50 % | 51 % | 11 % | 28 % | 28 % |
//! | 50 % | 52 % | 74 % | 89 % | 92 % |
//! | 50 % | 52.5 % | 96 % | 99 % | 99 % |
//! | 10 % | 11 % | 49 % | 68 % | 77 % |
//! | 5 % | 6 % | 88 % | 95 % | 97 % |
//! | 1 % | 2 % | 100 % | 100 % | 100 % |

use serde::{Deserialize, Serialize};

use super::special::ln_gamma;

/// A sound split is called broken with at most this probability over its whole life: void verdicts must be rare to be believed.
pub const BROKEN_ALPHA: f64 = 0.01;

/// A sound split is called suspicious with at most this probability over its whole life. It is a hint, and voids nothing.
pub const SUSPICIOUS_ALPHA: f64 = 0.05;

/// Close to the best for skews that can be seen within 10,000 units: those about twice the standard error there.
const CONCENTRATION: f64 = 1_000.0;

/// A time in which weights did not change.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Epoch {
    /// Weight of each arm, relative to the others'.
    pub weights: Vec<f64>,
    /// Units of each arm that were exposed for the first time in this epoch.
    pub new_units: Vec<u64>,
}

/// How far the split can be believed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Split {
    /// Nothing speaks against it.
    Sound,
    /// It may be off: have a look. Verdicts go on.
    Suspicious,
    /// It is off; no verdict holds.
    Broken,
}

/// What the check found.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct RatioCheck {
    /// The judgement.
    pub split: Split,
    /// Anytime-valid p-value, `1 / E` and at most 1.
    pub p_value: f64,
    /// Each arm's share of the units that there are.
    pub observed: Vec<f64>,
    /// Each arm's share as configured, over all epochs.
    pub expected: Vec<f64>,
}

/// Checks the counts of all epochs against their weights.
///
/// Arms beyond the shorter list of an epoch, and arms of weight 0, are left out of that epoch: in the moment of a change a
/// unit may still arrive by the old weights, and that proves nothing.
#[must_use]
pub fn check(epochs: &[Epoch]) -> RatioCheck {
    let ln_e_value: f64 = epochs.iter().map(|epoch| ln_e_value(&epoch.counted())).sum();
    let split = match ln_e_value {
        e if e >= -BROKEN_ALPHA.ln() => Split::Broken,
        e if e >= -SUSPICIOUS_ALPHA.ln() => Split::Suspicious,
        _ => Split::Sound,
    };
    let arms = epochs.iter().map(|epoch| epoch.weights.len().min(epoch.new_units.len())).max().unwrap_or(0);
    let (mut observed, mut expected) = (vec![0.0; arms], vec![0.0; arms]);
    for epoch in epochs {
        for (arm, share, units, of) in epoch.shares() {
            observed[arm] += units as f64;
            expected[arm] += share * of as f64;
        }
    }
    RatioCheck {
        split,
        p_value: (-ln_e_value).exp().min(1.0),
        observed: normalised(observed),
        expected: normalised(expected),
    }
}

/// `ln E` of one epoch; 0 where nothing can be told.
fn ln_e_value(counted: &[(f64, u64)]) -> f64 {
    let units: u64 = counted.iter().map(|(_, units)| units).sum();
    let arms = counted.iter().map(|(share, units)| {
        let (prior, units) = (CONCENTRATION * share, *units as f64);
        ln_gamma(prior + units) - ln_gamma(prior) - units * share.ln()
    });
    arms.sum::<f64>() + ln_gamma(CONCENTRATION) - ln_gamma(CONCENTRATION + units as f64)
}

fn normalised(sums: Vec<f64>) -> Vec<f64> {
    let total: f64 = sums.iter().sum();
    if total > 0.0 { sums.into_iter().map(|sum| sum / total).collect() } else { sums }
}

// === impl Epoch ===

impl Epoch {
    /// Configured share and new units of each arm that takes part.
    fn counted(&self) -> Vec<(f64, u64)> {
        self.shares().map(|(_, share, units, _)| (share, units)).collect()
    }

    /// Of each arm that takes part: its place, configured share, new units, and the new units of all.
    fn shares(&self) -> impl Iterator<Item = (usize, f64, u64, u64)> {
        let pairs = || self.weights.iter().zip(&self.new_units).enumerate().filter(|(_, (weight, _))| **weight > 0.0);
        let weights: f64 = pairs().map(|(_, (weight, _))| weight).sum();
        let all: u64 = pairs().map(|(_, (_, units))| units).sum();
        pairs().map(move |(arm, (weight, units))| (arm, weight / weights, *units, all))
    }
}

#[cfg(test)]
mod tests {
    use super::{super::random::Random, *};

    fn epoch(weights: &[f64], new_units: &[u64]) -> Epoch {
        Epoch { weights: weights.to_vec(), new_units: new_units.to_vec() }
    }

    /// References: scipy 1.17, `betaln(500 + k, 500 + n - k) - betaln(500, 500) + n ln 2` and its like.
    #[test]
    fn e_values_are_the_mixtures() {
        for (weights, units, expected) in [
            (vec![50.0, 50.0], vec![5_000, 5_000], -1.199_174_909_073),
            (vec![50.0, 50.0], vec![5_300, 4_700], 15.174_075_237_497),
            (vec![1.0, 1.0, 2.0], vec![700, 800, 1_900], 19.278_872_259_258),
        ] {
            let found = ln_e_value(&epoch(&weights, &units).counted());
            assert!((found - expected).abs() < 1e-8, "{units:?}: {found}, not {expected}");
        }
    }

    #[test]
    fn a_split_is_judged_by_how_far_it_is_off() {
        for (units, split) in [
            ([0, 0], Split::Sound),
            ([5_000, 5_000], Split::Sound),
            ([5_100, 4_900], Split::Sound),
            ([5_155, 4_845], Split::Suspicious),
            ([5_250, 4_750], Split::Broken),
            ([60, 0], Split::Sound),
            ([600, 300], Split::Broken),
        ] {
            assert_eq!(check(&[epoch(&[1.0, 1.0], &units)]).split, split, "{units:?}");
        }
    }

    #[test]
    fn epochs_of_different_weights_are_judged_by_their_own() {
        let ramp = [epoch(&[90.0, 10.0], &[9_000, 1_000]), epoch(&[50.0, 50.0], &[5_000, 5_000])];
        let found = check(&ramp);
        assert_eq!(found.split, Split::Sound);
        assert_eq!((found.observed, found.expected), (vec![0.7, 0.3], vec![0.7, 0.3]));
        // The sums alone would look broken by either weights.
        assert_eq!(check(&[epoch(&[50.0, 50.0], &[14_000, 6_000])]).split, Split::Broken);
    }

    #[test]
    fn an_arm_without_weight_proves_nothing() {
        assert_eq!(check(&[epoch(&[1.0, 1.0, 0.0], &[500, 500, 3])]).split, Split::Sound);
        assert_eq!(check(&[]).p_value, 1.0);
    }

    /// The same e-value unit by unit: what the next unit's arm was predicted with, over its weight.
    fn ever_reaches(alpha: f64, expected: f64, truth: f64, units: u32, random: &mut Random) -> bool {
        let (mut ln_e_value, mut arm) = (0.0_f64, 0.0_f64);
        (0..units).any(|before| {
            let (mean, total) = (CONCENTRATION * expected + arm, CONCENTRATION + f64::from(before));
            let in_arm = random.uniform() < truth;
            let odds = if in_arm { mean / total / expected } else { (total - mean) / total / (1.0 - expected) };
            arm += f64::from(u8::from(in_arm));
            ln_e_value += odds.ln();
            ln_e_value >= -alpha.ln()
        })
    }

    #[test]
    fn unit_by_unit_is_the_same_evidence() {
        let (mut ln_e_value_so_far, mut arm) = (0.0_f64, 0_u32);
        for before in 0..300_u32 {
            let in_arm = before % 3 == 0;
            let (mean, total) = (CONCENTRATION * 0.25 + f64::from(arm), CONCENTRATION + f64::from(before));
            ln_e_value_so_far += if in_arm { mean / total / 0.25 } else { (total - mean) / total / 0.75 }.ln();
            arm += u32::from(in_arm);
        }
        let found = ln_e_value(&[(0.25, u64::from(arm)), (0.75, u64::from(300 - arm))]);
        assert!((found - ln_e_value_so_far).abs() < 1e-9, "{found} {ln_e_value_so_far}");
    }

    #[test]
    fn sound_splits_are_called_broken_no_more_often_than_promised() {
        let mut random = Random::new(11);
        for expected in [0.5, 0.1, 0.01] {
            let runs = 600;
            let suspicious =
                (0..runs).filter(|_| ever_reaches(SUSPICIOUS_ALPHA, expected, expected, 5_000, &mut random)).count();
            assert!(suspicious <= runs / 20, "{suspicious} of {runs} at {expected}");
        }
    }

    /// Holds the table in the module's head, give or take what 200 runs can tell (three standard errors: 11 points at most).
    #[test]
    fn skewed_splits_are_found_as_often_as_documented() {
        let mut random = Random::new(12);
        for (expected, truth, broken) in [
            (0.5, 0.51, 0.11),
            (0.5, 0.52, 0.74),
            (0.5, 0.525, 0.96),
            (0.1, 0.11, 0.49),
            (0.05, 0.06, 0.88),
            (0.01, 0.02, 1.0),
        ] {
            let found = (0..200).filter(|_| ever_reaches(BROKEN_ALPHA, expected, truth, 10_000, &mut random)).count();
            let share = found as f64 / 200.0;
            assert!((share - broken).abs() <= 0.11, "{truth} for {expected}: {share}, not {broken}");
        }
    }
}
