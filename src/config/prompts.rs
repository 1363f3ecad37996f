//! Prompts of a configuration from outside of calls: found by name, and with the models that they are for.

use std::sync::Arc;

use serde_json::{Map, Value};

use super::snapshot::{Prompt, Snapshot, Target};
use crate::{
    policy::{
        prompt::{Template, VariableKind},
        prompt_lint::{self, Finding, Use},
    },
    units::Tokens,
};

/// Shortest prefix that OpenAI caches, and the shortest of Anthropic's models; some of those need 2,048 or 4,096.
///
/// Source: <https://platform.openai.com/docs/guides/prompt-caching>,
/// <https://docs.claude.com/en/docs/build-with-claude/prompt-caching>, November 2026.
const CACHED_FROM: Tokens = Tokens(1024);

/// A version of a prompt.
#[derive(Debug, Clone, Copy)]
pub struct Named<'a> {
    /// Its prompt.
    pub prompt: &'a Prompt,
    /// The version.
    pub template: &'a Template,
}

/// A model whose live version injects a prompt.
#[derive(Debug, Clone)]
pub struct PromptUse {
    /// What clients call the model.
    pub named: Arc<str>,
    /// Where most of its calls go.
    pub target: Target,
}

impl Snapshot {
    /// `name` for the live version, or `name@version`.
    ///
    /// # Errors
    /// What is not there, and what is.
    pub fn find_prompt(&self, named: &str) -> Result<Named<'_>, String> {
        let (name, version) = named.split_once('@').map_or((named, None), |(name, version)| (name, Some(version)));
        let prompt = self.prompts.get(name).ok_or_else(|| {
            let known: Vec<&str> = self.prompts.keys().map(|name| &**name).collect();
            format!("no prompt is named `{name}`{}", listed(known))
        })?;
        let version = version.unwrap_or(&prompt.live);
        let template = prompt.versions.get(version).ok_or_else(|| {
            let known: Vec<&str> = prompt.versions.keys().map(|name| &**name).collect();
            format!("prompt `{name}` has no version `{version}`{}", listed(known))
        })?;
        Ok(Named { prompt, template })
    }

    /// All versions of all prompts, by name.
    #[must_use]
    pub fn all_prompts(&self) -> Vec<Named<'_>> {
        let mut all = Vec::new();
        for prompt in self.prompts.values() {
            all.extend(prompt.versions.values().map(|template| Named { prompt, template }));
        }
        all.sort_by_key(|named| (named.prompt.name.clone(), named.template.version().clone()));
        all
    }

    /// The models whose live version injects it, by name.
    #[must_use]
    pub fn uses_of(&self, named: Named<'_>) -> Vec<PromptUse> {
        let injects = |model: &crate::config::snapshot::Model| {
            let version = model.versions.get(&model.live)?;
            let prompt = version.prompt.as_ref()?;
            let same = prompt.prompt.name == named.prompt.name && prompt.version == *named.template.version();
            let target = version.targets.iter().max_by_key(|(_, weight)| *weight).map(|(target, _)| target.clone())?;
            same.then(|| PromptUse { named: model.name.clone(), target })
        };
        let mut uses: Vec<PromptUse> = self.models.values().filter_map(|model| injects(model)).collect();
        uses.sort_by(|one, other| one.named.cmp(&other.named));
        uses
    }

    /// Where most calls go that name a model: an alias, `provider/model`, or a bare name.
    ///
    /// # Errors
    /// Nobody serves it.
    pub fn main_target(&self, named: &str) -> Result<Target, String> {
        if let Some(model) = self.models.get(named) {
            let version = model.versions.get(&model.live);
            let heaviest = version.and_then(|version| version.targets.iter().max_by_key(|(_, weight)| *weight));
            return heaviest.map(|(target, _)| target.clone()).ok_or_else(|| format!("model `{named}` has no target"));
        }
        let resolved = self.target(named).ok_or_else(|| {
            let known: Vec<&str> = self.models.keys().map(|name| &**name).collect();
            format!("no model is named `{named}`{}", listed(known))
        })?;
        Ok(resolved.target.clone())
    }
}

impl Named<'_> {
    /// `name@version`.
    #[must_use]
    pub fn label(&self) -> String {
        format!("{}@{}", self.prompt.name, self.template.version())
    }

    /// What is probably not meant in it ([`prompt_lint`]).
    #[must_use]
    pub fn lint(self, snapshot: &Snapshot) -> Vec<Finding> {
        let uses = snapshot.uses_of(self);
        let mut models = Vec::with_capacity(uses.len());
        for PromptUse { named, target } in &uses {
            let price = target.price.as_deref();
            models.push(Use { named, model: &target.model, price, cached_from: CACHED_FROM });
        }
        prompt_lint::lint(self.template, &models)
    }

    /// A variable as somebody types it: text where a text is due, else JSON.
    #[must_use]
    pub fn typed(&self, name: &str, text: &str) -> Value {
        let kind = self.template.used().find(|(used, _)| *used == name).map_or(VariableKind::String, |(_, kind)| kind);
        match kind {
            VariableKind::String => Value::from(text),
            _ => serde_json::from_str(text).unwrap_or_else(|_| Value::from(text)),
        }
    }

    /// `name=value` each, as [`Named::typed`].
    ///
    /// # Errors
    /// What is no such pair.
    pub fn typed_all<'t>(&self, pairs: impl Iterator<Item = &'t str>) -> Result<Map<String, Value>, String> {
        let pair = |pair: &str| {
            let (name, text) = pair.split_once('=').ok_or_else(|| format!("`{pair}` is no `name=value`"))?;
            Ok((name.trim().to_owned(), self.typed(name.trim(), text)))
        };
        pairs.map(pair).collect()
    }
}

fn listed(mut known: Vec<&str>) -> String {
    known.sort_unstable();
    known.truncate(24);
    if known.is_empty() { "; there is none".to_owned() } else { format!("; known: {}", known.join(", ")) }
}
