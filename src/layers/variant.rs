//! Decides where a call may go: alias → version → variant → targets, and whether the key may name them.
//!
//! Stage: [`Call`] in, [`Planned`] out. The same user gets the same variant from every replica, without any state.

use std::{future::ready, sync::Arc};

use xxhash_rust::xxh3::xxh3_64;

use crate::{
    call::{Answer, Call, Document, Failure, Payload, Plan, Planned},
    config::{
        Snapshot,
        snapshot::{Model, ModelVersion, PromptRef, Target},
    },
    error::GatewayError,
    layers::{Answering, Inner, Step},
    policy::experiment::{CodingAgents, Unit, Variant},
    recorder,
    registry::Kind,
    wire::{
        agent, edit,
        endpoint::Endpoint,
        json::{self, Edits},
        request,
    },
};

/// Parameters that say how a model draws its tokens, and nothing about their number or price.
const SAMPLING: [&str; 6] = ["temperature", "top_p", "top_k", "frequency_penalty", "presence_penalty", "seed"];
/// See the module.
#[derive(Debug)]
pub struct ChooseVariant;

impl Step for ChooseVariant {
    type In = Box<Call>;
    type Next = Planned;

    async fn handle<S: Inner<Planned>>(&'static self, call: Box<Call>, mut inner: S) -> Answer {
        // Kept only where a budget may send the call another way: then it starts over with the body as it came.
        let spare = call.again();
        let failure = match inner.call(chosen(call).map_err(|failure| *failure)?).await {
            Err(failure) if failure.downgrade.is_some() => failure,
            answer => return answer,
        };
        let (Some(spare), Some(alias)) = (spare, failure.downgrade.clone()) else { return Err(failure) };
        let Some(plan) = downgraded_plan(&spare, &alias) else { return Err(failure) };
        if let Some(record) = failure.record {
            record.discard();
        }
        inner.call(planned(spare, plan).map_err(|failure| *failure)?).await
    }

    fn begin<S: Inner<Planned>>(&'static self, call: Box<Call>, mut inner: S) -> Answering {
        if may_downgrade(&call.snapshot) {
            return Box::pin(self.handle(call, inner));
        }
        match chosen(call) {
            Ok(planned) => inner.call(planned),
            Err(failure) => Box::pin(ready(Err(*failure))),
        }
    }
}

/// The call with what was chosen for it.
fn chosen(call: Box<Call>) -> Result<Planned, Box<Failure>> {
    match plan(&call) {
        Ok(plan) => planned(call, plan),
        Err(error) => Err(Box::new(Failure::early(error, recorder::of_call(&call, None)))),
    }
}

fn planned(mut call: Box<Call>, plan: Plan) -> Result<Planned, Box<Failure>> {
    let edits = set_parameters(&mut call, &plan)
        .map_err(|error| Box::new(Failure::early(error, recorder::of_call(&call, Some(&plan)))))?;
    Ok(Planned { call, plan, edits })
}

fn may_downgrade(snapshot: &Snapshot) -> bool {
    snapshot.budgets.iter().any(|budget| budget.downgrade.is_some())
}

/// The operator's cheaper alias: the key's own list does not have to name it. `None` when the call goes there already.
fn downgraded_plan(call: &Call, alias: &str) -> Option<Plan> {
    let Payload::Json(document) = &call.payload else { return None };
    if document.facts.model.as_deref() == Some(alias) {
        return None;
    }
    let model = call.snapshot.models.get(alias)?;
    let version = model.versions.get(live_version(call, model))?;
    Some(version_plan(model, version, call))
}

fn version_plan(model: &Model, version: &Arc<ModelVersion>, call: &Call) -> Plan {
    Plan {
        named: model.name.clone(),
        label: model.name.clone(),
        prompt: version.prompt.clone().map(|prompt| rolled_out_prompt(call, prompt)),
        version: Some(version.clone()),
        variants: Vec::new(),
        units: Vec::new(),
        variant_parameters: Vec::new(),
        targets: targets(version, xxh3_64(call.head.id.as_bytes())),
    }
}

/// Where the call may go, and as what.
fn plan(call: &Call) -> Result<Plan, GatewayError> {
    let snapshot = &*call.snapshot;
    let named = match &call.payload {
        Payload::Json(document) => document.facts.model.as_deref().unwrap_or(""),
        Payload::Stream(_) | Payload::Upgrade(_) | Payload::Nothing => return unread(call),
    };
    let (alias, pinned) = named.split_once('@').map_or((named, None), |(alias, version)| (alias, Some(version)));
    match snapshot.models.get(alias) {
        Some(model) => alias_plan(call, model, named, pinned),
        None => direct_plan(call, named),
    }
}

