//! Clean shutdown: one token per process, cancelled by SIGTERM or SIGINT, handed to whatever must stop.

use std::io;

use tokio::signal::unix::{SignalKind, signal};
pub use tokio_util::sync::CancellationToken as Shutdown;

/// A token that the first SIGTERM or SIGINT cancels. Must be called inside a tokio runtime.
///
/// # Errors
/// When the handlers cannot be installed.
pub fn on_signal() -> io::Result<Shutdown> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let shutdown = Shutdown::new();
    let token = shutdown.clone();
    tokio::spawn(async move {
        tokio::select! {
            _ = terminate.recv() => tracing::info!("SIGTERM: shutting down"),
            _ = interrupt.recv() => tracing::info!("SIGINT: shutting down"),
        }
        token.cancel();
    });
    Ok(shutdown)
}
