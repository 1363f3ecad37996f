//! Sends a call to its targets in order: a flat loop with retries, fallbacks and ejection, up to the first byte of a reply.
//!
//! Stage: [`Admitted`] in, [`Reply`] back; the innermost layer. Each attempt has a reservation of its own, since a first attempt that
//! timed out may be billed too. Once a reply's head is on its way to the client, nothing is tried again: a stream is never
//! spliced from two replies.

use std::{
    error::Error,
    sync::Arc,
    task::{Context, Poll},
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, Version, header, response};
use http_body::Body;
use hyper::body::Incoming;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;
use tower::Service;

use crate::{
    body::{BodyTimes, Drain, ReplyBody, Source, Watch, Watching},
    call::{Admitted, Answer, Call, Ceiling, Document, Failure, Payload, Plan, Quoted, Reply},
    config::snapshot::{Eject, OnDisconnect, StreamUsage, Target},
    error::GatewayError,
    layers::{Answering, limits::standing_headers},
    policy::routing::{self, Left, Next, Went},
    purses::{Purses, Refused},
    record::{Attempted, Outcome},
    recorder::{Charge, OpenRecord, Sent},
    units::{NanoUsd, Tokens},
    upstream::{
        Upstream,
        client::{self, SendError, SendErrorKind},
        request::{self as outgoing, Travel},
        tunnel::Tunnels,
    },
    wire::{
        coding::Decoder,
        edit,
        endpoint::{Cost, Dialect, Endpoint},
        headers,
        openai::usage_filter::UsageFilter,
        reply::ReplyWatch,
        stream::StreamWatch,
    },
};

/// Most bytes of a compressed reply that are decoded to meter it.
const DECODED_BYTES_MAX: u64 = 256 * 1024 * 1024;

/// How many of our own headers a reply gets, those of other layers included.
const OWN_HEADERS: usize = 14;
/// Room for most calls' variants.
const VARIANTS_BYTES: usize = 48;

// Our own reply headers.
const MODEL: HeaderName = HeaderName::from_static("x-tollgate-model");
const VERSION: HeaderName = HeaderName::from_static("x-tollgate-version");
const VARIANT: HeaderName = HeaderName::from_static("x-tollgate-variant");
const PROMPT: HeaderName = HeaderName::from_static("x-tollgate-prompt");
const CLAMPED: HeaderName = HeaderName::from_static("x-tollgate-clamped");
const ATTEMPTS: HeaderName = HeaderName::from_static("x-tollgate-attempts");
const OVERHEAD_US: HeaderName = HeaderName::from_static("x-tollgate-overhead-us");

/// How often a client wants its call tried again.
const RETRIES: HeaderName = HeaderName::from_static("x-tollgate-retries");

/// See the module.
#[derive(Debug)]
pub struct Route {
    /// The way to providers.
    pub upstream: Arc<Upstream>,
    /// Where further attempts reserve.
    pub purses: Arc<Purses>,
    /// Carries calls to their end when a client has left.
    pub drain: Drain,
    /// WebSockets.
    pub tunnels: Tunnels,
    /// What is added to `Via`.
    pub via: HeaderValue,
}

/// A call on its way: what changes from attempt to attempt.
struct Journey {
    quoted: Quoted,
    record: OpenRecord,
    /// The body of an endpoint that is not read: there for one attempt only.
    stream: Option<Incoming>,
    /// Cancelled when the client has left and the call goes on without.
    left: Option<CancellationToken>,
    clamped: Option<Tokens>,
    /// Index of the target that is tried.
    position: usize,
    tries_here: u32,
    attempts: u32,
    attempts_max: u32,
    deadline: Instant,
    /// Time that is not the gateway's own: the client's body, waiting for money, the upstream.
    others_time: Duration,
}

/// A reply's head and body, and whether the usage in it was asked for by us alone.
struct Replied {
    head: response::Parts,
    body: Source,
    filter: bool,
}

