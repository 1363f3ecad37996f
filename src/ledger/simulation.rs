//! Processes, an authority and a network that loses, repeats and reorders: money is never spent twice.
//!
//! Purses and account are the real ones; only the messages between them are simulated. What a provider bills is at most the
//! bound, so open attempts count as spent in full here, and those of a crashed process do for ever.

use proptest::prelude::*;

use super::{
    account::{self, AccountState, Server},
    purse::{Purse, Taken},
    sync::{Close, Merged, RowId, SyncReply, SyncRequest, Totals},
};

const REPLICAS: usize = 3;

/// Cases of each property: as many as `TOLLGATE_PROPERTY_CASES` says (`make model`: 10,000), else a few hundred.
fn cases() -> u32 {
    std::env::var("TOLLGATE_PROPERTY_CASES").ok().and_then(|cases| cases.parse().ok()).unwrap_or(300)
}
const LEARN_MS: u64 = 3_000;

#[derive(Debug, Clone, Copy)]
enum Step {
    Send { replica: usize, need: u64, lease: u64 },
    Deliver { message: prop::sample::Index, keep: bool },
    Lose { message: prop::sample::Index },
    Reserve { replica: usize, bound: u64 },
    Borrow { replica: usize, bound: u64 },
    Settle { replica: usize, attempt: prop::sample::Index, percent: u64 },
    HandBack { replica: usize, keep: u64 },
    Crash { replica: usize, journal: bool },
    SetLimit { limit: u64 },
    Failover,
    Wait { ms: u64 },
}

fn step() -> impl Strategy<Value = Step> {
    let replica = 0..REPLICAS;
    let index = any::<prop::sample::Index>;
    prop_oneof![
        6 => (replica.clone(), 0u64..200, 0u64..200).prop_map(|(replica, need, lease)| Step::Send { replica, need, lease }),
        9 => (index(), any::<bool>()).prop_map(|(message, keep)| Step::Deliver { message, keep }),
        1 => index().prop_map(|message| Step::Lose { message }),
        6 => (replica.clone(), 1u64..100).prop_map(|(replica, bound)| Step::Reserve { replica, bound }),
        1 => (replica.clone(), 1u64..100).prop_map(|(replica, bound)| Step::Borrow { replica, bound }),
        5 => (replica.clone(), index(), 0u64..130)
            .prop_map(|(replica, attempt, percent)| Step::Settle { replica, attempt, percent }),
        2 => (replica.clone(), 0u64..50).prop_map(|(replica, keep)| Step::HandBack { replica, keep }),
        1 => (replica, any::<bool>()).prop_map(|(replica, journal)| Step::Crash { replica, journal }),
        1 => (0u64..1500).prop_map(|limit| Step::SetLimit { limit }),
        1 => Just(Step::Failover),
        2 => (0u64..20_000).prop_map(|ms| Step::Wait { ms }),
    ]
}

enum Message {
    Request(SyncRequest),
    Reply(RowId, Merged),
}

struct Replica {
    row: RowId,
    purse: Purse,
    seen: bool,
    open: Vec<(Taken, u64)>,
}

impl Replica {
    fn new(incarnation: u64) -> Replica {
        let row = RowId { incarnation, purse: 0 };
        Replica { row, purse: Purse::default(), seen: false, open: Vec::new() }
    }

    fn open_bounds(&self) -> u64 {
        self.open.iter().map(|(_, bound)| bound).sum()
    }
}

struct World {
    account: Option<AccountState>,
    replicas: Vec<Replica>,
    network: Vec<Message>,
    /// Reports that journals of crashed processes make, and forfeits of those without one.
    leftovers: Vec<SyncRequest>,
    limit: u64,
    limit_version: u64,
    limit_max: u64,
    settled: u64,
    debt_max: u64,
    crashes: u64,
    now_ms: u64,
    run: u64,
}

impl World {
    fn new() -> World {
        World {
            account: None,
            replicas: (0..REPLICAS as u64).map(Replica::new).collect(),
            network: Vec::new(),
            leftovers: Vec::new(),
            limit: 1000,
            limit_version: 1,
            limit_max: 1000,
            settled: 0,
            debt_max: 0,
            crashes: 0,
            now_ms: 1_000_000,
            run: 0,
        }
    }

