//! Which headers go on, and which end here.
//!
//! Framing is always rebuilt and never copied; credentials are always replaced. What `Connection` names is stripped on
//! all of its lines (hyper does so on HTTP/2 only, and for the first line), but it cannot take away headers that a
//! message means something else without.

use std::net::IpAddr;

use http::{
    HeaderMap,
    header::{self, HeaderName, HeaderValue},
};

/// Proxies' own credentials: hop-by-hop too.
const PROXY_AUTH: [HeaderName; 2] = [header::PROXY_AUTHENTICATE, header::PROXY_AUTHORIZATION];

/// Where clients put credentials. None of them is forwarded; each provider's own is attached last.
pub const CREDENTIALS: [HeaderName; 5] = [
    header::AUTHORIZATION,
    HeaderName::from_static("x-api-key"),
    HeaderName::from_static("api-key"),
    HeaderName::from_static("x-goog-api-key"),
    header::COOKIE,
];

/// Headers that control this gateway or one like it: what they ask for is done here or not at all.
const CONTROL_PREFIXES: [&str; 6] =
    ["x-tollgate-", "x-forwarded-", "x-litellm-", "litellm-", "helicone-", "x-portkey-"];

/// What a trailer section may add; everything else in it is dropped (RFC 9110 section 6.5.1).
const TRAILERS: [&str; 5] = ["server-timing", "content-digest", "repr-digest", "etag", "x-request-id"];

/// The client's own id of a request. It is forwarded; what the gateway logs is its own.
const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// Headers that are added to those of a request: credentials, codings, `via`, a version, and some room.
const ADDED_HEADERS: usize = 6;

/// The longest request id that is taken from a client, in bytes.
const REQUEST_ID_BYTES_MAX: usize = 64;

/// The headers of a request as the provider gets them: without what is hop-by-hop, framing, credentials, claims about the
/// client, request ids that are none, and what controls gateways.
///
/// A new map of what stays: cheaper than a copy of all from which much is then removed.
#[must_use]
pub fn forwarded(headers: &HeaderMap) -> HeaderMap {
    let hop_by_hop = HopByHop::of(headers);
    let is_own_id = headers.get(REQUEST_ID).is_none_or(|id| is_request_id(id.as_bytes()));
    let stays = |name: &HeaderName| {
        !hop_by_hop.holds(name)
            && !is_credential(name)
            && !is_rebuilt_or_unchecked(name)
            && !is_control(name)
            && (is_own_id || *name != REQUEST_ID)
    };
    let mut forwarded = HeaderMap::with_capacity(headers.len() + ADDED_HEADERS);
    for (name, value) in headers.iter().filter(|(name, _)| stays(name)) {
        forwarded.append(name.clone(), value.clone());
    }
    forwarded
}

/// Takes out of a response all that the client must not get: hop-by-hop headers, what only this gateway may say, and
/// other services on the provider's host.
pub fn strip_response(headers: &mut HeaderMap) {
    let hop_by_hop = HopByHop::of(headers);
    let goes = |name: &&HeaderName| hop_by_hop.holds(name) || is_control(name) || **name == header::ALT_SVC;
    // One pass that finds nothing, as a rule: looking for each name that may be there costs more.
    let going: Vec<HeaderName> = headers.keys().filter(goes).cloned().collect();
    for name in going {
        headers.remove(name);
    }
}

/// Marks credentials, so that no `Debug` shows them.
pub fn hide_credentials(headers: &mut HeaderMap) {
    for (name, value) in headers.iter_mut() {
        if is_credential(name) || PROXY_AUTH.contains(name) {
            value.set_sensitive(true);
        }
    }
}

/// Leaves in a trailer section what is allowed there, never framing or credentials.
pub fn retain_trailers(trailers: &mut HeaderMap) {
    let dropped: Vec<HeaderName> = trailers.keys().filter(|name| !TRAILERS.contains(&name.as_str())).cloned().collect();
    for name in dropped {
        trailers.remove(name);
    }
}

/// What to ask the provider for: what the client takes of the codings that can be decoded to meter them.
#[must_use]
pub fn accept_encoding(client: Option<&HeaderValue>) -> HeaderValue {
    const DECODED: [&str; 4] = ["gzip", "deflate", "br", "identity"];
    let Some(client) = client else { return HeaderValue::from_static("identity") };
    let offered = client.to_str().unwrap_or_default();
    let decoded = |member: &&str| {
        let coding = member.split(';').next().unwrap_or_default().trim();
        DECODED.iter().any(|known| coding.eq_ignore_ascii_case(known))
    };
    let taken: Vec<&str> = offered.split(',').map(str::trim).filter(decoded).collect();
    let taken = HeaderValue::from_str(&taken.join(", ")).ok().filter(|value| !value.is_empty());
    taken.unwrap_or(HeaderValue::from_static("identity"))
}

