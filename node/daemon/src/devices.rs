//! The devices of a core, from opening to the last flush.
//!
//! Invariants:
//! - an engine's I/O carries the generation of its device; completions of an older one are dropped;
//! - a device that is fenced is closed, reopened and recovered: nothing is retried on the old state;
//! - a device serves only when its journal has been replayed into its replicas.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::Duration;

use ashlar_cluster_index::Cache;
use ashlar_cluster_map::ClusterMap;
use ashlar_layout::ids::{ClusterId, DeviceId, DeviceNo, PartitionId};
use ashlar_layout::message::{DeviceStatus, ErrorCode, FindingCount, FindingKind, Reply};
use ashlar_layout::time::Instant;
use ashlar_node_engine::api::{self, Action, IoFailure};
use ashlar_node_engine::clean::Cleaned;
use ashlar_node_engine::error::{EngineError, OpenError};
use ashlar_node_engine::opening::{OpenParams, Opened};
use ashlar_node_reactor::{self as reactor, Buf, Dev, DeviceIoError, Driver, OpenOptions};

use crate::audit::AuditConfig;
use crate::config::{CacheMode, DeviceConfig};
use crate::core::{Core, Engine, Opening, Pending, PoolMemory, Todo};
use crate::holding::Holding;
use crate::outgoing;
use crate::replay::Replay;
use crate::words::say;

/// Wait before a device that failed is opened again, at first and at most.
const REOPEN_MIN: Duration = Duration::from_millis(200);
const REOPEN_MAX: Duration = Duration::from_secs(10);
/// How often, and for how long, a device that another process holds is tried again before that is
/// taken for a failure: one that was just killed may need a moment to let go.
const BUSY_RETRY: Duration = Duration::from_millis(20);
const BUSY_MAX: Duration = Duration::from_secs(5);
/// After so many extents at the most it is said again what was cleaned.
const CLEANED_SAID: u64 = 1024;
/// The kinds that findings are counted by.
const KINDS: [FindingKind; FindingKind::ALL.len()] = FindingKind::ALL;

pub(crate) enum Phase {
    /// Not open; the next attempt is at this time, if there is to be one.
    Closed {
        retry_at: Option<Instant>,
        why: String,
    },
    Opening(Box<Opening>),
    Replaying(Box<Replay>),
    Serving(Box<Engine>),
    /// The last operation is under way.
    Stopping(Box<Engine>),
    Down,
}

/// One device.
pub struct DeviceSlot {
    pub(crate) no: DeviceNo,
    id: DeviceId,
    cluster: ClusterId,
    path: PathBuf,
    cache: CacheMode,
    clean_from: Option<u32>,
    /// Extents that were cleaned or given up, when that was last said.
    said_cleaned: u64,
    dev: Option<Dev>,
    generation: u32,
    pub(crate) phase: Phase,
    reopen_after: Duration,
    /// Since when another process has been found to hold it.
    busy_since: Option<Instant>,
    /// A replica stopped: its log is to be read again,
    reopen: bool,
    /// but only when there is room on the device.
    reopen_with_room: bool,
    findings: [u64; KINDS.len()],
    /// Partitions of which something was on it when it was opened, and that have no replica here.
    pub(crate) strangers: BTreeSet<PartitionId>,
    /// Of some partition something was on it, and it is not known of which.
    pub(crate) unnamed: bool,
    /// Pages of its indexes that are in memory. (Devices do not share them: a run's name is one of its device.)
    pub(crate) pages: Cache,
    /// Whether it was told last that it serves.
    said_serving: bool,
    /// What audits and repairs ask of it.
    pub(crate) holding: Holding,
    /// Whether it has ever served: before that, a failure to open ends the node.
    served: bool,
    /// Why the node cannot go on with this device, if so.
    pub(crate) fatal: Option<String>,
    size: u64,
}

