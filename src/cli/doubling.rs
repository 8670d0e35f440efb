//! `pflex pool set-pgs`: the placement groups of a pool double, as often as it takes, while IO goes on.

use std::time::{Duration, Instant};

use pflex_proto::pb::{PoolRow, SetPgCountRequest, admin_client::AdminClient};

use super::{
    Tool,
    names::{one, only},
};
use crate::{
    client::{Freshness, Session, ask, change},
    error::{Exit, Failure},
    units::format_duration,
};

/// As many as the MDM gives a pool. It refuses more itself, but only after the steps up to there.
const MOST: u32 = 4_096;
/// Between two steps: servers put a map into force within seconds.
const LONG: Duration = Duration::from_secs(600);
/// Between two looks.
const PAUSE: Duration = Duration::from_millis(500);

/// A number of groups on the command line.
pub(super) fn count(text: &str) -> Result<u32, String> {
    match super::pool::power_of_two(text)? {
        count if count <= MOST => Ok(count),
        _ => Err(format!("a pool has at most {MOST} placement groups")),
    }
}

/// Each step is one change, which is over at once: no group loses its primary by it. The next one waits until every server
/// in service that has devices of the pool has said that it has put the last one into force, so that no server has more than
/// one to follow. That is not yet that its chunks are sorted again on disk: it serves meanwhile, and follows several steps as
/// well as one. If this command ends in between nothing is worse than before, and given again it goes on.
pub(super) async fn run(tool: &Tool, session: &Session, name: &str, asked: u32) -> Result<(), Failure> {
    let what = format!("set the placement groups of pool {name}");
    let limit = tool.options.timeout.unwrap_or(LONG);
    let mut now = look(session, &what, name).await?.pool.unwrap_or_default().pg_count;
    loop {
        let request = SetPgCountRequest { request: None, pool: name.to_owned(), pg_count: step(now, asked) };
        let pool = change!(session, &what, AdminClient.set_pg_count(request))?;
        if pool.pg_count >= asked {
            return Ok(());
        }
        now = pool.pg_count;
        eprintln!("pool {name} has {now} placement groups");
        let deadline = Instant::now() + limit;
        loop {
            let row = look(session, &what, name).await?;
            let left = row.devices_to_follow;
            if left == 0 {
                break;
            }
            if Instant::now() >= deadline {
                let waited = format_duration(limit);
                let why = format!("{what}: it has {now}, and after {waited} {left} devices have not followed that");
                return Err(Failure::new(Exit::TimedOut, why).remedy(format!(
                    "`pflex sds list` and `pflex why pool {name}` say which servers are behind; then give the same command again"
                )));
            }
            tokio::time::sleep(PAUSE).await;
        }
    }
}

/// What to ask for next. A number that cannot be reached is left to the MDM, which says what can.
fn step(now: u32, asked: u32) -> u32 {
    if asked > now { now.saturating_mul(2) } else { asked }
}

async fn look(session: &Session, what: &str, name: &str) -> Result<PoolRow, Failure> {
    let fresh = Freshness::Linearizable;
    only(ask!(session, what, fresh, AdminClient.list_pools(one(fresh, name)))?.pools, "pool", name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_gets_there_by_doubling() {
        let mut steps = vec![64];
        while steps[steps.len() - 1] < 512 {
            steps.push(step(steps[steps.len() - 1], 512));
        }
        assert_eq!(steps, [64, 128, 256, 512]);
        assert_eq!(step(64, 64), 64, "said again, it is said to the MDM again");
        assert_eq!(step(64, 32), 32, "the MDM says what may be given instead");
    }

    #[test]
    fn a_number_of_groups_has_a_bound() {
        assert_eq!(count("4096"), Ok(4_096));
        assert!(count("8192").unwrap_err().contains("at most 4096"));
        assert!(count("3").unwrap_err().contains("power of two"));
    }
}
