//! The liveness streams of SDSs and the health reports of everybody; on the leader only.

use std::collections::BTreeMap;

use pflex_common::clock::wall_ms;
use pflex_proto::{
    ids::{DeviceId, Incarnation, KeyId, LogTime, ProcessId, Revision, SdsId},
    pb::{
        Beat, BeatReply, ComponentKind, HealthReport, HealthReportReply, ScrubOrder,
        liveness_server::Liveness as LivenessService,
    },
    status::{self, Reason},
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};
use tracing::warn;

use super::Api;
use crate::{
    liveness::{Heard, HeardDevice, HeardScrub, MAX_METRICS, StreamId},
    state::{
        limits::MAX_DEVICES_PER_SDS,
        model::{Component, Device, DeviceFaults, Kind, Registration, ScrubFound, Setting},
    },
};

/// Replies on their way to one SDS; it sends one beat a second and needs only the newest answer.
const IN_FLIGHT: usize = 4;
/// Copies without room that are taken from one device's beat; the others come when these are settled.
const MAX_NO_ROOM_PER_DEVICE: usize = 64;
/// Bytes of a metric's name that are kept.
const MAX_METRIC_NAME: usize = 128;

#[tonic::async_trait]
impl LivenessService for Api {
    type BeatsStream = ReceiverStream<Result<BeatReply, Status>>;

    async fn beats(&self, request: Request<Streaming<Beat>>) -> Result<Response<Self::BeatsStream>, Status> {
        let term = self.leading()?;
        let (sender, receiver) = mpsc::channel(IN_FLIGHT);
        let (api, beats) = (self.clone(), request.into_inner());
        tokio::spawn(async move {
            let stream = api.liveness().open_stream();
            let mut heard_from = None;
            let end = follow(&api, term, beats, stream, &sender, &mut heard_from).await;
            if let Some(sds) = heard_from {
                api.liveness().stream_ended(sds, stream);
            }
            if let Err(why) = end {
                // If the SDS does not read even this, it finds the stream ended.
                drop(sender.try_send(Err(why)));
            }
        });
        Ok(Response::new(ReceiverStream::new(receiver)))
    }

    async fn report(&self, request: Request<HealthReport>) -> Result<Response<HealthReportReply>, Status> {
        self.leading()?;
        let arrived = wall_ms();
        let report = request.into_inner();
        let component = self.look(|state| reporter(state, &report)).ok_or_else(|| {
            let what = format!("{}: it is not registered here; register first", report.name);
            status::status(Reason::NotFound, what)
        })?;
        // A process that another one has replaced must not make that one look alive.
        let process = ProcessId::from_slice(&report.process_id)
            .map_err(|why| status::status(Reason::Invalid, format!("{}: its process id: {why}", report.name)))?;
        if self.look(|state| state.process_of(component)).is_some_and(|registered| registered != process) {
            let what = format!("{}: another process of it has registered since", report.name);
            return Err(status::status(Reason::StaleEpoch, what));
        }
        let metrics = report.metrics.into_iter().take(MAX_METRICS);
        let metrics: BTreeMap<String, f64> =
            metrics.filter(|m| m.name.len() <= MAX_METRIC_NAME).map(|metric| (metric.name, metric.value)).collect();
        self.reports().note(component, metrics);
        if report.wall_ms != 0 {
            self.reports().note_clock(component, report.wall_ms, arrived);
        }
        Ok(Response::new(HealthReportReply { log_time_ms: self.log_time().get() }))
    }
}

