//! Confidence sequences of a yes or no per unit that hold for any number of units, the first one included.
//!
//! With `k` of `n` and a Beta(½, ½) mixture, `M(p) = B(½ + k, ½ + n − k) / B(½, ½) / (pᵏ (1 − p)ⁿ⁻ᵏ)` is a martingale that starts
//! at 1 where `p` is the true rate, so it ever reaches 1/α with probability at most α (Ville's inequality). The rates with
//! `M(p) < 1/α` are a confidence sequence: Robbins (1970); Howard, Ramdas, McAuliffe and Sekhon (2021), section 3.2, whose
//! beta-binomial mixture this is.
//!
//! Two arms are independent, so `M(p₁) · M(p₂)` is such a martingale, too, in whatever order their units come; the difference's
//! limits are those of `p₂ − p₁` over all pairs that it does not refute. This costs more than the asymptotic sequence: it pays
//! for two unknown rates where that pays for one difference.

use super::{Estimate, special::ln_beta};

/// Successes and units of one arm.
type Count = (u64, u64);

/// Halvings until a limit has ten digits.
const STEPS: u32 = 44;

/// `ln M` at `p`: how strongly the counts speak against it.
#[derive(Debug, Clone, Copy)]
struct Evidence {
    successes: f64,
    failures: f64,
    /// `ln B(½ + k, ½ + n − k) − ln B(½, ½)`.
    mixture: f64,
}

/// The rate of `successes` in `units`, valid at every look at level 1 − `alpha`; nothing for no units.
#[must_use]
pub fn rate(successes: u64, units: u64, alpha: f64) -> Option<Estimate> {
    let evidence = Evidence::of((successes, units))?;
    let threshold = -alpha.ln();
    let within = |push: f64| evidence.against(evidence.pushed(push)) <= threshold;
    Some(Estimate {
        value: evidence.share(),
        low: evidence.pushed(-furthest(|push| within(-push))),
        high: evidence.pushed(furthest(within)),
    })
}

/// How much higher the second rate is than the first, valid at every look at level 1 − `alpha`; nothing where an arm has no
/// units.
#[must_use]
pub fn difference(first: Count, second: Count, alpha: f64) -> Option<Estimate> {
    let (first, second) = (Evidence::of(first)?, Evidence::of(second)?);
    let high = furthest_apart(first, second, alpha);
    let low = -furthest_apart(second, first, alpha);
    Some(Estimate { value: second.share() - first.share(), low, high })
}

/// The greatest `above − below` that the counts do not refute together. On the edge of that convex region both are pushed
/// away from their shares with the same force (Lagrange), so one number finds the pair.
fn furthest_apart(below: Evidence, above: Evidence, alpha: f64) -> f64 {
    let threshold = -alpha.ln();
    let push = furthest(|push| below.against(below.pushed(-push)) + above.against(above.pushed(push)) <= threshold);
    above.pushed(push) - below.pushed(-push)
}

/// The greatest push that is still `within`, which only small ones are.
fn furthest(within: impl Fn(f64) -> bool) -> f64 {
    // Pushes are found on a logarithmic scale; beyond e^40 a rate is 0 or 1 to all digits.
    let (mut low, mut high) = (-40.0_f64, 40.0_f64);
    for _ in 0..STEPS {
        let middle = f64::midpoint(low, high);
        if within(middle.exp()) { low = middle } else { high = middle }
    }
    low.exp()
}

// === impl Evidence ===

impl Evidence {
    fn of((successes, units): Count) -> Option<Evidence> {
        let failures = units.checked_sub(successes).filter(|_| units > 0)? as f64;
        let successes = successes as f64;
        let mixture = ln_beta(0.5 + successes, 0.5 + failures) - ln_beta(0.5, 0.5);
        Some(Evidence { successes, failures, mixture })
    }

    fn share(&self) -> f64 {
        self.successes / (self.successes + self.failures)
    }

    fn against(&self, rate: f64) -> f64 {
        let of = |count: f64, share: f64| if count == 0.0 { 0.0 } else { count * share.ln() };
        self.mixture - of(self.successes, rate) - of(self.failures, 1.0 - rate)
    }

