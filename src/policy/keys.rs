//! Virtual keys: who is calling, what they may name.
//!
//! A key is known here only by its digest, so neither a configuration nor a key store can give one away. Keys are random and
//! long (see [`generate`]), which is why one fast hash is enough: there is nothing to guess. Every wrong key takes the same
//! path, whether it is unknown, malformed or revoked.

use std::{collections::HashMap, fmt, hash, sync::Arc};

use hmac::{Hmac, KeyInit, Mac};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

/// Longest key that a client may present, in bytes.
pub const PRESENTED_BYTES_MAX: usize = 256;

const BASE62: &[u8; 62] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
const PUBLIC_ID_CHARS: usize = 8;
/// 33 × log2(62) = 196 bits.
const SECRET_CHARS: usize = 33;

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
    /// Names (`support`), `provider/model`, `provider/*`, or a prefix (`gpt-4*`).
    Only(Arc<[Box<str>]>),
}

/// Why a text is no key digest, or no key could be made.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// Neither `sha256:` nor `hmac-sha256:` stands before it.
    #[error("a key hash starts with `sha256:` or `hmac-sha256:`")]
    UnknownForm,
    /// Not 64 hexadecimal digits.
    #[error("a key hash has 64 hexadecimal digits after its colon")]
    NotHex,
    /// The operating system gave no random bytes.
    #[error("the operating system gave no random bytes")]
    NoRandomness,
}

/// What is kept of a key: SHA-256 of it, or HMAC-SHA-256 where a pepper is set.
///
/// Equality takes constant time, and `Debug` shows nothing: a digest in a log is a target to test guesses against.
#[derive(Clone, Copy)]
pub struct KeyDigest {
    form: Form,
    bytes: [u8; 32],
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Form {
    Plain,
    Peppered,
}

/// The virtual keys of one configuration, found by the digest of what the client presents.
#[derive(Clone, Default)]
pub struct KeyRing {
    callers: HashMap<KeyDigest, Arc<Caller>>,
    pepper: Option<Hmac<Sha256>>,
}

/// A new key. The text exists only here and where it is shown once; `Debug` shows its public part.
pub struct SecretKey(String);

/// Makes a key `tg-<8 characters of public id>-<33 characters of secret>`, base62, of which 196 bits are secret.
///
/// # Errors
/// [`KeyError::NoRandomness`] when the operating system's generator fails.
pub fn generate() -> Result<SecretKey, KeyError> {
    let characters = random_base62(PUBLIC_ID_CHARS + SECRET_CHARS)?;
    let (id, secret) = characters.split_at(PUBLIC_ID_CHARS);
    Ok(SecretKey(format!("tg-{id}-{secret}")))
}

// === impl ModelAccess ===

impl ModelAccess {
    /// Access to what `patterns` name: everything when `*` is among them, nothing when there are none.
    pub fn listed<P: Into<Box<str>>>(patterns: impl IntoIterator<Item = P>) -> ModelAccess {
        let patterns: Vec<Box<str>> = patterns.into_iter().map(Into::into).collect();
        if patterns.iter().any(|pattern| **pattern == *"*") {
            return ModelAccess::All;
        }
        ModelAccess::Only(patterns.into())
    }

    /// Whether a call may name `named`, which leads to `resolved` (`provider/model`) where that is known.
    ///
    /// A pattern with a slash is compared with both, one without a slash only with the name: `open*` covers the alias
    /// `open-house` but not everything at `openai/`. Only a final `*` is special. Case matters.
    #[must_use]
    pub fn allows(&self, named: &str, resolved: Option<&str>) -> bool {
        let ModelAccess::Only(patterns) = self else { return true };
        patterns.iter().any(|pattern| {
            if pattern.contains('/') {
                return covers(pattern, named) || resolved.is_some_and(|resolved| covers(pattern, resolved));
            }
            **pattern == *"*" || **pattern == *named || (!named.contains('/') && covers(pattern, named))
        })
    }

