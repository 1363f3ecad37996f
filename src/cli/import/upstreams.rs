//! Where the providers that other gateways know by name are reached over OpenAI's or Anthropic's API.

/// A provider by the name that another gateway gives it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Upstream {
    /// The name in the source.
    pub(super) name: &'static str,
    /// `openai` or `anthropic`: the dialect.
    pub(super) kind: &'static str,
    /// The base URL; `None` where the dialect's own provider is meant, or the source must say it.
    pub(super) base_url: Option<&'static str>,
    /// The variable in which LiteLLM and TensorZero look for the key; empty where servers usually ask for none.
    pub(super) key: &'static str,
    /// What the path of a base URL in the source lacks.
    pub(super) path: &'static str,
    /// Row group of the price catalog, where the base URL does not tell.
    pub(super) catalog: Option<&'static str>,
    /// Runs on one's own machines: its tokens cost nothing in the source.
    pub(super) own: bool,
}

const REMOTE: Upstream =
    Upstream { name: "", kind: "openai", base_url: None, key: "", path: "", catalog: None, own: false };
const OWN: Upstream = Upstream { own: true, ..REMOTE };

const fn remote(name: &'static str, base_url: &'static str, key: &'static str) -> Upstream {
    Upstream { name, base_url: Some(base_url), key, ..REMOTE }
}

/// Sources: each provider's page on OpenAI compatibility, and `get_llm_provider_logic.py` and `constants.py` of LiteLLM.
/// Azure: Microsoft's page on the v1 API, which needs no `api-version`.
const UPSTREAMS: [Upstream; 29] = [
    Upstream { name: "openai", key: "OPENAI_API_KEY", ..REMOTE },
    Upstream { name: "text-completion-openai", key: "OPENAI_API_KEY", ..REMOTE },
    Upstream { name: "custom_openai", key: "OPENAI_API_KEY", ..REMOTE },
    Upstream { name: "openai_like", ..REMOTE },
    Upstream { name: "anthropic", kind: "anthropic", key: "ANTHROPIC_API_KEY", path: "/v1", ..REMOTE },
    Upstream { name: "azure", key: "AZURE_API_KEY", path: "/openai/v1", catalog: Some("azure"), ..REMOTE },
    remote("gemini", "https://generativelanguage.googleapis.com/v1beta/openai", "GEMINI_API_KEY"),
    remote(
        "google_ai_studio_gemini",
        "https://generativelanguage.googleapis.com/v1beta/openai",
        "GOOGLE_AI_STUDIO_API_KEY",
    ),
    remote("groq", "https://api.groq.com/openai/v1", "GROQ_API_KEY"),
    remote("mistral", "https://api.mistral.ai/v1", "MISTRAL_API_KEY"),
    remote("codestral", "https://codestral.mistral.ai/v1", "CODESTRAL_API_KEY"),
    remote("deepseek", "https://api.deepseek.com/v1", "DEEPSEEK_API_KEY"),
    remote("xai", "https://api.x.ai/v1", "XAI_API_KEY"),
    remote("openrouter", "https://openrouter.ai/api/v1", "OPENROUTER_API_KEY"),
    remote("together_ai", "https://api.together.xyz/v1", "TOGETHERAI_API_KEY"),
    remote("together", "https://api.together.xyz/v1", "TOGETHER_API_KEY"),
    remote("perplexity", "https://api.perplexity.ai", "PERPLEXITYAI_API_KEY"),
    remote("fireworks_ai", "https://api.fireworks.ai/inference/v1", "FIREWORKS_API_KEY"),
    remote("fireworks", "https://api.fireworks.ai/inference/v1", "FIREWORKS_API_KEY"),
    remote("deepinfra", "https://api.deepinfra.com/v1/openai", "DEEPINFRA_API_KEY"),
    remote("cerebras", "https://api.cerebras.ai/v1", "CEREBRAS_API_KEY"),
    remote("sambanova", "https://api.sambanova.ai/v1", "SAMBANOVA_API_KEY"),
    remote("nvidia_nim", "https://integrate.api.nvidia.com/v1", "NVIDIA_NIM_API_KEY"),
    remote("hyperbolic", "https://api.hyperbolic.xyz/v1", "HYPERBOLIC_API_KEY"),
    // Ollama serves OpenAI's API below /v1.
    Upstream { name: "ollama", base_url: Some("http://localhost:11434/v1"), path: "/v1", ..OWN },
    Upstream { name: "vllm", ..OWN },
    Upstream { name: "sglang", ..OWN },
    Upstream { name: "lm_studio", ..OWN },
    Upstream { name: "llamafile", ..OWN },
];

/// The provider that `name` means in LiteLLM or TensorZero.
pub(super) fn find(name: &str) -> Option<&'static Upstream> {
    let name = match name {
        "ollama_chat" => "ollama",
        "hosted_vllm" => "vllm",
        "azure_text" => "azure",
        "litellm_proxy" => "openai_like",
        other => other,
    };
    UPSTREAMS.iter().find(|upstream| upstream.name == name)
}

impl Upstream {
    /// The base URL that is meant by `given`, the source's own.
    pub(super) fn base_url(&self, given: Option<&str>) -> Option<String> {
        let Some(given) = given else { return self.base_url.map(str::to_owned) };
        let given = given.trim_end_matches('/');
        let given = ["/chat/completions", "/messages"].iter().find_map(|end| given.strip_suffix(end)).unwrap_or(given);
        // Azure's older API has deployments below /openai.
        let given = given.split_once("/openai/").filter(|_| self.name == "azure").map_or(given, |(host, _)| host);
        Some(if given.ends_with(self.path) { given.to_owned() } else { format!("{given}{}", self.path) })
    }

    /// Whether this is OpenAI's or Anthropic's own API, or one that is reached without being told where.
    pub(super) fn is_reachable(&self) -> bool {
        self.base_url.is_some() || matches!(self.name, "openai" | "text-completion-openai" | "anthropic")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base_urls_get_the_path_that_they_lack() {
        let url = |name, given| find(name).unwrap().base_url(given).unwrap_or_default();
        for (name, given, expected) in [
            ("openai", None, ""),
            ("openai", Some("http://h:8000/v1/"), "http://h:8000/v1"),
            ("anthropic", Some("https://h"), "https://h/v1"),
            ("anthropic", Some("https://h/v1/messages"), "https://h/v1"),
            ("azure", Some("https://x.openai.azure.com/"), "https://x.openai.azure.com/openai/v1"),
            ("azure", Some("https://x.openai.azure.com/openai/deployments/d"), "https://x.openai.azure.com/openai/v1"),
            ("ollama_chat", Some("http://h:11434"), "http://h:11434/v1"),
            ("ollama", None, "http://localhost:11434/v1"),
            ("groq", None, "https://api.groq.com/openai/v1"),
        ] {
            assert_eq!(url(name, given), expected, "{name} {given:?}");
        }
    }
}
