//! `tollgate prices`: what the built-in catalog says about a model.

use std::io::{Write, stdout};

use anyhow::{Context, ensure};
use serde_json::{Map, Value, json};

use crate::policy::pricing::{Catalog, Listing};

/// Prints the rows that match `model` (`provider/model`, or a model at every provider): rates, sources, date.
///
/// # Errors
/// When no row matches, or standard output cannot be written.
pub fn show(model: &str, json: bool) -> anyhow::Result<()> {
    write(&Catalog::builtin(), model, json, jiff::Timestamp::now(), stdout().lock())
}

fn write(catalog: &Catalog, model: &str, json: bool, now: jiff::Timestamp, mut out: impl Write) -> anyhow::Result<()> {
    let listings = catalog.listings(model);
    ensure!(!listings.is_empty(), "no price for `{model}`; give it one under `prices:` in the configuration");
    let text = if json { as_json(catalog, &listings, now) } else { as_text(catalog, &listings, now) };
    writeln!(out, "{text}").context("cannot write the prices")
}

fn as_json(catalog: &Catalog, listings: &[Listing], now: jiff::Timestamp) -> String {
    let row = |listing: &Listing| {
        let rates = listing.price.rates(now).into_iter().map(|(unit, rate)| (unit, Value::String(rate)));
        json!({
            "row": listing.row,
            "rates": rates.collect::<Map<_, _>>(),
            "context_window": listing.price.context_window(),
            "sources": listing.sources,
        })
    };
    let rows: Vec<Value> = listings.iter().map(row).collect();
    json!({ "catalog": catalog.revision(), "date": catalog.date(), "prices": rows }).to_string()
}

fn as_text(catalog: &Catalog, listings: &[Listing], now: jiff::Timestamp) -> String {
    let mut text = format!("{}, {}", catalog.revision(), catalog.date());
    for listing in listings {
        text.push_str(&format!("\n\n{}\n", listing.row));
        for (unit, rate) in listing.price.rates(now) {
            text.push_str(&format!("  {unit:<16} {rate}\n"));
        }
        text.push_str(&format!("  {:<16} {}", "source", listing.sources.first().map_or("own row", String::as_str)));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(model: &str, json: bool) -> anyhow::Result<String> {
        let mut out = Vec::new();
        write(&Catalog::builtin(), model, json, "2026-11-23T12:00:00Z".parse()?, &mut out)?;
        Ok(String::from_utf8(out)?)
    }

    #[test]
    fn a_row_is_shown_with_rates_and_source() {
        let text = shown("openai/gpt-4o-mini", false).unwrap();
        assert!(text.starts_with("genai-prices "), "{text}");
        assert!(text.contains("\nopenai/gpt-4o-mini\n  input            0.15 USD/1M\n"), "{text}");
        assert!(text.contains("https://"), "{text}");
        assert!(!text.contains("azure/"), "{text}");
    }

    #[test]
    fn a_bare_model_is_shown_at_every_provider() {
        let shown: Value = serde_json::from_str(&shown("gpt-4o-mini", true).unwrap()).unwrap();
        let rows: Vec<&str> = shown["prices"].as_array().unwrap().iter().map(|r| r["row"].as_str().unwrap()).collect();
        assert!(rows.contains(&"openai/gpt-4o-mini") && rows.len() > 1, "{rows:?}");
        assert_eq!(
            shown["prices"][rows.iter().position(|r| *r == "openai/gpt-4o-mini").unwrap()]["rates"]["output"],
            "0.6 USD/1M"
        );
    }

    #[test]
    fn an_unknown_model_is_an_error_that_says_what_to_do() {
        assert!(shown("no-such-model", false).unwrap_err().to_string().contains("`prices:`"));
    }
}
