//! Reads TOML 1.0 into JSON's values: what a configuration needs of it.
//!
//! Dates and times are kept as texts. Written here because a parser would bring four crates for one command.

use serde_json::{Map, Number, Value, json};

/// Why a text is no TOML.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: {reason}")]
pub(super) struct TomlError {
    line: usize,
    reason: String,
}

type Parsed<T> = Result<T, TomlError>;
type Table = Map<String, Value>;

/// Nesting that no honest file reaches; a bound on recursion.
const DEPTH_MAX: usize = 32;

/// Reads a file.
///
/// # Errors
/// At the first mistake, with its line.
pub(super) fn parse(text: &str) -> Parsed<Value> {
    let mut reader = Reader { text, at: 0 };
    let mut root = Table::new();
    let mut section: Vec<String> = Vec::new();
    loop {
        reader.skip_blank(true);
        match reader.peek() {
            None => return Ok(Value::Object(root)),
            Some('[') => section = reader.header(&mut root)?,
            Some(_) => {
                let keys = reader.keys()?;
                reader.expect('=')?;
                let value = reader.value(0)?;
                let table = descend(&mut root, &section).map_err(|reason| reader.wrong(reason))?;
                insert(table, &keys, value).map_err(|reason| reader.wrong(reason))?;
                reader.end_of_line()?;
            }
        }
    }
}

struct Reader<'t> {
    text: &'t str,
    at: usize,
}

