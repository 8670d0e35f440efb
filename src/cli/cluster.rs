//! `pflex cluster`: the MDM quorum.

mod backup;
mod init;
mod mdm_file;
mod members;
mod restore;

use std::{path::PathBuf, time::Duration};

use clap::Subcommand;
use members::{Addresses, Change};
use pflex_proto::{
    ids::ClusterId,
    pb::{
        ClusterMember, ClusterStatus, ClusterStatusRequest, RemoveNodeRequest, RotateSecretRequest, SecretKeyState,
        SnapshotRequest, TransferLeaderRequest, cluster_client::ClusterClient,
    },
};

use super::{Tool, complete::Of, target::Target, view::ViewArgs};
use crate::{
    client::{Freshness, Session, ask, change},
    confirm::ConfirmArgs,
    error::Failure,
    output::{self, Document, Format, Record, Value},
};

/// What moves the whole state may take long.
const LONG: Duration = Duration::from_secs(600);

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
    /// Members, leader, term and revision; JSON unless -o says otherwise.
    #[command(after_help = "Example:\n  pflex cluster status | jq .leader")]
    Status {
        #[command(flatten)]
        view: ViewArgs,
    },
    /// Make the empty store of one MDM of a new cluster; once on each of them, before its first start.
    #[command(after_help = "All MDMs of a new cluster have the same configuration but for their `id` and `dir` \
        (deploy/mdm.toml).\n\n\
        Example:\n  pflex cluster init --config /etc/pflex/mdm.toml")]
    Init {
        /// The configuration of the MDM.
        #[arg(long, value_name = "FILE")]
        config: PathBuf,
    },
    /// Hand leadership over.
    #[command(after_help = "Example:\n  pflex cluster transfer-leader 2")]
    TransferLeader {
        /// The member that is to lead [default: the most up-to-date follower].
        #[arg(value_name = "ID", value_parser = clap::value_parser!(u64).range(1..))]
        to: Option<u64>,
    },
    /// Add a node; it gets the log first and votes once it has it.
    #[command(
        after_help = "The node must run already, from a configuration with a `join` section (deploy/mdm-join.toml). \
        Running the command again goes on where it stopped.\n\n\
        Example:\n  pflex cluster add-node 4 10.0.0.4:8001"
    )]
    AddNode {
        /// The new node's id, as its configuration has it; never one that another store had.
        #[arg(value_parser = clap::value_parser!(u64).range(1..))]
        id: u64,
        #[command(flatten)]
        addresses: Addresses,
        /// Say what would happen and do nothing.
        #[arg(long)]
        dry_run: bool,
    },
    /// Take a node out; a leader hands over first.
    #[command(after_help = "Example:\n  pflex cluster remove-node 4 --yes")]
    RemoveNode {
        /// The member.
        #[arg(value_parser = clap::value_parser!(u64).range(1..))]
        id: u64,
        /// Even if fewer than a majority of those left can be reached: nothing can be decided then.
        #[arg(long)]
        force: bool,
        #[command(flatten)]
        confirm: ConfirmArgs,
    },
    /// Have the leader build a snapshot of its state now.
    #[command(after_help = "Example:\n  pflex cluster snapshot")]
    Snapshot,
    /// Write the whole state of the MDMs to a file, while they serve.
    #[command(
        after_help = "The file is checked to its end before it gets its name, and never overwrites another. It holds no \
        secrets;\na cluster restored from it makes new ones. It holds no data of volumes.\n\n\
        Example:\n  pflex cluster backup /backup/pflex-2026-01-31"
    )]
    Backup {
        /// The new file.
        file: PathBuf,
    },
    /// Begin again from a backup, when the MDMs are lost: makes the store of one MDM.
    #[command(
        after_help = "Everything decided after the backup was made is lost. The MDM of the configuration becomes a \
        cluster\nof its own; others join it with `add-node`, with empty stores. Placement groups are served only after\n\
        `pflex cluster end-recovery`. Refused while an MDM of the configuration knows of a leader.\n\n\
        Example:\n  pflex cluster restore /backup/pflex-2026-01-31 --config /etc/pflex/mdm.toml"
    )]
    Restore {
        /// The backup.
        file: PathBuf,
        /// The configuration of the MDM that is to begin; its `dir` must hold no store.
        #[arg(long, value_name = "FILE")]
        config: PathBuf,
        /// With --dry-run only the backup is checked, to its end.
        #[command(flatten)]
        confirm: ConfirmArgs,
    },
    /// After a restore: every SDS has reported, placement groups may be served again.
    #[command(
        after_help = "Each SDS reports the newest configurations it knows when it starts; those decide which copies hold every\n\
        acknowledged write. It is refused while one has not reported (`pflex status` names them). A group whose only\n\
        in-sync copies are on servers given up stays unavailable until one returns, or `pflex pg force-promote`.\n\n\
        Examples:\n  pflex cluster end-recovery\n  pflex cluster end-recovery --without sds3 --yes"
    )]
    EndRecovery {
        /// A server that is lost for good; what only it knew or holds is given up. Once for each.
        #[arg(long, value_name = "SDS", add = Of::Servers.candidates())]
        without: Vec<String>,
        #[command(flatten)]
        confirm: ConfirmArgs,
    },
    /// Make a new generation of the secret that signs IO tokens.
    #[command(
        after_help = "It signs once every live SDS has it, and the old one goes when its last token has expired, a minute \
        later;\nIO goes on meanwhile. `pflex cluster status` shows how far that is.\n\n\
        Example:\n  pflex cluster rotate-secret"
    )]
    RotateSecret,
    /// Put a new node in the place of a member, dead or alive, in one step.
    #[command(after_help = "A node that lost its disk comes back this way, under a new id.\n\n\
        Example:\n  pflex cluster replace-node 2 4 10.0.0.4:8001")]
    ReplaceNode {
        /// The member that goes.
        #[arg(value_parser = clap::value_parser!(u64).range(1..))]
        old: u64,
        /// The new node's id.
        #[arg(value_name = "NEW", value_parser = clap::value_parser!(u64).range(1..))]
        id: u64,
        #[command(flatten)]
        addresses: Addresses,
        /// Say what would happen and do nothing.
        #[arg(long)]
        dry_run: bool,
    },
}

