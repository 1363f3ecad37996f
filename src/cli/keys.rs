//! `tollgate keys`: makes, lists and revokes virtual keys in the data directory's key store.
//!
//! A running gateway on the same data directory takes changes up by itself. The secret is printed once, by `create`.

use std::{io::Write, path::Path};

use anyhow::{anyhow, bail};
use clap::{Args, Subcommand};
use serde_json::json;

use super::{FAILED, UNREACHABLE, WRONG, local_actor};
use crate::{
    admin::keyring::{Keyring, KeyringError, Who},
    store::{
        audit::Audit,
        keys::{Created, FILE_NAME, KeyRow, KeyStore, KeyStoreError, NewKey},
    },
};

const HOW_TO_MAKE_ONE: &str = "Make one with `tollgate keys create --name NAME`.";

/// What to do with virtual keys.
#[derive(Debug, Subcommand)]
pub enum KeysCommand {
    /// Make a key; its secret is shown once
    Create(CreateKey),
    /// List all keys, revoked ones included; never their secrets
    List {
        /// One JSON array instead of a table
        #[arg(long)]
        json: bool,
    },
    /// Revoke a key: running gateways refuse it within seconds
    Revoke {
        /// The key's name or public id
        #[arg(value_name = "NAME|ID")]
        key: String,
    },
}

/// A key to make.
#[derive(Debug, Args)]
pub struct CreateKey {
    /// Its name: identity in logs, budgets and metrics
    #[arg(long)]
    name: String,
    /// The team it belongs to
    #[arg(long)]
    team: Option<String>,
    /// A model it may name: an alias, provider/model, provider/* or prefix*; repeatable, all when not given
    #[arg(long = "model", value_name = "MODEL")]
    models: Vec<String>,
    /// A tag on all its calls; repeatable
    #[arg(long = "tag", value_name = "NAME=VALUE", value_parser = tag)]
    tags: Vec<(String, String)>,
    /// When it stops being valid, such as 2027-01-31T00:00:00Z
    #[arg(long, value_name = "TIME")]
    expires: Option<jiff::Timestamp>,
    /// One JSON object instead of sentences
    #[arg(long)]
    json: bool,
}

/// Runs a command on the key store of `data_dir`. New keys are stored as HMACs under `pepper` where there is one, which must
/// be the one that the gateway uses.
///
/// # Errors
/// When the store refuses or cannot be used, or `out` cannot be written.
pub fn run(command: &KeysCommand, data_dir: &Path, pepper: Option<&[u8]>, out: &mut impl Write) -> anyhow::Result<()> {
    // Only who makes a key makes a store: a directory that was mistyped stays away.
    if !matches!(command, KeysCommand::Create(_)) && !data_dir.join(FILE_NAME).exists() {
        return without_store(command, data_dir, out);
    }
    let store = KeyStore::open(data_dir)?;
    let (audit, actor) = (Audit::in_dir(data_dir), local_actor());
    let keyring = Keyring { store: &store, audit: &audit, pepper };
    let who = Who { actor: &actor, reason: "" };
    match command {
        KeysCommand::Create(wanted) => create(keyring, wanted, who, out),
        KeysCommand::List { json: true } => Ok(writeln!(out, "{}", json_list(&store.list()?))?),
        KeysCommand::List { json: false } => table(&store.list()?, out),
        KeysCommand::Revoke { key } => {
            let revoked = keyring.revoke(key, who)?;
            Ok(writeln!(out, "Revoked key {} ({}).", revoked.name, revoked.id)?)
        }
    }
}

/// What there is to say where no key was ever made.
fn without_store(command: &KeysCommand, data_dir: &Path, out: &mut impl Write) -> anyhow::Result<()> {
    match command {
        KeysCommand::Revoke { key } => Err(KeyStoreError::NotFound(key.clone()).into()),
        KeysCommand::List { json: true } => Ok(writeln!(out, "[]")?),
        _ => Ok(writeln!(out, "No keys in {}. {HOW_TO_MAKE_ONE}", data_dir.display())?),
    }
}

/// The exit code of a command that failed so: 1 refused as things stand, 2 wrong use, 3 the store cannot be used.
pub fn exit_code(error: &anyhow::Error) -> u8 {
    let refused = match error.downcast_ref() {
        Some(KeyringError::Keys(error)) => Some(error),
        _ => error.downcast_ref(),
    };
    match refused {
        Some(KeyStoreError::NameTaken(_) | KeyStoreError::NotFound(_)) => FAILED,
        Some(KeyStoreError::InvalidName(_)) => WRONG,
        _ if error.is::<InThePast>() => WRONG,
        _ => UNREACHABLE,
    }
}

