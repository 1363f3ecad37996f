//! `tollgate audit`: reads the audit log of a data directory, and checks its chain.

use std::{
    io::Write,
    path::{Path, PathBuf},
};

use clap::Subcommand;
use serde_json::{Value, json};

use crate::store::{
    audit::{Audit, Broken},
    ports::StoreError,
};

/// What to do with the audit log.
#[derive(Debug, Subcommand)]
pub enum AuditCommand {
    /// Check that no line was changed, removed or put in; exit code 1 where one was
    Verify {
        /// One JSON object instead of a sentence
        #[arg(long)]
        json: bool,
    },
    /// Show who changed what, the latest last
    List {
        /// How many
        #[arg(short = 'n', long = "lines", value_name = "COUNT", default_value_t = 100)]
        count: usize,
        /// Only of this action, such as keys.create
        #[arg(long)]
        action: Option<String>,
        /// JSON lines, as they stand in the log
        #[arg(long)]
        json: bool,
    },
}

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
pub enum AuditError {
    /// The chain is broken.
    #[error(transparent)]
    Broken(#[from] Broken),
    /// The log cannot be read.
    #[error(transparent)]
    Unreadable(#[from] StoreError),
    /// There is none.
    #[error("there is no audit log at {}: nothing was changed there yet, it was taken away, or it is elsewhere (--data-dir)", .0.display())]
    Missing(PathBuf),
    /// The output cannot be written.
    #[error(transparent)]
    Output(#[from] std::io::Error),
}

/// Runs a command on the audit log of `data_dir`.
///
/// # Errors
/// When the chain is broken, the log cannot be read, or `out` cannot be written.
pub fn run(command: &AuditCommand, data_dir: &Path, out: &mut impl Write) -> Result<(), AuditError> {
    let audit = Audit::in_dir(data_dir);
    // An empty chain holds: a directory that was mistyped, or a file that was taken away, must not pass for a whole log.
    if !audit.path().exists() {
        return Err(AuditError::Missing(audit.path().to_owned()));
    }
    match command {
        AuditCommand::Verify { json } => verify(&audit, *json, out),
        AuditCommand::List { count, action, json } => {
            let wanted = |line: &Value| action.as_deref().is_none_or(|action| line["action"] == action);
            let reading = audit.read(None, *count, wanted)?;
            for (number, line) in reading.lines.iter().rev() {
                match json {
                    true => writeln!(out, "{line}")?,
                    false => writeln!(out, "{}", sentence(*number, line))?,
                }
            }
            reading.chain?;
            Ok(())
        }
    }
}

fn verify(audit: &Audit, as_json: bool, out: &mut impl Write) -> Result<(), AuditError> {
    let reading = audit.read(None, 0, |_| false)?;
    if as_json {
        let broken = reading.chain.as_ref().err();
        let broken = broken.map(|broken| json!({"line": broken.line, "why": broken.why}));
        let lines = reading.chain.as_ref().copied().unwrap_or_else(|broken| broken.line - 1);
        writeln!(
            out,
            "{}",
            json!({"whole": broken.is_none(), "lines": lines, "head": reading.head, "broken": broken})
        )?;
    }
    let lines = reading.chain?;
    if !as_json {
        writeln!(out, "The chain of {lines} lines holds. The last hash is {}.", reading.head)?;
    }
    Ok(())
}

fn sentence(number: usize, line: &Value) -> String {
    let text = |field: &str| line[field].as_str().unwrap_or("?");
    let reason = match text("reason") {
        "" => String::new(),
        reason => format!(": {}", reason.escape_debug()),
    };
    let shown = |field: &str| text(field).escape_debug().to_string();
    format!("{number:>5} {} {} {} by {}{reason}", shown("at"), shown("action"), shown("subject"), shown("actor"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::audit::Deed;

    fn written(data_dir: &Path) {
        for subject in ["web", "mobile\n"] {
            let (before, after) = (Value::Null, json!({"id": "x"}));
            let deed = Deed { actor: "ann", action: "keys.create", subject, reason: "", before, after };
            Audit::in_dir(data_dir).open().expect("opens").write(jiff::Timestamp::UNIX_EPOCH, &deed).expect("writes");
        }
    }

    fn said(command: &AuditCommand, data_dir: &Path) -> (Result<(), AuditError>, String) {
        let mut out = Vec::new();
        let result = run(command, data_dir, &mut out);
        (result, String::from_utf8(out).expect("text"))
    }

    #[test]
    fn a_log_that_is_not_there_is_not_whole() {
        let dir = tempfile::tempdir().expect("a directory");
        for command in [AuditCommand::Verify { json: true }, AuditCommand::List { count: 9, action: None, json: false }]
        {
            let (result, text) = said(&command, dir.path());
            assert!(matches!(result, Err(AuditError::Missing(_))), "{result:?}");
            assert_eq!(text, "");
        }
    }

    #[test]
    fn a_whole_log_is_listed_and_a_changed_one_is_named() {
        let dir = tempfile::tempdir().expect("a directory");
        written(dir.path());
        let list = AuditCommand::List { count: 9, action: None, json: false };
        let (result, text) = said(&list, dir.path());
        assert!(result.is_ok());
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[0], "    1 1970-01-01T00:00:00.000Z keys.create web by ann");
        assert_eq!(lines[1], "    2 1970-01-01T00:00:00.000Z keys.create mobile\\n by ann", "no line is forged");
        assert!(said(&AuditCommand::Verify { json: false }, dir.path()).1.starts_with("The chain of 2 lines holds."));

        let path = dir.path().join("audit.jsonl");
        let text = std::fs::read_to_string(&path).expect("reads").replacen("ann", "eve", 1);
        std::fs::write(&path, text).expect("writes");
        let (result, text) = said(&AuditCommand::Verify { json: true }, dir.path());
        assert_eq!(result.expect_err("broken").to_string(), "line 1 of the audit log was changed");
        let shown: Value = serde_json::from_str(&text).expect("JSON");
        assert_eq!((&shown["whole"], &shown["broken"]["line"]), (&json!(false), &json!(1)));
        assert!(said(&list, dir.path()).0.is_err());
    }
}
