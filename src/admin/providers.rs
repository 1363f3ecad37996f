//! `/api/providers`: where calls can go, and how it is doing.

use std::time::Instant;

use axum::{extract::State, response::Response};
use http::Uri;
use serde::Serialize;
use utoipa::ToSchema;

use super::{
    Admin,
    extract::Query,
    openapi::{Api, routes},
    paging::{self, Page},
};
use crate::{
    config::snapshot::{Provider, ProviderKind},
    upstream::health::Circuit,
};

pub(super) fn router() -> Api {
    Api::default().routes(routes!(list))
}

/// A provider, without its keys.
#[derive(Debug, Serialize, ToSchema)]
struct ProviderInfo {
    /// Its name.
    name: String,
    /// `openai`, `anthropic` or `simulated`.
    kind: &'static str,
    /// Where it is; never holds a secret.
    base_url: String,
    /// How many keys there are for it.
    keys: usize,
    /// `closed`: in rotation; `open`: out of it, for it failed; `half_open`: tried once a second.
    circuit: &'static str,
}

/// The providers, by name, and whether they are in rotation at this gateway
#[utoipa::path(get, path = "/api/providers", tag = "models", operation_id = "list_providers", params(Page),
    responses((status = OK, body = Vec<ProviderInfo>)))]
async fn list(State(admin): State<Admin>, uri: Uri, Query(page): Query<Page>) -> Response {
    let (snapshot, healths) = (admin.shared.live.load_full(), admin.shared.upstream.healths.all());
    let now = Instant::now();
    let circuit =
        |provider: &Provider| healths.get(&provider.name).map_or(Circuit::Closed, |health| health.circuit(now));
    let mut rows: Vec<ProviderInfo> =
        snapshot.providers.values().map(|provider| describe(provider, circuit(provider))).collect();
    rows.sort_by(|a, b| a.name.cmp(&b.name));
    let (rows, next) = page.of(rows, |row| &row.name);
    paging::respond(&rows, &uri, next.as_deref())
}

fn describe(provider: &Provider, circuit: Circuit) -> ProviderInfo {
    ProviderInfo {
        name: provider.name.to_string(),
        kind: match provider.kind {
            ProviderKind::OpenAi => "openai",
            ProviderKind::Anthropic => "anthropic",
            ProviderKind::Simulated(_) => "simulated",
        },
        base_url: provider.base_url.to_string(),
        keys: provider.api_keys.len(),
        circuit: match circuit {
            Circuit::Closed => "closed",
            Circuit::HalfOpen => "half_open",
            Circuit::Open => "open",
        },
    }
}
