//! Short conversations with one replica, where the exact answer matters: what the simulator reaches only by chance.

use pflex_proto::ids::{
    ChunkId, DeviceId, Epoch, Incarnation, Member, OperationId, PgId, SdcId, SdsId, Sequence, Version, VolatilityId,
    VolumeId,
};

use super::limits::{BACKUP_SILENT, MAX_IN_FLIGHT};
use super::*;

type Out = Vec<Effect<u64>>;

fn member(n: u32) -> Member {
    Member { device: DeviceId(n), sds: SdsId(n), incarnation: Incarnation(1) }
}

fn chunk(n: u64) -> ChunkId {
    ChunkId { index: pflex_proto::ids::ChunkIndex(n), ..ChunkId::default() }
}

const BLOCK: Extent = Extent { offset: 0, length: 4096 };

/// Device 1 in epoch 1, where device 1 is primary.
struct Talk {
    pg: Pg<u64>,
    leases: Leases,
    now: Time,
    ticket: Ticket,
}

impl Talk {
    /// Serving, with these in-sync backups, all of them opened.
    fn with(backups: &[u32]) -> Self {
        let leases = Leases::new(member(1), Time(0));
        let pg = Pg::new(PgId::default(), member(1), Recovered::default(), &leases);
        let mut talk = Self { pg, leases, now: Time(1), ticket: Ticket(0) };
        for backup in backups {
            talk.tell(Event::PeerConnected(member(*backup)));
        }
        let in_sync: Vec<Member> = std::iter::once(&1).chain(backups).map(|n| member(*n)).collect();
        let mut out = talk.tell(Event::Config { config: config(1, in_sync), joiners: Vec::new() });
        while !talk.pg.is_serving() {
            out = out.into_iter().flat_map(|effect| talk.agree(effect)).collect();
        }
        talk
    }

    fn tell(&mut self, event: Event<u64>) -> Out {
        let mut out = Out::new();
        self.pg.handle(self.now, &self.leases, event, &mut out);
        for effect in &out {
            if let Effect::Apply { ticket, .. } = effect {
                self.ticket = *ticket;
            }
        }
        out
    }

    /// Stands in for empty peers and an empty store while an epoch opens.
    fn agree(&mut self, effect: Effect<u64>) -> Out {
        match effect {
            Effect::ListVersions { round, .. } => self.tell(Event::Listed { round, entries: Vec::new() }),
            Effect::Send(Message { to, body: Body::Collect { round }, .. }) => {
                let (highest, watermark) = (Sequence(0), Sequence(0));
                self.hear(to, Body::VersionList { round, highest, watermark, entries: Vec::new(), more: false })
            }
            Effect::Send(Message { to, body: Body::Open { round, .. }, .. }) => self.hear(to, Body::Opened { round }),
            _ => Out::new(),
        }
    }

    fn hear(&mut self, from: Member, body: Body<u64>) -> Out {
        self.tell(Event::Message(Message { from, to: member(1), pg: PgId::default(), epoch: Epoch(1), body }))
    }

    fn write(&mut self, operation: u64, change: impl FnOnce(&mut ClientWrite<u64>)) -> Out {
        let mut write = ClientWrite {
            request: RequestId(operation),
            epoch: Epoch(1),
            client: ClientKey { sdc: SdcId(1), volume: VolumeId(1) },
            operation: OperationId(operation),
            low_water: OperationId(0),
            chunk: chunk(0),
            extent: BLOCK,
            kind: WriteKind::Data(operation),
            merge: false,
            creates_chunk: false,
        };
        change(&mut write);
        self.tell(Event::Write(write))
    }

    fn all_durable(&mut self) -> Out {
        self.tell(Event::Durable { through: self.ticket })
    }
}

fn config(epoch: u64, in_sync: Vec<Member>) -> PgConfig {
    let (pg, epoch, primary) = (PgId::default(), Epoch(epoch), Some(DeviceId(1)));
    PgConfig { pg, epoch, primary, in_sync, volatility: VolatilityId(9), forced: false }
}

