//! Discovery: a process started and says where it is; an SDS also says which devices it has open.

use super::{
    Context, Effect, Refusal,
    device::OpenedDevice,
    double,
    validate::{self, not_found},
};
use crate::{
    command::{Answer, ErrorCode, proto},
    state::{
        State,
        limits::{MAX_DEVICES_PER_SDS, MAX_NODES, MAX_REGISTRATIONS, MAX_REGISTRATIONS_KEPT},
        model::{Component, HistoryRow, Kind, Node, NodeMetadata, Registration, Status},
    },
};

impl State {
    /// SDSs and SDCs are created by an operator first; MDMs and consoles come into being here. Registering again is
    /// harmless, and from the same process not even counted.
    pub(super) fn register(&mut self, context: Context, command: &proto::RegisterComponent) -> Effect {
        let kind = validate::kind(command.kind)?;
        let name = validate::name(&kind.to_string(), &command.name)?;
        let object = format!("{kind} {name}");
        if kind != Kind::Sds && !command.devices.is_empty() {
            return Err(validate::invalid(object, "only an SDS has devices"));
        }
        if command.registrations_seen > MAX_REGISTRATIONS || (kind != Kind::Sdc && command.registrations_seen > 0) {
            let what = format!("{} registrations seen; only an SDC counts them", command.registrations_seen);
            return Err(validate::invalid(object, what));
        }
        let host = command.host.clone().unwrap_or_default();
        let registration = Registration {
            process: validate::process(&object, &command.process_id)?,
            addresses: validate::addresses(&object, command.addresses.as_ref())?,
            version: validate::text(&object, "version", &command.version)?,
            at_wall_ms: context.wall_time_ms,
            count: command.registrations_seen + 1,
            host_name: validate::text(&object, "host name", &host.name)?,
            follows_doubling: command.follows_doubling,
        };
        let machine = [&host.os, &host.kernel, &host.architecture];
        machine.into_iter().try_for_each(|text| validate::text(&object, "host", text).map(drop))?;
        match kind {
            Kind::Sds => self.register_sds(context, &name, registration, command),
            Kind::Sdc => self.register_sdc(context, &name, registration),
            Kind::Mdm | Kind::Mgmt => self.register_node(context, kind, name, registration),
        }
        .inspect(|answer| {
            if let Answer::Registered(registered) = answer {
                self.note_machine(Component { kind, id: registered.id }, host);
            }
        })
    }

    fn note_machine(&mut self, component: Component, host: proto::Host) {
        self.metadata.put(NodeMetadata {
            component,
            host_name: host.name,
            os: host.os,
            kernel: host.kernel,
            architecture: host.architecture,
            booted_at_ms: host.booted_at_ms,
            cores: host.cores,
            memory_bytes: host.memory_bytes,
        });
    }

    fn register_sds(
        &mut self,
        context: Context,
        name: &str,
        registration: Registration,
        command: &proto::RegisterComponent,
    ) -> Effect {
        let sds = self.sds_registering_as(name).ok_or_else(|| not_found("sds", name))?;
        let (id, domain, previous, sds_alive) = (sds.id, sds.domain, sds.registration.clone(), sds.alive);
        if command.devices.len() > MAX_DEVICES_PER_SDS {
            return Err(validate::limit(format!("sds {name}"), MAX_DEVICES_PER_SDS, "devices of one SDS"));
        }
        let same_process = previous.as_ref().is_some_and(|p| p.process == registration.process);
        let mut opened: Vec<OpenedDevice> = Vec::with_capacity(command.devices.len());
        for device in &command.devices {
            let device = self.opened_device(id, domain, same_process, device)?;
            let pool = device.pool().and_then(|pool| self.pools.get(pool));
            if let Some(pool) = pool.filter(|pool| pool.has_doubled() && !registration.follows_doubling) {
                return Err(double::does_not_follow(format!("sds {name}"), pool));
            }
            if opened.iter().any(|other| other.uuid == device.uuid) {
                return Err(validate::invalid(format!("device {}", device.uuid), "it is listed twice"));
            }
            opened.push(device);
        }
        self.room_for_devices(&opened)?;
        self.has_reported(sds, registration.process, opened.iter().filter_map(OpenedDevice::known))?;

        // Two servers under one name: the second would take the place of the first, which lives. A restart, also one with
        // a new disk, brings a device that was there; a server that replaces another waits until that one is lost.
        let stranger = !opened.is_empty() && opened.iter().all(|device| device.known().is_none());
        let has_devices = self.devices_of(id).any(|device| device.alive);
        if sds_alive && has_devices && !same_process && stranger {
            let what = "another process of this name is alive and has other devices; give this server another name, or \
                        stop the other one first if this one replaces it";
            return Err(Refusal::new(ErrorCode::Precondition, format!("sds {name}"), what));
        }

        let component = Component { kind: Kind::Sds, id: id.get() };
        // Who keeps failing is known, and kept out for a while (S23): the leader takes it back.
        let alive = sds_alive || self.sds_kept_out(id, context.log_time).is_none();
        let registration = self.note_registration(component, previous.as_ref(), registration);
        let registrations = registration.count;
        self.sds.update(id, |sds| {
            sds.registration = Some(registration);
            sds.alive = alive;
            sds.proven_dead = false;
            // It knows its new name: the old one is free.
            if sds.name == name {
                sds.former_name = None;
            }
        });
        let back = opened.iter().filter_map(|device| Some((device.known()?, device.empty))).collect();
        self.no_longer_awaited(id, &back);
        let device_ids = self.open_devices(context, id, alive, &opened);
        if alive {
            self.note_status(context, component, Status::Active, "registered".to_owned());
        }
        Ok(Answer::Registered(proto::Registered {
            id: id.get(),
            device_ids: device_ids.iter().map(|device| device.get()).collect(),
            registrations,
        }))
    }

