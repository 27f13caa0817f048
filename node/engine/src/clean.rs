//! The cleaner: which extents are emptied, when, and how fast. [`crate::copying`] does it.
//!
//! A sealed data extent whose records are mostly dead is *cleaned*: the live ones are copied to the end of the data
//! stream, its tombstones are written again if they still keep something dead, and then it is *erased*: its header
//! is written over with that of a new life, durably. Only then the index lets go of the old records, and the extent
//! is free.
//!
//! Invariants:
//! - One extent at a time. Nothing of what is kept about it outlives the process: after a crash the extent is there or
//!   is not, and a copy beside its original is a shard that stands twice, as any that was mended.
//! - As long as the original can be found on the device the index has it, too. So a delete finds original and copy, one
//!   tombstone kills both (it is younger than both), and its extent is pinned by both.
//! - A shard is never written, deleted and copied at the same time: a copy waits in `writing`, a tombstone that is
//!   written again in `deleting`, as any other. So no copy is ever younger than a tombstone of its shard, and no
//!   tombstone that is written again younger than a record that came after it.
//! - An extent is erased when each of its live records has another one *outside of it* that is whole and durable (a
//!   shard may stand twice in one extent, and both go with it), and no pin is left that was not carried over.
//! - What does not match is neither copied nor let go of: its extent is passed over until something in it changes, or
//!   one of its shards is written once more.
//! - Write amplification: no extent is cleaned for which more than [`WRITE_AMPLIFICATION_MAX`] - 1 times as much is
//!   written again as is won. A byte is won once at the most, so in all no more is written than
//!   [`WRITE_AMPLIFICATION_MAX`] times what was appended (but for what is begun and given up, and for need).
//! - Room: work is begun when no more extents are free than the mark says. What is written again was in one extent, and
//!   fits into one; so one that is free is enough, and one comes back for it. If none is free, work is begun only if
//!   what is to be written again fits into the open one. Nobody else takes that room meanwhile ([`crate::room`]).
//! - Need: when chunks of the index, or tombstones, have no room any more, nothing holds it back, and no cost is too
//!   much. (It ends all the same: each extent that is cleaned leaves less on the device that is dead.)
//! - Nothing is cleaned while part of the device could not be read: a tombstone may stand there, so that what seems to
//!   be live is dead, and a copy would outlive it; or a younger record, which a tombstone written again would kill.
//! - Pace: at most [`UNDER_WAY_MAX`] bytes are under way, or one record. While others wait a quarter of it, and no more
//!   than their own appends allow: for each of their bytes, twice what it takes to win one. Only when shards are
//!   refused already nothing holds it back. No clock is asked.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use ashlar_layout::footer::{Footer, FooterEntry, Trailer, trailer_at};
use ashlar_layout::ids::{ExtentNo, Incarnation, ShardId};
use ashlar_layout::record::{Subject, record_len};
use ashlar_layout::stamp::Place;

use crate::api::{Action, IoFailure, Memory};
use crate::append::FOOTER_MAX;
use crate::engine::{Engine, Purpose, Status, StreamNo};
use crate::error::{FindingKind, extent_finding};
use crate::extents::Passed;
use crate::index::Candidate;
use crate::mutants::mutant;
use crate::room::CLEANER_SHARE;

/// Bytes written to the device for each byte of shards and tombstones that is appended, at the most.
pub const WRITE_AMPLIFICATION_MAX: u64 = 5;
/// Bytes of copies that are being read or written at the most, unless one record alone is longer.
pub const UNDER_WAY_MAX: u64 = 256 * 1024;
/// Records that are, at the most.
const JOBS_MAX: usize = 16;
/// How often a buffer for a footer is asked for before the extent is passed over.
const FOOTER_TRIES: u32 = 20_000;
/// Bytes that may be copied at most for what was appended while there was nothing to clean: the largest record, twice.
const ALLOWANCE_MAX: u64 = 2 * (ashlar_layout::limits::SHARD_SIZE_MAX as u64 + 64 * 1024);

/// What the cleaner did since the device was opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cleaned {
    /// Extents of which cleaning began,
    pub begun: u64,
    /// and that were cleaned, and are free.
    pub extents: u64,
    /// Records that were copied,
    pub records: u64,
    /// and bytes of them.
    pub bytes: u64,
    /// Tombstones that were written again.
    pub tombstones: u64,
    /// How often an extent was passed over: something in it did not match, or too little was to be won.
    pub passed: u64,
    /// How often one was left that may be tried again at once: there was no room, or no buffer.
    pub left: u64,
    /// Bytes of shards and tombstones that were appended, copies not counted.
    pub appended: u64,
}

