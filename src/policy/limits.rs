//! Rate limits: sliding windows for requests and tokens, exact counts for concurrency.
//!
//! # Why not a token bucket
//! The promise is: over *any* window as long as the limit's, no more than its count is admitted; and whoever was idle may have
//! all of it at once, as `600/min` makes people expect. A bucket (GCRA) cannot keep both: with the full count as its burst it
//! admits almost twice the count in the window after an idle one, and with a small burst it refuses the second of two calls.
//! So a [`Window`] remembers what was admitted when, in at most 66 groups: admissions within 1/64 of the window's length share
//! a group, and a group leaves as one, when its last admission is a whole window old. Nothing leaves early, so the count is
//! never exceeded; nothing leaves later than 1/64 of a window, which is all that saturated callers can lose (1.6 %). Whoever
//! spends all of it at once gets it back at once, a window later.
//!
//! # Decisions
//! - Limits of a call are taken all or none: if one refuses, those already taken are given back. In between, another call may
//!   be refused for what was about to be given back; it is told to retry, and no two locks are ever held together.
//! - Tokens are charged by their estimate and corrected at the call's end, in the group of its admission; a call that is
//!   dropped without a correction stays charged at the estimate, and one whose window has passed needs none.
//! - A call estimated above the whole token count is admitted once nothing else is in the window, and fills it alone. Refusing
//!   it for ever would be a size limit, which this is not; letting it in beside others would let anyone exceed the count. This
//!   and estimates that were too low are the only ways above a token count.
//! - A refused concurrency limit cannot know when a call will end: it says [`CONCURRENT_RETRY_AFTER`].
//! - Accounts live only while something of theirs is in a window or in flight. Should clients make up more of them than
//!   [`Limiter`] holds, windows are forgotten, never calls in flight: rate limits must not take the service down.
//!
//! # Several replicas
//! A limiter that is [`Limiter::shared`] admits within its [`Share`] of each window, and joins whom it shares with when an
//! account is first used. Its accounts are reported and answered in the background; see [`crate::policy::share`]. Counts of
//! concurrent calls stay this replica's own. Beyond [`LISTED_MAX`] accounts, and while the store is away, a replica admits
//! its even part of a limit, or its last share where that is more.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    fmt,
    hash::BuildHasher,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use foldhash::quality::RandomState;

use crate::{
    policy::{
        scope::{Facts, Scope},
        share::{Answer, Report, Share},
    },
    units::Tokens,
};

/// What a refusal for concurrency tells the client to wait.
pub const CONCURRENT_RETRY_AFTER: Duration = Duration::from_secs(1);

/// Groups that a window divides its length into.
const GROUPS: u64 = 64;
const SHARDS: usize = 64;
/// Accounts per shard above which windows are forgotten: about a million in all.
const SHARD_ACCOUNTS_MAX: usize = 16_384;
/// Accounts per shard below which looking for idle ones is not worth it.
const SHARD_ACCOUNTS_SWEPT: usize = 64;
/// Accounts that a replica shares with others at the same time.
pub const LISTED_MAX: usize = 4096;
/// What a refusal says at most where a larger share is on its way.
const SHARE_RETRY_AFTER: Duration = Duration::from_secs(1);

/// A rate limit as configured.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limit {
    /// Its name.
    pub name: Arc<str>,
    /// Whom it is for.
    pub scope: Scope,
    /// Requests per minute-like window.
    pub requests: Option<Rate>,
    /// Tokens per window, estimated at admission and corrected at the end.
    pub tokens: Option<Rate>,
    /// Calls at the same time.
    pub concurrent: Option<u32>,
}

/// So many per so long: `600/min`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rate {
    /// How many.
    pub count: u64,
    /// Per how long, in milliseconds.
    pub per_ms: u64,
}

/// Why a text is not a rate.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RateError {
    /// Not `count/unit`.
    #[error("`{0}` is not a rate; write it as `600/min`")]
    NotRate(String),
    /// A count of 0 would refuse everything.
    #[error("`{0}` would admit nothing; a rate's count is above 0")]
    Zero(String),
    /// Not a unit that is known.
    #[error("`{0}` is no unit of a rate; use s, min, h or day")]
    UnknownUnit(String),
}

/// What was admitted in the last window, and when.
#[derive(Debug, Default)]
pub struct Window {
    groups: VecDeque<Group>,
    used: u64,
}

/// Admissions close together. Times are nanoseconds on the caller's monotonic clock.
#[derive(Debug)]
struct Group {
    first_ns: u64,
    last_ns: u64,
    cost: u64,
}

/// What was taken of a window, to be corrected later.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Booking {
    at_ns: u64,
    cost: u64,
}

/// How a window stands for its caller, for `x-ratelimit-*` headers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Quota {
    /// The limit's count.
    pub limit: u64,
    /// What is left of it now.
    pub remaining: u64,
    /// Until all of it is back.
    pub reset: Duration,
}

/// The tightest quotas of an admitted call: those with the least left.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Standing {
    /// Of its request limits.
    pub requests: Option<Quota>,
    /// Of its token limits.
    pub tokens: Option<Quota>,
}

/// What a limit counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Counted {
    /// Requests per window.
    Requests,
    /// Tokens per window.
    Tokens,
    /// Calls at the same time.
    Concurrent,
}

