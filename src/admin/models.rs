//! `/api/models`, `/api/prompts`: what the configuration that serves makes of calls.

use std::collections::{BTreeMap, HashMap};

use axum::{Json, extract::State, response::Response};
use http::Uri;
use jiff::Timestamp;
use serde::Serialize;
use serde_json::Value;
use utoipa::ToSchema;

use super::{
    Admin,
    extract::{Path, Query},
    openapi::{Api, routes},
    paging::{self, Page},
    problem::Problem,
};
use crate::{
    config::snapshot::{Model, ModelVersion, Prompt, Target},
    policy::prompt::Template,
};

pub(super) fn router() -> Api {
    Api::default().routes(routes!(models)).routes(routes!(prompts)).routes(routes!(prompt))
}

/// An alias that clients name.
#[derive(Debug, Serialize, ToSchema)]
struct ModelInfo {
    /// The alias.
    name: String,
    /// The version that serves.
    live: String,
    /// Its versions, by name.
    versions: Vec<VersionInfo>,
    /// Names of the experiments in which its calls take part.
    experiments: Vec<String>,
}

/// One version of a model.
#[derive(Debug, Serialize, ToSchema)]
struct VersionInfo {
    /// Its name.
    name: String,
    /// Where calls go, by weight.
    targets: Vec<TargetInfo>,
    /// Tried in order when a target failed.
    fallbacks: Vec<TargetInfo>,
    /// Parameters set where the client did not.
    parameters: BTreeMap<String, Value>,
    /// Parameters set whatever the client said.
    force: BTreeMap<String, Value>,
    /// The prompt put into every call, as `name@version`.
    prompt: Option<String>,
}

/// A model at a provider.
#[derive(Debug, Serialize, ToSchema)]
struct TargetInfo {
    /// `provider/model`.
    target: String,
    /// Its share, relative to the others'; absent for fallbacks.
    weight: Option<u32>,
    /// The row of the price catalog; absent where no price is known.
    price: Option<String>,
    /// Its rates now, such as `input: 2.5 USD/1M`.
    rates: BTreeMap<String, String>,
}

/// A prompt.
#[derive(Debug, Serialize, ToSchema)]
struct PromptInfo {
    /// Its name.
    name: String,
    /// The version that serves where none is pinned.
    live: String,
    /// Its versions, by name.
    versions: Vec<PromptVersion>,
}

/// One version of a prompt, without its text.
#[derive(Debug, Serialize, ToSchema)]
struct PromptVersion {
    /// Its name.
    name: String,
    /// Variables that each call must give.
    required: Vec<String>,
    /// Whether every call gets the same.
    constant: bool,
}

/// A prompt with its texts.
#[derive(Debug, Serialize, ToSchema)]
struct PromptTexts {
    /// Its name.
    name: String,
    /// The version that serves where none is pinned.
    live: String,
    /// Of each version the parts that it has: `system`, `developer`, `before_user`, `after_user`.
    versions: BTreeMap<String, BTreeMap<String, String>>,
}

/// The aliases that clients may name, by name
#[utoipa::path(get, path = "/api/models", tag = "models", operation_id = "list_models", params(Page),
    responses((status = OK, body = Vec<ModelInfo>)))]
async fn models(State(admin): State<Admin>, uri: Uri, Query(page): Query<Page>) -> Response {
    let (snapshot, now) = (admin.shared.live.load_full(), Timestamp::now());
    let rows = sorted(&snapshot.models).into_iter().map(|model| ModelInfo::of(model, now)).collect();
    let (rows, next) = page.of(rows, |row: &ModelInfo| &row.name);
    paging::respond(&rows, &uri, next.as_deref())
}

/// The prompts, by name, without their texts
#[utoipa::path(get, path = "/api/prompts", tag = "models", operation_id = "list_prompts", params(Page),
    responses((status = OK, body = Vec<PromptInfo>)))]
