//! A fault proxy: TCP between a gateway and its Redis, a gateway and its provider, or a Redis and its replica. What it does to
//! the bytes can be changed while they flow.

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU16, AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{
        TcpListener, TcpStream,
        tcp::{ReadHalf, WriteHalf},
    },
    sync::watch,
    task::{AbortHandle, JoinSet},
    time::sleep,
};

/// What happens to bytes, both ways unless said otherwise.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    Pass,
    /// Each piece is passed on this much later.
    Delay(Duration),
    /// Connections are closed, new ones as soon as they come.
    Drop,
    /// Connections are reset, new ones as soon as they come.
    Cut,
    /// Connections are taken, bytes are read, and nothing comes out. One that lost bytes so is reset when this ends.
    BlackHole,
    /// A byte at a time, with this long before each.
    Drip(Duration),
    /// So many bytes of a connection's answers are passed on, then it is closed.
    Truncate(usize),
}

/// A listener on a free port. Dropped, it hangs up.
pub(crate) struct Proxy {
    pub(crate) port: u16,
    target: Arc<AtomicU16>,
    mode: watch::Sender<Mode>,
    connections: Arc<AtomicUsize>,
    accepting: AbortHandle,
}

impl Proxy {
    /// Before a port of this machine, passing everything on.
    pub(crate) async fn before(port: u16) -> Proxy {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let own = listener.local_addr().expect("bound above").port();
        let target = Arc::new(AtomicU16::new(port));
        let (mode, modes) = watch::channel(Mode::Pass);
        let connections = Arc::default();
        let accepting = tokio::spawn(accept(listener, Arc::clone(&target), modes, Arc::clone(&connections)));
        Proxy { port: own, target, mode, connections, accepting: accepting.abort_handle() }
    }

    /// What happens from now on, to the connections that there are as well.
    pub(crate) fn set(&self, mode: Mode) {
        self.mode.send_replace(mode);
    }

    /// Leads to another port from now on, as a service's address does; connections to the old one are reset.
    pub(crate) fn lead_to(&self, port: u16) {
        self.target.store(port, SeqCst);
        self.mode.send_modify(|_| ());
    }

    pub(crate) fn url(&self, scheme: &str) -> String {
        format!("{scheme}://127.0.0.1:{}", self.port)
    }

    /// Connections taken so far.
    pub(crate) fn connection_count(&self) -> usize {
        self.connections.load(SeqCst)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

async fn accept(
    listener: TcpListener,
    target: Arc<AtomicU16>,
    modes: watch::Receiver<Mode>,
    connections: Arc<AtomicUsize>,
) {
    let mut open = JoinSet::new();
    while let Ok((client, _)) = listener.accept().await {
        connections.fetch_add(1, SeqCst);
        open.spawn(carry(client, Arc::clone(&target), modes.clone()));
        while open.try_join_next().is_some() {}
    }
}

/// One connection, until either side or a fault ends it.
async fn carry(mut client: TcpStream, target: Arc<AtomicU16>, mut modes: watch::Receiver<Mode>) {
    let port = target.load(SeqCst);
    let is_whole = match TcpStream::connect(("127.0.0.1", port)).await {
        Ok(mut server) => {
            let lost = AtomicBool::new(false);
            for side in [&client, &server] {
                let _quick = side.set_nodelay(true);
            }
            let watched = modes.clone();
            let (from_client, to_client) = client.split();
            let (from_server, to_server) = server.split();
            tokio::select! {
                end = pump(from_client, to_server, Way::Request, &watched, &lost) => end.is_ok(),
                end = pump(from_server, to_client, Way::Answer, &watched, &lost) => end.is_ok(),
                mode = modes.wait_for(|mode| target.load(SeqCst) != port || severs(*mode, &lost)) => {
                    mode.is_ok_and(|mode| *mode == Mode::Drop)
                }
            }
        }
        Err(_) => false,
    };
    if !is_whole {
        // The peer is told at once, whatever was still on its way.
        let _told = socket2::SockRef::from(&client).set_linger(Some(Duration::ZERO));
    }
}

/// Whether a mode ends a connection.
fn severs(mode: Mode, lost: &AtomicBool) -> bool {
    matches!(mode, Mode::Drop | Mode::Cut) || (mode != Mode::BlackHole && lost.load(SeqCst))
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    Request,
    Answer,
}

async fn pump(
    mut from: ReadHalf<'_>,
    mut to: WriteHalf<'_>,
    way: Way,
    modes: &watch::Receiver<Mode>,
    lost: &AtomicBool,
) -> io::Result<()> {
    let mut block = vec![0; 16 * 1024];
    let mut passed = 0;
    loop {
        let length = from.read(&mut block).await?;
        if length == 0 {
            return Ok(());
        }
        let piece = &block[..length];
        let mode = *modes.borrow();
        match (mode, way) {
            (Mode::BlackHole, _) => lost.store(true, SeqCst),
            (Mode::Delay(time), _) => {
                sleep(time).await;
                to.write_all(piece).await?;
            }
            (Mode::Drip(time), _) => {
                for byte in piece {
                    sleep(time).await;
                    to.write_all(&[*byte]).await?;
                }
            }
            (Mode::Truncate(at), Way::Answer) if passed + length >= at => {
                return to.write_all(&piece[..at.saturating_sub(passed)]).await;
            }
            _ => to.write_all(piece).await?,
        }
        passed += length;
    }
}
