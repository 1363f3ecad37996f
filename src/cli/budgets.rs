//! `tollgate budgets`: what was spent and what is left, and what an operator may do about it.
//!
//! Asks the running gateway's admin API; with `--offline`, the store itself. Both say the same.

use std::{io::Write, path::PathBuf, sync::Arc, time::Duration};

use anyhow::{Context, anyhow, bail};
use bytes::Bytes;
use clap::{Args, Subcommand};
use http::{Method, Request, StatusCode, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper_rustls::HttpsConnectorBuilder;
use hyper_util::{client::legacy::Client, rt::TokioExecutor};
use jiff::Timestamp;
use serde::Serialize;
use serde_json::{Value, json};

use super::{FAILED, UNREACHABLE, WRONG};
use crate::{
    admin::{
        books::{Books, CreditRequest, RebuildRequest, ReclaimRequest, Refusal},
        guard::ACTOR_HEADER,
    },
    config::{self, ConfigError, Loaded, Snapshot, snapshot::Store},
    store::{
        DataDir,
        audit::Audit,
        embedded::Embedded,
        ports::{Authority, StoreError},
        redis::Redis,
    },
    units::NanoUsd,
};

/// Where a gateway with default listeners answers.
const DEFAULT_URL: &str = "http://127.0.0.1:9090";
/// All of one question to a gateway.
const TIMEOUT: Duration = Duration::from_secs(30);
/// The longest answer that is read.
const ANSWER_BYTES_MAX: usize = 64 << 20;
/// Accounts of one page.
const PAGE: usize = 1000;

/// What to do with budgets, and whom to ask.
#[derive(Debug, Args)]
pub struct BudgetsArguments {
    /// Configuration that says where the gateway or its store is; default as for `serve`
    #[arg(long, value_name = "FILE", global = true)]
    config: Option<PathBuf>,
    /// The gateway's admin listener, instead of the configuration's
    #[arg(long, value_name = "URL", global = true, env = "TOLLGATE_ADMIN_URL")]
    url: Option<String>,
    /// The admin token, instead of the configuration's
    #[arg(long, value_name = "TOKEN", global = true, env = "TOLLGATE_ADMIN_TOKEN", hide_env_values = true)]
    token: Option<String>,
    /// Ask the store itself: Redis, or the data_dir of a gateway that is stopped
    #[arg(long, global = true, conflicts_with = "url")]
    offline: bool,
    /// As JSON
    #[arg(long, global = true)]
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

/// Why it was not done, and the exit code that says so.
#[derive(Debug)]
pub struct Failure {
    /// In words.
    pub error: anyhow::Error,
    /// 1 refused as things stand, 2 wrong use, 3 not reached.
    pub code: u8,
}

impl From<anyhow::Error> for Failure {
    fn from(error: anyhow::Error) -> Failure {
        Failure { error, code: WRONG }
    }
}

/// Runs the command.
///
/// # Errors
/// When nobody answers, or the answer is no.
pub async fn run(arguments: &BudgetsArguments, out: &mut impl Write) -> Result<(), Failure> {
    let books = if arguments.offline { offline(arguments).await? } else { Source::Gateway(gateway(arguments)?) };
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
    let written = if arguments.json { writeln!(out, "{answer}") } else { write!(out, "{}", in_words(&answer)) };
    // A reader such as `head` has seen enough.
    written.or_else(|error| if error.kind() == std::io::ErrorKind::BrokenPipe { Ok(()) } else { Err(error) })?;
    Ok(())
}

impl From<std::io::Error> for Failure {
    fn from(error: std::io::Error) -> Failure {
        Failure { error: error.into(), code: FAILED }
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
            Source::Gateway(gateway) => gateway.list().await,
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
            Source::Gateway(gateway) => gateway.post(budget, "reclaim", request, None).await,
            Source::Store(store) => told(store.books().reclaim(budget, request, &store.actor).await),
        }
    }

    async fn credit(&self, budget: &str, request: &CreditRequest, key: &str) -> Result<Value, Failure> {
        match self {
            Source::Gateway(gateway) => gateway.post(budget, "credit", request, Some(key)).await,
            Source::Store(store) => told(store.books().credit(budget, request, key, &store.actor).await),
        }
    }

    async fn rebuild(&self, budget: &str, request: &RebuildRequest) -> Result<Value, Failure> {
        match self {
            Source::Gateway(gateway) => gateway.post(budget, "rebuild", request, None).await,
            Source::Store(store) => told(store.books().rebuild(budget, request, &store.actor).await),
        }
    }
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

pub(super) fn user() -> Option<String> {
    std::env::var("USER").ok().filter(|user| !user.is_empty() && user.bytes().all(|byte| byte.is_ascii_graphic()))
}

// === the store itself ===

struct Offline {
    authority: Arc<dyn Authority>,
    audit: Audit,
    snapshot: Snapshot,
    actor: String,
}

async fn offline(arguments: &BudgetsArguments) -> Result<Source, Failure> {
    let snapshot = config::load(arguments.config.as_deref()).map_err(anyhow::Error::from)?.snapshot;
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

// === a running gateway ===

struct Gateway {
    base: String,
    token: Option<String>,
}

/// The gateway that the arguments name, or else the configuration's.
fn gateway(arguments: &BudgetsArguments) -> Result<Gateway, Failure> {
    let typed = arguments.token.clone().filter(|token| !token.is_empty());
    if let Some(url) = &arguments.url {
        return Ok(Gateway { base: url.trim_end_matches('/').to_owned(), token: typed });
    }
    let snapshot = match config::load(arguments.config.as_deref()) {
        Ok(Loaded { snapshot, .. }) => snapshot,
        Err(ConfigError::NothingConfigured) => return Ok(Gateway { base: DEFAULT_URL.to_owned(), token: typed }),
        Err(error) => return Err(anyhow!(error).into()),
    };
    let mut address = snapshot.server.admin;
    if address.ip().is_unspecified() {
        address.set_ip(if address.is_ipv4() { [127, 0, 0, 1].into() } else { std::net::Ipv6Addr::LOCALHOST.into() });
    }
    let configured = snapshot.server.admin_token.as_ref().map(|token| token.expose().to_owned());
    Ok(Gateway { base: format!("http://{address}"), token: typed.or(configured) })
}

impl Gateway {
    /// All pages of the list.
    async fn list(&self) -> Result<Value, Failure> {
        let (mut all, mut next) = (Vec::new(), Some(format!("/api/budgets?limit={PAGE}")));
        while let Some(path) = next {
            let (page, link) = self.get(&path).await?;
            let Value::Array(rows) = page else { return Err(anyhow!("{} is no gateway", self.base).into()) };
            all.extend(rows);
            next = link.and_then(|link| Some(link.strip_prefix('<')?.split_once(">; rel=\"next\"")?.0.to_owned()));
        }
        Ok(Value::Array(all))
    }

    async fn get(&self, path: &str) -> Result<(Value, Option<String>), Failure> {
        self.ask(self.request(Method::GET, path).body(Full::default())).await
    }

    async fn post(
        &self,
        budget: &str,
        what: &str,
        request: &impl Serialize,
        key: Option<&str>,
    ) -> Result<Value, Failure> {
        let path = format!("/api/budgets/{}/{what}", encoded(budget));
        let mut asked = self.request(Method::POST, &path).header(header::CONTENT_TYPE, "application/json");
        if let Some(user) = user() {
            asked = asked.header(ACTOR_HEADER, user);
        }
        if let Some(key) = key {
            asked = asked.header("idempotency-key", key);
        }
        let body = serde_json::to_vec(request).context("the request cannot be written")?;
        self.ask(asked.body(Full::from(body))).await.map(|(answer, _)| answer)
    }

    fn request(&self, method: Method, path: &str) -> http::request::Builder {
        let request = Request::builder().method(method).uri(format!("{}{path}", self.base));
        match &self.token {
            Some(token) => request.header(header::AUTHORIZATION, format!("Bearer {token}")),
            None => request,
        }
    }

    /// The answer and its `Link`.
    async fn ask(&self, request: http::Result<Request<Full<Bytes>>>) -> Result<(Value, Option<String>), Failure> {
        let request = request.with_context(|| format!("`{}` is no URL", self.base))?;
        let exchange = tokio::time::timeout(TIMEOUT, exchange(request));
        let answer = exchange.await.unwrap_or_else(|_| Err(anyhow!("no answer within {} s", TIMEOUT.as_secs())));
        let unreachable = |error: anyhow::Error| {
            let what = format!("{} cannot be reached; is it running? (--url, --offline)", self.base);
            Failure { error: error.context(what), code: UNREACHABLE }
        };
        let (status, link, body) = answer.map_err(unreachable)?;
        let answer: Value = serde_json::from_slice(&body).unwrap_or_default();
        if status.is_success() {
            return Ok((answer, link));
        }
        let why = answer["detail"].as_str().map_or_else(|| format!("{} answered {status}", self.base), str::to_owned);
        let code = match status {
            StatusCode::CONFLICT => FAILED,
            status if status.is_server_error() => UNREACHABLE,
            _ => WRONG,
        };
        Err(Failure { error: anyhow!(why), code })
    }
}

async fn exchange(request: Request<Full<Bytes>>) -> anyhow::Result<(StatusCode, Option<String>, Bytes)> {
    let provider = rustls::crypto::aws_lc_rs::default_provider();
    let response = match request.uri().scheme_str() {
        Some("http") => Client::builder(TokioExecutor::new()).build_http().request(request).await?,
        Some("https") => {
            let tls = HttpsConnectorBuilder::new().with_provider_and_native_roots(provider)?;
            let connector = tls.https_only().enable_http1().build();
            Client::builder(TokioExecutor::new()).build(connector).request(request).await?
        }
        _ => bail!("the URL begins with neither http:// nor https://"),
    };
    let (head, body) = response.into_parts();
    let link = head.headers.get(header::LINK).and_then(|link| link.to_str().ok()).map(str::to_owned);
    let body = Limited::new(body, ANSWER_BYTES_MAX).collect().await.map_err(|error| anyhow!(error))?;
    Ok((head.status, link, body.to_bytes()))
}

/// For a path: only what RFC 3986 calls unreserved stays as it is.
fn encoded(text: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~".contains(&byte);
    text.bytes().map(|byte| if plain(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") }).collect()
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

/// Columns of equal width; amounts, which begin with a digit, to the right.
fn table(header: &[&str], rows: Vec<Vec<String>>) -> String {
    let header: Vec<String> = header.iter().map(|&name| name.to_owned()).collect();
    let is_amount =
        |cell: &str| cell.starts_with(|c: char| c.is_ascii_digit()) && cell.contains('.') && !cell.contains(':');
    let lines: Vec<Vec<String>> = std::iter::once(header).chain(rows).collect();
    let columns = lines.first().map_or(0, Vec::len);
    let width = |column: usize| lines.iter().map(|line| line[column].chars().count()).max().unwrap_or(0);
    let right = |column: usize| lines.iter().skip(1).any(|line| is_amount(&line[column]));
    let layout: Vec<(usize, bool)> = (0..columns).map(|column| (width(column), right(column))).collect();
    let padded = |line: &Vec<String>| {
        let cells = line.iter().zip(&layout).map(|(cell, &(width, right))| match right {
            true => format!("{cell:>width$}"),
            false => format!("{cell:width$}"),
        });
        cells.collect::<Vec<_>>().join("  ").trim_end().to_owned() + "\n"
    };
    lines.iter().map(padded).collect()
}

/// Dollars, or `-`.
fn usd(value: &Value) -> String {
    value.as_u64().map_or_else(|| "-".to_owned(), |amount| NanoUsd(amount).to_string())
}

/// A text without control characters, which may come from whoever writes to the store; or `-`.
fn text(value: &Value) -> String {
    value.as_str().unwrap_or("-").chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
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
