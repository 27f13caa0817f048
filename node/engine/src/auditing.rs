//! Looking at one extent: its ends, its table, and whether table and index agree. [`crate::audit`] says when.
//!
//! *Index to device*: as many of the records that the table names are in the index as slots of the index point into
//! the extent ([`Extent::live`] counts these). So each of them is named. Where the numbers differ the index is gone
//! through for those that are not, and what stands there is looked at.
//!
//! *Device to index*: a record that the table names and the index does not know has to be dead. A tombstone of its
//! shard with a higher sequence number stands in the same table, or in one of the extents that are pinned by this one;
//! those are read. (They cannot be freed before this extent's life has ended, and if one is cleaned its tombstones are
//! in another one that is pinned instead.)
//!
//! Invariants:
//! - The table of a sealed extent does not change in one life; it is compared with the index, and with which extents
//!   are pinned, in one event. An open extent's table is asked for in memory, at the end, when no other is left.
//! - Which extents are pinned, and what stands in those that are open, is seen once a look, in that event. One that
//!   was dead then has its tombstone there, wherever it is copied to later.
//! - Where the table of a pinned extent cannot be had, or more of them would have to be read than [`KILLERS_MAX`] or
//!   than an extent has bytes, nothing is said of what they may explain, and the look counts as left out in part.
//! - An extent without a footer was told of when the device was opened, and is not told of again.
//!
//! [`Extent::live`]: crate::extents::Extent::live

use std::collections::{BTreeSet, HashMap, HashSet};

use ashlar_layout::diagnosis::diagnose;
use ashlar_layout::extent::ExtentKind;
use ashlar_layout::footer::{Footer, FooterEntry, FooterError, TRAILER_LEN, Trailer, trailer_at};
use ashlar_layout::ids::{ExtentNo, Incarnation, ShardId};
use ashlar_layout::record::{RecordHeader, Subject, record_len};
use ashlar_layout::stamp::Place;

use crate::api::Memory;
use crate::append::FOOTER_MAX;
use crate::audit::{FINDINGS_MAX, Job, Turn, head_fault};
use crate::engine::Engine;
use crate::error::{Finding, FindingKind, extent_finding};
use crate::extents::State;
use crate::index::{Candidate, ShardHash, UNIT, WALK_END};

/// Slots that no table names: so many are looked at.
const STRAYS_MAX: usize = 16;
/// Pinned extents whose tables are read in a look. With records that are deleted at random there may be as many as
/// records: all of those read for each extent, a pass would grow with the square of what a device holds.
pub(crate) const KILLERS_MAX: usize = 64;

/// An extent that is being looked at.
pub(crate) struct ExtentLook {
    pub no: ExtentNo,
    life: Incarnation,
    kind: ExtentKind,
    /// It has a footer.
    sealed: bool,
    part: Part,
    /// Blocks of the records that its table names and the index knows, if these are not all that the index knows.
    named: Option<HashSet<u64>>,
    /// Records that its table names and the index does not know, and of which no tombstone was found yet.
    dead: Vec<Dead>,
    /// Extents that are pinned by this one, and whose tombstones are yet to be looked at.
    killers: Vec<(ExtentNo, Incarnation)>,
    /// How many were, and what was read for it.
    killers_read: usize,
    killer_bytes: u64,
    /// Where in the index it is gone on.
    from: u64,
    strays: Vec<(ShardHash, Candidate)>,
}

/// What of it is looked at.
#[derive(Clone, Copy)]
enum Part {
    Ends,
    Footer(u64, u32),
    /// The trailer of an extent that is pinned because of it,
    KillerEnd(ExtentNo, Incarnation),
    /// and its footer.
    KillerFooter(ExtentNo, Incarnation, u64),
    Hunt,
    Heads,
}

struct Dead {
    shard: ShardId,
    sequence: u64,
    offset: u64,
    len: u64,
}

impl ExtentLook {
    /// From the beginning.
    pub fn again(&mut self) {
        self.part = Part::Ends;
        self.named = None;
        self.dead.clear();
        self.killers.clear();
        (self.killers_read, self.killer_bytes) = (0, 0);
        self.from = 0;
        self.strays.clear();
    }

    /// Of these tombstones some are of what seems to be dead.
    fn explain<'a>(&mut self, entries: impl IntoIterator<Item = &'a FooterEntry>) {
        if self.dead.is_empty() {
            return;
        }
        let mut graves: HashMap<ShardId, u64> = HashMap::new();
        for entry in entries {
            if let Subject::Tombstone(shard) = entry.subject {
                let highest = graves.entry(shard).or_default();
                *highest = entry.sequence.max(*highest);
            }
        }
        self.dead.retain(|dead| {
            let grave = graves.get(&dead.shard);
            grave.is_none_or(|sequence| *sequence <= dead.sequence)
        });
    }
}

