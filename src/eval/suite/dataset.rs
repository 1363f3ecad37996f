//! Cases out of files: JSON lines, and CSV as RFC 4180 has it.

use std::path::Path;

use serde_json::{Map, Value};

use super::file::CaseFile;
use crate::config::foreign::suggestion;

/// Fields of a case, and columns of a CSV file that are no variables.
const FIELDS: [&str; 9] = ["id", "input", "messages", "variables", "expected", "answer", "label", "parameters", "tags"];
/// The columns that a CSV file may have beside those of variables.
const COLUMNS: [&str; 6] = ["id", "input", "expected", "answer", "label", "tags"];
/// Larger files are refused: they are read whole.
const FILE_BYTES_MAX: u64 = 256 << 20;

/// Reads the cases of `path`, by its ending.
///
/// # Errors
/// `file:line: what is wrong`, the first mistake only.
pub(super) fn read(path: &Path) -> Result<Vec<CaseFile>, String> {
    let name = path.display();
    let size = std::fs::metadata(path).map_err(|error| format!("{name}: cannot be read: {error}"))?.len();
    if size > FILE_BYTES_MAX {
        return Err(format!("{name}: is larger than 256 MiB; cut it into several suites"));
    }
    let text = std::fs::read_to_string(path).map_err(|error| format!("{name}: cannot be read: {error}"))?;
    let text = text.strip_prefix('\u{feff}').unwrap_or(&text);
    let cases = match path.extension().and_then(|ending| ending.to_str()) {
        Some("jsonl" | "ndjson") => json_lines(text),
        Some("csv") => csv(text),
        _ => return Err(format!("{name}: the ending must be .jsonl or .csv")),
    };
    cases.map_err(|(line, why)| format!("{name}:{line}: {why}"))
}

/// A line, counted from 1, and what is wrong with it.
type Mistake = (usize, String);

fn json_lines(text: &str) -> Result<Vec<CaseFile>, Mistake> {
    let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
    lines.map(|(i, line)| json_case(line).map_err(|why| (i + 1, why))).collect()
}

fn json_case(line: &str) -> Result<CaseFile, String> {
    let fields: Map<String, Value> = serde_json::from_str(line).map_err(|error| {
        let said = error.to_string();
        format!("no JSON object: {}, in column {}", said.split(" at line").next().unwrap_or(&said), error.column())
    })?;
    if let Some(unknown) = fields.keys().find(|key| !FIELDS.contains(&key.as_str())) {
        return Err(format!("unknown field `{unknown}`{}", suggestion(unknown, FIELDS)));
    }
    serde_json::from_value(Value::Object(fields)).map_err(|error| error.to_string())
}

fn csv(text: &str) -> Result<Vec<CaseFile>, Mistake> {
    let mut rows = records(text)?.into_iter();
    let Some((_, header)) = rows.next() else { return Ok(Vec::new()) };
    let header: Vec<String> = header.into_iter().map(|name| name.trim().to_owned()).collect();
    if let Some(doubled) = header.iter().enumerate().find(|(i, name)| header[..*i].contains(name)) {
        return Err((1, format!("the column `{}` is there twice", doubled.1)));
    }
    if !header.iter().any(|name| name == "input") {
        return Err((1, format!("there is no column `input`; there are {}", header.join(", "))));
    }
    rows.map(|(line, cells)| csv_case(&header, cells).map_err(|why| (line, why))).collect()
}

/// Columns that are no field of a case are variables of the prompt.
fn csv_case(header: &[String], cells: Vec<String>) -> Result<CaseFile, String> {
    if cells.len() != header.len() {
        return Err(format!("has {} cells, not {} as the first line", cells.len(), header.len()));
    }
    let mut case = CaseFile::default();
    for (name, cell) in header.iter().zip(cells) {
        match name.as_str() {
            "input" => case.input = Some(cell),
            // An empty cell says nothing.
            _ if cell.is_empty() => {}
            "id" => case.id = Some(Value::String(cell)),
            "expected" => case.expected = Some(Value::String(cell)),
            "answer" => case.answer = Some(cell),
            "label" => case.label = Some(label(cell)),
            "tags" => case.tags = cell.split([',', ';', ' ']).filter(|t| !t.is_empty()).map(str::to_owned).collect(),
            variable if FIELDS.contains(&variable) => {
                return Err(format!("`{variable}` cannot stand in CSV, only {}; use .jsonl", COLUMNS.join(", ")));
            }
            variable => {
                case.variables.insert(variable.to_owned(), Value::String(cell));
            }
        }
    }
    Ok(case)
}

/// `true`, `0.5` and `win` alike.
fn label(cell: String) -> Value {
    match serde_json::from_str(cell.trim()) {
        Ok(value @ (Value::Bool(_) | Value::Number(_))) => value,
        _ => Value::String(cell),
    }
}

