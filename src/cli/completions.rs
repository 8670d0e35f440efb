//! `pflex completions SHELL`: the script by which a shell completes commands, flags and fixed values.

use clap::CommandFactory as _;

use crate::{error::Failure, output};

#[derive(clap::Args, Debug)]
#[command(after_help = "Example:\n  pflex completions bash > ~/.local/share/bash-completion/completions/pflex")]
pub(super) struct Args {
    #[arg(value_enum)]
    shell: clap_complete::Shell,
}

pub(super) fn run(args: Args) -> Result<(), Failure> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut super::Cli::command(), "pflex", &mut script);
    output::write_out(&String::from_utf8_lossy(&script))
}
