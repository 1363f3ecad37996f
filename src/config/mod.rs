//! Configuration: what was typed ([`file`]), checked whole (`validate`), becomes what is true ([`Snapshot`]).
//!
//! The text is parsed into a tree that knows its places (`tree`), values from the environment are put into it
//! (`substitute`), and typed values are read out of it (`de`), so that every mistake can be pointed at, whenever it is found.

mod de;
pub mod environment;
pub mod file;
pub mod foreign;
pub mod forms;
pub mod problems;
pub mod prompts;
pub mod pushed;
pub mod registered;
pub mod schema;
pub mod secret;
pub mod snapshot;
mod sources;
mod substitute;
mod tree;
mod validate;
pub mod watch;

use std::{
    collections::BTreeSet,
    io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use serde_json::Value;

pub use problems::{Problem, Problems};
pub use snapshot::Snapshot;
pub use watch::Live;

use self::{
    environment::Environment, file::File, registered::ChangedVersions, snapshot::Store, sources::Sources,
    tree::Document,
};
use crate::wire::revision::Revision;

/// Where a configuration is looked for when none is named.
pub const DEFAULT_PATH: &str = "config/tollgate.yaml";
/// The environment variable that names a configuration.
pub const PATH_VARIABLE: &str = "TOLLGATE_CONFIG";

/// A configuration that was read and is valid.
#[derive(Debug)]
pub struct Loaded {
    /// What is true.
    pub snapshot: Snapshot,
    /// Where it came from.
    pub origin: Origin,
    /// What is allowed but probably not meant, such as secrets in a file that everybody can read.
    pub warnings: Vec<String>,
}

/// Where a configuration came from, to read it again when that changes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Origin {
    /// The configuration; `None` when there is only the environment.
    pub path: Option<PathBuf>,
    /// Every file that was read or looked for: configuration, `.env`, secrets, prompts, prices.
    pub files: Vec<PathBuf>,
}

/// How often guardrails are looked at where nothing is configured, and at most.
const GUARDRAILS_EVERY: Duration = Duration::from_mins(1);
const GUARDRAILS_EVERY_MIN: Duration = Duration::from_secs(1);

/// Why there is no configuration.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("{}: cannot be read: {reason}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why. Not an error's source: the message says it already.
        reason: io::Error,
    },
    /// It is wrong: every problem, one a line.
    #[error(transparent)]
    Problems(#[from] Problems),
    /// There is no file, and the environment holds no provider's key.
    #[error(
        "nothing is configured: there is no {DEFAULT_PATH}, {PATH_VARIABLE} is not set, and so is no provider's key; set \
         OPENAI_API_KEY or ANTHROPIC_API_KEY, name a file with --config, or try `tollgate demo`, which needs no key"
    )]
    NothingConfigured,
    /// It is valid, but differs from the running one in what cannot change while it runs.
    #[error("restart to change {}; the running configuration stays", .0.join(", "))]
    NeedsRestart(Vec<&'static str>),
    /// It is valid, but something it names cannot be used.
    #[error("{0}; the running configuration stays")]
    Unusable(String),
}

/// Reads `path`, or else what `$TOLLGATE_CONFIG` names, or else `config/tollgate.yaml`, or else the environment alone.
///
/// # Errors
/// When there is nothing, it cannot be read, or it is wrong; then all of its problems are named.
pub fn load(path: Option<&Path>) -> Result<Loaded, ConfigError> {
    load_with(path, &Layers::default())
}

/// What lies over the files of one gateway.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Layers {
    /// What was pushed for all gateways of a fleet.
    pub pushed: Option<Arc<Revision>>,
    /// The registry's book.
    pub registered: Option<Arc<Revision>>,
}

impl Layers {
    /// Those that are part of `snapshot`.
    #[must_use]
    pub fn of(snapshot: &Snapshot) -> Layers {
        let pushed = snapshot.pushed.as_ref().map(|pushed| pushed.revision.clone());
        Layers { pushed, registered: snapshot.registry.revision.clone() }
    }
}

/// As [`load`], with what was pushed and what was registered laid over it.
///
/// # Errors
/// As [`load`].
pub fn load_with(path: Option<&Path>, layers: &Layers) -> Result<Loaded, ConfigError> {
    read(path.map(Path::to_owned).or_else(default_path).as_deref(), layers).0
}

/// As [`load_with`], from where a configuration came before.
///
/// # Errors
/// As [`load`].
pub fn load_again(origin: &Origin, layers: &Layers) -> Result<Loaded, ConfigError> {
    read(origin.path.as_deref(), layers).0
}

