//! `tollgate costs chargeback`: what to bill each team for, exact to the nano-dollar.

use std::{collections::BTreeMap, io::Write, sync::Arc};

use clap::Args;

use super::{Books, CostsError, Span, csv, day_of_call};
use crate::{record::CallRow, units::NanoUsd};

/// Of which time.
#[derive(Debug, Args)]
pub(super) struct ChargebackArguments {
    #[command(flatten)]
    span: Span,
}

/// Sums of one team, model and month.
#[derive(Debug, Default)]
struct Bill {
    calls: u64,
    /// Input that was in no cache, was read from one, was written to one; output; of it reasoning; audio of both, which is in the others too.
    tokens: [u64; 6],
    cost_nanousd: u64,
    /// Calls without a price, which cost nothing here.
    unpriced: u64,
}

const HEAD: [&str; 11] = [
    "month",
    "team",
    "model",
    "calls",
    "uncached_input_tokens",
    "cached_input_tokens",
    "cache_write_tokens",
    "output_tokens",
    "reasoning_tokens",
    "audio_tokens",
    "cost_usd",
];

pub(super) async fn run(
    arguments: &ChargebackArguments,
    books: &Books<'_>,
    out: &mut (impl Write + Send),
) -> Result<(), CostsError> {
    let mut bills: BTreeMap<(String, Arc<str>, Arc<str>), Bill> = BTreeMap::new();
    let filter = arguments.span.filter(books);
    books
        .each_call(filter, |row| {
            let month = day_of_call(row).strftime("%Y-%m").to_string();
            bills.entry((month, row.team.clone().unwrap_or_default(), row.model.clone())).or_default().add(row);
        })
        .await?;
    out.write_all(csv::line(HEAD).as_bytes())?;
    for ((month, team, model), bill) in &bills {
        let numbers = std::iter::once(bill.calls).chain(bill.tokens).map(|number| number.to_string());
        let fields = [month.clone(), team.to_string(), model.to_string()].into_iter().chain(numbers);
        out.write_all(csv::line(fields.chain([NanoUsd(bill.cost_nanousd).to_string()])).as_bytes())?;
    }
    let unpriced: u64 = bills.values().map(|bill| bill.unpriced).sum();
    if unpriced > 0 {
        let _ = writeln!(std::io::stderr(), "tollgate: {unpriced} calls have no price and are in no cost");
    }
    Ok(())
}

impl Bill {
    fn add(&mut self, row: &CallRow) {
        let written = row.cache_write_tokens.saturating_add(row.cache_write_1h_tokens);
        let uncached = row.input_tokens.saturating_sub(row.cached_tokens).saturating_sub(written);
        let audio = row.input_audio_tokens.saturating_add(row.output_audio_tokens);
        let tokens = [uncached, row.cached_tokens, written, row.output_tokens, row.reasoning_tokens, audio];
        self.calls += 1;
        self.tokens.iter_mut().zip(tokens).for_each(|(sum, tokens)| *sum = sum.saturating_add(tokens));
        self.cost_nanousd = self.cost_nanousd.saturating_add(row.cost_nanousd);
        self.unpriced += u64::from(!row.priced && row.attempts > 0);
    }
}
