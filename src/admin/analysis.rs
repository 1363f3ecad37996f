//! What experiments decided, how versions compare, and how many units an experiment takes.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use axum::{
    Json,
    extract::State,
    response::{IntoResponse, Response},
};
use http::{StatusCode, header};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::json;
use utoipa::{IntoParams, ToSchema};

use super::{
    Admin, calls,
    extract::{Path, Query},
    openapi::{Api, routes},
    problem::Problem,
};
use crate::{
    analysis::{
        Analyst, Course, Findings,
        figures::{Counted, Trouble},
        versions,
    },
    policy::{
        experiment::{Experiment, Unit},
        stats::{
            Language, Moments, analyse,
            power::{self, Baseline, Question},
            report::{ArmReport, MetricReport, Verdict},
            srm::RatioCheck,
            verdict::Direction,
        },
    },
    registry::Kind,
    store::{
        ports::StoreError,
        records::{evaluations::Evaluation, figures::ArmFigures, ports::CallLog},
    },
};

/// How long a client waits for a count at most.
const PATIENCE: Duration = Duration::from_secs(20);
/// Versions that are compared at most.
const VERSIONS_MAX: usize = 10;
/// Evaluations that are looked through for a version's: the latest.
const EVALUATIONS_MAX: usize = 1000;
/// Reports of evaluations that are shown: those of the latest.
const REPORTS_MAX: usize = 20;

pub(super) fn router() -> Api {
    Api::default()
        .routes(routes!(report))
        .routes(routes!(export))
        .routes(routes!(compare_models))
        .routes(routes!(compare_prompts))
        .routes(routes!(plan))
}

/// In which words.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
struct Words {
    /// The language of sentences: `en` or `de`; English unless given.
    lang: Option<String>,
}

/// In which form.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
struct Form {
    /// `csv` or `jsonl`; CSV unless given.
    format: Option<String>,
}

/// What is compared.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
struct Versions {
    /// Two versions or more, such as `v1,v2`: the others are compared with the first.
    versions: String,
    /// Only calls received then or later: `2026-11-23T18:00:00Z`, or so long ago: `30m`, `2h`, `7d`.
    since: Option<String>,
}

/// What to plan for.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
struct PlanFor {
    /// The share in the control, with one yes or no per unit: 0.3 for 30 %.
    baseline: Option<f64>,
    /// Instead of `baseline`, for other metrics: the standard deviation over units.
    deviation: Option<f64>,
    /// The smallest difference worth finding, in the metric's unit: 0.03 for 3 points.
    effect: f64,
    /// Variants, the control included; 2 unless given.
    variants: Option<u32>,
    /// New units a day, over all variants.
    per_day: Option<f64>,
    /// Probability that such a difference is found; 0.8 unless given.
    power: Option<f64>,
    /// Probability of a false verdict; 0.05 unless given.
    alpha: Option<f64>,
}

/// What is known of an experiment.
#[derive(Debug, Serialize, ToSchema)]
struct ExperimentReport {
    /// The experiment.
    experiment: String,
    /// What is assigned: `user`, `key`, `session` or `header NAME`.
    unit: String,
    /// What is decided.
    goal: Option<GoalInfo>,
    /// The decision: its `kind` (`void`, `no_goal`, `stopped`, `better`, `worse`, `equal`, `keep_running`), the `arm` that it is
    /// about, the `effect` on the goal's metric, and the `sentence`.
    #[schema(value_type = Object)]
    verdict: Verdict,
    /// Whether the split can be believed: `split` (`sound`, `suspicious`, `broken`), `p_value`, and shares by variant.
    #[schema(value_type = Object)]
    split: RatioCheck,
    /// The split in words.
    split_sentence: String,
    /// Units over all variants.
    units: u64,
    /// By variant: its metrics with intervals, each alone and against the control, its guardrails and its verdict.
    #[schema(value_type = Vec<Object>)]
    arms: Vec<ArmReport>,
    /// By variant: what else was counted.
    counts: BTreeMap<String, ArmCounts>,
    /// Seconds since it was counted.
    age_s: f64,
}

