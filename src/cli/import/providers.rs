//! The providers of an imported configuration: one for each place and key, named as in the source.

use serde_json::{Map, Value, json};

use super::{
    draft::{Draft, literal, name_of, variable},
    upstreams::Upstream,
};
use crate::policy::pricing::Catalog;

/// Providers by what they are.
#[derive(Debug, Default)]
pub(super) struct Providers {
    known: Vec<(Value, String)>,
}

/// How a source says where a provider is and with which key.
#[derive(Debug, Default)]
pub(super) struct Access<'s> {
    /// The base URL as it is to be written.
    pub(super) base_url: Option<String>,
    /// The key's variable; `None` for a server without one.
    pub(super) key: Option<String>,
    /// The name that the provider should have, where it is free.
    pub(super) wanted: &'s str,
}

impl Providers {
    /// The name of the provider with this access, which is added where there is none yet.
    pub(super) fn name(&mut self, draft: &mut Draft, upstream: &Upstream, access: Access<'_>) -> String {
        let mut definition = Map::from_iter([("kind".to_owned(), json!(upstream.kind))]);
        definition.extend(access.base_url.map(|url| ("base_url".to_owned(), json!(url))));
        definition.extend(access.key.map(|name| ("api_key".to_owned(), json!(variable(&name)))));
        definition.extend(upstream.catalog.map(|group| ("catalog".to_owned(), json!(group))));
        self.named(draft, Value::Object(definition), access.wanted)
    }

    /// The name of the provider that is defined so.
    pub(super) fn named(&mut self, draft: &mut Draft, definition: Value, wanted: &str) -> String {
        if let Some((_, name)) = self.known.iter().find(|(known, _)| *known == definition) {
            return name.clone();
        }
        let wanted = name_of(wanted);
        let is_free = |name: &String| self.known.iter().all(|(_, known)| known != name);
        let numbered = (2_u32..).map(|n| format!("{wanted}-{n}"));
        let name = std::iter::once(wanted.clone()).chain(numbered).find(is_free).unwrap_or_default();
        draft.set(&["providers", &name], definition.clone());
        self.known.push((definition, name.clone()));
        name
    }
}

/// A target whose price is looked for.
#[derive(Debug, Clone, Copy)]
pub(super) struct Priced<'s> {
    pub(super) upstream: &'s Upstream,
    pub(super) provider: &'s str,
    pub(super) model: &'s str,
    /// The model behind a deployment's name, where the source says so.
    pub(super) base_model: Option<&'s str>,
    /// Where the target stands in the source.
    pub(super) place: &'s str,
}

/// Gives a target a price where the catalog has none for it: that of its base model, or none on own machines.
pub(super) fn price(draft: &mut Draft, target: Priced<'_>) {
    let row = format!("{}/{}", target.provider, target.model);
    if draft.get(&["prices", &row]).is_some() {
        return;
    }
    let catalog = Catalog::builtin();
    let base_url = draft.get(&["providers", target.provider, "base_url"]).and_then(Value::as_str).map(str::to_owned);
    let own_api = match target.upstream.kind {
        "anthropic" => "https://api.anthropic.com/v1",
        _ => "https://api.openai.com/v1",
    };
    let group = target.upstream.catalog.or_else(|| catalog.provider_of(base_url.as_deref().unwrap_or(own_api)));
    if catalog.find(target.provider, group, target.model).is_some() {
        return;
    }
    let now = jiff::Timestamp::now();
    let of_base = target.base_model.and_then(|base| catalog.find(target.provider, group.or(Some("openai")), base));
    if let Some(price) = of_base {
        let known = ["input", "cached", "cache_write", "input_audio", "output", "output_audio"];
        let rates: Map<String, Value> = price
            .rates(now)
            .into_iter()
            .filter(|(unit, rate)| known.contains(&unit.as_str()) && rate.ends_with("USD/1M"))
            .map(|(unit, rate)| (unit, json!(rate)))
            .collect();
        if rates.contains_key("input") && rates.contains_key("output") {
            draft.set(&["prices", &row], Value::Object(rates));
            return draft.comment(&["prices", &row], format!("as {}", price.row()));
        }
    }
    if target.upstream.own {
        draft.set(&["prices", &row], json!({"input": "0 USD/1M", "output": "0 USD/1M"}));
        return draft.comment(&["prices", &row], "an own server: its tokens cost nothing in the source either");
    }
    let what = format!(
        "the catalog has no price of {row}, and calls without a price are refused; write one under `prices:`, or `unpriced: {{ charge: … }}`"
    );
    draft.lose(target.place, what);
}

/// A place in the environment, from `os.environ/NAME` (LiteLLM) or `env::NAME` (TensorZero).
pub(super) fn environment_name(text: &str) -> Option<&str> {
    text.strip_prefix("os.environ/").or_else(|| text.strip_prefix("env::"))
}

/// A base URL of the source as it is to be written, with the path that it lacks.
pub(super) fn base_url(upstream: &Upstream, given: Option<&str>) -> Option<String> {
    match given.map(|text| (text, environment_name(text))) {
        Some((_, Some(name))) => Some(format!("{}{}", variable(name), upstream.path)),
        given => upstream.base_url(given.map(|(text, _)| text)).map(|url| literal(&url)),
    }
}
