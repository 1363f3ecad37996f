//! Money for calls: takes from purses in memory, and keeps them filled from the authority in the background.
//!
//! A call that fits its purses takes them with a compare-and-swap each and one write to the journal; it waits for no store.
//! One that does not fit waits, first come first served, at most `budget_wait`. Stage: used by the budget layer before an
//! attempt and by the recorder after it. Never decides how much a call may cost.
//!
//! - `entry`: one account in memory, its purse and the calls that wait for it.
//! - `syncer`: the background task: one flight to the authority at a time, with everything that is due.

mod entry;
mod syncer;

use std::{
    collections::HashMap,
    hash::BuildHasher,
    path::Path,
    sync::{
        Arc, Mutex, PoisonError, RwLock,
        atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering},
    },
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use foldhash::quality::RandomState;
use jiff::Timestamp;
use tokio::{
    sync::Notify,
    task::JoinHandle,
    time::{Instant, timeout, timeout_at},
};

use self::entry::{Entry, Hold, Verdict, Want};
use crate::{
    ledger::{purse::NotTaken, sync::NANO_USD_MAX},
    store::{
        DataDir,
        embedded::Embedded,
        journal::{self, Attempt, Journal, Part},
        ports::{Authority, StoreError, StoredAccount},
    },
    units::NanoUsd,
};

/// Accounts that may be in memory at the same time.
const ENTRIES_MAX: usize = 100_000;
/// An account that nobody used for this long leaves memory.
const UNUSED: Duration = Duration::from_secs(300);
/// Locks over the map of accounts.
const SHARDS: usize = 32;
/// While the store is away, an account with `on_store_loss: open` may go this share of its limit (1/n) into debt per process.
const LOSS_ALLOWANCE: u64 = 10;
/// How long [`Purses::close`] waits for the store.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);
/// Rows of a listing that are asked for at a time.
const LISTING_PAGE: usize = 1000;

/// One account that a call must pay from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claim {
    /// The budget's name.
    pub budget: Arc<str>,
    /// The account's key: budget/scope/period.
    pub account: String,
    /// The budget's limit in the call's configuration. A changed limit takes effect with the first claim that names it.
    pub limit: NanoUsd,
    /// When the period ends.
    pub resets_at: Option<Timestamp>,
    /// `false`: the budget only counts and warns; what does not fit is debt.
    pub enforce: bool,
    /// While the store is away, go on up to a tenth of the limit, booked as debt.
    pub open_on_loss: bool,
}

/// Why no money was reserved.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// The budget has less left than the call may cost.
    #[error("budget `{budget}` has less left than this call may cost")]
    Exhausted {
        /// Which.
        budget: Arc<str>,
        /// When its period ends.
        resets_at: Option<Timestamp>,
    },
    /// The store is away and the purse is empty, or the journal cannot be written.
    #[error("the budget store is unavailable")]
    StoreUnavailable {
        /// When to try again.
        retry_after: Duration,
    },
    /// More accounts are in use than this process keeps, or more than 32 by one call.
    #[error("too many budget accounts are in use")]
    TooManyAccounts,
}

/// One account as this process sees it; amounts as of the last sync, plus what was spent here since.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AccountStatus {
    /// The budget's name.
    pub budget: Arc<str>,
    /// The account's key: budget/scope/period.
    pub account: Arc<str>,
    /// The limit in force.
    pub limit: NanoUsd,
    /// When the period ends.
    pub resets_at: Option<Timestamp>,
    /// What this process holds of it, spent or not.
    pub granted: NanoUsd,
    /// Spent by all processes, without debt.
    pub charged: NanoUsd,
    /// What open reservations of this process hold.
    pub reserved: NanoUsd,
    /// Spent by all processes beyond what they held.
    pub debt: NanoUsd,
    /// What the authority could still grant.
    pub free: NanoUsd,
    /// What operators gave back of what was spent: as much more may be.
    pub credited: NanoUsd,
}

impl AccountStatus {
    /// What was spent, debt included.
    #[must_use]
    pub fn spent(&self) -> NanoUsd {
        self.charged.saturating_add(self.debt)
    }

