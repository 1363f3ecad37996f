//! `tollgate plan FILE`: what a reload with FILE would change.
//!
//! Reads two configurations, what lies over both of them in the store, and the call log; asks no running gateway and changes
//! nothing.

mod difference;
mod replay;

use std::{
    collections::BTreeMap,
    io::{self, Write},
    path::PathBuf,
    process::ExitCode,
    sync::Arc,
};

use clap::Args;
use serde_json::{Value, json};

use self::{
    difference::{Change, Kind},
    replay::{Moves, StoredKeys, Verdict},
};
use super::{
    FAILED, UNREACHABLE, WRONG, calls, fail,
    follow::{self, Laid},
};
use crate::{
    config::{self, ConfigError, Layers, Loaded, Snapshot, watch::needs_restart},
    record::{CallRow, Outcome, UserIds},
    store::{
        keys::{self, KeyStore},
        ports::StoreError,
        records::ports::Filter,
    },
    units::NanoUsd,
    wire::revision::Revision,
};

/// What to compare.
#[derive(Debug, Args)]
pub struct PlanArguments {
    /// The configuration that a reload would read
    file: PathBuf,
    /// The current one; default as for `serve`
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Directory of the log, the keys and the registry, instead of the current configuration's
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
    /// Recorded calls since then: a time, or how long ago (30m, 2h, 7d)
    #[arg(long, default_value = "7d", value_parser = calls::moment)]
    since: u64,
    /// Exit with 1 when recorded calls would be refused
    #[arg(long)]
    fail_on_refusals: bool,
    /// As JSON
    #[arg(long)]
    json: bool,
}

/// Calls that are replayed at most, the latest ones.
const CALLS_MAX: usize = 200_000;
/// Calls fetched at a time.
const PAGE: usize = 1000;

