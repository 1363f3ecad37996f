//! The audit log: who changed what, the latest first, and whether its chain is whole.

use std::io;

use serde_json::{Value, json};

use super::visit::{Shown, Visit, word};
use crate::store::audit;

/// Entries of one page.
const PAGE: usize = 100;

/// What was read of the log.
#[derive(Debug, Default)]
struct Reading {
    /// A page of entries, the latest first.
    entries: Vec<Value>,
    /// Lines in all.
    count: usize,
    /// The line before which the next page ends.
    next: Option<usize>,
    /// Where the chain breaks, where it does.
    broken: Option<String>,
    /// The hash of the last line.
    head: Option<String>,
}

pub(super) async fn show(visit: Visit) -> Shown {
    let path = visit.admin.audit.path().to_owned();
    let before = visit.parameter("before").and_then(|before| before.parse().ok());
    let reading = tokio::task::spawn_blocking(move || read(std::fs::read_to_string(path), before)).await;
    let reading = reading.map_err(io::Error::other).flatten().map_err(|error| {
        let what = word("The audit log cannot be read.");
        visit.sorry(http::StatusCode::SERVICE_UNAVAILABLE, what, &error.to_string())
    })?;
    let Reading { entries, count, next, broken, head } = reading;
    let path = visit.admin.audit.path().display().to_string();
    let page =
        json!({ "entries": entries, "count": count, "next": next, "broken": broken, "head": head, "path": path });
    Ok(visit.page("audit.html", page))
}

fn read(text: io::Result<String>, before: Option<usize>) -> io::Result<Reading> {
    let text = match text {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Reading::default()),
        text => text?,
    };
    let lines: Vec<&str> = text.lines().collect();
    let end = before.unwrap_or(usize::MAX).min(lines.len());
    let begin = end.saturating_sub(PAGE);
    let entry = |line: &&str| serde_json::from_str(line).ok();
    let entries: Vec<Value> = lines[begin..end].iter().rev().filter_map(entry).collect();
    let head = lines.last().and_then(|line| serde_json::from_str::<Value>(line).ok());
    Ok(Reading {
        entries,
        count: lines.len(),
        next: (begin > 0).then_some(begin),
        broken: audit::verify(&text).err().map(|broken| broken.to_string()),
        head: head.and_then(|line| Some(line.get("hash")?.as_str()?.to_owned())),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_is_read_from_its_end_page_by_page() {
        let text: String = (0..250).map(|n| format!("{{\"n\":{n}}}\n")).collect();
        let last = read(Ok(text.clone()), None).expect("read");
        assert_eq!((last.entries.len(), last.next, last.count), (100, Some(150), 250));
        assert_eq!(last.entries[0]["n"], 249);
        let first = read(Ok(text), Some(50)).expect("read");
        assert_eq!((first.entries.len(), first.next), (50, None));
        assert!(first.broken.is_some(), "lines without hashes are no chain");
    }

    #[test]
    fn no_file_is_an_empty_log() {
        let none = read(Err(io::ErrorKind::NotFound.into()), None).expect("nothing was ever changed");
        assert_eq!((none.count, none.broken), (0, None));
    }
}
