//! The call log in a local SQLite file, `calls.db` of the data directory.
//!
//! One connection writes, a batch in one transaction (WAL, `synchronous=NORMAL`: what is committed survives the process being
//! killed; a power loss may take the last moments). A few others read beside it. All of it runs on blocking threads.

use std::{
    fmt,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use rusqlite::{
    CachedStatement, Connection, ErrorCode, OpenFlags, OptionalExtension, Row, ToSql, Transaction, params,
    params_from_iter, types::ToSqlOutput,
};
use tokio::sync::Semaphore;

use super::{
    evaluations::{Evaluation, EvaluationHead, EvaluationPage, KEPT_MAX},
    feedback::{self, FeedbackFilter, FeedbackPage},
    figures::{self, ArmCollector, ArmFigures, ArmRow, ArmsQuery},
    filter::{Conditions, Dialect, Table, Value},
    histogram::Histogram,
    migrations,
    ports::{Bodies, Body, CallLog, Counted, Dimension, Entry, Figures, Filter, Page, Series, UsageQuery},
    rollup::{ALL, CubeKey, Deltas, HOUR_MS, MINUTE_MS, MINUTES_KEPT_MS, RollupKey, Values, variant_label},
    usage::{Collector, Kept, Part, Plan, Source},
};
use crate::{
    record::{Assigned, CallRow, Feedback, Outcome, UsageSource, received_ms},
    store::{
        ports::{Answer, StoreError},
        private_file,
    },
};

/// The file's name in the data directory.
pub const FILE: &str = "calls.db";
/// Queries that run at the same time; further ones wait.
const READERS_MAX: usize = 4;
/// Calls deleted in one transaction: the writer waits no longer than for them.
const DELETED_AT_ONCE: u64 = 2000;
/// Page cache of a connection, in KiB.
const CACHE_KIB: i64 = 8192;

/// The columns of `calls`, in the order in which rows are written and read.
const COLUMNS: &str = r#"id, received_ms, endpoint, "key", team, "user", session, tags, model, named, version, variants,
    prompt, provider, target, status, outcome, refusal, streamed, input_tokens, cached_tokens, cache_write_tokens,
    cache_write_1h_tokens, input_audio_tokens, cached_audio_tokens, output_tokens, reasoning_tokens, output_audio_tokens,
    usage_source, cost_nanousd, priced, prices, attempts, attempt_list, read_us, waited_us, overhead_us, first_token_us,
    duration_us"#;
const COLUMN_COUNT: usize = 39;

/// The columns of sums, as in `rollup` and `cube`.
const FIGURES: &str =
    "calls, errors, refused, cost_nanousd, input_tokens, cached_tokens, output_tokens, reasoning_tokens,
    duration, first_token";

/// See the module.
pub struct Sqlite(Arc<Shared>);

struct Shared {
    path: PathBuf,
    /// `None` where the log is only read.
    writer: Option<Mutex<Connection>>,
    idle_readers: Mutex<Vec<Connection>>,
    reading: Arc<Semaphore>,
}

impl fmt::Debug for Sqlite {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Sqlite").field(&self.0.path).finish()
    }
}

impl Sqlite {
    /// Opens or creates the log in `data_dir`, which this process has locked, and brings its schema up to date.
    ///
    /// # Errors
    /// When the file cannot be created or read, or is no call log.
    pub fn open(data_dir: &Path) -> Result<Sqlite, StoreError> {
        let path = data_dir.join(FILE);
        // SQLite would create it for everybody; its -wal and -shm files take the mode of this one.
        private_file().open(&path).map_err(|e| StoreError::Unavailable(format!("{}: {e}", path.display())))?;
        let failed = |error: rusqlite::Error| store_error(&path, &error);
        let mut writer = Connection::open(&path).map_err(failed)?;
        prepare(&writer).map_err(failed)?;
        migrate(&mut writer, migrations::newest(&migrations::SQLITE)).map_err(failed)?;
        Ok(Sqlite::over(path, Some(writer)))
    }

    /// Opens the log that is in `data_dir` to be read, which is safe beside a gateway that writes.
    ///
    /// # Errors
    /// When there is none.
    pub fn read(data_dir: &Path) -> Result<Sqlite, StoreError> {
        let path = data_dir.join(FILE);
        if !path.is_file() {
            return Err(StoreError::Unavailable(format!("there is no call log at {}", path.display())));
        }
        Ok(Sqlite::over(path, None))
    }

    fn over(path: PathBuf, writer: Option<Connection>) -> Sqlite {
        let writer = writer.map(Mutex::new);
        let reading = Arc::new(Semaphore::new(READERS_MAX));
        Sqlite(Arc::new(Shared { path, writer, idle_readers: Mutex::default(), reading }))
    }

    /// The newest version of the schema that this build knows.
    #[must_use]
    pub fn newest() -> i64 {
        migrations::newest(&migrations::SQLITE)
    }

    /// Brings the schema of the log in `data_dir` to `version`, forward or back. No gateway may be running on it. Gives back the
    /// version before.
    ///
    /// # Errors
    /// When the log cannot be opened or changed.
    pub fn migrate(data_dir: &Path, version: i64) -> Result<i64, StoreError> {
        let path = data_dir.join(FILE);
        let failed = |error: rusqlite::Error| store_error(&path, &error);
        let mut connection = Connection::open(&path).map_err(failed)?;
        prepare(&connection).map_err(failed)?;
        migrate(&mut connection, version).map_err(failed)
    }

