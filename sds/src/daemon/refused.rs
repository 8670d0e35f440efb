//! Brings the counts of refused tokens to the MDM: those of all devices together, by source, each once.
//!
//! What cannot be told is kept and added to. An answer that is lost for longer than one call is patient may count a report
//! twice; none is lost while this process lives.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use pflex_common::mdm::{MdmError, Patience};
use pflex_proto::pb::{BadTokens, NoteBadTokensRequest, refused_tokens_client::RefusedTokensClient};
use tokio::sync::mpsc;
use tracing::warn;

use super::Server;

/// Reports that wait: those of 64 devices, one each 5 s, for a minute.
pub(super) const QUEUE: usize = 1_024;
/// Sources told apart while no MDM answers; beyond it they are counted as one. As many as the MDM keeps.
const MAX_SOURCES: usize = 4_096;
/// For one report; then what has come meanwhile is added to it.
const PATIENCE: Patience = Patience::within(Duration::from_secs(10));
/// After one that did not get through.
const PAUSE: Duration = Duration::from_secs(5);

/// Until all data threads are gone.
pub(super) async fn run(server: Arc<Server>, mut queue: mpsc::Receiver<Vec<BadTokens>>) {
    let mut waiting = Waiting::default();
    loop {
        if waiting.0.is_empty() {
            let Some(more) = queue.recv().await else { return };
            waiting.add(more);
        }
        while let Ok(more) = queue.try_recv() {
            waiting.add(more);
        }
        match note(&server, waiting.0.values().cloned().collect()).await {
            Ok(()) => waiting.0.clear(),
            Err(error) if queue.is_closed() => return warn!(%error, "refused tokens were not reported"),
            Err(error) => {
                warn!(%error, "refused tokens are not reported yet; trying again");
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
}

async fn note(server: &Server, sources: Vec<BadTokens>) -> Result<(), MdmError> {
    let call = |connection, id| {
        let request = NoteBadTokensRequest { request: Some(id), sds_id: server.id.0, sources: sources.clone() };
        async move { RefusedTokensClient::new(connection).note(request).await }
    };
    server.client.write(PATIENCE, call).await.map(drop)
}

/// Not told yet, by SDC and address.
#[derive(Debug, Default)]
struct Waiting(BTreeMap<(u32, String), BadTokens>);

impl Waiting {
    fn add(&mut self, more: Vec<BadTokens>) {
        for more in more {
            let own = (more.sdc_id, more.address.clone());
            let fits = self.0.len() < MAX_SOURCES || self.0.contains_key(&own);
            // Without an address: of sources that are not told apart.
            let key = if fits { own } else { Default::default() };
            let (sdc_id, address) = key.clone();
            let sum = self.0.entry(key).or_insert_with(|| BadTokens { sdc_id, address, ..Default::default() });
            for (sum, more) in [
                (&mut sum.forged, more.forged),
                (&mut sum.expired, more.expired),
                (&mut sum.revoked, more.revoked),
                (&mut sum.replayed, more.replayed),
                (&mut sum.foreign, more.foreign),
                (&mut sum.unknown_key, more.unknown_key),
            ] {
                *sum = sum.saturating_add(more);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn forged(sdc_id: u32, forged: u64) -> BadTokens {
        BadTokens { sdc_id, address: "10.0.0.1".into(), forged, ..Default::default() }
    }

    #[test]
    fn what_devices_say_of_one_source_is_one_and_what_waits_is_bounded() {
        let mut waiting = Waiting::default();
        waiting.add(vec![forged(1, 2), BadTokens { replayed: 1, ..forged(1, 0) }]);
        waiting.add(vec![forged(1, 3)]);
        let sum: Vec<_> = waiting.0.values().cloned().collect();
        assert_eq!(sum, [BadTokens { replayed: 1, ..forged(1, 5) }]);
        for sdc in 0..10_000 {
            waiting.add(vec![forged(sdc, 1)]);
        }
        assert_eq!(waiting.0.len(), MAX_SOURCES + 1);
        let all: u64 = waiting.0.values().map(|source| source.forged).sum();
        assert_eq!(all, 5 + 10_000, "each is counted somewhere");
        assert_eq!(waiting.0[&(0, String::new())].forged, 10_000 - MAX_SOURCES as u64);
    }
}
