//! Signing in by OpenID Connect: the authorization code flow with PKCE, at the end of which stands a session like any other
//! ([`super::sessions`]).
//!
//! ```text
//! /login/oidc            makes a secret for this one sign-in, leaves it with the browser, and sends it to the provider
//! the provider           asks who they are, and sends the browser back with a code
//! /login/oidc/callback   takes the code to the token endpoint, checks the ID token (policy::oidc), begins the session
//! ```
//!
//! - **Bound to the browser.** State, nonce and PKCE's verifier all follow from one random id by a key of this process; the browser
//!   keeps the id, signed, in a cookie of its own. Nothing is kept here, so that nobody can fill it. Whoever else gets hold of a code
//!   can do nothing with it, and a code that somebody else planted is refused.
//! - **TLS stands for the token's signature** (OpenID Connect Core §3.1.3.7 item 6): it comes from the token endpoint and no other way,
//!   by https with the certificate checked; http is taken on this machine alone.
//! - **Nobody is sent elsewhere:** not by `next`, which is a path of ours; not to the provider but as the configuration names it.

use std::{
    net::IpAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use axum::{
    Router,
    extract::{Query, Request, State},
    response::{AppendHeaders, IntoResponse, Redirect, Response},
    routing::get,
};
use base64::{
    Engine,
    engine::general_purpose::{STANDARD as BASE64, URL_SAFE_NO_PAD as BASE64_URL},
};
use bytes::Bytes;
use hmac::{Hmac, KeyInit, Mac};
use http::{HeaderMap, HeaderValue, StatusCode, Uri, header};
use jiff::Timestamp;
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::json;
use sha2::Sha256;
use subtle::ConstantTimeEq;
use tokio::sync::Mutex;

use super::{
    Admin,
    dashboard::Door,
    guard, login,
    paging::percent_encoded,
    sessions::{self, AGE_MAX, Owner, Person},
};
use crate::{
    config::snapshot::Oidc,
    policy::oidc::{self, Expected, Unfit},
    telemetry::post::Post,
};

/// Where a sign-in begins.
const BEGIN: &str = "/login/oidc";
/// Where the provider sends browsers back to.
const CALLBACK: &str = "/login/oidc/callback";

/// The cookie of a sign-in under way. `Lax`, since the browser comes back from another site.
const COOKIE: &str = "tollgate_oidc";
const COOKIE_TLS: &str = "__Host-tollgate_oidc";
/// For how long somebody may take to say who they are.
const FLOW_MAX: Duration = Duration::from_mins(10);
/// The longest path that is kept meanwhile.
const NEXT_BYTES_MAX: usize = 2048;
/// For one answer of the provider.
const TIMEOUT: Duration = Duration::from_secs(10);
/// For how long what a provider says of itself is believed, and for how long that it did not answer.
const DISCOVERED_FOR: Duration = Duration::from_mins(10);
const AWAY_FOR: Duration = Duration::from_secs(2);

/// The way in. Nobody has signed in yet.
pub(super) fn open() -> Router<Admin> {
    Router::new().route(BEGIN, get(begin)).route(CALLBACK, get(finish))
}

/// By what people know a provider: its host.
pub(super) fn provider_name(oidc: &Oidc) -> String {
    let issuer: Option<Uri> = oidc.issuer.parse().ok();
    issuer.and_then(|issuer| issuer.host().map(str::to_owned)).unwrap_or_default()
}

/// What all sign-ins of this process share.
pub(super) struct SignIns {
    /// Signs cookies; `None` where the system gives no random bytes: then nobody comes in this way.
    key: Option<String>,
    discovered: Mutex<Option<Discovered>>,
}

impl std::fmt::Debug for SignIns {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SignIns").finish_non_exhaustive()
    }
}

/// What was found at a provider, or that it did not answer.
struct Discovered {
    issuer: Box<str>,
    at: Instant,
    found: Result<Arc<Endpoints>, Failure>,
}

/// Where a provider is asked.
#[derive(Debug)]
struct Endpoints {
    authorization: String,
    token: Uri,
    /// Whether the client's secret goes into a header field, as it does unless the provider says otherwise.
    takes_basic: bool,
}

