//! Conversations with the tracker: who is found lost, when, and who is not.

use pflex_proto::ids::ProcessId;

use super::*;

const ONE: StreamId = StreamId(1);

fn process(n: u8) -> ProcessId {
    ProcessId::from_bytes([n; 16])
}

fn known(alive: bool) -> Vec<Known> {
    vec![Known {
        sds: SdsId(1),
        process: process(1),
        alive,
        devices: vec![(DeviceId(1), Incarnation(1), alive)],
        kept_out: false,
        devices_kept_out: Vec::new(),
    }]
}

#[test]
fn the_pace_of_resync_is_read_from_beats_and_forgotten_with_them() {
    let start = Instant::now();
    let at = |s: u64| start + Duration::from_secs(s);
    let mut tracker = Tracker::default();
    let mut beat = |s, left, sent| {
        let mut heard = heard(0, false);
        heard.devices[0].resync = (left, sent);
        tracker.beat(at(s), ONE, &heard);
        tracker.resync(at(s)).get(&DeviceId(1)).map(|resync| (resync.left_bytes, resync.bytes_per_second))
    };
    assert_eq!(beat(0, 0, 5_000), None, "what it sent to others before is not of now");
    assert_eq!(beat(1, 9_000, 5_000), Some((9_000, 0)));
    assert_eq!(beat(2, 8_000, 6_000), Some((8_000, 1_000)));
    assert_eq!(beat(3, 6_000, 8_000), Some((6_000, 1_300)), "the newest counts, and not alone");
    assert_eq!(beat(4, 0, 8_000), None, "all is sent");
    beat(5, 6_000, 9_000);
    assert!(tracker.resync(at(60)).is_empty(), "old news are none");
}

fn heard(completed_ios: u64, waiting: bool) -> Heard {
    let device = HeardDevice {
        device: DeviceId(1),
        incarnation: Incarnation(1),
        completed_ios,
        waiting,
        failed: None,
        resync: (0, 0),
        disk: (0, 0),
        faults: DeviceFaults::default(),
        scrub: HeardScrub::default(),
        no_room: Vec::new(),
    };
    Heard { sds: SdsId(1), process: process(1), applied: Revision(5), newest_key: KeyId(1), devices: vec![device] }
}

/// As by default, and unbraked: these are about one SDS.
fn verdicts(tracker: &mut Tracker, now: Instant, known: &[Known]) -> Vec<Verdict> {
    tracker.findings(now, known, &Thresholds::of(&Settings::default()), true).verdicts
}

/// Ticks each 100 ms from 0 until a verdict comes, at most `until`; beats come when `beat` says so.
fn first(
    tracker: &mut Tracker,
    start: Instant,
    until: u64,
    known: &[Known],
    mut beat: impl FnMut(&mut Tracker, u64),
) -> Option<(u64, Verdict)> {
    for ms in (0..=until).step_by(100) {
        beat(tracker, ms);
        if let Some(verdict) = verdicts(tracker, start + Duration::from_millis(ms), known).pop() {
            return Some((ms, verdict));
        }
    }
    None
}

#[test]
fn a_new_leader_gives_everybody_the_whole_timeout() {
    let found = first(&mut Tracker::default(), Instant::now(), 5_000, &known(true), |_, _| {});
    assert!(matches!(found, Some((3_000, Verdict::Lost { .. }))), "{found:?}");
}

#[test]
fn who_beats_is_not_lost() {
    let start = Instant::now();
    let found = first(&mut Tracker::default(), start, 10_000, &known(true), |tracker, ms| {
        if ms % 1_000 == 0 {
            tracker.beat(start + Duration::from_millis(ms), ONE, &heard(0, false));
        }
    });
    assert_eq!(found, None);
}

#[test]
fn a_refused_connection_after_a_broken_stream_is_believed_early() {
    let start = Instant::now();
    let found = first(&mut Tracker::default(), start, 5_000, &known(true), |tracker, ms| match ms {
        0 => tracker.beat(start, ONE, &heard(0, false)),
        100 => {
            tracker.refused(SdsId(1), process(1));
            assert!(tracker.to_probe().is_empty(), "a stream that stands is not probed");
            tracker.stream_ended(start + Duration::from_millis(ms), SdsId(1), ONE);
            assert_eq!(tracker.to_probe(), [(SdsId(1), process(1))]);
            // At once; what it proves is believed a little later.
            tracker.refused(SdsId(1), process(1));
        }
        _ => {}
    });
    assert!(matches!(found, Some((200, Verdict::Lost { proven: true, .. }))), "{found:?}");
}

#[test]
fn where_firewalls_refuse_only_silence_counts() {
    let (start, mut tracker) = (Instant::now(), Tracker::default());
    let thresholds = Thresholds { proof: false, ..Thresholds::of(&Settings::default()) };
    tracker.beat(start, ONE, &heard(0, false));
    tracker.stream_ended(start, SdsId(1), ONE);
    tracker.refused(SdsId(1), process(1));
    let mut look = |ms| tracker.findings(start + Duration::from_millis(ms), &known(true), &thresholds, true).verdicts;
    assert!((0..3_000).step_by(500).all(|ms| look(ms).is_empty()));
    assert!(matches!(look(3_000).as_slice(), [Verdict::Lost { proven: false, .. }]));
}

#[test]
fn a_broken_stream_alone_proves_nothing() {
    let start = Instant::now();
    let found = first(&mut Tracker::default(), start, 5_000, &known(true), |tracker, ms| match ms {
        0 => tracker.beat(start, ONE, &heard(0, false)),
        100 => tracker.stream_ended(start + Duration::from_millis(ms), SdsId(1), ONE),
        // Back on another stream; the end of the old one, told late, is no news.
        500 => tracker.beat(start + Duration::from_millis(ms), StreamId(2), &heard(0, false)),
        600 => tracker.stream_ended(start + Duration::from_millis(ms), SdsId(1), ONE),
        _ => {}
    });
    assert!(matches!(found, Some((3_500, Verdict::Lost { .. }))), "{found:?}");
}

