//! The admin listener: metrics, probes, and what the gateway knows of itself as JSON.
//!
//! Never on the client listener. Off loopback it asks for the admin token; on loopback it refuses foreign `Host`s, so that a web page
//! which resolves to 127.0.0.1 can't read it (DNS rebinding).

use std::net::IpAddr;

use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use hyper::body::Incoming;
use serde_json::{Value, json};
use subtle::ConstantTimeEq;

use crate::{
    body::ReplyBody,
    config::Snapshot,
    gateway::{Shared, routes::probe, serve::Handler},
    purses::AccountStatus,
    telemetry::metrics,
    wire::headers,
};

/// See the module.
#[derive(Debug, Clone)]
pub struct Routes {
    shared: Shared,
}

impl Routes {
    /// The admin API of one gateway.
    #[must_use]
    pub fn new(shared: Shared) -> Routes {
        Routes { shared }
    }

    async fn answer(&self, request: &Request<Incoming>) -> Response<ReplyBody> {
        match request.uri().path() {
            "/healthz" => return probe(true),
            "/readyz" => return probe(!self.shared.shutdown.draining.is_cancelled()),
            _ => {}
        }
        let snapshot = self.shared.live.load_full();
        if let Err((status, why)) = allowed(&snapshot, request) {
            return json_response(status, &json!({"error": {"message": why}}));
        }
        if request.method() != Method::GET {
            return json_response(
                StatusCode::METHOD_NOT_ALLOWED,
                &json!({"error": {"message": "only GET is taken here"}}),
            );
        }
        match request.uri().path() {
            "/metrics" => {
                self.shared.refresh_gauges();
                text_response(metrics::render())
            }
            "/api/budgets" => self.budgets().await,
            "/api/config" => json_response(StatusCode::OK, &config(&snapshot)),
            path => json_response(
                StatusCode::NOT_FOUND,
                &json!({"error": {"message": format!("no `{path}` here: see /metrics, /api/budgets, /api/config")}}),
            ),
        }
    }

    async fn budgets(&self) -> Response<ReplyBody> {
        match self.shared.accounts().await {
            Ok(accounts) => json_response(StatusCode::OK, &accounts.iter().map(describe).collect()),
            Err(error) => {
                json_response(StatusCode::SERVICE_UNAVAILABLE, &json!({"error": {"message": error.to_string()}}))
            }
        }
    }
}

fn describe(account: &AccountStatus) -> Value {
    json!({
        "budget": account.budget, "account": account.account,
        "limit_nanousd": account.limit, "charged_nanousd": account.charged,
        "reserved_nanousd": account.reserved, "granted_nanousd": account.granted,
        "debt_nanousd": account.debt,
    })
}

impl Handler for Routes {
    async fn handle(&self, request: Request<Incoming>, _late: bool) -> Response<ReplyBody> {
        self.answer(&request).await
    }
}

/// Whether the request may look at anything.
fn allowed(snapshot: &Snapshot, request: &Request<Incoming>) -> Result<(), (StatusCode, &'static str)> {
    let Some(token) = &snapshot.server.admin_token else {
        return if is_local(request) {
            Ok(())
        } else {
            Err((StatusCode::FORBIDDEN, "this host name is not taken; use 127.0.0.1 or localhost"))
        };
    };
    let presented = request.headers().get(header::AUTHORIZATION).and_then(|v| v.to_str().ok()?.strip_prefix("Bearer "));
    let right = presented.is_some_and(|presented| presented.as_bytes().ct_eq(token.expose().as_bytes()).into());
    if right {
        Ok(())
    } else {
        Err((StatusCode::UNAUTHORIZED, "the admin token is missing or wrong; send it as `Authorization: Bearer …`"))
    }
}

/// Whether `Host` is an address or `localhost`: names of others may have been pointed here.
fn is_local(request: &Request<Incoming>) -> bool {
    let host = request.uri().host().or_else(|| request.headers().get(header::HOST)?.to_str().ok());
    let Some(name) = host.map(headers::host_name) else { return false };
    name.eq_ignore_ascii_case("localhost") || name.parse::<IpAddr>().is_ok()
}

/// What serves, without secrets.
fn config(snapshot: &Snapshot) -> Value {
    json!({
        "hash": snapshot.hash,
        "providers": sorted(snapshot.providers.keys()),
        "models": sorted(snapshot.models.keys()),
        "prompts": sorted(snapshot.prompts.keys()),
        "keys": snapshot.keys.len(),
        "budgets": snapshot.budgets.iter().map(|budget| &budget.name).collect::<Vec<_>>(),
        "prices": snapshot.prices.revision(),
        "not_yet": snapshot.not_yet,
    })
}

fn sorted<'a>(names: impl Iterator<Item = &'a Box<str>>) -> Vec<&'a str> {
    let mut names: Vec<&str> = names.map(|name| &**name).collect();
    names.sort_unstable();
    names
}

fn text_response(text: String) -> Response<ReplyBody> {
    with_type(ReplyBody::own(text), "text/plain; version=0.0.4; charset=utf-8")
}

fn json_response(status: StatusCode, value: &Value) -> Response<ReplyBody> {
    let mut response = with_type(ReplyBody::own(value.to_string()), "application/json");
    *response.status_mut() = status;
    response
}

fn with_type(body: ReplyBody, content_type: &'static str) -> Response<ReplyBody> {
    let mut response = Response::new(body);
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}
