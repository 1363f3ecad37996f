//! A suite: what is asked, of whom, what is measured, what must hold. Read from YAML, checked whole, every mistake at once.

mod dataset;
pub mod file;

use std::{path::Path as FilePath, time::Duration};

use schemars::generate::SchemaSettings;
use serde::Serialize;
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};

use self::file::{CallsFile, CandidateFile, CaseFile, JsonSchemaFile, ScorerFile, ScorerWord, SuiteFile};
use crate::{
    config::{
        Problems,
        foreign::{self, Path, Typed, suggestion},
        forms::WordOr,
        secret::SecretString,
    },
    eval::{
        answer::Answer,
        gates::Gate,
        scorers::{Named, Scorer, judge::Judge, schema::Schema},
    },
    record::Outcome,
    units::NanoUsd,
};

/// Cases that are asked at the same time where a suite says nothing, and at most.
const CONCURRENCY: usize = 4;
const CONCURRENCY_MAX: usize = 256;
/// For one call.
const TIMEOUT: Duration = Duration::from_secs(120);
/// Recorded calls where a suite says nothing.
const CALLS: usize = 100;

/// A suite that is valid.
#[derive(Debug)]
pub struct Suite {
    /// Its name.
    pub name: String,
    /// What is asked.
    pub cases: Vec<Case>,
    /// Where the cases are to come from, when it is the call log: see [`Suite::with_cases`].
    pub calls: Option<Calls>,
    /// What answers; never empty.
    pub candidates: Vec<Candidate>,
    /// Index of the one that the others are compared with.
    pub baseline: usize,
    /// What is measured.
    pub scorers: Vec<Named>,
    /// What must hold.
    pub gates: Vec<Gate>,
    /// How often each case is asked; at least 1.
    pub repeat: u32,
    /// Cases asked at the same time; at least 1.
    pub concurrency: usize,
    /// Ends the run before it costs more.
    pub max_cost: Option<NanoUsd>,
    /// For one call.
    pub timeout: Duration,
    /// Where to ask, where the suite says so.
    pub url: Option<String>,
    /// With which key.
    pub key: Option<SecretString>,
    /// Where the run is logged beside its files.
    pub mlflow: Option<Mlflow>,
}

/// One case.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Case {
    /// Unique in its suite.
    pub id: String,
    /// Messages of the chat API.
    pub messages: Vec<Value>,
    /// Variables of the prompt.
    pub variables: Map<String, Value>,
    /// What is right; `null` where nothing is said.
    pub expected: Value,
    /// What people say of the answer; `null` where nothing is said.
    pub label: Value,
    /// Parameters of the request.
    pub parameters: Map<String, Value>,
    /// Words to group by.
    pub tags: Vec<String>,
    /// The answer that was given before.
    pub recorded: Option<Recorded>,
}

/// An answer of another time.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Recorded {
    /// The answer.
    pub answer: Answer,
    /// What served it: `provider/model`.
    pub model: Option<String>,
    /// How long it took.
    pub latency: Option<Duration>,
    /// What it cost.
    pub cost: Option<NanoUsd>,
    /// Prompt tokens.
    pub input_tokens: Option<u64>,
    /// Output tokens.
    pub output_tokens: Option<u64>,
}

/// What answers.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Candidate {
    /// Unique in its suite.
    pub name: String,
    /// As clients name it; empty where nobody is asked.
    pub model: String,
    /// `name` or `name@version`.
    pub prompt: Option<String>,
    /// Parameters of the request.
    pub parameters: Map<String, Value>,
    /// A system message before those of the case.
    pub system: Option<String>,
    /// The answers are those recorded in the cases.
    pub recorded: bool,
}

/// Which recorded calls.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Calls {
    /// The model's label.
    pub model: Option<String>,
    /// Not older than this.
    pub since: Option<Duration>,
    /// How they ended.
    pub outcome: Outcome,
    /// A tag and its value.
    pub tag: Option<(String, String)>,
    /// At most so many.
    pub limit: usize,
}

/// Where runs are logged.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mlflow {
    /// The server's URL; `None`: by the environment.
    pub tracking_uri: Option<String>,
    /// The experiment's name; `None`: the suite's.
    pub experiment: Option<String>,
}

/// Reads the suite in `path`.
///
/// # Errors
/// Every problem of it.
pub fn read(path: &FilePath) -> Result<Suite, Problems> {
    let typed: Typed<SuiteFile> = foreign::read(path)?;
    validate(typed, path.parent().unwrap_or(FilePath::new("")))
}