/// The discovery document, as far as it matters: OpenID Connect Discovery §3.
#[derive(Deserialize)]
struct Metadata {
    issuer: String,
    authorization_endpoint: String,
    token_endpoint: String,
    token_endpoint_auth_methods_supported: Option<Vec<String>>,
}

/// What the provider sends the browser back with: RFC 6749 §4.1.2, RFC 9207.
#[derive(Debug, Default, Deserialize)]
struct Returned {
    state: Option<String>,
    code: Option<String>,
    error: Option<String>,
    iss: Option<String>,
}

#[derive(Deserialize)]
struct Tokens {
    id_token: Option<String>,
}

/// RFC 6749 §5.2.
#[derive(Deserialize)]
struct TokenError {
    error: String,
}

/// Who asks, without the body: it has none.
struct Asked {
    uri: Uri,
    headers: HeaderMap,
    host: String,
    peer: Option<IpAddr>,
}

/// Why nobody comes in.
#[derive(Debug, Clone)]
enum Failure {
    /// There is no provider.
    Off,
    /// No random bytes.
    NoRandom,
    /// No sign-in is under way in this browser, or another one.
    Lost,
    /// The provider does not answer.
    Away(String),
    /// The provider does not do what OpenID Connect says, or is not the configured one.
    Odd(String),
    /// The provider does not let them in, or does not know us; its code for that.
    Denied(String),
    /// Its token does not hold.
    Unfit(Unfit),
    /// They have no role.
    NoRole,
    /// Somebody guesses.
    TooMany(Duration),
}

// === the way there ===

async fn begin(State(admin): State<Admin>, request: Request) -> Response {
    #[derive(Deserialize)]
    struct Target {
        next: Option<String>,
    }
    let asked = Asked::of(&request);
    let target = Query::<Target>::try_from_uri(&asked.uri).ok().and_then(|Query(target)| target.next);
    let next = login::own_path(target.as_deref().filter(|next| next.len() <= NEXT_BYTES_MAX));
    match authorization(&admin, &asked, next).await {
        Ok((cookie, to)) => ([(header::SET_COOKIE, cookie)], Redirect::to(&to)).into_response(),
        Err(failure) => failure.page(&admin, &asked, next),
    }
}

/// The cookie of a new sign-in, and the address that the browser goes to.
async fn authorization(admin: &Admin, asked: &Asked, next: &str) -> Result<(HeaderValue, String), Failure> {
    let oidc = configured(admin)?;
    let flow = Flow { id: sessions::random_text().ok_or(Failure::NoRandom)?, next: next.to_owned() };
    let derived = admin.sign_ins.derived(&flow.id)?;
    let endpoints = admin.sign_ins.endpoints(&oidc, &admin.shared.upstream.client).await?;
    let parameters = [
        ("response_type", "code"),
        ("client_id", &oidc.client_id),
        ("redirect_uri", &redirect_url(&oidc, asked)),
        ("scope", &oidc.scope),
        ("state", &derived.state),
        ("nonce", &derived.nonce),
        ("code_challenge", &oidc::challenge(&derived.verifier)),
        ("code_challenge_method", "S256"),
    ];
    let separator = if endpoints.authorization.contains('?') { '&' } else { '?' };
    let to = format!("{}{separator}{}", endpoints.authorization, form(&parameters));
    let until_s = Timestamp::now().as_second().saturating_add(FLOW_MAX.as_secs().cast_signed());
    let text = admin.sign_ins.sealed(&flow, until_s)?;
    Ok((flow_cookie(&asked.headers, &text, FLOW_MAX.as_secs()), to))
}

fn configured(admin: &Admin) -> Result<Arc<Oidc>, Failure> {
    admin.shared.live.load_full().server.oidc.clone().ok_or(Failure::Off)
}

/// Where the provider is to send the browser back to: the configured address, or the one that the browser came to.
fn redirect_url(oidc: &Oidc, asked: &Asked) -> String {
    match &oidc.redirect_url {
        Some(url) => url.to_string(),
        None => {
            let scheme = if login::is_over_tls(&asked.headers) { "https" } else { "http" };
            format!("{scheme}://{}{CALLBACK}", asked.host)
        }
    }
}

