//! What an alert looks like to its receiver: Slack's incoming webhooks, PagerDuty's Events API v2, or plain JSON that is signed.
//!
//! Slack: <https://docs.slack.dev/messaging/sending-messages-using-incoming-webhooks>. PagerDuty:
//! <https://developer.pagerduty.com/docs/events-api-v2/trigger-events/>. The signature is the one that Stripe's webhooks have:
//! <https://docs.stripe.com/webhooks#verify-manually>.

use bytes::Bytes;
use hmac::{Hmac, KeyInit, Mac};
use http::{HeaderValue, Request, header};
use jiff::Timestamp;
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};

use super::Alert;
use crate::policy::alerts::{Condition, Format, Severity, State, Webhook};

/// `t=<seconds>,v1=<hex>`: HMAC-SHA-256 over `<seconds>.<body>`.
const SIGNATURE: &str = "x-tollgate-signature";
/// PagerDuty takes so many characters of a summary, and so many bytes of a key.
const PAGERDUTY_SUMMARY_CHARS: usize = 1024;
const PAGERDUTY_KEY_BYTES: usize = 255;

/// The request that tells `alert`, signed for `now`; `None` where this receiver needs not hear of it.
pub(super) fn request(webhook: &Webhook, alert: &Alert, now: Timestamp) -> Option<Request<Bytes>> {
    let body = match webhook.format {
        Format::PagerDuty => pagerduty(webhook, alert),
        _ if alert.message.superseded => return None,
        Format::Slack => slack(alert),
        Format::Generic => generic(alert),
    };
    let body = Bytes::from(body.to_string());
    let mut request = Request::post(webhook.url.clone()).body(body).ok()?;
    let headers = request.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(header::USER_AGENT, HeaderValue::from_static(concat!("tollgate/", env!("CARGO_PKG_VERSION"))));
    if let Some(secret) = &webhook.secret {
        let signature = signature(secret.as_bytes(), now.as_second(), request.body());
        let signature = HeaderValue::from_str(&signature).expect("digits, letters, `=` and `,`");
        request.headers_mut().insert(SIGNATURE, signature);
    }
    Some(request)
}

