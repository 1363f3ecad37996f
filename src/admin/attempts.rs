//! How many wrong tokens an address may show: a limit on guessing, in bounded memory.

use std::{
    collections::HashMap,
    net::{IpAddr, Ipv6Addr},
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

/// Wrong tokens that an address may show at once.
const BURST: u32 = 20;
/// After this long it may show one more.
const REFILL: Duration = Duration::from_secs(3);
/// Addresses that are remembered; all others share one place.
const ADDRESSES_MAX: usize = 4096;

/// Wrong tokens by address. IPv6 addresses count by their network (/64): one machine has all of it.
#[derive(Debug, Default)]
pub(super) struct Attempts(Mutex<HashMap<Option<IpAddr>, Failures>>);

#[derive(Debug, Clone, Copy)]
struct Failures {
    count: u32,
    at: Instant,
}

impl Attempts {
    /// How long `address` must wait before it may show a token; `None`: it may now.
    #[must_use]
    pub(super) fn wait(&self, address: Option<IpAddr>, now: Instant) -> Option<Duration> {
        let all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let failures = all.get(&place(address)).or_else(|| (all.len() >= ADDRESSES_MAX).then(|| all.get(&None))?)?;
        (failures.left(now) >= BURST).then_some(REFILL)
    }

    /// Counts a wrong token.
    pub(super) fn failed(&self, address: Option<IpAddr>, now: Instant) {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut place = place(address);
        if !all.contains_key(&place) && all.len() >= ADDRESSES_MAX {
            all.retain(|_, failures| failures.left(now) > 0);
            if all.len() >= ADDRESSES_MAX {
                place = None;
            }
        }
        let count = all.get(&place).map_or(0, |failures| failures.left(now));
        all.insert(place, Failures { count: (count + 1).min(BURST), at: now });
    }
}

impl Failures {
    /// Failures that are not made up for by time.
    fn left(&self, now: Instant) -> u32 {
        let over = now.saturating_duration_since(self.at).as_secs() / REFILL.as_secs();
        self.count.saturating_sub(u32::try_from(over).unwrap_or(u32::MAX))
    }
}

fn place(address: Option<IpAddr>) -> Option<IpAddr> {
    address.map(|address| match address.to_canonical() {
        IpAddr::V6(v6) => IpAddr::V6(Ipv6Addr::from_bits(v6.to_bits() >> 64 << 64)),
        v4 => v4,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(text: &str) -> Option<IpAddr> {
        Some(text.parse().expect("an address"))
    }

    #[test]
    fn who_guesses_too_often_waits_and_nobody_else_does() {
        let (attempts, now) = (Attempts::default(), Instant::now());
        for _ in 0..BURST {
            assert_eq!(attempts.wait(address("192.0.2.1"), now), None);
            attempts.failed(address("192.0.2.1"), now);
        }
        assert_eq!(attempts.wait(address("192.0.2.1"), now), Some(REFILL));
        assert_eq!(attempts.wait(address("::ffff:192.0.2.1"), now), Some(REFILL), "the same address");
        assert_eq!(attempts.wait(address("192.0.2.2"), now), None);
        assert_eq!(attempts.wait(address("192.0.2.1"), now + REFILL), None);
        attempts.failed(address("192.0.2.1"), now + REFILL);
        assert_eq!(attempts.wait(address("192.0.2.1"), now + REFILL), Some(REFILL));
    }

    #[test]
    fn a_network_of_ipv6_is_one_address() {
        let (attempts, now) = (Attempts::default(), Instant::now());
        for n in 0..BURST {
            attempts.failed(address(&format!("2001:db8::{n:x}")), now);
        }
        assert!(attempts.wait(address("2001:db8::ffff:1"), now).is_some());
        assert!(attempts.wait(address("2001:db8:0:1::1"), now).is_none());
    }

    #[test]
    fn memory_is_bounded_and_those_who_find_no_place_share_one() {
        let (attempts, now) = (Attempts::default(), Instant::now());
        for n in 0..u32::try_from(2 * ADDRESSES_MAX).expect("small") {
            attempts.failed(Some(std::net::Ipv4Addr::from_bits(n).into()), now);
        }
        assert!(attempts.0.lock().expect("no panic").len() <= ADDRESSES_MAX + 1);
        assert!(attempts.wait(address("203.0.113.9"), now).is_some(), "the shared place is full");
        let later = now + REFILL * (BURST + 1);
        attempts.failed(address("203.0.113.9"), later);
        assert_eq!(attempts.0.lock().expect("no panic").len(), 1, "what is over is forgotten");
    }
}