/// A call whose body is not read names no model that could be checked, so the key must be allowed all of the provider.
fn unread(call: &Call) -> Result<Plan, GatewayError> {
    let provider = call.snapshot.default_provider.clone().ok_or_else(|| {
        GatewayError::ModelNotFound("(none named, and the configuration has no default_provider)".to_owned())
    })?;
    if call.head.endpoint == Endpoint::Organization && !provider.organization_api {
        let name = &provider.name;
        return Err(GatewayError::Forbidden(format!(
            "/v1/organization/ administrates the provider's account and is closed here; `providers.{name}.organization_api: on` opens it"
        )));
    }
    if !call.caller.models.allows_all_of(&provider.name) {
        return Err(GatewayError::ModelNotAllowed(format!("{}/*", provider.name)));
    }
    let nothing: Arc<str> = Arc::from("");
    let target = Target { provider, model: nothing.clone(), price: None };
    Ok(Plan::direct(nothing, Arc::from("none"), target))
}

/// `provider/model`, or a bare name for the default provider.
fn direct_plan(call: &Call, named: &str) -> Result<Plan, GatewayError> {
    let snapshot = &*call.snapshot;
    let not_found = || GatewayError::ModelNotFound(named.to_owned());
    let found = snapshot.target(named).ok_or_else(not_found)?;
    let target = &found.target;
    let resolved = format!("{}/{}", target.provider.name, target.model);
    if !call.caller.models.allows(named, Some(&resolved)) {
        return Err(GatewayError::ModelNotAllowed(named.to_owned()));
    }
    Ok(Plan::direct(Arc::from(resolved), found.label.clone(), target.clone()))
}

fn alias_plan(call: &Call, model: &Model, named: &str, pinned: Option<&str>) -> Result<Plan, GatewayError> {
    if !call.caller.models.allows(&model.name, None) {
        return Err(GatewayError::ModelNotAllowed(named.to_owned()));
    }
    let mut variants = Vec::new();
    let mut units = Vec::new();
    let mut variant_parameters = Vec::new();
    let mut wanted = pinned.unwrap_or_else(|| live_version(call, model));
    let mut instead = None;
    let mut prompt = None;
    // A call that pins a version has chosen for itself.
    let experiments = if pinned.is_some() { &[][..] } else { &model.experiments };
    let is_agent = !experiments.is_empty() && agent::is_coding_agent(&call.head.headers);
    for experiment in experiments {
        // Another prompt would change what the agent and the provider's prompt cache rely on.
        if is_agent && experiment.changes_prompt && experiment.coding_agents == CodingAgents::Skip {
            continue;
        }
        let unit = unit(call, &experiment.unit, is_agent);
        let Some(variant) = experiment.assign(&unit) else { continue };
        variants.push((experiment.name.clone(), variant.name.clone()));
        units.push(unit);
        variant_parameters.extend(variant.parameters.iter().cloned());
        wanted = variant.version.as_deref().unwrap_or(wanted);
        instead = variant.target.as_deref().or(instead);
        prompt = variant_prompt(&call.snapshot, variant).or(prompt);
    }
    let version = model.versions.get(wanted).ok_or_else(|| GatewayError::ModelNotFound(named.to_owned()))?;
    let mut plan = Plan { variants, units, variant_parameters, ..version_plan(model, version, call) };
    if let Some(found) = instead.and_then(|name| call.snapshot.target(name)) {
        plan.targets.insert(0, found.target.clone());
    }
    plan.prompt = prompt.or(plan.prompt);
    if call.own_credential.is_some() {
        keep_to_one_provider(&mut plan.targets);
    }
    Ok(plan)
}

/// The client's own key is one provider's: no other one may see it.
fn keep_to_one_provider(targets: &mut Vec<Target>) {
    let Some(provider) = targets.first().map(|target| target.provider.name.clone()) else { return };
    targets.retain(|target| target.provider.name == provider);
}

/// What is assigned. A coding agent's session stays in one variant: another model in its midst would lose what is cached.
fn unit(call: &Call, unit: &Unit, is_agent: bool) -> Arc<str> {
    let user = &call.identity.user;
    if let Some(session) = call.identity.session.as_ref().filter(|_| is_agent) {
        return session.clone();
    }
    match unit {
        Unit::User => user.clone(),
        Unit::Key => call.caller.name.clone(),
        Unit::Session => call.identity.session.as_ref().unwrap_or(user).clone(),
        Unit::Header(name) => {
            let value = call.head.headers.get(&**name).and_then(|value| value.to_str().ok());
            value.map_or_else(|| user.clone(), Arc::from)
        }
    }
}

/// The live version, or the one that the user gets while another one is rolled out.
fn live_version<'m>(call: &'m Call, model: &'m Model) -> &'m str {
    call.snapshot.registry.choose(Kind::Models, &model.name, &call.identity.user).unwrap_or(&model.live)
}

/// While a prompt is rolled out, users get its live version or the new one.
fn rolled_out_prompt(call: &Call, prompt: PromptRef) -> PromptRef {
    if prompt.pinned {
        return prompt;
    }
    match call.snapshot.registry.choose(Kind::Prompts, &prompt.prompt.name, &call.identity.user) {
        Some(version) => PromptRef { version: version.clone(), ..prompt },
        None => prompt,
    }
}

