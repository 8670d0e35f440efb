//! Generations of the secret that signs tokens (S21): made, then signing once every live SDS verifies with it, then dropped
//! when its last token has expired. At most two are valid at a time, so a rotation begins when the last one is over.

use pflex_proto::ids::{KeyId, LogTime};

use super::{Context, Effect, Refusal, done, validate};
use crate::{
    command::{ErrorCode, proto},
    state::{
        State,
        limits::TOKEN_LIFE_MS,
        model::{Cluster, Secret, SecretRow},
        rows::cluster::ConfigRow,
    },
};

impl State {
    /// A new generation, which verifies but does not sign yet.
    pub(super) fn rotate_secret(&mut self, rotate: &proto::RotateSecret) -> Effect {
        if let Some(next) = self.next_key() {
            let what =
                format!("generation {next} waits for every live SDS to have it; `pflex cluster status` shows which");
            return Err(under_way(what));
        }
        if let Some((old, until)) = self.retiring_key() {
            let what = format!("tokens of generation {old} are good until log time {until} ms");
            return Err(under_way(what));
        }
        let secret = secret(&rotate.secret)?;
        let newest = self.secrets.values().next_back().map_or(0, |row| row.key.get());
        let key = newest.checked_add(1).map(KeyId);
        let key = key.ok_or_else(|| Refusal::new(ErrorCode::Limit, "secret", "all key ids are used up"))?;
        self.secrets.put(SecretRow { key, secret, last_expiry: None });
        done(key.get())
    }

    /// Every live SDS has the new generation: it signs from now on, and the old one ends with its last token.
    pub(super) fn sign_with_secret(&mut self, context: Context, sign: &proto::SignWithSecret) -> Effect {
        let key = KeyId(sign.key_id);
        let Some(cluster) = self.cluster().filter(|_| self.next_key() == Some(key)).cloned() else {
            return Err(Refusal::new(ErrorCode::Stale, format!("secret {key}"), "it is not the next generation"));
        };
        let last_expiry = Some(LogTime(context.log_time.get() + TOKEN_LIFE_MS));
        self.secrets.update(cluster.newest_key, |old| old.last_expiry = last_expiry);
        self.config.put(ConfigRow::Cluster(Cluster { newest_key: key, ..cluster }));
        done(key.get())
    }

    /// Forgets a generation of which every token has expired, in log time.
    pub(super) fn drop_secret(&mut self, context: Context, drop: &proto::DropSecret) -> Effect {
        let key = KeyId(drop.key_id);
        let object = format!("secret {key}");
        match self.retiring_key() {
            Some((old, until)) if old == key && until < context.log_time => {
                self.secrets.remove(key);
                done(key.get())
            }
            Some((old, until)) if old == key => {
                let what = format!("tokens it signed are good until log time {until} ms");
                Err(Refusal::new(ErrorCode::Precondition, object, what))
            }
            Some(_) | None => Err(Refusal::new(ErrorCode::Stale, object, "it is not the one that is to go")),
        }
    }
}

pub(super) fn secret(bytes: &[u8]) -> Result<Secret, Refusal> {
    let secret = bytes.try_into().map_err(|_| validate::invalid("secret", "it must have 32 bytes"))?;
    Ok(Secret(secret))
}

fn under_way(what: String) -> Refusal {
    Refusal::new(ErrorCode::Precondition, "secret", format!("a rotation is under way: {what}"))
}
