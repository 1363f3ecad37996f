//! `tollgate count`: tokens of chat requests or texts, a line of JSON in, a line of JSON out.

use std::io::{BufRead, Read, Write};

use anyhow::Context;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::{
    policy::tokens::{self, Encoding, chat},
    units::Tokens,
};

/// A longer line is an error of its own, so that memory stays bounded.
const LINE_BYTES_MAX: u64 = 64 << 20;

/// Counts each line of `input` and answers on a line of `output`, in order, as it comes.
///
/// A line is a request body (chat completions, responses, embeddings, Anthropic messages) or
/// `{"encoding": "o200k_base", "text": "…"}`; also `{"model": "gpt-4o", "text": "…"}`. The answer is `{"tokens": n}`, or
/// `{"error": "…", "line": n}` for a line that is neither. Empty lines have no answer.
///
/// Returns whether all lines could be counted.
///
/// # Errors
/// When `input` cannot be read or `output` not be written.
pub fn run(mut input: impl BufRead, mut output: impl Write) -> anyhow::Result<bool> {
    let mut all_counted = true;
    let mut line = Vec::new();
    for number in 1_u64.. {
        line.clear();
        let read = input.by_ref().take(LINE_BYTES_MAX).read_until(b'\n', &mut line).context("cannot read the input")?;
        if read == 0 {
            break;
        }
        let cut = read as u64 == LINE_BYTES_MAX && line.last() != Some(&b'\n');
        if cut {
            input.skip_until(b'\n').context("cannot read the input")?;
        }
        if line.trim_ascii().is_empty() {
            continue;
        }
        let counted = if cut { Err(format!("longer than {LINE_BYTES_MAX} bytes")) } else { count(&line) };
        let answer = match counted {
            Ok(Tokens(tokens)) => json!({ "tokens": tokens }),
            Err(error) => {
                all_counted = false;
                json!({ "error": error, "line": number })
            }
        };
        writeln!(output, "{answer}").and_then(|()| output.flush()).context("cannot write the counts")?;
    }
    Ok(all_counted)
}

/// A text with its encoding or its model.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Text {
    text: String,
    encoding: Option<String>,
    model: Option<String>,
}

fn count(line: &[u8]) -> Result<Tokens, String> {
    let request: Value = serde_json::from_slice(line).map_err(|e| format!("not JSON: {e}"))?;
    let Some(fields) = request.as_object() else { return Err("not a JSON object".to_owned()) };
    if fields.contains_key("text") || fields.contains_key("encoding") {
        let text = Text::deserialize(request).map_err(|e| e.to_string())?;
        return Ok(tokens::count_exact(encoding_of(&text)?, &text.text));
    }
    if !["messages", "input", "prompt"].iter().any(|key| fields.contains_key(*key)) {
        return Err("neither a request (`messages`, `input` or `prompt`) nor a text with its `encoding`".to_owned());
    }
    let model = fields.get("model").and_then(Value::as_str).ok_or("`model` is missing")?;
    Ok(chat::count_exact(&request, model).tokens)
}

fn encoding_of(text: &Text) -> Result<Encoding, String> {
    match (&text.encoding, &text.model) {
        (Some(name), _) => Encoding::by_name(name).ok_or_else(|| {
            let known: Vec<&str> = Encoding::names().collect();
            format!("unknown encoding `{name}`; known are {}", known.join(", "))
        }),
        (None, Some(model)) => Ok(Encoding::for_model(model).0),
        (None, None) => Err("a `text` needs its `encoding` or `model`".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answers(input: &str) -> (Vec<Value>, bool) {
        let mut output = Vec::new();
        let all_counted = run(input.as_bytes(), &mut output).unwrap();
        let lines = output.split(|b| *b == b'\n').filter(|line| !line.is_empty());
        (lines.map(|line| serde_json::from_slice(line).unwrap()).collect(), all_counted)
    }

    #[test]
    fn each_line_is_answered_in_order() {
        let input = "{\"model\":\"gpt-4o\",\"messages\":[{\"role\":\"user\",\"content\":\"Hello there\"}]}\n\
                     \n{\"encoding\":\"cl100k_base\",\"text\":\"tiktoken is great!\"}\r\n\
                     {\"model\":\"text-embedding-3-small\",\"input\":\"Hello there\"}";
        let expected = vec![json!({"tokens": 9}), json!({"tokens": 6}), json!({"tokens": 2})];
        assert_eq!(answers(input), (expected, true));
    }

    #[test]
    fn a_bad_line_is_an_error_with_its_number_and_the_others_are_counted() {
        let input = "nonsense\n[1]\n{\"encoding\":\"x\",\"text\":\"\"}\n{\"text\":\"a\"}\n{\"messages\":[]}\n{\"a\":1}\n\
                     {\"encoding\":\"o200k_base\",\"text\":\"a\",\"oops\":1}\n{\"encoding\":\"o200k_base\",\"text\":\"a\"}\n";
        let (answers, all_counted) = answers(input);
        assert!(!all_counted);
        assert_eq!(answers.len(), 8);
        for (i, answer) in answers[..7].iter().enumerate() {
            assert!(answer["error"].is_string() && answer["line"] == i + 1, "{answer}");
        }
        assert_eq!(answers[7], json!({"tokens": 1}));
    }

    #[test]
    fn ill_formed_utf8_is_an_error_and_no_end() {
        let mut output = Vec::new();
        let input = b"\"\xff\"\n{\"encoding\":\"o200k_base\",\"text\":\"a\"}\n";
        assert!(!run(&input[..], &mut output).unwrap());
        assert_eq!(String::from_utf8(output).unwrap().lines().nth(1), Some("{\"tokens\":1}"));
    }
}
