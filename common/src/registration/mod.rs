//! How an SDS or SDC registers with the MDM: asked until it is answered, and which answers no waiting can cure.
//!
//! A component may start before its MDMs, before an operator has created it, or in the middle of an election; all of that
//! is waited for. What ends a start is a cluster that is not the one of the component's own files, a refusal that stands
//! (an illegal name, not allowed), and a newer process that has taken the component over ([`RegistrationError`]).
//!
//! What the answers change in a component's own files is the component's business; nothing here touches a disk. What
//! happens to a registered process when a newer one registers is in [`Takeover`].

mod takeover;

use std::time::Duration;

use pflex_proto::{
    ids::{ClusterGeneration, ClusterId},
    pb::{RegisterReply, RegisterRequest, discovery_client::DiscoveryClient},
    status::Reason,
};
use rand::RngExt as _;
use tokio::net::TcpListener;
use tracing::warn;

pub use takeover::Takeover;

use crate::{
    mdm::{MdmClient, MdmError, Patience},
    net::Endpoint,
};

/// For one try; there is another one after it.
const PATIENCE: Patience = Patience::within(Duration::from_secs(10));
/// Between two tries; up to half of it more at random, because all components of a cluster may start together.
const PAUSE: Duration = Duration::from_millis(300);
/// The longest name of a component; the MDM's own limit.
const MOST_NAME_BYTES: usize = 63;

/// Why a component cannot register, however long it waits.
#[derive(Debug, thiserror::Error)]
pub enum RegistrationError {
    /// The MDMs belong to another cluster than the component's files.
    #[error("it belongs to cluster {ours}, the MDMs to {theirs}")]
    OtherCluster {
        /// The component's cluster.
        ours: ClusterId,
        /// The MDMs' cluster, or what they say.
        theirs: String,
    },
    /// The MDM refuses it for good.
    #[error("the MDM refuses it: {why}")]
    Refused {
        /// What the MDM says.
        why: String,
    },
    /// The cluster was restored from a backup, and the SDS says first what it knew before (S19).
    #[error("it reports what it knew before the restore first: {why}")]
    ReportFirst {
        /// What the MDM says.
        why: String,
    },
    /// Another process of the same component has registered since.
    #[error("another process has taken it over: {why}")]
    Superseded {
        /// What the MDM says.
        why: String,
    },
}

/// What registration gives.
#[derive(Clone, PartialEq, Debug)]
pub struct Registered {
    /// The cluster; the client names it from now on.
    pub cluster: ClusterId,
    /// All that the MDM said.
    pub reply: RegisterReply,
}

/// Registers, for as long as it takes. `cluster` is the component's own, once it has one, and `generation` the newest it
/// has seen of it (0: none): one that is older does not become its cluster, however long it takes (S19). `request` gets
/// its id, cluster and generation here.
///
/// # Errors
/// [`RegistrationError`]: what no waiting can cure.
pub async fn register(
    client: &MdmClient,
    cluster: Option<ClusterId>,
    generation: ClusterGeneration,
    request: RegisterRequest,
) -> Result<Registered, RegistrationError> {
    if let Some(cluster) = cluster {
        client.set_cluster(cluster);
        client.set_generation(generation);
    }
    let cluster_id = cluster.map(|cluster| cluster.as_bytes().to_vec()).unwrap_or_default();
    let request = RegisterRequest { cluster_id, cluster_generation: generation.0, ..request };
    let mut told = String::new();
    loop {
        let call = |connection, id| {
            let request = RegisterRequest { request: Some(id), ..request.clone() };
            async move { DiscoveryClient::new(connection).register(request).await }
        };
        let why = match client.write(PATIENCE, call).await {
            Ok(reply) if reply.cluster_generation >= generation.0 => return accept(client, cluster, reply),
            Ok(reply) => older(reply.cluster_generation, generation),
            Err(error) => {
                if let Some(final_error) = judge(cluster, &error) {
                    return Err(final_error);
                }
                error.to_string()
            }
        };
        // Each reason is said once, not at every try.
        if why != told {
            warn!(error = why, "cannot register yet; trying until it works");
            told = why;
        }
        let jitter = rand::rng().random_range(Duration::ZERO..PAUSE / 2);
        tokio::time::sleep(PAUSE + jitter).await;
    }
}

