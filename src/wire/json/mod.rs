//! One strict pass over a JSON body: where its top-level fields stand, and nothing decoded that nobody asks for.
//!
//! The body stays the bytes that the client sent. A [`Scan`] holds offsets and key names only; values are read from the
//! body on demand ([`text`], [`integer`], [`boolean`], [`elements`], [`field`]) and changed by byte-range splices
//! ([`Edits`]), so unknown fields, key order and number spelling survive.
//!
//! Stricter than most parsers where two parsers could disagree about what a call costs: duplicate keys are refused
//! (also when one is spelt with escapes), nesting is limited to [`DEPTH_MAX`], nothing may follow the object. Numbers are
//! checked by grammar and never converted; escapes of lone surrogates pass. No recursion, no unsafe.

mod edit;
pub mod push;
mod read;
mod scanner;

pub use edit::{Edits, Splice, escaped, quoted};
pub use read::{
    boolean, elements, field, fields, integer, is_null, key_is, kind, members, only_field, string_at, text, value_at,
    walk,
};

use scanner::Scanner;

/// The deepest nesting that is taken; the top-level object is level 1.
pub const DEPTH_MAX: usize = 64;
/// The longest string, in bytes as spelt, that [`Scan::may_hold`] knows of.
const NOTED_BYTES_MAX: usize = 64;

/// A range of bytes of the scanned body.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Span {
    /// The first byte.
    pub start: usize,
    /// One past the last byte.
    pub end: usize,
}

impl Span {
    /// The bytes of `body` that this span names; empty when it lies outside of `body`.
    #[must_use]
    pub fn of(self, body: &[u8]) -> &[u8] {
        body.get(self.start..self.end).unwrap_or_default()
    }

    /// Number of bytes.
    #[must_use]
    pub const fn len(self) -> usize {
        self.end.saturating_sub(self.start)
    }

    /// Whether no byte is in it.
    #[must_use]
    pub const fn is_empty(self) -> bool {
        self.start >= self.end
    }
}

/// What a JSON value is, told by its first byte.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// `{…}`
    Object,
    /// `[…]`
    Array,
    /// `"…"`
    String,
    /// A number, of any size and spelling.
    Number,
    /// `true` or `false`
    Boolean,
    /// `null`
    Null,
}

/// Where a field of a scanned object stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Field {
    /// The key with its quotes, as spelt in the body.
    pub key: Span,
    /// The value.
    pub value: Span,
    /// What the value is.
    pub kind: Kind,
    /// The decoded key, as a range of [`Scan::keys`].
    name: (u32, u32),
}

/// The fields of one object, by offset into the body that was scanned; borrows nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Scan {
    object: Span,
    keys: String,
    fields: Vec<Field>,
    /// A Bloom filter over the short strings below the top level.
    noted: u128,
}

/// Why a body is refused; the message is meant for the client.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{problem} at byte {offset}")]
pub struct JsonError {
    /// What is wrong.
    pub problem: Problem,
    /// The byte at which it was seen.
    pub offset: usize,
}

/// What can be wrong with a body.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Problem {
    /// Nothing but whitespace.
    #[error("the body is empty: a JSON object is expected")]
    Empty,
    /// The top level is no object.
    #[error("a JSON object is expected")]
    NotAnObject,
    /// Not UTF-8.
    #[error("invalid UTF-8")]
    Utf8,
    /// Something else was due.
    #[error("{0} is expected")]
    Expected(&'static str),
    /// The body ends too early.
    #[error("the body ends inside of a value")]
    Truncated,
    /// An unescaped control character.
    #[error("a control character must be escaped in a string")]
    ControlCharacter,
    /// A backslash before something that cannot be escaped.
    #[error("invalid escape in a string")]
    Escape,
    /// A number that JSON has no such spelling for.
    #[error("invalid number")]
    Number,
    /// Nested more than [`DEPTH_MAX`] levels.
    #[error("nested more than {DEPTH_MAX} levels deep")]
    TooDeep,
    /// The same key twice in one object.
    #[error("duplicate key `{0}`")]
    Duplicate(String),
    /// Something after the object.
    #[error("only one JSON object is expected, but more follows")]
    Trailing,
}

