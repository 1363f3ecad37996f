//! One HTTP exchange with one provider: connections, health, and a provider that answers by itself.

pub mod client;
pub mod health;
pub mod simulated;
pub mod tls;
