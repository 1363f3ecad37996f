//! Attempts, time-outs, ejection; timings of the ledger.

use std::time::Duration;

use super::Check;
use crate::config::{
    file,
    forms::{DurationText, WordOr},
    snapshot::{Eject, LedgerSettings, Routing},
    tree::Path,
};

impl Check<'_, '_, '_> {
    pub(super) fn routing(&mut self, typed: &file::Routing) -> Routing {
        let at = Path::default().key("routing");
        let attempts = typed.attempts.unwrap_or(3);
        if !(1..=20).contains(&attempts) {
            self.problem(&at.key("attempts"), format!("must be from 1 (no retry) to 20, got {attempts}"));
        }
        let retry_budget = typed.retry_budget.map_or(0.2, |share| share.0);
        if retry_budget > 1.0 {
            self.problem(&at.key("retry_budget"), "must be at most 100%");
        }
        let eject = self.eject(&at.key("eject"), typed.eject.as_ref());
        let at = at.key("timeouts");
        let timeouts = &typed.timeouts;
        Routing {
            attempts,
            retry_budget,
            eject,
            connect_timeout: self.above_zero(&at.key("connect"), timeouts.connect, Duration::from_secs(3)),
            first_byte_timeout: self.above_zero(&at.key("first_byte"), timeouts.first_byte, Duration::from_secs(120)),
            idle_timeout: self.above_zero(&at.key("idle"), timeouts.idle, Duration::from_secs(60)),
            total_timeout: self.above_zero(&at.key("total"), timeouts.total, Duration::from_secs(15 * 60)),
        }
    }

    fn eject(&mut self, at: &Path, typed: Option<&WordOr<crate::config::forms::Switch, file::Eject>>) -> Option<Eject> {
        let settings = match typed {
            Some(WordOr::Word(switch)) if !switch.0 => return None,
            Some(WordOr::Map(settings)) => settings,
            Some(WordOr::Word(_)) | None => &file::Eject::default(),
        };
        let after = settings.after.unwrap_or(5);
        if after == 0 {
            self.problem(&at.key("after"), "must be at least 1; write `eject: off` to never take a provider out");
        }
        Some(Eject { after, duration: self.above_zero(&at.key("for"), settings.duration, Duration::from_secs(10)) })
    }

    pub(super) fn ledger(&mut self, typed: &file::Ledger) -> LedgerSettings {
        let at = Path::default().key("ledger");
        LedgerSettings {
            sync: self.above_zero(&at.key("sync"), typed.sync, Duration::from_secs(1)),
            budget_wait: typed.budget_wait.map_or(Duration::from_millis(250), |wait| wait.0),
            wait_replicas: typed.wait_replicas.unwrap_or_default(),
        }
    }

    /// A duration of 0 would let nothing through.
    pub(super) fn above_zero(&mut self, at: &Path, typed: Option<DurationText>, default: Duration) -> Duration {
        let duration = typed.map_or(default, |duration| duration.0);
        if duration.is_zero() {
            self.problem(at, "must be above 0");
        }
        duration
    }
}
