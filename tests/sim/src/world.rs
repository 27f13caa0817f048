//! One run: a cluster, its clients, and what goes wrong, in one thread and by one clock.
//!
//! Invariants:
//! - what happens is decided by the plan and its seed alone: the same seed gives the same run;
//! - time goes on only between two events, and events of one moment come in the order in which they were brought about.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use ashlar_cluster_map::{
    ClusterMap, Core as MapCore, Device, DomainLevel, Domains, Node as MapNode, solve,
};
use ashlar_cluster_object::{BufferPool, Common, Tuning};
use ashlar_layout::frame::{FRAME_HEADER_LEN, FrameHeader, Opcode, decode_control};
use ashlar_layout::ids::{ClientId, ClusterId, DeviceId, DeviceNo, NodeId};
use ashlar_layout::message::ChainMessage;
use ashlar_layout::version::ENTRY_VERSION;
use ashlar_node_daemon::Maps;
use ashlar_node_reactor::{ConnId, Errno};

use crate::client::{Client, Want};
use crate::control::Control;
use crate::disk::Rng;
use crate::faults::Faults;
use crate::net::{Arrival, Heard, Host, Net};
use crate::node::{Node, maps};
use crate::plan::Plan;
use crate::port::{News, Wish};
use crate::story::Story;
use crate::upgrades;
use crate::work::{Task, Work};

/// Events of one run at most: a run that comes to them is stuck.
const EVENTS_MAX: u64 = 40_000_000;
/// Lines of what nodes said that a failing run shows.
const LINES_KEPT: usize = 4000;
/// How long all may take to serve again when nothing is wrong any more, if the run is not a long one.
const PATIENCE: u64 = 180_000_000_000;

/// What comes next.
pub enum Due {
    /// A disk operation ends: of which node and life, on which disk, which.
    Disk(usize, u64, usize, u64),
    /// Something arrives.
    Arrive(Arrival),
    /// A client looks at its clock.
    Tick(usize, u64),
    /// The control plane hears from the nodes, and decides.
    Control,
    /// A newer map reaches a node.
    Map(usize, Arc<Maps>),
    /// Something goes wrong, or well again.
    Fault(u64),
    /// A node's process is started.
    Start(usize),
    /// A node is upgraded: whether its process ends in order.
    Upgrade(usize, bool),
}

/// One run.
pub struct World {
    /// What it is.
    pub plan: Plan,
    /// Nanoseconds since it began.
    pub now: u64,
    /// Events so far.
    pub events: u64,
    agenda: BTreeMap<(u64, u64), Due>,
    ties: u64,
    /// The nodes.
    pub nodes: Vec<Node>,
    /// The clients.
    pub clients: Vec<Client>,
    wires: Rc<Cell<u32>>,
    tuning: Tuning,
    works: Vec<Work>,
    ticks: Vec<Option<u64>>,
    /// The network.
    pub net: Net,
    /// The control plane.
    pub control: Control,
    /// What goes wrong.
    pub faults: Faults,
    /// Chances that are nobody else's.
    pub rng: Rng,
    /// What came of it all.
    pub story: Story,
    /// The partition whose replicas' words are said as well.
    pub overheard: Option<u32>,
    /// What was said, newest last.
    pub lines: Rc<RefCell<Lines>>,
}

/// What was said, as far as it is kept.
#[derive(Default)]
pub struct Lines {
    /// The newest.
    pub kept: VecDeque<String>,
    /// All of them go to stderr as well.
    pub aloud: bool,
    /// A hash over all of them: two runs that give the same one went the same way.
    pub hash: u64,
}

