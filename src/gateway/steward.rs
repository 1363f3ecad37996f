//! Does in the registry what is due: planned deployments, stages of roll-outs, seals for what serves for the first time, and
//! with which weights experiments of files run.
//!
//! Every gateway of a fleet looks; whoever is first does it, and the others find it done. Nothing is asked of the store while nothing
//! is due: what serves says what will be.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
    time::Duration,
};

use jiff::Timestamp;
use serde_json::Value;
use tokio::time::sleep;

use super::registrar::{ChangeError, Registrar, Wanted};
use crate::{
    config::registered::{ChangedVersions, InRegistry},
    registry::{Command, Deed, Kind, NotedTrial, Refusal, Rollout, SealedVersion, Trial, TrialState, partials},
};

/// How often it looks.
const TICK: Duration = Duration::from_millis(250);
/// How long it lets a store be that is away.
const AGAIN: Duration = Duration::from_secs(5);
/// What the history and the audit log call it.
const NAME: &str = "steward";

/// What is thought of a roll-out that is on its way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// It goes on as planned.
    Continue,
    /// It stays at its stage, even when that is over.
    Hold,
    /// Everybody goes back, for this reason.
    Abort(String),
}

/// A roll-out and whose it is, to be judged.
#[derive(Debug, Clone, Copy)]
pub struct Judged<'a> {
    /// Of what.
    pub kind: Kind,
    /// Of which.
    pub name: &'a str,
    /// It.
    pub rollout: &'a Rollout,
}

/// Judges a roll-out at each look; must be quick.
pub type Judge = Box<dyn Fn(Judged<'_>) -> Verdict + Send + Sync>;

/// Never ends.
pub async fn run(registrar: Arc<Registrar>, judge: Judge) {
    let mut trouble: Option<ChangeError> = None;
    let mut said = HashMap::new();
    loop {
        let mut outcome = Ok(());
        let snapshot = registrar.snapshot();
        let noted = unsaid(&snapshot.registry, &said);
        let mut commands = due(&snapshot.registry, &judge, Timestamp::now());
        drop(snapshot);
        if !noted.is_empty() {
            commands.push(Command::Note { experiments: noted.clone() });
        }
        for command in commands {
            outcome = act(&registrar, &command).await;
            if outcome.is_err() {
                break;
            }
        }
        if outcome.is_ok() {
            said.extend(noted.into_iter().map(|noted| (noted.name, noted.weights)));
        }
        let pause = if outcome.is_ok() { TICK } else { AGAIN };
        note(&mut trouble, outcome.err());
        sleep(pause).await;
    }
}

async fn act(registrar: &Registrar, command: &Command) -> Result<(), ChangeError> {
    let reason = match command {
        Command::To { deed: Deed::AbortRollout { reason }, .. } => reason,
        _ => "",
    };
    match registrar.change(command, Wanted { who: NAME, reason, key: None }).await {
        Ok(changed) => {
            if let (true, Command::To { kind, name, .. }) = (changed.changed, command) {
                tracing::info!(
                    kind = kind.section(),
                    name,
                    version = changed.version,
                    revision = changed.revision,
                    "the registry went on as planned"
                );
            }
            Ok(())
        }
        // Somebody has just done something else with it.
        Err(ChangeError::Refused(Refusal::Conflict(_) | Refusal::NotFound(_))) => Ok(()),
        Err(error) => Err(error),
    }
}

/// One line per change of state.
fn note(trouble: &mut Option<ChangeError>, now: Option<ChangeError>) {
    match (&*trouble, &now) {
        (Some(_), None) => tracing::info!("the registry can be kept again"),
        (before, Some(error)) if before.as_ref() != Some(error) => {
            tracing::warn!(reason = %error, "what is due in the registry cannot be done");
        }
        _ => {}
    }
    *trouble = now;
}

/// What is to be done now.
fn due(registry: &InRegistry, judge: &Judge, now: Timestamp) -> Vec<Command> {
    let mut commands = Vec::new();
    let shelves = |kind| registry.book.shelves(kind).iter().map(move |(name, shelf)| (kind, name, shelf));
    for (kind, name, shelf) in shelves(Kind::Models).chain(shelves(Kind::Prompts)) {
        let to = |deed| Command::To { kind, name: name.clone(), deed };
        if let Some(scheduled) = shelf.scheduled.as_ref().filter(|scheduled| scheduled.at <= now) {
            commands.push(to(Deed::RunSchedule { version: scheduled.version.clone() }));
        }
        let Some(rollout) = registry.rollout(kind, name) else { continue };
        match judge(Judged { kind, name, rollout }) {
            Verdict::Abort(reason) => commands.push(to(Deed::AbortRollout { reason })),
            Verdict::Continue if rollout.is_due(now) => {
                commands.push(to(Deed::AdvanceRollout { stage: rollout.stage }))
            }
            Verdict::Continue | Verdict::Hold => {}
        }
    }
    let reseal = registry.changed_versions == ChangedVersions::Allow;
    let versions = unsealed(registry, reseal);
    if !versions.is_empty() {
        commands.push(Command::Seal { versions, reseal });
    }
    commands
}

/// Experiments of files that run with other weights than the book knows. Each is said once: gateways whose files differ for a while
/// would go on to correct each other.
fn unsaid(registry: &InRegistry, said: &HashMap<String, BTreeMap<String, f64>>) -> Vec<NotedTrial> {
    let nothing = Trial::default();
    let noted = |(name, definition): (&String, &Value)| {
        let trial = registry.book.experiments.get(name).unwrap_or(&nothing);
        let weights = trial.weights(definition);
        let is_known = trial.epochs.last().is_some_and(|epoch| epoch.weights == weights);
        let is_due = trial.state == TrialState::Running && !is_known && said.get(name) != Some(&weights);
        is_due.then(|| NotedTrial { name: name.clone(), weights })
    };
    registry.files.experiments.iter().filter_map(noted).collect()
}

/// Versions of files that serve without a seal, or with another one where that is allowed.
fn unsealed(registry: &InRegistry, reseal: bool) -> Vec<SealedVersion> {
    let all = [(Kind::Models, &registry.files.models), (Kind::Prompts, &registry.files.prompts)];
    let mut found = Vec::new();
    for (kind, name, declared) in
        all.into_iter().flat_map(|(kind, all)| all.iter().map(move |(name, one)| (kind, name, one)))
    {
        let seals = registry.shelf(kind, name).map(|shelf| &shelf.seals);
        for (version, sha256) in &declared.versions {
            let is_due = match seals.and_then(|seals| seals.get(version)) {
                None => true,
                Some(seal) => reseal && seal.sha256 != *sha256,
            };
            if is_due {
                let partials = declared.contents.get(version).map(partials).unwrap_or_default();
                let (name, version, sha256) = (name.clone(), version.clone(), sha256.clone());
                found.push(SealedVersion { kind, name, version, sha256, partials });
            }
        }
    }
    found
}
