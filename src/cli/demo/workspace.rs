//! Where the demonstration keeps its configuration and its ledger, which addresses it takes, and who answers.

use std::{
    env, fs, io,
    net::{Ipv4Addr, SocketAddr, TcpListener},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use anyhow::Context;

/// The configuration, with `"${DEMO_…:-…}"` where the demonstration fills in.
const CONFIGURATION: &str = include_str!("../../../config/demo.yaml");
/// Names a directory to keep; without it a temporary one is made.
const DATA_VARIABLE: &str = "TOLLGATE_DEMO_DATA";
/// A name of its own, so that nothing of the user's is overwritten.
const FILE_NAME: &str = "tollgate-demo.yaml";

/// Who answers calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Backend {
    /// The gateway itself.
    Simulated,
    /// OpenAI, for money.
    OpenAi,
}

/// Where to listen. Port 0 takes any free one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Addresses {
    pub(super) listen: SocketAddr,
    pub(super) admin: SocketAddr,
}

/// A directory with a configuration in it; a temporary one goes with this value.
#[derive(Debug)]
pub(super) struct Workspace {
    pub(super) backend: Backend,
    pub(super) addresses: Addresses,
    configuration: PathBuf,
    temporary: Option<PathBuf>,
}

// === impl Backend ===

impl Backend {
    pub(super) fn from_environment() -> Backend {
        let has_key = env::var("OPENAI_API_KEY").is_ok_and(|key| !key.trim().is_empty());
        if has_key { Backend::OpenAi } else { Backend::Simulated }
    }

    /// Provider, large model, small model.
    fn names(self) -> [&'static str; 3] {
        match self {
            Backend::Simulated => ["sim", "sim/large", "sim/small"],
            Backend::OpenAi => ["openai", "openai/gpt-4.1-mini", "openai/gpt-4.1-nano"],
        }
    }
}

// === impl Addresses ===

impl Addresses {
    /// Those of the documentation.
    pub(super) const DEFAULT: Addresses = Addresses { listen: loopback(8080), admin: loopback(9090) };
    /// Whatever is free.
    pub(super) const ANY_FREE: Addresses = Addresses { listen: loopback(0), admin: loopback(0) };

    /// The default ports, and a free one for each that is taken.
    pub(super) fn free_or_default() -> Addresses {
        let free = |address: SocketAddr| if TcpListener::bind(address).is_ok() { address } else { loopback(0) };
        Addresses { listen: free(Addresses::DEFAULT.listen), admin: free(Addresses::DEFAULT.admin) }
    }
}

const fn loopback(port: u16) -> SocketAddr {
    SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), port)
}

// === impl Workspace ===

impl Workspace {
    /// Makes the directory, unless [`DATA_VARIABLE`] names one, and writes the configuration into it.
    pub(super) fn create(backend: Backend, addresses: Addresses) -> anyhow::Result<Workspace> {
        let named = env::var_os(DATA_VARIABLE).filter(|path| !path.is_empty()).map(PathBuf::from);
        let (directory, temporary) = match named {
            Some(directory) => (std::path::absolute(directory)?, None),
            None => {
                let directory = env::temp_dir().join(format!("tollgate-demo-{}", uuid::Uuid::now_v7().simple()));
                (directory.clone(), Some(directory))
            }
        };
        make_private(&directory).with_context(|| format!("cannot make the directory {}", directory.display()))?;
        // From here on a temporary directory is removed, whatever follows.
        let workspace = Workspace { backend, addresses, configuration: directory.join(FILE_NAME), temporary };
        let text = configuration(backend, addresses, &directory.join("data"));
        write_private(&workspace.configuration, &text)
            .with_context(|| format!("cannot write {}", workspace.configuration.display()))?;
        Ok(workspace)
    }

    /// The file to serve.
    pub(super) fn configuration(&self) -> &Path {
        &self.configuration
    }

    /// Whether nothing will be left.
    pub(super) fn is_temporary(&self) -> bool {
        self.temporary.is_some()
    }
}

impl Drop for Workspace {
    fn drop(&mut self) {
        if let Some(directory) = &self.temporary {
            // What cannot be removed is left to whoever cleans the temporary directory.
            let _ = fs::remove_dir_all(directory);
        }
    }
}

fn configuration(backend: Backend, addresses: Addresses, data: &Path) -> String {
    let [provider, large, small] = backend.names();
    let filled = [
        ("DEMO_LISTEN", addresses.listen.to_string()),
        ("DEMO_ADMIN", addresses.admin.to_string()),
        ("DEMO_DATA", data.display().to_string()),
        ("DEMO_PROVIDER", provider.to_owned()),
        ("DEMO_LARGE", large.to_owned()),
        ("DEMO_SMALL", small.to_owned()),
    ];
    filled.iter().fold(CONFIGURATION.to_owned(), |text, (name, value)| fill(&text, name, value))
}

/// Puts `value` in the place of each `"${name:-…}"`.
fn fill(text: &str, name: &str, value: &str) -> String {
    let begin = format!("\"${{{name}:-");
    // A JSON string is a YAML one; `$$` is a plain `$`.
    let value = serde_json::json!(value.replace('$', "$$")).to_string();
    let mut filled = String::with_capacity(text.len());
    let mut rest = text;
    while let Some((before, after)) = rest.split_once(&begin) {
        let (_, after) = after.split_once("}\"").unwrap_or_default();
        filled.push_str(before);
        filled.push_str(&value);
        rest = after;
    }
    filled + rest
}

fn make_private(directory: &Path) -> io::Result<()> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(directory)
}

fn write_private(path: &Path, text: &str) -> io::Result<()> {
    let mut file = fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path)?;
    io::Write::write_all(&mut file, text.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config;

    fn parsed(backend: Backend, data: &str) -> config::Loaded {
        let text = configuration(backend, Addresses::ANY_FREE, Path::new(data));
        config::parse_str(&text, "demo.yaml", &|_| None, Path::new("")).expect("valid")
    }

    #[test]
    fn the_configuration_is_valid_for_both_backends_and_says_where_to_listen() {
        for backend in [Backend::Simulated, Backend::OpenAi] {
            let loaded = parsed(backend, "/tmp/demo");
            assert_eq!(loaded.snapshot.server.listen, Addresses::ANY_FREE.listen);
            assert_eq!(loaded.snapshot.not_yet, Vec::<String>::new());
        }
    }

    #[test]
    fn with_openai_nothing_is_answered_by_the_simulated_provider() {
        let loaded = parsed(Backend::OpenAi, "/tmp/demo");
        let versions = loaded.snapshot.models.values().flat_map(|model| model.versions.values());
        for version in versions {
            let targets = version.targets.iter().map(|(target, _)| target).chain(&version.fallbacks);
            for target in targets {
                assert_eq!(&*target.provider.name, "openai");
                assert!(target.price.is_some(), "no price for {}", target.model);
            }
        }
    }

    #[test]
    fn any_directory_can_be_filled_in() {
        let odd = "/tmp/a \"b\" ${C} $d";
        assert_eq!(parsed(Backend::Simulated, odd).snapshot.data_dir, Path::new(odd));
    }

    #[test]
    fn a_temporary_workspace_leaves_nothing() {
        let workspace = Workspace::create(Backend::Simulated, Addresses::ANY_FREE).unwrap();
        let directory = workspace.configuration().parent().unwrap().to_owned();
        assert!(workspace.configuration().exists());
        drop(workspace);
        assert!(!directory.exists());
    }
}
