//! `tollgate check [FILE]`: validates a configuration offline.

use std::{
    io::{self, Write},
    path::Path,
    process::ExitCode,
};

use crate::config::{self, Loaded};

/// Wrong use or wrong configuration.
const WRONG: u8 = 2;

/// Prints what is in the configuration, or all of its problems, each as `file:line:column: path: what, and the mend`.
///
/// Exit code 2 when there are problems. `file` defaults as for `tollgate serve`.
#[must_use]
pub fn run(file: Option<&Path>) -> ExitCode {
    match config::load(file) {
        Ok(loaded) => {
            // Nobody reads what a closed pipe refuses; the exit code still holds.
            let _ = report(&loaded);
            ExitCode::SUCCESS
        }
        Err(error) => {
            let _ = writeln!(io::stderr(), "{error}");
            ExitCode::from(WRONG)
        }
    }
}

fn report(loaded: &Loaded) -> io::Result<()> {
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
    writeln!(io::stdout(), "ok: {}", summary(loaded))
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
    fn the_summary_counts_what_there_is() {
        let text = "auth: none\nproviders: { a: { kind: simulated }, b: { kind: simulated } }\n\
                    models: { m: { versions: { v1: { target: a/x } } } }";
        let loaded = config::parse_str(text, "t.yaml", &|_| None, Path::new("")).expect("valid");
        assert_eq!(summary(&loaded), "2 providers, 1 model");
    }
}
