//! The documentation is true as far as a machine can tell: its configurations are valid, its links lead somewhere, and the
//! demonstration that it is about runs.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Output},
};

use tempfile::TempDir;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// All pages: those beside the manifest, below `docs`, and the example's.
fn pages() -> Vec<PathBuf> {
    let directories = ["", "docs", "docs/de", "examples/support-bot"].map(|name| root().join(name));
    let files = directories.iter().flat_map(|directory| fs::read_dir(directory).unwrap()).map(|e| e.unwrap().path());
    let mut pages: Vec<PathBuf> = files.filter(|path| path.extension().is_some_and(|e| e == "md")).collect();
    pages.sort();
    assert!(pages.len() >= 10, "{pages:?}");
    pages
}

/// The fenced blocks of a page that begin with this line.
fn blocks<'p>(page: &'p str, fence: &str) -> Vec<&'p str> {
    let begin = format!("```{fence}\n");
    page.split(begin.as_str()).skip(1).map(|rest| rest.split("\n```").next().unwrap()).collect()
}

/// The environment variables that a configuration names.
fn variables(text: &str) -> Vec<&str> {
    text.split("${").skip(1).map(|rest| rest.split(['}', ':']).next().unwrap()).collect()
}

fn tollgate(directory: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tollgate"));
    command.current_dir(directory).env_remove("OPENAI_API_KEY").env_remove("TOLLGATE_DEMO_DATA");
    command
}

fn check(text: &str) -> Output {
    let directory = TempDir::new().unwrap();
    let file = directory.path().join("docs.yaml");
    fs::write(&file, text).unwrap();
    let mut command = tollgate(directory.path());
    for name in variables(text) {
        command.env(name, "a-secret-of-sufficient-length");
    }
    command.arg("check").arg(&file).output().unwrap()
}

#[test]
fn each_complete_configuration_of_the_documentation_is_valid() {
    let mut checked = 0;
    for page in pages() {
        let text = fs::read_to_string(&page).unwrap();
        for block in blocks(&text, "yaml").into_iter().filter(|block| block.starts_with("# complete")) {
            let output = check(block);
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            assert_eq!(output.status.code(), Some(0), "{}:\n{said}\n{block}", page.display());
            assert!(!said.contains("not available"), "{}: {said}", page.display());
            checked += 1;
        }
    }
    assert!(checked >= 6, "only {checked} configurations found");
}

#[test]
fn an_invalid_configuration_would_be_noticed() {
    assert_eq!(check("providers: { a: { kind: simulated } }\nauth: none\nno_such_key: 1\n").status.code(), Some(2));
}

#[test]
fn each_link_within_the_repository_leads_somewhere() {
    for page in pages() {
        let text = fs::read_to_string(&page).unwrap();
        for link in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            if link.contains("://") {
                continue;
            }
            let (path, heading) = link.split_once('#').unwrap_or((link, ""));
            let target = if path.is_empty() { page.clone() } else { page.parent().unwrap().join(path) };
            assert!(target.exists(), "{}: no {link}", page.display());
            let anchors = || headings(&fs::read_to_string(&target).unwrap());
            assert!(heading.is_empty() || anchors().contains(&heading.to_owned()), "{}: no {link}", page.display());
        }
    }
}

/// The anchors that GitHub makes of a page's headings.
fn headings(page: &str) -> Vec<String> {
    let titles = page.lines().filter_map(|line| line.strip_prefix('#')).map(|line| line.trim_start_matches('#').trim());
    let kept = |c: &char| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_');
    titles.map(|title| title.to_lowercase().chars().filter(kept).collect::<String>().replace(' ', "-")).collect()
}

/// All source files below `directory`, without their unit tests.
fn sources(directory: &Path) -> Vec<String> {
    let mut texts = Vec::new();
    for entry in fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path()) {
        if entry.is_dir() {
            texts.extend(sources(&entry));
        } else if entry.extension().is_some_and(|e| e == "rs") && !entry.ends_with("tests.rs") {
            let text = fs::read_to_string(&entry).unwrap();
            texts.push(text.split("#[cfg(test)]\nmod ").next().unwrap().to_owned());
        }
    }
    texts
}

/// What a log line surely says: of the longest text among the arguments of its macro, which is the message, the longest part without
/// values, up to its first colon, semicolon or bracket.
fn fixed_part(arguments: &str) -> String {
    let message = arguments.split('"').skip(1).step_by(2).max_by_key(|text| text.len()).unwrap_or_default();
    let parts = message.split(['{', '}']).step_by(2);
    let said = parts.map(|part| part.split([':', ';', '(']).next().unwrap_or_default().trim());
    said.max_by_key(|part| part.len()).unwrap_or_default().replace('`', "")
}

#[test]
fn each_line_of_the_log_that_wants_somebody_is_in_the_runbook() {
    let runbook = fs::read_to_string(root().join("docs/operations.md")).unwrap().replace('`', "");
    let mut looked_up = 0;
    for text in sources(&root().join("src")) {
        for line in ["tracing::error!(", "tracing::warn!("].into_iter().flat_map(|level| text.split(level).skip(1)) {
            // The macro ends where its statement or arm does.
            let said = fixed_part(line.split(");").next().unwrap().split("),\n").next().unwrap());
            assert!(runbook.contains(&said), "docs/operations.md says nothing of the log line `{said}`");
            looked_up += usize::from(!said.is_empty());
        }
    }
    assert!(looked_up >= 40, "only {looked_up} lines found");
}

#[test]
fn one_round_of_the_demonstration_ends_well_and_leaves_nothing() {
    let directory = TempDir::new().unwrap();
    let output = tollgate(directory.path()).args(["demo", "--once"]).env("TMPDIR", directory.path()).output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();

    assert_eq!(output.status.code(), Some(0), "{said}\n{}", String::from_utf8_lossy(&output.stderr));
    for fact in
        ["control", "warm", "answered, streamed", "passed on unchanged", "the rest of the budget", "refused (429)"]
    {
        assert!(said.contains(fact), "no `{fact}` in\n{said}");
    }
    assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0, "files were left");
}
