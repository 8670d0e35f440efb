//! What each command does to the state. One file per noun; this one orders the steps that all commands share.

mod audit;
mod bad_token;
mod cluster;
mod device;
mod double;
mod drain;
mod fault_set;
mod health;
mod leads;
mod maintenance;
mod moves;
mod pg;
mod promote;
mod rebuild;
mod recovery;
mod register;
mod rename;
mod scrub;
mod secret;
mod session;
mod settings;
mod snapshot;
mod token;
mod topology;
mod validate;
mod verdict;
mod volume;

use pflex_proto::ids::{LogTime, Revision};

use super::{
    Applied, MapEvent, State, each_table,
    model::{Counters, Moment, Position, TokenChain},
    rows::cluster::ConfigRow,
};
use crate::command::{Answer, Body, COMMAND_VERSION, Command, ErrorCode, Outcome, proto};

/// What `apply` knows besides the state and the command.
#[derive(Clone, Copy, Debug)]
struct Context {
    revision: Revision,
    log_time: LogTime,
    /// For people only: it never decides.
    wall_time_ms: u64,
}

/// Why a command was refused; nothing was changed.
#[derive(Debug)]
struct Refusal {
    code: ErrorCode,
    object: String,
    what: String,
}

impl Refusal {
    fn new(code: ErrorCode, object: impl Into<String>, what: impl Into<String>) -> Self {
        Self { code, object: object.into(), what: what.into() }
    }

    fn into_answer(self) -> Answer {
        Answer::Error(proto::Error { code: self.code.into(), what: self.what, object: self.object })
    }
}

type Effect = Result<Answer, Refusal>;

/// The answer of a command that changed the object with this id.
fn done(id: impl Into<u64>) -> Effect {
    Ok(Answer::Done(proto::Done { id: id.into() }))
}

/// The answer of a command that made, or found, the object with this id.
fn created(id: impl Into<u64>, existed: bool) -> Effect {
    Ok(Answer::Created(proto::Created { id: id.into(), existed }))
}

impl State {
    /// Executes a command. `revision` is its log index and `log_time` its time in the log (S17).
    ///
    /// # Panics
    /// When the command is of a newer version than this binary, or is out of order: applying less than, or other than,
    /// what the other members apply would make the copies differ, so this member stops instead (I8). In debug builds
    /// also when an invariant is broken.
    pub fn apply(&mut self, revision: Revision, log_time: LogTime, command: &Command) -> Applied {
        assert!(
            command.version <= COMMAND_VERSION,
            "log entry {revision} has command version {}, this binary knows {COMMAND_VERSION}: run a newer one",
            command.version
        );
        let position = self.position();
        assert!(revision > position.revision, "log entry {revision} after {}", position.revision);
        let log_time = log_time.max(position.log_time);
        self.config.put(ConfigRow::Position(Position { revision, log_time }));

        let context = Context { revision, log_time, wall_time_ms: command.wall_time_ms };
        let outcome = self.execute_once(context, command);

        self.refresh_names();
        self.refresh_sums();
        self.follow_rebuilds(Moment { revision, at: log_time, wall_ms: command.wall_time_ms });
        if cfg!(debug_assertions) {
            let held = self.check_step().and_then(|()| self.check());
            assert!(held.is_ok(), "log entry {revision} broke an invariant: {held:?}");
        }
        let events = self.map_changes().into_iter().map(|change| MapEvent { revision, change }).collect();
        let mut rows = Vec::new();
        each_table!(self, table => table.drain(&mut rows));
        Applied { outcome, rows, events }
    }

    /// Executes the body, whatever its session.
    fn execute(&mut self, context: Context, command: &Command) -> Outcome {
        let answer = match self.dispatch(context, command) {
            Ok(answer) => {
                if let Some(body) = &command.body {
                    self.note_event(context, command, body);
                }
                self.date_groups(context.revision);
                answer
            }
            Err(refusal) => {
                debug_assert!(!self.has_effects(), "a refused command had effects: {refusal:?}");
                refusal.into_answer()
            }
        };
        Outcome::of(context.revision, answer)
    }

