//! Providers: where calls can go, with which keys.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use super::{Check, shown};
use crate::{
    config::{
        file::{self, Auth, CapField, File},
        secret::SecretString,
        snapshot::{Provider, ProviderKind, Simulated},
        tree::Path,
    },
    policy::pricing::Catalog,
};

/// Providers by name.
pub(super) type Providers = BTreeMap<String, Arc<Provider>>;

/// OpenAI's own API.
const OPENAI_URL: &str = "https://api.openai.com/v1";
/// Anthropic's own API.
const ANTHROPIC_URL: &str = "https://api.anthropic.com/v1";
/// Stands in for a simulated provider, which is never called over a network. Source: RFC 6761, section 6.4.
const SIMULATED_URL: &str = "http://simulated.invalid";

impl Check<'_, '_, '_> {
    pub(super) fn providers(&mut self, file: &File, prices: &Catalog) -> Providers {
        let section = Path::default().key("providers");
        let mend = "name at least one, such as `openai: { kind: openai, api_key: \"${OPENAI_API_KEY}\" }`";
        match self.document.keys(&section).is_empty() {
            false => {}
            true if is_shared(file) => self.warn(&section, format!("there is none until one is pushed; {mend}")),
            true => self.problem(&section, format!("is missing; {mend}")),
        }
        let mut providers = Providers::new();
        for (name, typed) in &file.providers {
            let at = section.key(name);
            let valid_name = self.name(&at, "provider", name);
            let provider = self.provider(&at, name, typed, file.auth, prices);
            if let (true, Some(provider)) = (valid_name, provider) {
                providers.insert(name.clone(), Arc::new(provider));
            }
        }
        providers
    }

    fn provider(
        &mut self,
        at: &Path,
        name: &str,
        typed: &file::Provider,
        auth: Option<Auth>,
        prices: &Catalog,
    ) -> Option<Provider> {
        let mend = "write `openai` (also for compatible servers), `anthropic` or `simulated`";
        let kind = self.required(at, "kind", typed.kind, mend)?;
        self.misplaced_settings(at, typed, kind);
        let base_url = self.base_url(at, typed, kind);
        let api_keys = self.api_keys(at, typed);
        self.key_is_due(at, typed, kind, auth);
        if let Some(ca) = &typed.ca {
            self.readable(&at.key("ca"), ca);
        }
        let kind = self.kind(at, typed, kind);
        let base_url = base_url?;
        let catalog = match &typed.catalog {
            Some(group) => Some(group.as_str()),
            None => prices.provider_of(&base_url.to_string()),
        };
        Some(Provider {
            name: name.into(),
            kind,
            api_keys,
            catalog: catalog.map(Into::into),
            organization_api: typed.organization_api.is_some_and(|on| on.0),
            cap_field: cap_field(typed, &base_url),
            ca: typed.ca.as_deref().map(|ca| self.sources.resolve(ca)),
            base_url,
        })
    }

    fn kind(&mut self, at: &Path, typed: &file::Provider, kind: file::ProviderKind) -> ProviderKind {
        match kind {
            file::ProviderKind::OpenAi => ProviderKind::OpenAi,
            file::ProviderKind::Anthropic => ProviderKind::Anthropic,
            file::ProviderKind::Simulated => ProviderKind::Simulated(self.simulated(at, typed)),
        }
    }

    fn simulated(&mut self, at: &Path, typed: &file::Provider) -> Simulated {
        let tokens_per_second = typed.tokens_per_second.unwrap_or(50.0);
        if !tokens_per_second.is_finite() || tokens_per_second <= 0.0 {
            self.problem(&at.key("tokens_per_second"), format!("must be above 0, got {tokens_per_second}"));
        }
        let error_rate = typed.error_rate.map_or(0.0, |share| share.0);
        if error_rate > 1.0 {
            self.problem(&at.key("error_rate"), "must be at most 100%");
        }
        let time_to_first_token = typed.time_to_first_token.map_or(Duration::from_millis(200), |delay| delay.0);
        Simulated { tokens_per_second, time_to_first_token, error_rate }
    }

    /// Settings that this kind does not have.
    fn misplaced_settings(&mut self, at: &Path, typed: &file::Provider, kind: file::ProviderKind) {
        let simulated = kind == file::ProviderKind::Simulated;
        let settings = [
            ("tokens_per_second", typed.tokens_per_second.is_some(), false),
            ("time_to_first_token", typed.time_to_first_token.is_some(), false),
            ("error_rate", typed.error_rate.is_some(), false),
            ("base_url", typed.base_url.is_some(), true),
            ("api_key", typed.api_key.is_some(), true),
            ("api_keys", typed.api_keys.is_some(), true),
            ("ca", typed.ca.is_some(), true),
        ];
        for (key, given, real_only) in settings {
            if given && real_only == simulated {
                let who = if simulated { "a simulated provider has none" } else { "only a simulated provider has it" };
                self.problem(&at.key(key), format!("{who}; take the line out"));
            }
        }
    }

    fn base_url(&mut self, at: &Path, typed: &file::Provider, kind: file::ProviderKind) -> Option<http::Uri> {
        let default = match kind {
            file::ProviderKind::OpenAi => OPENAI_URL,
            file::ProviderKind::Anthropic => ANTHROPIC_URL,
            file::ProviderKind::Simulated => SIMULATED_URL,
        };
        let typed_url = typed.base_url.as_deref().unwrap_or(default).trim();
        match parse_base_url(typed_url) {
            Ok(url) => Some(url),
            Err(message) => {
                self.problem(&at.key("base_url"), message);
                None
            }
        }
    }

    fn api_keys(&mut self, at: &Path, typed: &file::Provider) -> Vec<SecretString> {
        if typed.api_key.is_some() && typed.api_keys.is_some() {
            self.problem(&at.key("api_keys"), "stands beside `api_key`; write all keys here, or only one there");
        }
        let mut keys: Vec<SecretString> = Vec::new();
        if let Some(key) = &typed.api_key {
            keys.extend(self.secret(&at.key("api_key"), key));
        }
        for (i, key) in typed.api_keys.iter().flatten().enumerate() {
            let at = at.key("api_keys").index(i);
            match self.secret(&at, key) {
                Some(key) if keys.contains(&key) => self.problem(&at, "is the same key again; take it out"),
                key => keys.extend(key),
            }
        }
        keys
    }

    /// A provider's own API asks for a key; a key that came out empty was meant to be one.
    fn key_is_due(&mut self, at: &Path, typed: &file::Provider, kind: file::ProviderKind, auth: Option<Auth>) {
        if typed.api_key.is_some() || kind == file::ProviderKind::Simulated {
            return;
        }
        let key_at = at.key("api_key");
        let written = self.document.has(&key_at) && !self.document.has_struck(&key_at);
        if written {
            return self.problem(&key_at, "is empty; set it, or take the line out for a server that asks for no key");
        }
        if typed.api_keys.as_ref().is_some_and(Vec::is_empty) {
            return self
                .problem(&at.key("api_keys"), "names no key; take the line out for a server that asks for none");
        }
        let own_api = typed.base_url.is_none() && !self.document.has(&at.key("base_url"));
        let passthrough = matches!(auth, Some(Auth::Passthrough));
        if own_api && !passthrough && !self.document.has(&key_at) && !self.document.has(&at.key("api_keys")) {
            let name = if kind == file::ProviderKind::Anthropic { "ANTHROPIC_API_KEY" } else { "OPENAI_API_KEY" };
            self.problem(&key_at, format!("is missing; write `api_key: \"${{{name}}}\"`"));
        }
    }

    pub(super) fn default_provider(&mut self, file: &File, providers: &Providers) -> Option<Arc<Provider>> {
        let name = file.default_provider.as_deref()?;
        let at = Path::default().key("default_provider");
        if !self.is_written("providers", name) {
            self.unknown(&at, "provider", name, &Path::default().key("providers"));
        }
        providers.get(name).cloned()
    }

    /// Reports a file that cannot be opened.
    pub(super) fn readable(&mut self, at: &Path, path: &str) {
        if let Err(error) = std::fs::File::open(self.sources.resolve(path))
            && !self.sources.tolerates(path)
        {
            self.problem(at, format!("the file {} cannot be read: {error}", shown(path)));
        }
    }
}

