//! Signing in with a browser: a form takes a token and gives a session ([`super::sessions`]) in a cookie, and `/logout` ends it. Where
//! a provider of OpenID Connect is configured, the page leads there too ([`super::oidc`]).
//!
//! `GET /api/session` says who is signed in, and the text that changes must show ([`super::guard::CSRF_HEADER`]).

use std::time::Instant;

use axum::{
    Form, Json, Router,
    extract::{DefaultBodyLimit, FromRequest, Request, State},
    response::{IntoResponse, Redirect, Response},
    routing::{get, post},
};
use http::{HeaderMap, HeaderValue, StatusCode, header};
use serde::{Deserialize, Serialize};
use serde_json::json;
use utoipa::{IntoParams, ToSchema};

use super::{
    Admin,
    dashboard::Door,
    extract::Query,
    guard::{self, Access, Refused},
    oidc,
    openapi::{Api, routes},
    problem::Problem,
    sessions::{AGE_MAX, Owner},
};

/// Where browsers sign in.
pub(super) const LOGIN: &str = "/login";
/// Where they sign out: `POST`, with the session's second text.
pub(super) const LOGOUT: &str = "/logout";

/// The cookie's name; over TLS no other host can set one with that prefix (RFC 6265bis §4.1.3.2).
const COOKIE: &str = "tollgate_session";
const COOKIE_TLS: &str = "__Host-tollgate_session";
/// The longest form, in bytes.
const FORM_BYTES_MAX: usize = 16 * 1024;

/// What is open: nobody has signed in yet.
pub(super) fn open() -> Router<Admin> {
    Router::new().route(LOGIN, get(show).post(sign_in)).layer(DefaultBodyLimit::max(FORM_BYTES_MAX))
}

/// What is guarded.
pub(super) fn guarded() -> Router<Admin> {
    Router::new().route(LOGOUT, post(sign_out))
}

pub(super) fn router() -> Api {
    Api::default().routes(routes!(session))
}

/// Whoever asks.
#[derive(Debug, Serialize, ToSchema)]
struct SessionInfo {
    /// The token's name, `admin token`, `loopback` where nobody is asked, or who signed in elsewhere: `ann@example.org (oidc)`.
    name: String,
    /// `viewer`, `operator` or `admin`.
    role: &'static str,
    /// In a browser's session: what each change must show as `x-tollgate-csrf`.
    csrf: Option<String>,
}

/// Who asks, and what they may do
#[utoipa::path(get, path = "/api/session", tag = "session", operation_id = "show_session",
    responses((status = OK, body = SessionInfo)))]
async fn session(access: Access) -> Json<SessionInfo> {
    Json(SessionInfo {
        name: access.name.to_string(),
        role: access.role.label(),
        csrf: access.csrf.map(|csrf| csrf.to_string()),
    })
}

#[derive(Debug, Deserialize, IntoParams)]
struct Target {
    next: Option<String>,
    /// The language that the page is to be in.
    lang: Option<String>,
}

async fn show(State(admin): State<Admin>, headers: HeaderMap, Query(target): Query<Target>) -> Response {
    let next = own_path(target.next.as_deref());
    if guard::is_open(&admin.shared.live.load_full()) {
        return Redirect::to(next).into_response();
    }
    page(&admin, Door::choosing(target.lang.as_deref(), &headers), StatusCode::OK, next, "")
}

#[derive(Deserialize)]
struct SignIn {
    token: String,
    next: Option<String>,
    lang: Option<String>,
}

async fn sign_in(State(admin): State<Admin>, request: Request) -> Response {
    if guard::is_cross_site(&request) {
        return Problem::new(StatusCode::FORBIDDEN, "sign in on a page of this origin").into_response();
    }
    let (peer, headers) = (guard::peer(&request), request.headers().clone());
    let Form(form) = match Form::<SignIn>::from_request(request, &()).await {
        Ok(form) => form,
        Err(wrong) => return Problem::new(wrong.status(), wrong.body_text()).into_response(),
    };
    let next = own_path(form.next.as_deref());
    let door = Door::choosing(form.lang.as_deref(), &headers);
    match guard::check(&admin, &admin.shared.live.load_full(), &form.token, peer) {
        Ok(token) => {
            let Some(id) = begin(&admin, &headers, Owner::Token(token.digest)) else {
                let why = "the system gives no random bytes";
                return Problem::new(StatusCode::SERVICE_UNAVAILABLE, why).into_response();
            };
            tracing::info!(token = %token.name, role = token.role.label(), "signed in");
            let cookie = cookie(&headers, &id, AGE_MAX.as_secs());
            ([(header::SET_COOKIE, cookie)], Redirect::to(next)).into_response()
        }
        Err(Refused::Wrong(_)) => {
            page(&admin, door, StatusCode::UNAUTHORIZED, next, door.say("This token is not known."))
        }
        Err(Refused::TooMany(wait)) => {
            let after = [(header::RETRY_AFTER, wait.as_secs().to_string())];
            let why = door.say("Too many wrong tokens; wait a little.");
            (after, page(&admin, door, StatusCode::TOO_MANY_REQUESTS, next, why)).into_response()
        }
    }
}

