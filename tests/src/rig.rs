//! A rig of real processes, driven through the `ashlar` command as a person drives it.
//!
//! Invariants:
//! - each rig has a folder of its own under the target folder, on a real disk, and is named by it alone;
//! - when it is dropped its processes are down (only those whose command line names its folder) and
//!   its folder is gone; `ASHLAR_KEEP=1` keeps the folder for a look.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use ashlar_cluster_map::ClusterMap;
use ashlar_layout::ids::NodeId;
use ashlar_layout::message::{FindingKind, NodeStatus, ReplicaStatus};
use ashlar_node_client::{Client, ClientOptions};
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use crate::binary;

/// Longest wait for a rig to do what it was told.
pub const PATIENCE: Duration = Duration::from_secs(120);

/// What rig to make.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Nodes, one device each.
    pub nodes: u32,
    /// Bytes of each device, as the command line takes them.
    pub size: &'static str,
    /// Whether the devices' files are written when they are made, as they are for a store that is used in earnest.
    pub written: bool,
    /// Durability class.
    pub class: &'static str,
    /// Loop devices instead of files.
    pub loops: bool,
    /// Bytes of a table of an index, if not as many as usual: a small one is written out all the time.
    pub index_table: Option<&'static str>,
    /// Bytes of the journal that are kept for nodes that were away, if not as many as usual.
    pub journal_keep: Option<&'static str>,
    /// Two neighbours with fewer objects together are merged, if not with as few as usual.
    pub merge_objects: Option<&'static str>,
    /// In how many seconds the nodes look at all that is stored, if they do so by themselves: then what is made to rot
    /// is found by whoever comes first.
    pub audit: Option<&'static str>,
    /// For how many seconds they wait for a device that is away, if not as long as usual. Only with `audit`.
    pub audit_wait: Option<&'static str>,
    /// With how many bytes a second of each device at the least, whatever others feel of it. Only with `audit`.
    pub audit_floor: Option<&'static str>,
    /// After how many seconds a device that is away is out, if not after as many as usual.
    pub out_after: Option<&'static str>,
    /// An S3 gateway.
    pub gateway: bool,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            nodes: 6,
            size: "256M",
            written: false,
            class: "4+2",
            loops: false,
            index_table: None,
            journal_keep: None,
            merge_objects: None,
            audit: None,
            audit_wait: None,
            audit_floor: None,
            out_after: None,
            gateway: false,
        }
    }
}

/// A rig.
pub struct Rig {
    temp: Option<TempDir>,
    dir: PathBuf,
    options: Options,
}

impl Rig {
    /// Makes one and waits until it serves.
    pub fn up(options: Options) -> Rig {
        // One after the other: the ports that one has found are free until its nodes have them.
        static MAKING: Mutex<()> = Mutex::new(());
        let _alone = MAKING.lock().unwrap_or_else(PoisonError::into_inner);
        let rig = Rig::prepare(options);
        rig.up_again();
        rig
    }

    /// A folder for a rig, and nothing in it yet.
    pub fn prepare(options: Options) -> Rig {
        let temp = scratch();
        let dir = temp.path().join("rig");
        Rig {
            temp: Some(temp),
            dir,
            options,
        }
    }

    /// Ends all nodes in order, and starts them again, which look at what is stored by themselves or do not.
    pub fn again_with_audit(&mut self, audit: Option<&'static str>) {
        self.again_with(|options| options.audit = audit);
    }

    /// Ends all nodes in order, and starts them again by other options.
    pub fn again_with(&mut self, change: impl FnOnce(&mut Options)) {
        self.rig(&["down"]);
        change(&mut self.options);
        self.up_again();
    }

    /// `rig up` once more: resumes what is there.
    pub fn up_again(&self) {
        let Options {
            nodes,
            size,
            written,
            class,
            loops,
            index_table,
            journal_keep,
            merge_objects,
            audit,
            audit_wait,
            audit_floor,
            out_after,
            gateway,
        } = self.options;
        let nodes = nodes.to_string();
        let mut args = vec![
            "up", "--detach", "--nodes", &nodes, "--size", size, "--class", class,
        ];
        if !written {
            args.push("--reserve-only");
        }
        if loops {
            args.push("--loop");
        }
        for (flag, value) in [
            ("--index-table", index_table),
            ("--journal-keep", journal_keep),
            ("--merge-objects", merge_objects),
            ("--audit-pass", audit),
            ("--audit-wait", audit_wait),
            ("--audit-floor", audit_floor),
            ("--out-after", out_after),
        ] {
            args.extend(value.into_iter().flat_map(|value| [flag, value]));
        }
        if audit.is_none() {
            args.push("--no-audit");
        }
        if !gateway {
            args.push("--no-gateway");
        }
        self.rig(&args);
    }

