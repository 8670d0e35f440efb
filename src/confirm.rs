//! "Are you sure?" for what cannot be undone: the name must be typed. Scripts say `--yes`; without a terminal and
//! without `--yes` nothing is destroyed, because nobody is there to be asked.

use std::io::{self, BufRead, IsTerminal as _, Write as _};

use crate::error::{Exit, Failure};

/// Flags of each command that destroys something.
#[derive(clap::Args, Clone, Copy, Debug, Default)]
pub(crate) struct ConfirmArgs {
    /// Do not ask.
    #[arg(long)]
    pub(crate) yes: bool,
    /// Say what would happen and do nothing.
    #[arg(long)]
    pub(crate) dry_run: bool,
}

/// Returns whether to go on. `what` says what is lost ("volume demo and its data"), `name` is to be typed.
pub(crate) fn confirm(args: ConfirmArgs, what: &str, name: &str) -> Result<bool, Failure> {
    confirm_to(args, &format!("remove {what}"), name)
}

/// The same for any other deed that cannot be undone ("give up what only sds3 has").
pub(crate) fn confirm_to(args: ConfirmArgs, deed: &str, name: &str) -> Result<bool, Failure> {
    if args.dry_run {
        eprintln!("would {deed}; nothing was done");
        return Ok(false);
    }
    if args.yes {
        return Ok(true);
    }
    if !io::stdin().is_terminal() || !io::stderr().is_terminal() {
        return Err(Failure::new(Exit::Usage, format!("to {deed} must be confirmed, and there is no terminal"))
            .remedy("give --yes"));
    }
    eprint!("This will {deed}. Type {name} to go on: ");
    io::stderr().flush().map_err(|error| Failure::io("ask", error))?;
    answered(name, &mut io::stdin().lock())
}

fn answered(name: &str, input: &mut impl BufRead) -> Result<bool, Failure> {
    let mut line = String::new();
    input.read_line(&mut line).map_err(|error| Failure::io("read the answer", error))?;
    if line.trim() == name {
        return Ok(true);
    }
    Err(Failure::new(Exit::Failed, format!("{name} was not typed; nothing was done")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_name_is_a_yes() {
        assert!(answered("demo", &mut "demo\n".as_bytes()).unwrap());
        for no in ["", "y\n", "Demo\n", "demo2\n"] {
            assert!(answered("demo", &mut no.as_bytes()).is_err(), "{no:?}");
        }
    }

    #[test]
    fn scripts_are_not_asked_and_a_dry_run_goes_nowhere() {
        assert!(confirm(ConfirmArgs { yes: true, dry_run: false }, "volume demo", "demo").unwrap());
        assert!(!confirm(ConfirmArgs { yes: true, dry_run: true }, "volume demo", "demo").unwrap());
    }
}
