//! The configuration file of each process, as `up` writes it. Written once, when the process is new, and read by the
//! daemon at each start: what an operator changes there stays changed.

use pflex_common::{durable, net::Endpoint};
use pflex_mdm::daemon::{Limits, MdmConfigFile, MemberFile};
use pflex_proto::ids::{MdmId, StoreUuid};
use toml::{Table, Value};

use super::{
    layout::{Kind, Layout, Process},
    marker::Marker,
    populate::{sdc_name, sds_name},
};
use crate::{daemon::PID_FILE, error::Failure};

const HEADER: &str = "# Written by `pflex up` when this process was new; it is not written again.\n";
/// The longest path that Linux takes for a unix socket.
const MOST_SOCKET_PATH_BYTES: usize = 107;

/// Writes the file of a new process.
pub(super) fn write(layout: &Layout, marker: &Marker, process: Process) -> Result<(), Failure> {
    let path = layout.config_file(process);
    let (mut table, pid_file) = match process.kind {
        Kind::Mdm => (mdm_table(layout, marker, process), "pid-file"),
        Kind::Sds => (sds(layout, marker, process), PID_FILE),
        Kind::Sdc => (sdc(layout, marker, process), PID_FILE),
    };
    table.insert(pid_file.to_owned(), text(layout.pid_file(process).display()));
    let content = format!("{HEADER}{}", toml::to_string(&table).expect("a table is TOML"));
    durable::create_dir(&layout.process_dir(process))
        .and_then(|()| durable::replace(&path, content.as_bytes()))
        .map_err(|error| Failure::io(&error, error.io().kind().into()).cause(error))
}

/// An MDM's configuration. All members name the same stores, so that each knows its own from a stranger's.
pub(super) fn mdm(layout: &Layout, marker: &Marker, process: Process) -> MdmConfigFile {
    let member = |(index, store): (u32, &StoreUuid)| {
        let process = Process { kind: Kind::Mdm, index };
        let (api, raft) = (layout.port(process, "client API"), layout.port(process, "Raft"));
        MemberFile { id: mdm_id(process), api, raft, store: *store }
    };
    MdmConfigFile {
        cluster: marker.cluster_id,
        id: mdm_id(process),
        dir: layout.data_dir(process),
        listen_api: None,
        listen_raft: None,
        members: (0..).zip(&marker.stores).map(member).collect(),
        join: None,
        limits: Limits::default(),
    }
}

/// Processes count from 0, members from 1.
fn mdm_id(process: Process) -> MdmId {
    MdmId(u64::from(process.index) + 1)
}

fn mdm_table(layout: &Layout, marker: &Marker, process: Process) -> Table {
    Table::try_from(mdm(layout, marker, process)).expect("a configuration is a table")
}

fn sds(layout: &Layout, marker: &Marker, process: Process) -> Table {
    let size = i64::try_from(marker.device_size_bytes).expect("a size on this machine's disks fits");
    let device = |number| {
        let path = text(layout.device_file(process, number).display());
        Value::Table(table([("path", path), ("size_bytes", Value::Integer(size))]))
    };
    table([
        ("name", text(sds_name(process.index))),
        ("mdm", members(layout, marker)),
        ("data_dir", text(layout.data_dir(process).display())),
        ("data", at(layout, process, "data")),
        ("control", at(layout, process, "control")),
        ("management", at(layout, process, "management")),
        ("device", Value::Array((0..marker.devices).map(device).collect())),
    ])
}

fn sdc(layout: &Layout, marker: &Marker, process: Process) -> Table {
    let mut table = table([
        ("name", text(sdc_name(process.index))),
        ("mdm", members(layout, marker)),
        ("data_dir", text(layout.data_dir(process).display())),
        ("control", at(layout, process, "control")),
        ("management", at(layout, process, "management")),
        ("nbd", at(layout, process, "NBD")),
    ]);
    // A directory deep down has no room for a socket; TCP is there in any case.
    let socket = layout.nbd_socket(process);
    if socket.as_os_str().len() <= MOST_SOCKET_PATH_BYTES {
        table.insert("nbd_socket".to_owned(), text(socket.display()));
    }
    table
}

fn members(layout: &Layout, marker: &Marker) -> Value {
    let list = layout.mdm_members(marker.counts().mdm);
    Value::Array(list.iter().map(text::<&Endpoint>).collect())
}

fn at(layout: &Layout, process: Process, plane: &str) -> Value {
    text(layout.port(process, plane))
}

fn text<T: ToString>(value: T) -> Value {
    Value::String(value.to_string())
}

fn table<const N: usize>(pairs: [(&str, Value); N]) -> Table {
    pairs.into_iter().map(|(key, value)| (key.to_owned(), value)).collect()
}

#[cfg(test)]
mod tests {
    use pflex_mdm::daemon::MdmConfig;
    use uuid::Uuid;

    use super::*;
    use crate::local::{layout::Counts, plan::Plan};

    fn written(kind: Kind) -> Table {
        let dir = tempfile::tempdir().unwrap();
        let layout = Layout::new(dir.path().to_owned(), 0);
        let counts = Counts { mdm: 3, sds: 3, sdc: 1 };
        let plan = Plan { counts, port_offset: 0, device_size_bytes: 1 << 30, devices: 2 };
        let marker = Marker::new(&plan, Uuid::new_v4);
        let process = Process { kind, index: 0 };
        write(&layout, &marker, process).unwrap();
        let mut table: Table = std::fs::read_to_string(layout.config_file(process)).unwrap().parse().unwrap();
        assert!(table.remove(PID_FILE).or(table.remove("pid-file")).is_some());
        table
    }

    #[test]
    fn an_mdm_takes_what_is_written_for_it() {
        let file: MdmConfigFile = written(Kind::Mdm).try_into().unwrap();
        assert_eq!((file.id, file.members.len()), (MdmId(1), 3));
        MdmConfig::try_from(file).unwrap();
    }

    #[test]
    fn an_sds_takes_what_is_written_for_it() {
        let file: pflex_sds::daemon::ConfigFile = written(Kind::Sds).try_into().unwrap();
        assert_eq!((file.name.as_str(), file.device.len(), file.device[1].size_bytes), ("sds1", 2, 1 << 30));
        file.validate().unwrap();
    }

    #[test]
    fn the_sample_of_an_sds_is_a_configuration() {
        let file: pflex_sds::daemon::ConfigFile = toml::from_str(include_str!("../../deploy/sds.toml")).unwrap();
        assert_eq!((file.device.len(), file.device[0].format_if_blank), (2, true));
        file.validate().unwrap();
    }

    #[test]
    fn an_sdc_takes_what_is_written_for_it() {
        let file: pflex_sdc::daemon::ConfigFile = written(Kind::Sdc).try_into().unwrap();
        let config = file.validate().unwrap();
        assert_eq!((config.name.as_str(), config.nbd.port(), config.mdm.len()), ("sdc1", 8005, 3));
    }
}
