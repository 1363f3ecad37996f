//! Prices: own rows over the built-in catalog, and what a model without a price costs.

use std::{collections::BTreeMap, sync::Arc};

use super::{Check, shown};
use crate::{
    config::{
        file::{Charge, Refuse},
        forms::WordOr,
        snapshot::Unpriced,
        tree::{Document, Path},
    },
    policy::pricing::{Catalog, Price, PriceRow},
};

/// Rows by `provider/model`.
type Rows = BTreeMap<String, PriceRow>;

impl Check<'_, '_, '_> {
    pub(super) fn prices(&mut self, prices: Option<WordOr<String, Rows>>) -> Arc<Catalog> {
        let at = Path::default().key("prices");
        match prices {
            None => Catalog::builtin(),
            Some(WordOr::Map(rows)) => self.rows(self.document, &at, rows),
            Some(WordOr::Word(file)) => self.prices_file(&at, &file),
        }
    }

    fn prices_file(&mut self, at: &Path, path: &str) -> Arc<Catalog> {
        let text = match self.sources.file(path) {
            Ok(text) => text,
            Err(error) => {
                self.problem(at, format!("the file {} cannot be read: {error}", shown(path)));
                return Catalog::builtin();
            }
        };
        match Document::parse(path, &text, &mut self.problems) {
            Ok(mut document) => {
                let rows = document.read::<Rows>(&mut self.problems).unwrap_or_default();
                self.rows(&document, &Path::default(), rows)
            }
            Err(problem) => {
                self.push_problem(problem);
                Catalog::builtin()
            }
        }
    }

    fn rows(&mut self, document: &Document, at: &Path, rows: Rows) -> Arc<Catalog> {
        let names: Vec<String> = rows.keys().cloned().collect();
        for name in names.iter().filter(|name| !is_provider_and_model(name)) {
            self.push_problem(document.problem(&at.key(name), "rows are named `provider/model`"));
        }
        let builtin = Catalog::builtin();
        match builtin.with_rows(rows.into_iter().collect()) {
            Ok(catalog) => Arc::new(catalog),
            Err(error) => {
                let message = error.to_string();
                let row = names.iter().filter(|name| message.contains(name.as_str())).max_by_key(|name| name.len());
                let problem = match row {
                    // The path names the row already.
                    Some(name) => {
                        let rest = message.strip_prefix(name.as_str()).and_then(|rest| rest.strip_prefix(": "));
                        document.problem(&at.key(name), rest.unwrap_or(&message))
                    }
                    None => document.problem(at, message),
                };
                self.push_problem(problem);
                builtin
            }
        }
    }

    pub(super) fn unpriced(&mut self, unpriced: Option<&WordOr<Refuse, Charge>>) -> Option<Unpriced> {
        let charge = match unpriced {
            None | Some(WordOr::Word(Refuse::Refuse)) => return Some(Unpriced::Refuse),
            Some(WordOr::Map(charge)) => charge.charge.as_ref(),
        };
        let at = Path::default().key("unpriced");
        let charge = self.required(&at, "charge", charge, "write `charge: { input: 10 USD/1M, output: 30 USD/1M }`")?;
        let at = at.key("charge");
        let input = self.required(&at, "input", charge.input, "write a price such as `10 USD/1M`");
        let output = self.required(&at, "output", charge.output, "write a price such as `30 USD/1M`");
        Some(Unpriced::Charge(Arc::new(Price::flat(input?.0, output?.0))))
    }
}

fn is_provider_and_model(name: &str) -> bool {
    name.split_once('/').is_some_and(|(provider, model)| !provider.is_empty() && !model.is_empty())
}
