//! What monitoring asks: probes, which are open to everybody, and metrics.

use axum::{
    Router,
    body::Body,
    extract::State,
    response::{IntoResponse, Response},
    routing::get,
};
use http::header;

use super::Admin;
use crate::{gateway::routes::probe, telemetry::metrics};

/// `/healthz` and `/readyz`.
pub(super) fn probes() -> Router<Admin> {
    Router::new().route("/healthz", get(healthz)).route("/readyz", get(readyz))
}

/// `/metrics`.
pub(super) fn metrics() -> Router<Admin> {
    Router::new().route("/metrics", get(render))
}

async fn healthz() -> Response {
    probe(true).map(Body::new)
}

async fn readyz(State(admin): State<Admin>) -> Response {
    probe(!admin.shared.shutdown.draining.is_cancelled()).map(Body::new)
}

async fn render(State(admin): State<Admin>) -> impl IntoResponse {
    admin.shared.refresh_gauges();
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], metrics::render())
}
