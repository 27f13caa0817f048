//! Emptying an extent: copies, tombstones that are written again, and the header that ends its life.
//!
//! Invariants: see [`crate::clean`]. Here in particular:
//! - What is copied was read from the device and matched head, table and payload CRC, and what the extent's table says.
//! - A record of which another one was found, whole, in another extent, is not copied: a crash, or an extent that was
//!   given up, has left it standing twice; or it is damaged, and was mended. Of two in the victim itself one is copied,
//!   and the copy then found for the other: so they are taken on one after the other, and a damaged one last.
//! - The header of the new life is durable before the empty footer is written, and no root is under way when it is
//!   handed out ([`crate::chunks`] says why). The footer only saves the search that an extent without one takes.
//! - The extent counts as sealed until both are done: nobody opens it while they are on their way.

use ashlar_layout::footer::Footer;
use ashlar_layout::ids::{ExtentNo, Incarnation, ShardId};
use ashlar_layout::record::{RecordHeader, Subject, header_len, piece_crcs};
use ashlar_layout::stamp::Place;

use crate::api::{Action, IoFailure, Memory};
use crate::append::{Item, OpenExtent};
use crate::clean::{CleanIo, CopyOf, Entry, Job, Stage, Victim};
use crate::engine::{Engine, Purpose, Status, StreamNo, Writing};
use crate::error::{Finding, FindingKind};
use crate::extents::Passed;
use crate::index::{Candidate, ShardHash};
use crate::mutants::mutant;

impl<M: Memory> Engine<M> {
    /// Takes on as many records as may be, then the tombstones; when all is done the extent is ready to be erased.
    pub(crate) fn go_on_copying(&mut self, mem: &mut M, out: &mut Vec<Action<M::Buf>>) {
        let waiting = self.cleaner.victim.as_ref().map_or(0, |v| v.waiting.len());
        for _ in 0..waiting {
            let Some(victim) = &mut self.cleaner.victim else {
                return;
            };
            let Some(entry) = victim.waiting.pop_front() else {
                break;
            };
            match self.take_on(entry, mem, out) {
                Took::Done => {}
                Took::Later => self.put_off(entry, false),
                Took::Enough => {
                    self.put_off(entry, true);
                    break;
                }
                Took::Bad(block) => return self.pass_over(Some(Passed::Damaged { block })),
            }
        }
        let done = |victim: &Victim| victim.waiting.is_empty() && victim.jobs.is_empty();
        if (self.cleaner.victim.as_ref().is_some_and(done) || mutant!(EraseEarly))
            && self.all_covered()
            && self.carry_over()
            && let Some(victim) = &mut self.cleaner.victim
        {
            victim.stage = Stage::Copied;
            self.erase(mem, out);
        }
    }

    fn put_off(&mut self, entry: usize, first: bool) {
        if let Some(victim) = &mut self.cleaner.victim {
            if first {
                victim.waiting.push_front(entry);
            } else {
                victim.waiting.push_back(entry);
            }
        }
    }

    /// Begins with a record, if that is needed, and may be now.
    fn take_on(&mut self, entry: usize, mem: &mut M, out: &mut Vec<Action<M::Buf>>) -> Took {
        let victim = self.cleaner.victim.as_ref();
        let Some(Entry {
            shard, block, len, ..
        }) = victim.and_then(|victim| victim.entries.get(entry))
        else {
            return Took::Done;
        };
        let (shard, block, len) = (*shard, *block, *len);
        let hash = self.index.hash(&shard);
        if !self.index.contains(hash, block) {
            return Took::Done;
        }
        if self.shadows.contains(&shard) {
            // It was deleted, and could not be read then.
            return Took::Bad(block);
        }
        if self.is_in_hand(&shard) || self.waits_for_twin(entry) {
            return Took::Later;
        }
        if !self.may_copy(len) {
            return Took::Enough;
        }
        let others = self.index.candidates(hash);
        let others = others
            .filter(|other| self.is_outside(other.block))
            .collect();
        let job = Job {
            others,
            other: None,
            len: 0,
            queued: false,
        };
        if self.read_next(entry, job, mem, out) {
            Took::Done
        } else {
            Took::Enough
        }
    }

