//! Byte-range splices: what a rule changes in a body, and nothing else.

use std::{borrow::Cow, ops::Range};

use bytes::Bytes;

use super::{Scan, Span, elements};

/// Bytes to put where others stand; an insertion has an empty range.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Splice {
    /// The range of the original body that goes.
    pub at: Range<usize>,
    /// What comes in its place.
    pub with: Bytes,
}

/// A splice as [`Edits::apply`] makes it.
struct Piece<'e> {
    at: Range<usize>,
    with: Cow<'e, [u8]>,
}

/// Changes to one body, collected in any order and applied at once.
///
/// All offsets are those of the original body, so edits do not see each other: of two for the same field or bytes the
/// later wins, insertions at one place keep the order in which they were made, and an edit inside of removed bytes goes
/// with them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Edits {
    splices: Vec<Splice>,
    containers: Vec<Container>,
}

/// An object or array that gains or loses members: commas depend on what is left, so they are set in [`Edits::apply`].
#[derive(Debug, Clone, PartialEq, Eq)]
struct Container {
    /// What is between the brackets.
    interior: Span,
    /// Key start and value end of each member; arrays name only their first.
    members: Vec<Member>,
    added: Vec<(Option<String>, Bytes)>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Member {
    span: Span,
    removed: bool,
}

impl Edits {
    /// No edits.
    #[must_use]
    pub const fn new() -> Edits {
        Edits { splices: Vec::new(), containers: Vec::new() }
    }

    /// Whether the body stays as it is.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.splices.is_empty() && self.containers.is_empty()
    }

    /// Puts `json` where `span` stands. A later replacement of the same span wins.
    pub fn replace(&mut self, span: Span, json: impl Into<Bytes>) {
        let at = span.start..span.end;
        let with = json.into();
        match self.splices.iter_mut().find(|splice| splice.at == at && !at.is_empty()) {
            Some(splice) => splice.with = with,
            None => self.splices.push(Splice { at, with }),
        }
    }

    /// Puts `bytes` before the byte at `offset`.
    pub fn insert(&mut self, offset: usize, bytes: impl Into<Bytes>) {
        self.splices.push(Splice { at: offset..offset, with: bytes.into() });
    }

    /// Gives the field `name` of a scanned object the value `json`: in place where the object has it, else as its first
    /// field, so that the bytes after it stay what they are.
    pub fn set_field(&mut self, scan: &Scan, name: &str, json: impl Into<Bytes>) {
        if let Some(span) = scan.get(name) {
            self.keep_field(scan, name);
            return self.replace(span, json);
        }
        let json = json.into();
        let container = self.object(scan);
        match container.added.iter_mut().find(|(added, _)| added.as_deref() == Some(name)) {
            Some((_, value)) => *value = json,
            None => container.added.push((Some(name.to_owned()), json)),
        }
    }

    /// Takes the field `name` out of a scanned object, with its comma; also one that [`Edits::set_field`] added.
    pub fn remove_field(&mut self, scan: &Scan, name: &str) {
        let position = scan.fields().position(|(field, _)| field == name);
        let container = self.object(scan);
        container.added.retain(|(added, _)| added.as_deref() != Some(name));
        if let Some(member) = position.and_then(|i| container.members.get_mut(i)) {
            member.removed = true;
        }
    }

    /// Takes back a removal: who sets a field after another removed it wants it there.
    fn keep_field(&mut self, scan: &Scan, name: &str) {
        let start = scan.field(name).map(|field| field.key.start);
        let members = self.containers.iter_mut().flat_map(|container| &mut container.members);
        members.filter(|member| Some(member.span.start) == start).for_each(|member| member.removed = false);
    }

    /// Puts `json` before the elements of the array at `array`, after what was put there before.
    pub fn prepend_element(&mut self, body: &[u8], array: Span, json: impl Into<Bytes>) {
        let interior = Span { start: array.start + 1, end: array.end.saturating_sub(1) };
        let first = || elements(body, array).next().map(|span| Member { span, removed: false });
        let container = self.container(interior, || first().into_iter().collect());
        container.added.push((None, json.into()));
    }

    /// Puts `json` after the elements of the array at `array`.
    pub fn append_element(&mut self, body: &[u8], array: Span, json: impl AsRef<[u8]>) {
        if elements(body, array).next().is_none() {
            return self.prepend_element(body, array, Bytes::copy_from_slice(json.as_ref()));
        }
        let mut with = Vec::with_capacity(json.as_ref().len() + 1);
        with.push(b',');
        with.extend_from_slice(json.as_ref());
        self.insert(array.end.saturating_sub(1), with);
    }

