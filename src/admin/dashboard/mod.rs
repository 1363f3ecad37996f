//! The dashboard: pages at `/` of the admin listener, made here and embedded in the binary.
//!
//! One file a page. Each gathers its facts into plain data, which a template of the same name shows; [`figures`] says how a number
//! looks and [`language`] in which words. Pages read: what changes something goes to the API,
//! but for plain forms that decide what is live ([`registered`]). They ask the call log only for sums
//! and pages of rows, so they are as quick with a million calls as with none.

mod assets;
mod audit;
mod budgets;
mod calls;
mod configuration;
mod costs;
mod diff;
mod door;
mod evaluations;
mod experiments;
mod figures;
mod findings;
mod language;
mod models;
mod overview;
mod own_tls;
mod playground;
mod preview;
mod prompts;
mod registered;
mod runs;
mod sums;
mod templates;
mod units;
mod versions;
mod visit;
mod waterfall;

use axum::{
    Router, middleware,
    response::Response,
    routing::{get, post},
};
use http::{HeaderValue, header};

pub(super) use self::{door::Door, visit::word};
use super::Admin;

/// Nothing comes from elsewhere, nothing stands in the page itself, and no other page shows it in a frame.
const CONTENT_SECURITY_POLICY: HeaderValue = HeaderValue::from_static(
    "default-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'; object-src 'none'",
);

/// All pages.
pub(super) fn router() -> Router<Admin> {
    Router::new()
        .route("/", get(overview::show))
        .route("/calls", get(calls::list))
        .route("/calls/{id}", get(calls::show))
        .route("/budgets", get(budgets::show))
        .route("/costs", get(costs::show))
        .route("/models", get(models::show).post(registered::decide_model))
        .route("/prompts", get(prompts::show).post(registered::decide_prompt))
        .route("/models/compare", get(versions::of_model))
        .route("/prompts/compare", get(versions::of_prompt))
        .route("/prompts/preview", get(preview::show))
        .route("/experiments", get(experiments::show).post(experiments::decide))
        .route("/evaluations", get(evaluations::list))
        .route("/evaluations/compare", get(runs::show))
        .route("/evaluations/{id}", get(evaluations::show))
        .route("/playground", get(playground::show))
        .route("/playground/send", post(playground::send))
        .route("/configuration", get(configuration::show))
        .route("/audit", get(audit::show))
        .route("/assets/{*file}", get(assets::serve))
        .layer(middleware::map_response(confine))
}

async fn confine(mut response: Response) -> Response {
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_SECURITY_POLICY, CONTENT_SECURITY_POLICY);
    headers.insert(header::X_FRAME_OPTIONS, HeaderValue::from_static("DENY"));
    response
}
