//! What one process may spend of one account: atomics that calls take from, without a lock and without a store.
//!
//! At every instant `granted = returned + charged + available + open`, where *open* is what reservations hold. Totals only
//! grow. Taking money is one compare-and-swap; a purse that is retired gives nothing more, and is closed when nothing is open.

use std::sync::atomic::{AtomicU64, Ordering};

use super::sync::{NANO_USD_MAX, Totals};

/// Set on `available` once the purse is retired. Amounts stay below 2^53, so additions never reach it.
const RETIRED: u64 = 1 << 63;

/// A purse; all amounts are nano-USD.
#[derive(Debug, Default)]
pub struct Purse {
    available: AtomicU64,
    granted: AtomicU64,
    returned: AtomicU64,
    charged: AtomicU64,
    debt: AtomicU64,
    open_debt: AtomicU64,
    /// All that was ever taken: its growth is the demand.
    taken: AtomicU64,
    holds: AtomicU64,
}

/// Why nothing was taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NotTaken {
    /// The purse has less than was asked for.
    Short,
    /// The purse is being closed; there may be a new one.
    Retired,
}

/// What a reservation took: held until it is released or settled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Taken {
    /// Out of the purse.
    pub covered: u64,
    /// Beyond it, as open debt.
    pub uncovered: u64,
}

/// How a true cost is split between what was taken and debt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Charge {
    /// Out of the purse.
    pub charged: u64,
    /// Beyond it.
    pub debt: u64,
}

/// What `actual` costs a purse of which `covered` was taken. Amounts beyond 2^53 count as 2^53 − 1.
#[must_use]
pub fn charge(covered: u64, actual: u64) -> Charge {
    let actual = actual.min(NANO_USD_MAX);
    let charged = actual.min(covered);
    Charge { charged, debt: actual - charged }
}

impl Purse {
    /// Takes `amount` or nothing.
    ///
    /// # Errors
    /// When it does not fit, or the purse is retired.
    pub fn take(&self, amount: u64) -> Result<Taken, NotTaken> {
        self.holding(|| {
            let covered = self.swap_available(|available| available.checked_sub(amount).map(|_| amount))?;
            Ok(Taken { covered, uncovered: 0 })
        })
    }

    /// Takes what is there of `amount` and books the rest as open debt, as long as all debt of this purse stays at most
    /// `debt_max`.
    ///
    /// # Errors
    /// When the debt does not fit, or the purse is retired.
    pub fn take_on_credit(&self, amount: u64, debt_max: u64) -> Result<Taken, NotTaken> {
        let amount = amount.min(NANO_USD_MAX);
        self.holding(|| {
            let covered = self.swap_available(|available| Some(available.min(amount)))?;
            let uncovered = amount - covered;
            let owed = self.debt.load(Ordering::SeqCst);
            let fits = |open: u64| {
                let all = owed.saturating_add(open).saturating_add(uncovered);
                (uncovered == 0 || all <= debt_max).then_some(open.saturating_add(uncovered))
            };
            if self.open_debt.fetch_update(Ordering::SeqCst, Ordering::SeqCst, fits).is_err() {
                self.available.fetch_add(covered, Ordering::SeqCst);
                return Err(NotTaken::Short);
            }
            Ok(Taken { covered, uncovered })
        })
    }

    /// Gives back what a reservation took for a call that was never sent.
    pub fn release(&self, taken: Taken) {
        self.finish(taken, Charge { charged: 0, debt: 0 });
    }

    /// Charges the true cost of what a reservation took; the rest is available again, an excess is debt.
    pub fn settle(&self, taken: Taken, actual: u64) -> Charge {
        let charge = charge(taken.covered, actual);
        self.finish(taken, charge);
        charge
    }

    /// Adds what the authority has granted since, by its total.
    pub fn merge_granted(&self, granted: u64) {
        let before = self.granted.fetch_max(granted, Ordering::SeqCst);
        if granted > before {
            self.available.fetch_add(granted - before, Ordering::SeqCst);
        }
    }

    /// Hands back what is available beyond `keep`. Only the one who syncs may call this.
    pub fn hand_back(&self, keep: u64) {
        let idle_beyond = |available: u64| {
            let idle = available & !RETIRED;
            (idle > keep).then(|| available - (idle - keep))
        };
        let swapped = self.available.fetch_update(Ordering::SeqCst, Ordering::SeqCst, idle_beyond);
        if let Ok(before) = swapped {
            self.returned.fetch_add((before & !RETIRED) - keep, Ordering::SeqCst);
        }
    }

    /// From now on nothing can be taken.
    pub fn retire(&self) {
        self.available.fetch_or(RETIRED, Ordering::SeqCst);
    }

    /// Whether nothing can be taken any more.
    #[must_use]
    pub fn is_retired(&self) -> bool {
        self.available.load(Ordering::SeqCst) & RETIRED != 0
    }

    /// What can be taken now.
    #[must_use]
    pub fn available(&self) -> u64 {
        let available = self.available.load(Ordering::SeqCst);
        if available & RETIRED == 0 { available } else { 0 }
    }

    /// What is idle, whether or not it can still be taken.
    #[must_use]
    pub fn idle(&self) -> u64 {
        self.available.load(Ordering::SeqCst) & !RETIRED
    }

    /// How many reservations are open. Once the purse is retired and this is 0, it stays 0 but for attempts that fail.
    #[must_use]
    pub fn holds(&self) -> u64 {
        self.holds.load(Ordering::SeqCst)
    }

    /// What open reservations hold, debt included. A snapshot, for display.
    #[must_use]
    pub fn open(&self) -> u64 {
        let idle = self.idle();
        let totals = self.totals();
        totals.unspent().saturating_sub(idle).saturating_add(self.open_debt.load(Ordering::SeqCst))
    }

