//! The nodes of a Cluster, each reached by itself: one that does not answer holds up only the accounts that it has.
//!
//! The client of the `redis` crate waits for every node once it has lost one. So reports go to the primary of their account's slot
//! over a connection of its own. A node that failed rests a moment and is then called upon in the background; until it answers, its
//! accounts are told at once that it does not.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use futures_util::future::select_ok;
use redis::{ErrorKind, RedisError, RedisResult, Value, aio::MultiplexedConnection};
use tokio::time::{Instant, timeout};

use super::connect;
use crate::wire::redis_url::RedisUrl;

/// Host and port of a node.
pub(super) type Address = (String, u16);

/// Connecting to a node, and a first answer of its.
const CALL_TIMEOUT: Duration = Duration::from_millis(800);
/// Asking which node has which slots. What was known of it goes on to hold where nobody answers.
const LEARN_TIMEOUT: Duration = Duration::from_millis(200);
/// How long a node that failed is let be.
const REST: Duration = Duration::from_millis(300);
/// How many slots there are.
const SLOTS: u16 = 16_384;

/// The nodes of one Cluster.
pub(super) struct Nodes {
    url: RedisUrl,
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    ranges: Vec<Range>,
    /// Whether slots may have moved since the ranges were learned.
    is_outdated: bool,
    nodes: HashMap<Address, Node>,
}

/// The slots from `first` to `last`, and who has them.
#[derive(Debug, PartialEq, Eq)]
struct Range {
    first: u16,
    last: u16,
    primary: Address,
}

/// What is known of a node.
enum Node {
    Up(MultiplexedConnection),
    /// It failed, and may be called upon again from then on.
    Resting(Instant),
    /// It is being called upon.
    Called,
}

impl Nodes {
    pub(super) fn new(url: &RedisUrl) -> Nodes {
        Nodes { url: url.clone(), state: Arc::default() }
    }

    /// The primary that has `key`, as far as is known.
    pub(super) fn of(&self, key: &str) -> Option<Address> {
        let slot = slot(key);
        let state = lock(&self.state);
        let range = state.ranges.iter().find(|range| (range.first..=range.last).contains(&slot))?;
        Some(range.primary.clone())
    }

    /// Slots may have moved: they are asked for again before the next reports go out.
    pub(super) fn outdated(&self) {
        lock(&self.state).is_outdated = true;
    }

    /// Finds out who has which slots, where that is not known or may have changed. The first answer counts.
    ///
    /// # Errors
    /// When nobody answers. What was known before stays.
    pub(super) async fn learn(&self) -> RedisResult<()> {
        let up = {
            let state = lock(&self.state);
            if !state.ranges.is_empty() && !state.is_outdated {
                return Ok(());
            }
            state.up()
        };
        let known = up.into_iter().map(|(address, connection)| Box::pin(ranges_of(address, connection)));
        let learned = match first_of(known).await {
            Err(_) => {
                let seeds = self.url.hosts.iter().cloned();
                let seeds = seeds.map(|seed| Box::pin(ranges_by(self.url.clone(), seed)));
                first_of(seeds).await
            }
            learned => learned,
        };
        lock(&self.state).adopt(learned?);
        Ok(())
    }

    /// Whether every node that is known answers.
    pub(super) fn are_whole(&self) -> bool {
        lock(&self.state).nodes.values().all(|node| matches!(node, Node::Up(_)))
    }

    /// Whether any node answers.
    pub(super) fn is_any_up(&self) -> bool {
        lock(&self.state).nodes.values().any(|node| matches!(node, Node::Up(_)))
    }

