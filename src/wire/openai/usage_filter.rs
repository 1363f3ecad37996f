//! Takes the usage out of a stream again, where the gateway asked for it and the client did not.
//!
//! With `stream_options.include_usage` a provider adds `"usage":null` to each chunk and one more chunk, without choices,
//! that carries the figures. Clients that did not ask may stumble over a chunk without choices, so both are taken out;
//! every other byte passes as it came. Events are re-emitted whole, as each completes.

use bytes::Bytes;

use crate::wire::{
    json::{self, Span},
    sse::{self, EVENT_BYTES_MAX, Splitter},
    stream::whole,
};

/// A filter over the bytes of one chat or completions stream.
#[derive(Debug, Clone, Default)]
pub struct UsageFilter {
    splitter: Splitter,
    /// The start of an event that has not ended yet, to be emitted.
    carry: Vec<u8>,
    joined: Vec<u8>,
    /// The current event is too long to be held back: its bytes pass as they come.
    passing: bool,
}

/// What becomes of one event.
enum Verdict {
    Keep,
    Drop,
    Cut(std::ops::Range<usize>),
}

impl UsageFilter {
    /// A filter at the start of a stream.
    #[must_use]
    pub fn new() -> UsageFilter {
        UsageFilter::default()
    }

    /// Takes the next bytes of the stream and gives those for the client: all events that ended, maybe none.
    pub fn push(&mut self, chunk: &Bytes) -> Bytes {
        // What of the chunk goes on as it is, copied only once something must be left out.
        let mut out = Out { chunk, copied: None, copied_to: 0 };
        let mut at = 0;
        while let Some(length) = self.splitter.event_end(&chunk[at..]) {
            let block = at..at + length;
            at = block.end;
            if std::mem::take(&mut self.passing) {
                continue;
            }
            if self.carry.is_empty() {
                out.judge(block.start, verdict(&chunk[block], &mut self.joined), at);
                continue;
            }
            self.carry.extend_from_slice(&chunk[block]);
            let carry = std::mem::take(&mut self.carry);
            out.replace_up_to(at, &carry, verdict(&carry, &mut self.joined));
        }
        self.hold_back(at, &mut out);
        out.finish()
    }

    /// Ends the stream: the rest of its bytes, and whether it broke off inside of an event.
    #[must_use]
    pub fn finish(self) -> (Bytes, bool) {
        let is_incomplete = self.passing || self.carry.iter().any(|byte| !matches!(byte, b'\r' | b'\n'));
        (self.carry.into(), is_incomplete)
    }

    /// Carries an unfinished event over, unless it is too long for that.
    fn hold_back(&mut self, at: usize, out: &mut Out<'_>) {
        if self.passing || at == out.chunk.len() {
            return;
        }
        let rest = &out.chunk[at..];
        if self.carry.len() + rest.len() > EVENT_BYTES_MAX {
            self.passing = true;
            let carry = std::mem::take(&mut self.carry);
            out.insert(at, &carry);
            return;
        }
        self.carry.extend_from_slice(rest);
        out.leave_out(at..out.chunk.len());
    }
}

/// The client's bytes of one chunk.
struct Out<'a> {
    chunk: &'a Bytes,
    /// Once something differs: what precedes `copied_to`, as the client gets it.
    copied: Option<Vec<u8>>,
    copied_to: usize,
}

