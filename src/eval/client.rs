//! A small HTTP client: evaluations call their gateway over real sockets, as anybody would, and retry what may pass.

use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, Request, StatusCode, Uri, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::{
    client::legacy::{Client as HyperClient, connect::HttpConnector},
    rt::{TokioExecutor, TokioTimer},
};
use serde_json::Value;

use crate::config::secret::SecretString;

/// The longest reply that is read.
const REPLY_BYTES_MAX: usize = 64 << 20;
/// Attempts of one call.
const ATTEMPTS_MAX: u32 = 5;
/// The first pause between attempts, doubled with each; and the longest, whatever `retry-after` says.
const PAUSE: Duration = Duration::from_millis(500);
const PAUSE_MAX: Duration = Duration::from_secs(30);

/// Why there is no reply.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ClientError {
    /// The URL is none of HTTP.
    #[error("`{0}` is no URL; write `http://127.0.0.1:8080`")]
    Url(String),
    /// A header cannot be sent.
    #[error("the {0} cannot stand in a header")]
    Header(&'static str),
    /// Nobody answers there.
    #[error("{0} cannot be reached: {1}")]
    Unreachable(String, String),
    /// The reply did not come, or not whole.
    #[error("no whole reply within {} s", .0.as_secs())]
    TimedOut(Duration),
    /// The reply broke off.
    #[error("the reply broke off: {0}")]
    Broken(String),
}

/// A reply, read to its end.
#[derive(Debug, Clone)]
pub struct Reply {
    /// Its status.
    pub status: StatusCode,
    /// Its headers.
    pub headers: HeaderMap,
    /// Its body.
    pub body: Bytes,
    /// From sending the request, the last one where there were several, to the last byte.
    pub took: Duration,
}

impl Reply {
    /// The body as JSON; `null` where it is none.
    #[must_use]
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_default()
    }

    /// A header as text.
    #[must_use]
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }

    /// What an error reply says: of the chat API, of the admin API, or its status.
    #[must_use]
    pub fn complaint(&self) -> String {
        let body = self.json();
        let said = body["error"]["message"].as_str().or(body["detail"].as_str()).or(body["message"].as_str());
        said.map_or_else(|| format!("answered {}", self.status), |said| format!("{}: {said}", self.status.as_u16()))
    }
}

/// Calls one server.
#[derive(Debug, Clone)]
pub struct Client {
    http: HyperClient<HttpsConnector<HttpConnector>, Full<Bytes>>,
    base: String,
    authorization: Option<HeaderValue>,
    timeout: Duration,
}

impl Client {
    /// A client of the server at `base`, which may end in `/v1`; `timeout` is for one attempt.
    ///
    /// # Errors
    /// When `base` is no URL, or `key` cannot stand in a header.
    pub fn new(base: &str, key: Option<&SecretString>, timeout: Duration) -> Result<Client, ClientError> {
        let base = base.trim_end_matches('/');
        let base = base.strip_suffix("/v1").unwrap_or(base);
        let uri: Uri = base.parse().map_err(|_| ClientError::Url(base.to_owned()))?;
        if !matches!(uri.scheme_str(), Some("http" | "https")) {
            return Err(ClientError::Url(base.to_owned()));
        }
        let authorization = key.map(|key| {
            let mut value = HeaderValue::from_str(&format!("Bearer {}", key.expose()))?;
            value.set_sensitive(true);
            Ok::<_, http::header::InvalidHeaderValue>(value)
        });
        let authorization = authorization.transpose().map_err(|_| ClientError::Header("key"))?;
        let provider = rustls::crypto::aws_lc_rs::default_provider();
        let tls = HttpsConnectorBuilder::new().with_provider_and_native_roots(provider);
        let tls = tls.map_err(|error| ClientError::Unreachable(base.to_owned(), error.to_string()))?;
        let connector = tls.https_or_http().enable_http1().build();
        let http = HyperClient::builder(TokioExecutor::new()).pool_timer(TokioTimer::new()).build(connector);
        Ok(Client { http, base: base.to_owned(), authorization, timeout })
    }

    /// The server.
    #[must_use]
    pub fn base(&self) -> &str {
        &self.base
    }

