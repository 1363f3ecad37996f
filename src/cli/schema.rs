//! `tollgate schema`: prints the JSON Schema of the configuration.

use std::{
    io::{self, Write},
    process::ExitCode,
};

use crate::config::schema;

/// Prints the schema.
#[must_use]
pub fn run() -> ExitCode {
    match io::stdout().write_all(schema::text().as_bytes()) {
        Ok(()) => ExitCode::SUCCESS,
        // A reader such as `head` has seen enough.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}