impl Lines {
    /// Keeps a line.
    pub fn say(&mut self, line: String) {
        if self.aloud {
            eprintln!("{line}");
        }
        for byte in line.bytes() {
            self.hash = (self.hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        }
        if self.kept.len() == LINES_KEPT {
            self.kept.pop_front();
        }
        self.kept.push_back(line);
    }
}

fn map_of(plan: &Plan) -> ClusterMap {
    let mut map = ClusterMap::bare(
        ClusterId([7; 16]),
        plan.class.parse().expect("a plan has a class"),
        plan.stripe,
        DomainLevel::Host,
    );
    for number in 1..=plan.nodes as u32 {
        map.nodes.push(MapNode {
            id: NodeId(number),
            domains: Domains::default(),
            cores: vec![MapCore {
                address: format!("10.0.0.{number}:1"),
            }],
        });
        let mut name = [1; 16];
        name[..4].copy_from_slice(&number.to_le_bytes());
        map.devices.push(Device {
            no: DeviceNo(number),
            id: DeviceId(name),
            node: NodeId(number),
            core: 0,
            size: plan.device,
        });
    }
    map.entries = upgrades::level(plan);
    solve(&mut map, plan.seed).expect("a plan's cluster can be laid out");
    map
}

fn new_client(map: &Arc<Maps>, rng: &mut Rng, tuning: Tuning, wires: &Rc<Cell<u32>>) -> Client {
    let number = ClientId(rng.next() | 1);
    let map = Arc::new(map.map.clone());
    let common = Common::new(map, number, BufferPool::new(1 << 20), tuning);
    Client::new(common, wires.clone())
}

impl World {
    /// A cluster that is about to start.
    pub fn new(plan: Plan) -> World {
        let mut rng = Rng(plan.seed);
        let wires = Rc::new(Cell::new(1));
        let map = maps(map_of(&plan));
        let nodes = map.map.nodes.iter().map(|node| {
            let seed = rng.next();
            Node::new(&map, node.id, &plan, wires.clone(), seed)
        });
        let nodes: Vec<Node> = nodes.collect();
        let tuning = Tuning {
            inline_max: plan.inline,
            unavailable_wait: Duration::from_secs(5),
            tree_fanout: 3,
            manifest_stripes: 4,
            cache_entries: 64,
            ..Tuning::default()
        };
        let client = |place: usize, rng: &mut Rng| {
            let client = new_client(&map, rng, tuning, &wires);
            (client, Work::new(place, rng.next()))
        };
        let places = 0..plan.clients;
        let (clients, works): (Vec<Client>, Vec<Work>) =
            places.map(|place| client(place, &mut rng)).unzip();
        let lines: Rc<RefCell<Lines>> = Rc::default();
        let heard = lines.clone();
        ashlar_node_daemon::listen(move |line| heard.borrow_mut().say(format!("        {line}")));
        let ticks = vec![None; plan.clients];
        World {
            now: 1_000_000_000,
            events: 0,
            agenda: BTreeMap::new(),
            ties: 0,
            nodes,
            clients,
            wires,
            tuning,
            works,
            ticks,
            net: Net::new(plan.pace, rng.next()),
            control: Control::new(map, &plan),
            faults: Faults::new(rng.next()),
            rng,
            story: Story {
                beyond: plan.beyond,
                ..Story::default()
            },
            overheard: None,
            lines,
            plan,
        }
    }

    /// Says what happens.
    pub fn say(&self, what: &str) {
        let (ms, us) = (self.now / 1_000_000, self.now / 1000 % 1000);
        self.lines.borrow_mut().say(format!("{ms}.{us:03} {what}"));
    }

    /// Puts something on the agenda.
    pub fn at(&mut self, at: u64, due: Due) {
        self.ties += 1;
        self.agenda.insert((at.max(self.now), self.ties), due);
    }

