//! What a client calls an export: a volume, a snapshot of one, or nothing for the default.
//!
//! Names of volumes and snapshots have no `@` (the MDM refuses it, `mdm-raft/src/state/apply/validate.rs`), so the first one
//! always parts a volume from its snapshot. A snapshot is read-only wherever the volume is not.

/// A name, taken apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ExportName<'a> {
    /// The only export, where there is only one.
    Default,
    /// A volume as it is now.
    Volume(&'a str),
    /// A volume as it was: `volume@snapshot`.
    Snapshot { volume: &'a str, snapshot: &'a str },
}

impl<'a> ExportName<'a> {
    pub(super) fn parse(name: &'a str) -> Self {
        match name.split_once('@') {
            None if name.is_empty() => Self::Default,
            None => Self::Volume(name),
            Some((volume, snapshot)) => Self::Snapshot { volume, snapshot },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_at_sign_parts_a_volume_from_its_snapshot() {
        let snapshot = |volume, snapshot| ExportName::Snapshot { volume, snapshot };
        for (name, parsed) in [
            ("", ExportName::Default),
            ("demo", ExportName::Volume("demo")),
            ("demo@monday", snapshot("demo", "monday")),
            ("demo@", snapshot("demo", "")),
            ("@monday", snapshot("", "monday")),
            ("demo@a@b", snapshot("demo", "a@b")),
        ] {
            assert_eq!(ExportName::parse(name), parsed, "{name:?}");
        }
    }
}
