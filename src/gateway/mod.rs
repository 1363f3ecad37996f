//! The edge towards clients: sockets, the layers in their order, the client listener's paths.

pub mod framing;
mod quiet;
pub mod routes;
pub mod serve;
pub mod stack;
pub mod tls;

use std::{collections::HashMap, sync::Arc};

use tokio::time::Instant;

use crate::{
    body::InFlightCount,
    config::Live,
    gateway::serve::Shutdown,
    purses::{AccountStatus, Purses},
    store::ports::{StoreError, StoredAccount},
    telemetry::metrics,
    units::NanoUsd,
    upstream::{Upstream, health::Circuit},
};

/// What all parts of a running gateway share.
#[derive(Debug, Clone)]
pub struct Shared {
    /// The configuration that serves.
    pub live: Arc<Live>,
    /// The purses of this process.
    pub purses: Arc<Purses>,
    /// The way to providers.
    pub upstream: Arc<Upstream>,
    /// Calls in flight.
    pub in_flight: InFlightCount,
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
        let snapshot = self.live.load_full();
        let now = Instant::now().into_std();
        let healths = self.upstream.healths.all();
        for provider in snapshot.providers.values() {
            let circuit = healths.get(&provider.name).map_or(Circuit::Closed, |health| health.circuit(now));
            metrics::circuit(&provider.name, circuit.as_gauge());
        }
        let accounts = self.purses.accounts();
        for budget in snapshot.budgets.iter().filter(|budget| budget.limit.0 > 0) {
            // Of many accounts (a budget per user) the fullest is shown: it is the one that is refused first.
            let of_budget = accounts.iter().filter(|account| account.budget == budget.name);
            let spent =
                of_budget.map(|account| account.charged.0.saturating_add(account.debt.0)).max().unwrap_or_default();
            metrics::budget_spent(&budget.name, spent as f64 / budget.limit.0 as f64);
        }
    }

    /// All accounts: as the store knows them, and fresher where this process spends from them.
    ///
    /// # Errors
    /// When the store does not answer.
    pub async fn accounts(&self) -> Result<Vec<AccountStatus>, StoreError> {
        let stored = self.purses.stored().await?;
        let mut fresh: HashMap<Arc<str>, AccountStatus> =
            self.purses.accounts().into_iter().map(|account| (account.account.clone(), account)).collect();
        let mut all: Vec<AccountStatus> = stored
            .into_iter()
            .map(|account| fresh.remove(&account.account).unwrap_or_else(|| at_rest(account)))
            .collect();
        all.extend(fresh.into_values());
        Ok(all)
    }
}

/// An account that this process has not used since it started.
fn at_rest(stored: StoredAccount) -> AccountStatus {
    let budget = stored.account.split('/').next().unwrap_or_default();
    AccountStatus {
        budget: budget.into(),
        resets_at: None,
        limit: NanoUsd(stored.limit),
        granted: NanoUsd(stored.held),
        charged: NanoUsd(stored.charged),
        reserved: NanoUsd::ZERO,
        debt: NanoUsd(stored.debt),
        free: NanoUsd(stored.limit.saturating_sub(stored.held)),
        account: stored.account,
    }
}
