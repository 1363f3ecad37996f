//! `tollgate prompts`: renders, lints and tests the prompts of a configuration, offline and without any provider.

mod junit;
mod test;

use std::{fmt, io::Write, path::PathBuf};

use anyhow::{Context, anyhow};
use clap::Subcommand;
use jiff::Timestamp;
use serde_json::{Map, Value, json};

use crate::{
    config::{Loaded, prompts::Named, snapshot::Target},
    policy::{
        prompt_lint::{self, Size},
        prompt_preview::{self, Preview},
    },
};

/// The tokenizer that counts where no model is named and none injects the prompt.
const FALLBACK_MODEL: &str = "gpt-4o";

/// What to do with prompts.
#[derive(Debug, Subcommand)]
pub enum PromptsCommand {
    /// Show what a prompt adds to a call, with its tokens and cost
    Render {
        /// The prompt, in its live version or in another
        #[arg(value_name = "NAME[@VERSION]")]
        prompt: String,
        /// A variable; repeatable. Numbers, booleans, lists and objects as JSON
        #[arg(long = "var", value_name = "NAME=VALUE")]
        vars: Vec<String>,
        /// All variables as one JSON object; --var wins
        #[arg(long = "vars", value_name = "JSON")]
        vars_json: Option<String>,
        /// The model that counts and prices: an alias or provider/model; default: the one that injects the prompt
        #[arg(long)]
        model: Option<String>,
        /// One JSON object instead of text
        #[arg(long)]
        json: bool,
    },
    /// Say what is allowed in prompts but probably not meant
    Lint {
        /// One prompt, in all versions or in one; default: all
        #[arg(value_name = "NAME[@VERSION]")]
        prompt: Option<String>,
        /// Exit with 1 when something is found
        #[arg(long)]
        strict: bool,
        /// One JSON array instead of lines
        #[arg(long)]
        json: bool,
    },
    /// Run the tests of prompts; exit 1 when one fails
    Test {
        /// Files with tests; default: prompts/tests/*.yaml beside the configuration
        files: Vec<PathBuf>,
        /// Write the results as JUnit XML, too
        #[arg(long, value_name = "FILE")]
        junit: Option<PathBuf>,
        /// Write the snapshots anew instead of comparing with them
        #[arg(long)]
        bless: bool,
    },
}

/// What went wrong, and whose fault it is.
#[derive(Debug)]
pub enum PromptsError {
    /// A check failed.
    Failed(anyhow::Error),
    /// Wrong use.
    Wrong(anyhow::Error),
}

/// Runs a command on the prompts of a configuration.
///
/// # Errors
/// A check that failed, or wrong use; also when `out` cannot be written.
pub fn run(command: &PromptsCommand, loaded: &Loaded, out: &mut impl Write) -> Result<(), PromptsError> {
    match command {
        PromptsCommand::Render { prompt, vars, vars_json, model, json } => {
            let wanted = Wanted { prompt, vars, vars_json: vars_json.as_deref(), model: model.as_deref() };
            render(&wanted, *json, loaded, out).map_err(PromptsError::Wrong)
        }
        PromptsCommand::Lint { prompt, strict, json } => {
            let found = lint(prompt.as_deref(), *json, loaded, out).map_err(PromptsError::Wrong)?;
            match found {
                found if found > 0 && *strict => Err(PromptsError::Failed(anyhow!("{found} found in prompts"))),
                _ => Ok(()),
            }
        }
        PromptsCommand::Test { files, junit, bless } => {
            let failed = test::run(files, junit.as_deref(), *bless, loaded, out).map_err(PromptsError::Wrong)?;
            if failed == 0 {
                Ok(())
            } else {
                Err(PromptsError::Failed(anyhow!("{failed} of the tests of prompts failed")))
            }
        }
    }
}

/// What to render.
struct Wanted<'a> {
    prompt: &'a str,
    vars: &'a [String],
    vars_json: Option<&'a str>,
    model: Option<&'a str>,
}

fn render(wanted: &Wanted<'_>, as_json: bool, loaded: &Loaded, out: &mut impl Write) -> anyhow::Result<()> {
    let named = loaded.snapshot.find_prompt(wanted.prompt).map_err(anyhow::Error::msg)?;
    let mut variables: Map<String, Value> = match wanted.vars_json {
        Some(text) => serde_json::from_str(text).context("--vars must be a JSON object")?,
        None => Map::new(),
    };
    variables.extend(named.typed_all(wanted.vars.iter().map(String::as_str)).map_err(anyhow::Error::msg)?);
    let target = target_for(loaded, named, wanted.model)?;
    let preview = preview(named, &variables, target.as_ref())?;
    if as_json {
        return Ok(writeln!(out, "{}", as_value(named, target.as_ref(), &preview))?);
    }
    let model = target.as_ref().map_or_else(|| FALLBACK_MODEL.to_owned(), name_of);
    let about = if preview.exact { "" } else { "about " };
    let cost = preview.cost.map_or_else(|| "no price known".to_owned(), |cost| format!("{cost} USD a call"));
    writeln!(out, "{} with {model}: {about}{} tokens, {cost}\n", named.label(), preview.tokens.0)?;
    Ok(write!(out, "{}", Shown(&preview))?)
}

