//! `tollgate experiments report`, `power` and `export`, and `compare` of models and prompts: what was decided, and on which figures.

use std::io::Write;

use anyhow::anyhow;
use clap::{Args, Subcommand, ValueEnum};
use serde_json::{Value, json};

use super::{
    FAILED,
    api::{self, Failure, Gateway, encoded, table, text},
    registry::Options,
};
use crate::{
    analysis::ALPHA,
    policy::stats::power::{self, Baseline, Question},
    registry::Kind,
};

/// What to ask of an experiment's figures.
#[derive(Debug, Subcommand)]
pub(super) enum AnalysisCommand {
    /// Say what it decided, and on which figures
    Report(ReportArguments),
    /// Compute how many users an experiment takes; asks no gateway
    Power(PowerArguments),
    /// Write the sums that its report rests on; nothing of them is about one user
    Export {
        /// Its name
        name: String,
        /// In which form
        #[arg(long, value_enum, default_value = "csv")]
        format: Form,
    },
}

/// Which report.
#[derive(Debug, Args)]
pub(super) struct ReportArguments {
    /// The experiment's name
    name: String,
    /// The language of the sentences: en or de
    #[arg(long, value_name = "LANGUAGE", default_value = "en")]
    lang: String,
    /// Exit with 1 unless it is decided that a variant is better
    #[arg(long)]
    gate: bool,
}

/// What to plan for.
#[derive(Debug, Args)]
pub(super) struct PowerArguments {
    /// The share in the control: 30% or 0.3
    #[arg(long, value_name = "SHARE", value_parser = share)]
    baseline: f64,
    /// The smallest difference worth finding: 3pt or 0.03
    #[arg(long, value_name = "POINTS", value_parser = share, allow_hyphen_values = true)]
    effect: f64,
    /// Variants, the control included
    #[arg(long, default_value_t = 2)]
    variants: u32,
    /// New users a day, over all variants
    #[arg(long, value_name = "USERS")]
    per_day: Option<f64>,
}

/// Which versions to compare.
#[derive(Debug, Args)]
pub(super) struct CompareArguments {
    /// The model's or prompt's name
    name: String,
    /// Two versions or more; the others are compared with the first
    #[arg(value_name = "VERSION", num_args = 2.., required = true)]
    versions: Vec<String>,
    /// Only calls received then or later: 2027-01-31T08:00:00Z, or 7d ago
    #[arg(long, value_name = "TIME")]
    since: Option<String>,
}

/// The form of an export.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub(super) enum Form {
    /// Comma-separated
    Csv,
    /// One JSON object a line
    Jsonl,
}

/// `30%`, `3pt`, `3 points` or `0.3`.
fn share(text: &str) -> Result<f64, String> {
    let text = text.trim();
    let percent = ["%", "points", "point", "pt"].iter().find_map(|unit| text.strip_suffix(unit));
    let (number, scale) = percent.map_or((text, 1.0), |number| (number.trim(), 100.0));
    let number: Option<f64> = number.parse().ok().filter(|number: &f64| number.is_finite());
    number.map(|number| number / scale).ok_or_else(|| "write it as 30%, 3pt or 0.3".to_owned())
}

/// How many users it takes.
///
/// # Errors
/// When no number of users answers that.
fn plan(asked: &PowerArguments, as_json: bool, out: &mut impl Write) -> Result<(), Failure> {
    let question = Question {
        baseline: Baseline::Share(asked.baseline),
        effect: asked.effect,
        alpha: ALPHA,
        power: 0.8,
        variants: asked.variants,
        units_per_day: asked.per_day,
    };
    let plan = power::plan(&question)
        .ok_or_else(|| anyhow!("no number of users answers that: the shares must stay between 0 and 1 and differ, and there are 2 variants or more"))?;
    if as_json {
        return api::print(out, &format!("{}\n", json!(plan)));
    }
    let days = plan.days.map_or_else(String::new, |days| format!(", {} days", days.ceil()));
    let said = format!(
        "{} users per variant, {} in all{days}: by then {:+.1} points on {:.1}% are found with a probability of 80%, looked at as often as you like.\n\
         A test that is looked at once, at the end, would need {} per variant.\n",
        plan.units_per_variant,
        plan.units,
        asked.effect * 100.0,
        asked.baseline * 100.0,
        plan.fixed_units_per_variant,
    );
    api::print(out, &said)
}