    /// All that was ever taken.
    #[must_use]
    pub fn taken(&self) -> u64 {
        self.taken.load(Ordering::SeqCst)
    }

    /// The report to the authority. Sound at any time: the grant is read last, after all that came out of it.
    #[must_use]
    pub fn totals(&self) -> Totals {
        let returned = self.returned.load(Ordering::SeqCst);
        let charged = self.charged.load(Ordering::SeqCst);
        let debt = self.debt.load(Ordering::SeqCst);
        Totals { granted: self.granted.load(Ordering::SeqCst), returned, charged, debt }
    }

    /// Counts a hold while `take` runs and, when it succeeded, until the hold is finished. The count rises before money
    /// moves, so whoever retires the purse and then sees no hold knows that none can follow.
    fn holding(&self, take: impl FnOnce() -> Result<Taken, NotTaken>) -> Result<Taken, NotTaken> {
        self.holds.fetch_add(1, Ordering::SeqCst);
        let taken = take();
        if let Ok(Taken { covered, uncovered }) = taken {
            self.taken.fetch_add(covered.saturating_add(uncovered), Ordering::Relaxed);
        } else {
            self.holds.fetch_sub(1, Ordering::SeqCst);
        }
        taken
    }

    /// Takes out of `available` what `how_much` says.
    fn swap_available(&self, how_much: impl Fn(u64) -> Option<u64>) -> Result<u64, NotTaken> {
        let mut available = self.available.load(Ordering::SeqCst);
        loop {
            if available & RETIRED != 0 {
                return Err(NotTaken::Retired);
            }
            let amount = how_much(available).ok_or(NotTaken::Short)?;
            let left = available - amount;
            match self.available.compare_exchange_weak(available, left, Ordering::SeqCst, Ordering::SeqCst) {
                Ok(_) => return Ok(amount),
                Err(now) => available = now,
            }
        }
    }

    /// Charges before it frees: a report made in between shows less idle money, never less spent.
    fn finish(&self, taken: Taken, charge: Charge) {
        self.charged.fetch_add(charge.charged, Ordering::SeqCst);
        let add = |debt: u64| Some(debt.saturating_add(charge.debt).min(NANO_USD_MAX));
        if charge.debt > 0 {
            let _added = self.debt.fetch_update(Ordering::SeqCst, Ordering::SeqCst, add);
        }
        self.available.fetch_add(taken.covered - charge.charged, Ordering::SeqCst);
        self.open_debt.fetch_sub(taken.uncovered, Ordering::SeqCst);
        self.holds.fetch_sub(1, Ordering::SeqCst);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn purse(granted: u64) -> Purse {
        let purse = Purse::default();
        purse.merge_granted(granted);
        purse
    }

    #[test]
    fn what_does_not_fit_is_not_taken() {
        let purse = purse(10);
        assert_eq!(purse.take(11), Err(NotTaken::Short));
        assert_eq!(purse.take(10), Ok(Taken { covered: 10, uncovered: 0 }));
        assert_eq!(purse.take(1), Err(NotTaken::Short));
        assert_eq!((purse.available(), purse.open(), purse.holds()), (0, 10, 1));
    }

    #[test]
    fn settling_lower_makes_the_rest_available_and_higher_is_debt() {
        let purse = purse(20);
        let (low, high) = (purse.take(10).unwrap(), purse.take(10).unwrap());
        assert_eq!(purse.settle(low, 4), Charge { charged: 4, debt: 0 });
        assert_eq!(purse.settle(high, 15), Charge { charged: 10, debt: 5 });
        assert_eq!(purse.totals(), Totals { granted: 20, returned: 0, charged: 14, debt: 5 });
        assert_eq!((purse.available(), purse.open(), purse.holds()), (6, 0, 0));
    }

    #[test]
    fn a_repeated_grant_counts_once() {
        let purse = purse(10);
        purse.merge_granted(10);
        purse.merge_granted(7);
        assert_eq!(purse.available(), 10);
    }

    #[test]
    fn credit_ends_at_its_allowance() {
        let purse = purse(10);
        let taken = purse.take_on_credit(15, 8).unwrap();
        assert_eq!(taken, Taken { covered: 10, uncovered: 5 });
        assert_eq!(purse.take_on_credit(4, 8), Err(NotTaken::Short));
        assert_eq!(purse.settle(taken, 12), Charge { charged: 10, debt: 2 });
        assert!(purse.take_on_credit(6, 8).is_ok());
    }

    #[test]
    fn a_retired_purse_gives_nothing_and_hands_back_all() {
        let purse = purse(10);
        let taken = purse.take(4).unwrap();
        purse.retire();
        assert_eq!(purse.take(1), Err(NotTaken::Retired));
        purse.settle(taken, 3);
        purse.hand_back(0);
        assert_eq!(purse.totals(), Totals { granted: 10, returned: 7, charged: 3, debt: 0 });
        assert_eq!((purse.holds(), purse.idle()), (0, 0));
    }

    #[test]
    fn nothing_is_handed_back_below_what_is_kept() {
        let purse = purse(10);
        purse.hand_back(11);
        assert_eq!(purse.available(), 10);
        purse.hand_back(4);
        assert_eq!((purse.available(), purse.totals().returned), (4, 6));
    }

    #[test]
    fn threads_cannot_take_more_than_there_is() {
        let purse = purse(1000);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    while let Ok(taken) = purse.take(7) {
                        purse.settle(taken, 3);
                    }
                });
            }
        });
        let totals = purse.totals();
        assert_eq!(totals.charged + purse.available(), 1000);
        assert_eq!(totals.charged % 3, 0);
        assert!(purse.available() < 7 && purse.open() == 0, "{purse:?}");
    }
}
