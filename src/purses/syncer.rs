//! The background task: carries reports to the authority and its answers back, one flight at a time.
//!
//! A flight takes along everything that is due: purses that calls wait for first. While it is under way, further calls
//! gather for the next one, so a slow store makes flights fuller, not more.

use std::{
    panic::AssertUnwindSafe,
    sync::{Arc, PoisonError, atomic::Ordering},
    time::Duration,
};

use futures_util::FutureExt;
use jiff::Timestamp;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, sleep_until, timeout};

use super::{ENTRIES_MAX, Entry, Shared};
use crate::{
    ledger::sync::{Close, SyncReply, Totals},
    store::{
        journal::Leftover,
        ports::{AccountSync, StoreError},
    },
};

/// Reports in one flight.
const FLIGHT_MAX: usize = 512;
/// After this long without an answer the store counts as away.
const STORE_TIMEOUT: Duration = Duration::from_secs(1);
/// How soon to ask again for calls that wait for money which others may hand back.
const ASK_AGAIN: Duration = Duration::from_millis(20);
/// How long an account stays in memory unused if its period is over or memory is half full.
const UNUSED_SHORT: Duration = Duration::from_secs(10);

/// Runs the background task, and starts it again should it panic: without it, no purse is ever refilled.
pub(super) async fn supervise(shared: Arc<Shared>, mut leftovers: Vec<Leftover>) {
    loop {
        let syncer = Syncer::new(Arc::clone(&shared), std::mem::take(&mut leftovers));
        if AssertUnwindSafe(syncer.run()).catch_unwind().await.is_ok() {
            return;
        }
        tracing::error!("the task that refills purses panicked and was started again");
        // Purses that it was closing stay held until the next start; calls that wait are told to try again.
        shared.entries().iter().for_each(Entry::store_away);
        sleep(shared.pace.sync).await;
    }
}

struct Syncer {
    shared: Arc<Shared>,
    leftovers: Vec<Leftover>,
    /// Purses that give nothing more and are closed once their last reservation is.
    retired: Vec<Arc<Entry>>,
    ask_again_at: Option<Instant>,
    /// What to ask again for then.
    short: Vec<Arc<Entry>>,
}

impl Syncer {
    fn new(shared: Arc<Shared>, leftovers: Vec<Leftover>) -> Syncer {
        Syncer { shared, leftovers, retired: Vec::new(), ask_again_at: None, short: Vec::new() }
    }

    /// Runs until the purses are closed.
    async fn run(mut self) {
        self.recover().await;
        let mut ticks = interval(self.shared.pace.sync.max(Duration::from_millis(1)));
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        ticks.reset();
        let shared = Arc::clone(&self.shared);
        while !shared.closing.load(Ordering::SeqCst) {
            let again = self.ask_again_at;
            tokio::select! {
                () = shared.wake.notified() => self.fly_urgent().await,
                () = sleep_until(again.unwrap_or_else(Instant::now)), if again.is_some() => self.ask_again().await,
                _ = ticks.tick() => self.tick().await,
            }
        }
        self.finish().await;
    }

    /// Reports what earlier incarnations left. Until that has succeeded, what they held counts as spent.
    async fn recover(&mut self) {
        for leftover in std::mem::take(&mut self.leftovers) {
            match self.report_leftover(&leftover).await {
                Ok(()) => {
                    if let Err(error) = leftover.remove() {
                        tracing::warn!(%error, "a journal was taken in, but could not be removed");
                    }
                }
                Err(_) => self.leftovers.push(leftover),
            }
        }
    }

