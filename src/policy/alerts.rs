//! What people are told about, and when: conditions come in at each look, messages go out once.
//!
//! A condition that stands is told once and then again after [`Pace::repeat`]; it is told to be over when it has been gone for
//! [`Pace::resolve_after`], so that one that comes and goes makes one message and not a hundred. Of the levels of one subject (a
//! budget's thresholds) only the highest is told. No clock inside: the time is an argument.

use std::{collections::BTreeMap, fmt, sync::Arc, time::Duration};

use http::Uri;
use jiff::Timestamp;

/// Conditions that are followed at the same time: with a budget per user there may be very many. Further ones wait for a place.
const STANDING_MAX: usize = 1000;

/// What an alert is about: the words of `alerts.on`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// A budget has passed one of its thresholds.
    Budget,
    /// A provider is out of rotation.
    Provider,
    /// A provider refuses the key that it is called with.
    Credentials,
    /// A changed configuration was refused.
    Configuration,
    /// The ledger's store does not answer.
    Store,
    /// Records of calls were lost.
    Records,
    /// A guardrail stopped a variant of an experiment, or a roll-out.
    Experiment,
}

impl Kind {
    /// Every kind.
    pub const ALL: [Kind; 7] = [
        Kind::Budget,
        Kind::Provider,
        Kind::Credentials,
        Kind::Configuration,
        Kind::Store,
        Kind::Records,
        Kind::Experiment,
    ];

    /// Its word in configuration and messages.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Kind::Budget => "budget",
            Kind::Provider => "provider",
            Kind::Credentials => "credentials",
            Kind::Configuration => "configuration",
            Kind::Store => "store",
            Kind::Records => "records",
            Kind::Experiment => "experiment",
        }
    }
}

/// How bad it is, in PagerDuty's words, which others understand too.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Severity {
    /// Calls are refused or fail.
    Critical,
    /// Something is broken that nobody may have noticed yet.
    Error,
    /// It will be a problem.
    Warning,
    /// Good to know.
    Info,
}

impl Severity {
    /// Its word in messages.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Severity::Critical => "critical",
            Severity::Error => "error",
            Severity::Warning => "warning",
            Severity::Info => "info",
        }
    }
}

/// Something that is so right now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Condition {
    /// What it is about.
    pub kind: Kind,
    /// Whose it is: the same at every look, after a restart, and at every gateway of a fleet that sees the same thing.
    pub subject: Arc<str>,
    /// Of several that hold for one subject, such as 50, 80 and 100 % of a budget: the highest is told. 0 where there is but one.
    pub level: u32,
    /// How bad it is.
    pub severity: Severity,
    /// One sentence without a full stop.
    pub summary: String,
    /// What to do about it.
    pub mend: &'static str,
    /// Facts by name.
    pub details: Vec<(&'static str, String)>,
}

impl Condition {
    /// By what receivers put messages about the same thing together.
    #[must_use]
    pub fn key(&self) -> String {
        match self.level {
            0 => self.subject.to_string(),
            level => format!("{}/{level}", self.subject),
        }
    }

    /// Whether every gateway of a fleet finds the same, so that one of them is enough to tell it: a budget's spending, and a revision
    /// of the configuration that was pushed for all. What a gateway alone knows (its providers, its own file) is its own.
    #[must_use]
    pub fn is_the_fleets(&self) -> bool {
        match self.kind {
            Kind::Budget | Kind::Experiment => true,
            Kind::Configuration => self.subject.contains('/'),
            Kind::Provider | Kind::Credentials | Kind::Store | Kind::Records => false,
        }
    }
}

/// What a message says of its condition.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// It has begun.
    Raised,
    /// It still stands.
    Repeated,
    /// It is over.
    Resolved,
}

impl State {
    /// Its word in messages.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            State::Raised => "raised",
            State::Repeated => "repeated",
            State::Resolved => "resolved",
        }
    }
}

/// Something to tell.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// What of it.
    pub state: State,
    /// About what.
    pub condition: Condition,
    /// When it began.
    pub since: Timestamp,
    /// When this was found.
    pub at: Timestamp,
    /// A resolved level below another one that is resolved with it: only a receiver that keeps a list of what is open needs it.
    pub superseded: bool,
}

