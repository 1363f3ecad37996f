//! The authority on Redis: one Lua function over one hash per account, so that many processes share strict limits.
//!
//! The function, `sync.lua`, does line by line what [`crate::ledger::account::sync`] does. Reports that are sent together go
//! out in one pipeline, in a Cluster in one to each node; each touches one key, so a Cluster is as good as a single server. Where `wait_replicas` is set, a
//! grant is passed on only once that many replicas have it: `WAIT` follows on the same connection, which nothing else uses.
//!
//! What Redis answers is checked, never trusted: numbers that cannot be are an error, not money.

mod advice;
mod birth;
pub mod claims;
mod cluster;
pub mod config;
mod connect;
pub mod limits;
mod nodes;
mod reply;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use futures_util::future::try_join_all;
use redis::{Cmd, Pipeline, RedisError, Script, Value};
use tokio::{
    sync::Mutex,
    time::{sleep_until, timeout},
};

use self::{
    birth::{Birth, Change},
    connect::Connection,
    nodes::Nodes,
};
use super::ports::{AccountSync, Answer, Authority, Held, StoreError, StoredAccount};
use crate::{
    ledger::{
        account::AccountState,
        sync::{Close, RowId, SyncReply},
    },
    wire::redis_url::{RedisUrl, Topology},
};

const SYNC: &str = include_str!("sync.lua");
/// Sets a field of an account that exists.
const NOTE: &str =
    "if #redis.call('HGETALL', KEYS[1]) > 0 then redis.call('HSET', KEYS[1], ARGV[1], ARGV[2]) end return 1";
/// Replaces a hash that is exactly as told: a count, so many names and values, and then the new ones.
const REPLACE: &str = "
local count, stored, fields = tonumber(ARGV[1]), {}, redis.call('HGETALL', KEYS[1])
if #fields ~= count then return 0 end
for at = 1, #fields, 2 do stored[fields[at]] = fields[at + 1] end
for at = 2, count, 2 do
  if stored[ARGV[at]] ~= ARGV[at + 1] then return 0 end
end
for name in pairs(stored) do redis.call('HDEL', KEYS[1], name) end
for at = count + 2, #ARGV, 2 do redis.call('HSET', KEYS[1], ARGV[at], ARGV[at + 1]) end
return 1";
/// All of a flight: connecting, the reports, and waiting for replicas. Shorter than what the purses wait for a store.
const FLIGHT_TIMEOUT: Duration = Duration::from_millis(800);
/// All of a listing's page.
const LISTING_TIMEOUT: Duration = Duration::from_secs(10);
/// Connecting for the first time.
const START_TIMEOUT: Duration = Duration::from_secs(5);
/// How long replicas may take to have a grant.
const WAIT_MS: u64 = 200;
/// Holders hear of a replaced server within the time a flight may hang and three sync intervals.
const LEARN_MIN_MS: u64 = 1000;
/// Keys that one SCAN step looks at.
const SCAN_COUNT: usize = 1000;
/// Accounts that are read together for a listing.
const READ_MAX: usize = 256;

/// An authority on Redis.
pub struct Redis {
    url: RedisUrl,
    script: Script,
    wait_replicas: u32,
    learn_ms: u64,
    /// One flight at a time, on a connection of its own: `WAIT` holds up whatever shares it.
    reports: Mutex<Line>,
    /// Where the reports to a Cluster go, in place of that connection.
    nodes: Option<Nodes>,
    listings: Mutex<Option<Connection>>,
    replicas_up: AtomicBool,
    /// Accounts that could not be read when they were last reported to.
    damaged: std::sync::Mutex<BTreeSet<Arc<str>>>,
}

/// Where reports go.
#[derive(Default)]
struct Line {
    connection: Option<Connection>,
    birth: Option<Birth>,
}

impl std::fmt::Debug for Redis {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Redis")
            .field("url", &self.url)
            .field("wait_replicas", &self.wait_replicas)
            .finish_non_exhaustive()
    }
}

