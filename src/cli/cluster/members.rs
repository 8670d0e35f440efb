//! `pflex cluster add-node`, `remove-node`, `replace-node`: one call a step until the MDM says that it is done. Running a
//! command again goes on where it stopped.

use std::{
    io::{self, IsTerminal as _},
    time::Instant,
};

use pflex_common::net::Endpoint;
use pflex_proto::pb::{
    AddNodeRequest, ChangeMembersReply, RemoveNodeRequest, ReplaceNodeRequest, cluster_client::ClusterClient,
};

use super::{LONG, Tool, fetch};
use crate::{
    client::{Freshness, Session, ask},
    confirm::{ConfirmArgs, confirm_to},
    error::{Exit, Failure},
    output::{Document, Record, Value},
    units::format_duration,
};

/// Where a new node is.
#[derive(clap::Args, Clone, Debug)]
pub(in crate::cli) struct Addresses {
    /// Where the new node's client API listens.
    #[arg(value_name = "API")]
    api: Endpoint,
    /// Where its Raft port listens [default: as the node says].
    #[arg(value_name = "RAFT")]
    raft: Option<Endpoint>,
}

impl Addresses {
    fn request(&self, id: u64) -> AddNodeRequest {
        let raft_address = self.raft.as_ref().map(ToString::to_string).unwrap_or_default();
        AddNodeRequest { id, api_address: self.api.to_string(), raft_address }
    }
}

/// A change of the members.
#[derive(Clone, Debug)]
pub(in crate::cli) enum Change {
    Add(AddNodeRequest),
    Remove(RemoveNodeRequest),
    Replace(ReplaceNodeRequest),
}

impl Change {
    pub(super) fn add(id: u64, addresses: &Addresses) -> Self {
        Self::Add(addresses.request(id))
    }

    pub(super) fn replace(old: u64, id: u64, addresses: &Addresses) -> Self {
        Self::Replace(ReplaceNodeRequest { old, new: Some(addresses.request(id)) })
    }

    fn what(&self) -> String {
        match self {
            Self::Add(add) => format!("add mdm {}", add.id),
            Self::Remove(remove) => format!("remove mdm {}", remove.id),
            Self::Replace(replace) => format!("replace mdm {}", replace.old),
        }
    }

    async fn step(&self, session: &Session) -> Result<ChangeMembersReply, Failure> {
        let what = self.what();
        match self {
            Self::Add(add) => ask!(session, &what, Freshness::Linearizable, ClusterClient.add_node(add.clone())),
            Self::Remove(remove) => ask!(session, &what, Freshness::Linearizable, ClusterClient.remove_node(*remove)),
            Self::Replace(replace) => {
                ask!(session, &what, Freshness::Linearizable, ClusterClient.replace_node(replace.clone()))
            }
        }
    }
}

/// Takes a member out, after asking: its id belongs to its store, and never comes back.
pub(super) async fn remove(tool: &Tool, remove: RemoveNodeRequest, args: ConfirmArgs) -> Result<(), Failure> {
    let change = Change::Remove(remove);
    // The MDM takes one that is gone for removed, as it must for a repeated call; a person made a mistake.
    let status = fetch(&tool.session()?, Freshness::Linearizable).await?;
    if !status.members.iter().any(|member| member.id == remove.id) {
        return Err(Failure::new(Exit::NotFound, format!("{}: it is not a member", change.what()))
            .remedy("`pflex cluster status` shows those there are"));
    }
    let (name, left) = (format!("mdm{}", remove.id), status.members.len() - 1);
    let deed = format!("remove {name} for good and leave {left} members");
    if !confirm_to(args, &deed, &name)? {
        return Ok(());
    }
    run(tool, change, false).await
}

/// Does the change, or with `dry_run` only says what it would do.
pub(super) async fn run(tool: &Tool, change: Change, dry_run: bool) -> Result<(), Failure> {
    let session = tool.session()?;
    if dry_run {
        eprintln!("would {}; nothing was done", change.what());
        return Ok(());
    }
    let wait = tool.options.timeout.unwrap_or(LONG);
    let started = Instant::now();
    let mut said = None;
    loop {
        let reply = change.step(&session.within(session.timeout().min(wait))).await?;
        if reply.done {
            eprintln!("{}", reply.step);
            return tool.print(&Document::One(voters(&reply)));
        }
        if io::stderr().is_terminal() && said.as_ref() != Some(&reply.step) {
            eprintln!("{}", reply.step);
            said = Some(reply.step.clone());
        }
        if started.elapsed() >= wait {
            let what = format!("{}: not done within {}: {}", change.what(), format_duration(wait), reply.step);
            return Err(Failure::new(Exit::TimedOut, what).remedy("run it again to go on, with a longer --timeout"));
        }
    }
}

fn voters(reply: &ChangeMembersReply) -> Record {
    let list = reply.voters.iter().map(u64::to_string).collect::<Vec<_>>();
    Record::new(list.join(","))
        .hidden("voters", Value::List(reply.voters.iter().map(|id| Value::from(*id)).collect()))
        .column("members", "VOTERS", list.join(", "))
}
