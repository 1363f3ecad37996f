//! `tollgate budgets`: what was spent and what is left, and what an operator may do about it.
//!
//! Asks the running gateway's admin API; with `--offline`, the store itself. Both say the same.

use std::{io::Write, sync::Arc};

use anyhow::anyhow;
use clap::{Args, Subcommand};
use jiff::Timestamp;
use serde::Serialize;
use serde_json::{Value, json};

use super::{
    FAILED, UNREACHABLE, WRONG,
    api::{self, Connection, Failure, Gateway, encoded, table, text, user},
};
use crate::{
    admin::books::{Books, CreditRequest, RebuildRequest, ReclaimRequest, Refusal},
    config::{self, Snapshot, snapshot::Store},
    store::{
        DataDir,
        audit::Audit,
        embedded::Embedded,
        ports::{Authority, StoreError},
        redis::Redis,
    },
    units::NanoUsd,
};

/// Accounts of one page.
const PAGE: usize = 1000;

/// What to do with budgets, and whom to ask.
#[derive(Debug, Args)]
pub struct BudgetsArguments {
    #[command(flatten)]
    connection: Connection,
    /// Ask the store itself: Redis, or the data_dir of a gateway that is stopped
    #[arg(long, global = true, display_order = super::GLOBALS_ORDER, conflicts_with = "url")]
    offline: bool,
    /// As JSON
    #[arg(long, global = true, display_order = super::GLOBALS_ORDER)]
    json: bool,
    #[command(subcommand)]
    command: Option<BudgetsCommand>,
}

/// What to do with budgets; `list` unless said.
#[derive(Debug, Subcommand)]
enum BudgetsCommand {
    /// List all accounts: limit, spent, held, left
    List,
    /// Show a budget's accounts, and what each gateway holds of them
    Show {
        /// The budget
        budget: String,
    },
    /// Take back what a dead gateway holds that will never come back with its journal
    Reclaim {
        /// The budget
        budget: String,
        /// The gateway, as `show` names it
        #[arg(long, value_name = "ID")]
        gateway: String,
        /// Only of this account
        #[arg(long, value_name = "ACCOUNT")]
        account: Option<String>,
        /// What it has really spent of that account, where that is more than it reported: "0.25 USD"
        #[arg(long, value_name = "AMOUNT", requires = "account")]
        spent: Option<NanoUsd>,
        /// Why; kept with the change
        #[arg(long)]
        reason: String,
    },
    /// Give back what was spent, as a note that stays visible
    Credit {
        /// The budget
        budget: String,
        /// How much: "5 USD"
        amount: NanoUsd,
        /// Which account; needed where the budget has several in this period
        #[arg(long, value_name = "ACCOUNT")]
        account: Option<String>,
        /// Names the note: repeated with the same one, nothing more is given
        #[arg(long, value_name = "TEXT")]
        idempotency_key: Option<String>,
        /// Why; kept with the change
        #[arg(long)]
        reason: String,
    },
    /// Make an account whole that was lost or damaged in the store
    Rebuild {
        /// The account, as `list` names it
        account: String,
        /// What was really spent of it in all, where part of it cannot be read: "12.50 USD"
        #[arg(long, value_name = "AMOUNT")]
        spent: Option<NanoUsd>,
        /// Why; kept with the change
        #[arg(long)]
        reason: String,
    },
}

