//! Which devices are out: part of the leader's state machine. No I/O, no clock.
//!
//! Nodes move what is on a device only if the map says that the device is out, and this alone says so. Whoever sees a
//! device away cannot tell a dead device from being cut off himself; the leader hears from all nodes, has a quorum for
//! what it changes, and marks nothing out while more are away than may well be dead.
//!
//! Invariants:
//! - a device is marked out only if this leader has seen it away, by its own count, for all of the time that is waited,
//!   and has looked in between: a time in which it did nothing itself is not one in which it watched;
//! - with more devices away or out than are allowed to be none is marked out;
//! - none is marked out while a node is there that does not say how its devices are: it is of an older version, and may
//!   not understand the change;
//! - a device that is out comes in again when it has served for a while, the longer the more often it has gone out.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use ashlar_cluster_map::{ClusterMap, MapChange, held};
use ashlar_layout::ids::{DeviceNo, NodeId};
use ashlar_layout::time::Instant;

/// After this many times [`OutLimits::back_after`] doubles no more.
const DOUBLED_MAX: u32 = 6;
/// What has served for so long is taken for as good as any.
const STEADY: Duration = Duration::from_secs(60 * 60);

/// When devices are marked out, and in again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OutLimits {
    /// A device that is away for as long is marked out.
    pub after: Duration,
    /// One that is out and serves for as long is marked in; twice as long with each time that it went out lately.
    pub back_after: Duration,
    /// With more devices away or out than this none is marked out; if it is not said, as [`held`] has it.
    pub most: Option<usize>,
}

impl OutLimits {
    /// What is so unless it is said otherwise.
    pub const DEFAULT: OutLimits = OutLimits {
        after: Duration::from_secs(30),
        back_after: Duration::from_secs(5),
        most: None,
    };
}

impl Default for OutLimits {
    fn default() -> OutLimits {
        OutLimits::DEFAULT
    }
}

/// How long the nodes are silent that are, by their numbers: since when.
pub(crate) type Silent = BTreeMap<NodeId, Instant>;

/// A node that says how it is.
pub(crate) struct Beat<'a> {
    pub(crate) node: NodeId,
    /// Since when it had been silent, if it was taken for away.
    pub(crate) silent: Option<Instant>,
    /// Its devices that serve, if it says so.
    pub(crate) serving: Option<&'a [DeviceNo]>,
}

/// What the leader has heard of devices since it took office.
#[derive(Clone, Debug)]
pub(crate) struct Devices {
    limits: OutLimits,
    /// Since when it has watched without a break, and when it looked last.
    since: Instant,
    looked: Instant,
    /// Devices that do not serve, as their nodes say: since when they are away.
    down: BTreeMap<DeviceNo, Instant>,
    /// Those that do, and since when without a break.
    up: BTreeMap<DeviceNo, Instant>,
    /// Nodes that do not say it.
    mute: BTreeSet<NodeId>,
    /// What was out at the last look; none before the first.
    out: Option<BTreeSet<DeviceNo>>,
    /// How often devices went out lately.
    outs: BTreeMap<DeviceNo, u32>,
    /// Why none was marked out at the last look, if that was so.
    held: Option<String>,
}

impl Devices {
    pub(crate) fn new(limits: OutLimits, now: Instant) -> Devices {
        Devices {
            limits,
            since: now,
            looked: now,
            down: BTreeMap::new(),
            up: BTreeMap::new(),
            mute: BTreeSet::new(),
            out: None,
            outs: BTreeMap::new(),
            held: None,
        }
    }

    pub(crate) fn hear(&mut self, now: Instant, map: &ClusterMap, beat: &Beat<'_>) {
        match beat.serving {
            Some(_) => self.mute.remove(&beat.node),
            None => self.mute.insert(beat.node),
        };
        for device in map.devices.iter().filter(|it| it.node == beat.node) {
            let no = device.no;
            if beat.serving.is_none_or(|serving| serving.contains(&no)) {
                self.down.remove(&no);
                if beat.silent.is_some() {
                    self.up.insert(no, now);
                } else {
                    self.up.entry(no).or_insert(now);
                }
            } else {
                self.up.remove(&no);
                self.down.entry(no).or_insert(beat.silent.unwrap_or(now));
            }
        }
    }