/// Scans a whole body, which must be one JSON object in UTF-8.
///
/// # Errors
/// Whatever is not strict JSON, nested deeper than [`DEPTH_MAX`], or has a duplicate key at the top level.
pub fn scan(body: &[u8]) -> Result<Scan, JsonError> {
    if let Err(invalid) = std::str::from_utf8(body) {
        return Err(JsonError { problem: Problem::Utf8, offset: invalid.valid_up_to() });
    }
    let mut scanner = Scanner::new(body, 0, body.len());
    scanner.skip_whitespace();
    match scanner.peek() {
        Some(b'{') => {}
        Some(_) => return Err(scanner.error(Problem::NotAnObject)),
        None => return Err(scanner.error(Problem::Empty)),
    }
    let scan = scanner.object()?;
    scanner.skip_whitespace();
    if scanner.peek().is_some() {
        return Err(scanner.error(Problem::Trailing));
    }
    Ok(scan)
}

/// Scans an object that stands inside of a scanned body; offsets stay those of the body.
///
/// # Errors
/// When `span` is no object, or has a duplicate key.
pub fn object(body: &[u8], span: Span) -> Result<Scan, JsonError> {
    let mut scanner = Scanner::new(body, span.start, span.end.min(body.len()));
    if scanner.peek() != Some(b'{') {
        return Err(scanner.error(Problem::NotAnObject));
    }
    scanner.object()
}

impl Scan {
    /// The value of the top-level field `name`, whatever its spelling in the body.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<Span> {
        self.field(name).map(|field| field.value)
    }

    /// The top-level field `name`.
    #[must_use]
    pub fn field(&self, name: &str) -> Option<&Field> {
        self.fields.iter().find(|field| self.name(field) == name)
    }

    /// All fields with their decoded names, in the body's order.
    pub fn fields(&self) -> impl ExactSizeIterator<Item = (&str, &Field)> {
        self.fields.iter().map(|field| (self.name(field), field))
    }

    /// The whole object, braces included.
    #[must_use]
    pub const fn span(&self) -> Span {
        self.object
    }

    /// Whether `word` may stand below the top level as a whole string, key or value. `false` is certain; `true` is a
    /// reason to look. Saves a walk over the messages of calls that carry no images or files.
    #[must_use]
    pub fn may_hold(&self, word: &str) -> bool {
        word.len() > NOTED_BYTES_MAX || self.noted & note(word.as_bytes()) != 0
    }

    fn name(&self, field: &Field) -> &str {
        self.keys.get(field.name.0 as usize..field.name.1 as usize).unwrap_or_default()
    }

    /// Few keys are compared pairwise, many are sorted: a body of a million keys must not cost a trillion comparisons.
    fn first_duplicate(&self) -> Option<&Field> {
        const PAIRWISE_MAX: usize = 24;
        if self.fields.len() <= PAIRWISE_MAX {
            return (1..self.fields.len())
                .find(|&i| {
                    let name = self.name(&self.fields[i]);
                    self.fields[..i].iter().any(|earlier| self.name(earlier) == name)
                })
                .map(|i| &self.fields[i]);
        }
        let mut sorted: Vec<&Field> = self.fields.iter().collect();
        sorted.sort_by_key(|field| (self.name(field), field.key.start));
        sorted.windows(2).find(|pair| self.name(pair[0]) == self.name(pair[1])).map(|pair| pair[1])
    }
}

/// The filter's bits for a string: its length, first and last byte tell the words that matter apart.
#[inline]
fn note(word: &[u8]) -> u128 {
    let (Some(&first), Some(&last)) = (word.first(), word.last()) else {
        return 0;
    };
    if word.len() <= NOTED_BYTES_MAX * 6
        && memchr::memchr(b'\\', word).is_some()
        && memchr::memmem::find(word, b"\\u").is_some()
    {
        // It may be any word. (An escape takes at most six bytes for one, so what is longer than this is no short word.)
        return u128::MAX;
    }
    if word.len() > NOTED_BYTES_MAX {
        return 0;
    }
    1 << ((word.len() * 7 + usize::from(first) * 3 + usize::from(last) * 11) % 128)
}

#[cfg(test)]
mod tests;
