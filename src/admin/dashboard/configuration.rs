//! The configuration in force, without secrets: what it says, where each section comes from, and what was refused.

use std::{fmt::Display, time::Duration};

use jiff::Timestamp;
use serde::Serialize;
use serde_json::{Value, json};

use super::{
    budgets::scope,
    figures,
    visit::{Shown, Visit},
};
use crate::{
    admin::{audit, config::RELOAD},
    config::{
        Snapshot,
        snapshot::{Auth, BodiesKept, OnDisconnect, Provider, ProviderKind, Records, Store, StreamUsage, Unpriced},
    },
    telemetry::alerts::signals,
};

/// Changes of the configuration that are shown.
const RELOADS_MAX: usize = 20;

/// A section of the configuration.
#[derive(Debug, Serialize)]
struct Section {
    /// Its key in the file.
    name: &'static str,
    /// Whether it was pushed for all gateways.
    pushed: bool,
    /// What it says: a name and a value a line.
    entries: Vec<(String, String)>,
}

pub(super) async fn show(visit: Visit) -> Shown {
    let shared = &visit.admin.shared;
    let snapshot = shared.live.load_full();
    let pushed = snapshot.pushed.as_ref().map(|pushed| {
        let revision = &pushed.revision;
        json!({
            "number": revision.number,
            "author": &revision.author,
            "message": &revision.message,
            "name": &revision.name,
            "at_ms": figures::milliseconds(revision.at),
            "sections": &pushed.sections,
            "replaced": &pushed.replaced,
        })
    });
    let refusal = shared.live.refusal();
    let reloads = reloads(&visit).await;
    Ok(visit.page(
        "configuration.html",
        json!({
            "sections": sections(&snapshot),
            "pushed": pushed,
            "refused": refusal.as_ref().map(|refusal| &refusal.reason),
            "refused_revision": refusal.as_ref().and_then(|refusal| refusal.revision),
            "not_yet": &snapshot.not_yet,
            "reloads": reloads,
        }),
    ))
}

/// What became of changed configurations, the latest first: those that went live from the audit log, those that were refused since
/// the process began.
async fn reloads(visit: &Visit) -> Vec<Value> {
    let live = audit::read(&visit.admin, None, RELOADS_MAX, |entry| entry["action"] == RELOAD).await;
    // Shown without them where the log cannot be read: the page of the log says why.
    let live = live.map(|reading| reading.lines).unwrap_or_default();
    let live = live.into_iter().filter_map(|(_, entry)| {
        let at: Timestamp = entry["at"].as_str()?.parse().ok()?;
        let after = &entry["after"];
        let what = json!({ "by": entry["actor"], "hash": after["hash"], "revision": after["revision"] });
        Some((at, what))
    });
    let refused = signals().refusals().into_iter().map(|refused| (refused.at, json!({ "refused": &*refused.reason })));
    let mut all: Vec<(Timestamp, Value)> = live.chain(refused).collect();
    all.sort_by_key(|(at, _)| std::cmp::Reverse(*at));
    all.truncate(RELOADS_MAX);
    let timed = |(at, mut what): (Timestamp, Value)| {
        what["at_ms"] = figures::milliseconds(at).into();
        what
    };
    all.into_iter().map(timed).collect()
}

fn sections(snapshot: &Snapshot) -> Vec<Section> {
    let all = [
        ("server", server(snapshot)),
        ("store", vec![entry("store", store(&snapshot.store))]),
        ("records", records(snapshot)),
        ("auth", vec![entry("auth", auth(snapshot.auth))]),
        ("ledger", ledger(snapshot)),
        ("providers", providers(snapshot)),
        ("models", named(snapshot.models.values().map(|model| (&model.name, format!("live {}", model.live))))),
        ("prompts", named(snapshot.prompts.values().map(|prompt| (&prompt.name, format!("live {}", prompt.live))))),
        ("keys", keys(snapshot)),
        ("budgets", budgets(snapshot)),
        ("limits", limits(snapshot)),
        ("routing", routing(snapshot)),
        ("prices", prices(snapshot)),
        ("alerts", alerts(snapshot)),
        ("telemetry", telemetry(snapshot)),
    ];
    let pushed = |name: &str| snapshot.pushed.as_ref().is_some_and(|pushed| pushed.sections.iter().any(|s| s == name));
    let section = |(name, entries)| Section { name, pushed: pushed(name), entries };
    all.into_iter().map(section).collect()
}