/// An attempt without a reply.
enum NoReply {
    /// The connection or the exchange failed.
    Failed(SendError),
    /// The provider did not answer in time.
    Late(Duration, Limit),
    /// No time was left to ask.
    OutOfTime,
    /// The request could not be built: the client's path or model doesn't fit into one.
    Unsendable,
}

/// Which limit an attempt ran into.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Limit {
    /// The provider's time to its first byte.
    Provider,
    /// What the call had left, or what its client allowed or took.
    Call,
}

impl Service<Admitted> for &'static Route {
    type Response = Reply;
    type Error = Failure;
    type Future = Answering;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Failure>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, admitted: Admitted) -> Answering {
        let call = &admitted.quoted.planned.call;
        if let Payload::Upgrade(_) = &call.payload {
            return Box::pin(self.open_tunnel(admitted));
        }
        let drains = call.snapshot.on_disconnect == OnDisconnect::Drain
            && call.head.endpoint.cost() == Cost::Metered
            && matches!(call.payload, Payload::Json(_));
        if drains { Box::pin(self.carry(admitted)) } else { Box::pin(self.run(admitted, None)) }
    }
}

impl Route {
    /// Runs a call that goes on when its client leaves before the reply's first byte.
    async fn carry(&'static self, admitted: Admitted) -> Answer {
        match self.drain.carry(|left| self.run(admitted, Some(left))).await {
            Some(answer) => answer,
            None => Err(GatewayError::Draining.into()),
        }
    }

    /// No `async fn`: its future would keep room for the arguments beside what is made of them.
    fn run(
        &'static self,
        mut admitted: Admitted,
        left: Option<CancellationToken>,
    ) -> impl Future<Output = Answer> + Send {
        admitted.record.attempt().reservation = admitted.reservation.take();
        let mut journey = Journey::begin(admitted, left);
        self.upstream.retries.on_call(Instant::now().into_std());
        async move {
            let first = self.in_rotation(&journey, 0);
            if first > 0 {
                // What was set aside is the ceiling of a cheaper target, perhaps.
                journey.record.end_attempt(Charge::Nothing);
                journey.move_to(first);
                if let Err(refused) = self.reserve_again(&mut journey).await {
                    let error = GatewayError::refused(refused, journey.bound());
                    return Err(journey.give_up(Charge::Nothing, error));
                }
            }
            loop {
                let (next, charge, error) = match self.attempt(&mut journey).await {
                    Ok(replied) => {
                        let went = Went::Replied(replied.head.status, retry_after(&replied.head.headers));
                        match self.next(&journey, went) {
                            Next::Stop => return Ok(self.deliver(journey, replied)),
                            next => (next, charge_of_status(replied.head.status), None),
                        }
                    }
                    Err(no_reply) => {
                        let error = journey.error(&no_reply);
                        match self.next(&journey, no_reply.went()) {
                            Next::Stop => return Err(journey.give_up(no_reply.charge(), error)),
                            next => (next, no_reply.charge(), Some(error)),
                        }
                    }
                };
                journey.record.end_attempt(charge);
                if let Next::Again(pause) = next {
                    sleep(pause).await;
                    journey.others_time += pause;
                } else {
                    journey.move_to(self.in_rotation(&journey, journey.position + 1));
                }
                if let Err(refused) = self.reserve_again(&mut journey).await {
                    let error = error.unwrap_or_else(|| GatewayError::refused(refused, journey.bound()));
                    return Err(journey.give_up(Charge::Nothing, error));
                }
            }
        }
    }

    /// What follows an attempt; a retry that the retry budget forbids is none.
    fn next(&self, journey: &Journey, went: Went) -> Next {
        if matches!(went, Went::Replied(status, _) if !routing::is_failure(status)) {
            return Next::Stop;
        }
        if journey.left.as_ref().is_some_and(CancellationToken::is_cancelled) {
            return Next::Stop;
        }
        let left = Left {
            attempts: journey.attempts_max.saturating_sub(journey.attempts),
            another_target: journey.position + 1 < journey.quoted.planned.plan.targets.len(),
            tries_here: journey.tries_here,
            time: journey.deadline.saturating_duration_since(Instant::now()),
        };
        let next = routing::next(went, left);
        let share = journey.quoted.planned.call.snapshot.routing.retry_budget;
        if next != Next::Stop && !self.upstream.retries.try_retry(share, Instant::now().into_std()) {
            return Next::Stop;
        }
        next
    }

