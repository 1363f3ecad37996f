//! From the call log to a decision: what variants and versions did, judged by [`crate::policy::stats`].
//!
//! - [`figures`]: what the call log sums up, kept for a few seconds, since it reads every call of an experiment.
//! - [`versions`]: versions of a model or prompt side by side, and what a roll-out must not harm.
//! - [`what_if`]: recorded calls at another model's price.
//!
//! [`study_of`] and [`epochs_of`] are pure; [`Analyst`] asks the log for what they need.

pub mod figures;
pub mod versions;
pub mod what_if;

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use futures_util::future::try_join_all;

use self::figures::{Counted, Figures, Trouble};
use crate::{
    policy::{
        experiment::{Experiment, built_in_kind},
        stats::{
            Arm, Kind, Language, Moments, analyse,
            guardrail::State,
            report::{Report, Study},
            srm::Epoch,
        },
    },
    registry::{self, Kind as Shelf, Rollout, Trial},
    store::records::{
        figures::{ArmFigures, Arms, ArmsQuery},
        ports::CallLog,
    },
};

/// Probability of any false verdict over an experiment's life; guardrails have as much of their own.
pub const ALPHA: f64 = 0.05;

/// Changes of weights that the split is checked by: the latest. Each takes a count of its own.
const STRETCHES_MAX: usize = 12;

/// How long a count is waited for where nobody waits.
const COUNTED_WITHIN: Duration = Duration::from_secs(60);

/// When an experiment ran, and with which weights.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Course {
    /// Times in which weights did not change, the oldest first. Empty: the configured weights since the first call.
    pub stretches: Vec<Stretch>,
}

/// A time in which weights did not change.
#[derive(Debug, Clone, PartialEq)]
pub struct Stretch {
    /// Its beginning: milliseconds since 1970.
    pub since_ms: u64,
    /// By variant.
    pub weights: BTreeMap<String, f64>,
}

/// What is known of an experiment.
#[derive(Debug, Clone)]
pub struct Findings {
    /// What follows from it.
    pub report: Report,
    /// What was counted.
    pub counted: Arc<Counted>,
}

/// Answers what experiments and versions did.
#[derive(Debug, Clone)]
pub struct Analyst {
    figures: Arc<Figures>,
}

/// What happened in `experiment` as a study: its arms in the order of its variants, those that nobody was in yet included.
#[must_use]
pub fn study_of(experiment: &Experiment, figures: &[ArmFigures], epochs: Vec<Epoch>) -> Study {
    let variants = experiment.variants().iter();
    Study {
        control: experiment.control.to_string(),
        unit: experiment.unit.clone(),
        alpha: ALPHA,
        goal: experiment.goal.clone(),
        guardrails: experiment.guardrails.clone(),
        kinds: kinds(figures),
        arms: variants.map(|variant| arm(&variant.name, variant.weight, figures)).collect(),
        epochs,
    }
}

/// The units that were new in each stretch, out of what was counted until the end of each: of one more stretch than there are
/// counts the last one's are those of `all`.
#[must_use]
pub fn epochs_of(experiment: &Experiment, stretches: &[Stretch], until: &[&[ArmFigures]]) -> Vec<Epoch> {
    let names: Vec<&str> = experiment.variants().iter().map(|variant| &*variant.name).collect();
    let mut before = vec![0; names.len()];
    let epoch = |(stretch, counted): (&Stretch, &&[ArmFigures])| {
        let units: Vec<u64> = names.iter().map(|name| units(name, counted)).collect();
        let new_units = units.iter().zip(&before).map(|(now, before)| now.saturating_sub(*before)).collect();
        before = units;
        let weight = |name: &&str| stretch.weights.get(*name).copied().unwrap_or(0.0);
        Epoch { weights: names.iter().map(weight).collect(), new_units }
    };
    stretches.iter().zip(until).map(epoch).collect()
}

/// Variants that surely break a guardrail, and the sentence that says so. A broken split excuses nobody.
#[must_use]
pub fn breaches(report: &Report) -> Vec<(String, String)> {
    let breach = |arm: &crate::policy::stats::report::ArmReport| {
        let broken = arm.guardrails.iter().find(|guardrail| guardrail.state == State::Breached)?;
        Some((arm.name.clone(), broken.sentence.clone()))
    };
    report.arms.iter().filter_map(breach).collect()
}

/// What each metric is. Of feedback, the sums tell: see [`Moments::may_be_share`].
fn kinds(figures: &[ArmFigures]) -> BTreeMap<String, Kind> {
    let mut shares: BTreeMap<&str, bool> = BTreeMap::new();
    for (name, moments) in figures.iter().flat_map(|arm| &arm.metrics) {
        *shares.entry(name).or_insert(true) &= moments.may_be_share();
    }
    let kind = |name: &str, may_be_share| match built_in_kind(name) {
        Some(kind) => kind,
        None if may_be_share => Kind::Share,
        None => Kind::Amount,
    };
    shares.into_iter().map(|(name, may_be_share)| (name.to_owned(), kind(name, may_be_share))).collect()
}

