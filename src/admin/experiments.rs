//! `/api/experiments`: what runs, how far it is, and how that changes.

use std::collections::BTreeMap;

use axum::{Json as Answer, extract::State, response::Response};
use http::{HeaderMap, StatusCode, Uri};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use utoipa::ToSchema;

use super::{
    Admin,
    extract::{Json, Path, Query},
    guard::Actor,
    models::parameters,
    openapi::{Api, routes},
    paging::{self, Page},
    problem::Problem,
    registry::{check_name, check_texts, idempotency_key},
};
use crate::{
    config::Snapshot,
    gateway::registrar::{Changed, Wanted},
    policy::{
        experiment::{CodingAgents, Experiment, Unit, Variant},
        stats::{guardrail::Limit, verdict::Direction},
    },
    registry::{Book, Command, Halted, Trial, TrialDeed, TrialEvent, TrialState},
};

pub(super) fn router() -> Api {
    Api::default()
        .routes(routes!(list, create))
        .routes(routes!(show))
        .routes(routes!(history))
        .routes(routes!(start))
        .routes(routes!(pause))
        .routes(routes!(stop))
        .routes(routes!(halt))
        .routes(routes!(promote))
        .routes(routes!(weights))
}

/// An experiment.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct ExperimentInfo {
    /// Its name.
    name: String,
    /// `draft`, `running`, `paused`, `stopped` or `promoted`.
    state: &'static str,
    /// What defines it: `file` or `registry`.
    source: &'static str,
    /// The model whose calls take part.
    model: String,
    /// What is assigned: `user`, `key`, `session` or `header:NAME`.
    unit: String,
    /// The variant that the others are compared with.
    control: String,
    /// Its variants.
    variants: Vec<VariantInfo>,
    /// What it should change.
    goal: Option<GoalInfo>,
    /// What it must not harm.
    guardrails: Vec<GuardrailInfo>,
    /// The layer that it shares units with others of.
    layer: Option<String>,
    /// The share of its layer's units, or of all units, that takes part: 0 to 1.
    share: f64,
    /// Whether calls of coding agents take part, where a variant has another prompt: `skip` or `force`.
    coding_agents: &'static str,
    /// Since when it runs; absent where it never did.
    started: Option<String>,
    /// The weights that it ran with, the oldest first. Those of a stopped variant count for the control.
    epochs: Vec<EpochInfo>,
    /// The variant that was promoted.
    promoted: Option<String>,
    /// The version of the model that went live by it.
    version: Option<String>,
}

/// One arm of an experiment: what it changes about a call.
#[derive(Debug, Serialize, ToSchema)]
struct VariantInfo {
    /// Its name.
    name: String,
    /// Its share, relative to the others'.
    weight: f64,
    /// Version of the model to use instead of the live one.
    version: Option<String>,
    /// `provider/model` to use instead of the version's targets.
    target: Option<String>,
    /// The prompt instead of the model's, as `name@version`.
    prompt: Option<String>,
    /// Parameters that are set.
    parameters: BTreeMap<String, Value>,
    /// Where it was stopped: its units are the control's.
    halted: Option<HaltedInfo>,
}

/// Who stopped a variant.
#[derive(Debug, Serialize, ToSchema)]
struct HaltedInfo {
    /// When.
    at: String,
    /// Who: `gateway` where a guardrail did.
    by: String,
    /// Why.
    reason: String,
}

/// What an experiment should change.
#[derive(Debug, Serialize, ToSchema)]
struct GoalInfo {
    /// The metric.
    metric: String,
    /// `up` or `down`: which way is better.
    direction: &'static str,
    /// Differences up to this do not matter; absent: the usual ones.
    margin: Option<f64>,
}

/// What an experiment must not harm.
#[derive(Debug, Serialize, ToSchema)]
struct GuardrailInfo {
    /// The metric.
    metric: String,
    /// Its highest value.
    max: Option<f64>,
    /// Its highest increase over the control's, as a share of that.
    max_increase: Option<f64>,
}

