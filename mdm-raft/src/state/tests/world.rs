//! A state with a log and a store beside it, and short ways to say commands.

use std::collections::BTreeMap;

use pflex_proto::ids::{DeviceId, Incarnation, LogTime, Member, PgId, PgIndex, PoolId, Revision, SdsId};

use crate::{
    command::{Answer, Body, Command, ErrorCode, Outcome, Request, proto},
    state::{Applied, State, Table, model::Pg},
};

pub(super) const GIB: u64 = 1 << 30;
/// The pool every conversation is about.
pub(super) const POOL: PoolId = PoolId(1);

/// The state, and what a store would hold that wrote every row change.
#[derive(Default)]
pub(super) struct World {
    pub(super) state: State,
    pub(super) store: BTreeMap<(Table, Vec<u8>), Vec<u8>>,
    pub(super) revision: u64,
    pub(super) now: u64,
    pub(super) last: Option<Applied>,
    /// The revision of the last command that the conversation itself said.
    pub(super) said: Revision,
    /// Primaries answer nothing until the conversation says so (S11); else each does as soon as it may.
    pub(super) primaries_wait: bool,
}

impl World {
    /// A bootstrapped cluster with nothing in it.
    pub(super) fn new() -> Self {
        let mut world = Self { now: 1_000, ..Self::default() };
        world.ok(Body::BootstrapCluster(proto::BootstrapCluster {
            cluster_id: vec![7; 16],
            secret: vec![9; 32],
            key_id: 1,
        }));
        world
    }

    /// A cluster with domain `d`, pool `p` (two copies, eight groups) and `n` SDSs `s1`.. with one device each, whose
    /// processes, incarnations and devices all have number n.
    pub(super) fn with_sds(n: u8) -> Self {
        Self::with_policy(n, proto::WritePolicy::Sync)
    }

    /// The same with this write policy.
    pub(super) fn with_policy(n: u8, policy: proto::WritePolicy) -> Self {
        let mut world = Self::new();
        world.ok(Body::CreateDomain(proto::CreateDomain { name: "d".into(), if_not_exists: false }));
        let Body::CreatePool(mut pool) = create_pool("p", 2, 8) else { unreachable!() };
        pool.write_policy = policy.into();
        world.ok(Body::CreatePool(pool));
        for i in 1..=n {
            world.ok(create_sds(&format!("s{i}")));
            world.ok(register_sds(i, i, 1));
        }
        world
    }

    pub(super) fn command(&mut self, command: &Command) -> Outcome {
        self.revision += 1;
        let applied = self.state.apply(Revision(self.revision), LogTime(self.now), command);
        for row in &applied.rows {
            let key = (row.table, row.key.clone());
            match &row.value {
                Some(value) => self.store.insert(key, value.clone()),
                None => self.store.remove(&key),
            };
        }
        let outcome = applied.outcome.clone();
        self.last = Some(applied);
        outcome
    }

    /// The state a restarted member would load.
    pub(super) fn reloaded(&self) -> State {
        State::load(
            self.store.iter().map(|((table, key), value)| (*table, key.as_slice().into(), value.as_slice().into())),
        )
        .expect("rows just written load")
    }

    /// A planted bug: the session table loses what a request answered, and keeps its books.
    pub(super) fn forget(&mut self, request: Request) {
        let mut nowhere = Vec::new();
        if let Some(gone) = self.state.outcomes.remove((request.client, request.sequence)) {
            self.state.sessions.update(request.client, |session| session.kept -= gone.weight());
        }
        self.state.outcomes.drain(&mut nowhere);
        self.state.sessions.drain(&mut nowhere);
    }

    pub(super) fn say(&mut self, body: Body) -> Outcome {
        self.command(&Command::internal(1_700_000_000_000, body))
    }

    pub(super) fn say_once(&mut self, request: Request, body: Body) -> Outcome {
        self.command(&Command::once(request, 1_700_000_000_000, body))
    }

    #[track_caller]
    pub(super) fn ok(&mut self, body: Body) -> Answer {
        let outcome = self.say(body);
        assert!(outcome.error().is_none(), "refused: {}", outcome.error().unwrap());
        self.said = self.state.revision();
        if !self.primaries_wait {
            let last = self.last.take();
            self.activate_all();
            self.last = last;
        }
        outcome.result.expect("an outcome has a result")
    }

    #[track_caller]
    pub(super) fn refused(&mut self, body: Body) -> ErrorCode {
        let outcome = self.say(body);
        code(&outcome).unwrap_or_else(|| panic!("accepted: {outcome:?}"))
    }

    pub(super) fn pg(&self, index: u32) -> &Pg {
        self.state.pg(PgId { pool: POOL, index: PgIndex(index) }).expect("the pool is placed")
    }

    /// A group that has its primary on one SDS and its backup on another.
    pub(super) fn pg_between(&self, primary: u32, backup: u32) -> u32 {
        let found = self.state.all_pgs().find(|pg| pg.replicas == [DeviceId(primary), DeviceId(backup)]);
        found.expect("groups of three devices cover every pair").id.index.get()
    }

