//! What is wrong right now: looked for each second, told by [`crate::telemetry::alerts`].

use std::{collections::HashMap, sync::Arc, time::Duration};

use jiff::Timestamp;
use sha2::{Digest, Sha256};
use tokio::time::Instant;

use crate::{
    config::{
        Snapshot,
        snapshot::{Auth, Budget, BudgetMode},
    },
    gateway::{Shared, referee},
    policy::{
        alerts::{Book, Condition, Kind, Severity, State},
        experiment::{Experiment, Phase},
        scope::{Match, Scope},
    },
    purses::AccountStatus,
    registry::{Halted, Kind as Shelved, What},
    store::redis::claims::RedisClaims,
    telemetry::{
        alerts::{Asking, Claims, Outbox, signals},
        metrics,
    },
    units::NanoUsd,
    upstream::health::Circuit,
};

/// Accounts beyond a threshold that are remembered while no call uses them.
const ACCOUNTS_MAX: usize = 10_000;

/// Of a long list of mistakes the first are enough for a message; the log has all of them.
const REASON_CHARS_MAX: usize = 1000;

/// In a fleet, the claim is in its Redis.
impl Claims for RedisClaims {
    fn claim<'a>(&'a self, alert: &'a str, state: State, repeat: Duration) -> Asking<'a, bool> {
        Box::pin(async move { RedisClaims::claim(self, alert, state, repeat).await.map_err(|error| error.to_string()) })
    }

    fn take_over<'a>(&'a self, alert: &'a str, repeat: Duration) -> Asking<'a, bool> {
        Box::pin(async move { RedisClaims::take_over(self, alert, repeat).await.map_err(|error| error.to_string()) })
    }

    fn settle<'a>(&'a self, alert: &'a str, is_delivered: bool, repeat: Duration) -> Asking<'a, ()> {
        Box::pin(async move {
            RedisClaims::settle(self, alert, is_delivered, repeat).await.map_err(|error| error.to_string())
        })
    }
}

/// Finds conditions and has them told.
#[derive(Debug)]
pub struct Alarms {
    outbox: Outbox,
    book: Book,
    /// Accounts that have passed a threshold, by their key. An account leaves memory when nobody uses it; what it has spent stays
    /// spent until its period ends.
    spent: HashMap<Arc<str>, Spent>,
    records_dropped: u64,
}

#[derive(Debug)]
struct Spent {
    budget: Arc<str>,
    amount: NanoUsd,
    /// Given back of it: as much more may be spent.
    credited: NanoUsd,
    resets_at: Option<Timestamp>,
}

impl Alarms {
    /// Nothing is wrong yet.
    #[must_use]
    pub fn new(outbox: Outbox) -> Alarms {
        let records_dropped = metrics::records_dropped_so_far();
        Alarms { outbox, book: Book::default(), spent: HashMap::new(), records_dropped }
    }

    /// Looks at everything, and has told what is new, due again, or over.
    pub fn look(&mut self, shared: &Shared) {
        let snapshot = shared.live.load_full();
        let now = Timestamp::now();
        let mut conditions = self.budgets(shared, &snapshot, now);
        conditions.extend(providers(shared, &snapshot));
        conditions.extend(credentials(&snapshot));
        conditions.extend(configuration(shared));
        conditions.extend((!shared.purses.store_up()).then(store_away));
        conditions.extend(self.records());
        conditions.extend(stopped_variants(&snapshot));
        conditions.extend(aborted_rollouts(&snapshot, now));
        let alerts = &snapshot.alerts;
        conditions.retain(|condition| alerts.on.contains(&condition.kind));
        for message in self.book.look(conditions, now, alerts.pace) {
            self.outbox.tell(alerts.webhook.as_ref(), message, alerts.pace.repeat);
        }
    }

    fn budgets(&mut self, shared: &Shared, snapshot: &Snapshot, now: Timestamp) -> Vec<Condition> {
        if snapshot.budgets.iter().all(|budget| budget.alerts.is_empty()) {
            self.spent.clear();
            return Vec::new();
        }
        for account in shared.purses.accounts() {
            self.note(&account, snapshot);
        }
        self.spent.retain(|_, spent| spent.resets_at.is_none_or(|resets| now < resets));
        let of = |(account, spent): (&Arc<str>, &Spent)| {
            snapshot.budget(&spent.budget).map(|budget| passed(budget, account, spent)).unwrap_or_default()
        };
        self.spent.iter().flat_map(of).collect()
    }

