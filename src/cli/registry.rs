//! `tollgate models` and `tollgate prompts`: versions, what is live, and how that changes. Asks the running gateway.

use std::{
    collections::BTreeMap,
    io::Write,
    path::{Path, PathBuf},
};

use anyhow::{Context, anyhow};
use clap::{Args, Subcommand, ValueEnum};
use serde::Serialize;
use serde_json::{Map, Value, json};

use super::{
    analysis::{self, CompareArguments},
    api::{self, Connection, Failure, Gateway, encoded, instant, table, text},
    prompts::PromptsCommand,
};
use crate::registry::Kind;

/// What to do with models, and whom to ask.
#[derive(Debug, Args)]
pub struct ModelsArguments {
    #[command(flatten)]
    options: Options,
    #[command(subcommand)]
    command: RegistryCommand,
}

/// What to do with prompts, and whom to ask.
#[derive(Debug, Args)]
pub struct PromptsArguments {
    #[command(flatten)]
    options: Options,
    #[command(subcommand)]
    command: EitherCommand,
}

/// What to do with prompts: at a gateway, or here.
#[derive(Debug, Subcommand)]
enum EitherCommand {
    #[command(flatten)]
    Registry(RegistryCommand),
    #[command(flatten)]
    Offline(PromptsCommand),
}

impl PromptsArguments {
    /// The configuration and the command, where it asks no gateway.
    pub(super) fn offline(&self) -> Option<(Option<&Path>, &PromptsCommand)> {
        match &self.command {
            EitherCommand::Registry(_) => None,
            EitherCommand::Offline(command) => Some((self.options.connection.config.as_deref(), command)),
        }
    }
}

/// Whom to ask, and how the answer is shown.
#[derive(Debug, Args)]
pub(super) struct Options {
    #[command(flatten)]
    pub(super) connection: Connection,
    /// As JSON
    #[arg(long, global = true, display_order = super::GLOBALS_ORDER)]
    pub(super) json: bool,
}

/// What to do with versions of models or prompts.
#[derive(Debug, Subcommand)]
enum RegistryCommand {
    /// List them with what is live
    List,
    /// Show one with its versions
    Show {
        /// Its name
        name: String,
    },
    /// Register a version; it serves once it is deployed
    Add {
        /// Its name
        name: String,
        /// What the version says: for a prompt its text, or YAML or JSON as in the configuration
        #[arg(long, value_name = "FILE")]
        file: PathBuf,
        /// The version's name; default: the next vN
        #[arg(long, value_name = "VERSION")]
        version: Option<String>,
        /// For people
        #[arg(long, value_name = "TEXT", default_value = "")]
        description: String,
        /// For people and searches; may be given several times
        #[arg(long = "tag", value_name = "KEY=VALUE", value_parser = tag)]
        tags: Vec<(String, String)>,
        /// The version that it was made from
        #[arg(long, value_name = "VERSION")]
        parent: Option<String>,
    },
    /// Make a version live: at once, at a time, or stage by stage
    Deploy {
        /// Which version, as NAME@VERSION
        #[arg(value_name = "NAME@VERSION")]
        version: String,
        /// When: 2027-01-31T08:00:00Z
        #[arg(long, value_name = "TIME", conflicts_with = "rollout")]
        at: Option<String>,
        /// By stages: "1% 10m, 10% 1h, 50% 1h, 100%"
        #[arg(long, value_name = "STAGES")]
        rollout: Option<String>,
        /// Why; kept with the change
        #[arg(long, value_name = "TEXT", default_value = "")]
        reason: String,
    },
    /// Go back to the version that was live before
    Rollback {
        /// Its name
        name: String,
        /// Why; kept with the change
        #[arg(long, value_name = "TEXT", default_value = "")]
        reason: String,
    },
    /// Show the roll-out, go on with it or abort it
    Rollout {
        /// Its name
        name: String,
        /// What is to happen; default: it is shown
        #[arg(value_enum)]
        action: Option<Step>,
        /// Why; kept with the change
        #[arg(long, value_name = "TEXT", default_value = "")]
        reason: String,
    },
    /// Call a planned deployment off
    Unschedule {
        /// Its name
        name: String,
    },
    /// Show what happened, the newest first
    History {
        /// Its name
        name: String,
    },
    /// Show how two versions differ
    Diff {
        /// The first version, as NAME@VERSION
        #[arg(value_name = "NAME@VERSION")]
        from: String,
        /// The second version; default: the live one
        #[arg(value_name = "VERSION")]
        to: Option<String>,
    },
    /// Show what versions did, side by side: cost, latency, errors, feedback, evaluations
    Compare(CompareArguments),
}