impl<M: Memory> Engine<M> {
    /// The first extent from this one on in which something is to be seen.
    pub(crate) fn next_extent_look(&self, from: ExtentNo) -> Option<ExtentLook> {
        let all = self.extents.iter().skip(from.0 as usize);
        let mut all = all.filter_map(|(no, extent)| {
            let kind = extent.kind.filter(|kind| *kind != ExtentKind::Checkpoint)?;
            let used = matches!(extent.state, State::Open | State::Sealed) && !extent.cleaning;
            // Its header may be on its way, or was missed when the device was opened.
            let has_header = extent.durable == extent.incarnation;
            (used && has_header).then(|| ExtentLook {
                no,
                life: extent.incarnation,
                kind,
                sealed: extent.state == State::Sealed && !extent.bare,
                part: Part::Ends,
                named: None,
                dead: Vec::new(),
                killers: Vec::new(),
                killers_read: 0,
                killer_bytes: 0,
                from: 0,
                strays: Vec::new(),
            })
        });
        all.next()
    }

    /// Whether it is what it was: not freed, not opened again, and not about to be erased.
    fn is_still(&self, look: &ExtentLook) -> bool {
        let extent = self.extents.get(look.no);
        let used = match extent.state {
            State::Sealed => true,
            State::Open => !look.sealed,
            State::Free | State::Quarantined => false,
        };
        used && extent.incarnation == look.life && !extent.cleaning
    }

    pub(crate) fn look_at_extent(&self, job: &mut Job<M::Buf>, look: &mut ExtentLook) -> Turn {
        if !self.is_still(look) {
            return Turn::LeaveOut;
        }
        match look.part {
            Part::Ends if job.got.is_empty() => {
                let block = self.geometry.block_size as usize;
                let mut reads = vec![(self.geometry.extent_start(look.no), block)];
                if look.sealed {
                    reads.push((self.last_block(look.no), block));
                }
                Turn::Read(reads)
            }
            Part::Ends => self.ends_read(job, look),
            Part::Footer(at, len) => self.table_read(job, look, (at, len)),
            Part::KillerEnd(no, life) => match self.trailer_in(no, life, job.bytes(0)) {
                Ok(trailer) => {
                    look.part = Part::KillerFooter(no, life, trailer.footer);
                    look.killer_bytes += u64::from(trailer.len);
                    Turn::Read(vec![(trailer.footer, trailer.len as usize)])
                }
                Err(_) => {
                    give_up_dead(job, look);
                    self.next_grave(job, look)
                }
            },
            Part::KillerFooter(no, life, at) => {
                // It may be free by now, or cleaned: what stood there is true of when the table was read.
                match self.footer_in(no, life, at, job.bytes(0)) {
                    Ok(footer) => look.explain(&footer.entries),
                    Err(_) => give_up_dead(job, look),
                }
                self.next_grave(job, look)
            }
            Part::Hunt => self.hunt(job, look),
            Part::Heads => {
                self.heads_read(job, look);
                Turn::Seen
            }
        }
    }

    /// Where the block with an extent's trailer begins.
    fn last_block(&self, no: ExtentNo) -> u64 {
        self.geometry.extent_end(no) - u64::from(self.geometry.block_size)
    }

    /// The trailer in an extent's last block, or what is wrong with it.
    fn trailer_in(
        &self,
        no: ExtentNo,
        life: Incarnation,
        bytes: Option<&[u8]>,
    ) -> Result<Trailer, FindingKind> {
        let bytes = bytes.ok_or(FindingKind::Unreadable)?;
        let address = trailer_at(self.geometry.extent_end(no));
        let place = Place {
            device: self.device,
            extent: no,
            incarnation: Some(life),
            address,
        };
        let tail = bytes.len().saturating_sub(TRAILER_LEN);
        let bytes = &bytes[tail..];
        let trailer =
            Trailer::decode(bytes, &place).map_err(|error| footer_fault(&error, bytes))?;
        let fits = trailer.footer >= self.geometry.records_start(no)
            && u64::from(trailer.len) <= FOOTER_MAX;
        fits.then_some(trailer).ok_or(FindingKind::Footer)
    }

