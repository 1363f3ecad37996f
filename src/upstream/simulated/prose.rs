//! Deterministic prose: the same request is answered in the same words, another system prompt in other ones.

use serde_json::Value;
use xxhash_rust::xxh3::xxh3_64_with_seed;

use super::CountTokens;

const OPENINGS: [&str; 5] = [
    "Here is what matters about {topic}.",
    "The short answer on {topic} is that it depends on two things.",
    "Let us look at {topic} step by step.",
    "There are a few ways to approach {topic}.",
    "In most cases {topic} is simpler than it looks.",
];
const WARM_OPENINGS: [&str; 5] = [
    "Happy to help with {topic}!",
    "Great question, thank you for asking about {topic}!",
    "Of course, let us sort out {topic} together!",
    "I am glad you asked about {topic}!",
    "No worries at all, {topic} trips up many people!",
];
const FORMAL_OPENINGS: [&str; 3] = [
    "Thank you for your enquiry regarding {topic}.",
    "Please find below the relevant information on {topic}.",
    "With respect to {topic}, we can state the following.",
];
const MIDDLES: [&str; 14] = [
    "Start with the settings page, where the current state is shown.",
    "The most common cause is a value that was changed and not saved.",
    "If that does not help, sign out and in again.",
    "You can undo each step at any time.",
    "Keep the defaults unless you have measured a reason to change them.",
    "It usually takes a few minutes until the change is visible everywhere.",
    "Check first whether {topic} is included in your plan.",
    "Smaller teams often begin with one project and add others later.",
    "Write down what you expected and what happened instead.",
    "The second option costs a little more and is easier to maintain.",
    "For {topic} in particular, the order of the steps matters.",
    "Nothing is deleted until you confirm it.",
    "A colleague with the right to edit can do this for you.",
    "Compare the numbers of last week with those of today.",
];
const CLOSINGS: [&str; 3] = [
    "That should settle it.",
    "Tell me which step fails if it does not work.",
    "The documentation has an example of each.",
];
const WARM_CLOSINGS: [&str; 3] = [
    "I hope that helps, and do come back any time!",
    "You are nearly there, let me know how it goes!",
    "Have a lovely day, and just ask if anything is unclear!",
];
const DULL_WORDS: [&str; 16] = [
    "about", "after", "again", "could", "does", "from", "have", "please", "should", "that", "there", "this", "what",
    "when", "with", "would",
];

/// How to speak, as the system prompt asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Tone {
    voice: Voice,
    brief: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Voice {
    Neutral,
    Warm,
    Formal,
}

impl Tone {
    pub(super) fn of(system: &str) -> Tone {
        let system = system.to_lowercase();
        let has = |words: &[&str]| words.iter().any(|word| system.contains(word));
        let voice = if has(&["warm", "friendly", "kind", "cheerful", "empath", "enthusias"]) {
            Voice::Warm
        } else if has(&["formal", "professional", "polite"]) {
            Voice::Formal
        } else {
            Voice::Neutral
        };
        Tone { voice, brief: has(&["concise", "brief", "short", "terse"]) }
    }

    /// How it begins and ends.
    fn phrases(self) -> (&'static [&'static str], &'static [&'static str]) {
        match self.voice {
            Voice::Neutral => (&OPENINGS, &CLOSINGS),
            Voice::Warm => (&WARM_OPENINGS, &WARM_CLOSINGS),
            Voice::Formal => (&FORMAL_OPENINGS, &CLOSINGS),
        }
    }

    /// Tokens that an answer has if nobody says otherwise: 30 to 150, more when warmer in either sense.
    pub(super) fn length_tokens(self, seed: u64, temperature: f64) -> u64 {
        let warmth = if self.voice == Voice::Warm { 20 } else { 0 };
        let length = 30 + seed % 80 + warmth + (temperature.clamp(0.0, 2.0) * 20.0) as u64;
        if self.brief { length / 2 } else { length }
    }
}

