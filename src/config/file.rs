//! What was typed: the whole configuration as serde types. What it means is decided by `validate`.
//!
//! Unknown keys are errors. Every field may be absent here, so that reading can go on after a mistake and find the next
//! one (`de`); what must be given is checked afterwards. These types are also the source of the JSON Schema: their
//! doc comments are what an editor shows.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::Deserialize;

use crate::{
    config::forms::{Address, DurationText, Money, PriceText, RateText, SecretText, Share, Size, Switch, WordOr},
    policy::pricing::PriceRow,
};

/// Configuration of Tollgate. `${NAME}` and `${NAME:-default}` take values from the environment, `$$` is a plain `$`.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
#[schemars(title = "Tollgate configuration")]
pub struct File {
    /// Listeners and their limits.
    pub server: Server,
    /// Where the ledger's truth lives: `embedded` (a SQLite file in `data_dir`), a Redis URL (`redis://`, `rediss://`,
    /// `redis+sentinel://host:port,…/master`, `redis+cluster://host:port,…`), or `file:PATH` of one. Default: embedded.
    pub store: Option<SecretText>,
    /// The call log: `sqlite` (in `data_dir`), a PostgreSQL URL, `file:PATH` of one, or `none`. Default: sqlite.
    pub records: Option<SecretText>,
    /// What the call log keeps, and for how long.
    pub calls: Calls,
    /// Directory of the gateway's own files. Default: data.
    pub data_dir: Option<String>,
    /// What happens upstream when the client leaves. Default: cancel.
    pub on_disconnect: Option<OnDisconnect>,
    /// Whether token usage is asked for where a streaming client did not ask. Default: ask.
    pub stream_usage: Option<StreamUsage>,
    /// The provider of bare model names that the registry does not know, and of calls that name no model.
    pub default_provider: Option<String>,
    /// Attempts, time-outs, ejection of failing providers.
    pub routing: Routing,
    /// Upstreams by name.
    pub providers: BTreeMap<String, Provider>,
    /// The registry: what clients may name. `provider/model` always works too, where the key allows it.
    pub models: BTreeMap<String, Model>,
    /// Prompts by name.
    pub prompts: BTreeMap<String, Prompt>,
    /// Experiments by name.
    pub experiments: BTreeMap<String, Experiment>,
    /// The registry of models and prompts: what may change in it.
    pub registry: Registry,
    /// Virtual keys.
    pub keys: Vec<Key>,
    /// Given, key hashes are HMACs with it.
    pub key_pepper: Option<SecretText>,
    /// How clients prove who they are. Default: required.
    pub auth: Option<Auth>,
    /// Budgets, which cannot be overspent.
    pub budgets: Vec<Budget>,
    /// Timings of the ledger.
    pub ledger: Ledger,
    /// Rate limits.
    pub limits: Vec<Limit>,
    /// The response cache; off unless given.
    pub cache: Option<WordOr<Off, Cache>>,
    /// Prices over the built-in catalog: a file, or rows by `provider/model`.
    pub prices: Option<WordOr<String, BTreeMap<String, PriceRow>>>,
    /// What happens with a model that has no price. Default: refuse.
    pub unpriced: Option<WordOr<Refuse, Charge>>,
    /// Where alerts go.
    pub alerts: Alerts,
    /// Traces.
    pub telemetry: Telemetry,
}

/// Listeners and their limits.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Server {
    /// The client listener. Default: 127.0.0.1:8080.
    pub listen: Option<Address>,
    /// The admin listener: metrics, admin API, dashboard. Default: 127.0.0.1:9090.
    pub admin: Option<Address>,
    /// Opens the admin listener whole. This, one of `admin_tokens`, or `oidc` is required unless `admin` is on loopback.
    pub admin_token: Option<SecretText>,
    /// Further tokens of the admin listener, each with a name and a role.
    pub admin_tokens: Vec<AdminToken>,
    /// Where people sign in to the dashboard, besides tokens.
    pub oidc: Option<Oidc>,
    /// TLS of the client listener.
    pub tls: Option<Tls>,
    /// Limits of the client listener.
    pub limits: ServerLimits,
}

/// A token of the admin listener: a name for the audit log, a `secret` or its `hash`, and what it may do.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct AdminToken {
    /// Whose it is.
    pub name: Option<String>,
    /// The token.
    pub secret: Option<SecretText>,
    /// Or its hash: `sha256:` and 64 hexadecimal digits.
    pub hash: Option<String>,
    /// What it may do.
    pub role: Option<Role>,
}