/// A key that nobody could use.
#[derive(Debug, thiserror::Error)]
#[error("--expires lies in the past; write a later time, or leave it out")]
struct InThePast;

fn create(keyring: Keyring<'_>, wanted: &CreateKey, who: Who<'_>, out: &mut impl Write) -> anyhow::Result<()> {
    let key = NewKey {
        name: wanted.name.clone(),
        team: wanted.team.clone(),
        models: wanted.models.clone(),
        tags: wanted.tags.clone(),
        expires_ms: wanted.expires.map(jiff::Timestamp::as_millisecond),
    };
    if wanted.expires.is_some_and(|expires| expires <= jiff::Timestamp::now()) {
        bail!(InThePast);
    }
    let created = keyring.create(&key, who)?;
    // Not as the system's error: to whoever closed the pipe the key is lost, and that is a failure.
    out.write_all(shown(wanted, &key, &created).as_bytes()).map_err(|error| {
        anyhow!("the key was made, but cannot be shown: {error}; revoke `{}` and make another", created.id)
    })
}

/// What is shown of a new key, this once.
fn shown(wanted: &CreateKey, key: &NewKey, created: &Created) -> String {
    if wanted.json {
        let shown = json!({
            "id": created.id,
            "name": key.name,
            "secret": created.secret.expose(),
            "hash": created.digest.to_string(),
        });
        return format!("{shown}\n");
    }
    format!(
        "{secret}\n\n\
         This is the key of `{name}`, shown this once: keep it now. It is valid at every gateway on this data directory\n\
         within seconds. `tollgate keys revoke {id}` ends that.\n\n\
         To keep it in a configuration instead, revoke it here and add this line under `keys:`\n  {line}\n",
        secret = created.secret.expose(),
        name = key.name,
        id = created.id,
        line = config_line(key, created),
    )
}

/// The key as an entry of a configuration's `keys`. Texts are written as JSON strings, which YAML reads as they are.
fn config_line(key: &NewKey, created: &Created) -> String {
    let mut line = format!("- {{ name: {}, hash: {}", json!(key.name), json!(created.digest.to_string()));
    if let Some(team) = &key.team {
        line += &format!(", team: {}", json!(team));
    }
    if !key.models.is_empty() {
        line += &format!(", models: {}", json!(key.models));
    }
    if !key.tags.is_empty() {
        let tags: Vec<String> =
            key.tags.iter().map(|(name, value)| format!("{}: {}", json!(name), json!(value))).collect();
        line += &format!(", tags: {{ {} }}", tags.join(", "));
    }
    line + " }"
}

/// Listed keys as JSON, times as RFC 3339.
fn json_list(rows: &[KeyRow]) -> serde_json::Value {
    let one = |row: &KeyRow| {
        json!({
            "id": row.id,
            "name": row.name,
            "team": row.team,
            "models": row.models,
            "tags": row.tags.iter().cloned().collect::<std::collections::BTreeMap<_, _>>(),
            "created": time(row.created_ms),
            "expires": row.expires_ms.map(time),
            "revoked": row.revoked_ms.map(time),
        })
    };
    rows.iter().map(one).collect()
}

fn table(rows: &[KeyRow], out: &mut impl Write) -> anyhow::Result<()> {
    if rows.is_empty() {
        return Ok(writeln!(out, "No keys. {HOW_TO_MAKE_ONE}")?);
    }
    let header = ["ID", "NAME", "TEAM", "MODELS", "CREATED", "STATE"].map(str::to_owned);
    let lines: Vec<[String; 6]> = std::iter::once(header).chain(rows.iter().map(cells)).collect();
    let width = |column: usize| lines.iter().map(|line| line[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..6).map(width).collect();
    for line in &lines {
        let padded: Vec<String> = line.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}")).collect();
        writeln!(out, "{}", padded.join("  ").trim_end())?;
    }
    Ok(())
}

fn cells(row: &KeyRow) -> [String; 6] {
    let models = if row.models.is_empty() { "*".to_owned() } else { row.models.join(" ") };
    let state = match (row.revoked_ms, row.expires_ms) {
        (Some(revoked_ms), _) => format!("revoked {}", time(revoked_ms)),
        (None, Some(expires_ms)) if expires_ms <= jiff::Timestamp::now().as_millisecond() => {
            format!("expired {}", time(expires_ms))
        }
        (None, Some(expires_ms)) => format!("in use until {}", time(expires_ms)),
        (None, None) => "in use".to_owned(),
    };
    let team = row.team.clone().unwrap_or_else(|| "-".to_owned());
    [row.id.clone(), row.name.clone(), team, models, time(row.created_ms), state]
}

