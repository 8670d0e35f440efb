//! Clients: greeting, sessions, requests, answers.

use bytes::Bytes;
use pflex_common::{clock::MonotonicTime, frames::Frame};
use pflex_proto::{
    codec::Wire,
    data::{
        AllocationReply, AllocationRequest, Checksums, FlushReply, FlushRequest, HelloReply, IoHeader, OpenSession,
        PROTOCOL_VERSION, Peer, ReadReply, ReadRequest, Refusal, RefusalCode, SessionOpened, WithToken, WriteKind,
        WriteReply, WriteRequest,
    },
    frame::FrameKind,
    geometry::BLOCK_SIZE,
    ids::{ChunkId, LogTime, OperationId, PgId, ProcessId, SdcId},
    pb::TokenUse,
    token,
};
use tokio::net::TcpStream;

use super::{
    command::{Accepted, Report},
    effects::copied_if_small,
    pending::{Asks, Pending},
    worker::{MOST_USES, Party, Worker},
};
use crate::{
    admission::{Authority, ConnectionId, Flaw, Heard, Intent, Refused, Source, Surroundings},
    payload::Payload,
    replication::{self, ClientFlush, ClientKey, ClientRead, ClientWrite, Event, Extent, Outcome, RequestId},
    store,
};

impl Worker {
    /// Answers a greeting, and takes the connection into service if nothing is wrong with it.
    pub(super) fn on_accepted(&mut self, accepted: Accepted) {
        let Accepted { stream, hello, request_id, leftover } = accepted;
        let stream = match TcpStream::from_std(stream) {
            Ok(stream) => stream,
            Err(error) => return tracing::warn!(%error, "a connection was lost on its way to the data thread"),
        };
        let wrong = if hello.cluster != self.cluster {
            Some((RefusalCode::WrongCluster, format!("this device belongs to cluster {}", self.cluster)))
        } else if hello.oldest > PROTOCOL_VERSION || hello.newest < PROTOCOL_VERSION {
            Some((RefusalCode::WrongVersion, format!("this server speaks data protocol {PROTOCOL_VERSION}")))
        } else if let Peer::Replication(member) | Peer::Lease(member) = hello.peer {
            self.welcome(member).err().map(|why| (RefusalCode::NotReady, why))
        } else {
            None
        };
        let party = match hello.peer {
            Peer::Sdc { sdc, process } => Party::Sdc { sdc, process },
            Peer::Replication(member) => Party::Replication(member),
            Peer::Lease(member) => Party::Lease(member),
        };
        if let Some((code, why)) = wrong {
            // Not registered under its party: nothing of it may count.
            let nobody = Party::Sdc { sdc: SdcId(0), process: ProcessId::default() };
            let id = self.register(nobody, stream, leftover, None);
            self.refuse(id, request_id, code, why, None);
            return;
        }
        let id = self.register(party, stream, leftover, None);
        let reply = HelloReply { version: PROTOCOL_VERSION, incarnation: self.own.incarnation };
        self.push(id, FrameKind::HelloReply, request_id, &reply, Bytes::new());
    }

    pub(super) fn on_client_frame(&mut self, id: ConnectionId, sdc: SdcId, process: ProcessId, frame: Frame) {
        let request_id = frame.header.request_id;
        let outcome = match frame.header.kind {
            FrameKind::OpenSession => self.on_open(id, sdc, process, &frame),
            FrameKind::Read | FrameKind::ReadWithToken => self.on_read(id, &frame),
            FrameKind::Allocation | FrameKind::AllocationWithToken => self.on_allocation(id, &frame),
            FrameKind::Write | FrameKind::WriteWithToken => self.on_write(id, frame),
            FrameKind::Flush => self.on_flush(id, &frame),
            FrameKind::Hello
            | FrameKind::HelloReply
            | FrameKind::SessionOpened
            | FrameKind::ReadReply
            | FrameKind::AllocationReply
            | FrameKind::WriteReply
            | FrameKind::FlushReply
            | FrameKind::Refusal
            | FrameKind::Replication
            | FrameKind::Lease => {
                tracing::warn!(%sdc, kind = ?frame.header.kind, "a client sent a frame that is not a client's; closing");
                return self.close(id);
            }
        };
        if let Err(Refused { code, why, flaw }) = outcome {
            if let Some(flaw) = flaw {
                let address = self.connections.get(&id).and_then(|connection| connection.address);
                self.bad_tokens.note(address.map(|address| Source { sdc, address }), flaw);
                self.counters.bad_tokens.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            }
            self.refuse(id, request_id, code, why, None);
        }
    }

