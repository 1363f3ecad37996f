//! `tollgate experiments`: what runs, how far it is, and how that changes. Asks the running gateway.

use std::{
    collections::BTreeMap,
    io::Write,
    path::{Path, PathBuf},
};

use anyhow::{Context, anyhow};
use clap::{Args, Subcommand};
use serde_json::{Map, Value, json};

use super::{
    analysis::{self, AnalysisCommand},
    api::{self, Failure, Gateway, encoded, instant, table, text},
    registry::Options,
};

/// What to do with experiments, and whom to ask.
#[derive(Debug, Args)]
pub struct ExperimentsArguments {
    #[command(flatten)]
    options: Options,
    #[command(subcommand)]
    command: ExperimentsCommand,
}

/// What to do with experiments.
#[derive(Debug, Subcommand)]
enum ExperimentsCommand {
    #[command(flatten)]
    Life(LifeCommand),
    #[command(flatten)]
    Analysis(AnalysisCommand),
}

/// How an experiment comes, goes on and ends.
#[derive(Debug, Subcommand)]
enum LifeCommand {
    /// List them with how far they are
    List,
    /// Show one with its variants
    Show {
        /// Its name
        name: String,
    },
    /// Take one in; it begins with --start or `start`
    Create(Box<CreateArguments>),
    /// Begin, or go on after a pause
    Start(Named),
    /// Have the live version serve everybody for now
    Pause(Named),
    /// End it; the live version serves everybody
    Stop(Named),
    /// Change weights: raising one moves users only into its variant
    Weights {
        /// Its name
        name: String,
        /// The weights; those that are not named stay
        #[arg(value_name = "VARIANT=WEIGHT", required = true, value_parser = weight)]
        weights: Vec<(String, f64)>,
        /// Why; kept with the change
        #[arg(long, value_name = "TEXT", default_value = "")]
        reason: String,
    },
    /// Stop one variant: its users go back to the control
    Halt(Arm),
    /// Make what a variant does the live version of the model, and end the experiment
    Promote(Arm),
    /// Show what happened, the newest first
    History {
        /// Its name
        name: String,
    },
}

/// Which experiment.
#[derive(Debug, Args)]
struct Named {
    /// Its name
    name: String,
    /// Why; kept with the change
    #[arg(long, value_name = "TEXT", default_value = "")]
    reason: String,
}

/// Which variant of which experiment.
#[derive(Debug, Args)]
struct Arm {
    /// The experiment's name
    name: String,
    /// The variant
    variant: String,
    /// Why; kept with the change
    #[arg(long, value_name = "TEXT", default_value = "")]
    reason: String,
}

/// What an experiment is, in arguments or in a file.
#[derive(Debug, Args)]
struct CreateArguments {
    /// Its name, which also decides who gets what
    name: String,
    /// What a configuration would say of it, as YAML or JSON; arguments win
    #[arg(long, value_name = "FILE")]
    file: Option<PathBuf>,
    /// The model whose calls take part
    #[arg(long)]
    model: Option<String>,
    /// What is assigned: user, key, session or header:NAME
    #[arg(long)]
    unit: Option<String>,
    /// A variant; may be given several times. KEY is version, target, prompt or parameters.NAME
    #[arg(long = "variant", value_name = "NAME=WEIGHT[,KEY=VALUE…]", value_parser = variant)]
    variants: Vec<(String, Value)>,
    /// The variant that the others are compared with
    #[arg(long, value_name = "VARIANT")]
    control: Option<String>,
    /// What it should change, such as "resolved up" or "latency down 5%"
    #[arg(long, value_name = "METRIC up|down [MARGIN]", value_parser = goal)]
    goal: Option<Value>,
    /// What it must not harm, such as "error_rate max 5%"; may be given several times
    #[arg(long = "guardrail", value_name = "METRIC max|max_increase LIMIT", value_parser = guardrail)]
    guardrails: Vec<Value>,
    /// The layer whose units it shares with other experiments
    #[arg(long)]
    layer: Option<String>,
    /// The share of its units that takes part, such as 50%
    #[arg(long)]
    share: Option<String>,
    /// Whether calls of coding agents get another prompt too: skip or force
    #[arg(long, value_name = "skip|force")]
    coding_agents: Option<String>,
    /// Begin at once
    #[arg(long)]
    start: bool,
}

