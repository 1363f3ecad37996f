//! `/api/prompts/{name}/render`: what a prompt adds to a call with given variables, without a call.

use axum::{Json, extract::State};
use http::StatusCode;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use utoipa::ToSchema;

use super::{
    Admin,
    extract::{self, Path},
    openapi::{Api, routes},
    problem::Problem,
};
use crate::{
    config::{Snapshot, prompts::Named},
    policy::prompt_preview,
};

/// The tokenizer that counts where no model is named and none injects the prompt.
const FALLBACK_MODEL: &str = "gpt-4o";

pub(super) fn router() -> Api {
    Api::default().routes(routes!(render))
}

/// What to render.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
struct RenderRequest {
    /// The version; the live one where none is named.
    version: Option<String>,
    /// The values of the variables, by name.
    #[schema(value_type = Object)]
    variables: Map<String, Value>,
    /// The model that counts and prices, an alias or `provider/model`; default: one that injects the prompt.
    model: Option<String>,
}

/// What the prompt adds to a call.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Rendering {
    /// The prompt.
    prompt: String,
    /// The version.
    version: String,
    /// `provider/model` whose tokenizer and price were taken; absent where no model injects the prompt.
    model: Option<String>,
    /// What stands before the conversation.
    messages: Vec<RenderedMessage>,
    /// What stands before the user's own text.
    before_user: Option<String>,
    /// What stands after it.
    after_user: Option<String>,
    /// Tokens of all of it.
    tokens: u64,
    /// Whether the model's own tokenizer counted them.
    exact: bool,
    /// What they cost a call that reads nothing of it from a cache, in USD; absent where no price is known.
    cost_usd: Option<String>,
}

/// One message.
#[derive(Debug, Serialize, ToSchema)]
struct RenderedMessage {
    /// `system`, `developer`, `user` or `assistant`.
    role: &'static str,
    /// Its text.
    content: String,
}

/// Render a prompt
///
/// Nothing is sent to a provider, and nothing is kept.
#[utoipa::path(post, path = "/api/prompts/{name}/render", tag = "models", operation_id = "render_prompt",
    params(("name" = String, Path, description = "The prompt's name")), request_body = RenderRequest,
    responses((status = OK, body = Rendering), (status = NOT_FOUND, body = Problem),
        (status = UNPROCESSABLE_ENTITY, body = Problem)))]
async fn render(
    State(admin): State<Admin>,
    Path(name): Path<String>,
    extract::Json(request): extract::Json<RenderRequest>,
) -> Result<Json<Rendering>, Problem> {
    let snapshot = admin.shared.live.load_full();
    let wanted = request.version.map_or_else(|| name.clone(), |version| format!("{name}@{version}"));
    let named = snapshot.find_prompt(&wanted).map_err(Problem::not_found)?;
    let rendering = rendering(&snapshot, named, &request.variables, request.model.as_deref());
    rendering.map(Json).map_err(|what| Problem::new(StatusCode::UNPROCESSABLE_ENTITY, what))
}

/// Renders, counts and prices.
///
/// # Errors
/// What is missing or wrong.
pub(super) fn rendering(
    snapshot: &Snapshot,
    named: Named<'_>,
    variables: &Map<String, Value>,
    model: Option<&str>,
) -> Result<Rendering, String> {
    let target = match model {
        Some(model) => Some(snapshot.main_target(model)?),
        None => snapshot.uses_of(named).into_iter().next().map(|one| one.target),
    };
    let rendered = named.template.render(variables).map_err(|error| error.to_string())?;
    let price = target.as_ref().and_then(|target| target.price.as_deref());
    let counted_by = target.as_ref().map_or(FALLBACK_MODEL, |target| &target.model);
    let preview = prompt_preview::preview(&rendered, counted_by, price, Timestamp::now());
    let messages = preview.messages.iter();
    Ok(Rendering {
        prompt: named.prompt.name.to_string(),
        version: named.template.version().to_string(),
        model: target.map(|target| format!("{}/{}", target.provider.name, target.model)),
        messages: messages
            .map(|one| RenderedMessage { role: one.role.name(), content: one.content.to_string() })
            .collect(),
        before_user: preview.before_user.map(|text| text.to_string()),
        after_user: preview.after_user.map(|text| text.to_string()),
        tokens: preview.tokens.0,
        exact: preview.exact,
        cost_usd: preview.cost.map(|cost| cost.to_string()),
    })
}
