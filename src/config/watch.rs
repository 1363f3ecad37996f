//! Live reload: a changed configuration is read, checked whole, and swapped in at once; a wrong one changes nothing.
//!
//! Directories are watched rather than files, so that an editor's rename and a Kubernetes `ConfigMap`'s swapped symlink are
//! seen. Where the kernel says nothing (network file systems, exhausted watches), content is compared twice a second.
//!
//! What was pushed for all gateways comes in by [`WatchHandle::offer`], the registry's book by [`WatchHandle::offer_registered`]; both
//! are read together with the files. A revision that is wrong here holds nothing up: what changes in the files goes on to count, with
//! the last good revision.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use arc_swap::{ArcSwap, ArcSwapOption};
use notify::{EventKind, RecommendedWatcher, RecursiveMode, Watcher, event::AccessKind};
use sha2::{Digest, Sha256};

use crate::{
    config::{ConfigError, Layers, Loaded, Origin, Snapshot, sources},
    wire::revision::Revision,
};

/// How often content is compared without being told.
const POLL: Duration = Duration::from_millis(500);
/// A file that was just touched may be half written; it is read after this long without another change …
const QUIET: Duration = Duration::from_millis(100);
/// … but no later than this, so that a change is live within a second.
const QUIET_MAX: Duration = Duration::from_millis(400);

/// The configuration in force.
#[derive(Debug)]
pub struct Live {
    current: ArcSwap<Snapshot>,
    refusal: ArcSwapOption<Refusal>,
}

/// Why the newest configuration does not serve, and the last good one does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// What is wrong. Never holds a secret.
    pub reason: String,
    /// The pushed revision that was tried, where one was.
    pub revision: Option<u64>,
}

impl Live {
    /// Starts with `snapshot`.
    #[must_use]
    pub fn new(snapshot: Snapshot) -> Live {
        Live { current: ArcSwap::from_pointee(snapshot), refusal: ArcSwapOption::empty() }
    }

    /// Why the newest configuration was refused; `None` while the newest one serves.
    #[must_use]
    pub fn refusal(&self) -> Option<Arc<Refusal>> {
        self.refusal.load_full()
    }

    /// The configuration in force; a call keeps it from start to end.
    #[must_use]
    pub fn load_full(&self) -> Arc<Snapshot> {
        self.current.load_full()
    }

    /// One value of the configuration in force, for whoever keeps nothing of it: no count that all cores share is touched.
    pub fn look<T>(&self, value: impl FnOnce(&Snapshot) -> T) -> T {
        value(&self.current.load())
    }
}

/// What a reload brought.
#[derive(Debug, Clone)]
pub struct ReloadSummary {
    /// The configuration now in force.
    pub snapshot: Arc<Snapshot>,
    /// Whether it is another than before; it is not when a mistake was taken back.
    pub swapped: bool,
    /// As in [`Loaded`].
    pub warnings: Vec<String>,
}

/// Stops the watching when dropped.
#[derive(Debug)]
pub struct WatchHandle {
    signals: Arc<Signals>,
    wake: SyncSender<()>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct Signals {
    stop: AtomicBool,
    force: AtomicBool,
    offered: ArcSwapOption<Revision>,
    registered: ArcSwapOption<Revision>,
}

impl WatchHandle {
    /// Reads everything again and swaps it in even when no file changed: for keys that came into the store.
    pub fn reload(&self) {
        self.signals.force.store(true, Ordering::Release);
        // A full channel holds a wake-up already.
        let _ = self.wake.try_send(());
    }

    /// Lays `revision` over the files from now on, if both together are valid.
    pub fn offer(&self, revision: Arc<Revision>) {
        self.signals.offered.store(Some(revision));
        let _ = self.wake.try_send(());
    }