    fn write<T: Send + 'static>(
        &self,
        job: impl FnOnce(&mut Connection) -> rusqlite::Result<T> + Send + 'static,
    ) -> Answer<'_, T> {
        let shared = self.0.clone();
        let work = move || match &shared.writer {
            Some(writer) => job(&mut lock(writer)).map_err(|error| store_error(&shared.path, &error)),
            None => Err(StoreError::Unavailable("it is open to be read only".to_owned())),
        };
        Box::pin(async move { tokio::task::spawn_blocking(work).await.unwrap_or_else(|_| Err(panicked())) })
    }

    fn read_with<T: Send + 'static>(
        &self,
        job: impl FnOnce(&Connection) -> rusqlite::Result<T> + Send + 'static,
    ) -> Answer<'_, T> {
        let shared = self.0.clone();
        Box::pin(async move {
            let place = shared.reading.clone().acquire_owned().await.expect("never closed");
            let work = move || {
                let _place = place;
                let failed = |error: rusqlite::Error| store_error(&shared.path, &error);
                let reader = shared.reader().map_err(failed)?;
                let result = job(&reader).map_err(failed);
                lock(&shared.idle_readers).push(reader);
                result
            };
            tokio::task::spawn_blocking(work).await.unwrap_or_else(|_| Err(panicked()))
        })
    }
}

impl Shared {
    /// An idle connection, or a new one.
    fn reader(&self) -> rusqlite::Result<Connection> {
        if let Some(idle) = lock(&self.idle_readers).pop() {
            return Ok(idle);
        }
        let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let reader = Connection::open_with_flags(&self.path, flags)?;
        reader.busy_timeout(Duration::from_secs(5))?;
        reader.pragma_update(None, "cache_size", -CACHE_KIB)?;
        Ok(reader)
    }
}

impl CallLog for Sqlite {
    fn append(&self, entries: Arc<[Entry]>) -> Answer<'_, u64> {
        self.write(move |connection| append(connection, &entries))
    }

    fn page(&self, filter: Filter, after: Option<Arc<str>>, limit: usize) -> Answer<'_, Page> {
        self.read_with(move |connection| page(connection, &filter, after.as_deref(), limit))
    }

    fn get(&self, id: Arc<str>) -> Answer<'_, Option<CallRow>> {
        self.read_with(move |connection| {
            let mut select = connection.prepare_cached(&format!("SELECT {COLUMNS} FROM calls WHERE id = ?1"))?;
            select.query_row([&*id], read_row).optional()
        })
    }

    fn bodies(&self, id: Arc<str>) -> Answer<'_, Option<Bodies>> {
        self.read_with(move |connection| {
            let sql =
                "SELECT request, request_bytes, request_cut, reply, reply_bytes, reply_cut FROM bodies WHERE id = ?1";
            let bodies = |row: &Row<'_>| Ok(Bodies { request: read_body(row, 0)?, reply: read_body(row, 3)? });
            connection.prepare_cached(sql)?.query_row([&*id], bodies).optional()
        })
    }

    fn usage(&self, query: UsageQuery) -> Answer<'_, Vec<Series>> {
        self.read_with(move |connection| usage(connection, query))
    }

    fn rate(&self, feedback: Arc<[Feedback]>) -> Answer<'_, u64> {
        self.write(move |connection| rate(connection, &feedback))
    }

    fn feedback(&self, filter: FeedbackFilter, after: Option<Arc<str>>, limit: usize) -> Answer<'_, FeedbackPage> {
        self.read_with(move |connection| read_feedback(connection, &filter, after.as_deref(), limit))
    }

    fn arms(&self, query: ArmsQuery) -> Answer<'_, Vec<ArmFigures>> {
        self.read_with(move |connection| arms(connection, &query))
    }

    fn put_evaluation(&self, evaluation: Evaluation) -> Answer<'_, ()> {
        if let Err(error) = evaluation.check() {
            return Box::pin(std::future::ready(Err(error)));
        }
        self.write(move |connection| put_evaluation(connection, &evaluation))
    }

    fn evaluations(&self, suite: Option<String>, after: Option<Arc<str>>, limit: usize) -> Answer<'_, EvaluationPage> {
        self.read_with(move |connection| {
            // One more than asked for tells whether there is a next page.
            let sql = format!(
                "SELECT id, suite, candidate, created_ms FROM evaluations WHERE (?1 IS NULL OR suite = ?1)
                 AND (?2 IS NULL OR (created_ms, id) < (SELECT created_ms, id FROM evaluations WHERE id = ?2))
                 ORDER BY created_ms DESC, id DESC LIMIT {}",
                limit + 1
            );
            let mut select = connection.prepare_cached(&sql)?;
            let rows = select.query_map(params![suite, after.as_deref()], read_evaluation)?;
            Ok(EvaluationPage::of(rows.collect::<rusqlite::Result<_>>()?, limit))
        })
    }

    fn evaluation(&self, id: Arc<str>) -> Answer<'_, Option<Evaluation>> {
        self.read_with(move |connection| {
            let sql = "SELECT id, suite, candidate, created_ms, report FROM evaluations WHERE id = ?1";
            let evaluation = |row: &Row<'_>| Ok(Evaluation { head: read_evaluation(row)?, report: row.get(4)? });
            connection.prepare_cached(sql)?.query_row([&*id], evaluation).optional()
        })
    }

    fn delete_before(&self, until_ms: u64) -> Answer<'_, u64> {
        Box::pin(async move {
            let mut deleted = 0;
            loop {
                // A transaction each, so that the writer gets its turn in between.
                let (now, is_more) = self.write(move |connection| delete_some(connection, until_ms)).await?;
                deleted += now;
                if !is_more {
                    break;
                }
            }
            self.write(move |connection| delete_sums(connection, until_ms)).await?;
            Ok(deleted)
        })
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn panicked() -> StoreError {
    StoreError::Unavailable("its thread panicked".to_owned())
}

