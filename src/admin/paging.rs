//! Lists by page, everywhere alike: `after` and `limit` in the query, the next page in the `Link` header (RFC 8288).

use axum::response::{IntoResponse, Response};
use http::{HeaderValue, Uri, header};
use serde::{Deserialize, Serialize};
use utoipa::IntoParams;

/// Rows of one page at most.
pub const ROWS_MAX: usize = 1000;

/// Which part of a list.
#[derive(Debug, Clone, Default, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct Page {
    /// Begin after this one: what the `Link` header of the page before says.
    pub after: Option<String>,
    /// At most so many rows; never more than 1000.
    pub limit: Option<usize>,
}

impl Page {
    /// How many rows: as asked, or `default`; at least 1, at most [`ROWS_MAX`].
    #[must_use]
    pub fn size(&self, default: usize) -> usize {
        self.limit.unwrap_or(default).clamp(1, ROWS_MAX)
    }

    /// The part of `rows`, which are in the order of their `key`, and where the next one begins.
    #[must_use]
    pub fn of<T>(&self, rows: Vec<T>, key: impl Fn(&T) -> &str) -> (Vec<T>, Option<String>) {
        let size = self.size(ROWS_MAX);
        let is_due = |row: &T| self.after.as_deref().is_none_or(|after| key(row) > after);
        let mut rows: Vec<T> = rows.into_iter().filter(is_due).take(size + 1).collect();
        let more = rows.len() > size;
        rows.truncate(size);
        let next = rows.last().filter(|_| more).map(|last| key(last).to_owned());
        (rows, next)
    }
}

/// A page as it is answered; `uri` is what was asked, `next` where the next page begins.
pub fn respond<T: Serialize>(rows: &T, uri: &Uri, next: Option<&str>) -> Response {
    let mut response = axum::Json(rows).into_response();
    // What is percent-encoded is always a header's value.
    if let Some(link) = next.and_then(|next| HeaderValue::try_from(link(uri, next)).ok()) {
        response.headers_mut().insert(header::LINK, link);
    }
    response
}

/// The same question, but for where the page begins.
fn link(uri: &Uri, next: &str) -> String {
    let others = uri.query().unwrap_or_default().split('&');
    let others = others.filter(|pair| !pair.is_empty() && pair.split('=').next() != Some("after"));
    let query: Vec<String> = others.map(str::to_owned).chain([format!("after={}", percent_encoded(next))]).collect();
    format!("<{}?{}>; rel=\"next\"", uri.path(), query.join("&"))
}

/// For a query: only what RFC 3986 calls unreserved stays as it is.
#[must_use]
pub fn percent_encoded(text: &str) -> String {
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => encoded.push(char::from(byte)),
            _ => encoded.push_str(&format!("%{byte:02X}")),
        }
    }
    encoded
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_follow_each_other_without_gap_or_overlap() {
        let rows = || ["a", "b", "c", "d", "e"].map(str::to_owned).to_vec();
        let (mut seen, mut after) = (Vec::new(), None);
        loop {
            let (page, next) = Page { after: after.clone(), limit: Some(2) }.of(rows(), |row| row);
            seen.push(page);
            after = next;
            if after.is_none() {
                break;
            }
        }
        assert_eq!(seen, [vec!["a", "b"], vec!["c", "d"], vec!["e"]]);
        let whole = Page { after: None, limit: Some(5) }.of(rows(), |row| row);
        assert_eq!((whole.0.len(), whole.1), (5, None), "nothing follows a page that is just full");
    }

    #[test]
    fn the_next_page_is_asked_for_in_the_same_way() {
        let uri: Uri = "/api/calls?team=a%26b&after=x&limit=2".parse().expect("a URI");
        assert_eq!(link(&uri, "ä&1"), "</api/calls?team=a%26b&limit=2&after=%C3%A4%261>; rel=\"next\"");
        assert_eq!(link(&"/api/keys".parse().expect("a URI"), "k"), "</api/keys?after=k>; rel=\"next\"");
    }

    #[test]
    fn a_page_has_a_size_whatever_is_asked_for() {
        let size = |limit| Page { after: None, limit }.size(50);
        assert_eq!([size(None), size(Some(0)), size(Some(7)), size(Some(usize::MAX))], [50, 1, 7, 1000]);
    }
}
