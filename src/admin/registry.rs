//! `/api/registry` and `/api/{models,prompts}/{name}/…`: versions, what is live, how that came, and how it changes.

use std::collections::BTreeMap;

use axum::{Json as Answer, extract::State};
use http::{HeaderMap, StatusCode};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use utoipa::{IntoParams, ToSchema};

use super::{
    Admin,
    extract::{Json, Path, Query},
    guard::Actor,
    openapi::{Api, routes},
    problem::Problem,
};
use crate::{
    config::registered::InRegistry,
    gateway::registrar::{ChangeError, Changed, Wanted},
    registry::{
        Command, Deed, Event, Kind, NewVersion, Refusal, Rollout, RolloutState, Shelf, Stage, Stages, compare_versions,
        differences,
    },
};

/// The longest idempotency key, in bytes.
const KEY_BYTES_MAX: usize = 200;
/// The longest reason, description or tag, in bytes.
const TEXT_BYTES_MAX: usize = 1000;
/// Tags of one version.
const TAGS_MAX: usize = 100;

pub(super) fn router() -> Api {
    Api::default()
        .routes(routes!(list))
        .routes(routes!(show))
        .routes(routes!(history))
        .routes(routes!(diff))
        .routes(routes!(add))
        .routes(routes!(deploy))
        .routes(routes!(rollback))
        .routes(routes!(rollout, step_rollout))
        .routes(routes!(cancel_schedule))
}

/// Everything that is registered or in the files.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct RegistryInfo {
    /// The registry's revision that serves here; 0 where nothing was ever registered.
    revision: u64,
    /// Models, by alias.
    models: Vec<ShelfInfo>,
    /// Prompts, by name.
    prompts: Vec<ShelfInfo>,
}

/// A model or prompt: its versions, and what is live of them.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct ShelfInfo {
    /// `models` or `prompts`.
    kind: &'static str,
    /// Its name.
    name: String,
    /// The live version; absent where nothing was deployed yet.
    live: Option<String>,
    /// Who says so: `file` or `registry`.
    live_by: Option<&'static str>,
    /// Since when, where it was deployed.
    live_since: Option<String>,
    /// Who deployed it.
    deployed_by: Option<String>,
    /// Whether the file pins its live version.
    pinned: bool,
    /// Its versions, the newest last.
    versions: Vec<VersionRow>,
    /// The roll-out that is on its way.
    rollout: Option<RolloutInfo>,
    /// A deployment that is due later.
    scheduled: Option<ScheduledInfo>,
}

/// A version, without what it says.
#[derive(Debug, Serialize, ToSchema)]
struct VersionRow {
    /// Its name.
    version: String,
    /// Where it came from: `file` or `registry`.
    source: &'static str,
    /// The hash of what it says.
    sha256: String,
    /// Whether it is live.
    live: bool,
    /// For people.
    description: String,
    /// For people and searches.
    tags: BTreeMap<String, String>,
    /// The version that it was made from.
    parent: Option<String>,
    /// When it was registered, or first served from a file.
    created: Option<String>,
    /// Who registered it.
    by: Option<String>,
}

/// A gradual roll-out.
#[derive(Debug, Serialize, ToSchema)]
struct RolloutInfo {
    /// The version before.
    from: String,
    /// The version that it leads to.
    to: String,
    /// Users that get the new version now, in percent.
    weight: f64,
    /// All stages, such as `10% 1h`.
    stages: Vec<String>,
    /// The stage that it is at, from 1.
    stage: usize,
    /// Since when.
    stage_since: String,
    /// What must hold.
    #[schema(value_type = Object)]
    guardrails: Value,
    /// `running`, `finished` or `aborted`.
    state: RolloutPhase,
    /// Who started it.
    by: String,
    /// Why.
    reason: String,
}

/// How far a roll-out is.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
enum RolloutPhase {
    /// On its way.
    Running,
    /// Everybody has the new version.
    Finished,
    /// Everybody has the old one again.
    Aborted,
}

