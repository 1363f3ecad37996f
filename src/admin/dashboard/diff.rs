//! How two texts differ: line by line, and within lines that took each other's place, word by word.

use serde::Serialize;

/// Longer texts are compared as a whole: the table of a comparison grows with both.
const PIECES_MAX: usize = 2000;

/// A line of either text, or of both.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(super) struct Line {
    /// ` ` in both, `-` only in the old one, `+` only in the new one.
    sign: char,
    /// Its words: whether each is in this text alone.
    words: Vec<(bool, String)>,
}

/// The lines of both texts.
pub(super) fn lines(old: &str, new: &str) -> Vec<Line> {
    let (old, new): (Vec<&str>, Vec<&str>) = (old.lines().collect(), new.lines().collect());
    let mut lines = Vec::new();
    let (mut gone, mut come) = (Vec::new(), Vec::new());
    for (sign, text) in compared(&old, &new) {
        match sign {
            '-' => gone.push(text),
            '+' => come.push(text),
            _ => {
                replaced(&mut lines, &mut gone, &mut come);
                lines.push(Line { sign, words: vec![(false, text.to_owned())] });
            }
        }
    }
    replaced(&mut lines, &mut gone, &mut come);
    lines
}

/// Lines that went, and those that came in their place: compared word by word where they are as many.
fn replaced(lines: &mut Vec<Line>, gone: &mut Vec<&str>, come: &mut Vec<&str>) {
    let in_turn = gone.len() == come.len();
    let whole = |sign, text: &str| Line { sign, words: vec![(true, text.to_owned())] };
    let (gone, come) = (std::mem::take(gone), std::mem::take(come));
    if !in_turn {
        lines.extend(gone.into_iter().map(|text| whole('-', text)));
        lines.extend(come.into_iter().map(|text| whole('+', text)));
        return;
    }
    for (old, new) in gone.into_iter().zip(come) {
        let (old, new): (Vec<&str>, Vec<&str>) =
            (old.split_inclusive(' ').collect(), new.split_inclusive(' ').collect());
        let words = compared(&old, &new);
        for sign in ['-', '+'] {
            let kept = words.iter().filter(|(of, _)| *of == sign || *of == ' ');
            lines.push(Line { sign, words: kept.map(|(of, word)| (*of != ' ', (*word).to_owned())).collect() });
        }
    }
}

/// The longest common subsequence, and what each side has beside it.
fn compared<'t>(old: &[&'t str], new: &[&'t str]) -> Vec<(char, &'t str)> {
    if old.len().max(new.len()) > PIECES_MAX {
        return old.iter().map(|text| ('-', *text)).chain(new.iter().map(|text| ('+', *text))).collect();
    }
    // common[i][j]: the length of the longest common subsequence of old[i..] and new[j..].
    let mut common = vec![vec![0_u32; new.len() + 1]; old.len() + 1];
    for i in (0..old.len()).rev() {
        for j in (0..new.len()).rev() {
            common[i][j] = match old[i] == new[j] {
                true => common[i + 1][j + 1] + 1,
                false => common[i + 1][j].max(common[i][j + 1]),
            };
        }
    }
    let (mut i, mut j, mut found) = (0, 0, Vec::with_capacity(old.len().max(new.len())));
    while i < old.len() || j < new.len() {
        if i < old.len() && j < new.len() && old[i] == new[j] {
            found.push((' ', old[i]));
            (i, j) = (i + 1, j + 1);
        } else if j == new.len() || (i < old.len() && common[i + 1][j] >= common[i][j + 1]) {
            found.push(('-', old[i]));
            i += 1;
        } else {
            found.push(('+', new[j]));
            j += 1;
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn shown(old: &str, new: &str) -> Vec<String> {
        let word = |(own, word): &(bool, String)| if *own { format!("[{word}]") } else { word.clone() };
        lines(old, new)
            .iter()
            .map(|line| line.sign.to_string() + &line.words.iter().map(word).collect::<String>())
            .collect()
    }

    #[test]
    fn what_changed_within_a_line_is_marked_word_by_word() {
        assert_eq!(shown("a\nbe brief\nz", "a\nbe warm\nz"), [" a", "-be [brief]", "+be [warm]", " z"]);
        assert_eq!(shown("a\nb", "b"), ["-[a]", " b"]);
        assert_eq!(shown("", "x\ny"), ["+[x]", "+[y]"]);
        assert_eq!(shown("same", "same"), [" same"]);
    }

    proptest! {
        #[test]
        fn both_texts_can_be_read_out_of_it(old in prop::collection::vec("[ab ]{0,4}", 0..8), new in prop::collection::vec("[ab ]{0,4}", 0..8)) {
            let (old, new) = (old.join("\n"), new.join("\n"));
            let of = |sign| -> Vec<String> {
                let meant = lines(&old, &new).into_iter().filter(|line| line.sign == sign || line.sign == ' ');
                meant.map(|line| line.words.into_iter().map(|(_, word)| word).collect()).collect()
            };
            prop_assert_eq!(of('-'), old.lines().collect::<Vec<_>>());
            prop_assert_eq!(of('+'), new.lines().collect::<Vec<_>>());
        }
    }
}
