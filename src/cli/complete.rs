//! Names for the shell's completion: commands and flags are known, objects are asked of the MDM while somebody waits for
//! the Tab key. So any member will do, the wait is short, and whatever goes wrong just means no suggestions.

use std::time::Duration;

use clap_complete::engine::{ArgValueCandidates, CompletionCandidate};
use pflex_proto::pb::{admin_client::AdminClient, topology_client::TopologyClient};

use super::{Target, names::all};
use crate::{
    client::{Freshness, Session, ask},
    error::Failure,
    trace::Trace,
};

/// For the whole answer: longer than a well cluster needs, shorter than a person waits.
const LIMIT: Duration = Duration::from_millis(500);
const STALE: Freshness = Freshness::Stale;

/// What names are wanted of.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Of {
    Domains,
    Pools,
    FaultSets,
    Servers,
    Clients,
    Volumes,
}

impl Of {
    /// For `#[arg(add = ...)]`.
    pub(super) fn candidates(self) -> ArgValueCandidates {
        ArgValueCandidates::new(move || ask_for(self).into_iter().map(CompletionCandidate::new).collect::<Vec<_>>())
    }
}

fn ask_for(of: Of) -> Vec<String> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let (Ok(runtime), Ok(members)) = (runtime, target(std::env::args()).members()) else { return Vec::new() };
    let random = uuid::Uuid::new_v4();
    let session = Session::new(members, LIMIT, Trace::new(random.as_u128(), random.as_u64_pair().0));
    let answer = runtime.block_on(async { tokio::time::timeout(LIMIT, names(&session, of)).await });
    answer.ok().and_then(Result::ok).unwrap_or_default()
}

async fn names(session: &Session, of: Of) -> Result<Vec<String>, Failure> {
    let (what, request) = ("complete", all(STALE));
    Ok(match of {
        Of::Domains => {
            let rows = ask!(session, what, STALE, AdminClient.list_domains(request))?.domains;
            rows.into_iter().map(|row| row.name).collect()
        }
        Of::Pools => {
            let rows = ask!(session, what, STALE, AdminClient.list_pools(request))?.pools;
            rows.into_iter().filter_map(|row| row.pool).map(|pool| pool.name).collect()
        }
        Of::FaultSets => {
            let rows = ask!(session, what, STALE, TopologyClient.list_fault_sets(request))?.fault_sets;
            rows.into_iter().map(|row| row.name).collect()
        }
        Of::Servers => {
            let rows = ask!(session, what, STALE, AdminClient.list_sds(request))?.sds;
            rows.into_iter().filter_map(|row| row.sds).map(|sds| sds.name).collect()
        }
        Of::Clients => {
            let rows = ask!(session, what, STALE, AdminClient.list_sdcs(request))?.sdcs;
            rows.into_iter().filter_map(|row| row.sdc).map(|sdc| sdc.name).collect()
        }
        Of::Volumes => {
            let rows = ask!(session, what, STALE, AdminClient.list_volumes(request))?.volumes;
            rows.into_iter().map(|volume| volume.name).collect()
        }
    })
}

/// Which cluster the line so far names. It is not parsed: it is unfinished by nature.
fn target(words: impl Iterator<Item = String>) -> Target {
    let words: Vec<String> = words.collect();
    let value = |flag: &str| {
        let after = words.iter().zip(words.iter().skip(1)).find(|(word, _)| *word == flag).map(|(_, value)| value);
        let joined = words.iter().find_map(|word| word.strip_prefix(flag)?.strip_prefix('='));
        after.map(String::as_str).or(joined).map(ToOwned::to_owned)
    };
    Target { mdm: value("--mdm"), context: value("--context") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cluster_on_the_line_is_the_one_that_is_asked() {
        let target = |line: &str| target(line.split(' ').map(ToOwned::to_owned));
        assert_eq!(target("pflex volume --mdm a:1 show d").mdm.as_deref(), Some("a:1"));
        assert_eq!(target("pflex --context=b volume show d").context.as_deref(), Some("b"));
        assert_eq!(target("pflex volume show --mdm").mdm, None);
    }
}