/// A deployment that is due later.
#[derive(Debug, Serialize, ToSchema)]
struct ScheduledInfo {
    /// The version.
    version: String,
    /// When it is due.
    at: String,
    /// Who decided it.
    by: String,
    /// Why.
    reason: String,
}

/// Something that happened.
#[derive(Debug, Serialize, ToSchema)]
struct EventInfo {
    /// When.
    at: String,
    /// Who did it.
    by: String,
    /// What, such as `deployed` or `rolled_back`.
    #[schema(value_type = String)]
    what: crate::registry::What,
    /// The version that it is about.
    version: String,
    /// The version before.
    from: Option<String>,
    /// The share of the new version, in percent, in a roll-out.
    weight: Option<f64>,
    /// Why.
    reason: String,
}

/// How two versions differ.
#[derive(Debug, Serialize, ToSchema)]
struct DifferenceInfo {
    /// Fields that are not the same.
    fields: Vec<FieldInfo>,
    /// A unified diff of what the versions say; empty where that is the same.
    unified: String,
}

/// A field that is not the same.
#[derive(Debug, Serialize, ToSchema)]
struct FieldInfo {
    /// Keys from the top, such as `parameters.temperature`.
    path: String,
    /// In the first version; `null` where it is not there.
    from: Value,
    /// In the second one.
    to: Value,
}

/// What became of a change.
#[derive(Debug, Serialize, ToSchema)]
struct ChangeInfo {
    /// The version that it was about.
    version: Option<String>,
    /// Whether anything is another one than before.
    changed: bool,
    /// The registry's revision from now on.
    revision: u64,
    /// What is true now.
    now: ShelfInfo,
}

/// A version to be registered: what a configuration would say of it, and what is said about it.
#[derive(Debug, Deserialize, ToSchema)]
struct AddRequest {
    /// Its name, such as `v3` or `1.2.0`. Default: the next `vN`.
    version: Option<String>,
    /// For people.
    #[serde(default)]
    description: String,
    /// For people and searches.
    #[serde(default)]
    tags: BTreeMap<String, String>,
    /// The version that it was made from.
    parent: Option<String>,
    /// What it says, as in the configuration: for a prompt `system`, `developer`, `variables`, …; for a model `target`, ….
    #[serde(flatten)]
    content: Map<String, Value>,
}

/// What is to go live, and how.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct DeployRequest {
    /// The version.
    version: String,
    /// Why.
    #[serde(default)]
    reason: String,
    /// When, as 2027-01-31T08:00:00Z. Default: at once.
    at: Option<String>,
    /// Stage by stage, rather than at once.
    rollout: Option<RolloutRequest>,
}

/// Stages of a roll-out.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct RolloutRequest {
    /// A share and for how long each, such as `10% 1h`; one without a time waits for somebody. The last one is `100%`.
    stages: Vec<String>,
    /// What must hold.
    #[serde(default)]
    #[schema(value_type = Object)]
    guardrails: Value,
}

/// Why.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct ReasonRequest {
    /// For the history and the audit log.
    #[serde(default)]
    reason: String,
}

/// What is to happen with a roll-out.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct StepRequest {
    /// `advance` to its next stage, or `abort` it.
    action: Step,
    /// Why.
    #[serde(default)]
    reason: String,
}

/// What can happen with a roll-out.
#[derive(Debug, Clone, Copy, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
enum Step {
    /// Its next stage, or its end.
    Advance,
    /// Everybody goes back.
    Abort,
}

/// Which two versions.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
struct Two {
    /// The first version.
    from: String,
    /// The second version. Default: the live one.
    to: Option<String>,
}

/// All models and prompts with their versions, what is live, and roll-outs
#[utoipa::path(get, path = "/api/registry", tag = "registry", operation_id = "list_registry",
    responses((status = OK, body = RegistryInfo)))]
async fn list(State(admin): State<Admin>) -> Answer<RegistryInfo> {
    Answer(RegistryInfo::of(&admin.shared.live.load_full().registry))
}

