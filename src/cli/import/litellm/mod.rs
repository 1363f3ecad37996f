//! LiteLLM's proxy `config.yaml`.
//!
//! What it means there: docs.litellm.ai/docs/proxy/configs and config_settings; `litellm/router.py` for how deployments of one
//! name share calls.

mod settings;

use anyhow::Context;
use serde_json::{Map, Value, json};

use super::{
    draft::{Draft, literal_value, name_of, number},
    providers::{self, Access, Priced, Providers, environment_name},
    upstreams::{self, Upstream},
};

/// Parameters of a deployment that are sent to the provider.
const PARAMETERS: [&str; 26] = [
    "temperature",
    "top_p",
    "top_k",
    "n",
    "stop",
    "max_tokens",
    "max_completion_tokens",
    "presence_penalty",
    "frequency_penalty",
    "logit_bias",
    "logprobs",
    "top_logprobs",
    "seed",
    "response_format",
    "parallel_tool_calls",
    "tool_choice",
    "tools",
    "reasoning_effort",
    "thinking",
    "verbosity",
    "service_tier",
    "modalities",
    "dimensions",
    "encoding_format",
    "store",
    "web_search_options",
];

/// Of a deployment, what is carried over beside its parameters.
const CARRIED: [&str; 18] = [
    "model",
    "api_base",
    "base_url",
    "api_key",
    "custom_llm_provider",
    "rpm",
    "tpm",
    "weight",
    "order",
    "max_parallel_requests",
    "input_cost_per_token",
    "output_cost_per_token",
    "cache_read_input_token_cost",
    "cache_creation_input_token_cost",
    "input_cost_per_audio_token",
    "output_cost_per_audio_token",
    "api_version",
    "use_in_pass_through",
];

/// What is read of `model_info`.
const INFO_CARRIED: [&str; 5] = [
    "base_model",
    "input_cost_per_token",
    "output_cost_per_token",
    "cache_read_input_token_cost",
    "cache_creation_input_token_cost",
];

/// Of `model_info`, what is for people, or known here without it.
const INFO_IGNORED: [&str; 7] =
    ["id", "mode", "max_tokens", "max_input_tokens", "max_output_tokens", "description", "metadata"];

/// What becomes of a configuration of LiteLLM.
///
/// # Errors
/// When `text` is no YAML, or no map.
pub(super) fn convert(text: &str) -> anyhow::Result<Draft> {
    let source: Value = serde_saphyr::from_str(text).context("not YAML")?;
    let source = source.as_object().context("not a LiteLLM configuration: no map at the top")?;
    let mut import = Import { variables: named_variables(text), ..Import::default() };
    import.begin(source);
    import.model_list(source);
    import.settings(source);
    import.write_models(source);
    Ok(import.draft)
}

/// A conversion on its way.
#[derive(Debug, Default)]
struct Import {
    draft: Draft,
    providers: Providers,
    /// Variables with the secrets of the source that they are to hold; without one where the source names the variable itself.
    variables: Vec<(String, Option<String>)>,
    /// Deployments by the name that clients use, in the order of the source.
    groups: Vec<(String, Vec<Deployment>)>,
}

/// One entry of `model_list` that clients name exactly.
#[derive(Debug, Clone)]
struct Deployment {
    place: String,
    /// `provider/model`.
    target: String,
    settings: Map<String, Value>,
}

impl Import {
    /// The listener first: it is what an operator looks for.
    fn begin(&mut self, source: &Map<String, Value>) {
        let has_master_key = source.get("general_settings").and_then(|general| general.get("master_key")).is_some();
        let port = if has_master_key { "0.0.0.0:4000" } else { "127.0.0.1:4000" };
        self.draft.set(&["server", "listen"], json!(port));
        self.draft.comment(&["server", "listen"], "LiteLLM's default port; clients use http://HOST:4000/v1, with /v1");
        if !has_master_key {
            self.draft.set(&["auth"], json!("none"));
            let note = "LiteLLM has no master_key here and asks nobody, which is possible on loopback only;\nmake keys with \
                        `tollgate keys create` and take this line out to listen elsewhere";
            self.draft.comment(&["auth"], note);
        }
    }

    fn model_list(&mut self, source: &Map<String, Value>) {
        let items = source.get("model_list").and_then(Value::as_array).cloned().unwrap_or_default();
        let places = || (0..).map(|i| format!("model_list[{i}]"));
        // Providers of wildcards go first, since clients write their names.
        let (wildcards, exact): (Vec<_>, Vec<_>) = items
            .iter()
            .zip(places())
            .partition(|(item, _)| text_of(item, "model_name").is_some_and(|name| name.contains('*')));
        wildcards.into_iter().for_each(|(item, place)| self.wildcard(item, &place));
        exact.into_iter().for_each(|(item, place)| self.exact(item, &place));
    }