fn signature(secret: &[u8], seconds: i64, body: &[u8]) -> String {
    let mut mac = Hmac::<Sha256>::new_from_slice(secret).expect("HMAC takes keys of any length");
    mac.update(seconds.to_string().as_bytes());
    mac.update(b".");
    mac.update(body);
    format!("t={seconds},v1={}", hex(&mac.finalize().into_bytes()))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn details(condition: &Condition) -> Map<String, Value> {
    condition.details.iter().map(|(name, value)| ((*name).to_owned(), Value::from(value.as_str()))).collect()
}

fn generic(alert: &Alert) -> Value {
    let (message, condition) = (&alert.message, &alert.message.condition);
    json!({
        "version": 1,
        "id": alert.id,
        "key": condition.key(),
        "kind": condition.kind.label(),
        "state": message.state.label(),
        "severity": condition.severity.label(),
        "summary": condition.summary,
        "mend": condition.mend,
        "details": details(condition),
        "since": seconds(message.since),
        "at": seconds(message.at),
        "source": alert.source,
    })
}

fn seconds(at: Timestamp) -> String {
    format!("{at:.0}")
}

fn slack(alert: &Alert) -> Value {
    let (message, condition) = (&alert.message, &alert.message.condition);
    let (mark, begin) = match (message.state, condition.severity) {
        (State::Resolved, _) => (":white_check_mark:", "Over: "),
        (State::Repeated, _) => (":repeat:", "Still: "),
        (State::Raised, Severity::Critical | Severity::Error) => (":red_circle:", ""),
        (State::Raised, Severity::Warning | Severity::Info) => (":large_yellow_circle:", ""),
    };
    let mut text = format!("{mark} *{begin}{}*", escaped(&condition.summary));
    if message.state != State::Resolved {
        text.push_str(&format!("\n{}", escaped(condition.mend)));
        for (name, value) in &condition.details {
            text.push_str(&format!("\n• {name}: {}", escaped(value)));
        }
    }
    text.push_str(&format!("\n_{}, since {}_", escaped(&alert.source), seconds(message.since)));
    json!({ "text": text })
}

/// The three characters that mean something in Slack's texts; what is left cannot mention a channel or make a link.
fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

fn pagerduty(webhook: &Webhook, alert: &Alert) -> Value {
    let (message, condition) = (&alert.message, &alert.message.condition);
    let (routing_key, dedup_key) = (webhook.routing_key.as_deref().unwrap_or_default(), dedup_key(condition));
    if message.state == State::Resolved {
        return json!({ "routing_key": routing_key, "event_action": "resolve", "dedup_key": dedup_key });
    }
    let mut custom_details = details(condition);
    custom_details.insert("mend".to_owned(), condition.mend.into());
    json!({
        "routing_key": routing_key,
        "event_action": "trigger",
        "dedup_key": dedup_key,
        "client": "Tollgate",
        "payload": {
            "summary": condition.summary.chars().take(PAGERDUTY_SUMMARY_CHARS).collect::<String>(),
            "timestamp": seconds(message.since),
            "severity": condition.severity.label(),
            "source": alert.source,
            "component": "tollgate",
            "class": condition.kind.label(),
            "custom_details": custom_details,
        },
    })
}

/// The condition's key, or its digest where it is longer than PagerDuty takes.
fn dedup_key(condition: &Condition) -> String {
    let key = format!("tollgate/{}", condition.key());
    if key.len() <= PAGERDUTY_KEY_BYTES { key } else { format!("tollgate/{}", hex(&Sha256::digest(key))) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::alerts::{Kind, Message};

    fn alert(state: State) -> Alert {
        let condition = Condition {
            kind: Kind::Budget,
            subject: "budget/month".into(),
            level: 80,
            severity: Severity::Warning,
            summary: "budget <month> & more".to_owned(),
            mend: "raise it",
            details: vec![("spent_usd", "8".to_owned())],
        };
        let at: Timestamp = "2026-11-23T12:00:00.5Z".parse().unwrap();
        let message = Message { state, condition, since: at, at, superseded: false };
        Alert { id: "0190".to_owned(), source: "host".into(), message }
    }

    fn webhook(format: Format) -> Webhook {
        Webhook {
            url: "https://example.org/hook".parse().unwrap(),
            format,
            secret: Some("whsec".into()),
            routing_key: Some("R0".into()),
        }
    }

    fn body(format: Format, alert: &Alert) -> Value {
        let request = request(&webhook(format), alert, Timestamp::UNIX_EPOCH).unwrap();
        serde_json::from_slice(request.body()).unwrap()
    }

    #[test]
    fn generic_says_all_of_it() {
        assert_eq!(
            body(Format::Generic, &alert(State::Raised)),
            json!({
                "version": 1, "id": "0190", "key": "budget/month/80", "kind": "budget", "state": "raised", "severity": "warning",
                "summary": "budget <month> & more", "mend": "raise it", "details": { "spent_usd": "8" },
                "since": "2026-11-23T12:00:00Z", "at": "2026-11-23T12:00:00Z", "source": "host",
            })
        );
    }

    #[test]
    fn slack_gets_one_text_in_which_nothing_is_markup() {
        assert_eq!(
            body(Format::Slack, &alert(State::Raised)),
            json!({ "text": ":large_yellow_circle: *budget &lt;month&gt; &amp; more*\nraise it\n• spent_usd: 8\n_host, since 2026-11-23T12:00:00Z_" })
        );
        assert_eq!(
            body(Format::Slack, &alert(State::Resolved)),
            json!({ "text": ":white_check_mark: *Over: budget &lt;month&gt; &amp; more*\n_host, since 2026-11-23T12:00:00Z_" })
        );
    }

    #[test]
    fn pagerduty_gets_a_trigger_and_a_resolve_with_one_key() {
        let trigger = body(Format::PagerDuty, &alert(State::Raised));
        assert_eq!(trigger["event_action"], "trigger");
        assert_eq!(trigger["payload"]["severity"], "warning");
        assert_eq!(trigger["payload"]["custom_details"], json!({ "spent_usd": "8", "mend": "raise it" }));
        assert_eq!(
            body(Format::PagerDuty, &alert(State::Resolved)),
            json!({ "routing_key": "R0", "event_action": "resolve", "dedup_key": trigger["dedup_key"] })
        );
        assert_eq!(trigger["dedup_key"], "tollgate/budget/month/80");
    }

    #[test]
    fn a_superseded_level_is_told_to_pagerduty_alone() {
        let mut alert = alert(State::Resolved);
        alert.message.superseded = true;
        let told = [Format::Slack, Format::Generic, Format::PagerDuty]
            .map(|format| request(&webhook(format), &alert, Timestamp::UNIX_EPOCH).is_some());
        assert_eq!(told, [false, false, true]);
    }

    #[test]
    fn a_long_key_becomes_its_digest() {
        let mut condition = alert(State::Raised).message.condition;
        condition.subject = "x".repeat(300).into();
        assert_eq!(dedup_key(&condition).len(), "tollgate/".len() + 64);
    }

    /// Worked out with `printf '1700000000.{"a":1}' | openssl dgst -sha256 -hmac whsec`.
    #[test]
    fn the_signature_is_over_the_time_and_the_body() {
        assert_eq!(
            signature(b"whsec", 1_700_000_000, br#"{"a":1}"#),
            "t=1700000000,v1=8ad37ba156048ae0e0a5533c75cdf26fee88b07f93cb57ee4c80adb053012032"
        );
    }
}
