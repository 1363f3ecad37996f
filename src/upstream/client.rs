//! The HTTP client: one exchange with one provider, over pooled connections, HTTP/1.1 or 2 by ALPN; without TLS see [`super::lines`].
//!
//! It follows no redirects, decodes nothing and retries nothing by itself, except a request that was queued on a
//! pooled connection and never written. What it adds to hyper is the judgement that a retry needs: whether a failed
//! request can have been processed ([`SendError::surely_not_processed`]) or only met a connection that the server
//! had just closed ([`SendError::is_stale`]).
//!
//! To see `103 Early Hints`, call `hyper::ext::on_informational` on the request before it is sent (HTTP/1 only);
//! 1xx replies never count as the final one.

use std::{
    collections::HashMap,
    error::Error as StdError,
    fmt, fs, io,
    path::{Path, PathBuf},
    pin::Pin,
    sync::{
        Arc, PoisonError, RwLock,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderMap, Request, Response, Uri, Version, header, uri::Scheme};
use http_body::{Frame, SizeHint};
use http_body_util::{BodyExt, Empty, Full, combinators::UnsyncBoxBody};
use hyper::rt;
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::{
    client::legacy::{
        self,
        connect::{Connected, Connection, HttpConnector, capture_connection},
    },
    rt::{TokioExecutor, TokioIo, TokioTimer},
};
use rustls::RootCertStore;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::{Sleep, sleep},
};
use tower::Service;

use crate::{
    config::snapshot::Provider,
    upstream::{lines::Lines, tls},
};

/// A pooled connection is closed after this time without use. Below the 60 s after which many servers and load
/// balancers close theirs, so that the race of a request with that close is rare.
const POOL_IDLE_TIMEOUT: Duration = Duration::from_secs(50);
/// Idle connections kept per provider host.
const POOL_IDLE_PER_HOST_MAX: usize = 256;
/// Fields in a reply's head. It is hyper's own limit for HTTP/1, which is not set: hyper would clear room for so many fields
/// with each reply.
const RESPONSE_HEADERS_MAX: usize = 100;
/// Bytes of a reply's head; hyper's own limit is 400 KiB, more than a hostile server should make us hold.
pub(super) const RESPONSE_HEAD_BYTES_MAX: usize = 64 * 1024;
/// What one HTTP/2 stream may send ahead of its reader.
const H2_STREAM_WINDOW_BYTES: u32 = 256 * 1024;
/// What all streams of a connection may send ahead together.
const H2_CONNECTION_WINDOW_BYTES: u32 = 4 * 1024 * 1024;
/// Ping of an HTTP/2 connection with streams on it, and the time for its answer: finds connections that died silently.
const H2_KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(20);
const H2_KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(10);
/// TCP keep-alive: a connection whose peer vanished is noticed after about two minutes.
const TCP_KEEP_ALIVE: Duration = Duration::from_secs(60);
const TCP_KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(15);
const TCP_KEEP_ALIVE_RETRIES: u32 = 4;

/// Longest silence of a client that is sending its body, whether that is passed on as it comes or read first.
pub const UPLOAD_IDLE: Duration = Duration::from_secs(30);

/// A request's body on its way upstream. Build it with [`full`], [`empty`] or [`boxed`].
pub type UpstreamBody = UnsyncBoxBody<Bytes, BodyError>;

/// A reply's body. Dropped before its end, its exchange is cancelled.
pub type Received = UnsyncBoxBody<Bytes, hyper::Error>;