/// A whole number as a header's value. `HeaderValue::from` would allocate twice.
#[must_use]
pub fn number(number: u64) -> HeaderValue {
    HeaderValue::from_str(digits(number, &mut [0; 20])).expect("digits")
}

/// A whole number as text, in `room`.
pub fn digits(number: u64, room: &mut [u8; 20]) -> &str {
    let (mut at, mut left) = (room.len(), number);
    loop {
        at -= 1;
        room[at] = b'0' + (left % 10) as u8;
        left /= 10;
        if left == 0 {
            return std::str::from_utf8(&room[at..]).expect("digits");
        }
    }
}

/// The first header with an underscore in its name: servers behind may read `X_User` as `X-User`.
#[must_use]
pub fn underscored(headers: &HeaderMap) -> Option<&HeaderName> {
    headers.keys().find(|name| name.as_str().contains('_'))
}

/// Whether a request id of the client's may be used: it ends in the provider's logs.
#[must_use]
pub fn is_request_id(id: &[u8]) -> bool {
    let allowed = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-');
    (1..=REQUEST_ID_BYTES_MAX).contains(&id.len()) && id.iter().all(allowed)
}

/// The host in `host:port`, without the brackets of an IPv6 address.
#[must_use]
pub fn host_name(authority: &str) -> &str {
    let is_port = |(_, port): &(&str, &str)| port.bytes().all(|byte| byte.is_ascii_digit());
    let host = match authority.rsplit_once(':').filter(is_port) {
        // `::1` has no port, `[::1]:80` has.
        Some((host, _)) if !host.contains(':') || host.ends_with(']') => host,
        _ => authority,
    };
    host.trim_start_matches('[').trim_end_matches(']')
}

/// Whether a request comes from a page of another site, or by a name that such a site may have pointed here (DNS rebinding):
/// `host`, and `Origin` where there is one, must be an address or a name that nobody can register.
#[must_use]
pub fn is_from_elsewhere(host: Option<&str>, headers: &HeaderMap) -> bool {
    let origin = headers.get(header::ORIGIN).map(|origin| {
        let (_, host) = origin.to_str().ok()?.split_once("://")?;
        Some(host)
    });
    !host.is_some_and(is_private) || origin.is_some_and(|host| !host.is_some_and(is_private))
}

/// An address, a name without a dot, or one below a domain that is not in the public DNS (RFC 6761, RFC 6762, ICANN's `.internal`).
fn is_private(authority: &str) -> bool {
    let name = host_name(authority);
    let last = name.rsplit_once('.').map(|(_, last)| last.to_ascii_lowercase());
    name.parse::<IpAddr>().is_ok()
        || last.is_none_or(|last| matches!(last.as_str(), "localhost" | "local" | "internal" | "test"))
}

/// Whether the body is an event stream.
#[must_use]
pub fn is_event_stream(headers: &HeaderMap) -> bool {
    media_type_is(headers, "text/event-stream")
}

/// Whether the body is JSON.
#[must_use]
pub fn is_json(headers: &HeaderMap) -> bool {
    media_type_is(headers, "application/json")
}

fn media_type_is(headers: &HeaderMap, media_type: &str) -> bool {
    let value = headers.get(header::CONTENT_TYPE).map_or(&b""[..], HeaderValue::as_bytes);
    let essence = value.split(|byte| *byte == b';').next().unwrap_or_default();
    essence.trim_ascii().eq_ignore_ascii_case(media_type.as_bytes())
}

/// The names in all `Connection` lines, without those that a message needs.
fn named_by_connection(headers: &HeaderMap) -> Vec<HeaderName> {
    const NEEDED: [HeaderName; 13] = [
        header::AUTHORIZATION,
        HeaderName::from_static("x-api-key"),
        HeaderName::from_static("api-key"),
        header::HOST,
        header::CONTENT_TYPE,
        header::CONTENT_LENGTH,
        header::CONTENT_ENCODING,
        header::ACCEPT,
        header::ACCEPT_ENCODING,
        header::CACHE_CONTROL,
        header::VARY,
        header::VIA,
        header::TE,
    ];
    headers
        .get_all(header::CONNECTION)
        .iter()
        .flat_map(|line| line.as_bytes().split(|byte| *byte == b','))
        .filter_map(|token| HeaderName::from_bytes(token.trim_ascii()).ok())
        .filter(|name| !NEEDED.contains(name) && !name.as_str().starts_with("x-tollgate-"))
        .collect()
}