impl DeviceSlot {
    /// A device of the map at the path that the configuration gives, with so many bytes for pages of its indexes.
    pub(crate) fn new(
        device: &ashlar_cluster_map::Device,
        config: &DeviceConfig,
        map: &ClusterMap,
        cache: usize,
        audit: &AuditConfig,
    ) -> DeviceSlot {
        DeviceSlot {
            no: device.no,
            id: device.id,
            cluster: map.cluster,
            path: config.path.clone(),
            cache: config.cache,
            clean_from: config.clean_from,
            said_cleaned: 0,
            dev: None,
            generation: 0,
            phase: Phase::Closed {
                retry_at: None,
                why: "not opened yet".into(),
            },
            reopen_after: REOPEN_MIN,
            busy_since: None,
            reopen: false,
            reopen_with_room: false,
            findings: [0; KINDS.len()],
            strangers: BTreeSet::new(),
            unnamed: false,
            pages: Cache::new(cache),
            said_serving: false,
            holding: Holding::new(device.no, audit),
            served: false,
            fatal: None,
            size: device.size,
        }
    }

    /// Its journal is replayed: it serves.
    pub(crate) fn serve(&mut self, mut engine: Engine) {
        engine.clean_from(self.clean_from);
        self.holding.opened();
        self.said_cleaned = 0;
        self.phase = Phase::Serving(Box::new(engine));
        self.served = true;
        self.reopen_after = REOPEN_MIN;
    }

    pub(crate) fn path(&self) -> &std::path::Path {
        &self.path
    }

    pub(crate) fn is_serving(&self) -> bool {
        matches!(self.phase, Phase::Serving(_))
    }

    pub(crate) fn is_down(&self) -> bool {
        matches!(self.phase, Phase::Down | Phase::Closed { .. })
    }

    /// Whether its opening has come to an end, good or bad.
    pub(crate) fn is_settled(&self) -> bool {
        !matches!(self.phase, Phase::Opening(_) | Phase::Replaying(_)) && self.busy_since.is_none()
    }

    pub(crate) fn next_deadline(&self) -> Option<Instant> {
        match &self.phase {
            Phase::Closed { retry_at, .. } => *retry_at,
            _ => None,
        }
    }

    /// Extents that are free; 0 while it does not serve.
    pub(crate) fn extents_free(&self) -> u32 {
        match &self.phase {
            Phase::Serving(engine) => engine.room().free,
            _ => 0,
        }
    }

    /// What its engine cleaned since it was opened; nothing while it does not serve.
    pub(crate) fn cleaned(&self) -> Cleaned {
        match &self.phase {
            Phase::Serving(engine) => engine.cleaned(),
            _ => Cleaned::default(),
        }
    }

    /// What it cleaned, if that is to be said now: ever less often, up to every so many extents.
    fn cleaned_news(&mut self) -> Option<Cleaned> {
        let cleaned = self.cleaned();
        let count = cleaned.extents + cleaned.passed + cleaned.left;
        let due = count >= self.said_cleaned + self.said_cleaned.clamp(1, CLEANED_SAID);
        due.then(|| {
            self.said_cleaned = count;
            cleaned
        })
    }

    /// Which opening of it this is.
    pub(crate) fn generation(&self) -> u32 {
        self.generation
    }

    pub(crate) fn block_size(&self) -> u32 {
        match &self.phase {
            Phase::Serving(engine) | Phase::Stopping(engine) => engine.geometry().block_size,
            _ => ashlar_layout::limits::BLOCK_SIZE,
        }
    }

    pub(crate) fn state(&self) -> String {
        match &self.phase {
            Phase::Closed { why, .. } => format!("fenced: {why}"),
            Phase::Opening(_) | Phase::Replaying(_) => "recovering".into(),
            Phase::Serving(engine) if is_full(engine) => "full".into(),
            Phase::Serving(_) => "serving".into(),
            Phase::Stopping(_) | Phase::Down => "stopping".into(),
        }
    }

