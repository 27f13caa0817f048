//! A node's auditor: one for each partition that the node leads, for as long as it does, and one for each of its
//! devices, at a pace that they share.
//!
//! Invariants:
//! - each partition has one auditor on a node; of two on two nodes, one finds that the other has written, and reads
//!   again where it is: that costs reads, and nothing is counted twice;
//! - it may be dropped at any time: what was not recorded is looked at again.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use ashlar_cluster_audit::{Charge, Limits, Pace, Pacing, World};
use ashlar_cluster_map::ClusterMap;
use ashlar_layout::ids::{DeviceNo, NodeId, PartitionId};
use ashlar_layout::manifest::Stripe;
use ashlar_layout::message::NodeStatus;
use ashlar_node_client::{Client, Clock};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::{MissedTickBehavior, interval, sleep_until};

use crate::compare;
use crate::device::{self, Devices};
use crate::partition::{self, Led};
use crate::walk::Range;

/// How often is looked which partitions the node leads.
const LOOK: Duration = Duration::from_secs(1);
/// How often the nodes are asked how their devices are: so many looks at the most, and several times while a device
/// that is away is waited for.
const ASK_EVERY: u32 = 15;

/// How often the nodes are asked how fast their devices may be read.
const ASK_PACE: Duration = Duration::from_secs(2);
/// The share of what a device allows that is for looking at itself: the rest is for those who look at what is on it.
const OWN: f64 = 0.125;

/// How a node's auditor is to work.
#[derive(Clone)]
pub struct Options {
    /// Which node.
    pub node: NodeId,
    /// From the beginning of one pass to that of the next.
    pub pass: Duration,
    /// How long is waited for devices that are away, if there is margin.
    pub wait: Duration,
    /// Bytes a second that a device is read with at the least,
    pub floor: u64,
    /// and at the most.
    pub most: u64,
    /// Tells the log.
    pub tell: fn(&str),
}

impl Options {
    pub(crate) fn limits(&self) -> Limits {
        Limits {
            pass: self.pass,
            wait: self.wait,
            // Not so seldom that a short pass is recorded at its end only.
            record: (self.pass / 100).clamp(Duration::from_secs(1), Duration::from_secs(30)),
        }
    }
}

/// What was agreed on, as far as the node knows.
#[derive(Clone, Debug)]
pub struct Known {
    /// The newest map.
    pub map: Arc<ClusterMap>,
    /// Why devices that are away are not marked out, if that is so.
    pub held: Option<String>,
}

/// What the auditors of a node share.
pub(crate) struct Node {
    pub(crate) client: Client,
    pub(crate) options: Options,
    pace: Mutex<Pace>,
    pub(crate) clock: Clock,
    /// Which share of all objects this one looks at.
    share: Mutex<f64>,
    /// Room for bytes of stripes, in units of [`ROOM_UNIT`].
    room: Arc<Semaphore>,
}

/// Bytes of stripes that all auditors of a node hold at the most, but for one stripe that is larger.
pub(crate) const ROOM: u64 = 64 << 20;
const ROOM_UNIT: u64 = 4096;

impl Node {
    /// Tells the log something of a partition.
    pub(crate) fn tell(&self, partition: PartitionId, what: &str) {
        (self.options.tell)(&format!("audit of partition {partition}: {what}"));
    }

