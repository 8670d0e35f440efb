//! What people ask when they wonder: events, reasons, limits, settings.

use pflex_proto::{
    ids::Revision,
    pb::{
        self, ChangeSettingsRequest, LimitsReply, LimitsRequest, ListEventsReply, ListEventsRequest, SettingsReply,
        SettingsRequest, WhyReply, WhyRequest, insight_server::Insight,
    },
    status::{self, Reason},
};
use tonic::{Request, Response, Status};

use super::Api;
use crate::{
    command::{Body, proto},
    state::{
        State, limits as max,
        model::{Event, Setting, Severity},
    },
};

/// Events of one reply, and without a word about it.
const MAX_EVENTS_PER_REPLY: usize = 4_096;
const DEFAULT_EVENTS: usize = 256;
/// Bytes of the words that name an object: a noun and the longest name, with room.
const MAX_WORDS: usize = 256;

#[tonic::async_trait]
impl Insight for Api {
    async fn events(&self, request: Request<ListEventsRequest>) -> Result<Response<ListEventsReply>, Status> {
        let request = request.into_inner();
        let least = match request.least_severity.as_str() {
            "" | "info" => Severity::Info,
            "warning" => Severity::Warning,
            "critical" => Severity::Critical,
            other => {
                let shown: String = other.chars().take(40).collect();
                let what = format!("{shown:?} is no severity: info, warning or critical");
                return Err(status::status(Reason::Invalid, what));
            }
        };
        let limit = match request.limit as usize {
            0 => DEFAULT_EVENTS,
            limit => limit.min(MAX_EVENTS_PER_REPLY),
        };
        let (revision, (mut events, more)) = self
            .read(request.stale, |state| {
                let wanted = |event: &&Event| {
                    event.severity >= least
                        && event.at_wall_ms >= request.since_ms
                        && (request.object.is_empty() || event.told_of(&request.object).is_some())
                };
                let mut newest = state.events_after(Revision(request.after_revision)).rev().filter(wanted);
                let events: Vec<_> =
                    newest.by_ref().take(limit).map(|event| event_message(event, &request.object)).collect();
                (events, newest.next().is_some())
            })
            .await?;
        events.reverse();
        Ok(Response::new(ListEventsReply { events, revision: revision.get(), more }))
    }

    async fn why(&self, request: Request<WhyRequest>) -> Result<Response<WhyReply>, Status> {
        let request = request.into_inner();
        if request.object.len() > MAX_WORDS {
            return Err(status::status(Reason::Invalid, format!("an object is named in at most {MAX_WORDS} bytes")));
        }
        let now = self.log_time();
        let (_, explanations) = self
            .read(request.stale, |state| {
                let explain = |explanation: crate::state::Explanation| pb::Explanation {
                    object: explanation.object,
                    state: explanation.state,
                    causes: explanation.causes.into_iter().map(|cause| cause_message(state, cause)).collect(),
                };
                state.why_at(&request.object, now).into_iter().map(explain).collect::<Vec<_>>()
            })
            .await?;
        if explanations.is_empty() {
            let shown: String = request.object.chars().take(MAX_WORDS).flat_map(char::escape_default).collect();
            return Err(status::status(
                Reason::NotFound,
                format!(
                    "{shown}: nothing has this name; say for example `volume db`, `sds sds1`, `device 3`, `pg 1.17`"
                ),
            ));
        }
        Ok(Response::new(WhyReply { explanations }))
    }

    async fn limits(&self, request: Request<LimitsRequest>) -> Result<Response<LimitsReply>, Status> {
        let (_, limits) = self.read(request.into_inner().stale, limits_of).await?;
        Ok(Response::new(LimitsReply { limits }))
    }

    async fn settings(&self, request: Request<SettingsRequest>) -> Result<Response<SettingsReply>, Status> {
        let (_, reply) = self.read(request.into_inner().stale, settings_of).await?;
        Ok(Response::new(reply))
    }

    async fn change_settings(
        &self,
        request: Request<ChangeSettingsRequest>,
    ) -> Result<Response<SettingsReply>, Status> {
        let request = request.into_inner();
        if request.changes.is_empty() || request.changes.len() > Setting::ALL.len() {
            let what = format!("a change names 1 to {} settings", Setting::ALL.len());
            return Err(status::status(Reason::Invalid, what));
        }
        let entries = request.changes.into_iter().map(|change| proto::Setting {
            key: change.key,
            value: change.value,
            to_default: change.to_default,
        });
        let body = Body::ChangeSettings(proto::ChangeSettings { entries: entries.collect() });
        self.propose_once(request.request, body).await?;
        Ok(Response::new(self.look(settings_of)))
    }
}

