//! Which parts of a volume hold data, as the primaries know it.
//!
//! The question goes to a primary like a read of the same range, so what it calls a hole was one with every change that was
//! answered before. A chunk whose answer does not come is told as data: that is always right. All questions of a request
//! share one deadline, as the parts of a read do, however many of them wait.

use futures::{StreamExt, pin_mut, stream};
use pflex_proto::data::AllocationReply;
use pflex_proto::geometry::BLOCK_SIZE;
use tokio::time::{Instant, timeout_at};
use tracing::debug;

use super::super::link::Answer;
use super::super::plan::Part;
use super::{Asking, Volume};
use crate::block::{ByteRange, Extent, ExtentState, Extents, IoError};

/// Chunks that are asked for at the same time.
const QUESTIONS_AT_ONCE: usize = 32;
/// Chunks that one request covers at most: 1 GiB. The rest is asked for by the next one.
const MOST_CHUNKS: usize = 1024;

/// The extents of a range from its start: `most` at most, and perhaps not all of it.
pub(super) async fn extents(volume: &Volume, range: ByteRange, most: usize) -> Result<Vec<Extent>, IoError> {
    let parts = volume.spec().layout.parts(range).take(MOST_CHUNKS);
    let length: u64 = parts.clone().map(|part| u64::from(part.length)).sum();
    let deadline = Instant::now() + volume.engine.patience.io_deadline;
    let answers = stream::iter(parts.map(|part| ask(volume, part, deadline))).buffered(QUESTIONS_AT_ONCE);
    pin_mut!(answers);
    let (mut extents, mut told) = (Extents::new(most), 0);
    loop {
        match timeout_at(deadline, answers.next()).await {
            Ok(Some(answer)) => {
                let (part, reply) = answer?;
                add(&mut extents, part, reply.as_ref());
                told += u64::from(part.length);
            }
            Ok(None) => break,
            Err(_elapsed) => {
                debug!(volume = %volume.id(), told, length, "the rest of its allocation is not known in time");
                extents.push(ExtentState::Data, length - told);
                break;
            }
        }
        if extents.is_full() {
            break;
        }
    }
    Ok(extents.into_list())
}

/// What the primary says of one part; nothing when it cannot be known.
async fn ask(volume: &Volume, part: Part, deadline: Instant) -> Result<(Part, Option<AllocationReply>), IoError> {
    let allowed = deadline.saturating_duration_since(Instant::now());
    match volume.attempt(part, allowed, &mut Asking).await {
        Ok(Answer::Allocation(reply)) => Ok((part, Some(reply))),
        Err(error @ (IoError::Unmapped(_) | IoError::ShuttingDown)) => Err(error),
        Ok(Answer::Read(_) | Answer::Done | Answer::Written(_) | Answer::Flushed(_)) => Ok((part, None)),
        Err(error) => {
            debug!(volume = %volume.id(), chunk = %part.chunk, %error, "its allocation is not known");
            Ok((part, None))
        }
    }
}

/// Adds the blocks of a part, the first and last cut to what was asked for.
fn add(extents: &mut Extents, part: Part, reply: Option<&AllocationReply>) {
    let end = part.offset + part.length;
    let Some(reply) = reply else { return extents.push(ExtentState::Data, part.length.into()) };
    for block in part.offset / BLOCK_SIZE..end.div_ceil(BLOCK_SIZE) {
        let from = part.offset.max(block * BLOCK_SIZE);
        let to = end.min((block + 1) * BLOCK_SIZE);
        let state = if reply.is_written(block) { ExtentState::Data } else { ExtentState::Hole };
        extents.push(state, (to - from).into());
    }
}

#[cfg(test)]
mod tests {
    use pflex_proto::data::BLOCK_WORDS;
    use pflex_proto::ids::{ChunkId, PgId};

    use super::*;

    fn told(offset: u32, length: u32, reply: Option<AllocationReply>) -> Vec<(ExtentState, u64)> {
        let mut extents = Extents::new(100);
        let part = Part { pg: PgId::default(), chunk: ChunkId::default(), offset, length };
        add(&mut extents, part, reply.as_ref());
        extents.into_list().iter().map(|extent| (extent.state, extent.length.0)).collect()
    }

    #[test]
    fn blocks_are_cut_to_the_part_and_the_unknown_is_data() {
        use ExtentState::{Data, Hole};
        let mut reply = AllocationReply { written: [0; BLOCK_WORDS] };
        reply.written[0] = 0b110;
        assert_eq!(told(100, 4096 * 4, Some(reply)), [(Hole, 3996), (Data, 8192), (Hole, 4096 + 100)]);
        assert_eq!(told(5000, 10, Some(reply)), [(Data, 10)]);
        assert_eq!(told(5000, 10_000, None), [(Data, 10_000)]);
    }
}