/// A time in which weights did not change.
#[derive(Debug, Serialize, ToSchema)]
struct EpochInfo {
    /// Since when.
    at: String,
    /// By variant.
    weights: BTreeMap<String, f64>,
}

/// Something that happened.
#[derive(Debug, Serialize, ToSchema)]
struct TrialEventInfo {
    /// When.
    at: String,
    /// Who did it.
    by: String,
    /// What, such as `started` or `promoted`.
    #[schema(value_type = String)]
    what: crate::registry::TrialWhat,
    /// The variant that it is about.
    variant: Option<String>,
    /// The version of the model that went live.
    version: Option<String>,
    /// Weights from then on.
    weights: Option<BTreeMap<String, f64>>,
    /// Why.
    reason: String,
}

/// What became of a change.
#[derive(Debug, Serialize, ToSchema)]
struct ExperimentChange {
    /// Whether anything is another one than before.
    changed: bool,
    /// The registry's revision from now on.
    revision: u64,
    /// The version of the model that went live, or the variant that was stopped.
    about: Option<String>,
    /// What is true now.
    now: ExperimentInfo,
}

/// An experiment to be taken in: what a configuration would say of it.
#[derive(Debug, Deserialize, ToSchema)]
struct CreateRequest {
    /// Its name, which also decides who gets what.
    name: String,
    /// Whether it begins at once.
    #[serde(default)]
    start: bool,
    /// `model`, `unit`, `variants`, `control`, `goal`, `guardrails`, `layer`, `share`, …, as in the configuration.
    #[serde(flatten)]
    definition: Map<String, Value>,
}

/// Why.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct WhyRequest {
    /// For the history and the audit log.
    #[serde(default)]
    reason: String,
}

/// Which variant.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct VariantRequest {
    /// Its name.
    variant: String,
    /// For the history and the audit log.
    #[serde(default)]
    reason: String,
}

/// Which weights.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct WeightsRequest {
    /// By variant; those that are not named stay.
    weights: BTreeMap<String, f64>,
    /// For the history and the audit log.
    #[serde(default)]
    reason: String,
}

/// The experiments, by name, those that do not run included
#[utoipa::path(get, path = "/api/experiments", tag = "experiments", operation_id = "list_experiments", params(Page),
    responses((status = OK, body = Vec<ExperimentInfo>)))]
async fn list(State(admin): State<Admin>, uri: Uri, Query(page): Query<Page>) -> Response {
    let snapshot = admin.shared.live.load_full();
    let book = &snapshot.registry.book;
    let rows = snapshot.experiments.values().map(|experiment| ExperimentInfo::of(experiment, book)).collect();
    let (rows, next) = page.of(rows, |row: &ExperimentInfo| &row.name);
    paging::respond(&rows, &uri, next.as_deref())
}

/// One experiment
#[utoipa::path(get, path = "/api/experiments/{name}", tag = "experiments", operation_id = "show_experiment",
    params(("name" = String, Path, description = "Its name")),
    responses((status = OK, body = ExperimentInfo), (status = NOT_FOUND, body = Problem)))]
async fn show(State(admin): State<Admin>, Path(name): Path<String>) -> Result<Answer<ExperimentInfo>, Problem> {
    let snapshot = admin.shared.live.load_full();
    known(&snapshot, &snapshot.registry.book, &name).map(Answer)
}

/// What happened to an experiment, the newest first
#[utoipa::path(get, path = "/api/experiments/{name}/history", tag = "experiments", operation_id = "experiment_history",
    params(("name" = String, Path, description = "Its name")),
    responses((status = OK, body = Vec<TrialEventInfo>), (status = NOT_FOUND, body = Problem)))]
async fn history(State(admin): State<Admin>, Path(name): Path<String>) -> Result<Answer<Vec<TrialEventInfo>>, Problem> {
    let snapshot = admin.shared.live.load_full();
    let trial = snapshot.registry.book.experiments.get(&name);
    if trial.is_none() && !snapshot.experiments.contains_key(name.as_str()) {
        return Err(unknown(&name));
    }
    let events = trial.map(|trial| trial.history.as_slice()).unwrap_or_default();
    Ok(Answer(events.iter().rev().map(TrialEventInfo::of).collect()))
}

