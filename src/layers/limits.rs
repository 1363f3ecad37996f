//! Asks the rate limits: bursts are refused before any money is set aside.
//!
//! Stage: [`Opened`] in, [`Opened`] out. The admission stays with the record, so concurrency counts end when the call does.

use std::{sync::Arc, time::Duration};

use http::{HeaderMap, HeaderName, HeaderValue};
use tokio::time::Instant;

use crate::{
    call::{Answer, Failure, Opened},
    error::GatewayError,
    layers::{Inner, Step},
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

impl Step for ApplyLimits {
    type In = Opened;
    type Next = Opened;

    async fn handle<S: Inner<Opened>>(&'static self, mut opened: Opened, mut inner: S) -> Answer {
        let call = &opened.quoted.planned.call;
        if call.snapshot.limits.is_empty() {
            return inner.call(opened).await;
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
            Err(limited) => Err(refusal(&limited, opened)),
            Ok(admission) => {
                let standing = admission.standing;
                opened.record.admitted(admission);
                let mut answer = inner.call(opened).await;
                if let Ok(reply) = &mut answer {
                    // The provider's own limits are shared by all tenants: ours are what this client can use.
                    standing_headers(&standing, &mut reply.headers);
                }
                answer
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

/// OpenAI's `x-ratelimit-*`: <https://platform.openai.com/docs/guides/rate-limits#rate-limits-in-headers>.
fn standing_headers(standing: &Standing, reply: &mut HeaderMap) {
    for (quota, [limit, remaining, reset]) in [(&standing.requests, OF_REQUESTS), (&standing.tokens, OF_TOKENS)] {
        let Some(Quota { limit: count, remaining: left, reset: until }) = quota else { continue };
        reply.insert(limit, headers::number(*count));
        reply.insert(remaining, headers::number(*left));
        if let Ok(value) = HeaderValue::from_str(&spelled(*until)) {
            reply.insert(reset, value);
        }
    }
}

/// As OpenAI spells it: `20ms`, `1s`, `6m0s`.
fn spelled(duration: Duration) -> String {
    match duration.as_millis() {
        ms @ 0..1000 => ms.to_string() + "ms",
        ms @ 1000..60_000 if ms % 1000 != 0 => format!("{}.{:03}s", ms / 1000, ms % 1000),
        ms if ms < 60_000 => (ms / 1000).to_string() + "s",
        ms => format!("{}m{}s", ms / 60_000, ms / 1000 % 60),
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
