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
        snapshot::Model,
        tree::Path,
    },
    policy::{
        experiment::{CodingAgents, Experiment, Phase, Unit, Variant, built_in_kind, share_out},
        stats::{
            Kind,
            guardrail::Limit,
            report::{Goal, Guardrail},
            verdict::Direction,
        },
    },
    registry::{Trial, TrialState},
};

/// All experiments by name.
pub(super) type Experiments = BTreeMap<Arc<str>, Arc<Experiment>>;

/// What experiments refer to.
#[derive(Clone, Copy)]
struct Parts<'a> {
    prompts: &'a Prompts,
    models: &'a Models,
}

/// Experiments of one model and layer.
type LayerKey = (Arc<str>, Arc<str>);

impl Check<'_, '_, '_> {
    /// All experiments by name. Attaches those that run to their models.
    pub(super) fn experiments(&mut self, file: &File, prompts: &Prompts, models: &mut Models) -> Experiments {
        let mut all = Vec::new();
        for (name, typed) in &file.experiments {
            let trial = self.trials.get(name);
            let Some(mut experiment) = self.experiment(name, typed, Parts { prompts, models }, phase(trial)) else {
                continue;
            };
            let halted = trial.into_iter().flat_map(|trial| trial.halted.keys());
            experiment.halted = halted.map(|variant| variant.as_str().into()).collect();
            all.push(experiment);
        }
        self.share_out(&mut all);
        let all: Experiments =
            all.into_iter().map(|experiment| (experiment.name.clone(), Arc::new(experiment))).collect();
        for experiment in all.values().filter(|experiment| experiment.phase == Phase::Running) {
            if let Some(model) = models.get_mut(&*experiment.model) {
                model.experiments.push(experiment.clone());
            }
        }
        all
    }

    fn experiment(
        &mut self,
        name: &str,
        typed: &file::Experiment,
        parts: Parts<'_>,
        phase: Phase,
    ) -> Option<Experiment> {
        let at = Path::default().key("experiments").key(name);
        self.name(&at, "experiment", name);
        let model = self.required(&at, "model", typed.model.as_deref(), "name the model whose calls take part");
        // What one that does not run refers to may be gone.
        let serves = matches!(phase, Phase::Running | Phase::Paused);
        if let Some(model) = model.filter(|model| serves && !self.is_written("models", model)) {
            self.unknown(&at.key("model"), "model", model, &Path::default().key("models"));
        }
        let unit = self.unit(&at, typed.unit.as_deref());
        let variants = self.variants(&at.key("variants"), typed, parts.prompts, serves);
        let goal = typed.goal.as_ref().and_then(|goal| self.goal(&at.key("goal"), goal));
        let guardrails = self.guardrails(&at.key("guardrails"), &typed.guardrails);
        let control = typed.control.as_deref().and_then(|control| self.control(&at, control));
        let share = self.part(&at, typed.share);
        if let Some(layer) = &typed.layer {
            self.name(&at.key("layer"), "layer", layer);
        }
        let mut experiment = Experiment::new(name.into(), typed.salt.as_deref(), unit?, variants);
        experiment.model = model?.into();
        experiment.phase = phase;
        experiment.control = control.unwrap_or(experiment.control);
        (experiment.goal, experiment.guardrails) = (goal, guardrails);
        experiment.layer = typed.layer.as_deref().map(Into::into);
        experiment.share = share;
        experiment.coding_agents = coding_agents(typed.coding_agents);
        let model = parts.models.get(&*experiment.model);
        experiment.changes_prompt = experiment.variants().iter().any(|variant| changes_prompt(variant, model));
        Some(experiment)
    }

    /// Deals the units of each layer, and of each experiment that takes a part of them alone. One that is paused keeps its place.
    fn share_out(&mut self, all: &mut [Experiment]) {
        let mut layers: BTreeMap<LayerKey, Vec<&mut Experiment>> = BTreeMap::new();
        let takes_part = |experiment: &&mut Experiment| matches!(experiment.phase, Phase::Running | Phase::Paused);
        for experiment in all.iter_mut().filter(takes_part) {
            match &experiment.layer {
                Some(layer) => {
                    let key = (experiment.model.clone(), layer.clone());
                    layers.entry(key).or_default().push(experiment);
                }
                None if experiment.share < 1.0 => {
                    let salt = experiment.name.clone();
                    share_out(&salt, &mut [experiment]);
                }
                None => {}
            }
        }
        for ((model, layer), mut members) in layers {
            self.check_layer(&layer, &members);
            share_out(&format!("{model}/{layer}"), &mut members);
        }
    }

    /// A layer holds 100% of one kind of units.
    fn check_layer(&mut self, layer: &str, members: &[&mut Experiment]) {
        let mut shares = 0.0;
        for experiment in members {
            let at = Path::default().key("experiments").key(&experiment.name).key("layer");
            shares += experiment.share;
            // Shares such as 33.4% do not add up to the last bit.
            if shares > 1.0 + 1e-9 {
                let (named, sum) = (shown(layer), (shares * 1000.0).round() / 10.0);
                let message = format!(
                    "the layer `{named}` is given away by more than all of it: up to here {sum}%; give each a `share`"
                );
                self.problem(&at, message);
            }
            if experiment.unit != members[0].unit {
                let named = shown(layer);
                let message =
                    format!("the layer `{named}` shares out another unit: all of its experiments need the same");
                self.problem(&at, message);
            }
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

    fn variants(&mut self, at: &Path, typed: &file::Experiment, prompts: &Prompts, serves: bool) -> Vec<Variant> {
        if self.document.keys(at).is_empty() && !self.document.has_struck(at) {
            self.problem(at, "is missing; name at least two variants with a `weight` each");
            return Vec::new();
        }
        let mut variants = Vec::with_capacity(typed.variants.len());
        for (name, variant) in &typed.variants {
            let at = at.key(name);
            self.name(&at, "variant", name);
            if serves {
                self.refers(&at, variant, typed.model.as_deref());
            }
            variants.extend(self.variant(&at, name, variant, prompts, serves));
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
        prompts: &Prompts,
        serves: bool,
    ) -> Option<Variant> {
        let weight = self.weight(at, typed.weight);
        let prompt = typed.prompt.as_deref().and_then(|text| match serves {
            true => self
                .prompt_ref(&at.key("prompt"), text, prompts)
                .map(|prompt| (prompt.prompt.name.clone(), prompt.version)),
            false => Some(as_written(text, prompts)),
        });
        let parameters: Parameters = self.parameters(&at.key("parameters"), typed.parameters.iter());
        Some(Variant {
            name: name.into(),
            weight: weight?,
            version: typed.version.as_deref().map(Into::into),
            target: typed.target.clone(),
            prompt,
            parameters,
        })
    }

    /// Checks that the version and the target are there.
    fn refers(&mut self, at: &Path, typed: &file::Variant, model: Option<&str>) {
        if let (Some(version), Some(model)) = (&typed.version, model) {
            let versions = Path::default().key("models").key(model).key("versions");
            if self.is_written("models", model) && !self.document.has(&versions.key(version)) {
                self.unknown(&at.key("version"), &format!("version of the model `{model}`"), version, &versions);
            }
        }
        if let Some(target) = &typed.target {
            self.target_names(&at.key("target"), target);
        }
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

/// One that a file defines runs unless the registry says something else.
fn phase(trial: Option<&Trial>) -> Phase {
    match trial.map(|trial| &trial.state) {
        None | Some(TrialState::Running) => Phase::Running,
        Some(TrialState::Draft) => Phase::Draft,
        Some(TrialState::Paused) => Phase::Paused,
        Some(TrialState::Stopped | TrialState::Promoted { .. }) => Phase::Over,
    }
}

/// Whether calls of the variant get another prompt than those of the live version.
fn changes_prompt(variant: &Variant, model: Option<&Model>) -> bool {
    let prompt = |version: &str| {
        let prompt = model?.versions.get(version)?.prompt.as_ref()?;
        Some((&prompt.prompt.name, &prompt.version))
    };
    let live = model.and_then(|model| prompt(&model.live));
    variant.prompt.is_some() || variant.version.as_ref().is_some_and(|version| prompt(version) != live)
}

/// Name and version of a prompt that may be gone.
fn as_written(text: &str, prompts: &Prompts) -> (Arc<str>, Arc<str>) {
    let (name, version) = text.split_once('@').map_or((text, None), |(name, version)| (name, Some(version)));
    let live = || prompts.get(name).map_or_else(|| "live".into(), |prompt| prompt.live.clone());
    (name.into(), version.map_or_else(live, Into::into))
}
