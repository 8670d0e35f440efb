//! `pflex volume unmap`, and `map` where it takes the right to write away: done when no server admits IO under the old authorisation any more (S20). While a server cannot
//! be reached, that is when the last token it might still accept has expired, a little more than a minute at most. The
//! command says so and waits as long as it may: for `--timeout`, or with `--wait` to the end.

use std::time::{Duration, Instant};

use pflex_proto::pb::{MappingReply, UnmapVolumeRequest, admin_client::AdminClient};

use super::{Tool, print};
use crate::{
    client::{Session, change},
    error::{Exit, Failure},
    units::format_duration,
};

pub(super) async fn run(
    tool: &Tool,
    session: &Session,
    volume: String,
    sdc: String,
    wait: bool,
) -> Result<(), Failure> {
    let started = Instant::now();
    let what = format!("unmap volume {volume} from {sdc}");
    let request = UnmapVolumeRequest { request: None, volume, sdc };
    let reply = change!(session, &what, AdminClient.unmap_volume(request))?;
    revoked(session, &what, ("unmapped", "IO"), started, &reply, wait).await?;
    match &reply.volume {
        Some(volume) => print(tool, session, volume).await,
        None => Ok(()),
    }
}

/// Returns when no server admits any more what was admitted before, or fails when that takes too long. `done` says what
/// the volume is now, and what may still be admitted.
pub(in crate::cli) async fn revoked(
    session: &Session,
    what: &str,
    (done, still): (&str, &str),
    started: Instant,
    reply: &MappingReply,
    wait: bool,
) -> Result<(), Failure> {
    let Some(pending) = pending(reply) else { return Ok(()) };
    let servers = reply.waiting_for.join(", ");
    let left = session.timeout().saturating_sub(started.elapsed());
    if pending > left && !wait {
        let why = format!(
            "{what}: it is {done}, but {servers} cannot be reached and may admit {still} for {} more",
            format_duration(pending)
        );
        return Err(Failure::new(Exit::TimedOut, why).remedy("wait that long, or give --wait or a longer --timeout"));
    }
    eprintln!("{done}; {servers} cannot be reached: waiting {} until the last token expires", format_duration(pending));
    tokio::time::sleep(pending).await;
    Ok(())
}

/// How long a server that could not be reached may still admit IO; none if all have confirmed.
fn pending(reply: &MappingReply) -> Option<Duration> {
    let ms = reply.pending_until_log_ms.saturating_sub(reply.log_time_ms);
    (ms > 0).then(|| Duration::from_millis(ms))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_pending_once_the_tokens_have_expired() {
        let reply =
            |until, now| MappingReply { pending_until_log_ms: until, log_time_ms: now, ..MappingReply::default() };
        assert_eq!(pending(&reply(0, 500)), None);
        assert_eq!(pending(&reply(400, 500)), None);
        assert_eq!(pending(&reply(1_500, 500)), Some(Duration::from_secs(1)));
    }
}
