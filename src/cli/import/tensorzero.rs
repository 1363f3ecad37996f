//! TensorZero's `tensorzero.toml`.
//!
//! What it means there: docs/gateway/configuration-reference in tensorzero/tensorzero. A function with its variants becomes a model
//! whose versions are the variants, with an experiment over them where there are several.

use std::path::Path;

use anyhow::Context;
use serde_json::{Map, Value, json};

use super::{
    draft::{Draft, literal, literal_value, name_of},
    providers::{self, Access, Priced, Providers, environment_name},
    toml, upstreams,
};
use crate::policy::prompt::{Template, TemplateSource};

/// Parameters of a variant that are sent to the provider, with their names there.
const PARAMETERS: [(&str, &str); 10] = [
    ("temperature", "temperature"),
    ("top_p", "top_p"),
    ("max_tokens", "max_tokens"),
    ("presence_penalty", "presence_penalty"),
    ("frequency_penalty", "frequency_penalty"),
    ("seed", "seed"),
    ("stop_sequences", "stop"),
    ("reasoning_effort", "reasoning_effort"),
    ("verbosity", "verbosity"),
    ("service_tier", "service_tier"),
];

/// What becomes of a configuration of TensorZero in `directory`.
///
/// # Errors
/// When `text` is no TOML.
pub(super) fn convert(text: &str, directory: &Path) -> anyhow::Result<Draft> {
    let source = toml::parse(text).context("not TOML")?;
    let mut import = Import { draft: Draft::default(), providers: Providers::default(), directory, source: &source };
    import.gateway();
    for section in ["models", "embedding_models"] {
        import.models(section);
    }
    import.functions();
    import.rest();
    Ok(import.draft)
}

struct Import<'s> {
    draft: Draft,
    providers: Providers,
    directory: &'s Path,
    source: &'s Value,
}

/// What a variant becomes.
struct Variant {
    name: String,
    weight: Option<f64>,
}

