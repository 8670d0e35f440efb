//! What domains, pools, servers and clients have in common: they are listed, shown and removed by name. A kind says how
//! its rows are fetched, printed and removed; the verbs are said once, here.

use pflex_proto::pb::{DeleteRequest, ListRequest, RenameKind, RenameObjectRequest, topology_client::TopologyClient};

use super::{
    Tool,
    names::{all, one, only},
    view::ViewArgs,
};
use crate::{
    client::{Freshness, Session, change},
    confirm::{ConfirmArgs, confirm},
    error::Failure,
    output::{Document, Record},
};

/// A kind of object.
pub(super) trait Kind {
    /// As messages say it, and many of them.
    const NOUN: &'static str;
    /// See `NOUN`.
    const NOUNS: &'static str;
    /// The noun on the command line.
    const COMMAND: &'static str;
    /// The verb that takes one away, and how it says that it has.
    const REMOVE: (&'static str, &'static str) = ("delete", "deleted");
    /// What goes with it.
    const LOSS: &'static str = "";

    /// The rows asked for, as they are printed. `what` names the action in an error.
    async fn records(session: &Session, what: &str, request: ListRequest) -> Result<Vec<Record>, Failure>;

    /// More of one object than a list shows.
    async fn more(_: &Session, _: &str, _: Freshness, record: Record) -> Result<Record, Failure> {
        Ok(record)
    }

    /// Takes one away.
    async fn remove(session: &Session, what: &str, request: DeleteRequest) -> Result<(), Failure>;
}

/// `list`
pub(super) async fn list<K: Kind>(tool: &Tool, session: &Session, view: &ViewArgs) -> Result<(), Failure> {
    let what = format!("list {}", K::NOUNS);
    view.show(tool, async || {
        let records = K::records(session, &what, all(view.freshness())).await?;
        Ok(Document::List(K::NOUNS, records))
    })
    .await
}

/// `show`
pub(super) async fn show<K: Kind>(tool: &Tool, session: &Session, name: &str, view: &ViewArgs) -> Result<(), Failure> {
    view.show(tool, async || page::<K>(session, name, view.freshness()).await).await
}

/// The object as a change left it.
pub(super) async fn print<K: Kind>(tool: &Tool, session: &Session, name: &str) -> Result<(), Failure> {
    tool.print(&page::<K>(session, name, Freshness::Linearizable).await?)
}

/// `rename`
pub(super) async fn rename<K: Kind>(
    tool: &Tool,
    session: &Session,
    kind: RenameKind,
    name: &str,
    new_name: &str,
) -> Result<(), Failure> {
    let what = format!("rename {} {name}", K::NOUN);
    let (name, new_name) = (name.to_owned(), new_name.to_owned());
    let request = RenameObjectRequest { request: None, kind: kind.into(), name, new_name: new_name.clone() };
    change!(session, &what, TopologyClient.rename(request))?;
    print::<K>(tool, session, &new_name).await
}

/// `remove` or `delete`: what does not exist is an error before anything is asked.
pub(super) async fn remove<K: Kind>(session: &Session, name: &str, args: ConfirmArgs) -> Result<(), Failure> {
    let (verb, done) = K::REMOVE;
    let object = format!("{} {name}", K::NOUN);
    let what = format!("{verb} {object}");
    let found = K::records(session, &what, one(Freshness::Linearizable, name)).await?;
    only(found, K::COMMAND, name)?;
    if confirm(args, &format!("{object}{}", K::LOSS), name)? {
        K::remove(session, &what, DeleteRequest { request: None, name: name.to_owned() }).await?;
        eprintln!("{object} is {done}");
    }
    Ok(())
}

async fn page<K: Kind>(session: &Session, name: &str, freshness: Freshness) -> Result<Document, Failure> {
    let what = format!("show {} {name}", K::NOUN);
    let records = K::records(session, &what, one(freshness, name)).await?;
    let record = only(records, K::COMMAND, name)?;
    Ok(Document::One(K::more(session, name, freshness, record).await?))
}
