//! One revision of the routing configuration as it is kept in a store: numbered, signed with its own hash, never changed.

use std::{fmt, str::FromStr};

use jiff::Timestamp;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

/// Longer texts are no configuration.
pub const TEXT_BYTES_MAX: usize = 1 << 20;

/// A revision: what was pushed, by whom, when and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Revision {
    /// Its number; the first one is 1, and each is one more than the one before. 0 is a draft.
    pub number: u64,
    /// SHA-256 of `text`, 64 hex digits.
    pub sha256: String,
    /// The file that it was pushed from, without its directory: for messages.
    pub name: String,
    /// The configuration as it was written, `${NAME}` and `file:` references unresolved.
    pub text: String,
    /// Who pushed it.
    pub author: String,
    /// When, by the store's clock.
    pub at: Timestamp,
    /// Why; may be empty.
    pub message: String,
    /// The revision that was live before it.
    pub parent: Option<u64>,
}

/// What a store may hold in place of a revision.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RevisionError {
    /// No such JSON.
    #[error("is no revision of a configuration: {0}")]
    Form(&'static str),
    /// Changed after it was written, or cut.
    #[error("does not have the hash that it was pushed with")]
    Hash,
}

/// Which revision is live.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Head {
    /// [`Revision::number`].
    pub number: u64,
    /// [`Revision::sha256`].
    pub sha256: String,
}

// === impl Revision ===

impl Revision {
    /// What a store's head says when this revision is live.
    #[must_use]
    pub fn head(&self) -> Head {
        Head { number: self.number, sha256: self.sha256.clone() }
    }

    /// How messages about its text name it: `routing.yaml@7`, or a draft by its file.
    #[must_use]
    pub fn label(&self) -> String {
        match self.number {
            0 => self.name.clone(),
            number => format!("{}@{number}", self.name),
        }
    }

    /// One line of JSON.
    #[must_use]
    pub fn to_json(&self) -> String {
        json!({
            "revision": self.number, "sha256": self.sha256, "name": self.name, "author": self.author,
            "at": self.at.to_string(), "message": self.message, "parent": self.parent, "text": self.text,
        })
        .to_string()
    }

    /// Reads what [`Revision::to_json`] wrote.
    ///
    /// # Errors
    /// When it is something else, or the text is not the one that was hashed.
    pub fn parse(json: &str) -> Result<Revision, RevisionError> {
        let value: Value = serde_json::from_str(json).map_err(|_| RevisionError::Form("it is not JSON"))?;
        let text = |name: &str| value[name].as_str().map(str::to_owned);
        let revision = Revision {
            number: value["revision"].as_u64().ok_or(RevisionError::Form("`revision` is no number"))?,
            sha256: text("sha256").ok_or(RevisionError::Form("`sha256` is missing"))?,
            name: text("name").ok_or(RevisionError::Form("`name` is missing"))?,
            text: text("text").ok_or(RevisionError::Form("`text` is missing"))?,
            author: text("author").unwrap_or_default(),
            at: text("at").and_then(|at| at.parse().ok()).ok_or(RevisionError::Form("`at` is no time"))?,
            message: text("message").unwrap_or_default(),
            parent: value["parent"].as_u64(),
        };
        if sha256(&revision.text) != revision.sha256 {
            return Err(RevisionError::Hash);
        }
        Ok(revision)
    }
}

// === impl Head ===

impl fmt::Display for Head {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.number, self.sha256)
    }
}

impl FromStr for Head {
    type Err = RevisionError;

    fn from_str(text: &str) -> Result<Head, RevisionError> {
        let (number, sha256) = text.split_once(' ').ok_or(RevisionError::Form("a head is `NUMBER SHA256`"))?;
        let number = number.parse().map_err(|_| RevisionError::Form("the head names no number"))?;
        Ok(Head { number, sha256: sha256.to_owned() })
    }
}

/// SHA-256 of a text, 64 hex digits.
#[must_use]
pub fn sha256(text: &str) -> String {
    Sha256::digest(text.as_bytes()).iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn revision() -> Revision {
        Revision {
            number: 7,
            sha256: sha256("models: {}\n"),
            name: "routing.yaml".to_owned(),
            text: "models: {}\n".to_owned(),
            author: "ann@host".to_owned(),
            at: "2026-11-23T20:00:00Z".parse().expect("a time"),
            message: "why \"not\"\n".to_owned(),
            parent: Some(6),
        }
    }

    #[test]
    fn a_revision_reads_back() {
        assert_eq!(Revision::parse(&revision().to_json()), Ok(revision()));
        assert_eq!(revision().head().to_string().parse(), Ok(revision().head()));
        assert_eq!(revision().label(), "routing.yaml@7");
    }

    #[test]
    fn what_was_changed_or_is_something_else_is_no_revision() {
        let changed = revision().to_json().replace("models", "budget");
        assert_eq!(Revision::parse(&changed), Err(RevisionError::Hash));
        for json in ["", "{}", "[]", "7", &revision().to_json().replace("2026", "soon")] {
            assert!(matches!(Revision::parse(json), Err(RevisionError::Form(_))), "{json}");
        }
        for head in ["", "7", "x y", "-1 y"] {
            assert!(head.parse::<Head>().is_err(), "{head}");
        }
    }
}