/// Runs a command on the figures of an experiment.
///
/// # Errors
/// When nobody answers, the answer is no, or a gate is not passed.
pub(super) async fn run(options: &Options, command: &AnalysisCommand, out: &mut impl Write) -> Result<(), Failure> {
    let (gateway, as_json) = (|| options.connection.gateway(), options.json);
    match command {
        AnalysisCommand::Power(asked) => plan(asked, as_json, out),
        AnalysisCommand::Export { name, format } => {
            let form = match format {
                Form::Csv => "csv",
                Form::Jsonl => "jsonl",
            };
            let path = format!("/api/experiments/{}/export?format={form}", encoded(name));
            api::print(out, &gateway()?.get_text(&path).await?)
        }
        AnalysisCommand::Report(asked) => {
            let path = format!("/api/experiments/{}/report?lang={}", encoded(&asked.name), encoded(&asked.lang));
            let (answer, _) = gateway()?.get(&path).await?;
            match as_json {
                true => api::print(out, &format!("{answer}\n"))?,
                false => api::print(out, &report(&answer))?,
            }
            match answer["verdict"]["kind"].as_str() {
                Some("better") => Ok(()),
                _ if !asked.gate => Ok(()),
                _ => Err(Failure { error: anyhow!("not decided to be better"), code: FAILED }),
            }
        }
    }
}

/// Compares versions.
///
/// # Errors
/// When nobody answers, or the answer is no.
pub(super) async fn compare(gateway: &Gateway, kind: Kind, asked: &CompareArguments) -> Result<Value, Failure> {
    let CompareArguments { name, versions, since } = asked;
    let mut path =
        format!("/api/{}/{}/compare?versions={}", kind.section(), encoded(name), encoded(&versions.join(",")));
    if let Some(since) = since {
        path += &format!("&since={}", encoded(since));
    }
    gateway.get(&path).await.map(|(answer, _)| answer)
}

// === in words ===

fn rows(value: &Value) -> &[Value] {
    value.as_array().map(Vec::as_slice).unwrap_or_default()
}

fn report(answer: &Value) -> String {
    let mut said = format!("{}\n", text(&answer["verdict"]["sentence"]));
    let split = text(&answer["split_sentence"]);
    if !split.is_empty() && split != "-" {
        said += &format!("{split}\n");
    }
    for arm in rows(&answer["arms"]) {
        for guardrail in rows(&arm["guardrails"]) {
            said += &format!("{}: {}\n", text(&arm["name"]), text(&guardrail["sentence"]));
        }
    }
    said.push('\n');
    let arms: Vec<(String, &Value)> = rows(&answer["arms"])
        .iter()
        .map(|arm| (format!("{} ({} {}s)", text(&arm["name"]), arm["units"], unit(answer)), &arm["metrics"]))
        .collect();
    said + &figures("VARIANT", &arms)
}

fn unit(answer: &Value) -> String {
    let unit = text(&answer["unit"]);
    unit.split(' ').next().unwrap_or_default().to_owned()
}

/// A comparison of versions as a table, and what evaluations said.
pub(super) fn comparison(answer: &Value) -> String {
    let arms: Vec<(String, &Value)> = rows(&answer["versions"])
        .iter()
        .map(|version| {
            let (users, calls) = (&version["users"], &version["calls"]);
            (format!("{} ({users} users, {calls} calls)", text(&version["version"])), &version["metrics"])
        })
        .collect();
    let mut said = figures("VERSION", &arms);
    let scores: Vec<Vec<String>> = rows(&answer["evaluations"])
        .iter()
        .flat_map(|evaluation| {
            rows(&evaluation["scores"]).iter().map(move |score| {
                let mean = Some(&score["mean"]).filter(|mean| mean.is_object());
                vec![
                    text(&evaluation["version"]),
                    text(&evaluation["suite"]),
                    text(&score["scorer"]),
                    mean.map_or_else(|| "-".to_owned(), |mean| interval(mean, "score", false)),
                    score["cases"].to_string(),
                    text(&evaluation["at"]),
                ]
            })
        })
        .collect();
    if !scores.is_empty() {
        said.push('\n');
        said += &table(&["VERSION", "SUITE", "SCORER", "MEAN", "CASES", "AT"], scores);
    }
    said
}

