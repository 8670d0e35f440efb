//! `pflex token`: the IO tokens the leader issued, and what was done with them.

use std::cell::Cell;

use clap::Subcommand;
use pflex_proto::pb::{
    AuditTokensReply, AuditTokensRequest, BadTokens, BadTokensRow, ListBadTokensRequest, ListTokensRequest, TokenRow,
    admin_client::AdminClient, refused_tokens_client::RefusedTokensClient, tokens_client::TokensClient,
};

use super::{
    Tool,
    complete::Of,
    names::{Names, one, only},
    target::Target,
    view::ViewArgs,
};
use crate::{
    client::{Freshness, Session, ask},
    error::{Exit, Failure},
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
    /// Show one.
    #[command(after_help = "Example:\n  pflex token show 1042")]
    Show {
        id: u64,
        #[command(flatten)]
        view: ViewArgs,
    },
    /// List who sent tokens that storage servers refused, and how many of each kind.
    ///
    /// A client's name is what it said it was. Expired and revoked ones come from honest clients too, after an outage; forged,
    /// replayed and foreign ones do not. There is an event of each source at most once a minute.
    #[command(after_help = "Example:\n  pflex token refused")]
    Refused {
        #[command(flatten)]
        view: ViewArgs,
    },
    /// Verify the hash chain over all records that are kept; fails if a record was changed, added or taken out.
    ///
    /// Records are kept for 10 minutes after their token's end. `head` is the newest link: noted elsewhere, it proves later
    /// what was issued before it.
    #[command(after_help = "Example:\n  pflex token audit")]
    Audit {
        #[command(flatten)]
        view: ViewArgs,
    },
}

pub(super) async fn run(verb: Verb, tool: &Tool) -> Result<(), Failure> {
    let session = tool.session()?;
    match verb {
        Verb::List { volume, limit, view } => {
            view.show(tool, async || {
                let fresh = view.freshness();
                let volume_id = match &volume {
                    Some(name) => volume_id(&session, fresh, name).await?,
                    None => 0,
                };
                let request = ListTokensRequest { volume_id, limit, ..ListTokensRequest::default() };
                Ok(Document::List("tokens", rows(&session, "list tokens", fresh, request).await?))
            })
            .await
        }
        Verb::Show { id, view } => {
            view.show(tool, async || {
                let request = ListTokensRequest { token_id: id, limit: 1, ..ListTokensRequest::default() };
                let found = rows(&session, &format!("show token {id}"), view.freshness(), request).await?;
                let missing = || Failure::new(Exit::NotFound, format!("there is no token {id}, or no longer"));
                found.into_iter().next().map(Document::One).ok_or_else(missing)
            })
            .await
        }
        Verb::Refused { view } => {
            view.show(tool, async || {
                let fresh = view.freshness();
                let request = ListBadTokensRequest { stale: fresh.is_stale() };
                let reply = ask!(session, "list refused tokens", fresh, RefusedTokensClient.list(request))?;
                let (sdcs, sds) = (Names::sdcs(&session, fresh).await?, Names::sds(&session, fresh).await?);
                let rows = reply.rows.iter().map(|row| refused(row, &sdcs, &sds, reply.log_time_ms));
                Ok(Document::List("sources of refused tokens", rows.collect()))
            })
            .await
        }
        Verb::Audit { view } => {
            let broken_at = Cell::new(0);
            view.show(tool, async || {
                let fresh = view.freshness();
                let request = AuditTokensRequest { stale: fresh.is_stale() };
                let reply = ask!(session, "audit the tokens", fresh, TokensClient.audit(request))?;
                broken_at.set(reply.broken_at);
                Ok(Document::One(audited(&reply)))
            })
            .await?;
            match broken_at.get() {
                0 => Ok(()),
                id => Err(Failure::new(Exit::Failed, format!("the chain of token records breaks at token {id}"))),
            }
        }
    }
}

async fn rows(
    session: &Session,
    what: &str,
    fresh: Freshness,
    request: ListTokensRequest,
) -> Result<Vec<Record>, Failure> {
    let sdcs = Names::sdcs(session, fresh).await?;
    let request = ListTokensRequest { stale: fresh.is_stale(), ..request };
    let reply = ask!(session, what, fresh, TokensClient.list(request))?;
    Ok(reply.tokens.iter().map(|row| record(row, &sdcs, reply.log_time_ms)).collect())
}

/// By SDC and address; those that were not told apart have neither.
fn refused(row: &BadTokensRow, sdcs: &Names, sds: &Names, now_log_ms: u64) -> Record {
    let BadTokens { sdc_id, address, forged, expired, revoked, replayed, foreign, unknown_key } =
        row.refused.clone().unwrap_or_default();
    let sdc = if address.is_empty() { String::new() } else { sdcs.of(sdc_id) };
    Record::new(format!("{sdc}@{address}"))
        .column("sdc", "SDC", sdc)
        .column("address", "ADDRESS", address)
        .column("forged", "FORGED", forged)
        .column("replayed", "REPLAYED", replayed)
        .column("foreign", "FOREIGN", foreign)
        .column("unknown_key", "UNKNOWN KEY", unknown_key)
        .column("expired", "EXPIRED", expired)
        .column("revoked", "REVOKED", revoked)
        .column("by", "LAST BY", sds.of(row.sds_id))
        .column("since_last_ms", "LAST MS AGO", now_log_ms.saturating_sub(row.last_log_ms))
        .hidden("first_log_ms", row.first_log_ms)
        .hidden("last_log_ms", row.last_log_ms)
}

fn audited(reply: &AuditTokensReply) -> Record {
    let chain = match reply.broken_at {
        0 => "holds".to_owned(),
        id => format!("breaks at token {id}"),
    };
    Record::new("tokens")
        .column("chain", "CHAIN", chain)
        .column("records", "RECORDS", reply.records)
        .column("oldest_id", "OLDEST", reply.oldest_id)
        .column("newest_id", "NEWEST", reply.newest_id)
        .column("revision", "REVISION", reply.revision)
        .hidden("broken_at", reply.broken_at)
        .wide("anchor", "ANCHOR", &reply.anchor)
        .wide("head", "HEAD", &reply.head)
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
        .wide("from_byte", "FROM BYTE", row.from_byte)
        .wide("to_byte", "TO BYTE", row.to_byte)
        // Of per-io mode: what the one operation is.
        .wide("device_id", "DEVICE ID", row.device_id)
        .wide("operation_id", "OPERATION ID", row.operation_id)
}
