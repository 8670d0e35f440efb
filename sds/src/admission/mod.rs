//! Who may do which IO: sessions, tokens, generations. Pure: time, map and secrets come in as arguments.
//!
//! A request is admitted if its MAC opens under its session's key, its sequence is higher than the session's last, its
//! session is of the newest generation of that SDC and volume (S9), and its token still allows it ([`Authority::allows`],
//! asked again when a read's data is fetched, S20). A session opens only with a token that what was last heard from the MDM
//! can place, which bounds a revocation that this server does not hear of ([`freshness`]). In a session of a volume in
//! per-io mode each request brings a token that is for it alone and is used up by it ([`used`], S21).
//!
//! What is refused for its token's sake is counted by sender ([`refused`]).
//!
//! **Invariant (I6):** no IO executes without a valid token, and none twice.

mod authority;
mod freshness;
mod generations;
mod refused;
mod sessions;
mod used;

pub(crate) use authority::{Authority, Intent, Surroundings};
pub(crate) use freshness::{HEARD_WITHIN, Heard, STAMP_DELAY};
pub(crate) use refused::{BadTokens, Flaw, Refused, Source, told};
pub(crate) use sessions::{ConnectionId, Sessions};

#[cfg(test)]
pub(crate) use authority::tests::authority as test_authority;
