//! The templates, and the functions that they use.

use std::sync::LazyLock;

use minijinja::{
    Environment, Error, State, UndefinedBehavior, Value,
    value::{Kwargs, Serde},
};
use rust_embed::RustEmbed;

use super::{super::paging::percent_encoded, figures, language::Language};

#[derive(RustEmbed)]
#[folder = "src/admin/dashboard/templates"]
struct Sources;

static ENVIRONMENT: LazyLock<Environment<'static>> = LazyLock::new(environment);

/// A page, filled in. What is in `context` is known everywhere, in macros too.
pub(super) fn render(name: &str, context: &serde_json::Value) -> Result<String, Error> {
    let mut environment = ENVIRONMENT.clone();
    for (name, value) in context.as_object().into_iter().flatten() {
        environment.add_global(name.clone(), Value::from(Serde(value)));
    }
    environment.get_template(name)?.render(())
}

fn environment() -> Environment<'static> {
    let mut environment = Environment::new();
    environment.set_undefined_behavior(UndefinedBehavior::SemiStrict);
    for name in Sources::iter() {
        let source = Sources::get(&name).expect("it was just named").data;
        let source = String::from_utf8_lossy(&source).into_owned();
        environment.add_template_owned(name, source).expect("each template compiles: checked by a test");
    }
    environment.add_function("t", translated);
    environment.add_function("href", href);
    environment.add_function("again", again);
    environment
        .add_function("count", |state: &State, n: Option<u64>| or_dash(n, |n| figures::count(n, language(state))));
    environment
        .add_function("compact", |state: &State, n: Option<u64>| or_dash(n, |n| figures::compact(n, language(state))));
    environment
        .add_function("money", |state: &State, n: Option<u64>| or_dash(n, |n| figures::money(n, language(state))));
    environment.add_function("money_with", |state: &State, n: Option<u64>, decimals: usize| {
        or_dash(n, |n| figures::money_with(n, decimals, language(state)))
    });
    environment.add_function("duration", |state: &State, n: Option<u64>| {
        or_dash(n, |n| figures::duration(n, language(state)))
    });
    environment
        .add_function("percent", |state: &State, n: Option<f64>| or_dash(n, |n| figures::percent(n, language(state))));
    environment.add_function("decimal", |state: &State, number: f64, decimals: usize| {
        figures::decimal(number, decimals, language(state))
    });
    environment.add_function("absolute", figures::absolute);
    environment.add_function("machine", figures::machine);
    environment.add_function("long", figures::long);
    environment.add_function("ago", ago);
    environment
}

/// The language that the page is in.
fn language(state: &State) -> Language {
    let tag = state.lookup("lang");
    tag.and_then(|tag| Language::of_tag(tag.as_str()?)).unwrap_or(Language::English)
}

/// What is not there is a dash.
fn or_dash<T>(value: Option<T>, text: impl FnOnce(T) -> String) -> String {
    value.map_or_else(|| "–".to_owned(), text)
}

/// A text in the page's language, its places in braces filled in by name.
#[expect(clippy::needless_pass_by_value, reason = "the engine hands arguments over")]
fn translated(state: &State, english: &str, places: Kwargs) -> Result<String, Error> {
    let mut text = language(state).say(english).to_owned();
    for name in places.args() {
        let value: Value = places.get(name)?;
        text = text.replace(&format!("{{{name}}}"), &value.to_string());
    }
    Ok(text)
}

/// `12 s ago`, of milliseconds since 1970.
fn ago(state: &State, ms: u64) -> Result<String, Error> {
    let now: u64 = state.lookup("now_ms").and_then(|now| now.try_into().ok()).unwrap_or(ms);
    let seconds = now.saturating_sub(ms) / 1000;
    let text = language(state).say("{time} ago");
    Ok(text.replace("{time}", &figures::long(if seconds < 60 { seconds } else { seconds / 60 * 60 })))
}

/// A link within the dashboard: `href("/calls", model="support")`. Keeps the language that was chosen.
#[expect(clippy::needless_pass_by_value, reason = "the engine hands arguments over")]
fn href(state: &State, path: &str, parameters: Kwargs) -> Result<String, Error> {
    let mut query = Vec::new();
    for name in parameters.args() {
        let value: Value = parameters.get(name)?;
        query.push((name.to_owned(), Some(value)));
    }
    if state.lookup("lang_chosen").is_some_and(|chosen| chosen.is_true()) {
        query.push(("lang".to_owned(), state.lookup("lang")));
    }
    Ok(with_query(path, query))
}

/// This page again, with some of its parameters changed: `again(range="7d")`; those that are none are left out.
#[expect(clippy::needless_pass_by_value, reason = "the engine hands arguments over")]
fn again(state: &State, changed: Kwargs) -> Result<String, Error> {
    let path = state.lookup("path").unwrap_or_default().to_string();
    let mut query: Vec<(String, Option<Value>)> = Vec::new();
    for pair in state.lookup("query").unwrap_or_default().try_iter()? {
        let (name, value) = (pair.get_item_by_index(0)?.to_string(), pair.get_item_by_index(1)?);
        if !changed.has(&name) {
            query.push((name, Some(value)));
        }
    }
    for name in changed.args() {
        query.push((name.to_owned(), changed.get(name)?));
    }
    Ok(with_query(&path, query))
}

fn with_query(path: &str, query: Vec<(String, Option<Value>)>) -> String {
    let given = query.into_iter().filter_map(|(name, value)| {
        let value = value.filter(|value| !value.is_none() && !value.is_undefined())?.to_string();
        (!value.is_empty()).then(|| format!("{}={}", percent_encoded(&name), percent_encoded(&value)))
    });
    let query: Vec<String> = given.collect();
    if query.is_empty() { path.to_owned() } else { format!("{path}?{}", query.join("&")) }
}

#[cfg(test)]
mod tests {
    use minijinja::context;

    use super::*;

    fn rendered(template: &str) -> String {
        let context = context! {
            lang => "de", lang_chosen => true, path => "/calls", now_ms => 100_000,
            query => [["model", "a b"], ["after", "x"]],
        };
        environment().render_str(template, context).expect("it renders")
    }

    #[test]
    fn every_template_compiles() {
        assert!(environment().templates().count() > 10);
    }

    #[test]
    fn links_keep_language_and_parameters() {
        assert_eq!(rendered("{{ href('/calls', model='a&b', team=none) }}"), "/calls?model=a%26b&lang=de");
        assert_eq!(rendered("{{ again(after=none, errors='on') }}"), "/calls?model=a%20b&errors=on");
    }

    #[test]
    fn what_is_not_there_is_a_dash() {
        assert_eq!(rendered("{{ money(none) }} {{ duration(none) }} {{ count(1234) }}"), "– – 1.234");
        assert_eq!(rendered("{{ ago(88_000) }}"), "vor 12 s");
    }
}