impl Import<'_> {
    fn gateway(&mut self) {
        let address = self.source.pointer("/gateway/bind_address").and_then(Value::as_str);
        let port = address.and_then(|address| address.rsplit(':').next()).unwrap_or("3000");
        if self.source.pointer("/gateway/auth/enabled").and_then(Value::as_bool) == Some(true) {
            self.draft.set(&["server", "listen"], json!(address.unwrap_or("0.0.0.0:3000")));
            self.draft.lose(
                "gateway.auth",
                "keys in TensorZero's database are not read; make keys with `tollgate keys create`",
            );
        } else {
            self.draft.set(&["server", "listen"], json!(format!("127.0.0.1:{port}")));
            self.draft.set(&["auth"], json!("none"));
            let note = "TensorZero asks nobody here, which is possible on loopback only;\nmake keys with `tollgate keys create` and \
                        take this line out to listen elsewhere";
            self.draft.comment(&["auth"], note);
        }
        if self.source.pointer("/gateway/export/otlp/traces/enabled").and_then(Value::as_bool) == Some(true) {
            self.draft.set(&["telemetry", "otlp"], json!("${OTEL_EXPORTER_OTLP_ENDPOINT:-}"));
        }
        for name in
            keys_of(self.source.get("gateway")).filter(|name| !["bind_address", "auth", "export"].contains(name))
        {
            self.draft.lose(format!("gateway.{name}"), "has no counterpart");
        }
    }

    // === models ===

    fn models(&mut self, section: &str) {
        for (name, model) in entries_of(self.source.get(section)) {
            let place = format!("{section}.{name}");
            let routing =
                model.get("routing").and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str);
            let targets: Vec<String> = routing
                .filter_map(|provider| {
                    let place = format!("{place}.providers.{provider}");
                    self.target(model.get("providers")?.get(provider)?, name, &place)
                })
                .collect();
            for other in keys_of(Some(model)).filter(|key| !["routing", "providers"].contains(key)) {
                let what = match other {
                    "timeouts" => "time-outs hold for all providers: see `routing.timeouts`",
                    "retries" => "attempts are counted for all providers: see `routing.attempts`",
                    _ => "has no counterpart",
                };
                self.draft.lose(format!("{place}.{other}"), what);
            }
            let Some((first, fallbacks)) = targets.split_first() else {
                self.draft.lose(&place, "none of its providers could be carried over");
                continue;
            };
            let version = version_of(first, fallbacks);
            self.draft.set(&["models", &name_of(name), "versions", "v1"], version);
        }
    }

    /// `provider/model` of a provider of a model.
    fn target(&mut self, provider: &Value, model: &str, place: &str) -> Option<String> {
        let text = |key: &str| provider.get(key).and_then(Value::as_str);
        let kind = text("type").unwrap_or_default();
        let model = text("deployment_id").or_else(|| text("model_name")).unwrap_or(model);
        for other in keys_of(Some(provider)) {
            if !["type", "model_name", "deployment_id", "api_base", "endpoint", "api_key_location", "api_version"]
                .contains(&other)
            {
                self.draft.lose(format!("{place}.{other}"), "has no counterpart at a provider");
            }
        }
        self.reach(kind, text("api_base").or_else(|| text("endpoint")), text("api_key_location"), model, place)
    }

    fn reach(&mut self, kind: &str, url: Option<&str>, key: Option<&str>, model: &str, place: &str) -> Option<String> {
        if kind == "dummy" {
            let provider = self.providers.named(&mut self.draft, json!({"kind": "simulated"}), "dummy");
            self.draft.set(&["prices", &format!("{provider}/*")], json!({"input": "0 USD/1M", "output": "0 USD/1M"}));
            return Some(format!("{provider}/{model}"));
        }
        let Some(upstream) = upstreams::find(kind) else {
            let what = format!(
                "`{kind}` is not supported; if the model can be reached over an OpenAI-compatible API with a key, write it as a provider of kind openai"
            );
            self.draft.lose(place, what);
            return None;
        };
        let base_url = providers::base_url(upstream, url);
        if base_url.is_none() && !upstream.is_reachable() {
            self.draft.lose(place, "names no address; write it as a provider of kind openai with its `base_url`");
            return None;
        }
        let key = match key {
            None => Some(upstream.key.to_owned())
                .filter(|name| !name.is_empty() && (url.is_none() || upstream.name == "azure")),
            Some("none") => None,
            Some(location) => match environment_name(location) {
                Some(name) => Some(name.to_owned()),
                None => {
                    let what = format!(
                        "`{location}`: keys come from the environment or from files (`file:PATH`), and never with the call"
                    );
                    self.draft.lose(format!("{place}.api_key_location"), what);
                    Some(upstream.key.to_owned()).filter(|name| !name.is_empty())
                }
            },
        };
        let provider = self.providers.name(&mut self.draft, upstream, Access { base_url, key, wanted: kind });
        let priced = Priced { upstream, provider: &provider, model, base_model: None, place };
        providers::price(&mut self.draft, priced);
        Some(format!("{provider}/{model}"))
    }

    // === functions ===

    fn functions(&mut self) {
        for (name, function) in entries_of(self.source.get("functions")) {
            let place = format!("functions.{name}");
            let mut alias = name_of(name);
            if self.draft.get(&["models", &alias]).is_some() {
                alias = format!("function-{alias}");
                self.draft.lose(&place, format!("a model has this name too; clients name the function `{alias}`"));
            }
            self.function(&alias, function, &place);
        }
    }

    fn function(&mut self, alias: &str, function: &Value, place: &str) {
        let mut variants = Vec::new();
        for (name, variant) in entries_of(function.get("variants")) {
            variants.extend(self.variant(alias, name, variant, function, &format!("{place}.variants.{name}")));
        }
        for key in keys_of(Some(function))
            .filter(|key| !["type", "variants", "experimentation", "description", "system_schema"].contains(key))
        {
            let what = match key {
                "tools" | "tool_choice" | "parallel_tool_calls" => "tools are sent by the client, with each call",
                "output_schema" => "send the schema as `response_format`, which passes unchanged",
                "user_schema" | "assistant_schema" | "schemas" => "the client's own messages pass unchanged",
                "evaluators" => "write a suite for `tollgate eval`",
                _ => "has no counterpart",
            };
            self.draft.lose(format!("{place}.{key}"), what);
        }
        if function.get("type").and_then(Value::as_str) == Some("json") {
            self.draft.lose(format!("{place}.type"), "`json`: the client asks for JSON itself, by `response_format`");
        }
        if variants.is_empty() {
            return self.draft.lose(place, "none of its variants could be carried over");
        }
        let shares = self.shares(&variants, function.get("experimentation"), place);
        let first = variants
            .iter()
            .map(|variant| &variant.name)
            .find(|name| shares.iter().any(|(of, share)| of == *name && *share > 0.0));
        let live = first.unwrap_or(&variants[0].name).clone();
        self.draft.comment(
            &["models", alias],
            format!(
                "clients name `{alias}` where they named {}",
                place.replacen("functions.", "tensorzero::function_name::", 1)
            ),
        );
        if variants.len() > 1 {
            self.draft.set(&["models", alias, "live"], json!(live));
            self.draft.comment(&["experiments"], "TensorZero keeps the variant of an episode; here a user keeps it");
            for (name, share) in shares.iter().filter(|_| shares.len() > 1) {
                self.draft.set(&["experiments", alias, "model"], json!(alias));
                self.draft.set(&["experiments", alias, "variants", name], json!({"weight": share, "version": name}));
            }
        }
    }

    /// Writes a variant as a version of the model `alias`, its system template as a version of a prompt.
    fn variant(&mut self, alias: &str, name: &str, variant: &Value, function: &Value, place: &str) -> Option<Variant> {
        let kind = variant.get("type").and_then(Value::as_str).unwrap_or("chat_completion");
        if kind != "chat_completion" {
            self.draft.lose(place, format!("`{kind}` makes several calls of one; the client can do so"));
            return None;
        }
        let model = variant.get("model").and_then(Value::as_str).unwrap_or_default();
        let version = name_of(name);
        let mut built = match (model.split_once("::"), self.draft.get(&["models", &name_of(model), "versions", "v1"])) {
            (_, Some(known)) => known.clone(),
            (Some((kind, model)), None) => {
                version_of(&self.reach(kind, None, None, model, &format!("{place}.model"))?, &[])
            }
            (None, None) => {
                self.draft.lose(format!("{place}.model"), format!("the model `{model}` was not carried over"));
                return None;
            }
        };
        let parameters =
            PARAMETERS.iter().filter_map(|(key, sent)| Some(((*sent).to_owned(), literal_value(variant.get(*key)?))));
        let parameters: Map<String, Value> = parameters.collect();
        if !parameters.is_empty() {
            built["parameters"] = Value::Object(parameters);
        }
        let inner = |path: &str| variant.pointer(path).and_then(Value::as_str);
        if let Some(path) = inner("/system_template")
            .or_else(|| inner("/templates/system/path"))
            .or_else(|| inner("/system_template/path"))
            && self.prompt(alias, &version, path, function, place)
        {
            built["prompt"] = json!(format!("{alias}@{version}"));
        }
        self.left_of_variant(variant, place);
        self.draft.set(&["models", alias, "versions", &version], built);
        Some(Variant { name: version, weight: variant.get("weight").and_then(Value::as_f64) })
    }

    fn left_of_variant(&mut self, variant: &Value, place: &str) {
        for key in keys_of(Some(variant)) {
            let what = match key {
                "type" | "model" | "weight" | "system_template" => continue,
                "templates" => {
                    let others =
                        keys_of(variant.get("templates")).filter(|template| *template != "system").collect::<Vec<_>>();
                    if others.is_empty() {
                        continue;
                    }
                    "only the system template becomes a prompt; the client's own messages pass unchanged"
                }
                "user_template" | "assistant_template" => {
                    "only the system template becomes a prompt; the client's own messages pass unchanged"
                }
                "json_mode" => "the client asks for JSON itself, by `response_format`",
                "retries" => "attempts are counted for all providers: see `routing.attempts`",
                "timeouts" => "time-outs hold for all providers: see `routing.timeouts`",
                key if PARAMETERS.iter().any(|(name, _)| *name == key) => continue,
                _ => "has no counterpart",
            };
            self.draft.lose(format!("{place}.{key}"), what);
        }
    }

    /// Whether the template at `path` became a version of the prompt `alias`.
    fn prompt(&mut self, alias: &str, version: &str, path: &str, function: &Value, place: &str) -> bool {
        let place = format!("{place}.system_template");
        let text = match std::fs::read_to_string(self.directory.join(path)) {
            Ok(text) => text,
            Err(error) => {
                self.draft
                    .lose(place, format!("{path} cannot be read ({error}); write the prompt under `prompts.{alias}`"));
                return false;
            }
        };
        let source = TemplateSource { system: Some(text), ..TemplateSource::default() };
        if let Err(error) = Template::compile(version.into(), source) {
            self.draft.lose(place, format!("{path}: {error}; write the prompt under `prompts.{alias}`"));
            return false;
        }
        let mut built = json!({"file": literal(path)});
        let variables = self.variables(function);
        if !variables.is_empty() {
            built["variables"] = Value::Object(variables);
        }
        self.draft.set(&["prompts", alias, "versions", version], built);
        if self.draft.get(&["prompts", alias, "live"]).is_none() {
            self.draft.set(&["prompts", alias, "live"], json!(version));
            self.draft.comment(&["prompts", alias], "clients give the variables as JSON in x-tollgate-vars");
        }
        true
    }

    /// What the system schema says of variables that are no texts.
    fn variables(&mut self, function: &Value) -> Map<String, Value> {
        let path =
            function.get("system_schema").or_else(|| function.pointer("/schemas/system/path")).and_then(Value::as_str);
        let text = path.and_then(|path| std::fs::read_to_string(self.directory.join(path)).ok());
        let schema: Option<Value> = text.and_then(|text| serde_json::from_str(&text).ok());
        let properties = schema.as_ref().and_then(|schema| schema.get("properties"));
        let typed = entries_of(properties).filter_map(|(name, property)| {
            let kind = property
                .get("type")
                .and_then(Value::as_str)
                .filter(|kind| ["number", "integer", "boolean"].contains(kind))?;
            Some((name.to_owned(), json!({"type": kind})))
        });
        typed.collect()
    }

    /// The share of each variant that takes part.
    fn shares(&mut self, variants: &[Variant], experimentation: Option<&Value>, place: &str) -> Vec<(String, f64)> {
        let kind = experimentation.and_then(|settings| settings.get("type")).and_then(Value::as_str);
        let candidates = experimentation.and_then(|settings| settings.get("candidate_variants"));
        let share = |variant: &Variant| match (candidates, kind) {
            (Some(Value::Object(weights)), _) => weights
                .iter()
                .find(|(name, _)| name_of(name) == variant.name)
                .and_then(|(_, weight)| weight.as_f64())
                .unwrap_or(0.0),
            (Some(Value::Array(names)), _) => {
                f64::from(u8::from(names.iter().filter_map(Value::as_str).any(|name| name_of(name) == variant.name)))
            }
            (_, None) if variants.iter().any(|variant| variant.weight.is_some()) => variant.weight.unwrap_or(0.0),
            _ => 1.0,
        };
        if let Some(kind) = kind.filter(|kind| !["static", "static_weights", "uniform"].contains(kind)) {
            self.draft.lose(
                format!("{place}.experimentation"),
                format!(
                    "`{kind}`: shares do not move by themselves; look at `tollgate experiments` and change the weights"
                ),
            );
        }
        if keys_of(experimentation).any(|key| key == "fallback_variants") {
            self.draft.lose(
                format!("{place}.experimentation.fallback_variants"),
                "a variant's version has `fallbacks:` of its own, as provider/model",
            );
        }
        let shares: Vec<(String, f64)> =
            variants.iter().map(|variant| (variant.name.clone(), share(variant))).collect();
        let total: f64 = shares.iter().map(|(_, share)| share).sum();
        if total > 0.0 { shares.into_iter().filter(|(_, share)| *share > 0.0).collect() } else { Vec::new() }
    }

    fn rest(&mut self) {
        for name in keys_of(Some(self.source))
            .filter(|name| !["gateway", "models", "embedding_models", "functions"].contains(name))
        {
            let what = match name {
                "metrics" => "clients send feedback by a metric's name; experiments name it as their `goal:`",
                "tools" => "tools are sent by the client, with each call",
                "evaluations" => "write a suite for `tollgate eval`",
                "rate_limiting" => "write `limits:` by key, team, user, model or tag",
                "provider_types" => "write settings at each provider",
                "clickhouse" | "postgres" | "object_storage" => "the call log is kept where `records:` says",
                _ => "has no counterpart",
            };
            self.draft.lose(name, what);
        }
    }
}

fn version_of(target: &str, fallbacks: &[String]) -> Value {
    let mut version = json!({"target": target});
    if !fallbacks.is_empty() {
        version["fallbacks"] = json!(fallbacks);
    }
    version
}

fn entries_of(table: Option<&Value>) -> impl Iterator<Item = (&str, &Value)> {
    table.and_then(Value::as_object).into_iter().flatten().map(|(key, value)| (key.as_str(), value))
}

fn keys_of(table: Option<&Value>) -> impl Iterator<Item = &str> {
    entries_of(table).map(|(key, _)| key)
}