fn store_error(file: &Path, error: &rusqlite::Error) -> StoreError {
    let said = format!("{}: {error}", file.display());
    match error.sqlite_error_code() {
        Some(
            ErrorCode::DatabaseCorrupt
            | ErrorCode::NotADatabase
            | ErrorCode::ConstraintViolation
            | ErrorCode::TypeMismatch
            | ErrorCode::TooBig,
        ) => StoreError::Damaged(said),
        _ => StoreError::Unavailable(said),
    }
}

fn prepare(connection: &Connection) -> rusqlite::Result<()> {
    connection.busy_timeout(Duration::from_secs(5))?;
    // Before the first table: it cannot be changed later without rewriting the file.
    connection.pragma_update(None, "auto_vacuum", "INCREMENTAL")?;
    connection.pragma_update(None, "journal_mode", "WAL")?;
    connection.pragma_update(None, "synchronous", "NORMAL")?;
    connection.pragma_update(None, "cache_size", -CACHE_KIB)?;
    // What is deleted is overwritten, not only forgotten.
    connection.pragma_update(None, "secure_delete", "ON")
}

/// Brings the schema to `version` in one transaction. Gives back the version before.
fn migrate(connection: &mut Connection, version: i64) -> rusqlite::Result<i64> {
    let transaction = connection.transaction_with_behavior(rusqlite::TransactionBehavior::Immediate)?;
    transaction.execute_batch(
        "CREATE TABLE IF NOT EXISTS migration (version INTEGER PRIMARY KEY, name TEXT NOT NULL, applied_at TEXT NOT NULL) STRICT",
    )?;
    let before = transaction.query_row("SELECT coalesce(max(version), 0) FROM migration", [], |row| row.get(0))?;
    for step in migrations::steps(&migrations::SQLITE, before, version) {
        transaction.execute_batch(step.sql())?;
        let migration = step.migration;
        if step.forward {
            let insert = "INSERT INTO migration (version, name, applied_at) VALUES (?1, ?2, datetime('now'))";
            transaction.execute(insert, params![migration.version, migration.name])?;
        } else {
            transaction.execute("DELETE FROM migration WHERE version = ?1", [migration.version])?;
        }
    }
    transaction.commit()?;
    Ok(before)
}

impl ToSql for Value {
    fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        match self {
            Value::Text(text) => text.to_sql(),
            Value::Integer(integer) => integer.to_sql(),
        }
    }
}

// === writing ===

fn append(connection: &mut Connection, entries: &[Entry]) -> rusqlite::Result<u64> {
    let transaction = connection.transaction()?;
    let mut new = Vec::with_capacity(entries.len());
    {
        let mut insert = insert_call(&transaction)?;
        for entry in entries {
            if write_row(&mut insert, &entry.row)? {
                new.push(entry);
            }
        }
    }
    for entry in &new {
        if let Some(bodies) = &entry.bodies {
            write_bodies(&transaction, &entry.row, bodies)?;
        }
    }
    let minutes_from = prune_minutes(&transaction, new.iter().map(|entry| entry.row.received_ms).max())?;
    write_sums(&transaction, &Deltas::of(new.iter().copied(), minutes_from))?;
    transaction.commit()?;
    Ok(new.len() as u64)
}

fn insert_call<'t>(transaction: &'t Transaction<'_>) -> rusqlite::Result<CachedStatement<'t>> {
    let places: Vec<String> = (1..=COLUMN_COUNT).map(|n| format!("?{n}")).collect();
    transaction.prepare_cached(&format!("INSERT OR IGNORE INTO calls ({COLUMNS}) VALUES ({})", places.join(", ")))
}

/// Whether the call was new.
fn write_row(insert: &mut CachedStatement<'_>, row: &CallRow) -> rusqlite::Result<bool> {
    let inserted = insert.execute(params![
        &*row.id,
        row.received_ms,
        &*row.endpoint,
        &*row.key,
        row.team.as_deref(),
        &*row.user,
        row.session.as_deref(),
        json_unless(row.tags.is_empty(), &row.tags),
        &*row.model,
        row.named.as_deref(),
        row.version.as_deref(),
        json_unless(row.variants.is_empty(), &row.variants),
        row.prompt.as_deref(),
        &*row.provider,
        row.target.as_deref(),
        row.status,
        row.outcome.label(),
        row.refusal.as_deref(),
        row.streamed,
        row.input_tokens,
        row.cached_tokens,
        row.cache_write_tokens,
        row.cache_write_1h_tokens,
        row.input_audio_tokens,
        row.cached_audio_tokens,
        row.output_tokens,
        row.reasoning_tokens,
        row.output_audio_tokens,
        row.usage_source.label(),
        row.cost_nanousd,
        row.priced,
        row.prices.as_deref(),
        row.attempts,
        json_unless(row.attempt_list.is_empty(), &row.attempt_list),
        row.read_us,
        row.waited_us,
        row.overhead_us,
        row.first_token_us,
        row.duration_us,
    ])?;
    Ok(inserted > 0)
}

