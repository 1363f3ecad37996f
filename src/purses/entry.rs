//! One account in memory: its purse, and the calls that wait for money in a line.

use std::{
    collections::VecDeque,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
};

use jiff::Timestamp;
use tokio::{sync::oneshot, time::Instant};

use super::{AccountStatus, Claim};
use crate::{
    ledger::{
        purse::{NotTaken, Purse, Taken},
        sync::{Close, Demand, Merged, NANO_USD_MAX, RowId, SyncRequest},
    },
    store::journal::Part,
    units::NanoUsd,
};

/// Calls that may wait for one account; further ones are refused.
const LINE_MAX: usize = 16_384;
/// A purse that was granted this much (nano-USD) in its life is replaced, long before its totals reach 2^53.
const GRANTED_MAX: u64 = 1 << 52;

/// One account in memory.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) key: Arc<str>,
    pub(super) budget: Arc<str>,
    pub(super) purse: Purse,
    /// The number of this purse in the journal and in its row.
    pub(super) number: u32,
    resets_at: Option<Timestamp>,
    /// The limit that the last claim named, in nano-USD.
    limit: AtomicU64,
    /// Below this, the purse is refilled ahead of need.
    low_water: AtomicU64,
    urgent: AtomicBool,
    /// Whether its last report was not answered.
    unanswered: AtomicBool,
    drifted: AtomicBool,
    waiting: AtomicUsize,
    line: Mutex<VecDeque<Waiter>>,
    facts: Mutex<Facts>,
}

/// What the background task knows of the account.
#[derive(Debug)]
struct Facts {
    /// Whether the authority has answered for this purse.
    seen: bool,
    /// The authority's last answer.
    merged: Merged,
    /// How many answers there were.
    answers: u64,
    limit_version: u64,
    demand: Demand,
    /// What had been taken when demand was noted last, and when that was.
    noted: (u64, Instant),
    used_at: Instant,
}

/// What a call in the line wants.
#[derive(Debug, Clone, Copy)]
pub(super) enum Want {
    /// All of this.
    Take(u64),
    /// To know how much of this could be taken.
    Most(u64),
}

/// What became of it.
#[derive(Debug)]
pub(super) enum Verdict {
    Taken(Hold),
    Most(u64),
    Exhausted,
    StoreAway,
    Retired,
}

#[derive(Debug)]
struct Waiter {
    want: Want,
    /// Whether a request on the way to the authority includes it.
    asked: bool,
    verdict: oneshot::Sender<Verdict>,
}

/// A place in the line; leaving it lets the next ones move up.
#[derive(Debug)]
pub(super) struct Waiting {
    entry: Arc<Entry>,
    want: Want,
    verdict: oneshot::Receiver<Verdict>,
    /// The number of answers when the wait began.
    answers: u64,
}

/// Money of one account in the hands of a call; given back when it is dropped.
#[derive(Debug)]
pub(super) struct Hold {
    entry: Arc<Entry>,
    taken: Option<Taken>,
}

// === impl Hold ===

impl Hold {
    fn new(entry: &Arc<Entry>, taken: Taken) -> Hold {
        Hold { entry: Arc::clone(entry), taken: Some(taken) }
    }

    pub(super) fn part(&self) -> Part {
        Part { purse: self.entry.number, covered: self.taken.map_or(0, |taken| taken.covered) }
    }

    pub(super) fn settle(mut self, actual: u64) {
        if let Some(taken) = self.taken.take() {
            self.entry.purse.settle(taken, actual);
            self.entry.move_up();
        }
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        if let Some(taken) = self.taken.take() {
            self.entry.purse.release(taken);
            self.entry.move_up();
        }
    }
}

// === impl Waiting ===

impl Waiting {
    pub(super) async fn verdict(&mut self) -> Verdict {
        // The line never drops a waiter that still listens without a verdict.
        (&mut self.verdict).await.unwrap_or(Verdict::StoreAway)
    }

