//! What an SDC keeps so that it can start again while no MDM answers: its part of the map, and its tokens.
//!
//! A restarted process that goes on with kept tokens goes on as the process that they name, so the rule is about being the
//! only one that does (S9). It may, if all of this holds; else the files are removed, and it waits for an MDM:
//! - the files are of this very directory on this very start of this machine: they name the inode of the lock, which the
//!   process holds, and the kernel's boot id. A copied directory has another inode, a cloned machine another boot;
//! - they are of the cluster and generation that the state names (S19), readable by the owner alone, and whole;
//! - a token can still be good: it was asked for less than its life ago by CLOCK_BOOTTIME. The servers judge by log time;
//! - its number of this start is one of those that belong to the registration that the files name, however many starts have
//!   failed before it could look at them (`state`).
//!
//! The process registers as soon as an MDM answers. Then it gets a higher number, or another process has registered since;
//! tokens go to one of them only, and the other one ends. Removed by hand and put back within a minute they are not told
//! from the right ones: who does that to a directory in use loses it.
//!
//! Each file: magic `PFLEXKPT`, version (u32), CRC32C of what follows (u32), length of the JSON (u32), the JSON, and in the
//! map's file a `pflex.ClusterMap` as protobuf. Little endian. Replaced whole, at most twice a second.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use pflex_common::clock::MonotonicTime;
use pflex_common::durable::{self, DurableError};
use pflex_common::map::{ClusterMap, Watcher};
use pflex_common::shutdown::Shutdown;
use pflex_proto::ids::{ClusterGeneration, ClusterId, ProcessId, SdcId, VolumeId};
use pflex_proto::pb;
use pflex_proto::token::{KEY_SIZE, TokenKey};
use prost::Message as _;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio::sync::Notify;
use tracing::warn;

use super::state::{LockId, State};
use crate::engine::tokens::Issued;

const MAGIC: [u8; 8] = *b"PFLEXKPT";
const VERSION: u32 = 1;
const HEADER: usize = 20;
const MAP: &str = "kept-map";
const TOKENS: &str = "kept-tokens";
/// A token's life (S21); what was asked for earlier is not tried.
const LIFE: Duration = Duration::from_secs(60);
/// Between two writes of the files.
const PAUSE: Duration = Duration::from_millis(500);

/// Why a process does not go on with what was kept.
#[derive(Debug, thiserror::Error)]
pub(super) enum Unusable {
    #[error("nothing was kept")]
    Nothing,
    #[error(transparent)]
    File(#[from] DurableError),
    #[error("{path} has mode {mode:o}: others than its owner may have read it")]
    Mode { path: PathBuf, mode: u32 },
    #[error("{path} is damaged: {what}")]
    Damaged { path: PathBuf, what: &'static str },
    #[error("{path} has version {found}, this release knows {VERSION}")]
    Newer { path: PathBuf, found: u32 },
    #[error("it is of another start of this machine, or of another machine")]
    OtherBoot,
    #[error("it is of another directory: these files were copied")]
    Copied,
    #[error("it is of cluster {0}")]
    OtherCluster(ClusterId),
    #[error("it is of generation {theirs} of the cluster, and {ours} has been followed since")]
    OtherGeneration { theirs: ClusterGeneration, ours: ClusterGeneration },
    #[error("map and tokens are of different processes")]
    Mixed,
    #[error("its newest token was asked for {0:?} ago and has expired")]
    Expired(Duration),
    #[error("its numbers are used up: it has started too often without an MDM that answered")]
    TooOften,
}

/// Whose files they are.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Owner {
    pub(super) cluster: ClusterId,
    pub(super) generation: ClusterGeneration,
    pub(super) sdc: u32,
    pub(super) process: ProcessId,
    /// The registration whose numbers of starts are its own.
    registration: u64,
    lock: LockId,
    boot_id: String,
}

impl Owner {
    /// This process, once it is registered.
    pub(super) fn new(state: &State, cluster: ClusterId, sdc: SdcId, process: ProcessId) -> Self {
        let (lock, boot_id) = (state.lock_id(), boot_id());
        let (generation, registration) = (state.generation(), state.registrations());
        Self { cluster, generation, sdc: sdc.0, process, registration, lock, boot_id }
    }
}

/// A token as it is kept. Never printed.
#[derive(Clone, Serialize, Deserialize)]
struct KeptToken {
    volume: u64,
    token: Vec<u8>,
    key: [u8; KEY_SIZE],
    /// CLOCK_BOOTTIME when it was asked for.
    asked_ms: u64,
}

#[derive(Serialize, Deserialize)]
struct TokenFile {
    owner: Owner,
    tokens: Vec<KeptToken>,
}

#[derive(Serialize, Deserialize)]
struct MapFile {
    owner: Owner,
}

/// What a restarted process goes on with.
pub(super) struct Kept {
    pub(super) owner: Owner,
    pub(super) map: ClusterMap,
    tokens: Vec<KeptToken>,
}

impl Kept {
    /// What was kept in the directory of `state`, if this process may go on with it at `now`; if not, it is removed.
    pub(super) fn load(state: &State, now: MonotonicTime) -> Result<Self, Unusable> {
        let loaded = Self::load_from(&state.dir(), state, now);
        if loaded.is_err() {
            remove(&state.dir());
        }
        loaded
    }

