//! Reports to a Cluster: to each node those of its accounts, together, and an answer to each, whatever becomes of other nodes.

use std::{collections::BTreeMap, time::Duration};

use futures_util::future::join_all;
use redis::{ErrorKind, Pipeline, RedisError, RedisResult, ServerErrorKind};
use tokio::time::timeout;

use super::{
    Answered, Birth, Clock, Facts, Redis, SYNC,
    connect::Connection,
    nodes::{self, Address, Nodes},
};
use crate::{
    ledger::sync::SyncReply,
    store::ports::{AccountSync, StoreError},
};

/// All that one node is asked, connecting and waiting for replicas included.
const NODE_TIMEOUT: Duration = Duration::from_millis(500);
/// Reading the store's mark, which lives on one of the nodes.
const MARK_TIMEOUT: Duration = Duration::from_millis(250);

impl Redis {
    /// Each report's own answer, in their order. No report only finds out whether any node answers.
    ///
    /// # Errors
    /// When no node answers.
    pub(super) async fn fly_apart(
        &self,
        nodes: &Nodes,
        birth: &mut Option<Birth>,
        requests: &[AccountSync],
    ) -> Result<Vec<Result<SyncReply, StoreError>>, StoreError> {
        nodes.call_rested();
        if requests.is_empty() {
            nodes.outdated();
            return nodes.learn().await.map(|()| Vec::new()).map_err(|error| self.unavailable(&error));
        }
        // Where nobody says so, what was known before still holds.
        drop(nodes.learn().await);
        let mut answers = self.carry_apart(nodes, birth, requests).await;
        for (request, answer) in requests.iter().zip(&mut answers) {
            if let Some(address) = answer.as_ref().err().and_then(asked_elsewhere) {
                *answer = self.carry_asking(nodes, &address, request).await;
            }
        }
        let acknowledged = answers.iter().flatten().all(|answered| answered.acknowledged);
        if answers.iter().any(Result::is_ok) {
            self.note_replicas(acknowledged);
        } else if !nodes.is_any_up() {
            let error = answers.into_iter().find_map(Result::err).unwrap_or_else(nodes::silent);
            return Err(self.unavailable(&error));
        }
        let read = |(request, answer): (&AccountSync, RedisResult<Answered>)| {
            self.read(request, &answer.map_err(|error| self.unavailable(&error))?)
        };
        Ok(requests.iter().zip(answers).map(read).collect())
    }

    /// What the nodes say; a report whose slot has moved follows it once.
    async fn carry_apart(
        &self,
        nodes: &Nodes,
        birth: &mut Option<Birth>,
        requests: &[AccountSync],
    ) -> Vec<RedisResult<Answered>> {
        let wiped = match self.was_wiped_apart(nodes, birth, requests).await {
            Ok(wiped) => wiped,
            // The mark's node is away, and has nothing to say of other nodes' accounts anyway: what it said last holds for them.
            Err(_) => birth.as_ref().is_none_or(Birth::is_young),
        };
        let facts = Facts { wiped, clock: Clock::Server };
        let mut going: Vec<usize> = (0..requests.len()).collect();
        let mut answers: Vec<RedisResult<Answered>> = requests.iter().map(|_| Err(nodes::silent())).collect();
        for _ in 0..2 {
            for (index, answer) in self.carry_to_all(nodes, requests, &going, &facts).await {
                answers[index] = answer;
            }
            going.retain(|index| answers[*index].as_ref().is_err_and(has_moved));
            if going.is_empty() {
                break;
            }
            nodes.outdated();
            drop(nodes.learn().await);
        }
        answers
    }

