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

pub use edit::{Edits, Splice, escaped, quoted};
pub use read::{
    boolean, elements, field, fields, integer, is_null, kind, members, only_field, string_at, text, value_at, walk,
};

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
    if word.len() <= NOTED_BYTES_MAX * 6 && memchr::memmem::find(word, b"\\u").is_some() {
        // It may be any word. (An escape takes at most six bytes for one, so what is longer than this is no short word.)
        return u128::MAX;
    }
    if word.len() > NOTED_BYTES_MAX {
        return 0;
    }
    1 << ((word.len() * 7 + usize::from(first) * 3 + usize::from(last) * 11) % 128)
}

// === impl Scanner ===

/// A cursor over `bytes[at..end]`.
#[derive(Clone)]
struct Scanner<'a> {
    bytes: &'a [u8],
    at: usize,
}

/// What a scan passes below the level that it keeps.
#[derive(Clone, Copy)]
enum Token {
    /// A key with its quotes, and where its value starts.
    Key(Span, usize),
    /// A string that is an element or a value, with its quotes.
    Text(Span),
}

impl<'a> Scanner<'a> {
    fn new(body: &'a [u8], start: usize, end: usize) -> Scanner<'a> {
        Scanner { bytes: body.get(..end).unwrap_or_default(), at: start }
    }

    fn error(&self, problem: Problem) -> JsonError {
        JsonError { problem, offset: self.at }
    }

    fn expected(&self, what: &'static str) -> JsonError {
        self.error(if self.at >= self.bytes.len() { Problem::Truncated } else { Problem::Expected(what) })
    }

    #[inline]
    fn peek(&self) -> Option<u8> {
        self.bytes.get(self.at).copied()
    }

    #[inline]
    fn skip_whitespace(&mut self) {
        while let Some(b' ' | b'\n' | b'\r' | b'\t') = self.peek() {
            self.at += 1;
        }
    }

    #[inline]
    fn eat(&mut self, byte: u8) -> bool {
        let found = self.peek() == Some(byte);
        self.at += usize::from(found);
        found
    }

    /// At `{`: scans the object and leaves the cursor after its `}`.
    fn object(&mut self) -> Result<Scan, JsonError> {
        let start = self.at;
        let mut scan = Scan {
            object: Span { start, end: start },
            keys: String::with_capacity(128),
            fields: Vec::with_capacity(12),
            noted: 0,
        };
        self.at += 1;
        self.skip_whitespace();
        if !self.eat(b'}') {
            loop {
                self.push_field(&mut scan)?;
                if self.eat(b'}') {
                    break;
                }
                if !self.eat(b',') {
                    return Err(self.expected("`,` or `}`"));
                }
                self.skip_whitespace();
            }
        }
        scan.object.end = self.at;
        if let Some(duplicate) = scan.first_duplicate() {
            let name = scan.name(duplicate).chars().take(64).collect();
            return Err(JsonError { problem: Problem::Duplicate(name), offset: duplicate.key.start });
        }
        Ok(scan)
    }

    /// At a key: takes `"key" :` and the whitespace around, returns the key's span with its quotes.
    fn key(&mut self) -> Result<Span, JsonError> {
        let start = self.at;
        if self.peek() != Some(b'"') {
            return Err(self.expected("a key in quotes"));
        }
        self.string()?;
        let key = Span { start, end: self.at };
        self.skip_whitespace();
        if !self.eat(b':') {
            return Err(self.expected("`:`"));
        }
        self.skip_whitespace();
        Ok(key)
    }

    /// Takes one `"key": value` and the whitespace after it.
    fn push_field(&mut self, scan: &mut Scan) -> Result<(), JsonError> {
        let bytes = self.bytes;
        let key = self.key()?;
        let start = self.at;
        let kind = self.value(1, &mut |token| match token {
            Token::Key(word, _) | Token::Text(word) => scan.noted |= note(inside(bytes, word)),
        })?;
        let value = Span { start, end: self.at };
        let from = scan.keys.len();
        scan.keys.push_str(&text(bytes, key).unwrap_or_default());
        let name = (u32_offset(from), u32_offset(scan.keys.len()));
        scan.fields.push(Field { key, value, kind, name });
        self.skip_whitespace();
        Ok(())
    }

    /// At a value: takes it without a look at what is in it.
    fn skip_value(&mut self) -> Result<Kind, JsonError> {
        self.value(0, &mut |_| {})
    }

    /// At a value: takes all of it; `depth` containers are open around it.
    fn value(&mut self, depth: usize, visit: &mut impl FnMut(Token)) -> Result<Kind, JsonError> {
        let Some(first) = self.peek() else {
            return Err(self.error(Problem::Truncated));
        };
        match first {
            b'{' => self.container(depth, visit).map(|()| Kind::Object),
            b'[' => self.container(depth, visit).map(|()| Kind::Array),
            _ => self.scalar(first),
        }
    }

    fn scalar(&mut self, first: u8) -> Result<Kind, JsonError> {
        match first {
            b'"' => self.string().map(|()| Kind::String),
            b't' => self.literal(b"true").map(|()| Kind::Boolean),
            b'f' => self.literal(b"false").map(|()| Kind::Boolean),
            b'n' => self.literal(b"null").map(|()| Kind::Null),
            b'-' | b'0'..=b'9' => self.number().map(|()| Kind::Number),
            _ => Err(self.expected("a value")),
        }
    }

    /// At `{` or `[`: takes all of it. The open containers are bits of one word, so depth costs no stack.
    fn container(&mut self, depth: usize, visit: &mut impl FnMut(Token)) -> Result<(), JsonError> {
        const OBJECT: u64 = 1;
        let outer = depth;
        let mut depth = depth;
        let mut open: u64 = 0;
        loop {
            // At the first byte of a value.
            let Some(first) = self.peek() else {
                return Err(self.error(Problem::Truncated));
            };
            if first == b'{' || first == b'[' {
                if depth >= DEPTH_MAX {
                    return Err(self.error(Problem::TooDeep));
                }
                depth += 1;
                open = open << 1 | if first == b'{' { OBJECT } else { 0 };
                self.at += 1;
                self.skip_whitespace();
                if !self.eat(if first == b'{' { b'}' } else { b']' }) {
                    if first == b'{' {
                        self.visited_key(visit)?;
                    }
                    continue;
                }
                depth -= 1;
                open >>= 1;
            } else if first == b'"' {
                self.visited_string(visit)?;
            } else {
                self.scalar(first)?;
            }
            // After a value: close what ends here, then step to the next one.
            loop {
                if depth == outer {
                    return Ok(());
                }
                self.skip_whitespace();
                let in_object = open & 1 == OBJECT;
                if self.eat(b',') {
                    self.skip_whitespace();
                    if in_object {
                        self.visited_key(visit)?;
                    }
                    break;
                }
                if !self.eat(if in_object { b'}' } else { b']' }) {
                    return Err(self.expected(if in_object { "`,` or `}`" } else { "`,` or `]`" }));
                }
                depth -= 1;
                open >>= 1;
            }
        }
    }

    fn visited_key(&mut self, visit: &mut impl FnMut(Token)) -> Result<(), JsonError> {
        let key = self.key()?;
        visit(Token::Key(key, self.at));
        Ok(())
    }

    fn visited_string(&mut self, visit: &mut impl FnMut(Token)) -> Result<(), JsonError> {
        let start = self.at;
        self.string()?;
        visit(Token::Text(Span { start, end: self.at }));
        Ok(())
    }

    /// At `"`: takes the string.
    fn string(&mut self) -> Result<(), JsonError> {
        self.at += 1;
        loop {
            self.at = stop(self.bytes, self.at);
            match self.peek() {
                Some(b'"') => {
                    self.at += 1;
                    return Ok(());
                }
                Some(b'\\') => self.escape()?,
                Some(_) => return Err(self.error(Problem::ControlCharacter)),
                None => return Err(self.error(Problem::Truncated)),
            }
        }
    }

    fn escape(&mut self) -> Result<(), JsonError> {
        let length = match self.bytes.get(self.at + 1) {
            Some(b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't') => 2,
            Some(b'u') => 6,
            Some(_) => return Err(self.error(Problem::Escape)),
            None => return Err(self.error(Problem::Truncated)),
        };
        if length == 6 {
            let Some(digits) = self.bytes.get(self.at + 2..self.at + 6) else {
                return Err(self.error(Problem::Escape));
            };
            if !digits.iter().all(u8::is_ascii_hexdigit) {
                return Err(self.error(Problem::Escape));
            }
        }
        self.at += length;
        Ok(())
    }

    fn literal(&mut self, word: &[u8]) -> Result<(), JsonError> {
        if !self.bytes[self.at..].starts_with(word) {
            return Err(self.expected("a value"));
        }
        self.at += word.len();
        Ok(())
    }

    fn number(&mut self) -> Result<(), JsonError> {
        self.eat(b'-');
        if !self.eat(b'0') && self.digits() == 0 {
            return Err(self.error(Problem::Number));
        }
        if self.eat(b'.') && self.digits() == 0 {
            return Err(self.error(Problem::Number));
        }
        if let Some(b'e' | b'E') = self.peek() {
            self.at += 1;
            if let Some(b'+' | b'-') = self.peek() {
                self.at += 1;
            }
            if self.digits() == 0 {
                return Err(self.error(Problem::Number));
            }
        }
        // `01` and `1x` leave something that no rule after a number takes: the caller refuses it.
        Ok(())
    }

    fn digits(&mut self) -> usize {
        let start = self.at;
        while let Some(b'0'..=b'9') = self.peek() {
            self.at += 1;
        }
        self.at - start
    }
}

/// Key names are a part of the body, and no body of 4 GiB is ever held in memory.
fn u32_offset(offset: usize) -> u32 {
    u32::try_from(offset).unwrap_or(u32::MAX)
}

/// What stands between the quotes of a string.
fn inside(body: &[u8], quoted: Span) -> &[u8] {
    Span { start: quoted.start + 1, end: quoted.end.saturating_sub(1) }.of(body)
}

/// Whether a string, as spelt, has escapes in it.
trait ContainsEscape {
    fn contains_escape(&self) -> bool;
}

impl ContainsEscape for [u8] {
    #[inline]
    fn contains_escape(&self) -> bool {
        memchr::memchr(b'\\', self).is_some()
    }
}

/// The offset of the first `"`, `\` or control character at or after `from`.
///
/// Blocks of 32 bytes are tested without branches, which the compiler turns into vector instructions: message text and
/// base64 images are most of what is scanned.
#[inline]
fn stop(bytes: &[u8], from: usize) -> usize {
    const BLOCK: usize = 32;
    let stops = |byte: u8| (byte == b'"') | (byte == b'\\') | (byte < 0x20);
    let rest = bytes.get(from..).unwrap_or_default();
    let mut skipped = 0;
    for block in rest.chunks_exact(BLOCK) {
        if block.iter().fold(false, |found, &byte| found | stops(byte)) {
            break;
        }
        skipped += BLOCK;
    }
    let tail = &rest[skipped..];
    from + skipped + tail.iter().position(|&byte| stops(byte)).unwrap_or(tail.len())
}

#[cfg(test)]
mod tests;
