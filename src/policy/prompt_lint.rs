//! What is allowed in a prompt but probably not meant: names, sizes, blanks, and what keeps a provider's cache from helping.
//!
//! Pure: the caller says who uses the prompt. Nothing here is an error; those are found when a version is compiled.

use jiff::Timestamp;
use serde_json::Map;

use crate::{
    policy::{
        pricing::Price,
        prompt::{Choice, Rendered, Template},
        prompt_preview::{self, Preview},
        tokens::{self, Encoding},
    },
    units::{NanoUsd, Tokens},
};

/// A prompt above this share of a model's context window is worth a word, in percent.
const WINDOW_PERCENT_MAX: u64 = 25;
/// Letters that nobody sees but the model: zero-width, direction marks, no-break space.
const UNSEEN: [char; 12] = [
    '\u{a0}', '\u{ad}', '\u{200b}', '\u{200c}', '\u{200d}', '\u{200e}', '\u{200f}', '\u{202a}', '\u{202e}', '\u{2060}',
    '\u{2066}', '\u{feff}',
];

/// A model whose calls get the prompt.
#[derive(Debug, Clone, Copy)]
pub struct Use<'a> {
    /// What clients call it.
    pub named: &'a str,
    /// The provider's name of it.
    pub model: &'a str,
    /// Its price, which knows its context window too.
    pub price: Option<&'a Price>,
    /// Shortest prefix that its provider caches.
    pub cached_from: Tokens,
}

/// What was found.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Finding {
    /// Which rule, for scripts: `unused_variable`, `undeclared_variable`, `renders_empty`, `whitespace`, `unseen_character`,
    /// `large`, `cache`.
    pub rule: &'static str,
    /// A sentence with the mend.
    pub what: String,
}

/// How long a prompt is for a model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Size {
    /// Tokens, with defaults where all variables have one, else with made-up values.
    pub tokens: Tokens,
    /// Tokens at its beginning that are the same in every call; `None` where that cannot be told.
    pub stable: Option<Tokens>,
    /// What it costs a call that reads nothing of it from a cache; `None` where no price is known.
    pub cost: Option<NanoUsd>,
}

