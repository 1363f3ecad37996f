//! What two configurations differ in: their facts compared, not their texts.
//!
//! A configuration is laid out as things (`budget each-user`) with fields (`limit: 0.50 USD`). What must not be shown, such as a key,
//! takes part by a fingerprint that is never printed.

use std::{
    collections::{BTreeMap, hash_map::DefaultHasher},
    fmt::Display,
    hash::{Hash, Hasher},
    time::Duration,
};

use crate::{
    config::{
        Snapshot,
        snapshot::{Budget, Model, ModelVersion, Prompt, Provider, ProviderKind, Target, Unpriced},
    },
    policy::{
        experiment::{Experiment, Phase, Unit},
        keys::{Caller, KeyDigest, ModelAccess},
        limits::{Limit, Rate},
        prompt::Variable,
        scope::{Match, Scope},
    },
    registry,
};

/// Things by section and name, each with its fields.
pub(super) type Facts = BTreeMap<(&'static str, String), BTreeMap<String, Fact>>;

/// One field.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Fact {
    /// To be shown.
    Shown(String),
    /// A secret, by its fingerprint.
    Hidden(u64),
}

/// What happens to one thing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Change {
    pub(super) section: &'static str,
    pub(super) name: String,
    pub(super) kind: Kind,
    /// Name, old and new value; of what is added or removed, all that it has.
    pub(super) fields: Vec<(String, Option<String>, Option<String>)>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Added,
    Changed,
    Removed,
}

/// What differs from `old` to `new`, by section and name.
pub(super) fn changes(old: &Facts, new: &Facts) -> Vec<Change> {
    let mut places: Vec<_> = old.keys().chain(new.keys()).collect();
    places.sort();
    places.dedup();
    places.into_iter().filter_map(|place| change(place, old.get(place), new.get(place))).collect()
}

