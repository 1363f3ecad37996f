//! Latencies as counts in fixed logarithmic bins: mergeable, so percentiles of any span come from sums of stored ones.
//!
//! Sixteen bins to each doubling: a percentile is at most 3.2 % off. Microseconds below 32 are exact.

use std::time::Duration;

/// Bins to each doubling, as a power of two.
const SUB_BITS: u32 = 4;
/// Values below it have a bin each.
const LINEAR: u64 = 1 << (SUB_BITS + 1);

/// How many values fell into each bin.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Histogram {
    /// Bin and count, ascending by bin; no count is 0.
    bins: Vec<(u16, u64)>,
}

impl Histogram {
    /// Counts one value, in microseconds.
    pub fn add(&mut self, us: u64) {
        self.add_to(bin_of(us), 1);
    }

    /// Adds all counts of `other`.
    pub fn merge(&mut self, other: &Histogram) {
        if self.bins.is_empty() {
            self.bins.clone_from(&other.bins);
            return;
        }
        // Both ascend, so one pass finds the bins that are in both. The few that are new come after it.
        let (mut at, mut new) = (0, Vec::new());
        for (bin, count) in &other.bins {
            at += self.bins[at..].iter().take_while(|(own, _)| own < bin).count();
            match self.bins.get_mut(at) {
                Some((own, sum)) if own == bin => *sum = sum.saturating_add(*count),
                _ => new.push((*bin, *count)),
            }
        }
        if !new.is_empty() {
            self.bins.extend(new);
            // Two ascending runs: the sort finds them, and merges them.
            self.bins.sort_by_key(|(bin, _)| *bin);
        }
    }

    /// How many values there are.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.bins.iter().map(|(_, count)| count).sum()
    }

    /// The value below which the `share` (0 to 1) of all values lies: the middle of its bin. `None` when there are none.
    #[must_use]
    pub fn percentile(&self, share: f64) -> Option<Duration> {
        let rank = ((self.count() as f64 * share).ceil() as u64).max(1);
        let mut seen = 0;
        let reached = |count: &u64| {
            seen += count;
            seen >= rank
        };
        let mut reached = reached;
        self.bins.iter().find(|(_, count)| reached(count)).map(|(bin, _)| Duration::from_micros(middle_of(*bin)))
    }

    /// As a few bytes: the distance from the bin before, and the count, each a variable-length integer (LEB128).
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(self.bins.len() * 3);
        let mut before = 0;
        for (bin, count) in &self.bins {
            write_varint(&mut bytes, u64::from(bin - before));
            write_varint(&mut bytes, *count);
            before = *bin;
        }
        bytes
    }

    /// What [`Histogram::encode`] wrote. `None` when `bytes` are anything else.
    #[must_use]
    pub fn decode(mut bytes: &[u8]) -> Option<Histogram> {
        let mut bins: Vec<(u16, u64)> = Vec::with_capacity(bytes.len() / 2);
        let mut bin = 0_u16;
        while !bytes.is_empty() {
            let step = u16::try_from(read_varint(&mut bytes)?).ok()?;
            if step == 0 && !bins.is_empty() {
                return None;
            }
            bin = bin.checked_add(step).filter(|bin| *bin <= bin_of(u64::MAX))?;
            bins.push((bin, read_varint(&mut bytes)?));
        }
        Some(Histogram { bins })
    }

    fn add_to(&mut self, bin: u16, count: u64) {
        match self.bins.binary_search_by_key(&bin, |(bin, _)| *bin) {
            Ok(at) => self.bins[at].1 = self.bins[at].1.saturating_add(count),
            Err(at) => self.bins.insert(at, (bin, count)),
        }
    }
}

/// The bin of a value: itself while small, then the exponent and the four bits after the leading one.
fn bin_of(value: u64) -> u16 {
    if value < LINEAR {
        return value as u16;
    }
    let exponent = value.ilog2();
    let sub = (value >> (exponent - SUB_BITS)) & ((1 << SUB_BITS) - 1);
    (LINEAR + (u64::from(exponent - SUB_BITS - 1) << SUB_BITS) + sub) as u16
}

fn middle_of(bin: u16) -> u64 {
    let bin = u64::from(bin);
    if bin < LINEAR {
        return bin;
    }
    let exponent = ((bin - LINEAR) >> SUB_BITS) + u64::from(SUB_BITS) + 1;
    let sub = (bin - LINEAR) & ((1 << SUB_BITS) - 1);
    let width = 1_u64 << (exponent - u64::from(SUB_BITS));
    (1_u64 << exponent) + sub * width + width / 2
}

fn write_varint(bytes: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        bytes.push(value as u8 | 0x80);
        value >>= 7;
    }
    bytes.push(value as u8);
}

fn read_varint(bytes: &mut &[u8]) -> Option<u64> {
    let mut value = 0_u64;
    for shift in (0..64).step_by(7) {
        let (byte, rest) = bytes.split_first()?;
        *bytes = rest;
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn of(values: &[u64]) -> Histogram {
        let mut histogram = Histogram::default();
        values.iter().for_each(|value| histogram.add(*value));
        histogram
    }

    #[test]
    fn nothing_has_no_percentile() {
        assert_eq!(Histogram::default().percentile(0.5), None);
        assert_eq!(Histogram::decode(&[]), Some(Histogram::default()));
    }

    #[test]
    fn foreign_bytes_are_no_histogram() {
        for bytes in [&[0x80][..], &[1], &[0xff; 12], &[0xff, 0xff, 0x03, 1], &[1, 1, 0, 1]] {
            assert_eq!(Histogram::decode(bytes), None, "{bytes:?}");
        }
    }

    proptest! {
        #[test]
        fn a_percentile_is_within_a_bin_of_the_true_one(mut values in prop::collection::vec(0..10_u64.pow(12), 1..200), share in 0.0..=1.0) {
            let found = of(&values).percentile(share).unwrap().as_micros() as f64;
            values.sort_unstable();
            let rank = ((values.len() as f64 * share).ceil() as usize).max(1);
            let truth = values[rank - 1] as f64;
            prop_assert!((found - truth).abs() <= truth * 0.032 + 0.5, "{found} is not {truth}");
        }

        #[test]
        fn bytes_come_back_and_sums_are_of_all_values(a in prop::collection::vec(any::<u64>(), 0..50), b in prop::collection::vec(any::<u64>(), 0..50)) {
            let mut merged = of(&a);
            merged.merge(&of(&b));
            prop_assert_eq!(&merged, &of(&[a, b].concat()));
            prop_assert_eq!(Histogram::decode(&merged.encode()), Some(merged));
        }

        #[test]
        fn any_bytes_are_read_without_panic(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
            let _ = Histogram::decode(&bytes);
        }
    }
}
