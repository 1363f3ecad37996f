//! The audit log: who changed what, the latest first, and whether its chain is whole.

use serde_json::{Value, json};

use super::visit::{Shown, Visit, word};
use crate::admin::audit;

/// Entries of one page.
const PAGE: usize = 100;

pub(super) async fn show(visit: Visit) -> Shown {
    let before = visit.parameter("before").and_then(|before| before.parse().ok());
    let reading = audit::read(&visit.admin, before, PAGE, |_| true).await.map_err(|error| {
        let what = word("The audit log cannot be read.");
        visit.sorry(http::StatusCode::SERVICE_UNAVAILABLE, what, &error.to_string())
    })?;
    let (count, broken) = match reading.chain {
        Ok(count) => (count, None),
        Err(broken) => (broken.line - 1, Some(broken.to_string())),
    };
    let entries: Vec<Value> = reading.lines.into_iter().map(|(_, line)| line).filter(Value::is_object).collect();
    let head = (count > 0).then_some(reading.head);
    let path = visit.admin.audit.path().display().to_string();
    let page = json!({
        "entries": entries, "count": count, "next": reading.next, "broken": broken, "head": head, "path": path,
    });
    Ok(visit.page("audit.html", page))
}