    /// The footer of an extent, or what is wrong with it.
    fn footer_in(
        &self,
        no: ExtentNo,
        life: Incarnation,
        at: u64,
        bytes: Option<&[u8]>,
    ) -> Result<Footer, FindingKind> {
        let bytes = bytes.ok_or(FindingKind::Unreadable)?;
        let place = Place {
            device: self.device,
            extent: no,
            incarnation: Some(life),
            address: at,
        };
        let footer = Footer::decode(bytes, &place).map_err(|error| footer_fault(&error, bytes))?;
        let start = self.geometry.records_start(no);
        let inside = |entry: &FooterEntry| {
            let (offset, len) = self.span(no, entry);
            offset >= start && offset + len <= at
        };
        let sound = footer.entries.iter().all(inside);
        sound.then_some(footer).ok_or(FindingKind::Footer)
    }

    /// Where the record of an entry stands, and its bytes.
    fn span(&self, no: ExtentNo, entry: &FooterEntry) -> (u64, u64) {
        let base = u64::from(no.0) * self.geometry.extent_size;
        let block_size = self.geometry.block_size;
        let offset = base + u64::from(entry.offset_blocks) * u64::from(block_size);
        (offset, record_len(entry.payload_len, block_size))
    }

    fn ends_read(&self, job: &mut Job<M::Buf>, look: &mut ExtentLook) -> Turn {
        let block = u64::from(self.geometry.block_size);
        if let Some(kind) = self.bad_header(job, look.no, look.life, look.kind) {
            let start = self.geometry.extent_start(look.no);
            job.suspect(extent_finding(kind, self.device, start, block));
        }
        if !look.sealed {
            return Turn::Seen;
        }
        match self.trailer_in(look.no, look.life, job.bytes(1)) {
            Ok(trailer) => {
                look.part = Part::Footer(trailer.footer, trailer.len);
                Turn::Read(vec![(trailer.footer, trailer.len as usize)])
            }
            Err(kind) => {
                let at = self.last_block(look.no);
                job.suspect(extent_finding(kind, self.device, at, block));
                Turn::Seen
            }
        }
    }

    /// The table is there: it is compared with the index.
    fn table_read(
        &self,
        job: &mut Job<M::Buf>,
        look: &mut ExtentLook,
        (at, len): (u64, u32),
    ) -> Turn {
        let footer = match self.footer_in(look.no, look.life, at, job.bytes(0)) {
            Ok(footer) => footer,
            Err(kind) => {
                job.suspect(extent_finding(kind, self.device, at, u64::from(len)));
                return Turn::Seen;
            }
        };
        if look.kind != ExtentKind::Data {
            return Turn::Seen;
        }
        let block_size = u64::from(self.geometry.block_size);
        let mut named = HashSet::new();
        for entry in &footer.entries {
            let Subject::Shard(shard) = entry.subject else {
                continue;
            };
            let (offset, len) = self.span(look.no, entry);
            let block = offset / block_size;
            let mut known = self.index.candidates(self.index.hash(&shard));
            match known.find(|candidate| candidate.block == block) {
                Some(candidate) => {
                    named.insert(block);
                    if u64::from(candidate.units) != len.div_ceil(UNIT) {
                        let kind = FindingKind::WrongRecord;
                        job.suspect(self.of_shard(kind, (offset, len), shard));
                    }
                }
                None => look.dead.push(Dead {
                    shard,
                    sequence: entry.sequence,
                    offset,
                    len,
                }),
            }
        }
        look.explain(&footer.entries);
        if named.len() as u64 != u64::from(self.extents.get(look.no).live) {
            look.named = Some(named);
        }
        self.find_graves(job, look);
        self.next_grave(job, look)
    }

    fn of_shard(&self, kind: FindingKind, (offset, len): (u64, u64), shard: ShardId) -> Finding {
        Finding {
            kind,
            device: self.device,
            offset,
            len,
            shard: Some(shard),
            journal: None,
        }
    }

    /// Looks for the tombstones of what seems to be dead in memory, and sees where else such stand.
    fn find_graves(&self, job: &mut Job<M::Buf>, look: &mut ExtentLook) {
        if look.dead.is_empty() {
            return;
        }
        let killers: BTreeSet<ExtentNo> = self.extents.get(look.no).killers().collect();
        let open = self
            .streams
            .iter()
            .filter_map(|stream| stream.open.as_ref());
        let sealing = self.seals.iter().map(|seal| &seal.extent);
        for extent in open.chain(sealing) {
            if killers.contains(&extent.no) {
                look.explain(&extent.entries);
            }
        }
        for no in killers {
            let extent = self.extents.get(no);
            match extent.state {
                State::Open => {}
                State::Sealed if !extent.bare => look.killers.push((no, extent.incarnation)),
                // What stands in it is not known any more.
                _ => return give_up_dead(job, look),
            }
        }
    }

