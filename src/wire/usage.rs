//! The neutral usage figures that every dialect's reply is read into.

use crate::units::Tokens;

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
