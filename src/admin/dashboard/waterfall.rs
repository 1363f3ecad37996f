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

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn call(mut changes: serde_json::Value) -> CallRow {
        let mut row = json!({
            "id": "019", "received_ms": 0, "endpoint": "chat_completions", "key": "k", "user": "u", "tags": {},
            "model": "m", "variants": [], "provider": "p", "status": 200, "outcome": "ok", "streamed": true,
            "input_tokens": 1, "cached_tokens": 0, "cache_write_tokens": 0, "cache_write_1h_tokens": 0,
            "input_audio_tokens": 0, "cached_audio_tokens": 0, "output_tokens": 1, "reasoning_tokens": 0,
            "output_audio_tokens": 0, "usage_source": "provider", "cost_nanousd": 1, "priced": true, "attempts": 0,
            "attempt_list": [], "read_us": 0, "waited_us": 0, "duration_us": 1000,
        });
        let fields = row.as_object_mut().expect("an object");
        fields.append(changes.as_object_mut().expect("an object"));
        serde_json::from_value(row).expect("a call")
    }

    fn spans(row: &CallRow) -> Vec<(&'static str, u64, u64)> {
        steps(row).iter().map(|step| (step.bars[0].class, step.start_us, step.end_us)).collect()
    }

    #[test]
    fn steps_follow_each_other_up_to_the_last_attempt() {
        let attempt = |start: u64, head: Option<u64>, end: u64, result: &str| json!({"provider": "p", "target": "p/m", "start_us": start, "head_us": head, "end_us": end, "result": result});
        let attempts = [attempt(100, None, 300, "timeout"), attempt(300, Some(600), 1000, "ok")];
        let row = call(json!({
            "read_us": 10, "overhead_us": 40, "waited_us": 50, "first_token_us": 700, "attempts": 2, "attempt_list": attempts,
        }));
        let expected =
            [("client", 0, 10), ("gateway", 10, 50), ("waited", 50, 100), ("failed", 100, 300), ("attempt", 300, 1000)];
        assert_eq!(spans(&row), expected);
        let moments: Vec<Option<f64>> = steps(&row).iter().map(|step| step.moment).collect();
        assert_eq!(moments, [None, None, None, None, Some(70.0)], "the first token is the last attempt's");
    }

    #[test]
    fn a_refused_call_is_the_gateways_alone() {
        assert_eq!(spans(&call(json!({"outcome": "refused", "status": 429}))), [("gateway", 0, 1000)]);
    }

    #[test]
    fn what_is_too_short_to_be_seen_is_drawn_within_the_picture() {
        let row = call(json!({"duration_us": 1_000_000, "read_us": 1_000_000}));
        for bar in steps(&row).iter().flat_map(|step| &step.bars) {
            assert!(bar.width >= 0.3 && bar.x + bar.width <= 100.1, "{bar:?}");
        }
    }
}
