//! Works out what a call can use and cost at most at each of its targets, and which accounts have to pay.
//!
//! Stage: [`Planned`] in, [`Quoted`] out. The ceiling is sound: see [`crate::policy::tokens`] for the input and `Price::bound` for
//! the rates. What can't be bounded is refused where a budget would have to pay for it, and never free.

use std::{sync::Arc, time::SystemTime};

use jiff::Timestamp;
use tower::Service;

use crate::{
    call::{Answer, Ceiling, Document, Payload, Planned, Quoted},
    config::snapshot::{Budget, BudgetMode, OnStoreLoss, Target, Unpriced},
    error::GatewayError,
    layers::{Inner, Step},
    policy::{pricing::Price, scope::Facts, tokens},
    purses::Claim,
    units::Tokens,
    wire::endpoint::Cost,
};

/// How many bytes of text make a token, for the estimate that rate limits take. Corrected at the end.
const BYTES_PER_TOKEN: u64 = 4;

/// See the module.
#[derive(Debug)]
pub struct Quote;

impl Step for Quote {
    type In = Planned;
    type Next = Quoted;

    async fn handle<S: Inner<Quoted>>(&'static self, mut planned: Planned, mut inner: S) -> Answer {
        let at = Timestamp::try_from(SystemTime::now()).unwrap_or_default();
        price_unpriced(&mut planned)?;
        let budgets = covering(&planned, at);
        let claims: Arc<[Claim]> = budgets.iter().map(|(_, claim)| claim.clone()).collect();
        let ceilings = if claims.is_empty() { Vec::new() } else { ceilings(&planned, &budgets, at)? };
        let estimate = estimate(&planned);
        inner.call(Quoted { planned, ceilings, claims, estimate, at }).await
    }
}

/// Gives targets without a price the configured one, or refuses the call: never 0 by silence.
fn price_unpriced(planned: &mut Planned) -> Result<(), GatewayError> {
    if !matches!(planned.call.payload, Payload::Json(_)) || planned.call.head.endpoint.cost() != Cost::Metered {
        return Ok(());
    }
    let snapshot = &planned.call.snapshot;
    for target in planned.plan.targets.iter_mut().filter(|target| target.price.is_none()) {
        target.price = match &snapshot.unpriced {
            Unpriced::Charge(price) => Some(price.clone()),
            Unpriced::Refuse => return Err(unpriced(target)),
        };
    }
    Ok(())
}

fn unpriced(target: &Target) -> GatewayError {
    let name = format!("{}/{}", target.provider.name, target.model);
    GatewayError::Unpriceable(format!(
        "no price is known for `{name}`, so its cost cannot be told; give it one under `prices:` in the configuration \
         (`{name}: {{ input: 0.15 USD/1M, output: 0.60 USD/1M }}`, or 0 for a server of your own), or set `unpriced: {{ charge: … }}`"
    ))
}

/// The budgets that cover the call, and what each of them is asked.
fn covering(planned: &Planned, at: Timestamp) -> Vec<(Arc<Budget>, Claim)> {
    let call = &planned.call;
    if call.snapshot.budgets.is_empty() || call.head.endpoint.cost() == Cost::Free {
        return Vec::new();
    }
    let facts = Facts {
        key: &call.caller.name,
        team: call.caller.team.as_deref(),
        user: &call.identity.user,
        model: &planned.plan.named,
        tags: &call.identity.tags,
    };
    let covers = |budget: &Arc<Budget>| Some((budget.clone(), claim(budget, budget.scope.account(&facts)?, at)));
    call.snapshot.budgets.iter().filter_map(covers).collect()
}

/// The period is part of the account, so nothing has to be reset.
fn claim(budget: &Budget, account: String, at: Timestamp) -> Claim {
    let period = budget.period_at(at);
    Claim {
        budget: budget.name.clone(),
        account: format!("{}/{account}/{}", budget.name, period.id),
        limit: budget.limit,
        resets_at: period.ends,
        enforce: budget.mode == BudgetMode::Enforce,
        open_on_loss: budget.on_store_loss == OnStoreLoss::Open,
    }
}