/// RFC 3339 in UTC, whole seconds.
fn time(ms: i64) -> String {
    let time = jiff::Timestamp::from_millisecond(ms).unwrap_or_default();
    time.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

fn tag(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, value)) if !name.trim().is_empty() => Ok((name.trim().to_owned(), value.trim().to_owned())),
        _ => Err(format!("`{text}` is no tag; write it as name=value")),
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::policy::keys::KeyRing;

    #[derive(Debug, Parser)]
    struct Keys {
        #[command(subcommand)]
        command: KeysCommand,
    }

    fn keys(data_dir: &Path, arguments: &str) -> anyhow::Result<String> {
        let command = Keys::try_parse_from(std::iter::once("keys").chain(arguments.split_whitespace()))?.command;
        let mut out = Vec::new();
        run(&command, data_dir, None, &mut out)?;
        Ok(String::from_utf8(out)?)
    }

    #[test]
    fn a_key_is_created_listed_and_revoked() {
        let dir = tempfile::tempdir().expect("a directory");
        let data = dir.path();

        let shown = keys(data, "create --name web --team product --model support --model openai/* --tag app=web")
            .expect("created");
        let secret = shown.lines().next().expect("the secret first");
        let ring = || KeyRing::default().with(KeyStore::open(data).expect("opens").active().expect("reads"));
        assert_eq!(&*ring().find(secret).expect("valid").name, "web");
        let line = shown.lines().last().expect("the configuration line").trim();
        assert!(line.starts_with(r#"- { name: "web", hash: "sha256:"#), "{line}");
        assert!(
            line.ends_with(r#"", team: "product", models: ["support","openai/*"], tags: { "app": "web" } }"#),
            "{line}"
        );

        let listed = keys(data, "list").expect("listed");
        assert!(listed.contains("web") && listed.contains("in use") && !listed.contains(secret), "{listed}");

        keys(data, "revoke web").expect("revoked");
        assert_eq!(ring().find(secret), None);
        assert!(keys(data, "list").expect("listed").contains("revoked 2"));
        assert_eq!(keys(data, "revoke web").expect_err("gone").to_string(), "no key in use has the name or id `web`");
    }

    #[test]
    fn json_is_for_scripts() {
        let dir = tempfile::tempdir().expect("a directory");
        let created: serde_json::Value = serde_json::from_str(
            &keys(dir.path(), "create --name web --tag a=b=c --expires 2999-01-01T00:00:00Z --json").expect("created"),
        )
        .expect("one object");
        let listed: serde_json::Value =
            serde_json::from_str(&keys(dir.path(), "list --json").expect("listed")).expect("one array");
        assert_eq!(listed[0]["id"], created["id"]);
        assert_eq!(listed[0]["tags"], json!({"a": "b=c"}));
        assert_eq!(listed[0]["expires"], "2999-01-01T00:00:00Z");
        assert!(!listed.to_string().contains(created["secret"].as_str().expect("a text")));
    }

    #[test]
    fn only_who_makes_a_key_makes_a_store() {
        let dir = tempfile::tempdir().expect("a directory");
        let mistyped = dir.path().join("dta");
        assert!(keys(&mistyped, "list").expect("listed").starts_with("No keys in "));
        assert_eq!(keys(&mistyped, "list --json").expect("listed"), "[]\n");
        assert!(keys(&mistyped, "revoke web").is_err());
        assert!(!mistyped.exists());
    }

    #[test]
    fn an_exit_code_tells_a_refusal_from_wrong_use_and_from_a_store_that_fails() {
        let dir = tempfile::tempdir().expect("a directory");
        keys(dir.path(), "create --name web").expect("created");
        let code = |data_dir: &Path, arguments| exit_code(&keys(data_dir, arguments).expect_err("refused"));
        assert_eq!(code(dir.path(), "create --name web"), 1);
        assert_eq!(code(dir.path(), "revoke nobody"), 1);
        assert_eq!(code(dir.path(), "create --name a --expires 2001-01-01T00:00:00Z"), 2);
        let file = dir.path().join("file");
        std::fs::write(&file, "").expect("writes");
        assert_eq!(code(&file, "create --name web"), 3);
        std::fs::write(dir.path().join(FILE_NAME), "no database, but longer than its header is").expect("writes");
        assert_eq!(code(dir.path(), "list"), 3);
    }

    #[test]
    fn wrong_use_is_refused_before_a_key_is_made() {
        let dir = tempfile::tempdir().expect("a directory");
        for arguments in
            ["create", "create --name web --tag app", "create --name web --expires 2001-01-01T00:00:00Z", "revoke"]
        {
            assert!(keys(dir.path(), arguments).is_err(), "{arguments}");
        }
        assert!(keys(dir.path(), "list").expect("listed").starts_with("No keys."));
    }
}
