//! Event streams cut at any byte: a push parser that only looks, and the splitter beneath it.
//!
//! Takes LF, CRLF and CR, comments, data over several lines and a byte order mark, as the HTML standard has them
//! (section 9.2.6). An event in one chunk is read where it lies; one cut in two is carried over, within a bound. What is
//! longer is passed over and never an error: the client gets its bytes from elsewhere.

use memchr::memchr2;

/// The longest event that is read unless told otherwise, in bytes.
pub const EVENT_BYTES_MAX: usize = 1 << 20;
const BYTE_ORDER_MARK: &[u8] = b"\xEF\xBB\xBF";

/// One event that carries data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Event<'a> {
    /// The `event` field, empty where there is none.
    pub name: &'a [u8],
    /// The data, its lines joined by LF.
    pub data: &'a [u8],
}

/// Finds where events end; knows the line it is in and nothing else.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Splitter {
    /// Nothing of the current line was seen yet.
    at_line_start: bool,
    /// The last byte was CR, so that LF next belongs to it.
    after_cr: bool,
}

/// Calls back for each event of a stream.
#[derive(Debug, Clone)]
pub struct Parser {
    splitter: Splitter,
    /// The start of an event that has not ended yet.
    carry: Vec<u8>,
    joined: Vec<u8>,
    event_bytes_max: usize,
    /// The current event is longer than `event_bytes_max`.
    passing_over: bool,
    started: bool,
}

// === impl Splitter ===

impl Default for Splitter {
    fn default() -> Splitter {
        Splitter { at_line_start: true, after_cr: false }
    }
}

impl Splitter {
    /// The offset after the blank line that ends the current event, if it is in `bytes`; else all of `bytes` belongs to
    /// the event. Call it again with what follows.
    pub fn event_end(&mut self, bytes: &[u8]) -> Option<usize> {
        let mut line = usize::from(self.after_cr && bytes.first() == Some(&b'\n'));
        self.after_cr &= bytes.is_empty();
        while let Some(end) = memchr2(b'\n', b'\r', bytes.get(line..).unwrap_or_default()) {
            let is_blank = self.at_line_start && end == 0;
            let terminator = line + end;
            line = terminator + 1;
            self.at_line_start = true;
            if bytes[terminator] == b'\r' {
                self.after_cr = line == bytes.len();
                line += usize::from(bytes.get(line) == Some(&b'\n'));
            }
            if is_blank {
                return Some(line);
            }
        }
        self.at_line_start &= line >= bytes.len();
        None
    }
}

// === impl Parser ===

impl Default for Parser {
    fn default() -> Parser {
        Parser::new(EVENT_BYTES_MAX)
    }
}

impl Parser {
    /// A parser that reads events up to `event_bytes_max` bytes, field names and inner line ends included.
    #[must_use]
    pub fn new(event_bytes_max: usize) -> Parser {
        Parser {
            splitter: Splitter::default(),
            carry: Vec::new(),
            joined: Vec::new(),
            event_bytes_max,
            passing_over: false,
            started: false,
        }
    }

