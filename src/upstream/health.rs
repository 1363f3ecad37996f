//! Which providers are worth a call, and whether a retry is affordable. No clock, no lock: facts and times come in,
//! atomics hold the state.
//!
//! A provider that fails [`Eject::after`] times in a row is out for [`Eject::duration`], then twice as long each time
//! its probe fails again, up to 5 minutes. Once the time is over, at most one call a second probes it; the first
//! success brings it back. The last candidate of a call is never out: a poor provider is better than none.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicU32, AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use arc_swap::ArcSwap;

use crate::config::snapshot::Eject;

/// Longest ejection.
const EJECTION_MAX: Duration = Duration::from_secs(300);
/// Least time between two probes.
const PROBE_INTERVAL_MS: u64 = 1000;
/// Doublings are counted up to here: far beyond what reaches [`EJECTION_MAX`].
const EJECTIONS_BITS: u32 = 5;
const EJECTIONS_MAX: u64 = (1 << EJECTIONS_BITS) - 1;

/// State of a provider's circuit, for `tollgate_circuit_state`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Circuit {
    /// In rotation.
    Closed,
    /// May be probed.
    HalfOpen,
    /// Out of rotation.
    Open,
}

impl Circuit {
    /// 0 closed, 1 half open, 2 open.
    #[must_use]
    pub fn as_gauge(self) -> f64 {
        match self {
            Circuit::Closed => 0.0,
            Circuit::HalfOpen => 1.0,
            Circuit::Open => 2.0,
        }
    }
}

/// The health of one provider; it outlives configurations.
#[derive(Debug)]
pub struct Health {
    origin: Instant,
    /// Failures since the last success.
    failures: AtomicU32,
    /// The current ejection, see [`Ejection`]; 0 while closed.
    ejection: AtomicU64,
    /// When the next probe may go, in milliseconds after `origin`.
    next_probe_ms: AtomicU64,
}

/// An ejection's end and its number in a row, packed into one word so that both change together.
#[derive(Debug, Clone, Copy)]
struct Ejection {
    until_ms: u64,
    /// 1 for the first.
    number: u64,
}

impl Ejection {
    fn unpack(word: u64) -> Option<Ejection> {
        (word != 0).then_some(Ejection { until_ms: word >> EJECTIONS_BITS, number: word & EJECTIONS_MAX })
    }

    /// The `number`-th ejection in a row, from `now_ms` on.
    fn begin(eject: Eject, number: u64, now_ms: u64) -> Ejection {
        let number = number.min(EJECTIONS_MAX);
        let length = eject.duration.saturating_mul(1 << (number - 1)).min(EJECTION_MAX.max(eject.duration));
        Ejection { until_ms: now_ms.saturating_add(as_millis(length)), number }
    }

    fn pack(self) -> u64 {
        (self.until_ms << EJECTIONS_BITS) | self.number
    }
}

impl Health {
    /// A healthy provider. Times before `origin` count as `origin`.
    #[must_use]
    pub fn new(origin: Instant) -> Health {
        Health { origin, failures: AtomicU32::new(0), ejection: AtomicU64::new(0), next_probe_ms: AtomicU64::new(0) }
    }

    /// Whether a call may go to this provider now. A probe is handed out by this: ask only if the call then goes.
    ///
    /// `candidates` is how many providers the call could still try, this one included: the last is always allowed.
    #[must_use]
    pub fn may_try(&self, now: Instant, candidates: usize) -> bool {
        match self.circuit(now) {
            Circuit::Closed => true,
            _ if candidates <= 1 => true,
            Circuit::Open => false,
            Circuit::HalfOpen => self.take_probe(self.millis(now)),
        }
    }

    fn take_probe(&self, now_ms: u64) -> bool {
        let due = self.next_probe_ms.load(Relaxed);
        due <= now_ms && self.next_probe_ms.compare_exchange(due, now_ms + PROBE_INTERVAL_MS, Relaxed, Relaxed).is_ok()
    }

    /// A call succeeded: the provider is back.
    pub fn on_success(&self) {
        // Loads first: on the ordinary path nothing is written, and no cache line moves between cores.
        if self.failures.load(Relaxed) != 0 {
            self.failures.store(0, Relaxed);
        }
        if self.ejection.load(Relaxed) != 0 {
            self.ejection.store(0, Relaxed);
        }
    }

