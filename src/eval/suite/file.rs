//! What was typed: a suite as serde types, which are also the source of its JSON Schema.
//!
//! Every field may be absent, so that reading goes on after a mistake; what must be given is checked in [`super`].

use std::{borrow::Cow, fmt, marker::PhantomData};

use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::{
    Deserialize, Serialize,
    de::{Deserializer, MapAccess, Visitor},
};
use serde_json::{Map, Value};

use crate::{
    config::forms::{DurationText, Money, SecretText, WordOr},
    eval::scorers::{
        judge::Judge,
        similar::{EditSimilarity, EmbeddingSimilarity, RougeL},
        text::{Contains, Exact, Pattern},
        tools::ToolCalls,
        values::{JsonField, Numeric},
    },
};

/// An evaluation suite of Tollgate. `${NAME}` and `${NAME:-default}` take values from the environment, `$$` is a plain `$`.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
#[schemars(title = "Tollgate evaluation suite")]
pub struct SuiteFile {
    /// Its name.
    pub name: Option<String>,
    /// What is asked.
    pub dataset: DatasetFile,
    /// What answers, by name.
    pub candidates: Ordered<CandidateFile>,
    /// The candidate that the others are compared with. Default: the first one.
    pub baseline: Option<String>,
    /// What is measured of the answers.
    pub scorers: Vec<WordOr<ScorerWord, Box<ScorerFile>>>,
    /// What must hold, such as `exact >= 0.95` or `no worse than baseline by 2 points`.
    pub gates: Vec<String>,
    /// How often each case is asked. Default: 1.
    pub repeat: Option<u32>,
    /// Cases that are asked at the same time. Default: 4.
    pub concurrency: Option<usize>,
    /// Ends the run before it costs more.
    pub max_cost: Option<Money>,
    /// For one call, its retries left out. Default: 120s.
    pub timeout: Option<DurationText>,
    /// Where to ask. Default: the client listener of the configuration.
    pub gateway: GatewayFile,
    /// Where to log the run, beside its own files.
    pub mlflow: Option<MlflowFile>,
}

/// What is asked: one of the three.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct DatasetFile {
    /// Cases in a file, relative to the suite: `.jsonl` or `.csv`.
    pub file: Option<String>,
    /// Cases written here.
    pub cases: Vec<CaseFile>,
    /// Calls from the call log, with the answers that they got.
    pub calls: Option<CallsFile>,
}

/// One case.
#[derive(Debug, Default, Clone, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct CaseFile {
    /// Its name. Default: its number.
    pub id: Option<Value>,
    /// The user's message.
    pub input: Option<String>,
    /// Or whole messages of the chat API.
    pub messages: Vec<Value>,
    /// Variables of the prompt template.
    pub variables: Map<String, Value>,
    /// What is right: a text, several of them, a number, JSON, tool calls.
    pub expected: Option<Value>,
    /// An answer that was given already, for a candidate that is `recorded`.
    pub answer: Option<String>,
    /// What people say of the answer, for the agreement of judges: `true` or `false`, a score from 0 to 1, or `win`, `tie`, `loss`.
    pub label: Option<Value>,
    /// Parameters of the request, such as `tools`; those of a candidate win.
    pub parameters: Map<String, Value>,
    /// Words to group by.
    pub tags: Vec<String>,
}

/// Which recorded calls.
#[derive(Debug, Default, Clone, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct CallsFile {
    /// Of this model, as the log labels it.
    pub model: Option<String>,
    /// Not older than this: `24h`, `7d`.
    pub since: Option<DurationText>,
    /// That ended so. Default: ok.
    pub outcome: Option<String>,
    /// With a tag: `name=value`.
    pub tag: Option<String>,
    /// At most so many, the latest first. Default: 100.
    pub limit: Option<usize>,
}

/// What answers.
#[derive(Debug, Default, Clone, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct CandidateFile {
    /// The model as clients name it: `support`, `support@v2`, `openai/gpt-4.1`.
    pub model: Option<String>,
    /// A prompt of the registry, `chatbot` or `chatbot@v2`, instead of the model's own.
    pub prompt: Option<String>,
    /// Parameters of the request, such as `temperature`.
    pub parameters: Map<String, Value>,
    /// A system message before the messages of each case.
    pub system: Option<String>,
    /// Nobody is asked: the answers are those that stand in the cases, or that the log recorded.
    pub recorded: bool,
}

