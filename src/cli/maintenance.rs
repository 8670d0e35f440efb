//! `pflex sds maintenance`: a server is about to be stopped for a while. The MDM proves that nothing is lost by it, takes
//! the server's leads away, and makes nothing of its absence; the server itself is stopped and started by others.

use std::time::{Duration, Instant};

use clap::Subcommand;
use pflex_proto::pb::{MaintenanceRequest, admin_client::AdminClient, topology_client::TopologyClient};

use super::{
    Tool,
    complete::Of,
    names::{one, only},
};
use crate::{
    client::{Freshness, Session, ask, change},
    error::{Exit, Failure},
    units::format_duration,
};

/// With `--wait`: as long as copies of a busy server take to be in sync again.
const LONG: Duration = Duration::from_secs(600);
/// Between two tries, or looks.
const PAUSE: Duration = Duration::from_millis(500);

#[derive(Subcommand, Debug)]
#[command(arg_required_else_help = true)]
pub(super) enum Verb {
    /// Prepare to stop a server: it leads nothing any more, and its copies keep their places while it is away.
    #[command(
        after_help = "Refused while a group would be left without a copy in service: `--wait` waits for copies that are not\n\
        in sync yet. Said again, it proves again that the server may be stopped.\n\n\
        Example:\n  pflex sds maintenance enter sds1 --wait"
    )]
    Enter {
        #[arg(add = Of::Servers.candidates())]
        name: String,
        /// Wait until it may be stopped [default limit: 10m].
        #[arg(long)]
        wait: bool,
    },
    /// Say that a server is there again, or is to be missed from now on.
    #[command(after_help = "Example:\n  pflex sds maintenance exit sds1 --wait")]
    Exit {
        #[arg(add = Of::Servers.candidates())]
        name: String,
        /// Wait until it is alive and its copies are in sync [default limit: 10m].
        #[arg(long)]
        wait: bool,
    },
}

/// Returns the server's name.
pub(super) async fn run(verb: Verb, tool: &Tool, session: &Session) -> Result<String, Failure> {
    let deadline = Instant::now() + tool.options.timeout.unwrap_or(LONG);
    match verb {
        Verb::Enter { name, wait } => {
            let what = format!("enter maintenance of SDS {name}");
            let mut told = false;
            loop {
                let request = MaintenanceRequest { request: None, sds: name.clone() };
                match change!(session, &what, TopologyClient.enter_maintenance(request)) {
                    Ok(_) => break,
                    // What is missing may come; everything else stays as it is.
                    Err(refusal) if wait && refusal.exit() == Exit::Conflict => {
                        if Instant::now() >= deadline {
                            return Err(refusal);
                        }
                        if !std::mem::replace(&mut told, true) {
                            eprintln!("waiting: {refusal}");
                        }
                        tokio::time::sleep(PAUSE).await;
                    }
                    Err(failure) => return Err(failure),
                }
            }
            eprintln!("SDS {name} is in maintenance and may be stopped");
            Ok(name)
        }
        Verb::Exit { name, wait } => {
            let what = format!("exit maintenance of SDS {name}");
            let request = MaintenanceRequest { request: None, sds: name.clone() };
            change!(session, &what, TopologyClient.exit_maintenance(request))?;
            while let Some(missing) = if wait { missing(session, &what, &name).await? } else { None } {
                if Instant::now() >= deadline {
                    let limit = format_duration(tool.options.timeout.unwrap_or(LONG));
                    let why = format!("{what}: it is not in maintenance any more, but after {limit} {missing}");
                    return Err(Failure::new(Exit::TimedOut, why)
                        .remedy("`pflex why sds NAME` says more; or give a longer --timeout"));
                }
                tokio::time::sleep(PAUSE).await;
            }
            Ok(name)
        }
    }
}

/// What keeps a server from being as before; none when its copies are in sync.
async fn missing(session: &Session, what: &str, name: &str) -> Result<Option<String>, Failure> {
    let fresh = Freshness::Linearizable;
    let row = only(ask!(session, what, fresh, AdminClient.list_sds(one(fresh, name)))?.sds, "sds", name)?;
    Ok(if !row.sds.is_some_and(|sds| sds.alive) {
        Some("it is not alive".to_owned())
    } else if let Some(device) = row.devices.iter().find(|device| !device.alive) {
        Some(format!("its device {} ({}) is not in service", device.id, device.path))
    } else {
        (row.pgs_joining > 0).then(|| format!("{} of its copies are not in sync", row.pgs_joining))
    })
}
