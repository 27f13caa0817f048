//! The audit of a device by itself: superblock, checkpoint, extents and index, a step at a time. [`crate::auditing`]
//! looks at extents, [`crate::walking`] goes through the index.
//!
//! | step | what has to be so |
//! |---|---|
//! | superblocks | each of the four copies is whole, stands where it belongs, and is the one that is believed |
//! | checkpoint | the one that the superblock names is whole, and the header of its extent is its own |
//! | extent | header and footer are whole and of its present life; of data: table and index agree, both ways |
//! | index | each slot points into an extent that is in use for data, and inside of it; all are counted with one |
//!
//! Invariants:
//! - Nothing is changed by looking, and a read that fails fences nothing. What follows from a finding is what happens
//!   anyway: the superblock is turned, the copies that are bad first; the next checkpoint is written. All else is told
//!   only. No turn follows where a copy is whole and is not of a turn that this engine made: somebody else may have.
//! - A finding is told when two looks in a row came to the same; of the index, which is looked at in one event, when
//!   one did. What is compared is compared in one event, in which
//!   neither the device's table (of a sealed extent, in one life) nor memory can change; a look during which the
//!   superblock was turned, or the extent freed, opened or cleaned, counts for nothing.
//! - One step at a time. It always has a read under way, or is answered: it never waits for room, but ends as
//!   [`EngineError::Busy`].
//! - A step reads [`STEP_BYTES`] and one table more at the most, and goes through [`SLOTS_MAX`] slots of the index, or
//!   somewhat more; what is left of it is kept for the event that asks for the same step again. So it is of a step that
//!   there was no room for.
//! - Of each kind [`TOLD_MAX`] findings are told one by one in a pass; the others are only counted.
//! - Where it goes on is a number that it says itself ([`Audited::next`]): whoever drives it keeps nothing else, and
//!   may begin anywhere.

use ashlar_layout::checkpoint::Checkpoint;
use ashlar_layout::extent::{ExtentHeader, ExtentKind};
use ashlar_layout::ids::{ExtentNo, Incarnation};
use ashlar_layout::limits::SUPERBLOCK_COPIES;
use ashlar_layout::stamp::{HeadError, HeadFault, Place};
use ashlar_layout::superblock::{self, CheckpointRef, SUPERBLOCK_LEN, Superblock, SuperblockError};

use crate::api::{Action, IoFailure, Memory, Output};
use crate::auditing::{ExtentLook, KILLERS_MAX};
use crate::engine::{Engine, Purpose, Status};
use crate::error::{EngineError, Finding, FindingKind, extent_finding};
use crate::index::{SLOT_LEN, WALK_END, WALK_SEGMENT};
use crate::superblocks::Holding;

/// Bytes that a step reads at the most, but for the last of its reads.
pub const STEP_BYTES: u64 = 4 * 1024 * 1024;
/// Slots of the index that a step looks at in one event, more or less: a core has other things to do.
pub const SLOTS_MAX: u64 = 4096;
/// Findings of one kind that are told one by one in a pass: a device that cannot be read at all has some of each
/// extent.
pub const TOLD_MAX: u32 = 100;
/// Findings of one step at the most: what is so wrong need not be told block by block.
pub(crate) const FINDINGS_MAX: usize = 64;
/// Looks that may be in vain, because what was looked at changed meanwhile, before a step is left out.
const TRIES_MAX: u32 = 8;

/// A part of a device that is looked at by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// The copies of the superblock: with them a pass begins.
    Superblocks,
    /// The checkpoint that it names.
    Checkpoint,
    /// The first extent from this one on in which something is to be seen.
    Extent(ExtentNo),
    /// The index, from this place in the order of its hashes on: their upper 47 bits. 0 is the beginning.
    Index(u64),
}

impl Step {
    /// What comes behind it, for whom it cannot be made.
    pub fn behind(self) -> Option<Step> {
        match self {
            Step::Superblocks => Some(Step::Checkpoint),
            Step::Checkpoint => Some(Step::Extent(ExtentNo(0))),
            Step::Extent(no) => Some(match no.0.checked_add(1) {
                Some(next) => Step::Extent(ExtentNo(next)),
                None => Step::Index(0),
            }),
            Step::Index(from) => {
                // A segment further.
                let next = (from / WALK_SEGMENT + 1).checked_mul(WALK_SEGMENT);
                next.filter(|next| *next < WALK_END).map(Step::Index)
            }
        }
    }
}

