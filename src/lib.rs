//! Tollgate: a transparent LLM gateway.
//!
//! A call walks one straight line, and the type of the request says how far it has come:
//!
//! ```text
//! bytes on a socket
//!    │  gateway/serve.rs       hyper connection (h1, h2, TLS)
//!    │  layers/respond.rs      the only place where an error becomes bytes  http::Request → Arrival
//!    │  layers/in_flight.rs    sheds what is too much                       Arrival
//!    │  layers/auth.rs         key → Caller; pins the Snapshot              Arrival → Authenticated
//!    │  layers/local.rs        lists models, which needs no provider        Authenticated
//!    │  layers/feedback.rs     takes what is said of calls                  Authenticated
//!    │  layers/read.rs         size-capped body, one borrowed scan          Authenticated → Call
//!    │  layers/variant.rs      alias, user hash → variant → targets         Call → Planned
//!    │  layers/prompt.rs       splices the prompt template in               Planned
//!    │  layers/quote.rs        sound ceiling of tokens and cost             Planned → Quoted
//!    │  layers/record.rs       opens the record; the body's end closes it   Quoted → Opened
//!    │  layers/limits.rs       rate limits                                  Opened
//!    │  layers/budget.rs       reserves the ceiling, refuses or clamps      Opened → Admitted
//!    ▼  layers/route.rs        a flat loop over targets: retry, fallback    Admitted → Reply
//!       upstream/              one HTTP exchange with one provider
//! ```
//!
//! # Ranks
//! A file uses only lower ranks and its own folder; rank 3, the spine, may use itself; files in `layers/` never name each other.
//! `tests/it/ranks.rs` reads this table and checks the tree against it.
//!
//! | rank | modules |
//! |---|---|
//! | 0 | wire, units |
//! | 1 | policy, ledger, record, registry |
//! | 2 | config, store, telemetry |
//! | 3 | call, error, body, recorder, purses, analysis |
//! | 4 | upstream |
//! | 5 | layers |
//! | 6 | gateway |
//! | 7 | eval |
//! | 8 | admin |
//! | 9 | process |
//! | 10 | cli |
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
pub mod record;
pub mod registry;

pub mod config;
pub mod store;
pub mod telemetry;

pub mod analysis;
pub mod body;
pub mod call;
pub mod error;
pub mod purses;
pub mod recorder;

pub mod layers;
pub mod upstream;

pub mod gateway;

pub mod eval;

pub mod admin;

pub mod process;

pub mod cli;
