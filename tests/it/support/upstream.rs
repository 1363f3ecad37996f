//! A scripted provider on port 0: says exactly the bytes it is told to, records what it heard, notices who hung up.
//!
//! A handler that panics fails the test when the [`Upstream`] is dropped.

use std::{
    collections::VecDeque,
    io,
    net::SocketAddr,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, AtomicUsize, Ordering::SeqCst},
    },
    time::{Duration, Instant},
};

use serde_json::Value;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::Semaphore,
    task::{AbortHandle, JoinSet},
};

use super::{
    DEADLINE, wait_until,
    wire::{Framing, Headers, Wire},
};

/// What a client sent, as it came.
#[derive(Debug, Clone)]
pub(crate) struct Request {
    /// Which connection it came on, from 0.
    pub(crate) connection: usize,
    /// When its head was complete.
    pub(crate) at: Instant,
    pub(crate) raw_head: Vec<u8>,
    pub(crate) method: String,
    /// Path and query as sent.
    pub(crate) target: String,
    pub(crate) headers: Headers,
    pub(crate) body: Vec<u8>,
    /// False when the connection ended inside the body.
    pub(crate) complete: bool,
}

impl Request {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)
    }

    pub(crate) fn path(&self) -> &str {
        self.target.split('?').next().unwrap_or_default()
    }

    /// The body as JSON.
    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body)
            .unwrap_or_else(|error| panic!("not JSON ({error}): {:?}", String::from_utf8_lossy(&self.body)))
    }

    fn wants_stream(&self) -> bool {
        serde_json::from_slice::<Value>(&self.body).is_ok_and(|body| body["stream"] == true)
    }

    fn wants_usage(&self) -> bool {
        serde_json::from_slice::<Value>(&self.body).is_ok_and(|body| body["stream_options"]["include_usage"] == true)
    }
}

/// Holds a script until the test lets it go on.
#[derive(Debug, Clone)]
pub(crate) struct Gate(Arc<Semaphore>);

impl Gate {
    pub(crate) fn closed() -> Self {
        Self(Arc::new(Semaphore::new(0)))
    }

    /// Lets `steps` waiting scripts take one step each.
    pub(crate) fn open(&self, steps: usize) {
        self.0.add_permits(steps);
    }

    async fn pass(&self) {
        self.0.acquire().await.expect("never closed").forget();
    }
}

#[derive(Debug, Clone)]
enum Step {
    Data(Vec<u8>),
    Repeat(Vec<u8>, usize),
    Gate(Gate),
    Cut,
    Reset,
    Hang,
    Echo,
}

/// What to answer: head, framing, and the steps of the body.
#[derive(Debug, Clone)]
pub(crate) struct Reply {
    informational: Vec<u8>,
    status: u16,
    headers: Vec<(String, String)>,
    framing: Option<Framing>,
    steps: Vec<Step>,
    trailers: Vec<u8>,
    raw: bool,
    closes: bool,
}

impl Reply {
    fn empty(status: u16, framing: Option<Framing>) -> Self {
        let (informational, trailers) = (Vec::new(), Vec::new());
        Self {
            informational,
            status,
            headers: Vec::new(),
            framing,
            steps: Vec::new(),
            trailers,
            raw: false,
            closes: false,
        }
    }

    /// A JSON body with a `content-length`.
    pub(crate) fn json(status: u16, body: &Value) -> Self {
        Self::bytes(status, "application/json", body.to_string())
    }

    /// Any body with a `content-length`.
    pub(crate) fn bytes(status: u16, content_type: &str, body: impl Into<Vec<u8>>) -> Self {
        let body = body.into();
        Self::empty(status, Some(Framing::Length(body.len()))).header("content-type", content_type).data(body)
    }

    /// A chunked event stream; each [`Reply::data`] is one chunk and one write.
    pub(crate) fn stream() -> Self {
        Self::empty(200, Some(Framing::Chunked)).header("content-type", "text/event-stream")
    }

