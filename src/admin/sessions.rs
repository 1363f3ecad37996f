//! Browsers that have signed in: in memory, so that a restart signs everybody out.
//!
//! A session is a random text of 256 bits in a cookie, kept here as its hash. It is good for as long as its token or its owner's role
//! is, ends after half an hour without a request and twelve hours in any case, and changes something only with a second text that no
//! other site's page can read.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use sha2::{Digest, Sha256};

use crate::{
    config::snapshot::{Oidc, Role},
    policy::{keys::KeyDigest, oidc::Identity},
};

/// Time without a request after which a session ends.
pub(super) const IDLE_MAX: Duration = Duration::from_mins(30);
/// Time after which a session ends whatever happens.
pub(super) const AGE_MAX: Duration = Duration::from_hours(12);
/// Sessions at the same time; the one that was idle the longest makes room.
const SESSIONS_MAX: usize = 1000;

/// All sessions of this process.
#[derive(Debug, Default)]
pub(super) struct Sessions(Mutex<HashMap<[u8; 32], Kept>>);

#[derive(Debug)]
struct Kept {
    session: Session,
    began: Instant,
    seen: Instant,
}

/// Whose a session is. What that means is looked up at each request: it may have been taken away since.
#[derive(Debug, Clone)]
pub(super) enum Owner {
    /// Whoever showed the token of this digest.
    Token(KeyDigest),
    /// Somebody whom a provider of OpenID Connect knows.
    Person(Arc<Person>),
}

/// Somebody whom a provider of OpenID Connect knows.
#[derive(Debug)]
pub(super) struct Person {
    /// The provider.
    pub(super) issuer: Box<str>,
    /// Its client at which they signed in.
    pub(super) client_id: Box<str>,
    /// Who they are.
    pub(super) identity: Identity,
}

impl Person {
    /// What they may do as things stand; `None`: nothing any more.
    pub(super) fn role(&self, oidc: Option<&Oidc>) -> Option<Role> {
        let oidc = oidc.filter(|oidc| oidc.issuer == self.issuer && oidc.client_id == self.client_id)?;
        oidc.role_of(&self.identity.groups)
    }

    /// By what pages and the audit log call them. It says how they came in, so that nobody can take the name of a token.
    pub(super) fn name(&self) -> Arc<str> {
        format!("{} (oidc)", self.identity.name).into()
    }
}

/// A session that goes on.
#[derive(Debug, Clone)]
pub(super) struct Session {
    /// Whose it is.
    pub(super) owner: Owner,
    /// What a request that changes something must show.
    pub(super) csrf: Arc<str>,
}

impl Sessions {
    /// Begins a session; gives its id, for the cookie and nowhere else. `None` when the system gives no random bytes.
    #[must_use]
    pub(super) fn begin(&self, owner: Owner, now: Instant) -> Option<String> {
        let id = random_text()?;
        let session = Session { owner, csrf: random_text()?.into() };
        let mut all = self.all();
        all.retain(|_, kept| kept.goes_on(now));
        if all.len() >= SESSIONS_MAX
            && let Some(idle) = all.iter().min_by_key(|(_, kept)| kept.seen).map(|(hash, _)| *hash)
        {
            all.remove(&idle);
        }
        all.insert(hash(&id), Kept { session, began: now, seen: now });
        Some(id)
    }

    /// The session with this id, if it goes on; it is seen by that.
    #[must_use]
    pub(super) fn find(&self, id: &str, now: Instant) -> Option<Session> {
        let mut all = self.all();
        let hash = hash(id);
        let kept = all.get_mut(&hash)?;
        if !kept.goes_on(now) {
            all.remove(&hash);
            return None;
        }
        kept.seen = now;
        Some(kept.session.clone())
    }

    /// Ends a session.
    pub(super) fn end(&self, id: &str) {
        self.all().remove(&hash(id));
    }

