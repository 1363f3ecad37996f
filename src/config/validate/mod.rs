//! From what was typed to what is true: every rule that the types of [`super::file`] cannot say, and all mistakes at once.
//!
//! A part that is wrong is reported and left out, and the checking goes on; a [`Snapshot`] comes out only when nothing was
//! wrong. References to a part that is wrong itself are not reported a second time.

mod absent;
mod alerts;
mod budgets;
mod calls;
mod experiments;
mod keys;
mod models;
mod oidc;
mod prices;
pub(super) mod prompts;
mod providers;
mod routing;
mod server;
mod store;
mod telemetry;

use std::collections::BTreeMap;

use crate::{
    config::{
        file::File,
        forms::SecretText,
        problems::{Problem, Problems, suggestion},
        registered::InRegistry,
        secret::SecretString,
        snapshot::{OnDisconnect, ResolvedNames, Snapshot, Store, StreamUsage},
        sources::Sources,
        tree::{Document, Path},
    },
    policy::keys::KeyRing,
    registry::Trial,
};

/// What the checks share.
pub(super) struct Check<'d, 's, 'e> {
    document: &'d Document,
    sources: &'s mut Sources<'e>,
    problems: Problems,
    /// What is allowed but probably not meant.
    warnings: Vec<String>,
    not_yet: Vec<String>,
    /// What the registry says of experiments.
    trials: &'d BTreeMap<String, Trial>,
    /// Whether a secret stands in the configuration itself.
    inline_secret: bool,
}

/// What came out of a valid file.
pub(super) struct Checked {
    pub(super) snapshot: Snapshot,
    pub(super) warnings: Vec<String>,
    pub(super) inline_secret: bool,
}

/// Checks `file`, which was read from `document` with `problems` so far, where the registry says `trials` of experiments.
///
/// # Errors
/// All problems, in the order of the file.
pub(super) fn validate(
    file: File,
    document: &Document,
    sources: &mut Sources<'_>,
    problems: Problems,
    trials: &BTreeMap<String, Trial>,
) -> Result<Checked, Problems> {
    let (warnings, not_yet) = (Vec::new(), Vec::new());
    let mut check = Check { document, sources, problems, warnings, not_yet, trials, inline_secret: false };
    let snapshot = check.snapshot(file);
    match snapshot {
        Some(snapshot) if check.problems.is_empty() => {
            Ok(Checked { snapshot, warnings: check.warnings, inline_secret: check.inline_secret })
        }
        _ => Err(check.problems.sorted()),
    }
}

/// Only where the ledger's store is, whatever else is wrong.
///
/// # Errors
/// What is wrong with that.
pub(super) fn store_alone(file: &File, document: &Document, sources: &mut Sources<'_>) -> Result<Store, Problems> {
    let (warnings, not_yet) = (Vec::new(), Vec::new());
    let problems = Problems::default();
    let trials = &BTreeMap::new();
    let mut check = Check { document, sources, problems, warnings, not_yet, trials, inline_secret: false };
    check.store(file.store.as_ref()).ok_or_else(|| check.problems.sorted())
}

