//! A rig in three zones whose nodes are killed, stopped, restarted and cut off, one at a time.
//!
//! Its files are made with the commands that make a cluster of several machines (`map new`, `device format`), because
//! each node has an address of its own; `rig start` runs the nodes. Three of them are control members. Where namespaces
//! cannot be made, or `ASHLAR_LOOPBACK` is set, the nodes stand on the loopback interface, and [`Field::faults`] has
//! no cuts.
//!
//! Invariants:
//! - at most one node is hurt at a time, and the next one only when the last one has caught up: a chain of
//!   three allows for one failure;
//! - a fault ends: what it did is undone before [`Field::strike`] returns.

use std::fmt;
use std::fs::File;
use std::io::Write;
use std::net::TcpListener;
use std::process::Stdio;
use std::time::{Duration, Instant};

use ashlar_cluster_map::ControlMember;
use ashlar_layout::ids::{DeviceNo, NodeId, Seq};
use ashlar_layout::message::{NodeStatus, ReplicaStatus};
use ashlar_node_client::{Client, ClientOptions};
use rustix::process::{Signal, kill_process};
use tokio::runtime::Runtime;

use crate::content::Random;
use crate::fabric::{Cut, Fabric};
use crate::history::Clock;
use crate::rig::{self, Options, PATIENCE, Rig};

/// How long a node may take to say how it is, before it counts as silent.
const ANSWER: Duration = Duration::from_millis(400);
const ZONES: [&str; 3] = ["a", "b", "c"];
/// Members of the control plane: the first nodes.
const CONTROL: u32 = 3;
/// Seconds after which a node that is away would be replaced: no fault here lasts so long.
const REPLACE_AFTER: u64 = 60;

/// What is done to a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Harm {
    /// SIGKILL; started again after a while.
    Kill,
    /// SIGSTOP; SIGCONT after a while.
    Stop,
    /// SIGTERM, so that it drains; started again at once.
    Restart,
    /// Packets are lost for a while.
    Cut(Cut),
}

/// To which one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// The head of the chain.
    Head,
    /// Another replica.
    Follower,
    /// A node with none: it stores shards only.
    Other,
}

/// A fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fault {
    /// What is done.
    pub harm: Harm,
    /// To which node.
    pub role: Role,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let harm = match self.harm {
            Harm::Kill => "kill",
            Harm::Stop => "stop",
            Harm::Restart => "restart",
            Harm::Cut(Cut::Nodes) => "cut from nodes",
            Harm::Cut(Cut::Outward) => "cut outward",
            Harm::Cut(Cut::Inward) => "cut inward",
            Harm::Cut(Cut::All) => "cut from all",
        };
        let role = match self.role {
            Role::Head => "head",
            Role::Follower => "follower",
            Role::Other => "other",
        };
        write!(f, "{harm}: {role}")
    }
}

/// A fault that was done: what, to which node, and when, by the run's clock.
#[derive(Clone, Copy, Debug)]
pub struct Struck {
    /// The fault.
    pub fault: Fault,
    /// The node.
    pub node: u32,
    /// When it began,
    pub from: u64,
    /// when it was undone,
    pub to: u64,
    /// and when the node had caught up.
    pub well: u64,
    /// Who was head when the node had caught up.
    pub head_after: u32,
}

/// Who is what now.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Roles {
    head: u32,
    committed: Seq,
    replicas: Vec<(u32, ReplicaStatus)>,
}

/// The rig and its network. The rig goes first when they are dropped.
pub struct Field {
    rig: Rig,
    fabric: Option<Fabric>,
    runtime: Runtime,
    watcher: Client,
    nodes: u32,
}

