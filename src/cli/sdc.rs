//! `pflex sdc`: storage clients as objects; with `--config` and no verb, the client itself.

use clap::Subcommand;
use pflex_proto::pb::{CreateSdcRequest, DeleteRequest, SdcRow, admin_client::AdminClient};

use super::{
    Tool,
    names::{all, one, only},
    target::Target,
    view::ViewArgs,
};
use crate::{
    client::{Freshness, Session, ask, change},
    confirm::{ConfirmArgs, confirm},
    daemon::SdcArgs,
    error::Failure,
    output::{Document, Record},
};

#[derive(clap::Args, Debug)]
#[command(arg_required_else_help = true, after_help = "Example:\n  pflex sdc --config /etc/pflex/sdc.toml")]
pub(super) struct Args {
    #[command(flatten)]
    pub(super) target: Target,
    #[command(flatten)]
    pub(super) daemon: SdcArgs,
    #[command(subcommand)]
    pub(super) verb: Option<Verb>,
}

#[derive(Subcommand, Debug)]
pub(super) enum Verb {
    /// List the storage clients.
    #[command(after_help = "Example:\n  pflex sdc list")]
    List {
        #[command(flatten)]
        view: ViewArgs,
    },
    /// Show one.
    #[command(after_help = "Example:\n  pflex sdc show sdc1")]
    Show {
        name: String,
        #[command(flatten)]
        view: ViewArgs,
    },
    /// Admit a storage client of this name; its process registers itself when it runs.
    #[command(after_help = "Example:\n  pflex sdc add sdc2")]
    Add {
        name: String,
        /// Succeed if it exists already.
        #[arg(long)]
        if_not_exists: bool,
    },
    /// Remove a storage client without mapped volumes.
    #[command(after_help = "Example:\n  pflex sdc remove sdc2 --yes")]
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
                let reply = ask!(session, "list SDCs", fresh, AdminClient.list_sdcs(all(fresh)))?;
                Ok(Document::List("SDCs", reply.sdcs.iter().map(record).collect()))
            })
            .await
        }
        Verb::Show { name, view } => view.show(tool, async || show(&session, view.freshness(), &name).await).await,
        Verb::Add { name, if_not_exists } => {
            let what = format!("add SDC {name}");
            let request = CreateSdcRequest { request: None, name: name.clone(), if_not_exists };
            change!(session, &what, AdminClient.create_sdc(request))?;
            tool.print(&show(&session, Freshness::Linearizable, &name).await?)
        }
        Verb::Remove { name, confirm: args } => {
            let what = format!("remove SDC {name}");
            let fresh = Freshness::Linearizable;
            ask!(session, &what, fresh, AdminClient.list_sdcs(one(fresh, &name)))?;
            if confirm(args, &format!("SDC {name}"), &name)? {
                change!(session, &what, AdminClient.delete_sdc(DeleteRequest { request: None, name: name.clone() }))?;
                eprintln!("SDC {name} is removed");
            }
            Ok(())
        }
    }
}

async fn show(session: &Session, fresh: Freshness, name: &str) -> Result<Document, Failure> {
    let what = format!("show SDC {name}");
    let reply = ask!(session, &what, fresh, AdminClient.list_sdcs(one(fresh, name)))?;
    Ok(Document::One(record(&only(reply.sdcs, "sdc", name)?)))
}

fn record(row: &SdcRow) -> Record {
    let sdc = row.sdc.clone().unwrap_or_default();
    let addresses = sdc.addresses.unwrap_or_default();
    Record::new(&sdc.name)
        .column("name", "NAME", &sdc.name)
        .wide("id", "ID", sdc.id)
        .column("status", "STATUS", &row.status)
        .column("approved", "APPROVED", sdc.approved)
        .column("nbd_address", "NBD", addresses.nbd)
        .wide("control_address", "CONTROL", addresses.control)
        .wide("management_address", "MANAGEMENT", addresses.management)
        .column("volumes", "VOLUMES", row.volumes)
}
