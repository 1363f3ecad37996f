//! Evaluations: a suite of cases goes through a gateway, is scored, and gates decide whether a change is good enough.
//!
//! The run is a client like any other: keys, budgets, limits and prices apply, and nothing here is on the path of a call.

pub mod answer;
pub mod client;
pub mod gates;
pub mod mlflow;
pub mod prices;
pub mod recorded;
pub mod report;
pub mod run;
pub mod scorers;
pub mod suite;