impl Field {
    /// Makes a rig of six nodes in three zones and starts it.
    pub fn up(size: &'static str, size_bytes: u64, seed: u64) -> Field {
        let options = Options {
            size,
            written: true,
            ..Options::default()
        };
        let nodes = options.nodes;
        let made = match std::env::var_os("ASHLAR_LOOPBACK") {
            Some(_) => Err("ASHLAR_LOOPBACK is set".to_owned()),
            None => Fabric::new(nodes),
        };
        let fabric = match made {
            Ok(fabric) => Some(fabric),
            Err(why) => {
                eprintln!("NOT TRIED: partitions: no network that can be cut: {why}");
                None
            }
        };
        let rig = Rig::prepare(options);
        make(&rig, fabric.as_ref(), &options, size_bytes, seed);
        let watcher = rig.client(ClientOptions {
            connect_timeout: ANSWER / 2,
            unavailable_wait: ANSWER / 2,
            ..ClientOptions::default()
        });
        let field = Field {
            rig,
            fabric,
            runtime: rig::runtime(),
            watcher,
            nodes,
        };
        for node in 1..=nodes {
            field.start(node);
        }
        field
    }

    /// The rig.
    pub fn rig(&self) -> &Rig {
        &self.rig
    }

    /// Everything that can be done here, heads first, each part shuffled.
    pub fn faults(&self, random: &mut Random) -> Vec<Fault> {
        let mut harms = vec![Harm::Kill, Harm::Stop, Harm::Restart];
        if self.fabric.is_some() {
            harms.extend(Cut::EVERY.map(Harm::Cut));
        }
        let mut faults = Vec::new();
        for roles in [&[Role::Head][..], &[Role::Follower, Role::Other]] {
            let mut part: Vec<Fault> = roles
                .iter()
                .flat_map(|role| {
                    harms.iter().map(|harm| Fault {
                        harm: *harm,
                        role: *role,
                    })
                })
                .collect();
            for last in (1..part.len()).rev() {
                let other = random.below(last as u64 + 1);
                part.swap(last, usize::try_from(other).unwrap_or(0));
            }
            faults.extend(part);
        }
        faults
    }

    fn start(&self, node: u32) {
        let args = self.rig.rig_args(&["start", &node.to_string()]);
        let mut command = self.rig.command(&args);
        if let Some(fabric) = &self.fabric {
            command = fabric.enter(node, &command);
        }
        let output = command.stdin(Stdio::null()).output();
        let output = output.unwrap_or_else(|e| panic!("node {node} cannot be started: {e}"));
        assert!(
            output.status.success(),
            "node {node} does not start: {}{}\n{}",
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr),
            self.rig.logs()
        );
    }

    /// Ends a node in order, and waits until it has.
    fn drain(&self, node: u32) {
        let pid = self.rig.pids().get(&node).copied();
        let pid = pid.unwrap_or_else(|| panic!("node {node} is not running"));
        kill_process(pid, Signal::TERM).unwrap_or_else(|e| panic!("node {node}: {e}"));
        rig::eventually("a drained node is gone", PATIENCE, || {
            (!self.rig.pids().contains_key(&node)).then_some(())
        });
    }

    /// Kills all nodes at once and starts them again.
    pub fn die_and_rise(&self) {
        self.rig.nodes("kill", &self.rig.all());
        for node in 1..=self.nodes {
            self.start(node);
        }
    }

    /// What each node says of itself; a silent one nothing.
    fn statuses(&self) -> Vec<(u32, Vec<NodeStatus>)> {
        self.runtime.block_on(async {
            let mut asked = tokio::task::JoinSet::new();
            for node in 1..=self.nodes {
                let watcher = self.watcher.clone();
                asked.spawn(async move {
                    let answer = tokio::time::timeout(ANSWER, watcher.node_status(NodeId(node)));
                    (node, answer.await.ok().and_then(Result::ok))
                });
            }
            let mut statuses = Vec::new();
            while let Some(answer) = asked.join_next().await {
                if let Ok((node, Some(status))) = answer {
                    statuses.push((node, status));
                }
            }
            statuses
        })
    }

    /// Waits until the node answers, a head serves and commits, and the node's replica, if it has one, is up to what
    /// was committed when this was called. Who is head then. There must be a load: nothing is committed without.
    fn well(&self, node: u32) -> u32 {
        let mut first: Option<Seq> = None;
        rig::eventually("a node has caught up and a head commits", PATIENCE, || {
            let statuses = self.statuses();
            let answers = statuses.iter().any(|(no, _)| *no == node);
            let roles = roles(statuses)?;
            let first = *first.get_or_insert(roles.committed);
            let mut its = roles.replicas.iter().filter(|(no, _)| *no == node);
            let caught_up = its.all(|(_, r)| r.committed >= first);
            (caught_up && answers && roles.committed > first).then_some(roles.head)
        })
    }

    /// Which node a fault is for.
    fn victim(&self, role: Role, random: &mut Random) -> Option<u32> {
        let roles = rig::eventually("a head serves", PATIENCE, || roles(self.statuses()));
        let is_replica = |node: &u32| roles.replicas.iter().any(|(no, _)| no == node);
        let fitting: Vec<u32> = (1..=self.nodes)
            .filter(|node| match role {
                Role::Head => *node == roles.head,
                Role::Follower => is_replica(node) && *node != roles.head,
                Role::Other => !is_replica(node),
            })
            .collect();
        (!fitting.is_empty()).then(|| *random.pick(&fitting))
    }

    /// Does one fault, lets it last, undoes it and waits until the node is well. None if no node has that role.
    pub fn strike(
        &self,
        fault: Fault,
        lasts: Duration,
        clock: &Clock,
        random: &mut Random,
    ) -> Option<Struck> {
        let node = self.victim(fault.role, random)?;
        let from = clock.now();
        match fault.harm {
            Harm::Kill => {
                self.rig.nodes("kill", &[node]);
                rig::pause(lasts);
                self.start(node);
            }
            Harm::Stop => {
                self.rig.nodes("stop", &[node]);
                rig::pause(lasts);
                self.rig.nodes("cont", &[node]);
            }
            Harm::Restart => {
                self.drain(node);
                self.start(node);
            }
            Harm::Cut(cut) => {
                let fabric = self.fabric.as_ref()?;
                fabric.cut(node, cut);
                rig::pause(lasts);
                fabric.mend(node, cut);
            }
        }
        let to = clock.now();
        let head_after = self.well(node);
        Some(Struck {
            fault,
            node,
            from,
            to,
            well: clock.now(),
            head_after,
        })
    }
}

