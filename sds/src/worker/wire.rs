//! Messages of the replication core and leases as frames (version: `FRAME_VERSION` of the envelope).
//!
//! The body is the message with each piece of data as its length and block checksums; the bytes themselves are the
//! frame's payload, one piece after the other. Integers are little-endian, lists and enums as in `pflex_proto::codec`.

use bytes::Bytes;
use pflex_proto::{
    codec::{CodecError, Reader, Wire},
    geometry::BLOCKS_PER_CHUNK,
    ids::{Epoch, Member, OperationId, PgId},
};

use crate::{
    payload::Payload,
    replication::{
        BlockRun, BlockSums, Body, ChunkEntry, ChunkImage, ClientKey, Extent, LeaseGrant, LeaseRequest, Message,
        OperationEntry, OperationSnapshot, OrderedWrite, Round, Time, VerifiedChunk, WriteKind, limits,
    },
};

/// Operation records in one message: every client of a group may have as many as the core allows, and a body is 4 MiB.
const MAX_OPERATIONS: usize = 64 << 10;

/// Writes bodies and gathers payloads.
struct Encoder<'a> {
    out: &'a mut Vec<u8>,
    pieces: Vec<Bytes>,
}

/// The body of a message; returns the payload. One piece is not copied.
pub(super) fn encode(message: &Message<Payload>, out: &mut Vec<u8>) -> Bytes {
    let mut encoder = Encoder { out, pieces: Vec::new() };
    encoder.message(message);
    match encoder.pieces.as_slice() {
        [] => Bytes::new(),
        [only] => only.clone(),
        many => Bytes::from(many.concat()),
    }
}

impl Encoder<'_> {
    fn put(&mut self, value: &impl Wire) -> &mut Self {
        value.encode(self.out);
        self
    }

    fn message(&mut self, message: &Message<Payload>) {
        self.put(&message.from).put(&message.to).put(&message.pg).put(&message.epoch);
        match &message.body {
            Body::Write { round, previous, committed, write } => {
                self.put(&1_u8).put(&round.0).put(previous).put(committed).write(write)
            }
            Body::WriteAck { round, through } => self.put(&2_u8).put(&round.0).put(through),
            Body::Durable { round, through } => self.put(&30_u8).put(&round.0).put(through),
            Body::Gap { round, after } => self.put(&3_u8).put(&round.0).put(after),
            Body::CannotApply => self.put(&4_u8),
            Body::Committed { round, through } => self.put(&5_u8).put(&round.0).put(through),
            Body::Collect { round } => self.put(&6_u8).put(&round.0),
            Body::JoinStart { round } => self.put(&7_u8).put(&round.0),
            Body::VersionList { round, highest, watermark, entries, more } => {
                self.put(&8_u8).put(&round.0).put(highest).put(watermark).put(more);
                self.list(entries, |encoder, entry| _ = encoder.put(&entry.chunk).put(&entry.version))
            }
            Body::SumsRequest { round, chunk } => self.put(&9_u8).put(&round.0).put(chunk),
            Body::Sums { round, chunk, sums } => self.put(&10_u8).put(&round.0).put(chunk).put(&sums.0),
            Body::Fix { round, chunk, image, operations } => {
                self.put(&11_u8).put(&round.0).put(chunk).image(image);
                self.list(operations, Self::operation)
            }
            Body::Fixed { round, chunk } => self.put(&12_u8).put(&round.0).put(chunk),
            Body::Open { round, last, operations } => self.put(&13_u8).put(&round.0).put(last).operations(operations),
            Body::Opened { round } => self.put(&14_u8).put(&round.0),
            Body::SyncChunk { round, chunk, image } => self.put(&15_u8).put(&round.0).put(chunk).image(image),
            Body::ChunkSynced { round, chunk } => self.put(&16_u8).put(&round.0).put(chunk),
            Body::JoinEnd { round, last, watermark, operations } => {
                self.put(&17_u8).put(&round.0).put(last).put(watermark).operations(operations)
            }
            Body::JoinReady { round } => self.put(&18_u8).put(&round.0),
            Body::Reserve { round, chunk } => self.put(&19_u8).put(&round.0).put(chunk),
            Body::Reserved { round, chunk, granted } => self.put(&20_u8).put(&round.0).put(chunk).put(granted),
            Body::Refused => self.put(&21_u8),
            Body::ChunkRefused { round, chunk } => self.put(&23_u8).put(&round.0).put(chunk),
            Body::NoSpace => self.put(&24_u8),
            Body::HandBack => self.put(&22_u8),
            Body::FetchBlocks { round, chunk, extent } => {
                self.put(&25_u8).put(&round.0).put(chunk).put(&extent.offset).put(&extent.length)
            }
            Body::Unreserve { round, chunk } => self.put(&27_u8).put(&round.0).put(chunk),
            Body::Verify { round, scrub, chunk } => self.put(&28_u8).put(&round.0).put(&scrub.0).put(chunk),
            Body::Verified { round, scrub, chunk, verified } => {
                let VerifiedChunk { version, sums, bad } = verified;
                self.put(&29_u8).put(&round.0).put(&scrub.0).put(chunk).put(version).put(&sums.0).put(bad)
            }
            Body::Blocks { round, chunk, extent, version, data } => {
                self.put(&26_u8).put(&round.0).put(chunk).put(&extent.offset).put(&extent.length).put(version);
                self.data(data.as_ref());
                self
            }
        };
    }

    fn list<T>(&mut self, items: &[T], encode: impl Fn(&mut Self, &T)) -> &mut Self {
        self.put(&u32::try_from(items.len()).expect("no list of ours nears 2^32 elements"));
        for item in items {
            encode(self, item);
        }
        self
    }

    fn payload(&mut self, payload: &Payload) {
        let length = u32::try_from(payload.data.len()).expect("a payload is one chunk at most");
        self.put(&length).put(&payload.checksums.to_vec());
        self.pieces.push(payload.data.clone());
    }

    fn data(&mut self, data: Option<&Payload>) {
        self.put(&data.is_some());
        if let Some(payload) = data {
            self.payload(payload);
        }
    }

    fn write(&mut self, write: &OrderedWrite<Payload>) -> &mut Self {
        self.put(&write.version).put(&write.chunk).put(&write.extent.offset).put(&write.extent.length);
        self.put(&write.client.sdc).put(&write.client.volume).put(&write.operation).put(&write.low_water);
        match &write.kind {
            WriteKind::Data(payload) => self.data(Some(payload)),
            WriteKind::Zeroes => self.data(None),
        }
        self
    }

    fn image(&mut self, image: &ChunkImage<Payload>) -> &mut Self {
        self.put(&image.version);
        self.list(&image.runs, |encoder, run| {
            encoder.put(&run.first_block).put(&run.blocks).data(run.data.as_ref());
        })
    }

    fn operation(&mut self, entry: &OperationEntry) {
        self.put(&entry.client.sdc).put(&entry.client.volume);
        self.put(&entry.operation).put(&entry.version).put(&entry.chunk);
    }

    fn operations(&mut self, operations: &OperationSnapshot) -> &mut Self {
        self.list(&operations.entries, Self::operation);
        self.list(&operations.low_waters, |encoder, (client, low)| {
            encoder.put(&client.sdc).put(&client.volume).put(low);
        })
    }
}

