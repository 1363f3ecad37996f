//! Three gateways, a store with a replica, and a network between them: one state, and all that can happen in it.
//!
//! The account is `ledger::account::sync` itself and the purses are `ledger::purse::Purse` itself, put back into a state by
//! the operations that lead there. What is written here is only what lies between: messages, crashes, failovers.

use std::{fmt, sync::Arc};

use tollgate::ledger::{
    account::{self, AccountState, Server},
    purse::{Purse, Taken},
    sync::{Close, RowId, SyncReply, SyncRequest, Totals},
};

use crate::scenario::{GATEWAYS, Rule, Scenario, Times};

const START_MS: u64 = 1_000_000;
const LEARN_MS: u64 = 3_000;
const PAUSE_MS: u64 = 20_000;
/// Generations of a gateway in one row number.
const GENERATIONS: u64 = 16;
const BOUNDS: [u64; 2] = [1, 2];

/// What one stored copy of the account holds; `None` when it does not exist.
type Copied = Arc<Option<AccountState>>;

/// One state of everything.
#[derive(Debug, Clone)]
pub(crate) struct World {
    gateways: [Gateway; GATEWAYS],
    primary: Copied,
    /// An earlier state of the primary: what the next failover promotes.
    replica: Copied,
    network: Vec<Message>,
    /// Processes that are gone.
    dead: Vec<Dead>,
    run: u64,
    now_ms: u64,
    /// The store was emptied, and may still hear of what it held.
    wiped: bool,
    limit_max: u64,
    /// Spent beyond bounds and purses, and known to be.
    debt: u64,
    left: Times,
}

/// One process with its purse, as totals and open reservations.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Gateway {
    generation: u64,
    granted: u64,
    returned: u64,
    charged: u64,
    debt: u64,
    /// In order; what a provider may still bill.
    open: [Option<Open>; 2],
    /// What providers have billed.
    billed: u64,
    seen: bool,
    limit_version: u64,
    /// What it has told, where reports are differences.
    told: Totals,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Open {
    covered: u64,
    uncovered: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Dead {
    row: RowId,
    /// The most that it spent: open calls count in full.
    spent: u64,
    /// What its journal says, if that was kept.
    charged: Option<u64>,
    debt: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Message {
    Request {
        request: SyncRequest,
        /// Its sender waits for no answer any more.
        given_up: bool,
    },
    /// `granted` is `None` where the account does not exist.
    Reply { row: RowId, granted: Option<u64> },
}

/// What can happen.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Action {
    Report { gateway: usize, need: u64, hand_back: bool },
    Handle { message: usize, replicas: Replicas },
    Receive { message: usize },
    Lose { message: usize },
    Replicate,
    Reserve { gateway: usize, bound: u64 },
    Borrow { gateway: usize, bound: u64 },
    Settle { gateway: usize, open: usize, actual: u64 },
    Refund { gateway: usize, open: usize },
    Crash { gateway: usize, journal: bool },
    ReportJournal { dead: usize },
    Failover,
    Wipe,
    StopListening,
    Pause,
    AdoptLimit { gateway: usize },
    Reclaim { row: RowId, close: Close },
}

/// What the replica has when a report is answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Replicas {
    /// Nobody asks.
    NotAsked,
    /// It has what the report wrote.
    HaveIt,
    /// It does not, in time.
    Late,
    /// It does not, but the wait was for an earlier write.
    SeemToHaveIt,
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Action::Report { gateway, need, hand_back } => {
                let back = if *hand_back { ", hands idle money back" } else { "" };
                write!(f, "gateway {gateway} reports, asks for {need}{back}")
            }
            Action::Handle { replicas, .. } => match replicas {
                Replicas::NotAsked => write!(f, "the store handles a report"),
                Replicas::HaveIt => write!(f, "the store handles a report; the replica has it"),
                Replicas::Late => write!(f, "the store handles a report; the replica does not have it in time"),
                Replicas::SeemToHaveIt => write!(f, "the store handles a report, writes nothing, waits for nothing"),
            },
            Action::Receive { .. } => write!(f, "an answer arrives"),
            Action::Lose { .. } => write!(f, "a message is lost"),
            Action::Replicate => write!(f, "the replica catches up"),
            Action::Reserve { gateway, bound } => write!(f, "gateway {gateway} reserves {bound} and calls"),
            Action::Borrow { gateway, bound } => write!(f, "gateway {gateway} reserves {bound} on credit and calls"),
            Action::Settle { gateway, open, actual } => write!(f, "gateway {gateway} settles call {open} at {actual}"),
            Action::Refund { gateway, open } => {
                write!(f, "gateway {gateway} refunds call {open}, whose client left; the provider bills its bound")
            }
            Action::Crash { gateway, journal } => {
                write!(f, "gateway {gateway} is killed, its journal {}", if *journal { "kept" } else { "lost" })
            }
            Action::ReportJournal { dead } => write!(f, "the journal of killed process {dead} is reported"),
            Action::Failover => write!(f, "the replica is promoted"),
            Action::Wipe => write!(f, "the store loses everything"),
            Action::StopListening => write!(f, "the store has listened long enough"),
            Action::Pause => write!(f, "20 s pass"),
            Action::AdoptLimit { gateway } => write!(f, "gateway {gateway} reads the new limit"),
            Action::Reclaim { row, close: Close::Forfeited } => write!(f, "purse {row} is declared spent"),
            Action::Reclaim { row, close: Close::Reclaimed } => {
                write!(f, "an operator takes back what purse {row} has not told is spent")
            }
            Action::Reclaim { row, close: Close::Settled } => {
                write!(f, "the lease of purse {row} expires; the store takes back what it was not told is spent")
            }
        }
    }
}