// === the way back ===

async fn finish(State(admin): State<Admin>, request: Request) -> Response {
    let asked = Asked::of(&request);
    let over = (header::SET_COOKIE, flow_cookie(&asked.headers, "", 0));
    match signed_in(&admin, &asked).await {
        Ok((id, next)) => {
            let session = (header::SET_COOKIE, login::cookie(&asked.headers, &id, AGE_MAX.as_secs()));
            // Not a redirect: that would belong to the other site's navigation still, and browsers send no `Strict` cookie with it.
            let page = Door::choosing(None, &asked.headers).page(StatusCode::OK, "signed_in.html", &next, &json!({}));
            (AppendHeaders([session, over]), page).into_response()
        }
        Err(failure) => (AppendHeaders([over]), failure.page(&admin, &asked, "/")).into_response(),
    }
}

/// The id of the session that has begun, and where its owner wanted to go.
async fn signed_in(admin: &Admin, asked: &Asked) -> Result<(String, String), Failure> {
    let oidc = configured(admin)?;
    let Query(returned) = Query::<Returned>::try_from_uri(&asked.uri).map_err(|_| Failure::Lost)?;
    let shown = login::shown_cookie(&asked.headers, cookie_name(&asked.headers)).ok_or(Failure::Lost)?;
    let flow = admin.sign_ins.opened(shown, Timestamp::now().as_second()).ok_or(Failure::Lost)?;
    let derived = admin.sign_ins.derived(&flow.id)?;
    let state = returned.state.unwrap_or_default();
    if !bool::from(state.as_bytes().ct_eq(derived.state.as_bytes())) {
        return Err(Failure::Lost);
    }
    if returned.iss.is_some_and(|iss| *iss != *oidc.issuer) {
        return Err(Failure::Odd("its answer names another `iss`".to_owned()));
    }
    if let Some(error) = returned.error {
        return Err(Failure::Denied(code_of(&error)));
    }
    let code = returned.code.ok_or(Failure::Lost)?;
    if let Some(wait) = admin.attempts.wait(asked.peer, Instant::now()) {
        return Err(Failure::TooMany(wait));
    }
    let person = person(admin, &oidc, asked, &code, &derived).await.inspect_err(|failure| {
        if matches!(failure, Failure::Denied(_) | Failure::Unfit(_)) {
            admin.attempts.failed(asked.peer, Instant::now());
        }
    })?;
    let role = person.role(Some(&oidc)).ok_or(Failure::NoRole)?;
    tracing::info!(name = %person.name(), role = role.label(), "signed in");
    let id = login::begin(admin, &asked.headers, Owner::Person(Arc::new(person))).ok_or(Failure::NoRandom)?;
    Ok((id, flow.next))
}

/// Who has got `code` from the provider.
async fn person(admin: &Admin, oidc: &Oidc, asked: &Asked, code: &str, derived: &Derived) -> Result<Person, Failure> {
    let client = &admin.shared.upstream.client;
    let endpoints = admin.sign_ins.endpoints(oidc, client).await?;
    let request = token_request(oidc, &endpoints, &redirect_url(oidc, asked), code, &derived.verifier);
    let (status, body) = exchange(client, request).await?;
    if !status.is_success() {
        let told = serde_json::from_slice::<TokenError>(&body).map(|told| code_of(&told.error));
        return Err(match told {
            Ok(told) => Failure::Denied(told),
            Err(_) => Failure::Away(format!("its token endpoint answered {status}")),
        });
    }
    let tokens: Tokens = parsed(&body, "the token endpoint's answer")?;
    let no_token = || Failure::Odd("the token endpoint's answer has no `id_token`".to_owned());
    let expected = Expected {
        issuer: &oidc.issuer,
        client_id: &oidc.client_id,
        nonce: &derived.nonce,
        role_claim: &oidc.role_claim,
    };
    let id_token = tokens.id_token.ok_or_else(no_token)?;
    let identity = oidc::check(&id_token, expected, Timestamp::now().as_second()).map_err(Failure::Unfit)?;
    Ok(Person { issuer: oidc.issuer.clone(), client_id: oidc.client_id.clone(), identity })
}

