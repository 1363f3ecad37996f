//! What is wrong with a configuration: each problem with its place, its path and its mend.

use std::fmt::{self, Write};

/// A place in a file; both count from 1. Line 0 stands for the file as a whole.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    /// Line.
    pub line: u64,
    /// Column, in characters.
    pub column: u64,
}

/// One problem.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Problem {
    /// The file as it was named.
    pub file: String,
    /// Where in it.
    pub place: Place,
    /// The path of keys, such as `budgets[1].limit`; empty for the whole file.
    pub path: String,
    /// What is wrong, and the mend. Never holds a secret.
    pub message: String,
}

/// One line, whatever is quoted in it.
impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_line(f, &self.file)?;
        f.write_str(":")?;
        if self.place.line > 0 {
            write!(f, "{}:{}:", self.place.line, self.place.column)?;
        }
        if !self.path.is_empty() {
            f.write_str(" ")?;
            write_line(f, &self.path)?;
            f.write_str(":")?;
        }
        f.write_str(" ")?;
        write_line(f, &self.message)
    }
}

/// Escapes control characters: a quoted value must not forge a second line, or speak to the terminal.
fn write_line(f: &mut fmt::Formatter<'_>, text: &str) -> fmt::Result {
    text.chars().try_for_each(|c| match c.is_control() {
        true => write!(f, "{}", c.escape_default()),
        false => f.write_char(c),
    })
}

/// Every problem of a configuration, in the order of the file; never empty when it is an error.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Problems(pub Vec<Problem>);

impl Problems {
    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn push(&mut self, problem: Problem) {
        self.0.push(problem);
    }

    /// In the order of the files, each once.
    pub(super) fn sorted(mut self) -> Problems {
        self.0.sort();
        self.0.dedup();
        self
    }
}

/// One problem a line.
impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, problem) in self.0.iter().enumerate() {
            if i > 0 {
                writeln!(f)?;
            }
            problem.fmt(f)?;
        }
        Ok(())
    }
}

impl std::error::Error for Problems {}

/// ``; did you mean `near`?`` when one of `known` is near to `typed`, otherwise `; known: a, b, c` (or nothing to know).
pub(super) fn suggestion<'a>(typed: &str, known: impl IntoIterator<Item = &'a str>) -> String {
    let mut known: Vec<&str> = known.into_iter().collect();
    known.sort_unstable();
    let nearest = known.iter().map(|name| (distance(typed, name), *name)).min();
    let near = match typed.chars().count() {
        // `v3` is not a slip for `v1`.
        0..=2 => 0,
        letters => 1 + letters / 4,
    };
    match nearest {
        Some((distance, name)) if distance <= near => format!("; did you mean `{name}`?"),
        Some(_) if known.len() <= LISTED_MAX => format!("; known: {}", known.join(", ")),
        Some(_) => format!("; known: {}, …", known[..LISTED_MAX].join(", ")),
        None => String::new(),
    }
}

/// More names than this are not listed in a message.
const LISTED_MAX: usize = 32;

/// Edits (insert, delete, replace, swap of neighbours) that lead from `a` to `b`, letter case ignored.
fn distance(a: &str, b: &str) -> usize {
    let a: Vec<char> = a.to_lowercase().chars().take(64).collect();
    let b: Vec<char> = b.to_lowercase().chars().take(64).collect();
    let mut rows = vec![(0..=b.len()).collect::<Vec<_>>()];
    for i in 1..=a.len() {
        let mut row = vec![i];
        for j in 1..=b.len() {
            let replaced = rows[i - 1][j - 1] + usize::from(a[i - 1] != b[j - 1]);
            let mut least = replaced.min(rows[i - 1][j] + 1).min(row[j - 1] + 1);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                least = least.min(rows[i - 2][j - 2] + 1);
            }
            row.push(least);
        }
        rows.push(row);
    }
    rows[a.len()][b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_name_is_suggested_and_a_far_one_lists_what_is_known() {
        let known = ["listen", "admin", "limits"];
        assert_eq!(suggestion("lisen", known), "; did you mean `listen`?");
        assert_eq!(suggestion("Limist", known), "; did you mean `limits`?");
        assert_eq!(suggestion("port", known), "; known: admin, limits, listen");
        assert_eq!(suggestion("v3", ["v1", "v2"]), "; known: v1, v2");
        assert_eq!(suggestion("port", []), "");
    }

    #[test]
    fn a_problem_of_a_whole_file_has_no_line() {
        let problem =
            Problem { file: "x.yaml".into(), place: Place::default(), path: String::new(), message: "cannot".into() };
        assert_eq!(problem.to_string(), "x.yaml: cannot");
        let forged = Problem { message: "`a\nok: \u{1b}[2J`".into(), ..problem };
        assert_eq!(forged.to_string(), "x.yaml: `a\\nok: \\u{1b}[2J`");
    }
}
