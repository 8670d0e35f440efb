//! `pflex status`: health in one screen, verdict first and its reasons right behind.
//!
//! Everything but IO comes from the MDM. IO is asked of each client's management port, briefly, and left out where a
//! client does not answer: a dead client must not make the health of the cluster unreadable.
//!
//! The MDM takes up to 3 s to notice a death, and would call the cluster healthy meanwhile. So the servers that it holds
//! for alive are asked themselves first; one that is dead or does not answer is a reason against health.

use std::{fmt::Write as _, time::Duration};

use pflex_common::net::Endpoint;
use pflex_proto::pb::{ClusterStatus, Component, ComponentKind, Reason, SdcStats, Sds, admin_client::AdminClient};

use super::{Tool, cluster, health, names, target::Target, view::ViewArgs, vitals};
use crate::{
    client::{Freshness, Session, ask},
    error::{Exit, Failure},
    output::{self, Document, Format, Record, Value},
    probe::{self, Answer},
    units::format_size,
};

/// For all clients together.
const STATS_TIMEOUT: Duration = Duration::from_millis(500);
/// For all servers together. Longer than a busy machine makes a well server wait, shorter than the MDM's own 3 s.
const SERVER_TIMEOUT: Duration = Duration::from_millis(1_500);
/// Clients asked for statistics; more would only be noise on one screen.
const MOST_CLIENTS: usize = 8;

#[derive(clap::Args, Clone, Debug)]
#[command(after_help = "Examples:\n  pflex status --watch\n  pflex status --check || echo \"exit status 8: degraded\"")]
pub(super) struct Args {
    #[command(flatten)]
    pub(super) target: Target,
    #[command(flatten)]
    view: ViewArgs,
    /// Exit with status 8 unless everything is healthy.
    #[arg(long)]
    check: bool,
}

pub(super) async fn run(args: Args, tool: &Tool) -> Result<Exit, Failure> {
    let session = tool.session()?;
    let healthy = std::cell::Cell::new(true);
    args.view
        .repeat(async || {
            let servers = servers(&session, args.view.freshness()).await?;
            let suspects = suspects(&servers).await;
            // After the servers were asked: one that answered has registered, so this verdict is about its present life.
            let mut status = cluster::fetch(&session, args.view.freshness()).await?;
            suspect(&mut status, suspects);
            healthy.set(is_healthy(&status));
            let io = client_stats(&status).await;
            match tool.format(Format::Table) {
                Format::Table | Format::Wide => output::write_out(&screen(&status, &servers, &io, output::colours())),
                format @ (Format::Json | Format::Yaml | Format::Csv | Format::Name) => {
                    output::print(&Document::One(record(&status, &io)), format)
                }
            }
        })
        .await?;
    // The verdict with its reasons is on the screen; a second line on stderr would say it twice.
    Ok(if args.check && !healthy.get() { Exit::Degraded } else { Exit::Done })
}

pub(super) fn is_healthy(status: &ClusterStatus) -> bool {
    status.health == "ok"
}

/// Each server and whether the leader holds it for alive: that verdict takes 3 s, a missing health report 10 s and more.
async fn servers(session: &Session, fresh: Freshness) -> Result<Vec<Sds>, Failure> {
    let reply = ask!(session, "list SDSs", fresh, AdminClient.list_sds(names::all(fresh)))?;
    Ok(reply.sds.into_iter().filter_map(|row| row.sds).collect())
}

/// Why each server that the MDM holds for alive may not be: those that do not answer themselves.
async fn suspects(servers: &[Sds]) -> Vec<Reason> {
    let asking = servers.iter().filter(|server| server.alive).filter_map(|server| {
        let endpoint: Endpoint = server.addresses.as_ref()?.management.parse().ok()?;
        let object = format!("sds {}", server.name);
        Some(tokio::spawn(async move {
            let why = match probe::server(endpoint.clone(), SERVER_TIMEOUT).await {
                Answer::Nobody => format!("nobody listens at its management port {endpoint}; the MDM has not noticed"),
                Answer::Silent => format!("it does not answer at its management port {endpoint}; it may be starting"),
                // From here nothing can be said of it, and the MDM can.
                Answer::Serves(_) | Answer::Unreachable => return None,
            };
            Some(Reason { object, severity: "warning".to_owned(), why })
        }))
    });
    let mut suspects = Vec::new();
    for task in asking.collect::<Vec<_>>() {
        suspects.extend(task.await.ok().flatten());
    }
    suspects
}

