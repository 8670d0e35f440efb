//! How components have been: samples, and the last starts of each.

use pflex_proto::pb::{
    self, ComponentKind, HeartbeatSample, RegistrationsReply, RegistrationsRequest, Sample, SampledMetric,
    SamplesReply, SamplesRequest, vitals_server::Vitals,
};
use tonic::{Request, Response, Status};

use super::{Api, convert, error};
use crate::state::{
    State,
    limits::MAX_METRIC_SAMPLES,
    model::{ClusterMetrics, Component, Kind},
};

/// Samples of one reply, without a word about it: an hour.
const DEFAULT_SAMPLES: usize = 60;

#[tonic::async_trait]
impl Vitals for Api {
    async fn samples(&self, request: Request<SamplesRequest>) -> Result<Response<SamplesReply>, Status> {
        let request = request.into_inner();
        let limit = match request.limit as usize {
            0 => DEFAULT_SAMPLES,
            limit => limit.min(MAX_METRIC_SAMPLES),
        };
        let (_, found) = self
            .read(request.stale, |state| {
                let component = match request.name.as_str() {
                    "" => None,
                    name => Some(find(state, request.kind(), name)?),
                };
                let mut newest = state.metrics_newest_first();
                let samples: Vec<_> =
                    newest.by_ref().take(limit).map(|sample| sample_row(state, sample, component)).collect();
                Ok::<_, Status>((samples, newest.next().is_some()))
            })
            .await?;
        let (mut samples, more) = found?;
        samples.reverse();
        Ok(Response::new(SamplesReply { samples, more }))
    }

    async fn registrations(
        &self,
        request: Request<RegistrationsRequest>,
    ) -> Result<Response<RegistrationsReply>, Status> {
        let request = request.into_inner();
        let (_, rows) = self
            .read(request.stale, |state| {
                let component = find(state, request.kind(), &request.name)?;
                Ok::<_, Status>(state.registrations_of(component).map(convert::registration).collect())
            })
            .await?;
        Ok(Response::new(RegistrationsReply { registrations: rows? }))
    }
}

/// The component that a request names.
fn find(state: &State, kind: ComponentKind, name: &str) -> Result<Component, Status> {
    let (kind, word) = match kind {
        ComponentKind::Mdm => (Kind::Mdm, "mdm"),
        ComponentKind::Mgmt => (Kind::Mgmt, "mgmt"),
        ComponentKind::Sds => (Kind::Sds, "sds"),
        ComponentKind::Sdc => (Kind::Sdc, "sdc"),
        ComponentKind::Unspecified => return Err(error::not_found("component", name)),
    };
    state.component_named(kind, name).ok_or_else(|| error::not_found(word, name))
}

fn sample_row(state: &State, sample: &ClusterMetrics, component: Option<Component>) -> Sample {
    let heartbeats = component.and_then(|component| {
        let log = state.heartbeats_at(sample.revision)?;
        let found = log.samples.iter().find(|entry| entry.component == component)?;
        Some(HeartbeatSample {
            reports: found.reports,
            longest_gap_ms: found.longest_gap_ms,
            silent_ms: found.silent_ms,
        })
    });
    let metrics = sample.values.iter().map(|(name, value)| SampledMetric { name: name.clone(), value: *value });
    pb::Sample {
        revision: sample.revision.get(),
        log_time_ms: sample.at.get(),
        at_ms: sample.at_wall_ms,
        metrics: metrics.collect(),
        heartbeats,
    }
}
