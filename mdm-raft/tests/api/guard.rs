//! Floods, strangers and slow ones: refused with a word where a word is possible, while Raft and those who were admitted
//! go on.

use std::{
    io::Write as _,
    net::{SocketAddr, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use pflex_mdm::daemon::Limits;
use pflex_proto::{
    pb::{
        CreateDomainRequest, ListRequest, OpenClientRequest, PgProposal, ReconfigureRequest, RequestId,
        admin_client::AdminClient, placement_client::PlacementClient, sessions_client::SessionsClient,
    },
    status::{self, Reason},
};
use rand::RngExt as _;
use tokio::io::AsyncReadExt as _;
use tonic::Code;

use crate::{bad_input::raw_call, cluster::Cluster};

impl Cluster {
    /// Client and Raft addresses of every member.
    fn ports(&self) -> Vec<[SocketAddr; 2]> {
        let members = self.members.lock().unwrap();
        let files = &members[0].file.members;
        files.iter().map(|m| [&m.api, &m.raft].map(|endpoint| endpoint.to_string().parse().unwrap())).collect()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flood_is_answered_with_a_time_to_come_again_and_raft_does_not_notice() {
    let limits = Limits { proposals: 4, ..Limits::default() };
    let cluster = Cluster::start_within(3, limits).await;
    let before = cluster.status().await;
    let leader = cluster.ports()[usize::try_from(before.leader).unwrap() - 1][0];
    let over = Arc::new(AtomicBool::new(false));
    let (done, refused) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
    let channel = pflex_common::net::Endpoint::new("127.0.0.1", leader.port()).channel();
    let flood: Vec<_> = (0..64)
        .map(|_| {
            let (over, done, refused, channel) = (over.clone(), done.clone(), refused.clone(), channel.clone());
            tokio::spawn(async move {
                let mut sessions = SessionsClient::new(channel);
                while !over.load(Ordering::Relaxed) {
                    match sessions.open_client(OpenClientRequest { name: "flood".into() }).await {
                        Ok(_) => done.fetch_add(1, Ordering::Relaxed),
                        Err(error) => {
                            assert_eq!(error.code(), Code::ResourceExhausted, "{error:?}");
                            assert!(status::retry_after_ms(&error).is_some_and(|ms| ms > 0), "{error:?}");
                            refused.fetch_add(1, Ordering::Relaxed)
                        }
                    };
                }
            })
        })
        .collect();
    // Who keeps to what it is told gets through.
    for n in 0..10 {
        cluster.create_domain(&format!("d{n}")).await.unwrap();
    }
    over.store(true, Ordering::Relaxed);
    for client in flood {
        client.await.unwrap();
    }
    let (done, refused) = (done.load(Ordering::Relaxed), refused.load(Ordering::Relaxed));
    println!("{done} admitted, {refused} refused");
    assert!(done > 0 && refused > 0);
    let after = cluster.status().await;
    assert_eq!((after.leader, after.term), (before.leader, before.term), "heartbeats went on");
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_that_say_nothing_are_few_and_short() {
    const PLACES: usize = 40;
    let limits = Limits { connections: PLACES, ..Limits::default() };
    let cluster = Cluster::start_within(3, limits).await;
    let before = cluster.status().await;
    let mut silent = Vec::new();
    for [api, raft] in cluster.ports() {
        for n in 0..3 * PLACES {
            let mut connection = tokio::net::TcpStream::connect(api).await.unwrap();
            if n % 2 == 0 {
                // As a slow one does: a part of the greeting.
                drop(tokio::io::AsyncWriteExt::write_all(&mut connection, b"PRI * HTTP/2.0").await);
            }
            silent.push(connection);
            silent.push(tokio::net::TcpStream::connect(raft).await.unwrap());
        }
    }
    // Those who were there before are served on.
    cluster.create_domain("meanwhile").await.unwrap();
    let began = Instant::now();
    for mut connection in silent {
        let ended = tokio::time::timeout(Duration::from_secs(20), connection.read_to_end(&mut Vec::new())).await;
        drop(ended.expect("every silent connection is ended"));
    }
    println!("the last silent connection was ended after {} ms", began.elapsed().as_millis());
    let mut fresh = AdminClient::connect(format!("http://{}", cluster.ports()[0][0])).await.unwrap();
    fresh.list_domains(ListRequest { stale: true, ..Default::default() }).await.unwrap();
    let after = cluster.status().await;
    assert_eq!((after.leader, after.term), (before.leader, before.term), "Raft has its own places");
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn thousands_of_idle_connections_and_garbage_on_every_port_disturb_nobody() {
    let cluster = Cluster::start(3).await;
    let before = cluster.status().await;
    let mut rng = rand::rng();
    let mut idle = Vec::new();
    // The preface, and an empty SETTINGS frame.
    let greeting = [b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".as_slice(), &[0, 0, 0, 4, 0, 0, 0, 0, 0]].concat();
    for [api, raft] in cluster.ports() {
        for _ in 0..700 {
            let mut connection = TcpStream::connect(api).unwrap();
            connection.write_all(&greeting).unwrap();
            idle.push(connection);
        }
        for port in [api, raft] {
            for n in 0..20 {
                let mut garbage = match n % 4 {
                    0 => b"GET / HTTP/1.1\r\nHost: x\r\n\r\n".to_vec(),
                    // A TLS hello's first bytes.
                    1 => vec![0x16, 0x03, 0x01, 0x02, 0x00, 0x01, 0x00, 0x01, 0xfc, 0x03, 0x03],
                    2 => greeting.clone(),
                    _ => Vec::new(),
                };
                garbage.extend((0..rng.random_range(1..4_096)).map(|_| rng.random::<u8>()));
                // It may be cut off before it has said everything.
                drop(TcpStream::connect(port).unwrap().write_all(&garbage));
            }
        }
    }
    println!("{} idle connections", idle.len());
    for n in 0..5 {
        cluster.create_domain(&format!("d{n}")).await.unwrap();
    }
    let after = cluster.status().await;
    assert_eq!((after.leader, after.term, after.health.as_str()), (before.leader, before.term, "ok"));
    drop(idle);
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_too_large_malformed_or_too_late_is_refused_before_the_log() {
    let cluster = Cluster::start(1).await;
    let api = cluster.members.lock().unwrap()[0].api();
    let session = SessionsClient::new(api.channel()).open_client(OpenClientRequest { name: "x".into() }).await.unwrap();
    let request = RequestId { client_id: session.into_inner().client_id, sequence: 1, low_water: 1 };
    let mut admin = AdminClient::new(api.channel());

    let name = "x".repeat(1 << 20);
    let message = CreateDomainRequest { request: Some(request), name, if_not_exists: false };
    let large = admin.create_domain(message).await.unwrap_err();
    assert_eq!(status::reason(&large), Some(Reason::Invalid), "{large:?}");
    let proposals = vec![PgProposal::default(); 3 << 20];
    let message = ReconfigureRequest { proposals, ..Default::default() };
    let large = PlacementClient::new(api.channel()).reconfigure(message).await.unwrap_err();
    assert_eq!(status::reason(&large), Some(Reason::Invalid), "{large:?}");
    let many = ReconfigureRequest { proposals: vec![PgProposal::default(); 20_000], ..Default::default() };
    let many = PlacementClient::new(api.channel()).reconfigure(many).await.unwrap_err();
    assert!(matches!(status::reason(&many), Some(Reason::LimitReached | Reason::Invalid)), "{many:?}");

    for path in ["/pflex.v1.Admin/CreateVolume", "/pflex.v1.Map/Watch", "/pflex.v1.Tokens/Issue"] {
        let malformed = raw_call(&api, path, b"\x0a\xff\xff\xff\xff\x0f no such field").await.unwrap_err();
        assert_eq!(status::reason(&malformed), Some(Reason::Invalid), "{path}: {malformed:?}");
    }

    let message = CreateDomainRequest { request: Some(request), name: "late".into(), if_not_exists: false };
    let mut late = tonic::Request::new(message.clone());
    late.set_timeout(Duration::from_nanos(1));
    // The client's own clock ends the call as well; either way nothing may be proposed.
    drop(admin.create_domain(late).await.unwrap_err());
    let domains = admin.list_domains(ListRequest::default()).await.unwrap().into_inner().domains;
    assert_eq!(domains.len(), 1, "{domains:?}");
    assert_eq!(admin.create_domain(message).await.unwrap().into_inner().name, "late");
    cluster.stop().await;
}