/// The model that counts: the one named, else the first that injects the prompt.
fn target_for(loaded: &Loaded, named: Named<'_>, model: Option<&str>) -> anyhow::Result<Option<Target>> {
    match model {
        Some(model) => Ok(Some(loaded.snapshot.main_target(model).map_err(anyhow::Error::msg)?)),
        None => Ok(loaded.snapshot.uses_of(named).into_iter().next().map(|one| one.target)),
    }
}

fn preview(named: Named<'_>, variables: &Map<String, Value>, target: Option<&Target>) -> anyhow::Result<Preview> {
    let rendered = named.template.render(variables)?;
    let model = target.map_or(FALLBACK_MODEL, |target| &target.model);
    let price = target.and_then(|target| target.price.as_deref());
    Ok(prompt_preview::preview(&rendered, model, price, Timestamp::now()))
}

fn name_of(target: &Target) -> String {
    format!("{}/{}", target.provider.name, target.model)
}

fn as_value(named: Named<'_>, target: Option<&Target>, preview: &Preview) -> Value {
    let messages = preview.messages.iter().map(|one| json!({"role": one.role.name(), "content": &*one.content}));
    json!({
        "prompt": named.prompt.name,
        "version": named.template.version(),
        "model": target.map(name_of),
        "messages": messages.collect::<Vec<_>>(),
        "before_user": preview.before_user,
        "after_user": preview.after_user,
        "tokens": preview.tokens.0,
        "exact": preview.exact,
        "cost_usd": preview.cost.map(|cost| cost.to_string()),
    })
}

/// A preview as text: each part under its name.
struct Shown<'a>(&'a Preview);

impl fmt::Display for Shown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let messages = self.0.messages.iter().map(|one| (one.role.name(), Some(&one.content)));
        let around = [("before_user", self.0.before_user.as_ref()), ("after_user", self.0.after_user.as_ref())];
        for (name, text) in messages.chain(around) {
            let Some(text) = text else { continue };
            writeln!(f, "[{name}]\n{text}\n")?;
        }
        Ok(())
    }
}

/// Prints the findings and how long each prompt is; says how many findings there are.
fn lint(prompt: Option<&str>, as_json: bool, loaded: &Loaded, out: &mut impl Write) -> anyhow::Result<usize> {
    let snapshot = &loaded.snapshot;
    let chosen: Vec<Named<'_>> = match prompt {
        None => snapshot.all_prompts(),
        Some(one) if one.contains('@') => vec![snapshot.find_prompt(one).map_err(anyhow::Error::msg)?],
        Some(name) => {
            snapshot.find_prompt(name).map_err(anyhow::Error::msg)?;
            snapshot.all_prompts().into_iter().filter(|one| *one.prompt.name == *name).collect()
        }
    };
    let mut rows = Vec::new();
    let mut found = 0;
    for named in chosen {
        let findings = named.lint(snapshot);
        found += findings.len();
        let target = snapshot.uses_of(named).into_iter().next().map(|one| one.target);
        let model = target.as_ref().map_or(FALLBACK_MODEL, |target| &target.model);
        let price = target.as_ref().and_then(|target| target.price.as_deref());
        let size = prompt_lint::size(named.template, model, price, Timestamp::now());
        if as_json {
            rows.push(json!({
                "prompt": named.prompt.name,
                "version": named.template.version(),
                "model": target.as_ref().map(name_of),
                "tokens": size.map(|size| size.tokens.0),
                "stable_prefix_tokens": size.and_then(|size| size.stable).map(|stable| stable.0),
                "cost_usd": size.and_then(|size| size.cost).map(|cost| cost.to_string()),
                "findings": findings,
            }));
            continue;
        }
        let size = size.as_ref().map_or_else(|| "size unknown".to_owned(), length);
        writeln!(out, "{}: {size}{}", named.label(), if findings.is_empty() { "; nothing found" } else { "" })?;
        for finding in findings {
            writeln!(out, "  {}: {}", finding.rule, finding.what)?;
        }
    }
    if as_json {
        writeln!(out, "{}", Value::from(rows))?;
    } else if snapshot.all_prompts().is_empty() {
        writeln!(out, "There are no prompts.")?;
    }
    Ok(found)
}

/// `21 tokens, the first 7 the same in every call, 0.00000315 USD a call`.
fn length(size: &Size) -> String {
    let stable = match size.stable {
        Some(stable) if stable == size.tokens => ", the same in every call".to_owned(),
        Some(stable) => format!(", the first {} the same in every call", stable.0),
        None => String::new(),
    };
    let cost = size.cost.map_or_else(String::new, |cost| format!(", {cost} USD a call"));
    format!("{} tokens{stable}{cost}", size.tokens.0)
}
