//! Sockets: accepts, sniffs HTTP/1 or 2, guards the framing, and lets calls in flight end before the process does.

use std::{convert::Infallible, future::Future, io, net::SocketAddr, pin::pin, sync::Arc, time::Duration};

use bytes::Bytes;
use hyper::{
    Request, Response,
    body::{Body, Incoming},
    server::conn::{http1, http2},
    service::service_fn,
};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore},
    time::{Instant, sleep, timeout_at},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::gateway::{
    cores::Cores,
    framing::{self, Guarded, Handle},
    quiet::Quiet,
    tls::TlsAcceptor,
};

/// Idle time after which a kept-alive connection is closed: above most clients' own, so that they close first.
const KEEP_ALIVE_IDLE: Duration = Duration::from_secs(75);
/// Bytes of a request's head; more is answered with 431, as are more than 100 fields. That is hyper's own limit: with one that
/// is set, be it the same, hyper clears room for so many fields with each message.
const HEAD_BYTES_MAX: usize = 64 * 1024;
/// Streams at the same time on one HTTP/2 connection, and what each, and all of them, may send ahead.
const H2_STREAMS_MAX: u32 = 100;
const H2_STREAM_WINDOW_BYTES: u32 = 64 * 1024;
const H2_CONNECTION_WINDOW_BYTES: u32 = 1024 * 1024;
const H2_PING_INTERVAL: Duration = Duration::from_secs(30);
/// What HTTP/2 with prior knowledge begins with: RFC 9113 §3.4.
const H2_PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// Pause after an accept that failed for want of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// What answers requests of one listener.
pub trait Handler: Clone + Send + Sync + 'static {
    /// What its answers carry.
    type Body: Body<Data = Bytes, Error: Into<BoxError>> + Send + 'static;

    /// What answers requests of one connection, where it matters who is at its other end.
    #[must_use]
    fn of_peer(&self, _peer: Option<SocketAddr>) -> Self {
        self.clone()
    }

    /// Answers one request. `late`: its connection came after the process began to go down.
    fn handle(&self, request: Request<Incoming>, late: bool) -> impl Future<Output = Response<Self::Body>> + Send;
}

/// Limits of one listener's connections.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Time for a request's head to arrive once it has begun.
    pub header_timeout: Duration,
    /// Connections at the same time; further ones wait in the kernel's queue.
    pub connections: Arc<Semaphore>,
}

/// How connections learn that the process goes down, and how it learns that they are gone.
#[derive(Debug, Clone, Default)]
pub struct Shutdown {
    /// Cancelled when the process begins to go down.
    pub draining: CancellationToken,
    /// Cancelled when it is over for good: what is still open is cut.
    pub over: CancellationToken,
    /// Connections and tunnels.
    pub connections: TaskTracker,
}

/// Accepts connections until `over`. While draining it goes on accepting, so that probes get their answer. Connections are served on
/// `cores` where they are given, else on the runtime of the listener.
pub async fn listen<H: Handler>(
    listener: TcpListener,
    tls: Option<TlsAcceptor>,
    handler: H,
    limits: Limits,
    cores: Option<Cores>,
    shutdown: Shutdown,
) {
    loop {
        let accepted = tokio::select! {
            () = shutdown.over.cancelled() => return,
            accepted = accept(&listener, &limits) => accepted,
        };
        let Some((stream, permit)) = accepted else {
            sleep(ACCEPT_PAUSE).await;
            continue;
        };
        let connection = Connection {
            handler: handler.of_peer(stream.peer_addr().ok()),
            limits: limits.clone(),
            late: shutdown.draining.is_cancelled(),
            shutdown: shutdown.clone(),
        };
        let tls = tls.clone();
        let Some(cores) = &cores else {
            shutdown.connections.spawn(serve(connection, stream, tls, permit));
            continue;
        };
        // A stream belongs to the runtime that has it watched.
        let Ok(stream) = stream.into_std() else { continue };
        let seat = cores.seat();
        let handle = seat.handle().clone();
        let served = async move {
            if let Ok(stream) = TcpStream::from_std(stream) {
                serve(connection, stream, tls, permit).await;
            }
            drop(seat);
        };
        shutdown.connections.spawn_on(served, &handle);
    }
}

/// Serves one connection until it ends, or everything does.
async fn serve<H: Handler>(
    connection: Connection<H>,
    stream: TcpStream,
    tls: Option<TlsAcceptor>,
    permit: OwnedSemaphorePermit,
) {
    let over = connection.shutdown.over.clone();
    tokio::select! {
        biased;
        () = connection.run(stream, tls) => {}
        () = Quiet::new(over.cancelled()) => {}
    }
    drop(permit);
}

/// The next connection; `None` when the system is short of something, which a pause may mend.
async fn accept(listener: &TcpListener, limits: &Limits) -> Option<(TcpStream, OwnedSemaphorePermit)> {
    let permit = limits.connections.clone().acquire_owned().await.ok()?;
    match listener.accept().await {
        Ok((stream, _)) => {
            // A token a packet: waiting to fill packets would be what the reader of a stream notices.
            let _ = stream.set_nodelay(true);
            Some((stream, permit))
        }
        Err(error) => {
            tracing::warn!(%error, "a connection could not be accepted");
            None
        }
    }
}