    /// The rig's folder.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// A folder beside the rig, for files of the test.
    pub fn scratch(&self) -> &Path {
        self.temp
            .as_ref()
            .expect("a rig that is not dropped has its folder")
            .path()
    }

    /// The command, pointed at this rig.
    pub fn command<S: AsRef<OsStr>>(&self, args: &[S]) -> Command {
        let mut command = Command::new(binary::ashlar());
        command
            .args(args)
            .env("ASHLAR_CLUSTER", &self.dir)
            .stdin(Stdio::null());
        command
    }

    /// Runs the command; whatever it ends with.
    pub fn run<S: AsRef<OsStr>>(&self, args: &[S]) -> Output {
        self.command(args)
            .output()
            .unwrap_or_else(|e| panic!("ashlar does not start: {e}"))
    }

    /// Runs the command, which must succeed; its standard output.
    pub fn ok<S: AsRef<OsStr>>(&self, args: &[S]) -> String {
        let output = self.run(args);
        assert!(output.status.success(), "{}", self.story(args, &output));
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// Runs the command, which must fail with this exit code and say each of these words, in any case.
    pub fn fails<S: AsRef<OsStr>>(&self, args: &[S], code: i32, words: &[&str]) -> String {
        let output = self.run(args);
        assert_eq!(
            output.status.code(),
            Some(code),
            "{}",
            self.story(args, &output)
        );
        says(&output, words).unwrap_or_else(|missing| {
            panic!(
                "the error does not say '{missing}': {}",
                self.story(args, &output)
            )
        })
    }

    /// `ashlar rig …` with this rig's folder; must succeed.
    pub fn rig<S: AsRef<OsStr>>(&self, args: &[S]) -> String {
        self.ok(&self.rig_args(args))
    }

    /// The arguments of `ashlar rig … --dir THIS`.
    pub fn rig_args<S: AsRef<OsStr>>(&self, args: &[S]) -> Vec<std::ffi::OsString> {
        let mut all: Vec<std::ffi::OsString> = vec!["rig".into()];
        all.extend(args.iter().map(|a| a.as_ref().to_owned()));
        all.extend(["--dir".into(), self.dir.clone().into_os_string()]);
        all
    }

    /// Does something (`kill`, `stop`, `cont`, `start`) to nodes.
    pub fn nodes(&self, verb: &str, nodes: &[u32]) {
        let mut args = vec![verb.to_owned()];
        args.extend(nodes.iter().map(u32::to_string));
        self.rig(&args);
    }

    /// The cluster's map.
    pub fn map(&self) -> ClusterMap {
        let path = self.dir.join("map.json");
        let json = std::fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        ClusterMap::from_json(&json).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
    }

    /// The nodes of the first partition's chain, as the map has them. Any of them may be the head: see [`Rig::head`].
    pub fn chain(&self) -> Vec<u32> {
        let map = self.map();
        let devices = &map
            .partitions
            .first()
            .expect("a map has a partition")
            .chain
            .devices;
        let node = |no: &_| {
            map.device(*no)
                .expect("a chain names devices of the map")
                .node
                .0
        };
        devices.iter().map(node).collect()
    }

    /// The node that is the head in office of the first partition's chain; waits until there is one.
    pub fn head(&self) -> u32 {
        eventually("a chain has a head in office", PATIENCE, || {
            self.find_head()
        })
    }

    /// The node whose replica says that it serves as head; of several, that of the newest reign: an older one may
    /// not have heard of it yet. Nodes that are stopped say nothing.
    fn find_head(&self) -> Option<u32> {
        let partition = self.map().partitions.first()?.id;
        let text = self.rig(&["status", "--json"]);
        let status: serde_json::Value =
            serde_json::from_str(&text).unwrap_or_else(|e| panic!("rig status: {e}: {text}"));
        let mut heads = Vec::new();
        for row in status["nodes"].as_array().into_iter().flatten() {
            let cores = row["cores"].as_array().into_iter().flatten();
            for core in cores {
                let core: NodeStatus = serde_json::from_value(core.clone())
                    .unwrap_or_else(|e| panic!("rig status: {e}: {text}"));
                let is_head = |r: &&ReplicaStatus| {
                    r.partition == partition && r.role == "head" && r.state == "serving"
                };
                heads.extend(
                    core.replicas
                        .iter()
                        .filter(is_head)
                        .map(|r| (r.term, core.node.0)),
                );
            }
        }
        heads.into_iter().max().map(|(_, node)| node)
    }

    /// The chain's nodes, its head of this moment first.
    pub fn chain_by_role(&self) -> Vec<u32> {
        let head = self.head();
        let followers = self.chain().into_iter().filter(|node| *node != head);
        std::iter::once(head).chain(followers).collect()
    }

    /// Every node.
    pub fn all(&self) -> Vec<u32> {
        (1..=self.options.nodes).collect()
    }

    /// A native client of this rig, in the caller's tokio runtime.
    pub fn client(&self, options: ClientOptions) -> Client {
        Client::connect(self.map(), options).unwrap_or_else(|e| panic!("no client: {e}"))
    }

    /// How a node is doing.
    pub fn status(&self, node: u32) -> Vec<NodeStatus> {
        let runtime = runtime();
        runtime.block_on(async {
            let client = self.client(ClientOptions::default());
            let status = client.node_status(NodeId(node)).await;
            status.unwrap_or_else(|e| panic!("node {node} tells no status: {e}"))
        })
    }

    /// The log of a node, of all its processes so far.
    pub fn log(&self, node: u32) -> String {
        let path = self.config(node).with_file_name("node.log");
        std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
    }

    /// How a node's replica of the first partition is doing, if it answers.
    pub fn replica(&self, node: u32) -> Option<ReplicaStatus> {
        let partition = self.map().partitions.first()?.id;
        let runtime = runtime();
        runtime.block_on(async {
            let client = self.client(ClientOptions::default());
            let cores = client.node_status(NodeId(node)).await.ok()?;
            let mut replicas = cores.into_iter().flat_map(|core| core.replicas);
            replicas.find(|replica| replica.partition == partition)
        })
    }

    /// Findings of a node since it started, by kind.
    pub fn findings(&self, node: u32) -> BTreeMap<String, u64> {
        let mut found = BTreeMap::new();
        for status in self.status(node) {
            for count in status.devices.into_iter().flat_map(|d| d.findings) {
                *found.entry(kind_name(count.kind)).or_default() += count.count;
            }
        }
        found
    }

    /// The processes of this rig's nodes, by node, found by their command lines.
    pub fn pids(&self) -> BTreeMap<u32, Pid> {
        let mut found = BTreeMap::new();
        for (pid, config) in node_processes(&self.dir) {
            let text = std::fs::read_to_string(&config).unwrap_or_default();
            let node = text
                .lines()
                .find_map(|l| l.strip_prefix("node")?.split_once('='));
            if let Some(node) = node.and_then(|(_, no)| no.trim().parse().ok()) {
                found.insert(node, pid);
            }
        }
        found
    }

    /// The configuration file of a node.
    pub fn config(&self, node: u32) -> PathBuf {
        let wanted = format!("node = {node}");
        let mut folders = vec![self.dir.clone()];
        while let Some(folder) = folders.pop() {
            for entry in std::fs::read_dir(&folder).into_iter().flatten().flatten() {
                let path = entry.path();
                if path.is_dir() {
                    folders.push(path);
                } else if path.extension() == Some(OsStr::new("toml")) {
                    let text = std::fs::read_to_string(&path).unwrap_or_default();
                    if text.lines().any(|line| line.trim() == wanted) {
                        return path;
                    }
                }
            }
        }
        panic!(
            "no configuration of node {node} under {}",
            self.dir.display()
        );
    }

    /// The file or device that a node stores on.
    pub fn device(&self, node: u32) -> PathBuf {
        let config = self.config(node);
        let text = std::fs::read_to_string(&config).expect("the configuration is readable");
        let line = text.lines().find_map(|l| l.trim().strip_prefix("path = "));
        let path = line.unwrap_or_else(|| panic!("{}: no device path", config.display()));
        config
            .parent()
            .unwrap_or(Path::new("."))
            .join(path.trim().trim_matches(['"', '\'']))
    }

    fn story<S: AsRef<OsStr>>(&self, args: &[S], output: &Output) -> String {
        let words: Vec<_> = args.iter().map(|a| a.as_ref().to_string_lossy()).collect();
        format!(
            "`ashlar {}` ended with {}\nstdout: {}\nstderr: {}\nrig: {}\n{}",
            words.join(" "),
            output.status,
            tail(&String::from_utf8_lossy(&output.stdout)),
            tail(&String::from_utf8_lossy(&output.stderr)),
            self.dir.display(),
            self.logs(),
        )
    }

    /// The last lines of every node's log.
    pub fn logs(&self) -> String {
        let mut text = String::new();
        let mut folders = vec![self.dir.clone()];
        while let Some(folder) = folders.pop() {
            let mut entries: Vec<_> = std::fs::read_dir(&folder)
                .into_iter()
                .flatten()
                .flatten()
                .map(|e| e.path())
                .collect();
            entries.sort();
            for path in entries {
                if path.is_dir() {
                    folders.push(path);
                } else if path.extension() == Some(OsStr::new("log")) {
                    let log = std::fs::read_to_string(&path).unwrap_or_default();
                    text.push_str(&format!("--- {}\n{}\n", path.display(), tail(&log)));
                }
            }
        }
        text
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}", self.logs());
        }
        for (pid, _) in node_processes(&self.dir) {
            let _ = kill_process(pid, Signal::KILL);
        }
        for (pid, words) in processes() {
            // Its gateway.
            if words.iter().any(|word| word == "gateway")
                && words.iter().any(|word| Path::new(word) == self.dir)
            {
                let _ = kill_process(pid, Signal::KILL);
            }
        }
        if self.options.loops {
            // Loop devices are detached by the command that attached them.
            let _ = self.run(&self.rig_args(&["wipe", "--yes"]));
        }
        if std::env::var_os("ASHLAR_KEEP").is_some()
            && let Some(temp) = self.temp.take()
        {
            eprintln!("kept: {}", temp.keep().display());
        }
    }
}