/// Reads bodies and takes payloads.
struct Decoder<'a> {
    body: Reader<'a>,
    payload: Bytes,
}

/// The message of a frame.
///
/// # Errors
/// When body and payload are not one.
pub(super) fn decode(body: &[u8], payload: Bytes) -> Result<Message<Payload>, CodecError> {
    let mut decoder = Decoder { body: Reader::new(body), payload };
    let message = decoder.message()?;
    decoder.body.finish()?;
    match decoder.payload.len() {
        0 => Ok(message),
        extra => Err(CodecError::TrailingBytes { extra }),
    }
}

impl Decoder<'_> {
    fn get<T: Wire>(&mut self) -> Result<T, CodecError> {
        self.body.get()
    }

    fn round(&mut self) -> Result<Round, CodecError> {
        self.get().map(Round)
    }

    fn message(&mut self) -> Result<Message<Payload>, CodecError> {
        let (from, to, pg, epoch): (Member, Member, PgId, Epoch) = (self.get()?, self.get()?, self.get()?, self.get()?);
        let body = match self.get::<u8>()? {
            1 => Body::Write {
                round: self.round()?,
                previous: self.get()?,
                committed: self.get()?,
                write: self.write()?,
            },
            2 => Body::WriteAck { round: self.round()?, through: self.get()? },
            30 => Body::Durable { round: self.round()?, through: self.get()? },
            3 => Body::Gap { round: self.round()?, after: self.get()? },
            4 => Body::CannotApply,
            5 => Body::Committed { round: self.round()?, through: self.get()? },
            6 => Body::Collect { round: self.round()? },
            7 => Body::JoinStart { round: self.round()? },
            8 => {
                let (round, highest, watermark, more) = (self.round()?, self.get()?, self.get()?, self.get()?);
                let entries = self.list(limits::LIST_PAGE, |decoder| {
                    Ok(ChunkEntry { chunk: decoder.get()?, version: decoder.get()? })
                })?;
                Body::VersionList { round, highest, watermark, entries, more }
            }
            9 => Body::SumsRequest { round: self.round()?, chunk: self.get()? },
            10 => Body::Sums {
                round: self.round()?,
                chunk: self.get()?,
                sums: BlockSums(self.body.list(BLOCKS_PER_CHUNK as usize)?),
            },
            11 => Body::Fix {
                round: self.round()?,
                chunk: self.get()?,
                image: self.image()?,
                operations: self.list(MAX_OPERATIONS, Self::operation)?,
            },
            12 => Body::Fixed { round: self.round()?, chunk: self.get()? },
            13 => Body::Open { round: self.round()?, last: self.get()?, operations: self.operations()? },
            14 => Body::Opened { round: self.round()? },
            15 => Body::SyncChunk { round: self.round()?, chunk: self.get()?, image: self.image()? },
            16 => Body::ChunkSynced { round: self.round()?, chunk: self.get()? },
            17 => Body::JoinEnd {
                round: self.round()?,
                last: self.get()?,
                watermark: self.get()?,
                operations: self.operations()?,
            },
            18 => Body::JoinReady { round: self.round()? },
            19 => Body::Reserve { round: self.round()?, chunk: self.get()? },
            20 => Body::Reserved { round: self.round()?, chunk: self.get()?, granted: self.get()? },
            21 => Body::Refused,
            23 => Body::ChunkRefused { round: self.round()?, chunk: self.get()? },
            24 => Body::NoSpace,
            22 => Body::HandBack,
            25 => Body::FetchBlocks { round: self.round()?, chunk: self.get()?, extent: self.extent()? },
            26 => Body::Blocks {
                round: self.round()?,
                chunk: self.get()?,
                extent: self.extent()?,
                version: self.get()?,
                data: self.data()?,
            },
            27 => Body::Unreserve { round: self.round()?, chunk: self.get()? },
            28 => Body::Verify { round: self.round()?, scrub: self.round()?, chunk: self.get()? },
            29 => Body::Verified {
                round: self.round()?,
                scrub: self.round()?,
                chunk: self.get()?,
                verified: VerifiedChunk {
                    version: self.get()?,
                    sums: BlockSums(self.body.list(BLOCKS_PER_CHUNK as usize)?),
                    bad: self.body.list(BLOCKS_PER_CHUNK as usize)?,
                },
            },
            other => return Err(CodecError::BadTag { what: "replication message", value: other.into() }),
        };
        Ok(Message { from, to, pg, epoch, body })
    }

    fn extent(&mut self) -> Result<Extent, CodecError> {
        Ok(Extent { offset: self.get()?, length: self.get()? })
    }

    fn list<T>(
        &mut self,
        limit: usize,
        decode: impl Fn(&mut Self) -> Result<T, CodecError>,
    ) -> Result<Vec<T>, CodecError> {
        let count = self.get::<u32>()? as usize;
        if count > limit {
            return Err(CodecError::TooLong { count, limit });
        }
        // Grows as items really come: a count may lie.
        (0..count).map(|_| decode(self)).collect()
    }

    fn data(&mut self) -> Result<Option<Payload>, CodecError> {
        if !self.get::<bool>()? {
            return Ok(None);
        }
        let length = self.get::<u32>()? as usize;
        let checksums: Vec<u32> = self.body.list(BLOCKS_PER_CHUNK as usize)?;
        if length > self.payload.len() {
            return Err(CodecError::Truncated { at: self.payload.len(), missing: length - self.payload.len() });
        }
        Ok(Some(Payload::verified(self.payload.split_to(length), checksums)))
    }

    fn write(&mut self) -> Result<OrderedWrite<Payload>, CodecError> {
        let (version, chunk) = (self.get()?, self.get()?);
        let extent = self.extent()?;
        let client = ClientKey { sdc: self.get()?, volume: self.get()? };
        let (operation, low_water): (OperationId, OperationId) = (self.get()?, self.get()?);
        let kind = self.data()?.map_or(WriteKind::Zeroes, WriteKind::Data);
        Ok(OrderedWrite { version, chunk, extent, kind, client, operation, low_water })
    }

    fn image(&mut self) -> Result<ChunkImage<Payload>, CodecError> {
        let version = self.get()?;
        let runs = self.list(BLOCKS_PER_CHUNK as usize, |decoder| {
            Ok(BlockRun { first_block: decoder.get()?, blocks: decoder.get()?, data: decoder.data()? })
        })?;
        Ok(ChunkImage { version, runs })
    }

    fn operation(&mut self) -> Result<OperationEntry, CodecError> {
        let client = ClientKey { sdc: self.get()?, volume: self.get()? };
        Ok(OperationEntry { client, operation: self.get()?, version: self.get()?, chunk: self.get()? })
    }

    fn operations(&mut self) -> Result<OperationSnapshot, CodecError> {
        let entries = self.list(MAX_OPERATIONS, Self::operation)?;
        let low_waters = self.list(MAX_OPERATIONS, |decoder| {
            let client = ClientKey { sdc: decoder.get()?, volume: decoder.get()? };
            Ok((client, decoder.get()?))
        })?;
        Ok(OperationSnapshot { entries, low_waters })
    }
}

