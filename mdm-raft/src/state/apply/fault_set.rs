//! Fault sets: SDSs that fail together, so that no two copies of a group are in one of them (I5).

use pflex_proto::ids::{DomainId, FaultSetId};

use super::{Effect, Refusal, created, done, topology::in_use, validate};
use crate::{
    command::{ErrorCode, proto},
    state::{State, limits::MAX_FAULT_SETS, model::FaultSet},
};

impl State {
    pub(super) fn create_fault_set(&mut self, create: &proto::CreateFaultSet) -> Effect {
        let name = validate::name("fault-set", &create.name)?;
        if let Some(set) = self.fault_set_by_name(&name) {
            return if create.if_not_exists {
                created(set.id.get(), true)
            } else {
                Err(validate::exists("fault-set", &name))
            };
        }
        let domain = self.domain_or_only(&create.domain)?.id;
        let id = self.new_fault_set(domain, name)?;
        created(id.get(), false)
    }

    /// The fault set that an SDS of this domain names, made when there is none.
    pub(super) fn fault_set_or_new(&mut self, domain: DomainId, name: &str) -> Result<FaultSetId, Refusal> {
        let name = validate::name("fault-set", name)?;
        match self.fault_set_by_name(&name) {
            Some(set) if set.domain == domain => Ok(set.id),
            Some(_) => {
                let what = "it is in another domain than the SDS";
                Err(Refusal::new(ErrorCode::Invalid, format!("fault-set {name}"), what))
            }
            None => self.new_fault_set(domain, name),
        }
    }

    fn new_fault_set(&mut self, domain: DomainId, name: String) -> Result<FaultSetId, Refusal> {
        if self.fault_sets.len() >= MAX_FAULT_SETS {
            return Err(validate::limit(format!("fault-set {name}"), MAX_FAULT_SETS, "fault sets"));
        }
        let id = self.take_id(|counters| {
            counters.fault_set = counters.fault_set.next();
            counters.fault_set
        });
        self.fault_sets.put(FaultSet { id, domain, name });
        Ok(id)
    }

    pub(super) fn delete_fault_set(&mut self, name: &str) -> Effect {
        let id = self.named_fault_set(name)?.id;
        if let Some(sds) = self.sds_in(id).next() {
            let what = format!("sds {} is in it; `pflex sds remove` takes it out", sds.name);
            return Err(in_use("fault-set", name, what));
        }
        self.fault_sets.remove(id);
        done(id.get())
    }
}
