//! `tollgate costs what-if`: recorded calls at another model's price.

use std::io::Write;

use clap::Args;
use serde_json::json;

use super::{Books, CostsError, Span, difference, percent};
use crate::{
    analysis::what_if::{Compared, METHOD, Question, WhatIf, what_if},
    units::NanoUsd,
};

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

pub(super) async fn run(
    arguments: &WhatIfArguments,
    books: &Books<'_>,
    out: &mut (impl Write + Send),
) -> Result<(), CostsError> {
    let (name, price) = books.price(&arguments.model)?;
    let question = Question {
        filter: arguments.span.filter(books),
        instead_of: arguments.instead_of.as_deref(),
        price: &price,
        calls_max: u64::MAX,
    };
    let found = what_if(&*books.log, &question).await?;
    let text = if arguments.json { as_json(&name, &found) } else { as_table(&name, &found) };
    Ok(out.write_all(text.as_bytes())?)
}

fn as_table(name: &str, found: &WhatIf) -> String {
    let width = found.by_target.keys().map(|target| target.chars().count()).max().unwrap_or(0).clamp(12, 48);
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
    found.by_target.iter().for_each(|(target, compared)| text += &line(target, compared));
    text += &line("total", &found.total());
    text += &format!("\n{METHOD}\n");
    if found.left_out > 0 {
        text += &format!("Left out: {} calls without a price or without token counts.\n", found.left_out);
    }
    text
}

fn as_json(name: &str, found: &WhatIf) -> String {
    let row = |target: &str, one: &Compared| json!({"target": target, "calls": one.calls, "cost_nanousd": one.was_nanousd, "would_nanousd": one.would_nanousd});
    let rows: Vec<_> = found.by_target.iter().map(|(target, compared)| row(target, compared)).collect();
    let document = json!({"model": name, "rows": rows, "total": row("", &found.total()), "left_out": found.left_out, "method": METHOD});
    format!("{document:#}\n")
}
