//! The life of the process: everything is started here, and ends here in order.

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use tokio::{net::TcpListener, sync::Semaphore, task::JoinHandle, time::Instant};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    admin,
    analysis::Analyst,
    body::{Drain, InFlightCount},
    config::{
        Live, Snapshot,
        snapshot::{Records, Store},
    },
    gateway::{
        Shared,
        alarms::Alarms,
        cores::Cores,
        referee,
        registrar::Registrar,
        routes::ClientRoutes,
        serve::{self, Shutdown},
        stack,
        tls::{TlsAcceptor, TlsError},
    },
    policy::limits::Limiter,
    purses::Purses,
    recorder::Recorder,
    store::{
        DataDir,
        ports::StoreError,
        records::{
            Calls, bodies,
            ports::CallLog,
            postgres::Postgres,
            sqlite::Sqlite,
            writer::{self, Handover, KeepBodies},
        },
        redis::{Redis, claims::RedisClaims, limits::SharedLimits},
    },
    telemetry::{
        alerts::{Claims, Outbox},
        metrics,
        otlp::{self, Exporter, Settings},
    },
    upstream::{Upstream, client::ClientError, tunnel::Tunnels},
};

/// Calls that go on at the same time after their clients have left.
const DRAINS_MAX: usize = 256;
/// How often gauges are refreshed and histograms folded.
const UPKEEP: Duration = Duration::from_secs(1);
/// Connections of the admin listener at the same time.
const ADMIN_CONNECTIONS_MAX: usize = 256;
/// How long records may take to be written once the last call has ended.
const RECORDER_TIMEOUT: Duration = Duration::from_secs(2);
/// How long traces and metrics may take to be sent once the last call is recorded.
const TELEMETRY_TIMEOUT: Duration = Duration::from_secs(2);
/// How long alerts may take to be sent once everything else has ended.
const ALERTS_TIMEOUT: Duration = Duration::from_secs(2);
/// How long the call log may take after that: for a store that is away, the calls go to disk within it.
const CALLS_TIMEOUT: Duration = Duration::from_secs(8);
/// How often calls that are kept no longer are deleted.
const RETENTION_INTERVAL: Duration = Duration::from_mins(10);

/// Why the gateway could not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// An address is taken or not ours.
    #[error("{what} cannot listen on {address}: {reason}; {}", listen_mend(reason))]
    Listen {
        /// `server.listen` or `server.admin`.
        what: &'static str,
        /// The address.
        address: SocketAddr,
        /// The system's word. Not an error's source: the message says it already.
        reason: io::Error,
    },
    /// The ledger's store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Certificates of the client listener.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// Roots of a provider.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// No thread for the recorder.
    #[error("the system gives no thread: {0}")]
    Thread(io::Error),
}

/// A gateway that takes calls.
#[derive(Debug)]
pub struct Gateway {
    /// The client listener's address, its port chosen by the system where the configuration says 0.
    pub listen: SocketAddr,
    /// The admin listener's address.
    pub admin: SocketAddr,
    shared: Shared,
    recorder: Recorder,
    recorder_thread: std::thread::JoinHandle<()>,
    /// Writes the call log, where one is kept; ends after the recorder's.
    calls_thread: Option<std::thread::JoinHandle<()>>,
    /// Calls that go on without their clients.
    carried: Drain,
    limits: Limits,
    listeners: Vec<JoinHandle<()>>,
    /// What is wrong, on its way to those who are told, and the task that sends it.
    alerts: (Outbox, JoinHandle<()>),
    /// Where traces go, and what sends them.
    telemetry: (Settings, otlp::Running),
}

/// Rate limits, and their clock.
#[derive(Debug)]
struct Limits {
    limiter: Arc<Limiter>,
    epoch: Instant,
    /// Where other gateways have a part in them.
    shared: Option<SharedLimits>,
}