    /// Whether everything at `provider` is allowed, for endpoints that name no model.
    #[must_use]
    pub fn allows_all_of(&self, provider: &str) -> bool {
        let ModelAccess::Only(patterns) = self else { return true };
        patterns.iter().any(|pattern| **pattern == *"*" || pattern.strip_suffix("/*") == Some(provider))
    }
}

/// Whether `pattern` is `text`, or a prefix of it followed by `*`.
fn covers(pattern: &str, text: &str) -> bool {
    match pattern.strip_suffix('*') {
        Some(prefix) => text.starts_with(prefix),
        None => pattern == text,
    }
}

// === impl KeyDigest ===

impl KeyDigest {
    /// The digest of a key as it is presented. An empty pepper is none.
    #[must_use]
    pub fn of(presented: &str, pepper: Option<&[u8]>) -> KeyDigest {
        match keyed(pepper) {
            Some(mac) => KeyDigest::peppered(mac, presented),
            None => KeyDigest::plain(presented),
        }
    }

    /// Reads `sha256:<64 hex digits>` or `hmac-sha256:<64 hex digits>`.
    ///
    /// # Errors
    /// When the form is unknown or the digits are not 64 hexadecimal ones.
    pub fn parse(text: &str) -> Result<KeyDigest, KeyError> {
        let (form, hex) = match text.split_once(':') {
            Some(("sha256", hex)) => (Form::Plain, hex),
            Some(("hmac-sha256", hex)) => (Form::Peppered, hex),
            _ => return Err(KeyError::UnknownForm),
        };
        Ok(KeyDigest { form, bytes: unhex(hex).ok_or(KeyError::NotHex)? })
    }

    /// Whether only a ring with the right pepper can match it.
    #[must_use]
    pub fn is_peppered(&self) -> bool {
        self.form == Form::Peppered
    }

    fn plain(presented: &str) -> KeyDigest {
        KeyDigest { form: Form::Plain, bytes: Sha256::digest(presented.as_bytes()).into() }
    }

    fn peppered(mut mac: Hmac<Sha256>, presented: &str) -> KeyDigest {
        mac.update(presented.as_bytes());
        KeyDigest { form: Form::Peppered, bytes: mac.finalize().into_bytes().into() }
    }
}

impl PartialEq for KeyDigest {
    fn eq(&self, other: &KeyDigest) -> bool {
        self.form == other.form && bool::from(self.bytes.ct_eq(&other.bytes))
    }
}

impl Eq for KeyDigest {}

impl hash::Hash for KeyDigest {
    fn hash<H: hash::Hasher>(&self, state: &mut H) {
        self.form.hash(state);
        self.bytes.hash(state);
    }
}

impl fmt::Display for KeyDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.form {
            Form::Plain => "sha256:",
            Form::Peppered => "hmac-sha256:",
        })?;
        self.bytes.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for KeyDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("KeyDigest(…)")
    }
}

/// The MAC under `pepper`; none without a pepper.
fn keyed(pepper: Option<&[u8]>) -> Option<Hmac<Sha256>> {
    let pepper = pepper.filter(|pepper| !pepper.is_empty())?;
    Some(Hmac::new_from_slice(pepper).expect("an HMAC takes keys of any length"))
}

fn unhex(hex: &str) -> Option<[u8; 32]> {
    if hex.len() != 64 {
        return None;
    }
    let digit = |byte: u8| char::from(byte).to_digit(16);
    let mut bytes = [0; 32];
    for (byte, pair) in bytes.iter_mut().zip(hex.as_bytes().chunks_exact(2)) {
        *byte = u8::try_from(digit(pair[0])? * 16 + digit(pair[1])?).ok()?;
    }
    Some(bytes)
}

// === impl KeyRing ===

impl KeyRing {
    /// A ring of these keys. Where two have the same digest, the first holds.
    ///
    /// `pepper` makes [`KeyRing::find`] look for HMACs too; plain SHA-256 digests stay valid beside them.
    #[must_use]
    pub fn new(entries: Vec<(KeyDigest, Caller)>, pepper: Option<&[u8]>) -> KeyRing {
        KeyRing { callers: HashMap::new(), pepper: keyed(pepper) }.with(entries)
    }