    /// The answers to those of `requests` that are `going`, each with its index.
    async fn carry_to_all(
        &self,
        nodes: &Nodes,
        requests: &[AccountSync],
        going: &[usize],
        facts: &Facts<'_>,
    ) -> Vec<(usize, RedisResult<Answered>)> {
        let mut groups: BTreeMap<Option<Address>, Vec<usize>> = BTreeMap::new();
        for index in going {
            groups.entry(nodes.of(&self.key(&requests[*index].account))).or_default().push(*index);
        }
        let each = groups.into_iter().map(|(address, group)| async move {
            let reports: Vec<AccountSync> = group.iter().map(|index| requests[*index].clone()).collect();
            let answers = match address {
                Some(address) => self.carry_to(nodes, &address, &reports, facts).await,
                None => Err(nodes::silent()),
            };
            match answers {
                Ok(answers) => group.into_iter().zip(answers).collect::<Vec<_>>(),
                Err(error) => group.into_iter().map(|index| (index, Err(error.clone()))).collect(),
            }
        });
        join_all(each).await.into_iter().flatten().collect()
    }

    async fn carry_to(
        &self,
        nodes: &Nodes,
        address: &Address,
        reports: &[AccountSync],
        facts: &Facts<'_>,
    ) -> RedisResult<Vec<RedisResult<Answered>>> {
        let carry = || {
            let talk = async |connection: &mut Connection| self.carry_together(connection, reports, facts).await;
            on_node(nodes, address, NODE_TIMEOUT, talk)
        };
        let answers = carry().await;
        if answers.is_err() && !nodes.is_known(address) { carry().await } else { answers }
    }

    /// A report whose account is on its way from one node to another: the new one takes it from who says so.
    async fn carry_asking(&self, nodes: &Nodes, address: &Address, request: &AccountSync) -> RedisResult<Answered> {
        // An account that is made on the way listens to others first: nobody knows what the way has cost.
        let facts = Facts { wiped: true, clock: Clock::Server };
        let mut commands = Pipeline::with_capacity(3);
        commands.cmd("ASKING").add_command(self.call("EVAL", SYNC, request, &facts));
        if self.wait_replicas > 0 {
            self.add_wait(&mut commands);
        }
        let answers = on_node(nodes, address, NODE_TIMEOUT, async |connection| {
            connection.send(&commands, &self.key(&request.account)).await
        });
        let after_asking = answers.await?.into_iter().skip(1).collect();
        self.answered(after_asking)?.pop().unwrap_or_else(|| Err(nodes::silent()))
    }

    async fn was_wiped_apart(
        &self,
        nodes: &Nodes,
        birth: &mut Option<Birth>,
        requests: &[AccountSync],
    ) -> RedisResult<bool> {
        if requests.iter().all(|sync| !sync.request.create) {
            return Ok(false);
        }
        let address = nodes.of(&self.mark()).ok_or_else(nodes::silent)?;
        on_node(nodes, &address, MARK_TIMEOUT, async |connection| self.was_wiped(connection, birth, requests).await)
            .await
    }
}

/// A conversation with one node, which has failed if it does not end in time. Where only its connection was closed, perhaps long ago,
/// it is not known any more, and the next conversation makes another one.
async fn on_node<T>(
    nodes: &Nodes,
    address: &Address,
    limit: Duration,
    talk: impl AsyncFnOnce(&mut Connection) -> RedisResult<T>,
) -> RedisResult<T> {
    let talking = async {
        let connection = nodes.connection(address).await.inspect_err(|error| nodes.failed(address, error))?;
        let said = talk(&mut Connection::Server(connection)).await;
        match &said {
            Err(error) if matches!(error.kind(), ErrorKind::Server(_)) => nodes.outdated(),
            Err(error) if error.is_connection_dropped() => nodes.closed(address),
            Err(error) => nodes.failed(address, error),
            Ok(_) => {}
        }
        said
    };
    timeout(limit, talking).await.unwrap_or_else(|_| {
        nodes.failed(address, &nodes::silent());
        Err(nodes::silent())
    })
}

fn has_moved(error: &RedisError) -> bool {
    error.kind() == ErrorKind::Server(ServerErrorKind::Moved)
}

/// The node that has an account already which is on its way there.
fn asked_elsewhere(error: &RedisError) -> Option<Address> {
    if error.kind() != ErrorKind::Server(ServerErrorKind::Ask) {
        return None;
    }
    let (host, port) = error.redirect_node()?.0.rsplit_once(':')?;
    Some((host.trim_matches(['[', ']']).to_owned(), port.parse().ok()?))
}