    /// Lays `revision` of the registry's book over the files from now on, if both together are valid.
    pub fn offer_registered(&self, revision: Arc<Revision>) {
        self.signals.registered.store(Some(revision));
        let _ = self.wake.try_send(());
    }
}

impl Drop for WatchHandle {
    fn drop(&mut self) {
        self.signals.stop.store(true, Ordering::Release);
        let _ = self.wake.try_send(());
        if let Some(thread) = self.thread.take() {
            // It holds nothing that its panic could have spoiled.
            let _ = thread.join();
        }
    }
}

/// Keeps `live` up to date with `origin` on a thread of its own, until the handle is dropped.
///
/// `prepare` finishes a checked snapshot before it is swapped in, such as by adding stored keys. `on_result` hears of every
/// reload: what came into force, or why the last good one stays. Nothing is reported while nothing changes.
///
/// # Errors
/// When the thread cannot be started.
pub fn watch(
    live: Arc<Live>,
    origin: Origin,
    prepare: impl Fn(Snapshot) -> Result<Snapshot, ConfigError> + Send + 'static,
    on_result: impl Fn(Result<ReloadSummary, &ConfigError>) + Send + 'static,
) -> std::io::Result<WatchHandle> {
    let signals = Arc::new(Signals::default());
    let (wake, woken) = sync_channel(1);
    let mut reloader = Reloader::new(live, origin, prepare, on_result);
    let mut directories = Directories::new(wake.clone());
    directories.follow(&reloader.origin.files);
    let thread_signals = signals.clone();
    let thread = std::thread::Builder::new().name("config-watch".to_owned()).spawn(move || {
        // The files may have changed since they were loaded: the first look always reads.
        reloader.look(Layers::default(), false);
        while wait(&woken, &thread_signals) {
            let forced = thread_signals.force.swap(false, Ordering::AcqRel);
            reloader.look(thread_signals.offered(), forced);
            directories.follow(&reloader.origin.files);
        }
    })?;
    Ok(WatchHandle { signals, wake, thread: Some(thread) })
}

impl Signals {
    /// What was offered since the last time.
    fn offered(&self) -> Layers {
        Layers { pushed: self.offered.swap(None), registered: self.registered.swap(None) }
    }
}

/// Waits for a change to settle, or for the next poll; `false` when it is time to stop.
fn wait(woken: &Receiver<()>, signals: &Signals) -> bool {
    match woken.recv_timeout(POLL) {
        Ok(()) => settle(woken, signals),
        Err(RecvTimeoutError::Timeout) => {}
        Err(RecvTimeoutError::Disconnected) => return false,
    }
    !signals.stop.load(Ordering::Acquire)
}

fn settle(woken: &Receiver<()>, signals: &Signals) {
    let begun = Instant::now();
    while begun.elapsed() < QUIET_MAX && !signals.stop.load(Ordering::Acquire) {
        if woken.recv_timeout(QUIET).is_err() {
            return;
        }
    }
}

/// Content of each file by its digest; `None` where it cannot be read.
type Fingerprint = Vec<(PathBuf, Option<[u8; 32]>)>;

struct Reloader<P, R> {
    live: Arc<Live>,
    origin: Origin,
    prepare: P,
    on_result: R,
    seen: Fingerprint,
    failed: bool,
    /// The newest revisions, good or not.
    newest: Layers,
    /// Those that are in force.
    good: Layers,
}

impl<P, R> Reloader<P, R>
where
    P: Fn(Snapshot) -> Result<Snapshot, ConfigError>,
    R: Fn(Result<ReloadSummary, &ConfigError>),
{
    fn new(live: Arc<Live>, origin: Origin, prepare: P, on_result: R) -> Reloader<P, R> {
        let good = Layers::of(&live.load_full());
        Reloader { live, origin, prepare, on_result, seen: Vec::new(), failed: false, newest: good.clone(), good }
    }

    /// Reads again if any content changed since the last look, or another revision was offered.
    fn look(&mut self, offered: Layers, forced: bool) {
        let found = fingerprint(&self.origin.files);
        let newest = Layers {
            pushed: offered.pushed.or_else(|| self.newest.pushed.clone()),
            registered: offered.registered.or_else(|| self.newest.registered.clone()),
        };
        let changed = newest != self.newest || found != self.seen;
        if !changed && !forced {
            return;
        }
        self.newest = newest;
        // What was refused is tried again only once something changed.
        let tried = if changed { self.newest.clone() } else { self.good.clone() };
        let (outcome, mut files) = self.attempt(&tried, forced);
        let is_refused = outcome.is_err();
        self.conclude(outcome, &tried);
        if is_refused {
            for rest in self.without_what_is_new(&tried) {
                let (outcome, more) = self.attempt(&rest, forced);
                files.extend(more.into_iter().filter(|file| !files.contains(file)).collect::<Vec<_>>());
                if self.note_the_rest(outcome, rest) {
                    break;
                }
            }
        }
        // Taken before the reading where the files are the same, so that a change during it is seen the next time.
        self.seen = if files == self.origin.files { found } else { fingerprint(&files) };
        self.origin.files = files;
    }

    /// What to try after `refused`: as much of it as there is, and at last what was good before.
    fn without_what_is_new(&self, refused: &Layers) -> Vec<Layers> {
        let good = &self.good;
        let mut rests = vec![
            Layers { pushed: refused.pushed.clone(), registered: good.registered.clone() },
            Layers { pushed: good.pushed.clone(), registered: refused.registered.clone() },
            good.clone(),
        ];
        rests.dedup();
        rests.retain(|rest| rest != refused);
        rests
    }

    /// Reads the files with `layers` over them and swaps the result in. Says which files that hangs on.
    fn attempt(&self, layers: &Layers, forced: bool) -> (Result<ReloadSummary, ConfigError>, Vec<PathBuf>) {
        let (loaded, files) = super::read(self.origin.path.as_deref(), layers);
        (loaded.and_then(|loaded| self.swap(loaded, forced)), files)
    }

    fn conclude(&mut self, outcome: Result<ReloadSummary, ConfigError>, tried: &Layers) {
        let is_newest = *tried == self.newest;
        match outcome {
            Ok(summary) => {
                self.good = tried.clone();
                let mended = is_newest && std::mem::take(&mut self.failed);
                if is_newest {
                    self.live.refusal.store(None);
                }
                if summary.swapped || mended {
                    (self.on_result)(Ok(summary));
                }
            }
            Err(error) => {
                self.failed = true;
                let revision = tried.pushed.as_ref().map(|tried| tried.number);
                let refusal = Refusal { reason: error.to_string(), revision };
                self.live.refusal.store(Some(Arc::new(refusal)));
                (self.on_result)(Err(&error));
            }
        }
    }

    /// What the files are with what is left of `rest`, after the newest one was refused; what is wrong in them was said already.
    /// Whether it is good.
    fn note_the_rest(&mut self, outcome: Result<ReloadSummary, ConfigError>, rest: Layers) -> bool {
        let Ok(summary) = outcome else { return false };
        self.good = rest;
        if summary.swapped {
            (self.on_result)(Ok(summary));
        }
        true
    }

    fn swap(&self, loaded: Loaded, forced: bool) -> Result<ReloadSummary, ConfigError> {
        let current = self.live.load_full();
        let warnings = loaded.warnings;
        let is_same = loaded.snapshot.hash == current.hash && loaded.snapshot.pushed == current.pushed;
        let is_noted = loaded.snapshot.registry.revision == current.registry.revision;
        if is_same && is_noted && !forced {
            return Ok(ReloadSummary { snapshot: current, swapped: false, warnings });
        }
        let fixed = needs_restart(&current, &loaded.snapshot);
        if !fixed.is_empty() {
            return Err(ConfigError::NeedsRestart(fixed));
        }
        let snapshot = Arc::new((self.prepare)(loaded.snapshot)?);
        self.live.current.store(snapshot.clone());
        // What was registered and is not live changes nothing for calls, and is no news.
        Ok(ReloadSummary { snapshot, swapped: !is_same || forced, warnings })
    }
}

/// What differs and cannot change while the gateway runs, by its names in the configuration.
#[must_use]
pub fn needs_restart(old: &Snapshot, new: &Snapshot) -> Vec<&'static str> {
    let mut fixed = Vec::new();
    let mut compare = |name, differs: bool| {
        if differs {
            fixed.push(name);
        }
    };
    compare("server.listen", old.server.listen != new.server.listen);
    compare("server.admin", old.server.admin != new.server.admin);
    compare("server.tls", old.server.tls != new.server.tls);
    compare("store", old.store != new.store);
    compare("records", old.records != new.records);
    compare("calls.spill", old.calls.spill_bytes_max != new.calls.spill_bytes_max);
    compare("data_dir", old.data_dir != new.data_dir);
    compare("ledger", old.ledger != new.ledger);
    fixed
}

