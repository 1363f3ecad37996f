//! Recorded calls judged by a configuration: refused, or going where at which price; and who changes variant.
//!
//! A judgement is a replay of what the log knows. Budgets and limits begin empty with the first call; a rate is counted over the
//! time that it is given for; concurrency is not replayed.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, VecDeque},
    sync::Arc,
};

use jiff::Timestamp;

use crate::{
    analysis::what_if::{moment_of, usage_of},
    config::{
        Snapshot,
        snapshot::{Auth, BudgetMode, Target, Unpriced},
    },
    policy::{
        experiment::{Experiment, Unit},
        keys::ModelAccess,
        limits::Rate,
        scope::Facts,
    },
    record::CallRow,
    registry::Kind,
    units::NanoUsd,
};

/// Units that stand in for recorded ones.
pub(super) const SYNTHETIC: usize = 10_000;

/// What becomes of a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    /// It costs so much; `None` where its tokens are not known.
    Passes(Option<NanoUsd>),
    /// It is refused, for this reason.
    Refused(&'static str),
}

/// Keys that were made at run time, by name: they stand in no configuration.
pub(super) type StoredKeys = HashMap<String, ModelAccess>;

/// What becomes of each of `rows`, which are in the order of time.
pub(super) fn judge(snapshot: &Snapshot, stored: &StoredKeys, rows: &[CallRow]) -> Vec<Verdict> {
    let access = snapshot.config_keys.iter().map(|(_, caller)| (caller.name.to_string(), caller.models.clone()));
    let mut judge = Judge {
        snapshot,
        access: stored.clone().into_iter().chain(access).collect(),
        spent: HashMap::new(),
        used: HashMap::new(),
    };
    rows.iter().map(|row| judge.verdict(row).unwrap_or_else(Verdict::Refused)).collect()
}

struct Judge<'s> {
    snapshot: &'s Snapshot,
    access: HashMap<String, ModelAccess>,
    /// By budget, account and period.
    spent: HashMap<(usize, String, String), u64>,
    /// By limit, whether of tokens, and account: when, and how many.
    used: HashMap<(usize, bool, String), VecDeque<(u64, u64)>>,
}