    /// The first target from `from` on that is in rotation; `from` itself where none is.
    fn in_rotation(&self, journey: &Journey, from: usize) -> usize {
        let targets = &journey.quoted.planned.plan.targets[from..];
        if journey.call().snapshot.routing.eject.is_none() || targets.len() < 2 {
            return from;
        }
        let now = Instant::now().into_std();
        let may_try =
            |target: &Target| self.upstream.healths.of(&target.provider.name, now).may_try(now, targets.len());
        from + targets.iter().position(may_try).unwrap_or(0)
    }

    /// Money for the next attempt: the last one's is settled.
    async fn reserve_again(&self, journey: &mut Journey) -> Result<(), Refused> {
        let Some(ceiling) = journey.quoted.ceilings.get(journey.position) else { return Ok(()) };
        let began = Instant::now();
        let reservation = self.purses.reserve(&journey.quoted.claims, ceiling.cost).await?;
        journey.others_time += began.elapsed();
        // The cap was for the money of another target.
        journey.clamped = None;
        journey.record.attempt().reservation = Some(reservation);
        Ok(())
    }

    async fn attempt(&self, journey: &mut Journey) -> Result<Replied, NoReply> {
        let target = journey.target().clone();
        let (limit, whose) = journey.first_byte_limit();
        if limit.is_zero() {
            return Err(NoReply::OutOfTime);
        }
        let outgoing = journey.outgoing(&target);
        let call = &journey.quoted.planned.call;
        let eject = call.snapshot.routing.eject;
        let mut request = outgoing::build(call, &target.provider, outgoing.body, outgoing.travel, &self.via)
            .map_err(|_| NoReply::Unsendable)?;
        outgoing::trace(&mut request, call, journey.attempts + 1);
        journey.begin_attempt(&target, outgoing.sent);

        let began = Instant::now();
        let result = timeout(limit, self.upstream.exchange(&target.provider, request)).await;
        journey.others_time += began.elapsed();
        let result = match result {
            Ok(Ok((head, _))) if head.status.is_informational() => Err(NoReply::Failed(SendError::switched())),
            Ok(Ok((head, body))) => Ok(Replied { head, body, filter: outgoing.filter }),
            Ok(Err(error)) => Err(NoReply::Failed(error)),
            Err(_) => Err(NoReply::Late(limit, whose)),
        };
        self.note_health(&target, eject, &result);
        journey.note_attempt(&result);
        result
    }

    fn note_health(&self, target: &Target, eject: Option<Eject>, result: &Result<Replied, NoReply>) {
        let Some(eject) = eject else { return };
        let failed = match result {
            Ok(replied) => routing::counts_against_health(replied.head.status),
            // Nothing of this is the provider's doing: a client must neither take it out of rotation for others nor bring it back.
            Err(NoReply::Failed(error)) if error.kind == SendErrorKind::RequestBody => return,
            Err(NoReply::Late(_, Limit::Call) | NoReply::OutOfTime | NoReply::Unsendable) => return,
            Err(NoReply::Failed(_) | NoReply::Late(_, Limit::Provider)) => true,
        };
        let provider = &target.provider.name;
        let now = Instant::now().into_std();
        let health = self.upstream.healths.of(provider, now);
        if !failed {
            health.on_success();
        } else if health.on_failure(eject, now) {
            tracing::warn!(provider = %provider, "provider {provider} is out of rotation: it failed {} times in a row", eject.after);
        }
    }

