//! `pflex completions SHELL`: the script by which a shell asks this program what may come next: commands, flags, fixed
//! values, and the names of objects (see [`super::complete`]).

use clap::ValueEnum;
use clap_complete::env::Shells;

use crate::{
    error::{Exit, Failure},
    output,
};

/// The variable by which a shell says that it wants completions.
pub(super) const VARIABLE: &str = "COMPLETE";

#[derive(clap::Args, Debug)]
#[command(after_help = "Examples:\n  source <(pflex completions bash)\n  \
                        pflex completions fish > ~/.config/fish/completions/pflex.fish\n\n\
                        Names of volumes, pools, servers and so on are asked from the cluster, for half a second at most.")]
pub(super) struct Args {
    #[arg(value_enum)]
    shell: Shell,
}

#[derive(ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
enum Shell {
    Bash,
    Elvish,
    Fish,
    Powershell,
    Zsh,
}

pub(super) fn run(args: Args) -> Result<(), Failure> {
    let shell = args.shell.to_possible_value().expect("no shell is skipped");
    let shells = Shells::builtins();
    let completer = shells
        .completer(shell.get_name())
        .ok_or_else(|| Failure::new(Exit::Usage, format!("there are no completions for {}", shell.get_name())))?;
    let mut script = Vec::new();
    completer
        .write_registration(VARIABLE, "pflex", "pflex", "pflex", &mut script)
        .map_err(|error| Failure::io("make the script", error))?;
    output::write_out(&String::from_utf8_lossy(&script))
}
