//! Since when a store has held what it holds: how one that was emptied is told from one that is just used for the first time.
//!
//! An account that is missing may be a new one, or one that was lost. A mark beside the accounts says when the first of them
//! was made; it is lost with them (`FLUSHALL`, a restart without persistence, a wrong server). Accounts that are made while it
//! is young listen to their holders before anything is granted from them.

use std::time::Duration;

use redis::{Pipeline, RedisResult, Value};
use tokio::time::Instant;

use super::connect::Connection;

/// What is known of the store's mark.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Birth {
    mark: String,
    /// From then on a missing account is a new one.
    of_age_at: Instant,
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

    /// Reads the mark at `key`, and sets it where there is none.
    pub(super) async fn read(connection: &mut Connection, key: &str, learn_ms: u64) -> RedisResult<Birth> {
        let now_ms = server_ms(connection, key).await?;
        let mut pipeline = Pipeline::with_capacity(2);
        pipeline.cmd("SET").arg(key).arg(now_ms).arg("NX").cmd("GET").arg(key);
        let mut answers = connection.send(&pipeline, key).await?;
        let mark: String = redis::from_redis_value(answers.pop().unwrap_or_default().extract_error()?)?;
        // A mark from the future, after the server's clock was set back, counts as new.
        let age_ms = mark.parse().map_or(0, |born_ms| now_ms.saturating_sub(born_ms));
        let of_age_at = Instant::now() + Duration::from_millis(learn_ms.saturating_sub(age_ms));
        Ok(Birth { mark, of_age_at })
    }

    /// Whether the mark is still there, unchanged.
    pub(super) async fn holds(&self, connection: &mut Connection, key: &str) -> RedisResult<bool> {
        let mut pipeline = Pipeline::with_capacity(1);
        pipeline.cmd("GET").arg(key);
        let answer = connection.send(&pipeline, key).await?.pop().unwrap_or_default();
        let mark: Option<String> = redis::from_redis_value(answer.extract_error()?)?;
        Ok(mark.is_some_and(|mark| mark == self.mark))
    }
}

/// The server's clock, milliseconds since 1970.
async fn server_ms(connection: &mut Connection, key: &str) -> RedisResult<u64> {
    let mut pipeline = Pipeline::with_capacity(1);
    pipeline.cmd("TIME");
    let answer: Value = connection.send(&pipeline, key).await?.pop().unwrap_or_default();
    let (seconds, micros): (u64, u64) = redis::from_redis_value(answer.extract_error()?)?;
    Ok(seconds.saturating_mul(1000) + micros / 1000)
}