/// Adds what the MDM does not know yet to its verdict. Of a server that it has something against it has said so.
fn suspect(status: &mut ClusterStatus, suspects: Vec<Reason>) {
    for suspect in suspects {
        if !status.reasons.iter().any(|reason| reason.object == suspect.object) {
            status.reasons.push(suspect);
        }
    }
    if is_healthy(status) && !status.reasons.is_empty() {
        status.health = "degraded".to_owned();
    }
}

/// What one client says of itself.
struct ClientIo {
    name: String,
    stats: SdcStats,
}

async fn client_stats(status: &ClusterStatus) -> Vec<ClientIo> {
    let clients = status.components.iter().filter(|component| component.kind() == ComponentKind::Sdc);
    let asking = clients.take(MOST_CLIENTS).filter_map(|component| {
        let endpoint: Endpoint = component.addresses.as_ref()?.management.parse().ok()?;
        let name = component.name.clone();
        Some(tokio::spawn(async move {
            match probe::client(endpoint, STATS_TIMEOUT).await {
                Answer::Serves(stats) => Some(ClientIo { name, stats }),
                Answer::Nobody | Answer::Silent | Answer::Unreachable => None,
            }
        }))
    });
    let mut answers = Vec::new();
    // All are spawned before the first is awaited, so the time-outs run side by side.
    for task in asking.collect::<Vec<_>>() {
        answers.extend(task.await.ok().flatten());
    }
    answers
}

fn screen(status: &ClusterStatus, servers: &[Sds], io: &[ClientIo], colours: bool) -> String {
    let mut text = String::new();
    let mut line = |key: &str, value: String| {
        let key = if key.is_empty() { String::new() } else { format!("{key}:") };
        writeln!(text, "{key:<11}{value}").expect("writing to a string does not fail");
    };
    line("health", verdict(status, colours));
    for reason in &status.reasons {
        line("", format!("{}: {}: {}", reason.severity, reason.object, reason.why));
    }
    let up = status.members.iter().filter(|member| member.state == "up").count();
    let leader = match status.members.iter().find(|member| member.id == status.leader) {
        Some(member) => {
            let address = member.addresses.as_ref().map(|addresses| addresses.api.as_str()).unwrap_or("-");
            format!("mdm {} at {address} leads term {}", member.id, status.term)
        }
        None => format!("no leader known in term {}", status.term),
    };
    line("cluster", format!("{}, revision {}", cluster::cluster_id(status), status.revision));
    line("quorum", format!("{up} of {} members up; {leader}", status.members.len()));
    let lost = named(servers.iter().filter(|server| !server.alive));
    let doubted = named(servers.iter().filter(|server| server.alive && is_doubted(status, server)));
    let alive = servers.len() - lost.len() - doubted.len();
    let list = |what: &str, names: &[&str]| {
        if names.is_empty() { String::new() } else { format!("; {what}: {}", names.join(", ")) }
    };
    let maintained = named(servers.iter().filter(|server| server.maintenance_since_ms.is_some()));
    let prepares = |server: &&Sds| server.maintenance_since_ms.is_none() && server.protected_since_ms.is_some();
    let prepared = list("prepared for maintenance", &named(servers.iter().filter(prepares)));
    let (all, lost, doubted) = (servers.len(), list("lost", &lost), list("in doubt", &doubted));
    let maintained = list("in maintenance", &maintained);
    line("servers", format!("{alive} of {all} alive{lost}{doubted}{prepared}{maintained}"));
    let clients: Vec<_> = status.components.iter().filter(|row| row.kind() == ComponentKind::Sdc).collect();
    let active = clients.iter().filter(|client| client.status == "ACTIVE").count();
    line("clients", format!("{active} of {} active", clients.len()));
    line(
        "capacity",
        format!(
            "{}, {} provisioned, {} used",
            format_size(status.capacity_bytes),
            format_size(status.provisioned_bytes),
            format_size(status.used_bytes)
        ),
    );
    let whole = status.pgs.saturating_sub(status.pgs_degraded).saturating_sub(status.pgs_unavailable);
    line("groups", format!("{whole} whole, {} degraded, {} unavailable", status.pgs_degraded, status.pgs_unavailable));
    if let Some(words) = rebuilds(status) {
        line("rebuild", words);
    }
    for client in io {
        line("io", client_line(client));
    }
    for component in status.components.iter().filter(|component| component.status != "ACTIVE") {
        let heard = vitals::heard(component);
        let heard = if heard.is_empty() { heard } else { format!(", last heard {heard}") };
        line("not well", format!("{} {} is {}{heard}", health::kind(component), component.name, component.status));
    }
    for component in status.components.iter().filter(|component| vitals::is_flapping(component)) {
        let counts = component.oscillation.unwrap_or_default();
        let times = format!("{} times in the last hour, {} in the last minute", counts.hour, counts.minute);
        line("flapping", format!("{} {} was not well {times}", health::kind(component), component.name));
    }
    text
}

