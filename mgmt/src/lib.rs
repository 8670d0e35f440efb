//! The console. **This crate is a stub**: it serves nothing yet, and `pflex mgmt` says so.

/// What [`run`] answers until the console exists.
#[derive(Debug, thiserror::Error)]
#[error("the console is not built yet; use `pflex status`, `pflex cluster status` and `pflex --help`")]
pub struct NotBuilt;

/// Would serve the console.
///
/// # Errors
/// Always, until the console exists.
pub fn run() -> Result<(), NotBuilt> {
    Err(NotBuilt)
}