/// A list or map as JSON text; `NULL` when there is nothing in it.
fn json_unless(empty: bool, value: &impl serde::Serialize) -> Option<String> {
    if empty {
        return None;
    }
    Some(serde_json::to_string(value).expect("names and numbers: always JSON"))
}

fn write_bodies(transaction: &Transaction<'_>, row: &CallRow, bodies: &Bodies) -> rusqlite::Result<()> {
    let sql = "INSERT OR IGNORE INTO bodies (id, received_ms, request, request_bytes, request_cut, reply, reply_bytes, reply_cut)
               VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)";
    let (request, reply) = (bodies.request.as_ref(), bodies.reply.as_ref());
    transaction.prepare_cached(sql)?.execute(params![
        &*row.id,
        row.received_ms,
        request.map(|body| &body.text),
        request.map(|body| body.bytes),
        request.map(|body| body.cut),
        reply.map(|body| &body.text),
        reply.map(|body| body.bytes),
        reply.map(|body| body.cut),
    ])?;
    Ok(())
}

fn rate(connection: &mut Connection, given: &[Feedback]) -> rusqlite::Result<u64> {
    let transaction = connection.transaction()?;
    let mut changed = 0;
    {
        let mut upsert = transaction.prepare_cached(
            r#"INSERT INTO feedback (about, subject, metric, source, owner, id, received_ms, rated_ms, "key", team, kind, number,
                   text, comment)
               VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14)
               ON CONFLICT (about, subject, metric, source, owner) DO UPDATE SET id = excluded.id,
                   received_ms = excluded.received_ms, rated_ms = excluded.rated_ms, "key" = excluded."key",
                   team = excluded.team, kind = excluded.kind, number = excluded.number, text = excluded.text,
                   comment = excluded.comment
               WHERE excluded.id > feedback.id"#,
        )?;
        for rating in feedback::last_words(given) {
            let (about, subject) = rating.subject();
            let (kind, number, text) = feedback::columns_of(&rating.value);
            changed += upsert.execute(params![
                about,
                subject,
                &*rating.metric,
                &*rating.source,
                rating.owner(),
                &*rating.id,
                rating.received_ms(),
                rating.rated_ms,
                &*rating.key,
                rating.team.as_deref(),
                kind,
                number,
                text,
                rating.comment.as_deref(),
            ])?;
        }
    }
    transaction.commit()?;
    Ok(changed as u64)
}

fn put_evaluation(connection: &mut Connection, evaluation: &Evaluation) -> rusqlite::Result<()> {
    let EvaluationHead { id, suite, candidate, created_ms } = &evaluation.head;
    let transaction = connection.transaction()?;
    transaction.execute(
        "INSERT OR REPLACE INTO evaluations (id, suite, candidate, created_ms, report) VALUES (?1, ?2, ?3, ?4, ?5)",
        params![&**id, &**suite, &**candidate, created_ms, evaluation.report],
    )?;
    transaction.execute(
        "DELETE FROM evaluations WHERE id IN
         (SELECT id FROM evaluations WHERE suite = ?1 ORDER BY created_ms DESC, id DESC LIMIT -1 OFFSET ?2)",
        params![&**suite, KEPT_MAX],
    )?;
    transaction.commit()
}

/// Deletes sums by minute that are too old to be kept, and says from when on they are kept.
fn prune_minutes(transaction: &Transaction<'_>, latest_ms: Option<u64>) -> rusqlite::Result<u64> {
    let known = sums_bound(transaction, "max", MINUTE_MS)?;
    let Some(latest) = known.into_iter().chain(latest_ms).max() else { return Ok(0) };
    let from = latest.saturating_sub(MINUTES_KEPT_MS) / HOUR_MS * HOUR_MS;
    if sums_bound(transaction, "min", MINUTE_MS)?.is_some_and(|oldest| oldest < from) {
        transaction
            .prepare_cached("DELETE FROM rollup WHERE width_ms = ?1 AND bucket_ms < ?2")?
            .execute([MINUTE_MS, from])?;
    }
    Ok(from)
}

/// The first (`min`) or last (`max`) minute or hour that there are sums of.
fn sums_bound(connection: &Connection, which: &str, width_ms: u64) -> rusqlite::Result<Option<u64>> {
    let sql = format!("SELECT {which}(bucket_ms) FROM rollup WHERE dimension = ?1 AND width_ms = ?2");
    connection.prepare_cached(&sql)?.query_row(params![ALL, width_ms], |row| row.get(0))
}

fn write_sums(transaction: &Transaction<'_>, deltas: &Deltas) -> rusqlite::Result<()> {
    let rollup_key = "dimension, width_ms, bucket_ms, value";
    let cube_key = r#"width_ms, bucket_ms, model, team, "key", provider, variant, outcome"#;
    let mut rollup = Sums::new(transaction, "rollup", rollup_key)?;
    for (RollupKey { dimension, width_ms, bucket_ms, value }, figures) in &deltas.rollups {
        rollup.add(&[dimension, width_ms, bucket_ms, &&**value], figures)?;
    }
    let mut cube = Sums::new(transaction, "cube", cube_key)?;
    for (CubeKey { width_ms, bucket_ms, values }, figures) in &deltas.cube {
        let Values { model, team, key, provider, variant, outcome } = values;
        let key: [&dyn ToSql; 8] =
            [width_ms, bucket_ms, &&**model, &&**team, &&**key, &&**provider, &&**variant, outcome];
        cube.add(&key, figures)?;
    }
    Ok(())
}