    /// Runs it from start to end; what is wrong is in the story.
    pub fn run(&mut self) {
        for node in 0..self.nodes.len() {
            self.start_node(node);
        }
        self.at(self.now + 100_000_000, Due::Control);
        // The bucket is there before anything goes wrong.
        let now = self.now;
        self.works[0].make_bucket(now, &mut self.clients[0]);
        self.tend_client(0);
        let made = |world: &World| world.story.marks.contains_key("bucket made");
        if !self.go_on_until(self.patience(), made) {
            return self.stuck("the bucket is not made");
        }
        let end = self.now + self.plan.length;
        let first = self.plan.fault_every;
        self.at(self.now + first, Due::Fault(end));
        self.plan_upgrades();
        for client in 0..self.clients.len() {
            self.tend_client(client);
        }
        self.go_on_until(self.plan.length, |_| false);
        if !self.story.wrong.is_empty() {
            return;
        }
        self.heal();
        for place in 0..self.works.len() {
            // All of them read, and one of them audits when nothing else goes on.
            self.works[place].turn_to(Task::Nothing, &self.plan);
        }
        let rested = |world: &World| world.works.iter().all(Work::is_done);
        if !self.go_on_until(self.patience(), rested) {
            return self.stuck("operations do not end though nothing is wrong any more");
        }
        for place in 0..self.works.len() {
            self.works[place].turn_to(Task::Last, &self.plan);
            self.tend_client(place);
        }
        if !self.go_on_until(self.patience(), rested) {
            return self
                .stuck("not all can be read, listed and audited though nothing is wrong any more");
        }
        let idle = |world: &World| world.clients.iter().all(Client::is_idle);
        if !self.go_on_until(self.patience(), idle) {
            return self.stuck("what is left to do behind the operations does not end");
        }
        if !self.go_on_until(self.patience(), World::replicas_agree) {
            return self.stuck("the replicas of a chain do not come to agree");
        }
        let raised = |world: &World| world.control.map.map.entries == ENTRY_VERSION;
        if !self.go_on_until(self.patience(), raised) {
            return self.stuck("not everything may be written though all nodes are new");
        }
        self.take_stock();
    }

    /// Whether all members of each chain hold the same log, and have committed all of it.
    fn replicas_agree(&self) -> bool {
        let map = &self.control.map.map;
        map.partitions.iter().all(|partition| {
            let members = partition.chain.devices.iter().map(|no| {
                let node = map.device(*no)?.node;
                let node = self.nodes.iter().find(|it| it.id == node)?;
                let replicas = node.status()?.replicas;
                let replica = replicas
                    .into_iter()
                    .find(|it| it.partition == partition.id)?;
                let settled = replica.last == replica.committed;
                settled.then_some((replica.term, replica.committed))
            });
            let members: Option<Vec<_>> = members.collect();
            members.is_some_and(|all| all.windows(2).all(|two| two[0] == two[1]))
        })
    }

    /// Whether there are just the shards on the devices that objects name.
    fn take_stock(&mut self) {
        let named: u64 = self.story.named.values().map(|shards| *shards as u64).sum();
        let statuses = self.nodes.iter().filter_map(Node::status);
        let devices = statuses.flat_map(|status| status.devices);
        let held: u64 = devices.map(|device| device.shards).sum();
        let unfreed: u64 = self.clients.iter().map(|client| client.unfreed).sum();
        let unread = self.clients.iter().any(|client| client.unread > 0);
        let retried = self.clients.iter().any(|client| client.retried);
        let untidy = self.story.untidy || unread || retried || self.faults.has_victim();
        let now = self.now;
        if held < named && !self.story.beyond {
            self.story.wrong(
                now,
                format!("{named} shards are named, and there are {held}"),
            );
        } else if held > named + unfreed && !untidy {
            let what = format!(
                "{named} shards are named, {unfreed} were not freed, and there are {held}: a leak"
            );
            self.story.wrong(now, what);
        }
        let cleaned = |node: &Node| node.cleaned_before + node.cleaned();
        for _ in 0..self.nodes.iter().map(cleaned).sum::<u64>() {
            self.story.mark("extent cleaned");
        }
        let held = |node: &Node| node.held_before + node.held_back();
        if self.nodes.iter().map(held).sum::<u64>() > 0 {
            self.story.mark("audit held back");
        }
        self.story.mark(match (untidy, self.story.has_moved()) {
            (true, _) => "stock taken, untidy",
            (false, true) => "stock taken, with stripes elsewhere",
            (false, false) => "stock taken",
        });
    }

