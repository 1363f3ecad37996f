//! Which gateway of a fleet tells of an alert: whoever writes a key first.
//!
//! `PREFIX{alert}:DIGEST` says `open` from the beginning of an alert to its end, `…:again` that somebody has just repeated it. Nothing
//! needs more than `SET`, and nothing is left behind: each key has its time. Needs Redis 6.2 (`GET` beside `XX`).

use std::time::Duration;

use redis::{Pipeline, RedisError, Value};
use sha2::{Digest, Sha256};
use tokio::sync::Mutex;

use super::connect::Connection;
use crate::{policy::alerts::State, store::ports::StoreError, wire::redis_url::RedisUrl};

/// Connecting and asking: an alert does not wait longer for the store.
const TIMEOUT: Duration = Duration::from_secs(1);
/// How long an alert is open beyond twice the time after which it is repeated.
const OPEN_BEYOND: Duration = Duration::from_mins(5);

/// Claims over one Redis.
pub struct RedisClaims {
    url: RedisUrl,
    /// One conversation at a time; lost when it fails, and made anew by the next.
    line: Mutex<Option<Connection>>,
}

impl std::fmt::Debug for RedisClaims {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RedisClaims").field("url", &self.url).finish_non_exhaustive()
    }
}

impl RedisClaims {
    /// Claims over the store at `url`. Connects when it is first asked.
    #[must_use]
    pub fn new(url: RedisUrl) -> RedisClaims {
        RedisClaims { url, line: Mutex::default() }
    }

    /// Whether this gateway is the first to claim that `alert` is in `state`. It is repeated after `repeat`.
    ///
    /// # Errors
    /// When Redis does not answer within a second, or not as it should.
    pub async fn claim(&self, alert: &str, state: State, repeat: Duration) -> Result<bool, StoreError> {
        let key = format!("{}{{alert}}:{}", self.url.prefix, digest(alert));
        let answer = self.talk(&key, &command(&key, state, repeat)).await?;
        Ok(match state {
            State::Raised | State::Repeated => answer == Value::Okay,
            State::Resolved => answer == Value::BulkString(b"open".to_vec()),
        })
    }

    /// The first answer to `commands`.
    async fn talk(&self, key: &str, commands: &Pipeline) -> Result<Value, StoreError> {
        let mut line = self.line.lock().await;
        let known = line.take();
        let talk = async {
            let mut connection = match known {
                Some(connection) => connection,
                None => Connection::open(&self.url, TIMEOUT).await?,
            };
            let answers = connection.send(commands, key).await?;
            Ok((connection, answers))
        };
        let (connection, answers) = super::within(&self.url, TIMEOUT, talk).await?;
        *line = Some(connection);
        let unavailable = |error: RedisError| StoreError::Unavailable(format!("{}: {error}", self.url));
        answers.into_iter().next().unwrap_or_default().extract_error().map_err(unavailable)
    }
}

fn command(key: &str, state: State, repeat: Duration) -> Pipeline {
    let ms = |duration: Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX).max(1);
    let open_ms = ms(repeat.saturating_mul(2).saturating_add(OPEN_BEYOND));
    let mut commands = Pipeline::with_capacity(2);
    match state {
        State::Raised => commands.cmd("SET").arg(key).arg("open").arg("NX").arg("PX").arg(open_ms),
        // Whoever is late repeats within half of that time; the next round is due after all of it.
        State::Repeated => {
            let again = format!("{key}:again");
            commands.cmd("SET").arg(again).arg("1").arg("NX").arg("PX").arg(ms(repeat / 2));
            commands.cmd("SET").arg(key).arg("open").arg("PX").arg(open_ms)
        }
        // Gone within a millisecond: what begins again is a new alert.
        State::Resolved => commands.cmd("SET").arg(key).arg("over").arg("XX").arg("GET").arg("PX").arg(1),
    };
    commands
}

/// Names in alerts are the operator's and may hold anything.
fn digest(alert: &str) -> String {
    Sha256::digest(alert).iter().map(|byte| format!("{byte:02x}")).collect()
}