    /// Remembers what an account has spent, once that is a threshold's worth.
    fn note(&mut self, account: &AccountStatus, snapshot: &Snapshot) {
        let Some(budget) = snapshot.budget(&account.budget) else { return };
        let (amount, credited) = (account.spent(), account.credited);
        let spent = Spent { budget: budget.name.clone(), amount, credited, resets_at: account.resets_at };
        let lowest = budget.alerts.iter().copied().fold(f64::INFINITY, f64::min);
        if share(&spent, budget) < lowest {
            self.spent.remove(&account.account);
        } else if self.spent.len() < ACCOUNTS_MAX || self.spent.contains_key(&account.account) {
            self.spent.insert(account.account.clone(), spent);
        }
    }

    fn records(&mut self) -> Option<Condition> {
        let dropped = metrics::records_dropped_so_far();
        let before = std::mem::replace(&mut self.records_dropped, dropped);
        (dropped > before).then(|| Condition {
            kind: Kind::Records,
            subject: "records".into(),
            level: 0,
            severity: Severity::Error,
            summary: "records of calls were lost".to_owned(),
            mend: "what takes the log is slower than the calls; budgets are not touched by it",
            details: vec![("lost_since_start", dropped.to_string())],
        })
    }
}

/// The spent share of all that may be spent, by the limit that is configured now.
fn share(spent: &Spent, budget: &Budget) -> f64 {
    spent.amount.as_usd() / budget.limit.saturating_add(spent.credited).as_usd()
}

/// The thresholds that an account has passed.
fn passed(budget: &Budget, account: &str, spent: &Spent) -> Vec<Condition> {
    let subject: Arc<str> = format!("budget/{}", shown_account(&budget.scope, account)).into();
    let share = share(spent, budget);
    let condition = |threshold: f64| Condition {
        kind: Kind::Budget,
        subject: subject.clone(),
        level: ((threshold * 100.0).round() as u32).max(1),
        severity: match budget.mode {
            BudgetMode::Enforce if threshold >= 1.0 => Severity::Critical,
            _ => Severity::Warning,
        },
        summary: format!("budget {} has passed {} % of its limit", budget.name, threshold * 100.0),
        mend: "raise its limit, or find out who spends: see tollgate_cost_usd_total and /api/budgets",
        details: vec![
            ("budget", budget.name.to_string()),
            ("spent_usd", spent.amount.to_string()),
            ("limit_usd", budget.limit.to_string()),
            ("credited_usd", spent.credited.to_string()),
            ("resets_at", spent.resets_at.map_or("never".to_owned(), |at| at.to_string())),
        ],
    };
    budget.alerts.iter().copied().filter(|threshold| share >= *threshold).map(condition).collect()
}

/// The account's key, fit to leave this machine: what clients say of their users and tags is shown as a digest.
fn shown_account(scope: &Scope, account: &str) -> String {
    let from_clients = scope.user.is_some() || scope.tags.iter().any(|(_, wanted)| *wanted == Match::Each);
    if !from_clients {
        return account.to_owned();
    }
    let budget = account.split('/').next().unwrap_or_default();
    let digest: String = Sha256::digest(account).iter().take(8).map(|byte| format!("{byte:02x}")).collect();
    format!("{budget}/{digest}")
}

fn providers(shared: &Shared, snapshot: &Snapshot) -> Vec<Condition> {
    let now = Instant::now().into_std();
    let healths = shared.upstream.healths.all();
    let is_out = |name: &Arc<str>| healths.get(name).is_some_and(|health| health.circuit(now) != Circuit::Closed);
    let out = snapshot.providers.values().map(|provider| &provider.name).filter(|name| is_out(name));
    let condition = |name: &Arc<str>| Condition {
        kind: Kind::Provider,
        subject: format!("provider/{name}").into(),
        level: 0,
        severity: Severity::Error,
        summary: format!("provider {name} is out of rotation"),
        mend: "it failed several times in a row; the log says how. It is probed and comes back by itself",
        details: vec![("provider", name.to_string())],
    };
    out.map(condition).collect()
}

fn credentials(snapshot: &Snapshot) -> Vec<Condition> {
    // What is refused there is the client's own key.
    if snapshot.auth == Auth::Passthrough {
        return Vec::new();
    }
    let condition = |name: Arc<str>| Condition {
        kind: Kind::Credentials,
        subject: format!("credentials/{name}").into(),
        level: 0,
        severity: Severity::Critical,
        summary: format!("provider {name} refuses its key"),
        mend: "put a valid key in its `api_key`; a changed key file or configuration is live within a second",
        details: vec![("provider", name.to_string())],
    };
    let known = |name: &Arc<str>| snapshot.providers.contains_key(&**name);
    signals().rejecting().into_iter().filter(known).map(condition).collect()
}

