//! A small HTTP client: the demonstration calls its gateway over real sockets, as anybody would.

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use anyhow::{Context, anyhow};
use bytes::Bytes;
use http::{HeaderMap, Method, Request, StatusCode, header};
use http_body_util::{BodyExt, Full};
use hyper_util::{
    client::legacy::{Client as HyperClient, connect::HttpConnector},
    rt::TokioExecutor,
};
use serde_json::{Value, json};

/// No simulated reply takes nearly as long.
const CALL_TIMEOUT: Duration = Duration::from_secs(30);
/// How long the ledger is waited for after a reply, and how often it is asked.
const SETTLED_TIMEOUT: Duration = Duration::from_secs(2);
const SETTLED_INTERVAL: Duration = Duration::from_millis(5);

/// What a pretend user asks.
#[derive(Debug, Clone)]
pub(super) struct Ask {
    /// The virtual key.
    pub(super) key: &'static str,
    /// The user.
    pub(super) user: &'static str,
    /// The model.
    pub(super) model: &'static str,
    /// The user's message.
    pub(super) question: String,
    /// Whether the reply is wanted as a stream.
    pub(super) stream: bool,
    /// `max_tokens`, where the user sets one.
    pub(super) max_tokens: Option<u32>,
    /// What the simulated provider is to do, such as `error=503`.
    pub(super) simulate: Option<&'static str>,
}

/// A reply, read to its end.
#[derive(Debug)]
pub(super) struct Reply {
    pub(super) status: StatusCode,
    pub(super) headers: HeaderMap,
    pub(super) body: Bytes,
    /// Pieces that the body came in.
    pub(super) pieces: usize,
    /// From the call to the first piece, and to the last.
    pub(super) first: Duration,
    pub(super) last: Duration,
}

/// One account of the ledger.
#[derive(Debug, Clone, serde::Deserialize)]
pub(super) struct Account {
    pub(super) budget: String,
    pub(super) account: String,
    #[serde(rename = "limit_nanousd")]
    pub(super) limit: u64,
    #[serde(rename = "charged_nanousd")]
    pub(super) charged: u64,
    #[serde(rename = "reserved_nanousd")]
    pub(super) reserved: u64,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Client {
    http: HyperClient<HttpConnector, Full<Bytes>>,
    listen: SocketAddr,
    admin: SocketAddr,
}

impl Client {
    pub(super) fn new(listen: SocketAddr, admin: SocketAddr) -> Client {
        Client { http: HyperClient::builder(TokioExecutor::new()).build_http(), listen, admin }
    }

    /// Sends a chat and reads the whole reply.
    pub(super) async fn ask(&self, ask: &Ask) -> anyhow::Result<Reply> {
        let mut request = Request::builder()
            .method(Method::POST)
            .uri(format!("http://{}/v1/chat/completions", self.listen))
            .header(header::AUTHORIZATION, format!("Bearer {}", ask.key))
            .header(header::CONTENT_TYPE, "application/json");
        if let Some(simulate) = ask.simulate {
            // One try: what is shown is how an upstream's error comes through.
            request = request.header("x-simulate", simulate).header("x-tollgate-retries", "0");
        }
        self.send(request.body(Full::from(ask.body()))?).await
    }

    /// Says of a call whether it solved the user's problem.
    pub(super) async fn rate(&self, key: &str, call: &str, resolved: bool) -> anyhow::Result<()> {
        let rating = json!({ "call": call, "metric": "resolved", "value": resolved });
        let request = Request::builder()
            .method(Method::POST)
            .uri(format!("http://{}/v1/feedback", self.listen))
            .header(header::AUTHORIZATION, format!("Bearer {key}"))
            .header(header::CONTENT_TYPE, "application/json");
        self.send(request.body(Full::from(rating.to_string()))?).await.map(drop)
    }

    async fn send(&self, request: Request<Full<Bytes>>) -> anyhow::Result<Reply> {
        tokio::time::timeout(CALL_TIMEOUT, self.exchange(request))
            .await
            .map_err(|_| anyhow!("no whole reply within {} s", CALL_TIMEOUT.as_secs()))?
    }

    async fn exchange(&self, request: Request<Full<Bytes>>) -> anyhow::Result<Reply> {
        let began = Instant::now();
        let (head, mut body) = self.http.request(request).await?.into_parts();
        let mut bytes = Vec::new();
        let mut pieces = 0;
        let mut first = None;
        while let Some(frame) = body.frame().await {
            let Ok(piece) = frame?.into_data() else { continue };
            first.get_or_insert_with(|| began.elapsed());
            pieces += 1;
            bytes.extend_from_slice(&piece);
        }
        let last = began.elapsed();
        let (status, headers) = (head.status, head.headers);
        Ok(Reply { status, headers, body: bytes.into(), pieces, first: first.unwrap_or(last), last })
    }

    async fn admin(&self, path: &str) -> anyhow::Result<Bytes> {
        let request = Request::builder().uri(format!("http://{}{path}", self.admin)).body(Full::default())?;
        Ok(self.send(request).await?.body)
    }

