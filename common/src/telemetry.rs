//! Logs and spans of a process. The OTLP exporters plug in here; everything else only uses `tracing`.

use std::io;

use tracing_subscriber::{EnvFilter, layer::SubscriberExt as _, util::SubscriberInitExt as _};

/// Starts logging to stderr. `PFLEX_LOG` is a `tracing` filter (default `info`); `PFLEX_LOG_FORMAT=json` for machines.
/// A second call changes nothing.
pub fn start() {
    let filter = EnvFilter::try_from_env("PFLEX_LOG").unwrap_or_else(|_| EnvFilter::new("info,openraft=warn"));
    let json = std::env::var("PFLEX_LOG_FORMAT").is_ok_and(|format| format == "json");
    let registry = tracing_subscriber::registry().with(filter);
    let layer = tracing_subscriber::fmt::layer().with_writer(io::stderr).with_ansi(false);
    let started = if json { registry.with(layer.json()).try_init() } else { registry.with(layer).try_init() };
    // Only a process that already logs gets an error here, and it keeps its logger.
    drop(started);
}