/// One model or prompt with its versions, what is live, and its roll-out
#[utoipa::path(get, path = "/api/{kind}/{name}/registry", tag = "registry", operation_id = "show_registered",
    params(("kind" = String, Path, description = "`models` or `prompts`"), ("name" = String, Path, description = "Its name")),
    responses((status = OK, body = ShelfInfo), (status = NOT_FOUND, body = Problem)))]
async fn show(
    State(admin): State<Admin>,
    Path((kind, name)): Path<(String, String)>,
) -> Result<Answer<ShelfInfo>, Problem> {
    let kind = kind_of(&kind)?;
    ShelfInfo::of(&admin.shared.live.load_full().registry, kind, &name).map(Answer)
}

/// What happened to a model or prompt, the newest first
#[utoipa::path(get, path = "/api/{kind}/{name}/history", tag = "registry", operation_id = "registry_history",
    params(("kind" = String, Path, description = "`models` or `prompts`"), ("name" = String, Path, description = "Its name")),
    responses((status = OK, body = Vec<EventInfo>), (status = NOT_FOUND, body = Problem)))]
async fn history(
    State(admin): State<Admin>,
    Path((kind, name)): Path<(String, String)>,
) -> Result<Answer<Vec<EventInfo>>, Problem> {
    let kind = kind_of(&kind)?;
    let registry = &admin.shared.live.load_full().registry;
    known(registry, kind, &name)?;
    let events = registry.shelf(kind, &name).map(|shelf| shelf.history.as_slice()).unwrap_or_default();
    Ok(Answer(events.iter().rev().map(EventInfo::of).collect()))
}

/// How two versions differ
///
/// Takes the role `operator`: it shows what prompts say.
#[utoipa::path(get, path = "/api/{kind}/{name}/diff", tag = "registry", operation_id = "diff_versions",
    params(("kind" = String, Path, description = "`models` or `prompts`"), ("name" = String, Path, description = "Its name"), Two),
    responses((status = OK, body = DifferenceInfo), (status = NOT_FOUND, body = Problem)))]
async fn diff(
    State(admin): State<Admin>,
    Path((kind, name)): Path<(String, String)>,
    Query(two): Query<Two>,
) -> Result<Answer<DifferenceInfo>, Problem> {
    let kind = kind_of(&kind)?;
    let registry = &admin.shared.live.load_full().registry;
    let live = ShelfInfo::of(registry, kind, &name)?.live;
    let to = two.to.or(live).unwrap_or_default();
    let (one, other) = (content(registry, kind, &name, &two.from)?, content(registry, kind, &name, &to)?);
    let (from, to) = (format!("{name}@{}", two.from), format!("{name}@{to}"));
    let found = differences((&from, &one), (&to, &other));
    let field = |field: crate::registry::Field| FieldInfo { path: field.path, from: field.from, to: field.to };
    Ok(Answer(DifferenceInfo { fields: found.fields.into_iter().map(field).collect(), unified: found.unified }))
}

/// Register a version
///
/// It serves once it is deployed. A version never changes: the same one again changes nothing, another one under its name is
/// refused (409). What could not serve is refused (422) with every problem. It is taken literally: no `${NAME}` is filled in. What a
/// prompt includes, of its own `partials` or of the gateway's folder of prompts, is part of the version from then on.
#[utoipa::path(post, path = "/api/{kind}/{name}/versions", tag = "registry", operation_id = "add_version",
    params(("kind" = String, Path, description = "`models` or `prompts`"), ("name" = String, Path, description = "Its name"),
        ("idempotency-key" = Option<String>, Header, description = "Any text that is used for this change alone")),
    request_body = AddRequest,
    responses((status = OK, body = ChangeInfo), (status = NOT_FOUND, body = Problem), (status = CONFLICT, body = Problem),
        (status = UNPROCESSABLE_ENTITY, body = Problem), (status = SERVICE_UNAVAILABLE, body = Problem)))]
