//! The call log in a PostgreSQL that several gateways share: a partition a day, created ahead and dropped whole.
//!
//! Rows travel as JSON and are taken apart by the server (`jsonb_populate_recordset`), so that a column has one name everywhere.
//! A batch is one transaction. Sums are merged under a lock that lasts until its end: histograms are merged here, and two gateways
//! that read the same one would lose counts.
//!
//! A connection whose answer did not come in time is thrown away, with whatever it waits for.

use std::{
    collections::{HashMap, HashSet},
    fmt,
    str::FromStr,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use deadpool_postgres::{GenericClient, Manager, ManagerConfig, Object, Pool, RecyclingMethod, Transaction};
use rustls::{ClientConfig, RootCertStore};
use serde_json::{Value as Json, json};
use tokio::{sync::OnceCell, time::timeout};
use tokio_postgres::{
    Config, IsolationLevel, Row,
    config::Host,
    error::SqlState,
    types::{Json as AsJson, ToSql},
};
use tokio_postgres_rustls::MakeRustlsConnect;

use super::{
    evaluations::{Evaluation, EvaluationHead, EvaluationPage, KEPT_MAX},
    feedback::{self, FeedbackFilter, FeedbackPage},
    figures::{self, ArmCollector, ArmFigures, ArmRow, ArmsQuery},
    filter::{Conditions, Dialect, Table, Value},
    histogram::Histogram,
    migrations,
    ports::{Bodies, Body, CallLog, Counted, Dimension, Entry, Figures, Filter, Page, Series, UsageQuery},
    rollup::{ALL, CubeKey, DAY_MS, Deltas, HOUR_MS, MINUTE_MS, MINUTES_KEPT_MS, RollupKey, Values, variant_label},
    usage::{Collector, Kept, Part, Plan, Source},
};
use crate::{
    record::{Assigned, CallRow, Feedback, Outcome, received_ms},
    store::ports::{Answer, StoreError},
};

/// Connections for queries; further ones wait.
const READERS_MAX: usize = 4;
/// Time to a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// Time for one answer to a query, and for one deletion.
const QUERY_TIMEOUT: Duration = Duration::from_secs(30);
/// Held while the schema or the partitions change.
const SCHEMA_LOCK: i64 = 0x746f_6c6c_0001;
/// Held while sums are merged.
const SUMS_LOCK: i64 = 0x746f_6c6c_0002;
/// The tables that have a partition for each day.
const PARTITIONED: [&str; 2] = ["calls", "bodies"];
/// So many calls of a day are sorted for a page at most.
const FEW: u64 = 2000;
/// The partitions of `calls`.
const PARTITIONS: &str = "SELECT c.relname::text FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid
    WHERE i.inhparent = 'calls'::regclass";

const FIGURES: &str =
    "calls, errors, refused, cost_nanousd, input_tokens, cached_tokens, output_tokens, reasoning_tokens,
    duration, first_token";

/// See the module.
pub struct Postgres {
    /// Connections live on the runtime that opens them, and batches are written on one of their own.
    batches: Pool,
    queries: Pool,
    /// Whether the schema was brought up to date.
    migrated: OnceCell<()>,
    /// Whether this one may change the schema.
    migrates: bool,
    /// Where it is, without a password: for messages.
    place: String,
    /// Days (since 1970) that surely have partitions.
    days: Mutex<HashSet<u64>>,
}

impl fmt::Debug for Postgres {
    /// Without the URL, which may hold a password.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Postgres")
    }
}

impl Postgres {
    /// The log at `url`. Nothing is connected yet: a server that is away is no reason not to start.
    ///
    /// # Errors
    /// When `url` cannot be read. The message does not repeat it.
    pub fn open(url: &str) -> Result<Postgres, StoreError> {
        Postgres::over(url, true)
    }

    /// The log at `url`, to be read: its schema is left as it is.
    ///
    /// # Errors
    /// As [`Postgres::open`].
    pub fn read(url: &str) -> Result<Postgres, StoreError> {
        Postgres::over(url, false)
    }

    /// The newest version of the schema that this build knows.
    #[must_use]
    pub fn newest() -> i64 {
        migrations::newest(&migrations::POSTGRES)
    }

    /// Brings the schema of the log at `url` to `version`, forward or back. No gateway may be writing into it. Gives back the
    /// version before.
    ///
    /// # Errors
    /// When the server cannot be reached, or refuses.
    pub async fn migrate(url: &str, version: i64) -> Result<i64, StoreError> {
        let log = Postgres::open(url)?;
        let mut lease = log.lease(&log.queries).await?;
        let before = migrate(lease.client(), version).await.map_err(|error| store_error(&error))?;
        lease.done();
        Ok(before)
    }

    fn over(url: &str, migrates: bool) -> Result<Postgres, StoreError> {
        let mut config = parse(url)?;
        config.application_name("tollgate").connect_timeout(CONNECT_TIMEOUT);
        let tls = MakeRustlsConnect::new(tls());
        let pool = |size| {
            let recycling = ManagerConfig { recycling_method: RecyclingMethod::Fast };
            let manager = Manager::from_config(config.clone(), tls.clone(), recycling);
            Pool::builder(manager).max_size(size).build().expect("no timeouts, so no runtime is needed")
        };
        let (batches, queries, place) = (pool(1), pool(READERS_MAX), place(&config));
        Ok(Postgres { batches, queries, migrated: OnceCell::new(), migrates, place, days: Mutex::default() })
    }

    /// A connection to a server whose schema is up to date.
    async fn ready(&self, pool: &Pool) -> Result<Lease, StoreError> {
        let mut lease = self.lease(pool).await?;
        if self.migrates {
            let newest = migrations::newest(&migrations::POSTGRES);
            let migrating = async { migrate(lease.client(), newest).await.map(drop) };
            self.migrated.get_or_try_init(|| migrating).await.map_err(|error| store_error(&error))?;
        }
        Ok(lease)
    }