/// A call was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("rate limit `{limit}` for {what} is reached; retry in {} ms", retry_after.as_millis())]
pub struct Limited {
    /// The limit's name.
    pub limit: Arc<str>,
    /// What it counts.
    pub what: Counted,
    /// When a try may succeed; above 0.
    pub retry_after: Duration,
    /// How the refusing window stands; `None` for [`Counted::Concurrent`].
    pub quota: Option<Quota>,
}

/// All accounts of all limits of this process. Outlives configurations: what was counted stays counted after a reload.
pub struct Limiter {
    shards: Box<[Mutex<Shard>]>,
    hasher: RandomState,
    fleet: Option<Fleet>,
}

/// Which accounts [`Limiter::reports`] looks at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reported {
    /// Those that joined since it last looked.
    New,
    /// All that have something to say.
    Due,
    /// All: the store may have forgotten them.
    All,
    /// All, for the last time: what is not in use is handed back.
    Leaving,
}

/// A report for the store, on one window of one account. Belongs to the limiter that made it.
#[derive(Debug)]
pub struct WindowReport {
    /// The limit's name, what is counted, per how many milliseconds, and the account.
    pub name: String,
    /// What it says.
    pub report: Report,
    what: Counted,
    cell: Arc<Mutex<Cell>>,
}

/// What a limiter that is one of several knows of the others.
struct Fleet {
    /// Called when an account joins.
    wake: Box<dyn Fn() + Send + Sync>,
    /// How many replicas there are, as was last heard.
    replicas: AtomicU64,
    is_away: AtomicBool,
    /// Accounts that joined and were not yet reported.
    fresh: Mutex<Vec<Arc<Mutex<Cell>>>>,
    /// Accounts that were. Locked before a cell, never after it.
    listed: Mutex<Vec<Arc<Mutex<Cell>>>>,
    count: AtomicUsize,
}

/// What an admitted call holds. Dropping it ends the call for concurrency limits, wherever the drop happens.
#[derive(Debug, Default)]
#[must_use = "dropping an admission ends the call for concurrency limits"]
pub struct Admission {
    /// For the reply's headers.
    pub standing: Standing,
    taken: Vec<Taken>,
}

#[derive(Default)]
struct Shard {
    accounts: HashMap<Account, Arc<Mutex<Cell>>, RandomState>,
    /// Number of accounts at which to look for idle ones again.
    sweep_at: usize,
}

#[derive(Debug, PartialEq, Eq, Hash)]
struct Account {
    limit: Arc<str>,
    account: String,
}

/// One account of one limit.
#[derive(Debug, Default)]
struct Cell {
    requests: Window,
    tokens: Window,
    concurrent: u32,
    /// When all that is in the windows will have left.
    idle_from_ns: u64,
    /// Where others have a share in the windows.
    part: Option<Box<Part>>,
}

/// This replica's part of one account.
#[derive(Debug)]
struct Part {
    /// The limit's name and the account.
    name: (Arc<str>, String),
    requests: Share,
    tokens: Share,
    /// The limit's rates at the last call.
    rates: Rates,
    is_listed: bool,
}

/// What may be admitted per window.
#[derive(Debug, Clone, Copy)]
struct Rates {
    requests: Option<Rate>,
    tokens: Option<Rate>,
}

/// What a call took of one account.
#[derive(Debug)]
struct Taken {
    requests: Option<Booking>,
    tokens: Option<Booking>,
    call: ConcurrencyGuard,
}

/// Counts one call in flight until it is dropped.
#[derive(Debug)]
struct ConcurrencyGuard(Arc<Mutex<Cell>>);

// === impl WindowReport ===

#[cfg(test)]
impl WindowReport {
    /// One that belongs to no limiter.
    pub(crate) fn detached(name: String, report: Report, what: Counted) -> WindowReport {
        WindowReport { name, report, what, cell: Arc::default() }
    }
}

// === impl Rate ===

impl Rate {
    /// Reads `600/min`: a count above 0, and `s`, `sec`, `second`, `min`, `minute`, `h`, `hour`, `d` or `day`.
    ///
    /// # Errors
    /// When the text has another form.
    pub fn parse(text: &str) -> Result<Rate, RateError> {
        let not_rate = || RateError::NotRate(text.to_owned());
        let (count, unit) = text.split_once('/').ok_or_else(not_rate)?;
        let (count, unit) = (count.trim(), unit.trim());
        if !count.bytes().all(|byte| byte.is_ascii_digit()) {
            return Err(not_rate());
        }
        let count = count.parse().map_err(|_| not_rate())?;
        if count == 0 {
            return Err(RateError::Zero(text.to_owned()));
        }
        let per_ms = match unit {
            "s" | "sec" | "second" => 1_000,
            "min" | "minute" => 60_000,
            "h" | "hour" => 3_600_000,
            "d" | "day" => 86_400_000,
            _ => return Err(RateError::UnknownUnit(unit.to_owned())),
        };
        Ok(Rate { count, per_ms })
    }

    fn per_ns(self) -> u64 {
        self.per_ms.saturating_mul(1_000_000)
    }
}

impl fmt::Display for Counted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Counted::Requests => "requests",
            Counted::Tokens => "tokens",
            Counted::Concurrent => "concurrent calls",
        })
    }
}

// === impl Window ===