/// A fresh folder on the disk of the target folder.
pub fn scratch() -> TempDir {
    let base = binary::target_folder().join("tmp");
    std::fs::create_dir_all(&base).unwrap_or_else(|e| panic!("{}: {e}", base.display()));
    tempfile::Builder::new()
        .prefix("rig-")
        .tempdir_in(&base)
        .unwrap_or_else(|e| panic!("{}: {e}", base.display()))
}

/// A runtime for the client.
pub fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap_or_else(|e| panic!("no tokio runtime: {e}"))
}

/// Waits until something holds, and panics when it does not come about in time.
#[track_caller]
pub fn eventually<T>(what: &str, patience: Duration, mut check: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + patience;
    loop {
        if let Some(value) = check() {
            return value;
        }
        assert!(Instant::now() < deadline, "not within {patience:?}: {what}");
        pause(Duration::from_millis(20));
    }
}

/// Lets a moment pass for processes that tell no one when they are done.
#[allow(
    clippy::disallowed_methods,
    reason = "polls other processes, which send no event, with a deadline"
)]
pub fn pause(moment: Duration) {
    std::thread::sleep(moment);
}

/// Standard error of a command if it has each of these words, in any case; else the first that is missing.
pub fn says(output: &Output, words: &[&str]) -> Result<String, String> {
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    let lower = text.to_lowercase();
    // A word may be a choice: "too small|at least".
    let missing = words.iter().find(|word| {
        !word
            .split('|')
            .any(|choice| lower.contains(&choice.to_lowercase()))
    });
    match missing {
        Some(word) => Err((*word).to_owned()),
        None => Ok(text),
    }
}

