//! The leader's upkeep: bootstraps the cluster's identity, tries the ports of SDSs whose stream broke, and has the group
//! execute what the tracker concludes.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use pflex_common::{clock::wall_ms, shutdown::Shutdown};
use pflex_proto::ids::{ClusterId, DeviceId, LogTime, SdsId};
use ring::rand::{SecureRandom as _, SystemRandom};
use tokio::{net::TcpStream, time::MissedTickBehavior};

use super::{
    Liveness, Reports,
    brake::TooMany,
    health, homes,
    judgement::{describe_verdicts, judgements, tell_results},
    leads, maintenance, moves, scrubs,
    slow::{Placed, Slowness},
    tracker::{Known, Thresholds},
};
use crate::{
    command::{Body, Command, proto},
    raft::RaftGroup,
    state::{
        State,
        model::{Device, EvictionHold},
    },
};

/// Well below `REFUSED`, so that a proof of death is acted on at once.
const TICK: Duration = Duration::from_millis(50);
/// Reports come each 10 s; looking at them each second is plenty.
const REPORT_TICKS: u32 = 20;
/// The length of a window in which disks are compared.
const DISK_TICKS: u32 = 200;
/// A leader that could not hand over for this long is the only one there is.
const HAND_OVER_PATIENCE: Duration = Duration::from_secs(3);
/// A port that answers at all answers within this, on a LAN.
const PROBE: Duration = Duration::from_millis(500);

/// Works as long as this member leads, until `shutdown`.
pub async fn run(cluster: ClusterId, group: RaftGroup, liveness: Liveness, reports: Reports, shutdown: Shutdown) {
    let work = async {
        let mut leader = group.leader();
        while leader.wait_for(|view| view.leading).await.is_ok() {
            let term = leader.borrow_and_update().term;
            liveness.reset();
            reports.reset();
            let worker = Worker {
                cluster,
                group: group.clone(),
                liveness: liveness.clone(),
                reports: reports.clone(),
                probing: Arc::default(),
                held: AtomicBool::new(false),
            };
            tokio::select! {
                () = worker.lead() => {}
                () = worker.find_homes() => {}
                _ = leader.wait_for(|view| !view.leading || view.term != term) => {}
            }
        }
    };
    tokio::select! {
        () = shutdown.cancelled() => {}
        () = work => {}
    }
}

struct Worker {
    cluster: ClusterId,
    group: RaftGroup,
    liveness: Liveness,
    reports: Reports,
    /// Probes under way: one per SDS.
    probing: Arc<Mutex<BTreeSet<SdsId>>>,
    /// The last look held back verdicts (S23).
    held: AtomicBool,
}