    fn all(&self) -> MutexGuard<'_, HashMap<[u8; 32], Kept>> {
        // Each change is one insertion or removal: a panic leaves nothing half done.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Kept {
    fn goes_on(&self, now: Instant) -> bool {
        now.saturating_duration_since(self.seen) < IDLE_MAX && now.saturating_duration_since(self.began) < AGE_MAX
    }
}

/// Found by hash: how long a look-up takes tells nothing of the id.
fn hash(id: &str) -> [u8; 32] {
    Sha256::digest(id.as_bytes()).into()
}

/// 256 bits as 64 hexadecimal digits.
pub(super) fn random_text() -> Option<String> {
    let mut bytes = [0; 32];
    getrandom::fill(&mut bytes).ok()?;
    Some(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token() -> Owner {
        Owner::Token(KeyDigest::of("token", None))
    }

    #[test]
    fn a_person_may_do_what_their_provider_and_the_configuration_say_now() {
        let identity = Identity { name: "ann@example.org".to_owned(), groups: vec!["ops".into(), "all".into()] };
        let person = Person { issuer: "https://a".into(), client_id: "us".into(), identity };
        let oidc = |issuer: &str, roles: &[(Role, &str)]| Oidc {
            issuer: issuer.into(),
            client_id: "us".into(),
            client_secret: None,
            redirect_url: None,
            scope: "openid".into(),
            role_claim: "groups".into(),
            roles: roles.iter().map(|(role, value)| (*role, vec![(*value).into()])).collect(),
        };
        let role = |oidc: Oidc| person.role(Some(&oidc));
        assert_eq!(role(oidc("https://a", &[(Role::Operator, "ops"), (Role::Viewer, "*")])), Some(Role::Operator));
        assert_eq!(role(oidc("https://a", &[(Role::Admin, "root"), (Role::Viewer, "*")])), Some(Role::Viewer));
        assert_eq!(role(oidc("https://a", &[(Role::Admin, "root")])), None);
        assert_eq!(role(oidc("https://b", &[(Role::Viewer, "*")])), None, "another provider's");
        assert_eq!(person.role(None), None);
        assert_eq!(&*person.name(), "ann@example.org (oidc)");
    }

    #[test]
    fn a_session_ends_when_idle_when_old_and_when_told() {
        let (sessions, start) = (Sessions::default(), Instant::now());
        let begin = || sessions.begin(token(), start).expect("random bytes");
        let (idle, busy, told) = (begin(), begin(), begin());

        let mut now = start;
        while now - start < AGE_MAX - IDLE_MAX / 2 {
            assert!(sessions.find(&busy, now).is_some(), "{:?}", now - start);
            now += IDLE_MAX / 2;
        }
        assert!(sessions.find(&busy, start + AGE_MAX).is_none());
        assert!(sessions.find(&idle, start + IDLE_MAX).is_none());
        assert!(sessions.find(&told, start).is_some());
        sessions.end(&told);
        assert!(sessions.find(&told, start).is_none());
        assert!(sessions.find("", start).is_none());
    }

    #[test]
    fn ids_are_long_random_and_not_kept() {
        let (sessions, now) = (Sessions::default(), Instant::now());
        let ids: std::collections::HashSet<String> =
            (0..100).map(|_| sessions.begin(token(), now).expect("random bytes")).collect();
        assert_eq!(ids.len(), 100);
        let shown = format!("{sessions:?}");
        assert!(ids.iter().all(|id| id.len() == 64 && !shown.contains(id.as_str())));
        let one = ids.iter().next().expect("some");
        assert_ne!(&*sessions.find(one, now).expect("goes on").csrf, one.as_str());
    }

    #[test]
    fn there_are_never_more_than_so_many() {
        let (sessions, now) = (Sessions::default(), Instant::now());
        let first = sessions.begin(token(), now).expect("random bytes");
        for n in 1..=SESSIONS_MAX {
            sessions.begin(token(), now + Duration::from_millis(n as u64)).expect("random bytes");
        }
        assert_eq!(sessions.all().len(), SESSIONS_MAX);
        assert!(sessions.find(&first, now).is_none(), "the longest idle one made room");
    }
}
