//! `pflex sds maintenance`: a server is about to be stopped for a while. The MDM proves that nothing is lost by it, takes
//! the server's leads away, and makes nothing of its absence; the server itself is stopped and started by others. A
//! protected one moves all its copies elsewhere first.

use std::time::{Duration, Instant};

use clap::Subcommand;
use pflex_proto::pb::{
    MaintenanceRequest, ShowDrainRequest, admin_client::AdminClient, topology_client::TopologyClient,
};

use super::{
    Tool,
    complete::Of,
    drain,
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
        `--protected` costs no redundancy: all copies move to other servers first, and then it is in maintenance. Refused\n\
        when the others cannot take them. `exit` ends that at any time, and brings copies back.\n\n\
        Example:\n  pflex sds maintenance enter sds1 --wait\n  pflex sds maintenance enter sds1 --protected --wait"
    )]
    Enter {
        #[arg(add = Of::Servers.candidates())]
        name: String,
        /// Wait until it may be stopped [default limit: 10m; 24h with --protected].
        #[arg(long)]
        wait: bool,
        /// First move all its copies to other servers, so that no group has fewer while it is away.
        #[arg(long)]
        protected: bool,
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
        Verb::Enter { name, wait, protected: true } => protected(tool, session, name, wait).await,
        Verb::Enter { name, wait, protected: false } => {
            let what = format!("enter maintenance of SDS {name}");
            let mut told = false;
            loop {
                let request = MaintenanceRequest { request: None, sds: name.clone(), protected: false };
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
            let request = MaintenanceRequest { request: None, sds: name.clone(), protected: false };
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

/// All copies move elsewhere first, which takes as long as a drain.
async fn protected(tool: &Tool, session: &Session, name: String, wait: bool) -> Result<String, Failure> {
    let what = format!("enter protected maintenance of SDS {name}");
    let request = MaintenanceRequest { request: None, sds: name.clone(), protected: true };
    let reply = change!(session, &what, TopologyClient.enter_maintenance(request))?;
    let (mut entered, mut left) = (reply.entered, reply.copies_left);
    if !entered {
        eprintln!(
            "SDS {name}: {left} copies move to other servers first; `pflex sds show {name}` says when it is in maintenance"
        );
    }
    let limit = tool.options.timeout.unwrap_or(drain::LONG);
    let deadline = Instant::now() + limit;
    let mut told = String::new();
    while wait && !entered {
        let fresh = Freshness::Linearizable;
        let progress = ShowDrainRequest { stale: false, sds: name.clone(), device_id: 0 };
        let progress = ask!(session, &what, fresh, TopologyClient.show_drain(progress))?;
        let row = only(ask!(session, &what, fresh, AdminClient.list_sds(one(fresh, &name)))?.sds, "sds", &name)?;
        let sds = row.sds.unwrap_or_default();
        (entered, left) = (sds.maintenance_since_ms.is_some(), progress.copies_left);
        if !entered && sds.protected_since_ms.is_none() {
            let why = format!("{what}: it was ended meanwhile");
            return Err(Failure::new(Exit::Conflict, why).remedy("say it again if it is to be"));
        }
        let words = drain::progress(&progress);
        if !entered && left > 0 && told != words {
            eprintln!("{words}");
            told.clone_from(&words);
        }
        if !entered && Instant::now() >= deadline {
            let why = format!("{what}: after {} {words}", format_duration(limit));
            return Err(Failure::new(Exit::TimedOut, why)
                .remedy("it goes on; `pflex sds show NAME` says when it is in maintenance, `exit` ends it"));
        }
        tokio::time::sleep(if entered { Duration::ZERO } else { PAUSE }).await;
    }
    if entered {
        eprintln!("SDS {name} is in maintenance and may be stopped: every group has all of its copies elsewhere");
    }
    Ok(name)
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
