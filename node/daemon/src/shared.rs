//! What all cores of a node share: the newest map, how chains and devices are, and whether the node is to end.
//!
//! Invariants:
//! - a map is replaced by a newer one of the same cluster only;
//! - nothing here is touched on the way of a request.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use ashlar_cluster_map::{ClusterMap, MapError};
use ashlar_layout::ids::{DeviceNo, NodeId, PartitionId};
use ashlar_layout::version::ENTRY_VERSION;
use ashlar_node_control::ChainReport;
use ashlar_node_reactor::Waker;
use bytes::Bytes;

use crate::config::Config;
use crate::own_audit::Asks;

/// What all cores of a node know, and what the main thread watches.
pub struct Shared {
    /// Which node this is.
    pub node: NodeId,
    /// How its replicas are to work.
    pub(crate) tuning: Tuning,
    /// Set when the node is to drain and end.
    pub stopping: AtomicBool,
    /// The newest cluster map; a core looks here only when `epoch` says that it is newer than its own.
    pub newest: Mutex<Arc<Maps>>,
    /// The newest map's epoch.
    pub epoch: AtomicU64,
    /// How the chains are of which this node has members.
    pub chains: Mutex<BTreeMap<PartitionId, ChainReport>>,
    /// The devices that serve, and the pulse of the core of each.
    serving: Mutex<BTreeMap<DeviceNo, Arc<Pulse>>>,
    /// Why devices that are away are not marked out, if that is so, as the control plane said last.
    pub(crate) held: Mutex<Option<String>>,
    /// Why this program may not serve this cluster any more, if that is so.
    pub(crate) refused: Mutex<Option<MapError>>,
    /// What devices are to look at.
    pub(crate) audits: Asks,
    /// Wakes the cores.
    pub wakers: Mutex<Vec<Waker>>,
}

/// What the configuration says of replicas.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Tuning {
    /// Whether heads feed every follower themselves.
    pub(crate) star: bool,
    /// Bytes of a table of an index.
    pub(crate) table_bytes: usize,
    /// Bytes of the journal that are kept for replicas that were away.
    pub(crate) keep_bytes: u64,
    /// The newest version of journal entries that is read.
    pub(crate) reads: u16,
}

impl Shared {
    /// Starts with this map.
    pub fn new(config: &Config, maps: Maps) -> Shared {
        let epoch = maps.map.epoch.0;
        Shared {
            node: config.node,
            tuning: Tuning {
                star: config.star,
                table_bytes: config.index_table_bytes,
                keep_bytes: config.journal_keep_bytes,
                reads: ENTRY_VERSION,
            },
            stopping: AtomicBool::new(false),
            newest: Mutex::new(Arc::new(maps)),
            epoch: AtomicU64::new(epoch),
            chains: Mutex::default(),
            serving: Mutex::default(),
            held: Mutex::default(),
            refused: Mutex::default(),
            audits: Asks::default(),
            wakers: Mutex::default(),
        }
    }

    /// The same as an older program that reads journal entries up to this version: for simulations of clusters that are
    /// being upgraded.
    #[must_use]
    pub fn as_older(mut self, reads: u16) -> Shared {
        self.tuning.reads = reads;
        self
    }

    /// How the chains are.
    pub fn reports(&self) -> Vec<ChainReport> {
        let chains = self.chains.lock();
        let chains = chains.unwrap_or_else(PoisonError::into_inner);
        chains.values().cloned().collect()
    }

    /// The devices that serve, and how often the core of each has gone round its loop.
    pub fn serving(&self) -> Vec<(DeviceNo, u64)> {
        let serving = self.serving.lock();
        let serving = serving.unwrap_or_else(PoisonError::into_inner);
        let beats = |pulse: &Pulse| pulse.beats.load(Ordering::Relaxed);
        serving.iter().map(|(no, it)| (*no, beats(it))).collect()
    }

    /// A device serves, with the pulse of its core, or does not any more.
    pub(crate) fn serves(&self, device: DeviceNo, pulse: Option<Arc<Pulse>>) {
        let serving = self.serving.lock();
        let mut serving = serving.unwrap_or_else(PoisonError::into_inner);
        match pulse {
            Some(pulse) => serving.insert(device, pulse),
            None => serving.remove(&device),
        };
    }

    /// Why devices that are away are not marked out, if that is so.
    pub(crate) fn held(&self) -> Option<String> {
        let held = self.held.lock();
        held.unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(crate) fn hold(&self, why: Option<String>) {
        *self.held.lock().unwrap_or_else(PoisonError::into_inner) = why;
    }

    /// This program may not serve this cluster any more: the node drains and ends.
    pub(crate) fn refuse(&self, why: MapError) {
        let refused = self.refused.lock();
        *refused.unwrap_or_else(PoisonError::into_inner) = Some(why);
        self.stopping.store(true, Ordering::Relaxed);
        self.wake();
    }

    pub(crate) fn refusal(&self) -> Option<MapError> {
        let refused = self.refused.lock();
        refused.unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Has all cores go round their loop once.
    pub fn wake(&self) {
        let wakers = self.wakers.lock();
        for waker in wakers.unwrap_or_else(PoisonError::into_inner).iter() {
            waker.wake();
        }
    }

    /// The newest map.
    pub fn newest(&self) -> Arc<Maps> {
        let newest = self.newest.lock();
        newest.unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Puts a newer map in place for the cores to find; an older one, or another cluster's, changes
    /// nothing. Whether it was newer.
    pub fn adopt(&self, maps: Maps) -> bool {
        let mut newest = self.newest.lock().unwrap_or_else(PoisonError::into_inner);
        let newer = maps.map.epoch > newest.map.epoch && maps.map.cluster == newest.map.cluster;
        if newer {
            self.epoch.store(maps.map.epoch.0, Ordering::Release);
            *newest = Arc::new(maps);
        }
        newer
    }
}

/// A cluster map, in both its forms.
#[derive(Clone, Debug)]
pub struct Maps {
    /// The map.
    pub map: ClusterMap,
    /// The same as JSON, for `GetMap` and for callers whose own is older.
    pub json: Bytes,
}

/// What the main thread sees of one core.
#[derive(Default)]
pub struct Pulse {
    /// Goes up whenever the core has gone round its loop.
    pub beats: AtomicU64,
    /// Whether its devices are open and its replicas started.
    pub ready: AtomicBool,
}
