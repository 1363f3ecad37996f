//! Clients: one that speaks HTTP/1.1 and JSON for the ordinary tests, one that says exact bytes for the hostile ones.

use std::{net::SocketAddr, time::Duration};

use serde_json::Value;
use tokio::{io::AsyncWriteExt, net::TcpStream};

use super::{
    DEADLINE, soon,
    wire::{Framing, Headers, Wire},
    within,
};

/// A request to be sent on a connection of its own.
#[derive(Debug, Clone)]
pub(crate) struct Call {
    address: SocketAddr,
    method: String,
    target: String,
    headers: Vec<(String, String)>,
    body: Option<Vec<u8>>,
}

impl Call {
    pub(crate) fn new(address: SocketAddr, method: &str, target: &str) -> Self {
        Self { address, method: method.to_owned(), target: target.to_owned(), headers: Vec::new(), body: None }
    }

    /// Presents `key` as a bearer.
    pub(crate) fn key(self, key: &str) -> Self {
        self.header("authorization", &format!("Bearer {key}"))
    }

    pub(crate) fn header(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }

    pub(crate) fn user(self, user: &str) -> Self {
        self.header("x-tollgate-user", user)
    }

    pub(crate) fn json(self, body: &Value) -> Self {
        self.body("application/json", body.to_string())
    }

    pub(crate) fn body(mut self, content_type: &str, body: impl Into<Vec<u8>>) -> Self {
        self.body = Some(body.into());
        self.header("content-type", content_type)
    }

    /// Sends each of `calls` in turn on one connection, for tests that need thousands of them.
    pub(crate) async fn send_all(address: SocketAddr, calls: &[Self]) -> Vec<Response> {
        let mut client = RawClient::connect(address).await;
        let mut responses = Vec::with_capacity(calls.len());
        for call in calls {
            client.send(call.bytes()).await;
            responses.push(client.response_to(&call.method).await.expect("a kept connection"));
        }
        responses
    }

    /// The request as it is written on the wire.
    pub(crate) fn bytes(&self) -> Vec<u8> {
        let mut head = format!("{} {} HTTP/1.1\r\nhost: {}\r\n", self.method, self.target, self.address);
        for (name, value) in &self.headers {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        if let Some(body) = &self.body {
            head.push_str(&format!("content-length: {}\r\n", body.len()));
        }
        head.push_str("\r\n");
        [head.as_bytes(), self.body.as_deref().unwrap_or_default()].concat()
    }

    /// Sends it and reads the whole response.
    pub(crate) async fn send(&self) -> Response {
        let streaming = self.open().await;
        streaming.finish().await
    }

    /// Like [`Call::send`], for a call made on the spot.
    pub(crate) async fn send_owned(self) -> Response {
        self.send().await
    }

    /// Like [`Call::open`], for a call made on the spot.
    pub(crate) async fn open_owned(self) -> Streaming {
        self.open().await
    }

    /// Sends it and reads the response's head.
    pub(crate) async fn open(&self) -> Streaming {
        let mut client = RawClient::connect(self.address).await;
        client.send(&self.bytes()).await;
        client.begin(&self.method).await
    }
}

/// A complete response.
#[derive(Debug, Clone)]
pub(crate) struct Response {
    pub(crate) status: u16,
    pub(crate) headers: Headers,
    pub(crate) body: Vec<u8>,
    /// False when the connection ended before the body's framing said so.
    pub(crate) complete: bool,
}

impl Response {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)
    }

    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("not JSON ({error}): {}", self.text()))
    }

    /// `error.code` of an error in OpenAI's shape.
    pub(crate) fn error_code(&self) -> String {
        self.json()["error"]["code"].as_str().unwrap_or_else(|| panic!("no error.code: {}", self.text())).to_owned()
    }

    /// Fails, with the body shown, unless the status is `status`.
    #[track_caller]
    pub(crate) fn expect(self, status: u16) -> Self {
        assert_eq!(self.status, status, "{}", self.text());
        self
    }
}

/// A response whose head is read and whose body is still coming.
#[derive(Debug)]
pub(crate) struct Streaming {
    pub(crate) status: u16,
    pub(crate) headers: Headers,
    wire: Wire<TcpStream>,
    framing: Framing,
}

impl Streaming {
    /// The next piece of the body; `None` at its proper end.
    pub(crate) async fn next_chunk(&mut self) -> Option<Vec<u8>> {
        let piece = soon("the next chunk of a response", self.wire.piece(&mut self.framing)).await;
        piece.expect("a body that does not break off")
    }

