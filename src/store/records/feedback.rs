//! What is said of calls and sessions, as it is asked of the log.

use std::sync::Arc;

use super::ports::CallLog;
use crate::{
    record::{CallRow, Feedback, Rating},
    store::ports::StoreError,
};

/// Ratings of one call, or of its session, that are shown with it.
const OF_CALL_MAX: usize = 100;

/// Which ratings are meant: those that fulfil all that is given.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct FeedbackFilter {
    /// Given then (milliseconds since 1970) or later.
    pub since_ms: Option<u64>,
    /// Given before then.
    pub until_ms: Option<u64>,
    /// Of a call, by its id.
    pub call: Option<String>,
    /// Of a session, as stored.
    pub session: Option<String>,
    /// Of a metric.
    pub metric: Option<String>,
    /// From a source.
    pub source: Option<String>,
    /// Of those who may rate the same calls: see [`CallRow::owner`].
    pub owner: Option<String>,
}

/// Ratings, the latest first.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct FeedbackPage {
    /// The ratings.
    pub rows: Vec<Feedback>,
    /// Where the next page begins: the last id of this one. `None` when there is no further rating.
    pub next: Option<Arc<str>>,
}

impl FeedbackPage {
    /// The page of the first `limit` of `rows`, which has one more where there is a next page.
    pub(super) fn of(mut rows: Vec<Feedback>, limit: usize) -> FeedbackPage {
        let more = rows.len() > limit;
        rows.truncate(limit);
        let next = rows.last().filter(|_| more).map(|row| row.id.clone());
        FeedbackPage { rows, next }
    }
}

/// What is said of a call, and of its session, by those who may: the first hundred of each.
///
/// # Errors
/// As [`CallLog::feedback`].
pub async fn of_call(log: &dyn CallLog, call: &CallRow) -> Result<Vec<Feedback>, StoreError> {
    let filter = |call_id: Option<&str>, session: Option<&str>| FeedbackFilter {
        call: call_id.map(str::to_owned),
        session: session.map(str::to_owned),
        owner: Some(call.owner()),
        ..FeedbackFilter::default()
    };
    let mut all = log.feedback(filter(Some(&call.id), None), None, OF_CALL_MAX).await?.rows;
    if let Some(session) = &call.session {
        all.extend(log.feedback(filter(None, Some(session)), None, OF_CALL_MAX).await?.rows);
    }
    Ok(all)
}

/// The last word on each subject, metric and source: what a store may be given at once.
pub(super) fn last_words(given: &[Feedback]) -> Vec<&Feedback> {
    let mut last = std::collections::HashMap::new();
    for rating in given {
        let word = last.entry((rating.subject(), &rating.metric, &rating.source, rating.owner())).or_insert(rating);
        if rating.id > word.id {
            *word = rating;
        }
    }
    let mut words: Vec<&Feedback> = last.into_values().collect();
    // In one order everywhere, so that two gateways that write at once cannot wait for each other.
    words.sort_by(|a, b| a.id.cmp(&b.id));
    words
}

/// A rating as its columns `kind`, `number` and `text`. A flag is 0 or 1 as well.
pub(super) fn columns_of(rating: &Rating) -> (&'static str, Option<f64>, Option<&str>) {
    match rating {
        Rating::Flag(flag) => ("flag", Some(f64::from(u8::from(*flag))), None),
        Rating::Number(number) => ("number", Some(*number), None),
        Rating::Text(text) => ("text", None, Some(text)),
    }
}

/// And back.
pub(super) fn rating_of(kind: &str, number: Option<f64>, text: Option<Arc<str>>) -> Rating {
    match (kind, number, text) {
        ("flag", number, _) => Rating::Flag(number.is_some_and(|number| number > 0.0)),
        (_, Some(number), _) => Rating::Number(number),
        (_, None, text) => Rating::Text(text.unwrap_or_default()),
    }
}
