//! Pages at the door: what a browser is shown before anybody has signed in, in the language that it likes best.

use axum::response::{Html, IntoResponse, Response};
use http::{HeaderMap, StatusCode, header};
use serde_json::{Value, json};

use super::{language::Language, templates};

/// Nothing but styles, the theme that this browser has chosen, and forms that go back here.
const CONTENT_SECURITY: &str = "default-src 'none'; style-src 'self'; script-src 'self'; img-src 'self'; font-src 'self'; \
                                form-action 'self'; base-uri 'none'; frame-ancestors 'none'";

/// Somebody at the door.
#[derive(Debug, Clone, Copy)]
pub(in crate::admin) struct Door {
    language: Language,
    chosen: bool,
}

impl Door {
    /// Whoever sent these headers, and has chosen the language of this tag.
    pub(in crate::admin) fn choosing(tag: Option<&str>, headers: &HeaderMap) -> Door {
        let chosen = tag.and_then(Language::of_tag);
        let accepted = headers.get(header::ACCEPT_LANGUAGE).and_then(|value| value.to_str().ok());
        let language = chosen.unwrap_or_else(|| Language::preferred(accepted.unwrap_or_default()));
        Door { language, chosen: chosen.is_some() }
    }

    /// The page that `template` makes of `page`, for somebody who wants to go to `next`.
    pub(in crate::admin) fn page(self, status: StatusCode, template: &str, next: &str, page: &Value) -> Response {
        let context = json!({
            "lang": self.language.tag(),
            "lang_chosen": self.chosen,
            "path": crate::admin::login::LOGIN,
            "query": [("next", next)],
            "next": next,
            "page": page,
        });
        match templates::render(template, &context) {
            Ok(html) => (status, [(header::CONTENT_SECURITY_POLICY, CONTENT_SECURITY)], Html(html)).into_response(),
            Err(error) => {
                tracing::error!(%error, page.template = template, "a page could not be made");
                StatusCode::INTERNAL_SERVER_ERROR.into_response()
            }
        }
    }

    /// What `english` is in this language.
    pub(in crate::admin) fn say(self, english: &str) -> &str {
        self.language.say(english)
    }
}
