//! Traces: which calls are traced, under which ids, and where they go.
//!
//! Ids follow from the call's own, so that nothing has to be carried through the layers: a call's trace id is the client's, where it
//! sent one, and else the call's id itself, which is a UUID of 16 bytes.

use std::{fmt, sync::Arc, time::Duration};

use http::{HeaderName, HeaderValue, Uri};
use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

use crate::{policy::redact::Redactor, wire::traceparent::TraceParent};

/// Which edition of the conventions names the attributes of generative AI.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Semconv {
    /// The last one with `gen_ai.system`.
    V1_36,
    /// `gen_ai.provider.name` in its place.
    V1_37,
    /// And tokens of caches and reasoning, streams and their first chunk: the last one before they moved to a repository of their own.
    V1_41,
}

impl Semconv {
    /// Every edition that is known.
    pub const ALL: [Semconv; 3] = [Semconv::V1_36, Semconv::V1_37, Semconv::V1_41];

    /// As it is written in the configuration.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Semconv::V1_36 => "1.36",
            Semconv::V1_37 => "1.37",
            Semconv::V1_41 => "1.41",
        }
    }
}

/// Where traces and metrics go. `Debug` shows no header: there stand keys.
#[derive(Clone, PartialEq)]
pub struct Otlp {
    /// Where spans are posted.
    pub traces: Uri,
    /// Where metrics are posted; `None`: nowhere.
    pub metrics: Option<Uri>,
    /// Header fields of each request.
    pub headers: Vec<(HeaderName, HeaderValue)>,
    /// `service.name`.
    pub service: Arc<str>,
    /// How attributes are named.
    pub semconv: Semconv,
    /// The share, 0 to 1, of calls that are traced where the client has not decided.
    pub sample: f64,
    /// Between two reports of metrics.
    pub interval: Duration,
    /// How prompts and replies are told; `None`: not at all.
    pub content: Option<Content>,
}

/// How prompts and replies are told.
#[derive(Debug, Clone)]
pub struct Content {
    /// Takes out what must not be told.
    pub redactor: Arc<Redactor>,
    /// How much of all texts that a call sent, and of all that it was answered, in bytes.
    pub bytes_max: usize,
}

/// As made from one configuration.
impl PartialEq for Content {
    fn eq(&self, other: &Content) -> bool {
        Arc::ptr_eq(&self.redactor, &other.redactor) && self.bytes_max == other.bytes_max
    }
}

impl fmt::Debug for Otlp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Otlp").field("semconv", &self.semconv).field("sample", &self.sample).finish_non_exhaustive()
    }
}

/// The trace that a call belongs to: its client's, or its own.
#[must_use]
pub fn trace_id(call_id: &str, parent: Option<TraceParent>) -> u128 {
    let own = || u128::from_str_radix(call_id, 16).ok().filter(|id| *id != 0).unwrap_or(1);
    parent.map_or_else(own, |parent| parent.trace_id)
}

/// The span of a call (0) or of one of its attempts (from 1).
#[must_use]
pub fn span_id(call_id: &str, attempt: u32) -> u64 {
    xxh3_64_with_seed(call_id.as_bytes(), u64::from(attempt)).max(1)
}

/// Whether a call is traced: as its client decided, and else by its trace id, so that it is decided alike for the call and for what its provider is told.
#[must_use]
pub fn is_sampled(trace_id: u128, parent: Option<TraceParent>, share: f64) -> bool {
    match parent {
        Some(parent) => parent.sampled,
        // Hashed, since ids that are made together have their highest bits in common. 53 bits are what a float holds.
        None => ((xxh3_64(&trace_id.to_be_bytes()) >> 11) as f64 / (1_u64 << 53) as f64) < share,
    }
}

/// What the provider is told of an attempt.
#[must_use]
pub fn for_attempt(call_id: &str, parent: Option<TraceParent>, attempt: u32, share: f64) -> TraceParent {
    let trace_id = trace_id(call_id, parent);
    TraceParent { trace_id, span_id: span_id(call_id, attempt), sampled: is_sampled(trace_id, parent, share) }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CALL: &str = "01a209973f55765f90a638126bcf5c41";

    #[test]
    fn a_call_continues_its_clients_trace_or_begins_its_own() {
        let parent = TraceParent { trace_id: 7, span_id: 9, sampled: true };
        assert_eq!(trace_id(CALL, Some(parent)), 7);
        assert_eq!(format!("{:032x}", trace_id(CALL, None)), CALL);
    }

    #[test]
    fn attempts_have_spans_of_their_own() {
        let spans: std::collections::HashSet<u64> = (0..20).map(|attempt| span_id(CALL, attempt)).collect();
        assert_eq!(spans.len(), 20);
        assert_eq!(for_attempt(CALL, None, 2, 1.0).span_id, span_id(CALL, 2));
    }

    #[test]
    fn the_client_decides_and_else_the_share() {
        let parent = |sampled| Some(TraceParent { trace_id: 7, span_id: 9, sampled });
        assert!(is_sampled(7, parent(true), 0.0) && !is_sampled(7, parent(false), 1.0));
        let sampled = |share| {
            let ids = (0..1000).map(|_| uuid::Uuid::new_v7(uuid::Timestamp::now(uuid::NoContext)).as_u128());
            ids.filter(|id| is_sampled(*id, None, share)).count()
        };
        assert_eq!((sampled(0.0), sampled(1.0)), (0, 1000));
        assert!((150..350).contains(&sampled(0.25)), "{}", sampled(0.25));
    }
}
