//! Changes the registry's book: reads the newest one, does what is asked, checks that the result can serve, and pushes it if nobody
//! was faster.
//!
//! What is refused changes nothing. What is done is in the audit log, and serves here before the answer; other gateways follow the
//! store.

use std::{
    borrow::Cow,
    sync::{Arc, OnceLock, Weak},
    time::Duration,
};

use jiff::Timestamp;
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use crate::{
    config::{self, Layers, Live, Origin, Snapshot, snapshot::Store, watch::WatchHandle},
    registry::{Book, Command, Deed, Deployment, Kind, NewVersion, Refusal, TrialDeed, TrialState},
    store::{
        audit::{self, Audit},
        books::BookFiles,
        ports::{BookStore, PushOutcome, StoreError},
        redis::config::ConfigStore,
    },
    wire::revision::{self, Head, Revision},
};

/// How often a change tries against others.
const TRIES: usize = 8;
/// The largest book, in bytes.
const BOOK_BYTES_MAX: usize = 16 << 20;
/// How long a change waits until it serves here.
const SERVES_WITHIN: Duration = Duration::from_secs(2);
/// How often it looks.
const LOOK_EVERY: Duration = Duration::from_millis(5);

/// The one who changes the book of this gateway's store.
pub struct Registrar {
    store: Arc<dyn BookStore>,
    live: Arc<Live>,
    origin: Origin,
    audit: Audit,
    watching: OnceLock<Weak<WatchHandle>>,
    /// One change at a time: they would only be in each other's way.
    changing: tokio::sync::Mutex<()>,
}

/// Who wants a change, and how it is written down.
#[derive(Debug, Clone, Copy)]
pub struct Wanted<'a> {
    /// Who.
    pub who: &'a str,
    /// Why.
    pub reason: &'a str,
    /// The client's name for it: asked again under the same one, it is not done again.
    pub key: Option<&'a str>,
}

/// What came of it.
#[derive(Debug, Clone)]
pub struct Changed {
    /// The book.
    pub book: Arc<Book>,
    /// Its revision; 0 where nothing was ever registered.
    pub revision: u64,
    /// Whether it is another one than before.
    pub changed: bool,
    /// The version that it was about.
    pub version: Option<String>,
}

/// Why there is no change.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ChangeError {
    /// It is not done.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// The book cannot be read or written, or the audit log.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl std::fmt::Debug for Registrar {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Registrar").field("origin", &self.origin).finish_non_exhaustive()
    }
}

impl Registrar {
    /// Over the store that `live` names. Candidates are checked together with what is at `origin`.
    #[must_use]
    pub fn new(live: Arc<Live>, origin: Origin) -> Registrar {
        let snapshot = live.load_full();
        let store: Arc<dyn BookStore> = match &snapshot.store {
            Store::Embedded => Arc::new(BookFiles::in_dir(&snapshot.data_dir)),
            Store::Redis(url) => Arc::new(ConfigStore::registry(url.clone())),
        };
        let audit = Audit::in_dir(&snapshot.data_dir);
        Registrar { store, live, origin, audit, watching: OnceLock::new(), changing: tokio::sync::Mutex::default() }
    }

    /// Has changes serve here at once.
    pub fn tell(&self, watching: &Arc<WatchHandle>) {
        // Told once, at the start.
        let _ = self.watching.set(Arc::downgrade(watching));
    }

    /// The configuration that serves, with what of the registry is part of it.
    #[must_use]
    pub fn snapshot(&self) -> Arc<Snapshot> {
        self.live.load_full()
    }

