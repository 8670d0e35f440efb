//! A volume as it is printed.

use pflex_proto::pb::{Access, Mapping, TokenMode, Volume};

use crate::{
    cli::names::Names,
    client::{Freshness, Session},
    error::Failure,
    output::{Record, Value},
};

/// The names that a volume's ids stand for.
#[derive(Default)]
pub(super) struct Lookup {
    pools: Names,
    sdcs: Names,
}

impl Lookup {
    pub(super) async fn load(session: &Session, fresh: Freshness) -> Result<Self, Failure> {
        Ok(Self { pools: Names::pools(session, fresh).await?, sdcs: Names::sdcs(session, fresh).await? })
    }

    pub(super) fn record(&self, volume: &Volume) -> Record {
        let mode = match volume.token_mode() {
            TokenMode::Lease | TokenMode::Unspecified => "lease",
            TokenMode::PerIo => "per-io",
        };
        let mapped_to: Vec<String> = volume.mappings.iter().map(|mapping| self.sdcs.of(mapping.sdc_id)).collect();
        let created = Some(volume.created_at_ms).filter(|ms| *ms > 0).map_or(Value::Null, Value::Time);
        Record::new(&volume.name)
            .column("name", "NAME", &volume.name)
            .wide("id", "ID", volume.id)
            .column("size_bytes", "SIZE", Value::Bytes(volume.size_bytes))
            .column("pool", "POOL", self.pools.of(volume.pool_id))
            .column("mapped_to", "MAPPED TO", mapped_to)
            .hidden("mappings", Value::List(volume.mappings.iter().map(|mapping| self.mapping(mapping)).collect()))
            .wide("token_mode", "TOKEN MODE", mode)
            .wide("epoch", "EPOCH", volume.epoch)
            .hidden("vtree_id", volume.vtree_id)
            .hidden("layer_id", volume.layer_id)
            .wide("created_at", "CREATED", created)
    }

    fn mapping(&self, mapping: &Mapping) -> Value {
        let access = match mapping.access() {
            Access::ReadWrite | Access::Unspecified => "rw",
            Access::ReadOnly => "ro",
        };
        // No limit is null, not 0: a reader must not take it for "nothing allowed".
        let limit = |value: u64| Some(value).filter(|value| *value > 0);
        Value::Object(vec![
            ("sdc", self.sdcs.of(mapping.sdc_id).into()),
            ("access", access.into()),
            ("iops_limit", limit(mapping.iops_limit).into()),
            ("bandwidth_limit_bytes", limit(mapping.bandwidth_limit).map_or(Value::Null, Value::Bytes)),
        ])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::output::{Document, Format};

    #[test]
    fn the_keys_of_a_volume_are_a_contract() {
        let mapping = Mapping { sdc_id: 1, access: Access::ReadOnly.into(), iops_limit: 0, bandwidth_limit: 5 };
        let volume = Volume { name: "db".into(), size_bytes: 4096, mappings: vec![mapping], ..Volume::default() };
        let document = Document::One(Lookup::default().record(&volume));
        let json: serde_json::Value = serde_json::from_str(&crate::output::render(&document, Format::Json)).unwrap();
        let mut keys: Vec<_> = json.as_object().unwrap().keys().map(String::as_str).collect();
        keys.sort_unstable();
        let expected = [
            "created_at",
            "epoch",
            "id",
            "layer_id",
            "mapped_to",
            "mappings",
            "name",
            "pool",
            "size_bytes",
            "token_mode",
            "vtree_id",
        ];
        assert_eq!(keys, expected);
        assert_eq!(json["mappings"][0]["access"], "ro");
        assert!(json["mappings"][0]["iops_limit"].is_null());
        assert_eq!(json["mappings"][0]["bandwidth_limit_bytes"], 5);
    }
}
