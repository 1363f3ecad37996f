//! Which gateway of a fleet tells of an alert: whoever writes a key first, and another one if that cannot deliver it.
//!
//! `PREFIX{alert}:DIGEST` says `open` from the beginning of an alert to its end, `…:again` that somebody has just repeated it, and
//! `…:held` that it has been told or is being told right now. Nothing needs more than `SET`, and nothing is left behind: each key
//! has its time, and one that is over is given a millisecond. Needs Redis 6.2 (`GET` beside `XX`).

use std::time::Duration;

use redis::{Pipeline, RedisError, Value};
use sha2::{Digest, Sha256};
use tokio::sync::Mutex;

use super::connect::Connection;
use crate::{policy::alerts::State, store::ports::StoreError, wire::redis_url::RedisUrl};

/// Connecting and asking: an alert does not wait longer for the store.
const TIMEOUT: Duration = Duration::from_secs(1);
/// For so long an alert is in the hands of who claimed it, without a word of what became of it: longer than a gateway is patient with
/// its receiver, see [`crate::telemetry::alerts`].
const LEASE: Duration = Duration::from_mins(6);
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

    /// Whether this gateway is the first to claim that `alert` is in `state`. It is repeated after `repeat`. Unless it is over, it is
    /// to be [settled](RedisClaims::settle) within six minutes, or another gateway may [take it over](RedisClaims::take_over).
    ///
    /// # Errors
    /// When Redis does not answer within a second, or not as it should.
    pub async fn claim(&self, alert: &str, state: State, repeat: Duration) -> Result<bool, StoreError> {
        let key = self.key(alert);
        let answer = self.talk(&key, &claim(&key, state, repeat)).await?;
        let is_ours = match state {
            State::Raised | State::Repeated => answer == Value::Okay,
            State::Resolved => answer == Value::BulkString(b"open".to_vec()),
        };
        if is_ours && state != State::Resolved {
            self.talk(&key, &set(&held(&key), "1", LEASE)).await?;
        }
        Ok(is_ours)
    }

    /// Whether this gateway is the first to tell of an alert in the place of the one that had claimed it: that one could not
    /// deliver it, or was not heard of again.
    ///
    /// # Errors
    /// As [`RedisClaims::claim`].
    pub async fn take_over(&self, alert: &str, repeat: Duration) -> Result<bool, StoreError> {
        let key = self.key(alert);
        let mut commands = Pipeline::with_capacity(1);
        commands.cmd("SET").arg(held(&key)).arg("1").arg("NX").arg("PX").arg(ms(LEASE));
        let is_ours = self.talk(&key, &commands).await? == Value::Okay;
        if is_ours {
            // Whoever finds it over meanwhile has told so; this one is to be told over as well.
            self.talk(&key, &set(&key, "open", open_for(repeat))).await?;
        }
        Ok(is_ours)
    }

    /// Says what became of an alert that this gateway had claimed: delivered, or left to whoever takes it over.
    ///
    /// # Errors
    /// As [`RedisClaims::claim`].
    pub async fn settle(&self, alert: &str, is_delivered: bool, repeat: Duration) -> Result<(), StoreError> {
        let key = self.key(alert);
        let time = if is_delivered { open_for(repeat) } else { Duration::ZERO };
        self.talk(&key, &set(&held(&key), "1", time)).await.map(drop)
    }

    /// Names in alerts are the operator's and may hold anything.
    fn key(&self, alert: &str) -> String {
        let digest: String = Sha256::digest(alert).iter().map(|byte| format!("{byte:02x}")).collect();
        format!("{}{{alert}}:{digest}", self.url.prefix)
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

fn claim(key: &str, state: State, repeat: Duration) -> Pipeline {
    let mut commands = Pipeline::with_capacity(2);
    match state {
        State::Raised => commands.cmd("SET").arg(key).arg("open").arg("NX").arg("PX").arg(ms(open_for(repeat))),
        // Whoever is late repeats within half of that time; the next round is due after all of it.
        State::Repeated => {
            let again = format!("{key}:again");
            commands.cmd("SET").arg(again).arg("1").arg("NX").arg("PX").arg(ms(repeat / 2));
            commands.cmd("SET").arg(key).arg("open").arg("PX").arg(ms(open_for(repeat)))
        }
        // Gone within a millisecond: what begins again is a new alert.
        State::Resolved => commands.cmd("SET").arg(key).arg("over").arg("XX").arg("GET").arg("PX").arg(1),
    };
    commands
}

fn set(key: &str, value: &str, time: Duration) -> Pipeline {
    let mut commands = Pipeline::with_capacity(1);
    commands.cmd("SET").arg(key).arg(value).arg("PX").arg(ms(time));
    commands
}

fn held(key: &str) -> String {
    format!("{key}:held")
}

/// How long an alert stays open that nobody repeats.
fn open_for(repeat: Duration) -> Duration {
    repeat.saturating_mul(2).saturating_add(OPEN_BEYOND)
}

/// At least 1: less is no time to Redis.
fn ms(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX).max(1)
}