/// RFC 6749 §4.1.3, §2.3.1; RFC 7636 §4.5.
fn token_request(oidc: &Oidc, to: &Endpoints, redirect_url: &str, code: &str, verifier: &str) -> http::Request<Bytes> {
    let mut parameters = vec![
        ("grant_type", "authorization_code"),
        ("code", code),
        ("redirect_uri", redirect_url),
        ("code_verifier", verifier),
    ];
    let mut authorization = None;
    match &oidc.client_secret {
        Some(secret) if to.takes_basic => {
            let pair = format!("{}:{}", percent_encoded(&oidc.client_id), percent_encoded(secret.expose()));
            authorization = HeaderValue::try_from(format!("Basic {}", BASE64.encode(pair))).ok();
        }
        Some(secret) => parameters.extend([("client_id", &*oidc.client_id), ("client_secret", secret.expose())]),
        None => parameters.push(("client_id", &oidc.client_id)),
    }
    let mut request = http::Request::new(Bytes::from(form(&parameters)));
    *request.method_mut() = http::Method::POST;
    *request.uri_mut() = to.token.clone();
    let headers = request.headers_mut();
    let kind = HeaderValue::from_static("application/x-www-form-urlencoded");
    headers.insert(header::CONTENT_TYPE, kind);
    if let Some(mut authorization) = authorization {
        authorization.set_sensitive(true);
        headers.insert(header::AUTHORIZATION, authorization);
    }
    request
}

// === what is asked of the provider ===

impl SignIns {
    pub(super) fn new() -> SignIns {
        SignIns { key: sessions::random_text(), discovered: Mutex::default() }
    }

    /// Where the provider is asked. One asks at a time: a provider that hangs is not asked by everybody who wants to come in.
    async fn endpoints(&self, oidc: &Oidc, post: &dyn Post) -> Result<Arc<Endpoints>, Failure> {
        let mut discovered = self.discovered.lock().await;
        let known = discovered.as_ref().filter(|known| known.issuer == oidc.issuer && known.holds(Instant::now()));
        if let Some(known) = known {
            return known.found.clone();
        }
        let found = discover(oidc, post).await.map(Arc::new);
        *discovered = Some(Discovered { issuer: oidc.issuer.clone(), at: Instant::now(), found: found.clone() });
        found
    }
}

impl Discovered {
    fn holds(&self, now: Instant) -> bool {
        let long = if self.found.is_ok() { DISCOVERED_FOR } else { AWAY_FOR };
        now.saturating_duration_since(self.at) < long
    }
}

/// OpenID Connect Discovery §4.
async fn discover(oidc: &Oidc, post: &dyn Post) -> Result<Endpoints, Failure> {
    let at = format!("{}/.well-known/openid-configuration", oidc.issuer.trim_end_matches('/'));
    let mut request = http::Request::new(Bytes::new());
    *request.uri_mut() = at.parse().map_err(|_| Failure::Odd("`server.oidc.issuer` is no address".to_owned()))?;
    let (status, body) = exchange(post, request).await?;
    if status != StatusCode::OK {
        return Err(Failure::Away(format!("its discovery document was answered with {status}")));
    }
    endpoints(oidc, parsed(&body, "the discovery document")?)
}

fn endpoints(oidc: &Oidc, metadata: Metadata) -> Result<Endpoints, Failure> {
    if *metadata.issuer != *oidc.issuer {
        let own = metadata.issuer.escape_debug().take(200).collect::<String>();
        return Err(Failure::Odd(format!(
            "it calls itself `{own}`: write that in `server.oidc.issuer`, to the letter"
        )));
    }
    let is_here = oidc.issuer.starts_with("http:");
    let believed = |text: &str, name: &str| {
        let url: Option<Uri> = text.parse().ok();
        let is_tls = |url: &Uri| url.scheme_str() == Some("https");
        url.filter(|url| (is_tls(url) || (is_here && oidc::may_be_believed(url))) && !text.contains('#'))
            .ok_or_else(|| Failure::Odd(format!("its `{name}` is no https URL")))
    };
    believed(&metadata.authorization_endpoint, "authorization_endpoint")?;
    let methods = metadata.token_endpoint_auth_methods_supported;
    Ok(Endpoints {
        token: believed(&metadata.token_endpoint, "token_endpoint")?,
        authorization: metadata.authorization_endpoint,
        takes_basic: methods.is_none_or(|methods| methods.iter().any(|method| method == "client_secret_basic")),
    })
}