/// JSON Schema of a suite, for editors.
///
/// # Panics
/// Never: a schema is plain JSON.
#[must_use]
pub fn schema() -> String {
    let generator = SchemaSettings::draft2020_12().for_deserialize().into_generator();
    let schema = generator.into_root_schema_for::<SuiteFile>().to_value();
    let mut text = serde_json::to_string_pretty(&schema).expect("a JSON value is always JSON text");
    text.push('\n');
    text
}

impl Suite {
    /// The same with cases from elsewhere.
    #[must_use]
    pub fn with_cases(self, cases: Vec<Case>) -> Suite {
        Suite { cases, ..self }
    }

    /// The baseline.
    #[must_use]
    pub fn baseline(&self) -> &Candidate {
        &self.candidates[self.baseline]
    }

    /// Names everything that results depend on. Gates do not count: they may be changed after the calls were paid for.
    #[must_use]
    pub fn fingerprint(&self) -> String {
        let all = json!({
            "cases": self.cases, "candidates": self.candidates, "scorers": self.scorers, "repeat": self.repeat,
            "baseline": self.baseline,
        });
        Sha256::digest(all.to_string()).iter().take(16).map(|byte| format!("{byte:02x}")).collect()
    }

    /// The ids of scorers whose scores are from 0 to 1.
    #[must_use]
    pub fn score_ids(&self) -> Vec<&str> {
        use crate::eval::scorers::Unit;
        self.scorers.iter().filter(|named| named.scorer.unit() == Unit::Score).map(|named| named.id.as_str()).collect()
    }
}

// === checking ===

fn top(key: &str) -> Path {
    Path::default().key(key)
}

fn validate(mut typed: Typed<SuiteFile>, base_dir: &FilePath) -> Result<Suite, Problems> {
    let file = std::mem::take(&mut typed.value);
    let name = file.name.clone().filter(|name| !name.trim().is_empty()).unwrap_or_else(|| {
        typed.refuse(&Path::default(), "`name` is missing: a name for reports");
        String::new()
    });
    let candidates = candidates(&mut typed, &file);
    let cases = cases(&mut typed, &file, base_dir);
    let calls = file.dataset.calls.as_ref().map(|calls| recorded_calls(&mut typed, calls));
    let scorers = scorers(&mut typed, &file, base_dir);
    let baseline = baseline(&mut typed, &file, &candidates);
    let gates = gates(&mut typed, &file, &scorers, &candidates);
    let comes_from_log = calls.is_some();
    for (i, candidate) in candidates.iter().enumerate().filter(|(_, candidate)| candidate.recorded) {
        let answered = comes_from_log || cases.iter().all(|case| case.recorded.is_some());
        if !answered {
            let path = top("candidates").key(&candidates[i].name).key("recorded");
            typed.refuse(&path, format!("not each case has an `answer`, which `{}` would give", candidate.name));
        }
    }
    let bounded = |typed: &mut Typed<SuiteFile>, key: &str, value: usize, max: usize| {
        if !(1..=max).contains(&value) {
            typed.refuse(&top(key), format!("must be from 1 to {max}, got {value}"));
        }
    };
    let (repeat, concurrency) = (file.repeat.unwrap_or(1), file.concurrency.unwrap_or(CONCURRENCY));
    bounded(&mut typed, "repeat", repeat as usize, 1000);
    bounded(&mut typed, "concurrency", concurrency, CONCURRENCY_MAX);
    typed.finish()?;
    Ok(Suite {
        name,
        cases,
        calls,
        candidates,
        baseline,
        scorers,
        gates,
        repeat,
        concurrency,
        max_cost: file.max_cost.map(|money| money.0),
        timeout: file.timeout.map_or(TIMEOUT, |timeout| timeout.0),
        url: file.gateway.url,
        key: file.gateway.key.map(|key| SecretString::new(key.as_typed().to_owned())),
        mlflow: file.mlflow.map(|m| Mlflow { tracking_uri: m.tracking_uri, experiment: m.experiment }),
    })
}

fn candidates(typed: &mut Typed<SuiteFile>, file: &SuiteFile) -> Vec<Candidate> {
    if file.candidates.0.is_empty() && !typed.is_refused(&top("candidates")) {
        typed.refuse(&top("candidates"), "there is no candidate: write `candidates: { v1: { model: support@v1 } }`");
    }
    let check = |(name, typed_candidate): &(String, CandidateFile)| {
        let path = top("candidates").key(name);
        if typed_candidate.model.is_none() && !typed_candidate.recorded {
            typed.refuse(&path, "`model` is missing: an alias, `alias@version` or `provider/model`");
        }
        let candidate = typed_candidate.clone();
        Candidate {
            name: name.clone(),
            model: candidate.model.unwrap_or_default(),
            prompt: candidate.prompt,
            parameters: candidate.parameters,
            system: candidate.system,
            recorded: candidate.recorded,
        }
    };
    file.candidates.0.iter().map(check).collect()
}

