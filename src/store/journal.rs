//! What this process reserved and settled: an append-only file that is exact after `kill -9`.
//!
//! An intent is written before its call is dispatched, with one `write`; its settlement later overwrites a slot that the
//! intent brought along, so settling needs no space and cannot fail for want of it. The page cache survives the process,
//! so nothing is synced to disk: after a power loss (another boot id), or when the file is damaged, all that was granted
//! counts as spent.
//!
//! Places in the file are given out under a lock and written outside of it: a thread that loses its core within the system
//! call keeps no other one waiting. A process that is killed may so leave places of zeros before the end, whose calls were
//! never dispatched. A whole page of them is damage.
//!
//! Records are 64 bytes, aligned, each with a CRC-32 over its other bytes, so none crosses a page and none is half written
//! by a process that is killed. Integers are little-endian.
//!
//! ```text
//!  0  crc    4  kind   5  count   6  total
//!  8  header:   magic 8, incarnation 8, boot id 36
//!     account:  purse 4, key bytes up to 44 (count: in this record, total: of the key)
//!     totals:   purse 4, unused 4, charged 8, debt 8
//!     intent:   attempt 8, bound 8, up to 3 × (purse 4, covered 8) (count: in this record, total: of the intent)
//!     slot:     64 zero bytes at the end of an intent, until overwritten by
//!     settled:  attempt 8, actual 8
//!     closed:   purse 4
//! ```

use std::{
    collections::{BTreeMap, HashMap},
    fs::{self, File},
    io,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard},
};

use super::{
    DataDir,
    ports::{AccountSync, StoreError},
    private_file,
};
use crate::ledger::{
    purse,
    sync::{Close, RowId, SyncRequest, Totals},
};

/// Bytes of a record.
const RECORD: usize = 64;
/// Beyond this size (bytes) the file is rewritten with what is still open, in the background.
const COMPACT_BYTES: u64 = 8 << 20;
/// Beyond this size it is rewritten before anything else is written.
const BYTES_MAX: u64 = 32 << 20;
/// So many records of zeros in a row are a page that was lost, not calls that were never dispatched.
const PAGE_RECORDS: usize = 4096 / RECORD;
/// The longest account key, in bytes.
pub const KEY_BYTES_MAX: usize = 4096;
/// The most accounts that one attempt can pay from.
pub const PARTS_MAX: usize = 32;

const MAGIC: &[u8; 8] = b"TGJRNL01";
const KEY_BYTES: usize = 44;
const PARTS: usize = 3;

const HEADER: u8 = 1;
const ACCOUNT: u8 = 2;
const TOTALS: u8 = 3;
const INTENT: u8 = 4;
const SETTLED: u8 = 5;
const CLOSED: u8 = 6;

/// What one attempt took of one purse.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Part {
    /// Which purse of this process.
    pub purse: u32,
    /// Nano-USD that were taken out of it; the bound's rest is open debt.
    pub covered: u64,
}

/// An attempt's entry in the journal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Attempt(u64);

/// The journal of this process.
#[derive(Debug)]
pub struct Journal {
    path: PathBuf,
    incarnation: u64,
    /// Shared by those who write records; whoever puts another file in its place has it alone. Taken before the state.
    file: RwLock<File>,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    /// Where the next records go.
    bytes: u64,
    /// Places, as beginning and end, whose write failed while others stood behind them.
    failed: Vec<(u64, u64)>,
    /// Rewriting is due beyond this size; it grows with what is open, so that a rewrite always wins something.
    compact_bytes: u64,
    book: Book,
    /// Where each open attempt's settlement will be written.
    slots: HashMap<u64, u64>,
    next_attempt: u64,
}