/// A provider of OpenID Connect at which people sign in to the dashboard.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Oidc {
    /// The provider's own name, as in its discovery document: an https URL. Required.
    pub issuer: Option<String>,
    /// The name of this client with the provider. Required.
    pub client_id: Option<String>,
    /// The client's secret, or `file:PATH`. None for a public client.
    pub client_secret: Option<SecretText>,
    /// Where the provider sends browsers back to: the dashboard's address with `/login/oidc/callback`. Default: by the address that the
    /// browser came to.
    pub redirect_url: Option<String>,
    /// What is asked for, besides `openid`. Default: email, profile.
    pub scopes: Option<Vec<String>>,
    /// The claim of the ID token that says what somebody belongs to; `a.b` is `b` in `a`. Default: groups.
    pub role_claim: Option<String>,
    /// Who may do what. Required: nobody without a role gets in.
    pub roles: OidcRoles,
}

/// Values of the claim that give a role; `"*"` gives it to everybody whom the provider lets in. Of several the highest counts.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct OidcRoles {
    /// These may do everything.
    pub admin: Vec<String>,
    /// These read all, create and revoke keys, reclaim and credit budgets.
    pub operator: Vec<String>,
    /// These read, but for prompts and replies.
    pub viewer: Vec<String>,
}

/// What a token of the admin listener may do.
#[derive(Debug, Clone, Copy, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Read, but for prompts and replies.
    Viewer,
    /// Read all, create and revoke keys, reclaim and credit budgets.
    Operator,
    /// Everything.
    Admin,
}

/// Certificate files, relative to the configuration.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Tls {
    /// PEM certificate chain.
    pub cert: Option<String>,
    /// PEM private key.
    pub key: Option<String>,
    /// PEM roots; given, clients must present a certificate signed by one of them.
    pub client_ca: Option<String>,
}

/// Limits of the client listener.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct ServerLimits {
    /// Largest request body. Default: 32MiB.
    pub body: Option<Size>,
    /// Calls at the same time; further ones get 503. Default: 4096.
    pub in_flight: Option<usize>,
    /// Time for a request's headers to arrive. Default: 10s.
    pub header_timeout: Option<DurationText>,
    /// How long calls in flight may go on after a stop was asked for. Default: 30s.
    pub drain: Option<DurationText>,
}

/// What happens upstream when the client leaves.
#[derive(Debug, Clone, Copy, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum OnDisconnect {
    /// The upstream call is cancelled.
    Cancel,
    /// The reply is read to its end, to know the exact usage.
    Drain,
}

/// Whether token usage is asked for.
#[derive(Debug, Clone, Copy, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum StreamUsage {
    /// `stream_options.include_usage` is added upstream and its traces removed on the way back.
    Ask,
    /// Nothing is added; counted locally where the provider says nothing.
    Leave,
}

/// How clients prove who they are.
#[derive(Debug, Clone, Copy, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Auth {
    /// By a virtual key.
    Required,
    /// Nobody is asked; only where `server.listen` is on loopback.
    None,
    /// The client's own provider key goes through.
    Passthrough,
}

/// Attempts, time-outs, ejection.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Routing {
    /// Most attempts of a call over all targets. Default: 3.
    pub attempts: Option<u32>,
    /// Share of recent calls that may be retries. Default: 20%.
    pub retry_budget: Option<Share>,
    /// When a failing provider is taken out of rotation, or `off`.
    pub eject: Option<WordOr<Switch, Eject>>,
    /// Time-outs.
    pub timeouts: Timeouts,
}

/// When a provider is taken out of rotation.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Eject {
    /// Consecutive failures. Default: 5.
    pub after: Option<u32>,
    /// Length of the first ejection. Default: 10s.
    #[serde(rename = "for")]
    pub duration: Option<DurationText>,
}

/// Time-outs of upstream calls.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Timeouts {
    /// To a connection, TLS included. Default: 3s.
    pub connect: Option<DurationText>,
    /// From the end of the request to the head of the reply. Default: 120s.
    pub first_byte: Option<DurationText>,
    /// Between two pieces of a reply. Default: 60s.
    pub idle: Option<DurationText>,
    /// The whole call, retries included. Default: 15m.
    pub total: Option<DurationText>,
}

