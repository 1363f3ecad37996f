//! Logs a run to MLflow by its REST API: an MLflow run a candidate, with its parameters, its figures, and the report as an artifact.
//!
//! Source: <https://mlflow.org/docs/latest/rest-api.html>; artifacts go through the server's artifact proxy, where it has one.

use bytes::Bytes;
use http::{HeaderMap, Method, StatusCode};
use jiff::Timestamp;
use serde_json::{Value, json};

use crate::eval::{
    client::{Client, ClientError, Reply},
    report::{CandidateFigures, Report},
    suite::Suite,
};

/// The longest value of a parameter that MLflow takes, in characters.
const PARAMETER_MAX: usize = 6000;

/// Why a run was not logged.
#[derive(Debug, thiserror::Error)]
pub enum MlflowError {
    /// There was no reply.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// The server refused.
    #[error("{0}")]
    Refused(String),
}

/// What was logged.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Logged {
    /// The experiment's id.
    pub experiment: String,
    /// The ids of the runs.
    pub runs: Vec<String>,
    /// Why the report is no artifact of them, where it is none.
    pub without_artifact: Option<String>,
}

/// Logs `report` in the experiment of that name, which is made where it is not there.
///
/// # Errors
/// When the server does not answer or refuses.
pub async fn log(client: &Client, experiment: &str, suite: &Suite, report: &Report) -> Result<Logged, MlflowError> {
    let server = Server { client };
    let experiment = server.experiment(experiment).await?;
    let mut logged = Logged { experiment: experiment.clone(), ..Logged::default() };
    for candidate in &report.candidates {
        let run = server.begin(&experiment, report, candidate).await?;
        let id = run["info"]["run_id"].as_str().unwrap_or_default().to_owned();
        server.figures(&id, suite, report, candidate).await?;
        if let Err(error) = server.artifact(&run, report).await {
            logged.without_artifact = Some(error.to_string());
        }
        let status = if report.ended == "complete" { "FINISHED" } else { "KILLED" };
        let end = json!({"run_id": id, "status": status, "end_time": milliseconds(&report.finished)});
        server.post("runs/update", &end).await?;
        logged.runs.push(id);
    }
    Ok(logged)
}

struct Server<'c> {
    client: &'c Client,
}

impl Server<'_> {
    async fn experiment(&self, name: &str) -> Result<String, MlflowError> {
        let id = |reply: &Value| reply.as_str().unwrap_or_default().to_owned();
        let query: String = name.bytes().map(percent_encoded).collect();
        let path = format!("/api/2.0/mlflow/experiments/get-by-name?experiment_name={query}");
        let found = self.client.once(&Method::GET, &path, &HeaderMap::new(), Bytes::new()).await?;
        if found.status.is_success() {
            return Ok(id(&found.json()["experiment"]["experiment_id"]));
        }
        if found.status != StatusCode::NOT_FOUND {
            return Err(MlflowError::Refused(found.complaint()));
        }
        let made = self.post("experiments/create", &json!({"name": name})).await?;
        Ok(id(&made["experiment_id"]))
    }

    async fn begin(
        &self,
        experiment: &str,
        report: &Report,
        candidate: &CandidateFigures,
    ) -> Result<Value, MlflowError> {
        let tag = |key: &str, value: &str| json!({"key": key, "value": value});
        let begin = json!({
            "experiment_id": experiment,
            "run_name": format!("{} {}", report.suite, candidate.name),
            "start_time": milliseconds(&report.started),
            "tags": [
                tag("tollgate.suite", &report.suite),
                tag("tollgate.candidate", &candidate.name),
                tag("tollgate.fingerprint", &report.fingerprint),
                tag("tollgate.passed", if report.passed { "true" } else { "false" }),
            ],
        });
        Ok(self.post("runs/create", &begin).await?["run"].take())
    }

    async fn figures(
        &self,
        run: &str,
        suite: &Suite,
        report: &Report,
        candidate: &CandidateFigures,
    ) -> Result<(), MlflowError> {
        let at = milliseconds(&report.finished);
        let metrics: Vec<Value> = metrics(report, candidate)
            .into_iter()
            .map(|(key, value)| json!({"key": key, "value": value, "timestamp": at, "step": 0}))
            .collect();
        let mut params = vec![("model".to_owned(), candidate.model.clone())];
        params.extend(candidate.prompt.iter().map(|prompt| ("prompt".to_owned(), prompt.clone())));
        params.push(("cases".to_owned(), report.cases.len().to_string()));
        params.push(("baseline".to_owned(), report.baseline.clone()));
        if let Some(asked) = suite.candidates.iter().find(|asked| asked.name == candidate.name) {
            params
                .extend(asked.parameters.iter().map(|(name, value)| (format!("parameters.{name}"), value.to_string())));
        }
        let cut = |text: String| text.chars().take(PARAMETER_MAX).collect::<String>();
        let params: Vec<Value> =
            params.into_iter().take(100).map(|(key, value)| json!({"key": key, "value": cut(value)})).collect();
        self.post("runs/log-batch", &json!({"run_id": run, "metrics": metrics, "params": params})).await.map(drop)
    }

    /// The report, by the artifact proxy.
    async fn artifact(&self, run: &Value, report: &Report) -> Result<(), MlflowError> {
        let uri = run["info"]["artifact_uri"].as_str().unwrap_or_default();
        let Some(path) = uri.strip_prefix("mlflow-artifacts:") else {
            return Err(MlflowError::Refused(format!("the server keeps artifacts at `{uri}`, not by its own proxy")));
        };
        let path = format!("/api/2.0/mlflow-artifacts/artifacts/{}/report.json", path.trim_matches('/'));
        let body = serde_json::to_vec(report).unwrap_or_default();
        let reply = self.client.once(&Method::PUT, &path, &HeaderMap::new(), body.into()).await?;
        accepted(&reply).map(drop)
    }

    async fn post(&self, what: &str, body: &Value) -> Result<Value, MlflowError> {
        let (_, reply) = self.client.post(&format!("/api/2.0/mlflow/{what}"), &HeaderMap::new(), body).await;
        accepted(&reply?)
    }
}

