//! The admin listener: metrics, probes, and what the gateway knows of itself, as an API that describes itself.
//!
//! Never on the client listener. One file a resource, each with a `router()` of its own; [`guard`] alone decides who may do what.
//! What an endpoint answers is a typed struct, so that `/api/openapi.json` says it too; what it refuses is a [`problem::Problem`].

mod analysis;
mod attempts;
mod audit;
pub mod books;
mod budgets;
mod calls;
pub mod config;
mod costs;
mod dashboard;
mod evaluations;
pub mod experiments;
pub mod extract;
pub mod guard;
pub mod keyring;
mod keys;
mod login;
mod models;
mod oidc;
mod openapi;
pub mod paging;
pub mod problem;
mod prompts;
mod providers;
mod registry;
mod sessions;
mod status;
mod usage;

use std::{net::SocketAddr, sync::Arc};

use axum::{Router, body::Body, middleware};
use http::{Request, Response, Uri};
use hyper::body::Incoming;
use tower::ServiceExt;

use self::{attempts::Attempts, guard::Peer, oidc::SignIns, openapi::Api, problem::Problem, sessions::Sessions};
use crate::{
    analysis::Analyst,
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
    /// Who answers what experiments and versions did, where calls are kept.
    analyst: Option<Analyst>,
    /// Browsers that have signed in.
    sessions: Arc<Sessions>,
    /// Wrong tokens by address.
    attempts: Arc<Attempts>,
    /// Browsers on their way to a provider of OpenID Connect.
    sign_ins: Arc<SignIns>,
}

/// The admin API of one gateway.
#[derive(Debug, Clone)]
pub struct Routes {
    router: Router,
    peer: Option<SocketAddr>,
}

impl Routes {
    /// The admin API of one gateway.
    #[must_use]
    pub fn new(shared: Shared) -> Routes {
        let audit = Audit::in_dir(&shared.live.load_full().data_dir);
        let (sessions, attempts, sign_ins) = (Arc::default(), Arc::default(), Arc::new(SignIns::new()));
        let analyst = shared.calls.as_ref().map(|calls| Analyst::new(calls.log.clone()));
        let admin = Admin { shared, audit, analyst, sessions, attempts, sign_ins };
        let guarded = api()
            .into_router()
            .merge(status::metrics())
            .merge(login::guarded())
            .merge(openapi::router())
            .merge(dashboard::router())
            .fallback(nothing_there)
            .method_not_allowed_fallback(wrong_method)
            .layer(middleware::from_fn_with_state(admin.clone(), guard::guard));
        // Probes stay open: orchestrators have no token. So does the page where one is shown.
        let open = status::probes().merge(login::open()).merge(oidc::open());
        let router = open.merge(guarded).layer(middleware::map_response(guard::harden));
        Routes { router: router.with_state(admin), peer: None }
    }
}

impl Handler for Routes {
    type Body = Body;

    fn of_peer(&self, peer: Option<SocketAddr>) -> Routes {
        Routes { router: self.router.clone(), peer }
    }

    async fn handle(&self, mut request: Request<Incoming>, _late: bool) -> Response<Body> {
        if let Some(peer) = self.peer {
            request.extensions_mut().insert(Peer(peer));
        }
        let Ok(response) = self.router.clone().oneshot(request.map(Body::new)).await;
        response
    }
}

/// All resources under `/api/`.
fn api() -> Api {
    let resources = [
        analysis::router(),
        budgets::router(),
        calls::router(),
        evaluations::router(),
        usage::router(),
        costs::router(),
        keys::router(),
        models::router(),
        experiments::router(),
        registry::router(),
        prompts::router(),
        providers::router(),
        config::router(),
        audit::router(),
        login::router(),
    ];
    resources.into_iter().fold(Api::default(), Api::merge)
}

async fn nothing_there(uri: Uri) -> Problem {
    Problem::not_found(format!("no `{}` here: /api/openapi.json says what there is", uri.path()))
}

async fn wrong_method(method: http::Method, uri: Uri) -> Problem {
    let why = format!("`{}` does not take {method}: /api/openapi.json says what it takes", uri.path());
    Problem::new(http::StatusCode::METHOD_NOT_ALLOWED, why)
}
