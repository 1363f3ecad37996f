//! `tollgate costs`: sums by something, and what the month will come to.

use std::{collections::BTreeMap, io::Write, sync::Arc};

use clap::Args;
use serde_json::{Value, json};

use super::{
    Books, CostsError, Span, csv, percent,
    value::{Valued, Worth},
};
use crate::{
    policy::forecast::{self, Forecast},
    record::CallRow,
    store::records::{
        month,
        ports::{Dimension, Figures, Filter, UsageQuery},
    },
    units::NanoUsd,
};

/// What to sum up, and how to show it.
#[derive(Debug, Args)]
pub(super) struct OverviewArguments {
    /// By what: model, team, key, user, provider, variant, prompt, day, or tag:NAME
    #[arg(long, default_value = "model", value_parser = By::parse)]
    by: By,
    #[command(flatten)]
    span: Span,
    /// What an outcome is worth, by feedback that came in that time: resolved=0.50USD
    #[arg(long, value_name = "METRIC=AMOUNT", value_parser = Worth::parse, conflicts_with = "csv")]
    value: Option<Worth>,
    /// As JSON
    #[arg(long, conflicts_with = "csv")]
    json: bool,
    /// As CSV
    #[arg(long)]
    csv: bool,
}

/// What costs are told apart by.
#[derive(Debug, Clone, PartialEq, Eq)]
enum By {
    /// Something that the log has sums of.
    Summed(Dimension),
    /// Days of UTC.
    Day,
    /// The injected prompt, without its version.
    Prompt,
    /// The value of a tag.
    Tag(Arc<str>),
}

/// Sums by value.
type Sums = BTreeMap<Arc<str>, Figures>;

pub(super) async fn run(
    arguments: &OverviewArguments,
    books: &Books<'_>,
    out: &mut (impl Write + Send),
) -> Result<(), CostsError> {
    let filter = arguments.span.filter(books);
    let sums = match &arguments.by {
        By::Summed(dimension) => summed(books, filter.clone(), *dimension).await?,
        By::Day => month::by_day(&*books.log, filter.clone())
            .await?
            .into_iter()
            .map(|(day, sums)| (day.to_string().into(), sums))
            .collect(),
        By::Prompt => {
            counted(books, filter.clone(), |row| {
                row.prompt.as_deref().map_or("", |prompt| prompt.split('@').next().unwrap_or(prompt)).into()
            })
            .await?
        }
        By::Tag(name) => counted(books, filter.clone(), |row| row.tags.get(name).cloned().unwrap_or_default()).await?,
    };
    let total = of_all(books, filter.clone()).await?;
    let forecast = match arguments.span.is_this_month(books.now) {
        true => month::forecast(&*books.log, filter.clone(), books.now).await?,
        false => None,
    };
    let valued = match &arguments.value {
        None => None,
        Some(_) if !arguments.span.is_of_all() => {
            let why =
                "what outcomes are worth is known for all calls together; leave --team, --key, --user and --tag out";
            return Err(CostsError::Wrong(anyhow::anyhow!(why)));
        }
        Some(worth) => Some(worth.clone().valued(books, &filter).await?),
    };
    let mut rows: Vec<(Arc<str>, Figures)> = sums.into_iter().collect();
    if arguments.by != By::Day {
        rows.sort_by(|(a, one), (b, other)| other.cost_nanousd.cmp(&one.cost_nanousd).then_with(|| a.cmp(b)));
    }
    let text = match (arguments.json, arguments.csv) {
        (true, _) => as_json(&arguments.by, &rows, &total, forecast, valued.as_ref()),
        (_, true) => as_csv(&arguments.by, &rows),
        _ => as_table(&arguments.by, &rows, &total, forecast, valued.as_ref()),
    };
    Ok(out.write_all(text.as_bytes())?)
}

// === sums ===

async fn summed(books: &Books<'_>, filter: Filter, dimension: Dimension) -> Result<Sums, CostsError> {
    let query = UsageQuery { filter, by: Some(dimension), ..UsageQuery::default() };
    let series = books.log.usage(query).await?;
    Ok(series.into_iter().map(|series| (series.value, series.total)).collect())
}

async fn of_all(books: &Books<'_>, filter: Filter) -> Result<Figures, CostsError> {
    let series = books.log.usage(UsageQuery { filter, ..UsageQuery::default() }).await?;
    Ok(series.into_iter().next().map(|series| series.total).unwrap_or_default())
}

/// Sums that the log does not keep, from the calls themselves.
async fn counted(books: &Books<'_>, filter: Filter, value: impl Fn(&CallRow) -> Arc<str>) -> Result<Sums, CostsError> {
    let mut sums = Sums::new();
    books.each_call(filter, |row| sums.entry(value(row)).or_default().add(&row.into())).await?;
    Ok(sums)
}

// === output ===

fn as_table(
    by: &By,
    rows: &[(Arc<str>, Figures)],
    total: &Figures,
    forecast: Option<Forecast>,
    valued: Option<&Valued>,
) -> String {
    let width = rows.iter().map(|(value, _)| value.chars().count()).max().unwrap_or(0).clamp(12, 48);
    let line = |value: &str, figures: &Figures| {
        format!(
            "{value:<width$} {:>9} {:>13} {:>7} {:>12} {:>16} {:>7}\n",
            figures.calls,
            figures.input_tokens,
            percent(figures.cached_tokens, figures.input_tokens),
            figures.output_tokens,
            NanoUsd(figures.cost_nanousd).to_string(),
            percent(figures.cost_nanousd, total.cost_nanousd),
        )
    };
    let mut text = format!(
        "{:<width$} {:>9} {:>13} {:>7} {:>12} {:>16} {:>7}\n",
        by.label(),
        "CALLS",
        "INPUT",
        "CACHED",
        "OUTPUT",
        "COST USD",
        "SHARE"
    );
    for (value, figures) in rows {
        text += &line(if value.is_empty() { "(none)" } else { value }, figures);
    }
    text += &line("total", total);
    if *by == By::Summed(Dimension::Variant) {
        text +=
            "\nA call in two experiments counts under both, and one in none under neither: shares need not add up.\n";
    }
    if let Some(forecast) = forecast {
        text += &format!("\n{}\n", sentence(forecast));
    }
    if let Some(valued) = valued {
        text += &format!("\n{}\n", valued.sentence(NanoUsd(total.cost_nanousd)));
    }
    text
}

