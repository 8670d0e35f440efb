//! Persist before send: messages that may go once the store reported a ticket durable (or held, S14).

use std::collections::VecDeque;

use pflex_proto::ids::Member;

use super::message::Body;
use super::types::Ticket;

/// See the module. Cleared at each new epoch and each new attempt, whose messages replace what waited.
#[derive(Debug)]
pub(super) struct Gate<D> {
    waiting: VecDeque<(Ticket, Member, Body<D>)>,
}

impl<D> Default for Gate<D> {
    fn default() -> Self {
        Self { waiting: VecDeque::new() }
    }
}

impl<D> Gate<D> {
    /// Tickets never fall from one call to the next: they are those of the store effects just emitted.
    pub(super) fn push(&mut self, ticket: Ticket, to: Member, body: Body<D>) {
        debug_assert!(self.waiting.back().is_none_or(|(last, ..)| *last <= ticket));
        self.waiting.push_back((ticket, to, body));
    }

    /// The next one that may go. Of acknowledgements that may go together only the last is returned: they are
    /// cumulative.
    pub(super) fn pop(&mut self, reached: Ticket) -> Option<(Member, Body<D>)> {
        loop {
            if self.waiting.front().is_none_or(|(ticket, ..)| *ticket > reached) {
                return None;
            }
            let (_, to, body) = self.waiting.pop_front()?;
            let superseded = matches!(&body, Body::WriteAck { .. } | Body::Durable { .. })
                && self.waiting.front().is_some_and(|(ticket, next_to, next)| {
                    let same = std::mem::discriminant(next) == std::mem::discriminant(&body);
                    *ticket <= reached && *next_to == to && same
                });
            if !superseded {
                return Some((to, body));
            }
        }
    }

    pub(super) fn clear(&mut self) {
        self.waiting.clear();
    }
}
