//! Random conversations over every command. A failure prints its seed; `PFLEX_TEST_SEED` runs one again.
//!
//! Each apply runs `check` and `check_step` (debug builds). On top, after any prefix: the rows written so far load to
//! the same state, and a second machine fed the same log has the same state, outcomes and rows.

use std::collections::BTreeMap;

use pflex_proto::ids::{DeviceId, Epoch, LogTime, PgId};
use rand::{RngExt as _, seq::IndexedRandom as _};
use rand_chacha::ChaCha8Rng;

use super::homes::move_copies;
use super::leads::move_leads;
use super::maintenance::{enter, exit};
use super::moves::{cancel, drain, drain_device, move_live, rebalance};
use super::protected::protect;
use super::secrets::{drop_old, rotate, sign};
use super::snapshots::{create_snapshot, set_snapshot};
use super::topology::{assign, create_fault_set, rename};
use super::world::{
    GIB, World, create_pool, create_sdc, create_volume, delete, double, judge, lost, map, opened, register_sdc,
    returned, unmap,
};
use crate::{
    command::{Answer, Body, Request, proto},
    liveness::{homes::Homeless, leads::Looks, moves::Moving},
    testing::{Seeds, rng},
};

const STEPS: usize = 250;

/// What the conversation remembers of what it said, to be able to say it again, late or wrongly.
#[derive(Default)]
struct Memory {
    /// Process and incarnation of each SDS's last start.
    starts: BTreeMap<u8, (u8, u64)>,
    /// Next sequence of the session, and its client.
    client: Option<(u64, u64)>,
    /// The last request in the session, for a retry.
    last: Option<(Request, Body, crate::command::Outcome)>,
    processes: u8,
    /// A planted bug: the session table forgets before a retry comes.
    forgets: bool,
}

fn name(rng: &mut ChaCha8Rng, prefix: &str, n: u32) -> String {
    format!("{prefix}{}", rng.random_range(1..=n))
}

fn start_sds(rng: &mut ChaCha8Rng, memory: &mut Memory) -> Body {
    let n = rng.random_range(1..=5_u8);
    let (process, incarnation) = memory.starts.get(&n).copied().unwrap_or((0, 0));
    // Mostly a proper restart; now and then a retry or a process with an old incarnation.
    let (process, incarnation) = if rng.random_bool(0.8) {
        memory.processes = memory.processes.wrapping_add(1);
        (memory.processes, incarnation + 1)
    } else {
        (process, incarnation.max(1))
    };
    memory.starts.insert(n, (process, incarnation));
    let mut devices = vec![proto::OpenedDevice { empty: rng.random_bool(0.1), ..opened(n, incarnation) }];
    if rng.random_bool(0.3) {
        devices.push(opened(100 + n, incarnation));
    }
    if rng.random_bool(0.05) {
        devices.clear();
    }
    Body::RegisterComponent(proto::RegisterComponent {
        kind: proto::Kind::Sds.into(),
        name: format!("s{n}"),
        process_id: vec![process; 16],
        host: Some(super::world::host(n)),
        devices,
        // Now and then an older build.
        follows_doubling: rng.random_bool(0.95),
        ..Default::default()
    })
}

fn a_proposal(rng: &mut ChaCha8Rng, world: &World) -> Option<Body> {
    let pgs: Vec<_> = world.state.all_pgs().collect();
    let pg = *pgs.choose(rng)?;
    let primary = pg.config.primary.and_then(|device| pg.config.member(device))?;
    let process = world.state.sds(primary.sds)?.registration.as_ref()?.process;
    if !pg.is_activated() && rng.random_bool(0.7) {
        let proposals = vec![proto::Proposal {
            pool_id: pg.id.pool.get(),
            index: pg.id.index.get(),
            expected_epoch: pg.config.epoch.get(),
            activate: true,
            ..Default::default()
        }];
        let (sds_id, process_id) = (primary.sds.get(), process.as_bytes().to_vec());
        return Some(Body::ReconfigurePgs(proto::ReconfigurePgs { sds_id, process_id, proposals }));
    }
    let mut in_sync = pg.config.in_sync.clone();
    if rng.random_bool(0.5) {
        in_sync.extend(world.state.joiners(pg).map(|d| pflex_proto::ids::Member {
            device: d.id,
            sds: d.sds,
            incarnation: d.incarnation,
        }));
    } else {
        in_sync.retain(|_| rng.random_bool(0.6));
    }
    let late = u64::from(rng.random_bool(0.1));
    Some(Body::ReconfigurePgs(proto::ReconfigurePgs {
        sds_id: primary.sds.get(),
        process_id: process.as_bytes().to_vec(),
        proposals: vec![proto::Proposal {
            pool_id: pg.id.pool.get(),
            index: pg.id.index.get(),
            expected_epoch: pg.config.epoch.get().saturating_sub(late),
            in_sync: in_sync
                .iter()
                .map(|m| proto::Member {
                    device_id: m.device.get(),
                    sds_id: m.sds.get(),
                    incarnation: m.incarnation.get(),
                })
                .collect(),
            primary_device_id: 0,
            activate: false,
        }],
    }))
}

