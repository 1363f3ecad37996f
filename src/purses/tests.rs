//! The facade as calls use it, over the embedded store and over one in memory that can fail.

use std::collections::BTreeMap;

use futures_util::future::join_all;
use proptest::{prelude::*, test_runner::TestRunner};

use super::*;
use crate::{
    ledger::{
        account::{self, AccountState, Server},
        sync::{RowId, SyncReply},
    },
    store::ports::{AccountSync, Answer, Held},
};

const SECOND: Duration = Duration::from_secs(1);
/// Long enough that no test depends on it.
const PATIENCE: Duration = Duration::from_secs(20);

/// An authority in memory: the pure function, and switches for what can go wrong.
#[derive(Default)]
struct Memory {
    accounts: Mutex<BTreeMap<Arc<str>, Option<AccountState>>>,
    away: AtomicBool,
    hanging: AtomicBool,
    panics: AtomicBool,
    stingy: AtomicBool,
    /// The accounts of this budget are on a part of it that is away.
    cut: Mutex<Option<&'static str>>,
    flights: AtomicUsize,
    /// How often an answer lets others go first.
    yields: AtomicUsize,
}

impl Memory {
    fn account(&self, key: &str) -> AccountState {
        self.accounts.lock().unwrap()[key].clone().unwrap()
    }

    async fn answer(&self) -> Result<(), StoreError> {
        self.flights.fetch_add(1, Ordering::SeqCst);
        for _ in 0..self.yields.load(Ordering::SeqCst) {
            tokio::task::yield_now().await;
        }
        if self.hanging.load(Ordering::SeqCst) {
            std::future::pending::<()>().await;
        }
        assert!(!self.panics.swap(false, Ordering::SeqCst), "asked to panic");
        let away = self.away.load(Ordering::SeqCst);
        if away { Err(StoreError::Unavailable("switched off".to_owned())) } else { Ok(()) }
    }
}

impl Authority for Memory {
    fn sync(&self, requests: Vec<AccountSync>) -> Answer<'_, Vec<Result<SyncReply, StoreError>>> {
        Box::pin(async move {
            self.answer().await?;
            let server = Server { now_ms: now_ms(), run: "memory", learn_ms: 0, wiped: false };
            let mut accounts = self.accounts.lock().unwrap();
            let each = requests.iter().map(|sync| {
                if self.cut.lock().unwrap().is_some_and(|budget| sync.account.starts_with(budget)) {
                    return Err(StoreError::Unavailable("switched off".to_owned()));
                }
                let mut request = sync.request;
                if self.stingy.load(Ordering::SeqCst) {
                    (request.need, request.target) = (0, 0);
                }
                Ok(account::sync(accounts.entry(Arc::clone(&sync.account)).or_default(), &request, server))
            });
            Ok(each.collect())
        })
    }

    fn is_whole(&self) -> bool {
        self.cut.lock().unwrap().is_none()
    }

    fn accounts(&self, _: Option<Arc<str>>, _: usize) -> Answer<'_, Vec<StoredAccount>> {
        Box::pin(async move { self.answer().await.map(|()| Vec::new()) })
    }

    fn look_up(&self, account: Arc<str>) -> Answer<'_, Held> {
        let found = self.accounts.lock().unwrap().get(&account).cloned().flatten();
        Box::pin(async { Ok(found.map_or(Held::Missing, |state| Held::Whole(state, BTreeMap::new()))) })
    }

    fn note(&self, _: Arc<str>, _: RowId, _: String) -> Answer<'_, ()> {
        Box::pin(async { Ok(()) })
    }

    fn replace(&self, account: Arc<str>, _: BTreeMap<String, String>, state: AccountState) -> Answer<'_, bool> {
        self.accounts.lock().unwrap().insert(account, Some(state));
        Box::pin(async { Ok(true) })
    }
}

fn over(memory: &Arc<Memory>, sync: Duration, budget_wait: Duration) -> (tempfile::TempDir, Arc<Purses>) {
    let temp = tempfile::tempdir().unwrap();
    let purses = over_in(&temp, memory, sync, budget_wait);
    (temp, purses)
}

fn over_in(temp: &tempfile::TempDir, memory: &Arc<Memory>, sync: Duration, budget_wait: Duration) -> Arc<Purses> {
    let dir = Arc::new(DataDir::open(temp.path()).unwrap());
    let authority: Arc<dyn Authority> = Arc::clone(memory) as _;
    Purses::over(authority, dir, sync, budget_wait).unwrap()
}

fn embedded() -> (tempfile::TempDir, Arc<Purses>) {
    let temp = tempfile::tempdir().unwrap();
    let purses = Purses::open(temp.path(), SECOND, PATIENCE).unwrap();
    (temp, purses)
}

