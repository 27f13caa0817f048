//! Keeping the superblock: reserving numbers, checkpoints, and closing in order.
//!
//! A checkpoint is the extent table, in an extent of its own, named by the superblock. It only saves
//! reading: a device that was closed in order need not be asked which of its extents are free.
//!
//! Invariants:
//! - A number is used only below the ceiling that is durable in the superblock. Ceilings are raised
//!   long before they are reached; if they were reached, appends would wait.
//! - A checkpoint calls an extent free only if no tombstone elsewhere is kept because of it. (Of an extent of the
//!   journal or the index none is. One of these that a clean device calls free holds nothing that anybody
//!   needed: its trimmed records and its old roots are not even seen by the next opening. A dead
//!   extent that still pins a tombstone must be read at the next opening, or that tombstone would
//!   seem to kill nothing, be dropped, and its record come back by a later crash.)
//! - The incarnation that a checkpoint tells of an extent is one whose header was durable before: a
//!   valid header with a lower one is the trace of a lost write.
//! - The extent of the former checkpoint is freed when the superblock durably names the new one.
//! - "Clean" is said only when nothing is under way and nothing more will be accepted; the next
//!   opening unsays it before it writes anything else.

use ashlar_layout::checkpoint::{Checkpoint, ExtentEntry, ExtentState};
use ashlar_layout::extent::ExtentKind;
use ashlar_layout::ids::ExtentNo;
use ashlar_layout::superblock::{COUNTER_MAX, CheckpointRef};

use crate::api::{Action, IoFailure, Memory, Output};
use crate::append::{OpenExtent, TOMBSTONE_RESERVE};
use crate::engine::{Engine, Numbers, Purpose, Status};
use crate::extents::State;
use crate::superblocks::Progress;

/// Sealed extents between checkpoints.
const CHECKPOINT_SEALS: u32 = 64;
/// Record sequence numbers reserved at a time. An opening gives up what was left of the former ones,
/// and has to be possible more often than anybody can do it: `COUNTER_MAX / RECORDS_RESERVED` times.
pub(crate) const RECORDS_RESERVED: u64 = 1 << 32;
/// Incarnations reserved at a time; as above.
pub(crate) const INCARNATIONS_RESERVED: u64 = 1 << 24;

/// What is being done to checkpoint and superblock.
pub(crate) enum Keeping {
    /// Nothing.
    Idle,
    /// A checkpoint is on its way.
    Writing {
        extent: ExtentNo,
        reference: CheckpointRef,
        clean: bool,
    },
    /// The superblock is being turned, to name a checkpoint or to raise the ceilings.
    Turning {
        numbers: (u64, u64),
        superseded: Option<ExtentNo>,
        clean: bool,
    },
}

impl Numbers {
    fn low(&self) -> bool {
        let (incarnation, record) = self.ceilings();
        let low = self.record_ceiling.saturating_sub(self.record) < RECORDS_RESERVED / 2
            || self.incarnation_ceiling.saturating_sub(self.incarnation)
                < INCARNATIONS_RESERVED / 2;
        // At the highest that is believed there is no more to reserve.
        low && (record > self.record_ceiling || incarnation > self.incarnation_ceiling)
    }

    /// Ceilings for the next superblock.
    pub fn ceilings(&self) -> (u64, u64) {
        (
            self.incarnation
                .saturating_add(INCARNATIONS_RESERVED)
                .min(COUNTER_MAX)
                .max(self.incarnation_ceiling),
            self.record
                .saturating_add(RECORDS_RESERVED)
                .min(COUNTER_MAX)
                .max(self.record_ceiling),
        )
    }
}

impl<M: Memory> Engine<M> {
    /// Raises the ceilings in time, and writes the superblock once more if an audit found a bad copy.
    pub(crate) fn keep_numbers(&mut self, mem: &mut M, out: &mut Vec<Action<M::Buf>>) {
        let due = self.numbers.low() || (self.audit.turn_wanted && self.status == Status::Serving);
        if matches!(self.keeping, Keeping::Idle) && due && self.turn(None, false, mem, out) {
            self.audit.turn_wanted = false;
        }
    }

    /// Writes a checkpoint when it is time to, and closes the device when all is done.
    pub(crate) fn keep_checkpoint(&mut self, mem: &mut M, out: &mut Vec<Action<M::Buf>>) {
        if !matches!(self.keeping, Keeping::Idle) {
            return;
        }
        if self.shutdown.is_some() {
            let idle = self.streams.iter().all(|stream| stream.idle())
                && self.seals.is_empty()
                && self.reads.is_empty()
                && self.syncs.is_empty()
                && self.ios.is_empty();
            if idle && !self.start_checkpoint(true, mem, out) {
                // Full, or out of buffers: the next opening looks at every extent.
                self.closed(out);
            }
        } else if self.checkpoint_due() && self.may_open() {
            self.seals_since_checkpoint = 0;
            self.start_checkpoint(false, mem, out);
        }
    }

    /// The one that there is cannot be used: the next one is written at once, if there is room for it.
    pub(crate) fn want_checkpoint(&mut self) {
        self.seals_since_checkpoint = CHECKPOINT_SEALS;
    }

    /// Whether it is time to write one.
    pub(crate) fn checkpoint_due(&self) -> bool {
        self.seals_since_checkpoint >= CHECKPOINT_SEALS && matches!(self.keeping, Keeping::Idle)
    }

