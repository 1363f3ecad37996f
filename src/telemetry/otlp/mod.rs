//! Traces and metrics out, by OTLP over HTTP: <https://opentelemetry.io/docs/specs/otlp/#otlphttp>.
//!
//! The recorder hands finished calls over and never waits. One thread gathers and encodes them, which is no work for a reactor
//! thread; one task sends. Each queue has a bound: what does not fit is dropped and counted, and a collector that hangs changes nothing
//! for calls.

mod messages;
mod meters;
mod semconv;
mod spans;

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
        mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel},
    },
    thread::JoinHandle,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use arc_swap::ArcSwapOption;
use bytes::Bytes;
use http::{HeaderValue, Request, Uri, header};
use opentelemetry_proto::tonic::{collector::trace::v1::ExportTraceServiceResponse, trace::v1::Span};
use prost::Message;
use tokio::{sync::mpsc, task::JoinHandle as Task};

use self::meters::Meters;
use crate::{
    policy::{
        delivery,
        traces::{self, Otlp},
    },
    record::{Captured, Record},
    telemetry::{
        metrics,
        post::{self, Patience, Post, Reply},
    },
};

/// Calls that may wait to be encoded.
const WAITING_MAX: usize = 8192;
/// Calls of one message, and the longest that one of them waits for others.
const BATCH: usize = 512;
const BATCH_DELAY: Duration = Duration::from_secs(1);
/// Bytes of bodies that may wait with them: a call beyond is told without what it said.
const BODY_BYTES_MAX: usize = 64 << 20;
/// Bytes of one message, but for a single call that has more: collectors refuse what is too long.
const MESSAGE_BYTES_MAX: usize = 2 << 20;
/// Messages that may wait for the collector.
const MESSAGES_MAX: usize = 16;
/// Ten seconds is OpenTelemetry's own default.
const PATIENCE: Patience =
    Patience { timeout: Duration::from_secs(10), attempts_max: 6, may_go_better: delivery::collector_may_recover };

/// Takes finished calls.
#[derive(Debug)]
pub struct Exporter {
    /// Boxed: the channel's places are all allocated at once.
    records: SyncSender<Box<Record>>,
    settings: Arc<ArcSwapOption<Otlp>>,
    /// Bytes of the bodies that wait.
    body_bytes: Arc<AtomicUsize>,
}

/// Where calls go: may change at any time.
#[derive(Debug, Clone)]
pub struct Settings(Arc<ArcSwapOption<Otlp>>);

impl Settings {
    /// From now on, calls go there; `None`: nowhere.
    pub fn set(&self, otlp: Option<&Arc<Otlp>>) {
        self.0.store(otlp.cloned());
    }
}

/// What sends, and ends by itself once the [`Exporter`] is gone.
#[derive(Debug)]
pub struct Running {
    thread: JoinHandle<()>,
    task: Task<()>,
}

/// A message on its way to the collector.
struct Outgoing {
    signal: &'static str,
    to: Uri,
    otlp: Arc<Otlp>,
    body: Bytes,
}

impl Exporter {
    /// Starts gathering and sending. `instance` is this gateway.
    ///
    /// # Errors
    /// When the system gives no thread.
    pub fn start(post: Arc<dyn Post>, instance: Arc<str>) -> std::io::Result<(Exporter, Settings, Running)> {
        let (records, received) = sync_channel(WAITING_MAX);
        let (messages, outgoing) = mpsc::channel(MESSAGES_MAX);
        let settings = Arc::new(ArcSwapOption::empty());
        let body_bytes = Arc::<AtomicUsize>::default();
        let gatherer = Gatherer { settings: settings.clone(), instance, messages, body_bytes: body_bytes.clone() };
        let thread = std::thread::Builder::new().name("otlp".to_owned()).spawn(move || gatherer.run(&received))?;
        let running = Running { thread, task: tokio::spawn(send_all(outgoing, post)) };
        Ok((Exporter { records, settings: settings.clone(), body_bytes }, Settings(settings), running))
    }

    /// Hands a finished call over; with its bodies where they are told. The record is as before when this returns.
    pub fn add(&self, record: &mut Record) {
        let settings = self.settings.load();
        let Some(otlp) = settings.as_ref() else { return };
        let bodies = record.bodies.take();
        let mut copy = Box::new(record.clone());
        copy.bodies = bodies.as_ref().filter(|bodies| is_told(record, otlp) && self.has_room_for(bodies)).cloned();
        record.bodies = bodies;
        let waiting = copy.bodies.as_ref().map_or(0, |bodies| bodies.bytes());
        self.body_bytes.fetch_add(waiting, Ordering::Relaxed);
        if self.records.try_send(copy).is_err() {
            self.body_bytes.fetch_sub(waiting, Ordering::Relaxed);
            metrics::otlp("calls", "dropped", 1);
        }
    }

    fn has_room_for(&self, bodies: &Captured) -> bool {
        let has = self.body_bytes.load(Ordering::Relaxed).saturating_add(bodies.bytes()) <= BODY_BYTES_MAX;
        if !has {
            metrics::otlp("content", "dropped", 1);
        }
        has
    }
}

impl Running {
    /// Waits until everything is sent, for `limit` at most.
    pub async fn finish(self, limit: Duration) {
        let Running { thread, mut task } = self;
        if tokio::time::timeout(limit, &mut task).await.is_err() {
            task.abort();
        }
        // It only ever waits for calls, and there are none any more.
        drop(thread);
    }
}

// === the thread ===

