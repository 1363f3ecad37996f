//! The stack, one layer a file. Each takes one stage of a call and hands on the next; none names another.
//!
//! A layer is a [`Step`]: facts in its fields, work in [`Step::handle`], what it takes and hands on in its types. [`layer`] makes
//! a `tower::Layer` of it, so that `gateway/stack.rs` reads as a list and the compiler refuses a wrong order. A layer that waits
//! for nothing, and has nothing to do with the reply, is a [`Turn`]: it stands between two others without a future of its own.
//!
//! A layer's service is a `&'static` reference: the stack is built once per process and lives as long as it does, so handing
//! it to a call's future copies a pointer, where cloning ten nested services would bounce as many reference counts between
//! cores for each call.

pub mod auth;
pub mod budget;
pub mod feedback;
pub mod in_flight;
pub mod limits;
pub mod local;
pub mod prompt;
pub mod quote;
pub mod read;
pub mod record;
pub mod respond;
pub mod route;
pub mod variant;

use std::{
    future::Future,
    pin::Pin,
    task::{Context, Poll},
};

use tower::{Layer, Service};

use crate::{
    call::{Answer, Failure, Reply},
    error::GatewayError,
};

/// What every layer's service returns: one boxed future (about 40 ns).
pub type Answering = Pin<Box<dyn Future<Output = Answer> + Send>>;

/// What stands further in: anything that answers a `Stage`.
pub trait Inner<Stage>:
    Service<Stage, Response = Reply, Error = Failure, Future = Answering> + Copy + Send + Sync + 'static
{
}

impl<Stage, S> Inner<Stage> for S where
    S: Service<Stage, Response = Reply, Error = Failure, Future = Answering> + Copy + Send + Sync + 'static
{
}

/// One layer's work.
pub trait Step: Send + Sync + 'static {
    /// The stage that it takes.
    type In: Send + 'static;
    /// The stage that it hands on.
    type Next: Send + 'static;

    /// Answers `input`, as a rule by handing on to `inner`.
    fn handle<S: Inner<Self::Next>>(&'static self, input: Self::In, inner: S) -> impl Future<Output = Answer> + Send;

    /// Begins the work. A step that seldom has to wait, and does nothing with the reply, hands on by itself what it need not wait
    /// for: a future less is memory less that each call fills and frees.
    fn begin<S: Inner<Self::Next>>(&'static self, input: Self::In, inner: S) -> Answering {
        Box::pin(self.handle(input, inner))
    }
}

/// A layer's work where nothing is waited for and the reply goes back as it is: a function from one stage to the next.
pub trait Turn: Send + Sync + 'static {
    /// The stage that it takes.
    type In: Send + 'static;
    /// The stage that it hands on.
    type Next: Send + 'static;

    /// The next stage.
    ///
    /// # Errors
    /// [`Early`] where the call goes no further.
    fn turn(&self, input: Self::In) -> Result<Self::Next, Early>;
}

/// An answer from a [`Turn`]: what stands further in is not asked.
pub struct Early(Answering);

impl std::fmt::Debug for Early {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Early")
    }
}

impl From<Reply> for Early {
    fn from(reply: Reply) -> Early {
        Early(Box::pin(std::future::ready(Ok(reply))))
    }
}

impl From<Failure> for Early {
    fn from(failure: Failure) -> Early {
        Early(Box::pin(std::future::ready(Err(failure))))
    }
}

impl From<GatewayError> for Early {
    fn from(error: GatewayError) -> Early {
        Early(Box::pin(std::future::ready(Err(error.into()))))
    }
}

impl From<Answering> for Early {
    fn from(answering: Answering) -> Early {
        Early(answering)
    }
}

/// A [`Step`] as a `tower::Layer`.
#[derive(Debug)]
pub struct StepLayer<L: 'static>(&'static L);

/// A [`Step`] before what stands further in.
#[derive(Debug)]
pub struct Stepped<L: 'static, S> {
    step: &'static L,
    inner: S,
}

/// A [`Turn`] as a `tower::Layer`.
#[derive(Debug)]
pub struct TurnLayer<L: 'static>(&'static L);

/// A [`Turn`] before what stands further in.
#[derive(Debug)]
pub struct Turned<L: 'static, S> {
    turn: &'static L,
    inner: S,
}

/// Makes a `tower::Layer` of a step. The step is kept for the life of the process.
pub fn layer<L: Step>(step: L) -> StepLayer<L> {
    StepLayer(Box::leak(Box::new(step)))
}

/// Makes a `tower::Layer` of a turn. The turn is kept for the life of the process.
pub fn turn<L: Turn>(turn: L) -> TurnLayer<L> {
    TurnLayer(Box::leak(Box::new(turn)))
}

// The bound on `S` stands here too, so that rustc names the layer that stands in the wrong place.
impl<L: Step, S: Inner<L::Next>> Layer<S> for StepLayer<L> {
    type Service = Stepped<L, S>;

    fn layer(&self, inner: S) -> Stepped<L, S> {
        Stepped { step: self.0, inner }
    }
}

impl<L, S: Copy> Clone for Stepped<L, S> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<L, S: Copy> Copy for Stepped<L, S> {}

impl<L: Step, S: Inner<L::Next>> Service<L::In> for Stepped<L, S> {
    type Response = Reply;
    type Error = Failure;
    type Future = Answering;

    /// Always ready: load is shed by `in_flight.rs`, for all calls in one place.
    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Failure>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, input: L::In) -> Answering {
        self.step.begin(input, self.inner)
    }
}

impl<L: Turn, S: Inner<L::Next>> Layer<S> for TurnLayer<L> {
    type Service = Turned<L, S>;

    fn layer(&self, inner: S) -> Turned<L, S> {
        Turned { turn: self.0, inner }
    }
}

impl<L, S: Copy> Clone for Turned<L, S> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<L, S: Copy> Copy for Turned<L, S> {}

impl<L: Turn, S: Inner<L::Next>> Service<L::In> for Turned<L, S> {
    type Response = Reply;
    type Error = Failure;
    type Future = Answering;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Failure>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, input: L::In) -> Answering {
        match self.turn.turn(input) {
            Ok(next) => self.inner.call(next),
            Err(Early(answering)) => answering,
        }
    }
}