impl Out<'_> {
    fn copy_up_to(&mut self, offset: usize) -> &mut Vec<u8> {
        let (chunk, from) = (self.chunk, self.copied_to);
        let copied = self.copied.get_or_insert_with(|| Vec::with_capacity(chunk.len()));
        copied.extend_from_slice(&chunk[from..offset]);
        self.copied_to = offset;
        copied
    }

    fn leave_out(&mut self, range: std::ops::Range<usize>) {
        self.copy_up_to(range.start);
        self.copied_to = range.end;
    }

    fn insert(&mut self, offset: usize, bytes: &[u8]) {
        self.copy_up_to(offset).extend_from_slice(bytes);
    }

    /// What becomes of the event that lies at `start..end` of the chunk.
    fn judge(&mut self, start: usize, verdict: Verdict, end: usize) {
        match verdict {
            Verdict::Keep => {}
            Verdict::Drop => self.leave_out(start..end),
            Verdict::Cut(range) => self.leave_out(start + range.start..start + range.end),
        }
    }

    /// What becomes of an event that began in earlier chunks and ends at `end` of this one.
    fn replace_up_to(&mut self, end: usize, event: &[u8], verdict: Verdict) {
        self.leave_out(self.copied_to..end);
        match verdict {
            Verdict::Keep => self.insert(end, event),
            Verdict::Drop => {}
            Verdict::Cut(range) => {
                self.insert(end, &event[..range.start]);
                self.insert(end, &event[range.end..]);
            }
        }
    }

    fn finish(mut self) -> Bytes {
        if self.copied.is_none() {
            return self.chunk.clone();
        }
        self.copy_up_to(self.chunk.len());
        self.copied.unwrap_or_default().into()
    }
}

fn verdict(block: &[u8], joined: &mut Vec<u8>) -> Verdict {
    if block.len() > EVENT_BYTES_MAX || memchr::memmem::find(block, b"\"usage\"").is_none() {
        return Verdict::Keep;
    }
    let Some(event) = sse::event(block, joined) else { return Verdict::Keep };
    let data = event.data;
    let [choices, usage] = json::fields(data, whole(data), ["choices", "usage"]);
    let Some(usage) = usage else { return Verdict::Keep };
    if !json::is_null(data, usage) {
        let without_choices = choices.is_some_and(|choices| {
            data.get(choices.start) == Some(&b'[') && json::elements(data, choices).next().is_none()
        });
        return if without_choices { Verdict::Drop } else { Verdict::Keep };
    }
    match (cut(data, usage), offset_in(block, data)) {
        (Some(cut), Some(offset)) => Verdict::Cut(offset + cut.start..offset + cut.end),
        _ => Verdict::Keep,
    }
}

/// The bytes of the member with the value `usage` and of one comma; `None` when there is no other member.
fn cut(data: &[u8], usage: Span) -> Option<std::ops::Range<usize>> {
    let mut previous_end = None;
    let mut found = None;
    for (key, value) in json::members(data, whole(data)) {
        if let Some(start) = found {
            return Some(start..key.start);
        }
        if value == usage {
            found = Some(key.start);
        } else {
            previous_end = Some(value.end);
        }
    }
    found.and(previous_end).map(|start| start..usage.end)
}