    /// The verdict when time is up: the account is short if the authority has answered so. What it still has free was only not
    /// brought in time: that is a slow store, and no budget that is spent.
    pub(super) fn overdue(mut self) -> Verdict {
        if let Ok(verdict) = self.verdict.try_recv() {
            return verdict;
        }
        let facts = self.entry.facts();
        let (Want::Take(wanted) | Want::Most(wanted)) = self.want;
        let is_short = !facts.merged.learning && facts.merged.free < wanted;
        let answered = facts.answers > self.answers && is_short;
        drop(facts);
        match self.want {
            Want::Most(wanted) if answered => Verdict::Most(self.entry.purse.available().min(wanted)),
            Want::Take(_) if answered => Verdict::Exhausted,
            Want::Take(_) | Want::Most(_) => Verdict::StoreAway,
        }
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.verdict.close();
        // A verdict that came too late gives its money back here.
        drop(self.verdict.try_recv());
        self.entry.move_up();
    }
}

// === impl Entry ===

impl Entry {
    pub(super) fn new(claim: &Claim, number: u32, now_ms: u64) -> Entry {
        let now = Instant::now();
        Entry {
            key: claim.account.as_str().into(),
            budget: Arc::clone(&claim.budget),
            purse: Purse::default(),
            number,
            resets_at: claim.resets_at,
            limit: AtomicU64::new(claim.limit.0),
            low_water: AtomicU64::new(0),
            urgent: AtomicBool::new(false),
            unanswered: AtomicBool::new(false),
            drifted: AtomicBool::new(false),
            waiting: AtomicUsize::new(0),
            line: Mutex::default(),
            facts: Mutex::new(Facts {
                seen: false,
                merged: Merged::default(),
                answers: 0,
                limit_version: now_ms,
                demand: Demand::default(),
                noted: (0, now),
                used_at: now,
            }),
        }
    }

    /// Takes `bound` at once, unless it does not fit or others were here first.
    pub(super) fn take(self: &Arc<Self>, bound: u64) -> Result<Hold, NotTaken> {
        if self.waiting.load(Ordering::SeqCst) > 0 {
            return Err(NotTaken::Short);
        }
        self.purse.take(bound).map(|taken| Hold::new(self, taken))
    }

    pub(super) fn take_on_credit(self: &Arc<Self>, bound: u64, debt_max: u64) -> Result<Hold, NotTaken> {
        self.purse.take_on_credit(bound, debt_max).map(|taken| Hold::new(self, taken))
    }

    /// Whether asking the authority may help: it has not said that nothing is left.
    pub(super) fn may_be_granted(&self) -> bool {
        let facts = self.facts();
        !facts.seen || facts.merged.free > 0
    }

    pub(super) fn could_take(&self, wanted: u64) -> bool {
        self.waiting.load(Ordering::SeqCst) == 0 && self.purse.available() >= wanted
    }

    pub(super) fn is_low(&self) -> bool {
        self.purse.available() < self.low_water.load(Ordering::Relaxed)
    }

    /// Whether this call made it urgent.
    pub(super) fn mark_urgent(&self) -> bool {
        !self.urgent.swap(true, Ordering::SeqCst)
    }

    /// Whether this is the first time that purse and journal were found to differ.
    pub(super) fn mark_drifted(&self) -> bool {
        !self.drifted.swap(true, Ordering::Relaxed)
    }

    /// Takes note of the limit that a claim names; says whether it changed.
    pub(super) fn claim_limit(&self, limit: u64, now_ms: u64) -> bool {
        if self.limit.load(Ordering::Relaxed) == limit {
            return false;
        }
        let mut facts = self.facts();
        let newest = facts.limit_version.max(facts.merged.limit_version);
        facts.limit_version = now_ms.max(newest + 1);
        self.limit.store(limit, Ordering::Relaxed);
        true
    }

    /// Joins the line; `None` when it is too long.
    pub(super) fn wait(self: &Arc<Self>, want: Want) -> Option<Waiting> {
        let (verdict, receiver) = oneshot::channel();
        let answers = self.facts().answers;
        let mut line = self.line();
        if line.len() >= LINE_MAX {
            return None;
        }
        line.push_back(Waiter { want, asked: false, verdict });
        self.waiting.store(line.len(), Ordering::SeqCst);
        drop(line);
        // What was freed between the attempt to take and joining the line may be enough.
        self.move_up();
        Some(Waiting { entry: Arc::clone(self), want, verdict: receiver, answers })
    }

    pub(super) fn has_line(&self) -> bool {
        self.waiting.load(Ordering::SeqCst) > 0
    }

    /// Serves the line as far as the purse goes.
    pub(super) fn move_up(self: &Arc<Self>) {
        if self.has_line() {
            self.serve(|_, _| None);
        }
    }

