//! `pflex topology`: everything there is and how it hangs together, as a tree; `-o json` for programs.

use std::fmt::Write as _;

use pflex_proto::pb::{
    Component, ComponentKind, ListRequest, TopologyRequest, admin_client::AdminClient,
    discovery_client::DiscoveryClient, topology_client::TopologyClient,
};

use super::{Tool, names::all, target::Target, view::ViewArgs, vitals};
use crate::{
    client::{Freshness, Session, ask},
    error::Failure,
    output::{self, Document, Format, Record, Value},
    units::format_size,
};

/// Volumes of a pool listed in the tree; more of them are counted.
const LISTED: usize = 32;

#[derive(clap::Args, Clone, Debug)]
#[command(after_help = "Examples:\n  pflex topology\n  pflex topology --watch\n  pflex topology -o json")]
pub(super) struct Args {
    #[command(flatten)]
    pub(super) target: Target,
    #[command(flatten)]
    view: ViewArgs,
}

pub(super) async fn run(args: Args, tool: &Tool) -> Result<(), Failure> {
    let session = tool.session()?;
    let view = args.view;
    view.repeat(async || {
        let tree = tree(&session, view.freshness()).await?;
        match tool.format(Format::Table) {
            Format::Table | Format::Wide => output::write_out(&tree.text()),
            format @ (Format::Json | Format::Yaml | Format::Csv | Format::Name) => {
                let record = Record::new(&tree.name)
                    .column("kind", "KIND", tree.kind)
                    .column("name", "NAME", &tree.name)
                    .column("note", "NOTE", &tree.note)
                    .column("children", "CHILDREN", Value::List(tree.children.iter().map(Node::value).collect()));
                output::print(&Document::One(record), format)
            }
        }
    })
    .await
}

/// One line of the tree with what is below it.
#[derive(Default, Debug)]
struct Node {
    kind: &'static str,
    name: String,
    /// For people.
    note: String,
    children: Vec<Node>,
}

impl Node {
    fn new(kind: &'static str, name: impl Into<String>, note: impl Into<String>) -> Self {
        Self { kind, name: name.into(), note: note.into(), children: Vec::new() }
    }

    fn text(&self) -> String {
        let mut text = String::new();
        self.write(&mut text, 0);
        text
    }

    fn write(&self, text: &mut String, depth: usize) {
        let note = if self.note.is_empty() { String::new() } else { format!("  {}", self.note) };
        writeln!(text, "{:indent$}{} {}{note}", "", self.kind, self.name, indent = depth * 2)
            .expect("writing to a string does not fail");
        self.children.iter().for_each(|child| child.write(text, depth + 1));
    }

    fn value(&self) -> Value {
        Value::Object(vec![
            ("kind", self.kind.into()),
            ("name", (&self.name).into()),
            ("note", (&self.note).into()),
            ("children", Value::List(self.children.iter().map(Self::value).collect())),
        ])
    }
}

