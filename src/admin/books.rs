//! What an operator may see of the books, and do to them, over whichever store: for the API of a running gateway, and for the
//! command that works without one.
//!
//! Every change is written to the audit log, and none is made where that cannot be written. Repeating one changes nothing more.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use utoipa::ToSchema;

use crate::{
    config::{Snapshot, snapshot::Budget},
    ledger::{
        account::{AccountState, Row},
        sync::{Close, NANO_USD_MAX, RowId, SyncReply, SyncRequest, Totals},
    },
    purses::AccountStatus,
    store::{
        audit::{Audit, Deed, Page},
        ports::{AccountSync, Authority, Damaged, Held, StoreError, StoredAccount},
    },
};

/// Accounts that are asked for at a time.
const PAGE: usize = 1000;
/// The longest reason, in bytes.
const REASON_BYTES_MAX: usize = 1000;
/// A period of which less than this share is over is not forecast.
const FORECAST_FROM: f64 = 0.01;

/// The books, and who looks at them.
#[derive(Clone, Copy)]
pub struct Books<'a> {
    /// Where accounts live.
    pub authority: &'a dyn Authority,
    /// Where changes are written down.
    pub audit: &'a Audit,
    /// The budgets that are configured.
    pub snapshot: &'a Snapshot,
    /// What this process knows better than the store, where it is a gateway.
    pub live: &'a [AccountStatus],
    /// The time.
    pub now: Timestamp,
}

/// Why something was not done.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// There is no such thing.
    #[error("{0}")]
    NotFound(String),
    /// It cannot be done as things stand.
    #[error("{0}")]
    Conflict(String),
    /// It makes no sense.
    #[error("{0}")]
    Wrong(String),
    /// The store, or the audit log.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// One account: one limit in one period, for one value of its scope. Amounts are nano-USD.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct Account {
    /// The budget's name.
    pub budget: String,
    /// The account's key: budget/scope/period.
    pub account: String,
    /// The limit in force.
    pub limit_nanousd: u64,
    /// Spent by all gateways, without debt.
    pub charged_nanousd: u64,
    /// What open calls of this gateway hold.
    pub reserved_nanousd: u64,
    /// What this gateway holds of it, spent or not; of an account that it does not use, what all gateways hold.
    pub granted_nanousd: u64,
    /// Spent by all gateways beyond what they held.
    pub debt_nanousd: u64,
    /// What all gateways hold and have not spent, as the store knows it.
    pub held_nanousd: u64,
    /// Given back by credit notes.
    pub credited_nanousd: u64,
    /// What may still be spent, what gateways hold included.
    pub left_nanousd: u64,
    /// When the period ends; absent for one that is over, or never ends.
    pub resets_at: Option<String>,
    /// What will have been spent by the end of the period if it goes on as it went.
    pub forecast_nanousd: Option<u64>,
    /// Not all of it can be read: its calls are refused until it is rebuilt.
    pub damaged: bool,
}

/// A budget and its accounts.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct BudgetBooks {
    /// Its name.
    pub budget: String,
    /// Whether the configuration has it; one that was renamed or removed has accounts still.
    pub configured: bool,
    /// Its accounts, in the order of their keys.
    pub accounts: Vec<AccountBooks>,
    /// Begin after this account to see more.
    pub next: Option<String>,
}

/// An account and who holds what of it.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct AccountBooks {
    /// The account.
    #[serde(flatten)]
    pub account: Account,
    /// The gateways that hold or held something of it, each a process from its start to its end.
    pub gateways: Vec<GatewayRow>,
    /// What operators gave back.
    pub credits: Vec<Credit>,
    /// Spent by gateways that ended long ago, debt included.
    pub archived_nanousd: u64,
    /// What cannot be read, where the account is damaged.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub unreadable: Vec<String>,
}

