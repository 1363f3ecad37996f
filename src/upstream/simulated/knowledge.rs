//! What a simulated model knows: the facts in its system prompt, so that a better prompt really gives better answers.
//!
//! A fact is an item of a list that begins with what it is about: `- Refunds: within 14 days, from your order's page.` A question
//! that shares a word with what a fact is about is answered with the fact. Everything else is answered with prose.

/// Shorter words say too little.
const WORD_CHARS_MIN: usize = 4;

/// The fact that answers `question` best: of those that are about it, the one with the most words in common, the first of equals.
pub(super) fn recall<'s>(system: &'s str, question: &str) -> Option<&'s str> {
    let asked: Vec<String> = words(question.split("x-simulate:").next().unwrap_or_default()).collect();
    let mut best = None;
    for (about, fact) in system.lines().filter_map(item) {
        let shared = |text: &str| words(text).filter(|word| asked.contains(word)).count();
        let of_subject = shared(about);
        let score = of_subject + shared(fact);
        if of_subject > 0 && best.is_none_or(|(most, _)| score > most) {
            best = Some((score, fact));
        }
    }
    best.map(|(_, fact)| fact)
}

/// `- About: fact`, or with `*`.
fn item(line: &str) -> Option<(&str, &str)> {
    let line = line.trim();
    let text = line.strip_prefix("- ").or_else(|| line.strip_prefix("* "))?;
    let (about, fact) = text.split_once(": ")?;
    let fact = fact.trim();
    (!fact.is_empty()).then_some((about, fact))
}

/// Lower-case words, one and many alike.
fn words(text: &str) -> impl Iterator<Item = String> {
    text.split(|c: char| !c.is_alphanumeric())
        .map(str::to_lowercase)
        .filter(|word| word.chars().count() >= WORD_CHARS_MIN)
        .map(|word| word.trim_end_matches('s').to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    const SYSTEM: &str = "You help.\n- Refunds: within 14 days.\n- Delivery, shipping: two days in the EU.\n* Returns: free.\n- no subject";

    #[test]
    fn a_question_is_answered_with_the_fact_that_is_about_it() {
        for (question, fact) in [
            ("How do I get a refund?", Some("within 14 days.")),
            ("When does the shipping of my order start?", Some("two days in the EU.")),
            ("RETURNS??", Some("free.")),
            ("Which days are you open?", None),
            ("What is a subject?", None),
            ("", None),
        ] {
            assert_eq!(recall(SYSTEM, question), fact, "{question}");
        }
    }

    #[test]
    fn directives_are_no_question() {
        assert_eq!(recall(SYSTEM, "hello x-simulate: tokens=5 refunds"), None);
    }
}
