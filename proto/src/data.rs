//! The messages between an SDC and an SDS on the data plane, and the greeting that all data-plane connections share.
//!
//! A connection belongs to one (peer, device): its first frame is [`Hello`], answered by [`HelloReply`] or [`Refusal`].
//! A client then opens a session per volume ([`OpenSession`], S9) and sends requests in it. `Read`, `Write`, `Flush` and
//! `Allocation` bodies end with 16 bytes of MAC over header and body under the session's key (see `token`), and carry a sequence that
//! rises strictly within the session: a captured request cannot be replayed. Requests are answered in any order.

use crate::{
    codec::{CodecError, Reader, Wire},
    geometry::{BLOCK_SIZE, BLOCKS_PER_CHUNK, CHUNK_SIZE},
    ids::{
        ChunkId, ClusterId, DeviceId, Epoch, Generation, Incarnation, LogTime, Member, OperationId, PgId, ProcessId,
        SdcId, SessionId, Version, VolatilityId, VolumeId,
    },
    pg::PgConfig,
    wire_enum, wire_fields,
};

/// The protocol version this code speaks.
pub const PROTOCOL_VERSION: u16 = 1;

/// Who opens a connection, and what for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Peer {
    /// Block IO of a client.
    Sdc {
        /// The client.
        sdc: SdcId,
        /// Its running process.
        process: ProcessId,
    },
    /// Replication and resync of another copy.
    Replication(Member),
    /// Leases, on a connection of their own so that bulk data never delays one (S6).
    Lease(Member),
}

impl Wire for Peer {
    fn encode(&self, out: &mut Vec<u8>) {
        match self {
            Self::Sdc { sdc, process } => {
                out.push(1);
                sdc.encode(out);
                process.encode(out);
            }
            Self::Replication(member) => {
                out.push(2);
                member.encode(out);
            }
            Self::Lease(member) => {
                out.push(3);
                member.encode(out);
            }
        }
    }

    fn decode(reader: &mut Reader<'_>) -> Result<Self, CodecError> {
        match reader.get::<u8>()? {
            1 => Ok(Self::Sdc { sdc: reader.get()?, process: reader.get()? }),
            2 => Ok(Self::Replication(reader.get()?)),
            3 => Ok(Self::Lease(reader.get()?)),
            other => Err(CodecError::BadTag { what: "peer", value: other.into() }),
        }
    }
}

/// Opens a connection.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Hello {
    /// Oldest protocol version the sender speaks.
    pub oldest: u16,
    /// Newest protocol version the sender speaks.
    pub newest: u16,
    /// Both ends must be of one cluster.
    pub cluster: ClusterId,
    /// The device the connection is for.
    pub device: DeviceId,
    /// Who asks.
    pub peer: Peer,
}
wire_fields!(Hello { oldest, newest, cluster, device, peer });

/// Accepts a connection.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct HelloReply {
    /// The version to speak.
    pub version: u16,
    /// The device's present life.
    pub incarnation: Incarnation,
}
wire_fields!(HelloReply { version, incarnation });

/// Opens or renews a session: the token and everything that binds requests to it. A higher generation retires all
/// sessions of lower ones for this SDC and volume at this device before it is answered (S9).
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct OpenSession {
    /// The volume.
    pub volume: VolumeId,
    /// The session's generation.
    pub generation: Generation,
    /// A signed token, `token::SignedToken` encoded.
    pub token: Vec<u8>,
    /// The session of the same volume and generation on this connection that this one replaces, with a newer token. It
    /// stays valid until the first request in the new one, so no request is lost in between.
    pub renews: Option<SessionId>,
}
wire_fields!(OpenSession { volume, generation, token, renews });

/// The session is open.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SessionOpened {
    /// Names the session on this connection.
    pub session: SessionId,
    /// Goes into the session key, so that no two sessions share one.
    pub nonce: [u8; 16],
    /// The SDS's log time, for clock comparison.
    pub log_time: LogTime,
}
wire_fields!(SessionOpened { session, nonce, log_time });

/// Checksums of a request's or reply's bytes.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Checksums {
    /// CRC32C of each 4 KiB block, for block-aligned ranges.
    Blocks(Vec<u32>),
    /// One CRC32C of all bytes, where an end is not block-aligned.
    Bytes(u32),
}