/// What one gateway holds of an account. Amounts are nano-USD.
#[derive(Debug, Clone, Default, Serialize, ToSchema)]
pub struct GatewayRow {
    /// Random per process start.
    pub gateway: String,
    /// How many purses it had here, one after the other.
    pub purses: usize,
    /// Moved to it.
    pub granted_nanousd: u64,
    /// Moved back unspent.
    pub returned_nanousd: u64,
    /// Spent.
    pub charged_nanousd: u64,
    /// Spent beyond what it held.
    pub debt_nanousd: u64,
    /// Held and, as far as it said, not spent.
    pub held_nanousd: u64,
    /// When it was last heard of, to within five seconds.
    pub last_seen: String,
    /// Whether it may still spend: it has neither ended nor been reclaimed.
    pub open: bool,
    /// By whom it was reclaimed, where it was.
    pub reclaimed: Option<Noted>,
}

/// What was given back of what was spent.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct Credit {
    /// Its name.
    pub credit: String,
    /// How much.
    pub amount_nanousd: u64,
    /// By whom.
    pub noted: Option<Noted>,
}

/// Who said so, when and why.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Noted {
    /// When.
    pub at: String,
    /// Who.
    pub by: String,
    /// Why, in their words.
    pub reason: String,
}

/// Take back what a gateway holds that will never come back with its journal.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ReclaimRequest {
    /// Which gateway, as the accounts name it.
    pub gateway: String,
    /// Of which account; all of the budget unless given.
    pub account: Option<String>,
    /// What it has really spent of that account, where that is known to be more than it had reported.
    pub charged_nanousd: Option<u64>,
    /// Why.
    pub reason: String,
}

/// What was taken back.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct Reclaimed {
    /// Per account; none where all was taken back before.
    pub reclaimed: Vec<ReclaimedAccount>,
}

/// What was taken back of one account.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct ReclaimedAccount {
    /// Which.
    pub account: String,
    /// Free again.
    pub returned_nanousd: u64,
    /// What stays spent.
    pub charged_nanousd: u64,
}

/// Give back what was spent.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CreditRequest {
    /// To which account; the current one, where the budget has only one, unless given.
    pub account: Option<String>,
    /// How much, in nano-USD; never more than was spent.
    pub amount_nanousd: u64,
    /// Why.
    pub reason: String,
}

/// What was given back.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct Credited {
    /// To which account.
    pub account: String,
    /// The note's name.
    pub credit: String,
    /// How much.
    pub amount_nanousd: u64,
    /// All that was ever given back to this account.
    pub credited_nanousd: u64,
    /// What the store can grant now.
    pub free_nanousd: u64,
}

/// Make an account whole.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RebuildRequest {
    /// Which account.
    pub account: String,
    /// What was really spent of it in all, as far as that is known; needed where part of it cannot be read, or all is missing.
    pub charged_nanousd: Option<u64>,
    /// Why.
    pub reason: String,
}

/// What was done.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct Rebuilt {
    /// Which account.
    pub account: String,
    /// `whole`, `damaged` or `missing`.
    pub was: String,
    /// What could not be read and was left out.
    pub unreadable: Vec<String>,
    /// What was known to be spent before.
    pub charged_before_nanousd: u64,
    /// What is known to be spent now. Gateways that hold something add to it within seconds.
    pub charged_nanousd: u64,
    /// In words.
    pub done: String,
}

/// Who does it.
#[derive(Debug, Clone, Copy)]
pub struct Who<'a> {
    /// Their name, and how they were let in.
    pub actor: &'a str,
    /// Why they do it.
    pub reason: &'a str,
}

// === looking ===

