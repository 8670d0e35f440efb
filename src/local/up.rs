//! `pflex up`: starts what does not run, and on a new directory makes the cluster.
//!
//! Everything that can be refused is refused before the first process starts: a directory of something else, counts, ports,
//! space. A first start that fails before the quorum exists leaves nothing behind; one that fails later stops what it
//! started, and the next `up` takes it from there. Running it on a cluster starts only what does not run, so it is also how
//! a killed daemon is started again.

use std::{
    net::SocketAddr,
    path::PathBuf,
    time::{Duration, Instant},
};

use pflex_proto::pb::ClusterStatus;
use uuid::Uuid;

use super::{
    children::{self, Children},
    cluster_dir, configs,
    dir_lock::DirLock,
    down,
    layout::{Kind, Layout, Process},
    marker::Marker,
    plan::{Plan, Wishes, plan},
    populate::{self, Waiting},
    ports,
};
use crate::{
    cli::Options,
    client::{DEFAULT_TIMEOUT, Session},
    context::{self, ContextFile, LOCAL},
    daemon,
    error::{Exit, Failure},
    output::{self, Document, Format, Record},
    trace::Trace,
    units::{format_size, parse_size},
};

/// A first start takes seconds, a resync after a crash more.
const PATIENCE: Duration = Duration::from_secs(120);
/// Left for logs and metadata; devices are sparse and grow with what is written.
const LEAST_FREE_BYTES: u64 = 1 << 30;
/// How often `--foreground` looks after its processes.
const FOREGROUND_PERIOD: Duration = Duration::from_secs(1);

#[derive(clap::Args, Debug)]
#[command(after_help = "Examples:\n  pflex up\n  pflex up --dir /srv/pflex --sds 4 --port-offset 100")]
pub(crate) struct UpArgs {
    /// Where the cluster lives [default: ~/.local/share/pflex/local].
    #[arg(long)]
    dir: Option<PathBuf>,
    /// Metadata managers: 1, 3 or 5 [default: 3].
    #[arg(long, value_name = "COUNT")]
    mdm: Option<u32>,
    /// Storage servers [default: 3].
    #[arg(long, value_name = "COUNT")]
    sds: Option<u32>,
    /// Storage clients [default: 1].
    #[arg(long, value_name = "COUNT")]
    sdc: Option<u32>,
    /// Leave out the console.
    #[arg(long)]
    no_mgmt: bool,
    /// Send traces, metrics and logs to this OTLP endpoint.
    #[arg(long, value_name = "URL")]
    otlp: Option<String>,
    /// Stay, and stop the cluster on Ctrl-C or SIGTERM.
    #[arg(long)]
    foreground: bool,
    /// Add this to every port.
    #[arg(long, value_name = "NUMBER")]
    port_offset: Option<u16>,
    /// Devices of each server [default: 1].
    #[arg(long, value_name = "NUMBER")]
    devices: Option<u32>,
    /// Size of each device, a sparse file [default: 16GiB].
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    device_size: Option<u64>,
}

pub(crate) fn up(args: UpArgs, options: &Options, trace: Trace) -> Result<(), Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::io("start the runtime", error))?;
    runtime.block_on(run(args, options, trace))
}

async fn run(args: UpArgs, options: &Options, trace: Trace) -> Result<(), Failure> {
    let dir = cluster_dir(args.dir)?;
    let lock = DirLock::take(&dir)?;
    let wishes = Wishes {
        mdm: args.mdm,
        sds: args.sds,
        sdc: args.sdc,
        port_offset: args.port_offset,
        device_size_bytes: args.device_size,
        devices: args.devices,
    };
    let mut up = match Up::prepare(dir, wishes, args.otlp, options, trace) {
        Ok(up) => up,
        Err(failure) => {
            // Refused before anything was made.
            lock.undo();
            return Err(failure);
        }
    };
    // The console is not built yet, so with or without the flag there is none.
    let _ = args.no_mgmt;
    // What was started outlives a closed terminal, but an interrupted first start must not leave half a cluster.
    let interrupted = pflex_common::shutdown::on_signal().map_err(|error| Failure::io("catch signals", error))?;
    let outcome = tokio::select! {
        outcome = up.start() => outcome,
        () = interrupted.cancelled() => Err(Failure::new(Exit::Failed, "interrupted").remedy("run `pflex up` again")),
    };
    let status = match outcome {
        Ok(status) => status,
        Err(failure) => {
            if up.give_up() {
                lock.undo();
            }
            return Err(failure);
        }
    };
    up.write_context();
    up.print(&status, options.output.unwrap_or(Format::Table))?;
    let lost = if up.lost.is_empty() { Ok(()) } else { Err(lost_stores(&up.layout, &up.lost)) };
    if args.foreground {
        drop(lock);
        eprintln!("running; Ctrl-C stops the cluster");
        up.stay(&interrupted).await?;
    }
    lost
}

