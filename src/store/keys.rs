//! Virtual keys made at run time: a SQLite file that gateways read and the command line writes.
//!
//! Only digests are kept, so a copy of the file opens nothing. Commands and running gateways are separate processes on one
//! file: [`KeyStore::revision`] is cheap enough to ask each second, which is how a revocation is live everywhere within
//! seconds.

use std::{
    fs::DirBuilder,
    io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use rusqlite::{Connection, ErrorCode, OptionalExtension, Row, TransactionBehavior, named_params};
use serde::Serialize;

use crate::policy::keys::{self, Caller, KeyDigest, KeyError, ModelAccess, SecretKey};

/// The store's file in the data directory.
pub const FILE_NAME: &str = "keys.sqlite";

/// How long to wait for another process that writes.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);
const NAME_CHARS_MAX: usize = 128;

/// One row per key, never deleted: revoked ones keep saying whose they were. `revision` counts changes.
const SCHEMA: &str = "
    CREATE TABLE IF NOT EXISTS keys (
        id TEXT PRIMARY KEY,
        name TEXT NOT NULL,
        team TEXT,
        models TEXT NOT NULL,
        tags TEXT NOT NULL,
        digest TEXT NOT NULL UNIQUE,
        created_ms INTEGER NOT NULL,
        expires_ms INTEGER,
        revoked_ms INTEGER
    ) STRICT;
    CREATE UNIQUE INDEX IF NOT EXISTS keys_in_use ON keys (name) WHERE revoked_ms IS NULL;
    CREATE TABLE IF NOT EXISTS revision (only_row INTEGER PRIMARY KEY CHECK (only_row = 1), changes INTEGER NOT NULL) STRICT;
    INSERT OR IGNORE INTO revision VALUES (1, 0);
    PRAGMA user_version = 1;
";
const SCHEMA_VERSION: i64 = 1;

/// A key to be made.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NewKey {
    /// Its name; no other key in use has it.
    pub name: String,
    /// The team it belongs to.
    pub team: Option<String>,
    /// Patterns of the models it may name; none: all.
    pub models: Vec<String>,
    /// Tags.
    pub tags: Vec<(String, String)>,
    /// When it stops being valid, in milliseconds since 1970.
    pub expires_ms: Option<i64>,
}

/// A key that was made. The secret is nowhere else.
#[derive(Debug)]
pub struct Created {
    /// Show it once.
    pub secret: SecretKey,
    /// The public part, by which it is listed and revoked.
    pub id: String,
    /// What the store keeps of it; also good for a configuration's `hash`.
    pub digest: KeyDigest,
}

/// A key as it is listed: everything but its digest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct KeyRow {
    /// The public part of the key.
    pub id: String,
    /// Its name.
    pub name: String,
    /// The team it belongs to.
    pub team: Option<String>,
    /// Patterns of the models it may name; none: all.
    pub models: Vec<String>,
    /// Tags.
    pub tags: Vec<(String, String)>,
    /// When it was made, in milliseconds since 1970.
    pub created_ms: i64,
    /// When it stops being valid, in milliseconds since 1970.
    pub expires_ms: Option<i64>,
    /// When it was revoked, in milliseconds since 1970.
    pub revoked_ms: Option<i64>,
}

/// Why the key store cannot do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum KeyStoreError {
    /// The directory or file cannot be made or protected.
    #[error("{}: {reason}; `data_dir` must be a directory that this user may write to", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// Why. Not an error's source: the message says it already.
        reason: io::Error,
    },
    /// The file cannot be opened as a key store.
    #[error("{}: {reason}", path.display())]
    Unreadable {
        /// Which.
        path: PathBuf,
        /// SQLite's word. Not an error's source: the message says it already.
        reason: rusqlite::Error,
    },
    /// SQLite failed.
    #[error("the key store failed: {0}")]
    Sqlite(rusqlite::Error),
    /// The file is from a later version of this program.
    #[error("{} has schema {version}, which this version of tollgate does not know: a later one wrote it", path.display())]
    TooNew {
        /// Which.
        path: PathBuf,
        /// The version.
        version: i64,
    },
    /// A name is empty, too long, or has control characters.
    #[error("`{0}` is no name for a key: 1 to {NAME_CHARS_MAX} characters, none of them a control character")]
    InvalidName(String),
    /// A key in use has the name.
    #[error("there is a key named `{0}` already; revoke it first or choose another name")]
    NameTaken(String),
    /// No key in use has this name or id.
    #[error("no key in use has the name or id `{0}`")]
    NotFound(String),
    /// A row does not hold what was written.
    #[error("the key store's row of `{id}` is damaged: {reason}")]
    Damaged {
        /// The row's id.
        id: String,
        /// What is wrong.
        reason: String,
    },
    /// No key could be made.
    #[error(transparent)]
    Key(#[from] KeyError),
}

