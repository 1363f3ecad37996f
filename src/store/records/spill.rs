//! Calls and feedback that the store could not take yet: an append-only file, bounded, read again from its beginning when the store is back.
//!
//! `magic 8`, then frames of `length 4 | CRC-32 4 | JSON`, integers little-endian. What was written survives the process being
//! killed; a frame that was half written then is where the file ends. Reading again what the store has is harmless: it knows the ids.

use std::{
    fs::File,
    io::{self, BufReader, Read, Seek, SeekFrom, Write},
    path::{Path, PathBuf},
};

use super::ports::Arrived;
use crate::store::private_file;

const MAGIC: &[u8; 8] = b"TGSPIL01";
const HEADER: u64 = MAGIC.len() as u64;
const FRAME_HEADER: usize = 8;
/// No entry is longer, bodies included.
const FRAME_BYTES_MAX: u32 = 16 << 20;

/// See the module.
#[derive(Debug)]
pub(super) struct Spill {
    path: PathBuf,
    bytes_max: u64,
    /// `None` while there is nothing in it.
    file: Option<File>,
    /// Where the next frame is written.
    end: u64,
    /// Where the next frame is read.
    read: u64,
    /// Frames between `read` and `end`.
    waiting: u64,
}

impl Spill {
    /// The file at `path`, with what an earlier process left in it.
    ///
    /// # Errors
    /// When it is there and cannot be read.
    pub(super) fn open(path: &Path, bytes_max: u64) -> io::Result<Spill> {
        let mut spill = Spill { path: path.to_owned(), bytes_max, file: None, end: HEADER, read: HEADER, waiting: 0 };
        if path.exists() {
            spill.recover()?;
        }
        Ok(spill)
    }

    /// Entries that were written and not yet taken.
    pub(super) fn waiting(&self) -> u64 {
        self.waiting
    }

    /// Writes as many of `entries` as there is room for, from the front; how many.
    ///
    /// # Errors
    /// When the file cannot be written; then none of them is in it.
    pub(super) fn write(&mut self, entries: &[Arrived]) -> io::Result<usize> {
        let mut bytes = Vec::new();
        let mut count = 0;
        for entry in entries {
            let before = bytes.len();
            push_frame(&mut bytes, entry);
            if self.end + bytes.len() as u64 > self.bytes_max {
                bytes.truncate(before);
                break;
            }
            count += 1;
        }
        if count == 0 {
            return Ok(0);
        }
        let end = self.end;
        let file = self.file()?;
        file.seek(SeekFrom::Start(end))?;
        file.write_all(&bytes)?;
        self.end += bytes.len() as u64;
        self.waiting += count as u64;
        Ok(count)
    }

    /// The next entries, at most `count_max`, and what to tell [`Spill::taken`] once the store has them.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub(super) fn next(&mut self, count_max: usize) -> io::Result<(Vec<Arrived>, Taken)> {
        let (from, end) = (self.read, self.end);
        let mut entries = Vec::new();
        let mut taken = Taken { frames: 0, upto: from };
        let Some(file) = self.file.as_mut() else { return Ok((entries, taken)) };
        file.seek(SeekFrom::Start(from))?;
        let mut reader = BufReader::new(file.take(end - from));
        while entries.len() < count_max
            && let Some((entry, length)) = read_frame(&mut reader)?
        {
            taken.upto += length;
            taken.frames += 1;
            // What does not read back was written by another version; its frame was whole.
            entries.extend(entry);
        }
        if taken.frames == 0 && end > from {
            tracing::error!(path = %self.path.display(), "the spilled calls cannot be read any further: the rest is given up");
            taken = Taken { frames: self.waiting, upto: end };
        }
        Ok((entries, taken))
    }

    /// Forgets what was read; the file goes when nothing is left in it.
    pub(super) fn taken(&mut self, taken: Taken) {
        self.read = taken.upto;
        self.waiting = self.waiting.saturating_sub(taken.frames);
        if self.read < self.end {
            return;
        }
        self.file = None;
        (self.end, self.read, self.waiting) = (HEADER, HEADER, 0);
        if let Err(error) = std::fs::remove_file(&self.path) {
            tracing::warn!(path = %self.path.display(), %error, "the file of spilled calls cannot be removed");
        }
    }

    fn file(&mut self) -> io::Result<&mut File> {
        if self.file.is_none() {
            let mut file = private_file().open(&self.path)?;
            file.set_len(0)?;
            file.write_all(MAGIC)?;
            self.file = Some(file);
        }
        Ok(self.file.as_mut().expect("opened above"))
    }

    /// Finds where whole frames end.
    fn recover(&mut self) -> io::Result<()> {
        let mut file = private_file().open(&self.path)?;
        let mut magic = [0; MAGIC.len()];
        if file.read_exact(&mut magic).is_err() || magic != *MAGIC {
            return Ok(());
        }
        let mut reader = BufReader::new(&mut file);
        while let Some((_, length)) = read_frame(&mut reader)? {
            self.end += length;
            self.waiting += 1;
        }
        drop(reader);
        file.set_len(self.end)?;
        self.file = Some(file);
        Ok(())
    }
}

