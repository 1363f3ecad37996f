//! Tells calls of coding agents, whose prompts are part of how they work.
//!
//! By what they say of themselves, which anybody can say: it decides who takes part in an experiment, and nothing else.
//!
//! - Claude Code: `user-agent: claude-cli/1.0.118 (external, cli)`, and `claude-code-20250219` among its `anthropic-beta`.
//! - Codex: `originator: codex_cli_rs` (`codex_exec`, `codex_vscode`, …), which also begins its `user-agent`
//!   (`get_codex_user_agent` in the sources of `openai/codex`).

use http::{HeaderMap, HeaderName, header};

/// How their `user-agent` begins.
const USER_AGENTS: [&str; 2] = ["claude-cli/", "codex_"];
const ORIGINATOR: HeaderName = HeaderName::from_static("originator");
const ANTHROPIC_BETA: HeaderName = HeaderName::from_static("anthropic-beta");

/// Whether a coding agent makes the call.
#[must_use]
pub fn is_coding_agent(headers: &HeaderMap) -> bool {
    let said = |name: HeaderName| headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let beta = || headers.get_all(ANTHROPIC_BETA).iter().filter_map(|value| value.to_str().ok());
    let user_agent = said(header::USER_AGENT);
    USER_AGENTS.iter().any(|agent| user_agent.starts_with(agent))
        || said(ORIGINATOR).starts_with("codex_")
        || beta().flat_map(|betas| betas.split(',')).any(|beta| beta.trim().starts_with("claude-code-"))
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    #[test]
    fn coding_agents_are_told_by_what_they_say_of_themselves() {
        for (name, value, is_agent) in [
            ("user-agent", "claude-cli/1.0.118 (external, cli)", true),
            ("user-agent", "codex_cli_rs/0.38.0 (Ubuntu 24.04.2 LTS; x86_64) WindowsTerminal", true),
            ("user-agent", "codex_exec/0.50.0 (Mac OS 15.6.1; arm64) unknown", true),
            ("originator", "codex_vscode", true),
            ("anthropic-beta", "oauth-2025-04-20, claude-code-20250219", true),
            ("anthropic-beta", "prompt-caching-2024-07-31", false),
            ("user-agent", "OpenAI/Python 1.99.0", false),
            ("user-agent", "my-claude-cli/1.0", false),
        ] {
            let headers = HeaderMap::from_iter([(name.parse().unwrap(), HeaderValue::from_static(value))]);
            assert_eq!(is_coding_agent(&headers), is_agent, "{name}: {value}");
        }
        assert!(!is_coding_agent(&HeaderMap::new()));
    }
}