fn baseline(typed: &mut Typed<SuiteFile>, file: &SuiteFile, candidates: &[Candidate]) -> usize {
    let Some(name) = &file.baseline else { return 0 };
    candidates.iter().position(|candidate| candidate.name == *name).unwrap_or_else(|| {
        let known = candidates.iter().map(|candidate| candidate.name.as_str());
        typed.refuse(&top("baseline"), format!("there is no candidate `{name}`{}", suggestion(name, known)));
        0
    })
}

fn cases(typed: &mut Typed<SuiteFile>, file: &SuiteFile, base_dir: &FilePath) -> Vec<Case> {
    let path = top("dataset");
    let given = &file.dataset;
    let sources =
        usize::from(given.file.is_some()) + usize::from(!given.cases.is_empty()) + usize::from(given.calls.is_some());
    if sources != 1 && !typed.is_refused(&path) {
        typed.refuse(&path, "needs one of `file`, `cases` and `calls`");
    }
    let from_file = given.file.as_ref().map(|name| dataset::read(&base_dir.join(name)));
    let (typed_cases, path) = match from_file {
        Some(Ok(cases)) if cases.is_empty() => {
            typed.refuse(&path.key("file"), "has no case in it");
            return Vec::new();
        }
        Some(Ok(cases)) => (cases, None),
        Some(Err(why)) => {
            typed.refuse(&path.key("file"), why);
            return Vec::new();
        }
        None => (given.cases.clone(), Some(path.key("cases"))),
    };
    let mut cases: Vec<Case> = Vec::with_capacity(typed_cases.len());
    let mut seen = std::collections::HashSet::new();
    for (i, typed_case) in typed_cases.into_iter().enumerate() {
        let at = path.as_ref().map_or_else(|| top("dataset").key("file"), |path| path.index(i));
        match case(i, typed_case) {
            Ok(case) if !seen.insert(case.id.clone()) => {
                typed.refuse(&at, format!("case {}: the id `{}` is there twice", i + 1, case.id));
            }
            Ok(case) => cases.push(case),
            Err(why) => typed.refuse(&at, format!("case {}: {why}", i + 1)),
        }
    }
    cases
}

fn case(i: usize, typed: CaseFile) -> Result<Case, String> {
    let messages = match (typed.input, typed.messages) {
        (Some(input), messages) if messages.is_empty() => vec![json!({"role": "user", "content": input})],
        (None, messages) if !messages.is_empty() => messages,
        (None, _) => return Err("has neither `input` nor `messages`".to_owned()),
        (Some(_), _) => return Err("has both `input` and `messages`".to_owned()),
    };
    if let Some(wrong) = messages.iter().find(|message| !message["role"].is_string()) {
        return Err(format!("a message is an object with `role` and `content`, not {wrong}"));
    }
    let id = match typed.id {
        None => (i + 1).to_string(),
        Some(Value::String(id)) if !id.is_empty() => id,
        Some(Value::Number(id)) => id.to_string(),
        Some(other) => return Err(format!("the id must be a text or a number, not {other}")),
    };
    Ok(Case {
        id,
        messages,
        variables: typed.variables,
        expected: typed.expected.unwrap_or_default(),
        label: typed.label.unwrap_or_default(),
        parameters: typed.parameters,
        tags: typed.tags,
        recorded: typed.answer.map(|text| Recorded {
            answer: Answer::text(text),
            model: None,
            latency: None,
            cost: None,
            input_tokens: None,
            output_tokens: None,
        }),
    })
}

fn recorded_calls(typed: &mut Typed<SuiteFile>, calls: &CallsFile) -> Calls {
    let path = top("dataset").key("calls");
    let outcome = calls.outcome.as_deref().unwrap_or("ok");
    let outcome = Outcome::of_label(outcome).unwrap_or_else(|| {
        let known = Outcome::ALL.map(Outcome::label);
        typed.refuse(&path.key("outcome"), format!("no call ends `{outcome}`{}", suggestion(outcome, known)));
        Outcome::Ok
    });
    let tag = calls.tag.as_ref().and_then(|tag| match tag.split_once('=') {
        Some((name, value)) => Some((name.to_owned(), value.to_owned())),
        None => {
            typed.refuse(&path.key("tag"), "write a tag as `name=value`");
            None
        }
    });
    let limit = calls.limit.unwrap_or(CALLS);
    if limit == 0 {
        typed.refuse(&path.key("limit"), "must be above 0");
    }
    Calls { model: calls.model.clone(), since: calls.since.map(|since| since.0), outcome, tag, limit }
}