/// The forecast with what it rests on.
fn sentence(forecast: Forecast) -> String {
    let rounded = |amount: NanoUsd| format!("{:.2}", amount.as_usd());
    let range = match forecast.range {
        Some((low, high)) => format!(", four times out of five between {} and {}", rounded(low), rounded(high)),
        None => format!(", without a range, which takes {} whole days", forecast::DAYS_FOR_INTERVAL),
    };
    format!(
        "This month will come to about {} USD{range}: {} so far, and each day to come as the same weekdays of the last {} weeks \
         ({} whole days known).",
        rounded(forecast.total),
        rounded(forecast.spent),
        forecast::WEEKS,
        forecast.days
    )
}

fn as_csv(by: &By, rows: &[(Arc<str>, Figures)]) -> String {
    let label = by.label().to_lowercase();
    let head = [
        &*label,
        "calls",
        "errors",
        "refused",
        "input_tokens",
        "cached_tokens",
        "output_tokens",
        "reasoning_tokens",
        "cost_usd",
    ];
    let mut text = csv::line(head);
    for (value, figures) in rows {
        let numbers = [
            figures.calls,
            figures.errors,
            figures.refused,
            figures.input_tokens,
            figures.cached_tokens,
            figures.output_tokens,
            figures.reasoning_tokens,
        ];
        let fields = std::iter::once(value.to_string()).chain(numbers.map(|number| number.to_string()));
        text += &csv::line(fields.chain([NanoUsd(figures.cost_nanousd).to_string()]));
    }
    text
}

fn as_json(
    by: &By,
    rows: &[(Arc<str>, Figures)],
    total: &Figures,
    forecast: Option<Forecast>,
    valued: Option<&Valued>,
) -> String {
    let forecast = forecast.map(|forecast| {
        let range = forecast.range.map(|(low, high)| json!({"low_nanousd": low, "high_nanousd": high, "probability": 0.8}));
        json!({"spent_nanousd": forecast.spent, "total_nanousd": forecast.total, "range": range, "days": forecast.days, "method": "weekdays of 4 weeks"})
    });
    let rows: Vec<Value> = rows.iter().map(|(value, figures)| with_value(value, figures)).collect();
    let value =
        valued.map(|valued| json!({"ratings": valued.ratings, "sum": valued.sum, "value_nanousd": valued.value()}));
    let by = by.label().to_lowercase();
    let document = json!({"by": by, "rows": rows, "total": figures_json(total), "forecast": forecast, "value": value});
    format!("{document:#}\n")
}

fn with_value(value: &str, figures: &Figures) -> Value {
    let mut row = json!({"value": value});
    if let (Value::Object(row), Value::Object(figures)) = (&mut row, figures_json(figures)) {
        row.extend(figures);
    }
    row
}

fn figures_json(figures: &Figures) -> Value {
    json!({
        "calls": figures.calls,
        "errors": figures.errors,
        "refused": figures.refused,
        "input_tokens": figures.input_tokens,
        "cached_tokens": figures.cached_tokens,
        "output_tokens": figures.output_tokens,
        "reasoning_tokens": figures.reasoning_tokens,
        "cost_nanousd": figures.cost_nanousd,
    })
}

impl By {
    fn parse(text: &str) -> Result<By, String> {
        let dimensions = [
            Dimension::Model,
            Dimension::Team,
            Dimension::Key,
            Dimension::User,
            Dimension::Provider,
            Dimension::Variant,
        ];
        if let Some(dimension) = dimensions.into_iter().find(|dimension| dimension.label() == text) {
            return Ok(By::Summed(dimension));
        }
        match (text, text.strip_prefix("tag:")) {
            ("day", _) => Ok(By::Day),
            ("prompt", _) => Ok(By::Prompt),
            (_, Some(name)) if !name.is_empty() => Ok(By::Tag(name.into())),
            _ => {
                Err("costs are told apart by model, team, key, user, provider, variant, prompt, day or tag:NAME"
                    .to_owned())
            }
        }
    }

    fn label(&self) -> String {
        match self {
            By::Summed(dimension) => dimension.label().to_uppercase(),
            By::Day => "DAY".to_owned(),
            By::Prompt => "PROMPT".to_owned(),
            By::Tag(name) => format!("TAG:{name}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_costs_are_told_apart_by_is_read() {
        assert_eq!(By::parse("team"), Ok(By::Summed(Dimension::Team)));
        assert_eq!(By::parse("tag:app"), Ok(By::Tag("app".into())));
        assert!(By::parse("tag:").is_err() && By::parse("outcome").is_err());
    }

    #[test]
    fn the_forecast_says_what_it_rests_on() {
        let forecast = Forecast { spent: NanoUsd(1_500_000_000), total: NanoUsd(30_000_000_000), range: None, days: 3 };
        let said = sentence(forecast);
        assert!(said.contains("about 30.00 USD, without a range") && said.contains("(3 whole days known)"), "{said}");
    }
}
