//! A backup on its way to a client: a thread reads the rows, the stream's window holds it back.

use std::io::{self, Write};

use pflex_common::clock::wall_ms;
use pflex_proto::pb::{BackupPart, SnapshotReply};
use pflex_proto::status::{self, Reason};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;

use super::{Api, error};

/// Parts on their way to one client.
const IN_FLIGHT: usize = 4;
/// Bytes of one part.
const PART_BYTES: usize = 256 << 10;

pub(super) type Parts = ReceiverStream<Result<BackupPart, Status>>;

impl Api {
    /// Everything acknowledged before the call, and perhaps a little more, as of one moment.
    pub(super) async fn back_up(&self) -> Result<Parts, Status> {
        self.group().read_barrier().await.map_err(error::from_read)?;
        if self.look(|state| state.cluster().is_none()) {
            return Err(error::not_bootstrapped());
        }
        let (sender, parts) = mpsc::channel(IN_FLIGHT);
        let group = self.group().clone();
        tokio::task::spawn_blocking(move || {
            let to = Sending { sender: sender.clone(), part: Vec::with_capacity(PART_BYTES) };
            match group.back_up(to, wall_ms()) {
                Ok(rows) => tracing::info!(rows, "a backup was made"),
                // The client sees the error, or is gone.
                Err(error) => {
                    tracing::warn!("a backup failed: {error}");
                    drop(sender.blocking_send(Err(status::status(Reason::Internal, format!("backup: {error}")))));
                }
            }
        });
        Ok(ReceiverStream::new(parts))
    }

    /// Builds a snapshot of this member's state.
    pub(super) async fn build_snapshot(&self) -> Result<SnapshotReply, Status> {
        self.leading()?;
        let (last_index, bytes) = self.group().snapshot_now().await.ok_or_else(|| {
            status::status(Reason::UnknownOutcome, "the snapshot is not on disk yet; it may be later")
        })?;
        Ok(SnapshotReply { last_index, bytes })
    }
}

/// Collects what is written into parts.
struct Sending {
    sender: mpsc::Sender<Result<BackupPart, Status>>,
    part: Vec<u8>,
}

impl Write for Sending {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.part.extend_from_slice(bytes);
        if self.part.len() >= PART_BYTES {
            self.flush()?;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.part.is_empty() {
            return Ok(());
        }
        let data = std::mem::replace(&mut self.part, Vec::with_capacity(PART_BYTES));
        let gone = |_| io::Error::new(io::ErrorKind::BrokenPipe, "the client is gone");
        self.sender.blocking_send(Ok(BackupPart { data })).map_err(gone)
    }
}
