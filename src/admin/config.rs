//! `/api/config`: what serves and where it comes from, without secrets; what was refused, and the last reloads.

use axum::{Json, extract::State};
use serde::Serialize;
use serde_json::Value;
use utoipa::ToSchema;

use super::{
    Admin, audit,
    openapi::{Api, routes},
    problem::Problem,
};
use crate::config::{Snapshot, pushed::InForce, watch::Refusal};

/// How the audit log calls a configuration that went live.
pub const RELOAD: &str = "config.reload";
/// Reloads that are shown.
const RELOADS_MAX: usize = 20;

pub(super) fn router() -> Api {
    Api::default().routes(routes!(show))
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
    /// What was pushed for the fleet and is part of it.
    pushed: Option<Pushed>,
    /// Why the newest configuration does not serve; absent while it does.
    refusal: Option<ConfigRefusal>,
    /// The last configurations that went live while the gateway ran, the latest first, from the audit log.
    reloads: Vec<Reload>,
}

/// A pushed revision in force.
#[derive(Debug, Serialize, ToSchema)]
struct Pushed {
    /// Its number.
    revision: u64,
    /// Who pushed it.
    author: String,
    /// When.
    at: String,
    /// Why.
    message: String,
    /// The sections that it has.
    sections: Vec<String>,
    /// Those of them that stand in the gateway's own file too, and do not count there.
    replaced: Vec<String>,
}

/// A configuration that was refused.
#[derive(Debug, Serialize, ToSchema)]
struct ConfigRefusal {
    /// What is wrong with it.
    reason: String,
    /// The pushed revision that was tried, where one was.
    revision: Option<u64>,
}

/// A configuration that went live.
#[derive(Debug, Serialize, ToSchema)]
struct Reload {
    /// When.
    at: String,
    /// By whom: `file`, or who pushed which revision.
    actor: String,
    /// The hash after it.
    hash: String,
    /// The pushed revision after it.
    revision: Option<u64>,
}

/// What serves and where it comes from, without secrets; what was refused, and the last reloads
#[utoipa::path(get, path = "/api/config", tag = "config", operation_id = "show_config",
    responses((status = OK, body = Configuration), (status = SERVICE_UNAVAILABLE, body = Problem)))]
async fn show(State(admin): State<Admin>) -> Result<Json<Configuration>, Problem> {
    let reloads = audit::read(&admin, None, RELOADS_MAX, |entry| entry["action"] == RELOAD).await?;
    let live = &admin.shared.live;
    let mut configuration = describe(&live.load_full());
    configuration.refusal = live.refusal().map(|refusal| refusal.as_ref().into());
    configuration.reloads = reloads.lines.iter().map(|(_, entry)| entry.into()).collect();
    Ok(Json(configuration))
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
        pushed: snapshot.pushed.as_ref().map(Pushed::from),
        refusal: None,
        reloads: Vec::new(),
    }
}

fn sorted<'a>(names: impl Iterator<Item = &'a Box<str>>) -> Vec<String> {
    let mut names: Vec<String> = names.map(ToString::to_string).collect();
    names.sort_unstable();
    names
}

impl From<&InForce> for Pushed {
    fn from(pushed: &InForce) -> Pushed {
        let revision = &pushed.revision;
        Pushed {
            revision: revision.number,
            author: revision.author.clone(),
            at: revision.at.to_string(),
            message: revision.message.clone(),
            sections: pushed.sections.clone(),
            replaced: pushed.replaced.clone(),
        }
    }
}

impl From<&Refusal> for ConfigRefusal {
    fn from(refusal: &Refusal) -> ConfigRefusal {
        ConfigRefusal { reason: refusal.reason.clone(), revision: refusal.revision }
    }
}

impl From<&Value> for Reload {
    fn from(entry: &Value) -> Reload {
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        Reload {
            at: text(&entry["at"]),
            actor: text(&entry["actor"]),
            hash: text(&entry["after"]["hash"]),
            revision: entry["after"]["revision"].as_u64(),
        }
    }
}
