//! Raw fields of a command into domain values, and names into objects.

use pflex_proto::ids::{Incarnation, ProcessId};

use super::Refusal;
use crate::{
    command::{ErrorCode, proto},
    state::{
        State,
        limits::{MAX_NAME_BYTES, MAX_TEXT_BYTES},
        model::{Access, Addresses, Domain, FaultSet, Kind, Pool, Sdc, Sds, TokenMode, Volume, WritePolicy},
    },
};

pub(super) fn invalid(object: impl Into<String>, what: impl Into<String>) -> Refusal {
    Refusal::new(ErrorCode::Invalid, object, what)
}

pub(super) fn not_found(kind: &str, name: &str) -> Refusal {
    Refusal::new(
        ErrorCode::NotFound,
        format!("{kind} {name}"),
        format!("there is no {kind} of this name; `pflex {kind} list` shows those there are"),
    )
}

pub(super) fn exists(kind: &str, name: &str) -> Refusal {
    Refusal::new(
        ErrorCode::AlreadyExists,
        format!("{kind} {name}"),
        format!("there is a {kind} of this name already; choose another"),
    )
}

pub(super) fn limit(object: impl Into<String>, limit: usize, of: &str) -> Refusal {
    Refusal::new(ErrorCode::Limit, object, format!("the limit of {limit} {of} is reached; `pflex limits` shows them"))
}

/// Letters, digits, `.`, `_` and `-`, beginning with a letter or digit: safe in a URI, a file name, a metric label and
/// beside the `@` of a snapshot.
pub(super) fn name(kind: &str, name: &str) -> Result<String, Refusal> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    let good = name.len() <= MAX_NAME_BYTES
        && name.starts_with(|c: char| c.is_ascii_alphanumeric())
        && name.chars().all(allowed);
    if good {
        return Ok(name.to_owned());
    }
    // What is shown is bounded and printable, whatever was sent.
    let shown: String = name.chars().take(MAX_NAME_BYTES).flat_map(char::escape_default).collect();
    Err(invalid(
        format!("{kind} {shown:?}"),
        format!("a name has 1 to {MAX_NAME_BYTES} letters, digits, `.`, `_` or `-` and begins with a letter or digit"),
    ))
}

/// Free text that is stored: bounded.
pub(super) fn text(object: &str, field: &str, text: &str) -> Result<String, Refusal> {
    if text.len() <= MAX_TEXT_BYTES {
        return Ok(text.to_owned());
    }
    Err(invalid(object, format!("its {field} has {} bytes, at most {MAX_TEXT_BYTES} are kept", text.len())))
}

pub(super) fn process(object: &str, bytes: &[u8]) -> Result<ProcessId, Refusal> {
    ProcessId::from_slice(bytes).map_err(|why| invalid(object, format!("its process id is no uuid: {why}")))
}

pub(super) fn incarnation(object: &str, raw: u64) -> Result<Incarnation, Refusal> {
    if raw == 0 {
        return Err(invalid(object, "incarnation 0 is none: the first open of a device raises it to 1"));
    }
    Ok(Incarnation(raw))
}

pub(super) fn kind(raw: i32) -> Result<Kind, Refusal> {
    match proto::Kind::try_from(raw) {
        Ok(proto::Kind::Mdm) => Ok(Kind::Mdm),
        Ok(proto::Kind::Sds) => Ok(Kind::Sds),
        Ok(proto::Kind::Sdc) => Ok(Kind::Sdc),
        Ok(proto::Kind::Mgmt) => Ok(Kind::Mgmt),
        Ok(proto::Kind::Unspecified) | Err(_) => Err(invalid("component", format!("{raw} is no kind of component"))),
    }
}

pub(super) fn write_policy(raw: i32) -> Result<WritePolicy, Refusal> {
    match proto::WritePolicy::try_from(raw) {
        Ok(proto::WritePolicy::Unspecified | proto::WritePolicy::Sync) => Ok(WritePolicy::Sync),
        Ok(proto::WritePolicy::Writeback) => Ok(WritePolicy::Writeback),
        Err(_) => Err(invalid("pool", format!("{raw} is no write policy"))),
    }
}

pub(super) fn token_mode(raw: i32) -> Result<TokenMode, Refusal> {
    match proto::TokenMode::try_from(raw) {
        Ok(proto::TokenMode::Unspecified | proto::TokenMode::Lease) => Ok(TokenMode::Lease),
        Ok(proto::TokenMode::PerIo) => Ok(TokenMode::PerIo),
        Err(_) => Err(invalid("volume", format!("{raw} is no token mode"))),
    }
}

pub(super) fn access(raw: i32) -> Result<Access, Refusal> {
    match proto::Access::try_from(raw) {
        Ok(proto::Access::Unspecified | proto::Access::ReadWrite) => Ok(Access::ReadWrite),
        Ok(proto::Access::ReadOnly) => Ok(Access::ReadOnly),
        Err(_) => Err(invalid("mapping", format!("{raw} is no access"))),
    }
}

pub(super) fn addresses(object: &str, raw: Option<&proto::Addresses>) -> Result<Addresses, Refusal> {
    let Some(raw) = raw else { return Ok(Addresses::default()) };
    let address = |field: &str, value: &str| text(object, field, value);
    Ok(Addresses {
        data: address("data address", &raw.data)?,
        control: address("control address", &raw.control)?,
        management: address("management address", &raw.management)?,
        raft: address("raft address", &raw.raft)?,
        api: address("api address", &raw.api)?,
        nbd: address("nbd address", &raw.nbd)?,
    })
}

macro_rules! named {
    ($($function:ident, $lookup:ident, $kind:literal: $row:ident;)*) => {$(
        pub(super) fn $function(&self, name: &str) -> Result<&$row, Refusal> {
            self.$lookup(name).ok_or_else(|| not_found($kind, name))
        }
    )*};
}

impl State {
    named! {
        named_domain, domain_by_name, "domain": Domain;
        named_pool, pool_by_name, "pool": Pool;
        named_fault_set, fault_set_by_name, "fault-set": FaultSet;
        named_sds, sds_by_name, "sds": Sds;
        named_sdc, sdc_by_name, "sdc": Sdc;
        named_volume, volume_by_name, "volume": Volume;
    }

    /// The domain of this name; with no name, the only one there is.
    pub(super) fn domain_or_only(&self, name: &str) -> Result<&Domain, Refusal> {
        if !name.is_empty() {
            return self.named_domain(name);
        }
        let mut domains = self.all_domains();
        match (domains.next(), domains.next()) {
            (Some(only), None) => Ok(only),
            (None, _) => Err(Refusal::new(
                ErrorCode::Precondition,
                "domain",
                "there is none yet; `pflex domain create NAME` makes one",
            )),
            (Some(_), Some(_)) => Err(invalid("domain", "there are several; name one with --domain")),
        }
    }

    /// The pool of this name; with no name, the only one there is.
    pub(super) fn pool_or_only(&self, name: &str) -> Result<&Pool, Refusal> {
        if !name.is_empty() {
            return self.named_pool(name);
        }
        let mut pools = self.all_pools();
        match (pools.next(), pools.next()) {
            (Some(only), None) => Ok(only),
            (None, _) => Err(Refusal::new(
                ErrorCode::Precondition,
                "pool",
                "there is none yet; `pflex pool create NAME` makes one",
            )),
            (Some(_), Some(_)) => Err(invalid("pool", "there are several; name one with --pool")),
        }
    }
}
