//! The interval of a share of a fixed number of cases: how many of an evaluation passed.

use super::{Estimate, special::normal_quantile};

/// Share of `passed` of `cases` with Wilson's score interval at `level` (0.95). Nothing for no cases.
///
/// Unlike the textbook interval it has a width where all or none passed. Source: Wilson (1927); recommended by Brown, Cai and
/// DasGupta (2001), "Interval Estimation for a Binomial Proportion".
#[must_use]
pub fn wilson(passed: u64, cases: u64, level: f64) -> Option<Estimate> {
    if cases == 0 {
        return None;
    }
    let (n, z) = (cases as f64, normal_quantile(f64::midpoint(1.0, level)));
    let share = passed.min(cases) as f64 / n;
    let centre = (share + z * z / (2.0 * n)) / (1.0 + z * z / n);
    let margin = z / (1.0 + z * z / n) * (share * (1.0 - share) / n + z * z / (4.0 * n * n)).sqrt();
    // At 0 and 1 the limit is the share itself, but for rounding.
    Some(Estimate { value: share, low: (centre - margin).clamp(0.0, share), high: (centre + margin).clamp(share, 1.0) })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// References: statsmodels 0.15 `proportion_confint(count, nobs, method="wilson")`.
    #[test]
    fn limits_are_those_of_statsmodels() {
        for (passed, cases, low, high) in [
            (0, 20, 0.0, 0.161_125_158),
            (20, 20, 0.838_874_842, 1.0),
            (45, 50, 0.786_397_686, 0.956_524_235),
            (1, 1_000, 0.000_176_546, 0.005_642_559),
        ] {
            let found = wilson(passed, cases, 0.95).unwrap();
            assert!(
                (found.low - low).abs() < 1e-8 && (found.high - high).abs() < 1e-8,
                "{passed} of {cases}: {found:?}"
            );
        }
        assert_eq!(wilson(0, 0, 0.95), None);
    }
}
