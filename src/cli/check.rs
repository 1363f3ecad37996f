//! `tollgate check [FILE]`: validates a configuration offline.

use std::{
    io::{self, Write},
    path::Path,
    process::ExitCode,
};

use super::log_runtime;
use crate::{
    config::{self, Loaded, Snapshot},
    gateway::tls::TlsAcceptor,
    upstream::client::Client,
};

/// Wrong use or wrong configuration.
const WRONG: u8 = 2;

/// Prints what is in the configuration, or all of its problems, each as `file:line:column: path: what, and the mend`.
///
/// Exit code 2 when there are problems. `file` defaults as for `tollgate serve`.
#[must_use]
pub fn run(file: Option<&Path>) -> ExitCode {
    match config::load(file) {
        Ok(loaded) => {
            let unusable = unusable(&loaded.snapshot);
            // Nobody reads what a closed pipe refuses; the exit code still holds.
            let _ = report(&loaded, &unusable);
            if unusable.is_empty() { ExitCode::SUCCESS } else { ExitCode::from(WRONG) }
        }
        Err(error) => {
            let _ = writeln!(io::stderr(), "{error}");
            ExitCode::from(WRONG)
        }
    }
}

/// What a start would find: certificates, keys and roots that are there and cannot be used.
fn unusable(snapshot: &Snapshot) -> Vec<String> {
    let why = |error: anyhow::Error| format!("{error:#}");
    let tls = snapshot.server.tls.as_ref().and_then(|tls| TlsAcceptor::new(tls).err());
    let mut unusable: Vec<String> = tls.into_iter().map(|error| format!("server.tls: {}", why(error.into()))).collect();
    let runtime = log_runtime();
    let _within = runtime.enter();
    match Client::new(snapshot.routing.connect_timeout) {
        Ok(client) => unusable.extend(snapshot.providers.values().filter_map(|provider| {
            let error = client.prepare(provider).err()?;
            Some(format!("providers.{}.ca: {}", provider.name, why(error.into())))
        })),
        Err(error) => unusable.push(why(error.into())),
    }
    unusable
}

fn report(loaded: &Loaded, unusable: &[String]) -> io::Result<()> {
    let mut stderr = io::stderr().lock();
    for warning in &loaded.warnings {
        writeln!(stderr, "warning: {warning}")?;
    }
    for missing in &loaded.snapshot.not_yet {
        writeln!(stderr, "warning: {missing}")?;
    }
    for named in loaded.snapshot.all_prompts() {
        for finding in named.lint(&loaded.snapshot) {
            writeln!(stderr, "warning: prompt {}: {}", named.label(), finding.what)?;
        }
    }
    if unusable.is_empty() {
        return writeln!(io::stdout(), "ok: {}", summary(loaded));
    }
    let file = loaded.origin.path.as_ref().map_or_else(String::new, |path| format!("{}: ", path.display()));
    unusable.iter().try_for_each(|problem| writeln!(stderr, "{file}{problem}"))
}

/// `2 providers, 1 model, …`: what there is, and nothing that there is not.
fn summary(loaded: &Loaded) -> String {
    let snapshot = &loaded.snapshot;
    let experiments = snapshot.models.values().map(|model| model.experiments.len()).sum();
    let counts = [
        (snapshot.providers.len(), "provider"),
        (snapshot.models.len(), "model"),
        (snapshot.prompts.len(), "prompt"),
        (experiments, "experiment"),
        (snapshot.config_keys.len(), "key"),
        (snapshot.budgets.len(), "budget"),
        (snapshot.limits.len(), "limit"),
    ];
    let parts: Vec<String> = counts
        .iter()
        .filter(|(count, _)| *count > 0)
        .map(|(count, noun)| format!("{count} {noun}{}", if *count == 1 { "" } else { "s" }))
        .collect();
    parts.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn certificates_and_roots_that_no_start_could_use_are_named() {
        let dir = tempfile::tempdir().expect("a directory");
        std::fs::write(dir.path().join("none.pem"), "no certificate").expect("writes");
        let text = "server: { tls: { cert: none.pem, key: none.pem } }\nauth: none\n\
                    providers: { a: { kind: openai, base_url: \"https://a.example/v1\", api_key: sk-a, ca: none.pem }, b: { kind: simulated } }";
        let loaded = config::parse_str(text, "t.yaml", &|_| None, dir.path()).expect("valid");
        let found = unusable(&loaded.snapshot);
        assert_eq!(found.len(), 2, "{found:?}");
        assert!(found[0].starts_with("server.tls: `") && found[0].contains("no certificate chain"), "{found:?}");
        assert!(found[1].starts_with("providers.a.ca: `") && found[1].contains("gives no roots"), "{found:?}");
    }

    #[test]
    fn the_summary_counts_what_there_is() {
        let text = "auth: none\nproviders: { a: { kind: simulated }, b: { kind: simulated } }\n\
                    models: { m: { versions: { v1: { target: a/x } } } }";
        let loaded = config::parse_str(text, "t.yaml", &|_| None, Path::new("")).expect("valid");
        assert_eq!(summary(&loaded), "2 providers, 1 model");
    }
}