/// Adds to the rows of a table of sums.
struct Sums<'t> {
    select: CachedStatement<'t>,
    upsert: CachedStatement<'t>,
}

impl<'t> Sums<'t> {
    fn new(transaction: &'t Transaction<'_>, table: &str, key: &str) -> rusqlite::Result<Sums<'t>> {
        let columns: Vec<&str> = key.split(", ").collect();
        let place = |n: usize| format!("?{}", n + 1);
        let is: Vec<String> =
            columns.iter().enumerate().map(|(n, column)| format!("{column} = {}", place(n))).collect();
        let select = format!("SELECT duration, first_token FROM {table} WHERE {}", is.join(" AND "));
        let figures: Vec<&str> = FIGURES.split(',').map(str::trim).collect();
        let places: Vec<String> = (0..columns.len() + figures.len()).map(place).collect();
        let sums = figures
            .iter()
            .filter(|name| !HISTOGRAMS.contains(name))
            .map(|name| format!("{name} = {name} + excluded.{name}"));
        let merged = HISTOGRAMS.iter().map(|name| format!("{name} = excluded.{name}"));
        let upsert = format!(
            "INSERT INTO {table} ({key}, {FIGURES}) VALUES ({}) ON CONFLICT DO UPDATE SET {}",
            places.join(", "),
            sums.chain(merged).collect::<Vec<String>>().join(", ")
        );
        Ok(Sums { select: transaction.prepare_cached(&select)?, upsert: transaction.prepare_cached(&upsert)? })
    }

    fn add(&mut self, key: &[&dyn ToSql], figures: &Figures) -> rusqlite::Result<()> {
        let known = self.select.query_row(key, |row| Ok((histogram(row, 0)?, histogram(row, 1)?))).optional()?;
        let (mut duration, mut first_token) = known.unwrap_or_default();
        duration.merge(&figures.duration);
        first_token.merge(&figures.first_token);
        let (duration, first_token) = (duration.encode(), first_token.encode());
        let sums: [&dyn ToSql; 10] = [
            &figures.calls,
            &figures.errors,
            &figures.refused,
            &figures.cost_nanousd,
            &figures.input_tokens,
            &figures.cached_tokens,
            &figures.output_tokens,
            &figures.reasoning_tokens,
            &duration,
            &first_token,
        ];
        let all: Vec<&dyn ToSql> = key.iter().copied().chain(sums).collect();
        self.upsert.execute(all.as_slice()).map(drop)
    }
}

const HISTOGRAMS: [&str; 2] = ["duration", "first_token"];

fn histogram(row: &Row<'_>, column: usize) -> rusqlite::Result<Histogram> {
    // One that is damaged counts for nothing; the sums beside it still hold.
    Ok(Histogram::decode(row.get_ref(column)?.as_blob()?).unwrap_or_default())
}

// === reading ===

fn page(connection: &Connection, filter: &Filter, after: Option<&str>, limit: usize) -> rusqlite::Result<Page> {
    let mut conditions = Conditions::of(filter, Dialect::Sqlite, Table::Calls);
    if let Some(after) = after {
        let Some(received) = received_ms(after) else { return Ok(Page::default()) };
        conditions.after(received, after);
    }
    let (condition, values) = conditions.finish();
    // One more than asked for tells whether there is a next page.
    let sql = format!(
        "SELECT {COLUMNS} FROM calls INDEXED BY {} {condition} ORDER BY received_ms DESC, id DESC LIMIT {}",
        index_for(filter),
        limit + 1
    );
    let mut select = connection.prepare_cached(&sql)?;
    let rows = select.query_map(params_from_iter(&values), read_row)?;
    let mut rows: Vec<CallRow> = rows.collect::<rusqlite::Result<_>>()?;
    let more = rows.len() > limit;
    rows.truncate(limit);
    let next = rows.last().filter(|_| more).map(|row| row.id.clone());
    Ok(Page { rows, next })
}

fn read_feedback(
    connection: &Connection,
    filter: &FeedbackFilter,
    after: Option<&str>,
    limit: usize,
) -> rusqlite::Result<FeedbackPage> {
    let (condition, values) = Conditions::of_feedback(filter, after, Dialect::Sqlite).finish();
    // One more than asked for tells whether there is a next page.
    let sql = format!(
        r#"SELECT about, subject, metric, source, id, rated_ms, "key", team, kind, number, text, comment FROM feedback {condition}
           ORDER BY id DESC LIMIT {}"#,
        limit + 1
    );
    let mut select = connection.prepare_cached(&sql)?;
    let rows = select.query_map(params_from_iter(&values), |row| {
        let subject: Arc<str> = row.get(1)?;
        let is_call = row.get_ref(0)?.as_str()? == "call";
        Ok(Feedback {
            id: row.get(4)?,
            call: is_call.then(|| subject.clone()),
            session: (!is_call).then_some(subject),
            metric: row.get(2)?,
            value: feedback::rating_of(row.get_ref(8)?.as_str()?, row.get(9)?, row.get(10)?),
            source: row.get(3)?,
            comment: row.get(11)?,
            key: row.get(6)?,
            team: row.get(7)?,
            rated_ms: row.get(5)?,
        })
    })?;
    Ok(FeedbackPage::of(rows.collect::<rusqlite::Result<_>>()?, limit))
}