impl fmt::Display for Message {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Message::Request { request, .. } => {
                let SyncRequest { row, totals: Totals { granted, returned, charged, debt }, target, close, .. } =
                    request;
                let gateway = row.incarnation / GENERATIONS;
                let last = if close.is_some() { ", its last" } else { "" };
                write!(f, "gateway {gateway} was granted {granted}, returned {returned}, charged {charged}")?;
                write!(f, ", owes {debt}, would have {target}{last}")
            }
            Message::Reply { row, granted: Some(granted) } => {
                write!(f, "gateway {} is granted {granted} in all", row.incarnation / GENERATIONS)
            }
            Message::Reply { row, granted: None } => {
                write!(f, "gateway {}'s account is unknown", row.incarnation / GENERATIONS)
            }
        }
    }
}

/// What must never be.
pub(crate) type Fault = &'static str;

impl Gateway {
    /// The real purse in this state.
    fn purse(&self) -> Purse {
        let purse = Purse::default();
        let mut granted = 0;
        for Open { covered, uncovered } in self.open.iter().flatten() {
            granted += covered;
            purse.merge_granted(granted);
            let taken = purse.take_on_credit(covered + uncovered, u64::MAX).expect("there is no end to this credit");
            assert_eq!(taken, Taken { covered: *covered, uncovered: *uncovered });
        }
        purse.merge_granted(self.granted);
        let taken = purse.take(self.charged).expect("it was charged before");
        purse.settle(taken, self.charged + self.debt);
        purse.hand_back(purse.idle() - self.returned);
        purse
    }

    fn keep(&mut self, purse: &Purse) {
        let totals = purse.totals();
        assert!(totals.are_sound(), "{totals:?}");
        (self.granted, self.returned) = (totals.granted, totals.returned);
        (self.charged, self.debt) = (totals.charged, totals.debt);
        self.open.sort();
        let open: u64 = self.open.iter().flatten().map(|open| open.covered).sum();
        assert_eq!(totals.granted, totals.returned + totals.charged + purse.idle() + open, "{self:?}");
    }

