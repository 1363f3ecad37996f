//! Asks the rate limits: bursts are refused before any money is set aside.
//!
//! Stage: [`Opened`] in, [`Opened`] out. The admission stays with the record, so concurrency counts end when the call does, and
//! the reply says how they stood ([`super::route`]).

use std::{sync::Arc, time::Duration};

use http::{HeaderMap, HeaderName, HeaderValue};
use tokio::time::Instant;

use crate::{
    call::{Failure, Opened},
    error::GatewayError,
    layers::{Early, Turn},
    policy::{
        limits::{Counted, Limited, Limiter, Quota, Standing},
        scope::Facts,
    },
    wire::headers,
};

/// What says how a window stands: its count, what is left of it, when all of it is back.
const OF_REQUESTS: [HeaderName; 3] = [
    HeaderName::from_static("x-ratelimit-limit-requests"),
    HeaderName::from_static("x-ratelimit-remaining-requests"),
    HeaderName::from_static("x-ratelimit-reset-requests"),
];
const OF_TOKENS: [HeaderName; 3] = [
    HeaderName::from_static("x-ratelimit-limit-tokens"),
    HeaderName::from_static("x-ratelimit-remaining-tokens"),
    HeaderName::from_static("x-ratelimit-reset-tokens"),
];

/// See the module.
pub struct ApplyLimits {
    /// The counts of this process.
    pub limiter: Arc<Limiter>,
    /// The start of this process' clock.
    pub epoch: Instant,
}

impl Turn for ApplyLimits {
    type In = Opened;
    type Next = Opened;

    fn turn(&self, mut opened: Opened) -> Result<Opened, Early> {
        let call = &opened.quoted.planned.call;
        if call.snapshot.limits.is_empty() {
            return Ok(opened);
        }
        let facts = Facts {
            key: &call.caller.name,
            team: call.caller.team.as_deref(),
            user: &call.identity.user,
            model: &opened.quoted.planned.plan.named,
            tags: &call.identity.tags,
        };
        let now_ns = u64::try_from(self.epoch.elapsed().as_nanos()).unwrap_or(u64::MAX);
        match self.limiter.admit(&call.snapshot.limits, &facts, opened.quoted.estimate, now_ns) {
            Err(limited) => Err(refusal(&limited, opened).into()),
            Ok(admission) => {
                opened.record.admitted(admission);
                Ok(opened)
            }
        }
    }
}

fn refusal(limited: &Limited, opened: Opened) -> Failure {
    let (what, quota) = match limited.what {
        Counted::Requests => ("requests", Standing { requests: limited.quota, tokens: None }),
        Counted::Tokens => ("tokens", Standing { requests: None, tokens: limited.quota }),
        Counted::Concurrent => ("concurrent calls", Standing::default()),
    };
    let error = GatewayError::RateLimited { limit: limited.limit.to_string(), what, retry_after: limited.retry_after };
    let mut failure = Failure::recorded(error, opened.record);
    standing_headers(&quota, &mut failure.headers);
    failure
}

/// OpenAI's `x-ratelimit-*`: <https://platform.openai.com/docs/guides/rate-limits#rate-limits-in-headers>. The provider's own are
/// shared by all tenants: ours are what this client can use.
pub(super) fn standing_headers(standing: &Standing, reply: &mut HeaderMap) {
    for (quota, [limit, remaining, reset]) in [(&standing.requests, OF_REQUESTS), (&standing.tokens, OF_TOKENS)] {
        let Some(Quota { limit: count, remaining: left, reset: until }) = quota else { continue };
        reply.insert(limit, headers::number(*count));
        reply.insert(remaining, headers::number(*left));
        if let Ok(value) = HeaderValue::try_from(spelled(*until)) {
            reply.insert(reset, value);
        }
    }
}

/// As OpenAI spells it: `20ms`, `1s`, `6m0s`.
fn spelled(duration: Duration) -> String {
    let ms = u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
    let (first, second) = (&mut [0; 20], &mut [0; 20]);
    match ms {
        0..1000 => [headers::digits(ms, first), "ms"].concat(),
        1000..60_000 if ms % 1000 != 0 => format!("{}.{:03}s", ms / 1000, ms % 1000),
        1000..60_000 => [headers::digits(ms / 1000, first), "s"].concat(),
        _ => [headers::digits(ms / 60_000, first), "m", headers::digits(ms / 1000 % 60, second), "s"].concat(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resets_are_spelled_as_openai_spells_them() {
        for (ms, text) in [(20, "20ms"), (1000, "1s"), (1500, "1.500s"), (360_000, "6m0s")] {
            assert_eq!(spelled(Duration::from_millis(ms)), text);
        }
    }
}