fn arms(connection: &Connection, query: &ArmsQuery) -> rusqlite::Result<Vec<ArmFigures>> {
    let (sql, values) = figures::sql(query, Dialect::Sqlite);
    let mut select = connection.prepare_cached(&sql)?;
    let mut rows = select.query(params_from_iter(&values))?;
    let mut collector = ArmCollector::default();
    while let Some(row) = rows.next()? {
        let mut sums = [0.0; 8];
        for (sum, column) in sums.iter_mut().zip(5..) {
            *sum = row.get(column)?;
        }
        let (part, arm, name, word, count) = (row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?, row.get(4)?);
        collector.add(ArmRow { part, arm, name, word, count, sums });
    }
    Ok(collector.finish())
}

/// The index that leads to the calls of a filter. The planner, who knows nothing of the values, would take any.
fn index_for(filter: &Filter) -> &'static str {
    let not_ok = filter.errors || filter.outcome.is_some_and(|outcome| outcome != Outcome::Ok);
    // From few calls to many.
    let indexes = [
        (filter.session.is_some(), "calls_session"),
        (not_ok, "calls_not_ok"),
        (filter.user.is_some(), "calls_user"),
        (filter.variant.is_some(), "calls_variants"),
        (filter.tag.is_some(), "calls_tags"),
        (filter.key.is_some(), "calls_key"),
    ];
    indexes.into_iter().find(|(fits, _)| *fits).map_or("calls_received", |(_, index)| index)
}

fn usage(connection: &Connection, query: UsageQuery) -> rusqlite::Result<Vec<Series>> {
    // One state of the log for all parts: between two of them a call could be written.
    let transaction = connection.unchecked_transaction()?;
    let kept = Kept {
        minutes_from_ms: sums_bound(&transaction, "min", MINUTE_MS)?,
        hours_from_ms: sums_bound(&transaction, "min", HOUR_MS)?,
    };
    let plan = Plan::of(query, kept);
    let mut collector = plan.collect();
    for Part { source, filter } in &plan.parts {
        match source {
            Source::Rollup { width_ms, dimension, value } => {
                let rows = (*width_ms, *dimension, value.as_deref());
                usage_of_rollup(&transaction, filter, plan.by, rows, &mut collector)?;
            }
            Source::Cube { width_ms } => usage_of_cube(&transaction, filter, plan.by, *width_ms, &mut collector)?,
            Source::Calls => usage_of_calls(&transaction, filter, plan.by, &mut collector)?,
        }
    }
    Ok(collector.finish())
}

fn usage_of_rollup(
    connection: &Connection,
    filter: &Filter,
    by: Option<Dimension>,
    (width_ms, dimension, value): (u64, &str, Option<&str>),
    collector: &mut Collector,
) -> rusqlite::Result<()> {
    let mut select = connection.prepare_cached(&format!(
        "SELECT {FIGURES}, bucket_ms, value FROM rollup WHERE dimension = ?1 AND width_ms = ?2 AND bucket_ms >= ?3
         AND bucket_ms < ?4 AND (?5 IS NULL OR value = ?5)"
    ))?;
    let (since, until) = span(filter);
    let mut rows = select.query(params![dimension, width_ms, since, until, value])?;
    while let Some(row) = rows.next()? {
        let figures = read_figures(row)?;
        let value = if by.is_some() { row.get_ref(11)?.as_str()? } else { "" };
        collector.at(row.get(10)?, value, |sums| sums.merge(&figures));
    }
    Ok(())
}

fn usage_of_cube(
    connection: &Connection,
    filter: &Filter,
    by: Option<Dimension>,
    width_ms: u64,
    collector: &mut Collector,
) -> rusqlite::Result<()> {
    let (condition, values) = Conditions::of(filter, Dialect::Sqlite, Table::Cube { width_ms }).finish();
    let sql =
        format!("SELECT {FIGURES}, bucket_ms, model, team, \"key\", provider, variant, outcome FROM cube {condition}");
    let mut select = connection.prepare_cached(&sql)?;
    let mut rows = select.query(params_from_iter(&values))?;
    while let Some(row) = rows.next()? {
        let figures = read_figures(row)?;
        let at = row.get(10)?;
        let mut add = |value: &str| collector.at(at, value, |sums| sums.merge(&figures));
        match by.and_then(cube_column) {
            None => add(""),
            Some(VARIANT_COLUMN) => {
                row.get_ref(VARIANT_COLUMN)?.as_str()?.split(',').filter(|variant| !variant.is_empty()).for_each(add);
            }
            Some(column) => add(row.get_ref(column)?.as_str()?),
        }
    }
    Ok(())
}

const VARIANT_COLUMN: usize = 15;

/// The column of a dimension in what [`usage_of_cube`] selects.
fn cube_column(by: Dimension) -> Option<usize> {
    match by {
        Dimension::Model => Some(11),
        Dimension::Team => Some(12),
        Dimension::Key => Some(13),
        Dimension::Provider => Some(14),
        Dimension::Variant => Some(VARIANT_COLUMN),
        Dimension::Outcome => Some(16),
        Dimension::User => None,
    }
}