    /// A call failed by the provider's fault. Says whether this took the provider out, now or again.
    pub fn on_failure(&self, eject: Eject, now: Instant) -> bool {
        let failures = self.failures.fetch_add(1, Relaxed).saturating_add(1);
        let now_ms = self.millis(now);
        let current = self.ejection.load(Relaxed);
        let next = match Ejection::unpack(current) {
            None if failures < eject.after.max(1) => return false,
            None => Ejection::begin(eject, 1, now_ms),
            // Calls that were under way when it was taken out, or had no other choice.
            Some(ejection) if now_ms < ejection.until_ms => return false,
            Some(ejection) => Ejection::begin(eject, ejection.number + 1, now_ms),
        };
        self.ejection.compare_exchange(current, next.pack(), Relaxed, Relaxed).is_ok()
    }

    /// The circuit's state now.
    #[must_use]
    pub fn circuit(&self, now: Instant) -> Circuit {
        match Ejection::unpack(self.ejection.load(Relaxed)) {
            None => Circuit::Closed,
            Some(ejection) if self.millis(now) < ejection.until_ms => Circuit::Open,
            Some(_) => Circuit::HalfOpen,
        }
    }

    fn millis(&self, now: Instant) -> u64 {
        as_millis(now.saturating_duration_since(self.origin))
    }
}

fn as_millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// The health of each provider by its name, kept over reloads.
#[derive(Debug, Default)]
pub struct Healths(ArcSwap<HashMap<Arc<str>, Arc<Health>>>);

impl Healths {
    /// The provider's health; a new provider begins healthy at `now`.
    pub fn of(&self, provider: &Arc<str>, now: Instant) -> Arc<Health> {
        if let Some(health) = self.0.load().get(provider) {
            return Arc::clone(health);
        }
        let fresh = Arc::new(Health::new(now));
        self.0.rcu(|known| {
            let mut known = HashMap::clone(known);
            known.entry(Arc::clone(provider)).or_insert_with(|| Arc::clone(&fresh));
            known
        });
        Arc::clone(self.0.load().get(provider).unwrap_or(&fresh))
    }

    /// Every provider known, for metrics.
    #[must_use]
    pub fn all(&self) -> Arc<HashMap<Arc<str>, Arc<Health>>> {
        self.0.load_full()
    }
}

// === retries ===

/// Seconds that count as recent.
const WINDOW_SECONDS: usize = 10;
/// Retries that are always allowed each second, so that a quiet gateway can retry at all.
const RETRIES_PER_SECOND_MIN: u64 = 3;

/// Keeps retries a share of recent calls, so that a failing provider doesn't get a multiple of the traffic.
///
/// With a share of 20 % and every call failing, attempts stay below 1.2 × calls, but for the floor of 3 a second.
#[derive(Debug)]
pub struct RetryBudget {
    origin: Instant,
    seconds: [AtomicU64; WINDOW_SECONDS],
}

/// The counts of one second, packed into one word.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Second {
    /// Seconds after the origin, modulo 2^24 (194 days).
    number: u64,
    calls: u64,
    retries: u64,
}

impl Second {
    const COUNT_BITS: u32 = 20;
    const COUNT_MAX: u64 = (1 << Second::COUNT_BITS) - 1;
    const NUMBER_MAX: u64 = (1 << 24) - 1;

    fn unpack(word: u64) -> Second {
        Second {
            number: word >> (2 * Second::COUNT_BITS),
            calls: (word >> Second::COUNT_BITS) & Second::COUNT_MAX,
            retries: word & Second::COUNT_MAX,
        }
    }

    fn pack(self) -> u64 {
        (self.number << (2 * Second::COUNT_BITS))
            | (self.calls.min(Second::COUNT_MAX) << Second::COUNT_BITS)
            | self.retries.min(Second::COUNT_MAX)
    }
}

impl RetryBudget {
    /// An empty window. Times before `origin` count as `origin`.
    #[must_use]
    pub fn new(origin: Instant) -> RetryBudget {
        RetryBudget { origin, seconds: Default::default() }
    }

    /// A call came in. Its first attempt is free.
    pub fn on_call(&self, now: Instant) {
        self.update(self.second(now), |second| second.calls += 1);
    }

