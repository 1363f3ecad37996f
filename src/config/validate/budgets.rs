//! Budgets and rate limits, and whom they are for.

use std::{collections::HashMap, sync::Arc};

use super::{Check, shown};
use crate::{
    config::{
        file::{self, File},
        forms::WordOr,
        problems::suggestion,
        snapshot::{Budget, BudgetMode, CurrentPeriod, OnStoreLoss},
        tree::Path,
    },
    ledger::period::Per,
    policy::{
        limits::Limit,
        scope::{Match, Scope},
    },
    units::Tokens,
};

impl Check<'_, '_, '_> {
    /// Sorted by name: the order in which purses are taken must not hang on the order of the file.
    pub(super) fn budgets(&mut self, file: &File) -> Vec<Arc<Budget>> {
        let mut names = HashMap::new();
        let mut budgets: Vec<Arc<Budget>> = Vec::with_capacity(file.budgets.len());
        for (i, typed) in file.budgets.iter().enumerate() {
            let at = Path::default().key("budgets").index(i);
            self.unique_name(&at, "budgets", typed.name.as_deref(), i, &mut names);
            budgets.extend(self.budget(&at, typed, file).map(Arc::new));
        }
        budgets.sort_by(|a, b| a.name.cmp(&b.name));
        budgets
    }

    fn budget(&mut self, at: &Path, typed: &file::Budget, file: &File) -> Option<Budget> {
        let scope = self.scope(&at.key("scope"), &typed.scope, file);
        let limit = self.required(at, "limit", typed.limit, "write an amount such as `500 USD`");
        let per = self.required(at, "per", typed.per.as_deref(), "write a period such as `day` or `month`");
        let per = per.and_then(|every| self.period(at, every, typed.timezone.as_deref()));
        let downgrade = self.downgrade(at, typed, &scope);
        self.at_least_one(&at.key("min_output_tokens"), typed.min_output_tokens);
        self.at_least_one(&at.key("default_max_tokens"), typed.default_max_tokens);
        Some(Budget {
            name: typed.name.as_deref()?.into(),
            scope,
            limit: limit?.0,
            per: per?,
            alerts: typed.alerts.iter().map(|share| share.0).collect(),
            downgrade,
            clamp: typed.clamp.is_none_or(|on| on.0),
            min_output_tokens: Tokens(typed.min_output_tokens.unwrap_or(256)),
            default_max_tokens: Tokens(typed.default_max_tokens.unwrap_or(4096)),
            on_store_loss: match typed.on_store_loss {
                Some(file::OnStoreLoss::Open) => OnStoreLoss::Open,
                Some(file::OnStoreLoss::Closed) | None => OnStoreLoss::Closed,
            },
            current: CurrentPeriod::default(),
            mode: match typed.mode {
                Some(file::BudgetMode::Warn) => BudgetMode::Warn,
                Some(file::BudgetMode::Enforce) | None => BudgetMode::Enforce,
            },
        })
    }

    /// The period; a mistake is put down to the time zone when the period alone is right.
    fn period(&mut self, at: &Path, every: &str, timezone: Option<&str>) -> Option<Per> {
        Per::parse(every, timezone)
            .map_err(|error| {
                let key = if Per::parse(every, None).is_ok() { "timezone" } else { "per" };
                self.problem(&at.key(key), error.to_string());
            })
            .ok()
    }

    fn downgrade(&mut self, at: &Path, typed: &file::Budget, scope: &Scope) -> Option<Arc<str>> {
        let Some(WordOr::Map(downgrade)) = &typed.on_exhausted else { return None };
        let at = at.key("on_exhausted");
        let mend = "write `downgrade: ALIAS`, or `on_exhausted: refuse`";
        let alias = self.required(&at, "downgrade", downgrade.downgrade.as_deref(), mend)?;
        let at = at.key("downgrade");
        if !self.is_written("models", alias) {
            self.unknown(&at, "model", alias, &Path::default().key("models"));
        }
        if scope.model == Some(Match::Is(alias.into())) {
            self.problem(&at, "is the model that this budget is for; name a cheaper one");
        }
        Some(alias.into())
    }

    pub(super) fn limits(&mut self, file: &File) -> Vec<Arc<Limit>> {
        let mut names = HashMap::new();
        let mut limits = Vec::with_capacity(file.limits.len());
        for (i, typed) in file.limits.iter().enumerate() {
            let at = Path::default().key("limits").index(i);
            self.unique_name(&at, "limits", typed.name.as_deref(), i, &mut names);
            let scope = self.scope(&at.key("scope"), &typed.scope, file);
            let requests = typed.requests.map(|rate| rate.0);
            let tokens = typed.tokens.map(|rate| rate.0);
            self.at_least_one(&at.key("concurrent"), typed.concurrent.map(u64::from));
            let written = ["requests", "tokens", "concurrent"].iter().any(|key| self.document.has(&at.key(key)));
            if !written {
                self.problem(&at, "limits nothing; write `requests`, `tokens` or `concurrent`");
            }
            let Some(name) = typed.name.as_deref() else { continue };
            let limit = Limit { name: name.into(), scope, requests, tokens, concurrent: typed.concurrent };
            limits.push(Arc::new(limit));
        }
        limits
    }

    fn at_least_one(&mut self, at: &Path, count: Option<u64>) {
        if count == Some(0) {
            self.problem(at, "must be at least 1");
        }
    }

    fn unique_name<'f>(
        &mut self,
        at: &Path,
        section: &str,
        name: Option<&'f str>,
        index: usize,
        names: &mut HashMap<&'f str, usize>,
    ) {
        let Some(name) = self.required(at, "name", name, "name it: errors and metrics show the name") else { return };
        self.name(&at.key("name"), "item", name);
        if let Some(first) = names.insert(name, index) {
            self.problem(&at.key("name"), format!("`{}` is the name of {section}[{first}] too", shown(name)));
        }
    }

    fn scope(&mut self, at: &Path, typed: &file::Scope, file: &File) -> Scope {
        let keys: Vec<&str> = file.keys.iter().filter_map(|key| key.name.as_deref()).collect();
        let teams: Vec<&str> = file.keys.iter().filter_map(|key| key.team.as_deref()).collect();
        let key = self.dimension(&at.key("key"), typed.key.as_deref());
        let team = self.dimension(&at.key("team"), typed.team.as_deref());
        self.known_here(&at.key("key"), "key", key.as_ref(), &keys);
        self.known_here(&at.key("team"), "team", team.as_ref(), &teams);
        let mut model = self.dimension(&at.key("model"), typed.model.as_deref());
        if let Some(Match::Is(model)) = &mut model {
            self.model_name(&at.key("model"), model, file);
            *model = full_model_name(model, file);
        }
        let mut tags = Vec::with_capacity(typed.tags.len());
        for (name, value) in &typed.tags {
            let value = self.dimension(&at.key("tags").key(name), Some(value));
            tags.extend(value.map(|value| (name.as_str().into(), value)));
        }
        Scope { key, team, user: self.dimension(&at.key("user"), typed.user.as_deref()), model, tags }
    }

    fn dimension(&mut self, at: &Path, value: Option<&str>) -> Option<Match> {
        match value? {
            "*" => Some(Match::Each),
            blank if blank.trim().is_empty() => {
                self.problem(at, "is empty; write a name, `\"*\"` for each of them, or leave it out for all together");
                None
            }
            name => Some(Match::Is(name.into())),
        }
    }

    /// Keys made by `tollgate keys create` are not known here, so that an unknown name is only worth a warning.
    fn known_here(&mut self, at: &Path, kind: &str, wanted: Option<&Match>, known: &[&str]) {
        if let Some(Match::Is(name)) = wanted
            && !known.contains(&&**name)
        {
            let near = suggestion(name, known.iter().copied());
            self.warn(at, format!("no {kind} of this configuration is named `{}`{near}", shown(name)));
        }
    }
}

/// An alias as it is, all else as `provider/model`: a call belongs to the same scope however it names its model.
fn full_model_name(model: &str, file: &File) -> Box<str> {
    let names_provider = model.split_once('/').is_some_and(|(provider, _)| file.providers.contains_key(provider));
    match file.default_provider.as_deref() {
        Some(provider) if !names_provider && !file.models.contains_key(model) => format!("{provider}/{model}").into(),
        _ => model.into(),
    }
}
