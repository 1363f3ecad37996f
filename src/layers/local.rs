//! Answers what the gateway knows itself: `GET /v1/models` and `GET /v1/models/{id}` list what the caller's key may use.

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use serde_json::{Value, json};

use crate::{
    body::ReplyBody,
    call::{Authenticated, Reply},
    config::Snapshot,
    error::GatewayError,
    layers::{Early, Turn},
    policy::keys::Caller,
    wire::endpoint::{Dialect, Endpoint},
};

/// See the module.
#[derive(Debug)]
pub struct AnswerLocally;

impl Turn for AnswerLocally {
    type In = Authenticated;
    type Next = Authenticated;

    fn turn(&self, call: Authenticated) -> Result<Authenticated, Early> {
        // Without a registry the provider's own list is the truth.
        let providers_own = call.snapshot.models.is_empty() && call.snapshot.default_provider.is_some();
        if call.arrival.head.method != Method::GET || providers_own {
            return Ok(call);
        }
        let anthropic = call.arrival.head.headers.contains_key("anthropic-version");
        let dialect = if anthropic { Dialect::Anthropic } else { Dialect::OpenAi };
        match &call.arrival.head.endpoint {
            Endpoint::Models => Err(reply(&list(&call.snapshot, &call.caller, dialect)).into()),
            Endpoint::Model(id) => match describe(&call.snapshot, &call.caller, id, dialect) {
                Some(model) => Err(reply(&model).into()),
                None => Err(GatewayError::ModelNotFound(id.to_string()).into()),
            },
            _ => Ok(call),
        }
    }
}

/// What the caller may name: aliases, and the targets behind them where the key's list allows those by themselves.
fn names(snapshot: &Snapshot, caller: &Caller) -> Vec<String> {
    let aliases = snapshot.models.keys().map(|name| name.to_string());
    let targets = snapshot.models.values().flat_map(|model| model.versions.values()).flat_map(|version| {
        let weighted = version.targets.iter().map(|(target, _)| target);
        weighted.chain(&version.fallbacks).map(|target| format!("{}/{}", target.provider.name, target.model))
    });
    let mut names: Vec<String> = aliases.chain(targets).filter(|name| caller.models.allows(name, None)).collect();
    names.sort();
    names.dedup();
    names
}

fn list(snapshot: &Snapshot, caller: &Caller, dialect: Dialect) -> Value {
    let data: Vec<Value> = names(snapshot, caller).iter().map(|name| entry(name, dialect)).collect();
    match dialect {
        Dialect::OpenAi => json!({"object": "list", "data": data}),
        Dialect::Anthropic => json!({"data": data, "has_more": false, "first_id": null, "last_id": null}),
    }
}

fn describe(snapshot: &Snapshot, caller: &Caller, id: &str, dialect: Dialect) -> Option<Value> {
    names(snapshot, caller).iter().find(|name| *name == id).map(|name| entry(name, dialect))
}

fn entry(name: &str, dialect: Dialect) -> Value {
    let owner = name.split_once('/').map_or("tollgate", |(provider, _)| provider);
    match dialect {
        Dialect::OpenAi => json!({"id": name, "object": "model", "created": 0, "owned_by": owner}),
        Dialect::Anthropic => {
            json!({"id": name, "type": "model", "display_name": name, "created_at": "1970-01-01T00:00:00Z"})
        }
    }
}

fn reply(value: &Value) -> Reply {
    let mut headers = HeaderMap::new();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    Reply { status: StatusCode::OK, headers, body: ReplyBody::own(Bytes::from(value.to_string())) }
}
