//! Which price a model has: own rows first, then the built-in catalog, read provider by provider on demand.

use std::{
    collections::HashMap,
    sync::{Arc, LazyLock, OnceLock},
};

use jiff::civil;
use xxhash_rust::xxh3::xxh3_64;

use super::{
    Price,
    rows::{CatalogHeader, ModelRow, OwnRow, PriceError, PriceRow, ProviderRow},
};

/// Each provider and each model is one line of JSON within valid YAML; see `scripts/prices.py`.
const BUILTIN: &str = include_str!("../../../config/prices.yaml");
const CATALOG_LINE: &str = "catalog: ";
const PROVIDER_LINE: &str = "- provider: ";
const MODEL_LINE: &str = "  - ";

/// All known prices. The default one knows none.
#[derive(Debug, Clone, Default)]
pub struct Catalog {
    groups: Arc<[Group]>,
    own: HashMap<Box<str>, OwnRow>,
    revision: Arc<str>,
    date: Box<str>,
}

/// A row of the catalog, for listings.
#[derive(Debug, Clone)]
pub struct Listing {
    /// `provider/model`.
    pub row: String,
    /// The price.
    pub price: Arc<Price>,
    /// The provider's pages that it was read from.
    pub sources: Vec<String>,
}

impl Catalog {
    /// The catalog in the binary. Cheap: providers are read when they are first asked for.
    #[must_use]
    pub fn builtin() -> Arc<Catalog> {
        static CATALOG: LazyLock<Arc<Catalog>> = LazyLock::new(|| Arc::new(Catalog::read(BUILTIN)));
        Arc::clone(&CATALOG)
    }

    /// This catalog with own rows over it, by `provider/model` or `provider/*` as configured.
    ///
    /// # Errors
    /// When a key or a rate cannot be read, or a row has `input` without `output` or the other way round.
    pub fn with_rows(&self, rows: Vec<(String, PriceRow)>) -> Result<Catalog, PriceError> {
        let mut catalog = self.clone();
        let digest = xxh3_64(format!("{rows:?}").as_bytes());
        for (row, fields) in rows {
            if !row.split_once('/').is_some_and(|(provider, model)| !provider.is_empty() && !model.is_empty()) {
                return Err(PriceError::NotAModel(row));
            }
            let own = OwnRow::read(&row, &fields)?;
            if catalog.own.insert(row.as_str().into(), own).is_some() {
                return Err(PriceError::Twice(row));
            }
        }
        if !catalog.own.is_empty() {
            catalog.revision = format!("{}+{:08x}", self.revision, digest as u32).into();
        }
        Ok(catalog)
    }

    /// What the prices are, for the record: `genai-prices 0.2.3`, with a digest of the own rows where there are some.
    #[must_use]
    pub fn revision(&self) -> &Arc<str> {
        &self.revision
    }

    /// The day on which the built-in rows were read, as `2026-11-23`.
    #[must_use]
    pub fn date(&self) -> &str {
        &self.date
    }

    /// The row group (`openai`, `anthropic`, …) of the provider that a base URL belongs to.
    #[must_use]
    pub fn provider_of(&self, base_url: &str) -> Option<&str> {
        let at_start = |group: &&Group| group.provider.api.get().find(base_url).is_some_and(|found| found.start() == 0);
        self.groups.iter().find(at_start).map(|group| &*group.provider.id)
    }

    /// The price of `model` at the configured provider `provider_name`, whose rows in the catalog are those of `group`.
    ///
    /// Own rows come first: `provider/model`, then `provider/*`. Those that hold limits only are laid over the built-in
    /// price. `None` is no price at all: never free.
    #[must_use]
    pub fn find(&self, provider_name: &str, group: Option<&str>, model: &str) -> Option<Arc<Price>> {
        let builtin = || group.and_then(|id| self.find_builtin(id, model));
        let own = [model, "*"].into_iter().find_map(|name| self.own.get(&*format!("{provider_name}/{name}")));
        match own {
            None => builtin(),
            Some(OwnRow { price: Some(price), .. }) => Some(Arc::clone(price)),
            Some(OwnRow { price: None, max_output, context_window }) => {
                Some(builtin()?.with_limits(*max_output, *context_window))
            }
        }
    }