impl Judge<'_> {
    fn verdict(&mut self, row: &CallRow) -> Result<Verdict, &'static str> {
        let target = self.target(row)?;
        let at = moment_of(row.received_ms);
        let cost = match (&target, usage_of(row)) {
            (Some(Target { price: Some(price), .. }), Some(usage)) => Some(price.cost(&usage, None, at)),
            (Some(Target { price: None, .. }), usage) => match &self.snapshot.unpriced {
                Unpriced::Refuse => return Err("no price"),
                Unpriced::Charge(price) => usage.map(|usage| price.cost(&usage, None, at)),
            },
            _ => None,
        };
        let tags: Vec<(Arc<str>, Arc<str>)> =
            row.tags.iter().map(|(name, value)| (name.clone(), value.clone())).collect();
        let facts = Facts { key: &row.key, team: row.team.as_deref(), user: &row.user, model: &row.model, tags: &tags };
        self.take_limits(&facts, row)?;
        self.spend(&facts, at, cost.map_or(row.cost_nanousd, |cost| cost.0))?;
        Ok(Verdict::Passes(cost))
    }

    /// Where the call goes; `None` where it names no model.
    fn target(&self, row: &CallRow) -> Result<Option<Target>, &'static str> {
        let everything = ModelAccess::All;
        let access = match self.access.get(&*row.key) {
            Some(access) => access,
            None if self.snapshot.auth != Auth::Required => &everything,
            None => return Err("invalid_api_key"),
        };
        let Some(named) = row.named.as_deref() else { return Ok(None) };
        let (alias, pinned) = named.split_once('@').map_or((named, None), |(alias, version)| (alias, Some(version)));
        let Some(model) = self.snapshot.models.get(alias) else {
            let found = self.snapshot.target(named).ok_or("model_not_found")?;
            let full = format!("{}/{}", found.target.provider.name, found.target.model);
            return match access.allows(named, Some(&full)) {
                true => Ok(Some(found.target.clone())),
                false => Err("model_not_allowed"),
            };
        };
        if !access.allows(&model.name, None) {
            return Err("model_not_allowed");
        }
        let rolled_out = self.snapshot.registry.choose(Kind::Models, &model.name, &row.user).unwrap_or(&model.live);
        let mut wanted = pinned.unwrap_or(rolled_out);
        let mut instead = None;
        for experiment in model.experiments.iter().filter(|_| pinned.is_none()) {
            let variant = unit(experiment, row).and_then(|unit| experiment.assign(unit));
            wanted = variant.and_then(|variant| variant.version.as_deref()).unwrap_or(wanted);
            instead = variant.and_then(|variant| variant.target.as_deref()).or(instead);
        }
        if let Some(found) = instead.and_then(|name| self.snapshot.target(name)) {
            return Ok(Some(found.target.clone()));
        }
        let version = model.versions.get(wanted).ok_or("model_not_found")?;
        // Where a share of calls goes to each of several targets, a call stays where it was.
        let all = version.targets.iter().map(|(target, _)| target).chain(&version.fallbacks);
        let same = all.clone().find(|target| {
            row.target.as_deref().and_then(|was| was.split_once('/')) == Some((&*target.provider.name, &*target.model))
        });
        let heaviest = version.targets.iter().max_by_key(|(_, weight)| *weight).map(|(target, _)| target);
        Ok(same.or(heaviest).cloned())
    }

    fn take_limits(&mut self, facts: &Facts<'_>, row: &CallRow) -> Result<(), &'static str> {
        for (i, limit) in self.snapshot.limits.iter().enumerate() {
            let Some(account) = limit.scope.account(facts) else { continue };
            let tokens = row.input_tokens.saturating_add(row.output_tokens);
            for (rate, of_tokens, amount) in [(&limit.requests, false, 1), (&limit.tokens, true, tokens)] {
                let Some(rate) = rate else { continue };
                let used = self.used.entry((i, of_tokens, account.clone())).or_default();
                if !take(used, rate, row.received_ms, amount) {
                    return Err("rate_limited");
                }
            }
        }
        Ok(())
    }

    fn spend(&mut self, facts: &Facts<'_>, at: Timestamp, cost: u64) -> Result<(), &'static str> {
        let mut accounts = Vec::new();
        for (i, budget) in self.snapshot.budgets.iter().enumerate() {
            let Some(account) = budget.scope.account(facts) else { continue };
            let account = (i, account, budget.per.period_of(at).id);
            let refuses = budget.mode == BudgetMode::Enforce && budget.downgrade.is_none();
            if refuses && self.spent.get(&account).copied().unwrap_or(0) >= budget.limit.0 {
                return Err("budget_exhausted");
            }
            accounts.push(account);
        }
        for account in accounts {
            let spent = self.spent.entry(account).or_default();
            *spent = spent.saturating_add(cost);
        }
        Ok(())
    }
}

/// Whether `amount` fits into a rate, and takes it.
fn take(used: &mut VecDeque<(u64, u64)>, rate: &Rate, now_ms: u64, amount: u64) -> bool {
    while used.front().is_some_and(|(at, _)| at.saturating_add(rate.per_ms) <= now_ms) {
        used.pop_front();
    }
    // Tokens are known only afterwards: a call is let in as long as anything is left.
    let sum: u64 = used.iter().map(|(_, amount)| amount).sum();
    let fits = sum < rate.count;
    if fits {
        used.push_back((now_ms, amount));
    }
    fits
}

/// The unit of a recorded call: what was assigned, else what this experiment would assign. `None` for a header that no call recorded.
fn unit<'r>(experiment: &Experiment, row: &'r CallRow) -> Option<&'r str> {
    let recorded =
        row.variants.iter().find(|assigned| assigned.experiment == experiment.name).map(|assigned| &*assigned.unit);
    recorded.or(match experiment.unit {
        Unit::User => Some(&*row.user),
        Unit::Key => Some(&*row.key),
        Unit::Session => Some(row.session.as_deref().unwrap_or(&row.user)),
        Unit::Header(_) => None,
    })
}

// === variants ===

/// Who changes variant in one experiment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Moves {
    pub(super) experiment: String,
    /// `user`, `key`, …
    pub(super) unit: &'static str,
    /// Of how many.
    pub(super) units: usize,
    /// Whether they are those of recorded calls.
    pub(super) recorded: bool,
    /// From which variant to which, and how many; outside the experiment is `-`.
    pub(super) moves: BTreeMap<(String, String), usize>,
}