/// Takes beats and answers them until the SDS, the leadership or the server ends.
async fn follow(
    api: &Api,
    term: u64,
    mut beats: Streaming<Beat>,
    stream: StreamId,
    sender: &mpsc::Sender<Result<BeatReply, Status>>,
    heard_from: &mut Option<SdsId>,
) -> Result<(), Status> {
    let mut leader = api.group().leader();
    loop {
        let beat = tokio::select! {
            () = api.shutdown().cancelled() => return Ok(()),
            _ = leader.wait_for(|view| !view.leading || view.term != term) => return Err(api.not_leader()),
            beat = beats.message() => match beat {
                Ok(Some(beat)) => beat,
                Ok(None) | Err(_) => return Ok(()),
            },
        };
        let counted = LogTime(beat.log_time_ms);
        let heard = parse(beat)?;
        let revision = api.feed().newest();
        let (registered, key_ids, void, scrubs) = api.look(|state| {
            let sds = state.sds(heard.sds);
            let void = sds.and_then(|sds| sds.registration.as_ref()).is_some_and(Registration::is_void);
            let registered = sds.is_some_and(|sds| sds.runs(heard.process));
            (
                registered,
                state.all_secrets().map(|(key, _)| key.get()).collect::<Vec<_>>(),
                void,
                scrubs(state, heard.sds),
            )
        });
        if void {
            let what = format!("sds {}: the cluster was restored from a backup; register again", heard.sds);
            return Err(status::status(Reason::Precondition, what));
        }
        if !registered {
            let what = format!("sds {}: this process is not the one that registered last; register first", heard.sds);
            return Err(status::status(Reason::StaleEpoch, what));
        }
        *heard_from = Some(heard.sds);
        api.liveness().beat(stream, &heard);
        // Before the answer, and before any command that is stamped after it.
        if let Err(error) = api.group().catch_up(counted) {
            warn!(sds = %heard.sds, %error, "log time of an SDS is ignored");
        }
        let (log_time_ms, revision) = (api.log_time().get(), revision.get());
        let newest_key_id = key_ids.last().copied().unwrap_or(0);
        let reply = BeatReply { log_time_ms, term, revision, newest_key_id, key_ids, scrubs };
        // A full queue means an SDS that does not read; it beats on, and the next answer is as good.
        if let Err(mpsc::error::TrySendError::Closed(_)) = sender.try_send(Ok(reply)) {
            return Ok(());
        }
    }
}

/// What the devices of an SDS have to scrub.
fn scrubs(state: &crate::state::State, sds: SdsId) -> Vec<ScrubOrder> {
    let bytes_per_second = state.settings().get(Setting::ScrubRate) << 20;
    let order = |device: &Device| {
        let scrub = state.pool(device.pool?)?.scrub.filter(|scrub| scrub.runs())?;
        Some(ScrubOrder { device_id: device.id.get(), pass: scrub.pass, bytes_per_second })
    };
    state.devices_of(sds).filter_map(order).collect()
}

fn parse(beat: Beat) -> Result<Heard, Status> {
    let bad = |what: String| status::status(Reason::Invalid, what);
    let process = ProcessId::from_slice(&beat.process_id).map_err(|why| bad(why.to_string()))?;
    if beat.devices.len() > MAX_DEVICES_PER_SDS {
        return Err(bad(format!("a beat names at most {MAX_DEVICES_PER_SDS} devices")));
    }
    let device = |device: pflex_proto::pb::DeviceBeat| HeardDevice {
        device: DeviceId(device.device_id),
        incarnation: Incarnation(device.incarnation),
        completed_ios: device.completed_ios,
        waiting: device.waiting,
        failed: device.failed.then_some(device.why),
        resync: (device.resync_left_bytes, device.resync_sent_bytes),
        disk: (device.disk_ios, device.disk_us),
        faults: DeviceFaults {
            incarnation: Incarnation(device.incarnation),
            repaired_blocks: device.repaired_blocks,
            unreadable_blocks: device.unreadable_blocks,
            scrub_bad_blocks: device.scrub_bad_blocks,
            scrub_mismatches: device.scrub_mismatches,
            noted: LogTime(0),
        },
        scrub: HeardScrub {
            pass: device.scrub_pass,
            done: device.scrub_done,
            as_of: Revision(beat.applied_revision),
            found: ScrubFound {
                chunks: device.scrubbed_chunks,
                bad_blocks: device.scrub_pass_bad_blocks,
                mismatches: device.scrub_pass_mismatches,
                unreadable_chunks: device.unreadable_chunks,
            },
        },
        no_room: {
            let copies = device.no_room.iter().take(MAX_NO_ROOM_PER_DEVICE);
            copies.filter_map(|copy| Some((copy.pg.as_ref()?.into(), DeviceId(copy.device_id)))).collect()
        },
    };
    Ok(Heard {
        sds: SdsId(beat.sds_id),
        process,
        applied: Revision(beat.applied_revision),
        newest_key: KeyId(beat.newest_key_id),
        devices: beat.devices.into_iter().map(device).collect(),
    })
}

/// Who reports: MDMs and consoles by name, the others by id.
fn reporter(state: &crate::state::State, report: &HealthReport) -> Option<Component> {
    let by_name = |kind| {
        let mut nodes = state.all_nodes();
        nodes.find(|node| node.component.kind == kind && node.name == report.name).map(|node| node.component)
    };
    match report.kind() {
        ComponentKind::Mdm => by_name(Kind::Mdm),
        ComponentKind::Mgmt => by_name(Kind::Mgmt),
        ComponentKind::Sds => state.sds(report.id.into()).map(|_| Component { kind: Kind::Sds, id: report.id }),
        ComponentKind::Sdc => state.sdc(report.id.into()).map(|_| Component { kind: Kind::Sdc, id: report.id }),
        ComponentKind::Unspecified => None,
    }
}
