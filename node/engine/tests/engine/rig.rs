//! Drives an engine over the simulated disk, in any order of completions, up to any crash.

use std::collections::BTreeMap;
use std::ops::Range;

use ashlar_layout::ids::{
    ClusterId, DeviceId, DeviceNo, NodeId, PartitionId, Seq, ShardId, StripeId,
};
use ashlar_layout::superblock::Labels;
use ashlar_layout::time::Instant;
use ashlar_node_engine::api::{Action, Event, IoFailure, Memory, Output};
use ashlar_node_engine::audit::{Audited, Step};
use ashlar_node_engine::census::Counted;
use ashlar_node_engine::engine::Engine;
use ashlar_node_engine::error::{EngineError, Finding, OpenError};
use ashlar_node_engine::format::{FormatParams, format_plan};
use ashlar_node_engine::opening::{OpenParams, Opened, Opening};
use bytes::Bytes;

use crate::disk::{Disk, Rng};

pub const CLUSTER: ClusterId = ClusterId([1; 16]);
pub const DEVICE: DeviceId = DeviceId([2; 16]);
pub const MIB: u64 = 1024 * 1024;
const NOW: Instant = Instant(0);

/// Buffers up to a budget, full of rubbish when handed out.
pub struct Mem {
    pub left: usize,
}

impl Memory for Mem {
    type Buf = Vec<u8>;

    fn alloc(&mut self, len: usize) -> Option<Vec<u8>> {
        (len <= self.left).then(|| vec![0xa5; len])
    }
}

pub type Actions = Vec<Action<Vec<u8>>>;

/// An I/O in flight.
pub enum Flying {
    Write {
        io: u64,
        offset: u64,
        buf: Vec<u8>,
        len: usize,
        durable: bool,
    },
    Read {
        io: u64,
        offset: u64,
        buf: Vec<u8>,
        len: usize,
    },
    Flush {
        io: u64,
        since: u64,
    },
}

/// The answer to an operation, without its buffer.
#[derive(Clone, Debug, PartialEq)]
pub enum Answer {
    Durable,
    Journal(u64),
    Index(u64),
    Bytes(Vec<u8>),
    Counted(Counted),
    ShutDown,
    Failed(EngineError),
}