    /// The body with all edits made, in one allocation; the same bytes when there are none.
    #[must_use]
    pub fn apply(&self, body: &Bytes) -> Bytes {
        if self.is_empty() {
            return body.clone();
        }
        let mut splices = Vec::with_capacity(self.splices.len() + self.containers.len());
        splices
            .extend(self.splices.iter().map(|Splice { at, with }| Piece { at: at.clone(), with: Cow::Borrowed(with) }));
        for container in &self.containers {
            container.resolve(&mut splices);
        }
        // Stable: insertions at one place keep their order, and come before what is removed from there on.
        splices.sort_by_key(|splice| (splice.at.start, !splice.at.is_empty()));
        let longer: usize = splices.iter().map(|splice| splice.with.len()).sum();
        let mut edited = Vec::with_capacity(body.len() + longer);
        let mut at = 0;
        for splice in &splices {
            // Inside of what an earlier splice took out.
            let Some(kept) = body.get(at..splice.at.start) else { continue };
            edited.extend_from_slice(kept);
            edited.extend_from_slice(&splice.with);
            at = splice.at.end;
        }
        edited.extend_from_slice(body.get(at..).unwrap_or_default());
        edited.into()
    }

    fn object(&mut self, scan: &Scan) -> &mut Container {
        let object = scan.span();
        let interior = Span { start: object.start + 1, end: object.end.saturating_sub(1) };
        self.container(interior, || {
            let whole = |key: Span, value: Span| Span { start: key.start, end: value.end };
            scan.fields().map(|(_, field)| Member { span: whole(field.key, field.value), removed: false }).collect()
        })
    }

    fn container(&mut self, interior: Span, members: impl FnOnce() -> Vec<Member>) -> &mut Container {
        let known = self.containers.iter().position(|container| container.interior == interior);
        let index = known.unwrap_or_else(|| {
            self.containers.push(Container { interior, members: members(), added: Vec::new() });
            self.containers.len() - 1
        });
        &mut self.containers[index]
    }
}

// === impl Container ===

impl Container {
    /// The splices that make the change, commas included.
    fn resolve(&self, splices: &mut Vec<Piece<'_>>) {
        let nothing_left = self.members.iter().all(|member| member.removed);
        let mut added = self.added_json();
        if nothing_left {
            if !added.is_empty() || !self.members.is_empty() {
                splices.push(Piece { at: self.interior.start..self.interior.end, with: added.into() });
            }
            return;
        }
        if !added.is_empty() {
            added.push(b',');
            splices.push(Piece { at: self.interior.start..self.interior.start, with: added.into() });
        }
        self.resolve_removals(splices);
    }

    /// A run of removed members goes with the comma after it, or, at the end, with the comma before it.
    fn resolve_removals(&self, splices: &mut Vec<Piece<'_>>) {
        let mut i = 0;
        while i < self.members.len() {
            if !self.members[i].removed {
                i += 1;
                continue;
            }
            let from = i;
            while i < self.members.len() && self.members[i].removed {
                i += 1;
            }
            let at = match self.members.get(i) {
                Some(kept) => self.members[from].span.start..kept.span.start,
                None => self.members[from - 1].span.end..self.members[i - 1].span.end,
            };
            splices.push(Piece { at, with: Cow::Borrowed(&[]) });
        }
    }

    /// With room for one more comma.
    fn added_json(&self) -> Vec<u8> {
        let length = |(name, value): &(Option<String>, Bytes)| name.as_ref().map_or(0, String::len) + value.len() + 4;
        let mut json = Vec::with_capacity(self.added.iter().map(length).sum());
        for (name, value) in &self.added {
            if !json.is_empty() {
                json.push(b',');
            }
            if let Some(name) = name {
                json.push(b'"');
                push_escaped(&mut json, name);
                json.extend_from_slice(b"\":");
            }
            json.extend_from_slice(value);
        }
        json
    }
}

/// `text` as a JSON string, with its quotes.
#[must_use]
pub fn quoted(text: &str) -> Vec<u8> {
    let mut json = Vec::with_capacity(text.len() + 2);
    json.push(b'"');
    push_escaped(&mut json, text);
    json.push(b'"');
    json
}

/// `text` as it stands inside of a JSON string, without the quotes: only what must be escaped is.
#[must_use]
pub fn escaped(text: &str) -> Vec<u8> {
    let mut json = Vec::with_capacity(text.len());
    push_escaped(&mut json, text);
    json
}

fn push_escaped(json: &mut Vec<u8>, text: &str) {
    const HEX: &[u8; 16] = b"0123456789abcdef";
    let mut rest = text.as_bytes();
    while let Some(at) = rest.iter().position(|&byte| byte < 0x20 || byte == b'"' || byte == b'\\') {
        json.extend_from_slice(&rest[..at]);
        match rest[at] {
            b'"' => json.extend_from_slice(b"\\\""),
            b'\\' => json.extend_from_slice(b"\\\\"),
            b'\n' => json.extend_from_slice(b"\\n"),
            b'\r' => json.extend_from_slice(b"\\r"),
            b'\t' => json.extend_from_slice(b"\\t"),
            byte => {
                json.extend_from_slice(b"\\u00");
                json.extend([HEX[usize::from(byte >> 4)], HEX[usize::from(byte & 15)]]);
            }
        }
        rest = &rest[at + 1..];
    }
    json.extend_from_slice(rest);
}
