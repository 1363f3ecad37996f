//! The edge towards clients: sockets, the layers in their order, the client listener's paths.

pub mod alarms;
pub mod cores;
pub mod framing;
mod impatience;
mod quiet;
pub mod referee;
pub mod registrar;
pub mod routes;
pub mod serve;
pub mod stack;
pub mod steward;
pub mod tls;

use std::{net::SocketAddr, sync::Arc};

use jiff::Timestamp;
use tokio::time::Instant;

use crate::{
    body::InFlightCount,
    config::Live,
    gateway::{registrar::Registrar, serve::Shutdown},
    purses::{AccountStatus, Purses},
    store::records::Calls,
    telemetry::metrics,
    upstream::{Upstream, health::Circuit},
};

/// What all parts of a running gateway share.
#[derive(Debug, Clone)]
pub struct Shared {
    /// Where clients call.
    pub listen: SocketAddr,
    /// The configuration that serves.
    pub live: Arc<Live>,
    /// Who changes the registry.
    pub registrar: Arc<Registrar>,
    /// The purses of this process.
    pub purses: Arc<Purses>,
    /// The way to providers.
    pub upstream: Arc<Upstream>,
    /// Calls in flight.
    pub in_flight: InFlightCount,
    /// The call log, where one is kept.
    pub calls: Option<Calls>,
    /// How everything learns that the process goes down.
    pub shutdown: Shutdown,
}

impl Shared {
    /// Makes gauges true: each second, and before each scrape.
    pub fn refresh_gauges(&self) {
        metrics::in_flight(self.in_flight.now());
        metrics::store_up(self.purses.store_up());
        metrics::reservations_dropped(self.purses.dropped_reservations());
        metrics::calls_unbooked(self.purses.unbooked_calls());
        metrics::ledger_drift(self.purses.drift());
        if let Some(calls) = &self.calls {
            metrics::records(calls.progress.waiting(), calls.progress.store_up());
            metrics::records_dropped(calls.progress.take_dropped());
        }
        let snapshot = self.live.load_full();
        let now = Instant::now().into_std();
        let healths = self.upstream.healths.all();
        for provider in snapshot.providers.values() {
            let circuit = healths.get(&provider.name).map_or(Circuit::Closed, |health| health.circuit(now));
            metrics::circuit(&provider.name, circuit.as_gauge());
        }
        let accounts = self.purses.accounts();
        let now = Timestamp::now();
        for budget in snapshot.budgets.iter().filter(|budget| budget.limit.0 > 0) {
            // Of many accounts (a budget per user) the fullest is shown: it is the one that is refused first.
            let of_budget = accounts.iter().filter(|account| account.budget == budget.name);
            let current = of_budget.filter(|account| account.resets_at.is_none_or(|resets_at| now < resets_at));
            let fullest = current.map(AccountStatus::spent_share).fold(0.0, f64::max);
            metrics::budget_spent(&budget.name, fullest);
            let period = budget.period_at(now);
            metrics::budget_period(&budget.name, period.starts.as_second(), period.ends.map(Timestamp::as_second));
        }
    }
}
