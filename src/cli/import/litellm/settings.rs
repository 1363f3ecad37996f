//! LiteLLM's settings beside its list of models, and the models that come of both.

use serde_json::{Map, Value, json};

use super::{Deployment, Import, in_the_open, is_true, name_of, number, number_of, text_of};
use crate::cli::import::{draft::variable, providers::environment_name};

/// Sections that are read here.
const SECTIONS: [&str; 4] = ["model_list", "general_settings", "router_settings", "litellm_settings"];
/// Settings that only say how LiteLLM itself works, and whose absence nobody notices.
const INTERNAL: [&str; 14] = [
    "set_verbose",
    "json_logs",
    "telemetry",
    "redis_host",
    "redis_port",
    "redis_password",
    "enable_pre_call_checks",
    "proxy_batch_write_at",
    "proxy_budget_rescheduler_min_time",
    "proxy_budget_rescheduler_max_time",
    "database_connection_pool_limit",
    "database_connection_timeout",
    "enable_loadbalancing_on_batch_endpoints",
    "suppress_debug_info",
];

impl Import {
    pub(super) fn settings(&mut self, source: &Map<String, Value>) {
        let section = |name: &str| source.get(name).and_then(Value::as_object).cloned().unwrap_or_default();
        let (general, router, litellm) =
            (section("general_settings"), section("router_settings"), section("litellm_settings"));
        self.general(&general);
        self.routing(&router, &litellm);
        self.litellm(&litellm);
        if router.keys().any(|key| key.starts_with("redis")) {
            let what = "several gateways share limits, budgets and health by `store: redis://…`; LiteLLM's Redis holds other things";
            self.draft.lose("router_settings.redis_*", what);
        }
        for name in source.keys().filter(|name| !SECTIONS.contains(&name.as_str())) {
            self.draft.lose(name.as_str(), advice_on_section(name));
        }
    }

    // === general_settings ===

    fn general(&mut self, settings: &Map<String, Value>) {
        for (name, value) in settings {
            match name.as_str() {
                "master_key" => self.master_key(value),
                "max_parallel_requests" | "global_max_parallel_requests" => self.concurrent(name, value),
                "max_request_size_mb" => {
                    let size = number_of(value).map(|size| format!("{}MiB", size.ceil()));
                    size.into_iter().for_each(|size| self.draft.set(&["server", "limits", "body"], json!(size)));
                }
                "alerting" if value.as_array().is_some_and(|all| all.iter().any(|channel| channel == "slack")) => {
                    self.draft.set(&["alerts", "webhook"], json!(variable("SLACK_WEBHOOK_URL")));
                    self.draft.set(&["alerts", "format"], json!("slack"));
                }
                name if INTERNAL.contains(&name) => {}
                name => self.draft.lose(format!("general_settings.{name}"), advice_on_general(name)),
            }
        }
    }

    /// The master key opens LiteLLM's administration and may call every model.
    fn master_key(&mut self, value: &Value) {
        let key = value.as_str().unwrap_or_default();
        let name = match environment_name(key) {
            Some(name) => name.to_owned(),
            None => {
                let name = self.variable_of(key, "LITELLM_MASTER_KEY");
                self.draft.lose("general_settings.master_key", in_the_open(&name));
                name
            }
        };
        self.draft.set(&["server", "admin_token"], json!(variable(&name)));
        self.draft.push("keys", json!({"name": "master", "secret": variable(&name)}));
        self.draft.comment(
            &["keys"],
            "may call every model, as in LiteLLM; make one for each application with `tollgate keys create`",
        );
    }

    fn concurrent(&mut self, name: &str, value: &Value) {
        let Some(count) = number_of(value).filter(|count| *count >= 1.0) else { return };
        let mut limit = json!({"name": if name.starts_with("global") { "all-calls" } else { "each-key" }});
        if !name.starts_with("global") {
            limit["scope"] = json!({"key": "*"});
        }
        limit["concurrent"] = json!(count as u64);
        self.draft.push("limits", limit);
    }

    // === router_settings ===

