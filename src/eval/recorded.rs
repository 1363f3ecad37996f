//! Cases out of the call log: what was asked, and the answers that were given, with their cost and time.

use std::time::Duration;

use serde_json::{Map, Value};

use crate::{
    eval::{
        answer::Answer,
        suite::{Calls, Case, Recorded},
    },
    record::CallRow,
    store::{
        ports::StoreError,
        records::ports::{Bodies, CallLog, Filter},
    },
    units::NanoUsd,
    wire::sse,
};

/// Calls fetched at a time.
const PAGE: usize = 200;
/// The only endpoint whose calls can be asked again here.
const ENDPOINT: &str = "chat_completions";
/// Of a request, what does not go on: the candidate has its own model, and whole replies are asked for.
const DROPPED: [&str; 4] = ["model", "messages", "stream", "stream_options"];

/// What was found in the log.
#[derive(Debug, Default)]
pub struct Found {
    /// Cases, the latest call first.
    pub cases: Vec<Case>,
    /// Calls whose bodies are not kept.
    pub without_bodies: usize,
    /// Calls whose bodies are kept but cut, or are no chat completion.
    pub unreadable: usize,
}

/// Reads the calls that `wanted` means, as seen at `now_ms` (milliseconds since 1970).
///
/// # Errors
/// When the log cannot be read.
pub async fn read(log: &dyn CallLog, wanted: &Calls, now_ms: u64) -> Result<Found, StoreError> {
    let since = wanted.since.map(|since| u64::try_from(since.as_millis()).unwrap_or(u64::MAX));
    let filter = Filter {
        since_ms: since.map(|since| now_ms.saturating_sub(since)),
        model: wanted.model.clone(),
        endpoint: Some(ENDPOINT.to_owned()),
        outcome: Some(wanted.outcome),
        tag: wanted.tag.clone(),
        ..Filter::default()
    };
    let (mut found, mut after) = (Found::default(), None);
    loop {
        let page = log.page(filter.clone(), after, PAGE).await?;
        for row in &page.rows {
            if found.cases.len() >= wanted.limit {
                return Ok(found);
            }
            found.add(row, log.bodies(row.id.clone()).await?);
        }
        after = page.next;
        if after.is_none() {
            return Ok(found);
        }
    }
}

impl Found {
    fn add(&mut self, row: &CallRow, bodies: Option<Bodies>) {
        let texts = bodies.and_then(|bodies| Some((bodies.request?, bodies.reply?)));
        let Some((request, reply)) = texts else {
            self.without_bodies += 1;
            return;
        };
        let case = if request.cut || reply.cut { None } else { case(row, &request.text, &reply.text) };
        match case {
            Some(case) => self.cases.push(case),
            None => self.unreadable += 1,
        }
    }

    /// Why there is no case, and the mend.
    #[must_use]
    pub fn nothing(&self) -> String {
        if self.without_bodies > 0 {
            return format!(
                "the log has {} such calls, but not what they sent and received: write `calls: {{ bodies: full }}` into the gateway's \
                 configuration, and calls from then on can be asked again",
                self.without_bodies
            );
        }
        if self.unreadable > 0 {
            return format!(
                "the bodies of all {} such calls are cut or no chat completion: raise `calls: {{ body_max: … }}`",
                self.unreadable
            );
        }
        "the log has no such call".to_owned()
    }
}

fn case(row: &CallRow, request: &str, reply: &str) -> Option<Case> {
    let request: Map<String, Value> = serde_json::from_str(request).ok()?;
    let messages = request.get("messages")?.as_array()?.clone();
    let answer = answer(reply)?;
    let parameters = request.into_iter().filter(|(name, _)| !DROPPED.contains(&name.as_str())).collect();
    Some(Case {
        id: row.id.to_string(),
        messages,
        variables: Map::new(),
        expected: Value::String(answer.text.clone()),
        label: Value::Null,
        parameters,
        tags: row.tags.iter().map(|(tag, value)| format!("{tag}={value}")).collect(),
        recorded: Some(Recorded {
            answer,
            model: row.target.as_deref().map(str::to_owned),
            latency: Some(Duration::from_micros(row.duration_us)),
            cost: row.priced.then_some(NanoUsd(row.cost_nanousd)),
            input_tokens: Some(row.input_tokens),
            output_tokens: Some(row.output_tokens),
        }),
    })
}

/// The answer in a reply, whole or streamed.
fn answer(reply: &str) -> Option<Answer> {
    if let Ok(whole) = serde_json::from_str::<Value>(reply) {
        return Answer::of_reply(&whole);
    }
    let mut chunks = Vec::new();
    let mut parser = sse::Parser::default();
    let mut take = |event: sse::Event<'_>| chunks.extend(serde_json::from_slice::<Value>(event.data).ok());
    parser.push(reply.as_bytes(), &mut take);
    parser.finish(&mut take);
    Answer::of_chunks(&chunks)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_streamed_reply_is_put_together() {
        let stream = "data: {\"choices\":[{\"delta\":{\"content\":\"Hel\"}}]}\n\ndata: {\"choices\":[{\"delta\":{\"content\":\"lo\"},\"finish_reason\":\"stop\"}]}\n\ndata: [DONE]\n\n";
        assert_eq!(answer(stream).unwrap().text, "Hello");
        assert_eq!(answer("{\"choices\":[{\"message\":{\"content\":\"Hello\"}}]}").unwrap().text, "Hello");
        assert_eq!(answer("{\"error\":{}}"), None);
        assert_eq!(answer("nonsense"), None);
    }

    #[test]
    fn a_log_without_bodies_says_how_to_keep_them() {
        let none = Found { without_bodies: 3, ..Found::default() };
        assert!(none.nothing().contains("`calls: { bodies: full }`"));
        assert_eq!(Found::default().nothing(), "the log has no such call");
    }
}