    /// A client's process ends in the middle of everything, and another one takes its place.
    pub(crate) fn end_client(&mut self, client: usize) {
        let now = self.now;
        self.net.forget(now, Host::Client(client), true);
        self.works[client].die(now, &mut self.story);
        let map = self.control.map.clone();
        self.clients[client] = new_client(&map, &mut self.rng, self.tuning, &self.wires);
        self.post();
        self.ticks[client] = None;
        self.tend_client(client);
    }

    /// How long all may take to serve again when nothing is wrong any more, in nanoseconds.
    fn patience(&self) -> u64 {
        PATIENCE * self.plan.longer
    }

    fn stuck(&mut self, what: &str) {
        if self.story.beyond || self.plan.crowded {
            self.story
                .mark("stands still, being full or damaged too much");
        } else if self.story.wrong.is_empty() {
            let works = self.works.iter().map(Work::describe);
            let works: Vec<String> = works.collect();
            let now = self.now;
            let status = |node: &Node| format!("{}: {:?}", node.id, node.status());
            let nodes: Vec<String> = self.nodes.iter().map(status).collect();
            self.say(&format!("clients: {works:#?}\nnodes: {nodes:#?}"));
            self.story
                .wrong(now, format!("{what}: {}", works.join("; ")));
        }
    }

    /// Goes on until this holds; false if it does not within so many nanoseconds, or something is wrong before.
    fn go_on_until(&mut self, patience: u64, holds: impl Fn(&World) -> bool) -> bool {
        let end = self.now + patience;
        while self.story.wrong.is_empty() && !holds(self) {
            let round = self.next_round();
            let due = self.agenda.first_key_value().map(|(at, _)| *at);
            let round = round.filter(|(at, _)| due.is_none_or(|due| *at < due));
            let Some((at, _)) = round.map(|(at, _)| at).or(due) else {
                return false;
            };
            if at > end || self.events >= EVENTS_MAX {
                self.now = end.min(at);
                return false;
            }
            self.now = at;
            self.events += 1;
            if let Some((_, node)) = round {
                self.round(node);
            } else if let Some((_, due)) = self.agenda.pop_first() {
                self.step(due);
            }
        }
        self.story.wrong.is_empty()
    }

    /// The node whose core goes round next, and its place among all that is to come.
    fn next_round(&self) -> Option<((u64, u64), usize)> {
        let rounds = self.nodes.iter().enumerate();
        rounds
            .filter_map(|(node, it)| Some(((it.batch_at?, it.batch_tie), node)))
            .min()
    }

    fn step(&mut self, due: Due) {
        let now = self.now;
        match due {
            Due::Disk(node, life, device, op) => {
                if self.nodes[node].life != life {
                    return;
                }
                match self.nodes[node].disk_done(now, device, op) {
                    Some(later) => self.at(later, Due::Disk(node, life, device, op)),
                    None => self.rouse(node),
                }
            }
            Due::Arrive(arrival) => {
                for (host, life, conn, heard) in self.net.arrive(now, &arrival) {
                    self.hear(host, life, conn, heard);
                }
                self.post();
            }
            Due::Tick(client, at) => {
                if self.ticks[client] == Some(at) {
                    self.ticks[client] = None;
                    self.clients[client].tick(now);
                    self.tend_client(client);
                }
            }
            Due::Control => self.tend_control(),
            Due::Map(node, map) => {
                self.nodes[node].adopt(&map);
                self.rouse(node);
            }
            Due::Fault(end) => {
                if now < end {
                    self.fault();
                    let every = self.plan.fault_every;
                    let next = now + every / 2 + self.rng.below(every);
                    self.at(next, Due::Fault(end));
                }
            }
            Due::Upgrade(node, in_order) => self.upgrade(node, in_order),
            Due::Start(node) => {
                if self.nodes[node].start_at == Some(now) && self.nodes[node].core.is_none() {
                    self.start_node(node);
                }
            }
        }
    }

