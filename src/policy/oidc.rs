//! Signing in by OpenID Connect: what is sent to the provider, and what its ID token must say. Pure: the time is an argument.
//!
//! Of the validation of OpenID Connect Core 1.0 §3.1.3.7 this does everything but the signature. Item 6 lets TLS stand for it where the
//! token comes straight from the provider's token endpoint, which is the only way one comes in here: so whoever fetches a token must have
//! checked the server's certificate. A token that says it is not signed (`alg: none`) is refused all the same.
//!
//! <https://openid.net/specs/openid-connect-core-1_0.html#IDTokenValidation>, <https://www.rfc-editor.org/rfc/rfc7636>

use std::net::IpAddr;

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD as BASE64};
use http::Uri;
use serde_json::Value;
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

/// How far the provider's clock and ours may be apart, in seconds.
const SKEW_S: i64 = 60;
/// How old a token may be, in seconds: it was made for a sign-in that began at most ten minutes ago.
const AGE_MAX_S: i64 = 600;
/// The longest subject: OpenID Connect Core §2 allows 255 ASCII characters.
const SUBJECT_BYTES_MAX: usize = 255;

/// What an ID token must say.
#[derive(Debug, Clone, Copy)]
pub struct Expected<'a> {
    /// The provider's own name, to the letter.
    pub issuer: &'a str,
    /// Ours with the provider.
    pub client_id: &'a str,
    /// The text of this one sign-in.
    pub nonce: &'a str,
    /// The claim that says what somebody belongs to.
    pub role_claim: &'a str,
}

/// Whom an ID token speaks of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// By what people know them: an e-mail address that the provider does not call unverified, or else the provider's own id.
    pub name: String,
    /// What they belong to.
    pub groups: Vec<Box<str>>,
}

/// Why an ID token does not count. Says nothing of what stands in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Unfit {
    /// Not three parts, of which two are JSON objects in base64url.
    #[error("it is no signed token (JWS)")]
    Form,
    /// `alg: none`.
    #[error("it is not signed; let the provider sign this client's ID tokens")]
    Unsigned,
    /// `iss`.
    #[error("its `iss` is another provider; compare `server.oidc.issuer` with the provider's own word for itself")]
    Issuer,
    /// `aud`, `azp`.
    #[error("it is meant for another client (`aud`, `azp`); compare `server.oidc.client_id`")]
    Audience,
    /// `exp`.
    #[error("it is over (`exp`); compare both clocks")]
    Over,
    /// `iat`.
    #[error("it was made too long ago, or is yet to be made (`iat`); compare both clocks")]
    Age,
    /// `nonce`.
    #[error("it belongs to another sign-in (`nonce`)")]
    Nonce,
    /// `sub`.
    #[error("it names nobody (`sub`)")]
    Subject,
}

/// Whom `id_token` speaks of, if it is for us, for this sign-in, and in force at `now_s` (seconds since 1970).
///
/// # Errors
/// The first reason not to believe it.
pub fn check(id_token: &str, expected: Expected<'_>, now_s: i64) -> Result<Identity, Unfit> {
    let claims = claims(id_token)?;
    let text = |name: &str| claims[name].as_str().unwrap_or_default();
    let number = |name: &str| claims[name].as_f64().filter(|number| number.is_finite()).map(|number| number as i64);
    if text("iss") != expected.issuer {
        return Err(Unfit::Issuer);
    }
    if !is_for(&claims, expected.client_id) {
        return Err(Unfit::Audience);
    }
    if number("exp").is_none_or(|exp| now_s >= exp.saturating_add(SKEW_S)) {
        return Err(Unfit::Over);
    }
    let age_s = number("iat").map(|iat| now_s.saturating_sub(iat));
    if age_s.is_none_or(|age_s| !(-SKEW_S..=AGE_MAX_S + SKEW_S).contains(&age_s)) {
        return Err(Unfit::Age);
    }
    if expected.nonce.is_empty() || !bool::from(text("nonce").as_bytes().ct_eq(expected.nonce.as_bytes())) {
        return Err(Unfit::Nonce);
    }
    let subject = text("sub");
    if !is_name(subject) {
        return Err(Unfit::Subject);
    }
    let email = Some(text("email")).filter(|email| is_name(email) && claims["email_verified"] != Value::Bool(false));
    Ok(Identity { name: email.unwrap_or(subject).to_owned(), groups: texts(claim(&claims, expected.role_claim)) })
}

