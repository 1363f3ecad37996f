//! Prompts: their versions, which one is live, and how two of them differ.

use serde::Serialize;
use serde_json::json;

use super::{
    diff::{self, Line},
    registered::{self, Standing},
    visit::{Shown, Visit},
};
use crate::{
    config::{registered::InRegistry, snapshot::Prompt},
    policy::prompt::Template,
    registry::Kind,
};

/// A prompt.
#[derive(Debug, Serialize)]
struct Entry {
    name: String,
    live: String,
    versions: Vec<Version>,
    /// Models whose live version injects it.
    used_by: Vec<String>,
    comparison: Option<Comparison>,
    registry: Standing,
}

#[derive(Debug, Serialize)]
struct Version {
    name: String,
    live: bool,
    parts: Vec<(&'static str, String)>,
    required: Vec<String>,
}

/// Two versions, part by part.
#[derive(Debug, Serialize)]
struct Comparison {
    from: String,
    to: String,
    parts: Vec<(&'static str, Vec<Line>)>,
}

pub(super) async fn show(visit: Visit) -> Shown {
    let snapshot = visit.admin.shared.live.load_full();
    let mut prompts: Vec<Entry> =
        snapshot.prompts.values().map(|prompt| entry(prompt, &snapshot.registry, &visit)).collect();
    prompts.sort_by(|one, other| one.name.cmp(&other.name));
    for prompt in &mut prompts {
        let uses = |version: &crate::config::snapshot::ModelVersion| {
            version.prompt.as_ref().is_some_and(|used| *used.prompt.name == *prompt.name)
        };
        let models =
            snapshot.models.values().filter(|model| model.versions.get(&model.live).is_some_and(|one| uses(one)));
        prompt.used_by = models.map(|model| model.name.to_string()).collect();
        prompt.used_by.sort_unstable();
    }
    let waiting = registered::waiting(&snapshot.registry, Kind::Prompts, |name| snapshot.prompts.contains_key(name));
    Ok(visit.page("prompts.html", json!({ "prompts": prompts, "waiting": waiting })))
}

fn entry(prompt: &Prompt, registry: &InRegistry, visit: &Visit) -> Entry {
    let mut templates: Vec<&Template> = prompt.versions.values().map(|template| &**template).collect();
    templates.sort_by(|one, other| one.version().cmp(other.version()));
    let version = |template: &&Template| Version {
        name: template.version().to_string(),
        live: *template.version() == prompt.live,
        parts: template.parts().collect(),
        required: template.required().map(str::to_owned).collect(),
    };
    Entry {
        name: prompt.name.to_string(),
        live: prompt.live.to_string(),
        versions: templates.iter().map(version).collect(),
        used_by: Vec::new(),
        comparison: comparison(prompt, &templates, visit),
        registry: Standing::of(registry, Kind::Prompts, &prompt.name),
    }
}

/// Of the two versions that were chosen; else of the live one and the one after it, or before it.
fn comparison(prompt: &Prompt, templates: &[&Template], visit: &Visit) -> Option<Comparison> {
    if templates.len() < 2 {
        return None;
    }
    let chosen = |name: &str| {
        let asked = visit.parameter("prompt").filter(|asked| **asked == *prompt.name).and(visit.parameter(name))?;
        templates.iter().find(|template| **template.version() == *asked)
    };
    let live = templates.iter().position(|template| *template.version() == prompt.live)?;
    let other = if live + 1 < templates.len() { live + 1 } else { live - 1 };
    let from = chosen("from").unwrap_or(&templates[live]);
    let to = chosen("to").unwrap_or(&templates[other]);
    Some(Comparison { from: from.version().to_string(), to: to.version().to_string(), parts: compared(from, to) })
}

fn compared(from: &Template, to: &Template) -> Vec<(&'static str, Vec<Line>)> {
    let (old, new): (Vec<_>, Vec<_>) = (from.parts().collect(), to.parts().collect());
    let text = |parts: &[(&'static str, String)], name: &str| {
        parts.iter().find(|(part, _)| *part == name).map(|(_, text)| text.clone()).unwrap_or_default()
    };
    let mut names: Vec<&'static str> = old.iter().chain(&new).map(|(name, _)| *name).collect();
    names.dedup();
    names.sort_unstable();
    names.dedup();
    names.into_iter().map(|name| (name, diff::lines(&text(&old, name), &text(&new, name)))).collect()
}