/// What can happen with a roll-out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "snake_case")]
enum Step {
    /// To its next stage, or its end
    Advance,
    /// Everybody goes back
    Abort,
}

fn tag(text: &str) -> Result<(String, String), String> {
    let pair = text.split_once('=').filter(|(key, _)| !key.is_empty());
    pair.map(|(key, value)| (key.to_owned(), value.to_owned())).ok_or_else(|| "write it as KEY=VALUE".to_owned())
}

/// Runs a command on models.
///
/// # Errors
/// When nobody answers, or the answer is no.
pub async fn run_models(arguments: &ModelsArguments, out: &mut impl Write) -> Result<(), Failure> {
    run(Kind::Models, &arguments.options, &arguments.command, out).await
}

/// Runs a command on prompts that asks a gateway.
///
/// # Errors
/// When nobody answers, or the answer is no.
pub async fn run_prompts(arguments: &PromptsArguments, out: &mut impl Write) -> Result<(), Failure> {
    match &arguments.command {
        EitherCommand::Registry(command) => run(Kind::Prompts, &arguments.options, command, out).await,
        EitherCommand::Offline(_) => Ok(()),
    }
}

/// Runs a command on models or prompts.
///
/// # Errors
/// When nobody answers, or the answer is no.
async fn run(kind: Kind, options: &Options, command: &RegistryCommand, out: &mut impl Write) -> Result<(), Failure> {
    let gateway = options.connection.gateway()?;
    let answer = ask(&gateway, kind, command).await?;
    if options.json {
        return api::print(out, &format!("{answer}\n"));
    }
    let said = match command {
        RegistryCommand::List => list(&answer),
        RegistryCommand::Show { .. } => show(&answer),
        RegistryCommand::History { .. } => history(&answer),
        RegistryCommand::Diff { .. } => diff(&answer),
        RegistryCommand::Compare(_) => analysis::comparison(&answer),
        RegistryCommand::Add { .. } => added(&answer),
        RegistryCommand::Rollout { action: None, .. } => rollout(&answer),
        RegistryCommand::Deploy { .. }
        | RegistryCommand::Rollback { .. }
        | RegistryCommand::Rollout { .. }
        | RegistryCommand::Unschedule { .. } => deployed(&answer),
    };
    api::print(out, &said)
}