    /// A head without a body.
    pub(crate) fn bodyless(status: u16) -> Self {
        Self::empty(status, None)
    }

    /// Bytes said instead of a well-formed reply.
    pub(crate) fn raw(bytes: impl Into<Vec<u8>>) -> Self {
        let mut reply = Self::empty(200, None).data(bytes);
        reply.raw = true;
        reply
    }

    /// Nothing at all, until the peer gives up.
    pub(crate) fn hang() -> Self {
        let mut reply = Self::raw("");
        reply.steps.push(Step::Hang);
        reply
    }

    /// 101, then every byte back.
    pub(crate) fn upgrade_echo() -> Self {
        let mut reply = Self::raw(
            "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\nsec-websocket-accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n",
        );
        reply.steps.push(Step::Echo);
        reply
    }

    pub(crate) fn header(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }

    pub(crate) fn data(mut self, bytes: impl Into<Vec<u8>>) -> Self {
        self.steps.push(Step::Data(bytes.into()));
        self
    }

    /// The same bytes `times` times, for bodies larger than memory should hold.
    pub(crate) fn repeat(mut self, bytes: impl Into<Vec<u8>>, times: usize) -> Self {
        self.steps.push(Step::Repeat(bytes.into(), times));
        self
    }

    pub(crate) fn gate(mut self, gate: &Gate) -> Self {
        self.steps.push(Step::Gate(gate.clone()));
        self
    }

    /// Closes the connection here, without the body's end.
    pub(crate) fn cut(mut self) -> Self {
        self.steps.push(Step::Cut);
        self
    }

    /// Resets the connection here.
    pub(crate) fn reset(mut self) -> Self {
        self.steps.push(Step::Reset);
        self
    }

    /// Waits here until the peer leaves.
    pub(crate) fn then_hang(mut self) -> Self {
        self.steps.push(Step::Hang);
        self
    }

    /// Says these bytes before the head: `100`, `103`.
    pub(crate) fn informational(mut self, bytes: &str) -> Self {
        self.informational = bytes.as_bytes().to_vec();
        self
    }

    /// Trailer lines after a chunked body.
    pub(crate) fn trailers(mut self, lines: &str) -> Self {
        self.trailers = lines.as_bytes().to_vec();
        self
    }

    /// Closes the idle connection after this reply, without having announced it.
    pub(crate) fn then_close(mut self) -> Self {
        self.closes = true;
        self
    }

    fn head(&self) -> Vec<u8> {
        let mut head = format!("HTTP/1.1 {} Scripted\r\n", self.status);
        for (name, value) in &self.headers {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        match self.framing {
            Some(Framing::Length(length)) => head.push_str(&format!("content-length: {length}\r\n")),
            Some(Framing::Chunked) => head.push_str("transfer-encoding: chunked\r\n"),
            _ => {}
        }
        head.push_str("\r\n");
        head.into_bytes()
    }
}

/// A peer that went away before the reply was complete.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Abort {
    pub(crate) at: Instant,
}

type Handler = Box<dyn Fn(&Request) -> Reply + Send + Sync>;

struct State {
    handler: Handler,
    scripted: Mutex<VecDeque<Reply>>,
    requests: Mutex<Vec<Request>>,
    taken: AtomicUsize,
    connections: AtomicUsize,
    aborts: Mutex<Vec<Abort>>,
    bytes_written: AtomicU64,
    panic: Mutex<Option<String>>,
}

/// The provider. Dropped, it stops listening and hangs up.
pub(crate) struct Upstream {
    state: Arc<State>,
    address: SocketAddr,
    accepting: AbortHandle,
}

impl Upstream {
    /// Answers as OpenAI does: see [`openai`].
    pub(crate) async fn run() -> Self {
        Self::answering(openai).await
    }