    /// Has a node's process started then: the last word counts.
    pub fn start_later(&mut self, node: usize, at: u64) {
        self.nodes[node].start_at = Some(at);
        self.at(at, Due::Start(node));
    }

    /// Starts a node's process.
    pub fn start_node(&mut self, node: usize) {
        self.note_upgrade(node);
        self.say(&format!("node {} starts", node + 1));
        let now = self.now;
        self.net.darken(now, Host::Node(node), false);
        self.nodes[node].start(now);
        self.post();
        self.rouse_at(node, now);
    }

    /// Ends a node's process, and its machine's power if `power`.
    pub fn end_node(&mut self, node: usize, power: bool) {
        if self.nodes[node].core.is_none() {
            return;
        }
        let now = self.now;
        self.nodes[node].kill(power);
        if power {
            self.net.darken(now, Host::Node(node), true);
        }
        self.net.forget(now, Host::Node(node), !power);
        self.post();
    }

    /// Has a node's core go round soon.
    pub(crate) fn rouse(&mut self, node: usize) {
        let at = self.now + 1000 + self.rng.below(8000);
        self.rouse_at(node, at);
    }

    fn rouse_at(&mut self, node: usize, at: u64) {
        let it = &mut self.nodes[node];
        let at = at.max(it.stopped_until);
        if it.core.is_some() && it.batch_at.is_none_or(|known| known > at) {
            self.ties += 1;
            (it.batch_at, it.batch_tie) = (Some(at), self.ties);
        }
    }

    fn round(&mut self, node: usize) {
        let now = self.now;
        if self.nodes[node].stopped_until > now {
            let until = self.nodes[node].stopped_until;
            self.nodes[node].batch_at = None;
            return self.rouse_at(node, until);
        }
        let round = self.nodes[node].round(now);
        self.check_read(node);
        let life = self.nodes[node].life;
        let host = Host::Node(node);
        for wish in round.wishes {
            match wish {
                Wish::Connect(conn, address) => match self.node_at(address) {
                    Some(to) => self.net.call(now, conn, (host, life), Host::Node(to)),
                    None => self.nodes[node]
                        .news
                        .push_back(News::Closed(conn, Some(Errno::HOSTUNREACH))),
                },
                Wish::Send(conn, bytes) => {
                    self.overhear(node, &bytes);
                    self.net.send(now, conn, bytes);
                }
                Wish::Close(conn) => self.net.close(now, conn),
                Wish::Abort(conn) => {
                    self.net.drop_end(now, conn, true);
                    self.nodes[node].news.push_back(News::Closed(conn, None));
                }
                Wish::Device { .. } => {}
            }
        }
        for (device, op, at) in round.begun {
            self.at(at, Due::Disk(node, life, device, op));
        }
        self.post();
        if let Some(why) = round.ended {
            self.say(&format!("node {} has ended: {why}", node + 1));
            if !self.nodes[node].newer_next {
                self.story.mark("node ended by itself");
            }
            self.end_node(node, false);
            let again = self.now + 1_000_000_000;
            return self.start_later(node, again);
        }
        if !self.nodes[node].news.is_empty() {
            self.nodes[node].batch_at = Some(now + 1000);
        }
        self.ties += 1;
        self.nodes[node].batch_tie = self.ties;
    }

    /// Says what a replica says to another one, if that is asked for.
    fn overhear(&self, node: usize, bytes: &[u8]) {
        let Some(partition) = self.overheard else {
            return;
        };
        let Some((head, rest)) = bytes.split_first_chunk::<FRAME_HEADER_LEN>() else {
            return;
        };
        let Ok(header) = FrameHeader::decode(head) else {
            return;
        };
        let control = rest.get(..header.control_len as usize);
        if header.opcode == Opcode::Chain
            && let Some(Ok(message)) = control.map(decode_control::<ChainMessage>)
            && message.partition.0 == partition
        {
            let body = format!("{:?}", message.body);
            let (from, to, term) = (message.from, message.to, message.term.0);
            self.say(&format!(
                "node {}: {from} to {to}, term {term}: {body:.200}",
                node + 1
            ));
        }
    }

