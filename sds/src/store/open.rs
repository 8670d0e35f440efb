//! Formatting and opening. Everything is checked before anything is written: a device that is refused is untouched.
//!
//! Order at open: superblock -> generation of `sds_local.db` -> rows -> journal replay -> checks -> only then the raised
//! incarnation, synced in both copies (S2), and the store may be used.

use std::{
    collections::BTreeMap,
    io,
    sync::{Arc, atomic::AtomicBool},
};

use pflex_proto::{
    codec::{CodecError, Reader},
    ids::{
        ChunkId, ChunkIndex, ClusterId, DeviceId, DeviceUuid, Incarnation, LayerId, PgId, PgIndex, PoolId, SdsId,
        VtreeId,
    },
};

use super::{
    DirtyIndex, DirtyKey, Geometry, MetaTable, Store, Superblock,
    checkpoint::{Checkpoint, device_row},
    chunk::{self, Chunk, Stable},
    config::KnownConfig,
    error::OpenError,
    meta::{Batch, MetaStore, commit_now},
    pg::{self, Operations, Pg},
    pipeline::Pipeline,
    read::Readers,
    record::{Kind, Record},
    ring::{Identity, Position, Replay, Ring},
    sort::{SortedPools, Sorting},
    space::Space,
    types::PgReport,
};
use crate::device::{Device, FileConfig, FileDevice, Meter, TimedDevice};

/// What a new device is.
#[derive(Clone, Copy, Debug)]
pub struct FormatConfig {
    /// The cluster it will belong to.
    pub cluster: ClusterId,
    /// The server it is for.
    pub sds: SdsId,
    /// Random.
    pub uuid: DeviceUuid,
    /// Bytes of the journal, rounded up to what is possible; none is what suits the device's size.
    pub journal_bytes: Option<u64>,
}

/// How a device file is opened.
#[derive(Clone, Copy, Debug)]
pub struct StoreConfig {
    /// The cluster of this process.
    pub cluster: ClusterId,
    /// Its server.
    pub sds: SdsId,
}

/// What was found.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct OpenReport {
    /// The superblock as it is now: the incarnation is this life's (S2).
    pub superblock: Superblock,
    /// `sds_local.db` was not this device's: everything was forgotten, it joins empty (S13).
    pub emptied: bool,
    /// Journal groups replayed.
    pub replayed_groups: u64,
    /// Every placement group known.
    pub pgs: Vec<PgReport>,
    /// The newest configuration of each group that this device acted in (S19).
    pub configs: Vec<(PgId, KnownConfig)>,
    /// Into how many groups the chunks are sorted; none: not known.
    pub sorting: Option<Sorting>,
}

impl Store {
    /// Makes the files of a device (see [`FileConfig::beside`]) and formats them. `size` counts everything; a block
    /// device's own size counts there. On failure what was made is removed.
    ///
    /// # Errors
    /// If there is something already, or it cannot be made. An existing device is untouched.
    pub fn format_files(
        files: &FileConfig,
        size: u64,
        preallocate: bool,
        meta: &dyn MetaStore,
        config: &FormatConfig,
    ) -> Result<Superblock, OpenError> {
        let mut size = size;
        if files.path.exists() {
            // A raw block device, or a mistake: look before anything is written.
            let present = open_device(files)?;
            match Superblock::read(&present) {
                Ok(superblock) => return Err(OpenError::AlreadyFormatted { cluster: superblock.cluster }),
                Err(OpenError::NotFormatted) => size = present.capacity(),
                Err(error) => return Err(error),
            }
        }
        let geometry = Geometry::divide(size, config.journal_bytes.unwrap_or(Geometry::usual_journal(size)))?;
        let device = FileDevice::create(files, geometry.front_bytes(), geometry.total_bytes(), preallocate)
            .map_err(|source| OpenError::File { action: "create", path: files.path.clone(), source })?;
        let formatted = Self::format(&device, geometry, meta, config);
        if formatted.is_err() {
            // Nothing half-made stays behind; a block device was blank before and has no superblock now.
            device.remove_files(files);
        }
        formatted
    }

    /// Formats a device whose front part is zeros.
    ///
    /// # Errors
    /// If it is a device already, or writing fails.
    pub fn format(
        device: &dyn Device,
        geometry: Geometry,
        meta: &dyn MetaStore,
        config: &FormatConfig,
    ) -> Result<Superblock, OpenError> {
        match Superblock::read(device) {
            Err(OpenError::NotFormatted) => {}
            Ok(superblock) => return Err(OpenError::AlreadyFormatted { cluster: superblock.cluster }),
            Err(error) => return Err(error),
        }
        if device.capacity() < geometry.total_bytes() {
            return Err(OpenError::TooSmall { bytes: device.capacity(), needed: geometry.total_bytes() });
        }
        let superblock = Superblock {
            sequence: 1,
            cluster: config.cluster,
            uuid: config.uuid,
            device: DeviceId(0),
            sds: config.sds,
            generation: 1,
            incarnation: Incarnation(0),
            geometry,
            emptied: false,
        };
        // The row first: a superblock without one would come up as emptied.
        clear_rows(meta, &superblock)?;
        superblock.write(device)?;
        Ok(superblock)
    }