/// Runs the command.
///
/// # Errors
/// When nobody answers, or the answer is no.
pub async fn run(arguments: &BudgetsArguments, out: &mut impl Write) -> Result<(), Failure> {
    let books =
        if arguments.offline { offline(arguments).await? } else { Source::Gateway(arguments.connection.gateway()?) };
    let answer = match arguments.command.as_ref().unwrap_or(&BudgetsCommand::List) {
        BudgetsCommand::List => books.list().await?,
        BudgetsCommand::Show { budget } => books.show(budget).await?,
        BudgetsCommand::Reclaim { budget, gateway, account, spent, reason } => {
            let (gateway, account, reason) = (gateway.clone(), account.clone(), reason.clone());
            let charged_nanousd = spent.map(|spent| spent.0);
            books.reclaim(budget, &ReclaimRequest { gateway, account, charged_nanousd, reason }).await?
        }
        BudgetsCommand::Credit { budget, amount, account, idempotency_key, reason } => {
            let (account, reason) = (account.clone(), reason.clone());
            let key = idempotency_key.clone().unwrap_or_else(|| uuid::Uuid::now_v7().to_string());
            books.credit(budget, &CreditRequest { account, amount_nanousd: amount.0, reason }, &key).await?
        }
        BudgetsCommand::Rebuild { account, spent, reason } => {
            let budget = account.split('/').next().unwrap_or_default();
            let (account, reason) = (account.clone(), reason.clone());
            let charged_nanousd = spent.map(|spent| spent.0);
            books.rebuild(budget, &RebuildRequest { account, charged_nanousd, reason }).await?
        }
    };
    match arguments.json {
        true => api::print(out, &format!("{answer}\n")),
        false => api::print(out, &in_words(&answer)),
    }
}

/// Who is asked.
enum Source {
    Gateway(Gateway),
    Store(Box<Offline>),
}

impl Source {
    async fn list(&self) -> Result<Value, Failure> {
        match self {
            Source::Gateway(gateway) => gateway.all("/api/budgets").await,
            Source::Store(store) => store.list().await,
        }
    }

    async fn show(&self, budget: &str) -> Result<Value, Failure> {
        match self {
            Source::Gateway(gateway) => gateway.get(&format!("/api/budgets/{}", encoded(budget))).await.map(|(v, _)| v),
            Source::Store(store) => told(store.books().show(budget, None, PAGE).await),
        }
    }

    async fn reclaim(&self, budget: &str, request: &ReclaimRequest) -> Result<Value, Failure> {
        match self {
            Source::Gateway(gateway) => gateway.post(&deed_path(budget, "reclaim"), request, None).await,
            Source::Store(store) => told(store.books().reclaim(budget, request, &store.actor).await),
        }
    }

    async fn credit(&self, budget: &str, request: &CreditRequest, key: &str) -> Result<Value, Failure> {
        match self {
            Source::Gateway(gateway) => gateway.post(&deed_path(budget, "credit"), request, Some(key)).await,
            Source::Store(store) => told(store.books().credit(budget, request, key, &store.actor).await),
        }
    }

    async fn rebuild(&self, budget: &str, request: &RebuildRequest) -> Result<Value, Failure> {
        match self {
            Source::Gateway(gateway) => gateway.post(&deed_path(budget, "rebuild"), request, None).await,
            Source::Store(store) => told(store.books().rebuild(budget, request, &store.actor).await),
        }
    }
}

fn deed_path(budget: &str, deed: &str) -> String {
    format!("/api/budgets/{}/{deed}", encoded(budget))
}

fn told<T: Serialize>(answer: Result<T, Refusal>) -> Result<Value, Failure> {
    let answer = answer.map_err(|refusal| {
        let code = match refusal {
            Refusal::NotFound(_) | Refusal::Wrong(_) => WRONG,
            Refusal::Conflict(_) => FAILED,
            Refusal::Store(_) => UNREACHABLE,
        };
        Failure { error: refusal.into(), code }
    })?;
    serde_json::to_value(answer).map_err(|error| anyhow!(error).into())
}

// === the store itself ===

struct Offline {
    authority: Arc<dyn Authority>,
    audit: Audit,
    snapshot: Snapshot,
    actor: String,
}