/// What [`Spill::next`] gave.
#[derive(Debug, Clone, Copy)]
pub(super) struct Taken {
    frames: u64,
    upto: u64,
}

fn push_frame(bytes: &mut Vec<u8>, entry: &Arrived) {
    let start = bytes.len();
    bytes.extend_from_slice(&[0; FRAME_HEADER]);
    serde_json::to_writer(&mut *bytes, entry).expect("names and numbers: always JSON");
    let json = &bytes[start + FRAME_HEADER..];
    let (length, crc) = (json.len() as u32, crc32fast::hash(json));
    bytes[start..start + 4].copy_from_slice(&length.to_le_bytes());
    bytes[start + 4..start + FRAME_HEADER].copy_from_slice(&crc.to_le_bytes());
}

/// A frame's entry, where it is one, and its length; `None` where no whole frame follows.
fn read_frame(reader: &mut impl Read) -> io::Result<Option<(Option<Arrived>, u64)>> {
    let mut header = [0; FRAME_HEADER];
    if !filled(reader, &mut header)? {
        return Ok(None);
    }
    let length = u32::from_le_bytes([header[0], header[1], header[2], header[3]]);
    let crc = u32::from_le_bytes([header[4], header[5], header[6], header[7]]);
    if length > FRAME_BYTES_MAX {
        return Ok(None);
    }
    let mut json = vec![0; length as usize];
    if !filled(reader, &mut json)? || crc32fast::hash(&json) != crc {
        return Ok(None);
    }
    Ok(Some((serde_json::from_slice(&json).ok(), FRAME_HEADER as u64 + u64::from(length))))
}

/// Whether there was as much as that.
fn filled(reader: &mut impl Read, buffer: &mut [u8]) -> io::Result<bool> {
    match reader.read_exact(buffer) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(false),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::records::{
        contract::{BEGIN_MS, bare_row, rating, row},
        ports::Entry,
    };

    fn some(count: u64) -> Vec<Arrived> {
        let call = |row| Arrived::Call(Entry { row, bodies: None });
        let one = |n| match n % 3 {
            0 => call(row(BEGIN_MS, n)),
            1 => Arrived::Feedback(rating(BEGIN_MS, n)),
            _ => call(bare_row(BEGIN_MS, n)),
        };
        (0..count).map(one).collect()
    }

    #[test]
    fn what_was_written_is_read_in_order_also_by_the_next_process() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("calls.spill");
        let mut first = Spill::open(&path, 1 << 20).unwrap();
        assert_eq!(first.write(&some(3)).unwrap(), 3);
        drop(first);

        let mut second = Spill::open(&path, 1 << 20).unwrap();
        assert_eq!((second.waiting(), second.write(&some(5)[3..]).unwrap()), (3, 2));
        let (front, taken) = second.next(4).unwrap();
        second.taken(taken);
        let (rest, taken) = second.next(4).unwrap();
        assert_eq!([front, rest].concat(), some(5));
        second.taken(taken);
        assert_eq!((second.waiting(), path.exists()), (0, false));
    }

    #[test]
    fn a_half_written_frame_is_where_the_file_ends() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("calls.spill");
        Spill::open(&path, 1 << 20).unwrap().write(&some(2)).unwrap();
        let whole = std::fs::read(&path).unwrap();
        for cut in [whole.len() - 1, whole.len() / 2 + 40, 9, 3] {
            std::fs::write(&path, &whole[..cut]).unwrap();
            let mut spill = Spill::open(&path, 1 << 20).unwrap();
            let kept = usize::from(cut > whole.len() / 2 + 60 || cut == whole.len() - 1);
            assert!(spill.waiting() as usize <= 1 && (kept == 0 || spill.waiting() == 1), "{cut}");
            let before = spill.waiting();
            assert_eq!(spill.write(&some(1)).unwrap(), 1);
            assert_eq!(spill.next(9).unwrap().0.len() as u64, before + 1, "{cut}");
        }
        let mut flipped = whole.clone();
        flipped[HEADER as usize + FRAME_HEADER + 5] ^= 1;
        std::fs::write(&path, flipped).unwrap();
        assert_eq!(Spill::open(&path, 1 << 20).unwrap().waiting(), 0);
    }

    #[test]
    fn no_more_is_written_than_there_is_room_for() {
        let dir = tempfile::tempdir().unwrap();
        let mut spill = Spill::open(&dir.path().join("calls.spill"), 3000).unwrap();
        let written = spill.write(&some(10)).unwrap();
        assert!((1..10).contains(&written), "{written}");
        assert_eq!(spill.write(&some(10)).unwrap(), 0);
        assert!(std::fs::metadata(dir.path().join("calls.spill")).unwrap().len() <= 3000);
        assert_eq!(spill.next(20).unwrap().0.len(), written);
    }
}