fn configuration(shared: &Shared) -> Option<Condition> {
    let reason = signals().refused()?;
    let revision = shared.live.refusal().and_then(|refusal| refusal.revision);
    Some(Condition {
        kind: Kind::Configuration,
        // A revision is pushed for all gateways, and each refuses it.
        subject: revision.map_or("configuration".into(), |revision| format!("configuration/{revision}").into()),
        level: 0,
        severity: Severity::Error,
        summary: "a changed configuration was refused; the last good one serves".to_owned(),
        mend: "mend the file, and see `tollgate check FILE`",
        details: vec![("reason", reason.chars().take(REASON_CHARS_MAX).collect())],
    })
}

/// Variants that a guardrail stopped, until somebody decides: ends the experiment, or takes the variant's weight.
fn stopped_variants(snapshot: &Snapshot) -> Vec<Condition> {
    let book = &snapshot.registry.book;
    let goes_on = |experiment: &&Arc<Experiment>| matches!(experiment.phase, Phase::Running | Phase::Paused);
    let of = |experiment: &Arc<Experiment>| -> Vec<Condition> {
        let Some(trial) = book.experiments.get(&*experiment.name) else { return Vec::new() };
        let has_weight = |name: &str| experiment.variants().iter().any(|one| &*one.name == name && one.weight > 0.0);
        let stopped = trial.halted.iter().filter(|(name, halted)| halted.by == referee::NAME && has_weight(name));
        stopped.map(|(variant, halted)| stopped_variant(&experiment.name, variant, halted)).collect()
    };
    snapshot.experiments.values().filter(goes_on).flat_map(of).collect()
}

fn stopped_variant(experiment: &str, variant: &str, halted: &Halted) -> Condition {
    Condition {
        kind: Kind::Experiment,
        subject: format!("experiment/{experiment}/{variant}").into(),
        level: 0,
        severity: Severity::Error,
        summary: format!("a guardrail stopped {variant} of the experiment {experiment}"),
        mend: "its users are back in the control; end the experiment, or set the variant's weight to 0 to go on without it",
        details: vec![
            ("experiment", experiment.to_owned()),
            ("variant", variant.to_owned()),
            ("reason", halted.reason.chars().take(REASON_CHARS_MAX).collect()),
            ("since", halted.at.to_string()),
        ],
    }
}

/// Roll-outs that a guardrail ended in the last day, where nothing was done about it.
fn aborted_rollouts(snapshot: &Snapshot, now: Timestamp) -> Vec<Condition> {
    let book = &snapshot.registry.book;
    let shelves = [Shelved::Models, Shelved::Prompts]
        .into_iter()
        .flat_map(|kind| book.shelves(kind).iter().map(move |(name, shelf)| (kind, name, shelf)));
    let aborted = shelves.filter_map(|(kind, name, shelf)| {
        let last = shelf.history.last().filter(|last| last.what == What::RolloutAborted && last.by == referee::NAME)?;
        let is_new = now.duration_since(last.at).as_secs() < 86_400;
        is_new.then(|| Condition {
            kind: Kind::Experiment,
            subject: format!("rollout/{}/{name}", kind.section()).into(),
            level: 0,
            severity: Severity::Error,
            summary: format!("a guardrail ended the roll-out of {name}@{}", last.version),
            mend: "everybody has the version before; mend the new one and roll it out again",
            details: vec![
                (kind.noun(), name.clone()),
                ("version", last.version.clone()),
                ("reason", last.reason.chars().take(REASON_CHARS_MAX).collect()),
            ],
        })
    });
    aborted.collect()
}

fn store_away() -> Condition {
    Condition {
        kind: Kind::Store,
        subject: "store".into(),
        level: 0,
        severity: Severity::Critical,
        summary: "the ledger's store does not answer".to_owned(),
        mend: "bring it back: once the money that is held here is spent, budgets with `on_store_loss: closed` refuse calls",
        details: Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_account_shows_no_user() {
        let each_user = Scope { user: Some(Match::Each), ..Scope::default() };
        let shown = shown_account(&each_user, "each-user/tenant=red,user=alice/2026-11-23");
        assert!(shown.starts_with("each-user/") && !shown.contains("alice"), "{shown}");
        assert_ne!(shown, shown_account(&each_user, "each-user/tenant=red,user=bob/2026-11-23"));
        let team = Scope { team: Some(Match::Is("red".into())), ..Scope::default() };
        assert_eq!(shown_account(&team, "month/team=red/2026-11"), "month/team=red/2026-11");
    }
}