/// An upstream.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Provider {
    /// What it speaks. Required.
    pub kind: Option<ProviderKind>,
    /// Its base URL, such as `http://127.0.0.1:8000/v1`. Default: the provider's own.
    pub base_url: Option<String>,
    /// Its key, or `file:PATH`. None for servers that ask for none.
    pub api_key: Option<SecretText>,
    /// Several keys, used in turn.
    pub api_keys: Option<Vec<SecretText>>,
    /// Whether `/v1/organization/*` is forwarded. Default: off.
    pub organization_api: Option<Switch>,
    /// The field in which an output cap is set that the client did not set. Default: by kind and URL.
    pub cap_field: Option<CapField>,
    /// Whose rows of the built-in price catalog hold, such as `openai`. Default: by the base URL.
    pub catalog: Option<String>,
    /// PEM file with roots to trust besides the system's.
    pub ca: Option<String>,
    /// Speed of a simulated provider. Default: 50.
    pub tokens_per_second: Option<f64>,
    /// Delay before a simulated provider's first token. Default: 200ms.
    pub time_to_first_token: Option<DurationText>,
    /// Share of calls that a simulated provider fails. Default: 0%.
    pub error_rate: Option<Share>,
}

/// What a provider speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum ProviderKind {
    /// OpenAI's API: OpenAI itself, vLLM, llama.cpp, Ollama and others.
    OpenAi,
    /// Anthropic's Messages API.
    Anthropic,
    /// Nothing: it answers by itself, for tests and demonstrations.
    Simulated,
}

/// The name of the field for an output cap.
#[derive(Debug, Clone, Copy, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum CapField {
    /// `max_tokens`: older and compatible servers.
    MaxTokens,
    /// `max_completion_tokens`: OpenAI.
    MaxCompletionTokens,
}

/// The registry of models and prompts.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Registry {
    /// What happens when a version in a file changed after it served: `refuse` the configuration, or `allow` it, which the history
    /// says. Default: refuse.
    pub changed_versions: Option<ChangedVersions>,
    /// How often guardrails of experiments and roll-outs are looked at, at least 1s. Default: 1m.
    pub guardrails_every: Option<DurationText>,
}

/// What happens when a version in a file changed after it served.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum ChangedVersions {
    /// The configuration is refused.
    Refuse,
    /// It counts from now on.
    Allow,
}

/// An alias that clients name.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Model {
    /// The version that serves. May be left out where there is only one.
    pub live: Option<String>,
    /// Whether this file alone says what serves, and nothing else can be deployed. Default: off.
    pub pin: Option<Switch>,
    /// Versions by name; each is immutable once deployed.
    pub versions: BTreeMap<String, ModelVersion>,
}

/// A version of a model.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct ModelVersion {
    /// The one target, as `provider/model`.
    pub target: Option<String>,
    /// Several targets, chosen by weight.
    pub targets: Option<Vec<WeightedTarget>>,
    /// Tried in order when the target failed before its first byte.
    pub fallbacks: Vec<String>,
    /// Parameters set where the client did not set them.
    pub parameters: BTreeMap<String, serde_json::Value>,
    /// Parameters set whatever the client said.
    pub force: BTreeMap<String, serde_json::Value>,
    /// The prompt injected into every call: `name` or `name@version`.
    pub prompt: Option<String>,
}

/// One of several targets.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct WeightedTarget {
    /// The target, as `provider/model`. Required.
    #[serde(rename = "use")]
    pub target: Option<String>,
    /// Its share of the sum of all weights. Default: 1.
    pub weight: Option<u32>,
}

/// A prompt.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Prompt {
    /// The version that serves. May be left out where there is only one.
    pub live: Option<String>,
    /// Whether this file alone says what serves, and nothing else can be deployed. Default: off.
    pub pin: Option<Switch>,
    /// Versions by name; each is immutable once deployed.
    pub versions: BTreeMap<String, PromptVersion>,
}

/// A version of a prompt: templates with `{{ variables }}`.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct PromptVersion {
    /// The system message.
    pub system: Option<String>,
    /// The developer message.
    pub developer: Option<String>,
    /// Put before what the user said last.
    pub before_user: Option<String>,
    /// Put after the last user message.
    pub after_user: Option<String>,
    /// Messages of several roles, put before the conversation; not beside `system` and `developer`.
    pub messages: Option<Vec<PromptMessage>>,
    /// File with the system message, or, where its name ends in `.messages.yaml`, with the messages; relative to the configuration.
    pub file: Option<String>,
    /// Texts that the templates include, by path, in place of files of the folder `prompts`; a registered version has all of its own.
    pub partials: BTreeMap<String, String>,
    /// The variables that the templates may use.
    pub variables: BTreeMap<String, Variable>,
}