/// Whether this process may do what only root may.
pub fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

fn kind_name(kind: FindingKind) -> String {
    serde_json::to_value(kind)
        .ok()
        .and_then(|v| v.as_str().map(str::to_owned))
        .unwrap_or_default()
}

/// Every process, with the words of its command line.
fn processes() -> Vec<(Pid, Vec<String>)> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc").into_iter().flatten().flatten() {
        let pid = entry
            .file_name()
            .to_string_lossy()
            .parse()
            .ok()
            .and_then(Pid::from_raw);
        let Some(pid) = pid else { continue };
        let line = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let words = line
            .split(|b| *b == 0)
            .map(|w| String::from_utf8_lossy(w).into_owned())
            .collect();
        found.push((pid, words));
    }
    found
}

/// The numbers of the processes of a rig's nodes.
pub fn node_pids(dir: &Path) -> Vec<u32> {
    let nodes = node_processes(dir).into_iter();
    let pids = nodes.filter_map(|(pid, _)| u32::try_from(pid.as_raw_nonzero().get()).ok());
    pids.collect()
}

/// Processes `ashlar node run --config FILE` whose FILE is below `dir`.
pub fn node_processes(dir: &Path) -> Vec<(Pid, PathBuf)> {
    let mut found = Vec::new();
    for (pid, words) in processes() {
        let config = words.iter().find_map(|word| {
            let path = Path::new(word.strip_prefix("--config=").unwrap_or(word));
            (path.starts_with(dir) && path.extension() == Some(OsStr::new("toml")))
                .then(|| path.to_owned())
        });
        if let Some(config) = config
            && words.iter().any(|word| word == "run")
        {
            found.push((pid, config));
        }
    }
    found
}

fn tail(text: &str) -> String {
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(30)..].join("\n")
}