/// What a head says for one connection only.
struct HopByHop {
    /// What `Connection` names.
    named: Vec<HeaderName>,
    /// Whether `TE` says nothing but `trailers`.
    te_stays: bool,
}

impl HopByHop {
    fn of(headers: &HeaderMap) -> HopByHop {
        let te_stays = headers.get_all(header::TE).iter().all(|te| te.as_bytes().eq_ignore_ascii_case(b"trailers"));
        HopByHop { named: named_by_connection(headers), te_stays }
    }

    fn holds(&self, name: &HeaderName) -> bool {
        is_hop_by_hop(name) || (!self.te_stays && *name == header::TE) || self.named.contains(name)
    }
}

/// By RFC 9110 section 7.6.1 and by custom. `TE` is apart: `trailers` may stay.
fn is_hop_by_hop(name: &HeaderName) -> bool {
    matches!(
        name.as_str(),
        "connection"
            | "keep-alive"
            | "proxy-connection"
            | "trailer"
            | "transfer-encoding"
            | "upgrade"
            | "proxy-authentication-info"
            | "proxy-authenticate"
            | "proxy-authorization"
    )
}

fn is_credential(name: &HeaderName) -> bool {
    CREDENTIALS.contains(name)
}

/// Rebuilt for the request that goes out, or a claim about the client that nobody has checked.
fn is_rebuilt_or_unchecked(name: &HeaderName) -> bool {
    matches!(
        name.as_str(),
        "host" | "content-length" | "expect" | "forwarded" | "x-real-ip" | "x-original-url" | "x-rewrite-url"
    )
}

