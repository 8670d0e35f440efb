//! Reading verbs: `--stale`, and `--watch`, which prints the same thing again and again.

use std::time::Duration;

use crate::{
    client::Freshness,
    error::Failure,
    output::{self, Document},
    units::parse_duration,
};

use super::Tool;

/// Flags of every list, show and status.
#[derive(clap::Args, Clone, Debug, Default)]
pub(super) struct ViewArgs {
    /// Print again every so often, until interrupted.
    #[arg(long, value_name = "TIME", num_args = 0..=1, require_equals = true, default_missing_value = "2s",
          value_parser = parse_duration)]
    watch: Option<Duration>,
    /// Ask any member and take what it knows, also without a leader.
    #[arg(long)]
    stale: bool,
}

impl ViewArgs {
    pub(super) fn freshness(&self) -> Freshness {
        if self.stale { Freshness::Stale } else { Freshness::Linearizable }
    }

    /// Prints what `make` makes, once or again and again.
    pub(super) async fn show(
        &self,
        tool: &Tool,
        make: impl AsyncFn() -> Result<Document, Failure>,
    ) -> Result<(), Failure> {
        self.repeat(async || tool.print(&make().await?)).await
    }

    /// Runs `picture` once or again and again. Under `--watch` a failure is shown and the next picture tried: a person
    /// who watches a leader die wants to see it come back.
    pub(super) async fn repeat(&self, picture: impl AsyncFn() -> Result<(), Failure>) -> Result<(), Failure> {
        let Some(period) = self.watch else { return picture().await };
        loop {
            output::clear_screen()?;
            if let Err(failure) = picture().await {
                eprintln!("error: {failure}");
            }
            tokio::select! {
                () = tokio::time::sleep(period) => {}
                _ = tokio::signal::ctrl_c() => return Ok(()),
            }
        }
    }
}
