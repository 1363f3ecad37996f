//! `tollgate costs`: what was spent on what, what the month will come to, and what would make it less.
//!
//! Reads the call log, whether a gateway runs on it or not. Days and months are those of UTC, as in providers' statements.

mod advice;
mod chargeback;
mod cheaper;
mod csv;
mod overview;
mod reconcile;
mod statement;
mod value;
mod what_if;

use std::{io::Write, sync::Arc};

use clap::{Args, Subcommand};
use jiff::{Timestamp, civil::Date, tz::TimeZone};

use super::calls::{CallsError, Place, moment, open, pair};
use crate::{
    analysis::what_if::{moment_of, price_of, usage_of},
    config::Snapshot,
    policy::pricing::{Catalog, Price},
    record::{CallRow, stored_id},
    store::records::{
        month,
        ports::{CallLog, Filter},
    },
};

/// Calls fetched at a time.
const PAGE: usize = 1000;

/// What to look at.
#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
pub struct CostsArguments {
    #[command(subcommand)]
    command: Option<CostsCommand>,
    #[command(flatten)]
    overview: overview::OverviewArguments,
}

#[derive(Debug, Subcommand)]
enum CostsCommand {
    /// One row for each team, model and month, as CSV: to bill teams
    Chargeback(chargeback::ChargebackArguments),
    /// What recorded calls would have cost on another model
    WhatIf(what_if::WhatIfArguments),
    /// Compare the call log with a provider's own statement; exit 1 when they differ by more than the tolerance
    Reconcile(reconcile::ReconcileArguments),
    /// What would make it less: prompt caches, batches
    Advice(advice::AdviceArguments),
}

/// Of which time, and which calls.
#[derive(Debug, Clone, Args)]
struct Span {
    /// A month of UTC, such as 2026-11; default: this one
    #[arg(long, conflicts_with_all = ["since", "until"], value_parser = month_of)]
    month: Option<Date>,
    /// From then: a time such as 2026-11-01T00:00:00Z, or how long ago (30m, 2h, 7d)
    #[arg(long, value_parser = moment)]
    since: Option<u64>,
    /// Until then
    #[arg(long, value_parser = moment)]
    until: Option<u64>,
    /// Of a team
    #[arg(long)]
    team: Option<String>,
    /// Of a key
    #[arg(long)]
    key: Option<String>,
    /// Of a user
    #[arg(long)]
    user: Option<String>,
    /// With a tag
    #[arg(long, value_name = "NAME=VALUE", value_parser = pair)]
    tag: Option<(String, String)>,
}

/// What a command works on.
struct Books<'b> {
    log: Box<dyn CallLog>,
    place: &'b Place,
    /// The configuration, where there is one: for prices of its own, and what its aliases mean.
    snapshot: Option<&'b Snapshot>,
    now: Timestamp,
}

/// Why a command failed.
#[derive(Debug)]
pub enum CostsError {
    /// The log cannot be used.
    Log(CallsError),
    /// What was asked for makes no sense.
    Wrong(anyhow::Error),
}

impl<E: Into<anyhow::Error>> From<E> for CostsError {
    fn from(error: E) -> CostsError {
        CostsError::Log(CallsError::Failed(error.into()))
    }
}

/// Runs the command on the log at `place`. Gives back whether all is well: a statement may differ.
///
/// # Errors
/// When the log cannot be used, the output not written, or the arguments make no sense.
pub async fn run(
    arguments: &CostsArguments,
    place: &Place,
    snapshot: Option<&Snapshot>,
    out: &mut (impl Write + Send),
) -> Result<bool, CostsError> {
    let books = Books { log: open(place).map_err(CostsError::Log)?, place, snapshot, now: Timestamp::now() };
    match &arguments.command {
        None => overview::run(&arguments.overview, &books, out).await.map(|()| true),
        Some(CostsCommand::Chargeback(arguments)) => chargeback::run(arguments, &books, out).await.map(|()| true),
        Some(CostsCommand::WhatIf(arguments)) => what_if::run(arguments, &books, out).await.map(|()| true),
        Some(CostsCommand::Reconcile(arguments)) => reconcile::run(arguments, &books, out).await,
        Some(CostsCommand::Advice(arguments)) => advice::run(arguments, &books, out).await.map(|()| true),
    }
}

// === Span ===

