//! Finds the caller by its key and pins the configuration for the rest of the call.
//!
//! Unknown, wrong and revoked keys are one case: same path, same answer. The body is not polled here, so a client that waits
//! for `100 Continue` is refused before it sends anything.

use std::sync::Arc;

use http::{HeaderMap, HeaderName, HeaderValue, header};

use crate::{
    call::{Arrival, Authenticated},
    config::{Live, snapshot::Auth},
    error::GatewayError,
    layers::{Early, Turn},
    wire::headers,
};

/// Where a client may put its key, in the order in which they are looked at.
const KEY_HEADERS: [HeaderName; 2] = [HeaderName::from_static("x-api-key"), HeaderName::from_static("api-key")];

/// See the module.
#[derive(Debug)]
pub struct Authenticate {
    /// The configuration that serves.
    pub live: Arc<Live>,
}

impl Turn for Authenticate {
    type In = Arrival;
    type Next = Authenticated;

    fn turn(&self, arrival: Arrival) -> Result<Authenticated, Early> {
        let snapshot = self.live.load_full();
        let head = &arrival.head;
        if snapshot.auth == Auth::None && headers::is_from_elsewhere(head.host.as_deref(), &head.headers) {
            return Err(elsewhere().into());
        }
        let presented = presented_key(&head.headers);
        let caller = match snapshot.auth {
            Auth::Required => presented.and_then(|key| snapshot.keys.find(key)).ok_or(GatewayError::InvalidApiKey)?,
            Auth::None | Auth::Passthrough => snapshot.anonymous(),
        };
        let own_credential = match snapshot.auth {
            Auth::Passthrough => Some(presented.and_then(sensitive).ok_or(GatewayError::InvalidApiKey)?),
            Auth::Required | Auth::None => None,
        };
        Ok(Authenticated { arrival, caller, snapshot, own_credential })
    }
}

/// Where no key is asked for, a page of any site could spend money through the browser of someone who visits it.
fn elsewhere() -> GatewayError {
    GatewayError::Forbidden(
        "with `auth: none` only this machine is served: use 127.0.0.1 or localhost, and no page of another site"
            .to_owned(),
    )
}

/// The key of a request, wherever its dialect puts it.
fn presented_key(headers: &HeaderMap) -> Option<&str> {
    let bearer = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok()).and_then(bearer_token);
    bearer.or_else(|| KEY_HEADERS.iter().find_map(|name| headers.get(name)?.to_str().ok()))
}

/// RFC 9110 §11.1: the scheme's name is case-insensitive.
fn bearer_token(authorization: &str) -> Option<&str> {
    let (scheme, token) = authorization.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
}

fn sensitive(key: &str) -> Option<HeaderValue> {
    let mut value = HeaderValue::from_str(key).ok()?;
    value.set_sensitive(true);
    Some(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header_map(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        pairs.iter().map(|(name, value)| (name.parse().unwrap(), HeaderValue::from_static(value))).collect()
    }

    #[test]
    fn a_key_is_found_in_each_header_that_clients_use() {
        for (name, value) in
            [("authorization", "Bearer k1"), ("authorization", "bearer k1"), ("x-api-key", "k1"), ("api-key", "k1")]
        {
            assert_eq!(presented_key(&header_map(&[(name, value)])), Some("k1"), "{name}: {value}");
        }
    }

    #[test]
    fn other_schemes_are_no_keys() {
        assert_eq!(presented_key(&header_map(&[("authorization", "Basic k1")])), None);
        assert_eq!(presented_key(&header_map(&[])), None);
    }
}