/// One run of the command.
struct Up {
    layout: Layout,
    plan: Plan,
    marker: Marker,
    /// The directory had no cluster when this run began.
    fresh: bool,
    /// The quorum answered: from here on the directory is worth keeping.
    founded: bool,
    /// What does not run and can be started.
    to_start: Vec<Process>,
    /// MDMs whose store was lost (S18).
    lost: Vec<Process>,
    children: Children,
    session: Session,
    otlp: Option<String>,
    patience: Duration,
}

impl Up {
    /// All checks; nothing is written.
    fn prepare(
        dir: PathBuf,
        wishes: Wishes,
        otlp: Option<String>,
        options: &Options,
        trace: Trace,
    ) -> Result<Self, Failure> {
        let existing = Marker::load(&dir)?;
        let plan = plan(existing.as_ref(), wishes)?;
        let layout = Layout::new(dir, plan.port_offset);
        let fresh = existing.is_none();
        let mut marker = existing.unwrap_or_else(|| Marker::new(&plan, Uuid::new_v4));
        marker.set_counts(plan.counts);
        let mut to_start = Vec::new();
        let mut lost = Vec::new();
        let processes = plan.counts.processes();
        let alive = children::alive(&layout, &processes)?;
        for process in processes {
            if !marker.is_made(process) && fresh && layout.process_dir(process).exists() {
                return Err(Failure::new(
                    Exit::Conflict,
                    format!(
                        "{} exists, but its directory holds no cluster of `pflex up`",
                        layout.process_dir(process).display()
                    ),
                )
                .remedy("give another --dir"));
            }
            if alive.contains(&process) {
                continue;
            }
            if process.kind == Kind::Mdm && marker.is_made(process) && !layout.data_dir(process).exists() {
                lost.push(process);
                continue;
            }
            if let Err(taken) = check_ports(&layout, process) {
                // Somebody may have started it since the first look; a daemon takes its pid file before its ports.
                if children::find(&layout, process)?.is_some() {
                    continue;
                }
                return Err(taken);
            }
            to_start.push(process);
        }
        // Without a majority there is nothing to wait for.
        if lost.len() * 2 >= plan.counts.mdm as usize && !lost.is_empty() {
            return Err(lost_stores(&layout, &lost));
        }
        if !to_start.is_empty() {
            check_space(&layout)?;
        }
        let session = Session::new(layout.mdm_members(plan.counts.mdm), DEFAULT_TIMEOUT, trace);
        let patience = options.timeout.unwrap_or(PATIENCE);
        let children = Children::default();
        Ok(Self { layout, plan, marker, fresh, founded: false, to_start, lost, children, session, otlp, patience })
    }