/// An event in the words that are about `object`, if it has words of its own.
fn event_message(event: &Event, object: &str) -> pb::Event {
    let part = event.parts.iter().find(|part| part.object == object);
    let (kind, object, what) = match part {
        Some(part) => (&part.kind, &part.object, &part.what),
        None => (&event.kind, &event.object, &event.what),
    };
    pb::Event {
        revision: event.revision.get(),
        log_time_ms: event.at.get(),
        at_ms: event.at_wall_ms,
        severity: event.severity.to_string(),
        kind: kind.clone(),
        object: object.clone(),
        what: what.clone(),
        who: event.who.clone(),
    }
}

fn cause_message(state: &State, cause: crate::state::Cause) -> pb::Cause {
    let event = cause.revision.and_then(|revision| state.event(revision));
    pb::Cause {
        what: cause.what,
        revision: cause.revision.map_or(0, Revision::get),
        at_ms: event.map_or(0, |event| event.at_wall_ms),
        who: event.map(|event| event.who.clone()).unwrap_or_default(),
    }
}

fn settings_of(state: &State) -> SettingsReply {
    let settings = state.settings();
    let row = |setting: &Setting| {
        let (least, most) = setting.bounds();
        pb::SettingRow {
            key: setting.key().to_owned(),
            value: settings.get(*setting),
            default_value: setting.default(),
            least,
            most,
            what: setting.what().to_owned(),
        }
    };
    SettingsReply { settings: Setting::ALL.iter().map(row).collect() }
}

fn limits_of(state: &State) -> Vec<pb::Limit> {
    let whole = |name: &str, used: usize, limit: usize| pb::Limit {
        name: name.to_owned(),
        used: used as u64,
        limit: limit as u64,
        object: String::new(),
    };
    let usage = state.usage();
    let mut limits = vec![
        whole("domains", usage.domains, max::MAX_DOMAINS),
        whole("pools", usage.pools, max::MAX_POOLS),
        whole("fault sets", usage.fault_sets, max::MAX_FAULT_SETS),
        whole("sds", usage.sds, max::MAX_SDS),
        whole("devices", usage.devices, max::MAX_DEVICES),
        whole("sdc", usage.sdcs, max::MAX_SDCS),
        whole("mdm and mgmt", usage.nodes, max::MAX_NODES),
        whole("volumes", usage.volumes, max::MAX_VOLUMES),
        whole("sessions", usage.sessions, max::MAX_SESSIONS),
        whole("tokens recorded", usage.tokens, max::MAX_TOKENS),
        whole("sources of refused tokens", usage.bad_sources, max::MAX_BAD_SOURCES),
        whole("events recorded", usage.events, max::MAX_EVENTS),
    ];
    // Limits per object: how full the fullest is.
    let fullest = |name: &str, limit: u64, found: Option<(String, u64)>| {
        let (object, used) = found.unwrap_or_default();
        pb::Limit { name: name.to_owned(), used, limit, object }
    };
    let devices = state.all_sds().map(|sds| (format!("sds {}", sds.name), state.devices_of(sds.id).count() as u64));
    limits.push(fullest("devices of one sds", max::MAX_DEVICES_PER_SDS as u64, devices.max_by_key(|(_, n)| *n)));
    let mut mapped = std::collections::BTreeMap::new();
    for mapping in state.all_mappings() {
        *mapped.entry(mapping.volume).or_insert(0_u64) += 1;
    }
    let mapped = mapped.into_iter().max_by_key(|(_, n)| *n);
    let mapped = mapped.and_then(|(id, n)| Some((format!("volume {}", state.volume(id)?.name), n)));
    limits.push(fullest("mappings of one volume", max::MAX_MAPPINGS_PER_VOLUME as u64, mapped));
    let mut snapshots = std::collections::BTreeMap::new();
    for snapshot in state.all_snapshots() {
        *snapshots.entry(snapshot.volume).or_insert(0_u64) += 1;
    }
    let snapshots = snapshots.into_iter().max_by_key(|(_, n)| *n);
    let snapshots = snapshots.and_then(|(id, n)| Some((format!("volume {}", state.volume(id)?.name), n)));
    limits.push(fullest("snapshots of one volume", max::MAX_SNAPSHOTS_PER_VOLUME as u64, snapshots));
    let largest = state.all_volumes().max_by_key(|volume| volume.size);
    let largest = largest.map(|volume| (format!("volume {}", volume.name), volume.size.get()));
    limits.push(fullest("bytes of one volume", max::MAX_VOLUME_BYTES, largest));
    limits.extend(state.all_pools().map(|pool| {
        let usage = state.usage_of(pool);
        pb::Limit {
            name: "bytes of a pool's volumes".to_owned(),
            used: usage.provisioned.get(),
            limit: usage.limit().get(),
            object: format!("pool {}", pool.name),
        }
    }));
    limits
}
