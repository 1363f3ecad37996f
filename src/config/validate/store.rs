//! `store`: where the ledger's truth lives.
//!
//! Messages never repeat a URL: it may hold a password.

use super::Check;
use crate::{
    config::{forms::SecretText, snapshot::Store, tree::Path},
    wire::redis_url::{RedisUrl, RedisUrlError},
};

/// The word for a local file.
pub(super) const EMBEDDED: &str = "embedded";

impl Check<'_, '_, '_> {
    pub(super) fn store(&mut self, typed: Option<&SecretText>) -> Option<Store> {
        let at = Path::default().key("store");
        let Some(typed) = typed.filter(|typed| typed.0 != EMBEDDED) else { return Some(Store::Embedded) };
        let from_file = typed.0.starts_with("file:");
        let text = if from_file { self.secret(&at, typed)?.expose().to_owned() } else { typed.0.clone() };
        match RedisUrl::parse(&text) {
            Ok(url) => {
                let in_the_open = !from_file && url.expose_password().is_some() && !self.document.is_filled(&at);
                self.inline_secret |= in_the_open;
                Some(Store::Redis(url))
            }
            Err(RedisUrlError::Scheme) => {
                self.problem(
                    &at,
                    "is not a store; write `embedded`, redis://…, redis+sentinel://… or redis+cluster://…",
                );
                None
            }
            Err(error) => {
                self.problem(&at, error.to_string());
                None
            }
        }
    }
}
