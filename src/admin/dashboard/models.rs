//! Models: each alias with its versions, what is live, where it leads, and what that costs.

use std::time::Instant;

use serde::Serialize;
use serde_json::json;

use super::{
    registered::{self, Standing},
    visit::{Shown, Visit},
};
use crate::{
    config::{
        registered::InRegistry,
        snapshot::{Model, ModelVersion, Role, Target},
    },
    registry::Kind,
    upstream::health::Circuit,
};

/// An alias.
#[derive(Debug, Serialize)]
struct Alias {
    name: String,
    live: String,
    experiments: Vec<String>,
    versions: Vec<Version>,
    registry: Standing,
}

#[derive(Debug, Serialize)]
struct Version {
    name: String,
    live: bool,
    targets: Vec<Destination>,
    fallbacks: Vec<Destination>,
    parameters: Vec<(String, bool)>,
    prompt: Option<(String, String)>,
}

/// A model at a provider, and what it costs.
#[derive(Debug, Serialize)]
struct Destination {
    target: String,
    share: f64,
    rates: Vec<(String, String)>,
    priced: bool,
}

/// A provider and whether it is in rotation.
#[derive(Debug, Serialize)]
struct Health {
    name: String,
    state: &'static str,
}

pub(super) async fn show(visit: Visit) -> Shown {
    let snapshot = visit.admin.shared.live.load_full();
    let mut models: Vec<Alias> =
        snapshot.models.values().map(|model| alias(model, &snapshot.registry, visit.now)).collect();
    models.sort_by(|one, other| one.name.cmp(&other.name));
    let (healths, now) = (visit.admin.shared.upstream.healths.all(), Instant::now());
    let health = |name: &str| match healths.get(name).map_or(Circuit::Closed, |health| health.circuit(now)) {
        Circuit::Closed => "closed",
        Circuit::HalfOpen => "half_open",
        Circuit::Open => "open",
    };
    let named = snapshot.providers.values().map(|provider| &*provider.name);
    let mut providers: Vec<Health> = named.map(|name| Health { name: name.to_owned(), state: health(name) }).collect();
    providers.sort_by(|one, other| one.name.cmp(&other.name));
    let waiting = registered::waiting(&snapshot.registry, Kind::Models, |name| snapshot.models.contains_key(name));
    let page = json!({
        "models": models,
        "providers": providers,
        "prices": &**snapshot.prices.revision(),
        "waiting": waiting,
        "may_decide": visit.may(Role::Operator),
    });
    Ok(visit.page("models.html", page))
}

fn alias(model: &Model, registry: &InRegistry, now: jiff::Timestamp) -> Alias {
    let mut versions: Vec<Version> =
        model.versions.values().map(|one| version(one, one.name == model.live, now)).collect();
    versions.sort_by(|one, other| other.live.cmp(&one.live).then_with(|| other.name.cmp(&one.name)));
    Alias {
        name: model.name.to_string(),
        live: model.live.to_string(),
        experiments: model.experiments.iter().map(|experiment| experiment.name.to_string()).collect(),
        versions,
        registry: Standing::of(registry, Kind::Models, &model.name),
    }
}

fn version(version: &ModelVersion, live: bool, now: jiff::Timestamp) -> Version {
    let weights: u32 = version.targets.iter().map(|(_, weight)| weight).sum();
    let share = |weight: u32| f64::from(weight) / f64::from(weights.max(1));
    let set = |(name, value): &(Box<str>, Box<str>), forced| (format!("{name}: {value}"), forced);
    let defaults = version.defaults.iter().map(|parameter| set(parameter, false));
    let forced = version.forced.iter().map(|parameter| set(parameter, true));
    Version {
        name: version.name.to_string(),
        live,
        targets: version.targets.iter().map(|(target, weight)| destination(target, share(*weight), now)).collect(),
        fallbacks: version.fallbacks.iter().map(|target| destination(target, 0.0, now)).collect(),
        parameters: defaults.chain(forced).collect(),
        prompt: version.prompt.as_ref().map(|prompt| (prompt.prompt.name.to_string(), prompt.version.to_string())),
    }
}

fn destination(target: &Target, share: f64, now: jiff::Timestamp) -> Destination {
    Destination {
        target: format!("{}/{}", target.provider.name, target.model),
        share,
        rates: target.price.as_ref().map(|price| price.rates(now)).unwrap_or_default(),
        priced: target.price.is_some(),
    }
}