/// What an experiment should change.
#[derive(Debug, Serialize, ToSchema)]
struct GoalInfo {
    /// The metric.
    metric: String,
    /// `up` or `down`: which way is better.
    #[schema(value_type = String)]
    direction: Direction,
    /// Differences up to this do not matter; absent: the usual ones.
    margin: Option<f64>,
}

/// What was counted of an arm.
#[derive(Debug, Serialize, ToSchema)]
struct ArmCounts {
    /// Calls of its units.
    calls: u64,
    /// Units that were seen in another arm too.
    crossed: u64,
    /// New units by day.
    new_units: Vec<DayUnits>,
    /// By metric of feedback whose values are words: the most frequent ones and how often.
    words: BTreeMap<String, Vec<WordCount>>,
}

/// New units of a day.
#[derive(Debug, Serialize, ToSchema)]
struct DayUnits {
    /// The day (UTC).
    day: String,
    /// Units that were seen for the first time.
    units: u64,
}

/// How often a word was said.
#[derive(Debug, Serialize, ToSchema)]
struct WordCount {
    /// The word.
    word: String,
    /// How often.
    count: u64,
}

/// Versions side by side.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Comparison {
    /// The model or prompt.
    name: String,
    /// The versions, as asked for; the first is what the others are compared with.
    pub(super) versions: Vec<VersionReport>,
    /// What evaluations said of them, the latest first.
    pub(super) evaluations: Vec<EvaluationScores>,
    /// Seconds since calls were counted.
    pub(super) age_s: f64,
}

/// What a version did.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct VersionReport {
    /// The version.
    pub(super) version: String,
    /// Its users.
    pub(super) users: u64,
    /// Their calls.
    pub(super) calls: u64,
    /// By metric: `value`, the `estimate` with its interval, and the `difference` from the first version's, also `relative`.
    #[schema(value_type = BTreeMap<String, Object>)]
    pub(super) metrics: BTreeMap<String, MetricReport>,
    /// By metric of feedback whose values are words: the most frequent ones and how often.
    words: BTreeMap<String, Vec<WordCount>>,
}

/// What an evaluation said of a version.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct EvaluationScores {
    /// The version.
    pub(super) version: String,
    /// The suite.
    pub(super) suite: String,
    /// What was evaluated.
    pub(super) candidate: String,
    /// The evaluation's id.
    pub(super) evaluation: String,
    /// When it ended.
    pub(super) at: String,
    /// Its scores.
    pub(super) scores: Vec<ScoreInfo>,
}

/// One score of an evaluation.
#[derive(Debug, Deserialize, Serialize, ToSchema)]
pub(super) struct ScoreInfo {
    /// What was scored.
    pub(super) scorer: String,
    /// The mean over cases, with its interval.
    #[schema(value_type = Option<Object>)]
    pub(super) mean: Option<serde_json::Value>,
    /// Cases.
    pub(super) cases: u64,
    /// Of them passed, where something was asked for.
    pub(super) passed: Option<u64>,
}

/// How many units an experiment takes.
#[derive(Debug, Serialize, ToSchema)]
struct PlanInfo {
    /// Units per variant until such a difference is found with the asked probability. Often it is earlier.
    units_per_variant: u64,
    /// Over all variants.
    units: u64,
    /// What a test would need that may be looked at once, at the end.
    fixed_units_per_variant: u64,
    /// Days until then, where the pace is known.
    days: Option<f64>,
}

/// What an experiment decided
///
/// The verdict first, with its sentence; then everything that it rests on. May be looked at as often as you like.
#[utoipa::path(get, path = "/api/experiments/{name}/report", tag = "experiments", operation_id = "experiment_report",
    params(("name" = String, Path, description = "The experiment's name"), Words),
    responses((status = OK, body = ExperimentReport), (status = NOT_FOUND, body = Problem),
        (status = SERVICE_UNAVAILABLE, body = Problem)))]
async fn report(
    State(admin): State<Admin>,
    Path(name): Path<String>,
    Query(words): Query<Words>,
) -> Result<Json<ExperimentReport>, Problem> {
    let language = words.language()?;
    let (experiment, course) = found(&admin, &name)?;
    let findings = analyst(&admin)?.findings(&experiment, &course, language, PATIENCE).await?;
    Ok(Json(ExperimentReport::of(&experiment, findings)))
}