async fn offline(arguments: &BudgetsArguments) -> Result<Source, Failure> {
    let snapshot = config::load(arguments.connection.config.as_deref()).map_err(anyhow::Error::from)?.snapshot;
    let opened = async {
        let authority: Arc<dyn Authority> = match &snapshot.store {
            Store::Embedded => Arc::new(Embedded::open(Arc::new(DataDir::open(&snapshot.data_dir)?))?),
            Store::Redis(url) => {
                let ledger = &snapshot.ledger;
                Arc::new(Redis::open(url.clone(), ledger.wait_replicas, ledger.sync).await?)
            }
        };
        Ok::<_, StoreError>(authority)
    };
    let authority = match opened.await {
        Ok(authority) => authority,
        Err(error @ StoreError::Locked(_)) => {
            let error = anyhow!(error).context("a running gateway has the store: leave --offline out to ask it");
            return Err(Failure { error, code: UNREACHABLE });
        }
        Err(error) => return Err(Failure { error: error.into(), code: UNREACHABLE }),
    };
    let audit = Audit::in_dir(&snapshot.data_dir);
    let actor = user().map_or_else(|| "offline".to_owned(), |user| format!("{user} (offline)"));
    Ok(Source::Store(Box::new(Offline { authority, audit, snapshot, actor })))
}

impl Offline {
    fn books(&self) -> Books<'_> {
        let Offline { authority, audit, snapshot, .. } = self;
        Books { authority: &**authority, audit, snapshot, live: &[], now: Timestamp::now() }
    }

    async fn list(&self) -> Result<Value, Failure> {
        let mut all = Vec::new();
        let mut after: Option<String> = None;
        loop {
            let (rows, more) = told_as_is(self.books().list(after.as_deref(), PAGE).await)?;
            after = rows.last().map(|row| row.account.clone());
            all.extend(rows);
            if !more {
                return told(Ok(all));
            }
        }
    }
}

fn told_as_is<T>(answer: Result<T, StoreError>) -> Result<T, Failure> {
    answer.map_err(|error| Failure { error: error.into(), code: UNREACHABLE })
}

// === in words ===

/// What was answered, for people. Told apart by what it has.
fn in_words(answer: &Value) -> String {
    match answer {
        Value::Array(rows) if rows.is_empty() => "No account yet: nothing was spent.\n".to_owned(),
        Value::Array(rows) => accounts(rows),
        answer if answer["accounts"].is_array() => budget(answer),
        answer if answer["reclaimed"].is_array() => reclaimed(answer),
        answer if answer["credit"].is_string() => format!(
            "Gave back {} USD of {}: {} USD in all. The store can grant {} USD now. Credit note {}.\n",
            usd(&answer["amount_nanousd"]),
            text(&answer["account"]),
            usd(&answer["credited_nanousd"]),
            usd(&answer["free_nanousd"]),
            text(&answer["credit"]),
        ),
        answer => format!(
            "{} was {}: {}.\nKnown to be spent: {} USD before, {} USD now.\n",
            text(&answer["account"]),
            text(&answer["was"]),
            text(&answer["done"]),
            usd(&answer["charged_before_nanousd"]),
            usd(&answer["charged_nanousd"]),
        ),
    }
}

fn accounts(rows: &[Value]) -> String {
    let header = ["ACCOUNT", "LIMIT", "SPENT", "HELD", "DEBT", "CREDITED", "LEFT", "RESETS AT", "FORECAST"];
    let cells = |row: &Value| {
        let account = text(&row["account"]);
        let damaged = row["damaged"] == json!(true);
        vec![
            if damaged { format!("{account} (damaged)") } else { account },
            usd(&row["limit_nanousd"]),
            usd(&row["charged_nanousd"]),
            usd(&row["held_nanousd"]),
            usd(&row["debt_nanousd"]),
            usd(&row["credited_nanousd"]),
            usd(&row["left_nanousd"]),
            text(&row["resets_at"]),
            usd(&row["forecast_nanousd"]),
        ]
    };
    table(&header, rows.iter().map(cells).collect())
}