    fn idle(&self) -> u64 {
        let open: u64 = self.open.iter().flatten().map(|open| open.covered).sum();
        self.granted - self.returned - self.charged - open
    }

    /// What providers have billed or may bill.
    fn spent(&self) -> u64 {
        self.billed + self.open.iter().flatten().map(|open| open.covered + open.uncovered).sum::<u64>()
    }

    /// What it may yet spend beyond that without asking anybody.
    fn could_spend(&self) -> u64 {
        self.spent() + self.idle()
    }

    fn row(&self, slot: usize) -> RowId {
        RowId { incarnation: slot as u64 * GENERATIONS + self.generation, purse: 0 }
    }
}

impl World {
    pub(crate) fn new(scenario: &Scenario) -> World {
        let gateway = Gateway {
            generation: 0,
            granted: 0,
            returned: 0,
            charged: 0,
            debt: 0,
            open: [None; 2],
            billed: 0,
            seen: false,
            limit_version: 1,
            told: Totals::default(),
        };
        World {
            gateways: [gateway; GATEWAYS],
            primary: Arc::new(None),
            replica: Arc::new(None),
            network: Vec::new(),
            dead: Vec::new(),
            run: 0,
            now_ms: START_MS,
            wiped: false,
            limit_max: scenario.limit,
            debt: 0,
            left: scenario.times,
        }
    }

    /// What is wrong with this state, if anything.
    pub(crate) fn fault(&self, scenario: &Scenario) -> Option<Fault> {
        let gone: u64 = self.dead.iter().map(|dead| dead.spent).sum();
        let spent = gone + self.gateways.iter().map(Gateway::spent).sum::<u64>();
        let could_be = gone + self.gateways.iter().map(Gateway::could_spend).sum::<u64>();
        let most = self.limit_max + self.debt;
        // Where a rule is left out, the trace is to end with the money gone, not with the grant that makes it possible.
        if spent > most || scenario.without.is_none() && could_be > most {
            return Some("more is spent than the limit");
        }
        if self.gateways.iter().any(|gateway| gateway.billed > gateway.charged + gateway.debt) {
            return Some("a provider billed more than was charged");
        }
        let account = self.primary.as_ref().as_ref()?;
        let hides = |dead: &Dead| {
            let row = account.rows.get(&dead.row).filter(|row| row.closed_ms.is_some());
            row.is_some_and(|row| row.totals.charged + row.totals.debt < dead.spent)
        };
        self.dead.iter().any(hides).then_some("a closed purse spent more than the books say")
    }

    /// All that can happen next.
    pub(crate) fn actions(&self, scenario: &Scenario) -> Vec<Action> {
        let mut actions = Vec::new();
        (0..GATEWAYS).for_each(|gateway| self.actions_of(gateway, scenario, &mut actions));
        self.actions_of_network(scenario, &mut actions);
        self.actions_of_store(scenario, &mut actions);
        actions
    }

    fn actions_of(&self, gateway: usize, scenario: &Scenario, actions: &mut Vec<Action>) {
        let Gateway { open, limit_version, .. } = &self.gateways[gateway];
        let idle = self.gateways[gateway].idle();
        if self.left.reports > 0 && self.network.len() < scenario.messages {
            for need in [0, 1, 2] {
                actions.push(Action::Report { gateway, need, hand_back: false });
                if idle > 0 {
                    actions.push(Action::Report { gateway, need, hand_back: true });
                }
            }
        }
        if self.left.calls > 0 && open[0].is_none() {
            actions.extend(BOUNDS.map(|bound| Action::Reserve { gateway, bound }));
            if self.left.debts > 0 {
                actions.extend(BOUNDS.map(|bound| Action::Borrow { gateway, bound }));
            }
        }
        for (index, open) in open.iter().enumerate() {
            let Some(Open { covered, uncovered }) = open else { continue };
            let most = covered + uncovered + u64::from(self.left.debts > 0);
            actions.extend((0..=most).map(|actual| Action::Settle { gateway, open: index, actual }));
            if scenario.lacks(Rule::NoRefund) {
                actions.push(Action::Refund { gateway, open: index });
            }
        }
        if self.left.crashes > 0 && self.gateways[gateway].granted > 0 {
            actions.extend([true, false].map(|journal| Action::Crash { gateway, journal }));
        }
        if scenario.next_limit.is_some() && *limit_version == 1 {
            actions.push(Action::AdoptLimit { gateway });
        }
    }