    /// Takes a retry from the budget, if there is one: at most `share` (0 to 1) of the calls of the last 10 s.
    #[must_use]
    pub fn try_retry(&self, share: f64, now: Instant) -> bool {
        let number = self.second(now);
        // Taken first and given back: of several at once, rather too few retry than too many.
        let this_second = self.update(number, |second| second.retries += 1);
        let (calls, retries) = self.totals(number);
        if this_second.retries <= RETRIES_PER_SECOND_MIN || retries as f64 <= share * calls as f64 {
            return true;
        }
        self.update(number, |second| second.retries = second.retries.saturating_sub(1));
        false
    }

    fn second(&self, now: Instant) -> u64 {
        // 0 is left to slots that were never used.
        now.saturating_duration_since(self.origin).as_secs() % Second::NUMBER_MAX + 1
    }

    /// Changes the counts of a second, which begin at zero where its slot holds an older one's; gives the new counts.
    fn update(&self, number: u64, change: impl Fn(&mut Second)) -> Second {
        let slot = &self.seconds[number as usize % WINDOW_SECONDS];
        let mut word = slot.load(Relaxed);
        loop {
            let mut second = Second::unpack(word);
            if second.number != number {
                second = Second { number, calls: 0, retries: 0 };
            }
            change(&mut second);
            match slot.compare_exchange_weak(word, second.pack(), Relaxed, Relaxed) {
                Ok(_) => return second,
                Err(newer) => word = newer,
            }
        }
    }