struct Gatherer {
    settings: Arc<ArcSwapOption<Otlp>>,
    instance: Arc<str>,
    messages: mpsc::Sender<Outgoing>,
    body_bytes: Arc<AtomicUsize>,
}

impl Gatherer {
    fn run(&self, received: &Receiver<Box<Record>>) {
        let mut meters = Meters::new(now_nanos());
        let mut batch = Vec::with_capacity(BATCH);
        let mut reported = Instant::now();
        let mut unreported = false;
        loop {
            let more = gather(received, &mut batch);
            let otlp = self.settings.load_full();
            let bodies: usize = batch.iter().filter_map(|record| record.bodies.as_ref()).map(|it| it.bytes()).sum();
            if let Some(otlp) = &otlp {
                batch.iter().for_each(|record| meters.add(record));
                unreported |= !batch.is_empty();
                batch.retain(|record| is_traced(record, otlp));
                self.trace(&batch, otlp);
                if unreported && (!more || reported.elapsed() >= otlp.interval) {
                    self.measure(&meters, otlp);
                    (reported, unreported) = (Instant::now(), false);
                }
            }
            batch.clear();
            self.body_bytes.fetch_sub(bodies, Ordering::Relaxed);
            if !more {
                return;
            }
        }
    }

    fn trace(&self, batch: &[Record], otlp: &Arc<Otlp>) {
        let (mut spans, mut bytes) = (Vec::new(), 0);
        for record in batch {
            let of_call = spans::of(record, otlp);
            let more: usize = of_call.iter().map(Message::encoded_len).sum();
            if bytes + more > MESSAGE_BYTES_MAX {
                self.send_spans(std::mem::take(&mut spans), otlp);
                bytes = 0;
            }
            spans.extend(of_call);
            bytes += more;
        }
        self.send_spans(spans, otlp);
    }

    fn send_spans(&self, spans: Vec<Span>, otlp: &Arc<Otlp>) {
        if !spans.is_empty() {
            let body = spans::request(spans, otlp, &self.instance).encode_to_vec();
            self.hand_on("traces", otlp.traces.clone(), otlp, body);
        }
    }

    fn measure(&self, meters: &Meters, otlp: &Arc<Otlp>) {
        let Some(to) = &otlp.metrics else { return };
        let body = meters.request(otlp, &self.instance, now_nanos()).encode_to_vec();
        self.hand_on("metrics", to.clone(), otlp, body);
    }

    fn hand_on(&self, signal: &'static str, to: Uri, otlp: &Arc<Otlp>, body: Vec<u8>) {
        let outgoing = Outgoing { signal, to, otlp: otlp.clone(), body: body.into() };
        if self.messages.try_send(outgoing).is_err() {
            metrics::otlp(signal, "dropped", 1);
        }
    }
}

/// Fills `batch` with what comes within [`BATCH_DELAY`]; `false` when nothing will come any more.
fn gather(received: &Receiver<Box<Record>>, batch: &mut Vec<Record>) -> bool {
    let until = Instant::now() + BATCH_DELAY;
    while batch.len() < BATCH {
        match received.recv_timeout(until.saturating_duration_since(Instant::now())) {
            Ok(record) => batch.push(*record),
            Err(RecvTimeoutError::Timeout) => return true,
            Err(RecvTimeoutError::Disconnected) => return false,
        }
    }
    true
}

/// Whether what a call said goes out with it.
fn is_told(record: &Record, otlp: &Otlp) -> bool {
    otlp.content.is_some() && is_traced(record, otlp)
}

fn is_traced(record: &Record, otlp: &Otlp) -> bool {
    traces::is_sampled(traces::trace_id(&record.id, record.trace), record.trace, otlp.sample)
}

fn now_nanos() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}

// === the task ===

async fn send_all(mut outgoing: mpsc::Receiver<Outgoing>, post: Arc<dyn Post>) {
    // A collector that is away is told of once, and once that it is back.
    let mut away = false;
    while let Some(message) = outgoing.recv().await {
        match post::deliver(&*post, PATIENCE, || message.request()).await {
            Ok(reply) => {
                note_partial(&message, &reply);
                metrics::otlp(message.signal, "sent", 1);
                if std::mem::take(&mut away) {
                    tracing::info!("the collector of `telemetry.otlp` takes traces and metrics again");
                }
            }
            Err(error) => {
                metrics::otlp(message.signal, "failed", 1);
                if !std::mem::replace(&mut away, true) {
                    tracing::warn!(%error, signal = message.signal, "the collector of `telemetry.otlp` does not take {}", message.signal);
                }
            }
        }
    }
}

/// A collector may take a message and refuse some of its spans: not to be sent again, by the protocol.
fn note_partial(message: &Outgoing, reply: &Reply) {
    if message.signal != "traces" {
        return;
    }
    let partial = ExportTraceServiceResponse::decode(reply.body.clone()).ok().and_then(|reply| reply.partial_success);
    if let Some(partial) = partial.filter(|partial| partial.rejected_spans > 0) {
        metrics::otlp("spans", "rejected", u64::try_from(partial.rejected_spans).unwrap_or_default());
    }
}

impl Outgoing {
    fn request(&self) -> Request<Bytes> {
        let mut request = Request::new(self.body.clone());
        *request.method_mut() = http::Method::POST;
        *request.uri_mut() = self.to.clone();
        let headers = request.headers_mut();
        headers.insert(header::USER_AGENT, HeaderValue::from_static(concat!("tollgate/", env!("CARGO_PKG_VERSION"))));
        headers.extend(self.otlp.headers.iter().cloned());
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/x-protobuf"));
        request
    }
}
