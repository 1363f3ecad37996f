//! Since when one server has held what the store holds: how an account that was lost is told from one that is new.
//!
//! An account that is missing may be a new one, one that was lost with everything else (`FLUSHALL`, a restart without persistence,
//! a wrong server), or one that a promoted replica had not heard of yet. A mark beside the accounts says which server has held them
//! since when; it is lost with them, and renewed when another server answers. Accounts that are made while it is young listen to
//! their holders before anything is granted from them.

use std::time::Duration;

use redis::{Pipeline, RedisResult};
use tokio::time::Instant;

use super::connect::Connection;

/// Reads the mark, and sets it where there is none or another server's.
const MARK: &str = include_str!("mark.lua");

/// What is known of the store's mark.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Birth {
    mark: String,
    /// From then on a missing account is a new one.
    of_age_at: Instant,
}

/// What the mark says now, compared with what was known of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Change {
    /// The same server holds the same accounts.
    None,
    /// A server that was restarted, or a replica that was promoted.
    Server,
    /// Everything was lost.
    Lost,
}

impl Birth {
    /// Whether accounts that are missing may have been lost.
    pub(super) fn is_young(&self) -> bool {
        Instant::now() < self.of_age_at
    }

    /// Until then they may.
    pub(super) fn of_age_at(&self) -> Instant {
        self.of_age_at
    }

    /// Reads the mark at `key`, and sets it where there is none or another server's.
    pub(super) async fn read(connection: &mut Connection, key: &str, learn_ms: u64) -> RedisResult<Birth> {
        let mut pipeline = Pipeline::with_capacity(1);
        pipeline.cmd("EVAL").arg(MARK).arg(1).arg(key);
        let answer = connection.send(&pipeline, key).await?.pop().unwrap_or_default();
        let (mark, now_ms): (String, u64) = redis::from_redis_value(answer.extract_error()?)?;
        // A mark from the future, after the server's clock was set back, counts as new.
        let age_ms = field(&mark, 0).and_then(|since| since.parse().ok()).map_or(0, |ms| now_ms.saturating_sub(ms));
        let of_age_at = Instant::now() + Duration::from_millis(learn_ms.saturating_sub(age_ms));
        Ok(Birth { mark, of_age_at })
    }

    /// What happened to the store since `earlier`.
    pub(super) fn since(&self, earlier: &Birth) -> Change {
        match (self.mark == earlier.mark, field(&self.mark, 2) == field(&earlier.mark, 2)) {
            (true, _) => Change::None,
            (false, true) => Change::Server,
            (false, false) => Change::Lost,
        }
    }
}

fn field(mark: &str, at: usize) -> Option<&str> {
    mark.split(' ').nth(at)
}