    /// `openai/*`: whatever a provider has.
    fn wildcard(&mut self, item: &Value, place: &str) {
        let name = text_of(item, "model_name").unwrap_or_default();
        let Some(settings) = self.settings_of(item, place) else { return };
        let model = settings.get("model").and_then(Value::as_str).unwrap_or_default();
        if name == "*" && model == "*" {
            let what = "any model of any provider by LiteLLM's own guess; here bare names go to `default_provider`, others are named provider/model";
            self.draft.lose(place, what);
        }
        let wanted = name.strip_suffix("/*").filter(|prefix| !prefix.contains(['/', '*']));
        let Some((upstream, _)) = self.upstream(&settings, place) else { return };
        self.note_rest(item, place);
        let provider = self.provider(upstream, &settings, wanted.unwrap_or(upstream.name), place);
        if name == "*" {
            match self.draft.get(&["default_provider"]) {
                None => self.draft.set(&["default_provider"], json!(provider)),
                Some(_) => self.draft.lose(place, "a second provider for all names; there is one `default_provider`"),
            }
        } else if wanted != Some(provider.as_str()) || !model.ends_with("/*") {
            let what =
                format!("`{name}` is callable as {provider}/MODEL, with every model; restrict keys by their `models:`");
            self.draft.lose(place, what);
        }
    }

    fn exact(&mut self, item: &Value, place: &str) {
        let Some(name) = text_of(item, "model_name") else {
            return self.draft.lose(place, "has no model_name; name it, and import again");
        };
        let Some(settings) = self.settings_of(item, place) else { return };
        let Some((upstream, model)) = self.upstream(&settings, place) else { return };
        self.note_rest(item, place);
        if model.is_empty() {
            let what = "names no model at the provider; write it as `target: provider/model`";
            return self.draft.lose(format!("{place}.litellm_params.model"), what);
        }
        let provider = self.provider(upstream, &settings, upstream.name, place);
        self.own_price(&settings, &format!("{provider}/{model}"), place);
        let base_model =
            settings.get("base_model").and_then(Value::as_str).map(|name| name.rsplit('/').next().unwrap_or(name));
        let place = place.to_owned();
        providers::price(
            &mut self.draft,
            Priced { upstream, provider: &provider, model: &model, base_model, place: &place },
        );
        let deployment = Deployment { target: format!("{provider}/{model}"), place, settings };
        match self.groups.iter_mut().find(|(known, _)| known == name) {
            Some((_, deployments)) => deployments.push(deployment),
            None => self.groups.push((name.to_owned(), vec![deployment])),
        }
    }

    /// `litellm_params`, and what of `model_info` means something here.
    fn settings_of(&mut self, item: &Value, place: &str) -> Option<Map<String, Value>> {
        let Some(params) = item.get("litellm_params").and_then(Value::as_object) else {
            self.draft.lose(place, "has no litellm_params; a model needs a target");
            return None;
        };
        let info = item.get("model_info").and_then(Value::as_object).into_iter().flatten();
        let of_info = info.filter(|(name, _)| INFO_CARRIED.contains(&name.as_str()));
        Some(params.iter().chain(of_info).map(|(name, value)| (name.clone(), value.clone())).collect())
    }

    /// Notes what of a deployment is not carried over.
    fn note_rest(&mut self, item: &Value, place: &str) {
        let names = |section: &str| {
            item.get(section).and_then(Value::as_object).into_iter().flatten().map(|(name, _)| name.as_str())
        };
        for name in names("litellm_params").filter(|name| !CARRIED.contains(name) && !PARAMETERS.contains(name)) {
            self.draft.lose(format!("{place}.litellm_params.{name}"), advice_on_parameter(name));
        }
        let means_something = |name: &&str| {
            !INFO_CARRIED.contains(name) && !INFO_IGNORED.contains(name) && !name.starts_with("supports_")
        };
        for name in names("model_info").filter(means_something) {
            let what = "describes the model to LiteLLM; there is no counterpart";
            self.draft.lose(format!("{place}.model_info.{name}"), what);
        }
    }

    /// The provider that a deployment names, and the model's name there.
    fn upstream(&mut self, settings: &Map<String, Value>, place: &str) -> Option<(&'static Upstream, String)> {
        let model = settings.get("model").and_then(Value::as_str).unwrap_or_default();
        let place = format!("{place}.litellm_params.model");
        let given = settings.get("custom_llm_provider").and_then(Value::as_str);
        let (name, model) = match (given, model.split_once('/')) {
            (Some(given), Some((prefix, rest))) if prefix == given => (given, rest),
            (Some(given), _) => (given, model),
            (None, Some(split)) => split,
            (None, None) => (guessed_provider(model), model),
        };
        match upstreams::find(name) {
            Some(upstream) => Some((upstream, model.to_owned())),
            None => {
                self.draft.lose(place, format!("`{name}/{model}`: {}", advice_on_provider(name)));
                None
            }
        }
    }