impl Wire for Checksums {
    fn encode(&self, out: &mut Vec<u8>) {
        match self {
            Self::Blocks(blocks) => {
                out.push(1);
                blocks.encode(out);
            }
            Self::Bytes(crc) => {
                out.push(2);
                crc.encode(out);
            }
        }
    }

    fn decode(reader: &mut Reader<'_>) -> Result<Self, CodecError> {
        match reader.get::<u8>()? {
            1 => Ok(Self::Blocks(reader.list(BLOCKS_PER_CHUNK as usize)?)),
            2 => Ok(Self::Bytes(reader.get()?)),
            other => Err(CodecError::BadTag { what: "checksums", value: other.into() }),
        }
    }
}

impl Checksums {
    /// Of `data`, which starts `offset` bytes into its chunk.
    pub fn of(offset: u32, data: &[u8]) -> Self {
        if offset.is_multiple_of(BLOCK_SIZE) && data.len().is_multiple_of(BLOCK_SIZE as usize) {
            Self::Blocks(data.chunks_exact(BLOCK_SIZE as usize).map(crc32c::crc32c).collect())
        } else {
            Self::Bytes(crc32c::crc32c(data))
        }
    }

    /// Whether they are those of `data` at `offset`.
    pub fn verify(&self, offset: u32, data: &[u8]) -> bool {
        match self {
            Self::Bytes(crc) => crc32c::crc32c(data) == *crc,
            Self::Blocks(blocks) => {
                offset.is_multiple_of(BLOCK_SIZE)
                    && data.len() == blocks.len() * BLOCK_SIZE as usize
                    && data
                        .chunks_exact(BLOCK_SIZE as usize)
                        .zip(blocks)
                        .all(|(block, crc)| crc32c::crc32c(block) == *crc)
            }
        }
    }
}

/// What every IO request says: where, under which authority, in which configuration.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct IoHeader {
    /// The session, of this connection.
    pub session: SessionId,
    /// Strictly rising within the session.
    pub session_sequence: u64,
    /// The volume.
    pub volume: VolumeId,
    /// The placement group of the chunk.
    pub pg: PgId,
    /// The configuration the client knows; another one is answered with the right one (S9).
    pub epoch: Epoch,
    /// The chunk.
    pub chunk: ChunkId,
    /// First byte in the chunk.
    pub offset: u32,
    /// Bytes; at least 1, within the chunk.
    pub length: u32,
}
wire_fields!(IoHeader { session, session_sequence, volume, pg, epoch, chunk, offset, length });

impl IoHeader {
    /// Whether the range is not empty and lies inside the chunk.
    pub const fn range_is_valid(&self) -> bool {
        self.length > 0 && self.length <= CHUNK_SIZE && self.offset <= CHUNK_SIZE - self.length
    }
}

/// The longest token that is looked at; ours have some 200 bytes.
const MAX_TOKEN_BYTES: usize = 1024;

/// A request in per-io mode: with the token that is for it alone (S21).
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct WithToken<T> {
    /// Token with its plan, and signature.
    pub token: Vec<u8>,
    /// The request as in lease mode.
    pub request: T,
}

impl<T: Wire> Wire for WithToken<T> {
    fn encode(&self, out: &mut Vec<u8>) {
        self.token.encode(out);
        self.request.encode(out);
    }

    fn decode(reader: &mut Reader<'_>) -> Result<Self, CodecError> {
        Ok(Self { token: reader.list(MAX_TOKEN_BYTES)?, request: reader.get()? })
    }
}

/// Reads a range of a chunk.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ReadRequest {
    /// Where.
    pub io: IoHeader,
}
wire_fields!(ReadRequest { io });

/// The data follows as payload, unless the range is a hole.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ReadReply {
    /// The range was never written or is zeroed: no payload, `length` zero bytes.
    pub hole: bool,
    /// Of the payload; `Bytes(0)` for a hole.
    pub checksums: Checksums,
}
wire_fields!(ReadReply { hole, checksums });

/// Asks which blocks of a range of a chunk hold data. Admitted, ordered and answered like a read of that range: by the
/// primary, under its leases, after every overlapping write that was ordered.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct AllocationRequest {
    /// Where.
    pub io: IoHeader,
}
wire_fields!(AllocationRequest { io });