    /// The spent share of all that may be spent, which is the limit and what was credited; 0 where that is nothing.
    #[must_use]
    pub fn spent_share(&self) -> f64 {
        match self.limit.saturating_add(self.credited) {
            NanoUsd::ZERO => 0.0,
            spendable => self.spent().as_usd() / spendable.as_usd(),
        }
    }
}

/// The purses of this process.
#[derive(Debug)]
pub struct Purses {
    shared: Arc<Shared>,
    task: Mutex<Option<JoinHandle<()>>>,
}

/// The times that a process is set up with.
#[derive(Debug, Clone, Copy)]
struct Pace {
    /// Between reports to the store.
    sync: Duration,
    /// The longest that a call waits for money.
    budget_wait: Duration,
    /// An account that nobody used for so long leaves memory.
    unused: Duration,
}

/// What calls, reservations and the background task have in common.
struct Shared {
    authority: Arc<dyn Authority>,
    journal: Journal,
    incarnation: u64,
    pace: Pace,
    shards: Vec<Shard>,
    hasher: RandomState,
    count: AtomicUsize,
    next_purse: AtomicU32,
    /// Accounts that need the authority at once.
    urgent: Mutex<Vec<Arc<Entry>>>,
    wake: Notify,
    store_up: AtomicBool,
    journal_up: AtomicBool,
    closing: AtomicBool,
    dropped: AtomicU64,
    unbooked: AtomicU64,
    /// By how much purses and journal differed at the last comparison, in nano-USD.
    drift: AtomicU64,
    /// Held as long as anything may write to the journal.
    _dir: Arc<DataDir>,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared").field("incarnation", &self.incarnation).field("count", &self.count).finish()
    }
}

/// What one attempt may cost, held until its true cost is known. Must be settled: one that is dropped is charged its bound
/// and counted as a bug.
#[must_use = "a reservation that is dropped is charged its bound"]
#[derive(Debug)]
pub struct Reservation {
    shared: Arc<Shared>,
    attempt: Option<Attempt>,
    holds: Vec<Hold>,
    bound: NanoUsd,
    settled: bool,
}

// === impl Purses ===

impl Purses {
    /// Purses over the embedded store in `data_dir`. Must be called in a tokio runtime.
    ///
    /// `sync` is the interval of reports to the store, `budget_wait` the longest that a call waits for money.
    ///
    /// # Errors
    /// When the directory is in use by another process, or store or journal cannot be opened.
    pub fn open(data_dir: &Path, sync: Duration, budget_wait: Duration) -> Result<Arc<Purses>, StoreError> {
        let dir = Arc::new(DataDir::open(data_dir)?);
        let authority = Arc::new(Embedded::open(Arc::clone(&dir))?);
        Purses::over(authority, dir, sync, budget_wait)
    }

    /// Purses over any authority, with their journal in `dir`. Must be called in a tokio runtime.
    ///
    /// Journals of earlier incarnations are read here and reported by the background task before anything else.
    ///
    /// # Errors
    /// When the journals cannot be read or a new one cannot be made.
    pub fn over(
        authority: Arc<dyn Authority>,
        dir: Arc<DataDir>,
        sync: Duration,
        budget_wait: Duration,
    ) -> Result<Arc<Purses>, StoreError> {
        Purses::start(authority, dir, Pace { sync, budget_wait, unused: UNUSED })
    }

    fn start(authority: Arc<dyn Authority>, dir: Arc<DataDir>, pace: Pace) -> Result<Arc<Purses>, StoreError> {
        let leftovers = journal::leftovers(&dir)?;
        let mut random = [0; 8];
        getrandom::fill(&mut random).map_err(|error| StoreError::Unavailable(format!("no random number: {error}")))?;
        let incarnation = u64::from_le_bytes(random);
        let shared = Arc::new(Shared {
            authority,
            journal: Journal::create(&dir, incarnation)?,
            incarnation,
            pace,
            shards: (0..SHARDS).map(|_| RwLock::default()).collect(),
            hasher: RandomState::default(),
            count: AtomicUsize::new(0),
            next_purse: AtomicU32::new(0),
            urgent: Mutex::default(),
            wake: Notify::new(),
            store_up: AtomicBool::new(true),
            journal_up: AtomicBool::new(true),
            closing: AtomicBool::new(false),
            dropped: AtomicU64::new(0),
            unbooked: AtomicU64::new(0),
            drift: AtomicU64::new(0),
            _dir: dir,
        });
        let task = tokio::spawn(syncer::supervise(Arc::clone(&shared), leftovers));
        Ok(Arc::new(Purses { shared, task: Mutex::new(Some(task)) }))
    }

