//! Who changed what, and when: an append-only file of JSON lines in which each line holds the hash of the one before.
//!
//! A line that was changed, removed or put in between breaks the chain, and [`verify`] says where. Whoever may write the file
//! may also write it anew from some line on: copy the last hash elsewhere where that matters.
//!
//! ```text
//! {"at":"2026-11-23T20:00:00.123Z","actor":"ann (admin token)","action":"budgets.reclaim","subject":"all/all/total",
//!  "reason":"…","before":{…},"after":{…},"prev":"<hash of the line before>","hash":"<SHA-256 of this line without hash>"}
//! ```

use std::{
    collections::VecDeque,
    fs::File,
    io::{self, BufRead, BufReader, Read, Seek, SeekFrom, Write},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use serde::Serialize;
use serde_json::Value;
use sha2::{Digest, Sha256};

use super::{create_private_dir, ports::StoreError, private_file};

/// What stands before the first line.
const GENESIS: &str = "0000000000000000000000000000000000000000000000000000000000000000";
/// The longest line, in bytes: the last one is looked for in so much of the file's end.
const LINE_BYTES_MAX: usize = 1 << 20;
/// Lines that are read together on the way from the end.
const BLOCK: usize = 256;

/// The audit log of one data directory. Processes may share it: each line is written under a lock.
#[derive(Debug, Clone)]
pub struct Audit {
    path: PathBuf,
    /// What was checked before, by whichever clone.
    checked: Arc<Mutex<Checked>>,
}

/// What was done.
#[derive(Debug, Clone, Serialize)]
pub struct Deed<'a> {
    /// Who did it, and how they were let in.
    pub actor: &'a str,
    /// What, such as `budgets.reclaim`.
    pub action: &'a str,
    /// To what.
    pub subject: &'a str,
    /// Why, in the actor's words.
    pub reason: &'a str,
    /// What was true before.
    pub before: Value,
    /// What is true now.
    pub after: Value,
}

#[derive(Serialize)]
struct Line<'a> {
    at: String,
    #[serde(flatten)]
    deed: &'a Deed<'a>,
    prev: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    hash: Option<&'a str>,
}

/// The file, locked, and known to take a line: opened before a deed, written after it.
#[derive(Debug)]
pub struct Page {
    path: PathBuf,
    file: File,
    prev: String,
}

/// Where a chain breaks.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("line {line} of the audit log {why}")]
pub struct Broken {
    /// From 1.
    pub line: usize,
    /// What is wrong with it.
    pub why: &'static str,
}

impl Audit {
    /// `audit.jsonl` in `data_dir`; made with the first deed.
    #[must_use]
    pub fn in_dir(data_dir: &Path) -> Audit {
        Audit { path: data_dir.join("audit.jsonl"), checked: Arc::default() }
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Locks the file for one deed; waits while another process writes.
    ///
    /// # Errors
    /// When it cannot be opened or read: then the deed must not be done.
    pub fn open(&self) -> Result<Page, StoreError> {
        self.open_page().map_err(|error| unavailable(&self.path, &error))
    }

    fn open_page(&self) -> io::Result<Page> {
        if let Some(dir) = self.path.parent() {
            create_private_dir(dir)?;
        }
        let mut file = private_file().open(&self.path)?;
        file.lock()?;
        let length = file.seek(SeekFrom::End(0))?;
        let tail_at = length.saturating_sub(LINE_BYTES_MAX as u64);
        file.seek(SeekFrom::Start(tail_at))?;
        let mut tail = Vec::new();
        file.read_to_end(&mut tail)?;
        // What is not ended by a newline was being written when its process ended: it was never acknowledged.
        let ended = tail.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
        if ended < tail.len() {
            file.set_len(tail_at + ended as u64)?;
        }
        let prev = match tail[..ended].strip_suffix(b"\n").map(last_line) {
            None if tail_at == 0 => GENESIS.to_owned(),
            Some(line) => hash_in(line).ok_or(io::ErrorKind::InvalidData)?,
            None => return Err(io::ErrorKind::InvalidData.into()),
        };
        file.seek(SeekFrom::End(0))?;
        Ok(Page { path: self.path.clone(), file, prev })
    }
}

impl Page {
    /// Writes the deed down, durably; gives the line's hash.
    ///
    /// # Errors
    /// When it cannot be written, or is longer than a mebibyte.
    pub fn write(mut self, at: jiff::Timestamp, deed: &Deed<'_>) -> Result<String, StoreError> {
        self.append(at, deed).map_err(|error| unavailable(&self.path, &error))
    }

