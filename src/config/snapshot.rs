//! What is true: one immutable configuration, swapped whole, pinned by each call from start to end.

use std::{
    collections::{BTreeMap, HashMap},
    net::SocketAddr,
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use arc_swap::ArcSwapOption;
use jiff::Timestamp;
use quick_cache::sync::Cache;
use xxhash_rust::xxh3::xxh3_64;

use crate::{
    config::{pushed::InForce, registered::InRegistry, secret::SecretString},
    ledger::period::{Per, Period},
    policy::{
        alerts::{Kind, Pace, Webhook},
        experiment::Experiment,
        keys::{Caller, KeyDigest, KeyRing},
        limits::Limit,
        pricing::{Catalog, Price},
        prompt::Template,
        redact::Redactor,
        scope::Scope,
        traces::Otlp,
    },
    record::UserIds,
    units::{NanoUsd, Tokens},
    wire::redis_url::RedisUrl,
};

/// One configuration, valid as a whole.
#[derive(Debug)]
pub struct Snapshot {
    /// First 12 hex digits of the SHA-256 of what was read (values from the environment included).
    pub hash: String,
    /// What was pushed for all gateways and is part of this; `None` where nothing was.
    pub pushed: Option<InForce>,
    /// What was registered and deployed, and what the files say without it.
    pub registry: InRegistry,
    /// Listeners, their limits, and what needs a restart.
    pub server: Server,
    /// Where ledger state lives.
    pub store: Store,
    /// Where finished calls are kept.
    pub records: Records,
    /// What is kept of them.
    pub calls: CallsKept,
    /// Where files of our own live.
    pub data_dir: PathBuf,
    /// How clients prove who they are.
    pub auth: Auth,
    /// The virtual keys.
    pub keys: KeyRing,
    /// Those of them that stand in the configuration: see [`Snapshot::with_stored_keys`].
    pub config_keys: Vec<(KeyDigest, Caller)>,
    /// Given, key digests are HMACs with it.
    pub key_pepper: Option<SecretString>,
    /// Providers by name.
    pub providers: HashMap<Box<str>, Arc<Provider>>,
    /// Where bare, unknown model names and calls that name no model go.
    pub default_provider: Option<Arc<Provider>>,
    /// Experiments, those that do not run included; those that do are in their models too.
    pub experiments: BTreeMap<Arc<str>, Arc<Experiment>>,
    /// The registry: what clients may name, by alias.
    pub models: HashMap<Box<str>, Arc<Model>>,
    /// Prompts by name: for `x-tollgate-prompt`.
    pub prompts: HashMap<Box<str>, Arc<Prompt>>,
    /// Budgets, in the fixed order in which their purses are taken.
    pub budgets: Vec<Arc<Budget>>,
    /// Rate limits.
    pub limits: Vec<Arc<Limit>>,
    /// Prices: the built-in catalog with own rows over it.
    pub prices: Arc<Catalog>,
    /// What happens with a model that has no price.
    pub unpriced: Unpriced,
    /// Attempts, time-outs, ejection.
    pub routing: Routing,
    /// What happens upstream when the client leaves.
    pub on_disconnect: OnDisconnect,
    /// Whether usage is asked for on the client's behalf.
    pub stream_usage: StreamUsage,
    /// Ledger timings.
    pub ledger: LedgerSettings,
    /// Who is told when something is wrong.
    pub alerts: Alerts,
    /// Where traces and metrics go; `None`: nowhere.
    pub telemetry: Option<Arc<Otlp>>,
    /// What was asked for that this build does not have yet: named at start and on reload, never silently ignored.
    pub not_yet: Vec<String>,
    /// Names that clients used, resolved once.
    pub resolved: ResolvedNames,
}

/// A name that a client used for a model, resolved.
#[derive(Debug, Clone)]
pub struct Resolved {
    /// Where it leads.
    pub target: Target,
    /// Its label in metrics, from a closed set: the row of its price, or `other`.
    pub label: Arc<str>,
}

/// What [`Snapshot::target`] has found: looking a price up by match rules takes microseconds. Clients invent names, so it is bounded.
#[derive(Debug)]
pub struct ResolvedNames(Cache<Box<str>, Option<Arc<Resolved>>>);

impl Default for ResolvedNames {
    fn default() -> ResolvedNames {
        ResolvedNames(Cache::new(1024))
    }
}

/// Listeners and limits. `listen`, `admin` and `tls` need a restart to change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Server {
    /// The client listener.
    pub listen: SocketAddr,
    /// The admin listener: metrics and administration, never on the client listener.
    pub admin: SocketAddr,
    /// Opens the admin listener whole.
    pub admin_token: Option<SecretString>,
    /// Further tokens of the admin listener. Beyond loopback there is at least one, or `admin_token`, or `oidc`.
    pub admin_tokens: Vec<AdminToken>,
    /// Where people sign in, besides tokens.
    pub oidc: Option<Arc<Oidc>>,
    /// Certificates of the client listener.
    pub tls: Option<Tls>,
    /// Largest request body that is taken, in bytes.
    pub body_bytes_max: usize,
    /// Calls at the same time; further ones get 503.
    pub in_flight_max: usize,
    /// Time for a request's header block to arrive.
    pub header_timeout: Duration,
    /// How long calls in flight may go on after SIGTERM.
    pub drain: Duration,
}