/// One message of a prompt.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct PromptMessage {
    /// Whose words it is. Required.
    pub role: Option<MessageRole>,
    /// Its text, a template. Required.
    pub content: Option<String>,
}

/// Whose words a message is.
#[derive(Debug, Clone, Copy, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum MessageRole {
    /// Instructions.
    System,
    /// Instructions, as OpenAI's newer models prefer them.
    Developer,
    /// What users say.
    User,
    /// A good answer.
    Assistant,
}

/// A variable of a prompt.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Variable {
    /// Its type. Default: string.
    #[serde(rename = "type")]
    pub kind: Option<VariableType>,
    /// Its value where a call names none; without one, such a call is refused.
    pub default: Option<serde_json::Value>,
    /// For people.
    pub description: Option<String>,
    /// The values that it may have.
    #[serde(rename = "enum")]
    pub values: Option<Vec<serde_json::Value>>,
    /// The least number.
    pub min: Option<f64>,
    /// The largest number.
    pub max: Option<f64>,
    /// Most characters of a text.
    pub max_length: Option<u64>,
    /// A regular expression that is found in the text; `^…$` is the whole of it.
    pub pattern: Option<String>,
    /// What the value must be besides, in JSON Schema: the part of it that is checked here, other keywords are errors.
    pub schema: Option<serde_json::Value>,
}

/// The type of a variable.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum VariableType {
    /// A text.
    String,
    /// A number.
    Number,
    /// A whole number.
    Integer,
    /// `true` or `false`.
    Boolean,
    /// A list.
    Array,
    /// Values by name.
    Object,
}

/// An experiment on a model.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Experiment {
    /// Calls that name this model take part. Required.
    pub model: Option<String>,
    /// What is assigned to a variant: `user`, `key`, `session` or `header:NAME`. Default: user.
    pub unit: Option<String>,
    /// Another salt assigns everybody anew. Default: the experiment's name.
    pub salt: Option<String>,
    /// Variants by name.
    pub variants: BTreeMap<String, Variant>,
    /// The variant that the others are compared with. Default: the one named `control`, else the first by name.
    pub control: Option<String>,
    /// What it should change.
    pub goal: Option<Goal>,
    /// What it must not harm.
    pub guardrails: Vec<Guardrail>,
    /// Experiments on a model with the same layer exclude each other: a unit is in at most one of them.
    pub layer: Option<String>,
    /// Share of the layer's units, or of all units, that takes part. Default: 100%.
    pub share: Option<Share>,
    /// What variants with another prompt do to calls of coding agents. Default: skip.
    pub coding_agents: Option<CodingAgents>,
}

/// What an experiment that changes prompts does with calls of coding agents.
#[derive(Debug, Clone, Copy, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum CodingAgents {
    /// They take no part.
    Skip,
    /// They take part like any other call.
    Force,
}

/// A variant; what it does not name is as in the live version.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Variant {
    /// Its share of the sum of all weights. Required; 0 gets nobody.
    pub weight: Option<f64>,
    /// A version of the model.
    pub version: Option<String>,
    /// A target instead of the version's, as `provider/model`.
    pub target: Option<String>,
    /// A prompt instead of the version's: `name` or `name@version`.
    pub prompt: Option<String>,
    /// Parameters over the version's.
    pub parameters: BTreeMap<String, serde_json::Value>,
}

/// What an experiment should change.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Goal {
    /// A metric, built in or from feedback. Required.
    pub metric: Option<String>,
    /// Which way is better. Default: down for built-in metrics, up for those of feedback.
    pub direction: Option<Direction>,
    /// Differences up to this do not matter: points of a share, or a share of the control's amount. Default: 1% and 5%.
    pub margin: Option<Share>,
}

/// Which way is better.
#[derive(Debug, Clone, Copy, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Direction {
    /// More.
    Up,
    /// Less.
    Down,
}

/// What an experiment must not harm.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Guardrail {
    /// A metric, built in or from feedback. Required.
    pub metric: Option<String>,
    /// Its highest value: `5%` of a share, `0.02 USD`, `1.5s`, or a number. Either this or `max_increase` is required.
    pub max: Option<String>,
    /// Its highest increase over the control's value, as a share of that.
    pub max_increase: Option<Share>,
}

