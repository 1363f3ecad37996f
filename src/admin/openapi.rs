//! The API's own description: OpenAPI 3.1 at `/api/openapi.json`, committed as `docs/openapi.json`, which a test keeps fresh.
//!
//! What is served is the committed file. To put the description together takes memory and time that a gateway has no use for, so
//! that only the test does.

use std::convert::Infallible;

use axum::{
    Router,
    extract::Request,
    response::IntoResponse,
    routing::{MethodRouter, Route, get},
};
use http::header;
use tower::{Layer, Service};

use super::Admin;

/// What is served.
const DESCRIPTION: &str = include_str!("../../docs/openapi.json");

/// Resources of the API, which can be asked what they are.
#[derive(Default)]
pub(super) struct Api {
    router: Router<Admin>,
    #[cfg(test)]
    descriptions: Vec<Describe>,
}

/// The handlers of one path, by method.
pub(super) struct Routes {
    pub(super) path: String,
    pub(super) methods: MethodRouter<Admin>,
    #[cfg(test)]
    pub(super) describe: Describe,
}

#[cfg(test)]
pub(super) type Describe = fn() -> utoipa_axum::router::UtoipaMethodRouter<Admin>;

impl Api {
    pub(super) fn routes(mut self, routes: Routes) -> Api {
        self.router = self.router.route(&routes.path, routes.methods);
        #[cfg(test)]
        self.descriptions.push(routes.describe);
        self
    }

    pub(super) fn merge(mut self, other: Api) -> Api {
        self.router = self.router.merge(other.router);
        #[cfg(test)]
        self.descriptions.extend(other.descriptions);
        self
    }

    /// All of it behind `layer`.
    pub(super) fn layer<L>(mut self, layer: L) -> Api
    where
        L: Layer<Route> + Clone + Send + Sync + 'static,
        L::Service: Service<Request, Error = Infallible> + Clone + Send + Sync + 'static,
        <L::Service as Service<Request>>::Response: IntoResponse + 'static,
        <L::Service as Service<Request>>::Future: Send + 'static,
    {
        self.router = self.router.layer(layer);
        self
    }

    pub(super) fn into_router(self) -> Router<Admin> {
        self.router
    }
}

/// The handlers of one path: functions with a `#[utoipa::path]`.
macro_rules! routes {
    ($($handler:ident),+) => {{
        use utoipa::Path as _;
        use utoipa_axum::PathItemExt as _;
        let methods = axum::routing::MethodRouter::new();
        utoipa_axum::paste! {
            let [path, ..] = [$([<__path_ $handler>]::path()),+];
            $(
                let methods = [<__path_ $handler>]::methods()
                    .iter()
                    .fold(methods, |methods, method| methods.on(method.to_method_filter(), $handler));
            )+
        }
        $crate::admin::openapi::Routes {
            path,
            methods,
            #[cfg(test)]
            describe: || utoipa_axum::routes!($($handler),+),
        }
    }};
}
pub(super) use routes;

/// Serves the description.
pub(super) fn router() -> Router<Admin> {
    let serve = async || ([(header::CONTENT_TYPE, "application/json")], DESCRIPTION);
    Router::new().route("/api/openapi.json", get(serve))
}

#[cfg(test)]
mod description {
    //! Puts together what is committed.

    use utoipa::{
        Modify, OpenApi,
        openapi::{
            Content, PathItem, RefOr, ResponseBuilder, Schema,
            path::Operation,
            response::Response,
            security::{ApiKey, ApiKeyValue, Http, HttpAuthScheme, SecurityScheme},
        },
    };
    use utoipa_axum::router::OpenApiRouter;

    use super::Api;
    use crate::admin::{guard, problem::Problem};