    /// One attempt, whatever its reply says.
    ///
    /// # Errors
    /// When there is no whole reply.
    pub async fn once(
        &self,
        method: &Method,
        path: &str,
        headers: &HeaderMap,
        body: Bytes,
    ) -> Result<Reply, ClientError> {
        let mut request = Request::builder().method(method).uri(format!("{}{path}", self.base));
        if let Some(all) = request.headers_mut() {
            all.extend(headers.iter().map(|(name, value)| (name.clone(), value.clone())));
            all.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
            if let Some(authorization) = &self.authorization {
                all.insert(header::AUTHORIZATION, authorization.clone());
            }
        }
        let request = request.body(Full::from(body)).map_err(|_| ClientError::Url(format!("{}{path}", self.base)))?;
        let exchange = tokio::time::timeout(self.timeout, self.exchange(request));
        exchange.await.unwrap_or(Err(ClientError::TimedOut(self.timeout)))
    }

    async fn exchange(&self, request: Request<Full<Bytes>>) -> Result<Reply, ClientError> {
        let began = Instant::now();
        let response = self.http.request(request).await.map_err(|error| {
            let why = std::error::Error::source(&error).map_or_else(|| error.to_string(), ToString::to_string);
            ClientError::Unreachable(self.base.clone(), why)
        })?;
        let (head, body) = response.into_parts();
        let body = Limited::new(body, REPLY_BYTES_MAX).collect().await;
        let body = body.map_err(|error| ClientError::Broken(error.to_string()))?.to_bytes();
        Ok(Reply { status: head.status, headers: head.headers, body, took: began.elapsed() })
    }

    /// Posts JSON, again where that may help: a limit that passes, a server that fails, a connection that breaks.
    ///
    /// Gives back how many attempts there were, too.
    ///
    /// # Errors
    /// When the last attempt has no whole reply.
    pub async fn post(&self, path: &str, headers: &HeaderMap, body: &Value) -> (u32, Result<Reply, ClientError>) {
        let body = Bytes::from(body.to_string());
        for attempt in 1.. {
            let reply = self.once(&Method::POST, path, headers, body.clone()).await;
            match pause_after(attempt, &reply) {
                Some(pause) if attempt < ATTEMPTS_MAX => tokio::time::sleep(pause).await,
                _ => return (attempt, reply),
            }
        }
        unreachable!("the last attempt returns")
    }
}

/// How long to wait before another attempt; `None` where there should be none.
fn pause_after(attempt: u32, reply: &Result<Reply, ClientError>) -> Option<Duration> {
    let backoff = PAUSE.saturating_mul(1 << attempt.saturating_sub(1).min(8)).min(PAUSE_MAX);
    match reply {
        Err(ClientError::Unreachable(..) | ClientError::Broken(_)) => Some(backoff),
        Err(_) => None,
        Ok(reply) => {
            let passing = reply.status == StatusCode::TOO_MANY_REQUESTS || reply.status.is_server_error();
            // A budget that is spent stays so: the gateway says that trying again is in vain.
            let in_vain = reply.header("x-should-retry") == Some("false");
            let asked = reply.header("retry-after").and_then(|seconds| seconds.parse().ok()).map(Duration::from_secs);
            (passing && !in_vain).then(|| asked.unwrap_or(backoff).min(PAUSE_MAX))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reply(status: u16, headers: &[(&'static str, &'static str)]) -> Result<Reply, ClientError> {
        let headers =
            headers.iter().map(|(name, value)| (http::HeaderName::from_static(name), HeaderValue::from_static(value)));
        let status = StatusCode::from_u16(status).unwrap();
        Ok(Reply { status, headers: headers.collect(), body: Bytes::new(), took: Duration::ZERO })
    }

    #[test]
    fn only_what_may_pass_is_tried_again_and_never_waited_for_long() {
        let seconds = |reply: &Result<Reply, ClientError>| pause_after(2, reply).map(|pause| pause.as_secs_f64());
        assert_eq!(seconds(&reply(200, &[])), None);
        assert_eq!(seconds(&reply(400, &[])), None);
        assert_eq!(seconds(&reply(503, &[])), Some(1.0));
        assert_eq!(seconds(&reply(429, &[("retry-after", "7")])), Some(7.0));
        assert_eq!(seconds(&reply(429, &[("retry-after", "86400")])), Some(30.0));
        assert_eq!(seconds(&reply(429, &[("retry-after", "7"), ("x-should-retry", "false")])), None);
        assert_eq!(seconds(&Err(ClientError::Broken(String::new()))), Some(1.0));
        assert_eq!(seconds(&Err(ClientError::TimedOut(Duration::from_secs(1)))), None);
    }

    #[test]
    fn a_base_url_may_end_in_v1_and_must_be_one() {
        let client = |base: &str| Client::new(base, None, Duration::from_secs(1)).map(|client| client.base);
        assert_eq!(client("http://127.0.0.1:8080/v1/").as_deref(), Ok("http://127.0.0.1:8080"));
        assert!(client("127.0.0.1:8080").is_err() && client("ftp://x").is_err());
    }
}
