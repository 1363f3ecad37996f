//! Whom a budget or a rate limit is for, and which of its accounts a call belongs to.

use std::sync::Arc;

/// One dimension of a scope: a named one, or `"*"`, each of them on its own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Match {
    /// `"*"`: every value has an account of its own.
    Each,
    /// Only this value.
    Is(Box<str>),
}

/// The scope of a budget or limit; all given dimensions must hold. No dimension at all: everything together.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Scope {
    /// Name of the virtual key.
    pub key: Option<Match>,
    /// The key's team.
    pub team: Option<Match>,
    /// The user within the key's tenant (its team, or else the key itself).
    pub user: Option<Match>,
    /// The model: an alias, or `provider/model`.
    pub model: Option<Match>,
    /// Tags, of the key or of the call.
    pub tags: Vec<(Box<str>, Match)>,
}

/// What a call is, as far as scopes ask.
#[derive(Debug, Clone, Copy)]
pub struct Facts<'a> {
    /// Name of the virtual key.
    pub key: &'a str,
    /// The key's team.
    pub team: Option<&'a str>,
    /// The user; the key's name when the call names none.
    pub user: &'a str,
    /// The model: an alias, or `provider/model`, however the client wrote it.
    pub model: &'a str,
    /// Tags of key and call; the key's come first and win.
    pub tags: &'a [(Arc<str>, Arc<str>)],
}

/// Room for most accounts' names, so that they don't grow part by part.
const ACCOUNT_BYTES: usize = 64;

impl Scope {
    /// The account of this scope that a call belongs to, such as `team=product` or `tenant=product,user=u1`, or `None` when
    /// the scope does not cover the call.
    ///
    /// A user is always named within its tenant, so that one tenant's user ids have no effect on another's.
    /// Values are escaped so that no client-made value can name another account.
    #[must_use]
    pub fn account(&self, facts: &Facts<'_>) -> Option<String> {
        let mut account = String::with_capacity(ACCOUNT_BYTES);
        part(&mut account, "key", self.key.as_ref(), Some(facts.key))?;
        part(&mut account, "team", self.team.as_ref(), facts.team)?;
        if let Some(user) = &self.user {
            part(&mut account, "tenant", Some(&Match::Each), Some(facts.team.unwrap_or(facts.key)))?;
            part(&mut account, "user", Some(user), Some(facts.user))?;
        }
        part(&mut account, "model", self.model.as_ref(), Some(facts.model))?;
        for (name, wanted) in &self.tags {
            let value = facts.tags.iter().find(|(n, _)| **n == **name).map(|(_, v)| &**v);
            part(&mut account, &format!("tag.{name}"), Some(wanted), value)?;
        }
        Some(if account.is_empty() { "all".to_owned() } else { account })
    }
}

/// Appends `name=value` when the dimension is given and holds; `None` when it does not hold.
fn part(account: &mut String, name: &str, wanted: Option<&Match>, value: Option<&str>) -> Option<()> {
    let Some(wanted) = wanted else { return Some(()) };
    let value = value?;
    if let Match::Is(only) = wanted
        && **only != *value
    {
        return None;
    }
    if !account.is_empty() {
        account.push(',');
    }
    account.push_str(name);
    account.push('=');
    if value.bytes().all(is_plain) {
        account.push_str(value);
        return Some(());
    }
    for c in value.chars() {
        match c {
            ',' | '=' | '%' | '{' | '}' => account.push_str(&format!("%{:02X}", c as u32)),
            c if c.is_control() => account.push_str(&format!("%{:02X}", c as u32)),
            c => account.push(c),
        }
    }
    Some(())
}

/// Whether a byte stands for itself wherever it stands. Others may, too.
fn is_plain(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"-_./:@ ".contains(&byte)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts<'a>(tags: &'a [(Arc<str>, Arc<str>)]) -> Facts<'a> {
        Facts { key: "web", team: Some("product"), user: "u1", model: "support", tags }
    }

    #[test]
    fn each_user_has_an_account_within_its_tenant() {
        let scope = Scope { user: Some(Match::Each), ..Scope::default() };
        assert_eq!(scope.account(&facts(&[])).as_deref(), Some("tenant=product,user=u1"));
    }

    #[test]
    fn a_scope_without_dimensions_is_one_account_for_all() {
        assert_eq!(Scope::default().account(&facts(&[])).as_deref(), Some("all"));
    }

    #[test]
    fn a_call_outside_the_scope_has_no_account() {
        let scope = Scope { team: Some(Match::Is("sales".into())), ..Scope::default() };
        assert_eq!(scope.account(&facts(&[])), None);
        let tagged = Scope { tags: vec![("app".into(), Match::Each)], ..Scope::default() };
        assert_eq!(tagged.account(&facts(&[])), None);
    }

    #[test]
    fn a_user_id_cannot_name_another_account() {
        let scope = Scope { user: Some(Match::Each), ..Scope::default() };
        let forged = Facts { user: "u2,model=x", ..facts(&[]) };
        assert_eq!(scope.account(&forged).as_deref(), Some("tenant=product,user=u2%2Cmodel%3Dx"));
    }
}