/// What a step came to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Audited {
    /// Where to go on; none at the end of a pass.
    pub next: Option<Step>,
    /// Bytes that were read.
    pub bytes: u64,
    /// Bytes of the index, in memory, that were gone through.
    pub memory: u64,
    /// The kinds of the findings.
    pub found: Vec<FindingKind>,
    /// How many of these were only counted, because there were so many of their kind in this pass.
    pub untold: u64,
    /// It was left out, or a part of it: what was to be looked at changed again and again, or is being cleaned; or
    /// too much would have to be read.
    pub left_out: bool,
}

/// What is being looked at.
pub(crate) struct Audit<B> {
    job: Option<Job<B>>,
    /// Of which only a part is done.
    kept: Option<Job<B>>,
    next: u64,
    /// A copy of the superblock is bad: it is to be written once more.
    pub turn_wanted: bool,
    /// Findings of each kind in this pass, as far as they are told one by one.
    told: [u32; FindingKind::ALL.len()],
    /// [`STEP_BYTES`] and [`SLOTS_MAX`], but for tests.
    pub most: (u64, u64),
    /// [`KILLERS_MAX`], but for tests.
    pub killers: usize,
}

/// A step under way.
pub(crate) struct Job<B> {
    id: u64,
    op: u64,
    /// What was asked for,
    asked_for: Step,
    /// and what that came to: the first extent from there on.
    pub step: Step,
    look: Look,
    /// What is being read: where, how much.
    asked: Vec<(u64, usize)>,
    /// What came of it; none if it could not be read.
    pub got: Vec<Option<B>>,
    left: usize,
    bytes: u64,
    /// Slots of the index that were gone through.
    pub slots: u64,
    tries: u32,
    /// A part of it was left out.
    pub partly: bool,
    /// What this look came to,
    pub found: Vec<Finding>,
    /// and the first one, if this is the second.
    before: Option<Vec<Finding>>,
}

enum Look {
    Copies(CopiesLook),
    Checkpoint(CheckpointRef),
    Extent(Box<ExtentLook>),
    /// Up to where it was gone through.
    Index(u64),
}

/// The copies of the superblock.
#[derive(Clone, Copy)]
struct CopiesLook {
    /// Which was the newest when they were asked for, and whether it was being turned.
    newest: u64,
    turning: bool,
    /// What each came to.
    seen: [CopySeen; SUPERBLOCK_COPIES],
    /// The highest number that one of this device has.
    highest: u64,
}

/// What a copy of the superblock came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum CopySeen {
    /// It is the one that is believed.
    Good,
    Unreadable,
    /// It is not whole, or older, or another copy.
    Bad,
    /// It is whole, and of another device, or of a turn or a version that this engine does not know.
    Strange,
}

/// How a step goes on.
pub(crate) enum Turn {
    /// These have to be read.
    Read(Vec<(u64, usize)>),
    /// All is seen.
    Seen,
    /// Enough for now.
    Keep,
    /// It changed meanwhile.
    Changed,
    /// Nothing of it can be said now.
    LeaveOut,
}

impl<B> Default for Audit<B> {
    fn default() -> Audit<B> {
        Audit {
            job: None,
            kept: None,
            next: 0,
            turn_wanted: false,
            told: [0; FindingKind::ALL.len()],
            most: (STEP_BYTES, SLOTS_MAX),
            killers: KILLERS_MAX,
        }
    }
}

impl<B> Audit<B> {
    /// The operation that waits for a step, which is given up.
    pub fn drain(&mut self) -> Option<u64> {
        self.kept = None;
        self.job.take().map(|job| job.op)
    }
}

impl<B> Job<B> {
    /// Something does not match.
    pub fn suspect(&mut self, finding: Finding) {
        if self.found.len() < FINDINGS_MAX {
            self.found.push(finding);
        }
    }

