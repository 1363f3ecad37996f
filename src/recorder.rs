//! Closes each call exactly once: settles its reservation, counts it, logs it. Accounting can't be lost and can't block.
//!
//! A call's [`OpenRecord`] is one linear value that moves inward with the call and ends in the body that is watched. It holds a
//! slot of the bounded channel from its start, so ending it never waits, `Drop` included. What the provider reported is settled
//! where the call ends; one thread does the rest: it may count tokens, which is no work for a reactor thread, and it takes the
//! calls that ended together.

use std::{sync::Arc, thread::JoinHandle, time::Duration};

use http::StatusCode;
use tokio::{sync::mpsc, time::Instant};

use crate::{
    call::{Call, Head, Payload, Plan},
    config::Snapshot,
    policy::{
        keys::Caller,
        limits::{Admission, Standing},
        pricing::Price,
        tokens,
    },
    purses::Reservation,
    record::{Outcome, Record, UsageSource, UserIds},
    store::records::writer::Handover,
    telemetry::{alerts::signals, logging::CallLog, metrics::CallMetrics, otlp::Exporter},
    units::{NanoUsd, Tokens},
    wire::{output::Output, traceparent::TraceParent, usage::Usage},
};

/// Calls that may be open at the same time before new ones wait for a slot.
const OPEN_RECORDS_MAX: usize = 65_536;
/// Records closed per wake-up of the recorder.
const BATCH: usize = 256;
/// Rest after fewer than that: under load, waking for each call would cost more than all that is done for it.
const GATHER: Duration = Duration::from_millis(5);
/// Safety factor on our own counts, in percent: providers' hidden formatting tokens are not ours to see.
const COUNTED_PERCENT: u64 = 105;

/// What is charged for an attempt, known at the latest when it ends.
#[derive(Debug, Default)]
pub enum Charge {
    /// Surely nothing was processed.
    #[default]
    Nothing,
    /// What happened upstream cannot be known.
    Bound,
    /// The provider said.
    Reported(Usage),
    /// The provider said nothing, so what was sent and seen is counted.
    Seen {
        /// What came back.
        output: Output,
        /// Whether the reply came to its end.
        complete: bool,
        /// What the provider had reported until then: at least that was used.
        reported: Usage,
    },
}

/// What settling an attempt needs.
#[derive(Debug, Default)]
pub struct Attempt {
    /// The money set aside; `None` when no budget covers the call.
    pub reservation: Option<Reservation>,
    /// The target's price.
    pub price: Option<Arc<Price>>,
    /// The service tier: asked for, until the reply says which one served.
    pub tier: Option<Box<str>>,
    /// The moment whose prices hold: the one that the bound was worked out at.
    pub at: jiff::Timestamp,
    /// What is charged if the attempt ended now.
    pub charge: Charge,
    /// What was sent, for counting where the provider does not report.
    pub sent: Option<Sent>,
    /// Whether output may be produced that is never seen (reasoning, work in the background): then only a report tells the
    /// usage, and without one the bound is charged.
    pub hidden_output: bool,
}

/// A request as it was sent upstream.
#[derive(Debug, Clone)]
pub struct Sent {
    /// The body.
    pub body: bytes::Bytes,
    /// The provider's name of the model.
    pub model: Arc<str>,
}

/// A place in the recorder's queue, for a record that is to be opened.
#[derive(Debug)]
#[must_use = "a place that is dropped is free again"]
pub struct Place(mpsc::OwnedPermit<Message>);

/// A call's record while the call goes on.
#[derive(Debug)]
pub struct OpenRecord(Option<Box<Open>>);

#[derive(Debug)]
struct Open {
    slot: mpsc::OwnedPermit<Message>,
    finished: Box<Finished>,
    received: Instant,
}