/// A token of the admin listener, known by its digest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AdminToken {
    /// Whose it is: what the audit log names.
    pub name: Arc<str>,
    /// SHA-256 of it.
    pub digest: KeyDigest,
    /// What it may do.
    pub role: Role,
}

/// What a token of the admin listener may do; each role may do what those before it may.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Role {
    /// Read, but for prompts and replies.
    Viewer,
    /// Read all, create and revoke keys, reclaim and credit budgets, register and deploy versions.
    Operator,
    /// Everything.
    Admin,
}

impl Role {
    /// Its name in the configuration.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Role::Viewer => "viewer",
            Role::Operator => "operator",
            Role::Admin => "admin",
        }
    }
}

/// A provider of OpenID Connect, and what its people may do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Oidc {
    /// The provider's own name: an https URL, or an http one on loopback.
    pub issuer: Box<str>,
    /// Ours with it.
    pub client_id: Box<str>,
    /// What proves that; `None`: a public client.
    pub client_secret: Option<SecretString>,
    /// Where browsers come back to; `None`: the address that they came to first.
    pub redirect_url: Option<Box<str>>,
    /// What is asked for: `openid` and others, a blank between them.
    pub scope: Box<str>,
    /// The claim that says what somebody belongs to.
    pub role_claim: Box<str>,
    /// Values of that claim which give a role, `*` being all; the highest role first.
    pub roles: Vec<(Role, Vec<Box<str>>)>,
}

impl Oidc {
    /// The highest role of somebody who belongs to `groups`; `None`: they may not come in.
    #[must_use]
    pub fn role_of(&self, groups: &[Box<str>]) -> Option<Role> {
        let gives = |value: &str| value == "*" || groups.iter().any(|group| **group == *value);
        self.roles.iter().find(|(_, values)| values.iter().any(|value| gives(value))).map(|(role, _)| *role)
    }
}

/// Certificate files of a listener, read again when they change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tls {
    /// PEM chain.
    pub cert: PathBuf,
    /// PEM key.
    pub key: PathBuf,
    /// PEM roots: given, clients must present a certificate signed by one of them.
    pub client_ca: Option<PathBuf>,
}

/// Where the ledger's truth lives.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Store {
    /// A local SQLite file in `data_dir`.
    Embedded,
    /// A Redis that several gateways share.
    Redis(RedisUrl),
}

