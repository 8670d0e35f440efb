//! The record of every issued IO token. What travels is signed from this record, outside the state machine.

use pflex_proto::{
    ids::{ByteCount, ByteOffset, KeyId, LogTime, ProcessId, SdcId, TokenId, VolumeEpoch, VolumeId},
    token::Plan,
};
use ring::digest;

use super::{Access, TokenMode};

/// A SHA-256 of the token hash chain.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Link(pub [u8; 32]);

/// Where the chain begins (the link of the last record dropped) and ends.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct TokenChain {
    /// Before the oldest record.
    pub anchor: Link,
    /// Of the newest record.
    pub head: Link,
}

impl TokenChain {
    /// Whether records, oldest first, form this chain; the id of the first that does not, or of the last when the end differs.
    ///
    /// # Errors
    /// That id.
    pub fn verify<'a>(&self, records: impl IntoIterator<Item = &'a IoToken>) -> Result<(), TokenId> {
        let (mut link, mut last) = (self.anchor, TokenId::default());
        for token in records {
            last = token.id;
            if token.link != token.link_after(link) {
                return Err(last);
            }
            link = token.link;
        }
        if link == self.head { Ok(()) } else { Err(last.next()) }
    }
}

/// What SDSs reported about a token.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct TokenUse {
    /// Reads served.
    pub reads: u64,
    /// Writes served.
    pub writes: u64,
    /// Bytes read.
    pub read_bytes: ByteCount,
    /// Bytes written.
    pub written_bytes: ByteCount,
}

/// An issued token.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct IoToken {
    /// Its id; ids grow with time.
    pub id: TokenId,
    /// The secret that signs it.
    pub key: KeyId,
    /// For whom.
    pub sdc: SdcId,
    /// For which process of it (S9).
    pub process: ProcessId,
    /// For what.
    pub volume: VolumeId,
    /// What it allows.
    pub access: Access,
    /// The first byte it covers.
    pub from: ByteOffset,
    /// The first byte beyond what it covers.
    pub to: ByteOffset,
    /// Void once the volume's is higher.
    pub volume_epoch: VolumeEpoch,
    /// When it was issued.
    pub issued: LogTime,
    /// When it ends.
    pub expires: LogTime,
    /// How often it may be used.
    pub mode: TokenMode,
    /// The one operation that it is for (S21).
    pub plan: Option<Plan>,
    /// How it was used; outside the chain, since it grows.
    pub used: TokenUse,
    /// Chains this record to the one before.
    pub link: Link,
}

impl IoToken {
    /// The link this record must have after `before`: SHA-256 over that link and every fact of the record.
    pub fn link_after(&self, before: Link) -> Link {
        let mut context = digest::Context::new(&digest::SHA256);
        context.update(&before.0);
        context.update(self.process.as_bytes());
        for fact in [
            self.id.get(),
            u64::from(self.key.get()),
            u64::from(self.sdc.get()),
            self.volume.get(),
            u64::from(self.access == Access::ReadWrite),
            self.to.0,
            self.volume_epoch.get(),
            self.issued.get(),
            self.expires.get(),
            u64::from(self.mode == TokenMode::PerIo),
        ] {
            context.update(&fact.to_le_bytes());
        }
        if let Some(plan) = &self.plan {
            let plan = [plan.device.get().into(), plan.incarnation.get(), plan.operation.get()];
            plan.into_iter().for_each(|fact| context.update(&fact.to_le_bytes()));
        }
        // Chains that were begun before there were ranges hold: their tokens are from 0.
        if self.plan.is_some() || self.from != ByteOffset(0) {
            context.update(&self.from.0.to_le_bytes());
        }
        let mut link = Link::default();
        link.0.copy_from_slice(context.finish().as_ref());
        link
    }
}
