//! `/api/audit`: who changed what, and whether the log of it is whole.

use axum::{extract::State, response::Response};
use http::{StatusCode, Uri};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::{IntoParams, ToSchema};

use super::{
    Admin,
    extract::Queries,
    openapi::{Api, routes},
    paging::{self, Page},
    problem::Problem,
};
use crate::store::{audit::Reading, ports::StoreError};

/// Lines of one page, unless more or fewer are asked for.
const PAGE: usize = 100;

pub(super) fn router() -> Api {
    Api::default().routes(routes!(list))
}

/// Which lines.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
struct Wanted {
    /// Of this action, such as `budgets.credit`, or of this kind: `budgets.`.
    action: Option<String>,
    /// About this.
    subject: Option<String>,
}

/// A part of the audit log of this gateway.
#[derive(Debug, Serialize, ToSchema)]
struct AuditPage {
    /// Whether each line follows the one before it and none was changed, each looked at once: when it was first read.
    whole: bool,
    /// Lines of the whole log, as far as the chain holds.
    lines: usize,
    /// The hash of the last of them. Copied elsewhere, it shows later whether the log was written anew.
    head: String,
    /// Where the chain breaks.
    broken: Option<Break>,
    /// The lines, the latest first.
    entries: Vec<AuditEntry>,
}

/// Where the chain breaks.
#[derive(Debug, Serialize, ToSchema)]
struct Break {
    /// The line, from 1.
    line: usize,
    /// What is wrong with it.
    why: String,
}

/// One line.
#[derive(Debug, Serialize, ToSchema)]
struct AuditEntry {
    /// Its number, from 1.
    line: usize,
    /// `at`, `actor`, `action`, `subject`, `reason`, `before`, `after`, `prev` and `hash`; or the line's text where it cannot be read.
    entry: Value,
}

/// Who changed what, the latest first, and whether the chain of hashes holds
///
/// Of this gateway: in a fleet each writes down what was asked of it. The `Link` header names the next page.
#[utoipa::path(get, path = "/api/audit", tag = "audit", operation_id = "list_audit", params(Wanted, Page),
    responses((status = OK, body = AuditPage), (status = SERVICE_UNAVAILABLE, body = Problem)))]
async fn list(
    State(admin): State<Admin>,
    uri: Uri,
    Queries(wanted, page): Queries<Wanted, Page>,
) -> Result<Response, Problem> {
    let before = page.after.as_deref().map(|after| {
        let no_line = || Problem::new(StatusCode::BAD_REQUEST, "`after` is the number of a line");
        after.parse::<usize>().map_err(|_| no_line())
    });
    let (before, size) = (before.transpose()?, page.size(PAGE));
    let reading = read(&admin, before, size, move |entry| wanted.takes(entry)).await?;
    let next = reading.next.map(|line| line.to_string());
    Ok(paging::respond(&AuditPage::from(reading), &uri, next.as_deref()))
}

/// Reads a part of the audit log from its end, off the runtime: it is a file.
pub(super) async fn read(
    admin: &Admin,
    before: Option<usize>,
    count_max: usize,
    wanted: impl Fn(&Value) -> bool + Send + 'static,
) -> Result<Reading, StoreError> {
    let audit = admin.audit.clone();
    let reading = tokio::task::spawn_blocking(move || audit.recent(before, count_max, wanted));
    reading.await.unwrap_or_else(|_| Err(StoreError::Unavailable("the audit log's reader was cancelled".to_owned())))
}

impl Wanted {
    fn takes(&self, entry: &Value) -> bool {
        let is = |field: &str, wanted: &str| entry[field].as_str() == Some(wanted);
        let action = self.action.as_deref().is_none_or(|action| match action.ends_with('.') {
            true => entry["action"].as_str().is_some_and(|found| found.starts_with(action)),
            false => is("action", action),
        });
        action && self.subject.as_deref().is_none_or(|subject| is("subject", subject))
    }
}

impl From<Reading> for AuditPage {
    fn from(reading: Reading) -> AuditPage {
        let entries = reading.lines.into_iter().map(|(line, entry)| AuditEntry { line, entry }).collect();
        let (lines, broken) = match reading.chain {
            Ok(lines) => (lines, None),
            Err(broken) => (broken.line - 1, Some(Break { line: broken.line, why: broken.why.to_owned() })),
        };
        AuditPage { whole: broken.is_none(), lines, head: reading.head, broken, entries }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn lines_are_chosen_by_action_kind_and_subject() {
        let line = json!({"action": "budgets.credit", "subject": "all/all/total"});
        let takes = |action: Option<&str>, subject: Option<&str>| {
            Wanted { action: action.map(str::to_owned), subject: subject.map(str::to_owned) }.takes(&line)
        };
        assert!(
            takes(None, None) && takes(Some("budgets.credit"), None) && takes(Some("budgets."), Some("all/all/total"))
        );
        assert!(!takes(Some("budgets"), None) && !takes(Some("keys."), None) && !takes(None, Some("all")));
    }
}
