//! Recovery: from a raw device to a running engine.
//!
//! superblock copies → elect and check → checkpoint → extent headers → trailers → scans of what is
//! not sealed → tables, newest extent first → newest roots → (what is in doubt written again →) flush →
//! superblock turned → engine.
//!
//! Invariants:
//! - Nothing is written until everything was read, and then only the superblock and, after a failure,
//!   what stands there already. A device of another cluster, of a newer format, or truncated, is left
//!   as it is.
//! - The device is flushed before the superblock is turned: what recovery saw is durable from then on,
//!   so that another crash shows the same. (What a killed process had written may be in the cache only.)
//! - A flush is no proof once one has failed: what that one was to make durable may have been dropped, and
//!   be read all the same until power fails. So after a failure what is in doubt is first written again
//!   (the module `rewrite` says what that is).
//! - Tables are taken in from the newest incarnation to the oldest, and each table's tombstones before
//!   its shards: a tombstone stands in an extent that was opened no earlier than its record's, so it is
//!   known before its record is met.
//! - What cannot be read is neither free nor absent: such an extent is never written in this session,
//!   and tombstones that seem to kill nothing are kept.
//! - An unsealed extent is appended to again only if it is the newest of its kind, and its header and
//!   every block of it could be read; and then behind everything in it whose head was recognised. Other
//!   unsealed extents are sealed. (Were an older one appended to, a tombstone could be older than its
//!   record.)
//! - An extent whose header is not valid may still hold records, unless it lies further above all used
//!   ones than extents can be open at once: the lowest free number is always opened first.

use std::collections::HashMap;

use ashlar_layout::checkpoint::{Checkpoint, ExtentState};
use ashlar_layout::ids::DeviceId;
use ashlar_layout::limits::{
    DEVICE_SIZE_MIN, EXTENT_SIZE_MAX, SUPERBLOCK_COPIES, SUPERBLOCK_STRIDE_MIN,
};
use ashlar_layout::superblock::{self, COUNTER_MAX, SUPERBLOCK_LEN, Superblock, SuperblockError};
use ashlar_layout::time::Instant;

use crate::api::{Action, Event, IoFailure, Memory};
use crate::checkpoint::{INCARNATIONS_RESERVED, RECORDS_RESERVED};
use crate::engine::Numbers;
use crate::error::{EngineError, FindingKind, OpenError, extent_finding};
pub use crate::opened::{
    DamagedJournal, DamagedRoot, IndexRoot, JournalRecord, OpenParams, Opened, RecoveryReport,
};
use crate::recovery::{Queue, Want, Work};
use crate::superblocks::{Progress, Superblocks};

/// Reads under way at once.
const DEPTH: usize = 32;
/// Pieces that are being written again at once.
const REWRITE_DEPTH: usize = 4;

/// Opens a device. Ends when [`Opening::start`] or [`Opening::on_event`] returns something.
pub struct Opening<M: Memory> {
    params: OpenParams,
    phase: Phase,
    pub(crate) ios: HashMap<u64, Want>,
    pub(crate) next_io: u64,
    pub(crate) queue: Queue,
    stride: u64,
    pub(crate) copies: [Option<Superblock>; SUPERBLOCK_COPIES],
    faults: [Option<CopyFault>; SUPERBLOCK_COPIES],
    pub(crate) superblocks: Option<Superblocks<M::Buf>>,
    pub(crate) work: Option<Box<Work>>,
    pub(crate) report: RecoveryReport,
}

enum CopyFault {
    Unreadable,
    Bad(SuperblockError),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Copies,
    Checkpoint,
    Headers,
    Trailers,
    Scans,
    Tables,
    Roots,
    Rewrite,
    Flush,
    Turn,
    Ended,
}

impl<M: Memory> Opening<M> {
    /// Nothing is read before [`Opening::start`].
    pub fn new(params: OpenParams) -> Opening<M> {
        Opening {
            params,
            phase: Phase::Copies,
            ios: HashMap::new(),
            next_io: 1,
            queue: Vec::new(),
            stride: SUPERBLOCK_STRIDE_MIN,
            copies: [const { None }; SUPERBLOCK_COPIES],
            faults: [const { None }; SUPERBLOCK_COPIES],
            superblocks: None,
            work: None,
            report: RecoveryReport::default(),
        }
    }

