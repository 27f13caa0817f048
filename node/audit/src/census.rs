//! Censuses of a node's devices, carried out: one after another for each of them, by what the passes of all partitions
//! ask for.
//!
//! What follows from what is decided in `ashlar-cluster-audit`; the marks are the device's own.
//!
//! Invariants:
//! - a device is asked for one thing at a time, by whoever looks at it: its audit and its census take turns;
//! - it may be dropped at any time: the next one begins anew, and knows what was recorded.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::sync::Arc;
use std::time::Duration;

use ashlar_cluster_audit::audit::Now;
use ashlar_cluster_audit::census::{Action, Event, Passes, Range, Sight};
use ashlar_cluster_audit::orphans::orphans_key;
use ashlar_cluster_audit::record::now_key;
use ashlar_cluster_audit::{Census, Charge, Kind, Orphans};
use ashlar_layout::ids::{DeviceNo, PartitionId, Seq, ShardId};
use tokio::sync::Mutex;
use tokio::time::sleep_until;

use crate::device::Devices;
use crate::ledger::{self, LedgerError};
use crate::node::Node;

/// How often is looked how far passes have come, at the most and at the least.
const POLL: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60 * 60));
/// Bytes that asking a device for a name counts as.
const NAMING: u64 = 4096;

/// What a device is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ask {
    /// Forget all marks, and mark from now on each shard that is read or written, under this random name.
    Begin(u64),
    /// Say which shards have no mark, of the marks of this name, from a place on; 0 is the beginning.
    Unmarked(u64, u64),
    /// Say what stands at a place.
    Name(u64),
}

/// What it came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Counted {
    /// It marks.
    Begun,
    /// It has no such marks: it was opened since.
    Forgotten,
    /// A part of the index was gone through.
    Unmarked {
        /// Places of shards that have no mark.
        places: Vec<u64>,
        /// Where to go on; none at the end.
        next: Option<u64>,
        /// Bytes of memory that were gone through.
        memory: u64,
    },
    /// What stands at a place, and its bytes; none if it does not say what it is.
    Named(Option<(ShardId, u64)>),
}

struct Driver<'a, D> {
    node: Arc<Node>,
    device: DeviceNo,
    devices: Arc<D>,
    turn: &'a Mutex<()>,
    version: Option<Seq>,
    /// Orphans that were told to the log.
    told: u64,
    failed: bool,
}

/// Takes censuses of a device, for ever. It may be dropped at any time. `turn` is held while the device is asked.
pub(crate) async fn run<D: Devices>(
    node: Arc<Node>,
    device: DeviceNo,
    devices: Arc<D>,
    turn: &Mutex<()>,
) {
    let poll = (node.options.pass / 64).clamp(POLL.0, POLL.1);
    let mut census = Census::new(device, poll);
    let mut driver = Driver {
        node,
        device,
        devices,
        turn,
        version: None,
        told: 0,
        failed: false,
    };
    let (mut actions, mut event) = (Vec::new(), Event::Start);
    loop {
        let now = Now {
            at: driver.node.clock.now(),
            wall_ms: ledger::wall_ms(),
        };
        census.on_event(now, event, &mut actions);
        event = match (actions.pop(), census.next_deadline()) {
            (Some(action), _) => driver.carry_out(action).await,
            (None, Some(at)) => {
                sleep_until(driver.node.clock.at(at)).await;
                Event::Deadline
            }
            // It always asks for something, or waits.
            (None, None) => return,
        };
    }
}