    fn actions_of_network(&self, scenario: &Scenario, actions: &mut Vec<Action>) {
        for (message, kind) in self.network.iter().enumerate() {
            match kind {
                Message::Reply { .. } => actions.push(Action::Receive { message }),
                Message::Request { .. } => {
                    actions.extend(
                        replicas(scenario).iter().map(|replicas| Action::Handle { message, replicas: *replicas }),
                    );
                }
            }
        }
        if self.network.len() == scenario.messages {
            actions.extend((0..self.network.len()).map(|message| Action::Lose { message }));
        }
        if self.network.len() < scenario.messages {
            let told = (0..self.dead.len()).filter(|dead| self.dead[*dead].charged.is_some());
            actions.extend(told.map(|dead| Action::ReportJournal { dead }));
        }
    }

    fn actions_of_store(&self, scenario: &Scenario, actions: &mut Vec<Action>) {
        if self.left.failovers > 0 {
            if self.replica.is_some() || !scenario.known_account {
                actions.push(Action::Failover);
            }
            if self.replica != self.primary {
                actions.push(Action::Replicate);
            }
        }
        if self.left.wipes > 0 && self.primary.is_some() {
            actions.push(Action::Wipe);
        }
        let listens = self.wiped || self.primary.as_ref().as_ref().is_some_and(|a| a.learn_until_ms > self.now_ms);
        if listens && (!scenario.all_return || self.all_were_heard()) {
            actions.push(Action::StopListening);
        }
        if self.left.pauses > 0 && !listens {
            actions.push(Action::Pause);
        }
        if self.left.reclaims > 0
            && let Some(account) = self.primary.as_ref()
        {
            let close = if scenario.lacks(Rule::NoExpiry) { Close::Settled } else { Close::Forfeited };
            let open = account.rows.iter().filter(|(_, row)| row.closed_ms.is_none());
            actions.extend(open.map(|(row, _)| Action::Reclaim { row: *row, close }));
        }
    }

    /// Whether the store knows of everything that is in a purse.
    fn all_were_heard(&self) -> bool {
        let known = |row: RowId| {
            self.primary
                .as_ref()
                .as_ref()
                .and_then(|account| account.rows.get(&row))
                .map_or(0, |row| row.totals.granted)
        };
        self.gateways.iter().enumerate().all(|(slot, gateway)| gateway.granted <= known(gateway.row(slot)))
    }

    /// Does it; `None` when nothing would change, an error when what must never be has come about.
    pub(crate) fn after(&self, action: Action, scenario: &Scenario) -> Result<Option<World>, Fault> {
        let mut next = self.clone();
        if !next.take(action, scenario)? {
            return Ok(None);
        }
        next.fault(scenario).map_or(Ok(Some(next)), Err)
    }