    /// Rows for `name`: `provider/model`, or a model at every provider that has it.
    #[must_use]
    pub fn listings(&self, name: &str) -> Vec<Listing> {
        let own =
            self.own.iter().filter(|(row, _)| &***row == name || row.split_once('/').is_some_and(|(_, m)| m == name));
        let own = own.filter_map(|(row, own)| {
            Some(Listing { row: row.to_string(), price: own.price.clone()?, sources: Vec::new() })
        });
        let mut listings: Vec<Listing> = own.collect();
        let (group, model) = match name.split_once('/') {
            Some((group, model)) if self.group(group).is_some() => (Some(group), model),
            _ => (None, name),
        };
        for candidate in self.groups.iter().filter(|g| group.is_none_or(|id| id == &*g.provider.id)) {
            if let Some(price) = candidate.find_or_vendored(&model.to_lowercase()).and_then(|row| row.price.clone()) {
                let sources = candidate.provider.sources.iter().map(|url| url.to_string()).collect();
                listings.push(Listing { row: price.row().to_owned(), price, sources });
            }
        }
        listings
    }
}

// === the built-in rows ===

/// One provider's rows, as text until the first look-up.
#[derive(Debug)]
struct Group {
    provider: ProviderRow,
    text: &'static str,
    rows: OnceLock<Box<[Row]>>,
}

#[derive(Debug)]
struct Row {
    model: ModelRow,
    /// `None`: known, but not priced by token.
    price: Option<Arc<Price>>,
}

impl Catalog {
    /// Reads the lines of providers; those of models stay text.
    fn read(text: &'static str) -> Catalog {
        let (head, body) = text.split_once("\nproviders:\n").expect("scripts/prices.py writes `providers:`");
        let header =
            head.lines().find_map(|line| line.strip_prefix(CATALOG_LINE)).expect("the header has a catalog line");
        let header: CatalogHeader = serde_json::from_str(header).expect("a test reads the catalog line");
        Catalog {
            groups: body.split(PROVIDER_LINE).skip(1).map(Group::read).collect(),
            own: HashMap::new(),
            revision: format!("{} {}", header.package, header.version).into(),
            date: header.date.into(),
        }
    }

    /// Every built-in price.
    #[cfg(test)]
    pub(super) fn prices(&self) -> Vec<Arc<Price>> {
        self.groups.iter().flat_map(Group::rows).filter_map(|row| row.price.clone()).collect()
    }

    fn group(&self, id: &str) -> Option<&Group> {
        self.groups.iter().find(|group| &*group.provider.id == id)
    }

    fn find_builtin(&self, id: &str, model: &str) -> Option<Arc<Price>> {
        let group = self.group(id)?;
        let model = model.to_lowercase();
        let dashed = dashed_dates(&model);
        [Some(model), dashed].into_iter().flatten().find_map(|name| self.row(group, &name))?.price.clone()
    }

    /// The first row that takes the name, in the provider's group or in those that it falls back to.
    fn row<'a>(&'a self, group: &'a Group, name: &str) -> Option<&'a Row> {
        let others = || group.provider.fallback.iter().filter_map(|id| self.group(id));
        group.find(name).or_else(|| others().find_map(|other| other.find(name)))
    }
}

impl Group {
    fn read(text: &'static str) -> Group {
        let (provider, rows) = text.split_once('\n').unwrap_or((text, ""));
        let provider = serde_json::from_str(provider).expect("a test reads every provider line");
        Group { provider, text: rows, rows: OnceLock::new() }
    }

    /// The first row whose rule takes a lower-case name: the order of rows is part of the data.
    fn find(&self, name: &str) -> Option<&Row> {
        self.rows().iter().find(|row| row.model.matches(name))
    }