/// A fact, in the tone that is asked for; when brief, the fact alone.
pub(super) fn tell(tone: Tone, user: &str, seed: u64, fact: &str) -> String {
    if tone.brief {
        return fact.to_owned();
    }
    let (openings, closings) = tone.phrases();
    let mut random = Random(seed);
    let opening = random.pick(openings).replace("{topic}", &topic_of(user));
    format!("{opening} {fact} {}", random.pick(closings))
}

/// Sentences of `tokens` tokens or a little more.
pub(super) fn compose(tone: Tone, user: &str, seed: u64, tokens: u64, count: CountTokens) -> String {
    let mut random = Random(seed);
    let topic = topic_of(user);
    let (openings, closings) = tone.phrases();
    let mut text = random.pick(openings).replace("{topic}", &topic);
    let closing = random.pick(closings);
    let mut next = random.below(MIDDLES.len());
    let mut said = count(&text) + count(closing);
    while said < tokens {
        while said < tokens {
            let sentence = MIDDLES[next % MIDDLES.len()].replace("{topic}", &topic);
            // A step that shares no factor with the number of sentences says each once before the first comes again.
            next += 3;
            said += count(&sentence);
            text.push(' ');
            text.push_str(&sentence);
        }
        // Joined, sentences may count for less than alone.
        said = count(&text) + count(closing);
    }
    text.push(' ');
    text.push_str(closing);
    text
}

/// The longest word that says something.
fn topic_of(user: &str) -> String {
    let plain = user.split("x-simulate:").next().unwrap_or_default();
    plain
        .split(|c: char| !c.is_alphabetic())
        .map(str::to_lowercase)
        .filter(|word| (4..=20).contains(&word.chars().count()) && !DULL_WORDS.contains(&word.as_str()))
        .max_by_key(|word| word.chars().count())
        .unwrap_or_else(|| "this".to_owned())
}

/// Cuts a text as a model's output comes: before each blank, and long words into bits.
pub(super) fn pieces(text: &str) -> Vec<&str> {
    const LONGEST: usize = 12;
    let mut pieces = Vec::new();
    let mut start = 0;
    for (at, c) in text.char_indices() {
        if at > start && (c == ' ' || at - start >= LONGEST) {
            pieces.push(&text[start..at]);
            start = at;
        }
    }
    if start < text.len() {
        pieces.push(&text[start..]);
    }
    pieces
}

/// The longest run of whole pieces that has at most `tokens` tokens.
pub(super) fn truncate(text: &str, tokens: u64, count: CountTokens) -> &str {
    let mut ends: Vec<usize> = vec![0];
    ends.extend(pieces(text).iter().scan(0, |end, piece| {
        *end += piece.len();
        Some(*end)
    }));
    let fitting = ends.partition_point(|&end| count(&text[..end]) <= tokens);
    &text[..ends[fitting.saturating_sub(1)]]
}

/// The text of a content that is a string, or a list of strings or parts with a `text`.
pub(super) fn text_of(content: &Value) -> String {
    match content {
        Value::String(text) => text.clone(),
        Value::Array(parts) => {
            let texts: Vec<&str> = parts.iter().filter_map(|part| part.as_str().or(part["text"].as_str())).collect();
            texts.join("\n")
        }
        _ => String::new(),
    }
}

pub(super) fn hash(text: &str, purpose: &str) -> u64 {
    xxh3_64_with_seed(text.as_bytes(), xxh3_64_with_seed(purpose.as_bytes(), 0))
}

/// A hash as a number from 0 to below 1.
pub(super) fn share_of(hash: u64) -> f64 {
    (hash >> 11) as f64 / (1u64 << 53) as f64
}

/// SplitMix64: small, fast, and good enough to choose sentences.
pub(super) struct Random(pub(super) u64);

impl Random {
    pub(super) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound as u64) as usize
    }

    fn pick<'t>(&mut self, texts: &[&'t str]) -> &'t str {
        texts[self.below(texts.len())]
    }
}
