//! Every request that cannot be carried out gets a precise answer and changes nothing.

use bytes::{Buf as _, BufMut as _, Bytes};
use pflex_common::{mdm::MdmError, net::Endpoint};
use pflex_proto::{
    pb::{
        ClusterMap, ComponentKind, CreatePoolRequest, CreateSdsRequest, DeleteRequest, IssueTokensRequest, ListRequest,
        MapVolumeRequest, PgProposal, ReconfigureRequest, RegisterRequest, RenameRequest, ResizeVolumeRequest,
        UnmapVolumeRequest, WatchRequest, admin_client::AdminClient, cluster_client::ClusterClient,
        discovery_client::DiscoveryClient, map_client::MapClient, placement_client::PlacementClient,
        sessions_client::SessionsClient, tokens_client::TokensClient, watch_reply::Event,
    },
    status::{self, Reason},
};
use tonic::{
    Code, Request, Status,
    client::Grpc,
    codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder},
};

use crate::{
    cluster::{Cluster, GIB, PATIENCE},
    sds::FakeSds,
};

/// Sends bytes as they are.
#[derive(Default)]
struct Raw;

impl Codec for Raw {
    type Encode = Bytes;
    type Decode = Bytes;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self
    }

    fn decoder(&mut self) -> Self {
        Self
    }
}

impl Encoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn encode(&mut self, item: Bytes, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        buffer.put(item);
        Ok(())
    }
}

impl Decoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, Status> {
        Ok(Some(buffer.copy_to_bytes(buffer.remaining())))
    }
}

/// Calls a method with a message that need not be one.
pub(crate) async fn raw_call(api: &Endpoint, path: &'static str, message: &'static [u8]) -> Result<Bytes, Status> {
    let mut grpc = Grpc::new(api.channel());
    grpc.ready().await.unwrap();
    let request = Request::new(Bytes::from_static(message));
    grpc.unary(request, path.parse().unwrap(), Raw).await.map(tonic::Response::into_inner)
}

/// The whole map, whatever its revision.
async fn map_of(cluster: &Cluster) -> ClusterMap {
    let api = cluster.members.lock().unwrap()[0].api();
    let mut stream = MapClient::new(api.channel()).watch(WatchRequest::default()).await.unwrap().into_inner();
    let Some(Event::Full(map)) = stream.message().await.unwrap().unwrap().event else { panic!("no full map") };
    ClusterMap { revision: 0, ..map }
}

/// `write!(cluster, create_pool(CreatePoolRequest { .. }))`: in a session, as people do.
macro_rules! write {
    ($cluster:expr, $method:ident ($request:expr)) => {{
        let message = $request;
        let written = $cluster.client.write(PATIENCE, |connection, request| {
            let mut message = message.clone();
            message.request = Some(request);
            async move { AdminClient::new(connection).$method(message).await }
        });
        written.await.map(drop)
    }};
}

fn name(name: &str) -> DeleteRequest {
    DeleteRequest { name: name.into(), ..Default::default() }
}

/// A cluster with a pool, a volume that is mapped, and one that is not.
async fn world() -> (Cluster, FakeSds, FakeSds) {
    let cluster = Cluster::start(1).await;
    cluster.create_pool("p", 8).await;
    let (one, two) = (FakeSds::create(&cluster, 1).await, FakeSds::create(&cluster, 2).await);
    one.sees(|map| map.pgs.len() == 8 && map.pgs.values().all(|pg| pg.in_sync.len() == 2)).await;
    cluster.create_sdc("c").await;
    cluster.create_volume("v", GIB).await.unwrap();
    cluster.create_volume("w", GIB).await.unwrap();
    cluster.map_volume("v", "c").await;
    (cluster, one, two)
}

