//! `tollgate config`: the routing configuration that the gateways of a fleet share by their Redis.
//!
//! Pushing makes a revision, which never changes, and makes it live if the one that it was made from still is. What is in force at a
//! gateway is in its log and at `/api/config`.

use std::{
    fs,
    io::{self, Read, Write},
    path::{Path, PathBuf},
    process::ExitCode,
    sync::Arc,
};

use anyhow::{anyhow, bail};
use clap::{Args, Subcommand};
use jiff::Timestamp;
use serde_json::{Value, json};

use super::{FAILED, UNREACHABLE, WRONG, fail};
use crate::{
    config::{self, ConfigError, Draft, snapshot::Store},
    store::{
        ports::{PushOutcome, StoreError},
        redis::config::ConfigStore,
    },
    wire::revision::{self, Head, Revision, TEXT_BYTES_MAX},
};

/// The last line of a pulled file: which revision it was made from.
const MADE_FROM: &str = "# made from revision ";
/// How often a forced push tries against others.
const FORCED_TRIES: usize = 8;
/// Longer authors and messages are cut.
const NOTE_CHARS_MAX: usize = 500;

/// What to do with the pushed configuration.
#[derive(Debug, Subcommand)]
pub enum ConfigCommand {
    /// Check a file, store it as a new revision, and make that live on all gateways
    Push(Push),
    /// Get a revision's text: the live one's unless told otherwise
    Pull {
        /// Where to write it; standard output when not given
        file: Option<PathBuf>,
        /// The revision
        #[arg(long, value_name = "N")]
        revision: Option<u64>,
        /// Overwrite the file
        #[arg(long)]
        force: bool,
    },
    /// List revisions, the newest first
    History {
        /// One JSON array instead of a table
        #[arg(long)]
        json: bool,
        /// At most so many
        #[arg(long, value_name = "N", default_value_t = 20)]
        limit: u64,
    },
    /// Make a new revision with the text of an old one: the one before the live one unless named
    Rollback {
        /// The revision whose text comes back
        revision: Option<u64>,
        /// Who and why
        #[command(flatten)]
        note: Note,
    },
}

/// A file to push.
#[derive(Debug, Args)]
pub struct Push {
    /// The sections that all gateways share; `-` for standard input
    file: PathBuf,
    #[command(flatten)]
    note: Note,
    /// The revision that the file was made from; a pulled file says it in its last line
    #[arg(long, value_name = "N")]
    base: Option<u64>,
    /// Push whatever is live
    #[arg(long, conflicts_with = "base")]
    force: bool,
    /// Store secrets that stand in the file, readable to everybody who can read the store
    #[arg(long)]
    allow_secrets: bool,
    /// Check everything, and push nothing
    #[arg(long)]
    dry_run: bool,
}

/// Who and why.
#[derive(Debug, Args)]
pub struct Note {
    /// Who pushes; default: user@host
    #[arg(long)]
    author: Option<String>,
    /// Why
    #[arg(long, short, default_value = "")]
    message: String,
}

/// Why nothing was done.
enum Refused {
    /// A check failed: something else is live than was thought.
    Failed(anyhow::Error),
    /// Wrong use, or a wrong configuration.
    Wrong(anyhow::Error),
    /// The store.
    Unreachable(anyhow::Error),
}

impl From<StoreError> for Refused {
    fn from(error: StoreError) -> Refused {
        Refused::Unreachable(error.into())
    }
}

impl From<ConfigError> for Refused {
    fn from(error: ConfigError) -> Refused {
        Refused::Wrong(error.into())
    }
}

impl From<io::Error> for Refused {
    fn from(error: io::Error) -> Refused {
        Refused::Wrong(error.into())
    }
}

/// Runs a command on the store that the configuration `path` names.
#[must_use]
pub fn run(command: &ConfigCommand, path: Option<&Path>) -> ExitCode {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let outcome = match runtime {
        Ok(runtime) => runtime.block_on(execute(command, path)),
        Err(error) => Err(error.into()),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(Refused::Failed(error)) => fail(&error, FAILED),
        Err(Refused::Wrong(error)) if error.is::<ConfigError>() => {
            // As `tollgate check` does: each line begins with its place. Nobody reads what a closed pipe refuses.
            let _ = writeln!(io::stderr(), "{error}");
            ExitCode::from(WRONG)
        }
        Err(Refused::Wrong(error)) => fail(&error, WRONG),
        Err(Refused::Unreachable(error)) => fail(&error, UNREACHABLE),
    }
}

