//! Experiments: which variants a model's callers are split into.

use std::sync::Arc;

use super::{
    Check,
    models::{Models, Parameters},
    prompts::Prompts,
    shown,
};
use crate::{
    config::{
        file::{self, File},
        tree::Path,
    },
    policy::experiment::{Experiment, Unit, Variant},
};

impl Check<'_, '_, '_> {
    /// Attaches each experiment to its model.
    pub(super) fn experiments(&mut self, file: &File, prompts: &Prompts, models: &mut Models) {
        for (name, typed) in &file.experiments {
            let at = Path::default().key("experiments").key(name);
            self.name(&at, "experiment", name);
            let model = self.required(&at, "model", typed.model.as_deref(), "name the model whose calls take part");
            if let Some(model) = model
                && !self.is_written("models", model)
            {
                self.unknown(&at.key("model"), "model", model, &Path::default().key("models"));
            }
            let unit = self.unit(&at, typed.unit.as_deref());
            let variants = self.variants(&at.key("variants"), typed, prompts);
            let (Some(unit), Some(model)) = (unit, model.and_then(|model| models.get_mut(model))) else { continue };
            let experiment = Experiment::new(name.as_str().into(), typed.salt.as_deref(), unit, variants);
            model.experiments.push(Arc::new(experiment));
        }
    }

    fn unit(&mut self, at: &Path, unit: Option<&str>) -> Option<Unit> {
        match unit {
            None | Some("user") => Some(Unit::User),
            Some("key") => Some(Unit::Key),
            Some("session") => Some(Unit::Session),
            Some(other) => {
                let header =
                    other.strip_prefix("header:").and_then(|name| name.trim().parse::<http::HeaderName>().ok());
                if header.is_none() {
                    let message = format!("`{}` is not a unit; write user, key, session or header:NAME", shown(other));
                    self.problem(&at.key("unit"), message);
                }
                header.map(|name| Unit::Header(name.as_str().into()))
            }
        }
    }

    fn variants(&mut self, at: &Path, typed: &file::Experiment, prompts: &Prompts) -> Vec<Variant> {
        if self.document.keys(at).is_empty() && !self.document.has_struck(at) {
            self.problem(at, "is missing; name at least two variants with a `weight` each");
            return Vec::new();
        }
        let mut variants = Vec::with_capacity(typed.variants.len());
        for (name, variant) in &typed.variants {
            let at = at.key(name);
            self.name(&at, "variant", name);
            variants.extend(self.variant(&at, name, variant, typed.model.as_deref(), prompts));
        }
        let all_are_valid = variants.len() == self.document.keys(at).len();
        let sum: f64 = variants.iter().map(|variant| variant.weight).sum();
        if all_are_valid && (sum <= 0.0 || !sum.is_finite()) {
            self.problem(at, "no weight is above 0; give at least one variant a weight");
        }
        variants
    }

    fn variant(
        &mut self,
        at: &Path,
        name: &str,
        typed: &file::Variant,
        model: Option<&str>,
        prompts: &Prompts,
    ) -> Option<Variant> {
        let weight = self.weight(at, typed.weight);
        if let (Some(version), Some(model)) = (&typed.version, model) {
            let versions = Path::default().key("models").key(model).key("versions");
            if self.is_written("models", model) && !self.document.has(&versions.key(version)) {
                self.unknown(&at.key("version"), &format!("version of the model `{model}`"), version, &versions);
            }
        }
        if let Some(target) = &typed.target {
            self.target_names(&at.key("target"), target);
        }
        let prompt = typed.prompt.as_deref().and_then(|text| self.prompt_ref(&at.key("prompt"), text, prompts));
        let parameters: Parameters = self.parameters(&at.key("parameters"), typed.parameters.iter());
        Some(Variant {
            name: name.into(),
            weight: weight?,
            version: typed.version.as_deref().map(Into::into),
            target: typed.target.clone(),
            prompt: prompt.map(|prompt| (prompt.prompt.name.clone(), prompt.version)),
            parameters,
        })
    }

    fn weight(&mut self, at: &Path, weight: Option<f64>) -> Option<f64> {
        let weight = self.required(at, "weight", weight, "write its share of the sum, such as `weight: 50`")?;
        if !weight.is_finite() || weight < 0.0 {
            self.problem(&at.key("weight"), format!("must be 0 or more, got {weight}"));
            return None;
        }
        Some(weight)
    }
}