impl Window {
    /// Whether `cost` fits at `now_ns`; nothing is taken yet.
    ///
    /// # Errors
    /// How long until it fits, if nothing else comes in between.
    pub fn check(&mut self, now_ns: u64, cost: u64, rate: Rate) -> Result<(), Duration> {
        self.forget(now_ns, rate);
        if self.used == 0 || self.fits(cost, rate) {
            return Ok(());
        }
        let mut used = self.used;
        for group in &self.groups {
            used = used.saturating_sub(group.cost);
            if used == 0 || used.saturating_add(cost) <= rate.count {
                return Err(group.leaves_after(now_ns, rate));
            }
        }
        // Not reached: the groups' costs add up to `used`. A whole window is always long enough.
        Err(Duration::from_nanos(rate.per_ns()))
    }

    /// Takes `cost` at `now_ns`, whatever is left; ask [`Window::check`] first.
    pub fn take(&mut self, now_ns: u64, cost: u64, rate: Rate) -> Booking {
        self.used = self.used.saturating_add(cost);
        // Threads may arrive in another order than they read the clock.
        let now_ns = self.groups.back().map_or(now_ns, |group| now_ns.max(group.last_ns));
        match self.groups.back_mut() {
            Some(group) if now_ns - group.first_ns < rate.per_ns() / GROUPS => {
                group.last_ns = now_ns;
                group.cost = group.cost.saturating_add(cost);
            }
            _ => self.groups.push_back(Group { first_ns: now_ns, last_ns: now_ns, cost }),
        }
        Booking { at_ns: now_ns, cost }
    }

    /// Replaces a booked cost by what it really was. Without effect once it has left the window.
    pub fn correct(&mut self, booking: &mut Booking, actual: u64) {
        let at = booking.at_ns;
        let Some(group) = self.groups.iter_mut().rev().find(|group| group.first_ns <= at && at <= group.last_ns) else {
            return;
        };
        let before = group.cost;
        group.cost = before.saturating_sub(booking.cost).saturating_add(actual);
        self.used = self.used.saturating_sub(before).saturating_add(group.cost);
        booking.cost = actual;
    }

    /// What is left at `now_ns`, and when all of it is back.
    pub fn quota(&mut self, now_ns: u64, rate: Rate) -> Quota {
        self.forget(now_ns, rate);
        let reset = self.groups.back().map_or(Duration::ZERO, |group| group.leaves_after(now_ns, rate));
        Quota { limit: rate.count, remaining: rate.count.saturating_sub(self.used), reset }
    }

    /// What is in it at `now_ns`.
    fn used_at(&mut self, now_ns: u64, rate: Option<Rate>) -> u64 {
        if let Some(rate) = rate {
            self.forget(now_ns, rate);
        }
        self.used
    }

    fn fits(&self, cost: u64, rate: Rate) -> bool {
        self.used.saturating_add(cost) <= rate.count
    }

    fn forget(&mut self, now_ns: u64, rate: Rate) {
        while let Some(group) = self.groups.front()
            && group.last_ns.saturating_add(rate.per_ns()) <= now_ns
        {
            self.used = self.used.saturating_sub(group.cost);
            self.groups.pop_front();
        }
    }
}

impl Group {
    fn leaves_after(&self, now_ns: u64, rate: Rate) -> Duration {
        Duration::from_nanos(self.last_ns.saturating_add(rate.per_ns()).saturating_sub(now_ns))
    }
}

// === impl Limiter ===

impl Limiter {
    /// A limiter that has counted nothing and has its limits for itself.
    #[must_use]
    pub fn new() -> Limiter {
        Limiter { shards: (0..SHARDS).map(|_| Mutex::default()).collect(), hasher: RandomState::default(), fleet: None }
    }

    /// One of several that share their limits. `wake` is called, from within [`Limiter::admit`], when there are new accounts to
    /// report.
    #[must_use]
    pub fn shared(wake: impl Fn() + Send + Sync + 'static) -> Limiter {
        let fleet = Fleet {
            wake: Box::new(wake),
            replicas: AtomicU64::new(1),
            is_away: AtomicBool::new(false),
            fresh: Mutex::default(),
            listed: Mutex::default(),
            count: AtomicUsize::new(0),
        };
        Limiter { fleet: Some(fleet), ..Limiter::new() }
    }

    /// Takes what the call needs of each limit that covers it, or of none. `now_ns` is read from one monotonic clock.
    ///
    /// # Errors
    /// The first limit that refuses.
    pub fn admit(
        &self,
        limits: &[Arc<Limit>],
        facts: &Facts<'_>,
        estimated: Tokens,
        now_ns: u64,
    ) -> Result<Admission, Limited> {
        let mut admission = Admission::default();
        for limit in limits {
            let Some(account) = limit.scope.account(facts) else { continue };
            let cell = self.cell(Account { limit: Arc::clone(&limit.name), account }, now_ns);
            match Taken::take(cell, limit, estimated, now_ns, self.fleet.as_ref()) {
                Ok((taken, standing)) => admission.add(taken, standing),
                Err(limited) => {
                    admission.give_back();
                    return Err(limited);
                }
            }
        }
        Ok(admission)
    }

    /// How many accounts are held.
    #[must_use]
    pub fn accounts(&self) -> usize {
        self.shards.iter().map(|shard| lock(shard).accounts.len()).sum()
    }