fn change(
    (section, name): &(&'static str, String),
    old: Option<&BTreeMap<String, Fact>>,
    new: Option<&BTreeMap<String, Fact>>,
) -> Option<Change> {
    let kind = match (old, new) {
        (None, _) => Kind::Added,
        (_, None) => Kind::Removed,
        (Some(old), Some(new)) if old == new => return None,
        _ => Kind::Changed,
    };
    let nothing = BTreeMap::new();
    let (old, new) = (old.unwrap_or(&nothing), new.unwrap_or(&nothing));
    let mut names: Vec<&String> = old.keys().chain(new.keys()).collect();
    names.sort();
    names.dedup();
    let field = |name: &String| {
        let (was, is) = (old.get(name), new.get(name));
        (was != is).then(|| (name.clone(), was.map(Fact::text), is.map(Fact::text)))
    };
    Some(Change { section, name: name.clone(), kind, fields: names.into_iter().filter_map(field).collect() })
}

impl Fact {
    fn text(&self) -> String {
        match self {
            Fact::Shown(text) => text.clone(),
            Fact::Hidden(_) => "(secret)".to_owned(),
        }
    }
}

// === facts ===

/// All that is true in a configuration and can be told.
pub(super) fn facts(snapshot: &Snapshot) -> Facts {
    let mut facts = Facts::new();
    for (digest, caller) in &snapshot.config_keys {
        facts.insert(("key", caller.name.to_string()), key(digest, caller));
    }
    for (name, provider_of) in &snapshot.providers {
        facts.insert(("provider", name.to_string()), provider(provider_of));
    }
    for (name, model_of) in &snapshot.models {
        let rollout = rollout(snapshot, registry::Kind::Models, name);
        facts.insert(("model", name.to_string()), model(model_of).into_iter().chain(rollout).collect());
    }
    for (name, experiment_of) in &snapshot.experiments {
        facts.insert(("experiment", name.to_string()), experiment(experiment_of));
    }
    for (name, prompt_of) in &snapshot.prompts {
        let rollout = rollout(snapshot, registry::Kind::Prompts, name);
        facts.insert(("prompt", name.to_string()), prompt(prompt_of).into_iter().chain(rollout).collect());
    }
    for budget_of in &snapshot.budgets {
        facts.insert(("budget", budget_of.name.to_string()), budget(budget_of));
    }
    for limit_of in &snapshot.limits {
        facts.insert(("limit", limit_of.name.to_string()), limit(limit_of));
    }
    for (name, value) in settings(snapshot) {
        facts.insert(("setting", name.to_owned()), BTreeMap::from([("value".to_owned(), value)]));
    }
    facts
}

fn shown(value: impl Display) -> Fact {
    Fact::Shown(value.to_string())
}

fn debugged(value: impl std::fmt::Debug) -> Fact {
    Fact::Shown(format!("{value:?}").to_lowercase())
}

fn hidden(value: impl Hash) -> Fact {
    let mut hasher = DefaultHasher::new();
    value.hash(&mut hasher);
    Fact::Hidden(hasher.finish())
}

/// Fields that are there; those that are not take no part.
fn fields<const N: usize>(all: [(&str, Option<Fact>); N]) -> BTreeMap<String, Fact> {
    all.into_iter().filter_map(|(name, fact)| Some((name.to_owned(), fact?))).collect()
}

fn key(digest: &KeyDigest, caller: &Caller) -> BTreeMap<String, Fact> {
    let models = match &caller.models {
        ModelAccess::All => "all".to_owned(),
        ModelAccess::Only(patterns) => patterns.join(", "),
    };
    let tags: Vec<String> = caller.tags.iter().map(|(name, value)| format!("{name}={value}")).collect();
    fields([
        ("secret", Some(hidden(digest))),
        ("team", caller.team.as_ref().map(shown)),
        ("models", Some(shown(models))),
        ("tags", Some(shown(tags.join(", "))).filter(|_| !tags.is_empty())),
    ])
}

fn provider(provider: &Provider) -> BTreeMap<String, Fact> {
    let kind = match &provider.kind {
        ProviderKind::OpenAi => "openai".to_owned(),
        ProviderKind::Anthropic => "anthropic".to_owned(),
        ProviderKind::Simulated(simulated) => format!("{simulated:?}"),
    };
    let keys: Vec<&str> = provider.api_keys.iter().map(|key| key.expose()).collect();
    fields([
        ("kind", Some(shown(kind))),
        ("base_url", Some(shown(&provider.base_url))),
        ("api_keys", Some(hidden(&keys)).filter(|_| !keys.is_empty())),
        ("catalog", provider.catalog.as_ref().map(shown)),
        ("cap_field", Some(shown(provider.cap_field))),
        ("organization_api", Some(shown(provider.organization_api)).filter(|_| provider.organization_api)),
        ("ca", provider.ca.as_ref().map(|path| shown(path.display()))),
    ])
}

fn target_name(target: &Target) -> String {
    format!("{}/{}", target.provider.name, target.model)
}

fn model(model: &Model) -> BTreeMap<String, Fact> {
    let versions = model.versions.values().flat_map(|version| version_fields(version));
    versions.chain([("live".to_owned(), shown(&model.live))]).collect()
}

fn version_fields(version: &ModelVersion) -> Vec<(String, Fact)> {
    let targets = version.targets.iter().map(|(target, weight)| match version.targets.len() {
        1 => target_name(target),
        _ => format!("{} ({weight})", target_name(target)),
    });
    let joined = |texts: Vec<String>| Some(shown(texts.join(", "))).filter(|_| !texts.is_empty());
    let parameters =
        |all: &[(Box<str>, Box<str>)]| joined(all.iter().map(|(name, json)| format!("{name}: {json}")).collect());
    let prompt = version.prompt.as_ref().map(|used| shown(format!("{}@{}", used.prompt.name, used.version)));
    let all = fields([
        ("targets", joined(targets.collect())),
        ("fallbacks", joined(version.fallbacks.iter().map(target_name).collect())),
        ("parameters", parameters(&version.defaults)),
        ("force", parameters(&version.forced)),
        ("prompt", prompt),
    ]);
    all.into_iter().map(|(name, fact)| (format!("{}.{name}", version.name), fact)).collect()
}

fn prompt(prompt: &Prompt) -> BTreeMap<String, Fact> {
    let versions = prompt.versions.iter().flat_map(|(version, template)| {
        let parts = template.sources().map(move |(part, text)| (format!("{version}.{part}"), shown(excerpt(&text))));
        let partial =
            move |(path, text): (&String, &String)| (format!("{version}.partials.{path}"), shown(excerpt(text)));
        let variable = move |one: &Variable| (format!("{version}.variables.{}", one.name), variable(one));
        parts.chain(template.partials().iter().map(partial)).chain(template.variables().iter().map(variable))
    });
    versions.chain([("live".to_owned(), shown(&prompt.live))]).collect()
}

fn variable(variable: &Variable) -> Fact {
    let default = variable.default.as_ref().map(|default| format!("default {default}"));
    let rules = variable.schema.as_ref().map(|schema| format!("rules {schema}"));
    let parts: Vec<String> = [variable.kind.name().to_owned()].into_iter().chain(default).chain(rules).collect();
    shown(parts.join(", "))
}

/// A roll-out on its way, which a file that decides what is live would end.
fn rollout(snapshot: &Snapshot, kind: registry::Kind, name: &str) -> Option<(String, Fact)> {
    let rollout = snapshot.registry.rollout(kind, name)?;
    let text = format!("{} -> {}, {}% of users", rollout.from, rollout.to, rollout.weight());
    Some(("roll-out".to_owned(), shown(text)))
}

/// The beginning of a text, with what tells it from another one of the same beginning.
fn excerpt(text: &str) -> String {
    const SHOWN: usize = 60;
    let first: String = text.lines().next().unwrap_or_default().chars().take(SHOWN).collect();
    match first == text {
        true => format!("{text:?}"),
        false => {
            let mut hasher = DefaultHasher::new();
            text.hash(&mut hasher);
            format!("{first:?}… ({} characters, {:08x})", text.chars().count(), hasher.finish() as u32)
        }
    }
}

fn experiment(experiment: &Experiment) -> BTreeMap<String, Fact> {
    let unit = match &experiment.unit {
        Unit::User => "user".to_owned(),
        Unit::Key => "key".to_owned(),
        Unit::Session => "session".to_owned(),
        Unit::Header(name) => format!("header:{name}"),
    };
    let variants = experiment.variants().iter().map(|variant| {
        let version = variant.version.as_ref().map(|version| format!("version {version}"));
        let target = variant.target.as_ref().map(|target| format!("target {target}"));
        let prompt = variant.prompt.as_ref().map(|(prompt, version)| format!("prompt {prompt}@{version}"));
        let parameters = variant.parameters.iter().map(|(name, json)| format!("{name}: {json}"));
        let weight = format!("weight {}", variant.weight);
        let parts: Vec<String> =
            [weight].into_iter().chain(version).chain(target).chain(prompt).chain(parameters).collect();
        (variant.name.to_string(), shown(parts.join(", ")))
    });
    let state = match experiment.phase {
        Phase::Running => None,
        phase => Some(debugged(phase)),
    };
    let others = fields([
        ("model", Some(shown(&experiment.model))),
        ("unit", Some(shown(unit))),
        ("state", state),
        ("control", Some(shown(&experiment.control))),
        ("layer", experiment.layer.as_ref().map(shown)),
        (
            "share",
            Some(shown(format!("{}%", (experiment.share * 1e4).round() / 100.0))).filter(|_| experiment.share < 1.0),
        ),
        ("halted", Some(shown(experiment.halted.join(", "))).filter(|_| !experiment.halted.is_empty())),
    ]);
    variants.chain(others).collect()
}

/// A scope in the words of the configuration.
fn scope(scope: &Scope) -> String {
    let word = |matched: &Match| match matched {
        Match::Each => "*".to_owned(),
        Match::Is(name) => name.to_string(),
    };
    let dimensions = [("key", &scope.key), ("team", &scope.team), ("user", &scope.user), ("model", &scope.model)];
    let named =
        dimensions.into_iter().filter_map(|(name, matched)| Some(format!("{name}: {}", word(matched.as_ref()?))));
    let tags = scope.tags.iter().map(|(name, matched)| format!("tag {name}: {}", word(matched)));
    let parts: Vec<String> = named.chain(tags).collect();
    if parts.is_empty() { "all".to_owned() } else { parts.join(", ") }
}

fn budget(budget: &Budget) -> BTreeMap<String, Fact> {
    let alerts: Vec<String> = budget.alerts.iter().map(|share| format!("{}%", share * 100.0)).collect();
    fields([
        ("scope", Some(shown(scope(&budget.scope)))),
        ("limit", Some(shown(format!("{} USD", budget.limit)))),
        ("per", Some(debugged(budget.per.every))),
        ("timezone", Some(shown(budget.per.zone.iana_name().unwrap_or("UTC")))),
        ("alerts", Some(shown(alerts.join(", "))).filter(|_| !alerts.is_empty())),
        ("downgrade", budget.downgrade.as_ref().map(shown)),
        ("clamp", Some(shown(budget.clamp))),
        ("min_output_tokens", Some(shown(budget.min_output_tokens))),
        ("default_max_tokens", Some(shown(budget.default_max_tokens))),
        ("on_store_loss", Some(debugged(budget.on_store_loss))),
        ("mode", Some(debugged(budget.mode))),
    ])
}

fn limit(limit: &Limit) -> BTreeMap<String, Fact> {
    let rate = |rate: &Rate| shown(format!("{}/{}", rate.count, length(Duration::from_millis(rate.per_ms))));
    fields([
        ("scope", Some(shown(scope(&limit.scope)))),
        ("requests", limit.requests.as_ref().map(rate)),
        ("tokens", limit.tokens.as_ref().map(rate)),
        ("concurrent", limit.concurrent.map(shown)),
    ])
}

/// A length of time in the words of the configuration.
fn length(duration: Duration) -> String {
    let units = [(86_400_000, "d"), (3_600_000, "h"), (60_000, "m"), (1000, "s"), (1, "ms")];
    let ms = duration.as_millis();
    let unit = units.into_iter().find(|(unit, _)| ms.is_multiple_of(*unit) && ms >= *unit);
    unit.map_or_else(|| "0s".to_owned(), |(unit, name)| format!("{}{name}", ms / unit))
}

fn settings(snapshot: &Snapshot) -> Vec<(&'static str, Fact)> {
    let routing = &snapshot.routing;
    let eject = routing
        .eject
        .map_or_else(|| "off".to_owned(), |eject| format!("after {}, for {}", eject.after, length(eject.duration)));
    let unpriced = match &snapshot.unpriced {
        Unpriced::Refuse => shown("refuse"),
        Unpriced::Charge(price) => shown(format!("charge {:?}", price.rates(jiff::Timestamp::UNIX_EPOCH))),
    };
    let mut all = vec![
        ("auth", debugged(snapshot.auth)),
        ("unpriced", unpriced),
        ("prices", shown(snapshot.prices.revision())),
        ("on_disconnect", debugged(snapshot.on_disconnect)),
        ("stream_usage", debugged(snapshot.stream_usage)),
        ("routing.attempts", shown(routing.attempts)),
        ("routing.retry_budget", shown(format!("{}%", routing.retry_budget * 100.0))),
        ("routing.eject", shown(eject)),
        ("routing.timeouts.connect", shown(length(routing.connect_timeout))),
        ("routing.timeouts.first_byte", shown(length(routing.first_byte_timeout))),
        ("routing.timeouts.idle", shown(length(routing.idle_timeout))),
        ("routing.timeouts.total", shown(length(routing.total_timeout))),
        ("calls.retention", shown(length(snapshot.calls.retention))),
        ("calls.bodies", debugged(snapshot.calls.bodies)),
        ("calls.users", debugged(snapshot.calls.users)),
    ];
    all.extend(snapshot.default_provider.as_ref().map(|provider| ("default_provider", shown(&provider.name))));
    all
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::config;

    const BASE: &str =
        "providers: { sim: { kind: simulated } }\nmodels: { m: { versions: { v1: { target: sim/a } } } }\n";

    fn of(text: &str) -> Facts {
        let text = format!("{BASE}{text}");
        facts(&config::parse_str(&text, "t.yaml", &|_| None, Path::new("")).unwrap().snapshot)
    }

    fn said(old: &str, new: &str) -> Vec<String> {
        let line = |change: Change| {
            let fields = change.fields.iter().map(|(name, was, is)| {
                format!(" {name}: {} -> {}", was.as_deref().unwrap_or("-"), is.as_deref().unwrap_or("-"))
            });
            format!("{:?} {} {}{}", change.kind, change.section, change.name, fields.collect::<Vec<_>>().join(","))
        };
        changes(&of(old), &of(new)).into_iter().map(line).collect()
    }

    #[test]
    fn only_what_is_true_is_compared() {
        let one = "keys: [{ name: a, secret: s1, models: [m] }]\nlimits: [{ name: l, requests: 60/min }]\n";
        let other = "# a comment\nlimits:\n  - requests: 60/min\n    name: l\nkeys:\n  - { secret: s1, models: [ m ], name: a }\n";
        assert_eq!(said(one, other), Vec::<String>::new());
    }

    #[test]
    fn each_change_is_named_with_what_it_was_and_is() {
        let table = [
            (
                "keys: [{ name: a, secret: s1 }]",
                "keys: [{ name: a, secret: s2, models: [m] }]",
                "Changed key a models: all -> m, secret: (secret) -> (secret)",
            ),
            (
                "",
                "limits: [{ name: l, requests: 60/min, scope: { key: \"*\" } }]",
                "Added limit l requests: - -> 60/1m, scope: - -> key: *",
            ),
            (
                "budgets: [{ name: b, limit: 5 USD, per: day }]",
                "budgets: [{ name: b, limit: 3 USD, per: day }]",
                "Changed budget b limit: 5.00 USD -> 3.00 USD",
            ),
            ("routing: { attempts: 2 }", "", "Changed setting routing.attempts value: 2 -> 3"),
            (
                "experiments: { e: { model: m, variants: { a: { weight: 50 } } } }",
                "experiments: { e: { model: m, share: 20%, variants: { a: { weight: 90 } } } }",
                "Changed experiment e a: weight 50 -> weight 90, share: - -> 20%",
            ),
            (
                "prompts: { p: { versions: { v1: { system: \"{{ n }}{% include 'a' %}\", partials: { a: x }, variables: { n: { type: integer, default: 1 } } } } } }",
                "prompts: { p: { versions: { v1: { system: \"{{ n }}{% include 'a' %}\", partials: { a: y }, variables: { n: { type: integer, min: 0 } } } } } }",
                "Changed prompt p v1.partials.a: \"x\" -> \"y\", v1.variables.n: integer, default 1 -> integer, rules {\"minimum\":0}",
            ),
        ];
        for (old, new, expected) in table {
            assert_eq!(said(old, new), [expected], "{old} {new}");
        }
        let removed = said("keys: [{ name: a, secret: s1 }]", "");
        assert!(removed.len() == 1 && removed[0].starts_with("Removed key a"), "{removed:?}");
    }

    #[test]
    fn prompts_of_the_same_beginning_are_told_apart() {
        let text = |end: &str| {
            format!("prompts: {{ p: {{ versions: {{ v1: {{ system: \"{} {end}\" }} }} }} }}", "word ".repeat(30))
        };
        assert_eq!(said(&text("one"), &text("one")).len(), 0);
        assert_eq!(said(&text("one"), &text("two")).len(), 1);
    }

    #[test]
    fn lengths_are_in_the_words_of_the_configuration() {
        for (ms, text) in
            [(0, "0s"), (250, "250ms"), (1500, "1500ms"), (90_000, "90s"), (900_000, "15m"), (86_400_000, "1d")]
        {
            assert_eq!(length(Duration::from_millis(ms)), text);
        }
    }
}