    async fn start(&mut self) -> Result<ClusterStatus, Failure> {
        let deadline = Instant::now() + self.patience;
        self.make()?;
        self.say_what_starts();
        self.launch(Kind::Mdm)?;
        // A member whose store is lost stays away, so then a majority must do.
        let whole = self.lost.is_empty();
        let session = self.session.clone();
        let counts = self.plan.counts;
        let quorum = |status: &ClusterStatus| if whole { populate::quorum_complete(status) } else { Ok(()) };
        self.waiting(deadline).until(&session, quorum).await?;
        self.founded = true;
        let complete = self.marker.complete;
        if !complete {
            populate::create_domain(&session).await?;
        }
        // Also on a complete cluster: servers and clients that `up --sds` adds.
        let new = |process: &Process| !complete || !self.marker.is_made(*process);
        for process in self.to_start.iter().filter(|process| new(process)) {
            match process.kind {
                Kind::Mdm => {}
                Kind::Sds => populate::create_sds(&session, process.index).await?,
                Kind::Sdc => populate::create_sdc(&session, process.index).await?,
            }
        }
        for process in self.to_start.clone().into_iter().filter(|process| process.kind != Kind::Mdm) {
            self.remember(process)?;
        }
        self.launch(Kind::Sds)?;
        self.launch(Kind::Sdc)?;
        let servers: Vec<_> = (0..counts.sds).map(populate::sds_name).collect();
        // What the MDM says of those that were started just now may still be about their previous life.
        let started = self.to_start.clone();
        let opened = self.waiting(deadline).until_answering(&started).await?;
        self.waiting(deadline).until_serving(&session, &servers, &opened).await?;
        if !complete {
            populate::create_pool(&session, counts.sds).await?;
            populate::create_volume(&session, counts.sdc).await?;
        }
        let clients: Vec<_> = (0..counts.sdc).map(populate::sdc_name).collect();
        let well = |status: &ClusterStatus| {
            populate::all_active(status, &clients)?;
            if whole { populate::healthy(status) } else { Ok(()) }
        };
        let status = self.waiting(deadline).until(&session, well).await?;
        if !complete {
            if counts.sdc > 0 {
                let address = self.nbd_address();
                self.waiting(deadline).until_open(address, populate::VOLUME).await?;
            }
            self.marker.complete = true;
            self.marker.save(self.layout.dir())?;
        }
        Ok(status)
    }

    /// Makes the files of processes that are new, and the stores of new MDMs.
    fn make(&mut self) -> Result<(), Failure> {
        self.marker.save(self.layout.dir())?;
        for process in self.to_start.clone() {
            if !self.layout.config_file(process).exists() {
                configs::write(&self.layout, &self.marker, process)?;
            }
            if process.kind == Kind::Mdm && !self.marker.is_made(process) {
                let file = configs::mdm(&self.layout, &self.marker, process);
                daemon::init_mdm(&process.to_string(), file)?;
                self.remember(process)?;
            }
        }
        Ok(())
    }

    /// That a store was made is remembered before its process first runs: what is missing later was lost.
    fn remember(&mut self, process: Process) -> Result<(), Failure> {
        self.marker.set_made(process);
        self.marker.save(self.layout.dir())
    }

    /// Starts the processes of a kind.
    fn launch(&mut self, kind: Kind) -> Result<(), Failure> {
        let of_kind: Vec<_> = self.to_start.iter().copied().filter(|process| process.kind == kind).collect();
        for process in &of_kind {
            self.children.start(&self.layout, *process, self.otlp.as_deref())?;
        }
        Ok(())
    }