fn budget(answer: &Value) -> String {
    let mut said = String::new();
    let none = Vec::new();
    let rows = |value: &'_ Value| value.as_array().cloned().unwrap_or_default();
    for account in answer["accounts"].as_array().unwrap_or(&none) {
        said += &accounts(std::slice::from_ref(account));
        for field in rows(&account["unreadable"]) {
            said += &format!("  cannot be read: {}\n", text(&field));
        }
        let header = ["  GATEWAY", "GRANTED", "RETURNED", "SPENT", "DEBT", "HELD", "LAST SEEN", "STATE"];
        let gateways = rows(&account["gateways"]);
        if !gateways.is_empty() {
            said += &table(&header, gateways.iter().map(gateway_cells).collect());
        }
        for credit in rows(&account["credits"]) {
            let (credit_id, amount) = (text(&credit["credit"]), usd(&credit["amount_nanousd"]));
            said += &format!("  credit {credit_id}: {amount} USD{}\n", noted(&credit["noted"]));
        }
        said.push('\n');
    }
    if said.is_empty() {
        said = "No account yet: nothing was spent.\n".to_owned();
    }
    if let Some(next) = answer["next"].as_str() {
        said += &format!("There are more, after {next}: GET /api/budgets/NAME?after=…\n");
    }
    said
}

fn gateway_cells(row: &Value) -> Vec<String> {
    let state = match (row["open"] == json!(true), row["reclaimed"].is_object()) {
        (_, true) => format!("reclaimed{}", noted(&row["reclaimed"])),
        (true, false) => "open".to_owned(),
        (false, false) => "closed".to_owned(),
    };
    vec![
        format!("  {}", text(&row["gateway"])),
        usd(&row["granted_nanousd"]),
        usd(&row["returned_nanousd"]),
        usd(&row["charged_nanousd"]),
        usd(&row["debt_nanousd"]),
        usd(&row["held_nanousd"]),
        text(&row["last_seen"]),
        state,
    ]
}

fn noted(note: &Value) -> String {
    match note.as_object() {
        Some(note) => format!(", {} by {}: {}", text(&note["at"]), text(&note["by"]), text(&note["reason"])),
        None => String::new(),
    }
}

fn reclaimed(answer: &Value) -> String {
    let none = Vec::new();
    let rows = answer["reclaimed"].as_array().unwrap_or(&none);
    if rows.is_empty() {
        return "Nothing to reclaim: this gateway has ended, or was reclaimed before.\n".to_owned();
    }
    let line = |row: &Value| {
        let (account, returned) = (text(&row["account"]), usd(&row["returned_nanousd"]));
        format!("{account}: {returned} USD are free again, {} USD stay spent.\n", usd(&row["charged_nanousd"]))
    };
    rows.iter().map(line).collect()
}

/// Dollars, or `-`.
fn usd(value: &Value) -> String {
    value.as_u64().map_or_else(|| "-".to_owned(), |amount| NanoUsd(amount).to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_is_a_table_with_amounts_to_the_right() {
        let row = |account: &str, spent: u64| {
            json!({"account": account, "limit_nanousd": 5_000_000_000u64, "charged_nanousd": spent, "held_nanousd": 0,
                "debt_nanousd": 0, "credited_nanousd": 0, "left_nanousd": 5_000_000_000u64 - spent,
                "resets_at": "2026-12-01T00:00:00Z", "forecast_nanousd": null, "damaged": spent == 0})
        };
        let said = in_words(&json!([row("a/all/2026-11", 12_345_000), row("long\u{1b}/all/2026-11", 0)]));
        let lines: Vec<&str> = said.lines().collect();
        assert_eq!(
            lines[0],
            "ACCOUNT                      LIMIT     SPENT  HELD  DEBT  CREDITED      LEFT  RESETS AT             FORECAST"
        );
        assert_eq!(
            lines[1],
            "a/all/2026-11                 5.00  0.012345  0.00  0.00      0.00  4.987655  2026-12-01T00:00:00Z  -"
        );
        assert!(lines[2].starts_with("long\u{fffd}/all/2026-11 (damaged)   5.00      0.00"), "{}", lines[2]);
    }
}
