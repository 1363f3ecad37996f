//! Counting tokens before the provider does: exactly where its tokenizer is known, and as a sound ceiling everywhere.
//!
//! Text comes from clients, so counting is linear on hostile input and cannot panic: long unbroken runs are cut, and a
//! tokenizer that fails is replaced by the number of bytes.

mod ceiling;
pub mod chat;
mod images;

pub use ceiling::{Contents, input_ceiling};
pub use images::image_tokens_max;

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::LazyLock,
};

use quick_cache::sync::Cache;
use tiktoken_rs::tokenizer::Tokenizer;
use xxhash_rust::xxh3::xxh3_128_with_seed;

use crate::units::Tokens;

/// A tokenizer's vocabulary and splitting rules.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Encoding {
    /// GPT-4o, GPT-4.1, GPT-5, o-series.
    O200kBase,
    /// gpt-oss; the same text tokens as `o200k_base`.
    O200kHarmony,
    /// GPT-4, GPT-3.5, embeddings 3.
    Cl100kBase,
    /// Codex and instruct-era completions.
    P50kBase,
    /// Edit models.
    P50kEdit,
    /// GPT-3 and GPT-2.
    R50kBase,
    /// Llama 3 and 4.
    Llama3,
    /// DeepSeek V3 and R1.
    DeepseekV3,
    /// DeepSeek V4.
    DeepseekV4,
    /// Qwen 2, 2.5 and 3.
    Qwen2,
    /// Mistral's v3 tokenizer.
    MistralV3,
    /// Kimi K2.
    KimiK2,
    /// Kimi K3.
    KimiK3,
    /// GLM 4.
    Glm4,
    /// GLM 5.
    Glm5,
    /// MiniMax M2.
    MinimaxM2,
}

/// Whether a model's own tokenizer was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exactness {
    /// Its vendor publishes that the model uses this encoding.
    Exact,
    /// Another encoding stands in.
    Approximate,
}

impl Encoding {
    const ALL: [(Encoding, &'static str); 16] = [
        (Encoding::O200kBase, "o200k_base"),
        (Encoding::O200kHarmony, "o200k_harmony"),
        (Encoding::Cl100kBase, "cl100k_base"),
        (Encoding::P50kBase, "p50k_base"),
        (Encoding::P50kEdit, "p50k_edit"),
        (Encoding::R50kBase, "r50k_base"),
        (Encoding::Llama3, "llama3"),
        (Encoding::DeepseekV3, "deepseek_v3"),
        (Encoding::DeepseekV4, "deepseek_v4"),
        (Encoding::Qwen2, "qwen2"),
        (Encoding::MistralV3, "mistral_v3"),
        (Encoding::KimiK2, "kimi_k2"),
        (Encoding::KimiK3, "kimi_k3"),
        (Encoding::Glm4, "glm4"),
        (Encoding::Glm5, "glm5"),
        (Encoding::MinimaxM2, "minimax_m2"),
    ];

    /// The encoding of this name, such as `o200k_base`; `gpt2` is `r50k_base`.
    #[must_use]
    pub fn by_name(name: &str) -> Option<Encoding> {
        let name = if name == "gpt2" { "r50k_base" } else { name };
        Encoding::ALL.iter().find(|(_, n)| *n == name).map(|(encoding, _)| *encoding)
    }

    /// The name, such as `o200k_base`.
    #[must_use]
    pub fn name(self) -> &'static str {
        Encoding::ALL.iter().find(|(encoding, _)| *encoding == self).map_or("", |(_, name)| name)
    }

