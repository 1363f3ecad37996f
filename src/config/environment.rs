//! The process environment with a `.env` below it, and the configuration that it makes up on its own.

use std::{collections::HashMap, io, path::Path};

use crate::config::{
    ConfigError, Problems,
    problems::{Place, Problem},
    sources,
};

/// A provider that one environment variable is enough for.
struct WellKnown {
    name: &'static str,
    kind: &'static str,
    key: &'static str,
    base_url: &'static str,
}

/// In the order in which the first one given becomes the default. Sources: each provider's page on OpenAI compatibility.
const WELL_KNOWN: [WellKnown; 9] = [
    openai("openai", "OPENAI_API_KEY", "${OPENAI_BASE_URL:-https://api.openai.com/v1}"),
    WellKnown {
        name: "anthropic",
        kind: "anthropic",
        key: "ANTHROPIC_API_KEY",
        base_url: "https://api.anthropic.com/v1",
    },
    openai("gemini", "GEMINI_API_KEY", "https://generativelanguage.googleapis.com/v1beta/openai"),
    openai("mistral", "MISTRAL_API_KEY", "https://api.mistral.ai/v1"),
    openai("groq", "GROQ_API_KEY", "https://api.groq.com/openai/v1"),
    openai("deepseek", "DEEPSEEK_API_KEY", "https://api.deepseek.com/v1"),
    openai("openrouter", "OPENROUTER_API_KEY", "https://openrouter.ai/api/v1"),
    openai("xai", "XAI_API_KEY", "https://api.x.ai/v1"),
    openai("together", "TOGETHER_API_KEY", "https://api.together.xyz/v1"),
];

const fn openai(name: &'static str, key: &'static str, base_url: &'static str) -> WellKnown {
    WellKnown { name, kind: "openai", key, base_url }
}

/// Environment variables; those of the process win over those of `.env`.
#[derive(Default)]
pub struct Environment {
    dotenv: HashMap<String, String>,
}

impl Environment {
    /// The environment of this process, and the file `dotenv` where there is one.
    ///
    /// # Errors
    /// When the file is there and cannot be read, or has a line that assigns nothing.
    pub fn of_process(dotenv: &Path) -> Result<Environment, ConfigError> {
        let text = match sources::read_text(dotenv) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Environment::default()),
            Err(reason) => return Err(ConfigError::Unreadable { path: dotenv.to_owned(), reason }),
        };
        let dotenv = sources::parse_dotenv(&text).map_err(|line| {
            Problems(vec![Problem {
                file: dotenv.display().to_string(),
                place: Place { line: line as u64, column: 1 },
                path: String::new(),
                message: "is no assignment; write `NAME=value`".to_owned(),
            }])
        })?;
        Ok(Environment { dotenv })
    }

    /// The value of a variable.
    #[must_use]
    pub fn variable(&self, name: &str) -> Option<String> {
        std::env::var(name).ok().or_else(|| self.dotenv.get(name).cloned())
    }

    pub(super) fn configuration(&self) -> Option<String> {
        configuration(&|name| self.variable(name))
    }
}

/// The configuration that the keys in `variables` make up: each key is a provider, the first one is the default, and nobody
/// is asked for a key, since the listener is on loopback. `None` when there is no key.
///
/// It names variables and never holds their values.
#[must_use]
pub fn configuration(variables: &dyn Fn(&str) -> Option<String>) -> Option<String> {
    let given = |name: &str| {
        let set = |name: &str| variables(name).is_some_and(|value| !value.trim().is_empty());
        set(name) || set(&format!("{name}_FILE"))
    };
    // A local server may be given by its address alone.
    let keyless = |provider: &WellKnown| provider.name == "openai" && given("OPENAI_BASE_URL");
    let mut providers = String::new();
    let mut default = None;
    for provider in WELL_KNOWN.iter().filter(|provider| given(provider.key) || keyless(provider)) {
        let WellKnown { name, kind, key, base_url } = provider;
        providers.push_str(&format!("  {name}:\n    kind: {kind}\n    base_url: {base_url}\n"));
        if given(key) {
            providers.push_str(&format!("    api_key: ${{{key}}}\n"));
        }
        default.get_or_insert(*name);
    }
    default.map(|name| format!("auth: none\ndefault_provider: {name}\nproviders:\n{providers}"))
}
