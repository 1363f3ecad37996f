//! Other YAML files of ours, such as evaluation suites, read as a configuration is: `${NAME}` filled in, every mistake with its
//! place and its mend.

use std::path::Path as FilePath;

use serde::de::DeserializeOwned;

pub use crate::config::tree::Path;
use crate::config::{
    Problem, Problems,
    environment::Environment,
    forms::SecretText,
    problems,
    sources::{self, Sources},
    tree::Document,
};

/// A file as it was typed. What it means is for its owner to check; [`Typed::refuse`] collects what is found wrong then.
#[derive(Debug)]
pub struct Typed<T> {
    /// The value, without the parts that were refused for their form.
    pub value: T,
    document: Document,
    problems: Problems,
}

/// Reads the file `path`. Values of the environment come from the process, and from a `.env` beside the file.
///
/// # Errors
/// When it cannot be read or is no YAML; mistakes of form are told by [`Typed::finish`].
pub fn read<T: DeserializeOwned>(path: &FilePath) -> Result<Typed<T>, Problems> {
    let name = path.display().to_string();
    let whole = |message: String| {
        let (file, path) = (name.clone(), String::new());
        Problems(vec![Problem { file, place: problems::Place::default(), path, message }])
    };
    let text = sources::read_text(path).map_err(|error| whole(format!("cannot be read: {error}")))?;
    let base_dir = path.parent().unwrap_or(FilePath::new(""));
    let environment = Environment::of_process(&base_dir.join(".env")).map_err(|error| whole(error.to_string()))?;
    read_str(&text, &name, &|name| environment.variable(name), base_dir)
}

/// Reads a text that messages call `name`; `variable` is the environment.
///
/// # Errors
/// As [`read`].
pub fn read_str<T: DeserializeOwned>(
    text: &str,
    name: &str,
    variable: &dyn Fn(&str) -> Option<String>,
    base_dir: &FilePath,
) -> Result<Typed<T>, Problems> {
    let mut sources = Sources::new(variable, base_dir);
    let mut problems = Problems::default();
    let mut document = Document::parse(name, text, &mut problems).map_err(|problem| Problems(vec![problem]))?;
    document.substitute(&mut |name| sources.variable(name), None, &mut problems);
    match document.read(&mut problems) {
        Some(value) => Ok(Typed { value, document, problems }),
        None => Err(problems.sorted()),
    }
}

impl<T> Typed<T> {
    /// Notes that what stands at `path` is wrong.
    pub fn refuse(&mut self, path: &Path, message: impl Into<String>) {
        let problem = self.document.problem(path, message);
        self.problems.push(problem);
    }

    /// Whether something at `path` was refused for its form: then nothing more need be said of it.
    #[must_use]
    pub fn is_refused(&self, path: &Path) -> bool {
        self.document.has_struck(path) || self.document.has_struck_below(path)
    }

    /// What was found wrong.
    ///
    /// # Errors
    /// All problems, when there is any.
    pub fn finish(self) -> Result<T, Problems> {
        if self.problems.is_empty() { Ok(self.value) } else { Err(self.problems.sorted()) }
    }
}

/// ``; did you mean `near`?``, or what is known.
#[must_use]
pub fn suggestion<'a>(typed: &str, known: impl IntoIterator<Item = &'a str>) -> String {
    problems::suggestion(typed, known)
}

impl SecretText {
    /// The text as typed.
    #[must_use]
    pub fn as_typed(&self) -> &str {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    use super::*;

    #[derive(Debug, Default, Deserialize)]
    #[serde(default, deny_unknown_fields)]
    struct Suite {
        name: Option<String>,
        repeat: Option<u32>,
    }

    fn problems(text: &str) -> String {
        let variable = |name: &str| (name == "NAME").then(|| "x".to_owned());
        let typed = read_str::<Suite>(text, "s.yaml", &variable, FilePath::new("")).unwrap();
        typed.finish().unwrap_err().to_string()
    }

    #[test]
    fn mistakes_of_form_and_of_meaning_are_told_together() {
        assert_eq!(
            problems("nmae: ${NAME}\nrepeat: many\n"),
            "s.yaml:1:1: nmae: unknown key; did you mean `name`?\ns.yaml:2:9: repeat: `many` is not a number that fits here"
        );
        let mut typed =
            read_str::<Suite>("name: ${NAME}\nrepeat: 0\n", "s.yaml", &|_| Some("x".to_owned()), FilePath::new(""))
                .unwrap();
        assert_eq!(typed.value.name.as_deref(), Some("x"));
        typed.refuse(&Path::default().key("repeat"), "must be above 0");
        assert_eq!(typed.finish().unwrap_err().to_string(), "s.yaml:2:9: repeat: must be above 0");
    }
}
