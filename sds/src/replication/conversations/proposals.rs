//! What a primary asks the MDM for, and when it asks again.

use super::*;

/// A refusal is a command of the MDMs' log: what is refused again and again is asked less and less often, until the map
/// brings something new.
#[test]
fn what_the_mdm_refuses_is_proposed_less_and_less_often() {
    let proposes = |out: &Out| out.iter().any(|effect| matches!(effect, Effect::Propose(_)));
    let mut talk = Talk::with(&[]);
    let config = PgConfig { to_activate: true, epoch: Epoch(2), ..config(1, vec![member(1)]) };
    let mut out = talk.tell(Event::Config { config, joiners: Vec::new() });
    let mut proposed = proposes(&out);
    while !out.is_empty() && !proposed {
        out = out.into_iter().flat_map(|effect| talk.agree(effect)).collect();
        proposed |= proposes(&out);
    }
    assert!(proposed && !talk.pg.is_serving());

    let asked_again = |talk: &mut Talk| {
        talk.tell(Event::ProposalRejected { expected_epoch: Epoch(2) });
        let mut ticks = 0_u64;
        loop {
            ticks += 1;
            talk.now = talk.now.plus(limits::TICK);
            if proposes(&talk.tell(Event::Tick { jitter: 0 })) {
                return ticks;
            }
        }
    };
    let ticks: Vec<u64> = (0..9).map(|_| asked_again(&mut talk)).collect();
    assert_eq!(ticks, [1, 2, 4, 8, 16, 32, 64, 100, 100]);
    let news = PgConfig { to_activate: true, epoch: Epoch(2), ..super::config(1, vec![member(1)]) };
    talk.tell(Event::Config { config: news, joiners: vec![member(3)] });
    assert_eq!(asked_again(&mut talk), 1, "a new map");
    talk.tell(Event::Activated { epoch: Epoch(2) });
    assert!(talk.pg.is_serving());
}
