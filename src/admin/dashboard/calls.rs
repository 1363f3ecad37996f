//! Calls: the log page by page, and one call with all that is known of it.

use std::collections::BTreeMap;

use axum::{
    extract::Path,
    response::{IntoResponse, Redirect},
};
use http::StatusCode;
use jiff::civil::DateTime;
use serde_json::json;

use super::{
    figures,
    sums::Range,
    visit::{Shown, Sorry, Visit, word},
    waterfall,
};
use crate::{
    record::{Outcome, received_ms},
    store::{
        ports::StoreError,
        records::{
            Calls,
            ports::{Dimension, Filter, UsageQuery},
        },
    },
};

/// Calls of one page.
const PAGE: usize = 50;
/// Values that a filter offers.
const CHOICES_MAX: usize = 100;
/// What calls are filtered by.
const FILTERS: [&str; 12] =
    ["model", "team", "key", "provider", "variant", "outcome", "user", "session", "tag", "since", "until", "errors"];

/// A page of calls.
pub(super) async fn list(visit: Visit) -> Shown {
    let Some(calls) = visit.calls() else { return Ok(visit.page("calls.html", json!({ "log": false }))) };
    if let Some(id) = visit.parameter("id").and_then(call_id) {
        let chosen = visit.parameter("lang").map(|lang| format!("?lang={lang}")).unwrap_or_default();
        return Ok(Redirect::to(&format!("/calls/{id}{chosen}")).into_response());
    }
    let away = |error: StoreError| visit.store_away(&error);
    let after = visit.parameter("after").map(Into::into);
    let page = calls.log.page(filter(&visit), after, PAGE).await.map_err(away)?;
    let choices = choices(calls, &visit).await.map_err(away)?;
    let given: BTreeMap<&str, Option<&str>> =
        FILTERS.into_iter().chain(["id"]).map(|name| (name, visit.parameter(name))).collect();
    let times = ["since", "until"].into_iter().filter_map(|name| visit.parameter(name));
    let wrong_time = times.map(time).any(|time| time.is_none());
    Ok(visit.page(
        "calls.html",
        json!({
            "log": true,
            "rows": page.rows,
            "next": page.next,
            "choices": choices,
            "outcomes": Outcome::ALL.map(Outcome::label),
            "given": given,
            "filtered": FILTERS.iter().any(|name| visit.parameter(name).is_some()),
            "first": visit.parameter("after").is_none(),
            "wrong_time": wrong_time,
        }),
    ))
}

/// One call.
pub(super) async fn show(visit: Visit, Path(id): Path<String>) -> Shown {
    let Some(calls) = visit.calls() else { return Ok(visit.page("calls.html", json!({ "log": false }))) };
    let away = |error: StoreError| visit.store_away(&error);
    let id = call_id(&id).ok_or_else(|| unknown(&visit))?;
    let row = calls.log.get(id.as_str().into()).await.map_err(away)?.ok_or_else(|| unknown(&visit))?;
    let bodies = match visit.may_read_bodies() {
        true => calls.log.bodies(id.as_str().into()).await.map_err(away)?,
        false => None,
    };
    let steps = waterfall::steps(&row);
    Ok(visit.page("call.html", json!({ "row": row, "bodies": bodies, "steps": steps })))
}

fn unknown(visit: &Visit) -> Sorry {
    let what = word("The log has no such call. It may not be written yet, or may have been deleted after its time.");
    visit.sorry(StatusCode::NOT_FOUND, what, "")
}

/// A call's id as it is stored, however it was copied: in capitals, with hyphens.
fn call_id(text: &str) -> Option<String> {
    let id: String = text.trim().chars().filter(|c| *c != '-').map(|c| c.to_ascii_lowercase()).collect();
    received_ms(&id).map(|_| id)
}

fn filter(visit: &Visit) -> Filter {
    let text = |name: &str| visit.parameter(name).map(str::to_owned);
    let pair = |name: &str| {
        let (name, value) = visit.parameter(name)?.split_once('=')?;
        Some((name.trim().to_owned(), value.trim().to_owned()))
    };
    Filter {
        since_ms: visit.parameter("since").and_then(time),
        until_ms: visit.parameter("until").and_then(time),
        model: text("model"),
        team: text("team"),
        key: text("key"),
        user: text("user"),
        session: text("session"),
        provider: text("provider"),
        endpoint: None,
        outcome: visit.parameter("outcome").and_then(Outcome::of_label),
        errors: visit.parameter("errors").is_some(),
        variant: pair("variant"),
        tag: pair("tag"),
    }
}

/// What a browser's field for a time says; UTC.
fn time(text: &str) -> Option<u64> {
    let at = text.parse::<DateTime>().ok()?.in_tz("UTC").ok()?;
    Some(figures::milliseconds(at.timestamp()))
}

/// What filters may be set to: the values of the last thirty days.
async fn choices(calls: &Calls, visit: &Visit) -> Result<Vec<(&'static str, Vec<String>)>, StoreError> {
    let mut choices = Vec::new();
    for by in [Dimension::Model, Dimension::Team, Dimension::Key, Dimension::Provider, Dimension::Variant] {
        let filter = Range::Month.filter(visit.now_ms());
        let query = UsageQuery { filter, by: Some(by), top: CHOICES_MAX, bucket: None };
        let series = calls.log.usage(query).await?;
        let mut values: Vec<String> = series.iter().map(|series| series.value.to_string()).collect();
        // The one in force is offered even when no call has it.
        values.extend(visit.parameter(by.label()).map(str::to_owned));
        values.retain(|value| !value.is_empty());
        values.sort_unstable();
        values.dedup();
        choices.push((by.label(), values));
    }
    Ok(choices)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_found_however_it_was_copied() {
        let id = uuid::Uuid::now_v7();
        let stored = id.simple().to_string();
        for text in [stored.clone(), id.to_string(), stored.to_uppercase(), format!(" {stored} ")] {
            assert_eq!(call_id(&text), Some(stored.clone()), "{text}");
        }
        for text in ["", "support", "0193", "' OR 1=1"] {
            assert_eq!(call_id(text), None, "{text}");
        }
    }

    #[test]
    fn times_are_read_as_browsers_write_them() {
        assert_eq!(time("1970-01-01T00:01"), Some(60_000));
        assert_eq!(time("1970-01-01T00:01:01"), Some(61_000));
        assert_eq!(time("yesterday"), None);
    }
}