    /// Hands the reply on; its body ends the record.
    fn deliver(&self, mut journey: Journey, replied: Replied) -> Reply {
        let Replied { head, body, filter } = replied;
        let status = head.status;
        let call = &journey.quoted.planned.call;
        let streamed = headers::is_event_stream(&head.headers);
        let metered = status.is_success() && call.head.endpoint.cost() == Cost::Metered;
        let coding = coding(&head.headers);
        let decoder = coding.and_then(|coding| Decoder::for_encoding(coding, DECODED_BYTES_MAX));
        // What can't be decoded is not metered, and so charged at its bound.
        let coded = coding.is_some();
        let readable = metered && coded == decoder.is_some();
        let watching = Watching {
            filter: (filter && streamed && status.is_success() && coding.is_none()).then(UsageFilter::new),
            decoder: decoder.filter(|_| readable),
            watch: watch(&call.head.endpoint, readable, streamed),
            dialect: call.head.endpoint.dialect(),
            outcome: if is_error(status) { Outcome::UpstreamError } else { Outcome::Ok },
            ends_by_close: ends_by_close(&head),
            times: BodyTimes { idle: call.snapshot.routing.idle_timeout, deadline: journey.deadline },
            drain: (call.snapshot.on_disconnect == OnDisconnect::Drain && metered).then(|| self.drain.clone()),
        };
        let mut headers = head.headers;
        headers::strip_response(&mut headers);
        if watching.filter.is_some() {
            headers.remove(header::CONTENT_LENGTH);
        }
        journey.describe(&mut headers);
        if let Some(standing) = journey.record.standing() {
            standing_headers(&standing, &mut headers);
        }
        let overhead = journey.overhead();
        let facts = journey.record.facts();
        facts.status = status;
        facts.streamed = streamed;
        facts.attempts = journey.attempts;
        facts.overhead = Some(overhead);
        if let Some(bodies) = facts.bodies.as_mut().filter(|_| coded && !readable) {
            // Nobody could redact what nobody can read: its length is all that is kept.
            bodies.reply.limit = 0;
        }
        journey.record.attempt().charge = if metered { Charge::Bound } else { charge_of_status(status) };
        Reply { status, headers, body: ReplyBody::watched(body, watching, journey.record) }
    }

    /// A WebSocket: one attempt, and nothing of the client's passes before the upstream has agreed.
    async fn open_tunnel(&self, admitted: Admitted) -> Answer {
        let Admitted { quoted, mut record, reservation, .. } = admitted;
        record.attempt().reservation = reservation;
        let target = quoted.planned.plan.targets[0].clone();
        let mut call = quoted.planned.call;
        let travel = Travel { plain_reply: false, keep_coding: true, upgrade: true };
        let built = outgoing::build(&call, &target.provider, client::empty(), travel, &self.via);
        let Payload::Upgrade(client_side) = std::mem::replace(&mut call.payload, Payload::Nothing) else {
            return Err(Failure::recorded(GatewayError::Internal, record));
        };
        let request = match built {
            Ok(request) => request,
            Err(_) => return Err(Failure::recorded(unsendable(), record)),
        };
        begin_attempt(&mut record, &target, 1);
        let limit = call.snapshot.routing.first_byte_timeout;
        match timeout(limit, self.upstream.client.send(&target.provider, request)).await {
            Ok(Ok(reply)) if reply.status() == StatusCode::SWITCHING_PROTOCOLS => {
                note_head(&mut record, reply.status());
                let standing = record.standing();
                let mut reply = self.tunnels.open(client_side, reply, record);
                if let Some(standing) = standing {
                    standing_headers(&standing, &mut reply.headers);
                }
                Ok(reply)
            }
            Ok(Ok(reply)) => {
                let (head, body) = reply.into_parts();
                let deadline = Instant::now() + call.snapshot.routing.total_timeout;
                record.facts().status = head.status;
                note_head(&mut record, head.status);
                let watching = Watching {
                    watch: Watch::Nothing,
                    filter: None,
                    decoder: None,
                    dialect: Dialect::OpenAi,
                    outcome: if is_error(head.status) { Outcome::UpstreamError } else { Outcome::Ok },
                    ends_by_close: ends_by_close(&head),
                    times: BodyTimes { idle: call.snapshot.routing.idle_timeout, deadline },
                    drain: None,
                };
                let mut headers = head.headers;
                headers::strip_response(&mut headers);
                if let Some(standing) = record.standing() {
                    standing_headers(&standing, &mut headers);
                }
                let body = ReplyBody::watched(Source::Http(body), watching, record);
                Ok(Reply { status: head.status, headers, body })
            }
            Ok(Err(error)) => {
                let unreachable = unreachable(&target, &error);
                note_no_reply(&mut record, &NoReply::Failed(error));
                Err(Failure::recorded(unreachable, record))
            }
            Err(_) => {
                note_no_reply(&mut record, &NoReply::Late(limit, Limit::Provider));
                let late = GatewayError::UpstreamTimeout { target: target.provider.name.to_string(), waited: limit };
                Err(Failure::recorded(late, record))
            }
        }
    }
}

