//! Ports of a cluster: those of `pflex up` plus an offset, all below the range from which the kernel takes the local ports
//! of outgoing connections: a restarted daemon must find its port free.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};

use super::process::{Process, Role};

/// Linux gives outgoing connections ports from here on (`net.ipv4.ip_local_port_range`).
const FIRST_LOCAL_PORT: u16 = 32_768;
/// The highest port of `up`'s scheme without an offset.
const HIGHEST_PORT: u16 = 9_799;
/// Ports below this one are where people start services by hand.
const LEAST_OFFSET: u16 = 4_000;
const MOST_OFFSET: u16 = FIRST_LOCAL_PORT - 1 - HIGHEST_PORT;
const NBD_PORT: u16 = 8_005;
/// A prime: tries of one run, and runs side by side, spread over the range.
const STRIDE: u64 = 1_237;

/// The offset to try: runs side by side begin at different places.
pub(super) fn offset(seed: u64, attempt: u16) -> u16 {
    let place =
        seed.wrapping_add(u64::from(std::process::id()).wrapping_mul(131)).wrapping_add(STRIDE * u64::from(attempt));
    LEAST_OFFSET + (place % u64::from(MOST_OFFSET - LEAST_OFFSET)) as u16
}

/// The NBD server of a client.
pub(super) fn nbd(offset: u16, index: u32) -> SocketAddr {
    (Ipv4Addr::LOCALHOST, NBD_PORT + 10 * index as u16 + offset).into()
}

/// Whether nobody listens on any port of these processes.
pub(super) fn are_free(processes: &[Process], offset: u16) -> bool {
    let mut ports = processes.iter().flat_map(|process| of(*process));
    ports.all(|port| TcpListener::bind((Ipv4Addr::LOCALHOST, port + offset)).is_ok())
}

fn of(process: Process) -> Vec<u16> {
    let (bases, step): (&[u16], u16) = match process.role {
        Role::Mdm => (&[8001, 8002], 10),
        Role::Sds => (&[9700, 9100, 9200], 1),
        Role::Sdc => (&[8003, 8004, NBD_PORT], 10),
    };
    bases.iter().map(|base| base + step * process.index as u16).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn offsets_leave_all_ports_below_the_local_range_and_differ() {
        let offsets: std::collections::BTreeSet<_> = (0..40).map(|attempt| offset(u64::MAX - 3, attempt)).collect();
        assert_eq!(offsets.len(), 40);
        assert!(offsets.iter().all(|offset| offset + HIGHEST_PORT < FIRST_LOCAL_PORT && *offset >= LEAST_OFFSET));
    }

    #[test]
    fn a_taken_port_is_seen() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        assert!(!are_free(&[Process { role: Role::Mdm, index: 0 }], port - 8001));
    }
}