/// Mostly the number that comes next, as long as checks stay cheap; now and then the present one, or nonsense.
fn a_doubling(rng: &mut ChaCha8Rng, world: &World) -> Body {
    let now = world.state.pool_by_name("p").map_or(8, |pool| pool.pg_count);
    double(match rng.random_range(0..4_u32) {
        0 => now,
        1 => rng.random_range(0..100),
        _ if now < 32 => now * 2,
        _ => now / 2,
    })
}

/// A step of a rotation of the secret: mostly the one that is due, now and then another.
fn a_rotation(rng: &mut ChaCha8Rng, world: &World) -> Body {
    let due = match (world.state.next_key(), world.state.retiring_key()) {
        (Some(key), _) => sign(key.get()),
        (None, Some((old, _))) => drop_old(old.get()),
        (None, None) => rotate(),
    };
    match rng.random_range(0..8_u32) {
        0 => rotate(),
        1 => sign(rng.random_range(1..=4)),
        2 => drop_old(rng.random_range(1..=4)),
        _ => due,
    }
}

/// What a leader may conclude of lost copies: mostly its plan, now and then nonsense, or something it saw long ago.
fn a_move(rng: &mut ChaCha8Rng, world: &World) -> Option<Body> {
    let later = LogTime(world.now + rng.random_range(0..1_200_000_u64));
    let planned = Homeless::all(&world.state, later).first().and_then(Homeless::command);
    if planned.is_some() && rng.random_bool(0.7) {
        return planned;
    }
    let pgs: Vec<_> = world.state.all_pgs().collect();
    let pg = *pgs.choose(rng)?;
    let step = proto::CopyMove {
        index: pg.id.index.get(),
        expected_epoch: pg.config.epoch.get() - u64::from(rng.random_bool(0.1)),
        from_device_id: pg.replicas.choose(rng)?.get(),
        to_device_id: rng.random_range(1..=10),
    };
    Some(move_copies(vec![step]))
}

/// What a leader may begin to move that has seen everybody for an hour.
fn planned_move(world: &World) -> Option<Body> {
    let later = LogTime(world.now + 3_600_000);
    let mut looks = Looks::default();
    looks.look(&world.state, LogTime(world.now));
    looks.look(&world.state, later);
    Moving::all(&world.state, &looks, later).first().and_then(|pool| pool.command().0)
}

/// A living copy that moves: mostly a plan, else something like one. Plans are made only to be followed: they cost.
fn a_live_move(rng: &mut ChaCha8Rng, world: &World) -> Option<Body> {
    if rng.random_bool(0.7)
        && let Some(planned) = planned_move(world)
    {
        return Some(planned);
    }
    let pgs: Vec<_> = world.state.all_pgs().collect();
    let pg = *pgs.choose(rng)?;
    let step = proto::CopyMove {
        index: pg.id.index.get(),
        expected_epoch: pg.config.epoch.get() - u64::from(rng.random_bool(0.1)),
        from_device_id: pg.replicas.choose(rng)?.get(),
        to_device_id: rng.random_range(1..=10),
    };
    let kind = if rng.random_bool(0.5) { proto::MoveKind::Drain } else { proto::MoveKind::Balance };
    Some(move_live(kind, vec![step]))
}

/// What an operator may say about copies that are to move.
fn a_drain(rng: &mut ChaCha8Rng) -> Body {
    match rng.random_range(0..8_u32) {
        0..=1 => drain(&name(rng, "s", 5)),
        2 => drain_device(rng.random_range(1..=8)),
        3..=5 => cancel(&name(rng, "s", 5)),
        _ => rebalance("p", rng.random_range(0..4), rng.random_bool(0.3)),
    }
}

