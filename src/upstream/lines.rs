//! Plain HTTP/1 connections, each driven by the call that uses it, and kept between calls.
//!
//! hyper-util gives each connection a task of its own, which a call has to wake for its request and is woken by for the reply, as
//! a rule on another core. Here the connection is polled where its call is: nothing but the socket wakes anybody. A connection that
//! is kept has no task at all; whether its server closed it is seen when it is taken again, or swept.
//!
//! For `http://` only: over TLS most providers speak HTTP/2, whose connections are shared and need tasks.

use std::{
    pin::{Pin, pin},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, RwLock, Weak,
        atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering},
    },
    task::{Context, Poll, Wake, Waker},
    time::Duration,
};

use bytes::Bytes;
use futures_util::task::AtomicWaker;
use http::{HeaderValue, Request, Response, Uri, Version, header, uri::Authority};
use http_body::{Body, Frame, SizeHint};
use http_body_util::BodyExt;
use hyper::{
    body::Incoming,
    client::conn::{
        TrySendError,
        http1::{self, Connection, SendRequest},
    },
};
use tokio::runtime::{self, Handle};
use tower::Service;

use super::client::{self, Connector, Io, Received, SendError, SendErrorKind, UpstreamBody, Watch};

/// Idle connections kept per origin.
const IDLE_MAX: usize = 256;
/// How often idle connections are looked through.
const SWEEP_INTERVAL: Duration = Duration::from_secs(5);
/// Sweeps that an idle connection stays for: together a little less than the 60 s after which many servers close theirs, so that the
/// race of a request with that close is rare.
const SWEEPS_MAX: u64 = 10;
/// Rounds between a connection and what waits for it before others get their turn.
const ROUNDS_MAX: usize = 16;

/// The connections to all origins.
pub(super) struct Lines {
    connector: Connector,
    origins: RwLock<Vec<Arc<Origin>>>,
    sweeping: AtomicBool,
}

/// One server, and the connections to it that nobody uses now.
struct Origin {
    authority: Authority,
    /// What `Host` says.
    host: HeaderValue,
    uri: Uri,
    idle: Mutex<Vec<Kept>>,
    sweeps: AtomicU64,
}

/// A connection that nobody uses, with the runtime that watches its socket: on another one, each event would have to be carried over.
type Kept = (runtime::Id, Box<Line>);

/// One connection.
struct Line {
    send: SendRequest<UpstreamBody>,
    /// `None` once it has ended.
    connection: Option<Connection<Io, UpstreamBody>>,
    watch: Arc<Watch>,
    bell: Arc<Bell>,
    /// Rings the bell.
    waker: Waker,
    /// Its server speaks HTTP/1.0: hyper would send such a server no body at all where its length is not known.
    outdated: bool,
    /// [`Origin::sweeps`] when it was put down.
    kept_at: u64,
}

/// What a connection wakes: the task of whichever call uses it, and not while that is polling it anyway.
struct Bell {
    state: AtomicU8,
    task: AtomicWaker,
}

/// Nothing is left to do: the next ring wakes the task.
const WAITING: u8 = 0;
/// Polled just now, or kept by nobody.
const POLLING: u8 = 1;
/// There is something to poll for.
const RUNG: u8 = 2;

/// A reply's body with the connection that it comes from, which goes back when the body has come to its end.
struct Driven {
    body: Incoming,
    line: Option<Box<Line>>,
    origin: Arc<Origin>,
}

// === impl Lines ===

impl Lines {
    pub(super) fn new(connector: Connector) -> Arc<Lines> {
        Arc::new(Lines { connector, origins: RwLock::default(), sweeping: AtomicBool::new(false) })
    }

