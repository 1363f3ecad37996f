//! Ports named by their consumer, and their implementations.
//!
//! - [`audit`]: who changed what, in a chain of hashes.
//! - [`ports`]: what the ledger's runtime asks of an authority.
//! - [`books`]: the registry's book in local files.
//! - [`embedded`]: an authority in a local SQLite file.
//! - [`keys`]: virtual keys that were created at run time.
//! - [`redis`]: an authority on Redis, for many processes.
//! - [`records`]: the call log.
//! - [`journal`]: what this process reserved and settled, exact after it was killed.

pub mod audit;
pub mod books;
pub mod embedded;
pub mod journal;
pub mod keys;
pub mod ports;
pub mod records;
pub mod redis;

use std::{
    fs::{DirBuilder, File, OpenOptions, TryLockError},
    io,
    path::{Path, PathBuf},
};

use ports::StoreError;

/// A data directory that only this process uses: locked until the last clone of its `Arc` is gone.
#[derive(Debug)]
pub struct DataDir {
    path: PathBuf,
    /// Holds the lock; the system releases it even when the process is killed.
    _lock: File,
}

impl DataDir {
    /// Creates (for this user only, mode 0700) and locks a data directory.
    ///
    /// # Errors
    /// [`StoreError::Locked`] when another process uses it, [`StoreError::Unavailable`] when it cannot be created.
    pub fn open(path: &Path) -> Result<DataDir, StoreError> {
        let failed = |error: io::Error| StoreError::Unavailable(format!("{}: {error}", path.display()));
        create_private_dir(path).map_err(failed)?;
        let lock = private_file().open(path.join("ledger.lock")).map_err(failed)?;
        match lock.try_lock() {
            Ok(()) => Ok(DataDir { path: path.to_owned(), _lock: lock }),
            Err(TryLockError::WouldBlock) => Err(StoreError::Locked(path.to_owned())),
            Err(TryLockError::Error(error)) => Err(failed(error)),
        }
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }
}

fn create_private_dir(path: &Path) -> io::Result<()> {
    let mut dir = DirBuilder::new();
    dir.recursive(true);
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut dir, 0o700);
    dir.create(path)
}

/// How files of ours are opened: read and write, created for this user only.
fn private_file() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    options
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_owner_of_a_data_directory_is_refused_by_name() {
        let dir = tempfile::tempdir().unwrap();
        let first = DataDir::open(dir.path()).unwrap();
        let refused = DataDir::open(dir.path()).unwrap_err();
        assert!(refused.to_string().contains("another process"), "{refused}");
        drop(first);
        assert!(DataDir::open(dir.path()).is_ok());
    }

    #[cfg(unix)]
    #[test]
    fn what_is_created_is_for_this_user_only() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a/b");
        let _open = DataDir::open(&path).unwrap();
        let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(&path), 0o700);
        assert_eq!(mode(&path.join("ledger.lock")), 0o600);
    }
}
