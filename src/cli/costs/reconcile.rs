//! `tollgate costs reconcile`: the call log beside a provider's own statement, by day and model.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::Write,
    path::PathBuf,
};

use anyhow::Context;
use clap::Args;
use jiff::civil::Date;
use serde_json::{Value, json};

use super::{
    Books, CostsError, day_of_call, difference, percent,
    statement::{self, Stated, Statement, family},
};
use crate::{
    record::CallRow,
    store::records::{month, ports::Filter},
    units::NanoUsd,
};

/// What to compare with.
#[derive(Debug, Args)]
pub(super) struct ReconcileArguments {
    /// The provider's export: OpenAI's cost export or pages of its Costs or Usage API; Anthropic's usage export or reports
    file: PathBuf,
    /// The provider's name in the configuration
    #[arg(long)]
    provider: String,
    /// How much the sums may differ
    #[arg(long, value_name = "SHARE", default_value = "1%", value_parser = share)]
    tolerance: f64,
    /// As JSON
    #[arg(long)]
    json: bool,
}

/// A day and a model on both sides.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Line {
    day: Option<Date>,
    model: String,
    /// Nano-USD, or tokens where the statement says no money: the log's figure, and the provider's.
    logged: u64,
    stated: u64,
}

/// What is compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Measure {
    Cost,
    InputTokens,
    OutputTokens,
}

/// What the log holds of a day and model.
#[derive(Debug, Default, Clone, Copy)]
struct Logged {
    cost_nanousd: u64,
    input: u64,
    output: u64,
}

/// Differences of less than a cent are no matter, whatever their share.
const CENT: u64 = 10_000_000;
/// Nor are those of so few tokens.
const FEW_TOKENS: u64 = 1000;

/// Gives back whether both agree.
pub(super) async fn run(
    arguments: &ReconcileArguments,
    books: &Books<'_>,
    out: &mut (impl Write + Send),
) -> Result<bool, CostsError> {
    let path = arguments.file.display();
    let text = std::fs::read_to_string(&arguments.file)
        .with_context(|| format!("{path}: cannot be read"))
        .map_err(CostsError::Wrong)?;
    let statement = statement::read(&text).with_context(|| path.to_string()).map_err(CostsError::Wrong)?;
    let days: BTreeSet<Date> = statement.keys().map(|(day, _)| *day).collect();
    let (Some(first), Some(last)) = (days.first(), days.last()) else { return Ok(true) };
    let filter = Filter {
        since_ms: Some(month::first_ms(*first)),
        until_ms: last.tomorrow().ok().map(month::first_ms),
        provider: Some(arguments.provider.clone()),
        ..Filter::default()
    };
    let names_models = statement.keys().any(|(_, model)| !model.is_empty());
    let mut logged: BTreeMap<(Date, String), Logged> = BTreeMap::new();
    books.each_call(filter, |row| add(&mut logged, row, names_models)).await?;
    // A day that the statement does not have is not compared: exports are late.
    logged.retain(|(day, _), _| days.contains(day));
    let mut all_agree = true;
    let mut documents = Vec::new();
    for measure in measures(&statement) {
        let mut lines = lines(&statement, &logged, measure);
        lines.push(total(&lines));
        let agrees = lines.iter().all(|line| line.is_within(arguments.tolerance, measure));
        all_agree &= agrees;
        match arguments.json {
            true => documents.push(as_json(&lines, measure, arguments.tolerance)),
            false => out.write_all(as_table(&lines, measure, arguments.tolerance).as_bytes())?,
        }
    }
    if arguments.json {
        writeln!(out, "{:#}", json!({"provider": arguments.provider, "agrees": all_agree, "measures": documents}))?;
    } else {
        let verdict = if all_agree { "Both agree" } else { "They differ by more" };
        writeln!(
            out,
            "{verdict}: tolerance {:.2}%, and a cent or {FEW_TOKENS} tokens. Days are those of UTC.",
            arguments.tolerance * 100.0
        )?;
    }
    Ok(all_agree)
}

fn add(logged: &mut BTreeMap<(Date, String), Logged>, row: &CallRow, names_models: bool) {
    let model = row.target.as_deref().and_then(|target| target.split_once('/')).map_or("", |(_, model)| family(model));
    let model = if names_models { model.to_owned() } else { String::new() };
    let sums = logged.entry((day_of_call(row), model)).or_default();
    sums.cost_nanousd = sums.cost_nanousd.saturating_add(row.cost_nanousd);
    sums.input = sums.input.saturating_add(row.input_tokens);
    sums.output = sums.output.saturating_add(row.output_tokens);
}

/// What the statement speaks of.
fn measures(statement: &Statement) -> Vec<Measure> {
    let has = |what: fn(&Stated) -> bool| statement.values().any(what);
    let tokens =
        [Measure::InputTokens, Measure::OutputTokens].into_iter().filter(|_| has(|line| line.tokens.is_some()));
    std::iter::once(Measure::Cost).filter(|_| has(|line| line.cost_nanousd.is_some())).chain(tokens).collect()
}

