//! The reply's body, wrapped once: bytes pass, usage and errors are read beside them, and the end is reported exactly once.
//!
//! Nothing is held back but, where the gateway itself asked for usage on the client's behalf, an event that has not come
//! whole yet. Back-pressure is hyper's: the next chunk is asked for when the last one is gone.

use std::{
    collections::VecDeque,
    io,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use http::HeaderMap;
use http_body::{Body, Frame, SizeHint};
use http_body_util::{BodyExt, Full, combinators::UnsyncBoxBody};
use tokio::{
    sync::Semaphore,
    task::JoinHandle,
    time::{Instant, Sleep, sleep_until},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    record::Outcome,
    recorder::{Charge, OpenRecord},
    wire::{
        coding::Decoder, endpoint::Dialect, headers, openai::usage_filter::UsageFilter, output::Output,
        reply::ReplyWatch, stream::StreamWatch,
    },
};

/// Why a reply was broken off that was under way at its call's deadline.
const OVERDUE: &str = "the call's total time is over";

/// The body of every reply to a client.
#[derive(Debug)]
pub struct ReplyBody {
    kind: Kind,
    in_flight: Option<InFlight>,
}

#[derive(Debug)]
enum Kind {
    /// Written here.
    Own(Full<Bytes>),
    /// An upstream's.
    Watched(Box<Watched>),
}

/// Why a reply's body broke off; hyper then closes the connection without a proper end, so the client sees the cut.
#[derive(Debug, thiserror::Error)]
#[error("the upstream's reply broke off: {0}")]
pub struct ReplyError(&'static str);

/// An upstream's body, whatever made it.
#[derive(Debug)]
pub enum Source {
    /// From the network.
    Http(UnsyncBoxBody<Bytes, hyper::Error>),
    /// Made in this process.
    Local(UnsyncBoxBody<Bytes, io::Error>),
}

/// What is read beside the bytes.
#[derive(Debug)]
pub enum Watch {
    /// An event stream.
    Events(Box<StreamWatch>),
    /// One JSON document.
    Document(Box<ReplyWatch>),
    /// Nothing: an endpoint that is not metered, or an error reply.
    Nothing,
}

/// Time limits of a reply's body.
#[derive(Debug, Clone, Copy)]
pub struct BodyTimes {
    /// Longest silence between two chunks.
    pub idle: Duration,
    /// When the whole call must have ended.
    pub deadline: Instant,
}

/// What a watched body needs to know.
#[derive(Debug)]
pub struct Watching {
    /// What is read.
    pub watch: Watch,
    /// Removes the usage that the client did not ask for.
    pub filter: Option<UsageFilter>,
    /// Decodes a copy where the body is compressed.
    pub decoder: Option<Decoder>,
    /// The dialect of an error event.
    pub dialect: Dialect,
    /// How the call ends if the body comes to its end.
    pub outcome: Outcome,
    /// Whether only the connection's close tells the body's end (RFC 9112 §6.3, rule 8), as it would tell a cut.
    pub ends_by_close: bool,
    /// Time limits.
    pub times: BodyTimes,
    /// Reads on when the client has left; `None` cancels.
    pub drain: Option<Drain>,
}

/// Carries calls to their end after the client has left (`on_disconnect: drain`); a bounded number of them.
#[derive(Debug, Clone)]
pub struct Drain {
    slots: Arc<Semaphore>,
    slots_max: usize,
    tasks: TaskTracker,
    over: CancellationToken,
}

/// Work whose client waits for it. Dropped, it goes on without, if there is a slot.
#[derive(Debug)]
struct Carried<T: Send + 'static> {
    drain: Drain,
    task: Option<JoinHandle<Option<T>>>,
    left: CancellationToken,
}

/// An upstream's body on its way to the client.
#[derive(Debug)]
pub struct Watched {
    source: Source,
    watching: Watching,
    record: Option<OpenRecord>,
    /// Chunks that are ready to go.
    ready: VecDeque<Bytes>,
    /// Whether the source has ended, well or not.
    ended: bool,
    /// Why the body is about to be cut off.
    cut: Option<&'static str>,
    last_chunk: Instant,
    /// Runs once the source has made the client wait.
    alarm: Option<Pin<Box<Sleep>>>,
}

// === impl ReplyBody ===

impl ReplyBody {
    /// A body of our own.
    #[must_use]
    pub fn own(bytes: impl Into<Bytes>) -> ReplyBody {
        ReplyBody { kind: Kind::Own(Full::new(bytes.into())), in_flight: None }
    }

    /// An upstream's body; `record` ends with it.
    #[must_use]
    pub fn watched(source: Source, watching: Watching, record: OpenRecord) -> ReplyBody {
        let mut watched = Box::new(Watched {
            alarm: None,
            source,
            watching,
            record: Some(record),
            ready: VecDeque::new(),
            ended: false,
            cut: None,
            last_chunk: Instant::now(),
        });
        if watched.source.is_end_stream() {
            watched.complete();
        }
        ReplyBody { kind: Kind::Watched(watched), in_flight: None }
    }

    /// Counts the call as in flight until the body is gone.
    #[must_use]
    pub fn in_flight(mut self, guard: InFlight) -> ReplyBody {
        self.in_flight = Some(guard);
        self
    }
}

impl Body for ReplyBody {
    type Data = Bytes;
    type Error = ReplyError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, ReplyError>>> {
        match &mut self.get_mut().kind {
            Kind::Own(body) => Pin::new(body).poll_frame(cx).map_err(|never| match never {}),
            Kind::Watched(body) => body.poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.kind {
            Kind::Own(body) => body.is_end_stream(),
            Kind::Watched(body) => body.ended && body.ready.is_empty() && body.cut.is_none(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.kind {
            Kind::Own(body) => body.size_hint(),
            Kind::Watched(body) if body.watching.filter.is_none() => body.source.size_hint(),
            Kind::Watched(_) => SizeHint::default(),
        }
    }
}

// === impl Watched ===

impl Watched {
    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, ReplyError>>> {
        loop {
            if let Some(chunk) = self.ready.pop_front() {
                return Poll::Ready(Some(Ok(Frame::data(chunk))));
            }
            if let Some(reason) = self.cut.take() {
                return Poll::Ready(Some(Err(ReplyError(reason))));
            }
            if self.ended {
                return Poll::Ready(None);
            }
            match self.source.poll_frame(cx) {
                Poll::Ready(Some(Ok(frame))) => {
                    self.last_chunk = Instant::now();
                    if self.last_chunk >= self.watching.times.deadline {
                        // Where the client is slower than the source, no alarm rings: nobody waits for the source.
                        self.broke(OVERDUE);
                    } else if let Some(frame) = self.pass(frame) {
                        return Poll::Ready(Some(Ok(frame)));
                    }
                }
                Poll::Ready(None) => self.source_ended(),
                Poll::Ready(Some(Err(reason))) => self.broke(reason),
                Poll::Pending => match self.poll_alarm(cx) {
                    Poll::Ready(reason) => self.broke(reason),
                    Poll::Pending => return Poll::Pending,
                },
            }
            if self.cut.is_some() {
                // hyper drops what it has not written when a body fails: head and last bytes leave first.
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
        }
    }

    /// Looks at a frame and gives back what may go on now; `None` when it went to `ready`, or nowhere.
    fn pass(&mut self, frame: Frame<Bytes>) -> Option<Frame<Bytes>> {
        let chunk = match frame.into_data() {
            Ok(chunk) => chunk,
            Err(other) => return self.pass_trailers(other),
        };
        self.look_at(&chunk);
        let Some(filter) = &mut self.watching.filter else {
            if self.source.is_end_stream() {
                self.complete();
            }
            return Some(Frame::data(chunk));
        };
        let passed = filter.push(&chunk);
        if !passed.is_empty() {
            self.ready.push_back(passed);
        }
        None
    }

    /// Trailers are the end: hyper asks for nothing after them. They give way to bytes that were held back.
    fn pass_trailers(&mut self, frame: Frame<Bytes>) -> Option<Frame<Bytes>> {
        self.source_ended();
        frame.into_trailers().ok().map(forwarded_trailers).filter(|_| self.ready.is_empty())
    }

    fn look_at(&mut self, chunk: &Bytes) {
        let Watching { watch, decoder, .. } = &mut self.watching;
        let mut captured = self.record.as_mut().and_then(|record| record.facts().bodies.as_deref_mut());
        let mut look = |plain: &[u8]| {
            watch.push(plain);
            if let Some(captured) = &mut captured {
                captured.reply.push(plain);
            }
        };
        let readable = match decoder {
            Some(decoder) => decoder.push(chunk, look).is_ok(),
            None => {
                look(chunk);
                true
            }
        };
        if !readable {
            // Not metered, and so charged at its bound; the client gets its bytes either way.
            *watch = Watch::Nothing;
        }
        if let (Watch::Events(events), Some(record)) = (&self.watching.watch, &mut self.record)
            && record.facts().first_token.is_none()
            && events.has_output()
        {
            record.facts().first_token = Some(self.last_chunk - record.received());
        }
    }

    /// The source said that nothing more comes: believed, unless a closed connection is all it said it with.
    fn source_ended(&mut self) {
        if let Watch::Events(events) = &self.watching.watch
            && self.watching.ends_by_close
            && !events.ended()
        {
            return self.broke("the connection closed before the stream said that it was over");
        }
        if let Some(filter) = self.watching.filter.take() {
            let (rest, _) = filter.finish();
            self.ready.extend(Some(rest).filter(|rest| !rest.is_empty()));
        }
        self.complete();
    }

    fn complete(&mut self) {
        self.ended = true;
        let outcome = match &self.watching.watch {
            Watch::Events(events) if events.error().is_some() => Outcome::UpstreamError,
            _ => self.watching.outcome,
        };
        self.close(outcome, true);
    }

    /// The reply broke off. An event stream says so in band, since its status has long gone; anything else is cut off.
    fn broke(&mut self, reason: &'static str) {
        self.ended = true;
        let mid_event = match &self.watching.watch {
            // Plain text after compressed bytes would be no event but a second fault.
            Watch::Events(events) if self.watching.decoder.is_none() => {
                Some(events.mid_event() && self.watching.filter.is_none())
            }
            _ => None,
        };
        self.close(Outcome::Cut, false);
        match mid_event {
            Some(mid_event) => self.ready.push_back(error_event(self.watching.dialect, mid_event, reason)),
            None => self.cut = Some(reason),
        }
    }

    fn poll_alarm(&mut self, cx: &mut Context<'_>) -> Poll<&'static str> {
        let times = self.watching.times;
        let first = || Box::pin(sleep_until(times.next(self.last_chunk)));
        let alarm = self.alarm.get_or_insert_with(first);
        while alarm.as_mut().poll(cx).is_ready() {
            let now = Instant::now();
            if now >= times.deadline {
                return Poll::Ready(OVERDUE);
            }
            let next = times.next(self.last_chunk);
            if now >= next {
                return Poll::Ready("the upstream sent nothing for too long");
            }
            alarm.as_mut().reset(next);
        }
        Poll::Pending
    }

    /// Ends the record. Happens once: the record is taken.
    fn close(&mut self, outcome: Outcome, complete: bool) {
        let Some(mut record) = self.record.take() else { return };
        let watch = std::mem::replace(&mut self.watching.watch, Watch::Nothing);
        let attempt = record.attempt();
        if let Some(tier) = watch.service_tier() {
            attempt.tier = Some(tier);
        }
        if let Some(charge) = watch.charge(complete) {
            attempt.charge = charge;
        }
        record.close(outcome);
    }
}

/// The client left before the end: the reply is dropped, which closes the upstream's connection, or read on.
impl Drop for Watched {
    fn drop(&mut self) {
        if self.record.is_none() {
            return;
        }
        let Some(drain) = self.watching.drain.take() else { return self.close(Outcome::Abandoned, false) };
        let Ok(slot) = drain.slots.clone().try_acquire_owned() else { return self.close(Outcome::Abandoned, false) };
        let mut rest = Watched {
            source: std::mem::replace(&mut self.source, Source::nothing()),
            watching: Watching {
                watch: std::mem::replace(&mut self.watching.watch, Watch::Nothing),
                filter: None,
                decoder: self.watching.decoder.take(),
                outcome: Outcome::Abandoned,
                drain: None,
                ..self.watching
            },
            record: self.record.take(),
            ready: VecDeque::new(),
            ended: false,
            cut: None,
            last_chunk: self.last_chunk,
            alarm: None,
        };
        let reading = async move { while let Some(Ok(_)) = std::future::poll_fn(|cx| rest.poll_frame(cx)).await {} };
        let reading = drain.over.clone().run_until_cancelled_owned(reading);
        drain.tasks.spawn(async move {
            reading.await;
            drop(slot);
        });
    }
}

/// Only what may come after a body: never framing or credentials.
fn forwarded_trailers(mut trailers: HeaderMap) -> Frame<Bytes> {
    headers::retain_trailers(&mut trailers);
    Frame::trailers(trailers)
}

/// The one event that tells a client that its stream broke; no `[DONE]` follows.
///
/// Where the break came inside an event, that event is closed first: what the client has of it can't be taken back.
fn error_event(dialect: Dialect, mid_event: bool, reason: &str) -> Bytes {
    let message = format!("the upstream's reply broke off: {reason}");
    let event = match dialect {
        Dialect::OpenAi => {
            let error = serde_json::json!({"error": {
                "message": message, "type": "upstream_error", "param": null, "code": "upstream_unreachable"}});
            format!("data: {error}\n\n")
        }
        Dialect::Anthropic => {
            let error = serde_json::json!({"type": "error", "error": {"type": "api_error", "message": message}});
            format!("event: error\ndata: {error}\n\n")
        }
    };
    Bytes::from(if mid_event { format!("\n\n{event}") } else { event })
}

// === impl Watch ===

impl Watch {
    fn push(&mut self, bytes: &[u8]) {
        match self {
            Watch::Events(events) => events.push(bytes),
            Watch::Document(document) => document.push(bytes),
            Watch::Nothing => {}
        }
    }

    /// The tier that the provider says it served with.
    fn service_tier(&self) -> Option<Box<str>> {
        match self {
            Watch::Events(events) => events.service_tier().map(Into::into),
            Watch::Document(document) => document.service_tier().map(Into::into),
            Watch::Nothing => None,
        }
    }

    /// What is to be charged; `None` leaves the charge that was set when the reply's head came.
    fn charge(self, complete: bool) -> Option<Charge> {
        let (usage, complete) = match &self {
            Watch::Events(events) => (events.usage(), complete || events.ended()),
            Watch::Document(document) => (document.usage(), complete || document.ended()),
            Watch::Nothing => return None,
        };
        let reported = match usage {
            Some(Ok(usage)) if complete => return Some(Charge::Reported(usage)),
            Some(Err(absurd)) => {
                tracing::error!(reason = %absurd, "a provider reported a usage that cannot be: charged at the bound");
                return Some(Charge::Bound);
            }
            usage => usage.and_then(Result::ok).unwrap_or_default(),
        };
        Some(Charge::Seen { output: self.into_output(), complete, reported })
    }

    /// What came back, to be counted: worked out only where the provider's figures don't do.
    fn into_output(self) -> Output {
        match self {
            Watch::Events(events) => events.into_output(),
            Watch::Document(document) => document.into_output(),
            Watch::Nothing => Output::default(),
        }
    }
}

// === impl BodyTimes ===

impl BodyTimes {
    fn next(&self, last_chunk: Instant) -> Instant {
        self.deadline.min(last_chunk + self.idle)
    }
}

// === impl Drain ===

impl Drain {
    /// At most `slots` calls go on at the same time; further ones are cancelled, and all of them when it is `over`.
    #[must_use]
    pub fn new(slots: usize, tasks: TaskTracker, over: CancellationToken) -> Drain {
        Drain { slots: Arc::new(Semaphore::new(slots)), slots_max: slots, tasks, over }
    }

    /// Calls that go on without their clients.
    #[must_use]
    pub fn now(&self) -> usize {
        self.slots_max.saturating_sub(self.slots.available_permits())
    }

    /// What `work` comes to. It goes on when nobody waits for that any longer, which it learns by the token that it is given.
    /// `None` when the process ends before.
    ///
    /// # Panics
    /// When `work` does.
    pub async fn carry<T, W>(&self, work: impl FnOnce(CancellationToken) -> W) -> Option<T>
    where
        T: Send + 'static,
        W: Future<Output = T> + Send + 'static,
    {
        let left = CancellationToken::new();
        let work = self.over.clone().run_until_cancelled_owned(work(left.clone()));
        let mut carried = Carried { drain: self.clone(), task: Some(self.tasks.spawn(work)), left };
        let ended = carried.task.as_mut()?.await;
        carried.task = None;
        ended.unwrap_or_else(|error| match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            Err(_) => None,
        })
    }
}

impl<T: Send + 'static> Drop for Carried<T> {
    fn drop(&mut self) {
        let Some(task) = self.task.take() else { return };
        self.left.cancel();
        match self.drain.slots.clone().try_acquire_owned() {
            Ok(slot) => drop(self.drain.tasks.spawn(async move {
                // Its reply has no reader: dropped, it is read on by itself.
                drop(task.await);
                drop(slot);
            })),
            Err(_) => task.abort(),
        }
    }
}

// === impl Source ===

impl Source {
    fn nothing() -> Source {
        Source::Local(Full::new(Bytes::new()).map_err(|never| match never {}).boxed_unsync())
    }

    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, &'static str>>> {
        match self {
            Source::Http(body) => Pin::new(body).poll_frame(cx).map_err(|_| "the connection broke"),
            Source::Local(body) => Pin::new(body).poll_frame(cx).map_err(|_| "the simulation cut it"),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Source::Http(body) => body.is_end_stream(),
            Source::Local(body) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Source::Http(body) => body.size_hint(),
            Source::Local(body) => body.size_hint(),
        }
    }
}

// === in flight ===

/// Calls in flight: from the request's head to the reply's last byte.
#[derive(Debug, Clone, Default)]
pub struct InFlightCount(Arc<AtomicUsize>);

/// One call in flight.
#[derive(Debug)]
pub struct InFlight(InFlightCount);

impl InFlightCount {
    /// Counts a call, unless `max` are in flight already.
    #[must_use]
    pub fn enter(&self, max: usize) -> Option<InFlight> {
        let before = self.0.fetch_add(1, Ordering::Relaxed);
        if before >= max {
            self.0.fetch_sub(1, Ordering::Relaxed);
            return None;
        }
        Some(InFlight(self.clone()))
    }

    /// How many there are.
    #[must_use]
    pub fn now(&self) -> usize {
        self.0.load(Ordering::Relaxed)
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.0.fetch_sub(1, Ordering::Relaxed);
    }
}