impl<D: Devices> Driver<'_, D> {
    fn tell(&self, what: &str) {
        (self.node.options.tell)(&format!("census of device {}: {what}", self.device));
    }

    fn failed(&mut self, doing: &str, error: &impl Display) -> Event {
        if !std::mem::replace(&mut self.failed, true) {
            self.tell(&format!("{doing}: {error}; it is tried again"));
        }
        Event::Failed
    }

    async fn ask(&self, ask: Ask) -> Option<Counted> {
        let _turn = self.turn.lock().await;
        self.devices.count(self.device, ask).await
    }

    async fn pay(&self, bytes: u64) {
        let device = self.device;
        self.node.pay(&[Charge { device, bytes }], false).await;
    }

    async fn carry_out(&mut self, action: Action) -> Event {
        match action {
            Action::Load => match self.load().await {
                Ok(found) => Event::Loaded(found.map(Box::new)),
                Err(error) => self.failed("what is known of it cannot be read", &error),
            },
            Action::Begin => {
                let mut salt = [0; 8];
                if getrandom::fill(&mut salt).is_err() {
                    return Event::Failed;
                }
                let salt = u64::from_le_bytes(salt);
                match self.ask(Ask::Begin(salt)).await {
                    Some(Counted::Begun) => Event::Begun(salt),
                    _ => Event::Failed,
                }
            }
            Action::See => match self.see().await {
                Ok(sight) => Event::Seen(sight),
                Err(error) => self.failed("what passes came to cannot be read", &error),
            },
            Action::Walk(salt, from) => match self.ask(Ask::Unmarked(salt, from)).await {
                Some(Counted::Unmarked {
                    places,
                    next,
                    memory,
                }) => {
                    self.pay(memory).await;
                    Event::Walked(places, next)
                }
                Some(Counted::Forgotten) => Event::Forgotten,
                _ => Event::Failed,
            },
            Action::Name(place) => {
                self.pay(NAMING).await;
                match self.ask(Ask::Name(place)).await {
                    Some(Counted::Named(named)) => Event::Named(named),
                    _ => Event::Failed,
                }
            }
            Action::Record(orphans) => match self.record(&orphans).await {
                Ok(true) => {
                    self.failed = false;
                    Event::Recorded
                }
                Ok(false) => Event::Outdated,
                Err(error) => self.failed("it cannot be recorded", &error),
            },
        }
    }

    async fn load(&mut self) -> Result<Option<Orphans>, LedgerError> {
        let found = ledger::read::<Orphans>(&self.node.client, &orphans_key(self.device)).await?;
        self.version = found.as_ref().map(|(version, _)| *version);
        let orphans = found.map(|(_, orphans)| orphans);
        self.told = orphans.as_ref().map_or(0, Orphans::counted);
        Ok(orphans)
    }

    /// All partitions, and what their records say of passes.
    async fn see(&self) -> Result<Sight, String> {
        let map = self.node.client.map();
        let parts = map.partitions.iter();
        let ranges: BTreeMap<PartitionId, Range> = parts
            .map(|part| {
                let end = map.end_of(&part.start).cloned();
                (part.id, (part.start.clone(), end))
            })
            .collect();
        let read = ledger::records_of(&self.node.client, ranges.keys().copied()).await;
        // Of one that cannot be read it is not known what it says; that there is none is something else.
        if let Some(why) = read.unread.into_iter().next() {
            return Err(why);
        }
        let sight = ranges.into_iter().map(|(id, range)| {
            let record = read.found.get(&now_key(id));
            (id, (range, Passes::of(record)))
        });
        Ok(sight.collect())
    }

    async fn record(&mut self, orphans: &Orphans) -> Result<bool, LedgerError> {
        ledger::found(&self.node.client).await?;
        let key = orphans_key(self.device);
        let written = ledger::write(&self.node.client, &key, orphans, self.version).await?;
        let Some(version) = written else {
            return Ok(false);
        };
        self.version = Some(version);
        let more = orphans.counted().saturating_sub(self.told);
        self.told = orphans.counted();
        if more > 0 {
            self.tell(&format!(
                "{}: {more} shards more that no object names; {} of {} bytes stand now. Nobody frees them",
                Kind::Orphan.name(),
                orphans.shards.len(),
                orphans.bytes()
            ));
        }
        Ok(true)
    }
}