impl Cleaned {
    /// Bytes written for a hundred that were appended; 100 if none were.
    pub fn write_amplification_percent(&self) -> u64 {
        let all = self.appended.saturating_add(self.bytes);
        all.saturating_mul(100)
            .checked_div(self.appended)
            .unwrap_or(100)
    }
}

/// An I/O of the cleaner's. Those of a victim that was given up are not minded.
pub(crate) enum CleanIo {
    Trailer { victim: u64 },
    Footer { victim: u64, at: u64, len: u32 },
    Record { victim: u64, entry: usize },
    Erase,
    Close,
}

/// Which record is copied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct CopyOf {
    pub victim: u64,
    pub entry: usize,
}

#[derive(Default)]
pub(crate) struct Cleaner {
    pub victim: Option<Victim>,
    /// Bytes that may be copied for what was appended.
    pub allowance: u64,
    /// How many for each byte.
    rate: u64,
    /// There was nothing to clean: look again when so much has changed.
    look_at: u64,
    next: u64,
    /// When to go to work, if not at the mark of [`crate::extents`].
    from: Option<u32>,
    /// What was found when the best extent was last looked for, and of what that depends.
    found: Option<((u64, u64, bool), Option<ExtentNo>)>,
    pub figures: Cleaned,
}

/// The extent that is being cleaned.
pub(crate) struct Victim {
    pub id: u64,
    pub no: ExtentNo,
    pub life: Incarnation,
    /// Most bytes that may be written again for each that is won.
    pub most: u64,
    pub stage: Stage,
    /// Its records that were live when its table was read.
    pub entries: Vec<Entry>,
    /// Those of them that are still to be looked at.
    pub waiting: VecDeque<usize>,
    /// Those that are being read or written.
    pub jobs: BTreeMap<usize, Job>,
    /// The shards of which tombstones stand in it: those that are still to be written again,
    pub tombstones: Vec<ShardId>,
    /// those that are being,
    pub carrying: BTreeSet<ShardId>,
    /// and in which extents they came to stand.
    pub carried_to: BTreeSet<ExtentNo>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stage {
    /// Its trailer or its footer is being read.
    Table,
    /// Its footer is to be read: where it is, its bytes, and how often there was no buffer for it.
    Footer(u64, u32, u32),
    Copying,
    /// All is copied: the header waits for its turn.
    Copied,
    Erasing(Incarnation),
    Closing,
}

impl Victim {
    /// Whether it can stay as it is: from when its header is written over on it cannot.
    fn can_be_left(&self) -> bool {
        !matches!(self.stage, Stage::Erasing(_) | Stage::Closing)
    }
}

/// A live record.
pub(crate) struct Entry {
    pub shard: ShardId,
    pub block: u64,
    pub len: u64,
    pub payload_len: u32,
    pub payload_crc: u32,
    /// In this block, outside of the victim, stands another one of the shard that is whole and durable.
    pub covered: Option<u64>,
    /// It was read, and does not match.
    pub damaged: bool,
}

/// A record that is being copied.
pub(crate) struct Job {
    /// Other places where the shard may stand, that are looked at first.
    pub others: Vec<Candidate>,
    /// What is being read, if it is not the record itself, and in which life.
    pub other: Option<(Candidate, Option<Incarnation>)>,
    /// Bytes of it.
    pub len: usize,
    /// It is being written.
    pub queued: bool,
}

impl Cleaner {
    /// Others appended so many bytes to the data stream.
    pub fn appended(&mut self, len: u64) {
        self.figures.appended += len;
        let more = len.saturating_mul(self.rate.max(2));
        self.allowance = self.allowance.saturating_add(more).min(ALLOWANCE_MAX);
    }

    /// Whether the header of an extent waits to be written over.
    pub fn waits_to_erase(&self) -> bool {
        let stage = self.victim.as_ref().map(|victim| victim.stage);
        stage == Some(Stage::Copied)
    }

    /// Whether this is still the victim.
    pub fn has(&self, id: u64) -> bool {
        self.victim.as_ref().is_some_and(|victim| victim.id == id)
    }

    /// Whether the tombstone of this shard is being written again.
    pub fn carries(&self, shard: &ShardId) -> bool {
        let victim = self.victim.as_ref();
        victim.is_some_and(|victim| victim.carrying.contains(shard))
    }

