//! When something that did not reach its receiver is sent again: alerts, traces and metrics.
//!
//! Sending twice is better than not at all here: receivers know a message by its id or key. No clock and no dice inside.

use std::time::{Duration, SystemTime};

use http::StatusCode;

/// The first pause, doubled each time.
const PAUSE: Duration = Duration::from_millis(500);
/// The longest pause of our own choosing.
const PAUSE_MAX: Duration = Duration::from_secs(60);
/// The longest `Retry-After` that is believed.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(900);

/// How an attempt went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Went {
    /// A reply with this status, and its `Retry-After`.
    Replied(StatusCode, Option<Duration>),
    /// No reply, or none in time.
    Unanswered,
}

/// How often something was tried, and may be.
#[derive(Debug, Clone, Copy)]
pub struct Tries {
    /// Attempts made, at least 1.
    pub attempt: u32,
    /// Attempts in all.
    pub attempts_max: u32,
    /// The statuses after which another attempt makes sense.
    pub may_go_better: fn(StatusCode) -> bool,
}

/// What follows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// It has arrived.
    Done,
    /// It is sent again after this long.
    Again(Duration),
    /// The receiver does not want it, or was asked often enough.
    GiveUp,
}

/// What follows an attempt. `dice` is from 0 to 1: it keeps a fleet from knocking in step.
#[must_use]
pub fn next(went: Went, tries: Tries, dice: f64) -> Next {
    let Tries { attempt, attempts_max, may_go_better } = tries;
    let asked = match went {
        Went::Replied(status, _) if status.is_success() => return Next::Done,
        Went::Replied(status, _) if !may_go_better(status) => return Next::GiveUp,
        Went::Replied(_, retry_after) => retry_after,
        Went::Unanswered => None,
    };
    if attempt >= attempts_max {
        return Next::GiveUp;
    }
    let pause = PAUSE.saturating_mul(1 << (attempt - 1).min(16)).min(PAUSE_MAX);
    // Between half and the whole of it; what the receiver asked for is never cut short.
    let pause = pause.mul_f64(0.5 + 0.5 * dice.clamp(0.0, 1.0));
    Next::Again(asked.map_or(pause, |asked| asked.max(pause)))
}

/// Of a webhook: any failure of its own, as PagerDuty wants it, too.
#[must_use]
pub fn webhook_may_recover(status: StatusCode) -> bool {
    status.is_server_error() || matches!(status.as_u16(), 408 | 429)
}

/// Of a collector: <https://opentelemetry.io/docs/specs/otlp/#retryable-response-codes>, and nothing else.
#[must_use]
pub fn collector_may_recover(status: StatusCode) -> bool {
    matches!(status.as_u16(), 429 | 502 | 503 | 504)
}

/// `Retry-After` (RFC 9110 §10.2.3), in seconds or as a date; `None` when it says nothing sensible.
#[must_use]
pub fn retry_after(value: &str, now: SystemTime) -> Option<Duration> {
    let value = value.trim();
    let wait = match value.parse() {
        Ok(seconds) => Duration::from_secs(seconds),
        Err(_) => httpdate::parse_http_date(value).ok()?.duration_since(now).unwrap_or_default(),
    };
    Some(wait.min(RETRY_AFTER_MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn next(went: Went, attempt: u32, attempts_max: u32, dice: f64) -> Next {
        super::next(went, Tries { attempt, attempts_max, may_go_better: webhook_may_recover }, dice)
    }

    fn replied(status: u16, retry_after: Option<u64>) -> Went {
        Went::Replied(StatusCode::from_u16(status).unwrap(), retry_after.map(Duration::from_secs))
    }

    #[test]
    fn what_may_go_better_is_tried_again() {
        for (status, expected) in [(200, Next::Done), (202, Next::Done), (204, Next::Done), (301, Next::GiveUp)] {
            assert_eq!(next(replied(status, None), 1, 5, 0.0), expected, "{status}");
        }
        for status in [400, 401, 403, 404, 410, 413] {
            assert_eq!(next(replied(status, None), 1, 5, 0.0), Next::GiveUp, "{status}");
        }
        for status in [408, 429, 500, 502, 503, 504] {
            assert_eq!(next(replied(status, None), 1, 5, 1.0), Next::Again(PAUSE), "{status}");
        }
        assert_eq!(next(Went::Unanswered, 1, 5, 1.0), Next::Again(PAUSE));
    }

    #[test]
    fn a_collector_that_failed_by_itself_is_left_alone() {
        let retried = |status: &u16| collector_may_recover(StatusCode::from_u16(*status).unwrap());
        let statuses: Vec<u16> = (400..600).filter(retried).collect();
        assert_eq!(statuses, [429, 502, 503, 504]);
    }

    #[test]
    fn pauses_double_up_to_a_minute_and_end() {
        let pauses: Vec<_> = (1..12)
            .map(|attempt| match next(Went::Unanswered, attempt, 11, 1.0) {
                Next::Again(pause) => pause.as_secs_f64(),
                _ => -1.0,
            })
            .collect();
        assert_eq!(pauses, [0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 60.0, 60.0, 60.0, -1.0]);
        assert_eq!(next(Went::Unanswered, 1, 2, 0.0), Next::Again(PAUSE / 2));
    }

    #[test]
    fn the_receiver_may_ask_for_more_time_but_not_for_less() {
        assert_eq!(next(replied(429, Some(30)), 1, 5, 1.0), Next::Again(Duration::from_secs(30)));
        assert_eq!(next(replied(429, Some(0)), 3, 5, 1.0), Next::Again(Duration::from_secs(2)));
    }

    #[test]
    fn retry_after_is_seconds_or_a_date() {
        let now = httpdate::parse_http_date("Mon, 23 Nov 2026 12:00:00 GMT").unwrap();
        let seconds = |value| retry_after(value, now).map(|wait| wait.as_secs());
        assert_eq!(seconds(" 7 "), Some(7));
        assert_eq!(seconds("Mon, 23 Nov 2026 12:01:00 GMT"), Some(60));
        assert_eq!(seconds("Mon, 23 Nov 2026 11:00:00 GMT"), Some(0));
        assert_eq!(seconds("999999999"), Some(900));
        assert_eq!([seconds(""), seconds("soon"), seconds("-1"), seconds("1.5")], [None; 4]);
    }
}