/// What is being filled again, if anything is.
fn rebuilds(status: &ClusterStatus) -> Option<String> {
    let (running, waiting) = (status.rebuilds_running, status.rebuilds_waiting);
    let pools = |n: u32| if n == 1 { "1 pool".to_owned() } else { format!("{n} pools") };
    let who = match (running, waiting) {
        (0, 0) => return None,
        (running, 0) => format!("{} running", pools(running)),
        (0, waiting) => format!("{} waiting", pools(waiting)),
        (running, waiting) => format!("{} running, {waiting} waiting", pools(running)),
    };
    let (left, done) = (status.rebuild_groups_left, status.rebuild_groups_done);
    Some(format!("{who}; {done} of {} groups done (`pflex rebuild list`)", left + done))
}

fn named<'a>(servers: impl Iterator<Item = &'a Sds>) -> Vec<&'a str> {
    servers.map(|server| server.name.as_str()).collect()
}

/// Something is said against the server itself.
fn is_doubted(status: &ClusterStatus, server: &Sds) -> bool {
    status.reasons.iter().any(|reason| reason.object.strip_prefix("sds ") == Some(&server.name))
}

fn verdict(status: &ClusterStatus, colours: bool) -> String {
    let colour = match status.health.as_str() {
        "ok" => "32",
        "degraded" => "33",
        _ => "31",
    };
    if colours { format!("\x1b[1;{colour}m{}\x1b[0m", status.health) } else { status.health.clone() }
}

fn client_line(client: &ClientIo) -> String {
    let sum = |of: fn(&pflex_proto::pb::VolumeStats) -> u64| client.stats.volumes.iter().map(of).sum::<u64>();
    let longest_us = client.stats.volumes.iter().map(|volume| volume.longest_stall_us).max().unwrap_or(0);
    format!(
        "{}: {} reads ({}), {} writes ({}), {} in flight, {} retries, {} errors, longest stall {} ms",
        client.name,
        sum(|volume| volume.reads),
        format_size(sum(|volume| volume.read_bytes)),
        sum(|volume| volume.writes),
        format_size(sum(|volume| volume.written_bytes)),
        sum(|volume| volume.in_flight.into()),
        sum(|volume| volume.retries),
        sum(|volume| volume.errors),
        longest_us / 1_000,
    )
}

/// The same as data.
fn record(status: &ClusterStatus, io: &[ClientIo]) -> Record {
    let reason = |reason: &Reason| {
        Value::Object(vec![
            ("object", (&reason.object).into()),
            ("severity", (&reason.severity).into()),
            ("why", (&reason.why).into()),
        ])
    };
    let component = |component: &Component| {
        Value::Object(vec![
            ("name", (&component.name).into()),
            ("kind", health::kind(component).into()),
            ("status", (&component.status).into()),
        ])
    };
    let volumes: Vec<Value> = io.iter().flat_map(volume_rows).collect();
    cluster::record(status)
        .hidden("reasons", Value::List(status.reasons.iter().map(reason).collect()))
        .hidden("capacity_bytes", Value::Bytes(status.capacity_bytes))
        .hidden("provisioned_bytes", Value::Bytes(status.provisioned_bytes))
        .hidden("used_bytes", Value::Bytes(status.used_bytes))
        .hidden("pgs", status.pgs)
        .hidden("pgs_degraded", status.pgs_degraded)
        .hidden("pgs_unavailable", status.pgs_unavailable)
        .hidden("rebuilds_running", status.rebuilds_running)
        .hidden("rebuilds_waiting", status.rebuilds_waiting)
        .hidden("rebuild_groups_left", status.rebuild_groups_left)
        .hidden("rebuild_groups_done", status.rebuild_groups_done)
        .hidden("components", Value::List(status.components.iter().map(component).collect()))
        .hidden("io", Value::List(volumes))
}

