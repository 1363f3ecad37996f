//! `tollgate eval`: runs suites through a gateway, compares runs, and asks recorded calls again.

mod progress;
mod replay;
mod run;

use std::{
    io::{self, Write},
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::{Context, anyhow};
use clap::{Args, Subcommand};

use super::{FAILED, UNREACHABLE, WRONG, fail};
use crate::eval::{
    report::{self, Report, compare},
    suite,
};

/// What to do with evaluations.
#[derive(Debug, Subcommand)]
pub enum EvalCommand {
    /// Run a suite through a gateway; exit 1 when a gate fails
    Run {
        /// The suite
        file: PathBuf,
        /// How
        #[command(flatten)]
        options: RunOptions,
    },
    /// Compare two runs: directories, or reports of --json
    Compare {
        /// The first one
        first_run: PathBuf,
        /// The second one
        second_run: PathBuf,
        /// The candidate of the first one, where the runs have several
        #[arg(long, value_name = "NAME")]
        first: Option<String>,
        /// The candidate of the second one
        #[arg(long, value_name = "NAME")]
        second: Option<String>,
        /// As JSON
        #[arg(long)]
        json: bool,
    },
    /// Ask recorded calls again of a candidate, and compare quality, time and cost
    Replay(Box<replay::ReplayArguments>),
    /// Print the JSON Schema of suites
    Schema,
}

/// How a suite is run.
#[derive(Debug, Args)]
pub struct RunOptions {
    /// Configuration that says where the gateway is, what calls cost and where the call log is; default as for `serve`
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// The gateway's client listener, instead of the suite's or the configuration's
    #[arg(long, value_name = "URL", env = "TOLLGATE_URL")]
    url: Option<String>,
    /// A virtual key, instead of the suite's
    #[arg(long, value_name = "KEY", env = "TOLLGATE_KEY", hide_env_values = true)]
    key: Option<String>,
    /// Directory of the run's files; default: runs/NAME-TIME
    #[arg(short, long, value_name = "DIR", conflicts_with = "resume")]
    output: Option<PathBuf>,
    /// Go on with the run in this directory
    #[arg(long, value_name = "DIR")]
    resume: Option<PathBuf>,
    /// Say what it would cost, and end
    #[arg(long)]
    dry_run: bool,
    /// Write the report as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Write the report as JUnit XML
    #[arg(long, value_name = "FILE")]
    junit: Option<PathBuf>,
    /// Write the report as an HTML page
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
    /// Keep the report in the gateway's call log, for the dashboard
    #[arg(long)]
    upload: bool,
    /// The gateway's admin listener for --upload, instead of the configuration's
    #[arg(long, value_name = "URL", env = "TOLLGATE_ADMIN_URL")]
    admin_url: Option<String>,
    /// The admin token for --upload, instead of the configuration's
    #[arg(long, value_name = "TOKEN", env = "TOLLGATE_ADMIN_TOKEN", hide_env_values = true)]
    admin_token: Option<String>,
}

/// Why a command failed, and the exit code that says so.
#[derive(Debug)]
struct Failure {
    error: anyhow::Error,
    code: u8,
}

impl Failure {
    fn wrong(error: impl Into<anyhow::Error>) -> Failure {
        Failure { error: error.into(), code: WRONG }
    }

    fn unreachable(error: impl Into<anyhow::Error>) -> Failure {
        Failure { error: error.into(), code: UNREACHABLE }
    }

    fn failed(error: impl Into<anyhow::Error>) -> Failure {
        Failure { error: error.into(), code: FAILED }
    }
}

/// Runs a command.
#[must_use]
pub fn run(command: EvalCommand) -> ExitCode {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.expect("a process that gets no timer and no socket can't ask a gateway");
    let done = match command {
        EvalCommand::Run { file, options } => runtime.block_on(run::of_file(&file, &options)),
        EvalCommand::Replay(arguments) => runtime.block_on(replay::replay(&arguments)),
        EvalCommand::Compare { first_run, second_run, first, second, json } => {
            compare_runs(&first_run, &second_run, first.as_deref(), second.as_deref(), json)
        }
        EvalCommand::Schema => say(&suite::schema()).map(|()| true),
    };
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(FAILED),
        Err(failure) => fail(&failure.error, failure.code),
    }
}

fn compare_runs(
    first_run: &Path,
    second_run: &Path,
    first: Option<&str>,
    second: Option<&str>,
    json: bool,
) -> Result<bool, Failure> {
    let (one, other) = (read_report(first_run)?, read_report(second_run)?);
    let found = compare::compare(&one, &other, first, second).map_err(Failure::wrong)?;
    let text = match json {
        true => serde_json::to_string_pretty(&found).map_err(Failure::failed)? + "\n",
        false => compare::text(&found),
    };
    say(&text).map(|()| true)
}

/// The report in a file, or of a run's directory.
fn read_report(path: &Path) -> Result<Report, Failure> {
    let file = if path.is_dir() { path.join(run::REPORT) } else { path.to_owned() };
    let name = file.display();
    let text = std::fs::read(&file).with_context(|| format!("{name} cannot be read")).map_err(Failure::wrong)?;
    let report: Report = serde_json::from_slice(&text)
        .with_context(|| format!("{name} is no report of an evaluation"))
        .map_err(Failure::wrong)?;
    if report.format != report::FORMAT {
        return Err(Failure::wrong(anyhow!(
            "{name} is a report of form {}, this release reads form {}",
            report.format,
            report::FORMAT
        )));
    }
    Ok(report)
}

/// Writes to standard output. Who closes the pipe has seen enough.
fn say(text: &str) -> Result<(), Failure> {
    let mut out = io::stdout();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(Failure::failed(error)),
        _ => Ok(()),
    }
}

/// Writes a note to standard error, where it is in nobody's way.
fn note(text: &str) {
    // Nobody reads what a closed pipe refuses.
    let _ = writeln!(io::stderr(), "{text}");
}
