//! Who may do what on the admin listener, decided in this one place, before any endpoint sees the request.
//!
//! - **Who:** with tokens or a provider of OpenID Connect configured, every request shows a token, or the cookie of a browser that has
//!   signed in ([`super::login`], [`super::oidc`]). Without any, the listener is on loopback and open; what is refused there is a web page: one whose name was
//!   pointed at 127.0.0.1 (DNS rebinding, told by `Host`), and one that posts across origins (told by `Origin`, `Sec-Fetch-Site`).
//! - **What:** [`needed`] says which role each operation needs; what it does not name, only an admin may.
//! - **Cross-site requests:** a browser sends its cookie whoever made the page. A change in a session must come from a page of our
//!   own origin and show the session's second text ([`CSRF_HEADER`], or [`CSRF_FIELD`] of a form).

use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::{Duration, Instant},
};

use axum::{
    body::{Body, to_bytes},
    extract::{FromRequestParts, MatchedPath, Request, State},
    middleware::Next,
    response::{IntoResponse, Redirect, Response},
};
use http::{HeaderMap, HeaderValue, Method, StatusCode, header, request::Parts};
use subtle::ConstantTimeEq;

use super::{Admin, login, paging::percent_encoded, problem::Problem, sessions::Owner};
use crate::{
    config::{
        Snapshot,
        snapshot::{AdminToken, Role},
    },
    policy::keys::KeyDigest,
    wire::headers,
};

/// By which a client says for whom it acts. Recorded, not believed: only the token says who may.
pub const ACTOR_HEADER: &str = "x-tollgate-actor";
/// Shows a session's second text with a change.
pub const CSRF_HEADER: &str = "x-tollgate-csrf";
/// The same in a form.
pub const CSRF_FIELD: &str = "csrf";
/// Bytes of a name that are recorded.
const ACTOR_BYTES_MAX: usize = 100;
/// The longest form that is looked into.
const FORM_BYTES_MAX: usize = 256 * 1024;

/// Who asks: what the audit log names. Endpoints take it as an argument.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Actor(pub String);

/// What whoever asks may do: for pages that show only that. Endpoints need not ask: they are not reached otherwise.
#[derive(Debug, Clone)]
pub struct Access {
    /// The token's name, `admin token`, `loopback`, or who signed in elsewhere: `ann@example.org (oidc)`.
    pub name: Arc<str>,
    /// Their role.
    pub role: Role,
    /// In a session: what a change must show.
    pub csrf: Option<Arc<str>>,
}

impl Access {
    /// Whether whoever asks may do what `role` may.
    #[must_use]
    pub fn may(&self, role: Role) -> bool {
        self.role >= role
    }
}

/// The peer of a connection.
#[derive(Debug, Clone, Copy)]
pub(super) struct Peer(pub(super) SocketAddr);

/// The role that an operation needs. A path is a route's pattern; `None`: there is no such route.
///
/// A test holds the API's description against this table.
#[must_use]
pub fn needed(method: &Method, route: Option<&str>) -> Role {
    let reads = matches!(*method, Method::GET | Method::HEAD | Method::OPTIONS);
    match (method.as_str(), route) {
        (_, Some("/api/calls/{id}/bodies" | "/api/prompts/{name}")) if reads => Role::Operator,
        // The page of one call leaves out what its reader may not see; this one is nothing but prompts.
        (_, Some("/api/{kind}/{name}/diff")) if reads => Role::Operator,
        (_, Some("/prompts" | "/prompts/preview")) if reads => Role::Operator,
        // A report holds what was asked and answered.
        (_, Some("/api/evaluations/{id}" | "/evaluations/{id}" | "/evaluations/compare")) if reads => Role::Operator,
        ("POST", Some("/api/evaluations")) => Role::Operator,
        // It changes nothing, and shows a prompt's text.
        ("POST", Some("/api/prompts/{name}/render")) => Role::Operator,
        ("POST", Some("/playground/send" | "/models" | "/prompts" | "/experiments")) => Role::Operator,
        (
            "POST",
            Some(
                "/api/{kind}/{name}/versions"
                | "/api/{kind}/{name}/deploy"
                | "/api/{kind}/{name}/rollback"
                | "/api/{kind}/{name}/rollout",
            ),
        ) => Role::Operator,
        ("DELETE", Some("/api/{kind}/{name}/schedule")) => Role::Operator,
        ("POST", Some(path)) if path == "/api/experiments" || path.starts_with("/api/experiments/{name}/") => {
            Role::Operator
        }
        ("POST", Some("/api/budgets/{name}/reclaim" | "/api/budgets/{name}/credit" | "/api/keys")) => Role::Operator,
        ("DELETE", Some("/api/keys/{name}")) => Role::Operator,
        ("POST", Some(login::LOGOUT)) => Role::Viewer,
        _ if reads => Role::Viewer,
        _ => Role::Admin,
    }
}