    /// Takes the bytes of a read, as many as were asked for.
    pub fn bytes(&self, read: usize) -> Option<&[u8]>
    where
        B: std::ops::Deref<Target = [u8]>,
    {
        let (_, len) = self.asked.get(read)?;
        self.got.get(read)?.as_deref()?.get(..*len)
    }
}

/// What a head is called that is not the one that should be there. `other`: if it is merely damaged.
pub(crate) fn head_fault(error: &HeadError, bytes: &[u8], other: FindingKind) -> FindingKind {
    match error.fault {
        HeadFault::OtherDevice { .. } | HeadFault::Misdirected { .. } => FindingKind::Misdirected,
        HeadFault::Stale { .. } => FindingKind::StaleIncarnation,
        HeadFault::Absent { .. } if bytes.iter().all(|byte| *byte == 0) => FindingKind::LostWrite,
        _ => other,
    }
}

/// What the copy of the superblock at this place is, and what is wrong with it.
fn copy_seen(
    at: usize,
    bytes: Option<&[u8]>,
    believed: &Superblock,
) -> (CopySeen, Option<FindingKind>) {
    let Some(bytes) = bytes else {
        return (CopySeen::Unreadable, Some(FindingKind::Unreadable));
    };
    let copy = match Superblock::decode(bytes) {
        Ok(copy) => copy,
        Err(_) if bytes.iter().all(|byte| *byte == 0) => {
            return (CopySeen::Bad, Some(FindingKind::LostWrite));
        }
        Err(
            SuperblockError::Short { .. }
            | SuperblockError::Blank
            | SuperblockError::Foreign { .. }
            | SuperblockError::BadCrc { .. },
        ) => return (CopySeen::Bad, Some(FindingKind::Superblock)),
        // Its checksum is right: somebody meant to write that.
        Err(_) => return (CopySeen::Strange, Some(FindingKind::Superblock)),
    };
    let same = copy.body_crc() == believed.body_crc();
    if (copy.device, copy.cluster) != (believed.device, believed.cluster) {
        (CopySeen::Strange, Some(FindingKind::Misdirected))
    } else if copy.sequence >= believed.sequence && !same {
        (CopySeen::Strange, Some(FindingKind::Superblock))
    } else if usize::from(copy.copy) != at {
        (CopySeen::Bad, Some(FindingKind::Misdirected))
    } else if same {
        (CopySeen::Good, None)
    } else {
        (CopySeen::Bad, Some(FindingKind::LostWrite))
    }
}

impl<M: Memory> Engine<M> {
    /// Takes a step on.
    pub(crate) fn begin_audit(
        &mut self,
        op: u64,
        step: Step,
        mem: &mut M,
        out: &mut Vec<Action<M::Buf>>,
    ) -> Result<(), EngineError> {
        self.accepting()?;
        if self.audit.job.is_some() {
            return Err(EngineError::Busy {
                device: self.device,
                what: "an audit is under way",
            });
        }
        let job = match self.audit.kept.take() {
            Some(kept) if kept.step == step || kept.asked_for == step => Some(Job { op, ..kept }),
            // Whoever asks for what comes behind gives up what was found there, and not the next extent only.
            Some(kept) if kept.asked_for.behind() == Some(step) => {
                let behind = kept.step.behind();
                self.new_job(op, behind.unwrap_or(step))
            }
            _ => self.new_job(op, step),
        };
        match job {
            Some(job) => self.go_on_auditing(job, mem, out),
            None => {
                // No extent is left in which anything is to be seen.
                let next = Some(Step::Index(0));
                let audited = Audited {
                    next,
                    ..Audited::default()
                };
                let result = Ok(Output::Audited(audited));
                out.push(Action::Done { op, result });
            }
        }
        Ok(())
    }

