//! The API's own description: OpenAPI 3.1 at `/api/openapi.json`, committed as `docs/openapi.json`, which a test keeps fresh.

use axum::{Router, routing::get};
use http::header;
use utoipa::{
    Modify, OpenApi,
    openapi::security::{Http, HttpAuthScheme, SecurityScheme},
};
use utoipa_axum::router::OpenApiRouter;

use super::Admin;

#[derive(OpenApi)]
#[openapi(
    info(
        title = "Tollgate admin API",
        description = "On the admin listener (`server.admin`), never on the clients'. Errors are `application/problem+json` (RFC 9457). \
                       Amounts are whole nano-USD (1e-9 USD), times RFC 3339 in UTC.",
    ),
    modifiers(&AdminToken),
    security(("admin_token" = []), ())
)]
struct Root;

struct AdminToken;

impl Modify for AdminToken {
    fn modify(&self, openapi: &mut utoipa::openapi::OpenApi) {
        let token = Http::builder()
            .scheme(HttpAuthScheme::Bearer)
            .description(Some("`server.admin_token`. Needed where one is set; a listener on loopback may be without."));
        let components = openapi.components.get_or_insert_default();
        components.add_security_scheme("admin_token", SecurityScheme::Http(token.build()));
    }
}

/// An API without resources.
pub(super) fn root() -> OpenApiRouter<Admin> {
    OpenApiRouter::with_openapi(Root::openapi())
}

/// Serves `description`.
pub(super) fn router(description: &utoipa::openapi::OpenApi) -> Router<Admin> {
    let text = text(description);
    let serve = move || async move { ([(header::CONTENT_TYPE, "application/json")], text) };
    Router::new().route("/api/openapi.json", get(serve))
}

/// As served and as committed, with a newline at the end.
fn text(description: &utoipa::openapi::OpenApi) -> String {
    let mut text = description.to_pretty_json().expect("texts and numbers: nothing that JSON cannot hold");
    text.push('\n');
    text
}

#[cfg(test)]
mod tests {
    /// `BLESS=1 cargo test` writes it anew.
    #[test]
    fn the_committed_description_is_fresh() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/openapi.json");
        let text = super::text(super::super::api().get_openapi());
        if std::env::var_os("BLESS").is_some() {
            std::fs::write(path, &text).expect("a writable tree");
        }
        let committed = std::fs::read_to_string(path).unwrap_or_default();
        assert!(committed == text, "docs/openapi.json is stale; run `BLESS=1 cargo test --lib openapi`");
    }

    #[test]
    fn every_operation_says_what_it_answers() {
        let api = serde_json::to_value(super::super::api().get_openapi()).expect("JSON");
        assert_eq!(api["openapi"], "3.1.0");
        for (path, item) in api["paths"].as_object().expect("paths") {
            for (method, operation) in item.as_object().expect("operations") {
                assert!(operation["operationId"].is_string(), "{method} {path} has no name");
                assert!(operation["summary"].is_string(), "{method} {path} says nothing");
                assert!(operation["responses"].as_object().is_some_and(|all| !all.is_empty()), "{method} {path}");
            }
        }
    }
}