fn fingerprint(files: &[PathBuf]) -> Fingerprint {
    files
        .iter()
        .map(|file| (file.clone(), sources::read_bytes(file).ok().map(|bytes| Sha256::digest(&bytes).into())))
        .collect()
}

/// The directories of the files, as far as the kernel lets us watch them.
struct Directories {
    watcher: Option<RecommendedWatcher>,
    watched: BTreeSet<PathBuf>,
}

impl Directories {
    /// Sends to `wake` whenever something in a followed directory changes.
    fn new(wake: SyncSender<()>) -> Directories {
        let handler = move |event: notify::Result<notify::Event>| {
            if event.is_ok_and(|event| changes_content(event.kind)) {
                let _ = wake.try_send(());
            }
        };
        Directories { watcher: notify::recommended_watcher(handler).ok(), watched: BTreeSet::new() }
    }

    /// Follows the directories of `files` and no others. A directory that is not there is tried again each time.
    fn follow(&mut self, files: &[PathBuf]) {
        let Some(watcher) = &mut self.watcher else { return };
        let wanted: BTreeSet<PathBuf> = files.iter().map(|file| directory_of(file)).collect();
        for gone in self.watched.difference(&wanted) {
            let _ = watcher.unwatch(gone);
        }
        self.watched = wanted
            .into_iter()
            .filter(|dir| self.watched.contains(dir) || watcher.watch(dir, RecursiveMode::NonRecursive).is_ok())
            .collect();
    }
}