async fn add(
    State(admin): State<Admin>,
    Actor(actor): Actor,
    Path((kind, name)): Path<(String, String)>,
    headers: HeaderMap,
    Json(request): Json<AddRequest>,
) -> Result<Answer<ChangeInfo>, Problem> {
    let kind = kind_of(&kind)?;
    let texts = request.tags.iter().flat_map(|(key, value)| [key, value]).chain([&request.description]);
    check_texts(texts)?;
    check_name(kind.noun(), &name)?;
    request.version.as_deref().map_or(Ok(()), |version| check_name("version", version))?;
    if request.tags.len() > TAGS_MAX {
        return Err(unprocessable("a version has at most 100 tags"));
    }
    if kind == Kind::Prompts && request.content.contains_key("file") {
        return Err(unprocessable(
            "a file is on one machine, and a registered version serves on all: write its text as `system`",
        ));
    }
    let reason = request.description.clone();
    let deed = Deed::AddVersion(NewVersion {
        version: request.version,
        content: Value::Object(request.content),
        description: request.description,
        tags: request.tags,
        parent: request.parent,
    });
    change(&admin, kind, &name, deed, &actor, &reason, &headers).await
}

/// Make a version live: at once, at a time, or stage by stage
///
/// At once, it serves on every gateway within a second. With `at`, it is planned; with `rollout`, users are led over by a share that
/// grows, and none goes back.
#[utoipa::path(post, path = "/api/{kind}/{name}/deploy", tag = "registry", operation_id = "deploy_version",
    params(("kind" = String, Path, description = "`models` or `prompts`"), ("name" = String, Path, description = "Its name"),
        ("idempotency-key" = Option<String>, Header, description = "Any text that is used for this change alone")),
    request_body = DeployRequest,
    responses((status = OK, body = ChangeInfo), (status = NOT_FOUND, body = Problem), (status = CONFLICT, body = Problem),
        (status = UNPROCESSABLE_ENTITY, body = Problem), (status = SERVICE_UNAVAILABLE, body = Problem)))]
async fn deploy(
    State(admin): State<Admin>,
    Actor(actor): Actor,
    Path((kind, name)): Path<(String, String)>,
    headers: HeaderMap,
    Json(request): Json<DeployRequest>,
) -> Result<Answer<ChangeInfo>, Problem> {
    let kind = kind_of(&kind)?;
    check_texts([&request.reason])?;
    let (version, reason) = (request.version, request.reason.clone());
    let deed = match (request.at, request.rollout) {
        (None, None) => Deed::Deploy { version, reason },
        (Some(at), None) => {
            let at = at.parse::<Timestamp>();
            let at = at.map_err(|_| unprocessable("write `at` as 2027-01-31T08:00:00Z"))?;
            Deed::Schedule { version, at, reason }
        }
        (None, Some(rollout)) => {
            let stages: Result<Vec<Stage>, String> = rollout.stages.iter().map(|stage| stage.parse()).collect();
            let stages = stages.and_then(Stages::new).map_err(|why| unprocessable(&why))?;
            Deed::StartRollout { version, stages, guardrails: rollout.guardrails, reason }
        }
        (Some(_), Some(_)) => return Err(unprocessable("write `at` or `rollout`: a roll-out begins at once")),
    };
    change(&admin, kind, &name, deed, &actor, &request.reason, &headers).await
}

/// Go back to the version that was live before
///
/// Again, it goes one further back. During a roll-out, everybody goes back to the version before it.
#[utoipa::path(post, path = "/api/{kind}/{name}/rollback", tag = "registry", operation_id = "rollback_version",
    params(("kind" = String, Path, description = "`models` or `prompts`"), ("name" = String, Path, description = "Its name"),
        ("idempotency-key" = Option<String>, Header, description = "Any text that is used for this change alone")),
    request_body = ReasonRequest,
    responses((status = OK, body = ChangeInfo), (status = NOT_FOUND, body = Problem), (status = CONFLICT, body = Problem),
        (status = UNPROCESSABLE_ENTITY, body = Problem), (status = SERVICE_UNAVAILABLE, body = Problem)))]