    /// Whether a block is not the victim's: what stands in there goes with it.
    pub(crate) fn is_outside(&self, block: u64) -> bool {
        let no = self
            .geometry
            .extent_of(block * u64::from(self.geometry.block_size));
        let victim = self.cleaner.victim.as_ref().map(|victim| victim.no);
        no.is_some() && no != victim
    }

    /// Whether another record of the shard in the victim has to come first: it is being copied; or this one is damaged,
    /// and that one may not be.
    fn waits_for_twin(&self, entry: usize) -> bool {
        let Some(victim) = &self.cleaner.victim else {
            return false;
        };
        let Some(record) = victim.entries.get(entry) else {
            return false;
        };
        let twin = |at: &usize| {
            victim
                .entries
                .get(*at)
                .is_some_and(|other| *at != entry && other.shard == record.shard)
        };
        if victim.jobs.keys().any(twin) {
            return true;
        }
        let whole = |other: &Entry| {
            let hash = self.index.hash(&other.shard);
            !other.damaged && other.covered.is_none() && self.index.contains(hash, other.block)
        };
        record.damaged
            && (0..victim.entries.len())
                .filter(twin)
                .any(|at| victim.entries.get(at).is_some_and(whole))
    }

    /// Whether somebody is writing or deleting the shard.
    fn is_in_hand(&self, shard: &ShardId) -> bool {
        self.writing.contains_key(shard)
            || (self.deleting.contains_key(shard) && !mutant!(CopyDeleted))
    }

    /// Reads the next place of the shard, its own last; false if there is no buffer.
    fn read_next(
        &mut self,
        entry: usize,
        mut job: Job,
        mem: &mut M,
        out: &mut Vec<Action<M::Buf>>,
    ) -> bool {
        let Some(victim) = &self.cleaner.victim else {
            return true;
        };
        let (id, Some(record)) = (victim.id, victim.entries.get(entry)) else {
            return true;
        };
        let own = (
            record.block * u64::from(self.geometry.block_size),
            record.len,
        );
        let other = job.others.pop();
        let (offset, len) = other.map_or(own, |other| self.reach(other));
        let Some(buf) = mem.alloc(len as usize) else {
            return false;
        };
        let life = self
            .geometry
            .extent_of(offset)
            .map(|no| self.extents.get(no).incarnation);
        job.other = other.map(|other| (other, life));
        job.len = len as usize;
        if let Some(victim) = &mut self.cleaner.victim {
            victim.jobs.insert(entry, job);
        }
        let io = self.io(Purpose::Clean(CleanIo::Record { victim: id, entry }));
        out.push(Action::Read {
            io,
            offset,
            buf,
            len: len as usize,
        });
        true
    }