/// The data pieces of a message.
pub(super) fn payloads(message: &Message<Payload>) -> Vec<&Payload> {
    match &message.body {
        Body::Write { write: OrderedWrite { kind: WriteKind::Data(payload), .. }, .. } => vec![payload],
        Body::Blocks { data: Some(payload), .. } => vec![payload],
        Body::Fix { image, .. } | Body::SyncChunk { image, .. } => {
            let ChunkImage { runs, .. } = image;
            runs.iter().filter_map(|run| run.data.as_ref()).collect()
        }
        _ => Vec::new(),
    }
}

/// What goes over a lease link.
#[derive(Debug)]
pub(super) enum LeaseMessage {
    Request(LeaseRequest),
    Grant(LeaseGrant),
}

impl Wire for LeaseMessage {
    fn encode(&self, out: &mut Vec<u8>) {
        match self {
            Self::Request(LeaseRequest { from, to, asked_at }) => {
                out.push(1);
                from.encode(out);
                to.encode(out);
                asked_at.0.encode(out);
            }
            Self::Grant(LeaseGrant { from, to, asked_at, epochs }) => {
                out.push(2);
                from.encode(out);
                to.encode(out);
                asked_at.0.encode(out);
                u32::try_from(epochs.len()).expect("a device has far fewer groups").encode(out);
                for (pg, epoch) in epochs {
                    pg.encode(out);
                    epoch.encode(out);
                }
            }
        }
    }