    /// Takes the next bytes of the stream and calls back for each event that ends in them.
    pub fn push(&mut self, chunk: &[u8], mut on_event: impl FnMut(Event<'_>)) {
        let mut rest = chunk;
        while let Some(end) = self.splitter.event_end(rest) {
            let (block, following) = rest.split_at(end);
            self.end_event(block, &mut on_event);
            rest = following;
        }
        self.carry_over(rest);
    }

    /// Ends the stream. An event without its blank line is read all the same, since a provider may leave it out; says
    /// whether there was one.
    pub fn finish(&mut self, mut on_event: impl FnMut(Event<'_>)) -> bool {
        let is_incomplete = self.is_mid_event();
        self.end_event(&[], &mut on_event);
        is_incomplete
    }

    /// Whether bytes of an event were seen that has not ended.
    #[must_use]
    pub fn is_mid_event(&self) -> bool {
        self.passing_over || !self.carry.is_empty()
    }

    fn end_event(&mut self, block: &[u8], on_event: &mut impl FnMut(Event<'_>)) {
        if !self.carry.is_empty() {
            self.carry_over(block);
        }
        let whole = if self.carry.is_empty() { block } else { &self.carry };
        let is_read = !std::mem::take(&mut self.passing_over)
            && without_line_ends_after(without_line_ends_before(whole)).len() <= self.event_bytes_max;
        let is_first = !std::mem::replace(&mut self.started, true);
        if is_read {
            let whole = if is_first { whole.strip_prefix(BYTE_ORDER_MARK).unwrap_or(whole) } else { whole };
            if let Some(event) = event(whole, &mut self.joined) {
                on_event(event);
            }
        }
        self.carry.clear();
    }

    /// The bound is on what stands between line ends, since where a CRLF was cut must not matter.
    fn carry_over(&mut self, bytes: &[u8]) {
        let bytes = if self.carry.is_empty() { without_line_ends_before(bytes) } else { bytes };
        if self.passing_over || bytes.is_empty() {
            return;
        }
        let length = without_line_ends_after(bytes).len();
        if length > 0 && self.carry.len() + length > self.event_bytes_max {
            self.passing_over = true;
            self.carry = Vec::new();
            return;
        }
        self.carry.extend_from_slice(bytes);
    }
}

fn is_line_end(byte: &u8) -> bool {
    matches!(byte, b'\r' | b'\n')
}

fn without_line_ends_before(bytes: &[u8]) -> &[u8] {
    let start = bytes.iter().position(|byte| !is_line_end(byte)).unwrap_or(bytes.len());
    &bytes[start..]
}

fn without_line_ends_after(bytes: &[u8]) -> &[u8] {
    let end = bytes.iter().rposition(|byte| !is_line_end(byte)).map_or(0, |last| last + 1);
    &bytes[..end]
}

/// Reads one event from its lines; `None` when it carries no data. Data over several lines is joined in `joined`.
pub fn event<'a>(block: &'a [u8], joined: &'a mut Vec<u8>) -> Option<Event<'a>> {
    joined.clear();
    let mut name: &[u8] = b"";
    let mut single: Option<&[u8]> = None;
    let mut is_joined = false;
    for line in lines(block) {
        let (field, value) = field(line);
        match (field, single) {
            (b"event", _) => name = value,
            (b"data", None) => single = Some(value),
            (b"data", Some(first)) => {
                if !is_joined {
                    joined.extend_from_slice(first);
                    is_joined = true;
                }
                joined.push(b'\n');
                joined.extend_from_slice(value);
            }
            _ => {}
        }
    }
    let data = if is_joined { joined } else { single? };
    Some(Event { name, data })
}

/// The lines of a block without their ends; CRLF shows as a line and an empty one, which mean nothing inside an event.
fn lines(block: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut rest = block;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let end = memchr2(b'\n', b'\r', rest).unwrap_or(rest.len());
        let line = &rest[..end];
        rest = rest.get(end + 1..).unwrap_or_default();
        Some(line)
    })
}

/// Name and value of a line; a comment has an empty name.
fn field(line: &[u8]) -> (&[u8], &[u8]) {
    let Some(colon) = memchr::memchr(b':', line) else {
        return (line, b"");
    };
    let value = &line[colon + 1..];
    (&line[..colon], value.strip_prefix(b" ").unwrap_or(value))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    type Read = Vec<(String, String)>;

    fn read(chunks: &[&[u8]], event_bytes_max: usize) -> (Read, bool) {
        let mut parser = Parser::new(event_bytes_max);
        let mut events = Vec::new();
        let mut keep = |event: Event<'_>| {
            let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
            events.push((text(event.name), text(event.data)));
        };
        chunks.iter().for_each(|chunk| parser.push(chunk, &mut keep));
        let is_incomplete = parser.finish(&mut keep);
        (events, is_incomplete)
    }