    /// A record was read: a copy that was there already, or the one that is to be copied.
    pub(crate) fn record_read(
        &mut self,
        id: u64,
        entry: usize,
        result: Result<(), IoFailure>,
        buf: Option<M::Buf>,
        mem: &mut M,
        out: &mut Vec<Action<M::Buf>>,
    ) {
        if self.status != Status::Serving {
            return;
        }
        let Some(victim) = self.cleaner.victim(id) else {
            return;
        };
        let (no, life) = (victim.no, victim.life);
        let Some(job) = victim.jobs.remove(&entry) else {
            return;
        };
        let Some(record) = victim.entries.get(entry) else {
            return;
        };
        let (shard, block, len) = (record.shard, record.block, record.len);
        let want = (shard, record.payload_len, record.payload_crc);
        let hash = self.index.hash(&shard);
        if !self.index.contains(hash, block) {
            return;
        }
        if self.shadows.contains(&shard) {
            // It was deleted meanwhile, and could not be read then.
            return self.pass_over(Some(Passed::Damaged { block }));
        }
        let bytes = buf.as_deref().and_then(|bytes| bytes.get(..job.len));
        if let Some((other, life)) = job.other {
            let pieces = bytes.and_then(|bytes| self.matches(bytes, other.block, life, want));
            if pieces.is_some() && self.index.contains(hash, other.block) {
                self.cover(id, entry, other.block);
            } else if !self.read_next(entry, job, mem, out) {
                self.put_off(entry, true);
            }
            return;
        }
        let pieces = bytes.and_then(|bytes| self.matches(bytes, block, Some(life), want));
        let (Some(pieces), Some(mut buf)) = (pieces, buf) else {
            if let Some(victim) = self.cleaner.victim(id)
                && let Some(record) = victim.entries.get_mut(entry)
            {
                record.damaged = true;
            }
            if self.waits_for_twin(entry) {
                return self.put_off(entry, false);
            }
            let kind = match result {
                Ok(()) => FindingKind::RecordPayload,
                Err(_) => FindingKind::Unreadable,
            };
            let finding = Finding {
                kind,
                device: self.device,
                offset: block * u64::from(self.geometry.block_size),
                len,
                shard: Some(shard),
                journal: None,
            };
            self.find(finding, out);
            return self.pass_over(Some(Passed::Damaged { block }));
        };
        debug_assert!(self.extents.get(no).cleaning);
        if self.is_in_hand(&shard) {
            return self.put_off(entry, false);
        }
        let (_, payload_len, payload_crc) = want;
        // The padding is behind no checksum.
        let to = (header_len(payload_len, self.geometry.block_size) + payload_len) as usize;
        buf[to..len as usize].fill(0);
        let writing = Writing {
            payload_len,
            payload_crc,
            ops: Vec::new(),
            deletes: Vec::new(),
        };
        self.writing.insert(shard, writing);
        let copy = Some(CopyOf { victim: id, entry });
        let item = Item::Shard {
            shard,
            buf,
            payload_len,
            payload_crc,
            pieces,
            copy,
        };
        self.streams[StreamNo::Data as usize].queue.push_back(item);
        if let Some(victim) = self.cleaner.victim(id) {
            let job = Job {
                queued: true,
                ..job
            };
            victim.jobs.insert(entry, job);
        }
    }

    /// The CRCs of the pieces of a record that is the one it should be, and whole.
    fn matches(
        &self,
        bytes: &[u8],
        block: u64,
        life: Option<Incarnation>,
        (shard, payload_len, payload_crc): (ShardId, u32, u32),
    ) -> Option<Vec<u32>> {
        let address = block * u64::from(self.geometry.block_size);
        let place = Place {
            device: self.device,
            extent: self.geometry.extent_of(address)?,
            incarnation: Some(life?),
            address,
        };
        let room = header_len(payload_len, self.geometry.block_size) as usize;
        let payload = bytes.get(room..room + payload_len as usize)?;
        let mut pieces = Vec::new();
        let crc = piece_crcs(payload, |_, crc| pieces.push(crc));
        let header = RecordHeader::decode(bytes, &place).ok()?;
        let same = header.subject == Subject::Shard(shard)
            && header.payload_len == payload_len
            && header.payload_crc == payload_crc
            && header.pieces(bytes).is_ok()
            && crc == payload_crc;
        (same || mutant!(CopyUnchecked)).then_some(pieces)
    }

    fn cover(&mut self, id: u64, entry: usize, by: u64) {
        if let Some(victim) = self.cleaner.victim(id) {
            victim.jobs.remove(&entry);
            if let Some(entry) = victim.entries.get_mut(entry) {
                entry.covered = Some(by);
            }
        }
    }

    /// A copy is durable, and the index knows it.
    pub(crate) fn copied(&mut self, copy: CopyOf, block: u64, len: u64) {
        self.cleaner.figures.records += 1;
        self.cleaner.figures.bytes += len;
        self.cover(copy.victim, copy.entry, block);
    }

    /// There was no room for a copy.
    pub(crate) fn copy_refused(&mut self, copy: CopyOf) {
        if self.cleaner.victim(copy.victim).is_some() {
            self.leave_victim();
        }
    }

    /// The index is about to learn of a record that somebody wrote: if there were others, one of them was damaged.
    pub(crate) fn rewritten(&mut self, hash: ShardHash) {
        for other in self.index.candidates(hash) {
            let address = other.block * u64::from(self.geometry.block_size);
            if let Some(no) = self.geometry.extent_of(address) {
                self.extents.try_again(no);
            }
        }
    }