/// Where finished calls are kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Records {
    /// Nowhere.
    None,
    /// In a local SQLite file in `data_dir`.
    Sqlite,
    /// In a PostgreSQL that several gateways share. Its URL, which may hold a password.
    Postgres(SecretString),
}

/// What is kept of finished calls. `spill_bytes_max` needs a restart to change.
#[derive(Debug, Clone)]
pub struct CallsKept {
    /// How long.
    pub retention: Duration,
    /// How users' ids are stored.
    pub users: UserIds,
    /// Disk for calls that wait for the store, in bytes.
    pub spill_bytes_max: u64,
    /// Whose bodies are kept.
    pub bodies: BodiesKept,
    /// How much of each body is kept, in bytes.
    pub body_bytes_max: usize,
    /// What is taken out of them before.
    pub redactor: Arc<Redactor>,
}

/// Whose bodies are kept.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum BodiesKept {
    /// Nobody's.
    None,
    /// Of all calls, their lengths.
    Lengths,
    /// Of a share of all calls (0 to 1), their texts.
    Share(f64),
}

impl CallsKept {
    /// How many bytes of each body of a call are captured; `None`: not even their number. More than is kept, so that what is to be
    /// taken out is not cut in two, and a document is whole.
    #[must_use]
    pub fn captured_max(&self, call: &str) -> Option<usize> {
        const CAPTURED_MIN: usize = 1 << 20;
        match self.bodies {
            BodiesKept::None => None,
            BodiesKept::Lengths => Some(0),
            BodiesKept::Share(share) => {
                let drawn = (xxh3_64(call.as_bytes()) >> 11) as f64 / (1_u64 << 53) as f64;
                (drawn < share).then_some((self.body_bytes_max * 2).max(CAPTURED_MIN))
            }
        }
    }
}

/// How clients prove who they are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Auth {
    /// A virtual key.
    Required,
    /// Nobody is asked; loopback only.
    None,
    /// The client's own provider key goes through.
    Passthrough,
}

/// An upstream that calls can be sent to.
#[derive(Debug)]
pub struct Provider {
    /// Its name in the configuration.
    pub name: Arc<str>,
    /// Which dialect and which behaviour.
    pub kind: ProviderKind,
    /// Absolute base URL without a trailing slash, such as `https://api.openai.com/v1`.
    pub base_url: http::Uri,
    /// Keys, used in turn; none for servers that ask for none.
    pub api_keys: Vec<SecretString>,
    /// Row group of the price catalog (`openai`, `anthropic`, …), when the base URL belongs to a known provider.
    pub catalog: Option<Box<str>>,
    /// Whether `/v1/organization/*` is forwarded.
    pub organization_api: bool,
    /// The field in which this server wants an output cap that the client did not set.
    pub cap_field: &'static str,
    /// PEM file with additional roots to trust for this provider.
    pub ca: Option<PathBuf>,
}

/// What kind of provider.
#[derive(Debug, Clone, PartialEq)]
pub enum ProviderKind {
    /// Speaks OpenAI's API.
    OpenAi,
    /// Speaks Anthropic's Messages API, and OpenAI's chat completions beside it.
    Anthropic,
    /// Answers by itself: for tests and demonstrations.
    Simulated(Simulated),
}

/// How the simulated provider behaves.
#[derive(Debug, Clone, PartialEq)]
pub struct Simulated {
    /// Output speed.
    pub tokens_per_second: f64,
    /// Delay before the first token.
    pub time_to_first_token: Duration,
    /// Share of calls that fail with 500, 0 to 1.
    pub error_rate: f64,
}

/// An alias that clients name.
#[derive(Debug)]
pub struct Model {
    /// The alias.
    pub name: Arc<str>,
    /// The live version's name.
    pub live: Arc<str>,
    /// Versions by name; the live one is among them.
    pub versions: HashMap<Arc<str>, Arc<ModelVersion>>,
    /// Experiments in which calls of this model take part.
    pub experiments: Vec<Arc<Experiment>>,
}