/// Who changes variant from `old` to `new`, by experiment; only those in which somebody does. `plain`: whether units are recorded as
/// they are, and not hashed.
pub(super) fn moves(old: &Snapshot, new: &Snapshot, rows: &[CallRow], plain: bool) -> Vec<Moves> {
    let (before, after) = (experiments(old), experiments(new));
    let names: BTreeSet<&String> = before.keys().chain(after.keys()).collect();
    let all = names.into_iter().filter_map(|name| moves_of(name, before.get(name), after.get(name), rows, plain));
    all.filter(|moves| !moves.moves.is_empty()).collect()
}

/// Experiments by name, with the model that each is on.
fn experiments(snapshot: &Snapshot) -> BTreeMap<String, (Arc<str>, Arc<Experiment>)> {
    let of_model = |model: &crate::config::snapshot::Model| {
        let name = model.name.clone();
        model
            .experiments
            .clone()
            .into_iter()
            .map(move |experiment| (experiment.name.to_string(), (name.clone(), experiment)))
    };
    snapshot.models.values().flat_map(|model| of_model(model)).collect()
}

fn moves_of(
    name: &str,
    old: Option<&(Arc<str>, Arc<Experiment>)>,
    new: Option<&(Arc<str>, Arc<Experiment>)>,
    rows: &[CallRow],
    plain: bool,
) -> Option<Moves> {
    let (model, experiment) = new.or(old)?;
    let of_model = rows.iter().filter(|row| plain && row.model == *model);
    let mut units: BTreeSet<String> = of_model.filter_map(|row| unit(experiment, row)).map(str::to_owned).collect();
    let recorded = !units.is_empty();
    if !recorded {
        units = (0..SYNTHETIC).map(|n| format!("unit-{n}")).collect();
    }
    let variant = |of: Option<&(Arc<str>, Arc<Experiment>)>, unit: &str| {
        of.and_then(|(_, experiment)| experiment.assign(unit))
            .map_or_else(|| "-".to_owned(), |variant| variant.name.to_string())
    };
    let mut moves: BTreeMap<(String, String), usize> = BTreeMap::new();
    for unit in &units {
        let (from, to) = (variant(old, unit), variant(new, unit));
        if from != to {
            *moves.entry((from, to)).or_default() += 1;
        }
    }
    let unit = match experiment.unit {
        Unit::User => "users",
        Unit::Key => "keys",
        Unit::Session => "sessions",
        Unit::Header(_) => "header values",
    };
    Some(Moves { experiment: name.to_owned(), unit, units: units.len(), recorded, moves })
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::config;

    fn snapshot(text: &str) -> Snapshot {
        let base =
            "providers: { sim: { kind: simulated } }\nprices: { sim/*: { input: 1 USD/1M, output: 1 USD/1M } }\n";
        config::parse_str(&format!("{base}{text}"), "t.yaml", &|_| None, Path::new("")).unwrap().snapshot
    }

    fn experiment(weights: (u32, u32)) -> Snapshot {
        snapshot(&format!(
            "models: {{ m: {{ versions: {{ v1: {{ target: sim/a }} }} }} }}\n\
             experiments: {{ e: {{ model: m, variants: {{ a: {{ weight: {} }}, b: {{ weight: {} }} }} }} }}",
            weights.0, weights.1
        ))
    }

    #[test]
    fn raising_a_weight_moves_units_only_into_it() {
        let [moves] = &moves(&experiment((90, 10)), &experiment((80, 20)), &[], true)[..] else {
            panic!("one experiment")
        };
        assert_eq!((moves.units, moves.recorded, moves.moves.len()), (SYNTHETIC, false, 1));
        let moved = moves.moves[&("a".to_owned(), "b".to_owned())];
        assert!((900..1100).contains(&moved), "{moved} is not about a tenth");
    }

    #[test]
    fn nobody_moves_where_nothing_changes() {
        assert_eq!(moves(&experiment((1, 1)), &experiment((50, 50)), &[], true), []);
    }

    #[test]
    fn a_new_experiment_takes_everybody_in() {
        let none = snapshot("models: { m: { versions: { v1: { target: sim/a } } } }");
        let [moves] = &moves(&none, &experiment((1, 1)), &[], true)[..] else { panic!("one experiment") };
        assert_eq!(moves.moves.values().sum::<usize>(), SYNTHETIC);
    }

    #[test]
    fn a_rate_is_counted_over_its_time() {
        let rate = Rate { count: 2, per_ms: 1000 };
        let mut used = VecDeque::new();
        let taken: Vec<bool> = [0, 10, 20, 1005, 1010].into_iter().map(|at| take(&mut used, &rate, at, 1)).collect();
        assert_eq!(taken, [true, true, false, true, true]);
    }
}
