//! Somebody looks at a page: what they asked for, in which language, and what every page shows around it.

use std::convert::Infallible;

use axum::{
    extract::{FromRequestParts, Query},
    response::{Html, IntoResponse, Response},
};
use http::{StatusCode, header, request::Parts};
use jiff::Timestamp;
use serde_json::{Value, json};

use super::{figures, language::Language, templates};
use crate::{
    admin::{Admin, guard::Access, problem::Problem},
    config::snapshot::Role,
    store::{ports::StoreError, records::Calls},
};

/// A visit to a page.
#[derive(Debug)]
pub(super) struct Visit {
    /// What may be looked at.
    pub(super) admin: Admin,
    /// The language that the page is to be in.
    pub(super) language: Language,
    /// When.
    pub(super) now: Timestamp,
    chosen: bool,
    path: String,
    query: Vec<(String, String)>,
    access: Option<Access>,
}

/// A page that says why there is no other.
#[derive(Debug)]
pub(super) struct Sorry(Box<Response>);

/// A page, or why there is none.
pub(super) type Shown = Result<Response, Sorry>;

impl IntoResponse for Sorry {
    fn into_response(self) -> Response {
        *self.0
    }
}

impl FromRequestParts<Admin> for Visit {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, admin: &Admin) -> Result<Visit, Infallible> {
        let query = Query::<Vec<(String, String)>>::try_from_uri(&parts.uri).map(|Query(query)| query);
        let query = query.unwrap_or_default();
        let chosen = query.iter().find(|(name, _)| name == "lang").and_then(|(_, tag)| Language::of_tag(tag));
        let accepted = parts.headers.get(header::ACCEPT_LANGUAGE).and_then(|value| value.to_str().ok());
        Ok(Visit {
            admin: admin.clone(),
            language: chosen.unwrap_or_else(|| Language::preferred(accepted.unwrap_or_default())),
            now: Timestamp::now(),
            chosen: chosen.is_some(),
            path: parts.uri.path().to_owned(),
            query,
            access: parts.extensions.get::<Access>().cloned(),
        })
    }
}

impl Visit {
    /// A parameter that is given and not empty.
    pub(super) fn parameter(&self, name: &str) -> Option<&str> {
        let found = self.query.iter().find(|(given, _)| given == name);
        found.map(|(_, value)| value.trim()).filter(|value| !value.is_empty())
    }

    /// Milliseconds since 1970.
    pub(super) fn now_ms(&self) -> u64 {
        figures::milliseconds(self.now)
    }

    /// The call log, where one is kept.
    pub(super) fn calls(&self) -> Option<&Calls> {
        self.admin.shared.calls.as_ref()
    }

    /// Whether prompts and replies may be shown.
    pub(super) fn may_read_bodies(&self) -> bool {
        self.may(Role::Operator)
    }

    /// Whether whoever looks may do what `role` may.
    pub(super) fn may(&self, role: Role) -> bool {
        self.access.as_ref().is_some_and(|access| access.may(role))
    }

    /// The page that `template` makes of `page`.
    pub(super) fn page(&self, template: &str, page: Value) -> Response {
        self.page_with(StatusCode::OK, template, page)
    }

    /// Why there is no page.
    pub(super) fn sorry(&self, status: StatusCode, what: &str, why: &str) -> Sorry {
        let page = json!({ "what": self.language.say(what), "why": why });
        Sorry(Box::new(self.page_with(status, "sorry.html", page)))
    }

    /// What the API would have refused.
    pub(super) fn refused(&self, problem: Problem) -> Sorry {
        let (status, why) = problem.into_parts();
        self.sorry(status, word("That cannot be shown."), &why)
    }

    /// A store does not answer.
    pub(super) fn store_away(&self, error: &StoreError) -> Sorry {
        let what = word("The store does not answer. The page can be shown again once it does.");
        self.sorry(StatusCode::SERVICE_UNAVAILABLE, what, &error.to_string())
    }

    fn page_with(&self, status: StatusCode, template: &str, page: Value) -> Response {
        let shared = &self.admin.shared;
        let snapshot = shared.live.load_full();
        let refusal = shared.live.refusal();
        let mut context = json!({
            "lang": self.language.tag(),
            "lang_chosen": self.chosen,
            "path": &self.path,
            "query": &self.query,
            "section": self.path.split('/').nth(1),
            "now_ms": self.now_ms(),
            "access": {
                "name": self.access.as_ref().map(|access| &access.name),
                "role": self.access.as_ref().map(|access| access.role.label()),
                "csrf": self.access.as_ref().and_then(|access| access.csrf.as_ref()),
            },
            "version": env!("CARGO_PKG_VERSION"),
            "hash": &snapshot.hash,
            "refusal": refusal.as_ref().map(|refusal| &refusal.reason),
            "ledger_up": shared.purses.store_up(),
            "records_up": shared.calls.as_ref().is_none_or(|calls| calls.progress.store_up()),
        });
        context["page"] = page;
        match templates::render(template, &context) {
            Ok(html) => (status, Html(html)).into_response(),
            Err(error) => {
                tracing::error!(%error, page.template = template, "a page of the dashboard could not be made");
                StatusCode::INTERNAL_SERVER_ERROR.into_response()
            }
        }
    }
}

/// Marks a text that is translated where it is shown.
pub(in crate::admin) const fn word(english: &str) -> &str {
    english
}