fn is_control(name: &HeaderName) -> bool {
    matches!(name.as_str().as_bytes().first(), Some(b'x' | b'l' | b'h'))
        && CONTROL_PREFIXES.iter().any(|prefix| name.as_str().starts_with(prefix))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_written_in_digits() {
        for value in [0, 9, 10, 1_234_567, u64::MAX] {
            assert_eq!(number(value), value.to_string().as_str());
        }
    }

    fn headers(lines: &[(&str, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in lines {
            let name = HeaderName::from_bytes(name.as_bytes()).expect(name);
            headers.append(name, HeaderValue::from_str(value).expect(value));
        }
        headers
    }

    fn names(headers: &HeaderMap) -> Vec<&str> {
        let mut names: Vec<&str> = headers.keys().map(HeaderName::as_str).collect();
        names.sort_unstable();
        names
    }

    #[test]
    fn what_any_connection_line_names_is_stripped() {
        let mut map = headers(&[
            ("connection", "close, X-A"),
            ("connection", " x-b ,, not a token"),
            ("x-a", "1"),
            ("x-b", "2"),
            ("x-c", "3"),
            ("keep-alive", "5"),
            ("proxy-connection", "close"),
            ("proxy-authorization", "x"),
            ("trailer", "x"),
            ("transfer-encoding", "chunked"),
            ("upgrade", "h2c"),
        ]);
        let before = map.clone();
        strip_response(&mut map);
        assert_eq!(names(&map), ["x-c"]);
        assert_eq!(names(&forwarded(&before)), ["x-c"]);
    }

    #[test]
    fn connection_cannot_take_away_what_a_message_needs() {
        let mut map = headers(&[
            ("connection", "authorization, host, content-type, content-length, content-encoding, x-tollgate-user"),
            ("authorization", "Bearer k"),
            ("host", "h"),
            ("content-type", "t"),
            ("content-length", "1"),
            ("content-encoding", "br"),
            ("x-tollgate-user", "u"),
        ]);
        strip_response(&mut map);
        assert_eq!(
            names(&map),
            ["authorization", "content-encoding", "content-length", "content-type", "host"],
            "what controls the gateway is its own matter"
        );
    }

    #[test]
    fn te_stays_for_trailers_only() {
        for (te, stays) in [("trailers", true), ("Trailers", true), ("gzip", false), ("trailers, gzip", false)] {
            let mut map = headers(&[("te", te)]);
            assert_eq!(forwarded(&map).contains_key(header::TE), stays, "{te}");
            strip_response(&mut map);
            assert_eq!(map.contains_key(header::TE), stays, "{te}");
        }
    }

    #[test]
    fn nothing_that_identifies_or_controls_reaches_the_provider() {
        let map = headers(&[
            ("authorization", "k"),
            ("x-api-key", "k"),
            ("api-key", "k"),
            ("cookie", "c"),
            ("host", "h"),
            ("content-length", "5"),
            ("expect", "100-continue"),
            ("forwarded", "for=1"),
            ("x-forwarded-for", "1"),
            ("x-tollgate-user", "u"),
            ("helicone-user-id", "u"),
            ("x-portkey-config", "c"),
            ("x-litellm-tags", "t"),
            ("anthropic-version", "2023-06-01"),
            ("openai-beta", "b"),
            ("content-type", "application/json"),
            ("user-agent", "ua"),
        ]);
        let map = forwarded(&map);
        assert_eq!(names(&map), ["anthropic-version", "content-type", "openai-beta", "user-agent"]);
    }

    #[test]
    fn credentials_are_not_shown() {
        let mut map = headers(&[("authorization", "Bearer k1"), ("cookie", "k2"), ("api-key", "k3"), ("accept", "k4")]);
        map.append("api-key", HeaderValue::from_static("k5"));
        hide_credentials(&mut map);
        let shown = format!("{map:?}");
        assert!(["k1", "k2", "k3", "k5"].iter().all(|key| !shown.contains(key)) && shown.contains("k4"), "{shown}");
    }

    #[test]
    fn a_provider_cannot_speak_for_the_gateway() {
        let mut map = headers(&[
            ("x-tollgate-cost-usd", "0"),
            ("alt-svc", "h3"),
            ("x-request-id", "r"),
            ("x-ratelimit-limit-requests", "5"),
        ]);
        strip_response(&mut map);
        assert_eq!(names(&map), ["x-ratelimit-limit-requests", "x-request-id"]);
    }

    #[test]
    fn trailers_add_nothing_that_frames_or_authorises() {
        let mut map =
            headers(&[("authorization", "k"), ("content-length", "5"), ("server-timing", "a;dur=1"), ("x-new", "1")]);
        retain_trailers(&mut map);
        assert_eq!(names(&map), ["server-timing"]);
    }

    #[test]
    fn codings_are_asked_for_as_far_as_they_can_be_metered() {
        for (client, asked) in [
            ("gzip, deflate, br, zstd", "gzip, deflate, br"),
            ("br;q=1.0, zstd;q=0.9, *;q=0.1", "br;q=1.0"),
            ("GZIP ;q=0.5,identity;q=0", "GZIP ;q=0.5, identity;q=0"),
            ("zstd", "identity"),
            ("*", "identity"),
            ("", "identity"),
        ] {
            let value = HeaderValue::from_static(client);
            assert_eq!(accept_encoding(Some(&value)), asked, "{client}");
        }
        assert_eq!(accept_encoding(None), "identity");
    }

    #[test]
    fn names_and_ids_are_checked() {
        assert_eq!(underscored(&headers(&[("x-user", "a")])), None);
        assert_eq!(underscored(&headers(&[("x-user", "a"), ("x_user", "b")])).map(HeaderName::as_str), Some("x_user"));
        assert!(is_request_id(b"a-B_9") && is_request_id(&[b'x'; 64]));
        for id in [&b""[..], &[b'x'; 65], b"a b", b"a\nb", b"a.b", "é".as_bytes()] {
            assert!(!is_request_id(id), "{id:?}");
        }
    }

    #[test]
    fn only_names_that_nobody_can_register_are_ours() {
        for host in
            ["127.0.0.1:8080", "[::1]:80", "::1", "localhost", "host.docker.internal:8080", "gateway", "10.0.0.1"]
        {
            assert!(!is_from_elsewhere(Some(host), &HeaderMap::new()), "{host}");
        }
        for host in ["evil.example", "localhost.evil.example:80", "127.0.0.1.evil.example"] {
            assert!(is_from_elsewhere(Some(host), &HeaderMap::new()), "{host}");
        }
        assert!(is_from_elsewhere(None, &HeaderMap::new()));
        for (origin, elsewhere) in
            [("http://localhost:3000", false), ("http://[::1]", false), ("null", true), ("https://evil.example", true)]
        {
            assert_eq!(is_from_elsewhere(Some("localhost"), &headers(&[("origin", origin)])), elsewhere, "{origin}");
        }
    }

    #[test]
    fn event_streams_are_told_by_their_media_type() {
        for (value, is) in [
            ("text/event-stream", true),
            ("Text/Event-Stream; charset=utf-8", true),
            ("text/event-stream-x", false),
            ("application/json", false),
        ] {
            assert_eq!(is_event_stream(&headers(&[("content-type", value)])), is, "{value}");
        }
        assert!(!is_event_stream(&HeaderMap::new()));
        assert!(is_json(&headers(&[("content-type", "application/json; charset=utf-8")])));
    }
}