    /// The store gave no answer: nobody waits any longer.
    pub(super) fn store_away(self: &Arc<Self>) {
        self.urgent.store(false, Ordering::SeqCst);
        self.unanswered.store(true, Ordering::Relaxed);
        self.serve(|_, _| Some(Verdict::StoreAway));
    }

    /// Serves the line in order. Where the purse is short for the first in it, `refuse` says what becomes of it; `None`
    /// leaves it, and all behind it, waiting.
    fn serve(self: &Arc<Self>, refuse: impl Fn(&Waiter, u64) -> Option<Verdict>) {
        // Sent after the lock is released: a verdict nobody takes gives its money back, which serves the line.
        let mut verdicts = Vec::new();
        let mut line = self.line();
        while let Some(first) = line.front() {
            let verdict = if first.verdict.is_closed() { None } else { Some(self.judge(first, &refuse)) };
            if matches!(verdict, Some(None)) {
                break;
            }
            let served = line.pop_front().expect("front: seen above");
            verdicts.extend(verdict.flatten().map(|verdict| (served.verdict, verdict)));
        }
        self.waiting.store(line.len(), Ordering::SeqCst);
        drop(line);
        for (waiter, verdict) in verdicts {
            drop(waiter.send(verdict));
        }
    }

    fn judge(self: &Arc<Self>, first: &Waiter, refuse: impl Fn(&Waiter, u64) -> Option<Verdict>) -> Option<Verdict> {
        let available = self.purse.available();
        match first.want {
            Want::Take(bound) => match self.purse.take(bound) {
                Ok(taken) => Some(Verdict::Taken(Hold::new(self, taken))),
                Err(NotTaken::Retired) => Some(Verdict::Retired),
                Err(NotTaken::Short) => refuse(first, available),
            },
            Want::Most(_) if self.purse.is_retired() => Some(Verdict::Retired),
            Want::Most(wanted) if available >= wanted => Some(Verdict::Most(wanted)),
            Want::Most(_) => refuse(first, available).map(|verdict| match verdict {
                Verdict::Exhausted => Verdict::Most(available),
                other => other,
            }),
        }
    }

    // --- what the background task does ---

    /// Whether the authority would learn something, or be given something back, or must hear that what this purse holds is in
    /// use: one that is silent for long can be reclaimed.
    pub(super) fn is_due(&self) -> bool {
        let totals = self.purse.totals();
        let facts = self.facts();
        let limit_changed = facts.limit_version > facts.merged.limit_version;
        let holds = self.purse.idle() > 0 || self.purse.holds() > 0;
        self.has_line() || holds || totals != facts.merged.totals || (limit_changed && facts.seen)
    }

    /// Notes demand since the last note, and when the account was used last.
    pub(super) fn note_demand(&self, now: Instant) {
        let mut facts = self.facts();
        let taken = self.purse.taken();
        let (before, noted_at) = facts.noted;
        let elapsed_ms = u64::try_from(now.duration_since(noted_at).as_millis()).unwrap_or(u64::MAX);
        facts.demand.note(taken - before, elapsed_ms);
        facts.noted = (taken, now);
        if taken != before || self.purse.holds() > 0 || self.has_line() {
            facts.used_at = now;
        }
    }

    /// Whether its period has ended.
    pub(super) fn is_over(&self, now: Timestamp) -> bool {
        self.resets_at.is_some_and(|resets_at| resets_at <= now)
    }

    /// Whether nobody used it for so long, or whether its numbers have grown too large, that a new purse should follow.
    pub(super) fn is_spent(&self, now: Instant, unused: std::time::Duration) -> bool {
        let idle = now.duration_since(self.facts().used_at) >= unused && self.purse.holds() == 0 && !self.has_line();
        idle || self.purse.totals().granted >= GRANTED_MAX
    }