/// What leaves in one attempt.
struct Outgoing {
    body: client::UpstreamBody,
    travel: Travel,
    filter: bool,
    sent: Option<Sent>,
}

// === impl Journey ===

impl Journey {
    fn begin(admitted: Admitted, left: Option<CancellationToken>) -> Journey {
        let Admitted { mut quoted, mut record, clamped, waited, .. } = admitted;
        record.facts().waited = waited;
        let call = &mut quoted.planned.call;
        let stream = match std::mem::replace(&mut call.payload, Payload::Nothing) {
            Payload::Stream(body) => Some(body),
            payload => {
                call.payload = payload;
                None
            }
        };
        let routing = &call.snapshot.routing;
        let own_limit = outgoing::client_timeout(&call.head.headers).unwrap_or(Duration::MAX);
        let retries = call.head.headers.get(RETRIES).and_then(|v| v.to_str().ok()?.trim().parse::<u32>().ok());
        let asked = retries.map_or(u32::MAX, |retries| retries.saturating_add(1));
        let others_time = call.read_for + waited;
        Journey {
            position: 0,
            tries_here: 0,
            attempts: 0,
            // A body that is not in memory can't be sent twice.
            attempts_max: if stream.is_some() { 1 } else { routing.attempts.min(asked).max(1) },
            deadline: call.head.received + routing.total_timeout.min(own_limit),
            stream,
            left,
            clamped,
            others_time,
            record,
            quoted,
        }
    }

    fn call(&self) -> &Call {
        &self.quoted.planned.call
    }

    fn target(&self) -> &Target {
        &self.quoted.planned.plan.targets[self.position]
    }

    fn ceiling(&self) -> Option<&Ceiling> {
        self.quoted.ceilings.get(self.position)
    }

    fn bound(&self) -> NanoUsd {
        self.ceiling().map(|ceiling| ceiling.cost).unwrap_or_default()
    }

    fn move_to(&mut self, position: usize) {
        self.position = position;
        self.tries_here = 0;
    }

    /// How long the attempt may take until its reply's head. An upload takes the time that the client takes.
    fn first_byte_limit(&self) -> (Duration, Limit) {
        let left = self.deadline.saturating_duration_since(Instant::now());
        let limit = self.call().snapshot.routing.first_byte_timeout;
        let uploads = self.stream.as_ref().is_some_and(|body| !body.is_end_stream());
        if uploads || left < limit { (left, Limit::Call) } else { (limit, Limit::Provider) }
    }

    /// The cap to set at this target: what the money allows, or where nobody else has set one.
    fn cap(&self) -> Option<Tokens> {
        self.clamped.or_else(|| self.ceiling()?.cap_to_set)
    }

