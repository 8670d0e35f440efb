//! Volumes and their mappings.

use pflex_proto::{
    geometry::BLOCK_SIZE,
    ids::{ByteCount, LayerId, SdcId, VolumeEpoch, VolumeId, VtreeId},
};

use super::{Context, Effect, Refusal, created, done, double, validate};
use crate::{
    command::{Answer, ErrorCode, proto},
    state::{
        State,
        limits::{MAX_MAPPINGS_PER_VOLUME, MAX_VOLUME_BYTES, MAX_VOLUMES, OVERCOMMIT_RATIO, REVOKED_WITHIN_MS},
        model::{Access, Mapping, Pool, Volume},
    },
};

impl State {
    pub(super) fn create_volume(&mut self, context: Context, create: &proto::CreateVolume) -> Effect {
        let name = validate::name("volume", &create.name)?;
        if let Some(volume) = self.volume_by_name(&name) {
            return if create.if_not_exists {
                created(volume.id.get(), true)
            } else {
                Err(validate::exists("volume", &name))
            };
        }
        let object = format!("volume {name}");
        let size = volume_size(&object, create.size_bytes)?;
        let token_mode = validate::token_mode(create.token_mode)?;
        let pool = self.pool_or_only(&create.pool)?;
        let pool_id = pool.id;
        if self.pgs_of(pool_id).next().is_none() {
            let what = format!(
                "pool {} has no place yet: its {} copies need as many SDSs (or fault sets) with a device in service",
                pool.name, pool.copies
            );
            return Err(Refusal::new(ErrorCode::Precondition, object, what));
        }
        self.room_for(&object, pool, size, ByteCount(0))?;
        if self.volumes.len() >= MAX_VOLUMES {
            return Err(validate::limit(object, MAX_VOLUMES, "volumes"));
        }
        let id = self.take_id(|counters| {
            counters.volume = counters.volume.next();
            counters.volume
        });
        // From here on the pool's groups may hold data and are never placed anew.
        self.pools.update(pool_id, |pool| pool.used = true);
        self.volumes.put(Volume {
            id,
            name,
            pool: pool_id,
            size,
            vtree: VtreeId(id.get()),
            layer: LayerId(0),
            epoch: VolumeEpoch(1),
            token_mode,
            created_wall_ms: context.wall_time_ms,
        });
        created(id.get(), false)
    }

    /// Whether a pool may promise `size` bytes more, `freed` of which it has promised already.
    fn room_for(&self, object: &str, pool: &Pool, size: ByteCount, freed: ByteCount) -> Result<(), Refusal> {
        let usage = self.space_of(pool);
        let total = (usage.provisioned.get() - freed.get()).saturating_add(size.get());
        if total <= usage.limit().get() {
            return Ok(());
        }
        let what = format!(
            "pool {} would have {total} bytes of volumes, {OVERCOMMIT_RATIO} times its capacity is {}; add devices or \
             choose a smaller size",
            pool.name,
            usage.limit()
        );
        Err(Refusal::new(ErrorCode::NoCapacity, object, what))
    }

    /// Only grows: shrinking would need the copies to free what is cut off before it could grow again (S16).
    pub(super) fn resize_volume(&mut self, resize: &proto::ResizeVolume) -> Effect {
        let volume = self.named_volume(&resize.name)?;
        let (id, old) = (volume.id, volume.size);
        let object = format!("volume {}", volume.name);
        let size = volume_size(&object, resize.size_bytes)?;
        if size < old {
            let what = format!("it has {old} bytes and cannot shrink to {size}");
            return Err(Refusal::new(ErrorCode::Precondition, object, what));
        }
        if let Some(pool) = self.pools.get(volume.pool) {
            self.room_for(&object, pool, size, old)?;
        }
        self.volumes.update(id, |volume| volume.size = size);
        done(id.get())
    }

    /// Mapping again changes access and limits; taking rights away revokes the tokens that had them.
    /// One that loses the right to write has its tokens revoked as by an unmapping.
    pub(super) fn map_volume(&mut self, context: Context, map: &proto::MapVolume) -> Effect {
        let (volume, pool) = self.named_volume(&map.volume).map(|volume| (volume.id, volume.pool))?;
        let sdc = self.named_sdc(&map.sdc)?;
        if let Some(process) = &sdc.registration
            && let Some(pool) = self.pools.get(pool).filter(|pool| pool.has_doubled() && process.ignores_doubling())
        {
            return Err(double::does_not_follow(format!("sdc {}", sdc.name), pool));
        }
        let sdc = sdc.id;
        let access = validate::access(map.access)?;
        let before = self.mapping(volume, sdc).cloned();
        if before.is_none() && self.mappings_of(volume).count() >= MAX_MAPPINGS_PER_VOLUME {
            return Err(validate::limit(format!("volume {}", map.volume), MAX_MAPPINGS_PER_VOLUME, "mappings"));
        }
        let reduced = before.as_ref().is_some_and(|m| m.access == Access::ReadWrite && access == Access::ReadOnly);
        // Said again, it waits again: who asks the second time may not know how the first ended.
        let again = before.is_some_and(|m| m.access == Access::ReadOnly) && access == Access::ReadOnly;
        let revoked = if reduced {
            Some(self.revoke_tokens(context, volume))
        } else {
            again.then(|| self.revoked_by_now(context, volume))
        };
        self.mappings.put(Mapping {
            volume,
            sdc,
            access,
            iops_limit: map.iops_limit,
            bandwidth_limit: map.bandwidth_limit,
        });
        revoked.map_or_else(|| done(volume.get()), |revoked| Ok(Answer::Unmapped(revoked)))
    }

