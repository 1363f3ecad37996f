//! Connections to Redis: one server, the primary that Sentinels name, or a Cluster. Every step has a deadline.
//!
//! A connection that failed is dropped and made anew by the next report, which asks the Sentinels or the Cluster again; so a
//! failover needs no machinery of its own.

use std::time::Duration;

use redis::{
    AsyncConnectionConfig, Client, Cmd, ConnectionAddr, ConnectionInfo, ErrorKind, IntoConnectionInfo, Pipeline,
    RedisConnectionInfo, RedisError, RedisResult, Value,
    aio::{MultiplexedConnection, PubSubStream},
    cluster::{ClusterClient, TlsMode},
    cluster_async::ClusterConnection,
    cluster_routing::{Route, RoutingInfo, SingleNodeRoutingInfo, SlotAddr},
    io::tcp::TcpSettings,
};

use crate::wire::redis_url::{RedisUrl, Topology};

/// A connection, to wherever accounts are.
#[derive(Clone)]
pub(super) enum Connection {
    /// One server, or the primary that Sentinels named.
    Server(MultiplexedConnection),
    /// A Cluster: each key has its node.
    Cluster(ClusterConnection),
}

impl Connection {
    /// Connects as the URL says, each step within `limit`.
    pub(super) async fn open(url: &RedisUrl, limit: Duration) -> RedisResult<Connection> {
        match &url.topology {
            Topology::Single => server(url, &url.hosts[0], url.db, limit).await.map(Connection::Server),
            Topology::Sentinel(master) => primary(url, master, limit).await.map(Connection::Server),
            Topology::Cluster => cluster(url, limit).await.map(Connection::Cluster),
        }
    }

    /// Sends commands together, to where `key` lives, over one connection; an answer each, errors among them.
    pub(super) async fn send(&mut self, commands: &Pipeline, key: &str) -> RedisResult<Vec<Value>> {
        match self {
            Connection::Server(server) => server.send_packed_commands(commands, 0, commands.len()).await,
            Connection::Cluster(cluster) => {
                let route = SingleNodeRoutingInfo::SpecificNode(Route::with_key(key, SlotAddr::Master));
                cluster.route_pipeline(commands.clone(), 0, commands.len(), route).await
            }
        }
    }

    /// One command to the node of a slot; slots matter in a Cluster only.
    pub(super) async fn ask(&mut self, command: &Cmd, slot: u16) -> RedisResult<Value> {
        match self {
            Connection::Server(server) => server.send_packed_command(command).await,
            Connection::Cluster(cluster) => {
                let route = SingleNodeRoutingInfo::SpecificNode(Route::new(slot, SlotAddr::Master));
                cluster.route_command(command.clone(), RoutingInfo::SingleNode(route)).await
            }
        }
    }

    /// A slot of each node that holds keys.
    pub(super) async fn slots(&mut self) -> RedisResult<Vec<u16>> {
        let Connection::Cluster(cluster) = self else { return Ok(vec![0]) };
        let mut command = redis::cmd("CLUSTER");
        command.arg("SLOTS");
        let anyone = RoutingInfo::SingleNode(SingleNodeRoutingInfo::Random);
        let ranges = cluster.route_command(command, anyone).await?.extract_error()?;
        let mut nodes: Vec<(String, u16)> = Vec::new();
        for range in redis::from_redis_value::<Vec<Vec<Value>>>(ranges)? {
            let [Value::Int(first), _, Value::Array(primary), ..] = range.as_slice() else { continue };
            let node = format!("{primary:?}");
            if nodes.iter().all(|(known, _)| *known != node) {
                nodes.push((node, u16::try_from(*first).unwrap_or_default()));
            }
        }
        Ok(nodes.into_iter().map(|(_, slot)| slot).collect())
    }
}

/// Connects to one server as the URL's user.
pub(super) async fn server(
    url: &RedisUrl,
    host: &(String, u16),
    db: i64,
    limit: Duration,
) -> RedisResult<MultiplexedConnection> {
    connect(url, host, login(url).set_db(db), limit).await
}

async fn connect(
    url: &RedisUrl,
    host: &(String, u16),
    login: RedisConnectionInfo,
    limit: Duration,
) -> RedisResult<MultiplexedConnection> {
    let config = AsyncConnectionConfig::new().set_connection_timeout(Some(limit)).set_response_timeout(Some(limit));
    client(url, host, login)?.get_multiplexed_async_connection_with_config(&config).await
}

