//! What a run spends, and the cap on it.
//!
//! Each call reserves what it is estimated at before it is made and gives that back for what it really cost, so that calls at the same
//! time cannot pass the cap together. Only what calls in flight cost above their estimate can.

use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::units::NanoUsd;

/// Counts money.
#[derive(Debug, Default)]
pub struct Meter {
    cap: Option<NanoUsd>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    spent: NanoUsd,
    reserved: NanoUsd,
    /// What `calls` of this process cost.
    paid: NanoUsd,
    calls: u64,
    stopped: Option<Stopped>,
}

/// Why no further call is made.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Stopped {
    /// The next call could pass the cap.
    #[error("stopped at {spent} USD: another call could pass `max_cost: {cap} USD`")]
    Cap {
        /// What was spent.
        spent: NanoUsd,
        /// The cap.
        cap: NanoUsd,
    },
    /// A call's cost is not known, so the cap cannot be held.
    #[error(
        "stopped: the cost of {0} is not known, so `max_cost` cannot be held; give it a price (`prices:` of the configuration) or leave `max_cost` out"
    )]
    Unknown(String),
    /// The gateway does not let us in.
    #[error("the gateway refuses the key: {0}; give one with --key, TOLLGATE_KEY or `gateway: {{ key: … }}`")]
    Key(String),
}

impl Meter {
    /// Holds `cap`, and counts what was spent before.
    #[must_use]
    pub fn new(cap: Option<NanoUsd>, spent: NanoUsd) -> Meter {
        Meter { cap, state: Mutex::new(State { spent, ..State::default() }) }
    }

    /// Reserves what a call is estimated at, or what those before cost on average, whichever is more. `None`: no further call.
    pub fn reserve(&self, estimate: Option<NanoUsd>) -> Option<NanoUsd> {
        let mut state = self.state();
        let mean = NanoUsd(state.paid.0.checked_div(state.calls).unwrap_or(0));
        let estimate = estimate.map_or(mean, |estimate| estimate.max(mean));
        let after = state.spent.saturating_add(state.reserved).saturating_add(estimate);
        match self.cap {
            _ if state.stopped.is_some() => return None,
            Some(cap) if after > cap => {
                state.stopped = Some(Stopped::Cap { spent: state.spent, cap });
                return None;
            }
            _ => state.reserved = state.reserved.saturating_add(estimate),
        }
        Some(estimate)
    }

    /// Settles what was reserved. `served` is what answered, for the message where the cost is not known.
    pub fn settle(&self, reserved: NanoUsd, cost: Option<NanoUsd>, served: &str) {
        let mut state = self.state();
        state.reserved = state.reserved.saturating_sub(reserved);
        match cost {
            Some(cost) => {
                state.spent = state.spent.saturating_add(cost);
                state.paid = state.paid.saturating_add(cost);
                state.calls += 1;
            }
            None if self.cap.is_some() => {
                state.stopped.get_or_insert_with(|| Stopped::Unknown(served.to_owned()));
            }
            None => {}
        }
    }

    /// Gives back what was reserved for a call that was refused, which costs nothing.
    pub fn release(&self, reserved: NanoUsd) {
        let mut state = self.state();
        state.reserved = state.reserved.saturating_sub(reserved);
    }

    /// Makes no further call.
    pub fn stop(&self, why: Stopped) {
        self.state().stopped.get_or_insert(why);
    }

    /// What was spent, as far as it is known.
    #[must_use]
    pub fn spent(&self) -> NanoUsd {
        self.state().spent
    }

    /// Why no further call is made.
    #[must_use]
    pub fn stopped(&self) -> Option<Stopped> {
        let mut stopped = self.state().stopped.clone();
        // Calls in flight have ended since.
        if let Some(Stopped::Cap { spent, .. }) = &mut stopped {
            *spent = self.spent();
        }
        stopped
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_at_the_same_time_cannot_pass_the_cap_together() {
        let meter = Meter::new(Some(NanoUsd(100)), NanoUsd(10));
        let one = meter.reserve(Some(NanoUsd(40))).unwrap();
        let other = meter.reserve(Some(NanoUsd(40))).unwrap();
        meter.settle(one, Some(NanoUsd(20)), "m");
        assert_eq!(meter.reserve(Some(NanoUsd(40))), None, "20 + 10 + 40 are taken");
        meter.settle(other, Some(NanoUsd(50)), "m");
        assert_eq!(meter.stopped(), Some(Stopped::Cap { spent: NanoUsd(80), cap: NanoUsd(100) }));
        assert_eq!(meter.reserve(Some(NanoUsd(0))), None, "stopped for good");
    }

    #[test]
    fn an_unknown_estimate_is_the_mean_so_far_and_an_unknown_cost_stops_only_under_a_cap() {
        let free = Meter::new(None, NanoUsd::ZERO);
        let reserved = free.reserve(None).unwrap();
        assert_eq!(reserved, NanoUsd::ZERO);
        free.settle(reserved, None, "m");
        free.settle(free.reserve(None).unwrap(), Some(NanoUsd(30)), "m");
        assert_eq!(free.reserve(None), Some(NanoUsd(30)));
        assert_eq!(free.reserve(Some(NanoUsd(10))), Some(NanoUsd(30)), "calls so far cost more than was thought");
        assert_eq!(free.stopped(), None);

        let capped = Meter::new(Some(NanoUsd(100)), NanoUsd::ZERO);
        capped.settle(capped.reserve(None).unwrap(), None, "local/qwen");
        assert_eq!(capped.stopped(), Some(Stopped::Unknown("local/qwen".to_owned())));
        capped.release(NanoUsd::ZERO);
        assert_eq!(capped.reserve(None), None);
    }
}
