//! Blocks that cannot be read here and are asked for elsewhere (S13).

use super::*;

/// A write of part of a block that cannot be read here, while copy 2 is in sync; what is asked of that copy.
fn unreadable_edge(talk: &mut Talk) -> Body<u64> {
    let part = Extent { offset: 100, length: 10 };
    talk.write(1, |write| (write.extent, write.merge) = (part, true));
    let out = talk.tell(Event::Merged { request: RequestId(1), merged: None });
    let [Effect::FindUnreadable { round, extent: BLOCK, .. }] = out[..] else { panic!("it looks: {out:?}") };
    let version = Some(Version { epoch: Epoch(1), sequence: Sequence(5) });
    let found = Event::UnreadableFound { round, chunk: chunk(0), version, blocks: vec![0] };
    let out = talk.tell(found);
    assert_eq!(talk.write(2, |_| {}), [], "the chunk stands still");
    let [asked] = &told(&out)[..] else { panic!("it asks: {out:?}") };
    asked.clone()
}

fn answer_to(asked: &Body<u64>, sequence: u64, data: Option<u64>) -> Body<u64> {
    let Body::FetchBlocks { round, chunk, extent } = *asked else { panic!("{asked:?}") };
    Body::Blocks {
        round,
        chunk,
        extent,
        version: Some(Version { epoch: Epoch(1), sequence: Sequence(sequence) }),
        data,
    }
}

#[test]
fn a_block_that_cannot_be_read_comes_from_another_copy_under_the_same_version() {
    let mut talk = Talk::with(&[2]);
    let asked = unreadable_edge(&mut talk);
    let out = talk.hear(member(2), answer_to(&asked, 5, Some(77)));
    let [Effect::Repair { extent: BLOCK, data: 77, .. }, Effect::Merge { .. }] = out[..] else { panic!("{out:?}") };
    assert_eq!(talk.hear(member(2), answer_to(&asked, 5, Some(77))), [], "once");
    let out = talk.tell(Event::Merged { request: RequestId(1), merged: Some((BLOCK, 1)) });
    assert_eq!(applied(&out), [(1, BLOCK), (2, BLOCK)]);
}

#[test]
fn a_block_of_another_version_or_of_none_is_not_taken_and_the_request_fails() {
    for (sequence, data) in [(6, Some(77)), (5, None)] {
        let mut talk = Talk::with(&[2]);
        let asked = unreadable_edge(&mut talk);
        let out = talk.hear(member(2), answer_to(&asked, sequence, data));
        assert!(matches!(out[..], [Effect::Unreadable { extent: BLOCK, .. }, Effect::Merge { .. }]), "{out:?}");
        let out = talk.tell(Event::Merged { request: RequestId(1), merged: None });
        assert_eq!(answers(&out), [(1, Outcome::Refused(Refusal::Unreadable))]);
        assert_eq!(applied(&out), [(2, BLOCK)], "the others go on");
    }
}

/// A write ended the repair that asked first, and the next one asks for the same block.
#[test]
fn an_answer_to_the_question_of_an_earlier_repair_does_not_say_that_the_block_is_lost() {
    let mut talk = Talk::with(&[2]);
    let asked = unreadable_edge(&mut talk);
    for data in [Some(76), None] {
        assert_eq!(talk.hear(member(2), answer_to(&asked, 4, data)), [], "of before the last write");
    }
    let out = talk.hear(member(2), answer_to(&asked, 5, Some(77)));
    let [Effect::Repair { extent: BLOCK, data: 77, .. }, Effect::Merge { .. }] = out[..] else { panic!("{out:?}") };
}

/// It comes back, or leaves the group; until then nobody knows that the block is lost.
#[test]
fn a_copy_that_does_not_answer_may_have_the_block() {
    for silent in [true, false] {
        let mut talk = Talk::with(&[2]);
        unreadable_edge(&mut talk);
        let out = if silent {
            assert_eq!(talk.after_ms(BACKUP_SILENT.as_millis() as u64), []);
            talk.now = talk.now.plus(std::time::Duration::from_millis(1));
            talk.tell(Event::Tick { jitter: 0 })
        } else {
            talk.tell(Event::PeerDisconnected(member(2)))
        };
        assert!(matches!(out[..], [Effect::Merge { .. }]), "nothing is said to be lost: {out:?}");
        let out = talk.tell(Event::Merged { request: RequestId(1), merged: None });
        assert_eq!(answers(&out), [(1, Outcome::Refused(Refusal::Unrepaired))], "the client comes back");
    }
}

#[test]
fn what_the_only_copy_cannot_read_is_lost() {
    let mut talk = Talk::with(&[]);
    talk.write(1, |write| (write.extent, write.merge) = (Extent { offset: 100, length: 10 }, true));
    let out = talk.tell(Event::Merged { request: RequestId(1), merged: None });
    assert!(matches!(out[..], [Effect::Unreadable { .. }, Effect::Reply { .. }]), "{out:?}");
    assert_eq!(answers(&out), [(1, Outcome::Refused(Refusal::Unreadable))]);
}