/// One answer: its status and up to 64 KiB of it. Redirects are not followed.
async fn exchange(post: &dyn Post, mut request: http::Request<Bytes>) -> Result<(StatusCode, Bytes), Failure> {
    request.headers_mut().insert(header::ACCEPT, HeaderValue::from_static("application/json"));
    match tokio::time::timeout(TIMEOUT, post.post(request)).await {
        Ok(Ok(reply)) => Ok((reply.status, reply.body)),
        Ok(Err(unreachable)) => Err(Failure::Away(unreachable.to_string())),
        Err(_) => Err(Failure::Away("no answer in time".to_owned())),
    }
}

fn parsed<T: DeserializeOwned>(body: &[u8], what: &str) -> Result<T, Failure> {
    // Without serde's own words, which may repeat what stands there.
    serde_json::from_slice(body).map_err(|_| Failure::Odd(format!("{what} is not what OpenID Connect says")))
}

fn form(parameters: &[(&str, &str)]) -> String {
    let pairs = parameters.iter().map(|(name, value)| format!("{name}={}", percent_encoded(value)));
    pairs.collect::<Vec<String>>().join("&")
}

/// A provider's code for an error, where it is one that may be shown.
fn code_of(error: &str) -> String {
    let is_code =
        !error.is_empty() && error.len() <= 64 && error.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_');
    if is_code { error.to_owned() } else { "an error without a name".to_owned() }
}

// === what the browser keeps ===

/// A sign-in under way.
#[derive(Debug, PartialEq, Eq)]
struct Flow {
    /// From which all else follows.
    id: String,
    /// Where they wanted to go.
    next: String,
}

/// What follows from a sign-in's id, and cannot be known without the key.
struct Derived {
    state: String,
    nonce: String,
    /// PKCE's: 43 characters, as RFC 7636 §4.1 wants them.
    verifier: String,
}

impl SignIns {
    fn derived(&self, id: &str) -> Result<Derived, Failure> {
        let of = |purpose| self.mac(purpose, id).ok_or(Failure::NoRandom);
        Ok(Derived { state: of("state")?, nonce: of("nonce")?, verifier: of("verifier")? })
    }

    /// A sign-in as its cookie: `id.until.next.signature`.
    fn sealed(&self, flow: &Flow, until_s: i64) -> Result<String, Failure> {
        let text = format!("{}.{until_s}.{}", flow.id, BASE64_URL.encode(&flow.next));
        let signature = self.mac("cookie", &text).ok_or(Failure::NoRandom)?;
        Ok(format!("{text}.{signature}"))
    }

    /// The sign-in of a cookie that was made here and is not over.
    fn opened(&self, cookie: &str, now_s: i64) -> Option<Flow> {
        let (text, signature) = cookie.rsplit_once('.')?;
        if !bool::from(self.mac("cookie", text)?.as_bytes().ct_eq(signature.as_bytes())) {
            return None;
        }
        let mut parts = text.split('.');
        let (id, until_s, next) = (parts.next()?, parts.next()?, parts.next()?);
        let until_s: i64 = until_s.parse().ok()?;
        let next = String::from_utf8(BASE64_URL.decode(next).ok()?).ok()?;
        (now_s < until_s).then(|| Flow { id: id.to_owned(), next })
    }

    fn mac(&self, purpose: &str, text: &str) -> Option<String> {
        let mut mac = Hmac::<Sha256>::new_from_slice(self.key.as_ref()?.as_bytes()).ok()?;
        mac.update(purpose.as_bytes());
        mac.update(b":");
        mac.update(text.as_bytes());
        Some(BASE64_URL.encode(mac.finalize().into_bytes()))
    }
}

fn cookie_name(headers: &HeaderMap) -> &'static str {
    if login::is_over_tls(headers) { COOKIE_TLS } else { COOKIE }
}

