//! The command line: one file a subcommand.
//!
//! Exit codes: 0 done, 1 a check or gate failed, 2 wrong use or wrong configuration, 3 the server or a store could not be reached.

pub mod analysis;
mod api;
pub mod audit;
pub mod budgets;
pub mod calls;
pub mod check;
pub mod config;
pub mod costs;
pub mod count;
pub mod demo;
pub mod eval;
pub mod experiments;
mod follow;
pub mod health;
pub mod import;
pub mod keys;
pub mod plan;
pub mod prices;
pub mod prompts;
pub mod registry;
pub mod schema;
pub mod serve;

use std::{
    ffi::OsString,
    io::{self, Write},
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use clap::{CommandFactory, Parser, Subcommand};

use crate::{
    config::{ConfigError, Loaded, foreign, forms::DurationText},
    telemetry::logging,
};

/// Options that all commands of a group take are shown below those of the command itself.
const GLOBALS_ORDER: usize = 900;

/// A check or gate failed.
const FAILED: u8 = 1;
/// Wrong use or wrong configuration.
const WRONG: u8 = 2;
/// The server or a store could not be reached.
const UNREACHABLE: u8 = 3;

/// A transparent LLM gateway: prompts, experiments, exact costs and budgets that cannot be overspent.
#[derive(Debug, Parser)]
#[command(name = "tollgate", version, arg_required_else_help = true)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the gateway
    Serve {
        /// Configuration; default: $TOLLGATE_CONFIG, then config/tollgate.yaml, then environment keys alone
        #[arg(long, value_name = "FILE")]
        config: Option<PathBuf>,
    },
    /// Run the gateway with a simulated provider and a little live traffic; needs no key
    Demo {
        /// Make one round of calls, print what happened, and exit
        #[arg(long)]
        once: bool,
    },
    /// Validate a configuration offline
    Check {
        /// Configuration; default as for `serve`
        file: Option<PathBuf>,
    },
    /// Show what a reload with another configuration would change: rights, budgets, variants, recorded calls. Changes nothing
    Plan(plan::PlanArguments),
    /// Ask a running gateway whether it is well; exit 3 when it is not: the health check of a container
    Health {
        /// What to ask, on the admin listener
        #[arg(long, value_name = "URL", env = "TOLLGATE_ADMIN_URL", default_value = health::DEFAULT_URL,
            value_parser = health::Target::parse)]
        url: health::Target,
        /// Ask again until it is well, for this long, such as 30s: for scripts that have just started it
        #[arg(long, value_name = "TIME", value_parser = duration)]
        wait: Option<DurationText>,
    },
    /// Share the routing configuration of a fleet by its Redis: push, pull, history, rollback
    Config {
        /// Configuration whose `store` is meant; default as for `serve`
        #[arg(long, value_name = "FILE", global = true, display_order = GLOBALS_ORDER)]
        config: Option<PathBuf>,
        #[command(subcommand)]
        command: config::ConfigCommand,
    },
    /// Print the JSON Schema of the configuration
    Schema,
    /// Create, list and revoke virtual keys
    Keys {
        /// Configuration that says where the keys are kept; default as for `serve`
        #[arg(long, value_name = "FILE", global = true, display_order = GLOBALS_ORDER)]
        config: Option<PathBuf>,
        /// Where the keys are kept, instead of the configuration's data_dir
        #[arg(long, value_name = "DIR", global = true, display_order = GLOBALS_ORDER)]
        data_dir: Option<PathBuf>,
        #[command(subcommand)]
        command: keys::KeysCommand,
    },
    /// Show what was spent and what is left; reclaim, credit, rebuild
    Budgets(budgets::BudgetsArguments),
    /// Versions of models: list, show, add, deploy, rollback, history, diff
    Models(registry::ModelsArguments),
    /// Look into the call log, and write it to files
    Calls {
        /// Configuration that says where the log is; default as for `serve`
        #[arg(long, value_name = "FILE", global = true, display_order = GLOBALS_ORDER)]
        config: Option<PathBuf>,
        /// Directory of a log in SQLite, instead of the configuration's
        #[arg(long, value_name = "DIR", global = true, display_order = GLOBALS_ORDER)]
        data_dir: Option<PathBuf>,
        #[command(subcommand)]
        command: calls::CallsCommand,
    },
    /// Show what was spent on what, what the month will come to, and what would make it less
    Costs {
        /// Configuration that says where the log is; default as for `serve`
        #[arg(long, value_name = "FILE", global = true, display_order = GLOBALS_ORDER)]
        config: Option<PathBuf>,
        /// Directory of a log in SQLite, instead of the configuration's
        #[arg(long, value_name = "DIR", global = true, display_order = GLOBALS_ORDER)]
        data_dir: Option<PathBuf>,
        #[command(flatten)]
        arguments: costs::CostsArguments,
    },
    /// Show who changed what, and check that the log of it is whole
    Audit {
        /// Configuration that says where the log is; default as for `serve`
        #[arg(long, value_name = "FILE", global = true, display_order = GLOBALS_ORDER)]
        config: Option<PathBuf>,
        /// Directory of the log, instead of the configuration's data_dir
        #[arg(long, value_name = "DIR", global = true, display_order = GLOBALS_ORDER)]
        data_dir: Option<PathBuf>,
        #[command(subcommand)]
        command: audit::AuditCommand,
    },
    /// Run evaluations through a gateway; gates decide the exit code
    Eval {
        #[command(subcommand)]
        command: eval::EvalCommand,
    },
    /// Experiments: list, show, create, start, pause, stop, weights, halt, promote, history; report, power, export
    Experiments(experiments::ExperimentsArguments),
    /// Versions of prompts: list, show, add, deploy, rollback, history, diff; render, lint and test them offline
    Prompts(registry::PromptsArguments),
    /// Read another gateway's configuration and write it as one of Tollgate's
    Import {
        #[command(subcommand)]
        command: import::ImportCommand,
    },
    /// Count tokens: JSON lines of chat requests, or of {"encoding": …, "text": …}, on stdin
    Count,
    /// Look at the price catalog
    Prices {
        #[command(subcommand)]
        command: PricesCommand,
    },
    /// Print a completion script for a shell
    Completions {
        /// bash, zsh, fish, elvish or powershell
        shell: clap_complete::Shell,
    },
    /// What there is not
    #[command(external_subcommand, hide = true)]
    Other(Vec<OsString>),
}

