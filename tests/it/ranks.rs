//! The shape of the source: who may use whom, and what stands where. Reads `src/`, judges by the table in `src/lib.rs`.

use std::{
    collections::HashMap,
    fs,
    path::{Path, PathBuf},
};

/// The rank of the spine, whose files may use each other: a call's stages, its record and its body know one another.
const SPINE: u32 = 3;

/// The integer newtypes: plain words without behaviour, which their own rank may use too.
const VOCABULARY: &str = "units";

/// A source file, its comments and its unit tests left out of `code`.
struct Source {
    /// Relative to `src/`.
    path: PathBuf,
    text: String,
    code: String,
}

impl Source {
    /// The top-level module: `wire` for `wire/openai/mod.rs`, `call` for `call.rs`.
    fn module(&self) -> String {
        let first = self.path.components().next().expect("a relative path");
        first.as_os_str().to_string_lossy().trim_end_matches(".rs").to_owned()
    }

    /// Names that follow `prefix` in the code, such as the modules after `crate::`, grouped imports included.
    fn names_after(&self, prefix: &str) -> Vec<String> {
        let mut names = Vec::new();
        for (at, _) in self.code.match_indices(prefix) {
            let rest = &self.code[at + prefix.len()..];
            match rest.strip_prefix('{') {
                Some(group) => names.extend(heads_of_group(group)),
                None => names.push(leading_name(rest)),
            }
        }
        names.retain(|name| !name.is_empty());
        names
    }
}

/// The first names of the members of `{a::b, c::{d, e}, f}`, the opening brace already taken.
fn heads_of_group(group: &str) -> Vec<String> {
    let (mut heads, mut depth, mut at_head) = (Vec::new(), 1, true);
    for (at, character) in group.char_indices() {
        match character {
            '{' => depth += 1,
            '}' => depth -= 1,
            ',' if depth == 1 => at_head = true,
            character if at_head && !character.is_whitespace() => {
                heads.push(leading_name(&group[at..]));
                at_head = false;
            }
            _ => {}
        }
        if depth == 0 {
            break;
        }
    }
    heads
}

fn leading_name(text: &str) -> String {
    text.chars().take_while(|character| character.is_alphanumeric() || *character == '_').collect()
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("src")
}

fn sources() -> Vec<Source> {
    let (mut folders, mut sources) = (vec![root()], Vec::new());
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") && !path.ends_with("tests.rs") {
                sources.push(read(&path));
            }
        }
    }
    sources.sort_by(|a, b| a.path.cmp(&b.path));
    assert!(sources.len() > 10, "the whole tree is read");
    sources
}

fn read(path: &Path) -> Source {
    let text = fs::read_to_string(path).unwrap();
    let shipped = text.split("#[cfg(test)]\nmod ").next().expect("split yields one part at least");
    let code = shipped.lines().filter(|line| !line.trim_start().starts_with("//")).collect::<Vec<_>>().join("\n");
    Source { path: path.strip_prefix(root()).unwrap().to_owned(), text, code }
}

/// Module → rank, from the table in `src/lib.rs`.
fn ranks() -> HashMap<String, u32> {
    let mut ranks = HashMap::new();
    for line in fs::read_to_string(root().join("lib.rs")).unwrap().lines() {
        let Some(row) = line.strip_prefix("//! | ") else { continue };
        let Some((rank, modules)) = row.trim_end_matches('|').split_once('|') else { continue };
        let Ok(rank) = rank.trim().parse() else { continue };
        for module in modules.split(',') {
            ranks.insert(module.trim().to_owned(), rank);
        }
    }
    assert!(ranks.len() > 10, "the table of ranks is in src/lib.rs: {ranks:?}");
    ranks
}

fn assert_none(breaches: &[String]) {
    assert!(breaches.is_empty(), "\n{}", breaches.join("\n"));
}

#[test]
fn every_module_has_a_rank() {
    let ranks = ranks();
    let modules =
        sources().into_iter().map(|source| source.module()).filter(|module| module != "lib" && module != "main");
    let mut unranked: Vec<_> = modules.filter(|module| !ranks.contains_key(module)).collect();
    unranked.dedup();
    assert_none(&unranked);
}

#[test]
fn a_file_uses_only_lower_ranks_and_its_own_folder() {
    let ranks = ranks();
    let mut breaches = Vec::new();
    for source in sources() {
        let module = source.module();
        let Some(&own) = ranks.get(&module) else { continue };
        for used in source.names_after("crate::") {
            if let Some(&rank) = ranks.get(&used)
                && used != module
                && rank >= own
                && (rank, own) != (SPINE, SPINE)
                && used != VOCABULARY
            {
                breaches.push(format!("{} (rank {own}) uses {used} (rank {rank})", source.path.display()));
            }
        }
    }
    assert_none(&breaches);
}

#[test]
fn layers_never_name_each_other() {
    let layers: Vec<_> = sources()
        .into_iter()
        .filter(|source| source.module() == "layers" && !source.path.ends_with("mod.rs"))
        .collect();
    let names: Vec<_> =
        layers.iter().map(|layer| layer.path.file_stem().unwrap().to_string_lossy().into_owned()).collect();
    let mut breaches = Vec::new();
    for layer in &layers {
        let own = layer.path.file_stem().unwrap().to_string_lossy();
        let named = [layer.names_after("crate::layers::"), layer.names_after("super::")].concat();
        for other in named.into_iter().filter(|name| names.contains(name) && *name != own) {
            breaches.push(format!("{} names {other}", layer.path.display()));
        }
    }
    assert_none(&breaches);
}

#[test]
fn every_file_opens_with_what_it_is() {
    let silent = sources().into_iter().filter(|source| !source.text.starts_with("//! "));
    assert_none(&silent.map(|source| source.path.display().to_string()).collect::<Vec<_>>());
}

#[test]
fn metrics_are_named_in_one_file() {
    let macros =
        ["counter!(", "gauge!(", "histogram!(", "describe_counter!(", "describe_gauge!(", "describe_histogram!("];
    let mut breaches = Vec::new();
    for source in sources().into_iter().filter(|source| source.path != Path::new("telemetry/metrics.rs")) {
        for name in macros.iter().filter(|name| source.code.contains(**name)) {
            breaches.push(format!("{} uses {name}…)", source.path.display()));
        }
    }
    assert_none(&breaches);
}

#[test]
fn nothing_starts_another_process() {
    let forbidden = ["Command::new", "process::Command"];
    let sources = sources();
    let starting = sources.iter().filter(|source| forbidden.iter().any(|name| source.code.contains(name)));
    assert_none(&starting.map(|source| source.path.display().to_string()).collect::<Vec<_>>());
}

#[test]
fn policies_have_no_clock() {
    let forbidden = ["SystemTime::now", "Instant::now", "Timestamp::now", "Zoned::now"];
    let mut breaches = Vec::new();
    for source in sources()
        .into_iter()
        .filter(|source| matches!(source.module().as_str(), "wire" | "units" | "policy" | "ledger"))
    {
        for name in forbidden.iter().filter(|name| source.code.contains(**name)) {
            breaches.push(format!("{} asks {name}", source.path.display()));
        }
    }
    assert_none(&breaches);
}