/// `content` of a prompt's version, with the texts that it includes out of the folder of prompts at `origin`, and those that these
/// include. What it brings along itself stays; what cannot be read is left to the check of the whole.
#[must_use]
pub fn with_partials(origin: &Origin, mut content: Value) -> Value {
    let base_dir = origin.path.as_deref().and_then(Path::parent).unwrap_or(Path::new(""));
    registered::bring_along(&mut content, &Value::Null, &Sources::new(&|_| None, base_dir));
    content
}

/// What must be known before the rest can be.
#[derive(Debug)]
pub struct Bootstrap {
    /// Where the ledger lives, and what was pushed.
    pub store: Store,
    /// Where files of our own live.
    pub data_dir: PathBuf,
}

/// Reads where the store is, found as by [`load`], whatever else may be wrong or missing there.
///
/// # Errors
/// When there is nothing, it cannot be read, is no YAML, or what it says of the store is wrong.
pub fn bootstrap(path: Option<&Path>) -> Result<Bootstrap, ConfigError> {
    let input = Input::open(path.map(Path::to_owned).or_else(default_path).as_deref())?;
    let variable = |name: &str| input.environment.variable(name);
    let mut sources = Sources::new(&variable, &input.base_dir);
    let mut problems = Problems::default();
    let parsed = Document::parse(&input.name, &input.text, &mut problems);
    let mut document = parsed.map_err(|problem| Problems(vec![problem]))?;
    document.substitute(&mut |name| sources.variable(name), None, &mut problems);
    let file = document.read::<File>(&mut problems);
    let (Some(file), false) = (file, document.has_struck(&tree::Path::default().key("store"))) else {
        return Err(problems.sorted().into());
    };
    let store = validate::store_alone(&file, &document, &mut sources)?;
    Ok(Bootstrap { store, data_dir: file.data_dir.as_deref().unwrap_or("data").into() })
}

/// A revision that would be valid as far as this machine can tell.
#[derive(Debug)]
pub struct Draft {
    /// What is allowed but probably not meant.
    pub warnings: Vec<String>,
    /// Variables and secret files that are not here; each gateway must have them.
    pub missing: BTreeSet<String>,
}

/// Checks `revision` as a gateway with the configuration `path` would, but for the values of secrets and variables that are not
/// here: those are the gateways' own.
///
/// # Errors
/// All problems, or that the configuration itself cannot be read.
pub fn check_pushed(path: Option<&Path>, revision: &Arc<Revision>) -> Result<Draft, ConfigError> {
    let input = Input::open(path.map(Path::to_owned).or_else(default_path).as_deref())?;
    let variable = |name: &str| input.environment.variable(name);
    let mut sources = Sources::new(&variable, &input.base_dir).elsewhere();
    let layers = Layers { pushed: Some(revision.clone()), registered: None };
    let warnings = match parse(&input.text, &input.name, &layers, &mut sources) {
        Ok(checked) => checked.warnings,
        // Nothing is wrong, but too much is missing to tell more.
        Err(problems) if problems.is_empty() => Vec::new(),
        Err(problems) => return Err(problems.into()),
    };
    Ok(Draft { warnings, missing: sources.missing.unwrap_or_default() })
}

/// The secrets that stand in the text of `revision` themselves, rather than as `${NAME}` or `file:PATH`.
#[must_use]
pub fn secrets_in_the_open(revision: &Revision) -> Problems {
    pushed::secrets_in_the_open(&revision.label(), &revision.text)
}

/// The configuration to read when none is named; `None` when there is none.
fn default_path() -> Option<PathBuf> {
    let named = std::env::var_os(PATH_VARIABLE).filter(|path| !path.is_empty()).map(PathBuf::from);
    named.or_else(|| Some(PathBuf::from(DEFAULT_PATH)).filter(|path| path.exists()))
}

/// A configuration's text, and what it is read with.
struct Input {
    environment: Environment,
    base_dir: PathBuf,
    name: String,
    text: String,
}

impl Input {
    /// Reads `path`, or makes the text up from the environment alone.
    fn open(path: Option<&Path>) -> Result<Input, ConfigError> {
        let base_dir = path.and_then(Path::parent).unwrap_or(Path::new("")).to_owned();
        let environment = Environment::of_process(&base_dir.join(".env"))?;
        let (text, name) = match path {
            Some(path) => sources::read_text(path)
                .map_err(|reason| ConfigError::Unreadable { path: path.to_owned(), reason })
                .map(|text| (text, path.display().to_string())),
            None => environment
                .configuration()
                .map(|text| (text, "environment".to_owned()))
                .ok_or(ConfigError::NothingConfigured),
        }?;
        Ok(Input { environment, base_dir, name, text })
    }
}