#[derive(Debug, Subcommand)]
enum PricesCommand {
    /// Show the rates of a model: `gpt-4o`, or `openai/gpt-4o`
    Show {
        /// The model
        model: String,
        /// As JSON
        #[arg(long)]
        json: bool,
    },
}

/// Runs the command that the arguments name.
#[must_use]
pub fn main() -> ExitCode {
    match Arguments::parse().command {
        Command::Serve { config } => serve::run(config.as_deref()),
        Command::Demo { once } => demo::run(once),
        Command::Check { file } => check::run(file.as_deref()),
        Command::Plan(arguments) => plan::run(&arguments),
        Command::Health { url, wait } => {
            let wait = wait.map_or(Duration::ZERO, |DurationText(wait)| wait);
            code_of(health::run(&url, wait), UNREACHABLE)
        }
        Command::Config { config, command } => config::run(&command, config.as_deref()),
        Command::Schema => schema::run(),
        Command::Keys { config, data_dir, command } => manage_keys(config.as_deref(), data_dir, &command),
        Command::Budgets(arguments) => asking(budgets::run(&arguments, &mut io::stdout())),
        Command::Models(arguments) => asking(registry::run_models(&arguments, &mut io::stdout())),
        Command::Experiments(arguments) => asking(experiments::run(&arguments, &mut io::stdout())),
        Command::Calls { config, data_dir, command } => {
            look_into_calls(config.as_deref(), data_dir.as_deref(), command)
        }
        Command::Costs { config, data_dir, arguments } => {
            show_costs(config.as_deref(), data_dir.as_deref(), &arguments)
        }
        Command::Audit { config, data_dir, command } => read_audit(config.as_deref(), data_dir, &command),
        Command::Eval { command } => eval::run(command),
        Command::Prompts(arguments) => match arguments.offline() {
            Some((config, command)) => work_on_prompts(config, command),
            None => asking(registry::run_prompts(&arguments, &mut io::stdout())),
        },
        Command::Import { command } => import::run(&command),
        Command::Count => count_tokens(),
        Command::Prices { command: PricesCommand::Show { model, json } } => code_of(prices::show(&model, json), FAILED),
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Arguments::command(), "tollgate", &mut script);
            code_of(io::stdout().write_all(&script).map_err(anyhow::Error::from), WRONG)
        }
        Command::Other(words) => unknown(&words),
    }
}

