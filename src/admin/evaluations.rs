//! `/api/evaluations`: reports of evaluations, which `tollgate eval run --upload` keeps beside the calls.

use axum::{
    extract::{DefaultBodyLimit, State},
    response::{IntoResponse, Response},
};
use http::{StatusCode, Uri, header};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use sha2::{Digest, Sha256};
use utoipa::{IntoParams, ToSchema};

use super::{
    Admin, calls,
    extract::{Json, Path, Queries},
    openapi::{Api, routes},
    paging::{self, Page},
    problem::Problem,
};
use crate::store::records::evaluations::{Evaluation, EvaluationHead, REPORT_BYTES_MAX};

/// Evaluations of one page, unless more or fewer are asked for.
const PAGE: usize = 50;
/// The form of reports that is understood: see `eval::report::FORMAT`.
const FORMAT: u64 = 1;

pub(super) fn router() -> Api {
    let all = Api::default().routes(routes!(list, keep)).routes(routes!(show));
    all.layer(DefaultBodyLimit::max(REPORT_BYTES_MAX))
}

/// Which evaluations.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
struct Wanted {
    /// Of this suite.
    suite: Option<String>,
}

/// An evaluation without its report.
#[derive(Debug, Serialize, ToSchema)]
struct Kept {
    /// Its id.
    id: String,
    /// The suite.
    suite: String,
    /// The candidates, the baseline last.
    candidate: String,
    /// When it ended: milliseconds since 1970 (UTC).
    created_ms: u64,
}

/// Evaluations, the latest first
///
/// The `Link` header names the next page, where there is one.
#[utoipa::path(get, path = "/api/evaluations", tag = "evaluations", operation_id = "list_evaluations",
    params(Wanted, Page),
    responses((status = OK, body = Vec<Kept>), (status = NOT_FOUND, body = Problem),
        (status = SERVICE_UNAVAILABLE, body = Problem)))]
async fn list(
    State(admin): State<Admin>,
    uri: Uri,
    Queries(wanted, page): Queries<Wanted, Page>,
) -> Result<Response, Problem> {
    let log = calls::log(&admin)?;
    let after = page.after.as_deref().map(Into::into);
    let found = log.evaluations(wanted.suite, after, page.size(PAGE)).await?;
    let rows: Vec<Kept> = found.rows.into_iter().map(Kept::from).collect();
    Ok(paging::respond(&rows, &uri, found.next.as_deref()))
}

/// Keep a report
///
/// Takes the role `operator`. The body is what `tollgate eval run --json` writes, of at most 4 MiB. The same run kept again takes the
/// place of the first.
#[utoipa::path(post, path = "/api/evaluations", tag = "evaluations", operation_id = "keep_evaluation",
    request_body = Object,
    responses((status = CREATED, body = Kept), (status = BAD_REQUEST, body = Problem), (status = NOT_FOUND, body = Problem),
        (status = SERVICE_UNAVAILABLE, body = Problem)))]
async fn keep(State(admin): State<Admin>, Json(report): Json<Value>) -> Result<Response, Problem> {
    let log = calls::log(&admin)?;
    let head = head(&report).map_err(|why| Problem::new(StatusCode::BAD_REQUEST, why))?;
    let kept = Kept::from(head.clone());
    log.put_evaluation(Evaluation { head, report: report.to_string() }).await?;
    Ok((StatusCode::CREATED, axum::Json(kept)).into_response())
}

/// The report of one evaluation
///
/// Takes the role `operator`: it holds what was asked and answered.
#[utoipa::path(get, path = "/api/evaluations/{id}", tag = "evaluations", operation_id = "show_evaluation",
    params(("id" = String, Path, description = "As listed")),
    responses((status = OK, body = Object), (status = NOT_FOUND, body = Problem),
        (status = SERVICE_UNAVAILABLE, body = Problem)))]
async fn show(State(admin): State<Admin>, Path(id): Path<String>) -> Result<Response, Problem> {
    let found = calls::log(&admin)?.evaluation(id.as_str().into()).await?;
    let found = found.ok_or_else(|| Problem::not_found(format!("no evaluation has the id `{id}`")))?;
    Ok(([(header::CONTENT_TYPE, "application/json")], found.report).into_response())
}

/// What a report is listed with. Its id hangs on the run, so that a report that is sent twice is kept once.
fn head(report: &Value) -> Result<EvaluationHead, String> {
    if report["format"] != FORMAT {
        return Err(format!("`format` is not {FORMAT}: this is no report that this release reads"));
    }
    let text = |name: &str| {
        let found = report[name].as_str().filter(|text| !text.is_empty());
        found.ok_or_else(|| format!("the report has no `{name}`"))
    };
    let (suite, started, fingerprint) = (text("suite")?, text("started")?, text("fingerprint")?);
    let finished: Timestamp = text("finished")?.parse().map_err(|_| "`finished` is no time".to_owned())?;
    let baseline = text("baseline")?;
    let candidates = report["candidates"].as_array().map(Vec::as_slice).unwrap_or_default();
    let names = candidates.iter().filter_map(|candidate| candidate["name"].as_str());
    let mut names: Vec<&str> = names.filter(|name| *name != baseline).collect();
    names.push(baseline);
    let digest = Sha256::digest(format!("{fingerprint}\0{started}"));
    Ok(EvaluationHead {
        id: digest.iter().take(16).map(|byte| format!("{byte:02x}")).collect::<String>().into(),
        suite: suite.into(),
        candidate: names.join(", ").into(),
        created_ms: u64::try_from(finished.as_millisecond()).map_err(|_| "`finished` is too long ago".to_owned())?,
    })
}

impl From<EvaluationHead> for Kept {
    fn from(head: EvaluationHead) -> Kept {
        Kept {
            id: head.id.to_string(),
            suite: head.suite.to_string(),
            candidate: head.candidate.to_string(),
            created_ms: head.created_ms,
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_report_is_listed_by_its_suite_candidates_and_end() {
        let report = json!({"format": 1, "suite": "shop", "started": "2026-11-23T12:00:00Z", "finished": "2026-11-23T12:00:10Z",
            "fingerprint": "f", "baseline": "v1", "candidates": [{"name": "v1"}, {"name": "v2"}]});
        let listed = head(&report).expect("a report");
        assert_eq!((&*listed.suite, &*listed.candidate, listed.created_ms), ("shop", "v2, v1", 1_795_435_210_000));
        let mut other = report.clone();
        other["finished"] = json!("2026-11-23T13:00:00Z");
        assert_eq!(head(&other).expect("a report").id, listed.id, "the same run, told again");
        for (name, wrong) in
            [("format", json!(2)), ("suite", json!("")), ("finished", json!("soon")), ("baseline", json!(null))]
        {
            let mut report = report.clone();
            report[name] = wrong;
            assert!(head(&report).is_err(), "{name}");
        }
    }
}
