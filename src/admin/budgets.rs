//! `/api/budgets`: what was spent, and what is left.

use axum::{
    Json,
    extract::State,
    response::{IntoResponse, Response},
};
use http::header;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::{router::OpenApiRouter, routes};

use super::{Admin, extract::Query, problem::Problem};
use crate::purses::AccountStatus;

/// Accounts of one page, unless fewer are asked for.
const PAGE_MAX: usize = 1000;

pub(super) fn router() -> OpenApiRouter<Admin> {
    OpenApiRouter::default().routes(routes!(list))
}

/// Which part of the list.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
struct Page {
    /// Begin after this account.
    after: Option<String>,
    /// At most so many accounts; 1000 unless given, and at most.
    limit: Option<usize>,
}

/// One account: one limit in one period, for one value of its scope. Amounts are nano-USD.
#[derive(Debug, Serialize, ToSchema)]
struct Account {
    /// The budget's name.
    budget: String,
    /// The account's key: budget/scope/period.
    account: String,
    /// The limit in force.
    limit_nanousd: u64,
    /// Spent by all gateways, without debt.
    charged_nanousd: u64,
    /// What open calls of this gateway hold.
    reserved_nanousd: u64,
    /// What this gateway holds of it, spent or not; of an account that it does not use, what all gateways hold.
    granted_nanousd: u64,
    /// Spent by all gateways beyond what they held.
    debt_nanousd: u64,
}

/// All accounts, in the order of their keys
///
/// The `Link` header names the next page, where there is one.
#[utoipa::path(get, path = "/api/budgets", tag = "budgets", operation_id = "list_budgets", params(Page),
    responses((status = OK, body = Vec<Account>), (status = SERVICE_UNAVAILABLE, body = Problem)))]
async fn list(State(admin): State<Admin>, Query(page): Query<Page>) -> Result<Response, Problem> {
    let limit = page.limit.unwrap_or(PAGE_MAX).clamp(1, PAGE_MAX);
    let (accounts, more) = admin.shared.accounts(page.after.as_deref(), limit).await?;
    let rows: Vec<Account> = accounts.iter().map(describe).collect();
    let next = rows.last().filter(|_| more).map(|last| next_page(&last.account, limit));
    let mut response = Json(rows).into_response();
    if let Some(next) = next.and_then(|next| next.parse().ok()) {
        response.headers_mut().insert(header::LINK, next);
    }
    Ok(response)
}

fn next_page(after: &str, limit: usize) -> String {
    format!("</api/budgets?after={}&limit={limit}>; rel=\"next\"", percent_encoded(after))
}

/// For a query: only what RFC 3986 calls unreserved stays as it is.
fn percent_encoded(text: &str) -> String {
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => encoded.push(char::from(byte)),
            _ => encoded.push_str(&format!("%{byte:02X}")),
        }
    }
    encoded
}

fn describe(account: &AccountStatus) -> Account {
    Account {
        budget: account.budget.to_string(),
        account: account.account.to_string(),
        limit_nanousd: account.limit.0,
        charged_nanousd: account.charged.0,
        reserved_nanousd: account.reserved.0,
        granted_nanousd: account.granted.0,
        debt_nanousd: account.debt.0,
    }
}