fn older(theirs: u64, ours: ClusterGeneration) -> String {
    format!(
        "the MDMs are of generation {theirs} of the cluster and this component has followed generation {ours}, which a \
         restore from backup made: stop the old MDMs, or name the restored ones"
    )
}

fn accept(client: &MdmClient, ours: Option<ClusterId>, reply: RegisterReply) -> Result<Registered, RegistrationError> {
    let theirs = ClusterId::from_slice(&reply.cluster_id);
    let cluster = theirs.map_err(|error| RegistrationError::Refused { why: error.to_string() })?;
    match ours {
        Some(ours) if ours != cluster => Err(RegistrationError::OtherCluster { ours, theirs: cluster.to_string() }),
        Some(_) | None => {
            client.set_cluster(cluster);
            client.set_generation(ClusterGeneration(reply.cluster_generation));
            Ok(Registered { cluster, reply })
        }
    }
}

/// The error that ends the start; none if trying again may help.
fn judge(cluster: Option<ClusterId>, error: &MdmError) -> Option<RegistrationError> {
    let why = error.to_string();
    match error.reason()? {
        Reason::WrongCluster => {
            Some(RegistrationError::OtherCluster { ours: cluster.unwrap_or_default(), theirs: why })
        }
        Reason::Invalid | Reason::NotAllowed => Some(RegistrationError::Refused { why }),
        Reason::ReportFirst => Some(RegistrationError::ReportFirst { why }),
        // The verdict of a command in the log: somebody has opened a device, or registered the component, since (S2, S9).
        Reason::StaleEpoch => Some(RegistrationError::Superseded { why }),
        // Not created yet, a device still to be removed elsewhere, an election, a restart: all may change.
        Reason::NotLeader
        | Reason::UnknownOutcome
        | Reason::NoQuorum
        | Reason::SessionExpired
        | Reason::OutcomeForgotten
        | Reason::NotFound
        | Reason::AlreadyExists
        | Reason::InUse
        | Reason::Precondition
        | Reason::LimitReached
        | Reason::NoCapacity
        | Reason::Overloaded
        | Reason::Compacted
        | Reason::OlderGeneration
        | Reason::Internal
        | Reason::Behind
        | Reason::Removed
        | Reason::DeadlinePassed => None,
    }
}

/// Whether the MDM would take this name: 1 to 63 letters, digits, `-`, `_` or `.`, the first a letter or digit.
pub fn is_legal_name(name: &str) -> bool {
    let legal = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    name.len() <= MOST_NAME_BYTES && name.starts_with(|c: char| c.is_ascii_alphanumeric()) && name.chars().all(legal)
}