/// One immutable version of a model.
#[derive(Debug)]
pub struct ModelVersion {
    /// The version's name.
    pub name: Arc<str>,
    /// Weighted targets; at least one with a weight above 0.
    pub targets: Vec<(Target, u32)>,
    /// Tried in order when the target failed before its first byte.
    pub fallbacks: Vec<Target>,
    /// Parameters set where the client did not: name and JSON text.
    pub defaults: Vec<(Box<str>, Box<str>)>,
    /// Parameters set whatever the client said: name and JSON text.
    pub forced: Vec<(Box<str>, Box<str>)>,
    /// The prompt injected into every call.
    pub prompt: Option<PromptRef>,
}

/// A model at a provider.
#[derive(Debug, Clone)]
pub struct Target {
    /// Where.
    pub provider: Arc<Provider>,
    /// The provider's own name of the model.
    pub model: Arc<str>,
    /// Its price; `None` when none is known.
    pub price: Option<Arc<Price>>,
}

/// A prompt and, where pinned, its version; otherwise the live one.
#[derive(Debug, Clone)]
pub struct PromptRef {
    /// The prompt.
    pub prompt: Arc<Prompt>,
    /// `@v2`, or the live version.
    pub version: Arc<str>,
    /// Whether the version was named; otherwise a roll-out may choose another one.
    pub pinned: bool,
}

/// A prompt with its versions.
#[derive(Debug)]
pub struct Prompt {
    /// Its name.
    pub name: Arc<str>,
    /// The live version's name.
    pub live: Arc<str>,
    /// Versions by name; the live one is among them.
    pub versions: HashMap<Arc<str>, Arc<Template>>,
}

/// A budget.
#[derive(Debug)]
pub struct Budget {
    /// Its name.
    pub name: Arc<str>,
    /// Whom it is for.
    pub scope: Scope,
    /// How much may be spent in a period.
    pub limit: NanoUsd,
    /// The period, in its time zone.
    pub per: Per,
    /// Shares of the limit (0 to 1) at which an alert is due.
    pub alerts: Vec<f64>,
    /// Model alias to use once exhausted, instead of refusing.
    pub downgrade: Option<Arc<str>>,
    /// Whether the output cap may be lowered to what is left.
    pub clamp: bool,
    /// Least output cap that clamping may leave.
    pub min_output_tokens: Tokens,
    /// Cap that is set for calls without one, where the model's own maximum is unknown.
    pub default_max_tokens: Tokens,
    /// What happens when the store is away and the purse is empty.
    pub on_store_loss: OnStoreLoss,
    /// Whether the budget refuses, or only warns.
    pub mode: BudgetMode,
    /// The current period, worked out once: time-zone rules cost more than the rest of a quote.
    pub current: CurrentPeriod,
}

/// A budget's period, remembered until it ends.
#[derive(Debug, Default)]
pub struct CurrentPeriod(ArcSwapOption<Period>);

impl Budget {
    /// The period that `at` belongs to.
    #[must_use]
    pub fn period_at(&self, at: Timestamp) -> Arc<Period> {
        if let Some(current) = self.current.0.load_full()
            && current.starts <= at
            && current.ends.is_none_or(|end| at < end)
        {
            return current;
        }
        let period = Arc::new(self.per.period_of(at));
        self.current.0.store(Some(period.clone()));
        period
    }
}

/// What an empty purse means while the store is away.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnStoreLoss {
    /// 503.
    Closed,
    /// Calls go on, booked as debt.
    Open,
}

/// Whether a budget refuses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BudgetMode {
    /// It refuses.
    Enforce,
    /// It counts and warns.
    Warn,
}

/// What happens with a model that has no price.
#[derive(Debug, Clone)]
pub enum Unpriced {
    /// Its calls are refused.
    Refuse,
    /// This price is charged.
    Charge(Arc<Price>),
}

