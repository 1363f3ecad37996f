//! `tollgate import`: what becomes of other gateways' configurations, and what is said of the rest.

use std::path::{Path, PathBuf};

use crate::support::Gateway;

/// A source, texts of the result in their order, and texts of what is said to be lost.
type Case = (&'static str, &'static [&'static str], &'static [&'static str]);

const LITELLM: [Case; 10] = [
    (
        "quick-start.yaml",
        &[
            "listen: 0.0.0.0:4000",
            "admin_token: \"${LITELLM_MASTER_KEY}\"",
            "openai: { kind: openai, api_key: \"${OPENAI_API_KEY}\" }",
            "anthropic: { kind: anthropic, api_key: \"${ANTHROPIC_API_KEY}\" }",
            "- { name: master, secret: \"${LITELLM_MASTER_KEY}\" }",
            "target: anthropic/claude-haiku-4-5, parameters: { temperature: 0.2, max_tokens: 1024 }",
        ],
        &["model_list[1].litellm_params.api_key: the key stands in the source", "general_settings.master_key"],
    ),
    (
        "load-balancing.yaml",
        &[
            "base_url: https://sweden.openai.azure.com/openai/v1, api_key: \"${AZURE_SWEDEN_KEY}\", catalog: azure",
            "azure/gpt-41-sweden: { input: 2 USD/1M",
            "azure-2/gpt-41-france: { input: 2 USD/1M",
            "- { name: master, secret: \"${LITELLM_MASTER_KEY}\" }",
            "attempts: 3",
            "after: 4",
            "for: 30s",
            "first_byte: 30s",
            "{ use: azure/gpt-41-sweden, weight: 900 }",
            "{ use: openai/gpt-4.1, weight: 100 }",
            "scope: { model: gpt-4.1 }, requests: 1300/min, tokens: 130000/min",
        ],
        &["router_settings.routing_strategy: `usage-based-routing-v2`", "router_settings.redis_*"],
    ),
    (
        "fallbacks.yaml",
        &[
            "auth: none",
            "attempts: 4",
            "after: 1",
            "target: groq/llama-3.1-8b-instant, fallbacks: [ openai/gpt-4o-mini, openai/gpt-4o, anthropic/claude-haiku-4-5 ]",
            "target: openai/gpt-4o, fallbacks: [ anthropic/claude-haiku-4-5 ]",
            "gpt-4:",
            "hidden:",
        ],
        &["litellm_settings.context_window_fallbacks"],
    ),
    (
        "wildcards.yaml",
        &[
            "openai:",
            "default_provider: openai",
            "anthropic:",
            "my-groq: { kind: openai, base_url: https://api.groq.com/openai/v1",
            "gemini:",
        ],
        &["model_list[3].litellm_params.model: `bedrock/*`", "`gemini-*` is callable as gemini/MODEL"],
    ),
    (
        "self-hosted.yaml",
        &[
            "ollama: { kind: openai, base_url: http://ollama:11434/v1 }",
            "base_url: \"${VLLM_BASE}\"",
            "openai: { kind: openai, base_url: http://gpu-2:8000/v1, api_key: \"${GPU_2_API_KEY}\" }",
            "openai-2: { kind: openai, base_url: http://tei:8080/v1 }",
            "ollama/llama3.2: { input: 0 USD/1M, output: 0 USD/1M }",
            "openai/Qwen/Qwen3-8B: { input: 0.1 USD/1M, output: 0.25 USD/1M }",
        ],
        &[
            "model_list[3].litellm_params.api_key",
            "model_list[3]: the catalog has no price of openai-2/bge-m3",
            "litellm_settings.drop_params",
        ],
    ),
    (
        "spend.yaml",
        &[
            "limits: { body: 8MiB }",
            "openai/gpt-4o-mini: { input: 0.12 USD/1M, output: 0.48 USD/1M }",
            "- { name: each-key, scope: { key: \"*\" }, concurrent: 100 }",
            "- { name: all-calls, concurrent: 1000 }",
            "concurrent: 25",
            "webhook: \"${SLACK_WEBHOOK_URL}\", format: slack",
            "- { name: proxy, limit: 100.5 USD, per: month }",
            "otlp:",
            "{ use: openai/gpt-4o-mini, weight: 900 }, { use: mistral/mistral-small-latest, weight: 100 }",
        ],
        &[
            "litellm_settings.success_callback: `langfuse`",
            "litellm_settings.cache",
            "general_settings.database_url",
            "environment_variables",
        ],
    ),
    (
        "clouds.yaml",
        &[
            "gemini: { kind: openai, base_url: https://generativelanguage.googleapis.com/v1beta/openai",
            "target: openrouter/deepseek/deepseek-chat",
            "https://api.x.ai/v1, api_key: \"${XAI_API_KEY}\"",
        ],
        &[
            "`bedrock/anthropic.claude-haiku-4-5-20251001-v1:0`: AWS signs",
            "`vertex_ai/gemini-2.5-flash`",
            "model_list[3].litellm_params.extra_headers",
            "model_list[4].litellm_params.timeout",
        ],
    ),
    (
        "guardrails.yaml",
        &["target: openai/gpt-4o-mini"],
        &[
            "guardrails:",
            "mcp_servers:",
            "litellm_params.tags",
            "`latency-based-routing`",
            "router_settings.retry_policy",
            "default_team_settings",
        ],
    ),
    (
        "names.yaml",
        &[
            "api_key: \"${OPENAI_API_KEY}\"",
            "{ use: openai/fake, weight: 1 }, { use: openai/fake-2, weight: 1 }",
            "\"stop$here\": ",
            "stop: [ \"$$END\" ]",
        ],
        &[
            "model_list[3].litellm_params.model: names no model",
            "model_list[4]",
            "model_list[5]: has no model_name",
            "model_list[6]: has no litellm_params",
            "parameters differ",
            "include",
            "store_model_in_db",
        ],
    ),
    (
        "everything.yaml",
        &[
            "eject: \"off\"",
            "{ use: openai/gpt-4o, weight: 1000 }, { use: together_ai/meta-llama/Llama-3.3-70B-Instruct-Turbo, weight: 500 }",
            "fallbacks: [ mistral/mistral-large-latest ]",
            "response_format: { type: json_object }",
        ],
        &[
            "`12h` became a calendar month",
            "`unknown`, the fallback of `chat`",
            "access_groups",
            "parameters differ",
            "rpm and tpm limit nothing",
            "general_settings.custom_auth",
        ],
    ),
];

const TENSORZERO: [Case; 3] = [
    (
        "example.toml",
        &[
            "listen: 127.0.0.1:3000",
            "target: openai/gpt-4o-mini, fallbacks: [ azure/gpt-4o-mini ]",
            "parameters: { temperature: 0.3 }, prompt: draft@plain",
            "parameters: { stop: [ END ] }, prompt: draft@warm",
            "plain: { weight: 0.9, version: plain }",
            "file: functions/draft/plain.minijinja, variables: { lines: { type: integer } }",
        ],
        &["metrics: clients send feedback", "tools: tools are sent by the client"],
    ),
    (
        "static.toml",
        &[
            "listen: 0.0.0.0:3000",
            "live: gpt_5_mini",
            "claude_haiku_4_5: { weight: 0.1, version: claude_haiku_4_5 }",
            "extract: ",
        ],
        &[
            "gateway.auth",
            "missing.minijinja cannot be read",
            "templates: only the system template",
            "fallback_variants",
            "json_mode",
            "functions.extract.output_schema",
        ],
    ),
    (
        "kinds.toml",
        &[
            "vllm: { kind: openai, base_url: http://127.0.0.1:8000/v1 }",
            "dummy: { kind: simulated }",
            "api_key: \"${EMBEDDING_KEY}\"",
            "function-gemini:",
        ],
        &[
            "`aws_bedrock` is not supported",
            "`dynamic::gemini_key`",
            "`experimental_best_of_n_sampling` makes several calls",
            "the model `bedrock` was not carried over",
            "rate_limiting",
        ],
    ),
];

fn source(gateway: &str, name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/import").join(gateway).join(name)
}

/// Standard output, standard error and the code of `tollgate import GATEWAY NAME MORE`.
fn import(gateway: &str, name: &str, more: &[&str]) -> (String, String, Option<i32>) {
    let setup = Gateway::yaml("");
    let source = source(gateway, name);
    let arguments = [&["import", gateway, source.to_str().unwrap()], more].concat();
    let output = setup.command(&arguments).output().unwrap();
    let text = |bytes| String::from_utf8(bytes).expect("UTF-8");
    (text(output.stdout), text(output.stderr), output.status.code())
}

/// The words of a YAML text, however they are laid out.
fn words(text: &str) -> String {
    let bare: String = text.chars().filter(|c| !"{},".contains(*c)).collect();
    bare.split_whitespace().filter(|word| *word != "-").collect::<Vec<_>>().join(" ")
}

fn check_cases(gateway: &str, cases: &[Case]) {
    for (name, kept, lost) in cases {
        let (result, said, code) = import(gateway, name, &[]);
        assert_eq!(code, Some(0), "{name}: {said}");
        for text in *kept {
            assert!(words(&result).contains(&words(text)), "{name}: no `{text}` in\n{result}");
        }
        for text in *lost {
            assert!(said.contains(text), "{name}: `{text}` is not said:\n{said}");
        }
        // What is said is in the file too, for whoever reads that alone; secrets are in neither.
        for line in said.lines() {
            let loss = line.strip_prefix("not carried over: ").expect("nothing else is said");
            assert!(result.contains(&format!("# - {loss}")), "{name}: {loss}");
        }
        for secret in ["sk-ant-in-the-open", "sk-1234", "fake-key", "must-not-be-printed"] {
            assert!(!result.contains(secret) && !said.contains(secret), "{name} shows {secret}");
        }
    }
}

#[test]
fn litellms_configurations_become_tollgates() {
    check_cases("litellm", &LITELLM);
}

#[test]
fn tensorzeros_configurations_become_tollgates() {
    check_cases("tensorzero", &TENSORZERO);
}

#[test]
fn an_imported_file_passes_the_check() {
    let setup =
        Gateway::yaml("").env("OPENAI_API_KEY", "k").env("ANTHROPIC_API_KEY", "k").env("LITELLM_MASTER_KEY", "m");
    let source = source("litellm", "quick-start.yaml");
    let output = setup.config_path().with_file_name("imported.yaml");
    let files = [source.to_str().unwrap(), output.to_str().unwrap()];

    let imported = setup.command(&["import", "litellm", files[0], "-o", files[1], "--strict"]).output().unwrap();
    let checked = setup.command(&["check", files[1]]).output().unwrap();

    assert_eq!(imported.status.code(), Some(1), "strict, and a key in the open is not carried over");
    let said = String::from_utf8_lossy(&checked.stdout).into_owned();
    assert_eq!(said, "ok: 2 providers, 2 models, 1 key\n", "{}", String::from_utf8_lossy(&checked.stderr));
}

#[test]
fn what_is_no_configuration_is_refused() {
    for (gateway, name, reason) in [
        ("litellm", "../tensorzero/example.toml", "not YAML"),
        ("tensorzero", "../litellm/spend.yaml", "not TOML"),
        ("litellm", "missing.yaml", "cannot be read"),
    ] {
        let (result, said, code) = import(gateway, name, &[]);
        assert_eq!((code, result.as_str()), (Some(2), ""), "{said}");
        assert!(said.contains(reason), "{said}");
    }
}
