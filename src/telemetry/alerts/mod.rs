//! Alerts on their way to a webhook: a bounded queue and one task that sends, patiently and in order.
//!
//! In a fleet, an alert that all of its gateways find is told by the one that claims it; the others watch for a while whether it does.
//!
//! What is worth an alert is found by [`crate::gateway::alarms`]; when it is told is decided by [`crate::policy::alerts`]. What
//! other parts notice meanwhile, such as a refused configuration, they leave in [`signals`].

mod format;

use std::{
    collections::{BTreeSet, VecDeque},
    pin::Pin,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use http::StatusCode;
use jiff::Timestamp;
use tokio::{
    sync::mpsc,
    task::JoinHandle,
    time::{Instant, sleep},
};

use crate::{
    policy::{
        alerts::{Message, State, Webhook},
        delivery,
    },
    record::{Outcome, Record},
    telemetry::{
        metrics,
        post::{self, Patience, Post},
    },
};

/// Alerts that may wait for a receiver that is slow or away.
const QUEUE_MAX: usize = 256;
/// Refused configurations that are remembered.
const REFUSALS_MAX: usize = 20;
/// About four minutes in all: a receiver that restarts is back by then.
const PATIENCE: Patience =
    Patience { timeout: Duration::from_secs(10), attempts_max: 10, may_go_better: delivery::webhook_may_recover };
/// How often it is asked whether an alert that was left to another gateway is to be told by this one after all.
const ASK_AGAIN: Duration = Duration::from_secs(2);
/// For how long: until whoever claimed it has delivered it, given it up, or lost the claim by not being heard of.
const WATCHED: Duration = Duration::from_mins(8);

// === what goes out ===

/// One message and where it comes from.
#[derive(Debug, Clone)]
struct Alert {
    /// The same at every attempt.
    id: String,
    /// This gateway.
    source: Arc<str>,
    message: Message,
}

/// An answer, some time later; or why nobody knows.
pub type Asking<'a, T> = Pin<Box<dyn Future<Output = Result<T, String>> + Send + 'a>>;

/// Decides which gateway of a fleet tells of what all of them find.
pub trait Claims: Send + Sync {
    /// Whether this gateway tells that `alert` (a condition's key) is in `state`. It is repeated after `repeat`.
    fn claim<'a>(&'a self, alert: &'a str, state: State, repeat: Duration) -> Asking<'a, bool>;

    /// Whether this gateway tells it in the place of one that had claimed it, and could not or was not heard of again.
    fn take_over<'a>(&'a self, alert: &'a str, repeat: Duration) -> Asking<'a, bool>;

    /// Says what became of an alert that this gateway claimed. What was not delivered can be taken over.
    fn settle<'a>(&'a self, alert: &'a str, is_delivered: bool, repeat: Duration) -> Asking<'a, ()>;
}

/// An alert on its way.
#[derive(Debug)]
struct Waiting {
    webhook: Arc<Webhook>,
    alert: Alert,
    /// After which it is repeated.
    repeat: Duration,
}

/// Takes alerts and never waits.
#[derive(Debug, Clone)]
pub struct Outbox {
    queue: mpsc::Sender<Waiting>,
    waiting: Arc<AtomicUsize>,
    source: Arc<str>,
}

impl Outbox {
    /// Starts the task that sends, which ends when the last clone of the outbox is gone and all is sent. `source` is this gateway. With
    /// `claims`, what the whole fleet finds is told by one of its gateways.
    #[must_use]
    pub fn start(post: Arc<dyn Post>, source: Arc<str>, claims: Option<Arc<dyn Claims>>) -> (Outbox, JoinHandle<()>) {
        let (queue, alerts) = mpsc::channel(QUEUE_MAX);
        let outbox = Outbox { queue, waiting: Arc::default(), source };
        let sender = Sender { post, claims, left: VecDeque::new() };
        let task = tokio::spawn(sender.send_all(alerts, outbox.waiting.clone()));
        (outbox, task)
    }

    /// Alerts that have not arrived yet.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.waiting.load(Ordering::Acquire)
    }

    /// Writes `message` to the log, and has it sent where there is somebody to send it to. It will be told again after `repeat`.
    pub fn tell(&self, webhook: Option<&Arc<Webhook>>, message: Message, repeat: Duration) {
        log(&message);
        let Some(webhook) = webhook else { return };
        let alert = Alert { id: uuid::Uuid::now_v7().to_string(), source: self.source.clone(), message };
        self.waiting.fetch_add(1, Ordering::AcqRel);
        if self.queue.try_send(Waiting { webhook: webhook.clone(), alert, repeat }).is_err() {
            self.waiting.fetch_sub(1, Ordering::AcqRel);
            tracing::error!("an alert was dropped: {QUEUE_MAX} wait for a receiver that does not take them");
            metrics::alert("dropped");
        }
    }
}

