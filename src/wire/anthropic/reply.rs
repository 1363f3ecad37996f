//! Usage in Anthropic replies, where a stream reports it in parts.

use crate::{
    units::Tokens,
    wire::usage::{Figures, Reported, Usage, UsageError, part_of},
};

/// The figures as Anthropic reports them, merged over the events of a stream.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Parts {
    /// Without what was read from or written to the cache.
    input: Option<u64>,
    cache_read: Option<u64>,
    cache_write: Option<u64>,
    cache_write_1h: Option<u64>,
    output: Option<u64>,
}

/// Merges reports: figures are cumulative, so of each the largest counts, and a report repeated counts once.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct UsageMerge {
    parts: Parts,
    error: Option<UsageError>,
}

impl UsageMerge {
    /// Adds the raw value of a `usage` field.
    pub fn add(&mut self, json: &[u8]) {
        let parts = Figures::of(json).map(|figures| figures.and_then(|figures| read(&figures)));
        match parts {
            None => {}
            Some(Ok(parts)) => self.parts = self.parts.max(parts),
            Some(Err(error)) => self.error = Some(error),
        }
    }

    /// What was reported in all. Nonsense in one event spoils the whole.
    #[must_use]
    pub fn reported(&self) -> Reported {
        match &self.error {
            Some(error) => Some(Err(error.clone())),
            None => self.parts.usage().transpose(),
        }
    }
}

/// Reads the raw value of a reply's `usage` field.
#[must_use]
pub fn usage(json: &[u8]) -> Reported {
    let mut merge = UsageMerge::default();
    merge.add(json);
    merge.reported()
}

fn read(figures: &Figures<'_>) -> Result<Parts, UsageError> {
    Ok(Parts {
        input: figures.optional("input_tokens")?,
        cache_read: figures.optional("cache_read_input_tokens")?,
        cache_write: figures.optional("cache_creation_input_tokens")?,
        cache_write_1h: figures.details(&["cache_creation"]).optional("ephemeral_1h_input_tokens")?,
        output: figures.optional("output_tokens")?,
    })
}

// === impl Parts ===

impl Parts {
    fn max(self, other: Parts) -> Parts {
        Parts {
            input: self.input.max(other.input),
            cache_read: self.cache_read.max(other.cache_read),
            cache_write: self.cache_write.max(other.cache_write),
            cache_write_1h: self.cache_write_1h.max(other.cache_write_1h),
            output: self.output.max(other.output),
        }
    }

    /// As totals that include their parts; `None` when neither input nor output was reported.
    fn usage(self) -> Result<Option<Usage>, UsageError> {
        if self.input.is_none() && self.output.is_none() {
            return Ok(None);
        }
        let read = self.cache_read.unwrap_or(0);
        let written = self.cache_write.unwrap_or(0);
        let written_1h = part_of(written, "ephemeral_1h_input_tokens", self.cache_write_1h)?;
        Ok(Some(Usage {
            input: Tokens(self.input.ok_or(UsageError::Missing("input_tokens"))? + read + written),
            cached: Tokens(read),
            cache_write: Tokens(written - written_1h.0),
            cache_write_1h: written_1h,
            output: Tokens(self.output.ok_or(UsageError::Missing("output_tokens"))?),
            ..Usage::default()
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cache_reads_and_writes_become_parts_of_the_input() {
        let json = br#"{"input_tokens":6,"cache_creation_input_tokens":159217,"cache_read_input_tokens":100,
            "cache_creation":{"ephemeral_5m_input_tokens":159000,"ephemeral_1h_input_tokens":217},"output_tokens":2745}"#;
        let expected = Usage {
            input: Tokens(159_323),
            cached: Tokens(100),
            cache_write: Tokens(159_000),
            cache_write_1h: Tokens(217),
            output: Tokens(2745),
            ..Usage::default()
        };
        assert_eq!(usage(json), Some(Ok(expected)));
    }

    #[test]
    fn reports_of_a_stream_are_merged_and_repeats_count_once() {
        let mut merge = UsageMerge::default();
        merge.add(br#"{"input_tokens":10,"cache_read_input_tokens":null,"output_tokens":1}"#);
        for output in [5, 9, 9] {
            merge.add(format!(r#"{{"output_tokens":{output}}}"#).as_bytes());
        }
        let expected = Usage { input: Tokens(10), output: Tokens(9), ..Usage::default() };
        assert_eq!(merge.reported(), Some(Ok(expected)));
    }

    #[test]
    fn hostile_figures_spoil_the_report() {
        for json in [
            r#"{"output_tokens":1}"#,
            r#"{"output_tokens":-1}"#,
            r#"{"input_tokens":"6"}"#,
            r#"{"input_tokens":1e13}"#,
            r#"{"input_tokens":1,"output_tokens":1,"cache_creation_input_tokens":1,"cache_creation":{"ephemeral_1h_input_tokens":2}}"#,
            "7",
        ] {
            assert!(matches!(usage(json.as_bytes()), Some(Err(_))), "{json}");
        }
        let mut merge = UsageMerge::default();
        merge.add(br#"{"output_tokens":-1}"#);
        merge.add(br#"{"output_tokens":5}"#);
        assert!(matches!(merge.reported(), Some(Err(UsageError::Figure("output_tokens")))));
        assert_eq!(usage(b"null"), None);
        assert_eq!(usage(b"{}"), None);
    }
}