    /// Begins.
    pub fn start(
        &mut self,
        mem: &mut M,
        out: &mut Vec<Action<M::Buf>>,
    ) -> Option<Result<Opened<M>, OpenError>> {
        if self.params.device_size < DEVICE_SIZE_MIN {
            let got = self.params.device_size;
            self.phase = Phase::Ended;
            return Some(Err(OpenError::TooSmall {
                expected: DEVICE_SIZE_MIN,
                got,
            }));
        }
        self.ask_copies(0);
        self.go_on(mem, out)
    }

    /// Takes an event. Operations are refused: nothing is open yet.
    pub fn on_event(
        &mut self,
        _now: Instant,
        event: Event<M::Buf>,
        mem: &mut M,
        out: &mut Vec<Action<M::Buf>>,
    ) -> Option<Result<Opened<M>, OpenError>> {
        let op = match event {
            Event::IoDone { io, result, buf } => return self.io_done(io, result, buf, mem, out),
            Event::WriteShard { op, .. }
            | Event::AppendJournal { op, .. }
            | Event::ReadShard { op, .. }
            | Event::ReadJournal { op, .. }
            | Event::WriteIndex { op, .. }
            | Event::ReadIndex { op, .. }
            | Event::SyncIndex { op }
            | Event::WriteRoot { op, .. }
            | Event::DeleteShard { op, .. }
            | Event::Audit { op, .. }
            | Event::Census { op, .. }
            | Event::Shutdown { op } => op,
            Event::HoldIndex { .. }
            | Event::FreeIndex { .. }
            | Event::KeepIndex { .. }
            | Event::TrimJournal { .. }
            | Event::ForgetPartition { .. } => return None,
        };
        let device = self
            .work
            .as_ref()
            .map_or(DeviceId::default(), |work| work.device);
        let error = EngineError::Busy {
            device,
            what: "it is being opened",
        };
        out.push(Action::Done {
            op,
            result: Err(error),
        });
        None
    }

    fn io_done(
        &mut self,
        io: u64,
        result: Result<(), IoFailure>,
        buf: Option<M::Buf>,
        mem: &mut M,
        out: &mut Vec<Action<M::Buf>>,
    ) -> Option<Result<Opened<M>, OpenError>> {
        if self.phase == Phase::Ended {
            return None;
        }
        let ended = match self.ios.remove(&io) {
            Some(Want::Flush) => self.flushed(result, mem, out),
            Some(Want::Rewritten { at }) => self.rewritten(at, result),
            Some(want) => self.taken(want, result.is_ok().then_some(buf).flatten(), out),
            None => self.turned(io, result, out),
        };
        let ended = match ended {
            Ok(None) => self.go_on(mem, out),
            Ok(Some(opened)) => Some(Ok(*opened)),
            Err(error) => Some(Err(error)),
        };
        if ended.is_some() {
            self.phase = Phase::Ended;
        }
        ended
    }

    /// Starts what reads it can, and goes to the next phase when there are none left.
    fn go_on(
        &mut self,
        mem: &mut M,
        out: &mut Vec<Action<M::Buf>>,
    ) -> Option<Result<Opened<M>, OpenError>> {
        loop {
            let depth = match self.phase {
                Phase::Rewrite => REWRITE_DEPTH,
                _ => DEPTH,
            };
            while self.ios.len() < depth
                && let Some((want, offset, len)) = self.queue.pop()
            {
                let Some(buf) = mem.alloc(len) else {
                    if want == Want::Checkpoint {
                        // It only saves reading.
                        continue;
                    }
                    self.queue.push((want, offset, len));
                    if self.ios.is_empty() {
                        self.phase = Phase::Ended;
                        return Some(Err(OpenError::NoMemory { len }));
                    }
                    return None;
                };
                self.report.bytes_read += len as u64;
                self.ios.insert(self.next_io, want);
                out.push(Action::Read {
                    io: self.next_io,
                    offset,
                    buf,
                    len,
                });
                self.next_io += 1;
            }
            if !self.ios.is_empty() || matches!(self.phase, Phase::Flush | Phase::Turn) {
                return None;
            }
            if let Err(error) = self.advance(out) {
                self.phase = Phase::Ended;
                return Some(Err(error));
            }
        }
    }