/// All findings, the prompt's own first.
#[must_use]
pub fn lint(template: &Template, uses: &[Use<'_>]) -> Vec<Finding> {
    let mut findings = variables(template);
    if let Some(rendered) = rendered(template) {
        findings.extend(texts(&rendered));
        findings.extend(uses.iter().flat_map(|one| size_for(template, *one)));
    }
    findings
}

/// How long the prompt is with the tokenizer of `model`; `None` where it cannot be rendered without real values.
#[must_use]
pub fn size(template: &Template, model: &str, price: Option<&Price>, at: Timestamp) -> Option<Size> {
    let rendered = rendered(template)?;
    let Preview { tokens, cost, .. } = prompt_preview::preview(&rendered, model, price, at);
    let (encoding, _) = Encoding::for_model(model);
    let stable = match template.is_constant() {
        true => Some(tokens),
        false => stable_prefix(template).map(|text| tokens::count_exact(encoding, &text)),
    };
    Some(Size { tokens, stable, cost })
}

/// With the defaults, else with made-up values.
fn rendered(template: &Template) -> Option<Rendered> {
    template.render(&Map::new()).or_else(|_| template.render_sample(Choice::One)).ok()
}

/// The text at the beginning that no variable changes: what two renderings with other values have in common.
fn stable_prefix(template: &Template) -> Option<String> {
    let (one, other) = (template.render_sample(Choice::One).ok()?, template.render_sample(Choice::Other).ok()?);
    let text = |rendered: &Rendered| -> String {
        prompt_preview::lead(rendered).iter().map(|message| message.content.to_string() + "\n").collect()
    };
    let (one, other) = (text(&one), text(&other));
    let same = one.char_indices().zip(other.chars()).find(|((_, a), b)| a != b);
    let end = same.map_or(one.len().min(other.len()), |((at, _), _)| at);
    Some(one[..end].to_owned())
}

fn variables(template: &Template) -> Vec<Finding> {
    let declared = &template.source().variables;
    let unused = declared.iter().filter(|variable| template.used().all(|(name, _)| name != variable.name));
    let unused = unused.map(|variable| {
        let name = &variable.name;
        finding("unused_variable", format!("the variable `{name}` is declared and not used; take it out"))
    });
    let undeclared = template.used().filter(|(name, _)| declared.iter().all(|variable| variable.name != *name));
    let undeclared = undeclared.map(|(name, _)| {
        let mend = format!("declare it: `variables: {{ {name}: {{ type: string }} }}`");
        finding("undeclared_variable", format!("`{name}` is used and not declared, so every call must give it; {mend}"))
    });
    unused.chain(undeclared).collect()
}

fn texts(rendered: &Rendered) -> Vec<Finding> {
    let lead = prompt_preview::lead(rendered);
    let lead = lead.iter().map(|message| (message.role.name(), message.content.as_ref(), false));
    // What stands beside the user's own text often begins or ends with a line break on purpose.
    let around = [("before_user", &rendered.before_user), ("after_user", &rendered.after_user)];
    let around = around.into_iter().filter_map(|(name, text)| Some((name, text.as_deref()?, true)));
    lead.chain(around).flat_map(|(name, text, beside)| text_findings(name, text, beside)).collect()
}

fn text_findings(name: &str, text: &str, beside_user: bool) -> Vec<Finding> {
    if text.trim().is_empty() {
        return vec![finding("renders_empty", format!("`{name}` renders to nothing with the defaults; take it out"))];
    }
    let mut findings = Vec::new();
    let mut odd = |what: &str| findings.push(finding("whitespace", format!("`{name}` {what}")));
    if !beside_user && text.trim() != text {
        odd("begins or ends with blanks; trim it, models answer differently to them");
    }
    if text.contains("\n\n\n\n") {
        odd("has three blank lines or more in a row; `{%- … -%}` takes those around a tag away");
    }
    if text.contains('\r') {
        odd("has carriage returns; save it with Unix line ends");
    }
    if let Some(unseen) = text.chars().find(|letter| UNSEEN.contains(letter)) {
        let code = u32::from(unseen);
        let what = format!("`{name}` holds U+{code:04X}, which is not seen and takes tokens; take it out");
        findings.push(finding("unseen_character", what));
    }
    findings
}

fn size_for(template: &Template, one: Use<'_>) -> Vec<Finding> {
    let size = size(template, one.model, None, Timestamp::UNIX_EPOCH);
    let Some(Size { tokens: Tokens(tokens), stable, .. }) = size else { return Vec::new() };
    let Use { named, model, cached_from: Tokens(cached_from), .. } = one;
    let mut findings = Vec::new();
    let window = one.price.and_then(Price::context_window).map(|window| window.0).filter(|window| *window > 0);
    if let Some(window) = window
        && tokens.saturating_mul(100) > window.saturating_mul(WINDOW_PERCENT_MAX)
    {
        let percent = tokens.saturating_mul(100) / window;
        let what = format!(
            "takes {tokens} tokens, {percent} % of the context window of `{named}` ({model}: {window}); shorten it"
        );
        findings.push(finding("large", what));
    }
    if let Some(Tokens(stable)) = stable
        && tokens >= cached_from
        && stable < cached_from
        && !template.is_constant()
    {
        let what = format!(
            "only its first {stable} of {tokens} tokens are the same in every call, and the provider of `{named}` caches prefixes \
             from {cached_from} tokens on; move what varies to the end"
        );
        findings.push(finding("cache", what));
    }
    findings
}

fn finding(rule: &'static str, what: String) -> Finding {
    Finding { rule, what }
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;
    use crate::policy::{
        pricing::{Catalog, PriceRow},
        prompt::{TemplateSource, Variable},
    };

    fn template(text: &str, variables: &[(&str, Option<&str>)]) -> Template {
        let variable = |(name, default): &(&str, Option<&str>)| Variable {
            name: (*name).to_owned(),
            default: default.map(Value::from),
            ..Variable::default()
        };
        let variables = variables.iter().map(variable).collect();
        let source = TemplateSource { system: Some(text.to_owned()), variables, ..TemplateSource::default() };
        Template::compile("v1".into(), source).expect("valid")
    }

    fn rules(template: &Template, uses: &[Use<'_>]) -> Vec<&'static str> {
        lint(template, uses).iter().map(|finding| finding.rule).collect()
    }

    #[test]
    fn each_rule_finds_its_own_and_nothing_else() {
        for (text, variables, expected) in [
            ("You help with {{ a }}.", &[("a", Some("x"))][..], &[][..]),
            ("You help.", &[("a", None)], &["unused_variable"]),
            ("You help with {{ a }}.", &[], &["undeclared_variable"]),
            ("{% if a == 'x' %}Help.{% endif %}", &[("a", Some(""))], &["renders_empty"]),
            (" You help.", &[], &["whitespace"]),
            ("You help.\n\n", &[], &["whitespace"]),
            ("You help.\n", &[], &[]),
            ("One.\n\n\n\nTwo.", &[], &["whitespace"]),
            ("One.\r\nTwo.", &[], &["whitespace"]),
            ("One.\u{200b}", &[], &["unseen_character"]),
        ] {
            assert_eq!(rules(&template(text, variables), &[]), expected, "{text:?}");
        }
    }

    #[test]
    fn what_varies_before_the_cached_prefix_is_told_with_the_numbers() {
        let (variables, long) = ([("a", None)], "word ".repeat(1500));
        let cached_from = Tokens(1024);
        let one = [Use { named: "support", model: "gpt-4o", price: None, cached_from }];
        let early = template(&format!("For {{{{ a }}}}: {long}."), &variables);
        let late = template(&format!("{long} for {{{{ a }}}}"), &variables);
        let short = template("For {{ a }}.", &variables);
        assert_eq!(rules(&early, &one), ["cache"]);
        assert!(lint(&early, &one)[0].what.starts_with("only its first 2 of 15"), "{:?}", lint(&early, &one));
        assert_eq!(rules(&late, &one), [""; 0]);
        assert_eq!(rules(&short, &one), [""; 0], "no prefix of it would be cached anyway");
        let stable =
            size(&late, "gpt-4o", None, Timestamp::UNIX_EPOCH).and_then(|size| size.stable).expect("renders").0;
        assert!((1500..1510).contains(&stable), "{stable}");
    }

    #[test]
    fn a_prompt_that_fills_the_window_is_told() {
        let row: PriceRow =
            serde_saphyr::from_str("{ input: 1 USD/1M, output: 1 USD/1M, context_window: 1000 }").expect("a row");
        let catalog = Catalog::builtin().with_rows(vec![("p/m".to_owned(), row)]).expect("valid");
        let price = catalog.find("p", None, "m").expect("there");
        let one = [Use { named: "m", model: "m", price: Some(&price), cached_from: Tokens(1024) }];
        assert_eq!(rules(&template("word ".repeat(300).trim_end(), &[]), &one), ["large"]);
        assert_eq!(rules(&template("short", &[]), &one), [""; 0]);
    }
}