fn applied(out: &Out) -> Vec<(u64, Extent)> {
    let writes = out.iter().filter_map(|effect| match effect {
        Effect::Apply { write, .. } => Some((write.operation.0, write.extent)),
        _ => None,
    });
    writes.collect()
}

fn answers(out: &Out) -> Vec<(u64, Outcome<u64>)> {
    let replies = out.iter().filter_map(|effect| match effect {
        Effect::Reply { request, outcome } => Some((request.0, outcome.clone())),
        _ => None,
    });
    replies.collect()
}

fn written(sequence: u64) -> Outcome<u64> {
    let version = Version { epoch: Epoch(1), sequence: Sequence(sequence) };
    Outcome::Written { volatility: VolatilityId(9), version }
}

#[test]
fn a_write_is_answered_when_both_copies_have_it_durable() {
    let mut talk = Talk::with(&[2]);
    let out = talk.write(7, |_| {});
    let Some(Body::Write { round, .. }) = out.iter().find_map(|effect| match effect {
        Effect::Send(message) => Some(message.body.clone()),
        _ => None,
    }) else {
        panic!("it is sent to the backup at once: {out:?}")
    };
    assert!(answers(&talk.all_durable()).is_empty());
    let out = talk.hear(member(2), Body::WriteAck { round, through: Sequence(1) });
    assert_eq!(answers(&out), [(7, written(1))]);
}

#[test]
fn a_resend_gets_the_first_outcome_and_is_not_ordered_again() {
    let mut talk = Talk::with(&[]);
    assert_eq!(applied(&talk.write(7, |_| {})).len(), 1);
    assert_eq!(talk.write(7, |write| write.request = RequestId(70)), [], "it waits with the first");
    assert_eq!(answers(&talk.all_durable()), [(7, written(1)), (70, written(1))]);
    assert_eq!(answers(&talk.write(7, |write| write.request = RequestId(71))), [(71, written(1))]);
    talk.write(9, |write| write.low_water = OperationId(8));
    let late = talk.write(7, |write| write.request = RequestId(72));
    assert_eq!(answers(&late), [(72, Outcome::Refused(Refusal::OldOperation))]);
}

#[test]
fn nothing_is_ordered_on_a_chunk_whose_edges_are_being_merged() {
    let mut talk = Talk::with(&[]);
    let part = Extent { offset: 100, length: 10 };
    let out = talk.write(1, |write| (write.extent, write.merge) = (part, true));
    assert!(matches!(out.as_slice(), [Effect::Merge { request: RequestId(1), extent, .. }] if *extent == part));
    assert_eq!(talk.write(2, |_| {}), [], "waits for the merge");
    assert_eq!(applied(&talk.write(3, |write| write.chunk = chunk(1))).len(), 1, "another chunk does not");
    let out = talk.tell(Event::Merged { request: RequestId(1), merged: Some((BLOCK, 1)) });
    assert_eq!(applied(&out), [(1, BLOCK), (2, BLOCK)]);
}

#[test]
fn a_chunk_no_copy_has_room_for_is_refused_before_it_is_ordered() {
    let mut talk = Talk::with(&[2]);
    let out = talk.write(1, |write| write.creates_chunk = true);
    assert!(applied(&out).is_empty());
    let [Effect::Send(Message { body: Body::Reserve { round, chunk }, .. })] = out.as_slice() else {
        panic!("the backup is asked: {out:?}")
    };
    let refused = Body::Reserved { round: *round, chunk: *chunk, granted: false };
    let granted = Body::Reserved { round: *round, chunk: *chunk, granted: true };
    let full = Outcome::Refused(Refusal::NoSpace { device: DeviceId(2) });
    assert_eq!(answers(&talk.hear(member(2), refused)), [(1, full)]);
    talk.write(1, |write| write.creates_chunk = true);
    assert_eq!(applied(&talk.hear(member(2), granted)), [(1, BLOCK)]);
}