    /// Takes no right away and gives none, so tokens and sessions stay as they are; clients follow the map.
    pub(super) fn limit_mapping(&mut self, limit: &proto::LimitMapping) -> Effect {
        let volume = self.named_volume(&limit.volume)?.id;
        let sdc = self.named_sdc(&limit.sdc)?.id;
        let Some(mapping) = self.mapping(volume, sdc).cloned() else {
            let object = format!("volume {}", limit.volume);
            return Err(Refusal::new(ErrorCode::NotFound, object, format!("it is not mapped to sdc {}", limit.sdc)));
        };
        self.mappings.put(Mapping {
            iops_limit: limit.iops_limit.unwrap_or(mapping.iops_limit),
            bandwidth_limit: limit.bandwidth_limit.unwrap_or(mapping.bandwidth_limit),
            ..mapping
        });
        done(volume.get())
    }

    /// Raises the volume's epoch (S20). The service waits for the SDSs; `tokens_expire_log_ms` bounds that wait, since
    /// by then no token issued before this command is good on any of them, whatever they hear.
    pub(super) fn unmap_volume(&mut self, context: Context, unmap: &proto::UnmapVolume) -> Effect {
        let volume = self.named_volume(&unmap.volume)?.id;
        let sdc = self.named_sdc(&unmap.sdc)?.id;
        if self.mappings.remove((volume, sdc)).is_none() {
            let object = format!("volume {}", unmap.volume);
            return Err(Refusal::new(ErrorCode::NotFound, object, format!("it is not mapped to sdc {}", unmap.sdc)));
        }
        Ok(Answer::Unmapped(self.revoke_tokens(context, volume)))
    }

    /// Whether an SDC gets tokens. Taken back, it loses those for everything mapped to it; others of the same volumes get
    /// new ones at once.
    pub(super) fn approve_sdc(&mut self, context: Context, approve: &proto::ApproveSdc) -> Effect {
        let id = self.named_sdc(&approve.name)?.id;
        let had = self.sdcs.get(id).is_some_and(|sdc| sdc.approved);
        self.sdcs.update(id, |sdc| sdc.approved = approve.approved);
        if approve.approved {
            return done(u64::from(id.get()));
        }
        if had {
            let mapped: Vec<VolumeId> =
                self.mappings.values().filter(|mapping| mapping.sdc == id).map(|mapping| mapping.volume).collect();
            for volume in mapped {
                self.volumes.update(volume, |volume| volume.epoch = volume.epoch.next());
            }
        }
        // Said again, it waits again; no volume is every server.
        Ok(Answer::Unmapped(proto::Unmapped {
            volume_id: 0,
            volume_epoch: 0,
            tokens_expire_log_ms: context.log_time.get() + REVOKED_WITHIN_MS,
        }))
    }

    fn revoke_tokens(&mut self, context: Context, volume: VolumeId) -> proto::Unmapped {
        self.volumes.update(volume, |volume| volume.epoch = volume.epoch.next());
        self.revoked_by_now(context, volume)
    }

    /// What waits for the servers to know the volume's present epoch.
    fn revoked_by_now(&self, context: Context, volume: VolumeId) -> proto::Unmapped {
        let epoch = self.volumes.get(volume).map(|volume| volume.epoch).unwrap_or_default();
        proto::Unmapped {
            volume_id: volume.get(),
            volume_epoch: epoch.get(),
            tokens_expire_log_ms: context.log_time.get() + REVOKED_WITHIN_MS,
        }
    }

    pub(super) fn delete_volume(&mut self, name: &str) -> Effect {
        let id = self.named_volume(name)?.id;
        if let Some(mapping) = self.mappings_of(id).next() {
            let sdc = self.sdcs.get(mapping.sdc).map_or_else(|| SdcId::to_string(&mapping.sdc), |sdc| sdc.name.clone());
            let what = format!("it is mapped to sdc {sdc}; unmap it first");
            return Err(Refusal::new(ErrorCode::InUse, format!("volume {name}"), what));
        }
        if let Some(snapshot) = self.snapshots_of(id).next() {
            let more = match self.snapshots_of(id).count() {
                0 | 1 => String::new(),
                all => format!(" and {} more", all - 1),
            };
            let what = format!("it has snapshot {name}@{}{more}; delete what depends on it first", snapshot.name);
            return Err(Refusal::new(ErrorCode::InUse, format!("volume {name}"), what));
        }
        self.volumes.remove(id);
        done(id.get())
    }
}

fn volume_size(object: &str, bytes: u64) -> Result<ByteCount, Refusal> {
    let block = u64::from(BLOCK_SIZE);
    if bytes == 0 {
        return Err(validate::invalid(object, format!("a size of 0; give a multiple of {block} bytes")));
    }
    if !bytes.is_multiple_of(block) {
        let what = format!(
            "{bytes} bytes is not a multiple of {block}; the next one is {}",
            bytes.div_ceil(block).saturating_mul(block)
        );
        return Err(validate::invalid(object, what));
    }
    if bytes > MAX_VOLUME_BYTES {
        return Err(validate::invalid(
            object,
            format!("{bytes} bytes is over the limit of {MAX_VOLUME_BYTES} (1 PiB)"),
        ));
    }
    Ok(ByteCount(bytes))
}
