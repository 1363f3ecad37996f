//! Each step of a call by itself, and the whole of it: what a change costs or wins before it is measured end to end.
//!
//! `cargo bench --bench hot_path`, or with a name (`-- splice`). Run times on a busy machine are no promises; compare
//! before and after a change in the same minute.

use std::{
    hint::black_box,
    io::{Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    path::Path,
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use jiff::Timestamp;
use serde_json::{Map, Value};
use tokio::runtime::Runtime;
use tollgate::{
    config::{self, Live, Origin, Snapshot},
    gateway::registrar::Registrar,
    policy::{
        limits::Limiter,
        scope::Facts,
        tokens::{self, Contents, Encoding},
    },
    process::Gateway,
    purses::{Claim, Purses},
    units::{NanoUsd, Tokens},
    wire::{
        edit,
        endpoint::Endpoint,
        json::{self, Edits, Scan},
        openai::usage_filter::UsageFilter,
        request,
        stream::StreamWatch,
        usage::Usage,
    },
};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const CONFIG: &str = include_str!("../tests/data/contract/everything.yaml");
const CLIENT_KEY: &str = "sk-hot-path-0123456789abcdef0123456789abcdef";
const MODEL: &str = "gpt-4o-mini";
const REPLY: &str = r#"{"id":"chatcmpl-1","object":"chat.completion","created":1741569952,"model":"gpt-4o-mini-2024-07-18","choices":[{"index":0,"message":{"role":"assistant","content":"Hello!"},"finish_reason":"stop"}],"usage":{"prompt_tokens":187,"completion_tokens":62,"total_tokens":249}}"#;
const EVENT: &str = "data: {\"id\":\"chatcmpl-1\",\"object\":\"chat.completion.chunk\",\"created\":1741570283,\"model\":\"gpt-4o-mini-2024-07-18\",\"service_tier\":\"default\",\"system_fingerprint\":\"fp_b376dfbbd5\",\"choices\":[{\"index\":0,\"delta\":{\"content\":\" parcel\"},\"logprobs\":null,\"finish_reason\":null}],\"usage\":null}\n\n";
const SENTENCE: &str = "Is there a way to have the parcel sent to the new address, or to a parcel shop near it? ";

/// A chat request whose last message is about `bytes` long.
fn chat(bytes: usize) -> Bytes {
    let text = SENTENCE.repeat(bytes.div_ceil(SENTENCE.len()));
    Bytes::from(format!(
        r#"{{"model":"support","max_completion_tokens":300,"messages":[{{"role":"system","content":"Answer in the customer's language."}},{{"role":"user","content":"{text}"}}]}}"#
    ))
}

fn snapshot(upstream: &str, data_dir: &Path) -> Snapshot {
    let env = |name: &str| match name {
        "UPSTREAM" => Some(upstream.to_owned()),
        "CLIENT_KEY" => Some(CLIENT_KEY.to_owned()),
        "PORT" | "ADMIN_PORT" => Some("0".to_owned()),
        "DATA_DIR" => Some(data_dir.display().to_string()),
        _ => None,
    };
    config::parse_str(CONFIG, "everything.yaml", &env, data_dir).expect("the contract's configuration").snapshot
}

fn some_snapshot() -> Snapshot {
    snapshot("http://127.0.0.1:1", Path::new("."))
}

// === wire ===

fn reading(c: &mut Criterion) {
    let mut group = c.benchmark_group("read");
    for (name, bytes) in [("1KB", 1_000), ("100KB", 100_000)] {
        let body = chat(bytes);
        let scan = json::scan(&body).expect("an object");
        group.throughput(Throughput::Bytes(body.len() as u64));
        group.bench_function(format!("scan/{name}"), |b| b.iter(|| json::scan(black_box(&body))));
        let facts = || request::facts(&Endpoint::ChatCompletions, black_box(&body), &scan);
        group.bench_function(format!("facts/{name}"), |b| b.iter(facts));
    }
    group.finish();
}

/// What a call of an alias with a prompt needs: the provider's name of the model, the prompt, the question for usage.
fn edited(body: &Bytes, scan: &Scan) -> Bytes {
    let mut edits = Edits::new();
    let prompt = "You are a helpful assistant for Tollgate.";
    edit::inject_prompt(&mut edits, &Endpoint::ChatCompletions, body, scan, edit::Role::System, prompt)
        .expect("messages");
    edit::set_model(&mut edits, scan, MODEL);
    edit::ask_for_usage(&mut edits, body, scan);
    edits.apply(body)
}

fn splicing(c: &mut Criterion) {
    let mut group = c.benchmark_group("splice");
    for (name, bytes) in [("1KB", 1_000), ("100KB", 100_000)] {
        let body = chat(bytes);
        let scan = json::scan(&body).expect("an object");
        group.throughput(Throughput::Bytes(body.len() as u64));
        group.bench_function(name, |b| b.iter(|| edited(black_box(&body), &scan)));
    }
    group.finish();
}

fn streaming(c: &mut Criterion) {
    let chunk = Bytes::from_static(EVENT.as_bytes());
    let mut watch = StreamWatch::new(&Endpoint::ChatCompletions);
    c.bench_function("stream/watch a chunk", |b| b.iter(|| watch.push(black_box(&chunk))));
    let mut filter = UsageFilter::new();
    c.bench_function("stream/filter a chunk", |b| b.iter(|| filter.push(black_box(&chunk))));
}

// === policy ===

fn counting(c: &mut Criterion) {
    let text = SENTENCE.repeat(12);
    let body = chat(1_000);
    let mut group = c.benchmark_group("count");
    group.throughput(Throughput::Bytes(text.len() as u64));
    group.bench_function("text/1KB", |b| b.iter(|| tokens::count(Encoding::O200kBase, black_box(&text))));
    group.bench_function("text seen before/1KB", |b| {
        b.iter(|| tokens::count_cached(Encoding::O200kBase, black_box(&text)))
    });
    group.bench_function("ceiling/1KB", |b| {
        b.iter(|| tokens::input_ceiling(MODEL, black_box(&body), Contents::default(), None));
    });
    group.finish();
}

fn deciding(c: &mut Criterion) {
    let snapshot = some_snapshot();
    let target = snapshot.target(&format!("upstream/{MODEL}")).expect("a target");
    let price = target.target.price.clone().expect("a price");
    let at = Timestamp::now();
    let usage = Usage { input: Tokens(187), output: Tokens(62), cached: Tokens(128), ..Usage::default() };
    c.bench_function("price/cost", |b| b.iter(|| price.cost(black_box(&usage), None, at)));
    c.bench_function("price/bound", |b| b.iter(|| price.bound(black_box(Tokens(1200)), Tokens(300), None, at)));
    c.bench_function("key/find", |b| b.iter(|| snapshot.keys.find(black_box(CLIENT_KEY))));

    let experiment = snapshot.models["support"].experiments[0].clone();
    c.bench_function("variant/assign", |b| {
        b.iter(|| experiment.assign(black_box("user-0042")).map(|v| v.name.clone()))
    });

    let prompt = &snapshot.prompts["greeting"];
    let template = prompt.versions[&prompt.live].clone();
    let own: Map<String, Value> = [("product".to_owned(), Value::from("Tollgate"))].into_iter().collect();
    c.bench_function("prompt/render", |b| b.iter(|| template.render(black_box(&own))));
}

fn limiting(c: &mut Criterion) {
    let snapshot = some_snapshot();
    let mut group = c.benchmark_group("limits/admit and correct");
    for (name, limiter) in [("alone", Limiter::new()), ("in a fleet", Limiter::shared(|| {}))] {
        // In a fleet, what is admitted without a share is what an unanswered store leaves.
        limiter.store_is_away();
        let mut now_ns = 0;
        group.bench_function(name, |b| {
            b.iter(|| {
                now_ns += 20_000;
                let facts = Facts { key: "web", team: Some("product"), user: "user-0042", model: "support", tags: &[] };
                let mut admission =
                    limiter.admit(&snapshot.limits, &facts, Tokens(600), now_ns).expect("far from the limit");
                admission.correct(Tokens(249));
            });
        });
    }
    group.finish();
}

/// The ledger on a call's path: money is in the purse, so nobody is asked. One account's part of it is the difference.
fn reserving(c: &mut Criterion) {
    let runtime = runtime();
    let data = tempfile::tempdir().expect("a directory");
    let purses =
        runtime.block_on(async { Purses::open(data.path(), Duration::from_secs(1), Duration::from_millis(250)) });
    let purses = purses.expect("a fresh directory");
    let claim = |number: usize| Claim {
        budget: Arc::from(format!("budget-{number}")),
        account: format!("budget-{number}/team=product/2026-11"),
        limit: NanoUsd(1_000_000_000_000_000),
        resets_at: None,
        enforce: true,
        open_on_loss: false,
    };
    let mut group = c.benchmark_group("purse/reserve and settle");
    for accounts in [1, 2, 8] {
        let claims: Vec<Claim> = (0..accounts).map(claim).collect();
        group.bench_function(format!("{accounts} accounts"), |b| {
            b.iter(|| {
                let reserved = runtime.block_on(purses.reserve(black_box(&claims), NanoUsd(400_000)));
                reserved.expect("far from the limit").settle(NanoUsd(65_250));
            });
        });
    }
    group.finish();
    runtime.block_on(purses.close());
}

// === the whole ===

/// One call after the other over one connection, through every layer, to an upstream that answers at once.
fn whole(c: &mut Criterion) {
    let runtime = runtime();
    let data = tempfile::tempdir().expect("a directory");
    let upstream = null_upstream();
    let live = Arc::new(Live::new(snapshot(&format!("http://{upstream}"), data.path())));
    let origin = Origin { path: None, files: Vec::new() };
    let registrar = Arc::new(Registrar::new(live.clone(), origin));
    let gateway = runtime.block_on(Gateway::start(live, registrar)).expect("a fresh directory and free ports");
    for (name, address) in [("stack/the upstream alone", upstream), ("stack/a call", gateway.listen)] {
        let mut client = Client::new(address);
        c.bench_function(name, |b| b.iter(|| client.call()));
    }
    runtime.block_on(gateway.drain(std::future::pending()));
}

fn runtime() -> Runtime {
    tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("threads")
}

/// Answers whatever comes with the same reply; a thread a connection.
fn null_upstream() -> SocketAddr {
    let listener = TcpListener::bind(("127.0.0.1", 0)).expect("a free port");
    let address = listener.local_addr().expect("it is bound");
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            std::thread::spawn(move || answer(stream));
        }
    });
    address
}

