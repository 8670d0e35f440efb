//! Connections of a data thread: one task reads frames, one sends them; they decide nothing.

use std::{cell::RefCell, rc::Rc};

use bytes::{Bytes, BytesMut};
use pflex_common::frames::{Frame, FrameQueue, FrameReader, FramesError};
use pflex_proto::{codec::Wire, frame::FrameKind};
use tokio::{
    net::{TcpStream, tcp::OwnedReadHalf},
    sync::{Notify, mpsc},
};
use tokio_util::sync::CancellationToken;

use crate::admission::ConnectionId;

/// A peer that has this much unread is gone; a client that has it is not read from until it reads.
pub(super) const MAX_UNSENT_BYTES: usize = 32 << 20;

/// What connection tasks tell the loop.
#[derive(Debug)]
pub(super) enum Incoming {
    /// A frame.
    Frame(ConnectionId, Frame),
    /// No more frames come.
    Closed(ConnectionId, Option<FramesError>),
}

/// The sending side of a connection, as the loop holds it.
#[derive(Clone, Debug, Default)]
pub(super) struct Outgoing {
    shared: Rc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    queue: RefCell<FrameQueue>,
    /// Taken by the sender task and not with the kernel yet.
    sending: RefCell<usize>,
    more: Notify,
    drained: Notify,
    closed: CancellationToken,
}

impl Outgoing {
    /// Queues a frame; it goes out when the loop calls [`Self::flush`].
    pub(super) fn push(&self, kind: FrameKind, request_id: u64, message: &impl Wire, payload: Bytes) {
        self.shared.queue.borrow_mut().push(kind, request_id, message, payload);
    }

    /// Wakes the sender.
    pub(super) fn flush(&self) {
        self.shared.more.notify_one();
    }

    /// Bytes that the peer's kernel does not have yet.
    pub(super) fn unsent_bytes(&self) -> usize {
        self.shared.queue.borrow().waiting_bytes() + *self.shared.sending.borrow()
    }

    /// Ends both tasks.
    pub(super) fn close(&self) {
        self.shared.closed.cancel();
    }
}

/// Starts both tasks of a connection on the present thread. Must run inside a `LocalSet`.
pub(super) fn start(
    id: ConnectionId,
    stream: TcpStream,
    leftover: BytesMut,
    inbox: mpsc::Sender<Incoming>,
) -> Outgoing {
    let outgoing = Outgoing::default();
    let (read, mut write) = stream.into_split();
    let reader = FrameReader::with_buffered(read, leftover);
    tokio::task::spawn_local(receive(id, reader, outgoing.clone(), inbox));
    let shared = Rc::clone(&outgoing.shared);
    tokio::task::spawn_local(async move {
        let send = async {
            loop {
                let mut queue = std::mem::take(&mut *shared.queue.borrow_mut());
                if queue.is_empty() {
                    shared.drained.notify_waiters();
                    shared.more.notified().await;
                    continue;
                }
                while !queue.is_empty() {
                    *shared.sending.borrow_mut() = queue.waiting_bytes();
                    if queue.send_some(&mut write).await.is_err() {
                        // The reader meets the same end and reports it.
                        return;
                    }
                }
                *shared.sending.borrow_mut() = 0;
            }
        };
        tokio::select! {
            () = shared.closed.cancelled() => {}
            () = send => {}
        }
        shared.closed.cancel();
    });
    outgoing
}

async fn receive(
    id: ConnectionId,
    mut reader: FrameReader<OwnedReadHalf>,
    outgoing: Outgoing,
    inbox: mpsc::Sender<Incoming>,
) {
    let shared = &outgoing.shared;
    let receive = async {
        loop {
            match reader.next().await {
                Ok(Some(frame)) => {
                    if inbox.send(Incoming::Frame(id, frame)).await.is_err() {
                        return None;
                    }
                }
                Ok(None) => return None,
                Err(error) => return Some(error),
            }
            // A client that does not read its replies is not served more of them.
            while outgoing.unsent_bytes() > MAX_UNSENT_BYTES {
                shared.drained.notified().await;
            }
        }
    };
    let error = tokio::select! {
        () = shared.closed.cancelled() => None,
        error = receive => error,
    };
    shared.closed.cancel();
    // The loop has ended if nobody takes this.
    drop(inbox.send(Incoming::Closed(id, error)).await);
}