impl Answer {
    pub fn error(&self) -> Option<&EngineError> {
        match self {
            Answer::Failed(error) => Some(error),
            _ => None,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Crash {
    Power,
    Kill,
}

pub struct Rig {
    pub disk: Disk,
    pub mem: Mem,
    pub rng: Rng,
    pub engine: Option<Engine<Mem>>,
    pub flying: Vec<Flying>,
    pub answers: BTreeMap<u64, Answer>,
    /// Sequence numbers of the journal's records, by the address of each append.
    pub sequences: BTreeMap<u64, u64>,
    pub findings: Vec<Finding>,
    pub fenced: Option<EngineError>,
    pub next_op: u64,
    pub reads: u64,
    pub writes: Vec<(u64, usize, bool)>,
    pub flushes: u64,
    /// Fail the write or flush with this many before it.
    pub fail_in: Option<u64>,
    /// After so many completions of the next opening a bit rots here.
    pub disk_rots_after: Option<(u64, u64)>,
    /// The next write lands here.
    pub misdirect: Option<u64>,
    /// With no more free extents than these it is cleaned; `None`: as the engine thinks best.
    pub clean_from: Option<u32>,
    /// The step of an audit that is under way, and what came of the last one.
    pub auditing: Option<u64>,
    pub audited: Option<Result<Audited, EngineError>>,
}

pub fn format_params(block_size: u32, extent_size: u64, device_size: u64) -> FormatParams {
    FormatParams {
        cluster: CLUSTER,
        device: DEVICE,
        device_size,
        block_size,
        extent_size,
        node: NodeId(1),
        device_no: DeviceNo(1),
        labels: Labels::default(),
        first_number: 1,
    }
}

pub fn shard(number: u64) -> ShardId {
    ShardId {
        stripe: StripeId {
            writer: 7,
            attempt: number / 6,
        },
        index: (number % 6) as u16,
    }
}

/// The payload of a shard: from its number, so that every shard differs.
pub fn payload(number: u64, len: usize) -> Vec<u8> {
    let mut rng = Rng(number.wrapping_mul(77));
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        bytes.extend_from_slice(&rng.next().to_le_bytes());
    }
    bytes.truncate(len);
    bytes
}

impl Rig {
    /// An open one that does not clean until it is told to.
    pub fn idle(seed: u64) -> Rig {
        let mut rig = Rig::new(seed, 4096, true);
        rig.clean_from = Some(0);
        rig.open();
        rig
    }

    pub fn new(seed: u64, block_size: u32, volatile: bool) -> Rig {
        Rig::sized(seed, block_size, volatile, MIB, 64 * MIB)
    }

    pub fn sized(seed: u64, block_size: u32, volatile: bool, extent: u64, device: u64) -> Rig {
        #[cfg(feature = "mutants")]
        ashlar_node_engine::mutants::Mutant::choose(std::env::var("ASHLAR_MUTANT").ok().as_deref());
        let mut disk = Disk::new(device, volatile);
        for (offset, bytes) in format_plan(&format_params(block_size, extent, device)).unwrap() {
            disk.write(offset, &bytes, true);
        }
        Rig {
            disk,
            mem: Mem { left: usize::MAX },
            rng: Rng(seed),
            engine: None,
            flying: Vec::new(),
            answers: BTreeMap::new(),
            sequences: BTreeMap::new(),
            findings: Vec::new(),
            fenced: None,
            next_op: 1,
            reads: 0,
            writes: Vec::new(),
            flushes: 0,
            fail_in: None,
            disk_rots_after: None,
            misdirect: None,
            clean_from: None,
            auditing: None,
            audited: None,
        }
    }

    pub fn params(&self) -> OpenParams {
        OpenParams {
            cluster: CLUSTER,
            device: Some(DEVICE),
            device_size: self.disk.size,
            logical_block: 512,
            volatile_cache: self.disk.volatile,
        }
    }

    pub fn engine(&mut self) -> &mut Engine<Mem> {
        self.engine.as_mut().expect("open")
    }

    fn carry_out(&mut self, actions: Actions) {
        for action in actions {
            match action {
                Action::Write {
                    io,
                    offset,
                    buf,
                    len,
                    durable,
                } => {
                    self.writes.push((offset, len, durable));
                    self.flying.push(Flying::Write {
                        io,
                        offset,
                        buf,
                        len,
                        durable,
                    });
                }
                Action::Read {
                    io,
                    offset,
                    buf,
                    len,
                } => {
                    self.reads += 1;
                    self.flying.push(Flying::Read {
                        io,
                        offset,
                        buf,
                        len,
                    });
                }
                Action::Flush { io } => {
                    self.flushes += 1;
                    self.flying.push(Flying::Flush {
                        io,
                        since: self.disk.clock,
                    });
                }
                Action::Done { op, result } if self.auditing == Some(op) => {
                    self.auditing = None;
                    self.audited = Some(match result {
                        Ok(Output::Audited(audited)) => Ok(audited),
                        Ok(other) => panic!("{other:?}"),
                        Err(error) => Err(error),
                    });
                }
                Action::Done { op, result } => {
                    let answer = match result {
                        Ok(Output::Durable) => Answer::Durable,
                        Ok(Output::Journal { at, sequence }) => {
                            self.sequences.insert(at, sequence);
                            Answer::Journal(at)
                        }
                        Ok(Output::Index { at }) => Answer::Index(at),
                        Ok(Output::Shard { buf, range, .. } | Output::Bytes { buf, range }) => {
                            Answer::Bytes(buf[range].to_vec())
                        }
                        Ok(Output::ShutDown) => Answer::ShutDown,
                        Ok(Output::Counted(counted)) => Answer::Counted(counted),
                        Ok(Output::Audited(audited)) => panic!("nobody asked: {audited:?}"),
                        Err(error) => Answer::Failed(error),
                    };
                    let before = self.answers.insert(op, answer);
                    assert!(before.is_none(), "operation {op} was answered twice");
                }
                Action::Finding(finding) => self.findings.push(finding),
                Action::Fenced { error } => {
                    assert!(self.fenced.is_none(), "fenced twice");
                    self.fenced = Some(error);
                }
            }
        }
    }

    /// Carries out one I/O; what to tell of it.
    fn complete(&mut self, at: usize) -> Event<Vec<u8>> {
        let flying = self.flying.swap_remove(at);
        let mut fail = false;
        if !matches!(flying, Flying::Read { .. })
            && let Some(left) = &mut self.fail_in
        {
            fail = *left == 0;
            *left = left.wrapping_sub(1);
            if fail {
                self.fail_in = None;
            }
        }
        let failed = |fail: bool| {
            if fail {
                Err(IoFailure { errno: 5 })
            } else {
                Ok(())
            }
        };
        match flying {
            Flying::Write {
                io,
                mut offset,
                buf,
                len,
                durable,
            } => {
                if let Some(elsewhere) = self.misdirect.take() {
                    offset = elsewhere;
                }
                if fail {
                    self.disk.write_failed(offset, &buf[..len], &mut self.rng);
                } else {
                    self.disk.write(offset, &buf[..len], durable);
                }
                Event::IoDone {
                    io,
                    result: failed(fail),
                    buf: Some(buf),
                }
            }
            Flying::Read {
                io,
                offset,
                mut buf,
                len,
            } => {
                let result = self.disk.read(offset, &mut buf[..len]);
                let result = result.map_err(|errno| IoFailure { errno });
                Event::IoDone {
                    io,
                    result,
                    buf: Some(buf),
                }
            }
            Flying::Flush { io, since } => {
                if fail {
                    self.disk.flush_failed();
                } else {
                    self.disk.flush(since);
                }
                Event::IoDone {
                    io,
                    result: failed(fail),
                    buf: None,
                }
            }
        }
    }

    /// Opens the device. `None` if it crashed after `crash_after` completions.
    pub fn try_open(&mut self, crash_after: Option<u64>) -> Option<Result<Opened<Mem>, OpenError>> {
        assert!(self.engine.is_none() && self.flying.is_empty());
        let mut opening = Opening::<Mem>::new(self.params());
        let mut out = Vec::new();
        let mut ended = opening.start(&mut self.mem, &mut out);
        self.carry_out(out);
        let mut steps = 0;
        while ended.is_none() {
            assert!(!self.flying.is_empty(), "the opening is stuck");
            if crash_after == Some(steps) {
                return None;
            }
            if let Some((_, at)) = self.disk_rots_after.take_if(|(after, _)| *after == steps) {
                self.disk.rot(at, &[0xee; 8]);
            }
            steps += 1;
            let at = self.rng.below(self.flying.len() as u64) as usize;
            let event = self.complete(at);
            let mut out = Vec::new();
            ended = opening.on_event(NOW, event, &mut self.mem, &mut out);
            self.carry_out(out);
        }
        ended
    }

    pub fn open(&mut self) -> Opened2 {
        let opened = self
            .try_open(None)
            .unwrap()
            .unwrap_or_else(|error| panic!("{error}"));
        self.install(opened)
    }

    pub fn install(&mut self, opened: Opened<Mem>) -> Opened2 {
        assert!(
            self.flying.is_empty(),
            "an opening ends with nothing in flight"
        );
        let Opened {
            engine,
            journal,
            damaged,
            roots,
            damaged_roots,
            report,
        } = opened;
        self.engine = Some(engine);
        let from = self.clean_from;
        self.engine().clean_from(from);
        self.fenced = None;
        Opened2 {
            journal,
            damaged,
            roots,
            damaged_roots,
            report,
        }
    }

    pub fn submit(&mut self, make: impl FnOnce(u64) -> Event<Vec<u8>>) -> u64 {
        let op = self.next_op;
        self.next_op += 1;
        let mut out = Vec::new();
        let event = make(op);
        self.engine
            .as_mut()
            .unwrap()
            .on_event(NOW, event, &mut self.mem, &mut out);
        self.carry_out(out);
        op
    }

    pub fn write_shard(&mut self, id: ShardId, bytes: &[u8]) -> u64 {
        let engine = self.engine();
        let head = engine.header_len(bytes.len() as u32) as usize;
        let mut buf = vec![0x5a; engine.record_len(bytes.len() as u32) as usize];
        buf[head..head + bytes.len()].copy_from_slice(bytes);
        let payload_crc = ashlar_layout::crc::crc32(bytes);
        let payload_len = bytes.len() as u32;
        self.submit(|op| Event::WriteShard {
            op,
            shard: id,
            buf,
            payload_len,
            payload_crc,
        })
    }

    pub fn append(&mut self, partition: u32, seqs: Range<u64>, entries: Vec<u8>) -> u64 {
        self.submit(|op| Event::AppendJournal {
            op,
            partition: PartitionId(partition),
            first: Seq(seqs.start),
            last: Seq(seqs.end - 1),
            entries: Bytes::from(entries),
        })
    }

    pub fn read(&mut self, id: ShardId, offset: u32, len: u32) -> u64 {
        self.submit(|op| Event::ReadShard {
            op,
            shard: id,
            offset,
            len,
        })
    }

    /// Begins with a step of an audit.
    pub fn audit(&mut self, step: Step) {
        assert!(self.auditing.is_none());
        self.auditing = Some(self.next_op);
        self.submit(|op| Event::Audit { op, step });
    }

    pub fn delete(&mut self, id: ShardId) -> u64 {
        self.submit(|op| Event::DeleteShard { op, shard: id })
    }

    pub fn write_index(&mut self, partition: u32, bytes: Vec<u8>) -> u64 {
        self.submit(|op| Event::WriteIndex {
            op,
            partition: PartitionId(partition),
            bytes: Bytes::from(bytes),
        })
    }

    pub fn read_index(&mut self, at: u64, len: usize) -> u64 {
        let len = len as u32;
        self.submit(|op| Event::ReadIndex { op, at, len })
    }

    pub fn sync_index(&mut self) -> u64 {
        self.submit(|op| Event::SyncIndex { op })
    }

    pub fn write_root(&mut self, partition: u32, generation: u64, bytes: Vec<u8>) -> u64 {
        self.submit(|op| Event::WriteRoot {
            op,
            partition: PartitionId(partition),
            generation,
            bytes: Bytes::from(bytes),
        })
    }

    pub fn hold(&mut self, partition: u32, ats: &[u64]) {
        let (partition, ats) = (PartitionId(partition), ats.to_vec());
        self.submit(|_| Event::HoldIndex { partition, ats });
    }

    pub fn free(&mut self, partition: u32, ats: &[u64]) {
        let (partition, ats) = (PartitionId(partition), ats.to_vec());
        self.submit(|_| Event::FreeIndex { partition, ats });
    }

    pub fn keep(&mut self, partition: u32, ats: &[u64]) {
        let (partition, ats) = (PartitionId(partition), ats.to_vec());
        self.submit(|_| Event::KeepIndex { partition, ats });
    }

    pub fn trim(&mut self, partition: u32, through: u64, position: u64, pins: &[u32]) {
        let (partition, pins) = (PartitionId(partition), pins.to_vec());
        self.submit(|_| Event::TrimJournal {
            partition,
            through: Seq(through),
            position,
            pins,
        });
    }

    pub fn forget(&mut self, partition: u32) {
        let partition = PartitionId(partition);
        self.submit(|_| Event::ForgetPartition { partition });
    }

    /// Writes a chunk to its end; where it came to stand.
    pub fn chunk(&mut self, partition: u32, bytes: Vec<u8>) -> u64 {
        let op = self.write_index(partition, bytes);
        match self.finish(op) {
            Answer::Index(at) => at,
            other => panic!("{other:?}"),
        }
    }

    /// Syncs, and writes a root, to its end.
    pub fn root(&mut self, partition: u32, generation: u64, bytes: Vec<u8>) {
        let op = self.sync_index();
        assert_eq!(self.finish(op), Answer::Durable);
        let op = self.write_root(partition, generation, bytes);
        assert_eq!(self.finish(op), Answer::Durable);
    }

    /// Reads bytes of the index.
    pub fn fetch_index(&mut self, at: u64, len: usize) -> Answer {
        let op = self.read_index(at, len);
        self.finish(op)
    }

    pub fn kick(&mut self) {
        let mut out = Vec::new();
        self.engine
            .as_mut()
            .unwrap()
            .kick(NOW, &mut self.mem, &mut out);
        self.carry_out(out);
    }

    /// Completes one I/O in flight, any.
    pub fn step(&mut self) -> bool {
        if self.flying.is_empty() {
            return false;
        }
        let at = self.rng.below(self.flying.len() as u64) as usize;
        self.step_at(at);
        true
    }

    /// Completes this I/O in flight.
    pub fn step_at(&mut self, at: usize) {
        let event = self.complete(at);
        let mut out = Vec::new();
        self.engine
            .as_mut()
            .unwrap()
            .on_event(NOW, event, &mut self.mem, &mut out);
        self.carry_out(out);
    }

    /// Goes on until nothing is in flight.
    pub fn settle(&mut self) {
        self.kick();
        while self.step() {
            self.kick();
        }
    }

    /// Goes on until nothing but writes at this offset is in flight.
    pub fn settle_but(&mut self, held: u64) {
        loop {
            self.kick();
            let is_held =
                |flying: &Flying| matches!(flying, Flying::Write { offset, .. } if *offset == held);
            let Some(at) = self.flying.iter().position(|flying| !is_held(flying)) else {
                return;
            };
            self.step_at(at);
        }
    }

    /// Does one operation to its end.
    pub fn finish(&mut self, op: u64) -> Answer {
        self.settle();
        self.answers
            .remove(&op)
            .unwrap_or_else(|| panic!("operation {op} was not answered"))
    }

    /// Stores a shard of this number and length.
    pub fn store(&mut self, number: u64, len: usize) {
        let op = self.write_shard(shard(number), &payload(number, len));
        assert_eq!(self.finish(op), Answer::Durable, "shard {number}");
    }

    /// Reads a shard, whole.
    pub fn fetch(&mut self, number: u64) -> Answer {
        let op = self.read(shard(number), 0, u32::MAX);
        self.finish(op)
    }

    /// Where the payload of a shard stands on the disk.
    pub fn locate(&self, number: u64, len: usize) -> u64 {
        self.disk
            .find(&payload(number, len), 4096)
            .expect("it is on the disk")
    }

    pub fn shutdown(&mut self) -> Answer {
        let op = self.submit(|op| Event::Shutdown { op });
        let answer = self.finish(op);
        self.engine = None;
        answer
    }

    /// The process is gone; what it had in flight is handed back.
    pub fn die(&mut self) -> Vec<(u64, Vec<u8>)> {
        self.engine = None;
        (self.auditing, self.audited) = (None, None);
        self.answers.clear();
        let mut writes = Vec::new();
        for flying in self.flying.drain(..) {
            if let Flying::Write {
                offset, buf, len, ..
            } = flying
            {
                writes.push((offset, buf[..len].to_vec()));
            }
        }
        writes
    }

    /// Everything stops; only what is on the disk is left.
    pub fn crash(&mut self, how: Crash) {
        let writes = self.die();
        match how {
            Crash::Power => {
                self.disk.power_off(&writes, &mut self.rng);
            }
            Crash::Kill => self.disk.kill(&writes, &mut self.rng),
        }
    }
}

/// What an opening gave, without the engine.
pub struct Opened2 {
    pub journal: Vec<ashlar_node_engine::opening::JournalRecord>,
    pub damaged: Vec<ashlar_node_engine::opening::DamagedJournal>,
    pub roots: Vec<ashlar_node_engine::opening::IndexRoot>,
    pub damaged_roots: Vec<ashlar_node_engine::opening::DamagedRoot>,
    pub report: ashlar_node_engine::opening::RecoveryReport,
}
