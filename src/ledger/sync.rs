//! What a purse and its authority say to each other, and how much a purse asks for.
//!
//! Messages carry totals, never deltas: merging is by `max`, hence idempotent, commutative and indifferent to loss,
//! repetition and order. All amounts are whole nano-USD and stay below 2^53, because one authority is a Lua function whose
//! numbers are doubles.

use std::fmt;

/// The largest amount (nano-USD) that any total, limit or target may have: 2^53 − 1, about 9 million USD.
pub const NANO_USD_MAX: u64 = (1 << 53) - 1;

/// One purse of one process: the name of a row in an account.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RowId {
    /// Random per process start.
    pub incarnation: u64,
    /// Which purse of that process; a number is never used twice.
    pub purse: u32,
}

/// The purse number of rows that are credit notes: no process ever opens so many purses.
const CREDIT: u32 = u32::MAX;

impl RowId {
    /// The row of the credit note `id`: what was spent and an operator gave back. `granted` and `returned` are its amount.
    #[must_use]
    pub fn credit(id: u64) -> RowId {
        RowId { incarnation: id, purse: CREDIT }
    }

    /// Whether this row is a credit note, and no purse.
    #[must_use]
    pub fn is_credit(self) -> bool {
        self.purse == CREDIT
    }
}

/// `00c0ffee00c0ffee.7`, as it is stored.
impl fmt::Display for RowId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}.{}", self.incarnation, self.purse)
    }
}

impl std::str::FromStr for RowId {
    type Err = std::num::ParseIntError;

    fn from_str(text: &str) -> Result<RowId, Self::Err> {
        let (incarnation, purse) = text.split_once('.').unwrap_or((text, ""));
        Ok(RowId { incarnation: u64::from_str_radix(incarnation, 16)?, purse: purse.parse()? })
    }
}

/// What one purse has been through, in nano-USD. Each only grows; `returned + charged <= granted`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Totals {
    /// Moved from the account to the purse.
    pub granted: u64,
    /// Moved back unspent.
    pub returned: u64,
    /// Spent out of the purse.
    pub charged: u64,
    /// Spent beyond the purse: above a reservation's bound, by a budget that only warns, or while the store was away.
    pub debt: u64,
}

impl Totals {
    /// The later of two reports of one purse.
    #[must_use]
    pub fn merge(self, other: Totals) -> Totals {
        Totals {
            granted: self.granted.max(other.granted),
            returned: self.returned.max(other.returned),
            charged: self.charged.max(other.charged),
            debt: self.debt.max(other.debt),
        }
    }

    /// What the account counts as gone to this purse: spent or still held.
    #[must_use]
    pub fn held(self) -> u64 {
        self.granted.saturating_sub(self.returned)
    }

    /// What the purse holds and has not spent, open reservations included.
    #[must_use]
    pub fn unspent(self) -> u64 {
        self.held().saturating_sub(self.charged)
    }

    /// Whether the totals can be true: nothing left the purse that was not in it, and every number fits.
    #[must_use]
    pub fn are_sound(self) -> bool {
        let fits = |amount: u64| amount <= NANO_USD_MAX;
        fits(self.granted)
            && fits(self.returned)
            && fits(self.charged)
            && fits(self.debt)
            && self.returned + self.charged <= self.granted
    }
}

/// Why a purse is closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Close {
    /// All it spent is in the report; the rest goes back to the account.
    Settled,
    /// Nobody knows what it spent (its journal is lost): all it was granted counts as spent.
    Forfeited,
    /// An operator says that it will never report again: what it has not reported as spent goes back. Not done while the purse
    /// was heard of lately; the answer's `closed` says whether it was done.
    Reclaimed,
}

/// A purse's report and wish.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SyncRequest {
    /// Whose.
    pub row: RowId,
    /// What it has been through.
    pub totals: Totals,
    /// Total grant without which calls are waiting now.
    pub need: u64,
    /// Total grant that would be comfortable; at least `need`.
    pub target: u64,
    /// The account's limit as this process is configured.
    pub limit: u64,
    /// The higher version of a limit wins.
    pub limit_version: u64,
    /// Whether the account may be created: only until this purse has first seen it.
    pub create: bool,
    /// Given, this is the purse's last report.
    pub close: Option<Close>,
}