/// The line that is there whether or not anybody receives alerts.
fn log(message: &Message) {
    if message.superseded {
        return;
    }
    let condition = &message.condition;
    let (key, kind, severity) = (condition.key(), condition.kind.label(), condition.severity.label());
    let state = message.state.label();
    match message.state {
        State::Resolved => {
            tracing::info!(
                alert.key = key,
                alert.kind = kind,
                alert.state = state,
                "alert over: {}",
                condition.summary
            );
        }
        State::Raised | State::Repeated => tracing::warn!(
            alert.key = key,
            alert.kind = kind,
            alert.state = state,
            alert.severity = severity,
            alert.mend = condition.mend,
            "alert: {}",
            condition.summary
        ),
    }
}

/// Sends one alert after the other.
struct Sender {
    post: Arc<dyn Post>,
    claims: Option<Arc<dyn Claims>>,
    /// What other gateways have claimed, the oldest first.
    left: VecDeque<Left>,
}

/// An alert that another gateway has claimed.
struct Left {
    key: String,
    waiting: Waiting,
    watched_until: Instant,
}

impl Sender {
    /// Ends when no alert can come any more.
    async fn send_all(mut self, mut alerts: mpsc::Receiver<Waiting>, waiting: Arc<AtomicUsize>) {
        loop {
            tokio::select! {
                next = alerts.recv() => {
                    let Some(next) = next else { return };
                    self.take(next).await;
                    waiting.fetch_sub(1, Ordering::AcqRel);
                }
                () = sleep(ASK_AGAIN), if !self.left.is_empty() => self.ask_again().await,
            }
        }
    }

    /// Tells an alert or leaves it to another gateway. While nobody knows whose it is, it is told: twice is better than never.
    async fn take(&mut self, next: Waiting) {
        let condition = &next.alert.message.condition;
        let Some(claims) = self.claims.clone().filter(|_| condition.is_the_fleets()) else {
            self.send(&next).await;
            return;
        };
        let key = condition.key();
        // This is the last word on it.
        self.left.retain(|left| left.key != key);
        match claims.claim(&key, next.alert.message.state, next.repeat).await {
            Ok(true) => self.tell(&*claims, &key, &next).await,
            Ok(false) => {
                metrics::alert("left");
                self.watch(key, next);
            }
            Err(error) => {
                tracing::warn!(
                    alert.key = key,
                    error,
                    "the store does not say who tells of an alert; it may be told twice"
                );
                self.send(&next).await;
            }
        }
    }

    /// Tells what this gateway has claimed, and says whether it has arrived.
    async fn tell(&self, claims: &dyn Claims, key: &str, next: &Waiting) {
        let is_delivered = self.send(next).await;
        if next.alert.message.state == State::Resolved {
            return;
        }
        if let Err(error) = claims.settle(key, is_delivered, next.repeat).await {
            tracing::warn!(
                alert.key = key,
                error,
                "the store does not take what became of an alert; it may be told twice"
            );
        }
    }

    /// Remembers what another gateway tells, unless nothing is lost with it.
    fn watch(&mut self, key: String, waiting: Waiting) {
        if waiting.alert.message.state == State::Resolved {
            return;
        }
        if self.left.len() >= QUEUE_MAX {
            self.left.pop_front();
        }
        self.left.push_back(Left { key, waiting, watched_until: Instant::now() + WATCHED });
    }

    /// Takes over what other gateways have claimed and not delivered.
    async fn ask_again(&mut self) {
        let Some(claims) = self.claims.clone() else { return };
        let mut is_away = false;
        for left in std::mem::take(&mut self.left) {
            // Of a store that does not answer, one question at a time is enough.
            let answer = if is_away { Ok(false) } else { claims.take_over(&left.key, left.waiting.repeat).await };
            is_away |= answer.is_err();
            if answer == Ok(true) {
                tracing::info!(
                    alert.key = left.key,
                    "an alert that another gateway did not deliver is told by this one"
                );
                self.tell(&*claims, &left.key, &left.waiting).await;
            } else if Instant::now() < left.watched_until {
                self.left.push_back(left);
            }
        }
    }

