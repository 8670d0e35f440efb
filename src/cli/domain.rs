//! `pflex domain`: protection domains, the walls that no copy of data crosses.

use clap::Subcommand;
use pflex_proto::pb::{CreateDomainRequest, DeleteRequest, Domain, ListRequest, RenameKind, admin_client::AdminClient};

use super::{
    Tool,
    complete::Of,
    names::freshness,
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
    /// Make a protection domain.
    #[command(after_help = "Example:\n  pflex domain create row-a")]
    Create {
        name: String,
        /// Succeed if it exists already.
        #[arg(long)]
        if_not_exists: bool,
    },
    /// List the protection domains.
    #[command(after_help = "Example:\n  pflex domain list -o name")]
    List {
        #[command(flatten)]
        view: ViewArgs,
    },
    /// Show one.
    #[command(after_help = "Example:\n  pflex domain show default")]
    Show {
        #[arg(add = Of::Domains.candidates())]
        name: String,
        #[command(flatten)]
        view: ViewArgs,
    },
    /// Give one another name.
    #[command(after_help = "Example:\n  pflex domain rename row-a row-b")]
    Rename {
        #[arg(add = Of::Domains.candidates())]
        name: String,
        new_name: String,
    },
    /// Remove an empty one.
    #[command(after_help = "Example:\n  pflex domain delete row-a --yes")]
    Delete {
        #[arg(add = Of::Domains.candidates())]
        name: String,
        #[command(flatten)]
        confirm: ConfirmArgs,
    },
}

pub(super) async fn run(verb: Verb, tool: &Tool) -> Result<(), Failure> {
    let session = tool.session()?;
    match verb {
        Verb::Create { name, if_not_exists } => {
            let what = format!("create domain {name}");
            let request = CreateDomainRequest { request: None, name: name.clone(), if_not_exists };
            change!(session, &what, AdminClient.create_domain(request))?;
            object::print::<Domains>(tool, &session, &name).await
        }
        Verb::List { view } => object::list::<Domains>(tool, &session, &view).await,
        Verb::Show { name, view } => object::show::<Domains>(tool, &session, &name, &view).await,
        Verb::Rename { name, new_name } => {
            object::rename::<Domains>(tool, &session, RenameKind::Domain, &name, &new_name).await
        }
        Verb::Delete { name, confirm } => object::remove::<Domains>(&session, &name, confirm).await,
    }
}

struct Domains;

impl Kind for Domains {
    const NOUN: &'static str = "domain";
    const NOUNS: &'static str = "domains";
    const COMMAND: &'static str = "domain";

    async fn records(session: &Session, what: &str, request: ListRequest) -> Result<Vec<Record>, Failure> {
        let fresh = freshness(&request);
        let reply = ask!(session, what, fresh, AdminClient.list_domains(request))?;
        Ok(reply.domains.iter().map(record).collect())
    }

    async fn remove(session: &Session, what: &str, request: DeleteRequest) -> Result<(), Failure> {
        change!(session, what, AdminClient.delete_domain(request)).map(drop)
    }
}

fn record(domain: &Domain) -> Record {
    Record::new(&domain.name).column("name", "NAME", &domain.name).column("id", "ID", domain.id)
}