    /// All that this phase asked for is there.
    fn advance(&mut self, out: &mut Vec<Action<M::Buf>>) -> Result<(), OpenError> {
        match self.phase {
            Phase::Copies => self.elect(out)?,
            Phase::Checkpoint => {
                self.phase = Phase::Headers;
                if let Some(work) = &mut self.work {
                    work.ask_headers(&mut self.queue);
                }
            }
            Phase::Headers => {
                self.phase = Phase::Trailers;
                if let Some(work) = &mut self.work {
                    work.ask_trailers(&mut self.queue);
                }
            }
            Phase::Trailers => {
                self.phase = Phase::Scans;
                if let Some(work) = &mut self.work {
                    work.choose_scans();
                }
            }
            Phase::Scans => {
                let work = self.work.as_mut();
                if !work.is_some_and(|work| work.next_scan(&mut self.queue)) {
                    self.phase = Phase::Tables;
                    if let Some(work) = &mut self.work {
                        work.order_tables();
                    }
                }
            }
            Phase::Tables => {
                let Opening {
                    work,
                    queue,
                    report,
                    ..
                } = self;
                if let Some(work) = work {
                    work.take_tables(report);
                    if work.ask_tables(queue) {
                        return Ok(());
                    }
                }
                self.phase = Phase::Roots;
            }
            Phase::Roots => {
                let work = self.work.as_mut();
                if !work.is_some_and(|work| work.ask_roots(&mut self.queue)) {
                    self.phase = Phase::Rewrite;
                    self.ask_doubtful();
                }
            }
            Phase::Rewrite => {
                self.phase = Phase::Flush;
                self.ios.insert(self.next_io, Want::Flush);
                out.push(Action::Flush { io: self.next_io });
                self.next_io += 1;
            }
            Phase::Flush | Phase::Turn | Phase::Ended => {}
        }
        Ok(())
    }

    fn ask_copies(&mut self, from: u8) {
        for copy in (from..SUPERBLOCK_COPIES as u8).rev() {
            let offset = u64::from(copy) * self.stride;
            if self.copies[usize::from(copy)].is_none()
                && offset + SUPERBLOCK_LEN as u64 <= self.params.device_size
            {
                self.queue.push((Want::Copy(copy), offset, SUPERBLOCK_LEN));
            }
        }
    }

    /// An answer to a read; `None` if it failed.
    fn taken(
        &mut self,
        want: Want,
        buf: Option<M::Buf>,
        out: &mut Vec<Action<M::Buf>>,
    ) -> Result<Option<Box<Opened<M>>>, OpenError> {
        let bytes = buf.as_deref();
        if let Want::Copy(copy) = want {
            let at = usize::from(copy);
            match bytes.map(Superblock::decode) {
                Some(Ok(superblock)) => {
                    self.copies[at] = Some(superblock);
                    self.faults[at] = None;
                }
                Some(Err(error)) => self.faults[at] = Some(CopyFault::Bad(error)),
                None => self.faults[at] = Some(CopyFault::Unreadable),
            }
            return Ok(None);
        }
        if want == Want::Checkpoint {
            self.take_checkpoint(bytes, out);
            return Ok(None);
        }
        if let Want::Doubtful(piece) = want {
            return self.rewrite(piece, buf, out).map(|()| None);
        }
        let mut findings = Vec::new();
        let Opening {
            work,
            queue,
            report,
            ..
        } = self;
        if let Some(work) = work {
            match want {
                Want::Header(no) => work.take_header(no, bytes, &mut findings),
                Want::Trailer(no) => work.take_trailer(no, bytes, &mut findings),
                Want::Scan(no) => work.take_scan(no, bytes, queue, report, &mut findings),
                Want::Footer(no) => work.take_footer(no, bytes, queue, report, &mut findings),
                Want::Root(partition) => work.take_root(partition, bytes, &mut findings),
                Want::Copy(_)
                | Want::Checkpoint
                | Want::Doubtful(_)
                | Want::Rewritten { .. }
                | Want::Flush => {}
            }
        }
        for finding in findings {
            self.report.findings[finding.kind.number()] += 1;
            out.push(Action::Finding(finding));
        }
        Ok(None)
    }