async fn execute(command: &ConfigCommand, path: Option<&Path>) -> Result<(), Refused> {
    match command {
        ConfigCommand::Push(wanted) => push(wanted, path).await,
        ConfigCommand::Pull { file, revision, force } => {
            pull(&open(path)?, file.as_deref().filter(|file| *file != Path::new("-")), *revision, *force).await
        }
        ConfigCommand::History { json, limit } => history(&open(path)?, *json, *limit).await,
        ConfigCommand::Rollback { revision, note } => rollback(&open(path)?, path, *revision, note).await,
    }
}

/// The store that the gateways share.
fn open(path: Option<&Path>) -> Result<ConfigStore, Refused> {
    match config::bootstrap(path)?.store {
        Store::Redis(url) => Ok(ConfigStore::new(url)),
        Store::Embedded => Err(Refused::Wrong(anyhow!(
            "the configuration's `store` is embedded, which nobody shares; name the one with the fleet's Redis: --config FILE"
        ))),
    }
}

// === push ===

async fn push(wanted: &Push, path: Option<&Path>) -> Result<(), Refused> {
    let store = open(path)?;
    let (text, made_from) = read_file(&wanted.file).map_err(Refused::Wrong)?;
    let draft = Arc::new(draft(&wanted.file.display().to_string(), &text, &wanted.note));
    let checked = config::check_pushed(path, &draft)?;
    if !wanted.allow_secrets {
        let secrets = config::secrets_in_the_open(&draft);
        if !secrets.is_empty() {
            return Err(ConfigError::from(secrets).into());
        }
    }
    say_what_is_missing(&checked);
    let state = store.state().await?;
    if !wanted.force {
        is_current(wanted.base.or(made_from), state.head.as_ref(), &wanted.file).map_err(Refused::Failed)?;
    }
    if wanted.dry_run {
        let number = state.head.map_or(1, |head| head.number + 1);
        return Ok(writeln!(io::stdout(), "ok: would be revision {number}; nothing was pushed")?);
    }
    let tries = if wanted.force { FORCED_TRIES } else { 1 };
    let revision = Revision { name: file_name(&wanted.file), ..(*draft).clone() };
    let number = make_live(&store, state.head, state.now, revision, tries).await?;
    if let (Some(number), true) = (number, made_from.is_some()) {
        // What was pulled goes on to say what it was made from.
        fs::write(&wanted.file, format!("{text}{MADE_FROM}{number}\n"))?;
    }
    Ok(())
}

/// The file's text, which ends in a line break, and the revision that it says it was made from.
fn read_file(file: &Path) -> anyhow::Result<(String, Option<u64>)> {
    let failed = |error: io::Error| anyhow!("{}: cannot be read: {error}", file.display());
    let limit = TEXT_BYTES_MAX as u64 + 1;
    let mut text = String::new();
    if file == Path::new("-") {
        io::stdin().lock().take(limit).read_to_string(&mut text).map_err(failed)?;
    } else {
        fs::File::open(file).map_err(failed)?.take(limit).read_to_string(&mut text).map_err(failed)?;
    }
    if text.len() > TEXT_BYTES_MAX {
        bail!("{}: is larger than 1 MiB", file.display());
    }
    if !text.is_empty() && !text.ends_with('\n') {
        text.push('\n');
    }
    let last = text.trim_end().rfind('\n').map_or(0, |end| end + 1);
    let made_from = text[last..].strip_prefix(MADE_FROM).and_then(|number| number.trim().parse().ok());
    if made_from.is_some() {
        text.truncate(last);
    }
    Ok((text, made_from))
}

fn draft(name: &str, text: &str, note: &Note) -> Revision {
    Revision {
        number: 0,
        sha256: revision::sha256(text),
        name: name.to_owned(),
        text: text.to_owned(),
        author: plain(&note.author.clone().unwrap_or_else(user_at_host)),
        at: Timestamp::UNIX_EPOCH,
        message: plain(&note.message),
        parent: None,
    }
}

fn user_at_host() -> String {
    let variable = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
    let user = variable("USER").or_else(|| variable("LOGNAME")).or_else(|| variable("USERNAME"));
    let host = || fs::read_to_string("/etc/hostname").ok().map(|host| host.trim().to_owned());
    let host = variable("HOSTNAME").or_else(host).filter(|host| !host.is_empty());
    format!("{}@{}", user.as_deref().unwrap_or("unknown"), host.as_deref().unwrap_or("unknown"))
}