/// Take an experiment in, and begin it at once with `start`
///
/// What could not serve is refused (422) with every problem. The same one again changes nothing; another one under a name that
/// is or was in use is refused (409), since the name decides who gets what.
#[utoipa::path(post, path = "/api/experiments", tag = "experiments", operation_id = "create_experiment",
    params(("idempotency-key" = Option<String>, Header, description = "Any text that is used for this change alone")),
    request_body = CreateRequest,
    responses((status = OK, body = ExperimentChange), (status = CONFLICT, body = Problem),
        (status = UNPROCESSABLE_ENTITY, body = Problem), (status = SERVICE_UNAVAILABLE, body = Problem)))]
async fn create(
    State(admin): State<Admin>,
    Actor(actor): Actor,
    headers: HeaderMap,
    Json(request): Json<CreateRequest>,
) -> Result<Answer<ExperimentChange>, Problem> {
    check_name("experiment", &request.name)?;
    let definition = request.definition.into_iter().filter(|(_, value)| !value.is_null()).collect();
    let deed = TrialDeed::Create { definition: Value::Object(definition), start: request.start };
    change(&admin, request.name, deed, Asked { who: &actor, reason: "", headers: &headers }).await
}

/// Begin an experiment, or go on with it after a pause
#[utoipa::path(post, path = "/api/experiments/{name}/start", tag = "experiments", operation_id = "start_experiment",
    params(("name" = String, Path, description = "Its name"),
        ("idempotency-key" = Option<String>, Header, description = "Any text that is used for this change alone")),
    request_body = WhyRequest,
    responses((status = OK, body = ExperimentChange), (status = NOT_FOUND, body = Problem), (status = CONFLICT, body = Problem),
        (status = UNPROCESSABLE_ENTITY, body = Problem), (status = SERVICE_UNAVAILABLE, body = Problem)))]
async fn start(
    State(admin): State<Admin>,
    Actor(actor): Actor,
    Path(name): Path<String>,
    headers: HeaderMap,
    Json(WhyRequest { reason }): Json<WhyRequest>,
) -> Result<Answer<ExperimentChange>, Problem> {
    change(&admin, name, TrialDeed::Start, Asked { who: &actor, reason: &reason, headers: &headers }).await
}

/// Have the live version serve everybody for now
#[utoipa::path(post, path = "/api/experiments/{name}/pause", tag = "experiments", operation_id = "pause_experiment",
    params(("name" = String, Path, description = "Its name"),
        ("idempotency-key" = Option<String>, Header, description = "Any text that is used for this change alone")),
    request_body = WhyRequest,
    responses((status = OK, body = ExperimentChange), (status = NOT_FOUND, body = Problem), (status = CONFLICT, body = Problem),
        (status = SERVICE_UNAVAILABLE, body = Problem)))]
async fn pause(
    State(admin): State<Admin>,
    Actor(actor): Actor,
    Path(name): Path<String>,
    headers: HeaderMap,
    Json(WhyRequest { reason }): Json<WhyRequest>,
) -> Result<Answer<ExperimentChange>, Problem> {
    let deed = TrialDeed::Pause { reason: reason.clone() };
    change(&admin, name, deed, Asked { who: &actor, reason: &reason, headers: &headers }).await
}

/// End an experiment; the live version serves everybody
#[utoipa::path(post, path = "/api/experiments/{name}/stop", tag = "experiments", operation_id = "stop_experiment",
    params(("name" = String, Path, description = "Its name"),
        ("idempotency-key" = Option<String>, Header, description = "Any text that is used for this change alone")),
    request_body = WhyRequest,
    responses((status = OK, body = ExperimentChange), (status = NOT_FOUND, body = Problem), (status = CONFLICT, body = Problem),
        (status = SERVICE_UNAVAILABLE, body = Problem)))]
async fn stop(
    State(admin): State<Admin>,
    Actor(actor): Actor,
    Path(name): Path<String>,
    headers: HeaderMap,
    Json(WhyRequest { reason }): Json<WhyRequest>,
) -> Result<Answer<ExperimentChange>, Problem> {
    let deed = TrialDeed::Stop { reason: reason.clone() };
    change(&admin, name, deed, Asked { who: &actor, reason: &reason, headers: &headers }).await
}

