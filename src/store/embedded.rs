//! The authority in a local file: SQLite on a thread of its own.
//!
//! Requests that are waiting go into one transaction together (WAL, `synchronous=FULL`), so the cost of making a grant
//! durable is shared by all calls that wait for one. A report without news writes nothing. What an account does is the same
//! pure function as everywhere: [`account::sync`].

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, mpsc},
    thread::JoinHandle,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use rusqlite::{Connection, ErrorCode, OptionalExtension, Transaction, params};
use tokio::sync::oneshot;

use super::{
    DataDir,
    ports::{AccountSync, Answer, Authority, Held, StoreError, StoredAccount},
    private_file,
};
use crate::ledger::{
    account::{self, AccountState, Row, Server, Starving},
    sync::{RowId, SyncReply, Totals},
};

/// Jobs that may wait for the thread; further ones are refused at once.
const QUEUE_MAX: usize = 1024;
/// Jobs in one transaction.
const BATCH_MAX: usize = 256;
/// This store is never replaced by one that missed writes, so nobody learns; the field is there for stores that can be.
const RUN: &str = "embedded";

const SCHEMA: &str = "
    CREATE TABLE IF NOT EXISTS account (
        key TEXT PRIMARY KEY,
        limit_nano_usd INTEGER NOT NULL,
        limit_version INTEGER NOT NULL,
        run TEXT NOT NULL,
        learn_until_ms INTEGER NOT NULL,
        starving_row TEXT,
        starving_lacking INTEGER,
        starving_until_ms INTEGER,
        archived_charged INTEGER NOT NULL,
        archived_debt INTEGER NOT NULL
    ) STRICT, WITHOUT ROWID;
    CREATE TABLE IF NOT EXISTS purse (
        account TEXT NOT NULL,
        id TEXT NOT NULL,
        granted INTEGER NOT NULL,
        returned INTEGER NOT NULL,
        charged INTEGER NOT NULL,
        debt INTEGER NOT NULL,
        seen_ms INTEGER NOT NULL,
        closed_ms INTEGER,
        PRIMARY KEY (account, id)
    ) STRICT, WITHOUT ROWID;
    CREATE TABLE IF NOT EXISTS note (
        account TEXT NOT NULL,
        id TEXT NOT NULL,
        text TEXT NOT NULL,
        PRIMARY KEY (account, id)
    ) STRICT, WITHOUT ROWID;";

/// An authority in `ledger.db` of a data directory.
#[derive(Debug)]
pub struct Embedded {
    /// `None` once closed: the thread ends when all senders are gone.
    jobs: Mutex<Option<mpsc::SyncSender<Job>>>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

enum Job {
    Sync(Vec<AccountSync>, oneshot::Sender<Result<Vec<SyncReply>, StoreError>>),
    /// What is not on the way of calls.
    Other(Box<dyn FnOnce(&mut Connection) + Send>),
}

impl Embedded {
    /// Opens or creates the file and starts its thread, which keeps `dir` locked until it ends.
    ///
    /// # Errors
    /// When the file cannot be created or read, or is no ledger.
    pub fn open(dir: Arc<DataDir>) -> Result<Embedded, StoreError> {
        let path = dir.path().join("ledger.db");
        // SQLite would create it for everybody; its -wal and -shm files take the mode of this one.
        let unavailable = |error: std::io::Error| StoreError::Unavailable(format!("{}: {error}", path.display()));
        private_file().open(&path).map_err(unavailable)?;
        let connection = Connection::open(&path).map_err(|error| store_error(&error))?;
        prepare(&connection).map_err(|error| store_error(&error))?;
        let (jobs, queue) = mpsc::sync_channel(QUEUE_MAX);
        let work = move || {
            run(connection, &queue);
            drop(dir);
        };
        let thread = std::thread::Builder::new().name("tollgate-ledger".to_owned()).spawn(work).map_err(unavailable)?;
        Ok(Embedded { jobs: Mutex::new(Some(jobs)), thread: Mutex::new(Some(thread)) })
    }