    fn decode(reader: &mut Reader<'_>) -> Result<Self, CodecError> {
        let tag = reader.get::<u8>()?;
        let (from, to, asked_at) = (reader.get()?, reader.get()?, Time(reader.get()?));
        match tag {
            1 => Ok(Self::Request(LeaseRequest { from, to, asked_at })),
            2 => {
                let count = reader.get::<u32>()?;
                let epochs = (0..count).map(|_| Ok((reader.get()?, reader.get()?))).collect::<Result<_, _>>()?;
                Ok(Self::Grant(LeaseGrant { from, to, asked_at, epochs }))
            }
            other => Err(CodecError::BadTag { what: "lease message", value: other.into() }),
        }
    }
}

#[cfg(test)]
mod tests {
    use pflex_proto::ids::{ChunkId, DeviceId, Incarnation, SdcId, SdsId, Sequence, Version, VolumeId};
    use proptest::prelude::*;

    use super::*;

    fn member(n: u32) -> Member {
        Member { device: DeviceId(n), sds: SdsId(n), incarnation: Incarnation(7) }
    }

    fn data(blocks: usize, fill: u8) -> Payload {
        Payload::computed(Bytes::from(vec![fill; blocks * 4096]))
    }

    fn operations() -> Vec<OperationEntry> {
        let client = ClientKey { sdc: SdcId(1), volume: VolumeId(2) };
        let version = Version { epoch: Epoch(3), sequence: Sequence(4) };
        vec![OperationEntry { client, operation: OperationId(9), version, chunk: ChunkId::default() }]
    }

