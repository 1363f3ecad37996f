//! Sockets: accepts, sniffs HTTP/1 or 2, guards the framing, and lets calls in flight end before the process does.

use std::{
    convert::Infallible,
    future::Future,
    io,
    net::SocketAddr,
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use hyper::{
    Request, Response,
    body::{Body, Incoming},
    server::conn::{http1, http2},
    service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use socket2::{SockRef, TcpKeepalive};
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
    impatience::{Given, Streams},
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
/// Time for the client of an HTTP/2 stream to make room for more of its reply; as for the bytes of HTTP/1.
const H2_STALL_MAX: Duration = Duration::from_secs(60);
/// What HTTP/2 with prior knowledge begins with: RFC 9113 §3.4.
const H2_PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// Pauses between looks at a connection that has sent a part of the preface: doubled each time, so that those who send no more of it
/// cost nothing.
const SNIFF_PAUSE_MIN: Duration = Duration::from_millis(1);
const SNIFF_PAUSE_MAX: Duration = Duration::from_millis(250);
/// A client that has vanished is noticed after about two minutes, where nothing else asks after it: in tunnels.
const TCP_KEEP_ALIVE: TcpKeepalive =
    TcpKeepalive::new().with_time(Duration::from_secs(60)).with_interval(Duration::from_secs(15)).with_retries(4);
/// Pause after an accept that failed for want of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// What answers requests of one listener.
pub trait Handler: Clone + Send + Sync + 'static {
    /// What its answers carry.
    type Body: Body<Data = Bytes, Error: Into<BoxError>> + Send + Unpin + 'static;

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
    // Accepted connections inherit it.
    if let Err(error) = SockRef::from(&listener).set_tcp_keepalive(&TCP_KEEP_ALIVE) {
        tracing::warn!(%error, "connections of clients that vanish will not be noticed");
    }
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
            requests: AtomicU64::new(0),
            h2_idle: KEEP_ALIVE_IDLE,
            h2_stall: H2_STALL_MAX,
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
    /// Requests so far.
    requests: AtomicU64,
    /// See [`KEEP_ALIVE_IDLE`] and [`H2_STALL_MAX`].
    h2_idle: Duration,
    h2_stall: Duration,
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
            async move { this.answer(request, None).await.map(|response| response.map(Given)) }
        });
        let connection = http2::Builder::new(Streams(this.h2_stall))
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
            () = Quiet::new(this.unused()) => {
                if this.requests.load(Ordering::Relaxed) == 0 {
                    // Perhaps not even greeted: hyper would go on waiting for that.
                    return Ok(());
                }
                connection.as_mut().graceful_shutdown();
            }
        }
        Ok(connection.await?)
    }

    /// When no request has come for long enough. Streams that are under way then may end; hyper has no such limit for HTTP/2.
    async fn unused(&self) {
        let mut seen = 0;
        loop {
            sleep(self.h2_idle).await;
            let now = self.requests.load(Ordering::Relaxed);
            if now == seen {
                return;
            }
            seen = now;
        }
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
        self.requests.fetch_add(1, Ordering::Relaxed);
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

/// Whether a connection begins with HTTP/2's preface. Looks without taking; once it has begun, for no longer than a head may take.
async fn sniff_h2(stream: &TcpStream, limit: Duration) -> io::Result<bool> {
    let mut deadline = Instant::now() + KEEP_ALIVE_IDLE.max(limit);
    let mut pause = SNIFF_PAUSE_MIN;
    let mut seen = [0; H2_PREFACE.len()];
    loop {
        let count = timeout_at(deadline, stream.peek(&mut seen)).await.map_err(|_| io::ErrorKind::TimedOut)??;
        if count == 0 || seen[..count] != H2_PREFACE[..count] {
            return Ok(false);
        }
        if count == H2_PREFACE.len() {
            return Ok(true);
        }
        if pause == SNIFF_PAUSE_MIN {
            deadline = Instant::now() + limit;
        }
        // Part of the preface: more is on its way, and `peek` would answer the same until it is here.
        timeout_at(deadline, sleep(pause)).await.map_err(|_| io::ErrorKind::TimedOut)?;
        pause = (pause * 2).min(SNIFF_PAUSE_MAX);
    }
}

#[cfg(test)]
mod tests {
    use std::{
        pin::Pin,
        task::{Context, Poll},
    };

    use http_body::Frame;
    use tokio::{io::duplex, sync::Notify};

    use super::*;

    const LIMIT: Duration = Duration::from_millis(400);

    /// Answers everything with a body without end, and tells when that is dropped.
    #[derive(Clone, Default)]
    struct Endless(Arc<Notify>);

    struct EndlessBody(Arc<Notify>);

    impl Handler for Endless {
        type Body = EndlessBody;

        async fn handle(&self, _: Request<Incoming>, _: bool) -> Response<EndlessBody> {
            Response::new(EndlessBody(self.0.clone()))
        }
    }

    impl Body for EndlessBody {
        type Data = Bytes;
        type Error = Infallible;

        fn poll_frame(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
            Poll::Ready(Some(Ok(Frame::data(Bytes::from_static(&[b'x'; 512])))))
        }
    }

    impl Drop for EndlessBody {
        fn drop(&mut self) {
            self.0.notify_one();
        }
    }

    fn connection(handler: Endless) -> Connection<Endless> {
        let limits = Limits { header_timeout: Duration::from_secs(10), connections: Arc::new(Semaphore::new(1)) };
        Connection {
            handler,
            limits,
            late: false,
            requests: AtomicU64::new(0),
            h2_idle: LIMIT,
            h2_stall: LIMIT,
            shutdown: Shutdown::default(),
        }
    }

    #[tokio::test]
    async fn an_http_2_connection_without_requests_is_closed() {
        for speaks in [false, true] {
            let (client, server) = duplex(4096);
            let begun = Instant::now();
            let served = tokio::spawn(connection(Endless::default()).run_h2(server));
            let _silent = if speaks {
                let (send, connection) = h2::client::handshake(client).await.unwrap();
                tokio::spawn(connection);
                Ok::<h2::client::SendRequest<Bytes>, _>(send)
            } else {
                Err(client)
            };
            // Whether that is an error is of no interest.
            let _ = served.await.unwrap();
            assert!(begun.elapsed() >= LIMIT, "{:?}", begun.elapsed());
        }
    }

    #[tokio::test]
    async fn an_http_2_stream_whose_client_takes_nothing_is_reset_and_a_slow_one_is_not() {
        let (client, server) = duplex(4096);
        let handler = Endless::default();
        tokio::spawn(connection(handler.clone()).run_h2(server));
        let (send, connection) =
            h2::client::Builder::new().initial_window_size(1024).handshake::<_, Bytes>(client).await.unwrap();
        tokio::spawn(connection);
        let mut send = send.ready().await.unwrap();
        let (response, _) = send.send_request(Request::get("http://a/").body(()).unwrap(), true).unwrap();
        let mut body = response.await.unwrap().into_body();
        for _ in 0..3 {
            sleep(LIMIT / 4).await;
            let taken = body.data().await.unwrap().unwrap().len();
            body.flow_control().release_capacity(taken).unwrap();
        }

        let stalled = Instant::now();
        handler.0.notified().await;
        assert!(stalled.elapsed() >= LIMIT / 2, "{:?}", stalled.elapsed());
        let reset = loop {
            if let Err(error) = body.data().await.unwrap() {
                break error;
            }
        };
        assert_eq!(reset.reason(), Some(h2::Reason::CANCEL));
    }
}
