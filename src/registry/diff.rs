//! How two versions differ: field by field, and line by line in what they say.

use serde::Serialize;
use serde_json::Value;

/// Longer texts are shown one after the other: the table of a comparison grows with both.
const LINES_MAX: usize = 2000;
/// Lines around a change.
const CONTEXT: usize = 3;

/// How two versions differ.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Difference {
    /// Fields that are not the same, by path.
    pub fields: Vec<Field>,
    /// A unified diff of all that the versions say; empty where they are the same.
    pub unified: String,
}

/// A field that is not the same.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Field {
    /// Keys from the top, such as `parameters.temperature`.
    pub path: String,
    /// In the first version; `null` where it is not there.
    pub from: Value,
    /// In the second one.
    pub to: Value,
}

/// How `to` differs from `from`. The names stand in the head of the unified diff.
#[must_use]
pub fn differences(from: (&str, &Value), to: (&str, &Value)) -> Difference {
    let mut fields = Vec::new();
    compare("", from.1, to.1, &mut fields);
    let unified = unified((from.0, &written(from.1)), (to.0, &written(to.1)));
    Difference { fields, unified }
}

fn compare(path: &str, from: &Value, to: &Value, found: &mut Vec<Field>) {
    let (Value::Object(one), Value::Object(other)) = (from, to) else {
        if from != to {
            found.push(Field { path: path.to_owned(), from: from.clone(), to: to.clone() });
        }
        return;
    };
    let mut keys: Vec<&String> = one.keys().chain(other.keys()).collect();
    keys.sort();
    keys.dedup();
    for key in keys {
        let below = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
        compare(&below, one.get(key).unwrap_or(&Value::Null), other.get(key).unwrap_or(&Value::Null), found);
    }
}

/// A version as text: each field on lines of its own, texts as they read.
fn written(content: &Value) -> String {
    let mut text = String::new();
    write_below("", &super::canonical(content), &mut text);
    text
}

fn write_below(path: &str, value: &Value, text: &mut String) {
    match value {
        Value::Object(map) => {
            for (key, value) in map {
                let below = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
                write_below(&below, value, text);
            }
        }
        Value::String(said) if said.contains('\n') => {
            *text += &format!("{path}:\n");
            said.lines().for_each(|line| *text += &format!("  {line}\n"));
        }
        Value::String(said) => *text += &format!("{path}: {said}\n"),
        other => *text += &format!("{path}: {other}\n"),
    }
}

/// A unified diff of two named texts; empty where they are the same.
#[must_use]
pub fn unified(from: (&str, &str), to: (&str, &str)) -> String {
    let (old, new): (Vec<&str>, Vec<&str>) = (from.1.lines().collect(), to.1.lines().collect());
    let lines = compared(&old, &new);
    if lines.iter().all(|(sign, _)| *sign == ' ') {
        return String::new();
    }
    let mut text = format!("--- {}\n+++ {}\n", from.0, to.0);
    for (first, last) in hunks(&lines) {
        let before = |sign: char| lines[..first].iter().filter(|(of, _)| *of == sign || *of == ' ').count();
        let within = |sign: char| lines[first..last].iter().filter(|(of, _)| *of == sign || *of == ' ').count();
        let at = |sign: char| before(sign) + usize::from(within(sign) > 0);
        text += &format!("@@ -{},{} +{},{} @@\n", at('-'), within('-'), at('+'), within('+'));
        lines[first..last].iter().for_each(|(sign, line)| text += &format!("{sign}{line}\n"));
    }
    text
}

/// Ranges of lines that hold changes with what is around them.
fn hunks(lines: &[(char, &str)]) -> Vec<(usize, usize)> {
    let mut found: Vec<(usize, usize)> = Vec::new();
    for (i, _) in lines.iter().enumerate().filter(|(_, (sign, _))| *sign != ' ') {
        let (first, last) = (i.saturating_sub(CONTEXT), (i + CONTEXT + 1).min(lines.len()));
        match found.last_mut() {
            Some(hunk) if first <= hunk.1 => hunk.1 = last,
            _ => found.push((first, last)),
        }
    }
    found
}

/// The longest common subsequence, and what each side has beside it.
fn compared<'t>(old: &[&'t str], new: &[&'t str]) -> Vec<(char, &'t str)> {
    if old.len().max(new.len()) > LINES_MAX {
        return old.iter().map(|line| ('-', *line)).chain(new.iter().map(|line| ('+', *line))).collect();
    }
    let width = new.len() + 1;
    let mut common = vec![0_u32; (old.len() + 1) * width];
    for i in (0..old.len()).rev() {
        for j in (0..new.len()).rev() {
            common[i * width + j] = match old[i] == new[j] {
                true => common[(i + 1) * width + j + 1] + 1,
                false => common[(i + 1) * width + j].max(common[i * width + j + 1]),
            };
        }
    }
    let (mut i, mut j) = (0, 0);
    let mut lines = Vec::with_capacity(old.len() + new.len());
    while i < old.len() && j < new.len() {
        if old[i] == new[j] {
            lines.push((' ', old[i]));
            (i, j) = (i + 1, j + 1);
        } else if common[(i + 1) * width + j] >= common[i * width + j + 1] {
            lines.push(('-', old[i]));
            i += 1;
        } else {
            lines.push(('+', new[j]));
            j += 1;
        }
    }
    lines.extend(old[i..].iter().map(|line| ('-', *line)));
    lines.extend(new[j..].iter().map(|line| ('+', *line)));
    lines
}