fn claim(name: &str, limit: u64) -> Claim {
    Claim {
        budget: name.into(),
        account: format!("{name}/all/total"),
        limit: NanoUsd(limit),
        resets_at: None,
        enforce: true,
        open_on_loss: false,
    }
}

fn refused(budget: &str) -> Refused {
    Refused::Exhausted { budget: budget.into(), resets_at: None }
}

#[track_caller]
fn reserved(purses: &Purses) -> u64 {
    purses.accounts().iter().map(|account| account.reserved.0).sum()
}

/// What a killed process leaves: its files as they are now.
fn as_killed(data_dir: &tempfile::TempDir) -> tempfile::TempDir {
    let killed = tempfile::tempdir().unwrap();
    for entry in std::fs::read_dir(data_dir.path()).unwrap() {
        let path = entry.unwrap().path();
        std::fs::copy(&path, killed.path().join(path.file_name().unwrap())).unwrap();
    }
    killed
}

/// Lets background work run until `done`; fails the test when it never is.
async fn until(what: &str, done: impl Fn() -> bool) {
    let started = Instant::now();
    while !done() {
        assert!(started.elapsed() < PATIENCE, "never: {what}");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_budget_for_a_hundred_calls_admits_exactly_a_hundred_of_five_hundred() {
    let (_temp, purses) = embedded();
    let price = NanoUsd(10_000_000);
    let calls = (0..500).map(|_| {
        let purses = Arc::clone(&purses);
        tokio::spawn(async move {
            let reserved = purses.reserve(&[claim("usd", 1_000_000_000)], price).await;
            tokio::task::yield_now().await;
            reserved.map(|reservation| reservation.settle(price))
        })
    });
    let results: Vec<_> = join_all(calls).await.into_iter().map(Result::unwrap).collect();
    assert_eq!(results.iter().filter(|result| result.is_ok()).count(), 100);
    assert_eq!(results.iter().filter(|result| **result == Err(refused("usd"))).count(), 400);
    assert_eq!(purses.accounts()[0].charged, NanoUsd::USD);
    assert_eq!(purses.dropped_reservations(), 0);
    purses.close().await;
}

#[tokio::test]
async fn all_accounts_are_reserved_or_none() {
    let (_temp, purses) = embedded();
    let claims = [claim("a", 1000), claim("b", 10)];
    assert_eq!(purses.reserve(&claims, NanoUsd(11)).await.unwrap_err(), refused("b"));
    assert_eq!(reserved(&purses), 0);
    let held = purses.reserve(&claims, NanoUsd(10)).await.unwrap();
    assert_eq!(reserved(&purses), 20);
    assert_eq!(purses.reserve(&claims, NanoUsd(1)).await.unwrap_err(), refused("b"));
    held.settle(NanoUsd(4));
    purses.reserve(&claims, NanoUsd(6)).await.unwrap().settle(NanoUsd(6));
    purses.close().await;
    let spent: Vec<_> =
        purses.stored().await.unwrap().iter().map(|a| (a.account.to_string(), a.held, a.charged)).collect();
    assert_eq!(spent, [("a/all/total".into(), 10, 10), ("b/all/total".into(), 10, 10)]);
}

#[tokio::test]
async fn what_is_at_hand_is_reserved_at_once_in_all_accounts_or_in_none() {
    let (_temp, purses) = embedded();
    let claims = [claim("a", 1000), claim("b", 10)];
    assert!(purses.try_reserve(&claims, NanoUsd(1)).is_none(), "nothing was granted yet");
    purses.reserve(&claims, NanoUsd(10)).await.unwrap().settle(NanoUsd(4));

    let held = purses.try_reserve(&claims, NanoUsd(6)).expect("what was settled lower is at hand");
    assert_eq!(reserved(&purses), 12);
    assert!(purses.try_reserve(&claims, NanoUsd(1)).is_none(), "`b` is spent");
    assert_eq!(reserved(&purses), 12);
    held.settle(NanoUsd(6));
    purses.close().await;
    assert!(purses.try_reserve(&claims[..1], NanoUsd(1)).is_none(), "closed");
}

#[tokio::test]
async fn money_that_settles_lower_can_be_used_to_the_last() {
    let (_temp, purses) = embedded();
    let claims = [claim("a", 1000)];
    let mut spent = 0;
    while let Ok(reservation) = purses.reserve(&claims, NanoUsd(10)).await {
        reservation.settle(NanoUsd(3));
        spent += 3;
    }
    assert!(spent >= 990, "{spent}");
    assert_eq!(purses.most(&claims, NanoUsd(500), purses.deadline()).await, NanoUsd(1000 - spent));
    purses.close().await;
}

#[tokio::test]
async fn what_is_idle_goes_back_and_the_journal_goes_when_all_is_settled() {
    let (temp, purses) = embedded();
    let claims = [claim("a", 1_000_000)];
    for _ in 0..50 {
        purses.reserve(&claims, NanoUsd(1000)).await.unwrap().settle(NanoUsd(7));
    }
    purses.close().await;
    let stored = &purses.stored().await.unwrap()[0];
    assert_eq!((stored.held, stored.charged, stored.debt), (350, 350, 0));
    let journals = std::fs::read_dir(temp.path())
        .unwrap()
        .filter(|entry| entry.as_ref().unwrap().file_name().to_string_lossy().starts_with("journal"));
    assert_eq!(journals.count(), 0);
    assert!(matches!(purses.reserve(&claims, NanoUsd(1)).await, Err(Refused::StoreUnavailable { .. })));
}

#[tokio::test]
async fn a_call_that_outlives_its_purses_is_settled_by_the_next_start() {
    let memory = Arc::new(Memory::default());
    let (temp, purses) = over(&memory, SECOND, PATIENCE);
    let open = purses.reserve(&[claim("a", 100)], NanoUsd(60)).await.unwrap();
    purses.close().await;
    assert_eq!(memory.account("a/all/total").held(), 60, "the open reservation, and nothing idle");
    open.settle(NanoUsd(40));
    drop(purses);

    over_in(&temp, &memory, SECOND, PATIENCE).close().await;
    let account = memory.account("a/all/total");
    assert_eq!((account.held(), account.charged()), (40, 40));
}

#[tokio::test]
async fn idle_money_goes_back_while_nobody_asks_for_it() {
    let memory = Arc::new(Memory::default());
    let (_temp, purses) = over(&memory, Duration::from_millis(2), PATIENCE);
    for _ in 0..20 {
        purses.reserve(&[claim("a", 1_000_000)], NanoUsd(1000)).await.unwrap().settle(NanoUsd(1));
    }
    until("all but what was spent is back", || memory.account("a/all/total").held() == 20).await;
    assert_eq!(purses.accounts().len(), 1, "and the account is still in memory");
    purses.close().await;
}

#[tokio::test]
async fn a_process_that_is_short_gets_what_another_holds_idle() {
    let memory = Arc::new(Memory::default());
    let (_temp, rich) = over(&memory, Duration::from_millis(20), PATIENCE);
    let (_temp, poor) = over(&memory, Duration::from_millis(20), PATIENCE);
    let held = rich.reserve(&[claim("a", 1000)], NanoUsd(1000)).await.unwrap();
    let claims = [claim("a", 1000)];
    let mut short = Box::pin(poor.reserve(&claims, NanoUsd(900)));
    assert!(futures_util::poll!(&mut short).is_pending());
    until("it is known to be short", || memory.account("a/all/total").starving.is_some()).await;
    held.settle(NanoUsd(100));
    short.await.unwrap().settle(NanoUsd(900));
    poor.close().await;
    rich.close().await;
    assert_eq!(memory.account("a/all/total").charged(), 1000);
}

#[tokio::test]
async fn after_a_kill_settled_calls_count_what_they_cost_and_open_ones_their_bound() {
    let (temp, purses) = embedded();
    let claims = [claim("a", 10_000)];
    purses.reserve(&claims, NanoUsd(1000)).await.unwrap().settle(NanoUsd(10));
    let open = purses.reserve(&claims, NanoUsd(1000)).await.unwrap();

    let killed = as_killed(&temp);
    for start in 0..3 {
        let next = Purses::open(killed.path(), SECOND, PATIENCE).unwrap();
        assert_eq!(next.most(&claims, NanoUsd(10_000), next.deadline()).await, NanoUsd(8990), "start {start}");
        next.close().await;
        let stored = &next.stored().await.unwrap()[0];
        assert_eq!((stored.held, stored.charged), (1010, 1010), "start {start}");
        drop(next);
    }
    open.settle(NanoUsd(1000));
    purses.close().await;
}

#[tokio::test]
async fn a_damaged_journal_counts_all_that_was_granted_as_spent() {
    let (temp, purses) = embedded();
    let claims = [claim("a", 10_000)];
    purses.reserve(&claims, NanoUsd(1000)).await.unwrap().settle(NanoUsd(10));
    let killed = as_killed(&temp);
    let files = std::fs::read_dir(killed.path()).unwrap().map(|entry| entry.unwrap().path());
    let journal = files.into_iter().find(|path| path.extension().is_some_and(|end| end == "log")).unwrap();
    let mut bytes = std::fs::read(&journal).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    std::fs::write(&journal, bytes).unwrap();

    let next = Purses::open(killed.path(), SECOND, PATIENCE).unwrap();
    assert_eq!(next.most(&claims, NanoUsd(10_000), next.deadline()).await, NanoUsd(9000));
    next.close().await;
    let stored = &next.stored().await.unwrap()[0];
    assert_eq!((stored.held, stored.charged), (1000, 1000));
    purses.close().await;
}

#[tokio::test]
async fn an_account_that_the_store_lost_is_restored_with_what_was_spent() {
    let memory = Arc::new(Memory::default());
    let (_temp, purses) = over(&memory, Duration::from_millis(5), PATIENCE);
    let claims = [claim("a", 100)];
    purses.reserve(&claims, NanoUsd(60)).await.unwrap().settle(NanoUsd(60));
    memory.accounts.lock().unwrap().clear();
    assert_eq!(purses.reserve(&claims, NanoUsd(50)).await.unwrap_err(), refused("a"));
    assert_eq!(memory.account("a/all/total").charged(), 60);
    purses.close().await;
}

#[tokio::test]
async fn what_cannot_be_written_down_is_refused_where_the_budget_is_strict() {
    let (_temp, purses) = embedded();
    let strict = Claim { account: "x".repeat(journal::KEY_BYTES_MAX + 1), ..claim("a", 100) };
    let refusal = purses.reserve(std::slice::from_ref(&strict), NanoUsd(1)).await.unwrap_err();
    assert!(matches!(refusal, Refused::StoreUnavailable { .. }), "{refusal:?}");
    let lenient = Claim { enforce: false, ..strict };
    purses.reserve(&[lenient], NanoUsd(1)).await.unwrap().settle(NanoUsd(1));
    assert_eq!(purses.unbooked_calls(), 1);
    purses.close().await;
}

#[tokio::test]
async fn a_reservation_that_is_dropped_is_charged_its_bound_and_counted() {
    let (_temp, purses) = embedded();
    drop(purses.reserve(&[claim("a", 100)], NanoUsd(40)).await.unwrap());
    assert_eq!(purses.dropped_reservations(), 1);
    assert_eq!(purses.accounts()[0].charged, NanoUsd(40));
    purses.close().await;
}

#[tokio::test]
async fn a_cost_above_the_bound_is_debt_and_leaves_less_for_others() {
    let (_temp, purses) = embedded();
    let claims = [claim("a", 100)];
    purses.reserve(&claims, NanoUsd(10)).await.unwrap().settle(NanoUsd(70));
    let account = &purses.accounts()[0];
    assert_eq!((account.charged, account.debt), (NanoUsd(10), NanoUsd(60)));
    assert!(purses.most(&claims, NanoUsd(100), purses.deadline()).await <= NanoUsd(30));
    purses.close().await;
}

#[tokio::test]
async fn a_changed_limit_takes_effect_with_the_next_claim_and_zeroes_nothing() {
    let (_temp, purses) = embedded();
    purses.reserve(&[claim("a", 100)], NanoUsd(80)).await.unwrap().settle(NanoUsd(80));
    assert_eq!(purses.reserve(&[claim("a", 100)], NanoUsd(50)).await.unwrap_err(), refused("a"));
    purses.reserve(&[claim("a", 130)], NanoUsd(50)).await.unwrap().settle(NanoUsd(50));
    assert_eq!(purses.reserve(&[claim("a", 90)], NanoUsd(1)).await.unwrap_err(), refused("a"));
    assert_eq!(purses.accounts()[0].charged, NanoUsd(130));
    purses.close().await;
}

#[tokio::test]
async fn a_new_process_brings_its_limit_even_if_clocks_were_set_back() {
    let memory = Arc::new(Memory::default());
    let (_temp, before) = over(&memory, SECOND, PATIENCE);
    before.reserve(&[claim("a", 100)], NanoUsd(100)).await.unwrap().settle(NanoUsd(100));
    before.close().await;
    memory.accounts.lock().unwrap().values_mut().flatten().for_each(|account| account.limit_version = u64::MAX / 2);

    let (_temp, after) = over(&memory, SECOND, PATIENCE);
    after.reserve(&[claim("a", 150)], NanoUsd(50)).await.unwrap().settle(NanoUsd(50));
    assert_eq!(after.reserve(&[claim("a", 150)], NanoUsd(1)).await.unwrap_err(), refused("a"));
    after.close().await;
}

#[tokio::test]
async fn a_budget_that_warns_never_refuses_and_shows_the_excess_as_debt() {
    let (_temp, purses) = embedded();
    let claims = [Claim { enforce: false, ..claim("a", 100) }];
    for _ in 0..5 {
        purses.reserve(&claims, NanoUsd(40)).await.unwrap().settle(NanoUsd(30));
    }
    let account = &purses.accounts()[0];
    assert_eq!(account.charged.0 + account.debt.0, 150);
    assert!(account.debt.0 >= 50 && account.charged.0 <= 100, "{account:?}");
    purses.close().await;
}

#[tokio::test]
async fn money_that_was_not_brought_in_time_is_no_budget_that_is_spent() {
    let memory = Arc::new(Memory::default());
    memory.stingy.store(true, Ordering::SeqCst);
    let (_temp, purses) = over(&memory, Duration::from_millis(5), Duration::from_millis(100));
    let refused = purses.reserve(&[claim("a", 100)], NanoUsd(10)).await.unwrap_err();
    assert!(matches!(refused, Refused::StoreUnavailable { .. }), "the store answers, and has all of it: {refused:?}");
    memory.stingy.store(false, Ordering::SeqCst);
    purses.reserve(&[claim("a", 100)], NanoUsd(100)).await.unwrap().settle(NanoUsd(100));
    assert_eq!(purses.reserve(&[claim("a", 100)], NanoUsd(1)).await.unwrap_err(), self::refused("a"));
}

#[tokio::test]
async fn purses_go_on_without_the_store_and_empty_ones_refuse_or_borrow() {
    let memory = Arc::new(Memory::default());
    let (_temp, purses) = over(&memory, Duration::from_millis(20), PATIENCE);
    let (closed, open) = ([claim("closed", 1000)], [Claim { open_on_loss: true, ..claim("open", 1000) }]);
    let left = purses.reserve(&closed, NanoUsd(600)).await.unwrap();
    purses.reserve(&open, NanoUsd(10)).await.unwrap().settle(NanoUsd(10));
    memory.away.store(true, Ordering::SeqCst);
    until("the store counts as away", || !purses.store_up()).await;

    left.settle(NanoUsd(100));
    purses.reserve(&closed, NanoUsd(300)).await.unwrap().settle(NanoUsd(300));
    let refused = purses.reserve(&closed, NanoUsd(900)).await.unwrap_err();
    assert!(matches!(refused, Refused::StoreUnavailable { .. }), "{refused:?}");
    let purse = purses.accounts().iter().find(|a| &*a.budget == "open").unwrap().granted.0 - 10;
    purses.reserve(&open, NanoUsd(purse + 100)).await.unwrap().settle(NanoUsd(purse + 100));
    let refused = purses.reserve(&open, NanoUsd(1)).await.unwrap_err();
    assert!(matches!(refused, Refused::StoreUnavailable { .. }), "the allowance is used up: {refused:?}");

    memory.away.store(false, Ordering::SeqCst);
    until("the store is back", || purses.store_up()).await;
    purses.reserve(&closed, NanoUsd(600)).await.unwrap().settle(NanoUsd(0));
    purses.close().await;
    assert_eq!(memory.account("open/all/total").debt(), 100);
    assert_eq!(memory.account("closed/all/total").held(), 400);
}

#[tokio::test]
async fn where_a_part_of_the_store_is_away_its_accounts_keep_what_they_hold_and_others_go_on() {
    let memory = Arc::new(Memory::default());
    let (_temp, purses) = over(&memory, Duration::from_millis(5), PATIENCE);
    let (cut, well) = ([claim("cut", 10_000)], [claim("well", 1000)]);
    let some_flights = async || {
        let before = memory.flights.load(Ordering::SeqCst);
        until("reports go out", || memory.flights.load(Ordering::SeqCst) >= before + 3).await;
    };
    let held = purses.reserve(&cut, NanoUsd(600)).await.unwrap();
    *memory.cut.lock().unwrap() = Some("cut");
    some_flights().await;

    held.settle(NanoUsd(100));
    some_flights().await;
    let idle = purses.accounts()[0].granted.0 - 100;
    assert!(idle >= 500, "nothing goes back that would get nowhere: {idle}");
    purses.reserve(&cut, NanoUsd(idle)).await.unwrap().settle(NanoUsd(idle));
    let refused = purses.reserve(&cut, NanoUsd(1)).await.unwrap_err();
    assert!(matches!(refused, Refused::StoreUnavailable { .. }), "{refused:?}");
    for _ in 0..10 {
        purses.reserve(&well, NanoUsd(100)).await.unwrap().settle(NanoUsd(100));
    }
    assert_eq!(purses.reserve(&well, NanoUsd(1)).await.unwrap_err(), self::refused("well"));
    assert!(!purses.store_up(), "it is told");

    *memory.cut.lock().unwrap() = None;
    purses.reserve(&cut, NanoUsd(100)).await.unwrap().settle(NanoUsd(100));
    purses.close().await;
    assert_eq!(memory.account("cut/all/total").charged(), 200 + idle);
}

#[tokio::test]
async fn a_hanging_store_costs_a_call_its_budget_wait_and_nothing_is_held() {
    let memory = Arc::new(Memory::default());
    let (_temp, purses) = over(&memory, SECOND, Duration::from_millis(50));
    memory.hanging.store(true, Ordering::SeqCst);
    let started = Instant::now();
    let refused = purses.reserve(&[claim("a", 100)], NanoUsd(10)).await.unwrap_err();
    assert!(matches!(refused, Refused::StoreUnavailable { .. }), "{refused:?}");
    assert!(started.elapsed() < Duration::from_millis(900), "{:?}", started.elapsed());
    assert_eq!(reserved(&purses), 0);
}

#[tokio::test]
async fn a_panic_in_the_background_costs_those_who_wait_and_nobody_else() {
    let memory = Arc::new(Memory::default());
    let (_temp, purses) = over(&memory, Duration::from_millis(5), PATIENCE);
    memory.panics.store(true, Ordering::SeqCst);
    let refusal = purses.reserve(&[claim("a", 100)], NanoUsd(10)).await.unwrap_err();
    assert!(matches!(refusal, Refused::StoreUnavailable { .. }), "{refusal:?}");
    purses.reserve(&[claim("a", 100)], NanoUsd(10)).await.unwrap().settle(NanoUsd(10));
    purses.close().await;
    assert_eq!(memory.account("a/all/total").charged(), 10);
}

#[tokio::test]
async fn a_call_that_is_dropped_while_it_waits_holds_nothing() {
    let memory = Arc::new(Memory::default());
    let (_temp, purses) = over(&memory, SECOND, PATIENCE);
    let (a, b) = (claim("a", 100), claim("b", 100));
    purses.reserve(std::slice::from_ref(&a), NanoUsd(100)).await.unwrap().settle(NanoUsd::ZERO);
    memory.hanging.store(true, Ordering::SeqCst);
    let flights = memory.flights.load(Ordering::SeqCst);
    let waiting = tokio::spawn({
        let (purses, claims) = (Arc::clone(&purses), [a, b]);
        async move { purses.reserve(&claims, NanoUsd(60)).await.map(drop) }
    });
    until("it asks for the second account", || memory.flights.load(Ordering::SeqCst) > flights).await;
    assert_eq!(reserved(&purses), 60);
    waiting.abort();
    assert!(waiting.await.unwrap_err().is_cancelled());
    assert_eq!(reserved(&purses), 0);
    assert_eq!(purses.dropped_reservations(), 0);
}

/// A call that is dropped after some of its polls, while the background goes on by as many steps between two of them.
#[derive(Debug, Clone)]
struct Dropped {
    accounts: Vec<u32>,
    bound: u64,
    polls: usize,
    steps: usize,
    yields: usize,
    most: bool,
    settle: bool,
}

fn dropped() -> impl Strategy<Value = Dropped> {
    let accounts = prop::collection::vec(0u32..40, 1..5);
    (accounts, 1u64..600, 0usize..40, 1usize..4, 0usize..4, prop::bool::weighted(0.2), any::<bool>()).prop_map(
        |(accounts, bound, polls, steps, yields, most, settle)| Dropped {
            accounts,
            bound,
            polls,
            steps,
            yields,
            most,
            settle,
        },
    )
}

/// Drives it; says whether it came to a reservation.
async fn drive(memory: &Memory, purses: &Purses, call: &Dropped, era: u32) -> bool {
    memory.yields.store(call.yields, Ordering::SeqCst);
    let claims: Vec<Claim> = call.accounts.iter().map(|n| claim(&format!("b{n}-{era}"), 1000)).collect();
    let mut work = Box::pin(async {
        if call.most {
            purses.most(&claims, NanoUsd(call.bound), purses.deadline()).await;
            return None;
        }
        purses.reserve(&claims, NanoUsd(call.bound)).await.ok()
    });
    for _ in 0..call.polls {
        if let std::task::Poll::Ready(reservation) = futures_util::poll!(&mut work) {
            let Some(reservation) = reservation else { return false };
            match call.settle {
                true => reservation.settle(NanoUsd(call.bound / 100)),
                false => drop(reservation),
            }
            return true;
        }
        for _ in 0..call.steps {
            tokio::task::yield_now().await;
        }
    }
    false
}

#[test]
fn a_future_dropped_at_any_await_leaves_no_open_reservation() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let memory = Arc::new(Memory::default());
    let (_temp, (_rich_temp, rich), purses) = runtime.block_on(async {
        let (temp, purses) = over(&memory, Duration::from_millis(2), PATIENCE);
        (temp, over(&memory, Duration::from_millis(2), PATIENCE), purses)
    });
    let (open, reserved_at_all) = (std::cell::Cell::new(0), std::cell::Cell::new(0));
    let cases = std::env::var("TOLLGATE_PROPERTY_CASES").ok().and_then(|cases| cases.parse().ok()).unwrap_or(500);
    let config = ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(cases) };
    let outcome = TestRunner::new(config).run(&(dropped(), any::<bool>()), |(call, elsewhere)| {
        // Money is also in the purse of another process, whose calls are dropped as well.
        let purses = if elsewhere { &rich } else { &purses };
        // New accounts from time to time: what is dropped when it is reserved is spent.
        let era = (open.get() + reserved_at_all.get()) / 300;
        let (before, booked) = (purses.dropped_reservations(), runtime.block_on(drive(&memory, purses, &call, era)));
        reserved_at_all.set(reserved_at_all.get() + u32::from(booked));
        open.set(open.get() + u32::from(!booked && !call.most));
        prop_assert_eq!(reserved(purses), 0);
        let expected = u64::from(booked && !call.settle);
        prop_assert_eq!(
            purses.dropped_reservations() - before,
            expected,
            "only a reservation that was handed out counts"
        );
        Ok(())
    });
    outcome.unwrap();
    assert!(open.get().min(reserved_at_all.get()) > cases / 20, "{} {}", open.get(), reserved_at_all.get());
    runtime.block_on(async {
        purses.close().await;
        rich.close().await;
    });
    for account in memory.accounts.lock().unwrap().values().flatten() {
        assert_eq!((account.held(), account.debt()), (account.charged(), 0));
    }
}

