//! The routing configuration of a fleet, and the book of its registry: revisions that never change, and a head that says which one is
//! live.
//!
//! All keys are `PREFIX{config}:…` (or `PREFIX{registry}:…`) and so share a slot, and one function moves the head by compare-and-set (`push.lua`). Who
//! follows is told on a channel; a poll finds out as well, since what Redis publishes may be lost. Nothing here knows what a
//! configuration or a book means.

use std::time::Duration;

use futures_util::{StreamExt as _, stream::BoxStream};
use jiff::Timestamp;
use redis::{Pipeline, RedisError, Value};
use tokio::sync::Mutex;

use super::connect::{self, Connection};
use crate::{
    store::ports::{Answer, BOOKS_KEPT, BookStore, PushOutcome, StoreError},
    wire::{
        redis_url::{RedisUrl, Topology},
        revision::{Head, Revision},
    },
};

const PUSH: &str = include_str!("push.lua");
/// Connecting and asking for the head: shorter than what a push may take to be noticed.
const POLL_TIMEOUT: Duration = Duration::from_millis(800);
/// Everything else, a revision's whole text among it.
const TALK_TIMEOUT: Duration = Duration::from_secs(5);
/// Revisions that are read together for a listing.
const READ_MAX: u64 = 16;

/// Where the pushed configuration is kept, or the registry's book.
pub struct ConfigStore {
    url: RedisUrl,
    space: Space,
    /// One conversation at a time; lost when it fails, and made anew by the next.
    line: Mutex<Option<Connection>>,
}

/// What is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Space {
    /// The pushed configuration: every revision of it.
    Config,
    /// The registry's book: its newest revisions, each of which is a whole book.
    Registry,
}

/// What is live, and the store's time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct State {
    /// `None` when nothing was ever pushed.
    pub head: Option<Head>,
    /// The server's clock.
    pub now: Timestamp,
}

/// Announcements that something was pushed. Ends when the subscription is lost.
pub struct Announcements(BoxStream<'static, ()>);

impl std::fmt::Debug for ConfigStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ConfigStore").field("url", &self.url).finish_non_exhaustive()
    }
}

impl std::fmt::Debug for Announcements {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Announcements")
    }
}

impl Announcements {
    /// Waits for the next one; `false` when there will be none any more.
    pub async fn next(&mut self) -> bool {
        self.0.next().await.is_some()
    }
}

impl ConfigStore {
    /// The store at `url`. Connects when it is first asked.
    #[must_use]
    pub fn new(url: RedisUrl) -> ConfigStore {
        ConfigStore { url, space: Space::Config, line: Mutex::default() }
    }

    /// The registry's book at `url`. Connects when it is first asked.
    #[must_use]
    pub fn registry(url: RedisUrl) -> ConfigStore {
        ConfigStore { url, space: Space::Registry, line: Mutex::default() }
    }

    /// Where it is, without the password.
    #[must_use]
    pub fn place(&self) -> String {
        self.url.to_string()
    }

    /// What is live; within 800 ms.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`], or [`StoreError::Damaged`] when the head is none.
    pub async fn head(&self) -> Result<Option<Head>, StoreError> {
        let mut get = Pipeline::with_capacity(1);
        get.cmd("GET").arg(self.head_key());
        let answer = self.talk(POLL_TIMEOUT, &get).await?.pop().unwrap_or_default();
        self.read_head(answer)
    }

    /// What is live, and the server's time.
    ///
    /// # Errors
    /// As [`ConfigStore::head`].
    pub async fn state(&self) -> Result<State, StoreError> {
        let mut ask = Pipeline::with_capacity(2);
        ask.cmd("TIME").cmd("GET").arg(self.head_key());
        let mut answers = self.talk(TALK_TIMEOUT, &ask).await?;
        let head = self.read_head(answers.pop().unwrap_or_default())?;
        let (seconds, micros): (i64, i64) = self.read(answers.pop().unwrap_or_default())?;
        let now = Timestamp::from_microsecond(seconds.saturating_mul(1_000_000).saturating_add(micros));
        Ok(State { head, now: now.map_err(|_| self.damaged("its clock shows no time"))? })
    }

    /// One revision; `None` when there is none of that number.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`], or [`StoreError::Damaged`] when what stands there is no revision, or not the one of that number.
    pub async fn revision(&self, number: u64) -> Result<Option<Revision>, StoreError> {
        let mut get = Pipeline::with_capacity(1);
        get.cmd("GET").arg(self.revision_key(number));
        let answer = self.talk(TALK_TIMEOUT, &get).await?.pop().unwrap_or_default();
        self.read_revision(number, answer)
    }

    /// At most `count` revisions, the newest first, from `newest` on. Those that cannot be read are left out.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`].
    pub async fn history(&self, newest: u64, count: u64) -> Result<Vec<Revision>, StoreError> {
        let oldest = newest.saturating_sub(count.saturating_sub(1)).max(1);
        let numbers: Vec<u64> = (oldest..=newest).rev().take(usize::try_from(count).unwrap_or(usize::MAX)).collect();
        let mut found = Vec::with_capacity(numbers.len());
        for chunk in numbers.chunks(READ_MAX as usize) {
            let mut get = Pipeline::with_capacity(chunk.len());
            for number in chunk {
                get.cmd("GET").arg(self.revision_key(*number));
            }
            let answers = self.talk(TALK_TIMEOUT, &get).await?;
            let read = chunk.iter().zip(answers).map(|(number, answer)| self.read_revision(*number, answer));
            found.extend(read.filter_map(|revision| revision.ok().flatten()));
        }
        Ok(found)
    }