fn gates(typed: &mut Typed<SuiteFile>, file: &SuiteFile, scorers: &[Named], candidates: &[Candidate]) -> Vec<Gate> {
    let scorer_ids: Vec<&str> = scorers.iter().map(|named| named.id.as_str()).collect();
    let names: Vec<&str> = candidates.iter().map(|candidate| candidate.name.as_str()).collect();
    let mut gates = Vec::new();
    for (i, sentence) in file.gates.iter().enumerate() {
        let checked = Gate::parse(sentence).and_then(|gate| gate.check_names(&scorer_ids, &names).map(|()| gate));
        match checked {
            Ok(gate) => gates.push(gate),
            Err(why) => typed.refuse(&top("gates").index(i), why),
        }
    }
    gates
}

fn scorers(typed: &mut Typed<SuiteFile>, file: &SuiteFile, base_dir: &FilePath) -> Vec<Named> {
    if file.scorers.is_empty() && !typed.is_refused(&top("scorers")) {
        typed.refuse(&top("scorers"), "there is no scorer: write `scorers: [exact]`");
    }
    let mut scorers: Vec<Named> = Vec::new();
    for (i, written) in file.scorers.iter().enumerate() {
        let path = top("scorers").index(i);
        let scorer = match written {
            WordOr::Word(word) => Ok(Named::plain(Scorer::of_word(*word))),
            WordOr::Map(options) => named(options, base_dir),
        };
        match scorer {
            Ok(named) if scorers.iter().any(|other| other.id == named.id) => {
                let why = format!("there is a scorer `{}` already: give this one a `name`", named.id);
                typed.refuse(&path, why);
            }
            Ok(named) => scorers.push(named),
            // What was refused for its form is missing here, and was told.
            Err(_) if typed.is_refused(&path) => {}
            Err(why) => typed.refuse(&path, why),
        }
    }
    scorers
}

fn named(options: &ScorerFile, base_dir: &FilePath) -> Result<Named, String> {
    let scorer = scorer(options, base_dir)?;
    let threshold = options.threshold.unwrap_or_else(|| scorer.default_threshold());
    if !(0.0..=1.0).contains(&threshold) {
        return Err(format!("`threshold` must be from 0 to 1, got {threshold}"));
    }
    let id = match &options.name {
        Some(name) if name.is_empty() || name.contains(char::is_whitespace) => {
            return Err("`name` must be one word".to_owned());
        }
        Some(name) => format!("{}.{name}", scorer.kind()),
        None => scorer.kind().to_owned(),
    };
    Ok(Named { id, threshold, scorer })
}

/// The one kind that is given.
fn scorer(options: &ScorerFile, base_dir: &FilePath) -> Result<Scorer, String> {
    let latency = options.latency.as_ref().map(|latency| Scorer::Latency(latency.max.map(|max| max.0)));
    let cost = options.cost.as_ref().map(|cost| Scorer::Cost(cost.max.map(|max| max.0)));
    let given = [
        options.exact.clone().map(Scorer::Exact),
        options.contains.clone().map(Scorer::Contains),
        options.regex.clone().map(Scorer::Regex),
        options.json_field.clone().map(Scorer::JsonField),
        options.numeric.clone().map(Scorer::Numeric),
        options.edit_similarity.clone().map(Scorer::EditSimilarity),
        options.rouge_l.clone().map(Scorer::RougeL),
        options.embedding_similarity.clone().map(Scorer::EmbeddingSimilarity),
        options.tool_call.clone().map(Scorer::ToolCall),
        options.judge.clone().map(Scorer::Judge),
        options.json_schema.as_ref().map(|schema| json_schema(schema, base_dir)).transpose()?.map(Scorer::JsonSchema),
        latency,
        cost,
    ];
    let mut given = given.into_iter().flatten();
    match (given.next(), given.next()) {
        (Some(scorer), None) => scorer.checked(),
        (None, _) => Err("names no scorer: write `- exact`, or `- judge: { … }`".to_owned()),
        (Some(one), Some(other)) => {
            Err(format!("has both `{}` and `{}`: begin another item for each", one.kind(), other.kind()))
        }
    }
}

