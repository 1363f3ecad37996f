//! Virtual keys: who may call, and what they may name.

use std::{collections::HashMap, sync::Arc};

use super::{Check, shown};
use crate::{
    config::{
        file::{self, File},
        forms::SecretText,
        problems::suggestion,
        secret::SecretString,
        snapshot::Auth,
        tree::Path,
    },
    policy::keys::{Caller, KeyDigest, ModelAccess},
};

/// Longest key that a client can present.
const KEY_BYTES_MAX: usize = 256;

/// Shorter secrets are warned about where a listener can be reached from elsewhere.
const SECRET_CHARS_MIN: usize = 16;

/// How clients prove who they are.
pub(super) fn auth(file: &File) -> Auth {
    match file.auth {
        None | Some(file::Auth::Required) => Auth::Required,
        Some(file::Auth::None) => Auth::None,
        Some(file::Auth::Passthrough) => Auth::Passthrough,
    }
}

impl Check<'_, '_, '_> {
    pub(super) fn key_pepper(&mut self, pepper: Option<&SecretText>) -> Option<SecretString> {
        self.secret(&Path::default().key("key_pepper"), pepper?)
    }

    pub(super) fn keys(&mut self, file: &File, pepper: Option<&SecretString>) -> Vec<(KeyDigest, Caller)> {
        let section = Path::default().key("keys");
        if file.keys.is_empty() && auth(file) == Auth::Required && !self.document.has(&section.index(0)) {
            let message =
                "there is none, and `auth` is required: nobody can call until `tollgate keys create` made one";
            self.warn(&section, message);
        }
        let mut names: HashMap<&str, usize> = HashMap::new();
        let mut digests: HashMap<KeyDigest, usize> = HashMap::new();
        let mut keys = Vec::with_capacity(file.keys.len());
        for (i, typed) in file.keys.iter().enumerate() {
            let at = section.index(i);
            let name =
                self.required(&at, "name", typed.name.as_deref(), "name the key: logs and budgets show its name");
            if let Some(name) = name {
                self.name(&at.key("name"), "key", name);
                if let Some(first) = names.insert(name, i) {
                    self.problem(&at.key("name"), format!("`{}` is the name of keys[{first}] too", shown(name)));
                }
            }
            let digest = self.digest(&at, typed, pepper);
            if file.server.listen.is_some_and(|address| !address.0.ip().is_loopback()) {
                self.warn_if_guessable(&at.key("secret"), typed.secret.as_ref());
            }
            if let Some(digest) = &digest
                && let Some(first) = digests.insert(*digest, i)
            {
                self.problem(&at, format!("is the same key as keys[{first}]; each key has one name"));
            }
            let models = self.model_access(&at.key("models"), typed.models.as_deref(), file);
            let (Some(name), Some(digest)) = (name, digest) else { continue };
            keys.push((digest, caller(name, typed, models)));
        }
        keys
    }

    /// A secret that strangers may try needs more than a few characters.
    pub(super) fn warn_if_guessable(&mut self, at: &Path, typed: Option<&SecretText>) {
        let Some(secret) = typed.and_then(|typed| self.secret(at, typed)) else { return };
        if secret.expose().chars().count() < SECRET_CHARS_MIN {
            let message = format!(
                "has fewer than {SECRET_CHARS_MIN} characters and can be guessed by whoever reaches the listener; take a random one, such as of `openssl rand -hex 32`"
            );
            self.warn(at, message);
        }
    }

    fn digest(&mut self, at: &Path, typed: &file::Key, pepper: Option<&SecretString>) -> Option<KeyDigest> {
        let pepper = pepper.map(|pepper| pepper.expose().as_bytes());
        match (&typed.secret, &typed.hash) {
            (Some(_), Some(_)) => {
                self.problem(&at.key("hash"), "stands beside `secret`; keep one of them");
                None
            }
            (Some(secret), None) => {
                let at = at.key("secret");
                let secret = self.secret(&at, secret)?;
                if secret.expose().len() > KEY_BYTES_MAX {
                    self.problem(&at, format!("is longer than {KEY_BYTES_MAX} bytes, more than a client can present"));
                    return None;
                }
                Some(KeyDigest::of(secret.expose(), pepper))
            }
            (None, Some(hash)) => self.hash(&at.key("hash"), hash, pepper.is_some()),
            (None, None) => {
                if !self.document.has_struck(&at.key("hash")) {
                    self.required(at, "secret", None::<()>, "write `secret: \"${NAME}\"`, or a `hash`");
                }
                None
            }
        }
    }

    fn hash(&mut self, at: &Path, hash: &str, has_pepper: bool) -> Option<KeyDigest> {
        match KeyDigest::parse(hash.trim()) {
            Ok(digest) if digest.is_peppered() && !has_pepper => {
                self.problem(at, "was made with a pepper; give that pepper as `key_pepper`");
                None
            }
            Ok(digest) => Some(digest),
            Err(error) => {
                self.problem(at, error.to_string());
                None
            }
        }
    }

    fn model_access(&mut self, at: &Path, models: Option<&[String]>, file: &File) -> ModelAccess {
        let Some(models) = models else { return ModelAccess::All };
        if models.is_empty() {
            self.problem(at, "names no model; leave it out to allow all of them");
        }
        for (i, model) in models.iter().enumerate() {
            let is_prefix = model.ends_with('*') && !model.contains('/');
            if !is_prefix {
                self.model_name(&at.index(i), model, file);
            }
        }
        ModelAccess::listed(models.iter().map(String::as_str))
    }

    /// A model as clients name it: an alias, `provider/model`, or a bare name for the default provider.
    pub(super) fn model_name(&mut self, at: &Path, model: &str, file: &File) {
        if self.is_written("models", model) {
            return;
        }
        if model.contains('/') {
            self.target_names(at, model);
            return;
        }
        let aliases = Path::default().key("models");
        if file.default_provider.is_none() {
            self.unknown(at, "model", model, &aliases);
            return;
        }
        let near = suggestion(model, self.document.keys(&aliases));
        if near.contains("did you mean") {
            self.warn(at, format!("`{}` is no alias and means a model of the default provider{near}", shown(model)));
        }
    }
}

fn caller(name: &str, typed: &file::Key, models: ModelAccess) -> Caller {
    Caller {
        name: name.into(),
        team: typed.team.as_deref().map(Arc::from),
        models,
        tags: typed.tags.iter().map(|(name, value)| (name.as_str().into(), value.as_str().into())).collect(),
    }
}