    /// Reserves `bound` in every claimed account, or in none.
    ///
    /// Waits only when a purse is short, at most `budget_wait` in all. Dropping the future gives everything back.
    ///
    /// # Errors
    /// [`Refused`], before anything was dispatched.
    pub async fn reserve(&self, claims: &[Claim], bound: NanoUsd) -> Result<Reservation, Refused> {
        self.reserve_by(claims, bound, self.deadline()).await
    }

    /// Like [`Purses::reserve`], from what is at hand: `None` when it does not suffice, or nothing can be reserved.
    #[must_use]
    pub fn try_reserve(&self, claims: &[Claim], bound: NanoUsd) -> Option<Reservation> {
        self.check(claims).ok()?;
        let mut holds = Vec::with_capacity(claims.len());
        for claim in in_order(claims) {
            let entry = self.shared.entry(claim).ok()?;
            holds.push(entry.take(bound.0.min(NANO_USD_MAX)).ok()?);
            self.shared.refill_if_low(&entry);
        }
        self.book(claims, holds, bound).ok()
    }

    /// Until when a call that begins now may wait for money, in all its steps together.
    #[must_use]
    pub fn deadline(&self) -> Instant {
        Instant::now() + self.shared.pace.budget_wait
    }

    /// Like [`Purses::reserve`], for one step of several: waits until `deadline` at most, and takes what is at hand after it.
    ///
    /// # Errors
    /// [`Refused`], before anything was dispatched.
    pub async fn reserve_by(
        &self,
        claims: &[Claim],
        bound: NanoUsd,
        deadline: Instant,
    ) -> Result<Reservation, Refused> {
        self.check(claims)?;
        let mut holds = Vec::with_capacity(claims.len());
        // One order for all calls: two calls cannot hold what the other waits for.
        for claim in in_order(claims) {
            holds.extend(self.shared.hold(claim, bound.0.min(NANO_USD_MAX), deadline).await?);
        }
        self.book(claims, holds, bound)
    }

    /// Whether anything can be reserved at all.
    fn check(&self, claims: &[Claim]) -> Result<(), Refused> {
        if claims.len() > journal::PARTS_MAX {
            return Err(Refused::TooManyAccounts);
        }
        if self.shared.closing.load(Ordering::SeqCst) {
            return Err(self.shared.unavailable());
        }
        Ok(())
    }

    /// Writes down what is held.
    fn book(&self, claims: &[Claim], holds: Vec<Hold>, bound: NanoUsd) -> Result<Reservation, Refused> {
        let strict = claims.iter().any(|claim| claim.enforce && !claim.open_on_loss);
        let attempt = self.shared.intend(bound.0, &holds, strict)?;
        Ok(Reservation { shared: Arc::clone(&self.shared), attempt, holds, bound, settled: false })
    }

    /// How much of `wanted` could be reserved in every enforcing claim now; asks the authority at most once per account.
    /// Nothing is held: another call may take it first. Waits until `deadline` at most.
    pub async fn most(&self, claims: &[Claim], wanted: NanoUsd, deadline: Instant) -> NanoUsd {
        let mut most = wanted.0.min(NANO_USD_MAX);
        for claim in in_order(claims).filter(|claim| claim.enforce) {
            most = self.shared.most(claim, most, deadline).await;
        }
        NanoUsd(most)
    }

    /// The accounts in memory.
    #[must_use]
    pub fn accounts(&self) -> Vec<AccountStatus> {
        self.shared.entries().iter().map(|entry| entry.status()).collect()
    }

    /// Has the account's purse report at once, where there is one: an operator changed the account.
    pub fn report(&self, account: &str) {
        let shard = self.shared.shard(account).read().unwrap_or_else(PoisonError::into_inner);
        if let Some(entry) = shard.get(account) {
            self.shared.kick(entry);
        }
    }