    /// Has the thread do something that is not on the way of calls.
    fn ask<T: Send + 'static>(
        &self,
        question: impl FnOnce(&mut Connection) -> rusqlite::Result<T> + Send + 'static,
    ) -> Answer<'_, T> {
        let (reply, answer) = oneshot::channel();
        let sent = self.send(Job::Other(Box::new(move |connection| {
            // The one who asked may be gone; nothing is lost with the answer.
            let _gone = reply.send(question(connection).map_err(|error| store_error(&error)));
        })));
        Box::pin(async move { sent.and(answer.await.unwrap_or_else(|_| Err(thread_gone()))) })
    }

    fn send(&self, job: Job) -> Result<(), StoreError> {
        let jobs = self.jobs.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let closed = || StoreError::Unavailable("it is closed".to_owned());
        jobs.as_ref().ok_or_else(closed)?.try_send(job).map_err(|error| match error {
            mpsc::TrySendError::Full(_) => StoreError::Unavailable(format!("{QUEUE_MAX} requests wait already")),
            mpsc::TrySendError::Disconnected(_) => closed(),
        })
    }
}

/// Waits for the jobs that were sent, so that the file is closed and unlocked afterwards.
impl Drop for Embedded {
    fn drop(&mut self) {
        self.jobs.get_mut().unwrap_or_else(std::sync::PoisonError::into_inner).take();
        let thread = self.thread.get_mut().unwrap_or_else(std::sync::PoisonError::into_inner).take();
        if let Some(thread) = thread
            && thread.join().is_err()
        {
            tracing::error!("the ledger's thread panicked");
        }
    }
}

impl Authority for Embedded {
    fn sync(&self, requests: Vec<AccountSync>) -> Answer<'_, Vec<Result<SyncReply, StoreError>>> {
        let (reply, answer) = oneshot::channel();
        let sent = self.send(Job::Sync(requests, reply));
        Box::pin(async move {
            let replies = sent.and(answer.await.unwrap_or_else(|_| Err(thread_gone())))?;
            Ok(replies.into_iter().map(Ok).collect())
        })
    }

    fn accounts(&self, after: Option<Arc<str>>, count_max: usize) -> Answer<'_, Vec<StoredAccount>> {
        self.ask(move |connection| list(connection, after.as_deref(), count_max))
    }

    fn look_up(&self, account: Arc<str>) -> Answer<'_, Held> {
        self.ask(move |connection| {
            let state = load(connection, &account)?;
            let notes = notes(connection, &account)?;
            Ok(state.map_or(Held::Missing, |state| Held::Whole(state, notes)))
        })
    }

    fn note(&self, account: Arc<str>, row: RowId, text: String) -> Answer<'_, ()> {
        self.ask(move |connection| {
            let mut insert = connection.prepare_cached("INSERT OR REPLACE INTO note VALUES (?1, ?2, ?3)")?;
            insert.execute(params![&*account, row.to_string(), text]).map(drop)
        })
    }

    /// Columns are typed, so an account is there or is not: what is damaged is the file, and then it cannot be opened.
    fn replace(&self, account: Arc<str>, _damaged: BTreeMap<String, String>, state: AccountState) -> Answer<'_, bool> {
        self.ask(move |connection| {
            let transaction = connection.transaction()?;
            let missing = load(&transaction, &account)?.is_none();
            if missing {
                save(&transaction, &account, None, &state)?;
            }
            transaction.commit()?;
            Ok(missing)
        })
    }
}

fn thread_gone() -> StoreError {
    StoreError::Unavailable("its thread has ended".to_owned())
}

fn prepare(connection: &Connection) -> rusqlite::Result<()> {
    connection.busy_timeout(Duration::from_secs(1))?;
    connection.pragma_update(None, "journal_mode", "WAL")?;
    connection.pragma_update(None, "synchronous", "FULL")?;
    connection.execute_batch(SCHEMA)
}

/// The thread: takes what waits, answers it after one commit.
fn run(mut connection: Connection, queue: &mpsc::Receiver<Job>) {
    while let Ok(first) = queue.recv() {
        let mut batch = Vec::new();
        let jobs = std::iter::once(first).chain(queue.try_iter()).take(BATCH_MAX);
        for job in jobs {
            match job {
                Job::Sync(requests, reply) => batch.push((requests, reply)),
                Job::Other(work) => work(&mut connection),
            }
        }
        answer(&mut connection, batch);
    }
}

type Waiting = (Vec<AccountSync>, oneshot::Sender<Result<Vec<SyncReply>, StoreError>>);