    /// Aggregators name models with their vendor: `openai/gpt-4o` is what asking for `gpt-4o` should list.
    fn find_or_vendored(&self, name: &str) -> Option<&Row> {
        let vendored = |row: &&Row| row.model.model.rsplit_once('/').is_some_and(|(_, bare)| bare == name);
        self.find(name).or_else(|| self.rows().iter().find(vendored))
    }

    fn rows(&self) -> &[Row] {
        self.rows.get_or_init(|| {
            self.text.lines().filter_map(|line| line.strip_prefix(MODEL_LINE)).map(|line| self.row(line)).collect()
        })
    }

    fn row(&self, line: &str) -> Row {
        let model: ModelRow = serde_json::from_str(line).expect("a test reads every model line");
        let price = model.price(&self.provider.id).map(Arc::new);
        Row { model, price }
    }
}

/// `gpt-5.2-20251211` as `gpt-5.2-2025-12-11`, which is how providers' own names are dated; `None` when there is no such date.
fn dashed_dates(model: &str) -> Option<String> {
    let mut dashed = String::new();
    for (i, part) in model.split('-').enumerate() {
        if i > 0 {
            dashed.push('-');
        }
        let (word, rest) = part.split_at(part.find(':').unwrap_or(part.len()));
        match word.parse::<u32>() {
            Ok(date) if i > 0 && word.len() == 8 && word.starts_with("20") && is_date(date) => {
                dashed.push_str(&format!("{}-{}-{}", &word[..4], &word[4..6], &word[6..]));
            }
            _ => dashed.push_str(word),
        }
        dashed.push_str(rest);
    }
    (dashed != model).then_some(dashed)
}

/// Whether `yyyymmdd` is a day.
fn is_date(digits: u32) -> bool {
    let [year, month, day] = [digits / 10_000, digits / 100 % 100, digits % 100];
    match (i16::try_from(year), i8::try_from(month), i8::try_from(day)) {
        (Ok(year), Ok(month), Ok(day)) => civil::Date::new(year, month, day).is_ok(),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_built_in_row_can_be_read_and_every_regex_compiles() {
        let catalog = Catalog::builtin();
        let mut rows = 0;
        for group in catalog.groups.iter() {
            group.provider.api.get();
            group.rows().iter().for_each(|row| row.model.check());
            rows += group.rows().len();
        }
        assert_eq!(rows, BUILTIN.lines().filter(|line| line.starts_with(MODEL_LINE)).count());
        assert!(rows > 2000 && catalog.groups.len() > 40, "{rows} rows");
    }

    /// The lines are read as JSON, and editors and people read the file as YAML: both must see the same.
    #[test]
    fn as_yaml_the_catalog_says_the_same() {
        let options = serde_saphyr::options! { budget: None };
        let yaml: serde_json::Value = serde_saphyr::from_str_with_options(BUILTIN, options).unwrap();
        let providers = yaml["providers"].as_array().unwrap();
        let groups = BUILTIN.split(PROVIDER_LINE).skip(1);
        assert_eq!(providers.len(), groups.clone().count());
        for (yaml, text) in providers.iter().zip(groups) {
            let mut lines = text.lines();
            let provider: serde_json::Value = serde_json::from_str(lines.next().unwrap()).unwrap();
            assert_eq!(yaml["provider"], provider);
            let models: Vec<serde_json::Value> =
                lines.filter_map(|l| l.strip_prefix(MODEL_LINE)).map(|l| serde_json::from_str(l).unwrap()).collect();
            assert_eq!(yaml["models"], serde_json::Value::Array(models), "{provider}");
        }
    }

    #[test]
    fn a_compact_date_is_read_as_a_dashed_one() {
        for (model, expected) in [
            ("gpt-5.2-20251211", Some("gpt-5.2-2025-12-11")),
            ("gpt-5.2-20251211:beta", Some("gpt-5.2-2025-12-11:beta")),
            ("gpt-5.2-20251341", None),
            ("20251211", None),
            ("gpt-4o", None),
        ] {
            assert_eq!(dashed_dates(model).as_deref(), expected, "{model}");
        }
    }
}