    /// Reads until the body so far contains `count` blank lines, that is, complete events.
    pub(crate) async fn read_events(&mut self, count: usize) -> String {
        let mut seen = String::new();
        while seen.replace("\r\n", "\n").matches("\n\n").count() < count {
            let piece = self.next_chunk().await.unwrap_or_else(|| panic!("ended before {count} events: {seen:?}"));
            seen.push_str(&String::from_utf8_lossy(&piece));
        }
        seen
    }

    /// The rest of the body, broken off or not.
    pub(crate) async fn finish(mut self) -> Response {
        let (mut body, mut complete) = (Vec::new(), true);
        loop {
            match soon("the rest of a response", self.wire.piece(&mut self.framing)).await {
                Ok(Some(piece)) => body.extend_from_slice(&piece),
                Ok(None) => break,
                Err(_) => {
                    complete = false;
                    break;
                }
            }
        }
        Response { status: self.status, headers: self.headers, body, complete }
    }

    /// Closes the connection now.
    pub(crate) fn hang_up(self) {}
}

/// A connection on which the test says exact bytes.
#[derive(Debug)]
pub(crate) struct RawClient {
    wire: Wire<TcpStream>,
    /// How long it waits for a response's head.
    patience: Duration,
}

impl RawClient {
    pub(crate) async fn connect(address: SocketAddr) -> Self {
        let stream = soon("a connection", TcpStream::connect(address)).await.expect("the gateway listens");
        stream.set_nodelay(true).expect("a TCP socket");
        Self { wire: Wire::new(stream), patience: DEADLINE }
    }

    /// Like [`RawClient::connect`], where nobody may be listening.
    pub(crate) async fn try_connect(address: SocketAddr) -> Option<Self> {
        let stream = soon("a connection or its refusal", TcpStream::connect(address)).await.ok()?;
        stream.set_nodelay(true).ok()?;
        Some(Self { wire: Wire::new(stream), patience: DEADLINE })
    }

    /// Waits so long for the head of a response, from a gateway that is kept from giving one.
    pub(crate) fn patient(self, patience: Duration) -> Self {
        Self { patience, ..self }
    }

    /// Writes; a peer that has closed already is not an error here, its answer is what counts.
    pub(crate) async fn send(&mut self, bytes: impl AsRef<[u8]>) {
        let _ = soon("a write", self.wire.stream.write_all(bytes.as_ref())).await;
    }

    /// Says that no more bytes will come, and goes on listening.
    pub(crate) async fn half_close(&mut self) {
        self.wire.stream.shutdown().await.expect("an open socket");
    }

    /// The head of the next final response to a `method` request; the connection goes with it.
    pub(crate) async fn begin(mut self, method: &str) -> Streaming {
        let (status, headers) = self.final_head().await.expect("a response, not a closed connection");
        let framing = Framing::of_response(method, status, &headers);
        Streaming { status, headers, wire: self.wire, framing }
    }

    /// The next final response to a `method` request; `None` when the peer closed instead.
    pub(crate) async fn response_to(&mut self, method: &str) -> Option<Response> {
        let (status, headers) = self.final_head().await?;
        let framing = Framing::of_response(method, status, &headers);
        let read = soon("a response's body", self.wire.body(framing)).await;
        let complete = read.is_ok();
        Some(Response { status, headers, body: read.unwrap_or_default(), complete })
    }

    /// Like [`RawClient::response_to`], for anything with a body.
    pub(crate) async fn response(&mut self) -> Option<Response> {
        self.response_to("POST").await
    }

    /// The next status line and headers, informational ones included; `None` when the peer closed instead.
    pub(crate) async fn any_head(&mut self) -> Option<(u16, Headers)> {
        let head = within(self.patience, "a response's head", self.wire.head()).await.ok().flatten()?;
        let status = head.start.split(' ').nth(1).and_then(|code| code.parse().ok());
        Some((status.unwrap_or_else(|| panic!("not a status line: {:?}", head.start)), head.headers))
    }

    async fn final_head(&mut self) -> Option<(u16, Headers)> {
        loop {
            let (status, headers) = self.any_head().await?;
            if status >= 200 || status == 101 {
                return Some((status, headers));
            }
        }
    }

    /// Exactly `length` further bytes.
    pub(crate) async fn exactly(&mut self, length: usize) -> Vec<u8> {
        soon("bytes", self.wire.exactly(length)).await.expect("an open connection")
    }

    /// Everything until the peer closes or resets.
    pub(crate) async fn read_to_end(&mut self) -> Vec<u8> {
        while soon("the end of the connection", self.wire.fill()).await.is_ok_and(|length| length > 0) {}
        std::mem::take(&mut self.wire.pending)
    }
}