fn json_schema(typed: &JsonSchemaFile, base_dir: &FilePath) -> Result<Schema, String> {
    let schema = match (&typed.schema, &typed.file) {
        (Some(schema), None) => schema.clone(),
        (None, Some(name)) => {
            let text = std::fs::read_to_string(base_dir.join(name)).map_err(|error| format!("{name}: {error}"))?;
            serde_json::from_str(&text).map_err(|error| format!("{name}: {error}"))?
        }
        _ => return Err("`json_schema` needs one of `schema` and `file`".to_owned()),
    };
    Schema::read(schema).map_err(|why| format!("`json_schema`: {why}"))
}

impl Named {
    /// A scorer without a name and with the usual threshold.
    #[must_use]
    pub fn plain(scorer: Scorer) -> Named {
        Named { id: scorer.kind().to_owned(), threshold: scorer.default_threshold(), scorer }
    }
}

impl Scorer {
    /// The scorer that a word alone names.
    #[must_use]
    pub fn of_word(word: ScorerWord) -> Scorer {
        match word {
            ScorerWord::Exact => Scorer::Exact(Default::default()),
            ScorerWord::Contains => Scorer::Contains(Default::default()),
            ScorerWord::Regex => Scorer::Regex(Default::default()),
            ScorerWord::Numeric => Scorer::Numeric(Default::default()),
            ScorerWord::EditSimilarity => Scorer::EditSimilarity(Default::default()),
            ScorerWord::RougeL => Scorer::RougeL(Default::default()),
            ScorerWord::ToolCall => Scorer::ToolCall(Default::default()),
            ScorerWord::Latency => Scorer::Latency(None),
            ScorerWord::Cost => Scorer::Cost(None),
        }
    }

    fn checked(self) -> Result<Scorer, String> {
        match &self {
            Scorer::Regex(pattern) => {
                let given = pattern
                    .pattern
                    .as_ref()
                    .map(|given| pattern.compile(given).map_err(|why| format!("`{given}` {why}")));
                given.transpose()?;
            }
            Scorer::JsonField(field) if field.path.is_empty() => return Err("`json_field` needs a `path`".to_owned()),
            Scorer::EmbeddingSimilarity(similarity) if similarity.model.is_empty() => {
                return Err("`embedding_similarity` needs a `model`".to_owned());
            }
            Scorer::Numeric(numeric)
                if numeric.absolute.unwrap_or(0.0) < 0.0 || numeric.relative.unwrap_or(0.0) < 0.0 =>
            {
                return Err("a tolerance must not be below 0".to_owned());
            }
            Scorer::Judge(judge) => check_judge(judge)?,
            _ => {}
        }
        Ok(self)
    }
}