/// A receiver of alerts. `Debug` shows nothing of it: the address alone lets anybody write to it.
#[derive(Clone, PartialEq, Eq)]
pub struct Webhook {
    /// Its address.
    pub url: Uri,
    /// What it understands.
    pub format: Format,
    /// With what messages are signed.
    pub secret: Option<Arc<str>>,
    /// PagerDuty's integration key.
    pub routing_key: Option<Arc<str>>,
}

impl fmt::Debug for Webhook {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Webhook").field("format", &self.format).finish_non_exhaustive()
    }
}

/// What a receiver understands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// Slack's incoming webhooks, and what imitates them: Mattermost, Rocket.Chat, Discord's `/slack`.
    Slack,
    /// All of it, as JSON.
    Generic,
    /// PagerDuty's Events API v2.
    PagerDuty,
}

/// When a standing condition is told again, and when one is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pace {
    /// Told again after this long.
    pub repeat: Duration,
    /// Over after being gone for this long.
    pub resolve_after: Duration,
}

/// The conditions that stand.
#[derive(Debug, Default)]
pub struct Book {
    standing: BTreeMap<(Arc<str>, u32), Standing>,
}

#[derive(Debug)]
struct Standing {
    condition: Condition,
    since: Timestamp,
    seen: Timestamp,
    /// When it was told last; `None` where a higher level was told in its place.
    told: Option<Timestamp>,
}

impl Book {
    /// Takes all `conditions` that hold at `now`; gives what is to be told, the highest level of a subject first.
    pub fn look(&mut self, conditions: Vec<Condition>, now: Timestamp, pace: Pace) -> Vec<Message> {
        for condition in conditions {
            self.note(condition, now);
        }
        let mut messages = self.begun_or_standing(now, pace.repeat);
        messages.extend(self.over(now, pace.resolve_after));
        messages
    }

    fn note(&mut self, condition: Condition, now: Timestamp) {
        let id = (condition.subject.clone(), condition.level);
        if let Some(standing) = self.standing.get_mut(&id) {
            standing.seen = now;
            standing.condition = condition;
        } else if self.standing.len() < STANDING_MAX {
            self.standing.insert(id, Standing { condition, since: now, seen: now, told: None });
        }
    }

    /// The highest level of each subject that holds: new where it was never told, due again where that was long ago.
    fn begun_or_standing(&mut self, now: Timestamp, repeat: Duration) -> Vec<Message> {
        let mut messages = Vec::new();
        let mut highest: Option<Arc<str>> = None;
        // Levels of a subject stand side by side, so that the highest comes first in reverse.
        for ((subject, _), standing) in self.standing.iter_mut().rev() {
            if standing.seen != now || highest.as_ref() == Some(subject) {
                continue;
            }
            highest = Some(subject.clone());
            let state = match standing.told {
                None => State::Raised,
                Some(told) if now.duration_since(told) >= signed(repeat) => State::Repeated,
                Some(_) => continue,
            };
            standing.told = Some(now);
            messages.push(standing.message(state, now));
        }
        messages
    }

    /// What has been gone for long enough.
    fn over(&mut self, now: Timestamp, resolve_after: Duration) -> Vec<Message> {
        let gone =
            |standing: &Standing| standing.seen != now && now.duration_since(standing.seen) >= signed(resolve_after);
        let ids: Vec<_> =
            self.standing.iter().rev().filter(|(_, standing)| gone(standing)).map(|(id, _)| id.clone()).collect();
        let mut messages: Vec<Message> = Vec::new();
        for id in ids {
            let Some(standing) = self.standing.remove(&id).filter(|standing| standing.told.is_some()) else { continue };
            let superseded = messages.last().is_some_and(|message| message.condition.subject == id.0);
            messages.push(Message { superseded, ..standing.message(State::Resolved, now) });
        }
        messages
    }
}

impl Standing {
    fn message(&self, state: State, at: Timestamp) -> Message {
        Message { state, condition: self.condition.clone(), since: self.since, at, superseded: false }
    }
}