impl Reader<'_> {
    fn rest(&self) -> &str {
        &self.text[self.at..]
    }

    fn peek(&self) -> Option<char> {
        self.rest().chars().next()
    }

    fn next(&mut self) -> Option<char> {
        let c = self.peek()?;
        self.at += c.len_utf8();
        Some(c)
    }

    fn take(&mut self, token: &str) -> bool {
        let found = self.rest().starts_with(token);
        self.at += if found { token.len() } else { 0 };
        found
    }

    fn wrong(&self, reason: impl Into<String>) -> TomlError {
        TomlError { line: self.text[..self.at].matches('\n').count() + 1, reason: reason.into() }
    }

    fn expect(&mut self, c: char) -> Parsed<()> {
        self.skip_blank(false);
        if self.peek() != Some(c) {
            return Err(self.wrong(format!("`{c}` is due here")));
        }
        self.next();
        self.skip_blank(false);
        Ok(())
    }

    /// Skips blanks and comments, and line breaks where they mean nothing.
    fn skip_blank(&mut self, lines: bool) {
        while let Some(c) = self.peek() {
            match c {
                ' ' | '\t' => self.at += 1,
                '\n' | '\r' if lines => self.at += 1,
                '#' => self.at += self.rest().find('\n').unwrap_or(self.rest().len()),
                _ => return,
            }
        }
    }

    fn end_of_line(&mut self) -> Parsed<()> {
        self.skip_blank(false);
        match self.peek() {
            None | Some('\n' | '\r') => Ok(()),
            Some(c) => Err(self.wrong(format!("`{c}` after a value; begin a new line"))),
        }
    }

    /// `[a.b]` or `[[a.b]]`.
    fn header(&mut self, root: &mut Table) -> Parsed<Vec<String>> {
        let is_item = self.take("[[");
        if !is_item {
            self.next();
        }
        self.skip_blank(false);
        let keys = self.keys()?;
        self.skip_blank(false);
        if !self.take(if is_item { "]]" } else { "]" }) {
            return Err(self.wrong("a table's name ends with `]`"));
        }
        self.end_of_line()?;
        if is_item && let Some((last, parents)) = keys.split_last() {
            let table = descend(root, parents).map_err(|reason| self.wrong(reason))?;
            match table.entry(last.clone()).or_insert_with(|| json!([])) {
                Value::Array(items) => items.push(json!({})),
                _ => return Err(self.wrong(format!("`{last}` is no list of tables"))),
            }
        }
        descend(root, &keys).map_err(|reason| self.wrong(reason))?;
        Ok(keys)
    }

    /// `a."b.c".d`.
    fn keys(&mut self) -> Parsed<Vec<String>> {
        let mut keys = Vec::new();
        loop {
            self.skip_blank(false);
            keys.push(self.key()?);
            self.skip_blank(false);
            if !self.take(".") {
                return Ok(keys);
            }
        }
    }

    fn key(&mut self) -> Parsed<String> {
        if matches!(self.peek(), Some('"' | '\'')) {
            return self.string();
        }
        let is_bare = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
        let end = self.rest().find(|c| !is_bare(c)).unwrap_or(self.rest().len());
        if end == 0 {
            return Err(self.wrong("a key is due here"));
        }
        let key = self.rest()[..end].to_owned();
        self.at += end;
        Ok(key)
    }

    fn value(&mut self, depth: usize) -> Parsed<Value> {
        if depth > DEPTH_MAX {
            return Err(self.wrong("nested too deeply"));
        }
        match self.peek() {
            Some('"' | '\'') => self.string().map(Value::String),
            Some('[') => self.array(depth),
            Some('{') => self.inline_table(depth),
            Some(_) => self.word(),
            None => Err(self.wrong("a value is due here")),
        }
    }

    fn array(&mut self, depth: usize) -> Parsed<Value> {
        self.next();
        let mut items = Vec::new();
        loop {
            self.skip_blank(true);
            if self.take("]") {
                return Ok(Value::Array(items));
            }
            items.push(self.value(depth + 1)?);
            self.skip_blank(true);
            if !self.take(",") && self.peek() != Some(']') {
                return Err(self.wrong("`,` or `]` is due here"));
            }
        }
    }

    fn inline_table(&mut self, depth: usize) -> Parsed<Value> {
        self.next();
        let mut table = Table::new();
        loop {
            // TOML 1.1 allows line breaks here.
            self.skip_blank(true);
            if self.take("}") {
                return Ok(Value::Object(table));
            }
            let keys = self.keys()?;
            self.expect('=')?;
            let value = self.value(depth + 1)?;
            insert(&mut table, &keys, value).map_err(|reason| self.wrong(reason))?;
            self.skip_blank(true);
            if !self.take(",") && self.peek() != Some('}') {
                return Err(self.wrong("`,` or `}` is due here"));
            }
        }
    }

    /// A number, a truth value, or a date, which stays a text.
    fn word(&mut self) -> Parsed<Value> {
        let end = self.rest().find([',', ']', '}', '\n', '\r', '#']).unwrap_or(self.rest().len());
        let word = self.rest()[..end].trim_end().to_owned();
        let digits = word.replace('_', "");
        let radix = [("0x", 16), ("0o", 8), ("0b", 2)]
            .into_iter()
            .find_map(|(prefix, radix)| Some((digits.strip_prefix(prefix)?, radix)));
        let value = match word.as_str() {
            "true" => json!(true),
            "false" => json!(false),
            _ => match radix {
                Some((digits, radix)) => i64::from_str_radix(digits, radix).ok().map(Value::from),
                None => digits
                    .parse::<i64>()
                    .ok()
                    .map(Value::from)
                    .or_else(|| digits.parse::<f64>().ok().and_then(Number::from_f64).map(Value::Number)),
            }
            .or_else(|| is_date(&word).then(|| json!(word)))
            .ok_or_else(|| self.wrong(format!("`{word}` is no value; write texts in quotes")))?,
        };
        self.at += word.len();
        Ok(value)
    }

    fn string(&mut self) -> Parsed<String> {
        for (quote, raw) in [("\"\"\"", false), ("'''", true)] {
            if self.take(quote) {
                // A line break right after the quotes belongs to them.
                let _ = self.take("\r\n") || self.take("\n");
                return self.string_until(quote, raw, true);
            }
        }
        if self.take("'") {
            self.string_until("'", true, false)
        } else {
            self.next();
            self.string_until("\"", false, false)
        }
    }

    fn string_until(&mut self, quote: &str, raw: bool, lines: bool) -> Parsed<String> {
        let mut text = String::new();
        loop {
            if self.take(quote) {
                // Up to two quotes may stand right before those that end a text of several lines.
                while lines && self.rest().starts_with(&quote[..1]) {
                    text.extend(self.next());
                }
                return Ok(text);
            }
            match self.next() {
                Some('\\') if !raw => text.extend(self.escape(lines)?),
                Some('\n') if !lines => return Err(self.wrong("a text ends before its line does")),
                Some(c) => text.push(c),
                None => return Err(self.wrong("a text does not end")),
            }
        }
    }

    fn escape(&mut self, lines: bool) -> Parsed<Option<char>> {
        let c = self.next().ok_or_else(|| self.wrong("a text does not end"))?;
        Ok(Some(match c {
            'b' => '\u{8}',
            't' => '\t',
            'n' => '\n',
            'f' => '\u{c}',
            'r' => '\r',
            'e' => '\u{1b}',
            '"' | '\\' => c,
            'u' | 'U' => {
                let digits = if c == 'u' { 4 } else { 8 };
                let code = self.rest().get(..digits).and_then(|hex| u32::from_str_radix(hex, 16).ok());
                let found = code.and_then(char::from_u32).ok_or_else(|| self.wrong("no such character"))?;
                self.at += digits;
                found
            }
            ' ' | '\t' | '\r' | '\n' if lines => {
                let blank = self.rest().len() - self.rest().trim_start().len();
                self.at += blank;
                return Ok(None);
            }
            _ => return Err(self.wrong(format!("`\\{c}` means nothing"))),
        }))
    }
}