    fn new_job(&mut self, op: u64, step: Step) -> Option<Job<M::Buf>> {
        let id = self.audit.next;
        self.audit.next += 1;
        let asked_for = step;
        let (step, look) = match step {
            Step::Superblocks => {
                // A pass begins.
                self.audit.told = [0; FindingKind::ALL.len()];
                let look = CopiesLook {
                    newest: 0,
                    turning: true,
                    seen: [CopySeen::Good; SUPERBLOCK_COPIES],
                    highest: 0,
                };
                (step, Look::Copies(look))
            }
            Step::Checkpoint => match self.superblocks.current().checkpoint {
                Some(named) => (step, Look::Checkpoint(named)),
                None => return self.new_job(op, Step::Extent(ExtentNo(0))),
            },
            Step::Extent(from) => {
                let look = self.next_extent_look(from)?;
                (Step::Extent(look.no), Look::Extent(Box::new(look)))
            }
            Step::Index(from) => (step, Look::Index(from)),
        };
        Some(Job {
            id,
            op,
            asked_for,
            step,
            look,
            asked: Vec::new(),
            got: Vec::new(),
            left: 0,
            bytes: 0,
            slots: 0,
            tries: 0,
            partly: false,
            found: Vec::new(),
            before: None,
        })
    }

    /// One of its reads has ended.
    pub(crate) fn audit_read(
        &mut self,
        id: u64,
        read: usize,
        result: Result<(), IoFailure>,
        buf: Option<M::Buf>,
        mem: &mut M,
        out: &mut Vec<Action<M::Buf>>,
    ) {
        let Some(mut job) = self.audit.job.take_if(|job| job.id == id) else {
            return;
        };
        if let Some(got) = job.got.get_mut(read) {
            *got = result.ok().and(buf);
        }
        job.left = job.left.saturating_sub(1);
        if job.left > 0 {
            self.audit.job = Some(job);
            return;
        }
        if self.status == Status::Serving {
            return self.go_on_auditing(job, mem, out);
        }
        let device = self.device;
        let result = Err(EngineError::ShuttingDown { device });
        out.push(Action::Done { op: job.op, result });
    }

    /// Goes on with a step until it has to wait for the device, or has ended.
    fn go_on_auditing(&mut self, mut job: Job<M::Buf>, mem: &mut M, out: &mut Vec<Action<M::Buf>>) {
        loop {
            match self.look(&mut job) {
                Turn::Read(reads) if job.bytes < self.audit.most.0 => {
                    return self.ask_for(job, reads, mem, out);
                }
                Turn::Read(reads) => {
                    // It is asked for when somebody comes again.
                    job.asked = reads;
                    return self.keep_job(job, out);
                }
                Turn::Keep => return self.keep_job(job, out),
                Turn::Changed if job.tries < TRIES_MAX => {
                    job.tries += 1;
                    job.found.clear();
                    job.before = None;
                    self.look_again(&mut job);
                }
                Turn::Changed | Turn::LeaveOut => return self.answer_audit(job, true, out),
                Turn::Seen => match job.before.take() {
                    None if job.found.is_empty() => return self.answer_audit(job, false, out),
                    // A second look in the same event would see the same.
                    None if matches!(job.look, Look::Index(_)) => {
                        return self.answer_audit(job, false, out);
                    }
                    None => {
                        job.before = Some(std::mem::take(&mut job.found));
                        self.look_again(&mut job);
                    }
                    Some(before) => {
                        job.found.retain(|finding| before.contains(finding));
                        return self.answer_audit(job, false, out);
                    }
                },
            }
        }
    }

    /// Begins with the same thing once more.
    fn look_again(&self, job: &mut Job<M::Buf>) {
        job.asked.clear();
        job.got.clear();
        job.partly = false;
        match &mut job.look {
            Look::Copies(_) | Look::Index(_) => {}
            Look::Checkpoint(named) => {
                // It is asked for anew: another one may be named by now.
                *named = self.superblocks.current().checkpoint.unwrap_or(*named);
            }
            Look::Extent(look) => look.again(),
        }
    }

    fn look(&mut self, job: &mut Job<M::Buf>) -> Turn {
        if job.got.is_empty() && !job.asked.is_empty() {
            // It was kept.
            return Turn::Read(std::mem::take(&mut job.asked));
        }
        let mut look = std::mem::replace(&mut job.look, Look::Index(0));
        let turn = match &mut look {
            Look::Copies(copies) => self.look_at_copies(job, copies),
            Look::Checkpoint(named) => self.look_at_checkpoint(job, *named),
            Look::Extent(extent) => self.look_at_extent(job, extent),
            Look::Index(to) => {
                *to = self.look_at_index(job);
                Turn::Seen
            }
        };
        job.look = look;
        job.asked.clear();
        job.got.clear();
        turn
    }