    /// Sends a request with an absolute URI and returns the reply once its head is there. One that a kept connection did not take any
    /// more goes over another one.
    pub(super) async fn send(
        self: &Arc<Self>,
        mut request: Request<UpstreamBody>,
    ) -> Result<Response<Received>, SendError> {
        let origin = self.origin(request.uri())?;
        *request.version_mut() = Version::HTTP_11;
        request.headers_mut().insert(header::HOST, origin.host.clone());
        *request.uri_mut() = request.uri().path_and_query().cloned().map_or_else(Uri::default, Uri::from);
        loop {
            let kept = origin.take();
            let reused = kept.is_some();
            let mut line = match kept {
                Some(line) => line,
                // Boxed, since the future of every call would have to hold the room for it.
                None => Box::pin(self.connect(&origin)).await?,
            };
            match line.exchange(request).await {
                Ok(response) => return answer(line, response, origin),
                Err(mut failed) => match failed.take_message() {
                    Some(unsent) if reused => request = unsent,
                    _ => {
                        let error = client::classify_exchange(failed.into_error(), &line.watch);
                        if error.is_stale() {
                            origin.forget(line.kept_at);
                        }
                        return Err(error);
                    }
                },
            }
        }
    }

    /// What is known of the URI's origin.
    fn origin(self: &Arc<Self>, uri: &Uri) -> Result<Arc<Origin>, SendError> {
        let unsent = || SendError::new(SendErrorKind::Unsent, "request names no server");
        let authority = uri.authority().ok_or_else(unsent)?;
        let known = |origins: &[Arc<Origin>]| origins.iter().find(|origin| origin.authority == *authority).cloned();
        if let Some(origin) = known(&self.origins.read().unwrap_or_else(PoisonError::into_inner)) {
            return Ok(origin);
        }
        let mut origins = self.origins.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(origin) = known(&origins) {
            return Ok(origin);
        }
        let origin = Arc::new(Origin::of(authority).ok_or_else(unsent)?);
        origins.push(origin.clone());
        if !self.sweeping.swap(true, Ordering::Relaxed) {
            tokio::spawn(sweep(Arc::downgrade(self)));
        }
        Ok(origin)
    }

    async fn connect(&self, origin: &Origin) -> Result<Box<Line>, SendError> {
        let connecting = self.connector.clone().call(origin.uri.clone());
        let io = connecting.await.map_err(client::classify_connect)?;
        let watch = io.inner().watch();
        let mut builder = http1::Builder::new();
        builder.max_buf_size(client::RESPONSE_HEAD_BYTES_MAX);
        let (send, connection) =
            builder.handshake(io).await.map_err(|error| SendError::new(SendErrorKind::Connect, error))?;
        Ok(Box::new(Line::new(send, connection, watch)))
    }
}

/// Closes connections that were idle for too long, or that their servers closed. Ends with the client.
async fn sweep(lines: Weak<Lines>) {
    loop {
        tokio::time::sleep(SWEEP_INTERVAL).await;
        let Some(lines) = lines.upgrade() else { return };
        let origins = lines.origins.read().unwrap_or_else(PoisonError::into_inner).clone();
        origins.iter().for_each(|origin| origin.sweep());
    }
}

/// The reply to hand on, unless two readers could see two of them in it: then nothing more is read from its connection.
fn answer(
    mut line: Box<Line>,
    response: Response<Incoming>,
    origin: Arc<Origin>,
) -> Result<Response<Received>, SendError> {
    line.watch.answered();
    line.outdated = response.version() < Version::HTTP_11;
    client::check_head(&response).map_err(|violation| SendError::new(SendErrorKind::Protocol, violation))?;
    Ok(response.map(|body| {
        let mut driven = Driven { body, line: Some(line), origin };
        if driven.body.is_end_stream() {
            driven.put_down();
        }
        driven.boxed_unsync()
    }))
}

// === impl Origin ===