/// A request body that broke off: the fault is on the side that supplied it.
///
/// A concrete type on purpose: a boxed error here gives "higher-ranked lifetime" errors in spawned futures.
#[derive(Debug, thiserror::Error)]
#[error("request body broke off")]
pub struct BodyError(#[source] Box<dyn StdError + Send + Sync>);

impl BodyError {
    /// Wraps the reason for which no more of the body can be supplied.
    pub fn new(source: impl Into<Box<dyn StdError + Send + Sync>>) -> BodyError {
        BodyError(source.into())
    }
}

/// A body that is wholly in memory, so that the request can be sent again.
#[must_use]
pub fn full(bytes: Bytes) -> UpstreamBody {
    Full::new(bytes).map_err(|never| match never {}).boxed_unsync()
}

/// No body.
#[must_use]
pub fn empty() -> UpstreamBody {
    Empty::new().map_err(|never| match never {}).boxed_unsync()
}

/// A streamed body, such as a client's [`hyper::body::Incoming`]. It breaks off where nothing comes for [`UPLOAD_IDLE`].
pub fn boxed<B>(body: B) -> UpstreamBody
where
    B: http_body::Body<Data = Bytes> + Send + Unpin + 'static,
    B::Error: StdError + Send + Sync + 'static,
{
    Upload { body, limit: UPLOAD_IDLE, alarm: None }.boxed_unsync()
}

/// A streamed body and the patience with it.
struct Upload<B> {
    body: B,
    limit: Duration,
    /// Runs while the body makes the upstream wait.
    alarm: Option<Pin<Box<Sleep>>>,
}

impl<B> http_body::Body for Upload<B>
where
    B: http_body::Body<Data = Bytes> + Unpin,
    B::Error: StdError + Send + Sync + 'static,
{
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = self.get_mut();
        if let Poll::Ready(frame) = Pin::new(&mut this.body).poll_frame(cx) {
            this.alarm = None;
            return Poll::Ready(frame.map(|frame| frame.map_err(BodyError::new)));
        }
        let limit = this.limit;
        ready!(this.alarm.get_or_insert_with(|| Box::pin(sleep(limit))).as_mut().poll(cx));
        Poll::Ready(Some(Err(BodyError::new("nothing more came"))))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

// === errors ===

/// Why a client, or the roots of one provider, can't be set up.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The file of additional roots can't be read.
    #[error("`{}` cannot be read", .0.display())]
    CaFile(PathBuf, #[source] io::Error),
    /// The file of additional roots holds none that can be used.
    #[error("`{}` gives no roots", .0.display())]
    CaRoots(PathBuf, #[source] tls::RootsError),
    /// TLS can't be configured.
    #[error("TLS cannot be configured")]
    Tls(#[from] rustls::Error),
}

/// How far a failed request came.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum SendErrorKind {
    /// No connection: refused, unknown host, or not there in time.
    Connect,
    /// No TLS: the certificate doesn't verify, or the handshake failed.
    Tls,
    /// The request never left: its origin isn't the provider's, or its connection closed while it was queued.
    Unsent,
    /// A reused HTTP/1 connection was closed before any byte of the reply: most probably the server closed an idle
    /// connection just then, but it may have read the request.
    StaleConnection,
    /// HTTP/2: the server said that it did not process the stream (`REFUSED_STREAM`, or above `GOAWAY`'s last id).
    RefusedStream,
    /// The connection or stream broke after the request had, at least partly, been sent.
    Reset,
    /// The reply isn't proper HTTP, or its head is too large.
    Protocol,
    /// The request's body could not be supplied to its end: the client's fault, not the provider's.
    RequestBody,
}

/// A request without a reply.
#[derive(Debug)]
pub struct SendError {
    /// How far it came.
    pub kind: SendErrorKind,
    source: Box<dyn StdError + Send + Sync>,
}

impl SendError {
    pub(super) fn new(kind: SendErrorKind, source: impl Into<Box<dyn StdError + Send + Sync>>) -> SendError {
        SendError { kind, source: source.into() }
    }

    /// A reply that switches protocols though nobody asked for it: what follows it is no HTTP.
    #[must_use]
    pub fn switched() -> SendError {
        SendError::new(SendErrorKind::Protocol, "the reply switches protocols, which was not asked for")
    }

    /// Whether it is certain that the provider did not process the request, so that even a `POST` may be sent again.
    #[must_use]
    pub fn surely_not_processed(&self) -> bool {
        use SendErrorKind::{Connect, RefusedStream, Tls, Unsent};
        matches!(self.kind, Connect | Tls | Unsent | RefusedStream)
    }

    /// Whether the request met a kept-alive connection that the server had closed: one more try on a fresh connection
    /// is due, where the body can be sent again.
    #[must_use]
    pub fn is_stale(&self) -> bool {
        self.kind == SendErrorKind::StaleConnection
    }
}

impl fmt::Display for SendError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.kind {
            SendErrorKind::Connect => "no connection to the provider",
            SendErrorKind::Tls => "no TLS connection to the provider",
            SendErrorKind::Unsent => "request was not sent",
            SendErrorKind::StaleConnection => "provider closed the idle connection as the request was sent",
            SendErrorKind::RefusedStream => "provider refused the stream unprocessed",
            SendErrorKind::Reset => "connection broke before the reply",
            SendErrorKind::Protocol => "reply is not proper HTTP",
            SendErrorKind::RequestBody => "request body broke off",
        })
    }
}

impl StdError for SendError {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        Some(&*self.source)
    }
}

// === impl Client ===

type Pool = legacy::Client<Connector, UpstreamBody>;

/// The pools of one set of roots.
#[derive(Clone)]
struct Pools {
    /// HTTP/2 where the server speaks it.
    any: Pool,
    /// HTTP/1.1 only, for requests to switch protocols: HTTP/2 has no `Upgrade`.
    http1: Pool,
    /// What `http1` connects by.
    connector: Connector,
}

impl Pools {
    fn new(roots: Arc<RootCertStore>, connect_timeout_ms: &Arc<AtomicU64>) -> Result<Pools, rustls::Error> {
        let tls = tls::client_config(roots)?;
        let https = HttpsConnectorBuilder::new().with_tls_config(tls.clone()).https_or_http().enable_all_versions();
        let http1 = HttpsConnectorBuilder::new().with_tls_config(tls).https_or_http().enable_http1();
        let connector = |https| Connector { https, timeout_ms: Arc::clone(connect_timeout_ms) };
        let http1 = connector(http1.wrap_connector(tcp_connector()));
        Ok(Pools {
            any: pool(connector(https.wrap_connector(tcp_connector()))),
            http1: pool(http1.clone()),
            connector: http1,
        })
    }

    fn for_request(&self, request: &Request<UpstreamBody>) -> &Pool {
        if request.headers().contains_key(header::UPGRADE) { &self.http1 } else { &self.any }
    }
}

/// The HTTP client of all providers; a clone shares the pools.
#[derive(Clone)]
pub struct Client(Arc<Shared>);

struct Shared {
    connect_timeout_ms: Arc<AtomicU64>,
    public_roots: Arc<RootCertStore>,
    public: Pools,
    /// Plain HTTP/1, which needs no roots.
    lines: Arc<Lines>,
    /// Pools of providers with roots of their own, by path, with the file's content at the time.
    by_ca: RwLock<HashMap<PathBuf, (Vec<u8>, Pools)>>,
}