fn usage_of_calls(
    connection: &Connection,
    filter: &Filter,
    by: Option<Dimension>,
    collector: &mut Collector,
) -> rusqlite::Result<()> {
    let (condition, values) = Conditions::of(filter, Dialect::Sqlite, Table::Calls).finish();
    let value = match by {
        None => "''",
        Some(Dimension::Variant) => "variants",
        Some(Dimension::Team) => "coalesce(team, '')",
        Some(Dimension::Model) => "model",
        Some(Dimension::Key) => "\"key\"",
        Some(Dimension::Provider) => "provider",
        Some(Dimension::Outcome) => "outcome",
        Some(Dimension::User) => "\"user\"",
    };
    let mut select = connection.prepare_cached(&format!(
        "SELECT received_ms, outcome, cost_nanousd, input_tokens, cached_tokens, output_tokens, reasoning_tokens, attempts,
         duration_us, first_token_us, {value} FROM calls INDEXED BY {} {condition}",
        index_for(filter)
    ))?;
    let mut rows = select.query(params_from_iter(&values))?;
    while let Some(row) = rows.next()? {
        let call = read_counted(row)?;
        let at = row.get(0)?;
        let mut add = |value: &str| collector.at(at, value, |sums| sums.add(&call));
        match by {
            Some(Dimension::Variant) => {
                json_column::<Vec<Assigned>>(row, 10)?.iter().for_each(|v| add(&variant_label(v)))
            }
            _ => add(row.get_ref(10)?.as_str()?),
        }
    }
    Ok(())
}

/// The span of a filter as the store's integers.
fn span(filter: &Filter) -> (i64, i64) {
    let integer = |ms: u64| i64::try_from(ms).unwrap_or(i64::MAX);
    (integer(filter.since_ms.unwrap_or(0)), integer(filter.until_ms.unwrap_or(u64::MAX)))
}

/// Sums from the columns of [`FIGURES`], which are the first ones.
fn read_figures(row: &Row<'_>) -> rusqlite::Result<Figures> {
    Ok(Figures {
        calls: row.get(0)?,
        errors: row.get(1)?,
        refused: row.get(2)?,
        cost_nanousd: row.get(3)?,
        input_tokens: row.get(4)?,
        cached_tokens: row.get(5)?,
        output_tokens: row.get(6)?,
        reasoning_tokens: row.get(7)?,
        duration: histogram(row, 8)?,
        first_token: histogram(row, 9)?,
    })
}

fn read_counted(row: &Row<'_>) -> rusqlite::Result<Counted> {
    Ok(Counted {
        outcome: Outcome::of_label(row.get_ref(1)?.as_str()?).unwrap_or(Outcome::Internal),
        cost_nanousd: row.get(2)?,
        input_tokens: row.get(3)?,
        cached_tokens: row.get(4)?,
        output_tokens: row.get(5)?,
        reasoning_tokens: row.get(6)?,
        attempts: row.get(7)?,
        duration_us: row.get(8)?,
        first_token_us: row.get(9)?,
    })
}

/// A call from the columns of [`COLUMNS`].
fn read_row(row: &Row<'_>) -> rusqlite::Result<CallRow> {
    let text = |column: usize| -> rusqlite::Result<Arc<str>> { row.get(column) };
    let maybe = |column: usize| -> rusqlite::Result<Option<Arc<str>>> { row.get(column) };
    Ok(CallRow {
        id: text(0)?,
        received_ms: row.get(1)?,
        endpoint: row.get::<_, String>(2)?.into(),
        key: text(3)?,
        team: maybe(4)?,
        user: text(5)?,
        session: maybe(6)?,
        tags: json_column(row, 7)?,
        model: text(8)?,
        named: maybe(9)?,
        version: maybe(10)?,
        variants: json_column(row, 11)?,
        prompt: maybe(12)?,
        provider: text(13)?,
        target: maybe(14)?,
        status: row.get(15)?,
        outcome: Outcome::of_label(row.get_ref(16)?.as_str()?).unwrap_or(Outcome::Internal),
        refusal: row.get::<_, Option<String>>(17)?.map(Into::into),
        streamed: row.get(18)?,
        input_tokens: row.get(19)?,
        cached_tokens: row.get(20)?,
        cache_write_tokens: row.get(21)?,
        cache_write_1h_tokens: row.get(22)?,
        input_audio_tokens: row.get(23)?,
        cached_audio_tokens: row.get(24)?,
        output_tokens: row.get(25)?,
        reasoning_tokens: row.get(26)?,
        output_audio_tokens: row.get(27)?,
        usage_source: UsageSource::of_label(row.get_ref(28)?.as_str()?).unwrap_or(UsageSource::None),
        cost_nanousd: row.get(29)?,
        priced: row.get(30)?,
        prices: maybe(31)?,
        attempts: row.get(32)?,
        attempt_list: json_column(row, 33)?,
        read_us: row.get(34)?,
        waited_us: row.get(35)?,
        overhead_us: row.get(36)?,
        first_token_us: row.get(37)?,
        duration_us: row.get(38)?,
    })
}

/// A list or map from JSON text; nothing where the text is none.
fn json_column<T: serde::de::DeserializeOwned + Default>(row: &Row<'_>, column: usize) -> rusqlite::Result<T> {
    let Some(text) = row.get_ref(column)?.as_str_or_null()? else { return Ok(T::default()) };
    Ok(serde_json::from_str(text).unwrap_or_default())
}

fn read_evaluation(row: &Row<'_>) -> rusqlite::Result<EvaluationHead> {
    Ok(EvaluationHead { id: row.get(0)?, suite: row.get(1)?, candidate: row.get(2)?, created_ms: row.get(3)? })
}

fn read_body(row: &Row<'_>, first: usize) -> rusqlite::Result<Option<Body>> {
    let Some(text) = row.get(first)? else { return Ok(None) };
    Ok(Some(Body { text, bytes: row.get(first + 1)?, cut: row.get(first + 2)? }))
}