/// The sums that an experiment's report rests on
///
/// Rows of `row` `metric` are sums over the units of a variant, those of `day` how many units were new. No row is about one unit.
#[utoipa::path(get, path = "/api/experiments/{name}/export", tag = "experiments", operation_id = "export_experiment",
    params(("name" = String, Path, description = "The experiment's name"), Form),
    responses((status = OK, body = String, content_type = "text/csv"), (status = NOT_FOUND, body = Problem),
        (status = SERVICE_UNAVAILABLE, body = Problem)))]
async fn export(
    State(admin): State<Admin>,
    Path(name): Path<String>,
    Query(form): Query<Form>,
) -> Result<Response, Problem> {
    let (media_type, as_lines) = match form.format.as_deref() {
        None | Some("csv") => ("text/csv; charset=utf-8", false),
        Some("jsonl") => ("application/x-ndjson", true),
        Some(_) => return Err(calls::wrong("`format` is csv or jsonl".to_owned())),
    };
    let (experiment, course) = found(&admin, &name)?;
    let findings = analyst(&admin)?.findings(&experiment, &course, Language::English, PATIENCE).await?;
    let text = if as_lines { json_lines(&findings.counted.arms) } else { csv(&findings.counted.arms) };
    Ok(([(header::CONTENT_TYPE, media_type)], text).into_response())
}

/// Versions of a model side by side
///
/// Cost, latency, errors, tokens and feedback with their intervals, and what evaluations said. Who got which version was not
/// left to chance, unless a roll-out or an experiment did: a difference may have other reasons.
#[utoipa::path(get, path = "/api/models/{name}/compare", tag = "models", operation_id = "compare_model_versions",
    params(("name" = String, Path, description = "The alias"), Versions),
    responses((status = OK, body = Comparison), (status = NOT_FOUND, body = Problem),
        (status = SERVICE_UNAVAILABLE, body = Problem)))]
async fn compare_models(
    State(admin): State<Admin>,
    Path(name): Path<String>,
    Query(versions): Query<Versions>,
) -> Result<Json<Comparison>, Problem> {
    let since_ms = versions.since_ms()?;
    let found = compared(&admin, Kind::Models, &name, &versions.names()?, since_ms, PATIENCE).await?;
    found.map(Json).ok_or_else(|| Trouble::Counting.into())
}

/// Versions of a prompt side by side
///
/// As of a model's versions.
#[utoipa::path(get, path = "/api/prompts/{name}/compare", tag = "models", operation_id = "compare_prompt_versions",
    params(("name" = String, Path, description = "The prompt's name"), Versions),
    responses((status = OK, body = Comparison), (status = NOT_FOUND, body = Problem),
        (status = SERVICE_UNAVAILABLE, body = Problem)))]
async fn compare_prompts(
    State(admin): State<Admin>,
    Path(name): Path<String>,
    Query(versions): Query<Versions>,
) -> Result<Json<Comparison>, Problem> {
    let since_ms = versions.since_ms()?;
    let found = compared(&admin, Kind::Prompts, &name, &versions.names()?, since_ms, PATIENCE).await?;
    found.map(Json).ok_or_else(|| Trouble::Counting.into())
}

/// How many units an experiment takes
#[utoipa::path(get, path = "/api/power", tag = "experiments", operation_id = "plan_experiment", params(PlanFor),
    responses((status = OK, body = PlanInfo)))]
async fn plan(Query(asked): Query<PlanFor>) -> Result<Json<PlanInfo>, Problem> {
    let baseline = match (asked.baseline, asked.deviation) {
        (Some(share), None) => Baseline::Share(share),
        (None, Some(deviation)) => Baseline::Deviation(deviation),
        _ => return Err(calls::wrong("give either `baseline`, a share, or `deviation`".to_owned())),
    };
    let question = Question {
        baseline,
        effect: asked.effect,
        alpha: asked.alpha.unwrap_or(crate::analysis::ALPHA),
        power: asked.power.unwrap_or(0.8),
        variants: asked.variants.unwrap_or(2),
        units_per_day: asked.per_day,
    };
    let plan = power::plan(&question).ok_or_else(|| {
        let why =
            "no number of units answers that: `effect` must not be 0 nor lead out of 0 to 1, `variants` is 2 or more";
        calls::wrong(why.to_owned())
    })?;
    Ok(Json(PlanInfo {
        units_per_variant: plan.units_per_variant,
        units: plan.units,
        fixed_units_per_variant: plan.fixed_units_per_variant,
        days: plan.days,
    }))
}

