//! Short conversations with one replica, where the exact answer matters: what the simulator reaches only by chance.

use pflex_proto::ids::{
    ChunkId, DeviceId, Epoch, Incarnation, Member, OperationId, PgId, SdcId, SdsId, Sequence, Version, VolatilityId,
    VolumeId,
};

use super::limits::{BACKUP_SILENT, MAX_IN_FLIGHT};
use super::*;

mod leases;
mod proposals;
mod repairs;

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
    /// Chunks may be copied as soon as it asks.
    permits: bool,
}

impl Talk {
    /// Serving, with these in-sync backups, all of them opened.
    fn with(backups: &[u32]) -> Self {
        let leases = Leases::new(member(1), Time(0));
        let pg = Pg::new(PgId::default(), member(1), Recovered::default(), &leases);
        let mut talk = Self { pg, leases, now: Time(1), ticket: Ticket(0), permits: true };
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

    /// A backup of device 2, opened in round 1.
    fn backup() -> Self {
        let leases = Leases::new(member(1), Time(0));
        let pg: Pg<u64> = Pg::new(PgId::default(), member(1), Recovered::default(), &leases);
        let mut talk = Self { pg, leases, now: Time(1), ticket: Ticket(0), permits: true };
        talk.tell(Event::PeerConnected(member(2)));
        let config = PgConfig { primary: Some(DeviceId(2)), ..config(1, vec![member(1), member(2)]) };
        talk.tell(Event::Config { config, joiners: Vec::new() });
        let round = Round(1);
        talk.hear(member(2), Body::Collect { round });
        talk.hear(member(2), Body::Open { round, last: Sequence(0), operations: OperationSnapshot::default() });
        talk
    }

    fn tell(&mut self, event: Event<u64>) -> Out {
        let mut out = Out::new();
        self.pg.handle(self.now, &self.leases, event, &mut out);
        while self.permits && self.pg.demand().wants {
            self.pg.handle(self.now, &self.leases, Event::SyncPermit, &mut out);
        }
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
            fua: false,
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
    let (writeback, forced, to_activate) = (false, false, false);
    PgConfig { pg, epoch, primary, in_sync, volatility: VolatilityId(9), writeback, forced, to_activate }
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
fn a_write_behind_zeros_asks_for_space_again() {
    let mut talk = Talk::with(&[2]);
    let part = Extent { offset: 100, length: 10 };
    talk.write(1, |write| (write.extent, write.merge) = (part, true));
    // The chunk is there when they come, so neither asks; when the zeros are ordered it may be gone.
    talk.write(2, |write| (write.extent, write.kind) = (Extent::CHUNK, WriteKind::Zeroes));
    talk.write(3, |_| {});
    talk.write(4, |_| {});
    let out = talk.tell(Event::Merged { request: RequestId(1), merged: Some((BLOCK, 1)) });
    assert_eq!(applied(&out), [(1, BLOCK), (2, Extent::CHUNK)]);
    let asks = |effect: &Effect<u64>| match effect {
        Effect::Send(Message { body: Body::Reserve { round, chunk }, .. }) => Some((*round, *chunk)),
        _ => None,
    };
    let Some((round, chunk)) = out.iter().find_map(asks) else { panic!("it is ordered without space (S4): {out:?}") };
    let out = talk.hear(member(2), Body::Reserved { round, chunk, granted: true });
    assert_eq!(applied(&out), [(3, BLOCK), (4, BLOCK)]);
    assert_eq!(out.iter().find_map(asks), None, "asked once");
}

#[test]
fn what_an_earlier_scrub_of_a_chunk_has_asked_for_is_not_compared() {
    let mut talk = Talk::with(&[2]);
    let sound = |sequence, sum| VerifiedChunk {
        version: Some(Version { epoch: Epoch(1), sequence: Sequence(sequence) }),
        sums: BlockSums(vec![sum; 256]),
        bad: Vec::new(),
    };
    let asked = |out: &Out| {
        let own = out.iter().find_map(|effect| match effect {
            Effect::Verify { round, .. } => Some(*round),
            _ => None,
        });
        let backup = out.iter().find_map(|effect| match effect {
            Effect::Send(Message { body: Body::Verify { round, scrub, .. }, .. }) => Some((*round, *scrub)),
            _ => None,
        });
        (own.expect("it reads its own copy"), backup.expect("it asks the backup"))
    };
    let outcome = |out: &Out| {
        out.iter().find_map(|effect| match effect {
            Effect::Scrubbed { outcome, .. } => Some(*outcome),
            _ => None,
        })
    };
    let (own, (round, first)) = asked(&talk.tell(Event::Scrub { chunk: chunk(0), confirmed: false }));
    talk.tell(Event::Verified { round: own, chunk: chunk(0), verified: sound(1, 7) });
    talk.now = talk.now.plus(limits::SCRUB_PATIENCE * 2);
    assert_eq!(outcome(&talk.tell(Event::Tick { jitter: 0 })), Some(ScrubOutcome::Interrupted));
    let (own, (round_again, second)) = asked(&talk.tell(Event::Scrub { chunk: chunk(0), confirmed: true }));
    assert!(round == round_again && first != second);
    let answer = |scrub, verified| Body::Verified { round, scrub, chunk: chunk(0), verified };
    // The late answer of before; then the one of now.
    talk.hear(member(2), answer(first, sound(1, 7)));
    let out = talk.tell(Event::Verified { round: own, chunk: chunk(0), verified: sound(2, 8) });
    assert_eq!(outcome(&out), None, "the other copy has not answered yet");
    let out = talk.hear(member(2), answer(second, sound(2, 8)));
    assert_eq!(outcome(&out), Some(ScrubOutcome::Checked(ScrubFindings::default())));
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
    let out = talk.tell(Event::Tick { jitter: 0 });
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
    let out = talk.tell(Event::StoreFailed { ticket: talk.ticket, no_space: false });
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

/// What is asked of, and told to, device 2 while it joins.
fn told(out: &Out) -> Vec<Body<u64>> {
    let sent = out.iter().filter_map(|effect| match effect {
        Effect::Send(message) if message.to == member(2) => Some(message.body.clone()),
        _ => None,
    });
    sent.collect()
}

impl Talk {
    /// Serving alone, and device 2 joins, which lacks chunks 0 and 1. The round, and what it is asked first.
    fn with_a_joiner() -> (Self, Round, Out) {
        let mut talk = Self::with(&[]);
        talk.tell(Event::PeerConnected(member(2)));
        let out = talk.tell(Event::Config { config: config(1, vec![member(1)]), joiners: vec![member(2)] });
        let [Body::JoinStart { round }] = told(&out)[..] else { panic!("it begins to join: {out:?}") };
        let (highest, watermark) = (Sequence(0), Sequence(0));
        let list = Body::VersionList { round, highest, watermark, entries: Vec::new(), more: false };
        let out = talk.hear(member(2), list);
        let [Effect::ListVersions { round: own, .. }] = out[..] else { panic!("then the own list: {out:?}") };
        let version = Some(Version { epoch: Epoch(1), sequence: Sequence(1) });
        let entries = [0, 1].map(|n| ChunkEntry { chunk: chunk(n), version }).to_vec();
        let out = talk.tell(Event::Listed { round: own, entries });
        (talk, round, out)
    }

    /// Compares a chunk and reads it; none: it cannot be read.
    fn read(&mut self, round: Round, n: u64, data: Option<u64>) -> Out {
        let (chunk, sums) = (chunk(n), BlockSums::default());
        let out = self.hear(member(2), Body::Sums { round, chunk, sums });
        assert!(matches!(out[..], [Effect::ReadDifference { .. }]), "{out:?}");
        let runs = data.map(|data| vec![BlockRun { first_block: 0, blocks: 1, data: Some(data) }]);
        let version = Some(Version { epoch: Epoch(1), sequence: Sequence(1) });
        self.tell(Event::DifferenceRead { round, chunk, image: runs.map(|runs| ChunkImage { version, runs }) })
    }

    fn after_ms(&mut self, ms: u64) -> Vec<Body<u64>> {
        self.now = self.now.plus(std::time::Duration::from_millis(ms));
        told(&self.tell(Event::Tick { jitter: 0 }))
    }
}

#[test]
fn a_chunk_that_cannot_be_read_holds_up_itself_alone_and_is_tried_less_and_less_often() {
    let (mut talk, round, out) = Talk::with_a_joiner();
    let asks = |n| Body::SumsRequest { round, chunk: chunk(n) };
    assert_eq!(told(&out), [asks(0), asks(1)]);
    talk.read(round, 0, None);
    assert_eq!(talk.pg.status().trouble, Some(JoinTrouble::Unreadable { chunk: chunk(0) }));
    assert!(matches!(told(&talk.read(round, 1, Some(5)))[..], [Body::SyncChunk { .. }]), "the other one goes on");
    let out = talk.hear(member(2), Body::ChunkSynced { round, chunk: chunk(1) });
    assert_eq!(told(&out), [], "it is not ready while a chunk is missing");
    assert_eq!(talk.pg.status().joining, Some((member(2), Some(1))));
    // Writes go on, to the joiner only where it is as here.
    assert_eq!(told(&talk.write(1, |_| {})), []);
    assert!(matches!(told(&talk.write(2, |write| write.chunk = chunk(1)))[..], [Body::Write { .. }]));
    let through = talk.pg.status().last;
    talk.hear(member(2), Body::WriteAck { round, through });
    talk.all_durable();
    for seconds in [1, 2, 4] {
        assert_eq!(talk.after_ms(seconds * 1000 - 1), []);
        assert_eq!(talk.after_ms(1), [asks(0)], "after {seconds} s");
        talk.read(round, 0, None);
    }
    assert_eq!(talk.after_ms(8_000), [asks(0)]);
    talk.read(round, 0, Some(7));
    let out = talk.hear(member(2), Body::ChunkSynced { round, chunk: chunk(0) });
    assert!(matches!(told(&out)[..], [Body::JoinEnd { .. }]), "all is there now: {out:?}");
    assert_eq!(talk.pg.status().trouble, None);
}

#[test]
fn a_chunk_is_copied_when_it_is_permitted_and_writes_to_it_do_not_wait_for_that() {
    let (mut talk, round, _) = Talk::with_a_joiner();
    talk.permits = false;
    talk.read(round, 0, None);
    talk.read(round, 1, None);
    assert_eq!(talk.pg.demand(), Demand::default(), "nothing to copy until it is tried again");
    assert_eq!(talk.after_ms(1000), []);
    assert_eq!(talk.pg.demand(), Demand { syncing: 0, wants: true });
    assert_eq!(applied(&talk.write(1, |_| {})).len(), 1, "ordered at once, and not sent to the joiner");
    let out = talk.tell(Event::SyncPermit);
    assert_eq!(told(&out), [Body::SumsRequest { round, chunk: chunk(0) }]);
    assert_eq!(talk.pg.demand(), Demand { syncing: 1, wants: true });
    assert_eq!(applied(&talk.write(2, |_| {})), [], "now it waits for the copy");
    let out = talk.hear(member(2), Body::Gap { round, after: Sequence(0) });
    assert_eq!(applied(&out).len(), 1, "and not for a copy that is not made: {out:?}");
    assert_eq!(talk.pg.demand(), Demand::default());
}

#[test]
fn a_joiner_without_space_gets_what_fits_and_the_rest_when_there_is_space() {
    let (mut talk, round, _) = Talk::with_a_joiner();
    talk.read(round, 0, Some(5));
    talk.read(round, 1, Some(5));
    for n in [0, 1] {
        assert_eq!(told(&talk.hear(member(2), Body::ChunkRefused { round, chunk: chunk(n) })), []);
    }
    assert_eq!(talk.pg.status().trouble, Some(JoinTrouble::NoSpace { device: DeviceId(2) }));
    assert_eq!(talk.after_ms(999), []);
    assert_eq!(talk.after_ms(1).len(), 2);
    for n in [0, 1] {
        talk.read(round, n, Some(5));
        talk.hear(member(2), Body::ChunkSynced { round, chunk: chunk(n) });
    }
    assert_eq!(talk.pg.status().joining, Some((member(2), Some(0))));
    assert_eq!(talk.pg.status().trouble, None);
}

#[test]
fn a_joiner_that_cannot_apply_writes_is_left_alone_longer_each_time() {
    let (mut talk, ..) = Talk::with_a_joiner();
    for seconds in [1, 2, 4, 8, 16, 32, 60, 60] {
        talk.hear(member(2), Body::NoSpace);
        assert_eq!(talk.pg.status().trouble, Some(JoinTrouble::NoSpace { device: DeviceId(2) }));
        assert_eq!(talk.after_ms(seconds * 1000 - 1), []);
        assert!(matches!(talk.after_ms(1)[..], [Body::JoinStart { .. }]), "after {seconds} s");
    }
}

#[test]
fn a_full_joiner_says_so_before_it_changes_anything() {
    let leases = Leases::new(member(1), Time(0));
    let pg: Pg<u64> = Pg::new(PgId::default(), member(1), Recovered::default(), &leases);
    let mut talk = Talk { pg, leases, now: Time(1), ticket: Ticket(0), permits: true };
    talk.tell(Event::PeerConnected(member(2)));
    let config = PgConfig { primary: Some(DeviceId(2)), ..config(1, vec![member(2)]) };
    talk.tell(Event::Config { config, joiners: vec![member(1)] });
    let round = Round(1);
    talk.hear(member(2), Body::JoinStart { round });
    let image = ChunkImage {
        version: Some(Version { epoch: Epoch(1), sequence: Sequence(3) }),
        runs: vec![BlockRun { first_block: 0, blocks: 1, data: Some(5) }],
    };
    let sync = Body::SyncChunk { round, chunk: chunk(0), image };
    assert_eq!(talk.hear(member(2), sync.clone()), [Effect::Reserve { chunk: chunk(0) }]);
    let out = talk.tell(Event::Reserved { chunk: chunk(0), granted: false });
    assert_eq!(told(&out), [Body::ChunkRefused { round, chunk: chunk(0) }]);
    assert_eq!(out.len(), 1, "{out:?}");
    talk.hear(member(2), sync);
    let out = talk.tell(Event::Reserved { chunk: chunk(0), granted: true });
    assert!(matches!(out[..], [Effect::MarkUnsynced { .. }]), "{out:?}");
    let again = talk.hear(member(2), Body::JoinStart { round: Round(2) });
    assert!(again.contains(&Effect::ReleaseReservations), "an attempt that ended keeps no space: {again:?}");
}

#[test]
fn space_that_a_write_does_not_use_is_given_back_once_all_have_answered() {
    let mut talk = Talk::with(&[2, 3]);
    let reserve = |out: &Out| {
        let round = |effect: &Effect<u64>| match effect {
            Effect::Send(Message { to, body: Body::Reserve { round, .. }, .. }) => Some((*to, *round)),
            _ => None,
        };
        out.iter().filter_map(round).collect::<Vec<_>>()
    };
    let asked = reserve(&talk.write(1, |write| write.creates_chunk = true));
    let [(two, in_two), (three, in_three)] = asked[..] else { panic!("both are asked: {asked:?}") };
    let answer = |round, granted| Body::Reserved { round, chunk: chunk(0), granted };
    assert_eq!(answers(&talk.hear(two, answer(in_two, false))).len(), 1, "refused");
    let released = |out: &Out| {
        out.iter().filter(|effect| matches!(effect, Effect::Send(Message { body: Body::Unreserve { .. }, .. }))).count()
    };
    assert_eq!(released(&talk.tell(Event::Tick { jitter: 0 })), 0, "the other answer is under way");
    talk.hear(three, answer(in_three, true));
    assert_eq!(released(&talk.tell(Event::Tick { jitter: 0 })), 2);
    assert_eq!(released(&talk.tell(Event::Tick { jitter: 0 })), 0, "once");
    // One that is ordered uses it.
    talk.write(2, |write| write.creates_chunk = true);
    talk.hear(two, answer(in_two, true));
    assert_eq!(applied(&talk.hear(three, answer(in_three, true))), [(2, BLOCK)]);
    assert_eq!(released(&talk.tell(Event::Tick { jitter: 0 })), 0);
}

#[test]
fn a_backup_frees_the_space_that_is_not_needed() {
    let mut backup = Talk::backup();
    let round = Round(1);
    assert_eq!(backup.hear(member(2), Body::Reserve { round, chunk: chunk(0) }), [Effect::Reserve { chunk: chunk(0) }]);
    let out = backup.hear(member(2), Body::Unreserve { round, chunk: chunk(0) });
    assert_eq!(out, [Effect::Unreserve { chunk: chunk(0) }]);
    assert_eq!(
        backup.hear(member(2), Body::Unreserve { round: Round(0), chunk: chunk(0) }),
        [],
        "of an earlier attempt"
    );
}