    /// The index points to a copy that is not durable, and no longer to the original: only a mutant does that.
    pub(crate) fn turn_early(&mut self, shard: ShardId, candidate: Candidate) {
        let hash = self.index.hash(&shard);
        let former: Vec<Candidate> = self.index.candidates(hash).collect();
        for former in former {
            self.index.remove(hash, former.block);
        }
        self.index.insert(hash, candidate);
    }

    /// Whether each record that is still live has another one outside. Those that have none wait again.
    fn all_covered(&mut self) -> bool {
        let Some(victim) = &mut self.cleaner.victim else {
            return false;
        };
        let no = victim.no;
        let extent_of = |block| {
            let block_size = u64::from(self.geometry.block_size);
            self.geometry.extent_of(block * block_size)
        };
        let mut live = 0;
        for (at, entry) in victim.entries.iter_mut().enumerate() {
            let hash = self.index.hash(&entry.shard);
            if !self.index.contains(hash, entry.block) {
                continue;
            }
            live += 1;
            entry.covered.take_if(|by| {
                let outside = extent_of(*by) != Some(no);
                !outside || !self.index.contains(hash, *by)
            });
            if entry.covered.is_none() && !mutant!(EraseEarly) {
                victim.waiting.push_back(at);
            }
        }
        let all = victim.waiting.is_empty();
        let known = live == self.extents.get(victim.no).live || mutant!(TurnIndexEarly);
        if all && !known {
            // Something in it is live that its table did not name.
            self.pass_over(None);
        }
        all && known
    }

    /// Whether nothing is there of a shard, nor is about to be: then its tombstone may be written again. One that is
    /// younger than a record that came after the first would kill that.
    pub(crate) fn is_gone(&self, shard: &ShardId) -> bool {
        let hash = self.index.hash(shard);
        (self.index.candidates(hash).next().is_none()
            && !self.writing.contains_key(shard)
            && !self.deleting.contains_key(shard))
            || mutant!(CarryRegardless)
    }

