//! What was pushed for a fleet, and what was registered, at one gateway: read at its start, followed while it runs, and kept in `data_dir` for a start at which
//! the store has lost it.
//!
//! A subscription tells at once; a poll finds out what it missed. Neither ever stops the gateway: the last good revision stays.

use std::{
    fs, io,
    io::Write,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use crate::{
    config::{self, Bootstrap, Layers, Loaded, Snapshot, snapshot::Store, watch::WatchHandle},
    store::{
        books::BookFiles,
        ports::{BookStore, StoreError},
        redis::config::{Announcements, ConfigStore},
    },
    telemetry::metrics,
    wire::{
        redis_url::RedisUrl,
        revision::{Head, Revision},
    },
};

/// How often the store is asked, so that a push is live within a second whatever became of its announcement.
const POLL: Duration = Duration::from_millis(500);
/// How long a refused or lost subscription is let be.
const SUBSCRIBE_AGAIN: Duration = Duration::from_secs(5);

/// What is followed: what was pushed for a fleet, or what was registered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Followed {
    /// The pushed configuration.
    Pushed,
    /// The registry's book.
    Registered,
}

impl Followed {
    const fn noun(self) -> &'static str {
        match self {
            Followed::Pushed => "pushed configuration",
            Followed::Registered => "registry",
        }
    }

    /// Where the last good one is kept.
    const fn file(self) -> &'static str {
        match self {
            Followed::Pushed => "pushed.json",
            Followed::Registered => "registry.json",
        }
    }

    fn store(self, url: RedisUrl) -> ConfigStore {
        match self {
            Followed::Pushed => ConfigStore::new(url),
            Followed::Registered => ConfigStore::registry(url),
        }
    }

    /// The revision of it that is part of `layers`.
    fn of(self, layers: &Layers) -> Option<&Arc<Revision>> {
        match self {
            Followed::Pushed => layers.pushed.as_ref(),
            Followed::Registered => layers.registered.as_ref(),
        }
    }
}

/// A configuration with what lies over it.
pub(super) struct Laid {
    /// The configuration.
    pub(super) loaded: Loaded,
    /// Why that may not be what lies over others, each a sentence without its full stop.
    pub(super) troubles: Vec<String>,
}

/// Reads the configuration of a gateway, with what was pushed for its fleet and what was registered.
///
/// # Errors
/// When the configuration is wrong, or what was pushed or registered can neither be read nor was kept here.
pub(super) async fn load(path: Option<&Path>) -> anyhow::Result<Loaded> {
    match config::bootstrap(path) {
        Ok(bootstrap) => Ok(load_from(path, &bootstrap).await?.loaded),
        Err(_) => Ok(config::load(path)?),
    }
}

/// As [`load`], with the store and the directory that are given.
///
/// # Errors
/// As [`load`].
pub(super) async fn load_from(path: Option<&Path>, bootstrap: &Bootstrap) -> anyhow::Result<Laid> {
    let data_dir = &bootstrap.data_dir;
    let Store::Redis(url) = &bootstrap.store else {
        let registered = newest(&BookFiles::in_dir(data_dir)).await?;
        let loaded = config::load_with(path, &Layers { pushed: None, registered })?;
        return Ok(Laid { loaded, troubles: Vec::new() });
    };
    let mut pushed = Found::read(Followed::Pushed, url, data_dir).await?;
    let mut registered = Found::read(Followed::Registered, url, data_dir).await?;
    let mut troubles: Vec<String> = pushed.trouble.take().into_iter().chain(registered.trouble.take()).collect();
    let wanted = Layers { pushed: pushed.wanted(), registered: registered.wanted() };
    let kept = [
        Layers { pushed: pushed.kept.clone(), registered: wanted.registered.clone() },
        Layers { pushed: wanted.pushed.clone(), registered: registered.kept.clone() },
        Layers { pushed: pushed.kept.clone(), registered: registered.kept.clone() },
    ];
    let mut outcome = config::load_with(path, &wanted);
    for rest in kept.iter().filter(|rest| is_fallback(rest, &wanted)) {
        let Err(error) = &outcome else { break };
        for what in
            [Followed::Pushed, Followed::Registered].into_iter().filter(|what| what.of(rest) != what.of(&wanted))
        {
            let revision = what.of(&wanted).map(|revision| revision.number);
            let noun = what.noun();
            tracing::error!(reason = %error, revision, "the {noun} was refused; starting with the one that was last good here");
            troubles.push(format!("revision {} of the {noun} is refused here: {error}", revision.unwrap_or_default()));
        }
        outcome = config::load_with(path, rest).or(outcome);
    }
    Ok(Laid { loaded: outcome?, troubles })
}

