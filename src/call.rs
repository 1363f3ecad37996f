//! The stages of a call: the type says how far it has come.
//!
//! Each stage holds the facts of the one before. Nothing is optional except real choices, there is no bag of extensions, and
//! nothing here is shared between calls.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, StatusCode};
use hyper::{body::Incoming, upgrade::OnUpgrade};
use tokio::time::Instant;

use crate::{
    body::ReplyBody,
    config::{
        Snapshot,
        snapshot::{ModelVersion, PromptRef, Target},
    },
    error::GatewayError,
    policy::keys::Caller,
    purses::{Claim, Reservation},
    record::Record,
    recorder::OpenRecord,
    units::{NanoUsd, Tokens},
    wire::{
        endpoint::Endpoint,
        json::{Edits, Scan},
        request::RequestFacts,
    },
};

/// The request line and headers of a call, as they came.
#[derive(Debug, Clone)]
pub struct Head {
    /// The call's id: in `x-tollgate-call`, in the log, in the ledger.
    pub id: Arc<str>,
    /// When the request's head had arrived.
    pub received: Instant,
    /// What the path means.
    pub endpoint: Endpoint,
    /// The request's method.
    pub method: Method,
    /// The normalised path, such as `/v1/chat/completions`.
    pub path: Box<str>,
    /// The authority that the client named: of the request line, else of `Host`.
    pub host: Option<Box<str>>,
    /// The query, without `?`.
    pub query: Option<Box<str>>,
    /// All headers, credentials included: what leaves is decided by `upstream/`.
    pub headers: HeaderMap,
}

/// A request that nobody has looked at yet.
#[derive(Debug)]
pub struct Arrival {
    /// Its head.
    pub head: Head,
    /// Its body, unread.
    pub body: Incoming,
    /// The connection's other life, where the client asked for one.
    pub upgrade: Option<OnUpgrade>,
}

/// A request whose caller is known; it keeps the configuration that it began with.
#[derive(Debug)]
pub struct Authenticated {
    /// The request.
    pub arrival: Arrival,
    /// Who calls.
    pub caller: Arc<Caller>,
    /// The one configuration of this call.
    pub snapshot: Arc<Snapshot>,
    /// The client's own provider key, with `auth: passthrough`.
    pub own_credential: Option<HeaderValue>,
}

/// A request that is understood as far as policies need it.
#[derive(Debug)]
pub struct Call {
    /// Its head.
    pub head: Head,
    /// Who calls.
    pub caller: Arc<Caller>,
    /// The one configuration of this call.
    pub snapshot: Arc<Snapshot>,
    /// The client's own provider key, with `auth: passthrough`.
    pub own_credential: Option<HeaderValue>,
    /// What is to be sent.
    pub payload: Payload,
    /// On whose behalf.
    pub identity: Identity,
    /// Time that the body took to come: the client's, not our overhead.
    pub read_for: Duration,
}

impl Call {
    /// The same call once more, where its body is in memory.
    #[must_use]
    pub fn again(&self) -> Option<Box<Call>> {
        let Payload::Json(document) = &self.payload else { return None };
        Some(Box::new(Call {
            head: self.head.clone(),
            caller: self.caller.clone(),
            snapshot: self.snapshot.clone(),
            own_credential: self.own_credential.clone(),
            payload: Payload::Json(document.clone()),
            identity: self.identity.clone(),
            read_for: self.read_for,
        }))
    }
}

/// What a call carries.
#[expect(clippy::large_enum_variant, reason = "almost every call is Json: a box would cost them all an allocation")]
#[derive(Debug)]
pub enum Payload {
    /// A JSON body of an endpoint that is metered.
    Json(Document),
    /// Anything else: streamed through, unread.
    Stream(Incoming),
    /// Nothing any more: it went with an attempt.
    Nothing,
    /// A WebSocket: tunnelled once the upstream has agreed.
    Upgrade(OnUpgrade),
}

/// A JSON body, scanned once.
#[derive(Debug, Clone)]
pub struct Document {
    /// The bytes, content coding removed.
    pub bytes: Bytes,
    /// The bytes as they came, where they came coded (`content-encoding`).
    pub coded: Option<Bytes>,
    /// Where its top-level fields are.
    pub scan: Scan,
    /// What policies ask.
    pub facts: RequestFacts,
}

/// On whose behalf a call is made. Chosen by the client, so it never decides about access.
#[derive(Debug, Clone)]
pub struct Identity {
    /// The user; the key's name when the call names none.
    pub user: Arc<str>,
    /// The session, if named.
    pub session: Option<Arc<str>>,
    /// Tags of key and call.
    pub tags: Vec<(Arc<str>, Arc<str>)>,
}