    /// Body and manner of this attempt: the client's bytes, but for what rules change.
    fn outgoing(&mut self, target: &Target) -> Outgoing {
        if let Some(body) = self.stream.take() {
            let travel = Travel { plain_reply: false, keep_coding: true, upgrade: false };
            return Outgoing { body: client::boxed(body), travel, filter: false, sent: None };
        }
        let call = self.call();
        let Payload::Json(document) = &call.payload else {
            let travel = Travel { plain_reply: false, keep_coding: true, upgrade: false };
            return Outgoing { body: client::empty(), travel, filter: false, sent: None };
        };
        let filter = self.asks_for_usage(&call.head.endpoint);
        let (plain, unchanged) = self.edited(document, target, filter);
        let coded = document.coded.clone().filter(|_| unchanged);
        let keep_coding = coded.is_some();
        Outgoing {
            body: client::full(coded.unwrap_or_else(|| plain.clone())),
            travel: Travel { plain_reply: filter, keep_coding, upgrade: false },
            filter,
            sent: Some(Sent { body: plain, model: target.model.clone() }),
        }
    }

    /// The body for this attempt, and whether it is still the client's.
    fn edited(&self, document: &Document, target: &Target, asks_for_usage: bool) -> (Bytes, bool) {
        let Quoted { planned, body, .. } = &self.quoted;
        let cap = self.cap();
        if let Some(body) = body.as_ref().filter(|_| self.position == 0 && cap.is_none() && !asks_for_usage) {
            return (body.clone(), planned.edits.is_empty());
        }
        let mut edits = planned.edits.clone();
        // The first one's is in them.
        if self.position > 0 {
            edit::set_model(&mut edits, &document.scan, &target.model);
        }
        if let Some(cap) = cap {
            let field = cap_field(&planned.call.head.endpoint, target);
            edit::set_output_cap(&mut edits, &document.scan, &document.facts, cap.0, field);
        }
        if asks_for_usage {
            edit::ask_for_usage(&mut edits, &document.bytes, &document.scan);
        }
        (edits.apply(&document.bytes), edits.is_empty())
    }

    /// Whether usage is asked for on the client's behalf: OpenAI's streams report it only on request.
    fn asks_for_usage(&self, endpoint: &Endpoint) -> bool {
        let Payload::Json(document) = &self.call().payload else { return false };
        document.facts.stream
            && document.facts.include_usage != Some(true)
            && matches!(endpoint, Endpoint::ChatCompletions | Endpoint::Completions)
            && self.call().snapshot.stream_usage == StreamUsage::Ask
    }

    /// From here until its reply is watched, an attempt that ends in any way is charged at its bound.
    fn begin_attempt(&mut self, target: &Target, sent: Option<Sent>) {
        self.attempts += 1;
        self.tries_here += 1;
        let metered = self.call().head.endpoint.cost() == Cost::Metered;
        let (hidden_output, tier) = match &self.call().payload {
            Payload::Json(document) => (
                document.facts.reasoning || document.facts.background || reasons_unseen(&target.model),
                document.facts.service_tier.as_deref().map(Into::into),
            ),
            _ => (false, None),
        };
        let at = self.quoted.at;
        begin_attempt(&mut self.record, target, self.attempts);
        let attempt = self.record.attempt();
        attempt.price = target.price.clone();
        attempt.tier = tier;
        attempt.at = at;
        attempt.sent = sent;
        attempt.hidden_output = hidden_output;
        attempt.charge = if metered { Charge::Bound } else { Charge::Nothing };
    }

    /// How an attempt went, for the record. A reply goes on, or is given up for another attempt.
    fn note_attempt(&mut self, result: &Result<Replied, NoReply>) {
        match result {
            Ok(replied) => note_head(&mut self.record, replied.head.status),
            Err(no_reply) => note_no_reply(&mut self.record, no_reply),
        }
    }

    fn error(&self, no_reply: &NoReply) -> GatewayError {
        match no_reply {
            NoReply::Failed(error) => unreachable(self.target(), error),
            NoReply::Late(waited, _) => GatewayError::UpstreamTimeout { target: named(self.target()), waited: *waited },
            NoReply::OutOfTime => {
                let waited = self.deadline.saturating_duration_since(self.record.received());
                GatewayError::UpstreamTimeout { target: named(self.target()), waited }
            }
            NoReply::Unsendable => unsendable(),
        }
    }

