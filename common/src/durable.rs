//! Durable small files: the one place that knows which fsync comes before which.

use std::{
    fs::{self, File},
    io::{self, Write},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
};

/// Why a file could not be made durable, with the path that the system's own message lacks.
#[derive(Debug, thiserror::Error)]
#[error("cannot {what} {path}")]
pub struct DurableError {
    what: &'static str,
    path: PathBuf,
    #[source]
    source: io::Error,
}

impl DurableError {
    fn at<'a>(what: &'static str, path: &'a Path) -> impl FnOnce(io::Error) -> Self + 'a {
        move |source| Self { what, path: path.to_owned(), source }
    }

    /// The system's error.
    pub const fn io(&self) -> &io::Error {
        &self.source
    }
}

/// Replaces `path` with `content`: after a crash it has either all of the old content or all of the new.
///
/// The order: write and sync a temporary file beside it (content before name), rename it over (atomic in POSIX), sync the
/// directory (the rename itself).
///
/// # Errors
/// Any of the steps; the old file is intact then.
pub fn replace(path: &Path, content: &[u8]) -> Result<(), DurableError> {
    replace_as(path, content, File::options().write(true).create(true).truncate(true))
}

/// The same for what nobody else may read: the file is its owner's alone (0600) from the moment that it exists.
///
/// # Errors
/// As [`replace`].
pub fn replace_private(path: &Path, content: &[u8]) -> Result<(), DurableError> {
    // One that a crash left may have other rights.
    let _ = fs::remove_file(path.with_extension("tmp"));
    replace_as(path, content, File::options().write(true).create_new(true).mode(0o600))
}

fn replace_as(path: &Path, content: &[u8], options: &fs::OpenOptions) -> Result<(), DurableError> {
    let temporary = path.with_extension("tmp");
    let written = options.open(&temporary).and_then(|mut file| {
        file.write_all(content)?;
        file.sync_all()
    });
    written.map_err(DurableError::at("write", &temporary))?;
    fs::rename(&temporary, path).map_err(DurableError::at("rename into", path))?;
    sync_parent(path)
}

/// The content of `path`; none if it does not exist.
///
/// # Errors
/// When it exists and cannot be read.
pub fn read_if_exists(path: &Path) -> Result<Option<Vec<u8>>, DurableError> {
    match fs::read(path) {
        Ok(content) => Ok(Some(content)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(DurableError::at("read", path)(error)),
    }
}

/// Creates a directory and its parents, durably.
///
/// # Errors
/// When one cannot be created or synced.
pub fn create_dir(path: &Path) -> Result<(), DurableError> {
    fs::create_dir_all(path).map_err(DurableError::at("create", path))?;
    sync_parent(path)
}

/// Makes a creation, rename or removal in the parent of `path` durable.
///
/// # Errors
/// When the directory cannot be synced.
pub fn sync_parent(path: &Path) -> Result<(), DurableError> {
    let parent = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    File::open(parent).and_then(|dir| dir.sync_all()).map_err(DurableError::at("sync", parent))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_replaced_whole() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("counter");
        assert!(read_if_exists(&path).unwrap().is_none());
        replace(&path, b"1").unwrap();
        replace(&path, b"22").unwrap();
        assert_eq!(read_if_exists(&path).unwrap().as_deref(), Some(&b"22"[..]));
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "no temporary file is left");
    }

    #[test]
    fn what_is_private_is_its_owners_alone_whatever_a_crash_left() {
        use std::os::unix::fs::PermissionsExt as _;
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("tokens");
        fs::write(path.with_extension("tmp"), b"left").unwrap();
        replace_private(&path, b"1").unwrap();
        replace_private(&path, b"2").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"2");
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    }

    #[test]
    fn an_error_names_the_path() {
        let error = replace(Path::new("/nonexistent-directory/x"), b"").unwrap_err();
        assert_eq!(error.to_string(), "cannot write /nonexistent-directory/x.tmp");
    }
}
