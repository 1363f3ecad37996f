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

proptest! {
    #![proptest_config(ProptestConfig::with_cases(600))]
    #[test]
    fn no_schedule_of_faults_spends_more_than_the_limit_and_stated_debt(steps in prop::collection::vec(step(), 1..250)) {
        let mut world = World::new();
        for step in steps {
            world.take(step);
            world.check();
        }
        world.come_to_rest();
    }
}