impl Gateway {
    /// Opens the store, binds both listeners and begins to take calls.
    ///
    /// # Errors
    /// See [`StartError`]; nothing is left running.
    pub async fn start(live: Arc<Live>, registrar: Arc<Registrar>) -> Result<Gateway, StartError> {
        metrics::init();
        let snapshot = live.load_full();
        metrics::config_hash(None, &snapshot.hash);
        let purses = open_purses(&snapshot).await?;
        let upstream = Arc::new(Upstream::new(snapshot.routing.connect_timeout)?);
        for provider in snapshot.providers.values() {
            upstream.client.prepare(provider)?;
        }
        let tls = snapshot.server.tls.as_ref().map(TlsAcceptor::new).transpose()?;
        let (client, listen) = bind("server.listen", snapshot.server.listen).await?;
        let (admin, admin_address) = bind("server.admin", snapshot.server.admin).await?;
        let (calls, handover, calls_thread) = match open_calls(&snapshot, live.clone())? {
            Some(OpenCalls { calls, handover, thread }) => (Some(calls), Some(handover), Some(thread)),
            None => (None, None, None),
        };
        let instance: Arc<str> = instance_name().into();
        let post = Arc::new(upstream.client.clone());
        let (exporter, telemetry, exporting) =
            Exporter::start(post.clone(), instance.clone()).map_err(StartError::Thread)?;
        telemetry.set(snapshot.telemetry.as_ref());
        let (recorder, recorder_thread) = Recorder::start(handover, exporter).map_err(StartError::Thread)?;
        let (in_flight, shutdown) = (InFlightCount::default(), Shutdown::default());
        let shared = Shared { listen, live, registrar, purses, upstream, in_flight, calls, shutdown };
        let alerts = Outbox::start(post, instance, claims(&snapshot));
        let limits = Limits::open(&snapshot, &shared.live).await?;
        let carried = Drain::new(DRAINS_MAX, shared.shutdown.connections.clone(), shared.shutdown.over.clone());
        let mut gateway = Gateway {
            listen,
            admin: admin_address,
            shared,
            recorder,
            recorder_thread,
            calls_thread,
            carried,
            limits,
            listeners: Vec::new(),
            alerts,
            telemetry: (telemetry, exporting),
        };
        let cores = Cores::start(&gateway.shared.shutdown.over).map_err(StartError::Thread)?;
        gateway.serve(client, admin, tls, cores, snapshot.server.header_timeout);
        Ok(gateway)
    }

    fn serve(
        &mut self,
        client: TcpListener,
        admin: TcpListener,
        tls: Option<TlsAcceptor>,
        cores: Cores,
        header_timeout: Duration,
    ) {
        let shared = &self.shared;
        let via: Arc<str> = Arc::from(format!("tollgate-{:08x}", rand_u32()));
        let parts = stack::Parts {
            live: shared.live.clone(),
            limiter: self.limits.limiter.clone(),
            purses: shared.purses.clone(),
            upstream: shared.upstream.clone(),
            in_flight: shared.in_flight.clone(),
            recorder: self.recorder.clone(),
            drain: self.carried.clone(),
            tunnels: Tunnels {
                tasks: shared.shutdown.connections.clone(),
                over: shared.shutdown.over.clone(),
                in_flight: shared.in_flight.clone(),
            },
            via,
            feedback: shared.calls.as_ref().map(|calls| calls.desk.clone()),
            epoch: self.limits.epoch,
        };
        let routes = ClientRoutes::new(stack::build(parts), shared.clone());
        let limits = |connections| serve::Limits { header_timeout, connections: Arc::new(Semaphore::new(connections)) };
        let client_limits = limits(serve::connections_max());
        if let Some(acceptor) = &tls {
            self.listeners.push(tokio::spawn(acceptor.clone().watch()));
        }
        let shutdown = &shared.shutdown;
        let listen = serve::listen(client, tls, routes, client_limits, Some(cores), shutdown.clone());
        self.listeners.push(tokio::spawn(listen));
        let admin_routes = admin::Routes::new(shared.clone());
        // Not among the connections that the drain waits for: a scraper's idle connection must not hold the process.
        let admin_shutdown = Shutdown { connections: TaskTracker::new(), ..shutdown.clone() };
        let listen_admin =
            serve::listen(admin, None, admin_routes, limits(ADMIN_CONNECTIONS_MAX), None, admin_shutdown);
        self.listeners.push(tokio::spawn(listen_admin));
        let alarms = Alarms::new(self.alerts.0.clone());
        let telemetry = self.telemetry.0.clone();
        self.listeners.push(tokio::spawn(delete_old_calls(shared.clone())));
        let (upkept, over) = (shared.clone(), shared.shutdown.over.clone());
        // Not on the runtime: with many accounts a round takes milliseconds, which calls on that worker would wait for.
        let upkeep = std::thread::Builder::new()
            .name("upkeep".to_owned())
            .spawn(move || upkeep(&upkept, alarms, &telemetry, &over));
        if let Err(error) = upkeep {
            tracing::error!(%error, "no thread for upkeep: gauges are true only at each scrape");
        }
    }

