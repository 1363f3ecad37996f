//! What the function answers and what an account's hash holds, read with suspicion; and how accounts are named in keys.

use std::collections::BTreeMap;

use crate::ledger::{
    account::{AccountState, Row, Starving},
    sync::{Merged, NANO_USD_MAX, RowId, SyncReply, SyncRequest, Totals},
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
            Reply::Merged(mut merged) => {
                if !acknowledged && merged.totals.granted > request.totals.granted {
                    merged.free = merged.free.saturating_add(merged.totals.granted - request.totals.granted);
                    merged.totals.granted = request.totals.granted;
                    merged.learning = true;
                }
                SyncReply::Merged(merged)
            }
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

/// Reads an account's hash; `None` when there is none, or it is not what the function writes.
pub(super) fn account(fields: &BTreeMap<String, String>) -> Option<AccountState> {
    let field = |name: &str| fields.get(name).map(String::as_str);
    if field("schema") != Some("1") {
        return None;
    }
    let (archived_charged, archived_debt) = field("archived")?.split_once(' ')?;
    let is_row = |name: &str| name.parse::<RowId>().is_ok_and(|row| row.to_string() == name);
    let rows =
        fields.iter().filter(|(name, _)| is_row(name)).map(|(name, text)| Some((name.parse().ok()?, row(text)?)));
    Some(AccountState {
        limit: amount(field("limit")?)?,
        limit_version: amount(field("version")?)?,
        run: field("run")?.to_owned(),
        learn_until_ms: amount(field("learn")?)?,
        starving: field("starving").and_then(starving),
        archived_charged: amount(archived_charged)?,
        archived_debt: amount(archived_debt)?,
        rows: rows.collect::<Option<_>>()?,
    })
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
