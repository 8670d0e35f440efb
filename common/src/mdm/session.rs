//! The client's half of exactly-once: hands out sequences and knows the low-water mark (S17). Pure.

use std::collections::BTreeSet;

use pflex_proto::{
    ids::{ClientId, ClientSequence},
    pb::RequestId,
};

/// An open session.
#[derive(Debug)]
pub(super) struct Session {
    client: ClientId,
    next: ClientSequence,
    unanswered: BTreeSet<ClientSequence>,
}

impl Session {
    pub(super) const fn new(client: ClientId) -> Self {
        Self { client, next: ClientSequence(1), unanswered: BTreeSet::new() }
    }

    pub(super) const fn client(&self) -> ClientId {
        self.client
    }

    /// A fresh request, unanswered until [`Self::answered`].
    pub(super) fn begin(&mut self) -> RequestId {
        let sequence = self.next;
        self.next = sequence.next();
        self.unanswered.insert(sequence);
        let low_water = self.unanswered.first().copied().unwrap_or(sequence);
        RequestId { client_id: self.client.0, sequence: sequence.0, low_water: low_water.0 }
    }

    /// The request needs no retry any more.
    pub(super) fn answered(&mut self, request: RequestId) {
        if request.client_id == self.client.0 {
            self.unanswered.remove(&ClientSequence(request.sequence));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_low_water_mark_is_the_oldest_unanswered_request() {
        let mut session = Session::new(ClientId(4));
        let first = session.begin();
        let second = session.begin();
        assert_eq!((first.sequence, first.low_water), (1, 1));
        assert_eq!((second.sequence, second.low_water), (2, 1));
        session.answered(second);
        assert_eq!(session.begin().low_water, 1, "the first may still be retried");
        session.answered(first);
        assert_eq!(session.begin().low_water, 3);
    }
}