/// A command that this build does not have, by its name.
fn unknown(words: &[OsString]) -> ExitCode {
    let name = words.first().map(|word| word.to_string_lossy()).unwrap_or_default();
    let command = Arguments::command();
    let known = command.get_subcommands().filter(|known| !known.is_hide_set()).map(clap::Command::get_name);
    let near = match foreign::suggestion(&name, known) {
        near if near.contains("did you mean") => near + " ",
        _ => "; ".to_owned(),
    };
    fail(&anyhow::anyhow!("there is no command `{name}`{near}`tollgate --help` lists those there are"), WRONG)
}

fn count_tokens() -> ExitCode {
    match count::run(io::stdin().lock(), io::stdout().lock()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(FAILED),
        Err(error) => fail(&error, WRONG),
    }
}

/// Keys are kept where the gateway looks for them: in its data_dir, hashed with its pepper.
fn manage_keys(config: Option<&Path>, data_dir: Option<PathBuf>, command: &keys::KeysCommand) -> ExitCode {
    let loaded: Option<Loaded> = match crate::config::load(config) {
        Ok(loaded) => Some(loaded),
        // Keys can come before a configuration does.
        Err(ConfigError::NothingConfigured) => None,
        Err(error) => return fail(&error.into(), WRONG),
    };
    let pepper = loaded.as_ref().and_then(|loaded| loaded.snapshot.key_pepper.clone());
    let data_dir = data_dir.or_else(|| Some(loaded?.snapshot.data_dir)).unwrap_or_else(|| PathBuf::from("data"));
    let pepper = pepper.as_ref().map(|pepper| pepper.expose().as_bytes());
    match keys::run(command, &data_dir, pepper, &mut io::stdout()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(&error, keys::exit_code(&error)),
    }
}

/// The audit log is in the gateway's data_dir, whatever else may be wrong with its configuration.
fn read_audit(config: Option<&Path>, data_dir: Option<PathBuf>, command: &audit::AuditCommand) -> ExitCode {
    let data_dir = match (data_dir, crate::config::bootstrap(config)) {
        (Some(dir), _) => dir,
        (None, Ok(bootstrap)) => bootstrap.data_dir,
        (None, Err(ConfigError::NothingConfigured)) => PathBuf::from("data"),
        (None, Err(error)) => return fail(&error.into(), WRONG),
    };
    match audit::run(command, &data_dir, &mut io::stdout()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error @ audit::AuditError::Broken(_)) => fail(&error.into(), FAILED),
        // As what it is: a pipe that was closed is no failure.
        Err(audit::AuditError::Output(error)) => fail(&error.into(), UNREACHABLE),
        Err(error) => fail(&error.into(), UNREACHABLE),
    }
}

/// Who uses this command, for the audit log: the system's word.
fn local_actor() -> String {
    api::user().map_or_else(|| "command line".to_owned(), |user| format!("{user} (command line)"))
}

/// Runs a command that asks a gateway.
fn asking(work: impl Future<Output = Result<(), api::Failure>>) -> ExitCode {
    logging::init("warn");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.expect("a process that can't have a runtime can't ask anybody");
    match runtime.block_on(work) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => fail(&failure.error, failure.code),
    }
}