impl Origin {
    fn of(authority: &Authority) -> Option<Origin> {
        let host = match authority.port_u16() {
            None | Some(80) => HeaderValue::from_str(authority.host()),
            Some(port) => HeaderValue::try_from(format!("{}:{port}", authority.host())),
        };
        let uri = Uri::builder().scheme("http").authority(authority.clone()).path_and_query("/").build();
        Some(Origin {
            authority: authority.clone(),
            host: host.ok()?,
            uri: uri.ok()?,
            idle: Mutex::default(),
            sweeps: AtomicU64::new(0),
        })
    }

    fn idle(&self) -> MutexGuard<'_, Vec<Kept>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The connection that was used last, unless its server has closed it.
    fn take(&self) -> Option<Box<Line>> {
        let here = Handle::current().id();
        loop {
            let mut idle = self.idle();
            let index = idle.iter().rposition(|(runtime, _)| *runtime == here)?;
            let (_, mut line) = idle.remove(index);
            drop(idle);
            if line.is_open() {
                return Some(line);
            }
        }
    }

    fn keep(&self, mut line: Box<Line>) {
        line.kept_at = self.sweeps.load(Ordering::Relaxed);
        // A task that ended would keep its memory.
        drop(line.bell.task.take());
        let mut idle = self.idle();
        // The oldest gives way: else those of one core could leave no room for another's.
        let oldest = (idle.len() >= IDLE_MAX).then(|| idle.remove(0));
        idle.push((Handle::current().id(), line));
        drop(idle);
        drop(oldest);
    }

    /// Closes what was put down no later than a connection that turned out to be dead: what befell that one befell them too, and
    /// a second try is not to meet them.
    fn forget(&self, kept_at: u64) {
        let mut idle = self.idle();
        let closed: Vec<Kept> = idle.extract_if(.., |(_, line)| line.kept_at <= kept_at).collect();
        drop(idle);
        drop(closed);
    }

    fn sweep(&self) {
        let sweeps = self.sweeps.fetch_add(1, Ordering::Relaxed);
        let mut closed = Vec::new();
        let mut idle = self.idle();
        for i in (0..idle.len()).rev() {
            let line = &mut idle[i].1;
            if sweeps.saturating_sub(line.kept_at) >= SWEEPS_MAX || !line.is_open() {
                closed.push(idle.remove(i));
            }
        }
        drop(idle);
        // Closing takes a system call each: no call waits for that.
        drop(closed);
    }
}

// === impl Line ===

impl Line {
    fn new(send: SendRequest<UpstreamBody>, connection: Connection<Io, UpstreamBody>, watch: Arc<Watch>) -> Line {
        let bell = Arc::new(Bell { state: AtomicU8::new(RUNG), task: AtomicWaker::new() });
        let waker = Waker::from(bell.clone());
        Line { send, connection: Some(connection), watch, bell, waker, outdated: false, kept_at: 0 }
    }

    /// The reply's head. Dropped before, the connection closes with its line.
    async fn exchange(
        &mut self,
        request: Request<UpstreamBody>,
    ) -> Result<Response<Incoming>, TrySendError<Request<UpstreamBody>>> {
        let mut replied = pin!(self.send.try_send_request(request));
        std::future::poll_fn(|cx| self.poll_beside(cx, |cx| replied.as_mut().poll(cx))).await
    }