/// Whether anybody may: styles and fonts, which the page where a token is shown needs, and which are in every binary.
fn is_public(request: &Request) -> bool {
    let route = request.extensions().get::<MatchedPath>().map(MatchedPath::as_str);
    !changes(request.method()) && route == Some("/assets/{*file}")
}

/// Why a request goes no further.
enum Refusal {
    /// Nobody is known to ask.
    Nobody(&'static str),
    /// Somebody guesses.
    TooMany(Duration),
    /// Whoever asks may not.
    Forbidden(String),
}

/// Lets a request through to its endpoint, with its [`Actor`] and [`Access`], or answers it.
pub(super) async fn guard(State(admin): State<Admin>, request: Request, next: Next) -> Response {
    if is_public(&request) {
        return next.run(request).await;
    }
    let to_sign_in = wants_a_page(&request).then(|| sign_in(&request));
    match admit(&admin, request).await {
        Ok(request) => next.run(request).await,
        Err(Refusal::Nobody(_)) if to_sign_in.is_some() => {
            Redirect::to(&to_sign_in.unwrap_or_default()).into_response()
        }
        Err(refusal) => refusal.into_response(),
    }
}

/// What every response of this listener says.
pub(super) async fn harden(mut response: Response) -> Response {
    let headers = response.headers_mut();
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    // Not `no-referrer`: with that, browsers send forms with `Origin: null`, and ours would look like another site's.
    headers.insert(header::REFERRER_POLICY, HeaderValue::from_static("same-origin"));
    headers.entry(header::CACHE_CONTROL).or_insert(HeaderValue::from_static("no-store"));
    let nothing = HeaderValue::from_static("default-src 'none'; frame-ancestors 'none'");
    headers.entry(header::CONTENT_SECURITY_POLICY).or_insert(nothing);
    response
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        match self {
            Refusal::Nobody(why) => {
                let challenge = [(header::WWW_AUTHENTICATE, "Bearer realm=\"tollgate\"")];
                (challenge, Problem::new(StatusCode::UNAUTHORIZED, why)).into_response()
            }
            Refusal::TooMany(wait) => {
                let why = "too many wrong tokens came from this address; wait, and try again";
                let after = [(header::RETRY_AFTER, wait.as_secs().to_string())];
                (after, Problem::new(StatusCode::TOO_MANY_REQUESTS, why)).into_response()
            }
            Refusal::Forbidden(why) => Problem::new(StatusCode::FORBIDDEN, why).into_response(),
        }
    }
}

impl<S: Send + Sync> FromRequestParts<S> for Actor {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _state: &S) -> Result<Actor, Problem> {
        parts.extensions.get::<Actor>().cloned().ok_or_else(unguarded)
    }
}

impl<S: Send + Sync> FromRequestParts<S> for Access {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _state: &S) -> Result<Access, Problem> {
        parts.extensions.get::<Access>().cloned().ok_or_else(unguarded)
    }
}

fn unguarded() -> Problem {
    Problem::new(StatusCode::FORBIDDEN, "nobody is known to ask")
}

// === who ===

async fn admit(admin: &Admin, mut request: Request) -> Result<Request, Refusal> {
    let snapshot = admin.shared.live.load_full();
    let access = if is_open(&snapshot) { from_loopback(&request)? } else { identify(admin, &snapshot, &request)? };
    let route = request.extensions().get::<MatchedPath>().map(MatchedPath::as_str);
    let needed = needed(request.method(), route);
    if !access.may(needed) {
        let why = format!("this takes the role `{}`; `{}` is a {}", needed.label(), access.name, access.role.label());
        return Err(Refusal::Forbidden(why));
    }
    if access.csrf.is_some() && changes(request.method()) {
        request = from_our_own_page(&access, request).await?;
    }
    let actor = actor(request.headers(), &access.name);
    request.extensions_mut().insert(actor);
    request.extensions_mut().insert(access);
    Ok(request)
}

/// Whether nobody is asked who they are.
pub(super) fn is_open(snapshot: &Snapshot) -> bool {
    !has_tokens(snapshot) && snapshot.server.oidc.is_none()
}

/// Whether there is a token that somebody may show.
pub(super) fn has_tokens(snapshot: &Snapshot) -> bool {
    snapshot.server.admin_token.is_some() || !snapshot.server.admin_tokens.is_empty()
}

