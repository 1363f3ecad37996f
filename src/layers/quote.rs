//! Works out what a call can use and cost at most at each of its targets, and which accounts have to pay.
//!
//! Stage: [`Planned`] in, [`Quoted`] out. The ceiling is sound: see [`crate::policy::tokens`] for the input and `Price::bound` for
//! the rates. What can't be bounded is refused where a budget would have to pay for it, and never free.

use std::{sync::Arc, time::SystemTime};

use bytes::Bytes;
use jiff::Timestamp;

use crate::{
    call::{Ceiling, Failure, Payload, Planned, Quoted},
    config::snapshot::{Budget, BudgetMode, OnStoreLoss, Target, Unpriced},
    error::GatewayError,
    layers::{Early, Turn},
    policy::{
        pricing::Price,
        scope::Facts,
        tokens::{self, Contents},
    },
    purses::Claim,
    recorder,
    units::Tokens,
    wire::{
        edit,
        endpoint::{Cost, Endpoint},
        request::RequestFacts,
    },
};

/// How many bytes of text make a token, and tokens an image, for the estimate that rate limits take. Corrected at the end.
const BYTES_PER_TOKEN: u64 = 4;
const TOKENS_PER_IMAGE: u64 = 1000;
/// A reservation of at most a hundredth of a budget is small.
const SMALL_SHARE: u64 = 100;

/// See the module.
#[derive(Debug)]
pub struct Quote;

impl Turn for Quote {
    type In = Planned;
    type Next = Quoted;

    fn turn(&self, mut planned: Planned) -> Result<Quoted, Early> {
        let at = Timestamp::try_from(SystemTime::now()).unwrap_or_default();
        match bounds(&mut planned, at) {
            Ok(Bounds { ceilings, claims, body }) => {
                let estimate = estimate(&planned);
                Ok(Quoted { planned, ceilings, claims, body, estimate, at })
            }
            Err(error) => {
                let facts = recorder::of_call(&planned.call, Some(&planned.plan));
                Err(Failure::early(error, facts).into())
            }
        }
    }
}

/// Names the first target's model in the body. A call that names no model goes to the default provider as it is.
fn set_model(planned: &mut Planned) {
    let (Payload::Json(document), Some(target)) = (&planned.call.payload, planned.plan.targets.first()) else { return };
    if !target.model.is_empty() && document.facts.model.as_deref() != Some(&*target.model) {
        edit::set_model(&mut planned.edits, &document.scan, &target.model);
    }
}

/// What a call can cost, who pays, and the body that this was worked out of.
struct Bounds {
    ceilings: Vec<Ceiling>,
    claims: Arc<[Claim]>,
    body: Option<Bytes>,
}

fn bounds(planned: &mut Planned, at: Timestamp) -> Result<Bounds, GatewayError> {
    price_unpriced(planned)?;
    set_model(planned);
    let budgets = covering(planned, at);
    let (ceilings, body) = if budgets.is_empty() { (Vec::new(), None) } else { ceilings(planned, &budgets, at)? };
    Ok(Bounds { ceilings, claims: budgets.into_iter().map(|(_, claim)| claim).collect(), body })
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
    let covers = |budget: &Arc<Budget>| Some((budget.clone(), claim(budget, &budget.scope.account(&facts)?, at)));
    call.snapshot.budgets.iter().filter_map(covers).collect()
}

/// The period is part of the account, so nothing has to be reset.
fn claim(budget: &Budget, account: &str, at: Timestamp) -> Claim {
    let period = budget.period_at(at);
    Claim {
        budget: budget.name.clone(),
        account: [&*budget.name, "/", account, "/", &*period.id].concat(),
        limit: budget.limit,
        resets_at: period.ends,
        enforce: budget.mode == BudgetMode::Enforce,
        open_on_loss: budget.on_store_loss == OnStoreLoss::Open,
    }
}

