//! Catches single top-level fields of a JSON reply that passes by in pieces: `usage`, `error`, `model`.
//!
//! Constant memory whatever the reply holds, and no opinion on it: nonsense ends the catching, never the reply.

use memchr::memchr2;

/// The longest value that is caught, in bytes; longer ones are passed over.
pub const CAUGHT_BYTES_MAX: usize = 16 * 1024;
/// The longest key that can match, in bytes as spelt.
const KEY_BYTES_MAX: usize = 64;

/// A push scanner over one JSON object cut at any byte.
#[derive(Debug, Clone)]
pub struct FieldCatcher {
    names: &'static [&'static str],
    caught: Vec<Option<Vec<u8>>>,
    state: State,
    key: Vec<u8>,
    /// Which of `names` the current value belongs to; `None` passes it over.
    wanted: Option<usize>,
    value: Vec<u8>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// Before the top-level `{`.
    Start,
    /// Before a key, or before the closing `}`.
    Between,
    /// In a key; `true` after a backslash.
    Key(bool),
    /// After a key, before its `:`.
    Colon,
    /// In a value, with so many containers open in it.
    Value(u32),
    /// In a string of a value; `true` after a backslash.
    Text(u32, bool),
    /// After the object, or after nonsense.
    Done,
}

impl FieldCatcher {
    /// Catches the fields `names` as raw JSON.
    #[must_use]
    pub fn new(names: &'static [&'static str]) -> FieldCatcher {
        FieldCatcher {
            names,
            caught: vec![None; names.len()],
            state: State::Start,
            key: Vec::new(),
            wanted: None,
            value: Vec::new(),
        }
    }

    /// Looks at the next bytes of the reply.
    pub fn push(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() && self.state != State::Done {
            let taken = self.step(bytes);
            bytes = bytes.get(taken..).unwrap_or_default();
        }
    }

    /// The raw value of the field `name`: the last one that was complete.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&[u8]> {
        let index = self.names.iter().position(|known| *known == name)?;
        self.caught.get(index)?.as_deref()
    }

    /// Whether the object's end was seen, or what came is no object: nothing more will be caught.
    #[must_use]
    pub fn is_done(&self) -> bool {
        self.state == State::Done
    }

    /// Takes at least one byte and returns how many.
    fn step(&mut self, bytes: &[u8]) -> usize {
        match self.state {
            State::Start => self.start(bytes[0]),
            State::Between => self.between(bytes[0]),
            State::Key(escaped) => return self.in_key(bytes, escaped),
            State::Colon => self.colon(bytes[0]),
            State::Value(depth) => return self.in_value(bytes, depth),
            State::Text(depth, escaped) => return self.in_text(bytes, depth, escaped),
            State::Done => return bytes.len(),
        }
        1
    }

    fn start(&mut self, byte: u8) {
        self.state = match byte {
            b'{' => State::Between,
            // A byte order mark may come before it.
            b' ' | b'\t' | b'\r' | b'\n' | 0xEF | 0xBB | 0xBF => State::Start,
            _ => State::Done,
        };
    }

    fn between(&mut self, byte: u8) {
        self.state = match byte {
            b'"' => {
                self.key.clear();
                State::Key(false)
            }
            b' ' | b'\t' | b'\r' | b'\n' | b',' => State::Between,
            _ => State::Done,
        };
    }

    fn in_key(&mut self, bytes: &[u8], escaped: bool) -> usize {
        if escaped {
            self.push_key(&bytes[..1]);
            self.state = State::Key(false);
            return 1;
        }
        let Some(at) = memchr2(b'"', b'\\', bytes) else {
            self.push_key(bytes);
            return bytes.len();
        };
        self.push_key(&bytes[..at]);
        if bytes[at] == b'"' {
            self.state = State::Colon;
        } else {
            self.push_key(b"\\");
            self.state = State::Key(true);
        }
        at + 1
    }

    fn push_key(&mut self, bytes: &[u8]) {
        let kept = bytes.len().min(KEY_BYTES_MAX - self.key.len());
        self.key.extend_from_slice(&bytes[..kept]);
    }

    fn colon(&mut self, byte: u8) {
        self.state = match byte {
            b':' => {
                self.wanted = self.names.iter().position(|name| name.as_bytes() == self.key);
                self.value.clear();
                State::Value(0)
            }
            b' ' | b'\t' | b'\r' | b'\n' => State::Colon,
            _ => State::Done,
        };
    }

    /// Goes on until the value ends, or the bytes do: a reply is mostly values that are passed over.
    fn in_value(&mut self, bytes: &[u8], mut depth: u32) -> usize {
        let mut at = 0;
        while let Some(byte) = bytes.get(at) {
            match byte {
                b'"' => match string_end(&bytes[at + 1..]) {
                    Some(length) => at += length,
                    None => break,
                },
                b'{' | b'[' => depth = depth.saturating_add(1),
                b',' | b'}' | b']' if depth == 0 => {
                    self.keep(&bytes[..at]);
                    self.finish_value();
                    self.state = if *byte == b',' { State::Between } else { State::Done };
                    return at + 1;
                }
                b'}' | b']' => depth -= 1,
                _ => {}
            }
            at += 1;
        }
        // Up to the quote of a string that is cut; what is in it is followed by itself.
        let taken = bytes.len().min(at + 1);
        self.keep(&bytes[..taken]);
        self.state = if at < bytes.len() { State::Text(depth, false) } else { State::Value(depth) };
        taken
    }

    fn in_text(&mut self, bytes: &[u8], depth: u32, escaped: bool) -> usize {
        if escaped {
            self.keep(&bytes[..1]);
            self.state = State::Text(depth, false);
            return 1;
        }
        let Some(at) = memchr2(b'"', b'\\', bytes) else {
            self.keep(bytes);
            return bytes.len();
        };
        self.keep(&bytes[..=at]);
        self.state = if bytes[at] == b'"' { State::Value(depth) } else { State::Text(depth, true) };
        at + 1
    }

    fn keep(&mut self, bytes: &[u8]) {
        if self.wanted.is_none() {
            return;
        }
        if self.value.len() + bytes.len() > CAUGHT_BYTES_MAX {
            self.wanted = None;
            self.value.clear();
            return;
        }
        self.value.extend_from_slice(bytes);
    }

    fn finish_value(&mut self) {
        let Some(slot) = self.wanted.take().and_then(|index| self.caught.get_mut(index)) else { return };
        *slot = Some(self.value.trim_ascii().to_vec());
    }
}

/// The length of a string's rest with its quote, where that is here.
fn string_end(rest: &[u8]) -> Option<usize> {
    let mut at = 0;
    loop {
        at += memchr2(b'"', b'\\', rest.get(at..)?)?;
        if rest[at] == b'"' {
            return Some(at + 1);
        }
        at += 2;
    }
}
