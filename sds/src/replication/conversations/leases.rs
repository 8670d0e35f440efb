//! When a primary asks for leases.

use super::*;

/// How often it asks from its first word to the backup on until it serves, of an epoch in which leases are held or not.
fn asks(held: bool) -> usize {
    let leases = Leases::new(member(1), Time(0));
    let pg = Pg::new(PgId::default(), member(1), Recovered::default(), &leases);
    let mut talk = Talk { pg, leases, now: Time(1), ticket: Ticket(0), permits: true };
    talk.tell(Event::PeerConnected(member(2)));
    if held {
        let request = talk.leases.request(talk.now, member(2));
        let mut granter = Leases::new(member(2), Time(0));
        let grant = granter.grant(talk.now, &request, vec![(PgId::default(), Epoch(1))]).expect("it is asked");
        talk.leases.granted(talk.now, grant);
    }
    let mut out = talk.tell(Event::Config { config: config(1, vec![member(1), member(2)]), joiners: Vec::new() });
    assert!(out.contains(&Effect::RenewLeases), "the epoch is new, so no lease counts any more");
    let mut asked = 0;
    while !talk.pg.is_serving() {
        out = out.into_iter().flat_map(|effect| talk.agree(effect)).collect();
        asked += out.iter().filter(|effect| **effect == Effect::RenewLeases).count();
    }
    asked
}

/// A backup that hears of an epoch after its primary cannot grant for it when it is asked first. When all have opened it they
/// can; without another question the reads of the group would wait for the renewal, up to a second.
#[test]
fn who_begins_to_answer_without_leases_asks_again() {
    assert_eq!(asks(false), 1);
    assert_eq!(asks(true), 0);
}