    /// The victim, if it is still this one.
    pub fn victim(&mut self, id: u64) -> Option<&mut Victim> {
        self.victim.as_mut().filter(|victim| victim.id == id)
    }
}

impl<M: Memory> Engine<M> {
    /// Has the cleaner go to work when no more extents than `free` are free: earlier than it would by itself
    /// (`None`), or never (0). Room and write amplification are bounded all the same.
    pub fn clean_from(&mut self, free: Option<u32>) {
        self.cleaner.from = free;
    }

    /// What the cleaner did since the device was opened.
    pub fn cleaned(&self) -> Cleaned {
        self.cleaner.figures
    }

    /// Does what can be done now: what it appends is sent off with all else.
    pub(crate) fn clean(&mut self, mem: &mut M, out: &mut Vec<Action<M::Buf>>) {
        if self.status != Status::Serving {
            return;
        }
        match self.cleaner.victim.as_ref().map(|victim| victim.stage) {
            None => self.choose_victim(mem, out),
            Some(Stage::Footer(at, len, tries)) => self.ask_footer((at, len), tries, mem, out),
            Some(Stage::Copying) => self.go_on_copying(mem, out),
            Some(Stage::Copied) => self.erase_again(mem, out),
            Some(Stage::Table | Stage::Erasing(_) | Stage::Closing) => {}
        }
    }

    /// Whether so few extents are free that chunks of the index may take none, or tombstones.
    fn is_needed(&self) -> bool {
        self.extents.free_count() <= self.extents.chunk_reserve().max(CLEANER_SHARE)
    }

    /// Most bytes that may be written again for each that is won.
    fn most(&self) -> u64 {
        if self.is_needed() {
            u64::MAX
        } else {
            WRITE_AMPLIFICATION_MAX - 1
        }
    }

    /// Whether it is time to clean at all.
    fn is_due(&self) -> bool {
        let mark = self.extents.cleaning_mark();
        let from = self.cleaner.from.unwrap_or(mark);
        from > 0
            && self.extents.free_count() <= from
            && (self.blind.is_none() || mutant!(CleanUnseen))
    }

    /// The extent that is to be cleaned next, if any is.
    pub(crate) fn find_victim(&mut self) -> Option<ExtentNo> {
        if !self.is_due() {
            return None;
        }
        let free = self.extents.free_count();
        let most = self.most();
        let of = (self.extents.changes, most, free == 0);
        match self.cleaner.found {
            Some((known, found)) if known == of => found,
            _ => {
                let is_gone = |shard: &ShardId| self.is_gone(shard);
                let found = self.extents.emptiest(most, is_gone);
                self.cleaner.found = Some((of, found));
                found
            }
        }
    }

    fn choose_victim(&mut self, mem: &mut M, out: &mut Vec<Action<M::Buf>>) {
        if !self.is_due() || (!self.is_needed() && self.extents.stirred < self.cleaner.look_at) {
            return;
        }
        let Some(no) = self.find_victim() else {
            self.cleaner.look_at = self.extents.stirred + self.geometry.extent_size / 64;
            return;
        };
        let block = self.geometry.block_size as usize;
        let Some(buf) = mem.alloc(block) else {
            return;
        };
        let id = self.cleaner.next;
        self.cleaner.next += 1;
        self.extents.clean(no);
        self.cleaner.figures.begun += 1;
        self.cleaner.victim = Some(Victim {
            id,
            no,
            life: self.extents.get(no).incarnation,
            most: self.most(),
            stage: Stage::Table,
            entries: Vec::new(),
            waiting: VecDeque::new(),
            jobs: BTreeMap::new(),
            tombstones: Vec::new(),
            carrying: BTreeSet::new(),
            carried_to: BTreeSet::new(),
        });
        let io = self.io(Purpose::Clean(CleanIo::Trailer { victim: id }));
        let offset = self.geometry.extent_end(no) - block as u64;
        out.push(Action::Read {
            io,
            offset,
            buf,
            len: block,
        });
    }

    /// Gives up the extent that is being cleaned: nothing was lost of it. What was copied stands twice until it is
    /// cleaned once more.
    pub(crate) fn leave_victim(&mut self) {
        if let Some(victim) = self.cleaner.victim.take_if(|it| it.can_be_left()) {
            let extent = self.extents.get(victim.no);
            // What is there twice by now may have cost the room that the rest would take.
            let none_free = self.extents.free_count() == 0;
            let why = none_free.then_some(Passed::NoRoom(extent.live, extent.pins));
            self.cleaner.figures.left += 1;
            self.extents.leave(victim.no, why);
        }
    }