    /// All names, for error messages.
    pub fn names() -> impl Iterator<Item = &'static str> {
        Encoding::ALL.iter().map(|(_, name)| *name)
    }

    /// The encoding of a model, also as `vendor/model`. OpenAI's own table decides first, then the vendors of open models;
    /// whatever is in neither is approximated by `o200k_base`.
    #[must_use]
    pub fn for_model(model: &str) -> (Encoding, Exactness) {
        let model = bare_name(model);
        if let Some(tokenizer) = tiktoken_rs::tokenizer::get_tokenizer(model) {
            return (Encoding::of_openai(tokenizer), Exactness::Exact);
        }
        match tiktoken::model_to_encoding(model).and_then(Encoding::by_name) {
            Some(encoding) => (encoding, Exactness::Exact),
            None => (Encoding::O200kBase, Exactness::Approximate),
        }
    }

    fn of_openai(tokenizer: Tokenizer) -> Encoding {
        match tokenizer {
            Tokenizer::O200kHarmony => Encoding::O200kHarmony,
            Tokenizer::O200kBase => Encoding::O200kBase,
            Tokenizer::Cl100kBase => Encoding::Cl100kBase,
            Tokenizer::P50kBase => Encoding::P50kBase,
            Tokenizer::P50kEdit => Encoding::P50kEdit,
            Tokenizer::R50kBase | Tokenizer::Gpt2 => Encoding::R50kBase,
        }
    }

    /// The second implementation of OpenAI's encodings: what stands in when the first one fails.
    fn second(self) -> Option<&'static tiktoken_rs::CoreBPE> {
        match self {
            Encoding::O200kBase => Some(tiktoken_rs::o200k_base_singleton()),
            Encoding::O200kHarmony => Some(tiktoken_rs::o200k_harmony_singleton()),
            Encoding::Cl100kBase => Some(tiktoken_rs::cl100k_base_singleton()),
            Encoding::P50kBase => Some(tiktoken_rs::p50k_base_singleton()),
            Encoding::P50kEdit => Some(tiktoken_rs::p50k_edit_singleton()),
            Encoding::R50kBase => Some(tiktoken_rs::r50k_base_singleton()),
            _ => None,
        }
    }
}

/// A model's name without the vendor before it.
fn bare_name(model: &str) -> &str {
    model.rsplit_once('/').map_or(model, |(_, name)| name)
}

/// Tokens of a text, special tokens read as ordinary text. Vocabularies are loaded when first used (some 100 ms each).
///
/// The same as the tokenizer itself unless the text holds a run of more than 2 KiB without a place at which every
/// tokenizer splits; such runs are cut, which changes the count by less than 0.1 % and keeps the time linear.
#[must_use]
pub fn count(encoding: Encoding, text: &str) -> Tokens {
    let tokens = Cuts::new(text).map(|chunk| count_chunk(encoding, chunk));
    Tokens(tokens.fold(0, u64::saturating_add))
}

/// Tokens of a text, to the last one. Slower than [`count`] on hostile text: not for the call path.
#[must_use]
pub fn count_exact(encoding: Encoding, text: &str) -> Tokens {
    Tokens(count_chunk(encoding, text))
}

/// [`count`], remembered by content: chat histories repeat their messages.
///
/// The key is a 128-bit hash seeded at random for each process, with the length beside it.
#[must_use]
pub fn count_cached(encoding: Encoding, text: &str) -> Tokens {
    if text.len() < CACHED_FROM {
        return count(encoding, text);
    }
    static COUNTS: LazyLock<Cache<(Encoding, usize, u128), Tokens>> = LazyLock::new(|| Cache::new(CACHED_MAX));
    static SEED: LazyLock<u64> = LazyLock::new(|| getrandom::u64().unwrap_or(0x9e37_79b9_7f4a_7c15));
    let key = (encoding, text.len(), xxh3_128_with_seed(text.as_bytes(), *SEED));
    if let Some(tokens) = COUNTS.get(&key) {
        return tokens;
    }
    let tokens = count(encoding, text);
    COUNTS.insert(key, tokens);
    tokens
}

/// Shorter texts are counted faster than they are looked up.
const CACHED_FROM: usize = 64;
/// Entries of some 50 bytes.
const CACHED_MAX: usize = 1 << 16;

/// No token is shorter than a byte, so the length stands in when both implementations fail.
fn count_chunk(encoding: Encoding, text: &str) -> u64 {
    let first = || tiktoken::get_encoding(encoding.name()).map(|bpe| bpe.count(text));
    let second = || encoding.second().map(|bpe| bpe.count_ordinary(text));
    let tokens = catch_unwind(AssertUnwindSafe(first))
        .ok()
        .flatten()
        .or_else(|| catch_unwind(AssertUnwindSafe(second)).ok().flatten())
        .unwrap_or(text.len());
    tokens as u64
}

/// The longest run that goes to a tokenizer whole; merging takes more than linear time in it.
const RUN_MAX: usize = 2048;

