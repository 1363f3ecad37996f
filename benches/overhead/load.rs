//! The clients: kept-alive connections on one thread, ready-made bytes out, as little looking at what comes in as will do.

use std::{
    cell::RefCell,
    net::SocketAddr,
    rc::Rc,
    time::{Duration, Instant},
};

use anyhow::{Context, bail, ensure};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    task::LocalSet,
    time::{sleep, sleep_until},
};

use crate::{
    mock::{self, CHUNK_INTERVAL, CHUNKS},
    pace::{Dues, Pacer},
    subjects::{CLIENT_KEY, GATEWAY, Subject, Subjects},
};

/// Users that take turns: each has a budget of its own.
const USERS: usize = 500;
/// Load before the window opens.
const WARM_UP: Duration = Duration::from_millis(200);

/// How calls follow each other.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Pace {
    /// The next one when the last one is answered.
    Closed,
    /// So many a second in all, whatever the answers do.
    Rate(f64),
}

/// What a window saw.
#[derive(Debug, Default)]
pub(crate) struct Load {
    /// Latencies of the calls that ended in it, in ns, sorted.
    pub(crate) latencies_ns: Vec<u64>,
    /// CPU time of the subject in it.
    pub(crate) cpu: Duration,
    /// Its length.
    pub(crate) elapsed: Duration,
}

impl Load {
    /// Calls that ended, by second.
    pub(crate) fn calls_per_second(&self) -> f64 {
        self.latencies_ns.len() as f64 / self.elapsed.as_secs_f64()
    }

    /// CPU time by call in µs.
    pub(crate) fn cpu_us_per_call(&self) -> f64 {
        self.cpu.as_secs_f64() * 1e6 / self.latencies_ns.len().max(1) as f64
    }

    /// A quantile of the latencies in µs.
    pub(crate) fn quantile_us(&self, q: f64) -> f64 {
        let last = self.latencies_ns.len().saturating_sub(1);
        let index = (last as f64 * q).round() as usize;
        self.latencies_ns.get(index).map_or(0.0, |&ns| ns as f64 / 1e3)
    }
}

// === requests ===

/// Chat calls of about 1 KB, one a user.
pub(crate) fn plain_requests() -> Vec<Vec<u8>> {
    (0..USERS).map(|user| request(user, "")).collect()
}

