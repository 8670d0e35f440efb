//! Receiving a snapshot: bytes in the order of the manifest, each file checked as it ends, all synced before it counts.

use std::{
    fs::File,
    io::{self, Write as _},
    path::PathBuf,
};

use super::{INCOMING, SnapshotHandle, SnapshotStore, check_manifest};
use crate::{
    pb::pflex::mdm::raft::v1 as pb,
    raft::{durable, error::StoreError},
};

/// Why a snapshot was not taken.
#[derive(Debug, thiserror::Error)]
pub(in crate::raft) enum ReceiveError {
    #[error("the manifest is refused: {0}")]
    Manifest(&'static str),
    #[error("bytes of file {file} at {offset} came out of order")]
    Order { file: u32, offset: u64 },
    #[error("file {0} is longer than the manifest says, or does not have its checksum")]
    File(String),
    #[error("the stream ended {0} files early")]
    Short(usize),
    #[error("cannot write the snapshot")]
    Io(#[from] io::Error),
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// A snapshot on its way in. Dropped before `finish`, its directory goes.
pub(in crate::raft) struct Incoming {
    path: PathBuf,
    manifest: pb::SnapshotManifest,
    at: usize,
    open: Option<Partial>,
    finished: bool,
}

struct Partial {
    file: File,
    size: u64,
    crc: u32,
}

impl Incoming {
    pub(in crate::raft) fn begin(store: &SnapshotStore, manifest: pb::SnapshotManifest) -> Result<Self, ReceiveError> {
        check_manifest(&manifest, store.cluster).map_err(ReceiveError::Manifest)?;
        let path = store.unused(INCOMING);
        durable::make_dir(&path)?;
        let mut incoming = Self { path, manifest, at: 0, open: None, finished: false };
        incoming.take_empty_files()?;
        Ok(incoming)
    }

    /// Takes the next bytes. Blocks on the disk.
    pub(in crate::raft) fn write(&mut self, part: &pb::FileBytes) -> Result<(), ReceiveError> {
        let out_of_order = ReceiveError::Order { file: part.file, offset: part.offset };
        let Some(expected) = self.manifest.files.get(self.at) else { return Err(out_of_order) };
        let mut partial = match self.open.take() {
            Some(partial) => partial,
            None => Partial { file: File::create_new(self.path.join(&expected.name))?, size: 0, crc: 0 },
        };
        if part.file as usize != self.at || part.offset != partial.size {
            return Err(out_of_order);
        }
        partial.size += part.data.len() as u64;
        partial.crc = crc32c::crc32c_append(partial.crc, &part.data);
        if partial.size > expected.size {
            return Err(ReceiveError::File(expected.name.clone()));
        }
        partial.file.write_all(&part.data)?;
        if partial.size < expected.size {
            self.open = Some(partial);
            return Ok(());
        }
        if partial.crc != expected.crc32c {
            return Err(ReceiveError::File(expected.name.clone()));
        }
        self.at += 1;
        self.take_empty_files()
    }

    /// Files without bytes have no part of their own.
    fn take_empty_files(&mut self) -> Result<(), ReceiveError> {
        while let Some(file) = self.manifest.files.get(self.at).filter(|file| file.size == 0) {
            File::create_new(self.path.join(&file.name))?;
            self.at += 1;
        }
        Ok(())
    }

    /// Makes it a snapshot: complete, synced, sealed.
    pub(in crate::raft) fn finish(mut self) -> Result<SnapshotHandle, ReceiveError> {
        let missing = self.manifest.files.len() - self.at;
        if missing > 0 {
            return Err(ReceiveError::Short(missing));
        }
        durable::sync_files(&self.path)?;
        let handle = SnapshotHandle::seal(self.path.clone(), std::mem::take(&mut self.manifest))?;
        // From here the handle owns the directory.
        self.finished = true;
        Ok(handle)
    }
}

impl Drop for Incoming {
    fn drop(&mut self) {
        if !self.finished
            && let Err(error) = durable::remove_dir(&self.path)
        {
            tracing::warn!(path = %self.path.display(), "cannot remove a partial snapshot: {error}");
        }
    }
}

#[cfg(test)]
mod tests {
    use pflex_proto::ids::ClusterId;

    use super::*;
    use crate::raft::snapshot::FORMAT;

    fn store(dir: &std::path::Path) -> SnapshotStore {
        SnapshotStore::create(dir).unwrap();
        SnapshotStore::open(dir, ClusterId::default()).unwrap()
    }

    fn manifest(files: &[(&str, &[u8])]) -> pb::SnapshotManifest {
        let file = |(name, bytes): &(&str, &[u8])| pb::SnapshotFile {
            name: (*name).into(),
            size: bytes.len() as u64,
            crc32c: crc32c::crc32c(bytes),
        };
        pb::SnapshotManifest {
            format: FORMAT,
            cluster: vec![0; 16],
            last_log: Some(pb::LogId { term: 1, index: 9 }),
            membership: None,
            files: files.iter().map(file).collect(),
        }
    }

    fn bytes(file: u32, offset: u64, data: &[u8]) -> pb::FileBytes {
        pb::FileBytes { file, offset, data: data.into() }
    }

    fn left_over(dir: &std::path::Path) -> usize {
        std::fs::read_dir(dir.join("snapshots")).unwrap().count()
    }

    #[test]
    fn what_comes_whole_is_kept_once_installed() {
        let dir = tempfile::tempdir().unwrap();
        let store = store(dir.path());
        let mut incoming =
            Incoming::begin(&store, manifest(&[("empty", b""), ("a.sst", b"abcd"), ("CURRENT", b"x")])).unwrap();
        incoming.write(&bytes(1, 0, b"ab")).unwrap();
        incoming.write(&bytes(1, 2, b"cd")).unwrap();
        incoming.write(&bytes(2, 0, b"x")).unwrap();
        let handle = incoming.finish().unwrap();
        assert!(store.current().is_none(), "received is not installed");
        store.adopt(&handle).unwrap();
        drop((handle, store));
        let found = SnapshotStore::open(dir.path(), ClusterId::default()).unwrap().current().unwrap();
        assert_eq!(std::fs::read(found.path().join("a.sst")).unwrap(), b"abcd");
        assert_eq!(found.last_log().unwrap().index, 9);
    }

    #[test]
    fn what_is_received_and_not_installed_is_forgotten() {
        let dir = tempfile::tempdir().unwrap();
        let store = store(dir.path());
        let incoming = Incoming::begin(&store, manifest(&[])).unwrap();
        std::mem::forget(incoming.finish().unwrap());
        assert_eq!(left_over(dir.path()), 1);
        assert!(SnapshotStore::open(dir.path(), ClusterId::default()).unwrap().current().is_none());
        assert_eq!(left_over(dir.path()), 0);
    }

    #[test]
    fn damage_disorder_and_ends_are_refused_and_leave_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let store = store(dir.path());
        let begin = || Incoming::begin(&store, manifest(&[("a", b"abcd"), ("b", b"ef")])).unwrap();
        assert!(matches!(begin().write(&bytes(0, 0, b"abcx")), Err(ReceiveError::File(_))));
        assert!(matches!(begin().write(&bytes(0, 0, b"abcde")), Err(ReceiveError::File(_))));
        assert!(matches!(begin().write(&bytes(0, 1, b"b")), Err(ReceiveError::Order { .. })));
        assert!(matches!(begin().write(&bytes(1, 0, b"ef")), Err(ReceiveError::Order { .. })));
        let mut short = begin();
        short.write(&bytes(0, 0, b"abcd")).unwrap();
        assert!(matches!(short.finish(), Err(ReceiveError::Short(1))));
        assert_eq!(left_over(dir.path()), 0);
    }

    #[test]
    fn names_that_leave_the_directory_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let store = store(dir.path());
        for name in ["", "..", "../x", "/etc/passwd", "a/b", ".hidden", "SNAPSHOT", "a\0"] {
            let refused = Incoming::begin(&store, manifest(&[(name, b"x")]));
            assert!(matches!(refused, Err(ReceiveError::Manifest(_))), "{name:?}");
        }
        assert!(matches!(Incoming::begin(&store, manifest(&[("a", b""), ("a", b"")])), Err(ReceiveError::Manifest(_))));
        assert_eq!(left_over(dir.path()), 0);
    }
}
