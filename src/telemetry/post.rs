//! The way out for what the gateway sends on its own account, such as alerts and traces: a port, and patience with receivers
//! that do not answer. No call ever waits for any of it.

use std::{
    future::Future,
    pin::Pin,
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use http::{HeaderMap, Request, StatusCode, header};

use crate::policy::delivery::{self, Next, Tries, Went};

/// A receiver's answer, some time later.
pub type Posting<'a> = Pin<Box<dyn Future<Output = Result<Reply, Unreachable>> + Send + 'a>>;

/// Sends requests to anybody.
pub trait Post: Send + Sync {
    /// One exchange. The reply's body is read up to a bound.
    fn post(&self, request: Request<Bytes>) -> Posting<'_>;
}

/// What a receiver answered.
#[derive(Debug, Clone)]
pub struct Reply {
    /// The status.
    pub status: StatusCode,
    /// The header fields.
    pub headers: HeaderMap,
    /// The beginning of the body.
    pub body: Bytes,
}

/// No answer. Says how far the request came and never where to: the address may be a secret.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Unreachable(pub String);

/// How long to try.
#[derive(Debug, Clone, Copy)]
pub struct Patience {
    /// For one attempt.
    pub timeout: Duration,
    /// Attempts in all.
    pub attempts_max: u32,
    /// The statuses after which another attempt makes sense.
    pub may_go_better: fn(StatusCode) -> bool,
}

/// Why something was not delivered.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Undelivered {
    /// The receiver does not want it.
    #[error("the receiver answered {0}")]
    Refused(StatusCode),
    /// Nobody answered, or not in time.
    #[error("{0}")]
    Unanswered(String),
}

/// Sends until it has arrived or patience is at its end. `request` makes each attempt's own request, so that it can be signed anew.
///
/// # Errors
/// [`Undelivered`], as of the last attempt.
pub async fn deliver(
    post: &dyn Post,
    patience: Patience,
    mut request: impl FnMut() -> Request<Bytes> + Send,
) -> Result<Reply, Undelivered> {
    let mut attempt = 1;
    loop {
        let answer = tokio::time::timeout(patience.timeout, post.post(request())).await;
        let (went, failure) = match &answer {
            Ok(Ok(reply)) => {
                (Went::Replied(reply.status, retry_after(&reply.headers)), Undelivered::Refused(reply.status))
            }
            Ok(Err(unreachable)) => (Went::Unanswered, Undelivered::Unanswered(unreachable.0.clone())),
            Err(_) => (Went::Unanswered, Undelivered::Unanswered("no answer in time".to_owned())),
        };
        let tries = Tries { attempt, attempts_max: patience.attempts_max, may_go_better: patience.may_go_better };
        match (delivery::next(went, tries, dice()), answer) {
            (Next::Done, Ok(Ok(reply))) => return Ok(reply),
            (Next::Again(pause), _) => tokio::time::sleep(pause).await,
            _ => return Err(failure),
        }
        attempt += 1;
    }
}

fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    delivery::retry_after(headers.get(header::RETRY_AFTER)?.to_str().ok()?, SystemTime::now())
}

/// A number from 0 to 1; in the middle where the system gives no randomness, of which nothing depends here.
fn dice() -> f64 {
    let mut byte = [128];
    let _ = getrandom::fill(&mut byte);
    f64::from(byte[0]) / 255.0
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    /// Answers with these statuses in turn, then not at all; 0 is no answer.
    struct Scripted(Mutex<Vec<u16>>);

    impl Post for Scripted {
        fn post(&self, _: Request<Bytes>) -> Posting<'_> {
            let status = self.0.lock().unwrap().pop();
            Box::pin(async move {
                match status {
                    None => std::future::pending().await,
                    Some(0) => Err(Unreachable("no connection".to_owned())),
                    Some(status) => Ok(Reply {
                        status: StatusCode::from_u16(status).unwrap(),
                        headers: HeaderMap::new(),
                        body: Bytes::new(),
                    }),
                }
            })
        }
    }

    /// What comes of `statuses`, and how many requests were made.
    async fn run(statuses: &[u16]) -> (Result<StatusCode, Undelivered>, u32) {
        let post = Scripted(Mutex::new(statuses.iter().rev().copied().collect()));
        let patience = Patience {
            timeout: Duration::from_millis(20),
            attempts_max: 2,
            may_go_better: delivery::webhook_may_recover,
        };
        let mut requests = 0;
        let result = deliver(&post, patience, || {
            requests += 1;
            Request::new(Bytes::new())
        })
        .await;
        (result.map(|reply| reply.status), requests)
    }

    #[tokio::test]
    async fn it_is_sent_until_it_has_arrived() {
        assert_eq!(run(&[503, 202]).await, (Ok(StatusCode::ACCEPTED), 2));
        assert_eq!(run(&[0, 200]).await, (Ok(StatusCode::OK), 2));
    }

    #[tokio::test]
    async fn a_refusal_is_believed_at_once() {
        assert_eq!(run(&[400, 200]).await, (Err(Undelivered::Refused(StatusCode::BAD_REQUEST)), 1));
    }

    #[tokio::test]
    async fn a_receiver_that_hangs_or_fails_is_given_up() {
        assert_eq!(run(&[]).await, (Err(Undelivered::Unanswered("no answer in time".to_owned())), 2));
        assert_eq!(run(&[503, 502, 200]).await, (Err(Undelivered::Refused(StatusCode::BAD_GATEWAY)), 2));
    }
}
