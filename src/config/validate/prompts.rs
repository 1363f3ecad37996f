//! Prompts: templates compiled once, so that a mistake in one is found here and not in a call.

use std::{collections::BTreeMap, sync::Arc};

use super::{Check, shown};
use crate::{
    config::{
        file::{self, VariableType},
        snapshot::{Prompt, PromptRef},
        tree::Path,
    },
    policy::prompt::{Template, TemplateSource, Variable, VariableKind},
};

/// Prompts by name.
pub(super) type Prompts = BTreeMap<String, Arc<Prompt>>;

impl Check<'_, '_, '_> {
    pub(super) fn prompts(&mut self, typed: &BTreeMap<String, file::Prompt>) -> Prompts {
        let section = Path::default().key("prompts");
        let mut prompts = Prompts::new();
        for (name, prompt) in typed {
            let at = section.key(name);
            self.name(&at, "prompt", name);
            let live = self.live(&at, prompt.live.as_deref(), &prompt.versions);
            let versions = prompt
                .versions
                .iter()
                .filter_map(|(version, typed)| {
                    let at = at.key("versions").key(version);
                    self.name(&at, "version", version);
                    self.template(&at, version, typed).map(|template| (Arc::from(version.as_str()), Arc::new(template)))
                })
                .collect();
            if let Some(live) = live {
                let prompt = Prompt { name: name.as_str().into(), live: live.into(), versions };
                prompts.insert(name.clone(), Arc::new(prompt));
            }
        }
        prompts
    }

    fn template(&mut self, at: &Path, version: &str, typed: &file::PromptVersion) -> Option<Template> {
        let system = match &typed.file {
            Some(path) => Some(self.system_file(at, path, typed)?),
            None => typed.system.clone(),
        };
        let parts = [&system, &typed.developer, &typed.before_user, &typed.after_user];
        if parts.iter().all(|part| part.is_none()) {
            self.problem(at, "says nothing; write `system`, `developer`, `before_user`, `after_user` or `file`");
            return None;
        }
        let source = TemplateSource {
            system,
            developer: typed.developer.clone(),
            before_user: typed.before_user.clone(),
            after_user: typed.after_user.clone(),
            variables: self.variables(at, &typed.variables),
        };
        Template::compile(version.into(), source)
            .map_err(|error| {
                let (at, file) = match &typed.file {
                    Some(file) => (at.key("file"), format!("{}: ", shown(file))),
                    None => (at.clone(), String::new()),
                };
                self.problem(&at, format!("{file}{error}"));
            })
            .ok()
    }

    /// The system message from its file; `None` when that is a problem.
    fn system_file(&mut self, at: &Path, path: &str, typed: &file::PromptVersion) -> Option<String> {
        let at = at.key("file");
        if typed.system.is_some() {
            self.problem(&at, "stands beside `system`; the file is the system message, keep one of them");
            return None;
        }
        match self.sources.file(path) {
            Ok(text) => Some(text),
            Err(error) => {
                self.problem(&at, format!("the file {} cannot be read: {error}", shown(path)));
                None
            }
        }
    }

    fn variables(&mut self, at: &Path, typed: &BTreeMap<String, file::Variable>) -> Vec<Variable> {
        let mut variables = Vec::with_capacity(typed.len());
        for (name, variable) in typed {
            let kind = variable.kind.unwrap_or(VariableType::String);
            if let Some(default) = &variable.default
                && !fits(kind, default)
            {
                let at = at.key("variables").key(name).key("default");
                self.problem(&at, format!("{default} is not {}", due(kind)));
            }
            variables.push(Variable {
                name: name.clone(),
                kind: variable_kind(kind),
                default: variable.default.clone(),
                description: variable.description.clone(),
            });
        }
        variables
    }

    /// `name` or `name@version`.
    pub(super) fn prompt_ref(&mut self, at: &Path, text: &str, prompts: &Prompts) -> Option<PromptRef> {
        let (name, version) = match text.split_once('@') {
            Some((name, version)) => (name, Some(version)),
            None => (text, None),
        };
        if !self.is_written("prompts", name) {
            self.unknown(at, "prompt", name, &Path::default().key("prompts"));
            return None;
        }
        let versions = Path::default().key("prompts").key(name).key("versions");
        if let Some(version) = version
            && !self.document.has(&versions.key(version))
        {
            self.unknown(at, &format!("version of the prompt `{name}`"), version, &versions);
            return None;
        }
        let prompt = prompts.get(name)?;
        let version = version.map_or_else(|| prompt.live.clone(), Arc::from);
        Some(PromptRef { prompt: prompt.clone(), version })
    }
}

fn fits(kind: VariableType, value: &serde_json::Value) -> bool {
    match kind {
        VariableType::String => value.is_string(),
        VariableType::Number => value.is_number(),
        VariableType::Integer => value.is_i64() || value.is_u64(),
        VariableType::Boolean => value.is_boolean(),
    }
}

fn due(kind: VariableType) -> &'static str {
    match kind {
        VariableType::String => "a string; put it in quotes",
        VariableType::Number => "a number",
        VariableType::Integer => "a whole number",
        VariableType::Boolean => "true or false",
    }
}

fn variable_kind(kind: VariableType) -> VariableKind {
    match kind {
        VariableType::String => VariableKind::String,
        VariableType::Number => VariableKind::Number,
        VariableType::Integer => VariableKind::Integer,
        VariableType::Boolean => VariableKind::Boolean,
    }
}
