//! `tollgate costs what-if`: recorded calls at another model's price.

use std::{collections::BTreeMap, io::Write, sync::Arc};

use clap::Args;
use serde_json::json;

use super::{Books, CostsError, Span, difference, moment_of, percent, usage_of};
use crate::{record::CallRow, units::NanoUsd};

/// Which calls, and which price.
#[derive(Debug, Args)]
pub(super) struct WhatIfArguments {
    /// The model that they would have gone to: an alias, provider/model, or a model's name
    #[arg(long)]
    model: String,
    /// Only calls that named this model or went to it; default: all
    #[arg(long, value_name = "MODEL")]
    instead_of: Option<String>,
    #[command(flatten)]
    span: Span,
    /// As JSON
    #[arg(long)]
    json: bool,
}

/// What calls to one target cost, and would have cost.
#[derive(Debug, Default, Clone, Copy)]
struct Compared {
    calls: u64,
    was_nanousd: u64,
    would_nanousd: u64,
}

const NOTE: &str = "Computed for each call from its tokens by kind, at the price that holds at its time. Token counts are those of the \
                    model that answered: another tokenizer counts the same text differently, and another model says more or less.";

pub(super) async fn run(
    arguments: &WhatIfArguments,
    books: &Books<'_>,
    out: &mut (impl Write + Send),
) -> Result<(), CostsError> {
    let (name, price) = books.price(&arguments.model)?;
    let mut by_target: BTreeMap<Arc<str>, Compared> = BTreeMap::new();
    let mut unknown = 0_u64;
    let filter = arguments.span.filter(books);
    let is_meant = |row: &CallRow| arguments.instead_of.as_deref().is_none_or(|model| names(row, model));
    books
        .each_call(filter, |row| {
            let Some(target) = row.target.clone().filter(|_| is_meant(row)) else { return };
            let Some(usage) = usage_of(row).filter(|_| row.priced) else {
                unknown += 1;
                return;
            };
            let compared = by_target.entry(target).or_default();
            compared.calls += 1;
            compared.was_nanousd = compared.was_nanousd.saturating_add(row.cost_nanousd);
            let would = price.cost(&usage, None, moment_of(row.received_ms));
            compared.would_nanousd = compared.would_nanousd.saturating_add(would.0);
        })
        .await?;
    let text = if arguments.json { as_json(&name, &by_target, unknown) } else { as_table(&name, &by_target, unknown) };
    Ok(out.write_all(text.as_bytes())?)
}

/// Whether a call named `model`, or went to it.
fn names(row: &CallRow, model: &str) -> bool {
    let of_target = row
        .target
        .as_deref()
        .is_some_and(|target| target == model || target.split_once('/').is_some_and(|(_, own)| own == model));
    of_target || *row.model == *model || row.named.as_deref() == Some(model)
}

fn total(by_target: &BTreeMap<Arc<str>, Compared>) -> Compared {
    by_target.values().fold(Compared::default(), |sum, one| Compared {
        calls: sum.calls + one.calls,
        was_nanousd: sum.was_nanousd.saturating_add(one.was_nanousd),
        would_nanousd: sum.would_nanousd.saturating_add(one.would_nanousd),
    })
}

fn as_table(name: &str, by_target: &BTreeMap<Arc<str>, Compared>, unknown: u64) -> String {
    let width = by_target.keys().map(|target| target.chars().count()).max().unwrap_or(0).clamp(12, 48);
    let line = |target: &str, compared: &Compared| {
        format!(
            "{target:<width$} {:>9} {:>16} {:>16} {:>16} {:>8}\n",
            compared.calls,
            NanoUsd(compared.was_nanousd).to_string(),
            NanoUsd(compared.would_nanousd).to_string(),
            difference(compared.would_nanousd, compared.was_nanousd),
            percent(compared.would_nanousd, compared.was_nanousd),
        )
    };
    let mut text = format!(
        "On {name}:\n\n{:<width$} {:>9} {:>16} {:>16} {:>16} {:>8}\n",
        "WENT TO", "CALLS", "COST USD", "WOULD", "DIFFERENCE", "OF COST"
    );
    by_target.iter().for_each(|(target, compared)| text += &line(target, compared));
    text += &line("total", &total(by_target));
    text += &format!("\n{NOTE}\n");
    if unknown > 0 {
        text += &format!(
            "Left out: {unknown} {} without a price or without token counts.\n",
            if unknown == 1 { "call" } else { "calls" }
        );
    }
    text
}

fn as_json(name: &str, by_target: &BTreeMap<Arc<str>, Compared>, unknown: u64) -> String {
    let row = |target: &str, one: &Compared| json!({"target": target, "calls": one.calls, "cost_nanousd": one.was_nanousd, "would_nanousd": one.would_nanousd});
    let rows: Vec<_> = by_target.iter().map(|(target, compared)| row(target, compared)).collect();
    let document =
        json!({"model": name, "rows": rows, "total": row("", &total(by_target)), "left_out": unknown, "method": NOTE});
    format!("{document:#}\n")
}
