//! Prices: own rows over the built-in catalog, and what a model without a price costs.

use std::{collections::BTreeMap, sync::Arc};

use super::{Check, shown};
use crate::{
    config::{
        file::{Charge, Refuse},
        forms::WordOr,
        problems::Problem,
        snapshot::Unpriced,
        tree::{Document, Path},
    },
    policy::pricing::{Catalog, Price, PriceError, PriceRow},
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
        let builtin = Catalog::builtin();
        let rows: Vec<(String, PriceRow)> = rows.into_iter().collect();
        if let Ok(catalog) = builtin.with_rows(rows.clone()) {
            return Arc::new(catalog);
        }
        for row in rows {
            let problem = builtin.with_rows(vec![row]).err().and_then(|error| price_problem(document, at, &error));
            self.problems.0.extend(problem);
        }
        builtin
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

/// Points at the row, or at the rate in it; `None` when the row lacks only what was wrong and is reported already.
fn price_problem(document: &Document, at: &Path, error: &PriceError) -> Option<Problem> {
    let row = match error {
        PriceError::Amount { row, field, source } => {
            return Some(document.problem(&at.key(row).key(field), source.to_string()));
        }
        PriceError::NotAModel(row) | PriceError::Twice(row) => {
            return Some(document.problem(&at.key(row), error.to_string()));
        }
        PriceError::Empty(row) | PriceError::Incomplete { row, .. } => row,
    };
    let at = at.key(row);
    // The path says the row's name already.
    let message = error.to_string();
    let message = message.strip_prefix(&format!("{row}: ")).unwrap_or(&message);
    (!document.has_struck_below(&at)).then(|| document.problem(&at, message))
}