/// A lead that moves: mostly one that may, now and then nonsense.
fn a_lead(rng: &mut ChaCha8Rng, world: &World) -> Option<Body> {
    let pgs: Vec<_> = world.state.all_pgs().collect();
    let pg = *pgs.choose(rng)?;
    let to = match pg.config.in_sync.choose(rng) {
        Some(member) if rng.random_bool(0.8) => member.device.get(),
        _ => rng.random_range(1..=10),
    };
    let epoch = pg.config.epoch.get() - u64::from(rng.random_bool(0.1));
    Some(move_leads(vec![proto::LeadMove { index: pg.id.index.get(), expected_epoch: epoch, to_device_id: to }]))
}

/// What one look may conclude, some of it wrong, late or said twice.
fn a_look(rng: &mut ChaCha8Rng, memory: &Memory) -> Body {
    let verdicts: Vec<Body> = (0..rng.random_range(1..=5))
        .map(|_| {
            let n = rng.random_range(1..=6_u8);
            let (process, incarnation) = memory.starts.get(&n).copied().unwrap_or((0, 0));
            let process = if rng.random_bool(0.1) { process.wrapping_sub(1) } else { process };
            if rng.random_bool(0.5) { lost(n, process) } else { returned(n, process, incarnation) }
        })
        .collect();
    judge(verdicts)
}

fn next(rng: &mut ChaCha8Rng, world: &World, memory: &mut Memory) -> Body {
    match rng.random_range(0..40_u32) {
        0..=4 => start_sds(rng, memory),
        5..=6 => {
            let n = rng.random_range(1..=5_u8);
            lost(n, memory.starts.get(&n).map_or(0, |start| start.0))
        }
        7..=8 => {
            let n = rng.random_range(1..=5_u8);
            let (process, incarnation) = memory.starts.get(&n).copied().unwrap_or((0, 0));
            returned(n, process, incarnation)
        }
        9..=13 => a_proposal(rng, world).unwrap_or_else(|| create_pool("p", 2, 8)),
        14 => create_volume(&name(rng, "v", 6), rng.random_range(0..30_u64) * GIB),
        15 => map(&name(rng, "v", 6), &name(rng, "c", 3)),
        16 => unmap(&name(rng, "v", 6), &name(rng, "c", 3)),
        17 => delete(proto::Object::Volume, &name(rng, "v", 6)),
        18 => match rng.random_range(0..16_u32) {
            0 => delete(proto::Object::Pool, "p"),
            1 => delete(proto::Object::Sds, &name(rng, "s", 5)),
            2 => delete(proto::Object::Sdc, &name(rng, "c", 3)),
            3 => Body::RemoveDevice(proto::RemoveDevice { device_id: rng.random_range(1..=8) }),
            4 => create_pool("p", rng.random_range(1..=3), 8),
            5 => create_fault_set(&name(rng, "rack", 2)),
            6 => delete(proto::Object::FaultSet, &name(rng, "rack", 2)),
            7 => rename(proto::Object::FaultSet, &name(rng, "rack", 2), &name(rng, "rack", 2)),
            8 => rename(proto::Object::Sds, &name(rng, "s", 6), &name(rng, "s", 6)),
            9 => rename(proto::Object::Sdc, &name(rng, "c", 3), &name(rng, "c", 3)),
            10 => super::health::sample(rng.random_range(1..=4), 7),
            11 => Body::SetStatuses(proto::SetStatuses {
                entries: (1..=3)
                    .map(|id| proto::SetComponentStatus {
                        kind: proto::Kind::Sdc.into(),
                        id,
                        status: rng.random_range(1..=3),
                        why: String::new(),
                    })
                    .collect(),
            }),
            12 => create_snapshot(&name(rng, "v", 6), &name(rng, "snap", 3)),
            13 => {
                let state = proto::SnapshotState::try_from(rng.random_range(1..=4)).unwrap_or_default();
                set_snapshot(rng.random_range(1..=6), rng.random_range(1..=8), state)
            }
            14 => assign(rng.random_range(1..=8), "p"),
            _ => Body::Rename(proto::Rename {
                kind: proto::Object::Volume.into(),
                name: name(rng, "v", 6),
                new_name: name(rng, "v", 6),
            }),
        },
        19 => create_sdc(&name(rng, "c", 3)),
        20 => register_sdc(&name(rng, "c", 3), rng.random_range(1..=2)),
        21 => Body::IssueTokens(proto::IssueTokens {
            sdc_id: rng.random_range(1..=3),
            process_id: vec![rng.random_range(1..=2); 16],
            volume_ids: vec![1, 2, 3],
            plans: vec![proto::IoPlan {
                volume_id: rng.random_range(1..=4),
                device_id: rng.random_range(1..=4),
                operation_id: rng.random_range(1..=1000),
                write: rng.random(),
                from_byte: 4096,
                to_byte: 8192,
            }],
        }),
        22 => Body::AckTokens(proto::AckTokens {
            sds_id: 1,
            uses: vec![proto::TokenUse { token_id: rng.random_range(1..=20), reads: 1, ..Default::default() }],
        }),
        26 if rng.random_bool(0.5) => Body::JudgeClock(proto::JudgeClock {
            verdicts: vec![proto::ClockVerdict {
                kind: proto::Kind::Sds.into(),
                id: rng.random_range(1..=3),
                ahead_ms: rng.random_range(-1..=1) * 9_000,
            }],
        }),
        26 => Body::NoteBadTokens(super::bad_tokens::note(1, rng.random_range(0..3), rng.random_range(1..=3))),
        23..=24 => a_look(rng, memory),
        25 => a_rotation(rng, world),
        29 if rng.random_bool(0.3) => protect(&name(rng, "s", 5)),
        29 => enter(&name(rng, "s", 5)),
        30 => exit(&name(rng, "s", 5)),
        33..=34 => a_drain(rng),
        35..=37 => a_live_move(rng, world).unwrap_or_else(|| create_pool("p", 2, 8)),
        38 => a_doubling(rng, world),
        31..=32 => a_lead(rng, world).unwrap_or_else(|| create_pool("p", 2, 8)),
        27..=28 => a_move(rng, world).unwrap_or_else(|| create_pool("p", 2, 8)),
        _ => {
            let n = rng.random_range(1..=5_u32);
            let fault_set = if n >= 4 { name(rng, "rack", 2) } else { String::new() };
            Body::CreateSds(proto::CreateSds { name: format!("s{n}"), fault_set, ..Default::default() })
        }
    }
}

