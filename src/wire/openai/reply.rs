//! Usage in OpenAI replies: chat completions, completions, embeddings and responses alike.

use crate::{
    units::Tokens,
    wire::usage::{Figures, Reported, Usage, UsageError, part_of},
};

/// Reads the raw value of a `usage` field. A missing detail counts as none of it, a missing main figure follows from the
/// total; a report without any figure counts as no report.
///
/// Chat calls them prompt and completion tokens, Responses input and output tokens; DeepSeek has its cache hits beside.
/// Where `total_tokens` is above the sum of both, the difference is output: xAI and Gemini count reasoning there only,
/// and charge for it.
#[must_use]
pub fn usage(json: &[u8]) -> Reported {
    match Figures::of(json)? {
        Ok(figures) => read(&figures).transpose(),
        Err(error) => Some(Err(error)),
    }
}

fn read(figures: &Figures<'_>) -> Result<Option<Usage>, UsageError> {
    let input = either(figures, "prompt_tokens", "input_tokens")?;
    let output = either(figures, "completion_tokens", "output_tokens")?;
    let total = figures.optional("total_tokens")?;
    if input.is_none() && output.is_none() {
        return Ok(None);
    }
    let without = |part: Option<u64>| total.zip(part).map(|(total, part)| total.saturating_sub(part));
    let input = input.or(without(output)).ok_or(UsageError::Missing("prompt_tokens"))?;
    let output = output.max(without(Some(input))).ok_or(UsageError::Missing("completion_tokens"))?;

    let input_details = figures.details(&["prompt_tokens_details", "input_tokens_details"]);
    let output_details = figures.details(&["completion_tokens_details", "output_tokens_details"]);
    let cached = match input_details.optional("cached_tokens")? {
        None => figures.optional("prompt_cache_hit_tokens")?,
        reported => reported,
    };
    let cached = part_of(input, "cached_tokens", cached)?;
    let uncached = input - cached.0;
    let reasoning = output_details.optional("reasoning_tokens")?.unwrap_or(0);
    Ok(Some(Usage {
        input: Tokens(input),
        cached,
        cache_write: part_of(uncached, "cache_write_tokens", input_details.optional("cache_write_tokens")?)?,
        input_audio: part_of(input, "audio_tokens", input_details.optional("audio_tokens")?)?,
        output: Tokens(output),
        // Not priced apart from output, and counted beside it by some: never a reason to distrust a report.
        reasoning: Tokens(reasoning.min(output)),
        output_audio: part_of(output, "audio_tokens", output_details.optional("audio_tokens")?)?,
        ..Usage::default()
    }))
}

fn either(figures: &Figures<'_>, chat: &'static str, responses: &'static str) -> Result<Option<u64>, UsageError> {
    match figures.required(chat)? {
        None => figures.required(responses),
        tokens => Ok(tokens),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(json: &str) -> Usage {
        usage(json.as_bytes()).expect("a report").expect(json)
    }

    #[test]
    fn chat_and_responses_usage_read_alike() {
        let expected = Usage {
            input: Tokens(100),
            cached: Tokens(60),
            output: Tokens(50),
            reasoning: Tokens(30),
            ..Usage::default()
        };
        assert_eq!(
            read(
                r#"{"prompt_tokens":100,"completion_tokens":50,"total_tokens":150,
                "prompt_tokens_details":{"cached_tokens":60,"audio_tokens":0},
                "completion_tokens_details":{"reasoning_tokens":30,"audio_tokens":null}}"#
            ),
            expected
        );
        assert_eq!(
            read(
                r#"{"input_tokens":100,"input_tokens_details":{"cached_tokens":60},"output_tokens":50,
                "output_tokens_details":{"reasoning_tokens":30},"total_tokens":150}"#
            ),
            expected
        );
    }

    #[test]
    fn audio_cache_writes_and_deepseek_hits_are_parts_of_the_input() {
        let usage = read(
            r#"{"prompt_tokens":100,"completion_tokens":9,"prompt_tokens_details":{"audio_tokens":7,"cache_write_tokens":5},
                "completion_tokens_details":{"audio_tokens":3},"prompt_cache_hit_tokens":90,"prompt_cache_miss_tokens":10}"#,
        );
        assert_eq!((usage.cached, usage.cache_write), (Tokens(90), Tokens(5)));
        assert_eq!((usage.input_audio, usage.output_audio), (Tokens(7), Tokens(3)));
    }

    #[test]
    fn a_missing_figure_does_not_fail_the_report() {
        assert_eq!(read(r#"{"prompt_tokens":8,"total_tokens":8}"#).input, Tokens(8));
        let usage_of = read(r#"{"completion_tokens":8,"total_tokens":10,"prompt_tokens_details":null}"#);
        assert_eq!((usage_of.input, usage_of.output), (Tokens(2), Tokens(8)));
        assert_eq!(usage(b"null"), None);
        assert_eq!(usage(b"{}"), None);
        assert_eq!(usage(b""), None);
    }

    #[test]
    fn reasoning_that_only_the_total_counts_is_output() {
        let usage = read(
            r#"{"prompt_tokens":10,"completion_tokens":5,"total_tokens":115,"completion_tokens_details":{"reasoning_tokens":100}}"#,
        );
        assert_eq!((usage.output, usage.reasoning), (Tokens(105), Tokens(100)));
    }

    #[test]
    fn hostile_and_missing_figures_are_errors_and_never_numbers() {
        for json in [
            r#"{"prompt_tokens":5}"#,
            r#"{"completion_tokens":5}"#,
            r#"{"prompt_tokens":-5}"#,
            r#"{"prompt_tokens":null,"completion_tokens":5}"#,
            r#"{"prompt_tokens":5,"completion_tokens":"3"}"#,
            r#"{"prompt_tokens":9223372036854775808}"#,
            r#"{"prompt_tokens":1099511627777}"#,
            r#"{"prompt_tokens":1e30}"#,
            r#"{"prompt_tokens":1.5}"#,
            r#"{"prompt_tokens":5,"total_tokens":-1}"#,
            r#"{"prompt_tokens":5,"total_tokens":5,"prompt_tokens_details":{"cached_tokens":6}}"#,
            r#"{"prompt_tokens":5,"total_tokens":5,"prompt_tokens_details":{"cached_tokens":-1}}"#,
            r#"{"prompt_tokens":5,"completion_tokens":5,"completion_tokens_details":{"audio_tokens":6}}"#,
            "5",
            "[1]",
        ] {
            assert!(matches!(usage(json.as_bytes()), Some(Err(_))), "{json}");
        }
    }
}
