//! Making and revoking virtual keys, written to the audit log: for the API of a running gateway, and for the command that works
//! without one.
//!
//! Neither is done where the log cannot be written.

use jiff::Timestamp;
use serde_json::{Value, json};

use crate::store::{
    audit::{Audit, Deed},
    keys::{Created, KeyRow, KeyStore, KeyStoreError, NewKey},
    ports::StoreError,
};

/// The key store, and where changes are written down.
#[derive(Debug, Clone, Copy)]
pub struct Keyring<'a> {
    /// The keys.
    pub store: &'a KeyStore,
    /// The audit log.
    pub audit: &'a Audit,
    /// Given, digests are HMACs with it.
    pub pepper: Option<&'a [u8]>,
}

/// Who changes something, and why.
#[derive(Debug, Clone, Copy)]
pub struct Who<'a> {
    /// Their name, and how they were let in.
    pub actor: &'a str,
    /// Why, in their words; may be empty.
    pub reason: &'a str,
}

/// Why a key was neither made nor revoked.
#[derive(Debug, thiserror::Error)]
pub enum KeyringError {
    /// The key store refuses, or cannot be used.
    #[error(transparent)]
    Keys(#[from] KeyStoreError),
    /// The audit log cannot be written.
    #[error(transparent)]
    Audit(#[from] StoreError),
}

impl Keyring<'_> {
    /// Makes a key.
    ///
    /// # Errors
    /// When the name is taken or none, or a store cannot be written.
    pub fn create(&self, key: &NewKey, who: Who<'_>) -> Result<Created, KeyringError> {
        let page = self.audit.open()?;
        let created = self.store.create(key, self.pepper)?;
        let after = json!({
            "id": created.id, "name": key.name, "team": key.team, "models": key.models,
            "tags": tags(&key.tags), "expires": key.expires_ms.map(time),
        });
        let deed = deed("keys.create", &key.name, who, Value::Null, after);
        if let Err(error) = page.write(Timestamp::now(), &deed) {
            // Nobody has seen its secret, so nobody misses it.
            self.store.revoke(&created.id)?;
            return Err(error.into());
        }
        Ok(created)
    }

    /// Revokes the key in use with this id or name.
    ///
    /// # Errors
    /// When there is none, or a store cannot be written. A key that was revoked while the log could not be written stays revoked.
    pub fn revoke(&self, name_or_id: &str, who: Who<'_>) -> Result<KeyRow, KeyringError> {
        let page = self.audit.open()?;
        let revoked = self.store.revoke(name_or_id)?;
        let before = json!({"id": revoked.id, "name": revoked.name, "team": revoked.team});
        let after = json!({"revoked": revoked.revoked_ms.map(time)});
        page.write(Timestamp::now(), &deed("keys.revoke", &revoked.name, who, before, after))?;
        Ok(revoked)
    }
}

/// RFC 3339 in UTC.
#[must_use]
pub fn time(ms: i64) -> String {
    Timestamp::from_millisecond(ms).unwrap_or_default().to_string()
}

/// As a map.
#[must_use]
pub fn tags(tags: &[(String, String)]) -> Value {
    tags.iter()
        .map(|(name, value)| (name.clone(), Value::from(value.as_str())))
        .collect::<serde_json::Map<_, _>>()
        .into()
}

fn deed<'a>(action: &'a str, subject: &'a str, who: Who<'a>, before: Value, after: Value) -> Deed<'a> {
    Deed { actor: who.actor, action, subject, reason: who.reason, before, after }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WHO: Who<'static> = Who { actor: "ann", reason: "a test" };

    #[test]
    fn what_is_done_to_keys_is_written_down_without_the_key() {
        let dir = tempfile::tempdir().expect("a directory");
        let (store, audit) = (KeyStore::open(dir.path()).expect("opens"), Audit::in_dir(dir.path()));
        let keyring = Keyring { store: &store, audit: &audit, pepper: None };
        let key = NewKey { name: "web".to_owned(), team: Some("red".to_owned()), ..NewKey::default() };

        let created = keyring.create(&key, WHO).expect("made");
        assert!(keyring.create(&key, WHO).is_err(), "the name is taken");
        keyring.revoke("web", WHO).expect("revoked");
        assert!(keyring.revoke("web", WHO).is_err(), "there is none");

        let log = audit.read(None, 9, |_| true).expect("reads");
        let actions: Vec<&str> = log.lines.iter().filter_map(|(_, line)| line["action"].as_str()).collect();
        assert_eq!((actions, log.chain), (vec!["keys.revoke", "keys.create"], Ok(2)));
        let text = std::fs::read_to_string(audit.path()).expect("reads");
        assert!(text.contains(&created.id) && !text.contains(created.secret.expose()));
        assert!(!text.contains(&created.digest.to_string()), "a digest is a target to test guesses against");
    }

    #[test]
    fn nothing_is_done_that_cannot_be_written_down() {
        let dir = tempfile::tempdir().expect("a directory");
        let (store, audit) = (KeyStore::open(dir.path()).expect("opens"), Audit::in_dir(dir.path()));
        std::fs::write(audit.path(), "nonsense\n").expect("written");
        let keyring = Keyring { store: &store, audit: &audit, pepper: None };
        let key = NewKey { name: "web".to_owned(), ..NewKey::default() };

        assert!(matches!(keyring.create(&key, WHO), Err(KeyringError::Audit(_))));
        assert_eq!(store.list().expect("reads"), []);
        store.create(&key, None).expect("made");
        assert!(matches!(keyring.revoke("web", WHO), Err(KeyringError::Audit(_))));
        assert_eq!(store.active().expect("reads").len(), 1);
    }
}
