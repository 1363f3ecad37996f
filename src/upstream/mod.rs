//! One HTTP exchange with one provider: connections, health, and a provider that answers by itself.

pub mod client;
pub mod health;
mod lines;
pub mod outlet;
pub mod request;
pub mod simulated;
pub mod tls;
pub mod tunnel;

use std::{io, sync::Arc, time::Duration};

use http::{Request, response};
use http_body_util::BodyExt;
use tokio::time::Instant;

use crate::{
    body::Source,
    config::snapshot::{Provider, ProviderKind, Simulated},
    policy::tokens,
    upstream::{
        client::{BodyError, Client, ClientError, SendError, SendErrorKind, UpstreamBody},
        health::{Healths, RetryBudget},
    },
};

/// The way to all providers: it outlives configurations.
#[derive(Debug)]
pub struct Upstream {
    /// Connections.
    pub client: Client,
    /// Which providers are in rotation.
    pub healths: Healths,
    /// Keeps retries a share of the calls.
    pub retries: RetryBudget,
}

impl Upstream {
    /// No connections yet.
    ///
    /// # Errors
    /// When TLS can't be configured.
    pub fn new(connect_timeout: Duration) -> Result<Upstream, ClientError> {
        let now = Instant::now().into_std();
        Ok(Upstream {
            client: Client::new(connect_timeout)?,
            healths: Healths::default(),
            retries: RetryBudget::new(now),
        })
    }

    /// One exchange: the reply's head and its body, unread.
    ///
    /// # Errors
    /// See [`Client::send`].
    pub async fn exchange(
        &self,
        provider: &Arc<Provider>,
        request: Request<UpstreamBody>,
    ) -> Result<(response::Parts, Source), SendError> {
        if let ProviderKind::Simulated(settings) = &provider.kind {
            // Boxed, since the future of every real exchange would have to hold the room for it.
            return Box::pin(simulate(settings, request)).await;
        }
        let (head, body) = self.client.send(provider, request).await?.into_parts();
        Ok((head, Source::Http(body)))
    }
}

async fn simulate(
    settings: &Simulated,
    request: Request<UpstreamBody>,
) -> Result<(response::Parts, Source), SendError> {
    let (head, body) = request.into_parts();
    let body =
        body.collect().await.map_err(|error: BodyError| SendError::new(SendErrorKind::RequestBody, error))?.to_bytes();
    let (head, body) = simulated::respond(settings, count, &head, body).await.into_parts();
    Ok((head, Source::Local(body.map_err(io::Error::other).boxed_unsync())))
}

/// The simulated provider's tokenizer.
fn count(text: &str) -> u64 {
    tokens::count(tokens::Encoding::O200kBase, text).0
}
