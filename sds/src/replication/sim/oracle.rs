//! What must be true at every step of every run.

use std::collections::{BTreeMap, HashMap};

use pflex_proto::ids::{ChunkId, DeviceId, OperationId, PgId, Sequence, Version};

use crate::replication::{ClientKey, Outcome, Refusal, RoleName};

use super::client::{Action, Pending};
use super::doubling::Groups;
use super::node::Node;
use super::store::{BLOCKS, Data, Image};

/// See the module.
pub(super) struct Oracle {
    groups: Groups,
    /// S4: a version means one content, on every copy, for ever.
    contents: HashMap<(ChunkId, Version), [u64; BLOCKS]>,
    /// S7: the write that executed an operation, once that was told to somebody.
    executed: HashMap<(ClientKey, OperationId), Version>,
    /// S1: the highest watermark a serving primary had.
    committed: HashMap<PgId, Sequence>,
    /// No fault from here on: who is in sync can be reached.
    pub(super) calm: bool,
}

impl Oracle {
    pub(super) fn new(groups: Groups) -> Self {
        let (contents, executed, committed) = (HashMap::new(), HashMap::new(), HashMap::new());
        Self { groups, contents, executed, committed, calm: false }
    }

    /// A copy changed this chunk.
    pub(super) fn versions(&mut self, pg: PgId, image: &Image, id: ChunkId) -> Result<(), String> {
        let chunk = image.chunks.get(&id);
        if let Some((chunk, version)) = chunk.and_then(|chunk| Some((chunk, chunk.version?))) {
            let known = *self.contents.entry((id, version)).or_insert(chunk.blocks);
            if known != chunk.blocks {
                return Err(format!(
                    "S4: pg {pg} chunk {id} {version} is {:?} here, {known:?} elsewhere",
                    chunk.blocks
                ));
            }
        }
        Ok(())
    }

    /// S13: a primary gives something of a chunk up that it cannot read. Another in-sync copy must lack it too, or there
    /// is none as far as this primary knows.
    pub(super) fn unreadable(
        &self,
        nodes: &BTreeMap<DeviceId, Node>,
        device: DeviceId,
        pg: PgId,
        chunk: ChunkId,
    ) -> Result<(), String> {
        let in_sync = nodes[&device].pgs[&pg].config().map(|config| config.in_sync.clone()).unwrap_or_default();
        let others: Vec<_> = in_sync.iter().filter(|member| member.device != device).collect();
        let store = |device: DeviceId| nodes[&device].store_with(chunk, self.groups);
        let bad =
            |device: DeviceId, block| store(device).is_some_and(|store| store.applied.bad.contains(&(chunk, block)));
        // While clients write, what could not be read here may be overwritten by now.
        let lost = |block| (bad(device, block) || !self.calm) && others.iter().all(|member| bad(member.device, block));
        if !(0..BLOCKS).any(lost) {
            return Err(format!("S13: pg {pg}: {device} gives {chunk} up, and an in-sync copy has it"));
        }
        Ok(())
    }

    /// S12: operations that only the lost copies executed are executed once more when they are sent again.
    pub(super) fn lose(&mut self) {
        self.executed.clear();
    }

    pub(super) fn executed(
        &mut self,
        client: ClientKey,
        operation: OperationId,
        version: Version,
    ) -> Result<(), String> {
        let first = *self.executed.entry((client, operation)).or_insert(version);
        if first != version {
            return Err(format!("S7: {client:?} {operation:?} was executed as {first} and as {version}"));
        }
        Ok(())
    }

    /// S1: no copy believes more to be committed than a primary committed.
    pub(super) fn watermark(
        &mut self,
        nodes: &BTreeMap<DeviceId, Node>,
        device: DeviceId,
        pg: PgId,
    ) -> Result<(), String> {
        let Some(status) = nodes[&device].pgs.get(&pg).map(|replica| replica.status()) else { return Ok(()) };
        let whole = self.committed.get(&self.groups.whole(pg)).copied().unwrap_or_default();
        let committed = self.committed.entry(pg).or_default();
        // A half begins with what was committed when they were one.
        *committed = (*committed).max(whole);
        if status.role == RoleName::Serving {
            *committed = (*committed).max(status.committed);
        } else if status.committed > *committed {
            return Err(format!("S1: pg {pg} on {device}: watermark {} above {committed}", status.committed));
        }
        Ok(())
    }

