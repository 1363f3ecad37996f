//! Prompts: templates compiled once, so that a mistake in one is found here and not in a call.

use std::{collections::BTreeMap, sync::Arc};

use serde_json::{Map, Value, json};

use super::{Check, shown};
use crate::{
    config::{
        file::{self, MessageRole, VariableType},
        snapshot::{Prompt, PromptRef},
        tree::Path,
    },
    policy::prompt::{self, MessageSource, PromptError, Template, TemplateSource, Variable, VariableKind},
    wire::edit::Role,
};

/// The folder, beside the configuration, out of which prompts include partials.
pub(in crate::config) const FOLDER: &str = "prompts";
/// Most partials of one version.
pub(in crate::config) const PARTIALS_MAX: usize = 64;
/// Most bytes of all partials of one version.
const PARTIAL_BYTES_MAX: usize = 1024 * 1024;
/// Files whose name ends so hold messages.
const MESSAGES_FILES: [&str; 2] = [".messages.yaml", ".messages.yml"];

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
        let mut source = TemplateSource {
            system: typed.system.clone(),
            developer: typed.developer.clone(),
            before_user: typed.before_user.clone(),
            after_user: typed.after_user.clone(),
            messages: self.messages(at, typed.messages.as_deref().unwrap_or_default())?,
            partials: BTreeMap::new(),
            variables: self.variables(at, &typed.variables)?,
        };
        if let Some(path) = &typed.file {
            self.prompt_file(at, path, typed, &mut source)?;
        }
        let parts = [&source.system, &source.developer, &source.before_user, &source.after_user];
        if parts.iter().all(|part| part.is_none()) && source.messages.is_empty() {
            let mend = "says nothing; write `system`, `developer`, `before_user`, `after_user`, `messages` or `file`";
            self.problem(at, mend);
            return None;
        }
        self.partials(at, typed, &mut source)?;
        Template::compile(version.into(), source).map_err(|error| self.prompt_problem(at, typed, &error)).ok()
    }

    fn messages(&mut self, at: &Path, typed: &[file::PromptMessage]) -> Option<Vec<MessageSource>> {
        let section = at.key("messages");
        let messages: Vec<_> = typed
            .iter()
            .enumerate()
            .map(|(i, message)| {
                let at = section.index(i);
                let role = self.required(&at, "role", message.role, "write system, developer, user or assistant");
                let content = self.required(&at, "content", message.content.clone(), "write what the message says");
                Some(MessageSource { role: role_of(role?), content: content? })
            })
            .collect();
        messages.into_iter().collect()
    }

    /// Points at the part or the variable that a template fails in.
    fn prompt_problem(&mut self, at: &Path, typed: &file::PromptVersion, error: &PromptError) {
        let part = match error {
            PromptError::Syntax { part, .. } | PromptError::NoPartial { part, .. } => *part,
            PromptError::SourceTooLong { part } => *part,
            PromptError::WrongDefault { name, .. } => {
                let at = at.key("variables").key(name).key("default");
                return self.problem(&at, error.to_string());
            }
            PromptError::WrongRules { name, .. } => {
                return self.problem(&at.key("variables").key(name), error.to_string());
            }
            PromptError::MessagesAndSystem => return self.problem(&at.key("messages"), error.to_string()),
            _ => return self.problem(at, error.to_string()),
        };
        match &typed.file {
            Some(file) if part == "system" || typed.messages.is_none() && part.starts_with("messages") => {
                self.problem(&at.key("file"), format!("{}: {error}", shown(file)));
            }
            _ => self.problem(&part_at(at, part), error.to_string()),
        }
    }

    /// What a file adds to a version; `None` when that is a problem.
    fn prompt_file(
        &mut self,
        at: &Path,
        path: &str,
        typed: &file::PromptVersion,
        source: &mut TemplateSource,
    ) -> Option<()> {
        let at = at.key("file");
        let holds_messages = MESSAGES_FILES.iter().any(|ending| path.ends_with(ending));
        if typed.system.is_some() || typed.messages.is_some() {
            let (other, what) =
                if typed.system.is_some() { ("system", "the system message") } else { ("messages", "the messages") };
            self.problem(&at, format!("stands beside `{other}`; the file is {what}, keep one of them"));
            return None;
        }
        let text = match self.sources.file(path) {
            Ok(text) => text,
            Err(error) => {
                self.problem(&at, format!("the file {} cannot be read: {error}", shown(path)));
                return None;
            }
        };
        if !holds_messages {
            source.system = Some(text);
            return Some(());
        }
        match messages_of(&text) {
            Ok(messages) => source.messages = messages,
            Err(what) => {
                self.problem(&at, format!("{}: {what}", shown(path)));
                return None;
            }
        }
        Some(())
    }

    /// Takes all files that the parts include, and those that these include, from what the version brings along, or else from the
    /// folder. A wrong tag in a part itself is left to the compiler.
    fn partials(&mut self, at: &Path, typed: &file::PromptVersion, source: &mut TemplateSource) -> Option<()> {
        let named = [
            ("system", &source.system),
            ("developer", &source.developer),
            ("before_user", &source.before_user),
            ("after_user", &source.after_user),
        ];
        let mut texts: Vec<(Path, String, String)> = Vec::new();
        for (part, text) in named {
            let Some(text) = text else { continue };
            match &typed.file {
                Some(file) if part == "system" => texts.push((at.key("file"), shown(file), text.clone())),
                _ => texts.push((at.key(part), part.to_owned(), text.clone())),
            }
        }
        for (i, message) in source.messages.iter().enumerate() {
            let place = if typed.messages.is_some() { part_at(at, &format!("messages[{i}]")) } else { at.key("file") };
            texts.push((place, format!("messages[{i}]"), message.content.clone()));
        }
        let mut bytes = 0;
        while let Some((at, name, text)) = texts.pop() {
            for include in prompt::includes(&text).unwrap_or_default() {
                if source.partials.contains_key(&include.path) {
                    continue;
                }
                let place = format!("{name}, line {}", include.line);
                let own = typed.partials.get(&include.path).cloned();
                let read = match own.map_or_else(|| self.sources.file_within(FOLDER, &include.path), Ok) {
                    Ok(read) => read,
                    Err(error) => {
                        let path = shown(&include.path);
                        let what = format!("the file {FOLDER}/{path} cannot be included: {error}");
                        self.problem(&at, format!("{place}: {what}; write it, or its text under `partials`"));
                        return None;
                    }
                };
                bytes += read.len();
                if bytes > PARTIAL_BYTES_MAX || source.partials.len() == PARTIALS_MAX {
                    let most = format!("{PARTIALS_MAX} files of {PARTIAL_BYTES_MAX} bytes in all");
                    self.problem(&at, format!("{place}: the version includes more than {most}"));
                    return None;
                }
                texts.push((at.clone(), format!("{FOLDER}/{}", include.path), read.clone()));
                source.partials.insert(include.path, read);
            }
        }
        for path in typed.partials.keys().filter(|path| !source.partials.contains_key(*path)) {
            self.problem(&at.key("partials").key(path), "is included by nothing; take it out");
        }
        Some(())
    }

    fn variables(&mut self, at: &Path, typed: &BTreeMap<String, file::Variable>) -> Option<Vec<Variable>> {
        let section = at.key("variables");
        let mut variables = Vec::new();
        let mut all_good = true;
        for (name, variable) in typed {
            let at = section.key(name);
            let kind = variable_kind(variable.kind.unwrap_or(VariableType::String));
            all_good &= self.rules_fit(&at, kind, variable);
            variables.push(Variable {
                name: name.clone(),
                kind,
                default: variable.default.clone(),
                description: variable.description.clone(),
                schema: rules(variable),
            });
        }
        all_good.then_some(variables)
    }

    /// Whether each rule is one for values of this type: another would never be broken, and so be meant otherwise.
    fn rules_fit(&mut self, at: &Path, kind: VariableKind, variable: &file::Variable) -> bool {
        let number = matches!(kind, VariableKind::Number | VariableKind::Integer);
        let text = kind == VariableKind::String;
        let rules = [
            ("min", variable.min.is_some() && !number, "numbers"),
            ("max", variable.max.is_some() && !number, "numbers"),
            ("max_length", variable.max_length.is_some() && !text, "strings"),
            ("pattern", variable.pattern.is_some() && !text, "strings"),
        ];
        for (rule, wrong, whose) in rules {
            if wrong {
                self.problem(&at.key(rule), format!("is a rule for {whose}, and this is {kind}"));
            }
        }
        let listed = variable.values.as_ref().is_some_and(Vec::is_empty);
        if listed {
            self.problem(&at.key("enum"), "is empty; list the values that it may have");
        }
        !listed && rules.iter().all(|(_, wrong, _)| !wrong)
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

/// Where a part stands: `messages[1]` is the content of the second message.
fn part_at(at: &Path, part: &str) -> Path {
    let message = part.strip_prefix("messages[").and_then(|rest| rest.strip_suffix(']')?.parse().ok());
    message.map_or_else(|| at.key(part), |i| at.key("messages").index(i).key("content"))
}

/// The messages of a file: a YAML list of `role` and `content`.
fn messages_of(text: &str) -> Result<Vec<MessageSource>, String> {
    let typed: Vec<file::PromptMessage> = serde_saphyr::from_str(text)
        .map_err(|error| error.to_string().lines().next().unwrap_or_default().to_owned())?;
    if typed.is_empty() {
        return Err("holds no message; write a list of `role` and `content`".to_owned());
    }
    let message = |(i, message): (usize, file::PromptMessage)| {
        let (Some(role), Some(content)) = (message.role, message.content) else {
            return Err(format!("message {} needs a `role` and a `content`", i + 1));
        };
        Ok(MessageSource { role: role_of(role), content })
    };
    typed.into_iter().enumerate().map(message).collect()
}

/// The rules of a variable as one JSON Schema.
fn rules(variable: &file::Variable) -> Option<Value> {
    let mut rules = Map::new();
    let mut add = |keyword: &str, value: Option<Value>| value.map(|value| rules.insert(keyword.to_owned(), value));
    add("enum", variable.values.clone().map(Value::Array));
    add("minimum", variable.min.map(plain_number));
    add("maximum", variable.max.map(plain_number));
    add("maxLength", variable.max_length.map(Value::from));
    add("pattern", variable.pattern.clone().map(Value::from));
    match (&variable.schema, rules.is_empty()) {
        (None, true) => None,
        (None, false) => Some(Value::Object(rules)),
        // Alone, so that its references and messages keep their places.
        (Some(schema), true) => Some(schema.clone()),
        (Some(schema), false) => Some(json!({"allOf": [rules, schema]})),
    }
}

/// `3` where `3.0` was meant: it is shown in messages.
fn plain_number(number: f64) -> Value {
    let whole = number as i64;
    if whole as f64 == number { Value::from(whole) } else { Value::from(number) }
}

fn role_of(role: MessageRole) -> Role {
    match role {
        MessageRole::System => Role::System,
        MessageRole::Developer => Role::Developer,
        MessageRole::User => Role::User,
        MessageRole::Assistant => Role::Assistant,
    }
}

fn variable_kind(kind: VariableType) -> VariableKind {
    match kind {
        VariableType::String => VariableKind::String,
        VariableType::Number => VariableKind::Number,
        VariableType::Integer => VariableKind::Integer,
        VariableType::Boolean => VariableKind::Boolean,
        VariableType::Array => VariableKind::Array,
        VariableType::Object => VariableKind::Object,
    }
}