    async fn lease(&self, pool: &Pool) -> Result<Lease, StoreError> {
        let away = |error| StoreError::Unavailable(format!("{}: {}", self.place, pool_error(&error)));
        let object = pool.get().await.map_err(away)?;
        Ok(Lease(Some(object)))
    }

    /// Asks something, within [`QUERY_TIMEOUT`].
    async fn ask<T>(
        &self,
        question: impl AsyncFnOnce(&mut Object) -> Result<T, tokio_postgres::Error>,
    ) -> Result<T, StoreError> {
        let asking = async {
            let mut lease = self.ready(&self.queries).await?;
            let answer = question(lease.client()).await.map_err(|error| store_error(&error))?;
            lease.done();
            Ok(answer)
        };
        let late = || StoreError::Unavailable(format!("it took longer than {} s", QUERY_TIMEOUT.as_secs()));
        timeout(QUERY_TIMEOUT, asking).await.unwrap_or_else(|_| Err(late()))
    }

    async fn write(&self, entries: &[Entry]) -> Result<u64, StoreError> {
        let mut lease = self.ready(&self.batches).await?;
        let written = self.write_with(lease.client(), entries).await;
        if let Err(error) = &written
            && error.code() == Some(&SqlState::CHECK_VIOLATION)
        {
            // Another gateway dropped the partition of a day that is kept no longer: it is made anew by the next try.
            self.days().clear();
            return Err(StoreError::Unavailable("a day's partition is gone".to_owned()));
        }
        let count = written.map_err(|error| store_error(&error))?;
        lease.done();
        Ok(count)
    }

    async fn write_with(&self, client: &mut Object, entries: &[Entry]) -> Result<u64, tokio_postgres::Error> {
        self.make_partitions(client, entries).await?;
        let transaction = client.transaction().await?;
        let rows = AsJson(entries.iter().map(|entry| &entry.row).collect::<Vec<&CallRow>>());
        let insert = "INSERT INTO calls SELECT * FROM jsonb_populate_recordset(NULL::calls, $1) ON CONFLICT DO NOTHING RETURNING id";
        let inserted = transaction.query(&transaction.prepare_cached(insert).await?, &[&rows]).await?;
        let mut inserted: HashSet<String> = inserted.iter().map(|row| row.get(0)).collect();
        // Of an id that stands in the batch twice, the first was inserted.
        let new: Vec<&Entry> = entries.iter().filter(|entry| inserted.remove(&*entry.row.id)).collect();
        write_bodies(&transaction, &new).await?;
        if !new.is_empty() {
            write_sums(&transaction, &new).await?;
        }
        transaction.commit().await?;
        Ok(new.len() as u64)
    }

    /// Makes the partitions of the batch's days, and of the days after them.
    async fn make_partitions(&self, client: &mut Object, entries: &[Entry]) -> Result<(), tokio_postgres::Error> {
        let days = entries.iter().map(|entry| entry.row.received_ms / DAY_MS);
        let missing: HashSet<u64> =
            days.filter(|day| !self.days().contains(day)).flat_map(|day| [day, day + 1]).collect();
        if missing.is_empty() {
            return Ok(());
        }
        let transaction = client.transaction().await?;
        transaction.execute("SELECT pg_advisory_xact_lock($1)", &[&SCHEMA_LOCK]).await?;
        for day in &missing {
            for table in PARTITIONED {
                let (name, from, to) = (partition(table, *day), day * DAY_MS, (day + 1) * DAY_MS);
                let sql = format!(
                    "CREATE TABLE IF NOT EXISTS {name} PARTITION OF {table} FOR VALUES FROM ({from}) TO ({to})"
                );
                transaction.batch_execute(&sql).await?;
            }
        }
        transaction.commit().await?;
        // The days after are looked at again when they come: nobody else may have dropped them by then.
        self.days().extend(entries.iter().map(|entry| entry.row.received_ms / DAY_MS));
        Ok(())
    }

    fn days(&self) -> std::sync::MutexGuard<'_, HashSet<u64>> {
        self.days.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl CallLog for Postgres {
    fn append(&self, entries: Arc<[Entry]>) -> Answer<'_, u64> {
        Box::pin(async move { if entries.is_empty() { Ok(0) } else { self.write(&entries).await } })
    }

