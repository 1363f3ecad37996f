//! `tollgate prompts`: versions of prompts, and what is live of them.

use std::io::Write;

use clap::{Args, Subcommand};

use super::{
    api::Failure,
    registry::{self, Options, RegistryCommand},
};
use crate::registry::Kind;

/// What to do with prompts, and whom to ask.
#[derive(Debug, Args)]
pub struct PromptsArguments {
    #[command(flatten)]
    options: Options,
    #[command(subcommand)]
    command: PromptsCommand,
}

/// What to do with prompts.
#[derive(Debug, Subcommand)]
enum PromptsCommand {
    #[command(flatten)]
    Registry(RegistryCommand),
}

/// Runs the command.
///
/// # Errors
/// When nobody answers, or the answer is no.
pub async fn run(arguments: &PromptsArguments, out: &mut impl Write) -> Result<(), Failure> {
    match &arguments.command {
        PromptsCommand::Registry(command) => registry::run(Kind::Prompts, &arguments.options, command, out).await,
    }
}
