//! `/api/keys`: the virtual keys, never what opens anything. The deeds are in [`super::keyring`].

use std::collections::BTreeMap;

use axum::{
    extract::State,
    response::{IntoResponse, Response},
};
use http::{StatusCode, Uri};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::{
    Admin,
    extract::{Json, Path, Query},
    guard::Actor,
    keyring::{Keyring, KeyringError, Who, time},
    openapi::{Api, routes},
    paging::{self, Page},
    problem::Problem,
};
use crate::{
    config::Snapshot,
    policy::keys::{Caller, ModelAccess},
    store::keys::{KeyRow, KeyStore, KeyStoreError, NewKey},
};

/// The longest reason, in bytes.
const REASON_BYTES_MAX: usize = 1000;
/// Models and tags of a key, and the length of each, in bytes.
const LIST_MAX: usize = 100;
const TEXT_BYTES_MAX: usize = 256;

pub(super) fn router() -> Api {
    Api::default().routes(routes!(list, create)).routes(routes!(revoke))
}

/// A virtual key: neither its secret nor a hash of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
struct KeyInfo {
    /// Its name: identity in logs, budgets and metrics.
    name: String,
    /// Its public part; absent for keys of the configuration.
    id: Option<String>,
    /// `configuration`, or `store`: made at run time.
    source: &'static str,
    /// `in_use`, `expired` or `revoked`.
    state: &'static str,
    /// The team it belongs to.
    team: Option<String>,
    /// Patterns of the models it may name; none: all.
    models: Vec<String>,
    /// Its tags.
    tags: BTreeMap<String, String>,
    /// When it was made.
    created: Option<String>,
    /// When it stops being valid.
    expires: Option<String>,
    /// When it was revoked.
    revoked: Option<String>,
}

/// A key to make.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct CreateKey {
    /// Its name; no other key in use has it.
    #[schema(min_length = 1, max_length = 128)]
    name: String,
    /// The team it belongs to.
    team: Option<String>,
    /// Patterns of the models it may name: an alias, `provider/model`, `provider/*` or `prefix*`. None: all.
    #[serde(default)]
    models: Vec<String>,
    /// Tags on all its calls.
    #[serde(default)]
    tags: BTreeMap<String, String>,
    /// When it stops being valid, such as `2027-01-31T00:00:00Z`.
    expires: Option<String>,
    /// Why, for the audit log.
    #[serde(default)]
    reason: String,
}

/// A key that was made, or was there already.
#[derive(Debug, Serialize, ToSchema)]
struct CreatedKey {
    /// The key itself, shown this once. `null` where the same request was sent before: if its answer was lost, revoke and create.
    secret: Option<String>,
    /// Which key.
    key: KeyInfo,
}

/// The virtual keys, by name, revoked ones included
#[utoipa::path(get, path = "/api/keys", tag = "keys", operation_id = "list_keys", params(Page),
    responses((status = OK, body = Vec<KeyInfo>), (status = SERVICE_UNAVAILABLE, body = Problem)))]
async fn list(State(admin): State<Admin>, uri: Uri, Query(page): Query<Page>) -> Result<Response, Problem> {
    let configured = configured(&admin.shared.live.load_full());
    let stored = with_store(&admin, |keyring| Ok(keyring.store.list()?)).await?;
    let now_ms = Timestamp::now().as_millisecond();
    let all = configured.into_iter().chain(stored.into_iter().map(|row| KeyInfo::of(row, now_ms)));
    // A name may be used again once its key is revoked; neither names nor ids have control characters.
    let keyed = |key: KeyInfo| (format!("{}\t{}", key.name, key.id.as_deref().unwrap_or_default()), key);
    let mut rows: Vec<(String, KeyInfo)> = all.map(keyed).collect();
    rows.sort_by(|(a, _), (b, _)| a.cmp(b));
    let (rows, next) = page.of(rows, |(place, _)| place);
    let rows: Vec<KeyInfo> = rows.into_iter().map(|(_, key)| key).collect();
    Ok(paging::respond(&rows, &uri, next.as_deref()))
}

/// Make a key
///
/// Its secret is in the answer and nowhere else. All gateways on this data directory take it within two seconds. Sent again as it
/// was, nothing more is made: 200, without the secret. With another team, models, tags or end, and the name of a key in use: 409.
#[utoipa::path(post, path = "/api/keys", tag = "keys", operation_id = "create_key", request_body = CreateKey,
    responses((status = CREATED, body = CreatedKey), (status = OK, body = CreatedKey),
        (status = CONFLICT, body = Problem), (status = UNPROCESSABLE_ENTITY, body = Problem),
        (status = SERVICE_UNAVAILABLE, body = Problem)))]