    fn page(&self, filter: Filter, after: Option<Arc<str>>, limit: usize) -> Answer<'_, Page> {
        Box::pin(async move { self.ask(async |client| page(client, &filter, after.as_deref(), limit).await).await })
    }

    fn get(&self, id: Arc<str>) -> Answer<'_, Option<CallRow>> {
        Box::pin(async move {
            let Some(received) = received_ms(&id) else { return Ok(None) };
            let sql = "SELECT to_jsonb(calls) FROM calls WHERE received_ms = $1 AND id = $2";
            let row = self.ask(async |client| client.query_opt(sql, &[&integer(received), &&*id]).await).await?;
            Ok(row.map(|row| row.get::<_, AsJson<CallRow>>(0).0))
        })
    }

    fn bodies(&self, id: Arc<str>) -> Answer<'_, Option<Bodies>> {
        Box::pin(async move {
            let Some(received) = received_ms(&id) else { return Ok(None) };
            let sql = "SELECT request, request_bytes, request_cut, reply, reply_bytes, reply_cut FROM bodies
                       WHERE received_ms = $1 AND id = $2";
            let row = self.ask(async |client| client.query_opt(sql, &[&integer(received), &&*id]).await).await?;
            Ok(row.map(|row| Bodies { request: read_body(&row, 0), reply: read_body(&row, 3) }))
        })
    }

    fn usage(&self, query: UsageQuery) -> Answer<'_, Vec<Series>> {
        Box::pin(async move { self.ask(async |client| usage(client, query).await).await })
    }

    fn rate(&self, feedback: Arc<[Feedback]>) -> Answer<'_, u64> {
        Box::pin(async move {
            let mut lease = self.ready(&self.batches).await?;
            let changed = rate(lease.client(), &feedback).await.map_err(|error| store_error(&error))?;
            lease.done();
            Ok(changed)
        })
    }

    fn feedback(&self, filter: FeedbackFilter, after: Option<Arc<str>>, limit: usize) -> Answer<'_, FeedbackPage> {
        Box::pin(
            async move { self.ask(async |client| read_feedback(client, &filter, after.as_deref(), limit).await).await },
        )
    }

    fn arms(&self, query: ArmsQuery) -> Answer<'_, Vec<ArmFigures>> {
        Box::pin(async move { self.ask(async |client| arms(client, &query).await).await })
    }

    fn put_evaluation(&self, evaluation: Evaluation) -> Answer<'_, ()> {
        Box::pin(async move {
            evaluation.check()?;
            self.ask(async |client| put_evaluation(client, &evaluation).await).await
        })
    }

    fn evaluations(&self, suite: Option<String>, after: Option<Arc<str>>, limit: usize) -> Answer<'_, EvaluationPage> {
        Box::pin(async move {
            // One more than asked for tells whether there is a next page.
            let sql = format!(
                "SELECT id, suite, candidate, created_ms FROM evaluations WHERE ($1::text IS NULL OR suite = $1::text)
                 AND ($2::text IS NULL OR (created_ms, id) < (SELECT created_ms, id FROM evaluations WHERE id = $2::text))
                 ORDER BY created_ms DESC, id DESC LIMIT {}",
                limit + 1
            );
            let rows = self.ask(async |client| client.query(&sql, &[&suite, &after.as_deref()]).await).await?;
            Ok(EvaluationPage::of(rows.iter().map(read_evaluation).collect(), limit))
        })
    }

    fn evaluation(&self, id: Arc<str>) -> Answer<'_, Option<Evaluation>> {
        Box::pin(async move {
            let sql = "SELECT id, suite, candidate, created_ms, report FROM evaluations WHERE id = $1";
            let row = self.ask(async |client| client.query_opt(sql, &[&&*id]).await).await?;
            Ok(row.map(|row| Evaluation { head: read_evaluation(&row), report: row.get(4) }))
        })
    }

    fn delete_before(&self, until_ms: u64) -> Answer<'_, u64> {
        Box::pin(async move {
            let deleted = self.ask(async |client| delete_before(client, until_ms).await).await;
            self.days().clear();
            deleted
        })
    }
}

/// A connection in use. Dropped before it is [`Lease::done`], it is closed rather than used again.
struct Lease(Option<Object>);

impl Lease {
    fn client(&mut self) -> &mut Object {
        self.0.as_mut().expect("taken only by `done` and `drop`, which own the lease")
    }

    fn done(mut self) {
        self.0 = None;
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        if let Some(object) = self.0.take() {
            let _closed = Object::take(object);
        }
    }
}

/// Reads a URL.
///
/// # Errors
/// When it is none. The message does not repeat it.
pub fn parse(url: &str) -> Result<Config, StoreError> {
    let config = Config::from_str(url).map_err(|error| StoreError::Unavailable(reason(&error)))?;
    if config.get_hosts().is_empty() {
        return Err(StoreError::Unavailable("names no host".to_owned()));
    }
    Ok(config)
}