fn file_name(file: &Path) -> String {
    let name = file.file_name().map(|name| name.to_string_lossy().into_owned());
    name.filter(|name| name != "-").map_or_else(|| "stdin".to_owned(), |name| plain(&name))
}

fn say_what_is_missing(checked: &Draft) {
    let mut stderr = io::stderr().lock();
    for warning in &checked.warnings {
        // Nobody reads what a closed pipe refuses.
        let _ = writeln!(stderr, "warning: {warning}");
    }
    if !checked.missing.is_empty() {
        let missing: Vec<&str> = checked.missing.iter().map(String::as_str).collect();
        let _ = writeln!(stderr, "not here, and not checked; each gateway must have: {}", plain(&missing.join(", ")));
    }
}

/// Whether a file was made from what is live.
fn is_current(base: Option<u64>, head: Option<&Head>, file: &Path) -> anyhow::Result<()> {
    let file = file.display();
    match (base, head) {
        (None, None) => Ok(()),
        (Some(base), Some(head)) if base == head.number => Ok(()),
        (Some(base), Some(head)) => bail!(
            "{file} was made from revision {base}, and revision {live} is live: pull that (`tollgate config pull --revision {live} \
             OTHER`), bring both together, and push with --base {live}; --force overwrites it",
            live = head.number
        ),
        (None, Some(head)) => bail!(
            "revision {live} is live, and {file} does not say that it was made from it: compare (`tollgate config pull`), and push \
             with --base {live}; --force overwrites it",
            live = head.number
        ),
        (Some(base), None) => {
            bail!("{file} was made from revision {base}, and the store has none; --force pushes it as the first")
        }
    }
}

/// Stores `draft` with the next number and makes it live, in at most `tries` races with others. `None` when its text is live already.
async fn make_live(
    store: &ConfigStore,
    mut head: Option<Head>,
    now: Timestamp,
    draft: Revision,
    tries: usize,
) -> Result<Option<u64>, Refused> {
    for _ in 0..tries {
        if let Some(live) = head.as_ref().filter(|live| live.sha256 == draft.sha256) {
            writeln!(io::stdout(), "revision {} has this text and is live already", live.number)?;
            return Ok(None);
        }
        let parent = head.as_ref().map(|head| head.number);
        let revision = Revision { number: parent.unwrap_or(0) + 1, parent, at: now, ..draft.clone() };
        match store.push(head.as_ref(), &revision).await? {
            PushOutcome::Pushed => {
                writeln!(io::stdout(), "revision {} is live ({})", revision.number, &revision.sha256[..12])?;
                return Ok(Some(revision.number));
            }
            PushOutcome::Stale(other) => head = other,
        }
    }
    let live = head.map_or_else(|| "nothing".to_owned(), |head| format!("revision {}", head.number));
    Err(Refused::Failed(anyhow!("{live} went live meanwhile: pull that, bring both together, and push again")))
}

// === pull, history, rollback ===

async fn pull(store: &ConfigStore, file: Option<&Path>, number: Option<u64>, force: bool) -> Result<(), Refused> {
    let number = match number {
        Some(number) => number,
        None => live(store).await?.number,
    };
    let revision = existing(store, number).await?;
    let text = format!("{}{MADE_FROM}{number}\n", revision.text);
    let Some(file) = file else { return Ok(io::stdout().write_all(text.as_bytes())?) };
    let mut options = fs::OpenOptions::new();
    options.write(true).create_new(!force).create(force).truncate(force);
    match options.open(file) {
        Ok(mut opened) => opened.write_all(text.as_bytes())?,
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            return Err(Refused::Wrong(anyhow!("{} is there already; name another file, or --force", file.display())));
        }
        Err(error) => return Err(Refused::Wrong(anyhow!("{}: {error}", file.display()))),
    }
    let (author, at) = (plain(&revision.author), revision.at);
    Ok(writeln!(io::stderr(), "revision {number}, pushed by {author} at {at}, is in {}", file.display())?)
}

