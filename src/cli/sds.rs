//! `pflex sds`: storage servers as objects; with `--config` and no verb, the server itself.

use clap::Subcommand;
use pflex_proto::pb::{
    ComponentKind, CreateSdsRequest, DeleteRequest, ListRequest, RenameKind, SdsRow, admin_client::AdminClient,
};

use super::{
    Tool,
    complete::Of,
    drain, maintenance,
    names::{Names, freshness},
    object::{self, Kind},
    target::Target,
    view::ViewArgs,
    vitals,
};
use crate::{
    client::{Freshness, Session, ask, change},
    confirm::ConfirmArgs,
    daemon::SdsArgs,
    error::Failure,
    output::{Record, Value},
};

#[derive(clap::Args, Debug)]
#[command(arg_required_else_help = true, after_help = "Example:\n  pflex sds --config /etc/pflex/sds.toml")]
pub(super) struct Args {
    #[command(flatten)]
    pub(super) target: Target,
    #[command(flatten)]
    pub(super) daemon: SdsArgs,
    #[command(subcommand)]
    pub(super) verb: Option<Verb>,
}

#[derive(Subcommand, Debug)]
pub(super) enum Verb {
    /// List the storage servers.
    #[command(after_help = "Example:\n  pflex sds list --watch")]
    List {
        #[command(flatten)]
        view: ViewArgs,
    },
    /// Show one.
    #[command(after_help = "Example:\n  pflex sds show sds1")]
    Show {
        #[arg(add = Of::Servers.candidates())]
        name: String,
        #[command(flatten)]
        view: ViewArgs,
    },
    /// Admit a storage server of this name; its process registers itself when it runs.
    #[command(after_help = "Example:\n  pflex sds add sds4 --domain default")]
    Add {
        name: String,
        /// The protection domain it belongs to.
        #[arg(long, add = Of::Domains.candidates())]
        domain: String,
        /// Servers that fail together have one fault set [default: one of its own].
        #[arg(long, add = Of::FaultSets.candidates())]
        fault_set: Option<String>,
        /// Succeed if it exists already.
        #[arg(long)]
        if_not_exists: bool,
    },
    /// Give one another name. It answers to the old one too until its process registers under the new one.
    #[command(after_help = "Example:\n  pflex sds rename sds4 rack2-sds1")]
    Rename {
        #[arg(add = Of::Servers.candidates())]
        name: String,
        new_name: String,
    },
    /// Take a storage server down for a while and bring it back.
    #[command(
        arg_required_else_help = true,
        after_help = "Example:\n  pflex sds maintenance enter sds1 --wait\n  pflex sds maintenance enter sds1 --protected --wait\n  pflex sds maintenance exit sds1 --wait"
    )]
    Maintenance {
        #[command(subcommand)]
        verb: maintenance::Verb,
    },
    /// Move all copies of a storage server to others, so that it can be taken out for good.
    #[command(
        after_help = "Refused when the other servers cannot take its copies. It goes on by itself, a few groups at a time, and\n\
        no group ever has fewer copies than before; the server gets none any more.\n\n\
        Example:\n  pflex sds drain sds4 --wait\n  pflex sds remove sds4 --yes"
    )]
    Drain {
        #[arg(add = Of::Servers.candidates())]
        name: String,
        #[command(flatten)]
        how: drain::Args,
    },
    /// Remove a storage server that holds no data that is needed: one without devices, or drained and empty.
    #[command(after_help = "Example:\n  pflex sds remove sds4 --yes")]
    Remove {
        #[arg(add = Of::Servers.candidates())]
        name: String,
        #[command(flatten)]
        confirm: ConfirmArgs,
    },
}