/// A call that ended, on its way to the recorder.
#[derive(Debug)]
struct Finished {
    record: Record,
    /// The attempt that is not settled yet.
    attempt: Option<Attempt>,
    /// Earlier attempts that are yet to be counted, which is no work for a reactor thread.
    uncounted: Vec<Attempt>,
    admission: Option<Admission>,
}

/// Opens records.
#[derive(Debug, Clone)]
pub struct Recorder {
    slots: mpsc::Sender<Message>,
}

/// What the recorder's thread is told.
#[derive(Debug)]
enum Message {
    /// A call ended.
    Ended(Box<Finished>),
    /// No call begins any more: end with the last one that is open.
    Stop,
}

// === impl Sent ===

impl Sent {
    /// Prompt tokens as counted here; the bytes' number where the body is no JSON after all.
    fn input_tokens(&self) -> Tokens {
        match tokens::chat::count_body(&self.body, &self.model) {
            Some(counted) => counted.tokens,
            None => Tokens(self.body.len() as u64),
        }
    }
}

// === impl Recorder ===

impl Recorder {
    /// Starts the recorder's thread, which hands finished calls on to `calls`, the way into the call log, where there is one, and to
    /// `traces`. It ends, with everything closed, after [`Recorder::stop`].
    ///
    /// # Errors
    /// When the system gives no thread.
    pub fn start(calls: Option<Handover>, traces: Exporter) -> std::io::Result<(Recorder, JoinHandle<()>)> {
        let (slots, finished) = mpsc::channel(OPEN_RECORDS_MAX);
        let close = move || close_all(finished, calls.as_ref(), &traces);
        let thread = std::thread::Builder::new().name("recorder".to_owned()).spawn(close)?;
        Ok((Recorder { slots }, thread))
    }

    /// Opens a call's record; waits while too many calls are open. `None` when the recorder is gone: the process is ending.
    pub async fn open(&self, record: Record, received: Instant) -> Option<OpenRecord> {
        Some(self.place().await?.open(record, received))
    }

    /// A place for a record; waits while too many calls are open. `None` when the recorder is gone.
    pub async fn place(&self) -> Option<Place> {
        self.slots.clone().reserve_owned().await.ok().map(Place)
    }

    /// A place for a record, where one is free now.
    pub fn try_place(&self) -> Option<Place> {
        self.slots.clone().try_reserve_owned().ok().map(Place)
    }

    /// Lets the thread end once every open record has.
    pub fn stop(&self) {
        // Full or closed, it is being read or has ended; a process that goes down does not wait for it without a limit.
        let _ = self.slots.try_send(Message::Stop);
    }
}

// === impl Place ===

impl Place {
    /// Opens the record of a call whose head had arrived at `received`.
    #[must_use]
    pub fn open(self, record: Record, received: Instant) -> OpenRecord {
        let finished = Box::new(Finished { record, attempt: None, uncounted: Vec::new(), admission: None });
        OpenRecord(Some(Box::new(Open { slot: self.0, finished, received })))
    }
}

// === impl OpenRecord ===

impl OpenRecord {
    fn open(&mut self) -> &mut Open {
        self.0.as_mut().expect("taken only by `close` and `drop`, which own the record")
    }

    /// The facts so far.
    pub fn facts(&mut self) -> &mut Record {
        &mut self.open().finished.record
    }

    /// The attempt under way.
    pub fn attempt(&mut self) -> &mut Attempt {
        self.open().finished.attempt.get_or_insert_default()
    }

    /// Keeps what the rate limits gave, to be corrected at the end.
    pub fn admitted(&mut self, admission: Admission) {
        self.open().finished.admission = Some(admission);
    }

    /// How the tightest rate limits stood when they let the call in; `None` where there are none.
    #[must_use]
    pub fn standing(&self) -> Option<Standing> {
        let open = self.0.as_ref().expect("taken only by `close` and `drop`, which own the record");
        Some(open.finished.admission.as_ref()?.standing)
    }

    /// When the request's head had arrived.
    #[must_use]
    pub fn received(&self) -> Instant {
        self.0.as_ref().expect("taken only by `close` and `drop`, which own the record").received
    }

