//! The registry: aliases, their versions, and what those point at.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use super::{Check, prompts::Prompts, providers::Providers, shown};
use crate::{
    config::{
        file::{self, File},
        snapshot::{Model, ModelVersion, Target},
        tree::Path,
    },
    policy::pricing::Catalog,
};

/// Models by alias.
pub(super) type Models = BTreeMap<String, Model>;

/// What models are made of.
pub(super) struct Parts<'a> {
    pub(super) providers: &'a Providers,
    pub(super) prompts: &'a Prompts,
    pub(super) prices: &'a Catalog,
}

/// Parameters by name, as JSON text.
pub(super) type Parameters = Vec<(Box<str>, Box<str>)>;

/// What makes a call what it is; a rule that set one of these would answer another question than the client asked.
const NOT_PARAMETERS: [&str; 6] = ["model", "messages", "input", "prompt", "stream", "system"];

impl Check<'_, '_, '_> {
    pub(super) fn models(&mut self, file: &File, parts: &Parts<'_>) -> Models {
        let section = Path::default().key("models");
        let mut models = Models::new();
        for (name, typed) in &file.models {
            let at = section.key(name);
            self.name(&at, "model", name);
            let live = self.live(&at, typed.live.as_deref(), &typed.versions);
            let mut versions = HashMap::new();
            for (version, typed) in &typed.versions {
                let at = at.key("versions").key(version);
                self.name(&at, "version", version);
                if let Some(built) = self.version(&at, version, typed, parts) {
                    versions.insert(built.name.clone(), Arc::new(built));
                }
            }
            if let Some(live) = live {
                let model = Model { name: name.as_str().into(), live: live.into(), versions, experiments: Vec::new() };
                models.insert(name.clone(), model);
            }
        }
        models
    }

    fn version(
        &mut self,
        at: &Path,
        name: &str,
        typed: &file::ModelVersion,
        parts: &Parts<'_>,
    ) -> Option<ModelVersion> {
        let targets = self.targets(at, typed, parts);
        let mut fallbacks = Vec::new();
        for (i, fallback) in typed.fallbacks.iter().enumerate() {
            fallbacks.extend(self.target(&at.key("fallbacks").index(i), fallback, parts));
        }
        // `force` is read inside `parameters` too: both places are natural, and no API has a parameter of that name.
        let (inner_force, defaults): (Vec<_>, Vec<_>) =
            typed.parameters.iter().partition(|(name, value)| *name == "force" && value.is_object());
        let inner_force = inner_force.into_iter().filter_map(|(_, value)| value.as_object()).flatten();
        let defaults = self.parameters(&at.key("parameters"), defaults.into_iter());
        let mut forced = self.parameters(&at.key("force"), typed.force.iter());
        forced.extend(self.parameters(&at.key("parameters").key("force"), inner_force));
        let prompt = typed.prompt.as_deref().map(|text| self.prompt_ref(&at.key("prompt"), text, parts.prompts));
        Some(ModelVersion {
            name: name.into(),
            targets: targets?,
            fallbacks,
            defaults,
            forced,
            prompt: match prompt {
                Some(prompt) => Some(prompt?),
                None => None,
            },
        })
    }

    fn targets(&mut self, at: &Path, typed: &file::ModelVersion, parts: &Parts<'_>) -> Option<Vec<(Target, u32)>> {
        match (&typed.target, &typed.targets) {
            (Some(_), Some(_)) => {
                self.problem(&at.key("targets"), "stands beside `target`; keep one of them");
                None
            }
            (Some(target), None) => self.target(&at.key("target"), target, parts).map(|target| vec![(target, 1)]),
            (None, Some(targets)) => self.weighted_targets(&at.key("targets"), targets, parts),
            (None, None) => {
                if !self.document.has_struck(&at.key("targets")) {
                    self.required(at, "target", None::<()>, "write `target: provider/model`, or several `targets`");
                }
                None
            }
        }
    }

    fn weighted_targets(
        &mut self,
        at: &Path,
        typed: &[file::WeightedTarget],
        parts: &Parts<'_>,
    ) -> Option<Vec<(Target, u32)>> {
        let mut targets = Vec::with_capacity(typed.len());
        let mut sum: u64 = 0;
        for (i, item) in typed.iter().enumerate() {
            let weight = item.weight.unwrap_or(1);
            sum += u64::from(weight);
            let at = at.index(i);
            if let Some(text) = self.required(&at, "use", item.target.as_deref(), "write `use: provider/model`") {
                targets.extend(self.target(&at.key("use"), text, parts).map(|target| (target, weight)));
            }
        }
        if sum == 0 || sum > u64::from(u32::MAX) {
            let message = if sum == 0 {
                "no weight is above 0; give at least one target a weight"
            } else {
                "the sum of the weights is too large"
            };
            self.problem(at, message);
            return None;
        }
        Some(targets)
    }

    /// `provider/model`. The provider's name has no slash; the model's may.
    fn target(&mut self, at: &Path, text: &str, parts: &Parts<'_>) -> Option<Target> {
        let (provider, model) = self.target_names(at, text)?;
        let provider = parts.providers.get(provider)?;
        let price = parts.prices.find(&provider.name, provider.catalog.as_deref(), model);
        Some(Target { provider: provider.clone(), model: model.into(), price })
    }

    /// The two parts of a target whose provider was written.
    pub(super) fn target_names<'t>(&mut self, at: &Path, text: &'t str) -> Option<(&'t str, &'t str)> {
        let Some((provider, model)) = text.split_once('/').filter(|(_, model)| !model.trim().is_empty()) else {
            self.problem(at, format!("`{}` is not a target; write it as `provider/model`", shown(text)));
            return None;
        };
        if !self.is_written("providers", provider) {
            self.unknown(at, "provider", provider, &Path::default().key("providers"));
            return None;
        }
        Some((provider, model))
    }

    /// Parameters as JSON text.
    pub(super) fn parameters<'p>(
        &mut self,
        at: &Path,
        typed: impl Iterator<Item = (&'p String, &'p serde_json::Value)>,
    ) -> Parameters {
        let mut parameters = Parameters::new();
        for (name, value) in typed {
            if NOT_PARAMETERS.contains(&name.as_str()) {
                self.problem(&at.key(name), "is not a parameter that a rule may set; take it out");
            }
            parameters.push((name.as_str().into(), value.to_string().into()));
        }
        parameters
    }
}
