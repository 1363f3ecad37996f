//! What the URL of a Redis store says: which servers, how to reach them, and as whom.
//!
//! ```text
//! redis://[user[:password]@]host[:port][/db]                        one server; rediss:// over TLS
//! redis+sentinel://[user[:password]@]host[:port],…/master[/db]      Sentinels name the primary; rediss+sentinel://
//! redis+cluster://[user[:password]@]host[:port],…                   seeds of a Cluster; rediss+cluster://
//! ```
//!
//! `?prefix=name:` sets what all keys begin with. User and password may be percent-encoded. Neither errors nor `Debug` ever
//! show the password, nor any part of a URL that could not be taken apart.

use std::fmt;

/// Where a Redis server listens unless the URL says otherwise.
const PORT: u16 = 6379;
/// Where a Sentinel listens unless the URL says otherwise.
const SENTINEL_PORT: u16 = 26379;
/// What keys begin with unless the URL says otherwise.
const PREFIX: &str = "tollgate:";
/// Longer prefixes are a mistake.
const PREFIX_BYTES_MAX: usize = 64;

/// How the servers hang together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Topology {
    /// One server.
    Single,
    /// The hosts are Sentinels, which know where the primary of this name is.
    Sentinel(String),
    /// The hosts are some nodes of a Cluster.
    Cluster,
}

/// A Redis URL, taken apart.
#[derive(Clone, PartialEq, Eq)]
pub struct RedisUrl {
    /// How the servers hang together.
    pub topology: Topology,
    /// Whether connections are encrypted, and the servers' certificates checked.
    pub tls: bool,
    /// Names and ports; at least one, and one only where there is one server.
    pub hosts: Vec<(String, u16)>,
    /// The ACL user; `None` is the server's default user.
    pub user: Option<String>,
    /// The database number; 0 in a Cluster.
    pub db: i64,
    /// What all keys begin with.
    pub prefix: String,
    password: Option<String>,
}

/// What is wrong with a Redis URL; says nothing of what it holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum RedisUrlError {
    /// Another scheme.
    #[error("is not a Redis URL; write redis://, rediss://, redis+sentinel:// or redis+cluster://")]
    Scheme,
    /// No host, or one that is none.
    #[error("names no host, or one that cannot be read; write redis://host:6379")]
    Host,
    /// Several hosts for one server.
    #[error("names several hosts; write redis+sentinel:// or redis+cluster:// if that is what they are")]
    Hosts,
    /// A Sentinel URL without the primary's name.
    #[error("does not name the primary; write redis+sentinel://host:26379,host:26379/mymaster")]
    Master,
    /// A database that is no number.
    #[error("ends in a database that is not a number; write redis://host:6379/0")]
    Database,
    /// A Cluster has only database 0.
    #[error("names a database, and a Cluster has only one: take the path out")]
    ClusterDatabase,
    /// A percent-encoding that is none.
    #[error("holds a `%` that is no percent-encoding; write it as %25")]
    Encoding,
    /// Anything after `?` but the prefix.
    #[error("holds a setting that is not known; `?prefix=name:` is the only one")]
    Setting,
    /// A prefix with characters that have a meaning in keys and patterns.
    #[error("has a prefix that is empty, long or odd; up to 64 of letters, digits, `:`, `-`, `_` and `.` are fine")]
    Prefix,
}

impl RedisUrl {
    /// Takes a URL apart.
    ///
    /// # Errors
    /// What is wrong with it, without a word of what it holds.
    pub fn parse(url: &str) -> Result<RedisUrl, RedisUrlError> {
        let (scheme, rest) = url.split_once("://").ok_or(RedisUrlError::Scheme)?;
        let (tls, kind) = match scheme.strip_prefix("rediss") {
            Some(kind) => (true, kind),
            None => (false, scheme.strip_prefix("redis").ok_or(RedisUrlError::Scheme)?),
        };
        let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
        let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
        // The last `@`: a password that holds one unencoded is common, a host that does is impossible.
        let (login, hosts) = authority.rsplit_once('@').unwrap_or(("", authority));
        let (user, password) = login.split_once(':').unwrap_or((login, ""));
        let default_port = if kind == "+sentinel" { SENTINEL_PORT } else { PORT };
        let hosts: Vec<(String, u16)> = hosts
            .split(',')
            .map(|host| host_and_port(host, default_port))
            .collect::<Option<_>>()
            .ok_or(RedisUrlError::Host)?;
        let (topology, db) = match kind {
            "" if hosts.len() > 1 => return Err(RedisUrlError::Hosts),
            "" => (Topology::Single, database(path)?),
            "+sentinel" => {
                let (master, db) = path.split_once('/').unwrap_or((path, ""));
                let master = decode(master)?.ok_or(RedisUrlError::Master)?;
                (Topology::Sentinel(master), database(db)?)
            }
            "+cluster" if database(path).is_ok_and(|db| db == 0) => (Topology::Cluster, 0),
            "+cluster" => return Err(RedisUrlError::ClusterDatabase),
            _ => return Err(RedisUrlError::Scheme),
        };
        let prefix = prefix(query)?;
        Ok(RedisUrl { topology, tls, hosts, user: decode(user)?, db, prefix, password: decode(password)? })
    }

    /// The password: call it only where it leaves for the server.
    #[must_use]
    pub fn expose_password(&self) -> Option<&str> {
        self.password.as_deref()
    }
}