fn signed(duration: Duration) -> jiff::SignedDuration {
    jiff::SignedDuration::try_from(duration).unwrap_or(jiff::SignedDuration::MAX)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const PACE: Pace = Pace { repeat: Duration::from_secs(100), resolve_after: Duration::from_secs(10) };

    fn condition(subject: &str, level: u32) -> Condition {
        Condition {
            kind: Kind::Budget,
            subject: subject.into(),
            level,
            severity: Severity::Warning,
            summary: format!("{subject} at {level}"),
            mend: "do something",
            details: Vec::new(),
        }
    }

    /// A look at `second` that finds `levels` of one subject; what it tells, as `state key`.
    fn look(book: &mut Book, second: i64, levels: &[u32]) -> Vec<String> {
        let conditions = levels.iter().map(|level| condition("month", *level)).collect();
        let messages = book.look(conditions, at(second), PACE);
        let mark = |message: &Message| if message.superseded { " (superseded)" } else { "" };
        let said = |m: &Message| format!("{} {}{}", m.state.label(), m.condition.key(), mark(m));
        messages.iter().map(said).collect()
    }

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(1_800_000_000 + second).unwrap()
    }

    #[test]
    fn a_condition_is_told_once_then_again_after_a_while() {
        let mut book = Book::default();
        assert_eq!(look(&mut book, 0, &[0]), ["raised month"]);
        assert!((1..100).all(|second| look(&mut book, second, &[0]).is_empty()));
        assert_eq!(look(&mut book, 100, &[0]), ["repeated month"]);
        assert!(look(&mut book, 101, &[0]).is_empty());
    }

    #[test]
    fn it_is_over_when_it_has_been_gone_for_a_while() {
        let mut book = Book::default();
        look(&mut book, 0, &[0]);
        assert!(look(&mut book, 1, &[]).is_empty());
        assert!(look(&mut book, 9, &[]).is_empty());
        assert_eq!(look(&mut book, 10, &[]), ["resolved month"]);
        assert!(look(&mut book, 11, &[]).is_empty());
        assert_eq!(look(&mut book, 12, &[0]), ["raised month"]);
    }

    #[test]
    fn one_that_comes_and_goes_is_told_once() {
        let mut book = Book::default();
        let told: Vec<_> =
            (0..90).flat_map(|second| look(&mut book, second, if second % 5 == 0 { &[0] } else { &[] })).collect();
        assert_eq!(told, ["raised month"]);
    }

    #[test]
    fn of_several_levels_the_highest_is_told() {
        let mut book = Book::default();
        assert_eq!(look(&mut book, 0, &[50, 80]), ["raised month/80"]);
        assert!(look(&mut book, 1, &[50, 80]).is_empty());
        assert_eq!(look(&mut book, 2, &[50, 80, 100]), ["raised month/100"]);
        assert_eq!(look(&mut book, 50, &[]), ["resolved month/100", "resolved month/80 (superseded)"]);
    }

    #[test]
    fn a_level_that_remains_alone_was_told_before_or_is_told_now() {
        let mut book = Book::default();
        look(&mut book, 0, &[50]);
        look(&mut book, 1, &[50, 80]);
        assert_eq!(look(&mut book, 20, &[50]), ["resolved month/80"], "50 was told at the beginning");
        let mut book = Book::default();
        look(&mut book, 0, &[50, 80]);
        assert_eq!(look(&mut book, 20, &[50]), ["raised month/50", "resolved month/80"]);
    }

    #[test]
    fn there_is_a_bound_on_what_is_followed() {
        let mut book = Book::default();
        let many = (0..3000).map(|number| condition(&format!("user-{number}"), 0)).collect();
        assert_eq!(book.look(many, at(0), PACE).len(), STANDING_MAX);
    }

    proptest! {
        #[test]
        fn raised_and_resolved_take_turns_whatever_happens(
            looks in proptest::collection::vec((1..30i64, proptest::collection::vec((0..3u8, 0..3u32), 0..6)), 1..80)
        ) {
            let mut book = Book::default();
            let mut open = std::collections::HashSet::new();
            let mut second = 0;
            for (pause, found) in looks {
                second += pause;
                let conditions: Vec<_> = found.iter().map(|(subject, level)| condition(&subject.to_string(), *level)).collect();
                for message in book.look(conditions, at(second), PACE) {
                    let key = message.condition.key();
                    match message.state {
                        State::Raised => prop_assert!(open.insert(key)),
                        State::Repeated => prop_assert!(open.contains(&key)),
                        State::Resolved => prop_assert!(open.remove(&key)),
                    }
                }
            }
            let left = book.look(Vec::new(), at(second + 1000), PACE);
            prop_assert_eq!(left.len(), open.len(), "everything that was told is told to be over");
        }
    }
}
