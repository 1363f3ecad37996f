//! Who may do what on the admin listener, decided in this one place, before any endpoint sees the request.
//!
//! With `server.admin_token`, every request shows it. Without one the listener is on loopback, and what is refused there is a web
//! page: one whose name was pointed at 127.0.0.1 (DNS rebinding, told by `Host`), and one that posts across origins (CSRF, told
//! by `Origin` and `Sec-Fetch-Site`).

use std::net::IpAddr;

use axum::{
    extract::{FromRequestParts, Request, State},
    middleware::Next,
    response::{IntoResponse, Response},
};
use http::{HeaderMap, HeaderValue, Method, StatusCode, header, request::Parts};
use subtle::ConstantTimeEq;

use super::{Admin, problem::Problem};
use crate::{config::Snapshot, wire::headers};

/// By which a client says for whom it acts. Recorded, not believed: only the token says who may.
pub const ACTOR_HEADER: &str = "x-tollgate-actor";
/// Bytes of a name that are recorded.
const ACTOR_BYTES_MAX: usize = 100;

/// Who asks: what the audit log names. Endpoints take it as an argument.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Actor(pub String);

/// Lets a request through to its endpoint, with its [`Actor`], or answers it.
pub(super) async fn guard(State(admin): State<Admin>, mut request: Request, next: Next) -> Response {
    let snapshot = admin.shared.live.load_full();
    match allowed(&snapshot, &request) {
        Ok(actor) => {
            request.extensions_mut().insert(actor);
            next.run(request).await
        }
        Err(problem) => problem.into_response(),
    }
}

/// What every response of this listener says.
pub(super) async fn harden(mut response: Response) -> Response {
    let headers = response.headers_mut();
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.entry(header::CACHE_CONTROL).or_insert(HeaderValue::from_static("no-store"));
    response
}

impl<S: Send + Sync> FromRequestParts<S> for Actor {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _state: &S) -> Result<Actor, Problem> {
        let actor = parts.extensions.get::<Actor>().cloned();
        actor.ok_or_else(|| Problem::new(StatusCode::FORBIDDEN, "nobody is known to ask"))
    }
}

fn allowed(snapshot: &Snapshot, request: &Request) -> Result<Actor, Problem> {
    let Some(token) = &snapshot.server.admin_token else {
        return from_loopback(request);
    };
    let presented = request.headers().get(header::AUTHORIZATION).and_then(|v| v.to_str().ok()?.strip_prefix("Bearer "));
    if presented.is_some_and(|presented| presented.as_bytes().ct_eq(token.expose().as_bytes()).into()) {
        return Ok(actor(request.headers(), "admin token"));
    }
    let why = "the admin token is missing or wrong; send it as `Authorization: Bearer …`";
    Err(Problem::new(StatusCode::UNAUTHORIZED, why))
}

fn from_loopback(request: &Request) -> Result<Actor, Problem> {
    let host = host(request);
    if !host.is_some_and(is_local) {
        let why = "this host name is not taken; use 127.0.0.1 or localhost";
        return Err(Problem::new(StatusCode::FORBIDDEN, why));
    }
    let changes = !matches!(*request.method(), Method::GET | Method::HEAD | Method::OPTIONS);
    if changes && is_of_another_origin(request.headers(), host.unwrap_or_default()) {
        let why = "a web page of another origin may not change anything here";
        return Err(Problem::new(StatusCode::FORBIDDEN, why));
    }
    Ok(actor(request.headers(), "loopback"))
}

fn host(request: &Request) -> Option<&str> {
    request
        .uri()
        .authority()
        .map(http::uri::Authority::as_str)
        .or_else(|| request.headers().get(header::HOST)?.to_str().ok())
}

/// Whether `host` is an address or `localhost`: names of others may have been pointed here.
fn is_local(host: &str) -> bool {
    let name = headers::host_name(host);
    name.eq_ignore_ascii_case("localhost") || name.parse::<IpAddr>().is_ok()
}

/// Browsers say where a request comes from; other clients say nothing.
fn is_of_another_origin(headers: &HeaderMap, host: &str) -> bool {
    let text = |name: &str| headers.get(name).map(|value| value.to_str().unwrap_or("?"));
    let crosses = text("sec-fetch-site").is_some_and(|site| !matches!(site, "same-origin" | "none"));
    let other = text("origin").is_some_and(|origin| origin.split_once("://").is_none_or(|(_, from)| from != host));
    crosses || other
}

/// `ann (admin token)`, or how the request was let in where it names nobody.
fn actor(headers: &HeaderMap, let_in_by: &str) -> Actor {
    let named = headers.get(ACTOR_HEADER).and_then(|value| value.to_str().ok()).map(str::trim).unwrap_or_default();
    match named {
        "" => Actor(let_in_by.to_owned()),
        // Header values that are texts are ASCII: no character is cut.
        named => Actor(format!("{} ({let_in_by})", &named[..named.len().min(ACTOR_BYTES_MAX)])),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(method: &str, fields: &[(&str, &str)]) -> Request {
        let mut request = http::Request::builder().method(method).uri("/api/budgets/x/reclaim");
        for (name, value) in fields {
            request = request.header(*name, *value);
        }
        request.body(axum::body::Body::empty()).expect("a request")
    }

    #[test]
    fn without_a_token_a_page_of_another_origin_changes_nothing() {
        let host = ("host", "127.0.0.1:9090");
        let table: [(&[(&str, &str)], bool); 9] = [
            (&[host], true),
            (&[host, ("origin", "http://127.0.0.1:9090")], true),
            (&[host, ("sec-fetch-site", "same-origin")], true),
            (&[host, ("origin", "http://127.0.0.1:9091")], false),
            (&[host, ("origin", "https://evil.example")], false),
            (&[host, ("origin", "null")], false),
            (&[host, ("sec-fetch-site", "cross-site")], false),
            (&[host, ("sec-fetch-site", "same-site"), ("origin", "http://127.0.0.1:9090")], false),
            (&[("host", "evil.example")], false),
        ];
        for (fields, may) in table {
            assert_eq!(from_loopback(&request("POST", fields)).is_ok(), may, "{fields:?}");
        }
        let reads = request("GET", &[host, ("origin", "https://evil.example")]);
        assert!(from_loopback(&reads).is_ok(), "what it reads, its browser keeps from it");
    }

    #[test]
    fn a_client_may_say_for_whom_it_acts() {
        let named = |name: &str| actor(request("GET", &[(ACTOR_HEADER, name)]).headers(), "admin token").0;
        assert_eq!(named("ann"), "ann (admin token)");
        assert_eq!(named(" "), "admin token");
        assert_eq!(named(&"x".repeat(300)).len(), ACTOR_BYTES_MAX + " (admin token)".len());
    }
}