    /// Whether the journal should not grow any more.
    pub(crate) fn nearly_full(&self) -> bool {
        let Phase::Serving(engine) = &self.phase else {
            return false;
        };
        let room = engine.room();
        room.free <= room.reserved_from_journal
    }

    pub(crate) fn found(&mut self, kind: FindingKind) {
        if let Some(index) = KINDS.iter().position(|k| *k == kind) {
            self.findings[index] += 1;
        }
    }

    /// The log on the device and a replica may disagree: read it again.
    pub(crate) fn reopen_wanted(&mut self, full: bool) {
        // A full device does not get emptier by being reopened.
        self.reopen |= !full;
        self.reopen_with_room |= full;
    }

    /// Whether something of a partition may be on it that has no replica here.
    pub(crate) fn may_have(&self, partition: PartitionId) -> bool {
        self.unnamed || self.strangers.contains(&partition)
    }

    /// A replica was added: its device's log may have something of it, unless it is yet to be read.
    pub(crate) fn replica_added(&mut self) {
        self.reopen |= matches!(self.phase, Phase::Serving(_) | Phase::Replaying(_));
    }

    pub(crate) fn status(&self) -> DeviceStatus {
        let (bytes_used, shards) = match &self.phase {
            Phase::Serving(engine) | Phase::Stopping(engine) => {
                let stats = engine.stats();
                (stats.bytes_used, stats.shards_live)
            }
            _ => (0, 0),
        };
        let findings = KINDS
            .iter()
            .zip(self.findings)
            .filter(|(_, count)| *count > 0)
            .map(|(kind, count)| FindingCount { kind: *kind, count })
            .collect();
        DeviceStatus {
            device: self.no,
            id: self.id,
            state: self.state(),
            bytes_total: self.size,
            bytes_used,
            shards,
            findings,
        }
    }

    /// The engine's last operation has ended: for good, or to be opened again at once.
    pub(crate) fn shut_down(&mut self, for_good: bool, now: Instant, io: &mut impl Driver) {
        self.pages.clear();
        self.phase = if for_good {
            Phase::Down
        } else {
            self.generation += 1;
            let why = "its journal is read again after a failed append".into();
            Phase::Closed {
                retry_at: Some(now),
                why,
            }
        };
        if let Some(dev) = self.dev.take() {
            io.close_device(dev);
        }
    }

    /// It cannot be opened now. Another process that holds it may be about to let go: then it is soon
    /// tried again, without a word more than the first.
    fn not_opened(
        &mut self,
        e: &reactor::OpenError,
        alone: bool,
        now: Instant,
        io: &mut impl Driver,
    ) {
        let busy = matches!(e, reactor::OpenError::Busy { .. });
        if !busy {
            self.busy_since = None;
            return self.close(e.to_string(), alone, now, io);
        }
        let new = self.busy_since.is_none();
        let since = *self.busy_since.get_or_insert(now);
        if now.since(since) >= BUSY_MAX {
            self.busy_since = None;
            return self.close(e.to_string(), true, now, io);
        }
        if new {
            say!(
                "device {} at {}: {e}: waiting",
                self.no,
                self.path.display()
            );
        }
        self.phase = Phase::Closed {
            retry_at: Some(now + BUSY_RETRY),
            why: e.to_string(),
        };
    }

    /// Closes it. A `hopeless` reason ends the node if the device has never served: whoever
    /// started it had better know.
    pub(crate) fn close(
        &mut self,
        why: String,
        hopeless: bool,
        now: Instant,
        io: &mut impl Driver,
    ) {
        if let Some(dev) = self.dev.take() {
            io.close_device(dev);
        }
        self.generation += 1;
        self.pages.clear();
        self.reopen = false;
        self.reopen_with_room = false;
        say!("device {} at {}: {why}", self.no, self.path.display());
        if hopeless && !self.served {
            self.fatal = Some(why.clone());
        }
        self.phase = Phase::Closed {
            retry_at: Some(now + self.reopen_after),
            why,
        };
        self.reopen_after = (self.reopen_after * 2).min(REOPEN_MAX);
    }
}

