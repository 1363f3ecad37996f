//! The tags of a prompt template that reach beyond it: which are refused, and which files the others name.
//!
//! Read from the text, before the template engine sees it, so that every file is known when a version is compiled. Comments and
//! raw blocks are plain text; a tag inside a quoted text of an expression counts as one, which is stricter than need be.

/// Tags that would change how values are written, or turn a prompt into a page.
const FORBIDDEN_TAGS: [&str; 3] = ["extends", "block", "autoescape"];
/// Tags that name another file.
const INCLUDING_TAGS: [&str; 3] = ["include", "import", "from"];
/// Longest path of an included file, in bytes.
const PATH_BYTES_MAX: usize = 256;

/// A file that a template names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Include {
    /// Line in the template, from 1.
    pub line: usize,
    /// The path as it is written, relative to the folder of prompts.
    pub path: String,
    /// What an `import` gives a name to: no variables of the prompt.
    pub names: Vec<String>,
}

/// What is wrong with a tag.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TagError {
    /// Line in the template, from 1.
    pub line: usize,
    /// What is wrong, and the mend.
    pub what: String,
}

/// The files that a template names, in order.
///
/// # Errors
/// The first tag that is not available in prompts, or that names no file of the folder in plain quotes.
pub fn includes(source: &str) -> Result<Vec<Include>, TagError> {
    let mut found = Vec::new();
    let mut rest = source;
    while let Some(at) = rest.find("{%").into_iter().chain(rest.find("{#")).min() {
        let tag_at = source.len() - rest.len() + at;
        rest = &rest[at + 2..];
        if source[tag_at..].starts_with("{#") {
            rest = rest.split_once("#}").map_or("", |(_, after)| after);
            continue;
        }
        let line = source[..tag_at].matches('\n').count() + 1;
        match first_word(rest) {
            "raw" => rest = after_raw(rest),
            word if FORBIDDEN_TAGS.contains(&word) => {
                return Err(TagError { line, what: format!("`{word}` is not available in prompts") });
            }
            word if INCLUDING_TAGS.contains(&word) => {
                found.push(include(word, rest, line).map_err(|what| TagError { line, what })?);
            }
            _ => {}
        }
    }
    Ok(found)
}

fn include(word: &str, tag: &str, line: usize) -> Result<Include, String> {
    let unquoted = || format!("`{word}` must name its file in quotes, as in `{{% {word} \"partials/tone.md\" … %}}`");
    let inside = tag.trim_start_matches(['-', '+']).trim_start()[word.len()..].trim_start();
    let quote = inside.chars().next().filter(|quote| ['"', '\''].contains(quote)).ok_or_else(unquoted)?;
    let (path, after) = inside[1..].split_once(quote).ok_or_else(unquoted)?;
    // A path that is computed could be any, and could not be read beforehand.
    let after = after.split("%}").next().unwrap_or_default().trim().trim_end_matches(['-', '+']).trim_end();
    let names = match (word, after) {
        ("include", "") => Vec::new(),
        ("import", after) => vec![after.strip_prefix("as ").ok_or_else(unquoted)?.trim().to_owned()],
        ("from", after) => imported(after.strip_prefix("import ").ok_or_else(unquoted)?),
        _ => return Err(unquoted()),
    };
    check_path(path)?;
    Ok(Include { line, path: path.to_owned(), names })
}

/// `a, b as c`: what they are called here.
fn imported(list: &str) -> Vec<String> {
    let name = |item: &str| item.rsplit_once(" as ").map_or(item, |(_, name)| name).trim().to_owned();
    list.split(',').map(name).filter(|name| !name.is_empty()).collect()
}

/// A path that stays in the folder.
fn check_path(path: &str) -> Result<(), String> {
    let step = |step: &str| step.is_empty() || step == "." || step == "..";
    let outside = path.len() > PATH_BYTES_MAX
        || path.contains(['\\', ':'])
        || path.chars().any(char::is_control)
        || path.split('/').any(step);
    match outside {
        true => Err("a file to include is named by its path in the `prompts` folder, without `..`".to_owned()),
        false => Ok(()),
    }
}

/// The name of the tag whose inside this is.
fn first_word(tag: &str) -> &str {
    let name = tag.trim_start_matches(['-', '+']).trim_start();
    &name[..name.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(name.len())]
}

/// What follows the end of a raw block.
fn after_raw(mut rest: &str) -> &str {
    while let Some(at) = rest.find("{%") {
        rest = &rest[at + 2..];
        if first_word(rest) == "endraw" {
            return rest;
        }
    }
    ""
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_named_in_quotes_and_found_before_the_template_runs() {
        let text = "a\n{% include \"partials/a.md\" %}\n{%- import 'm.md' as m -%}\n{% from \"m.md\" import x, y as z %}\
                    {# {% include \"no\" %} #}{% raw %}{% include \"no\" %}{% endraw %}";
        let found = includes(text).expect("all in the folder");
        let shown: Vec<_> = found.iter().map(|one| (one.line, one.path.as_str(), one.names.join(" "))).collect();
        assert_eq!(
            shown,
            [(2, "partials/a.md", String::new()), (3, "m.md", "m".to_owned()), (4, "m.md", "x z".to_owned())]
        );
    }

    #[test]
    fn nothing_outside_of_the_folder_can_be_named() {
        for path in ["/etc/passwd", "../x", "a/../../x", "a//b", "./a", "", "a\\b", "C:/x", "a\nb"] {
            let error = includes(&format!("\n{{% include '{path}' %}}")).expect_err(path);
            assert_eq!(error.line, 2);
            assert!(error.what.contains("its path in the `prompts` folder"), "{path}: {}", error.what);
        }
        for tag in [
            "include x",
            "include 'a' ~ x",
            "include ['a', 'b']",
            "include 'a' ignore missing",
            "import 'a'",
            "from 'a'",
            "include 'a",
        ] {
            let error = includes(&format!("{{% {tag} %}}")).expect_err(tag);
            assert!(error.what.contains("must name its file in quotes"), "{tag}: {}", error.what);
        }
    }
}
