//! Tokens of images, by their providers' published tables.
//!
//! OpenAI, "Images and vision", <https://platform.openai.com/docs/guides/images-vision#calculating-costs>: tile models scale
//! an image into 2048 × 2048 pixels and its short side to 768, then pay a base and a price for each 512-pixel tile, at
//! most 2 × 4 of them; patch models pay for each 32-pixel patch within a budget, times a factor. Anthropic, "Vision",
//! <https://docs.anthropic.com/en/docs/build-with-claude/vision>: width × height / 750 after scaling down.

use super::bare_name;
use crate::units::Tokens;

/// How an image becomes tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Family {
    Tiles { base: u64, tile: u64 },
    Patches { budget: u64, percent: u64 },
    AtMost(u64),
}

const TILES_MAX: u64 = 8;

/// By the start of a model's name, more specific ones first.
const FAMILIES: &[(&str, Family)] = &[
    ("gpt-4o-mini", Family::Tiles { base: 2833, tile: 5667 }),
    ("gpt-4o", Family::Tiles { base: 85, tile: 170 }),
    ("chatgpt-4o", Family::Tiles { base: 85, tile: 170 }),
    ("gpt-4.1-mini", Family::Patches { budget: 1536, percent: 162 }),
    ("gpt-4.1-nano", Family::Patches { budget: 1536, percent: 246 }),
    ("gpt-4.1", Family::Tiles { base: 85, tile: 170 }),
    ("gpt-4-", Family::Tiles { base: 85, tile: 170 }),
    ("gpt-5-mini", Family::Patches { budget: 1536, percent: 162 }),
    ("gpt-5-nano", Family::Patches { budget: 1536, percent: 246 }),
    ("gpt-5-", Family::Tiles { base: 70, tile: 140 }),
    // Newer ones take up to 10,000 patches (`detail: original`); the factor is the largest that is published.
    ("gpt-4.5", Family::Tiles { base: 85, tile: 170 }),
    ("gpt-", Family::Patches { budget: 10_000, percent: 246 }),
    ("o4-mini", Family::Patches { budget: 1536, percent: 172 }),
    ("o1", Family::Tiles { base: 75, tile: 150 }),
    ("o3", Family::Tiles { base: 75, tile: 150 }),
    ("computer-use-preview", Family::Tiles { base: 65, tile: 129 }),
    // The models since Opus 4.7 scale to 2576 pixels instead of 1568: at most 4,784 tokens instead of 1,600.
    ("claude", Family::AtMost(4_784)),
];

/// A name that tells nothing, such as that of an Azure deployment: the most that any of them takes (gpt-4o-mini).
const UNKNOWN: Family = Family::AtMost(2833 + TILES_MAX * 5667);

fn family(model: &str) -> Family {
    let model = bare_name(model);
    let model = model.strip_prefix("ft:").unwrap_or(model);
    if model == "gpt-5" {
        return Family::Tiles { base: 70, tile: 140 };
    }
    FAMILIES.iter().find(|(start, _)| model.starts_with(start)).map_or(UNKNOWN, |(_, family)| *family)
}

/// The most tokens that one image of any size can cost at this model, its detail chosen by the client or by the model.
#[must_use]
pub fn image_tokens_max(model: &str) -> Tokens {
    Tokens(match family(model) {
        Family::Tiles { base, tile } => base + TILES_MAX * tile,
        Family::Patches { budget, percent } => (budget * percent).div_ceil(100),
        Family::AtMost(tokens) => tokens,
    })
}

/// Tokens of an image that is asked for in low detail; `None` where detail changes nothing or is not published.
pub(super) fn low_detail_tokens(model: &str) -> Option<Tokens> {
    match family(model) {
        Family::Tiles { base, .. } => Some(Tokens(base)),
        Family::Patches { .. } | Family::AtMost(_) => None,
    }
}

/// Tokens of an image of this size in high detail.
pub(super) fn image_tokens(model: &str, width: u64, height: u64) -> Tokens {
    let (width, height) = (width.clamp(1, 1 << 20), height.clamp(1, 1 << 20));
    let tokens = match family(model) {
        Family::Tiles { base, tile } => base + tiles(width, height) * tile,
        Family::Patches { budget, percent } => {
            ((width.div_ceil(32) * height.div_ceil(32)).min(budget) * percent).div_ceil(100)
        }
        Family::AtMost(most) => (width * height).div_ceil(750).min(most),
    };
    Tokens(tokens).min(image_tokens_max(model))
}

/// 512-pixel tiles after scaling down into 2048 × 2048 and to a short side of 768.
fn tiles(width: u64, height: u64) -> u64 {
    let (mut long, mut short) = (width.max(height), width.min(height));
    if long > 2048 {
        (short, long) = ((short * 2048 / long).max(1), 2048);
    }
    if short > 768 {
        (long, short) = (long * 768 / short, 768);
    }
    long.div_ceil(512) * short.div_ceil(512)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The examples of OpenAI's guide.
    #[test]
    fn images_cost_what_the_guide_says() {
        for (model, width, height, tokens) in [
            ("gpt-4o", 1024, 1024, 765),
            ("gpt-4o", 2048, 4096, 1105),
            ("gpt-4o", 512, 512, 255),
            ("gpt-4.1-mini", 1024, 1024, 1659),
            ("gpt-5", 1024, 1024, 630),
            ("openai/gpt-4o-mini", 1024, 1024, 25_501),
        ] {
            assert_eq!(image_tokens(model, width, height), Tokens(tokens), "{model} {width}x{height}");
        }
        assert_eq!(low_detail_tokens("gpt-4o-2024-11-20"), Some(Tokens(85)));
    }

    #[test]
    fn no_image_costs_more_than_the_most() {
        for (model, most) in [
            ("gpt-4o", 1445),
            ("gpt-4o-mini", 48_169),
            ("gpt-4.1-nano", 3779),
            ("claude-opus-4-7", 4784),
            ("gpt-6-sol", 24_600),
            ("my-deployment", 48_169),
        ] {
            assert_eq!(image_tokens_max(model), Tokens(most), "{model}");
            for (width, height) in [(1, 1), (768, 2048), (2048, 2048), (100_000, 3), (u64::MAX, u64::MAX), (4096, 767)]
            {
                assert!(image_tokens(model, width, height) <= image_tokens_max(model), "{model} {width}x{height}");
            }
        }
    }
}