impl Redis {
    /// Connects, and logs what the server lacks to keep money: eviction, persistence, version. Where the server holds nothing
    /// yet, this takes as long as it listens to other processes, which may know better.
    ///
    /// `sync` is the interval of reports. A grant is usable once `wait_replicas` replicas have it.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`] when the server cannot be reached or refuses the login.
    pub async fn open(url: RedisUrl, wait_replicas: u32, sync: Duration) -> Result<Redis, StoreError> {
        let sync_ms = u64::try_from(sync.as_millis()).unwrap_or(u64::MAX);
        let store = Redis {
            script: Script::new(SYNC),
            wait_replicas,
            learn_ms: LEARN_MIN_MS.saturating_add(sync_ms.saturating_mul(3)),
            reports: Mutex::default(),
            nodes: (url.topology == Topology::Cluster).then(|| Nodes::new(&url)),
            listings: Mutex::default(),
            replicas_up: AtomicBool::new(true),
            damaged: std::sync::Mutex::default(),
            url,
        };
        // Boxed: once per process, and else room in the future of all that begins it.
        Box::pin(store.look_around()).await?;
        Ok(store)
    }

    /// The first conversation: whether the login may do what is needed, and what the server says of itself.
    async fn look_around(&self) -> Result<(), StoreError> {
        let talk = async {
            let mut connection = Connection::open(&self.url, START_TIMEOUT).await?;
            let mut facts = Vec::new();
            for slot in connection.slots().await? {
                let info = connection.ask(&redis::cmd("INFO"), slot).await?.extract_error()?;
                facts.push(redis::from_redis_value::<String>(info)?);
            }
            Ok((connection, facts))
        };
        let (mut connection, facts) = self.within(START_TIMEOUT, talk).await?;
        let advice: BTreeSet<String> = facts.iter().flat_map(|info| advice::advice(info, self.wait_replicas)).collect();
        for line in advice {
            tracing::warn!(store = %self.url, "{line}");
        }
        let mark = self.mark();
        let birth = self.within(START_TIMEOUT, Birth::read(&mut connection, &mark, self.learn_ms)).await?;
        if birth.is_young() {
            tracing::info!(store = %self.url, "an empty store, or one that was restarted: listening to other gateways before serving");
            sleep_until(birth.of_age_at()).await;
        }
        *self.reports.lock().await = Line { connection: Some(connection), birth: Some(birth) };
        Ok(())
    }

    async fn report(&self, requests: &[AccountSync]) -> Result<Vec<Result<SyncReply, StoreError>>, StoreError> {
        let Some(nodes) = &self.nodes else {
            return Ok(self.fly(requests, Clock::Server).await?.into_iter().map(Ok).collect());
        };
        self.fly_apart(nodes, &mut self.reports.lock().await.birth, requests).await
    }

    /// The reports' answers, in their order: all of them or none.
    async fn fly(&self, requests: &[AccountSync], clock: Clock<'_>) -> Result<Vec<SyncReply>, StoreError> {
        let mut place = self.reports.lock().await;
        // A flight that fails or is given up loses its connection, not what is known of the store.
        let known = place.connection.take();
        let birth = &mut place.birth;
        let flight = async {
            let mut connection = match known {
                Some(connection) => connection,
                None => Connection::open(&self.url, FLIGHT_TIMEOUT).await?,
            };
            let wiped = match clock {
                Clock::Server => self.was_wiped(&mut connection, birth, requests).await?,
                Clock::Given { wiped, .. } => wiped,
            };
            let answers = self.carry(&mut connection, requests, &Facts { wiped, clock }).await?;
            Ok((connection, answers))
        };
        let (connection, answers) = self.within(FLIGHT_TIMEOUT, flight).await?;
        if !answers.is_empty() {
            self.note_replicas(answers.iter().all(|answer| answer.acknowledged));
        }
        let replies: Result<_, StoreError> =
            requests.iter().zip(&answers).map(|(sync, answer)| self.read(sync, answer)).collect();
        place.connection = Some(connection);
        replies
    }

    /// Whether accounts that these reports make may have been lost: asked only where one may be made.
    async fn was_wiped(
        &self,
        connection: &mut Connection,
        birth: &mut Option<Birth>,
        requests: &[AccountSync],
    ) -> Result<bool, RedisError> {
        if requests.iter().all(|sync| !sync.request.create) {
            return Ok(false);
        }
        let read = Birth::read(connection, &self.mark(), self.learn_ms).await?;
        match birth.as_ref().map_or(Change::None, |known| read.since(known)) {
            Change::None => {}
            Change::Server => tracing::warn!(
                store = %self.url,
                "another server answers, or it was restarted; accounts that it does not know listen to their holders first"
            ),
            Change::Lost => tracing::error!(
                store = %self.url,
                "the store lost what it held; accounts listen to their holders before they grant"
            ),
        }
        Ok(birth.insert(read).is_young())
    }