    async fn report_leftover(&self, leftover: &Leftover) -> Result<(), StoreError> {
        let reports = leftover.reports();
        for chunk in reports.chunks(FLIGHT_MAX) {
            let replies: Vec<SyncReply> = self.send(chunk.to_vec()).await?.into_iter().collect::<Result<_, _>>()?;
            // What cannot be true is not believed: then all that was granted counts as spent.
            let disbelieved = chunk.iter().zip(&replies).filter(|(_, reply)| **reply == SyncReply::BadReport);
            let forfeits: Vec<AccountSync> = disbelieved.map(|(report, _)| forfeit(report)).collect();
            if !forfeits.is_empty() {
                tracing::error!(purses = forfeits.len(), "a journal contradicts the store; its purses count as spent");
                self.send(forfeits).await?.into_iter().collect::<Result<Vec<_>, _>>()?;
            }
            let lost = replies.iter().filter(|reply| **reply == SyncReply::NoAccount).count();
            if lost > 0 {
                tracing::warn!(purses = lost, "a journal names accounts that the store does not know");
            }
        }
        let journal = leftover.path().display();
        match leftover.forfeited {
            Some(why) => tracing::warn!(
                purses = reports.len(),
                "{journal} cannot be trusted ({why}): all that its purses were granted counts as spent"
            ),
            None => tracing::info!(
                purses = reports.len(),
                attempts.open = leftover.open_attempts,
                "{journal} was taken in; open attempts were charged their bound"
            ),
        }
        Ok(())
    }

    /// What happens each sync interval.
    async fn tick(&mut self) {
        self.recover().await;
        if let Err(error) = self.shared.journal.compact_if_due() {
            tracing::warn!(%error, "the journal could not be rewritten");
        }
        let now = Instant::now();
        let entries = self.shared.entries();
        let crowded = entries.len() > ENTRIES_MAX / 2;
        let pace = self.shared.pace;
        let today = Timestamp::now();
        for entry in &entries {
            entry.note_demand(now);
            let unused = if crowded || entry.is_over(today) { UNUSED_SHORT.min(pace.unused) } else { pace.unused };
            if !entry.purse.is_retired() && entry.is_spent(now, unused) {
                self.retire(entry);
            }
        }
        self.compare_with_journal(&entries);
        let mut due: Vec<Arc<Entry>> = entries.into_iter().filter(|entry| !entry.purse.is_retired()).collect();
        due.retain(|entry| entry.is_due());
        due.extend(self.retired.iter().cloned());
        due.sort_by_key(|entry| !entry.has_line());
        if due.is_empty() {
            return self.probe().await;
        }
        self.fly(&due, true).await;
    }

    /// What purses were charged must be the sum of what attempts were settled at, as the journal has it.
    fn compare_with_journal(&self, entries: &[Arc<Entry>]) {
        let mut drift: u64 = 0;
        for entry in entries {
            let amount = drift_of(entry, |purse| self.shared.journal.spent(purse));
            if amount > 0 && entry.mark_drifted() {
                tracing::error!(budget = %entry.budget, account = %entry.key, drift_nanousd = amount, "purse and journal differ");
            }
            drift = drift.saturating_add(amount);
        }
        self.shared.drift.store(drift, Ordering::Relaxed);
    }

    fn retire(&mut self, entry: &Arc<Entry>) {
        entry.purse.retire();
        self.retired.push(Arc::clone(entry));
        // Whoever joined the line meanwhile goes on with the next purse.
        entry.move_up();
    }

    /// Finds out whether a store that was away, or a part of it, is back, where nothing else would tell.
    async fn probe(&self) {
        if self.shared.is_whole() {
            return;
        }
        let answer = timeout(STORE_TIMEOUT, self.shared.authority.sync(Vec::new())).await;
        self.note_store(answer.unwrap_or_else(|_| Err(too_slow())).map(drop).as_ref().err());
    }

    async fn fly_urgent(&mut self) {
        let urgent = std::mem::take(&mut *self.shared.urgent.lock().unwrap_or_else(PoisonError::into_inner));
        self.fly(&urgent, false).await;
    }

    async fn ask_again(&mut self) {
        self.ask_again_at = None;
        let short = std::mem::take(&mut self.short);
        self.fly(&short, false).await;
    }