fn answer(connection: &mut Connection, batch: Vec<Waiting>) {
    if batch.is_empty() {
        return;
    }
    let requests: Vec<&[AccountSync]> = batch.iter().map(|(requests, _)| requests.as_slice()).collect();
    match sync_all(connection, &requests, server(now_ms())).map_err(|error| store_error(&error)) {
        Ok(replies) => {
            for ((_, reply), answer) in batch.into_iter().zip(replies) {
                let _gone = reply.send(Ok(answer));
            }
        }
        Err(error) => {
            for (_, reply) in batch {
                let _gone = reply.send(Err(error.clone()));
            }
        }
    }
}

fn server(now_ms: u64) -> Server<'static> {
    Server { now_ms, run: RUN, learn_ms: 0, wiped: false }
}

/// All requests in one transaction; nothing took effect when it fails.
fn sync_all(
    connection: &mut Connection,
    batch: &[&[AccountSync]],
    server: Server<'_>,
) -> rusqlite::Result<Vec<Vec<SyncReply>>> {
    let transaction = connection.transaction()?;
    let mut replies = Vec::with_capacity(batch.len());
    for requests in batch {
        let each = requests.iter().map(|sync| sync_one(&transaction, sync, server));
        replies.push(each.collect::<rusqlite::Result<Vec<SyncReply>>>()?);
    }
    transaction.commit()?;
    Ok(replies)
}

fn sync_one(transaction: &Transaction<'_>, sync: &AccountSync, server: Server<'_>) -> rusqlite::Result<SyncReply> {
    let before = load(transaction, &sync.account)?;
    let mut after = before.clone();
    let reply = account::sync(&mut after, &sync.request, server);
    if let Some(after) = after.filter(|after| before.as_ref() != Some(after)) {
        save(transaction, &sync.account, before.as_ref(), &after)?;
    }
    Ok(reply)
}

fn load(connection: &Connection, key: &str) -> rusqlite::Result<Option<AccountState>> {
    let mut select = connection.prepare_cached(
        "SELECT limit_nano_usd, limit_version, run, learn_until_ms, starving_row, starving_lacking, starving_until_ms,
                archived_charged, archived_debt FROM account WHERE key = ?1",
    )?;
    let head = select.query_row([key], |row| {
        let starving: Option<String> = row.get(4)?;
        let starving = starving.and_then(|id| id.parse().ok());
        let amounts: Option<(u64, u64)> = row.get::<_, Option<u64>>(5)?.zip(row.get(6)?);
        Ok(AccountState {
            limit: row.get(0)?,
            limit_version: row.get(1)?,
            run: row.get(2)?,
            learn_until_ms: row.get(3)?,
            starving: starving.zip(amounts).map(|(row, (lacking, until_ms))| Starving { row, lacking, until_ms }),
            archived_charged: row.get(7)?,
            archived_debt: row.get(8)?,
            rows: BTreeMap::new(),
        })
    });
    let Some(mut state) = head.optional()? else { return Ok(None) };
    let mut select = connection.prepare_cached(
        "SELECT id, granted, returned, charged, debt, seen_ms, closed_ms FROM purse WHERE account = ?1",
    )?;
    let mut rows = select.query([key])?;
    while let Some(row) = rows.next()? {
        let text: String = row.get(0)?;
        let conversion = |error| rusqlite::Error::FromSqlConversionFailure(0, rusqlite::types::Type::Text, error);
        let id: RowId = text.parse().map_err(|error| conversion(Box::new(error)))?;
        let totals = Totals { granted: row.get(1)?, returned: row.get(2)?, charged: row.get(3)?, debt: row.get(4)? };
        state.rows.insert(id, Row { totals, seen_ms: row.get(5)?, closed_ms: row.get(6)? });
    }
    Ok(Some(state))
}