    fn on_open(&mut self, id: ConnectionId, sdc: SdcId, process: ProcessId, frame: &Frame) -> Result<(), Refused> {
        let request: OpenSession = frame.message().map_err(malformed)?;
        let nonce: [u8; 16] = rand::random();
        let heard = Heard::of(&self.log_time, MonotonicTime::now());
        let now = Surroundings { map: &self.map, heard };
        let opened = self.sessions.open(id, (sdc, process), &request, &nonce, now).inspect_err(|refused| {
            let Refused { code, why, .. } = refused;
            tracing::debug!(%sdc, volume = %request.volume, ?code, why, "session refused");
            self.ask_for_keys(refused);
        })?;
        if let Some((sdc, volume)) = opened.retires {
            // S9: what older generations queued is ordered by now or discarded before this is answered.
            let older = self.pending.matching(|pending| (pending.sdc, pending.volume) == (sdc, volume));
            self.cancel(older);
            self.decide();
        }
        let reply = SessionOpened { session: opened.session, nonce, log_time: heard.map_or(LogTime(0), Heard::now) };
        self.push(id, FrameKind::SessionOpened, frame.header.request_id, &reply, Bytes::new());
        Ok(())
    }

    /// Discards requests that are not ordered yet.
    pub(super) fn cancel(&mut self, requests: Vec<(RequestId, PgId)>) {
        self.events.extend(requests.into_iter().map(|(request, pg)| (pg, Event::Cancel { request })));
    }

    fn on_read(&mut self, id: ConnectionId, frame: &Frame) -> Result<(), Refused> {
        let (ReadRequest { io }, token) = unsealed(frame)?;
        self.begin_read(id, frame, (&io, token), Asks::Read)
    }

    fn on_allocation(&mut self, id: ConnectionId, frame: &Frame) -> Result<(), Refused> {
        let (AllocationRequest { io }, token) = unsealed(frame)?;
        self.begin_read(id, frame, (&io, token), Asks::Allocation)
    }

    fn begin_read(
        &mut self,
        id: ConnectionId,
        frame: &Frame,
        (io, token): (&IoHeader, Option<Vec<u8>>),
        asks: Asks,
    ) -> Result<(), Refused> {
        let brings = token.as_deref().map(|token| (token, OperationId(0)));
        let admitted = self.admit(id, io, Intent::Read, brings, frame)?;
        let request = self.pend(id, admitted, io, (asks, None), frame.header.request_id);
        let read = ClientRead { request, epoch: io.epoch, chunk: io.chunk, extent: extent(io) };
        self.ask(io.pg, request, Event::Read(read));
        Ok(())
    }