impl Books<'_> {
    /// At most `count_max` accounts after `after`, in the order of their keys, and whether more follow.
    ///
    /// # Errors
    /// When the store does not answer.
    pub async fn list(&self, after: Option<&str>, count_max: usize) -> Result<(Vec<Account>, bool), StoreError> {
        // One more than wanted says whether there are more.
        let stored = self.authority.accounts(after.map(Arc::from), count_max + 1).await?;
        let live: HashMap<&str, &AccountStatus> = self.live.iter().map(|live| (&*live.account, live)).collect();
        let row = |stored: &StoredAccount| self.describe(Some(stored), live.get(&*stored.account).copied());
        let mut all: BTreeMap<String, Account> = stored.iter().map(row).map(|row| (row.account.clone(), row)).collect();
        for status in self.live.iter().filter(|status| after.is_none_or(|after| *status.account > *after)) {
            // Opened here, and not known to the store yet.
            all.entry(status.account.to_string()).or_insert_with(|| self.describe(None, Some(status)));
        }
        let more = all.len() > count_max;
        Ok((all.into_values().take(count_max).collect(), more))
    }

    /// A budget's accounts, at most `count_max` of them after `after`, and who holds what of them.
    ///
    /// # Errors
    /// When there is no such budget, or the store does not answer.
    pub async fn show(&self, budget: &str, after: Option<&str>, count_max: usize) -> Result<BudgetBooks, Refusal> {
        let (rows, more) = self.of_budget(budget, after, count_max).await?;
        let configured = self.budget(budget).is_some();
        if !configured && rows.is_empty() && after.is_none() {
            return Err(Refusal::NotFound(format!("no budget is named `{budget}`")));
        }
        let next = rows.last().filter(|_| more).map(|last| last.account.clone());
        let mut accounts = Vec::with_capacity(rows.len());
        for row in rows {
            accounts.push(self.open_up(row).await?);
        }
        Ok(BudgetBooks { budget: budget.to_owned(), configured, accounts, next })
    }

    async fn of_budget(
        &self,
        budget: &str,
        after: Option<&str>,
        count_max: usize,
    ) -> Result<(Vec<Account>, bool), StoreError> {
        let prefix = format!("{budget}/");
        let after = after.filter(|after| **after > *prefix).unwrap_or(&prefix);
        let (mut rows, more) = self.list(Some(after), count_max).await?;
        let found = rows.len();
        rows.retain(|row| row.account.starts_with(&prefix));
        let all_of_it = rows.len() == found;
        Ok((rows, more && all_of_it))
    }

    async fn open_up(&self, account: Account) -> Result<AccountBooks, StoreError> {
        let (state, notes, unreadable) = match self.authority.look_up(account.account.as_str().into()).await? {
            Held::Missing => (AccountState::default(), BTreeMap::new(), Vec::new()),
            Held::Whole(state, notes) => (state, notes, Vec::new()),
            Held::Damaged(Damaged { readable, unreadable, .. }) => (readable, BTreeMap::new(), unreadable),
        };
        let noted = |id: &RowId| notes.get(id).and_then(|text| serde_json::from_str::<Noted>(text).ok());
        let mut gateways: BTreeMap<u64, (GatewayRow, u64)> = BTreeMap::new();
        for (id, row) in state.rows.iter().filter(|(id, _)| !id.is_credit()) {
            let (gateway, seen_ms) = gateways.entry(id.incarnation).or_default();
            add_row(gateway, row);
            gateway.reclaimed = gateway.reclaimed.take().or_else(|| noted(id));
            *seen_ms = row.seen_ms.max(*seen_ms);
        }
        let gateway = |(incarnation, (row, seen_ms)): (u64, (GatewayRow, u64))| GatewayRow {
            gateway: format!("{incarnation:016x}"),
            last_seen: time(seen_ms),
            ..row
        };
        let credits = state.rows.iter().filter(|(id, _)| id.is_credit());
        let credit = |(id, row): (&RowId, &Row)| Credit {
            credit: format!("{:016x}", id.incarnation),
            amount_nanousd: row.totals.returned,
            noted: noted(id),
        };
        Ok(AccountBooks {
            account,
            gateways: gateways.into_iter().map(gateway).collect(),
            credits: credits.map(credit).collect(),
            archived_nanousd: state.archived_charged.saturating_add(state.archived_debt),
            unreadable,
        })
    }

    fn budget(&self, name: &str) -> Option<&Arc<Budget>> {
        self.snapshot.budgets.iter().find(|budget| *budget.name == *name)
    }

    fn describe(&self, stored: Option<&StoredAccount>, live: Option<&AccountStatus>) -> Account {
        let stored_or = |pick: fn(&StoredAccount) -> u64| stored.map_or(0, pick);
        let live_or = |pick: fn(&AccountStatus) -> u64, or: u64| live.map_or(or, pick);
        let key = stored.map(|stored| &stored.account).or(live.map(|live| &live.account));
        let key = key.map_or("", |key| &**key);
        let limit = live_or(|live| live.limit.0, stored_or(|stored| stored.limit));
        let charged = live_or(|live| live.charged.0, stored_or(|stored| stored.charged));
        let debt = live_or(|live| live.debt.0, stored_or(|stored| stored.debt));
        let credited = stored_or(|stored| stored.credited);
        let (name, period) = (key.split('/').next().unwrap_or_default(), key.rsplit('/').next().unwrap_or_default());
        let current = self.budget(name).map(|budget| budget.per.period_of(self.now));
        let current = current.filter(|current| current.id == period);
        let ends = current.as_ref().and_then(|current| current.ends);
        let spent = charged.saturating_add(debt);
        Account {
            budget: name.to_owned(),
            account: key.to_owned(),
            limit_nanousd: limit,
            charged_nanousd: charged,
            reserved_nanousd: live_or(|live| live.reserved.0, 0),
            granted_nanousd: live_or(|live| live.granted.0, stored_or(|stored| stored.held)),
            debt_nanousd: debt,
            held_nanousd: stored_or(|stored| stored.held.saturating_sub(stored.charged)),
            credited_nanousd: credited,
            left_nanousd: limit.saturating_add(credited).saturating_sub(spent),
            resets_at: ends.map(|ends| ends.to_string()),
            forecast_nanousd: current.zip(ends).and_then(|(now, ends)| forecast(spent, now.starts, self.now, ends)),
            damaged: stored.is_some_and(|stored| stored.damaged),
        }
    }
}