    /// A connection to a node. One that is known to have failed is not waited for.
    ///
    /// # Errors
    /// When it does not answer, or did not lately.
    pub(super) async fn connection(&self, address: &Address) -> RedisResult<MultiplexedConnection> {
        match lock(&self.state).nodes.get(address) {
            Some(Node::Up(connection)) => return Ok(connection.clone()),
            Some(Node::Resting(_) | Node::Called) => return Err(silent()),
            None => {}
        }
        let connection = greet(&self.url, address).await?;
        lock(&self.state).nodes.insert(address.clone(), Node::Up(connection.clone()));
        Ok(connection)
    }

    /// Whether anything is known of a node.
    pub(super) fn is_known(&self, address: &Address) -> bool {
        lock(&self.state).nodes.contains_key(address)
    }

    /// Lets go of a connection that was closed: the next one is made at once.
    pub(super) fn closed(&self, address: &Address) {
        lock(&self.state).nodes.remove(address);
    }

    /// Takes note that a node did not answer. One line per change of state.
    pub(super) fn failed(&self, address: &Address, error: &RedisError) {
        let mut state = lock(&self.state);
        if matches!(state.nodes.get(address), Some(Node::Resting(_) | Node::Called)) {
            return;
        }
        state.nodes.insert(address.clone(), Node::Resting(Instant::now() + REST));
        state.is_outdated = true;
        drop(state);
        let node = shown(address);
        tracing::error!(store = %self.url, node, %error, "a node of the Cluster is away; purses of its accounts go on");
    }

    /// Calls upon the nodes that have rested, in the background.
    pub(super) fn call_rested(&self) {
        let now = Instant::now();
        let mut state = lock(&self.state);
        for (address, node) in &mut state.nodes {
            if matches!(node, Node::Resting(until) if *until <= now) {
                *node = Node::Called;
                self.call(address.clone());
            }
        }
    }

    /// Whether the node is back or not, its slots may have gone to another one meanwhile.
    fn call(&self, address: Address) {
        let (url, shared) = (self.url.clone(), Arc::clone(&self.state));
        tokio::spawn(async move {
            let answer = timeout(CALL_TIMEOUT, greet(&url, &address)).await;
            let mut state = lock(&shared);
            state.is_outdated = true;
            let Some(node) = state.nodes.get_mut(&address) else { return };
            *node = match answer {
                Ok(Ok(connection)) => {
                    tracing::info!(store = %url, node = shown(&address), "a node of the Cluster is back");
                    Node::Up(connection)
                }
                _ => Node::Resting(Instant::now() + REST),
            };
        });
    }
}

impl State {
    fn up(&self) -> Vec<(Address, MultiplexedConnection)> {
        let up = |(address, node): (&Address, &Node)| match node {
            Node::Up(connection) => Some((address.clone(), connection.clone())),
            Node::Resting(_) | Node::Called => None,
        };
        self.nodes.iter().filter_map(up).collect()
    }

    fn adopt(&mut self, ranges: Vec<Range>) {
        self.nodes.retain(|address, _| ranges.iter().any(|range| range.primary == *address));
        self.ranges = ranges;
        self.is_outdated = false;
    }
}

/// The first good answer; the last bad one where there is none.
async fn first_of<T>(asked: impl Iterator<Item = T>) -> RedisResult<Vec<Range>>
where
    T: Future<Output = RedisResult<Vec<Range>>> + Unpin,
{
    let mut asked = asked.peekable();
    if asked.peek().is_none() {
        return Err(silent());
    }
    match timeout(LEARN_TIMEOUT, select_ok(asked)).await {
        Ok(answer) => answer.map(|(ranges, _)| ranges),
        Err(_) => Err(silent()),
    }
}

/// Connects, and has the node say something: to connect is not enough, since a stopped server's system does it for it.
async fn greet(url: &RedisUrl, address: &Address) -> RedisResult<MultiplexedConnection> {
    let mut connection = connect::server(url, address, 0, CALL_TIMEOUT).await?;
    connection.send_packed_command(&redis::cmd("TIME")).await?.extract_error()?;
    Ok(connection)
}

