//! The data of LIST_META_CONTEXT and SET_META_CONTEXT, and which contexts they find.

use bytes::{Buf, BytesMut};

use super::string;
use crate::nbd::wire::{BASE_ALLOCATION, option};

/// The namespace of the only context.
const BASE: &str = "base:";

/// A question for metadata contexts of an export.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MetaRequest {
    /// The export; empty means the default one.
    pub name: String,
    /// Whether they are chosen, not only listed.
    pub(super) sets: bool,
    /// Whether `base:allocation` is among them.
    pub(super) finds_allocation: bool,
}

/// Parses it: a length and that name, a count and that many queries, nothing behind them. None: malformed.
///
/// Queries in namespaces that are not known, and leaf names that are not, find nothing; so does one in no namespace at all,
/// which the document allows to refuse, and other servers do not.
pub(super) fn parse(kind: u32, data: &mut BytesMut) -> Option<MetaRequest> {
    let sets = kind == option::SET_META_CONTEXT;
    let name = counted(data)?;
    let count = data.try_get_u32().ok()?;
    // Without a query everything is listed, and nothing is set.
    let mut finds_allocation = count == 0 && !sets;
    for _ in 0..count {
        let query = counted(data)?;
        // The wildcard is one for lists alone.
        finds_allocation |= query == BASE_ALLOCATION || (query == BASE && !sets);
    }
    data.is_empty().then_some(MetaRequest { name, sets, finds_allocation })
}

fn counted(data: &mut BytesMut) -> Option<String> {
    let length = data.try_get_u32().ok()? as usize;
    if length > data.len() {
        return None;
    }
    string(&data.split_to(length))
}
