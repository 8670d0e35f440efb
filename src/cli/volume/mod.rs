//! `pflex volume`: block devices that clients see.

mod chunks;
mod record;
mod serve;
mod unmap;

use std::time::Instant;

use clap::{Subcommand, ValueEnum};
use pflex_proto::pb::{
    Access, CreateVolumeRequest, DeleteRequest, LimitMappingRequest, MapVolumeRequest, RenameRequest,
    ResizeVolumeRequest, TokenMode, Volume, admin_client::AdminClient,
};

use super::{
    Tool,
    complete::Of,
    names::{all, one, only},
    target::Target,
    view::ViewArgs,
};
use crate::{
    client::{Freshness, Session, ask, change},
    confirm::{ConfirmArgs, confirm},
    error::{Exit, Failure},
    output::Document,
    units::{format_size, parse_size, parse_volume_size},
};
use record::Lookup;
pub(super) use unmap::revoked;

#[derive(clap::Args, Debug)]
#[command(arg_required_else_help = true)]
pub(super) struct Args {
    #[command(flatten)]
    pub(super) target: Target,
    #[command(subcommand)]
    pub(super) verb: Verb,
}

/// How IO on the volume is authorised.
#[derive(ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mode {
    /// One token for any IO for a minute, renewed in the background.
    Lease,
    /// One token for each IO.
    PerIo,
}

/// What a mapping allows.
#[derive(ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Rights {
    /// Read and write.
    Rw,
    /// Read only.
    Ro,
}

#[derive(Subcommand, Debug)]
pub(super) enum Verb {
    /// Make a volume.
    #[command(after_help = "Example:\n  pflex volume create db --size 10GiB --pool default")]
    Create {
        name: String,
        /// A multiple of 4KiB, like 512MiB or 10GiB.
        #[arg(long, value_parser = parse_volume_size)]
        size: u64,
        /// Where its space comes from.
        #[arg(long, default_value = "default", add = Of::Pools.candidates())]
        pool: String,
        /// How IO is authorised: by a token that is renewed each 15 s, or by one for each operation, signed and recorded by the
        /// MDM leader before the operation starts. That costs a command of the quorum for each batch of operations, and IO
        /// stops while no leader answers.
        #[arg(long, value_enum, default_value_t = Mode::Lease)]
        token_mode: Mode,
        /// Succeed if it exists already with these properties.
        #[arg(long)]
        if_not_exists: bool,
    },
    /// List the volumes.
    #[command(after_help = "Example:\n  pflex volume list -o json")]
    List {
        #[command(flatten)]
        view: ViewArgs,
    },
    /// Show one.
    #[command(after_help = "Example:\n  pflex volume show db")]
    Show {
        #[arg(add = Of::Volumes.candidates())]
        name: String,
        #[command(flatten)]
        view: ViewArgs,
    },
    /// Give it another name.
    #[command(after_help = "Example:\n  pflex volume rename db db-old")]
    Rename {
        #[arg(add = Of::Volumes.candidates())]
        name: String,
        new_name: String,
    },
    /// Give it another size. Making it smaller destroys what lies behind the new end.
    #[command(after_help = "Example:\n  pflex volume resize db --size 20GiB")]
    Resize {
        #[arg(add = Of::Volumes.candidates())]
        name: String,
        /// A multiple of 4KiB, like 512MiB or 10GiB.
        #[arg(long, value_parser = parse_volume_size)]
        size: u64,
        #[command(flatten)]
        confirm: ConfirmArgs,
    },
    /// Show it to a client, which then serves it as an NBD export of its name.
    #[command(after_help = "Example:\n  pflex volume map db sdc1 --access ro")]
    Map {
        #[arg(add = Of::Volumes.candidates())]
        volume: String,
        #[arg(add = Of::Clients.candidates())]
        sdc: String,
        /// What the client may do.
        #[arg(long, value_enum, default_value_t = Rights::Rw)]
        access: Rights,
        /// IOs per second at most; 0 for no limit.
        #[arg(long, default_value_t = 0)]
        iops: u64,
        /// Bytes per second at most, like 100MiB; 0 for no limit.
        #[arg(long, default_value = "0", value_parser = parse_size)]
        bandwidth: u64,
        /// Return when the client serves it: what is mapped is known to the client a moment later. And where it takes the
        /// right to write away, wait longer than --timeout for servers that cannot be reached, as `unmap` does.
        #[arg(long)]
        wait: bool,
    },
    /// Change how much a client may do with it; what is not named stays. Holds at once, also for what waits already.
    #[command(after_help = "Example:\n  pflex volume limits db sdc1 --iops 500 --bandwidth 50MiB")]
    Limits {
        #[arg(add = Of::Volumes.candidates())]
        volume: String,
        #[arg(add = Of::Clients.candidates())]
        sdc: String,
        /// IOs per second at most; 0 for no limit.
        #[arg(long, required_unless_present = "bandwidth")]
        iops: Option<u64>,
        /// Bytes per second at most, like 100MiB; 0 for no limit.
        #[arg(long, value_parser = parse_size)]
        bandwidth: Option<u64>,
    },
    /// Take it away from a client; returns when no IO with the old authorisation can happen any more.
    #[command(after_help = "Example:\n  pflex volume unmap db sdc1 --wait")]
    Unmap {
        #[arg(add = Of::Volumes.candidates())]
        volume: String,
        #[arg(add = Of::Clients.candidates())]
        sdc: String,
        /// While a server cannot be reached, wait longer than --timeout: until the last token it accepts has expired, a
        /// little more than a minute at most.
        #[arg(long)]
        wait: bool,
    },
    /// Remove it and its data.
    #[command(after_help = "Example:\n  pflex volume delete db --yes")]
    Delete {
        #[arg(add = Of::Volumes.candidates())]
        name: String,
        #[command(flatten)]
        confirm: ConfirmArgs,
    },
    /// Show where its chunks are.
    #[command(after_help = "Example:\n  pflex volume chunks db --first 0 --count 16")]
    Chunks(chunks::Args),
}

