//! Comma-separated values (RFC 4180): written for spreadsheets, read from providers' exports.

/// One line, ended. What could begin a formula in a spreadsheet is written as text.
pub(super) fn line<F: AsRef<str>>(fields: impl IntoIterator<Item = F>) -> String {
    let fields: Vec<String> = fields.into_iter().map(|field| escaped(field.as_ref())).collect();
    fields.join(",") + "\r\n"
}

fn escaped(field: &str) -> String {
    // Names come from clients: `=HYPERLINK(…)` must not run in a spreadsheet.
    let is_formula = field.starts_with(['=', '+', '-', '@', '\t', '\r']) && field.parse::<f64>().is_err();
    let field = if is_formula { format!("'{field}") } else { field.to_owned() };
    if field.contains([',', '"', '\n', '\r']) { format!("\"{}\"", field.replace('"', "\"\"")) } else { field }
}

/// The records of a text, each a list of fields. A byte order mark is skipped, and so are empty lines.
pub(super) fn records(text: &str) -> Vec<Vec<String>> {
    let mut records = Vec::new();
    let (mut record, mut field, mut quoted) = (Vec::new(), String::new(), false);
    let mut characters = text.trim_start_matches('\u{feff}').chars().peekable();
    while let Some(c) = characters.next() {
        match c {
            '"' if quoted && characters.peek() == Some(&'"') => field.extend(characters.next()),
            '"' => quoted = !quoted,
            ',' if !quoted => record.push(std::mem::take(&mut field)),
            '\r' if !quoted && characters.peek() == Some(&'\n') => {}
            '\n' if !quoted => end(&mut records, &mut record, &mut field),
            c => field.push(c),
        }
    }
    end(&mut records, &mut record, &mut field);
    records
}

fn end(records: &mut Vec<Vec<String>>, record: &mut Vec<String>, field: &mut String) {
    record.push(std::mem::take(field));
    let record = std::mem::take(record);
    if record.iter().any(|field| !field.is_empty()) {
        records.push(record);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_back() {
        let fields = ["plain", "a,b", "say \"hi\"", "two\nlines", "", "-1.5"];
        assert_eq!(
            records(&(line(fields) + "\r\n" + &line(["x"]))),
            vec![fields.map(str::to_owned).to_vec(), vec!["x".to_owned()]]
        );
    }

    #[test]
    fn nothing_begins_a_formula() {
        assert_eq!(line(["=1+1", "@x", "-2"]), "'=1+1,'@x,-2\r\n");
    }
}