    /// What the store is to be told now. `interval_ms` is the time between reports.
    #[must_use]
    pub fn reports(&self, which: Reported, now_ns: u64, interval_ms: u64) -> Vec<WindowReport> {
        let Some(fleet) = &self.fleet else { return Vec::new() };
        let fresh = std::mem::take(&mut *lock(&fleet.fresh));
        let mut listed = lock(&fleet.listed);
        let from = if which == Reported::New { listed.len() } else { 0 };
        listed.extend(fresh);
        let is_due = |cell| Cell::reports(cell, now_ns, interval_ms, which);
        listed[from..].iter().flat_map(is_due).collect()
    }

    /// Takes what the store answered to reports: an answer each, in their order, or `None` where it had none.
    pub fn take(&self, reports: &[WindowReport], answers: &[Option<Answer>]) {
        let Some(fleet) = &self.fleet else { return };
        let mut left = HashSet::new();
        for (report, answer) in reports.iter().zip(answers) {
            if let Some(answer) = answer
                && lock(&report.cell).take_answer(report.what, *answer)
            {
                left.insert(Arc::as_ptr(&report.cell));
            }
        }
        let mut listed = lock(&fleet.listed);
        // One that has joined again meanwhile is among the fresh ones.
        listed.retain(|cell| !left.contains(&Arc::as_ptr(cell)));
        fleet.count.store(listed.len() + lock(&fleet.fresh).len(), Ordering::Relaxed);
    }

    /// Notes that the store answers, and how many replicas it has heard of lately.
    pub fn store_answers(&self, replicas: u64) {
        let Some(fleet) = &self.fleet else { return };
        fleet.replicas.store(replicas.max(1), Ordering::Relaxed);
        fleet.is_away.store(false, Ordering::Relaxed);
    }

    /// Notes that the store has not answered for a while: shares stay, and nobody has less than an even part.
    pub fn store_is_away(&self) {
        if let Some(fleet) = &self.fleet {
            fleet.is_away.store(true, Ordering::Relaxed);
        }
    }

    fn cell(&self, account: Account, now_ns: u64) -> Arc<Mutex<Cell>> {
        let shard = self.hasher.hash_one(&account) as usize % SHARDS;
        lock(&self.shards[shard]).cell(account, now_ns, self.fleet.is_some())
    }
}

impl Fleet {
    /// Takes an account in, unless there are too many.
    fn enlist(&self, cell: &Arc<Mutex<Cell>>) -> bool {
        if self.count.fetch_add(1, Ordering::Relaxed) >= LISTED_MAX {
            self.count.fetch_sub(1, Ordering::Relaxed);
            return false;
        }
        lock(&self.fresh).push(Arc::clone(cell));
        (self.wake)();
        true
    }

    /// What may be admitted of a limit without a share.
    fn open(&self, limit: u64, is_listed: bool) -> u64 {
        let is_open = !is_listed || self.is_away.load(Ordering::Relaxed);
        if is_open { limit.div_ceil(self.replicas.load(Ordering::Relaxed)) } else { 0 }
    }
}

impl Default for Limiter {
    fn default() -> Limiter {
        Limiter::new()
    }
}

impl fmt::Debug for Limiter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Limiter").field("accounts", &self.accounts()).finish_non_exhaustive()
    }
}

impl Shard {
    fn cell(&mut self, account: Account, now_ns: u64, is_shared: bool) -> Arc<Mutex<Cell>> {
        if let Some(cell) = self.accounts.get(&account) {
            return Arc::clone(cell);
        }
        if self.accounts.len() >= self.sweep_at {
            self.sweep(now_ns);
        }
        let part = is_shared.then(|| Box::new(Part::new(&account)));
        let cell = Arc::new(Mutex::new(Cell { part, ..Cell::default() }));
        self.accounts.insert(account, Arc::clone(&cell));
        cell
    }

    /// Drops idle accounts; where that is not enough, all that no call holds. Looking again only once the number has doubled
    /// keeps this cheap per insertion.
    fn sweep(&mut self, now_ns: u64) {
        self.accounts.retain(|_, cell| is_held(cell) || lock(cell).idle_from_ns > now_ns);
        if self.accounts.len() >= SHARD_ACCOUNTS_MAX {
            self.accounts.retain(|_, cell| is_held(cell));
        }
        self.sweep_at = (self.accounts.len() * 2).clamp(SHARD_ACCOUNTS_SWEPT, SHARD_ACCOUNTS_MAX);
    }
}

/// Whether a call in flight, or one being admitted, has hold of the cell. Only the shard's lock hands out further holds.
fn is_held(cell: &Arc<Mutex<Cell>>) -> bool {
    Arc::strong_count(cell) > 1
}