#[tokio::test(flavor = "multi_thread")]
async fn every_refusal_is_precise_and_changes_nothing() {
    let (cluster, one, _two) = world().await;
    let before = map_of(&cluster).await;
    let long = "n".repeat(64);
    let pool = |name: &str, pg_count| CreatePoolRequest { name: name.into(), pg_count, ..Default::default() };
    let sds = |name: &str| CreateSdsRequest { name: name.into(), ..Default::default() };
    let map =
        |volume: &str, sdc: &str| MapVolumeRequest { volume: volume.into(), sdc: sdc.into(), ..Default::default() };
    let resize = |name: &str, size_bytes| ResizeVolumeRequest { name: name.into(), size_bytes, ..Default::default() };
    let rename = |from: &str, to: &str| RenameRequest { name: from.into(), new_name: to.into(), ..Default::default() };
    let mut cases: Vec<(&str, Result<(), MdmError>, Reason)> = vec![
        // Duplicate names.
        ("domain d again", cluster.create_domain("d").await, Reason::AlreadyExists),
        ("pool p again", write!(cluster, create_pool(pool("p", 8))), Reason::AlreadyExists),
        ("sds s1 again", write!(cluster, create_sds(sds("s1"))), Reason::AlreadyExists),
        ("volume v again", cluster.create_volume("v", GIB).await.map(drop), Reason::AlreadyExists),
        ("volume v as w", write!(cluster, rename_volume(rename("v", "w"))), Reason::AlreadyExists),
        // Deletes of things in use.
        ("delete a full domain", write!(cluster, delete_domain(name("d"))), Reason::InUse),
        ("delete a full pool", write!(cluster, delete_pool(name("p"))), Reason::InUse),
        ("delete a used sds", write!(cluster, delete_sds(name("s1"))), Reason::InUse),
        ("delete a used sdc", write!(cluster, delete_sdc(name("c"))), Reason::InUse),
        ("delete a mapped volume", write!(cluster, delete_volume(name("v"))), Reason::InUse),
        // Unknown names.
        ("delete nobody", write!(cluster, delete_volume(name("nobody"))), Reason::NotFound),
        ("resize nobody", write!(cluster, resize_volume(resize("nobody", GIB))), Reason::NotFound),
        ("rename nobody", write!(cluster, rename_volume(rename("nobody", "x"))), Reason::NotFound),
        ("map nobody", write!(cluster, map_volume(map("nobody", "c"))), Reason::NotFound),
        ("map to nobody", write!(cluster, map_volume(map("v", "nobody"))), Reason::NotFound),
        // Capacity: 100 GiB twice, two copies, fivefold.
        ("too much", cluster.create_volume("big", 600 * GIB).await.map(drop), Reason::NoCapacity),
        ("grow too much", write!(cluster, resize_volume(resize("w", 600 * GIB))), Reason::NoCapacity),
        ("beyond any", cluster.create_volume("huge", !4095).await.map(drop), Reason::Invalid),
        ("half a block", cluster.create_volume("odd", GIB + 1).await.map(drop), Reason::Invalid),
        ("shrink", write!(cluster, resize_volume(resize("w", GIB / 2))), Reason::Precondition),
        // Names.
        ("64 bytes", cluster.create_domain(&long).await, Reason::Invalid),
        ("no name", cluster.create_domain("").await, Reason::Invalid),
        ("a newline", cluster.create_domain("a\nb").await, Reason::Invalid),
        ("a slash", cluster.create_domain("a/b").await, Reason::Invalid),
        ("seven groups", write!(cluster, create_pool(pool("q", 7))), Reason::Invalid),
        ("too many groups", write!(cluster, create_pool(pool("q", 1 << 20))), Reason::Invalid),
    ];
    let unmap = UnmapVolumeRequest { volume: "w".into(), sdc: "c".into(), ..Default::default() };
    cases.push(("unmap what is not mapped", write!(cluster, unmap_volume(unmap)), Reason::NotFound));
    for (what, outcome, expected) in cases {
        let error = match outcome {
            Err(error) => error,
            Ok(()) => panic!("{what}: accepted"),
        };
        assert_eq!(error.reason(), Some(expected), "{what}: {error}");
        assert!(!error.to_string().contains('\n'), "{what}: {error}");
    }

    // Stale epochs, unknown ids and other processes, as SDSs and SDCs would send them.
    let mut group = before.pgs[0].clone();
    let primary = group.in_sync.iter().find(|member| member.device_id == group.primary_device_id).unwrap();
    let (sds_id, process_id) = match primary.sds_id == one.id {
        true => (one.id, one.process.clone()),
        false => (_two.id, _two.process.clone()),
    };
    group.in_sync.truncate(1);
    let proposal = |expected_epoch| PgProposal {
        pg: group.id,
        expected_epoch,
        in_sync: before.pgs[0].in_sync.clone(),
        ..Default::default()
    };
    let reconfigure = |process_id: Vec<u8>, epoch| {
        let request = ReconfigureRequest { sds_id, process_id, proposals: vec![proposal(epoch)], ..Default::default() };
        cluster.client.read(PATIENCE, move |connection| {
            let request = request.clone();
            async move { PlacementClient::new(connection).reconfigure(request).await }
        })
    };
    let reply = reconfigure(process_id, group.epoch - 1).await.unwrap();
    assert!(!reply.results[0].accepted, "{reply:?}");
    assert_eq!(reply.results[0].current.as_ref().unwrap().epoch, group.epoch, "and it says what is");
    assert_eq!(reconfigure(vec![9; 16], group.epoch).await.unwrap_err().reason(), Some(Reason::StaleEpoch));
    let issue = cluster.client.read(PATIENCE, |connection| async move {
        let request = IssueTokensRequest { sdc_id: 99, process_id: vec![1; 16], ..Default::default() };
        TokensClient::new(connection).issue(request).await
    });
    assert_eq!(issue.await.unwrap_err().reason(), Some(Reason::NotFound));
    let register = |process_id: Vec<u8>, name: &str| {
        let request =
            RegisterRequest { kind: ComponentKind::Sdc.into(), name: name.into(), process_id, ..Default::default() };
        cluster.client.read(PATIENCE, move |connection| {
            let request = request.clone();
            async move { DiscoveryClient::new(connection).register(request).await }
        })
    };
    assert_eq!(register(vec![1; 15], "c").await.unwrap_err().reason(), Some(Reason::Invalid));
    assert_eq!(register(vec![1; 16], "nobody").await.unwrap_err().reason(), Some(Reason::NotFound));

    assert!(map_of(&cluster).await == before, "something changed");
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_belongs_to_another_cluster_is_told_so_by_every_service() {
    let cluster = Cluster::start(1).await;
    let before = map_of(&cluster).await;
    let api = cluster.members.lock().unwrap()[0].api();
    let another = uuid::Uuid::new_v4();
    /// The status of a call that names another cluster.
    macro_rules! strange {
        ($client:ident . $method:ident) => {{
            let mut request = Request::new(Default::default());
            request.metadata_mut().insert(status::CLUSTER_ID, another.to_string().parse().unwrap());
            (stringify!($client.$method), $client::new(api.channel()).$method(request).await.err().unwrap())
        }};
    }
    for (what, error) in [
        strange!(AdminClient.create_volume),
        strange!(AdminClient.list_volumes),
        strange!(DiscoveryClient.register),
        strange!(PlacementClient.reconfigure),
        strange!(TokensClient.issue),
        strange!(TokensClient.keys),
        strange!(SessionsClient.open_client),
        strange!(ClusterClient.status),
        strange!(ClusterClient.rotate_secret),
        strange!(MapClient.watch),
    ] {
        assert_eq!((status::reason(&error), error.code()), (Some(Reason::WrongCluster), Code::FailedPrecondition));
        let said = error.message();
        assert!(said.contains(&cluster.id.to_string()) && said.contains(&another.to_string()), "{what}: {said}");
    }
    // A component whose own store is another cluster's, though its requests do not say so.
    let stranger = RegisterRequest {
        kind: ComponentKind::Sdc.into(),
        name: "c".into(),
        process_id: vec![1; 16],
        cluster_id: another.as_bytes().to_vec(),
        ..Default::default()
    };
    let refused = DiscoveryClient::new(api.channel()).register(stranger).await.unwrap_err();
    assert_eq!(status::reason(&refused), Some(Reason::WrongCluster));
    let unnamed = AdminClient::new(api.channel()).list_domains(ListRequest::default()).await;
    assert!(unnamed.is_ok(), "who does not know its cluster yet may ask");
    assert!(map_of(&cluster).await == before);
    cluster.stop().await;
}