fn volume_rows(client: &ClientIo) -> Vec<Value> {
    let row = |volume: &pflex_proto::pb::VolumeStats| {
        Value::Object(vec![
            ("sdc", (&client.name).into()),
            ("volume", (&volume.name).into()),
            ("reads", volume.reads.into()),
            ("read_bytes", Value::Bytes(volume.read_bytes)),
            ("writes", volume.writes.into()),
            ("written_bytes", Value::Bytes(volume.written_bytes)),
            ("in_flight", volume.in_flight.into()),
            ("retries", volume.retries.into()),
            ("errors", volume.errors.into()),
            ("longest_stall_us", volume.longest_stall_us.into()),
        ])
    };
    client.stats.volumes.iter().map(row).collect()
}

#[cfg(test)]
mod tests {
    use pflex_proto::pb::ClusterMember;

    use super::*;

    fn status() -> ClusterStatus {
        ClusterStatus {
            cluster_id: vec![0; 16],
            leader: 2,
            term: 4,
            health: "degraded".into(),
            members: [1, 2, 3].map(|id| ClusterMember { id, state: "up".into(), ..ClusterMember::default() }).to_vec(),
            reasons: vec![Reason { object: "sds sds1".into(), severity: "warning".into(), why: "it is DOWN".into() }],
            pgs: 64,
            pgs_degraded: 40,
            ..ClusterStatus::default()
        }
    }

    #[test]
    fn the_verdict_comes_first_and_its_reasons_next() {
        let lost = Sds { name: "sds1".into(), ..Sds::default() };
        let alive = Sds { name: "sds2".into(), alive: true, ..Sds::default() };
        let mut status = status();
        let screen = screen(&status, &[lost, alive.clone()], &[], false);
        let mut lines = screen.lines();
        assert_eq!(lines.next(), Some("health:    degraded"));
        assert_eq!(lines.next().map(str::trim), Some("warning: sds sds1: it is DOWN"));
        assert!(screen.contains("3 of 3 members up; mdm 2 at - leads term 4"), "{screen}");
        assert!(screen.contains("1 of 2 alive; lost: sds1"), "{screen}");
        assert!(screen.contains("24 whole, 40 degraded, 0 unavailable"));
        assert!(screen.lines().count() < 24, "one screen");
        let silent = Sds { name: "sds1".into(), ..alive.clone() };
        let resting = Sds { maintenance_since_ms: Some(1), ..alive.clone() };
        let resting = super::screen(&status, &[resting], &[], false);
        assert!(resting.contains("in maintenance: sds2"), "{resting}");
        status.reasons[0].why = "it does not answer".into();
        let screen = super::screen(&status, &[silent, alive], &[], false);
        assert!(screen.contains("1 of 2 alive; in doubt: sds1"), "{screen}");
    }

    #[test]
    fn a_server_that_does_not_answer_is_against_health_and_is_named_once() {
        let reason = |why: &str| Reason { object: "sds sds1".into(), severity: "warning".into(), why: why.into() };
        let mut healthy = ClusterStatus { health: "ok".into(), ..ClusterStatus::default() };
        suspect(&mut healthy, vec![]);
        assert!(is_healthy(&healthy));
        suspect(&mut healthy, vec![reason("nobody listens")]);
        assert_eq!((healthy.health.as_str(), healthy.reasons.len()), ("degraded", 1));
        let mut known = status();
        suspect(&mut known, vec![reason("nobody listens")]);
        assert_eq!(known.reasons, [reason("it is DOWN")], "the MDM has noticed meanwhile");
        let mut critical = ClusterStatus { health: "critical".into(), ..ClusterStatus::default() };
        suspect(&mut critical, vec![reason("nobody listens")]);
        assert_eq!(critical.health, "critical", "never better than what the MDM says");
    }

    #[test]
    fn a_rebuild_is_one_line_and_none_is_no_line() {
        let mut status = status();
        assert!(!screen(&status, &[], &[], false).contains("rebuild"));
        (status.rebuilds_running, status.rebuilds_waiting) = (1, 0);
        (status.rebuild_groups_left, status.rebuild_groups_done) = (40, 24);
        let shown = screen(&status, &[], &[], false);
        assert!(shown.contains("rebuild:   1 pool running; 24 of 64 groups done"), "{shown}");
        status.rebuilds_waiting = 2;
        assert!(screen(&status, &[], &[], false).contains("1 pool running, 2 waiting; "));
        status.rebuilds_running = 0;
        assert!(screen(&status, &[], &[], false).contains("2 pools waiting; "));
    }

    #[test]
    fn only_ok_is_healthy() {
        assert!(!is_healthy(&status()));
        assert!(!is_healthy(&ClusterStatus::default()), "an empty verdict is no good news");
        assert!(is_healthy(&ClusterStatus { health: "ok".into(), ..ClusterStatus::default() }));
    }
}
