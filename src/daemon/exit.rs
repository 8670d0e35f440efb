//! A daemon's last error: one line with all its causes, and the exit status that tells a caller such as `up` what kind of
//! trouble it is.

use std::{error::Error, io};

use pflex_common::net::ListenError;
use pflex_mdm::{
    daemon::DaemonError as MdmError,
    raft::{OpenError as MdmOpenError, StoreError as MdmStoreError},
};
use pflex_sdc::daemon::SdcError;
use pflex_sds::{daemon::SdsError, store::OpenError as DeviceError};

use crate::error::{Exit, Failure};

/// In a log there is no `-v` to ask again with, so the line has the whole chain.
pub(super) fn ended(who: &str, error: &(dyn Error + 'static)) -> Failure {
    let mut line = format!("{who}: {error}");
    let mut exit = Exit::Failed;
    let mut next = Some(error);
    while let Some(cause) = next {
        exit = if exit == Exit::Failed { status_of(cause) } else { exit };
        let text = cause.to_string();
        // A transparent error says what its cause says.
        if !line.contains(&text) {
            line = format!("{line}: {text}");
        }
        next = cause.source();
    }
    Failure::new(exit, line)
}

/// Errors that a person can act on; everything else just failed.
fn status_of(error: &(dyn Error + 'static)) -> Exit {
    if let Some(error) = error.downcast_ref::<io::Error>() {
        return match error.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::AddrInUse => Exit::Conflict,
            io::ErrorKind::PermissionDenied => Exit::NotAllowed,
            _ => Exit::Failed,
        };
    }
    let conflict = if let Some(error) = error.downcast_ref::<MdmError>() {
        mdm_conflict(error)
    } else if let Some(error) = error.downcast_ref::<SdcError>() {
        matches!(
            error,
            SdcError::OtherCluster { .. } | SdcError::Superseded { .. } | SdcError::Listen(ListenError::Taken { .. })
        )
    } else if let Some(error) = error.downcast_ref::<SdsError>() {
        matches!(
            error,
            SdsError::OtherCluster { .. } | SdsError::Superseded { .. } | SdsError::Listen(ListenError::Taken { .. })
        )
    } else if let Some(error) = error.downcast_ref::<DeviceError>() {
        device_conflict(error)
    } else {
        matches!(error.downcast_ref(), Some(ListenError::Taken { .. }))
    };
    if conflict { Exit::Conflict } else { Exit::Failed }
}

fn device_conflict(error: &DeviceError) -> bool {
    match error {
        DeviceError::Busy { .. }
        | DeviceError::NotFormatted
        | DeviceError::AlreadyFormatted { .. }
        | DeviceError::OtherCluster { .. }
        | DeviceError::OtherServer { .. }
        | DeviceError::NewerFormat { .. }
        | DeviceError::Misplaced { .. }
        | DeviceError::TooSmall { .. } => true,
        DeviceError::File { .. }
        | DeviceError::Damaged { .. }
        | DeviceError::JournalCorrupt { .. }
        | DeviceError::Inconsistent { .. }
        | DeviceError::Codec { .. }
        | DeviceError::Device(_)
        | DeviceError::Meta(_) => false,
    }
}

fn mdm_conflict(error: &MdmError) -> bool {
    match error {
        MdmError::Store(error) | MdmError::Open(MdmOpenError::Store(error)) => match error {
            MdmStoreError::Missing { .. }
            | MdmStoreError::Exists { .. }
            | MdmStoreError::OtherCluster { .. }
            | MdmStoreError::OtherNode { .. }
            | MdmStoreError::Mixed { .. }
            | MdmStoreError::NewerFormat { .. }
            | MdmStoreError::InUse { .. } => true,
            MdmStoreError::Damaged { .. }
            | MdmStoreError::Io { .. }
            | MdmStoreError::Database { .. }
            | MdmStoreError::Poisoned(_) => false,
        },
        MdmError::OtherStore { .. } | MdmError::IdTaken { .. } | MdmError::Listen(ListenError::Taken { .. }) => true,
        MdmError::Open(_)
        | MdmError::Listen(_)
        | MdmError::Bootstrap(_)
        | MdmError::Reflection(_)
        | MdmError::Serve(_) => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("cannot write {path}")]
    struct Outer {
        path: &'static str,
        source: io::Error,
    }

    #[test]
    fn the_last_line_has_all_causes_and_a_full_disk_is_a_conflict() {
        let error = Outer { path: "/d/x", source: io::Error::from_raw_os_error(28) };
        let failure = ended("sds", &error);
        assert_eq!(failure.exit(), Exit::Conflict);
        assert!(failure.to_string().starts_with("sds: cannot write /d/x: No space left"), "{failure}");
    }

    #[test]
    fn a_store_of_a_newer_format_is_a_conflict_and_a_damaged_one_a_failure() {
        let newer = MdmStoreError::NewerFormat { path: "/d/STORE".into(), found: 2, known: 1 };
        assert_eq!(ended("mdm", &MdmError::from(MdmOpenError::from(newer))).exit(), Exit::Conflict);
        let damaged = MdmStoreError::Damaged { path: "/d/STORE".into(), what: "gone".into() };
        assert_eq!(ended("mdm", &MdmError::from(damaged)).exit(), Exit::Failed);
    }
}