    /// Polls what waits for this connection, and the connection, in turns, until neither has anything to tell the other.
    fn poll_beside<T>(&mut self, cx: &Context<'_>, mut wanted: impl FnMut(&mut Context<'_>) -> Poll<T>) -> Poll<T> {
        self.bell.task.register(cx.waker());
        if self.bell.state.load(Ordering::Acquire) == WAITING {
            return Poll::Pending;
        }
        let waker = self.waker.clone();
        for _ in 0..ROUNDS_MAX {
            self.bell.state.swap(POLLING, Ordering::AcqRel);
            if let Poll::Ready(value) = wanted(&mut Context::from_waker(&waker)) {
                return Poll::Ready(value);
            }
            self.drive();
            let settled = self.bell.state.compare_exchange(POLLING, WAITING, Ordering::AcqRel, Ordering::Acquire);
            if settled.is_ok() {
                return Poll::Pending;
            }
        }
        // tokio rings at once where a task has done much without a pause: others are to have their turn.
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    /// Lets the connection do what it can do now.
    fn drive(&mut self) {
        let Some(connection) = &mut self.connection else { return };
        if Pin::new(connection).poll(&mut Context::from_waker(&self.waker)).is_ready() {
            // How it ended is told to whoever waits for it.
            self.connection = None;
        }
    }

    /// Whether it can take a request, as far as can be known on this side.
    fn is_open(&mut self) -> bool {
        if self.bell.state.load(Ordering::Acquire) == RUNG {
            self.settle();
        }
        self.connection.is_some() && self.send.is_ready() && !self.outdated
    }

    /// Drives it until it has nothing to do. Rings wake nobody from then on.
    fn settle(&mut self) {
        for _ in 0..ROUNDS_MAX {
            self.bell.state.swap(POLLING, Ordering::AcqRel);
            self.drive();
            if self.bell.state.load(Ordering::Acquire) == POLLING {
                return;
            }
        }
    }
}

impl Wake for Bell {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        if self.state.swap(RUNG, Ordering::AcqRel) == WAITING {
            self.task.wake();
        }
    }
}

// === impl Driven ===

impl Driven {
    /// Gives the connection back where it can take another request.
    fn put_down(&mut self) {
        let Some(mut line) = self.line.take() else { return };
        line.settle();
        if line.is_open() {
            self.origin.keep(line);
        }
    }
}

impl Body for Driven {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let this = self.get_mut();
        let body = &mut this.body;
        let Some(line) = &mut this.line else { return Pin::new(body).poll_frame(cx) };
        let polled = line.poll_beside(cx, |cx| Pin::new(&mut *body).poll_frame(cx));
        match &polled {
            Poll::Ready(Some(Err(_))) => this.line = None,
            Poll::Ready(None) => this.put_down(),
            // Whoever reads need not ask once more.
            Poll::Ready(Some(Ok(frame))) if frame.is_trailers() || this.body.is_end_stream() => this.put_down(),
            _ => {}
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt;
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::{TcpListener, TcpStream},
    };

    use super::*;
    use crate::upstream::client::{Client, empty};

    const OK: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";

