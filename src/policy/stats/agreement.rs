//! How far two judges agree, and how far by chance alone.

use std::collections::BTreeMap;

use serde::Serialize;

/// How two judges agree on the same cases.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Agreement {
    /// Cases that both judged.
    pub cases: u64,
    /// Share of them judged alike.
    pub observed: f64,
    /// Share that would be judged alike by chance, each judge keeping its own frequencies.
    pub expected: f64,
    /// Cohen's kappa, `(observed − expected) / (1 − expected)`: 1 agreement, 0 chance, below 0 worse than chance. Nothing where
    /// both always say the same one thing: agreement is then certain by chance alone.
    pub kappa: Option<f64>,
}

/// Agreement of two judges, `(first, second)` a case; nothing for no cases.
///
/// Source: Cohen (1960), "A coefficient of agreement for nominal scales".
#[must_use]
pub fn agreement<T: Ord>(pairs: &[(T, T)]) -> Option<Agreement> {
    if pairs.is_empty() {
        return None;
    }
    let mut counts: BTreeMap<&T, (u64, u64)> = BTreeMap::new();
    for (first, second) in pairs {
        counts.entry(first).or_default().0 += 1;
        counts.entry(second).or_default().1 += 1;
    }
    let cases = pairs.len() as f64;
    let observed = pairs.iter().filter(|(first, second)| first == second).count() as f64 / cases;
    let expected = counts.values().map(|(first, second)| *first as f64 * *second as f64).sum::<f64>() / (cases * cases);
    let kappa = (expected < 1.0).then(|| (observed - expected) / (1.0 - expected));
    Some(Agreement { cases: pairs.len() as u64, observed, expected, kappa })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(counts: [(&'static str, &'static str, usize); 4]) -> Vec<(&'static str, &'static str)> {
        counts.into_iter().flat_map(|(first, second, count)| std::iter::repeat_n((first, second), count)).collect()
    }

    /// The example of the Wikipedia article on Cohen's kappa: 50 grants, 35 of them judged alike; scikit-learn agrees.
    #[test]
    fn kappa_has_its_known_value() {
        let pairs = table([("yes", "yes", 20), ("yes", "no", 5), ("no", "yes", 10), ("no", "no", 15)]);
        let found = agreement(&pairs).unwrap();
        assert_eq!((found.cases, found.observed, found.expected), (50, 0.7, 0.5));
        assert!((found.kappa.unwrap() - 0.4).abs() < 1e-12, "{found:?}");
    }

    #[test]
    fn judges_that_never_differ_have_no_kappa() {
        let found = agreement(&[(1, 1), (1, 1)]).unwrap();
        assert_eq!((found.observed, found.kappa), (1.0, None));
        assert_eq!(agreement::<u8>(&[]), None);
    }

    #[test]
    fn disagreement_beyond_chance_is_below_zero() {
        let found = agreement(&[(0, 1), (1, 0), (0, 1), (1, 0)]).unwrap();
        assert_eq!(found.kappa, Some(-1.0));
    }
}
