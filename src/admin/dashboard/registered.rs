//! What the Models and Prompts pages show of the registry: where versions came from, what is live and since when, a roll-out, the
//! history; and the form in which an operator decides.

use std::collections::BTreeMap;

use axum::{
    Form,
    response::{IntoResponse, Redirect},
};
use http::StatusCode;
use serde::{Deserialize, Serialize};

use super::{
    super::{guard::Actor, paging::percent_encoded, problem::Problem},
    figures::milliseconds,
    visit::{Shown, Visit, word},
};
use crate::{
    config::registered::InRegistry,
    gateway::registrar::Wanted,
    registry::{Command, Declared, Deed, Event, Kind, Rollout, Scheduled, Shelf, What, compare_versions},
};

/// Events that a page shows; the API has all.
const EVENTS: usize = 20;
/// The longest reason, in bytes.
pub(super) const REASON_BYTES_MAX: usize = 1000;

/// What is known of one model or prompt.
#[derive(Debug, Serialize)]
pub(super) struct Standing {
    live: Option<String>,
    /// Whether a deployment says what is live, rather than the file.
    deployed: bool,
    live_since_ms: Option<u64>,
    deployed_by: Option<String>,
    reason: String,
    pinned: bool,
    can_roll_back: bool,
    versions: Vec<Origin>,
    rollout: Option<UnderWay>,
    planned: Option<Planned>,
    history: Vec<Past>,
}

/// Where a version came from.
#[derive(Debug, Serialize)]
struct Origin {
    name: String,
    live: bool,
    from_file: bool,
    since_ms: Option<u64>,
    by: Option<String>,
    description: String,
}

/// A roll-out on its way.
#[derive(Debug, Serialize)]
struct UnderWay {
    from: String,
    to: String,
    /// From 0 to 1.
    share: f64,
    /// From 1.
    stage: usize,
    stages: Vec<String>,
    since_ms: u64,
    by: String,
    reason: String,
}

/// A deployment that is due later.
#[derive(Debug, Serialize)]
struct Planned {
    version: String,
    at_ms: u64,
    by: String,
    reason: String,
}

/// Something that happened.
#[derive(Debug, Serialize)]
struct Past {
    at_ms: u64,
    by: String,
    what: What,
    version: String,
    from: Option<String>,
    /// From 0 to 1, in a roll-out.
    share: Option<f64>,
    reason: String,
}

/// A name that has versions, and none of them was ever live: nothing else is known of it.
#[derive(Debug, Serialize)]
pub(super) struct Waiting {
    name: String,
    registry: Standing,
}

/// What an operator decides.
#[derive(Debug, Deserialize)]
pub(super) struct Decision {
    name: String,
    action: Action,
    #[serde(default)]
    version: String,
    #[serde(default)]
    reason: String,
    /// The stage that was seen, from 1: who presses a button twice goes on once.
    #[serde(default)]
    stage: usize,
}

#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Action {
    Deploy,
    RollBack,
    Advance,
    Abort,
    CallOff,
}

impl Standing {
    pub(super) fn of(registry: &InRegistry, kind: Kind, name: &str) -> Standing {
        let nothing = Shelf::default();
        let shelf = registry.shelf(kind, name).unwrap_or(&nothing);
        let declared = registry.files.get(kind, name);
        let effective = shelf.effective(declared);
        let deployment = shelf.live.as_ref().filter(|_| effective.is_some_and(|live| live.deployed));
        let live = effective.map(|live| live.version);
        Standing {
            live: live.map(str::to_owned),
            deployed: deployment.is_some(),
            live_since_ms: deployment.map(|live| milliseconds(live.at)),
            deployed_by: deployment.map(|live| live.by.clone()),
            reason: deployment.map(|live| live.reason.clone()).unwrap_or_default(),
            pinned: declared.is_some_and(|declared| declared.pin),
            can_roll_back: !shelf.trail.is_empty() || registry.rollout(kind, name).is_some(),
            versions: origins(shelf, declared, live),
            rollout: registry.rollout(kind, name).map(UnderWay::of),
            planned: shelf.scheduled.as_ref().map(Planned::of),
            history: shelf.history.iter().rev().take(EVENTS).map(Past::of).collect(),
        }
    }
}

