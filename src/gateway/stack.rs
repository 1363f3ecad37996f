//! The layers in order, with the reason why each stands where it does. The compiler refuses any other order that matters.

use std::sync::Arc;

use http::HeaderValue;
use tokio::{sync::Semaphore, time::Instant};
use tower::ServiceBuilder;

use crate::{
    body::{Drain, InFlightCount},
    call::Arrival,
    config::Live,
    layers::{
        Inner, auth::Authenticate, budget::ReserveBudget, feedback::TakeFeedback, in_flight::LimitInFlight, layer,
        limits::ApplyLimits, local::AnswerLocally, prompt::InjectPrompt, quote::Quote, read::ReadBody,
        record::OpenRecords, respond::Respond, route::Route, turn, variant::ChooseVariant,
    },
    policy::limits::Limiter,
    purses::Purses,
    recorder::Recorder,
    store::records::writer::Desk,
    upstream::{Upstream, tunnel::Tunnels},
};

/// Prompts that are counted at the same time because a budget is nearly spent.
const COUNTING_MAX: usize = 2;

/// What the layers share.
#[derive(Debug)]
pub struct Parts {
    /// The configuration that serves.
    pub live: Arc<Live>,
    /// Rate limits' counts.
    pub limiter: Arc<Limiter>,
    /// The purses of this process.
    pub purses: Arc<Purses>,
    /// The way to providers.
    pub upstream: Arc<Upstream>,
    /// Calls in flight.
    pub in_flight: InFlightCount,
    /// Where records go.
    pub recorder: Recorder,
    /// Carries calls to their end when clients have left.
    pub drain: Drain,
    /// WebSockets.
    pub tunnels: Tunnels,
    /// Where feedback is taken; `None` where no calls are kept.
    pub feedback: Option<Desk>,
    /// Our name in `Via`.
    pub via: Arc<str>,
    /// The start of this process' clock.
    pub epoch: Instant,
}

/// The whole way of a call. Built once per process; a reload swaps the configuration, never the stack.
pub fn build(parts: Parts) -> Respond<impl Inner<Arrival>> {
    let Parts { live, limiter, purses, upstream, in_flight, recorder, drain, tunnels, feedback, via, epoch } = parts;
    let via_value = HeaderValue::from_str(&via).expect("a name of letters and digits, made by this process");
    let route = Route { upstream, purses: purses.clone(), drain, tunnels, via: via_value };
    let stack = ServiceBuilder::new()
        // First, so that too much load costs nothing: no key is looked up, no body read.
        .layer(layer(LimitInFlight { live: live.clone(), count: in_flight }))
        // Before the body: a client that waits for `100 Continue` is refused before it sends. Pins the snapshot.
        .layer(turn(Authenticate { live }))
        // After auth, since the answer depends on the key; needs no body.
        .layer(turn(AnswerLocally))
        // After auth, since its word counts for the calls of its team; before what is meant for a provider.
        .layer(turn(TakeFeedback { desk: feedback }))
        // The one place where bodies are read and scanned.
        .layer(layer(ReadBody))
        // Needs the model's name and the user from the body; decides what the prompt and the price will be.
        .layer(layer(ChooseVariant))
        // After the variant, which may choose the prompt; before the quote, which must see its length.
        .layer(turn(InjectPrompt))
        // Needs everything that will be sent.
        .layer(turn(Quote))
        // From here on something may be counted or spent, so the call has a record that ends exactly once.
        .layer(layer(OpenRecords { recorder: recorder.clone() }))
        // Before money is set aside: a burst must not hold reservations.
        .layer(turn(ApplyLimits { limiter, epoch }))
        // The last gate: only this makes an `Admitted`, and only an `Admitted` can be sent.
        .layer(layer(ReserveBudget { purses, counting: Semaphore::new(COUNTING_MAX) }))
        .service(&*Box::leak(Box::new(route)));
    // Outermost: the only place where an error becomes bytes, whichever layer it comes from.
    Respond::new(stack, recorder, via)
}