async fn ranges_by(url: RedisUrl, seed: Address) -> RedisResult<Vec<Range>> {
    let connection = greet(&url, &seed).await?;
    ranges_of(seed, connection).await
}

async fn ranges_of(address: Address, mut connection: MultiplexedConnection) -> RedisResult<Vec<Range>> {
    let mut slots = redis::cmd("CLUSTER");
    slots.arg("SLOTS");
    let answer = connection.send_packed_command(&slots).await?.extract_error()?;
    let rows: Vec<Vec<Value>> = redis::from_redis_value(answer)?;
    let ranges: Vec<Range> = rows.iter().filter_map(|row| range(row, &address)).collect();
    if ranges.is_empty() {
        return Err(RedisError::from((
            ErrorKind::ClusterConnectionNotFound,
            "the Cluster has given its slots to nobody",
        )));
    }
    Ok(ranges)
}

/// First slot, last slot, primary, replicas. A node that does not know its own name is the one that was asked.
fn range(row: &[Value], asked: &Address) -> Option<Range> {
    let [Value::Int(first), Value::Int(last), Value::Array(primary), ..] = row else { return None };
    let [host, Value::Int(port), ..] = primary.as_slice() else { return None };
    let host = match host {
        Value::BulkString(name) if !name.is_empty() => String::from_utf8(name.clone()).ok()?,
        _ => asked.0.clone(),
    };
    let primary = (host, u16::try_from(*port).ok()?);
    Some(Range { first: u16::try_from(*first).ok()?, last: u16::try_from(*last).ok()?, primary })
}

/// The slot of a key: that of its hash tag, where it has one (<https://redis.io/docs/latest/operate/oss_and_stack/reference/cluster-spec/>).
fn slot(key: &str) -> u16 {
    let tag = key.split_once('{').and_then(|(_, rest)| rest.split_once('}')).map(|(tag, _)| tag);
    crc16(tag.filter(|tag| !tag.is_empty()).unwrap_or(key).as_bytes()) % SLOTS
}

/// CRC-16/XMODEM.
fn crc16(bytes: &[u8]) -> u16 {
    let shift = |crc: u16| if crc & 0x8000 == 0 { crc << 1 } else { (crc << 1) ^ 0x1021 };
    bytes.iter().fold(0, |crc, byte| (0..8).fold(crc ^ (u16::from(*byte) << 8), |crc, _| shift(crc)))
}

/// What is said of a node that says nothing.
pub(super) fn silent() -> RedisError {
    RedisError::from((ErrorKind::Io, "the node of the Cluster does not answer"))
}

fn shown((host, port): &Address) -> String {
    format!("{host}:{port}")
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slot_is_that_of_the_hash_tag() {
        assert_eq!(crc16(b"123456789"), 0x31c3, "the example of the specification");
        for (key, tag) in [("a{b}c", "b"), ("{b}", "b"), ("a{}{b}", "a{}{b}"), ("a{{b}}", "{b"), ("a{b", "a{b")] {
            assert_eq!(slot(key), crc16(tag.as_bytes()) % SLOTS, "{key}");
        }
    }

    #[test]
    fn a_node_without_a_name_is_the_one_that_was_asked() {
        let asked = ("seed".to_owned(), 1);
        let row = |host: Value| {
            let primary = Value::Array(vec![host, Value::Int(7), Value::BulkString(b"id".to_vec())]);
            vec![Value::Int(5), Value::Int(9), primary]
        };
        let of = |host: &str| Some(Range { first: 5, last: 9, primary: (host.to_owned(), 7) });
        assert_eq!(range(&row(Value::BulkString(b"10.0.0.1".to_vec())), &asked), of("10.0.0.1"));
        assert_eq!(range(&row(Value::BulkString(Vec::new())), &asked), of("seed"));
        assert_eq!(range(&row(Value::Nil), &asked), of("seed"));
        assert_eq!(range(&[Value::Int(5)], &asked), None);
    }
}
