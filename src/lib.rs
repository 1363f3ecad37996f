//! Tollgate: a transparent LLM gateway.
//!
//! A call walks one straight line, and the type of the request says how far it has come:
//!
//! ```text
//! bytes on a socket
//!    │  gateway/serve.rs       hyper connection (h1, h2, TLS)
//!    │  layers/http_metrics.rs status, duration, in flight                  http::Request
//!    │  layers/respond.rs      the only place where an error becomes bytes  http::Request
//!    │  layers/auth.rs         key → Caller; pins the Snapshot              http::Request → Authenticated
//!    │  layers/read.rs         size-capped body, one borrowed scan          Authenticated → Call
//!    │  layers/variant.rs      alias, user hash → variant → targets         Call → Planned
//!    │  layers/prompt.rs       splices the prompt template in               Planned
//!    │  layers/quote.rs        sound ceiling of tokens and cost             Planned → Quoted
//!    │  layers/record.rs       opens the record, closes it at the body's end
//!    │  layers/limits.rs       rate limits                                  Quoted
//!    │  layers/budget.rs       reserves the ceiling, refuses or clamps      Quoted → Admitted
//!    │  layers/route.rs        a flat loop over targets: retry, fallback    Admitted → Attempt
//!    ▼  upstream/              one HTTP exchange with one provider          Attempt → Reply
//! ```
//!
//! # Ranks
//! A file uses only lower ranks and its own folder; files in `layers/` never name each other.
//! `tests/it/ranks.rs` reads this table and checks the tree against it.
//!
//! | rank | modules |
//! |---|---|
//! | 0 | wire, units |
//! | 1 | policy, ledger, record |
//! | 2 | config, registry, store, telemetry |
//! | 3 | call, error, body, recorder, purses |
//! | 4 | layers, upstream |
//! | 5 | gateway, admin, eval |
//! | 6 | cli |
//!
//! # Invariants
//! - No attempt without an [`call::Admitted`], and only the budget layer makes one.
//! - One [`config::Snapshot`] per call, from its first byte to its last.
//! - A body that no rule changes is forwarded byte for byte.
//! - Each reservation is settled exactly once; one that is dropped is settled at its bound.

pub mod units;
pub mod wire;

pub mod ledger;
pub mod policy;

pub mod config;
pub mod store;
pub mod telemetry;

pub mod purses;
