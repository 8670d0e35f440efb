//! Which cluster a command speaks to. First that is there: `--mdm`, `--context`, `PFLEX_MDM`, `PFLEX_CONTEXT`, the
//! current context of the context file. A flag beats every variable, and a variable beats the file.
//!
//! ```toml
//! current = "local"
//!
//! [contexts.local]
//! mdm = ["127.0.0.1:8001", "127.0.0.1:8011", "127.0.0.1:8021"]
//! ```
//! The file is `$XDG_CONFIG_HOME/pflex/config.toml`, by default under `~/.config`. `pflex up` writes context `local`.

use std::{
    collections::BTreeMap,
    env,
    path::{Path, PathBuf},
};

use pflex_common::{durable, net::Endpoint};
use serde::{Deserialize, Serialize};

use crate::error::{Exit, Failure};

/// The context that `pflex up` writes.
pub(crate) const LOCAL: &str = "local";

const ADVICE: &str = "give --mdm HOST:PORT,..., set PFLEX_MDM, or start a local cluster with `pflex up`";

/// The context file as it stands on disk.
#[derive(Serialize, Deserialize, Default, Debug, PartialEq, Eq)]
#[serde(deny_unknown_fields)]
pub(crate) struct ContextFile {
    #[serde(skip_serializing_if = "Option::is_none")]
    current: Option<String>,
    #[serde(default)]
    contexts: BTreeMap<String, Context>,
}

/// One cluster.
#[derive(Serialize, Deserialize, Debug, PartialEq, Eq)]
#[serde(deny_unknown_fields)]
struct Context {
    mdm: Vec<Endpoint>,
}

/// What the command line and the environment say.
#[derive(Default, Debug)]
pub(crate) struct Wishes {
    pub(crate) mdm: Option<String>,
    pub(crate) context: Option<String>,
}

/// Finds the MDMs. `variable` looks into the environment; `load` reads the context file, only if nothing else decides.
pub(crate) fn resolve(
    flags: &Wishes,
    variable: impl Fn(&str) -> Option<String>,
    load: impl FnOnce() -> Result<ContextFile, Failure>,
) -> Result<Vec<Endpoint>, Failure> {
    let variable = |name| variable(name).filter(|value| !value.is_empty());
    if let Some(list) = &flags.mdm {
        return parse_members(list, "--mdm");
    }
    if let Some(name) = &flags.context {
        return load()?.members(name);
    }
    if let Some(list) = variable("PFLEX_MDM") {
        return parse_members(&list, "PFLEX_MDM");
    }
    if let Some(name) = variable("PFLEX_CONTEXT") {
        return load()?.members(&name);
    }
    let file = load()?;
    match &file.current {
        Some(name) => file.members(name),
        None => Err(Failure::new(Exit::Usage, "no cluster to speak to").remedy(ADVICE)),
    }
}

/// `HOST:PORT,HOST:PORT,...`; `source` is where it was written.
pub(crate) fn parse_members(list: &str, source: &str) -> Result<Vec<Endpoint>, Failure> {
    let parts = list.split(',').map(str::trim).filter(|part| !part.is_empty());
    let members: Result<Vec<Endpoint>, _> = parts.map(str::parse).collect();
    match members {
        Ok(members) if !members.is_empty() => Ok(members),
        Ok(_) => {
            Err(Failure::new(Exit::Usage, format!("{source} names no MDM")).remedy("write HOST:PORT,HOST:PORT,..."))
        }
        Err(error) => {
            Err(Failure::new(Exit::Usage, format!("{source}: {error}")).remedy("write HOST:PORT,HOST:PORT,..."))
        }
    }
}

/// Where the context file is.
pub(crate) fn path() -> Result<PathBuf, Failure> {
    xdg_dir("XDG_CONFIG_HOME", ".config").map(|dir| dir.join("pflex/config.toml"))
}

/// A directory of the XDG base directory specification; a relative value counts as absent, as it demands.
pub(crate) fn xdg_dir(variable: &str, below_home: &str) -> Result<PathBuf, Failure> {
    let absolute = |value: std::ffi::OsString| Some(PathBuf::from(value)).filter(|path| path.is_absolute());
    env::var_os(variable)
        .and_then(absolute)
        .or_else(|| env::var_os("HOME").and_then(absolute).map(|home| home.join(below_home)))
        .ok_or_else(|| {
            Failure::new(Exit::Usage, format!("neither {variable} nor HOME is set")).remedy("set one of them")
        })
}