    /// The same; it is not tried again before something has changed: this, or the counts.
    pub(crate) fn pass_over(&mut self, why: Option<Passed>) {
        if let Some(victim) = self.cleaner.victim.take_if(|it| it.can_be_left()) {
            let extent = self.extents.get(victim.no);
            let counts = Passed::Counts(extent.live, extent.pins);
            self.cleaner.figures.passed += 1;
            self.extents.leave(victim.no, Some(why.unwrap_or(counts)));
        }
    }

    /// An I/O of the cleaner's has ended.
    pub(crate) fn clean_done(
        &mut self,
        what: CleanIo,
        result: Result<(), IoFailure>,
        buf: Option<M::Buf>,
        mem: &mut M,
        out: &mut Vec<Action<M::Buf>>,
    ) {
        let buf = || result.ok().and(buf);
        match what {
            CleanIo::Trailer { victim } => self.trailer_read(victim, buf(), out),
            CleanIo::Footer { victim, at, len } => self.footer_read(victim, (at, len), buf(), out),
            CleanIo::Record { victim, entry } => {
                self.record_read(victim, entry, result, buf(), mem, out);
            }
            CleanIo::Erase => self.erase_done(result, mem, out),
            CleanIo::Close => self.close_done(result, out),
        }
    }

    /// The extent's table cannot be used: it stays as it is.
    fn no_table(&mut self, unreadable: bool, offset: u64, len: u64, out: &mut Vec<Action<M::Buf>>) {
        if unreadable {
            let kind = FindingKind::Unreadable;
            self.find(extent_finding(kind, self.device, offset, len), out);
        }
        self.pass_over(None);
    }

    fn trailer_read(&mut self, id: u64, buf: Option<M::Buf>, out: &mut Vec<Action<M::Buf>>) {
        let device = self.device;
        let Some(victim) = self.cleaner.victim(id) else {
            return;
        };
        let (no, life) = (victim.no, victim.life);
        let end = self.geometry.extent_end(no);
        let block = u64::from(self.geometry.block_size);
        let place = Place {
            device,
            extent: no,
            incarnation: Some(life),
            address: trailer_at(end),
        };
        let from = (trailer_at(end) - (end - block)) as usize;
        let trailer = buf
            .as_deref()
            .and_then(|bytes| bytes.get(from..block as usize))
            .and_then(|bytes| Trailer::decode(bytes, &place).ok())
            .filter(|trailer| trailer.footer >= self.geometry.records_start(no))
            .filter(|trailer| u64::from(trailer.len) <= FOOTER_MAX);
        match trailer {
            Some(trailer) => {
                if let Some(victim) = self.cleaner.victim(id) {
                    victim.stage = Stage::Footer(trailer.footer, trailer.len, 0);
                }
            }
            // Some have none: what is in them is known from a search.
            None => self.no_table(buf.is_none(), end - block, block, out),
        }
    }

    fn ask_footer(
        &mut self,
        (at, len): (u64, u32),
        tries: u32,
        mem: &mut M,
        out: &mut Vec<Action<M::Buf>>,
    ) {
        if tries > FOOTER_TRIES {
            // It may be longer than any buffer that there is; other extents' are not.
            return self.pass_over(None);
        }
        let buf = mem.alloc(len as usize);
        let Some(victim) = &mut self.cleaner.victim else {
            return;
        };
        let Some(buf) = buf else {
            victim.stage = Stage::Footer(at, len, tries + 1);
            return;
        };
        victim.stage = Stage::Table;
        let victim = victim.id;
        let io = self.io(Purpose::Clean(CleanIo::Footer { victim, at, len }));
        out.push(Action::Read {
            io,
            offset: at,
            buf,
            len: len as usize,
        });
    }