fn weight(text: &str) -> Result<(String, f64), String> {
    let wrong = || "write it as VARIANT=WEIGHT, such as `warm=20`".to_owned();
    let (name, weight) = text.split_once('=').filter(|(name, _)| !name.is_empty()).ok_or_else(wrong)?;
    Ok((name.to_owned(), weight.parse().map_err(|_| wrong())?))
}

/// `warm=30,prompt=greeting@v2,parameters.temperature=0.7`.
fn variant(text: &str) -> Result<(String, Value), String> {
    let mut parts = text.split(',');
    let (name, weight) = weight(parts.next().unwrap_or_default())?;
    let mut said = Map::from_iter([("weight".to_owned(), json!(weight))]);
    let mut parameters = Map::new();
    for part in parts {
        let (key, value) = part.split_once('=').ok_or_else(|| format!("`{part}` is no KEY=VALUE"))?;
        match (key, key.strip_prefix("parameters.")) {
            ("version" | "target" | "prompt", _) => drop(said.insert(key.to_owned(), json!(value))),
            (_, Some(parameter)) => {
                let value = serde_json::from_str(value).unwrap_or_else(|_| json!(value));
                parameters.insert(parameter.to_owned(), value);
            }
            _ => return Err(format!("`{key}` is none of version, target, prompt and parameters.NAME")),
        }
    }
    if !parameters.is_empty() {
        said.insert("parameters".to_owned(), Value::Object(parameters));
    }
    Ok((name, Value::Object(said)))
}

fn goal(text: &str) -> Result<Value, String> {
    match text.split_whitespace().collect::<Vec<_>>()[..] {
        [metric, direction @ ("up" | "down")] => Ok(json!({ "metric": metric, "direction": direction })),
        [metric, direction @ ("up" | "down"), margin] => {
            Ok(json!({ "metric": metric, "direction": direction, "margin": margin }))
        }
        _ => Err("write it as METRIC up or METRIC down, with a margin such as 1% if wanted".to_owned()),
    }
}

fn guardrail(text: &str) -> Result<Value, String> {
    match text.split_whitespace().collect::<Vec<_>>()[..] {
        [metric, limit @ ("max" | "max_increase"), ref highest @ ..] if !highest.is_empty() => {
            Ok(Value::Object(Map::from_iter([
                ("metric".to_owned(), json!(metric)),
                (limit.to_owned(), json!(highest.join(" "))),
            ])))
        }
        _ => Err("write it as METRIC max LIMIT or METRIC max_increase SHARE".to_owned()),
    }
}

/// Runs the command.
///
/// # Errors
/// When nobody answers, or the answer is no.
pub async fn run(arguments: &ExperimentsArguments, out: &mut impl Write) -> Result<(), Failure> {
    let command = match &arguments.command {
        ExperimentsCommand::Life(command) => command,
        ExperimentsCommand::Analysis(command) => return analysis::run(&arguments.options, command, out).await,
    };
    let gateway = arguments.options.connection.gateway()?;
    let answer = ask(&gateway, command).await?;
    if arguments.options.json {
        return api::print(out, &format!("{answer}\n"));
    }
    let said = match command {
        LifeCommand::List => list(&answer),
        LifeCommand::Show { .. } => show(&answer),
        LifeCommand::History { .. } => history(&answer),
        LifeCommand::Promote(_) => promoted(&answer),
        LifeCommand::Halt(arm) => format!("{} of {} is stopped; its users are the control's\n", arm.variant, arm.name),
        _ => changed(&answer["now"]),
    };
    api::print(out, &said)
}

