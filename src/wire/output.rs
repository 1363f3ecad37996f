//! What a model has written, kept only to be counted where the provider never reports usage.

/// The most text that is kept, in bytes; of what follows, only the length is. More than any model puts out in one reply.
pub const OUTPUT_BYTES_MAX: usize = 1 << 20;

/// The text of one reply: content, reasoning, refusals, names and arguments of tool calls, in the order of arrival.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Output {
    /// At most [`OUTPUT_BYTES_MAX`] bytes.
    pub text: String,
    /// Bytes beyond the text that was kept.
    pub extra_bytes: usize,
    /// Stream events that carried any of it. Providers send at most about one token in each, or several.
    pub chunks: u64,
}

impl Output {
    /// Adds text, up to the bound.
    pub fn push(&mut self, text: &str) {
        if self.text.len() + text.len() > OUTPUT_BYTES_MAX {
            self.extra_bytes += text.len();
        } else {
            self.text.push_str(text);
        }
    }

    /// Bytes of text seen, kept or not.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.text.len() + self.extra_bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_beyond_the_bound_is_counted_and_not_kept() {
        let mut output = Output::default();
        let piece = "x".repeat(OUTPUT_BYTES_MAX / 2 + 1);
        output.push(&piece);
        output.push(&piece);
        output.push("y");
        assert_eq!((output.text.len(), output.extra_bytes), (piece.len() + 1, piece.len()));
        assert_eq!(output.bytes(), 2 * piece.len() + 1);
    }
}
