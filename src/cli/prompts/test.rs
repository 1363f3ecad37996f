//! `tollgate prompts test`: what prompts must say with given variables, and what they must refuse.

use std::{
    fs,
    io::Write,
    path::{Path, PathBuf},
};

use anyhow::{Context, anyhow, bail};
use regex::Regex;
use serde::Deserialize;
use serde_json::{Map, Value};

use super::{
    Shown,
    junit::{Case, Report},
    target_for,
};
use crate::{
    config::Loaded,
    policy::{prompt::PromptError, prompt_preview::Preview},
};

/// One test.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Test {
    /// Its name. Default: the prompt and its place in the file.
    name: Option<String>,
    /// `name` or `name@version`.
    prompt: String,
    /// The model that counts, as `tollgate prompts render --model`.
    model: Option<String>,
    #[serde(default)]
    variables: Map<String, Value>,
    expect: Vec<Expect>,
}

/// What must hold; each that is given.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Expect {
    contains: Option<String>,
    not_contains: Option<String>,
    matches: Option<String>,
    max_tokens: Option<u64>,
    /// The code of the error that a call would get.
    error: Option<String>,
    /// A file with the whole rendering, relative to the file with the test.
    snapshot: Option<PathBuf>,
}

/// Runs all tests of `files`; says how many failed.
///
/// # Errors
/// When a file cannot be read or is none with tests, or a result cannot be written.
pub(super) fn run(
    files: &[PathBuf],
    junit: Option<&Path>,
    bless: bool,
    loaded: &Loaded,
    out: &mut impl Write,
) -> anyhow::Result<usize> {
    let files = if files.is_empty() { files_beside(loaded)? } else { files.to_vec() };
    let mut cases = Vec::new();
    for file in &files {
        let text = fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
        let tests: Vec<Test> = serde_saphyr::from_str(&text)
            .map_err(|error| anyhow!("{}: is no list of tests: {error}", file.display()))?;
        for (i, test) in tests.iter().enumerate() {
            let failures = failures(test, file, bless, loaded)?;
            let name = test.name.clone().unwrap_or_else(|| format!("{} ({})", test.prompt, i + 1));
            writeln!(out, "{} {}: {name}", if failures.is_empty() { "ok  " } else { "FAIL" }, file.display())?;
            for failure in &failures {
                writeln!(out, "     {}", failure.replace('\n', "\n     "))?;
            }
            cases.push(Case { file: file.display().to_string(), name, failures });
        }
    }
    if let Some(path) = junit {
        fs::write(path, Report(&cases).to_string()).with_context(|| format!("cannot write {}", path.display()))?;
    }
    let failed = cases.iter().filter(|case| !case.failures.is_empty()).count();
    writeln!(out, "{} of {} passed", cases.len() - failed, cases.len())?;
    Ok(failed)
}

/// `prompts/tests/*.yaml` beside the configuration, by name.
fn files_beside(loaded: &Loaded) -> anyhow::Result<Vec<PathBuf>> {
    let folder = loaded.origin.path.as_deref().and_then(Path::parent).unwrap_or(Path::new("")).join("prompts/tests");
    let entries = fs::read_dir(&folder).with_context(|| format!("no tests: cannot read {}", folder.display()))?;
    let mut files = Vec::new();
    for entry in entries {
        let path = entry.context("cannot list the tests")?.path();
        if path.extension().is_some_and(|ending| ending == "yaml" || ending == "yml") {
            files.push(path);
        }
    }
    if files.is_empty() {
        bail!("no tests: {} has no .yaml file", folder.display());
    }
    files.sort();
    Ok(files)
}