    /// Opens a device in files.
    ///
    /// # Errors
    /// [`OpenError::Busy`] if another process has it; else as [`Self::open`].
    pub fn open_files(
        files: &FileConfig,
        meta: Arc<dyn MetaStore>,
        config: StoreConfig,
    ) -> Result<(Self, OpenReport), OpenError> {
        Self::open(Arc::new(open_device(files)?), meta, config)
    }

    /// Opens a device: replays the journal, then raises the incarnation. Blocks; not for the data thread's loop.
    ///
    /// # Errors
    /// The device is refused and untouched.
    pub fn open(
        device: Arc<dyn Device>,
        meta: Arc<dyn MetaStore>,
        config: StoreConfig,
    ) -> Result<(Self, OpenReport), OpenError> {
        let mut superblock = Superblock::read(device.as_ref())?;
        if superblock.cluster != config.cluster {
            return Err(OpenError::OtherCluster { found: superblock.cluster, expected: config.cluster });
        }
        let needed = superblock.geometry.total_bytes();
        if device.capacity() < needed {
            return Err(OpenError::TooSmall { bytes: device.capacity(), needed });
        }
        let row = meta.rows(superblock.uuid, MetaTable::Devices)?.pop();
        let row = row.map(|(_, row)| decode_device_row(&row)).transpose().map_err(codec("device row"))?;
        if row.is_none() && superblock.sds != config.sds {
            // Unknown here, and made for another server: emptying it could cost the last copy of something.
            return Err(OpenError::OtherServer { found: superblock.sds, expected: config.sds });
        }
        let generation = row.as_ref().map_or(0, |row| row.generation);
        let row = row.filter(|row| row.generation == superblock.generation);
        let tail = row.as_ref().map(|row| row.tail);
        if tail.is_none() {
            superblock.emptied = true;
            // The chunk table is gone, so nobody knows which bytes are whose. It joins empty, under a new generation
            // that makes the old journal unreadable. Row first: a crash in between ends here again.
            superblock.generation = superblock.generation.max(generation) + 1;
            clear_rows(meta.as_ref(), &superblock)?;
        }
        let configs = known_configs(meta.as_ref(), superblock.uuid)?;
        let sorted = row.map(|row| row.sorted).unwrap_or_default();
        let tail = tail.unwrap_or(Position::START);
        let recovered = Recovered::load(device.as_ref(), meta.as_ref(), &superblock, tail, sorted)?;
        superblock.sequence += 1;
        superblock.incarnation = superblock.incarnation.next();
        superblock.write(device.as_ref())?;
        Self::assemble(device, meta, superblock, recovered, configs)
    }

    fn assemble(
        device: Arc<dyn Device>,
        meta: Arc<dyn MetaStore>,
        superblock: Superblock,
        recovered: Recovered,
        configs: Vec<(PgId, KnownConfig)>,
    ) -> Result<(Self, OpenReport), OpenError> {
        let Recovered { chunks, pgs, sorted, dirty, tail, head, next_record, groups } = recovered;
        let used = chunks.values().filter_map(|(_, stable)| stable.unit);
        let space = Space::new(superblock.geometry.units, device.is_thin(), used)
            .map_err(|unit| inconsistent(format!("{unit:?} is used twice or outside the device")))?;
        let (sender, events) = Self::events();
        let (device, meter) = TimedDevice::new(device);
        let pgs: BTreeMap<_, _> = pgs.into_iter().map(|(id, (record, table))| (id, Pg::new(record, table))).collect();
        let mut store = Self {
            device,
            meter,
            meta,
            superblock,
            chunks: BTreeMap::new(),
            pgs,
            sorted,
            space,
            ring: Ring::new(&superblock.geometry, tail, head),
            dirty,
            pipeline: Pipeline::new(next_record, head),
            checkpoint: Checkpoint::default(),
            readers: Readers::default(),
            events,
            sender,
            awaits_readers: Arc::new(AtomicBool::new(false)),
            poison: None,
            poison_reported: false,
        };
        for (id, (pg, stable)) in chunks {
            let chunk = Chunk::new(pg, stable);
            store.pgs.entry(pg).or_default().reindex(id, None, chunk.state());
            store.chunks.insert(id, Box::new(chunk));
        }
        let pgs = store.pgs.iter().map(|(id, pg)| pg_report(*id, pg)).collect();
        let sorting = store.sorting();
        let emptied = superblock.emptied;
        Ok((store, OpenReport { superblock, emptied, replayed_groups: groups, pgs, configs, sorting }))
    }