impl Client {
    /// A client whose connections, TLS included, must be there within `connect_timeout`.
    ///
    /// # Errors
    /// When TLS can't be configured.
    pub fn new(connect_timeout: Duration) -> Result<Client, ClientError> {
        let connect_timeout_ms = Arc::new(AtomicU64::new(as_millis(connect_timeout)));
        let public_roots = Arc::new(tls::public_roots());
        let public = Pools::new(Arc::clone(&public_roots), &connect_timeout_ms)?;
        let lines = Lines::new(public.connector.clone());
        Ok(Client(Arc::new(Shared { connect_timeout_ms, public_roots, public, lines, by_ca: RwLock::default() })))
    }

    /// Changes the time for connections that are begun from now on; pools stay.
    pub fn set_connect_timeout(&self, connect_timeout: Duration) {
        self.0.connect_timeout_ms.store(as_millis(connect_timeout), Ordering::Relaxed);
    }

    /// Reads the provider's own roots, if it has any, again. Due for every provider before a configuration goes live:
    /// [`Client::send`] reads them only once.
    ///
    /// # Errors
    /// When the file can't be read or holds no roots; the pool in use stays.
    pub fn prepare(&self, provider: &Provider) -> Result<(), ClientError> {
        match &provider.ca {
            Some(ca) => self.load_ca(ca).map(drop),
            None => Ok(()),
        }
    }

    /// Sends one request and returns the reply once its head is there.
    ///
    /// `request` needs an absolute URI of the provider's own origin; its `Host` is replaced by that. Cancelled by
    /// dropping the future, later by dropping the reply's body.
    ///
    /// # Errors
    /// [`SendError`], whose kind says how far the request came.
    pub async fn send(
        &self,
        provider: &Provider,
        request: Request<UpstreamBody>,
    ) -> Result<Response<Received>, SendError> {
        if !same_origin(request.uri(), &provider.base_url) {
            return Err(SendError::new(SendErrorKind::Unsent, "request leads to another origin than the provider's"));
        }
        if is_plain(&request) {
            return self.0.lines.send(request).await;
        }
        // Boxed, since the future of a plain exchange would have to hold the room for it.
        match &provider.ca {
            None => Box::pin(exchange(&self.0.public, request)).await,
            Some(ca) => {
                let pools = self.pools_of(ca).map_err(|error| SendError::new(SendErrorKind::Tls, error))?;
                Box::pin(async move { exchange(&pools, request).await }).await
            }
        }
    }

    /// Sends one request of the gateway's own to anybody, trusting the public roots.
    ///
    /// # Errors
    /// As [`Client::send`].
    pub async fn send_anywhere(&self, request: Request<UpstreamBody>) -> Result<Response<Received>, SendError> {
        if is_plain(&request) { self.0.lines.send(request).await } else { exchange(&self.0.public, request).await }
    }

    #[cfg(test)]
    pub(super) fn lines(&self) -> &Arc<Lines> {
        &self.0.lines
    }

    fn pools_of(&self, ca: &Path) -> Result<Pools, ClientError> {
        let known = self.0.by_ca.read().unwrap_or_else(PoisonError::into_inner).get(ca).map(|(_, pools)| pools.clone());
        known.map_or_else(|| self.load_ca(ca), Ok)
    }

    fn load_ca(&self, ca: &Path) -> Result<Pools, ClientError> {
        let pem = fs::read(ca).map_err(|error| ClientError::CaFile(ca.to_owned(), error))?;
        let mut by_ca = self.0.by_ca.write().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, pools)) = by_ca.get(ca).filter(|(known, _)| *known == pem) {
            return Ok(pools.clone());
        }
        let mut roots = RootCertStore::clone(&self.0.public_roots);
        tls::add_pem_roots(&mut roots, &pem).map_err(|error| ClientError::CaRoots(ca.to_owned(), error))?;
        let pools = Pools::new(Arc::new(roots), &self.0.connect_timeout_ms)?;
        by_ca.insert(ca.to_owned(), (pem, pools.clone()));
        Ok(pools)
    }
}

/// One exchange over a pooled connection.
async fn exchange(pools: &Pools, mut request: Request<UpstreamBody>) -> Result<Response<Received>, SendError> {
    *request.version_mut() = Version::HTTP_11;
    request.headers_mut().remove(header::HOST);
    let connection = capture_connection(&mut request);
    let response = pools.for_request(&request).request(request).await.map_err(classify)?;
    if let Some(watch) = response.extensions().get::<Arc<Watch>>() {
        watch.answered();
    }
    let checked = check_head(&response);
    // To a server of HTTP/1.0 hyper would send no body at all the next time, where its length is not known.
    if (checked.is_err() || response.version() < Version::HTTP_11)
        && let Some(connected) = connection.connection_metadata().as_ref()
    {
        connected.poison();
    }
    checked.map_err(|violation| SendError::new(SendErrorKind::Protocol, violation))?;
    Ok(response.map(BodyExt::boxed_unsync))
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client").finish_non_exhaustive()
    }
}

fn as_millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// Whether a request is an exchange of HTTP/1 without TLS and nothing else.
fn is_plain(request: &Request<UpstreamBody>) -> bool {
    request.uri().scheme() == Some(&Scheme::HTTP) && !request.headers().contains_key(header::UPGRADE)
}

/// Provider keys go to the provider's own origin and nowhere else.
fn same_origin(uri: &Uri, base: &Uri) -> bool {
    uri.scheme() == base.scheme() && uri.authority() == base.authority()
}

