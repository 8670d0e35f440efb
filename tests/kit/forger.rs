//! A client of the data protocol that sends what it likes, one request at a time.

use std::{
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpStream},
};

use pflex_proto::{
    codec::Wire,
    data::{
        FlushReply, FlushRequest, Hello, HelloReply, OpenSession, PROTOCOL_VERSION, Peer, ReadReply, ReadRequest,
        Refusal, RefusalCode, SessionOpened, WithToken,
    },
    frame::{FrameHeader, FrameKind, HEADER_SIZE, encode_frame, encode_frame_with},
    ids::{ClusterId, DeviceId, ProcessId, SdcId},
    token::SessionKey,
};

use super::io::PATIENCE;

pub(crate) struct Forger {
    stream: TcpStream,
    requests: u64,
}

impl Forger {
    /// Greets a device as this client.
    pub(crate) fn greet(
        at: SocketAddr,
        cluster: ClusterId,
        device: DeviceId,
        (sdc, process): (SdcId, ProcessId),
    ) -> Self {
        let stream = TcpStream::connect(at).expect("it listens");
        stream.set_read_timeout(Some(PATIENCE)).expect("a socket");
        let mut forger = Self { stream, requests: 0 };
        let peer = Peer::Sdc { sdc, process };
        let hello = Hello { oldest: PROTOCOL_VERSION, newest: PROTOCOL_VERSION, cluster, device, peer };
        forger.send(FrameKind::Hello, &hello);
        let (header, body) = forger.receive();
        let reply: HelloReply = header.decode(&body).expect("it takes the greeting");
        assert_eq!(reply.version, PROTOCOL_VERSION);
        forger
    }

    pub(crate) fn open(&mut self, request: &OpenSession) -> Result<SessionOpened, RefusalCode> {
        self.send(FrameKind::OpenSession, request);
        self.answer(FrameKind::SessionOpened)
    }

    pub(crate) fn flush(&mut self, request: &FlushRequest, key: &SessionKey) -> Result<FlushReply, RefusalCode> {
        self.send_sealed(FrameKind::Flush, request, key);
        self.answer(FrameKind::FlushReply)
    }

    /// Of a range that was never written: the answer has no payload.
    pub(crate) fn read_hole(
        &mut self,
        request: &WithToken<ReadRequest>,
        key: &SessionKey,
    ) -> Result<ReadReply, RefusalCode> {
        self.send_sealed(FrameKind::ReadWithToken, request, key);
        self.answer(FrameKind::ReadReply)
    }

    fn send_sealed(&mut self, kind: FrameKind, request: &impl Wire, key: &SessionKey) {
        let mut frame = Vec::new();
        self.requests += 1;
        let seal = |header: &_, body: &mut Vec<u8>| key.seal(header, request, body);
        encode_frame_with(kind, self.requests, 0, &mut frame, seal);
        self.stream.write_all(&frame).expect("it is connected");
    }

    fn send(&mut self, kind: FrameKind, message: &impl Wire) {
        let mut frame = Vec::new();
        self.requests += 1;
        encode_frame(kind, self.requests, message, 0, &mut frame);
        self.stream.write_all(&frame).expect("it is connected");
    }

    fn answer<T: Wire>(&mut self, expected: FrameKind) -> Result<T, RefusalCode> {
        let (header, body) = self.receive();
        if header.kind == expected {
            return Ok(header.decode(&body).expect("it decodes"));
        }
        let refusal: Refusal = header.decode(&body).expect("an answer or a refusal");
        Err(refusal.code)
    }

    fn receive(&mut self) -> (FrameHeader, Vec<u8>) {
        let mut raw = [0; HEADER_SIZE];
        self.stream.read_exact(&mut raw).expect("an answer");
        let header = FrameHeader::parse(&raw).expect("a frame");
        let mut body = vec![0; header.body_len as usize];
        self.stream.read_exact(&mut body).expect("a body");
        header.check_body(&body).expect("a sound body");
        (header, body)
    }
}