async fn create(
    State(admin): State<Admin>,
    Actor(actor): Actor,
    Json(request): Json<CreateKey>,
) -> Result<Response, Problem> {
    let now_ms = Timestamp::now().as_millisecond();
    let (key, reason) = request.read()?;
    refuse_configured(&admin, &key.name, "choose another name")?;
    let made = with_store(&admin, move |keyring| {
        if let Some(same) = in_use(keyring.store, &key.name)?.filter(|row| is_same(row, &key)) {
            return Ok((None, same));
        }
        if key.expires_ms.is_some_and(|expires_ms| expires_ms <= now_ms) {
            return Err(unprocessable("`expires` lies in the past"));
        }
        let created = keyring.create(&key, Who { actor: &actor, reason: &reason })?;
        let row = in_use(keyring.store, &created.id)?;
        let row = row.ok_or_else(|| Problem::new(StatusCode::CONFLICT, "it was revoked meanwhile"))?;
        Ok((Some(created.secret), row))
    });
    let (secret, row) = made.await?;
    let status = if secret.is_some() { StatusCode::CREATED } else { StatusCode::OK };
    let secret = secret.map(|secret| secret.expose().to_owned());
    Ok((status, axum::Json(CreatedKey { secret, key: KeyInfo::of(row, now_ms) })).into_response())
}

/// Why.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
struct Reason {
    /// For the audit log.
    reason: Option<String>,
}

/// Revoke a key
///
/// All gateways on this data directory refuse it within two seconds. Sent again, nothing more happens.
#[utoipa::path(delete, path = "/api/keys/{name}", tag = "keys", operation_id = "revoke_key",
    params(("name" = String, Path, description = "Its name, or its public id"), Reason),
    responses((status = OK, body = KeyInfo), (status = NOT_FOUND, body = Problem), (status = CONFLICT, body = Problem),
        (status = UNPROCESSABLE_ENTITY, body = Problem), (status = SERVICE_UNAVAILABLE, body = Problem)))]
async fn revoke(
    State(admin): State<Admin>,
    Actor(actor): Actor,
    Path(name): Path<String>,
    Query(reason): Query<Reason>,
) -> Result<axum::Json<KeyInfo>, Problem> {
    let reason = checked_reason(reason.reason.unwrap_or_default())?;
    refuse_configured(&admin, &name, "take it out there")?;
    let revoked = with_store(&admin, move |keyring| {
        if let Some(before) = last_revoked(keyring.store, &name)? {
            return Ok(before);
        }
        Ok(keyring.revoke(&name, Who { actor: &actor, reason: &reason })?)
    });
    Ok(axum::Json(KeyInfo::of(revoked.await?, Timestamp::now().as_millisecond())))
}

/// The key that was revoked last of those with this name or id, where none is in use.
fn last_revoked(store: &KeyStore, name: &str) -> Result<Option<KeyRow>, Problem> {
    if in_use(store, name)?.is_some() {
        return Ok(None);
    }
    Ok(store.list()?.into_iter().rfind(|row| row.name == name || row.id == name))
}

fn in_use(store: &KeyStore, name: &str) -> Result<Option<KeyRow>, Problem> {
    let named = |row: &KeyRow| row.revoked_ms.is_none() && (row.name == name || row.id == name);
    Ok(store.list()?.into_iter().find(named))
}

/// Whether `row` is what `key` asks for.
fn is_same(row: &KeyRow, key: &NewKey) -> bool {
    row.team == key.team && row.models == key.models && row.tags == key.tags && row.expires_ms == key.expires_ms
}

/// Keys of the configuration are made and ended there.
fn refuse_configured(admin: &Admin, name: &str, mend: &str) -> Result<(), Problem> {
    let snapshot = admin.shared.live.load_full();
    let is_configured = snapshot.config_keys.iter().any(|(_, caller)| *caller.name == *name);
    if is_configured {
        let why = format!("the configuration has a key named `{name}`: {mend}");
        return Err(Problem::new(StatusCode::CONFLICT, why));
    }
    Ok(())
}