    #[derive(OpenApi)]
    #[openapi(
    info(
        title = "Tollgate admin API",
        description = "On the admin listener (`server.admin`), never on the clients'. Errors are `application/problem+json` (RFC 9457). \
                       Amounts are whole nano-USD (1e-9 USD), times RFC 3339 in UTC. Lists come by page: `after` and `limit`, and \
                       the `Link` header names the next one. See docs/admin-api.md.",
    ),
    modifiers(&AdminToken),
    components(schemas(Problem)),
    security(("admin_token" = []), ("session" = []), ())
)]
    struct Root;

    struct AdminToken;

    /// What every problem is answered as.
    const PROBLEM: &str = "application/problem+json";

    impl Modify for AdminToken {
        fn modify(&self, openapi: &mut utoipa::openapi::OpenApi) {
            let token = Http::builder()
            .scheme(HttpAuthScheme::Bearer)
            .description(Some(
                "`server.admin_token` or one of `server.admin_tokens`. Needed where one is set; a listener on loopback may be without.",
            ));
            let components = openapi.components.get_or_insert_default();
            components.add_security_scheme("admin_token", SecurityScheme::Http(token.build()));
            let why = "A browser that has signed in at /login; changes show `x-tollgate-csrf` too.";
            let cookie = ApiKey::Cookie(ApiKeyValue::with_description("tollgate_session", why));
            components.add_security_scheme("session", SecurityScheme::ApiKey(cookie));
        }
    }

    /// The API with what holds for every operation said at each: who may, and what may be refused.
    pub(super) fn of(api: &Api) -> utoipa::openapi::OpenApi {
        let described = api.descriptions.iter().map(|describe| describe());
        let mut all =
            described.fold(OpenApiRouter::with_openapi(Root::openapi()), OpenApiRouter::routes).into_openapi();
        for (path, item) in &mut all.paths.paths {
            for (method, operation) in operations(item) {
                finish(operation, method, path);
            }
        }
        all
    }

    /// As served and as committed, with a newline at the end.
    pub(super) fn text(api: &Api) -> String {
        let mut text = of(api).to_pretty_json().expect("texts and numbers: nothing that JSON cannot hold");
        text.push('\n');
        text
    }

    fn operations(item: &mut PathItem) -> impl Iterator<Item = (&'static str, &mut Operation)> {
        let all = [("GET", &mut item.get), ("POST", &mut item.post), ("DELETE", &mut item.delete)];
        all.into_iter().filter_map(|(method, operation)| Some((method, operation.as_mut()?)))
    }

    fn finish(operation: &mut Operation, method: &str, path: &str) {
        let mut refusals = vec!["401", "403", "429"];
        if operation.parameters.as_ref().is_some_and(|parameters| !parameters.is_empty()) {
            refusals.push("400");
        }
        if operation.request_body.is_some() {
            refusals.extend(["400", "413", "415", "422"]);
        }
        let responses = &mut operation.responses.responses;
        for status in refusals {
            responses.entry(status.to_owned()).or_insert_with(|| RefOr::T(problem(status)));
        }
        for (status, response) in responses {
            let is_problem = status.starts_with(['4', '5']);
            if let (true, RefOr::T(response)) = (is_problem, response) {
                response.content = problem(status).content;
            }
        }
        let method = method.parse().expect("one of those above");
        let role = format!("Role: `{}`.", guard::needed(&method, Some(path)).label());
        operation.description = Some(match operation.description.take() {
            Some(description) if !description.is_empty() => format!("{description}\n\n{role}"),
            _ => role,
        });
    }

    fn problem(status: &str) -> Response {
        let code = status.parse().ok().and_then(|code: u16| http::StatusCode::from_u16(code).ok());
        let title = code.and_then(|code| code.canonical_reason()).unwrap_or_default();
        let schema = RefOr::<Schema>::Ref(utoipa::openapi::Ref::from_schema_name("Problem"));
        ResponseBuilder::new().description(title).content(PROBLEM, Content::new(Some(schema))).build()
    }
}

#[cfg(test)]
mod tests {
    /// `BLESS=1 cargo test` writes it anew.
    #[test]
    fn the_committed_description_is_fresh() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/openapi.json");
        let text = super::description::text(&super::super::api());
        if std::env::var_os("BLESS").is_some() {
            std::fs::write(path, &text).expect("a writable tree");
        }
        let committed = std::fs::read_to_string(path).unwrap_or_default();
        assert!(committed == text, "docs/openapi.json is stale; run `BLESS=1 cargo test --lib openapi`");
    }

    #[test]
    fn every_operation_says_what_it_answers() {
        let api = serde_json::to_value(super::description::of(&super::super::api())).expect("JSON");
        assert_eq!(api["openapi"], "3.1.0");
        for (path, item) in api["paths"].as_object().expect("paths") {
            for (method, operation) in item.as_object().expect("operations") {
                assert!(operation["operationId"].is_string(), "{method} {path} has no name");
                assert!(operation["summary"].is_string(), "{method} {path} says nothing");
                let responses = operation["responses"].as_object().expect("responses");
                assert!(responses.keys().any(|status| status.starts_with('2')), "{method} {path}");
                for (status, response) in responses.iter().filter(|(status, _)| status.starts_with(['4', '5'])) {
                    let form = &response["content"]["application/problem+json"]["schema"]["$ref"];
                    assert_eq!(form, "#/components/schemas/Problem", "{method} {path} {status}");
                }
            }
        }
    }

    /// What is added must be decided on: who may do it.
    #[test]
    fn every_change_stands_in_the_table_of_roles() {
        let api = serde_json::to_value(super::description::of(&super::super::api())).expect("JSON");
        let paths = api["paths"].as_object().expect("paths");
        let operations = paths.iter().flat_map(|(path, item)| {
            let methods = item.as_object().expect("operations").keys();
            methods.map(move |method| (method.to_uppercase(), path.as_str()))
        });
        let for_admins: Vec<String> = operations
            .filter(|(method, path)| {
                let method = method.parse().expect("a method");
                crate::admin::guard::needed(&method, Some(path)) == crate::config::snapshot::Role::Admin
            })
            .map(|(method, path)| format!("{method} {path}"))
            .collect();
        assert_eq!(
            for_admins,
            ["POST /api/budgets/{name}/rebuild"],
            "only an admin may do what guard::needed does not name"
        );
    }
}