    fn dispatch(&mut self, context: Context, command: &Command) -> Effect {
        let Some(body) = &command.body else {
            return Err(Refusal::new(ErrorCode::Invalid, "command", "it has no body"));
        };
        if let Body::BootstrapCluster(bootstrap) = body {
            return self.bootstrap(bootstrap);
        }
        if self.cluster().is_none() {
            return Err(Refusal::new(ErrorCode::NotBootstrapped, "cluster", "it is not bootstrapped yet; try again"));
        }
        match body {
            Body::BootstrapCluster(_) => unreachable!("handled above"),
            Body::OpenClientSession(open) => self.open_session(context, open),
            Body::CloseClientSession(_) => self.close_session(command),
            Body::RegisterComponent(register) => self.register(context, register),
            Body::SetComponentStatus(status) => self.set_status(context, status),
            Body::SetStatuses(set) => self.set_statuses(context, set),
            Body::RecordSample(sample) => self.record_sample(context, sample),
            Body::ChangeSettings(change) => self.change_settings(change),
            Body::CreateDomain(create) => self.create_domain(create),
            Body::CreatePool(create) => self.create_pool(create),
            Body::CreateSds(create) => self.create_sds(create),
            Body::CreateSdc(create) => self.create_sdc(create),
            Body::Delete(delete) => self.delete(delete),
            Body::Rename(rename) => self.rename(rename),
            Body::RemoveDevice(remove) => self.remove_device(remove),
            Body::CreateFaultSet(create) => self.create_fault_set(create),
            Body::AssignDevice(assign) => self.assign_device(assign),
            Body::CreateVolume(create) => self.create_volume(context, create),
            Body::ResizeVolume(resize) => self.resize_volume(resize),
            Body::MapVolume(map) => self.map_volume(context, map),
            Body::UnmapVolume(unmap) => self.unmap_volume(context, unmap),
            Body::LimitMapping(limit) => self.limit_mapping(limit),
            Body::ReconfigurePgs(reconfigure) => self.reconfigure_pgs(reconfigure),
            Body::SdsLost(lost) => self.sds_lost(context, lost),
            Body::SdsReturned(returned) => self.sds_returned(context, returned),
            Body::JudgeSds(judge) => self.judge_sds(context, judge),
            Body::MoveCopies(moves) => self.move_copies(context, moves),
            Body::MoveLeads(moves) => self.move_leads(moves),
            Body::Drain(drain) => self.drain(context, drain),
            Body::Rebalance(rebalance) => self.rebalance(context, rebalance),
            Body::EnterMaintenance(enter) => self.enter_maintenance(context, enter),
            Body::ExitMaintenance(exit) => self.exit_maintenance(context, exit),
            Body::JudgeDisk(judge) => self.judge_disk(judge),
            Body::DoubleGroups(double) => self.double_groups(double),
            Body::SetRebuildPolicy(set) => self.set_rebuild_policy(set),
            Body::NoteDevice(note) => self.note_device(context, note),
            Body::StartScrub(start) => self.start_scrub(context, start),
            Body::EndScrub(end) => self.end_scrub(context, end),
            Body::FreezePg(freeze) => self.freeze_pg(context, freeze),
            Body::PromotePg(promote) => self.promote_pg(promote),
            Body::UnfreezePg(unfreeze) => self.unfreeze_pg(unfreeze),
            Body::HoldEvictions(hold) => self.hold_evictions(context, hold),
            Body::ApproveSdc(approve) => self.approve_sdc(context, approve),
            Body::IssueTokens(issue) => self.issue_tokens(context, issue),
            Body::RecordMdms(record) => self.record_mdms(record),
            Body::EndRecovery(end) => self.end_recovery(end),
            Body::ReportGroups(report) => self.report_groups(report),
            Body::AckTokens(ack) => self.ack_tokens(ack),
            Body::NoteBadTokens(note) => self.note_bad_tokens(context, note),
            Body::JudgeClock(judge) => self.judge_clock(context, judge),
            Body::RotateSecret(rotate) => self.rotate_secret(rotate),
            Body::SignWithSecret(sign) => self.sign_with_secret(context, sign),
            Body::DropSecret(drop) => self.drop_secret(context, drop),
            Body::CreateSnapshot(create) => self.create_snapshot(context, create),
            Body::SetSnapshotState(set) => self.set_snapshot_state(set),
        }
    }

    /// Takes the next id of a space.
    fn take_id<Id>(&mut self, next: impl FnOnce(&mut Counters) -> Id) -> Id {
        let mut counters = self.counters();
        let id = next(&mut counters);
        self.config.put(ConfigRow::Counters(counters));
        id
    }

    fn put_token_chain(&mut self, chain: TokenChain) {
        self.config.put(ConfigRow::TokenChain(chain));
    }
}
