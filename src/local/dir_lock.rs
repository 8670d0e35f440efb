//! One `up` or `down` at a time per directory, and who made the directory.

use std::{
    fs::{self, File, OpenOptions, TryLockError},
    path::{Path, PathBuf},
};

use crate::error::{Exit, Failure};

const FILE: &str = "lock";

/// Held while processes of the directory are started or stopped.
#[derive(Debug)]
pub(super) struct DirLock {
    dir: PathBuf,
    created: bool,
    _file: File,
}

impl DirLock {
    /// Makes the directory if there is none, and locks it.
    pub(super) fn take(dir: &Path) -> Result<Self, Failure> {
        let created = !dir.exists();
        fs::create_dir_all(dir).map_err(|error| Failure::io(format!("create {}", dir.display()), error))?;
        Self::lock(dir, created).inspect_err(|_| {
            if created {
                drop(fs::remove_dir(dir));
            }
        })
    }

    fn lock(dir: &Path, created: bool) -> Result<Self, Failure> {
        let path = dir.join(FILE);
        let failed = |error| Failure::io(format!("lock {}", path.display()), error);
        let file = OpenOptions::new().write(true).create(true).truncate(false).open(&path).map_err(failed)?;
        match file.try_lock() {
            Ok(()) => Ok(Self { dir: dir.to_owned(), created, _file: file }),
            Err(TryLockError::WouldBlock) => {
                Err(Failure::new(Exit::Conflict, format!("another `pflex up` or `down` works on {}", dir.display()))
                    .remedy("wait until it is done"))
            }
            Err(TryLockError::Error(error)) => Err(failed(error)),
        }
    }

    /// Takes the lock file away, and the directory if this lock made it and nothing else is in it.
    pub(super) fn undo(self) {
        drop(fs::remove_file(self.dir.join(FILE)));
        if self.created {
            drop(fs::remove_dir(&self.dir));
        }
    }

    /// Takes the lock file away, and the directory if nothing else is in it.
    pub(super) fn wipe(mut self) {
        self.created = true;
        self.undo();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_one_at_a_time() {
        let parent = tempfile::tempdir().unwrap();
        let dir = parent.path().join("cluster");
        let first = DirLock::take(&dir).unwrap();
        assert_eq!(DirLock::take(&dir).unwrap_err().exit(), Exit::Conflict);
        first.undo();
        assert!(!dir.exists(), "a directory made for nothing is gone");
    }

    #[test]
    fn a_directory_of_others_stays() {
        let dir = tempfile::tempdir().unwrap();
        DirLock::take(dir.path()).unwrap().undo();
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}