fn pool(connector: Connector) -> Pool {
    legacy::Client::builder(TokioExecutor::new())
        .timer(TokioTimer::new())
        .pool_timer(TokioTimer::new())
        .pool_idle_timeout(POOL_IDLE_TIMEOUT)
        .pool_max_idle_per_host(POOL_IDLE_PER_HOST_MAX)
        .http1_max_buf_size(RESPONSE_HEAD_BYTES_MAX)
        .http2_max_header_list_size(RESPONSE_HEAD_BYTES_MAX as u32)
        .http2_initial_stream_window_size(H2_STREAM_WINDOW_BYTES)
        .http2_initial_connection_window_size(H2_CONNECTION_WINDOW_BYTES)
        .http2_keep_alive_interval(H2_KEEP_ALIVE_INTERVAL)
        .http2_keep_alive_timeout(H2_KEEP_ALIVE_TIMEOUT)
        .build(connector)
}

/// Refuses what hyper lets pass in a reply's head, though two readers could see two different bodies in it.
///
/// hyper itself refuses differing lengths, and closes a connection with bytes after a body.
pub(super) fn check_head<B>(response: &Response<B>) -> Result<(), &'static str> {
    let headers = response.headers();
    if headers.len() > RESPONSE_HEADERS_MAX {
        return Err("too many header fields");
    }
    // hyper's own limit is looked at before each read, so that the last read may go well beyond it.
    if headers.iter().map(|(name, value)| name.as_str().len() + value.len() + 4).sum::<usize>()
        > RESPONSE_HEAD_BYTES_MAX
    {
        return Err("header fields too large");
    }
    if response.version() == Version::HTTP_2 {
        return Ok(());
    }
    check_framing(headers)
}

fn check_framing(headers: &HeaderMap) -> Result<(), &'static str> {
    let mut lengths = headers.get_all(header::CONTENT_LENGTH).iter();
    let mut codings = headers.get_all(header::TRANSFER_ENCODING).iter();
    let (length, coding) = (lengths.next(), codings.next());
    if length.is_some() && coding.is_some() {
        return Err("content-length beside transfer-encoding");
    }
    if lengths.next().is_some() || length.is_some_and(|value| !value.as_bytes().iter().all(u8::is_ascii_digit)) {
        return Err("several content-lengths");
    }
    if codings.next().is_some() || coding.is_some_and(|value| !value.as_bytes().eq_ignore_ascii_case(b"chunked")) {
        return Err("transfer-encoding other than chunked");
    }
    Ok(())
}

// === classification ===

fn classify(error: legacy::Error) -> SendError {
    let kind = match error.is_connect() {
        true => kind_of_connect(&error),
        false => kind_of(&error, watch_of(&error).as_deref()),
    };
    SendError::new(kind, error)
}

/// A connection that could not be made.
pub(super) fn classify_connect(error: Box<dyn StdError + Send + Sync>) -> SendError {
    SendError::new(kind_of_connect(&*error), error)
}

/// An exchange that failed on the connection that `watch` knows.
pub(super) fn classify_exchange(error: hyper::Error, watch: &Watch) -> SendError {
    SendError::new(kind_of(&error, Some(watch)), error)
}

fn kind_of_connect(error: &(dyn StdError + 'static)) -> SendErrorKind {
    match find::<ConnectError>(error) {
        Some(ConnectError::Tls(_)) => SendErrorKind::Tls,
        _ => SendErrorKind::Connect,
    }
}

fn kind_of(error: &(dyn StdError + 'static), watch: Option<&Watch>) -> SendErrorKind {
    if let Some(h2) = find::<h2::Error>(error) {
        return kind_of_h2(h2);
    }
    let Some(hyper) = find::<hyper::Error>(error) else {
        return SendErrorKind::Unsent;
    };
    if hyper.is_canceled() {
        return SendErrorKind::Unsent;
    }
    if find::<BodyError>(error).is_some() {
        return SendErrorKind::RequestBody;
    }
    if hyper.is_parse() {
        return SendErrorKind::Protocol;
    }
    let broken = hyper.is_incomplete_message() || find::<io::Error>(error).is_some_and(is_closed_by_peer);
    if broken && watch.is_some_and(Watch::is_reused_and_silent) {
        return SendErrorKind::StaleConnection;
    }
    SendErrorKind::Reset
}

/// A `GOAWAY` from the server reaches only the streams above its last id, so these were not processed (RFC 9113 §6.8).
fn kind_of_h2(error: &h2::Error) -> SendErrorKind {
    let refused = error.reason() == Some(h2::Reason::REFUSED_STREAM);
    match error {
        _ if error.is_remote() && (error.is_go_away() || refused) => SendErrorKind::RefusedStream,
        _ if error.is_library() => SendErrorKind::Protocol,
        _ => SendErrorKind::Reset,
    }
}

fn is_closed_by_peer(error: &io::Error) -> bool {
    use io::ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset, NotConnected, UnexpectedEof};
    matches!(error.kind(), BrokenPipe | ConnectionAborted | ConnectionReset | NotConnected | UnexpectedEof)
}

fn find<'e, E: StdError + 'static>(error: &'e (dyn StdError + 'static)) -> Option<&'e E> {
    let mut cause = Some(error);
    while let Some(error) = cause {
        if let Some(found) = error.downcast_ref() {
            return Some(found);
        }
        cause = error.source();
    }
    None
}

fn watch_of(error: &legacy::Error) -> Option<Arc<Watch>> {
    let mut extensions = http::Extensions::new();
    error.connect_info()?.get_extras(&mut extensions);
    extensions.remove()
}

// === connections ===

/// What is known of one connection.
#[derive(Debug, Default)]
pub(super) struct Watch {
    /// Replies whose head arrived.
    answers: AtomicU64,
    /// Bytes received.
    received: AtomicU64,
    /// [`Watch::received`] as the last request began; any byte beyond belongs to its reply.
    received_before: AtomicU64,
}