async fn rollback(
    State(admin): State<Admin>,
    Actor(actor): Actor,
    Path((kind, name)): Path<(String, String)>,
    headers: HeaderMap,
    Json(request): Json<ReasonRequest>,
) -> Result<Answer<ChangeInfo>, Problem> {
    let kind = kind_of(&kind)?;
    check_texts([&request.reason])?;
    let deed = Deed::Rollback { reason: request.reason.clone() };
    change(&admin, kind, &name, deed, &actor, &request.reason, &headers).await
}

/// The last roll-out
#[utoipa::path(get, path = "/api/{kind}/{name}/rollout", tag = "registry", operation_id = "show_rollout",
    params(("kind" = String, Path, description = "`models` or `prompts`"), ("name" = String, Path, description = "Its name")),
    responses((status = OK, body = RolloutInfo), (status = NOT_FOUND, body = Problem)))]
async fn rollout(
    State(admin): State<Admin>,
    Path((kind, name)): Path<(String, String)>,
) -> Result<Answer<RolloutInfo>, Problem> {
    let kind = kind_of(&kind)?;
    let registry = &admin.shared.live.load_full().registry;
    let rollout = registry.shelf(kind, &name).and_then(|shelf| shelf.rollout.as_ref());
    let none = || Problem::not_found(format!("no version of `{name}` was ever rolled out"));
    rollout.map(|rollout| Answer(RolloutInfo::of(rollout))).ok_or_else(none)
}

/// Go on with a roll-out, or abort it
#[utoipa::path(post, path = "/api/{kind}/{name}/rollout", tag = "registry", operation_id = "step_rollout",
    params(("kind" = String, Path, description = "`models` or `prompts`"), ("name" = String, Path, description = "Its name"),
        ("idempotency-key" = Option<String>, Header, description = "Any text that is used for this change alone")),
    request_body = StepRequest,
    responses((status = OK, body = ChangeInfo), (status = NOT_FOUND, body = Problem), (status = CONFLICT, body = Problem),
        (status = UNPROCESSABLE_ENTITY, body = Problem), (status = SERVICE_UNAVAILABLE, body = Problem)))]
async fn step_rollout(
    State(admin): State<Admin>,
    Actor(actor): Actor,
    Path((kind, name)): Path<(String, String)>,
    headers: HeaderMap,
    Json(request): Json<StepRequest>,
) -> Result<Answer<ChangeInfo>, Problem> {
    let kind = kind_of(&kind)?;
    check_texts([&request.reason])?;
    let deed = match request.action {
        Step::Abort => Deed::AbortRollout { reason: request.reason.clone() },
        Step::Advance => {
            let rollout = admin.shared.live.load_full();
            let rollout = rollout.registry.rollout(kind, &name);
            Deed::AdvanceRollout { stage: rollout.map_or(0, |rollout| rollout.stage) }
        }
    };
    change(&admin, kind, &name, deed, &actor, &request.reason, &headers).await
}

/// Call a planned deployment off
#[utoipa::path(delete, path = "/api/{kind}/{name}/schedule", tag = "registry", operation_id = "cancel_schedule",
    params(("kind" = String, Path, description = "`models` or `prompts`"), ("name" = String, Path, description = "Its name")),
    responses((status = OK, body = ChangeInfo), (status = NOT_FOUND, body = Problem), (status = CONFLICT, body = Problem),
        (status = SERVICE_UNAVAILABLE, body = Problem)))]
async fn cancel_schedule(
    State(admin): State<Admin>,
    Actor(actor): Actor,
    Path((kind, name)): Path<(String, String)>,
    headers: HeaderMap,
) -> Result<Answer<ChangeInfo>, Problem> {
    change(&admin, kind_of(&kind)?, &name, Deed::CancelSchedule, &actor, "", &headers).await
}