/// Where to ask.
#[derive(Debug, Default, Clone, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct GatewayFile {
    /// `http://127.0.0.1:8080`
    pub url: Option<String>,
    /// A virtual key.
    pub key: Option<SecretText>,
}

/// Where runs are logged.
#[derive(Debug, Default, Clone, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct MlflowFile {
    /// `http://mlflow:5000`. Default: `$MLFLOW_TRACKING_URI`.
    pub tracking_uri: Option<String>,
    /// The experiment. Default: the suite's name.
    pub experiment: Option<String>,
}

/// A scorer that needs no more than its kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ScorerWord {
    /// The answer is the expected text.
    Exact,
    /// The answer contains the expected texts.
    Contains,
    /// The answer matches the expected pattern.
    Regex,
    /// The answer has the expected number.
    Numeric,
    /// One minus the share of edits.
    EditSimilarity,
    /// F1 over the longest common sequence of words.
    RougeL,
    /// The answer calls the expected tools.
    ToolCall,
    /// Seconds.
    Latency,
    /// USD.
    Cost,
}

/// A scorer: one kind, and what goes for each.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct ScorerFile {
    /// Tells scorers of one kind apart: it is `KIND.NAME` in gates and reports.
    pub name: Option<String>,
    /// A score of at least this passes.
    pub threshold: Option<f64>,
    /// The answer is the expected text.
    pub exact: Option<Exact>,
    /// The answer contains texts.
    pub contains: Option<Contains>,
    /// The answer matches a pattern.
    pub regex: Option<Pattern>,
    /// The answer is JSON of a schema.
    pub json_schema: Option<JsonSchemaFile>,
    /// A field of the answer's JSON has a value.
    pub json_field: Option<JsonField>,
    /// The answer has a number.
    pub numeric: Option<Numeric>,
    /// One minus the share of edits.
    pub edit_similarity: Option<EditSimilarity>,
    /// F1 over the longest common sequence of words.
    pub rouge_l: Option<RougeL>,
    /// The cosine of two embeddings.
    pub embedding_similarity: Option<EmbeddingSimilarity>,
    /// The answer calls tools.
    pub tool_call: Option<ToolCalls>,
    /// What another model thinks of the answer.
    pub judge: Option<Judge>,
    /// How long the answer took.
    pub latency: Option<LatencyFile>,
    /// What the answer cost.
    pub cost: Option<CostFile>,
}

/// A schema, written here or in a file.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct JsonSchemaFile {
    /// The schema.
    pub schema: Option<Value>,
    /// A JSON file with it, relative to the suite.
    pub file: Option<String>,
}

/// How long an answer may take.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct LatencyFile {
    /// Slower ones do not pass.
    pub max: Option<DurationText>,
}

/// What an answer may cost.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct CostFile {
    /// Dearer ones do not pass.
    pub max: Option<Money>,
}

/// A map that keeps the order in which it was written.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Ordered<T>(pub Vec<(String, T)>);

impl<T> Default for Ordered<T> {
    fn default() -> Ordered<T> {
        Ordered(Vec::new())
    }
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Ordered<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Ordered<T>, D::Error> {
        deserializer.deserialize_map(OrderedVisitor(PhantomData))
    }
}

struct OrderedVisitor<T>(PhantomData<T>);

impl<'de, T: Deserialize<'de>> Visitor<'de> for OrderedVisitor<T> {
    type Value = Ordered<T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a map")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Ordered<T>, A::Error> {
        let mut entries = Vec::new();
        while let Some(entry) = map.next_entry()? {
            entries.push(entry);
        }
        Ok(Ordered(entries))
    }
}

impl<T: JsonSchema> JsonSchema for Ordered<T> {
    fn schema_name() -> Cow<'static, str> {
        format!("MapOf{}", T::schema_name()).into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        <std::collections::BTreeMap<String, T>>::json_schema(generator)
    }
}