    fn load_from(dir: &Path, state: &State, now: MonotonicTime) -> Result<Self, Unusable> {
        let (MapFile { owner }, map) = read::<MapFile>(&dir.join(MAP))?;
        let (TokenFile { owner: of_tokens, tokens }, _) = read::<TokenFile>(&dir.join(TOKENS))?;
        if owner != of_tokens {
            return Err(Unusable::Mixed);
        }
        if owner.boot_id.is_empty() || owner.boot_id != boot_id() {
            return Err(Unusable::OtherBoot);
        }
        if owner.lock != state.lock_id() {
            return Err(Unusable::Copied);
        }
        if state.cluster() != Some(owner.cluster) {
            return Err(Unusable::OtherCluster(owner.cluster));
        }
        if state.generation() != owner.generation {
            return Err(Unusable::OtherGeneration { theirs: owner.generation, ours: state.generation() });
        }
        if state.registrations() != owner.registration {
            return Err(Unusable::TooOften);
        }
        let age = |token: &KeptToken| now.since(MonotonicTime::from_start(Duration::from_millis(token.asked_ms)));
        let youngest = tokens.iter().map(age).min().ok_or(Unusable::Nothing)?;
        if youngest >= LIFE {
            return Err(Unusable::Expired(youngest));
        }
        let damaged = |what| Unusable::Damaged { path: dir.join(MAP), what };
        let map = pb::ClusterMap::decode(&map[..]).map_err(|_error| damaged("it is no map"))?;
        let map = ClusterMap::from_full(map).map_err(|_error| damaged("the map makes no sense"))?;
        let tokens = tokens.into_iter().filter(|token| age(token) < LIFE).collect();
        Ok(Self { owner, map, tokens })
    }

    /// The tokens.
    pub(super) fn tokens(&self) -> impl Iterator<Item = Issued> {
        self.tokens.iter().map(|token| Issued {
            volume: VolumeId(token.volume),
            signed: token.token.clone(),
            key: TokenKey::from_bytes(token.key),
        })
    }
}

/// Removes the files: whoever finds none waits for an MDM.
pub(super) fn remove(dir: &Path) {
    for name in [TOKENS, MAP] {
        let _ = std::fs::remove_file(dir.join(name));
    }
}

/// Keeps what a process has.
pub(super) struct Keeping {
    dir: PathBuf,
    owner: Mutex<Owner>,
    tokens: Mutex<HashMap<VolumeId, KeptToken>>,
    changed: Notify,
}

impl std::fmt::Debug for Keeping {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Keeping").field("dir", &self.dir).field("owner", &self.owner).finish_non_exhaustive()
    }
}

impl Keeping {
    /// Begins with what was kept before, if anything.
    pub(super) fn new(dir: PathBuf, owner: Owner, kept: Option<&Kept>) -> Arc<Self> {
        let tokens = kept.map(|kept| kept.tokens.clone()).unwrap_or_default();
        let tokens = Mutex::new(tokens.into_iter().map(|token| (VolumeId(token.volume), token)).collect());
        Arc::new(Self { dir, owner: Mutex::new(owner), tokens, changed: Notify::new() })
    }

    /// The process has registered again: from now on the numbers of this registration are its own. Whoever starts before that
    /// is written finds files of another one, and waits for an MDM.
    pub(super) fn registered(&self, state: &State) {
        let mut owner = self.owner.lock().unwrap_or_else(PoisonError::into_inner);
        (owner.generation, owner.registration) = (state.generation(), state.registrations());
        drop(owner);
        self.changed.notify_one();
    }

    /// Keeps tokens that were asked for at `asked`.
    pub(super) fn note(&self, issued: &[Issued], asked: MonotonicTime) {
        let asked_ms = asked.since_boot().as_millis() as u64;
        let mut tokens = self.tokens();
        for Issued { volume, signed, key } in issued {
            let (token, key) = (signed.clone(), *key.as_bytes());
            tokens.insert(*volume, KeptToken { volume: volume.0, token, key, asked_ms });
        }
        drop(tokens);
        self.changed.notify_one();
    }

