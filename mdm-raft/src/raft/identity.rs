//! Whose store a directory is: the `STORE` file, checked before anything else is opened (S18).
//!
//! ```text
//! pflex-mdm-store
//! format 1
//! phase ready
//! cluster 0b7c...
//! node 1
//! store 91d2...
//! crc32c 1a2b3c4d        over every byte above
//! ```
//!
//! Text, so that an operator can read it. It is written twice: in phase `creating` before the databases exist and in
//! phase `ready` after. A directory left in `creating` never voted and may be made again; one in `ready` whose
//! databases are gone or name another store is damaged, and is never filled anew under the same id.

use std::{fmt::Write as _, fs, io, path::Path, str::FromStr};

use pflex_proto::ids::{ClusterId, MdmId, StoreUuid};
use uuid::Uuid;

use super::{durable, error::StoreError};

const FILE: &str = "STORE";
const MAGIC: &str = "pflex-mdm-store";
/// The newest format of the whole directory this version knows.
pub(super) const FORMAT: u32 = 1;

/// Which store of which member of which cluster.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct StoreIdentity {
    /// The cluster.
    pub cluster: ClusterId,
    /// The member.
    pub node: MdmId,
    /// This directory among all that ever served this member.
    pub store: StoreUuid,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Phase {
    Creating,
    Ready,
}

impl Phase {
    const fn word(self) -> &'static str {
        match self {
            Self::Creating => "creating",
            Self::Ready => "ready",
        }
    }
}

/// Writes the file durably.
pub(super) fn write(dir: &Path, identity: StoreIdentity, phase: Phase) -> Result<(), StoreError> {
    let path = dir.join(FILE);
    durable::write_file(&path, render(identity, phase).as_bytes()).map_err(StoreError::io("write", path))
}

/// Reads the file, `None` if there is none.
pub(super) fn read(dir: &Path) -> Result<Option<(StoreIdentity, Phase)>, StoreError> {
    let path = dir.join(FILE);
    let text = match fs::read_to_string(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(StoreError::io("read", path)(error)),
    };
    let format = parse_format(&text);
    if let Some(found) = format.filter(|format| *format > FORMAT) {
        return Err(StoreError::NewerFormat { path, found, known: FORMAT });
    }
    match parse(&text) {
        Some(parsed) => Ok(Some(parsed)),
        None => Err(StoreError::Damaged { path, what: "the file is not what was written".into() }),
    }
}

/// Reads the file of a finished store and compares it with who the caller is.
pub(super) fn check(dir: &Path, cluster: ClusterId, node: MdmId) -> Result<StoreIdentity, StoreError> {
    let dir_name = || dir.to_path_buf();
    let Some((found, Phase::Ready)) = read(dir)? else { return Err(StoreError::Missing { dir: dir_name() }) };
    if found.cluster != cluster {
        return Err(StoreError::OtherCluster { dir: dir_name(), expected: cluster, found: found.cluster });
    }
    if found.node != node {
        return Err(StoreError::OtherNode { dir: dir_name(), expected: node, found: found.node });
    }
    Ok(found)
}

fn render(identity: StoreIdentity, phase: Phase) -> String {
    let StoreIdentity { cluster, node, store } = identity;
    let mut text =
        format!("{MAGIC}\nformat {FORMAT}\nphase {}\ncluster {cluster}\nnode {node}\nstore {store}\n", phase.word());
    let crc = crc32c::crc32c(text.as_bytes());
    writeln!(text, "crc32c {crc:08x}").expect("writing to a string does not fail");
    text
}

/// The format alone, so that a newer file is called newer and not damaged.
fn parse_format(text: &str) -> Option<u32> {
    let mut lines = text.lines();
    if lines.next() != Some(MAGIC) {
        return None;
    }
    field(lines.next()?, "format")
}

fn parse(text: &str) -> Option<(StoreIdentity, Phase)> {
    let (body, crc) = text.split_at(text.find("crc32c ")?);
    if u32::from_str_radix(crc.strip_prefix("crc32c ")?.trim_end(), 16).ok()? != crc32c::crc32c(body.as_bytes()) {
        return None;
    }
    let mut lines = body.lines().skip(2);
    let phase = match field::<String>(lines.next()?, "phase")?.as_str() {
        "creating" => Phase::Creating,
        "ready" => Phase::Ready,
        _ => return None,
    };
    let cluster = ClusterId(field::<Uuid>(lines.next()?, "cluster")?);
    let node = MdmId(field(lines.next()?, "node")?);
    let store = StoreUuid(field::<Uuid>(lines.next()?, "store")?);
    Some((StoreIdentity { cluster, node, store }, phase))
}

fn field<T: FromStr>(line: &str, name: &str) -> Option<T> {
    line.strip_prefix(name)?.strip_prefix(' ')?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn identity() -> StoreIdentity {
        StoreIdentity { cluster: ClusterId(Uuid::from_u128(1)), node: MdmId(2), store: StoreUuid(Uuid::from_u128(3)) }
    }

    #[test]
    fn what_was_written_is_read() {
        let dir = tempfile::tempdir().unwrap();
        assert!(read(dir.path()).unwrap().is_none());
        write(dir.path(), identity(), Phase::Creating).unwrap();
        assert!(matches!(check(dir.path(), identity().cluster, MdmId(2)), Err(StoreError::Missing { .. })));
        write(dir.path(), identity(), Phase::Ready).unwrap();
        assert_eq!(check(dir.path(), identity().cluster, MdmId(2)).unwrap(), identity());
    }

    #[test]
    fn strangers_are_refused_by_name() {
        let dir = tempfile::tempdir().unwrap();
        write(dir.path(), identity(), Phase::Ready).unwrap();
        let other = check(dir.path(), ClusterId(Uuid::from_u128(9)), MdmId(2)).unwrap_err();
        assert!(matches!(other, StoreError::OtherCluster { .. }), "{other}");
        let other = check(dir.path(), identity().cluster, MdmId(5)).unwrap_err();
        assert!(matches!(other, StoreError::OtherNode { found: MdmId(2), .. }), "{other}");
    }

    #[test]
    fn any_changed_byte_is_damage_and_a_newer_format_is_said_to_be_newer() {
        let dir = tempfile::tempdir().unwrap();
        let text = render(identity(), Phase::Ready);
        for at in 0..text.len() {
            let mut bytes = text.clone().into_bytes();
            bytes[at] = if bytes[at] == b'7' { b'8' } else { b'7' };
            fs::write(dir.path().join(FILE), &bytes).unwrap();
            assert!(read(dir.path()).is_err(), "byte {at} changed unseen");
        }
        fs::write(dir.path().join(FILE), text.replace("format 1", "format 2")).unwrap();
        assert!(matches!(read(dir.path()), Err(StoreError::NewerFormat { found: 2, .. })));
    }
}
