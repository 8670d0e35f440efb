//! Tokens of per-io mode that were used at this device in this life (S21).
//!
//! A token names the device's incarnation, which rises durably with every start, so what a start forgets is void. Tokens are kept
//! until they have expired: a minute of operations.

use std::collections::{HashSet, VecDeque};

use pflex_proto::{
    data::RefusalCode,
    ids::{LogTime, TokenId},
    token::Token,
};

use super::{
    freshness::Heard,
    refused::{Flaw, Refused},
};

/// Tokens kept: 16,000 operations a second for a minute, some 40 MiB. More are refused as `Busy` until older ones expire.
const MAX_USED: usize = 1 << 20;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct UsedTokens {
    ids: HashSet<TokenId>,
    /// In the order of their use, which is nearly that of their expiry.
    order: VecDeque<(LogTime, TokenId)>,
}

impl UsedTokens {
    /// Uses a token up.
    ///
    /// # Errors
    /// When it was used before, or too many are kept.
    pub(super) fn take(&mut self, token: &Token, heard: Option<Heard>) -> Result<(), Refused> {
        let now = heard.map(Heard::now);
        while let Some((expires, id)) = self.order.front().copied()
            && now.is_some_and(|now| expires <= now)
        {
            self.order.pop_front();
            self.ids.remove(&id);
        }
        if self.ids.contains(&token.id) {
            let why = format!("token {} was used before", token.id);
            return Err(Refused::flawed(Flaw::Replayed, RefusalCode::NotAllowed, why));
        }
        if self.ids.len() >= MAX_USED {
            return Err((RefusalCode::Busy, "too many tokens were used within a minute".into()).into());
        }
        self.ids.insert(token.id);
        self.order.push_back((token.expires, token.id));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::admission::authority::tests::token;

    #[test]
    fn a_token_is_kept_until_it_has_expired() {
        let at = |ms| Some(Heard { stamp: LogTime(ms), age: Duration::ZERO });
        let of = |id, expires| Token { id: TokenId(id), expires: LogTime(expires), ..token() };
        let mut used = UsedTokens::default();
        assert_eq!(used.take(&of(1, 100), at(10)), Ok(()));
        assert_eq!(used.take(&of(2, 200), at(10)), Ok(()));
        assert!(used.take(&of(1, 100), at(99)).is_err());
        assert_eq!(used.take(&of(3, 300), at(100)), Ok(()));
        assert_eq!((used.ids.len(), used.order.len()), (2, 2), "the first is void by itself now");
        assert!(used.take(&of(2, 200), at(100)).is_err());
    }
}