/// Whether `rest` has something older where it differs, and not nothing.
fn is_fallback(rest: &Layers, wanted: &Layers) -> bool {
    let same_or_kept = |what: Followed| what.of(rest).is_some() || what.of(wanted).is_none();
    rest != wanted && same_or_kept(Followed::Pushed) && same_or_kept(Followed::Registered)
}

/// What a store has of something, and what was last good here.
struct Found {
    live: Option<Arc<Revision>>,
    kept: Option<Arc<Revision>>,
    /// Why the kept one may not be the live one.
    trouble: Option<String>,
}

impl Found {
    async fn read(what: Followed, url: &RedisUrl, data_dir: &Path) -> Result<Found, StoreError> {
        let kept = Kept::new(what, url, data_dir).read();
        let noun = what.noun();
        let mut trouble = None;
        let live = match newest(&what.store(url.clone())).await {
            Ok(None) => {
                if let Some(revision) = kept.as_ref().map(|kept| kept.number) {
                    tracing::warn!(
                        revision,
                        "the store has no {noun}; the one that was last good here goes on: push it again"
                    );
                    trouble = Some(format!("the store has no {noun}; the one that was last good here is taken"));
                }
                None
            }
            Ok(live) => live,
            Err(error) if kept.is_some() => {
                tracing::error!(%error, "the {noun} cannot be read; starting with the one that was last good here");
                trouble = Some(format!("the {noun} cannot be read: {error}; the one that was last good here is taken"));
                None
            }
            Err(error) => return Err(error),
        };
        Ok(Found { live, kept, trouble })
    }

    fn wanted(&self) -> Option<Arc<Revision>> {
        self.live.as_ref().or(self.kept.as_ref()).cloned()
    }
}

/// The live revision; `None` when nothing was ever pushed.
async fn newest(store: &dyn BookStore) -> Result<Option<Arc<Revision>>, StoreError> {
    match store.head().await? {
        Some(head) => fetch(store, &head).await.map(Some),
        None => Ok(None),
    }
}

async fn fetch(store: &dyn BookStore, head: &Head) -> Result<Arc<Revision>, StoreError> {
    match store.revision(head.number).await? {
        Some(revision) if revision.sha256 == head.sha256 => Ok(Arc::new(revision)),
        Some(_) => Err(StoreError::Damaged(format!("revision {} is not the one that the head names", head.number))),
        None => Err(StoreError::Damaged(format!("the head names revision {}, which is not there", head.number))),
    }
}

/// Says what was pushed and is part of `snapshot`.
pub(super) fn announce(snapshot: &Snapshot) {
    let Some(pushed) = &snapshot.pushed else { return };
    let revision = &pushed.revision;
    tracing::info!(
        revision = revision.number, author = %revision.author, at = %revision.at, message = %revision.message,
        sections = %pushed.sections.join(" "), replaced = %pushed.replaced.join(" "),
        "revision {} of the pushed configuration serves", revision.number
    );
}

// === following ===

/// Offers each revision that goes live to a running gateway.
pub(super) struct Follower {
    what: Followed,
    store: ConfigStore,
    watching: Arc<WatchHandle>,
    /// What was offered last, or is damaged and was said to be.
    seen: Option<Head>,
    announcements: Option<Announcements>,
    subscribe_at: Instant,
    /// What was said last of a store that is away or damaged.
    trouble: Option<StoreError>,
}

impl Follower {
    /// Begins with what `snapshot` has; `None` where its store is not shared.
    pub(super) fn new(what: Followed, snapshot: &Snapshot, watching: Arc<WatchHandle>) -> Option<Follower> {
        let Store::Redis(url) = &snapshot.store else { return None };
        let seen = what.of(&Layers::of(snapshot)).map(|revision| revision.head());
        let store = what.store(url.clone());
        Some(Follower { what, store, watching, seen, announcements: None, subscribe_at: Instant::now(), trouble: None })
    }