impl Watch {
    /// Counts a reply.
    pub(super) fn answered(&self) {
        self.answers.fetch_add(1, Ordering::Relaxed);
    }

    /// Whether a request failed on a connection that had served others, with no byte of its reply.
    fn is_reused_and_silent(&self) -> bool {
        self.answers.load(Ordering::Relaxed) > 0
            && self.received.load(Ordering::Relaxed) == self.received_before.load(Ordering::Relaxed)
    }
}

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
enum ConnectError {
    #[error("not connected within the time allowed")]
    Timeout,
    #[error("TLS handshake failed")]
    Tls(#[source] Box<dyn StdError + Send + Sync>),
    #[error("cannot connect")]
    Tcp(#[source] Box<dyn StdError + Send + Sync>),
}

/// A connection, watched.
pub(super) type Io = TokioIo<Watched<<HttpsConnector<HttpConnector> as Service<Uri>>::Response>>;

/// Connects within the time allowed, TLS included, and watches the connection.
#[derive(Clone)]
pub(super) struct Connector {
    https: HttpsConnector<HttpConnector>,
    timeout_ms: Arc<AtomicU64>,
}

fn tcp_connector() -> HttpConnector {
    let mut tcp = HttpConnector::new();
    tcp.enforce_http(false);
    tcp.set_nodelay(true);
    tcp.set_keepalive(Some(TCP_KEEP_ALIVE));
    tcp.set_keepalive_interval(Some(TCP_KEEP_ALIVE_INTERVAL));
    tcp.set_keepalive_retries(Some(TCP_KEEP_ALIVE_RETRIES));
    tcp
}

impl Service<Uri> for Connector {
    type Response = Io;
    type Error = Box<dyn StdError + Send + Sync>;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.https.poll_ready(cx)
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let connecting = self.https.call(uri);
        let timeout = Duration::from_millis(self.timeout_ms.load(Ordering::Relaxed));
        Box::pin(async move {
            let connected = tokio::time::timeout(timeout, connecting).await.map_err(|_| ConnectError::Timeout)?;
            let io = connected.map_err(connect_error)?;
            Ok(Watched::new(io))
        })
    }
}

/// hyper-rustls gives `io::Error` for what fails after TCP; the TCP connector has an error type of its own.
fn connect_error(error: Box<dyn StdError + Send + Sync>) -> ConnectError {
    if error.is::<io::Error>() { ConnectError::Tls(error) } else { ConnectError::Tcp(error) }
}

/// A connection that counts what comes in. HTTP/2 shares a connection, so there only the stream's own error tells.
///
/// It speaks tokio's traits, whose read buffer tells how much was filled; [`TokioIo`] turns them back into hyper's.
pub(super) struct Watched<T> {
    io: TokioIo<T>,
    watch: Arc<Watch>,
    answers_seen: u64,
}

impl<T> Watched<T> {
    fn new(io: T) -> TokioIo<Watched<T>> {
        TokioIo::new(Watched { io: TokioIo::new(io), watch: Arc::default(), answers_seen: 0 })
    }

    /// What is known of it.
    pub(super) fn watch(&self) -> Arc<Watch> {
        Arc::clone(&self.watch)
    }

    /// The first write after an answer begins the next request. Where it only ends the answered one (a server that
    /// replied early), the rest of that reply counts as the next one's: wrong only towards fewer retries.
    fn note_write(&mut self) {
        let answers = self.watch.answers.load(Ordering::Relaxed);
        if answers != self.answers_seen {
            self.answers_seen = answers;
            let received = self.watch.received.load(Ordering::Relaxed);
            self.watch.received_before.store(received, Ordering::Relaxed);
        }
    }
}

impl<T: Connection> Connection for Watched<T> {
    fn connected(&self) -> Connected {
        self.io.inner().connected().extra(Arc::clone(&self.watch))
    }
}

impl<T: rt::Read + Unpin> AsyncRead for Watched<T> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let polled = Pin::new(&mut self.io).poll_read(cx, buf);
        let received = buf.filled().len() - before;
        self.watch.received.fetch_add(received as u64, Ordering::Relaxed);
        polled
    }
}