/// Who is what; none while there is no head in office.
fn roles(statuses: Vec<(u32, Vec<NodeStatus>)>) -> Option<Roles> {
    let replicas: Vec<(u32, ReplicaStatus)> = statuses
        .into_iter()
        .flat_map(|(node, status)| {
            let replicas = status.into_iter().flat_map(|s| s.replicas);
            replicas.map(move |replica| (node, replica))
        })
        .collect();
    let serving = replicas
        .iter()
        .filter(|(_, r)| r.role == "head" && r.state == "serving");
    // A head that was cut off may not know yet that it is none any more.
    let (head, committed) = serving
        .max_by_key(|(_, r)| r.term)
        .map(|(node, r)| (*node, r.committed))?;
    Some(Roles {
        head,
        committed,
        replicas,
    })
}

/// Ports of the loopback interface that are free now, below those that the kernel gives to outgoing connections.
fn free_ports(count: u32, random: &mut Random) -> Vec<u16> {
    let mut held: Vec<TcpListener> = Vec::new();
    let deadline = Instant::now() + PATIENCE;
    while held.len() < count as usize {
        assert!(Instant::now() < deadline, "no free ports");
        let port = u16::try_from(20_000 + random.below(12_000)).unwrap_or(20_000);
        held.extend(TcpListener::bind(("127.0.0.1", port)));
    }
    let port = |listener: &TcpListener| listener.local_addr().map_or(0, |a| a.port());
    held.iter().map(port).collect()
}