/// The same, streamed.
pub(crate) fn stream_requests() -> Vec<Vec<u8>> {
    (0..USERS).map(|user| request(user, r#""stream":true,"#)).collect()
}

fn request(user: usize, extra: &str) -> Vec<u8> {
    let body = format!(
        r#"{{"model":"support",{extra}"max_completion_tokens":300,"messages":[{{"role":"system","content":"Answer in the customer's language. Quote the order number. Never promise a date that the carrier has not confirmed."}},{{"role":"user","content":"Hello, I ordered a pair of walking boots last Thursday and moved house on Saturday. The confirmation mail still shows the old address. Is there a way to have the parcel sent to the new one, or to a parcel shop near it?"}},{{"role":"assistant","content":"Of course. Could you tell me the order number, please? It begins with two letters and is in the subject of the confirmation mail."}},{{"role":"user","content":"It is TG-48213-{user:04}. The new place is in the next town, about twenty kilometres away, and I am at home only after six in the evening. If that is too late for the carrier, the petrol station on the main road takes parcels as well."}}]}}"#
    );
    let length = body.len();
    format!(
        "POST /v1/chat/completions HTTP/1.1\r\nhost: gateway.example\r\nauthorization: Bearer {CLIENT_KEY}\r\n\
        content-type: application/json\r\naccept: application/json\r\nuser-agent: OpenAI/Python 2.8.0\r\n\
        x-stainless-lang: python\r\nx-stainless-package-version: 2.8.0\r\nx-stainless-runtime: CPython\r\n\
        x-tollgate-user: user-{user:04}\r\ncontent-length: {length}\r\n\r\n{body}"
    )
    .into_bytes()
}

// === the load ===

/// Loads one subject for a window.
pub(crate) async fn run(
    subject: &Subject,
    requests: Vec<Vec<u8>>,
    connections: usize,
    pace: Pace,
    window: Duration,
) -> anyhow::Result<Load> {
    let begins = Instant::now() + WARM_UP;
    let ends = begins + window;
    let latencies = Rc::new(RefCell::new(Vec::with_capacity(200_000)));
    let requests = Rc::new(requests);
    let local = LocalSet::new();
    let mut clients = Vec::new();
    let mut dues = Vec::new();
    if let Pace::Rate(rate) = pace {
        let pacer;
        (pacer, dues) = Pacer::new(rate, connections)?;
        clients.push(local.spawn_local(pacer.run(ends)));
    }
    let mut dues = dues.into_iter();
    for index in 0..connections {
        let client = Client {
            stream: TcpStream::connect(subject.address).await?,
            reply: Vec::with_capacity(64 * 1024),
            requests: requests.clone(),
            next: index * requests.len() / connections,
        };
        client.stream.set_nodelay(true)?;
        let window = Window { begins, ends, latencies: latencies.clone() };
        clients.push(match dues.next() {
            Some(dues) => local.spawn_local(client.run_paced(dues, window)),
            None => local.spawn_local(client.run_closed(index as f64 / connections as f64, window)),
        });
    }
    let cpu = local
        .run_until(async {
            sleep_until(begins.into()).await;
            let before = subject.cpu()?;
            sleep_until(ends.into()).await;
            anyhow::Ok(subject.cpu()? - before)
        })
        .await?;
    let elapsed = begins.elapsed();
    local
        .run_until(async {
            for client in clients {
                client.await.context("a client panicked")??;
            }
            anyhow::Ok(())
        })
        .await?;
    let mut latencies_ns = latencies.take();
    ensure!(!latencies_ns.is_empty(), "no call ended within the window");
    latencies_ns.sort_unstable();
    Ok(Load { latencies_ns, cpu, elapsed })
}

/// What counts of one connection's calls.
struct Window {
    begins: Instant,
    ends: Instant,
    latencies: Rc<RefCell<Vec<u64>>>,
}

impl Window {
    /// Notes a call that ended now.
    fn note(&self, began: Instant) {
        let now = Instant::now();
        if now >= self.begins && now < self.ends {
            self.latencies.borrow_mut().push((now - began).as_nanos() as u64);
        }
    }
}

struct Client {
    stream: TcpStream,
    reply: Vec<u8>,
    requests: Rc<Vec<Vec<u8>>>,
    next: usize,
}

impl Client {
    /// One call after the other. `share` is its place among the connections, from 0 to 1, so that streams don't march in step.
    async fn run_closed(mut self, share: f64, window: Window) -> anyhow::Result<()> {
        sleep((CHUNK_INTERVAL * CHUNKS as u32).mul_f64(share).min(WARM_UP)).await;
        while Instant::now() < window.ends {
            let began = Instant::now();
            self.call().await?;
            window.note(began);
        }
        Ok(())
    }

    /// Calls when they are due. Waiting for the reply before counts as the subject's time.
    async fn run_paced(mut self, mut dues: Dues, window: Window) -> anyhow::Result<()> {
        while let Some(due) = dues.recv().await {
            self.call().await?;
            window.note(due);
        }
        Ok(())
    }

    /// One call; the reply stays in `reply`.
    async fn call(&mut self) -> anyhow::Result<()> {
        let request = &self.requests[self.next % self.requests.len()];
        self.next += 1;
        self.stream.write_all(request).await?;
        self.reply.clear();
        while !is_whole(&self.reply) {
            ensure!(self.stream.read_buf(&mut self.reply).await? > 0, "the connection was closed");
        }
        if !self.reply.starts_with(b"HTTP/1.1 200 ") {
            bail!("{}", String::from_utf8_lossy(&self.reply));
        }
        Ok(())
    }
}

/// Whether a reply has come to its end. Calls don't overlap, so the last chunk ends what was read.
fn is_whole(reply: &[u8]) -> bool {
    let Some(head) = head_length(reply) else { return false };
    match body_length(&reply[..head]) {
        Some(length) => reply.len() >= head + length,
        None => reply.ends_with(b"\r\n0\r\n\r\n"),
    }
}

/// Length of a head with its empty line, once it is there.
pub(crate) fn head_length(bytes: &[u8]) -> Option<usize> {
    memchr::memmem::find(bytes, b"\r\n\r\n").map(|end| end + 4)
}

/// What `content-length` says.
pub(crate) fn body_length(head: &[u8]) -> Option<usize> {
    let mut lines = head.split(|&byte| byte == b'\n');
    let name = b"content-length:";
    let line = lines.find(|line| line.len() > name.len() && line[..name.len()].eq_ignore_ascii_case(name))?;
    std::str::from_utf8(&line[name.len()..]).ok()?.trim().parse().ok()
}

// === checks ===

/// One call through each subject: what is measured must be what is meant.
pub(crate) async fn check(subjects: &Subjects) -> anyhow::Result<()> {
    for subject in subjects.all() {
        let reply = reply_of(subject.address, plain_requests().swap_remove(0)).await?;
        let is_gateway = subject.name == GATEWAY;
        for wanted in [mock::SAW_PROMPT, "x-tollgate-variant", "x-ratelimit-remaining-tokens"] {
            ensure!(reply.contains(wanted) == is_gateway, "{}: {wanted}\n{reply}", subject.name);
        }
        let stream = reply_of(subject.address, stream_requests().swap_remove(0)).await?;
        ensure!(stream.matches(" parcel").count() == CHUNKS, "{}: {stream}", subject.name);
        ensure!(!stream.contains("usage"), "{}: usage that the client did not ask for", subject.name);
    }
    Ok(())
}

/// Calls that the gateway says ended well.
pub(crate) async fn recorded_calls(admin: SocketAddr) -> anyhow::Result<u64> {
    // Its records are closed behind the calls.
    sleep(Duration::from_millis(500)).await;
    let reply = reply_of(admin, b"GET /metrics HTTP/1.1\r\nhost: localhost\r\n\r\n".to_vec()).await?;
    let wanted = |line: &&str| line.starts_with("tollgate_requests_total{") && line.contains(r#"outcome="ok""#);
    let counts = reply.lines().filter(wanted).map(|line| line.rsplit(' ').next().unwrap_or_default().parse::<u64>());
    Ok(counts.sum::<Result<u64, _>>()?)
}

async fn reply_of(address: SocketAddr, request: Vec<u8>) -> anyhow::Result<String> {
    let stream = TcpStream::connect(address).await?;
    let mut client = Client { stream, reply: Vec::new(), requests: Rc::new(vec![request]), next: 0 };
    client.call().await?;
    Ok(String::from_utf8(client.reply)?)
}
