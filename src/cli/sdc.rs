//! `pflex sdc`: storage clients as objects; with `--config` and no verb, the client itself.

use std::time::Instant;

use clap::Subcommand;
use pflex_proto::pb::{
    ApproveSdcRequest, ComponentKind, CreateSdcRequest, DeleteRequest, ListRequest, RenameKind, SdcRow,
    admin_client::AdminClient,
};

use super::{
    Tool,
    complete::Of,
    names::freshness,
    object::{self, Kind},
    sdc_stats,
    target::Target,
    view::ViewArgs,
    vitals,
    volume::revoked,
};
use crate::{
    client::{Freshness, Session, ask, change},
    confirm::ConfirmArgs,
    daemon::SdcArgs,
    error::Failure,
    output::Record,
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
        #[arg(add = Of::Clients.candidates())]
        name: String,
        #[command(flatten)]
        view: ViewArgs,
    },
    /// Show what volumes do at their clients now, and what their limits hold back. Asked of the storage clients themselves.
    #[command(
        after_help = "Rates are of the last ten seconds; all else is since the client started. A latency is what the \
        application sees, with the time that a limit held it back, in microseconds.\n\n\
        Example:\n  pflex sdc stats sdc1 -o wide --watch"
    )]
    Stats {
        /// Only of this client.
        #[arg(add = Of::Clients.candidates())]
        name: Option<String>,
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
    /// Let one use what is mapped to it. New ones need it where `sdc.approval` is 1 (`pflex settings`).
    #[command(after_help = "Example:\n  pflex sdc approve sdc2")]
    Approve {
        #[arg(add = Of::Clients.candidates())]
        name: String,
    },
    /// Take the approval of one back: its IO ends, on all volumes, before this returns. Its mappings stay.
    ///
    /// Waits longer than --timeout for servers that cannot be reached only with --wait, as `volume unmap` does.
    #[command(after_help = "Example:\n  pflex sdc revoke sdc2")]
    Revoke {
        #[arg(add = Of::Clients.candidates())]
        name: String,
        /// Wait to the end, whatever --timeout says.
        #[arg(long)]
        wait: bool,
    },
    /// Give one another name. It answers to the old one too until its process registers under the new one.
    #[command(after_help = "Example:\n  pflex sdc rename sdc2 web1")]
    Rename {
        #[arg(add = Of::Clients.candidates())]
        name: String,
        new_name: String,
    },
    /// Remove a storage client without mapped volumes.
    #[command(after_help = "Example:\n  pflex sdc remove sdc2 --yes")]
    Remove {
        #[arg(add = Of::Clients.candidates())]
        name: String,
        #[command(flatten)]
        confirm: ConfirmArgs,
    },
}

pub(super) async fn run(verb: Verb, tool: &Tool) -> Result<(), Failure> {
    let session = tool.session()?;
    match verb {
        Verb::List { view } => object::list::<Clients>(tool, &session, &view).await,
        Verb::Show { name, view } => object::show::<Clients>(tool, &session, &name, &view).await,
        Verb::Stats { name, view } => sdc_stats::show(tool, &session, name, &view).await,
        Verb::Add { name, if_not_exists } => {
            let what = format!("add SDC {name}");
            let request = CreateSdcRequest { request: None, name: name.clone(), if_not_exists };
            change!(session, &what, AdminClient.create_sdc(request))?;
            object::print::<Clients>(tool, &session, &name).await
        }
        Verb::Approve { name } => {
            let request = ApproveSdcRequest { request: None, name: name.clone(), approved: true };
            change!(session, &format!("approve SDC {name}"), AdminClient.approve_sdc(request))?;
            object::print::<Clients>(tool, &session, &name).await
        }
        Verb::Revoke { name, wait } => {
            let (started, what) = (Instant::now(), format!("revoke SDC {name}"));
            let request = ApproveSdcRequest { request: None, name: name.clone(), approved: false };
            let reply = change!(session, &what, AdminClient.approve_sdc(request))?;
            revoked(&session, &what, ("revoked", "its IO"), started, &reply, wait).await?;
            object::print::<Clients>(tool, &session, &name).await
        }
        Verb::Rename { name, new_name } => {
            object::rename::<Clients>(tool, &session, RenameKind::Sdc, &name, &new_name).await
        }
        Verb::Remove { name, confirm } => object::remove::<Clients>(&session, &name, confirm).await,
    }
}

struct Clients;

impl Kind for Clients {
    const NOUN: &'static str = "SDC";
    const NOUNS: &'static str = "SDCs";
    const COMMAND: &'static str = "sdc";
    const REMOVE: (&'static str, &'static str) = ("remove", "removed");

    async fn records(session: &Session, what: &str, request: ListRequest) -> Result<Vec<Record>, Failure> {
        let fresh = freshness(&request);
        let reply = ask!(session, what, fresh, AdminClient.list_sdcs(request))?;
        Ok(reply.sdcs.iter().map(record).collect())
    }

    async fn more(session: &Session, name: &str, fresh: Freshness, record: Record) -> Result<Record, Failure> {
        let starts = vitals::starts(session, ComponentKind::Sdc, name, fresh).await?;
        Ok(vitals::with_starts(record, &starts))
    }

    async fn remove(session: &Session, what: &str, request: DeleteRequest) -> Result<(), Failure> {
        change!(session, what, AdminClient.delete_sdc(request)).map(drop)
    }
}

fn record(row: &SdcRow) -> Record {
    let sdc = row.sdc.clone().unwrap_or_default();
    let addresses = sdc.addresses.unwrap_or_default();
    let record = Record::new(&sdc.name)
        .column("name", "NAME", &sdc.name)
        .wide("id", "ID", sdc.id)
        .column("status", "STATUS", &row.status)
        .column("approved", "APPROVED", sdc.approved)
        .column("nbd_address", "NBD", addresses.nbd)
        .wide("control_address", "CONTROL", addresses.control)
        .wide("management_address", "MANAGEMENT", addresses.management)
        .column("volumes", "VOLUMES", row.volumes);
    vitals::columns(record, &row.component.clone().unwrap_or_default())
}
