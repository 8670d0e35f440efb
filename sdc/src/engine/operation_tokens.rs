//! Tokens of single operations, for volumes in per-io mode (S21).
//!
//! Each attempt of an operation asks for a token that names it and the device it goes to, and uses it once. What waits while one
//! request to the MDM is under way goes into the next, so that a deep queue costs one command for many operations.

use std::time::Duration;

use pflex_proto::ids::{ByteOffset, DeviceId, OperationId, VolumeId};
use pflex_proto::token::Rights;
use tokio::sync::{Mutex, mpsc, oneshot};
use tracing::debug;

use super::tokens::TokenSource;

/// Operations in one request to the MDM: a command of some 20 KiB.
const BATCH: usize = 512;
/// After a request in which nothing was granted: refusals cost the cluster a command, too.
const PAUSE: Duration = Duration::from_millis(50);
/// Operations that wait for one; further ones wait to be taken in.
const WAITING: usize = 4096;

/// One operation that a token is wanted for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Plan {
    /// Of which volume.
    pub volume: VolumeId,
    /// Who is asked to execute it.
    pub device: DeviceId,
    /// The write's id; 0 for what reads.
    pub operation: OperationId,
    /// `ReadWrite` is a write.
    pub rights: Rights,
    /// First byte of the volume.
    pub from: ByteOffset,
    /// First byte beyond.
    pub to: ByteOffset,
}

/// A signed token, or why there is none.
pub type Planned = Result<Vec<u8>, String>;

#[derive(Debug)]
struct Asked {
    plan: Plan,
    answer: oneshot::Sender<Planned>,
}

/// Where operations ask; served by [`super::TokenKeeper::run`].
#[derive(Debug)]
pub struct PlanDesk {
    asked: mpsc::Sender<Asked>,
    waiting: Mutex<mpsc::Receiver<Asked>>,
}

impl Default for PlanDesk {
    fn default() -> Self {
        let (asked, waiting) = mpsc::channel(WAITING);
        Self { asked, waiting: Mutex::new(waiting) }
    }
}

impl PlanDesk {
    /// Asks for a token of one operation. Without an MDM this waits; the caller says how long.
    ///
    /// # Errors
    /// Why there is none.
    pub async fn token(&self, plan: Plan) -> Planned {
        let (answer, answered) = oneshot::channel();
        let ended = || "this client is going down".to_owned();
        self.asked.send(Asked { plan, answer }).await.map_err(|_closed| ended())?;
        answered.await.unwrap_or_else(|_dropped| Err(ended()))
    }

    /// Asks `source` for what is wanted, for ever.
    pub(super) async fn serve(&self, source: &impl TokenSource) {
        let mut waiting = self.waiting.lock().await;
        let mut batch = Vec::new();
        while waiting.recv_many(&mut batch, BATCH).await > 0 {
            // Who gave up meanwhile needs none.
            batch.retain(|asked| !asked.answer.is_closed());
            let plans: Vec<_> = batch.iter().map(|asked| asked.plan).collect();
            if plans.is_empty() {
                continue;
            }
            let planned = source.issue_for(&plans).await;
            debug!(asked = plans.len(), ok = planned.is_ok(), "tokens of operations");
            match planned {
                Ok(planned) => {
                    let is_vain = planned.iter().all(Result::is_err);
                    // One that the answer lacks is dropped, and asks again.
                    for (asked, planned) in batch.drain(..).zip(planned) {
                        let _ = asked.answer.send(planned);
                    }
                    if is_vain {
                        tokio::time::sleep(PAUSE).await;
                    }
                }
                Err(error) => {
                    for asked in batch.drain(..) {
                        let _ = asked.answer.send(Err(format!("{error:#}")));
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex as StdMutex};

    use super::super::tokens::Issued;
    use super::*;

    /// Takes so long for each request, refuses odd operations, and notes how many it was asked for.
    struct Slow(Duration, Arc<StdMutex<Vec<usize>>>);

    impl TokenSource for Slow {
        async fn issue(&self, _volumes: &[VolumeId]) -> anyhow::Result<Vec<Issued>> {
            Ok(Vec::new())
        }

        async fn issue_for(&self, plans: &[Plan]) -> anyhow::Result<Vec<Planned>> {
            self.1.lock().unwrap().push(plans.len());
            tokio::time::sleep(self.0).await;
            let planned = |plan: &Plan| match plan.operation.0 {
                odd if odd % 2 == 1 => Err("odd".to_owned()),
                even => Ok(vec![even as u8]),
            };
            Ok(plans.iter().map(planned).collect())
        }
    }

    fn plan(operation: u64) -> Plan {
        Plan {
            volume: VolumeId(1),
            device: DeviceId(1),
            operation: OperationId(operation),
            rights: Rights::ReadWrite,
            from: ByteOffset(0),
            to: ByteOffset(4096),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_waits_goes_into_the_next_request_and_each_gets_its_own_answer() {
        let (desk, asked) = (Arc::new(PlanDesk::default()), Arc::new(StdMutex::default()));
        let (served, source) = (Arc::clone(&desk), Slow(Duration::from_secs(1), Arc::clone(&asked)));
        let serving = tokio::spawn(async move { served.serve(&source).await });
        let first = desk.token(plan(2));
        let given_up = tokio::time::timeout(Duration::from_millis(500), desk.token(plan(4)));
        let (first, given_up, rest) = tokio::join!(first, given_up, async {
            tokio::time::sleep(Duration::from_millis(100)).await;
            futures::future::join_all((5..100).map(|operation| desk.token(plan(operation)))).await
        });
        assert_eq!(first, Ok(vec![2]));
        assert!(given_up.is_err());
        for (operation, answer) in (5_u64..100).zip(rest) {
            assert_eq!(answer, if operation % 2 == 1 { Err("odd".into()) } else { Ok(vec![operation as u8]) });
        }
        let asked = asked.lock().unwrap().clone();
        assert_eq!(asked.last(), Some(&95), "{asked:?}: all that waited, without who gave up");
        serving.abort();
    }

    #[tokio::test(start_paused = true)]
    async fn who_is_refused_and_comes_back_at_once_costs_a_request_each_50_ms() {
        let (desk, asked) = (PlanDesk::default(), Arc::new(StdMutex::default()));
        let source = Slow(Duration::from_millis(1), Arc::clone(&asked));
        let insisting = async { while desk.token(plan(1)).await.is_err() {} };
        let second = tokio::time::timeout(Duration::from_secs(1), async {
            tokio::join!(insisting, desk.serve(&source));
        });
        assert!(second.await.is_err());
        let asked = asked.lock().unwrap().len();
        assert!((10..=20).contains(&asked), "{asked} requests");
    }
}
