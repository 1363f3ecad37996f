//! Experiments: what each decided, who is in which variant, what each variant's calls used; and the form in which an operator decides.

use std::collections::HashMap;

use axum::{
    Form,
    response::{IntoResponse, Redirect},
};
use futures_util::future::try_join_all;
use http::StatusCode;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{
    super::{guard::Actor, paging::percent_encoded, problem::Problem},
    findings,
    registered::REASON_BYTES_MAX,
    sums::{Range, Sums},
    visit::{Shown, Sorry, Visit, word},
};
use crate::{
    analysis::{ALPHA, Course, figures::Trouble},
    config::{Snapshot, snapshot::Role},
    gateway::registrar::Wanted,
    policy::{
        experiment::{Experiment, Phase, Unit, Variant},
        stats::power::{self, Baseline, Question},
    },
    registry::{Command, TrialDeed},
    store::{
        ports::StoreError,
        records::ports::{Dimension, UsageQuery},
    },
};

#[derive(Debug, Serialize)]
struct Entry {
    name: String,
    model: String,
    unit: String,
    phase: &'static str,
    control: String,
    variants: Vec<Arm>,
    /// `None` while it is counted for the first time, or no calls are kept.
    found: Option<findings::Shown>,
}

#[derive(Debug, Serialize)]
struct Arm {
    name: String,
    share: f64,
    changes: Vec<(&'static str, String)>,
    sums: Option<Sums>,
}

pub(super) async fn show(visit: Visit) -> Shown {
    let range = Range::of(&visit);
    let snapshot = visit.admin.shared.live.load_full();
    let mut used = HashMap::new();
    if let Some(calls) = visit.calls() {
        let filter = range.filter(visit.now_ms());
        let query = UsageQuery { filter, by: Some(Dimension::Variant), top: 0, bucket: None };
        let series = calls.log.usage(query).await.map_err(|error| visit.store_away(&error))?;
        used.extend(series.into_iter().map(|series| (series.value, Sums::from(&series.total))));
    }
    let found = try_join_all(snapshot.experiments.values().map(|experiment| found(&visit, &snapshot, experiment)));
    let found = found.await?;
    let mut experiments = Vec::new();
    for (experiment, found) in snapshot.experiments.values().zip(found) {
        experiments.push(Entry {
            name: experiment.name.to_string(),
            model: experiment.model.to_string(),
            unit: unit(&experiment.unit),
            phase: phase(experiment.phase),
            control: experiment.control.to_string(),
            variants: arms(experiment, |label| used.remove(label)),
            found,
        });
    }
    let page = json!({
        "experiments": experiments,
        "power": power_asked(&visit),
        "may_decide": visit.may(Role::Operator),
        "log": visit.calls().is_some(),
        "range": range.label(),
        "ranges": Range::ALL.map(Range::label),
    });
    Ok(visit.page("experiments.html", page))
}

/// What an operator decides.
#[derive(Debug, Deserialize)]
pub(super) struct Decision {
    name: String,
    action: Action,
    #[serde(default)]
    variant: String,
    #[serde(default)]
    reason: String,
}

#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Action {
    Start,
    Pause,
    Stop,
    Promote,
}

/// Does it, and leads back to the page.
pub(super) async fn decide(visit: Visit, Actor(actor): Actor, Form(decision): Form<Decision>) -> Shown {
    let Decision { name, action, variant, reason } = decision;
    let what = word("That was not done.");
    if reason.len() > REASON_BYTES_MAX {
        return Err(visit.sorry(StatusCode::UNPROCESSABLE_ENTITY, what, "a reason has at most 1000 bytes"));
    }
    let deed = match action {
        Action::Start => TrialDeed::Start,
        Action::Pause => TrialDeed::Pause { reason: reason.clone() },
        Action::Stop => TrialDeed::Stop { reason: reason.clone() },
        Action::Promote => TrialDeed::Promote { variant, reason: reason.clone() },
    };
    let place = percent_encoded(&name);
    let wanted = Wanted { who: &actor, reason: &reason, key: None };
    if let Err(error) = visit.admin.shared.registrar.change(&Command::Trial { name, deed }, wanted).await {
        let why = error.to_string();
        return Err(visit.sorry(Problem::from(error).into_response().status(), what, &why));
    }
    let language = visit.parameter("lang").map(|tag| format!("?lang={}", percent_encoded(tag))).unwrap_or_default();
    Ok(Redirect::to(&format!("/experiments{language}#{place}")).into_response())
}