/// Who shows a token, or has signed in.
fn identify(admin: &Admin, snapshot: &Snapshot, request: &Request) -> Result<Access, Refusal> {
    if let Some(shown) = request.headers().get(header::AUTHORIZATION) {
        let shown = shown.to_str().ok().and_then(|shown| shown.strip_prefix("Bearer ")).unwrap_or_default();
        let token = check(admin, snapshot, shown, peer(request))?;
        return Ok(Access { name: token.name, role: token.role, csrf: None });
    }
    const NOBODY: &str = "send a token as `Authorization: Bearer …`, or sign in at /login";
    let cookie = login::session_id(request.headers()).ok_or(Refusal::Nobody(NOBODY))?;
    let session = admin.sessions.find(cookie, Instant::now());
    // A token that was taken out of the configuration ends its sessions, and so does a role.
    let owner = session.as_ref().and_then(|session| owner(snapshot, &session.owner));
    let (Some(session), Some((name, role))) = (session, owner) else {
        return Err(Refusal::Nobody("the session is over: sign in again at /login"));
    };
    Ok(Access { name, role, csrf: Some(session.csrf) })
}

/// The name and the role that a session's owner has now.
fn owner(snapshot: &Snapshot, owner: &Owner) -> Option<(Arc<str>, Role)> {
    match owner {
        Owner::Token(digest) => holder(snapshot, digest).map(|token| (token.name, token.role)),
        Owner::Person(person) => Some((person.name(), person.role(snapshot.server.oidc.as_deref())?)),
    }
}

/// Whose token `shown` is. Wrong ones are counted by address.
pub(super) fn check(
    admin: &Admin,
    snapshot: &Snapshot,
    shown: &str,
    peer: Option<IpAddr>,
) -> Result<AdminToken, Refused> {
    const WRONG: &str = "the admin token is missing or wrong; send it as `Authorization: Bearer …`";
    let now = Instant::now();
    if let Some(wait) = admin.attempts.wait(peer, now) {
        return Err(Refused::TooMany(wait));
    }
    let shown = shown.trim();
    if shown.is_empty() {
        return Err(Refused::Wrong(WRONG));
    }
    holder(snapshot, &KeyDigest::of(shown, None)).ok_or_else(|| {
        admin.attempts.failed(peer, now);
        tracing::warn!(peer = peer.map(|peer| peer.to_string()), "a wrong token was shown to the admin listener");
        Refused::Wrong(WRONG)
    })
}

/// Why a token does not count.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Refused {
    /// It is none.
    Wrong(&'static str),
    /// Nobody looked.
    TooMany(Duration),
}

impl From<Refused> for Refusal {
    fn from(refused: Refused) -> Refusal {
        match refused {
            Refused::Wrong(why) => Refusal::Nobody(why),
            Refused::TooMany(wait) => Refusal::TooMany(wait),
        }
    }
}

/// Whose token has this digest. All are compared, each in constant time.
fn holder(snapshot: &Snapshot, digest: &KeyDigest) -> Option<AdminToken> {
    let server = &snapshot.server;
    let first = server.admin_token.iter().map(|token| AdminToken {
        name: "admin token".into(),
        digest: KeyDigest::of(token.expose(), None),
        role: Role::Admin,
    });
    first.chain(server.admin_tokens.iter().cloned()).fold(None, |found, token| {
        let is_it = token.digest == *digest;
        found.or(is_it.then_some(token))
    })
}

pub(super) fn peer(request: &Request) -> Option<IpAddr> {
    request.extensions().get::<Peer>().map(|peer| peer.0.ip())
}

fn from_loopback(request: &Request) -> Result<Access, Refusal> {
    let host = host(request);
    if !host.is_some_and(is_local) {
        return Err(Refusal::Forbidden("this host name is not taken; use 127.0.0.1 or localhost".to_owned()));
    }
    if changes(request.method()) && is_of_another_origin(request.headers(), host.unwrap_or_default()) {
        return Err(Refusal::Forbidden(ANOTHER_ORIGIN.to_owned()));
    }
    Ok(Access { name: "loopback".into(), role: Role::Admin, csrf: None })
}

const ANOTHER_ORIGIN: &str = "a web page of another origin may not change anything here";

fn changes(method: &Method) -> bool {
    !matches!(*method, Method::GET | Method::HEAD | Method::OPTIONS)
}

pub(super) fn host(request: &Request) -> Option<&str> {
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
    let texts = |name: &str| headers.get_all(name).into_iter().map(|value| value.to_str().unwrap_or("?"));
    let crosses = texts("sec-fetch-site").any(|site| !matches!(site, "same-origin" | "none"));
    let other = texts("origin").any(|origin| origin.split_once("://").is_none_or(|(_, from)| from != host));
    crosses || other
}

/// Whether a page of another origin sent this: for forms that need no session.
pub(super) fn is_cross_site(request: &Request) -> bool {
    is_of_another_origin(request.headers(), host(request).unwrap_or_default())
}

// === a browser's session ===

