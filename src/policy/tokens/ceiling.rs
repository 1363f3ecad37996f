//! A sound ceiling for the prompt tokens of a call, from the bytes that are sent.
//!
//! # Why bytes bound tokens
//! In byte-level BPE (OpenAI, Llama 3, Qwen, DeepSeek, Mistral, Kimi, GLM) and in SentencePiece with byte fallback (Llama 2,
//! Gemini, Gemma) every token stands for at least one byte of the text. The text is no longer than the JSON that carries
//! it: `\n` is two bytes for one, `\u4e16` six for three. What chat formats add around a message (three or four tokens)
//! is less than the JSON around it (`{"role":"user","content":""}`), and what they add around a tool less than its schema's
//! braces; the constants below are for what is added once. Media are counted by their own tables.
//!
//! A tokenizer that first normalises (NFKC) can make text longer: up to eleven times for one character, U+FDFA. For those
//! the bytes of each character are multiplied by the most that normalisation can make of its block (checked against Unicode 14).

use super::{bare_name, image_tokens_max};
use crate::units::Tokens;

/// What a body holds besides text that is tokenised.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Contents {
    /// Of the body's bytes: base64 of images, which are charged by `images` instead. Audio stays in the text: no codec
    /// puts a token's tenth of a second into less than a byte.
    pub image_bytes: usize,
    /// Images, inline or by URL.
    pub images: usize,
    /// Whether tools are offered: providers then add a system prompt of their own.
    pub tools: bool,
    /// Whether the prompt holds what the body does not show: files, PDFs, stored prompts or conversations
    /// (`previous_response_id`), tools that the provider runs and reads from.
    pub elsewhere: bool,
}

/// Priming of the reply, beginning of text, and a provider's own preamble.
const FORMAT_TOKENS: u64 = 64;
/// The longest documented system prompt for tools is Anthropic's, 530 tokens.
const TOOL_PROMPT_TOKENS: u64 = 1024;

/// The most prompt tokens that a provider can count for this body (after prompt injection).
///
/// With contents elsewhere it is the model's context window, and `None` where that is not known: such a call cannot be
/// bounded.
#[must_use]
pub fn input_ceiling(model: &str, body: &[u8], contents: Contents, context_window: Option<Tokens>) -> Option<Tokens> {
    if contents.elsewhere {
        return context_window;
    }
    let bytes = if normalises(model) { normalised_bytes_max(body) } else { body.len() as u64 };
    let text = bytes.saturating_sub(contents.image_bytes as u64);
    let images = (contents.images as u64).saturating_mul(image_tokens_max(model).0);
    let tools = if contents.tools { TOOL_PROMPT_TOKENS } else { 0 };
    Some(Tokens(text.saturating_add(images).saturating_add(tools + FORMAT_TOKENS)))
}

/// Tokenizers known to apply NFKC: Claude's published one does (`anthropic-tokenizer-typescript`), and T5's.
fn normalises(model: &str) -> bool {
    let name = bare_name(model).to_ascii_lowercase();
    name.contains("claude") || name.contains("t5-")
}

/// The most bytes that NFKC can make of a JSON text.
fn normalised_bytes_max(body: &[u8]) -> u64 {
    if body.is_ascii() && !body.contains(&b'\\') {
        return body.len() as u64;
    }
    // Ill-formed UTF-8 is not forwarded as JSON; its replacement characters are three bytes for one.
    let text = String::from_utf8_lossy(body);
    let raw: u64 = text.chars().map(|c| c.len_utf8() as u64 * growth(c)).sum();
    let escaped: u64 = escapes(body).map(|c| (c.len_utf8() as u64 * growth(c)).saturating_sub(6)).sum();
    raw.saturating_add(escaped)
}

/// Characters written as `\uXXXX`. Halves of surrogate pairs grow by less than their escapes are long.
fn escapes(body: &[u8]) -> impl Iterator<Item = char> {
    body.windows(6).filter(|w| w.starts_with(b"\\u")).filter_map(|w| {
        let digits = std::str::from_utf8(&w[2..]).ok()?;
        char::from_u32(u32::from_str_radix(digits, 16).ok()?)
    })
}

/// How many times its UTF-8 length a character can become under NFKC, at most, by block and rounded up.
fn growth(c: char) -> u64 {
    match u32::from(c) {
        0..=0x7f | 0x400..=0x586 | 0x3130..=0x31ff | 0x3400..=0xd7ff | 0x20000.. => 1,
        0x1000..=0x1fff | 0x3000..=0x312f | 0xe000..=0xfdcf | 0xfe00..=0xffff => 2,
        0x80..=0x3ff | 0x587..=0xfff | 0x10000..=0x1ffff => 3,
        0x2000..=0x2fff => 4,
        0x3200..=0x33ff => 6,
        0xd800..=0xdfff | 0xfdd0..=0xfdff => 11,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;
    use crate::policy::tokens::{Encoding, chat, count};

    const NOTHING_ELSE: Contents = Contents { image_bytes: 0, images: 0, tools: false, elsewhere: false };

    #[test]
    fn images_are_charged_by_their_table_instead_of_their_bytes() {
        let body = vec![b'A'; 1_000_000];
        let contents = Contents { image_bytes: 999_000, images: 2, ..NOTHING_ELSE };
        assert_eq!(input_ceiling("gpt-4o", &body, contents, None), Some(Tokens(1_000 + 2 * 1445 + 64)));
    }

    #[test]
    fn what_is_elsewhere_is_bounded_by_the_context_window_or_not_at_all() {
        let contents = Contents { elsewhere: true, ..NOTHING_ELSE };
        assert_eq!(input_ceiling("gpt-4o", b"{}", contents, Some(Tokens(128_000))), Some(Tokens(128_000)));
        assert_eq!(input_ceiling("gpt-4o", b"{}", contents, None), None);
    }

    #[test]
    fn text_that_normalisation_lengthens_is_counted_at_its_longest() {
        let ceiling = |body: &str| input_ceiling("claude-sonnet-4-5", body.as_bytes(), NOTHING_ELSE, None);
        assert_eq!(ceiling("plain"), Some(Tokens(5 + 64)));
        assert_eq!(ceiling("\u{fdfa}"), Some(Tokens(33 + 64)));
        assert_eq!(ceiling("\\ufdfa"), Some(Tokens(33 + 64)));
        assert_eq!(ceiling("漢字"), Some(Tokens(6 + 64)));
        assert_eq!(ceiling("\\u6f22"), Some(Tokens(6 + 64)));
        assert_eq!(input_ceiling("gpt-4o", "\u{fdfa}".as_bytes(), NOTHING_ELSE, None), Some(Tokens(3 + 64)));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(500))]

        #[test]
        fn no_chat_has_more_tokens_than_its_ceiling(texts in proptest::collection::vec("\\PC{0,40}", 0..5)) {
            let messages: Vec<_> = texts.iter().map(|text| json!({"role": "user", "content": text})).collect();
            let request = json!({"model": "gpt-4o", "messages": messages});
            let counted = chat::count(&request, "gpt-4o").tokens;
            let ceiling = input_ceiling("gpt-4o", request.to_string().as_bytes(), NOTHING_ELSE, None).unwrap();
            prop_assert!(counted <= ceiling, "{} > {}", counted, ceiling);
        }

        #[test]
        fn no_text_has_more_tokens_than_bytes(text in "\\PC{0,60}") {
            for name in Encoding::names() {
                let encoding = Encoding::by_name(name).unwrap();
                prop_assert!(count(encoding, &text).0 <= text.len() as u64, "{name}");
            }
        }
    }
}