/// Whether what comes from there is who it says it is: TLS vouches for it, or it never leaves this machine.
#[must_use]
pub fn may_be_believed(url: &Uri) -> bool {
    let host = url.host().unwrap_or_default().trim_start_matches('[').trim_end_matches(']');
    let is_here = host == "localhost" || host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback());
    url.scheme_str() == Some("https") || (url.scheme_str() == Some("http") && is_here)
}

/// The challenge of a PKCE verifier, method `S256`: RFC 7636 §4.2.
#[must_use]
pub fn challenge(verifier: &str) -> String {
    BASE64.encode(Sha256::digest(verifier.as_bytes()))
}

/// What a token claims: its middle part.
fn claims(id_token: &str) -> Result<Value, Unfit> {
    let mut parts = id_token.split('.');
    let (Some(head), Some(body), Some(signature), None) = (parts.next(), parts.next(), parts.next(), parts.next())
    else {
        return Err(Unfit::Form);
    };
    let object = |part: &str| {
        let value: Value = serde_json::from_slice(&BASE64.decode(part).ok()?).ok()?;
        value.is_object().then_some(value)
    };
    let head = object(head).ok_or(Unfit::Form)?;
    let signed = head["alg"].as_str().is_some_and(|alg| !alg.eq_ignore_ascii_case("none")) && !signature.is_empty();
    if !signed {
        return Err(Unfit::Unsigned);
    }
    object(body).ok_or(Unfit::Form)
}

/// Items 3 to 5: the client is among the audience, and where there are others or an authorized party is named, it is that party.
fn is_for(claims: &Value, client_id: &str) -> bool {
    let audience = texts(Some(&claims["aud"]));
    let party = claims.get("azp").map(|azp| azp.as_str().unwrap_or_default());
    let is_party = party.map_or(audience.len() == 1, |party| party == client_id);
    is_party && audience.iter().any(|one| **one == *client_id)
}

/// A claim by its name, which may have dots in it, or by its path: `realm_access.roles`.
fn claim<'c>(claims: &'c Value, name: &str) -> Option<&'c Value> {
    claims.get(name).or_else(|| name.split('.').try_fold(claims, |value, part| value.get(part)))
}

/// One text, or a list of them.
fn texts(value: Option<&Value>) -> Vec<Box<str>> {
    match value {
        Some(Value::String(text)) => vec![text.as_str().into()],
        Some(Value::Array(list)) => list.iter().filter_map(Value::as_str).map(Into::into).collect(),
        _ => Vec::new(),
    }
}

