//! Counts calls in flight and sheds what is too much, early and cheaply: before a key is looked up or a body is read.

use std::sync::Arc;

use crate::{
    body::InFlightCount,
    call::{Answer, Arrival},
    config::Live,
    error::GatewayError,
    layers::{Inner, Step},
};

/// See the module.
#[derive(Debug)]
pub struct LimitInFlight {
    /// The configuration that serves: it holds the limit.
    pub live: Arc<Live>,
    /// The count, shared with `/metrics` and the drain.
    pub count: InFlightCount,
}

impl Step for LimitInFlight {
    type In = Arrival;
    type Next = Arrival;

    async fn handle<S: Inner<Arrival>>(&'static self, arrival: Arrival, mut inner: S) -> Answer {
        let max = self.live.look(|snapshot| snapshot.server.in_flight_max);
        let guard = self.count.enter(max).ok_or(GatewayError::Overloaded)?;
        let mut reply = inner.call(arrival).await?;
        reply.body = reply.body.in_flight(guard);
        Ok(reply)
    }
}