/// Attempts, time-outs, ejection.
#[derive(Debug, Clone, PartialEq)]
pub struct Routing {
    /// Most attempts per call over all targets.
    pub attempts: u32,
    /// Share of recent calls that may be retries, 0 to 1.
    pub retry_budget: f64,
    /// Ejection of failing providers; `None` when `off`.
    pub eject: Option<Eject>,
    /// To a connection, TLS included.
    pub connect_timeout: Duration,
    /// From the request's last byte to the reply's head.
    pub first_byte_timeout: Duration,
    /// Between two chunks of a reply.
    pub idle_timeout: Duration,
    /// The whole call, retries included.
    pub total_timeout: Duration,
}

/// When a provider is taken out of rotation, and for how long.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Eject {
    /// Consecutive failures.
    pub after: u32,
    /// First ejection's length.
    pub duration: Duration,
}

/// What happens upstream when the client leaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnDisconnect {
    /// The upstream call is cancelled.
    Cancel,
    /// The reply is read to its end, to know the exact usage.
    Drain,
}

/// Whether usage is asked for on the client's behalf.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StreamUsage {
    /// `stream_options.include_usage` is added upstream and its traces removed on the way back.
    Ask,
    /// Nothing is added; counted locally where the provider says nothing.
    Leave,
}

/// Ledger timings.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LedgerSettings {
    /// Background sync interval.
    pub sync: Duration,
    /// Longest wait of a call for money.
    pub budget_wait: Duration,
    /// Replicas of a Redis store that must have a grant before it is used.
    pub wait_replicas: u32,
}

/// Who is told when something is wrong, of what, and how often.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Alerts {
    /// `None`: the log alone.
    pub webhook: Option<Arc<Webhook>>,
    /// What is worth an alert.
    pub on: Vec<Kind>,
    /// When it is told again, and when it is over.
    pub pace: Pace,
}

impl Snapshot {
    /// The budget of that name.
    #[must_use]
    pub fn budget(&self, name: &str) -> Option<&Budget> {
        self.budgets.iter().find(|budget| *budget.name == *name).map(|budget| &**budget)
    }

    /// What `provider/model`, or a bare name for the default provider, leads to; `None` when nobody serves it.
    #[must_use]
    pub fn target(&self, name: &str) -> Option<Arc<Resolved>> {
        if let Some(known) = self.resolved.0.get(name) {
            return known;
        }
        let found = self.resolve(name).map(Arc::new);
        self.resolved.0.insert(name.into(), found.clone());
        found
    }

    fn resolve(&self, name: &str) -> Option<Resolved> {
        let named =
            name.split_once('/').and_then(|(provider, model)| Some((self.providers.get(provider)?.clone(), model)));
        // Names such as `meta-llama/Llama-3` have a slash too.
        let (provider, model) = named.or_else(|| Some((self.default_provider.clone()?, name)))?;
        let price = self.prices.find(&provider.name, provider.catalog.as_deref(), model);
        let label = price.as_ref().map_or("other", |price| price.row().trim_start_matches("own:")).into();
        Some(Resolved { target: Target { provider, model: model.into(), price }, label })
    }

    /// The same configuration with `stored` keys beside its own. Where both have a digest or a name, the configuration's wins.
    #[must_use]
    pub fn with_stored_keys(mut self, stored: Vec<(KeyDigest, Caller)>) -> Snapshot {
        let taken = |caller: &Caller| self.config_keys.iter().any(|(_, own)| own.name == caller.name);
        self.keys = self.keys.with(stored.into_iter().filter(|(_, caller)| !taken(caller)).collect());
        self
    }

    /// The caller to use where nobody is asked ([`Auth::None`], [`Auth::Passthrough`]).
    #[must_use]
    pub fn anonymous(&self) -> Arc<Caller> {
        self.keys.anonymous()
    }
}
