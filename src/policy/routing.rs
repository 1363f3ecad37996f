//! What follows an attempt: deliver its reply, try the same target again, go to the next one, or give up.
//!
//! A `POST` that a provider may have processed is not sent to the same provider again (RFC 9110 §9.2.2): only what surely was not
//! processed is. Targets that the operator listed as alternatives are tried after other failures too: that is what they are for.

use std::time::{Duration, SystemTime};

use http::StatusCode;

/// Longest `Retry-After` that is believed.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(60);
/// Longest that a client is kept waiting for the same target; beyond it the provider's answer is passed on.
const WAIT_MAX: Duration = Duration::from_secs(5);
/// First pause before the same target is tried again, doubled each time.
const BACKOFF: Duration = Duration::from_millis(100);

/// How an attempt went, as far as the next step asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Went {
    /// A reply with this status came, with this `Retry-After`.
    Replied(StatusCode, Option<Duration>),
    /// No reply, and surely nothing was processed.
    NotProcessed,
    /// No reply, and nobody knows.
    Unknown,
    /// The client's own request broke off.
    ClientGone,
}

/// What is left to try.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Left {
    /// Attempts, this one not counted.
    pub attempts: u32,
    /// Whether another target remains.
    pub another_target: bool,
    /// Attempts made at this target so far, at least 1.
    pub tries_here: u32,
    /// Time that the call has left.
    pub time: Duration,
}

/// What follows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// The reply, or the failure, is the answer.
    Stop,
    /// The same target, after a pause.
    Again(Duration),
    /// The next target, now.
    Another,
}

/// The next step after an attempt.
#[must_use]
pub fn next(went: Went, left: Left) -> Next {
    if left.attempts == 0 {
        return Next::Stop;
    }
    match went {
        Went::ClientGone => Next::Stop,
        Went::Replied(status, _) if !is_failure(status) => Next::Stop,
        _ if left.another_target => Next::Another,
        Went::Replied(status, retry_after) if was_not_processed(status) => again(retry_after, left),
        Went::NotProcessed => again(None, left),
        Went::Replied(..) | Went::Unknown => Next::Stop,
    }
}

fn again(retry_after: Option<Duration>, left: Left) -> Next {
    let doublings = left.tries_here.saturating_sub(1).min(6);
    let pause = retry_after.unwrap_or(BACKOFF * (1 << doublings));
    if pause > WAIT_MAX || pause >= left.time { Next::Stop } else { Next::Again(pause) }
}

/// Whether a status says that another attempt may go better.
#[must_use]
pub fn is_failure(status: StatusCode) -> bool {
    was_not_processed(status) || matches!(status.as_u16(), 408 | 500 | 502 | 504)
}

/// Whether a status says that the provider turned the call away unprocessed: 429, 503, and 529 (Anthropic's "overloaded").
#[must_use]
pub fn was_not_processed(status: StatusCode) -> bool {
    matches!(status.as_u16(), 429 | 503 | 529)
}

/// Whether a status counts against a provider's health. Too many calls (429) are the caller's doing.
#[must_use]
pub fn counts_against_health(status: StatusCode) -> bool {
    status.is_server_error()
}

/// `Retry-After` (RFC 9110 §10.2.3), in seconds or as a date; at most a minute, `None` when it says nothing sensible.
#[must_use]
pub fn retry_after(value: &str, now: SystemTime) -> Option<Duration> {
    let value = value.trim();
    let wait = if value.bytes().all(|b| b.is_ascii_digit()) && !value.is_empty() {
        Duration::from_secs(value.parse().unwrap_or(u64::MAX))
    } else {
        httpdate::parse_http_date(value).ok()?.duration_since(now).unwrap_or_default()
    };
    Some(wait.min(RETRY_AFTER_MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn replied(status: u16) -> Went {
        Went::Replied(StatusCode::from_u16(status).unwrap(), None)
    }

    fn left(attempts: u32, another_target: bool) -> Left {
        Left { attempts, another_target, tries_here: 1, time: Duration::from_secs(60) }
    }

    #[test]
    fn what_may_have_been_processed_is_not_sent_to_the_same_target_again() {
        for went in [replied(500), replied(502), replied(504), Went::Unknown] {
            assert_eq!(next(went, left(3, false)), Next::Stop, "{went:?}");
            assert_eq!(next(went, left(3, true)), Next::Another, "{went:?}");
        }
    }

    #[test]
    fn what_was_surely_not_processed_is_tried_again() {
        for went in [replied(429), replied(503), replied(529), Went::NotProcessed] {
            assert_eq!(next(went, left(3, false)), Next::Again(BACKOFF), "{went:?}");
        }
    }

    #[test]
    fn answers_and_client_mistakes_are_final() {
        for went in [replied(200), replied(400), replied(401), replied(404), Went::ClientGone] {
            assert_eq!(next(went, left(3, true)), Next::Stop, "{went:?}");
        }
    }

    #[test]
    fn no_attempt_comes_before_retry_after_or_beyond_the_limit() {
        let slow = Went::Replied(StatusCode::TOO_MANY_REQUESTS, Some(Duration::from_secs(2)));
        assert_eq!(next(slow, left(1, false)), Next::Again(Duration::from_secs(2)));
        let slower = Went::Replied(StatusCode::TOO_MANY_REQUESTS, Some(Duration::from_secs(30)));
        assert_eq!(next(slower, left(1, false)), Next::Stop);
        assert_eq!(next(slow, left(0, true)), Next::Stop);
    }

    #[test]
    fn retry_after_is_read_in_both_forms_and_never_trusted_too_far() {
        let now = httpdate::parse_http_date("Mon, 23 Nov 2026 12:00:00 GMT").unwrap();
        for (value, seconds) in [
            ("2", Some(2)),
            ("1000000000000", Some(60)),
            ("99999999999999999999999", Some(60)),
            ("Mon, 23 Nov 2026 12:00:10 GMT", Some(10)),
            ("Mon, 23 Nov 2026 11:00:00 GMT", Some(0)),
            ("-5", None),
            ("soon", None),
            ("", None),
        ] {
            assert_eq!(retry_after(value, now), seconds.map(Duration::from_secs), "{value}");
        }
    }
}