    /// What guardrails are held against: the call log, where one is kept.
    #[must_use]
    pub fn inspection(&self) -> referee::Inspect {
        match &self.shared.calls {
            Some(calls) => referee::evidence(Analyst::new(calls.log.clone())),
            None => referee::no_evidence(),
        }
    }

    /// What a snapshot needs before it serves: roots of its providers, its connect time-out.
    ///
    /// # Errors
    /// When a provider's roots cannot be used.
    pub fn preparation(&self) -> impl Fn(&Snapshot) -> Result<(), ClientError> + Send + 'static {
        let upstream = self.shared.upstream.clone();
        move |snapshot| {
            snapshot.providers.values().try_for_each(|provider| upstream.client.prepare(provider))?;
            upstream.client.set_connect_timeout(snapshot.routing.connect_timeout);
            Ok(())
        }
    }

    /// Lets calls in flight end, for `server.limits.drain` or until `hurry` is over, then gives all money back and ends.
    pub async fn drain(self, hurry: impl Future<Output = ()>) {
        let Gateway {
            shared,
            recorder,
            recorder_thread,
            calls_thread,
            carried,
            limits,
            listeners,
            alerts,
            telemetry,
            ..
        } = self;
        let open = || shared.in_flight.now() + carried.now();
        let limit = shared.live.load_full().server.drain;
        shared.shutdown.draining.cancel();
        tracing::info!(in_flight = open(), limit_s = limit.as_secs(), "draining");
        let all_ended = async {
            while open() > 0 {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        let why = tokio::select! {
            () = all_ended => "",
            () = tokio::time::sleep(limit) => "the drain's time is over",
            () = hurry => "it was asked a second time to stop",
        };
        if open() > 0 {
            tracing::warn!(in_flight = open(), "calls were cut: {why}");
        }
        shared.shutdown.connections.close();
        // What is idle closes by itself at once; what a probe keeps open is cut.
        let _ = tokio::time::timeout(Duration::from_millis(200), shared.shutdown.connections.wait()).await;
        shared.shutdown.over.cancel();
        for listener in listeners {
            listener.abort();
        }
        let _ = tokio::time::timeout(Duration::from_secs(1), shared.shutdown.connections.wait()).await;
        recorder.stop();
        ended(&recorder_thread, RECORDER_TIMEOUT).await;
        if let Some(shared) = limits.shared {
            shared.close().await;
        }
        shared.purses.close().await;
        if let Some(thread) = calls_thread {
            ended(&thread, CALLS_TIMEOUT).await;
        }
        telemetry.1.finish(TELEMETRY_TIMEOUT).await;
        let (outbox, sender) = alerts;
        let waited = Instant::now();
        while outbox.waiting() > 0 && waited.elapsed() < ALERTS_TIMEOUT {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        sender.abort();
    }
}

impl Limits {
    /// Limits for this process alone, or shared with all that use the same Redis.
    async fn open(snapshot: &Snapshot, live: &Arc<Live>) -> Result<Limits, StoreError> {
        let epoch = Instant::now();
        let Store::Redis(url) = &snapshot.store else {
            return Ok(Limits { limiter: Arc::new(Limiter::new()), epoch, shared: None });
        };
        let live = Arc::clone(live);
        let in_use = move || live.load_full().limits.iter().any(|limit| limit.requests.or(limit.tokens).is_some());
        let (limiter, shared) = SharedLimits::start(url.clone(), snapshot.ledger.sync, epoch, in_use).await?;
        Ok(Limits { limiter, epoch, shared: Some(shared) })
    }
}

/// Purses over the store that the configuration names. Their journal is local to each process.
async fn open_purses(snapshot: &Snapshot) -> Result<Arc<Purses>, StoreError> {
    let ledger = &snapshot.ledger;
    match &snapshot.store {
        Store::Embedded => Purses::open(&snapshot.data_dir, ledger.sync, ledger.budget_wait),
        Store::Redis(url) => {
            let dir = Arc::new(DataDir::open(&snapshot.data_dir)?);
            let redis = Redis::open(url.clone(), ledger.wait_replicas, ledger.sync).await?;
            Purses::over(Arc::new(redis), dir, ledger.sync, ledger.budget_wait)
        }
    }
}

/// Who tells of an alert, where there may be others who find the same.
fn claims(snapshot: &Snapshot) -> Option<Arc<dyn Claims>> {
    match &snapshot.store {
        Store::Embedded => None,
        Store::Redis(url) => Some(Arc::new(RedisClaims::new(url.clone()))),
    }
}

/// Waits for a thread's end, but not for ever.
async fn ended(thread: &std::thread::JoinHandle<()>, limit: Duration) {
    let began = Instant::now();
    while !thread.is_finished() && began.elapsed() < limit {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// A call log with the way into it.
struct OpenCalls {
    calls: Calls,
    handover: Handover,
    thread: std::thread::JoinHandle<()>,
}

/// The call log that the configuration names, and its writer.
fn open_calls(snapshot: &Snapshot, live: Arc<Live>) -> Result<Option<OpenCalls>, StartError> {
    let log: Arc<dyn CallLog> = match &snapshot.records {
        Records::None => return Ok(None),
        Records::Sqlite => Arc::new(Sqlite::open(&snapshot.data_dir)?),
        Records::Postgres(url) => Arc::new(Postgres::open(url.expose())?),
    };
    // As the configuration says when they are written: a redaction that was added counts from then on.
    let keep: KeepBodies = Box::new(move |captured| {
        let calls = &live.load_full().calls;
        bodies::kept(captured, &calls.redactor, calls.body_bytes_max)
    });
    let spill_bytes_max = snapshot.calls.spill_bytes_max;
    let (handover, progress, thread) =
        writer::start(log.clone(), &snapshot.data_dir, spill_bytes_max, keep).map_err(StartError::Thread)?;
    Ok(Some(OpenCalls { calls: Calls { log, progress, desk: handover.desk() }, handover, thread }))
}

/// Deletes calls that are kept no longer, as long as the gateway runs.
async fn delete_old_calls(shared: Shared) {
    let Some(calls) = shared.calls else { return };
    let mut ticks = tokio::time::interval(RETENTION_INTERVAL);
    loop {
        ticks.tick().await;
        let retention = shared.live.load_full().calls.retention;
        let until_ms = u64::try_from(jiff::Timestamp::now().as_millisecond()).unwrap_or_default();
        let until_ms = until_ms.saturating_sub(u64::try_from(retention.as_millis()).unwrap_or(u64::MAX));
        match calls.log.delete_before(until_ms).await {
            Ok(0) => {}
            Ok(count) => tracing::info!(count, "calls were deleted: they are older than `calls.retention`"),
            Err(error) => tracing::warn!(%error, "old calls could not be deleted; tried again in ten minutes"),
        }
    }
}

/// What to do about an address that cannot be had.
fn listen_mend(reason: &io::Error) -> &'static str {
    match reason.kind() {
        io::ErrorKind::AddrInUse => "stop the process that has it, or choose another address under `server:`",
        io::ErrorKind::PermissionDenied => "ports below 1024 take a privilege: choose another under `server:`",
        _ => "choose an address of this machine under `server:`",
    }
}

async fn bind(what: &'static str, address: SocketAddr) -> Result<(TcpListener, SocketAddr), StartError> {
    let failed = |reason| StartError::Listen { what, address, reason };
    let listener = TcpListener::bind(address).await.map_err(failed)?;
    let bound = listener.local_addr().map_err(failed)?;
    Ok((listener, bound))
}

/// Keeps gauges true, folds histograms while nobody scrapes, and looks for what is worth an alert.
fn upkeep(shared: &Shared, mut alarms: Alarms, telemetry: &Settings, over: &CancellationToken) {
    while !over.is_cancelled() {
        metrics::upkeep();
        shared.refresh_gauges();
        alarms.look(shared);
        telemetry.set(shared.live.load_full().telemetry.as_ref());
        std::thread::sleep(UPKEEP);
    }
}

/// The machine's name, or the pod's: by it people find the gateway that an alert or a trace comes from.
fn instance_name() -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    match name.trim() {
        "" => "tollgate".to_owned(),
        name => name.to_owned(),
    }
}

fn rand_u32() -> u32 {
    let bytes = uuid::Uuid::now_v7().into_bytes();
    u32::from_be_bytes([bytes[12], bytes[13], bytes[14], bytes[15]])
}