/// An open key store.
#[derive(Debug)]
pub struct KeyStore {
    connection: Mutex<Connection>,
}

/// Not as a source: the message says what SQLite said.
impl From<rusqlite::Error> for KeyStoreError {
    fn from(error: rusqlite::Error) -> KeyStoreError {
        KeyStoreError::Sqlite(error)
    }
}

// === impl KeyStore ===

impl KeyStore {
    /// Opens the store of a data directory, making it if need be: a new directory with mode 0700, the file with 0600.
    ///
    /// # Errors
    /// When the file cannot be made, protected or read, or is from a later version.
    pub fn open(data_dir: &Path) -> Result<KeyStore, KeyStoreError> {
        let path = data_dir.join(FILE_NAME);
        protect(data_dir, &path).map_err(|reason| KeyStoreError::File { path: path.clone(), reason })?;
        let (connection, version) =
            connect(&path).map_err(|reason| KeyStoreError::Unreadable { path: path.clone(), reason })?;
        if version > SCHEMA_VERSION {
            return Err(KeyStoreError::TooNew { path, version });
        }
        Ok(KeyStore { connection: Mutex::new(connection) })
    }

    /// Makes a key. The secret is in the result and nowhere else.
    ///
    /// # Errors
    /// When the name is taken or none, or the store cannot be written.
    pub fn create(&self, key: &NewKey, pepper: Option<&[u8]>) -> Result<Created, KeyStoreError> {
        check_name(&key.name)?;
        let secret = keys::generate()?;
        let (id, digest) = (secret.public_id().to_owned(), KeyDigest::of(secret.expose(), pepper));
        let mut connection = self.connection();
        let change = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        if in_use(&change, "name", &key.name)?.is_some() {
            return Err(KeyStoreError::NameTaken(key.name.clone()));
        }
        change.execute(
            "INSERT INTO keys (id, name, team, models, tags, digest, created_ms, expires_ms)
             VALUES (:id, :name, :team, :models, :tags, :digest, :created_ms, :expires_ms)",
            named_params! {
                ":id": id,
                ":name": key.name,
                ":team": key.team,
                ":models": json(&key.models),
                ":tags": json(&key.tags),
                ":digest": digest.to_string(),
                ":created_ms": now_ms(),
                ":expires_ms": key.expires_ms,
            },
        )?;
        count_change(&change)?;
        change.commit()?;
        Ok(Created { secret, id, digest })
    }

    /// All keys, the newest last, revoked ones included.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn list(&self) -> Result<Vec<KeyRow>, KeyStoreError> {
        let connection = self.connection();
        let mut query = connection.prepare_cached(
            "SELECT id, name, team, models, tags, created_ms, expires_ms, revoked_ms FROM keys ORDER BY created_ms, rowid",
        )?;
        let rows = query.query_map([], Raw::read)?;
        rows.map(|row| row?.listed()).collect()
    }

    /// Revokes the key in use that has this id, else the one with this name. Returns it.
    ///
    /// # Errors
    /// When there is none, or the store cannot be written.
    pub fn revoke(&self, name_or_id: &str) -> Result<KeyRow, KeyStoreError> {
        let mut connection = self.connection();
        let change = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        let found = match in_use(&change, "id", name_or_id)? {
            Some(id) => Some(id),
            None => in_use(&change, "name", name_or_id)?,
        };
        let Some(id) = found else { return Err(KeyStoreError::NotFound(name_or_id.to_owned())) };
        let revoked = change.query_row(
            "UPDATE keys SET revoked_ms = ?2 WHERE id = ?1
             RETURNING id, name, team, models, tags, created_ms, expires_ms, revoked_ms",
            (&id, now_ms()),
            Raw::read,
        )?;
        count_change(&change)?;
        change.commit()?;
        revoked.listed()
    }

    /// The keys that are valid now, for [`crate::policy::keys::KeyRing::with`].
    ///
    /// # Errors
    /// When the store cannot be read or a row is damaged.
    pub fn active(&self) -> Result<Vec<(KeyDigest, Caller)>, KeyStoreError> {
        let connection = self.connection();
        let mut query = connection.prepare_cached(
            "SELECT id, name, team, models, tags, created_ms, expires_ms, revoked_ms, digest FROM keys
             WHERE revoked_ms IS NULL AND (expires_ms IS NULL OR expires_ms > ?1)",
        )?;
        let rows = query.query_map([now_ms()], |row| Ok((Raw::read(row)?, row.get::<_, String>("digest")?)))?;
        rows.map(|row| {
            let (raw, digest) = row?;
            let key = raw.listed()?;
            let damaged = |error: KeyError| KeyStoreError::Damaged { id: key.id.clone(), reason: error.to_string() };
            Ok((KeyDigest::parse(&digest).map_err(damaged)?, key.caller()))
        })
        .collect()
    }

    /// A number that changes whenever [`KeyStore::active`] does, by whichever process, expiry included. Some 10 µs.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn revision(&self) -> Result<i64, KeyStoreError> {
        let connection = self.connection();
        // Rows are never deleted, so both numbers only grow, and so does their sum.
        let mut query = connection
            .prepare_cached("SELECT changes + (SELECT count(*) FROM keys WHERE expires_ms <= ?1) FROM revision")?;
        Ok(query.query_row([now_ms()], |row| row.get(0))?)
    }

    fn connection(&self) -> MutexGuard<'_, Connection> {
        // A panic in between leaves no open transaction: rusqlite rolls back when one is dropped.
        self.connection.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl KeyRow {
    fn caller(&self) -> Caller {
        let models = match self.models.is_empty() {
            true => ModelAccess::All,
            false => ModelAccess::listed(self.models.iter().map(String::as_str)),
        };
        let tags =
            self.tags.iter().map(|(name, value)| (Arc::from(name.as_str()), Arc::from(value.as_str()))).collect();
        Caller { name: self.name.as_str().into(), team: self.team.as_deref().map(Arc::from), models, tags }
    }
}