    fn start_checkpoint(
        &mut self,
        clean: bool,
        mem: &mut M,
        out: &mut Vec<Action<M::Buf>>,
    ) -> bool {
        let block = self.geometry.block_size as usize;
        let len = ashlar_layout::checkpoint::checkpoint_len(self.extents.count()) as usize;
        let Some(mut buf) = mem.alloc(block + len.next_multiple_of(block)) else {
            return false;
        };
        let Some(incarnation) = self.take_incarnation() else {
            return false;
        };
        // While the device serves, shards come first; the last free extent is for tombstones.
        let reserve = if clean {
            TOMBSTONE_RESERVE
        } else {
            self.extents.reserve()
        };
        let Some(no) = self
            .extents
            .open(ExtentKind::Checkpoint, incarnation, reserve)
        else {
            return false;
        };
        let pos = self.geometry.extent_start(no);
        let open = OpenExtent {
            no,
            incarnation,
            pos,
            entries: Vec::new(),
            spare: false,
        };
        let header = self.extent_header(&open, pos).encode();
        let checkpoint = Checkpoint {
            device: self.device,
            extent: no,
            incarnation,
            owner_epoch: self.owner_epoch,
            address: self.geometry.records_start(no),
            record_sequence: self.numbers.record,
            extents: self.table(),
        };
        let (bytes, reference) = checkpoint.encode(self.geometry.block_size);
        buf[..block].fill(0);
        buf[..header.len()].copy_from_slice(&header);
        buf[block..block + bytes.len()].copy_from_slice(&bytes);
        self.keeping = Keeping::Writing {
            extent: no,
            reference,
            clean,
        };
        let io = self.io(Purpose::Checkpoint);
        let len = block + bytes.len();
        out.push(Action::Write {
            io,
            offset: pos,
            buf,
            len,
            durable: true,
        });
        true
    }

    /// The extent of the checkpoint that the superblock names, unless something else is there by now.
    fn former_checkpoint(&self) -> Option<ExtentNo> {
        let named = self.superblocks.current().checkpoint?;
        let known = named.extent.0 < self.extents.count();
        let extent = known.then(|| self.extents.get(named.extent))?;
        let same = extent.state == State::Open
            && extent.kind == Some(ExtentKind::Checkpoint)
            && extent.incarnation == named.incarnation;
        same.then_some(named.extent)
    }

    /// The extent table, as a checkpoint tells it.
    fn table(&self) -> Vec<ExtentEntry> {
        let former = self.former_checkpoint();
        let entry = |(no, extent): (ExtentNo, &crate::extents::Extent)| {
            let state = match extent.state {
                State::Free if extent.is_killed_elsewhere() => ExtentState::Sealed,
                _ if former == Some(no) => ExtentState::Free,
                State::Free => ExtentState::Free,
                State::Open => ExtentState::Open,
                State::Sealed => ExtentState::Sealed,
                State::Quarantined => ExtentState::Retired,
            };
            let kind = if state == ExtentState::Free {
                None
            } else {
                extent.kind
            };
            ExtentEntry {
                state,
                kind,
                incarnation: extent.durable,
                records: extent.live,
                used_blocks: 0,
                live_bytes: extent.live_bytes,
            }
        };
        self.extents.iter().map(entry).collect()
    }

    pub(crate) fn checkpoint_written(
        &mut self,
        result: Result<(), IoFailure>,
        mem: &mut M,
        out: &mut Vec<Action<M::Buf>>,
    ) {
        let Keeping::Writing {
            extent,
            reference,
            clean,
        } = std::mem::replace(&mut self.keeping, Keeping::Idle)
        else {
            return;
        };
        if let Err(failure) = result {
            return self.fence("write of a checkpoint", reference.offset, failure, out);
        }
        self.extents.header_durable(extent);
        if !self.turn(Some(reference), clean, mem, out) {
            // No buffer: this checkpoint is given up.
            self.extents.release(extent);
            if clean {
                self.closed(out);
            }
        }
    }

    /// Turns the superblock; false if there is no buffer for it.
    fn turn(
        &mut self,
        checkpoint: Option<CheckpointRef>,
        clean: bool,
        mem: &mut M,
        out: &mut Vec<Action<M::Buf>>,
    ) -> bool {
        let (incarnation, record) = self.numbers.ceilings();
        let former = self.former_checkpoint();
        let superseded = checkpoint.and(former);
        let change = |next: &mut ashlar_layout::superblock::Superblock| {
            next.incarnation_ceiling = incarnation;
            next.record_ceiling = record;
            next.checkpoint = checkpoint.or(next.checkpoint);
            next.clean = clean;
        };
        let started = self.superblocks.start(change, mem, &mut self.next_io, out);
        if started {
            self.keeping = Keeping::Turning {
                numbers: (incarnation, record),
                superseded,
                clean,
            };
        }
        started
    }

    pub(crate) fn superblock_done(
        &mut self,
        io: u64,
        result: Result<(), IoFailure>,
        out: &mut Vec<Action<M::Buf>>,
    ) {
        match self.superblocks.done(io, result, &mut self.next_io, out) {
            Progress::NotMine | Progress::Waiting => {}
            Progress::Failed(offset, failure) => {
                self.fence("write of the superblock", offset, failure, out);
            }
            Progress::Turned => {
                let keeping = std::mem::replace(&mut self.keeping, Keeping::Idle);
                let Keeping::Turning {
                    numbers,
                    superseded,
                    clean,
                } = keeping
                else {
                    return;
                };
                (
                    self.numbers.incarnation_ceiling,
                    self.numbers.record_ceiling,
                ) = numbers;
                if let Some(extent) = superseded {
                    self.extents.release(extent);
                }
                if clean {
                    self.closed(out);
                }
            }
        }
    }

    /// All that was accepted is durable.
    fn closed(&mut self, out: &mut Vec<Action<M::Buf>>) {
        self.status = Status::ShutDown;
        if let Some(op) = self.shutdown.take() {
            out.push(Action::Done {
                op,
                result: Ok(Output::ShutDown),
            });
        }
    }
}