/// What a reload would do.
struct Plan {
    in_force: InForce,
    changes: Vec<Change>,
    restart: Vec<&'static str>,
    moves: Vec<Moves>,
    traffic: Traffic,
    /// By reason, key and model.
    refused: BTreeMap<(&'static str, Arc<str>, Arc<str>), u64>,
    /// By model: calls, nano-USD before and after.
    priced: BTreeMap<Arc<str>, (u64, u64, u64)>,
}

/// The two configurations, with the same over both.
struct Compared {
    old: Loaded,
    new: Loaded,
    /// Why that may not be what lies over the gateways' configuration.
    troubles: Vec<String>,
}

/// What lies over both configurations.
#[derive(Debug)]
struct InForce {
    pushed: Option<config::pushed::InForce>,
    registered: Option<Arc<Revision>>,
    troubles: Vec<String>,
}

/// Recorded calls.
#[derive(Debug, Default)]
struct Traffic {
    /// In the order of time.
    rows: Vec<CallRow>,
    /// Whether there were more.
    cut: bool,
    /// Why there are none.
    missing: Option<String>,
}

/// Shows the plan.
#[must_use]
pub fn run(arguments: &PlanArguments) -> ExitCode {
    let runtime = super::log_runtime();
    let compared = match runtime.block_on(compared(arguments)) {
        Ok(compared) => compared,
        Err(error) => return refused(&error),
    };
    let traffic = runtime.block_on(traffic(&compared.old, arguments));
    let stored = stored_keys(&compared.old, arguments);
    let plan = Plan::of(compared, &stored, traffic);
    let text = if arguments.json { format!("{:#}\n", plan.json()) } else { plan.text() };
    if let Err(error) = io::stdout().write_all(text.as_bytes()) {
        return fail(&error.into(), UNREACHABLE);
    }
    if arguments.fail_on_refusals && !plan.refused.is_empty() { ExitCode::from(FAILED) } else { ExitCode::SUCCESS }
}

fn refused(error: &anyhow::Error) -> ExitCode {
    match error.downcast_ref::<ConfigError>() {
        Some(problems @ ConfigError::Problems(_)) => {
            // Each problem names its own file and line.
            let _ = writeln!(io::stderr(), "{problems}");
            ExitCode::from(WRONG)
        }
        Some(_) => fail(error, WRONG),
        None => fail(error, UNREACHABLE),
    }
}

/// Reads the current configuration as its gateway would at a start, and FILE as that would at a reload. Where the store does not
/// answer, what the files say without it is still worth a comparison.
///
/// # Errors
/// When one of them is wrong, or the store is away and the current one makes no sense without it.
async fn compared(arguments: &PlanArguments) -> anyhow::Result<Compared> {
    let path = arguments.config.as_deref();
    let laid = match config::bootstrap(path) {
        Ok(mut bootstrap) => {
            bootstrap.data_dir = arguments.data_dir.clone().unwrap_or(bootstrap.data_dir);
            follow::load_from(path, &bootstrap).await
        }
        Err(error) => Err(error.into()),
    };
    let Laid { loaded: old, troubles } = match laid {
        Err(error) if error.is::<StoreError>() => {
            let trouble = format!("{error}; what was pushed and what was registered are not part of this plan");
            Laid { loaded: config::load(path).map_err(|_| error)?, troubles: vec![trouble] }
        }
        laid => laid?,
    };
    let new = config::load_with(Some(&arguments.file), &Layers::of(&old.snapshot))?;
    Ok(Compared { old, new, troubles })
}

/// The calls of the current configuration's log; a plan without any still says what changes.
async fn traffic(old: &Loaded, arguments: &PlanArguments) -> Traffic {
    let snapshot = &old.snapshot;
    let place = match &arguments.data_dir {
        Some(dir) => calls::beside(dir),
        None => calls::Place {
            records: snapshot.records.clone(),
            data_dir: snapshot.data_dir.clone(),
            users: snapshot.calls.users,
        },
    };
    let missing = |reason: String| Traffic { missing: Some(reason), ..Traffic::default() };
    let log = match calls::open(&place) {
        Ok(log) => log,
        Err(calls::CallsError::Failed(error)) => return missing(format!("{error:#}")),
        Err(_) => return missing("the current configuration keeps no calls".to_owned()),
    };
    let filter = Filter { since_ms: Some(arguments.since), ..Filter::default() };
    let (mut traffic, mut after) = (Traffic::default(), None);
    loop {
        let page = match log.page(filter.clone(), after, PAGE).await {
            Ok(page) => page,
            Err(error) => return missing(error.to_string()),
        };
        // What was refused says nothing of what it would have cost, and what was never sent had no target.
        traffic.rows.extend(page.rows.into_iter().filter(|row| row.outcome != Outcome::Refused));
        after = page.next;
        traffic.cut = traffic.rows.len() >= CALLS_MAX && after.is_some();
        if after.is_none() || traffic.cut {
            traffic.rows.reverse();
            return traffic;
        }
    }
}

/// Keys that were made with `tollgate keys create`.
fn stored_keys(old: &Loaded, arguments: &PlanArguments) -> StoredKeys {
    let data_dir = arguments.data_dir.as_ref().unwrap_or(&old.snapshot.data_dir);
    // Opening makes the file, and a plan changes nothing.
    if !data_dir.join(keys::FILE_NAME).exists() {
        return StoredKeys::new();
    }
    let active = KeyStore::open(data_dir).and_then(|store| store.active()).unwrap_or_default();
    active.into_iter().map(|(_, caller)| (caller.name.to_string(), caller.models)).collect()
}

impl Plan {
    fn of(compared: Compared, stored: &StoredKeys, traffic: Traffic) -> Plan {
        let (old, new) = (&compared.old.snapshot, &compared.new.snapshot);
        let changes = difference::changes(&difference::facts(old), &difference::facts(new));
        let plain = old.calls.users == UserIds::Plain;
        let moves = replay::moves(old, new, &traffic.rows, plain);
        let before = replay::judge(old, stored, &traffic.rows);
        let after = replay::judge(new, stored, &traffic.rows);
        let mut plan = Plan {
            in_force: InForce::of(new, compared.troubles),
            changes,
            restart: needs_restart(old, new),
            moves,
            traffic,
            refused: BTreeMap::new(),
            priced: BTreeMap::new(),
        };
        for ((row, before), after) in plan.traffic.rows.iter().zip(before).zip(after) {
            match (before, after) {
                (Verdict::Passes(_), Verdict::Refused(reason)) => {
                    let named = row.named.clone().unwrap_or_else(|| row.model.clone());
                    *plan.refused.entry((reason, row.key.clone(), named)).or_default() += 1;
                }
                (Verdict::Passes(Some(before)), Verdict::Passes(Some(after))) if before != after => {
                    let (calls, was, would) = plan.priced.entry(row.model.clone()).or_default();
                    *calls += 1;
                    *was = was.saturating_add(before.0);
                    *would = would.saturating_add(after.0);
                }
                _ => {}
            }
        }
        plan
    }

