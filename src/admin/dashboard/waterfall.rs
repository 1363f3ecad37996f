//! One call as it went: what took when, as bars on one scale.

use serde::Serialize;

use super::visit::word;
use crate::record::{AttemptRow, CallRow};

/// Something that took time, on a line of its own. Times are microseconds from the request's head.
#[derive(Debug, PartialEq, Serialize)]
pub(super) struct Step {
    /// What, in English.
    what: &'static str,
    /// More of it: a target.
    detail: String,
    start_us: u64,
    end_us: u64,
    bars: Vec<Bar>,
    /// A moment of it, in percent of the whole.
    moment: Option<f64>,
    /// What came of it.
    result: String,
    /// The status that a provider answered with.
    status: Option<u16>,
}

/// A bar, in percent of the whole.
#[derive(Debug, PartialEq, Serialize)]
pub(super) struct Bar {
    /// What it is drawn as.
    class: &'static str,
    x: f64,
    width: f64,
}

/// The steps of a call, in the order in which they began.
pub(super) fn steps(row: &CallRow) -> Vec<Step> {
    let whole = row.duration_us.max(1);
    let mut steps = Vec::new();
    if row.read_us > 0 {
        steps.push(simple(word("Request is read"), "client", 0, row.read_us, whole));
    }
    // What the gateway did is not stored piece by piece: it is drawn as one bar, then what it waited for.
    let first = row.attempt_list.first().map_or(row.duration_us, |attempt| attempt.start_us);
    let waited_from = first.saturating_sub(row.waited_us);
    let own = row.overhead_us.map_or(waited_from, |overhead| waited_from.min(row.read_us.saturating_add(overhead)));
    steps.push(simple(word("Gateway: key, limits, prompt, price"), "gateway", row.read_us.min(own), own, whole));
    if row.waited_us > 0 {
        steps.push(simple(word("Waits for budget"), "waited", waited_from, first, whole));
    }
    for (index, attempt) in row.attempt_list.iter().enumerate() {
        let last = index + 1 == row.attempt_list.len();
        steps.push(of_attempt(attempt, row.first_token_us.filter(|_| last), whole));
    }
    steps
}

fn simple(what: &'static str, class: &'static str, start_us: u64, end_us: u64, whole: u64) -> Step {
    let bars = vec![bar(class, start_us, end_us, whole)];
    Step { what, detail: String::new(), start_us, end_us, bars, moment: None, result: String::new(), status: None }
}

fn of_attempt(attempt: &AttemptRow, first_token_us: Option<u64>, whole: u64) -> Step {
    let (start, end) = (attempt.start_us, attempt.end_us);
    let failed = &*attempt.result != "ok";
    let bars = match attempt.head_us {
        _ if failed => vec![bar("failed", start, end, whole)],
        Some(head) => vec![bar("attempt", start, head, whole), bar("stream", head, end, whole)],
        None => vec![bar("attempt", start, end, whole)],
    };
    Step {
        what: word("Attempt"),
        detail: attempt.target.to_string(),
        start_us: start,
        end_us: end,
        bars,
        moment: first_token_us.map(|at| percent(at, whole)),
        result: attempt.result.to_string(),
        status: attempt.status,
    }
}

fn bar(class: &'static str, start_us: u64, end_us: u64, whole: u64) -> Bar {
    let (x, end) = (percent(start_us, whole), percent(end_us, whole));
    // What is too short to be seen is still drawn.
    Bar { class, x: x.min(99.7), width: (end - x).max(0.3) }
}

fn percent(us: u64, whole: u64) -> f64 {
    (us as f64 * 100.0 / whole as f64).min(100.0)
}