    fn on_write(&mut self, id: ConnectionId, frame: Frame) -> Result<(), Refused> {
        let (write, token): (WriteRequest, _) = unsealed(&frame)?;
        let io = write.io;
        let brings = token.as_deref().map(|token| (token, write.operation));
        let (sdc, authority) = self.admit(id, &io, Intent::Write, brings, &frame)?;
        let whole_blocks = io.offset.is_multiple_of(BLOCK_SIZE) && io.length.is_multiple_of(BLOCK_SIZE);
        let kind = match write.kind {
            WriteKind::Data => {
                if frame.payload.len() != io.length as usize {
                    return Err((RefusalCode::BadRequest, "the payload is not as long as the range".into()).into());
                }
                if !write.checksums.verify(io.offset, &frame.payload) {
                    return Err((RefusalCode::BadChecksum, "the data was damaged on the way".into()).into());
                }
                let data = copied_if_small(&frame.payload);
                let blocks = match write.checksums {
                    Checksums::Blocks(blocks) => blocks,
                    Checksums::Bytes(_) if whole_blocks => Payload::computed(data.clone()).checksums.to_vec(),
                    Checksums::Bytes(_) => Vec::new(),
                };
                replication::WriteKind::Data(Payload::verified(data, blocks))
            }
            WriteKind::Trim if !whole_blocks => {
                return Err((RefusalCode::BadRange, "a trim is of whole 4 KiB blocks".into()).into());
            }
            WriteKind::Trim | WriteKind::Zero if whole_blocks => replication::WriteKind::Zeroes,
            // Written like any bytes, so that their space is there for what comes later.
            WriteKind::ZeroNoHole if whole_blocks => {
                let zeros = Bytes::from(vec![0; io.length as usize]);
                let sums = store::zero_checksums((io.length / BLOCK_SIZE) as usize);
                replication::WriteKind::Data(Payload::verified(zeros, sums))
            }
            // Edges that share a block with other data are merged like any bytes (S15).
            WriteKind::Trim | WriteKind::Zero | WriteKind::ZeroNoHole => {
                replication::WriteKind::Data(Payload::verified(Bytes::from(vec![0; io.length as usize]), []))
            }
        };
        let needs_space = matches!(kind, replication::WriteKind::Data(_));
        // S4: space here is set aside before the core orders anything; it does the same at the other copies.
        let serves = self.slots.get(&io.pg).is_some_and(|slot| slot.core.is_serving());
        let creates_chunk = needs_space && serves && !self.store.has_unit(io.chunk);
        if creates_chunk
            && !self.store.reserve(io.pg, io.chunk, self.resync.spare_units(self.store.stats().units_total))
        {
            let spare = self.spare_units();
            let why = format!("device {} has no space for another chunk; {spare} MiB are kept spare", self.own.device);
            return Err((RefusalCode::NoSpace, why).into());
        }
        let creates = creates_chunk.then_some(io.chunk);
        let request = self.pend(id, (sdc, authority), &io, (Asks::Write, creates), frame.header.request_id);
        let write = ClientWrite {
            request,
            epoch: io.epoch,
            client: ClientKey { sdc, volume: io.volume },
            operation: write.operation,
            low_water: write.low_water,
            chunk: io.chunk,
            extent: extent(&io),
            merge: needs_space && !whole_blocks,
            kind,
            creates_chunk,
            fua: write.fua,
        };
        self.ask(io.pg, request, Event::Write(write));
        Ok(())
    }

    /// In a `sync` pool whatever was acknowledged is durable already, whatever the volatility id is (S14).
    fn on_flush(&mut self, id: ConnectionId, frame: &Frame) -> Result<(), Refused> {
        let request: FlushRequest = token::unsealed(&frame.body).map_err(malformed)?;
        let io = &request.io;
        let admitted = self.admit(id, io, Intent::Flush, None, frame)?;
        if self.map.pools.get(&io.pg.pool).is_none_or(|pool| pool.writeback) {
            let pended = self.pend(id, admitted, io, (Asks::Flush, None), frame.header.request_id);
            let flush = ClientFlush { request: pended, epoch: io.epoch, volatility: request.volatility };
            self.ask(io.pg, pended, Event::Flush(flush));
            return Ok(());
        }
        let reply = FlushReply { volatility: request.volatility };
        self.push(id, FrameKind::FlushReply, frame.header.request_id, &reply, Bytes::new());
        Ok(())
    }

    fn admit(
        &mut self,
        id: ConnectionId,
        io: &IoHeader,
        intent: Intent,
        brings: Option<(&[u8], OperationId)>,
        frame: &Frame,
    ) -> Result<(SdcId, Authority), Refused> {
        let now = Surroundings { map: &self.map, heard: Heard::of(&self.log_time, MonotonicTime::now()) };
        let admitted = self.sessions.admit(id, io, intent, brings, |key| frame.opens(key), now);
        admitted.inspect_err(|refused| self.ask_for_keys(refused))
    }

    /// A token under a key that was made since the last ones came (S21).
    fn ask_for_keys(&self, refused: &Refused) {
        if refused.flaw == Some(Flaw::UnknownKey) {
            // A full queue means that others said so already.
            drop(self.reports.try_send(Report::UnknownKey));
        }
    }

