//! Tokens of per-io mode that were used at this device in this life (S21).
//!
//! A token names the device's incarnation, which rises durably with every start, so what a start forgets is void. Tokens are kept
//! until they have expired: a minute of operations. Who would use up the room for them leaves as much as it takes: the dynamic
//! threshold of shared buffers (Choudhury and Hahne, IEEE/ACM Transactions on Networking 6(2), 1998) with a factor of one.

use std::collections::{HashMap, HashSet, VecDeque};

use pflex_proto::{
    data::RefusalCode,
    ids::{LogTime, SdcId, TokenId},
    token::Token,
};

use super::{
    freshness::Heard,
    refused::{Flaw, Refused},
};

/// Tokens kept: 16,000 operations a second for a minute, some 50 MiB.
const MAX_USED: usize = 1 << 20;
/// Kept for so long after they expired: the time that is heard may seem to step back by the granule of its stamps.
const MARGIN_MS: u64 = 1_000;

/// See the module.
#[derive(Debug)]
pub(super) struct UsedTokens {
    ids: HashSet<TokenId>,
    /// In the order of their use, which is nearly that of their expiry.
    order: VecDeque<(LogTime, TokenId, SdcId)>,
    /// How many of these are whose; none has 0.
    by_sdc: HashMap<SdcId, usize>,
    room: usize,
}

impl Default for UsedTokens {
    fn default() -> Self {
        Self { ids: HashSet::new(), order: VecDeque::new(), by_sdc: HashMap::new(), room: MAX_USED }
    }
}

impl UsedTokens {
    /// Uses a token up.
    ///
    /// # Errors
    /// When it was used before; `Busy` when its SDC has as many here as there is room left for everybody.
    pub(super) fn take(&mut self, token: &Token, heard: Option<Heard>) -> Result<(), Refused> {
        self.prune(heard);
        if self.ids.contains(&token.id) {
            let why = format!("token {} was used before", token.id);
            return Err(Refused::flawed(Flaw::Replayed, RefusalCode::NotAllowed, why));
        }
        let own = self.by_sdc.get(&token.sdc).copied().unwrap_or(0);
        let left = self.room - self.ids.len();
        if own >= left {
            let why = format!("SDC {} used {own} tokens within a minute, and there is room for {left} more", token.sdc);
            return Err((RefusalCode::Busy, why).into());
        }
        self.ids.insert(token.id);
        self.order.push_back((token.expires, token.id, token.sdc));
        *self.by_sdc.entry(token.sdc).or_default() += 1;
        Ok(())
    }

    fn prune(&mut self, heard: Option<Heard>) {
        let Some(now) = heard.map(Heard::now) else { return };
        while let Some((expires, id, sdc)) = self.order.front().copied()
            && expires.get().saturating_add(MARGIN_MS) <= now.get()
        {
            self.order.pop_front();
            self.ids.remove(&id);
            if let Some(own) = self.by_sdc.get_mut(&sdc) {
                *own -= 1;
                if *own == 0 {
                    self.by_sdc.remove(&sdc);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::admission::authority::tests::token;

    fn at(ms: u64) -> Option<Heard> {
        Some(Heard { stamp: LogTime(ms), age: Duration::ZERO })
    }

    #[test]
    fn a_token_is_kept_until_it_has_expired() {
        let of = |id, expires| Token { id: TokenId(id), expires: LogTime(expires), ..token() };
        let mut used = UsedTokens::default();
        assert_eq!(used.take(&of(1, 100), at(10)), Ok(()));
        assert_eq!(used.take(&of(2, 200), at(10)), Ok(()));
        assert!(used.take(&of(1, 100), at(1_099)).is_err());
        assert_eq!(used.take(&of(3, 300), at(1_100)), Ok(()));
        assert_eq!((used.ids.len(), used.order.len()), (2, 2), "the first is void by itself now");
        assert!(used.take(&of(2, 200), at(1_100)).is_err());
    }

    #[test]
    fn an_sdc_that_takes_all_it_can_leaves_room_for_every_other_one() {
        let mut used = UsedTokens { room: 120, ..UsedTokens::default() };
        let mut ids = 0..;
        let mut take = |sdc, now| {
            let id = TokenId(ids.next().expect("enough"));
            used.take(&Token { id, sdc: SdcId(sdc), expires: LogTime(now + 60_000), ..token() }, at(now))
                .map_err(|why| why.code)
        };
        let mut greedy = |sdc| (0..200).take_while(|_| take(sdc, 10).is_ok()).count();
        assert_eq!([greedy(1), greedy(2), greedy(3)], [60, 30, 15]);
        assert_eq!(take(4, 10), Ok(()));
        assert_eq!(take(1, 10), Err(RefusalCode::Busy));
        assert_eq!(take(1, 70_000), Ok(()), "they have expired");
        assert_eq!((used.by_sdc.len(), used.ids.len()), (1, 1));
    }
}