    /// Writes what changes until `shutdown`.
    pub(super) async fn run(self: Arc<Self>, mut watcher: Watcher, shutdown: Shutdown) {
        let work = async {
            let (mut map, mut tokens) = (Vec::new(), Vec::new());
            loop {
                let latest = watcher.borrow_and_update().clone();
                (map, tokens) = {
                    let keeping = Arc::clone(&self);
                    let written = tokio::task::spawn_blocking(move || {
                        keeping.write(latest.as_deref(), &mut map, &mut tokens);
                        (map, tokens)
                    });
                    written.await.unwrap_or_default()
                };
                tokio::time::sleep(PAUSE).await;
                tokio::select! {
                    () = self.changed.notified() => {}
                    changed = watcher.changed() => if changed.is_err() { self.changed.notified().await },
                }
            }
        };
        tokio::select! {
            () = shutdown.cancelled() => {}
            () = work => {}
        }
    }

    /// Writes what differs from what was written last.
    fn write(&self, map: Option<&ClusterMap>, last_map: &mut Vec<u8>, last_tokens: &mut Vec<u8>) {
        let Some(map) = map else { return };
        let owner = self.owner.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let is_mapped = |volume: &VolumeId| {
            map.volumes.get(volume).is_some_and(|volume| volume.mapping(SdcId(owner.sdc)).is_some())
        };
        let tokens = {
            let mut held = self.tokens();
            held.retain(|volume, _| is_mapped(volume));
            let mut tokens: Vec<_> = held.values().cloned().collect();
            tokens.sort_by_key(|token| token.volume);
            tokens
        };
        let map = file(&MapFile { owner: owner.clone() }, &map.kept_for(SdcId(owner.sdc)).encode_to_vec());
        let tokens = file(&TokenFile { owner, tokens }, &[]);
        for (name, content, last) in [(MAP, map, last_map), (TOKENS, tokens, last_tokens)] {
            if content == *last {
                continue;
            }
            match durable::replace_private(&self.dir.join(name), &content) {
                Ok(()) => *last = content,
                // A start without MDMs is what it costs; the next change tries again.
                Err(error) => warn!(error = &error as &dyn std::error::Error, "what a restart needs is not kept"),
            }
        }
    }

    fn tokens(&self) -> MutexGuard<'_, HashMap<VolumeId, KeptToken>> {
        self.tokens.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn boot_id() -> String {
    std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default().trim().to_owned()
}

fn file(json: &impl Serialize, rest: &[u8]) -> Vec<u8> {
    let json = serde_json::to_vec(json).expect("plain data is always JSON");
    let length = u32::try_from(json.len()).expect("a few kilobytes for each volume").to_le_bytes();
    let crc = crc32c::crc32c_append(crc32c::crc32c_append(crc32c::crc32c(&length), &json), rest);
    [&MAGIC[..], &VERSION.to_le_bytes(), &crc.to_le_bytes(), &length, &json, rest].concat()
}

fn read<T: DeserializeOwned>(path: &Path) -> Result<(T, Vec<u8>), Unusable> {
    use std::os::unix::fs::PermissionsExt as _;
    let mut content = durable::read_if_exists(path)?.ok_or(Unusable::Nothing)?;
    let path = || path.to_owned();
    let mode = std::fs::metadata(path()).map_or(0, |file| file.permissions().mode() & 0o777);
    if mode & 0o077 != 0 {
        return Err(Unusable::Mode { path: path(), mode });
    }
    let damaged = |what| Unusable::Damaged { path: path(), what };
    let word = |at: usize| Some(u32::from_le_bytes(content.get(at..at + 4)?.try_into().ok()?));
    let (Some(version), Some(crc), Some(length)) = (word(8), word(12), word(16)) else {
        return Err(damaged("it is too short"));
    };
    if content[..8] != MAGIC {
        return Err(damaged("it is another kind of file"));
    }
    if version != VERSION {
        return Err(Unusable::Newer { path: path(), found: version });
    }
    if crc != crc32c::crc32c(&content[16..]) {
        return Err(damaged("its checksum is wrong"));
    }
    let end = HEADER.saturating_add(length as usize);
    let json = content.get(HEADER..end).ok_or_else(|| damaged("its length is wrong"))?;
    let json = serde_json::from_slice(json).map_err(|_error| damaged("its JSON is wrong"))?;
    Ok((json, content.split_off(end)))
}

#[cfg(test)]
mod tests;