    fn take(&mut self, action: Action, scenario: &Scenario) -> Result<bool, Fault> {
        match action {
            Action::Report { gateway, need, hand_back } => self.report(gateway, need, hand_back, scenario),
            Action::Handle { message, replicas } => return self.handle(message, replicas, scenario),
            Action::Receive { message } => return Ok(self.receive(message)),
            Action::Lose { message } => {
                self.network.remove(message);
            }
            Action::Replicate => self.replica = Arc::clone(&self.primary),
            Action::Reserve { gateway, bound } => return Ok(self.reserve(gateway, bound)),
            Action::Borrow { gateway, bound } => return Ok(self.borrow_money(gateway, bound)),
            Action::Settle { gateway, open, actual } => self.settle(gateway, open, actual, actual),
            Action::Refund { gateway, open } => {
                let Open { covered, uncovered } = self.gateways[gateway].open[open].expect("it is open");
                self.settle(gateway, open, 0, covered + uncovered);
            }
            Action::Crash { gateway, journal } => self.crash(gateway, journal),
            Action::ReportJournal { dead } => return Ok(self.report_journal(dead)),
            Action::Failover => {
                self.left.failovers -= 1;
                self.primary = Arc::clone(&self.replica);
                self.run += u64::from(!scenario.lacks(Rule::Learning));
                // The store's mark names another server.
                self.wiped = !scenario.lacks(Rule::NeverStartedFull);
            }
            Action::Wipe => {
                self.left.wipes -= 1;
                (self.primary, self.replica) = (Arc::new(None), Arc::new(None));
                self.wiped = !scenario.lacks(Rule::NeverStartedFull);
            }
            Action::StopListening => {
                self.now_ms += LEARN_MS;
                self.wiped = false;
                if scenario.one_flight {
                    // It listens for longer than a flight may take.
                    (0..GATEWAYS).for_each(|slot| self.give_up(self.gateways[slot].row(slot)));
                }
            }
            Action::Pause => {
                self.left.pauses -= 1;
                self.now_ms += PAUSE_MS;
            }
            Action::AdoptLimit { gateway } => {
                self.gateways[gateway].limit_version = 2;
                self.limit_max = self.limit_max.max(scenario.next_limit.expect("there is one"));
            }
            Action::Reclaim { row, close } => return self.reclaim(row, close),
        }
        Ok(true)
    }

    fn report(&mut self, slot: usize, need: u64, hand_back: bool, scenario: &Scenario) {
        self.left.reports -= 1;
        let gateway = &mut self.gateways[slot];
        let purse = gateway.purse();
        if hand_back {
            purse.hand_back(0);
        }
        gateway.keep(&purse);
        let totals = purse.totals();
        let total = |amount: u64| totals.granted + amount.saturating_sub(purse.idle());
        // A little more than calls wait for, so that there is something to hand back.
        let lease = u64::from(need > 0);
        let limit_version = gateway.limit_version;
        let told = std::mem::take(&mut gateway.told);
        if scenario.lacks(Rule::Totals) {
            gateway.told = totals;
        }
        let request = SyncRequest {
            row: gateway.row(slot),
            totals: difference(totals, told),
            need: total(need),
            target: total(need + lease),
            limit: limit(scenario, limit_version),
            limit_version,
            create: !gateway.seen,
            close: None,
        };
        if scenario.one_flight {
            self.give_up(request.row);
        }
        self.send(Message::Request { request, given_up: false });
    }

    /// No answer to an earlier report reaches the gateway any more.
    fn give_up(&mut self, own: RowId) {
        self.network.retain(|message| !matches!(message, Message::Reply { row, .. } if *row == own));
        for message in &mut self.network {
            if let Message::Request { request, given_up } = message {
                *given_up |= request.row == own;
            }
        }
    }

    /// A message that is on the way already gains nothing by a copy: each may arrive any number of times.
    fn send(&mut self, message: Message) -> bool {
        let is_new = !self.network.contains(&message);
        if is_new {
            self.network.push(message);
        }
        is_new
    }