    /// Settles the attempt under way; another one follows.
    pub fn end_attempt(&mut self, charge: Charge) {
        let elapsed = self.received().elapsed();
        let finished = &mut self.open().finished;
        finished.record.end_attempt(elapsed, "error");
        let mut attempt = finished.attempt.take().unwrap_or_default();
        attempt.charge = charge;
        if attempt.needs_counting() {
            finished.uncounted.push(attempt);
        } else {
            attempt.settle(&mut finished.record);
        }
    }

    /// Gives the record up, and what the rate limits gave: the call goes on under another one and asks them again.
    pub fn discard(mut self) {
        if let Some(admission) = self.0.take().and_then(|open| open.finished.admission) {
            admission.give_back();
        }
    }

    /// Ends the call.
    pub fn close(mut self, outcome: Outcome) {
        self.facts().outcome = outcome;
        self.send();
    }

    fn send(&mut self) {
        let Some(open) = self.0.take() else { return };
        let Open { slot, mut finished, received } = *open;
        let elapsed = received.elapsed();
        let result = finished.record.outcome.attempt_result();
        finished.record.end_attempt(elapsed, result);
        finished.record.duration = elapsed;
        // Money and places are free again before the client can have seen the end, unless text has to be counted first.
        if !std::thread::panicking() && !finished.needs_counting() {
            finished.settle();
        }
        slot.send(Message::Ended(finished));
    }
}

/// A record that nobody closed, so that no status was sent: the client left, or the call panicked.
impl Drop for OpenRecord {
    fn drop(&mut self) {
        let Some(open) = self.0.as_mut() else { return };
        let (outcome, status) = if std::thread::panicking() {
            (Outcome::Internal, StatusCode::INTERNAL_SERVER_ERROR)
        } else {
            (Outcome::Abandoned, client_closed_request())
        };
        open.finished.record.outcome = outcome;
        open.finished.record.status = status;
        self.send();
    }
}

// === impl Finished ===

impl Finished {
    /// Whether settling counts text.
    fn needs_counting(&self) -> bool {
        !self.uncounted.is_empty() || self.attempt.as_ref().is_some_and(Attempt::needs_counting)
    }

    /// Charges what is not charged yet, and corrects the rate limits' estimate. Once done, does nothing.
    fn settle(&mut self) {
        for attempt in self.uncounted.drain(..).chain(self.attempt.take()) {
            attempt.settle(&mut self.record);
        }
        if let Some(mut admission) = self.admission.take() {
            admission.correct(self.record.usage.input.saturating_add(self.record.usage.output));
        }
    }
}

// === impl Attempt ===

impl Attempt {
    /// Whether [`Attempt::usage`] counts text, which is work for the recorder's thread.
    fn needs_counting(&self) -> bool {
        match self.charge {
            Charge::Nothing | Charge::Reported(_) => false,
            Charge::Bound => self.reservation.is_none(),
            Charge::Seen { .. } => !self.hidden_output || self.reservation.is_none(),
        }
    }

    /// Charges the attempt and adds it to its record. Counting may take a millisecond per 10 KB of text.
    fn settle(self, record: &mut Record) {
        let (usage, source) = self.usage();
        let bound = self.reservation.as_ref().map(Reservation::bound);
        let priced = self.price.as_ref().map(|price| price.cost(&usage, self.tier.as_deref(), self.at));
        let cost = match (source, bound) {
            // Not even the fee that some models have per request.
            (UsageSource::None, _) => NanoUsd::ZERO,
            (UsageSource::Bound, Some(bound)) => bound,
            (UsageSource::Counted | UsageSource::Estimated, Some(bound)) => priced.unwrap_or(bound).min(bound),
            _ => priced.unwrap_or_default(),
        };
        if let Some(reservation) = self.reservation {
            reservation.settle(cost);
        }
        record.cost = record.cost.saturating_add(cost);
        record.usage = usage;
        record.usage_source = source;
    }