    /// Reports accounts, in as many flights as it takes, and serves those who wait.
    async fn fly(&mut self, entries: &[Arc<Entry>], hand_back: bool) {
        // A store that is away gets nothing back: its purses are all there is.
        let hand_back = hand_back && self.shared.store_up.load(Ordering::Relaxed);
        for (index, chunk) in entries.chunks(FLIGHT_MAX).enumerate() {
            let report = |entry: &Arc<Entry>| AccountSync {
                account: Arc::clone(&entry.key),
                request: entry.report(self.shared.incarnation, hand_back),
            };
            let reports: Vec<AccountSync> = chunk.iter().map(report).collect();
            let closes: Vec<bool> = reports.iter().map(|report| report.request.close.is_some()).collect();
            let Ok(replies) = self.send(reports).await else {
                entries[index * FLIGHT_MAX..].iter().for_each(Entry::store_away);
                return;
            };
            for ((entry, closed), reply) in chunk.iter().zip(closes).zip(replies) {
                match reply {
                    Ok(reply) => self.take_in(entry, closed, reply),
                    // Its part of the store is away.
                    Err(_) => entry.store_away(),
                }
            }
        }
    }

    fn take_in(&mut self, entry: &Arc<Entry>, closed: bool, reply: SyncReply) {
        match reply {
            SyncReply::Merged(_) if closed => self.forget(entry),
            SyncReply::Merged(merged) if merged.closed => self.reclaimed(entry),
            SyncReply::Merged(merged) => entry.merge(merged),
            SyncReply::NoAccount => {
                tracing::error!(budget = %entry.budget, "the store lost an account; its holders restore it");
                entry.lost();
            }
            SyncReply::BadReport => self.disbelieved(entry),
        }
        if entry.has_line() {
            self.short.push(Arc::clone(entry));
            self.ask_again_at.get_or_insert_with(|| Instant::now() + ASK_AGAIN);
        }
    }

    /// The account is damaged, or contradicts the purse, which gives nothing more. It goes on reporting what it has spent: once
    /// an operator has rebuilt the account, it is believed.
    fn disbelieved(&mut self, entry: &Arc<Entry>) {
        let is_kept = self.retired.iter().any(|retired| Arc::ptr_eq(retired, entry));
        if !is_kept {
            tracing::error!(budget = %entry.budget, "the store disbelieves a purse; it is given up as spent");
            entry.purse.retire();
        }
        entry.store_away();
        self.shared.forget(entry);
        let has_news = entry.purse.totals() != Totals::default() || entry.purse.holds() > 0;
        match (is_kept, has_news) {
            (false, true) => self.retired.push(Arc::clone(entry)),
            (true, false) => self.retired.retain(|retired| !Arc::ptr_eq(retired, entry)),
            _ => {}
        }
    }

    /// An operator closed the purse: calls go on with a new one, and what this one spent since is booked as debt.
    fn reclaimed(&mut self, entry: &Arc<Entry>) {
        if !entry.purse.is_retired() {
            tracing::error!(
                budget = %entry.budget,
                account = %entry.key,
                "an operator reclaimed what this gateway held; what it has spent of it since is debt"
            );
            self.retire(entry);
        }
    }

    /// The authority knows all about a closed purse.
    fn forget(&mut self, entry: &Arc<Entry>) {
        let Totals { charged, debt, .. } = entry.purse.totals();
        let journaled = self.shared.journal.spent(entry.number);
        if journaled.is_some_and(|journaled| journaled != (charged, debt)) {
            tracing::warn!(budget = %entry.budget, ?journaled, charged, debt, "journal and purse differ");
        }
        self.retired.retain(|retired| !Arc::ptr_eq(retired, entry));
        self.shared.forget(entry);
        if let Err(error) = self.shared.journal.close_purse(entry.number) {
            tracing::warn!(%error, "a closed purse stays in the journal");
        }
    }