impl Core {
    /// Opens a device and begins its recovery.
    pub(crate) fn open_device(&mut self, device: usize, now: Instant, io: &mut impl Driver) {
        let alone = self.devices.len() == 1;
        let slot = &mut self.devices[device];
        let cache = match slot.cache {
            CacheMode::Auto => reactor::CacheMode::Auto,
            CacheMode::Volatile => reactor::CacheMode::Volatile,
            CacheMode::None => reactor::CacheMode::None,
        };
        let options = OpenOptions {
            cache,
            // The core has others to serve: it comes again.
            patience: Duration::ZERO,
            ..OpenOptions::default()
        };
        let dev = match io.open_device(&slot.path, options) {
            Ok(dev) => dev,
            Err(e) => return slot.not_opened(&e, alone, now, io),
        };
        slot.busy_since = None;
        let Some(info) = io.device_info(dev).cloned() else {
            return slot.close("it closed while it was opened".into(), false, now, io);
        };
        slot.dev = Some(dev);
        slot.size = info.size;
        let params = OpenParams {
            cluster: slot.cluster,
            device: Some(slot.id),
            device_size: info.size,
            logical_block: info.logical_block,
            volatile_cache: info.volatile_cache,
        };
        let mut actions = Vec::new();
        let mut opening = Opening::new(params);
        let ended = opening.start(&mut self.memory, &mut actions);
        slot.phase = Phase::Opening(Box::new(opening));
        self.carry_out(device, actions, now, io);
        self.opened(device, ended, now, io);
    }

    /// Opens devices again whose time has come, and those whose log must be read again.
    pub(crate) fn tend_devices(&mut self, now: Instant, io: &mut impl Driver) {
        if self.draining() {
            return;
        }
        for device in 0..self.devices.len() {
            let slot = &mut self.devices[device];
            let room = slot.reopen_with_room && !slot.nearly_full();
            if (slot.reopen || room) && slot.is_serving() {
                slot.reopen = false;
                slot.reopen_with_room = false;
                for replica in 0..self.replicas.len() {
                    if self.replicas[replica].device == device {
                        self.stop_replica(replica, io);
                    }
                }
                self.shut_device(device);
            }
            let due = self.devices[device]
                .next_deadline()
                .is_some_and(|at| at <= now);
            if due && self.devices[device].fatal.is_none() {
                self.open_device(device, now, io);
            }
        }
    }

    /// Tells the rest of the node which devices serve.
    pub(crate) fn tell_serving(&mut self) {
        for slot in &mut self.devices {
            let serves = slot.is_serving();
            if std::mem::replace(&mut slot.said_serving, serves) == serves {
                continue;
            }
            let pulse = serves.then(|| self.pulse.clone());
            self.shared.serves(slot.no, pulse);
        }
    }

    /// Gives an engine an event, and carries out what it wants.
    pub(crate) fn engine_event(
        &mut self,
        device: usize,
        event: api::Event<Buf>,
        now: Instant,
        io: &mut impl Driver,
    ) {
        let mut actions = Vec::new();
        match &mut self.devices[device].phase {
            Phase::Serving(engine) | Phase::Stopping(engine) => {
                engine.on_event(now, event, &mut self.memory, &mut actions);
            }
            Phase::Replaying(replay) => {
                replay
                    .engine
                    .on_event(now, event, &mut self.memory, &mut actions);
            }
            _ => {
                if let Some(op) = operation(&event) {
                    let error = EngineError::ShuttingDown {
                        device: self.devices[device].id,
                    };
                    self.todo.push_back(Todo::Done {
                        op,
                        result: Err(error),
                    });
                }
            }
        }
        self.carry_out(device, actions, now, io);
    }

