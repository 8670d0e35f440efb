//! Asking a storage process itself, at its management port, whether it serves.
//!
//! The MDM's verdict is about the life of a process that it last heard of, and a death takes it up to 3 s to notice. The
//! management port knows no such delay: nobody else can listen on it, and statistics are served only after the process has
//! registered, so an answer proves that this very life is the one the MDM knows.

use std::{io, time::Duration};

use pflex_common::net::Endpoint;
use pflex_proto::pb::{
    Addresses, SdcStats, SdcStatsRequest, SdsStats, SdsStatsRequest, sdc_management_client::SdcManagementClient,
    sds_management_client::SdsManagementClient,
};
use tokio::net::TcpStream;
use tonic::{Response, Status};

/// What became of a question.
#[derive(Debug)]
pub(crate) enum Answer<T> {
    /// It serves, and says this.
    Serves(T),
    /// Its machine says that nobody listens there: the process is dead.
    Nobody,
    /// It listens and does not answer in time: it starts, ends, is frozen or overloaded.
    Silent,
    /// It cannot be reached from here, which proves nothing: management may be another network.
    Unreachable,
}

/// A storage server.
pub(crate) async fn server(endpoint: Endpoint, limit: Duration) -> Answer<SdsStats> {
    let channel = endpoint.channel();
    let call = async move { SdsManagementClient::new(channel).stats(SdsStatsRequest {}).await };
    ask(&endpoint, limit, call).await
}

/// A storage client.
pub(crate) async fn client(endpoint: Endpoint, limit: Duration) -> Answer<SdcStats> {
    let channel = endpoint.channel();
    let call = async move { SdcManagementClient::new(channel).stats(SdcStatsRequest {}).await };
    ask(&endpoint, limit, call).await
}

/// For one process of a table. They are asked side by side.
const TABLE_LIMIT: Duration = Duration::from_secs(2);

/// What `who` (`sds sds1`) says by `probe`, for a table of all: one that does not answer is said on stderr, because the
/// others are worth showing.
pub(crate) async fn for_table<T, A: Future<Output = Answer<T>>>(
    who: &str,
    addresses: Option<&Addresses>,
    probe: impl FnOnce(Endpoint, Duration) -> A,
) -> Option<T> {
    let management = addresses.map(|addresses| addresses.management.as_str()).unwrap_or_default();
    let Ok(endpoint) = management.parse::<Endpoint>() else {
        eprintln!("{who} has no management port");
        return None;
    };
    match probe(endpoint, TABLE_LIMIT).await {
        Answer::Serves(stats) => return Some(stats),
        Answer::Nobody => eprintln!("{who}: nobody listens at its management port {management}"),
        Answer::Silent | Answer::Unreachable => eprintln!("{who}: no answer from its management port {management}"),
    }
    None
}

/// Connects once by itself: a refusal and a packet filter look alike in the error of a call.
async fn ask<T>(
    endpoint: &Endpoint,
    limit: Duration,
    call: impl Future<Output = Result<Response<T>, Status>>,
) -> Answer<T> {
    match tokio::time::timeout(limit, TcpStream::connect(endpoint.to_string())).await {
        Ok(Ok(_listens)) => {}
        Ok(Err(error)) if error.kind() == io::ErrorKind::ConnectionRefused => return Answer::Nobody,
        Ok(Err(_)) | Err(_) => return Answer::Unreachable,
    }
    match tokio::time::timeout(limit, call).await {
        Ok(Ok(answer)) => Answer::Serves(answer.into_inner()),
        Ok(Err(_)) | Err(_) => Answer::Silent,
    }
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;

    const LIMIT: Duration = Duration::from_millis(100);

    #[tokio::test]
    async fn a_dead_process_is_told_from_one_that_does_not_answer() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let endpoint = Endpoint::new("127.0.0.1", listener.local_addr().unwrap().port());
        assert!(matches!(server(endpoint.clone(), LIMIT).await, Answer::Silent));
        assert!(matches!(client(endpoint.clone(), LIMIT).await, Answer::Silent));
        drop(listener);
        assert!(matches!(server(endpoint, LIMIT).await, Answer::Nobody));
    }

    #[tokio::test]
    async fn a_name_that_leads_nowhere_proves_nothing() {
        let endpoint = Endpoint::new("nowhere.invalid", 9);
        assert!(matches!(server(endpoint, Duration::from_secs(5)).await, Answer::Unreachable));
    }
}
