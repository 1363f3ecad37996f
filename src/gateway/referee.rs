//! Stops what surely breaks its guardrails: a variant of an experiment, whose users go back to the control, or a roll-out.
//!
//! Every gateway of a fleet looks; whoever is first acts, and the others find it done. What the evidence says is
//! [`crate::analysis`]'s to tell.

use std::{pin::Pin, sync::Arc};

use tokio::time::sleep;

use super::registrar::{ChangeError, Registrar, Wanted};
use crate::{
    analysis::{Analyst, Course},
    config::Snapshot,
    policy::experiment::{Experiment, Phase},
    registry::{Command, Deed, Kind, Refusal, Rollout, TrialDeed, What},
};

/// What the history and the audit log call it.
pub const NAME: &str = "gateway";

/// What is looked at.
#[derive(Debug, Clone)]
pub enum Case {
    /// An experiment that runs and has guardrails.
    Experiment(Arc<Experiment>),
    /// A roll-out on its way that has guardrails.
    Rollout {
        /// Of what.
        kind: Kind,
        /// Of which.
        name: String,
        /// It.
        rollout: Box<Rollout>,
    },
}

/// Variants or versions that surely break a guardrail, and a sentence why.
pub type Breaches = Vec<(String, String)>;

/// Looks at the evidence in a case. What it cannot find out is no breach.
pub type Inspect = Box<dyn Fn(Arc<Snapshot>, Case) -> Pin<Box<dyn Future<Output = Breaches> + Send>> + Send + Sync>;

/// What the call log says.
#[must_use]
pub fn evidence(analyst: Analyst) -> Inspect {
    Box::new(move |snapshot, case| {
        let analyst = analyst.clone();
        Box::pin(async move {
            let found = match &case {
                Case::Experiment(experiment) => {
                    let trial = snapshot.registry.book.experiments.get(&*experiment.name);
                    let course = trial.map(Course::of).unwrap_or_default();
                    analyst.breaches(experiment, &course).await
                }
                Case::Rollout { kind, name, rollout } => {
                    let since_ms = began_ms(&snapshot, *kind, name);
                    analyst.rollout_breaches(*kind, name, rollout, since_ms).await
                }
            };
            found.unwrap_or_else(|trouble| {
                tracing::warn!(?trouble, "guardrails cannot be looked at: the call log does not answer");
                Breaches::new()
            })
        })
    })
}

/// When the roll-out that is on its way began: milliseconds since 1970.
fn began_ms(snapshot: &Snapshot, kind: Kind, name: &str) -> u64 {
    let shelf = snapshot.registry.book.shelves(kind).get(name);
    let events = shelf.into_iter().flat_map(|shelf| shelf.history.iter().rev());
    let began = events.into_iter().find(|event| event.what == What::RolloutStarted);
    began.and_then(|event| u64::try_from(event.at.as_millisecond()).ok()).unwrap_or_default()
}

/// Finds no breach in anything: where no calls are kept.
#[must_use]
pub fn no_evidence() -> Inspect {
    Box::new(|_, _| Box::pin(async { Breaches::new() }))
}

/// Never ends. How often it looks is `registry.guardrails_every`.
pub async fn run(registrar: Arc<Registrar>, inspect: Inspect) {
    loop {
        let snapshot = registrar.snapshot();
        for case in cases(&snapshot) {
            for (arm, reason) in inspect(snapshot.clone(), case.clone()).await {
                act(&registrar, &verdict(&case, &arm, &reason), &reason).await;
            }
        }
        let pause = snapshot.registry.guardrails_every;
        drop(snapshot);
        sleep(pause).await;
    }
}

async fn act(registrar: &Registrar, command: &Command, reason: &str) {
    match registrar.change(command, Wanted { who: NAME, reason, key: None }).await {
        Ok(changed) if changed.changed => {
            tracing::warn!(reason, revision = changed.revision, "a guardrail is broken: its cause was stopped");
        }
        // Another gateway, or somebody, was faster.
        Ok(_) | Err(ChangeError::Refused(Refusal::Conflict(_) | Refusal::NotFound(_))) => {}
        Err(error) => tracing::error!(%error, reason, "a guardrail is broken, and its cause cannot be stopped"),
    }
}

/// What there is to look at.
fn cases(snapshot: &Snapshot) -> Vec<Case> {
    let running =
        |experiment: &&Arc<Experiment>| experiment.phase == Phase::Running && !experiment.guardrails.is_empty();
    let experiments = snapshot.experiments.values().filter(running).cloned().map(Case::Experiment);
    let registry = &snapshot.registry;
    let shelves = [Kind::Models, Kind::Prompts]
        .into_iter()
        .flat_map(|kind| registry.book.shelves(kind).keys().map(move |name| (kind, name)));
    let rollouts = shelves.filter_map(|(kind, name)| {
        let rollout = registry.rollout(kind, name).filter(|rollout| has_guardrails(rollout))?.clone();
        Some(Case::Rollout { kind, name: name.clone(), rollout: Box::new(rollout) })
    });
    experiments.chain(rollouts).collect()
}

fn has_guardrails(rollout: &Rollout) -> bool {
    rollout.guardrails.as_array().is_some_and(|all| !all.is_empty())
        || rollout.guardrails.as_object().is_some_and(|all| !all.is_empty())
}

/// What is done about a breach.
fn verdict(case: &Case, arm: &str, reason: &str) -> Command {
    let (variant, reason) = (arm.to_owned(), reason.to_owned());
    match case {
        Case::Experiment(experiment) => {
            Command::Trial { name: experiment.name.to_string(), deed: TrialDeed::Halt { variant, reason } }
        }
        Case::Rollout { kind, name, .. } => {
            Command::To { kind: *kind, name: name.clone(), deed: Deed::AbortRollout { reason } }
        }
    }
}