impl ContextFile {
    /// Reads the file; an absent one is empty.
    pub(crate) fn load(path: &Path) -> Result<Self, Failure> {
        let bytes = durable::read_if_exists(path)
            .map_err(|error| Failure::new(Exit::Failed, format!("{error}: {}", error.io())).cause(error))?
            .unwrap_or_default();
        let damaged = |why: String| {
            Failure::new(Exit::Usage, format!("context file {}: {why}", path.display()))
                .remedy("mend it, remove it, or give --mdm")
        };
        let text = String::from_utf8(bytes).map_err(|_| damaged("not UTF-8".to_owned()))?;
        toml::from_str(&text).map_err(|error| damaged(error.message().to_owned()))
    }

    /// Writes the file whole.
    pub(crate) fn save(&self, path: &Path) -> Result<(), Failure> {
        let text = toml::to_string(self).expect("the types of this file are those of TOML");
        let parent = path.parent().unwrap_or(Path::new("."));
        durable::create_dir(parent)
            .and_then(|()| durable::replace(path, text.as_bytes()))
            .map_err(|error| Failure::io(&error, std::io::Error::from(error.io().kind())).cause(error))
    }

    /// Adds or replaces a context and makes it the current one. Returns the one that was current, if another.
    pub(crate) fn set(&mut self, name: &str, mdm: Vec<Endpoint>) -> Option<String> {
        self.contexts.insert(name.to_owned(), Context { mdm });
        self.current.replace(name.to_owned()).filter(|before| before != name)
    }

    /// Removes a context if it still names these MDMs; returns whether it did.
    pub(crate) fn remove(&mut self, name: &str, mdm: &[Endpoint]) -> bool {
        if self.contexts.get(name).is_none_or(|context| context.mdm != mdm) {
            return false;
        }
        self.contexts.remove(name);
        if self.current.as_deref() == Some(name) {
            self.current = None;
        }
        true
    }

    fn members(&self, name: &str) -> Result<Vec<Endpoint>, Failure> {
        match self.contexts.get(name) {
            Some(context) if !context.mdm.is_empty() => Ok(context.mdm.clone()),
            Some(_) => Err(Failure::new(Exit::Usage, format!("context {name} names no MDM")).remedy(ADVICE)),
            None => Err(Failure::new(Exit::NotFound, format!("no context {name} in the context file")).remedy(ADVICE)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file() -> ContextFile {
        let mut file = ContextFile::default();
        file.set("prod", parse_members("p:1", "").unwrap());
        assert_eq!(file.set(LOCAL, parse_members("l:1,l:2", "").unwrap()), Some("prod".into()));
        file
    }

    fn resolved(mdm: Option<&str>, context: Option<&str>, variables: &[(&str, &str)]) -> Result<String, Exit> {
        let flags = Wishes { mdm: mdm.map(Into::into), context: context.map(Into::into) };
        let variable =
            |name: &str| variables.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned());
        resolve(&flags, variable, || Ok(file()))
            .map(|members| members.iter().map(ToString::to_string).collect::<Vec<_>>().join(","))
            .map_err(|failure| failure.exit())
    }

    #[test]
    fn flags_beat_variables_and_variables_beat_the_file() {
        let both = [("PFLEX_MDM", "e:1"), ("PFLEX_CONTEXT", "prod")];
        assert_eq!(resolved(Some("f:1, f:2"), Some("prod"), &both), Ok("f:1,f:2".into()));
        assert_eq!(resolved(None, Some("prod"), &both), Ok("p:1".into()));
        assert_eq!(resolved(None, None, &both), Ok("e:1".into()));
        assert_eq!(resolved(None, None, &both[1..]), Ok("p:1".into()));
        assert_eq!(resolved(None, None, &[("PFLEX_MDM", "")]), Ok("l:1,l:2".into()));
    }

    #[test]
    fn what_cannot_be_resolved_is_refused() {
        assert_eq!(resolved(Some("nonsense"), None, &[]), Err(Exit::Usage));
        assert_eq!(resolved(Some(" , "), None, &[]), Err(Exit::Usage));
        assert_eq!(resolved(None, Some("nowhere"), &[]), Err(Exit::NotFound));
        let empty = resolve(&Wishes::default(), |_| None, || Ok(ContextFile::default())).unwrap_err();
        assert_eq!(empty.exit(), Exit::Usage);
    }

    #[test]
    fn the_file_is_written_and_read_back() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("pflex/config.toml");
        assert_eq!(ContextFile::load(&path).unwrap(), ContextFile::default());
        file().save(&path).unwrap();
        assert_eq!(ContextFile::load(&path).unwrap(), file());
        std::fs::write(&path, "current = 3").unwrap();
        assert_eq!(ContextFile::load(&path).unwrap_err().exit(), Exit::Usage);
    }

    #[test]
    fn a_context_is_removed_only_while_it_names_that_cluster() {
        let mut file = file();
        assert!(!file.remove(LOCAL, &parse_members("other:1", "").unwrap()));
        assert!(file.remove(LOCAL, &parse_members("l:1,l:2", "").unwrap()));
        assert_eq!(file.current, None);
    }
}