    fn handle(&mut self, message: usize, replicas: Replicas, scenario: &Scenario) -> Result<bool, Fault> {
        let Message::Request { request, given_up } = self.network[message] else { return Ok(false) };
        let mut account = self.primary.as_ref().clone();
        let before = account.clone();
        let known = before.as_ref().and_then(|a| a.rows.get(&request.row)).map(|row| row.totals).unwrap_or_default();
        let told = if scenario.lacks(Rule::Totals) { sum(known, request.totals) } else { request.totals };
        let reply =
            account::sync(&mut account, &SyncRequest { totals: told, ..request }, self.server(&self.run.to_string()));
        let wrote = account != before;
        if replicas == Replicas::SeemToHaveIt && (wrote || self.replica == self.primary) {
            return Ok(false);
        }
        self.primary = Arc::new(account);
        if replicas == Replicas::HaveIt {
            self.replica = Arc::clone(&self.primary);
        }
        let granted = match reply {
            SyncReply::BadReport if scenario.lacks(Rule::Totals) => return Ok(false),
            SyncReply::BadReport => return Err("a true report was disbelieved"),
            SyncReply::NoAccount => None,
            SyncReply::Merged(merged) => {
                let account = self.primary.as_ref().as_ref().expect("merged");
                let is_new = merged.totals.granted > told.granted.max(known.granted);
                if is_new && account.held() + account.debt() > account.limit {
                    return Err("more was granted than the limit in force");
                }
                let withheld = replicas == Replicas::Late && !scenario.lacks(Rule::WithheldGrants);
                let merged = if withheld { merged.unconfirmed(&request) } else { merged };
                Some(merged.totals.granted)
            }
        };
        let mut changed = wrote || replicas == Replicas::HaveIt;
        if !given_up && request.close.is_none() {
            let reply = Message::Reply { row: request.row, granted };
            // The answer takes the request's place when there is no other; the request may still arrive again later.
            if self.network.len() == scenario.messages && !self.network.contains(&reply) {
                self.network.remove(message);
            }
            changed |= self.send(reply);
        }
        Ok(changed)
    }