/// What the records say, taken together: the same for the one who writes and the one who replays.
#[derive(Debug, Default, PartialEq, Eq)]
struct Book {
    purses: BTreeMap<u32, Purse>,
    open: BTreeMap<u64, Intent>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Purse {
    key: Arc<str>,
    charged: u64,
    debt: u64,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Intent {
    bound: u64,
    parts: Vec<Part>,
}

// === impl Journal ===

impl Journal {
    /// Starts the journal of a new incarnation.
    ///
    /// # Errors
    /// When the file cannot be created or written.
    pub fn create(dir: &DataDir, incarnation: u64) -> Result<Journal, StoreError> {
        let path = dir.path().join(format!("journal-{incarnation:016x}.log"));
        let header = header_record(incarnation);
        let file = create_file(&path, &header).map_err(|error| unavailable(&path, &error))?;
        let state = State { bytes: header.len() as u64, ..State::default() };
        Ok(Journal { path, incarnation, file: RwLock::new(file), state: Mutex::new(state) })
    }

    /// Notes a new purse, before anything is granted to it.
    ///
    /// # Errors
    /// When it cannot be written, or the key is longer than [`KEY_BYTES_MAX`].
    pub fn open_purse(&self, purse: u32, key: &Arc<str>) -> Result<(), StoreError> {
        if key.len() > KEY_BYTES_MAX {
            return Err(StoreError::Unavailable(format!("an account's key is longer than {KEY_BYTES_MAX} bytes")));
        }
        self.append(&account_records(purse, key))?;
        self.state().book.purses.insert(purse, Purse { key: Arc::clone(key), ..Purse::default() });
        Ok(())
    }

    /// Notes an attempt before it is dispatched, with all that it took; at most [`PARTS_MAX`] parts.
    ///
    /// # Errors
    /// When it cannot be written; then the attempt must not be made.
    pub fn intend(&self, bound: u64, parts: &[Part]) -> Result<Attempt, StoreError> {
        if self.is_over(BYTES_MAX) {
            self.rewrite_if_over(BYTES_MAX)?;
        }
        let open = Intent { bound, parts: parts.to_vec() };
        let file = self.file();
        let mut state = self.state();
        let attempt = state.next_attempt;
        let records = intent_records(attempt, bound, parts);
        let (at, end) = state.place(records.len());
        state.slots.insert(attempt, end - RECORD as u64);
        state.book.open.insert(attempt, open);
        state.next_attempt += 1;
        drop(state);
        if let Err(error) = file.write_all_at(&records, at) {
            let mut state = self.state();
            state.slots.remove(&attempt);
            state.book.open.remove(&attempt);
            state.withdraw(&file, at, end);
            return Err(unavailable(&self.path, &error));
        }
        Ok(Attempt(attempt))
    }

    /// Notes the true cost of an attempt. An attempt is settled once; further calls do nothing.
    ///
    /// # Errors
    /// When it cannot be written. The attempt then stands at its bound, and must be charged so.
    pub fn settle(&self, attempt: Attempt, actual: u64) -> Result<(), StoreError> {
        let file = self.file();
        let Some(slot) = self.state().slots.remove(&attempt.0) else { return Ok(()) };
        let mut record = Record::new(SETTLED);
        record.put_u64(8, attempt.0);
        record.put_u64(16, actual);
        let written = file.write_all_at(&record.seal(), slot);
        self.state().book.settle(attempt.0, written.is_ok().then_some(actual));
        written.map_err(|error| unavailable(&self.path, &error))
    }

    /// Notes that the authority knows all about a purse, so that it is not reported again.
    ///
    /// # Errors
    /// When it cannot be written; the purse then stays in the journal.
    pub fn close_purse(&self, purse: u32) -> Result<(), StoreError> {
        self.append(&closed_record(purse))?;
        self.state().book.purses.remove(&purse);
        Ok(())
    }

    /// What the settled attempts of a purse sum up to: charged and debt.
    #[must_use]
    pub fn spent(&self, purse: u32) -> Option<(u64, u64)> {
        self.state().book.purses.get(&purse).map(|purse| (purse.charged, purse.debt))
    }

    /// Rewrites the file when it has grown; called now and then, off the calls' path.
    ///
    /// # Errors
    /// When it cannot be rewritten; the old file goes on.
    pub fn compact_if_due(&self) -> Result<(), StoreError> {
        self.rewrite_if_over(COMPACT_BYTES)
    }

    /// Removes the file if nothing in it is of use: no attempt is open and every purse is closed. Says whether it did.
    pub fn remove_if_settled(&self) -> bool {
        let state = self.state();
        state.book.open.is_empty() && state.book.purses.is_empty() && fs::remove_file(&self.path).is_ok()
    }

    /// Writes records at the end, at once.
    fn append(&self, records: &[u8]) -> Result<(), StoreError> {
        let file = self.file();
        let (at, end) = self.state().place(records.len());
        file.write_all_at(records, at).map_err(|error| {
            self.state().withdraw(&file, at, end);
            unavailable(&self.path, &error)
        })
    }

    fn is_over(&self, bytes: u64) -> bool {
        let state = self.state();
        state.bytes > bytes.max(state.compact_bytes)
    }

    /// Writes a new file with what is open, then puts it in the old one's place.
    fn rewrite_if_over(&self, bytes: u64) -> Result<(), StoreError> {
        // Alone with the file: whatever was given a place in it has been written.
        let mut file = self.file.write().unwrap_or_else(PoisonError::into_inner);
        if !self.is_over(bytes) {
            return Ok(());
        }
        let compacted = self.state().compact(&self.path, self.incarnation);
        *file = compacted.map_err(|error| unavailable(&self.path, &error))?;
        Ok(())
    }

    fn file(&self) -> RwLockReadGuard<'_, File> {
        self.file.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// A panic while the lock was held leaves a state that is still true: each change is one step.
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A file appears under its name with its header in it: one without would look damaged to the next start.
fn create_file(path: &Path, header: &[u8]) -> io::Result<File> {
    let beside = path.with_extension("tmp");
    let file = private_file().create_new(true).open(&beside)?;
    file.write_all_at(header, 0).and_then(|()| fs::rename(&beside, path)).inspect_err(|_| {
        let _gone = fs::remove_file(&beside);
    })?;
    Ok(file)
}

// === impl State ===

impl Default for State {
    fn default() -> State {
        State {
            bytes: 0,
            failed: Vec::new(),
            compact_bytes: COMPACT_BYTES,
            book: Book::default(),
            slots: HashMap::new(),
            next_attempt: 0,
        }
    }
}

impl State {
    /// Gives records a place at the end: from where to where.
    fn place(&mut self, length: usize) -> (u64, u64) {
        let at = self.bytes;
        self.bytes += length as u64;
        (at, self.bytes)
    }

    /// Gives places back whose write failed, as far as they are the last ones, so that a full disk does not make a file of
    /// holes. What was written there of an intent stands, at its bound, until it is overwritten: never too little.
    fn withdraw(&mut self, file: &File, at: u64, end: u64) {
        self.failed.push((at, end));
        while let Some(last) = self.failed.iter().position(|(_, end)| *end == self.bytes) {
            (self.bytes, _) = self.failed.swap_remove(last);
        }
        // Best effort, for the reason above.
        let _cut = file.set_len(self.bytes);
    }

    /// Writes a new file with what is open, puts it in the old one's place, and gives it back.
    fn compact(&mut self, path: &Path, incarnation: u64) -> io::Result<File> {
        let beside = path.with_extension("tmp");
        let mut bytes = header_record(incarnation).to_vec();
        for (number, purse) in &self.book.purses {
            bytes.extend(account_records(*number, &purse.key));
            bytes.extend(totals_record(*number, purse));
        }
        let mut slots = HashMap::with_capacity(self.book.open.len());
        for (attempt, intent) in &self.book.open {
            bytes.extend(intent_records(*attempt, intent.bound, &intent.parts));
            slots.insert(*attempt, (bytes.len() - RECORD) as u64);
        }
        let file = private_file().truncate(true).open(&beside)?;
        file.write_all_at(&bytes, 0).and_then(|()| fs::rename(&beside, path)).inspect_err(|_| {
            let _gone = fs::remove_file(&beside);
        })?;
        self.bytes = bytes.len() as u64;
        self.failed.clear();
        self.compact_bytes = COMPACT_BYTES.max(2 * self.bytes);
        self.slots = slots;
        Ok(file)
    }
}

// === impl Book ===

impl Book {
    /// Closes an open attempt at its true cost, or at its bound where that is unknown.
    fn settle(&mut self, attempt: u64, actual: Option<u64>) {
        let Some(intent) = self.open.remove(&attempt) else { return };
        for part in &intent.parts {
            let charge = purse::charge(part.covered, actual.unwrap_or(intent.bound));
            if let Some(purse) = self.purses.get_mut(&part.purse) {
                purse.charged = purse.charged.saturating_add(charge.charged);
                purse.debt = purse.debt.saturating_add(charge.debt);
            }
        }
    }
}

// === records ===

struct Record([u8; RECORD]);

impl Record {
    fn new(kind: u8) -> Record {
        let mut bytes = [0; RECORD];
        bytes[4] = kind;
        Record(bytes)
    }

    fn put(&mut self, at: usize, bytes: &[u8]) {
        self.0[at..at + bytes.len()].copy_from_slice(bytes);
    }

    fn put_u32(&mut self, at: usize, value: u32) {
        self.put(at, &value.to_le_bytes());
    }

    fn put_u64(&mut self, at: usize, value: u64) {
        self.put(at, &value.to_le_bytes());
    }

    /// How many items are in this record, and in all that belong to it.
    fn put_count(&mut self, here: usize, total: usize) {
        self.0[5] = here as u8;
        self.put(6, &(total as u16).to_le_bytes());
    }

    fn seal(mut self) -> [u8; RECORD] {
        let crc = crc32fast::hash(&self.0[4..]);
        self.put_u32(0, crc);
        self.0
    }

    fn read(bytes: &[u8]) -> Option<Record> {
        let record = Record(bytes.try_into().ok()?);
        (record.u32(0) == crc32fast::hash(&record.0[4..])).then_some(record)
    }

    fn kind(&self) -> u8 {
        self.0[4]
    }

    fn counts(&self) -> (usize, usize) {
        (usize::from(self.0[5]), usize::from(u16::from_le_bytes([self.0[6], self.0[7]])))
    }

    fn u32(&self, at: usize) -> u32 {
        u32::from_le_bytes(self.0[at..at + 4].try_into().expect("four bytes"))
    }

    fn u64(&self, at: usize) -> u64 {
        u64::from_le_bytes(self.0[at..at + 8].try_into().expect("eight bytes"))
    }
}

fn header_record(incarnation: u64) -> [u8; RECORD] {
    let mut record = Record::new(HEADER);
    record.put(8, MAGIC);
    record.put_u64(16, incarnation);
    record.put(24, &boot_id());
    record.seal()
}

fn account_records(purse: u32, key: &str) -> Vec<u8> {
    let mut records = Vec::new();
    // An empty key still needs its record.
    let chunks = key.as_bytes().chunks(KEY_BYTES).chain(key.is_empty().then_some(&[][..]));
    for chunk in chunks {
        let mut record = Record::new(ACCOUNT);
        record.put_count(chunk.len(), key.len());
        record.put_u32(8, purse);
        record.put(12, chunk);
        records.extend(record.seal());
    }
    records
}

fn totals_record(number: u32, purse: &Purse) -> [u8; RECORD] {
    let mut record = Record::new(TOTALS);
    record.put_u32(8, number);
    record.put_u64(16, purse.charged);
    record.put_u64(24, purse.debt);
    record.seal()
}

fn intent_records(attempt: u64, bound: u64, parts: &[Part]) -> Vec<u8> {
    let mut records = Vec::with_capacity(2 * RECORD);
    for chunk in parts.chunks(PARTS) {
        let mut record = Record::new(INTENT);
        record.put_count(chunk.len(), parts.len());
        record.put_u64(8, attempt);
        record.put_u64(16, bound);
        for (index, part) in chunk.iter().enumerate() {
            record.put_u32(24 + 12 * index, part.purse);
            record.put_u64(28 + 12 * index, part.covered);
        }
        records.extend(record.seal());
    }
    records.extend([0; RECORD]);
    records
}

fn closed_record(purse: u32) -> [u8; RECORD] {
    let mut record = Record::new(CLOSED);
    record.put_u32(8, purse);
    record.seal()
}

/// Names the time since the machine was switched on; zeros where that is unknown.
fn boot_id() -> [u8; 36] {
    let text = fs::read("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    text.get(..36).and_then(|id| id.try_into().ok()).unwrap_or([0; 36])
}

fn unavailable(path: &Path, error: &io::Error) -> StoreError {
    StoreError::Unavailable(format!("{}: {error}", path.display()))
}

// === replay ===

/// The journal of an earlier incarnation, read.
#[derive(Debug, PartialEq, Eq)]
pub struct Leftover {
    path: PathBuf,
    incarnation: u64,
    purses: BTreeMap<u32, Purse>,
    /// Attempts that were open when the process ended; they count at their bound.
    pub open_attempts: usize,
    /// Why this journal cannot be trusted, if so: all that its purses were granted counts as spent.
    pub forfeited: Option<&'static str>,
}

/// Reads the journals that earlier incarnations left in `dir`. Call it before this process makes its own.
///
/// # Errors
/// When the directory or a file cannot be read.
pub fn leftovers(dir: &DataDir) -> Result<Vec<Leftover>, StoreError> {
    let failed = |error: io::Error| unavailable(dir.path(), &error);
    let mut found = Vec::new();
    for entry in fs::read_dir(dir.path()).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        let Some(name) = path.file_name().and_then(|name| name.to_str()) else { continue };
        let Some(rest) = name.strip_prefix("journal-") else { continue };
        if rest.ends_with(".tmp") {
            // A rewrite that never took its place.
            let _gone = fs::remove_file(&path);
        } else if let Some(incarnation) = rest.strip_suffix(".log").and_then(|hex| u64::from_str_radix(hex, 16).ok()) {
            let bytes = fs::read(&path).map_err(|error| unavailable(&path, &error))?;
            found.push(read(path, incarnation, &bytes));
        }
    }
    Ok(found)
}

impl Leftover {
    /// The last report of each of its purses: what was spent, and that the rest goes back, or not.
    #[must_use]
    pub fn reports(&self) -> Vec<AccountSync> {
        let close = Some(if self.forfeited.is_some() { Close::Forfeited } else { Close::Settled });
        let report = |(number, purse): (&u32, &Purse)| {
            // What was spent had been granted; how much more was, the authority knows.
            let Purse { charged, debt, .. } = *purse;
            let totals = Totals { granted: charged, returned: 0, charged, debt };
            let row = RowId { incarnation: self.incarnation, purse: *number };
            let request =
                SyncRequest { row, totals, need: 0, target: 0, limit: 0, limit_version: 0, create: false, close };
            AccountSync { account: Arc::clone(&purse.key), request }
        };
        self.purses.iter().map(report).collect()
    }

    /// Forgets the file once its reports are known to the authority. One that was damaged is kept under another name.
    ///
    /// # Errors
    /// When the file cannot be removed; reporting it again is harmless.
    pub fn remove(&self) -> Result<(), StoreError> {
        let removed = match self.forfeited {
            Some(_) => fs::rename(&self.path, self.path.with_extension("forfeited")),
            None => fs::remove_file(&self.path),
        };
        removed.map_err(|error| unavailable(&self.path, &error))
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }
}

fn read(path: PathBuf, incarnation: u64, bytes: &[u8]) -> Leftover {
    let mut replay = Replay::default();
    let mut damaged = bytes.len() < RECORD;
    // An incomplete record at the end was being written when the process ended: its call was never dispatched.
    for bytes in bytes.chunks_exact(RECORD) {
        damaged |= replay.apply(bytes).is_none();
    }
    let forfeited = match replay.header {
        _ if damaged => Some("it is damaged"),
        None => Some("it has no header"),
        Some((owner, _)) if owner != incarnation => Some("it belongs to another process"),
        Some((_, boot)) if boot != boot_id() || boot == [0; 36] => Some("the machine was restarted since"),
        Some(_) => None,
    };
    let open: Vec<u64> = replay.book.open.keys().copied().collect();
    for attempt in &open {
        replay.book.settle(*attempt, None);
    }
    Leftover { path, incarnation, purses: replay.book.purses, open_attempts: open.len(), forfeited }
}

#[derive(Default)]
struct Replay {
    header: Option<(u64, [u8; 36])>,
    book: Book,
    /// A key or an intent of which more records follow.
    key: Vec<u8>,
    parts: Vec<Part>,
    /// The last record was a complete intent: this one is its slot.
    slot_of: Option<u64>,
    /// Records of zeros in a row so far.
    zeros: usize,
}

impl Replay {
    /// Takes one record in; `None` when it cannot be one.
    fn apply(&mut self, bytes: &[u8]) -> Option<()> {
        let slot_of = self.slot_of.take();
        if bytes.iter().all(|byte| *byte == 0) {
            return self.nothing();
        }
        self.zeros = 0;
        let record = Record::read(bytes)?;
        match record.kind() {
            HEADER => self.header(&record),
            ACCOUNT => self.account(&record),
            TOTALS => self.totals(&record),
            INTENT => self.intent(&record),
            SETTLED if slot_of == Some(record.u64(8)) => {
                self.book.settle(record.u64(8), Some(record.u64(16)));
                Some(())
            }
            CLOSED => self.book.purses.remove(&record.u32(8)).map(drop),
            _ => None,
        }
    }

    /// A slot that is still open, or a place whose write never came about: what began before it was never dispatched.
    fn nothing(&mut self) -> Option<()> {
        self.zeros += 1;
        self.key.clear();
        self.parts.clear();
        (self.header.is_some() && self.zeros < PAGE_RECORDS).then_some(())
    }

    fn header(&mut self, record: &Record) -> Option<()> {
        let first = self.header.is_none() && record.0[8..16] == *MAGIC;
        self.header = Some((record.u64(16), record.0[24..60].try_into().ok()?));
        first.then_some(())
    }

    fn account(&mut self, record: &Record) -> Option<()> {
        let (here, total) = record.counts();
        self.key.extend(record.0.get(12..12 + here)?);
        if self.key.len() < total {
            return Some(());
        }
        let key = String::from_utf8(std::mem::take(&mut self.key)).ok()?;
        self.book.purses.insert(record.u32(8), Purse { key: key.into(), ..Purse::default() });
        Some(())
    }

    fn totals(&mut self, record: &Record) -> Option<()> {
        let purse = self.book.purses.get_mut(&record.u32(8))?;
        (purse.charged, purse.debt) = (record.u64(16), record.u64(24));
        Some(())
    }

    fn intent(&mut self, record: &Record) -> Option<()> {
        let (here, total) = record.counts();
        if here > PARTS {
            return None;
        }
        let part = |index: usize| Part { purse: record.u32(24 + 12 * index), covered: record.u64(28 + 12 * index) };
        self.parts.extend((0..here).map(part));
        if self.parts.len() >= total {
            let intent = Intent { bound: record.u64(16), parts: std::mem::take(&mut self.parts) };
            self.book.open.insert(record.u64(8), intent);
            self.slot_of = Some(record.u64(8));
        }
        Some(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn dir() -> (tempfile::TempDir, DataDir) {
        let temp = tempfile::tempdir().unwrap();
        let dir = DataDir::open(temp.path()).unwrap();
        (temp, dir)
    }

    fn part(purse: u32, covered: u64) -> Part {
        Part { purse, covered }
    }

    /// What the one leftover says: charged and debt by key.
    #[track_caller]
    fn spent(dir: &DataDir) -> Vec<(String, u64, u64)> {
        let leftover = leftovers(dir).unwrap().pop().unwrap();
        assert_eq!(leftover.forfeited, None);
        leftover.purses.values().map(|purse| (purse.key.to_string(), purse.charged, purse.debt)).collect()
    }

    #[test]
    fn after_a_kill_each_attempt_counts_once_and_open_ones_at_their_bound() {
        let (_temp, dir) = dir();
        let journal = Journal::create(&dir, 7).unwrap();
        journal.open_purse(0, &"a".into()).unwrap();
        journal.open_purse(1, &"b".into()).unwrap();
        let settled = journal.intend(10, &[part(0, 10), part(1, 4)]).unwrap();
        let _open = journal.intend(20, &[part(0, 20)]).unwrap();
        journal.settle(settled, 7).unwrap();
        journal.settle(settled, 9).unwrap();
        drop(journal);
        assert_eq!(spent(&dir), [("a".into(), 27, 0), ("b".into(), 4, 3)]);
    }

    #[test]
    fn long_keys_and_many_accounts_span_records() {
        let (_temp, dir) = dir();
        let journal = Journal::create(&dir, 7).unwrap();
        let keys: Vec<Arc<str>> = (0..7).map(|n| "ü".repeat(n * 30).into()).collect();
        for (number, key) in keys.iter().enumerate() {
            journal.open_purse(number as u32, key).unwrap();
        }
        let parts: Vec<Part> = (0..7).map(|purse| part(purse, 5)).collect();
        journal.intend(5, &parts).unwrap();
        let expected: Vec<_> = keys.iter().map(|key| (key.to_string(), 5, 0)).collect();
        assert_eq!(spent(&dir), expected);
        assert!(journal.open_purse(9, &"x".repeat(KEY_BYTES_MAX + 1).into()).is_err());
    }

    #[test]
    fn a_journal_that_was_cut_anywhere_never_counts_too_little() {
        let (_temp, dir) = dir();
        let journal = Journal::create(&dir, 7).unwrap();
        journal.open_purse(0, &"a".into()).unwrap();
        let first = journal.intend(10, &[part(0, 10)]).unwrap();
        journal.settle(first, 6).unwrap();
        journal.intend(10, &[part(0, 10)]).unwrap();
        let bytes = fs::read(&journal.path).unwrap();
        assert_eq!(bytes.len(), 6 * RECORD);
        for cut in 0..bytes.len() {
            let read = read(journal.path.clone(), 7, &bytes[..cut]);
            let charged: u64 = read.purses.values().map(|purse| purse.charged).sum();
            let complete = [0, 0, 0, 10, 6, 16][cut / RECORD];
            assert_eq!(charged, complete, "cut at {cut}");
            assert_eq!(read.forfeited.is_some(), cut < RECORD, "cut at {cut}");
        }
    }

    #[test]
    fn a_flipped_bit_forfeits_the_journal() {
        let (_temp, dir) = dir();
        let journal = Journal::create(&dir, 7).unwrap();
        journal.open_purse(0, &"a".into()).unwrap();
        let attempt = journal.intend(10, &[part(0, 10)]).unwrap();
        journal.settle(attempt, 6).unwrap();
        let bytes = fs::read(&journal.path).unwrap();
        for bit in 0..bytes.len() * 8 {
            let mut flipped = bytes.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert!(read(journal.path.clone(), 7, &flipped).forfeited.is_some(), "bit {bit}");
        }
    }

    #[test]
    fn after_another_boot_all_that_was_granted_counts_as_spent() {
        let (_temp, dir) = dir();
        let journal = Journal::create(&dir, 7).unwrap();
        journal.open_purse(0, &"a".into()).unwrap();
        let mut bytes = fs::read(&journal.path).unwrap();
        let mut header = Record(bytes[..RECORD].try_into().unwrap());
        header.put(24, &[b'0'; 36]);
        bytes[..RECORD].copy_from_slice(&header.seal());
        fs::write(&journal.path, bytes).unwrap();
        let leftover = leftovers(&dir).unwrap().pop().unwrap();
        assert_eq!(leftover.forfeited, Some("the machine was restarted since"));
        assert_eq!(leftover.reports()[0].request.close, Some(Close::Forfeited));
        leftover.remove().unwrap();
        assert_eq!(leftovers(&dir).unwrap(), []);
    }

    #[test]
    fn rewriting_keeps_what_is_open_and_bounds_the_file() {
        let (_temp, dir) = dir();
        let journal = Journal::create(&dir, 7).unwrap();
        journal.open_purse(0, &"a".into()).unwrap();
        journal.open_purse(1, &"gone".into()).unwrap();
        journal.close_purse(1).unwrap();
        let open = journal.intend(1000, &[part(0, 1000)]).unwrap();
        for _ in 0..200_000 {
            let attempt = journal.intend(3, &[part(0, 3)]).unwrap();
            journal.settle(attempt, 1).unwrap();
            if attempt.0.is_multiple_of(1000) {
                journal.compact_if_due().unwrap();
            }
        }
        assert!(journal.state().bytes < COMPACT_BYTES + 1000 * 128, "{}", journal.state().bytes);
        assert_eq!(spent(&dir), [("a".into(), 201_000, 0)]);
        journal.settle(open, 1).unwrap();
        assert_eq!(spent(&dir), [("a".into(), 200_001, 0)]);
        assert_eq!(journal.spent(0), Some((200_001, 0)));
        assert!(!journal.remove_if_settled());
        journal.close_purse(0).unwrap();
        assert!(journal.remove_if_settled());
    }

    #[test]
    fn a_full_disk_refuses_the_attempt_and_settling_still_works() {
        let (_temp, dir) = dir();
        let journal = Journal::create(&dir, 7).unwrap();
        journal.open_purse(0, &"a".into()).unwrap();
        let attempt = journal.intend(10, &[part(0, 10)]).unwrap();
        // Every write to this device fails with ENOSPC.
        let full = File::options().write(true).open("/dev/full").unwrap();
        let disk = std::mem::replace(&mut *journal.file.write().unwrap(), full);
        let refused = journal.intend(10, &[part(0, 10)]).unwrap_err();
        assert!(matches!(refused, StoreError::Unavailable(_)), "{refused}");
        *journal.file.write().unwrap() = disk;
        journal.settle(attempt, 4).unwrap();
        assert_eq!(spent(&dir), [("a".into(), 4, 0)]);
    }

    #[test]
    fn a_place_that_was_never_written_is_a_call_that_was_never_dispatched() {
        let (_temp, dir) = dir();
        let journal = Journal::create(&dir, 7).unwrap();
        journal.open_purse(0, &"a".into()).unwrap();
        journal.intend(10, &[part(0, 10)]).unwrap();
        let killed = journal.state().place(3 * RECORD);
        journal.intend(20, &[part(0, 20)]).unwrap();
        assert_eq!(spent(&dir), [("a".into(), 30, 0)]);
        // Of an intent in two records, the first one came to be.
        let many: Vec<Part> = (0..4).map(|purse| part(purse, 5)).collect();
        let first = &intent_records(9, 5, &many)[..RECORD];
        journal.file().write_all_at(first, killed.0).unwrap();
        assert_eq!(spent(&dir), [("a".into(), 30, 0)]);
    }

    #[test]
    fn a_page_of_zeros_forfeits_the_journal() {
        let (_temp, dir) = dir();
        let journal = Journal::create(&dir, 7).unwrap();
        journal.open_purse(0, &"a".into()).unwrap();
        journal.state().place(PAGE_RECORDS * RECORD);
        journal.intend(20, &[part(0, 20)]).unwrap();
        assert_eq!(leftovers(&dir).unwrap().pop().unwrap().forfeited, Some("it is damaged"));
    }

    #[test]
    fn places_whose_write_failed_are_given_back_once_they_are_the_last() {
        let (_temp, dir) = dir();
        let journal = Journal::create(&dir, 7).unwrap();
        let before = journal.state().bytes;
        let [first, second] = [0, 1].map(|_| journal.state().place(2 * RECORD));
        let file = journal.file();
        journal.state().withdraw(&file, first.0, first.1);
        assert_eq!(journal.state().bytes, second.1);
        journal.state().withdraw(&file, second.0, second.1);
        assert_eq!(journal.state().bytes, before);
        assert!(journal.state().failed.is_empty());
    }

    #[test]
    fn a_settlement_that_cannot_be_written_stands_at_the_bound() {
        let (_temp, dir) = dir();
        let journal = Journal::create(&dir, 7).unwrap();
        journal.open_purse(0, &"a".into()).unwrap();
        let attempt = journal.intend(10, &[part(0, 10)]).unwrap();
        let read_only = File::open(&journal.path).unwrap();
        *journal.file.write().unwrap() = read_only;
        assert!(journal.settle(attempt, 4).is_err());
        assert_eq!(journal.spent(0), Some((10, 0)));
        assert_eq!(spent(&dir), [("a".into(), 10, 0)]);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn what_is_replayed_is_what_was_written(
            steps in prop::collection::vec((0u8..10, 0u32..4, 0u64..50, 0u64..80), 1..80)
        ) {
            let (_temp, dir) = dir();
            let journal = Journal::create(&dir, 7).unwrap();
            for purse in 0..4 {
                journal.open_purse(purse, &format!("account-{purse}").into()).unwrap();
            }
            let mut open = Vec::new();
            for (kind, purse, bound, actual) in steps {
                match kind {
                    0 => *journal.file.write().unwrap() = journal.state().compact(&journal.path, 7).unwrap(),
                    1..=5 => open.push(journal.intend(bound, &[part(purse, bound), part(3 - purse, bound / 2)]).unwrap()),
                    _ if open.is_empty() => {}
                    _ => journal.settle(open.swap_remove(actual as usize % open.len()), actual).unwrap(),
                }
            }
            let leftover = leftovers(&dir).unwrap().pop().unwrap();
            prop_assert_eq!(leftover.open_attempts, open.len());
            let mut state = journal.state();
            for attempt in open {
                state.book.settle(attempt.0, None);
            }
            prop_assert_eq!(&leftover.purses, &state.book.purses);
        }
    }
}
