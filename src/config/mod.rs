//! Configuration: what was typed ([`file`]), checked whole ([`validate`]), becomes what is true ([`Snapshot`]).

pub mod secret;
pub mod snapshot;

pub use snapshot::Snapshot;
