//! What the function answers and what an account's hash holds, read with suspicion; and how accounts are named in keys.

use std::collections::BTreeMap;

use crate::{
    ledger::{
        account::{AccountState, Row, Starving},
        sync::{Merged, NANO_USD_MAX, RowId, SyncReply, SyncRequest, Totals},
    },
    store::ports::{Damaged, Held},
};

/// What the function answered.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Reply {
    /// Merged; here is what holds now.
    Merged(Merged),
    /// There is no such account, and the report may not make it.
    NoAccount,
    /// The report cannot be true.
    BadReport,
    /// The account's hash is not what the function writes.
    Damaged,
}

impl Reply {
    /// What the purse is told. A grant that too few replicas have may be forgotten by the next primary: it is not told, and
    /// what calls wait for may still come, as while the authority learns.
    pub(super) fn for_purse(self, request: &SyncRequest, acknowledged: bool) -> SyncReply {
        match self {
            Reply::Merged(merged) if acknowledged => SyncReply::Merged(merged),
            Reply::Merged(merged) => SyncReply::Merged(merged.unconfirmed(request)),
            Reply::NoAccount => SyncReply::NoAccount,
            // Its purse is given up as spent and its calls are refused; other accounts go on.
            Reply::BadReport | Reply::Damaged => SyncReply::BadReport,
        }
    }
}

/// Reads an answer; `None` when it cannot be one.
pub(super) fn parse(text: &str) -> Option<Reply> {
    let mut words = text.split(' ');
    match words.next()? {
        "NOACCOUNT" => return Some(Reply::NoAccount),
        "BADREPORT" => return Some(Reply::BadReport),
        "DAMAGED" => return Some(Reply::Damaged),
        "MERGED" => {}
        _ => return None,
    }
    let numbers: Vec<u64> = words.map(amount).collect::<Option<_>>()?;
    let [
        granted,
        returned,
        charged,
        debt,
        free,
        elsewhere,
        limit,
        limit_version,
        all_charged,
        all_debt,
        learning,
        starving,
        closed,
        credited,
    ] = numbers[..]
    else {
        return None;
    };
    let totals = Totals { granted, returned, charged, debt };
    let merged = Merged {
        totals,
        free,
        elsewhere,
        limit,
        limit_version,
        charged: all_charged,
        debt: all_debt,
        learning: learning == 1,
        starving: starving == 1,
        closed: closed == 1,
        credited,
    };
    totals.are_sound().then_some(Reply::Merged(merged))
}

/// What operators noted stands under this and its row's id.
const NOTE: &str = "note:";
/// The run id of an account that was rebuilt: no server's, so the next report makes it listen to all holders first.
const REBUILT: &str = "rebuilt";

/// What is held in an account's hash.
pub(super) fn held(fields: BTreeMap<String, String>) -> Held {
    if fields.is_empty() {
        return Held::Missing;
    }
    match salvage(&fields) {
        (state, unreadable) if unreadable.is_empty() => Held::Whole(state, notes(&fields)),
        (readable, unreadable) => Held::Damaged(Damaged { fields, readable, unreadable }),
    }
}

/// What makes sense of a hash, and the names of what does not.
fn salvage(fields: &BTreeMap<String, String>) -> (AccountState, Vec<String>) {
    let mut unreadable = Vec::new();
    let mut field = |name: &str, fits: fn(&str) -> bool| {
        let found = fields.get(name).map(String::as_str).filter(|text| fits(text));
        if found.is_none() {
            unreadable.push(name.to_owned());
        }
        found.unwrap_or_default()
    };
    let is_amount = |text: &str| amount(text).is_some();
    field("schema", |text| text == "1");
    let archived = field("archived", |text| pair(text).is_some());
    let (archived_charged, archived_debt) = pair(archived).unwrap_or_default();
    let mut state = AccountState {
        limit: amount(field("limit", is_amount)).unwrap_or_default(),
        limit_version: amount(field("version", is_amount)).unwrap_or_default(),
        run: field("run", |_| true).to_owned(),
        learn_until_ms: amount(field("learn", is_amount)).unwrap_or_default(),
        starving: fields.get("starving").and_then(|text| starving(text)),
        archived_charged,
        archived_debt,
        rows: BTreeMap::new(),
    };
    for (name, text) in fields {
        let Some(id) = name.parse::<RowId>().ok().filter(|id| id.to_string() == *name) else { continue };
        match row(text).filter(|row| row.totals.are_sound()) {
            Some(row) => drop(state.rows.insert(id, row)),
            None => unreadable.push(name.clone()),
        }
    }
    (state, unreadable)
}

fn notes(fields: &BTreeMap<String, String>) -> BTreeMap<RowId, String> {
    let note = |(name, text): (&String, &String)| Some((name.strip_prefix(NOTE)?.parse().ok()?, text.clone()));
    fields.iter().filter_map(note).collect()
}

/// The field under which a row's note stands.
pub(super) fn note_field(row: RowId) -> String {
    format!("{NOTE}{row}")
}