async fn history(store: &ConfigStore, as_json: bool, limit: u64) -> Result<(), Refused> {
    let head = store.head().await?;
    let revisions = match &head {
        Some(head) => store.history(head.number, limit.max(1)).await?,
        None => Vec::new(),
    };
    let is_live = |revision: &Revision| head.as_ref().is_some_and(|head| *head == revision.head());
    let mut out = io::stdout().lock();
    if as_json {
        let list: Value = revisions.iter().map(|revision| as_object(revision, is_live(revision))).collect();
        return Ok(writeln!(out, "{list}")?);
    }
    if revisions.is_empty() {
        return Ok(writeln!(out, "Nothing was pushed yet. Push a file with `tollgate config push FILE`.")?);
    }
    writeln!(out, "   REVISION  AT                    HASH          WHO                   MESSAGE")?;
    for revision in &revisions {
        let mark = if is_live(revision) { '*' } else { ' ' };
        let Revision { number, sha256, author, at, message, .. } = revision;
        let (at, hash) = (at.strftime("%Y-%m-%dT%H:%M:%SZ"), &sha256[..12]);
        let line = format!("{mark}  {number:<8}  {at:<20}  {hash}  {:<20}  {}", plain(author), plain(message));
        writeln!(out, "{}", line.trim_end())?;
    }
    Ok(())
}

fn as_object(revision: &Revision, live: bool) -> Value {
    json!({
        "revision": revision.number, "live": live, "at": revision.at.to_string(), "author": revision.author,
        "message": revision.message, "file": revision.name, "sha256": revision.sha256, "parent": revision.parent,
    })
}

async fn rollback(store: &ConfigStore, path: Option<&Path>, number: Option<u64>, note: &Note) -> Result<(), Refused> {
    let state = store.state().await?;
    let head = state.head.ok_or_else(nothing_pushed)?;
    let number = match number.or(head.number.checked_sub(1)) {
        Some(0) | None => return Err(Refused::Failed(anyhow!("revision {} is the first one", head.number))),
        Some(number) => number,
    };
    let old = existing(store, number).await?;
    let reason = if note.message.is_empty() { format!("rollback to revision {number}") } else { note.message.clone() };
    let note = Note { author: note.author.clone(), message: reason };
    let checked = config::check_pushed(path, &Arc::new(old.clone()))?;
    say_what_is_missing(&checked);
    make_live(store, Some(head), state.now, draft(&old.name, &old.text, &note), 1).await?;
    Ok(())
}

async fn live(store: &ConfigStore) -> Result<Head, Refused> {
    store.head().await?.ok_or_else(nothing_pushed)
}

fn nothing_pushed() -> Refused {
    Refused::Failed(anyhow!("nothing was pushed yet; `tollgate config push FILE` does"))
}

async fn existing(store: &ConfigStore, number: u64) -> Result<Revision, Refused> {
    let missing =
        || Refused::Wrong(anyhow!("there is no revision {number}; `tollgate config history` lists those there are"));
    store.revision(number).await?.ok_or_else(missing)
}

/// One line for a terminal, of what others may have written.
fn plain(text: &str) -> String {
    text.chars().take(NOTE_CHARS_MAX).map(|c| if c.is_control() { ' ' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> (String, Option<u64>) {
        let dir = tempfile::tempdir().expect("a directory");
        let file = dir.path().join("r.yaml");
        fs::write(&file, text).expect("written");
        read_file(&file).expect("read")
    }

    #[test]
    fn a_pulled_file_says_what_it_was_made_from_without_moving_a_line() {
        for (text, expected, made_from) in [
            ("models: {}\n# made from revision 7\n", "models: {}\n", Some(7)),
            ("models: {}\n# made from revision 7\n\n", "models: {}\n", Some(7)),
            ("# made from revision 7", "", Some(7)),
            ("models: {}", "models: {}\n", None),
            ("# made from revision x\n", "# made from revision x\n", None),
            ("# made from revision 7\nmodels: {}\n", "# made from revision 7\nmodels: {}\n", None),
            ("", "", None),
        ] {
            assert_eq!(read(text), (expected.to_owned(), made_from), "{text:?}");
        }
    }

    #[test]
    fn only_what_was_made_from_the_live_one_may_replace_it() {
        let head = Head { number: 3, sha256: String::new() };
        let current = |base, head| is_current(base, head, Path::new("r.yaml")).map_err(|error| error.to_string());
        assert_eq!(current(None, None), Ok(()));
        assert_eq!(current(Some(3), Some(&head)), Ok(()));
        for (base, live, mend) in
            [(Some(2), Some(&head), "--base 3"), (None, Some(&head), "--base 3"), (Some(2), None, "--force")]
        {
            assert!(current(base, live).is_err_and(|message| message.contains(mend)), "{base:?}");
        }
    }
}
