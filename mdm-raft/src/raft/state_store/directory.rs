//! Which of the `state-*` directories is the live one: `CURRENT_STATE`, flipped atomically when a snapshot is installed.

use std::{fs, path::Path};

use crate::raft::{durable, error::StoreError};

const POINTER: &str = "CURRENT_STATE";
const PREFIX: &str = "state-";
pub(super) const FIRST: &str = "state-0000000001";

/// The live directory's name.
pub(super) fn current(dir: &Path) -> Result<String, StoreError> {
    let path = dir.join(POINTER);
    let text = fs::read_to_string(&path)
        .map_err(|error| StoreError::Damaged { path: path.clone(), what: format!("it cannot be read: {error}") })?;
    // Line one is the name, line two its checksum: a torn pointer must not name an old directory.
    let name = text.split_once('\n').filter(|(name, crc)| *crc == checksum(name)).map(|(name, _)| name.to_owned());
    match name.filter(|name| number(name).is_some()) {
        Some(name) => Ok(name),
        None => Err(StoreError::Damaged { path, what: "it is not what was written".into() }),
    }
}

/// Makes `name` the live one. Durable when it returns.
pub(super) fn set_current(dir: &Path, name: &str) -> Result<(), StoreError> {
    let path = dir.join(POINTER);
    durable::write_file(&path, format!("{name}\n{}", checksum(name)).as_bytes()).map_err(StoreError::io("write", path))
}

/// The name for the directory after `name`.
pub(super) fn next(name: &str) -> String {
    let next = number(name).unwrap_or(0) + 1;
    format!("{PREFIX}{next:010}")
}

/// Removes the directories of installs that did not finish, and of states that were replaced.
pub(super) fn remove_others(dir: &Path, live: &str) -> Result<(), StoreError> {
    for name in durable::names(dir, PREFIX).map_err(StoreError::io("list", dir))? {
        if name != live {
            let path = dir.join(name);
            durable::remove_dir(&path).map_err(StoreError::io("remove", path))?;
        }
    }
    Ok(())
}

pub(super) fn clear(dir: &Path) -> Result<(), StoreError> {
    remove_others(dir, "")
}

fn number(name: &str) -> Option<u64> {
    name.strip_prefix(PREFIX)?.parse().ok()
}

fn checksum(name: &str) -> String {
    format!("{:08x}\n", crc32c::crc32c(name.as_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pointer_is_whole_or_refused() {
        let dir = tempfile::tempdir().unwrap();
        assert!(matches!(current(dir.path()), Err(StoreError::Damaged { .. })));
        set_current(dir.path(), FIRST).unwrap();
        assert_eq!(current(dir.path()).unwrap(), FIRST);
        assert_eq!(next(FIRST), "state-0000000002");

        let path = dir.path().join(POINTER);
        let text = fs::read(&path).unwrap();
        for length in 0..text.len() {
            fs::write(&path, &text[..length]).unwrap();
            assert!(current(dir.path()).is_err(), "a pointer of {length} bytes was believed");
        }
    }
}