fn accepted(reply: &Reply) -> Result<Value, MlflowError> {
    if reply.status.is_success() { Ok(reply.json()) } else { Err(MlflowError::Refused(reply.complaint())) }
}

/// What is logged of a candidate.
fn metrics(report: &Report, candidate: &CandidateFigures) -> Vec<(String, f64)> {
    let mut metrics = Vec::new();
    for score in &candidate.scores {
        metrics.extend(score.mean.map(|mean| (score.scorer.clone(), mean.value)));
        let share = score.passed.filter(|_| score.cases > 0).map(|passed| passed as f64 / score.cases as f64);
        metrics.extend(share.map(|share| (format!("{}.pass_rate", score.scorer), share)));
        metrics.extend(
            score.labels.and_then(|labels| labels.kappa).map(|kappa| (format!("{}.kappa", score.scorer), kappa)),
        );
    }
    metrics.extend(candidate.cost_per_call.map(|cost| ("cost_per_call_usd".to_owned(), cost.value)));
    metrics.extend(candidate.latency.map(|latency| ("latency_s".to_owned(), latency.value)));
    metrics.extend(candidate.latency_p95.map(|latency| ("latency_p95_s".to_owned(), latency)));
    let rate = candidate.errors as f64 / candidate.calls.max(1) as f64;
    metrics.push(("error_rate".to_owned(), rate));
    metrics.push(("input_tokens".to_owned(), candidate.input_tokens as f64));
    metrics.push(("output_tokens".to_owned(), candidate.output_tokens as f64));
    let against = report.differences.iter().filter(|difference| difference.candidate == candidate.name);
    metrics.extend(against.map(|found| (format!("{}.against_baseline", found.metric), found.difference.value)));
    metrics
}

fn milliseconds(time: &str) -> i64 {
    time.parse::<Timestamp>().map_or(0, Timestamp::as_millisecond)
}

fn percent_encoded(byte: u8) -> String {
    let plain = byte.is_ascii_alphanumeric() || b"-._~".contains(&byte);
    if plain { char::from(byte).to_string() } else { format!("%{byte:02X}") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::eval::report::tests::report;

    #[test]
    fn figures_of_a_candidate_are_metrics() {
        let report = report();
        let metrics = metrics(&report, &report.candidates[1]);
        let of = |name: &str| metrics.iter().find(|(key, _)| key == name).map(|(_, value)| *value);
        assert!((of("exact").unwrap() - 2.0 / 3.0).abs() < 1e-9);
        assert!((of("exact.against_baseline").unwrap() - 1.0 / 3.0).abs() < 1e-9);
        assert_eq!((of("error_rate"), of("cost_per_call_usd")), (Some(0.0), Some(0.001)));
        assert_eq!(milliseconds(&report.started), 1_795_435_200_000);
    }
}