fn check_judge(judge: &Judge) -> Result<(), String> {
    if judge.model.is_empty() {
        return Err("`judge` needs a `model`".to_owned());
    }
    if judge.rubric.trim().is_empty() {
        return Err("`judge` needs a `rubric`: what a good answer is, in words".to_owned());
    }
    let (worst, best) = judge.scale();
    if worst >= best {
        return Err(format!("the `scale` of a judge goes up: [{worst}, {best}] does not"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn suite(text: &str) -> Result<Suite, String> {
        let typed = foreign::read_str(text, "s.yaml", &|_| None, FilePath::new("")).map_err(|p| p.to_string())?;
        validate(typed, FilePath::new("/nowhere")).map_err(|problems| problems.to_string())
    }

    const WHOLE: &str = "
name: support
dataset:
  cases:
    - { input: 'What is 6 times 7?', expected: 42, tags: [math] }
    - { id: greet, messages: [{ role: user, content: hi }], variables: { product: Tollgate }, answer: hello, label: win }
candidates:
  old: { recorded: on }
  new: { model: support@v2, prompt: chatbot@v2, parameters: { temperature: 0.2, stop: [a] }, system: Be kind. }
baseline: new
scorers:
  - exact
  - numeric: { absolute: 0.5 }
  - contains: { any: [a, b] }
    name: letters
    threshold: 0.5
  - judge: { model: openai/gpt-4.1, rubric: Be right., scale: [0, 10], parameters: { temperature: 0 } }
    name: helpful
  - latency: { max: 2s }
gates: [ exact >= 0.95, latency_p95 <= 2s, no worse than baseline by 2 points, judge.helpful better than old for new ]
repeat: 2
concurrency: 8
max_cost: 0.50 USD
";

    #[test]
    fn a_whole_suite_is_read() {
        let text = WHOLE.replace("expected: 42,", "expected: 42, answer: '42',");
        let suite = suite(&text).unwrap_or_else(|problems| panic!("{problems}"));
        let ids: Vec<&str> = suite.scorers.iter().map(|named| named.id.as_str()).collect();
        assert_eq!(ids, ["exact", "numeric", "contains.letters", "judge.helpful", "latency"]);
        assert_eq!((suite.cases[0].id.as_str(), suite.cases[1].id.as_str()), ("1", "greet"));
        assert_eq!(suite.cases[0].expected, json!(42));
        assert_eq!(suite.baseline().name, "new");
        assert_eq!(suite.candidates[1].parameters["temperature"], json!(0.2));
        assert_eq!((suite.repeat, suite.concurrency, suite.max_cost), (2, 8, Some(NanoUsd(500_000_000))));
        assert_eq!((suite.gates.len(), suite.scorers[2].threshold), (4, 0.5));
        assert_eq!(suite.score_ids().len(), 4);
    }

    #[test]
    fn a_fingerprint_hangs_on_what_results_hang_on() {
        let text = WHOLE.replace("expected: 42,", "expected: 42, answer: '42',");
        let print = |text: &str| suite(text).unwrap().fingerprint();
        assert_eq!(print(&text), print(&text.replace(">= 0.95", ">= 0.5").replace("concurrency: 8", "concurrency: 2")));
        for (from, to) in [("6 times 7", "6 times 8"), ("@v2", "@v3"), ("0.5 }", "0.6 }"), ("repeat: 2", "repeat: 3")] {
            assert_ne!(print(&text), print(&text.replace(from, to)), "{from}");
        }
    }

    #[test]
    fn every_mistake_is_told_with_its_place_and_mend() {
        let problems = suite(WHOLE).unwrap_err();
        assert_eq!(
            problems,
            "s.yaml:8:20: candidates.old.recorded: not each case has an `answer`, which `old` would give"
        );
        let problems = suite(
            "nmae: x\ndataset: { cases: [{ inptu: a }, { input: b, messages: [{ role: user }] }] }\ncandidates: { a: {} }\n\
             baseline: b\nscorers: [exakt, { exact: {}, numeric: {} }, { regex: { pattern: '(' } }, { judge: { model: m } }]\n\
             gates: [exact >= 95]\nrepeat: 0\n",
        )
        .unwrap_err();
        for said in [
            "s.yaml:1:1: nmae: unknown key; did you mean `name`?",
            "`name` is missing",
            "s.yaml:2:22: dataset.cases[0].inptu: unknown key; did you mean `input`?",
            "case 1: has neither `input` nor `messages`",
            "case 2: has both",
            "candidates.a: `model` is missing",
            "baseline: there is no candidate `b`",
            "scorers[0]: `exakt` is not known; did you mean `exact`?",
            "scorers[1]: has both `exact` and `numeric`",
            "scorers[2]: `(` is no regular expression",
            "scorers[3]: `judge` needs a `rubric`",
            "gates[0]: scores and rates are from 0 to 1",
            "repeat: must be from 1 to 1000, got 0",
        ] {
            assert!(problems.contains(said), "{said}\n--\n{problems}");
        }
    }

    #[test]
    fn a_dataset_is_of_one_kind() {
        let with = |dataset: &str| {
            suite(&format!("name: x\ndataset: {dataset}\ncandidates: {{ a: {{ model: m }} }}\nscorers: [exact]\n"))
        };
        assert!(with("{}").unwrap_err().contains("needs one of `file`, `cases` and `calls`"));
        assert!(with("{ file: none.jsonl }").unwrap_err().contains("none.jsonl: cannot be read"));
        assert!(with("{ calls: { outcome: fine } }").unwrap_err().contains("no call ends `fine`"));
        let calls = with("{ calls: { model: support, since: 24h, tag: app=web } }").unwrap().calls.unwrap();
        assert_eq!((calls.limit, calls.outcome, calls.since), (100, Outcome::Ok, Some(Duration::from_secs(86_400))));
    }

    #[test]
    fn the_schema_names_the_scorers() {
        let schema: Value = serde_json::from_str(&schema()).unwrap();
        assert_eq!(schema["additionalProperties"], false);
        assert!(schema["$defs"]["ScorerFile"]["properties"]["judge"].is_object(), "{schema}");
    }
}
