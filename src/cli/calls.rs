//! `tollgate calls`: looks into the call log, whether a gateway runs on it or not.

use std::{
    collections::HashSet,
    fs::File,
    io::{self, BufWriter, IsTerminal, Write},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use anyhow::anyhow;
use clap::{Args, Subcommand, ValueEnum};
use serde_json::json;

use crate::{
    config::snapshot::Records,
    record::{CallRow, Feedback, Outcome, Rating, UserIds, stored_id},
    store::{
        DataDir,
        records::{
            export::{Exported, ParquetWriter, write_json_line},
            feedback::{self, FeedbackFilter},
            ports::{CallLog, Filter},
            postgres::Postgres,
            sqlite::Sqlite,
        },
    },
    units::NanoUsd,
};

/// Calls fetched at a time.
const PAGE: usize = 1000;
/// How often a log that is followed is asked.
const FOLLOW_INTERVAL: Duration = Duration::from_millis(500);
/// Calls that were shown already and are remembered while a log is followed.
const SEEN_MAX: usize = 100_000;
/// Characters of a whole call in its waterfall.
const BAR: u64 = 48;

/// What to do with the call log.
#[derive(Debug, Subcommand)]
pub enum CallsCommand {
    /// Show the latest calls
    Tail {
        /// How many
        #[arg(short = 'n', long = "lines", value_name = "COUNT", default_value_t = 20)]
        count: usize,
        /// Go on, and show calls as they end
        #[arg(short, long)]
        follow: bool,
        /// Which of them
        #[command(flatten)]
        which: Which,
        /// JSON lines instead of a table
        #[arg(long)]
        json: bool,
    },
    /// Show one call and how it went
    Show {
        /// Its id, as in x-tollgate-call
        id: String,
        /// As JSON
        #[arg(long)]
        json: bool,
    },
    /// Write calls to a file, the latest first
    Export {
        /// In which form
        #[arg(long, value_enum, default_value_t = Format::Jsonl)]
        format: Format,
        /// What is said of calls and sessions instead of the calls: JSON lines, by --since, --until and --session
        #[arg(long, conflicts_with_all = ["format", "model", "team", "key", "user", "provider", "endpoint", "outcome", "errors", "variant", "tag"])]
        feedback: bool,
        /// Where to; default: standard output
        #[arg(short, long, value_name = "FILE")]
        output: Option<PathBuf>,
        /// Which of them
        #[command(flatten)]
        which: Which,
    },
    /// Bring the log's schema to a version; 0 takes everything away. No gateway may be running on it
    Migrate {
        /// The version
        #[arg(long, value_name = "VERSION")]
        to: i64,
    },
}

/// The form of an export.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// A JSON object a line
    Jsonl,
    /// A Parquet file
    Parquet,
}

/// Which calls.
#[derive(Debug, Default, Args)]
pub struct Which {
    /// Received then or later: 2026-11-23T18:00:00Z, or so long ago: 30m, 2h, 7d
    #[arg(long, value_name = "TIME", value_parser = moment)]
    since: Option<u64>,
    /// Received before then
    #[arg(long, value_name = "TIME", value_parser = moment)]
    until: Option<u64>,
    /// Of a model: an alias or provider/model
    #[arg(long)]
    model: Option<String>,
    /// Of a team
    #[arg(long)]
    team: Option<String>,
    /// Of a key
    #[arg(long)]
    key: Option<String>,
    /// Of a user
    #[arg(long)]
    user: Option<String>,
    /// Of a session
    #[arg(long)]
    session: Option<String>,
    /// Whose last attempt was at a provider
    #[arg(long)]
    provider: Option<String>,
    /// Of an endpoint, such as chat_completions
    #[arg(long)]
    endpoint: Option<String>,
    /// That ended so: ok, refused, upstream_error, upstream_failed, cut, abandoned, internal
    #[arg(long, value_parser = outcome)]
    outcome: Option<Outcome>,
    /// That failed
    #[arg(long)]
    errors: bool,
    /// Assigned to a variant
    #[arg(long, value_name = "EXPERIMENT=VARIANT", value_parser = pair)]
    variant: Option<(String, String)>,
    /// With a tag
    #[arg(long, value_name = "NAME=VALUE", value_parser = pair)]
    tag: Option<(String, String)>,
}