// === deleting ===

/// Deletes some of what was received before `until_ms`; how many calls, and whether there is more.
fn delete_some(connection: &mut Connection, until_ms: u64) -> rusqlite::Result<(u64, bool)> {
    let transaction = connection.transaction()?;
    let limit = params![i64::try_from(until_ms).unwrap_or(i64::MAX), DELETED_AT_ONCE];
    let some = |table: &str| {
        format!(
            "DELETE FROM {table} WHERE rowid IN (SELECT rowid FROM {table} WHERE received_ms < ?1 ORDER BY received_ms LIMIT ?2)"
        )
    };
    // Bodies first: while a call is there, so may be its bodies, and never the other way round.
    transaction.execute(&some("bodies"), limit)?;
    let said = transaction.execute(&some("feedback"), limit)?;
    let deleted = transaction.execute(&some("calls"), limit)?;
    transaction.commit()?;
    Ok((deleted as u64, deleted.max(said) as u64 >= DELETED_AT_ONCE))
}

/// Deletes the sums of hours that are over by `until_ms`, and gives space back to the file system.
fn delete_sums(connection: &mut Connection, until_ms: u64) -> rusqlite::Result<()> {
    let hour = i64::try_from(until_ms / HOUR_MS * HOUR_MS).unwrap_or(i64::MAX);
    let transaction = connection.transaction()?;
    transaction.execute("DELETE FROM rollup WHERE bucket_ms < ?1", [hour])?;
    transaction.execute("DELETE FROM cube WHERE bucket_ms < ?1", [hour])?;
    transaction.commit()?;
    // It gives back a row for each page.
    let mut vacuum = connection.prepare("PRAGMA incremental_vacuum")?;
    let mut pages = vacuum.query([])?;
    while pages.next()?.is_some() {}
    drop(pages);
    drop(vacuum);
    // The old pages are in the write-ahead log too.
    connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::records::contract;

    #[tokio::test]
    async fn the_rules_of_every_call_log_hold() {
        let dir = tempfile::tempdir().unwrap();
        contract::holds(&Sqlite::open(dir.path()).unwrap()).await;
    }

    #[tokio::test]
    async fn what_was_written_is_there_after_a_restart_and_can_be_read_beside_a_writer() {
        let dir = tempfile::tempdir().unwrap();
        assert!(Sqlite::read(dir.path()).is_err(), "there is none yet");
        let writer = Sqlite::open(dir.path()).unwrap();
        writer.append(contract::entries([contract::row(contract::BEGIN_MS, 1)])).await.unwrap();
        drop(writer);
        let again = Sqlite::open(dir.path()).unwrap();
        again.append(contract::entries([contract::row(contract::BEGIN_MS, 2)])).await.unwrap();
        let reader = Sqlite::read(dir.path()).unwrap();
        assert_eq!(reader.page(Filter::default(), None, 9).await.unwrap().rows.len(), 2);
        assert!(reader.append(contract::entries([])).await.is_err(), "a reader does not write");
    }

    #[tokio::test]
    async fn deleted_text_is_in_no_file_any_more() {
        let dir = tempfile::tempdir().unwrap();
        let log = Sqlite::open(dir.path()).unwrap();
        let rows = (0..300).map(|n| CallRow { user: "canary-4711".into(), ..contract::row(contract::BEGIN_MS, n) });
        log.append(contract::entries(rows)).await.unwrap();
        let holds_it = || {
            let files =
                std::fs::read_dir(dir.path()).unwrap().map(|entry| std::fs::read(entry.unwrap().path()).unwrap());
            files.filter(|bytes| memchr::memmem::find(bytes, b"canary-4711").is_some()).count()
        };
        assert!(holds_it() > 0);
        let size = |log: &Path| std::fs::metadata(log.join(FILE)).unwrap().len();
        log.delete_before(u64::MAX).await.unwrap();
        assert_eq!(holds_it(), 0);
        assert!(size(dir.path()) < 150_000, "{}", size(dir.path()));
    }

    #[tokio::test]
    async fn the_schema_goes_back_and_forth() {
        let dir = tempfile::tempdir().unwrap();
        drop(Sqlite::open(dir.path()).unwrap());
        assert_eq!(Sqlite::migrate(dir.path(), 0).unwrap(), migrations::newest(&migrations::SQLITE));
        let log = Sqlite::read(dir.path()).unwrap();
        assert!(log.page(Filter::default(), None, 1).await.is_err(), "the table is gone");
        contract::holds(&Sqlite::open(dir.path()).unwrap()).await;
    }

    /// `TOLLGATE_CALLS=1000000 cargo test --release --lib a_full_log -- --nocapture` shows the figures of docs/calls.md.
    #[tokio::test]
    async fn a_full_log_answers_in_time() {
        let full = std::env::var("TOLLGATE_CALLS").ok().and_then(|count| count.parse().ok());
        let dir = tempfile::tempdir().unwrap();
        let log = Sqlite::open(dir.path()).unwrap();
        let times = contract::times_of_a_full_log(&log, full.unwrap_or(20_000)).await;
        if full.is_some() {
            let bytes = std::fs::metadata(dir.path().join(FILE)).unwrap().len();
            eprintln!("SQLite, {} MiB: {times:#?}", bytes >> 20);
        }
        contract::assert_in_time(&times);
    }
}