    fn node_at(&self, address: SocketAddr) -> Option<usize> {
        self.nodes.iter().position(|node| node.address == address)
    }

    /// What the network has on its way goes onto the agenda.
    fn post(&mut self) {
        for (at, arrival) in std::mem::take(&mut self.net.out) {
            self.at(at, Due::Arrive(arrival));
        }
    }

    fn hear(&mut self, host: Host, life: u64, conn: ConnId, heard: Heard) {
        let now = self.now;
        match host {
            // Nobody is told that what he sent has arrived, but for a core that waits for room.
            Host::Client(_) if matches!(heard, Heard::Arrived(_)) => {}
            Host::Client(client) => {
                self.clients[client].hear(now, conn, heard);
                self.tend_client(client);
            }
            Host::Node(node) => {
                let it = &mut self.nodes[node];
                let is_call = matches!(heard, Heard::Accepted);
                if it.core.is_none() {
                    if is_call {
                        self.net.answer(now, conn, None);
                    }
                    return;
                }
                if !is_call && it.life != life {
                    return;
                }
                let news = match heard {
                    Heard::Accepted => News::Accepted(conn),
                    Heard::Connected => News::Connected(conn),
                    Heard::Bytes(bytes) => News::Bytes(conn, bytes),
                    Heard::Arrived(bytes) => {
                        if !it.port.arrived(conn, bytes) {
                            return;
                        }
                        News::Drained(conn)
                    }
                    Heard::Closed(true) => News::Closed(conn, None),
                    Heard::Closed(false) => News::Closed(conn, Some(Errno::CONNRESET)),
                };
                it.news.push_back(news);
                if is_call {
                    let life = it.life;
                    self.net.answer(now, conn, Some(life));
                }
                self.rouse(node);
            }
        }
    }

    /// Lets a client go on, and carries out what it wants.
    fn tend_client(&mut self, client: usize) {
        let now = self.now;
        loop {
            let it = &mut self.clients[client];
            self.works[client].go_on(now, it, &self.plan, &mut self.story);
            it.sweep();
            let wants = std::mem::take(&mut it.wants);
            if wants.is_empty() {
                break;
            }
            for want in wants {
                match want {
                    Want::Call(conn, address) => match self.node_at(address) {
                        Some(to) => {
                            self.net
                                .call(now, conn, (Host::Client(client), 0), Host::Node(to))
                        }
                        None => self.clients[client].hear(now, conn, Heard::Closed(false)),
                    },
                    Want::Send(conn, bytes) => self.net.send(now, conn, bytes),
                    Want::Drop(conn) => self.net.drop_end(now, conn, true),
                }
            }
        }
        self.post();
        let next = self.clients[client].next_at();
        let next = next.into_iter().chain(self.works[client].next_at()).min();
        if let Some(next) = next {
            let next = next.max(now + 1000);
            if self.ticks[client].is_none_or(|known| known > next) {
                self.ticks[client] = Some(next);
                self.at(next, Due::Tick(client, next));
            }
        }
    }

    fn tend_control(&mut self) {
        let now = self.now;
        for node in &self.nodes {
            let runs = node.core.is_some() && node.stopped_until <= now;
            if runs && !self.faults.hides(node.id) {
                self.control.hear(now, node);
            }
        }
        if let Some(change) = self.control.decide(now) {
            self.say(&format!("control: {change}"));
            self.story.mark("map changed");
            if change.starts_with("RaiseEntries") {
                self.story.mark("newer entries allowed");
            }
        }
        let map = self.control.map.clone();
        for node in 0..self.nodes.len() {
            let it = &self.nodes[node];
            if it.map.map.epoch < map.map.epoch && !self.faults.hides(it.id) {
                let delay = 1_000_000 + self.rng.below(200_000_000);
                self.at(now + delay, Due::Map(node, map.clone()));
            }
        }
        self.at(now + 250_000_000, Due::Control);
    }
}
