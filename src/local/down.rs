//! `pflex down`: clients first, so that they finish what they promised, then servers, then MDMs, which the others need to
//! the end. Each gets SIGTERM and time; what does not end in that time is killed, and the command says so.

use std::{
    fs,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use rustix::process::Signal;

use super::{
    children, cluster_dir,
    dir_lock::DirLock,
    layout::{Kind, Layout, Process},
    marker::{self, Marker},
};
use crate::{
    cli::Options,
    confirm::{ConfirmArgs, confirm},
    context::{self, ContextFile, LOCAL},
    error::{Exit, Failure},
    units::format_duration,
};

/// For all processes of a kind together: an SDC drains for 5 s, an SDS checkpoints, an MDM hands its leadership over.
pub(super) const CLEAN_STOP: Duration = Duration::from_secs(15);
/// SIGKILL needs no cooperation, only the end of a system call.
const KILL_WAIT: Duration = Duration::from_secs(5);

#[derive(clap::Args, Debug)]
#[command(after_help = "Examples:\n  pflex down\n  pflex down --dir /srv/pflex --wipe --yes")]
pub(crate) struct DownArgs {
    /// Where the cluster lives [default: ~/.local/share/pflex/local].
    #[arg(long)]
    dir: Option<PathBuf>,
    /// Remove its data too, after asking.
    #[arg(long)]
    wipe: bool,
    #[command(flatten)]
    confirm: ConfirmArgs,
}

pub(crate) fn down(args: DownArgs, options: &Options) -> Result<(), Failure> {
    let dir = cluster_dir(args.dir)?;
    let nothing = || {
        Failure::new(Exit::NotFound, format!("{} holds no cluster of `pflex up`", dir.display()))
            .remedy("name its directory with --dir")
    };
    // Looked at first, because locking would make the directory.
    if !dir.join(marker::FILE).exists() {
        return Err(nothing());
    }
    let lock = DirLock::take(&dir)?;
    let marker = Marker::load(&dir)?.ok_or_else(nothing)?;
    let layout = Layout::new(dir.clone(), marker.port_offset);
    if args.wipe {
        let name = dir.file_name().unwrap_or(dir.as_os_str()).to_string_lossy().into_owned();
        if !confirm(args.confirm, &format!("the cluster in {} and all its data", dir.display()), &name)? {
            return Ok(());
        }
    } else if args.confirm.dry_run {
        eprintln!("would stop the cluster in {}; nothing was done", dir.display());
        return Ok(());
    }
    let processes = marker.counts().processes();
    stop(&layout, &processes, options.timeout.unwrap_or(CLEAN_STOP))?;
    if args.wipe {
        wipe(&layout, &marker, &processes)?;
        lock.wipe();
        eprintln!("the cluster in {} is gone", dir.display());
    } else {
        eprintln!("stopped; `pflex up` continues it");
    }
    Ok(())
}

/// Stops those that run, kind by kind.
pub(super) fn stop(layout: &Layout, processes: &[Process], patience: Duration) -> Result<(), Failure> {
    for kind in [Kind::Sdc, Kind::Sds, Kind::Mdm] {
        let mut running = Vec::new();
        for process in processes.iter().filter(|process| process.kind == kind) {
            if let Some(found) = children::find(layout, *process)? {
                found.signal(Signal::TERM)?;
                running.push((process, found));
            }
        }
        let deadline = Instant::now() + patience;
        for (process, found) in running {
            if found.wait(deadline.saturating_duration_since(Instant::now()))? {
                eprintln!("{process} stopped");
                continue;
            }
            eprintln!("{process} (pid {}) did not end within {}: killing it", found.pid(), format_duration(patience));
            found.signal(Signal::KILL)?;
            if !found.wait(KILL_WAIT)? {
                return Err(Failure::new(Exit::TimedOut, format!("{process} (pid {}) cannot be killed", found.pid()))
                    .remedy("it hangs in the kernel, perhaps on its disk; look at its log and at dmesg"));
            }
        }
    }
    Ok(())
}

/// Removes what `up` made and nothing else: the directory may hold files of others.
fn wipe(layout: &Layout, marker: &Marker, processes: &[Process]) -> Result<(), Failure> {
    for process in processes {
        remove(&layout.process_dir(*process))?;
    }
    let members = layout.mdm_members(marker.counts().mdm);
    // The marker goes last: until then `down --wipe` can be run again.
    let path = layout.dir().join(marker::FILE);
    fs::remove_file(&path).map_err(|error| Failure::io(format!("remove {}", path.display()), error))?;
    forget_context(&members);
    Ok(())
}

pub(super) fn remove(dir: &Path) -> Result<(), Failure> {
    match fs::remove_dir_all(dir) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(Failure::io(format!("remove {}", dir.display()), error))
        }
        _ => Ok(()),
    }
}

/// A context that leads nowhere only confuses. A failure is no reason to fail: the data is gone as asked.
fn forget_context(members: &[pflex_common::net::Endpoint]) {
    let Ok(path) = context::path() else { return };
    if let Ok(mut file) = ContextFile::load(&path)
        && file.remove(LOCAL, members)
    {
        drop(file.save(&path));
    }
}
