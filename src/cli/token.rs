//! `pflex token`: the IO tokens the leader issued, and what was done with them.

use clap::Subcommand;
use pflex_proto::pb::{ListTokensRequest, TokenRow, admin_client::AdminClient, tokens_client::TokensClient};

use super::{
    Tool,
    complete::Of,
    names::{Names, one, only},
    target::Target,
    view::ViewArgs,
};
use crate::{
    client::{Freshness, Session, ask},
    error::Failure,
    output::{Document, Record, Value},
};

/// Rows without `--limit`: a screen or two.
const DEFAULT_LIMIT: u32 = 100;

#[derive(clap::Args, Debug)]
#[command(arg_required_else_help = true)]
pub(super) struct Args {
    #[command(flatten)]
    pub(super) target: Target,
    #[command(subcommand)]
    pub(super) verb: Verb,
}

#[derive(Subcommand, Debug)]
pub(super) enum Verb {
    /// List the newest tokens.
    #[command(after_help = "Example:\n  pflex token list --volume demo --limit 10")]
    List {
        /// Only those for this volume.
        #[arg(long, value_name = "NAME", add = Of::Volumes.candidates())]
        volume: Option<String>,
        /// How many at most.
        #[arg(long, default_value_t = DEFAULT_LIMIT, value_parser = clap::value_parser!(u32).range(1..))]
        limit: u32,
        #[command(flatten)]
        view: ViewArgs,
    },
}

pub(super) async fn run(verb: Verb, tool: &Tool) -> Result<(), Failure> {
    let session = tool.session()?;
    let Verb::List { volume, limit, view } = verb;
    view.show(tool, async || {
        let fresh = view.freshness();
        let volume_id = match &volume {
            Some(name) => volume_id(&session, fresh, name).await?,
            None => 0,
        };
        let sdcs = Names::sdcs(&session, fresh).await?;
        let request = ListTokensRequest { volume_id, limit, stale: fresh.is_stale() };
        let reply = ask!(session, "list tokens", fresh, TokensClient.list(request))?;
        let record = |row: &TokenRow| record(row, &sdcs, reply.log_time_ms);
        Ok(Document::List("tokens", reply.tokens.iter().map(record).collect()))
    })
    .await
}

async fn volume_id(session: &Session, fresh: Freshness, name: &str) -> Result<u64, Failure> {
    let what = format!("find volume {name}");
    let reply = ask!(session, &what, fresh, AdminClient.list_volumes(one(fresh, name)))?;
    Ok(only(reply.volumes, "volume", name)?.id)
}

/// Log time is not the wall clock, so a table shows how long a token still lives, and data the stamps as they are.
fn record(row: &TokenRow, sdcs: &Names, now_log_ms: u64) -> Record {
    let usage = row.r#use.unwrap_or_default();
    Record::new(row.token_id)
        .column("id", "ID", row.token_id)
        .column("sdc", "SDC", sdcs.of(row.sdc_id))
        .column("volume_id", "VOLUME ID", row.volume_id)
        .column("state", "STATE", &row.state)
        .wide("key_id", "KEY", row.key_id)
        .column("remaining_ms", "REMAINING MS", row.expires_log_ms.saturating_sub(now_log_ms))
        .hidden("issued_log_ms", row.issued_log_ms)
        .hidden("expires_log_ms", row.expires_log_ms)
        .column("reads", "READS", usage.reads)
        .column("writes", "WRITES", usage.writes)
        .wide("read_bytes", "READ", Value::Bytes(usage.read_bytes))
        .wide("written_bytes", "WRITTEN", Value::Bytes(usage.written_bytes))
}
