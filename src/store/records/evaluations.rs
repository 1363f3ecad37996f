//! Reports of evaluations, kept beside the calls: by the dashboard they are shown, and compared with.

use std::sync::Arc;

use crate::store::ports::StoreError;

/// The longest report, in bytes.
pub const REPORT_BYTES_MAX: usize = 4 << 20;
/// The longest id, name of a suite and name of a candidate, in bytes.
pub const NAME_BYTES_MAX: usize = 512;
/// Reports of one suite that are kept: the latest. Tests need not write a thousand.
pub(super) const KEPT_MAX: usize = if cfg!(test) { 20 } else { 1000 };

/// One run of a suite on one candidate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Evaluation {
    /// What it is listed with.
    pub head: EvaluationHead,
    /// Its report: JSON.
    pub report: String,
}

/// An evaluation without its report.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EvaluationHead {
    /// Its id. Kept again under the same one, it replaces what was there.
    pub id: Arc<str>,
    /// The suite.
    pub suite: Arc<str>,
    /// What was evaluated, such as `support@v2`.
    pub candidate: Arc<str>,
    /// When it ended: milliseconds since 1970 (UTC).
    pub created_ms: u64,
}

/// Evaluations, the latest first.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct EvaluationPage {
    /// The evaluations.
    pub rows: Vec<EvaluationHead>,
    /// Where the next page begins: the last id of this one. `None` when there is no further evaluation.
    pub next: Option<Arc<str>>,
}

impl EvaluationPage {
    /// The page of the first `limit` of `rows`, which has one more where there is a next page.
    pub(super) fn of(mut rows: Vec<EvaluationHead>, limit: usize) -> EvaluationPage {
        let more = rows.len() > limit;
        rows.truncate(limit);
        let next = rows.last().filter(|_| more).map(|row| row.id.clone());
        EvaluationPage { rows, next }
    }
}

impl Evaluation {
    /// Whether a store takes it.
    ///
    /// # Errors
    /// `Damaged` where it is too large, or its report no JSON.
    pub(super) fn check(&self) -> Result<(), StoreError> {
        let EvaluationHead { id, suite, candidate, .. } = &self.head;
        if [id, suite, candidate]
            .iter()
            .any(|name| name.is_empty() || name.len() > NAME_BYTES_MAX || name.contains('\0'))
        {
            return Err(StoreError::Damaged(format!("an evaluation's names have 1 to {NAME_BYTES_MAX} bytes")));
        }
        if self.report.len() > REPORT_BYTES_MAX {
            return Err(StoreError::Damaged(format!("an evaluation's report has at most {REPORT_BYTES_MAX} bytes")));
        }
        match serde_json::from_str::<serde::de::IgnoredAny>(&self.report) {
            Ok(_) => Ok(()),
            Err(error) => Err(StoreError::Damaged(format!("an evaluation's report is JSON: {error}"))),
        }
    }
}