async fn change(
    admin: &Admin,
    kind: Kind,
    name: &str,
    deed: Deed,
    who: &str,
    reason: &str,
    headers: &HeaderMap,
) -> Result<Answer<ChangeInfo>, Problem> {
    let key = idempotency_key(headers)?;
    let command = Command::To { kind, name: name.to_owned(), deed };
    let changed = admin.shared.registrar.change(&command, Wanted { who, reason, key }).await?;
    let Changed { book, revision, changed, version } = changed;
    let registry = admin.shared.live.load_full().registry.with_book(book);
    let now = ShelfInfo::of(&registry, kind, name)?;
    Ok(Answer(ChangeInfo { version, changed, revision, now }))
}

/// The client's name for a change.
pub(super) fn idempotency_key(headers: &HeaderMap) -> Result<Option<&str>, Problem> {
    let key = headers.get("idempotency-key").and_then(|key| key.to_str().ok()).map(str::trim);
    match key {
        Some(key) if key.is_empty() || key.len() > KEY_BYTES_MAX => {
            Err(Problem::new(StatusCode::BAD_REQUEST, "an `Idempotency-Key` has 1 to 200 characters"))
        }
        key => Ok(key),
    }
}

fn kind_of(text: &str) -> Result<Kind, Problem> {
    match text {
        "models" => Ok(Kind::Models),
        "prompts" => Ok(Kind::Prompts),
        other => Err(Problem::not_found(format!("`{other}` has no versions: `models` and `prompts` have"))),
    }
}

fn known(registry: &InRegistry, kind: Kind, name: &str) -> Result<(), Problem> {
    match registry.files.get(kind, name).is_some() || registry.shelf(kind, name).is_some() {
        true => Ok(()),
        false => Err(Problem::not_found(format!("no {} is named `{name}`", kind.noun()))),
    }
}

/// What a version says, wherever it came from.
pub(super) fn content(registry: &InRegistry, kind: Kind, name: &str, version: &str) -> Result<Value, Problem> {
    let registered = registry.shelf(kind, name).and_then(|shelf| shelf.versions.get(version));
    let declared = || registry.files.get(kind, name)?.contents.get(version);
    let found = registered.map(|registered| &registered.content).or_else(declared);
    let none = || Problem::not_found(format!("the {} `{name}` has no version `{version}`", kind.noun()));
    found.cloned().ok_or_else(none)
}

pub(super) fn check_texts<'t>(texts: impl IntoIterator<Item = &'t String>) -> Result<(), Problem> {
    match texts.into_iter().all(|text| text.len() <= TEXT_BYTES_MAX) {
        true => Ok(()),
        false => Err(unprocessable("reasons, descriptions and tags have at most 1000 bytes")),
    }
}

/// As the configuration's own names, which go into paths, metrics and headers.
pub(super) fn check_name(what: &str, name: &str) -> Result<(), Problem> {
    let is_fine = |c: char| c.is_ascii_alphanumeric() || "-_.:+".contains(c);
    match !name.is_empty() && name.len() <= 128 && name.chars().all(is_fine) {
        true => Ok(()),
        false => {
            Err(unprocessable(&format!("a {what}'s name has 1 to 128 letters, digits, `-`, `_`, `.`, `+` and `:`")))
        }
    }
}

fn unprocessable(why: &str) -> Problem {
    Problem::new(StatusCode::UNPROCESSABLE_ENTITY, why)
}

impl From<ChangeError> for Problem {
    fn from(error: ChangeError) -> Problem {
        let status = match &error {
            ChangeError::Refused(Refusal::NotFound(_)) => StatusCode::NOT_FOUND,
            ChangeError::Refused(Refusal::Conflict(_)) => StatusCode::CONFLICT,
            ChangeError::Refused(Refusal::Wrong(_)) => StatusCode::UNPROCESSABLE_ENTITY,
            ChangeError::Store(_) => StatusCode::SERVICE_UNAVAILABLE,
        };
        Problem::new(status, error.to_string())
    }
}

impl RegistryInfo {
    pub(super) fn of(registry: &InRegistry) -> RegistryInfo {
        let all = |kind: Kind, in_files: Vec<&String>| {
            let mut names: Vec<&String> = registry.book.shelves(kind).keys().chain(in_files).collect();
            names.sort();
            names.dedup();
            names.into_iter().filter_map(|name| ShelfInfo::of(registry, kind, name).ok()).collect()
        };
        RegistryInfo {
            revision: registry.number(),
            models: all(Kind::Models, registry.files.models.keys().collect()),
            prompts: all(Kind::Prompts, registry.files.prompts.keys().collect()),
        }
    }
}