async fn ask(gateway: &Gateway, command: &LifeCommand) -> Result<Value, Failure> {
    let path = |name: &str, what: &str| format!("/api/experiments/{}{what}", encoded(name));
    let (path, request) = match command {
        LifeCommand::List => return gateway.all("/api/experiments").await,
        LifeCommand::Show { name } => return gateway.get(&path(name, "")).await.map(|(answer, _)| answer),
        LifeCommand::History { name } => return gateway.get(&path(name, "/history")).await.map(|(answer, _)| answer),
        LifeCommand::Create(arguments) => ("/api/experiments".to_owned(), arguments.request()?),
        LifeCommand::Start(named) => (path(&named.name, "/start"), named.request()),
        LifeCommand::Pause(named) => (path(&named.name, "/pause"), named.request()),
        LifeCommand::Stop(named) => (path(&named.name, "/stop"), named.request()),
        LifeCommand::Weights { name, weights, reason } => {
            let weights: BTreeMap<&String, &f64> = weights.iter().map(|(variant, weight)| (variant, weight)).collect();
            (path(name, "/weights"), json!({ "weights": weights, "reason": reason }))
        }
        LifeCommand::Halt(arm) => (path(&arm.name, "/halt"), arm.request()),
        LifeCommand::Promote(arm) => (path(&arm.name, "/promote"), arm.request()),
    };
    gateway.post(&path, &request, Some(&uuid::Uuid::now_v7().to_string())).await
}

impl Named {
    fn request(&self) -> Value {
        json!({ "reason": self.reason })
    }
}

impl Arm {
    fn request(&self) -> Value {
        json!({ "variant": self.variant, "reason": self.reason })
    }
}

impl CreateArguments {
    fn request(&self) -> Result<Value, Failure> {
        let mut request = self.file.as_deref().map_or_else(|| Ok(Map::new()), definition)?;
        let texts = [
            ("model", &self.model),
            ("unit", &self.unit),
            ("control", &self.control),
            ("layer", &self.layer),
            ("share", &self.share),
            ("coding_agents", &self.coding_agents),
        ];
        for (key, value) in texts {
            request.extend(value.iter().map(|value| (key.to_owned(), json!(value))));
        }
        request.extend(self.goal.iter().map(|goal| ("goal".to_owned(), goal.clone())));
        if !self.variants.is_empty() {
            let variants: Map<String, Value> = self.variants.iter().cloned().collect();
            request.insert("variants".to_owned(), Value::Object(variants));
        }
        if !self.guardrails.is_empty() {
            request.insert("guardrails".to_owned(), json!(self.guardrails));
        }
        request.insert("name".to_owned(), json!(self.name));
        request.insert("start".to_owned(), json!(self.start));
        Ok(Value::Object(request))
    }
}

/// What a file says of an experiment.
fn definition(file: &Path) -> Result<Map<String, Value>, Failure> {
    let shown = file.display();
    let said = std::fs::read_to_string(file).with_context(|| format!("{shown} cannot be read"))?;
    match serde_saphyr::from_str(&said).with_context(|| format!("{shown} is no YAML"))? {
        Value::Object(map) => Ok(map),
        _ => Err(anyhow!("{shown} holds no map of an experiment's fields").into()),
    }
}

// === in words ===

fn rows(value: &Value) -> &[Value] {
    value.as_array().map(Vec::as_slice).unwrap_or_default()
}

fn list(answer: &Value) -> String {
    if rows(answer).is_empty() {
        return "There are no experiments.\n".to_owned();
    }
    let cells = |row: &Value| {
        vec![
            text(&row["name"]),
            text(&row["state"]),
            text(&row["model"]),
            text(&row["unit"]),
            shares(row),
            text(&row["source"]),
            instant(&row["started"]),
        ]
    };
    let header = ["NAME", "STATE", "MODEL", "UNIT", "VARIANTS", "FROM", "SINCE"];
    table(&header, rows(answer).iter().map(cells).collect())
}

/// `control 90, warm 10`.
fn shares(row: &Value) -> String {
    let of = |variant: &Value| {
        let stopped = if variant["halted"].is_object() { " (stopped)" } else { "" };
        format!("{} {}{stopped}", text(&variant["name"]), variant["weight"])
    };
    rows(&row["variants"]).iter().map(of).collect::<Vec<_>>().join(", ")
}