/// The call log is where the configuration says, or else in the directory that is named; with the configuration, where there is one.
fn call_log(config: Option<&Path>, data_dir: Option<&Path>) -> Result<(calls::Place, Option<Loaded>), ConfigError> {
    let loaded = match crate::config::load(config) {
        Ok(loaded) => loaded,
        Err(ConfigError::NothingConfigured) => return Ok((calls::beside(data_dir.unwrap_or(Path::new("data"))), None)),
        Err(error) => return Err(error),
    };
    let users = loaded.snapshot.calls.users;
    let place = match data_dir {
        Some(dir) => calls::Place { users, ..calls::beside(dir) },
        None => {
            let (records, data_dir) = (loaded.snapshot.records.clone(), loaded.snapshot.data_dir.clone());
            calls::Place { records, data_dir, users }
        }
    };
    Ok((place, Some(loaded)))
}

fn look_into_calls(config: Option<&Path>, data_dir: Option<&Path>, command: calls::CallsCommand) -> ExitCode {
    let place = match call_log(config, data_dir) {
        Ok((place, _)) => place,
        Err(error) => return fail(&error.into(), WRONG),
    };
    match log_runtime().block_on(calls::run(command, &place, &mut io::stdout())) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => log_failed(error),
    }
}

fn show_costs(config: Option<&Path>, data_dir: Option<&Path>, arguments: &costs::CostsArguments) -> ExitCode {
    let (place, loaded) = match call_log(config, data_dir) {
        Ok(found) => found,
        Err(error) => return fail(&error.into(), WRONG),
    };
    let snapshot = loaded.as_ref().map(|loaded| &loaded.snapshot);
    match log_runtime().block_on(costs::run(arguments, &place, snapshot, &mut io::stdout())) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(FAILED),
        Err(costs::CostsError::Wrong(error)) => fail(&error, WRONG),
        Err(costs::CostsError::Log(error)) => log_failed(error),
    }
}

fn log_runtime() -> tokio::runtime::Runtime {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.expect("a process that gets no timer and no socket can't ask a store")
}

fn log_failed(error: calls::CallsError) -> ExitCode {
    match error {
        calls::CallsError::Unknown(id) => fail(&anyhow::anyhow!("no call in the log has the id {id}"), FAILED),
        calls::CallsError::NoLog => {
            let mend = "the configuration keeps no calls (`records: none`): write `records: sqlite`, or say with --data-dir where a log is";
            fail(&anyhow::anyhow!(mend), WRONG)
        }
        calls::CallsError::Wrong(error) => fail(&error, WRONG),
        calls::CallsError::Failed(error) => fail(&error, UNREACHABLE),
    }
}

fn work_on_prompts(config: Option<&Path>, command: &prompts::PromptsCommand) -> ExitCode {
    let loaded = match crate::config::load(config) {
        Ok(loaded) => loaded,
        Err(error) => return fail(&error.into(), WRONG),
    };
    match prompts::run(command, &loaded, &mut io::stdout()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(prompts::PromptsError::Failed(error)) => fail(&error, FAILED),
        Err(prompts::PromptsError::Wrong(error)) => fail(&error, WRONG),
    }
}

/// Reads a length of time as a configuration writes it: `30s`, `7d`.
fn duration(text: &str) -> Result<DurationText, String> {
    use serde::{Deserialize, de::IntoDeserializer};
    let text: serde::de::value::StrDeserializer<'_, serde::de::value::Error> = text.into_deserializer();
    DurationText::deserialize(text).map_err(|error| error.to_string())
}

fn code_of(result: anyhow::Result<()>, code: u8) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(&error, code),
    }
}

fn fail(error: &anyhow::Error, code: u8) -> ExitCode {
    // Who closes the pipe, such as `head`, has seen enough.
    if error.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe) {
        return ExitCode::SUCCESS;
    }
    // Problems begin with `file:line:column`, which editors find only at the beginning of a line.
    let name = if matches!(error.downcast_ref(), Some(ConfigError::Problems(_))) { "" } else { "tollgate: " };
    // Nobody reads what a closed pipe refuses; the exit code still holds.
    let _ = writeln!(io::stderr(), "{name}{error:#}");
    ExitCode::from(code)
}