impl ShelfInfo {
    fn of(registry: &InRegistry, kind: Kind, name: &str) -> Result<ShelfInfo, Problem> {
        known(registry, kind, name)?;
        let nothing = Shelf::default();
        let shelf = registry.shelf(kind, name).unwrap_or(&nothing);
        let declared = registry.files.get(kind, name);
        let effective = shelf.effective(declared);
        let deployment = shelf.live.as_ref().filter(|_| effective.is_some_and(|effective| effective.deployed));
        let mut versions = VersionRow::all(shelf, declared);
        for row in &mut versions {
            row.live = effective.is_some_and(|effective| effective.version == row.version);
        }
        let scheduled = shelf.scheduled.as_ref().map(|scheduled| ScheduledInfo {
            version: scheduled.version.clone(),
            at: scheduled.at.to_string(),
            by: scheduled.by.clone(),
            reason: scheduled.reason.clone(),
        });
        Ok(ShelfInfo {
            kind: kind.section(),
            name: name.to_owned(),
            live: effective.map(|effective| effective.version.to_owned()),
            live_by: effective.map(|effective| if effective.deployed { "registry" } else { "file" }),
            live_since: deployment.map(|live| live.at.to_string()),
            deployed_by: deployment.map(|live| live.by.clone()),
            pinned: declared.is_some_and(|declared| declared.pin),
            versions,
            rollout: shelf.running(declared).map(RolloutInfo::of),
            scheduled,
        })
    }
}

impl VersionRow {
    fn all(shelf: &Shelf, declared: Option<&crate::registry::Declared>) -> Vec<VersionRow> {
        let of_registry = shelf.versions.iter().map(|(version, known)| VersionRow {
            version: version.clone(),
            source: "registry",
            sha256: known.sha256.clone(),
            live: false,
            description: known.description.clone(),
            tags: known.tags.clone(),
            parent: known.parent.clone(),
            created: Some(known.created_at.to_string()),
            by: Some(known.by.clone()),
        });
        let in_files = declared.into_iter().flat_map(|declared| &declared.versions);
        let of_files = in_files.filter(|(version, _)| !shelf.versions.contains_key(*version));
        let of_files = of_files.map(|(version, sha256)| VersionRow {
            version: version.clone(),
            source: "file",
            sha256: sha256.clone(),
            live: false,
            description: String::new(),
            tags: BTreeMap::new(),
            parent: None,
            created: shelf.seals.get(version).map(|seal| seal.at.to_string()),
            by: None,
        });
        let mut rows: Vec<VersionRow> = of_registry.chain(of_files).collect();
        rows.sort_by(|a, b| compare_versions(&a.version, &b.version));
        rows
    }
}

impl RolloutInfo {
    fn of(rollout: &Rollout) -> RolloutInfo {
        RolloutInfo {
            from: rollout.from.clone(),
            to: rollout.to.clone(),
            weight: rollout.weight(),
            stages: rollout.stages.iter().map(ToString::to_string).collect(),
            stage: rollout.stage + 1,
            stage_since: rollout.stage_since.to_string(),
            guardrails: rollout.guardrails.clone(),
            state: match rollout.state {
                RolloutState::Running => RolloutPhase::Running,
                RolloutState::Finished => RolloutPhase::Finished,
                RolloutState::Aborted => RolloutPhase::Aborted,
            },
            by: rollout.by.clone(),
            reason: rollout.reason.clone(),
        }
    }
}

impl EventInfo {
    fn of(event: &Event) -> EventInfo {
        EventInfo {
            at: event.at.to_string(),
            by: event.by.clone(),
            what: event.what,
            version: event.version.clone(),
            from: event.from.clone(),
            weight: event.weight,
            reason: event.reason.clone(),
        }
    }
}
