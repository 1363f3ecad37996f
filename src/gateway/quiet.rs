//! A future that hardly ever has something to say, polled only when it has.

use std::{
    future::Future,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, Wake, Waker},
};

/// Wraps the signals of shutdown beside a connection: each call wakes its connection's task several times, and polling a
/// cancellation token takes two locks that all connections share.
pub(super) struct Quiet<F> {
    inner: Pin<Box<F>>,
    bell: Option<Arc<Bell>>,
}

/// What the inner future wakes.
struct Bell {
    rung: AtomicBool,
    task: Waker,
}

impl<F: Future> Quiet<F> {
    pub(super) fn new(inner: F) -> Quiet<F> {
        Quiet { inner: Box::pin(inner), bell: None }
    }
}

impl<F: Future> Future for Quiet<F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        let bell = match &self.bell {
            Some(bell) if bell.task.will_wake(cx.waker()) => {
                if !bell.rung.swap(false, Ordering::AcqRel) {
                    return Poll::Pending;
                }
                bell.clone()
            }
            _ => Arc::new(Bell { rung: AtomicBool::new(false), task: cx.waker().clone() }),
        };
        self.bell = Some(bell.clone());
        self.inner.as_mut().poll(&mut Context::from_waker(&Waker::from(bell)))
    }
}

impl Wake for Bell {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.rung.store(true, Ordering::Release);
        self.task.wake_by_ref();
    }
}

#[cfg(test)]
mod tests {
    use std::{cell::Cell, pin::pin};

    use futures_util::FutureExt;
    use tokio_util::sync::CancellationToken;

    use super::*;

    #[tokio::test]
    async fn the_inner_future_is_polled_again_only_when_it_woke_the_task() {
        let (token, polls) = (CancellationToken::new(), Cell::new(0));
        let mut cancelled = pin!(token.cancelled());
        let counted = std::future::poll_fn(|cx| {
            polls.set(polls.get() + 1);
            cancelled.as_mut().poll(cx)
        });
        let mut quiet = pin!(Quiet::new(counted));
        for _ in 0..3 {
            assert!(quiet.as_mut().now_or_never().is_none());
        }
        assert_eq!(polls.get(), 1);
        token.cancel();
        quiet.await;
        assert_eq!(polls.get(), 2);
    }

    #[tokio::test]
    async fn another_task_is_woken_too() {
        let token = CancellationToken::new();
        let waited = token.clone();
        let mut quiet = Quiet::new(async move { waited.cancelled().await });
        assert!((&mut quiet).now_or_never().is_none());
        let elsewhere = tokio::spawn(quiet);
        tokio::task::yield_now().await;
        token.cancel();
        elsewhere.await.unwrap();
    }
}