/// A virtual key: either its secret or its hash.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Key {
    /// Its identity in logs, scopes and metrics. Required.
    pub name: Option<String>,
    /// The key itself, or `file:PATH`.
    pub secret: Option<SecretText>,
    /// Its hash: `sha256:` or, with a pepper, `hmac-sha256:` and 64 hex digits.
    pub hash: Option<String>,
    /// The team that it belongs to.
    pub team: Option<String>,
    /// What it may name: aliases, `provider/model`, `provider/*`, `gpt-4*` or `*`. Default: everything.
    pub models: Option<Vec<String>>,
    /// Tags of all of its calls.
    pub tags: BTreeMap<String, String>,
}

/// Whom a budget or limit is for. `"*"` gives each value an account of its own. Nothing: all calls together.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Scope {
    /// A virtual key.
    pub key: Option<String>,
    /// A team.
    pub team: Option<String>,
    /// A user, within the key's team (or else within the key).
    pub user: Option<String>,
    /// A model as clients name it.
    pub model: Option<String>,
    /// Tags.
    pub tags: BTreeMap<String, String>,
}

/// A budget.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Budget {
    /// Its name. Required.
    pub name: Option<String>,
    /// Whom it is for. Default: all calls together.
    pub scope: Scope,
    /// How much may be spent in a period. Required.
    pub limit: Option<Money>,
    /// The period, such as `day` or `month`. Required.
    pub per: Option<String>,
    /// The time zone of the period, such as `Europe/Berlin`. Default: UTC.
    pub timezone: Option<String>,
    /// Shares of the limit at which an alert is due.
    pub alerts: Vec<Share>,
    /// What happens once it is spent. Default: refuse.
    pub on_exhausted: Option<WordOr<Refuse, Downgrade>>,
    /// Whether the output cap of a call may be lowered to what is left. Default: on.
    pub clamp: Option<Switch>,
    /// The least output cap that clamping may leave. Default: 256.
    pub min_output_tokens: Option<u64>,
    /// The cap of calls without one, where the model's own maximum is unknown. Default: 4096.
    pub default_max_tokens: Option<u64>,
    /// What happens when the store is away. Default: closed.
    pub on_store_loss: Option<OnStoreLoss>,
    /// Whether it refuses. Default: enforce.
    pub mode: Option<BudgetMode>,
}

/// `refuse`.
#[derive(Debug, Clone, Copy, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Refuse {
    /// The call is refused.
    Refuse,
}

/// `off`.
#[derive(Debug, Clone, Copy, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Off {
    /// Off.
    Off,
}

/// Calls go to another model.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Downgrade {
    /// The alias to use instead. Required.
    pub downgrade: Option<String>,
}

/// What happens when the store is away.
#[derive(Debug, Clone, Copy, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum OnStoreLoss {
    /// 503.
    Closed,
    /// Calls go on, booked as debt.
    Open,
}

/// Whether a budget refuses.
#[derive(Debug, Clone, Copy, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum BudgetMode {
    /// It refuses.
    Enforce,
    /// It counts and warns.
    Warn,
}

/// Timings of the ledger.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Ledger {
    /// Interval of the background sync. Default: 1s.
    pub sync: Option<DurationText>,
    /// Longest wait of a call for money. Default: 250ms.
    pub budget_wait: Option<DurationText>,
    /// Replicas of a Redis store that must have a grant before it is used. Default: 0.
    pub wait_replicas: Option<u32>,
}

/// What the call log keeps, and for how long.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Calls {
    /// How long calls are kept, at most 365d. Default: 90d.
    pub retention: Option<DurationText>,
    /// How users, sessions and the units of experiments are stored. Default: plain.
    pub users: Option<UserIds>,
    /// Disk for calls that wait for the store while it is away. Default: 256MiB.
    pub spill: Option<Size>,
    /// Whether prompts and replies are kept. Default: off.
    pub bodies: Option<BodiesKept>,
    /// Of which share of calls, with `bodies: sampled`. Default: 1%.
    pub sample: Option<Share>,
    /// How much of each body is kept, at most 8MiB. Default: 64KiB.
    pub body_max: Option<Size>,
    /// What is taken out of bodies, besides keys and tokens of known forms.
    pub redact: Redact,
}

/// Whether prompts and replies are kept.
#[derive(Debug, Clone, Copy, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum BodiesKept {
    /// No.
    Off,
    /// Their lengths only.
    Metadata,
    /// Those of a share of all calls.
    Sampled,
    /// Yes.
    Full,
}