// === what the dashboard asks, too ===

/// Who answers what experiments did.
pub(super) fn analyst(admin: &Admin) -> Result<&Analyst, Problem> {
    admin.analyst.as_ref().ok_or_else(|| Problem::not_found("no calls are kept: `records: none`"))
}

/// Versions of a model or prompt side by side; `None` while their calls are counted for the first time.
pub(super) async fn compared(
    admin: &Admin,
    kind: Kind,
    name: &str,
    names: &[String],
    since_ms: Option<u64>,
    patience: Duration,
) -> Result<Option<Comparison>, Problem> {
    known(admin, kind, name, names)?;
    let counted = match analyst(admin)?.counted(versions::query(kind, name, names, since_ms), patience).await {
        Ok(counted) => counted,
        Err(Trouble::Counting) => return Ok(None),
        Err(trouble) => return Err(trouble.into()),
    };
    let log = calls::log(admin)?;
    let evaluations = evaluations(&*log, name, names).await?;
    Ok(Some(Comparison::of(name, names, &counted, evaluations)))
}

/// An experiment and when it ran.
pub(super) fn found(admin: &Admin, name: &str) -> Result<(Arc<Experiment>, Course), Problem> {
    let snapshot = admin.shared.live.load_full();
    let experiment = snapshot.experiments.get(name).cloned();
    let experiment = experiment.ok_or_else(|| Problem::not_found(format!("no experiment is named `{name}`")))?;
    let course = snapshot.registry.book.experiments.get(name).map(Course::of).unwrap_or_default();
    Ok((experiment, course))
}

/// Refuses what there is not.
fn known(admin: &Admin, kind: Kind, name: &str, names: &[String]) -> Result<(), Problem> {
    let snapshot = admin.shared.live.load_full();
    let (word, there): (_, Option<BTreeSet<&str>>) = match kind {
        Kind::Models => {
            ("model", snapshot.models.get(name).map(|model| model.versions.keys().map(|version| &**version).collect()))
        }
        Kind::Prompts => (
            "prompt",
            snapshot.prompts.get(name).map(|prompt| prompt.versions.keys().map(|version| &**version).collect()),
        ),
    };
    let there = there.ok_or_else(|| Problem::not_found(format!("no {word} is named `{name}`")))?;
    match names.iter().find(|version| !there.contains(version.as_str())) {
        None => Ok(()),
        Some(unknown) => {
            let all = there.into_iter().collect::<Vec<_>>().join(", ");
            Err(Problem::not_found(format!("the {word} `{name}` has no version `{unknown}`; there are {all}")))
        }
    }
}

/// The latest evaluation of each suite and candidate that names one of the versions.
async fn evaluations(log: &dyn CallLog, name: &str, versions: &[String]) -> Result<Vec<EvaluationScores>, StoreError> {
    let page = log.evaluations(None, None, EVALUATIONS_MAX).await?;
    let mut seen = BTreeSet::new();
    let mut all = Vec::new();
    for head in page.rows {
        let is_of = |version: &&String| names_version(&head.candidate, &format!("{name}@{version}"));
        let Some(version) = versions.iter().find(is_of) else { continue };
        if all.len() == REPORTS_MAX || !seen.insert((head.suite.clone(), head.candidate.clone())) {
            continue;
        }
        let Some(evaluation) = log.evaluation(head.id).await? else { continue };
        all.extend(EvaluationScores::of(version, &evaluation));
    }
    Ok(all)
}

