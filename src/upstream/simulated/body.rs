//! The body of a simulated reply: events that come one after the other at a pace, and break off where asked.

use std::{
    collections::VecDeque,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use tokio::time::{Instant, Sleep};

/// The provider broke off, as asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("simulated provider cut the connection")]
pub struct SimError;

/// One event of a stream, or a whole reply.
#[derive(Debug)]
pub(super) struct Event {
    bytes: Bytes,
    /// Whether it carries output, and so takes its time and counts for a cut.
    pub(super) is_piece: bool,
}

impl Event {
    /// Output.
    pub(super) fn piece(bytes: impl Into<Bytes>) -> Event {
        Event { bytes: bytes.into(), is_piece: true }
    }

    /// What frames the output.
    pub(super) fn other(bytes: impl Into<Bytes>) -> Event {
        Event { bytes: bytes.into(), is_piece: false }
    }
}

/// Body of a simulated reply.
#[derive(Debug)]
pub struct SimBody {
    events: VecDeque<Event>,
    /// Time between two pieces.
    pace: Duration,
    /// Pieces until the cut.
    pieces_left: Option<usize>,
    /// Bytes in all, where they are known beforehand.
    length: Option<u64>,
    /// When the next piece is due.
    due: Option<Pin<Box<Sleep>>>,
}

impl SimBody {
    pub(super) fn stream(events: Vec<Event>, pace: Duration, cut: Option<usize>) -> SimBody {
        SimBody { events: events.into(), pace, pieces_left: cut, length: None, due: None }
    }

    /// A body of known length; one that is cut ends after half of it.
    pub(super) fn whole(events: Vec<Event>, cut: Option<usize>) -> SimBody {
        let length = events.iter().map(|event| event.bytes.len() as u64).sum();
        let mut body = SimBody { length: Some(length), ..SimBody::stream(events, Duration::ZERO, None) };
        if cut.is_some() {
            body.halve();
        }
        body
    }

    fn halve(&mut self) {
        self.pieces_left = Some(0);
        for event in &mut self.events {
            event.bytes.truncate(event.bytes.len() / 2);
        }
        self.events.push_back(Event::piece(Bytes::new()));
    }

    fn is_cut(&self) -> bool {
        self.pieces_left == Some(0) && self.events.front().is_some_and(|event| event.is_piece)
    }

    /// Ready once the next piece is due. Dues are counted from each other, not from now, so that the pace holds.
    fn poll_due(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let paced = !self.pace.is_zero() && self.events.front().is_some_and(|event| event.is_piece);
        if !paced {
            return Poll::Ready(());
        }
        let pace = self.pace;
        let due = self.due.get_or_insert_with(|| Box::pin(tokio::time::sleep(pace)));
        ready!(due.as_mut().poll(cx));
        let next: Instant = due.deadline() + pace;
        due.as_mut().reset(next);
        Poll::Ready(())
    }
}

impl Body for SimBody {
    type Data = Bytes;
    type Error = SimError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, SimError>>> {
        if self.is_cut() {
            self.events.clear();
            return Poll::Ready(Some(Err(SimError)));
        }
        ready!(self.poll_due(cx));
        let Some(event) = self.events.pop_front() else {
            return Poll::Ready(None);
        };
        if let Some(left) = self.pieces_left.as_mut().filter(|_| event.is_piece) {
            *left -= 1;
        }
        if let Some(length) = &mut self.length {
            *length = length.saturating_sub(event.bytes.len() as u64);
        }
        Poll::Ready(Some(Ok(Frame::data(event.bytes))))
    }

    fn is_end_stream(&self) -> bool {
        self.events.is_empty()
    }

    fn size_hint(&self) -> SizeHint {
        self.length.map(SizeHint::with_exact).unwrap_or_default()
    }
}
