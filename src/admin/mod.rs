//! The admin listener: metrics, probes, and what the gateway knows of itself, as an API that describes itself.
//!
//! Never on the client listener. One file a resource, each with a `router()` of its own; [`guard`] alone decides who may do what.
//! What an endpoint answers is a typed struct, so that `/api/openapi.json` says it too; what it refuses is a [`problem::Problem`].

pub mod books;
mod budgets;
mod config;
mod dashboard;
pub mod extract;
pub mod guard;
mod openapi;
pub mod problem;
mod status;

use axum::{Router, body::Body, middleware};
use http::{Request, Response, Uri};
use hyper::body::Incoming;
use tower::ServiceExt;
use utoipa_axum::router::OpenApiRouter;

use self::problem::Problem;
use crate::{
    gateway::{Shared, serve::Handler},
    store::audit::Audit,
};

/// What every endpoint may look at.
#[derive(Debug, Clone)]
pub struct Admin {
    /// The running gateway.
    pub shared: Shared,
    /// Where what is changed is written down.
    pub audit: Audit,
}

/// The admin API of one gateway.
#[derive(Debug, Clone)]
pub struct Routes {
    router: Router,
}

impl Routes {
    /// The admin API of one gateway.
    #[must_use]
    pub fn new(shared: Shared) -> Routes {
        let audit = Audit::in_dir(&shared.live.load_full().data_dir);
        let admin = Admin { shared, audit };
        let (api, description) = api().split_for_parts();
        let guarded = api
            .merge(status::metrics())
            .merge(openapi::router(&description))
            .merge(dashboard::router())
            .fallback(nothing_there)
            .method_not_allowed_fallback(wrong_method)
            .layer(middleware::from_fn_with_state(admin.clone(), guard::guard));
        // Probes stay open: orchestrators have no token.
        let router = status::probes().merge(guarded).layer(middleware::map_response(guard::harden));
        Routes { router: router.with_state(admin) }
    }
}

impl Handler for Routes {
    type Body = Body;

    async fn handle(&self, request: Request<Incoming>, _late: bool) -> Response<Body> {
        let Ok(response) = self.router.clone().oneshot(request.map(Body::new)).await;
        response
    }
}

/// All resources under `/api/`.
fn api() -> OpenApiRouter<Admin> {
    openapi::root().merge(budgets::router()).merge(config::router())
}

async fn nothing_there(uri: Uri) -> Problem {
    Problem::not_found(format!("no `{}` here: /api/openapi.json says what there is", uri.path()))
}

async fn wrong_method(method: http::Method, uri: Uri) -> Problem {
    let why = format!("`{}` does not take {method}: /api/openapi.json says what it takes", uri.path());
    Problem::new(http::StatusCode::METHOD_NOT_ALLOWED, why)
}
