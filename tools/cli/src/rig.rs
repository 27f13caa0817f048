//! `ashlar rig`: a whole store on this machine, one process per node.
//!
//! A rig's folder:
//!
//!     rig.json              what the rig is; written last, so a rig that has it is whole
//!     map.json              the cluster map: clients read it
//!     lock                  held by a command that changes the rig
//!     node-N/node.toml      the node's configuration
//!     node-N/map.json       the newest map that the node has heard of
//!     node-N/control/       what it remembers as a member of the control plane, if it is one
//!     node-N/device.img     its device, or what its loop device stands on
//!     node-N/node.log       what it says
//!     node-N/pid            its process: number and start time
//!     gateway/              its S3 gateway: see rig_gateway.rs
//!
//! Invariants:
//! - a command that starts, ends or removes nodes holds the lock;
//! - a folder without `rig.json` is only touched if it is empty or holds `creating`, the mark of
//!   a rig that was never finished.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use ashlar_cluster_map::{Class, ClusterMap};
use ashlar_layout::ids::NodeId;
use ashlar_node_gateway::Ownership;
use clap::{Args, Subcommand};
use rustix::fs::{FlockOperation, flock};
use rustix::process::Signal;
use serde::{Deserialize, Serialize};

use crate::fail::Fail;
use crate::gateway::parse_ownership;
use crate::locate;
use crate::output::{self, parse_size};
use crate::process::{Process, State};
use crate::{rig_corrupt, rig_files, rig_gateway, rig_status, rig_up};

/// Version of `rig.json`.
pub const RIG_VERSION: u32 = 2;
/// The mark of a rig that is being made.
pub const CREATING: &str = "creating";
/// How long a node may take to drain. A core gives itself ten seconds.
const DRAIN: Duration = Duration::from_secs(30);
/// How long a killed process may take to be gone.
const DEATH: Duration = Duration::from_secs(30);

/// Start, look at, hurt and remove a store on this machine.
#[derive(Args)]
pub struct RigArgs {
    /// The rig's folder.
    #[arg(long, global = true, default_value = locate::RIG_DIR)]
    dir: PathBuf,
    #[command(subcommand)]
    command: RigCommand,
}

#[derive(Subcommand)]
enum RigCommand {
    /// Make a store, or resume the one that is there, and start its nodes.
    Up(UpArgs),
    /// Say how the nodes and their devices are.
    Status,
    /// Kill nodes at once (SIGKILL), as a crash would.
    Kill(NodeList),
    /// Stop nodes in their tracks (SIGSTOP), as a hang would.
    Stop(NodeList),
    /// Let stopped nodes go on (SIGCONT).
    Cont(NodeList),
    /// Start nodes that are dead.
    Start(StartArgs),
    /// Overwrite random blocks of a node's device with random bytes.
    Corrupt(CorruptArgs),
    /// End all nodes in order: they drain first.
    Down,
    /// Remove the rig and all that it stores.
    Wipe {
        /// Do it without asking.
        #[arg(long)]
        yes: bool,
    },
}

