//! Reads single values out of a scanned body. What is no such value reads as `None`, never as a default.

use std::borrow::Cow;

use super::{
    JsonError, Kind, Problem, Span,
    scanner::{Scanner, Token, has_escape, inside},
};

/// What stands at `span`, told by its first byte.
#[must_use]
pub fn kind(body: &[u8], span: Span) -> Option<Kind> {
    Some(match span.of(body).first()? {
        b'{' => Kind::Object,
        b'[' => Kind::Array,
        b'"' => Kind::String,
        b't' | b'f' => Kind::Boolean,
        b'n' => Kind::Null,
        _ => Kind::Number,
    })
}

/// The decoded text of a string; `None` when the value is no string. A lone surrogate reads as U+FFFD.
#[must_use]
pub fn text(body: &[u8], span: Span) -> Option<Cow<'_, str>> {
    let spelt = span.of(body);
    if spelt.len() < 2 || spelt[0] != b'"' {
        return None;
    }
    let spelt = std::str::from_utf8(inside(body, span)).ok()?;
    if !has_escape(spelt.as_bytes()) {
        return Some(Cow::Borrowed(spelt));
    }
    Some(Cow::Owned(unescaped(spelt)))
}

/// Decodes the escapes of a string's inside; what is no escape stays.
fn unescaped(spelt: &str) -> String {
    let mut text = String::with_capacity(spelt.len());
    let mut rest = spelt;
    while let Some(at) = memchr::memchr(b'\\', rest.as_bytes()) {
        text.push_str(&rest[..at]);
        let (character, length) = escaped_character(&rest.as_bytes()[at..]);
        text.push(character);
        rest = rest.get(at + length..).unwrap_or_default();
    }
    text.push_str(rest);
    text
}

/// The character that an escape stands for, and how many bytes it takes.
fn escaped_character(escape: &[u8]) -> (char, usize) {
    let character = match escape.get(1) {
        Some(b'n') => '\n',
        Some(b't') => '\t',
        Some(b'r') => '\r',
        Some(b'b') => '\u{8}',
        Some(b'f') => '\u{c}',
        Some(b'u') => return unicode_escape(escape),
        Some(&byte) if byte.is_ascii() => byte as char,
        _ => return (char::REPLACEMENT_CHARACTER, 1),
    };
    (character, 2)
}

fn unicode_escape(escape: &[u8]) -> (char, usize) {
    let Some(high) = hex4(escape) else {
        return (char::REPLACEMENT_CHARACTER, 2);
    };
    if let Some(character) = char::from_u32(high) {
        return (character, 6);
    }
    let low = escape.get(6..).filter(|next| next.starts_with(b"\\u")).and_then(hex4);
    match low {
        Some(low @ 0xDC00..=0xDFFF) if high < 0xDC00 => {
            let code = 0x10000 + ((high - 0xD800) << 10) + (low - 0xDC00);
            (char::from_u32(code).unwrap_or(char::REPLACEMENT_CHARACTER), 12)
        }
        _ => (char::REPLACEMENT_CHARACTER, 6),
    }
}

/// The four digits after `\u`.
fn hex4(escape: &[u8]) -> Option<u32> {
    let digits = escape.get(2..6).filter(|digits| digits.iter().all(u8::is_ascii_hexdigit))?;
    u32::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()
}

/// A number that is a whole one from 0 to `u64::MAX`, in whatever spelling: `100`, `100.0` and `1e2` are the same to
/// providers. `None` for all others: the caller refuses them.
#[must_use]
pub fn integer(body: &[u8], span: Span) -> Option<u64> {
    let spelt = span.of(body);
    if !spelt.is_empty() && spelt.len() <= 19 && spelt.iter().all(u8::is_ascii_digit) {
        return Some(spelt.iter().fold(0, |value, digit| value * 10 + u64::from(digit - b'0')));
    }
    let spelt = std::str::from_utf8(spelt).ok()?;
    let (mantissa, exponent) = spelt.split_once(['e', 'E']).unwrap_or((spelt, "0"));
    let (whole, decimals) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    let (negative, whole) = whole.strip_prefix('-').map_or((false, whole), |whole| (true, whole));
    let decimals = decimals.trim_end_matches('0');
    if whole.is_empty() || !whole.bytes().chain(decimals.bytes()).all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    // The value is `digits` × 10^scale; zeros at its end move into the scale so that `0e999` and `1000e-3` are read.
    let digits = format!("{whole}{decimals}");
    let significant = digits.trim_start_matches('0').trim_end_matches('0');
    if significant.is_empty() {
        return Some(0);
    }
    let trailing_zeros = digits.len() - digits.trim_end_matches('0').len();
    let scale = exponent.parse::<i64>().ok()?.checked_sub(i64::try_from(decimals.len()).ok()?)?;
    let scale = u32::try_from(scale.checked_add(i64::try_from(trailing_zeros).ok()?)?).ok()?;
    if negative {
        return None;
    }
    significant.parse::<u64>().ok()?.checked_mul(10u64.checked_pow(scale)?)
}