/// A row whose JSON columns are not read yet.
struct Raw {
    row: KeyRow,
    models: String,
    tags: String,
}

impl Raw {
    fn read(row: &Row<'_>) -> rusqlite::Result<Raw> {
        let listed = KeyRow {
            id: row.get("id")?,
            name: row.get("name")?,
            team: row.get("team")?,
            models: Vec::new(),
            tags: Vec::new(),
            created_ms: row.get("created_ms")?,
            expires_ms: row.get("expires_ms")?,
            revoked_ms: row.get("revoked_ms")?,
        };
        Ok(Raw { row: listed, models: row.get("models")?, tags: row.get("tags")? })
    }

    /// A damaged list is an error, never an empty one: an empty list of models means all.
    fn listed(self) -> Result<KeyRow, KeyStoreError> {
        let Raw { row, models, tags } = self;
        let damaged =
            |error: serde_json::Error| KeyStoreError::Damaged { id: row.id.clone(), reason: error.to_string() };
        let (models, tags) =
            (serde_json::from_str(&models).map_err(damaged)?, serde_json::from_str(&tags).map_err(damaged)?);
        Ok(KeyRow { models, tags, ..row })
    }
}

/// A connection to the store at `path`, its schema made if it is new, and the schema's version.
fn connect(path: &Path) -> rusqlite::Result<(Connection, i64)> {
    let connection = Connection::open(path)?;
    connection.busy_timeout(BUSY_TIMEOUT)?;
    write_ahead(&connection)?;
    // A revocation must outlive a power cut.
    connection.pragma_update(None, "synchronous", "FULL")?;
    let version: i64 = connection.pragma_query_value(None, "user_version", |row| row.get(0))?;
    if version < SCHEMA_VERSION {
        connection.execute_batch(&format!("BEGIN IMMEDIATE; {SCHEMA} COMMIT;"))?;
    }
    Ok((connection, version))
}

/// Switches to a write-ahead log, so that readers never wait for a writer. SQLite does not apply its busy time-out to the
/// switch, and two processes may open a new store at once.
fn write_ahead(connection: &Connection) -> rusqlite::Result<()> {
    const PAUSE: Duration = Duration::from_millis(10);
    let mut waited = Duration::ZERO;
    loop {
        match connection.pragma_update(None, "journal_mode", "WAL") {
            Err(error) if error.sqlite_error_code() == Some(ErrorCode::DatabaseBusy) && waited < BUSY_TIMEOUT => {
                thread::sleep(PAUSE);
                waited += PAUSE;
            }
            done => return done,
        }
    }
}

/// The id of the key in use whose column `column` is `value`.
fn in_use(connection: &Connection, column: &'static str, value: &str) -> rusqlite::Result<Option<String>> {
    let query = format!("SELECT id FROM keys WHERE {column} = ?1 AND revoked_ms IS NULL");
    connection.query_row(&query, [value], |row| row.get(0)).optional()
}

