//! WebSockets, byte for byte, once the upstream has agreed to switch.

use std::time::Duration;

use http::{HeaderValue, Response, StatusCode, header};
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use tokio::io::copy_bidirectional;
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

/// Copies both ways until one side ends.
async fn join(client: OnUpgrade, upstream: OnUpgrade) -> Outcome {
    let both = async { tokio::try_join!(client, upstream) };
    let Ok(Ok((client, upstream))) = tokio::time::timeout(SWITCH_TIMEOUT, both).await else {
        return Outcome::Abandoned;
    };
    let (mut client, mut upstream) = (TokioIo::new(client), TokioIo::new(upstream));
    match copy_bidirectional(&mut client, &mut upstream).await {
        Ok(_) => Outcome::Ok,
        Err(_) => Outcome::Cut,
    }
}