    /// One of these shards that is not gone.
    pub(crate) fn alive_among<'a>(
        &self,
        shards: impl IntoIterator<Item = &'a ShardId>,
    ) -> Option<ShardId> {
        shards
            .into_iter()
            .find(|shard| !self.is_gone(shard))
            .copied()
    }

    /// Writes the tombstones again if they still keep something dead; whether there is nothing more to do.
    fn carry_over(&mut self) -> bool {
        let Some(victim) = &self.cleaner.victim else {
            return false;
        };
        if self.extents.get(victim.no).pins == 0 || mutant!(ForgetTombstones) {
            // Those that are under way do no harm.
            return true;
        }
        // All of them before the first is written; each once more when it is its turn.
        let fresh = victim.carrying.is_empty() && victim.carried_to.is_empty();
        if fresh && let Some(shard) = self.alive_among(&victim.tombstones) {
            self.pass_over(Some(Passed::Tombstone(shard)));
            return false;
        }
        let len = u64::from(self.geometry.block_size);
        while let Some(victim) = &mut self.cleaner.victim {
            let Some(shard) = victim.tombstones.pop() else {
                return victim.carrying.is_empty();
            };
            if !self.is_gone(&shard) {
                self.pass_over(Some(Passed::Tombstone(shard)));
                return false;
            }
            if !self.may_copy(len) {
                if let Some(victim) = &mut self.cleaner.victim {
                    victim.tombstones.push(shard);
                }
                return false;
            }
            self.deleting.insert(shard, Vec::new());
            let item = Item::Tombstone {
                shard,
                targets: Vec::new(),
                hold: false,
                shadow: false,
                carried: true,
            };
            self.streams[StreamNo::Data as usize].queue.push_back(item);
            if let Some(victim) = &mut self.cleaner.victim {
                victim.carrying.insert(shard);
            }
        }
        false
    }

    /// A tombstone that was written again is durable.
    pub(crate) fn carried(&mut self, shard: ShardId, to: ExtentNo) {
        let len = u64::from(self.geometry.block_size);
        self.cleaner.figures.tombstones += 1;
        self.cleaner.figures.bytes += len;
        if let Some(victim) = &mut self.cleaner.victim
            && victim.carrying.remove(&shard)
            && victim.carried_to.insert(to)
        {
            self.extents.carry(victim.no, to);
        }
    }

    /// There was no room for one.
    pub(crate) fn carry_refused(&mut self, shard: ShardId) {
        let victim = self.cleaner.victim.as_ref();
        if victim.is_some_and(|victim| victim.carrying.contains(&shard)) {
            self.leave_victim();
        }
    }

    /// The header had to wait. Nothing can have changed that matters; but it is cheap to see.
    pub(crate) fn erase_again(&mut self, mem: &mut M, out: &mut Vec<Action<M::Buf>>) {
        if self.all_covered() {
            self.erase(mem, out);
        } else if let Some(victim) = &mut self.cleaner.victim {
            victim.stage = Stage::Copying;
        }
    }

    /// Ends the life of an extent of which nothing is needed any more.
    pub(crate) fn erase(&mut self, mem: &mut M, out: &mut Vec<Action<M::Buf>>) {
        let Some(victim) = &self.cleaner.victim else {
            return;
        };
        let no = victim.no;
        if !self.may_open() {
            return;
        }
        let block = self.geometry.block_size as usize;
        let Some(mut buf) = mem.alloc(block) else {
            return;
        };
        let Some(incarnation) = self.take_incarnation() else {
            return;
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
        buf[..block].fill(0);
        buf[..header.len()].copy_from_slice(&header);
        if let Some(victim) = &mut self.cleaner.victim {
            victim.stage = Stage::Erasing(incarnation);
        }
        let io = self.io(Purpose::Clean(CleanIo::Erase));
        out.push(Action::Write {
            io,
            offset: pos,
            buf,
            len: block,
            durable: true,
        });
    }

    /// Nothing that was in the extent can be found any more.
    pub(crate) fn erase_done(
        &mut self,
        result: Result<(), IoFailure>,
        mem: &mut M,
        out: &mut Vec<Action<M::Buf>>,
    ) {
        let Some(victim) = &mut self.cleaner.victim else {
            return;
        };
        let (no, Stage::Erasing(incarnation)) = (victim.no, victim.stage) else {
            return;
        };
        if let Err(failure) = result {
            let start = self.geometry.extent_start(no);
            return self.fence("write of a cleaned extent's header", start, failure, out);
        }
        victim.stage = Stage::Closing;
        for entry in std::mem::take(&mut victim.entries) {
            self.index
                .remove(self.index.hash(&entry.shard), entry.block);
        }
        self.extents.erased(no, incarnation);
        self.cleaner.figures.extents += 1;
        let end = self.geometry.extent_end(no);
        let footer = Footer {
            device: self.device,
            extent: no,
            incarnation,
            owner_epoch: self.owner_epoch,
            records_end: self.geometry.records_start(no),
            entries: Vec::new(),
        };
        let bytes = footer.encode(end, self.geometry.block_size);
        let buf = match self.status {
            Status::Serving => mem.alloc(bytes.len()),
            _ => None,
        };
        let Some(mut buf) = buf else {
            return self.let_free();
        };
        buf[..bytes.len()].copy_from_slice(&bytes);
        let io = self.io(Purpose::Clean(CleanIo::Close));
        out.push(Action::Write {
            io,
            offset: end - bytes.len() as u64,
            buf,
            len: bytes.len(),
            durable: true,
        });
    }

    pub(crate) fn close_done(
        &mut self,
        result: Result<(), IoFailure>,
        out: &mut Vec<Action<M::Buf>>,
    ) {
        let Some(victim) = &self.cleaner.victim else {
            return;
        };
        if let Err(failure) = result {
            let end = self.geometry.extent_end(victim.no);
            return self.fence("write of a cleaned extent's footer", end, failure, out);
        }
        self.let_free();
    }

    fn let_free(&mut self) {
        if let Some(victim) = self.cleaner.victim.take() {
            self.extents.cleaned(victim.no);
        }
    }
}

/// What came of taking on a record.
enum Took {
    /// It is under way, or need not be copied.
    Done,
    /// Somebody has it in hand.
    Later,
    /// No more may be under way now.
    Enough,
    /// Its extent has to stay because of this block.
    Bad(u64),
}
