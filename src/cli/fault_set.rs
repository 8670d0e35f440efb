//! `pflex fault-set`: servers that fail together, such as those of one rack. No two copies of data are in one.

use clap::Subcommand;
use pflex_proto::pb::{
    CreateFaultSetRequest, DeleteRequest, FaultSetRow, ListRequest, RenameKind, topology_client::TopologyClient,
};

use super::{
    Tool,
    complete::Of,
    names::{Names, freshness},
    object::{self, Kind},
    target::Target,
    view::ViewArgs,
};
use crate::{
    client::{Session, ask, change},
    confirm::ConfirmArgs,
    error::Failure,
    output::Record,
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
    /// Make a fault set; `sds add --fault-set` puts servers into it.
    #[command(after_help = "Example:\n  pflex fault-set create rack1 --domain default")]
    Create {
        name: String,
        /// The protection domain it is in [default: the only one].
        #[arg(long, add = Of::Domains.candidates())]
        domain: Option<String>,
        /// Succeed if it exists already.
        #[arg(long)]
        if_not_exists: bool,
    },
    /// List the fault sets.
    #[command(after_help = "Example:\n  pflex fault-set list")]
    List {
        #[command(flatten)]
        view: ViewArgs,
    },
    /// Show one.
    #[command(after_help = "Example:\n  pflex fault-set show rack1")]
    Show {
        #[arg(add = Of::FaultSets.candidates())]
        name: String,
        #[command(flatten)]
        view: ViewArgs,
    },
    /// Give one another name.
    #[command(after_help = "Example:\n  pflex fault-set rename rack1 rack-a")]
    Rename {
        #[arg(add = Of::FaultSets.candidates())]
        name: String,
        new_name: String,
    },
    /// Remove one without servers.
    #[command(after_help = "Example:\n  pflex fault-set delete rack1 --yes")]
    Delete {
        #[arg(add = Of::FaultSets.candidates())]
        name: String,
        #[command(flatten)]
        confirm: ConfirmArgs,
    },
}

pub(super) async fn run(verb: Verb, tool: &Tool) -> Result<(), Failure> {
    let session = tool.session()?;
    match verb {
        Verb::Create { name, domain, if_not_exists } => {
            let what = format!("create fault set {name}");
            let domain = domain.unwrap_or_default();
            let request = CreateFaultSetRequest { request: None, name: name.clone(), domain, if_not_exists };
            change!(session, &what, TopologyClient.create_fault_set(request))?;
            object::print::<FaultSets>(tool, &session, &name).await
        }
        Verb::List { view } => object::list::<FaultSets>(tool, &session, &view).await,
        Verb::Show { name, view } => object::show::<FaultSets>(tool, &session, &name, &view).await,
        Verb::Rename { name, new_name } => {
            object::rename::<FaultSets>(tool, &session, RenameKind::FaultSet, &name, &new_name).await
        }
        Verb::Delete { name, confirm } => object::remove::<FaultSets>(&session, &name, confirm).await,
    }
}

struct FaultSets;

impl Kind for FaultSets {
    const NOUN: &'static str = "fault set";
    const NOUNS: &'static str = "fault sets";
    const COMMAND: &'static str = "fault-set";

    async fn records(session: &Session, what: &str, request: ListRequest) -> Result<Vec<Record>, Failure> {
        let fresh = freshness(&request);
        let domains = Names::domains(session, fresh).await?;
        let reply = ask!(session, what, fresh, TopologyClient.list_fault_sets(request))?;
        Ok(reply.fault_sets.iter().map(|row| record(row, &domains)).collect())
    }

    async fn remove(session: &Session, what: &str, request: DeleteRequest) -> Result<(), Failure> {
        change!(session, what, TopologyClient.delete_fault_set(request)).map(drop)
    }
}

fn record(row: &FaultSetRow, domains: &Names) -> Record {
    Record::new(&row.name)
        .column("name", "NAME", &row.name)
        .wide("id", "ID", row.id)
        .column("domain", "DOMAIN", domains.of(row.domain_id))
        .column("sds", "SERVERS", row.sds.clone())
}