    fn give_up(mut self, charge: Charge, error: GatewayError) -> Failure {
        self.record.attempt().charge = charge;
        let mut headers = HeaderMap::new();
        self.describe(&mut headers);
        let mut failure = Failure::recorded(error, self.record);
        failure.headers = headers;
        failure
    }

    /// Our own reply headers.
    fn describe(&mut self, headers: &mut HeaderMap) {
        headers.reserve(OWN_HEADERS);
        let overhead = self.overhead().as_micros();
        headers.insert(ATTEMPTS, headers::number(u64::from(self.attempts)));
        headers.insert(OVERHEAD_US, headers::number(u64::try_from(overhead).unwrap_or(u64::MAX)));
        if let Some(cap) = self.cap() {
            headers.insert(CLAMPED, headers::number(cap.0));
        }
        let mut set = |name: HeaderName, value: &str| {
            if let Ok(value) = HeaderValue::from_str(value) {
                headers.insert(name, value);
            }
        };
        let facts = self.record.facts();
        let plan = &self.quoted.planned.plan;
        match &facts.target {
            Some(target) => set(MODEL, target),
            None => set(MODEL, &named(&plan.targets[self.position])),
        }
        if let Some(version) = &plan.version {
            set(VERSION, &version.name);
        }
        if !plan.variants.is_empty() {
            set(VARIANT, &variants(plan));
        }
        if let Some(prompt) = &facts.prompt {
            set(PROMPT, prompt);
        }
    }

    /// What the gateway itself has taken so far.
    fn overhead(&self) -> Duration {
        self.record.received().elapsed().saturating_sub(self.others_time)
    }
}

// === impl NoReply ===

impl NoReply {
    fn went(&self) -> Went {
        match self {
            NoReply::Failed(error) if error.kind == SendErrorKind::RequestBody => Went::ClientGone,
            NoReply::OutOfTime | NoReply::Unsendable => Went::ClientGone,
            // A pooled connection that the server closed just then: tried once more, as every HTTP client does (RFC 9112 §9.3.1).
            NoReply::Failed(error) if error.surely_not_processed() || error.is_stale() => Went::NotProcessed,
            NoReply::Failed(_) | NoReply::Late(..) => Went::Unknown,
        }
    }

    fn charge(&self) -> Charge {
        match self {
            NoReply::Failed(error) if error.surely_not_processed() => Charge::Nothing,
            NoReply::OutOfTime | NoReply::Unsendable => Charge::Nothing,
            NoReply::Failed(_) | NoReply::Late(..) => Charge::Bound,
        }
    }

    /// The attempt's result, as in metrics.
    fn result(&self) -> &'static str {
        match self {
            NoReply::Failed(_) => "unreachable",
            NoReply::Late(..) => "timeout",
            // Never attempts.
            NoReply::OutOfTime | NoReply::Unsendable => "error",
        }
    }
}

/// `experiment=variant` of each experiment on the model.
fn variants(plan: &Plan) -> String {
    let mut text = String::with_capacity(VARIANTS_BYTES);
    for (experiment, variant) in &plan.variants {
        if !text.is_empty() {
            text.push(',');
        }
        text.push_str(experiment);
        text.push('=');
        text.push_str(variant);
    }
    text
}

/// Notes in the record that its attempt number `count` begins.
fn begin_attempt(record: &mut OpenRecord, target: &Target, count: u32) {
    let began = record.received().elapsed();
    let (provider, name) = (target.provider.name.clone(), Arc::<str>::from(named(target)));
    let facts = record.facts();
    facts.attempts = count;
    facts.provider = provider.clone();
    facts.target = Some(name.clone());
    let attempt = Attempted { provider, target: name, began, head: None, ended: None, status: None, result: None };
    facts.attempt_list.push(attempt);
}

/// Notes in the record that the head of its attempt's reply has come.
fn note_head(record: &mut OpenRecord, status: StatusCode) {
    let elapsed = record.received().elapsed();
    if let Some(attempt) = record.facts().attempt_list.last_mut() {
        attempt.head = Some(elapsed);
        attempt.status = Some(status);
    }
}