    // === text ===

    fn text(&self) -> String {
        let mut text = self.in_force.text();
        for change in &self.changes {
            text += &change_text(change);
        }
        let count = |kind: Kind| self.changes.iter().filter(|change| change.kind == kind).count();
        text += &match self.changes.is_empty() {
            true => "Nothing changes.\n".to_owned(),
            false => format!(
                "Plan: {} to add, {} to change, {} to remove.\n",
                count(Kind::Added),
                count(Kind::Changed),
                count(Kind::Removed)
            ),
        };
        if !self.restart.is_empty() {
            text += &format!("A reload is refused: restart to change {}.\n", self.restart.join(", "));
        }
        text += &self.moves_text();
        text += &self.traffic_text();
        text
    }

    fn moves_text(&self) -> String {
        if self.moves.is_empty() {
            return String::new();
        }
        let mut text = "\nWho changes variant\n".to_owned();
        for moves in &self.moves {
            let moved: usize = moves.moves.values().sum();
            let whose = if moves.recorded { "in recorded calls" } else { "made up, since no recorded call shows any" };
            text += &format!("  {}: {moved} of {} {} {whose}\n", moves.experiment, moves.units, moves.unit);
            for ((from, to), count) in &moves.moves {
                text += &format!("      {from} -> {to}  {count}\n");
            }
        }
        text
    }

    fn traffic_text(&self) -> String {
        if let Some(reason) = &self.traffic.missing {
            return format!("\nNo recorded calls to judge by: {reason}.\n");
        }
        let cut = if self.traffic.cut { ", the latest ones" } else { "" };
        let mut text = format!("\nOf {} recorded calls{cut}\n", self.traffic.rows.len());
        let refused: u64 = self.refused.values().sum();
        text += &format!("  {refused} would be refused that pass now\n");
        for ((reason, key, model), count) in &self.refused {
            text += &format!("      {count:>7}  {reason}: key {key}, model {model}\n");
        }
        if self.priced.is_empty() {
            return text + "  none would cost anything else\n";
        }
        for (model, (calls, was, would)) in &self.priced {
            let sign = if would < was { "-" } else { "+" };
            let apart = NanoUsd(would.abs_diff(*was));
            text += &format!(
                "  {calls} of {model} would cost {} USD instead of {} ({sign}{apart})\n",
                NanoUsd(*would),
                NanoUsd(*was)
            );
        }
        text
    }

    // === JSON ===