    /// Calls and retries of the window that ends with second `number`.
    fn totals(&self, number: u64) -> (u64, u64) {
        self.seconds
            .iter()
            .map(|slot| Second::unpack(slot.load(Relaxed)))
            .filter(|second| second.number <= number && number - second.number < WINDOW_SECONDS as u64)
            .filter(|second| second.number > 0)
            .fold((0, 0), |(calls, retries), second| (calls + second.calls, retries + second.retries))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const EJECT: Eject = Eject { after: 3, duration: Duration::from_secs(10) };

    struct Timeline {
        origin: Instant,
        health: Health,
    }

    impl Timeline {
        fn new() -> Timeline {
            let origin = Instant::now();
            Timeline { origin, health: Health::new(origin) }
        }

        fn at(&self, seconds: f64) -> Instant {
            self.origin + Duration::from_secs_f64(seconds)
        }

        /// A provider taken out at 0 s.
        fn ejected() -> Timeline {
            let timeline = Timeline::new();
            let outcomes = [(); 3].map(|()| timeline.health.on_failure(EJECT, timeline.origin));
            assert_eq!(outcomes, [false, false, true]);
            timeline
        }
    }

    #[test]
    fn consecutive_failures_take_a_provider_out() {
        let t = Timeline::ejected();
        assert_eq!(t.health.circuit(t.at(9.9)), Circuit::Open);
        assert!(!t.health.may_try(t.at(9.9), 2));
    }

    #[test]
    fn a_success_between_starts_the_count_anew() {
        let t = Timeline::new();
        for _ in 0..10 {
            assert!(!t.health.on_failure(EJECT, t.origin));
            assert!(!t.health.on_failure(EJECT, t.origin));
            t.health.on_success();
        }
        assert_eq!(t.health.circuit(t.origin), Circuit::Closed);
    }

    #[test]
    fn the_last_candidate_is_never_out() {
        let t = Timeline::ejected();
        assert!(t.health.may_try(t.at(1.0), 1));
        assert!(t.health.may_try(t.at(1.0), 1));
        assert!(!t.health.may_try(t.at(1.0), 2));
    }

    #[test]
    fn once_the_time_is_over_one_probe_a_second_goes() {
        let t = Timeline::ejected();
        assert_eq!(t.health.circuit(t.at(10.0)), Circuit::HalfOpen);
        let probes = |at| (0..50).filter(|_| t.health.may_try(t.at(at), 2)).count();
        assert_eq!([10.0, 10.5, 11.0, 11.9, 12.5].map(probes), [1, 0, 1, 0, 1]);
    }

    #[test]
    fn a_successful_probe_brings_it_back() {
        let t = Timeline::ejected();
        assert!(t.health.may_try(t.at(10.0), 2));
        t.health.on_success();
        assert_eq!(t.health.circuit(t.at(10.0)), Circuit::Closed);
        assert!(!t.health.on_failure(EJECT, t.at(11.0)), "and the count begins anew");
    }

    #[test]
    fn each_failed_probe_doubles_the_time_up_to_five_minutes() {
        let t = Timeline::ejected();
        let (mut now, mut lengths) = (10.0, Vec::new());
        for _ in 0..8 {
            assert!(t.health.on_failure(EJECT, t.at(now)));
            let length = (1..1000).find(|s| t.health.circuit(t.at(now + f64::from(*s))) == Circuit::HalfOpen).unwrap();
            lengths.push(length);
            now += f64::from(length);
        }
        assert_eq!(lengths, [20, 40, 80, 160, 300, 300, 300, 300]);
    }

    #[test]
    fn failures_while_out_do_not_prolong() {
        let t = Timeline::ejected();
        for _ in 0..100 {
            assert!(!t.health.on_failure(EJECT, t.at(5.0)));
        }
        assert_eq!(t.health.circuit(t.at(10.0)), Circuit::HalfOpen);
    }

    #[test]
    fn a_failure_every_second_for_a_day_stays_within_five_minutes() {
        let t = Timeline::ejected();
        for second in 0..86_400 {
            t.health.on_failure(EJECT, t.at(f64::from(second)));
        }
        assert_eq!(t.health.circuit(t.at(86_400.0 + 300.0)), Circuit::HalfOpen);
    }

    #[test]
    fn health_is_found_again_by_name() {
        let (healths, now) = (Healths::default(), Instant::now());
        let name: Arc<str> = "openai".into();
        for _ in 0..3 {
            healths.of(&name, now).on_failure(EJECT, now);
        }
        assert_eq!(healths.of(&name, now).circuit(now), Circuit::Open);
        assert_eq!(healths.of(&"other".into(), now).circuit(now), Circuit::Closed);
        assert_eq!(healths.all().len(), 2);
    }

    #[test]
    fn retries_stay_a_share_of_calls_when_everything_fails() {
        let origin = Instant::now();
        let budget = RetryBudget::new(origin);
        let (mut calls, mut retries) = (0, 0);
        for second in 0..100 {
            for _ in 0..100 {
                let now = origin + Duration::from_secs(second);
                budget.on_call(now);
                calls += 1;
                retries += (0..3).filter(|_| budget.try_retry(0.2, now)).count();
            }
        }
        assert!(retries <= calls / 5, "{retries} retries of {calls} calls");
        assert!(retries >= calls / 6, "{retries} retries of {calls} calls");
    }

    #[test]
    fn a_quiet_gateway_may_retry_three_times_a_second() {
        let origin = Instant::now();
        let budget = RetryBudget::new(origin);
        for second in 0..30 {
            let now = origin + Duration::from_secs(second);
            budget.on_call(now);
            assert_eq!((0..10).filter(|_| budget.try_retry(0.2, now)).count(), 3, "second {second}");
        }
    }

    #[test]
    fn old_calls_pay_for_nothing() {
        let origin = Instant::now();
        let budget = RetryBudget::new(origin);
        (0..1000).for_each(|_| budget.on_call(origin));
        let allowed = |second| {
            let now = origin + Duration::from_secs(second);
            (0..1000).filter(|_| budget.try_retry(0.2, now)).count()
        };
        assert_eq!(allowed(9), 200);
        assert_eq!(allowed(10), 3);
    }

    proptest! {
        #[test]
        fn no_run_of_events_gives_more_retries_than_the_share_and_the_floor(
            events in proptest::collection::vec((0..3u8, 0..700u64), 1..600)
        ) {
            let origin = Instant::now();
            let budget = RetryBudget::new(origin);
            let (mut now, mut calls, mut retries) = (origin, 0u64, 0u64);
            for (event, pause_ms) in events {
                match event {
                    0 => {
                        budget.on_call(now);
                        calls += 1;
                    }
                    _ => retries += u64::from(budget.try_retry(0.2, now)),
                }
                if event == 2 {
                    now += Duration::from_millis(pause_ms);
                }
            }
            let seconds = now.duration_since(origin).as_secs() + 1;
            prop_assert!(retries <= calls / 5 + RETRIES_PER_SECOND_MIN * seconds, "{retries} of {calls} in {seconds} s");
        }
    }
}
