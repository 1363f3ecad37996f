//! Sets the call's worst cost aside before anything is sent, so that concurrent calls can't overspend together.
//!
//! Stage: [`Opened`] in, [`Admitted`] out, and nothing else makes an [`Admitted`]. Where the money does not suffice, the prompt is
//! counted, since its tokens are fewer than its bytes; then the output cap is lowered to what the money pays for (`clamp`), and
//! only then is the call refused. Settles nothing: see [`crate::recorder`].

use std::{sync::Arc, time::Duration};

use tokio::{sync::Semaphore, time::Instant};

use crate::{
    call::{Admitted, Answer, Ceiling, Failure, Opened, Payload, Quoted},
    config::snapshot::Budget,
    error::GatewayError,
    layers::{Answering, Inner, Step},
    policy::tokens,
    purses::{Purses, Refused, Reservation},
    units::Tokens,
};

/// Tries at a clamped reservation: others take from the same purse meanwhile.
const CLAMP_TRIES: usize = 3;
/// Largest body that is counted to tighten its bound, in bytes.
const COUNTED_BYTES_MAX: usize = 4 * 1024 * 1024;
/// What a provider may count above our own exact count: its preamble, and a per cent for the cuts in long runs.
const COUNT_MARGIN_TOKENS: u64 = 64;
const COUNT_MARGIN_PERCENT: u64 = 1;

/// See the module.
#[derive(Debug)]
pub struct ReserveBudget {
    /// The purses of this process.
    pub purses: Arc<Purses>,
    /// Prompts that are counted at the same time. When all places are taken the bound by bytes stands: a flood of long prompts at
    /// a spent budget must not take the cores from others.
    pub counting: Semaphore,
}

impl Step for ReserveBudget {
    type In = Opened;
    type Next = Admitted;

    async fn handle<S: Inner<Admitted>>(&'static self, opened: Opened, mut inner: S) -> Answer {
        let Opened { quoted, mut record } = opened;
        let began = Instant::now();
        let (reservation, clamped) = match self.admit(&quoted).await {
            Ok(admitted) => admitted,
            Err(error) => {
                record.facts().waited = began.elapsed();
                let downgrade = downgrade(&quoted, &error);
                return Err(Failure { downgrade, ..Failure::recorded(error, record) });
            }
        };
        let waited = began.elapsed();
        inner.call(Admitted { quoted, record, reservation, clamped, waited }).await
    }

    fn begin<S: Inner<Admitted>>(&'static self, opened: Opened, mut inner: S) -> Answering {
        let reservation = match opened.quoted.ceilings.first() {
            None => None,
            Some(ceiling) => match self.purses.try_reserve(&opened.quoted.claims, ceiling.cost) {
                Some(reservation) => Some(reservation),
                None => return Box::pin(self.handle(opened, inner)),
            },
        };
        let Opened { quoted, record } = opened;
        inner.call(Admitted { quoted, record, reservation, clamped: None, waited: Duration::ZERO })
    }
}

impl ReserveBudget {
    async fn admit(&self, quoted: &Quoted) -> Result<(Option<Reservation>, Option<Tokens>), GatewayError> {
        let Some(ceiling) = quoted.ceilings.first() else { return Ok((None, None)) };
        let deadline = self.purses.deadline();
        let refused = match self.purses.reserve_by(&quoted.claims, ceiling.cost, deadline).await {
            Ok(reservation) => return Ok((Some(reservation), None)),
            Err(refused) => refused,
        };
        if !matches!(refused, Refused::Exhausted { .. }) {
            return Err(GatewayError::refused(refused, ceiling.cost));
        }
        let tighter = self.tighten(quoted, ceiling).await;
        if let Some(tighter) = &tighter
            && let Ok(reservation) = self.purses.reserve_by(&quoted.claims, tighter.cost, deadline).await
        {
            return Ok((Some(reservation), None));
        }
        let ceiling = tighter.as_ref().unwrap_or(ceiling);
        match self.clamp(quoted, ceiling, deadline).await {
            Some((reservation, cap)) => Ok((Some(reservation), Some(cap))),
            None => Err(GatewayError::refused(refused, ceiling.cost)),
        }
    }

    /// The ceiling with the prompt counted, where that can be done to the token; `None` where it can't, or gains nothing.
    async fn tighten(&self, quoted: &Quoted, ceiling: &Ceiling) -> Option<Ceiling> {
        let Payload::Json(document) = &quoted.planned.call.payload else { return None };
        let target = quoted.planned.plan.targets.first()?;
        let price = target.price.clone()?;
        if document.bytes.len() > COUNTED_BYTES_MAX {
            return None;
        }
        let _place = self.counting.try_acquire().ok()?;
        let (body, model) = (quoted.planned.edits.apply(&document.bytes), target.model.clone());
        let counting = tokio::task::spawn_blocking(move || tokens::chat::count_body(&body, &model));
        let counted = counting.await.ok()?.filter(|counted| counted.exact)?.tokens;
        let margin = Tokens(counted.0 / 100 * COUNT_MARGIN_PERCENT + COUNT_MARGIN_TOKENS);
        let input = counted.saturating_add(margin);
        if input >= ceiling.input {
            return None;
        }
        let cost = price.bound(input, ceiling.output, document.facts.service_tier.as_deref(), quoted.at);
        Some(Ceiling { input, cost, ..*ceiling })
    }

    /// Reserves what is left and says which output cap that pays for; `None` where it is too little, or not allowed.
    async fn clamp(&self, quoted: &Quoted, ceiling: &Ceiling, deadline: Instant) -> Option<(Reservation, Tokens)> {
        let Payload::Json(document) = &quoted.planned.call.payload else { return None };
        let facts = &document.facts;
        let price = quoted.planned.plan.targets.first()?.price.clone()?;
        let budgets = paying(quoted);
        let floor = budgets.iter().map(|budget| budget.min_output_tokens).max()?;
        if ceiling.output_each <= floor || budgets.iter().any(|budget| !budget.clamp) {
            return None;
        }
        let tier = facts.service_tier.as_deref();
        for _ in 0..CLAMP_TRIES {
            let money = self.purses.most(&quoted.claims, ceiling.cost, deadline).await;
            let affordable = price.affordable_output(money, ceiling.input, tier, quoted.at);
            let predicted = Tokens(facts.prediction_bytes);
            let cap = Tokens(affordable.saturating_sub(predicted).0 / facts.choices).min(ceiling.output_each);
            if cap < floor {
                return None;
            }
            let output = Tokens(cap.0 * facts.choices).saturating_add(Tokens(facts.prediction_bytes));
            let bound = price.bound(ceiling.input, output, tier, quoted.at);
            if let Ok(reservation) = self.purses.reserve_by(&quoted.claims, bound, deadline).await {
                return Some((reservation, cap));
            }
        }
        None
    }
}

/// What the budget that refused wants tried instead.
fn downgrade(quoted: &Quoted, error: &GatewayError) -> Option<Arc<str>> {
    let GatewayError::BudgetExhausted { budget: exhausted, .. } = error else { return None };
    let budgets = &quoted.planned.call.snapshot.budgets;
    budgets.iter().find(|budget| *budget.name == **exhausted)?.downgrade.clone()
}

/// The enforcing budgets among those that pay.
fn paying(quoted: &Quoted) -> Vec<&Arc<Budget>> {
    let enforcing = |name: &str| quoted.claims.iter().any(|claim| claim.enforce && *claim.budget == *name);
    quoted.planned.call.snapshot.budgets.iter().filter(|budget| enforcing(&budget.name)).collect()
}
