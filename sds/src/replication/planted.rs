//! Bugs on purpose: each breaks one rule, and the simulator must notice. None can be planted outside tests.

/// One rule broken.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Bug {
    /// S1: an epoch opens without making the copies equal.
    SkipReconcile,
    /// S2: a membership is taken to name a device, not one life of it.
    AcceptOldIncarnation,
    /// S3: acknowledgements do not wait for a joiner.
    JoinerNotAwaited,
    /// S4: a backup applies what follows a missing write.
    AcceptGap,
    /// S4: writes are acknowledged when they are durable on the primary alone.
    AckBeforeBackup,
    /// S5: a read may return an uncommitted write.
    DirtyRead,
    /// S5: the lease is not looked at after the data was read.
    ReadWithoutLease,
    /// S6: a new primary does not wait for what was granted to the old one.
    NoLeaseWait,
    /// S6: a primary that hears of a newer epoch hands its leases back before it has left its own.
    HandBackBeforeLeaving,
    /// S8: a device that does not answer is taken for dead.
    #[cfg(test)]
    SilenceIsProof,
    /// S11: a primary answers although the MDM may yet choose another copy.
    AnswerUnactivated,
    /// A copy that is to move is dropped before the new one is in sync.
    #[cfg(test)]
    DropLeaving,
    /// S19: a copy that lost its place is dropped before the row of its configuration.
    #[cfg(test)]
    DropChunksFirst,
    /// A copy that is half dropped takes part in its group.
    #[cfg(test)]
    ActOnHalfCopy,
    /// S25: a copy that was dropped still claims what it had.
    #[cfg(test)]
    KeepMarkOfDropped,
    /// S25: a copy that is being filled takes over its primary's watermark before it has everything.
    MarkWhileFilled,
    /// S25: a watermark counts whatever configurations it is of.
    MarkOfOtherLineage,
    /// S13: a block that cannot be read is put back whatever the version of the chunk is, here and there.
    RepairFromOtherVersion,
    /// S4: space that was set aside for a write that is not ordered stays so.
    KeepReservations,
    /// S13: a copy that seems to differ is made equal while writes go on.
    MendWhileWritten,
    /// S13: a copy that does not answer is taken not to have a block either.
    SilenceIsLoss,
    /// S13: a block that differs from its checksum here is given to the other copies.
    RepairUnverified,
    /// S7: a resent operation is ordered again.
    ForgetOperations,
    /// S7: undoing a chunk's writes leaves their operation ids.
    KeepUndoneOperations,
    /// S10: blocks change under the old version.
    SkipUnsyncedMark,
    /// S10: writes ordered while the lists are taken are taken to be synced.
    ForgetDirtyDuringList,
    /// S14: a FLUSH that names memory that is gone succeeds.
    FlushOfOtherMemory,
    /// S14: a FLUSH does not wait for the other copies' disks.
    FlushHereAlone,
    /// S14: a FUA write is answered when it is in memory.
    AnswerFuaWhenHeld,
    /// S14: the watermark that is persisted says held, not durable.
    WatermarkOfMemory,
    /// S14: the MDM keeps the volatility id when every copy has restarted.
    #[cfg(test)]
    KeepVolatility,
    /// S2: the MDM takes a restarted copy of a writeback pool for one that kept its memory.
    #[cfg(test)]
    RestartStaysInSync,
    /// Of two halves of a group one does not know what was executed.
    HalfForgetsOperations,
    /// Nor which sequences were given.
    HalfForgetsOrder,
    /// Nor whom this device granted leases to.
    HalfForgetsGrants,
    /// A copy goes on in its role while its chunks are sorted.
    SortBesideRole,
}

/// The bug planted in one replica, if any.
#[derive(Clone, Copy, Default, Debug)]
pub(super) struct Planted(pub(super) Option<Bug>);

impl Planted {
    /// Always false outside tests, known at compile time.
    pub(super) fn is(self, bug: Bug) -> bool {
        cfg!(test) && self.0 == Some(bug)
    }
}
