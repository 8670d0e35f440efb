//! `pflex device`: the disks of the storage servers, as they registered them.

use clap::Subcommand;
use pflex_proto::{
    ids::DeviceUuid,
    pb::{
        AssignDeviceRequest, Device, RemoveDeviceRequest, admin_client::AdminClient, topology_client::TopologyClient,
    },
};

use super::{
    Tool,
    complete::Of,
    device_stats, drain,
    names::{Names, all, one},
    target::Target,
    view::ViewArgs,
};
use crate::{
    client::{Freshness, Session, ask, change},
    confirm::{self, ConfirmArgs},
    error::{Exit, Failure},
    output::{Document, Record, Value},
};

#[derive(clap::Args, Debug)]
#[command(arg_required_else_help = true)]
pub(super) struct Args {
    #[command(flatten)]
    pub(super) target: Target,
    #[command(subcommand)]
    pub(super) verb: Verb,
}

#[derive(Subcommand, Debug)]
pub(super) enum Verb {
    /// List the devices.
    #[command(after_help = "Example:\n  pflex device list --sds sds1")]
    List {
        /// Only those of this server.
        #[arg(long, value_name = "NAME", add = Of::Servers.candidates())]
        sds: Option<String>,
        #[command(flatten)]
        view: ViewArgs,
    },
    /// Show what devices do now: requests, bytes, latency, fill. Asked of the storage servers themselves.
    #[command(
        after_help = "Rates are of the last ten seconds; latencies since the server started, in microseconds.\n\n\
        Example:\n  pflex device stats --sds sds1 -o wide --watch"
    )]
    Stats {
        /// Only those of this server.
        #[arg(long, value_name = "NAME", add = Of::Servers.candidates())]
        sds: Option<String>,
        #[command(flatten)]
        view: ViewArgs,
    },
    /// Give a device that holds no copies to a pool. Devices come with their server, which registers what its
    /// configuration lists.
    #[command(after_help = "Example:\n  pflex device add 3 --pool fast")]
    Add {
        /// As `device list` shows it.
        id: u32,
        /// The pool; it must be in the protection domain of the server.
        #[arg(long, add = Of::Pools.candidates())]
        pool: String,
        /// Succeed if it is in that pool already.
        #[arg(long)]
        if_not_exists: bool,
    },
    /// Move all copies of a device to others, so that it can be taken out for good.
    #[command(after_help = "Refused when the other devices of its pool cannot take its copies.\n\n\
        Example:\n  pflex device drain 3 --wait\n  pflex device remove 3 --yes")]
    Drain {
        /// As `device list` shows it.
        id: u32,
        #[command(flatten)]
        how: drain::Args,
    },
    /// Forget a device that holds no copies. It must be formatted before a server can use it again.
    #[command(after_help = "Example:\n  pflex device remove 3 --yes")]
    Remove {
        /// As `device list` shows it.
        id: u32,
        #[command(flatten)]
        confirm: ConfirmArgs,
    },
}

pub(super) async fn run(verb: Verb, tool: &Tool) -> Result<(), Failure> {
    let session = tool.session()?;
    match verb {
        Verb::List { sds, view } => list(tool, &session, sds, &view).await,
        Verb::Stats { sds, view } => device_stats::show(tool, &session, sds, &view).await,
        Verb::Add { id, pool, if_not_exists } => {
            let what = format!("add device {id} to pool {pool}");
            let request = AssignDeviceRequest { request: None, device_id: id, pool, if_not_exists };
            change!(session, &what, TopologyClient.assign_device(request))?;
            tool.print(&Document::One(find(&session, id).await?))
        }
        Verb::Drain { id, how } => {
            drain::run(tool, &session, &drain::Object::Device(id), &how).await?;
            tool.print(&Document::One(find(&session, id).await?))
        }
        Verb::Remove { id, confirm } => {
            find(&session, id).await?;
            if confirm::confirm(confirm, &format!("device {id}"), &id.to_string())? {
                let request = RemoveDeviceRequest { request: None, device_id: id };
                change!(session, &format!("remove device {id}"), TopologyClient.remove_device(request))?;
                eprintln!("device {id} is removed");
            }
            Ok(())
        }
    }
}

/// The device as the cluster has it now.
async fn find(session: &Session, id: u32) -> Result<Record, Failure> {
    let fresh = Freshness::Linearizable;
    let pools = Names::pools(session, fresh).await?;
    let reply = ask!(session, "list devices", fresh, AdminClient.list_sds(all(fresh)))?;
    let mut rows = reply.sds.iter().flat_map(|row| {
        let server = row.sds.as_ref().map(|sds| sds.name.as_str()).unwrap_or_default();
        row.devices.iter().map(move |device| (device, server))
    });
    let found = rows.find(|(device, _)| device.id == id).map(|(device, server)| record(device, server, &pools));
    found.ok_or_else(|| {
        Failure::new(Exit::NotFound, format!("device {id} does not exist"))
            .remedy("`pflex device list` shows those that do")
    })
}

async fn list(tool: &Tool, session: &Session, sds: Option<String>, view: &ViewArgs) -> Result<(), Failure> {
    view.show(tool, async || {
        let fresh = view.freshness();
        let pools = Names::pools(session, fresh).await?;
        let request = sds.as_ref().map_or_else(|| all(fresh), |name| one(fresh, name));
        let reply = ask!(session, "list devices", fresh, AdminClient.list_sds(request))?;
        let mut records = Vec::new();
        for row in &reply.sds {
            let server = row.sds.as_ref().map(|sds| sds.name.as_str()).unwrap_or_default();
            records.extend(row.devices.iter().map(|device| record(device, server, &pools)));
        }
        Ok(Document::List("devices", records))
    })
    .await
}

fn record(device: &Device, server: &str, pools: &Names) -> Record {
    Record::new(device.id)
        .column("id", "ID", device.id)
        .column("sds", "SDS", server)
        .column("pool", "POOL", Some(device.pool_id).filter(|id| *id != 0).map(|id| pools.of(id)))
        .column("path", "PATH", &device.path)
        .column("in_service", "IN SERVICE", device.alive)
        .column("draining", "DRAINING", device.draining_since_ms.is_some())
        .hidden("draining_since", device.draining_since_ms.map_or(Value::Null, Value::Time))
        .column("capacity_bytes", "CAPACITY", Value::Bytes(device.capacity_bytes))
        .column("incarnation", "INCARNATION", device.incarnation)
        .column(
            "slow",
            "SLOW",
            Some(&device.slow).filter(|why| !why.is_empty()).map_or(Value::Null, |why| Value::from(why.as_str())),
        )
        .wide("uuid", "UUID", DeviceUuid::from_slice(&device.uuid).ok().map(|uuid| uuid.to_string()))
}