    /// Lets engines send out as one batch what one round of the loop brought; whether there was anything.
    pub(crate) fn kick_engines(&mut self, now: Instant, io: &mut impl Driver) -> bool {
        let mut any = false;
        for device in 0..self.devices.len() {
            let mut actions = Vec::new();
            if let Phase::Serving(engine) | Phase::Stopping(engine) =
                &mut self.devices[device].phase
            {
                engine.kick(now, &mut self.memory, &mut actions);
            }
            if let Some(cleaned) = self.devices[device].cleaned_news() {
                let Cleaned {
                    begun,
                    extents,
                    records,
                    bytes,
                    tombstones,
                    passed,
                    left,
                    ..
                } = cleaned;
                let percent = cleaned.write_amplification_percent();
                say!(
                    "device {}: cleaned {extents} of {begun} extents, {passed} passed over, {left} given up; \
                     {records} shards and {tombstones} tombstones written again, {bytes} bytes; \
                     {percent} bytes written for 100 appended",
                    self.devices[device].no
                );
            }
            if !actions.is_empty() {
                any = true;
                self.carry_out(device, actions, now, io);
            }
        }
        any
    }

    fn carry_out(
        &mut self,
        device: usize,
        actions: Vec<Action<Buf>>,
        now: Instant,
        io: &mut impl Driver,
    ) {
        let generation = self.devices[device].generation;
        for action in actions {
            let slot = &mut self.devices[device];
            match action {
                Action::Done { op, result } => self.todo.push_back(Todo::Done { op, result }),
                Action::Finding(finding) => {
                    say!("finding: device {}: {finding}", slot.no);
                    slot.found(finding.kind.told());
                }
                Action::Fenced { error } => self.fence(device, error.to_string(), now, io),
                Action::Write {
                    io: number,
                    offset,
                    buf,
                    len,
                    durable,
                } => {
                    let Some(dev) = slot.dev else { continue };
                    let token = self.ios.insert((device, generation, number));
                    io.write(dev, token, offset, buf, 0..len, durable);
                }
                Action::Read {
                    io: number,
                    offset,
                    buf,
                    len,
                } => {
                    let Some(dev) = slot.dev else { continue };
                    let token = self.ios.insert((device, generation, number));
                    io.read(dev, token, offset, buf, 0..len);
                }
                Action::Flush { io: number } => {
                    let Some(dev) = slot.dev else { continue };
                    let token = self.ios.insert((device, generation, number));
                    io.flush(dev, token);
                }
            }
        }
    }

    /// A device operation has ended.
    pub(crate) fn device_done(
        &mut self,
        token: u64,
        result: Result<usize, DeviceIoError>,
        buf: Option<Buf>,
        now: Instant,
        io: &mut impl Driver,
    ) {
        let Some((device, generation, number)) = self.ios.remove(token) else {
            return;
        };
        if self.devices[device].generation != generation {
            return;
        }
        let result = result.map(|_| ()).map_err(|e| {
            say!("device {}: {e}", self.devices[device].no);
            IoFailure { errno: errno(&e) }
        });
        let event = api::Event::IoDone {
            io: number,
            result,
            buf,
        };
        if !matches!(self.devices[device].phase, Phase::Opening(_)) {
            return self.engine_event(device, event, now, io);
        }
        let mut actions = Vec::new();
        let Phase::Opening(opening) = &mut self.devices[device].phase else {
            return;
        };
        let ended = opening.on_event(now, event, &mut self.memory, &mut actions);
        self.carry_out(device, actions, now, io);
        self.opened(device, ended, now, io);
    }

    fn opened(
        &mut self,
        device: usize,
        ended: Option<Result<Opened<PoolMemory>, OpenError>>,
        now: Instant,
        io: &mut impl Driver,
    ) {
        let alone = self.devices.len() == 1;
        match ended {
            None => {}
            Some(Ok(opened)) => self.replay(device, opened, now, io),
            Some(Err(e)) => {
                let hopeless = alone || is_misuse(&e);
                self.devices[device].close(e.to_string(), hopeless, now, io);
            }
        }
    }