pub(super) async fn run(verb: Verb, tool: &Tool) -> Result<(), Failure> {
    // These know their MDMs from a configuration file: there is no cluster yet.
    let verb = match verb {
        Verb::Init { config } => return init::init(tool, &config).await,
        Verb::Restore { file, config, confirm } => return restore::restore(tool, &file, &config, confirm).await,
        other => other,
    };
    let session = tool.session()?;
    match verb {
        Verb::Init { .. } | Verb::Restore { .. } => unreachable!("handled above"),
        Verb::Status { view } => {
            view.repeat(async || {
                let status = fetch(&session, view.freshness()).await?;
                // Scripts read this one, so JSON is the default here and a table on request.
                match tool.format(Format::Json) {
                    Format::Table | Format::Wide => {
                        output::print(&Document::One(summary(&status)), Format::Table)?;
                        output::write_out("\n")?;
                        let members = status.members.iter().map(member).collect();
                        output::print(&Document::List("members", members), Format::Table)?;
                        output::write_out("\n")?;
                        output::print(&Document::List("keys", status.keys.iter().map(key).collect()), Format::Table)
                    }
                    format @ (Format::Json | Format::Yaml | Format::Csv | Format::Name) => {
                        output::print(&Document::One(record(&status)), format)
                    }
                }
            })
            .await
        }
        Verb::Snapshot => {
            let session = tool.session()?;
            let reply = ask!(
                session.within(session.timeout().max(LONG)),
                "build a snapshot",
                Freshness::Linearizable,
                ClusterClient.snapshot(SnapshotRequest {})
            )?;
            let record = Record::new(reply.last_index).column("last_index", "LAST INDEX", reply.last_index);
            tool.print(&Document::One(record.column("bytes", "BYTES", reply.bytes)))
        }
        Verb::EndRecovery { without, confirm } => restore::end_recovery(tool, without, confirm).await,
        Verb::Backup { file } => backup::back_up(tool, &file).await,
        Verb::AddNode { id, addresses, dry_run } => members::run(tool, Change::add(id, &addresses), dry_run).await,
        Verb::RemoveNode { id, force, confirm } => {
            members::remove(tool, RemoveNodeRequest { id, force }, confirm).await
        }
        Verb::ReplaceNode { old, id, addresses, dry_run } => {
            members::run(tool, Change::replace(old, id, &addresses), dry_run).await
        }
        Verb::RotateSecret => {
            let what = "rotate the secret";
            let reply = change!(session, what, ClusterClient.rotate_secret(RotateSecretRequest { request: None }))?;
            tool.print(&Document::One(Record::new(reply.key_id).column("key_id", "KEY", reply.key_id)))
        }
        Verb::TransferLeader { to } => {
            let what = "transfer the leadership";
            let request = TransferLeaderRequest { to: to.unwrap_or(0) };
            let reply = ask!(session, what, Freshness::Linearizable, ClusterClient.transfer_leader(request))?;
            let record = Record::new(reply.leader).column("leader", "LEADER", reply.leader);
            tool.print(&Document::One(record.column("term", "TERM", reply.term)))
        }
    }
}

