//! Recorded calls at another model's price.
//!
//! Each call is priced anew from its tokens by kind, at the price that holds at its time. What the other model would have said, and
//! how its tokenizer would have counted, is in no log.

use std::{collections::BTreeMap, sync::Arc};

use jiff::Timestamp;

use crate::{
    config::Snapshot,
    policy::pricing::{Catalog, Price},
    record::{CallRow, UsageSource},
    store::{
        ports::StoreError,
        records::ports::{CallLog, Filter},
    },
    units::Tokens,
    wire::usage::Usage,
};

/// Calls fetched at a time.
const PAGE: usize = 1000;

/// Who sells its own models: of several listings of one model, theirs is the one that is meant.
const MAKERS: [&str; 6] = ["openai", "anthropic", "google", "mistral", "deepseek", "x-ai"];

/// Said wherever the figures are shown.
pub const METHOD: &str = "Computed for each call from its tokens by kind, at the price that holds at its time. Token counts are those \
                          of the model that answered: another tokenizer counts the same text differently, and another model says \
                          more or less.";

/// Which calls, and which price.
#[derive(Debug)]
pub struct Question<'q> {
    /// The calls.
    pub filter: Filter,
    /// Of them only those that named this model or went to it.
    pub instead_of: Option<&'q str>,
    /// What they would have been charged at.
    pub price: &'q Price,
    /// So many are looked at, to the next full page; the latest.
    pub calls_max: u64,
}

/// What calls cost, and would have cost.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Compared {
    /// Calls.
    pub calls: u64,
    /// What they cost, in nano-USD.
    pub was_nanousd: u64,
    /// What they would have cost.
    pub would_nanousd: u64,
}

/// The answer.
#[derive(Debug, Default)]
pub struct WhatIf {
    /// By the target that they went to.
    pub by_target: BTreeMap<Arc<str>, Compared>,
    /// Calls without a price or without token counts.
    pub left_out: u64,
    /// Whether there were more calls than were looked at.
    pub is_cut: bool,
}

/// Asks `log`.
///
/// # Errors
/// When the log does not answer.
pub async fn what_if(log: &dyn CallLog, question: &Question<'_>) -> Result<WhatIf, StoreError> {
    let (mut found, mut seen, mut after) = (WhatIf::default(), 0, None);
    loop {
        let page = log.page(question.filter.clone(), after, PAGE).await?;
        page.rows.iter().for_each(|row| found.add(row, question));
        seen += page.rows.len() as u64;
        after = page.next;
        if after.is_none() {
            return Ok(found);
        }
        if seen >= question.calls_max {
            found.is_cut = true;
            return Ok(found);
        }
    }
}

/// The price of a model: an alias of the configuration (its live version's first target), `provider/model`, or a model's name at
/// the one provider that the catalog has it of. With it, what it is the price of.
#[must_use]
pub fn price_of(name: &str, snapshot: Option<&Snapshot>) -> Option<(String, Arc<Price>)> {
    let configured = snapshot.and_then(|snapshot| {
        let alias = snapshot.models.get(name).and_then(|model| model.versions.get(&model.live));
        let target = alias.and_then(|version| version.targets.first()).map(|(target, _)| target.clone());
        let target = target.or_else(|| snapshot.target(name).map(|resolved| resolved.target.clone()))?;
        Some((format!("{}/{}", target.provider.name, target.model), target.price?))
    });
    if configured.is_some() {
        return configured;
    }
    let catalog = snapshot.map_or_else(Catalog::builtin, |snapshot| snapshot.prices.clone());
    let rank =
        |row: &str| MAKERS.iter().position(|maker| row.starts_with(&format!("{maker}/"))).unwrap_or(MAKERS.len());
    let listing = catalog.listings(name).into_iter().min_by_key(|listing| rank(&listing.row))?;
    Some((listing.row, listing.price))
}

/// The token figures of a recorded call; `None` where they are not known, since its bound was charged, or nothing was.
#[must_use]
pub fn usage_of(row: &CallRow) -> Option<Usage> {
    let is_known = !matches!(row.usage_source, UsageSource::Bound | UsageSource::None);
    is_known.then_some(Usage {
        input: Tokens(row.input_tokens),
        cached: Tokens(row.cached_tokens),
        cache_write: Tokens(row.cache_write_tokens),
        cache_write_1h: Tokens(row.cache_write_1h_tokens),
        input_audio: Tokens(row.input_audio_tokens),
        cached_audio: Tokens(row.cached_audio_tokens),
        output: Tokens(row.output_tokens),
        reasoning: Tokens(row.reasoning_tokens),
        output_audio: Tokens(row.output_audio_tokens),
    })
}

/// A moment from milliseconds since 1970.
#[must_use]
pub fn moment_of(ms: u64) -> Timestamp {
    i64::try_from(ms).ok().and_then(|ms| Timestamp::from_millisecond(ms).ok()).unwrap_or_default()
}

/// Whether a call named `model`, or went to it.
fn names(row: &CallRow, model: &str) -> bool {
    let of_target = row
        .target
        .as_deref()
        .is_some_and(|target| target == model || target.split_once('/').is_some_and(|(_, own)| own == model));
    of_target || *row.model == *model || row.named.as_deref() == Some(model)
}

// === impl WhatIf ===

impl WhatIf {
    /// All targets together.
    #[must_use]
    pub fn total(&self) -> Compared {
        self.by_target.values().fold(Compared::default(), |sum, one| Compared {
            calls: sum.calls + one.calls,
            was_nanousd: sum.was_nanousd.saturating_add(one.was_nanousd),
            would_nanousd: sum.would_nanousd.saturating_add(one.would_nanousd),
        })
    }

    fn add(&mut self, row: &CallRow, question: &Question<'_>) {
        let is_meant = question.instead_of.is_none_or(|model| names(row, model));
        let Some(target) = row.target.clone().filter(|_| is_meant) else { return };
        let Some(usage) = usage_of(row).filter(|_| row.priced) else {
            self.left_out += 1;
            return;
        };
        let would = question.price.cost(&usage, None, moment_of(row.received_ms));
        let compared = self.by_target.entry(target).or_default();
        compared.calls += 1;
        compared.was_nanousd = compared.was_nanousd.saturating_add(row.cost_nanousd);
        compared.would_nanousd = compared.would_nanousd.saturating_add(would.0);
    }
}