/// Whether a candidate such as `support@v2` or `support@v2 + chatbot@v1` names `wanted`.
fn names_version(candidate: &str, wanted: &str) -> bool {
    let is_part = |c: char| !(c.is_alphanumeric() || "@-_./:".contains(c));
    candidate.split(is_part).any(|word| word == wanted)
}

fn csv(arms: &[ArmFigures]) -> String {
    let mut text = "row,variant,metric,units,sum_x,sum_n,sum_xx,sum_nn,sum_xn,day\n".to_owned();
    for ArmFigures { arm, metrics, new_units, .. } in arms {
        // Names have nothing in them that CSV would set in quotes: configuration and feedback take letters, digits and a few signs.
        for (metric, Moments { units, sum_x, sum_n, sum_xx, sum_nn, sum_xn }) in metrics {
            text += &format!("metric,{arm},{metric},{units},{sum_x},{sum_n},{sum_xx},{sum_nn},{sum_xn},\n");
        }
        for (day_ms, units) in new_units {
            text += &format!("day,{arm},,{units},,,,,,{}\n", day(*day_ms));
        }
    }
    text
}

fn json_lines(arms: &[ArmFigures]) -> String {
    let rows = arms.iter().flat_map(|ArmFigures { arm, metrics, new_units, .. }| {
        let metrics = metrics.iter().map(move |(metric, moments)| {
            let Moments { units, sum_x, sum_n, sum_xx, sum_nn, sum_xn } = moments;
            json!({"row": "metric", "variant": arm, "metric": metric, "units": units, "sum_x": sum_x, "sum_n": sum_n,
                "sum_xx": sum_xx, "sum_nn": sum_nn, "sum_xn": sum_xn})
        });
        let days = new_units.iter();
        let days =
            days.map(move |(at_ms, units)| json!({"row": "day", "variant": arm, "day": day(*at_ms), "units": units}));
        metrics.chain(days)
    });
    rows.map(|row| format!("{row}\n")).collect()
}

/// `2026-11-24`, in UTC.
fn day(at_ms: u64) -> String {
    let at = i64::try_from(at_ms).ok().and_then(|ms| Timestamp::from_millisecond(ms).ok()).unwrap_or_default();
    at.strftime("%Y-%m-%d").to_string()
}

fn word_counts(version: &str, arms: &[ArmFigures]) -> BTreeMap<String, Vec<WordCount>> {
    let words = versions::words(version, arms).into_iter();
    let count = |(word, count): (&str, u64)| WordCount { word: word.to_owned(), count };
    words.map(|(metric, words)| (metric.to_owned(), words.into_iter().map(count).collect())).collect()
}

impl From<Trouble> for Problem {
    fn from(trouble: Trouble) -> Problem {
        Problem::new(StatusCode::SERVICE_UNAVAILABLE, trouble.to_string())
    }
}

impl Words {
    fn language(&self) -> Result<Language, Problem> {
        match self.lang.as_deref() {
            None | Some("en") => Ok(Language::English),
            Some("de") => Ok(Language::German),
            Some(_) => Err(calls::wrong("`lang` is en or de".to_owned())),
        }
    }
}

impl Versions {
    fn names(&self) -> Result<Vec<String>, Problem> {
        let mut names: Vec<String> = Vec::new();
        for name in self.versions.split(',').map(str::trim).filter(|name| !name.is_empty()) {
            if !names.iter().any(|known| known == name) {
                names.push(name.to_owned());
            }
        }
        match names.len() {
            2..=VERSIONS_MAX => Ok(names),
            _ => Err(calls::wrong(format!("`versions` names 2 to {VERSIONS_MAX} versions, such as v1,v2"))),
        }
    }

    fn since_ms(&self) -> Result<Option<u64>, Problem> {
        self.since.as_deref().map(|text| calls::moment("since", text, Timestamp::now())).transpose()
    }
}