fn flow_cookie(headers: &HeaderMap, text: &str, seconds: u64) -> HeaderValue {
    let secure = if login::is_over_tls(headers) { "; Secure" } else { "" };
    let name = cookie_name(headers);
    let text = format!("{name}={text}; Path=/; Max-Age={seconds}; HttpOnly; SameSite=Lax{secure}");
    HeaderValue::from_str(&text).expect("digits, dots and base64url are a header's value")
}

// === why nobody comes in ===

impl Asked {
    fn of(request: &Request) -> Asked {
        Asked {
            uri: request.uri().clone(),
            headers: request.headers().clone(),
            host: guard::host(request).unwrap_or_default().to_owned(),
            peer: guard::peer(request),
        }
    }
}

impl Failure {
    /// The page where one signs in, with what is wrong and its mend.
    fn page(&self, admin: &Admin, asked: &Asked, next: &str) -> Response {
        let (status, what, why) = self.told();
        match self {
            Failure::Lost | Failure::Off | Failure::TooMany(_) => {}
            _ => tracing::warn!(status = status.as_u16(), why, "nobody was signed in by OpenID Connect: {what}"),
        }
        let door = Door::choosing(None, &asked.headers);
        let mut response = login::page_with(admin, door, status, next, (door.say(what), &why));
        if let Failure::TooMany(wait) = self {
            response.headers_mut().insert(header::RETRY_AFTER, wait.as_secs().into());
        }
        response
    }