/// `true` or `false`.
#[must_use]
pub fn boolean(body: &[u8], span: Span) -> Option<bool> {
    match span.of(body) {
        b"true" => Some(true),
        b"false" => Some(false),
        _ => None,
    }
}

/// Whether the value is `null`.
#[must_use]
pub fn is_null(body: &[u8], span: Span) -> bool {
    span.of(body) == b"null"
}

/// The elements of an array in turn; nothing when the value is no array.
pub fn elements(body: &[u8], span: Span) -> impl Iterator<Item = Span> {
    let mut scanner = Scanner::new(body, span.start, span.end.min(body.len()));
    let mut open = scanner.eat(b'[');
    std::iter::from_fn(move || {
        if !open {
            return None;
        }
        scanner.skip_whitespace();
        let start = scanner.at;
        scanner.skip_value().ok()?;
        let element = Span { start, end: scanner.at };
        scanner.skip_whitespace();
        open = scanner.eat(b',');
        Some(element)
    })
}

/// The keys (with their quotes) and values of an object in turn, without a scan of its own; nothing when it is no object.
pub fn members(body: &[u8], object: Span) -> impl Iterator<Item = (Span, Span)> {
    let mut scanner = Scanner::new(body, object.start, object.end.min(body.len()));
    let mut open = scanner.eat(b'{');
    std::iter::from_fn(move || {
        if !open {
            return None;
        }
        scanner.skip_whitespace();
        let key = scanner.key().ok()?;
        let start = scanner.at;
        scanner.skip_value().ok()?;
        let value = Span { start, end: scanner.at };
        scanner.skip_whitespace();
        open = scanner.eat(b',');
        Some((key, value))
    })
}

/// Whether a key, in whatever spelling, is `name`.
#[inline]
#[must_use]
pub fn key_is(body: &[u8], key: Span, name: &str) -> bool {
    let spelt = inside(body, key);
    // With an escape in it a key is longer than what it spells.
    let may_be_escaped = spelt.len() > name.len();
    spelt == name.as_bytes() || (may_be_escaped && has_escape(spelt) && text(body, key).is_some_and(|key| key == name))
}

/// The value of the first field `name` of a nested object.
#[must_use]
pub fn field(body: &[u8], object: Span, name: &str) -> Option<Span> {
    members(body, object).find(|(key, _)| key_is(body, *key, name)).map(|(_, value)| value)
}

/// The values of the fields `names` of an object, in one pass; of a field given twice, the last.
#[must_use]
pub fn fields<const N: usize>(body: &[u8], object: Span, names: [&str; N]) -> [Option<Span>; N] {
    let mut found = [None; N];
    for (key, value) in members(body, object) {
        let spelt = inside(body, key);
        let decoded = has_escape(spelt).then(|| text(body, key)).flatten();
        let key = decoded.as_ref().map_or(spelt, |text| text.as_bytes());
        if let Some(index) = names.iter().position(|name| name.as_bytes() == key) {
            found[index] = Some(value);
        }
    }
    found
}

/// The value of the field `name` of a nested object, where parsers could not disagree on it.
///
/// # Errors
/// When the object has the field twice.
pub fn only_field(body: &[u8], object: Span, name: &str) -> Result<Option<Span>, JsonError> {
    let mut found = None;
    for (key, value) in members(body, object) {
        if !key_is(body, key, name) {
            continue;
        }
        if found.replace(value).is_some() {
            return Err(JsonError { problem: Problem::Duplicate(name.to_owned()), offset: key.start });
        }
    }
    Ok(found)
}

/// Calls `visit` with each key inside of `span`, at any depth, and with the offset at which its value starts.
/// One pass; keys of the outermost object are not visited twice.
pub fn walk(body: &[u8], span: Span, mut visit: impl FnMut(Span, usize)) {
    let mut scanner = Scanner::new(body, span.start, span.end.min(body.len()));
    // What was scanned before cannot fail; what was not is walked as far as it is JSON.
    let _ = scanner.value(0, &mut |token| {
        if let Token::Key(key, value_at) = token {
            visit(key, value_at);
        }
    });
}

/// The decoded text of the string that starts at `at`; `None` when something else does.
#[must_use]
pub fn string_at(body: &[u8], at: usize) -> Option<Cow<'_, str>> {
    text(body, value_at(body, at).filter(|span| body.get(span.start) == Some(&b'"'))?)
}

/// The value that starts at `at`, if all of it is there.
#[must_use]
pub fn value_at(body: &[u8], at: usize) -> Option<Span> {
    let mut scanner = Scanner::new(body, at, body.len());
    scanner.skip_value().ok()?;
    Some(Span { start: at, end: scanner.at })
}
