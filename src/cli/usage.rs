//! Clap's usage errors as one line, like every other error here: what is wrong with which argument, and where the help
//! is. Help and version texts go out as they are.

use std::process::ExitCode;

use clap::error::ErrorKind;

use crate::error::{Exit, one_line};

pub(super) fn report(error: &clap::Error) -> ExitCode {
    match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => {
            // A reader that went away is no failure.
            drop(error.print());
            ExitCode::SUCCESS
        }
        ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => {
            drop(error.print());
            ExitCode::from(Exit::Usage as u8)
        }
        _ => {
            eprintln!("{}", line(&error.render().to_string()));
            ExitCode::from(Exit::Usage as u8)
        }
    }
}

/// Clap prints the error, tips, a usage and a pointer to the help as paragraphs. The first paragraph and the tips say what
/// is wrong; the usage only lends its command path to the pointer.
fn line(rendered: &str) -> String {
    let (mut message, mut tips, mut path) = (Vec::new(), Vec::new(), "pflex".to_owned());
    for paragraph in rendered.split("\n\n") {
        let text = one_line(paragraph);
        if let Some(usage) = text.strip_prefix("Usage: ") {
            let words = usage.split(' ').take_while(|word| word.starts_with(|c: char| c.is_ascii_lowercase()));
            path = words.collect::<Vec<_>>().join(" ");
        } else if text.starts_with("For more information") {
        } else if let Some(tip) = text.strip_prefix("tip: ") {
            tips.push(tip.replace(" tip: ", "; "));
        } else {
            message.push(text);
        }
    }
    message.extend(tips);
    message.push(format!("see `{path} --help`"));
    message.join("; ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paragraphs_become_one_line() {
        let rendered = "error: the following required arguments were not provided:\n  --size <SIZE>\n\n\
                        Usage: pflex volume create --size <SIZE> <NAME>\n\nFor more information, try '--help'.\n";
        assert_eq!(
            line(rendered),
            "error: the following required arguments were not provided: --size <SIZE>; see `pflex volume create --help`"
        );
    }

    #[test]
    fn tips_are_kept() {
        let rendered = "error: unrecognized subcommand 'volum'\n\n  tip: a similar subcommand exists: 'volume'\n\n\
                        Usage: pflex [OPTIONS] <COMMAND>\n\nFor more information, try '--help'.\n";
        assert_eq!(
            line(rendered),
            "error: unrecognized subcommand 'volum'; a similar subcommand exists: 'volume'; see `pflex --help`"
        );
    }
}