/// Whether a word could be a date, a time or both.
fn is_date(word: &str) -> bool {
    let digits = word.bytes().take_while(u8::is_ascii_digit).count();
    let follows = word.as_bytes().get(digits);
    (digits == 4 && follows == Some(&b'-') || digits == 2 && follows == Some(&b':'))
        && word.chars().all(|c| c.is_ascii_digit() || "-:.+TtZz ".contains(c))
}

/// The table at `keys`, made where there is none; of a list of tables, the last.
fn descend<'t>(root: &'t mut Table, keys: &[String]) -> Result<&'t mut Table, String> {
    let mut table = root;
    for key in keys {
        let entry = table.entry(key.clone()).or_insert_with(|| json!({}));
        let entry = match entry {
            Value::Array(items) => items.last_mut().ok_or_else(|| format!("`{key}` is an empty list"))?,
            other => other,
        };
        let Value::Object(inner) = entry else { return Err(format!("`{key}` is no table")) };
        table = inner;
    }
    Ok(table)
}

fn insert(table: &mut Table, keys: &[String], value: Value) -> Result<(), String> {
    let Some((last, parents)) = keys.split_last() else { return Ok(()) };
    let table = descend(table, parents)?;
    match table.insert(last.clone(), value) {
        Some(_) => Err(format!("`{last}` is written twice")),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_keys_and_values_are_read() {
        let text = "# head\ntitle = \"a \\\"b\\\" \\u00e9\" # tail\n[models.\"gpt-3.5\"]\nrouting = [\n  \"a\", # first\n  'b',\n]\n\
                    providers.a = { type = \"openai\", n = 1_000 }\n[models.\"gpt-3.5\".providers.b]\nweight = 0.9\nhex = 0xff\non = true\n\
                    day = 2026-11-23\n[[rules]]\nid = 1\n[[rules]]\nid = 2\n[rules.deep]\nx = -1.5e3\n";
        let expected = json!({
            "title": "a \"b\" é",
            "models": {"gpt-3.5": {
                "routing": ["a", "b"],
                "providers": {
                    "a": {"type": "openai", "n": 1000},
                    "b": {"weight": 0.9, "hex": 255, "on": true, "day": "2026-11-23"},
                },
            }},
            "rules": [{"id": 1}, {"id": 2, "deep": {"x": -1500.0}}],
        });
        assert_eq!(parse(text), Ok(expected));
    }

    #[test]
    fn texts_of_several_lines_keep_their_lines() {
        let text = "a = \"\"\"\nfirst\n  second \\\n    third\"\"\"\nb = '''\\raw'''\nc = 'C:\\n'\nd = \"\"\"says \"x\"\"\"\"\n";
        let expected = json!({"a": "first\n  second third", "b": "\\raw", "c": "C:\\n", "d": "says \"x\""});
        assert_eq!(parse(text), Ok(expected));
    }

    #[test]
    fn mistakes_are_named_with_their_line() {
        for (text, line, reason) in [
            ("a = 1\nb = x", 2, "`x` is no value; write texts in quotes"),
            ("a = 1\na = 2", 2, "`a` is written twice"),
            ("a = \"x\ny\"", 2, "a text ends before its line does"),
            ("[a\nb = 1", 1, "a table's name ends with `]`"),
            ("a = 1 b = 2", 1, "`1 b = 2` is no value"),
            ("a = 1\n[a.b]", 2, "`a` is no table"),
            ("a = [1 2]", 1, "is no value"),
        ] {
            let error = parse(text).expect_err(text);
            assert_eq!(error.line, line, "{text}: {error}");
            assert!(error.reason.contains(reason), "{text}: {error}");
        }
    }

    proptest::proptest! {
        #[test]
        fn no_text_makes_the_reader_panic(text in "[ab.=\\[\\]{}\"'\\\\\n#,0-9x_ é]{0,60}") {
            let _ = parse(&text);
        }
    }
}
