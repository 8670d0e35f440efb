//! `pflex up` and `pflex down`: a whole cluster on this host, each daemon a process of its own.
//!
//! Reading order: [`plan`] (what is to be), [`layout`] and [`marker`] (where it is and what it was), [`up`] with
//! [`configs`], [`children`] and [`populate`], then [`down`].
//!
//! A cluster lives in one directory. Nothing outside it is written but context `local` of the user's context file.

mod children;
mod configs;
mod dir_lock;
mod down;
mod layout;
mod marker;
pub(crate) mod nbd_probe;
mod plan;
mod populate;
mod ports;
mod up;

use std::path::PathBuf;

pub(crate) use down::{DownArgs, down};
pub(crate) use up::{UpArgs, up};

use crate::{context::xdg_dir, error::Failure};

/// `--dir`, else `~/.local/share/pflex/local`; absolute, because daemons run elsewhere.
fn cluster_dir(flag: Option<PathBuf>) -> Result<PathBuf, Failure> {
    let dir = match flag {
        Some(dir) => dir,
        None => xdg_dir("XDG_DATA_HOME", ".local/share")?.join("pflex/local"),
    };
    std::path::absolute(&dir).map_err(|error| Failure::io(format!("find {}", dir.display()), error))
}