    fn append(&mut self, at: jiff::Timestamp, deed: &Deed<'_>) -> io::Result<String> {
        let at = format!("{at:.3}");
        let line = Line { at: at.clone(), deed, prev: &self.prev, hash: None };
        let hash = digest(&serde_json::to_string(&line)?);
        let mut text = serde_json::to_string(&Line { at, hash: Some(&hash), ..line })?;
        text.push('\n');
        if text.len() > LINE_BYTES_MAX {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        self.file.write_all(text.as_bytes())?;
        self.file.sync_data()?;
        Ok(hash)
    }
}

/// Checks the chain of a whole log; says how many lines it has.
///
/// # Errors
/// The first line that breaks it.
pub fn verify(text: &str) -> Result<usize, Broken> {
    let mut chain = Chain::default();
    for line in text.lines() {
        chain.follow(line)?;
    }
    Ok(chain.lines)
}

/// A part of a log, and whether the whole of it can be believed.
#[derive(Debug)]
pub struct Reading {
    /// Lines by their numbers (from 1), the latest first.
    pub lines: Vec<(usize, Value)>,
    /// Where the next part begins; `None` when there are no earlier lines that were asked for.
    pub next: Option<usize>,
    /// How many lines there are, or the first one that breaks the chain. A chain is followed up to there and no further.
    pub chain: Result<usize, Broken>,
    /// The hash of the last line that belongs to the chain: copied elsewhere, it shows later whether lines were written anew.
    pub head: String,
}

impl Audit {
    /// At most `count_max` lines before line `before` (all, unless given) that `wanted` takes. Reads all of the log, a line at a
    /// time. What a crash cut off at its end is left out.
    ///
    /// # Errors
    /// When it cannot be read. One that is not there has no lines.
    pub fn read(
        &self,
        before: Option<usize>,
        count_max: usize,
        wanted: impl Fn(&Value) -> bool,
    ) -> Result<Reading, StoreError> {
        let reading = self.read_lines(before.unwrap_or(usize::MAX), count_max, wanted);
        reading.map_err(|error| unavailable(&self.path, &error))
    }

    fn read_lines(&self, before: usize, count_max: usize, wanted: impl Fn(&Value) -> bool) -> io::Result<Reading> {
        let (mut chain, mut broken, mut kept) = (Chain::default(), None, VecDeque::new());
        let mut number = 0;
        for line in lines_of(&self.path)? {
            let line = line?;
            number += 1;
            let value = match broken {
                // Shown all the same: who looks for what was changed must see it.
                Some(_) => serde_json::from_str(&line).unwrap_or(Value::String(line)),
                None => chain.follow(&line).unwrap_or_else(|why| {
                    broken = Some(why);
                    serde_json::from_str(&line).unwrap_or(Value::String(line))
                }),
            };
            if number < before && wanted(&value) {
                kept.push_back((number, value));
                // One more than wanted says whether there are more.
                if kept.len() > count_max + 1 {
                    kept.pop_front();
                }
            }
        }
        let more = kept.len() > count_max;
        if more {
            kept.pop_front();
        }
        let next = kept.front().filter(|_| more).map(|(number, _)| *number);
        let chain_length = broken.map_or(Ok(chain.lines), Err);
        Ok(Reading { lines: kept.into_iter().rev().collect(), next, chain: chain_length, head: chain.prev })
    }
}

/// How far a log was checked by this process.
#[derive(Debug, Default)]
struct Checked {
    /// Device and number of the file: another one begins anew.
    file: (u64, u64),
    /// Its length and its last change: one that was changed and did not grow was not appended to.
    seen: (u64, (i64, i64)),
    chain: Chain,
    broken: Option<Broken>,
    /// Lines in all, those beyond a break too.
    lines: usize,
    /// Where what was not looked at begins.
    end: u64,
    /// Where each [`BLOCK`] of lines begins.
    blocks: Vec<u64>,
}

impl Audit {
    /// As [`Audit::read`], for who looks often: of the chain only what was appended since the last time is checked, and lines are
    /// read from the end, in blocks, until there are enough. A file that was changed and did not grow is checked anew; a change
    /// of old lines together with new ones is seen by [`Audit::read`], and after a restart.
    ///
    /// # Errors
    /// When it cannot be read. One that is not there has no lines.
    pub fn recent(
        &self,
        before: Option<usize>,
        count_max: usize,
        wanted: impl Fn(&Value) -> bool,
    ) -> Result<Reading, StoreError> {
        let reading = self.read_recent(before.unwrap_or(usize::MAX), count_max, wanted);
        reading.map_err(|error| unavailable(&self.path, &error))
    }