    fn paced<T>(&self, with: impl FnOnce(&mut Pace) -> T) -> T {
        with(&mut self.pace.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Waits until so much may be read; what is urgent does not wait, but others do for it.
    pub(crate) async fn pay(&self, charges: &[Charge], urgent: bool) {
        if urgent {
            return self.paced(|pace| pace.owe(self.clock.now(), charges));
        }
        while let Err(at) = self.paced(|pace| pace.take(self.clock.now(), charges)) {
            // More may be allowed before that.
            let look = self.clock.now() + LOOK;
            sleep_until(self.clock.at(at.min(look))).await;
        }
    }

    /// Waits until so many copies of a stripe may be in memory; it is given back when what is given is dropped. Whoever
    /// has some waits for nothing but devices.
    pub(crate) async fn room(&self, stripe: &Stripe, copies: u64) -> Option<OwnedSemaphorePermit> {
        let shards = u64::from(stripe.k) + u64::from(stripe.m);
        let bytes = u64::from(stripe.shard_len()) * shards * copies;
        let units = bytes.clamp(ROOM_UNIT, ROOM).div_ceil(ROOM_UNIT);
        let units = u32::try_from(units).unwrap_or(u32::MAX);
        // It is never closed.
        self.room.clone().acquire_many_owned(units).await.ok()
    }

    /// Whether others want one of these devices for themselves.
    pub(crate) fn is_wanted(&self, charges: &[Charge]) -> bool {
        self.paced(|pace| pace.is_wanted(charges))
    }

    /// Takes how fast devices may be read. One that does not say it is read at the least.
    fn allow(&self, said: &BTreeMap<DeviceNo, u64>) {
        let (now, share) = (self.clock.now(), *self.share());
        for device in &self.client.map().devices {
            let own = if device.node == self.options.node {
                OWN
            } else {
                0.0
            };
            let ours = own + (1.0 - OWN) * share;
            let bytes = said.get(&device.no).copied();
            self.paced(|pace| pace.allow(now, device.no, bytes, ours));
        }
    }

    fn share(&self) -> MutexGuard<'_, f64> {
        self.share.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Asks all nodes how they are.
    async fn ask(&self) -> Vec<NodeStatus> {
        let question = |client: Client, node| async move { client.node_status(node).await };
        let told = self.client.each_node(question).await;
        // Who does not answer is away.
        told.into_values().flatten().flatten().collect()
    }

    /// Takes what nodes said: how fast devices are to be read, and which of them serve.
    fn learn(&self, said: &[NodeStatus], leads: &[PartitionId], known: &Known) -> World {
        let (share, now) = (share(said, leads), self.clock.now());
        *self.share() = share;
        for device in said.iter().flat_map(|node| &node.devices) {
            let bytes = (device.bytes_used as f64 * share) as u64;
            self.paced(|pace| pace.holds(now, device.device, bytes));
        }
        world(said, known)
    }
}

/// How devices are: who serves by what the nodes said, and who is out by what was agreed on.
fn world(said: &[NodeStatus], known: &Known) -> World {
    let devices = said.iter().flat_map(|node| &node.devices);
    let there = devices.filter(|it| it.serves());
    let serving: BTreeSet<DeviceNo> = there.map(|device| device.device).collect();
    let all = known.map.devices.iter().map(|device| device.no);
    let away: BTreeSet<DeviceNo> = all.filter(|no| !serving.contains(no)).collect();
    let out = known.map.out.clone();
    let held = known.held.clone().filter(|_| !away.is_subset(&out));
    World {
        serving,
        away,
        out,
        held,
    }
}

/// Asks all nodes how fast their devices may be read, again and again.
async fn follow_paces(node: Arc<Node>) {
    let mut due = interval(ASK_PACE);
    due.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        due.tick().await;
        let question = |client: Client, node| async move { client.paces(node).await };
        let told = node.client.each_node(question).await;
        let paces = told.into_values().flatten().flatten();
        node.allow(&paces.map(|pace| (pace.device, pace.allowed)).collect());
    }
}

/// Which share of all objects is in these partitions: so much of each device their auditors read.
fn share(said: &[NodeStatus], leads: &[PartitionId]) -> f64 {
    let mut objects: BTreeMap<PartitionId, u64> = BTreeMap::new();
    let replicas = said.iter().flat_map(|node| &node.replicas);
    for replica in replicas.filter(|replica| replica.role == "head") {
        let known = objects.entry(replica.partition).or_default();
        *known = replica.objects.max(*known);
    }
    let all: u64 = objects.values().sum();
    let ours = leads.iter().filter_map(|partition| objects.get(partition));
    let ours: u64 = ours.sum();
    match all {
        0 => 1.0,
        all => ours as f64 / all as f64,
    }
}

fn led(map: &ClusterMap, partition: PartitionId) -> Option<Led> {
    let known = map.partition_by_id(partition)?;
    Some(Led {
        partition,
        range: Range {
            start: known.start.clone(),
            end: map.end_of(&known.start).cloned(),
        },
        parents: known
            .parents
            .iter()
            .map(|parent| (*parent, map.partition_by_id(*parent).is_none()))
            .collect(),
        chain: known.chain.devices.clone(),
    })
}

/// Audits and repairs what a node leads. It does not end by itself, and may be dropped at any time. `leads` says what
/// the node leads, `known` what was agreed on, `devices` are its own.
pub async fn run<D: Devices>(
    client: Client,
    options: Options,
    leads: impl Fn() -> Vec<PartitionId> + Send,
    known: impl Fn() -> Known + Send,
    devices: Arc<D>,
) {
    let pacing = Pacing {
        pass: options.pass,
        floor: options.floor,
        most: options.most,
    };
    let node = Arc::new(Node {
        client,
        pace: Mutex::new(Pace::new(pacing)),
        options,
        clock: Clock::start(),
        share: Mutex::new(0.0),
        room: Arc::new(Semaphore::new((ROOM / ROOM_UNIT) as usize)),
    });
    let (tell, heard) = watch::channel(World::default());
    // Aborted when this is dropped.
    let mut tasks = JoinSet::new();
    tasks.spawn(follow_paces(node.clone()));
    let mut running: BTreeMap<PartitionId, (Led, AbortHandle)> = BTreeMap::new();
    let mut looking: BTreeMap<DeviceNo, AbortHandle> = BTreeMap::new();
    let mut look = interval(LOOK);
    look.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut looks = 0u32;
    let every = u32::try_from(node.options.wait.as_secs() / 4).unwrap_or(ASK_EVERY);
    let every = every.clamp(1, ASK_EVERY);
    loop {
        look.tick().await;
        let partitions = leads();
        let said = match looks.is_multiple_of(every) && !partitions.is_empty() {
            true => Some(node.ask().await),
            false => None,
        };
        let known = known();
        if let Some(said) = said {
            tell.send_replace(node.learn(&said, &partitions, &known));
        }
        // Asked for the first time as soon as it leads something.
        looks = if partitions.is_empty() {
            0
        } else {
            looks.wrapping_add(1)
        };
        let map = known.map;
        let wanted: Vec<Led> = partitions.iter().filter_map(|it| led(&map, *it)).collect();
        running.retain(|_, (led, task)| {
            let stays = wanted.contains(led) && !task.is_finished();
            if !stays {
                task.abort();
            }
            stays
        });
        for led in wanted {
            running.entry(led.partition).or_insert_with(|| {
                let (node, heard) = (node.clone(), heard.clone());
                let of = led.clone();
                let run = async move {
                    let compare = compare::run(node.clone(), of.clone());
                    tokio::select! {
                        () = partition::run(node, of, heard) => {}
                        () = compare => {}
                    }
                };
                (led, tasks.spawn(run))
            });
        }
        let ours = devices.all();
        looking.retain(|device, task| {
            let stays = ours.contains(device) && !task.is_finished();
            if !stays {
                task.abort();
            }
            stays
        });
        for device in ours {
            looking
                .entry(device)
                .or_insert_with(|| tasks.spawn(device::run(node.clone(), device, devices.clone())));
        }
        // What has ended is not kept.
        while tasks.try_join_next().is_some() {}
    }
}

#[cfg(test)]
mod tests {
    use ashlar_cluster_map::{Class, Device, DomainLevel};
    use ashlar_layout::ids::{ClusterId, DeviceId, Epoch, Seq, Term};
    use ashlar_layout::message::{DeviceStatus, ReplicaStatus};