/// Writes what differs from `before`.
fn save(
    transaction: &Transaction<'_>,
    key: &str,
    before: Option<&AccountState>,
    after: &AccountState,
) -> rusqlite::Result<()> {
    let starving = after.starving.map(|starving| starving.row.to_string());
    transaction
        .prepare_cached("INSERT OR REPLACE INTO account VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10)")?
        .execute(params![
            key,
            after.limit,
            after.limit_version,
            after.run,
            after.learn_until_ms,
            starving,
            after.starving.map(|starving| starving.lacking),
            after.starving.map(|starving| starving.until_ms),
            after.archived_charged,
            after.archived_debt,
        ])?;
    let known = |id: &RowId| before.and_then(|before| before.rows.get(id));
    for (id, row) in after.rows.iter().filter(|(id, row)| known(id) != Some(row)) {
        let Totals { granted, returned, charged, debt } = row.totals;
        transaction
            .prepare_cached("INSERT OR REPLACE INTO purse VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)")?
            .execute(params![key, id.to_string(), granted, returned, charged, debt, row.seen_ms, row.closed_ms])?;
    }
    let gone = before.into_iter().flat_map(|before| before.rows.keys()).filter(|id| !after.rows.contains_key(id));
    for id in gone {
        let mut delete = transaction.prepare_cached("DELETE FROM purse WHERE account = ?1 AND id = ?2")?;
        delete.execute(params![key, id.to_string()])?;
    }
    Ok(())
}

fn list(connection: &Connection, after: Option<&str>, count_max: usize) -> rusqlite::Result<Vec<StoredAccount>> {
    let mut select = connection.prepare_cached(
        "SELECT key, limit_nano_usd,
                archived_charged + ifnull(sum(granted - returned), 0),
                archived_charged + ifnull(sum(charged), 0),
                archived_debt + ifnull(sum(debt), 0),
                ifnull(sum(returned) FILTER (WHERE id LIKE '%.4294967295'), 0)
         FROM account LEFT JOIN purse ON purse.account = account.key
         WHERE ?1 IS NULL OR key > ?1 GROUP BY key ORDER BY key LIMIT ?2",
    )?;
    let rows = select.query_map(params![after, i64::try_from(count_max).unwrap_or(i64::MAX)], |row| {
        let account: String = row.get(0)?;
        Ok(StoredAccount {
            account: account.into(),
            limit: row.get(1)?,
            held: row.get(2)?,
            charged: row.get(3)?,
            debt: row.get(4)?,
            credited: row.get(5)?,
            damaged: false,
        })
    })?;
    rows.collect()
}

fn notes(connection: &Connection, account: &str) -> rusqlite::Result<BTreeMap<RowId, String>> {
    let mut select = connection.prepare_cached("SELECT id, text FROM note WHERE account = ?1")?;
    let rows = select.query_map([account], |row| Ok((row.get::<_, String>(0)?, row.get(1)?)))?;
    let notes = rows.collect::<rusqlite::Result<Vec<(String, String)>>>()?;
    Ok(notes.into_iter().filter_map(|(id, text)| Some((id.parse().ok()?, text))).collect())
}

fn store_error(error: &rusqlite::Error) -> StoreError {
    match error.sqlite_error_code() {
        Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) => StoreError::Damaged(error.to_string()),
        Some(_) => StoreError::Unavailable(error.to_string()),
        None => StoreError::Damaged(error.to_string()),
    }
}

fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// The tables without the thread, for comparing with other authorities.
#[cfg(test)]
pub(super) struct Tables(Connection);

#[cfg(test)]
impl Tables {
    pub(super) fn new() -> Tables {
        let connection = Connection::open_in_memory().expect("memory");
        connection.execute_batch(SCHEMA).expect("a schema");
        Tables(connection)
    }

    pub(super) fn sync(&mut self, sync: &AccountSync, server: Server<'_>) -> SyncReply {
        let replies = sync_all(&mut self.0, &[std::slice::from_ref(sync)], server).expect("memory");
        replies[0][0]
    }