fn entry(name: &str, value: impl Display) -> (String, String) {
    (name.to_owned(), value.to_string())
}

fn span(duration: Duration) -> String {
    match u64::try_from(duration.as_millis()).unwrap_or(u64::MAX) {
        ms if ms < 1000 || ms % 1000 != 0 => format!("{ms} ms"),
        ms => figures::long(ms / 1000),
    }
}

fn on(value: bool) -> &'static str {
    if value { "on" } else { "off" }
}

/// By name: maps have no order of their own.
fn named<'a>(entries: impl Iterator<Item = (&'a std::sync::Arc<str>, String)>) -> Vec<(String, String)> {
    let mut entries: Vec<(String, String)> = entries.map(|(name, value)| (name.to_string(), value)).collect();
    entries.sort_unstable();
    entries
}

fn server(snapshot: &Snapshot) -> Vec<(String, String)> {
    let server = &snapshot.server;
    vec![
        entry("listen", server.listen),
        entry("admin", server.admin),
        entry("admin_token", if server.admin_token.is_some() { "set" } else { "not set" }),
        entry("oidc", server.oidc.as_ref().map_or("not set", |oidc| &oidc.issuer)),
        entry("tls", on(server.tls.is_some())),
        entry("limits.body", format!("{} MiB", server.body_bytes_max / (1 << 20))),
        entry("limits.in_flight", server.in_flight_max),
        entry("limits.header_timeout", span(server.header_timeout)),
        entry("limits.drain", span(server.drain)),
        entry("data_dir", snapshot.data_dir.display()),
    ]
}

fn store(store: &Store) -> String {
    match store {
        Store::Embedded => "embedded".to_owned(),
        Store::Redis(url) => url.to_string(),
    }
}

fn records(snapshot: &Snapshot) -> Vec<(String, String)> {
    let kept = match &snapshot.records {
        Records::None => "none",
        Records::Sqlite => "sqlite",
        Records::Postgres(_) => "postgres",
    };
    let calls = &snapshot.calls;
    vec![
        entry("records", kept),
        entry("calls.retention", span(calls.retention)),
        entry("calls.users", format!("{:?}", calls.users).to_lowercase()),
        entry("calls.bodies", bodies(calls.bodies)),
        entry("calls.spill", format!("{} MiB", calls.spill_bytes_max / (1 << 20))),
    ]
}

fn bodies(kept: BodiesKept) -> String {
    match kept {
        BodiesKept::None => "off".to_owned(),
        BodiesKept::Lengths => "metadata".to_owned(),
        BodiesKept::Share(share) if share >= 1.0 => "full".to_owned(),
        BodiesKept::Share(share) => format!("sampled, {:.0}%", share * 100.0),
    }
}

fn telemetry(snapshot: &Snapshot) -> Vec<(String, String)> {
    let Some(otlp) = &snapshot.telemetry else { return vec![entry("otlp", "off")] };
    // The rest of an address, and the headers, may hold what is secret.
    let host = |uri: &http::Uri| uri.host().unwrap_or_default().to_owned();
    vec![
        entry("otlp", host(&otlp.traces)),
        entry("otlp.metrics", otlp.metrics.as_ref().map_or_else(|| "off".to_owned(), host)),
        entry("otlp.service", &otlp.service),
        entry("otlp.sample", format!("{:.0}%", otlp.sample * 100.0)),
    ]
}

fn auth(auth: Auth) -> &'static str {
    match auth {
        Auth::Required => "required",
        Auth::None => "none",
        Auth::Passthrough => "passthrough",
    }
}

fn ledger(snapshot: &Snapshot) -> Vec<(String, String)> {
    let ledger = &snapshot.ledger;
    vec![
        entry("sync", span(ledger.sync)),
        entry("budget_wait", span(ledger.budget_wait)),
        entry("wait_replicas", ledger.wait_replicas),
    ]
}