/// Does something with the key store, off the runtime: it is a file.
async fn with_store<T: Send + 'static>(
    admin: &Admin,
    work: impl FnOnce(Keyring<'_>) -> Result<T, Problem> + Send + 'static,
) -> Result<T, Problem> {
    let (snapshot, audit) = (admin.shared.live.load_full(), admin.audit.clone());
    let working = tokio::task::spawn_blocking(move || {
        let store = KeyStore::open(&snapshot.data_dir)?;
        let pepper = snapshot.key_pepper.as_ref().map(|pepper| pepper.expose().as_bytes());
        work(Keyring { store: &store, audit: &audit, pepper })
    });
    let cancelled = |_| Err(Problem::new(StatusCode::SERVICE_UNAVAILABLE, "the key store's work was cancelled"));
    working.await.unwrap_or_else(cancelled)
}

fn configured(snapshot: &Snapshot) -> Vec<KeyInfo> {
    snapshot.config_keys.iter().map(|(_, caller)| KeyInfo::configured(caller)).collect()
}

impl CreateKey {
    /// The key, and why it is made.
    fn read(self) -> Result<(NewKey, String), Problem> {
        let reason = checked_reason(self.reason)?;
        if self.models.len() > LIST_MAX || self.tags.len() > LIST_MAX {
            return Err(unprocessable("a key has at most 100 models and 100 tags"));
        }
        let mut texts = self.models.iter().chain(self.tags.keys()).chain(&self.team);
        if texts.any(|text| text.trim().is_empty() || text.len() > TEXT_BYTES_MAX || text.chars().any(char::is_control))
            || self.tags.values().any(|text| text.len() > TEXT_BYTES_MAX || text.chars().any(char::is_control))
        {
            return Err(unprocessable(
                "teams, models and tags have 1 to 256 characters, none of them a control character",
            ));
        }
        let expires = self.expires.map(|text| {
            let time = text.parse::<Timestamp>();
            time.map_err(|_| unprocessable("write `expires` as 2027-01-31T00:00:00Z"))
        });
        let expires_ms = expires.transpose()?.map(Timestamp::as_millisecond);
        let key = NewKey {
            name: self.name,
            team: self.team,
            models: self.models,
            tags: self.tags.into_iter().collect(),
            expires_ms,
        };
        Ok((key, reason))
    }
}

fn checked_reason(reason: String) -> Result<String, Problem> {
    match reason.len() <= REASON_BYTES_MAX {
        true => Ok(reason),
        false => Err(unprocessable("the reason is longer than 1000 bytes")),
    }
}

fn unprocessable(why: &str) -> Problem {
    Problem::new(StatusCode::UNPROCESSABLE_ENTITY, why)
}

impl KeyInfo {
    fn of(row: KeyRow, now_ms: i64) -> KeyInfo {
        let state = match (row.revoked_ms, row.expires_ms) {
            (Some(_), _) => "revoked",
            (None, Some(expires_ms)) if expires_ms <= now_ms => "expired",
            (None, _) => "in_use",
        };
        KeyInfo {
            name: row.name,
            id: Some(row.id),
            source: "store",
            state,
            team: row.team,
            models: row.models,
            tags: row.tags.into_iter().collect(),
            created: Some(time(row.created_ms)),
            expires: row.expires_ms.map(time),
            revoked: row.revoked_ms.map(time),
        }
    }

    fn configured(caller: &Caller) -> KeyInfo {
        let models = match &caller.models {
            ModelAccess::All => Vec::new(),
            ModelAccess::Only(patterns) => patterns.iter().map(ToString::to_string).collect(),
        };
        KeyInfo {
            name: caller.name.to_string(),
            id: None,
            source: "configuration",
            state: "in_use",
            team: caller.team.as_ref().map(ToString::to_string),
            models,
            tags: caller.tags.iter().map(|(name, value)| (name.to_string(), value.to_string())).collect(),
            created: None,
            expires: None,
            revoked: None,
        }
    }
}

impl From<KeyStoreError> for Problem {
    fn from(error: KeyStoreError) -> Problem {
        let status = match &error {
            KeyStoreError::InvalidName(_) => StatusCode::UNPROCESSABLE_ENTITY,
            KeyStoreError::NameTaken(_) => StatusCode::CONFLICT,
            KeyStoreError::NotFound(_) => StatusCode::NOT_FOUND,
            _ => StatusCode::SERVICE_UNAVAILABLE,
        };
        Problem::new(status, error.to_string())
    }
}

impl From<KeyringError> for Problem {
    fn from(error: KeyringError) -> Problem {
        match error {
            KeyringError::Keys(error) => error.into(),
            KeyringError::Audit(error) => error.into(),
        }
    }
}