    /// This ring with more keys; those that it already has stay as they are.
    #[must_use]
    pub fn with(&self, more: Vec<(KeyDigest, Caller)>) -> KeyRing {
        let mut ring = self.clone();
        for (digest, caller) in more {
            ring.callers.entry(digest).or_insert_with(|| Arc::new(caller));
        }
        ring
    }

    /// Whose key `presented` is.
    ///
    /// What no key can be (empty, too long, anything but visible ASCII) costs what a wrong key costs and is never hashed
    /// itself, so neither time nor work tells what was wrong or grows with the input.
    #[must_use]
    pub fn find(&self, presented: &str) -> Option<Arc<Caller>> {
        let well_formed = is_well_formed(presented);
        let hashed = if well_formed { presented } else { "tg-00000000-malformed" };
        let plain = self.callers.get(&KeyDigest::plain(hashed));
        let peppered = self.pepper.clone().and_then(|mac| self.callers.get(&KeyDigest::peppered(mac, hashed)));
        plain.or(peppered).filter(|_| well_formed).cloned()
    }

    /// The caller to use where nobody is asked.
    #[must_use]
    pub fn anonymous(&self) -> Arc<Caller> {
        Arc::new(Caller { name: "anonymous".into(), team: None, models: ModelAccess::All, tags: Arc::new([]) })
    }

    /// How many keys there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.callers.len()
    }

    /// Whether there is no key.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.callers.is_empty()
    }
}

impl fmt::Debug for KeyRing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KeyRing").field("len", &self.len()).finish_non_exhaustive()
    }
}

/// Whether a text can be a key at all. The length is asked first, so the work is bounded.
fn is_well_formed(presented: &str) -> bool {
    (1..=PRESENTED_BYTES_MAX).contains(&presented.len()) && presented.bytes().all(|byte| byte.is_ascii_graphic())
}

// === impl SecretKey ===

impl SecretKey {
    /// The key itself: show it once, keep only its digest.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.0
    }

    /// The part that may be listed, logged and used to revoke it.
    #[must_use]
    pub fn public_id(&self) -> &str {
        self.0.split('-').nth(1).expect("generated as tg-<id>-<secret>")
    }
}

impl fmt::Debug for SecretKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SecretKey(tg-{}-…)", self.public_id())
    }
}

