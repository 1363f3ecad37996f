//! What the call log sums up of arms, kept for a few seconds: it reads every call, and a page is looked at more often than calls come.
//!
//! A question that is asked again is answered with what is known, while it is counted anew. Never more than one count of the same
//! question runs at a time.

use std::{
    fmt,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use tokio::{sync::watch, time::timeout};

use crate::store::{
    ports::StoreError,
    records::{
        figures::{ArmFigures, ArmsQuery},
        ports::CallLog,
    },
};

/// What was counted is fresh for so long …
const FRESH: Duration = Duration::from_secs(2);
/// … or for so many times as long as counting took, whichever is longer: counting must not be all that a log does.
const FRESH_TIMES: u32 = 5;
/// Questions that are remembered.
const QUESTIONS_MAX: usize = 100;

/// What was counted.
#[derive(Debug)]
pub struct Counted {
    /// By arm.
    pub arms: Vec<ArmFigures>,
    at: Instant,
    took: Duration,
}

/// Why there are no figures.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Trouble {
    /// They are being counted.
    #[error("the calls are still being counted; ask again in a moment")]
    Counting,
    /// The log does not answer.
    #[error(transparent)]
    Store(#[from] StoreError),
}

type Answer = Result<Arc<Counted>, StoreError>;

/// Figures of a call log.
pub struct Figures {
    log: Arc<dyn CallLog>,
    questions: Arc<Mutex<Vec<Question>>>,
}

/// What was asked, the latest asked last.
struct Question {
    query: ArmsQuery,
    latest: Option<Arc<Counted>>,
    running: Option<watch::Receiver<Option<Answer>>>,
}

/// How far a question is.
enum Standing {
    Fresh(Arc<Counted>),
    Running(Option<Arc<Counted>>, watch::Receiver<Option<Answer>>),
}

impl fmt::Debug for Figures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Figures").finish_non_exhaustive()
    }
}

impl Counted {
    /// How long ago it was counted.
    #[must_use]
    pub fn age(&self) -> Duration {
        self.at.elapsed()
    }

    fn is_fresh(&self) -> bool {
        self.age() < FRESH.max(self.took * FRESH_TIMES)
    }
}

impl Figures {
    /// Asks `log`.
    #[must_use]
    pub fn new(log: Arc<dyn CallLog>) -> Figures {
        Figures { log, questions: Arc::default() }
    }

    /// What the log says to `query`; what it said before, where counting takes longer than `patience`.
    ///
    /// # Errors
    /// When the log does not answer, or says nothing within `patience` to what was never asked before.
    pub async fn arms(&self, query: ArmsQuery, patience: Duration) -> Result<Arc<Counted>, Trouble> {
        let (latest, mut running) = match self.standing(query) {
            Standing::Fresh(counted) => return Ok(counted),
            Standing::Running(latest, running) => (latest, running),
        };
        let answer = match timeout(patience, running.wait_for(Option::is_some)).await {
            Ok(Ok(answer)) => answer.clone(),
            Ok(Err(_)) => Some(Err(StoreError::Unavailable("counting was broken off".to_owned()))),
            Err(_) => None,
        };
        match (answer, latest) {
            (Some(answer), _) => Ok(answer?),
            (None, Some(latest)) => Ok(latest),
            (None, None) => Err(Trouble::Counting),
        }
    }

    fn standing(&self, query: ArmsQuery) -> Standing {
        let mut questions = self.questions.lock().unwrap_or_else(PoisonError::into_inner);
        let known = questions.iter().position(|question| question.query == query);
        let mut question = match known {
            Some(at) => questions.remove(at),
            None => Question { query, latest: None, running: None },
        };
        let standing = match (&question.latest, &question.running) {
            (Some(counted), _) if counted.is_fresh() => Standing::Fresh(counted.clone()),
            (latest, Some(running)) => Standing::Running(latest.clone(), running.clone()),
            (latest, None) => {
                let running = self.begin(question.query.clone());
                question.running = Some(running.clone());
                Standing::Running(latest.clone(), running)
            }
        };
        questions.push(question);
        let surplus = questions.len().saturating_sub(QUESTIONS_MAX);
        questions.drain(..surplus);
        standing
    }

    /// Counts in the background, whoever may go away meanwhile.
    fn begin(&self, query: ArmsQuery) -> watch::Receiver<Option<Answer>> {
        let (told, running) = watch::channel(None);
        let (log, questions) = (self.log.clone(), self.questions.clone());
        tokio::spawn(async move {
            let began = Instant::now();
            let answer = log.arms(query.clone()).await;
            let took = began.elapsed();
            let answer = answer.map(|arms| Arc::new(Counted { arms, at: Instant::now(), took }));
            let mut questions = questions.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(question) = questions.iter_mut().find(|question| question.query == query) {
                question.running = None;
                question.latest = answer.as_ref().ok().cloned().or_else(|| question.latest.take());
            }
            drop(questions);
            told.send_replace(Some(answer));
        });
        running
    }
}
