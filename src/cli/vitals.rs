//! What every component has alike, as columns: since when it is so, when it was heard, how often it was not well.

use pflex_proto::pb::{Component, ComponentKind, RegistrationRow, RegistrationsRequest, vitals_client::VitalsClient};

use crate::{
    client::{Freshness, Session, ask},
    error::Failure,
    output::{Record, Value},
    units::{format_size, format_time},
};

/// A component's kind in the words of the command line.
pub(super) fn kind(component: &Component) -> &'static str {
    match component.kind() {
        ComponentKind::Unspecified => "unknown",
        ComponentKind::Mdm => "mdm",
        ComponentKind::Sds => "sds",
        ComponentKind::Sdc => "sdc",
        ComponentKind::Mgmt => "mgmt",
    }
}

/// `3 s ago`; empty where the answering member does not know.
pub(super) fn heard(component: &Component) -> String {
    component.heard_ms_ago.map_or_else(String::new, ago)
}

fn ago(ms: u64) -> String {
    if ms < 1_000 { "now".to_owned() } else { format!("{} ago", age(ms)) }
}

/// A length of time in the largest unit that still says enough.
pub(super) fn age(ms: u64) -> String {
    match ms / 1_000 {
        seconds @ 0..120 => format!("{seconds} s"),
        seconds @ 120..7_200 => format!("{} min", seconds / 60),
        seconds @ 7_200..172_800 => format!("{} h", seconds / 3_600),
        seconds => format!("{} d", seconds / 86_400),
    }
}

/// Losses in the last minute, hour and day: `1/4/4`.
pub(super) fn oscillation(component: &Component) -> String {
    let counts = component.oscillation.unwrap_or_default();
    format!("{}/{}/{}", counts.minute, counts.hour, counts.day)
}

/// Whether it comes and goes: more than bad luck explains.
pub(super) fn is_flapping(component: &Component) -> bool {
    component.oscillation.is_some_and(|counts| counts.hour > 2)
}

/// The fields of a component that any object about it shows.
pub(super) fn columns(record: Record, component: &Component) -> Record {
    let counts = component.oscillation.unwrap_or_default();
    let host = component.host.clone().unwrap_or_default();
    let until = Some(component.kept_out_until_log_ms).filter(|until| *until != 0);
    record
        .detail("why", "WHY", &component.why)
        .detail("heard", "HEARD", heard(component))
        .hidden("heard_ms_ago", component.heard_ms_ago)
        .hidden("since_log_ms", component.since_log_ms)
        .detail("losses", "LOSSES 1M/1H/1D", oscillation(component))
        .hidden("losses_minute", counts.minute)
        .hidden("losses_hour", counts.hour)
        .hidden("losses_day", counts.day)
        .hidden("kept_out_until_log_ms", until)
        .detail("host", "HOST", &host.host_name)
        .hidden("os", &host.os)
        .hidden("kernel", &host.kernel)
        .hidden("architecture", &host.architecture)
        .hidden("cores", host.cores)
        .hidden("memory_bytes", Value::Bytes(host.memory_bytes))
        .hidden("booted_at", Some(host.booted_at_ms).filter(|ms| *ms > 0).map_or(Value::Null, Value::Time))
        .detail("version", "VERSION", &component.version)
        .detail("registrations", "STARTS", component.registrations)
}

/// The last starts of a component, newest first.
pub(super) async fn starts(
    session: &Session,
    kind: ComponentKind,
    name: &str,
    fresh: Freshness,
) -> Result<Vec<RegistrationRow>, Failure> {
    let request = RegistrationsRequest { stale: fresh.is_stale(), kind: kind.into(), name: name.to_owned() };
    let reply = ask!(session, &format!("list the starts of {name}"), fresh, VitalsClient.registrations(request))?;
    Ok(reply.registrations.into_iter().rev().collect())
}

/// As a field of a page.
pub(super) fn with_starts(record: Record, starts: &[RegistrationRow]) -> Record {
    let value = |start: &RegistrationRow| {
        Value::Object(vec![
            ("count", start.count.into()),
            ("at", Value::Time(start.at_ms)),
            ("version", (&start.version).into()),
            ("host", (&start.host_name).into()),
            ("process", hex(&start.process_mark).into()),
        ])
    };
    let last: Vec<String> = starts.iter().take(3).map(|start| format_time(start.at_ms)).collect();
    record.detail("last_starts", "LAST STARTS", last).hidden("starts", Value::List(starts.iter().map(value).collect()))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The machine in one line, for the tree.
pub(super) fn machine(component: &Component) -> String {
    let Some(host) = component.host.as_ref().filter(|host| !host.host_name.is_empty()) else { return String::new() };
    format!("{} ({}, {} cores, {})", host.host_name, host.os, host.cores, format_size(host.memory_bytes))
}

#[cfg(test)]
mod tests {
    use pflex_proto::pb::Oscillation;

    use super::*;

    #[test]
    fn ages_and_counters_are_short() {
        let texts = ["now", "now", "1 s ago", "61 s ago", "2 min ago", "3 h ago", "9 d ago"];
        assert_eq!([0, 999, 1_500, 61_000, 120_000, 3 * 3_600_000, 9 * 86_400_000].map(ago), texts);
        let oscillation_of = |minute, hour, day| Component {
            oscillation: Some(Oscillation { minute, hour, day }),
            ..Component::default()
        };
        assert_eq!(oscillation(&oscillation_of(1, 4, 9)), "1/4/9");
        assert!(is_flapping(&oscillation_of(0, 3, 3)) && !is_flapping(&oscillation_of(2, 2, 9)));
        assert_eq!(heard(&Component::default()), "", "a member that does not lead does not know");
    }
}