    /// The status, a sentence for whoever wants to come in, and one for whoever set it up.
    fn told(&self) -> (StatusCode, &'static str, String) {
        use super::dashboard::word;
        match self {
            Failure::Off => (
                StatusCode::NOT_FOUND,
                word("There is no provider to sign in with. Show a token instead."),
                "`server.oidc` is not set".to_owned(),
            ),
            Failure::NoRandom => (
                StatusCode::SERVICE_UNAVAILABLE,
                word("Nobody can be signed in just now."),
                "the system gives no random bytes".to_owned(),
            ),
            Failure::Lost => (
                StatusCode::BAD_REQUEST,
                word("This sign-in took too long, or was begun elsewhere. Begin again."),
                String::new(),
            ),
            Failure::Away(why) => (
                StatusCode::BAD_GATEWAY,
                word("The provider does not answer. Try again, or show a token."),
                why.clone(),
            ),
            Failure::Odd(why) => (
                StatusCode::BAD_GATEWAY,
                word("The provider does not answer as it should. Whoever set it up can mend that."),
                why.clone(),
            ),
            Failure::Denied(code) => (
                StatusCode::FORBIDDEN,
                word("The provider refuses. Ask whoever administrates it."),
                format!(
                    "it says `{code}`; compare `client_id`, `client_secret` and `redirect_url` with what is registered there"
                ),
            ),
            Failure::Unfit(unfit) => (
                StatusCode::BAD_GATEWAY,
                word("What the provider says does not hold. Whoever set it up can mend that."),
                format!("of its ID token: {unfit}"),
            ),
            Failure::NoRole => (
                StatusCode::FORBIDDEN,
                word("The provider knows you, but you have no role here. Ask an admin for one."),
                "no value of the claim `role_claim` is in `server.oidc.roles`".to_owned(),
            ),
            Failure::TooMany(_) => {
                (StatusCode::TOO_MANY_REQUESTS, word("Too many attempts failed; wait a little."), String::new())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn oidc(issuer: &str) -> Oidc {
        Oidc {
            issuer: issuer.into(),
            client_id: "toll gate".into(),
            client_secret: Some(crate::config::secret::SecretString::new("s:ä")),
            redirect_url: None,
            scope: "openid".into(),
            role_claim: "groups".into(),
            roles: Vec::new(),
        }
    }

    fn metadata(authorization: &str, token: &str) -> Metadata {
        Metadata {
            issuer: "https://id.example.org".to_owned(),
            authorization_endpoint: authorization.to_owned(),
            token_endpoint: token.to_owned(),
            token_endpoint_auth_methods_supported: None,
        }
    }

    #[test]
    fn a_sign_in_is_the_browsers_own_until_it_is_over() {
        let (sign_ins, others) = (SignIns::new(), SignIns::new());
        let flow = Flow { id: "0af".to_owned(), next: "/calls?a=b.c".to_owned() };
        let cookie = sign_ins.sealed(&flow, 1000).expect("a key");
        assert_eq!(sign_ins.opened(&cookie, 999), Some(flow));
        assert_eq!(sign_ins.opened(&cookie, 1000), None, "it is over");
        assert_eq!(others.opened(&cookie, 999), None, "another process' key");
        for forged in [cookie.replacen("0af", "0b0", 1), cookie.replacen("1000", "9000", 1), cookie[1..].to_owned()] {
            assert_eq!(sign_ins.opened(&forged, 999), None, "{forged}");
        }
        for broken in ["", ".", "...", "a.b.c.d"] {
            assert_eq!(sign_ins.opened(broken, 999), None, "{broken}");
        }
    }

    #[test]
    fn what_follows_from_an_id_is_long_and_never_the_same() {
        let sign_ins = SignIns::new();
        let all: std::collections::HashSet<String> = ["a", "b"]
            .into_iter()
            .flat_map(|id| {
                let derived = sign_ins.derived(id).unwrap_or_else(|_| panic!("a key"));
                [derived.state, derived.nonce, derived.verifier]
            })
            .collect();
        assert_eq!(all.len(), 6);
        assert!(all.iter().all(|text| text.len() == 43));
    }

    #[test]
    fn a_provider_is_believed_by_its_own_name_and_over_tls_alone() {
        let own = oidc("https://id.example.org");
        let found = |metadata| endpoints(&own, metadata);
        let good = found(metadata("https://id.example.org/a?x=1", "https://token.example.org/t")).expect("it does");
        assert!(good.takes_basic && good.token.host() == Some("token.example.org"));
        for bad in [
            metadata("http://id.example.org/a", "https://id.example.org/t"),
            metadata("https://id.example.org/a", "http://id.example.org/t"),
            metadata("https://id.example.org/a", "http://localhost/t"),
            metadata("javascript:alert(1)", "https://id.example.org/t"),
            metadata("https://id.example.org/a", "/t"),
        ] {
            assert!(matches!(found(bad), Err(Failure::Odd(_))));
        }
        let other = endpoints(
            &oidc("https://id.example.org/"),
            metadata("https://id.example.org/a", "https://id.example.org/t"),
        );
        let Err(Failure::Odd(why)) = other else { panic!("{other:?}") };
        assert!(why.contains("calls itself `https://id.example.org`"), "{why}");
    }

    #[test]
    fn the_client_proves_itself_as_the_provider_wants_it() {
        let request = |secret: bool, takes_basic: bool| {
            let mut oidc = oidc("https://id.example.org");
            oidc.client_secret = oidc.client_secret.filter(|_| secret);
            let token = Uri::from_static("https://id.example.org/t");
            let endpoints = Endpoints { authorization: String::new(), token, takes_basic };
            let request = token_request(&oidc, &endpoints, "http://h/x", "c&d", "v");
            let header = request.headers().get("authorization").map(|value| value.to_str().expect("text").to_owned());
            (header, String::from_utf8(request.body().to_vec()).expect("text"))
        };
        let begins = "grant_type=authorization_code&code=c%26d&redirect_uri=http%3A%2F%2Fh%2Fx&code_verifier=v";
        // RFC 6749 §2.3.1: encoded as in a form first.
        let basic = format!("Basic {}", BASE64.encode("toll%20gate:s%3A%C3%A4"));
        assert_eq!(request(true, true), (Some(basic), begins.to_owned()));
        assert_eq!(request(true, false), (None, format!("{begins}&client_id=toll%20gate&client_secret=s%3A%C3%A4")));
        assert_eq!(request(false, true), (None, format!("{begins}&client_id=toll%20gate")));
    }

    #[test]
    fn a_providers_error_is_shown_where_it_is_a_code() {
        assert_eq!(code_of("access_denied"), "access_denied");
        for odd in ["", "<b>", "call +49 …", &"x".repeat(65)] {
            assert_eq!(code_of(odd), "an error without a name", "{odd}");
        }
    }
}