impl Check<'_, '_, '_> {
    /// `None` only where a problem was reported, or something is missing that may be.
    fn snapshot(&mut self, mut file: File) -> Option<Snapshot> {
        let prices = self.prices(file.prices.take());
        let file = &file;
        let providers = self.providers(file, &prices);
        let default_provider = self.default_provider(file, &providers);
        let prompts = self.prompts(&file.prompts);
        let mut models =
            self.models(file, &models::Parts { providers: &providers, prompts: &prompts, prices: &prices });
        let experiments = self.experiments(file, &prompts, &mut models);
        let key_pepper = self.key_pepper(file.key_pepper.as_ref());
        let keys = self.keys(file, key_pepper.as_ref());
        let unpriced = self.unpriced(file.unpriced.as_ref());
        let server = self.server(file);
        let budgets = self.budgets(file);
        let limits = self.limits(file);
        let routing = self.routing(&file.routing);
        let store = self.store(file.store.as_ref());
        let ledger = self.ledger(&file.ledger);
        let alerts = self.alerts(&file.alerts);
        let records = self.records(file.records.as_ref());
        let calls = self.calls(&file.calls, &providers);
        let telemetry = self.telemetry(&file.telemetry, &calls);
        self.name_what_is_not_here_yet(file);
        Some(Snapshot {
            hash: self.sources.hash(),
            pushed: None,
            registry: InRegistry::default(),
            server: server?,
            store: store?,
            records: records?,
            calls,
            data_dir: file.data_dir.as_deref().unwrap_or("data").into(),
            auth: keys::auth(file),
            keys: KeyRing::new(keys.clone(), key_pepper.as_ref().map(|pepper| pepper.expose().as_bytes())),
            config_keys: keys,
            key_pepper,
            providers: providers.into_iter().map(|(name, provider)| (name.into(), provider)).collect(),
            default_provider,
            experiments,
            models: models.into_iter().map(|(name, model)| (name.into(), model.into())).collect(),
            prompts: prompts.into_iter().map(|(name, prompt)| (name.into(), prompt)).collect(),
            budgets,
            limits,
            prices,
            unpriced: unpriced?,
            routing,
            on_disconnect: on_disconnect(file),
            stream_usage: stream_usage(file),
            ledger,
            alerts,
            telemetry,
            not_yet: std::mem::take(&mut self.not_yet),
            resolved: ResolvedNames::default(),
        })
    }

    // === what the checks share ===

    /// Reports a problem at `at`.
    fn problem(&mut self, at: &Path, message: impl Into<String>) {
        self.problems.push(self.document.problem(at, message));
    }

    /// Warns about `at`.
    fn warn(&mut self, at: &Path, message: impl Into<String>) {
        self.warnings.push(self.document.problem(at, message).to_string());
    }

    /// The value of `key` below `at`; reports it missing unless a mistake in it was reported already.
    fn required<T>(&mut self, at: &Path, key: &str, value: Option<T>, mend: &str) -> Option<T> {
        if value.is_none() && !self.document.has_struck(&at.key(key)) {
            let found = if self.document.has(&at.key(key)) { "is empty" } else { "is missing" };
            self.problem(&at.key(key), format!("{found}; {mend}"));
        }
        value
    }

    /// Reports that `name` is none of those in the map `section`.
    fn unknown(&mut self, at: &Path, kind: &str, name: &str, section: &Path) {
        let known = self.document.keys(section);
        let mend = match known.is_empty() {
            true => format!("; `{}` has none", section.last()),
            false => suggestion(name, known.iter().copied()),
        };
        self.problem(at, format!("no {kind} is named `{}`{mend}", shown(name)));
    }

    /// Whether `name` stands in the map `section`, be it right or wrong.
    fn is_written(&self, section: &str, name: &str) -> bool {
        self.document.has(&Path::default().key(section).key(name))
    }

    /// A secret from its text or its file. Never shows any of it.
    fn secret(&mut self, at: &Path, text: &SecretText) -> Option<SecretString> {
        let secret = match text.0.strip_prefix("file:") {
            Some(path) => match self.sources.secret_file(path) {
                Ok(secret) => secret,
                Err(_) if self.sources.tolerates(path) => return None,
                Err(error) => {
                    self.problem(at, format!("the file {} cannot be read: {error}", shown(path)));
                    return None;
                }
            },
            None => {
                self.inline_secret |= !self.document.is_filled(at);
                text.0.clone()
            }
        };
        if secret.trim().is_empty() {
            self.problem(at, "is empty; an empty secret protects nothing: set it, or take the line out");
            return None;
        }
        if secret.chars().any(|c| c.is_control() || c.is_whitespace()) {
            self.problem(at, "holds a blank or a control character, which no key has; is there a line break in it?");
            return None;
        }
        Some(SecretString::new(secret))
    }

    /// A name that goes into paths, metrics and headers.
    fn name(&mut self, at: &Path, kind: &str, name: &str) -> bool {
        let mend = match name {
            "" => "is empty",
            name if name.len() > NAME_BYTES_MAX => "is longer than 128 bytes",
            name if name.chars().any(|c| c.is_control() || c.is_whitespace()) => "holds a blank",
            name if name.contains(['/', '@', '*', ',', '=', '"']) => {
                "holds one of / @ * , = \", which have a meaning of their own"
            }
            _ => return true,
        };
        self.problem(at, format!("the {kind}'s name {mend}; letters, digits, `-`, `_`, `.` and `:` are fine"));
        false
    }

    /// The live version: the named one, or the only one there is.
    fn live<'f, V>(&mut self, at: &Path, live: Option<&'f str>, versions: &'f BTreeMap<String, V>) -> Option<&'f str> {
        let written = self.document.keys(&at.key("versions"));
        match live {
            Some(live) if versions.contains_key(live) => return Some(live),
            Some(live) if written.contains(&live) => {}
            Some(live) => self.unknown(&at.key("live"), "version", live, &at.key("versions")),
            None if written.is_empty() => self.problem(&at.key("versions"), "is missing; write at least one version"),
            None if written.len() == 1 => return versions.keys().next().map(String::as_str),
            None => {
                let mend = format!("name the version that serves: {}", written.join(", "));
                self.required(at, "live", None::<()>, &mend);
            }
        }
        None
    }

    fn push_problem(&mut self, problem: Problem) {
        self.problems.push(problem);
    }
}

/// Longer names are a mistake.
const NAME_BYTES_MAX: usize = 128;

/// What a user typed, fit for one line of a message: at most 80 characters, control characters escaped.
fn shown(text: &str) -> String {
    let cut = text.chars().count() > 80;
    let start: String = text.chars().take(80).flat_map(char::escape_debug).collect();
    if cut { format!("{start}…") } else { start }
}

fn on_disconnect(file: &File) -> OnDisconnect {
    match file.on_disconnect {
        Some(super::file::OnDisconnect::Drain) => OnDisconnect::Drain,
        Some(super::file::OnDisconnect::Cancel) | None => OnDisconnect::Cancel,
    }
}

fn stream_usage(file: &File) -> StreamUsage {
    match file.stream_usage {
        Some(super::file::StreamUsage::Leave) => StreamUsage::Leave,
        Some(super::file::StreamUsage::Ask) | None => StreamUsage::Ask,
    }
}