/// Lets a change through that comes from a page of ours.
async fn from_our_own_page(access: &Access, request: Request) -> Result<Request, Refusal> {
    if is_cross_site(&request) {
        return Err(Refusal::Forbidden(ANOTHER_ORIGIN.to_owned()));
    }
    let (shown, request) = match request.headers().get(CSRF_HEADER) {
        Some(shown) => (shown.to_str().unwrap_or_default().to_owned(), request),
        None => csrf_of_form(request).await?,
    };
    let expected = access.csrf.as_deref().unwrap_or_default();
    if expected.is_empty() || !bool::from(shown.as_bytes().ct_eq(expected.as_bytes())) {
        let why = format!("a change in a session shows `{CSRF_HEADER}`: GET /api/session says which");
        return Err(Refusal::Forbidden(why));
    }
    Ok(request)
}

/// The field [`CSRF_FIELD`] of a form, and the request as it was.
async fn csrf_of_form(request: Request) -> Result<(String, Request), Refusal> {
    let is_form = |kind: &HeaderValue| kind.as_bytes().starts_with(b"application/x-www-form-urlencoded");
    if !request.headers().get(header::CONTENT_TYPE).is_some_and(is_form) {
        return Ok((String::new(), request));
    }
    let (parts, body) = request.into_parts();
    let too_long = |_| Refusal::Forbidden("the form is too long".to_owned());
    let body = to_bytes(body, FORM_BYTES_MAX).await.map_err(too_long)?;
    let text = std::str::from_utf8(&body).unwrap_or_default();
    let field = text.split('&').find_map(|pair| pair.strip_prefix(CSRF_FIELD)?.strip_prefix('='));
    // It has hexadecimal digits only, so there is nothing to decode.
    let field = field.unwrap_or_default().to_owned();
    Ok((field, Request::from_parts(parts, Body::from(body))))
}

/// Whether a browser asks for a page, rather than a program for data.
fn wants_a_page(request: &Request) -> bool {
    let accepts = request.headers().get(header::ACCEPT).and_then(|accept| accept.to_str().ok()).unwrap_or_default();
    *request.method() == Method::GET && accepts.contains("text/html") && !request.uri().path().starts_with("/api/")
}

fn sign_in(request: &Request) -> String {
    let target = request.uri().path_and_query().map_or("/", http::uri::PathAndQuery::as_str);
    format!("{}?next={}", login::LOGIN, percent_encoded(target))
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

    #[test]
    fn what_the_table_does_not_name_takes_an_admin() {
        let table = [
            ("GET", Some("/metrics"), Role::Viewer),
            ("HEAD", Some("/api/calls"), Role::Viewer),
            ("GET", Some("/api/calls/{id}/bodies"), Role::Operator),
            ("HEAD", Some("/api/calls/{id}/bodies"), Role::Operator),
            ("GET", Some("/api/prompts/{name}"), Role::Operator),
            ("GET", Some("/calls/{id}"), Role::Viewer),
            ("GET", Some("/calls"), Role::Viewer),
            ("GET", Some("/prompts"), Role::Operator),
            ("GET", Some("/prompts/compare"), Role::Viewer),
            ("GET", Some("/evaluations/compare"), Role::Operator),
            ("POST", Some("/playground/send"), Role::Operator),
            ("POST", Some("/api/keys"), Role::Operator),
            ("DELETE", Some("/api/keys/{name}"), Role::Operator),
            ("POST", Some("/api/budgets/{name}/credit"), Role::Operator),
            ("POST", Some("/api/budgets/{name}/rebuild"), Role::Admin),
            ("POST", Some("/api/not/there/yet"), Role::Admin),
            ("PUT", Some("/api/keys"), Role::Admin),
            ("TRACE", Some("/api/keys"), Role::Admin),
            ("POST", None, Role::Admin),
        ];
        for (method, route, role) in table {
            assert_eq!(needed(&method.parse().expect("a method"), route), role, "{method} {route:?}");
        }
    }

    #[tokio::test]
    async fn a_form_shows_the_second_text_and_arrives_whole() {
        let form = |body: &'static str| {
            http::Request::post("/logout")
                .header("content-type", "application/x-www-form-urlencoded; charset=utf-8")
                .body(Body::from(body))
                .expect("a request")
        };
        let Ok((shown, request)) = csrf_of_form(form("a=1&csrf=0af&b=csrf=2")).await else { panic!("refused") };
        assert_eq!(shown, "0af");
        assert_eq!(to_bytes(request.into_body(), 99).await.expect("short"), "a=1&csrf=0af&b=csrf=2");
        for other in ["", "csrfx=1", "xcsrf=1"] {
            let Ok((shown, _)) = csrf_of_form(form(other)).await else { panic!("refused") };
            assert_eq!(shown, "", "{other}");
        }
    }
}