    /// The usage to charge and where it comes from.
    fn usage(&self) -> (Usage, UsageSource) {
        match &self.charge {
            Charge::Nothing => (Usage::default(), UsageSource::None),
            Charge::Reported(usage) => (*usage, UsageSource::Provider),
            Charge::Bound if self.reservation.is_some() => (Usage::default(), UsageSource::Bound),
            Charge::Bound => (self.counted(Tokens::ZERO), UsageSource::Estimated),
            Charge::Seen { .. } if self.hidden_output && self.reservation.is_some() => {
                (Usage::default(), UsageSource::Bound)
            }
            Charge::Seen { output, complete, reported } => {
                let seen = with_margin(self.output_tokens(output)).max(reported.output);
                let usage = if reported.input > Tokens::ZERO { *reported } else { self.counted(seen) };
                let usage = Usage { output: seen, ..usage };
                if !complete {
                    return (usage, UsageSource::Estimated);
                }
                // A provider that never reports: the prompt is our own count too.
                (Usage { input: with_margin(usage.input), ..usage }, UsageSource::Counted)
            }
        }
    }

    fn counted(&self, output: Tokens) -> Usage {
        let input = self.sent.as_ref().map_or(Tokens::ZERO, Sent::input_tokens);
        Usage { input, output, ..Usage::default() }
    }

    fn output_tokens(&self, output: &Output) -> Tokens {
        let model = self.sent.as_ref().map_or("", |sent| &sent.model);
        let (encoding, _) = tokens::Encoding::for_model(model);
        tokens::count(encoding, &output.text).saturating_add(Tokens(output.extra_bytes as u64))
    }
}

/// nginx's 499, which logs and dashboards know: the client was gone before there was a status to send.
fn client_closed_request() -> StatusCode {
    StatusCode::from_u16(499).expect("a constant from 100 to 999")
}

fn with_margin(counted: Tokens) -> Tokens {
    Tokens(counted.0.saturating_mul(COUNTED_PERCENT).div_ceil(100))
}

// === the thread ===

fn close_all(mut messages: mpsc::Receiver<Message>, calls: Option<&Handover>, traces: &Exporter) {
    let mut batch = Vec::with_capacity(BATCH);
    let mut records = Vec::new();
    let mut log = CallLog::start();
    let mut metrics = CallMetrics::default();
    loop {
        let received = messages.blocking_recv_many(&mut batch, BATCH);
        if received == 0 {
            break;
        }
        log.set_time();
        for message in batch.drain(..) {
            let Message::Ended(mut finished) = message else {
                messages.close();
                continue;
            };
            finished.settle();
            metrics.call_ended(&finished.record);
            signals().call_ended(&finished.record);
            log.add(&finished.record);
            traces.add(&mut finished.record);
            if calls.is_some() {
                records.push(finished.record);
            }
        }
        if let Some(calls) = calls {
            calls.push(&mut records);
        }
        if received < BATCH {
            std::thread::sleep(GATHER);
        }
        log.flush_if_due(messages.is_empty());
    }
    log.finish();
}

/// A record that says nothing yet, for a call that has just begun.
#[must_use]
pub fn blank(id: Arc<str>, endpoint: &'static str) -> Record {
    let nobody: Arc<str> = Arc::default();
    Record {
        id,
        trace: None,
        endpoint,
        key: nobody.clone(),
        team: None,
        user: nobody,
        user_ids: UserIds::Plain,
        session: None,
        tags: Vec::new(),
        named: None,
        model_label: Arc::from("other"),
        version: None,
        variants: Vec::new(),
        units: Vec::new(),
        prompt: None,
        provider: Arc::from("none"),
        target: None,
        status: StatusCode::OK,
        outcome: Outcome::Ok,
        refusal: None,
        streamed: false,
        usage: Usage::default(),
        usage_source: UsageSource::None,
        cost: NanoUsd::ZERO,
        priced: true,
        prices: None,
        attempts: 0,
        attempt_list: Vec::new(),
        read: Duration::ZERO,
        waited: Duration::ZERO,
        bodies: None,
        duration: Duration::ZERO,
        first_token: None,
        overhead: None,
    }
}