    /// Past revisions, the newest first.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub async fn history(&self, count: u64) -> Result<Vec<Revision>, StoreError> {
        match self.store.head().await? {
            Some(head) => self.store.history(head.number, count).await,
            None => Ok(Vec::new()),
        }
    }

    /// Does what `command` says.
    ///
    /// # Errors
    /// When it makes no sense, its result could not serve, or the store is away.
    pub async fn change(&self, command: &Command, wanted: Wanted<'_>) -> Result<Changed, ChangeError> {
        let command = &*self.whole(command).await?;
        let _one_at_a_time = self.changing.lock().await;
        for _ in 0..TRIES {
            let (head, before) = self.newest().await?;
            let number = head.as_ref().map_or(0, |head| head.number);
            if let Some(version) = done_before(&before, command, wanted.key) {
                let version = version.map(str::to_owned);
                return Ok(Changed { book: Arc::new(before), revision: number, changed: false, version });
            }
            let now = Timestamp::now();
            let applied = before.apply(command, &self.live.load_full().registry.files, now, wanted.who)?;
            if !applied.changed {
                let (book, version) = (Arc::new(applied.book), applied.version);
                return Ok(Changed { book, revision: number, changed: false, version });
            }
            let mut book = applied.book;
            if let Some(key) = wanted.key {
                name_last(&mut book, command, key);
            }
            let revision = next_revision(head.as_ref(), &book, now, wanted)?;
            self.check(command, &book, &revision, applied.version.as_deref()).await?;
            if self.push(head, revision.clone(), command, (&before, &book), wanted).await? {
                self.serve(revision).await;
                let (book, version) = (Arc::new(book), applied.version);
                return Ok(Changed { book, revision: number + 1, changed: true, version });
            }
        }
        let busy = "others change the registry all the time; try again".to_owned();
        Err(Refusal::Conflict(busy).into())
    }

    /// A prompt's version with the texts that it includes here: it never changes, and other gateways have other files.
    async fn whole<'c>(&self, command: &'c Command) -> Result<Cow<'c, Command>, ChangeError> {
        let Command::To { kind: kind @ Kind::Prompts, name, deed: Deed::AddVersion(new) } = command else {
            return Ok(Cow::Borrowed(command));
        };
        let (origin, typed) = (self.origin.clone(), new.content.clone());
        let reading = tokio::task::spawn_blocking(move || config::with_partials(&origin, typed));
        let content = reading.await.map_err(|_| cancelled("the reading of partials"))?;
        let deed = Deed::AddVersion(NewVersion { content, ..new.clone() });
        Ok(Cow::Owned(Command::To { kind: *kind, name: name.clone(), deed }))
    }

    async fn newest(&self) -> Result<(Option<Head>, Book), StoreError> {
        let Some(head) = self.store.head().await? else { return Ok((None, Book::default())) };
        let damaged = |why: String| StoreError::Damaged(format!("revision {} of the registry {why}", head.number));
        let revision = self.store.revision(head.number).await?.ok_or_else(|| damaged("is not there".to_owned()))?;
        let book = Book::parse(&revision.text).map_err(|error| damaged(format!("is no book: {error}")))?;
        Ok((Some(head), book))
    }

    /// Whether the files could serve with `book` over them.
    async fn check(
        &self,
        command: &Command,
        book: &Book,
        revision: &Revision,
        version: Option<&str>,
    ) -> Result<(), ChangeError> {
        let mut candidate = revision.clone();
        match (command, version) {
            // A seal changes nothing for calls.
            (Command::Seal { .. } | Command::Note { .. }, _) => return Ok(()),
            (Command::To { kind, name, deed: Deed::AddVersion(_) }, Some(version)) => {
                candidate.text = as_if_live(book, *kind, name, version);
            }
            (Command::Trial { name, deed: TrialDeed::Create { .. } | TrialDeed::SetWeights { .. } }, _) => {
                candidate.text = as_if_running(book, name);
            }
            _ => {}
        }
        let layers = Layers { registered: Some(Arc::new(candidate)), ..Layers::of(&self.live.load_full()) };
        let origin = self.origin.clone();
        let checking = tokio::task::spawn_blocking(move || config::load_again(&origin, &layers).map(drop));
        match checking.await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => Err(Refusal::Wrong(error.to_string()).into()),
            Err(_) => Err(cancelled("the check of the configuration").into()),
        }
    }

    /// Whether it is live; otherwise somebody was faster.
    async fn push(
        &self,
        head: Option<Head>,
        revision: Revision,
        command: &Command,
        (before, after): (&Book, &Book),
        wanted: Wanted<'_>,
    ) -> Result<bool, StoreError> {
        let Some((action, subject)) = named(command) else {
            return Ok(self.store.push(head, revision).await? == PushOutcome::Pushed);
        };
        // Opened before the deed: what cannot be written down is not done.
        let page = self.audit.open()?;
        if self.store.push(head, revision).await? != PushOutcome::Pushed {
            return Ok(false);
        }
        let deed = audit::Deed {
            actor: wanted.who,
            action: &action,
            subject,
            reason: wanted.reason,
            before: described(before, command),
            after: described(after, command),
        };
        page.write(Timestamp::now(), &deed)?;
        Ok(true)
    }

    /// Has it serve here, and waits for that.
    async fn serve(&self, revision: Revision) {
        let number = revision.number;
        let Some(watching) = self.watching.get().and_then(Weak::upgrade) else { return };
        watching.offer_registered(Arc::new(revision));
        let deadline = Instant::now() + SERVES_WITHIN;
        while self.live.look(|snapshot| snapshot.registry.number()) < number && Instant::now() < deadline {
            sleep(LOOK_EVERY).await;
        }
    }
}

/// Work off the runtime ends early only when that ends.
fn cancelled(what: &str) -> StoreError {
    StoreError::Unavailable(format!("{what} was cancelled"))
}

/// The version or variant that it was about, where a client did the same before.
fn done_before<'b>(book: &'b Book, command: &Command, key: Option<&str>) -> Option<Option<&'b str>> {
    match command {
        Command::To { kind, name, .. } => book.shelf(*kind, name)?.done_as(key?).map(Some),
        Command::Trial { name, .. } => book.experiments.get(name)?.done_as(key?),
        Command::Seal { .. } | Command::Note { .. } => None,
    }
}