/// 64-bit words of a bit for each block of a chunk.
pub const BLOCK_WORDS: usize = BLOCKS_PER_CHUNK as usize / 64;

/// Which blocks of the range hold data; the others are holes, which read as zeros.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct AllocationReply {
    /// A bit for each block of the chunk, the first the lowest of the first word; of blocks that the range does not touch it
    /// means nothing.
    pub written: [u64; BLOCK_WORDS],
}

impl AllocationReply {
    /// Whether this block of the chunk holds data. Blocks beyond the chunk do: nobody may take them for holes.
    pub fn is_written(&self, block: u32) -> bool {
        self.written.get(block as usize / 64).is_none_or(|word| word >> (block % 64) & 1 == 1)
    }
}

impl Wire for AllocationReply {
    fn encode(&self, out: &mut Vec<u8>) {
        self.written.iter().for_each(|word| word.encode(out));
    }

    fn decode(reader: &mut Reader<'_>) -> Result<Self, CodecError> {
        let mut written = [0; BLOCK_WORDS];
        for word in &mut written {
            *word = reader.get()?;
        }
        Ok(Self { written })
    }
}

/// What a write does.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum WriteKind {
    /// The payload becomes the range's content.
    Data,
    /// The range becomes zeros; space may be freed.
    Zero,
    /// As `Zero`, space may not be freed (NBD's NO_HOLE).
    ZeroNoHole,
    /// The range becomes zeros and its space is freed; whole blocks only.
    Trim,
}
wire_enum!(WriteKind { Data = 1, Zero = 2, ZeroNoHole = 3, Trim = 4 });

/// Writes a range of a chunk.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct WriteRequest {
    /// Where.
    pub io: IoHeader,
    /// The same on every resend (S7).
    pub operation: OperationId,
    /// Every operation of this (SDC, volume) below this was answered; the SDS may forget them.
    pub low_water: OperationId,
    /// What to do.
    pub kind: WriteKind,
    /// Durable before the answer, whatever the pool's policy.
    pub fua: bool,
    /// Of the payload; `Bytes(0)` without one.
    pub checksums: Checksums,
}
wire_fields!(WriteRequest { io, operation, low_water, kind, fua, checksums });

/// The write is durable on every in-sync copy (in memory there, in writeback pools).
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct WriteReply {
    /// Names the memory that holds it in a writeback pool; a FLUSH that finds another has lost it (S14).
    pub volatility: VolatilityId,
    /// The order it was given.
    pub version: Version,
}
wire_fields!(WriteReply { volatility, version });

/// Makes everything acknowledged in one placement group durable (S14).
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct FlushRequest {
    /// The session; chunk, offset and length are zero.
    pub io: IoHeader,
    /// What the acknowledged writes were answered with.
    pub volatility: VolatilityId,
}
wire_fields!(FlushRequest { io, volatility });

/// It is durable.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct FlushReply {
    /// As in the request.
    pub volatility: VolatilityId,
}
wire_fields!(FlushReply { volatility });

/// Why a request was not done. Nothing of it was executed, unless `may_have_run` of the code says so.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum RefusalCode {
    /// Of another cluster: a mix-up of addresses. Fatal to the connection.
    WrongCluster,
    /// Not the device or incarnation asked for. Fatal to the connection.
    WrongTarget,
    /// No common protocol version. Fatal to the connection.
    WrongVersion,
    /// No such session on this connection: open one.
    NoSession,
    /// The token or the MAC is wrong, or a sequence came twice.
    NotAuthentic,
    /// The token has expired or the volume's epoch was raised: get a new token.
    TokenExpired,
    /// The token does not allow this: rights, range or volume.
    NotAllowed,
    /// A newer generation of this SDC and volume is open (S9).
    StaleGeneration,
    /// The request names another epoch than the SDS's; `config` is the SDS's.
    WrongEpoch,
    /// This copy is not the primary; `config` says who is, as far as known.
    NotPrimary,
    /// It is the primary and opens its epoch, waits for a lease, or has no log time yet: retry shortly.
    NotReady,
    /// A bound is reached: retry with back-off.
    Busy,
    /// No space for an ordered write on some copy.
    NoSpace,
    /// The range is outside the chunk or volume, or not block-aligned for a trim.
    BadRange,
    /// Does not decode, or contradicts itself.
    BadRequest,
    /// The payload does not match its checksums; send it again.
    BadChecksum,
    /// A stored block is unreadable on every copy.
    Unreadable,
    /// The process is going down: look for another primary.
    ShuttingDown,
    /// Ordered but the outcome is not known (the primary lost its role meanwhile): resend the same operation.
    OutcomeUnknown,
    /// The export's FLUSH names memory that is gone (S14).
    LostMemory,
    /// The volume is in per-io mode, and the request brought no token of its own (S21).
    NoOperationToken,
}
wire_enum!(RefusalCode {
    WrongCluster = 1,
    WrongTarget = 2,
    WrongVersion = 3,
    NoSession = 4,
    NotAuthentic = 5,
    TokenExpired = 6,
    NotAllowed = 7,
    StaleGeneration = 8,
    WrongEpoch = 9,
    NotPrimary = 10,
    NotReady = 11,
    Busy = 12,
    NoSpace = 13,
    BadRange = 14,
    BadRequest = 15,
    BadChecksum = 16,
    Unreadable = 17,
    ShuttingDown = 18,
    OutcomeUnknown = 19,
    LostMemory = 20,
    NoOperationToken = 21,
});