    fn routing(&mut self, router: &Map<String, Value>, litellm: &Map<String, Value>) {
        let setting = |name: &str| router.get(name).or_else(|| litellm.get(name)).and_then(number_of);
        if let Some(retries) = setting("num_retries") {
            let longest = fallbacks(router, litellm).iter().map(|(_, to)| to.len()).max().unwrap_or(0);
            let attempts = (retries as usize).max(longest).saturating_add(1).min(20);
            self.draft.set(&["routing", "attempts"], json!(attempts));
            self.draft.comment(
                &["routing", "attempts"],
                "num_retries and the first attempt, over targets and fallbacks together",
            );
        }
        if router.get("disable_cooldowns").is_some_and(is_true) {
            self.draft.set(&["routing", "eject"], json!("off"));
        } else {
            if let Some(fails) = setting("allowed_fails") {
                self.draft.set(&["routing", "eject", "after"], json!(fails as u64 + 1));
                self.draft
                    .comment(&["routing", "eject", "after"], "failures in a row; LiteLLM counts those of a minute");
            }
            if let Some(seconds) = setting("cooldown_time").filter(|seconds| *seconds > 0.0) {
                self.draft.set(&["routing", "eject", "for"], json!(format!("{}s", number(seconds))));
            }
        }
        if let Some(seconds) =
            setting("timeout").or_else(|| setting("request_timeout")).filter(|seconds| *seconds > 0.0)
        {
            self.draft.set(&["routing", "timeouts", "first_byte"], json!(format!("{}s", number(seconds))));
            self.draft.set(
                &["routing", "timeouts", "total"],
                json!(format!("{}s", number((seconds * 2.0).clamp(900.0, 86_400.0)))),
            );
        }
        for (name, value) in router {
            match name.as_str() {
                "num_retries" | "allowed_fails" | "cooldown_time" | "timeout" | "disable_cooldowns" | "fallbacks"
                | "default_fallbacks" | "model_group_alias" => {}
                "routing_strategy" => self.strategy(value),
                name if INTERNAL.contains(&name) || name.starts_with("redis") => {}
                name => self.draft.lose(format!("router_settings.{name}"), advice_on_router(name)),
            }
        }
    }

    fn strategy(&mut self, value: &Value) {
        let strategy = value.as_str().unwrap_or_default();
        if strategy != "simple-shuffle" {
            let what = format!(
                "`{strategy}`: targets of one model share calls by their `weight:` alone, and failing ones are taken out for a while"
            );
            self.draft.lose("router_settings.routing_strategy", what);
        }
    }

    // === litellm_settings ===

    fn litellm(&mut self, settings: &Map<String, Value>) {
        if let Some(limit) = settings.get("max_budget").and_then(number_of) {
            self.budget(limit, text_of_map(settings, "budget_duration"));
        }
        for (name, value) in settings {
            match name.as_str() {
                "max_budget" | "budget_duration" | "num_retries" | "request_timeout" | "timeout" | "allowed_fails"
                | "cooldown_time" | "fallbacks" | "default_fallbacks" => {}
                "callbacks" | "success_callback" | "failure_callback" | "service_callback" => {
                    self.callbacks(name, value)
                }
                "cache" | "cache_params" if !settings.get("cache").is_some_and(is_true) => {}
                "drop_params" if !is_true(value) => {}
                name if INTERNAL.contains(&name) => {}
                name => self.draft.lose(format!("litellm_settings.{name}"), advice_on_litellm(name)),
            }
        }
    }

    fn budget(&mut self, limit: f64, duration: Option<&str>) {
        let (per, exact) = period(duration);
        self.draft.push("budgets", json!({"name": "proxy", "limit": format!("{} USD", number(limit)), "per": per}));
        if !exact {
            let what = format!(
                "`{}` became a calendar {per}; periods are hour, day, week, month, year, total",
                duration.unwrap_or_default()
            );
            self.draft.lose("litellm_settings.budget_duration", what);
        }
    }

    fn callbacks(&mut self, name: &str, value: &Value) {
        let one = [value.clone()];
        for callback in value.as_array().map_or(one.as_slice(), Vec::as_slice).iter().filter_map(Value::as_str) {
            match callback {
                // Metrics and log lines are there without asking.
                "prometheus" | "prometheus_system" => {}
                "otel" | "arize_phoenix" | "langfuse_otel" => {
                    self.draft.set(&["telemetry", "otlp"], json!("${OTEL_EXPORTER_OTLP_ENDPOINT:-}"));
                }
                other => {
                    let what = format!(
                        "`{other}`: calls go to the call log (`tollgate calls`) and as traces over OTLP (`telemetry.otlp`), which many services take"
                    );
                    self.draft.lose(format!("litellm_settings.{name}"), what);
                }
            }
        }
    }