    /// Answers every request with the same reply.
    pub(crate) async fn always(reply: Reply) -> Self {
        Self::answering(move |_| reply.clone()).await
    }

    /// Answers with `handler`.
    pub(crate) async fn answering(handler: impl Fn(&Request) -> Reply + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("bound above");
        let state = Arc::new(State {
            handler: Box::new(handler),
            scripted: Mutex::default(),
            requests: Mutex::default(),
            taken: AtomicUsize::new(0),
            connections: AtomicUsize::new(0),
            aborts: Mutex::default(),
            bytes_written: AtomicU64::new(0),
            panic: Mutex::default(),
        });
        let accepting = tokio::spawn(accept(listener, Arc::clone(&state))).abort_handle();
        Self { state, address, accepting }
    }

    /// The next reply, before the handler is asked again.
    pub(crate) fn script(&self, reply: Reply) {
        self.state.scripted.lock().unwrap().push_back(reply);
    }

    /// `http://127.0.0.1:PORT`
    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    pub(crate) fn requests(&self) -> Vec<Request> {
        self.state.requests.lock().unwrap().clone()
    }

    pub(crate) fn request_count(&self) -> usize {
        self.state.requests.lock().unwrap().len()
    }

    pub(crate) fn connection_count(&self) -> usize {
        self.state.connections.load(SeqCst)
    }

    /// The next request that no one has looked at; waits for it.
    pub(crate) async fn next_request(&self) -> Request {
        let index = self.state.taken.fetch_add(1, SeqCst);
        wait_until("a request reaches the upstream", DEADLINE, || self.request_count() > index).await;
        self.state.requests.lock().unwrap()[index].clone()
    }

    pub(crate) fn aborts(&self) -> Vec<Abort> {
        self.state.aborts.lock().unwrap().clone()
    }

    /// Waits until `count` peers have gone before their replies were complete.
    pub(crate) async fn wait_for_aborts(&self, count: usize, deadline: Duration) -> Vec<Abort> {
        wait_until("the upstream sees its peers hang up", deadline, || self.aborts().len() >= count).await;
        self.aborts()
    }

    pub(crate) fn bytes_written(&self) -> u64 {
        self.state.bytes_written.load(SeqCst)
    }
}

impl Drop for Upstream {
    fn drop(&mut self) {
        self.accepting.abort();
        let panic = self.state.panic.lock().unwrap().take();
        if let (Some(message), false) = (panic, std::thread::panicking()) {
            panic!("the upstream's handler panicked: {message}");
        }
    }
}

/// An address where nobody listens.
pub(crate) async fn closed_port() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    format!("http://{}", listener.local_addr().expect("bound above"))
}

async fn accept(listener: TcpListener, state: Arc<State>) {
    let mut connections = JoinSet::new();
    while let Ok((stream, _)) = listener.accept().await {
        let connection = state.connections.fetch_add(1, SeqCst);
        stream.set_nodelay(true).expect("a TCP socket");
        let state = Arc::clone(&state);
        connections.spawn(async move {
            // An error here is the peer's leaving; scripts that care about it look at `aborts`.
            let _ = serve(Wire::new(stream), connection, &state).await;
        });
    }
}

async fn serve(mut wire: Wire<TcpStream>, connection: usize, state: &State) -> io::Result<()> {
    while let Some(request) = read_request(&mut wire, connection).await? {
        let complete = request.complete;
        state.requests.lock().unwrap().push(request.clone());
        if !complete {
            return Ok(());
        }
        let scripted = state.scripted.lock().unwrap().pop_front();
        let reply = match scripted {
            Some(reply) => reply,
            None => ask(state, &request),
        };
        let mut exchange = Exchange { wire: &mut wire, state };
        match exchange.say(&request, &reply).await {
            Ok(true) if !reply.closes => {}
            Ok(_) => return Ok(()),
            Err(error) => {
                state.aborts.lock().unwrap().push(Abort { at: Instant::now() });
                return Err(error);
            }
        }
    }
    Ok(())
}

