//! Opens the call's record before anything is spent; it ends with the reply's body, or with the error.
//!
//! Stage: [`Quoted`] in, [`Opened`] out. Accounting can't be lost: the record holds its place in the recorder's queue from here.

use crate::{
    call::{Answer, Call, Opened, Payload, Planned, Quoted},
    error::GatewayError,
    layers::{Answering, Inner, Step},
    record::Captured,
    recorder::{self, Place, Recorder},
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
        let place = self.recorder.place().await.ok_or(GatewayError::Draining)?;
        inner.call(opened(quoted, place)).await
    }

    fn begin<S: Inner<Opened>>(&'static self, quoted: Quoted, mut inner: S) -> Answering {
        match self.recorder.try_place() {
            Some(place) => inner.call(opened(quoted, place)),
            None => Box::pin(self.handle(quoted, inner)),
        }
    }
}

fn opened(quoted: Quoted, place: Place) -> Opened {
    let Planned { call, plan, .. } = &quoted.planned;
    let mut record = recorder::of_call(call, Some(plan));
    record.bodies = captured(call);
    let record = place.open(record, call.head.received);
    Opened { quoted, record }
}

/// The request's body, where bodies are kept of this call.
fn captured(call: &Call) -> Option<Box<Captured>> {
    let limit = call.snapshot.calls.captured_max(&call.head.id)?;
    let Payload::Json(document) = &call.payload else { return None };
    let mut captured = Box::new(Captured::new(limit));
    captured.request.push(&document.bytes);
    Some(captured)
}