fn directory_of(file: &Path) -> PathBuf {
    match file.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent.to_owned(),
        _ => PathBuf::from("."),
    }
}

/// Our own reading is an event too, and must not wake us.
fn changes_content(kind: EventKind) -> bool {
    match kind {
        EventKind::Access(AccessKind::Close(mode)) => mode == notify::event::AccessMode::Write,
        EventKind::Access(_) => false,
        _ => true,
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    /// Far longer than a reload takes, also on a busy machine.
    const PATIENCE: Duration = Duration::from_secs(30);

    /// More reports than a test waits for; none is lost.
    const HEARD_MAX: usize = 64;

    /// What `on_result` heard: the data directory now in force, or the error.
    type Heard = Result<(PathBuf, bool), String>;

    fn text(attempts: u32) -> String {
        format!("auth: none\nproviders: {{ sim: {{ kind: simulated }} }}\nrouting: {{ attempts: {attempts} }}\n")
    }

    struct Watched {
        dir: tempfile::TempDir,
        live: Arc<Live>,
        origin: Origin,
    }

    impl Watched {
        fn new(text: &str) -> Watched {
            let dir = tempfile::tempdir().expect("a directory");
            fs::write(dir.path().join("t.yaml"), text).expect("written");
            Watched::load(dir, "t.yaml")
        }

        fn load(dir: tempfile::TempDir, path: &str) -> Watched {
            let loaded = super::super::load(Some(&dir.path().join(path))).expect("valid");
            Watched { dir, live: Arc::new(Live::new(loaded.snapshot)), origin: loaded.origin }
        }

        fn write(&self, text: &str) {
            fs::write(self.dir.path().join("t.yaml"), text).expect("written");
        }

        fn attempts(&self) -> u32 {
            self.live.load_full().routing.attempts
        }

        /// A reloader that is looked through by hand, and what it reports.
        fn by_hand(&self) -> (impl FnMut() + use<>, Receiver<Heard>) {
            let (results, heard) = sync_channel(HEARD_MAX);
            let mut reloader = Reloader::new(self.live.clone(), self.origin.clone(), Ok, report_to(results));
            (move || reloader.look(Layers::default(), false), heard)
        }

        fn watch(&self) -> (WatchHandle, Receiver<Heard>) {
            let (results, heard) = sync_channel(HEARD_MAX);
            let handle = watch(self.live.clone(), self.origin.clone(), Ok, report_to(results)).expect("a thread");
            (handle, heard)
        }
    }

    fn report_to(results: SyncSender<Heard>) -> impl Fn(Result<ReloadSummary, &ConfigError>) + Send {
        move |result| {
            let heard =
                result.map(|summary| (summary.snapshot.data_dir.clone(), summary.swapped)).map_err(ToString::to_string);
            results.send(heard).expect("the test still listens");
        }
    }

    #[test]
    fn a_changed_file_is_swapped_in_and_an_unchanged_one_is_not() {
        let watched = Watched::new(&text(3));
        let (mut look, heard) = watched.by_hand();
        look();
        watched.write(&text(3));
        look();
        assert!(heard.try_recv().is_err());

        let pinned = watched.live.load_full();
        watched.write(&text(4));
        look();
        assert_eq!(heard.try_recv(), Ok(Ok(("data".into(), true))));
        assert_eq!((watched.attempts(), pinned.routing.attempts), (4, 3));
    }

    #[test]
    fn a_wrong_file_is_refused_once_and_the_last_good_one_stays() {
        let watched = Watched::new(&text(3));
        let (mut look, heard) = watched.by_hand();
        let half = &text(4)[..40];
        for wrong in ["routing: { attempt: 4 }", half, ""] {
            watched.write(wrong);
            look();
            look();
            let error = heard.try_recv().expect("a report").expect_err("a refusal");
            assert!(error.contains("t.yaml:"), "{error}");
            assert!(heard.try_recv().is_err(), "reported twice: {wrong}");
            assert_eq!(watched.attempts(), 3);
        }
        fs::remove_file(watched.dir.path().join("t.yaml")).expect("removed");
        look();
        assert!(heard.try_recv().expect("a report").expect_err("a refusal").contains("cannot be read"));

        watched.write(&text(3));
        look();
        assert_eq!(heard.try_recv(), Ok(Ok(("data".into(), false))));
        watched.write(&text(5));
        look();
        assert_eq!(watched.attempts(), 5);
    }

    #[test]
    fn what_needs_a_restart_is_refused_by_name() {
        let watched = Watched::new(&text(3));
        let (mut look, heard) = watched.by_hand();
        watched.write(&format!("{}server: {{ listen: 127.0.0.1:1 }}\ndata_dir: other\n", text(4)));
        look();
        let error = heard.try_recv().expect("a report").expect_err("a refusal");
        assert_eq!(error, "restart to change server.listen, data_dir; the running configuration stays");
        assert_eq!(watched.attempts(), 3);
    }

    #[test]
    fn files_that_the_configuration_names_are_watched_too() {
        let watched = Watched::new(&text(3));
        let (mut look, heard) = watched.by_hand();
        let prompt = watched.dir.path().join("p.md");
        watched.write(&format!("{}prompts: {{ p: {{ versions: {{ v1: {{ file: p.md }} }} }} }}\n", text(4)));
        look();
        assert!(heard.try_recv().expect("a report").is_err());
        fs::write(&prompt, "one").expect("written");
        look();
        assert_eq!(heard.try_recv(), Ok(Ok(("data".into(), true))));
        let hash = watched.live.load_full().hash.clone();
        fs::write(&prompt, "two").expect("written");
        look();
        assert_ne!(watched.live.load_full().hash, hash);
        fs::write(watched.dir.path().join(".env"), "nonsense").expect("written");
        look();
        heard.try_recv().expect("the prompt").expect("a swap");
        assert!(heard.try_recv().expect("a report").expect_err("a refusal").contains(".env:1:1:"));
    }

    fn pushed(number: u64, text: &str) -> Option<Arc<Revision>> {
        Some(Arc::new(Revision {
            number,
            sha256: crate::wire::revision::sha256(text),
            name: "r.yaml".to_owned(),
            text: text.to_owned(),
            author: String::new(),
            at: jiff::Timestamp::UNIX_EPOCH,
            message: String::new(),
            parent: None,
        }))
    }

    #[test]
    fn a_wrong_revision_is_refused_once_and_the_files_go_on_to_count() {
        let watched = Watched::new(&text(3));
        let (results, heard) = sync_channel(HEARD_MAX);
        let mut reloader = Reloader::new(watched.live.clone(), watched.origin.clone(), Ok, report_to(results));
        let facts = || {
            let live = watched.live.load_full();
            (live.routing.attempts, live.stream_usage, live.pushed.as_ref().map(|pushed| pushed.revision.number))
        };
        let leave = crate::config::snapshot::StreamUsage::Leave;
        reloader.look(Layers { pushed: pushed(1, "stream_usage: leave\n"), registered: None }, false);
        assert_eq!((heard.try_recv(), facts()), (Ok(Ok(("data".into(), true))), (3, leave, Some(1))));

        reloader.look(Layers { pushed: pushed(2, "stream_usage: sometimes\n"), registered: None }, false);
        assert!(heard.try_recv().expect("a report").expect_err("a refusal").starts_with("r.yaml@2:1:15:"));
        assert_eq!(watched.live.refusal().expect("said").revision, Some(2));
        reloader.look(Layers { pushed: pushed(2, "stream_usage: sometimes\n"), registered: None }, false);
        assert!(heard.try_recv().is_err(), "reported twice");
        reloader.look(Layers::default(), true);
        assert_eq!(heard.try_recv(), Ok(Ok(("data".into(), true))), "keys that were revoked are not held up");
        assert!(watched.live.refusal().is_some(), "the newest one is refused still");

        watched.write(&text(4));
        reloader.look(Layers::default(), false);
        assert!(heard.try_recv().expect("a report").is_err());
        assert_eq!((heard.try_recv(), facts()), (Ok(Ok(("data".into(), true))), (4, leave, Some(1))));

        reloader.look(Layers { pushed: pushed(3, "stream_usage: leave\n"), registered: None }, false);
        assert_eq!((heard.try_recv(), facts()), (Ok(Ok(("data".into(), true))), (4, leave, Some(3))));
        assert_eq!(watched.live.refusal(), None);
    }

    #[test]
    fn an_offered_revision_is_taken_up() {
        let watched = Watched::new(&text(3));
        let (handle, heard) = watched.watch();
        handle.offer(pushed(1, "stream_usage: leave\n").expect("a revision"));
        assert_eq!(heard.recv_timeout(PATIENCE), Ok(Ok(("data".into(), true))));
        assert!(watched.live.load_full().pushed.is_some());
    }

    #[test]
    fn an_editors_rename_is_seen() {
        let watched = Watched::new(&text(3));
        let (_handle, heard) = watched.watch();
        for attempts in [4, 5, 6] {
            fs::write(watched.dir.path().join("new"), text(attempts)).expect("written");
            fs::rename(watched.dir.path().join("new"), watched.dir.path().join("t.yaml")).expect("renamed");
            assert_eq!(heard.recv_timeout(PATIENCE), Ok(Ok(("data".into(), true))));
            assert_eq!(watched.attempts(), attempts);
        }
    }

    /// Kubernetes: `t.yaml -> ..data/t.yaml`, `..data -> ..1`, and an update swaps `..data`.
    #[cfg(unix)]
    #[test]
    fn a_swapped_symlink_is_seen() {
        use std::os::unix::fs::symlink;
        let dir = tempfile::tempdir().expect("a directory");
        let at = |name: &str| dir.path().join(name);
        for (version, attempts) in [("..1", 3), ("..2", 4)] {
            fs::create_dir(at(version)).expect("made");
            fs::write(at(version).join("t.yaml"), text(attempts)).expect("written");
        }
        symlink("..1", at("..data")).expect("linked");
        symlink("..data/t.yaml", at("t.yaml")).expect("linked");
        symlink("..2", at("..data_tmp")).expect("linked");
        let (from, to) = (at("..data_tmp"), at("..data"));
        let watched = Watched::load(dir, "t.yaml");
        let (_handle, heard) = watched.watch();

        fs::rename(from, to).expect("renamed");

        assert_eq!(heard.recv_timeout(PATIENCE), Ok(Ok(("data".into(), true))));
        assert_eq!(watched.attempts(), 4);
    }

    #[test]
    fn a_forced_reload_swaps_what_did_not_change() {
        let watched = Watched::new(&text(3));
        let (handle, heard) = watched.watch();
        let before = watched.live.load_full();
        handle.reload();
        assert_eq!(heard.recv_timeout(PATIENCE), Ok(Ok(("data".into(), true))));
        assert!(!Arc::ptr_eq(&before, &watched.live.load_full()));
    }
}