/// Stop one variant: its units are the control's from now on
#[utoipa::path(post, path = "/api/experiments/{name}/halt", tag = "experiments", operation_id = "halt_variant",
    params(("name" = String, Path, description = "Its name"),
        ("idempotency-key" = Option<String>, Header, description = "Any text that is used for this change alone")),
    request_body = VariantRequest,
    responses((status = OK, body = ExperimentChange), (status = NOT_FOUND, body = Problem), (status = CONFLICT, body = Problem),
        (status = SERVICE_UNAVAILABLE, body = Problem)))]
async fn halt(
    State(admin): State<Admin>,
    Actor(actor): Actor,
    Path(name): Path<String>,
    headers: HeaderMap,
    Json(VariantRequest { variant, reason }): Json<VariantRequest>,
) -> Result<Answer<ExperimentChange>, Problem> {
    let deed = TrialDeed::Halt { variant, reason: reason.clone() };
    change(&admin, name, deed, Asked { who: &actor, reason: &reason, headers: &headers }).await
}

/// Make what a variant does the live version of the model, and end the experiment
///
/// In one step: a variant that only names a version deploys that one; any other becomes a new version of the model, made of the live
/// one and what the variant changes. `rollback` of the model undoes it.
#[utoipa::path(post, path = "/api/experiments/{name}/promote", tag = "experiments", operation_id = "promote_variant",
    params(("name" = String, Path, description = "Its name"),
        ("idempotency-key" = Option<String>, Header, description = "Any text that is used for this change alone")),
    request_body = VariantRequest,
    responses((status = OK, body = ExperimentChange), (status = NOT_FOUND, body = Problem), (status = CONFLICT, body = Problem),
        (status = UNPROCESSABLE_ENTITY, body = Problem), (status = SERVICE_UNAVAILABLE, body = Problem)))]
async fn promote(
    State(admin): State<Admin>,
    Actor(actor): Actor,
    Path(name): Path<String>,
    headers: HeaderMap,
    Json(VariantRequest { variant, reason }): Json<VariantRequest>,
) -> Result<Answer<ExperimentChange>, Problem> {
    let deed = TrialDeed::Promote { variant, reason: reason.clone() };
    change(&admin, name, deed, Asked { who: &actor, reason: &reason, headers: &headers }).await
}

/// Change weights of an experiment that came through the API
///
/// Raising a weight moves users only into its variant, lowering it only out of it.
#[utoipa::path(post, path = "/api/experiments/{name}/weights", tag = "experiments", operation_id = "set_weights",
    params(("name" = String, Path, description = "Its name"),
        ("idempotency-key" = Option<String>, Header, description = "Any text that is used for this change alone")),
    request_body = WeightsRequest,
    responses((status = OK, body = ExperimentChange), (status = NOT_FOUND, body = Problem), (status = CONFLICT, body = Problem),
        (status = UNPROCESSABLE_ENTITY, body = Problem), (status = SERVICE_UNAVAILABLE, body = Problem)))]
async fn weights(
    State(admin): State<Admin>,
    Actor(actor): Actor,
    Path(name): Path<String>,
    headers: HeaderMap,
    Json(WeightsRequest { weights, reason }): Json<WeightsRequest>,
) -> Result<Answer<ExperimentChange>, Problem> {
    let deed = TrialDeed::SetWeights { weights, reason: reason.clone() };
    change(&admin, name, deed, Asked { who: &actor, reason: &reason, headers: &headers }).await
}

/// Who asks for a change, and why.
struct Asked<'a> {
    who: &'a str,
    reason: &'a str,
    headers: &'a HeaderMap,
}