/// What does not hold, each as a sentence.
fn failures(test: &Test, file: &Path, bless: bool, loaded: &Loaded) -> anyhow::Result<Vec<String>> {
    let named = match loaded.snapshot.find_prompt(&test.prompt) {
        Ok(named) => named,
        Err(what) => return Ok(vec![what]),
    };
    if test.expect.is_empty() {
        return Ok(vec!["expects nothing; write at least one line under `expect`".to_owned()]);
    }
    let target = match target_for(loaded, named, test.model.as_deref()) {
        Ok(target) => target,
        Err(what) => return Ok(vec![what.to_string()]),
    };
    let outcome = match super::preview(named, &test.variables, target.as_ref()) {
        Ok(preview) => Ok(preview),
        Err(error) => Err(error.downcast::<PromptError>()?),
    };
    let mut failures = Vec::new();
    for expect in &test.expect {
        match (&outcome, &expect.error) {
            (Ok(preview), None) => failures.extend(expect.failures(preview, file, bless)?),
            (Ok(_), Some(code)) => failures.push(format!("expected the error {code}, but it renders")),
            (Err(error), Some(code)) if code_of(error) == code => {}
            (Err(error), Some(code)) => {
                failures.push(format!("expected the error {code}, got {}: {error}", code_of(error)))
            }
            (Err(error), None) => failures.push(format!("{}: {error}", code_of(error))),
        }
    }
    failures.dedup();
    Ok(failures)
}

/// The code that a call would get.
fn code_of(error: &PromptError) -> &'static str {
    match error {
        PromptError::MissingVariable { .. } | PromptError::WrongType { .. } => "prompt_variable_missing",
        _ => "invalid_request",
    }
}

impl Expect {
    fn failures(&self, preview: &Preview, file: &Path, bless: bool) -> anyhow::Result<Vec<String>> {
        let text = text_of(preview);
        let mut failures = Vec::new();
        if let Some(wanted) = self.contains.as_ref().filter(|wanted| !text.contains(wanted.as_str())) {
            failures.push(format!("does not contain {wanted:?}"));
        }
        if let Some(unwanted) = self.not_contains.as_ref().filter(|unwanted| text.contains(unwanted.as_str())) {
            failures.push(format!("contains {unwanted:?}"));
        }
        if let Some(pattern) = &self.matches {
            match Regex::new(pattern) {
                Ok(regex) if regex.is_match(&text) => {}
                Ok(_) => failures.push(format!("does not match {pattern:?}")),
                Err(error) => failures.push(format!("{pattern:?} is no regular expression: {error}")),
            }
        }
        if let Some(max) = self.max_tokens.filter(|max| preview.tokens.0 > *max) {
            failures.push(format!("has {} tokens, more than {max}", preview.tokens.0));
        }
        if let Some(path) = &self.snapshot {
            failures.extend(snapshot(&file.parent().unwrap_or(Path::new("")).join(path), preview, bless)?);
        }
        Ok(failures)
    }
}

/// Everything that is said, a part a line.
fn text_of(preview: &Preview) -> String {
    let messages = preview.messages.iter().map(|one| &*one.content);
    let around = [&preview.before_user, &preview.after_user].into_iter().flatten().map(|text| &**text);
    messages.chain(around).collect::<Vec<_>>().join("\n")
}

fn snapshot(path: &Path, preview: &Preview, bless: bool) -> anyhow::Result<Option<String>> {
    let now = Shown(preview).to_string();
    if bless {
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
        }
        fs::write(path, now).with_context(|| format!("cannot write {}", path.display()))?;
        return Ok(None);
    }
    let Ok(then) = fs::read_to_string(path) else {
        return Ok(Some(format!("there is no snapshot {}; --bless writes it", path.display())));
    };
    if then == now {
        return Ok(None);
    }
    let differs = then.lines().zip(now.lines()).position(|(then, now)| then != now);
    let line = differs.unwrap_or_else(|| then.lines().count().min(now.lines().count()));
    let shown = |text: &str| text.lines().nth(line).map_or_else(|| "(the end)".to_owned(), |text| format!("{text:?}"));
    Ok(Some(format!(
        "differs from {} in line {}:\n- {}\n+ {}\n--bless takes the new one",
        path.display(),
        line + 1,
        shown(&then),
        shown(&now)
    )))
}
