//! The audit of a device by itself: superblock, checkpoint, extents and index, a step at a time. [`crate::auditing`]
//! looks at extents.
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
//!   only.
//! - A finding is told when two looks in a row came to the same. What is compared is compared in one event, in which
//!   neither the device's table (of a sealed extent, in one life) nor memory can change; a look during which the
//!   superblock was turned, or the extent freed, opened or cleaned, counts for nothing.
//! - One step at a time. It always has a read under way, or is answered: it never waits for room, but ends as
//!   [`EngineError::Busy`].
//! - A step reads [`STEP_BYTES`] and one table more at the most, and goes through [`SLOTS_MAX`] slots of the index and
//!   one segment more at the most; what is left of it is kept for the event that asks for the same step again.
//! - Where it goes on is a number that it says itself ([`Audited::next`]): whoever drives it keeps nothing else, and
//!   may begin anywhere.

use ashlar_layout::checkpoint::Checkpoint;
use ashlar_layout::extent::{ExtentHeader, ExtentKind};
use ashlar_layout::ids::{ExtentNo, Incarnation};
use ashlar_layout::limits::SUPERBLOCK_COPIES;
use ashlar_layout::stamp::{HeadError, HeadFault, Place};
use ashlar_layout::superblock::{self, CheckpointRef, SUPERBLOCK_LEN, Superblock};

use crate::api::{Action, IoFailure, Memory, Output};
use crate::auditing::ExtentLook;
use crate::engine::{Engine, Purpose, Status};
use crate::error::{EngineError, Finding, FindingKind, extent_finding};
use crate::extents::State;
use crate::index::{Candidate, SEGMENTS, UNIT};

/// Bytes that a step reads at the most, but for the last of its reads.
pub const STEP_BYTES: u64 = 4 * 1024 * 1024;
/// Slots of the index that a step looks at, but for the last segment.
pub const SLOTS_MAX: u64 = 64 * 1024;
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
    /// The index, from this segment on.
    Index(u32),
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
                let next = from.checked_add(1).map(Step::Index);
                next.filter(|_| (from as usize) + 1 < SEGMENTS)
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
    /// The kinds of the findings that were told.
    pub found: Vec<FindingKind>,
    /// It was left out: what was to be looked at changed again and again, or is being cleaned.
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
    /// [`STEP_BYTES`] and [`SLOTS_MAX`], but for tests.
    pub most: (u64, u64),
}

/// A step under way.
pub(crate) struct Job<B> {
    id: u64,
    op: u64,
    pub step: Step,
    look: Look,
    /// What is being read: where, how much.
    asked: Vec<(u64, usize)>,
    /// What came of it; none if it could not be read.
    pub got: Vec<Option<B>>,
    left: usize,
    bytes: u64,
    tries: u32,
    told: Vec<FindingKind>,
    /// What this look came to,
    pub found: Vec<Finding>,
    /// and the first one, if this is the second.
    before: Option<Vec<Finding>>,
}

