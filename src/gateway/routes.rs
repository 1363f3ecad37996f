//! The client listener's paths: probes are answered here, everything else is a call.

use std::sync::Arc;

use http::{Request, Response, StatusCode};
use hyper::body::Incoming;

use crate::{
    body::ReplyBody,
    call::Arrival,
    error::GatewayError,
    gateway::{Shared, serve::Handler},
    layers::{Inner, respond::Respond},
};

/// See the module.
#[derive(Debug)]
pub struct ClientRoutes<S> {
    calls: Arc<Respond<S>>,
    shared: Shared,
}

impl<S: Inner<Arrival>> ClientRoutes<S> {
    /// Puts the probes before the calls.
    #[must_use]
    pub fn new(calls: Respond<S>, shared: Shared) -> ClientRoutes<S> {
        ClientRoutes { calls: Arc::new(calls), shared }
    }

    fn ready(&self) -> bool {
        !self.shared.shutdown.draining.is_cancelled()
    }
}

impl<S> Clone for ClientRoutes<S> {
    fn clone(&self) -> Self {
        ClientRoutes { calls: self.calls.clone(), shared: self.shared.clone() }
    }
}

impl<S: Inner<Arrival>> Handler for ClientRoutes<S> {
    type Body = ReplyBody;

    async fn handle(&self, request: Request<Incoming>, late: bool) -> Response<ReplyBody> {
        match request.uri().path() {
            "/healthz" => probe(true),
            "/readyz" => probe(self.ready()),
            // It came when others were told to go elsewhere.
            _ if late => self.calls.refuse_request(&request, GatewayError::Draining).await,
            _ => self.calls.respond(request).await,
        }
    }
}

/// The answer of a probe: `ok`, or `draining` with 503.
#[must_use]
pub fn probe(well: bool) -> Response<ReplyBody> {
    let (status, text) = if well { (StatusCode::OK, "ok\n") } else { (StatusCode::SERVICE_UNAVAILABLE, "draining\n") };
    let mut response = Response::new(ReplyBody::own(text));
    *response.status_mut() = status;
    response
}