/// Notes in the record that its attempt ended without a reply.
fn note_no_reply(record: &mut OpenRecord, no_reply: &NoReply) {
    let elapsed = record.received().elapsed();
    record.facts().end_attempt(elapsed, no_reply.result());
}

/// What a reply that carries no usage is charged: nothing where the provider turned the call away, else its bound.
fn charge_of_status(status: StatusCode) -> Charge {
    if status.is_server_error() && !routing::was_not_processed(status) { Charge::Bound } else { Charge::Nothing }
}

/// Whether a reply over HTTP/1 says neither its length nor that it comes in chunks.
fn ends_by_close(head: &response::Parts) -> bool {
    head.version < Version::HTTP_2
        && !head.headers.contains_key(header::CONTENT_LENGTH)
        && !head.headers.contains_key(header::TRANSFER_ENCODING)
}

fn is_error(status: StatusCode) -> bool {
    status.is_client_error() || status.is_server_error()
}

fn watch(endpoint: &Endpoint, readable: bool, streamed: bool) -> Watch {
    match (readable, streamed) {
        (false, _) => Watch::Nothing,
        (true, true) => Watch::Events(Box::new(StreamWatch::new(endpoint))),
        (true, false) => Watch::Document(Box::new(ReplyWatch::new(endpoint))),
    }
}

/// The reply's content coding, where it has one.
fn coding(headers: &HeaderMap) -> Option<&str> {
    let coding = headers.get(header::CONTENT_ENCODING)?.to_str().unwrap_or("?").trim();
    (!coding.is_empty() && !coding.eq_ignore_ascii_case("identity")).then_some(coding)
}

fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    routing::retry_after(headers.get(header::RETRY_AFTER)?.to_str().ok()?, SystemTime::now())
}

/// The field in which an endpoint takes an output cap; of chat completions servers know one name or the other.
fn cap_field(endpoint: &Endpoint, target: &Target) -> &'static str {
    match endpoint {
        Endpoint::ChatCompletions => target.provider.cap_field,
        Endpoint::Responses => "max_output_tokens",
        _ => "max_tokens",
    }
}

/// Families whose reasoning is charged as output but not sent, or not whole.
fn reasons_unseen(model: &str) -> bool {
    const FAMILIES: [&str; 11] =
        ["o1", "o3", "o4", "o5", "codex", "gpt-5", "gpt-6", "gemini-2.5", "gemini-3", "grok-3-mini", "grok-4"];
    // Routers put a vendor before the name, fine-tuning a mark.
    let name = model.rsplit_once('/').map_or(model, |(_, name)| name);
    let name = name.strip_prefix("ft:").unwrap_or(name);
    FAMILIES.iter().any(|family| name.starts_with(family))
}

fn named(target: &Target) -> String {
    if target.model.is_empty() {
        target.provider.name.to_string()
    } else {
        [&*target.provider.name, "/", &*target.model].concat()
    }
}

fn unreachable(target: &Target, error: &SendError) -> GatewayError {
    let reason = match error.kind {
        SendErrorKind::Connect => "no connection",
        SendErrorKind::Tls => "no TLS: its certificate does not verify, or the handshake failed",
        SendErrorKind::Unsent | SendErrorKind::StaleConnection => "the connection closed",
        SendErrorKind::RefusedStream => "it refused the stream",
        SendErrorKind::Reset => "the connection broke before a reply",
        SendErrorKind::Protocol => "its reply is no proper HTTP",
        SendErrorKind::RequestBody => return GatewayError::RequestTimeout("the client stopped sending it"),
    };
    // Addresses and certificates are for the operator's log, not for the client.
    let mut cause: &dyn Error = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    tracing::warn!(target.name = %named(target), error = %error, %cause, "an upstream attempt failed: {reason}");
    GatewayError::UpstreamUnreachable { target: named(target), reason }
}

fn unsendable() -> GatewayError {
    GatewayError::invalid("the path cannot be sent to the provider", None)
}