/// Where the log is, and how ids are stored in it.
#[derive(Debug)]
pub struct Place {
    /// Which store.
    pub records: Records,
    /// The gateway's own directory.
    pub data_dir: PathBuf,
    /// How users' ids are stored.
    pub users: UserIds,
}

/// Why a command failed.
#[derive(Debug)]
pub enum CallsError {
    /// No call has that id.
    Unknown(String),
    /// The configuration keeps no calls.
    NoLog,
    /// What was asked for cannot be.
    Wrong(anyhow::Error),
    /// The log cannot be used, or the output not written.
    Failed(anyhow::Error),
}

impl<E: Into<anyhow::Error>> From<E> for CallsError {
    fn from(error: E) -> CallsError {
        CallsError::Failed(error.into())
    }
}

/// Runs a command on the log at `place`.
///
/// # Errors
/// When there is no such call, the log cannot be used, or the output cannot be written.
pub async fn run(command: CallsCommand, place: &Place, out: &mut (impl Write + Send)) -> Result<(), CallsError> {
    if let CallsCommand::Migrate { to } = command {
        let before = migrate(place, to).await?;
        return Ok(writeln!(out, "The schema went from version {before} to {to}.")?);
    }
    let log = open(place)?;
    match command {
        CallsCommand::Tail { count, follow, which, json } => {
            let filter = which.filter(place.users);
            let done = tail(&*log, &filter, count, follow, &mut |row| show_line(row, json, out)).await;
            until_closed(done)
        }
        CallsCommand::Show { id, json } => {
            let Some(row) = log.get(Arc::from(id.as_str())).await? else { return Err(CallsError::Unknown(id)) };
            let bodies = log.bodies(row.id.clone()).await?;
            let said = feedback::of_call(&*log, &row).await?;
            if json {
                let call = json!({"call": Exported::from(&row), "bodies": bodies, "feedback": said});
                return Ok(writeln!(out, "{call}")?);
            }
            out.write_all(waterfall(&row).as_bytes())?;
            out.write_all(feedback_lines(&said).as_bytes())?;
            for (name, body) in bodies.iter().flat_map(|b| [("request", &b.request), ("reply", &b.reply)]) {
                let Some(body) = body else { continue };
                let cut = if body.cut { ", cut" } else { "" };
                writeln!(out, "\n{name} ({} bytes{cut})\n{}", body.bytes, body.text)?;
            }
            Ok(())
        }
        CallsCommand::Export { format, feedback, output, which } => {
            let filter = which.filter(place.users);
            let progress = Progress::new(output.is_some() || !io::stdout().is_terminal());
            let mut out: Box<dyn Write + Send + '_> = match output {
                Some(path) => {
                    let wrong = |error| CallsError::Wrong(anyhow!("{} cannot be written: {error}", path.display()));
                    Box::new(BufWriter::new(File::create(&path).map_err(wrong)?))
                }
                None => Box::new(BufWriter::new(out)),
            };
            until_closed(match feedback {
                true => export_feedback(&*log, filter, &mut out).await,
                false => export(&*log, filter, format, out, progress).await,
            })
        }
        CallsCommand::Migrate { .. } => Ok(()),
    }
}

/// The log at `place`.
pub(super) fn open(place: &Place) -> Result<Box<dyn CallLog>, CallsError> {
    match &place.records {
        Records::Sqlite => Ok(Box::new(Sqlite::read(&place.data_dir)?)),
        Records::Postgres(url) => Ok(Box::new(Postgres::read(url.expose())?)),
        Records::None => Err(CallsError::NoLog),
    }
}

async fn migrate(place: &Place, version: i64) -> Result<i64, CallsError> {
    let newest = match &place.records {
        Records::Postgres(_) => Postgres::newest(),
        _ => Sqlite::newest(),
    };
    if !(0..=newest).contains(&version) {
        return Err(CallsError::Wrong(anyhow!(
            "there is no version {version} of the schema; this build knows 0 to {newest}"
        )));
    }
    match &place.records {
        Records::Sqlite => {
            drop(Sqlite::read(&place.data_dir)?);
            let _alone = DataDir::open(&place.data_dir)?;
            Ok(Sqlite::migrate(&place.data_dir, version)?)
        }
        Records::Postgres(url) => Ok(Postgres::migrate(url.expose(), version).await?),
        Records::None => Err(CallsError::NoLog),
    }
}