fn show(answer: &Value) -> String {
    let (name, state, model) = (text(&answer["name"]), text(&answer["state"]), text(&answer["model"]));
    let mut said = format!("{name}: {state}, on calls of {model} by {}", text(&answer["unit"]));
    if answer["started"].is_string() {
        said += &format!(", since {}", instant(&answer["started"]));
    }
    said.push('\n');
    if answer["goal"].is_object() {
        said += &format!("goal: {} {}\n", text(&answer["goal"]["metric"]), text(&answer["goal"]["direction"]));
    }
    for guardrail in rows(&answer["guardrails"]) {
        let limit = ["max", "max_increase"].into_iter().find(|limit| guardrail[*limit].is_number()).unwrap_or("max");
        said += &format!("guardrail: {} {limit} {}\n", text(&guardrail["metric"]), guardrail[limit]);
    }
    if let Some(version) = answer["version"].as_str() {
        said += &format!("{} was promoted as {model}@{version}\n", text(&answer["promoted"]));
    }
    let cells = |row: &Value| {
        let is_control = row["name"] == answer["control"];
        let mark = match row["halted"]["reason"].as_str() {
            Some(reason) => format!("stopped: {reason}"),
            None if is_control => "control".to_owned(),
            None => String::new(),
        };
        vec![text(&row["name"]), row["weight"].to_string(), changes(row), mark]
    };
    said + &table(&["VARIANT", "WEIGHT", "CHANGES", ""], rows(&answer["variants"]).iter().map(cells).collect())
}

/// What a variant changes about a call.
fn changes(variant: &Value) -> String {
    let named = ["version", "target", "prompt"].into_iter();
    let mut all: Vec<String> =
        named.filter_map(|key| variant[key].as_str().map(|value| format!("{key} {value}"))).collect();
    let parameters = variant["parameters"].as_object().into_iter().flatten();
    all.extend(parameters.map(|(name, value)| format!("{name} {value}")));
    if all.is_empty() { "-".to_owned() } else { all.join(", ") }
}

fn history(answer: &Value) -> String {
    if rows(answer).is_empty() {
        return "Nothing happened yet.\n".to_owned();
    }
    let cells = |row: &Value| {
        let about = [&row["variant"], &row["version"]].into_iter().filter_map(Value::as_str).collect::<Vec<_>>();
        vec![instant(&row["at"]), text(&row["what"]), about.join(" as "), text(&row["by"]), text(&row["reason"])]
    };
    table(&["AT", "WHAT", "ABOUT", "BY", "REASON"], rows(answer).iter().map(cells).collect())
}

fn promoted(answer: &Value) -> String {
    let (model, version) = (text(&answer["now"]["model"]), text(&answer["about"]));
    format!("{model}@{version} is live; `tollgate models rollback {model}` undoes it\n")
}

fn changed(now: &Value) -> String {
    format!("{} is {}: {}\n", text(&now["name"]), text(&now["state"]), shares(now))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variants_goals_and_guardrails_are_written_on_one_line() {
        let (name, said) = variant("warm=30,prompt=greeting@v2,parameters.temperature=0.7").unwrap();
        assert_eq!(name, "warm");
        assert_eq!(said, json!({ "weight": 30.0, "prompt": "greeting@v2", "parameters": { "temperature": 0.7 } }));
        assert_eq!(
            goal("latency down 5%").unwrap(),
            json!({ "metric": "latency", "direction": "down", "margin": "5%" })
        );
        assert_eq!(
            guardrail("cost_per_call max 0.02 USD").unwrap(),
            json!({ "metric": "cost_per_call", "max": "0.02 USD" })
        );
        for wrong in ["warm", "=3", "warm=x", "warm=1,colour=red", "warm=1,prompt"] {
            assert!(variant(wrong).is_err(), "{wrong}");
        }
        assert!(goal("resolved sideways").is_err());
        assert!(guardrail("error_rate 5%").is_err());
    }
}
