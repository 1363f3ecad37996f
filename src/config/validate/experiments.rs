//! Experiments: which variants a model's callers are split into.

use std::{collections::BTreeMap, sync::Arc};

use super::{
    Check,
    models::{Models, Parameters},
    prompts::Prompts,
    shown,
};
use crate::{
    config::{
        file::{self, File},
        forms,
        tree::Path,
    },
    policy::{
        experiment::{CodingAgents, Experiment, Unit, Variant, built_in_kind},
        stats::{
            Kind,
            guardrail::Limit,
            report::{Goal, Guardrail},
            verdict::Direction,
        },
    },
};

/// What a layer's experiments share: the first one's unit, and how much of it is given away.
struct Layer {
    unit: Unit,
    shares: f64,
}

impl Check<'_, '_, '_> {
    /// Attaches each experiment to its model.
    pub(super) fn experiments(&mut self, file: &File, prompts: &Prompts, models: &mut Models) {
        let mut layers = BTreeMap::new();
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
            let goal = typed.goal.as_ref().and_then(|goal| self.goal(&at.key("goal"), goal));
            let guardrails = self.guardrails(&at.key("guardrails"), &typed.guardrails);
            let control = typed.control.as_deref().and_then(|control| self.control(&at, control));
            let share = self.part(&at, typed.share);
            let (Some(unit), Some(model)) = (unit, model.and_then(|model| models.get_mut(model))) else { continue };
            if let Some(layer) = &typed.layer {
                self.layer(&at, (model.name.clone(), layer), (&unit, share), &mut layers);
            }
            let mut experiment = Experiment::new(name.as_str().into(), typed.salt.as_deref(), unit, variants);
            experiment.control = control.unwrap_or(experiment.control);
            experiment.layer = typed.layer.as_deref().map(Into::into);
            experiment.coding_agents = coding_agents(typed.coding_agents);
            (experiment.goal, experiment.guardrails, experiment.share) = (goal, guardrails, share);
            model.experiments.push(Arc::new(experiment));
        }
    }

    fn goal(&mut self, at: &Path, typed: &file::Goal) -> Option<Goal> {
        let metric = self.metric(at, typed.metric.as_deref())?;
        let direction = match typed.direction {
            Some(file::Direction::Up) => Direction::Up,
            Some(file::Direction::Down) => Direction::Down,
            None if built_in_kind(metric).is_some() => Direction::Down,
            None => Direction::Up,
        };
        Some(Goal { metric: metric.to_owned(), direction, margin: typed.margin.map(|margin| margin.0) })
    }

    fn guardrails(&mut self, at: &Path, typed: &[file::Guardrail]) -> Vec<Guardrail> {
        let each = typed.iter().enumerate();
        each.filter_map(|(i, typed)| self.guardrail(&at.index(i), typed)).collect()
    }

    fn guardrail(&mut self, at: &Path, typed: &file::Guardrail) -> Option<Guardrail> {
        let metric = self.metric(at, typed.metric.as_deref())?.to_owned();
        let limit = match (&typed.max, typed.max_increase) {
            (Some(max), None) => Limit::Max(self.highest(&at.key("max"), &metric, max)?),
            (None, Some(increase)) => Limit::MaxIncrease(increase.0),
            (Some(_), Some(_)) => {
                self.problem(at, "has both `max` and `max_increase`; write two guardrails");
                return None;
            }
            (None, None) => {
                if !self.document.has_struck(&at.key("max_increase")) {
                    self.problem(
                        at,
                        "limits nothing; write `max: 5%`, or `max_increase: 20%` over the control's value",
                    );
                }
                return None;
            }
        };
        Some(Guardrail { metric, limit })
    }

    /// Metrics of feedback are what clients say: any name is right.
    fn metric<'t>(&mut self, at: &Path, metric: Option<&'t str>) -> Option<&'t str> {
        let metric =
            self.required(at, "metric", metric, "name one, such as `error_rate`, or one that clients rate calls by")?;
        self.name(&at.key("metric"), "metric", metric).then_some(metric)
    }

    /// In the metric's own unit: a part of 1, USD, seconds, or a plain number.
    fn highest(&mut self, at: &Path, metric: &str, max: &str) -> Option<f64> {
        let highest = forms::amount(max).filter(|_| {
            // A share above 1 is nothing that a rate could reach.
            built_in_kind(metric) != Some(Kind::Share) || forms::amount(max).is_some_and(|max| max <= 1.0)
        });
        if highest.is_none() {
            let message = format!(
                "`{}` is no limit of {metric}; write `5%` of a rate, `0.02 USD` of a cost, `1.5s` of a time, or a number",
                shown(max)
            );
            self.problem(at, message);
        }
        highest
    }

    fn control(&mut self, at: &Path, control: &str) -> Option<Arc<str>> {
        if !self.document.has(&at.key("variants").key(control)) {
            self.unknown(&at.key("control"), "variant", control, &at.key("variants"));
            return None;
        }
        Some(control.into())
    }

    fn part(&mut self, at: &Path, share: Option<forms::Share>) -> f64 {
        let share = share.map_or(1.0, |share| share.0);
        if share <= 0.0 || share > 1.0 {
            self.problem(&at.key("share"), "must be above 0% and at most 100%");
        }
        share
    }

    /// Adds an experiment to its layer, which holds 100% of one kind of units.
    fn layer<'t>(
        &mut self,
        at: &Path,
        layer: (Arc<str>, &'t str),
        (unit, share): (&Unit, f64),
        layers: &mut BTreeMap<(Arc<str>, &'t str), Layer>,
    ) {
        let named = shown(layer.1);
        self.name(&at.key("layer"), "layer", layer.1);
        let layer = layers.entry(layer).or_insert_with(|| Layer { unit: unit.clone(), shares: 0.0 });
        layer.shares += share;
        // Shares such as 33.4% do not add up to the last bit.
        if layer.shares > 1.0 + 1e-9 {
            let sum = (layer.shares * 1000.0).round() / 10.0;
            let message = format!(
                "the layer `{named}` is given away by more than all of it: up to here {sum}%; give each a `share`"
            );
            self.problem(&at.key("layer"), message);
        }
        if layer.unit != *unit {
            let message = format!("the layer `{named}` shares out another unit: all of its experiments need the same");
            self.problem(&at.key("layer"), message);
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

fn coding_agents(typed: Option<file::CodingAgents>) -> CodingAgents {
    match typed {
        Some(file::CodingAgents::Force) => CodingAgents::Force,
        Some(file::CodingAgents::Skip) | None => CodingAgents::Skip,
    }
}