/// Splits a text only where a run without natural boundary grows too long.
struct Cuts<'a> {
    rest: &'a str,
}

impl<'a> Cuts<'a> {
    fn new(text: &'a str) -> Cuts<'a> {
        Cuts { rest: text }
    }
}

impl<'a> Iterator for Cuts<'a> {
    type Item = &'a str;

    fn next(&mut self) -> Option<&'a str> {
        if self.rest.is_empty() {
            return None;
        }
        let (chunk, rest) = self.rest.split_at(first_cut(self.rest));
        self.rest = rest;
        Some(chunk)
    }
}

/// Where the first run longer than [`RUN_MAX`] has to be cut; the text's length when there is none.
fn first_cut(text: &str) -> usize {
    let bytes = text.as_bytes();
    let mut run_start = 0;
    for at in 1..bytes.len() {
        if is_boundary(bytes[at - 1], bytes[at]) {
            run_start = at;
        } else if at - run_start >= RUN_MAX {
            return text.floor_char_boundary(at);
        }
    }
    text.len()
}

/// Whether every encoding splits here: after an ASCII letter or digit, before something that is neither and no
/// apostrophe (`don't`), and before a space that follows something visible.
fn is_boundary(before: u8, after: u8) -> bool {
    let ends_word =
        before.is_ascii_alphanumeric() && after.is_ascii() && !after.is_ascii_alphanumeric() && after != b'\'';
    ends_word || (after == b' ' && before.is_ascii_graphic())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn second(encoding: Encoding, text: &str) -> Tokens {
        Tokens(encoding.second().unwrap().count_ordinary(text) as u64)
    }

    const OPENAI: [Encoding; 5] =
        [Encoding::O200kBase, Encoding::Cl100kBase, Encoding::P50kBase, Encoding::R50kBase, Encoding::O200kHarmony];

    #[test]
    fn every_encoding_has_a_vocabulary_and_its_name() {
        for (encoding, name) in Encoding::ALL {
            assert_eq!((encoding.name(), Encoding::by_name(name)), (name, Some(encoding)));
            assert!(tiktoken::get_encoding(name).is_some(), "{name}");
        }
        assert_eq!(Encoding::by_name("gpt2"), Some(Encoding::R50kBase));
        assert_eq!(Encoding::by_name("o300k_base"), None);
    }

    #[test]
    fn models_have_the_encodings_that_their_vendors_name() {
        use Exactness::{Approximate, Exact};
        for (model, expected) in [
            ("gpt-4o-mini", (Encoding::O200kBase, Exact)),
            ("openai/gpt-4.1-mini-2025-04-14", (Encoding::O200kBase, Exact)),
            ("gpt-4-0613", (Encoding::Cl100kBase, Exact)),
            ("ft:gpt-3.5-turbo:org::id", (Encoding::Cl100kBase, Exact)),
            ("gpt-oss-120b", (Encoding::O200kHarmony, Exact)),
            ("text-embedding-3-small", (Encoding::Cl100kBase, Exact)),
            ("meta-llama/Llama-3.3-70B-Instruct", (Encoding::Llama3, Exact)),
            ("qwen/qwen3-32b", (Encoding::Qwen2, Exact)),
            ("claude-sonnet-4-5", (Encoding::O200kBase, Approximate)),
            ("", (Encoding::O200kBase, Approximate)),
        ] {
            assert_eq!(Encoding::for_model(model), expected, "{model}");
        }
    }

    #[test]
    fn ordinary_text_is_never_cut() {
        let text = "The quick (brown) fox isn't 12,345 \"lazy\" dogs:\n    {\"a\": [1, 2, 3]}\n\n".repeat(2_000);
        assert_eq!(Cuts::new(&text).count(), 1);
        assert_eq!(Cuts::new("").count(), 0);
    }

    #[test]
    fn cuts_lose_nothing_and_leave_no_long_run() {
        for text in
            ["a".repeat(50_000), " ".repeat(50_000), "世".repeat(20_000), "🦀".repeat(20_000), "^".repeat(9_000)]
        {
            assert_eq!(Cuts::new(&text).collect::<String>(), text);
            assert!(Cuts::new(&text).all(|chunk| chunk.len() <= RUN_MAX), "{}", &text[..4]);
        }
    }

    #[test]
    fn a_cut_run_counts_almost_the_same() {
        for text in
            ["a".repeat(40_000), " ".repeat(40_000), "世界".repeat(7_000), "=-".repeat(20_000), "\n".repeat(40_000)]
        {
            for encoding in [Encoding::O200kBase, Encoding::Cl100kBase] {
                let (cut, exact) = (count(encoding, &text).0, count_exact(encoding, &text).0);
                let slack = exact / 500 + 2 * (text.len() / RUN_MAX) as u64;
                assert!(cut.abs_diff(exact) <= slack, "{:?}: {cut} for {exact}", &text[..6]);
            }
        }
    }

    #[test]
    fn special_tokens_are_ordinary_text() {
        let text = "<|endoftext|><|im_start|>system";
        assert_eq!(count(Encoding::O200kBase, text), second(Encoding::O200kBase, text));
        assert!(count(Encoding::O200kBase, text) > Tokens(5));
    }

    #[test]
    fn a_remembered_count_is_the_count() {
        let text = "Remember the milk, the bread and the butter. ".repeat(10);
        let expected = count(Encoding::O200kBase, &text);
        assert_eq!(count_cached(Encoding::O200kBase, &text), expected);
        assert_eq!(count_cached(Encoding::O200kBase, &text), expected);
        assert_eq!(count_cached(Encoding::R50kBase, &text), count(Encoding::R50kBase, &text));
    }

    /// Run with `--release -- --ignored --nocapture` for figures; the bound here is for any build.
    #[test]
    #[ignore = "takes seconds in a debug build"]
    fn hostile_text_takes_linear_time() {
        let mut state = 1_u32;
        let mut letter = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            char::from(b'a' + (state >> 24) as u8 % 26)
        };
        let random: String = (0..4 << 20).map(|_| letter()).collect();
        assert_eq!(count(Encoding::O200kBase, "load"), Tokens(1));
        for (name, text) in [
            ("spaces", " ".repeat(4 << 20)),
            ("a", "a".repeat(4 << 20)),
            ("newlines", "\n".repeat(4 << 20)),
            ("^", "^".repeat(4 << 20)),
            ("random letters", random),
            ("han", "漢字".repeat(700_000)),
            ("emoji", "🦀🔥".repeat(524_288)),
        ] {
            let start = std::time::Instant::now();
            let tokens = count(Encoding::O200kBase, &text);
            let ms_per_mb = start.elapsed().as_millis() as f64 / (text.len() as f64 / 1e6);
            eprintln!("{name}: {ms_per_mb:.0} ms/MB, {tokens} tokens");
            assert!(ms_per_mb < 1_000.0, "{name}");
        }
    }

    fn text() -> impl Strategy<Value = String> {
        let word = prop_oneof![
            "\\PC{0,12}",
            "[a-zA-Z']{1,12}",
            "[ \t\r\n]{1,6}",
            "[0-9.,]{1,8}",
            "[\u{4e00}-\u{9fff}\u{3040}-\u{30ff}]{1,6}",
            "[\u{1f300}-\u{1faff}\u{200d}\u{fe0f}]{1,4}",
            "[\\[\\]{}():;\"'/<|>_-]{1,5}",
        ];
        proptest::collection::vec(word, 0..12).prop_map(|words| words.concat())
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(1_500))]

        #[test]
        fn both_implementations_agree(text in text()) {
            for encoding in OPENAI {
                prop_assert_eq!(count(encoding, &text), second(encoding, &text), "{:?}", encoding);
            }
        }

        /// Each place that [`is_boundary`] names really is one, for every vocabulary.
        #[test]
        fn splitting_at_a_boundary_changes_no_count(text in text()) {
            let bytes = text.as_bytes();
            let boundary = (1..bytes.len()).find(|&at| is_boundary(bytes[at - 1], bytes[at]));
            let Some(at) = boundary else { return Ok(()) };
            let (left, right) = text.split_at(at);
            for (encoding, _) in Encoding::ALL {
                let parts = count(encoding, left).saturating_add(count(encoding, right));
                prop_assert_eq!(parts, count(encoding, &text), "{:?} {:?} {:?}", encoding, left, right);
            }
        }
    }
}