    fn take(&mut self, step: Step) {
        match step {
            Step::Send { replica, need, lease } => {
                let request = self.request(replica, need, lease, None);
                self.network.push(Message::Request(request));
            }
            Step::Deliver { message, keep } if !self.network.is_empty() => {
                let index = message.index(self.network.len());
                self.deliver(index);
                if !keep {
                    self.network.remove(index);
                }
            }
            Step::Lose { message } if !self.network.is_empty() => {
                self.network.remove(message.index(self.network.len()));
            }
            Step::Deliver { .. } | Step::Lose { .. } => {}
            Step::Reserve { replica, bound } => {
                let replica = &mut self.replicas[replica];
                if let Ok(taken) = replica.purse.take(bound) {
                    replica.open.push((taken, bound));
                }
            }
            Step::Borrow { replica, bound } => {
                let replica = &mut self.replicas[replica];
                if let Ok(taken) = replica.purse.take_on_credit(bound, 60) {
                    self.debt_max += taken.uncovered;
                    replica.open.push((taken, bound));
                }
            }
            Step::Settle { replica, attempt, percent } => self.settle(replica, &attempt, percent),
            Step::HandBack { replica, keep } => self.replicas[replica].purse.hand_back(keep),
            Step::Crash { replica, journal } => self.crash(replica, journal),
            Step::SetLimit { limit } => {
                (self.limit, self.limit_version) = (limit, self.limit_version + 1);
                self.limit_max = self.limit_max.max(limit);
            }
            Step::Failover => self.run += 1,
            Step::Wait { ms } => self.now_ms += ms,
        }
    }

    fn request(&self, replica: usize, need: u64, lease: u64, close: Option<Close>) -> SyncRequest {
        let Replica { row, purse, seen, .. } = &self.replicas[replica];
        let totals = purse.totals();
        let (need, target) = (totals.granted + need, totals.granted + need + lease);
        let (limit, limit_version) = (self.limit, self.limit_version);
        SyncRequest { row: *row, totals, need, target, limit, limit_version, create: !seen, close }
    }

    fn deliver(&mut self, index: usize) {
        match &self.network[index] {
            Message::Request(request) => {
                let (request, row) = (*request, request.row);
                if let Some(merged) = self.authority(&request) {
                    self.network.push(Message::Reply(row, merged));
                }
            }
            Message::Reply(row, merged) => {
                if let Some(replica) = self.replicas.iter_mut().find(|replica| replica.row == *row) {
                    replica.seen = true;
                    replica.purse.merge_granted(merged.totals.granted);
                }
            }
        }
    }

    fn authority(&mut self, request: &SyncRequest) -> Option<Merged> {
        let granted = |account: &Option<AccountState>| {
            account.iter().flat_map(|account| account.rows.values()).map(|row| row.totals.granted).sum::<u64>()
        };
        let before = granted(&self.account);
        let run = self.run.to_string();
        let server = Server { now_ms: self.now_ms, run: &run, learn_ms: LEARN_MS, wiped: false };
        let reply = account::sync(&mut self.account, request, server);
        let SyncReply::Merged(merged) = reply else {
            assert_eq!(reply, SyncReply::NoAccount, "every report here is true");
            return None;
        };
        // A report may tell of a grant that was known; beyond those, grants keep within the limit.
        if granted(&self.account) > before && request.target > request.totals.granted {
            let account = self.account.as_ref().expect("merged");
            assert!(
                account.held() + account.debt() <= account.limit || merged.totals.granted <= request.totals.granted
            );
        }
        Some(merged)
    }

    fn settle(&mut self, replica: usize, attempt: &prop::sample::Index, percent: u64) {
        let replica = &mut self.replicas[replica];
        if replica.open.is_empty() {
            return;
        }
        let (taken, bound) = replica.open.swap_remove(attempt.index(replica.open.len()));
        let actual = bound * percent / 100;
        replica.purse.settle(taken, actual);
        self.settled += actual;
        self.debt_max += actual.saturating_sub(bound);
    }

