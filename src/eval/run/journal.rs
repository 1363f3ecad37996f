//! The journal of a run, `RUN.jsonl`: a line that says what is run, then a line for each finished case, written as it finishes.
//!
//! A run that was broken off goes on from it. A line that was cut by a crash is no line.

use std::{
    collections::BTreeMap,
    fs::{self, File, OpenOptions},
    io::{self, Write},
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use super::row::Row;

/// The file's name in the directory of a run.
pub const FILE: &str = "RUN.jsonl";

/// The first line.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Header {
    /// The suite's name.
    pub suite: String,
    /// What results depend on: see [`crate::eval::suite::Suite::fingerprint`].
    pub fingerprint: String,
    /// The release that began it.
    pub tollgate: String,
    /// When it began, in RFC 3339.
    pub started: String,
}

/// Why a journal cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    /// The file cannot be read or written.
    #[error("{path}: {1}", path = .0.display())]
    File(PathBuf, io::Error),
    /// There is a run in the directory already.
    #[error("{path} holds a run already: go on with it by `--resume {path}`, or name another directory", path = .0.display())]
    Taken(PathBuf),
    /// There is none to go on with.
    #[error("{} holds no run to go on with", .0.display())]
    Nothing(PathBuf),
    /// It is the journal of something else.
    #[error("{} is a run of another suite: cases, candidates or scorers have changed since; run it anew", .0.display())]
    Changed(PathBuf),
    /// A line in its midst is no row.
    #[error("{path}:{1}: is no finished case: {2}", path = .0.display())]
    Damaged(PathBuf, usize, String),
}

/// A journal that is written.
#[derive(Debug)]
pub struct Journal {
    path: PathBuf,
    file: File,
    /// What it begins with.
    pub header: Header,
}

/// Rows by case, candidate and repeat.
pub type Rows = BTreeMap<(String, String, u32), Row>;

impl Journal {
    /// Begins a journal in `dir`, which is made where it is not there.
    ///
    /// # Errors
    /// When there is one already, or it cannot be written.
    pub fn begin(dir: &Path, header: Header) -> Result<Journal, JournalError> {
        let path = dir.join(FILE);
        let failed = |error: io::Error| match error.kind() {
            io::ErrorKind::AlreadyExists => JournalError::Taken(dir.to_owned()),
            _ => JournalError::File(path.clone(), error),
        };
        fs::create_dir_all(dir).map_err(failed)?;
        let mut file = OpenOptions::new().write(true).create_new(true).open(&path).map_err(failed)?;
        write_line(&mut file, &header).map_err(failed)?;
        Ok(Journal { path, file, header })
    }

    /// Goes on with the journal in `dir`. Cases without an answer are asked anew.
    ///
    /// # Errors
    /// When there is none, it is of another suite, or cannot be read.
    pub fn resume(dir: &Path, fingerprint: &str) -> Result<(Journal, Rows), JournalError> {
        let path = dir.join(FILE);
        let failed = |error| JournalError::File(path.clone(), error);
        let (header, mut rows, whole) = match read(dir)? {
            Some(read) => read,
            None => return Err(JournalError::Nothing(dir.to_owned())),
        };
        if header.fingerprint != fingerprint {
            return Err(JournalError::Changed(dir.to_owned()));
        }
        rows.retain(|_, row| row.error.is_none());
        let file = OpenOptions::new().append(true).open(&path).map_err(failed)?;
        file.set_len(whole).map_err(failed)?;
        Ok((Journal { path, file, header }, rows))
    }

    /// Adds a finished case.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn add(&mut self, row: &Row) -> Result<(), JournalError> {
        write_line(&mut self.file, row).map_err(|error| JournalError::File(self.path.clone(), error))
    }
}

/// One write a line: what another process reads is a whole line or none.
fn write_line(file: &mut File, line: &impl Serialize) -> io::Result<()> {
    let mut text = serde_json::to_vec(line)?;
    text.push(b'\n');
    file.write_all(&text)
}

/// The header, the rows, and the length of all whole lines; `None` where there is not even a whole header.
fn read(dir: &Path) -> Result<Option<(Header, Rows, u64)>, JournalError> {
    let path = dir.join(FILE);
    let text = match fs::read(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(JournalError::File(path, error)),
    };
    let whole = text.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
    let mut lines = text[..whole].split(|byte| *byte == b'\n').enumerate().filter(|(_, line)| !line.is_empty());
    let damaged = |i: usize, error: serde_json::Error| JournalError::Damaged(path.clone(), i + 1, error.to_string());
    let Some((_, first)) = lines.next() else { return Ok(None) };
    let header: Header = serde_json::from_slice(first).map_err(|error| damaged(0, error))?;
    let mut rows = Rows::new();
    for (i, line) in lines {
        let row: Row = serde_json::from_slice(line).map_err(|error| damaged(i, error))?;
        rows.insert(row.key(), row);
    }
    Ok(Some((header, rows, whole as u64)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header() -> Header {
        let text = |text: &str| text.to_owned();
        Header { suite: text("s"), fingerprint: text("f1"), tollgate: text("0"), started: text("t") }
    }

    fn row(case: &str, error: Option<&str>) -> Row {
        Row { case: case.to_owned(), candidate: "c".to_owned(), error: error.map(str::to_owned), ..Row::default() }
    }

    #[test]
    fn a_run_goes_on_after_its_last_whole_line() {
        let dir = tempfile::tempdir().unwrap();
        let mut journal = Journal::begin(dir.path(), header()).unwrap();
        journal.add(&row("1", None)).unwrap();
        journal.add(&row("2", Some("no answer"))).unwrap();
        journal.file.write_all(b"{\"case\": \"3\", \"cand").unwrap();

        let (mut journal, rows) = Journal::resume(dir.path(), "f1").unwrap();
        assert_eq!(rows.keys().map(|key| key.0.as_str()).collect::<Vec<_>>(), ["1"]);
        journal.add(&row("2", None)).unwrap();

        let (_, rows) = Journal::resume(dir.path(), "f1").unwrap();
        assert_eq!(rows.keys().map(|key| key.0.as_str()).collect::<Vec<_>>(), ["1", "2"]);
    }

    #[test]
    fn a_journal_is_neither_overwritten_nor_taken_for_another() {
        let dir = tempfile::tempdir().unwrap();
        assert!(matches!(Journal::resume(dir.path(), "f1"), Err(JournalError::Nothing(_))));
        drop(Journal::begin(dir.path(), header()).unwrap());
        assert!(matches!(Journal::begin(dir.path(), header()), Err(JournalError::Taken(_))));
        assert!(matches!(Journal::resume(dir.path(), "f2"), Err(JournalError::Changed(_))));
        fs::write(
            dir.path().join(FILE),
            "{\"suite\":\"s\",\"fingerprint\":\"f1\",\"tollgate\":\"0\",\"started\":\"t\"}\nnonsense\n",
        )
        .unwrap();
        assert!(matches!(Journal::resume(dir.path(), "f1"), Err(JournalError::Damaged(_, 2, _))));
    }
}