/// How to make a rig. What is not given is the default for a new one, or whatever an existing one has.
#[derive(Args)]
pub struct UpArgs {
    /// Nodes, each with one device. [default: 6]
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=256))]
    pub nodes: Option<u32>,
    /// Size of each device. [default: 2G]
    #[arg(long, value_parser = parse_size)]
    pub size: Option<u64>,
    /// Durability class, data + parity shards. [default: 4+2]
    #[arg(long)]
    pub class: Option<Class>,
    /// Zones, over which the nodes are dealt out in turn: the journal's replicas stand in different
    /// ones. [default: 1]
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=256))]
    pub zones: Option<u32>,
    /// Members of the control plane: an odd number. [default: 3, or 1 if there are fewer nodes]
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=7))]
    pub control: Option<u32>,
    /// Seconds after which a node that is away is replaced in the journal's chains. [default: 30]
    #[arg(long)]
    pub replace_after: Option<u64>,
    /// Seconds after which a device that is away is out: from then on what is on it may be put elsewhere. [default: 30]
    #[arg(long)]
    pub out_after: Option<u64>,
    /// Split a partition of the index when it has more objects. [default: 4000000]
    #[arg(long)]
    pub split_objects: Option<u64>,
    /// Merge two neighbours when they have fewer objects together. [default: 200000, or an eighth of --split-objects]
    #[arg(long)]
    pub merge_objects: Option<u64>,
    /// Reserve the device files' space and do not write it: made at once, but the first write to each place is slower.
    #[arg(long)]
    pub reserve_only: bool,
    /// Put loop devices with direct I/O on the files, so that nodes own block devices (needs root).
    #[arg(long = "loop")]
    pub loops: bool,
    /// The journal's heads feed every follower themselves instead of through the chain: to compare the two.
    #[arg(long, hide = true)]
    pub star: bool,
    /// Bytes of a table of an index: small ones are written out often. [default: 8M]
    #[arg(long, hide = true, value_parser = parse_size)]
    pub index_table: Option<u64>,
    /// Bytes of the journal that are kept for replicas that were away. [default: 32M]
    #[arg(long, hide = true, value_parser = parse_size)]
    pub journal_keep: Option<u64>,
    /// Make a rig without an S3 gateway.
    #[arg(long)]
    pub no_gateway: bool,
    /// Who owns what others put into new buckets of its gateway: see `gateway run`. [default: BucketOwnerEnforced]
    #[arg(long, conflicts_with = "no_gateway", value_name = "OWNERSHIP", value_parser = parse_ownership)]
    pub object_ownership: Option<Ownership>,
    /// Start nodes that do not look at what is stored by themselves, until this is said otherwise.
    #[arg(long)]
    pub no_audit: bool,
    /// Seconds in which they look at all of it. [default: 604800, a week]
    #[arg(long, conflicts_with = "no_audit", value_parser = clap::value_parser!(u64).range(1..))]
    pub audit_pass: Option<u64>,
    /// Seconds for which they wait for devices that are away. [default: 900]
    #[arg(long, conflicts_with = "no_audit")]
    pub audit_wait: Option<u64>,
    /// Bytes a second that they read each device with at the least for that, whatever others feel of it. [default: 1M]
    #[arg(long, conflicts_with = "no_audit", value_parser = parse_size)]
    pub audit_floor: Option<u64>,
    /// Return when the store serves, and leave the nodes running.
    #[arg(long)]
    pub detach: bool,
    /// Seconds to wait until the store serves.
    #[arg(long, default_value_t = 60)]
    pub wait: u64,
}

/// Which nodes.
#[derive(Args)]
pub struct NodeList {
    /// Numbers of the nodes.
    #[arg(required = true, value_name = "N")]
    nodes: Vec<u32>,
}

/// Which nodes to start.
#[derive(Args)]
pub struct StartArgs {
    #[command(flatten)]
    list: NodeList,
    /// Seconds to wait until they serve.
    #[arg(long, default_value_t = 60)]
    wait: u64,
}

/// What to corrupt.
#[derive(Args)]
pub struct CorruptArgs {
    /// The node whose device is hurt.
    #[arg(value_name = "N")]
    pub node: u32,
    /// How many blocks of 4 KiB.
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..))]
    pub blocks: u64,
    /// Repeats the same choice of blocks and bytes on the same device.
    #[arg(long)]
    pub seed: Option<u64>,
    /// Choose among all blocks of the device, its superblocks and free space included.
    #[arg(long)]
    pub anywhere: bool,
}

/// `rig.json`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RigFile {
    /// Of this file's form.
    pub version: u32,
    /// How many nodes; they are numbered from 1.
    pub nodes: u32,
    /// Bytes of each device.
    pub size: u64,
    /// Durability class.
    pub class: Class,
    /// Whether the nodes own loop devices.
    pub loops: bool,
    /// Whether the journal's heads feed every follower themselves.
    #[serde(default)]
    pub star: bool,
    /// Bytes of a table of an index, if it was said,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub index_table: Option<u64>,
    /// and of the journal that is kept.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub journal_keep: Option<u64>,
    /// How many zones the nodes are dealt out over.
    pub zones: u32,
    /// How many of the nodes, from the first, are members of the control plane.
    pub control: u32,
    /// Seconds after which a node that is away is replaced in the journal's chains.
    pub replace_after: u64,
    /// Seconds after which a device that is away is out, if it was said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub out_after: Option<u64>,
    /// Objects of a partition that is split, if it was said,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub split_objects: Option<u64>,
    /// and of two that are merged.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub merge_objects: Option<u64>,
    /// Whether its nodes look at what is stored by themselves,
    #[serde(default = "yes")]
    pub audit: bool,
    /// in how many seconds, if it was said,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub audit_pass: Option<u64>,
    /// and for how many they wait for devices that are away.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub audit_wait: Option<u64>,
    /// With so many bytes a second of each device at the least, if it was said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub audit_floor: Option<u64>,
    /// Where its S3 gateway listens, if it has one.
    #[serde(default)]
    pub gateway: Option<String>,
    /// Who owns what others put into its new buckets, if it was said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub object_ownership: Option<Ownership>,
}