/// What a component says about a port of its own: the configured host, and the port that it really got (a configured
/// port of 0 lets the system choose).
pub fn reachable_at(configured: &Endpoint, listener: &TcpListener) -> Endpoint {
    let port = listener.local_addr().map_or(configured.port(), |address| address.port());
    Endpoint::new(configured.host(), port)
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use pflex_proto::{
        pb::{
            OpenClientReply, OpenClientRequest, TopologyReply, TopologyRequest,
            discovery_server::{Discovery, DiscoveryServer},
            sessions_server::{Sessions, SessionsServer},
        },
        status,
    };
    use tonic::{Request, Response, Status};

    use super::*;
    use crate::net;

    const CLUSTER: [u8; 16] = [9; 16];

    /// Answers as it was told, one answer after the other; the last one stays.
    #[derive(Clone, Default)]
    struct FakeMdm(Arc<Mutex<Vec<Result<RegisterReply, Status>>>>, Arc<Mutex<Vec<RegisterRequest>>>);

    #[tonic::async_trait]
    impl Sessions for FakeMdm {
        async fn open_client(&self, _: Request<OpenClientRequest>) -> Result<Response<OpenClientReply>, Status> {
            Ok(Response::new(OpenClientReply { client_id: 1, idle_timeout_ms: 60_000 }))
        }
    }

    #[tonic::async_trait]
    impl Discovery for FakeMdm {
        async fn register(&self, request: Request<RegisterRequest>) -> Result<Response<RegisterReply>, Status> {
            self.1.lock().unwrap().push(request.into_inner());
            let mut answers = self.0.lock().unwrap();
            let answer = if answers.len() > 1 { answers.remove(0) } else { answers[0].clone() };
            answer.map(Response::new)
        }

        async fn topology(&self, _: Request<TopologyRequest>) -> Result<Response<TopologyReply>, Status> {
            Err(Status::unimplemented("not asked for"))
        }
    }

    /// What comes of registering with an MDM that gives these answers, and what it was asked.
    async fn registering(
        cluster: Option<ClusterId>,
        answers: Vec<Result<RegisterReply, Status>>,
    ) -> (Result<Registered, RegistrationError>, Vec<RegisterRequest>) {
        let mdm = FakeMdm(Arc::new(Mutex::new(answers)), Arc::default());
        let listener = net::listen("test", &Endpoint::new("127.0.0.1", 0)).await.unwrap();
        let endpoint = reachable_at(&Endpoint::new("127.0.0.1", 0), &listener);
        let serving = tonic::transport::Server::builder()
            .add_service(SessionsServer::new(mdm.clone()))
            .add_service(DiscoveryServer::new(mdm.clone()));
        let serving = tokio::spawn(serving.serve_with_incoming(net::incoming(listener)));
        let request = RegisterRequest { name: "sds1".into(), ..Default::default() };
        let outcome = register(&MdmClient::new("test", vec![endpoint]), cluster, ClusterGeneration(5), request).await;
        serving.abort();
        let asked = std::mem::take(&mut *mdm.1.lock().unwrap());
        (outcome, asked)
    }

    fn welcome() -> Result<RegisterReply, Status> {
        Ok(RegisterReply { cluster_id: CLUSTER.to_vec(), id: 7, cluster_generation: 5, ..Default::default() })
    }

    fn refusal(reason: Reason) -> Result<RegisterReply, Status> {
        Err(status::status(reason, "why"))
    }

    #[tokio::test]
    async fn what_may_change_is_waited_for() {
        let answers = vec![refusal(Reason::NotFound), refusal(Reason::NotFound), welcome()];
        let (outcome, asked) = registering(None, answers).await;
        assert_eq!(outcome.unwrap().reply.id, 7);
        assert_eq!(asked.len(), 3);
        assert!(asked.iter().all(|request| request.cluster_id.is_empty()), "it has no cluster yet");
        let answered = asked.iter().map(|request| request.request.unwrap().sequence).collect::<Vec<_>>();
        assert_eq!(answered.len(), 3);
        assert!(answered.is_sorted_by(|a, b| a < b), "a definite refusal is followed by a new request: {answered:?}");
    }

    #[tokio::test]
    async fn mdms_of_an_older_generation_are_waited_out() {
        let old = welcome().map(|reply| RegisterReply { cluster_generation: 4, ..reply });
        let newer = welcome().map(|reply| RegisterReply { cluster_generation: 9, ..reply });
        let (outcome, asked) = registering(None, vec![old, newer]).await;
        assert_eq!(outcome.unwrap().reply.cluster_generation, 9);
        assert!(asked.iter().all(|request| request.cluster_generation == 5), "what it has followed so far");
    }

    #[tokio::test]
    async fn what_no_waiting_cures_is_an_error() {
        let ours = ClusterId::from_bytes([1; 16]);
        let (other, asked) = registering(Some(ours), vec![welcome()]).await;
        assert!(matches!(other, Err(RegistrationError::OtherCluster { ours: named, .. }) if named == ours));
        assert_eq!(asked[0].cluster_id, ours.as_bytes());
        for reason in [Reason::Invalid, Reason::NotAllowed] {
            let (outcome, asked) = registering(None, vec![refusal(reason)]).await;
            assert!(matches!(outcome, Err(RegistrationError::Refused { .. })), "{reason:?}");
            assert_eq!(asked.len(), 1);
        }
        let (wrong, _) = registering(Some(ours), vec![refusal(Reason::WrongCluster)]).await;
        assert!(matches!(wrong, Err(RegistrationError::OtherCluster { .. })));
        let (stale, _) = registering(None, vec![refusal(Reason::StaleEpoch)]).await;
        assert!(matches!(stale, Err(RegistrationError::Superseded { .. })));
    }

    #[test]
    fn names_are_plain() {
        for legal in ["sds1", "a", "rack-1.sds_2", &"x".repeat(63)] {
            assert!(is_legal_name(legal), "{legal:?}");
        }
        for illegal in ["", "a b", "ü", "a/b", "-a", &"x".repeat(64)] {
            assert!(!is_legal_name(illegal), "{illegal:?}");
        }
    }
}