    /// What is known of a placement group; none: nothing.
    pub fn report(&self, pg: PgId) -> Option<PgReport> {
        self.pgs.get(&pg).map(|entry| pg_report(pg, entry))
    }

    /// How fast its device is.
    pub fn meter(&self) -> Arc<Meter> {
        Arc::clone(&self.meter)
    }

    /// Who this is.
    pub const fn superblock(&self) -> &Superblock {
        &self.superblock
    }

    /// The MDM knows this life of the device, and what it lost: notes the id that it assigned. Blocks for two small
    /// durable writes if there is news; once or twice in a device's life.
    ///
    /// # Errors
    /// When writing fails; the store is out of service then.
    pub fn registered(&mut self, device: DeviceId) -> Result<(), OpenError> {
        if self.superblock.device == device && !self.superblock.emptied {
            return Ok(());
        }
        let sequence = self.superblock.sequence + 1;
        let superblock = Superblock { device, emptied: false, sequence, ..self.superblock };
        if let Err(error) = superblock.write(self.device.as_ref()) {
            self.fail("writing the superblock", io::Error::other(error.to_string()));
            return Err(error);
        }
        self.superblock = superblock;
        Ok(())
    }
}

/// Reads who a device is without opening it for use.
///
/// # Errors
/// As [`Store::open`] for superblocks.
pub fn inspect(files: &FileConfig) -> Result<Superblock, OpenError> {
    Superblock::read(&open_device(files)?)
}

fn open_device(files: &FileConfig) -> Result<FileDevice, OpenError> {
    FileDevice::open(files).map_err(|source| {
        // Which of the two it was: a device without its journal file is the likelier accident.
        let missing = files.journal_path.as_ref().filter(|path| files.path.exists() && !path.exists());
        let path = missing.unwrap_or(&files.path).clone();
        match source.kind() {
            io::ErrorKind::WouldBlock => OpenError::Busy { path },
            _ => OpenError::File { action: "open", path, source },
        }
    })
}

fn clear_rows(meta: &dyn MetaStore, superblock: &Superblock) -> Result<(), OpenError> {
    let mut batch = Batch::default();
    for table in MetaTable::ALL {
        for (key, _) in meta.rows(superblock.uuid, table)? {
            batch.rows.push((table, key, None));
        }
    }
    let row = device_row(superblock.generation, Position::START, &SortedPools::default());
    batch.rows.push((MetaTable::Devices, Vec::new(), Some(row)));
    Ok(commit_now(meta, superblock.uuid, batch)?)
}

struct DeviceRow {
    generation: u64,
    tail: Position,
    sorted: SortedPools,
}

fn decode_device_row(row: &[u8]) -> Result<DeviceRow, CodecError> {
    let mut reader = Reader::new(row);
    let format: u8 = reader.get()?;
    let generation = reader.get()?;
    let tail = Position { lsn: reader.get()?, sequence: reader.get()? };
    let sorted = SortedPools::decode(format, &mut reader)?;
    reader.finish()?;
    Ok(DeviceRow { generation, tail, sorted })
}

fn known_configs(meta: &dyn MetaStore, uuid: DeviceUuid) -> Result<Vec<(PgId, KnownConfig)>, OpenError> {
    let rows = meta.rows(uuid, MetaTable::Configs)?.into_iter();
    rows.map(|(key, row)| {
        let pg = pg_of_key(&key).ok_or_else(|| inconsistent(format!("configuration key {key:?}")))?;
        Ok((pg, KnownConfig::decode_row(&row).map_err(codec("configuration row"))?))
    })
    .collect()
}

fn pg_report(id: PgId, pg: &Pg) -> PgReport {
    let (watermark, volatility) = pg.visible.watermark();
    PgReport {
        pg: id,
        watermark,
        volatility,
        highest: pg.visible.highest(),
        operations: pg.visible.snapshot(),
        chunks: pg.chunks() as u64,
        unsynced: pg.unsynced().len() as u64,
    }
}

fn codec(what: &'static str) -> impl FnOnce(CodecError) -> OpenError {
    move |source| OpenError::Codec { what, source }
}

const fn inconsistent(reason: String) -> OpenError {
    OpenError::Inconsistent { reason }
}

/// Rows, and the journal on top of them.
struct Recovered {
    chunks: BTreeMap<ChunkId, (PgId, Stable)>,
    pgs: BTreeMap<PgId, (u64, Operations)>,
    sorted: SortedPools,
    dirty: DirtyIndex,
    tail: Position,
    head: Position,
    next_record: u64,
    groups: u64,
}

