//! Several gateways that share a store, a provider that bills what it is told to, load on them, and the store's books.
//!
//! What was truly spent is what the provider was asked for, not what anybody booked.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering::SeqCst},
    },
    time::{Duration, Instant},
};

use futures_util::future::join_all;
use serde_json::{Value, json};
use tokio::task::JoinHandle;

use super::{
    Call, DEADLINE, Gateway, KEY, RawClient, Reply, Upstream, eventually,
    gateway::Setup,
    redis::RedisServer,
    upstream::{Request, chat_completion},
};

/// Nano-dollars.
pub(crate) const USD: u64 = 1_000_000_000;
/// What 1,000 output tokens cost, in nano-dollars: the bound of every call here.
pub(crate) const BOUND: u64 = 10_000_000;

// === the provider ===

/// A provider that bills as many output tokens as the call's `seed` says.
pub(crate) async fn billing_upstream() -> Upstream {
    Upstream::answering(|request| Reply::json(200, &chat_completion("x", (5, tokens_of(request))))).await
}

fn tokens_of(request: &Request) -> u64 {
    request.json()["seed"].as_u64().expect("every call of a fleet says what it costs")
}

/// What the provider was asked for, in nano-dollars.
pub(crate) fn cost_of(request: &Request) -> u64 {
    tokens_of(request) * (BOUND / 1000)
}

/// What the provider has billed for all that it was asked.
pub(crate) fn billed(upstream: &Upstream) -> u64 {
    upstream.requests().iter().map(cost_of).sum()
}

/// A call that costs so many of the 1,000 output tokens that it may use.
pub(crate) fn costing(tokens: u64) -> Value {
    json!({"model": "upstream/m", "max_tokens": 1000, "seed": tokens, "messages": [{"role": "user", "content": "hi"}]})
}

// === the gateways ===

/// A gateway of a fleet over `store`, before a provider whose output costs 10 USD per million tokens.
pub(crate) fn member(upstream: &Upstream, store: &str) -> Setup {
    Gateway::before(upstream)
        .price("upstream/m", "input: 0 USD/1M, output: 10 USD/1M, max_output: 16384")
        .top("store", store)
        .top("ledger", "{ sync: 100ms }")
}

/// The budget of the whole team, with `more` of its fields.
pub(crate) fn team_budget(more: &str) -> String {
    format!("name: all, scope: {{ team: red }}, per: total, clamp: off, {more}")
}

/// So many gateways of the same kind.
pub(crate) async fn fleet(count: usize, member: impl Fn() -> Setup) -> Vec<Gateway> {
    join_all((0..count).map(|_| member().run())).await
}

// === the books ===

/// What a store has in its books of an account, or of several: limit, held by purses or spent, charged, debt.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Books {
    pub(crate) limit: u64,
    pub(crate) held: u64,
    pub(crate) charged: u64,
    pub(crate) debt: u64,
}

/// The books of each account on these servers, by the key it has there.
pub(crate) fn accounts(servers: &[&RedisServer]) -> BTreeMap<String, Books> {
    let mut accounts = BTreeMap::new();
    for server in servers {
        for key in server.command(&["KEYS", "tollgate:account:*"]).lines() {
            accounts.insert(key.to_owned(), read(&server.command(&["HGETALL", key])));
        }
    }
    accounts
}

fn read(hash: &str) -> Books {
    let lines: Vec<&str> = hash.lines().collect();
    let mut books = Books::default();
    for field in lines.chunks(2) {
        let numbers: Vec<u64> = field[1].split(' ').filter_map(|number| number.parse().ok()).collect();
        match (field[0], &numbers[..]) {
            ("limit", [limit]) => books.limit = *limit,
            ("archived", [charged, debt]) => books.add(*charged, *charged, *debt),
            (row, [granted, returned, charged, debt, ..]) if row.contains('.') => {
                books.add(granted - returned, *charged, *debt);
            }
            _ => {}
        }
    }
    books
}

impl Books {
    fn add(&mut self, held: u64, charged: u64, debt: u64) {
        self.held += held;
        self.charged += charged;
        self.debt += debt;
    }

    /// Everything idle was handed back and nothing is open.
    pub(crate) fn are_quiet(&self) -> bool {
        self.held == self.charged
    }
}

/// The books of the only account.
pub(crate) fn books(server: &RedisServer) -> Books {
    let accounts = accounts(&[server]);
    assert!(accounts.len() <= 1, "one account expected: {accounts:?}");
    accounts.into_values().next().unwrap_or_default()
}

/// The books once everything idle was handed back and nothing is open.
pub(crate) async fn quiet_books(server: &RedisServer) -> Books {
    let settled = |books: &Books| books.are_quiet() && books.charged > 0;
    eventually("all idle money is back", DEADLINE, || async { books(server) }, settled).await
}

// === clients ===

/// One call as its client saw it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Outcome {
    /// Which gateway it was sent to.
    pub(crate) gateway: usize,
    pub(crate) begun: Instant,
    pub(crate) took: Duration,
    /// `None` where the gateway went away.
    pub(crate) status: Option<u16>,
}

impl Outcome {
    pub(crate) fn is(&self, status: u16) -> bool {
        self.status == Some(status)
    }

    pub(crate) fn ended(&self) -> Instant {
        self.begun + self.took
    }
}