impl Worker {
    async fn lead(&self) {
        let mut ticks = tokio::time::interval(TICK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut held_here: Option<Instant> = None;
        let mut slowness = Slowness::default();
        for tick in 0_u32.. {
            ticks.tick().await;
            if self.group.read_stale(|state| state.cluster().is_none()).1 {
                self.bootstrap().await;
                continue;
            }
            self.probe();
            let now = self.group.log_time();
            let (_, (known, settings, hold)) =
                self.group.read_stale(|state| (registered_sds(state, now), state.settings(), state.eviction_hold()));
            let findings = self.liveness.findings(
                &known,
                &Thresholds::of(&settings),
                self.may_lose_many(hold, held_here.map(|at| at.elapsed())),
            );
            self.held.store(findings.held.is_some(), Ordering::Relaxed);
            self.propose_all(judgements(findings.verdicts)).await;
            if let Some(held) = findings.held
                && held_here.is_none()
            {
                held_here = Some(Instant::now());
                self.doubt(&held).await;
            }
            if tick % REPORT_TICKS == 0 {
                let health = [
                    health::transitions(&self.group, &self.reports),
                    health::clocks(&self.group, &self.reports),
                    health::sample(&self.group, &self.reports),
                ];
                self.propose_all(health.into_iter().flatten().collect()).await;
                self.propose_all(self.rotation().into_iter().collect()).await;
                let disks = self.liveness.faults();
                let scrubs = self.group.read_stale(|state| scrubs::commands(state, now, &disks)).1;
                self.propose_all(scrubs).await;
            }
            if tick % DISK_TICKS == 0 {
                let findings = slowness.look(&self.liveness.disks(), &self.placed());
                let judge = |(device, why): (DeviceId, Option<String>)| {
                    let why = why.unwrap_or_default();
                    Body::JudgeDisk(proto::JudgeDisk { device_id: device.get(), why })
                };
                self.propose_all(findings.into_iter().map(judge).collect()).await;
            }
        }
    }

    /// Gives copies of devices that were lost for long new homes, and evens out who leads. Beside `lead`, whose verdicts
    /// wait for no plan.
    async fn find_homes(&self) {
        let mut looks = tokio::time::interval(homes::LOOK);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut looked = leads::Looks::default();
        loop {
            looks.tick().await;
            // Who is silent now may hold copies that are about to be missed, and this leader may be deaf.
            if !self.held.load(Ordering::Relaxed) {
                self.propose_all(homes::commands(&self.group).await).await;
                self.propose_all(homes::without_room(&self.group, self.liveness.no_room()).await).await;
                self.propose_all(leads::commands(&self.group, &mut looked)).await;
                self.propose_all(moves::commands(&self.group, &mut looked).await).await;
                self.propose_all(self.group.read_stale(maintenance::commands).1).await;
            }
        }
    }

    /// The disks in service.
    fn placed(&self) -> BTreeMap<DeviceId, Placed> {
        let (_, placed) = self.group.read_stale(|state| {
            let in_service = state.all_devices().filter(|device| device.alive);
            let placed = in_service
                .filter_map(|device| Some((device.id, Placed { pool: device.pool?, slow: device.slow.is_some() })));
            placed.collect()
        });
        placed
    }

    /// Whether silence of over half of the SDSs is believed (S23): when another leadership has found the same lately, or
    /// when this one has, tried to hand over, and still leads, because nobody else can.
    fn may_lose_many(&self, hold: Option<EvictionHold>, held_here: Option<Duration>) -> bool {
        match held_here {
            Some(since) => since >= HAND_OVER_PATIENCE,
            None => hold.is_some_and(|hold| hold.is_recent(self.group.log_time())),
        }
    }

    /// Says that too many are silent to be believed, and hands over to somebody who may hear better.
    async fn doubt(&self, held: &TooMany) {
        let why = format!(
            "{} of {} SDSs are silent at once: another leader looks before they are taken for lost",
            held.silent, held.of
        );
        let node_id = self.group.identity().node.get();
        self.propose_all(vec![Body::HoldEvictions(proto::HoldEvictions { node_id, why })]).await;
        self.group.hand_over().await;
    }

    /// The first leader of a new cluster gives it its identity and first secret. A later try is refused.
    async fn bootstrap(&self) {
        let mut secret = vec![0; 32];
        if SystemRandom::new().fill(&mut secret).is_err() {
            tracing::error!("the system gives no randomness for the cluster secret; trying again");
            return;
        }
        let bootstrap = proto::BootstrapCluster { cluster_id: self.cluster.as_bytes().to_vec(), secret, key_id: 1 };
        self.propose_all(vec![Body::BootstrapCluster(bootstrap)]).await;
    }

    /// The next step of a rotation of the secret, if one is under way and may go on.
    fn rotation(&self) -> Option<Body> {
        let now = self.group.log_time();
        let step = self.group.read_stale(|state| {
            if let Some(key) = state.next_key() {
                let all_have_it = self.liveness.without_key(state, key).is_empty();
                return all_have_it.then(|| Body::SignWithSecret(proto::SignWithSecret { key_id: key.get() }));
            }
            let (old, until) = state.retiring_key()?;
            (until < now).then(|| Body::DropSecret(proto::DropSecret { key_id: old.get() }))
        });
        step.1
    }

    /// Side by side: one log sync carries them all.
    async fn propose_all(&self, bodies: Vec<Body>) {
        let proposals = bodies.into_iter().map(|body| async {
            let said = describe(&body);
            let quiet = matches!(body, Body::RecordSample(_));
            let judged = describe_verdicts(&body);
            match self.group.propose(Command::internal(wall_ms(), body)).await {
                Ok(outcome) => match outcome.error() {
                    None if !judged.is_empty() => tell_results(&judged, &outcome),
                    None if quiet => tracing::debug!("{said}"),
                    None => tracing::info!("{said}"),
                    // The state moved on: a newer process registered, say. The next tick judges anew.
                    Some(error) => tracing::info!("{said}: not done: {error}"),
                },
                Err(error) => tracing::warn!("{said}: {error}"),
            }
        });
        futures::future::join_all(proposals).await;
    }

    /// Tries the control ports of SDSs whose stream broke, one try at a time each.
    fn probe(&self) {
        for (sds, process) in self.liveness.to_probe() {
            let address = self.group.read_stale(|state| {
                let registration = state.sds(sds)?.registration.as_ref()?;
                (registration.process == process).then(|| registration.addresses.control.clone())
            });
            let Some(address) = address.1.filter(|address| !address.is_empty()) else { continue };
            if !lock(&self.probing).insert(sds) {
                continue;
            }
            let (liveness, probing) = (self.liveness.clone(), Arc::clone(&self.probing));
            tokio::spawn(async move {
                if refuses(&address).await {
                    liveness.refused(sds, process);
                }
                lock(&probing).remove(&sds);
            });
        }
    }
}

fn lock(probing: &Mutex<BTreeSet<SdsId>>) -> std::sync::MutexGuard<'_, BTreeSet<SdsId>> {
    probing.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Whether the kernel there says that nobody listens. Anything else, a timeout above all, proves nothing (S8).
async fn refuses(address: &str) -> bool {
    let answer = tokio::time::timeout(PROBE, TcpStream::connect(address)).await;
    matches!(answer, Ok(Err(error)) if error.kind() == io::ErrorKind::ConnectionRefused)
}

/// The SDSs that ever registered. Devices are looked at once, not once for each SDS: this runs twenty times a second.
fn registered_sds(state: &State, now: LogTime) -> Vec<Known> {
    let mut devices: BTreeMap<SdsId, Vec<&Device>> = BTreeMap::new();
    for device in state.all_devices() {
        devices.entry(device.sds).or_default().push(device);
    }
    let registered = state.all_sds().filter_map(|sds| Some((sds, sds.registration.as_ref()?.process)));
    registered
        .map(|(sds, process)| {
            let devices = devices.remove(&sds.id).unwrap_or_default();
            Known {
                sds: sds.id,
                process,
                alive: sds.alive,
                devices: devices.iter().map(|d| (d.id, d.incarnation, d.alive)).collect(),
                kept_out: !sds.alive && state.sds_kept_out(sds.id, now).is_some(),
                devices_kept_out: devices
                    .iter()
                    .filter(|device| !device.alive && state.device_kept_out(device.id, now).is_some())
                    .map(|device| device.id)
                    .collect(),
            }
        })
        .collect()
}

/// One line for the log; never the body itself, which may hold a secret (I7).
fn describe(body: &Body) -> String {
    match body {
        Body::BootstrapCluster(_) => "bootstrapping the cluster".to_owned(),
        Body::JudgeSds(judge) => format!("{} verdicts", judge.verdicts.len()),
        Body::HoldEvictions(hold) => hold.why.clone(),
        Body::MoveCopies(moves) => {
            let why = match moves.kind() {
                proto::MoveKind::Lost | proto::MoveKind::Unspecified => "new homes for",
                proto::MoveKind::Drain => "a drain moves",
                proto::MoveKind::Balance => "a rebalance moves",
                proto::MoveKind::NoRoom => "no room for",
            };
            format!("{why} {} copies of pool #{}", moves.moves.len(), moves.pool_id)
        }
        Body::MoveLeads(moves) => format!("{} leads of pool #{} even out", moves.moves.len(), moves.pool_id),
        Body::NoteDevice(note) => format!("faults of the disk of device {}", note.device_id),
        Body::StartScrub(start) => format!("pool {} is scrubbed", start.pool),
        Body::EndScrub(end) => format!("scrub {} of pool #{} is over", end.pass, end.pool_id),
        Body::EnterMaintenance(enter) => format!("sds {} is prepared for maintenance", enter.name),
        Body::SignWithSecret(sign) => format!("generation {} of the secret signs tokens", sign.key_id),
        Body::DropSecret(drop) => format!("generation {} of the secret is dropped", drop.key_id),
        Body::JudgeDisk(judge) if judge.why.is_empty() => format!("device {} is not slow any more", judge.device_id),
        Body::JudgeDisk(judge) => format!("device {} is slow: {}", judge.device_id, judge.why),
        Body::JudgeClock(judge) => format!("wall clocks of {} components", judge.verdicts.len()),
        Body::SetStatuses(set) => format!("status of {} components", set.entries.len()),
        _ => "upkeep".to_owned(),
    }
}