    fn pend(
        &mut self,
        connection: ConnectionId,
        (sdc, authority): (SdcId, Authority),
        io: &IoHeader,
        (asks, creates): (Asks, Option<ChunkId>),
        frame_request: u64,
    ) -> RequestId {
        self.pending.add(Pending {
            connection,
            frame_request,
            sdc,
            volume: io.volume,
            pg: io.pg,
            extent: extent(io),
            asks,
            since: MonotonicTime::now(),
            creates,
            authority,
        })
    }

    fn ask(&mut self, pg: PgId, request: RequestId, event: Event<Payload>) {
        if self.slots.contains_key(&pg) {
            self.events.push_back((pg, event));
        } else {
            let epoch = self.map.pgs.get(&pg).map(|config| config.epoch).unwrap_or_default();
            self.answer(request, Outcome::Refused(replication::Refusal::NotPrimary { epoch }));
        }
    }

    /// The core's answer to a client.
    pub(super) fn answer(&mut self, request: RequestId, outcome: Outcome<Payload>) {
        let Some(pending) = self.pending.remove(request) else { return };
        let (id, request_id) = (pending.connection, pending.frame_request);
        if let Some(chunk) = pending.creates.filter(|chunk| !self.pending.creates(pending.pg, *chunk)) {
            // Used up if the write was ordered; if it was refused, nobody else would free it.
            self.store.release_reservation(pending.pg, chunk);
        }
        match outcome {
            Outcome::Written { volatility, version } => {
                self.count(&pending);
                let reply = WriteReply { volatility, version };
                self.push(id, FrameKind::WriteReply, request_id, &reply, Bytes::new());
            }
            Outcome::Flushed { volatility } => {
                self.push(id, FrameKind::FlushReply, request_id, &FlushReply { volatility }, Bytes::new());
            }
            Outcome::Read { data } => {
                // S20: checked again now that the data is here.
                if let Err(Refused { code, why, .. }) = pending.authority.is_in_force(self.surroundings()) {
                    return self.refuse(id, request_id, code, why, None);
                }
                self.count(&pending);
                if pending.asks == Asks::Allocation {
                    return self.answer_allocation(&pending, &data);
                }
                if is_zeros(&data) {
                    let hole = ReadReply { hole: true, checksums: Checksums::Bytes(0) };
                    return self.push(id, FrameKind::ReadReply, request_id, &hole, Bytes::new());
                }
                let checksums = if data.checksums.is_empty() {
                    Checksums::Bytes(crc32c::crc32c(&data.data))
                } else {
                    Checksums::Blocks(data.checksums.to_vec())
                };
                self.push(id, FrameKind::ReadReply, request_id, &ReadReply { hole: false, checksums }, data.data);
            }
            Outcome::Refused(refusal) => {
                let code = code(refusal);
                let config = matches!(code, RefusalCode::WrongEpoch | RefusalCode::NotPrimary).then_some(pending.pg);
                self.refuse(id, request_id, code, refusal.to_string(), config);
            }
        }
    }

    fn answer_allocation(&mut self, pending: &Pending, data: &Payload) {
        let (id, request_id) = (pending.connection, pending.frame_request);
        match AllocationReply::from_bytes(&data.data) {
            Ok(reply) => self.push(id, FrameKind::AllocationReply, request_id, &reply, Bytes::new()),
            // Such a payload came from here; nobody may take anything for a hole for want of it.
            Err(error) => self.refuse(id, request_id, RefusalCode::Unreadable, error.to_string(), None),
        }
    }

    fn refuse(&mut self, id: ConnectionId, request_id: u64, code: RefusalCode, why: String, config_of: Option<PgId>) {
        let config = config_of.and_then(|pg| self.map.pgs.get(&pg)).map(|config| config.as_ref().clone());
        self.push(id, FrameKind::Refusal, request_id, &Refusal { code, config, why }, Bytes::new());
    }

