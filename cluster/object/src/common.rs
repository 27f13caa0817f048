//! What all operations of one client share: the map, beliefs about devices, numbers, buffers.
//!
//! Invariants:
//! - the map only ever moves to a higher epoch;
//! - stripe ids and request numbers are never given out twice;
//! - no lock is held while bytes are encoded, and none across two calls from outside.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::Duration;

use ashlar_cluster_map::{Class, ClusterMap, PlacementGroup};
use ashlar_layout::ids::{
    ClientId, DeviceNo, NodeId, PartitionId, RequestNo, ShardId, StripeId, Term,
};
use ashlar_layout::limits::SHARD_SIZE_MAX;
use ashlar_layout::manifest::{Op, Precondition, Stripe};
use ashlar_layout::message::{Reply, Request};
use ashlar_layout::time::Instant;

use crate::cache::{Cache, Cached};
use crate::call::{Action, StripeIds};
use crate::choose::choose;
use crate::encode::Codecs;
use crate::error::{Fault, ObjectError, ShardFault};
use crate::heads::Heads;
use crate::health::Health;
use crate::pool::BufferPool;

/// How operations behave.
#[derive(Clone, Copy, Debug)]
pub struct Tuning {
    /// How long an unavailable partition, or too few devices, are waited for.
    pub unavailable_wait: Duration,
    /// Attempts to store one stripe.
    pub stripe_attempts: u32,
    /// Stripes of one put that are not yet acknowledged.
    pub put_stripes: usize,
    /// Stripes of one put in memory, those included whose stragglers are still on their way.
    pub put_stripes_kept: usize,
    /// Stripes of one get in memory.
    pub get_stripes: usize,
    /// Shards freed at once.
    pub frees: usize,
    /// A request without an answer for so long is taken for lost.
    pub give_up: Duration,
    /// Devices may hold requests back for so long, as they do what is in the background: nobody is late for that.
    pub held: Duration,
    /// Stripes in one node of a manifest tree.
    pub tree_fanout: usize,
    /// The same in that of an object that is put together of parts.
    pub compose_fanout: usize,
    /// Stripes in a manifest's root.
    pub manifest_stripes: usize,
    /// Largest object that rides in the journal, in bytes.
    pub inline_max: u32,
    /// Objects whose metadata is kept, to be validated by witnesses; 0: every read is looked up.
    pub cache_entries: usize,
    /// Bytes that they may take, inline objects included.
    pub cache_bytes: usize,
    /// Witnesses asked for fewer than it takes: what tests must notice.
    #[cfg(test)]
    pub(crate) witnesses_short: usize,
}

impl Default for Tuning {
    fn default() -> Self {
        Tuning {
            unavailable_wait: Duration::from_secs(5),
            stripe_attempts: 5,
            put_stripes: 4,
            put_stripes_kept: 8,
            get_stripes: 3,
            frees: 64,
            give_up: Duration::from_secs(5),
            held: Duration::ZERO,
            tree_fanout: 8192,
            compose_fanout: 65_536,
            manifest_stripes: ashlar_layout::limits::MANIFEST_STRIPES_MAX,
            inline_max: ashlar_layout::limits::INLINE_MAX,
            cache_entries: 64 * 1024,
            cache_bytes: 64 << 20,
            #[cfg(test)]
            witnesses_short: 0,
        }
    }
}

/// What all operations of one client share.
#[derive(Debug)]
pub struct Common {
    map: RwLock<Arc<ClusterMap>>,
    health: Mutex<Health>,
    ids: StripeIds,
    client: ClientId,
    requests: AtomicU64,
    moves: AtomicU64,
    heads: Mutex<Heads>,
    cache: Mutex<Cache>,
    turn: AtomicU64,
    witness_turn: AtomicU64,
    pub(crate) codecs: Codecs,
    pool: BufferPool,
    tuning: Tuning,
}