    /// All accounts that the authority knows, in the order of their keys.
    ///
    /// # Errors
    /// When the store does not answer.
    pub async fn stored(&self) -> Result<Vec<StoredAccount>, StoreError> {
        let mut all: Vec<StoredAccount> = Vec::new();
        loop {
            let after = all.last().map(|account| Arc::clone(&account.account));
            let page = self.shared.authority.accounts(after, LISTING_PAGE).await?;
            let last = page.len() < LISTING_PAGE;
            all.extend(page);
            if last {
                return Ok(all);
            }
        }
    }

    /// Where the truth about accounts lives.
    #[must_use]
    pub fn authority(&self) -> &dyn Authority {
        &*self.shared.authority
    }

    /// The random id of this process in the rows of its purses.
    #[must_use]
    pub fn incarnation(&self) -> u64 {
        self.shared.incarnation
    }

    /// Whether the store answered last time, and all of it.
    #[must_use]
    pub fn store_up(&self) -> bool {
        self.shared.is_whole()
    }

    /// Reservations that were dropped without being settled: bugs.
    #[must_use]
    pub fn dropped_reservations(&self) -> u64 {
        self.shared.dropped.load(Ordering::Relaxed)
    }

    /// Calls that a lenient budget (one that warns, or is open on store loss) let through unbooked, since the journal could
    /// not be written.
    #[must_use]
    pub fn unbooked_calls(&self) -> u64 {
        self.shared.unbooked.load(Ordering::Relaxed)
    }

    /// By how much purses differ from the sum of what their attempts were settled at: anything but zero is a bug, or a lenient
    /// budget whose calls could not be written down.
    #[must_use]
    pub fn drift(&self) -> NanoUsd {
        NanoUsd(self.shared.drift.load(Ordering::Relaxed))
    }

    /// Refuses new reservations, returns all idle money and ends the background task; at most about two seconds.
    ///
    /// Open reservations can still be settled. Where there are any, the journal stays, and the next start reports it.
    pub async fn close(&self) {
        self.shared.closing.store(true, Ordering::SeqCst);
        self.shared.wake.notify_one();
        let task = self.task.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some(mut task) = task else { return };
        if timeout(CLOSE_TIMEOUT, &mut task).await.is_err() {
            tracing::warn!("the budget store did not take back idle money in time; the next start does it");
            task.abort();
        }
    }
}

/// Without [`Purses::close`], the journal stays and the next start reports it.
impl Drop for Purses {
    fn drop(&mut self) {
        let task = self.task.get_mut().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(task) = task {
            task.abort();
        }
    }
}

/// Claims in the order of their accounts.
fn in_order(claims: &[Claim]) -> impl Iterator<Item = &Claim> {
    let mut ordered: Vec<&Claim> = claims.iter().collect();
    ordered.sort_by(|a, b| a.account.cmp(&b.account));
    ordered.into_iter()
}

// === impl Shared ===

impl Shared {
    /// Takes `bound` of one account; `None` when a budget that does not refuse could not be booked.
    async fn hold(self: &Arc<Self>, claim: &Claim, bound: u64, deadline: Instant) -> Result<Option<Hold>, Refused> {
        loop {
            let entry = match self.entry(claim) {
                Ok(entry) => entry,
                Err(refused) => return self.unless_lenient(claim, refused),
            };
            match entry.take(bound) {
                Ok(hold) => {
                    self.refill_if_low(&entry);
                    return Ok(Some(hold));
                }
                Err(NotTaken::Retired) => continue,
                Err(NotTaken::Short) if claim.enforce && bound > claim.limit.0 => return Err(exhausted(claim)),
                Err(NotTaken::Short) => {}
            }
            let ask = claim.enforce || entry.may_be_granted();
            let verdict = if ask { self.ask(&entry, Want::Take(bound), deadline).await } else { Verdict::Exhausted };
            let credit = match verdict {
                Verdict::Taken(hold) => return Ok(Some(hold)),
                Verdict::Retired => continue,
                Verdict::Exhausted | Verdict::StoreAway | Verdict::Most(_) if !claim.enforce => u64::MAX,
                Verdict::Exhausted => return Err(exhausted(claim)),
                Verdict::StoreAway | Verdict::Most(_) if !claim.open_on_loss => return Err(self.unavailable()),
                Verdict::StoreAway | Verdict::Most(_) => claim.limit.0 / LOSS_ALLOWANCE,
            };
            match entry.take_on_credit(bound, credit) {
                Ok(hold) => return Ok(Some(hold)),
                Err(NotTaken::Retired) => continue,
                Err(NotTaken::Short) => return Err(self.unavailable()),
            }
        }
    }