/// Counts stay right across a panic: every change to a cell or shard is complete before anything can panic.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Cell {
    /// Whether the call fits all three counts; nothing is taken yet.
    fn check(&mut self, limit: &Limit, most: &Rates, tokens: u64, now_ns: u64) -> Result<(), Limited> {
        let limited = |what, retry_after, standing: Standing| {
            let quota = standing.requests.or(standing.tokens);
            Err(Limited { limit: Arc::clone(&limit.name), what, retry_after, quota })
        };
        if limit.concurrent.is_some_and(|most| self.concurrent >= most) {
            return limited(Counted::Concurrent, CONCURRENT_RETRY_AFTER, Standing::default());
        }
        if let Some(rate) = most.requests
            && let Err(wait) = self.requests.check(now_ns, 1, rate)
        {
            let standing = Standing { tokens: None, ..self.standing(limit, most, now_ns) };
            return limited(Counted::Requests, self.wait(Counted::Requests, 1, wait), standing);
        }
        if let Some(rate) = most.tokens
            && let Err(wait) = self.tokens.check(now_ns, tokens, rate)
        {
            let standing = Standing { requests: None, ..self.standing(limit, most, now_ns) };
            return limited(Counted::Tokens, self.wait(Counted::Tokens, tokens, wait), standing);
        }
        Ok(())
    }

    /// How long a refused call should wait: until its window has room, or until this replica's share may have grown.
    fn wait(&self, what: Counted, cost: u64, window: Duration) -> Duration {
        let share = self.part.as_ref().filter(|part| part.is_listed).map(|part| part.share(what));
        if share.is_some_and(|share| share.may_grow(cost)) { window.min(SHARE_RETRY_AFTER) } else { window }
    }

    /// What may be in the windows for a call: the limit's rates, or this replica's share of them.
    fn most(
        &mut self,
        limit: &Limit,
        tokens: u64,
        now_ns: u64,
        fleet: Option<&Fleet>,
        own: &Arc<Mutex<Cell>>,
    ) -> Rates {
        let rates = Rates { requests: limit.requests, tokens: limit.tokens };
        let Some((part, fleet)) = self.part.as_deref_mut().zip(fleet) else { return rates };
        if rates.requests.is_none() && rates.tokens.is_none() {
            return rates;
        }
        part.rates = rates;
        if !part.is_listed && fleet.enlist(own) {
            part.is_listed = true;
            part.requests.join(now_ns, self.requests.used_at(now_ns, rates.requests));
            part.tokens.join(now_ns, self.tokens.used_at(now_ns, rates.tokens));
        }
        part.requests.attempt(1);
        part.tokens.attempt(tokens);
        let within = |share: &Share, rate: Rate| {
            let open = fleet.open(rate.count, part.is_listed);
            Rate { count: share.most(rate.count, open), ..rate }
        };
        Rates {
            requests: rates.requests.map(|rate| within(&part.requests, rate)),
            tokens: rates.tokens.map(|rate| within(&part.tokens, rate)),
        }
    }

    /// What its windows have to report.
    fn reports(cell: &Arc<Mutex<Cell>>, now_ns: u64, interval_ms: u64, which: Reported) -> Vec<WindowReport> {
        let mut state = lock(cell);
        let Cell { requests, tokens, part, .. } = &mut *state;
        let Some(part) = part else { return Vec::new() };
        let Part { name: (limit, account), requests: of_requests, tokens: of_tokens, rates, .. } = &mut **part;
        let windows = [
            (Counted::Requests, "requests", requests, of_requests, rates.requests),
            (Counted::Tokens, "tokens", tokens, of_tokens, rates.tokens),
        ];
        let report = |(what, counted, window, share, rate): (_, _, &mut Window, &mut Share, Option<Rate>)| {
            let rate = rate?;
            let used = window.used_at(now_ns, Some(rate));
            if which == Reported::Leaving {
                share.leave();
            }
            let must = which == Reported::All;
            let report = share.report(now_ns, used, (rate.count, rate.per_ms), interval_ms, must)?;
            let name = format!("{limit}/{counted}/{}/{account}", rate.per_ms);
            Some(WindowReport { name, report, what, cell: Arc::clone(cell) })
        };
        windows.into_iter().filter_map(report).collect()
    }

    /// Takes an answer. Returns whether the account leaves, because nothing more is to be said of either window.
    fn take_answer(&mut self, what: Counted, answer: Answer) -> bool {
        let Some(part) = self.part.as_deref_mut() else { return false };
        let share = if what == Counted::Tokens { &mut part.tokens } else { &mut part.requests };
        share.take(answer);
        let stays = |rate: Option<Rate>, share: &Share, used| rate.is_some() && !share.has_left(used);
        let leaves = part.is_listed
            && !stays(part.rates.requests, &part.requests, self.requests.used)
            && !stays(part.rates.tokens, &part.tokens, self.tokens.used);
        part.is_listed &= !leaves;
        leaves
    }

    /// Keeps the account until what was just taken has left its window.
    fn keep_for(&mut self, now_ns: u64, rate: Option<Rate>) {
        let until_ns = now_ns.saturating_add(rate.map_or(0, Rate::per_ns));
        self.idle_from_ns = self.idle_from_ns.max(until_ns);
    }

    /// What is left of `most`, told with the limits' own counts.
    fn standing(&mut self, limit: &Limit, most: &Rates, now_ns: u64) -> Standing {
        let told = |whole: Option<Rate>, most: Option<Rate>, window: &mut Window| {
            whole.zip(most).map(|(whole, most)| Quota { limit: whole.count, ..window.quota(now_ns, most) })
        };
        Standing {
            requests: told(limit.requests, most.requests, &mut self.requests),
            tokens: told(limit.tokens, most.tokens, &mut self.tokens),
        }
    }
}

impl Part {
    fn new(account: &Account) -> Part {
        Part {
            name: (Arc::clone(&account.limit), account.account.clone()),
            requests: Share::default(),
            tokens: Share::default(),
            rates: Rates { requests: None, tokens: None },
            is_listed: false,
        }
    }