/// The records of a CSV text, each with the line that it begins on. Empty lines are none.
fn records(text: &str) -> Result<Vec<(usize, Vec<String>)>, Mistake> {
    let mut records = Vec::new();
    let (mut line, mut begun) = (1, 1);
    let mut cells: Vec<String> = Vec::new();
    let mut cell = String::new();
    let mut was_quoted = false;
    let mut rest = text.chars().peekable();
    while let Some(c) = rest.next() {
        match c {
            '"' if cell.is_empty() && !was_quoted => {
                was_quoted = true;
                let opened = line;
                loop {
                    match rest.next() {
                        Some('"') if rest.peek() == Some(&'"') => cell.push('"'),
                        Some('"') => break,
                        Some(c) => {
                            line += usize::from(c == '\n');
                            cell.push(c);
                            continue;
                        }
                        None => return Err((opened, "a quote is never closed".to_owned())),
                    }
                    rest.next();
                }
            }
            ',' => {
                cells.push(std::mem::take(&mut cell));
                was_quoted = false;
            }
            '\r' if rest.peek() == Some(&'\n') => {}
            '\n' => {
                end_record(&mut records, begun, &mut cells, &mut cell, was_quoted);
                was_quoted = false;
                line += 1;
                begun = line;
            }
            _ if was_quoted => return Err((line, format!("`{c}` stands after a closed quote"))),
            c => cell.push(c),
        }
    }
    end_record(&mut records, begun, &mut cells, &mut cell, was_quoted);
    Ok(records)
}

fn end_record(
    records: &mut Vec<(usize, Vec<String>)>,
    begun: usize,
    cells: &mut Vec<String>,
    cell: &mut String,
    was_quoted: bool,
) {
    let is_empty = cells.is_empty() && cell.is_empty() && !was_quoted;
    if !is_empty {
        cells.push(std::mem::take(cell));
        records.push((begun, std::mem::take(cells)));
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    #[test]
    fn json_lines_are_cases_and_a_wrong_one_is_named() {
        let cases = json_lines("{\"input\": \"a\", \"expected\": 1}\n\n{\"messages\": [], \"id\": 7}\n").unwrap();
        assert_eq!((cases.len(), &cases[0].expected, &cases[1].id), (2, &Some(json!(1)), &Some(json!(7))));
        let mistake = |text: &str| json_lines(text).unwrap_err();
        assert_eq!(mistake("{}\n{\"inptu\": \"a\"}"), (2, "unknown field `inptu`; did you mean `input`?".to_owned()));
        assert_eq!(mistake("[1]").0, 1);
        assert!(mistake("{\"input\": 3}").1.contains("expected a string"));
    }

    #[test]
    fn csv_has_quotes_line_breaks_and_variables() {
        let text = "id,input,expected,product,label,tags\r\n1,\"Hello, \"\"you\"\"\nthere\",,Tollgate,true,\"a, b\"\r\n\r\n2,x,y,,win,\r\n";
        let cases = csv(text).unwrap();
        assert_eq!(cases.len(), 2);
        assert_eq!(cases[0].input.as_deref(), Some("Hello, \"you\"\nthere"));
        assert_eq!((&cases[0].expected, &cases[0].label), (&None, &Some(json!(true))));
        assert_eq!(cases[0].variables, Map::from_iter([("product".to_owned(), json!("Tollgate"))]));
        assert_eq!(cases[0].tags, ["a", "b"]);
        assert_eq!((&cases[1].label, cases[1].variables.len()), (&Some(json!("win")), 0));
    }

    #[test]
    fn a_wrong_csv_is_refused_with_its_line() {
        let mistake = |text: &str| csv(text).unwrap_err();
        assert_eq!(mistake("input,a\n\"x\ny\",b\nz\n"), (4, "has 1 cells, not 2 as the first line".to_owned()));
        assert_eq!(mistake("input\n\"open").0, 2);
        assert_eq!(mistake("input\n\"a\"b").1, "`b` stands after a closed quote");
        assert!(mistake("text\nx").1.starts_with("there is no column `input`"));
        assert!(mistake("input,input\n").1.contains("twice"));
        assert!(mistake("input,messages\nx,y").1.contains("use .jsonl"));
        assert!(csv("").unwrap().is_empty());
    }

    proptest! {
        #[test]
        fn what_is_quoted_comes_back(cells in proptest::collection::vec("[a\",\n\r ä]{0,6}", 1..4)) {
            let line: Vec<String> = cells.iter().map(|cell| format!("\"{}\"", cell.replace('"', "\"\""))).collect();
            prop_assert_eq!(records(&line.join(",")).unwrap(), vec![(1, cells)]);
        }

        #[test]
        fn no_text_makes_it_panic(text in "[a\",\n\r]{0,30}") {
            let _ = csv(&text);
        }
    }
}