    fn json(&self) -> Value {
        let change = |change: &Change| {
            let fields = change.fields.iter().map(|(name, was, is)| json!({"field": name, "before": was, "after": is}));
            json!({
                "action": change.kind.label(),
                "section": change.section,
                "name": change.name,
                "fields": fields.collect::<Vec<Value>>(),
            })
        };
        let moves = |moves: &Moves| {
            let all = moves.moves.iter().map(|((from, to), count)| json!({"from": from, "to": to, "units": count}));
            json!({
                "experiment": moves.experiment,
                "unit": moves.unit,
                "units": moves.units,
                "recorded": moves.recorded,
                "moves": all.collect::<Vec<Value>>(),
            })
        };
        let refused = self
            .refused
            .iter()
            .map(|((reason, key, model), calls)| json!({"reason": reason, "key": key, "model": model, "calls": calls}));
        let priced = self.priced.iter().map(|(model, (calls, was, would))| {
            json!({"model": model, "calls": calls, "before_nanousd": was, "after_nanousd": would})
        });
        json!({
            "in_force": self.in_force.json(),
            "changes": self.changes.iter().map(change).collect::<Vec<Value>>(),
            "restart": self.restart,
            "variants": self.moves.iter().map(moves).collect::<Vec<Value>>(),
            "calls": self.traffic.rows.len(),
            "calls_cut": self.traffic.cut,
            "calls_missing": self.traffic.missing,
            "refused": refused.collect::<Vec<Value>>(),
            "priced": priced.collect::<Vec<Value>>(),
        })
    }
}

impl InForce {
    fn of(new: &Snapshot, troubles: Vec<String>) -> InForce {
        InForce { pushed: new.pushed.clone(), registered: new.registry.revision.clone(), troubles }
    }

    /// Empty where nothing lies over the files.
    fn text(&self) -> String {
        let mut lines = Vec::new();
        if let Some(pushed) = &self.pushed {
            let mut line = format!("pushed revision {}: {}", by(&pushed.revision), pushed.sections.join(", "));
            if !pushed.replaced.is_empty() {
                line += &format!("; FILE does not count in {}", pushed.replaced.join(", "));
            }
            lines.push(line);
        }
        lines.extend(self.registered.as_deref().map(|revision| format!("registry revision {}", by(revision))));
        lines.extend(self.troubles.iter().map(|trouble| format!("warning: {trouble}")));
        match lines.is_empty() {
            true => String::new(),
            false => format!("Over both configurations\n  {}\n\n", lines.join("\n  ")),
        }
    }

    fn json(&self) -> Value {
        let revision = |revision: &Revision| {
            json!({
                "revision": revision.number,
                "author": revision.author,
                "at": revision.at.to_string(),
                "message": revision.message,
            })
        };
        let pushed = self.pushed.as_ref().map(|pushed| {
            let mut value = revision(&pushed.revision);
            value["sections"] = json!(pushed.sections);
            value["replaced"] = json!(pushed.replaced);
            value
        });
        json!({
            "pushed": pushed,
            "registry": self.registered.as_deref().map(revision),
            "troubles": self.troubles,
        })
    }
}

/// `7 (ann, 2026-11-23)`.
fn by(revision: &Revision) -> String {
    format!("{} ({}, {})", revision.number, revision.author, revision.at.strftime("%Y-%m-%d"))
}

impl Kind {
    const fn label(self) -> &'static str {
        match self {
            Kind::Added => "add",
            Kind::Changed => "change",
            Kind::Removed => "remove",
        }
    }
}

fn change_text(change: &Change) -> String {
    let (sign, verb) = match change.kind {
        Kind::Added => ('+', "is added"),
        Kind::Changed => ('~', "changes"),
        Kind::Removed => ('-', "is removed"),
    };
    let mut text = format!("{sign} {} {} {verb}\n", change.section, change.name);
    let width = change.fields.iter().map(|(name, _, _)| name.chars().count()).max().unwrap_or(0);
    for (name, was, is) in &change.fields {
        text += &match (was, is) {
            (Some(was), Some(is)) if was == is => format!("    ~ {name:<width$}  replaced\n"),
            (Some(was), Some(is)) => format!("    ~ {name:<width$}  {was} -> {is}\n"),
            (Some(was), None) => format!("    - {name:<width$}  {was}\n"),
            (None, is) => format!("    + {name:<width$}  {}\n", is.as_deref().unwrap_or_default()),
        };
    }
    text + "\n"
}
