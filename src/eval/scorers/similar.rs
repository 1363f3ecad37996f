//! Scorers that measure how near two texts are: `edit_similarity`, `rouge_l`, and the cosine of two embeddings.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{Score, expected_texts};

/// One minus the edits (insert, delete, replace) that lead from one text to the other, over the longer one's characters.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct EditSimilarity {
    /// Take capital and small letters for the same.
    pub ignore_case: bool,
}

/// ROUGE-L: F1 over the longest sequence of words that both texts have in this order.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct RougeL {}

/// The cosine of the embeddings of answer and expected text, made by a model through the gateway.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct EmbeddingSimilarity {
    /// The embedding model, as clients name it.
    pub model: String,
}

/// Characters and words beyond these are not compared: both take time that grows with the product of the lengths.
const CHARACTERS_MAX: usize = 8_000;
const WORDS_MAX: usize = 4_000;

impl EditSimilarity {
    pub(super) fn score(&self, expected: &Value, text: &str) -> Score {
        let form = |text: &str| if self.ignore_case { text.trim().to_lowercase() } else { text.trim().to_owned() };
        best(expected, |wanted| edit_similarity(&form(wanted), &form(text)))
    }
}

impl RougeL {
    pub(super) fn score(&self, expected: &Value, text: &str) -> Score {
        best(expected, |wanted| rouge_l(wanted, text))
    }
}

/// The best score over all texts that would be right.
fn best(expected: &Value, similarity: impl Fn(&str) -> f64) -> Score {
    let scores = expected_texts(expected).into_iter().map(|wanted| similarity(&wanted));
    let best = scores.fold(0.0, f64::max);
    Score::of(best, format!("similarity {best:.2}"))
}

/// 1 for equal texts, 0 for texts without anything in common. Compares the first 8,000 characters.
#[must_use]
pub fn edit_similarity(one: &str, other: &str) -> f64 {
    let one: Vec<char> = one.chars().take(CHARACTERS_MAX).collect();
    let other: Vec<char> = other.chars().take(CHARACTERS_MAX).collect();
    let longer = one.len().max(other.len());
    if longer == 0 {
        return 1.0;
    }
    1.0 - edits(&one, &other) as f64 / longer as f64
}

/// Levenshtein's distance, a row at a time.
fn edits(one: &[char], other: &[char]) -> usize {
    let mut row: Vec<usize> = (0..=other.len()).collect();
    for (i, a) in one.iter().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, b) in other.iter().enumerate() {
            let replaced = diagonal + usize::from(a != b);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[other.len()]
}

/// F1 of the longest common subsequence of words; 1 for two texts without a word. Compares the first 4,000 words.
///
/// Source: Lin 2004, "ROUGE: A Package for Automatic Evaluation of Summaries", section 3, with β = 1.
#[must_use]
pub fn rouge_l(one: &str, other: &str) -> f64 {
    let (one, other) = (words(one), words(other));
    if one.is_empty() && other.is_empty() {
        return 1.0;
    }
    let common = longest_common(&one, &other) as f64;
    2.0 * common / (one.len() + other.len()) as f64
}

fn longest_common(one: &[String], other: &[String]) -> usize {
    let mut row = vec![0; other.len() + 1];
    for a in one {
        let mut diagonal = 0;
        for (j, b) in other.iter().enumerate() {
            let before = row[j + 1];
            row[j + 1] = if a == b { diagonal + 1 } else { before.max(row[j]) };
            diagonal = before;
        }
    }
    row[other.len()]
}

/// Runs of letters and digits in small letters. Each ideograph or kana is a word, since no blank divides them.
fn words(text: &str) -> Vec<String> {
    let mut words = Vec::new();
    let mut word = String::new();
    let mut end = |word: &mut String| {
        if !word.is_empty() {
            words.push(std::mem::take(word));
        }
    };
    for c in text.chars() {
        if is_ideographic(c) {
            end(&mut word);
            word.push(c);
            end(&mut word);
        } else if c.is_alphanumeric() {
            word.extend(c.to_lowercase());
        } else {
            end(&mut word);
        }
    }
    end(&mut word);
    words.truncate(WORDS_MAX);
    words
}

/// Hiragana, katakana, and the blocks of unified ideographs.
fn is_ideographic(c: char) -> bool {
    matches!(c, '\u{3040}'..='\u{30ff}' | '\u{3400}'..='\u{4dbf}' | '\u{4e00}'..='\u{9fff}' | '\u{20000}'..='\u{323af}')
}

/// The score of two embeddings; `None` where they cannot be compared.
#[must_use]
pub fn cosine(one: &[f64], other: &[f64]) -> Option<f64> {
    if one.len() != other.len() {
        return None;
    }
    let dot: f64 = one.iter().zip(other).map(|(a, b)| a * b).sum();
    let length = |vector: &[f64]| vector.iter().map(|value| value * value).sum::<f64>().sqrt();
    let lengths = length(one) * length(other);
    // Opposite directions are as bad as it gets, on a scale from 0 to 1.
    (lengths > 0.0 && lengths.is_finite()).then(|| (dot / lengths).clamp(0.0, 1.0))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn near(one: f64, other: f64) -> bool {
        (one - other).abs() < 1e-9
    }

    #[test]
    fn edits_are_counted_in_characters() {
        for (one, other, similarity) in [
            ("kitten", "sitting", 1.0 - 3.0 / 7.0),
            ("", "", 1.0),
            ("", "abc", 0.0),
            ("Grüße", "Grüsse", 1.0 - 2.0 / 6.0),
            ("同じ", "同じ", 1.0),
            ("flaw", "lawn", 0.5),
        ] {
            assert!(near(edit_similarity(one, other), similarity), "{one} {other}");
            assert!(near(edit_similarity(other, one), similarity), "{other} {one}");
        }
    }

    #[test]
    fn rouge_l_is_f1_over_words_in_order() {
        for (one, other, score) in [
            ("police killed the gunman", "police kill the gunman", 0.75),
            ("police killed the gunman", "the gunman kill police", 0.5),
            ("Same, words!", "same words", 1.0),
            ("", "", 1.0),
            ("a", "", 0.0),
            ("東京は雨", "東京は晴", 0.75),
        ] {
            assert!(near(rouge_l(one, other), score), "{one} {other}: {}", rouge_l(one, other));
        }
    }

    #[test]
    fn of_several_right_texts_the_nearest_counts() {
        let score = EditSimilarity::default().score(&json!(["nothing like it", "abcd"]), "abce");
        assert!(near(score.value.unwrap(), 0.75), "{score:?}");
        assert!(near(EditSimilarity { ignore_case: true }.score(&json!("ABC"), " abc ").value.unwrap(), 1.0));
    }

    #[test]
    fn vectors_are_compared_by_direction() {
        assert_eq!(cosine(&[1.0, 0.0], &[2.0, 0.0]), Some(1.0));
        assert_eq!(cosine(&[1.0, 0.0], &[0.0, 2.0]), Some(0.0));
        assert_eq!(cosine(&[1.0, 0.0], &[-1.0, 0.0]), Some(0.0));
        assert_eq!(cosine(&[1.0], &[1.0, 0.0]), None);
        assert_eq!(cosine(&[0.0], &[1.0]), None);
    }

    #[test]
    fn very_long_texts_take_bounded_time() {
        let long = "word ".repeat(100_000);
        assert!(near(edit_similarity(&long, &long), 1.0));
        assert!(near(rouge_l(&long, &long), 1.0));
    }
}