impl<T: rt::Write + Unpin> AsyncWrite for Watched<T> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.note_write();
        Pin::new(&mut self.io).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.note_write();
        Pin::new(&mut self.io).poll_write_vectored(cx, bufs)
    }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use http::StatusCode;
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::{TcpListener, TcpStream},
        sync::mpsc,
    };

    use super::*;
    use crate::config::snapshot::ProviderKind;

    fn provider(base_url: &str) -> Provider {
        Provider {
            name: "p".into(),
            kind: ProviderKind::OpenAi,
            base_url: base_url.parse().unwrap(),
            api_keys: Vec::new(),
            catalog: None,
            organization_api: false,
            cap_field: "max_tokens",
            ca: None,
        }
    }

    fn client() -> Client {
        Client::new(Duration::from_secs(5)).unwrap()
    }

    fn post(provider: &Provider) -> Request<UpstreamBody> {
        Request::post(format!("{}chat", provider.base_url)).body(full(Bytes::from_static(b"{}"))).unwrap()
    }

    async fn listen() -> (TcpListener, SocketAddr) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        (listener, address)
    }

    async fn read_request(stream: &mut TcpStream) -> String {
        let mut received = Vec::new();
        let end: &[u8] = b"\r\n\r\n{}";
        let is_whole = |received: &[u8]| {
            let end = if received.starts_with(b"GET") { &end[..4] } else { end };
            received.ends_with(end)
        };
        while !is_whole(&received) {
            if stream.read_buf(&mut received).await.unwrap() == 0 {
                break;
            }
        }
        String::from_utf8(received).unwrap()
    }

    /// A server that answers the n-th request of each connection with the n-th text, then closes it; gives what it read.
    async fn scripted(replies: &'static [&'static str]) -> (Provider, mpsc::Receiver<(usize, String)>) {
        let (listener, address) = listen().await;
        let (heard, requests) = mpsc::channel(64);
        tokio::spawn(async move {
            for connection in 0.. {
                let (mut stream, _) = listener.accept().await.unwrap();
                for reply in replies {
                    let request = read_request(&mut stream).await;
                    if request.is_empty() || heard.send((connection, request)).await.is_err() {
                        break;
                    }
                    stream.write_all(reply.as_bytes()).await.unwrap();
                }
                stream.shutdown().await.unwrap();
            }
        });
        (provider(&format!("http://{address}/")), requests)
    }

    async fn text(response: Response<Received>) -> Result<String, hyper::Error> {
        Ok(String::from_utf8(response.into_body().collect().await?.to_bytes().to_vec()).unwrap())
    }

    const OK: &str = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";

    #[tokio::test]
    async fn a_reply_arrives_and_its_connection_is_used_again() {
        let (provider, mut requests) = scripted(&[OK, OK]).await;
        let client = client();
        for _ in 0..2 {
            assert_eq!(text(client.send(&provider, post(&provider)).await.unwrap()).await.unwrap(), "ok");
        }
        let (first, second) = (requests.recv().await.unwrap(), requests.recv().await.unwrap());
        assert_eq!((first.0, second.0), (0, 0));
        assert!(first.1.starts_with("POST /chat HTTP/1.1\r\n"), "{}", first.1);
        assert!(first.1.contains(&format!("host: {}\r\n", provider.base_url.authority().unwrap())), "{}", first.1);
        assert!(first.1.contains("content-length: 2\r\n"), "{}", first.1);
    }

    #[tokio::test]
    async fn a_refused_connection_surely_processed_nothing() {
        let (listener, address) = listen().await;
        drop(listener);
        let provider = provider(&format!("http://{address}/"));
        let error = client().send(&provider, post(&provider)).await.unwrap_err();
        assert_eq!(error.kind, SendErrorKind::Connect);
        assert!(error.surely_not_processed());
    }

    #[tokio::test]
    async fn the_connect_timeout_covers_the_handshake() {
        let (_listener, address) = listen().await;
        let provider = provider(&format!("https://{address}/"));
        let client = Client::new(Duration::from_millis(50)).unwrap();
        let error = client.send(&provider, post(&provider)).await.unwrap_err();
        assert_eq!(error.kind, SendErrorKind::Connect, "{error:?}");
    }

    #[tokio::test]
    async fn a_reused_connection_that_closes_silently_is_stale() {
        let (provider, _requests) = scripted(&[OK, ""]).await;
        let client = client();
        text(client.send(&provider, post(&provider)).await.unwrap()).await.unwrap();
        let error = client.send(&provider, post(&provider)).await.unwrap_err();
        assert_eq!(error.kind, SendErrorKind::StaleConnection, "{error:?}");
        assert!(error.is_stale() && !error.surely_not_processed());
    }

    #[tokio::test]
    async fn a_fresh_connection_that_closes_silently_is_not_stale() {
        let (provider, _requests) = scripted(&[""]).await;
        let error = client().send(&provider, post(&provider)).await.unwrap_err();
        assert_eq!(error.kind, SendErrorKind::Reset, "{error:?}");
    }

    #[tokio::test]
    async fn a_reused_connection_that_closes_after_a_byte_is_not_stale() {
        let (provider, _requests) = scripted(&[OK, "HTTP/1.1 20"]).await;
        let client = client();
        text(client.send(&provider, post(&provider)).await.unwrap()).await.unwrap();
        let error = client.send(&provider, post(&provider)).await.unwrap_err();
        assert_eq!(error.kind, SendErrorKind::Reset, "{error:?}");
    }

    #[tokio::test]
    async fn ambiguous_replies_are_refused() {
        for reply in [
            "HTTP/1.1 200 OK\r\ncontent-length: 2\r\ncontent-length: 2\r\n\r\nok",
            "HTTP/1.1 200 OK\r\ncontent-length: 2, 2\r\n\r\nok",
            "HTTP/1.1 200 OK\r\ncontent-length: 2\r\ncontent-length: 3\r\n\r\nok",
            "HTTP/1.1 200 OK\r\ncontent-length: +2\r\n\r\nok",
            "HTTP/1.1 200 OK\r\ncontent-length: 2\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
            "HTTP/1.1 200 OK\r\ntransfer-encoding: gzip, chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
            "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
            "HTTP/1.1 200 OK\r\ncontent-length : 2\r\n\r\nok",
            "SSH-2.0-OpenSSH\r\n\r\n",
        ] {
            let (provider, _requests) = scripted(Box::leak(Box::new([reply]))).await;
            let error = client().send(&provider, post(&provider)).await.unwrap_err();
            assert_eq!(error.kind, SendErrorKind::Protocol, "{reply:?}: {error:?}");
        }
    }

    #[tokio::test]
    async fn heads_have_a_limit() {
        let many = "x: y\r\n".repeat(101);
        let large = format!("x: {}\r\n", "y".repeat(70_000));
        for fields in [many, large] {
            let reply: &str = format!("HTTP/1.1 200 OK\r\n{fields}\r\n").leak();
            let (provider, _requests) = scripted(Box::leak(Box::new([reply]))).await;
            let error = client().send(&provider, post(&provider)).await.map(drop).unwrap_err();
            assert_eq!(error.kind, SendErrorKind::Protocol, "{} bytes: {error}", reply.len());
        }
    }

    #[tokio::test]
    async fn a_body_without_framing_ends_with_the_connection() {
        let (provider, mut requests) = scripted(&["HTTP/1.1 200 OK\r\n\r\nto the end"]).await;
        let client = client();
        for connection in 0..2 {
            assert_eq!(text(client.send(&provider, post(&provider)).await.unwrap()).await.unwrap(), "to the end");
            assert_eq!(requests.recv().await.unwrap().0, connection);
        }
    }

    #[tokio::test]
    async fn bytes_after_a_body_never_become_the_next_reply() {
        let smuggled = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nokHTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nevil";
        let (provider, mut requests) = scripted(Box::leak(Box::new([smuggled]))).await;
        let client = client();
        for connection in 0..3 {
            assert_eq!(text(client.send(&provider, post(&provider)).await.unwrap()).await.unwrap(), "ok");
            assert_eq!(requests.recv().await.unwrap().0, connection);
        }
    }

    #[tokio::test]
    async fn a_truncated_body_is_an_error() {
        let (provider, _requests) = scripted(&["HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nhalf"]).await;
        let response = client().send(&provider, post(&provider)).await.unwrap();
        assert!(text(response).await.is_err());
    }

    #[tokio::test]
    async fn redirects_are_returned_not_followed() {
        let (evil, mut visits) = scripted(&[OK]).await;
        let reply: &str =
            format!("HTTP/1.1 302 Found\r\nlocation: {}\r\ncontent-length: 0\r\n\r\n", evil.base_url).leak();
        let (provider, _requests) = scripted(Box::leak(Box::new([reply]))).await;
        let response = client().send(&provider, post(&provider)).await.unwrap();
        assert_eq!(response.status(), StatusCode::FOUND);
        assert!(visits.try_recv().is_err());
    }

    #[tokio::test]
    async fn a_request_to_another_origin_never_leaves() {
        let (evil, mut visits) = scripted(&[OK]).await;
        let error = client().send(&provider("http://127.0.0.1:1/"), post(&evil)).await.unwrap_err();
        assert_eq!(error.kind, SendErrorKind::Unsent);
        assert!(visits.try_recv().is_err());
    }

    #[tokio::test]
    async fn informational_replies_are_told_and_not_final() {
        let reply = "HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";
        let (provider, _requests) = scripted(Box::leak(Box::new([reply]))).await;
        let (told, mut hints) = mpsc::channel(4);
        let mut request = post(&provider);
        hyper::ext::on_informational(&mut request, move |hint| {
            told.try_send((hint.status(), hint.headers()["link"].clone())).unwrap();
        });
        let response = client().send(&provider, request).await.unwrap();
        assert_eq!(response.status(), StatusCode::OK);
        assert_eq!(hints.recv().await.unwrap(), (StatusCode::EARLY_HINTS, "</a>".parse().unwrap()));
    }

    #[tokio::test]
    async fn an_upgraded_connection_carries_bytes_both_ways() {
        let (listener, address) = listen().await;
        tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            read_request(&mut stream).await;
            let switch = b"HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: echo\r\n\r\n";
            stream.write_all(switch).await.unwrap();
            let (mut read, mut write) = stream.split();
            tokio::io::copy(&mut read, &mut write).await.unwrap();
        });
        let provider = provider(&format!("http://{address}/"));
        let request = Request::get(format!("{}realtime", provider.base_url))
            .header("connection", "upgrade")
            .header("upgrade", "echo")
            .body(empty())
            .unwrap();

        let response = client().send(&provider, request).await.unwrap();
        assert_eq!(response.status(), StatusCode::SWITCHING_PROTOCOLS);
        let mut tunnel = TokioIo::new(hyper::upgrade::on(response).await.unwrap());
        tunnel.write_all(b"hello").await.unwrap();
        let mut echo = [0; 5];
        tunnel.read_exact(&mut echo).await.unwrap();
        assert_eq!(&echo, b"hello");
    }

    #[tokio::test]
    async fn a_body_that_breaks_off_is_the_clients_fault() {
        struct Broken;
        impl http_body::Body for Broken {
            type Data = Bytes;
            type Error = io::Error;
            fn poll_frame(
                self: Pin<&mut Self>,
                _: &mut Context<'_>,
            ) -> Poll<Option<Result<http_body::Frame<Bytes>, io::Error>>> {
                Poll::Ready(Some(Err(io::Error::other("client left"))))
            }
        }
        let (provider, _requests) = scripted(&[OK]).await;
        let request = Request::post(provider.base_url.clone()).body(boxed(Broken)).unwrap();
        let error = client().send(&provider, request).await.unwrap_err();
        assert_eq!(error.kind, SendErrorKind::RequestBody, "{error:?}");
    }

    #[tokio::test]
    async fn a_body_that_falls_silent_breaks_off() {
        const LIMIT: Duration = Duration::from_millis(300);
        let (chunks, body) = mpsc::channel::<Bytes>(1);
        let mut body = Upload { body: Channelled(body), limit: LIMIT, alarm: None };
        let begun = tokio::time::Instant::now();
        let slow = tokio::spawn(async move {
            while begun.elapsed() < LIMIT * 2 {
                sleep(LIMIT / 6).await;
                chunks.send(Bytes::from_static(b"x")).await.unwrap();
            }
            chunks
        });
        while begun.elapsed() < LIMIT * 2 {
            assert!(body.frame().await.unwrap().is_ok(), "{:?}", begun.elapsed());
        }
        let _silent = slow.await.unwrap();
        let error = loop {
            if let Err(error) = body.frame().await.unwrap() {
                break error;
            }
        };
        assert_eq!(error.source().unwrap().to_string(), "nothing more came");
    }

    struct Channelled(mpsc::Receiver<Bytes>);

    impl http_body::Body for Channelled {
        type Data = Bytes;
        type Error = io::Error;

        fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<io::Result<Frame<Bytes>>>> {
            self.0.poll_recv(cx).map(|chunk| chunk.map(|chunk| Ok(Frame::data(chunk))))
        }
    }

    // --- TLS

    struct TlsServer {
        listener: TcpListener,
        acceptor: tokio_rustls::TlsAcceptor,
        provider: Provider,
        _dir: tempfile::TempDir,
    }

    impl TlsServer {
        /// A server with a self-signed certificate, and its provider, which trusts it.
        async fn new(alpn: &[&str]) -> TlsServer {
            let (listener, address) = listen().await;
            let own = rcgen::generate_simple_self_signed(vec!["127.0.0.1".to_owned()]).unwrap();
            let dir = tempfile::tempdir().unwrap();
            let ca = dir.path().join("ca.pem");
            fs::write(&ca, own.cert.pem()).unwrap();
            let key = rustls::pki_types::PrivateKeyDer::try_from(own.signing_key.serialize_der()).unwrap();
            let mut config = rustls::ServerConfig::builder_with_provider(tls::crypto_provider())
                .with_safe_default_protocol_versions()
                .unwrap()
                .with_no_client_auth()
                .with_single_cert(vec![own.cert.der().clone()], key)
                .unwrap();
            config.alpn_protocols = alpn.iter().map(|name| name.as_bytes().to_vec()).collect();
            let mut provider = provider(&format!("https://{address}/"));
            provider.ca = Some(ca);
            TlsServer { listener, acceptor: Arc::new(config).into(), provider, _dir: dir }
        }
    }

    #[tokio::test]
    async fn a_certificate_that_nobody_vouches_for_is_refused() {
        let mut server = TlsServer::new(&["http/1.1"]).await;
        server.provider.ca = None;
        let serve = async {
            let (stream, _) = server.listener.accept().await.unwrap();
            assert!(server.acceptor.accept(stream).await.is_err());
        };
        let client = client();
        let (_, reply) = tokio::join!(serve, client.send(&server.provider, post(&server.provider)));
        let error = reply.unwrap_err();
        assert_eq!(error.kind, SendErrorKind::Tls, "{error:?}");
        assert!(error.surely_not_processed());
    }

    #[tokio::test]
    async fn http_2_is_spoken_where_the_server_does_and_a_refused_stream_is_known() {
        let server = TlsServer::new(&["h2"]).await;
        let serve = async {
            let (stream, _) = server.listener.accept().await.unwrap();
            let mut connection = h2::server::handshake(server.acceptor.accept(stream).await.unwrap()).await.unwrap();
            let (_, mut respond) = connection.accept().await.unwrap().unwrap();
            respond.send_response(Response::new(()), true).unwrap();
            let (_, mut respond) = connection.accept().await.unwrap().unwrap();
            respond.send_reset(h2::Reason::REFUSED_STREAM);
            let (_, mut respond) = connection.accept().await.unwrap().unwrap();
            respond.send_reset(h2::Reason::INTERNAL_ERROR);
            while connection.accept().await.is_some() {}
        };
        let calls = async {
            let client = client();
            let response = client.send(&server.provider, post(&server.provider)).await.unwrap();
            assert_eq!(response.version(), Version::HTTP_2);
            let refused = client.send(&server.provider, post(&server.provider)).await.unwrap_err();
            assert_eq!(refused.kind, SendErrorKind::RefusedStream, "{refused:?}");
            let reset = client.send(&server.provider, post(&server.provider)).await.unwrap_err();
            assert_eq!(reset.kind, SendErrorKind::Reset, "{reset:?}");
        };
        tokio::select! {
            () = serve => panic!("the server ended first"),
            () = calls => {}
        }
    }

    #[tokio::test]
    async fn a_request_to_switch_protocols_goes_over_http_1() {
        let server = TlsServer::new(&["h2", "http/1.1"]).await;
        let serve = async {
            let (stream, _) = server.listener.accept().await.unwrap();
            let mut stream = server.acceptor.accept(stream).await.unwrap();
            assert_ne!(stream.get_ref().1.alpn_protocol(), Some(b"h2".as_slice()));
            let switch = b"HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n";
            stream.write_all(switch).await.unwrap();
            stream
        };
        let request = Request::get(format!("{}realtime", server.provider.base_url))
            .header("connection", "upgrade")
            .header("upgrade", "websocket")
            .body(empty())
            .unwrap();
        let client = client();
        let (_stream, response) = tokio::join!(serve, client.send(&server.provider, request));
        assert_eq!(response.unwrap().status(), StatusCode::SWITCHING_PROTOCOLS);
    }

    #[tokio::test]
    async fn roots_that_cannot_be_read_are_reported_when_prepared() {
        let dir = tempfile::tempdir().unwrap();
        let mut provider = provider("https://127.0.0.1:1/");
        provider.ca = Some(dir.path().join("absent.pem"));
        assert!(matches!(client().prepare(&provider), Err(ClientError::CaFile(..))));
        fs::write(dir.path().join("empty.pem"), "no certificate").unwrap();
        provider.ca = Some(dir.path().join("empty.pem"));
        assert!(matches!(client().prepare(&provider), Err(ClientError::CaRoots(_, tls::RootsError::Empty))));
    }
}
