//! `pflex sds drain` and `pflex device drain`: a server, or one of its devices, is to be taken out for good. The MDM proves
//! that the others can take its copies, and moves them there; no group ever has fewer than before.

use std::time::{Duration, Instant};

use pflex_proto::pb::{DrainReply, DrainRequest, ShowDrainRequest, topology_client::TopologyClient};

use super::Tool;
use crate::{
    client::{Freshness, Session, ask, change},
    error::{Exit, Failure},
    units::format_duration,
};

/// With `--wait`: moving all copies of a server takes long.
pub(super) const LONG: Duration = Duration::from_secs(24 * 3_600);
/// Between two looks.
const PAUSE: Duration = Duration::from_millis(500);

#[derive(clap::Args, Debug)]
pub(super) struct Args {
    /// Wait until it is empty [default limit: 24h].
    #[arg(long, conflicts_with = "cancel")]
    wait: bool,
    /// Let it stay after all: copies that have not moved stay there.
    #[arg(long)]
    cancel: bool,
}

/// What is drained.
#[derive(Debug)]
pub(super) enum Object {
    Sds(String),
    Device(u32),
}

impl Object {
    fn label(&self) -> String {
        match self {
            Self::Sds(name) => format!("SDS {name}"),
            Self::Device(id) => format!("device {id}"),
        }
    }

    /// How it is named in a request.
    fn names(&self) -> (String, u32) {
        match self {
            Self::Sds(name) => (name.clone(), 0),
            Self::Device(id) => (String::new(), *id),
        }
    }

    /// What takes it away once it is empty.
    fn remove(&self) -> String {
        match self {
            Self::Sds(name) => format!("`pflex sds remove {name}`"),
            Self::Device(id) => format!("`pflex device remove {id}`"),
        }
    }
}

pub(super) async fn run(tool: &Tool, session: &Session, object: &Object, args: &Args) -> Result<(), Failure> {
    let (label, (sds, device_id)) = (object.label(), object.names());
    let what = format!("drain {label}");
    let request = DrainRequest { request: None, sds, device_id, cancel: args.cancel };
    let mut reply = change!(session, &what, TopologyClient.drain(request))?;
    if args.cancel {
        eprintln!("{label} is not drained any more; {} copies are on it", reply.copies_left);
        return Ok(());
    }
    let limit = tool.options.timeout.unwrap_or(LONG);
    let deadline = Instant::now() + limit;
    let mut told = String::new();
    while args.wait && reply.copies_left > 0 {
        let missing = progress(&reply);
        if Instant::now() >= deadline {
            let why = format!("{what}: after {} {missing}", format_duration(limit));
            return Err(
                Failure::new(Exit::TimedOut, why).remedy("it goes on; `pflex rebuild list` shows how far it is")
            );
        }
        if missing != told {
            eprintln!("{label}: {missing}");
            told = missing;
        }
        tokio::time::sleep(PAUSE).await;
        let (sds, device_id) = object.names();
        let fresh = Freshness::Linearizable;
        reply =
            ask!(session, &what, fresh, TopologyClient.show_drain(ShowDrainRequest { stale: false, sds, device_id }))?;
        if !reply.draining {
            return Err(Failure::new(Exit::Conflict, format!("{what}: somebody has cancelled it")));
        }
    }
    match reply.copies_left {
        0 => eprintln!("{label} is empty; {} takes it away", object.remove()),
        _ => eprintln!("{label} is being drained: {}; `pflex rebuild list` shows how far it is", progress(&reply)),
    }
    Ok(())
}

pub(super) fn progress(reply: &DrainReply) -> String {
    let copies = if reply.copies_left == 1 { "1 copy".to_owned() } else { format!("{} copies", reply.copies_left) };
    match reply.waits_for.as_slice() {
        [] => format!("{copies} left"),
        waits => format!("{copies} left ({})", waits.join("; ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn progress_says_how_much_and_what_for_it_waits() {
        let reply = DrainReply { draining: true, copies_left: 1, waits_for: Vec::new() };
        assert_eq!(progress(&reply), "1 copy left");
        let waits_for = vec!["2 copies stay: nobody serves their groups".to_owned()];
        let reply = DrainReply { copies_left: 5, waits_for, ..reply };
        assert_eq!(progress(&reply), "5 copies left (2 copies stay: nobody serves their groups)");
    }
}