impl ExperimentReport {
    fn of(experiment: &Experiment, Findings { report, counted }: Findings) -> ExperimentReport {
        let unit = match &experiment.unit {
            Unit::User => "user".to_owned(),
            Unit::Key => "key".to_owned(),
            Unit::Session => "session".to_owned(),
            Unit::Header(name) => format!("header {name}"),
        };
        let goal = experiment.goal.as_ref();
        let counts = counted.arms.iter().map(|arm| (arm.arm.to_string(), ArmCounts::of(arm, &counted.arms)));
        ExperimentReport {
            experiment: experiment.name.to_string(),
            unit,
            goal: goal.map(|goal| GoalInfo {
                metric: goal.metric.clone(),
                direction: goal.direction,
                margin: goal.margin,
            }),
            verdict: report.verdict,
            split: report.split,
            split_sentence: report.split_sentence,
            units: report.units,
            arms: report.arms,
            counts: counts.collect(),
            age_s: counted.age().as_secs_f64(),
        }
    }
}

impl ArmCounts {
    fn of(arm: &ArmFigures, all: &[ArmFigures]) -> ArmCounts {
        let days = arm.new_units.iter().map(|&(at_ms, units)| DayUnits { day: day(at_ms), units });
        ArmCounts {
            calls: arm.calls,
            crossed: arm.crossed,
            new_units: days.collect(),
            words: word_counts(&arm.arm, all),
        }
    }
}

impl Comparison {
    fn of(name: &str, names: &[String], counted: &Counted, evaluations: Vec<EvaluationScores>) -> Comparison {
        let report = analyse(&versions::study_of(names, &counted.arms, Vec::new()), Language::English);
        let calls = |version: &str| {
            let found = counted.arms.iter().find(|figures| &*figures.arm == version);
            found.map_or(0, |figures| figures.calls)
        };
        let version = |arm: ArmReport| VersionReport {
            users: arm.units,
            calls: calls(&arm.name),
            words: word_counts(&arm.name, &counted.arms),
            metrics: arm.metrics,
            version: arm.name,
        };
        Comparison {
            name: name.to_owned(),
            versions: report.arms.into_iter().map(version).collect(),
            evaluations,
            age_s: counted.age().as_secs_f64(),
        }
    }
}

impl EvaluationScores {
    /// Nothing where the report has no figures of its candidate: another release may have written it.
    fn of(version: &str, evaluation: &Evaluation) -> Option<EvaluationScores> {
        #[derive(Deserialize)]
        struct Scored {
            candidates: Vec<Candidate>,
        }
        #[derive(Deserialize)]
        struct Candidate {
            name: String,
            scores: Vec<ScoreInfo>,
        }
        let head = &evaluation.head;
        let scored: Scored = serde_json::from_str(&evaluation.report).ok()?;
        let candidate = scored.candidates.into_iter().find(|candidate| candidate.name == *head.candidate)?;
        let at = i64::try_from(head.created_ms).ok().and_then(|ms| Timestamp::from_millisecond(ms).ok())?;
        Some(EvaluationScores {
            version: version.to_owned(),
            suite: head.suite.to_string(),
            candidate: head.candidate.to_string(),
            evaluation: head.id.to_string(),
            at: at.to_string(),
            scores: candidate.scores,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_candidate_names_its_versions_and_no_others() {
        for (candidate, named) in [
            ("support@v2", true),
            ("support@v2 + chatbot@v1", true),
            ("support@v20", false),
            ("other-support@v2", false),
            ("v2", false),
        ] {
            assert_eq!(names_version(candidate, "support@v2"), named, "{candidate}");
        }
    }

    #[test]
    fn an_export_is_sums_and_days() {
        let moments = Moments { units: 2, sum_x: 1.0, sum_n: 2.0, sum_xx: 1.0, sum_nn: 2.0, sum_xn: 1.0 };
        let arm = ArmFigures {
            arm: "warm".into(),
            units: 2,
            metrics: BTreeMap::from([("resolved".into(), moments)]),
            new_units: vec![(1_793_491_200_000, 2)],
            ..ArmFigures::default()
        };
        let text = csv(std::slice::from_ref(&arm));
        let rows = "metric,warm,resolved,2,1,2,1,2,1,\nday,warm,,2,,,,,,2026-11-01\n";
        assert_eq!(
            text.split_once('\n'),
            Some(("row,variant,metric,units,sum_x,sum_n,sum_xx,sum_nn,sum_xn,day", rows))
        );
        assert_eq!(json_lines(&[arm]).lines().count(), 2);
    }
}