/// Whether providers may come from elsewhere: `tollgate config push`.
fn is_shared(file: &File) -> bool {
    file.store.as_ref().is_some_and(|store| store.0 != super::store::EMBEDDED)
}

/// An absolute http or https URL that a path can be appended to. Messages never repeat it: it may hold a password.
fn parse_base_url(text: &str) -> Result<http::Uri, &'static str> {
    const FORM: &str = "is not an absolute URL; write it as `https://host/v1` or `http://127.0.0.1:8000/v1`";
    if text.contains('?') || text.contains('#') {
        return Err("holds a query or a fragment, which a base URL cannot have; write only `https://host/path`");
    }
    let url: http::Uri = text.trim_end_matches('/').parse().map_err(|_| FORM)?;
    if !matches!(url.scheme_str(), Some("http" | "https")) {
        return Err(FORM);
    }
    let authority = url.authority().ok_or(FORM)?;
    if authority.as_str().contains('@') {
        return Err("holds a user name or password; give the key as `api_key`");
    }
    let port = authority.as_str().rsplit_once(':').map(|(_, port)| port).filter(|port| !port.ends_with(']'));
    if authority.host().is_empty() || port.is_some_and(|port| port.parse::<u16>().is_err()) {
        return Err(FORM);
    }
    Ok(url)
}

/// OpenAI's reasoning models refuse `max_tokens`; most compatible servers know nothing else.
fn cap_field(typed: &file::Provider, base_url: &http::Uri) -> &'static str {
    match typed.cap_field {
        Some(CapField::MaxTokens) => "max_tokens",
        Some(CapField::MaxCompletionTokens) => "max_completion_tokens",
        None if base_url.host().is_some_and(|host| host.ends_with(".openai.com")) => "max_completion_tokens",
        None => "max_tokens",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_base_url_is_absolute_and_holds_no_secret() {
        for url in ["https://api.openai.com/v1", "http://127.0.0.1:8000/v1/", "http://[::1]:8000", "http://[::1]"] {
            assert!(parse_base_url(url).is_ok(), "{url}");
        }
        for url in [
            "",
            "api.openai.com",
            "ftp://x/",
            "http://",
            "http://u:p@h/",
            "http://h/?k=v",
            "http://h/#x",
            "http://h:99999/",
        ] {
            assert!(parse_base_url(url).is_err(), "{url}");
        }
        assert_eq!(parse_base_url("http://h/v1//").expect("valid").to_string(), "http://h/v1");
    }
}
