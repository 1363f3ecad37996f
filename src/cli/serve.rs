//! `tollgate serve`: starts the gateway, keeps its configuration fresh, and lets it end in order.

use std::{
    io::{self, Write},
    path::Path,
    process::ExitCode,
    sync::Arc,
    time::Duration,
};

use serde_json::json;
use tokio::signal::unix::{Signal, SignalKind, signal};

use super::{
    UNREACHABLE, WRONG, fail,
    follow::{self, Followed, Follower, Kept},
};
use crate::{
    admin::config::RELOAD,
    config::{
        ConfigError, Loaded, Snapshot,
        watch::{Live, ReloadSummary, WatchHandle, watch},
    },
    gateway::{
        referee,
        registrar::Registrar,
        steward::{self, Verdict},
    },
    process::{Gateway, StartError},
    store::{
        audit::{Audit, Deed},
        keys::{KeyStore, KeyStoreError},
        ports::StoreError,
    },
    telemetry::{alerts::signals, logging, metrics},
};

/// How often the key store is asked whether it changed: revocations hold within it.
const KEY_STORE_INTERVAL: Duration = Duration::from_secs(1);

/// Runs until SIGTERM or SIGINT.
#[must_use]
pub fn run(config: Option<&Path>) -> ExitCode {
    logging::init("info");
    match runtime().block_on(async { serve(follow::load(config).await?).await }) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) if error.is::<StoreError>() || error.is::<KeyStoreError>() => fail(&error, UNREACHABLE),
        Err(error) => match error.downcast_ref::<StartError>() {
            // A port that is taken may be free a moment later: a supervisor should try again.
            Some(StartError::Store(_) | StartError::Thread(_) | StartError::Listen { .. }) => fail(&error, UNREACHABLE),
            _ => fail(&error, WRONG),
        },
    }
}

/// The runtime of a serving process.
pub(super) fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .expect("a process that can't have threads can't serve")
}

/// Serves until a signal comes, then drains. Says that it is ready in one line on standard output, for scripts that wait for it.
async fn serve(loaded: Loaded) -> anyhow::Result<()> {
    let mut stop = StopSignals::listen()?;
    let running = Running::start(loaded).await?;
    // A closed standard output is no reason not to serve.
    let _ = writeln!(io::stdout(), "ready listen={} admin={}", running.gateway.listen, running.gateway.admin);
    stop.received().await;
    running.stop(stop.received()).await;
    Ok(())
}

/// SIGTERM and SIGINT, heard from the moment that this is made.
pub(super) struct StopSignals {
    terminate: Signal,
    interrupt: Signal,
}

impl StopSignals {
    /// Begins to listen.
    pub(super) fn listen() -> io::Result<StopSignals> {
        Ok(StopSignals { terminate: signal(SignalKind::terminate())?, interrupt: signal(SignalKind::interrupt())? })
    }

    /// Waits for the first of them.
    pub(super) async fn received(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}

/// A gateway with its configuration watched.
pub(super) struct Running {
    /// The gateway.
    pub(super) gateway: Gateway,
    watching: Arc<WatchHandle>,
    keys: tokio::task::JoinHandle<()>,
    /// Followers and the steward.
    following: Vec<tokio::task::JoinHandle<()>>,
}

impl Running {
    /// Starts the gateway and the watch over its configuration and keys.
    pub(super) async fn start(loaded: Loaded) -> anyhow::Result<Running> {
        let Loaded { snapshot, origin, warnings } = loaded;
        for warning in warnings.iter().chain(&snapshot.not_yet) {
            tracing::warn!("{warning}");
        }
        let store = Arc::new(KeyStore::open(&snapshot.data_dir)?);
        let snapshot = with_stored_keys(snapshot, &store)?;
        let live = Arc::new(Live::new(snapshot));
        let registrar = Arc::new(Registrar::new(live.clone(), origin.clone()));
        let gateway = Gateway::start(live.clone(), registrar.clone()).await?;

        let for_reload = store.clone();
        let prepare_upstream = gateway.preparation();
        let prepare = move |snapshot| {
            prepare_upstream(&snapshot)
                .map_err(|error| ConfigError::Unusable(format!("{:#}", anyhow::Error::from(error))))?;
            with_stored_keys(snapshot, &for_reload)
        };
        let watching = Arc::new(watch(live.clone(), origin, prepare, Reloads::new(&live).observer())?);
        let keys = tokio::spawn(follow_keys(store, watching.clone()));
        registrar.tell(&watching);
        let follower = |what| Follower::new(what, &live.load_full(), watching.clone());
        let followers = [Followed::Pushed, Followed::Registered].into_iter().filter_map(follower);
        let mut following: Vec<_> = followers.map(|follower| tokio::spawn(follower.run())).collect();
        following.push(tokio::spawn(steward::run(registrar.clone(), Box::new(|_| Verdict::Continue))));
        following.push(tokio::spawn(referee::run(registrar, gateway.inspection())));
        tracing::info!(listen = %gateway.listen, admin = %gateway.admin, config.hash = %live.load_full().hash, "ready");
        follow::announce(&live.load_full());
        Ok(Running { gateway, watching, keys, following })
    }

