//! Ends HTTP/2 streams whose clients have stopped taking what they asked for.
//!
//! While a stream has no window hyper does not poll its body, so that no time limit in there is looked at: the stream's task has to
//! look itself. HTTP/1 is watched where its bytes are written, in [`super::framing`].

use std::{
    cell::Cell,
    future::Future,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use tokio::time::{Instant, Sleep, sleep_until};

tokio::task_local! {
    /// When this task's body gave something, if it has not been asked for more since.
    static GIVEN: Cell<Option<Instant>>;
}

/// Runs streams as tasks that end when their clients have made no room for more within this time.
#[derive(Debug, Clone)]
pub(super) struct Streams(pub(super) Duration);

/// A stream's work and the patience with its client.
struct Stream<F> {
    work: Pin<Box<F>>,
    limit: Duration,
    alarm: Option<Pin<Box<Sleep>>>,
}

/// A body that notes when it is waited for by nobody.
pub(super) struct Given<B>(pub(super) B);

impl<F> hyper::rt::Executor<F> for Streams
where
    F: Future<Output = ()> + Send + 'static,
{
    fn execute(&self, work: F) {
        tokio::spawn(GIVEN.scope(Cell::new(None), Stream { work: Box::pin(work), limit: self.0, alarm: None }));
    }
}

// === impl Stream ===

impl<F: Future<Output = ()>> Future for Stream<F> {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        if self.work.as_mut().poll(cx).is_ready() {
            return Poll::Ready(());
        }
        let Some(given) = GIVEN.with(Cell::get) else {
            self.alarm = None;
            return Poll::Pending;
        };
        let until = given + self.limit;
        let alarm = self.alarm.get_or_insert_with(|| Box::pin(sleep_until(until)));
        if alarm.deadline() != until {
            alarm.as_mut().reset(until);
        }
        alarm.as_mut().poll(cx)
    }
}

// === impl Given ===

impl<B: Body<Data = Bytes> + Unpin> Body for Given<B> {
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        let polled = Pin::new(&mut self.0).poll_frame(cx);
        let given = matches!(polled, Poll::Ready(Some(Ok(_)))).then(Instant::now);
        // Elsewhere than in a stream's task there is nothing to note.
        let _ = GIVEN.try_with(|cell| cell.set(given));
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.0.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.0.size_hint()
    }
}