    fn ask_for(
        &mut self,
        mut job: Job<M::Buf>,
        reads: Vec<(u64, usize)>,
        mem: &mut M,
        out: &mut Vec<Action<M::Buf>>,
    ) {
        let mut buffers = Vec::with_capacity(reads.len());
        for (_, len) in &reads {
            match mem.alloc(*len) {
                Some(buf) => buffers.push(buf),
                None => {
                    let result = Err(self.no_buffer());
                    out.push(Action::Done { op: job.op, result });
                    // Whoever asks again goes on from here.
                    job.asked = reads;
                    self.audit.kept = Some(job);
                    return;
                }
            }
        }
        job.left = reads.len();
        job.got = reads.iter().map(|_| None).collect();
        for ((at, (offset, len)), buf) in reads.iter().copied().enumerate().zip(buffers) {
            job.bytes += len as u64;
            let io = self.io(Purpose::Audit {
                job: job.id,
                read: at,
            });
            out.push(Action::Read {
                io,
                offset,
                buf,
                len,
            });
        }
        job.asked = reads;
        self.audit.job = Some(job);
    }

    /// A part of it is done: whoever asks for the same step has the rest.
    fn keep_job(&mut self, mut job: Job<M::Buf>, out: &mut Vec<Action<M::Buf>>) {
        let audited = Audited {
            next: Some(job.step),
            bytes: std::mem::take(&mut job.bytes),
            memory: std::mem::take(&mut job.slots) * SLOT_LEN as u64,
            ..Audited::default()
        };
        let result = Ok(Output::Audited(audited));
        out.push(Action::Done { op: job.op, result });
        job.asked_for = job.step;
        self.audit.kept = Some(job);
    }

    /// The step has ended: what was found is told.
    fn answer_audit(
        &mut self,
        mut job: Job<M::Buf>,
        left_out: bool,
        out: &mut Vec<Action<M::Buf>>,
    ) {
        let (mut found, mut untold) = (Vec::new(), 0);
        if !left_out {
            self.follow_up(&job);
            for finding in std::mem::take(&mut job.found) {
                found.push(finding.kind);
                let told = &mut self.audit.told[finding.kind.number()];
                if *told < TOLD_MAX {
                    *told += 1;
                    self.find(finding, out);
                } else {
                    untold += 1;
                    self.findings[finding.kind.number()] += 1;
                }
            }
        }
        let next = match (job.step, &job.look) {
            (Step::Index(_), Look::Index(to)) => (*to < WALK_END).then_some(Step::Index(*to)),
            (step, _) => step.behind(),
        };
        let audited = Audited {
            next,
            bytes: job.bytes,
            memory: job.slots * SLOT_LEN as u64,
            found,
            untold,
            left_out: left_out || job.partly,
        };
        let result = Ok(Output::Audited(audited));
        out.push(Action::Done { op: job.op, result });
    }

    /// Has the ordinary ways mend what they can.
    fn follow_up(&mut self, job: &Job<M::Buf>) {
        match &job.look {
            Look::Copies(copies) => self.mend_copies(copies, &job.found),
            Look::Checkpoint(_) if !job.found.is_empty() => self.want_checkpoint(),
            Look::Checkpoint(_) | Look::Extent(_) | Look::Index(_) => {}
        }
    }

    /// Has the superblock written once more, if that writes over nothing that may be somebody else's, and if it is not
    /// the reading that fails.
    fn mend_copies(&mut self, copies: &CopiesLook, found: &[Finding]) {
        self.superblocks.saw(copies.highest);
        for (copy, seen) in (0u8..).zip(copies.seen) {
            let offset = superblock::offset(copy, self.geometry.extent_size);
            let told = found.iter().any(|finding| finding.offset == offset);
            match seen {
                CopySeen::Unreadable if told => self.superblocks.lost(copy, Holding::Unknown),
                CopySeen::Bad | CopySeen::Strange if told => {
                    self.superblocks.lost(copy, Holding::Not);
                }
                _ => {}
            }
        }
        let strange = copies.seen.contains(&CopySeen::Strange);
        let none_read = copies.seen == [CopySeen::Unreadable; SUPERBLOCK_COPIES];
        self.audit.turn_wanted |= !found.is_empty();
        self.audit.turn_wanted &= !strange && !none_read;
    }