    fn read_recent(&self, before: usize, count_max: usize, wanted: impl Fn(&Value) -> bool) -> io::Result<Reading> {
        let mut checked = self.checked.lock().unwrap_or_else(PoisonError::into_inner);
        let mut file = match File::open(&self.path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Ok(Checked::default().reading(Vec::new(), None));
            }
            Err(error) => return Err(error),
        };
        checked.catch_up(&mut file)?;
        let (mut lines, mut next) = (Vec::new(), None);
        'blocks: for (block, begins) in checked.blocks.iter().enumerate().rev() {
            let first = block * BLOCK + 1;
            if first >= before {
                continue;
            }
            let ends = checked.blocks.get(block + 1).copied().unwrap_or(checked.end);
            let text = part_of(&mut file, *begins, ends)?;
            let numbered: Vec<(usize, &str)> = (first..).zip(text.lines()).collect();
            for (number, line) in numbered.into_iter().rev().filter(|(number, _)| *number < before) {
                let value = serde_json::from_str(line).unwrap_or_else(|_| Value::from(line));
                if !wanted(&value) {
                    continue;
                }
                if lines.len() == count_max {
                    // There is one more: the next part begins below what was taken last.
                    next = lines.last().map(|(number, _)| *number);
                    break 'blocks;
                }
                lines.push((number, value));
            }
        }
        Ok(checked.reading(lines, next))
    }
}

impl Checked {
    /// Follows the chain through what was appended.
    fn catch_up(&mut self, file: &mut File) -> io::Result<()> {
        let metadata = file.metadata()?;
        let identity = (metadata.dev(), metadata.ino());
        let seen = (metadata.len(), (metadata.ctime(), metadata.ctime_nsec()));
        let was_changed = seen.0 < self.seen.0 || (seen.0 == self.seen.0 && seen.1 != self.seen.1);
        // One that is broken is read anew whenever it changed: where it breaks first may be elsewhere by then.
        let is_doubtful = self.broken.is_some() && seen != self.seen;
        if self.file != identity || was_changed || is_doubtful {
            *self = Checked { file: identity, ..Checked::default() };
        }
        self.seen = seen;
        file.seek(SeekFrom::Start(self.end))?;
        for line in complete_lines(BufReader::new(file)) {
            let line = line?;
            if self.lines.is_multiple_of(BLOCK) {
                self.blocks.push(self.end);
            }
            self.lines += 1;
            self.end += line.len() as u64 + 1;
            if self.broken.is_none() {
                self.broken = self.chain.follow(&String::from_utf8_lossy(&line)).err();
            }
        }
        Ok(())
    }

    fn reading(&self, lines: Vec<(usize, Value)>, next: Option<usize>) -> Reading {
        let chain = self.broken.clone().map_or(Ok(self.chain.lines), Err);
        Reading { lines, next, chain, head: self.chain.prev.clone() }
    }
}

/// The bytes of a file from `begin` to `end`, as text.
fn part_of(file: &mut File, begin: u64, end: u64) -> io::Result<String> {
    let mut bytes = Vec::new();
    file.seek(SeekFrom::Start(begin))?;
    file.take(end.saturating_sub(begin)).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// The complete lines of a log.
fn lines_of(path: &Path) -> io::Result<impl Iterator<Item = io::Result<String>>> {
    let file = match File::open(path) {
        Ok(file) => Some(file),
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) => return Err(error),
    };
    let lines = file.map(|file| complete_lines(BufReader::new(file))).into_iter().flatten();
    Ok(lines.map(|line| line.map(|line| String::from_utf8_lossy(&line).into_owned())))
}

/// The lines that are ended, without their ends. What is not was cut by a crash, or is being written: it was never acknowledged.
fn complete_lines(mut reader: impl BufRead) -> impl Iterator<Item = io::Result<Vec<u8>>> {
    let mut is_over = false;
    std::iter::from_fn(move || {
        let mut line = Vec::new();
        let read = if is_over { Ok(0) } else { reader.read_until(b'\n', &mut line) };
        match read {
            Ok(_) if line.pop() == Some(b'\n') => Some(Ok(line)),
            Ok(_) => None,
            Err(error) => {
                is_over = true;
                Some(Err(error))
            }
        }
    })
}