fn add_row(gateway: &mut GatewayRow, row: &Row) {
    let Totals { granted, returned, charged, debt } = row.totals;
    gateway.purses += 1;
    gateway.granted_nanousd += granted;
    gateway.returned_nanousd += returned;
    gateway.charged_nanousd += charged;
    gateway.debt_nanousd += debt;
    gateway.held_nanousd += row.totals.unspent();
    gateway.open |= row.closed_ms.is_none();
}

/// What will have been spent by `ends`, at the pace so far; `None` early in the period.
fn forecast(spent: u64, starts: Timestamp, now: Timestamp, ends: Timestamp) -> Option<u64> {
    let seconds = |from: Timestamp, to: Timestamp| to.duration_since(from).as_secs_f64();
    let share = seconds(starts, now) / seconds(starts, ends);
    (share >= FORECAST_FROM).then(|| (spent as f64 / share.min(1.0)) as u64)
}

fn time(ms: u64) -> String {
    let time = i64::try_from(ms).ok().and_then(|ms| Timestamp::from_millisecond(ms).ok());
    time.unwrap_or_default().to_string()
}

// === changing ===

impl Books<'_> {
    /// Takes back what a gateway holds of a budget's accounts. Refused while the gateway was heard of lately. Should it live
    /// after all, it is told to stop with its next report, and what it spends until then is debt.
    ///
    /// # Errors
    /// When it lives, is unknown, or never held what it is said to have spent; when the store or the audit log cannot be used.
    pub async fn reclaim(&self, budget: &str, request: &ReclaimRequest, actor: &str) -> Result<Reclaimed, Refusal> {
        let who = Who { actor, reason: reason(&request.reason)? };
        let incarnation = u64::from_str_radix(&request.gateway, 16);
        let incarnation = incarnation.map_err(|_| wrong("a gateway is named by 16 hexadecimal digits"))?;
        if request.charged_nanousd.is_some() && request.account.is_none() {
            return Err(wrong("say of which account this was spent"));
        }
        let accounts = match &request.account {
            Some(account) => vec![of_this_budget(budget, account)?],
            None => self.keys_of(budget).await?,
        };
        let (mut reclaimed, mut known, mut alive) = (Vec::new(), false, Vec::new());
        for account in accounts {
            let Held::Whole(state, _) = self.authority.look_up(account.clone()).await? else { continue };
            let rows: Vec<(RowId, Row)> = purses_of(&state, incarnation).collect();
            known |= !rows.is_empty();
            if rows.iter().all(|(_, row)| row.closed_ms.is_some()) {
                continue;
            }
            match self.reclaim_rows(&account, &rows, request.charged_nanousd, who).await? {
                Some(done) => reclaimed.push(done),
                None => alive.push(account),
            }
        }
        if !known {
            return Err(Refusal::NotFound(format!("no gateway `{}` holds anything of `{budget}`", request.gateway)));
        }
        if let Some(account) = alive.first() {
            let gateway = &request.gateway;
            return Err(Refusal::Conflict(format!(
                "gateway {gateway} was heard of lately in {account}: only one that was silent for half a minute can be reclaimed"
            )));
        }
        Ok(Reclaimed { reclaimed })
    }

    /// `None` when the gateway was heard of lately.
    async fn reclaim_rows(
        &self,
        account: &Arc<str>,
        rows: &[(RowId, Row)],
        charged: Option<u64>,
        who: Who<'_>,
    ) -> Result<Option<ReclaimedAccount>, Refusal> {
        let reported: u64 = rows.iter().map(|(_, row)| row.totals.charged).sum();
        let mut beyond = charged.unwrap_or_default().saturating_sub(reported);
        let open: Vec<&(RowId, Row)> = rows.iter().filter(|(_, row)| row.closed_ms.is_none()).collect();
        let unspent: u64 = open.iter().map(|(_, row)| row.totals.unspent()).sum();
        if beyond > unspent {
            return Err(wrong("this gateway never held as much of this account"));
        }
        let page = self.page().await?;
        let mut done =
            ReclaimedAccount { account: account.to_string(), returned_nanousd: 0, charged_nanousd: reported };
        let mut closed = Vec::new();
        let mut outcome = Ok(true);
        for (id, row) in open {
            let more = beyond.min(row.totals.unspent());
            beyond -= more;
            let totals = Totals { charged: row.totals.charged + more, ..Totals::default() };
            match self.tell(account, operator(*id, totals, Some(Close::Reclaimed))).await {
                Ok(SyncReply::Merged(merged)) if merged.closed => {
                    done.returned_nanousd += merged.totals.returned.saturating_sub(row.totals.returned);
                    done.charged_nanousd += merged.totals.charged.saturating_sub(row.totals.charged);
                    closed.push((*id, *row));
                    continue;
                }
                Ok(SyncReply::Merged(_)) => outcome = Ok(false),
                Ok(SyncReply::NoAccount | SyncReply::BadReport) => outcome = Err(changed_meanwhile(account)),
                Err(error) => outcome = Err(error.into()),
            }
            break;
        }
        if !closed.is_empty() {
            // What was done is written down, even if not all was.
            let before: Value = closed.iter().map(|(id, row)| (id.to_string(), totals(&row.totals))).collect();
            let after = json!({"returned_nanousd": done.returned_nanousd, "charged_nanousd": done.charged_nanousd});
            self.write(page, "budgets.reclaim", account, who, before, after).await?;
        }
        for (id, _) in closed {
            self.note(account, id, who).await?;
        }
        Ok(outcome?.then_some(done))
    }

    /// Gives back what was spent: as much more may be, in this account's period. `key` names the note: repeated with the same
    /// one, nothing more is given.
    ///
    /// # Errors
    /// When it is more than was spent, the account is unknown, or the key stands for another amount; when the store or the
    /// audit log cannot be used.
    pub async fn credit(
        &self,
        budget: &str,
        request: &CreditRequest,
        key: &str,
        actor: &str,
    ) -> Result<Credited, Refusal> {
        let who = Who { actor, reason: reason(&request.reason)? };
        let amount = request.amount_nanousd;
        if amount == 0 || amount > NANO_USD_MAX {
            return Err(wrong("give an amount above 0"));
        }
        let account = match &request.account {
            Some(account) => of_this_budget(budget, account)?,
            None => self.only_current(budget).await?,
        };
        let id = RowId::credit(name_of("credit", &account, key));
        let known = match self.authority.look_up(account.clone()).await? {
            Held::Whole(state, _) => state.rows.contains_key(&id),
            Held::Missing | Held::Damaged(_) => false,
        };
        let page = self.page().await?;
        let note = Totals { granted: amount, returned: amount, charged: 0, debt: 0 };
        let merged = match self.tell(&account, operator(id, note, None)).await? {
            SyncReply::Merged(merged) => merged,
            SyncReply::NoAccount => return Err(Refusal::NotFound(format!("there is no account `{account}`"))),
            SyncReply::BadReport => {
                let why = format!("{account} has less spent, and not given back yet, than that (or cannot be read)");
                return Err(Refusal::Conflict(why));
            }
        };
        if merged.totals.returned != amount {
            return Err(Refusal::Conflict("this idempotency key stands for another amount".to_owned()));
        }
        let credited = Credited {
            account: account.to_string(),
            credit: format!("{:016x}", id.incarnation),
            amount_nanousd: amount,
            credited_nanousd: merged.credited,
            free_nanousd: merged.free,
        };
        if !known {
            let before = json!({"credited_nanousd": merged.credited - amount});
            let after = json!({"credited_nanousd": merged.credited, "credit": credited.credit});
            self.write(page, "budgets.credit", &account, who, before, after).await?;
            self.note(&account, id, who).await?;
        }
        Ok(credited)
    }

    /// Makes an account whole that was lost or damaged: from what can still be read, what gateways report within the next
    /// seconds, and the figure that the operator gives. Counts twice rather than too little.
    ///
    /// # Errors
    /// When a figure is needed and not given; when the store or the audit log cannot be used.
    pub async fn rebuild(&self, budget: &str, request: &RebuildRequest, actor: &str) -> Result<Rebuilt, Refusal> {
        let who = Who { actor, reason: reason(&request.reason)? };
        let account = of_this_budget(budget, &request.account)?;
        if request.charged_nanousd.is_some_and(|charged| charged > NANO_USD_MAX) {
            return Err(wrong("no account can hold as much"));
        }
        match self.authority.look_up(account.clone()).await? {
            Held::Whole(state, _) => self.raise(&account, &state, request.charged_nanousd, who).await,
            Held::Missing => self.restore(&account, "missing", Damaged::default(), request.charged_nanousd, who).await,
            Held::Damaged(damaged) => self.restore(&account, "damaged", damaged, request.charged_nanousd, who).await,
        }
    }

    /// Books what a whole account does not know to be spent.
    async fn raise(
        &self,
        account: &Arc<str>,
        state: &AccountState,
        charged: Option<u64>,
        who: Who<'_>,
    ) -> Result<Rebuilt, Refusal> {
        let before = state.charged();
        let mut rebuilt = Rebuilt {
            account: account.to_string(),
            was: "whole".to_owned(),
            unreadable: Vec::new(),
            charged_before_nanousd: before,
            charged_nanousd: before,
            done: "nothing: it is whole, and knows of as much".to_owned(),
        };
        let missing = charged.unwrap_or_default().saturating_sub(before);
        if missing == 0 {
            return Ok(rebuilt);
        }
        let page = self.page().await?;
        let id = RowId { incarnation: name_of("rebuild", account, &format!("{before} {missing}")), purse: 0 };
        let figure = Totals { granted: missing, returned: 0, charged: missing, debt: 0 };
        let SyncReply::Merged(merged) = self.tell(account, operator(id, figure, Some(Close::Settled))).await? else {
            return Err(changed_meanwhile(account));
        };
        rebuilt.charged_nanousd = merged.charged;
        rebuilt.done = "booked what it did not know to be spent".to_owned();
        self.write_rebuilt(page, account, who, json!({"charged_nanousd": before}), &rebuilt).await?;
        self.note(account, id, who).await?;
        Ok(rebuilt)
    }

    /// Puts what can be read, and a row for what cannot, in the place of an account.
    async fn restore(
        &self,
        account: &Arc<str>,
        was: &str,
        damaged: Damaged,
        charged: Option<u64>,
        who: Who<'_>,
    ) -> Result<Rebuilt, Refusal> {
        let Some(charged) = charged else {
            let lost = if damaged.unreadable.is_empty() { "all".to_owned() } else { damaged.unreadable.join(", ") };
            return Err(wrong(&format!(
                "the account is {was} ({lost}): say what was spent of it in all, as the call log or the provider's bill tells"
            )));
        };
        let budget = account.split('/').next().and_then(|name| self.budget(name));
        let mut state = damaged.readable;
        if let Some(budget) = budget {
            (state.limit, state.limit_version) = (budget.limit.0.min(NANO_USD_MAX), 0);
        } else if damaged.unreadable.iter().any(|field| field == "limit") || was == "missing" {
            return Err(Refusal::NotFound("the configuration has no such budget, so its limit is unknown".to_owned()));
        }
        let before = state.charged();
        let missing = charged.saturating_sub(before);
        let now_ms = u64::try_from(self.now.as_millisecond()).unwrap_or_default();
        let id = RowId { incarnation: name_of("rebuild", account, &format!("{before} {missing}")), purse: 0 };
        let figure = Totals { granted: missing, returned: 0, charged: missing, debt: 0 };
        state.rows.insert(id, Row { totals: figure, seen_ms: now_ms, closed_ms: Some(now_ms) });
        let page = self.page().await?;
        let rebuilt = Rebuilt {
            account: account.to_string(),
            was: was.to_owned(),
            unreadable: damaged.unreadable,
            charged_before_nanousd: before,
            charged_nanousd: state.charged(),
            done:
                "written anew from what can be read and the figure given; whoever holds something of it reports within \
                   seconds, and nothing is granted until then"
                    .to_owned(),
        };
        if !self.authority.replace(account.clone(), damaged.fields.clone(), state).await? {
            return Err(changed_meanwhile(account));
        }
        self.write_rebuilt(page, account, who, json!(damaged.fields), &rebuilt).await?;
        self.note(account, id, who).await?;
        Ok(rebuilt)
    }

    async fn write_rebuilt(
        &self,
        page: Page,
        account: &str,
        who: Who<'_>,
        before: Value,
        rebuilt: &Rebuilt,
    ) -> Result<(), StoreError> {
        let after = json!({"charged_nanousd": rebuilt.charged_nanousd, "unreadable": rebuilt.unreadable});
        self.write(page, "budgets.rebuild", account, who, before, after).await
    }

    async fn keys_of(&self, budget: &str) -> Result<Vec<Arc<str>>, StoreError> {
        let mut keys: Vec<Arc<str>> = Vec::new();
        loop {
            let last = keys.last().map(ToString::to_string);
            let (rows, more) = self.of_budget(budget, last.as_deref(), PAGE).await?;
            keys.extend(rows.into_iter().map(|row| row.account.into()));
            if !more {
                return Ok(keys);
            }
        }
    }

    async fn only_current(&self, budget: &str) -> Result<Arc<str>, Refusal> {
        let configured = self.budget(budget);
        let Some(configured) = configured else {
            return Err(Refusal::NotFound(format!("no budget is named `{budget}`")));
        };
        let period = format!("/{}", configured.per.period_of(self.now).id);
        let mut keys = self.keys_of(budget).await?;
        keys.retain(|key| key.ends_with(&period));
        match keys.len() {
            0 => Err(Refusal::NotFound(format!("nothing was spent of `{budget}` in this period"))),
            1 => Ok(keys.remove(0)),
            count => Err(wrong(&format!("`{budget}` has {count} accounts in this period: say which"))),
        }
    }

    async fn tell(&self, account: &Arc<str>, request: SyncRequest) -> Result<SyncReply, StoreError> {
        let replies = self.authority.sync(vec![AccountSync { account: account.clone(), request }]).await?;
        replies.into_iter().next().unwrap_or_else(|| Err(StoreError::Damaged("it answered too little".to_owned())))
    }

    async fn note(&self, account: &Arc<str>, row: RowId, who: Who<'_>) -> Result<(), StoreError> {
        let noted = Noted { at: self.now.to_string(), by: who.actor.to_owned(), reason: who.reason.to_owned() };
        self.authority.note(account.clone(), row, json!(noted).to_string()).await
    }

    /// The audit log, ready to be written.
    async fn page(&self) -> Result<Page, StoreError> {
        let audit = self.audit.clone();
        tokio::task::spawn_blocking(move || audit.open()).await.unwrap_or_else(|_| Err(no_thread()))
    }

    async fn write(
        &self,
        page: Page,
        action: &'static str,
        subject: &str,
        who: Who<'_>,
        before: Value,
        after: Value,
    ) -> Result<(), StoreError> {
        let Who { actor, reason } = who;
        tracing::info!(audit.actor = actor, audit.action = action, audit.subject = subject, reason, %after, "{action} by {actor}");
        let (now, actor, subject, reason) = (self.now, actor.to_owned(), subject.to_owned(), reason.to_owned());
        let writing = tokio::task::spawn_blocking(move || {
            let (actor, subject, reason) = (&actor, &subject, &reason);
            page.write(now, &Deed { actor, action, subject, reason, before, after })
        });
        writing.await.unwrap_or_else(|_| Err(no_thread())).map(drop)
    }
}