/// The ceilings, and the edited body that they were worked out from.
fn ceilings(
    planned: &Planned,
    budgets: &[(Arc<Budget>, Claim)],
    at: Timestamp,
) -> Result<(Vec<Ceiling>, Option<Bytes>), GatewayError> {
    let document = match &planned.call.payload {
        Payload::Json(document) if planned.call.head.endpoint.cost() == Cost::Metered => document,
        _ => return Ok((unbounded(planned, budgets)?, None)),
    };
    if let Some(what) = &document.facts.extra_cost {
        refuse_if_enforced(budgets, || format!("`{what}` costs extra that cannot be bounded beforehand"))?;
    }
    // What the prompt and the parameters add is in the edited body.
    let body = planned.edits.apply(&document.bytes);
    let call = Bounded { endpoint: &planned.call.head.endpoint, facts: &document.facts, body: &body, budgets, at };
    let ceilings = planned.plan.targets.iter().map(|target| call.ceiling(target)).collect::<Result<_, _>>()?;
    Ok((ceilings, Some(body)))
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

/// What bounding a call at one target needs.
struct Bounded<'a> {
    endpoint: &'a Endpoint,
    facts: &'a RequestFacts,
    body: &'a [u8],
    budgets: &'a [(Arc<Budget>, Claim)],
    at: Timestamp,
}

impl Bounded<'_> {
    fn ceiling(&self, target: &Target) -> Result<Ceiling, GatewayError> {
        let price: &Price = target.price.as_deref().ok_or_else(|| unpriced(target))?;
        let input = self.input(target, price)?;
        let (output_each, cap_to_set) = self.output_cap(price, input);
        let choices = Tokens(output_each.0.saturating_mul(self.facts.choices));
        // Rejected parts of a prediction are charged as output; no token is shorter than a byte.
        let output = choices.saturating_add(Tokens(self.facts.prediction_bytes));
        let cost = price.bound(input, output, self.facts.service_tier.as_deref(), self.at);
        Ok(Ceiling { input, output, output_each, cap_to_set, cost })
    }

    fn input(&self, target: &Target, price: &Price) -> Result<Tokens, GatewayError> {
        let facts = self.facts;
        let elsewhere = facts.unbounded_input.is_some() || facts.provider_defined_tools > 0;
        let contents = Contents {
            image_bytes: usize::try_from(facts.image_bytes).unwrap_or(0),
            images: usize::try_from(facts.images).unwrap_or(usize::MAX),
            tools: facts.tools > 0,
            elsewhere,
        };
        match tokens::input_ceiling(&target.model, self.body, contents, price.context_window()) {
            Some(input) => Ok(input),
            None => {
                let what = facts.unbounded_input.as_deref().unwrap_or("tools");
                refuse_if_enforced(self.budgets, || format!("`{what}` refers to input of unknown length"))?;
                Ok(Tokens(self.body.len() as u64))
            }
        }
    }

    /// Output tokens of one choice at most, and the cap to set where neither the client nor the model has one.
    fn output_cap(&self, price: &Price, input: Tokens) -> (Tokens, Option<Tokens>) {
        if *self.endpoint == Endpoint::Embeddings {
            return (Tokens::ZERO, None);
        }
        match (self.facts.output_cap().map(Tokens), price.max_output()) {
            (Some(cap), Some(max)) => (cap.min(max), None),
            (Some(cap), None) => (cap, None),
            (None, Some(max)) => (max, None),
            (None, None) => match price.context_window().filter(|window| self.is_small_change(price, input, *window)) {
                // No output is longer than the window, so the body can stay as it is.
                Some(window) => (window, None),
                None => {
                    let defaults = self.budgets.iter().map(|(budget, _)| budget.default_max_tokens);
                    let default = defaults.min().unwrap_or_default();
                    (default, Some(default))
                }
            },
        }
    }

    /// Whether so much output would be a small share of every budget, so that reserving it keeps nobody else waiting.
    fn is_small_change(&self, price: &Price, input: Tokens, output: Tokens) -> bool {
        let all = Tokens(output.0.saturating_mul(self.facts.choices));
        let cost = price.bound(input, all, self.facts.service_tier.as_deref(), self.at);
        self.budgets.iter().all(|(_, claim)| cost.0 <= claim.limit.0 / SMALL_SHARE)
    }
}

/// What rate limits take at admission: about what the input is, and the output's cap where there is one.
fn estimate(planned: &Planned) -> Tokens {
    let Payload::Json(document) = &planned.call.payload else { return Tokens::ZERO };
    let text_bytes = (document.bytes.len() as u64).saturating_sub(document.facts.image_bytes);
    let images = document.facts.images.saturating_mul(TOKENS_PER_IMAGE);
    let input = (text_bytes / BYTES_PER_TOKEN).saturating_add(images);
    let output = document.facts.output_cap().unwrap_or_default().saturating_mul(document.facts.choices);
    Tokens(input.saturating_add(output))
}
