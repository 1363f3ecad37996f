//! `records` and `calls`: where finished calls are kept, what of them, and for how long.
//!
//! Messages never repeat a URL: it may hold a password.

use std::{str::FromStr, time::Duration};

use super::Check;
use crate::{
    config::{
        file,
        forms::SecretText,
        snapshot::{CallsKept, Records},
        tree::Path,
    },
    record::UserIds,
};

/// Calls are kept so long unless said otherwise.
const RETENTION: Duration = Duration::from_hours(90 * 24);
const SPILL_BYTES_MAX: u64 = 256 << 20;

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

    pub(super) fn calls(&mut self, typed: &file::Calls) -> CallsKept {
        let at = Path::default().key("calls");
        CallsKept {
            retention: self.above_zero(&at.key("retention"), typed.retention, RETENTION),
            users: match typed.users {
                Some(file::UserIds::Hash) => UserIds::Hash,
                Some(file::UserIds::Plain) | None => UserIds::Plain,
            },
            spill_bytes_max: typed.spill.map_or(SPILL_BYTES_MAX, |size| size.0),
        }
    }
}

fn is_postgres(url: &str) -> bool {
    url.starts_with("postgres://") || url.starts_with("postgresql://")
}