    /// Forgets what is no longer in the map.
    pub(crate) fn forget(&mut self, map: &ClusterMap) {
        let known: BTreeSet<DeviceNo> = map.devices.iter().map(|device| device.no).collect();
        self.down.retain(|no, _| known.contains(no));
        self.up.retain(|no, _| known.contains(no));
        self.outs.retain(|no, _| known.contains(no));
        self.mute.retain(|node| map.node(*node).is_some());
    }

    /// The devices that are away, and since when.
    pub(crate) fn away(&self, map: &ClusterMap, silent: &Silent) -> BTreeMap<DeviceNo, Instant> {
        let since = |no: DeviceNo, node: NodeId| {
            let both = [self.down.get(&no), silent.get(&node)];
            both.into_iter().flatten().min().copied()
        };
        let all = map.devices.iter();
        all.filter_map(|it| Some((it.no, since(it.no, it.node)?)))
            .collect()
    }

    /// Why none of the devices that are away was marked out at the last look.
    pub(crate) fn held(&self) -> Option<&str> {
        self.held.as_deref()
    }

    /// Why none is to be, whatever the time; none: they may be, or all of them are.
    fn hold(
        &self,
        map: &ClusterMap,
        silent: &Silent,
        away: &BTreeMap<DeviceNo, Instant>,
    ) -> Option<String> {
        let mut both: BTreeSet<DeviceNo> = away.keys().copied().collect();
        if both.is_subset(&map.out) {
            return None;
        }
        both.extend(&map.out);
        held(map, &both, self.limits.most).or_else(|| {
            let older = self.mute.iter().find(|node| !silent.contains_key(node))?;
            Some(format!(
                "node {older} does not say how its devices are: start it with the version that the others have"
            ))
        })
    }

    /// Looks, after a pause of no more than so much if it has watched; the change to make now, if any.
    pub(crate) fn look(
        &mut self,
        now: Instant,
        map: &ClusterMap,
        silent: &Silent,
        pause: Duration,
    ) -> Option<MapChange> {
        if now.since(self.looked) > pause {
            self.since = now;
        }
        self.looked = now;
        self.count(now, map);
        let away = self.away(map, silent);
        self.held = self.hold(map, silent, &away);
        let node = |no: &DeviceNo| map.device(*no).map(|device| device.node);
        let is_back = |no: &DeviceNo| {
            let there = node(no).is_some_and(|node| !silent.contains_key(&node));
            let waits = self.back_after(*no);
            let up = self.up.get(no);
            there && up.is_some_and(|since| now.since(*since) >= waits)
        };
        let devices: Vec<DeviceNo> = map.out.iter().filter(|no| is_back(no)).copied().collect();
        if !devices.is_empty() {
            return Some(MapChange::MarkIn { devices });
        }
        if self.held.is_some() {
            // Who comes back when many were away comes back one after the other: the last of them are not gone.
            self.since = now;
            return None;
        }
        let due = |since: Instant| now.since(since.max(self.since)) >= self.limits.after;
        let gone = away.iter().filter(|(_, since)| due(**since));
        let gone = gone.map(|(no, _)| *no).filter(|no| !map.out.contains(no));
        let devices: Vec<DeviceNo> = gone.collect();
        (!devices.is_empty()).then_some(MapChange::MarkOut { devices })
    }

    /// Counts how often devices go out, and forgets it of those that have served for long.
    fn count(&mut self, now: Instant, map: &ClusterMap) {
        let before = self.out.replace(map.out.clone());
        for no in before.iter().flat_map(|before| map.out.difference(before)) {
            *self.outs.entry(*no).or_default() += 1;
        }
        let up = &self.up;
        let unsteady = |no: &DeviceNo| up.get(no).is_none_or(|since| now.since(*since) < STEADY);
        self.outs
            .retain(|no, _| map.out.contains(no) || unsteady(no));
    }

    fn back_after(&self, no: DeviceNo) -> Duration {
        let times = self
            .outs
            .get(&no)
            .map_or(0, |times| times.saturating_sub(1));
        let factor = 1u32 << times.min(DOUBLED_MAX);
        self.limits.back_after.saturating_mul(factor)
    }
}