pub(super) async fn run(verb: Verb, tool: &Tool) -> Result<(), Failure> {
    let session = tool.session()?;
    match verb {
        Verb::Create { name, size, pool, token_mode, if_not_exists } => {
            let what = format!("create volume {name}");
            let token_mode = match token_mode {
                Mode::Lease => TokenMode::Lease,
                Mode::PerIo => TokenMode::PerIo,
            };
            let request = CreateVolumeRequest {
                request: None,
                name,
                pool,
                size_bytes: size,
                token_mode: token_mode.into(),
                if_not_exists,
            };
            let volume = change!(session, &what, AdminClient.create_volume(request))?;
            check_size(&what, &volume, size)?;
            print(tool, &session, &volume).await
        }
        Verb::List { view } => {
            view.show(tool, async || {
                let fresh = view.freshness();
                let names = Lookup::load(&session, fresh).await?;
                let reply = ask!(session, "list volumes", fresh, AdminClient.list_volumes(all(fresh)))?;
                Ok(Document::List("volumes", reply.volumes.iter().map(|volume| names.record(volume)).collect()))
            })
            .await
        }
        Verb::Show { name, view } => {
            view.show(tool, async || {
                let fresh = view.freshness();
                let volume = find(&session, fresh, "show", &name).await?;
                Ok(Document::One(Lookup::load(&session, fresh).await?.record(&volume)))
            })
            .await
        }
        Verb::Rename { name, new_name } => {
            let what = format!("rename volume {name} to {new_name}");
            let request = RenameRequest { request: None, name, new_name };
            let volume = change!(session, &what, AdminClient.rename_volume(request))?;
            print(tool, &session, &volume).await
        }
        Verb::Resize { name, size, confirm: args } => resize(tool, &session, name, size, args).await,
        Verb::Map { volume, sdc, access, iops, bandwidth, wait } => {
            let started = Instant::now();
            let what = format!("map volume {volume} to {sdc}");
            let access = match access {
                Rights::Rw => Access::ReadWrite,
                Rights::Ro => Access::ReadOnly,
            };
            let request = MapVolumeRequest {
                request: None,
                volume,
                sdc: sdc.clone(),
                access: access.into(),
                iops_limit: iops,
                bandwidth_limit: bandwidth,
            };
            let reply = change!(session, &what, AdminClient.map_volume(request))?;
            unmap::revoked(&session, &what, ("mapped read-only", "writes"), started, &reply, wait).await?;
            let volume = reply.volume.unwrap_or_default();
            if wait {
                serve::wait(&session, &what, &volume, &sdc).await?;
            }
            print(tool, &session, &volume).await
        }
        Verb::Limits { volume, sdc, iops, bandwidth } => {
            let what = format!("limit volume {volume} at {sdc}");
            let request =
                LimitMappingRequest { request: None, volume, sdc, iops_limit: iops, bandwidth_limit: bandwidth };
            let volume = change!(session, &what, AdminClient.limit_mapping(request))?;
            print(tool, &session, &volume).await
        }
        Verb::Unmap { volume, sdc, wait } => unmap::run(tool, &session, volume, sdc, wait).await,
        Verb::Delete { name, confirm: args } => {
            let volume = find(&session, Freshness::Linearizable, "delete", &name).await?;
            let loss = format!("volume {name} ({}) and its data", format_size(volume.size_bytes));
            if confirm(args, &loss, &name)? {
                let what = format!("delete volume {name}");
                let request = DeleteRequest { request: None, name: name.clone() };
                change!(session, &what, AdminClient.delete_volume(request))?;
                eprintln!("volume {name} is deleted");
            }
            Ok(())
        }
        Verb::Chunks(args) => chunks::run(args, tool, &session).await,
    }
}