/// Says the body, half of the time in a session; then a retry must return the same and change nothing.
fn say(rng: &mut ChaCha8Rng, world: &mut World, memory: &mut Memory, body: Body, seed: u64) {
    let Some((client, sequence)) = memory.client.filter(|_| rng.random_bool(0.5)) else {
        world.say(body);
        return;
    };
    let low_water = sequence.saturating_sub(rng.random_range(0..4));
    let request = Request { client: client.into(), sequence: sequence.into(), low_water: low_water.into() };
    let outcome = world.say_once(request, body.clone());
    memory.client = Some((client, sequence + 1));
    if rng.random_bool(0.3) {
        if memory.forgets {
            world.forget(request);
        }
        let before = world.state.clone();
        let retry = world.say_once(request, body.clone());
        assert_eq!(retry, outcome, "seed {seed}: a retry answers as the first try did");
        let last = world.last.as_ref().expect("just applied");
        assert_eq!(last.rows.len(), 1, "seed {seed}: a retry writes only its position: {:?}", last.rows);
        assert!(last.events.is_empty() && before.all_volumes().len() == world.state.all_volumes().len());
    }
    memory.last = Some((request, body, outcome));
}

fn epochs(world: &World) -> BTreeMap<PgId, Epoch> {
    world.state.all_pgs().map(|pg| (pg.id, pg.config.epoch)).collect()
}

/// Groups with a copy on its way, and where it goes.
fn moving(world: &World) -> BTreeMap<PgId, DeviceId> {
    world.state.all_pgs().filter_map(|pg| Some((pg.id, pg.newcomer()?))).collect()
}

/// Whether a copy that was on its way is there.
fn arrived(world: &World, id: PgId, to: &DeviceId) -> bool {
    world.state.pg(id).is_some_and(|pg| pg.leaving.is_none() && pg.config.member(*to).is_some())
}

/// Seeds that once broke an invariant:
/// - a pool placed anew gave a group the same copies in another order, at the same epoch.
const FOUND_SOMETHING: [u64; 2] = [3_272_999_997_917_134_188, 15_987_741_648_490_182_168];

#[test]
fn a_session_table_that_forgets_is_found_out() {
    for seed in Seeds::new(5) {
        let found = std::panic::catch_unwind(|| {
            let (mut rng, mut world) = (rng(seed), World::with_sds(4));
            let mut memory = Memory { forgets: true, ..start(&mut world) };
            for _ in 0..STEPS {
                let body = next(&mut rng, &world, &mut memory);
                say(&mut rng, &mut world, &mut memory, body, seed);
            }
        });
        let why = found.expect_err("it was not found");
        let why = why.downcast_ref::<String>().expect("an assertion says why");
        assert!(
            why.contains("a retry answers as the first try did") || why.contains("writes only its position"),
            "{why}"
        );
    }
}