    async fn most(self: &Arc<Self>, claim: &Claim, wanted: u64, deadline: Instant) -> u64 {
        loop {
            let Ok(entry) = self.entry(claim) else { return 0 };
            if entry.could_take(wanted) {
                return wanted;
            }
            return match self.ask(&entry, Want::Most(wanted), deadline).await {
                Verdict::Most(most) => most,
                Verdict::Retired => continue,
                Verdict::StoreAway if claim.open_on_loss => wanted.min(claim.limit.0 / LOSS_ALLOWANCE),
                Verdict::StoreAway | Verdict::Exhausted | Verdict::Taken(_) => entry.purse.available().min(wanted),
            };
        }
    }

    /// Waits in the account's line for the authority's answer.
    async fn ask(self: &Arc<Self>, entry: &Arc<Entry>, want: Want, deadline: Instant) -> Verdict {
        if !self.store_up.load(Ordering::Relaxed) || self.closing.load(Ordering::SeqCst) {
            return Verdict::StoreAway;
        }
        let Some(mut waiting) = entry.wait(want) else { return Verdict::StoreAway };
        self.kick(entry);
        match timeout_at(deadline, waiting.verdict()).await {
            Ok(verdict) => verdict,
            Err(_) => waiting.overdue(),
        }
    }

    fn unless_lenient(&self, claim: &Claim, refused: Refused) -> Result<Option<Hold>, Refused> {
        if claim.enforce && !claim.open_on_loss {
            return Err(refused);
        }
        self.unbooked.fetch_add(1, Ordering::Relaxed);
        Ok(None)
    }

    /// Writes the attempt down before it may be dispatched.
    fn intend(&self, bound: u64, holds: &[Hold], strict: bool) -> Result<Option<Attempt>, Refused> {
        if holds.is_empty() {
            return Ok(None);
        }
        let parts: Vec<Part> = holds.iter().map(Hold::part).collect();
        let intended = self.journal.intend(bound.min(NANO_USD_MAX), &parts);
        self.note_journal(intended.as_ref().err());
        match intended {
            Ok(attempt) => Ok(Some(attempt)),
            // Such budgets stay up rather than exact: after a crash, this attempt is not known to have been open.
            Err(_) if !strict => {
                self.unbooked.fetch_add(1, Ordering::Relaxed);
                Ok(None)
            }
            Err(_) => Err(self.unavailable()),
        }
    }

    /// One line per change of state.
    fn note_journal(&self, error: Option<&StoreError>) {
        let is_up = error.is_none();
        // Of calls that notice the same change together, one says so.
        if self.journal_up.load(Ordering::Relaxed) == is_up || self.journal_up.swap(is_up, Ordering::Relaxed) == is_up {
            return;
        }
        match error {
            Some(error) => tracing::error!(%error, "calls cannot be written down; strict budgets refuse them"),
            None => tracing::info!("calls can be written down again"),
        }
    }

    fn unavailable(&self) -> Refused {
        Refused::StoreUnavailable { retry_after: self.pace.sync.max(Duration::from_secs(1)) }
    }

    fn refill_if_low(&self, entry: &Arc<Entry>) {
        if entry.is_low() {
            self.kick(entry);
        }
    }

    /// Puts an account at the head of the next flight. A store that is away is only asked at each tick.
    fn is_whole(&self) -> bool {
        self.store_up.load(Ordering::Relaxed) && self.authority.is_whole()
    }

