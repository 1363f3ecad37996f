//! A report as JUnit XML, which every CI shows: a suite a candidate, a test a case, and a suite of the gates.

use super::{Report, terminal::clean};
use crate::eval::run::row::Row;

/// The report as XML.
#[must_use]
pub fn xml(report: &Report) -> String {
    let mut suites: Vec<Suite> = report.candidates.iter().map(|candidate| cases(report, &candidate.name)).collect();
    suites.push(gates(report));
    let sum = |count: fn(&Suite) -> usize| suites.iter().map(count).sum::<usize>();
    let mut xml = String::from("<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n");
    xml += &format!(
        "<testsuites name=\"{}\" tests=\"{}\" failures=\"{}\" errors=\"{}\">\n",
        escaped(&report.suite),
        sum(|suite| suite.tests.len()),
        sum(Suite::failures),
        sum(Suite::errors)
    );
    suites.iter().for_each(|suite| suite.write(&mut xml));
    xml + "</testsuites>\n"
}

struct Suite {
    name: String,
    tests: Vec<Test>,
}

struct Test {
    name: String,
    seconds: f64,
    outcome: Outcome,
}

enum Outcome {
    Passed,
    Failed(String),
    Error(String),
}

fn cases(report: &Report, candidate: &str) -> Suite {
    let mut tests = Vec::new();
    for case in &report.cases {
        for row in case.rows.iter().filter(|row| row.candidate == candidate) {
            let name = if report.repeat > 1 { format!("{} #{}", case.id, row.repeat + 1) } else { case.id.clone() };
            tests.push(Test { name, seconds: row.latency_ms.unwrap_or(0.0) / 1000.0, outcome: outcome(row) });
        }
    }
    Suite { name: format!("{}.{candidate}", report.suite), tests }
}

fn outcome(row: &Row) -> Outcome {
    if let Some(error) = &row.error {
        return Outcome::Error(error.clone());
    }
    let failed = row.scores.iter().filter(|(_, score)| score.pass == Some(false));
    let reasons: Vec<String> = failed.map(|(id, score)| format!("{id}: {}", score.reason)).collect();
    if reasons.is_empty() { Outcome::Passed } else { Outcome::Failed(reasons.join("\n")) }
}

fn gates(report: &Report) -> Suite {
    let test = |gate: &crate::eval::gates::Verdict| Test {
        name: format!("{} ({})", gate.gate, gate.candidate),
        seconds: 0.0,
        outcome: if gate.passed { Outcome::Passed } else { Outcome::Failed(gate.said.clone()) },
    };
    let mut tests: Vec<Test> = report.gates.iter().map(test).collect();
    if report.ended != "complete" {
        tests.push(Test { name: "complete".to_owned(), seconds: 0.0, outcome: Outcome::Error(report.ended.clone()) });
    }
    Suite { name: format!("{}.gates", report.suite), tests }
}

impl Suite {
    fn failures(&self) -> usize {
        self.tests.iter().filter(|test| matches!(test.outcome, Outcome::Failed(_))).count()
    }

    fn errors(&self) -> usize {
        self.tests.iter().filter(|test| matches!(test.outcome, Outcome::Error(_))).count()
    }

    fn write(&self, xml: &mut String) {
        let name = escaped(&self.name);
        let seconds: f64 = self.tests.iter().map(|test| test.seconds).sum();
        *xml += &format!(
            "  <testsuite name=\"{name}\" tests=\"{}\" failures=\"{}\" errors=\"{}\" time=\"{seconds:.3}\">\n",
            self.tests.len(),
            self.failures(),
            self.errors()
        );
        for test in &self.tests {
            let (case, seconds) = (escaped(&test.name), test.seconds);
            *xml += &format!("    <testcase classname=\"{name}\" name=\"{case}\" time=\"{seconds:.3}\"");
            let (element, why) = match &test.outcome {
                Outcome::Passed => {
                    *xml += "/>\n";
                    continue;
                }
                Outcome::Failed(why) => ("failure", why),
                Outcome::Error(why) => ("error", why),
            };
            let first = escaped(&clean(why.lines().next().unwrap_or_default()));
            *xml += &format!(">\n      <{element} message=\"{first}\">{}</{element}>\n    </testcase>\n", escaped(why));
        }
        *xml += "  </testsuite>\n";
    }
}

/// Text for an element or an attribute. Characters that XML 1.0 cannot hold at all are replaced.
fn escaped(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => escaped += "&amp;",
            '<' => escaped += "&lt;",
            '>' => escaped += "&gt;",
            '"' => escaped += "&quot;",
            '\n' | '\t' => escaped.push(c),
            c if c.is_control() || matches!(c, '\u{fffe}' | '\u{ffff}') => escaped.push('\u{fffd}'),
            c => escaped.push(c),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::eval::report::tests::report;

    #[test]
    fn cases_and_gates_are_tests() {
        let xml = xml(&report());
        for line in [
            "<testsuites name=\"demo\" tests=\"8\" failures=\"4\" errors=\"0\">",
            "  <testsuite name=\"demo.v2\" tests=\"3\" failures=\"1\" errors=\"0\" time=\"3.000\">",
            "    <testcase classname=\"demo.v2\" name=\"3\" time=\"1.000\"/>",
            "      <failure message=\"exact: why\">exact: why</failure>",
            "    <testcase classname=\"demo.gates\" name=\"exact &gt;= 0.5 (v2)\" time=\"0.000\"/>",
        ] {
            assert!(xml.contains(line), "{line}\n--\n{xml}");
        }
    }

    #[test]
    fn what_a_model_says_cannot_break_the_xml() {
        let mut report = report();
        let score = report.cases[0].rows[0].scores.get_mut("exact").unwrap();
        score.reason = "said \"]]></failure><x a='\u{0}\u{1b}\u{ffff}\n&\"".to_owned();
        report.cases[0].rows[1].error = Some("<none>".to_owned());
        let xml = xml(&report);
        assert!(is_well_formed(&xml), "{xml}");
        assert!(xml.contains("<error message=\"&lt;none&gt;\">"));
        assert!(!is_well_formed("<a><b></a>") && !is_well_formed("<a x=\"<\"/>") && !is_well_formed("<a>&</a>"));
    }

    /// Whether elements nest, attributes are quoted, and nothing stands where markup would begin: enough for what is written here.
    fn is_well_formed(xml: &str) -> bool {
        let element = regex::Regex::new(r#"^<(/?)([a-z]+)((?: [a-z]+="[^"<]*")*)(/?)>"#).unwrap();
        let mut rest = xml.strip_prefix("<?xml version=\"1.0\" encoding=\"UTF-8\"?>").unwrap_or(xml);
        let mut open = Vec::new();
        while let Some(at) = rest.find('<') {
            let text = &rest[..at];
            let is_plain =
                text.split('&').skip(1).all(|rest| ["amp;", "lt;", "gt;", "quot;"].iter().any(|e| rest.starts_with(e)));
            let Some(found) = element.captures(&rest[at..]) else { return false };
            match (&found[1], &found[4]) {
                ("/", _) if open.pop() != Some(found[2].to_owned()) => return false,
                ("", "") => open.push(found[2].to_owned()),
                _ => {}
            }
            if !is_plain || text.chars().any(|c| c.is_control() && c != '\n') {
                return false;
            }
            rest = &rest[at + found[0].len()..];
        }
        open.is_empty() && rest.trim().is_empty()
    }
}