    /// The process is gone. Its journal knows what was settled and counts the rest at its bound; without one, an operator
    /// may say that all it was granted is spent.
    fn crash(&mut self, index: usize, journal: bool) {
        self.crashes += 1;
        let next = Replica::new(REPLICAS as u64 + self.crashes);
        let gone = std::mem::replace(&mut self.replicas[index], next);
        let Totals { charged, debt, .. } = gone.purse.totals();
        let open = |part: fn(&Taken) -> u64| gone.open.iter().map(|(taken, _)| part(taken)).sum::<u64>();
        self.settled += gone.open_bounds();
        let (charged, debt) = (charged + open(|taken| taken.covered), debt + open(|taken| taken.uncovered));
        let (totals, close) = match journal {
            true => (Totals { granted: charged, returned: 0, charged, debt }, Close::Settled),
            false => (Totals { debt, ..Totals::default() }, Close::Forfeited),
        };
        let (row, limit, limit_version) = (gone.row, self.limit, self.limit_version);
        let close = Some(close);
        let report = SyncRequest { row, totals, need: 0, target: 0, limit, limit_version, create: true, close };
        self.leftovers.push(report);
        self.network.push(Message::Request(report));
    }

    fn true_spend(&self) -> u64 {
        self.settled + self.replicas.iter().map(Replica::open_bounds).sum::<u64>()
    }

    fn check(&self) {
        let spent = self.true_spend();
        assert!(spent <= self.limit_max + self.debt_max, "{spent} of {} + {}", self.limit_max, self.debt_max);
        for replica in &self.replicas {
            let (totals, idle) = (replica.purse.totals(), replica.purse.idle());
            let open: u64 = replica.open.iter().map(|(taken, _)| taken.covered).sum();
            assert!(totals.are_sound(), "{totals:?}");
            assert_eq!(totals.granted, totals.returned + totals.charged + idle + open);
            assert_eq!(replica.purse.holds(), replica.open.len() as u64);
        }
    }

    /// Everything ends and every report arrives: nothing is held, and the books say at least what was billed.
    fn come_to_rest(mut self) {
        self.network.clear();
        for report in std::mem::take(&mut self.leftovers) {
            self.authority(&report);
        }
        for index in 0..REPLICAS {
            while let Some((taken, bound)) = self.replicas[index].open.pop() {
                self.replicas[index].purse.settle(taken, bound);
                self.settled += bound;
            }
            self.replicas[index].purse.retire();
            self.replicas[index].purse.hand_back(0);
            let last = self.request(index, 0, 0, Some(Close::Settled));
            for _ in 0..2 {
                self.authority(&SyncRequest { create: true, ..last });
            }
        }
        self.check();
        let account = self.account.as_ref().expect("reported to");
        assert_eq!(account.held(), account.charged(), "all idle money is back");
        let booked = account.charged() + account.debt();
        assert!(booked >= self.true_spend(), "booked {booked}, billed {}", self.true_spend());
        if self.crashes == 0 {
            assert_eq!(booked, self.true_spend());
        }
    }
}

/// The money that nobody spent and no open attempt holds, wherever it is.
fn idle_money(account: &AccountState, replicas: &[Replica]) -> u64 {
    account.free() + replicas.iter().map(|replica| replica.purse.idle()).sum::<u64>()
}

/// One report of a replica and its answer, as the purses of a process make it: they hand back when others starve. Says whether
/// what a call of `wanted` waits for may still come.
fn converse(
    account: &mut Option<AccountState>,
    replica: &mut Replica,
    starving: &mut bool,
    wanted: u64,
    lease: u64,
) -> bool {
    if *starving {
        replica.purse.hand_back(0);
    }
    let (totals, idle) = (replica.purse.totals(), replica.purse.idle());
    let total = |amount: u64| totals.granted + amount.saturating_sub(idle);
    let lease = if *starving { 0 } else { lease };
    let request = SyncRequest {
        row: replica.row,
        totals,
        need: total(wanted),
        target: total(wanted + lease),
        limit: 10_000,
        limit_version: 1,
        create: !replica.seen,
        close: None,
    };
    let server = Server { now_ms: 1_000_000, run: "a", learn_ms: LEARN_MS, wiped: false };
    let SyncReply::Merged(merged) = account::sync(account, &request, server) else { panic!("{request:?}") };
    replica.seen = true;
    replica.purse.merge_granted(merged.totals.granted);
    *starving = merged.starving;
    replica.purse.available() + merged.free + merged.elsewhere >= wanted
}

/// What a call asks of a replica: its bound, the lease that goes with it, and its cost in percent; `None` while it is open.
type Asked = (usize, u64, u64, Option<u64>);

fn asked() -> impl Strategy<Value = Asked> {
    (0..REPLICAS, 1u64..400, 0u64..2_000, prop_oneof![3 => (0u64..=100).prop_map(Some), 1 => Just(None)])
}

