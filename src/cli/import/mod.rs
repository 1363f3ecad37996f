//! `tollgate import`: the configuration of another gateway as one of Tollgate's.
//!
//! What cannot be carried over is named, never dropped in silence; secrets are never printed.

mod draft;
mod litellm;
mod providers;
mod tensorzero;
mod toml;
mod upstreams;

use std::{
    io::{self, Write},
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::{Context, bail};
use clap::{Args, Subcommand};

use self::draft::Draft;
use super::{FAILED, WRONG, fail};
use crate::config;

/// From which gateway.
#[derive(Debug, Subcommand)]
pub enum ImportCommand {
    /// From LiteLLM's proxy: its config.yaml
    Litellm(ImportArguments),
    /// From TensorZero: its tensorzero.toml
    Tensorzero(ImportArguments),
}

/// What to read and where to write.
#[derive(Debug, Args)]
pub struct ImportArguments {
    /// The configuration to read
    file: PathBuf,
    /// Where to write; default: standard output
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Exit with 1 when something could not be carried over
    #[arg(long)]
    strict: bool,
}

/// Stands for every value of the environment while the result is checked: an address and a secret alike.
const ANY_VALUE: &str = "https://value.invalid/v1";

/// Reads one configuration and writes the other, checked; names on standard error what could not be carried over.
#[must_use]
pub fn run(command: &ImportCommand) -> ExitCode {
    let (arguments, name, convert): (_, _, fn(&str, &Path) -> anyhow::Result<Draft>) = match command {
        ImportCommand::Litellm(arguments) => (arguments, "LiteLLM", |text, _| litellm::convert(text)),
        ImportCommand::Tensorzero(arguments) => (arguments, "TensorZero", tensorzero::convert),
    };
    match import(arguments, name, convert) {
        Ok(lost) if lost > 0 && arguments.strict => ExitCode::from(FAILED),
        Ok(_) => ExitCode::SUCCESS,
        Err(error) => fail(&error, WRONG),
    }
}

/// Gives back how much could not be carried over.
fn import(
    arguments: &ImportArguments,
    name: &str,
    convert: fn(&str, &Path) -> anyhow::Result<Draft>,
) -> anyhow::Result<usize> {
    let path = &arguments.file;
    let source = std::fs::read_to_string(path).with_context(|| format!("{}: cannot be read", path.display()))?;
    let directory = path.parent().unwrap_or(Path::new(""));
    let draft = convert(&source, directory).with_context(|| path.display().to_string())?;
    let file_name = path.file_name().unwrap_or_default().to_string_lossy();
    let head = format!("Imported from {file_name} of {name} by `tollgate import`. Check it with `tollgate check`.");
    let text = draft.text(&head);
    let mut stderr = io::stderr().lock();
    for loss in draft.losses() {
        // Nobody reads what a closed pipe refuses.
        let _ = writeln!(stderr, "not carried over: {loss}");
    }
    if let Err(problems) = config::parse_str(&text, "result", &|_| Some(ANY_VALUE.to_owned()), directory) {
        bail!("what could be carried over is no whole configuration:\n{problems}");
    }
    match &arguments.output {
        Some(output) => {
            std::fs::write(output, text).with_context(|| format!("{}: cannot be written", output.display()))?
        }
        None => io::stdout().write_all(text.as_bytes())?,
    }
    Ok(draft.losses().len())
}