    fn server<'a>(&self, run: &'a str) -> Server<'a> {
        Server { now_ms: self.now_ms, run, learn_ms: LEARN_MS, wiped: self.wiped }
    }

    fn receive(&mut self, message: usize) -> bool {
        let Message::Reply { row, granted } = self.network[message] else { return false };
        let Some(slot) = (0..GATEWAYS).find(|slot| self.gateways[*slot].row(*slot) == row) else { return false };
        let gateway = &mut self.gateways[slot];
        let before = *gateway;
        gateway.seen = granted.is_some();
        if let Some(granted) = granted {
            let purse = gateway.purse();
            purse.merge_granted(granted);
            gateway.keep(&purse);
        }
        *gateway != before
    }

    fn reserve(&mut self, slot: usize, bound: u64) -> bool {
        let gateway = &mut self.gateways[slot];
        let purse = gateway.purse();
        let Ok(taken) = purse.take(bound) else { return false };
        self.left.calls -= 1;
        gateway.hold(&purse, taken);
        true
    }

    fn borrow_money(&mut self, slot: usize, bound: u64) -> bool {
        let gateway = &mut self.gateways[slot];
        let purse = gateway.purse();
        let Some(taken) = purse.take_on_credit(bound, 2).ok().filter(|taken| taken.uncovered > 0) else { return false };
        self.left.calls -= 1;
        self.left.debts -= 1;
        self.debt += taken.uncovered;
        gateway.hold(&purse, taken);
        true
    }

    fn settle(&mut self, slot: usize, open: usize, charged: u64, billed: u64) {
        let gateway = &mut self.gateways[slot];
        let purse = gateway.purse();
        let Open { covered, uncovered } = gateway.open[open].take().expect("it is open");
        purse.settle(Taken { covered, uncovered }, charged);
        gateway.billed += billed;
        gateway.keep(&purse);
        let above = billed.saturating_sub(covered + uncovered);
        self.debt += above;
        self.left.debts -= u8::from(above > 0);
    }

    fn crash(&mut self, slot: usize, journal: bool) {
        self.left.crashes -= 1;
        let gone = self.gateways[slot];
        let open = |part: fn(&Open) -> u64| gone.open.iter().flatten().map(part).sum::<u64>();
        self.dead.push(Dead {
            row: gone.row(slot),
            spent: gone.spent(),
            charged: journal.then(|| gone.charged + open(|open| open.covered)),
            debt: gone.debt + open(|open| open.uncovered),
        });
        let next = World::new(&Scenario::new("")).gateways[slot];
        self.gateways[slot] = Gateway { generation: gone.generation + 1, limit_version: gone.limit_version, ..next };
    }

    /// As `store::journal::Leftover::reports` says it: what was spent had been granted, and how much more was, the
    /// authority knows.
    fn report_journal(&mut self, dead: usize) -> bool {
        let Dead { row, charged, debt, .. } = self.dead[dead];
        let charged = charged.expect("the journal was kept");
        let totals = Totals { granted: charged, returned: 0, charged, debt };
        let close = Some(Close::Settled);
        let request = SyncRequest { row, totals, need: 0, target: 0, limit: 0, limit_version: 0, create: false, close };
        self.send(Message::Request { request, given_up: true })
    }

    /// Closes a row by what the store knows of it.
    fn reclaim(&mut self, row: RowId, close: Close) -> Result<bool, Fault> {
        self.left.reclaims -= 1;
        let mut account = self.primary.as_ref().clone();
        let totals = account.as_ref().map(|account| account.rows[&row].totals).unwrap_or_default();
        let close = Some(close);
        let request = SyncRequest { row, totals, need: 0, target: 0, limit: 0, limit_version: 0, create: false, close };
        account::sync(&mut account, &request, self.server(&self.run.to_string()));
        self.primary = Arc::new(account);
        Ok(true)
    }

    /// What an action means in this state.
    pub(crate) fn tell(&self, action: Action) -> String {
        let (Action::Handle { message, .. } | Action::Receive { message } | Action::Lose { message }) = action else {
            return action.to_string();
        };
        format!("{action}: {}", self.network[message])
    }

    /// The same number for states that differ only in which gateway is which.
    pub(crate) fn fingerprint(&self) -> u64 {
        const ORDERS: [[u64; GATEWAYS]; 6] = [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]];
        ORDERS.iter().map(|order| self.digest(order)).min().expect("there are six")
    }

    fn digest(&self, order: &[u64; GATEWAYS]) -> u64 {
        let id = |row: RowId| {
            let slot = (row.incarnation / GENERATIONS) as usize;
            order[slot] * GENERATIONS + row.incarnation % GENERATIONS
        };
        let Times { reports, calls, debts, crashes, failovers, wipes, reclaims, pauses } = self.left;
        let left = [reports, calls, debts, crashes, failovers, wipes, reclaims, pauses];
        let mut all = Digest::default();
        all.add(u64::from_le_bytes(left));
        all.add_all(&[self.run, self.now_ms, u64::from(self.wiped), self.limit_max, self.debt]);
        all.add(copy_digest(&self.primary, id));
        all.add(if Arc::ptr_eq(&self.primary, &self.replica) { 1 } else { copy_digest(&self.replica, id) });
        for (slot, gateway) in self.gateways.iter().enumerate() {
            all.add_unordered(gateway.digest(order[slot]));
        }
        for message in &self.network {
            all.add_unordered(message.digest(id));
        }
        for Dead { row, spent, charged, debt } in &self.dead {
            let mut digest = Digest::default();
            digest.add_all(&[3, id(*row), *spent, charged.map_or(0, |charged| charged + 1), *debt]);
            all.add_unordered(digest.0);
        }
        all.finish()
    }
}

impl Gateway {
    fn hold(&mut self, purse: &Purse, taken: Taken) {
        let place = self.open.iter_mut().find(|open| open.is_none()).expect("there is room");
        *place = Some(Open { covered: taken.covered, uncovered: taken.uncovered });
        self.keep(purse);
    }

