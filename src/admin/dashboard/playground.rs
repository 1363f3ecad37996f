//! The playground: a prompt sent as any client would send it, through the client listener, with a key that the visitor types.
//!
//! The page may only speak to its own origin, so `send` passes the request on and the reply back as it comes. The key stays in
//! the page: nothing here keeps or logs it.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::LazyLock,
};

use axum::{
    body::Body,
    extract::{Request, State},
    response::{IntoResponse, Response},
};
use http::{HeaderValue, Method, StatusCode, Uri, header};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};
use serde_json::json;

use super::visit::{Shown, Visit};
use crate::admin::{Admin, problem::Problem};

/// Request headers that are passed on; all others stay here.
const PASSED_ON: [&str; 5] =
    ["x-playground-key", "content-type", "x-tollgate-user", "x-tollgate-tags", "x-tollgate-vars"];
/// Carries the virtual key: `authorization` is the admin listener's own.
const KEY_HEADER: &str = "x-playground-key";

static HTTP: LazyLock<Client<HttpConnector, Body>> =
    LazyLock::new(|| Client::builder(TokioExecutor::new()).build_http());

pub(super) async fn show(visit: Visit) -> Shown {
    let snapshot = visit.admin.shared.live.load_full();
    let mut models: Vec<String> = snapshot.models.keys().map(ToString::to_string).collect();
    models.sort_unstable();
    let variants = snapshot.models.values().flat_map(|model| &model.experiments).flat_map(|experiment| {
        experiment.variants().iter().map(|variant| format!("{}={}", experiment.name, variant.name))
    });
    let mut variants: Vec<String> = variants.collect();
    variants.sort_unstable();
    let page = json!({
        "models": models,
        "variants": variants,
        "tls": snapshot.server.tls.is_some(),
        "chosen": visit.parameter("model"),
    });
    Ok(visit.page("playground.html", page))
}

/// Passes a chat on to the client listener of this gateway.
pub(super) async fn send(State(admin): State<Admin>, request: Request) -> Result<Response, Problem> {
    let snapshot = admin.shared.live.load_full();
    if snapshot.server.tls.is_some() {
        let why = "the client listener has TLS, which the playground does not speak; use a client";
        return Err(Problem::new(StatusCode::CONFLICT, why));
    }
    let (head, body) = request.into_parts();
    let mut passed = http::Request::new(body);
    *passed.method_mut() = Method::POST;
    *passed.uri_mut() = address(admin.shared.listen)?;
    for name in PASSED_ON {
        let Some(value) = head.headers.get(name) else { continue };
        let name = if name == KEY_HEADER { "authorization" } else { name };
        passed.headers_mut().insert(name, value.clone());
    }
    let answer = HTTP.request(passed).await.map_err(|error| {
        Problem::new(StatusCode::BAD_GATEWAY, format!("the client listener does not answer: {error}"))
    })?;
    let mut response = answer.map(Body::new).into_response();
    response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    Ok(response)
}

/// Where the client listener is reached from here.
fn address(listen: SocketAddr) -> Result<Uri, Problem> {
    let ip = match listen.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => IpAddr::V4(Ipv4Addr::LOCALHOST),
        IpAddr::V6(ip) if ip.is_unspecified() => IpAddr::V6(Ipv6Addr::LOCALHOST),
        ip => ip,
    };
    let uri = format!("http://{}/v1/chat/completions", SocketAddr::new(ip, listen.port()));
    uri.parse().map_err(|_| Problem::new(StatusCode::INTERNAL_SERVER_ERROR, "the client listener has no address"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_listener_on_every_address_is_reached_on_loopback() {
        let reached = |text: &str| address(text.parse().expect("an address")).expect("a URI").to_string();
        assert_eq!(reached("0.0.0.0:8080"), "http://127.0.0.1:8080/v1/chat/completions");
        assert_eq!(reached("[::]:8080"), "http://[::1]:8080/v1/chat/completions");
        assert_eq!(reached("10.0.0.7:80"), "http://10.0.0.7:80/v1/chat/completions");
    }
}