async fn ask(gateway: &Gateway, kind: Kind, command: &RegistryCommand) -> Result<Value, Failure> {
    let path = |name: &str, what: &str| format!("/api/{}/{}/{what}", kind.section(), encoded(name));
    let key = uuid::Uuid::now_v7().to_string();
    match command {
        RegistryCommand::List => {
            let (mut all, _) = gateway.get("/api/registry").await?;
            Ok(all[kind.section()].take())
        }
        RegistryCommand::Show { name } => gateway.get(&path(name, "registry")).await.map(|(answer, _)| answer),
        RegistryCommand::History { name } => gateway.get(&path(name, "history")).await.map(|(answer, _)| answer),
        RegistryCommand::Diff { from, to } => {
            let (name, from) = versioned(from)?;
            let mut wanted = format!("{}?from={}", path(name, "diff"), encoded(from));
            if let Some(to) = to {
                wanted += &format!("&to={}", encoded(to));
            }
            gateway.get(&wanted).await.map(|(answer, _)| answer)
        }
        RegistryCommand::Compare(asked) => analysis::compare(gateway, kind, asked).await,
        RegistryCommand::Add { name, file, version, description, tags, parent } => {
            let mut request = content(kind, file)?;
            let tags: BTreeMap<&String, &String> = tags.iter().map(|(key, value)| (key, value)).collect();
            request.insert("version".to_owned(), json!(version));
            request.insert("description".to_owned(), json!(description));
            request.insert("tags".to_owned(), json!(tags));
            request.insert("parent".to_owned(), json!(parent));
            gateway.post(&path(name, "versions"), &request, Some(&key)).await
        }
        RegistryCommand::Deploy { version, at, rollout, reason } => {
            let (name, version) = versioned(version)?;
            let stages = rollout.as_ref().map(|stages| stages.split(',').map(str::trim).collect::<Vec<_>>());
            let rollout = stages.map(|stages| json!({ "stages": stages }));
            let request = json!({ "version": version, "reason": reason, "at": at, "rollout": rollout });
            gateway.post(&path(name, "deploy"), &request, Some(&key)).await
        }
        RegistryCommand::Rollback { name, reason } => {
            gateway.post(&path(name, "rollback"), &json!({ "reason": reason }), Some(&key)).await
        }
        RegistryCommand::Rollout { name, action: None, .. } => {
            gateway.get(&path(name, "rollout")).await.map(|(answer, _)| answer)
        }
        RegistryCommand::Rollout { name, action: Some(action), reason } => {
            let request = json!({ "action": action, "reason": reason });
            gateway.post(&path(name, "rollout"), &request, Some(&key)).await
        }
        RegistryCommand::Unschedule { name } => gateway.delete(&path(name, "schedule")).await,
    }
}

fn versioned(text: &str) -> Result<(&str, &str), Failure> {
    let parts = text.split_once('@').filter(|(name, version)| !name.is_empty() && !version.is_empty());
    parts.ok_or_else(|| anyhow!("write `{text}` as NAME@VERSION").into())
}

/// A version's content from a file: what a configuration would say of it, or the text of a prompt.
fn content(kind: Kind, file: &Path) -> Result<Map<String, Value>, Failure> {
    let shown = file.display();
    let said = std::fs::read_to_string(file).with_context(|| format!("{shown} cannot be read"))?;
    let extension = file.extension().and_then(|extension| extension.to_str()).unwrap_or_default();
    let is_structured = matches!(extension, "yaml" | "yml" | "json");
    if kind == Kind::Prompts && !is_structured {
        return Ok(Map::from_iter([("system".to_owned(), Value::String(said))]));
    }
    let content: Value = serde_saphyr::from_str(&said).with_context(|| format!("{shown} is no YAML"))?;
    match content {
        Value::Object(map) => Ok(map),
        _ => Err(anyhow!("{shown} holds no map of a version's fields").into()),
    }
}

// === in words ===

fn rows(value: &Value) -> &[Value] {
    value.as_array().map(Vec::as_slice).unwrap_or_default()
}

fn list(answer: &Value) -> String {
    if rows(answer).is_empty() {
        return "Nothing is registered or configured.\n".to_owned();
    }
    let cells = |row: &Value| {
        let versions = rows(&row["versions"]).len().to_string();
        vec![text(&row["name"]), text(&row["live"]), text(&row["live_by"]), since(row), versions, under_way(row)]
    };
    table(&["NAME", "LIVE", "BY", "SINCE", "VERSIONS", "UNDER WAY"], rows(answer).iter().map(cells).collect())
}

fn since(row: &Value) -> String {
    instant(&row["live_since"])
}

fn under_way(row: &Value) -> String {
    let (rollout, scheduled) = (&row["rollout"], &row["scheduled"]);
    if rollout.is_object() {
        return format!("{} to {}%", text(&rollout["to"]), rollout["weight"]);
    }
    match scheduled.is_object() {
        true => format!("{} at {}", text(&scheduled["version"]), text(&scheduled["at"])),
        false => "-".to_owned(),
    }
}

