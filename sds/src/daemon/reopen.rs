//! A copy that could not apply a write, and is the only one in sync, can be replaced by no other: its group is served by
//! nobody until the device is opened anew and recovers from its journal (S4). So all devices of this process are opened
//! anew, as after its restart: the others lose some seconds by it, and no data.
//!
//! A disk that is broken for good fails again, or is refused when it is opened. Each try waits longer than the one before.

use std::time::Duration;

use pflex_common::clock::MonotonicTime;

use super::Server;

/// Before the first try: a device that was just opened takes that long to serve.
const FIRST: Duration = Duration::from_secs(5);
/// Between tries that do not help.
const MOST: Duration = Duration::from_secs(600);
/// Between two looks.
const LOOK: Duration = Duration::from_millis(200);

/// How long a device serves at least before it is opened anew.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pause(Duration);

impl Default for Pause {
    fn default() -> Self {
        Self(FIRST)
    }
}

impl Pause {
    /// After a device has served for that long.
    fn tried(&mut self, served: Duration) {
        // One that went well for so long has another trouble now.
        self.0 = if served > MOST { FIRST } else { (self.0 * 2).min(MOST) };
    }
}

/// Returns, with the reason, when the devices should be opened anew.
pub(super) async fn needed(server: &Server, pause: &mut Pause) -> String {
    let began = MonotonicTime::now();
    loop {
        tokio::time::sleep(LOOK).await;
        let served = MonotonicTime::now().since(began);
        let stuck = server.devices().iter().find_map(|device| Some((device.own.device, device.counters.stuck()?)));
        if let Some((device, groups)) = stuck.filter(|_| served >= pause.0) {
            pause.tried(served);
            let why = server
                .devices()
                .iter()
                .find_map(|of| of.counters.sick(MonotonicTime::now()))
                .unwrap_or_else(|| "see above".into());
            return format!(
                "device {device} has the only copy in sync of {groups} groups and could not apply a write to them ({why})"
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tries_that_do_not_help_grow_rarer() {
        let mut pause = Pause::default();
        let waits: Vec<u64> = (0..9)
            .map(|_| {
                pause.tried(pause.0);
                pause.0.as_secs()
            })
            .collect();
        assert_eq!(waits, [10, 20, 40, 80, 160, 320, 600, 600, 600]);
        pause.tried(MOST + Duration::from_secs(1));
        assert_eq!(pause.0, FIRST);
    }
}