fn yes() -> bool {
    true
}

/// A rig that is there.
pub struct Rig {
    /// Its folder.
    pub dir: PathBuf,
    /// What it is.
    pub file: RigFile,
}

/// Held while the rig is changed.
pub struct Lock {
    _file: File,
}

impl Lock {
    /// Takes the lock of a rig's folder, which must exist.
    pub fn take(dir: &Path) -> Result<Lock, Fail> {
        let path = dir.join("lock");
        let file = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&path)
            .map_err(Fail::io("cannot open", &path))?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Lock { _file: file }),
            Err(rustix::io::Errno::WOULDBLOCK) => Err(Fail::Refused(format!(
                "another command is changing the rig in {}: wait for it to end",
                dir.display()
            ))),
            Err(e) => Err(Fail::io("cannot lock", &path)(e.into())),
        }
    }
}

impl Rig {
    /// The rig in a folder, if there is a whole one.
    pub fn find(dir: &Path) -> Result<Option<Rig>, Fail> {
        let path = dir.join("rig.json");
        let text = match std::fs::read(&path) {
            Ok(text) => text,
            Err(e)
                if matches!(
                    e.kind(),
                    io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
                ) =>
            {
                return Ok(None);
            }
            Err(e) => return Err(Fail::io("cannot read", &path)(e)),
        };
        let file: RigFile = serde_json::from_slice(&text).map_err(|e| {
            Fail::Refused(format!("{} does not describe a rig: {e}", path.display()))
        })?;
        if file.version != RIG_VERSION {
            return Err(Fail::Refused(format!(
                "the rig in {} has version {}, this program knows {RIG_VERSION}: use the one that made it",
                dir.display(),
                file.version
            )));
        }
        let dir = dir.canonicalize().map_err(Fail::io("cannot find", dir))?;
        Ok(Some(Rig { dir, file }))
    }

    /// The rig in a folder; it is an error if there is none.
    pub fn open(dir: &Path) -> Result<Rig, Fail> {
        Rig::find(dir)?.ok_or_else(|| {
            Fail::Refused(format!(
                "there is no rig in {}: make one with 'ashlar rig up', or name another with --dir",
                dir.display()
            ))
        })
    }

    /// Writes `rig.json`: from now on the rig is whole.
    pub fn save(&self) -> Result<(), Fail> {
        let json = serde_json::to_vec_pretty(&self.file)
            .map_err(|e| Fail::Refused(format!("rig.json cannot be written: {e}")))?;
        write_whole(&self.dir.join("rig.json"), &json)
    }

    /// A node's folder.
    pub fn folder(&self, node: u32) -> PathBuf {
        self.dir.join(format!("node-{node}"))
    }

    /// A node's device file.
    pub fn image(&self, node: u32) -> PathBuf {
        self.folder(node).join("device.img")
    }

    /// All nodes' numbers.
    pub fn nodes(&self) -> std::ops::RangeInclusive<u32> {
        1..=self.file.nodes
    }

    /// A node's process, as its pid file tells.
    pub fn process(&self, node: u32) -> Option<Process> {
        Process::read(&self.folder(node).join("pid"))
    }

    /// How a node's process is.
    pub fn state(&self, node: u32) -> State {
        self.process(node).map_or(State::Dead, |p| p.state())
    }

    /// The cluster's map: the newest that is known here.
    pub fn map(&self) -> Result<ClusterMap, Fail> {
        locate::newest_map(&self.dir)
    }

    /// Checks that these are nodes of the rig.
    pub fn check(&self, nodes: &[u32]) -> Result<(), Fail> {
        match nodes.iter().find(|n| !self.nodes().contains(n)) {
            Some(node) => Err(Fail::Usage(format!(
                "there is no node {node}: the rig in {} has nodes 1 to {}",
                self.dir.display(),
                self.file.nodes
            ))),
            None => Ok(()),
        }
    }
}

