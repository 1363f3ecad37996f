//! What the admin API refuses, in the form of RFC 9457: `application/problem+json`.

use axum::response::{IntoResponse, Response};
use http::{HeaderValue, StatusCode, header};
use serde::Serialize;
use utoipa::ToSchema;

use crate::store::ports::StoreError;

/// Why a request was not done. RFC 9457.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct Problem {
    /// Always `about:blank`: the status says what kind of problem it is.
    #[serde(rename = "type")]
    kind: &'static str,
    /// The status in words.
    title: &'static str,
    /// The response's status.
    status: u16,
    /// What is wrong, and the mend.
    detail: String,
}

impl Problem {
    /// A problem with `status`; `detail` says what is wrong and how to mend it.
    #[must_use]
    pub fn new(status: StatusCode, detail: impl Into<String>) -> Problem {
        let title = status.canonical_reason().unwrap_or("Error");
        Problem { kind: "about:blank", title, status: status.as_u16(), detail: detail.into() }
    }

    /// What was asked for does not exist.
    #[must_use]
    pub fn not_found(detail: impl Into<String>) -> Problem {
        Problem::new(StatusCode::NOT_FOUND, detail)
    }

    /// The status, and what is wrong: for a page that says so.
    pub(super) fn into_parts(self) -> (StatusCode, String) {
        (StatusCode::from_u16(self.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR), self.detail)
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let mut response = (status, axum::Json(self)).into_response();
        response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        response
    }
}

/// A store that gives no answer is nobody's fault who asks.
impl From<StoreError> for Problem {
    fn from(error: StoreError) -> Problem {
        Problem::new(StatusCode::SERVICE_UNAVAILABLE, error.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_problem_is_what_the_rfc_says() {
        let response = Problem::not_found("no budget `x`").into_response();
        assert_eq!(response.status(), 404);
        assert_eq!(response.headers()["content-type"], "application/problem+json");
        let body = axum::body::to_bytes(response.into_body(), 1024).await.expect("small");
        let body: serde_json::Value = serde_json::from_slice(&body).expect("JSON");
        let expected = serde_json::json!(
            {"type": "about:blank", "title": "Not Found", "status": 404, "detail": "no budget `x`"}
        );
        assert_eq!(body, expected);
    }
}