impl Common {
    /// `client` must be random: it names this client's requests and stripes.
    pub fn new(map: Arc<ClusterMap>, client: ClientId, pool: BufferPool, tuning: Tuning) -> Common {
        Common {
            map: RwLock::new(map),
            health: Mutex::default(),
            ids: StripeIds::new(client.0),
            client,
            requests: AtomicU64::new(1),
            moves: AtomicU64::new(client.0 >> 20),
            heads: Mutex::default(),
            cache: Mutex::new(Cache::new(tuning.cache_entries, tuning.cache_bytes)),
            // Even: see `witness_turn`.
            witness_turn: AtomicU64::new(client.0 & !1),
            // Clients start at different groups.
            turn: AtomicU64::new(client.0 >> 16),
            codecs: Codecs::default(),
            pool,
            tuning,
        }
    }

    /// The newest map.
    pub fn map(&self) -> Arc<ClusterMap> {
        self.map
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// Takes a map over, if it is of the same cluster and newer.
    pub fn learn(&self, newer: ClusterMap) -> bool {
        let mut map = self.map.write().unwrap_or_else(PoisonError::into_inner);
        let takes = newer.cluster == map.cluster && newer.epoch > map.epoch;
        if takes {
            *map = Arc::new(newer);
        }
        takes
    }

    /// Takes over a map that came with a reply; false if it is none, or not newer.
    pub fn learn_json(&self, json: &[u8]) -> bool {
        ClusterMap::from_json(json).is_ok_and(|map| self.learn(map))
    }

    /// Beliefs about devices. Not to be held across another call.
    pub fn health(&self) -> MutexGuard<'_, Health> {
        self.health.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The pool of buffers.
    pub fn pool(&self) -> &BufferPool {
        &self.pool
    }

    /// How operations behave.
    pub fn tuning(&self) -> &Tuning {
        &self.tuning
    }

    /// Who asks.
    pub fn client(&self) -> ClientId {
        self.client
    }

    /// A number for a new request to the journal.
    pub fn next_request(&self) -> RequestNo {
        RequestNo(self.requests.fetch_add(1, Ordering::Relaxed))
    }

    /// Asks a partition's head for a change, for the first time: who asks it says in which reign, and what went before.
    pub fn proposal(&self, partition: PartitionId, precondition: Precondition, op: Op) -> Request {
        Request::Propose {
            partition,
            term: Term(0),
            client: self.client,
            request: self.next_request(),
            retry: None,
            precondition,
            op,
        }
    }

    /// Beliefs about the heads of partitions. Not to be held across another call.
    pub fn heads(&self) -> MutexGuard<'_, Heads> {
        self.heads.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn cache(&self) -> MutexGuard<'_, Cache> {
        self.cache.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is kept of an object.
    pub(crate) fn cached(&self, bucket: &str, key: &str) -> Option<Arc<Cached>> {
        if self.tuning.cache_entries == 0 {
            return None;
        }
        self.cache().get(bucket, key)
    }

    /// Keeps what the head said of an object.
    pub(crate) fn keep(&self, bucket: &str, key: &str, cached: Cached) {
        if self.tuning.cache_entries > 0 {
            self.cache().put(bucket, key, cached);
        }
    }

    /// What is kept of an object is known to be wrong.
    pub(crate) fn forget(&self, bucket: &str, key: &str) {
        if self.tuning.cache_entries > 0 {
            self.cache().remove(bucket, key);
        }
    }

    /// Counts up, so that witnesses that are equally good take turns: two questions each, because who asks two at once
    /// has them go out together if they go to the same.
    pub(crate) fn witness_turn(&self) -> u64 {
        self.witness_turn.fetch_add(1, Ordering::Relaxed) / 2
    }

    /// The partition that (bucket, key) falls in.
    pub fn partition_of(&self, bucket: &str, key: &str) -> Result<PartitionId, ObjectError> {
        let map = self.map();
        let partition = map.partition(bucket, key).map(|p| p.id);
        partition.ok_or_else(|| ObjectError::BadRequest {
            detail: format!(
                "map {} has no partition for '{key}' in '{bucket}'",
                map.epoch
            ),
        })
    }

    /// An id for a stripe that is written for the first time.
    pub(crate) fn next_stripe(&self) -> Result<StripeId, ObjectError> {
        self.ids.next().ok_or_else(|| ObjectError::BadRequest {
            detail: "this client has no ids for stripes left: it has to be started anew".to_owned(),
        })
    }

    /// Another id for the bytes of a stripe that is moved. Who else moves it counts from elsewhere.
    pub(crate) fn next_of(&self, stripe: StripeId) -> StripeId {
        stripe.moved(self.moves.fetch_add(1, Ordering::Relaxed))
    }

    /// The group for the next stripe.
    pub(crate) fn choose(&self) -> Result<PlacementGroup, ObjectError> {
        let turn = self.turn.fetch_add(1, Ordering::Relaxed);
        let map = self.map();
        let health = self.health();
        choose(&map, &health, turn).cloned()
    }

    /// Asks for the probes that are due.
    pub(crate) fn probe(&self, now: Instant, out: &mut Vec<Action>) {
        let due = self.health().due(now);
        out.extend(due.into_iter().map(|device| Action::Probe { device }));
    }

    /// The devices that hold a stripe's shards, in order; an error says what does not fit.
    pub(crate) fn devices_of(&self, stripe: &Stripe) -> Result<Vec<DeviceNo>, String> {
        let map = self.map();
        let class = Class {
            k: stripe.k,
            m: stripe.m,
        };
        let fits = class.k > 0 && stripe.data_len.div_ceil(u32::from(class.k)) <= SHARD_SIZE_MAX;
        if !fits || stripe.data_len == 0 || stripe.shard_crcs.len() != class.shards() {
            let crcs = stripe.shard_crcs.len();
            return Err(format!(
                "stripe {} of class {class} holds {} bytes and has {crcs} checksums",
                stripe.id, stripe.data_len
            ));
        }
        let Some(group) = map.group(stripe.pg) else {
            return Err(format!(
                "stripe {} is on placement group {}, which map {} does not have",
                stripe.id, stripe.pg, map.epoch
            ));
        };
        if group.devices.len() != class.shards() {
            return Err(format!(
                "stripe {} of class {class} is on placement group {}, which has {} devices",
                stripe.id,
                stripe.pg,
                group.devices.len()
            ));
        }
        Ok(group.devices.clone())
    }

    /// A fault with its device's node.
    pub(crate) fn shard_fault(&self, index: usize, device: DeviceNo, fault: Fault) -> ShardFault {
        let node = self.map().device(device).map_or(NodeId(0), |d| d.node);
        ShardFault {
            index: index as u16,
            device,
            node,
            fault,
        }
    }
}

/// The request that forgets a shard.
pub(crate) fn forget(device: DeviceNo, stripe: StripeId, index: usize) -> Request {
    Request::ShardDelete {
        device,
        shard: ShardId {
            stripe,
            index: index as u16,
        },
    }
}

/// The error for a reply of another kind than the request asks for.
pub fn unexpected(expected: &str, got: &Reply) -> ObjectError {
    let got = match got {
        Reply::Hello { .. } => "Hello",
        Reply::Map => "Map",
        Reply::Done => "Done",
        Reply::Shard { .. } => "Shard",
        Reply::Committed { .. } => "Committed",
        Reply::Found { .. } => "Found",
        Reply::Chain(_) => "Chain",
        Reply::Witness { .. } => "Witness",
        Reply::Page(_) => "Page",
        Reply::Buckets { .. } => "Buckets",
        Reply::Status(_) => "Status",
        Reply::Error(_) => "Error",
        Reply::Versions(_) => "Versions",
        Reply::Digest { .. } => "Digest",
        Reply::Paces(_) => "Paces",
    };
    ObjectError::Protocol {
        detail: format!("a reply {got} came where {expected} was expected"),
    }
}
