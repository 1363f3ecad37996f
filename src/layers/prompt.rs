//! Renders the call's prompt template and splices it in. Values are data: they can't become template or JSON.
//!
//! Stage: [`Planned`] in, [`Planned`] out. The prompt's text never reaches an error or a log.

use http::{HeaderMap, HeaderName};
use serde_json::{Map, Value};

use crate::{
    call::{Document, Failure, Payload, Planned},
    config::{Snapshot, snapshot::PromptRef},
    error::GatewayError,
    layers::{Early, Turn},
    policy::prompt::{PromptError, Rendered, Template},
    recorder,
    registry::Kind,
    wire::{
        edit::{self, EditError, Role},
        endpoint::Endpoint,
        json::Edits,
    },
};

const PROMPT: HeaderName = HeaderName::from_static("x-tollgate-prompt");
const VARS: HeaderName = HeaderName::from_static("x-tollgate-vars");

/// See the module.
#[derive(Debug)]
pub struct InjectPrompt;

impl Turn for InjectPrompt {
    type In = Planned;
    type Next = Planned;

    fn turn(&self, mut planned: Planned) -> Result<Planned, Early> {
        match inject(&mut planned) {
            Ok(()) => Ok(planned),
            Err(error) => {
                let facts = recorder::of_call(&planned.call, Some(&planned.plan));
                Err(Failure::early(error, facts).into())
            }
        }
    }
}

fn inject(planned: &mut Planned) -> Result<(), GatewayError> {
    let call = &planned.call;
    if let (Some(named), Payload::Json(_)) = (call.head.headers.get(PROMPT), &call.payload) {
        let named = named.to_str().unwrap_or_default();
        planned.plan.prompt = Some(named_prompt(&call.snapshot, named, &call.identity.user)?);
    }
    if let (Some(wanted), Payload::Json(document)) = (&planned.plan.prompt, &call.payload) {
        let template = wanted.prompt.versions.get(&wanted.version).ok_or_else(|| {
            GatewayError::invalid(format!("prompt `{}` has no version `{}`", wanted.prompt.name, wanted.version), None)
        })?;
        let rendered = render(template, &call.head.headers, document)?;
        splice(&call.head.endpoint, document, &rendered, &mut planned.edits)?;
    }
    Ok(())
}

/// `name` or `name@version` of `x-tollgate-prompt`.
fn named_prompt(snapshot: &Snapshot, named: &str, user: &str) -> Result<PromptRef, GatewayError> {
    let (name, version) = named.split_once('@').map_or((named, None), |(name, version)| (name, Some(version)));
    let unknown =
        || GatewayError::invalid(format!("no prompt `{named}` here: see x-tollgate-prompt"), Some("x-tollgate-prompt"));
    let prompt = snapshot.prompts.get(name).ok_or_else(unknown)?;
    let chosen = || snapshot.registry.choose(Kind::Prompts, name, user).unwrap_or(&prompt.live);
    let pinned = version.is_some();
    let version = version.unwrap_or_else(|| chosen());
    let (version, _) = prompt.versions.get_key_value(version).ok_or_else(unknown)?;
    Ok(PromptRef { prompt: prompt.clone(), version: version.clone(), pinned })
}

fn render(template: &Template, headers: &HeaderMap, document: &Document) -> Result<Rendered, GatewayError> {
    let variables = if template.is_constant() { Map::new() } else { variables(headers, document)? };
    template.render(&variables).map_err(|error| match &error {
        PromptError::MissingVariable { name, .. } | PromptError::WrongType { name, .. } => {
            GatewayError::PromptVariable {
                message: format!("{error}; give it in the x-tollgate-vars header or in the body's metadata"),
                param: name.to_string(),
            }
        }
        _ => GatewayError::invalid(error.to_string(), None),
    })
}

/// The body's `metadata`, and over it `x-tollgate-vars`.
fn variables(headers: &HeaderMap, document: &Document) -> Result<Map<String, Value>, GatewayError> {
    let mut variables = match document.scan.get("metadata") {
        Some(span) => serde_json::from_slice(span.of(&document.bytes)).unwrap_or_default(),
        None => Map::new(),
    };
    if let Some(header) = headers.get(VARS) {
        let given: Map<String, Value> = serde_json::from_slice(header.as_bytes()).map_err(|_| {
            GatewayError::invalid(
                "header `x-tollgate-vars` must be a JSON object, as in {\"name\": \"value\"}",
                Some("x-tollgate-vars"),
            )
        })?;
        variables.extend(given);
    }
    Ok(variables)
}

fn splice(
    endpoint: &Endpoint,
    document: &Document,
    rendered: &Rendered,
    edits: &mut Edits,
) -> Result<(), GatewayError> {
    let cannot = |error: EditError| GatewayError::invalid(error.to_string(), None);
    let (body, scan) = (&document.bytes, &document.scan);
    match (&rendered.system, &rendered.developer) {
        // One field takes both (`instructions`, `system`).
        (Some(system), Some(developer)) if *endpoint != Endpoint::ChatCompletions => {
            let both = format!("{system}\n\n{developer}");
            edit::inject_prompt(edits, endpoint, body, scan, Role::System, &both).map_err(cannot)?;
        }
        // In this order, so that the model reads the system's words before the developer's.
        (system, developer) => {
            for (role, text) in [(Role::System, system), (Role::Developer, developer)] {
                if let Some(text) = text {
                    edit::inject_prompt(edits, endpoint, body, scan, role, text).map_err(cannot)?;
                }
            }
        }
    }
    if !rendered.messages.is_empty() {
        let messages: Vec<(Role, &str)> = rendered.messages.iter().map(|one| (one.role, &*one.content)).collect();
        edit::inject_messages(edits, endpoint, body, scan, &messages).map_err(cannot)?;
    }
    if rendered.before_user.is_some() || rendered.after_user.is_some() {
        let (before, after) = (rendered.before_user.as_deref(), rendered.after_user.as_deref());
        edit::around_last_user(edits, endpoint, body, scan, before, after).map_err(cannot)?;
    }
    Ok(())
}