/// Who closes the pipe has seen enough.
fn until_closed(done: anyhow::Result<()>) -> Result<(), CallsError> {
    match done {
        Err(error) if error.downcast_ref::<io::Error>().is_some_and(|e| e.kind() == io::ErrorKind::BrokenPipe) => {
            Ok(())
        }
        done => Ok(done?),
    }
}

// === tail ===

async fn tail(
    log: &dyn CallLog,
    filter: &Filter,
    count: usize,
    follow: bool,
    show: &mut (dyn FnMut(&CallRow) -> io::Result<()> + Send),
) -> anyhow::Result<()> {
    let mut seen = HashSet::new();
    let mut wanted = count;
    loop {
        let latest = log.page(filter.clone(), None, wanted.max(1)).await;
        match latest {
            Ok(page) => {
                let new = page.rows.iter().take(wanted).rev().filter(|row| !seen.contains(&row.id));
                new.clone().try_for_each(&mut *show)?;
                let new: Vec<Arc<str>> = new.map(|row| row.id.clone()).collect();
                seen.extend(new);
            }
            // One that is followed may be away for a while.
            Err(error) if follow && !seen.is_empty() => drop(writeln!(io::stderr(), "tollgate: {error}")),
            Err(error) => return Err(error.into()),
        }
        if !follow {
            return Ok(());
        }
        if seen.len() > SEEN_MAX {
            seen.clear();
        }
        // Calls are listed by when they came and shown when they end, so more than the last few are looked at.
        wanted = PAGE;
        tokio::time::sleep(FOLLOW_INTERVAL).await;
    }
}

fn show_line(row: &CallRow, json: bool, out: &mut impl Write) -> io::Result<()> {
    if json {
        write_json_line(row, out)?;
    } else {
        let target = row.target.as_deref().unwrap_or("-");
        let first = row.first_token_us.map_or_else(|| "-".to_owned(), duration);
        writeln!(
            out,
            "{} {} {:<15} {:>3} {:<20} {:<28} {:<12} {:>7}+{:<6} {:>12} {:>8} {:>8}",
            time(row.received_ms),
            row.id,
            row.outcome.label(),
            row.status,
            row.model,
            target,
            row.key,
            row.input_tokens,
            row.output_tokens,
            format!("${}", row.cost_usd()),
            first,
            duration(row.duration_us),
        )?;
    }
    out.flush()
}

// === show ===

/// One call as text: its facts, then each part of it as a bar in its place.
fn waterfall(row: &CallRow) -> String {
    let mut text = format!("{}  {}  {} {}\n", row.id, time(row.received_ms), row.outcome.label(), row.status);
    let tags: Vec<String> = row.tags.iter().map(|(tag, value)| format!("{tag}={value}")).collect();
    let variants: Vec<String> =
        row.variants.iter().map(|v| format!("{}={} ({})", v.experiment, v.variant, v.unit)).collect();
    let version = row.version.as_ref().map(|version| format!("@{version}")).unwrap_or_default();
    let cost = format!("{} USD{}", NanoUsd(row.cost_nanousd), if row.priced { "" } else { " (no price)" });
    let tokens = format!(
        "{} in ({} cached), {} out ({} reasoning), from: {}",
        row.input_tokens,
        row.cached_tokens,
        row.output_tokens,
        row.reasoning_tokens,
        row.usage_source.label()
    );
    let facts = [
        ("endpoint", Some(row.endpoint.to_string())),
        ("refused as", row.refusal.as_ref().map(ToString::to_string)),
        ("model", Some(format!("{}{version}", row.model))),
        ("named", row.named.as_ref().map(ToString::to_string)),
        ("target", row.target.as_ref().map(ToString::to_string)),
        ("prompt", row.prompt.as_ref().map(ToString::to_string)),
        ("variants", Some(variants.join(", "))),
        ("key", Some(row.key.to_string())),
        ("team", row.team.as_ref().map(ToString::to_string)),
        ("user", Some(row.user.to_string())),
        ("session", row.session.as_ref().map(ToString::to_string)),
        ("tags", Some(tags.join(", "))),
        ("tokens", Some(tokens)),
        ("cost", Some(cost)),
        ("prices", row.prices.as_ref().map(ToString::to_string)),
    ];
    for (name, value) in facts {
        if let Some(value) = value.filter(|value| !value.is_empty()) {
            text += &format!("  {name:<11} {value}\n");
        }
    }
    text.push('\n');
    for (name, from, to) in parts(row) {
        text += &format!(
            "  {name:<44} {} {:>9} {:>9}\n",
            bar(from, to, row.duration_us),
            duration(from),
            duration(to - from)
        );
    }
    text
}

