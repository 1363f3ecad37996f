//! JUnit XML, as continuous integration reads it: a suite per file, a case per test.

use std::fmt::{self, Write};

/// One test that was run.
#[derive(Debug)]
pub(super) struct Case {
    /// The file that it stands in.
    pub(super) file: String,
    /// Its name.
    pub(super) name: String,
    /// What failed, a line each; none when it passed.
    pub(super) failures: Vec<String>,
}

/// The document.
pub(super) struct Report<'a>(pub(super) &'a [Case]);

impl fmt::Display for Report<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<testsuites name=\"prompts\">")?;
        for cases in self.0.chunk_by(|one, other| one.file == other.file) {
            let failed = cases.iter().filter(|case| !case.failures.is_empty()).count();
            let file = Escaped(&cases[0].file);
            writeln!(f, "  <testsuite name=\"{file}\" tests=\"{}\" failures=\"{failed}\">", cases.len())?;
            for Case { name, failures, .. } in cases {
                write!(f, "    <testcase classname=\"{file}\" name=\"{}\"", Escaped(name))?;
                match failures.first() {
                    None => writeln!(f, "/>")?,
                    Some(first) => writeln!(
                        f,
                        "><failure message=\"{}\">{}</failure></testcase>",
                        Escaped(first),
                        Escaped(&failures.join("\n"))
                    )?,
                }
            }
            writeln!(f, "  </testsuite>")?;
        }
        writeln!(f, "</testsuites>")
    }
}

/// Text as XML, attributes included. Characters that XML cannot hold are replaced.
struct Escaped<'a>(&'a str);

impl fmt::Display for Escaped<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.chars().try_for_each(|letter| match letter {
            '<' => f.write_str("&lt;"),
            '>' => f.write_str("&gt;"),
            '&' => f.write_str("&amp;"),
            '"' => f.write_str("&quot;"),
            '\n' | '\t' => write!(f, "&#{};", u32::from(letter)),
            '\0'..='\u{1f}' | '\u{fffe}' | '\u{ffff}' => f.write_char('\u{fffd}'),
            letter => f.write_char(letter),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_groups_by_file_and_escapes_everything() {
        let case = |file: &str, name: &str, failures: &[&str]| Case {
            file: file.to_owned(),
            name: name.to_owned(),
            failures: failures.iter().map(|one| (*one).to_owned()).collect(),
        };
        let cases =
            [case("a.yaml", "one", &[]), case("a.yaml", "<&\"\u{1}", &["x\ny", "z"]), case("b.yaml", "two", &[])];
        assert_eq!(
            Report(&cases).to_string(),
            "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<testsuites name=\"prompts\">\n  \
             <testsuite name=\"a.yaml\" tests=\"2\" failures=\"1\">\n    \
             <testcase classname=\"a.yaml\" name=\"one\"/>\n    \
             <testcase classname=\"a.yaml\" name=\"&lt;&amp;&quot;\u{fffd}\"><failure message=\"x&#10;y\">x&#10;y&#10;z</failure></testcase>\n  \
             </testsuite>\n  <testsuite name=\"b.yaml\" tests=\"1\" failures=\"0\">\n    \
             <testcase classname=\"b.yaml\" name=\"two\"/>\n  </testsuite>\n</testsuites>\n"
        );
    }
}