/// Writes a rig's files: the map, a formatted device for each node, and what says that they are a rig.
fn make(rig: &Rig, fabric: Option<&Fabric>, options: &Options, size: u64, seed: u64) {
    let dir = rig.dir();
    std::fs::create_dir_all(dir).unwrap_or_else(|e| panic!("{}: {e}", dir.display()));
    let mut random = Random::new(seed);
    let mut ports = free_ports(options.nodes + CONTROL, &mut random);
    let control_ports = ports.split_off(options.nodes as usize);
    let mut spec = format!("class = \"{}\"\ndomain = \"host\"\n", options.class);
    for (index, port) in ports.iter().enumerate() {
        let node = index + 1;
        let address = match fabric {
            Some(fabric) => format!("{}:7000", fabric.address(node as u32)),
            None => format!("127.0.0.1:{port}"),
        };
        let zone = ZONES[index % ZONES.len()];
        spec.push_str(&format!(
            "[[node]]\nid = {node}\ndomains = {{ zone = \"{zone}\", rack = \"{zone}{node}\" }}\n\
             cores = [\"{address}\"]\n[[node.device]]\nno = {node}\nsize = {size}\n"
        ));
    }
    let file = rig.scratch().join("spec.toml");
    std::fs::write(&file, spec).unwrap_or_else(|e| panic!("{}: {e}", file.display()));
    let file = file.to_string_lossy().into_owned();
    let map = dir.join("map.json").to_string_lossy().into_owned();
    // Shards are kept apart by host, so the chain spans the three zones by luck: of two seeds or three.
    let spans = (0..200).any(|attempt| {
        let seed = (seed >> 12).wrapping_add(attempt).to_string();
        rig.ok(&[
            "map", "new", &file, "--out", &map, "--seed", &seed, "--force",
        ]);
        let mut zones: Vec<u32> = rig.chain().iter().map(|node| node % 3).collect();
        zones.sort_unstable();
        zones == [0, 1, 2]
    });
    assert!(spans, "no seed of 200 gives a chain over three zones");
    let mut whole = rig.map();
    for (id, port) in (1..).zip(control_ports) {
        let address = match fabric {
            Some(fabric) => format!("{}:7001", fabric.address(id)),
            None => format!("127.0.0.1:{port}"),
        };
        whole.control.push(ControlMember { id, address });
    }
    let sound = whole.validate();
    sound.unwrap_or_else(|e| panic!("the map with its control members: {e}"));
    let whole = whole.to_json();
    std::fs::write(&map, &whole).unwrap_or_else(|e| panic!("{map}: {e}"));
    for node in 1..=options.nodes {
        let folder = dir.join(format!("node-{node}"));
        std::fs::create_dir_all(&folder).unwrap_or_else(|e| panic!("{}: {e}", folder.display()));
        let own = folder.join("map.json");
        std::fs::write(&own, &whole).unwrap_or_else(|e| panic!("{}: {e}", own.display()));
        let image = folder.join("device.img");
        write_zeros(&image, size).unwrap_or_else(|e| panic!("{}: {e}", image.display()));
        let image = image.to_string_lossy().into_owned();
        let number = DeviceNo(node).to_string();
        rig.ok(&["device", "format", &image, "--device-no", &number]);
    }
    let class = options.class;
    let nodes = options.nodes;
    let zones = ZONES.len();
    let text = format!(
        "{{ \"version\": 2, \"nodes\": {nodes}, \"size\": {size}, \"class\": \"{class}\", \"loops\": false, \
         \"zones\": {zones}, \"control\": {CONTROL}, \"replace_after\": {REPLACE_AFTER} }}"
    );
    let file = dir.join("rig.json");
    std::fs::write(&file, text).unwrap_or_else(|e| panic!("{}: {e}", file.display()));
}

/// Written, not only reserved: the first write into reserved space of a filesystem is slow, and would be seen as gaps.
fn write_zeros(path: &std::path::Path, size: u64) -> std::io::Result<()> {
    let zeros = vec![0u8; 4 << 20];
    let mut file = File::create_new(path)?;
    let mut left = size;
    while left > 0 {
        let len = usize::try_from(left)
            .unwrap_or(zeros.len())
            .min(zeros.len());
        file.write_all(&zeros[..len])?;
        left -= len as u64;
    }
    file.sync_all()
}