/// `length` evenly distributed base62 characters.
fn random_base62(length: usize) -> Result<String, KeyError> {
    let mut text = String::with_capacity(length);
    let mut bytes = [0; 64];
    while text.len() < length {
        getrandom::fill(&mut bytes).map_err(|_| KeyError::NoRandomness)?;
        // Bytes from 248 up are thrown away: 256 is no multiple of 62, and a plain remainder would favour some characters.
        let even = bytes.iter().filter(|&&byte| byte < 248).take(length - text.len());
        text.extend(even.map(|&byte| char::from(BASE62[usize::from(byte) % 62])));
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &str = "tg-abcdefgh-0123456789012345678901234567890AB";

    fn caller(name: &str) -> Caller {
        Caller { name: name.into(), team: None, models: ModelAccess::All, tags: Arc::new([]) }
    }

    fn ring(pepper: Option<&[u8]>) -> KeyRing {
        KeyRing::new(vec![(KeyDigest::of(KEY, pepper), caller("web"))], pepper)
    }

    #[test]
    fn digests_are_those_of_the_standards() {
        // FIPS 180-4 example "abc"; RFC 4231 test case 2.
        assert_eq!(
            KeyDigest::of("abc", None).to_string(),
            "sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
        );
        assert_eq!(
            KeyDigest::of("what do ya want for nothing?", Some(b"Jefe")).to_string(),
            "hmac-sha256:5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843"
        );
    }

    #[test]
    fn a_digest_is_read_as_it_is_written() {
        for digest in [KeyDigest::of(KEY, None), KeyDigest::of(KEY, Some(b"pepper"))] {
            assert_eq!(KeyDigest::parse(&digest.to_string()), Ok(digest));
            let (form, hex) =
                digest.to_string().split_once(':').map(|(f, h)| (f.to_owned(), h.to_uppercase())).expect("a colon");
            assert_eq!(KeyDigest::parse(&format!("{form}:{hex}")), Ok(digest));
        }
        let hex = "0".repeat(64);
        assert_eq!(KeyDigest::parse(&hex), Err(KeyError::UnknownForm));
        assert_eq!(KeyDigest::parse(&format!("md5:{hex}")), Err(KeyError::UnknownForm));
        for wrong in [&hex[1..], "", &"g".repeat(64), &"+0".repeat(32), &"é".repeat(32)] {
            assert_eq!(KeyDigest::parse(&format!("sha256:{wrong}")), Err(KeyError::NotHex), "{wrong}");
        }
    }

    #[test]
    fn a_key_is_found_and_its_hash_is_no_key() {
        for pepper in [None, Some(b"pepper".as_slice())] {
            let ring = ring(pepper);
            let digest = KeyDigest::of(KEY, pepper).to_string();
            assert_eq!(ring.find(KEY).map(|caller| caller.name.to_string()).as_deref(), Some("web"));
            for wrong in [&digest, digest.rsplit(':').next().expect("a colon"), &KEY[1..], &KEY[..KEY.len() - 1]] {
                assert_eq!(ring.find(wrong), None, "{wrong}");
            }
        }
    }

    #[test]
    fn keys_with_a_long_common_beginning_are_two_keys() {
        let (first, second) = (format!("{}1", "k".repeat(60)), format!("{}2", "k".repeat(60)));
        let ring = KeyRing::new(vec![(KeyDigest::of(&first, None), caller("first"))], None);
        assert!(ring.find(&first).is_some());
        assert_eq!(ring.find(&second), None);
    }

    #[test]
    fn what_no_key_can_be_is_never_found_even_if_its_digest_is_there() {
        let too_long = "k".repeat(PRESENTED_BYTES_MAX + 1);
        for text in ["", " ", "key with space", "key\0", "key\n", "schlüssel", &too_long, "' OR 1=1 --"] {
            let ring = KeyRing::new(vec![(KeyDigest::of(text, None), caller("web"))], None);
            assert_eq!(ring.find(text), None, "{text:?}");
        }
        let longest = "k".repeat(PRESENTED_BYTES_MAX);
        assert!(KeyRing::new(vec![(KeyDigest::of(&longest, None), caller("web"))], None).find(&longest).is_some());
    }

    #[test]
    fn the_stand_in_for_a_malformed_key_opens_nothing() {
        let ring = KeyRing::new(vec![(KeyDigest::of("tg-00000000-malformed", None), caller("web"))], None);
        assert_eq!(ring.find(&"x".repeat(1000)), None);
    }

    #[test]
    fn plain_digests_stay_valid_beside_a_pepper_and_another_pepper_finds_nothing() {
        let entries =
            vec![(KeyDigest::of(KEY, None), caller("plain")), (KeyDigest::of("other", Some(b"a")), caller("hmac"))];
        let name = |ring: &KeyRing, key: &str| ring.find(key).map(|caller| caller.name.to_string());
        let ring = KeyRing::new(entries.clone(), Some(b"a"));
        assert_eq!(name(&ring, KEY).as_deref(), Some("plain"));
        assert_eq!(name(&ring, "other").as_deref(), Some("hmac"));
        assert_eq!(name(&KeyRing::new(entries, Some(b"b")), "other"), None);
    }

    #[test]
    fn an_empty_pepper_is_none() {
        assert_eq!(KeyDigest::of(KEY, Some(b"")), KeyDigest::of(KEY, None));
        assert!(!KeyDigest::of(KEY, Some(b"")).is_peppered());
    }

    #[test]
    fn more_keys_never_replace_those_that_are_there() {
        let more = vec![(KeyDigest::of(KEY, None), caller("impostor")), (KeyDigest::of("new", None), caller("new"))];
        let ring = ring(None).with(more);
        assert_eq!(ring.len(), 2);
        assert_eq!(&*ring.find(KEY).expect("there before").name, "web");
        assert_eq!(&*ring.find("new").expect("added").name, "new");
    }

    #[test]
    fn debug_shows_no_secret() {
        let secret = generate().expect("randomness");
        let ring = KeyRing::new(vec![(KeyDigest::of(secret.expose(), None), caller("web"))], Some(b"pepper"));
        let shown = format!("{ring:?} {:?} {secret:?}", KeyDigest::of(secret.expose(), None));
        assert_eq!(shown, format!("KeyRing {{ len: 1, .. }} KeyDigest(…) SecretKey(tg-{}-…)", secret.public_id()));
    }

    #[test]
    fn generated_keys_are_well_formed_and_all_different() {
        let keys: std::collections::HashSet<String> =
            (0..1000).map(|_| generate().expect("randomness").expose().to_owned()).collect();
        assert_eq!(keys.len(), 1000);
        for key in keys {
            let parts: Vec<&str> = key.split('-').collect();
            assert_eq!(parts.iter().map(|part| part.len()).collect::<Vec<_>>(), [2, 8, 33], "{key}");
            assert!(is_well_formed(&key), "{key}");
        }
    }

    #[test]
    fn model_patterns_cover_what_they_say_and_no_more() {
        let table = [
            // pattern, named, resolved, allowed
            ("*", "anything", None, true),
            ("support", "support", Some("openai/gpt-4o"), true),
            ("support", "support2", Some("openai/gpt-4o"), false),
            ("support", "openai/support", Some("openai/support"), false),
            ("openai/*", "support", Some("openai/gpt-4o"), true),
            ("openai/*", "openai/gpt-4o", None, true),
            ("openai/*", "openai-b/gpt-4o", Some("openai-b/gpt-4o"), false),
            ("openai/gpt-4o", "gpt-4o", Some("openai/gpt-4o"), true),
            ("openai/gpt-4o", "gpt-4o-mini", Some("openai/gpt-4o-mini"), false),
            ("gpt-4o", "openai/gpt-4o", Some("openai/gpt-4o"), false),
            ("gpt-4*", "gpt-4o-mini", Some("openai/gpt-4o-mini"), true),
            ("gpt-4*", "gpt-5", Some("openai/gpt-5"), false),
            ("open*", "openai/gpt-5", Some("openai/gpt-5"), false),
            ("open*", "house", Some("openai/gpt-5"), false),
            ("openai/gpt-4*", "best", Some("openai/gpt-4.1"), true),
            ("a/b", "a/b", Some("local/a/b"), true),
            ("local/*", "a/b", Some("local/a/b"), true),
            ("*-mini", "gpt-mini", Some("openai/gpt-mini"), false),
            ("Support", "support", None, false),
        ];
        for (pattern, named, resolved, allowed) in table {
            let access = ModelAccess::Only(Arc::new([pattern.into()]));
            assert_eq!(access.allows(named, resolved), allowed, "{pattern} {named} {resolved:?}");
        }
        assert!(!ModelAccess::listed(Vec::<String>::new()).allows("support", None));
        assert_eq!(ModelAccess::listed(["a", "*"]), ModelAccess::All);
    }

    #[test]
    fn calls_without_a_model_need_the_whole_provider() {
        for (pattern, allowed) in [
            ("*", true),
            ("openai/*", true),
            ("openai/gpt*", false),
            ("openai", false),
            ("openai*", false),
            ("o/*", false),
        ] {
            assert_eq!(ModelAccess::Only(Arc::new([pattern.into()])).allows_all_of("openai"), allowed, "{pattern}");
        }
        assert!(ModelAccess::All.allows_all_of("openai"));
    }
}