    async fn listen() -> (TcpListener, String) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/", listener.local_addr().unwrap());
        (listener, url)
    }

    fn get(url: &str) -> Request<UpstreamBody> {
        Request::get(url).body(empty()).unwrap()
    }

    async fn read_head(stream: &mut TcpStream) -> String {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            assert_ne!(stream.read_buf(&mut head).await.unwrap(), 0, "closed");
        }
        String::from_utf8(head).unwrap()
    }

    async fn whole(response: Response<Received>) -> Bytes {
        response.into_body().collect().await.unwrap().to_bytes()
    }

    fn client() -> Client {
        Client::new(Duration::from_secs(5)).unwrap()
    }

    #[tokio::test]
    async fn a_kept_connection_serves_the_next_call_of_another_task() {
        let (listener, url) = listen().await;
        let server = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            for _ in 0..3 {
                let head = read_head(&mut stream).await;
                assert!(head.starts_with("GET / HTTP/1.1\r\n"), "{head}");
                assert!(head.contains(&format!("host: {}\r\n", stream.local_addr().unwrap())), "{head}");
                stream.write_all(OK).await.unwrap();
            }
        });
        let client = client();
        for _ in 0..3 {
            let (client, url) = (client.clone(), url.clone());
            let call = async move { whole(client.send_anywhere(get(&url)).await.unwrap()).await };
            assert_eq!(tokio::spawn(call).await.unwrap(), "ok");
        }
        server.await.unwrap();
    }

    #[tokio::test]
    async fn a_kept_connection_that_its_server_closed_is_not_used() {
        let (listener, url) = listen().await;
        let client = client();
        for _ in 0..3 {
            let serve = async {
                let (mut stream, _) = listener.accept().await.unwrap();
                read_head(&mut stream).await;
                stream.write_all(OK).await.unwrap();
            };
            let (_, response) = tokio::join!(serve, client.send_anywhere(get(&url)));
            assert_eq!(whole(response.unwrap()).await, "ok");
            // Lets the runtime hear of the close. A call that overtook it would fail as one on a stale connection.
            tokio::task::yield_now().await;
        }
    }

    #[tokio::test]
    async fn chunks_pass_one_by_one_and_a_reply_that_is_dropped_closes_its_connection() {
        let (listener, url) = listen().await;
        let client = client();
        let serve = async {
            let (mut stream, _) = listener.accept().await.unwrap();
            read_head(&mut stream).await;
            stream.write_all(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\none\r\n").await.unwrap();
            stream
        };
        let (mut stream, response) = tokio::join!(serve, client.send_anywhere(get(&url)));
        let mut body = response.unwrap().into_body();
        assert_eq!(body.frame().await.unwrap().unwrap().into_data().unwrap(), "one");
        let (_, frame) = tokio::join!(stream.write_all(b"3\r\ntwo\r\n"), body.frame());
        assert_eq!(frame.unwrap().unwrap().into_data().unwrap(), "two");
        drop(body);
        assert_eq!(stream.read(&mut [0; 1]).await.unwrap(), 0);
    }

    #[tokio::test]
    async fn a_call_that_is_given_up_closes_its_connection() {
        let (listener, url) = listen().await;
        let client = client();
        let call = tokio::spawn(async move { client.send_anywhere(get(&url)).await.map(drop) });
        let (mut stream, _) = listener.accept().await.unwrap();
        read_head(&mut stream).await;
        call.abort();
        assert_eq!(stream.read(&mut [0; 1]).await.unwrap(), 0);
    }

    #[tokio::test]
    async fn a_connection_that_nobody_uses_is_closed_when_it_was_swept_often_enough() {
        let (listener, url) = listen().await;
        let client = client();
        let serve = async {
            let (mut stream, _) = listener.accept().await.unwrap();
            read_head(&mut stream).await;
            stream.write_all(OK).await.unwrap();
            stream
        };
        let (mut stream, response) = tokio::join!(serve, client.send_anywhere(get(&url)));
        assert_eq!(whole(response.unwrap()).await, "ok");
        let origin = client.lines().origin(&url.parse().unwrap()).ok().unwrap();
        for _ in 0..SWEEPS_MAX {
            origin.sweep();
            assert_eq!(origin.idle().len(), 1);
        }
        origin.sweep();
        assert_eq!(stream.read(&mut [0; 1]).await.unwrap(), 0);
    }
    #[tokio::test]
    async fn a_full_pool_takes_the_newest_connection_and_closes_the_oldest() {
        let (listener, url) = listen().await;
        let client = client();
        let mut streams = Vec::new();
        let mut replies = Vec::new();
        for _ in 0..=IDLE_MAX {
            let serve = async {
                let (mut stream, _) = listener.accept().await.unwrap();
                read_head(&mut stream).await;
                stream.write_all(OK).await.unwrap();
                stream
            };
            let (stream, response) = tokio::join!(serve, client.send_anywhere(get(&url)));
            streams.push(stream);
            replies.push(response.unwrap());
        }
        for reply in replies {
            assert_eq!(whole(reply).await, "ok");
        }
        assert_eq!(streams[0].read(&mut [0; 1]).await.unwrap(), 0);
        let newest = streams.last_mut().unwrap();
        let next = tokio::spawn(async move { client.send_anywhere(get(&url)).await.map(drop) });
        read_head(newest).await;
        newest.write_all(OK).await.unwrap();
        next.await.unwrap().unwrap();
    }
}