#[test]
fn a_leader_that_slept_judges_nobody_by_it() {
    let start = Instant::now();
    let mut tracker = Tracker::default();
    tracker.beat(start, ONE, &heard(0, false));
    assert!(verdicts(&mut tracker, start, &known(true)).is_empty());
    assert!(verdicts(&mut tracker, start + Duration::from_secs(60), &known(true)).is_empty());
}

#[test]
fn a_lost_sds_that_beats_again_returns() {
    let start = Instant::now();
    let mut tracker = Tracker::default();
    assert!(verdicts(&mut tracker, start, &known(false)).is_empty(), "unheard it stays lost");
    tracker.beat(start, ONE, &heard(0, false));
    let devices = vec![(DeviceId(1), Incarnation(1))];
    let returned = Verdict::Returned { sds: SdsId(1), process: process(1), devices };
    assert_eq!(verdicts(&mut tracker, start, &known(false)), [returned]);
}

#[test]
fn a_device_that_only_waits_is_lost_and_returns_with_progress() {
    let start = Instant::now();
    let mut tracker = Tracker::default();
    let found = first(&mut tracker, start, 10_000, &known(true), |tracker, ms| {
        if ms % 1_000 == 0 {
            // Busy until 2 s, then stuck.
            tracker.beat(start + Duration::from_millis(ms), ONE, &heard(ms.min(2_000), true));
        }
    });
    assert!(matches!(found, Some((7_000, Verdict::DevicesLost { .. }))), "{found:?}");
    let later = start + Duration::from_millis(7_500);
    tracker.beat(later, ONE, &heard(3_000, true));
    let mut partly = known(true);
    partly[0].devices[0].2 = false;
    assert!(matches!(verdicts(&mut tracker, later, &partly).as_slice(), [Verdict::Returned { .. }]));
}

#[test]
fn a_new_process_starts_afresh() {
    let start = Instant::now();
    let mut tracker = Tracker::default();
    tracker.beat(start, ONE, &heard(0, false));
    let mut restarted = known(true);
    restarted[0].process = process(2);
    assert!(verdicts(&mut tracker, start + Duration::from_millis(900), &restarted).is_empty());
    assert_eq!(tracker.applied(SdsId(1), process(1)), None);
    assert_eq!(tracker.applied(SdsId(1), process(2)), None, "nothing is confirmed before it is heard");
}

#[test]
fn those_that_fell_silent_together_are_held_together_though_their_beats_differ() {
    let start = Instant::now();
    let known: Vec<Known> = (1..=3)
        .map(|n| Known {
            sds: SdsId(n),
            process: process(1),
            alive: true,
            devices: Vec::new(),
            kept_out: false,
            devices_kept_out: Vec::new(),
        })
        .collect();
    let thresholds = Thresholds::of(&Settings::default());
    let mut tracker = Tracker::default();
    for ms in (0..=12_000_u64).step_by(50) {
        let now = start + Duration::from_millis(ms);
        // Beats 400 ms apart in phase; 2 and 3 stop at the same time.
        for n in 1..=3_u32 {
            if (ms + 400 * u64::from(n)).is_multiple_of(1_000) && (n == 1 || ms <= 5_000) {
                let heard = Heard { sds: SdsId(n), devices: Vec::new(), ..heard(0, false) };
                tracker.beat(now, StreamId(n.into()), &heard);
            }
        }
        let findings = tracker.findings(now, &known, &thresholds, false);
        assert!(findings.verdicts.is_empty(), "at {ms} ms: {findings:?}");
        if let Some(held) = findings.held {
            assert_eq!(held, TooMany { silent: 2, of: 3 });
            return;
        }
    }
    panic!("two of three are silent and nothing was held");
}

#[test]
fn silence_of_most_is_held_and_a_proof_of_death_is_not() {
    let start = Instant::now();
    let late = start + Duration::from_millis(3_000);
    let known: Vec<Known> = (1..=3)
        .map(|n| Known {
            sds: SdsId(n),
            process: process(1),
            alive: true,
            devices: Vec::new(),
            kept_out: false,
            devices_kept_out: Vec::new(),
        })
        .collect();
    let thresholds = Thresholds::of(&Settings::default());
    let mut tracker = Tracker::default();
    for n in 1..=3 {
        let heard = Heard { sds: SdsId(n), devices: Vec::new(), ..heard(0, false) };
        tracker.beat(start, StreamId(n.into()), &heard);
    }
    let mut at = |now, unbraked| {
        // Ticks come often, or the leader slept.
        tracker.last_tick = Some(now);
        tracker.findings(now, &known, &thresholds, unbraked)
    };
    assert!(at(start, false).verdicts.is_empty());
    let findings = at(late, false);
    assert_eq!(findings.held, Some(TooMany { silent: 3, of: 3 }));
    assert!(findings.verdicts.is_empty());
    assert_eq!(at(late, true).verdicts.len(), 3, "a successor believes it");

    for n in 1..=3 {
        tracker.stream_ended(start, SdsId(n), StreamId(n.into()));
        tracker.refused(SdsId(n), process(1));
    }
    tracker.last_tick = Some(late);
    let findings = tracker.findings(late, &known, &thresholds, false);
    assert_eq!((findings.held, findings.verdicts.len()), (None, 3), "dead is dead, however many");
}
