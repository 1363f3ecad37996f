//! The cursor beneath every scan: strict JSON by RFC 8259, one pass, no recursion.

use super::{DEPTH_MAX, Field, JsonError, Kind, Problem, Scan, Span, note, text};

/// A cursor over `bytes[at..end]`.
#[derive(Clone)]
pub(super) struct Scanner<'a> {
    pub(super) bytes: &'a [u8],
    /// The offset of the next byte.
    pub(super) at: usize,
}

/// What a scan passes below the level that it keeps.
#[derive(Clone, Copy)]
pub(super) enum Token {
    /// A key with its quotes, and where its value starts.
    Key(Span, usize),
    /// A string that is an element or a value, with its quotes.
    Text(Span),
}

impl<'a> Scanner<'a> {
    pub(super) fn new(body: &'a [u8], start: usize, end: usize) -> Scanner<'a> {
        Scanner { bytes: body.get(..end).unwrap_or_default(), at: start }
    }

    pub(super) fn error(&self, problem: Problem) -> JsonError {
        JsonError { problem, offset: self.at }
    }

    fn expected(&self, what: &'static str) -> JsonError {
        self.error(if self.at >= self.bytes.len() { Problem::Truncated } else { Problem::Expected(what) })
    }

    #[inline]
    pub(super) fn peek(&self) -> Option<u8> {
        self.bytes.get(self.at).copied()
    }

    #[inline]
    pub(super) fn skip_whitespace(&mut self) {
        while let Some(b' ' | b'\n' | b'\r' | b'\t') = self.peek() {
            self.at += 1;
        }
    }

    #[inline]
    pub(super) fn eat(&mut self, byte: u8) -> bool {
        let found = self.peek() == Some(byte);
        self.at += usize::from(found);
        found
    }

    /// At `{`: scans the object and leaves the cursor after its `}`.
    pub(super) fn object(&mut self) -> Result<Scan, JsonError> {
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
    pub(super) fn key(&mut self) -> Result<Span, JsonError> {
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
    pub(super) fn skip_value(&mut self) -> Result<Kind, JsonError> {
        self.value(0, &mut |_| {})
    }

    /// At a value: takes all of it; `depth` containers are open around it.
    pub(super) fn value(&mut self, depth: usize, visit: &mut impl FnMut(Token)) -> Result<Kind, JsonError> {
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
pub(super) fn inside(body: &[u8], quoted: Span) -> &[u8] {
    Span { start: quoted.start + 1, end: quoted.end.saturating_sub(1) }.of(body)
}

/// Whether a string, as spelt, has escapes in it.
pub(super) fn has_escape(spelt: &[u8]) -> bool {
    memchr::memchr(b'\\', spelt).is_some()
}

/// The offset of the first `"`, `\` or control character at or after `from`.
///
/// Most strings are short: their first bytes are tested eight at a time, which also finds the place. Most bytes are in
/// long ones (text, base64 images): blocks of 32 are tested without branches, which compiles to vector instructions.
#[inline]
fn stop(bytes: &[u8], from: usize) -> usize {
    const SHORT: usize = 32;
    let rest = bytes.get(from..).unwrap_or_default();
    let (head, long) = rest.split_at(rest.len().min(SHORT));
    if let Some(at) = stop_in(head) {
        return from + at;
    }
    let mut skipped = head.len();
    for block in long.chunks_exact(SHORT) {
        if block.iter().fold(false, |found, &byte| found | stops(byte)) {
            break;
        }
        skipped += SHORT;
    }
    from + skipped + stop_in(&rest[skipped..]).unwrap_or(rest.len() - skipped)
}

const fn stops(byte: u8) -> bool {
    (byte == b'"') | (byte == b'\\') | (byte < 0x20)
}

/// The place of the first byte that [`stops`], by words of eight bytes.
#[inline]
fn stop_in(bytes: &[u8]) -> Option<usize> {
    let (words, tail) = bytes.as_chunks::<8>();
    for (i, word) in words.iter().enumerate() {
        let found = stop_bits(u64::from_le_bytes(*word));
        if found != 0 {
            return Some(i * 8 + found.trailing_zeros() as usize / 8);
        }
    }
    tail.iter().position(|&byte| stops(byte)).map(|at| words.len() * 8 + at)
}

/// The high bit of the first byte that [`stops`], counted from the low end; bits above it may be set by borrows.
///
/// Subtracting from each byte borrows from its high bit exactly when it is smaller (Hacker's Delight, section 6-1).
const fn stop_bits(word: u64) -> u64 {
    const ONES: u64 = u64::MAX / 255;
    const HIGH: u64 = ONES << 7;
    let quote = word ^ (ONES * b'"' as u64);
    let backslash = word ^ (ONES * b'\\' as u64);
    let is_quote = quote.wrapping_sub(ONES) & !quote;
    let is_backslash = backslash.wrapping_sub(ONES) & !backslash;
    let is_control = word.wrapping_sub(ONES * 0x20) & !word;
    (is_quote | is_backslash | is_control) & HIGH
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_stop_is_found_at_every_place_and_length() {
        for stop_byte in [b'"', b'\\', 0, 0x1F, b'\n'] {
            for length in 0..80 {
                let mut bytes = vec![0xE9; length];
                bytes.iter_mut().step_by(3).for_each(|byte| *byte = b'!');
                assert_eq!(stop(&bytes, 0), length);
                for at in 0..length {
                    let mut stopped = bytes.clone();
                    stopped[at] = stop_byte;
                    stopped[length - 1] = b'"';
                    assert_eq!(stop(&stopped, 0), at, "{stop_byte} in {length}");
                }
            }
        }
    }
}
