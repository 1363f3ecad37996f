//! The registry's book in a directory: a file a revision, the greatest number being live.
//!
//! A revision is written beside, synced and renamed, and the directory synced: one rename makes it live, and a crash leaves the one
//! before. Only the process that holds the data directory's lock writes; within it, one push at a time.

use std::{
    fs,
    io::{self, Write},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use super::{
    create_private_dir,
    ports::{Answer, BOOKS_KEPT, BookStore, PushOutcome, StoreError},
    private_file,
};
use crate::wire::revision::{Head, Revision};

/// The book of one data directory.
#[derive(Debug, Clone)]
pub struct BookFiles {
    dir: Arc<PathBuf>,
    writing: Arc<Mutex<()>>,
}

impl BookFiles {
    /// `registry/` in `data_dir`; made with the first push. Who pushes holds the lock of `data_dir`.
    #[must_use]
    pub fn in_dir(data_dir: &Path) -> BookFiles {
        BookFiles { dir: Arc::new(data_dir.join("registry")), writing: Arc::default() }
    }

    fn newest(&self) -> Result<Option<Revision>, StoreError> {
        match self.numbers()?.last() {
            Some(number) => self.read(*number),
            None => Ok(None),
        }
    }

    /// The revisions that are there, the oldest first.
    fn numbers(&self) -> Result<Vec<u64>, StoreError> {
        let entries = match fs::read_dir(&*self.dir) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(self.unavailable(&error)),
        };
        let number = |entry: io::Result<fs::DirEntry>| {
            entry.ok()?.file_name().to_str()?.strip_suffix(".json")?.parse::<u64>().ok()
        };
        let mut numbers: Vec<u64> = entries.filter_map(number).collect();
        numbers.sort_unstable();
        Ok(numbers)
    }

    fn read(&self, number: u64) -> Result<Option<Revision>, StoreError> {
        let path = self.path_of(number);
        let text = match fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(self.unavailable(&error)),
        };
        let damaged = |what: &str| StoreError::Damaged(format!("{} {what}", path.display()));
        match Revision::parse(text.trim_end()) {
            Ok(revision) if revision.number == number => Ok(Some(revision)),
            Ok(_) => Err(damaged("holds another revision")),
            Err(error) => Err(damaged(&error.to_string())),
        }
    }

    fn push_now(&self, base: Option<&Head>, revision: &Revision) -> Result<PushOutcome, StoreError> {
        let _writing = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        let head = self.newest()?.map(|newest| newest.head());
        if head.as_ref() != base {
            return Ok(PushOutcome::Stale(head));
        }
        self.write(revision).map_err(|error| self.unavailable(&error))?;
        self.forget_before(revision.number.saturating_sub(BOOKS_KEPT));
        Ok(PushOutcome::Pushed)
    }

    fn write(&self, revision: &Revision) -> io::Result<()> {
        create_private_dir(&self.dir)?;
        let draft = self.dir.join("draft");
        let mut file = private_file().truncate(true).open(&draft)?;
        writeln!(file, "{}", revision.to_json())?;
        file.sync_all()?;
        fs::rename(&draft, self.path_of(revision.number))?;
        fs::File::open(&*self.dir)?.sync_all()
    }

    /// What cannot be deleted stays, and is tried again with the next push.
    fn forget_before(&self, oldest_gone: u64) {
        let outdated = self.numbers().unwrap_or_default().into_iter().take_while(|number| *number <= oldest_gone);
        for number in outdated {
            let _ = fs::remove_file(self.path_of(number));
        }
    }

    fn path_of(&self, number: u64) -> PathBuf {
        self.dir.join(format!("{number}.json"))
    }

    fn unavailable(&self, error: &io::Error) -> StoreError {
        StoreError::Unavailable(format!("{}: {error}", self.dir.display()))
    }

    /// Off the runtime: it is a disk.
    fn off_the_runtime<T: Send + 'static>(
        &self,
        work: impl FnOnce(&BookFiles) -> Result<T, StoreError> + Send + 'static,
    ) -> Answer<'_, T> {
        let files = self.clone();
        Box::pin(async move {
            let cancelled = |_| Err(StoreError::Unavailable("the registry's work was cancelled".to_owned()));
            tokio::task::spawn_blocking(move || work(&files)).await.unwrap_or_else(cancelled)
        })
    }
}