/// Reads `path`, or the environment alone, with `layers` over it, and says which files that hangs on, whether it is
/// valid or not.
fn read(path: Option<&Path>, layers: &Layers) -> (Result<Loaded, ConfigError>, Vec<PathBuf>) {
    let dotenv = path.and_then(Path::parent).unwrap_or(Path::new("")).join(".env");
    let mut files: Vec<PathBuf> = path.map(Path::to_owned).into_iter().chain([dotenv.clone()]).collect();
    let input = match Input::open(path) {
        Ok(input) => input,
        Err(error) => return (Err(error), files),
    };
    let variable = |name: &str| input.environment.variable(name);
    let mut sources = Sources::new(&variable, &input.base_dir);
    let parsed = parse(&input.text, &input.name, layers, &mut sources);
    files.append(&mut sources.files);
    let loaded = parsed.map_err(ConfigError::from).map(|checked| {
        let mut warnings = checked.warnings;
        // Secrets that are mounted as files are left to whoever mounts them.
        let private = path.filter(|_| checked.inline_secret).into_iter().chain([dotenv.as_path()]);
        warnings.extend(private.filter_map(readable_by_everybody));
        let origin = Origin { path: path.map(Path::to_owned), files: files.clone() };
        Loaded { snapshot: checked.snapshot, origin, warnings }
    });
    (loaded, files)
}

/// Reads a configuration from a text. `name` is what messages call it, `env` the environment; relative paths are relative to
/// `base_dir`.
///
/// # Errors
/// Every problem of the text.
pub fn parse_str(
    text: &str,
    name: &str,
    env: &dyn Fn(&str) -> Option<String>,
    base_dir: &Path,
) -> Result<Loaded, Problems> {
    let mut sources = Sources::new(env, base_dir);
    let checked = parse(text, name, &Layers::default(), &mut sources)?;
    let origin = Origin { path: None, files: sources.files };
    Ok(Loaded { snapshot: checked.snapshot, origin, warnings: checked.warnings })
}

fn parse(text: &str, name: &str, layers: &Layers, sources: &mut Sources<'_>) -> Result<validate::Checked, Problems> {
    let whole = |problem| Problems(vec![problem]);
    let mut problems = Problems::default();
    sources.note(text.as_bytes());
    let mut document = Document::parse(name, text, &mut problems).map_err(whole)?;
    let in_force = match &layers.pushed {
        Some(revision) => {
            sources.note(revision.text.as_bytes());
            Some(pushed::lay_over(&mut document, revision, &mut problems).map_err(whole)?)
        }
        None => None,
    };
    let typed = registered::Typed::of(&document);
    let mut missing = sources.missing.take();
    document.substitute(&mut |name| sources.variable(name), missing.as_mut(), &mut problems);
    sources.missing = missing;
    let mut registry =
        registered::lay_over(&mut document, typed, layers.registered.as_ref(), sources).map_err(whole)?;
    let Some(file) = document.read::<File>(&mut problems) else { return Err(problems.sorted()) };
    registry.changed_versions = match file.registry.changed_versions {
        Some(file::ChangedVersions::Allow) => ChangedVersions::Allow,
        Some(file::ChangedVersions::Refuse) | None => ChangedVersions::Refuse,
    };
    let guardrails_every = file.registry.guardrails_every.map_or(GUARDRAILS_EVERY, |every| every.0);
    registry.guardrails_every = guardrails_every.max(GUARDRAILS_EVERY_MIN);
    registered::check_versions(&document, &registry, &mut problems);
    let mut checked = validate::validate(file, &document, sources, problems, &registry.book.experiments)?;
    checked.snapshot.pushed = in_force;
    checked.snapshot.registry = registry;
    Ok(checked)
}

/// A warning when everybody on this machine can read the secrets of `path`.
#[cfg(unix)]
fn readable_by_everybody(path: &Path) -> Option<String> {
    use std::os::unix::fs::PermissionsExt;
    let mode = std::fs::metadata(path).ok()?.permissions().mode();
    let path = path.display();
    (mode & 0o004 != 0)
        .then(|| format!("{path}: holds secrets and can be read by everybody here; run `chmod 600 {path}`"))
}

/// File modes exist only on Unix.
#[cfg(not(unix))]
fn readable_by_everybody(_: &Path) -> Option<String> {
    None
}

#[cfg(test)]
mod tests;