impl Recovered {
    fn load(
        device: &dyn Device,
        meta: &dyn MetaStore,
        superblock: &Superblock,
        tail: Position,
        sorted: SortedPools,
    ) -> Result<Self, OpenError> {
        let mut recovered = Self::rows(meta, superblock.uuid, tail, sorted)?;
        let identity =
            Identity { uuid: superblock.uuid, generation: superblock.generation, incarnation: superblock.incarnation };
        let mut replay = Replay::new(device, superblock.geometry, &identity, tail);
        while let Some(group) = replay.next_group()? {
            recovered.groups += 1;
            let mut payload = group.payload;
            for number in (group.first_record..).take(group.records as usize) {
                let (record, placed) = Record::decode(&mut payload).map_err(codec("journal record"))?;
                recovered.fold(&record, placed, number, group.at);
            }
            if !payload.is_empty() {
                return Err(inconsistent(format!("journal group {} has bytes behind its records", group.at.sequence)));
            }
        }
        recovered.head = replay.next;
        for (id, (_, stable)) in &recovered.chunks {
            if stable.unit.is_none() && !stable.written.is_empty() {
                return Err(inconsistent(format!("chunk {id} has data and no unit")));
            }
        }
        Ok(recovered)
    }

    fn rows(meta: &dyn MetaStore, uuid: DeviceUuid, tail: Position, sorted: SortedPools) -> Result<Self, OpenError> {
        let (mut chunks, mut pgs, mut last) = (BTreeMap::new(), BTreeMap::new(), 0);
        for (key, row) in meta.rows(uuid, MetaTable::Chunks)? {
            let (pg, stable) = Stable::decode_row(&row).map_err(codec("chunk row"))?;
            last = stable.record.max(last);
            let id = chunk_of_key(&key).ok_or_else(|| inconsistent(format!("chunk key {key:?}")))?;
            chunks.insert(id, (sorted.group_of(pg, id), stable));
        }
        for (key, row) in meta.rows(uuid, MetaTable::Pgs)? {
            let (record, table) = Operations::decode_row(&row).map_err(codec("placement group row"))?;
            last = record.max(last);
            let id = pg_of_key(&key).ok_or_else(|| inconsistent(format!("placement group key {key:?}")))?;
            pgs.insert(id, (record, table));
        }
        let dirty = DirtyIndex::default();
        let last = last.max(sorted.newest_record());
        Ok(Self { chunks, pgs, sorted, dirty, tail, head: tail, next_record: last + 1, groups: 0 })
    }

    /// The same as when its group became durable, except that rows may be newer than the record.
    fn fold(&mut self, record: &Record, placed: Option<super::record::UnitId>, number: u64, at: Position) {
        self.next_record = self.next_record.max(number + 1);
        let mut id = record.pg;
        if record.kind.is_of_chunk() {
            id = self.sorted.group_of(record.pg, record.chunk);
            let (pg, stable) = self.chunks.entry(record.chunk).or_insert((id, Stable::default()));
            if number > stable.record {
                *pg = id;
                stable.fold(record, placed, number, &mut Vec::new());
                self.dirty.mark(DirtyKey::Chunk(record.chunk), at);
                if !stable.exists {
                    self.chunks.remove(&record.chunk);
                }
            }
        }
        if self.sorted.of(id.pool).is_some_and(|sorted| number < sorted.before) && !self.pgs.contains_key(&id) {
            return;
        }
        let (last, table) = self.pgs.entry(id).or_default();
        if number > *last {
            *last = number;
            table.apply(record);
            self.dirty.mark(DirtyKey::Pg(id), at);
            if record.kind == Kind::DropPg {
                self.pgs.remove(&id);
            }
        }
    }
}

fn chunk_of_key(key: &[u8]) -> Option<ChunkId> {
    let (vtree, rest) = key.split_first_chunk()?;
    let (layer, rest) = rest.split_first_chunk()?;
    let index = rest.try_into().ok()?;
    let chunk = ChunkId {
        vtree: VtreeId(u64::from_be_bytes(*vtree)),
        layer: LayerId(u32::from_be_bytes(*layer)),
        index: ChunkIndex(u64::from_be_bytes(index)),
    };
    debug_assert_eq!(chunk::row_key(chunk), key);
    Some(chunk)
}

fn pg_of_key(key: &[u8]) -> Option<PgId> {
    let (pool, rest) = key.split_first_chunk()?;
    let index = rest.try_into().ok()?;
    let pg = PgId { pool: PoolId(u32::from_be_bytes(*pool)), index: PgIndex(u32::from_be_bytes(index)) };
    debug_assert_eq!(pg::row_key(pg), key);
    Some(pg)
}
