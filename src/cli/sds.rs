//! `pflex sds`: storage servers as objects; with `--config` and no verb, the server itself.

use clap::Subcommand;
use pflex_proto::pb::{CreateSdsRequest, DeleteRequest, SdsRow, admin_client::AdminClient};

use super::{
    Tool,
    names::{Names, all, one, only},
    target::Target,
    view::ViewArgs,
};
use crate::{
    client::{Freshness, Session, ask, change},
    confirm::{ConfirmArgs, confirm},
    daemon::SdsArgs,
    error::Failure,
    output::{Document, Record, Value},
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
        name: String,
        #[command(flatten)]
        view: ViewArgs,
    },
    /// Admit a storage server of this name; its process registers itself when it runs.
    #[command(after_help = "Example:\n  pflex sds add sds4 --domain default")]
    Add {
        name: String,
        /// The protection domain it belongs to.
        #[arg(long)]
        domain: String,
        /// Servers that fail together have one fault set [default: one of its own].
        #[arg(long)]
        fault_set: Option<String>,
        /// Succeed if it exists already.
        #[arg(long)]
        if_not_exists: bool,
    },
    /// Remove a storage server that holds no data that is needed.
    #[command(after_help = "Example:\n  pflex sds remove sds4 --yes")]
    Remove {
        name: String,
        #[command(flatten)]
        confirm: ConfirmArgs,
    },
}

pub(super) async fn run(verb: Verb, tool: &Tool) -> Result<(), Failure> {
    let session = tool.session()?;
    match verb {
        Verb::List { view } => {
            view.show(tool, async || {
                let fresh = view.freshness();
                let domains = Names::domains(&session, fresh).await?;
                let reply = ask!(session, "list SDSs", fresh, AdminClient.list_sds(all(fresh)))?;
                Ok(Document::List("SDSs", reply.sds.iter().map(|row| record(row, &domains)).collect()))
            })
            .await
        }
        Verb::Show { name, view } => view.show(tool, async || show(&session, view.freshness(), &name).await).await,
        Verb::Add { name, domain, fault_set, if_not_exists } => {
            let what = format!("add SDS {name}");
            let fault_set = fault_set.unwrap_or_default();
            let request = CreateSdsRequest { request: None, name: name.clone(), domain, fault_set, if_not_exists };
            change!(session, &what, AdminClient.create_sds(request))?;
            tool.print(&show(&session, Freshness::Linearizable, &name).await?)
        }
        Verb::Remove { name, confirm: args } => {
            let what = format!("remove SDS {name}");
            let fresh = Freshness::Linearizable;
            ask!(session, &what, fresh, AdminClient.list_sds(one(fresh, &name)))?;
            if confirm(args, &format!("SDS {name} and its copies"), &name)? {
                change!(session, &what, AdminClient.delete_sds(DeleteRequest { request: None, name: name.clone() }))?;
                eprintln!("SDS {name} is removed");
            }
            Ok(())
        }
    }
}

async fn show(session: &Session, fresh: Freshness, name: &str) -> Result<Document, Failure> {
    let what = format!("show SDS {name}");
    let domains = Names::domains(session, fresh).await?;
    let reply = ask!(session, &what, fresh, AdminClient.list_sds(one(fresh, name)))?;
    Ok(Document::One(record(&only(reply.sds, "sds", name)?, &domains)))
}

fn record(row: &SdsRow, domains: &Names) -> Record {
    let sds = row.sds.clone().unwrap_or_default();
    let addresses = sds.addresses.unwrap_or_default();
    Record::new(&sds.name)
        .column("name", "NAME", &sds.name)
        .wide("id", "ID", sds.id)
        .column("status", "STATUS", &row.status)
        .column("domain", "DOMAIN", domains.of(sds.domain_id))
        .wide("fault_set_id", "FAULT SET", sds.fault_set_id)
        .hidden("alive", sds.alive)
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
        .column("pgs_joining", "JOINING", row.pgs_joining)
}