fn answer(mut stream: TcpStream) {
    let reply =
        format!("HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{REPLY}", REPLY.len());
    let mut request = Vec::new();
    let mut chunk = [0; 16 * 1024];
    while let Ok(count @ 1..) = stream.read(&mut chunk) {
        request.extend_from_slice(&chunk[..count]);
        // Every request here ends with its JSON object.
        if request.ends_with(b"]}") {
            request.clear();
            if stream.write_all(reply.as_bytes()).is_err() {
                return;
            }
        }
    }
}

struct Client {
    stream: TcpStream,
    request: Vec<u8>,
    reply: Vec<u8>,
}

impl Client {
    fn new(address: SocketAddr) -> Client {
        let body = chat(1_000);
        let head = format!(
            "POST /v1/chat/completions HTTP/1.1\r\nhost: gateway.example\r\nauthorization: Bearer {CLIENT_KEY}\r\n\
            content-type: application/json\r\nx-tollgate-user: user-0042\r\ncontent-length: {}\r\n\r\n",
            body.len()
        );
        let stream = TcpStream::connect(address).expect("it listens");
        stream.set_nodelay(true).expect("a TCP socket");
        Client { stream, request: [head.as_bytes(), &body].concat(), reply: vec![0; 16 * 1024] }
    }

    fn call(&mut self) {
        self.stream.write_all(&self.request).expect("it reads");
        let mut length = 0;
        while !self.reply[..length].ends_with(REPLY.as_bytes()) {
            let count = self.stream.read(&mut self.reply[length..]).expect("it answers");
            assert!(count > 0, "{}", String::from_utf8_lossy(&self.reply[..length]));
            length += count;
        }
    }
}

criterion_group!(benches, reading, splicing, streaming, counting, deciding, limiting, reserving, whole);
criterion_main!(benches);
