//! WebSockets, byte for byte, once the upstream has agreed to switch.

use std::{io, pin::pin, time::Duration};

use http::{HeaderValue, Response, StatusCode, header};
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use tokio::{
    io::{AsyncRead, AsyncWrite, AsyncWriteExt, copy, split},
    time::timeout,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    body::{InFlightCount, ReplyBody},
    call::Reply,
    record::Outcome,
    recorder::OpenRecord,
    upstream::client::Received,
    wire::headers,
};

/// Time for the client's connection to switch once the 101 is on its way.
const SWITCH_TIMEOUT: Duration = Duration::from_secs(10);
/// Time for one side to end after the other has.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(10);

/// All tunnels of this process.
#[derive(Debug, Clone)]
pub struct Tunnels {
    /// Waited for when the process goes down.
    pub tasks: TaskTracker,
    /// Cancelled when it is over for good.
    pub over: CancellationToken,
    /// Calls in flight: a tunnel is one until it ends.
    pub in_flight: InFlightCount,
}

impl Tunnels {
    /// The 101 for the client; its connection is joined to the upstream's as soon as both have switched.
    #[must_use]
    pub fn open(&self, client: OnUpgrade, mut reply: Response<Received>, record: OpenRecord) -> Reply {
        let upstream = hyper::upgrade::on(&mut reply);
        let protocol = reply.headers().get(header::UPGRADE).cloned();
        let over = self.over.clone();
        // Counted on after the 101, whose own count ends with it; what is in already is not shed here.
        let counted = self.in_flight.enter(usize::MAX);
        self.tasks.spawn(async move {
            tokio::select! {
                () = over.cancelled() => record.close(Outcome::Cut),
                outcome = join(client, upstream) => record.close(outcome),
            }
            drop(counted);
        });
        let mut headers = std::mem::take(reply.headers_mut());
        headers::strip_response(&mut headers);
        headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
        if let Some(protocol) = protocol {
            headers.insert(header::UPGRADE, protocol);
        }
        Reply { status: StatusCode::SWITCHING_PROTOCOLS, headers, body: ReplyBody::own(bytes::Bytes::new()) }
    }
}

/// Switches both connections and joins them.
async fn join(client: OnUpgrade, upstream: OnUpgrade) -> Outcome {
    let both = async { tokio::try_join!(client, upstream) };
    let Ok(Ok((client, upstream))) = timeout(SWITCH_TIMEOUT, both).await else {
        return Outcome::Abandoned;
    };
    match pass_both_ways(TokioIo::new(client), TokioIo::new(upstream), CLOSE_TIMEOUT).await {
        Ok(()) => Outcome::Ok,
        Err(_) => Outcome::Cut,
    }
}

/// Copies both ways until one side ends, and what the other still has to say within `close_timeout`: WebSockets do not live on half closed, and
/// a side that ignored the end of the other would hold both connections for ever.
async fn pass_both_ways<C, U>(client: C, upstream: U, close_timeout: Duration) -> io::Result<()>
where
    C: AsyncRead + AsyncWrite,
    U: AsyncRead + AsyncWrite,
{
    let (from_client, to_client) = split(client);
    let (from_upstream, to_upstream) = split(upstream);
    let (mut up, mut down) = (pin!(pass(from_client, to_upstream)), pin!(pass(from_upstream, to_client)));
    let rest = tokio::select! {
        ended = &mut up => ended.map(|()| timeout(close_timeout, down))?.await,
        ended = &mut down => ended.map(|()| timeout(close_timeout, up))?.await,
    };
    rest.unwrap_or(Ok(()))
}

/// Copies until `from` ends, and ends `to`.
async fn pass(mut from: impl AsyncRead + Unpin, mut to: impl AsyncWrite + Unpin) -> io::Result<()> {
    copy(&mut from, &mut to).await?;
    to.shutdown().await
}

#[cfg(test)]
mod tests {
    use tokio::{
        io::{AsyncReadExt, duplex},
        time::Instant,
    };

    use super::*;

    #[tokio::test]
    async fn a_tunnel_ends_soon_after_one_of_its_sides() {
        const LIMIT: Duration = Duration::from_millis(200);
        for client_ends in [true, false] {
            let ((near, client), (upstream, far)) = (duplex(64), duplex(64));
            let tunnel = tokio::spawn(pass_both_ways(client, upstream, LIMIT));
            let (mut ends, mut stays) = if client_ends { (near, far) } else { (far, near) };
            ends.write_all(b"bye").await.unwrap();
            ends.shutdown().await.unwrap();
            let began = Instant::now();

            let mut heard = Vec::new();
            stays.read_to_end(&mut heard).await.unwrap();
            assert_eq!(heard, b"bye");
            stays.write_all(b"wait").await.unwrap();
            let mut rest = [0; 4];
            ends.read_exact(&mut rest).await.unwrap();
            assert_eq!(&rest, b"wait");

            tunnel.await.unwrap().unwrap();
            assert!(began.elapsed() >= LIMIT, "{:?}", began.elapsed());
        }
    }
}