    async fn send(&self, reports: Vec<AccountSync>) -> Result<Vec<Result<SyncReply, StoreError>>, StoreError> {
        if reports.is_empty() {
            return Ok(Vec::new());
        }
        let count = reports.len();
        let answer = timeout(STORE_TIMEOUT, self.shared.authority.sync(reports)).await;
        let replies = answer.unwrap_or_else(|_| Err(too_slow())).and_then(|replies| {
            let complete = replies.len() == count;
            complete.then_some(replies).ok_or_else(|| StoreError::Damaged("it answered too little".to_owned()))
        });
        self.note_store(replies.as_ref().err());
        replies
    }

    /// One line per change of state.
    fn note_store(&self, error: Option<&StoreError>) {
        let was_up = self.shared.store_up.swap(error.is_none(), Ordering::Relaxed);
        match error {
            Some(error) if was_up => tracing::error!(%error, "the budget store is away; purses go on"),
            None if !was_up => tracing::info!("the budget store is back"),
            Some(_) | None => {}
        }
    }

    /// Returns everything idle. The journal goes when nothing is open.
    async fn finish(&mut self) {
        for entry in self.shared.entries() {
            if !entry.purse.is_retired() {
                self.retire(&entry);
            }
        }
        let retired = self.retired.clone();
        self.fly(&retired, true).await;
        if !self.shared.journal.remove_if_settled() {
            tracing::info!("the journal stays for the next start: attempts are open, or the store is away");
        }
    }
}

/// By how much a purse and its journal differ, in nano-USD. An attempt is settled in the journal first: while one is open, only a
/// purse that was charged more than the journal knows has drifted.
fn drift_of(entry: &Entry, journaled: impl Fn(u32) -> Option<(u64, u64)>) -> u64 {
    let is_open = || entry.purse.holds() > 0;
    let (was_open, before) = (is_open(), entry.purse.totals());
    let Some((charged, debt)) = journaled(entry.number) else { return 0 };
    let purse = before.charged.saturating_add(before.debt);
    let journal = charged.saturating_add(debt);
    let after = entry.purse.totals();
    let at_rest = !was_open && !is_open() && (after.charged, after.debt) == (before.charged, before.debt);
    if at_rest { purse.abs_diff(journal) } else { purse.saturating_sub(journal) }
}

/// The same purse, with all that it was granted counted as spent.
fn forfeit(report: &AccountSync) -> AccountSync {
    let mut forfeit = report.clone();
    forfeit.request.totals = Totals::default();
    forfeit.request.close = Some(Close::Forfeited);
    forfeit
}

fn too_slow() -> StoreError {
    StoreError::Unavailable(format!("no answer within {} s", STORE_TIMEOUT.as_secs()))
}

#[cfg(test)]
mod tests {
    use super::{super::Claim, *};
    use crate::units::NanoUsd;

    #[test]
    fn a_purse_at_rest_equals_its_journal_and_an_open_one_is_never_ahead() {
        let claim = Claim {
            budget: "b".into(),
            account: "b/all/total".into(),
            limit: NanoUsd(1000),
            resets_at: None,
            enforce: true,
            open_on_loss: false,
        };
        let entry = Arc::new(Entry::new(&claim, 3, 1));
        entry.purse.merge_granted(100);
        let drift = |journal| drift_of(&entry, |purse| (purse == 3).then_some(journal));
        assert_eq!((drift((0, 0)), drift((5, 0))), (0, 5));
        let hold = entry.take(20).expect("there is enough");
        assert_eq!(drift((20, 0)), 0, "settled in the journal, and here in a moment");
        hold.settle(25);
        assert_eq!((drift((20, 5)), drift((20, 0)), drift((30, 5))), (0, 5, 10));
        let _open = entry.take(1).expect("there is enough");
        assert_eq!((drift((20, 4)), drift((21, 5))), (1, 0));
    }
}