/// Reports of purses as they truly follow each other: totals that grow, and for some a last one.
fn histories() -> impl Strategy<Value = Vec<SyncRequest>> {
    let grows = prop::collection::vec((0u64..50, 0u64..50, 0u64..50, 0u64..5), 1..4);
    let closed = prop::option::of(any::<bool>());
    prop::collection::vec((grows, closed), 1..5).prop_map(|purses| {
        let each = purses.into_iter().zip(1u64..).map(|((grows, closed), incarnation)| {
            let mut totals = Totals::default();
            let mut reports: Vec<SyncRequest> = Vec::new();
            for (returned, charged, held, debt) in grows {
                totals.returned += returned;
                totals.charged += charged;
                totals.debt += debt;
                totals.granted = totals.granted.max(totals.returned + totals.charged + held);
                let row = RowId { incarnation, purse: 0 };
                reports.push(SyncRequest {
                    row,
                    totals,
                    need: 0,
                    target: 0,
                    limit: 1000 + incarnation,
                    limit_version: incarnation,
                    create: true,
                    close: None,
                });
            }
            if let (Some(settled), Some(last)) = (closed, reports.last_mut()) {
                last.close = Some(if settled { Close::Settled } else { Close::Forfeited });
            }
            reports
        });
        each.flatten().collect()
    })
}

/// What an account says after these reports, in this order.
fn books(reports: &[SyncRequest]) -> (u64, u64, u64, u64, u64) {
    let mut account = None;
    for report in reports {
        let server = Server { now_ms: 1_000_000, run: "a", learn_ms: LEARN_MS, wiped: false };
        let reply = account::sync(&mut account, report, server);
        assert!(matches!(reply, SyncReply::Merged(_)), "{report:?}: {reply:?}");
    }
    let account = account.expect("there is a report");
    (account.limit, account.limit_version, account.held(), account.charged(), account.debt())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(cases()))]

    #[test]
    fn no_schedule_of_faults_spends_more_than_the_limit_and_stated_debt(steps in prop::collection::vec(step(), 1..250)) {
        let mut world = World::new();
        for step in steps {
            world.take(step);
            world.check();
        }
    }

    #[test]
    fn after_any_schedule_of_faults_what_is_held_in_the_end_is_what_was_spent(steps in prop::collection::vec(step(), 1..250)) {
        let mut world = World::new();
        steps.into_iter().for_each(|step| world.take(step));
        world.come_to_rest();
    }

    #[test]
    fn reports_say_the_same_in_any_order_and_any_number(
        (reports, shuffled) in histories().prop_flat_map(|reports| {
            let repeated = [&reports[..], &reports[..]].concat();
            (Just(reports), Just(repeated).prop_shuffle())
        }),
    ) {
        prop_assert_eq!(books(&reports), books(&shuffled));
    }

    #[test]
    fn no_call_is_refused_while_enough_money_is_idle_anywhere(calls in prop::collection::vec(asked(), 1..60)) {
        let mut account = None;
        let mut replicas: Vec<Replica> = (0..REPLICAS as u64).map(Replica::new).collect();
        let mut starving = [false; REPLICAS];
        for (index, replica) in replicas.iter_mut().enumerate() {
            converse(&mut account, replica, &mut starving[index], 0, 0);
        }
        for (index, bound, lease, percent) in calls {
            let enough = idle_money(account.as_ref().expect("reported to"), &replicas) > (10_000 / 50).max(REPLICAS as u64 * bound);
            let mut may_come = true;
            // The first report makes the others hand back, which they do with their next one.
            for round in 0..4 {
                if replicas[index].purse.available() >= bound {
                    break;
                }
                may_come &= converse(&mut account, &mut replicas[index], &mut starving[index], bound, lease);
                for other in (0..REPLICAS).filter(|other| *other != index && round < 3) {
                    converse(&mut account, &mut replicas[other], &mut starving[other], 0, 0);
                }
            }
            let taken = replicas[index].purse.take(bound);
            prop_assert!(!enough || may_come && taken.is_ok(), "{bound} of {account:?}");
            match (taken, percent) {
                (Ok(taken), Some(percent)) => {
                    replicas[index].purse.settle(taken, bound * percent / 100);
                }
                (Ok(taken), None) => replicas[index].open.push((taken, bound)),
                (Err(_), _) => {}
            }
        }
    }
}
