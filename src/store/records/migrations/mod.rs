//! The schema's versions, forward and back: SQL files in order, applied at start under the store's own lock.
//!
//! Each version only adds, so that a gateway of the version before goes on working beside it.

/// One step of the schema.
#[derive(Debug, Clone, Copy)]
pub struct Migration {
    /// From 1, without gaps.
    pub version: i64,
    /// What the file is called.
    pub name: &'static str,
    /// Forward.
    pub up: &'static str,
    /// And back.
    pub down: &'static str,
}

/// SQLite's schema.
pub(super) const SQLITE: [Migration; 2] = [
    Migration {
        version: 1,
        name: "calls",
        up: include_str!("sqlite/001_calls.up.sql"),
        down: include_str!("sqlite/001_calls.down.sql"),
    },
    Migration {
        version: 2,
        name: "loop",
        up: include_str!("sqlite/002_loop.up.sql"),
        down: include_str!("sqlite/002_loop.down.sql"),
    },
];

/// PostgreSQL's schema.
pub(super) const POSTGRES: [Migration; 2] = [
    Migration {
        version: 1,
        name: "calls",
        up: include_str!("postgres/001_calls.up.sql"),
        down: include_str!("postgres/001_calls.down.sql"),
    },
    Migration {
        version: 2,
        name: "loop",
        up: include_str!("postgres/002_loop.up.sql"),
        down: include_str!("postgres/002_loop.down.sql"),
    },
];

/// What leads from version `from` to version `to`, in the order in which it is applied. A version that this build does not know
/// stays as it is.
pub(super) fn steps(all: &[Migration], from: i64, to: i64) -> Vec<Step> {
    let up = all.iter().filter(|m| m.version > from && m.version <= to).map(|m| Step { migration: *m, forward: true });
    let down = all.iter().rev().filter(|m| m.version <= from && m.version > to);
    up.chain(down.map(|m| Step { migration: *m, forward: false })).collect()
}

/// One migration in one direction.
#[derive(Debug, Clone, Copy)]
pub(super) struct Step {
    pub(super) migration: Migration,
    pub(super) forward: bool,
}

impl Step {
    pub(super) fn sql(&self) -> &'static str {
        if self.forward { self.migration.up } else { self.migration.down }
    }
}

/// The newest version of `all`.
pub(super) fn newest(all: &[Migration]) -> i64 {
    all.last().map_or(0, |migration| migration.version)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_have_no_gaps_and_steps_lead_there_and_back() {
        let all = [1, 2, 3].map(|version| Migration { version, name: "", up: "up", down: "down" });
        let path = |from, to| steps(&all, from, to).iter().map(|s| (s.migration.version, s.sql())).collect::<Vec<_>>();
        assert_eq!(path(0, 2), [(1, "up"), (2, "up")]);
        assert_eq!(path(3, 1), [(3, "down"), (2, "down")]);
        assert_eq!(path(2, 2), []);
        assert_eq!(path(9, 3), [], "what a newer build made is left alone");
        for all in [SQLITE, POSTGRES] {
            assert!(all.iter().zip(1..).all(|(migration, version)| migration.version == version));
        }
    }
}