    // === models ===

    /// Writes each group of deployments as a model.
    pub(super) fn write_models(&mut self, source: &Map<String, Value>) {
        let section = |name: &str| source.get(name).and_then(Value::as_object).cloned().unwrap_or_default();
        let (router, litellm) = (section("router_settings"), section("litellm_settings"));
        let all_fallbacks = fallbacks(&router, &litellm);
        let limits_rates = limits_rates(&router);
        for (name, deployments) in self.groups.clone() {
            let Some(alias) = self.alias(&name, &deployments) else { continue };
            let own = all_fallbacks
                .iter()
                .find(|(of, _)| of == &name)
                .or_else(|| all_fallbacks.iter().find(|(of, _)| of == "*"));
            let fallbacks = own.map(|(_, to)| self.fallback_targets(&name, to)).unwrap_or_default();
            let version = self.version(&deployments, fallbacks);
            self.draft.set(&["models", &alias, "versions", "v1"], version);
            self.rates(&alias, &deployments, limits_rates);
        }
        let aliases = router.get("model_group_alias").and_then(Value::as_object).cloned().unwrap_or_default();
        for (alias, of) in aliases {
            let of = of.as_str().or_else(|| text_of(&of, "model")).unwrap_or_default();
            match self.draft.get(&["models", &name_of(of)]).cloned() {
                Some(model) => self.draft.set(&["models", &name_of(&alias)], model),
                None => self
                    .draft
                    .lose(format!("router_settings.model_group_alias.{alias}"), format!("there is no model `{of}`")),
            }
        }
    }

    /// The alias of a group; `None` where `provider/model` is that already.
    fn alias(&mut self, name: &str, deployments: &[Deployment]) -> Option<String> {
        let alias = name_of(name);
        if alias == name {
            return Some(alias);
        }
        let place =
            deployments.first().map(|deployment| format!("{}.model_name", deployment.place)).unwrap_or_default();
        if let [only] = deployments
            && only.target == name
            && only.parameters().is_empty()
        {
            return None;
        }
        self.draft.lose(place, format!("`{name}`: names hold none of / @ * , = here (provider/model means a provider's own); clients name `{alias}`"));
        Some(alias)
    }

    fn version(&mut self, deployments: &[Deployment], mut fallbacks: Vec<String>) -> Value {
        let first_order = deployments.iter().filter_map(|deployment| deployment.number("order")).reduce(f64::min);
        let (mut first, mut later): (Vec<_>, Vec<_>) = deployments
            .iter()
            .partition(|deployment| first_order.is_none() || deployment.number("order") == first_order);
        later.sort_by(|a, b| a.number("order").unwrap_or(f64::MAX).total_cmp(&b.number("order").unwrap_or(f64::MAX)));
        fallbacks.splice(0..0, later.iter().map(|deployment| deployment.target.clone()));
        let mut seen = Vec::new();
        first.retain(|deployment| {
            !seen.contains(&deployment.target) && {
                seen.push(deployment.target.clone());
                true
            }
        });
        let mut version = Map::new();
        match first.as_slice() {
            [only] => drop(version.insert("target".to_owned(), json!(only.target))),
            several => drop(version.insert("targets".to_owned(), weighted(several))),
        }
        fallbacks.retain(|target| {
            !seen.contains(target) && {
                seen.push(target.clone());
                true
            }
        });
        if !fallbacks.is_empty() {
            version.insert("fallbacks".to_owned(), json!(fallbacks));
        }
        let parameters = deployments.first().map(Deployment::parameters).unwrap_or_default();
        for other in deployments.iter().filter(|other| other.parameters() != parameters) {
            let what = "parameters differ between deployments of one name; those of the first hold for all of them";
            self.draft.lose(format!("{}.litellm_params", other.place), what);
        }
        if !parameters.is_empty() {
            version.insert("parameters".to_owned(), Value::Object(parameters));
        }
        Value::Object(version)
    }