/// What may be shown to anyone: the URL without its password and user.
impl fmt::Display for RedisUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match &self.topology {
            Topology::Single => "",
            Topology::Sentinel(_) => "+sentinel",
            Topology::Cluster => "+cluster",
        };
        write!(f, "redis{}{kind}://", if self.tls { "s" } else { "" })?;
        for (index, (host, port)) in self.hosts.iter().enumerate() {
            let comma = if index > 0 { "," } else { "" };
            match host.contains(':') {
                true => write!(f, "{comma}[{host}]:{port}")?,
                false => write!(f, "{comma}{host}:{port}")?,
            }
        }
        match &self.topology {
            Topology::Sentinel(master) => write!(f, "/{master}/{}", self.db),
            Topology::Single => write!(f, "/{}", self.db),
            Topology::Cluster => Ok(()),
        }
    }
}

impl fmt::Debug for RedisUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RedisUrl({self})")
    }
}

/// `host`, `host:port`, `[::1]` or `[::1]:port`.
fn host_and_port(text: &str, default_port: u16) -> Option<(String, u16)> {
    let (host, port) = match text.strip_prefix('[') {
        Some(rest) => {
            let (host, port) = rest.split_once(']')?;
            (host, if port.is_empty() { None } else { Some(port.strip_prefix(':')?) })
        }
        None => text.split_once(':').map_or((text, None), |(host, port)| (host, Some(port))),
    };
    let is_name = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_' | ':' | '%');
    if host.is_empty() || !host.chars().all(is_name) {
        return None;
    }
    let port = port.map_or(Some(default_port), |port| port.parse().ok().filter(|port| *port > 0))?;
    Some((host.to_owned(), port))
}

fn database(path: &str) -> Result<i64, RedisUrlError> {
    let digits = path.strip_suffix('/').unwrap_or(path);
    if digits.is_empty() {
        return Ok(0);
    }
    digits.parse::<u16>().map(i64::from).map_err(|_| RedisUrlError::Database)
}

fn prefix(query: &str) -> Result<String, RedisUrlError> {
    if query.is_empty() {
        return Ok(PREFIX.to_owned());
    }
    let prefix = query.strip_prefix("prefix=").ok_or(RedisUrlError::Setting)?;
    let is_plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, ':' | '-' | '_' | '.');
    let fits = !prefix.is_empty() && prefix.len() <= PREFIX_BYTES_MAX && prefix.chars().all(is_plain);
    fits.then(|| prefix.to_owned()).ok_or(RedisUrlError::Prefix)
}

/// A part with its percent-encoding undone; `None` for an empty one.
fn decode(text: &str) -> Result<Option<String>, RedisUrlError> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&byte, after)) = rest.split_first() {
        rest = after;
        if byte != b'%' {
            bytes.push(byte);
            continue;
        }
        let hex = after.get(..2).and_then(|hex| std::str::from_utf8(hex).ok()).ok_or(RedisUrlError::Encoding)?;
        bytes.push(u8::from_str_radix(hex, 16).map_err(|_| RedisUrlError::Encoding)?);
        rest = &after[2..];
    }
    let decoded = String::from_utf8(bytes).map_err(|_| RedisUrlError::Encoding)?;
    Ok((!decoded.is_empty()).then_some(decoded))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_form_is_read_and_shown_without_who_and_how() {
        let table = [
            ("redis://h", "redis://h:6379/0", None, None),
            ("rediss://:p%40ss@h:1/3", "rediss://h:1/3", None, Some("p@ss")),
            ("redis://u:a@b@[::1]:7/0", "redis://[::1]:7/0", Some("u"), Some("a@b")),
            ("redis+sentinel://u:p@a,b:2/main/1", "redis+sentinel://a:26379,b:2/main/1", Some("u"), Some("p")),
            ("redis+cluster://a:1,b:2,c:3/", "redis+cluster://a:1,b:2,c:3", None, None),
            ("rediss+cluster://u@a", "rediss+cluster://a:6379", Some("u"), None),
        ];
        for (url, shown, user, password) in table {
            let parsed = RedisUrl::parse(url).unwrap_or_else(|error| panic!("{url}: {error}"));
            assert_eq!(parsed.to_string(), shown);
            assert_eq!((parsed.user.as_deref(), parsed.expose_password()), (user, password), "{url}");
            assert_eq!(format!("{parsed:?}"), format!("RedisUrl({shown})"));
            assert_eq!(parsed.prefix, "tollgate:");
        }
        assert_eq!(RedisUrl::parse("redis://h?prefix=staging.eu:").map(|url| url.prefix), Ok("staging.eu:".to_owned()));
    }

    #[test]
    fn what_cannot_be_meant_is_refused_without_repeating_it() {
        let table = [
            ("mysql://u:secret@h", RedisUrlError::Scheme),
            ("redis+mysql://u:secret@h", RedisUrlError::Scheme),
            ("redis:h", RedisUrlError::Scheme),
            ("redis://u:secret@", RedisUrlError::Host),
            ("redis://u:secret@h:99999", RedisUrlError::Host),
            ("redis://u:secret@h:0", RedisUrlError::Host),
            ("redis://u:secret@[::1", RedisUrlError::Host),
            ("redis://u:secret@a b", RedisUrlError::Host),
            ("redis://a,b", RedisUrlError::Hosts),
            ("redis+sentinel://a,b", RedisUrlError::Master),
            ("redis://h/secret", RedisUrlError::Database),
            ("redis+cluster://h/1", RedisUrlError::ClusterDatabase),
            ("redis://u:se%cret@h", RedisUrlError::Encoding),
            ("redis://h?timeout=1", RedisUrlError::Setting),
            ("redis://h?prefix=a*", RedisUrlError::Prefix),
            ("redis://h?prefix=a}:{", RedisUrlError::Prefix),
        ];
        for (url, error) in table {
            assert_eq!(RedisUrl::parse(url), Err(error), "{url}");
            assert!(!error.to_string().contains("secret"), "{error}");
        }
    }
}