/// How many connections are held at most: half of the file descriptors, since each call needs one upstream too.
#[must_use]
pub fn connections_max() -> usize {
    let limits = std::fs::read_to_string("/proc/self/limits").unwrap_or_default();
    let open_files = limits.lines().find(|line| line.starts_with("Max open files"));
    let soft = open_files.and_then(|line| line.split_whitespace().nth(3)?.parse::<usize>().ok());
    (soft.unwrap_or(1024) / 2).max(16)
}

struct Connection<H> {
    handler: H,
    limits: Limits,
    late: bool,
    shutdown: Shutdown,
}

impl<H: Handler> Connection<H> {
    async fn run(self, stream: TcpStream, tls: Option<TlsAcceptor>) {
        let ended = match tls {
            Some(acceptor) => self.run_tls(stream, &acceptor).await,
            None => match sniff_h2(&stream, self.limits.header_timeout).await {
                Ok(true) => self.run_h2(stream).await,
                Ok(false) => self.run_h1(stream).await,
                Err(error) => Err(error.into()),
            },
        };
        if let Err(error) = ended {
            // Clients come and go; a connection that ends badly is their business, and each call has a line of its own.
            tracing::debug!(%error, "a client's connection ended");
        }
    }

    async fn run_tls(self, stream: TcpStream, acceptor: &TlsAcceptor) -> Result<(), BoxError> {
        let stream = acceptor.accept(stream).await?;
        match stream.get_ref().1.alpn_protocol() {
            Some(b"h2") => self.run_h2(stream).await,
            _ => self.run_h1(stream).await,
        }
    }

    async fn run_h1<S>(self, stream: S) -> Result<(), BoxError>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let (guarded, guard) = Guarded::new(stream, self.limits.header_timeout);
        let service = service_fn(|request| self.answer(request, Some(&guard)));
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(KEEP_ALIVE_IDLE)
            .max_buf_size(HEAD_BYTES_MAX)
            .serve_connection(TokioIo::new(guarded), service)
            .with_upgrades();
        let mut connection = pin!(connection);
        tokio::select! {
            biased;
            ended = connection.as_mut() => return Ok(ended?),
            () = Quiet::new(self.draining()) => connection.as_mut().graceful_shutdown(),
        }
        Ok(connection.await?)
    }

    async fn run_h2<S>(self, stream: S) -> Result<(), BoxError>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let this = Arc::new(self);
        // hyper runs HTTP/2 streams as tasks of their own, so the service may not borrow.
        let answering = this.clone();
        let service = service_fn(move |request| {
            let this = answering.clone();
            async move { this.answer(request, None).await }
        });
        let connection = http2::Builder::new(TokioExecutor::new())
            .timer(TokioTimer::new())
            .max_concurrent_streams(H2_STREAMS_MAX)
            .max_header_list_size(HEAD_BYTES_MAX as u32)
            .initial_stream_window_size(H2_STREAM_WINDOW_BYTES)
            .initial_connection_window_size(H2_CONNECTION_WINDOW_BYTES)
            .keep_alive_interval(H2_PING_INTERVAL)
            .serve_connection(TokioIo::new(stream), service);
        let mut connection = pin!(connection);
        tokio::select! {
            biased;
            ended = connection.as_mut() => return Ok(ended?),
            () = Quiet::new(this.draining()) => connection.as_mut().graceful_shutdown(),
        }
        Ok(connection.await?)
    }

    /// When this connection has to take no further requests. One that came while draining may bring one.
    async fn draining(&self) {
        if self.late {
            return std::future::pending().await;
        }
        self.shutdown.draining.cancelled().await;
    }

    async fn answer(
        &self,
        request: Request<Incoming>,
        guard: Option<&Handle>,
    ) -> Result<Response<H::Body>, Infallible> {
        let switches = framing::asks_to_switch(request.headers());
        let mut response = self.handler.handle(request, self.late).await;
        match guard {
            Some(guard) if response.status() == http::StatusCode::SWITCHING_PROTOCOLS => guard.open_tunnel(),
            Some(_) if switches || self.late => close_after(&mut response),
            _ => {}
        }
        Ok(response)
    }
}

/// Why a connection or a body ended early.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// After a refused switch the client may already have sent bytes of the other protocol: nothing after it can be read as HTTP.
fn close_after<B>(response: &mut Response<B>) {
    response.headers_mut().insert(http::header::CONNECTION, http::HeaderValue::from_static("close"));
}

/// Whether a connection begins with HTTP/2's preface. Looks without taking, and not for longer than a head may take.
async fn sniff_h2(stream: &TcpStream, limit: Duration) -> io::Result<bool> {
    let deadline = Instant::now() + KEEP_ALIVE_IDLE.max(limit);
    let mut seen = [0; H2_PREFACE.len()];
    loop {
        let count = timeout_at(deadline, stream.peek(&mut seen)).await.map_err(|_| io::ErrorKind::TimedOut)??;
        if count == 0 || seen[..count] != H2_PREFACE[..count] {
            return Ok(false);
        }
        if count == H2_PREFACE.len() {
            return Ok(true);
        }
        // Part of the preface: more is on its way, and `peek` would answer the same until it is here.
        timeout_at(deadline, sleep(Duration::from_millis(1))).await.map_err(|_| io::ErrorKind::TimedOut)?;
    }
}
