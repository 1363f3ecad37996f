//! The few functions of probability that the standard library lacks. Accuracies are those that the tests check.

use std::f64::consts::{PI, SQRT_2};

/// Lanczos' approximation with g = 7 and nine terms, as in Numerical Recipes (3rd ed., section 6.1); 15 digits.
const LANCZOS_G: f64 = 7.0;
const LANCZOS: [f64; 9] = [
    0.999_999_999_999_809_9,
    676.520_368_121_885_1,
    -1_259.139_216_722_402_8,
    771.323_428_777_653_1,
    -176.615_029_162_140_6,
    12.507_343_278_686_905,
    -0.138_571_095_265_720_12,
    9.984_369_578_019_572e-6,
    1.505_632_735_149_311_6e-7,
];

/// Natural logarithm of the gamma function for `x` above 0, to 13 digits.
#[must_use]
pub fn ln_gamma(x: f64) -> f64 {
    if x < 0.5 {
        // Reflection: the series below is for the right half.
        return (PI / (PI * x).sin()).ln() - ln_gamma(1.0 - x);
    }
    let x = x - 1.0;
    let series = LANCZOS[1..].iter().zip(1_u32..).fold(LANCZOS[0], |sum, (c, i)| sum + c / (x + f64::from(i)));
    let t = x + LANCZOS_G + 0.5;
    0.5 * (2.0 * PI).ln() + (x + 0.5) * t.ln() - t + series.ln()
}

/// Natural logarithm of the beta function for arguments above 0.
#[must_use]
pub fn ln_beta(a: f64, b: f64) -> f64 {
    ln_gamma(a) + ln_gamma(b) - ln_gamma(a + b)
}

/// Probability that a standard normal variable is at most `z`, to 1e-13 absolute.
#[must_use]
pub fn normal_cdf(z: f64) -> f64 {
    0.5 * erfc(-z / SQRT_2)
}

/// The standard normal's quantile of `p`, infinite at 0 and 1; 13 digits.
///
/// Starts from Acklam's rational approximation (relative error 1.15e-9) and takes one step of Halley's method.
#[must_use]
pub fn normal_quantile(p: f64) -> f64 {
    if p <= 0.0 {
        return f64::NEG_INFINITY;
    }
    if p >= 1.0 {
        return f64::INFINITY;
    }
    if p > 0.5 {
        return -normal_quantile(1.0 - p);
    }
    let start = acklam(p);
    let error = normal_cdf(start) - p;
    let step = error * (2.0 * PI).sqrt() * (start * start / 2.0).exp();
    start - step / (1.0 + start * step / 2.0)
}

/// Quantile for `p` of at most a half. Source: P. J. Acklam, "An algorithm for computing the inverse normal cumulative
/// distribution function" (2003).
fn acklam(p: f64) -> f64 {
    const A: [f64; 6] = [
        -3.969_683_028_665_376e1,
        2.209_460_984_245_205e2,
        -2.759_285_104_469_687e2,
        1.383_577_518_672_69e2,
        -3.066_479_806_614_716e1,
        2.506_628_277_459_239,
    ];
    const B: [f64; 6] = [
        -5.447_609_879_822_406e1,
        1.615_858_368_580_409e2,
        -1.556_989_798_598_866e2,
        6.680_131_188_771_972e1,
        -1.328_068_155_288_572e1,
        1.0,
    ];
    const C: [f64; 6] = [
        -7.784_894_002_430_293e-3,
        -3.223_964_580_411_365e-1,
        -2.400_758_277_161_838,
        -2.549_732_539_343_734,
        4.374_664_141_464_968,
        2.938_163_982_698_783,
    ];
    const D: [f64; 5] =
        [7.784_695_709_041_462e-3, 3.224_671_290_700_398e-1, 2.445_134_137_142_996, 3.754_408_661_907_416, 1.0];
    if p < 0.024_25 {
        let q = (-2.0 * p.ln()).sqrt();
        return polynomial(&C, q) / polynomial(&D, q);
    }
    let q = p - 0.5;
    let r = q * q;
    polynomial(&A, r) * q / polynomial(&B, r)
}

/// Highest power first.
fn polynomial(coefficients: &[f64], x: f64) -> f64 {
    coefficients.iter().fold(0.0, |sum, c| sum * x + c)
}

/// The complementary error function: a series near 0, a continued fraction (Lentz) further out.
fn erfc(x: f64) -> f64 {
    if x < 0.0 {
        return 2.0 - erfc(-x);
    }
    if x < 2.5 { 1.0 - erf_series(x) } else { erfc_fraction(x) }
}

/// Abramowitz & Stegun 7.1.6.
fn erf_series(x: f64) -> f64 {
    let (mut term, mut sum) = (x, x);
    for n in 1..100 {
        term *= 2.0 * x * x / (2.0 * f64::from(n) + 1.0);
        sum += term;
        if term < sum * 1e-17 {
            break;
        }
    }
    sum * 2.0 / PI.sqrt() * (-x * x).exp()
}

/// Abramowitz & Stegun 7.1.14, from its tail inward.
fn erfc_fraction(x: f64) -> f64 {
    let tail = (1..=60).rev().fold(0.0, |tail, n| f64::from(n) / 2.0 / (x + tail));
    (-x * x).exp() / PI.sqrt() / (x + tail)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn close(found: f64, expected: f64, relative: f64) {
        assert!((found - expected).abs() <= relative * expected.abs().max(1e-300), "{found} is not {expected}");
    }

    /// References: scipy 1.17 `scipy.special.gammaln`.
    #[test]
    fn ln_gamma_has_its_known_values() {
        for (x, expected) in [
            (0.1, 2.252_712_651_734_206),
            (0.5, 0.572_364_942_924_7),
            (2.5, 0.284_682_870_472_919_2),
            (10.0, 12.801_827_480_081_469),
            (1_000.5, 5_908.674_175_848_678),
            (1e6, 12_815_504.569_147_611),
        ] {
            close(ln_gamma(x), expected, 1e-13);
        }
        assert!(ln_gamma(1.0).abs() < 1e-14 && ln_gamma(2.0).abs() < 1e-14);
    }

    /// References: scipy 1.17 `scipy.stats.norm.cdf`.
    #[test]
    fn normal_cdf_has_its_known_values() {
        for (z, expected) in [
            (-8.0, 6.220_960_574_271_786e-16),
            (-4.0, 3.167_124_183_311_986e-5),
            (-1.959_963_984_540_054, 0.025),
            (0.0, 0.5),
            (1.0, 0.841_344_746_068_542_9),
            (3.0, 0.998_650_101_968_369_9),
        ] {
            close(normal_cdf(z), expected, 1e-12);
        }
    }

    #[test]
    fn normal_quantile_inverts_the_cdf() {
        for p in [1e-12, 1e-6, 0.001, 0.025, 0.3, 0.5, 0.8, 0.975, 0.999_9] {
            close(normal_cdf(normal_quantile(p)), p, 1e-12);
        }
        close(normal_quantile(0.975), 1.959_963_984_540_054, 1e-13);
        assert_eq!(normal_quantile(0.0), f64::NEG_INFINITY);
        assert_eq!(normal_quantile(1.0), f64::INFINITY);
    }
}
