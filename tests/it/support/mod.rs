//! The language of the suite: a scripted [`Upstream`], the real binary as [`Gateway`], and clients of both kinds.

pub(crate) mod calls;
pub(crate) mod client;
pub(crate) mod fleet;
pub(crate) mod gateway;
pub(crate) mod metrics;
pub(crate) mod postgres;
pub(crate) mod proxy;
pub(crate) mod redis;
pub(crate) mod upstream;
pub(crate) mod wire;

use std::time::{Duration, Instant};

pub(crate) use client::{Call, RawClient, Response};
pub(crate) use gateway::{Budget, Gateway, KEY, PROVIDER_KEY};
pub(crate) use upstream::{Gate, Reply, Upstream, closed_port};

/// How long anything may take that should be quick. Long, because a busy machine is not a failure.
pub(crate) const DEADLINE: Duration = Duration::from_secs(20);

/// Polls `predicate` until it holds.
///
/// # Panics
/// When it does not within `deadline`, naming `what` was awaited.
pub(crate) async fn wait_until(what: &str, deadline: Duration, mut predicate: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !predicate() {
        assert!(begun.elapsed() < deadline, "waited {deadline:?} in vain: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Polls an asynchronous question until its answer satisfies `accept`, and returns that answer.
///
/// # Panics
/// When none does within `deadline`; the last answer is shown.
pub(crate) async fn eventually<T: std::fmt::Debug, F: Future<Output = T>>(
    what: &str,
    deadline: Duration,
    mut ask: impl FnMut() -> F,
    accept: impl Fn(&T) -> bool,
) -> T {
    let begun = Instant::now();
    loop {
        let answer = ask().await;
        if accept(&answer) {
            return answer;
        }
        assert!(begun.elapsed() < deadline, "waited {deadline:?} in vain: {what}; last seen: {answer:?}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// `future`, within [`DEADLINE`].
pub(crate) async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    within(DEADLINE, what, future).await
}

/// `future`, within `deadline`.
pub(crate) async fn within<T>(deadline: Duration, what: &str, future: impl Future<Output = T>) -> T {
    tokio::time::timeout(deadline, future).await.unwrap_or_else(|_| panic!("waited {deadline:?} in vain: {what}"))
}

/// Hex SHA-256, for comparing bodies too long to print.
pub(crate) fn sha256(bytes: &[u8]) -> String {
    use sha2::Digest as _;
    sha2::Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A small deterministic generator (xorshift64*), so that a failure can be repeated.
pub(crate) struct Dice(u64);

impl Dice {
    pub(crate) fn seeded(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1)
    }

    /// A number below `bound`.
    pub(crate) fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 33) as usize % bound
    }

    pub(crate) fn pick<'a, T: ?Sized>(&mut self, of: &[&'a T]) -> &'a T {
        of[self.below(of.len())]
    }
}

/// A number of rounds: `few` in every test run, `all` in a campaign (`make campaign`, `TOLLGATE_CAMPAIGN=full`).
pub(crate) fn rounds(few: usize, all: usize) -> usize {
    if std::env::var_os("TOLLGATE_CAMPAIGN").is_some_and(|size| size == "full") { all } else { few }
}

/// The seed of this run's dice, printed so that a failure can be repeated: `TOLLGATE_TEST_SEED`, else one by the clock.
pub(crate) fn seed() -> u64 {
    let given = std::env::var("TOLLGATE_TEST_SEED").ok().and_then(|seed| seed.parse().ok());
    let by_clock = || std::time::UNIX_EPOCH.elapsed().map_or(1, |since| since.as_micros() as u64);
    let seed = given.unwrap_or_else(by_clock);
    eprintln!("TOLLGATE_TEST_SEED={seed}");
    seed
}

/// The `data` of each event of a complete stream, in order; comments and other fields left out.
pub(crate) fn events(stream: &[u8]) -> Vec<String> {
    let text = String::from_utf8_lossy(stream).replace("\r\n", "\n").replace('\r', "\n");
    let blocks = text.split("\n\n").map(|block| {
        let lines = block.lines().filter_map(|line| line.strip_prefix("data:"));
        lines.map(|line| line.strip_prefix(' ').unwrap_or(line)).collect::<Vec<_>>()
    });
    blocks.filter(|lines| !lines.is_empty()).map(|lines| lines.join("\n")).collect()
}