    fn waiting(&mut self, deadline: Instant) -> Waiting<'_> {
        Waiting { layout: &self.layout, children: &mut self.children, deadline, patience: self.patience }
    }

    fn say_what_starts(&self) {
        if self.to_start.is_empty() {
            eprintln!("everything runs already");
        } else {
            let names: Vec<_> = self.to_start.iter().map(ToString::to_string).collect();
            eprintln!("starting {}", names.join(", "));
        }
    }

    /// After a failure: of a first start nothing stays running, and if no quorum came to be, nothing stays at all.
    /// Returns whether nothing is left.
    fn give_up(&mut self) -> bool {
        if !self.fresh {
            return false;
        }
        self.children.kill();
        if self.founded {
            return false;
        }
        for process in &self.to_start {
            drop(down::remove(&self.layout.process_dir(*process)));
        }
        drop(std::fs::remove_file(self.layout.dir().join(super::marker::FILE)));
        true
    }

    /// Context `local` names this cluster from now on. Without it the cluster is no worse, only further away.
    fn write_context(&self) {
        let members = self.layout.mdm_members(self.plan.counts.mdm);
        let written = context::path().and_then(|path| {
            let mut file = ContextFile::load(&path)?;
            let before = file.set(LOCAL, members);
            file.save(&path)?;
            Ok(before)
        });
        match written {
            Ok(Some(before)) => eprintln!("the current context is now {LOCAL}, no longer {before}"),
            Ok(None) => {}
            Err(failure) => eprintln!("warning: context {LOCAL} was not written: {failure}"),
        }
    }

    fn print(&self, status: &ClusterStatus, format: Format) -> Result<(), Failure> {
        let address = |id: u64| {
            let member = status.members.iter().find(|member| member.id == id);
            member.and_then(|member| member.addresses.clone()).map(|addresses| addresses.api).unwrap_or_default()
        };
        let members: Vec<_> =
            status.members.iter().map(|member| format!("mdm {} at {}", member.id, address(member.id))).collect();
        let names = |count: u32, name: fn(u32) -> String| (0..count).map(name).collect::<Vec<_>>();
        let counts = self.plan.counts;
        let uri = (counts.sdc > 0).then(|| self.layout.nbd_uri(populate::VOLUME));
        let record = Record::new(self.marker.cluster_id)
            .column("cluster_id", "CLUSTER", self.marker.cluster_id.to_string())
            .column("dir", "DIRECTORY", self.layout.dir().display().to_string())
            .column("health", "HEALTH", &status.health)
            .column(
                "leader",
                "LEADER",
                format!("mdm {} at {}, term {}", status.leader, address(status.leader), status.term),
            )
            .column("members", "MEMBERS", members)
            .column("servers", "SERVERS", names(counts.sds, populate::sds_name))
            .column("clients", "CLIENTS", names(counts.sdc, populate::sdc_name))
            .column("volume", "VOLUME", format!("{} ({})", populate::VOLUME, format_size(populate::VOLUME_BYTES)))
            .column("nbd_uri", "NBD", uri);
        output::print(&Document::One(record), format)
    }

    /// Until a signal: says what ends, then stops the rest in order.
    async fn stay(&mut self, interrupted: &pflex_common::shutdown::Shutdown) -> Result<(), Failure> {
        let mut period = tokio::time::interval(FOREGROUND_PERIOD);
        loop {
            tokio::select! {
                () = interrupted.cancelled() => break,
                _ = period.tick() => self.children.take_ended().iter().for_each(|what| eprintln!("{what}")),
            }
        }
        down::stop(&self.layout, &self.plan.counts.processes(), down::CLEAN_STOP)
    }

    fn nbd_address(&self) -> SocketAddr {
        let endpoint = self.layout.port(Process { kind: Kind::Sdc, index: 0 }, "NBD");
        SocketAddr::new(std::net::Ipv4Addr::LOCALHOST.into(), endpoint.port())
    }
}

fn check_ports(layout: &Layout, process: Process) -> Result<(), Failure> {
    layout.ports(process).iter().try_for_each(|(plane, endpoint)| ports::check_free(process, plane, endpoint))
}

/// Members that must not be started: a store made anew under an old id could vote twice (S18).
fn lost_stores(layout: &Layout, lost: &[Process]) -> Failure {
    let names: Vec<_> = lost.iter().map(ToString::to_string).collect();
    let stores: Vec<_> = lost.iter().map(|process| layout.data_dir(*process).display().to_string()).collect();
    Failure::new(
        Exit::Conflict,
        format!(
            "{} not started: the store {} is gone, and a lost store is never made again under its old id",
            names.join(", "),
            stores.join(", ")
        ),
    )
    .remedy("put the store back, or replace the member with `pflex cluster replace-node`")
}

/// A disk that is all but full is refused before anything is written to it.
fn check_space(layout: &Layout) -> Result<(), Failure> {
    let failed = |error: rustix::io::Errno| Failure::io(format!("look at {}", layout.dir().display()), error.into());
    let system = rustix::fs::statvfs(layout.dir()).map_err(failed)?;
    let free = system.f_bavail.saturating_mul(system.f_frsize);
    if free < LEAST_FREE_BYTES {
        return Err(Failure::new(
            Exit::Conflict,
            format!("the disk of {} is full: {} free", layout.dir().display(), format_size(free)),
        )
        .remedy(format!("free at least {} there, or give another --dir", format_size(LEAST_FREE_BYTES))));
    }
    Ok(())
}