/// A chain as far as it was followed.
#[derive(Debug)]
struct Chain {
    lines: usize,
    prev: String,
}

impl Default for Chain {
    fn default() -> Chain {
        Chain { lines: 0, prev: GENESIS.to_owned() }
    }
}

impl Chain {
    /// Takes the next line; gives back what it says, its hashes included.
    fn follow(&mut self, line: &str) -> Result<Value, Broken> {
        let broken = |why| Broken { line: self.lines + 1, why };
        let mut value: Value = serde_json::from_str(line).map_err(|_| broken("cannot be read"))?;
        let fields = value.as_object_mut().ok_or(broken("cannot be read"))?;
        if fields.get("prev").and_then(Value::as_str) != Some(&self.prev) {
            return Err(broken("does not follow the one before"));
        }
        let hash = fields.shift_remove("hash");
        let hash = hash.as_ref().and_then(Value::as_str).ok_or(broken("has no hash"))?;
        if digest(&value.to_string()) != hash {
            return Err(broken("was changed"));
        }
        hash.clone_into(&mut self.prev);
        self.lines += 1;
        value["hash"] = Value::from(hash);
        Ok(value)
    }
}

fn last_line(lines: &[u8]) -> &[u8] {
    lines.rsplit(|byte| *byte == b'\n').next().unwrap_or_default()
}

fn hash_in(line: &[u8]) -> Option<String> {
    let line: Value = serde_json::from_slice(line).ok()?;
    line.get("hash")?.as_str().map(str::to_owned)
}

fn digest(text: &str) -> String {
    Sha256::digest(text.as_bytes()).iter().map(|byte| format!("{byte:02x}")).collect()
}

