//! Opens the call's record before anything is spent; it ends with the reply's body, or with the error.
//!
//! Stage: [`Quoted`] in, [`Opened`] out. Accounting can't be lost: the record holds its place in the recorder's queue from here.

use std::sync::Arc;

use crate::{
    call::{Answer, Call, Opened, Payload, Quoted},
    error::GatewayError,
    layers::{Inner, Step},
    record::Captured,
    recorder::{self, Recorder},
    wire::traceparent::TraceParent,
};

/// See the module.
#[derive(Debug)]
pub struct OpenRecords {
    /// Where records go when they end.
    pub recorder: Recorder,
}

impl Step for OpenRecords {
    type In = Quoted;
    type Next = Opened;

    async fn handle<S: Inner<Opened>>(&'static self, quoted: Quoted, mut inner: S) -> Answer {
        let head = &quoted.planned.call.head;
        let caller = &quoted.planned.call.caller;
        let identity = &quoted.planned.call.identity;
        let plan = &quoted.planned.plan;
        let mut record = recorder::blank(head.id.clone(), head.endpoint.label());
        if quoted.planned.call.snapshot.telemetry.is_some() {
            record.trace = TraceParent::of(&head.headers);
        }
        record.key = caller.name.clone();
        record.team = caller.team.clone();
        record.user = identity.user.clone();
        record.user_ids = quoted.planned.call.snapshot.calls.users;
        record.session = identity.session.clone();
        record.tags = identity.tags.clone();
        record.named = Some(plan.named.clone()).filter(|named| !named.is_empty());
        record.model_label = plan.label.clone();
        record.version = plan.version.as_ref().map(|version| version.name.clone());
        record.variants = plan.variants.clone();
        record.units = plan.units.clone();
        record.prompt = plan.prompt.as_ref().map(|p| Arc::from([&*p.prompt.name, "@", &*p.version].concat()));
        record.priced = plan.targets.first().is_some_and(|target| target.price.is_some());
        record.prices = Some(quoted.planned.call.snapshot.prices.revision().clone());
        record.read = quoted.planned.call.read_for;
        record.bodies = captured(&quoted.planned.call);
        let record = self.recorder.open(record, head.received).await.ok_or(GatewayError::Draining)?;
        inner.call(Opened { quoted, record }).await
    }
}

/// The request's body, where bodies are kept of this call.
fn captured(call: &Call) -> Option<Box<Captured>> {
    let limit = call.snapshot.calls.captured_max(&call.head.id)?;
    let Payload::Json(document) = &call.payload else { return None };
    let mut captured = Box::new(Captured::new(limit));
    captured.request.push(&document.bytes);
    Some(captured)
}