    /// Sends all reports in one pipeline to one server.
    async fn carry(
        &self,
        connection: &mut Connection,
        requests: &[AccountSync],
        facts: &Facts<'_>,
    ) -> Result<Vec<Answered>, RedisError> {
        if requests.is_empty() {
            // A greeting that any user may use; to connect is not enough, since a stopped server's system does it for it.
            connection.ask(&redis::cmd("TIME"), 0).await?.extract_error()?;
            return Ok(Vec::new());
        }
        self.carry_together(connection, requests, facts).await?.into_iter().collect()
    }

    async fn carry_together(
        &self,
        connection: &mut Connection,
        requests: &[AccountSync],
        facts: &Facts<'_>,
    ) -> Result<Vec<Result<Answered, RedisError>>, RedisError> {
        let Some(first) = requests.first() else { return Ok(Vec::new()) };
        let key = self.key(&first.account);
        let mut answers = connection.send(&self.pipeline(requests, facts, false), &key).await?;
        if answers.iter().any(is_unknown_script) {
            // A server that was restarted, or a node that never saw it. Sending again is harmless, since all is totals.
            answers = connection.send(&self.pipeline(requests, facts, true), &key).await?;
        }
        self.answered(answers)
    }

    /// What the function said to each report, and, where replicas count, whether they have it.
    fn answered(&self, mut answers: Vec<Value>) -> Result<Vec<Result<Answered, RedisError>>, RedisError> {
        let acknowledged = match self.wait_replicas {
            0 => true,
            wanted => {
                let replicas: u64 = redis::from_redis_value(answers.pop().unwrap_or_default().extract_error()?)?;
                replicas >= u64::from(wanted)
            }
        };
        let answered =
            |value: Value| Ok(Answered { text: redis::from_redis_value(value.extract_error()?)?, acknowledged });
        Ok(answers.into_iter().map(answered).collect())
    }

    /// The reports' calls and, where replicas count, the wait for them: on the same connection, or it would wait for nothing.
    fn pipeline(&self, requests: &[AccountSync], facts: &Facts<'_>, with_source: bool) -> Pipeline {
        let mut pipeline = Pipeline::with_capacity(requests.len() + 1);
        for (index, request) in requests.iter().enumerate() {
            // Once evaluated, it is known by its hash.
            let (command, script) =
                if with_source && index == 0 { ("EVAL", SYNC) } else { ("EVALSHA", self.script.get_hash()) };
            pipeline.add_command(self.call(command, script, request, facts));
        }
        if self.wait_replicas > 0 {
            self.add_wait(&mut pipeline);
        }
        pipeline
    }

    fn add_wait(&self, pipeline: &mut Pipeline) {
        pipeline.cmd("WAIT").arg(self.wait_replicas).arg(WAIT_MS);
    }

    fn call(&self, command: &str, script: &str, sync: &AccountSync, facts: &Facts<'_>) -> Cmd {
        let request = &sync.request;
        let totals = request.totals;
        let close = match request.close {
            Some(Close::Settled) => "settled",
            Some(Close::Forfeited) => "forfeited",
            Some(Close::Reclaimed) => "reclaimed",
            None => "",
        };
        let mut call = redis::cmd(command);
        call.arg(script).arg(1).arg(self.key(&sync.account)).arg(request.row.to_string());
        call.arg(totals.granted).arg(totals.returned).arg(totals.charged).arg(totals.debt);
        call.arg(request.need).arg(request.target).arg(request.limit).arg(request.limit_version);
        call.arg(u8::from(request.create)).arg(close).arg(self.learn_ms).arg(u8::from(facts.wiped));
        if let Clock::Given { now_ms, run, .. } = facts.clock {
            call.arg(now_ms).arg(run);
        }
        call
    }

    fn read(&self, sync: &AccountSync, answer: &Answered) -> Result<SyncReply, StoreError> {
        let reply = reply::parse(&answer.text)
            .ok_or_else(|| StoreError::Damaged(format!("{} answered what cannot be: is it the ledger's?", self.url)))?;
        self.note_damage(&sync.account, reply == reply::Reply::Damaged);
        Ok(reply.for_purse(&sync.request, answer.acknowledged))
    }

    /// One line per account that becomes unreadable.
    fn note_damage(&self, account: &Arc<str>, is_damaged: bool) {
        let mut damaged = self.damaged.lock().unwrap_or_else(PoisonError::into_inner);
        if !is_damaged {
            damaged.remove(account);
        } else if damaged.insert(account.clone()) {
            tracing::error!(%account, "an account in Redis cannot be read; its calls are refused until it is rebuilt");
        }
    }