/// The authority's answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SyncReply {
    /// Merged; here is what holds now.
    Merged(Merged),
    /// The account does not exist, though this purse has seen it before: the store lost it, or is another one. Never
    /// answered by a fresh start with the full limit.
    NoAccount,
    /// The report cannot be true; nothing was changed.
    BadReport,
}

/// What holds after a merge, in nano-USD.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Merged {
    /// The purse's row.
    pub totals: Totals,
    /// What the account could still grant.
    pub free: u64,
    /// What other live purses hold unspent and may hand back.
    pub elsewhere: u64,
    /// The limit in force.
    pub limit: u64,
    /// Its version.
    pub limit_version: u64,
    /// Spent by all purses together, without debt.
    pub charged: u64,
    /// Debt of all purses together.
    pub debt: u64,
    /// The authority was replaced and waits for all holders to report; it grants nothing meanwhile.
    pub learning: bool,
    /// Others need what this purse does not: hand idle money back.
    pub starving: bool,
    /// The purse's row is closed, by its own last report or by an operator: whatever is spent from it now is debt.
    pub closed: bool,
    /// What operators gave back of what was spent: as much more may be.
    pub credited: u64,
}

impl Merged {
    /// What a purse is told while too few copies of the store have what was written: nothing of what was newly granted,
    /// which the next primary may not know of. What calls wait for may still come, as while the authority learns.
    #[must_use]
    pub fn unconfirmed(mut self, request: &SyncRequest) -> Merged {
        if self.totals.granted > request.totals.granted {
            self.free = self.free.saturating_add(self.totals.granted - request.totals.granted);
            self.totals.granted = request.totals.granted;
            self.learning = true;
        }
        self
    }
}

/// How much a purse is used, and so how much it should hold ahead of use.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Demand {
    nano_usd_per_s: u64,
}

/// Below this (nano-USD a second) a purse counts as unused, so that halving ends.
const NEGLIGIBLE_PER_S: u64 = 1_000;

impl Demand {
    /// Takes note of what was reserved in the last `elapsed_ms`. Rises at once, halves per note.
    pub fn note(&mut self, reserved: u64, elapsed_ms: u64) {
        let rate = u128::from(reserved) * 1000 / u128::from(elapsed_ms.max(1));
        let rate = u64::try_from(rate).unwrap_or(u64::MAX).min(NANO_USD_MAX);
        let halved = self.nano_usd_per_s / 2;
        self.nano_usd_per_s = rate.max(if halved < NEGLIGIBLE_PER_S { 0 } else { halved });
    }

    /// What the purse should hold: two seconds of demand.
    #[must_use]
    pub fn lease(self) -> u64 {
        (2 * self.nano_usd_per_s).min(NANO_USD_MAX)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn totals() -> impl Strategy<Value = Totals> {
        (0u64..100, 0u64..100, 0u64..100, 0u64..100).prop_map(|(granted, returned, charged, debt)| Totals {
            granted,
            returned,
            charged,
            debt,
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(10_000))]

        #[test]
        fn merging_is_idempotent_commutative_and_associative(a in totals(), b in totals(), c in totals()) {
            prop_assert_eq!(a.merge(a), a);
            prop_assert_eq!(a.merge(b), b.merge(a));
            prop_assert_eq!(a.merge(b).merge(c), a.merge(b.merge(c)));
        }

        #[test]
        fn a_row_id_reads_back(incarnation: u64, purse: u32) {
            let row = RowId { incarnation, purse };
            prop_assert_eq!(row.to_string().parse(), Ok(row));
        }
    }

    #[test]
    fn a_lease_is_two_seconds_of_demand_and_halves_to_nothing() {
        let mut demand = Demand::default();
        demand.note(5_000_000, 500);
        assert_eq!(demand.lease(), 20_000_000);
        demand.note(0, 1000);
        assert_eq!(demand.lease(), 10_000_000);
        for _ in 0..64 {
            demand.note(0, 1000);
        }
        assert_eq!(demand.lease(), 0);
    }
}
