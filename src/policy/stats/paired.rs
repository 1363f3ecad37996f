//! Two candidates on the same cases: differences case by case, so that hard cases do not blur the comparison.

use serde::Serialize;

use super::{
    Estimate,
    bootstrap::{self, Resampling},
    special::ln_gamma,
};

/// Pass or fail of two candidates, told apart by McNemar's exact test.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct McNemar {
    /// Cases that only the first passed.
    pub only_first: u64,
    /// Cases that only the second passed.
    pub only_second: u64,
    /// Probability, were they equally good, of a split at least as uneven as this; two-sided.
    pub p_value: f64,
}

/// How much better the second candidate scores than the first: mean of `second − first` with its bootstrap interval (BCa).
///
/// Nothing for no pairs. A pair is one case scored for both; cases that only one has must be left out before.
#[must_use]
pub fn difference(pairs: &[(f64, f64)], resampling: &Resampling) -> Option<Estimate> {
    let differences: Vec<f64> = pairs.iter().map(|(first, second)| second - first).collect();
    bootstrap::mean(&differences, resampling)
}

/// McNemar's exact test of pass or fail, `(first, second)` a case.
///
/// Only cases on which they differ tell anything; were the candidates equally good, each would fall either way with
/// probability ½. Source: McNemar (1947), with the binomial in place of the approximation.
#[must_use]
pub fn mcnemar(pairs: impl IntoIterator<Item = (bool, bool)>) -> McNemar {
    let (mut only_first, mut only_second) = (0, 0);
    for pair in pairs {
        match pair {
            (true, false) => only_first += 1,
            (false, true) => only_second += 1,
            _ => {}
        }
    }
    McNemar { only_first, only_second, p_value: sign_test(only_first, only_second) }
}

/// Two-sided exact test of a fair coin.
fn sign_test(heads: u64, tails: u64) -> f64 {
    let n = heads + tails;
    let ln_probability = |k: u64| {
        let choose = ln_gamma(n as f64 + 1.0) - ln_gamma(k as f64 + 1.0) - ln_gamma((n - k) as f64 + 1.0);
        choose - n as f64 * std::f64::consts::LN_2
    };
    let tail: f64 = (0..=heads.min(tails)).map(|k| ln_probability(k).exp()).sum();
    (2.0 * tail).min(1.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn split(only_first: usize, only_second: usize) -> McNemar {
        let pairs =
            [((true, false), only_first), ((false, true), only_second), ((true, true), 30), ((false, false), 4)];
        mcnemar(pairs.into_iter().flat_map(|(pair, count)| std::iter::repeat_n(pair, count)))
    }

    /// References: statsmodels 0.15 `mcnemar(table, exact=True).pvalue`.
    #[test]
    fn p_values_are_those_of_statsmodels() {
        for (only_first, only_second, expected) in [
            (0, 0, 1.0),
            (0, 5, 0.0625),
            (1, 9, 0.021_484_375),
            (9, 1, 0.021_484_375),
            (10, 10, 1.0),
            (40, 70, 0.005_447_429_511),
        ] {
            let found = split(only_first, only_second);
            assert!((found.p_value - expected).abs() < 1e-9, "{found:?}, not {expected}");
        }
    }

    #[test]
    fn cases_on_which_both_agree_tell_nothing() {
        let found = split(2, 7);
        assert_eq!((found.only_first, found.only_second), (2, 7));
    }

    #[test]
    fn pairs_cancel_what_cases_have_in_common() {
        let hard_and_easy = (0..40).map(|case| f64::from(case % 2)).map(|score| (score, score + 0.1));
        let found = difference(&hard_and_easy.collect::<Vec<_>>(), &Resampling::default()).unwrap();
        assert!((found.low - 0.1).abs() < 1e-9 && (found.high - 0.1).abs() < 1e-9, "{found:?}");
        assert_eq!(difference(&[], &Resampling::default()), None);
    }
}