impl RefusalCode {
    /// Whether a write answered so may still have been, or come to be, executed.
    pub const fn may_have_run(self) -> bool {
        matches!(self, Self::OutcomeUnknown)
    }
}

/// A request was refused.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Refusal {
    /// Why, for programs.
    pub code: RefusalCode,
    /// The right configuration where the request named a wrong one.
    pub config: Option<PgConfig>,
    /// Why, for people.
    pub why: String,
}
wire_fields!(Refusal { code, config, why });

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checksums_follow_alignment() {
        let data = vec![7_u8; 8192];
        assert!(matches!(Checksums::of(4096, &data), Checksums::Blocks(b) if b.len() == 2));
        assert!(matches!(Checksums::of(1, &data), Checksums::Bytes(_)));
        for offset in [0, 1] {
            let sums = Checksums::of(offset, &data);
            assert!(sums.verify(offset, &data));
            let mut bad = data.clone();
            bad[5000] ^= 1;
            assert!(!sums.verify(offset, &bad));
            assert!(!sums.verify(offset, &data[..4096]));
        }
    }

    #[test]
    fn ranges_stay_inside_their_chunk() {
        let io = |offset, length| IoHeader {
            session: SessionId(1),
            session_sequence: 1,
            volume: VolumeId(1),
            pg: PgId::default(),
            epoch: Epoch(1),
            chunk: ChunkId::default(),
            offset,
            length,
        };
        assert!(io(0, CHUNK_SIZE).range_is_valid());
        assert!(io(CHUNK_SIZE - 1, 1).range_is_valid());
        for (offset, length) in [(0, 0), (1, CHUNK_SIZE), (CHUNK_SIZE, 1), (u32::MAX, 1), (1, u32::MAX)] {
            assert!(!io(offset, length).range_is_valid(), "{offset}+{length}");
        }
    }

    #[test]
    fn an_allocation_reply_travels_and_tells_each_block() {
        let mut reply = AllocationReply { written: [0; BLOCK_WORDS] };
        reply.written[1] = 1 << 3;
        let back = AllocationReply::from_bytes(&reply.to_bytes()).unwrap();
        assert_eq!(back, reply);
        let written: Vec<_> = (0..BLOCKS_PER_CHUNK).filter(|block| back.is_written(*block)).collect();
        assert_eq!(written, [67]);
        assert!(back.is_written(BLOCKS_PER_CHUNK), "beyond the chunk is never a hole");
    }

    #[test]
    fn a_refusal_travels_with_its_configuration() {
        let config = PgConfig {
            pg: PgId::default(),
            epoch: Epoch(4),
            primary: Some(DeviceId(2)),
            in_sync: vec![Member { device: DeviceId(2), sds: crate::ids::SdsId(1), incarnation: Incarnation(3) }],
            replicas: vec![DeviceId(2), DeviceId(5)],
            volatility: VolatilityId(1),
            forced: false,
            to_activate: true,
        };
        let refusal = Refusal { code: RefusalCode::WrongEpoch, config: Some(config), why: "epoch 3 is over".into() };
        assert_eq!(Refusal::from_bytes(&refusal.to_bytes()), Ok(refusal));
    }
}
