//! Names of attributes and metrics. Those of OpenTelemetry are in development and change: see [`Semconv`].
//!
//! <https://github.com/open-telemetry/semantic-conventions/tree/v1.41.0/docs/gen-ai>

use crate::policy::traces::Semconv;

pub(super) const SERVICE_NAME: &str = "service.name";
pub(super) const SERVICE_VERSION: &str = "service.version";
pub(super) const SERVICE_INSTANCE: &str = "service.instance.id";
pub(super) const STATUS_CODE: &str = "http.response.status_code";
pub(super) const ERROR_TYPE: &str = "error.type";

pub(super) const OPERATION: &str = "gen_ai.operation.name";
pub(super) const REQUEST_MODEL: &str = "gen_ai.request.model";
pub(super) const RESPONSE_MODEL: &str = "gen_ai.response.model";
pub(super) const INPUT_TOKENS: &str = "gen_ai.usage.input_tokens";
pub(super) const OUTPUT_TOKENS: &str = "gen_ai.usage.output_tokens";
pub(super) const TOKEN_TYPE: &str = "gen_ai.token.type";
pub(super) const TOKEN_USAGE: &str = "gen_ai.client.token.usage";
pub(super) const OPERATION_DURATION: &str = "gen_ai.client.operation.duration";

// Prompts and replies: attributes from 1.37 on, the bodies of events before.
pub(super) const SYSTEM_INSTRUCTIONS: &str = "gen_ai.system_instructions";
pub(super) const INPUT_MESSAGES: &str = "gen_ai.input.messages";
pub(super) const OUTPUT_MESSAGES: &str = "gen_ai.output.messages";
pub(super) const CHOICE_EVENT: &str = "gen_ai.choice";

// From 1.41 on.
pub(super) const CACHE_READ_TOKENS: &str = "gen_ai.usage.cache_read.input_tokens";
pub(super) const CACHE_CREATION_TOKENS: &str = "gen_ai.usage.cache_creation.input_tokens";
pub(super) const REASONING_TOKENS: &str = "gen_ai.usage.reasoning.output_tokens";
pub(super) const REQUEST_STREAM: &str = "gen_ai.request.stream";
pub(super) const TIME_TO_FIRST_CHUNK: &str = "gen_ai.response.time_to_first_chunk";

// Our own.
pub(super) const CALL: &str = "tollgate.call.id";
pub(super) const KEY: &str = "tollgate.key";
pub(super) const TEAM: &str = "tollgate.team";
pub(super) const VERSION: &str = "tollgate.model.version";
pub(super) const PROMPT: &str = "tollgate.prompt";
pub(super) const EXPERIMENT: &str = "tollgate.experiment.";
pub(super) const OUTCOME: &str = "tollgate.outcome";
pub(super) const REFUSAL: &str = "tollgate.refusal";
pub(super) const USAGE_SOURCE: &str = "tollgate.usage.source";
pub(super) const COST_USD: &str = "tollgate.cost.usd";
pub(super) const OVERHEAD: &str = "tollgate.overhead.seconds";
pub(super) const ATTEMPT: &str = "tollgate.attempt";
pub(super) const COST_METRIC: &str = "tollgate.cost";

/// The schema that the names are of.
pub(super) fn schema_url(semconv: Semconv) -> String {
    format!("https://opentelemetry.io/schemas/{}.0", semconv.label())
}

/// Who makes the model.
pub(super) fn provider_key(semconv: Semconv) -> &'static str {
    if semconv < Semconv::V1_37 { "gen_ai.system" } else { "gen_ai.provider.name" }
}

/// The event of 1.36 for a message that was sent.
pub(super) fn message_event(role: &str) -> &'static str {
    match role {
        "system" | "developer" => "gen_ai.system.message",
        "assistant" => "gen_ai.assistant.message",
        "tool" => "gen_ai.tool.message",
        _ => "gen_ai.user.message",
    }
}

/// The conventions' word for a provider, where its name in the configuration is one that they know under another.
pub(super) fn provider_name(name: &str) -> &str {
    match name {
        "gemini" => "gcp.gemini",
        "mistral" => "mistral_ai",
        "xai" => "x_ai",
        other => other,
    }
}

/// The conventions' word for what an endpoint does; its own label where they have none.
pub(super) fn operation(endpoint: &'static str) -> &'static str {
    match endpoint {
        "chat_completions" | "responses" | "messages" => "chat",
        "completions" => "text_completion",
        other => other,
    }
}