    /// The newest process owns the SDC: tokens go to no other one (S9).
    fn register_sdc(&mut self, context: Context, name: &str, registration: Registration) -> Effect {
        let sdc = self.sdc_registering_as(name).ok_or_else(|| not_found("sdc", name))?;
        let (id, previous) = (sdc.id, sdc.registration.clone());
        if !registration.follows_doubling
            && let Some(pool) = self.doubled_pool_of(id)
        {
            return Err(double::does_not_follow(format!("sdc {name}"), pool));
        }
        let component = Component { kind: Kind::Sdc, id: id.get() };
        let registration = self.note_registration(component, previous.as_ref(), registration);
        let registrations = registration.count;
        self.sdcs.update(id, |sdc| {
            sdc.registration = Some(registration);
            if sdc.name == name {
                sdc.former_name = None;
            }
        });
        self.note_status(context, component, Status::Active, "registered".to_owned());
        Ok(Answer::Registered(proto::Registered { id: id.get(), device_ids: Vec::new(), registrations }))
    }

    fn register_node(&mut self, context: Context, kind: Kind, name: String, registration: Registration) -> Effect {
        let known = self.nodes.values().find(|node| node.component.kind == kind && node.name == name);
        let (component, previous) = match known {
            Some(node) => (node.component, Some(node.registration.clone())),
            None if self.nodes.len() >= MAX_NODES => {
                return Err(Refusal::new(
                    ErrorCode::Limit,
                    format!("{kind} {name}"),
                    format!("the limit of {MAX_NODES} registered MDMs and consoles is reached"),
                ));
            }
            None => {
                let id = self.take_id(|counters| {
                    counters.node += 1;
                    counters.node
                });
                (Component { kind, id }, None)
            }
        };
        let registration = self.note_registration(component, previous.as_ref(), registration);
        let registrations = registration.count;
        self.nodes.put(Node { component, name, registration });
        self.note_status(context, component, Status::Active, "registered".to_owned());
        Ok(Answer::Registered(proto::Registered { id: component.id, device_ids: Vec::new(), registrations }))
    }

    /// Counts a start and remembers it; the same process again only updates its addresses.
    fn note_registration(
        &mut self,
        component: Component,
        previous: Option<&Registration>,
        new: Registration,
    ) -> Registration {
        let registration = match previous {
            Some(old) if old.process == new.process => {
                // It may have counted before a restore that has forgotten it.
                let count = old.count.max(new.count - 1);
                Registration { count, at_wall_ms: old.at_wall_ms, ..new }
            }
            // What it comes with is one above what it has seen itself: the MDM may have forgotten some (S19).
            Some(old) => Registration { count: (old.count + 1).max(new.count), ..new },
            None => new,
        };
        self.history.put(HistoryRow { component, registration: registration.clone() });
        // By number and not by distance: counts may skip.
        let kept: Vec<_> = self.registrations_of(component).map(|row| row.count).collect();
        for oldest in kept.iter().take(kept.len().saturating_sub(MAX_REGISTRATIONS_KEPT)) {
            self.history.remove((component, *oldest));
        }
        registration
    }
}