    /// Whether it has arrived, as far as there is anything to send.
    async fn send(&self, next: &Waiting) -> bool {
        let Waiting { webhook, alert, .. } = next;
        if format::request(webhook, alert, Timestamp::now()).is_none() {
            return true;
        }
        // Signed anew each time, since receivers refuse old signatures.
        let request = || format::request(webhook, alert, Timestamp::now()).expect("it was one just now");
        let delivered = post::deliver(&*self.post, PATIENCE, request).await;
        metrics::alert(if delivered.is_ok() { "sent" } else { "failed" });
        if let Err(error) = &delivered {
            let key = alert.message.condition.key();
            tracing::error!(alert.key = key, %error, "an alert could not be delivered; look at `alerts:`");
        }
        delivered.is_ok()
    }
}

// === what other parts notice ===

/// What other parts noticed: it stands until they say otherwise.
#[derive(Debug, Default)]
pub struct Signals {
    refused: Mutex<Option<Arc<str>>>,
    refusals: Mutex<VecDeque<RefusedConfiguration>>,
    rejecting: Mutex<BTreeSet<Arc<str>>>,
    /// Whether `rejecting` holds any, so that a call that went well takes no lock.
    any_rejecting: AtomicBool,
}

/// A configuration that was refused.
#[derive(Debug, Clone)]
pub struct RefusedConfiguration {
    /// When.
    pub at: Timestamp,
    /// Why. Never holds a secret.
    pub reason: Arc<str>,
}

static SIGNALS: Signals = Signals {
    refused: Mutex::new(None),
    refusals: Mutex::new(VecDeque::new()),
    rejecting: Mutex::new(BTreeSet::new()),
    any_rejecting: AtomicBool::new(false),
};

/// The signals of this process.
#[must_use]
pub fn signals() -> &'static Signals {
    &SIGNALS
}

impl Signals {
    /// A changed configuration was refused, for this reason; `None`: one was taken.
    pub fn configuration(&self, refused: Option<&str>) {
        let reason: Option<Arc<str>> = refused.map(Arc::from);
        let before = std::mem::replace(&mut *lock(&self.refused), reason.clone());
        if let Some(reason) = reason.filter(|reason| before.as_ref() != Some(reason)) {
            let mut refusals = lock(&self.refusals);
            refusals.push_front(RefusedConfiguration { at: Timestamp::now(), reason });
            refusals.truncate(REFUSALS_MAX);
        }
    }

    /// The last configurations that were refused since the process began, the latest first.
    #[must_use]
    pub fn refusals(&self) -> Vec<RefusedConfiguration> {
        lock(&self.refusals).iter().cloned().collect()
    }

    /// Why the configuration on disk does not serve.
    #[must_use]
    pub fn refused(&self) -> Option<Arc<str>> {
        lock(&self.refused).clone()
    }

    /// Learns from a finished call whether its provider takes the key that it was called with.
    pub fn call_ended(&self, record: &Record) {
        let rejected = record.status == StatusCode::UNAUTHORIZED && record.outcome == Outcome::UpstreamError;
        if rejected {
            lock(&self.rejecting).insert(record.provider.clone());
            self.any_rejecting.store(true, Ordering::Release);
        } else if record.outcome == Outcome::Ok && self.any_rejecting.load(Ordering::Acquire) {
            let mut rejecting = lock(&self.rejecting);
            rejecting.remove(&record.provider);
            self.any_rejecting.store(!rejecting.is_empty(), Ordering::Release);
        }
    }

    /// Providers whose last word was that the key is wrong.
    #[must_use]
    pub fn rejecting(&self) -> Vec<Arc<str>> {
        if !self.any_rejecting.load(Ordering::Acquire) {
            return Vec::new();
        }
        lock(&self.rejecting).iter().cloned().collect()
    }
}

fn lock<T>(of: &Mutex<T>) -> MutexGuard<'_, T> {
    of.lock().unwrap_or_else(PoisonError::into_inner)
}
