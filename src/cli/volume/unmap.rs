//! `pflex volume unmap`: done when no server admits IO under the old authorisation any more (S20). While a server cannot
//! be reached, that is when the last token it might still accept has expired, a little more than a minute at most. The
//! command says so and waits as long as it may: for `--timeout`, or with `--wait` to the end.

use std::time::{Duration, Instant};

use pflex_proto::pb::{UnmapVolumeReply, UnmapVolumeRequest, admin_client::AdminClient};

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
    if let Some(pending) = pending(&reply) {
        let servers = reply.waiting_for.join(", ");
        let left = session.timeout().saturating_sub(started.elapsed());
        if pending > left && !wait {
            return Err(Failure::new(
                Exit::TimedOut,
                format!(
                    "{what}: it is unmapped, but {servers} cannot be reached and may admit IO for {} more",
                    format_duration(pending)
                ),
            )
            .remedy("wait that long, or give --wait or a longer --timeout"));
        }
        eprintln!(
            "unmapped; {servers} cannot be reached: waiting {} until the last token expires",
            format_duration(pending)
        );
        tokio::time::sleep(pending).await;
    }
    match &reply.volume {
        Some(volume) => print(tool, session, volume).await,
        None => Ok(()),
    }
}

/// How long a server that could not be reached may still admit IO; none if all have confirmed.
fn pending(reply: &UnmapVolumeReply) -> Option<Duration> {
    let ms = reply.pending_until_log_ms.saturating_sub(reply.log_time_ms);
    (ms > 0).then(|| Duration::from_millis(ms))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_pending_once_the_tokens_have_expired() {
        let reply = |until, now| UnmapVolumeReply {
            pending_until_log_ms: until,
            log_time_ms: now,
            ..UnmapVolumeReply::default()
        };
        assert_eq!(pending(&reply(0, 500)), None);
        assert_eq!(pending(&reply(400, 500)), None);
        assert_eq!(pending(&reply(1_500, 500)), Some(Duration::from_secs(1)));
    }
}