    fn look_at_copies(&self, job: &mut Job<M::Buf>, copies: &mut CopiesLook) -> Turn {
        let extent_size = self.geometry.extent_size;
        let places = (0..SUPERBLOCK_COPIES as u8).map(|copy| superblock::offset(copy, extent_size));
        if job.got.is_empty() {
            copies.newest = self.superblocks.newest();
            copies.turning = self.superblocks.turning();
            return Turn::Read(places.map(|offset| (offset, SUPERBLOCK_LEN)).collect());
        }
        // While it is turned copies may be of the turn before, or in the midst of being written.
        if copies.turning
            || self.superblocks.turning()
            || self.superblocks.newest() != copies.newest
        {
            return Turn::Changed;
        }
        let believed = self.superblocks.current();
        copies.highest = 0;
        for (at, offset) in places.enumerate() {
            let bytes = job.bytes(at);
            let whole = bytes.and_then(|bytes| Superblock::decode(bytes).ok());
            if let Some(ours) = whole.filter(|copy| copy.device == believed.device) {
                copies.highest = copies.highest.max(ours.sequence);
            }
            let (seen, kind) = copy_seen(at, bytes, believed);
            copies.seen[at] = seen;
            if let Some(kind) = kind {
                let len = SUPERBLOCK_LEN as u64;
                job.suspect(extent_finding(kind, self.device, offset, len));
            }
        }
        Turn::Seen
    }

    fn look_at_checkpoint(&self, job: &mut Job<M::Buf>, named: CheckpointRef) -> Turn {
        let device = self.device;
        let block = u64::from(self.geometry.block_size);
        let len = u64::from(named.len).next_multiple_of(block);
        let start = self.geometry.extent_start(named.extent);
        let inside = named.extent.0 < self.extents.count()
            && named.offset.is_multiple_of(block)
            && named.offset >= start
            && named.len > 0
            && named.offset.saturating_add(len) <= self.geometry.extent_end(named.extent);
        let told = |kind| extent_finding(kind, device, named.offset, u64::from(named.len));
        if !inside {
            job.suspect(told(FindingKind::Checkpoint));
            return Turn::Seen;
        }
        if job.got.is_empty() {
            return Turn::Read(vec![(start, block as usize), (named.offset, len as usize)]);
        }
        if self.superblocks.current().checkpoint != Some(named) {
            return Turn::Changed;
        }
        let checkpoint = job
            .bytes(1)
            .map(|bytes| Checkpoint::decode(bytes, device, &named));
        match checkpoint {
            None => job.suspect(told(FindingKind::Unreadable)),
            Some(Ok(it)) if it.extents.len() == self.extents.count() as usize => {}
            Some(_) => job.suspect(told(FindingKind::Checkpoint)),
        }
        if let Some(kind) =
            self.bad_header(job, named.extent, named.incarnation, ExtentKind::Checkpoint)
        {
            job.suspect(extent_finding(kind, device, start, block));
        }
        Turn::Seen
    }

    /// What is wrong with the header of an extent, which was read first.
    pub(crate) fn bad_header(
        &self,
        job: &Job<M::Buf>,
        no: ExtentNo,
        life: Incarnation,
        kind: ExtentKind,
    ) -> Option<FindingKind> {
        let Some(bytes) = job.bytes(0) else {
            return Some(FindingKind::Unreadable);
        };
        let place = Place {
            device: self.device,
            extent: no,
            incarnation: Some(life),
            address: self.geometry.extent_start(no),
        };
        match ExtentHeader::decode(bytes, &place) {
            Ok(header)
                if header.kind == kind
                    && header.block_size == self.geometry.block_size
                    && header.extent_size == self.geometry.extent_size =>
            {
                None
            }
            Ok(_) => Some(FindingKind::ExtentHeader),
            Err(error) => Some(head_fault(&error, bytes, FindingKind::ExtentHeader)),
        }
    }
}