fn unavailable(path: &Path, error: &io::Error) -> StoreError {
    StoreError::Unavailable(format!("the audit log {}: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn write(audit: &Audit, subject: &str) {
        let (before, after) = (json!({"charged": 1}), json!({"charged": 2, "note": "ä\n"}));
        let deed = Deed { actor: "ann", action: "budgets.credit", subject, reason: "a test", before, after };
        audit.open().unwrap().write(jiff::Timestamp::UNIX_EPOCH, &deed).unwrap();
    }

    fn three() -> (tempfile::TempDir, Audit) {
        let dir = tempfile::tempdir().unwrap();
        let audit = Audit::in_dir(dir.path());
        for subject in ["a", "b", "c"] {
            write(&audit, subject);
        }
        (dir, audit)
    }

    #[test]
    fn what_was_done_is_chained_and_any_change_is_seen() {
        let (_dir, audit) = three();
        let text = std::fs::read_to_string(audit.path()).unwrap();
        assert_eq!(verify(&text), Ok(3));
        let lines: Vec<&str> = text.lines().collect();
        assert!(lines[0].starts_with(r#"{"at":"1970-01-01T00:00:00.000Z","actor":"ann","action":"budgets.credit""#));
        let broken_at = |lines: &[&str]| verify(&lines.join("\n")).unwrap_err().line;
        assert_eq!(broken_at(&[lines[1], lines[2]]), 1);
        assert_eq!(broken_at(&[lines[0], lines[2]]), 2);
        assert_eq!(broken_at(&[lines[0], &lines[1].replace("\"charged\":2", "\"charged\":3"), lines[2]]), 2);
        assert_eq!(broken_at(&[lines[0], "nonsense"]), 2);
    }

    #[test]
    fn a_line_that_was_cut_by_a_crash_is_taken_back() {
        let (_dir, audit) = three();
        let whole = std::fs::read(audit.path()).unwrap();
        let second_ends = whole.iter().enumerate().filter(|(_, byte)| **byte == b'\n').nth(1).unwrap().0;
        std::fs::write(audit.path(), &whole[..second_ends + 20]).unwrap();
        write(&audit, "d");
        let text = std::fs::read_to_string(audit.path()).unwrap();
        assert_eq!(verify(&text), Ok(3));
        assert!(text.contains(r#""subject":"d""#) && !text.contains(r#""subject":"c""#));
    }

    #[test]
    fn the_latest_lines_are_read_first_and_a_broken_chain_is_named() {
        let (_dir, audit) = three();
        let subjects = |reading: &Reading| -> Vec<String> {
            reading.lines.iter().map(|(_, line)| line["subject"].as_str().unwrap_or_default().to_owned()).collect()
        };
        let first = audit.read(None, 2, |_| true).unwrap();
        assert_eq!((subjects(&first), first.next, &first.chain), (vec!["c".into(), "b".into()], Some(2), &Ok(3)));
        assert_eq!(first.lines[0].1["hash"], first.head.as_str());
        let second = audit.read(first.next, 2, |_| true).unwrap();
        assert_eq!((subjects(&second), second.next), (vec!["a".to_owned()], None));
        let only_b = audit.read(None, 1, |line| line["subject"] == "b").unwrap();
        assert_eq!((subjects(&only_b), only_b.next), (vec!["b".to_owned()], None));

        let text = std::fs::read_to_string(audit.path()).unwrap();
        std::fs::write(audit.path(), text.replacen("\"subject\":\"b\"", "\"subject\":\"x\"", 1) + "{half").unwrap();
        let broken = audit.read(None, 9, |_| true).unwrap();
        assert_eq!(broken.chain, Err(Broken { line: 2, why: "was changed" }));
        assert_eq!(subjects(&broken), ["c", "x", "a"], "what is there is shown all the same");

        let nothing = Audit::in_dir(Path::new("/nowhere/at/all")).read(None, 9, |_| true).unwrap();
        assert_eq!((nothing.lines.len(), nothing.chain), (0, Ok(0)));
    }

    #[test]
    fn pages_are_read_from_the_end_as_the_whole_is() {
        let dir = tempfile::tempdir().unwrap();
        let audit = Audit::in_dir(dir.path());
        assert_eq!(audit.recent(None, 9, |_| true).unwrap().chain, Ok(0));
        for n in 0..BLOCK + 10 {
            write(&audit, if n % 3 == 0 { "third" } else { "other" });
            if n == BLOCK / 2 {
                assert_eq!(audit.recent(None, 1, |_| true).unwrap().lines[0].0, n + 1, "what is appended is seen");
            }
        }
        for third in [false, true] {
            let wanted = |line: &Value| !third || line["subject"] == "third";
            let (mut before, mut seen) = (None, Vec::new());
            loop {
                let (page, whole) =
                    (audit.recent(before, 50, wanted).unwrap(), audit.read(before, 50, wanted).unwrap());
                assert_eq!((&page.lines, page.next), (&whole.lines, whole.next));
                assert_eq!((&page.chain, &page.head), (&whole.chain, &whole.head));
                seen.extend(page.lines.into_iter().map(|(number, _)| number));
                before = page.next;
                if before.is_none() {
                    break;
                }
            }
            let expected: Vec<usize> =
                (1..=BLOCK + 10).rev().filter(|number| !third || (number - 1) % 3 == 0).collect();
            assert_eq!(seen, expected);
        }
    }

    #[test]
    fn what_breaks_the_chain_is_seen_when_it_is_appended_or_the_file_is_another() {
        let (_dir, audit) = three();
        assert_eq!(audit.recent(None, 9, |_| true).unwrap().chain, Ok(3));
        let text = std::fs::read_to_string(audit.path()).unwrap();
        std::fs::write(audit.path(), text.replacen("\"a\"", "\"x\"", 1)).unwrap();
        let changed = audit.recent(None, 9, |_| true).unwrap();
        assert_eq!(changed.chain, Err(Broken { line: 1, why: "was changed" }), "as long as before, and not the same");
        std::fs::write(audit.path(), text.clone()).unwrap();
        assert_eq!(audit.recent(None, 9, |_| true).unwrap().chain, Ok(3));
        std::fs::write(audit.path(), text.clone() + "{}\n").unwrap();
        let broken = audit.recent(None, 9, |_| true).unwrap();
        assert_eq!(
            (broken.chain, broken.lines.len()),
            (Err(Broken { line: 4, why: "does not follow the one before" }), 4)
        );
        std::fs::write(audit.path(), text.lines().next().unwrap().to_owned() + "\n").unwrap();
        assert_eq!(audit.recent(None, 9, |_| true).unwrap().chain, Ok(1), "a shorter one is checked anew");
    }

    #[test]
    fn a_log_that_is_none_is_not_continued() {
        let dir = tempfile::tempdir().unwrap();
        let audit = Audit::in_dir(dir.path());
        std::fs::write(audit.path(), "nonsense\n").unwrap();
        assert!(audit.open().is_err());
    }
}