fn lines(statement: &Statement, logged: &BTreeMap<(Date, String), Logged>, measure: Measure) -> Vec<Line> {
    let places: BTreeSet<&(Date, String)> = statement.keys().chain(logged.keys()).collect();
    let line = |place: &(Date, String)| {
        let (ours, theirs) =
            (logged.get(place).copied().unwrap_or_default(), statement.get(place).copied().unwrap_or_default());
        let (logged, stated) = match measure {
            Measure::Cost => (ours.cost_nanousd, theirs.cost_nanousd.unwrap_or(0)),
            Measure::InputTokens => (ours.input, theirs.tokens.unwrap_or_default().0),
            Measure::OutputTokens => (ours.output, theirs.tokens.unwrap_or_default().1),
        };
        Line { day: Some(place.0), model: place.1.clone(), logged, stated }
    };
    places.into_iter().map(line).filter(|line| line.logged > 0 || line.stated > 0).collect()
}

fn total(lines: &[Line]) -> Line {
    let sum = |of: fn(&Line) -> u64| lines.iter().map(of).fold(0, u64::saturating_add);
    Line { day: None, model: "total".to_owned(), logged: sum(|line| line.logged), stated: sum(|line| line.stated) }
}

impl Line {
    fn is_within(&self, tolerance: f64, measure: Measure) -> bool {
        let apart = self.logged.abs_diff(self.stated);
        let least = if measure == Measure::Cost { CENT } else { FEW_TOKENS };
        apart <= least || apart as f64 <= self.stated as f64 * tolerance
    }
}

fn as_table(lines: &[Line], measure: Measure, tolerance: f64) -> String {
    let width = lines.iter().map(|line| line.model.chars().count()).max().unwrap_or(0).clamp(12, 40);
    let unit = measure.label();
    let mut text = format!(
        "{unit}\n{:<10} {:<width$} {:>18} {:>18} {:>18} {:>8}\n",
        "DAY", "MODEL", "LOG", "PROVIDER", "LOG - PROVIDER", "SHARE"
    );
    for line in lines {
        let figure = |value: u64| if measure == Measure::Cost { NanoUsd(value).to_string() } else { value.to_string() };
        let apart = match measure {
            Measure::Cost => difference(line.logged, line.stated),
            _ => (i128::from(line.logged) - i128::from(line.stated)).to_string(),
        };
        text += &format!(
            "{:<10} {:<width$} {:>18} {:>18} {apart:>18} {:>8}{}\n",
            line.day.map(|day| day.to_string()).unwrap_or_default(),
            if line.model.is_empty() { "(all)" } else { &line.model },
            figure(line.logged),
            figure(line.stated),
            percent(line.logged.abs_diff(line.stated), line.stated),
            if line.is_within(tolerance, measure) { "" } else { "  <-" },
        );
    }
    text + "\n"
}

fn as_json(lines: &[Line], measure: Measure, tolerance: f64) -> Value {
    let line = |line: &Line| {
        json!({
            "day": line.day.map(|day| day.to_string()),
            "model": line.model,
            "log": line.logged,
            "provider": line.stated,
            "within": line.is_within(tolerance, measure),
        })
    };
    json!({"measure": measure.label(), "lines": lines.iter().map(line).collect::<Vec<Value>>()})
}

impl Measure {
    const fn label(self) -> &'static str {
        match self {
            Measure::Cost => "cost in USD",
            Measure::InputTokens => "input tokens",
            Measure::OutputTokens => "output tokens",
        }
    }
}

/// A share such as `1%`, from 0 to 1.
fn share(text: &str) -> Result<f64, String> {
    let percent = text.strip_suffix('%').and_then(|number| number.trim().parse::<f64>().ok());
    percent
        .filter(|percent| (0.0..=100.0).contains(percent))
        .map(|percent| percent / 100.0)
        .ok_or_else(|| format!("`{text}` is no share; write it as 1%"))
}

#[cfg(test)]
mod tests {
    use jiff::civil::date;

    use super::*;

    fn line(logged: u64, stated: u64) -> Line {
        Line { day: Some(date(2026, 11, 1)), model: "m".to_owned(), logged, stated }
    }

    #[test]
    fn small_differences_are_no_matter() {
        const USD: u64 = 1_000_000_000;
        for (logged, stated, agrees) in [
            (100 * USD, 101 * USD, true),
            (100 * USD, 102 * USD, false),
            (0, CENT, true),
            (0, USD, false),
            (USD, 0, false),
        ] {
            assert_eq!(line(logged, stated).is_within(0.01, Measure::Cost), agrees, "{logged} {stated}");
        }
    }

    #[test]
    fn what_only_one_side_has_is_compared_with_nothing() {
        let place = |model: &str| (date(2026, 11, 1), model.to_owned());
        let stated = Stated { cost_nanousd: Some(5), tokens: None };
        let statement = Statement::from([(place("a"), stated)]);
        let logged = BTreeMap::from([(place("b"), Logged { cost_nanousd: 7, ..Logged::default() })]);
        let found = lines(&statement, &logged, Measure::Cost);
        assert_eq!(
            found.iter().map(|line| (line.model.as_str(), line.logged, line.stated)).collect::<Vec<_>>(),
            [("a", 0, 5), ("b", 7, 0)]
        );
        assert_eq!((total(&found).logged, total(&found).stated), (7, 5));
        assert_eq!(measures(&statement), [Measure::Cost]);
    }
}