#[test]
fn the_window_is_bounded() {
    let mut talk = Talk::with(&[]);
    for operation in 0..MAX_IN_FLIGHT as u64 {
        assert_eq!(applied(&talk.write(operation, |_| {})).len(), 1);
    }
    assert_eq!(answers(&talk.write(1000, |_| {})), [(1000, Outcome::Refused(Refusal::Busy))]);
    assert_eq!(answers(&talk.all_durable()).len(), MAX_IN_FLIGHT);
    assert_eq!(applied(&talk.write(1000, |_| {})).len(), 1);
}

#[test]
fn a_silent_backup_is_proposed_for_removal_and_its_writes_are_answered_in_the_next_epoch() {
    let mut talk = Talk::with(&[2]);
    talk.write(1, |_| {});
    talk.all_durable();
    talk.now = talk.now.plus(BACKUP_SILENT * 2);
    let out = talk.tell(Event::Tick);
    let reason = ProposalReason::BackupSilent(member(2));
    let expected = Proposal { pg: PgId::default(), expected_epoch: Epoch(1), in_sync: vec![member(1)], reason };
    assert!(out.contains(&Effect::Propose(expected)), "{out:?}");
    let mut out = talk.tell(Event::Config { config: config(2, vec![member(1)]), joiners: Vec::new() });
    out = out.into_iter().flat_map(|effect| talk.agree(effect)).collect();
    assert_eq!(answers(&out), [(1, written(1))], "under the version it was ordered with");
}

#[test]
fn a_primary_that_cannot_apply_a_write_serves_no_more() {
    let mut talk = Talk::with(&[2]);
    talk.write(1, |_| {});
    let out = talk.tell(Event::StoreFailed { ticket: talk.ticket });
    let unknown = Outcome::Refused(Refusal::OutcomeUnknown { epoch: Epoch(1) });
    assert_eq!(answers(&out), [(1, unknown)]);
    let reason = ProposalReason::PrimaryCannotApply(member(1));
    let expected = Proposal { pg: PgId::default(), expected_epoch: Epoch(1), in_sync: vec![member(2)], reason };
    assert!(out.contains(&Effect::Propose(expected)), "{out:?}");
    assert_eq!(answers(&talk.write(2, |_| {})), [(2, Outcome::Refused(Refusal::CopyFailed))]);
}

#[test]
fn a_sequence_that_came_with_a_fix_is_not_used_again() {
    let leases = Leases::new(member(1), Time(0));
    let mut pg: Pg<u64> = Pg::new(PgId::default(), member(1), Recovered::default(), &leases);
    let mut out = Out::new();
    let other = PgConfig { primary: Some(DeviceId(2)), ..config(3, vec![member(1), member(2)]) };
    pg.handle(Time(1), &leases, Event::Config { config: other, joiners: Vec::new() }, &mut out);
    let round = Round(1);
    let image = ChunkImage {
        version: Some(Version { epoch: Epoch(2), sequence: Sequence(27) }),
        runs: vec![BlockRun { first_block: 0, blocks: 1, data: Some(5) }],
    };
    let fix = Body::Fix { round, chunk: chunk(0), image, operations: Vec::new() };
    for body in [Body::Collect { round }, fix] {
        let message = Message { from: member(2), to: member(1), pg: PgId::default(), epoch: Epoch(3), body };
        pg.handle(Time(1), &leases, Event::Message(message), &mut out);
    }
    assert!(out.iter().any(|effect| matches!(effect, Effect::FixChunk { .. })), "{out:?}");
    assert_eq!(pg.status().last, Sequence(27), "the other copy may die before it opens the epoch");
}

#[test]
fn another_life_of_this_device_is_not_this_one() {
    let leases = Leases::new(member(1), Time(0));
    let own = Member { incarnation: Incarnation(2), ..member(1) };
    let mut pg: Pg<u64> = Pg::new(PgId::default(), own, Recovered::default(), &leases);
    let mut out = Out::new();
    let old = Event::Config { config: config(5, vec![member(1)]), joiners: Vec::new() };
    pg.handle(Time(u64::MAX), &leases, old, &mut out);
    assert_eq!(pg.status().role, RoleName::Outside);
    assert_eq!(out, []);
}