    /// All accounts of the ledger.
    pub(super) async fn accounts(&self) -> anyhow::Result<Vec<Account>> {
        let body = self.admin("/api/budgets").await?;
        serde_json::from_slice(&body).context("the budgets are not what they should be")
    }

    /// All accounts, once no call is open any more: a call is settled just after its reply has ended.
    pub(super) async fn settled_accounts(&self) -> anyhow::Result<Vec<Account>> {
        let began = Instant::now();
        loop {
            let accounts = self.accounts().await?;
            if accounts.iter().all(|account| account.reserved == 0) {
                return Ok(accounts);
            }
            if began.elapsed() > SETTLED_TIMEOUT {
                return Err(anyhow!("a call was not settled within {} s", SETTLED_TIMEOUT.as_secs()));
            }
            tokio::time::sleep(SETTLED_INTERVAL).await;
        }
    }

    /// One line on what has happened so far; `None` when the gateway does not answer.
    pub(super) async fn status(&self) -> Option<String> {
        let metrics = self.admin("/metrics").await.ok()?;
        let metrics = std::str::from_utf8(&metrics).ok()?;
        let calls = |labels: &[&str]| sum(metrics, "tollgate_requests_total", labels);
        let variant = |name: &str| sum(metrics, "tollgate_experiment_calls_total", &[name]);
        Some(format!(
            "calls {:.0} (ok {:.0}, refused {:.0}, failed upstream {:.0})  control {:.0}, warm {:.0}  \
             spent {:.4} USD  greta's budget {:.0} % used",
            calls(&[]),
            calls(&["outcome=\"ok\""]),
            calls(&["outcome=\"refused\""]),
            calls(&["outcome=\"upstream_error\""]),
            variant("variant=\"control\""),
            variant("variant=\"warm\""),
            sum(metrics, "tollgate_cost_usd_total", &[]),
            100.0 * sum(metrics, "tollgate_budget_spent_ratio", &["budget=\"trial\""]),
        ))
    }
}

impl Ask {
    fn body(&self) -> String {
        let mut body = json!({
            "model": self.model,
            "user": self.user,
            "messages": [{"role": "user", "content": self.question}],
        });
        if self.stream {
            body["stream"] = json!(true);
            body["stream_options"] = json!({"include_usage": true});
        }
        if let Some(max_tokens) = self.max_tokens {
            body["max_tokens"] = json!(max_tokens);
        }
        body.to_string()
    }
}

impl Reply {
    /// A header, empty where there is none.
    pub(super) fn header(&self, name: &str) -> &str {
        self.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
    }

    /// The body as JSON; of a stream, its events.
    pub(super) fn events(&self) -> Vec<Value> {
        let text = String::from_utf8_lossy(&self.body);
        let events: Vec<Value> = text
            .lines()
            .filter_map(|line| line.strip_prefix("data:"))
            .filter_map(|data| serde_json::from_str(data).ok())
            .collect();
        if events.is_empty() { serde_json::from_str(&text).into_iter().collect() } else { events }
    }
}

/// The sum of a metric's samples that have all of `labels`.
fn sum(metrics: &str, name: &str, labels: &[&str]) -> f64 {
    let sample = |line: &str| {
        let labelled = line.strip_prefix(name)?;
        let wanted = labelled.starts_with(['{', ' ']) && labels.iter().all(|label| labelled.contains(label));
        wanted.then(|| labelled.rsplit(' ').next()?.parse::<f64>().ok())?
    };
    // Not `sum()`, which makes -0 of nothing.
    metrics.lines().filter_map(sample).fold(0.0, |sum, value| sum + value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_are_summed_by_name_and_labels() {
        let metrics =
            "# TYPE a_total counter\na_total{x=\"1\",y=\"2\"} 3\na_total{x=\"2\",y=\"2\"} 4.5\na_total_more 9\n";
        assert_eq!(sum(metrics, "a_total", &[]), 7.5);
        assert_eq!(sum(metrics, "a_total", &["x=\"1\"", "y=\"2\""]), 3.0);
        assert_eq!(sum(metrics, "a_total", &["x=\"3\""]), 0.0);
    }

    #[test]
    fn a_reply_is_one_document_or_many_events() {
        let reply = |body: &'static str| Reply {
            status: StatusCode::OK,
            headers: HeaderMap::new(),
            body: Bytes::from_static(body.as_bytes()),
            pieces: 1,
            first: Duration::ZERO,
            last: Duration::ZERO,
        };
        assert_eq!(reply("{\"a\": 1}").events(), [json!({"a": 1})]);
        assert_eq!(
            reply("data: {\"a\":1}\n\ndata: {\"a\":2}\n\ndata: [DONE]\n\n").events(),
            [json!({"a": 1}), json!({"a": 2})]
        );
        assert_eq!(reply("nothing").events(), Vec::<Value>::new());
    }
}