    use super::*;

    #[test]
    fn only_what_the_map_says_is_out() {
        let class = Class { k: 2, m: 1 };
        let mut map = ClusterMap::bare(ClusterId([1; 16]), class, 4096, DomainLevel::Host);
        let device = |no: u32| Device {
            no: DeviceNo(no),
            id: DeviceId([no as u8; 16]),
            node: NodeId(no),
            core: 0,
            size: 1 << 30,
        };
        map.devices = (1..=3).map(device).collect();
        map.out = [DeviceNo(3)].into();
        let status = |no: u32, state: &str| DeviceStatus {
            device: DeviceNo(no),
            id: DeviceId([no as u8; 16]),
            state: state.to_owned(),
            bytes_total: 1,
            bytes_used: 1,
            shards: 1,
            findings: Vec::new(),
        };
        let mut said = head(1, "head", 1);
        said.devices = vec![status(1, "full"), status(2, "fenced: by the test")];
        let why = Some("too many".to_owned());
        let known = |held: &Option<String>| Known {
            map: Arc::new(map.clone()),
            held: held.clone(),
        };
        let seen = world(std::slice::from_ref(&said), &known(&why));
        let want = World {
            serving: [DeviceNo(1)].into(),
            away: [2, 3].map(DeviceNo).into(),
            out: [DeviceNo(3)].into(),
            held: why.clone(),
        };
        assert_eq!(seen, want);
        // Who is cut off sees all of them away, and that is all.
        let seen = world(&[], &known(&None));
        assert_eq!((seen.away.len(), seen.out.len(), seen.held), (3, 1, None));
        // Nothing is held against what is out already.
        said.devices = vec![status(1, "serving"), status(2, "serving")];
        assert_eq!(world(&[said], &known(&why)).held, None);
    }

    fn head(partition: u32, role: &str, objects: u64) -> NodeStatus {
        let replica = ReplicaStatus {
            partition: PartitionId(partition),
            role: role.to_owned(),
            state: "serving".to_owned(),
            term: Term(1),
            last: Seq(1),
            committed: Seq(1),
            objects,
        };
        NodeStatus {
            node: NodeId(1),
            epoch: Epoch(1),
            uptime_ms: 1,
            devices: Vec::new(),
            replicas: vec![replica],
        }
    }

    #[test]
    fn who_leads_half_reads_half() {
        let said = [
            head(1, "head", 500),
            head(1, "follower", 9999),
            head(2, "head", 300),
            head(3, "head", 200),
        ];
        let of = |partitions: &[u32]| {
            let leads: Vec<PartitionId> = partitions.iter().map(|no| PartitionId(*no)).collect();
            share(&said, &leads)
        };
        assert_eq!(of(&[1]), 0.5);
        assert_eq!(of(&[2, 3]), 0.5);
        assert_eq!(of(&[]), 0.0);
        assert_eq!(share(&[], &[PartitionId(1)]), 1.0);
    }
}