    /// Lets calls in flight end, but no longer than until `hurry` is over, and ends.
    pub(super) async fn stop(self, hurry: impl Future<Output = ()>) {
        self.keys.abort();
        self.following.iter().for_each(tokio::task::JoinHandle::abort);
        self.gateway.drain(hurry).await;
        drop(self.watching);
    }
}

/// Keys of the configuration, and those that were created at run time.
fn with_stored_keys(snapshot: Snapshot, store: &KeyStore) -> Result<Snapshot, ConfigError> {
    match store.active() {
        Ok(keys) => Ok(snapshot.with_stored_keys(keys)),
        Err(error) => {
            // A key that can't be read can't be let in; those of the configuration still are.
            tracing::error!(%error, "the key store cannot be read: only the configuration's keys are valid");
            Ok(snapshot)
        }
    }
}

/// Has the configuration prepared anew when the key store changed, so that revocations hold within a second or two.
async fn follow_keys(store: Arc<KeyStore>, watching: Arc<WatchHandle>) {
    let mut seen = None;
    let mut ticks = tokio::time::interval(KEY_STORE_INTERVAL);
    loop {
        ticks.tick().await;
        let asked = store.clone();
        let Ok(Ok(revision)) = tokio::task::spawn_blocking(move || asked.revision()).await else { continue };
        if seen.replace(revision).is_some_and(|before| before != revision) {
            watching.reload();
        }
    }
}

/// What reloads are told to: the log, the metrics, the audit log, and where the last good pushed configuration is kept.
struct Reloads {
    before: std::sync::Mutex<Arc<Snapshot>>,
    kept: Vec<Kept>,
    audit: Audit,
}

impl Reloads {
    fn new(live: &Live) -> Reloads {
        let snapshot = live.load_full();
        let followed = [Followed::Pushed, Followed::Registered];
        let kept: Vec<Kept> = followed.into_iter().filter_map(|what| Kept::of(what, &snapshot)).collect();
        kept.iter().for_each(|kept| kept.keep(&snapshot));
        let audit = Audit::in_dir(&snapshot.data_dir);
        Reloads { before: std::sync::Mutex::new(snapshot), kept, audit }
    }

    fn observer(self) -> impl Fn(Result<ReloadSummary, &ConfigError>) + Send + 'static {
        move |result| match result {
            Ok(summary) => self.took_effect(&summary),
            Err(error) => {
                // The log first: who sees the count looks for the reason next.
                tracing::error!(reason = %error, "a changed configuration was refused; the last good one stays");
                metrics::config_reload("refused");
                signals().configuration(Some(&error.to_string()));
            }
        }
    }

    fn took_effect(&self, summary: &ReloadSummary) {
        metrics::config_reload("ok");
        signals().configuration(None);
        for warning in summary.warnings.iter().chain(&summary.snapshot.not_yet) {
            tracing::warn!("{warning}");
        }
        let now = &summary.snapshot;
        let mut before = self.before.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        metrics::config_hash(Some(&before.hash), &now.hash);
        tracing::info!(config.hash = %now.hash, swapped = summary.swapped, "the configuration was read again");
        if now.pushed != before.pushed {
            follow::announce(now);
        }
        self.kept.iter().for_each(|kept| kept.keep(now));
        if now.hash != before.hash || now.pushed != before.pushed {
            self.write_down(&before, now);
        }
        *before = now.clone();
    }

    /// Into the audit log. What serves is live already: a log that cannot be written does not take it back.
    fn write_down(&self, before: &Snapshot, now: &Snapshot) {
        let revision = |snapshot: &Snapshot| snapshot.pushed.as_ref().map(|pushed| pushed.revision.number);
        let described = |snapshot: &Snapshot| json!({"hash": snapshot.hash, "revision": revision(snapshot), "registry": snapshot.registry.number()});
        let pushed = now.pushed.as_ref().filter(|_| now.pushed != before.pushed).map(|pushed| &pushed.revision);
        let is_registered = now.registry.number() != before.registry.number();
        let registered = now.registry.revision.as_ref().filter(|_| is_registered);
        let actor = match (pushed, registered) {
            (Some(revision), _) => format!("{} (pushed revision {})", revision.author, revision.number),
            (None, Some(revision)) => format!("{} (registry revision {})", revision.author, revision.number),
            (None, None) => "file".to_owned(),
        };
        let deed = Deed {
            actor: &actor,
            action: RELOAD,
            subject: "configuration",
            reason: pushed.or(registered).map_or("", |revision| &revision.message),
            before: described(before),
            after: described(now),
        };
        let page = self.audit.open().and_then(|page| page.write(jiff::Timestamp::now(), &deed));
        if let Err(error) = page {
            tracing::error!(%error, "a changed configuration is not in the audit log");
        }
    }
}