    /// Stores `revision` and makes it live, if `base` still is.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`]: then it is not known whether it is live. [`StoreError::Damaged`] when the store holds a revision of
    /// that number already.
    pub async fn push(&self, base: Option<&Head>, revision: &Revision) -> Result<PushOutcome, StoreError> {
        let mut push = Pipeline::with_capacity(1);
        // Pushes are rare: the function goes along each time.
        let outdated = self.outdated_by(revision.number).map(|number| self.revision_key(number));
        push.cmd("EVAL").arg(PUSH).arg(2 + usize::from(outdated.is_some()));
        push.arg(self.head_key()).arg(self.revision_key(revision.number)).arg(outdated);
        push.arg(base.map(Head::to_string).unwrap_or_default());
        push.arg(revision.head().to_string()).arg(revision.to_json()).arg(self.channel());
        // Every gateway writes to the registry, and not every one may announce: the others' poll finds it.
        push.arg(if self.space == Space::Registry { "mute" } else { "" });
        let answer: String = self.read(self.talk(TALK_TIMEOUT, &push).await?.pop().unwrap_or_default())?;
        match answer.split_once(' ') {
            None if answer == "PUSHED" => Ok(PushOutcome::Pushed),
            Some(("STALE", "")) => Ok(PushOutcome::Stale(None)),
            Some(("STALE", head)) => {
                let head = head.parse().map_err(|_| self.damaged("the head of the configuration cannot be read"))?;
                Ok(PushOutcome::Stale(Some(head)))
            }
            _ => Err(self.damaged(&format!(
                "{} is there already, and revisions never change",
                self.revision_key(revision.number)
            ))),
        }
    }

    /// Listens for pushes. `None` with Sentinels and in a Cluster, where a subscription would have to follow the primary: there the
    /// poll alone has to do.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`].
    pub async fn subscribe(&self) -> Result<Option<Announcements>, StoreError> {
        if self.url.topology != Topology::Single {
            return Ok(None);
        }
        let subscribed = self.within(POLL_TIMEOUT, connect::subscribe(&self.url, &self.channel())).await?;
        Ok(Some(Announcements(subscribed.map(|_| ()).boxed())))
    }

    /// Sends commands to where the configuration lives; an answer each, errors among them.
    async fn talk(&self, limit: Duration, commands: &Pipeline) -> Result<Vec<Value>, StoreError> {
        let mut line = self.line.lock().await;
        let known = line.take();
        let talk = async {
            let mut connection = match known {
                Some(connection) => connection,
                None => Connection::open(&self.url, limit).await?,
            };
            let answers = connection.send(commands, &self.head_key()).await?;
            Ok((connection, answers))
        };
        let (connection, answers) = self.within(limit, talk).await?;
        *line = Some(connection);
        Ok(answers)
    }

    async fn within<T>(
        &self,
        limit: Duration,
        work: impl Future<Output = Result<T, RedisError>>,
    ) -> Result<T, StoreError> {
        super::within(&self.url, limit, work).await
    }

    fn read<T: redis::FromRedisValue>(&self, answer: Value) -> Result<T, StoreError> {
        let unavailable = |error: RedisError| StoreError::Unavailable(format!("{}: {error}", self.url));
        redis::from_redis_value(answer.extract_error().map_err(unavailable)?)
            .map_err(|_| self.damaged("it answered what cannot be"))
    }

    fn read_head(&self, answer: Value) -> Result<Option<Head>, StoreError> {
        let text: Option<String> = self.read(answer)?;
        let head = text.map(|text| text.parse()).transpose();
        head.map_err(|error| self.damaged(&format!("{}: {error}", self.head_key())))
    }

    fn read_revision(&self, number: u64, answer: Value) -> Result<Option<Revision>, StoreError> {
        let Some(json) = self.read::<Option<String>>(answer)? else { return Ok(None) };
        let key = self.revision_key(number);
        match Revision::parse(&json) {
            Ok(revision) if revision.number == number => Ok(Some(revision)),
            Ok(_) => Err(self.damaged(&format!("{key} holds another revision"))),
            Err(error) => Err(self.damaged(&format!("{key} {error}"))),
        }
    }

    fn damaged(&self, what: &str) -> StoreError {
        StoreError::Damaged(format!("{}: {what}", self.url))
    }

    /// The revision that goes when the one of this number comes.
    fn outdated_by(&self, number: u64) -> Option<u64> {
        let outdated = number.checked_sub(BOOKS_KEPT).filter(|outdated| *outdated > 0);
        outdated.filter(|_| self.space == Space::Registry)
    }

    fn head_key(&self) -> String {
        self.key("head")
    }

    fn revision_key(&self, number: u64) -> String {
        self.key(&number.to_string())
    }

    fn channel(&self) -> String {
        self.key("pushed")
    }

    fn key(&self, name: &str) -> String {
        let space = match self.space {
            Space::Config => "config",
            Space::Registry => "registry",
        };
        format!("{}{{{space}}}:{name}", self.url.prefix)
    }
}

impl BookStore for ConfigStore {
    fn head(&self) -> Answer<'_, Option<Head>> {
        Box::pin(self.head())
    }

    fn revision(&self, number: u64) -> Answer<'_, Option<Revision>> {
        Box::pin(self.revision(number))
    }

    fn push(&self, base: Option<Head>, revision: Revision) -> Answer<'_, PushOutcome> {
        Box::pin(async move { self.push(base.as_ref(), &revision).await })
    }

    fn history(&self, newest: u64, count: u64) -> Answer<'_, Vec<Revision>> {
        Box::pin(self.history(newest, count))
    }
}