/// An account as the function would have written it, notes of the hash that it replaces included.
pub(super) fn rebuilt(state: &AccountState, replaced: &BTreeMap<String, String>) -> BTreeMap<String, String> {
    let mut fields = BTreeMap::from([
        ("schema".to_owned(), "1".to_owned()),
        ("limit".to_owned(), state.limit.to_string()),
        ("version".to_owned(), state.limit_version.to_string()),
        ("run".to_owned(), REBUILT.to_owned()),
        ("learn".to_owned(), "0".to_owned()),
        ("starving".to_owned(), String::new()),
        ("archived".to_owned(), format!("{} {}", state.archived_charged, state.archived_debt)),
    ]);
    for (id, row) in &state.rows {
        let Totals { granted, returned, charged, debt } = row.totals;
        let closed = row.closed_ms.map_or_else(|| "-".to_owned(), |closed_ms| closed_ms.to_string());
        fields.insert(id.to_string(), format!("{granted} {returned} {charged} {debt} {} {closed}", row.seen_ms));
    }
    fields.extend(replaced.iter().filter(|(name, _)| name.starts_with(NOTE)).map(|(n, t)| (n.clone(), t.clone())));
    fields
}

fn pair(text: &str) -> Option<(u64, u64)> {
    let (first, second) = text.split_once(' ')?;
    Some((amount(first)?, amount(second)?))
}

fn row(text: &str) -> Option<Row> {
    let words: Vec<&str> = text.split(' ').collect();
    let [granted, returned, charged, debt, seen, closed] = words[..] else { return None };
    let totals = Totals {
        granted: amount(granted)?,
        returned: amount(returned)?,
        charged: amount(charged)?,
        debt: amount(debt)?,
    };
    let closed_ms = if closed == "-" { None } else { Some(amount(closed)?) };
    Some(Row { totals, seen_ms: amount(seen)?, closed_ms })
}

fn starving(text: &str) -> Option<Starving> {
    let words: Vec<&str> = text.split(' ').collect();
    let [row, lacking, until] = words[..] else { return None };
    Some(Starving { row: row.parse().ok()?, lacking: amount(lacking)?, until_ms: amount(until)? })
}

/// A whole number below 2^53.
fn amount(text: &str) -> Option<u64> {
    let is_plain = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    text.parse().ok().filter(|amount| is_plain && *amount <= NANO_USD_MAX)
}

/// An account's name as it stands in a key: of what is not plain, the bytes in hexadecimal, braces and blanks among them.
pub(super) fn escape(account: &str) -> String {
    let mut escaped = String::with_capacity(account.len());
    for byte in account.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'/' | b':' | b'=' | b',' | b'.' | b'-' | b'_' | b'@' => {
                escaped.push(char::from(byte));
            }
            _ => escaped.push_str(&format!("%{byte:02X}")),
        }
    }
    escaped
}

/// The account that stands so in a key; `None` when none does.
pub(super) fn unescape(escaped: &str) -> Option<String> {
    let mut pieces = escaped.split('%');
    let mut bytes = pieces.next()?.as_bytes().to_vec();
    for piece in pieces {
        bytes.push(u8::from_str_radix(piece.get(..2)?, 16).ok()?);
        bytes.extend(piece[2..].bytes());
    }
    String::from_utf8(bytes).ok().filter(|account| escape(account) == escaped)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn an_answer_that_cannot_be_is_none() {
        assert!(parse("MERGED 10 1 2 0 90 0 100 1 2 0 0 1 0 0").is_some());
        for text in [
            "",
            "OK",
            "MERGED",
            "MERGED 10 1 2 0 90 0 100 1 2 0 0 1 0",
            "MERGED 10 1 2 0 90 0 100 1 2 0 0 1 0 0 1",
            "MERGED -10 1 2 0 90 0 100 1 2 0 0 1 0 0",
            "MERGED +10 1 2 0 90 0 100 1 2 0 0 1 0 0",
            "MERGED 1e1 1 2 0 90 0 100 1 2 0 0 1 0 0",
            "MERGED nan 1 2 0 90 0 100 1 2 0 0 1 0 0",
            "MERGED 9007199254740992 1 2 0 90 0 100 1 2 0 0 1 0 0",
            "MERGED 10 9 2 0 90 0 100 1 2 0 0 1 0 0",
        ] {
            assert_eq!(parse(text), None, "{text:?}");
        }
    }

    #[test]
    fn a_grant_that_too_few_replicas_have_is_not_told() {
        let known = Totals { granted: 5, ..Totals::default() };
        let request = SyncRequest {
            row: RowId { incarnation: 1, purse: 0 },
            totals: known,
            need: 10,
            target: 10,
            limit: 100,
            limit_version: 1,
            create: false,
            close: None,
        };
        let reply = || parse("MERGED 10 0 0 0 90 0 100 1 0 0 0 0 0 0").expect("an answer");
        let told = |reply: SyncReply| match reply {
            SyncReply::Merged(merged) => (merged.totals.granted, merged.free, merged.learning),
            other => panic!("{other:?}"),
        };
        assert_eq!(told(reply().for_purse(&request, true)), (10, 90, false));
        assert_eq!(told(reply().for_purse(&request, false)), (5, 95, true));
        let all_known = SyncRequest { totals: Totals { granted: 10, ..known }, ..request };
        assert_eq!(told(reply().for_purse(&all_known, false)), (10, 90, false));
    }

    proptest! {
        #[test]
        fn a_name_reads_back_and_nothing_ends_the_hash_tag(name in "\\PC{0,30}|[{}:%*\\n a]{0,12}") {
            let escaped = escape(&name);
            prop_assert_eq!(unescape(&escaped), Some(name));
            let ends_or_matches = escaped.contains(['{', '}', '*', '\n', ' ', '?', '[']);
            prop_assert!(!ends_or_matches, "{}", escaped);
        }
    }
}