fn count_change(connection: &Connection) -> rusqlite::Result<()> {
    connection.execute("UPDATE revision SET changes = changes + 1", []).map(drop)
}

fn check_name(name: &str) -> Result<(), KeyStoreError> {
    let is_valid = (1..=NAME_CHARS_MAX).contains(&name.chars().count())
        && name.trim() == name
        && !name.chars().any(char::is_control);
    is_valid.then_some(()).ok_or_else(|| KeyStoreError::InvalidName(name.to_owned()))
}

fn json<T: Serialize>(value: &T) -> String {
    serde_json::to_string(value).expect("lists of texts are always JSON")
}

fn now_ms() -> i64 {
    let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since_1970.as_millis()).unwrap_or(i64::MAX)
}

/// Makes directory and file where they are not there, for their owner only. SQLite gives its side files the file's own mode.
#[cfg(unix)]
fn protect(data_dir: &Path, file: &Path) -> io::Result<()> {
    use std::{
        fs::{OpenOptions, Permissions},
        os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt},
    };

    DirBuilder::new().recursive(true).mode(0o700).create(data_dir)?;
    let opened = OpenOptions::new().append(true).create(true).mode(0o600).open(file)?;
    if opened.metadata()?.permissions().mode() & 0o077 != 0 {
        opened.set_permissions(Permissions::from_mode(0o600))?;
    }
    Ok(())
}

