//! The provider: as little HTTP/1.1 as a benchmark can do with, so that what is measured is what stands before it.

use std::{io::Write, time::Duration};

use anyhow::Context;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    time::{MissedTickBehavior, interval},
};

use crate::load::{body_length, head_length};

/// Content chunks of a stream; usage and `[DONE]` follow where they are asked for.
pub(crate) const CHUNKS: usize = 100;
/// Time between two chunks: each is read, looked at and written by itself, as a model's tokens are.
pub(crate) const CHUNK_INTERVAL: Duration = Duration::from_millis(2);
/// Says that the prompt template came along; the load looks for it.
pub(crate) const SAW_PROMPT: &str = "x-mock-saw-prompt";

const REPLY: &str = r#"{"id":"chatcmpl-B9MBs8CjcvOU2jLn4n570S5qMJKcT","object":"chat.completion","created":1741569952,"model":"gpt-4o-mini-2024-07-18","choices":[{"index":0,"message":{"role":"assistant","content":"You can change the delivery address as long as the parcel has not left the warehouse: open the order, choose Edit address, and save. If it is already on its way, the carrier's link in your confirmation mail lets you redirect it to a parcel shop near you, free of charge, until the evening before delivery.","refusal":null,"annotations":[]},"logprobs":null,"finish_reason":"stop"}],"usage":{"prompt_tokens":187,"completion_tokens":62,"total_tokens":249,"prompt_tokens_details":{"cached_tokens":0,"audio_tokens":0},"completion_tokens_details":{"reasoning_tokens":0,"audio_tokens":0,"accepted_prediction_tokens":0,"rejected_prediction_tokens":0}},"service_tier":"default","system_fingerprint":"fp_b376dfbbd5"}"#;
const USAGE: &str = r#"data: {"id":"chatcmpl-B9MHDbslfkBeAs8l4bebGdFOJ6PeG","object":"chat.completion.chunk","created":1741570283,"model":"gpt-4o-mini-2024-07-18","service_tier":"default","system_fingerprint":"fp_b376dfbbd5","choices":[],"usage":{"prompt_tokens":187,"completion_tokens":100,"total_tokens":287,"prompt_tokens_details":{"cached_tokens":0,"audio_tokens":0},"completion_tokens_details":{"reasoning_tokens":0,"audio_tokens":0,"accepted_prediction_tokens":0,"rejected_prediction_tokens":0}}}

"#;

/// Serves until it is killed.
pub(crate) fn run() -> anyhow::Result<()> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(async {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
        writeln!(std::io::stdout(), "ready {}", listener.local_addr()?)?;
        loop {
            let (stream, _) = listener.accept().await?;
            // A connection that breaks is seen by whoever loads.
            tokio::spawn(async move { serve(stream).await.ok() });
        }
    })
}

async fn serve(mut stream: TcpStream) -> anyhow::Result<()> {
    stream.set_nodelay(true)?;
    let [plain, prompted] = [reply(""), reply(&format!("{SAW_PROMPT}: yes\r\n"))];
    let mut request = Vec::with_capacity(8 * 1024);
    loop {
        request.clear();
        let body = loop {
            if stream.read_buf(&mut request).await? == 0 {
                return Ok(());
            }
            let Some(head) = head_length(&request) else { continue };
            let length = body_length(&request[..head]).context("a content-length")?;
            if request.len() >= head + length {
                break &request[head..];
            }
        };
        if contains(body, br#""stream":true"#) {
            send_stream(&mut stream, contains(body, br#""include_usage":true"#)).await?;
        } else {
            let reply = if contains(body, b"assistant for Tollgate") { &prompted } else { &plain };
            stream.write_all(reply).await?;
        }
    }
}

fn contains(body: &[u8], text: &[u8]) -> bool {
    memchr::memmem::find(body, text).is_some()
}

fn reply(header: &str) -> Vec<u8> {
    let head = "HTTP/1.1 200 OK\r\ndate: Mon, 10 Mar 2025 01:25:52 GMT\r\ncontent-type: application/json\r\n\
        openai-organization: tollgate\r\nopenai-processing-ms: 411\r\nopenai-version: 2020-10-01\r\n\
        x-ratelimit-limit-requests: 30000\r\nx-ratelimit-remaining-requests: 29999\r\nx-ratelimit-reset-requests: 2ms\r\n\
        x-request-id: req_0f7a3a4d2c5b41b7a9a0c5d2f1e0b9d8\r\n";
    format!("{head}{header}content-length: {}\r\n\r\n{REPLY}", REPLY.len()).into_bytes()
}

/// As OpenAI does: with usage asked for, each chunk has a `usage: null`, and one more chunk has the figures.
async fn send_stream(stream: &mut TcpStream, usage: bool) -> anyhow::Result<()> {
    let mut ticks = interval(CHUNK_INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let null = if usage { r#","usage":null"# } else { "" };
    let event = format!(
        r#"data: {{"id":"chatcmpl-B9MHDbslfkBeAs8l4bebGdFOJ6PeG","object":"chat.completion.chunk","created":1741570283,"model":"gpt-4o-mini-2024-07-18","service_tier":"default","system_fingerprint":"fp_b376dfbbd5","choices":[{{"index":0,"delta":{{"content":" parcel"}},"logprobs":null,"finish_reason":null}}]{null}}}

"#
    );
    let event = framed(&event);
    stream
        .write_all(
            b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\ntransfer-encoding: chunked\r\n\r\n",
        )
        .await?;
    for _ in 0..CHUNKS {
        ticks.tick().await;
        stream.write_all(event.as_bytes()).await?;
    }
    let usage = if usage { framed(USAGE) } else { String::new() };
    let end = format!("{usage}{}0\r\n\r\n", framed("data: [DONE]\n\n"));
    stream.write_all(end.as_bytes()).await?;
    Ok(())
}

fn framed(event: &str) -> String {
    format!("{:x}\r\n{event}\r\n", event.len())
}