    /// Believes a superblock, and checks that the device is ours to open.
    fn elect(&mut self, out: &mut Vec<Action<M::Buf>>) -> Result<(), OpenError> {
        let current = match superblock::elect(&self.copies) {
            Ok(current) => current,
            Err(error) => {
                // Larger extents put the copies further apart.
                let known = self
                    .copies
                    .iter()
                    .flatten()
                    .map(|copy| copy.extent_size)
                    .max();
                let next = known.unwrap_or(self.stride * 2).max(self.stride * 2);
                if next <= EXTENT_SIZE_MAX && next < self.params.device_size {
                    self.stride = next;
                    for at in 1..SUPERBLOCK_COPIES {
                        self.copies[at] = None;
                    }
                    self.ask_copies(1);
                    return Ok(());
                }
                return Err(self.no_superblock(&error));
            }
        };
        let OpenParams {
            cluster,
            device,
            device_size,
            logical_block,
            ..
        } = self.params;
        if current.cluster != cluster {
            return Err(OpenError::WrongCluster {
                expected: cluster,
                got: current.cluster,
            });
        }
        if let Some(expected) = device.filter(|device| *device != current.device) {
            return Err(OpenError::WrongDevice {
                expected,
                got: current.device,
            });
        }
        if device_size < current.device_size {
            let expected = current.device_size;
            return Err(OpenError::Truncated {
                expected,
                got: device_size,
            });
        }
        if !current.block_size.is_multiple_of(logical_block.max(1)) {
            let expected = current.block_size;
            return Err(OpenError::BlockSize {
                expected,
                got: logical_block,
            });
        }
        let (device, geometry) = (current.device, current.geometry());
        for (copy, superblock) in (0u8..).zip(&self.copies) {
            let good = superblock
                .as_ref()
                .is_some_and(|superblock| superblock.copy == copy);
            if !good {
                let offset = superblock::offset(copy, current.extent_size);
                let kind = FindingKind::Superblock;
                let finding = extent_finding(kind, device, offset, SUPERBLOCK_LEN as u64);
                self.report.findings[kind.number()] += 1;
                out.push(Action::Finding(finding));
            }
        }
        if let Some(named) = current.checkpoint {
            let len = u64::from(named.len).next_multiple_of(u64::from(current.block_size));
            let inside = named.offset.is_multiple_of(u64::from(current.block_size))
                && named.offset.saturating_add(len) <= current.device_size;
            if inside && named.len > 0 {
                self.queue
                    .push((Want::Checkpoint, named.offset, len as usize));
            }
        }
        // A life that did not end in order may have ended by a failed flush, whoever remembers that.
        let doubt = (!current.clean).then_some(current.owner_epoch);
        self.work = Some(Box::new(Work::new(geometry, device, doubt)));
        self.superblocks = Some(Superblocks::new(current, &self.copies));
        self.phase = Phase::Checkpoint;
        Ok(())
    }

    /// Why no superblock could be believed: the most telling of what the copies hold.
    fn no_superblock(&self, error: &superblock::ElectError) -> OpenError {
        let bad = || {
            self.faults.iter().filter_map(|fault| match fault {
                Some(CopyFault::Bad(error)) => Some(error),
                _ => None,
            })
        };
        for fault in bad() {
            if let SuperblockError::NewerVersion {
                expected,
                got_major,
                ..
            } = fault
            {
                return OpenError::NewerVersion {
                    expected: *expected,
                    got: *got_major,
                };
            }
        }
        let unreadable = self
            .faults
            .iter()
            .any(|fault| matches!(fault, Some(CopyFault::Unreadable)));
        let ours = self.copies.iter().any(Option::is_some)
            || bad().any(|fault| {
                !matches!(
                    fault,
                    SuperblockError::Blank | SuperblockError::Foreign { .. }
                )
            });
        let mut what = error.to_string();
        for (copy, fault) in self.faults.iter().enumerate() {
            match fault {
                Some(CopyFault::Unreadable) => what += &format!("; copy {copy}: cannot be read"),
                Some(CopyFault::Bad(error)) => what += &format!("; copy {copy}: {error}"),
                None => {}
            }
        }
        if ours || unreadable {
            OpenError::NoQuorum { what }
        } else {
            OpenError::NotFormatted { what }
        }
    }