#[tokio::test]
async fn those_who_wait_are_served_in_their_order_by_what_others_settle() {
    let memory = Arc::new(Memory::default());
    let (_temp, purses) = over(&memory, SECOND, PATIENCE);
    let claims = [claim("a", 100)];
    let held = purses.reserve(&claims, NanoUsd(100)).await.unwrap();
    memory.hanging.store(true, Ordering::SeqCst);
    let (mut first, mut second) =
        (Box::pin(purses.reserve(&claims, NanoUsd(70))), Box::pin(purses.reserve(&claims, NanoUsd(20))));
    assert!(futures_util::poll!(&mut first).is_pending());
    assert!(futures_util::poll!(&mut second).is_pending());
    held.settle(NanoUsd(50));
    assert!(futures_util::poll!(&mut second).is_pending(), "50 would do for the second, but the first was first");
    drop(first);
    second.await.unwrap().settle(NanoUsd(20));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn two_processes_share_one_limit_to_the_last() {
    let memory = Arc::new(Memory::default());
    let sync = Duration::from_millis(10);
    let (replicas, _temps): (Vec<_>, Vec<_>) =
        (0..2).map(|_| over(&memory, sync, PATIENCE)).map(|(t, p)| (p, t)).unzip();
    let calls = (0..400).map(|call| {
        let purses = Arc::clone(&replicas[call % 2]);
        tokio::spawn(async move {
            match purses.reserve(&[claim("a", 1000)], NanoUsd(10)).await {
                Ok(reservation) => reservation.settle(NanoUsd(10)),
                Err(refusal) => assert_eq!(refusal, refused("a")),
            }
        })
    });
    for call in join_all(calls).await {
        call.unwrap();
    }
    for purses in &replicas {
        purses.close().await;
    }
    let account = memory.account("a/all/total");
    assert_eq!((account.held(), account.charged(), account.debt()), (1000, 1000, 0));
}

#[tokio::test]
async fn an_unused_purse_leaves_memory_and_is_opened_anew_without_losing_count() {
    let memory = Arc::new(Memory::default());
    let temp = tempfile::tempdir().unwrap();
    let dir = Arc::new(DataDir::open(temp.path()).unwrap());
    let sync = Duration::from_millis(5);
    let pace = Pace { sync, budget_wait: PATIENCE, unused: 4 * sync };
    let purses = Purses::start(Arc::clone(&memory) as _, dir, pace).unwrap();
    let claims = [claim("a", 100)];
    let held = purses.reserve(&claims, NanoUsd(60)).await.unwrap();
    held.settle(NanoUsd(30));
    until("it left memory", || purses.accounts().is_empty()).await;
    assert_eq!(memory.account("a/all/total").held(), 30);
    assert_eq!(purses.reserve(&claims, NanoUsd(71)).await.unwrap_err(), refused("a"));
    purses.reserve(&claims, NanoUsd(70)).await.unwrap().settle(NanoUsd(70));
    purses.close().await;
    assert_eq!(memory.account("a/all/total").charged(), 100);
    assert_eq!(memory.account("a/all/total").rows.len(), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn under_load_the_books_agree_with_what_was_settled() {
    let temp = tempfile::tempdir().unwrap();
    let dir = Arc::new(DataDir::open(temp.path()).unwrap());
    let authority = Arc::new(Embedded::open(Arc::clone(&dir)).unwrap());
    // So short that purses are refilled, emptied, closed and opened anew all the time.
    let sync = Duration::from_millis(1);
    let purses = Purses::start(authority, dir, Pace { sync, budget_wait: PATIENCE, unused: sync }).unwrap();
    let tasks = (0..8u64).map(|task| {
        let purses = Arc::clone(&purses);
        tokio::spawn(async move {
            let (mut all, mut own) = (0, 0);
            for call in 0..300 {
                let claims = [claim("all", 400_000), claim(&format!("own-{}", task % 3), 300_000)];
                let cost = (call * 7919 + task * 104_729) % 400;
                match purses.reserve(&claims, NanoUsd(400)).await {
                    Ok(reservation) if call % 5 == 0 => {
                        tokio::time::sleep(Duration::from_micros(cost)).await;
                        reservation.settle(NanoUsd(cost));
                    }
                    Ok(reservation) => reservation.settle(NanoUsd(cost)),
                    Err(Refused::Exhausted { .. }) => continue,
                    Err(other) => panic!("{other:?}"),
                }
                (all, own) = (all + cost, own + cost);
            }
            (task % 3, all, own)
        })
    });
    let mut expected: BTreeMap<String, u64> = BTreeMap::new();
    for task in join_all(tasks).await {
        let (number, all, own) = task.unwrap();
        *expected.entry("all/all/total".to_owned()).or_default() += all;
        *expected.entry(format!("own-{number}/all/total")).or_default() += own;
    }
    purses.close().await;
    let stored = purses.stored().await.unwrap();
    assert!(stored.iter().all(|account| account.held == account.charged && account.debt == 0), "{stored:?}");
    let charged: BTreeMap<_, _> = stored.iter().map(|a| (a.account.to_string(), a.charged)).collect();
    assert_eq!(charged, expected);
    assert!(expected["all/all/total"] > 300_000, "{expected:?}");
}

#[tokio::test]
async fn too_many_accounts_for_one_call_are_refused() {
    let (_temp, purses) = embedded();
    let claims: Vec<Claim> = (0..33).map(|n| claim(&format!("b{n}"), 100)).collect();
    assert_eq!(purses.reserve(&claims, NanoUsd(1)).await.unwrap_err(), Refused::TooManyAccounts);
    purses.reserve(&claims[..32], NanoUsd(1)).await.unwrap().settle(NanoUsd(1));
    purses.close().await;
    assert!(purses.stored().await.unwrap().iter().all(|account| account.held == 1 && account.charged == 1));
}

/// What a process did that will be killed: `d` when a call was dispatched, `s` when it was settled; single writes.
#[cfg(unix)]
mod killed {
    use std::{io::Write as _, path::PathBuf, process::Command};

    use super::*;

    const DIR: &str = "TOLLGATE_TEST_VICTIM";
    const BOUND: u64 = 1000;
    const LIMIT: u64 = 1_000_000_000;

    fn actual(call: u64) -> u64 {
        call * 37 % BOUND
    }

    #[tokio::test]
    #[ignore = "the process that `each_attempt_counts_once_after_kill_9` kills"]
    async fn victim() {
        let Some(dir) = std::env::var_os(DIR).map(PathBuf::from) else { return };
        let purses = Purses::open(&dir.join("data"), Duration::from_millis(3), PATIENCE).unwrap();
        let mut log = std::fs::File::options().create(true).append(true).open(dir.join("log")).unwrap();
        for call in 0.. {
            let reservation = purses.reserve(&[claim("a", LIMIT)], NanoUsd(BOUND)).await.unwrap();
            log.write_all(format!("d {call}\n").as_bytes()).unwrap();
            reservation.settle(NanoUsd(actual(call)));
            log.write_all(format!("s {call}\n").as_bytes()).unwrap();
        }
    }

    #[tokio::test]
    async fn each_attempt_counts_once_after_kill_9() {
        let temp = tempfile::tempdir().unwrap();
        let mut charged_before = 0;
        for start in 0..6u64 {
            let _none = std::fs::remove_file(temp.path().join("log"));
            let mut victim = Command::new(std::env::current_exe().unwrap())
                .args(["--exact", "purses::tests::killed::victim", "--ignored", "--nocapture"])
                .env(DIR, temp.path())
                .stdout(std::process::Stdio::null())
                .spawn()
                .unwrap();
            let log = || std::fs::read_to_string(temp.path().join("log")).unwrap_or_default();
            until("the victim is at work", || log().lines().count() as u64 > 20 + 150 * start).await;
            victim.kill().unwrap();
            victim.wait().unwrap();

            let log = log();
            let settled: u64 =
                log.lines().filter_map(|line| line.strip_prefix("s ")).map(|n| actual(n.parse().unwrap())).sum();
            let open = log.lines().last().and_then(|line| line.strip_prefix("d "));
            let purses = Purses::open(&temp.path().join("data"), SECOND, PATIENCE).unwrap();
            purses.most(&[claim("a", LIMIT)], NanoUsd(1), purses.deadline()).await;
            purses.close().await;
            let stored = purses.stored().await.unwrap().remove(0);
            let charged = stored.charged - charged_before;
            // The last call may have been settled, or the next one intended, without a line that says so.
            let last = open.map_or(0, |call| actual(call.parse().unwrap()));
            assert!([settled + last, settled + BOUND].contains(&charged), "{charged} of {settled} + {last}");
            assert_eq!((stored.held, stored.debt), (stored.charged, 0), "start {start}");
            charged_before = stored.charged;
        }
    }
}