fn show(answer: &Value) -> String {
    let pinned = if answer["pinned"] == json!(true) { ", pinned" } else { "" };
    let (name, live, by) = (text(&answer["name"]), text(&answer["live"]), text(&answer["live_by"]));
    let mut said = format!("{name}: {live} is live (by {by}{pinned}), since {}\n", since(answer));
    if answer["rollout"].is_object() {
        said += &rollout(&answer["rollout"]);
    }
    let planned = &answer["scheduled"];
    if planned.is_object() {
        let (version, at, by) = (text(&planned["version"]), text(&planned["at"]), text(&planned["by"]));
        said += &format!("planned: {version} goes live at {at} (by {by}{})\n", because(planned));
    }
    let cells = |row: &Value| {
        let live = if row["live"] == json!(true) { "live" } else { "" };
        let hash: String = text(&row["sha256"]).chars().take(8).collect();
        let description = Some(text(&row["description"])).filter(|text| !text.is_empty());
        vec![
            text(&row["version"]),
            live.to_owned(),
            text(&row["source"]),
            hash,
            instant(&row["created"]),
            text(&row["by"]),
            description.unwrap_or_else(|| "-".to_owned()),
        ]
    };
    let header = ["VERSION", "", "FROM", "SHA256", "SINCE", "BY", "DESCRIPTION"];
    said + &table(&header, rows(&answer["versions"]).iter().map(cells).collect())
}

/// A roll-out, and where it is.
fn rollout(answer: &Value) -> String {
    let (from, to, by) = (text(&answer["from"]), text(&answer["to"]), text(&answer["by"]));
    let stages: Vec<String> = rows(&answer["stages"]).iter().map(text).collect();
    let all = format!("{} (by {by}{})", stages.join(", "), because(answer));
    match answer["state"].as_str() {
        Some("running") => {
            let (stage, since) = (&answer["stage"], instant(&answer["stage_since"]));
            let share = &answer["weight"];
            format!(
                "roll-out: {from} to {to}, {share}% of users; stage {stage} of {} since {since}: {all}\n",
                stages.len()
            )
        }
        _ => format!("roll-out: {from} to {to}, {}: {all}\n", text(&answer["state"])),
    }
}

/// What was said about a decision, where anything was.
fn because(decision: &Value) -> String {
    let reason = Some(text(&decision["reason"])).filter(|reason| !matches!(reason.as_str(), "" | "-"));
    reason.map_or_else(String::new, |reason| format!(": {reason}"))
}

fn history(answer: &Value) -> String {
    if rows(answer).is_empty() {
        return "Nothing happened yet.\n".to_owned();
    }
    let cells = |row: &Value| {
        let share = row["weight"].as_f64().map_or_else(String::new, |weight| format!(" ({weight}%)"));
        vec![
            instant(&row["at"]),
            text(&row["what"]).replace('_', " ") + &share,
            text(&row["version"]),
            text(&row["from"]),
            text(&row["by"]),
            text(&row["reason"]),
        ]
    };
    table(&["AT", "WHAT", "VERSION", "BEFORE", "BY", "REASON"], rows(answer).iter().map(cells).collect())
}

fn diff(answer: &Value) -> String {
    match answer["unified"].as_str() {
        Some(unified) if !unified.is_empty() => {
            unified.chars().map(|c| if c.is_control() && c != '\n' { '\u{fffd}' } else { c }).collect()
        }
        _ => "They say the same.\n".to_owned(),
    }
}

fn added(answer: &Value) -> String {
    let (name, version) = (text(&answer["now"]["name"]), text(&answer["version"]));
    match answer["changed"] == json!(true) {
        true => format!("{name}@{version} is registered; `deploy {name}@{version}` makes it live\n"),
        false => format!("{name}@{version} was registered already\n"),
    }
}

fn deployed(answer: &Value) -> String {
    let (name, live) = (text(&answer["now"]["name"]), text(&answer["now"]["live"]));
    match under_way(&answer["now"]).as_str() {
        "-" => format!("{name}@{live} is live\n"),
        under_way => format!("{name}@{live} is live; under way: {under_way}\n"),
    }
}