fn ask(state: &State, request: &Request) -> Reply {
    catch_unwind(AssertUnwindSafe(|| (state.handler)(request))).unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().cloned();
        let text = text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
        *state.panic.lock().unwrap() = Some(text.unwrap_or_else(|| "a panic without words".to_owned()));
        Reply::bytes(500, "text/plain", "")
    })
}

async fn read_request(wire: &mut Wire<TcpStream>, connection: usize) -> io::Result<Option<Request>> {
    let Some(head) = wire.head().await? else { return Ok(None) };
    let at = Instant::now();
    let mut words = head.start.split(' ').map(str::to_owned);
    let (method, target) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    let (body, complete) = match wire.body(Framing::of_request(&head.headers)).await {
        Ok(body) => (body, true),
        Err(_) => (Vec::new(), false),
    };
    Ok(Some(Request { connection, at, raw_head: head.raw, method, target, headers: head.headers, body, complete }))
}

struct Exchange<'a> {
    wire: &'a mut Wire<TcpStream>,
    state: &'a State,
}

impl Exchange<'_> {
    /// Plays the script; false when it ended the connection. An error means that the peer left first.
    async fn say(&mut self, request: &Request, reply: &Reply) -> io::Result<bool> {
        let mut opening = reply.informational.clone();
        if !reply.raw {
            opening.extend_from_slice(&reply.head());
        }
        self.write(&opening).await?;
        let chunked = reply.framing == Some(Framing::Chunked) && !reply.raw;
        if request.method == "HEAD" && !reply.raw {
            return Ok(true);
        }
        for step in &reply.steps {
            match step {
                Step::Data(bytes) => self.piece(bytes, chunked).await?,
                Step::Repeat(bytes, times) => {
                    for _ in 0..*times {
                        self.piece(bytes, chunked).await?;
                    }
                }
                Step::Gate(gate) => self.wait(gate.pass()).await?,
                Step::Hang => self.wait(std::future::pending()).await?,
                Step::Cut => return Ok(false),
                Step::Reset => {
                    socket2::SockRef::from(&self.wire.stream).set_linger(Some(Duration::ZERO))?;
                    return Ok(false);
                }
                Step::Echo => return self.echo().await.map(|()| false),
            }
        }
        if chunked {
            let end = [b"0\r\n".as_slice(), &reply.trailers, b"\r\n"].concat();
            self.write(&end).await?;
        }
        Ok(true)
    }

    async fn piece(&mut self, bytes: &[u8], chunked: bool) -> io::Result<()> {
        if !chunked {
            return self.write(bytes).await;
        }
        if bytes.is_empty() {
            return Ok(());
        }
        let framed = [format!("{:x}\r\n", bytes.len()).as_bytes(), bytes, b"\r\n"].concat();
        self.write(&framed).await
    }

    async fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.wire.stream.write_all(bytes).await?;
        self.wire.stream.flush().await?;
        self.state.bytes_written.fetch_add(bytes.len() as u64, SeqCst);
        Ok(())
    }

    /// Waits for `step`, or fails as soon as the peer leaves.
    async fn wait(&mut self, step: impl Future<Output = ()>) -> io::Result<()> {
        tokio::pin!(step);
        loop {
            tokio::select! {
                () = &mut step => return Ok(()),
                read = self.wire.fill() => {
                    if read? == 0 {
                        return Err(io::ErrorKind::ConnectionAborted.into());
                    }
                }
            }
        }
    }

    async fn echo(&mut self) -> io::Result<()> {
        let early = std::mem::take(&mut self.wire.pending);
        self.write(&early).await?;
        let mut block = [0; 4096];
        loop {
            let length = self.wire.stream.read(&mut block).await?;
            if length == 0 {
                return Ok(());
            }
            self.write(&block[..length]).await?;
        }
    }
}

// === what an OpenAI server would say ===