/// How often each status was answered.
pub(crate) fn statuses<'a>(outcomes: impl IntoIterator<Item = &'a Outcome>) -> BTreeMap<u16, usize> {
    let mut statuses = BTreeMap::new();
    for status in outcomes.into_iter().filter_map(|outcome| outcome.status) {
        *statuses.entry(status).or_default() += 1;
    }
    statuses
}

/// The time that `percent` of calls took at most.
pub(crate) fn percentile<'a>(outcomes: impl IntoIterator<Item = &'a Outcome>, percent: usize) -> Duration {
    let mut times: Vec<Duration> = outcomes.into_iter().map(|outcome| outcome.took).collect();
    times.sort_unstable();
    times.get((times.len() * percent / 100).min(times.len().saturating_sub(1))).copied().unwrap_or_default()
}

/// One call with a connection of its own.
pub(crate) async fn attempt(gateway: SocketAddr, body: &Value) -> Outcome {
    let begun = Instant::now();
    let status = Client::of(gateway).status(body).await;
    Outcome { gateway: 0, begun, took: begun.elapsed(), status }
}

/// A client that keeps its connection as long as that lives.
struct Client {
    gateway: SocketAddr,
    connection: Option<RawClient>,
}

impl Client {
    fn of(gateway: SocketAddr) -> Client {
        Client { gateway, connection: None }
    }

    async fn status(&mut self, body: &Value) -> Option<u16> {
        let mut connection = match self.connection.take() {
            Some(connection) => connection,
            None => RawClient::try_connect(self.gateway).await?.patient(PATIENCE),
        };
        connection.send(Call::new(self.gateway, "POST", "/v1/chat/completions").key(KEY).json(body).bytes()).await;
        let response = connection.response().await.filter(|response| response.complete)?;
        self.connection = Some(connection);
        Some(response.status)
    }
}

type Body = dyn Fn(u64) -> Value + Send + Sync;

/// Clients that call the gateways of a fleet until they are stopped, each one gateway, one call after the other.
pub(crate) struct Load {
    shared: Arc<Shared>,
    clients: Vec<JoinHandle<()>>,
}

struct Shared {
    body: Box<Body>,
    /// Between a client's calls, and after one that was not served.
    pace: Duration,
    gateways: Mutex<Vec<SocketAddr>>,
    outcomes: Mutex<Vec<Outcome>>,
    next: AtomicU64,
    is_over: AtomicBool,
}

impl Load {
    /// So many clients, in turns on these gateways. `body` makes the call of each number.
    pub(crate) fn start(
        gateways: &[Gateway],
        clients: usize,
        pace: Duration,
        body: impl Fn(u64) -> Value + Send + Sync + 'static,
    ) -> Load {
        let shared = Arc::new(Shared {
            body: Box::new(body),
            pace,
            gateways: Mutex::new(gateways.iter().map(|gateway| gateway.listen).collect()),
            outcomes: Mutex::default(),
            next: AtomicU64::new(0),
            is_over: AtomicBool::new(false),
        });
        let count = gateways.len();
        let clients = (0..clients).map(|client| tokio::spawn(Arc::clone(&shared).drive(client % count)));
        Load { clients: clients.collect(), shared }
    }

    /// A gateway of the fleet was started anew, somewhere else.
    pub(crate) fn moved(&self, index: usize, gateway: &Gateway) {
        self.shared.gateways.lock().unwrap()[index] = gateway.listen;
    }

    /// What was answered so far.
    pub(crate) fn outcomes(&self) -> Vec<Outcome> {
        self.shared.outcomes.lock().unwrap().clone()
    }

    pub(crate) fn count(&self, accept: impl Fn(&Outcome) -> bool) -> usize {
        self.shared.outcomes.lock().unwrap().iter().filter(|outcome| accept(outcome)).count()
    }

    /// Lets each client finish its call; all that was answered.
    pub(crate) async fn stop(self) -> Vec<Outcome> {
        self.shared.is_over.store(true, SeqCst);
        for client in self.clients {
            client.await.expect("a client does not panic");
        }
        std::mem::take(&mut self.shared.outcomes.lock().unwrap())
    }
}

impl Shared {
    async fn drive(self: Arc<Self>, gateway: usize) {
        let mut client = Client::of(self.address(gateway));
        while !self.is_over.load(SeqCst) {
            let number = self.next.fetch_add(1, SeqCst);
            let body = (self.body)(number);
            let begun = Instant::now();
            let status = client.status(&body).await;
            self.outcomes.lock().unwrap().push(Outcome { gateway, begun, took: begun.elapsed(), status });
            if status.is_none() {
                client = Client::of(self.address(gateway));
            }
            tokio::time::sleep(if status == Some(200) { self.pace } else { self.pace.max(REFUSED_PACE) }).await;
        }
    }

    fn address(&self, gateway: usize) -> SocketAddr {
        self.gateways.lock().unwrap()[gateway]
    }
}

/// A gateway that a test has stopped answers once it goes on, which may be a whole failover later. Longer than any test waits
/// for what it wants to see, so that it is that wait which fails.
const PATIENCE: Duration = Duration::from_secs(90);
/// A client that is refused tries again after this long: busy, not mad.
const REFUSED_PACE: Duration = Duration::from_millis(10);
