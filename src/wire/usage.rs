//! The neutral usage figures that every dialect's reply is read into.

use crate::{
    units::Tokens,
    wire::json::{self, Span},
};

/// No call has more tokens: a figure above it is nonsense, and keeps sums far from overflow.
const TOKENS_MAX: u64 = 1 << 40;

/// A report of usage that cannot be true. The caller charges the bound: nonsense never lowers spend.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UsageError {
    /// A figure is no whole number from 0 to 2^40.
    #[error("the provider reported no plausible number as `{0}`")]
    Figure(&'static str),
    /// A main figure is missing and does not follow from the others: to take it for 0 would lower spend.
    #[error("the provider reported usage without `{0}`")]
    Missing(&'static str),
    /// A part is larger than its whole.
    #[error("the provider reported more `{0}` tokens than there are in all")]
    PartAboveWhole(&'static str),
    /// What stands where the usage belongs is no object.
    #[error("the provider reported usage that is no object")]
    NotAnObject,
}

/// What a provider reports for one call. Totals include their parts, as in OpenAI's `usage`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize)]
pub struct Usage {
    /// All prompt tokens: cached, cache-write and audio ones included.
    pub input: Tokens,
    /// Of `input`: read from the provider's prompt cache.
    pub cached: Tokens,
    /// Of `input`: written to the provider's prompt cache (five-minute entries, or unspecified).
    pub cache_write: Tokens,
    /// Of `input`: written to the prompt cache with a one-hour life (Anthropic).
    pub cache_write_1h: Tokens,
    /// Of `input`: audio.
    pub input_audio: Tokens,
    /// Of `cached`: audio.
    pub cached_audio: Tokens,
    /// All output tokens: reasoning and audio ones included.
    pub output: Tokens,
    /// Of `output`: reasoning that the client does not see.
    pub reasoning: Tokens,
    /// Of `output`: audio.
    pub output_audio: Tokens,
}

/// What a reply says of its usage: nothing, figures, or nonsense.
pub type Reported = Option<Result<Usage, UsageError>>;

/// Reads the figures of a raw `usage` object: walked once, since a dozen names are looked up in it.
pub(super) struct Figures<'a> {
    json: &'a [u8],
    /// Keys and values.
    members: Vec<(Span, Span)>,
}

impl<'a> Figures<'a> {
    /// The figures of `json`, which is one value; `None` when it is `null` or nothing.
    pub(super) fn of(json: &'a [u8]) -> Option<Result<Figures<'a>, UsageError>> {
        let object = Span { start: 0, end: json.len() };
        match json.first() {
            Some(b'{') => Some(Ok(Figures::within(json, object))),
            None | Some(b'n') => None,
            Some(_) => Some(Err(UsageError::NotAnObject)),
        }
    }

    fn within(json: &'a [u8], object: Span) -> Figures<'a> {
        Figures { json, members: json::members(json, object).collect() }
    }

    fn field(&self, name: &str) -> Option<Span> {
        self.members.iter().find(|(key, _)| json::key_is(self.json, *key, name)).map(|(_, value)| *value)
    }

    /// A figure that is always a number where it is given.
    pub(super) fn required(&self, name: &'static str) -> Result<Option<u64>, UsageError> {
        self.field(name).map(|span| self.figure(name, span)).transpose()
    }

    /// A figure for which providers also write `null`.
    pub(super) fn optional(&self, name: &'static str) -> Result<Option<u64>, UsageError> {
        let span = self.field(name).filter(|span| !json::is_null(self.json, *span));
        span.map(|span| self.figure(name, span)).transpose()
    }

    /// The figures of the first of `names` that is a nested object; those of nothing when none is.
    pub(super) fn details(&self, names: &[&str]) -> Figures<'a> {
        let nothing = Span { start: 0, end: 0 };
        let mut objects = names.iter().filter_map(|name| self.field(name));
        let object = objects.find(|span| self.json.get(span.start) == Some(&b'{')).unwrap_or(nothing);
        Figures::within(self.json, object)
    }

    fn figure(&self, name: &'static str, span: Span) -> Result<u64, UsageError> {
        json::integer(self.json, span).filter(|tokens| *tokens <= TOKENS_MAX).ok_or(UsageError::Figure(name))
    }
}

/// `part`, which must not be above `whole`.
pub(super) fn part_of(whole: u64, name: &'static str, part: Option<u64>) -> Result<Tokens, UsageError> {
    match part {
        Some(part) if part > whole => Err(UsageError::PartAboveWhole(name)),
        part => Ok(Tokens(part.unwrap_or(0))),
    }
}