    fn share(&self, what: Counted) -> &Share {
        if what == Counted::Tokens { &self.tokens } else { &self.requests }
    }
}

impl Taken {
    fn take(
        cell: Arc<Mutex<Cell>>,
        limit: &Limit,
        estimated: Tokens,
        now_ns: u64,
        fleet: Option<&Fleet>,
    ) -> Result<(Taken, Standing), Limited> {
        let mut state = lock(&cell);
        let most = state.most(limit, estimated.0, now_ns, fleet, &cell);
        state.check(limit, &most, estimated.0, now_ns)?;
        let requests = limit.requests.map(|rate| state.requests.take(now_ns, 1, rate));
        let tokens = limit.tokens.map(|rate| state.tokens.take(now_ns, estimated.0, rate));
        state.keep_for(now_ns, limit.requests);
        state.keep_for(now_ns, limit.tokens);
        // Counted whether or not there is a limit now: a reload may bring one while the call runs.
        state.concurrent += 1;
        let standing = state.standing(limit, &most, now_ns);
        drop(state);
        Ok((Taken { requests, tokens, call: ConcurrencyGuard(cell) }, standing))
    }

    fn correct_tokens(&mut self, actual: u64) {
        if let Some(booking) = &mut self.tokens {
            lock(&self.call.0).tokens.correct(booking, actual);
        }
    }

    fn give_back(mut self) {
        self.correct_tokens(0);
        if let Some(booking) = &mut self.requests {
            lock(&self.call.0).requests.correct(booking, 0);
        }
    }
}

impl Drop for ConcurrencyGuard {
    fn drop(&mut self) {
        lock(&self.0).concurrent -= 1;
    }
}

// === impl Admission ===

impl Admission {
    /// Replaces the estimate by what the call really used. A later correction replaces an earlier one.
    pub fn correct(&mut self, actual: Tokens) {
        self.taken.iter_mut().for_each(|taken| taken.correct_tokens(actual.0));
    }

    /// Takes the call back as if it had never been admitted: for calls that are refused further in.
    pub fn give_back(self) {
        self.taken.into_iter().for_each(Taken::give_back);
    }

    fn add(&mut self, taken: Taken, standing: Standing) {
        self.taken.push(taken);
        self.standing.requests = tighter(self.standing.requests, standing.requests);
        self.standing.tokens = tighter(self.standing.tokens, standing.tokens);
    }
}

