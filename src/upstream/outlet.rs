//! What the gateway sends on its own account goes out by the same client as calls do: same TLS, same pools, same suspicion.

use bytes::{Bytes, BytesMut};
use http::Request;
use http_body_util::BodyExt;

use crate::{
    telemetry::post::{Post, Posting, Reply, Unreachable},
    upstream::client::{self, Client, Received},
};

/// Bytes of a reply that are read; receivers of alerts and traces answer with a few words.
const REPLY_BYTES_MAX: usize = 64 * 1024;

impl Post for Client {
    fn post(&self, request: Request<Bytes>) -> Posting<'_> {
        Box::pin(async move {
            let reply = self.send_anywhere(request.map(client::full)).await;
            let (head, body) = reply.map_err(|error| Unreachable(error.to_string()))?.into_parts();
            Ok(Reply { status: head.status, headers: head.headers, body: beginning(body).await })
        })
    }
}

/// The beginning of a body; a body that breaks off has said enough, since the status counts.
async fn beginning(mut body: Received) -> Bytes {
    let mut read = BytesMut::new();
    while let Some(Ok(frame)) = body.frame().await {
        let Some(data) = frame.data_ref() else { continue };
        if read.len() + data.len() > REPLY_BYTES_MAX {
            break;
        }
        read.extend_from_slice(data);
    }
    read.freeze()
}