    /// An answer goes out.
    pub(super) fn answer(
        &mut self,
        now: u64,
        nodes: &BTreeMap<DeviceId, Node>,
        device: DeviceId,
        (pg, chunk): (PgId, ChunkId),
        outcome: &Outcome<Data>,
        asked: Option<&Pending>,
    ) -> Result<(), String> {
        // Who has not heard that the groups doubled may still serve the chunk in the whole one. A FLUSH is of a group.
        let is_flush = matches!(outcome, Outcome::Flushed { .. });
        let here = |node: &Node| if is_flush { pg } else { Groups { doubled: node.doubled, ..self.groups }.of(chunk) };
        let store =
            |device: DeviceId, chunk| nodes[&device].store_with(chunk, self.groups).expect("a member has a store");
        match outcome {
            Outcome::Refused(Refusal::Unreadable) => return self.unreadable(nodes, device, pg, chunk),
            Outcome::Refused(_) => return Ok(()),
            Outcome::Read { .. } => {
                let config = nodes[&device].pgs[&pg].config();
                let newer = nodes.values().filter(|node| node.may_read(now, here(node)));
                let newer = newer.filter_map(|node| node.pgs[&here(node)].config()).map(|config| config.epoch).max();
                if newer > config.map(|config| config.epoch) {
                    return Err(format!("I3: pg {pg}: a read is answered by {device} while {newer:?} is served"));
                }
            }
            // S14: everything that was acknowledged before the call.
            Outcome::Flushed { .. } => {
                let Some(Action::Flush(_, covered)) = asked.map(|asked| &asked.action) else { return Ok(()) };
                let config = nodes[&device].pgs[&pg].config().expect("it serves");
                let in_sync =
                    config.in_sync.iter().filter(|member| nodes[&member.device].counts_in(config, self.groups));
                for (member, (chunk, version)) in in_sync.flat_map(|member| covered.iter().map(move |of| (member, of)))
                {
                    // What went to the other half is on disks since, and may have moved away; losing it shows in the history.
                    if (Groups { doubled: nodes[&member.device].doubled, ..self.groups }).of(*chunk) != pg {
                        continue;
                    }
                    let copy = store(member.device, *chunk).durable.chunks.get(chunk);
                    if copy.is_none_or(|copy| copy.version.is_none_or(|has| has < *version)) {
                        return Err(format!(
                            "S14: pg {pg}: {version} of {chunk} is flushed, {member} has {:?}",
                            copy.map(|copy| copy.version)
                        ));
                    }
                }
            }
            // S4: durable on every in-sync copy, so every one of them has that version or a later one. In a writeback pool it
            // is held there, unless that life has ended, and durable after a FUA write (S14). One that has moved away since,
            // and was dropped, does not count: this primary has not heard of it.
            Outcome::Written { version, .. } => {
                let config = nodes[&device].pgs[&pg].config().expect("it serves");
                let durable = !config.writeback || asked.is_some_and(|asked| asked.fua);
                for member in
                    config.in_sync.iter().filter(|member| nodes[&member.device].counts_in(config, self.groups))
                {
                    let node = &nodes[&member.device];
                    if !durable && (!node.up || node.member() != *member) {
                        continue;
                    }
                    let store = store(member.device, chunk);
                    let copy = if durable { &store.durable } else { &store.applied }.chunks.get(&chunk);
                    if copy.is_none_or(|copy| copy.version.is_none_or(|has| has < *version)) {
                        return Err(format!(
                            "S4: pg {pg}: {version} of {chunk} is acknowledged, {member} has {:?}",
                            copy.map(|copy| copy.version)
                        ));
                    }
                }
            }
        }
        let serving: Vec<_> = nodes
            .values()
            .filter(|node| node.may_read(now, here(node)))
            .map(|node| node.member().to_string())
            .collect();
        if serving.len() > 1 {
            return Err(format!("I3: pg {pg} is served by {serving:?}"));
        }
        Ok(())
    }

    /// S4: space is set aside for writes that wait, and none waits.
    pub(super) fn nothing_set_aside(nodes: &BTreeMap<DeviceId, Node>) -> Result<(), String> {
        for (device, node) in nodes {
            for (pg, store) in &node.stores {
                if !store.reserved.is_empty() {
                    return Err(format!("S4: pg {pg} on {device} keeps space for nobody: {:?}", store.reserved));
                }
            }
        }
        Ok(())
    }

    /// S19: as long as the row of a configuration says that there is a copy, all of it is there.
    pub(super) fn no_half_copies(&self, node: &Node) -> Result<(), String> {
        let half = |store: &&super::store::PgStore| store.row && store.dropped > 0;
        match node.stores.iter().find(|(_, store)| half(store)) {
            Some((pg, _)) => Err(format!("S19: pg {pg} on {}: half a copy has the row of a whole one", node.device)),
            None => Ok(()),
        }
    }

    /// I4: in-sync copies that are idle are identical.
    pub(super) fn identical(nodes: &BTreeMap<DeviceId, Node>, pg: PgId, devices: &[DeviceId]) -> Result<(), String> {
        let images: Vec<_> = devices.iter().map(|device| (device, &nodes[device].stores[&pg].durable)).collect();
        for pair in images.windows(2) {
            if pair[0].1.chunks != pair[1].1.chunks {
                return Err(format!(
                    "I4: pg {pg}: {} has {:?}, {} has {:?}",
                    pair[0].0, pair[0].1.chunks, pair[1].0, pair[1].1.chunks
                ));
            }
        }
        Ok(())
    }
}