    /// The targets of the groups that calls of `of` fall back to.
    fn fallback_targets(&mut self, of: &str, to: &[String]) -> Vec<String> {
        let mut targets = Vec::new();
        for name in to.iter().filter(|name| *name != of) {
            match self.groups.iter().find(|(known, _)| known == name) {
                Some((_, deployments)) => {
                    targets.extend(deployments.iter().map(|deployment| deployment.target.clone()))
                }
                None => {
                    let what = format!(
                        "`{name}`, the fallback of `{of}`, is no model that was carried over; write it under `fallbacks:` as provider/model"
                    );
                    self.draft.lose("fallbacks", what);
                }
            }
        }
        targets
    }

    fn rates(&mut self, alias: &str, deployments: &[Deployment], limits_rates: bool) {
        let sum = |key: &str| {
            let all: Option<Vec<f64>> = deployments.iter().map(|deployment| deployment.number(key)).collect();
            all.map(|all| all.iter().sum::<f64>()).filter(|sum| *sum >= 1.0).map(|sum| sum as u64)
        };
        let (requests, tokens, concurrent) = (sum("rpm"), sum("tpm"), sum("max_parallel_requests"));
        let mut limit = json!({"name": alias, "scope": {"model": alias}});
        if limits_rates {
            requests.into_iter().for_each(|requests| limit["requests"] = json!(format!("{requests}/min")));
            tokens.into_iter().for_each(|tokens| limit["tokens"] = json!(format!("{tokens}/min")));
        } else if let ([only], true) = (deployments, requests.or(tokens).is_some()) {
            let what = format!(
                "rpm and tpm limit nothing in LiteLLM with this routing; to have it so, add `limits: [{{ name: {alias}, scope: {{ model: {alias} }}, requests: …/min }}]`"
            );
            self.draft.lose(format!("{}.litellm_params", only.place), what);
        }
        concurrent.into_iter().for_each(|concurrent| limit["concurrent"] = json!(concurrent));
        if limit.as_object().is_some_and(|limit| limit.len() > 2) {
            self.draft.push("limits", limit);
        }
    }
}

/// Shares as LiteLLM's simple-shuffle takes them: by `weight`, else `rpm`, else `tpm` of the first that has one.
fn weighted(deployments: &[&Deployment]) -> Value {
    let by = ["weight", "rpm", "tpm"]
        .into_iter()
        .find(|key| deployments.first().is_some_and(|first| first.number(key).is_some()));
    let weights: Vec<f64> =
        deployments.iter().map(|deployment| by.map_or(1.0, |key| deployment.number(key).unwrap_or(0.0))).collect();
    let scale = if weights.iter().all(|weight| weight.fract() == 0.0) { 1.0 } else { 1000.0 };
    let nothing = weights.iter().all(|weight| *weight <= 0.0);
    let items = deployments.iter().zip(weights).map(|(deployment, weight)| {
        let weight = if nothing { 1 } else { (weight * scale).round().min(1e9) as u64 };
        json!({"use": deployment.target, "weight": weight})
    });
    items.collect()
}

/// What calls fall back to, by model; `*` for all others.
fn fallbacks(router: &Map<String, Value>, litellm: &Map<String, Value>) -> Vec<(String, Vec<String>)> {
    let names = |value: &Value| {
        value.as_array().into_iter().flatten().filter_map(|name| name.as_str().map(str::to_owned)).collect()
    };
    let mut all: Vec<(String, Vec<String>)> = Vec::new();
    for settings in [router, litellm] {
        let maps =
            settings.get("fallbacks").and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_object);
        all.extend(maps.flatten().map(|(of, to)| (of.clone(), names(to))));
        all.extend(settings.get("default_fallbacks").map(|to| ("*".to_owned(), names(to))));
    }
    all
}

/// Whether LiteLLM refuses calls beyond `rpm` and `tpm`, rather than only sharing by them.
fn limits_rates(router: &Map<String, Value>) -> bool {
    let by_usage = text_of_map(router, "routing_strategy").is_some_and(|strategy| strategy.starts_with("usage-based"));
    by_usage || router.get("enable_pre_call_checks").is_some_and(is_true)
}

fn text_of_map<'m>(map: &'m Map<String, Value>, key: &str) -> Option<&'m str> {
    map.get(key).and_then(Value::as_str)
}