/// Makes the directory where it is not there; access rights are inherited.
#[cfg(not(unix))]
fn protect(data_dir: &Path, _file: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).create(data_dir)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use tempfile::TempDir;

    use super::*;
    use crate::policy::keys::KeyRing;

    fn store() -> (TempDir, KeyStore) {
        let dir = tempfile::tempdir().expect("a directory");
        let store = KeyStore::open(&dir.path().join("data")).expect("opens");
        (dir, store)
    }

    fn named(name: &str) -> NewKey {
        NewKey { name: name.to_owned(), ..NewKey::default() }
    }

    fn ring(store: &KeyStore, pepper: Option<&[u8]>) -> KeyRing {
        KeyRing::new(Vec::new(), pepper).with(store.active().expect("reads"))
    }

    #[test]
    fn a_created_key_is_found_by_its_secret_with_all_it_was_given() {
        for pepper in [None, Some(b"pepper".as_slice())] {
            let (_dir, store) = store();
            let key = NewKey {
                team: Some("product".into()),
                models: vec!["support".into(), "openai/*".into()],
                tags: vec![("app".into(), "web".into())],
                ..named("web")
            };
            let created = store.create(&key, pepper).expect("created");

            let caller = ring(&store, pepper).find(created.secret.expose()).expect("found");

            assert_eq!((&*caller.name, caller.team.as_deref()), ("web", Some("product")));
            assert_eq!(caller.models, ModelAccess::listed(["support", "openai/*"]));
            assert_eq!(*caller.tags, [("app".into(), "web".into())]);
            assert_eq!(ring(&store, pepper).find(&created.digest.to_string()), None);
        }
    }

    #[test]
    fn a_key_without_models_may_name_all() {
        let (_dir, store) = store();
        let created = store.create(&named("web"), None).expect("created");
        assert_eq!(ring(&store, None).find(created.secret.expose()).expect("found").models, ModelAccess::All);
    }

    #[test]
    fn the_file_holds_no_secret() {
        let (dir, store) = store();
        let created = store.create(&named("web"), None).expect("created");
        let secret = created.secret.expose().rsplit('-').next().expect("a secret part");
        for file in fs::read_dir(dir.path().join("data")).expect("a directory") {
            let bytes = fs::read(file.expect("an entry").path()).expect("readable");
            assert!(!bytes.windows(secret.len()).any(|window| window == secret.as_bytes()));
        }
    }

    #[cfg(unix)]
    #[test]
    fn only_the_owner_can_read_it() {
        use std::os::unix::fs::PermissionsExt;

        let (dir, store) = store();
        store.create(&named("web"), None).expect("created");
        let mode = |path: &Path| fs::metadata(path).expect("there").permissions().mode() & 0o777;
        let data = dir.path().join("data");
        assert_eq!(mode(&data), 0o700);
        for file in fs::read_dir(&data).expect("a directory") {
            assert_eq!(mode(&file.expect("an entry").path()), 0o600);
        }

        fs::set_permissions(data.join(FILE_NAME), fs::Permissions::from_mode(0o644)).expect("ours");
        KeyStore::open(&data).expect("opens");
        assert_eq!(mode(&data.join(FILE_NAME)), 0o600);
    }

    #[test]
    fn another_process_s_changes_are_seen_through_the_revision() {
        let (dir, gateway) = store();
        let command = KeyStore::open(&dir.path().join("data")).expect("opens twice");
        let start = gateway.revision().expect("reads");

        let created = command.create(&named("web"), None).expect("created");
        let after_create = gateway.revision().expect("reads");
        assert!(after_create > start);
        assert!(ring(&gateway, None).find(created.secret.expose()).is_some());

        assert_eq!(command.revoke("web").expect("revoked").id, created.id);
        assert!(gateway.revision().expect("reads") > after_create);
        assert!(ring(&gateway, None).find(created.secret.expose()).is_none());
        assert_eq!(gateway.revision().expect("reads"), command.revision().expect("reads"));
    }

    #[test]
    fn an_expired_key_is_not_active_and_advances_the_revision() {
        let (_dir, store) = store();
        store.create(&NewKey { expires_ms: Some(now_ms() + 3_600_000), ..named("later") }, None).expect("created");
        let before = store.revision().expect("reads");
        let expired = NewKey { expires_ms: Some(now_ms() - 1), ..named("expired") };
        store.create(&expired, None).expect("created");
        let names: Vec<_> = store.active().expect("reads").into_iter().map(|(_, caller)| caller.name).collect();
        assert_eq!(names, [Arc::<str>::from("later")]);
        assert_eq!(store.revision().expect("reads"), before + 2, "one for the change, one for the expiry");
    }

    #[test]
    fn a_name_is_taken_until_its_key_is_revoked() {
        let (_dir, store) = store();
        let first = store.create(&named("web"), None).expect("created");
        assert!(matches!(store.create(&named("web"), None), Err(KeyStoreError::NameTaken(name)) if name == "web"));
        store.revoke(&first.id).expect("revoked by id");
        store.create(&named("web"), None).expect("the name is free");

        let rows = store.list().expect("reads");
        assert_eq!(rows.iter().map(|row| row.revoked_ms.is_some()).collect::<Vec<_>>(), [true, false]);
        assert_eq!(rows[0].id, first.id);
    }

    #[test]
    fn what_is_not_there_cannot_be_revoked() {
        let (_dir, store) = store();
        let created = store.create(&named("web"), None).expect("created");
        store.revoke("web").expect("revoked");
        for gone in ["web", &created.id, "never", "", "%", "' OR 1=1 --"] {
            assert!(matches!(store.revoke(gone), Err(KeyStoreError::NotFound(_))), "{gone}");
        }
    }

    #[test]
    fn names_are_visible_texts() {
        let (_dir, store) = store();
        for name in ["", " ", " web", "web\n", "a\0b", &"x".repeat(129)] {
            assert!(matches!(store.create(&named(name), None), Err(KeyStoreError::InvalidName(_))), "{name:?}");
        }
        store.create(&named("größe-7 '); DROP TABLE keys; --"), None).expect("any visible text will do");
        assert_eq!(store.list().expect("reads").len(), 1);
    }

    #[test]
    fn a_damaged_row_is_an_error_and_never_more_access() {
        let (_dir, store) = store();
        store.create(&NewKey { models: vec!["support".into()], ..named("web") }, None).expect("created");
        store.connection().execute("UPDATE keys SET models = ''", []).expect("damaged");
        assert!(matches!(store.active(), Err(KeyStoreError::Damaged { .. })));
    }

    #[test]
    fn a_store_of_a_later_version_is_left_alone() {
        let (dir, store) = store();
        store.connection().pragma_update(None, "user_version", 2).expect("written");
        assert!(matches!(KeyStore::open(&dir.path().join("data")), Err(KeyStoreError::TooNew { version: 2, .. })));
    }

    #[test]
    fn several_processes_may_make_and_write_it_at_once() {
        let dir = tempfile::tempdir().expect("a directory");
        std::thread::scope(|scope| {
            for writer in 0..4 {
                let path = dir.path();
                scope.spawn(move || {
                    let store = KeyStore::open(path).expect("opens");
                    (0..5).for_each(|n| drop(store.create(&named(&format!("{writer}-{n}")), None).expect("created")));
                });
            }
        });
        let store = KeyStore::open(dir.path()).expect("opens");
        assert_eq!((store.list().expect("reads").len(), store.revision().expect("reads")), (20, 20));
    }
}
