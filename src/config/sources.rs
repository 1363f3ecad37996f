//! What a configuration is read from besides its own text: the environment, `.env`, secrets, prompts and prices in files.
//!
//! Notes every file, so that it can be watched, and hashes everything that was read.

use std::{
    collections::{BTreeSet, HashMap},
    io::{self, Read},
    path::{Path, PathBuf},
};

use sha2::{Digest, Sha256};

/// Larger files are refused: none of ours is near, and a device file would never end.
const FILE_BYTES_MAX: u64 = 16 << 20;

/// Reads and notes.
pub(super) struct Sources<'a> {
    environment: &'a dyn Fn(&str) -> Option<String>,
    base_dir: PathBuf,
    hasher: Sha256,
    /// Every file that was read, or that could not be.
    pub(super) files: Vec<PathBuf>,
    /// Given, variables and secret files that are not here are noted in it and are no problem.
    pub(super) missing: Option<BTreeSet<String>>,
}

impl<'a> Sources<'a> {
    /// Relative paths are relative to `base_dir`.
    pub(super) fn new(environment: &'a dyn Fn(&str) -> Option<String>, base_dir: &Path) -> Sources<'a> {
        Sources { environment, base_dir: base_dir.to_owned(), hasher: Sha256::new(), files: Vec::new(), missing: None }
    }

    /// Tolerates what is not on this machine, but will be where the configuration is used.
    pub(super) fn elsewhere(self) -> Sources<'a> {
        Sources { missing: Some(BTreeSet::new()), ..self }
    }

    /// Whether a secret's file may be missing; notes it then.
    pub(super) fn tolerates(&mut self, path: &str) -> bool {
        let Some(missing) = &mut self.missing else { return false };
        missing.insert(format!("file:{path}"));
        true
    }

    /// The value of `name`, or else the content of the file that `name_FILE` names.
    pub(super) fn variable(&mut self, name: &str) -> Option<String> {
        let value = (self.environment)(name).or_else(|| {
            let path = (self.environment)(&format!("{name}_FILE")).filter(|path| !path.is_empty())?;
            self.secret_file(&path).ok()
        });
        self.note(name.as_bytes());
        self.note(value.as_deref().unwrap_or_default().as_bytes());
        value
    }

    /// A text file.
    ///
    /// # Errors
    /// When it cannot be read, is no UTF-8, or is absurdly large.
    pub(super) fn file(&mut self, path: &str) -> io::Result<String> {
        let path = self.resolve(path);
        self.files.push(path.clone());
        let text = read_text(&path)?;
        self.note(text.as_bytes());
        Ok(text)
    }

    /// A text file of a folder beside the configuration, which no link leads out of.
    ///
    /// # Errors
    /// As [`Sources::file`]; also when it is elsewhere.
    pub(super) fn file_within(&mut self, folder: &str, path: &str) -> io::Result<String> {
        // Noted before it is looked at: one that is missing may come.
        self.files.push(self.resolve(folder).join(path));
        let text = self.peek_within(folder, path)?;
        self.note(path.as_bytes());
        self.note(text.as_bytes());
        Ok(text)
    }

    /// A text file that is read, and counted, elsewhere.
    ///
    /// # Errors
    /// As [`Sources::file`].
    pub(super) fn peek(&self, path: &str) -> io::Result<String> {
        read_text(&self.resolve(path))
    }

    /// A text file of a folder that is read, and counted, elsewhere.
    ///
    /// # Errors
    /// As [`Sources::file_within`].
    pub(super) fn peek_within(&self, folder: &str, path: &str) -> io::Result<String> {
        let folder = self.resolve(folder);
        let real = folder.join(path).canonicalize()?;
        match real.starts_with(folder.canonicalize()?) {
            true => read_text(&real),
            false => Err(io::Error::other("it leads out of the folder")),
        }
    }