fn client(url: &RedisUrl, host: &(String, u16), login: RedisConnectionInfo) -> RedisResult<Client> {
    Client::open(address(url, host).into_connection_info()?.set_redis_settings(login).set_tcp_settings(tcp()))
}

/// Subscribes to a channel of one server, on a connection of its own. The caller has the deadline.
pub(super) async fn subscribe(url: &RedisUrl, channel: &str) -> RedisResult<PubSubStream> {
    let mut subscription = client(url, &url.hosts[0], login(url))?.get_async_pubsub().await?;
    subscription.subscribe(channel).await?;
    Ok(subscription.into_on_message())
}

/// Asks one Sentinel after the other where the primary is, and has the primary itself confirm it.
async fn primary(url: &RedisUrl, master: &str, limit: Duration) -> RedisResult<MultiplexedConnection> {
    let mut last = RedisError::from((ErrorKind::EmptySentinelList, "no Sentinel answered"));
    for sentinel in &url.hosts {
        match primary_by(url, sentinel, master, limit).await {
            Ok(primary) => return Ok(primary),
            Err(error) => last = error,
        }
    }
    Err(last)
}

async fn primary_by(
    url: &RedisUrl,
    sentinel: &(String, u16),
    master: &str,
    limit: Duration,
) -> RedisResult<MultiplexedConnection> {
    let mut question = redis::cmd("SENTINEL");
    question.arg("get-master-addr-by-name").arg(master);
    // Sentinels seldom have a login of their own; where they do, it is that of the servers.
    let anonymous = RedisConnectionInfo::default().set_skip_set_lib_name();
    let mut answer = connect(url, sentinel, anonymous, limit).await?.send_packed_command(&question).await;
    if matches!(&answer, Ok(Value::ServerError(error)) if error.code() == "NOAUTH") || is_noauth(&answer) {
        answer = connect(url, sentinel, login(url), limit).await?.send_packed_command(&question).await;
    }
    let address: Option<(String, u16)> = redis::from_redis_value(answer?.extract_error()?)?;
    let unknown = || RedisError::from((ErrorKind::MasterNameNotFoundBySentinel, "the Sentinel knows no such primary"));
    let mut primary = server(url, &address.ok_or_else(unknown)?, url.db, limit).await?;
    // A Sentinel may lag behind a failover.
    let role = primary.send_packed_command(&redis::cmd("ROLE")).await?.extract_error()?;
    match redis::from_redis_value::<Vec<Value>>(role)?.first() {
        Some(Value::BulkString(role)) if role == b"master" => Ok(primary),
        _ => Err(RedisError::from((ErrorKind::MasterNameNotFoundBySentinel, "the Sentinel named a replica"))),
    }
}

fn is_noauth(answer: &RedisResult<Value>) -> bool {
    answer.as_ref().is_err_and(|error| error.code() == Some("NOAUTH"))
}

async fn cluster(url: &RedisUrl, limit: Duration) -> RedisResult<ClusterConnection> {
    let seeds = url.hosts.iter().map(|host| address(url, host).into_connection_info());
    let seeds: Vec<ConnectionInfo> = seeds.collect::<RedisResult<_>>()?;
    let mut builder = ClusterClient::builder(seeds)
        .connection_timeout(limit)
        .response_timeout(limit)
        .overall_response_timeout(Some(limit))
        .retries(2)
        .min_retry_wait(10)
        .max_retry_wait(100)
        .tcp_settings(tcp());
    if let Some(user) = &url.user {
        builder = builder.username(user);
    }
    if let Some(password) = url.expose_password() {
        builder = builder.password(password);
    }
    if url.tls {
        builder = builder.tls(TlsMode::Secure);
    }
    builder.build()?.get_async_connection().await
}

fn address(url: &RedisUrl, (host, port): &(String, u16)) -> ConnectionAddr {
    match url.tls {
        false => ConnectionAddr::Tcp(host.clone(), *port),
        true => ConnectionAddr::TcpTls { host: host.clone(), port: *port, insecure: false, tls_params: None },
    }
}

/// Announces no library name: it would need one more permission.
fn login(url: &RedisUrl) -> RedisConnectionInfo {
    let mut login = RedisConnectionInfo::default().set_skip_set_lib_name();
    if let Some(user) = &url.user {
        login = login.set_username(user);
    }
    if let Some(password) = url.expose_password() {
        login = login.set_password(password);
    }
    login
}

fn tcp() -> TcpSettings {
    TcpSettings::default().set_nodelay(true)
}