fn arm(name: &str, weight: f64, figures: &[ArmFigures]) -> Arm {
    let found = figures.iter().find(|figures| &*figures.arm == name);
    let metrics: BTreeMap<String, Moments> = found
        .into_iter()
        .flat_map(|figures| &figures.metrics)
        .map(|(name, moments)| (name.to_string(), *moments))
        .collect();
    Arm { name: name.to_owned(), weight, units: found.map_or(0, |figures| figures.units), metrics }
}

fn units(name: &str, figures: &[ArmFigures]) -> u64 {
    figures.iter().find(|figures| &*figures.arm == name).map_or(0, |figures| figures.units)
}

// === impl Course ===

impl Course {
    /// The course of an experiment in the registry.
    #[must_use]
    pub fn of(trial: &Trial) -> Course {
        let stretch = |epoch: &registry::Epoch| Stretch {
            since_ms: u64::try_from(epoch.at.as_millisecond()).unwrap_or_default(),
            weights: epoch.weights.clone(),
        };
        Course { stretches: trial.epochs.iter().map(stretch).collect() }
    }

    /// The latest stretches, and when the one before them ended.
    fn latest(&self) -> &[Stretch] {
        &self.stretches[self.stretches.len().saturating_sub(STRETCHES_MAX)..]
    }
}

// === impl Analyst ===

impl Analyst {
    /// Asks `log`.
    #[must_use]
    pub fn new(log: Arc<dyn CallLog>) -> Analyst {
        Analyst { figures: Arc::new(Figures::new(log)) }
    }

    /// What is known of `experiment`, at most some seconds old; older where counting takes longer than `patience`.
    ///
    /// # Errors
    /// When the log does not answer, or nothing was counted yet and counting takes longer than `patience`.
    pub async fn findings(
        &self,
        experiment: &Experiment,
        course: &Course,
        language: Language,
        patience: Duration,
    ) -> Result<Findings, Trouble> {
        // From the first call on: a name is never used again, and a gateway may have served before its start was written down.
        let arms = || Arms::Experiment(experiment.name.to_string());
        let query = |until_ms| ArmsQuery { arms: arms(), since_ms: None, until_ms };
        let stretches = course.latest();
        // What was counted by the beginning of each of the latest stretches but the very first, and now.
        let skipped = course.stretches.len() - stretches.len();
        let ends = stretches.iter().skip(usize::from(skipped == 0)).map(|stretch| Some(stretch.since_ms));
        let queries = ends.chain([None]).map(query);
        let counted = try_join_all(queries.map(|query| self.figures.arms(query, patience))).await?;
        let now = counted.last().expect("the last query is always there").clone();
        let until: Vec<&[ArmFigures]> = counted.iter().map(|counted| counted.arms.as_slice()).collect();
        let epochs = match skipped {
            0 => epochs_of(experiment, stretches, &until),
            _ => {
                // The first count is what was there before.
                let before = Stretch { since_ms: 0, weights: BTreeMap::new() };
                let all: Vec<Stretch> = [before].into_iter().chain(stretches.iter().cloned()).collect();
                epochs_of(experiment, &all, &until).split_off(1)
            }
        };
        let report = analyse(&study_of(experiment, &now.arms, epochs), language);
        Ok(Findings { report, counted: now })
    }

    /// Variants that surely break a guardrail, as [`breaches`].
    ///
    /// # Errors
    /// As [`Analyst::findings`].
    pub async fn breaches(&self, experiment: &Experiment, course: &Course) -> Result<Vec<(String, String)>, Trouble> {
        let findings = self.findings(experiment, course, Language::English, COUNTED_WITHIN).await?;
        Ok(breaches(&findings.report))
    }

    /// Whether the version that a roll-out leads to surely breaks a guardrail, as [`breaches`]: by the calls since it began, at
    /// `since_ms`, and compared with the version that it comes from.
    ///
    /// # Errors
    /// As [`Analyst::findings`].
    pub async fn rollout_breaches(
        &self,
        kind: Shelf,
        name: &str,
        rollout: &Rollout,
        since_ms: u64,
    ) -> Result<Vec<(String, String)>, Trouble> {
        let versions = [rollout.from.clone(), rollout.to.clone()];
        let query = versions::query(kind, name, &versions, Some(since_ms));
        let counted = self.counted(query, COUNTED_WITHIN).await?;
        let study = versions::study_of(&versions, &counted.arms, versions::guardrails(&rollout.guardrails));
        Ok(breaches(&analyse(&study, Language::English)))
    }

    /// What was counted of the arms, as [`Analyst::findings`].
    ///
    /// # Errors
    /// As [`Analyst::findings`].
    pub async fn counted(&self, query: ArmsQuery, patience: Duration) -> Result<Arc<Counted>, Trouble> {
        self.figures.arms(query, patience).await
    }
}

#[cfg(test)]
mod tests;