/// S21: whatever was issued and has not expired can be verified.
fn tokens_verify(world: &World) -> bool {
    let live = world.state.tokens.values().filter(|token| token.expires.get() >= world.now);
    live.into_iter().all(|token| world.state.secret(token.key).is_some())
}

#[test]
fn any_conversation_keeps_the_invariants_and_can_be_reloaded_anywhere() {
    let (mut conversations, mut rotations) = (0, 0);
    // Not vacuous: some conversations lose copies and fill them again.
    let mut rebuilds = 0;
    let (mut moves, mut arrivals, mut leads, mut rests, mut doublings) = (0, 0, 0, 0, 0);
    // Every other one in a writeback pool, where who has forgotten is followed as well (S14).
    let policies = [proto::WritePolicy::Sync, proto::WritePolicy::Writeback];
    let found = FOUND_SOMETHING.into_iter().flat_map(|seed| policies.map(|policy| (seed, policy)));
    let policy_of = |seed: u64| policies[usize::from(!seed.is_multiple_of(2))];
    for (seed, policy) in found.chain(Seeds::new(60).map(|seed| (seed, policy_of(seed)))) {
        let mut rng = rng(seed);
        let mut twin_rng = crate::testing::rng(seed);
        let (mut world, mut twin) = (World::with_policy(4, policy), World::with_policy(4, policy));
        let (mut memory, mut twin_memory) = (start(&mut world), start(&mut twin));
        for step in 0..STEPS {
            let before = epochs(&world);
            let on_their_way = moving(&world);
            world.now += rng.random_range(0..5_000_u64);
            let body = next(&mut rng, &world, &mut memory);
            let (lead, twice) = (matches!(body, Body::MoveLeads(_)), matches!(body, Body::DoubleGroups(_)));
            let (is_move, rest) = (matches!(body, Body::MoveCopies(_)), matches!(body, Body::EnterMaintenance(_)));
            say(&mut rng, &mut world, &mut memory, body, seed);
            let events = &world.last.as_ref().expect("just applied").events;
            moves += usize::from(is_move && !events.is_empty());
            arrivals += on_their_way.iter().filter(|(id, to)| arrived(&world, **id, to)).count();
            leads += usize::from(lead && !events.is_empty());
            doublings += usize::from(twice && !events.is_empty());
            rests += usize::from(rest && !events.is_empty());
            assert!(tokens_verify(&world), "seed {seed}, step {step}: a live token has no secret");
            for (pg, epoch) in epochs(&world) {
                assert!(before.get(&pg).is_none_or(|old| *old <= epoch), "seed {seed}: an epoch of {pg} went back");
            }
            if rng.random_bool(0.1) {
                assert!(world.reloaded() == world.state, "seed {seed}, step {step}: the rows are another state");
                // And it goes on from there.
                world.state = world.reloaded();
            }

            twin.now += twin_rng.random_range(0..5_000_u64);
            let body = next(&mut twin_rng, &twin, &mut twin_memory);
            say(&mut twin_rng, &mut twin, &mut twin_memory, body, seed);
            let _ = twin_rng.random_bool(0.1);
            rebuilds = rebuilds.max(world.state.all_rebuilds().len());
        }
        conversations += 1;
        rotations += world.state.all_secrets().next().map_or(0, |(oldest, _)| oldest.get() - 1);
        assert!(world.state == twin.state && world.store == twin.store, "seed {seed}: the same log, another state");
    }
    println!("{rotations} rotations of the secret in {conversations} conversations");
    assert!(rotations > 0 || conversations < 50, "no rotation ever came to its end");
    assert!(moves > 0 || conversations < 50, "no copy ever moved");
    assert!(arrivals > 0 || conversations < 50, "no living copy ever moved");
    assert!(leads > 0 || conversations < 50, "no lead ever moved");
    assert!(rests > 0 || conversations < 50, "no SDS ever entered maintenance");
    assert!(doublings > 0 || conversations < 50, "no groups ever doubled");
    assert!(rebuilds > 1 || conversations < 50, "no conversation had two rebuilds");
}

fn start(world: &mut World) -> Memory {
    let answer = world.ok(Body::OpenClientSession(proto::OpenClientSession { name: "random".into() }));
    let Answer::SessionOpened(opened) = answer else { panic!("{answer:?}") };
    let starts = (1..=4).map(|n| (n, (n, 1))).collect();
    Memory { client: Some((opened.client_id, 1)), processes: 10, starts, ..Memory::default() }
}
