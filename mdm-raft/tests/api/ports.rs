//! Ports that stay one test's own, also before its members listen on them and while they are down.
//!
//! What `bind(0)` gives and is let go of again, the kernel gives to the next who asks: with several test processes at once
//! a member then answered on another cluster's port. These are below those that the kernel gives out, and each is claimed
//! for as long as the process lives, by a listener on an address that nobody uses.

use std::{net::TcpListener, sync::Mutex};

const FIRST: u16 = 12_000;
const LAST: u16 = 32_000;

static CLAIMS: Mutex<Vec<TcpListener>> = Mutex::new(Vec::new());

/// A port of 127.0.0.1 that nobody listens on, and that no other test is given.
pub(crate) fn claim() -> u16 {
    let start = rand::random_range(FIRST..LAST);
    for port in (start..LAST).chain(FIRST..start) {
        let Ok(claim) = TcpListener::bind(("127.0.0.2", port)) else { continue };
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            CLAIMS.lock().unwrap().push(claim);
            return port;
        }
    }
    panic!("no port is free between {FIRST} and {LAST}");
}
