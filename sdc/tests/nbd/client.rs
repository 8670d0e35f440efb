//! A small NBD client that trusts nothing: it checks what a server MUST keep in every message it takes.
//!
//! Written for tests, by the protocol document and not by the server's code: numbers are repeated here on purpose.
#![allow(dead_code, reason = "each test binary uses a part of it")]

use std::collections::HashMap;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

pub(crate) const OPT_EXPORT_NAME: u32 = 1;
pub(crate) const OPT_ABORT: u32 = 2;
pub(crate) const OPT_LIST: u32 = 3;
pub(crate) const OPT_STARTTLS: u32 = 5;
pub(crate) const OPT_INFO: u32 = 6;
pub(crate) const OPT_GO: u32 = 7;
pub(crate) const OPT_STRUCTURED_REPLY: u32 = 8;
pub(crate) const OPT_LIST_META_CONTEXT: u32 = 9;
pub(crate) const OPT_SET_META_CONTEXT: u32 = 10;
pub(crate) const OPT_EXTENDED_HEADERS: u32 = 11;

pub(crate) const READ: u16 = 0;
pub(crate) const WRITE: u16 = 1;
pub(crate) const DISC: u16 = 2;
pub(crate) const FLUSH: u16 = 3;
pub(crate) const TRIM: u16 = 4;
pub(crate) const CACHE: u16 = 5;
pub(crate) const WRITE_ZEROES: u16 = 6;
pub(crate) const BLOCK_STATUS: u16 = 7;

pub(crate) const FUA: u16 = 1;
pub(crate) const NO_HOLE: u16 = 2;
pub(crate) const DF: u16 = 4;
pub(crate) const REQ_ONE: u16 = 8;
pub(crate) const FAST_ZERO: u16 = 16;
pub(crate) const PAYLOAD_LEN: u16 = 32;

pub(crate) const EPERM: u32 = 1;
pub(crate) const EIO: u32 = 5;
pub(crate) const EINVAL: u32 = 22;
pub(crate) const ENOSPC: u32 = 28;
pub(crate) const EOVERFLOW: u32 = 75;
pub(crate) const ENOTSUP: u32 = 95;
pub(crate) const ESHUTDOWN: u32 = 108;

/// The context's flags for a hole that reads as zeros.
pub(crate) const HOLE: u64 = 3;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Form {
    Simple,
    Structured,
    Extended,
}

/// A chunk of a reply.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Chunk {
    Data(u64, Vec<u8>),
    Hole(u64, u64),
    Status(u32, Vec<(u64, u64)>),
}

/// A whole reply.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Answer {
    pub(crate) error: u32,
    pub(crate) why: String,
    pub(crate) chunks: Vec<Chunk>,
}

impl Answer {
    /// The bytes of a read from `offset`.
    pub(crate) fn bytes(&self, offset: u64, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        for chunk in &self.chunks {
            if let Chunk::Data(at, data) = chunk {
                let from = (at - offset) as usize;
                bytes[from..from + data.len()].copy_from_slice(data);
            }
        }
        bytes
    }

    /// The extents of a status: (length, flags).
    pub(crate) fn extents(&self) -> Vec<(u64, u64)> {
        match &self.chunks[..] {
            [Chunk::Status(_, extents)] => extents.clone(),
            other => panic!("{other:?} is not one status chunk ({} {})", self.error, self.why),
        }
    }
}

#[derive(Clone, Copy, Debug)]
struct Asked {
    kind: u16,
    flags: u16,
    offset: u64,
    length: u64,
}