    /// The next report. Hands back what is idle when `hand_back` is set, or when others starve. While nobody answers nothing goes
    /// back: what is here is all there is.
    pub(super) fn report(&self, incarnation: u64, hand_back: bool) -> SyncRequest {
        self.urgent.store(false, Ordering::SeqCst);
        let hand_back = hand_back && !self.unanswered.load(Ordering::Relaxed);
        let wanted = self.ask_for_line();
        let facts = self.facts();
        let retired = self.purse.is_retired();
        let lease = if retired || facts.merged.starving { 0 } else { lease(&facts, self.purse.taken()) };
        let keep = wanted.saturating_add(lease);
        if hand_back || retired || facts.merged.starving {
            // Others starve: even what calls wait for goes back first, or each would keep half of what either needs.
            self.purse.hand_back(if facts.merged.starving { 0 } else { keep });
        }
        // Read before the totals: a hold that ends in between shows as open, and the purse is closed next time.
        let open = self.purse.holds() > 0;
        let totals = self.purse.totals();
        let idle = self.purse.idle();
        let total = |amount: u64| totals.granted.saturating_add(amount.saturating_sub(idle)).min(NANO_USD_MAX);
        SyncRequest {
            row: RowId { incarnation, purse: self.number },
            totals,
            need: total(wanted),
            target: total(keep),
            limit: self.limit.load(Ordering::Relaxed),
            limit_version: facts.limit_version,
            create: !facts.seen,
            close: (retired && !open && !self.has_line()).then_some(Close::Settled),
        }
    }

    /// Takes an answer in, and serves the line.
    pub(super) fn merge(self: &Arc<Self>, merged: Merged) {
        self.unanswered.store(false, Ordering::Relaxed);
        self.purse.merge_granted(merged.totals.granted);
        let mut facts = self.facts();
        // A purse that was just opened has the newest configuration, whatever clocks said when the stored limit was set.
        let outdated = !facts.seen && merged.limit != self.limit.load(Ordering::Relaxed).min(NANO_USD_MAX);
        if outdated {
            facts.limit_version = facts.limit_version.max(merged.limit_version + 1);
        }
        facts.seen = true;
        facts.answers += 1;
        facts.merged = merged;
        let lease = lease(&facts, self.purse.taken());
        drop(facts);
        self.serve(|first, available| {
            let (Want::Take(wanted) | Want::Most(wanted)) = first.want;
            let hoped_for = available.saturating_add(merged.free).saturating_add(merged.elsewhere);
            let may_come = outdated || merged.learning || hoped_for >= wanted;
            (first.asked && !may_come).then_some(Verdict::Exhausted)
        });
        // Half of what there is at most, so that a purse that cannot be filled does not ask with every call.
        let low_water = if merged.free > 0 { (lease / 2).min(self.purse.available() / 2) } else { 0 };
        self.low_water.store(low_water, Ordering::Relaxed);
    }

    /// The authority does not know the account any more: the next report restores it, and is not granted anything at once.
    pub(super) fn lost(&self) {
        self.facts().seen = false;
    }

    pub(super) fn status(&self) -> AccountStatus {
        let facts = self.facts();
        let Merged { totals: before, limit, charged, debt, free, credited, .. } = facts.merged;
        let limit = if facts.seen { limit } else { self.limit.load(Ordering::Relaxed) };
        drop(facts);
        let totals = self.purse.totals();
        AccountStatus {
            budget: Arc::clone(&self.budget),
            account: Arc::clone(&self.key),
            limit: NanoUsd(limit),
            resets_at: self.resets_at,
            granted: NanoUsd(totals.held()),
            charged: NanoUsd(charged.saturating_add(totals.charged.saturating_sub(before.charged))),
            reserved: NanoUsd(self.purse.open()),
            debt: NanoUsd(debt.saturating_add(totals.debt.saturating_sub(before.debt))),
            free: NanoUsd(free),
            credited: NanoUsd(credited),
        }
    }

    /// Marks everyone in the line as asked for; says how much they want together.
    fn ask_for_line(&self) -> u64 {
        let mut line = self.line();
        line.retain(|waiter| !waiter.verdict.is_closed());
        self.waiting.store(line.len(), Ordering::SeqCst);
        line.iter_mut().fold(0, |sum: u64, waiter| {
            waiter.asked = true;
            let (Want::Take(wanted) | Want::Most(wanted)) = waiter.want;
            sum.saturating_add(wanted)
        })
    }

    fn line(&self) -> MutexGuard<'_, VecDeque<Waiter>> {
        self.line.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn facts(&self) -> MutexGuard<'_, Facts> {
        self.facts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What the purse should hold ahead of use. Before demand was noted, as much as was taken so far: doubling each time.
fn lease(facts: &Facts, taken: u64) -> u64 {
    facts.demand.lease().max(taken - facts.noted.0)
}