/// What an experiment decided; nothing where no calls are kept.
async fn found(visit: &Visit, snapshot: &Snapshot, experiment: &Experiment) -> Result<Option<findings::Shown>, Sorry> {
    let Some(analyst) = &visit.admin.analyst else { return Ok(None) };
    let trial = snapshot.registry.book.experiments.get(&*experiment.name);
    let course = trial.map(Course::of).unwrap_or_default();
    let found = findings::of(analyst, experiment, &course, visit).await;
    found.map_err(|trouble| match trouble {
        Trouble::Store(error) => visit.store_away(&error),
        Trouble::Counting => visit.store_away(&StoreError::Unavailable(trouble.to_string())),
    })
}

fn phase(phase: Phase) -> &'static str {
    match phase {
        Phase::Draft => "draft",
        Phase::Running => "running",
        Phase::Paused => "paused",
        Phase::Over => "over",
    }
}

/// What was asked of the calculator, and its answer: shares in percent, the effect in points.
fn power_asked(visit: &Visit) -> Value {
    let number = |name: &str| visit.parameter(name).and_then(|text| text.replace(',', ".").parse::<f64>().ok());
    let (baseline, effect) = (number("baseline").unwrap_or(30.0), number("effect").unwrap_or(5.0));
    let variants = number("variants").map_or(2, |variants| variants.clamp(2.0, 20.0) as u32);
    let per_day = number("per_day");
    let question = Question {
        baseline: Baseline::Share(baseline / 100.0),
        effect: effect / 100.0,
        alpha: ALPHA,
        power: 0.8,
        variants,
        units_per_day: per_day,
    };
    let plan = power::plan(&question);
    json!({
        "baseline": baseline.to_string(), "effect": effect.to_string(), "variants": variants, "per_day": per_day,
        "units_per_variant": plan.map(|plan| plan.units_per_variant),
        "units": plan.map(|plan| plan.units),
        "days": plan.and_then(|plan| plan.days).map(|days| days.ceil() as u64),
    })
}

fn unit(unit: &Unit) -> String {
    match unit {
        Unit::User => "user".to_owned(),
        Unit::Key => "key".to_owned(),
        Unit::Session => "session".to_owned(),
        Unit::Header(name) => format!("header:{name}"),
    }
}

fn arms(experiment: &Experiment, mut sums: impl FnMut(&str) -> Option<Sums>) -> Vec<Arm> {
    let weights: f64 = experiment.variants().iter().map(|variant| variant.weight.max(0.0)).sum();
    let arm = |variant: &Variant| Arm {
        name: variant.name.to_string(),
        share: if weights > 0.0 { variant.weight.max(0.0) / weights } else { 0.0 },
        changes: changes(variant),
        sums: sums(&format!("{}={}", experiment.name, variant.name)),
    };
    experiment.variants().iter().map(arm).collect()
}

/// What a variant changes about a call.
fn changes(variant: &Variant) -> Vec<(&'static str, String)> {
    let version = variant.version.as_ref().map(|version| ("version", version.to_string()));
    let target = variant.target.as_ref().map(|target| ("target", target.clone()));
    let prompt = variant.prompt.as_ref().map(|(name, version)| ("prompt", format!("{name}@{version}")));
    let parameters = variant.parameters.iter().map(|(name, value)| ("parameter", format!("{name}: {value}")));
    version.into_iter().chain(target).chain(prompt).chain(parameters).collect()
}