    fn bodies() -> Vec<Body<Payload>> {
        let (round, chunk) = (Round(5), ChunkId::default());
        let version = Version { epoch: Epoch(3), sequence: Sequence(4) };
        let client = ClientKey { sdc: SdcId(1), volume: VolumeId(2) };
        let snapshot = OperationSnapshot { entries: operations(), low_waters: vec![(client, OperationId(8))] };
        let run = |first_block, data| BlockRun { first_block, blocks: 2, data };
        let image = ChunkImage {
            version: Some(version),
            runs: vec![run(0, Some(data(2, 1))), run(9, None), run(100, Some(data(2, 3)))],
        };
        let write = |kind| OrderedWrite {
            version,
            chunk,
            extent: Extent { offset: 4096, length: 8192 },
            kind,
            client,
            operation: OperationId(9),
            low_water: OperationId(8),
        };
        let seq = Sequence(11);
        let ordered = |kind| Body::Write { round, previous: seq, committed: seq, write: write(kind) };
        vec![
            ordered(WriteKind::Data(data(2, 5))),
            ordered(WriteKind::Zeroes),
            Body::WriteAck { round, through: seq },
            Body::Durable { round, through: seq },
            Body::Gap { round, after: seq },
            Body::CannotApply,
            Body::Committed { round, through: seq },
            Body::Collect { round },
            Body::JoinStart { round },
            Body::VersionList {
                round,
                highest: seq,
                watermark: seq,
                entries: vec![ChunkEntry { chunk, version: None }, ChunkEntry { chunk, version: Some(version) }],
                more: true,
            },
            Body::SumsRequest { round, chunk },
            Body::Sums { round, chunk, sums: BlockSums(vec![1, 2, 3]) },
            Body::Fix { round, chunk, image: image.clone(), operations: operations() },
            Body::Fixed { round, chunk },
            Body::Open { round, last: seq, operations: snapshot.clone() },
            Body::Opened { round },
            Body::SyncChunk { round, chunk, image },
            Body::ChunkSynced { round, chunk },
            Body::JoinEnd { round, last: seq, watermark: seq, operations: snapshot },
            Body::JoinReady { round },
            Body::Reserve { round, chunk },
            Body::Reserved { round, chunk, granted: true },
            Body::Unreserve { round, chunk },
            Body::Verify { round, scrub: Round(5), chunk },
            Body::Verified {
                round,
                scrub: Round(5),
                chunk,
                verified: VerifiedChunk { version: Some(version), sums: BlockSums(vec![1, 2]), bad: vec![0, 255] },
            },
            Body::ChunkRefused { round, chunk },
            Body::NoSpace,
            Body::Refused,
            Body::HandBack,
            Body::FetchBlocks { round, chunk, extent: Extent::block(9) },
            Body::Blocks { round, chunk, extent: Extent::block(9), version: Some(version), data: Some(data(1, 5)) },
            Body::Blocks { round, chunk, extent: Extent::block(9), version: None, data: None },
        ]
    }

    #[test]
    fn every_message_arrives_as_sent_and_no_prefix_of_it_is_a_message() {
        for body in bodies() {
            let message = Message { from: member(1), to: member(2), pg: PgId::default(), epoch: Epoch(3), body };
            let mut bytes = Vec::new();
            let payload = encode(&message, &mut bytes);
            assert_eq!(decode(&bytes, payload.clone()), Ok(message.clone()));
            for cut in 0..bytes.len() {
                assert!(decode(&bytes[..cut], payload.clone()).is_err(), "{message:?} cut to {cut}");
            }
            if !payload.is_empty() {
                assert!(decode(&bytes, payload.slice(1..)).is_err(), "payload cut");
            }
        }
    }

    #[test]
    fn leases_arrive_as_sent() {
        let request = LeaseRequest { from: member(1), to: member(2), asked_at: Time(5) };
        let bytes = LeaseMessage::Request(request).to_bytes();
        assert!(matches!(LeaseMessage::from_bytes(&bytes), Ok(LeaseMessage::Request(found)) if found == request));
        let epochs = vec![(PgId::default(), Epoch(4))];
        let grant = LeaseGrant { from: member(2), to: member(1), asked_at: Time(5), epochs };
        let bytes = LeaseMessage::Grant(grant.clone()).to_bytes();
        assert!(matches!(LeaseMessage::from_bytes(&bytes), Ok(LeaseMessage::Grant(found)) if found == grant));
    }

    proptest! {
        #[test]
        fn garbage_never_panics(bytes: Vec<u8>, payload: Vec<u8>) {
            let _ = decode(&bytes, payload.into());
            let _ = LeaseMessage::from_bytes(&bytes);
        }

        #[test]
        fn damaged_messages_never_panic(which in 0..31_usize, at: prop::sample::Index, value: u8) {
            let body = bodies().swap_remove(which);
            let message = Message { from: member(1), to: member(2), pg: PgId::default(), epoch: Epoch(3), body };
            let mut bytes = Vec::new();
            let payload = encode(&message, &mut bytes);
            let place = at.index(bytes.len());
            bytes[place] = value;
            let _ = decode(&bytes, payload);
        }
    }
}