    pub(super) fn account(&self, key: &str) -> Option<AccountState> {
        load(&self.0, key).expect("memory")
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::ledger::sync::{Close, SyncRequest};

    fn request(row: u64, totals: Totals, target: u64) -> SyncRequest {
        let row = RowId { incarnation: row, purse: 0 };
        SyncRequest { row, totals, need: target, target, limit: 1000, limit_version: 1, create: true, close: None }
    }

    fn for_account(account: &str, request: SyncRequest) -> AccountSync {
        AccountSync { account: account.into(), request }
    }

    #[track_caller]
    fn granted(reply: SyncReply) -> u64 {
        match reply {
            SyncReply::Merged(merged) => merged.totals.granted,
            other => panic!("{other:?}"),
        }
    }

    #[tokio::test]
    async fn grants_survive_reopening() {
        let dir = tempfile::tempdir().unwrap();
        let open = || Embedded::open(Arc::new(DataDir::open(dir.path()).unwrap())).unwrap();
        let store = open();
        let replies = store.sync(vec![for_account("a", request(1, Totals::default(), 700))]).await.unwrap();
        assert_eq!(granted(replies[0].clone().unwrap()), 700);
        drop(store);

        let store = open();
        let replies = store.sync(vec![for_account("a", request(2, Totals::default(), 700))]).await.unwrap();
        assert_eq!(granted(replies[0].clone().unwrap()), 300);
        let listed = store.accounts(None, 10).await.unwrap();
        let expected = StoredAccount {
            account: "a".into(),
            limit: 1000,
            held: 1000,
            charged: 0,
            debt: 0,
            credited: 0,
            damaged: false,
        };
        assert_eq!(listed, [expected]);
        assert_eq!(store.accounts(Some("a".into()), 10).await.unwrap(), []);
    }

    #[tokio::test]
    async fn what_is_no_database_is_damaged_not_empty() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("ledger.db"), [b'x'; 8192]).unwrap();
        let refused = Embedded::open(Arc::new(DataDir::open(dir.path()).unwrap())).unwrap_err();
        assert!(matches!(refused, StoreError::Damaged(_)), "{refused}");
    }

    #[test]
    fn a_full_disk_is_an_error_of_which_nothing_took_effect() {
        let mut connection = Connection::open_in_memory().unwrap();
        connection.execute_batch(SCHEMA).unwrap();
        let pages: u64 = connection.pragma_query_value(None, "page_count", |row| row.get(0)).unwrap();
        connection.pragma_update_and_check(None, "max_page_count", pages, |_| Ok(())).unwrap();
        let many: Vec<AccountSync> =
            (0..500).map(|n| for_account(&format!("account-{n:0200}"), request(1, Totals::default(), 10))).collect();
        let error = store_error(&sync_all(&mut connection, &[&many], server(1)).unwrap_err());
        assert!(matches!(&error, StoreError::Unavailable(why) if why.contains("full")), "{error}");
        assert_eq!(list(&connection, None, 10).unwrap(), []);
        connection.pragma_update_and_check(None, "max_page_count", 100_000, |_| Ok(())).unwrap();
        assert_eq!(sync_all(&mut connection, &[&many], server(1)).unwrap()[0].len(), 500);
    }

    fn step() -> impl Strategy<Value = (u8, u64, u8, u64, u64, u64, u64)> {
        (0u8..3, 1u64..4, 0u8..12, 0u64..30, 0u64..30, 0u64..900, 0u64..2_000_000)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]
        #[test]
        fn the_file_agrees_with_the_pure_model(steps in prop::collection::vec(step(), 1..60)) {
            let mut connection = Connection::open_in_memory().unwrap();
            connection.execute_batch(SCHEMA).unwrap();
            let mut model: BTreeMap<String, Option<AccountState>> = BTreeMap::new();
            let mut now_ms = 1_000_000;
            for (account, row, kind, returned, charged, target, elapsed_ms) in steps {
                now_ms += elapsed_ms;
                let key = format!("budget/{account}");
                let state = model.entry(key.clone()).or_default();
                let known = state.as_ref().and_then(|state| {
                    state.rows.get(&RowId { incarnation: row, purse: 0 }).copied()
                }).unwrap_or_default().totals;
                let mut request = request(row, known, target);
                request.totals.returned += returned;
                request.totals.charged += charged;
                request.create = kind != 0;
                request.limit_version = u64::from(kind);
                request.limit = 500 + 100 * u64::from(kind);
                request.close = match kind {
                    10 => Some(Close::Settled),
                    11 => Some(Close::Forfeited),
                    _ => None,
                };
                let expected = account::sync(state, &request, server(now_ms));
                let sync = for_account(&key, request);
                let replies = sync_all(&mut connection, &[&[sync]], server(now_ms)).unwrap();
                prop_assert_eq!(&replies, &vec![vec![expected]]);
                prop_assert_eq!(&load(&connection, &key).unwrap(), state);
            }
        }
    }
}
