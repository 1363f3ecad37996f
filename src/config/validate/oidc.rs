//! `server.oidc`: where people sign in to the dashboard, and what they may do there.

use std::sync::Arc;

use http::Uri;

use super::{Check, shown};
use crate::{
    config::{
        file,
        snapshot::{Oidc, Role},
        tree::Path,
    },
    policy::oidc,
};

/// Where browsers come back to.
const CALLBACK: &str = "/login/oidc/callback";

impl Check<'_, '_, '_> {
    pub(super) fn oidc(&mut self, at: &Path, typed: &file::Oidc) -> Option<Arc<Oidc>> {
        let issuer = self.required(at, "issuer", typed.issuer.as_deref(), "write the provider's https URL");
        let issuer = issuer.filter(|issuer| self.issuer(&at.key("issuer"), issuer));
        let client_id = self.required(at, "client_id", typed.client_id.as_deref(), "write the client's name there");
        if client_id.is_some_and(|id| id.trim().is_empty() || id.chars().any(char::is_control)) {
            self.problem(&at.key("client_id"), "is empty or holds a control character");
        }
        let secret_at = at.key("client_secret");
        let client_secret = typed.client_secret.as_ref().and_then(|secret| self.secret(&secret_at, secret));
        let redirect_url = typed.redirect_url.as_deref().filter(|url| self.redirect(&at.key("redirect_url"), url));
        let scope = self.oidc_scope(&at.key("scopes"), typed.scopes.as_deref());
        let roles = self.oidc_roles(&at.key("roles"), &typed.roles);
        Some(Arc::new(Oidc {
            issuer: issuer?.into(),
            client_id: client_id?.into(),
            client_secret,
            redirect_url: redirect_url.map(Into::into),
            scope,
            role_claim: typed.role_claim.as_deref().unwrap_or("groups").into(),
            roles,
        }))
    }

    fn issuer(&mut self, at: &Path, issuer: &str) -> bool {
        let does = may_issue(issuer);
        if !does {
            let message = "is not an https URL without user, query and fragment (http only on this machine); \
                           TLS stands for the signatures of what the provider says";
            self.problem(at, message);
        }
        does
    }

    fn redirect(&mut self, at: &Path, url: &str) -> bool {
        let does = web_address(url).is_some_and(|url| url.path() == CALLBACK);
        if !does {
            self.problem(at, format!("is not the dashboard's address with `{CALLBACK}` after its host and port"));
        }
        does
    }

    /// `openid` makes it a sign-in: OpenID Connect Core §3.1.2.1.
    fn oidc_scope(&mut self, at: &Path, typed: Option<&[String]>) -> Box<str> {
        let mut scope = "openid".to_owned();
        let Some(typed) = typed else { return (scope + " email profile").into() };
        for (i, one) in typed.iter().enumerate() {
            // RFC 6749 §3.3.
            if one.is_empty() || !one.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'"' && byte != b'\\') {
                self.problem(&at.index(i), format!("`{}` is no scope: write one word an entry", shown(one)));
            } else if one != "openid" {
                scope.push(' ');
                scope.push_str(one);
            }
        }
        scope.into()
    }

    fn oidc_roles(&mut self, at: &Path, typed: &file::OidcRoles) -> Vec<(Role, Vec<Box<str>>)> {
        let typed = [(Role::Admin, &typed.admin), (Role::Operator, &typed.operator), (Role::Viewer, &typed.viewer)];
        let roles: Vec<(Role, Vec<Box<str>>)> =
            typed.map(|(role, values)| (role, values.iter().map(|value| value.as_str().into()).collect())).into();
        for (role, values) in &roles {
            if values.iter().any(|value| value.trim().is_empty()) {
                self.problem(&at.key(role.label()), "holds an empty value, which everybody might have");
            }
        }
        if roles.iter().all(|(_, values)| values.is_empty()) {
            self.problem(at, "lets nobody in; write for instance `viewer: [\"*\"]` and `admin: [ops]`");
        }
        if roles.iter().any(|(role, values)| *role == Role::Admin && values.iter().any(|value| **value == *"*")) {
            self.warn(&at.key("admin"), "makes everybody an admin whom the provider lets in");
        }
        roles
    }
}

fn may_issue(issuer: &str) -> bool {
    web_address(issuer).is_some_and(|url| url.query().is_none() && oidc::may_be_believed(&url))
}

/// An absolute http or https URL without user and fragment.
fn web_address(text: &str) -> Option<Uri> {
    let url: Uri = text.parse().ok()?;
    let authority = url.authority()?;
    let is_http = matches!(url.scheme_str(), Some("http" | "https"));
    let is_plain = !authority.host().is_empty() && !authority.as_str().contains('@') && !text.contains('#');
    (is_http && is_plain).then_some(url)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_tls_or_this_machine_may_say_who_somebody_is() {
        for good in
            ["https://id.example.org", "https://id.example.org/realms/a", "http://localhost:9400", "http://[::1]:1"]
        {
            assert!(may_issue(good), "{good}");
        }
        for bad in [
            "http://id.example.org",
            "http://127.0.0.1.example.org",
            "http://localhost@evil.example",
            "https://u:p@host",
            "https://host/?a",
            "https://host/#a",
            "id.example.org",
            "ftp://host",
            "https://",
        ] {
            assert!(!may_issue(bad), "{bad}");
        }
    }
}