fn providers(snapshot: &Snapshot) -> Vec<(String, String)> {
    let value = |provider: &Provider| {
        let kind = match &provider.kind {
            ProviderKind::OpenAi => "openai",
            ProviderKind::Anthropic => "anthropic",
            ProviderKind::Simulated(_) => return "simulated".to_owned(),
        };
        // Of an address only what names the server: the rest may hold what is secret.
        let host = provider.base_url.host().unwrap_or_default();
        format!("{kind} at {host}, {} key(s)", provider.api_keys.len())
    };
    let mut entries = named(snapshot.providers.values().map(|provider| (&provider.name, value(provider))));
    if let Some(default) = &snapshot.default_provider {
        entries.push(entry("default_provider", &default.name));
    }
    entries
}

fn keys(snapshot: &Snapshot) -> Vec<(String, String)> {
    let own = snapshot.config_keys.iter().map(|(_, caller)| {
        let team = caller.team.as_ref().map_or_else(String::new, |team| format!("team {team}"));
        (&caller.name, team)
    });
    let mut entries = named(own);
    let stored = snapshot.keys.len().saturating_sub(snapshot.config_keys.len());
    if stored > 0 {
        entries.push(entry("from the key store", stored));
    }
    entries
}

fn budgets(snapshot: &Snapshot) -> Vec<(String, String)> {
    let value = |limit: &dyn Display, scope: String| match scope.as_str() {
        "" => format!("{limit} USD"),
        scope => format!("{limit} USD for {scope}"),
    };
    let entry_of = |budget: &std::sync::Arc<crate::config::snapshot::Budget>| {
        (budget.name.to_string(), value(&budget.limit, scope(&budget.scope)))
    };
    snapshot.budgets.iter().map(entry_of).collect()
}

fn limits(snapshot: &Snapshot) -> Vec<(String, String)> {
    let value = |limit: &crate::policy::limits::Limit| {
        let rates = [("requests", limit.requests), ("tokens", limit.tokens)];
        let rates = rates.into_iter().filter_map(|(what, rate)| {
            let rate = rate?;
            Some(format!("{} {what} per {}", rate.count, span(Duration::from_millis(rate.per_ms))))
        });
        let concurrent = limit.concurrent.map(|count| format!("{count} concurrent"));
        rates.chain(concurrent).collect::<Vec<String>>().join(", ")
    };
    snapshot.limits.iter().map(|limit| (limit.name.to_string(), value(limit))).collect()
}

fn routing(snapshot: &Snapshot) -> Vec<(String, String)> {
    let routing = &snapshot.routing;
    let eject = routing.eject.map_or_else(
        || "off".to_owned(),
        |eject| format!("after {} failures for {}", eject.after, span(eject.duration)),
    );
    let disconnect = match snapshot.on_disconnect {
        OnDisconnect::Cancel => "cancel",
        OnDisconnect::Drain => "drain",
    };
    let usage = match snapshot.stream_usage {
        StreamUsage::Ask => "ask",
        StreamUsage::Leave => "leave",
    };
    vec![
        entry("attempts", routing.attempts),
        entry("retry_budget", format!("{:.0}%", routing.retry_budget * 100.0)),
        entry("eject", eject),
        entry("timeouts.connect", span(routing.connect_timeout)),
        entry("timeouts.first_byte", span(routing.first_byte_timeout)),
        entry("timeouts.idle", span(routing.idle_timeout)),
        entry("timeouts.total", span(routing.total_timeout)),
        entry("on_disconnect", disconnect),
        entry("stream_usage", usage),
    ]
}

fn prices(snapshot: &Snapshot) -> Vec<(String, String)> {
    let unpriced = match &snapshot.unpriced {
        Unpriced::Refuse => "refuse",
        Unpriced::Charge(_) => "charge",
    };
    vec![entry("catalog", snapshot.prices.revision()), entry("unpriced", unpriced)]
}

fn alerts(snapshot: &Snapshot) -> Vec<(String, String)> {
    let kinds: Vec<&str> = snapshot.alerts.on.iter().map(|kind| kind.label()).collect();
    let webhook = if snapshot.alerts.webhook.is_some() { "set" } else { "not set" };
    vec![entry("webhook", webhook), entry("on", kinds.join(", "))]
}