/// The quota with less left.
fn tighter(one: Option<Quota>, other: Option<Quota>) -> Option<Quota> {
    one.into_iter().chain(other).min_by_key(|quota| quota.remaining)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::policy::scope::Match;

    const SECOND: u64 = 1_000_000_000;
    const MINUTE: u64 = 60 * SECOND;

    fn per_minute(count: u64) -> Rate {
        Rate { count, per_ms: 60_000 }
    }

    fn each_key(name: &str) -> Limit {
        let scope = Scope { key: Some(Match::Each), ..Scope::default() };
        Limit { name: name.into(), scope, requests: None, tokens: None, concurrent: None }
    }

    fn of_key(key: &str) -> Facts<'_> {
        Facts { key, team: None, user: key, model: "m", tags: &[] }
    }

    fn limits(limits: impl IntoIterator<Item = Limit>) -> Vec<Arc<Limit>> {
        limits.into_iter().map(Arc::new).collect()
    }

    /// Runs arrivals through a window; returns when those that were admitted came.
    fn admitted(arrivals: impl IntoIterator<Item = u64>, rate: Rate) -> Vec<u64> {
        let mut window = Window::default();
        let admit = |at: &u64| window.check(*at, 1, rate).is_ok().then(|| window.take(*at, 1, rate)).is_some();
        arrivals.into_iter().filter(admit).collect()
    }

    /// Most admissions in any window `(t - per, t]`.
    fn most_in_any_window(admitted: &[u64], rate: Rate) -> usize {
        let since = |end: usize| admitted.partition_point(|at| at + rate.per_ns() <= admitted[end]);
        (0..admitted.len()).map(|end| end + 1 - since(end)).max().unwrap_or(0)
    }

    #[test]
    fn rates_are_read_and_others_refused() {
        let table = [("600/min", 600, 60_000), ("5/s", 5, 1_000), ("1 / hour", 1, 3_600_000), ("9/d", 9, 86_400_000)];
        for (text, count, per_ms) in table {
            assert_eq!(Rate::parse(text), Ok(Rate { count, per_ms }), "{text}");
        }
        for text in ["600", "/min", "-1/min", "+1/min", "1.5/min", "99999999999999999999/min"] {
            assert_eq!(Rate::parse(text), Err(RateError::NotRate(text.to_owned())));
        }
        assert_eq!(Rate::parse("0/min"), Err(RateError::Zero("0/min".to_owned())));
        assert_eq!(Rate::parse("6/week"), Err(RateError::UnknownUnit("week".to_owned())));
    }

    #[test]
    fn the_whole_count_is_there_at_once_and_again_after_a_window() {
        let burst = |at| std::iter::repeat_n(at, 700);
        let rate = per_minute(600);
        assert_eq!(admitted(burst(0), rate).len(), 600);
        assert_eq!(admitted(burst(0).chain(burst(MINUTE - 1)), rate).len(), 600);
        assert_eq!(admitted(burst(0).chain(burst(MINUTE)), rate).len(), 1200);
    }

    #[test]
    fn saturated_callers_lose_less_than_a_fiftieth() {
        let rate = per_minute(600);
        let hour = admitted((0..60 * 60 * 30).map(|n| n * SECOND / 30), rate);
        assert!(hour.len() >= 600 * 60 * 98 / 100, "{}", hour.len());
    }

    #[test]
    fn a_window_holds_few_groups_however_much_it_admits() {
        let (mut window, rate) = (Window::default(), per_minute(1_000_000));
        for n in 0..200_000 {
            window.take(n * SECOND / 1000, 1, rate);
            window.forget(n * SECOND / 1000, rate);
            assert!(window.groups.len() <= 66, "{}", window.groups.len());
        }
    }

    #[test]
    fn a_refusal_says_when_to_come_back_and_that_is_true() {
        let (mut window, rate) = (Window::default(), per_minute(10));
        window.take(0, 4, rate);
        window.take(20 * SECOND, 6, rate);
        let now = 30 * SECOND;
        assert_eq!(window.check(now, 3, rate), Err(Duration::from_secs(30)));
        assert_eq!(window.check(now, 5, rate), Err(Duration::from_secs(50)));
        assert_eq!(window.check(60 * SECOND, 3, rate), Ok(()));
        assert_eq!(window.quota(60 * SECOND, rate), Quota { limit: 10, remaining: 4, reset: Duration::from_secs(20) });
    }

    #[test]
    fn more_tokens_than_the_count_pass_alone() {
        let (mut window, rate) = (Window::default(), per_minute(100));
        window.take(0, 1, rate);
        assert_eq!(window.check(SECOND, 500, rate), Err(Duration::from_secs(59)));
        assert_eq!(window.check(MINUTE, 500, rate), Ok(()));
        window.take(MINUTE, 500, rate);
        assert_eq!(window.check(MINUTE + 1, 1, rate), Err(Duration::from_nanos(MINUTE - 1)));
    }

    #[test]
    fn a_correction_gives_back_what_was_not_used_and_only_once() {
        let limit = Limit { tokens: Some(per_minute(1000)), ..each_key("tokens") };
        let (limiter, limits) = (Limiter::new(), limits([limit]));
        let mut first = limiter.admit(&limits, &of_key("web"), Tokens(900), 0).expect("fits");
        let refused = limiter.admit(&limits, &of_key("web"), Tokens(200), SECOND).expect_err("900 + 200 > 1000");
        assert_eq!((refused.what, refused.retry_after), (Counted::Tokens, Duration::from_secs(59)));

        first.correct(Tokens(100));
        first.correct(Tokens(100));

        let second = limiter.admit(&limits, &of_key("web"), Tokens(200), SECOND).expect("100 + 200 fit");
        assert_eq!(second.standing.tokens.map(|quota| quota.remaining), Some(700));
    }

    #[test]
    fn a_correction_after_the_window_changes_nothing() {
        let (mut window, rate) = (Window::default(), per_minute(1000));
        let mut booking = window.take(0, 900, rate);
        window.take(2 * MINUTE, 50, rate);
        window.forget(2 * MINUTE, rate);
        window.correct(&mut booking, 5000);
        assert_eq!(window.quota(2 * MINUTE, rate).remaining, 950);
    }

    #[test]
    fn concurrent_calls_are_counted_until_their_admission_is_dropped() {
        let limits = limits([Limit { concurrent: Some(2), ..each_key("calls") }]);
        let limiter = Limiter::new();
        let admit = |key| limiter.admit(&limits, &of_key(key), Tokens::ZERO, 0);
        let (first, _second) = (admit("web").expect("one"), admit("web").expect("two"));
        let refused = admit("web").expect_err("two are in flight");
        assert_eq!(
            (refused.what, refused.retry_after, refused.quota),
            (Counted::Concurrent, CONCURRENT_RETRY_AFTER, None)
        );
        assert!(admit("app").is_ok(), "another key has its own count");
        drop(first);
        assert!(admit("web").is_ok());
    }

    #[test]
    fn a_second_limit_that_refuses_leaves_the_first_untouched() {
        let roomy = Limit {
            requests: Some(per_minute(10)),
            tokens: Some(per_minute(100)),
            concurrent: Some(1),
            ..each_key("roomy")
        };
        let narrow = Limit { requests: Some(per_minute(1)), ..each_key("narrow") };
        let (limiter, both) = (Limiter::new(), limits([roomy.clone(), narrow]));
        limiter.admit(&both, &of_key("web"), Tokens(10), 0).map(drop).expect("the first call");
        for _ in 0..50 {
            let refused = limiter.admit(&both, &of_key("web"), Tokens(10), 1).expect_err("narrow admits one");
            assert_eq!((&*refused.limit, refused.what), ("narrow", Counted::Requests));
        }
        let only_roomy =
            limiter.admit(&limits([roomy]), &of_key("web"), Tokens(10), 2).expect("nothing else was taken");
        assert_eq!(only_roomy.standing.requests.map(|quota| quota.remaining), Some(8));
        assert_eq!(only_roomy.standing.tokens.map(|quota| quota.remaining), Some(80));
    }

    #[test]
    fn what_is_given_back_can_be_taken_again() {
        let limits = limits([Limit { requests: Some(per_minute(1)), concurrent: Some(1), ..each_key("one") }]);
        let limiter = Limiter::new();
        for now in 0..5 {
            limiter.admit(&limits, &of_key("web"), Tokens::ZERO, now).expect("given back").give_back();
        }
    }

    #[test]
    fn headers_tell_the_tightest_limit() {
        let wide = Limit { requests: Some(per_minute(600)), ..each_key("wide") };
        let tight = Limit { requests: Some(Rate { count: 5, per_ms: 1000 }), ..each_key("tight") };
        let admission = Limiter::new().admit(&limits([wide, tight]), &of_key("web"), Tokens::ZERO, 0).expect("fits");
        let expected = Quota { limit: 5, remaining: 4, reset: Duration::from_secs(1) };
        assert_eq!(admission.standing, Standing { requests: Some(expected), tokens: None });
    }

    #[test]
    fn a_limit_that_does_not_cover_the_call_counts_nothing() {
        let scope = Scope { team: Some(Match::Each), ..Scope::default() };
        let limits = limits([Limit { scope, concurrent: Some(0), ..each_key("team") }]);
        let limiter = Limiter::new();
        assert!(limiter.admit(&limits, &of_key("web"), Tokens::ZERO, 0).is_ok());
        assert_eq!(limiter.accounts(), 0);
    }

    #[test]
    fn idle_accounts_are_dropped_and_held_ones_stay() {
        let limits = limits([Limit { requests: Some(per_minute(1)), concurrent: Some(1), ..each_key("each") }]);
        let limiter = Limiter::new();
        let held = limiter.admit(&limits, &of_key("held"), Tokens::ZERO, 0).expect("the first");
        for n in 0..100_000u64 {
            let at = n * MINUTE / 1000;
            limiter.admit(&limits, &of_key(&format!("user-{n}")), Tokens::ZERO, at).map(drop).expect("its only call");
        }
        assert!(limiter.accounts() <= SHARDS * SHARD_ACCOUNTS_SWEPT * 2, "{}", limiter.accounts());
        let much_later = 200 * MINUTE;
        assert!(limiter.admit(&limits, &of_key("held"), Tokens::ZERO, much_later).is_err(), "still in flight");
        drop(held);
        assert!(limiter.admit(&limits, &of_key("held"), Tokens::ZERO, much_later).is_ok());
    }

    #[test]
    fn invented_accounts_are_bounded() {
        let mut shard = Shard::default();
        for n in 0..3 * SHARD_ACCOUNTS_MAX {
            let cell = shard.cell(Account { limit: "each".into(), account: n.to_string() }, 0, false);
            lock(&cell).keep_for(0, Some(per_minute(1)));
            assert!(shard.accounts.len() <= SHARD_ACCOUNTS_MAX);
        }
    }

    #[test]
    fn threads_never_admit_more_than_the_count_together() {
        let limits = limits([Limit { requests: Some(per_minute(1000)), ..each_key("each") }]);
        let limiter = Limiter::new();
        let calls = |start: u64| {
            (0..1000).filter(|n| limiter.admit(&limits, &of_key("web"), Tokens::ZERO, start + n * 100).is_ok()).count()
        };
        let total: usize = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..4).map(|start| scope.spawn(move || calls(start))).collect();
            threads.into_iter().map(|thread| thread.join().expect("no panic")).sum()
        });
        assert_eq!(total, 1000);
    }

    proptest! {
        #[test]
        fn no_window_ever_admits_more_than_the_count(
            gaps_ms in prop::collection::vec(prop_oneof![4 => 0u64..50, 4 => 0u64..2_000, 1 => 0u64..90_000], 1..600),
            count in 1u64..200,
        ) {
            let mut at = 0;
            let arrivals = gaps_ms.into_iter().map(|gap| { at += gap * 1_000_000; at });
            let admitted = admitted(arrivals, per_minute(count));
            let most = most_in_any_window(&admitted, per_minute(count));
            prop_assert!(most as u64 <= count, "{} of {}", most, count);
        }

        #[test]
        fn whoever_waits_as_told_is_admitted(
            costs in prop::collection::vec((1u64..40, 0u64..20_000), 1..200),
        ) {
            let (mut window, rate, mut now) = (Window::default(), per_minute(100), 0);
            for (cost, gap_ms) in costs {
                now += gap_ms * 1_000_000;
                if let Err(wait) = window.check(now, cost, rate) {
                    prop_assert!(wait > Duration::ZERO);
                    now += wait.as_nanos() as u64;
                    prop_assert_eq!(window.check(now, cost, rate), Ok(()));
                }
                window.take(now, cost, rate);
            }
        }

        #[test]
        fn used_is_the_sum_of_the_groups(
            steps in prop::collection::vec((0u64..5_000, 1u64..50, prop::option::of(0u64..100)), 1..200),
        ) {
            let (mut window, rate, mut now) = (Window::default(), per_minute(100), 0);
            let mut bookings = Vec::new();
            for (gap_ms, cost, correction) in steps {
                now += gap_ms * 1_000_000;
                if window.check(now, cost, rate).is_ok() {
                    bookings.push(window.take(now, cost, rate));
                }
                if let (Some(actual), Some(mut booking)) = (correction, bookings.pop()) {
                    window.correct(&mut booking, actual);
                }
                prop_assert_eq!(window.used, window.groups.iter().map(|group| group.cost).sum::<u64>());
            }
        }
    }
}
