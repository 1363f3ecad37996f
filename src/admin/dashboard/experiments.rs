//! Experiments: who is in which variant, and what each variant's calls used. Figures, no verdict.

use std::collections::HashMap;

use serde::Serialize;
use serde_json::json;

use super::{
    sums::{Range, Sums},
    visit::{Shown, Visit},
};
use crate::{
    policy::experiment::{Experiment, Unit, Variant},
    store::records::ports::{Dimension, UsageQuery},
};

#[derive(Debug, Serialize)]
struct Entry {
    name: String,
    model: String,
    unit: String,
    variants: Vec<Arm>,
}

#[derive(Debug, Serialize)]
struct Arm {
    name: String,
    share: f64,
    changes: Vec<(&'static str, String)>,
    sums: Option<Sums>,
}

pub(super) async fn show(visit: Visit) -> Shown {
    let range = Range::of(&visit);
    let snapshot = visit.admin.shared.live.load_full();
    let mut used = HashMap::new();
    if let Some(calls) = visit.calls() {
        let filter = range.filter(visit.now_ms());
        let query = UsageQuery { filter, by: Some(Dimension::Variant), top: 0, bucket: None };
        let series = calls.log.usage(query).await.map_err(|error| visit.store_away(&error))?;
        used.extend(series.into_iter().map(|series| (series.value, Sums::from(&series.total))));
    }
    let mut experiments = Vec::new();
    for model in snapshot.models.values() {
        for experiment in &model.experiments {
            experiments.push(Entry {
                name: experiment.name.to_string(),
                model: model.name.to_string(),
                unit: unit(&experiment.unit),
                variants: arms(experiment, |label| used.remove(label)),
            });
        }
    }
    experiments.sort_by(|one, other| one.name.cmp(&other.name));
    let page = json!({
        "experiments": experiments,
        "log": visit.calls().is_some(),
        "range": range.label(),
        "ranges": Range::ALL.map(Range::label),
    });
    Ok(visit.page("experiments.html", page))
}

fn unit(unit: &Unit) -> String {
    match unit {
        Unit::User => "user".to_owned(),
        Unit::Key => "key".to_owned(),
        Unit::Session => "session".to_owned(),
        Unit::Header(name) => format!("header:{name}"),
    }
}

fn arms(experiment: &Experiment, mut sums: impl FnMut(&str) -> Option<Sums>) -> Vec<Arm> {
    let weights: f64 = experiment.variants().iter().map(|variant| variant.weight.max(0.0)).sum();
    let arm = |variant: &Variant| Arm {
        name: variant.name.to_string(),
        share: if weights > 0.0 { variant.weight.max(0.0) / weights } else { 0.0 },
        changes: changes(variant),
        sums: sums(&format!("{}={}", experiment.name, variant.name)),
    };
    experiment.variants().iter().map(arm).collect()
}

/// What a variant changes about a call.
fn changes(variant: &Variant) -> Vec<(&'static str, String)> {
    let version = variant.version.as_ref().map(|version| ("version", version.to_string()));
    let target = variant.target.as_ref().map(|target| ("target", target.clone()));
    let prompt = variant.prompt.as_ref().map(|(name, version)| ("prompt", format!("{name}@{version}")));
    let parameters = variant.parameters.iter().map(|(name, value)| ("parameter", format!("{name}: {value}")));
    version.into_iter().chain(target).chain(prompt).chain(parameters).collect()
}
