//! What was pushed for a fleet, at one gateway: read at its start, followed while it runs, and kept in `data_dir` for a start at which
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
    config::{self, Bootstrap, Loaded, Snapshot, snapshot::Store, watch::WatchHandle},
    store::{
        ports::StoreError,
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

/// Reads the configuration of a gateway, with what was pushed for its fleet.
///
/// # Errors
/// When the configuration is wrong, or what was pushed can neither be read nor was kept here.
pub(super) async fn load(path: Option<&Path>) -> anyhow::Result<Loaded> {
    let Ok(Bootstrap { store: Store::Redis(url), data_dir }) = config::bootstrap(path) else {
        return Ok(config::load(path)?);
    };
    let kept = Kept::new(&url, &data_dir).read();
    let live = match newest(&ConfigStore::new(url)).await {
        Ok(live) => live,
        Err(error) if kept.is_some() => {
            tracing::error!(%error, "the pushed configuration cannot be read; starting with the one that was last good here");
            None
        }
        Err(error) => return Err(error.into()),
    };
    Ok(match (live, kept) {
        (Some(live), Some(kept)) if live != kept => config::load_with(path, Some(&live)).or_else(|error| {
            let revision = live.number;
            tracing::error!(reason = %error, revision, "the pushed configuration was refused; starting with the one that was last good here");
            config::load_with(path, Some(&kept))
        })?,
        (Some(live), _) => config::load_with(path, Some(&live))?,
        (None, Some(kept)) => {
            let revision = kept.number;
            tracing::warn!(revision, "the store has no pushed configuration; the one that was last good here goes on: push it again");
            config::load_with(path, Some(&kept))?
        }
        (None, None) => config::load(path)?,
    })
}

/// The live revision; `None` when nothing was ever pushed.
async fn newest(store: &ConfigStore) -> Result<Option<Arc<Revision>>, StoreError> {
    match store.head().await? {
        Some(head) => fetch(store, &head).await.map(Some),
        None => Ok(None),
    }
}

async fn fetch(store: &ConfigStore, head: &Head) -> Result<Arc<Revision>, StoreError> {
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
    pub(super) fn new(snapshot: &Snapshot, watching: Arc<WatchHandle>) -> Option<Follower> {
        let Store::Redis(url) = &snapshot.store else { return None };
        let seen = snapshot.pushed.as_ref().map(|pushed| pushed.revision.head());
        let store = ConfigStore::new(url.clone());
        Some(Follower { store, watching, seen, announcements: None, subscribe_at: Instant::now(), trouble: None })
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
        self.watching.offer(revision);
        Ok(())
    }

    /// One line per change of state; what is damaged is a refused configuration.
    fn note(&mut self, trouble: Option<StoreError>) {
        let is_damage = |trouble: &Option<StoreError>| matches!(trouble, Some(StoreError::Damaged(_)));
        match (&self.trouble, &trouble) {
            (None, None) => {}
            (Some(_), None) => tracing::info!("the pushed configuration can be read again"),
            (before, Some(now)) if is_damage(&trouble) && before.as_ref() != Some(now) => {
                tracing::error!(reason = %now, "the pushed configuration was refused; the last good one stays");
                metrics::config_reload("refused");
            }
            (None, Some(now)) => {
                tracing::warn!(reason = %now, "the pushed configuration cannot be asked for; the last good one stays");
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
    path: PathBuf,
    /// A directory that is pointed at another fleet's store begins anew.
    store: String,
}

impl Kept {
    pub(super) fn new(url: &RedisUrl, data_dir: &Path) -> Kept {
        Kept { path: data_dir.join("pushed.json"), store: format!("{url}?prefix={}", url.prefix) }
    }

    /// Where `snapshot` keeps it; `None` where its store is not shared.
    pub(super) fn of(snapshot: &Snapshot) -> Option<Kept> {
        match &snapshot.store {
            Store::Redis(url) => Some(Kept::new(url, &snapshot.data_dir)),
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
        let Some(pushed) = &snapshot.pushed else { return };
        if self.read().as_ref() == Some(&pushed.revision) {
            return;
        }
        if let Err(error) = self.write(&pushed.revision) {
            tracing::warn!(%error, path = %self.path.display(), "the pushed configuration cannot be kept");
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