/// One row for each metric of each arm that has a value.
fn figures(header: &str, arms: &[(String, &Value)]) -> String {
    let mut lines = Vec::new();
    for (name, metrics) in arms {
        let metrics = metrics.as_object().into_iter().flatten().filter(|(_, metric)| metric["value"].is_number());
        for (metric, found) in metrics {
            let is_share = found["kind"] == "share";
            let value = match found["estimate"].is_object() {
                true => interval(&found["estimate"], metric, is_share),
                false => number(&found["value"], metric, is_share),
            };
            let difference = match found["difference"].is_object() {
                true => difference(found, metric, is_share),
                false => "-".to_owned(),
            };
            lines.push(vec![metric.clone(), name.clone(), value, difference]);
        }
    }
    // The same metric of all arms stands together; within it, the arms stay in their order.
    lines.sort_by(|one, other| one[0].cmp(&other[0]));
    table(&["METRIC", header, "VALUE", "DIFFERENCE"], lines)
}

/// `45.0% (41.2% to 48.8%)`.
fn interval(estimate: &Value, metric: &str, is_share: bool) -> String {
    let said = |at: &str| number(&estimate[at], metric, is_share);
    format!("{} ({} to {})", said("value"), said("low"), said("high"))
}

fn difference(found: &Value, metric: &str, is_share: bool) -> String {
    if is_share {
        let points = |at: &str| format!("{:+.1}", found["difference"][at].as_f64().unwrap_or_default() * 100.0);
        return format!("{} points ({} to {})", points("value"), points("low"), points("high"));
    }
    if found["relative"].is_object() {
        let percent = |at: &str| format!("{:+.1}%", found["relative"][at].as_f64().unwrap_or_default() * 100.0);
        return format!("{} ({} to {})", percent("value"), percent("low"), percent("high"));
    }
    interval(&found["difference"], metric, false)
}

/// A number in its metric's unit.
fn number(value: &Value, metric: &str, is_share: bool) -> String {
    let Some(value) = value.as_f64() else { return "-".to_owned() };
    match metric {
        _ if is_share => format!("{:.1}%", value * 100.0),
        metric if metric.starts_with("cost_per_") => format!("{} USD", significant(value)),
        "latency" | "time_to_first_token" => format!("{} s", significant(value)),
        _ => significant(value),
    }
}

/// Four digits that say something.
fn significant(value: f64) -> String {
    if value == 0.0 {
        return "0".to_owned();
    }
    let magnitude = value.abs().log10().floor();
    let decimals = (3.0 - magnitude).clamp(0.0, 12.0) as usize;
    format!("{value:.decimals$}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_and_points_are_read_as_people_write_them() {
        for (typed, read) in [("30%", 0.3), ("3pt", 0.03), ("3 points", 0.03), ("0.25", 0.25), ("-2pt", -0.02)] {
            assert_eq!(share(typed), Ok(read), "{typed}");
        }
        assert!(share("many").is_err() && share("inf").is_err());
    }

    #[test]
    fn a_report_begins_with_its_verdict() {
        let metric = json!({"kind": "share", "value": 0.5, "estimate": {"value": 0.5, "low": 0.4, "high": 0.6},
            "difference": {"value": 0.1, "low": 0.02, "high": 0.18}, "relative": null});
        let cost = json!({"kind": "amount", "value": 0.001234, "estimate": null, "difference": null, "relative": null});
        let answer = json!({"unit": "user", "verdict": {"kind": "better", "sentence": "warm is better"}, "split_sentence": "",
            "arms": [{"name": "warm", "units": 400, "metrics": {"resolved": metric, "cost_per_call": cost},
                "guardrails": [{"sentence": "error_rate is 1%"}]}]});
        let said = report(&answer);
        let lines: Vec<&str> = said.lines().collect();
        assert_eq!(lines[..2], ["warm is better", "warm: error_rate is 1%"]);
        assert!(lines[4].contains("0.001234 USD") && lines[4].ends_with('-'), "{said}");
        assert!(lines[5].contains("50.0% (40.0% to 60.0%)  +10.0 points (+2.0 to +18.0)"), "{said}");
    }
}
