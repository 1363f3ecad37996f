//! One finished case of one candidate: what the journal keeps and reports are made of.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::eval::{answer::Answer, scorers::Score};

/// What a candidate made of a case.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Row {
    /// The case.
    pub case: String,
    /// The candidate.
    pub candidate: String,
    /// Which time, from 0.
    pub repeat: u32,
    /// What was answered; `None` where nothing was.
    pub answer: Option<Answer>,
    /// Why nothing was.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// The gateway's id of the call.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub call: Option<String>,
    /// What served it: `provider/model`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    /// The prompt that was injected: `name@version`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prompt: Option<String>,
    /// Attempts of ours.
    pub attempts: u32,
    /// Milliseconds from the request to the last byte, of the last attempt.
    pub latency_ms: Option<f64>,
    /// Prompt tokens.
    pub input_tokens: Option<u64>,
    /// Output tokens.
    pub output_tokens: Option<u64>,
    /// Nano-USD; `None` where it is not known.
    pub cost_nanousd: Option<u64>,
    /// Nano-USD that scoring took, as far as it is known.
    pub scoring_nanousd: u64,
    /// Calls for scoring whose cost is not known.
    pub scoring_unknown: u32,
    /// By scorer.
    pub scores: BTreeMap<String, Score>,
}

impl Row {
    /// What tells rows apart.
    #[must_use]
    pub fn key(&self) -> (String, String, u32) {
        (self.case.clone(), self.candidate.clone(), self.repeat)
    }

    /// Whether all that was asked for was passed; `None` where nothing was asked for.
    #[must_use]
    pub fn passed(&self) -> Option<bool> {
        let mut asked = self.scores.values().filter_map(|score| score.pass).peekable();
        asked.peek()?;
        Some(asked.all(|pass| pass))
    }
}