async fn prompts(State(admin): State<Admin>, uri: Uri, Query(page): Query<Page>) -> Response {
    let snapshot = admin.shared.live.load_full();
    let rows = sorted(&snapshot.prompts).into_iter().map(|prompt| PromptInfo::of(prompt)).collect();
    let (rows, next) = page.of(rows, |row: &PromptInfo| &row.name);
    paging::respond(&rows, &uri, next.as_deref())
}

/// One prompt with its texts
///
/// Takes the role `operator`.
#[utoipa::path(get, path = "/api/prompts/{name}", tag = "models", operation_id = "show_prompt",
    params(("name" = String, Path, description = "The prompt's name")),
    responses((status = OK, body = PromptTexts), (status = NOT_FOUND, body = Problem)))]
async fn prompt(State(admin): State<Admin>, Path(name): Path<String>) -> Result<Json<PromptTexts>, Problem> {
    let snapshot = admin.shared.live.load_full();
    let prompt = snapshot.prompts.get(name.as_str());
    let prompt = prompt.ok_or_else(|| Problem::not_found(format!("no prompt is named `{name}`")))?;
    let texts = |template: &Template| template.sources().map(|(part, text)| (part.to_owned(), text)).collect();
    Ok(Json(PromptTexts {
        name,
        live: prompt.live.to_string(),
        versions: prompt.versions.iter().map(|(name, template)| (name.to_string(), texts(template))).collect(),
    }))
}

/// By name.
fn sorted<T>(all: &HashMap<Box<str>, T>) -> Vec<&T> {
    let by_name: BTreeMap<&str, &T> = all.iter().map(|(name, one)| (&**name, one)).collect();
    by_name.into_values().collect()
}

impl ModelInfo {
    fn of(model: &Model, now: Timestamp) -> ModelInfo {
        let mut versions: Vec<VersionInfo> =
            model.versions.values().map(|version| VersionInfo::of(version, now)).collect();
        versions.sort_by(|a, b| a.name.cmp(&b.name));
        ModelInfo {
            name: model.name.to_string(),
            live: model.live.to_string(),
            versions,
            experiments: model.experiments.iter().map(|experiment| experiment.name.to_string()).collect(),
        }
    }
}

impl VersionInfo {
    fn of(version: &ModelVersion, now: Timestamp) -> VersionInfo {
        let targets = version.targets.iter().map(|(target, weight)| TargetInfo::of(target, Some(*weight), now));
        let prompt = version.prompt.as_ref().map(|prompt| format!("{}@{}", prompt.prompt.name, prompt.version));
        VersionInfo {
            name: version.name.to_string(),
            targets: targets.collect(),
            fallbacks: version.fallbacks.iter().map(|target| TargetInfo::of(target, None, now)).collect(),
            parameters: parameters(&version.defaults),
            force: parameters(&version.forced),
            prompt,
        }
    }
}

impl TargetInfo {
    fn of(target: &Target, weight: Option<u32>, now: Timestamp) -> TargetInfo {
        TargetInfo {
            target: format!("{}/{}", target.provider.name, target.model),
            weight,
            price: target.price.as_ref().map(|price| price.row().to_owned()),
            rates: target.price.as_ref().map(|price| price.rates(now).into_iter().collect()).unwrap_or_default(),
        }
    }
}

impl PromptInfo {
    fn of(prompt: &Prompt) -> PromptInfo {
        let version = |(name, template): (&std::sync::Arc<str>, &std::sync::Arc<Template>)| PromptVersion {
            name: name.to_string(),
            required: template.required().map(str::to_owned).collect(),
            constant: template.is_constant(),
        };
        let mut versions: Vec<PromptVersion> = prompt.versions.iter().map(version).collect();
        versions.sort_by(|a, b| a.name.cmp(&b.name));
        PromptInfo { name: prompt.name.to_string(), live: prompt.live.to_string(), versions }
    }
}

/// Names and JSON texts as a map.
pub(super) fn parameters(all: &[(Box<str>, Box<str>)]) -> BTreeMap<String, Value> {
    // They were JSON when the configuration was read; what is not is shown as the text it is.
    let value = |text: &str| serde_json::from_str(text).unwrap_or_else(|_| Value::from(text));
    all.iter().map(|(name, text)| (name.to_string(), value(text))).collect()
}