/// Growing is harmless; shrinking is asked about like a deletion.
async fn resize(tool: &Tool, session: &Session, name: String, size: u64, args: ConfirmArgs) -> Result<(), Failure> {
    let before = find(session, Freshness::Linearizable, "resize", &name).await?.size_bytes;
    let (old, new) = (format_size(before), format_size(size));
    if size < before && !confirm(args, &format!("everything behind {new} of volume {name} ({old})"), &name)? {
        return Ok(());
    }
    if args.dry_run {
        eprintln!("would resize volume {name} from {old} to {new}; nothing was done");
        return Ok(());
    }
    let what = format!("resize volume {name}");
    let request = ResizeVolumeRequest { request: None, name, size_bytes: size };
    let volume = change!(session, &what, AdminClient.resize_volume(request))?;
    print(tool, session, &volume).await
}

/// "If it does not exist" is about this very volume: a script that asked for another size must not go on with this one.
fn check_size(what: &str, volume: &Volume, asked: u64) -> Result<(), Failure> {
    if volume.size_bytes == asked {
        return Ok(());
    }
    let (is, wish) = (volume.size_bytes, asked);
    Err(Failure::new(Exit::Conflict, format!("{what}: it exists with {is} bytes, not {wish}"))
        .remedy("choose another name, or use `volume resize`"))
}

async fn find(session: &Session, fresh: Freshness, action: &str, name: &str) -> Result<Volume, Failure> {
    let what = format!("{action} volume {name}");
    let reply = ask!(session, &what, fresh, AdminClient.list_volumes(one(fresh, name)))?;
    only(reply.volumes, "volume", name)
}

/// The volume as a change left it. The change is done, so a failure to look up names must not turn it into an error.
async fn print(tool: &Tool, session: &Session, volume: &Volume) -> Result<(), Failure> {
    let names = Lookup::load(session, Freshness::Linearizable).await.unwrap_or_default();
    tool.print(&Document::One(names.record(volume)))
}