    fn data(events: &[(&str, &str)]) -> Read {
        events.iter().map(|(name, data)| ((*name).to_owned(), (*data).to_owned())).collect()
    }

    const SCRIPT: &str = "\u{feff}: hello\n\ndata: 一\r\ndata:二\r\n\r\nevent: ping\rdata: {}\r\r\n\
                          id: 7\nretry: 5\n\n\ndata\n\nevent: x\ndata:  two spaces\n\ndata: 😀\r\r\ndata: [DONE]\n\n";

    fn expected() -> Read {
        data(&[("", "一\n二"), ("ping", "{}"), ("", ""), ("x", " two spaces"), ("", "😀"), ("", "[DONE]")])
    }

    #[test]
    fn events_are_read_alike_at_every_cut() {
        let script = SCRIPT.as_bytes();
        for first in 0..=script.len() {
            for second in first..=script.len() {
                let chunks = [&script[..first], &script[first..second], &script[second..]];
                assert_eq!(read(&chunks, 1000), (expected(), false), "cut at {first}, {second}");
            }
        }
        let bytes: Vec<&[u8]> = script.chunks(1).collect();
        assert_eq!(read(&bytes, 1000), (expected(), false));
    }

    #[test]
    fn a_stream_without_its_last_blank_line_is_read_and_said_to_be_incomplete() {
        assert_eq!(read(&[b"data: a\n\ndata: b"], 1000), (data(&[("", "a"), ("", "b")]), true));
        assert_eq!(read(&[b"data: a\n\ndata: b\n"], 1000), (data(&[("", "a"), ("", "b")]), true));
        assert_eq!(read(&[b"data: a\n\n\n"], 1000), (data(&[("", "a")]), false));
    }

    #[test]
    fn an_over_long_event_is_passed_over_wherever_it_is_cut() {
        let long = format!("data: {}\n\ndata: b\n\n", "x".repeat(100));
        for size in [1, 7, 64, 1000] {
            let chunks: Vec<&[u8]> = long.as_bytes().chunks(size).collect();
            assert_eq!(read(&chunks, 105).0, data(&[("", "b")]), "{size}");
            assert_eq!(read(&chunks, 106).0.len(), 2, "{size}");
        }
    }

    #[test]
    fn an_endless_line_costs_no_more_than_the_bound() {
        let mut parser = Parser::new(1000);
        let mut most = 0;
        for _ in 0..1000 {
            parser.push(&[b'x'; 100], |_| {});
            most = most.max(parser.carry.capacity());
        }
        assert!(most <= 2000, "{most}");
        assert!(parser.is_mid_event());
    }

    #[test]
    fn an_event_within_one_chunk_is_not_copied() {
        let chunk = b"data: {\"a\":1}\n\n";
        Parser::default().push(chunk, |event| assert_eq!(event.data.as_ptr(), chunk[6..].as_ptr()));
    }

    proptest! {
        #[test]
        fn any_cuts_of_any_bytes_give_the_same_events(
            pieces in prop::collection::vec(prop::sample::select(&["\n", "\r", "\r\n", "data", ": ", "x", "event", "\u{feff}", "é"][..]), 0..60),
            cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..10),
            event_bytes_max in 5usize..60,
        ) {
            let script = pieces.concat();
            let script = script.as_bytes();
            let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(script.len() + 1)).chain([0, script.len()]).collect();
            cuts.sort_unstable();
            let chunks: Vec<&[u8]> = cuts.windows(2).map(|cut| &script[cut[0]..cut[1]]).collect();
            let whole = read(&[script], event_bytes_max);
            prop_assert_eq!(read(&chunks, event_bytes_max), whole.clone());
            let single: Vec<&[u8]> = script.chunks(1).collect();
            prop_assert_eq!(read(&single, event_bytes_max), whole);
        }
    }
}
