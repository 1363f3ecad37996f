//! `/api/config`: what serves, without secrets.

use axum::{Json, extract::State};
use serde::Serialize;
use utoipa::ToSchema;
use utoipa_axum::{router::OpenApiRouter, routes};

use super::Admin;
use crate::config::Snapshot;

pub(super) fn router() -> OpenApiRouter<Admin> {
    OpenApiRouter::default().routes(routes!(show))
}

/// The configuration that serves, without secrets.
#[derive(Debug, Serialize, ToSchema)]
struct Configuration {
    /// Of the whole configuration, as in `tollgate_config_info`.
    hash: String,
    /// Names of the providers.
    providers: Vec<String>,
    /// Names that clients may use.
    models: Vec<String>,
    /// Names of the prompts.
    prompts: Vec<String>,
    /// How many virtual keys are valid.
    keys: usize,
    /// Names of the budgets.
    budgets: Vec<String>,
    /// Revision of the price catalog.
    prices: String,
    /// What the configuration asks for and this build does not have.
    not_yet: Vec<String>,
}

/// What serves, without secrets
#[utoipa::path(get, path = "/api/config", tag = "config", operation_id = "show_config",
    responses((status = OK, body = Configuration)))]
async fn show(State(admin): State<Admin>) -> Json<Configuration> {
    Json(describe(&admin.shared.live.load_full()))
}

fn describe(snapshot: &Snapshot) -> Configuration {
    Configuration {
        hash: snapshot.hash.clone(),
        providers: sorted(snapshot.providers.keys()),
        models: sorted(snapshot.models.keys()),
        prompts: sorted(snapshot.prompts.keys()),
        keys: snapshot.keys.len(),
        budgets: snapshot.budgets.iter().map(|budget| budget.name.to_string()).collect(),
        prices: snapshot.prices.revision().to_string(),
        not_yet: snapshot.not_yet.clone(),
    }
}

fn sorted<'a>(names: impl Iterator<Item = &'a Box<str>>) -> Vec<String> {
    let mut names: Vec<String> = names.map(ToString::to_string).collect();
    names.sort_unstable();
    names
}