pub(super) async fn run(verb: Verb, tool: &Tool) -> Result<(), Failure> {
    let session = tool.session()?;
    match verb {
        Verb::List { view } => object::list::<Servers>(tool, &session, &view).await,
        Verb::Show { name, view } => object::show::<Servers>(tool, &session, &name, &view).await,
        Verb::Add { name, domain, fault_set, if_not_exists } => {
            let what = format!("add SDS {name}");
            let fault_set = fault_set.unwrap_or_default();
            let request = CreateSdsRequest { request: None, name: name.clone(), domain, fault_set, if_not_exists };
            change!(session, &what, AdminClient.create_sds(request))?;
            object::print::<Servers>(tool, &session, &name).await
        }
        Verb::Rename { name, new_name } => {
            object::rename::<Servers>(tool, &session, RenameKind::Sds, &name, &new_name).await
        }
        Verb::Maintenance { verb } => {
            let name = maintenance::run(verb, tool, &session).await?;
            object::print::<Servers>(tool, &session, &name).await
        }
        Verb::Drain { name, how } => {
            drain::run(tool, &session, &drain::Object::Sds(name.clone()), &how).await?;
            object::print::<Servers>(tool, &session, &name).await
        }
        Verb::Remove { name, confirm } => object::remove::<Servers>(&session, &name, confirm).await,
    }
}

struct Servers;

impl Kind for Servers {
    const NOUN: &'static str = "SDS";
    const NOUNS: &'static str = "SDSs";
    const COMMAND: &'static str = "sds";
    const REMOVE: (&'static str, &'static str) = ("remove", "removed");
    const LOSS: &'static str = " and its copies";

    async fn records(session: &Session, what: &str, request: ListRequest) -> Result<Vec<Record>, Failure> {
        let fresh = freshness(&request);
        let domains = Names::domains(session, fresh).await?;
        let sets = Names::fault_sets(session, fresh).await?;
        let reply = ask!(session, what, fresh, AdminClient.list_sds(request))?;
        Ok(reply.sds.iter().map(|row| record(row, &domains, &sets)).collect())
    }

    async fn more(session: &Session, name: &str, fresh: Freshness, record: Record) -> Result<Record, Failure> {
        let starts = vitals::starts(session, ComponentKind::Sds, name, fresh).await?;
        Ok(vitals::with_starts(record, &starts))
    }

    async fn remove(session: &Session, what: &str, request: DeleteRequest) -> Result<(), Failure> {
        change!(session, what, AdminClient.delete_sds(request)).map(drop)
    }
}

/// Whether all its devices are being emptied.
fn drains(row: &SdsRow) -> bool {
    !row.devices.is_empty() && row.devices.iter().all(|device| device.draining_since_ms.is_some())
}

fn record(row: &SdsRow, domains: &Names, sets: &Names) -> Record {
    let sds = row.sds.clone().unwrap_or_default();
    let addresses = sds.addresses.unwrap_or_default();
    let record = Record::new(&sds.name)
        .column("name", "NAME", &sds.name)
        .wide("id", "ID", sds.id)
        .column("status", "STATUS", &row.status)
        .column("domain", "DOMAIN", domains.of(sds.domain_id))
        .wide("fault_set", "FAULT SET", Some(sds.fault_set_id).filter(|id| *id != 0).map(|id| sets.of(id)))
        .hidden("fault_set_id", sds.fault_set_id)
        .hidden("alive", sds.alive)
        .column("maintenance", "MAINTENANCE", sds.maintenance_since_ms.is_some())
        .hidden("protected_since", sds.protected_since_ms.map_or(Value::Null, Value::Time))
        .hidden("maintenance_since", sds.maintenance_since_ms.map_or(Value::Null, Value::Time))
        .column("draining", "DRAINING", drains(row))
        .column("data_address", "DATA", addresses.data)
        .wide("control_address", "CONTROL", addresses.control)
        .wide("management_address", "MANAGEMENT", addresses.management)
        .column("devices", "DEVICES", row.devices.len())
        .column(
            "capacity_bytes",
            "CAPACITY",
            Value::Bytes(row.devices.iter().map(|device| device.capacity_bytes).sum()),
        )
        .column("pgs_primary", "PRIMARY", row.pgs_primary)
        .column("pgs_in_sync", "IN SYNC", row.pgs_in_sync)
        .column("pgs_joining", "JOINING", row.pgs_joining);
    vitals::columns(record, &row.component.clone().unwrap_or_default())
}
