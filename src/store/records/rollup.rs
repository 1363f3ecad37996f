//! The sums that a batch of calls adds: by minute, by hour, and by hour and day for each combination of values.
//!
//! Queries over a dimension read the sums by minute or hour. Those that cross dimensions read the combinations ("cube"), of which
//! there are at most as many as calls and usually far fewer. Of users, who may be many, there are sums by day alone.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use super::ports::{Dimension, Entry, Figures};
use crate::record::CallRow;

/// Milliseconds of a minute.
pub(super) const MINUTE_MS: u64 = 60_000;
/// Milliseconds of an hour.
pub(super) const HOUR_MS: u64 = 60 * MINUTE_MS;
/// Milliseconds of a day; days are those of UTC.
pub(super) const DAY_MS: u64 = 24 * HOUR_MS;
/// Sums by minute are kept so long; for a look at a minute further back, calls are read.
pub(super) const MINUTES_KEPT_MS: u64 = 25 * HOUR_MS;
/// The name of the dimension in which all calls are one.
pub(super) const ALL: &str = "";

/// What a combination is of.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Values {
    pub(super) model: Arc<str>,
    pub(super) team: Arc<str>,
    pub(super) key: Arc<str>,
    pub(super) provider: Arc<str>,
    /// `experiment=variant`, several with commas between.
    pub(super) variant: Arc<str>,
    pub(super) outcome: &'static str,
}

/// One row of sums over one dimension.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct RollupKey {
    pub(super) dimension: &'static str,
    /// A minute, an hour or a day, in milliseconds.
    pub(super) width_ms: u64,
    /// When it begins.
    pub(super) bucket_ms: u64,
    pub(super) value: Arc<str>,
}

/// Which combination's row.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct CubeKey {
    /// An hour or a day, in milliseconds.
    pub(super) width_ms: u64,
    /// When it begins.
    pub(super) bucket_ms: u64,
    pub(super) values: Values,
}

/// What a batch adds, in the order of the keys: writers that lock rows in one order cannot block each other.
#[derive(Debug, Default)]
pub(super) struct Deltas {
    pub(super) rollups: BTreeMap<RollupKey, Figures>,
    pub(super) cube: BTreeMap<CubeKey, Figures>,
}

impl Deltas {
    /// The sums of calls that are new. Minutes that ended before `minutes_from_ms` are left out.
    pub(super) fn of<'e>(entries: impl Iterator<Item = &'e Entry>, minutes_from_ms: u64) -> Deltas {
        let mut deltas = Deltas::default();
        let mut by_minute: HashMap<(u64, Values), Figures> = HashMap::new();
        for Entry { row, .. } in entries {
            let minute = row.received_ms / MINUTE_MS * MINUTE_MS;
            let call = row.into();
            by_minute.entry((minute, Values::of(row))).or_default().add(&call);
            deltas.rollups.entry(of_user(row)).or_default().add(&call);
        }
        for ((minute, values), figures) in by_minute {
            deltas.add(minute, values, &figures, minutes_from_ms);
        }
        deltas
    }

    fn add(&mut self, minute: u64, values: Values, figures: &Figures, minutes_from_ms: u64) {
        let hour = minute / HOUR_MS * HOUR_MS;
        for (dimension, value) in values.by_dimension() {
            let mut add = |width_ms, bucket_ms| {
                let key = RollupKey { dimension, width_ms, bucket_ms, value: value.clone() };
                self.rollups.entry(key).or_default().merge(figures);
            };
            add(HOUR_MS, hour);
            if minute >= minutes_from_ms {
                add(MINUTE_MS, minute);
            }
        }
        let day = CubeKey { width_ms: DAY_MS, bucket_ms: minute / DAY_MS * DAY_MS, values: values.clone() };
        self.cube.entry(day).or_default().merge(figures);
        let hour = CubeKey { width_ms: HOUR_MS, bucket_ms: hour, values };
        self.cube.entry(hour).or_default().merge(figures);
    }
}

fn of_user(row: &CallRow) -> RollupKey {
    RollupKey {
        dimension: Dimension::User.label(),
        width_ms: DAY_MS,
        bucket_ms: row.received_ms / DAY_MS * DAY_MS,
        value: row.user.clone(),
    }
}

impl Values {
    fn of(row: &CallRow) -> Values {
        let nothing = || Arc::from("");
        let variant = match row.variants.as_slice() {
            [] => nothing(),
            several => several.iter().map(variant_label).collect::<Vec<String>>().join(",").into(),
        };
        Values {
            model: row.model.clone(),
            team: row.team.clone().unwrap_or_else(nothing),
            key: row.key.clone(),
            provider: row.provider.clone(),
            variant,
            outcome: row.outcome.label(),
        }
    }

    /// Each dimension with the value to count under; of variants as many as there are.
    fn by_dimension(&self) -> Vec<(&'static str, Arc<str>)> {
        let mut all = vec![
            (ALL, Arc::from("")),
            (Dimension::Model.label(), self.model.clone()),
            (Dimension::Team.label(), self.team.clone()),
            (Dimension::Key.label(), self.key.clone()),
            (Dimension::Provider.label(), self.provider.clone()),
            (Dimension::Outcome.label(), Arc::from(self.outcome)),
        ];
        let variants = self.variant.split(',').filter(|variant| !variant.is_empty());
        all.extend(variants.map(|variant| (Dimension::Variant.label(), Arc::from(variant))));
        all
    }
}

/// A variant as a value: names hold neither `=` nor `,`.
pub(super) fn variant_label(assigned: &crate::record::Assigned) -> String {
    format!("{}={}", assigned.experiment, assigned.variant)
}
