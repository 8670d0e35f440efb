//! `--mdm` and `--context`: which cluster. They may stand before the noun or anywhere after it.
//!
//! Clap has no option that is global but absent from one command, and `up --mdm 3` means another thing; so the pair
//! exists twice, at the top and, global from there on, in each noun.

use pflex_common::net::Endpoint;

use crate::{
    context::{self, ContextFile, Wishes},
    error::Failure,
};

/// The pair inside a noun.
#[derive(clap::Args, Clone, Debug, Default)]
#[command(next_help_heading = "Which cluster")]
pub(crate) struct Target {
    /// The MDMs, as HOST:PORT,HOST:PORT,... [variable: PFLEX_MDM; default: those of the context].
    #[arg(long, global = true, value_name = "HOST:PORT,...")]
    pub(crate) mdm: Option<String>,
    /// A context of ~/.config/pflex/config.toml [variable: PFLEX_CONTEXT; default: the current one].
    #[arg(long, global = true, value_name = "NAME", conflicts_with = "mdm")]
    pub(crate) context: Option<String>,
}

/// The pair before the noun.
#[derive(clap::Args, Clone, Debug, Default)]
pub(super) struct TopTarget {
    #[arg(id = "top_mdm", long = "mdm", hide = true, value_name = "HOST:PORT,...")]
    mdm: Option<String>,
    #[arg(id = "top_context", long = "context", hide = true, value_name = "NAME", conflicts_with = "top_mdm")]
    context: Option<String>,
}

impl TopTarget {
    /// What was said after the noun wins.
    pub(super) fn under(self, inner: Target) -> Target {
        if inner.mdm.is_some() || inner.context.is_some() {
            return inner;
        }
        Target { mdm: self.mdm, context: self.context }
    }
}

impl Target {
    pub(super) fn members(&self) -> Result<Vec<Endpoint>, Failure> {
        let wishes = Wishes { mdm: self.mdm.clone(), context: self.context.clone() };
        context::resolve(&wishes, |name| std::env::var(name).ok(), || ContextFile::load(&context::path()?))
    }
}