    /// A device can be used no more as it is: it is closed, and opened again later.
    fn fence(&mut self, device: usize, why: String, now: Instant, io: &mut impl Driver) {
        for replica in 0..self.replicas.len() {
            if self.replicas[replica].device == device {
                self.stop_replica(replica, io);
            }
        }
        self.devices[device].close(why, false, now, io);
    }

    /// The node ends: a device takes nothing more, and is left clean.
    pub(crate) fn shut_device(&mut self, device: usize) {
        let phase = std::mem::replace(&mut self.devices[device].phase, Phase::Down);
        if let Phase::Serving(engine) = phase {
            self.devices[device].phase = Phase::Stopping(engine);
            let op = self.ops.insert(Pending::Shutdown { device });
            let event = api::Event::Shutdown { op };
            self.todo.push_back(Todo::Engine { device, event });
        }
    }

    /// Why the node cannot go on, if so.
    pub(crate) fn fatal(&self) -> Option<&DeviceSlot> {
        self.devices.iter().find(|d| d.fatal.is_some())
    }
}

/// The operation that an event asks for.
fn operation(event: &api::Event<Buf>) -> Option<u64> {
    match event {
        api::Event::IoDone { .. }
        | api::Event::HoldIndex { .. }
        | api::Event::FreeIndex { .. }
        | api::Event::KeepIndex { .. }
        | api::Event::TrimJournal { .. }
        | api::Event::ForgetPartition { .. } => None,
        api::Event::WriteShard { op, .. }
        | api::Event::AppendJournal { op, .. }
        | api::Event::ReadShard { op, .. }
        | api::Event::ReadJournal { op, .. }
        | api::Event::WriteIndex { op, .. }
        | api::Event::ReadIndex { op, .. }
        | api::Event::SyncIndex { op }
        | api::Event::WriteRoot { op, .. }
        | api::Event::DeleteShard { op, .. }
        | api::Event::Audit { op, .. }
        | api::Event::Census { op, .. }
        | api::Event::Shutdown { op } => Some(*op),
    }
}

/// The error number to tell an engine: it only distinguishes failure from success.
fn errno(e: &DeviceIoError) -> i32 {
    const EIO: i32 = 5;
    match e {
        DeviceIoError::Failed { errno, .. } => errno.raw_os_error(),
        _ => EIO,
    }
}

/// What a client is told when an engine refuses or fails.
pub(crate) fn refusal(e: &EngineError) -> Reply {
    let code = match e {
        EngineError::NotFound { .. } => ErrorCode::NotFound,
        EngineError::Exists { .. } => ErrorCode::Exists,
        EngineError::Deleted { .. } => ErrorCode::Exists,
        EngineError::Corrupt { finding } => damaged(finding.kind.told()),
        EngineError::Unreadable { .. } => damaged(FindingKind::Unreadable),
        EngineError::BadRange { .. } => ErrorCode::RangeNotSatisfiable,
        EngineError::BadPayload { .. } => ErrorCode::BadRequest,
        EngineError::DeviceFull { .. } => ErrorCode::DeviceFull,
        EngineError::Busy { .. } => ErrorCode::Busy,
        EngineError::Fenced { .. } => ErrorCode::DeviceError,
        EngineError::ShuttingDown { .. } | EngineError::Forgotten { .. } => ErrorCode::NotServing,
    };
    outgoing::error(code, e.to_string())
}

/// What is said of bytes that are not what they were written as. The commonest kind has the code that it always had.
fn damaged(kind: FindingKind) -> ErrorCode {
    match kind {
        FindingKind::Rot | FindingKind::Skipped => ErrorCode::Corrupt,
        kind => ErrorCode::Damaged(kind),
    }
}

/// Whether a device takes no more shards.
fn is_full(engine: &Engine) -> bool {
    let room = engine.room();
    room.free <= room.reserved
}

/// Whether a device does not belong here, so that trying again would not help.
fn is_misuse(e: &OpenError) -> bool {
    use OpenError as E;
    !matches!(e, E::Write { .. } | E::NoMemory { .. } | E::NoQuorum { .. })
}
