//! A daemon's configuration as written: the file, then variables, then flags, each overriding the one before.
//!
//! Nothing here knows the keys of a component: overrides are laid over the file's table, and the component's own type
//! then parses the result, so a wrong key is refused by its name wherever it came from. Two things are ours: `pid_file`,
//! and the list of MDMs from `--mdm` or `PFLEX_MDM`.

use std::{
    env, fmt, fs,
    path::{Path, PathBuf},
};

use serde::de::DeserializeOwned;
use toml::{Table, Value};

use super::DaemonArgs;
use crate::{
    context::parse_members,
    error::{Exit, Failure, one_line},
};

/// The key that names the pid file; `pid-file` in an MDM's configuration.
pub(crate) const PID_FILE: &str = "pid_file";

/// The resolved table.
pub(super) struct Settings {
    pub(super) kind: &'static str,
    pub(super) pid_file: Option<PathBuf>,
    path: PathBuf,
    table: Table,
}

impl Settings {
    /// Reads the file and lays the overrides over it. `mdm` is the flag; a kind without MDM list passes none.
    pub(super) fn load(kind: &'static str, args: &DaemonArgs, mdm: Option<String>) -> Result<Self, Failure> {
        let Some(path) = args.config.clone() else {
            return Err(Failure::new(Exit::Usage, format!("pflex {kind} needs a verb or --config FILE"))
                .remedy(format!("see `pflex {kind} --help`")));
        };
        let text = fs::read_to_string(&path)
            .map_err(|error| Failure::io(format!("read configuration {}", path.display()), error))?;
        let mut settings = Self { kind, pid_file: None, table: parse(&path, &text)?, path };
        settings.override_by(env::vars(), &args.set)?;
        if kind != "mdm" {
            let variable = env::var("PFLEX_MDM").ok().filter(|list| !list.is_empty());
            if let Some(list) = mdm.or(variable) {
                let members = parse_members(&list, "the list of MDMs")?;
                let members = members.iter().map(|member| Value::String(member.to_string())).collect();
                settings.table.insert("mdm".to_owned(), Value::Array(members));
            }
        }
        settings.pid_file = match settings.table.remove(&settings.key(PID_FILE)) {
            None => None,
            Some(Value::String(path)) => Some(path.into()),
            Some(_) => return Err(settings.refuse("`pid_file` is not a path")),
        };
        Ok(settings)
    }

    /// As the component's own type.
    pub(super) fn parse<T: DeserializeOwned>(&self) -> Result<T, Failure> {
        self.table.clone().try_into().map_err(|error: toml::de::Error| self.refuse(one_line(error.message())))
    }

    /// Something in it is wrong.
    pub(super) fn refuse(&self, why: impl fmt::Display) -> Failure {
        Failure::new(Exit::Usage, format!("configuration {} of {}: {why}", self.path.display(), self.kind))
    }

    /// A key as this kind writes it. Variables have no `-`, so each kind has either only `-` or only `_` in its keys.
    fn key(&self, name: &str) -> String {
        let lower = name.to_lowercase();
        if self.kind == "mdm" { lower.replace('_', "-") } else { lower }
    }

    fn override_by(
        &mut self,
        variables: impl Iterator<Item = (String, String)>,
        flags: &[String],
    ) -> Result<(), Failure> {
        let prefix = format!("PFLEX_{}_", self.kind.to_uppercase());
        for (name, value) in variables {
            if let Some(key) = name.strip_prefix(&prefix) {
                self.table.insert(self.key(key), value_of(&value));
            }
        }
        for flag in flags {
            let Some((key, value)) = flag.split_once('=') else {
                return Err(
                    Failure::new(Exit::Usage, format!("--set {flag} has no `=`")).remedy("write --set KEY=VALUE")
                );
            };
            self.table.insert(key.trim().to_owned(), value_of(value));
        }
        Ok(())
    }
}

fn parse(path: &Path, text: &str) -> Result<Table, Failure> {
    text.parse().map_err(|error: toml::de::Error| {
        let line = error.span().map_or(1, |span| text[..span.start.min(text.len())].lines().count().max(1));
        Failure::new(
            Exit::Usage,
            format!("configuration {} line {line}: {}", path.display(), one_line(error.message())),
        )
    })
}

/// Numbers, booleans and arrays are written as in TOML; whatever is none of these is a text and needs no quotes.
fn value_of(text: &str) -> Value {
    let parsed = format!("value = {text}").parse::<Table>().ok().and_then(|mut table| table.remove("value"));
    match parsed {
        Some(value @ (Value::Integer(_) | Value::Boolean(_) | Value::Array(_) | Value::String(_))) => value,
        Some(Value::Float(_) | Value::Datetime(_) | Value::Table(_)) | None => Value::String(text.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(text: &str) -> Settings {
        let path = PathBuf::from("f.toml");
        Settings { kind: "sdc", pid_file: None, table: parse(&path, text).unwrap(), path }
    }

    fn variables(pairs: &[(&str, &str)]) -> impl Iterator<Item = (String, String)> {
        pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect::<Vec<_>>().into_iter()
    }

    #[test]
    fn flags_beat_variables_and_variables_beat_the_file() {
        let mut settings = settings("name = \"file\"\nio_deadline_s = 1\nnbd = \"a:1\"\n");
        let environment = [("PFLEX_SDC_NAME", "env"), ("PFLEX_SDC_IO_DEADLINE_S", "2"), ("PFLEX_SDS_NAME", "other")];
        settings.override_by(variables(&environment), &["name=flag".to_owned()]).unwrap();
        assert_eq!(settings.table["name"], Value::String("flag".into()));
        assert_eq!(settings.table["io_deadline_s"], Value::Integer(2));
        assert_eq!(settings.table["nbd"], Value::String("a:1".into()));
    }

    #[test]
    fn values_need_quotes_only_where_toml_would_take_them_for_something_else() {
        assert_eq!(value_of("127.0.0.1:8001"), Value::String("127.0.0.1:8001".into()));
        assert_eq!(value_of("/a b/c"), Value::String("/a b/c".into()));
        assert_eq!(value_of("\"7\""), Value::String("7".into()));
        assert_eq!(value_of("7"), Value::Integer(7));
        assert_eq!(value_of("[\"a:1\"]"), Value::Array(vec![Value::String("a:1".into())]));
        assert_eq!(value_of("2026-01-01"), Value::String("2026-01-01".into()));
    }

    #[test]
    fn wrong_keys_are_named() {
        let settings = settings("mdm = [\"a:1\"]\ndata_dir = \"/x\"\nnbdd = \"h:1\"\n");
        let failure = settings.parse::<pflex_sdc::daemon::ConfigFile>().unwrap_err();
        assert_eq!(failure.exit(), Exit::Usage);
        assert!(failure.to_string().contains("nbdd"), "{failure}");
    }

    #[test]
    fn a_syntax_error_names_the_line() {
        let failure = parse(Path::new("f.toml"), "a = 1\nb = = 2\n").unwrap_err();
        assert!(failure.to_string().starts_with("configuration f.toml line 2:"), "{failure}");
    }
}
