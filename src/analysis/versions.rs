//! Versions of a model or prompt side by side.
//!
//! Nobody was assigned to a version by chance, except in a roll-out: a difference may be that of the weeks in which they served, or of
//! who names which. So there is no verdict, only figures with their intervals; guardrails of a roll-out are judged by them.

use std::collections::BTreeMap;

use serde_json::Value;

use super::{ALPHA, arm, kinds};
use crate::{
    policy::{
        experiment::Unit,
        stats::{
            guardrail::Limit,
            report::{Guardrail, Study},
            srm::Epoch,
        },
    },
    registry::Kind as Shelf,
    store::records::figures::{ArmFigures, Arms, ArmsQuery},
};

/// What the log is asked for `versions` of a model or prompt; all of them where none is named.
#[must_use]
pub fn query(kind: Shelf, name: &str, versions: &[String], since_ms: Option<u64>) -> ArmsQuery {
    let (name, versions) = (name.to_owned(), versions.to_vec());
    let arms = match kind {
        Shelf::Models => Arms::Model { alias: name, versions },
        Shelf::Prompts => Arms::Prompt { name, versions },
    };
    ArmsQuery { arms, since_ms, until_ms: None }
}

/// `versions` as a study without a goal, the first one as the control.
///
/// A user may be in several: that makes the interval of a difference a little too wide or narrow, by how alike a user's calls are.
#[must_use]
pub fn study_of(versions: &[String], figures: &[ArmFigures], guardrails: Vec<Guardrail>) -> Study {
    Study {
        control: versions.first().cloned().unwrap_or_default(),
        unit: Unit::User,
        alpha: ALPHA,
        goal: None,
        guardrails,
        kinds: kinds(figures),
        arms: versions.iter().map(|version| arm(version, 1.0, figures)).collect(),
        // Nobody said how many users each should have.
        epochs: vec![Epoch::default()],
    }
}

/// The guardrails that a roll-out was started with: a list of `{metric, max}` or `{metric, max_increase}`, numbers in the metric's
/// unit or texts such as `5%`. What is none is left out: whoever takes a roll-out in has refused it.
#[must_use]
pub fn guardrails(typed: &Value) -> Vec<Guardrail> {
    let number = |value: &Value| {
        let text = value.as_str().map(str::trim);
        let percent = text.and_then(|text| text.strip_suffix('%')).and_then(|text| text.trim().parse::<f64>().ok());
        value.as_f64().or(percent.map(|percent| percent / 100.0)).or_else(|| text?.parse().ok())
    };
    let guardrail = |typed: &Value| {
        let max = number(&typed["max"]).map(Limit::Max);
        let limit = max.or_else(|| number(&typed["max_increase"]).map(Limit::MaxIncrease))?;
        Some(Guardrail { metric: typed["metric"].as_str()?.to_owned(), limit })
    };
    typed.as_array().into_iter().flatten().filter_map(guardrail).collect()
}

/// The words that were said of each version, by metric: the most frequent ones and how often.
#[must_use]
pub fn words<'f>(version: &str, figures: &'f [ArmFigures]) -> BTreeMap<&'f str, Vec<(&'f str, u64)>> {
    let found = figures.iter().find(|figures| &*figures.arm == version);
    let words = found.into_iter().flat_map(|figures| &figures.words);
    words.map(|(metric, words)| (&**metric, words.iter().map(|(word, count)| (&**word, *count)).collect())).collect()
}
