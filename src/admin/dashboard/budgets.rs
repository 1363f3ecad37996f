//! Budgets: what was spent of each account, what is held, what is left and what it will come to.

use jiff::Timestamp;
use serde::Serialize;
use serde_json::json;

use super::{
    figures,
    visit::{Shown, Visit, word},
};
use crate::{
    admin::books::{Account, Books},
    config::snapshot::{Budget, BudgetMode},
    ledger::period::{Every, Per},
    policy::scope::{Match, Scope},
};

/// Accounts of one page.
const PAGE: usize = 100;

/// A budget as configured.
#[derive(Debug, Serialize)]
struct Configured {
    name: String,
    limit: u64,
    scope: String,
    per: &'static str,
    zone: Option<String>,
    warns_only: bool,
    downgrade: Option<String>,
}

/// An account and its bar. Widths are percent.
#[derive(Debug, Serialize)]
struct Row {
    account: Account,
    /// Whose it is, without budget and period.
    of: String,
    period: String,
    spent: u64,
    held: u64,
    share: f64,
    spent_width: f64,
    held_width: f64,
    forecast_at: Option<f64>,
    resets_ms: Option<u64>,
}

pub(super) async fn show(visit: Visit) -> Shown {
    let shared = &visit.admin.shared;
    let snapshot = shared.live.load_full();
    let live = shared.purses.accounts();
    let books = Books {
        authority: shared.purses.authority(),
        audit: &visit.admin.audit,
        snapshot: &snapshot,
        live: &live,
        now: visit.now,
    };
    let chosen = visit.parameter("budget");
    let first = chosen.map(|name| format!("{name}/"));
    let after = visit.parameter("after").or(first.as_deref());
    let (mut accounts, more) = books.list(after, PAGE).await.map_err(|error| visit.store_away(&error))?;
    let found = accounts.len();
    if let Some(prefix) = &first {
        accounts.retain(|account| account.account.starts_with(prefix.as_str()));
    }
    let next = accounts.last().filter(|_| more && accounts.len() == found).map(|last| last.account.clone());
    let configured: Vec<Configured> = snapshot.budgets.iter().map(|budget| configured(budget)).collect();
    let mut rows: Vec<Row> = accounts.into_iter().map(row).collect();
    // Those of periods that are over come last.
    rows.sort_by_key(|row| row.resets_ms.is_none() && row.period != "total");
    let page = json!({ "configured": configured, "chosen": chosen, "next": next, "rows": rows });
    Ok(visit.page("budgets.html", page))
}

fn row(account: Account) -> Row {
    let spent = account.charged_nanousd.saturating_add(account.debt_nanousd);
    // Both are known here: what calls of this gateway have reserved, and what all gateways hold.
    let held = account.reserved_nanousd;
    let limit = account.limit_nanousd.saturating_add(account.credited_nanousd).max(1);
    let percent = |amount: u64| (amount as f64 * 100.0 / limit as f64).min(100.0);
    let of = account.account.split_once('/').and_then(|(_, rest)| rest.rsplit_once('/'));
    let (of, period) = of.unwrap_or((&account.account, ""));
    Row {
        of: of.replace(',', " · "),
        period: period.to_owned(),
        spent,
        held,
        share: spent as f64 / limit as f64,
        spent_width: percent(spent),
        held_width: percent(spent.saturating_add(held)) - percent(spent),
        forecast_at: account.forecast_nanousd.map(percent),
        resets_ms: account.resets_at.as_deref().and_then(|at| at.parse::<Timestamp>().ok()).map(figures::milliseconds),
        account,
    }
}

fn configured(budget: &Budget) -> Configured {
    let Per { every, zone } = &budget.per;
    Configured {
        name: budget.name.to_string(),
        limit: budget.limit.0,
        scope: scope(&budget.scope),
        per: period(*every),
        zone: zone.iana_name().filter(|name| *name != "UTC").map(str::to_owned),
        warns_only: budget.mode == BudgetMode::Warn,
        downgrade: budget.downgrade.as_ref().map(ToString::to_string),
    }
}

fn period(every: Every) -> &'static str {
    match every {
        Every::Hour => word("hour"),
        Every::Day => word("day"),
        Every::Week => word("week"),
        Every::Month => word("month"),
        Every::Year => word("year"),
        Every::Total => word("in total"),
    }
}

/// `user=*, model=support`; empty for all together.
pub(super) fn scope(scope: &Scope) -> String {
    let named = [("key", &scope.key), ("team", &scope.team), ("user", &scope.user), ("model", &scope.model)];
    let named = named.into_iter().filter_map(|(name, wanted)| Some(part(name, wanted.as_ref()?)));
    let tags = scope.tags.iter().map(|(name, wanted)| part(&format!("tag {name}"), wanted));
    named.chain(tags).collect::<Vec<String>>().join(", ")
}

fn part(name: &str, wanted: &Match) -> String {
    match wanted {
        Match::Each => format!("{name}=*"),
        Match::Is(value) => format!("{name}={value}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scope_reads_as_it_was_written() {
        let written = Scope {
            team: Some(Match::Is("shop".into())),
            user: Some(Match::Each),
            tags: vec![("app".into(), Match::Each)],
            ..Scope::default()
        };
        assert_eq!(scope(&written), "team=shop, user=*, tag app=*");
        assert_eq!(scope(&Scope::default()), "");
    }
}