/// The newest first, and the live one before all.
fn origins(shelf: &Shelf, declared: Option<&Declared>, live: Option<&str>) -> Vec<Origin> {
    let registered = shelf.versions.iter().map(|(name, version)| Origin {
        name: name.clone(),
        live: live == Some(name),
        from_file: false,
        since_ms: Some(milliseconds(version.created_at)),
        by: Some(version.by.clone()),
        description: version.description.clone(),
    });
    let in_files = declared.into_iter().flat_map(|declared| declared.versions.keys());
    let in_files = in_files.filter(|name| !shelf.versions.contains_key(*name)).map(|name| Origin {
        name: name.clone(),
        live: live == Some(name),
        from_file: true,
        since_ms: shelf.seals.get(name).map(|seal| milliseconds(seal.at)),
        by: None,
        description: String::new(),
    });
    let mut all: Vec<Origin> = registered.chain(in_files).collect();
    all.sort_by(|one, other| other.live.cmp(&one.live).then_with(|| compare_versions(&other.name, &one.name)));
    all
}

impl UnderWay {
    fn of(rollout: &Rollout) -> UnderWay {
        UnderWay {
            from: rollout.from.clone(),
            to: rollout.to.clone(),
            share: rollout.weight() / 100.0,
            stage: rollout.stage + 1,
            stages: rollout.stages.iter().map(ToString::to_string).collect(),
            since_ms: milliseconds(rollout.stage_since),
            by: rollout.by.clone(),
            reason: rollout.reason.clone(),
        }
    }
}

impl Planned {
    fn of(scheduled: &Scheduled) -> Planned {
        Planned {
            version: scheduled.version.clone(),
            at_ms: milliseconds(scheduled.at),
            by: scheduled.by.clone(),
            reason: scheduled.reason.clone(),
        }
    }
}

impl Past {
    fn of(event: &Event) -> Past {
        Past {
            at_ms: milliseconds(event.at),
            by: event.by.clone(),
            what: event.what,
            version: event.version.clone(),
            from: event.from.clone(),
            share: event.weight.map(|weight| weight / 100.0),
            reason: event.reason.clone(),
        }
    }
}

/// Names in the registry that nothing serves under.
pub(super) fn waiting(registry: &InRegistry, kind: Kind, serves: impl Fn(&str) -> bool) -> Vec<Waiting> {
    let names: BTreeMap<_, _> = registry.book.shelves(kind).iter().filter(|(name, _)| !serves(name)).collect();
    let has_versions = names.into_iter().filter(|(_, shelf)| !shelf.versions.is_empty());
    has_versions.map(|(name, _)| Waiting { name: name.clone(), registry: Standing::of(registry, kind, name) }).collect()
}

pub(super) async fn decide_model(visit: Visit, actor: Actor, form: Form<Decision>) -> Shown {
    decide(&visit, &actor, Kind::Models, form.0).await
}

pub(super) async fn decide_prompt(visit: Visit, actor: Actor, form: Form<Decision>) -> Shown {
    decide(&visit, &actor, Kind::Prompts, form.0).await
}

/// Does it, and leads back to the page.
async fn decide(visit: &Visit, actor: &Actor, kind: Kind, decision: Decision) -> Shown {
    let Decision { name, action, version, reason, stage } = decision;
    let what = word("That was not done.");
    if reason.len() > REASON_BYTES_MAX {
        return Err(visit.sorry(StatusCode::UNPROCESSABLE_ENTITY, what, "a reason has at most 1000 bytes"));
    }
    let deed = match action {
        Action::Deploy => Deed::Deploy { version, reason: reason.clone() },
        Action::RollBack => Deed::Rollback { reason: reason.clone() },
        Action::Advance => Deed::AdvanceRollout { stage: stage.saturating_sub(1) },
        Action::Abort => Deed::AbortRollout { reason: reason.clone() },
        Action::CallOff => Deed::CancelSchedule,
    };
    let place = percent_encoded(&name);
    let command = Command::To { kind, name, deed };
    let wanted = Wanted { who: &actor.0, reason: &reason, key: None };
    if let Err(error) = visit.admin.shared.registrar.change(&command, wanted).await {
        let why = error.to_string();
        return Err(visit.sorry(Problem::from(error).into_response().status(), what, &why));
    }
    let language = visit.parameter("lang").map(|tag| format!("?lang={}", percent_encoded(tag))).unwrap_or_default();
    Ok(Redirect::to(&format!("/{}{language}#{place}", kind.section())).into_response())
}