    /// One line per change of state.
    fn note_replicas(&self, acknowledged: bool) {
        let were_up = self.replicas_up.swap(acknowledged, Ordering::Relaxed);
        match (were_up, acknowledged) {
            (true, false) => tracing::error!(
                wait_replicas = self.wait_replicas,
                "too few Redis replicas confirm grants in time; purses go on and get nothing new"
            ),
            (false, true) => tracing::info!("enough Redis replicas confirm grants again"),
            _ => {}
        }
    }

    /// The account's key. Its hash tag is all of the account's name, in which nothing can end it early.
    fn key(&self, account: &str) -> String {
        format!("{}account:{{{}}}", self.url.prefix, reply::escape(account))
    }

    /// The key of the store's mark.
    fn mark(&self) -> String {
        format!("{}store", self.url.prefix)
    }

    /// The smallest accounts after `after`, with what is stored of them.
    async fn list(&self, after: Option<&str>, count_max: usize) -> Result<Vec<StoredAccount>, StoreError> {
        self.aside(async |connection| {
            let names = self.names(connection, after, count_max).await?;
            self.contents(connection, &names).await
        })
        .await
    }

    /// What is not on the way of calls has a connection of its own.
    async fn aside<T>(
        &self,
        work: impl AsyncFnOnce(&mut Connection) -> Result<T, RedisError>,
    ) -> Result<T, StoreError> {
        let mut place = self.listings.lock().await;
        let known = place.take();
        let working = async {
            let mut connection = match known {
                Some(connection) => connection,
                None => Connection::open(&self.url, FLIGHT_TIMEOUT).await?,
            };
            let done = work(&mut connection).await?;
            Ok((connection, done))
        };
        let (connection, done) = self.within(LISTING_TIMEOUT, working).await?;
        *place = Some(connection);
        Ok(done)
    }

    /// One command for one account.
    async fn tell(&self, account: &str, command: Cmd) -> Result<Value, StoreError> {
        let key = self.key(account);
        let mut pipeline = Pipeline::with_capacity(1);
        pipeline.add_command(command);
        self.aside(async |connection| {
            let answer = connection.send(&pipeline, &key).await?.pop().unwrap_or_default();
            answer.extract_error()
        })
        .await
    }

    async fn find(&self, account: &str) -> Result<Held, StoreError> {
        let mut all = redis::cmd("HGETALL");
        all.arg(self.key(account));
        let fields = redis::from_redis_value(self.tell(account, all).await?);
        fields.map(reply::held).map_err(|error| StoreError::Damaged(format!("{}: {error}", self.url)))
    }

    async fn put(
        &self,
        account: &str,
        replaced: &BTreeMap<String, String>,
        state: &AccountState,
    ) -> Result<bool, StoreError> {
        let mut replace = redis::cmd("EVAL");
        replace.arg(REPLACE).arg(1).arg(self.key(account)).arg(2 * replaced.len());
        for (name, text) in replaced.iter().chain(&reply::rebuilt(state, replaced)) {
            replace.arg(name).arg(text);
        }
        Ok(self.tell(account, replace).await? == Value::Int(1))
    }

    /// Goes through all keys: Redis has no order to begin in the middle of.
    async fn names(
        &self,
        connection: &mut Connection,
        after: Option<&str>,
        count_max: usize,
    ) -> Result<BTreeSet<String>, RedisError> {
        let start = format!("{}account:{{", self.url.prefix);
        let mut names = BTreeSet::new();
        for slot in connection.slots().await? {
            let mut cursor = 0u64;
            loop {
                let mut scan = redis::cmd("SCAN");
                scan.arg(cursor).arg("MATCH").arg(format!("{start}*")).arg("COUNT").arg(SCAN_COUNT);
                let step = connection.ask(&scan, slot).await?.extract_error()?;
                let (next, keys): (u64, Vec<String>) = redis::from_redis_value(step)?;
                let found = keys.iter().filter_map(|key| reply::unescape(key.strip_prefix(&start)?.strip_suffix('}')?));
                names.extend(found.filter(|name| after.is_none_or(|after| name.as_str() > after)));
                while names.len() > count_max {
                    names.pop_last();
                }
                cursor = next;
                if cursor == 0 {
                    break;
                }
            }
        }
        Ok(names)
    }

