//! What the configuration knows and this build does not have yet: refused where calls would go wrong, named where they would not.

use super::{Check, store::EMBEDDED};
use crate::config::{file::File, forms::WordOr};

impl Check<'_, '_, '_> {
    pub(super) fn name_what_is_not_here_yet(&mut self, file: &File) {
        let given_store = file.store.as_ref().is_some_and(|store| store.0 != EMBEDDED);
        let asked = [
            (
                matches!(file.cache, Some(WordOr::Map(_))),
                "cache: the response cache is not available in this build yet; every call goes upstream",
            ),
            (
                file.ledger.wait_replicas.is_some_and(|replicas| replicas > 0) && !given_store,
                "ledger.wait_replicas: the embedded store has no replicas",
            ),
        ];
        self.not_yet.extend(asked.iter().filter(|(asked, _)| *asked).map(|(_, what)| (*what).to_owned()));
    }
}