enum Look {
    /// Which superblock was believed when they were asked for, and whether it was being turned.
    Copies {
        newest: u64,
        turning: bool,
    },
    Checkpoint(CheckpointRef),
    Extent(Box<ExtentLook>),
    Index,
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
            most: (STEP_BYTES, SLOTS_MAX),
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
        let kept = self.audit.kept.take();
        let job = match kept.filter(|kept| kept.step == step) {
            Some(kept) => Some(Job {
                op,
                bytes: 0,
                told: Vec::new(),
                ..kept
            }),
            None => self.new_job(op, step),
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
        let (step, look) = match step {
            Step::Superblocks => (
                step,
                Look::Copies {
                    newest: 0,
                    turning: true,
                },
            ),
            Step::Checkpoint => match self.superblocks.current().checkpoint {
                Some(named) => (step, Look::Checkpoint(named)),
                None => return self.new_job(op, Step::Extent(ExtentNo(0))),
            },
            Step::Extent(from) => {
                let look = self.next_extent_look(from)?;
                (Step::Extent(look.no), Look::Extent(Box::new(look)))
            }
            Step::Index(_) => (step, Look::Index),
        };
        Some(Job {
            id,
            op,
            step,
            look,
            asked: Vec::new(),
            got: Vec::new(),
            left: 0,
            bytes: 0,
            tries: 0,
            told: Vec::new(),
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
        match &mut job.look {
            Look::Copies { .. } | Look::Index => {}
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
        let mut look = std::mem::replace(&mut job.look, Look::Index);
        let turn = match &mut look {
            Look::Copies { newest, turning } => self.look_at_copies(job, newest, turning),
            Look::Checkpoint(named) => self.look_at_checkpoint(job, *named),
            Look::Extent(extent) => self.look_at_extent(job, extent),
            Look::Index => self.look_at_index(job),
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
                    return out.push(Action::Done { op: job.op, result });
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
    fn keep_job(&mut self, job: Job<M::Buf>, out: &mut Vec<Action<M::Buf>>) {
        let audited = Audited {
            next: Some(job.step),
            bytes: job.bytes,
            ..Audited::default()
        };
        let result = Ok(Output::Audited(audited));
        out.push(Action::Done { op: job.op, result });
        self.audit.kept = Some(job);
    }

    /// The step has ended: what was found is told.
    fn answer_audit(
        &mut self,
        mut job: Job<M::Buf>,
        left_out: bool,
        out: &mut Vec<Action<M::Buf>>,
    ) {
        if !left_out {
            for finding in std::mem::take(&mut job.found) {
                self.follow_up(job.step, &finding);
                job.told.push(finding.kind);
                self.find(finding, out);
            }
        }
        let next = match job.step {
            Step::Index(from) => {
                let to = self.segments_from(from).end;
                ((to as usize) < SEGMENTS).then_some(Step::Index(to))
            }
            step => step.behind(),
        };
        let audited = Audited {
            next,
            bytes: job.bytes,
            found: job.told,
            left_out,
        };
        let result = Ok(Output::Audited(audited));
        out.push(Action::Done { op: job.op, result });
    }

    /// Has the ordinary ways mend what they can.
    fn follow_up(&mut self, step: Step, finding: &Finding) {
        match step {
            Step::Superblocks => {
                let extent_size = self.geometry.extent_size;
                let bad = (0..SUPERBLOCK_COPIES as u8)
                    .find(|copy| superblock::offset(*copy, extent_size) == finding.offset);
                if let Some(copy) = bad {
                    self.superblocks.lost(copy);
                    self.audit.turn_wanted = true;
                }
            }
            Step::Checkpoint => self.want_checkpoint(),
            Step::Extent(_) | Step::Index(_) => {}
        }
    }

    fn look_at_copies(&self, job: &mut Job<M::Buf>, newest: &mut u64, turning: &mut bool) -> Turn {
        let extent_size = self.geometry.extent_size;
        let places = (0..SUPERBLOCK_COPIES as u8).map(|copy| superblock::offset(copy, extent_size));
        if job.got.is_empty() {
            *newest = self.superblocks.newest();
            *turning = self.superblocks.turning();
            return Turn::Read(places.map(|offset| (offset, SUPERBLOCK_LEN)).collect());
        }
        // While it is turned copies may be of the turn before, or in the midst of being written.
        if *turning || self.superblocks.turning() || self.superblocks.newest() != *newest {
            return Turn::Changed;
        }
        let believed = self.superblocks.current();
        for (at, offset) in places.enumerate() {
            let bytes = job.bytes(at);
            let kind = match bytes.map(Superblock::decode) {
                None => FindingKind::Unreadable,
                Some(Err(_)) if bytes.is_some_and(|b| b.iter().all(|byte| *byte == 0)) => {
                    FindingKind::LostWrite
                }
                Some(Err(_)) => FindingKind::Superblock,
                Some(Ok(copy))
                    if copy.device != believed.device || usize::from(copy.copy) != at =>
                {
                    FindingKind::Misdirected
                }
                Some(Ok(copy)) if copy.body_crc() == believed.body_crc() => continue,
                Some(Ok(copy)) if copy.sequence < believed.sequence => FindingKind::LostWrite,
                Some(Ok(_)) => FindingKind::Superblock,
            };
            job.suspect(extent_finding(
                kind,
                self.device,
                offset,
                SUPERBLOCK_LEN as u64,
            ));
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

    /// The segments that are looked at together.
    fn segments_from(&self, from: u32) -> std::ops::Range<u32> {
        let (mut to, mut slots) = (from, 0);
        while (to as usize) < SEGMENTS && (to == from || slots < self.audit.most.1) {
            slots += self.index.slots_in(to as usize);
            to += 1;
        }
        from..to
    }

    fn look_at_index(&self, job: &mut Job<M::Buf>) -> Turn {
        let Step::Index(from) = job.step else {
            return Turn::Seen;
        };
        let device = self.device;
        if from == 0 {
            // With what each extent's table comes to, this says that no slot is left that none names.
            let counted = self.extents.iter().map(|(_, extent)| extent.live);
            let counted: u64 = counted.map(u64::from).sum();
            if counted != self.index.len() {
                let size = self.geometry.device_size;
                job.suspect(extent_finding(FindingKind::Astray, device, 0, size));
            }
        }
        for segment in self.segments_from(from) {
            for (_, candidate) in self.index.slots(segment as usize) {
                if !self.is_possible(candidate) {
                    let at = candidate.block * u64::from(self.geometry.block_size);
                    let len = u64::from(candidate.units) * UNIT;
                    job.suspect(extent_finding(FindingKind::Astray, device, at, len));
                }
            }
        }
        Turn::Seen
    }

    /// Whether a record can stand there.
    fn is_possible(&self, candidate: Candidate) -> bool {
        let address = candidate
            .block
            .checked_mul(u64::from(self.geometry.block_size));
        let Some((at, no)) = address.and_then(|at| Some((at, self.geometry.extent_of(at)?))) else {
            return false;
        };
        if no.0 >= self.extents.count() {
            return false;
        }
        let extent = self.extents.get(no);
        let data = match extent.state {
            State::Free => false,
            State::Quarantined => true,
            State::Open | State::Sealed => extent.kind == Some(ExtentKind::Data),
        };
        // Its length is known up to a unit.
        let least = u64::from(candidate.units.max(1) - 1) * UNIT;
        data && at >= self.geometry.records_start(no)
            && at.saturating_add(least) < self.geometry.extent_end(no)
    }
}