/// Writes a file so that it is there whole or not at all.
pub fn write_whole(path: &Path, bytes: &[u8]) -> Result<(), Fail> {
    let part = path.with_extension("part");
    let write = || -> io::Result<()> {
        let mut file = File::create(&part)?;
        io::Write::write_all(&mut file, bytes)?;
        file.sync_all()?;
        std::fs::rename(&part, path)
    };
    write().map_err(Fail::io("cannot write", path))
}

/// Node numbers of the chain of the first partition, head first.
pub fn chain_nodes(map: &ClusterMap) -> Vec<NodeId> {
    let chain = map
        .partitions
        .first()
        .map(|p| p.chain.devices.clone())
        .unwrap_or_default();
    chain
        .iter()
        .filter_map(|no| map.device(*no))
        .map(|d| d.node)
        .collect()
}

/// Runs a rig command.
pub fn run(args: RigArgs, json: bool) -> Result<(), Fail> {
    let dir = args.dir;
    match args.command {
        RigCommand::Up(up) => rig_up::up(&dir, &up, json),
        RigCommand::Status => rig_status::status(&Rig::open(&dir)?, json),
        RigCommand::Kill(list) => {
            let rig = Rig::open(&dir)?;
            signal(&rig, &list.nodes, Signal::KILL, json)
        }
        RigCommand::Stop(list) => signal(&Rig::open(&dir)?, &list.nodes, Signal::STOP, json),
        RigCommand::Cont(list) => signal(&Rig::open(&dir)?, &list.nodes, Signal::CONT, json),
        RigCommand::Start(start) => {
            let rig = Rig::open(&dir)?;
            let _lock = Lock::take(&rig.dir)?;
            rig.check(&start.list.nodes)?;
            rig_up::start(
                &rig,
                &start.list.nodes,
                Duration::from_secs(start.wait),
                json,
            )
        }
        RigCommand::Corrupt(corrupt) => {
            let rig = Rig::open(&dir)?;
            rig.check(&[corrupt.node])?;
            rig_corrupt::corrupt(&rig, &corrupt, json)
        }
        RigCommand::Down => {
            let rig = Rig::open(&dir)?;
            let _lock = Lock::take(&rig.dir)?;
            let drained = down(&rig)?;
            tell(json, "drained", &drained, "drained")
        }
        RigCommand::Wipe { yes } => wipe(&dir, yes, json),
    }
}

fn tell(json: bool, field: &str, nodes: &[u32], done: &str) -> Result<(), Fail> {
    if json {
        return output::json(&serde_json::json!({ field: nodes }));
    }
    if nodes.is_empty() {
        return output::line("no node was running");
    }
    let list: Vec<String> = nodes.iter().map(u32::to_string).collect();
    output::line(&format!("{done}: node {}", list.join(", ")))
}

fn signal(rig: &Rig, nodes: &[u32], signal: Signal, json: bool) -> Result<(), Fail> {
    rig.check(nodes)?;
    let mut done = Vec::new();
    let mut processes = Vec::new();
    for node in nodes {
        let sent = match rig.process(*node) {
            Some(process) => {
                processes.push(process);
                process
                    .signal(signal)
                    .map_err(Fail::io("cannot signal the process of", &rig.folder(*node)))?
            }
            None => false,
        };
        if sent {
            done.push(*node);
        } else {
            output::note(&format!("node {node} is not running"));
        }
    }
    if signal == Signal::KILL {
        for process in processes {
            process
                .wait_dead(DEATH)
                .map_err(Fail::io("cannot wait for a process of", &rig.dir))?;
        }
    }
    let (field, text) = match signal {
        Signal::KILL => ("killed", "killed"),
        Signal::STOP => ("stopped", "stopped"),
        _ => ("continued", "continued"),
    };
    if !done.is_empty() || json {
        tell(json, field, &done, text)?;
    }
    match nodes.len() - done.len() {
        0 => Ok(()),
        failed => Err(Fail::Some {
            failed: failed as u64,
            total: nodes.len() as u64,
            things: "nodes",
        }),
    }
}

