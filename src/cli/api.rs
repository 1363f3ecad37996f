//! A running gateway's admin API, as commands ask it: where it is, what it answers, and how that is shown.

use std::{io::Write, path::PathBuf, time::Duration};

use anyhow::{Context, anyhow, bail};
use bytes::Bytes;
use clap::Args;
use http::{Method, Request, StatusCode, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper_rustls::HttpsConnectorBuilder;
use hyper_util::{client::legacy::Client, rt::TokioExecutor};
use serde::Serialize;
use serde_json::Value;

use super::{FAILED, UNREACHABLE, WRONG};
use crate::{
    admin::guard::ACTOR_HEADER,
    config::{self, ConfigError, Loaded},
};

/// Where a gateway with default listeners answers.
const DEFAULT_URL: &str = "http://127.0.0.1:9090";
/// All of one question to a gateway.
const TIMEOUT: Duration = Duration::from_secs(30);
/// The longest answer that is read.
const ANSWER_BYTES_MAX: usize = 64 << 20;
/// Rows of one page.
const PAGE: usize = 1000;

/// Which gateway is asked.
#[derive(Debug, Args)]
pub(super) struct Connection {
    /// Configuration that says where the gateway or its store is; default as for `serve`
    #[arg(long, value_name = "FILE", global = true, display_order = super::GLOBALS_ORDER)]
    pub(super) config: Option<PathBuf>,
    /// The gateway's admin listener, instead of the configuration's
    #[arg(long, value_name = "URL", global = true, display_order = super::GLOBALS_ORDER, env = "TOLLGATE_ADMIN_URL")]
    pub(super) url: Option<String>,
    /// The admin token, instead of the configuration's
    #[arg(long, value_name = "TOKEN", global = true, display_order = super::GLOBALS_ORDER, env = "TOLLGATE_ADMIN_TOKEN", hide_env_values = true)]
    pub(super) token: Option<String>,
}

/// Why it was not done, and the exit code that says so.
#[derive(Debug)]
pub struct Failure {
    /// In words.
    pub error: anyhow::Error,
    /// 1 refused as things stand, 2 wrong use, 3 not reached.
    pub code: u8,
}

impl From<anyhow::Error> for Failure {
    fn from(error: anyhow::Error) -> Failure {
        Failure { error, code: WRONG }
    }
}

impl From<std::io::Error> for Failure {
    fn from(error: std::io::Error) -> Failure {
        Failure { error: error.into(), code: FAILED }
    }
}

/// A running gateway that is asked.
#[derive(Debug)]
pub(super) struct Gateway {
    base: String,
    token: Option<String>,
}

impl Connection {
    /// The gateway that the arguments name, or else the configuration's.
    ///
    /// # Errors
    /// When the configuration is wrong.
    pub(super) fn gateway(&self) -> Result<Gateway, Failure> {
        let typed = self.token.clone().filter(|token| !token.is_empty());
        if let Some(url) = &self.url {
            return Ok(Gateway { base: url.trim_end_matches('/').to_owned(), token: typed });
        }
        let snapshot = match config::load(self.config.as_deref()) {
            Ok(Loaded { snapshot, .. }) => snapshot,
            Err(ConfigError::NothingConfigured) => return Ok(Gateway { base: DEFAULT_URL.to_owned(), token: typed }),
            Err(error) => return Err(anyhow!(error).into()),
        };
        let mut address = snapshot.server.admin;
        if address.ip().is_unspecified() {
            address.set_ip(if address.is_ipv4() {
                [127, 0, 0, 1].into()
            } else {
                std::net::Ipv6Addr::LOCALHOST.into()
            });
        }
        let configured = snapshot.server.admin_token.as_ref().map(|token| token.expose().to_owned());
        Ok(Gateway { base: format!("http://{address}"), token: typed.or(configured) })
    }
}

impl Gateway {
    /// All pages of the list at `path`.
    ///
    /// # Errors
    /// When nobody answers, or the answer is no.
    pub(super) async fn all(&self, path: &str) -> Result<Value, Failure> {
        let (mut all, mut next) = (Vec::new(), Some(format!("{path}?limit={PAGE}")));
        while let Some(path) = next {
            let (page, link) = self.get(&path).await?;
            let Value::Array(rows) = page else { return Err(anyhow!("{} is no gateway", self.base).into()) };
            all.extend(rows);
            next = link.and_then(|link| Some(link.strip_prefix('<')?.split_once(">; rel=\"next\"")?.0.to_owned()));
        }
        Ok(Value::Array(all))
    }

    /// What `path` answers, and its `Link`.
    ///
    /// # Errors
    /// When nobody answers, or the answer is no.
    pub(super) async fn get(&self, path: &str) -> Result<(Value, Option<String>), Failure> {
        self.ask(self.request(Method::GET, path).body(Full::default())).await
    }

    /// What `path` answers, as it is.
    ///
    /// # Errors
    /// When nobody answers, or the answer is no.
    pub(super) async fn get_text(&self, path: &str) -> Result<String, Failure> {
        let (body, _) = self.answer(self.request(Method::GET, path).body(Full::default())).await?;
        Ok(String::from_utf8_lossy(&body).into_owned())
    }

    /// Does something, in the name of the system's user. `key` is its `Idempotency-Key`.
    ///
    /// # Errors
    /// When nobody answers, or the answer is no.
    pub(super) async fn post(&self, path: &str, request: &impl Serialize, key: Option<&str>) -> Result<Value, Failure> {
        let mut asked = self.change(Method::POST, path).header(header::CONTENT_TYPE, "application/json");
        if let Some(key) = key {
            asked = asked.header("idempotency-key", key);
        }
        let body = serde_json::to_vec(request).context("the request cannot be written")?;
        self.ask(asked.body(Full::from(body))).await.map(|(answer, _)| answer)
    }

    /// Takes something away, in the name of the system's user.
    ///
    /// # Errors
    /// When nobody answers, or the answer is no.
    pub(super) async fn delete(&self, path: &str) -> Result<Value, Failure> {
        self.ask(self.change(Method::DELETE, path).body(Full::default())).await.map(|(answer, _)| answer)
    }

    fn change(&self, method: Method, path: &str) -> http::request::Builder {
        let asked = self.request(method, path);
        match user() {
            Some(user) => asked.header(ACTOR_HEADER, user),
            None => asked,
        }
    }

    fn request(&self, method: Method, path: &str) -> http::request::Builder {
        let request = Request::builder().method(method).uri(format!("{}{path}", self.base));
        match &self.token {
            Some(token) => request.header(header::AUTHORIZATION, format!("Bearer {token}")),
            None => request,
        }
    }

    /// The answer and its `Link`.
    async fn ask(&self, request: http::Result<Request<Full<Bytes>>>) -> Result<(Value, Option<String>), Failure> {
        let (body, link) = self.answer(request).await?;
        Ok((serde_json::from_slice(&body).unwrap_or_default(), link))
    }

    async fn answer(&self, request: http::Result<Request<Full<Bytes>>>) -> Result<(Bytes, Option<String>), Failure> {
        let request = request.map_err(|_| no_url(&self.base))?;
        if !matches!(request.uri().scheme_str(), Some("http" | "https")) {
            return Err(no_url(&self.base).into());
        }
        let exchange = tokio::time::timeout(TIMEOUT, exchange(request));
        let answer = exchange.await.unwrap_or_else(|_| Err(anyhow!("no answer within {} s", TIMEOUT.as_secs())));
        let unreachable = |error: anyhow::Error| {
            let what = format!("{} cannot be reached: is a gateway running there? --url says where else", self.base);
            Failure { error: error.context(what), code: UNREACHABLE }
        };
        let (status, link, body) = answer.map_err(unreachable)?;
        if status.is_success() {
            return Ok((body, link));
        }
        let answer: Value = serde_json::from_slice(&body).unwrap_or_default();
        let why = answer["detail"].as_str().map_or_else(|| format!("{} answered {status}", self.base), str::to_owned);
        let code = match status {
            StatusCode::CONFLICT => FAILED,
            status if status.is_server_error() => UNREACHABLE,
            _ => WRONG,
        };
        Err(Failure { error: anyhow!(why), code })
    }
}

fn no_url(base: &str) -> anyhow::Error {
    anyhow!("`{base}` is no URL of a gateway; write it as {DEFAULT_URL}")
}

async fn exchange(request: Request<Full<Bytes>>) -> anyhow::Result<(StatusCode, Option<String>, Bytes)> {
    let provider = rustls::crypto::aws_lc_rs::default_provider();
    let response = match request.uri().scheme_str() {
        Some("http") => Client::builder(TokioExecutor::new()).build_http().request(request).await?,
        Some("https") => {
            let tls = HttpsConnectorBuilder::new().with_provider_and_native_roots(provider)?;
            let connector = tls.https_only().enable_http1().build();
            Client::builder(TokioExecutor::new()).build(connector).request(request).await?
        }
        _ => bail!("it begins with neither http:// nor https://"),
    };
    let (head, body) = response.into_parts();
    let link = head.headers.get(header::LINK).and_then(|link| link.to_str().ok()).map(str::to_owned);
    let body = Limited::new(body, ANSWER_BYTES_MAX).collect().await.map_err(|error| anyhow!(error))?;
    Ok((head.status, link, body.to_bytes()))
}

/// For a path: only what RFC 3986 calls unreserved stays as it is.
pub(super) fn encoded(text: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~".contains(&byte);
    text.bytes().map(|byte| if plain(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") }).collect()
}

// === showing ===

/// Writes what was answered. A reader such as `head` may have seen enough.
///
/// # Errors
/// When it cannot be written.
pub(super) fn print(out: &mut impl Write, said: &str) -> Result<(), Failure> {
    let written = out.write_all(said.as_bytes());
    written.or_else(|error| if error.kind() == std::io::ErrorKind::BrokenPipe { Ok(()) } else { Err(error) })?;
    Ok(())
}

/// The system's user, where it is a name that a header may hold.
pub(super) fn user() -> Option<String> {
    std::env::var("USER").ok().filter(|user| !user.is_empty() && user.bytes().all(|byte| byte.is_ascii_graphic()))
}

/// Columns of equal width; amounts, which begin with a digit, to the right.
pub(super) fn table(header: &[&str], rows: Vec<Vec<String>>) -> String {
    let header: Vec<String> = header.iter().map(|&name| name.to_owned()).collect();
    let is_amount =
        |cell: &str| cell.starts_with(|c: char| c.is_ascii_digit()) && cell.contains('.') && !cell.contains(':');
    let lines: Vec<Vec<String>> = std::iter::once(header).chain(rows).collect();
    let columns = lines.first().map_or(0, Vec::len);
    let width = |column: usize| lines.iter().map(|line| line[column].chars().count()).max().unwrap_or(0);
    let right = |column: usize| lines.iter().skip(1).any(|line| is_amount(&line[column]));
    let layout: Vec<(usize, bool)> = (0..columns).map(|column| (width(column), right(column))).collect();
    let padded = |line: &Vec<String>| {
        let cells = line.iter().zip(&layout).map(|(cell, &(width, right))| match right {
            true => format!("{cell:>width$}"),
            false => format!("{cell:width$}"),
        });
        cells.collect::<Vec<_>>().join("  ").trim_end().to_owned() + "\n"
    };
    lines.iter().map(padded).collect()
}

/// A text without control characters, which may come from whoever writes to the store; or `-`.
pub(super) fn text(value: &Value) -> String {
    value.as_str().unwrap_or("-").chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}

/// A time of the API, to the second: its nanoseconds are for programs.
pub(super) fn instant(value: &Value) -> String {
    match value.as_str().map(str::parse::<jiff::Timestamp>) {
        Some(Ok(at)) => at.strftime("%Y-%m-%dT%H:%M:%SZ").to_string(),
        _ => text(value),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn times_are_shown_to_the_second_and_what_is_none_as_it_is() {
        assert_eq!(instant(&json!("2026-11-24T02:43:29.199330212Z")), "2026-11-24T02:43:29Z");
        assert_eq!(instant(&json!("soon\n")), "soon\u{fffd}");
        assert_eq!(instant(&Value::Null), "-");
    }

    #[test]
    fn columns_are_of_equal_width_and_amounts_stand_to_the_right() {
        let rows = vec![vec!["a".to_owned(), "10.00".to_owned()], vec!["long".to_owned(), "0.5".to_owned()]];
        assert_eq!(table(&["NAME", "USD"], rows), "NAME    USD\na     10.00\nlong    0.5\n");
    }
}