/// Certificates are verified against the system's roots (`SSL_CERT_FILE` adds others), and against Mozilla's where it has none.
fn tls() -> ClientConfig {
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    if roots.is_empty() {
        roots.extend(webpki_roots::TLS_SERVER_ROOTS.iter().cloned());
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("the provider has TLS 1.2 and 1.3")
        .with_root_certificates(roots)
        .with_no_client_auth()
}

/// Where a log is: `PostgreSQL at host:5432/database`, its hosts separated by commas. Never who logs in.
fn place(config: &Config) -> String {
    let host = |host: &Host| match host {
        Host::Tcp(name) => name.clone(),
        #[cfg(unix)]
        Host::Unix(path) => path.display().to_string(),
    };
    let port = |at: usize| config.get_ports().get(at).or(config.get_ports().first()).copied().unwrap_or(5432);
    let hosts = config.get_hosts().iter().enumerate().map(|(at, name)| format!("{}:{}", host(name), port(at)));
    format!("PostgreSQL at {}/{}", hosts.collect::<Vec<_>>().join(","), config.get_dbname().unwrap_or_default())
}

fn pool_error(error: &deadpool_postgres::PoolError) -> String {
    match error {
        deadpool_postgres::PoolError::Backend(error) => reason(error),
        other => other.to_string(),
    }
}

/// What went wrong, with its cause, and without any value of a row.
fn reason(error: &tokio_postgres::Error) -> String {
    match error.as_db_error() {
        Some(said) => format!("{} ({})", said.message(), said.code().code()),
        None => match std::error::Error::source(error) {
            Some(cause) => format!("{error}: {cause}"),
            None => error.to_string(),
        },
    }
}

fn store_error(error: &tokio_postgres::Error) -> StoreError {
    // Class 22 is data that does not fit, 23 a constraint: what was sent is at fault, and will be the next time.
    match error.code() {
        Some(code) if code.code().starts_with("22") || code.code().starts_with("23") => {
            StoreError::Damaged(reason(error))
        }
        _ => StoreError::Unavailable(reason(error)),
    }
}

/// Brings the schema to `version` in one transaction, one process at a time. Gives back the version before.
async fn migrate(client: &mut Object, version: i64) -> Result<i64, tokio_postgres::Error> {
    let transaction = client.transaction().await?;
    transaction.execute("SELECT pg_advisory_xact_lock($1)", &[&SCHEMA_LOCK]).await?;
    transaction
        .batch_execute("CREATE TABLE IF NOT EXISTS migration (version bigint PRIMARY KEY, name text NOT NULL, applied_at timestamptz NOT NULL)")
        .await?;
    let before = transaction.query_one("SELECT coalesce(max(version), 0) FROM migration", &[]).await?.get(0);
    for step in migrations::steps(&migrations::POSTGRES, before, version) {
        transaction.batch_execute(step.sql()).await?;
        let migration = step.migration;
        if step.forward {
            let insert = "INSERT INTO migration (version, name, applied_at) VALUES ($1, $2, now())";
            transaction.execute(insert, &[&migration.version, &migration.name]).await?;
        } else {
            transaction.execute("DELETE FROM migration WHERE version = $1", &[&migration.version]).await?;
        }
    }
    transaction.commit().await?;
    Ok(before)
}

/// The partition of a day, such as `calls_20261101`.
fn partition(table: &str, day: u64) -> String {
    let day = i64::try_from(day).unwrap_or(i64::MAX);
    let at = jiff::Timestamp::from_second(day.saturating_mul(86_400)).unwrap_or(jiff::Timestamp::MAX);
    format!("{table}_{}", at.strftime("%Y%m%d"))
}

/// The day of a partition of `calls`.
fn day_of_partition(name: &str) -> Option<u64> {
    let date = jiff::civil::Date::strptime("calls_%Y%m%d", name).ok()?;
    let at = jiff::tz::Offset::UTC.to_timestamp(date.at(0, 0, 0, 0)).ok()?;
    u64::try_from(at.as_millisecond()).ok().map(|ms| ms / DAY_MS)
}

/// A time or count as the store's integer; one beyond it is the last.
fn integer(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

// === writing ===

async fn write_bodies(transaction: &Transaction<'_>, new: &[&Entry]) -> Result<(), tokio_postgres::Error> {
    let rows: Vec<Json> =
        new.iter().filter_map(|entry| Some(bodies_row(&entry.row, entry.bodies.as_deref()?))).collect();
    if rows.is_empty() {
        return Ok(());
    }
    let insert = "INSERT INTO bodies SELECT * FROM jsonb_populate_recordset(NULL::bodies, $1) ON CONFLICT DO NOTHING";
    transaction.execute(insert, &[&AsJson(rows)]).await.map(drop)
}

fn bodies_row(row: &CallRow, bodies: &Bodies) -> Json {
    let (request, reply) = (bodies.request.as_ref(), bodies.reply.as_ref());
    json!({
        "id": row.id,
        "received_ms": row.received_ms,
        "request": request.map(|body| &body.text),
        "request_bytes": request.map(|body| body.bytes),
        "request_cut": request.map(|body| body.cut),
        "reply": reply.map(|body| &body.text),
        "reply_bytes": reply.map(|body| body.bytes),
        "reply_cut": reply.map(|body| body.cut),
    })
}

async fn rate(client: &mut Object, given: &[Feedback]) -> Result<u64, tokio_postgres::Error> {
    let row = |rating: &&Feedback| {
        let (about, subject) = rating.subject();
        let (kind, number, text) = feedback::columns_of(&rating.value);
        json!({"about": about, "subject": subject, "metric": rating.metric, "source": rating.source, "owner": rating.owner(),
            "id": rating.id, "received_ms": rating.received_ms(), "rated_ms": rating.rated_ms, "key": rating.key,
            "team": rating.team, "kind": kind, "number": number, "text": text, "comment": rating.comment})
    };
    let rows: Vec<Json> = feedback::last_words(given).iter().map(row).collect();
    let upsert = r#"INSERT INTO feedback SELECT * FROM jsonb_populate_recordset(NULL::feedback, $1)
        ON CONFLICT (about, subject, metric, source, owner) DO UPDATE SET id = excluded.id, received_ms = excluded.received_ms,
            rated_ms = excluded.rated_ms, "key" = excluded."key", team = excluded.team, kind = excluded.kind,
            number = excluded.number, text = excluded.text, comment = excluded.comment
        WHERE excluded.id > feedback.id"#;
    client.execute(upsert, &[&AsJson(rows)]).await
}

async fn put_evaluation(client: &mut Object, evaluation: &Evaluation) -> Result<(), tokio_postgres::Error> {
    let EvaluationHead { id, suite, candidate, created_ms } = &evaluation.head;
    let transaction = client.transaction().await?;
    let upsert = "INSERT INTO evaluations (id, suite, candidate, created_ms, report) VALUES ($1, $2, $3, $4, $5)
        ON CONFLICT (id) DO UPDATE SET suite = excluded.suite, candidate = excluded.candidate,
            created_ms = excluded.created_ms, report = excluded.report";
    transaction.execute(upsert, &[&&**id, &&**suite, &&**candidate, &integer(*created_ms), &evaluation.report]).await?;
    let prune = format!(
        "DELETE FROM evaluations WHERE id IN
         (SELECT id FROM evaluations WHERE suite = $1 ORDER BY created_ms DESC, id DESC OFFSET {KEPT_MAX})"
    );
    transaction.execute(&prune, &[&&**suite]).await?;
    transaction.commit().await
}

async fn write_sums(transaction: &Transaction<'_>, new: &[&Entry]) -> Result<(), tokio_postgres::Error> {
    transaction.execute("SELECT pg_advisory_xact_lock($1)", &[&SUMS_LOCK]).await?;
    let latest = new.iter().map(|entry| entry.row.received_ms).max();
    let known = sums_bound(transaction, "max", MINUTE_MS).await?;
    let from = known.into_iter().chain(latest).max().unwrap_or(0).saturating_sub(MINUTES_KEPT_MS) / HOUR_MS * HOUR_MS;
    if sums_bound(transaction, "min", MINUTE_MS).await?.is_some_and(|oldest| oldest < from) {
        let delete = "DELETE FROM rollup WHERE width_ms = $1 AND bucket_ms < $2";
        transaction.execute(delete, &[&integer(MINUTE_MS), &integer(from)]).await?;
    }
    let deltas = Deltas::of(new.iter().copied(), from);
    let rollups = deltas.rollups.iter().map(|(key, figures)| (rollup_key(key), figures)).collect();
    add_sums(transaction, "rollup", &["dimension", "width_ms", "bucket_ms", "value"], rollups).await?;
    let cube = deltas.cube.iter().map(|(key, figures)| (cube_key(key), figures)).collect();
    let columns = ["width_ms", "bucket_ms", "model", "team", "key", "provider", "variant", "outcome"];
    add_sums(transaction, "cube", &columns, cube).await
}

fn rollup_key(key: &RollupKey) -> Json {
    let RollupKey { dimension, width_ms, bucket_ms, value } = key;
    json!({"dimension": dimension, "width_ms": width_ms, "bucket_ms": bucket_ms, "value": value})
}

fn cube_key(key: &CubeKey) -> Json {
    let CubeKey { width_ms, bucket_ms, values } = key;
    let Values { model, team, key, provider, variant, outcome } = values;
    json!({"width_ms": width_ms, "bucket_ms": bucket_ms, "model": model, "team": team, "key": key, "provider": provider,
        "variant": variant, "outcome": outcome})
}

/// Adds to the rows of a table of sums; the lock is held.
async fn add_sums(
    transaction: &Transaction<'_>,
    table: &str,
    key: &[&str],
    deltas: Vec<(Json, &Figures)>,
) -> Result<(), tokio_postgres::Error> {
    let key: Vec<String> = key.iter().map(|column| format!("\"{column}\"")).collect();
    let key = key.join(", ");
    // The rows that are there come back with their place in the list.
    let select = format!(
        "SELECT k.place, t.duration, t.first_token
         FROM jsonb_array_elements($1) WITH ORDINALITY AS e (one, place)
         CROSS JOIN LATERAL (SELECT e.place, r.* FROM jsonb_populate_record(NULL::{table}, e.one) AS r) AS k
         JOIN {table} AS t USING ({key})"
    );
    let keys: Vec<&Json> = deltas.iter().map(|(key, _)| key).collect();
    let known = transaction.query(&transaction.prepare_cached(&select).await?, &[&AsJson(keys)]).await?;
    let known: HashMap<i64, (Histogram, Histogram)> =
        known.iter().map(|row| (row.get(0), (histogram(row, 1), histogram(row, 2)))).collect();
    let rows: Vec<Json> =
        deltas.into_iter().zip(1..).map(|((key, figures), place)| sums_row(key, figures, known.get(&place))).collect();
    let added = [
        "calls",
        "errors",
        "refused",
        "cost_nanousd",
        "input_tokens",
        "cached_tokens",
        "output_tokens",
        "reasoning_tokens",
    ]
    .map(|name| format!("{name} = {table}.{name} + excluded.{name}"));
    let upsert = format!(
        "INSERT INTO {table} SELECT * FROM jsonb_populate_recordset(NULL::{table}, $1)
         ON CONFLICT ({key}) DO UPDATE SET {}, duration = excluded.duration, first_token = excluded.first_token",
        added.join(", ")
    );
    transaction.execute(&transaction.prepare_cached(&upsert).await?, &[&AsJson(rows)]).await.map(drop)
}

fn sums_row(mut row: Json, figures: &Figures, known: Option<&(Histogram, Histogram)>) -> Json {
    let merged = |known: Option<&Histogram>, new: &Histogram| {
        let mut all = new.clone();
        all.merge(known.unwrap_or(&Histogram::default()));
        let hex: String = all.encode().iter().map(|byte| format!("{byte:02x}")).collect();
        format!("\\x{hex}")
    };
    row["calls"] = figures.calls.into();
    row["errors"] = figures.errors.into();
    row["refused"] = figures.refused.into();
    row["cost_nanousd"] = figures.cost_nanousd.into();
    row["input_tokens"] = figures.input_tokens.into();
    row["cached_tokens"] = figures.cached_tokens.into();
    row["output_tokens"] = figures.output_tokens.into();
    row["reasoning_tokens"] = figures.reasoning_tokens.into();
    row["duration"] = merged(known.map(|(duration, _)| duration), &figures.duration).into();
    row["first_token"] = merged(known.map(|(_, first)| first), &figures.first_token).into();
    row
}

/// The first (`min`) or last (`max`) minute or hour that there are sums of.
async fn sums_bound(
    transaction: &Transaction<'_>,
    which: &str,
    width_ms: u64,
) -> Result<Option<u64>, tokio_postgres::Error> {
    let sql = format!("SELECT {which}(bucket_ms) FROM rollup WHERE dimension = $1 AND width_ms = $2");
    let found: Option<i64> = transaction.query_one(&sql, &[&ALL, &integer(width_ms)]).await?.get(0);
    Ok(found.map(unsigned))
}

// === reading ===

/// What was written from an unsigned number.
fn unsigned(value: i64) -> u64 {
    u64::try_from(value).unwrap_or(0)
}

fn number(row: &Row, column: usize) -> u64 {
    unsigned(row.get(column))
}

fn histogram(row: &Row, column: usize) -> Histogram {
    // One that is damaged counts for nothing; the sums beside it still hold.
    Histogram::decode(row.get(column)).unwrap_or_default()
}

fn parameters(values: &[Value]) -> Vec<&(dyn ToSql + Sync)> {
    let mut parameters: Vec<&(dyn ToSql + Sync)> = Vec::with_capacity(values.len());
    for value in values {
        match value {
            Value::Text(text) => parameters.push(text),
            Value::Integer(integer) => parameters.push(integer),
        }
    }
    parameters
}

async fn page(
    client: &Object,
    filter: &Filter,
    after: Option<&str>,
    limit: usize,
) -> Result<Page, tokio_postgres::Error> {
    let after = match after.map(|id| (received_ms(id), id)) {
        Some((None, _)) => return Ok(Page::default()),
        Some((Some(received), id)) => Some((received, id)),
        None => None,
    };
    // One more than asked for tells whether there is a next page.
    let wanted = limit + 1;
    let mut rows = match filter.variant.is_some() || filter.tag.is_some() {
        true => latest_by_day(client, filter, after, wanted).await?,
        false => latest(client, filter, after, wanted, "received_ms").await?,
    };
    let more = rows.len() > limit;
    rows.truncate(limit);
    let next = rows.last().filter(|_| more).map(|row| row.id.clone());
    Ok(Page { rows, next })
}

/// The latest calls of `filter`, before `after`, ordered by the expression `time`.
async fn latest(
    client: &Object,
    filter: &Filter,
    after: Option<(u64, &str)>,
    count: usize,
    time: &str,
) -> Result<Vec<CallRow>, tokio_postgres::Error> {
    let mut conditions = Conditions::of(filter, Dialect::Postgres, Table::Calls);
    if let Some((received, id)) = after {
        conditions.after(received, id);
    }
    let (condition, values) = conditions.finish();
    let sql = format!("SELECT to_jsonb(calls) FROM calls {condition} ORDER BY {time} DESC, id DESC LIMIT {count}");
    let rows = client.query(&sql, &parameters(&values)).await?;
    Ok(rows.iter().map(|row| row.get::<_, AsJson<CallRow>>(0).0).collect())
}

/// The same, a day after the other, where what is asked for has an index that is in no order: how rare a variant or tag is, the
/// planner guesses, and where it guesses wrong it reads the whole log in order and finds nothing. So each day is first asked whether
/// it has any, and how many.
async fn latest_by_day(
    client: &Object,
    filter: &Filter,
    after: Option<(u64, &str)>,
    count: usize,
) -> Result<Vec<CallRow>, tokio_postgres::Error> {
    let (since, until) = (filter.since_ms.unwrap_or(0), filter.until_ms.unwrap_or(u64::MAX));
    let last = after.map_or(until, |(received, _)| until.min(received.saturating_add(1)));
    let mut rows = Vec::new();
    for day in days_kept(client).await?.into_iter().rev() {
        let (begins, ends) = (day * DAY_MS, (day + 1) * DAY_MS);
        if begins >= last || ends <= since {
            continue;
        }
        let of_day = Filter { since_ms: Some(since.max(begins)), until_ms: Some(until.min(ends)), ..filter.clone() };
        let time = match few_of(client, &of_day).await? {
            0 => continue,
            // Sorted all of them: what is added to the time keeps it from being read in the order of the primary key.
            1..FEW => "received_ms + 0",
            // In that order the page is soon full.
            _ => "received_ms",
        };
        rows.extend(latest(client, &of_day, after, count - rows.len(), time).await?);
        if rows.len() >= count {
            break;
        }
    }
    Ok(rows)
}

/// How many calls a filter has, counted up to [`FEW`].
async fn few_of(client: &Object, filter: &Filter) -> Result<u64, tokio_postgres::Error> {
    let (condition, values) = Conditions::of(filter, Dialect::Postgres, Table::Calls).finish();
    let sql = format!("SELECT count(*) FROM (SELECT 1 FROM calls {condition} LIMIT {FEW}) AS few");
    Ok(number(&client.query_one(&sql, &parameters(&values)).await?, 0))
}

/// The days (since 1970) that have a partition, ascending.
async fn days_kept(client: &Object) -> Result<Vec<u64>, tokio_postgres::Error> {
    let rows = client.query(PARTITIONS, &[]).await?;
    let mut days: Vec<u64> = rows.iter().filter_map(|row| day_of_partition(row.get(0))).collect();
    days.sort_unstable();
    Ok(days)
}

async fn read_feedback(
    client: &Object,
    filter: &FeedbackFilter,
    after: Option<&str>,
    limit: usize,
) -> Result<FeedbackPage, tokio_postgres::Error> {
    let (condition, values) = Conditions::of_feedback(filter, after, Dialect::Postgres).finish();
    // One more than asked for tells whether there is a next page.
    let sql = format!(
        r#"SELECT about, subject, metric, source, id, rated_ms, "key", team, kind, number, text, comment FROM feedback {condition}
           ORDER BY id DESC LIMIT {}"#,
        limit + 1
    );
    let text = |row: &Row, column: usize| row.get::<_, Option<&str>>(column).map(Arc::<str>::from);
    let rating = |row: &Row| {
        let is_call = row.get::<_, &str>(0) == "call";
        Feedback {
            id: row.get::<_, &str>(4).into(),
            call: text(row, 1).filter(|_| is_call),
            session: text(row, 1).filter(|_| !is_call),
            metric: row.get::<_, &str>(2).into(),
            value: feedback::rating_of(row.get(8), row.get(9), text(row, 10)),
            source: row.get::<_, &str>(3).into(),
            comment: text(row, 11),
            key: row.get::<_, &str>(6).into(),
            team: text(row, 7),
            rated_ms: number(row, 5),
        }
    };
    let rows = client.query(&sql, &parameters(&values)).await?;
    Ok(FeedbackPage::of(rows.iter().map(rating).collect(), limit))
}

async fn arms(client: &Object, query: &ArmsQuery) -> Result<Vec<ArmFigures>, tokio_postgres::Error> {
    let (sql, values) = figures::sql(query, Dialect::Postgres);
    let mut collector = ArmCollector::default();
    for row in client.query(&sql, &parameters(&values)).await? {
        let text = |column: usize| Arc::<str>::from(row.get::<_, &str>(column));
        collector.add(ArmRow {
            part: i64::from(row.get::<_, i32>(0)),
            arm: text(1),
            name: text(2),
            word: text(3),
            count: number(&row, 4),
            sums: std::array::from_fn(|n| row.get(n + 5)),
        });
    }
    Ok(collector.finish())
}

async fn usage(client: &mut Object, query: UsageQuery) -> Result<Vec<Series>, tokio_postgres::Error> {
    // One state of the log for all parts: between two of them a call could be written.
    let one_state = client.build_transaction().isolation_level(IsolationLevel::RepeatableRead).read_only(true);
    let transaction = one_state.start().await?;
    let kept = Kept {
        minutes_from_ms: sums_bound(&transaction, "min", MINUTE_MS).await?,
        hours_from_ms: sums_bound(&transaction, "min", HOUR_MS).await?,
    };
    let plan = Plan::of(query, kept);
    let mut collector = plan.collect();
    for Part { source, filter } in &plan.parts {
        match source {
            Source::Rollup { width_ms, dimension, value } => {
                let rows = (*width_ms, *dimension, value.as_deref());
                usage_of_rollup(&transaction, filter, plan.by, rows, &mut collector).await?;
            }
            Source::Cube { width_ms } => {
                usage_of_cube(&transaction, filter, plan.by, *width_ms, &mut collector).await?;
            }
            Source::Calls => usage_of_calls(&transaction, filter, plan.by, &mut collector).await?,
        }
    }
    transaction.commit().await?;
    Ok(collector.finish())
}

async fn usage_of_rollup(
    transaction: &Transaction<'_>,
    filter: &Filter,
    by: Option<Dimension>,
    (width_ms, dimension, value): (u64, &str, Option<&str>),
    collector: &mut Collector,
) -> Result<(), tokio_postgres::Error> {
    let sql = format!(
        "SELECT {FIGURES}, bucket_ms, value FROM rollup WHERE dimension = $1 AND width_ms = $2 AND bucket_ms >= $3
         AND bucket_ms < $4 AND ($5::text IS NULL OR value = $5)"
    );
    let since = integer(filter.since_ms.unwrap_or(0));
    let until = integer(filter.until_ms.unwrap_or(u64::MAX));
    let rows = transaction.query(&sql, &[&dimension, &integer(width_ms), &since, &until, &value]).await?;
    for row in &rows {
        let figures = read_figures(row);
        let value = if by.is_some() { row.get(11) } else { "" };
        collector.at(number(row, 10), value, |sums| sums.merge(&figures));
    }
    Ok(())
}

async fn usage_of_cube(
    transaction: &Transaction<'_>,
    filter: &Filter,
    by: Option<Dimension>,
    width_ms: u64,
    collector: &mut Collector,
) -> Result<(), tokio_postgres::Error> {
    let (condition, values) = Conditions::of(filter, Dialect::Postgres, Table::Cube { width_ms }).finish();
    let value = match by {
        Some(by) if by != Dimension::User => format!("\"{}\"", by.label()),
        _ => "''::text".to_owned(),
    };
    let sql = format!("SELECT {FIGURES}, bucket_ms, {value} FROM cube {condition}");
    let rows = transaction.query(&sql, &parameters(&values)).await?;
    for row in &rows {
        let figures = read_figures(row);
        let (at, value) = (number(row, 10), row.get::<_, &str>(11));
        let mut add = |value: &str| collector.at(at, value, |sums| sums.merge(&figures));
        match by {
            Some(Dimension::Variant) => value.split(',').filter(|variant| !variant.is_empty()).for_each(add),
            _ => add(value),
        }
    }
    Ok(())
}

async fn usage_of_calls(
    transaction: &Transaction<'_>,
    filter: &Filter,
    by: Option<Dimension>,
    collector: &mut Collector,
) -> Result<(), tokio_postgres::Error> {
    let (condition, values) = Conditions::of(filter, Dialect::Postgres, Table::Calls).finish();
    let value = match by {
        None => "''::text".to_owned(),
        Some(Dimension::Variant) => "variants::text".to_owned(),
        Some(by) => format!("coalesce(\"{}\", '')", by.label()),
    };
    let sql = format!(
        "SELECT received_ms, outcome, cost_nanousd, input_tokens, cached_tokens, output_tokens, reasoning_tokens, attempts,
         duration_us, first_token_us, {value} FROM calls {condition}"
    );
    // A part at a time: a million rows must not be in memory together.
    let portal = transaction.bind(&sql, &parameters(&values)).await?;
    loop {
        let rows = transaction.query_portal(&portal, 10_000).await?;
        if rows.is_empty() {
            break;
        }
        for row in &rows {
            let call = read_counted(row);
            let (at, value) = (number(row, 0), row.get::<_, &str>(10));
            let mut add = |value: &str| collector.at(at, value, |sums| sums.add(&call));
            match by {
                Some(Dimension::Variant) => assigned(value).iter().for_each(|variant| add(&variant_label(variant))),
                _ => add(value),
            }
        }
    }
    Ok(())
}

fn assigned(json: &str) -> Vec<Assigned> {
    serde_json::from_str(json).unwrap_or_default()
}

/// Sums from the columns of [`FIGURES`], which are the first ones.
fn read_figures(row: &Row) -> Figures {
    Figures {
        calls: number(row, 0),
        errors: number(row, 1),
        refused: number(row, 2),
        cost_nanousd: number(row, 3),
        input_tokens: number(row, 4),
        cached_tokens: number(row, 5),
        output_tokens: number(row, 6),
        reasoning_tokens: number(row, 7),
        duration: histogram(row, 8),
        first_token: histogram(row, 9),
    }
}

fn read_counted(row: &Row) -> Counted {
    Counted {
        outcome: Outcome::of_label(row.get(1)).unwrap_or(Outcome::Internal),
        cost_nanousd: number(row, 2),
        input_tokens: number(row, 3),
        cached_tokens: number(row, 4),
        output_tokens: number(row, 5),
        reasoning_tokens: number(row, 6),
        attempts: u32::try_from(number(row, 7)).unwrap_or(u32::MAX),
        duration_us: number(row, 8),
        first_token_us: row.get::<_, Option<i64>>(9).map(unsigned),
    }
}

fn read_evaluation(row: &Row) -> EvaluationHead {
    let text = |column: usize| Arc::<str>::from(row.get::<_, &str>(column));
    EvaluationHead { id: text(0), suite: text(1), candidate: text(2), created_ms: number(row, 3) }
}

fn read_body(row: &Row, first: usize) -> Option<Body> {
    let text = row.get::<_, Option<String>>(first)?;
    Some(Body { text, bytes: number(row, first + 1), cut: row.get(first + 2) })
}

// === deleting ===

async fn delete_before(client: &mut Object, until_ms: u64) -> Result<u64, tokio_postgres::Error> {
    let transaction = client.transaction().await?;
    // A partition cannot be dropped while somebody reads it; the next round comes soon.
    transaction.batch_execute("SET LOCAL lock_timeout = '5s'").await?;
    transaction.execute("SELECT pg_advisory_xact_lock($1)", &[&SCHEMA_LOCK]).await?;
    let last_whole_day = partition("calls", until_ms.min(integer(until_ms).unsigned_abs()) / DAY_MS);
    let mut deleted = 0;
    for row in transaction.query(PARTITIONS, &[]).await? {
        let calls: String = row.get(0);
        // Names sort by their dates.
        if calls >= last_whole_day {
            continue;
        }
        let bodies = calls.replacen("calls", "bodies", 1);
        deleted += number(&transaction.query_one(&format!("SELECT count(*) FROM {calls}"), &[]).await?, 0);
        transaction.batch_execute(&format!("DROP TABLE {calls}; DROP TABLE IF EXISTS {bodies}")).await?;
    }
    let until = integer(until_ms);
    transaction.execute("DELETE FROM bodies WHERE received_ms < $1", &[&until]).await?;
    transaction.execute("DELETE FROM feedback WHERE received_ms < $1", &[&until]).await?;
    deleted += transaction.execute("DELETE FROM calls WHERE received_ms < $1", &[&until]).await?;
    let hour = integer(until_ms / HOUR_MS * HOUR_MS);
    transaction.execute("SELECT pg_advisory_xact_lock($1)", &[&SUMS_LOCK]).await?;
    transaction.execute("DELETE FROM rollup WHERE bucket_ms < $1", &[&hour]).await?;
    transaction.execute("DELETE FROM cube WHERE bucket_ms < $1", &[&hour]).await?;
    transaction.commit().await?;
    Ok(deleted)
}

#[cfg(test)]
#[path = "../../../tests/it/support/postgres.rs"]
mod server;

#[cfg(test)]
mod tests {
    use super::{super::contract, server::PostgresServer, *};

    #[tokio::test]
    async fn the_rules_of_every_call_log_hold() {
        let server = PostgresServer::start();
        contract::holds(&Postgres::open(&server.url()).unwrap()).await;
    }

    #[tokio::test]
    async fn a_day_has_a_partition_made_ahead_and_dropped_whole() {
        let server = PostgresServer::start();
        let log = Postgres::open(&server.url()).unwrap();
        let partitions = || async {
            let sql = "SELECT relname::text FROM pg_class WHERE relispartition AND relkind = 'r' AND relname LIKE 'calls%' ORDER BY 1";
            let rows = log.ask(async |client| client.query(sql, &[]).await).await.unwrap();
            rows.iter().map(|row| row.get(0)).collect::<Vec<String>>()
        };
        let day = |n: u64| contract::entries([contract::row(contract::BEGIN_MS + n * DAY_MS + 5, n)]);
        log.append(day(0)).await.unwrap();
        log.append(day(2)).await.unwrap();
        assert_eq!(partitions().await, ["calls_20261101", "calls_20261102", "calls_20261103", "calls_20261104"]);
        assert_eq!(day_of_partition("calls_20261101"), Some(contract::BEGIN_MS / DAY_MS));
        assert_eq!(log.delete_before(contract::BEGIN_MS + 2 * DAY_MS).await.unwrap(), 1);
        assert_eq!(partitions().await, ["calls_20261103", "calls_20261104"]);
        // A call that comes late finds its day again, also where another gateway dropped it.
        let other = Postgres::open(&server.url()).unwrap();
        other.append(day(2)).await.unwrap();
        log.delete_before(contract::BEGIN_MS + 3 * DAY_MS).await.unwrap();
        assert!(matches!(other.append(day(2)).await, Err(StoreError::Unavailable(_))));
        assert_eq!(other.append(day(2)).await.unwrap(), 1);
    }

    #[tokio::test]
    async fn the_schema_goes_back_and_forth_and_two_that_come_at_once_make_it_once() {
        let server = PostgresServer::start();
        let (first, second) = (Postgres::open(&server.url()).unwrap(), Postgres::open(&server.url()).unwrap());
        let (a, b) = (
            contract::entries([contract::row(contract::BEGIN_MS, 1)]),
            contract::entries([contract::row(contract::BEGIN_MS, 2)]),
        );
        let (a, b) = tokio::join!(first.append(a), second.append(b));
        assert_eq!((a.unwrap(), b.unwrap()), (1, 1));
        assert_eq!(first.usage(UsageQuery::default()).await.unwrap()[0].total.calls, 2);
        assert_eq!(Postgres::migrate(&server.url(), 0).await.unwrap(), migrations::newest(&migrations::POSTGRES));
        let reader = Postgres::read(&server.url()).unwrap();
        assert!(reader.page(Filter::default(), None, 1).await.is_err(), "the table is gone");
        contract::holds(&Postgres::open(&server.url()).unwrap()).await;
    }

    #[test]
    fn a_wrong_url_is_not_repeated() {
        for url in ["postgres://u:secret@h:port/db", "postgres://u:secret@/db?x=y", "nonsense secret"] {
            let error = Postgres::open(url).unwrap_err().to_string();
            assert!(!error.contains("secret"), "{error}");
        }
    }

    /// As of SQLite: `TOLLGATE_CALLS=1000000 cargo test --release --lib a_full_log -- --nocapture`.
    #[tokio::test]
    async fn a_full_log_answers_in_time() {
        let full = std::env::var("TOLLGATE_CALLS").ok().and_then(|count| count.parse().ok());
        let server = PostgresServer::start();
        let log = Postgres::open(&server.url()).unwrap();
        let times = contract::times_of_a_full_log(&log, full.unwrap_or(10_000)).await;
        if full.is_some() {
            eprintln!("PostgreSQL: {times:#?}");
        }
        contract::assert_in_time(&times);
    }
}