/// Ends all nodes in order; gives those that were running.
pub fn down(rig: &Rig) -> Result<Vec<u32>, Fail> {
    rig_gateway::down(rig, DRAIN)?;
    let mut ending = Vec::new();
    for node in rig.nodes() {
        let Some(process) = rig.process(node) else {
            continue;
        };
        let folder = rig.folder(node);
        let sent = process
            .signal(Signal::TERM)
            .map_err(Fail::io("cannot signal the process of", &folder))?;
        if sent {
            // A stopped node hears nothing until it goes on.
            process
                .signal(Signal::CONT)
                .map_err(Fail::io("cannot signal the process of", &folder))?;
            ending.push((node, process));
        }
    }
    let mut late = Vec::new();
    for (node, process) in &ending {
        let ended = process
            .wait_dead(DRAIN)
            .map_err(Fail::io("cannot wait for", &rig.folder(*node)))?;
        if !ended {
            late.push(node.to_string());
        }
    }
    if !late.is_empty() {
        return Err(Fail::Refused(format!(
            "node {} did not drain in {} s: see the log, or end it with 'ashlar rig kill {}'",
            late.join(", "),
            DRAIN.as_secs(),
            late.join(" ")
        )));
    }
    Ok(ending.into_iter().map(|(node, _)| node).collect())
}

/// Ends all nodes at once.
pub fn kill_all(rig: &Rig) -> Result<(), Fail> {
    let mut processes: Vec<Process> = rig.nodes().filter_map(|n| rig.process(n)).collect();
    processes.extend(rig_gateway::process(rig));
    for process in &processes {
        process
            .signal(Signal::KILL)
            .map_err(Fail::io("cannot kill a process of", &rig.dir))?;
    }
    for process in &processes {
        process
            .wait_dead(DEATH)
            .map_err(Fail::io("cannot wait for a process of", &rig.dir))?;
    }
    Ok(())
}

fn wipe(dir: &Path, yes: bool, json: bool) -> Result<(), Fail> {
    let Some(rig) = Rig::find(dir)? else {
        if dir.join(CREATING).exists() {
            remove(dir)?;
            return wiped(dir, json);
        }
        return Rig::open(dir).map(drop);
    };
    if !yes && !confirm(&rig)? {
        return Err(Fail::Refused("nothing was removed".into()));
    }
    let lock = Lock::take(&rig.dir)?;
    kill_all(&rig)?;
    remove(&rig.dir)?;
    drop(lock);
    wiped(dir, json)
}

fn wiped(dir: &Path, json: bool) -> Result<(), Fail> {
    if json {
        return output::json(&serde_json::json!({ "wiped": dir }));
    }
    output::line(&format!("removed the rig in {}", dir.display()))
}

fn confirm(rig: &Rig) -> Result<bool, Fail> {
    use std::io::{BufRead, IsTerminal, Write};
    if !io::stdin().is_terminal() || !io::stderr().is_terminal() {
        return Err(Fail::Usage(
            "wipe removes all that the rig stores: say --yes if you mean it".into(),
        ));
    }
    let mut errors = io::stderr().lock();
    let _ = write!(
        errors,
        "Remove the rig in {} and all it stores? [y/N] ",
        rig.dir.display()
    );
    let _ = errors.flush();
    let mut answer = String::new();
    io::stdin()
        .lock()
        .read_line(&mut answer)
        .map_err(Fail::output)?;
    Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
}

/// Removes what is a rig's from a folder, and the folder if nothing else is in it.
pub fn remove(dir: &Path) -> Result<(), Fail> {
    let entries = std::fs::read_dir(dir).map_err(Fail::io("cannot read", dir))?;
    for entry in entries {
        let path = entry.map_err(Fail::io("cannot read", dir))?.path();
        let name = path
            .file_name()
            .map(|n| n.to_string_lossy().into_owned())
            .unwrap_or_default();
        let number = name
            .strip_prefix("node-")
            .and_then(|n| n.parse::<u32>().ok());
        if name == "gateway" {
            std::fs::remove_dir_all(&path).map_err(Fail::io("cannot remove", &path))?;
        }
        if number.is_some() {
            let image = path.join("device.img");
            if image.exists() && Path::new("/sys/block/loop0").exists() {
                rig_files::detach_loops(&image)?;
            }
            std::fs::remove_dir_all(&path).map_err(Fail::io("cannot remove", &path))?;
        }
    }
    // The description goes after what it describes, so that a wipe that was cut short can be repeated.
    for name in ["map.json", "rig.json", CREATING, "lock"] {
        let path = dir.join(name);
        match std::fs::remove_file(&path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => {
                return Err(Fail::io("cannot remove", &path)(e));
            }
            _ => {}
        }
    }
    match std::fs::remove_dir(dir) {
        Err(e) if e.kind() == io::ErrorKind::DirectoryNotEmpty => {
            output::note(&format!(
                "{} holds other things too and was left",
                dir.display()
            ));
            Ok(())
        }
        result => result.map_err(Fail::io("cannot remove", dir)),
    }
}