    fn take_checkpoint(&mut self, bytes: Option<&[u8]>, out: &mut Vec<Action<M::Buf>>) {
        let (Some(work), Some(superblocks)) = (&mut self.work, &self.superblocks) else {
            return;
        };
        let current = superblocks.current();
        let Some(named) = current.checkpoint else {
            return;
        };
        let checkpoint = bytes
            .and_then(|bytes| Checkpoint::decode(bytes, current.device, &named).ok())
            .filter(|checkpoint| checkpoint.extents.len() == work.seen.len());
        let Some(checkpoint) = checkpoint else {
            let kind = if bytes.is_some() {
                FindingKind::Checkpoint
            } else {
                FindingKind::Unreadable
            };
            let len = u64::from(named.len);
            let finding = extent_finding(kind, current.device, named.offset, len);
            self.report.findings[kind.number()] += 1;
            out.push(Action::Finding(finding));
            return;
        };
        self.report.clean = current.clean;
        work.clean = current.clean;
        for (no, (seen, entry)) in (0u32..).zip(work.seen.iter_mut().zip(&checkpoint.extents)) {
            seen.floor = entry.incarnation;
            seen.skip = current.clean && entry.state == ExtentState::Free;
            if entry.incarnation.0 > 0 {
                work.highest = Some(no);
            }
        }
    }

    fn flushed(
        &mut self,
        result: Result<(), IoFailure>,
        mem: &mut M,
        out: &mut Vec<Action<M::Buf>>,
    ) -> Result<Option<Box<Opened<M>>>, OpenError> {
        let Some(superblocks) = &mut self.superblocks else {
            return Ok(None);
        };
        let device = superblocks.current().device;
        if let Err(failure) = result {
            return Err(OpenError::Write {
                device,
                operation: "flush",
                offset: 0,
                failure,
            });
        }
        let current = superblocks.current();
        let exhausted = |what| OpenError::NumbersExhausted { device, what };
        // A counter above the highest that is believed would never be read again.
        let raised = |from: u64, by: u64, what| {
            let raised = from.checked_add(by).filter(|raised| *raised <= COUNTER_MAX);
            raised.ok_or(exhausted(what))
        };
        let incarnations = raised(
            current.incarnation_ceiling,
            INCARNATIONS_RESERVED,
            "incarnations",
        )?;
        let what = "record sequence numbers";
        let records = raised(current.record_ceiling, RECORDS_RESERVED, what)?;
        let owner = raised(current.owner_epoch.0, 1, "owner epochs")?;
        raised(superblocks.newest(), 1, "superblock sequence numbers")?;
        self.phase = Phase::Turn;
        let change = |next: &mut Superblock| {
            next.owner_epoch.0 = owner;
            next.incarnation_ceiling = incarnations;
            next.record_ceiling = records;
            next.clean = false;
        };
        if superblocks.start(change, mem, &mut self.next_io, out) {
            Ok(None)
        } else {
            Err(OpenError::NoMemory {
                len: SUPERBLOCK_LEN,
            })
        }
    }

    fn turned(
        &mut self,
        io: u64,
        result: Result<(), IoFailure>,
        out: &mut Vec<Action<M::Buf>>,
    ) -> Result<Option<Box<Opened<M>>>, OpenError> {
        let Some(superblocks) = &mut self.superblocks else {
            return Ok(None);
        };
        let device = superblocks.current().device;
        // What may have been used lies below the ceilings of the superblock that was believed.
        let incarnation = superblocks.current().incarnation_ceiling;
        let record = superblocks.current().record_ceiling;
        match superblocks.done(io, result, &mut self.next_io, out) {
            Progress::NotMine | Progress::Waiting => return Ok(None),
            Progress::Failed(offset, failure) => {
                let operation = "write of the superblock";
                return Err(OpenError::Write {
                    device,
                    operation,
                    offset,
                    failure,
                });
            }
            Progress::Turned => {}
        }
        let (Some(superblocks), Some(work)) = (self.superblocks.take(), self.work.take()) else {
            return Ok(None);
        };
        let numbers = Numbers {
            incarnation,
            incarnation_ceiling: superblocks.current().incarnation_ceiling,
            record,
            record_ceiling: superblocks.current().record_ceiling,
        };
        let report = std::mem::take(&mut self.report);
        let volatile_cache = self.params.volatile_cache;
        let opened =
            work.hand_over::<M>(superblocks, numbers, volatile_cache, self.next_io, report);
        Ok(Some(Box::new(opened)))
    }
}
