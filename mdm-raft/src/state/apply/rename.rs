//! New names. An id never changes, so nothing that refers to the object notices.
//!
//! An SDS or SDC says its name when its process registers, from a file that this command cannot change. So it answers to
//! its former name too, until a process of it registers under the new one; until then nobody else may have the old name,
//! or two servers could take themselves for one another.

use super::{Effect, Refusal, done, validate};
use crate::{
    command::{ErrorCode, proto},
    state::State,
};

/// The name is one that a component still answers to.
pub(super) fn reserved(kind: &str, name: &str, now: &str) -> Refusal {
    let what = format!(
        "{kind} {now} was called so, and answers to it until its process registers as {now}; choose another name, or \
         change the name in its configuration and restart it"
    );
    Refusal::new(ErrorCode::AlreadyExists, format!("{kind} {name}"), what)
}

impl State {
    pub(super) fn rename(&mut self, rename: &proto::Rename) -> Effect {
        let old = rename.name.as_str();
        /// Finds, checks that the new name is free (or its own), and renames.
        macro_rules! rename {
            ($table:ident, $named:ident, $by_name:ident, $kind:literal) => {{
                let id = self.$named(old)?.id;
                let name = validate::name($kind, &rename.new_name)?;
                if self.$by_name(&name).is_some_and(|other| other.id != id) {
                    return Err(validate::exists($kind, &name));
                }
                self.$table.update(id, |row| row.name = name);
                done(id.get())
            }};
            // A component: it keeps the name that its process knows.
            ($table:ident, $named:ident, $by_name:ident, $formerly:ident, $kind:literal) => {{
                let id = self.$named(old)?.id;
                let name = validate::name($kind, &rename.new_name)?;
                if self.$by_name(&name).is_some_and(|other| other.id != id) {
                    return Err(validate::exists($kind, &name));
                }
                if let Some(other) = self.$formerly(&name).filter(|other| other.id != id) {
                    return Err(reserved($kind, &name, &other.name));
                }
                self.$table.update(id, |row| {
                    let before = std::mem::replace(&mut row.name, name);
                    let known = row.former_name.take().unwrap_or(before);
                    row.former_name = Some(known).filter(|known| *known != row.name);
                });
                done(id.get())
            }};
        }
        match proto::Object::try_from(rename.kind) {
            Ok(proto::Object::Domain) => rename!(domains, named_domain, domain_by_name, "domain"),
            Ok(proto::Object::Pool) => rename!(pools, named_pool, pool_by_name, "pool"),
            Ok(proto::Object::FaultSet) => rename!(fault_sets, named_fault_set, fault_set_by_name, "fault-set"),
            Ok(proto::Object::Volume) => rename!(volumes, named_volume, volume_by_name, "volume"),
            Ok(proto::Object::Sds) => rename!(sds, named_sds, sds_by_name, sds_formerly, "sds"),
            Ok(proto::Object::Sdc) => rename!(sdcs, named_sdc, sdc_by_name, sdc_formerly, "sdc"),
            Ok(proto::Object::Device | proto::Object::Unspecified) | Err(_) => {
                Err(validate::invalid(old, format!("kind {} cannot be renamed", rename.kind)))
            }
        }
    }
}