/// Prompt and completion tokens that [`openai`] reports for every call.
pub(crate) const USAGE: (u64, u64) = (11, 3);

/// A small OpenAI: chat, completions, responses, embeddings, messages, models; usage in streams only when asked.
pub(crate) fn openai(request: &Request) -> Reply {
    match (request.method.as_str(), request.path()) {
        ("POST", path) if path.ends_with("/chat/completions") && request.wants_stream() => {
            chat_stream(&["one ", "two ", "three"], request.wants_usage().then_some(USAGE))
        }
        ("POST", path) if path.ends_with("/chat/completions") => {
            Reply::json(200, &chat_completion("one two three", USAGE))
        }
        ("POST", path) if path.ends_with("/embeddings") => Reply::json(200, &embeddings(USAGE.0)),
        ("POST", path) if path.ends_with("/messages") => Reply::json(200, &message(USAGE)),
        ("POST", path) if path.ends_with("/responses") => Reply::json(200, &response(USAGE)),
        ("GET", path) if path.ends_with("/models") => Reply::json(
            200,
            &serde_json::json!({"object": "list", "data": [{"id": "gpt-4o-mini", "object": "model", "created": 1, "owned_by": "upstream"}]}),
        ),
        (method, path) => Reply::json(200, &serde_json::json!({"object": "echo", "method": method, "path": path})),
    }
}

pub(crate) fn chat_completion(text: &str, (prompt, completion): (u64, u64)) -> Value {
    serde_json::json!({
        "id": "chatcmpl-1", "object": "chat.completion", "created": 1_700_000_000, "model": "gpt-4o-mini",
        "choices": [{"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion},
    })
}

/// One content event of a chat stream.
pub(crate) fn chunk(text: &str) -> String {
    let choice = serde_json::json!({"index": 0, "delta": {"content": text}, "finish_reason": null});
    event(
        &serde_json::json!({"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": "gpt-4o-mini", "choices": [choice]}),
    )
}

/// The event with which OpenAI reports usage: its `choices` are empty.
pub(crate) fn usage_chunk((prompt, completion): (u64, u64)) -> String {
    event(&serde_json::json!({
        "id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": "gpt-4o-mini", "choices": [],
        "usage": {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion},
    }))
}

pub(crate) const DONE: &str = "data: [DONE]\n\n";

/// One server-sent event with `value` on a line of its own.
pub(crate) fn event(value: &Value) -> String {
    format!("data: {value}\n\n")
}

/// A whole chat stream, one chunk per text.
pub(crate) fn chat_stream(texts: &[&str], usage: Option<(u64, u64)>) -> Reply {
    let mut reply = Reply::stream();
    for text in texts {
        reply = reply.data(chunk(text));
    }
    if let Some(usage) = usage {
        reply = reply.data(usage_chunk(usage));
    }
    reply.data(DONE)
}

fn embeddings(tokens: u64) -> Value {
    serde_json::json!({
        "object": "list", "model": "text-embedding-3-small", "data": [{"object": "embedding", "index": 0, "embedding": [0.25, -0.5]}],
        "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
    })
}

fn message((input, output): (u64, u64)) -> Value {
    serde_json::json!({
        "id": "msg_1", "type": "message", "role": "assistant", "model": "claude", "stop_reason": "end_turn", "stop_sequence": null,
        "content": [{"type": "text", "text": "one two three"}], "usage": {"input_tokens": input, "output_tokens": output},
    })
}

fn response((input, output): (u64, u64)) -> Value {
    serde_json::json!({
        "id": "resp_1", "object": "response", "created_at": 1, "status": "completed", "model": "gpt-4o-mini",
        "output": [{"type": "message", "id": "msg_1", "role": "assistant", "status": "completed", "content": [{"type": "output_text", "text": "one two three", "annotations": []}]}],
        "usage": {"input_tokens": input, "output_tokens": output, "total_tokens": input + output},
    })
}
