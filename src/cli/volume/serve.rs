//! `pflex volume map --wait`: done when the client serves the volume. Mapping is a fact of the cluster at once; the client
//! hears of it a moment later, and only its own word counts, given at its NBD port.

use std::{
    net::ToSocketAddrs as _,
    time::{Duration, Instant},
};

use pflex_proto::pb::{Volume, admin_client::AdminClient};

use crate::{
    cli::names::{one, only},
    client::{Freshness, Session, ask},
    error::{Exit, Failure},
    local::nbd_probe,
    units::format_duration,
};

/// Between two questions.
const PAUSE: Duration = Duration::from_millis(50);

pub(super) async fn wait(session: &Session, what: &str, volume: &Volume, sdc: &str) -> Result<(), Failure> {
    let deadline = Instant::now() + session.timeout();
    loop {
        let missing = match look(session, what, volume, sdc).await? {
            None => return Ok(()),
            Some(missing) => missing,
        };
        if Instant::now() >= deadline {
            let waited = format_duration(session.timeout());
            return Err(Failure::new(Exit::TimedOut, format!("{what}: it is mapped, but after {waited} {missing}"))
                .remedy("see that the client runs, or give a longer --timeout"));
        }
        tokio::time::sleep(PAUSE).await;
    }
}

/// What is missing; none if the client serves the volume. Its address is asked each time: it may register meanwhile.
async fn look(session: &Session, what: &str, volume: &Volume, sdc: &str) -> Result<Option<String>, Failure> {
    let fresh = Freshness::Linearizable;
    let row = only(ask!(session, what, fresh, AdminClient.list_sdcs(one(fresh, sdc)))?.sdcs, "sdc", sdc)?;
    let nbd = row.sdc.and_then(|sdc| sdc.addresses).unwrap_or_default().nbd;
    if nbd.is_empty() {
        return Ok(Some(format!("{sdc} has not registered")));
    }
    let Some(address) = nbd.to_socket_addrs().ok().and_then(|mut all| all.next()) else {
        return Ok(Some(format!("{sdc} cannot be reached at {nbd} from here")));
    };
    // Blocks for a second at most; nothing else runs in this process meanwhile.
    Ok(match nbd_probe::is_open(address, &volume.name) {
        Ok(true) => None,
        Ok(false) => Some(format!("{sdc} does not serve it")),
        Err(_) => Some(format!("{sdc} does not answer at {nbd}")),
    })
}