    fn digest(&self, slot: u64) -> u64 {
        let mut digest = Digest::default();
        digest.add_all(&[slot, self.generation, self.granted, self.returned, self.charged, self.debt, self.billed]);
        for open in self.open {
            digest.add(open.map_or(0, |open| 1 + open.covered * 8 + open.uncovered));
        }
        digest.add_all(&[
            u64::from(self.seen),
            self.limit_version,
            self.told.returned,
            self.told.charged,
            self.told.debt,
        ]);
        digest.0
    }
}

impl Message {
    fn digest(&self, id: impl Fn(RowId) -> u64) -> u64 {
        let mut digest = Digest::default();
        match self {
            Message::Request { request, given_up } => {
                let Totals { granted, returned, charged, debt } = request.totals;
                digest.add_all(&[1, id(request.row), granted, returned, charged, debt, request.need, request.target]);
                let flags = [*given_up, request.create, request.close.is_some()].map(u64::from);
                digest.add_all(&flags);
                digest.add(request.limit_version);
            }
            Message::Reply { row, granted } => digest.add_all(&[2, id(*row), granted.map_or(0, |granted| granted + 1)]),
        }
        digest.0
    }
}

fn copy_digest(copy: &Copied, id: impl Fn(RowId) -> u64) -> u64 {
    let Some(account) = copy.as_ref() else { return 0 };
    let mut all = Digest::default();
    all.add_all(&[account.limit, account.limit_version, account.learn_until_ms]);
    all.add(account.run.parse().expect("runs are numbered"));
    if let Some(starving) = account.starving {
        all.add_all(&[id(starving.row), starving.lacking, starving.until_ms]);
    }
    for (row, account::Row { totals, seen_ms, closed_ms }) in &account.rows {
        let mut digest = Digest::default();
        digest.add_all(&[id(*row), totals.granted, totals.returned, totals.charged, totals.debt, *seen_ms]);
        digest.add(closed_ms.unwrap_or(0));
        all.add_unordered(digest.0);
    }
    all.add_all(&[account.archived_charged, account.archived_debt]);
    all.finish()
}

/// A hash that is the same in every run.
#[derive(Debug, Clone, Copy)]
struct Digest(u64, u64);

impl Default for Digest {
    fn default() -> Digest {
        Digest(0x243f_6a88_85a3_08d3, 0)
    }
}

impl Digest {
    fn add(&mut self, value: u64) {
        let product = u128::from(self.0 ^ value.wrapping_mul(0xa076_1d64_78bd_642f)) * 0xe703_7ed1_a0b4_28db;
        self.0 = (product >> 64) as u64 ^ product as u64;
    }

    fn add_all(&mut self, values: &[u64]) {
        values.iter().for_each(|value| self.add(*value));
    }

    fn add_unordered(&mut self, digest: u64) {
        self.1 = self.1.wrapping_add(digest);
    }

    fn finish(mut self) -> u64 {
        self.add(self.1);
        self.0
    }
}

fn replicas(scenario: &Scenario) -> &'static [Replicas] {
    match (scenario.wait, scenario.lacks(Rule::RewrittenGrants)) {
        (false, _) => &[Replicas::NotAsked],
        (true, false) => &[Replicas::HaveIt, Replicas::Late],
        (true, true) => &[Replicas::HaveIt, Replicas::Late, Replicas::SeemToHaveIt],
    }
}

fn limit(scenario: &Scenario, version: u64) -> u64 {
    if version == 1 { scenario.limit } else { scenario.next_limit.unwrap_or(scenario.limit) }
}

/// All of it where nothing was told before.
fn difference(now: Totals, told: Totals) -> Totals {
    Totals {
        granted: now.granted,
        returned: now.returned - told.returned,
        charged: now.charged - told.charged,
        debt: now.debt - told.debt,
    }
}

/// What a store makes of a report of differences.
fn sum(known: Totals, told: Totals) -> Totals {
    Totals {
        granted: known.granted.max(told.granted),
        returned: known.returned + told.returned,
        charged: known.charged + told.charged,
        debt: known.debt + told.debt,
    }
}