async fn sign_out(State(admin): State<Admin>, headers: HeaderMap) -> Response {
    if let Some(id) = session_id(&headers) {
        admin.sessions.end(id);
    }
    ([(header::SET_COOKIE, cookie(&headers, "", 0))], Redirect::to(LOGIN)).into_response()
}

/// Begins a session for `owner`; gives its id, for the cookie. `None` when the system gives no random bytes.
pub(super) fn begin(admin: &Admin, headers: &HeaderMap, owner: Owner) -> Option<String> {
    // Whatever session the browser had, it is another one now: nobody can have planted its id.
    if let Some(before) = session_id(headers) {
        admin.sessions.end(before);
    }
    admin.sessions.begin(owner, Instant::now())
}

/// The page where browsers sign in, on their way to `next`.
pub(super) fn page(admin: &Admin, door: Door, status: StatusCode, next: &str, error: &str) -> Response {
    page_with(admin, door, status, next, (error, ""))
}

/// The same, with what is wrong, and why.
pub(super) fn page_with(
    admin: &Admin,
    door: Door,
    status: StatusCode,
    next: &str,
    (error, why): (&str, &str),
) -> Response {
    let snapshot = admin.shared.live.load_full();
    let page = json!({
        "error": error,
        "why": why,
        "tokens": guard::has_tokens(&snapshot),
        "oidc": snapshot.server.oidc.as_ref().map(|oidc| oidc::provider_name(oidc)),
    });
    door.page(status, "login.html", next, &page)
}

/// A path of ours to go to: never another site's address.
pub(super) fn own_path(next: Option<&str>) -> &str {
    let is_ours = |next: &&str| {
        next.starts_with('/')
            && !next[1..].starts_with(['/', '\\'])
            && next.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'\\')
    };
    next.filter(is_ours).unwrap_or("/")
}

/// The id of the session that a browser shows.
pub(super) fn session_id(headers: &HeaderMap) -> Option<&str> {
    shown_cookie(headers, if is_over_tls(headers) { COOKIE_TLS } else { COOKIE })
}

/// What a browser shows under this name.
pub(super) fn shown_cookie<'h>(headers: &'h HeaderMap, name: &str) -> Option<&'h str> {
    let cookies = headers.get_all(header::COOKIE).into_iter().filter_map(|value| value.to_str().ok());
    let mut pairs = cookies.flat_map(|value| value.split(';')).filter_map(|pair| pair.trim().split_once('='));
    pairs.find(|(found, _)| *found == name).map(|(_, id)| id).filter(|id| !id.is_empty())
}

/// The cookie that gives a browser its session: for [`AGE_MAX`], or for no time at all to take it away.
pub(super) fn cookie(headers: &HeaderMap, id: &str, seconds: u64) -> HeaderValue {
    let (name, secure) = if is_over_tls(headers) { (COOKIE_TLS, "; Secure") } else { (COOKIE, "") };
    let text = format!("{name}={id}; Path=/; Max-Age={seconds}; HttpOnly; SameSite=Strict{secure}");
    HeaderValue::from_str(&text).expect("names and hexadecimal digits are a header's value")
}

/// Whether a proxy in front of this listener speaks TLS. One that lies about it only spoils its own cookie.
pub(super) fn is_over_tls(headers: &HeaderMap) -> bool {
    headers.get("x-forwarded-proto").is_some_and(|proto| proto == "https")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn after_signing_in_nobody_is_sent_elsewhere() {
        for good in ["/", "/calls?team=a&x=%2F", "/a//b"] {
            assert_eq!(own_path(Some(good)), good);
        }
        for bad in ["", "//evil.example", "/\\evil.example", "https://evil.example", "evil", "/a\\b", "/a\r\nb", "/ä"]
        {
            assert_eq!(own_path(Some(bad)), "/", "{bad}");
        }
    }

    #[test]
    fn a_cookie_is_for_this_site_alone() {
        let plain = HeaderMap::new();
        let tls =
            HeaderMap::from_iter([("x-forwarded-proto".parse().expect("a name"), "https".parse().expect("text"))]);
        let of = |headers: &HeaderMap| cookie(headers, "0a", 60).to_str().expect("text").to_owned();
        assert_eq!(of(&plain), "tollgate_session=0a; Path=/; Max-Age=60; HttpOnly; SameSite=Strict");
        assert_eq!(of(&tls), "__Host-tollgate_session=0a; Path=/; Max-Age=60; HttpOnly; SameSite=Strict; Secure");

        let shown = |headers: &HeaderMap, value: &'static str| {
            let mut headers = headers.clone();
            headers.insert("cookie", HeaderValue::from_static(value));
            session_id(&headers).map(str::to_owned)
        };
        assert_eq!(shown(&plain, "a=b; tollgate_session=0a; c"), Some("0a".to_owned()));
        assert_eq!(shown(&plain, "tollgate_session="), None);
        assert_eq!(shown(&tls, "tollgate_session=planted"), None, "another host can set this one");
        assert_eq!(shown(&tls, "__Host-tollgate_session=0a"), Some("0a".to_owned()));
    }
}
