//! `alerts`: who is told, of what, and how often.
//!
//! Messages never repeat an address: whoever has it can write to it.

use std::{sync::Arc, time::Duration};

use http::Uri;

use super::Check;
use crate::{
    config::{
        file::{self, AlertFormat, AlertKind},
        forms::SecretText,
        snapshot::Alerts,
        tree::Path,
    },
    policy::alerts::{Format, Kind, Pace, Webhook},
};

/// Where PagerDuty takes events: <https://developer.pagerduty.com/docs/events-api-v2/overview/>.
const PAGERDUTY_URL: &str = "https://events.pagerduty.com/v2/enqueue";

impl Check<'_, '_, '_> {
    pub(super) fn alerts(&mut self, typed: &file::Alerts) -> Alerts {
        let at = Path::default().key("alerts");
        let webhook = self.webhook(&at, typed).map(Arc::new);
        let on = typed.on.as_ref().map_or(Kind::ALL.to_vec(), |on| on.iter().copied().map(kind).collect());
        let repeat = self.above_zero(&at.key("repeat"), typed.repeat, Duration::from_secs(4 * 3600));
        let resolve_after = typed.resolve_after.map_or(Duration::from_secs(60), |after| after.0);
        Alerts { webhook, on, pace: Pace { repeat, resolve_after } }
    }

    fn webhook(&mut self, at: &Path, typed: &file::Alerts) -> Option<Webhook> {
        let routing_key = self.given_secret(at, "routing_key", typed.routing_key.as_ref());
        let secret = self.given_secret(at, "secret", typed.secret.as_ref());
        let address = self.given_secret(at, "webhook", typed.webhook.as_ref());
        let address = address.or_else(|| routing_key.as_ref().map(|_| PAGERDUTY_URL.into()))?;
        let Some(url) = parse_address(&address) else {
            self.problem(&at.key("webhook"), "is not an absolute URL; write it as `https://host/path`");
            return None;
        };
        let format = format(typed.format.unwrap_or(AlertFormat::Auto), &url, routing_key.is_some());
        if format == Format::PagerDuty && routing_key.is_none() {
            self.required(at, "routing_key", None::<()>, "write the integration key of a PagerDuty service");
        }
        Some(Webhook { url, format, secret, routing_key })
    }

    /// A secret that may be left out; one that an unset variable left empty is left out.
    fn given_secret(&mut self, at: &Path, key: &str, typed: Option<&SecretText>) -> Option<Arc<str>> {
        let typed = typed.filter(|typed| !typed.0.trim().is_empty())?;
        self.secret(&at.key(key), typed).map(|secret| secret.expose().into())
    }
}

/// An absolute http or https URL without a user: credentials stand in its path or query, as receivers give it.
fn parse_address(text: &str) -> Option<Uri> {
    let url: Uri = text.parse().ok()?;
    let authority = url.authority()?;
    let is_http = matches!(url.scheme_str(), Some("http" | "https"));
    (is_http && !authority.host().is_empty() && !authority.as_str().contains('@')).then_some(url)
}

fn format(typed: AlertFormat, url: &Uri, has_routing_key: bool) -> Format {
    match (typed, url.host().unwrap_or_default()) {
        (AlertFormat::Slack, _) => Format::Slack,
        (AlertFormat::Generic, _) => Format::Generic,
        (AlertFormat::Pagerduty, _) => Format::PagerDuty,
        (AlertFormat::Auto, "hooks.slack.com" | "hooks.slack-gov.com") => Format::Slack,
        (AlertFormat::Auto, "events.pagerduty.com" | "events.eu.pagerduty.com") => Format::PagerDuty,
        (AlertFormat::Auto, _) if has_routing_key => Format::PagerDuty,
        (AlertFormat::Auto, _) => Format::Generic,
    }
}

fn kind(typed: AlertKind) -> Kind {
    match typed {
        AlertKind::Budget => Kind::Budget,
        AlertKind::Provider => Kind::Provider,
        AlertKind::Credentials => Kind::Credentials,
        AlertKind::Configuration => Kind::Configuration,
        AlertKind::Store => Kind::Store,
        AlertKind::Records => Kind::Records,
        AlertKind::Experiment => Kind::Experiment,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_format_follows_the_address() {
        for (url, has_key, expected) in [
            ("https://hooks.slack.com/services/T/B/x", false, Format::Slack),
            ("https://events.eu.pagerduty.com/v2/enqueue", true, Format::PagerDuty),
            ("https://mock/enqueue", true, Format::PagerDuty),
            ("https://chat.example.org/hooks/x", false, Format::Generic),
        ] {
            assert_eq!(format(AlertFormat::Auto, &url.parse().unwrap(), has_key), expected, "{url}");
        }
        let slack = "https://hooks.slack.com/x".parse().unwrap();
        assert_eq!(format(AlertFormat::Generic, &slack, false), Format::Generic);
    }

    #[test]
    fn an_address_is_absolute_and_names_no_user() {
        assert!(parse_address("https://host/path?token=x").is_some());
        for wrong in ["host/path", "/path", "ftp://host/", "https://user:pw@host/", "https://", ""] {
            assert!(parse_address(wrong).is_none(), "{wrong}");
        }
    }
}
