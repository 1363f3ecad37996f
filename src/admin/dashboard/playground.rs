//! The playground: a prompt sent as any client would send it, through the client listener, with a key that the visitor types.
//!
//! The page may only speak to its own origin, so `send` passes the request on and the reply back as it comes. The key stays in
//! the page: nothing here keeps or logs it. A listener with TLS is spoken to in TLS ([`own_tls`]).

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

use super::{
    own_tls,
    visit::{Shown, Visit},
};
use crate::{
    admin::{Admin, problem::Problem},
    config::Snapshot,
};

/// Request headers that are passed on; all others stay here.
const PASSED_ON: [&str; 5] =
    ["x-playground-key", "content-type", "x-tollgate-user", "x-tollgate-tags", "x-tollgate-vars"];
/// What is asked for there.
const PATH: &str = "/v1/chat/completions";
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
        "client_certificates": asks_for_certificates(&snapshot),
        "chosen": visit.parameter("model"),
    });
    Ok(visit.page("playground.html", page))
}

/// Passes a chat on to the client listener of this gateway.
pub(super) async fn send(State(admin): State<Admin>, request: Request) -> Result<Response, Problem> {
    let snapshot = admin.shared.live.load_full();
    if asks_for_certificates(&snapshot) {
        let why = "the client listener asks for client certificates, and the playground has none; use a client";
        return Err(Problem::new(StatusCode::CONFLICT, why));
    }
    let (head, body) = request.into_parts();
    let mut passed = http::Request::new(body);
    *passed.method_mut() = Method::POST;
    for name in PASSED_ON {
        let Some(value) = head.headers.get(name) else { continue };
        let name = if name == KEY_HEADER { "authorization" } else { name };
        passed.headers_mut().insert(name, value.clone());
    }
    let address = reached_at(admin.shared.listen);
    let answer = match &snapshot.server.tls {
        None => {
            *passed.uri_mut() = uri(&format!("http://{address}{PATH}"))?;
            HTTP.request(passed).await.map_err(|error| no_answer(&error))?
        }
        Some(tls) => {
            *passed.uri_mut() = uri(PATH)?;
            let host = HeaderValue::try_from(address.to_string()).expect("an address is a header's value");
            passed.headers_mut().insert(header::HOST, host);
            own_tls::request(address, tls, passed).await.map_err(|error| no_answer(&error))?
        }
    };
    let mut response = answer.map(Body::new).into_response();
    response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    Ok(response)
}

/// Whether the client listener takes only clients that show a certificate.
fn asks_for_certificates(snapshot: &Snapshot) -> bool {
    snapshot.server.tls.as_ref().is_some_and(|tls| tls.client_ca.is_some())
}

fn no_answer(error: &dyn std::error::Error) -> Problem {
    Problem::new(StatusCode::BAD_GATEWAY, format!("the client listener does not answer: {error}"))
}

fn uri(text: &str) -> Result<Uri, Problem> {
    text.parse().map_err(|_| Problem::new(StatusCode::INTERNAL_SERVER_ERROR, "the client listener has no address"))
}

/// Where the client listener is reached from here.
fn reached_at(listen: SocketAddr) -> SocketAddr {
    let ip = match listen.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => IpAddr::V4(Ipv4Addr::LOCALHOST),
        IpAddr::V6(ip) if ip.is_unspecified() => IpAddr::V6(Ipv6Addr::LOCALHOST),
        ip => ip,
    };
    SocketAddr::new(ip, listen.port())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_listener_on_every_address_is_reached_on_loopback() {
        let reached = |text: &str| reached_at(text.parse().expect("an address")).to_string();
        assert_eq!(reached("0.0.0.0:8080"), "127.0.0.1:8080");
        assert_eq!(reached("[::]:8080"), "[::1]:8080");
        assert_eq!(reached("10.0.0.7:80"), "10.0.0.7:80");
    }
}