async fn tree(session: &Session, fresh: Freshness) -> Result<Node, Failure> {
    let request: ListRequest = all(fresh);
    let what = "show the topology";
    let registry = ask!(session, what, fresh, DiscoveryClient.topology(TopologyRequest { stale: fresh.is_stale() }))?;
    let domains = ask!(session, what, fresh, AdminClient.list_domains(request.clone()))?.domains;
    let sets = ask!(session, what, fresh, TopologyClient.list_fault_sets(request.clone()))?.fault_sets;
    let pools = ask!(session, what, fresh, AdminClient.list_pools(request.clone()))?.pools;
    let servers = ask!(session, what, fresh, AdminClient.list_sds(request.clone()))?.sds;
    let volumes = ask!(session, what, fresh, AdminClient.list_volumes(request))?.volumes;

    let id = pflex_proto::ids::ClusterId::from_slice(&registry.cluster_id).map(|id| id.to_string()).unwrap_or_default();
    let mut root = Node::new("cluster", id, format!("revision {}", registry.revision));
    let of_kind = |kind: ComponentKind| registry.components.iter().filter(move |row| row.kind() == kind);
    let component = |kind: &'static str, row: &Component| {
        let note = [row.status.clone(), vitals::machine(row), vitals::heard(row)];
        Node::new(kind, &row.name, note.into_iter().filter(|part| !part.is_empty()).collect::<Vec<_>>().join(", "))
    };
    root.children.extend(of_kind(ComponentKind::Mdm).map(|row| component("mdm", row)));
    root.children.extend(of_kind(ComponentKind::Mgmt).map(|row| component("mgmt", row)));
    for domain in domains {
        let mut node = Node::new("domain", &domain.name, "");
        for row in pools.iter().filter(|row| row.pool.as_ref().is_some_and(|pool| pool.domain_id == domain.id)) {
            let Some(pool) = &row.pool else { continue };
            let note = format!("{} copies, {} groups, {}", pool.copies, pool.pg_count, format_size(row.capacity_bytes));
            let mut pool_node = Node::new("pool", &pool.name, note);
            let inside: Vec<_> = volumes.iter().filter(|volume| volume.pool_id == pool.id).collect();
            for volume in inside.iter().take(LISTED) {
                let name = |id| of_kind(ComponentKind::Sdc).find(|row| row.id == id).map(|row| row.name.clone());
                let mapped: Vec<String> = volume.mappings.iter().filter_map(|m| name(m.sdc_id)).collect();
                let mapped =
                    if mapped.is_empty() { String::new() } else { format!(", mapped to {}", mapped.join(", ")) };
                pool_node.children.push(Node::new(
                    "volume",
                    &volume.name,
                    format!("{}{mapped}", format_size(volume.size_bytes)),
                ));
            }
            if let Some(more) = inside.len().checked_sub(LISTED).filter(|more| *more > 0) {
                pool_node.children.push(Node::new("and", format!("{more} more volumes"), ""));
            }
            node.children.push(pool_node);
        }
        let mut alone = Vec::new();
        let mut by_set: Vec<(u32, Node)> = sets
            .iter()
            .filter(|set| set.domain_id == domain.id)
            .map(|set| (set.id, Node::new("fault-set", &set.name, "")))
            .collect();
        for row in &servers {
            let Some(sds) = row.sds.as_ref().filter(|sds| sds.domain_id == domain.id) else { continue };
            let mut server = row
                .component
                .as_ref()
                .map_or_else(|| Node::new("sds", &sds.name, &row.status), |found| component("sds", found));
            server.children.extend(row.devices.iter().map(|device| {
                let state = if device.alive { "" } else { ", out of service" };
                let pool = pools.iter().filter_map(|row| row.pool.as_ref()).find(|pool| pool.id == device.pool_id);
                let pool = pool.map_or_else(|| "no pool".to_owned(), |pool| format!("pool {}", pool.name));
                let note = format!("{}, {}, {pool}{state}", device.path, format_size(device.capacity_bytes));
                Node::new("device", device.id.to_string(), note)
            }));
            match by_set.iter_mut().find(|(id, _)| *id == sds.fault_set_id) {
                Some((_, set)) => set.children.push(server),
                None => alone.push(server),
            }
        }
        node.children.extend(by_set.into_iter().map(|(_, set)| set));
        node.children.extend(alone);
        root.children.push(node);
    }
    root.children.extend(of_kind(ComponentKind::Sdc).map(|row| component("sdc", row)));
    Ok(root)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tree_is_indented_and_the_same_as_data() {
        let mut root = Node::new("domain", "d", "");
        root.children.push(Node::new("sds", "s1", "ACTIVE"));
        assert_eq!(root.text(), "domain d\n  sds s1  ACTIVE\n");
        let Value::Object(fields) = root.value() else { panic!() };
        assert_eq!(fields.iter().map(|(key, _)| *key).collect::<Vec<_>>(), ["kind", "name", "note", "children"]);
    }
}