    /// The rate at which the evidence grows by `push` per unit of rate: where `(n p − k) / (p (1 − p)) = push`. The share itself
    /// at 0, towards 1 above, towards 0 below.
    fn pushed(&self, push: f64) -> f64 {
        if push < 0.0 {
            return 1.0 - Evidence { successes: self.failures, failures: self.successes, ..*self }.pushed(-push);
        }
        // push · p² + (n − push) · p − k = 0, solved without cancellation.
        let linear = self.successes + self.failures - push;
        let root = (linear * linear + 4.0 * push * self.successes).sqrt();
        let rate = if linear > 0.0 { 2.0 * self.successes / (linear + root) } else { (root - linear) / (2.0 * push) };
        rate.clamp(0.0, 1.0)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{super::random::Random, *};

    /// References: roots of `ln M(p) = ln(1/α)` by scipy 1.17 `brentq`.
    #[test]
    fn limits_are_the_roots_of_the_martingale() {
        for (successes, units, low, high) in [
            (0, 10, 0.0, 0.376_987_350_990_675),
            (7, 10, 0.252_412_890_085_003, 0.967_484_860_211_94),
            (500, 1_000, 0.442_418_385_676_625, 0.557_581_614_323_375),
        ] {
            let found = rate(successes, units, 0.05).unwrap();
            assert!(
                (found.low - low).abs() < 1e-9 && (found.high - high).abs() < 1e-9,
                "{successes}/{units}: {found:?}"
            );
        }
        assert_eq!(rate(0, 0, 0.05), None);
    }

    /// References: a fine grid of the first rate, the second by scipy 1.17 `brentq`.
    #[test]
    fn differences_reach_the_edge_of_what_is_not_refuted() {
        for (first, second, low, high) in [
            ((5, 50), (20, 40), 0.045_970_725, 0.708_769_754),
            ((0, 30), (30, 30), 0.763_523_810, 1.0),
            ((300, 1_000), (310, 1_000), -0.083_672_219, 0.103_582_452),
        ] {
            let found = difference(first, second, 0.05).unwrap();
            assert!(
                (found.low - low).abs() < 1e-5 && (found.high - high).abs() < 1e-5,
                "{first:?} {second:?}: {found:?}"
            );
        }
        assert_eq!(difference((0, 0), (1, 2), 0.05), None);
    }

    /// A look after every unit of 2,000 pairs of arms with rare, even and near-certain yes: the exact promise, counted.
    #[test]
    fn differences_of_equal_arms_exclude_zero_no_more_often_than_promised() {
        let mut random = Random::new(5);
        for share in [0.02, 0.5, 0.97] {
            let wrong = (0..300).filter(|_| ever_wrong(share, &mut random)).count();
            assert!(wrong <= 15, "{wrong} of 300 at {share}");
        }
    }

    fn ever_wrong(share: f64, random: &mut Random) -> bool {
        let mut counts = [(0, 0); 2];
        (0..120).any(|_| {
            let arm = &mut counts[random.below(2)];
            *arm = (arm.0 + u64::from(random.uniform() < share), arm.1 + 1);
            difference(counts[0], counts[1], 0.05).is_some_and(|found| found.low > 0.0 || found.high < 0.0)
        })
    }

    proptest! {
        #[test]
        fn intervals_contain_the_estimate_and_mirror(k1 in 0_u64..60, k2 in 0_u64..60, more in 1_u64..60) {
            let (first, second) = ((k1, k1 + more), (k2, 60));
            let found = difference(first, second, 0.05).unwrap();
            let swapped = difference(second, first, 0.05).unwrap();
            prop_assert!(found.low <= found.value && found.value <= found.high, "{found:?}");
            prop_assert!((found.low + swapped.high).abs() < 1e-9, "{found:?} {swapped:?}");
            let one = rate(k1, k1 + more, 0.05).unwrap();
            prop_assert!(0.0 <= one.low && one.low <= one.value && one.value <= one.high && one.high <= 1.0, "{one:?}");
        }
    }
}
