//! The preview of a prompt: its variables as a form, and what it says with them.

use axum::response::IntoResponse;
use http::StatusCode;
use serde::Serialize;
use serde_json::{Map, json};

use super::visit::{Shown, Visit, word};
use crate::{
    admin::prompts,
    config::{Snapshot, prompts::Named},
    policy::prompt::VariableKind,
};

/// One field of the form.
#[derive(Debug, Serialize)]
struct Field {
    name: String,
    kind: &'static str,
    description: Option<String>,
    /// What was typed, or else the default.
    value: String,
}

pub(super) async fn show(visit: Visit) -> Shown {
    let snapshot = visit.admin.shared.live.load_full();
    let wanted = visit.parameter("prompt").map(str::to_owned);
    let all: Vec<String> = snapshot.all_prompts().iter().map(Named::label).collect();
    let Some(wanted) = wanted.or_else(|| all.first().cloned()) else {
        return Ok(visit.page("prompt_preview.html", json!({ "prompts": all })));
    };
    let named = match snapshot.find_prompt(&wanted) {
        Ok(named) => named,
        Err(why) => return Err(visit.sorry(StatusCode::NOT_FOUND, word("There is no such prompt."), &why)),
    };
    let page = page(&visit, &snapshot, named, &all);
    Ok(visit.page("prompt_preview.html", page).into_response())
}

fn page(visit: &Visit, snapshot: &Snapshot, named: Named<'_>, all: &[String]) -> serde_json::Value {
    let model = visit.parameter("model");
    let fields: Vec<Field> = named.template.used().map(|(name, kind)| field(visit, named, name, kind)).collect();
    let mut variables = Map::new();
    for field in &fields {
        if let Some(typed) = visit.parameter(&format!("var.{}", field.name)) {
            variables.insert(field.name.clone(), named.typed(&field.name, typed));
        }
    }
    let mut models: Vec<String> = snapshot.models.keys().map(ToString::to_string).collect();
    models.sort_unstable();
    let (rendering, refusal) = match prompts::rendering(snapshot, named, &variables, model) {
        Ok(rendering) => (Some(rendering), None),
        Err(what) => (None, Some(what)),
    };
    json!({
        "prompts": all,
        "chosen": named.label(),
        "models": models,
        "model": model,
        "fields": fields,
        "rendering": rendering,
        "refusal": refusal,
        "findings": named.lint(snapshot),
    })
}

fn field(visit: &Visit, named: Named<'_>, name: &str, kind: VariableKind) -> Field {
    let declared = named.template.source().variables.iter().find(|variable| variable.name == *name);
    let default = declared.and_then(|variable| variable.default.as_ref());
    let default = default.map(|value| value.as_str().map_or_else(|| value.to_string(), str::to_owned));
    let typed = visit.parameter(&format!("var.{name}")).map(str::to_owned);
    Field {
        name: name.to_owned(),
        kind: kind.name(),
        description: declared.and_then(|variable| variable.description.clone()),
        value: typed.or(default).unwrap_or_default(),
    }
}
