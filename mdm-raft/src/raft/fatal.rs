//! What happens when a store can no longer be trusted: the process stops, at once, without trying to tidy up.
//!
//! After a failed fsync the kernel may have dropped the dirty pages and report success next time; continuing would
//! acknowledge what is not on disk. A restart reads what really is.

use std::sync::Arc;

/// Called once, with the reason, from the thread that met the failure. Tests inject their own.
#[derive(Clone)]
pub struct FatalHook(Arc<dyn Fn(&str) + Send + Sync>);

impl FatalHook {
    /// A hook that runs `f`.
    pub fn new(f: impl Fn(&str) + Send + Sync + 'static) -> Self {
        Self(Arc::new(f))
    }

    pub(crate) fn call(&self, reason: &str) {
        (self.0)(reason);
    }
}

impl Default for FatalHook {
    fn default() -> Self {
        Self::new(stop_process)
    }
}

impl std::fmt::Debug for FatalHook {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("FatalHook")
    }
}

/// Says why and aborts. Not `exit`: exit handlers would close the databases and write more.
pub fn stop_process(reason: &str) {
    tracing::error!("stopping: {reason}");
    // The subscriber may not have flushed yet.
    eprintln!("pflex mdm: stopping: {reason}");
    std::process::abort();
}
