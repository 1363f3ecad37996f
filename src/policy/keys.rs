//! Virtual keys: who is calling, what they may name.

use std::sync::Arc;

/// Who makes a call: what its virtual key says. Never holds the key itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Caller {
    /// The key's name in the configuration: identity in logs, scopes and metrics.
    pub name: Arc<str>,
    /// The team that the key belongs to.
    pub team: Option<Arc<str>>,
    /// Which models the key may name.
    pub models: ModelAccess,
    /// Tags of the key; a call's own tags cannot replace them.
    pub tags: Arc<[(Arc<str>, Arc<str>)]>,
}

/// Which models a key may name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ModelAccess {
    /// No list was given, or `*`.
    All,
    /// Names (`support`), `provider/model`, or `provider/*`.
    Only(Arc<[Box<str>]>),
}

/// The virtual keys of one configuration, found by the digest of what the client presents.
#[derive(Debug, Default)]
pub struct KeyRing {}

impl KeyRing {
    /// The caller to use where nobody is asked.
    #[must_use]
    pub fn anonymous(&self) -> Arc<Caller> {
        Arc::new(Caller { name: "anonymous".into(), team: None, models: ModelAccess::All, tags: Arc::new([]) })
    }
}
