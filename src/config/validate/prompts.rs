//! Prompts: templates compiled once, so that a mistake in one is found here and not in a call.

use std::{collections::BTreeMap, sync::Arc};

use super::{Check, shown};
use crate::{
    config::{
        file::{self, VariableType},
        snapshot::{Prompt, PromptRef},
        tree::Path,
    },
    policy::prompt::{PromptError, Template, TemplateSource, Variable, VariableKind},
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
            variables: variables(&typed.variables),
        };
        Template::compile(version.into(), source).map_err(|error| self.prompt_problem(at, typed, &error)).ok()
    }

    /// Points at the part or the variable that a template fails in.
    fn prompt_problem(&mut self, at: &Path, typed: &file::PromptVersion, error: &PromptError) {
        let part = match error {
            PromptError::Syntax { part, .. } | PromptError::ForbiddenTag { part, .. } => *part,
            PromptError::SourceTooLong { part } => *part,
            PromptError::WrongDefault { name, .. } => {
                let at = at.key("variables").key(name).key("default");
                return self.problem(&at, error.to_string());
            }
            _ => return self.problem(at, error.to_string()),
        };
        match &typed.file {
            Some(file) if part == "system" => self.problem(&at.key("file"), format!("{}: {error}", shown(file))),
            _ => self.problem(&at.key(part), error.to_string()),
        }
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
        let pinned = version.is_some();
        let version = version.map_or_else(|| prompt.live.clone(), Arc::from);
        Some(PromptRef { prompt: prompt.clone(), version, pinned })
    }
}

fn variables(typed: &BTreeMap<String, file::Variable>) -> Vec<Variable> {
    let variable = |(name, variable): (&String, &file::Variable)| Variable {
        name: name.clone(),
        kind: variable_kind(variable.kind.unwrap_or(VariableType::String)),
        default: variable.default.clone(),
        description: variable.description.clone(),
    };
    typed.iter().map(variable).collect()
}

fn variable_kind(kind: VariableType) -> VariableKind {
    match kind {
        VariableType::String => VariableKind::String,
        VariableType::Number => VariableKind::Number,
        VariableType::Integer => VariableKind::Integer,
        VariableType::Boolean => VariableKind::Boolean,
    }
}