    /// Every primary is about to answer (S11).
    pub(super) fn activate_all(&mut self) {
        let mut ready: BTreeMap<SdsId, Vec<proto::Proposal>> = BTreeMap::new();
        for pg in self.state.all_pgs().filter(|pg| !pg.is_activated()) {
            let Some(primary) = pg.config.primary.and_then(|device| pg.config.member(device)) else { continue };
            ready.entry(primary.sds).or_default().push(proto::Proposal {
                pool_id: pg.id.pool.get(),
                index: pg.id.index.get(),
                expected_epoch: pg.config.epoch.get(),
                activate: true,
                ..Default::default()
            });
        }
        for (sds, proposals) in ready {
            let process_id = self.state.sds(sds).unwrap().registration.as_ref().unwrap().process.as_bytes().to_vec();
            let outcome =
                self.say(Body::ReconfigurePgs(proto::ReconfigurePgs { sds_id: sds.get(), process_id, proposals }));
            let Some(Answer::Reconfigured(answer)) = outcome.result else { panic!("{outcome:?}") };
            assert!(answer.results.iter().all(|result| result.accepted), "{answer:?}");
        }
    }

    pub(super) fn propose(&mut self, sds: u8, process: u8, proposal: proto::Proposal) -> proto::ProposalResult {
        let answer = self.ok(Body::ReconfigurePgs(proto::ReconfigurePgs {
            sds_id: sds.into(),
            process_id: vec![process; 16],
            proposals: vec![proposal],
        }));
        let Answer::Reconfigured(mut reconfigured) = answer else { panic!("{answer:?}") };
        reconfigured.results.remove(0)
    }
}

/// The error of an outcome.
pub(super) fn code(outcome: &Outcome) -> Option<ErrorCode> {
    outcome.error().map(|error| error.code())
}

pub(super) fn member(n: u32, incarnation: u64) -> Member {
    Member { device: DeviceId(n), sds: SdsId(n), incarnation: Incarnation(incarnation) }
}

pub(super) fn member_message(n: u32, incarnation: u64) -> proto::Member {
    proto::Member { device_id: n, sds_id: n, incarnation }
}

pub(super) fn create_pool(name: &str, copies: u32, pg_count: u32) -> Body {
    Body::CreatePool(proto::CreatePool { name: name.into(), copies, pg_count, ..Default::default() })
}

pub(super) fn create_sds(name: &str) -> Body {
    Body::CreateSds(proto::CreateSds { name: name.into(), ..Default::default() })
}

/// SDS `s{n}` starts as `process`, with its device n in this life.
pub(super) fn register_sds(n: u8, process: u8, incarnation: u64) -> Body {
    Body::RegisterComponent(proto::RegisterComponent {
        kind: proto::Kind::Sds.into(),
        name: format!("s{n}"),
        process_id: vec![process; 16],
        addresses: Some(proto::Addresses { data: format!("10.0.0.{n}:9700"), ..Default::default() }),
        version: "1".into(),
        devices: vec![opened(n, incarnation)],
        host: Some(host(n)),
        follows_doubling: true,
        ..Default::default()
    })
}

pub(super) fn host(n: u8) -> proto::Host {
    proto::Host { name: format!("host{n}"), os: "Debian".into(), cores: 2, ..Default::default() }
}

pub(super) fn opened(n: u8, incarnation: u64) -> proto::OpenedDevice {
    proto::OpenedDevice {
        uuid: vec![n; 16],
        incarnation,
        capacity_bytes: 10 * GIB,
        path: format!("/dev/{n}"),
        ..Default::default()
    }
}

pub(super) fn register_sdc(name: &str, process: u8) -> Body {
    Body::RegisterComponent(proto::RegisterComponent {
        kind: proto::Kind::Sdc.into(),
        name: name.into(),
        process_id: vec![process; 16],
        follows_doubling: true,
        ..Default::default()
    })
}

/// The groups of pool `p` become so many.
pub(super) fn double(pg_count: u32) -> Body {
    Body::DoubleGroups(proto::DoubleGroups { pool: "p".into(), pg_count })
}

pub(super) fn lost(n: u8, process: u8) -> Body {
    Body::SdsLost(proto::SdsLost {
        sds_id: n.into(),
        whole: true,
        process_id: vec![process; 16],
        why: "silent for 3 s".into(),
        ..Default::default()
    })
}

pub(super) fn returned(n: u8, process: u8, incarnation: u64) -> Body {
    Body::SdsReturned(proto::SdsReturned {
        sds_id: n.into(),
        devices: vec![proto::DeviceLife { device_id: n.into(), incarnation }],
        process_id: vec![process; 16],
    })
}

/// Verdicts of one look, from commands of one each.
pub(super) fn judge(bodies: impl IntoIterator<Item = Body>) -> Body {
    let verdict = |body| match body {
        Body::SdsLost(lost) => proto::sds_verdict::Verdict::Lost(lost),
        Body::SdsReturned(returned) => proto::sds_verdict::Verdict::Returned(returned),
        other => panic!("{other:?} is no verdict"),
    };
    let verdicts = bodies.into_iter().map(|body| proto::SdsVerdict { verdict: Some(verdict(body)) }).collect();
    Body::JudgeSds(proto::JudgeSds { verdicts })
}

pub(super) fn create_volume(name: &str, size: u64) -> Body {
    Body::CreateVolume(proto::CreateVolume { name: name.into(), size_bytes: size, ..Default::default() })
}

pub(super) fn create_sdc(name: &str) -> Body {
    Body::CreateSdc(proto::CreateSdc { name: name.into(), if_not_exists: false })
}

pub(super) fn map(volume: &str, sdc: &str) -> Body {
    Body::MapVolume(proto::MapVolume { volume: volume.into(), sdc: sdc.into(), ..Default::default() })
}

pub(super) fn unmap(volume: &str, sdc: &str) -> Body {
    Body::UnmapVolume(proto::UnmapVolume { volume: volume.into(), sdc: sdc.into() })
}

pub(super) fn delete(kind: proto::Object, name: &str) -> Body {
    Body::Delete(proto::Delete { kind: kind.into(), name: name.into() })
}