/// What is said of a call, a line each; nothing where nothing is.
fn feedback_lines(said: &[Feedback]) -> String {
    let mut text = String::new();
    for rating in said {
        let value = match &rating.value {
            Rating::Flag(flag) => flag.to_string(),
            Rating::Number(number) => number.to_string(),
            Rating::Text(text) => format!("{text:?}"),
        };
        let (about, _) = rating.subject();
        let comment = rating.comment.as_ref().map(|comment| format!("  {comment:?}")).unwrap_or_default();
        text += &format!(
            "  {about:<8} {} = {value}  ({}, {}){comment}\n",
            rating.metric,
            rating.source,
            time(rating.rated_ms)
        );
    }
    if text.is_empty() { text } else { format!("\nfeedback\n{text}") }
}

/// The parts of a call: name, beginning and end in microseconds.
fn parts(row: &CallRow) -> Vec<(String, u64, u64)> {
    let mut parts = vec![("body received".to_owned(), 0, row.read_us)];
    let first = row.attempt_list.first().map_or(row.duration_us, |attempt| attempt.start_us);
    if row.waited_us > 0 {
        parts.push(("wait for money".to_owned(), first.saturating_sub(row.waited_us), first));
    }
    for (attempt, number) in row.attempt_list.iter().zip(1..) {
        let status = attempt.status.map(|status| format!(" {status}")).unwrap_or_default();
        let name = format!("attempt {number}: {} {}{status}", attempt.target, attempt.result);
        parts.push((name, attempt.start_us, attempt.end_us.max(attempt.start_us)));
    }
    if let Some(first) = row.first_token_us {
        parts.push(("tokens".to_owned(), first, row.duration_us.max(first)));
    }
    parts.push(("whole call".to_owned(), 0, row.duration_us));
    parts
}

fn bar(from: u64, to: u64, whole: u64) -> String {
    let place = |at: u64| usize::try_from((at.min(whole) * BAR).checked_div(whole).unwrap_or(0)).unwrap_or(0);
    let (start, end) = (place(from).min(BAR as usize - 1), place(to));
    let length = end.saturating_sub(start).max(1);
    format!(
        "|{}{}{}|",
        " ".repeat(start),
        "=".repeat(length),
        " ".repeat((BAR as usize).saturating_sub(start + length))
    )
}

fn time(ms: u64) -> String {
    let at = i64::try_from(ms).ok().and_then(|ms| jiff::Timestamp::from_millisecond(ms).ok()).unwrap_or_default();
    at.strftime("%Y-%m-%dT%H:%M:%S.%3fZ").to_string()
}

fn duration(us: u64) -> String {
    match us {
        0..1_000_000 => format!("{:.1}ms", us as f64 / 1e3),
        _ => format!("{:.2}s", us as f64 / 1e6),
    }
}

// === export ===

async fn export(
    log: &dyn CallLog,
    filter: Filter,
    format: Format,
    out: impl Write + Send,
    progress: Progress,
) -> anyhow::Result<()> {
    let mut writing = match format {
        Format::Parquet => Writing::Parquet(Box::new(ParquetWriter::new(out)?)),
        Format::Jsonl => Writing::Lines(out),
    };
    let (mut after, mut count) = (None, 0);
    loop {
        let page = log.page(filter.clone(), after, PAGE).await?;
        count += page.rows.len() as u64;
        writing.add(page.rows)?;
        progress.at(count);
        after = page.next;
        if after.is_none() {
            break;
        }
    }
    writing.finish()?;
    progress.end(count);
    Ok(())
}