impl Span {
    /// The calls that are meant; a span that is not given is the current month.
    fn filter(&self, books: &Books<'_>) -> Filter {
        let (since_ms, until_ms) = match (self.since, self.until, self.month) {
            (None, None, month) => month_bounds(month.unwrap_or_else(|| day_of(books.now))),
            (since, until, _) => (since, until),
        };
        let user = self.user.as_ref().map(|user| stored_id(Arc::from(user.as_str()), books.place.users).to_string());
        Filter {
            since_ms,
            until_ms,
            team: self.team.clone(),
            key: self.key.clone(),
            user,
            tag: self.tag.clone(),
            ..Filter::default()
        }
    }

    /// Whether nothing but the time is given.
    fn is_of_all(&self) -> bool {
        self.team.is_none() && self.key.is_none() && self.user.is_none() && self.tag.is_none()
    }

    /// Whether the current month is meant.
    fn is_this_month(&self, now: Timestamp) -> bool {
        let this = day_of(now).first_of_month();
        self.since.is_none() && self.until.is_none() && self.month.is_none_or(|month| month.first_of_month() == this)
    }
}

/// A month such as `2026-11`, as its first day.
fn month_of(text: &str) -> Result<Date, String> {
    format!("{text}-01").parse().map_err(|_| format!("`{text}` is no month; write it as 2026-11"))
}

/// The first millisecond of the month of `day`, and that of the next.
fn month_bounds(day: Date) -> (Option<u64>, Option<u64>) {
    let first = day.first_of_month();
    let next = day.last_of_month().tomorrow().ok();
    (Some(month::first_ms(first)), next.map(month::first_ms))
}

/// The day of UTC that a moment is in.
fn day_of(at: Timestamp) -> Date {
    TimeZone::UTC.to_datetime(at).date()
}

/// The day of UTC in which a call came.
fn day_of_call(row: &CallRow) -> Date {
    month::day_of(row.received_ms)
}

// === Books ===

impl Books<'_> {
    /// Shows each call that `filter` means to `see`, the latest first.
    async fn each_call(&self, filter: Filter, mut see: impl FnMut(&CallRow)) -> Result<(), CostsError> {
        let mut after = None;
        loop {
            let page = self.log.page(filter.clone(), after, PAGE).await?;
            page.rows.iter().for_each(&mut see);
            after = page.next;
            if after.is_none() {
                return Ok(());
            }
        }
    }

    /// The price of a model, and what it is the price of: see [`what_if::price_of`](crate::analysis::what_if::price_of).
    fn price(&self, name: &str) -> Result<(String, Arc<Price>), CostsError> {
        price_of(name, self.snapshot).ok_or_else(|| {
            CostsError::Wrong(anyhow::anyhow!(
                "`{name}` has no price; `tollgate prices show {name}` says what is known"
            ))
        })
    }

    /// The price at which a recorded call's target is charged now.
    fn price_of_target(&self, row: &CallRow) -> Option<Arc<Price>> {
        let target = row.target.as_deref()?;
        match self.snapshot {
            Some(snapshot) => snapshot.target(target)?.target.price.clone(),
            None => {
                let (provider, model) = target.split_once('/')?;
                Catalog::builtin().find(provider, Some(provider), model)
            }
        }
    }
}

/// A share in percent: `12.3%`; a dash where there is no whole.
fn percent(part: u64, whole: u64) -> String {
    match whole {
        0 => "-".to_owned(),
        whole => format!("{:.1}%", part as f64 / whole as f64 * 100.0),
    }
}

/// A difference of amounts with its sign, in USD.
fn difference(one: u64, other: u64) -> String {
    let sign = if one < other { "-" } else { "+" };
    format!("{sign}{}", crate::units::NanoUsd(one.abs_diff(other)))
}

#[cfg(test)]
mod tests {
    use jiff::civil::date;

    use super::*;

    #[test]
    fn a_month_reaches_to_the_first_of_the_next() {
        let bounds = |day: Date| {
            let (since, until) = month_bounds(day);
            (day_of(moment_of(since.unwrap())), day_of(moment_of(until.unwrap())))
        };
        assert_eq!(bounds(month_of("2026-11").unwrap()), (date(2026, 11, 1), date(2026, 12, 1)));
        assert_eq!(bounds(date(2026, 12, 31)), (date(2026, 12, 1), date(2027, 1, 1)));
        assert!(month_of("2026-13").is_err() && month_of("last").is_err());
    }

    #[test]
    fn differences_have_a_sign() {
        assert_eq!(
            (difference(3_000_000_000, 1), difference(0, 500_000_000)),
            ("+2.999999999".to_owned(), "-0.50".to_owned())
        );
        assert_eq!((percent(1, 8), percent(1, 0)), ("12.5%".to_owned(), "-".to_owned()));
    }
}