    fn kick(&self, entry: &Arc<Entry>) {
        if self.store_up.load(Ordering::Relaxed) && entry.mark_urgent() {
            self.urgent.lock().unwrap_or_else(PoisonError::into_inner).push(Arc::clone(entry));
            self.wake.notify_one();
        }
    }

    /// The claim's account in memory, opened if need be.
    fn entry(&self, claim: &Claim) -> Result<Arc<Entry>, Refused> {
        let shard = self.shard(&claim.account);
        let known = shard.read().unwrap_or_else(PoisonError::into_inner).get(claim.account.as_str()).cloned();
        let entry = match known {
            Some(entry) if !entry.purse.is_retired() => entry,
            _ => self.open_entry(shard, claim)?,
        };
        if entry.claim_limit(claim.limit.0, now_ms()) {
            self.kick(&entry);
        }
        Ok(entry)
    }

    fn open_entry(&self, shard: &Shard, claim: &Claim) -> Result<Arc<Entry>, Refused> {
        let mut shard = shard.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(entry) = shard.get(claim.account.as_str()).filter(|entry| !entry.purse.is_retired()) {
            return Ok(Arc::clone(entry));
        }
        if self.count.load(Ordering::Relaxed) >= ENTRIES_MAX {
            return Err(Refused::TooManyAccounts);
        }
        let number = self.next_purse.fetch_add(1, Ordering::Relaxed);
        let entry = Arc::new(Entry::new(claim, number, now_ms()));
        let opened = self.journal.open_purse(number, &entry.key);
        self.note_journal(opened.as_ref().err());
        opened.map_err(|_| self.unavailable())?;
        if shard.insert(Arc::clone(&entry.key), Arc::clone(&entry)).is_none() {
            self.count.fetch_add(1, Ordering::Relaxed);
        }
        Ok(entry)
    }

    /// Forgets an account, unless it has been opened anew meanwhile.
    fn forget(&self, entry: &Arc<Entry>) {
        let mut shard = self.shard(&entry.key).write().unwrap_or_else(PoisonError::into_inner);
        if shard.get(&entry.key).is_some_and(|current| Arc::ptr_eq(current, entry)) {
            shard.remove(&entry.key);
            self.count.fetch_sub(1, Ordering::Relaxed);
        }
    }

    fn shard(&self, account: &str) -> &Shard {
        &self.shards[(self.hasher.hash_one(account) % SHARDS as u64) as usize]
    }

    fn entries(&self) -> Vec<Arc<Entry>> {
        let mut entries = Vec::with_capacity(self.count.load(Ordering::Relaxed));
        for shard in &self.shards {
            entries.extend(shard.read().unwrap_or_else(PoisonError::into_inner).values().cloned());
        }
        entries
    }
}

type Shard = RwLock<HashMap<Arc<str>, Arc<Entry>, RandomState>>;

fn exhausted(claim: &Claim) -> Refused {
    Refused::Exhausted { budget: Arc::clone(&claim.budget), resets_at: claim.resets_at }
}

fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

// === impl Reservation ===

impl Reservation {
    /// The most that the attempt may cost.
    #[must_use]
    pub fn bound(&self) -> NanoUsd {
        self.bound
    }

    /// Charges the attempt's true cost in every account; zero where it was surely not processed. What exceeds the bound is
    /// debt. Cheap and synchronous.
    pub fn settle(mut self, actual: NanoUsd) {
        self.finish(actual);
    }

    fn finish(&mut self, actual: NanoUsd) {
        self.settled = true;
        let mut charged = actual.0.min(NANO_USD_MAX);
        // The journal first: a refund that it did not know of could be spent twice after a crash.
        if let Some(attempt) = self.attempt
            && let Err(error) = self.shared.journal.settle(attempt, charged)
        {
            tracing::error!(%error, "an attempt was charged its bound because its cost could not be written down");
            charged = self.bound.0.min(NANO_USD_MAX);
        }
        for hold in self.holds.drain(..) {
            hold.settle(charged);
        }
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        if !self.settled {
            self.shared.dropped.fetch_add(1, Ordering::Relaxed);
            tracing::error!("a reservation was dropped without being settled; it was charged its bound");
            self.finish(self.bound);
        }
    }
}

#[cfg(test)]
mod tests;