/// Where `data` lies in `block`; `None` when it was joined from several lines.
fn offset_in(block: &[u8], data: &[u8]) -> Option<usize> {
    let offset = (data.as_ptr() as usize).checked_sub(block.as_ptr() as usize)?;
    (block.get(offset..offset + data.len())? == data).then_some(offset)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn filtered(chunks: &[&[u8]]) -> (String, bool) {
        let mut filter = UsageFilter::new();
        let mut out = Vec::new();
        for chunk in chunks {
            out.extend_from_slice(&filter.push(&Bytes::copy_from_slice(chunk)));
        }
        let (rest, is_incomplete) = filter.finish();
        out.extend_from_slice(&rest);
        (String::from_utf8(out).expect("UTF-8 in, UTF-8 out"), is_incomplete)
    }

    const SCRIPT: &str = concat!(
        ": ping\n\n",
        "data: {\"id\":1,\"choices\":[{\"delta\":{\"content\":\"你\"}}],\"usage\":null}\n\n",
        "data: {\"usage\": null, \"choices\":[{\"delta\":{\"content\":\"\\\"usage\\\":null\"}}]}\r\n\r\n",
        "event: x\rdata: {\"a\":1, \"usage\":null ,\"b\":[]}\r\r",
        "data: {\"choices\":[],\"prompt_filter_results\":[],\"usage\":null}\n\n",
        "data: {\"choices\":[{}],\"usage\":{\"prompt_tokens\":1}}\n\n",
        "data: {\"choices\":[ ],\"usage\":{\"prompt_tokens\":1}}\n\n",
        "data: {\"choices\":[],\ndata: \"usage\":{\"prompt_tokens\":1}}\n\n",
        "data: {\"usage\":null}\n\n",
        "data: [DONE]\n\n",
    );
    const EXPECTED: &str = concat!(
        ": ping\n\n",
        "data: {\"id\":1,\"choices\":[{\"delta\":{\"content\":\"你\"}}]}\n\n",
        "data: {\"choices\":[{\"delta\":{\"content\":\"\\\"usage\\\":null\"}}]}\r\n\r\n",
        "event: x\rdata: {\"a\":1, \"b\":[]}\r\r",
        "data: {\"choices\":[],\"prompt_filter_results\":[]}\n\n",
        "data: {\"choices\":[{}],\"usage\":{\"prompt_tokens\":1}}\n\n",
        "data: {\"usage\":null}\n\n",
        "data: [DONE]\n\n",
    );

    #[test]
    fn only_the_usage_is_taken_out_at_every_cut() {
        assert_eq!(filtered(&[SCRIPT.as_bytes()]), (EXPECTED.to_owned(), false));
        for cut in 0..SCRIPT.len() {
            let (first, second) = SCRIPT.as_bytes().split_at(cut);
            assert_eq!(filtered(&[first, second]).0, EXPECTED, "cut at {cut}");
        }
        let single: Vec<&[u8]> = SCRIPT.as_bytes().chunks(1).collect();
        assert_eq!(filtered(&single).0, EXPECTED);
    }

    #[test]
    fn events_come_out_as_soon_as_they_are_whole() {
        let mut filter = UsageFilter::new();
        assert_eq!(filter.push(&Bytes::from_static(b"data: a\n\ndata:")), "data: a\n\n");
        assert_eq!(filter.push(&Bytes::from_static(b" b\n")), "");
        assert_eq!(filter.push(&Bytes::from_static(b"\ndata: c")), "data: b\n\n");
        assert_eq!(filter.finish(), (Bytes::from_static(b"data: c"), true));
    }

    #[test]
    fn an_unchanged_chunk_is_not_copied() {
        let chunk = Bytes::from_static(b"data: {\"choices\":[]}\n\n");
        assert_eq!(UsageFilter::new().push(&chunk).as_ptr(), chunk.as_ptr());
    }

    #[test]
    fn an_over_long_event_passes_as_it_comes() {
        let line = vec![b'x'; 300 * 1024];
        let mut filter = UsageFilter::new();
        let mut out = 0;
        for _ in 0..8 {
            out += filter.push(&Bytes::from(line.clone())).len();
            assert!(filter.carry.len() <= EVENT_BYTES_MAX);
        }
        assert_eq!(out, 8 * line.len());
        assert_eq!(filter.push(&Bytes::from_static(b"\n\ndata: a\n\n")), "\n\ndata: a\n\n");
    }

    proptest! {
        #[test]
        fn what_carries_no_usage_passes_byte_for_byte(
            pieces in prop::collection::vec(prop::sample::select(&["\n", "\r", "\r\n", "data", ": ", "{\"a\":1}", "[DONE]", "é"][..]), 0..60),
            cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..10),
        ) {
            let script = pieces.concat();
            let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(script.len() + 1)).chain([0, script.len()]).collect();
            cuts.sort_unstable();
            let chunks: Vec<&[u8]> = cuts.windows(2).map(|cut| &script.as_bytes()[cut[0]..cut[1]]).collect();
            prop_assert_eq!(filtered(&chunks).0, script);
        }

        #[test]
        fn random_cuts_give_the_same_bytes(cuts in prop::collection::vec(0..SCRIPT.len(), 0..12)) {
            let mut cuts: Vec<usize> = cuts.into_iter().chain([0, SCRIPT.len()]).collect();
            cuts.sort_unstable();
            let chunks: Vec<&[u8]> = cuts.windows(2).map(|cut| &SCRIPT.as_bytes()[cut[0]..cut[1]]).collect();
            prop_assert_eq!(filtered(&chunks).0, EXPECTED);
        }
    }
}
