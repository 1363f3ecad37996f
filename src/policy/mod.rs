//! Decisions as pure functions of facts and time: no I/O, no clock, no tokio.

pub mod alerts;
pub mod delivery;
pub mod experiment;
pub mod forecast;
pub mod json_schema;
pub mod keys;
pub mod limits;
pub mod oidc;
pub mod pricing;
pub mod prompt;
pub mod prompt_lint;
pub mod prompt_preview;
mod prompt_tags;
pub mod redact;
pub mod routing;
pub mod scope;
pub mod share;
pub mod stats;
pub mod tokens;
pub mod traces;
