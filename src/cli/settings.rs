//! `pflex settings`: numbers an operator may tune while the cluster runs.

use clap::Subcommand;
use pflex_proto::pb::{
    ChangeSettingsRequest, SettingChange, SettingRow, SettingsReply, SettingsRequest, insight_client::InsightClient,
};

use super::{Tool, target::Target, view::ViewArgs};
use crate::{
    client::{ask, change},
    error::Failure,
    output::{Document, Record},
};

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
    /// List the settings, their defaults and bounds.
    #[command(after_help = "Example:\n  pflex settings list -o wide")]
    List {
        #[command(flatten)]
        view: ViewArgs,
    },
    /// Set some, all or none of them.
    #[command(after_help = "Example:\n  pflex settings set liveness.silence_ms=5000 health.stale_ms=40000")]
    Set {
        #[arg(required = true, value_name = "KEY=VALUE", value_parser = assignment)]
        settings: Vec<SettingChange>,
    },
    /// Give some their defaults back.
    #[command(after_help = "Example:\n  pflex settings reset liveness.silence_ms")]
    Reset {
        #[arg(required = true, value_name = "KEY")]
        keys: Vec<String>,
    },
}

fn assignment(text: &str) -> Result<SettingChange, String> {
    let (key, value) = text.split_once('=').ok_or("say KEY=VALUE, like liveness.silence_ms=5000")?;
    let value = value.parse().map_err(|_| format!("{value:?} is not a whole number"))?;
    Ok(SettingChange { key: key.to_owned(), value, to_default: false })
}

pub(super) async fn run(verb: Verb, tool: &Tool) -> Result<(), Failure> {
    let session = tool.session()?;
    let changes = match verb {
        Verb::List { view } => {
            return view
                .show(tool, async || {
                    let fresh = view.freshness();
                    let request = SettingsRequest { stale: fresh.is_stale() };
                    Ok(document(&ask!(session, "list settings", fresh, InsightClient.settings(request))?))
                })
                .await;
        }
        Verb::Set { settings } => settings,
        Verb::Reset { keys } => keys.into_iter().map(|key| SettingChange { key, value: 0, to_default: true }).collect(),
    };
    let request = ChangeSettingsRequest { request: None, changes };
    tool.print(&document(&change!(session, "change settings", InsightClient.change_settings(request))?))
}

fn document(reply: &SettingsReply) -> Document {
    Document::List("settings", reply.settings.iter().map(record).collect())
}

fn record(row: &SettingRow) -> Record {
    Record::new(&row.key)
        .column("key", "SETTING", &row.key)
        .column("value", "VALUE", row.value)
        .column("default", "DEFAULT", row.default_value)
        .wide("least", "LEAST", row.least)
        .wide("most", "MOST", row.most)
        .column("what", "WHAT", &row.what)
}