/// What is taken out of bodies.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Redact {
    /// What matches these regular expressions.
    pub patterns: Vec<String>,
    /// What stands at these places of JSON documents: `messages[*].content`.
    pub paths: Vec<String>,
    /// What looks like an e-mail address. Default: off.
    pub emails: Option<Switch>,
}

/// How users' ids are stored.
#[derive(Debug, Clone, Copy, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum UserIds {
    /// As given.
    Plain,
    /// As a hash, the same for the same id.
    Hash,
}

/// A rate limit.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Limit {
    /// Its name. Required.
    pub name: Option<String>,
    /// Whom it is for. Default: all calls together.
    pub scope: Scope,
    /// Requests.
    pub requests: Option<RateText>,
    /// Tokens.
    pub tokens: Option<RateText>,
    /// Calls at the same time.
    pub concurrent: Option<u32>,
}

/// The response cache.
#[derive(Debug, Default, Clone, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Cache {
    /// How long a reply is kept.
    pub ttl: Option<DurationText>,
    /// Memory for replies.
    pub max: Option<Size>,
    /// Who shares replies.
    pub scope: Option<CacheScope>,
}

/// Who shares cached replies.
#[derive(Debug, Clone, Copy, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum CacheScope {
    /// Nobody: each key has its own.
    Key,
    /// The keys of a team.
    Team,
    /// All.
    Global,
}

/// A price for models that have none.
#[derive(Debug, Default, Clone, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Charge {
    /// The price. Required.
    pub charge: Option<ChargedPrice>,
}

/// A flat price.
#[derive(Debug, Default, Clone, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct ChargedPrice {
    /// Input tokens. Required.
    pub input: Option<PriceText>,
    /// Output tokens. Required.
    pub output: Option<PriceText>,
}

/// Where alerts go.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Alerts {
    /// The address that receives alerts, or `file:PATH`. Empty: they are only logged.
    pub webhook: Option<SecretText>,
    /// What the receiver understands. Default: auto, by the address.
    pub format: Option<AlertFormat>,
    /// With what messages are signed, or `file:PATH`.
    pub secret: Option<SecretText>,
    /// PagerDuty's integration key, or `file:PATH`; with it, `webhook` may be left out.
    pub routing_key: Option<SecretText>,
    /// When an alert that stands is sent again. Default: 4h.
    pub repeat: Option<DurationText>,
    /// For how long its reason must be gone before an alert is over. Default: 1m.
    pub resolve_after: Option<DurationText>,
    /// What is worth an alert. Default: everything.
    pub on: Option<Vec<AlertKind>>,
}

/// What a receiver of alerts understands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum AlertFormat {
    /// By the address: Slack's and PagerDuty's own are known, all others get JSON.
    Auto,
    /// Slack's incoming webhooks, and what imitates them.
    Slack,
    /// Signed JSON.
    Generic,
    /// PagerDuty's Events API v2.
    Pagerduty,
}

/// What an alert is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum AlertKind {
    /// A budget has passed a threshold of its `alerts`.
    Budget,
    /// A provider is out of rotation.
    Provider,
    /// A provider refuses its key.
    Credentials,
    /// A changed configuration was refused.
    Configuration,
    /// The ledger's store does not answer.
    Store,
    /// Records of calls were lost.
    Records,
    /// A guardrail stopped a variant of an experiment, or a roll-out.
    Experiment,
}

/// Traces and metrics out.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Telemetry {
    /// The OTLP/HTTP collector, such as `http://collector:4318`. Empty: none. Default: `$OTEL_EXPORTER_OTLP_ENDPOINT`.
    pub otlp: Option<String>,
    /// Whether prompts and replies are in traces: of calls whose bodies are captured (`calls.bodies`), redacted. Default: off.
    pub content: Option<Switch>,
    /// The edition of OpenTelemetry's conventions for generative AI: `1.36`, `1.37` or `1.41`. Default: 1.41.
    pub semconv: Option<String>,
    /// Header fields for the collector, or `file:PATH`. Default: `$OTEL_EXPORTER_OTLP_HEADERS`.
    pub headers: BTreeMap<String, SecretText>,
    /// The share of calls that are traced where the client has not decided. Default: 100%.
    pub sample: Option<Share>,
    /// Whether metrics are sent too. Default: on.
    pub metrics: Option<Switch>,
    /// Between two reports of metrics. Default: 60s.
    pub interval: Option<DurationText>,
    /// The service's name. Default: `$OTEL_SERVICE_NAME`, or tollgate.
    pub service: Option<String>,
}