/// The record of a call that was understood, and planned where `plan` is given; it is not open yet.
#[must_use]
pub fn of_call(call: &Call, plan: Option<&Plan>) -> Record {
    let mut record = of_caller(&call.head, &call.caller, &call.snapshot);
    record.user = call.identity.user.clone();
    record.session = call.identity.session.clone();
    record.tags = call.identity.tags.clone();
    record.read = call.read_for;
    let Some(plan) = plan else {
        record.named = named(call).map(Arc::from);
        return record;
    };
    record.named = Some(plan.named.clone()).filter(|named| !named.is_empty());
    record.model_label = plan.label.clone();
    record.version = plan.version.as_ref().map(|version| version.name.clone());
    record.variants = plan.variants.clone();
    record.units = plan.units.clone();
    record.prompt = plan.prompt.as_ref().map(|p| Arc::from([&*p.prompt.name, "@", &*p.version].concat()));
    record.priced = plan.targets.first().is_some_and(|target| target.price.is_some());
    record
}

/// The model that the client named, where it is no longer than a name is.
fn named(call: &Call) -> Option<&str> {
    const NAME_BYTES_MAX: usize = 512;
    let Payload::Json(document) = &call.payload else { return None };
    document.facts.model.as_deref().filter(|name| name.len() <= NAME_BYTES_MAX)
}

/// The record of a call of which only the caller is known.
#[must_use]
pub fn of_caller(head: &Head, caller: &Caller, snapshot: &Snapshot) -> Record {
    let mut record = blank(head.id.clone(), head.endpoint.label());
    if snapshot.telemetry.is_some() {
        record.trace = TraceParent::of(&head.headers);
    }
    record.key = caller.name.clone();
    record.team = caller.team.clone();
    record.user = caller.name.clone();
    record.user_ids = snapshot.calls.users;
    record.prices = Some(snapshot.prices.revision().clone());
    record
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::pricing::Catalog;

    fn settled(model: &str, group: &str, tier: Option<&str>, charge: Charge) -> NanoUsd {
        let price = Catalog::builtin().find("any", Some(group), model);
        assert!(price.is_some(), "{model}");
        let at = "2026-11-23T12:00:00Z".parse().unwrap();
        let attempt = Attempt { price, at, tier: tier.map(Into::into), charge, ..Attempt::default() };
        let mut record = blank(Arc::from("id"), "chat_completions");
        attempt.settle(&mut record);
        record.cost
    }

    fn reported(input: u64) -> Charge {
        Charge::Reported(Usage { input: Tokens(input), ..Usage::default() })
    }

    #[test]
    fn what_was_surely_not_processed_costs_no_request_fee_either() {
        assert_eq!(settled("sonar", "perplexity", None, Charge::Nothing), NanoUsd::ZERO);
        assert_eq!(settled("sonar", "perplexity", None, reported(0)), NanoUsd(12_000_000));
    }

    #[test]
    fn the_tier_that_served_decides_the_price() {
        assert_eq!(settled("gpt-4.1", "openai", Some("default"), reported(1_000_000)), NanoUsd(2_000_000_000));
        assert_eq!(settled("gpt-4.1", "openai", Some("priority"), reported(1_000_000)), NanoUsd(3_500_000_000));
    }

    #[test]
    fn only_what_no_report_and_no_bound_stands_for_is_counted() {
        let counted = |charge| Attempt { charge, ..Attempt::default() }.needs_counting();
        assert!(!counted(Charge::Nothing) && !counted(reported(1)));
        assert!(counted(Charge::Bound), "without a reservation there is no bound");
    }
}