    /// Looks for them in the next one of those.
    fn next_grave(&self, job: &mut Job<M::Buf>, look: &mut ExtentLook) -> Turn {
        if !look.dead.is_empty()
            && let Some((no, life)) = look.killers.pop()
        {
            let much = look.killer_bytes > self.geometry.extent_size;
            if look.killers_read >= self.audit.killers || much {
                give_up_dead(job, look);
            } else {
                look.part = Part::KillerEnd(no, life);
                let block = self.geometry.block_size;
                look.killers_read += 1;
                look.killer_bytes += u64::from(block);
                return Turn::Read(vec![(self.last_block(no), block as usize)]);
            }
        }
        for Dead {
            shard, offset, len, ..
        } in look.dead.drain(..)
        {
            job.suspect(self.of_shard(FindingKind::Unindexed, (offset, len), shard));
        }
        if look.named.is_none() {
            return Turn::Seen;
        }
        look.part = Part::Hunt;
        self.hunt(job, look)
    }

    /// The index knows of other records in the extent than its table: which?
    fn hunt(&self, job: &mut Job<M::Buf>, look: &mut ExtentLook) -> Turn {
        let block_size = u64::from(self.geometry.block_size);
        // The blocks of this extent.
        let blocks = self.geometry.extent_size / block_size;
        let first = u64::from(look.no.0) * blocks;
        let here = first..first + blocks;
        let named = look.named.take().unwrap_or_default();
        let mut most = self.audit.most.1;
        while look.from < WALK_END && look.strays.len() < STRAYS_MAX && most > 0 {
            let to = self.index.walk_to(look.from, most);
            let mut slots = 0;
            for (hash, candidate) in self.index.walk(look.from, to) {
                slots += 1;
                if here.contains(&candidate.block) && !named.contains(&candidate.block) {
                    look.strays.push((hash, candidate));
                }
            }
            look.from = to;
            job.slots += slots;
            most = most.saturating_sub(slots.max(1));
        }
        look.named = Some(named);
        if look.from < WALK_END && look.strays.len() < STRAYS_MAX {
            return Turn::Keep;
        }
        look.strays
            .retain(|(hash, stray)| self.index.contains(*hash, stray.block));
        look.strays.truncate(STRAYS_MAX.min(FINDINGS_MAX));
        if look.strays.is_empty() {
            // What was counted is not what there is.
            let (start, kind) = (self.geometry.extent_start(look.no), FindingKind::Astray);
            let len = self.geometry.extent_end(look.no) - start;
            job.suspect(extent_finding(kind, self.device, start, len));
            return Turn::Seen;
        }
        look.part = Part::Heads;
        let heads = look.strays.iter();
        let heads = heads.map(|(_, stray)| (stray.block * block_size, block_size as usize));
        Turn::Read(heads.collect())
    }

    /// What stands where the index has a record that the table does not name.
    fn heads_read(&self, job: &mut Job<M::Buf>, look: &ExtentLook) {
        let block_size = self.geometry.block_size;
        let mut found = Vec::new();
        for (at, (hash, stray)) in look.strays.iter().enumerate() {
            if !self.index.contains(*hash, stray.block) {
                continue;
            }
            let address = stray.block * u64::from(block_size);
            let (_, reach) = self.reach(*stray);
            let place = Place {
                device: self.device,
                extent: look.no,
                incarnation: Some(look.life),
                address,
            };
            let told = |kind| extent_finding(kind, self.device, address, reach);
            let header = job
                .bytes(at)
                .map(|bytes| (bytes, RecordHeader::decode(bytes, &place)));
            found.push(match header {
                None => told(FindingKind::Unreadable),
                Some((_, Ok(header))) => match header.subject {
                    // The record is there: it is the table that does not tell of it.
                    Subject::Shard(shard)
                        if self.index.contains(self.index.hash(&shard), stray.block) =>
                    {
                        self.of_shard(FindingKind::Footer, (address, reach), shard)
                    }
                    _ => told(FindingKind::WrongRecord),
                },
                Some((bytes, Err(_))) => {
                    let kind = diagnose(bytes, &place, block_size);
                    told(FindingKind::diagnosed(kind, FindingKind::Astray))
                }
            });
        }
        for finding in found {
            job.suspect(finding);
        }
    }
}

/// What a footer or trailer is called that is not the one that should be there.
fn footer_fault(error: &FooterError, bytes: &[u8]) -> FindingKind {
    match error {
        FooterError::Head(head) => head_fault(head, bytes, FindingKind::Footer),
        FooterError::BadTable { .. } | FooterError::BadEntry { .. } => FindingKind::Footer,
    }
}

/// Nothing can be said of what seems to be dead.
fn give_up_dead<B>(job: &mut Job<B>, look: &mut ExtentLook) {
    look.dead.clear();
    look.killers.clear();
    job.partly = true;
}