    fn count(&mut self, pending: &Pending) {
        use std::sync::atomic::Ordering::Relaxed;
        let moves = pending.asks != Asks::Allocation;
        let bytes = if moves { u64::from(pending.extent.length) } else { 0 };
        let counters = &self.counters;
        let (operations, moved, latency) = if pending.asks == Asks::Write {
            (&counters.writes, &counters.written_bytes, &counters.write_latency)
        } else {
            (&counters.reads, &counters.read_bytes, &counters.read_latency)
        };
        latency.record(MonotonicTime::now().since(pending.since));
        operations.fetch_add(1, Relaxed);
        moved.fetch_add(bytes, Relaxed);
        self.counters.completed.fetch_add(1, Relaxed);
        let token = pending.authority.token().id;
        if self.uses.len() >= MOST_USES {
            self.send_uses();
        }
        let used = self.uses.entry(token).or_insert_with(|| TokenUse { token_id: token.0, ..Default::default() });
        if pending.asks == Asks::Write {
            used.writes += 1;
            used.written_bytes += bytes;
        } else {
            used.reads += 1;
            used.read_bytes += bytes;
        }
    }
}

/// Whether whole blocks are all zeros: nothing need travel. Their checksums say at once when they are not.
fn is_zeros(data: &Payload) -> bool {
    let zero = store::zero_checksums(1)[0];
    !data.checksums.is_empty()
        && data.checksums.iter().all(|checksum| *checksum == zero)
        && data.data.iter().all(|byte| *byte == 0)
}

const fn extent(io: &IoHeader) -> Extent {
    Extent { offset: io.offset, length: io.length }
}

/// A request, and the token that it brings in per-io mode.
fn unsealed<T: Wire>(frame: &Frame) -> Result<(T, Option<Vec<u8>>), Refused> {
    let brings_token = matches!(
        frame.header.kind,
        FrameKind::ReadWithToken | FrameKind::WriteWithToken | FrameKind::AllocationWithToken
    );
    if !brings_token {
        return Ok((token::unsealed(&frame.body).map_err(malformed)?, None));
    }
    let WithToken { token, request } = token::unsealed(&frame.body).map_err(malformed)?;
    Ok((request, Some(token)))
}

fn malformed(error: impl std::fmt::Display) -> Refused {
    (RefusalCode::BadRequest, error.to_string()).into()
}

const fn code(refusal: replication::Refusal) -> RefusalCode {
    use replication::Refusal as R;
    match refusal {
        R::NotPrimary { .. } => RefusalCode::NotPrimary,
        R::WrongEpoch { .. } => RefusalCode::WrongEpoch,
        R::Opening { .. } | R::NoLease { .. } | R::CopyFailed | R::Unrepaired => RefusalCode::NotReady,
        R::Busy | R::OperationsFull => RefusalCode::Busy,
        R::NoSpace { .. } => RefusalCode::NoSpace,
        R::OldOperation => RefusalCode::BadRequest,
        R::OutcomeUnknown { .. } => RefusalCode::OutcomeUnknown,
        R::Unreadable => RefusalCode::Unreadable,
        R::LostMemory { .. } => RefusalCode::LostMemory,
        R::Cancelled => RefusalCode::StaleGeneration,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use pflex_proto::ids::VolumeId;

    use super::*;
    use crate::worker::testing;

    #[test]
    fn a_write_that_is_refused_keeps_no_space() {
        let (device, meta) = testing::disk();
        let (config, _reports) = testing::config(device, &meta);
        let (_commands, commands) = tokio::sync::mpsc::channel(1);
        let mut worker = Worker::new(config, Arc::default(), commands);
        let (pg, chunk) = (PgId::default(), ChunkId::default());
        let requests = [(); 2].map(|()| {
            assert!(worker.store.reserve(pg, chunk, 0));
            worker.pending.add(Pending {
                connection: ConnectionId(1),
                frame_request: 1,
                sdc: SdcId(1),
                volume: VolumeId(1),
                pg,
                extent: Extent::CHUNK,
                asks: Asks::Write,
                creates: Some(chunk),
                since: MonotonicTime::now(),
                authority: crate::admission::test_authority(),
            })
        });
        for (request, left) in requests.into_iter().zip([1, 0]) {
            worker.answer(request, Outcome::Refused(replication::Refusal::Cancelled));
            assert_eq!(worker.store.stats().units_reserved, left);
        }
    }
}