/// A call that knows where it may go and what it must say there.
#[derive(Debug)]
pub struct Planned {
    /// The call. Boxed from here on: it is large, and each further layer would copy it into a future of its own.
    pub call: Box<Call>,
    /// Where, in order.
    pub plan: Plan,
    /// What is changed in the body: of what depends on the target, for the first one, once the call is quoted.
    pub edits: Edits,
}

/// Where a call may go.
#[derive(Debug)]
pub struct Plan {
    /// The alias, or `provider/model`, that the client named; empty when it named none.
    pub named: Arc<str>,
    /// The model as a metric label: from a closed set.
    pub label: Arc<str>,
    /// The alias' version.
    pub version: Option<Arc<ModelVersion>>,
    /// (experiment, variant) for each experiment on the model, whatever will serve.
    pub variants: Vec<(Arc<str>, Arc<str>)>,
    /// What was assigned to each of `variants`.
    pub units: Vec<Arc<str>>,
    /// Parameters of the variant: set whatever the client said.
    pub variant_parameters: Vec<(Box<str>, Box<str>)>,
    /// The prompt to inject.
    pub prompt: Option<PromptRef>,
    /// Targets in the order in which they are tried; never empty.
    pub targets: Vec<Target>,
}

/// A call whose worst cost is known.
#[derive(Debug)]
pub struct Quoted {
    /// The call with its plan.
    pub planned: Planned,
    /// The ceiling at each target, in the plan's order; empty when nothing needs to be bounded.
    pub ceilings: Vec<Ceiling>,
    /// The accounts that pay.
    pub claims: Arc<[Claim]>,
    /// The body with its edits, where it had to be known.
    pub body: Option<Bytes>,
    /// Tokens that rate limits take at admission, corrected at the end.
    pub estimate: Tokens,
    /// When it was quoted: prices and periods are those of this moment.
    pub at: jiff::Timestamp,
}

/// What a call can use and cost at most at one target.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Ceiling {
    /// Prompt tokens.
    pub input: Tokens,
    /// Output tokens, all choices together.
    pub output: Tokens,
    /// Output tokens of one choice.
    pub output_each: Tokens,
    /// Output cap to set because the client set none and the model's maximum is unknown.
    pub cap_to_set: Option<Tokens>,
    /// Money.
    pub cost: NanoUsd,
}

/// A quoted call with its open record.
#[derive(Debug)]
pub struct Opened {
    /// The call.
    pub quoted: Quoted,
    /// Its record: ends exactly once, wherever the call ends.
    pub record: OpenRecord,
}

/// A call that may be sent: only the budget layer makes one.
#[derive(Debug)]
pub struct Admitted {
    /// The call.
    pub quoted: Quoted,
    /// Its record.
    pub record: OpenRecord,
    /// The first attempt's reservation; `None` when no budget covers the call.
    pub reservation: Option<Reservation>,
    /// The output cap that the budget allowed, where it had to be lowered.
    pub clamped: Option<Tokens>,
    /// Time that waiting for money took: not ours to count as overhead.
    pub waited: Duration,
}

/// What goes back to the client.
#[derive(Debug)]
pub struct Reply {
    /// Status.
    pub status: StatusCode,
    /// Headers, the upstream's and ours.
    pub headers: HeaderMap,
    /// Body, watched to its end.
    pub body: ReplyBody,
}

/// Why there is no reply, and whether the record knows of it already.
#[derive(Debug)]
pub struct Failure {
    /// What the client is told.
    pub error: GatewayError,
    /// Headers to send along, such as the call's variant.
    pub headers: HeaderMap,
    /// The record, still open.
    pub record: Option<Box<OpenRecord>>,
    /// Where none is open yet: what the one that is written of the refusal says of the call.
    pub facts: Option<Box<Record>>,
    /// The alias to try instead, where the budget that refused names one.
    pub downgrade: Option<Arc<str>>,
}

impl From<GatewayError> for Failure {
    fn from(error: GatewayError) -> Failure {
        Failure { error, headers: HeaderMap::new(), record: None, facts: None, downgrade: None }
    }
}

impl Failure {
    /// A failure of a call whose record is open.
    #[must_use]
    pub fn recorded(error: GatewayError, record: OpenRecord) -> Failure {
        Failure { record: Some(Box::new(record)), ..Failure::from(error) }
    }

    /// A failure of a call whose record is not open yet, but whose caller is known.
    #[must_use]
    pub fn early(error: GatewayError, facts: Record) -> Failure {
        Failure { facts: Some(Box::new(facts)), ..Failure::from(error) }
    }
}

impl Plan {
    /// A plan for one target, without alias, version or variant.
    #[must_use]
    pub fn direct(named: Arc<str>, label: Arc<str>, target: Target) -> Plan {
        Plan {
            named,
            label,
            version: None,
            variants: Vec::new(),
            units: Vec::new(),
            variant_parameters: Vec::new(),
            prompt: None,
            targets: vec![target],
        }
    }
}

/// The result of every layer.
pub type Answer = Result<Reply, Failure>;
