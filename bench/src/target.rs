//! One client of either system, and the two operations that are compared: a small durable write, and a linearizable read
//! of one object by name.
//!
//! The write of ours renames a volume, back and forth: it is validated, ordered exactly once, audited and told to
//! watchers. The peer's puts a key with a value of about the same size. Neither makes the state grow.

use std::time::Duration;

use anyhow::Context as _;
use pflex_common::{
    mdm::{MdmClient, Patience},
    net::Endpoint,
};
use pflex_proto::pb::{CreateVolumeRequest, ListRequest, RenameRequest, admin_client::AdminClient};
use tonic::transport::Channel;

use crate::System;

/// What etcd's API has.
#[allow(missing_docs, unreachable_pub, reason = "generated")]
mod etcd {
    tonic::include_proto!("etcdserverpb");
}

use etcd::{PutRequest, RangeRequest, kv_client::KvClient};

/// Attempts are short, so that a client whose member died asks another one soon.
const PATIENCE: Patience = Patience { deadline: Duration::from_secs(20), attempt: Duration::from_millis(1_000) };
/// The same for the peer.
const ATTEMPT: Duration = Duration::from_millis(1_000);
const PAUSE: Duration = Duration::from_millis(20);
/// Bytes in a value of the peer; a volume's row has about as many.
const VALUE: usize = 64;

pub(crate) enum Client {
    Pflex { client: Box<MdmClient>, names: [String; 2], turn: usize },
    Etcd { members: Vec<KvClient<Channel>>, turn: usize, key: String },
}

impl Client {
    /// Connects client number `n` and makes the object that it works on.
    pub(crate) async fn open(system: System, at: &[Endpoint], n: u32) -> anyhow::Result<Self> {
        let mut client = match system {
            System::Pflex => {
                let client = MdmClient::new(format!("bench-{n}"), at.to_vec());
                let names = [format!("bench-{n}-a"), format!("bench-{n}-b")];
                let name = make_volume(&client, &names).await?;
                Self::Pflex { client: Box::new(client), turn: usize::from(name == names[1]), names }
            }
            System::Etcd => {
                let members = at.iter().map(|member| KvClient::new(member.channel())).collect();
                Self::Etcd { members, turn: n as usize, key: format!("bench-{n}") }
            }
        };
        client.write().await.context("the first write")?;
        Ok(client)
    }

    /// A write, until it is acknowledged.
    pub(crate) async fn write(&mut self) -> anyhow::Result<()> {
        match self {
            Self::Pflex { client, names, turn } => {
                let (name, new_name) = (names[*turn].clone(), names[1 - *turn].clone());
                client
                    .write(PATIENCE, |connection, request| {
                        let rename =
                            RenameRequest { request: Some(request), name: name.clone(), new_name: new_name.clone() };
                        async move { AdminClient::new(connection).rename_volume(rename).await }
                    })
                    .await?;
                *turn = 1 - *turn;
            }
            Self::Etcd { members, turn, key } => {
                let put = PutRequest { key: key.clone().into(), value: vec![b'x'; VALUE] };
                retry(members, turn, |mut member| {
                    let put = put.clone();
                    async move { member.put(put).await.map(drop) }
                })
                .await?;
            }
        }
        Ok(())
    }

    /// A linearizable read, until it is answered.
    pub(crate) async fn read(&mut self) -> anyhow::Result<()> {
        match self {
            Self::Pflex { client, names, turn } => {
                let name = names[*turn].clone();
                let found = client
                    .read(PATIENCE, |connection| {
                        let list = ListRequest { stale: false, name: name.clone() };
                        async move { AdminClient::new(connection).list_volumes(list).await }
                    })
                    .await?;
                anyhow::ensure!(found.volumes.len() == 1, "{name} is not there");
            }
            Self::Etcd { members, turn, key } => {
                let range = RangeRequest { key: key.clone().into(), serializable: false };
                retry(members, turn, |mut member| {
                    let range = range.clone();
                    async move { member.range(range).await.map(drop) }
                })
                .await?;
            }
        }
        Ok(())
    }
}

/// The volume of these two names, made if it is not there from an earlier run; returns which it has now.
async fn make_volume(client: &MdmClient, names: &[String; 2]) -> anyhow::Result<String> {
    for name in names {
        let list = |connection| {
            let list = ListRequest { stale: false, name: name.clone() };
            async move { AdminClient::new(connection).list_volumes(list).await }
        };
        if client.read(PATIENCE, list).await.is_ok() {
            return Ok(name.clone());
        }
    }
    client
        .write(PATIENCE, |connection, request| {
            let create = CreateVolumeRequest {
                request: Some(request),
                name: names[0].clone(),
                size_bytes: 1 << 20,
                ..Default::default()
            };
            async move { AdminClient::new(connection).create_volume(create).await }
        })
        .await?;
    Ok(names[0].clone())
}

/// Asks one member until it fails, then the next.
async fn retry<F, Fut>(members: &[KvClient<Channel>], turn: &mut usize, call: F) -> anyhow::Result<()>
where
    F: Fn(KvClient<Channel>) -> Fut,
    Fut: Future<Output = Result<(), tonic::Status>>,
{
    let started = tokio::time::Instant::now();
    loop {
        let member = members[*turn % members.len()].clone();
        let error = match tokio::time::timeout(ATTEMPT, call(member)).await {
            Ok(Ok(())) => return Ok(()),
            Ok(Err(error)) => error.to_string(),
            Err(_) => "no answer in time".to_owned(),
        };
        anyhow::ensure!(started.elapsed() < PATIENCE.deadline, "etcd: {error}");
        *turn += 1;
        tokio::time::sleep(PAUSE).await;
    }
}