    fn provider(&mut self, upstream: &Upstream, settings: &Map<String, Value>, wanted: &str, place: &str) -> String {
        let given_url = ["api_base", "base_url"].iter().find_map(|key| settings.get(*key)).and_then(Value::as_str);
        let base_url = providers::base_url(upstream, given_url);
        if base_url.is_none() && !upstream.is_reachable() {
            let what = "no api_base: LiteLLM takes it from the environment; write the server's address as `base_url`";
            self.draft.lose(format!("{place}.litellm_params"), what);
        }
        let key = self.key(upstream, settings, given_url, place);
        let base_url = base_url.or_else(|| (!upstream.is_reachable()).then(|| "http://127.0.0.1:8000/v1".to_owned()));
        let provider = self.providers.name(&mut self.draft, upstream, Access { base_url, key, wanted });
        if upstream.name == "azure" {
            let note = "Azure's v1 API; model names are those of deployments, and `api_version` is no longer needed";
            self.draft.comment(&["providers", &provider], note);
        }
        provider
    }

    /// The variable that holds the key. A key is never sent to another address than in the source.
    fn key(
        &mut self,
        upstream: &Upstream,
        settings: &Map<String, Value>,
        given_url: Option<&str>,
        place: &str,
    ) -> Option<String> {
        let place = format!("{place}.litellm_params.api_key");
        let given = settings.get("api_key").and_then(Value::as_str).filter(|key| !key.is_empty());
        match (given, given_url) {
            (Some(key), _) if environment_name(key).is_some() => environment_name(key).map(str::to_owned),
            (Some(key), url) => {
                let host = url.and_then(|url| url.split("://").nth(1)).and_then(|rest| rest.split(['/', ':']).next());
                let name = self.variable_of(key, &variable_name(host.unwrap_or(upstream.name), "_API_KEY"));
                self.draft.lose(place, in_the_open(&name));
                Some(name)
            }
            (None, Some(_)) if upstream.name != "azure" => {
                if !upstream.own && !upstream.key.is_empty() {
                    let key = upstream.key;
                    let what = format!(
                        "LiteLLM would send {key} to this address; write `api_key:` at the provider if it is meant to have it"
                    );
                    self.draft.lose(place, what);
                }
                None
            }
            (None, _) => Some(upstream.key).filter(|name| !name.is_empty()).map(str::to_owned),
        }
    }

    /// A variable for a secret that stands in the source: one of its own, named `wanted` where that is free.
    fn variable_of(&mut self, secret: &str, wanted: &str) -> String {
        if let Some((name, _)) = self.variables.iter().find(|(_, held)| held.as_deref() == Some(secret)) {
            return name.clone();
        }
        let is_free = |name: &String| self.variables.iter().all(|(known, _)| known != name);
        let numbered = (2_u32..).map(|n| format!("{wanted}_{n}"));
        let name = std::iter::once(wanted.to_owned()).chain(numbered).find(is_free).unwrap_or_default();
        self.variables.push((name.clone(), Some(secret.to_owned())));
        name
    }

    /// Prices that the source sets itself, in USD per token.
    fn own_price(&mut self, settings: &Map<String, Value>, target: &str, place: &str) {
        let rates = [
            ("input", "input_cost_per_token"),
            ("cached", "cache_read_input_token_cost"),
            ("cache_write", "cache_creation_input_token_cost"),
            ("input_audio", "input_cost_per_audio_token"),
            ("output", "output_cost_per_token"),
            ("output_audio", "output_cost_per_audio_token"),
        ];
        let found = rates
            .iter()
            .filter_map(|(unit, key)| Some(((*unit).to_owned(), json!(per_million(number_of(settings.get(*key)?)?)))));
        let mut row: Map<String, Value> = found.collect();
        if row.is_empty() {
            return;
        }
        for (unit, key) in [("input", "input_cost_per_token"), ("output", "output_cost_per_token")] {
            if !row.contains_key(unit) {
                row.insert(unit.to_owned(), json!("0 USD/1M"));
                self.draft.lose(
                    format!("{place}.litellm_params.{key}"),
                    format!("is missing beside the other price and became 0; check `prices:` of {target}"),
                );
            }
        }
        self.draft.set(&["prices", target], Value::Object(row));
    }
}

impl Deployment {
    fn number(&self, key: &str) -> Option<f64> {
        self.settings.get(key).and_then(number_of)
    }

