//! `pflex why`: which rule, fault or limit put an object in its state, with the log index.

use pflex_proto::pb::{Cause, Explanation, WhyRequest, insight_client::InsightClient};

use super::{Tool, target::Target, view::ViewArgs};
use crate::{
    client::ask,
    error::Failure,
    output::{self, Document, Format, Record, Value},
    units::format_time,
};

#[derive(clap::Args, Debug)]
#[command(after_help = "Examples:\n  pflex why cluster\n  pflex why volume demo\n  pflex why pg 1.17")]
pub(super) struct Args {
    #[command(flatten)]
    pub(super) target: Target,
    /// What to explain: `cluster`, a noun and a name (`sds sds1`, `device 3`, `pg 1.17`), or a name alone.
    #[arg(required = true, num_args = 1..=2, value_name = "OBJECT")]
    object: Vec<String>,
    #[command(flatten)]
    view: ViewArgs,
}

pub(super) async fn run(args: Args, tool: &Tool) -> Result<(), Failure> {
    let session = tool.session()?;
    let object = args.object.join(" ");
    let what = format!("explain {object}");
    let view = args.view;
    view.repeat(async || {
        let fresh = view.freshness();
        let request = WhyRequest { stale: fresh.is_stale(), object: object.clone() };
        let reply = ask!(session, &what, fresh, InsightClient.why(request))?;
        match tool.format(Format::Table) {
            // Sentences do not fit in columns.
            Format::Table | Format::Wide => {
                output::write_out(&reply.explanations.iter().map(page).collect::<Vec<_>>().join("\n"))
            }
            format @ (Format::Json | Format::Yaml | Format::Csv | Format::Name) => {
                let records = reply.explanations.iter().map(record).collect();
                output::print(&Document::List("explanations", records), format)
            }
        }
    })
    .await
}

fn page(explanation: &Explanation) -> String {
    let mut text = format!("{} is {}\n", explanation.object, explanation.state);
    for cause in &explanation.causes {
        text.push_str(&format!("  {}{}\n", cause.what, origin(cause)));
    }
    text
}

/// Which command, when and by whom, as far as that is known.
fn origin(cause: &Cause) -> String {
    match (cause.revision, cause.at_ms) {
        (0, _) => String::new(),
        (revision, 0) => format!(" [revision {revision}]"),
        (revision, at) => format!(" [revision {revision}, {}, {}]", format_time(at), cause.who),
    }
}

fn record(explanation: &Explanation) -> Record {
    let causes = explanation.causes.iter().map(|cause| {
        let known = |value: u64| Some(value).filter(|value| *value != 0);
        Value::Object(vec![
            ("what", Value::from(&cause.what)),
            ("revision", known(cause.revision).into()),
            ("at", known(cause.at_ms).map_or(Value::Null, Value::Time)),
            ("who", Value::from(&cause.who)),
        ])
    });
    Record::new(&explanation.object)
        .column("object", "OBJECT", &explanation.object)
        .column("state", "STATE", &explanation.state)
        .column("causes", "CAUSES", Value::List(causes.collect()))
}
