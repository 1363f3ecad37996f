//! `records` and `calls`: where finished calls are kept, what of them, and for how long.
//!
//! Messages never repeat a URL: it may hold a password.

use std::{str::FromStr, sync::Arc, time::Duration};

use super::{Check, providers::Providers};
use crate::{
    config::{
        file,
        forms::SecretText,
        snapshot::{BodiesKept, CallsKept, Records},
        tree::Path,
    },
    policy::redact::Redactor,
    record::UserIds,
};

/// Calls are kept so long unless said otherwise.
const RETENTION: Duration = Duration::from_hours(90 * 24);
const SPILL_BYTES_MAX: u64 = 256 << 20;
/// The share of calls whose bodies are kept where only some are.
const SAMPLE: f64 = 0.01;
const BODY_BYTES_MAX: u64 = 64 << 10;
/// A log is no archive; and what is captured is in memory until it is written.
const BODY_BYTES_LIMIT: u64 = 8 << 20;

impl Check<'_, '_, '_> {
    pub(super) fn records(&mut self, typed: Option<&SecretText>) -> Option<Records> {
        let at = Path::default().key("records");
        let Some(typed) = typed else { return Some(Records::Sqlite) };
        match typed.0.as_str() {
            "sqlite" => return Some(Records::Sqlite),
            "none" => return Some(Records::None),
            _ => {}
        }
        if !typed.0.starts_with("file:") && !is_postgres(&typed.0) {
            self.problem(&at, "is not a call log; write sqlite, postgres://… or none");
            return None;
        }
        let url = self.secret(&at, typed)?;
        match tokio_postgres::Config::from_str(url.expose()) {
            Ok(config) if is_postgres(url.expose()) && !config.get_hosts().is_empty() => Some(Records::Postgres(url)),
            _ => {
                self.problem(&at, "is no PostgreSQL URL; write postgres://user:password@host/database");
                None
            }
        }
    }

    pub(super) fn calls(&mut self, typed: &file::Calls, providers: &Providers) -> CallsKept {
        let at = Path::default().key("calls");
        CallsKept {
            retention: self.above_zero(&at.key("retention"), typed.retention, RETENTION),
            users: match typed.users {
                Some(file::UserIds::Hash) => UserIds::Hash,
                Some(file::UserIds::Plain) | None => UserIds::Plain,
            },
            spill_bytes_max: typed.spill.map_or(SPILL_BYTES_MAX, |size| size.0),
            bodies: self.bodies(&at, typed),
            body_bytes_max: self.kept_bytes_max(&at, typed),
            redactor: Arc::new(self.redactor(&at.key("redact"), typed, providers)),
        }
    }

    fn bodies(&mut self, at: &Path, typed: &file::Calls) -> BodiesKept {
        let share = typed.sample.map_or(SAMPLE, |share| share.0);
        if share > 1.0 {
            self.problem(&at.key("sample"), "must be at most 100%");
        }
        match typed.bodies {
            Some(file::BodiesKept::Metadata) => BodiesKept::Lengths,
            Some(file::BodiesKept::Sampled) => BodiesKept::Share(share),
            Some(file::BodiesKept::Full) => BodiesKept::Share(1.0),
            Some(file::BodiesKept::Off) | None => BodiesKept::None,
        }
    }

    fn kept_bytes_max(&mut self, at: &Path, typed: &file::Calls) -> usize {
        let bytes = typed.body_max.map_or(BODY_BYTES_MAX, |size| size.0);
        if bytes > BODY_BYTES_LIMIT {
            self.problem(&at.key("body_max"), "must be at most 8MiB");
        }
        usize::try_from(bytes.min(BODY_BYTES_LIMIT)).unwrap_or(usize::MAX)
    }

    /// Keys of providers are taken out whatever they look like: they never belong into a prompt.
    fn redactor(&mut self, at: &Path, typed: &file::Calls, providers: &Providers) -> Redactor {
        let secrets = providers.values().flat_map(|provider| &provider.api_keys);
        // Compiled patterns take memory and time: only where there is a text to take anything out of.
        let keeps_texts = matches!(typed.bodies, Some(file::BodiesKept::Sampled | file::BodiesKept::Full));
        let builtin = if keeps_texts { Redactor::builtin() } else { Redactor::default() };
        let mut redactor = builtin.with_secrets(secrets.map(|secret| secret.expose().to_owned()));
        if typed.redact.emails.is_some_and(|emails| emails.0) {
            redactor = redactor.with_emails();
        }
        for (index, pattern) in typed.redact.patterns.iter().enumerate() {
            if let Err(error) = redactor.add_pattern(pattern) {
                self.problem(&at.key("patterns").index(index), error.to_string());
            }
        }
        for (index, path) in typed.redact.paths.iter().enumerate() {
            if let Err(error) = redactor.add_path(path) {
                self.problem(&at.key("paths").index(index), error.to_string());
            }
        }
        redactor
    }
}

fn is_postgres(url: &str) -> bool {
    url.starts_with("postgres://") || url.starts_with("postgresql://")
}