    /// The parameters that are set where a client sets none.
    fn parameters(&self) -> Map<String, Value> {
        let parameters = self.settings.iter().filter(|(name, _)| PARAMETERS.contains(&name.as_str()));
        parameters.map(|(name, value)| (name.clone(), literal_value(value))).collect()
    }
}

/// The provider of a model that names none, by the families that LiteLLM knows.
fn guessed_provider(model: &str) -> &'static str {
    let openai = [
        "gpt-",
        "chatgpt-",
        "o1",
        "o3",
        "o4",
        "text-embedding-",
        "dall-e-",
        "whisper-",
        "tts-",
        "davinci",
        "babbage",
        "omni-moderation",
    ];
    match model {
        "*" => "openai",
        model if openai.iter().any(|family| model.starts_with(family)) => "openai",
        model if model.starts_with("claude-") => "anthropic",
        model if model.starts_with("gemini-") => "vertex_ai",
        _ => "",
    }
}

fn advice_on_provider(name: &str) -> &'static str {
    match name {
        "" => "names no provider; write the target as `provider/model`",
        "bedrock" | "sagemaker" | "sagemaker_chat" => {
            "AWS signs its requests, which is not supported; reach the model over a provider with an OpenAI-compatible API"
        }
        "vertex_ai" | "vertex_ai_beta" => {
            "Vertex AI wants tokens that expire, which is not supported; Gemini models can be reached as kind openai with an AI Studio key"
        }
        "azure_ai" => {
            "if the endpoint has an OpenAI-compatible path, write it as a provider of kind openai with its `base_url`"
        }
        _ => {
            "is not known to the importer; if it has an OpenAI-compatible API, write it as a provider of kind openai with its `base_url`"
        }
    }
}

fn advice_on_parameter(name: &str) -> &'static str {
    match name {
        "timeout" | "stream_timeout" | "request_timeout" => {
            "time-outs hold for all providers: see `routing.timeouts`; clients can send x-tollgate-timeout"
        }
        "num_retries" | "max_retries" => "attempts are counted for all providers: see `routing.attempts`",
        "organization" => "is not sent; use a key of that organization's project",
        "headers" | "extra_headers" | "default_headers" => {
            "headers are not added on the way; the client's own pass unchanged"
        }
        "tags" => "calls are not routed by tags; give models of their own, and keys `tags:` for budgets",
        "drop_params" | "additional_drop_params" | "allowed_openai_params" => {
            "parameters pass unchanged; nothing is dropped"
        }
        "mock_response" | "mock_timeout" => "is for tests; use a provider of kind simulated",
        "max_budget" | "budget_duration" => "write a budget with `scope: { model: … }`",
        "input_cost_per_second" | "output_cost_per_second" => "prices are per token; write one under `prices:`",
        "litellm_credential_name" => "credentials are named at the provider; write `api_key` there",
        name if name.starts_with("aws_")
            || name.starts_with("vertex_")
            || name.starts_with("azure_ad")
            || name.starts_with("s3_") =>
        {
            "this way to sign in is not supported; providers take an `api_key`"
        }
        _ => "has no counterpart",
    }
}

/// `openai-2`, `_API_KEY`: `OPENAI_2_API_KEY`.
fn variable_name(of: &str, ending: &str) -> String {
    let upper = of.chars().map(|c| if c.is_ascii_alphanumeric() { c.to_ascii_uppercase() } else { '_' });
    upper.collect::<String>() + ending
}

/// What to do about a secret in the source.
fn in_the_open(variable: &str) -> String {
    format!("the key stands in the source itself; put it into the environment (or a .env) as {variable}")
}

/// The variables that the source names, and those where LiteLLM looks for keys by itself.
fn named_variables(text: &str) -> Vec<(String, Option<String>)> {
    let is_name = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let named = text.split("os.environ/").skip(1).map(|rest| rest.split(|c| !is_name(c)).next().unwrap_or_default());
    named.map(|name| (name.to_owned(), None)).collect()
}

fn text_of<'v>(value: &'v Value, key: &str) -> Option<&'v str> {
    value.get(key).and_then(Value::as_str)
}

/// A number, also as YAML 1.1 spells it: `80_000`.
fn number_of(value: &Value) -> Option<f64> {
    value
        .as_f64()
        .or_else(|| value.as_str()?.replace('_', "").parse().ok())
        .filter(|number| number.is_finite() && *number >= 0.0)
}

/// Also as YAML 1.1 spells it.
fn is_true(value: &Value) -> bool {
    value.as_bool().unwrap_or_else(|| value.as_str().is_some_and(|text| text.eq_ignore_ascii_case("true")))
}

/// USD per token as a price per million.
fn per_million(usd_per_token: f64) -> String {
    format!("{} USD/1M", number((usd_per_token * 1e12).round() / 1e6))
}
