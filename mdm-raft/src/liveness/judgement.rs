//! The verdicts of one look as one command: one log entry and one update to each watcher, however many servers a switch
//! took with it.

use pflex_proto::ids::{DeviceId, Incarnation, ProcessId, SdsId};

use super::tracker::Verdict;
use crate::{
    command::{Answer, Body, Outcome, proto},
    state::limits::MAX_VERDICTS,
};

use proto::sds_verdict::Verdict as Judged;

/// As few commands as the bound on one allows.
pub(super) fn judgements(verdicts: Vec<Verdict>) -> Vec<Body> {
    let all: Vec<proto::SdsVerdict> = verdicts.into_iter().map(message).collect();
    all.chunks(MAX_VERDICTS).map(|part| Body::JudgeSds(proto::JudgeSds { verdicts: part.to_vec() })).collect()
}

/// A line for the log for each verdict; none of another command.
pub(super) fn describe_verdicts(body: &Body) -> Vec<String> {
    let Body::JudgeSds(judge) = body else { return Vec::new() };
    let said = |verdict: &proto::SdsVerdict| match &verdict.verdict {
        Some(Judged::Lost(lost)) if lost.whole => format!("sds {} is lost: {}", lost.sds_id, lost.why),
        Some(Judged::Lost(lost)) => format!("sds {} lost {} devices: {}", lost.sds_id, lost.devices.len(), lost.why),
        Some(Judged::Returned(returned)) => format!("sds {} is heard again", returned.sds_id),
        None => "no verdict".to_owned(),
    };
    judge.verdicts.iter().map(said).collect()
}

/// Logs what became of each.
pub(super) fn tell_results(said: &[String], outcome: &Outcome) {
    let Some(Answer::Judged(judged)) = &outcome.result else { return };
    for (said, result) in said.iter().zip(&judged.results) {
        match &result.error {
            None => tracing::info!("{said}"),
            // The state moved on: a newer process registered, say. The next look judges anew.
            Some(error) => tracing::info!("{said}: not done: {error}"),
        }
    }
}

fn message(verdict: Verdict) -> proto::SdsVerdict {
    let verdict = match verdict {
        Verdict::Lost { sds, process, proven, why } => {
            Judged::Lost(proto::SdsLost { whole: true, proven_dead: proven, ..lost(sds, process, Vec::new(), why) })
        }
        Verdict::DevicesLost { sds, process, devices, why } => Judged::Lost(lost(sds, process, devices, why)),
        Verdict::Returned { sds, process, devices } => Judged::Returned(proto::SdsReturned {
            sds_id: sds.get(),
            devices: lives(devices),
            process_id: process.as_bytes().to_vec(),
        }),
    };
    proto::SdsVerdict { verdict: Some(verdict) }
}

fn lost(sds: SdsId, process: ProcessId, devices: Vec<(DeviceId, Incarnation)>, why: String) -> proto::SdsLost {
    let process_id = process.as_bytes().to_vec();
    proto::SdsLost { sds_id: sds.get(), devices: lives(devices), process_id, why, ..proto::SdsLost::default() }
}

fn lives(devices: Vec<(DeviceId, Incarnation)>) -> Vec<proto::DeviceLife> {
    let life = |(device, incarnation): (DeviceId, Incarnation)| proto::DeviceLife {
        device_id: device.get(),
        incarnation: incarnation.get(),
    };
    devices.into_iter().map(life).collect()
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::*;
    use crate::{
        liveness::tracker::{Known, Thresholds, Tracker},
        state::model::Settings,
    };

    fn silent(n: u32) -> Vec<Verdict> {
        let known: Vec<Known> = (1..=n)
            .map(|n| Known {
                sds: SdsId(n),
                process: ProcessId::from_bytes([1; 16]),
                alive: true,
                devices: Vec::new(),
                kept_out: false,
                devices_kept_out: Vec::new(),
            })
            .collect();
        let (start, thresholds) = (Instant::now(), Thresholds::of(&Settings::default()));
        let mut tracker = Tracker::default();
        let mut look = |ms| tracker.findings(start + Duration::from_millis(ms), &known, &thresholds, true).verdicts;
        (0..3_000).step_by(500).for_each(|ms| assert!(look(ms).is_empty()));
        look(3_000)
    }

    #[test]
    fn a_hundred_servers_lost_at_one_look_make_one_command() {
        let bodies = judgements(silent(100));
        assert_eq!(bodies.len(), 1);
        let said = describe_verdicts(&bodies[0]);
        assert_eq!((said.len(), said[99].as_str()), (100, "sds 100 is lost: silent for 3000 ms"));
    }

    #[test]
    fn more_than_a_command_takes_make_several_and_nothing_makes_none() {
        let most = u32::try_from(MAX_VERDICTS).unwrap();
        let sizes = |n| judgements(silent(n)).iter().map(|body| describe_verdicts(body).len()).collect::<Vec<_>>();
        assert_eq!(sizes(0), Vec::<usize>::new());
        assert_eq!(sizes(most), [MAX_VERDICTS]);
        assert_eq!(sizes(most + 1), [MAX_VERDICTS, 1]);
    }
}
