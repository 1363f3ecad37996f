//! `/api/budgets`: what was spent and what is left, and what an operator may do about it. The deeds are in [`super::books`].

use axum::{extract::State, response::Response};
use http::{HeaderMap, StatusCode, Uri};
use jiff::Timestamp;

use super::{
    Admin,
    books::{
        Account, Books, BudgetBooks, CreditRequest, Credited, RebuildRequest, Rebuilt, ReclaimRequest, Reclaimed,
        Refusal,
    },
    extract::{Json, Path, Query},
    guard::Actor,
    openapi::{Api, routes},
    paging::{self, Page, ROWS_MAX},
    problem::Problem,
};

/// The longest idempotency key, in bytes.
const KEY_BYTES_MAX: usize = 200;

pub(super) fn router() -> Api {
    Api::default()
        .routes(routes!(list))
        .routes(routes!(show))
        .routes(routes!(reclaim))
        .routes(routes!(credit))
        .routes(routes!(rebuild))
}

/// All accounts, in the order of their keys
///
/// The `Link` header names the next page, where there is one.
#[utoipa::path(get, path = "/api/budgets", tag = "budgets", operation_id = "list_budgets", params(Page),
    responses((status = OK, body = Vec<Account>), (status = SERVICE_UNAVAILABLE, body = Problem)))]
async fn list(State(admin): State<Admin>, uri: Uri, Query(page): Query<Page>) -> Result<Response, Problem> {
    let listing = async |books: Books<'_>| Ok(books.list(page.after.as_deref(), page.size(ROWS_MAX)).await?);
    let (rows, more) = with_books(&admin, listing).await?;
    let next = rows.last().filter(|_| more).map(|last| last.account.as_str());
    Ok(paging::respond(&rows, &uri, next))
}

/// A budget's accounts, and what each gateway holds of them
#[utoipa::path(get, path = "/api/budgets/{name}", tag = "budgets", operation_id = "show_budget",
    params(("name" = String, Path, description = "The budget's name"), Page),
    responses((status = OK, body = BudgetBooks), (status = NOT_FOUND, body = Problem),
        (status = SERVICE_UNAVAILABLE, body = Problem)))]
async fn show(
    State(admin): State<Admin>,
    Path(name): Path<String>,
    Query(page): Query<Page>,
) -> Result<axum::Json<BudgetBooks>, Problem> {
    let showing = async |books: Books<'_>| books.show(&name, page.after.as_deref(), page.size(ROWS_MAX)).await;
    with_books(&admin, showing).await.map(axum::Json)
}

/// Take back what a dead gateway holds
///
/// For a gateway that will never come back with its journal. Refused (409) while it was heard of within the last half minute.
/// Should it live after all, its next report tells it to stop, and what it has spent since is booked as debt.
/// Repeating it changes nothing.
#[utoipa::path(post, path = "/api/budgets/{name}/reclaim", tag = "budgets", operation_id = "reclaim_budget",
    params(("name" = String, Path, description = "The budget's name")), request_body = ReclaimRequest,
    responses((status = OK, body = Reclaimed), (status = NOT_FOUND, body = Problem), (status = CONFLICT, body = Problem),
        (status = UNPROCESSABLE_ENTITY, body = Problem), (status = SERVICE_UNAVAILABLE, body = Problem)))]
async fn reclaim(
    State(admin): State<Admin>,
    Actor(actor): Actor,
    Path(name): Path<String>,
    Json(request): Json<ReclaimRequest>,
) -> Result<axum::Json<Reclaimed>, Problem> {
    let own = format!("{:016x}", admin.shared.purses.incarnation());
    if request.gateway.eq_ignore_ascii_case(&own) {
        return Err(Problem::new(StatusCode::CONFLICT, "that is this gateway, and it lives"));
    }
    with_books(&admin, async |books: Books<'_>| books.reclaim(&name, &request, &actor).await).await.map(axum::Json)
}

/// Give back what was spent
///
/// As much more may be spent in the account's period. Never more than was spent. `Idempotency-Key` names the note: sent again with
/// the same one, nothing more is given.
#[utoipa::path(post, path = "/api/budgets/{name}/credit", tag = "budgets", operation_id = "credit_budget",
    params(("name" = String, Path, description = "The budget's name"),
        ("idempotency-key" = String, Header, description = "Any text that is used for this note alone")),
    request_body = CreditRequest,
    responses((status = OK, body = Credited), (status = BAD_REQUEST, body = Problem), (status = NOT_FOUND, body = Problem),
        (status = CONFLICT, body = Problem), (status = UNPROCESSABLE_ENTITY, body = Problem),
        (status = SERVICE_UNAVAILABLE, body = Problem)))]
async fn credit(
    State(admin): State<Admin>,
    Actor(actor): Actor,
    Path(name): Path<String>,
    headers: HeaderMap,
    Json(request): Json<CreditRequest>,
) -> Result<axum::Json<Credited>, Problem> {
    let key = headers.get("idempotency-key").and_then(|key| key.to_str().ok()).map(str::trim);
    let Some(key) = key.filter(|key| !key.is_empty() && key.len() <= KEY_BYTES_MAX) else {
        let why = "send an `Idempotency-Key` of at most 200 characters, so that a repetition gives nothing twice";
        return Err(Problem::new(StatusCode::BAD_REQUEST, why));
    };
    let crediting = async |books: Books<'_>| books.credit(&name, &request, key, &actor).await;
    let credited = with_books(&admin, crediting).await?;
    // An account that is spent has no reason to report, and would not hear of it.
    admin.shared.purses.report(&credited.account);
    Ok(axum::Json(credited))
}

/// Make an account whole that was lost or damaged
///
/// From what can still be read of it, what gateways report within the next seconds, and the figure given. Counts twice rather
/// than too little. Repeating it changes nothing.
#[utoipa::path(post, path = "/api/budgets/{name}/rebuild", tag = "budgets", operation_id = "rebuild_budget",
    params(("name" = String, Path, description = "The budget's name")), request_body = RebuildRequest,
    responses((status = OK, body = Rebuilt), (status = NOT_FOUND, body = Problem), (status = CONFLICT, body = Problem),
        (status = UNPROCESSABLE_ENTITY, body = Problem), (status = SERVICE_UNAVAILABLE, body = Problem)))]
async fn rebuild(
    State(admin): State<Admin>,
    Actor(actor): Actor,
    Path(name): Path<String>,
    Json(request): Json<RebuildRequest>,
) -> Result<axum::Json<Rebuilt>, Problem> {
    with_books(&admin, async |books: Books<'_>| books.rebuild(&name, &request, &actor).await).await.map(axum::Json)
}

/// Does something with the books of the running gateway.
async fn with_books<T>(admin: &Admin, work: impl AsyncFnOnce(Books<'_>) -> Result<T, Refusal>) -> Result<T, Problem> {
    let snapshot = admin.shared.live.load_full();
    let books = Books {
        authority: admin.shared.purses.authority(),
        audit: &admin.audit,
        snapshot: &snapshot,
        live: &admin.shared.purses.accounts(),
        now: Timestamp::now(),
    };
    Ok(work(books).await?)
}

impl From<Refusal> for Problem {
    fn from(refusal: Refusal) -> Problem {
        let status = match refusal {
            Refusal::NotFound(_) => StatusCode::NOT_FOUND,
            Refusal::Conflict(_) => StatusCode::CONFLICT,
            Refusal::Wrong(_) => StatusCode::UNPROCESSABLE_ENTITY,
            Refusal::Store(_) => StatusCode::SERVICE_UNAVAILABLE,
        };
        Problem::new(status, refusal.to_string())
    }
}