async fn change(
    admin: &Admin,
    name: String,
    deed: TrialDeed,
    asked: Asked<'_>,
) -> Result<Answer<ExperimentChange>, Problem> {
    check_texts([&asked.reason.to_owned()])?;
    let wanted = Wanted { who: asked.who, reason: asked.reason, key: idempotency_key(asked.headers)? };
    let command = Command::Trial { name: name.clone(), deed };
    let Changed { book, revision, changed, version } = admin.shared.registrar.change(&command, wanted).await?;
    let now = known(&admin.shared.live.load_full(), &book, &name)?;
    Ok(Answer(ExperimentChange { changed, revision, about: version, now }))
}

fn known(snapshot: &Snapshot, book: &Book, name: &str) -> Result<ExperimentInfo, Problem> {
    let experiment = snapshot.experiments.get(name);
    experiment.map(|experiment| ExperimentInfo::of(experiment, book)).ok_or_else(|| unknown(name))
}

fn unknown(name: &str) -> Problem {
    Problem::new(StatusCode::NOT_FOUND, format!("no experiment is named `{name}`"))
}

impl ExperimentInfo {
    fn of(experiment: &Experiment, book: &Book) -> ExperimentInfo {
        let nothing = Trial::default();
        let trial = book.experiments.get(&*experiment.name).unwrap_or(&nothing);
        let (promoted, version) = match &trial.state {
            TrialState::Promoted { variant, version } => (Some(variant.clone()), Some(version.clone())),
            _ => (None, None),
        };
        let variant = |variant: &Variant| VariantInfo::of(variant, trial.halted.get(&*variant.name));
        ExperimentInfo {
            name: experiment.name.to_string(),
            state: trial.state.label(),
            source: if trial.definition.is_some() { "registry" } else { "file" },
            model: experiment.model.to_string(),
            unit: match &experiment.unit {
                Unit::User => "user".to_owned(),
                Unit::Key => "key".to_owned(),
                Unit::Session => "session".to_owned(),
                Unit::Header(name) => format!("header:{name}"),
            },
            control: experiment.control.to_string(),
            variants: experiment.variants().iter().map(variant).collect(),
            goal: experiment.goal.as_ref().map(|goal| GoalInfo {
                metric: goal.metric.clone(),
                direction: match goal.direction {
                    Direction::Up => "up",
                    Direction::Down => "down",
                },
                margin: goal.margin,
            }),
            guardrails: experiment.guardrails.iter().map(|one| GuardrailInfo::of(&one.metric, one.limit)).collect(),
            layer: experiment.layer.as_ref().map(ToString::to_string),
            share: experiment.share,
            coding_agents: match experiment.coding_agents {
                CodingAgents::Skip => "skip",
                CodingAgents::Force => "force",
            },
            started: trial.started_at().map(|at| at.to_string()),
            epochs: trial
                .epochs
                .iter()
                .map(|epoch| EpochInfo { at: epoch.at.to_string(), weights: epoch.weights.clone() })
                .collect(),
            promoted,
            version,
        }
    }
}

impl VariantInfo {
    fn of(variant: &Variant, halted: Option<&Halted>) -> VariantInfo {
        VariantInfo {
            name: variant.name.to_string(),
            weight: variant.weight,
            version: variant.version.as_ref().map(ToString::to_string),
            target: variant.target.clone(),
            prompt: variant.prompt.as_ref().map(|(name, version)| format!("{name}@{version}")),
            parameters: parameters(&variant.parameters),
            halted: halted.map(|halted| HaltedInfo {
                at: halted.at.to_string(),
                by: halted.by.clone(),
                reason: halted.reason.clone(),
            }),
        }
    }
}

impl GuardrailInfo {
    fn of(metric: &str, limit: Limit) -> GuardrailInfo {
        let (max, max_increase) = match limit {
            Limit::Max(max) => (Some(max), None),
            Limit::MaxIncrease(increase) => (None, Some(increase)),
        };
        GuardrailInfo { metric: metric.to_owned(), max, max_increase }
    }
}

impl TrialEventInfo {
    fn of(event: &TrialEvent) -> TrialEventInfo {
        TrialEventInfo {
            at: event.at.to_string(),
            by: event.by.clone(),
            what: event.what,
            variant: event.variant.clone(),
            version: event.version.clone(),
            weights: event.weights.clone(),
            reason: event.reason.clone(),
        }
    }
}
