//! Bootstrap intervals of a mean, for scores of an evaluation: skewed, bounded, of a few dozen cases, looked at once.
//!
//! These are intervals for a fixed number of cases. What is looked at while it grows wants [`super::sequence`].
//! Source: Efron and Tibshirani, *An Introduction to the Bootstrap* (1993), sections 13.3 (percentile) and 14.3 (BCa).

use super::{
    Estimate,
    random::Random,
    special::{normal_cdf, normal_quantile},
};

/// How to resample.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Resampling {
    /// How many resamples; at least 1,000 for limits that do not tremble.
    pub resamples: usize,
    /// Share of such intervals that contain the truth: 0.95.
    pub level: f64,
    /// The same seed gives the same interval.
    pub seed: u64,
}

impl Default for Resampling {
    fn default() -> Resampling {
        Resampling { resamples: 10_000, level: 0.95, seed: 0 }
    }
}

/// Mean of `values` with its bias-corrected and accelerated interval (BCa), the one to prefer.
///
/// Nothing for no values. Of equal values the interval is that value alone, which is not certainty: where values are only 0
/// and 1, prefer [`super::proportion::wilson`], which says what "all of 20 passed" does not prove.
#[must_use]
pub fn mean(values: &[f64], resampling: &Resampling) -> Option<Estimate> {
    let value = average(values)?;
    let means = resampled_means(values, resampling);
    let tail = (1.0 - resampling.level) / 2.0;
    let bias = normal_quantile(share_below(&means, value));
    let acceleration = acceleration(values, value);
    let moved = |p: f64| {
        let z = bias + normal_quantile(p);
        normal_cdf(bias + z / (1.0 - acceleration * z))
    };
    Some(Estimate { value, low: quantile(&means, moved(tail)), high: quantile(&means, moved(1.0 - tail)) })
}

/// Mean of `values` with its percentile interval: simpler, and too short for skewed values in small numbers.
#[must_use]
pub fn mean_percentile(values: &[f64], resampling: &Resampling) -> Option<Estimate> {
    let value = average(values)?;
    let means = resampled_means(values, resampling);
    let tail = (1.0 - resampling.level) / 2.0;
    Some(Estimate { value, low: quantile(&means, tail), high: quantile(&means, 1.0 - tail) })
}

/// Means of resamples, in ascending order.
fn resampled_means(values: &[f64], resampling: &Resampling) -> Vec<f64> {
    let mut random = Random::new(resampling.seed);
    let resample = |random: &mut Random| (0..values.len()).map(|_| values[random.below(values.len())]).sum::<f64>();
    let mut means: Vec<f64> =
        (0..resampling.resamples.max(1)).map(|_| resample(&mut random) / values.len() as f64).collect();
    means.sort_by(f64::total_cmp);
    means
}

fn average(values: &[f64]) -> Option<f64> {
    (!values.is_empty()).then(|| values.iter().sum::<f64>() / values.len() as f64)
}

/// The share of sorted `means` below `value`, those equal to it counted half, kept off 0 and 1 so that its quantile is finite.
fn share_below(means: &[f64], value: f64) -> f64 {
    // Sums in another order differ in the last bits; they are equal all the same.
    let near = value.abs().max(1e-300) * 1e-12;
    let below = means.partition_point(|mean| *mean < value - near);
    let up_to = means.partition_point(|mean| *mean <= value + near);
    let count = means.len() as f64;
    ((below + up_to) as f64 / 2.0 / count).clamp(0.5 / count, 1.0 - 0.5 / count)
}

/// How fast the standard error changes with the mean: a sixth of the skewness of the mean, which is what the jackknife of
/// equation 14.15 gives for a mean.
fn acceleration(values: &[f64], mean: f64) -> f64 {
    let power = |exponent| values.iter().map(|value| (value - mean).powi(exponent)).sum::<f64>();
    let squares = power(2);
    if squares > 0.0 { power(3) / (6.0 * squares.powf(1.5)) } else { 0.0 }
}

/// Quantile of sorted values, between neighbours by straight lines.
fn quantile(sorted: &[f64], p: f64) -> f64 {
    let at = p.clamp(0.0, 1.0) * (sorted.len() - 1) as f64;
    let (below, share) = (at.floor() as usize, at.fract());
    let above = (below + 1).min(sorted.len() - 1);
    sorted[below] + (sorted[above] - sorted[below]) * share
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SCORES: [f64; 20] = [
        0.91, 0.12, 0.55, 0.78, 1.0, 0.97, 0.33, 0.86, 0.95, 0.99, 1.0, 0.68, 0.72, 0.05, 0.9, 0.93, 0.88, 0.61, 1.0,
        0.84,
    ];

    fn assert_near(found: Estimate, low: f64, high: f64) {
        assert!((found.low - low).abs() < 0.002 && (found.high - high).abs() < 0.002, "{found:?}, not {low} to {high}");
    }

    /// References: scipy 1.17 `scipy.stats.bootstrap(..., n_resamples=200_000)` with `method="BCa"` and `"percentile"`.
    #[test]
    fn intervals_are_those_of_scipy() {
        let resampling = Resampling { resamples: 40_000, ..Resampling::default() };
        assert_near(mean(&SCORES, &resampling).unwrap(), 0.597, 0.8535);
        assert_near(mean_percentile(&SCORES, &resampling).unwrap(), 0.621, 0.867);
    }

    #[test]
    fn the_same_seed_gives_the_same_interval() {
        let with_seed = |seed| mean(&SCORES, &Resampling { seed, ..Resampling::default() }).unwrap();
        assert_eq!(with_seed(7), with_seed(7));
        assert_ne!(with_seed(7), with_seed(8));
    }

    #[test]
    fn nothing_and_equal_values_have_no_spread() {
        assert_eq!(mean(&[], &Resampling::default()), None);
        let equal = mean(&[0.5; 9], &Resampling::default()).unwrap();
        assert_eq!((equal.low, equal.value, equal.high), (0.5, 0.5, 0.5));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(40))]
        #[test]
        fn intervals_contain_the_mean_and_stay_within_the_values(values in prop::collection::vec(-10.0..10.0_f64, 5..40)) {
            let resampling = Resampling { resamples: 500, ..Resampling::default() };
            for found in [mean(&values, &resampling).unwrap(), mean_percentile(&values, &resampling).unwrap()] {
                prop_assert!(found.low <= found.value && found.value <= found.high, "{found:?}");
                let (least, most) = values.iter().fold((f64::MAX, f64::MIN), |(l, m), v| (l.min(*v), m.max(*v)));
                prop_assert!(least <= found.low && found.high <= most);
            }
        }

        #[test]
        fn a_mirrored_sample_has_the_mirrored_interval(values in prop::collection::vec(0.0..1.0_f64, 5..30)) {
            let resampling = Resampling { resamples: 500, ..Resampling::default() };
            let mirrored: Vec<f64> = values.iter().map(|value| -value).collect();
            let (one, other) = (mean(&values, &resampling).unwrap(), mean(&mirrored, &resampling).unwrap());
            prop_assert!((one.low + other.high).abs() < 1e-9 && (one.high + other.low).abs() < 1e-9, "{one:?} {other:?}");
        }
    }
}
