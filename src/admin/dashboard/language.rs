//! The pages' languages: English is what templates say; others are read from a list of `English = other` lines.

use std::{collections::HashMap, sync::LazyLock};

/// The German words.
const GERMAN: &str = include_str!("german.txt");

static GERMAN_WORDS: LazyLock<HashMap<&'static str, &'static str>> = LazyLock::new(|| entries(GERMAN).collect());

/// A language that pages speak.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Language {
    English,
    German,
}

impl Language {
    /// The language of this tag, such as `de` or `de-AT`.
    pub(super) fn of_tag(tag: &str) -> Option<Language> {
        match tag.trim().split('-').next().unwrap_or_default().to_ascii_lowercase().as_str() {
            "en" => Some(Language::English),
            "de" => Some(Language::German),
            _ => None,
        }
    }

    /// The one that a browser likes best, by its `Accept-Language`.
    pub(super) fn preferred(accepted: &str) -> Language {
        let liking = |part: &str| {
            let (tag, q) = part.split_once(";q=").unwrap_or((part, "1"));
            Some((Language::of_tag(tag)?, q.trim().parse::<f32>().ok()?))
        };
        let liked = accepted.split(',').filter_map(liking);
        // Of equals the first: what is listed earlier is liked better.
        let best = liked.fold(None, |best: Option<(Language, f32)>, next| match best {
            Some(best) if best.1 >= next.1 => Some(best),
            _ => Some(next),
        });
        best.map_or(Language::English, |(language, _)| language)
    }

    /// Its tag.
    pub(super) const fn tag(self) -> &'static str {
        match self {
            Language::English => "en",
            Language::German => "de",
        }
    }

    /// What `english` is in this language; `english` itself where nothing else is known.
    pub(super) fn say(self, english: &str) -> &str {
        match self {
            Language::English => english,
            Language::German => GERMAN_WORDS.get(english).copied().unwrap_or(english),
        }
    }
}

fn entries(text: &'static str) -> impl Iterator<Item = (&'static str, &'static str)> {
    text.lines().filter_map(|line| line.split_once(" = "))
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeSet, fs, path::Path};

    use super::*;

    #[test]
    fn a_browser_gets_the_language_that_it_likes_best() {
        let table = [
            ("", Language::English),
            ("fr", Language::English),
            ("de", Language::German),
            ("de-AT,de;q=0.9,en;q=0.8", Language::German),
            ("en-US,en;q=0.9,de;q=0.8", Language::English),
            ("fr, de;q=0.5, en;q=0.4", Language::German),
            ("en;q=0.1,de;q=nonsense", Language::English),
        ];
        for (accepted, language) in table {
            assert_eq!(Language::preferred(accepted), language, "{accepted}");
        }
    }

    /// What is asked for in templates (by `t`) and in code (by `word` and `say`).
    fn asked_for() -> BTreeSet<String> {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/admin/dashboard");
        let files = fs::read_dir(&dir).expect("the sources").chain(fs::read_dir(dir.join("templates")).expect("them"));
        let at_the_door = ["../login.rs", "../oidc.rs"].map(|file| dir.join(file));
        let mut asked = BTreeSet::new();
        for path in files
            .map(|entry| entry.expect("an entry").path())
            .chain(at_the_door)
            .filter(|path| path.is_file() && !path.ends_with("language.rs"))
        {
            let text = fs::read_to_string(&path).expect("text");
            for call in ["t(\"", "word(\"", "say(\""] {
                let calls = text.match_indices(call).filter(|(at, _)| !text[..*at].ends_with(char::is_alphanumeric));
                let texts = calls.filter_map(|(at, _)| text[at + call.len()..].split_once('"'));
                asked.extend(texts.map(|(english, _)| english.to_owned()));
            }
        }
        asked
    }

    #[test]
    fn each_word_has_a_german_one_and_none_is_left_over() {
        let asked = asked_for();
        let known: BTreeSet<String> = entries(GERMAN).map(|(english, _)| english.to_owned()).collect();
        let missing: Vec<&String> = asked.difference(&known).collect();
        let unused: Vec<&String> = known.difference(&asked).collect();
        assert!(missing.is_empty() && unused.is_empty(), "missing: {missing:#?}\nunused: {unused:#?}");
        assert_eq!(known.len(), entries(GERMAN).count(), "a word stands there twice");
    }

    #[test]
    fn what_is_filled_in_is_filled_in_in_both() {
        let places = |text: &str| -> BTreeSet<String> {
            text.split('{').skip(1).filter_map(|rest| Some(rest.split_once('}')?.0.to_owned())).collect()
        };
        for (english, german) in entries(GERMAN) {
            assert_eq!(places(english), places(german), "{english}");
        }
    }
}