    async fn contents(
        &self,
        connection: &mut Connection,
        names: &BTreeSet<String>,
    ) -> Result<Vec<StoredAccount>, RedisError> {
        let mut accounts = Vec::with_capacity(names.len());
        for chunk in names.iter().collect::<Vec<_>>().chunks(READ_MAX) {
            let each = chunk.iter().map(|name| {
                let (mut connection, key) = (connection.clone(), self.key(name));
                async move {
                    let mut pipeline = Pipeline::with_capacity(1);
                    pipeline.cmd("HGETALL").arg(&key);
                    let answer = connection.send(&pipeline, &key).await?.pop().unwrap_or_default();
                    redis::from_redis_value::<BTreeMap<String, String>>(answer.extract_error()?)
                        .map_err(RedisError::from)
                }
            });
            let stored = try_join_all(each).await?;
            accounts.extend(chunk.iter().zip(stored).filter_map(|(name, fields)| match reply::held(fields) {
                Held::Missing => None,
                Held::Whole(state, _) => Some(stored_account(name, &state, false)),
                Held::Damaged(damaged) => Some(stored_account(name, &damaged.readable, true)),
            }));
        }
        Ok(accounts)
    }

    fn unavailable(&self, error: &RedisError) -> StoreError {
        unavailable(&self.url, error)
    }

    async fn within<T>(
        &self,
        limit: Duration,
        work: impl Future<Output = Result<T, RedisError>>,
    ) -> Result<T, StoreError> {
        within(&self.url, limit, work).await
    }
}

/// A conversation with the servers at `url`, given up after `limit`. Errors name the servers and never the password.
async fn within<T>(
    url: &RedisUrl,
    limit: Duration,
    work: impl Future<Output = Result<T, RedisError>>,
) -> Result<T, StoreError> {
    match timeout(limit, work).await {
        Ok(done) => done.map_err(|error| unavailable(url, &error)),
        Err(_) => {
            let waited_ms = limit.as_millis();
            Err(StoreError::Unavailable(format!("{url}: no answer within {waited_ms} ms")))
        }
    }
}

impl Authority for Redis {
    fn sync(&self, requests: Vec<AccountSync>) -> Answer<'_, Vec<Result<SyncReply, StoreError>>> {
        Box::pin(async move { self.report(&requests).await })
    }

    fn is_whole(&self) -> bool {
        self.nodes.as_ref().is_none_or(Nodes::are_whole)
    }

    fn accounts(&self, after: Option<Arc<str>>, count_max: usize) -> Answer<'_, Vec<StoredAccount>> {
        Box::pin(async move { self.list(after.as_deref(), count_max).await })
    }

    fn look_up(&self, account: Arc<str>) -> Answer<'_, Held> {
        Box::pin(async move { self.find(&account).await })
    }

    fn note(&self, account: Arc<str>, row: RowId, text: String) -> Answer<'_, ()> {
        let mut note = redis::cmd("EVAL");
        note.arg(NOTE).arg(1).arg(self.key(&account)).arg(reply::note_field(row)).arg(text);
        Box::pin(async move { self.tell(&account, note).await.map(drop) })
    }

    fn replace(&self, account: Arc<str>, damaged: BTreeMap<String, String>, state: AccountState) -> Answer<'_, bool> {
        Box::pin(async move { self.put(&account, &damaged, &state).await })
    }
}

fn unavailable(url: &RedisUrl, error: &RedisError) -> StoreError {
    StoreError::Unavailable(format!("{url}: {}", explained(error)))
}

/// An error, with its mend where that is not plain.
fn explained(error: &RedisError) -> String {
    let text = error.to_string();
    match text.contains("invalid peer certificate") {
        true => format!("{text}; SSL_CERT_FILE names the certificates of the authorities to trust"),
        false => text,
    }
}

/// What the function is told besides the report.
struct Facts<'a> {
    /// Missing accounts may have been lost.
    wiped: bool,
    clock: Clock<'a>,
}

/// Whose clock and run id an account goes by.
#[derive(Clone, Copy)]
enum Clock<'a> {
    /// The server's own.
    Server,
    /// These: for comparing with the model.
    #[cfg_attr(not(test), expect(dead_code, reason = "only tests stop the clock"))]
    Given { now_ms: u64, run: &'a str, wiped: bool },
}

/// What the function said to one report.
struct Answered {
    text: String,
    /// Whether enough replicas have what it wrote.
    acknowledged: bool,
}

fn is_unknown_script(answer: &Value) -> bool {
    matches!(answer, Value::ServerError(error) if error.code() == "NOSCRIPT")
}

fn stored_account(name: &str, state: &AccountState, damaged: bool) -> StoredAccount {
    StoredAccount {
        account: name.into(),
        limit: state.limit,
        held: state.held(),
        charged: state.charged(),
        debt: state.debt(),
        credited: state.credited(),
        damaged,
    }
}

#[cfg(test)]
mod tests;