pub(super) async fn fetch(session: &Session, fresh: Freshness) -> Result<ClusterStatus, Failure> {
    let request = ClusterStatusRequest { stale: fresh.is_stale() };
    ask!(session, "show the cluster status", fresh, ClusterClient.status(request))
}

/// No leader is null: 0 is no member.
fn leader(status: &ClusterStatus) -> Option<u64> {
    Some(status.leader).filter(|leader| *leader != 0)
}

pub(super) fn cluster_id(status: &ClusterStatus) -> String {
    ClusterId::from_slice(&status.cluster_id).map(|id| id.to_string()).unwrap_or_default()
}

fn summary(status: &ClusterStatus) -> Record {
    Record::new(cluster_id(status))
        .column("cluster_id", "CLUSTER", cluster_id(status))
        .column("leader", "LEADER", leader(status))
        .column("term", "TERM", status.term)
        .column("revision", "REVISION", status.revision)
        .column("health", "HEALTH", &status.health)
        .hidden("generation", status.cluster_generation)
        .hidden("recovering", status.recovering)
        .hidden("awaited_sds", Value::List(status.awaited_sds.iter().map(|name| Value::from(name.as_str())).collect()))
}

/// The keys that CLI scripts depend on.
pub(super) fn record(status: &ClusterStatus) -> Record {
    summary(status)
        .hidden("members", Value::List(status.members.iter().map(|row| member(row).value()).collect()))
        .hidden("keys", Value::List(status.keys.iter().map(|row| key(row).value()).collect()))
}

/// A generation of the secret that signs tokens.
fn key(row: &SecretKeyState) -> Record {
    Record::new(row.key_id)
        .column("key_id", "KEY", row.key_id)
        .column("state", "STATE", &row.state)
        .column("waiting_for", "WAITING FOR", row.waiting_for.join(","))
        .hidden("until_log_ms", row.until_log_ms)
}

fn member(row: &ClusterMember) -> Record {
    let addresses = row.addresses.clone().unwrap_or_default();
    Record::new(row.id)
        .column("id", "ID", row.id)
        .column("address", "ADDRESS", addresses.api)
        .column("role", "ROLE", &row.role)
        .column("state", "STATE", &row.state)
        .column("lag", "LAG", row.lag)
        .hidden("raft_address", addresses.raft)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_keys_are_those_of_the_contract() {
        let status = ClusterStatus {
            cluster_id: vec![7; 16],
            term: 3,
            members: vec![ClusterMember { id: 1, role: "follower".into(), ..ClusterMember::default() }],
            health: "ok".into(),
            ..ClusterStatus::default()
        };
        let json = output::render(&Document::One(record(&status)), Format::Json);
        let json: serde_json::Value = serde_json::from_str(&json).unwrap();
        for key in ["cluster_id", "leader", "term", "revision", "health", "members"] {
            assert!(json.get(key).is_some(), "{key}");
        }
        for key in ["id", "address", "role", "state", "lag"] {
            assert!(json["members"][0].get(key).is_some(), "{key}");
        }
        assert!(json["leader"].is_null(), "no leader is null, never 0");
    }
}