/// One JSON object a line, the latest first.
async fn export_feedback(log: &dyn CallLog, filter: Filter, out: &mut (dyn Write + Send)) -> anyhow::Result<()> {
    let Filter { since_ms, until_ms, session, .. } = filter;
    let filter = FeedbackFilter { since_ms, until_ms, session, ..FeedbackFilter::default() };
    let mut after = None;
    loop {
        let page = log.feedback(filter.clone(), after, PAGE).await?;
        for rating in &page.rows {
            serde_json::to_writer(&mut *out, rating)?;
            out.write_all(b"\n")?;
        }
        after = page.next;
        if after.is_none() {
            return Ok(out.flush()?);
        }
    }
}

/// A file in the making.
enum Writing<W: Write + Send> {
    Lines(W),
    Parquet(Box<ParquetWriter<W>>),
}

impl<W: Write + Send> Writing<W> {
    fn add(&mut self, rows: Vec<CallRow>) -> anyhow::Result<()> {
        match self {
            Writing::Lines(out) => rows.iter().try_for_each(|row| write_json_line(row, out))?,
            Writing::Parquet(parquet) => rows.into_iter().try_for_each(|row| parquet.add(row))?,
        }
        Ok(())
    }

    fn finish(self) -> anyhow::Result<()> {
        match self {
            Writing::Lines(mut out) => out.flush()?,
            Writing::Parquet(parquet) => parquet.finish()?,
        }
        Ok(())
    }
}

/// Says on a terminal how far long work is.
struct Progress {
    shown: bool,
}

impl Progress {
    /// `free`: whether nothing else is written to the terminal.
    fn new(free: bool) -> Progress {
        Progress { shown: free && io::stderr().is_terminal() }
    }

    fn at(&self, count: u64) {
        if self.shown {
            let _ = write!(io::stderr(), "\r{count} calls");
        }
    }

    fn end(&self, count: u64) {
        if self.shown {
            let _ = writeln!(io::stderr(), "\r{count} calls");
        }
    }
}

// === arguments ===

impl Which {
    fn filter(self, users: UserIds) -> Filter {
        let stored = |id: String| stored_id(Arc::from(id), users).to_string();
        Filter {
            since_ms: self.since,
            until_ms: self.until,
            model: self.model,
            team: self.team,
            key: self.key,
            user: self.user.map(stored),
            session: self.session.map(stored),
            provider: self.provider,
            endpoint: self.endpoint,
            outcome: self.outcome,
            errors: self.errors,
            variant: self.variant,
            tag: self.tag,
        }
    }
}

/// A point in time, or how long ago, in milliseconds since 1970.
pub(super) fn moment(text: &str) -> Result<u64, String> {
    let wrong = || format!("`{text}` is no time; write it as 2026-11-23T18:00:00Z, or as 30m, 2h or 7d ago");
    let at = match text.parse::<jiff::Timestamp>() {
        Ok(at) => at,
        Err(_) => {
            let unit = text.chars().last().ok_or_else(wrong)?;
            let seconds = match unit {
                's' => 1,
                'm' => 60,
                'h' => 3600,
                'd' => 86_400,
                _ => return Err(wrong()),
            };
            let number: u64 = text[..text.len() - unit.len_utf8()].parse().map_err(|_| wrong())?;
            let ago = Duration::from_secs(number.checked_mul(seconds).ok_or_else(wrong)?);
            jiff::Timestamp::now().checked_sub(ago).map_err(|_| wrong())?
        }
    };
    u64::try_from(at.as_millisecond()).map_err(|_| wrong())
}

fn outcome(text: &str) -> Result<Outcome, String> {
    let labels = Outcome::ALL.map(Outcome::label).join(", ");
    Outcome::of_label(text).ok_or_else(|| format!("no call ends so; calls end {labels}"))
}

pub(super) fn pair(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once('=').ok_or_else(|| format!("`{text}` is no NAME=VALUE"))?;
    Ok((name.to_owned(), value.to_owned()))
}

/// Where the log of a gateway is whose directory is `data_dir`.
#[must_use]
pub fn beside(data_dir: &Path) -> Place {
    Place { records: Records::Sqlite, data_dir: data_dir.to_owned(), users: UserIds::Plain }
}