fn ceilings(planned: &Planned, budgets: &[(Arc<Budget>, Claim)], at: Timestamp) -> Result<Vec<Ceiling>, GatewayError> {
    let document = match &planned.call.payload {
        Payload::Json(document) if planned.call.head.endpoint.cost() == Cost::Metered => document,
        _ => return unbounded(planned, budgets),
    };
    if let Some(what) = document.facts.unbounded_cost() {
        refuse_if_enforced(budgets, || format!("{what} costs extra that cannot be bounded beforehand"))?;
    }
    // What the prompt and the parameters add is in the edited body.
    let body_bytes = document.bytes.len() + planned.edits.added_bytes();
    planned.plan.targets.iter().map(|target| ceiling(document, body_bytes, target, budgets, at)).collect()
}

/// An endpoint whose cost isn't told by request and reply.
fn unbounded(planned: &Planned, budgets: &[(Arc<Budget>, Claim)]) -> Result<Vec<Ceiling>, GatewayError> {
    let endpoint = planned.call.head.endpoint.label();
    refuse_if_enforced(budgets, || format!("what a call of `{endpoint}` costs cannot be bounded beforehand"))?;
    Ok(planned.plan.targets.iter().map(|_| Ceiling::default()).collect())
}

fn refuse_if_enforced(budgets: &[(Arc<Budget>, Claim)], why: impl FnOnce() -> String) -> Result<(), GatewayError> {
    match budgets.iter().find(|(_, claim)| claim.enforce) {
        None => Ok(()),
        Some((budget, _)) => Err(GatewayError::Unpriceable(format!(
            "{}, so budget `{}` cannot allow it; use a key that no budget covers, or set the budget's `mode: warn`",
            why(),
            budget.name
        ))),
    }
}

fn ceiling(
    document: &Document,
    body_bytes: usize,
    target: &Target,
    budgets: &[(Arc<Budget>, Claim)],
    at: Timestamp,
) -> Result<Ceiling, GatewayError> {
    let price: &Price = target.price.as_deref().ok_or_else(|| unpriced(target))?;
    let facts = &document.facts;
    let mut input = tokens::input_ceiling(body_bytes, facts.images, &target.model);
    if let Some(reference) = facts.unbounded_input() {
        // What stands at the provider can't be longer than the model's window.
        input = match price.context_window() {
            Some(window) => window.max(input),
            None => {
                refuse_if_enforced(budgets, || format!("`{reference}` refers to input of unknown length"))?;
                input
            }
        };
    }
    let (output_each, cap_to_set) = output_cap(document, price, budgets);
    let output = Tokens(output_each.0.saturating_mul(facts.choices()));
    Ok(Ceiling { input, output, output_each, cap_to_set, cost: price.bound(input, output, facts.service_tier.as_deref(), at) })
}

/// Output tokens of one choice at most, and the cap to set where neither the client nor the model has one.
fn output_cap(document: &Document, price: &Price, budgets: &[(Arc<Budget>, Claim)]) -> (Tokens, Option<Tokens>) {
    let facts = &document.facts;
    if !facts.has_output() {
        return (Tokens::ZERO, None);
    }
    match (facts.output_cap().map(Tokens), price.max_output()) {
        (Some(cap), Some(max)) => (cap.min(max), None),
        (Some(cap), None) => (cap, None),
        (None, Some(max)) => (max, None),
        (None, None) => {
            let default = budgets.iter().map(|(budget, _)| budget.default_max_tokens).min().unwrap_or_default();
            (default, Some(default))
        }
    }
}

/// What rate limits take at admission: about what the input is, and the output's cap where there is one.
fn estimate(planned: &Planned) -> Tokens {
    let Payload::Json(document) = &planned.call.payload else { return Tokens::ZERO };
    let input = document.bytes.len() as u64 / BYTES_PER_TOKEN;
    let output = document.facts.output_cap().unwrap_or_default().saturating_mul(document.facts.choices());
    Tokens(input.saturating_add(output))
}