fn purses_of(state: &AccountState, incarnation: u64) -> impl Iterator<Item = (RowId, Row)> {
    state
        .rows
        .iter()
        .filter(move |(id, _)| id.incarnation == incarnation && !id.is_credit())
        .map(|(id, row)| (*id, *row))
}

/// A report that is an operator's word, and asks for nothing.
fn operator(row: RowId, totals: Totals, close: Option<Close>) -> SyncRequest {
    SyncRequest { row, totals, need: 0, target: 0, limit: 0, limit_version: 0, create: false, close }
}

fn of_this_budget(budget: &str, account: &str) -> Result<Arc<str>, Refusal> {
    let is_ours = account.strip_prefix(budget).is_some_and(|rest| rest.starts_with('/') && rest[1..].contains('/'));
    if is_ours { Ok(account.into()) } else { Err(wrong(&format!("`{account}` is no account of `{budget}`"))) }
}

/// The same for the same deed, whatever process does it.
fn name_of(kind: &str, account: &str, key: &str) -> u64 {
    let digest = Sha256::digest(format!("{kind}\0{account}\0{key}").as_bytes());
    u64::from_be_bytes(digest[..8].try_into().expect("SHA-256 has 32 bytes"))
}

fn reason(text: &str) -> Result<&str, Refusal> {
    match text.trim() {
        "" => Err(wrong("say why: the reason is kept with the change")),
        text if text.len() > REASON_BYTES_MAX => Err(wrong("the reason is longer than 1000 bytes")),
        text => Ok(text),
    }
}

fn totals(totals: &Totals) -> Value {
    json!({"granted": totals.granted, "returned": totals.returned, "charged": totals.charged, "debt": totals.debt})
}

fn wrong(why: &str) -> Refusal {
    Refusal::Wrong(why.to_owned())
}

fn changed_meanwhile(account: &str) -> Refusal {
    Refusal::Conflict(format!("{account} has changed meanwhile: look again"))
}

fn no_thread() -> StoreError {
    StoreError::Unavailable("the audit log's writer was cancelled".to_owned())
}