    /// A file with one secret, without the line break at its end.
    ///
    /// # Errors
    /// As [`Sources::file`].
    pub(super) fn secret_file(&mut self, path: &str) -> io::Result<String> {
        let mut text = self.file(path)?;
        if text.ends_with('\n') {
            text.pop();
            if text.ends_with('\r') {
                text.pop();
            }
        }
        Ok(text)
    }

    /// `path`, relative to the configuration.
    pub(super) fn resolve(&self, path: &str) -> PathBuf {
        self.base_dir.join(path)
    }

    /// Counts into the hash; lengths keep neighbours apart.
    pub(super) fn note(&mut self, bytes: &[u8]) {
        self.hasher.update((bytes.len() as u64).to_be_bytes());
        self.hasher.update(bytes);
    }

    /// First 12 hex digits of the SHA-256 of everything noted.
    pub(super) fn hash(&self) -> String {
        self.hasher.clone().finalize().iter().take(6).map(|byte| format!("{byte:02x}")).collect()
    }
}

/// Reads a whole text file.
///
/// # Errors
/// When it cannot be read, is no UTF-8, or is absurdly large.
pub(super) fn read_text(path: &Path) -> io::Result<String> {
    String::from_utf8(read_bytes(path)?).map_err(|_| io::Error::other("not UTF-8"))
}

/// Reads a whole file.
///
/// # Errors
/// When it cannot be read or is absurdly large.
pub(super) fn read_bytes(path: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    std::fs::File::open(path)?.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > FILE_BYTES_MAX {
        return Err(io::Error::other("larger than 16 MiB"));
    }
    Ok(bytes)
}

/// The assignments of a `.env` file: `NAME=value`, `export NAME="value"`, `#` comments. Values are taken literally.
///
/// # Errors
/// The number of the first line that is none of these.
pub(super) fn parse_dotenv(text: &str) -> Result<HashMap<String, String>, usize> {
    let mut values = HashMap::new();
    for (i, line) in text.lines().enumerate() {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let line = line.strip_prefix("export ").unwrap_or(line);
        let (name, value) = line.split_once('=').ok_or(i + 1)?;
        let name = name.trim();
        if name.is_empty() || name.contains(char::is_whitespace) {
            return Err(i + 1);
        }
        values.insert(name.to_owned(), dotenv_value(value.trim()).ok_or(i + 1)?);
    }
    Ok(values)
}

/// A quoted value whole; an unquoted one up to ` #`. `None` when a quote is never closed.
fn dotenv_value(value: &str) -> Option<String> {
    for quote in ['"', '\''] {
        if let Some(rest) = value.strip_prefix(quote) {
            return rest.split_once(quote).map(|(inside, _)| inside.to_owned());
        }
    }
    Some(value.split(" #").next().unwrap_or(value).trim_end().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dotenv_is_read_literally() {
        let values =
            parse_dotenv("# keys\nA=1\nexport B=\"two # 2\"\n C = 'x=y' \nD=plain # why\nE=\n").expect("valid");
        let of = |name: &str| values.get(name).map(String::as_str);
        assert_eq!(
            [of("A"), of("B"), of("C"), of("D"), of("E")],
            [Some("1"), Some("two # 2"), Some("x=y"), Some("plain"), Some("")]
        );
        assert_eq!(parse_dotenv("A=1\nnonsense\n"), Err(2));
        assert_eq!(parse_dotenv("A=\"open\n"), Err(1));
    }

    #[test]
    fn a_variable_may_name_a_file() {
        let dir = tempfile::tempdir().expect("a directory");
        std::fs::write(dir.path().join("key"), "sk-1\r\n").expect("written");
        let environment = |name: &str| (name == "KEY_FILE").then(|| "key".to_owned());
        let mut sources = Sources::new(&environment, dir.path());
        assert_eq!(sources.variable("KEY").as_deref(), Some("sk-1"));
        assert_eq!(sources.files, [dir.path().join("key")]);
    }
}
