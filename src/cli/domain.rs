//! `pflex domain`: protection domains, the walls that no copy of data crosses.

use clap::Subcommand;
use pflex_proto::pb::{CreateDomainRequest, DeleteRequest, Domain, admin_client::AdminClient};

use super::{
    Tool,
    names::{all, one, only},
    target::Target,
    view::ViewArgs,
};
use crate::{
    client::{Freshness, ask, change},
    confirm::{ConfirmArgs, confirm},
    error::Failure,
    output::{Document, Record},
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
        name: String,
        #[command(flatten)]
        view: ViewArgs,
    },
    /// Remove an empty one.
    #[command(after_help = "Example:\n  pflex domain delete row-a --yes")]
    Delete {
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
            let request = CreateDomainRequest { request: None, name, if_not_exists };
            let domain = change!(session, &what, AdminClient.create_domain(request))?;
            tool.print(&Document::One(record(&domain)))
        }
        Verb::List { view } => {
            view.show(tool, async || {
                let fresh = view.freshness();
                let reply = ask!(session, "list domains", fresh, AdminClient.list_domains(all(fresh)))?;
                Ok(Document::List("domains", reply.domains.iter().map(record).collect()))
            })
            .await
        }
        Verb::Show { name, view } => {
            view.show(tool, async || {
                let what = format!("show domain {name}");
                let fresh = view.freshness();
                let reply = ask!(session, &what, fresh, AdminClient.list_domains(one(fresh, &name)))?;
                Ok(Document::One(record(&only(reply.domains, "domain", &name)?)))
            })
            .await
        }
        Verb::Delete { name, confirm: args } => {
            let what = format!("delete domain {name}");
            let fresh = Freshness::Linearizable;
            ask!(session, &what, fresh, AdminClient.list_domains(one(fresh, &name)))?;
            if confirm(args, &format!("domain {name}"), &name)? {
                change!(
                    session,
                    &what,
                    AdminClient.delete_domain(DeleteRequest { request: None, name: name.clone() })
                )?;
                eprintln!("domain {name} is deleted");
            }
            Ok(())
        }
    }
}

fn record(domain: &Domain) -> Record {
    Record::new(&domain.name).column("name", "NAME", &domain.name).column("id", "ID", domain.id)
}