/// Whether a text may stand in a log as somebody's name.
fn is_name(text: &str) -> bool {
    let is_odd = |c: char| c.is_control() || (c.is_whitespace() && c != ' ');
    !text.trim().is_empty() && text.len() <= SUBJECT_BYTES_MAX && !text.contains(is_odd)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    const NOW: i64 = 1_800_000_000;
    const EXPECTED: Expected<'_> =
        Expected { issuer: "https://id.example.org", client_id: "tollgate", nonce: "n-0S6", role_claim: "groups" };

    fn good() -> Value {
        json!({
            "iss": "https://id.example.org", "aud": "tollgate", "exp": NOW + 300, "iat": NOW - 1, "nonce": "n-0S6", "sub": "248289",
            "email": "ann@example.org", "groups": ["ops", "all"],
        })
    }

    fn token_with(head: &Value, claims: &Value) -> String {
        let part = |value: &Value| BASE64.encode(value.to_string());
        format!("{}.{}.c2ln", part(head), part(claims))
    }

    fn token(claims: &Value) -> String {
        token_with(&json!({"alg": "RS256"}), claims)
    }

    fn changed(name: &str, value: Value) -> Result<Identity, Unfit> {
        let mut claims = good();
        match value {
            Value::Null => drop(claims.as_object_mut().unwrap().remove(name)),
            value => claims[name] = value,
        }
        check(&token(&claims), EXPECTED, NOW)
    }

    #[test]
    fn a_token_for_us_and_for_now_says_who_it_is() {
        let groups = vec!["ops".into(), "all".into()];
        let ann = Identity { name: "ann@example.org".to_owned(), groups };
        assert_eq!(check(&token(&good()), EXPECTED, NOW), Ok(ann));
    }

    #[test]
    fn what_does_not_hold_is_named() {
        let table = [
            ("iss", json!("https://id.example.org/"), Unfit::Issuer),
            ("iss", json!(null), Unfit::Issuer),
            ("aud", json!("other"), Unfit::Audience),
            ("aud", json!(["other"]), Unfit::Audience),
            ("aud", json!([]), Unfit::Audience),
            ("aud", json!(["tollgate", "other"]), Unfit::Audience),
            ("aud", json!(null), Unfit::Audience),
            ("azp", json!("other"), Unfit::Audience),
            ("azp", json!(7), Unfit::Audience),
            ("exp", json!(NOW - SKEW_S), Unfit::Over),
            ("exp", json!(null), Unfit::Over),
            ("exp", json!("soon"), Unfit::Over),
            ("iat", json!(NOW + SKEW_S + 1), Unfit::Age),
            ("iat", json!(NOW - AGE_MAX_S - SKEW_S - 1), Unfit::Age),
            ("iat", json!(null), Unfit::Age),
            ("nonce", json!("another"), Unfit::Nonce),
            ("nonce", json!(null), Unfit::Nonce),
            ("sub", json!(""), Unfit::Subject),
            ("sub", json!("a\nb"), Unfit::Subject),
            ("sub", json!("x".repeat(256)), Unfit::Subject),
            ("sub", json!(null), Unfit::Subject),
        ];
        for (name, value, why) in table {
            assert_eq!(changed(name, value.clone()), Err(why), "{name}: {value}");
        }
        for (name, value) in [
            ("aud", json!(["tollgate"])),
            ("azp", json!("tollgate")),
            ("exp", json!(NOW - SKEW_S + 1)),
            ("iat", json!((NOW + SKEW_S) as f64)),
        ] {
            assert!(changed(name, value.clone()).is_ok(), "{name}: {value}");
        }
        let mut claims = good();
        (claims["aud"], claims["azp"]) = (json!(["tollgate", "other"]), json!("tollgate"));
        assert!(check(&token(&claims), EXPECTED, NOW).is_ok());
    }

    #[test]
    fn what_is_not_signed_or_no_token_is_refused() {
        for alg in [json!("none"), json!("NONE"), json!(null)] {
            let unsigned = token_with(&json!({"alg": alg}), &good());
            assert_eq!(check(&unsigned, EXPECTED, NOW), Err(Unfit::Unsigned));
        }
        let whole = token(&good());
        let cut = whole.rsplit_once('.').unwrap().0;
        assert_eq!(check(&format!("{cut}."), EXPECTED, NOW), Err(Unfit::Unsigned));
        for broken in ["", "a.b.c", cut, &format!("{whole}.x"), &whole.replace('.', "")] {
            assert_eq!(check(broken, EXPECTED, NOW), Err(Unfit::Form), "{broken}");
        }
    }

    #[test]
    fn an_empty_nonce_is_nobodys() {
        let mut claims = good();
        claims["nonce"] = json!("");
        assert_eq!(check(&token(&claims), Expected { nonce: "", ..EXPECTED }, NOW), Err(Unfit::Nonce));
    }

    #[test]
    fn an_address_that_is_not_verified_is_no_name() {
        let named = |verified: Value| changed("email_verified", verified).unwrap().name;
        assert_eq!(named(json!(true)), "ann@example.org");
        assert_eq!(named(json!(false)), "248289");
        assert_eq!(changed("email", json!("ann\n@example.org")).unwrap().name, "248289");
        assert_eq!(changed("email", json!(null)).unwrap().name, "248289");
    }

    #[test]
    fn groups_stand_in_a_claim_of_that_name_or_below() {
        let groups = |role_claim: &str, claims: Value| -> Vec<Box<str>> {
            let mut all = good();
            all.as_object_mut().unwrap().extend(claims.as_object().unwrap().clone());
            check(&token(&all), Expected { role_claim, ..EXPECTED }, NOW).unwrap().groups
        };
        let ops: Vec<Box<str>> = vec!["ops".into()];
        assert_eq!(groups("role", json!({"role": "ops"})), ops);
        assert_eq!(groups("realm_access.roles", json!({"realm_access": {"roles": ["ops", 7]}})), ops);
        assert_eq!(groups("https://example.org/roles", json!({"https://example.org/roles": ["ops"]})), ops);
        assert!(groups("groups.x", json!({})).is_empty() && groups("none", json!({})).is_empty());
    }

    /// RFC 7636, appendix B.
    #[test]
    fn the_challenge_is_the_one_of_the_rfc() {
        let verifier = "dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk";
        assert_eq!(challenge(verifier), "E9Melhoa2OwvFrEMTJguCHaoeK1t8URWbuGJSstw-cM");
    }

    proptest! {
        #[test]
        fn whatever_comes_is_no_reason_to_panic(text in "[A-Za-z0-9_.{}\" -]{0,200}") {
            prop_assert!(check(&text, EXPECTED, NOW).is_err());
        }
    }
}