fn variant_prompt(snapshot: &Snapshot, variant: &Variant) -> Option<PromptRef> {
    let (prompt, version) = variant.prompt.as_ref()?;
    // Every call of a variant gets the same.
    Some(PromptRef { prompt: snapshot.prompts.get(&**prompt)?.clone(), version: version.clone(), pinned: true })
}

/// One weighted target drawn by `draw`, then the other ones, then the fallbacks.
fn targets(version: &ModelVersion, draw: u64) -> Vec<Target> {
    let total: u64 = version.targets.iter().map(|(_, weight)| u64::from(*weight)).sum();
    let mut left = draw % total.max(1);
    let drawn = version.targets.iter().position(|(_, weight)| {
        let hit = left < u64::from(*weight);
        left = left.saturating_sub(u64::from(*weight));
        hit
    });
    let first = drawn.unwrap_or(0);
    let others = version.targets.iter().enumerate().filter(|(i, (_, weight))| *i != first && *weight > 0);
    let weighted = version.targets.get(first).into_iter().chain(others.map(|(_, target)| target));
    weighted.map(|(target, _)| target).chain(&version.fallbacks).cloned().collect()
}

/// Sets parameters of version and variant: defaults where the client was silent, the variant's, and what is forced.
///
/// A parameter may be a priced one (a cap, `n`), so the body is read again with them in it. Where none of them can be, the
/// edits are given back, to be made with all others.
fn set_parameters(call: &mut Call, plan: &Plan) -> Result<Edits, GatewayError> {
    let (Payload::Json(document), Some(version)) = (&mut call.payload, &plan.version) else { return Ok(Edits::new()) };
    let parameters = parameters(document, version, plan);
    let mut edits = Edits::new();
    for (name, json) in &parameters {
        edit::force_parameter(&mut edits, &document.scan, name, json);
    }
    if parameters.iter().all(|(name, json)| is_sampling(name, json)) {
        return Ok(edits);
    }
    let bytes = edits.apply(&document.bytes);
    let wrong =
        |why: String| GatewayError::invalid(format!("the model's parameters do not fit this call: {why}"), None);
    let scan = json::scan(&bytes).map_err(|error| wrong(error.to_string()))?;
    let facts = request::facts(&call.head.endpoint, &bytes, &scan).map_err(|error| wrong(error.message))?;
    *document = Document { bytes, coded: None, scan, facts };
    Ok(Edits::new())
}

/// Whether a parameter is one that no price, limit or route depends on.
fn is_sampling(name: &str, json: &str) -> bool {
    SAMPLING.contains(&name) && !json.starts_with(['{', '['])
}

/// What to set, as name and JSON text.
fn parameters<'p>(document: &Document, version: &'p ModelVersion, plan: &'p Plan) -> Vec<(&'p str, &'p str)> {
    let taken =
        |name: &str| document.scan.get(name).is_some() || plan.variant_parameters.iter().any(|(n, _)| **n == *name);
    let defaults = version.defaults.iter().filter(|(name, _)| !taken(name));
    let unforced = |name: &str| !version.forced.iter().any(|(forced, _)| **forced == *name);
    let overriding = plan.variant_parameters.iter().filter(|(name, _)| unforced(name)).chain(&version.forced);
    defaults.filter(|(name, _)| unforced(name)).chain(overriding).map(|(name, json)| (&**name, &**json)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::snapshot::{Provider, ProviderKind};

    fn version(weights: &[u32]) -> ModelVersion {
        let provider = Arc::new(Provider {
            name: "p".into(),
            kind: ProviderKind::OpenAi,
            base_url: http::Uri::from_static("http://127.0.0.1"),
            api_keys: Vec::new(),
            catalog: None,
            organization_api: false,
            cap_field: "max_tokens",
            ca: None,
        });
        let target = |i: usize| Target { provider: provider.clone(), model: Arc::from(format!("m{i}")), price: None };
        ModelVersion {
            name: "v1".into(),
            targets: weights.iter().enumerate().map(|(i, weight)| (target(i), *weight)).collect(),
            fallbacks: vec![target(9)],
            defaults: Vec::new(),
            forced: Vec::new(),
            prompt: None,
        }
    }

    fn names(version: &ModelVersion, draw: u64) -> Vec<String> {
        targets(version, draw).iter().map(|target| target.model.to_string()).collect()
    }

    #[test]
    fn targets_are_drawn_by_weight_and_the_others_stand_in_before_the_fallbacks() {
        let version = version(&[80, 20]);
        assert_eq!(names(&version, 79), ["m0", "m1", "m9"]);
        assert_eq!(names(&version, 80), ["m1", "m0", "m9"]);
        assert_eq!(names(&version, 100), ["m0", "m1", "m9"]);
    }

    #[test]
    fn a_target_of_weight_zero_is_never_called() {
        let version = version(&[0, 5]);
        for draw in 0..20 {
            assert_eq!(names(&version, draw), ["m1", "m9"]);
        }
    }
}