/// The period that is closest to a duration, and whether it is the same.
fn period(duration: Option<&str>) -> (&'static str, bool) {
    match duration {
        None => ("total", true),
        Some("1h" | "60m" | "3600s") => ("hour", true),
        Some("1d" | "24h") => ("day", true),
        Some("7d" | "1w") => ("week", true),
        Some("30d" | "31d" | "1mo") => ("month", true),
        Some("365d" | "1y") => ("year", true),
        Some(_) => ("month", false),
    }
}

fn advice_on_section(name: &str) -> &'static str {
    match name {
        "environment_variables" => "put these into the environment, or into a .env beside the configuration",
        "include" => "put the files together into one, and import that",
        "guardrails" => {
            "contents are neither checked nor changed; redaction is there for the call log (`calls.redact`)"
        }
        "mcp_servers" | "mcp_tools" | "agent_list" => "tools and agents are the client's own here",
        "finetune_settings" | "files_settings" => "calls without a model go to `default_provider`",
        "prompts" => "write them under `prompts:`, with versions",
        _ => "has no counterpart",
    }
}

fn advice_on_general(name: &str) -> &'static str {
    match name {
        "database_url" | "store_model_in_db" | "use_redis_transaction_buffer" => {
            "keys, teams, spend and models in LiteLLM's database are not read; make keys with `tollgate keys create`, and name a database of its own under `records:` for the call log of a fleet"
        }
        "alerting" | "alerting_threshold" | "alerting_args" | "alert_types" | "alert_to_webhook_url" => {
            "alerts go to one webhook: see `alerts:`"
        }
        "pass_through_endpoints" => "only the paths of OpenAI's and Anthropic's APIs are served",
        "custom_auth" | "enable_jwt_auth" | "litellm_jwtauth" | "enable_oauth2_auth" => {
            "clients sign in with virtual keys"
        }
        "key_management_system" | "key_management_settings" => "mount secrets as files, and write `file:PATH`",
        "allowed_routes" | "admin_only_routes" | "public_routes" => {
            "administration has a listener of its own: `server.admin`"
        }
        "background_health_checks" | "health_check_interval" | "health_check_details" => {
            "health is seen from calls; failing providers are taken out by `routing.eject`"
        }
        _ => "has no counterpart",
    }
}

fn advice_on_router(name: &str) -> &'static str {
    match name {
        "context_window_fallbacks" => {
            "a prompt that is too long is the provider's refusal and passes unchanged; name the larger model in the client"
        }
        "content_policy_fallbacks" => "a provider's refusal passes unchanged",
        "retry_policy" | "model_group_retry_policy" | "allowed_fails_policy" => {
            "attempts are counted for all errors that may be tried again: see `routing.attempts`"
        }
        "retry_after" => "waits between attempts grow by themselves, and a provider's retry-after is kept",
        "stream_timeout" => "see `routing.timeouts.first_byte` and `idle`, which hold for streams too",
        "provider_budget_config" => "write budgets with `scope: { model: … }`",
        "enable_tag_filtering" => "calls are not routed by tags; give models of their own",
        "optional_pre_call_checks" => {
            "each call is checked against limits and budgets; it is not tied to a deployment by its prompt"
        }
        _ => "has no counterpart",
    }
}

fn advice_on_litellm(name: &str) -> &'static str {
    match name {
        "drop_params" => "parameters pass unchanged; nothing is dropped",
        "cache" | "cache_params" => "a cache of replies is not taken over; see docs/configuration.md for `cache:`",
        "context_window_fallbacks" | "content_policy_fallbacks" => advice_on_router(name),
        "default_team_settings"
        | "default_internal_user_params"
        | "upperbound_key_generate_params"
        | "max_internal_user_budget" => {
            "teams and users have no settings; write `budgets:` and `limits:` with `scope: { team: … }` or `{ user: \"*\" }`"
        }
        "turn_off_message_logging" | "redact_messages_in_exceptions" | "redact_user_api_key_info" => {
            "prompts and replies are in no log unless `calls.bodies` asks for it"
        }
        "forward_traceparent_to_llm_provider" => "trace context is passed on with `telemetry.otlp`",
        _ => "has no counterpart",
    }
}