    /// Never ends.
    pub(super) async fn run(mut self) {
        loop {
            self.subscribe().await;
            let outcome = self.look().await;
            self.note(outcome.err());
            self.wait().await;
        }
    }

    async fn subscribe(&mut self) {
        if self.announcements.is_some() || Instant::now() < self.subscribe_at {
            return;
        }
        self.subscribe_at = Instant::now() + SUBSCRIBE_AGAIN;
        // Where it is not allowed or not possible, the poll does.
        self.announcements = self.store.subscribe().await.ok().flatten();
    }

    async fn look(&mut self) -> Result<(), StoreError> {
        // A head that is gone says that the store lost it, not that nothing should serve.
        let Some(head) = self.store.head().await? else { return Ok(()) };
        if self.seen.as_ref() == Some(&head) {
            return Ok(());
        }
        let revision = fetch(&self.store, &head).await?;
        self.seen = Some(head);
        match self.what {
            Followed::Pushed => self.watching.offer(revision),
            Followed::Registered => self.watching.offer_registered(revision),
        }
        Ok(())
    }

    /// One line per change of state; what is damaged is a refused configuration.
    fn note(&mut self, trouble: Option<StoreError>) {
        let noun = self.what.noun();
        let is_damage = |trouble: &Option<StoreError>| matches!(trouble, Some(StoreError::Damaged(_)));
        match (&self.trouble, &trouble) {
            (None, None) => {}
            (Some(_), None) => tracing::info!("the {noun} can be read again"),
            (before, Some(now)) if is_damage(&trouble) && before.as_ref() != Some(now) => {
                tracing::error!(reason = %now, "the {noun} was refused; the last good one stays");
                metrics::config_reload("refused");
            }
            (None, Some(now)) => {
                tracing::warn!(reason = %now, "the {noun} cannot be asked for; the last good one stays");
            }
            (Some(_), Some(_)) => {}
        }
        self.trouble = trouble;
    }

    async fn wait(&mut self) {
        let Some(announcements) = &mut self.announcements else { return sleep(POLL).await };
        tokio::select! {
            () = sleep(POLL) => {}
            more = announcements.next() => if !more {
                self.announcements = None;
            }
        }
    }
}

// === the last good one ===

/// Where the revision that was last good here is kept.
#[derive(Debug, Clone)]
pub(super) struct Kept {
    what: Followed,
    path: PathBuf,
    /// A directory that is pointed at another fleet's store begins anew.
    store: String,
}

impl Kept {
    fn new(what: Followed, url: &RedisUrl, data_dir: &Path) -> Kept {
        Kept { what, path: data_dir.join(what.file()), store: format!("{url}?prefix={}", url.prefix) }
    }

    /// Where `snapshot` keeps it; `None` where its store is not shared.
    pub(super) fn of(what: Followed, snapshot: &Snapshot) -> Option<Kept> {
        match &snapshot.store {
            Store::Redis(url) => Some(Kept::new(what, url, &snapshot.data_dir)),
            Store::Embedded => None,
        }
    }

    fn read(&self) -> Option<Arc<Revision>> {
        let value: Value = serde_json::from_str(&fs::read_to_string(&self.path).ok()?).ok()?;
        let revision = Revision::parse(value["revision"].as_str()?).ok()?;
        (value["store"] == self.store.as_str()).then(|| Arc::new(revision))
    }

    /// Keeps what `snapshot` has of it. A failure is logged: it matters at a start without the store only.
    pub(super) fn keep(&self, snapshot: &Snapshot) {
        let layers = Layers::of(snapshot);
        let Some(revision) = self.what.of(&layers) else { return };
        if self.read().as_ref() == Some(revision) {
            return;
        }
        if let Err(error) = self.write(revision) {
            tracing::warn!(%error, path = %self.path.display(), "the {} cannot be kept", self.what.noun());
        }
    }

    fn write(&self, revision: &Revision) -> io::Result<()> {
        let draft = self.path.with_extension("json.new");
        let mut options = fs::OpenOptions::new();
        options.write(true).create(true).truncate(true);
        #[cfg(unix)]
        std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
        let mut file = options.open(&draft)?;
        writeln!(file, "{}", json!({ "store": self.store, "revision": revision.to_json() }))?;
        file.sync_all()?;
        fs::rename(draft, &self.path)
    }
}