impl BookStore for BookFiles {
    fn head(&self) -> Answer<'_, Option<Head>> {
        self.off_the_runtime(|files| Ok(files.newest()?.map(|newest| newest.head())))
    }

    fn revision(&self, number: u64) -> Answer<'_, Option<Revision>> {
        self.off_the_runtime(move |files| files.read(number))
    }

    fn push(&self, base: Option<Head>, revision: Revision) -> Answer<'_, PushOutcome> {
        self.off_the_runtime(move |files| files.push_now(base.as_ref(), &revision))
    }

    fn history(&self, newest: u64, count: u64) -> Answer<'_, Vec<Revision>> {
        self.off_the_runtime(move |files| {
            let numbers = files.numbers()?.into_iter().rev().filter(|number| *number <= newest);
            let wanted = numbers.take(usize::try_from(count).unwrap_or(usize::MAX));
            Ok(wanted.filter_map(|number| files.read(number).ok().flatten()).collect())
        })
    }
}

/// What every store of a book does.
#[cfg(test)]
pub(super) mod contract {
    use super::*;
    use crate::wire::revision::sha256;

    pub(crate) fn revision(number: u64, text: &str) -> Revision {
        Revision {
            number,
            sha256: sha256(text),
            name: "registry".to_owned(),
            text: text.to_owned(),
            author: "ann".to_owned(),
            at: "2026-11-23T20:00:00Z".parse().unwrap(),
            message: "why".to_owned(),
            parent: number.checked_sub(1).filter(|parent| *parent > 0),
        }
    }

    /// Runs the whole contract on an empty store.
    pub(crate) async fn holds(store: &dyn BookStore) {
        assert_eq!(store.head().await.unwrap(), None);
        assert_eq!(store.revision(1).await.unwrap(), None);
        assert_eq!(store.history(9, 9).await.unwrap(), []);

        let first = revision(1, "{}");
        assert_eq!(store.push(None, first.clone()).await.unwrap(), PushOutcome::Pushed);
        assert_eq!(store.head().await.unwrap(), Some(first.head()));
        assert_eq!(store.revision(1).await.unwrap(), Some(first.clone()));

        let rival = revision(1, "{\"rival\":1}");
        assert_eq!(store.push(None, rival.clone()).await.unwrap(), PushOutcome::Stale(Some(first.head())));
        let stale = store.push(Some(rival.head()), revision(2, "{}")).await.unwrap();
        assert_eq!(stale, PushOutcome::Stale(Some(first.head())));
        assert_eq!(store.revision(2).await.unwrap(), None);

        let mut last = first;
        for number in 2..=BOOKS_KEPT + 3 {
            let next = revision(number, &format!("{{\"n\":{number}}}"));
            assert_eq!(store.push(Some(last.head()), next.clone()).await.unwrap(), PushOutcome::Pushed);
            last = next;
        }
        assert_eq!(store.head().await.unwrap(), Some(last.head()));
        let numbers = |revisions: Vec<Revision>| revisions.into_iter().map(|one| one.number).collect::<Vec<_>>();
        assert_eq!(numbers(store.history(last.number, 2).await.unwrap()), [last.number, last.number - 1]);
        assert_eq!(store.revision(3).await.unwrap(), None, "the oldest ones went");
        assert_eq!(store.revision(4).await.unwrap().map(|one| one.number), Some(4));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn files_keep_the_contract() {
        let dir = tempfile::tempdir().unwrap();
        contract::holds(&BookFiles::in_dir(dir.path())).await;
        assert!(BookFiles::in_dir(dir.path()).head().await.unwrap().is_some(), "another start reads it");
    }

    #[tokio::test]
    async fn of_pushes_at_the_same_time_one_wins() {
        let dir = tempfile::tempdir().unwrap();
        let files = BookFiles::in_dir(dir.path());
        let push = |text: &str| files.push(None, contract::revision(1, text));
        let (one, other) = tokio::join!(push("{}"), push("{\"n\":1}"));
        let pushed = [one.unwrap(), other.unwrap()].iter().filter(|outcome| **outcome == PushOutcome::Pushed).count();
        assert_eq!(pushed, 1);
    }

    #[tokio::test]
    async fn a_damaged_revision_is_named_and_a_half_written_one_never_was() {
        let dir = tempfile::tempdir().unwrap();
        let files = BookFiles::in_dir(dir.path());
        files.push(None, contract::revision(1, "{}")).await.unwrap();
        fs::write(dir.path().join("registry/draft"), "{\"rev").unwrap();
        assert_eq!(files.head().await.unwrap().map(|head| head.number), Some(1));
        fs::write(dir.path().join("registry/1.json"), "{}").unwrap();
        assert!(matches!(files.head().await, Err(StoreError::Damaged(why)) if why.contains("1.json")));
    }
}
