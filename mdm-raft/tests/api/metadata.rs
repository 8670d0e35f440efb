//! Metadata commands: done once, kept through a change of leader, refused clearly.

use pflex_proto::{
    pb::{
        ComponentKind, CreateDomainRequest, CreateVolumeRequest, IssueTokensRequest, KeysRequest, ListRequest,
        OpenClientRequest, RegisterRequest, RequestId, admin_client::AdminClient, discovery_client::DiscoveryClient,
        sessions_client::SessionsClient, tokens_client::TokensClient,
    },
    status::{self, Reason},
    token::{self, Secret},
};
use tonic::Code;

use crate::{
    cluster::{Cluster, GIB, PATIENCE},
    sds::FakeSds,
};

#[tokio::test(flavor = "multi_thread")]
async fn commands_survive_the_leader_and_are_executed_once() {
    let cluster = Cluster::start(3).await;
    let session = cluster
        .client
        .read(PATIENCE, |connection| async move {
            SessionsClient::new(connection).open_client(OpenClientRequest { name: "by hand".into() }).await
        })
        .await
        .unwrap();
    let request = RequestId { client_id: session.client_id, sequence: 1, low_water: 1 };
    let create = |name: &str| CreateDomainRequest { request: Some(request), name: name.into(), if_not_exists: false };
    let send = |message: CreateDomainRequest| {
        cluster.client.read(PATIENCE, move |connection| {
            let message = message.clone();
            async move { AdminClient::new(connection).create_domain(message).await }
        })
    };
    let first = send(create("once")).await.unwrap();

    let stopped = cluster.stop_leader().await;
    assert_eq!(send(create("once")).await.unwrap(), first, "the new leader knows the first outcome");
    let other = send(create("other")).await.unwrap_err();
    assert_eq!(other.reason(), Some(Reason::Invalid), "a sequence names one request");

    cluster.restart(stopped);
    let status = cluster.status().await;
    assert_eq!(status.cluster_id, cluster.id.as_bytes());
    assert_eq!(status.members.len(), 3);
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn followers_and_strangers_are_told_so() {
    let cluster = Cluster::start(3).await;
    let leader = cluster.status().await.leader;
    let apis: Vec<_> = cluster.members.lock().unwrap().iter().map(|member| member.api()).collect();
    for (id, api) in (1_u64..).zip(&apis) {
        let mut admin = AdminClient::new(api.channel());
        let listed = admin.list_domains(ListRequest::default()).await;
        let stale = admin.list_domains(ListRequest { stale: true, ..Default::default() }).await;
        assert!(stale.is_ok(), "any member answers a stale read: {stale:?}");
        if id == leader {
            assert_eq!(listed.unwrap().into_inner().domains.len(), 1);
        } else {
            let error = listed.unwrap_err();
            assert_eq!(error.code(), Code::FailedPrecondition);
            let hint = status::leader_hint(&error).expect("it names the leader");
            assert_eq!(hint.id.unwrap().get(), leader);
            assert_eq!(hint.address.unwrap(), apis[usize::try_from(leader).unwrap() - 1].to_string());
        }
        let mut of_another = tonic::Request::new(ListRequest { stale: true, ..Default::default() });
        of_another.metadata_mut().insert(status::CLUSTER_ID, "0".parse().unwrap());
        let refused = admin.list_domains(of_another).await.unwrap_err();
        assert_eq!(status::reason(&refused), Some(Reason::WrongCluster));
    }
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_requests_get_one_clear_line() {
    let cluster = Cluster::start(1).await;
    cluster.create_pool("p", 8).await;
    let reason = |error: pflex_common::mdm::MdmError| (error.reason().unwrap(), error.to_string());

    let (why, line) = reason(cluster.create_volume("v", 0).await.unwrap_err());
    assert_eq!(why, Reason::Invalid);
    assert!(line.contains("volume v") && line.contains("multiple of 4096"), "{line}");
    let (why, line) = reason(cluster.create_volume("v", GIB).await.unwrap_err());
    assert_eq!(why, Reason::Precondition);
    assert!(line.contains("pool p"), "{line}");
    let (why, line) = reason(cluster.create_domain("d").await.unwrap_err());
    assert_eq!(why, Reason::AlreadyExists);
    assert!(line.contains("domain d"), "{line}");

    let unnumbered = cluster
        .client
        .read(PATIENCE, |connection| async move {
            AdminClient::new(connection).create_volume(CreateVolumeRequest::default()).await
        })
        .await
        .unwrap_err();
    assert_eq!(unnumbered.reason(), Some(Reason::Invalid), "what changes things names a session");
    let nobody = cluster
        .client
        .read(PATIENCE, |connection| async move {
            let request = ListRequest { name: "nobody".into(), ..Default::default() };
            AdminClient::new(connection).list_volumes(request).await
        })
        .await
        .unwrap_err();
    assert_eq!(nobody.reason(), Some(Reason::NotFound));
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_sds_verifies_what_an_sdc_was_issued() {
    let cluster = Cluster::start(1).await;
    cluster.create_pool("p", 8).await;
    let sds = FakeSds::create(&cluster, 1).await;
    let _other = FakeSds::create(&cluster, 2).await;
    let volume = cluster.create_volume("v", GIB).await.unwrap();
    let sdc_id = cluster.create_sdc("c").await;
    cluster.map_volume("v", "c").await;
    let register = RegisterRequest {
        kind: ComponentKind::Sdc.into(),
        name: "c".into(),
        process_id: vec![5; 16],
        ..Default::default()
    };
    let registered = cluster.client.read(PATIENCE, |connection| {
        let register = register.clone();
        async move { DiscoveryClient::new(connection).register(register).await }
    });
    assert_eq!(registered.await.unwrap().id, sdc_id);

    let issued = cluster
        .client
        .write(PATIENCE, |connection, request| async move {
            let message = IssueTokensRequest {
                request: Some(request),
                sdc_id,
                process_id: vec![5; 16],
                volume_ids: vec![volume.id, 999],
                plans: Vec::new(),
            };
            TokensClient::new(connection).issue(message).await
        })
        .await
        .unwrap();
    assert_eq!((issued.tokens.len(), issued.refused.len()), (1, 1));

    let keys = |process_id: Vec<u8>| {
        let message = KeysRequest { sds_id: sds.id, process_id };
        cluster.client.read(PATIENCE, move |connection| {
            let message = message.clone();
            async move { TokensClient::new(connection).keys(message).await }
        })
    };
    assert_eq!(keys(vec![0; 16]).await.unwrap_err().reason(), Some(Reason::NotAllowed));
    let keys = keys(sds.process.clone()).await.unwrap().keys;
    let secrets: Vec<Secret> =
        keys.iter().map(|key| Secret::new(key.key_id.into(), key.secret.as_slice().try_into().unwrap())).collect();
    let (token, key) = token::verify(&issued.tokens[0].token, &secrets).unwrap();
    assert_eq!((token.volume.get(), token.to.get(), token.cluster), (volume.id, GIB, cluster.id));
    assert_eq!(key.as_bytes().as_slice(), issued.tokens[0].token_key);
    assert_eq!(token.expires.get() - token.issued.get(), 60_000);
    cluster.stop().await;
}