fn name_last(book: &mut Book, command: &Command, key: &str) {
    match command {
        Command::To { kind, name, .. } => book.name_last(*kind, name, key),
        Command::Trial { name, .. } => book.name_last_of_experiment(name, key),
        Command::Seal { .. } | Command::Note { .. } => {}
    }
}

fn next_revision(head: Option<&Head>, book: &Book, now: Timestamp, wanted: Wanted<'_>) -> Result<Revision, Refusal> {
    let text = book.to_json();
    if text.len() > BOOK_BYTES_MAX {
        return Err(Refusal::Conflict("the registry would be larger than 16 MiB".to_owned()));
    }
    Ok(Revision {
        number: head.map_or(0, |head| head.number) + 1,
        sha256: revision::sha256(&text),
        name: "registry".to_owned(),
        text,
        author: wanted.who.to_owned(),
        at: now,
        message: wanted.reason.to_owned(),
        parent: head.map(|head| head.number),
    })
}

/// The book with a version as if it were live where nothing is: only what would serve is checked.
fn as_if_live(book: &Book, kind: Kind, name: &str, version: &str) -> String {
    let mut book = book.clone();
    let shelves = match kind {
        Kind::Models => &mut book.models,
        Kind::Prompts => &mut book.prompts,
    };
    if let Some(shelf) = shelves.get_mut(name).filter(|shelf| shelf.live.is_none()) {
        let (version, by, reason) = (version.to_owned(), String::new(), String::new());
        // A file that names a version keeps it.
        shelf.live = Some(Deployment { version, at: Timestamp::UNIX_EPOCH, by, reason, file_said: None });
    }
    book.to_json()
}

/// The book with an experiment as if it ran: a draft is checked before it begins.
fn as_if_running(book: &Book, name: &str) -> String {
    let mut book = book.clone();
    if let Some(trial) = book.experiments.get_mut(name) {
        trial.state = TrialState::Running;
    }
    book.to_json()
}

/// What the audit log calls a command, and whom it is about; `None` for what is not written down there.
fn named(command: &Command) -> Option<(String, &str)> {
    match command {
        Command::To { kind, name, deed } => Some((format!("{}.{}", kind.section(), verb(deed)), name)),
        Command::Trial { name, deed } => Some((format!("experiments.{}", trial_verb(deed)), name)),
        Command::Seal { .. } | Command::Note { .. } => None,
    }
}

const fn trial_verb(deed: &TrialDeed) -> &'static str {
    match deed {
        TrialDeed::Create { .. } => "create",
        TrialDeed::Start => "start",
        TrialDeed::Pause { .. } => "pause",
        TrialDeed::Stop { .. } => "stop",
        TrialDeed::Halt { .. } => "halt",
        TrialDeed::Promote { .. } => "promote",
        TrialDeed::SetWeights { .. } => "weights",
    }
}

const fn verb(deed: &Deed) -> &'static str {
    match deed {
        Deed::AddVersion(_) => "add_version",
        Deed::Deploy { .. } | Deed::RunSchedule { .. } => "deploy",
        Deed::Rollback { .. } => "rollback",
        Deed::Schedule { .. } => "schedule",
        Deed::CancelSchedule => "cancel_schedule",
        Deed::StartRollout { .. } => "start_rollout",
        Deed::AdvanceRollout { .. } => "advance_rollout",
        Deed::AbortRollout { .. } => "abort_rollout",
    }
}

/// What the audit log says of what a command is about.
fn described(book: &Book, command: &Command) -> Value {
    match command {
        Command::To { kind, name, .. } => shelf_described(book, *kind, name),
        Command::Trial { name, .. } => trial_described(book, name),
        Command::Seal { .. } | Command::Note { .. } => Value::Null,
    }
}

/// How far an experiment is, and what became live by it.
fn trial_described(book: &Book, name: &str) -> Value {
    let Some(trial) = book.experiments.get(name) else { return Value::Null };
    let model = trial.definition.as_ref().map(|definition| &definition["model"]);
    let live = model.and_then(|model| book.shelf(Kind::Models, model.as_str()?)?.live.as_ref());
    json!({
        "state": trial.state,
        "weights": trial.epochs.last().map(|epoch| &epoch.weights),
        "halted": trial.halted,
        "live": live.map(|live| &live.version),
    })
}

/// What is live of a shelf and what is to be, not what versions say.
fn shelf_described(book: &Book, kind: Kind, name: &str) -> Value {
    let Some(shelf) = book.shelf(kind, name) else { return Value::Null };
    let rollout = shelf.rollout.as_ref().map(
        |rollout| json!({ "from": rollout.from, "to": rollout.to, "weight": rollout.weight(), "state": rollout.state }),
    );
    json!({
        "live": shelf.live.as_ref().map(|live| &live.version),
        "versions": shelf.versions.iter().map(|(name, version)| (name.clone(), json!(version.sha256))).collect::<serde_json::Map<_, _>>(),
        "scheduled": shelf.scheduled,
        "rollout": rollout,
    })
}