    /// The table tells which records there are; the index, which of them are live.
    fn footer_read(
        &mut self,
        id: u64,
        (at, len): (u64, u32),
        buf: Option<M::Buf>,
        out: &mut Vec<Action<M::Buf>>,
    ) {
        let device = self.device;
        let Some(victim) = self.cleaner.victim(id) else {
            return;
        };
        let no = victim.no;
        let place = Place {
            device,
            extent: no,
            incarnation: Some(victim.life),
            address: at,
        };
        let block_size = self.geometry.block_size;
        let start = self.geometry.records_start(no);
        let base = u64::from(no.0) * self.geometry.extent_size;
        let address =
            |entry: &FooterEntry| base + u64::from(entry.offset_blocks) * u64::from(block_size);
        let inside = |entry: &FooterEntry| {
            address(entry) >= start
                && address(entry) + record_len(entry.payload_len, block_size) <= at
        };
        let footer = buf
            .as_deref()
            .and_then(|bytes| Footer::decode(bytes.get(..len as usize)?, &place).ok())
            .filter(|footer| footer.entries.iter().all(inside));
        let Some(footer) = footer else {
            if buf.is_some() {
                let kind = FindingKind::Footer;
                self.find(extent_finding(kind, device, at, u64::from(len)), out);
            }
            return self.no_table(buf.is_none(), at, u64::from(len), out);
        };
        let mut entries = Vec::new();
        let mut tombstones = BTreeSet::new();
        for entry in &footer.entries {
            match entry.subject {
                Subject::Shard(shard) => {
                    let block = address(entry) / u64::from(block_size);
                    if self.index.contains(self.index.hash(&shard), block) {
                        entries.push(Entry {
                            shard,
                            block,
                            len: record_len(entry.payload_len, block_size),
                            payload_len: entry.payload_len,
                            payload_crc: entry.payload_crc,
                            covered: None,
                            damaged: false,
                        });
                    }
                }
                Subject::Tombstone(shard) => drop(tombstones.insert(shard)),
                _ => {}
            }
        }
        let extent = self.extents.get(no);
        let pinned = extent.pins > 0;
        let mut cost: u64 = entries.iter().map(|entry| entry.len).sum();
        if pinned {
            cost += tombstones.len() as u64 * u64::from(block_size);
        }
        let won = extent.bytes.saturating_sub(cost);
        let most = self.cleaner.victim.as_ref().map_or(0, |victim| victim.most);
        // What the table does not name would be lost.
        let all = entries.len() as u64 == u64::from(extent.live);
        if !all || won == 0 || cost > won.saturating_mul(most) {
            return self.pass_over(None);
        }
        let counts = (extent.live, extent.pins);
        if pinned && let Some(shard) = self.alive_among(&tombstones) {
            return self.pass_over(Some(Passed::Tombstone(shard)));
        }
        let again = if pinned { tombstones.len() } else { 0 };
        if self.extents.free_count() == 0 && !self.has_room(&entries, again) {
            return self.pass_over(Some(Passed::NoRoom(counts.0, counts.1)));
        }
        self.cleaner.rate = 2 * cost.div_ceil(won).max(1);
        if let Some(victim) = self.cleaner.victim(id) {
            victim.waiting = (0..entries.len()).collect();
            victim.entries = entries;
            victim.tombstones = tombstones.into_iter().collect();
            victim.stage = Stage::Copying;
        }
    }

    /// Whether nobody else waits for the device.
    fn is_idle(&self) -> bool {
        let Some(victim) = &self.cleaner.victim else {
            return true;
        };
        let copies = victim.jobs.values().filter(|job| job.queued).count();
        self.writing.len() <= copies
            && self.deleting.len() <= victim.carrying.len()
            && self.reads.is_empty()
            && self.streams[StreamNo::Journal as usize].idle()
    }

    /// Whether another record of so many bytes may be taken on now. If so, it is counted.
    pub(crate) fn may_copy(&mut self, len: u64) -> bool {
        let Some(victim) = &self.cleaner.victim else {
            return false;
        };
        let under_way: u64 = victim
            .jobs
            .keys()
            .filter_map(|entry| victim.entries.get(*entry))
            .map(|entry| entry.len)
            .sum();
        let count = victim.jobs.len() + victim.carrying.len();
        let alone = self.is_idle() || self.extents.free_count() <= self.extents.reserve();
        let most = if alone {
            UNDER_WAY_MAX
        } else {
            UNDER_WAY_MAX / 4
        };
        // What is on its way when power goes costs its room.
        let several = count < JOBS_MAX && self.extents.free_count() > 0;
        let room = count == 0 || (several && under_way + len <= most);
        if !room || !(alone || self.cleaner.allowance >= len) {
            return false;
        }
        self.cleaner.allowance = self.cleaner.allowance.saturating_sub(len);
        true
    }
}