/// A connection.
pub(crate) struct Client<S> {
    pub(crate) stream: S,
    pub(crate) form: Form,
    pub(crate) size: u64,
    pub(crate) flags: u16,
    next: u64,
    pending: HashMap<u64, Asked>,
    partial: HashMap<u64, Answer>,
    contexts: Vec<u32>,
    /// The longest chunk a reply may have: the maximum payload, where one was advertised, and a header.
    pub(crate) longest_chunk: usize,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Client<S> {
    /// Takes the greeting and answers it with these flags.
    pub(crate) async fn greet(mut stream: S, flags: u32) -> Self {
        let mut greeting = [0; 18];
        stream.read_exact(&mut greeting).await.unwrap();
        assert_eq!(&greeting[..16], b"NBDMAGICIHAVEOPT");
        assert_eq!(u16::from_be_bytes([greeting[16], greeting[17]]) & !3, 0, "no other handshake flags may be set");
        stream.write_u32(flags).await.unwrap();
        Self {
            stream,
            form: Form::Simple,
            size: 0,
            flags: 0,
            next: 0x1122_3344_5566_0000,
            pending: HashMap::new(),
            partial: HashMap::new(),
            contexts: Vec::new(),
            longest_chunk: (32 << 20) + 8,
        }
    }

    /// Past the whole handshake in one form, with `base:allocation` where that is possible.
    pub(crate) async fn open(stream: S, name: &str, form: Form) -> Self {
        let mut client = Self::greet(stream, 3).await;
        match form {
            Form::Simple => {}
            Form::Structured => assert_eq!(client.option(OPT_STRUCTURED_REPLY, &[]).await, [(1, vec![])]),
            Form::Extended => assert_eq!(client.option(OPT_EXTENDED_HEADERS, &[]).await, [(1, vec![])]),
        }
        client.form = form;
        if form != Form::Simple {
            let told = client.option(OPT_SET_META_CONTEXT, &meta(name, &["base:allocation"])).await;
            let named = told.iter().filter(|(kind, _)| *kind == 4);
            client.contexts = named.map(|(_, data)| u32::from_be_bytes(data[..4].try_into().unwrap())).collect();
            assert_eq!(told.last(), Some(&(1, vec![])));
        }
        client.go(name).await.unwrap();
        client
    }

    /// Sends an option; no reply is read.
    pub(crate) async fn send_option(&mut self, kind: u32, data: &[u8]) {
        let bytes = [b"IHAVEOPT", &kind.to_be_bytes()[..], &(data.len() as u32).to_be_bytes(), data].concat();
        self.stream.write_all(&bytes).await.unwrap();
    }

    /// All replies to an option, up to the final one.
    pub(crate) async fn option(&mut self, kind: u32, data: &[u8]) -> Vec<(u32, Vec<u8>)> {
        self.try_option(kind, data).await.expect("the connection ended")
    }

    /// The same, or nothing at the end of the connection.
    pub(crate) async fn try_option(&mut self, kind: u32, data: &[u8]) -> Option<Vec<(u32, Vec<u8>)>> {
        let bytes = [b"IHAVEOPT", &kind.to_be_bytes()[..], &(data.len() as u32).to_be_bytes(), data].concat();
        self.stream.write_all(&bytes).await.ok()?;
        let mut replies = Vec::new();
        loop {
            assert_eq!(self.stream.read_u64().await.ok()?, 0x0003_e889_0455_65a9);
            assert_eq!(self.stream.read_u32().await.unwrap(), kind, "a reply repeats its option");
            let reply = self.stream.read_u32().await.unwrap();
            let mut data = vec![0; self.stream.read_u32().await.unwrap() as usize];
            self.stream.read_exact(&mut data).await.unwrap();
            let is_final = reply == 1 || reply & 0x8000_0000 != 0;
            if reply & 0x8000_0000 != 0 {
                assert!(data.len() <= 4096 && std::str::from_utf8(&data).is_ok(), "an error's data is a string");
            }
            replies.push((reply, data));
            if is_final {
                return Some(replies);
            }
        }
    }

    /// The one reply to an option that was sent in part, without what it says.
    pub(crate) async fn option_reply(&mut self, kind: u32) -> u32 {
        assert_eq!(self.stream.read_u64().await.unwrap(), 0x0003_e889_0455_65a9);
        assert_eq!(self.stream.read_u32().await.unwrap(), kind, "a reply repeats its option");
        let reply = self.stream.read_u32().await.unwrap();
        let mut data = vec![0; self.stream.read_u32().await.unwrap() as usize];
        self.stream.read_exact(&mut data).await.unwrap();
        reply
    }

    /// Enters the transmission phase; else the error.
    pub(crate) async fn go(&mut self, name: &str) -> Result<(), u32> {
        let replies = self.option(OPT_GO, &export(name, &[])).await;
        if replies.last().unwrap().0 != 1 {
            return Err(replies.last().unwrap().0);
        }
        let information = replies.iter().find(|(kind, data)| *kind == 3 && data[..2] == [0, 0]);
        let (_, information) = information.expect("NBD_INFO_EXPORT comes before the ACK");
        assert_eq!(information.len(), 12);
        self.size = u64::from_be_bytes(information[2..10].try_into().unwrap());
        self.flags = u16::from_be_bytes(information[10..].try_into().unwrap());
        assert_eq!(self.flags & 1, 1, "HAS_FLAGS is always 1");
        assert!(self.form != Form::Simple || self.flags & (1 << 7) == 0, "SEND_DF needs structured replies");
        assert!(self.flags & (1 << 11) == 0 || self.flags & (1 << 6) != 0, "FAST_ZERO needs WRITE_ZEROES");
        Ok(())
    }

    /// The bytes of a request, whose reply will be expected.
    pub(crate) fn request(
        &mut self,
        kind: u16,
        flags: u16,
        offset: u64,
        length: u64,
        payload: &[u8],
    ) -> (u64, Vec<u8>) {
        let cookie = self.next;
        self.next += 1;
        let mut bytes = Vec::new();
        bytes.extend(if self.form == Form::Extended { 0x21e4_1c71_u32 } else { 0x2560_9513 }.to_be_bytes());
        bytes.extend(flags.to_be_bytes());
        bytes.extend(kind.to_be_bytes());
        bytes.extend(cookie.to_be_bytes());
        bytes.extend(offset.to_be_bytes());
        match self.form {
            Form::Extended => bytes.extend(length.to_be_bytes()),
            Form::Simple | Form::Structured => bytes.extend((length as u32).to_be_bytes()),
        }
        bytes.extend(payload);
        if kind != DISC {
            self.pending.insert(cookie, Asked { kind, flags, offset, length });
        }
        (cookie, bytes)
    }

    /// Sends a request. With extended headers the flag for a payload is set where there is one.
    pub(crate) async fn send(&mut self, kind: u16, flags: u16, offset: u64, length: u64, payload: &[u8]) -> u64 {
        let announces = self.form == Form::Extended && !payload.is_empty();
        let flags = if announces { flags | PAYLOAD_LEN } else { flags };
        let (cookie, bytes) = self.request(kind, flags, offset, length, payload);
        self.stream.write_all(&bytes).await.unwrap();
        cookie
    }

    /// Sends a request and takes its reply.
    pub(crate) async fn ask(&mut self, kind: u16, flags: u16, offset: u64, length: u64) -> Answer {
        let cookie = self.send(kind, flags, offset, length, &[]).await;
        let (answered, answer) = self.answer().await;
        assert_eq!(answered, cookie);
        answer
    }

    /// Writes bytes; the error number.
    pub(crate) async fn write(&mut self, offset: u64, data: &[u8]) -> u32 {
        let cookie = self.send(WRITE, 0, offset, data.len() as u64, data).await;
        let (answered, answer) = self.answer().await;
        assert_eq!(answered, cookie);
        answer.error
    }

    /// Reads bytes.
    pub(crate) async fn read(&mut self, offset: u64, length: usize) -> Vec<u8> {
        let answer = self.ask(READ, 0, offset, length as u64).await;
        assert_eq!(answer.error, 0, "{}", answer.why);
        answer.bytes(offset, length)
    }

    /// The next reply that is complete, with its cookie.
    pub(crate) async fn answer(&mut self) -> (u64, Answer) {
        self.try_answer().await.expect("the connection ended")
    }

    /// The same, or nothing at the end of the connection.
    pub(crate) async fn try_answer(&mut self) -> Option<(u64, Answer)> {
        loop {
            let magic = self.stream.read_u32().await.ok()?;
            match (self.form, magic) {
                (Form::Simple | Form::Structured, 0x6744_6698) => return Some(self.simple().await),
                (Form::Structured, 0x668e_33ef) | (Form::Extended, 0x6e8a_278c) => {
                    if let Some(answer) = self.chunk().await {
                        return Some(answer);
                    }
                }
                (form, magic) => panic!("a reply of {magic:#x} when {form:?} was agreed on"),
            }
        }
    }

    async fn simple(&mut self) -> (u64, Answer) {
        let error = self.stream.read_u32().await.unwrap();
        let cookie = self.stream.read_u64().await.unwrap();
        let asked = self.pending.remove(&cookie).expect("a reply repeats the cookie of a request");
        let mut answer = Answer { error, ..Answer::default() };
        if self.form == Form::Structured {
            assert!(!matches!(asked.kind, READ | BLOCK_STATUS), "READ is answered in structured replies only");
        } else if asked.kind == READ && error == 0 && asked.length > 0 {
            let mut data = vec![0; asked.length as usize];
            self.stream.read_exact(&mut data).await.unwrap();
            answer.chunks.push(Chunk::Data(asked.offset, data));
        }
        (cookie, answer)
    }

    async fn chunk(&mut self) -> Option<(u64, Answer)> {
        let flags = self.stream.read_u16().await.unwrap();
        let kind = self.stream.read_u16().await.unwrap();
        let cookie = self.stream.read_u64().await.unwrap();
        let asked = *self.pending.get(&cookie).expect("a reply repeats the cookie of a request");
        let length = if self.form == Form::Extended {
            assert_eq!(self.stream.read_u64().await.unwrap(), asked.offset, "an extended reply repeats the offset");
            self.stream.read_u64().await.unwrap() as usize
        } else {
            self.stream.read_u32().await.unwrap() as usize
        };
        assert!(length <= self.longest_chunk, "no chunk is longer than the maximum payload and its header");
        assert_eq!(flags & !1, 0, "no flag but DONE");
        let mut body = vec![0; length];
        self.stream.read_exact(&mut body).await.unwrap();
        let u64_at = |at: usize| u64::from_be_bytes(body[at..at + 8].try_into().unwrap());
        let u32_at = |at: usize| u32::from_be_bytes(body[at..at + 4].try_into().unwrap());
        let form = self.form;
        let answer = self.partial.entry(cookie).or_default();
        match kind {
            0 => assert!(length == 0 && flags == 1, "NONE is empty and final"),
            1 => {
                assert!(length >= 9 && asked.kind == READ);
                answer.chunks.push(Chunk::Data(u64_at(0), body[8..].to_vec()));
            }
            2 => {
                assert!(length == 12 && asked.kind == READ && u32_at(8) > 0);
                answer.chunks.push(Chunk::Hole(u64_at(0), u32_at(8).into()));
            }
            5 => {
                assert!(form == Form::Structured && length > 4 && (length - 4) % 8 == 0);
                let extents = (4..length).step_by(8).map(|at| (u32_at(at).into(), u32_at(at + 4).into()));
                answer.chunks.push(Chunk::Status(u32_at(0), extents.collect()));
            }
            6 => {
                assert!(form == Form::Extended && length > 8 && length == 8 + 16 * u32_at(4) as usize);
                let extents = (8..length).step_by(16).map(|at| (u64_at(at), u64_at(at + 8)));
                answer.chunks.push(Chunk::Status(u32_at(0), extents.collect()));
            }
            error if error & 0x8000 != 0 => {
                assert!(length >= 6 && u32_at(0) != 0, "an error is not zero");
                let text = usize::from(u16::from_be_bytes(body[4..6].try_into().unwrap()));
                assert!(text <= 4096 && text <= length - 6);
                answer.why = String::from_utf8(body[6..6 + text].to_vec()).unwrap();
                answer.error = u32_at(0);
            }
            other => panic!("chunk type {other}"),
        }
        if flags & 1 == 0 {
            return None;
        }
        self.pending.remove(&cookie);
        let answer = self.partial.remove(&cookie).unwrap();
        self.check(asked, &answer);
        Some((cookie, answer))
    }

    /// The rules for a reply as a whole.
    fn check(&self, asked: Asked, answer: &Answer) {
        if asked.kind == READ && answer.error == 0 {
            let mut parts: Vec<_> = answer.chunks.iter().map(extent_of).collect();
            parts.sort_unstable();
            let mut at = asked.offset;
            for (from, length) in parts {
                assert!(from == at && length > 0, "content covers the request once, without gap or overlap");
                at += length;
            }
            assert_eq!(at, asked.offset + asked.length);
            assert!(asked.flags & DF == 0 || answer.chunks.len() <= 1, "DF: one content chunk at most");
        }
        if asked.kind == BLOCK_STATUS && answer.error == 0 {
            let told: Vec<_> = answer.chunks.iter().map(context_of).collect();
            assert_eq!(told, self.contexts, "one status chunk for each context");
            let extents = answer.extents();
            assert!(!extents.is_empty() && extents.iter().all(|(length, _)| *length > 0));
            let before_last: u64 = extents[..extents.len() - 1].iter().map(|(length, _)| length).sum();
            assert!(before_last < asked.length, "all but the last extent lie inside the request");
            if asked.flags & REQ_ONE != 0 {
                assert!(extents.len() == 1 && extents[0].0 <= asked.length, "REQ_ONE: one, inside the request");
            }
            assert!(asked.offset + extents.iter().map(|(length, _)| length).sum::<u64>() <= self.size);
        }
    }
}

fn extent_of(chunk: &Chunk) -> (u64, u64) {
    match chunk {
        Chunk::Data(at, data) => (*at, data.len() as u64),
        Chunk::Hole(at, length) => (*at, *length),
        Chunk::Status(..) => panic!("a status chunk in a read"),
    }
}

fn context_of(chunk: &Chunk) -> u32 {
    match chunk {
        Chunk::Status(context, _) => *context,
        Chunk::Data(..) | Chunk::Hole(..) => panic!("content in a status"),
    }
}

/// The data of INFO and GO.
pub(crate) fn export(name: &str, requests: &[u16]) -> Vec<u8> {
    let mut data = (name.len() as u32).to_be_bytes().to_vec();
    data.extend(name.as_bytes());
    data.extend((requests.len() as u16).to_be_bytes());
    requests.iter().for_each(|request| data.extend(request.to_be_bytes()));
    data
}

/// The data of LIST_META_CONTEXT and SET_META_CONTEXT.
pub(crate) fn meta(name: &str, queries: &[&str]) -> Vec<u8> {
    let mut data = (name.len() as u32).to_be_bytes().to_vec();
    data.extend(name.as_bytes());
    data.extend((queries.len() as u32).to_be_bytes());
    for query in queries {
        data.extend((query.len() as u32).to_be_bytes());
        data.extend(query.as_bytes());
    }
    data
}
