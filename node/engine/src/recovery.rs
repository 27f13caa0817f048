//! What recovery puts together from what [`crate::opening`] reads: extents, index, journal.
//!
//! Invariants: see [`crate::opening`]. Here in particular:
//! - an extent's records come from its footer if that is whole and of the extent's present life, and
//!   from a scan otherwise; never from both;
//! - a valid extent header is believed about its incarnation, unless something in the extent is of a
//!   later one; without a header, the checkpoint gives a lower bound;
//!   A header below that bound is the trace of a lost write, and counts as none;
//! - a tombstone kills records of a lower sequence number only;
//! - unreadable is not absent: of a shard whose head is valid and whose payload is not, the index keeps
//!   the place if the extent's footer named it (then it was durable), or if a whole and newer record of the
//!   same owner stands behind it. Reading it gives "corrupt". (Of writes under way together a crash may have
//!   torn the first and not the second: what nobody was promised is called corrupt then, too.) What is the
//!   last of its owner is taken for torn, by this recovery and by all later ones;
//! - roots and chunks of indexes: see [`crate::roots`];
//! - damage in a journal extent is told by every recovery: records whose payload does not match keep
//!   their place in the table, marked, and what lies between the records of a table, or behind the
//!   last of them, is told as damaged; such an extent is not free before all have trimmed it
//!   ([`crate::holdings`]);
//! - a table is taken in only when all tables of later incarnations have been.

use std::collections::{BTreeSet, HashMap};

use ashlar_layout::extent::{ExtentHeader, ExtentKind, Geometry};
use ashlar_layout::footer::{Footer, FooterEntry, TRAILER_LEN, Trailer, trailer_at};
use ashlar_layout::ids::{DeviceId, ExtentNo, Incarnation, OwnerEpoch, PartitionId, Seq};
use ashlar_layout::record::{Subject, header_len, record_len};
use ashlar_layout::stamp::{HeadFault, Place};

use crate::error::{Blind, Finding, FindingKind, extent_finding};
use crate::extents::{ExtentTable, State};
use crate::graves::{Graves, gaps};
use crate::holdings::Holdings;
use crate::index::{Candidate, Index, UNIT};
use crate::mutants::mutant;
use crate::opening::{DamagedJournal, JournalRecord, RecoveryReport};
use crate::rewrite::{Doubt, Piece};
use crate::roots::Roots;
use crate::scan::{Scan, Scanned, Wholeness};

/// Extents above the highest used one whose header is not believed to be merely unwritten.
const BEYOND: u32 = 4;
/// Footers that are held in memory before they are taken in.
const TABLES_AHEAD: usize = 64;

/// A read that recovery wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Want {
    Copy(u8),
    Checkpoint,
    Header(ExtentNo),
    Trailer(ExtentNo),
    Scan(ExtentNo),
    Footer(ExtentNo),
    Root(PartitionId),
    Doubtful(Piece),
    Rewritten { at: u64 },
    Flush,
}

/// Reads that wait for their turn, last first: what for, where, how much.
pub(crate) type Queue = Vec<(Want, u64, usize)>;

/// What is known of an extent.
#[derive(Default)]
pub(crate) struct Seen {
    pub header: Option<ExtentHeader>,
    /// The checkpoint of a clean device calls it free.
    pub skip: bool,
    /// Lower bound of its incarnation, by the checkpoint.
    pub floor: Incarnation,
    trailer: Option<Trailer>,
    /// How many records the footer of its present life names, if there is or was one.
    named: Option<u32>,
    /// Something in it could not be read, or is damaged so that it cannot be told what it was.
    pub unreadable: bool,
    scan: Option<Box<Scan>>,
    pub scanned: bool,
    pub records: Option<Vec<FooterEntry>>,
    pub tail: u64,
    pub incarnation: Incarnation,
    /// Its footer will leave out a root that is torn.
    pub torn_root: bool,
    /// It gets no footer: damage in it could not be told from a footer.
    pub no_footer: bool,
}

/// What recovery has put together.
pub(crate) struct Work {
    pub geometry: Geometry,
    pub device: DeviceId,
    pub seen: Vec<Seen>,
    /// Highest extent that was ever used, as far as is known.
    pub highest: Option<u32>,
    scans: BTreeSet<u32>,
    /// Extents whose tables are to be taken in, oldest first.
    order: Vec<ExtentNo>,
    pub index: Index,
    pub extents: ExtentTable,
    pub graves: Graves,
    pub holdings: Holdings,
    pub roots: Roots,
    /// The device was closed in order.
    pub clean: bool,
    pub journal: Vec<JournalRecord>,
    pub damaged: Vec<DamagedJournal>,
    /// Gaps in the journal: in which extent, and the sequence number of what stands behind it there.
    pub journal_gaps: Vec<(ExtentNo, Option<u64>)>,
    /// The first place that could not be read and may have held records.
    pub blind: Option<Blind>,
    /// After a failure: what may be less durable than it seems.
    pub doubt: Option<Doubt>,
}

impl Work {
    pub fn new(geometry: Geometry, device: DeviceId, doubt: Option<OwnerEpoch>) -> Work {
        let count = geometry.extent_count();
        Work {
            geometry,
            device,
            seen: (0..count).map(|_| Seen::default()).collect(),
            highest: None,
            scans: BTreeSet::new(),
            order: Vec::new(),
            index: Index::new(device),
            extents: ExtentTable::new(count, geometry.extent_size),
            graves: Graves::default(),
            holdings: Holdings::new(geometry),
            roots: Roots::default(),
            clean: false,
            journal: Vec::new(),
            damaged: Vec::new(),
            journal_gaps: Vec::new(),
            blind: None,
            doubt: doubt.map(Doubt::new),
        }
    }

    pub fn all(&self) -> impl Iterator<Item = ExtentNo> + use<> {
        (0..self.geometry.extent_count()).map(ExtentNo)
    }

    pub fn block(&self) -> u64 {
        u64::from(self.geometry.block_size)
    }

    pub fn place(&self, no: ExtentNo, address: u64) -> Place {
        Place {
            device: self.device,
            extent: no,
            incarnation: None,
            address,
        }
    }

    fn is_blind(&mut self, kind: FindingKind, offset: u64, len: u64) {
        self.blind.get_or_insert(Blind { offset, len, kind });
    }

    fn unreadable(&mut self, no: ExtentNo, offset: u64, len: u64, findings: &mut Vec<Finding>) {
        let seen = &mut self.seen[no.0 as usize];
        seen.unreadable = true;
        if seen.header.is_none_or(|h| h.kind != ExtentKind::Index) {
            self.is_blind(FindingKind::Unreadable, offset, len);
        }
        findings.push(extent_finding(
            FindingKind::Unreadable,
            self.device,
            offset,
            len,
        ));
    }

    pub fn ask_headers(&self, queue: &mut Queue) {
        for no in self.all() {
            if !self.seen[no.0 as usize].skip {
                let at = self.geometry.extent_start(no);
                queue.push((Want::Header(no), at, self.block() as usize));
            }
        }
        queue.reverse();
    }

    pub fn take_header(&mut self, no: ExtentNo, bytes: Option<&[u8]>, findings: &mut Vec<Finding>) {
        let at = self.geometry.extent_start(no);
        let Some(bytes) = bytes else {
            return self.unreadable(no, at, self.block(), findings);
        };
        let header = ExtentHeader::decode(bytes, &self.place(no, at))
            .ok()
            .filter(|header| {
                header.block_size == self.geometry.block_size
                    && header.extent_size == self.geometry.extent_size
            });
        if let Some(header) = header {
            self.highest = self.highest.max(Some(no.0));
            self.roots.opened_at(header.first_sequence);
        }
        let seen = &mut self.seen[no.0 as usize];
        if header.is_some_and(|header| header.incarnation < seen.floor) {
            let kind = FindingKind::ExtentHeader;
            let len = u64::from(self.geometry.block_size);
            findings.push(extent_finding(kind, self.device, at, len));
            // What was written behind it may be lost, too.
            self.is_blind(FindingKind::LostWrite, at, len);
            return;
        }
        seen.header = header;
    }

    pub fn ask_trailers(&self, queue: &mut Queue) {
        for no in self.all() {
            let header = &self.seen[no.0 as usize].header;
            if header.is_some_and(|header| header.kind != ExtentKind::Checkpoint) {
                let at = self.geometry.extent_end(no) - self.block();
                queue.push((Want::Trailer(no), at, self.block() as usize));
            }
        }
        queue.reverse();
    }

    pub fn take_trailer(
        &mut self,
        no: ExtentNo,
        bytes: Option<&[u8]>,
        findings: &mut Vec<Finding>,
    ) {
        let end = self.geometry.extent_end(no);
        let at = end - self.block();
        let Some(bytes) = bytes else {
            return self.unreadable(no, at, self.block(), findings);
        };
        let bytes = &bytes[self.block() as usize - TRAILER_LEN..self.block() as usize];
        let place = self.place(no, trailer_at(end));
        match Trailer::decode(bytes, &place) {
            Ok(trailer) => {
                let seen = &mut self.seen[no.0 as usize];
                let present = seen.header.map(|header| header.incarnation);
                let inside = trailer.footer >= self.geometry.records_start(no);
                if present == Some(trailer.incarnation) && inside {
                    seen.trailer = Some(trailer);
                    seen.named = Some(trailer.count);
                }
            }
            Err(error) => {
                use ashlar_layout::footer::FooterError;
                if let FooterError::Head(head) = error
                    && matches!(head.fault, HeadFault::BadCrc { .. })
                {
                    findings.push(extent_finding(
                        FindingKind::Footer,
                        self.device,
                        at,
                        self.block(),
                    ));
                }
            }
        }
    }

    /// Which extents have to be searched: those in use without a trailer, and those without a valid
    /// header that may be in use.
    pub fn choose_scans(&mut self) {
        let limit = self.highest.map_or(0, |highest| highest + 1) + BEYOND;
        for no in 0..self.geometry.extent_count() {
            let seen = &self.seen[no as usize];
            let search = match seen.header {
                Some(header) => header.kind != ExtentKind::Checkpoint && seen.trailer.is_none(),
                None => !seen.skip && (no < limit || seen.unreadable),
            };
            if search && !seen.scanned {
                self.scans.insert(no);
            }
        }
    }

    /// Begins the next search; false if none is left.
    pub fn next_scan(&mut self, queue: &mut Queue) -> bool {
        match self.scans.pop_first() {
            Some(no) => {
                self.begin_scan(ExtentNo(no), queue);
                true
            }
            None => false,
        }
    }

    fn begin_scan(&mut self, no: ExtentNo, queue: &mut Queue) {
        let seen = &mut self.seen[no.0 as usize];
        let floor = seen.header.map_or(seen.floor, |header| header.incarnation);
        let mut scan = Box::new(Scan::new(self.geometry, self.device, no, floor));
        if let Some((at, len)) = scan.want() {
            queue.push((Want::Scan(no), at, len));
        }
        seen.scanned = true;
        seen.trailer = None;
        seen.scan = Some(scan);
    }

    pub fn take_scan(
        &mut self,
        no: ExtentNo,
        bytes: Option<&[u8]>,
        queue: &mut Queue,
        report: &mut RecoveryReport,
        findings: &mut Vec<Finding>,
    ) {
        let Some(mut scan) = self.seen[no.0 as usize].scan.take() else {
            return;
        };
        match bytes {
            Some(bytes) => {
                let len = scan.asked();
                scan.feed(&bytes[..len]);
            }
            None => scan.fail(),
        }
        if let Some((at, len)) = scan.want() {
            queue.push((Want::Scan(no), at, len));
            self.seen[no.0 as usize].scan = Some(scan);
            return;
        }
        report.extents_scanned += 1;
        self.scanned(no, *scan, findings);
    }

    /// A search has ended.
    fn scanned(&mut self, no: ExtentNo, scan: Scan, findings: &mut Vec<Finding>) {
        let (device, block) = (self.device, self.block());
        for at in &scan.misdirected {
            findings.push(extent_finding(FindingKind::Misdirected, device, *at, block));
        }
        let base = u64::from(no.0) * self.geometry.extent_size;
        let block_size = self.geometry.block_size;
        let header = self.seen[no.0 as usize].header;
        let is_journal =
            |scanned: &Scanned| matches!(scanned.header.subject, Subject::Journal { .. });
        let journal = header.is_some_and(|header| header.kind == ExtentKind::Journal)
            || scan.found.iter().any(is_journal);
        let index = header.is_some_and(|header| header.kind == ExtentKind::Index)
            || scan
                .found
                .iter()
                .any(|scanned| is_index(&scanned.header.subject));
        // Nothing in an extent is acknowledged before its header is durable.
        let unopened = match header {
            Some(header) => header.incarnation != scan.incarnation(),
            None => !self.seen[no.0 as usize].unreadable,
        };
        let nothing = header.is_none() && scan.found.is_empty();
        for at in &scan.bad_heads {
            findings.push(extent_finding(
                FindingKind::RecordHeader,
                device,
                *at,
                block,
            ));
            if !journal && !index {
                // It may have been any shard's.
                self.is_blind(FindingKind::RecordHeader, *at, block);
            }
            self.seen[no.0 as usize].unreadable |= nothing;
        }
        let unreadable = scan.unreadable.iter().copied();
        for (at, len) in unreadable.clone() {
            self.unreadable(no, at, len, findings);
        }
        let rotten = scan.bad_heads.iter().map(|at| (*at, block));
        // In a journal, a rotten head is a gap between records, and told with those.
        for (offset, len) in unreadable.chain(rotten.filter(|_| nothing)) {
            if journal || header.is_none() {
                self.damaged.push(DamagedJournal {
                    offset,
                    len,
                    entries: None,
                });
            }
        }
        // As many as the footer named: it named each of them, and so each was durable. (What was torn before
        // the extent was sealed was not named.)
        let named = self.seen[no.0 as usize].named.is_some_and(|named| {
            named as usize == scan.found.len()
                && scan.bad_heads.is_empty()
                && scan.unreadable.is_empty()
                && header.is_some_and(|header| header.incarnation == scan.incarnation())
        });
        let mut records = Vec::with_capacity(scan.found.len());
        // From the last one back: what follows a record tells what its damage means.
        let mut followed: Option<(OwnerEpoch, u64)> = None;
        if index && !unopened {
            self.lost_roots(no, &scan);
        }
        for Scanned { header, wholeness } in scan.found.iter().rev() {
            let (offset, len) = (header.address, header.record_len(block_size));
            let (entry, whole) = (
                FooterEntry::of(header, base, block_size),
                *wholeness == Wholeness::Whole,
            );
            if whole {
                if let Some(doubt) = &mut self.doubt
                    && !matches!(header.subject, Subject::IndexChunk { .. })
                {
                    doubt.add(no, header.owner_epoch, offset, len);
                }
                // Of a life the last whole record is met first.
                if followed.is_none_or(|(owner, _)| owner != header.owner_epoch) {
                    followed = Some((header.owner_epoch, header.sequence));
                }
                records.push(entry);
                continue;
            }
            let entries = match header.subject {
                Subject::Journal {
                    partition,
                    first,
                    last,
                } => Some((partition, first, last)),
                _ => None,
            };
            let outlived = followed.is_some_and(|(owner, sequence)| {
                owner == header.owner_epoch && sequence > header.sequence
            });
            if let Subject::IndexChunk { .. } = header.subject {
                // Whether that matters is known when somebody keeps it.
                records.push(FooterEntry {
                    damaged: true,
                    ..entry
                });
                continue;
            }
            let root = matches!(header.subject, Subject::IndexRoot { .. });
            let torn = root && !named && (unopened || !self.was_durable(header.sequence));
            self.seen[no.0 as usize].torn_root |= torn;
            if entries.is_some() || (root && !torn) {
                records.push(FooterEntry {
                    damaged: true,
                    ..entry
                });
            } else if root {
                // The one before it is as good.
            } else if *wholeness == Wholeness::Unreadable {
                records.push(entry);
                continue;
            } else if outlived || named {
                // Not the last that its owner wrote: it may well have been acknowledged.
                records.push(entry);
            }
            let kind = FindingKind::RecordTorn;
            let shard = header.subject.shard();
            findings.push(Finding {
                kind,
                device,
                offset,
                len,
                shard,
                journal: entries,
            });
        }
        records.reverse();
        let seen = &mut self.seen[no.0 as usize];
        seen.incarnation = scan.incarnation();
        seen.tail = scan.tail;
        let found = !scan.found.is_empty();
        let header_good = seen
            .header
            .is_some_and(|h| h.incarnation == seen.incarnation);
        if !header_good && found {
            let at = self.geometry.extent_start(no);
            findings.push(extent_finding(FindingKind::ExtentHeader, device, at, block));
            // The record heads tell what the header does not.
            seen.header = None;
        }
        seen.records = Some(records);
        if found && self.highest.is_none_or(|highest| highest < no.0) {
            self.highest = Some(no.0);
            self.choose_scans();
        }
    }

    /// Which tables to take in, and in which order.
    pub fn order_tables(&mut self) {
        let mut count = 0;
        for no in self.all() {
            let seen = &mut self.seen[no.0 as usize];
            if let (Some(trailer), Some(header)) = (&seen.trailer, &seen.header) {
                seen.incarnation = header.incarnation;
                count += u64::from(trailer.count);
                self.order.push(no);
            } else if let Some(records) = &seen.records {
                count += records.len() as u64;
                self.order.push(no);
            }
        }
        let seen = &self.seen;
        self.order.sort_by_key(|no| seen[no.0 as usize].incarnation);
        self.index.reserve(count);
    }

    /// Asks for the next tables; false if all were taken in.
    pub fn ask_tables(&mut self, queue: &mut Queue) -> bool {
        for no in self.order.iter().rev().take(TABLES_AHEAD).rev() {
            let seen = &self.seen[no.0 as usize];
            if let (Some(trailer), None) = (&seen.trailer, &seen.records) {
                queue.push((Want::Footer(*no), trailer.footer, trailer.len as usize));
            }
        }
        !self.order.is_empty()
    }

    pub fn take_footer(
        &mut self,
        no: ExtentNo,
        bytes: Option<&[u8]>,
        queue: &mut Queue,
        report: &mut RecoveryReport,
        findings: &mut Vec<Finding>,
    ) {
        let seen = &self.seen[no.0 as usize];
        let Some(trailer) = seen.trailer else {
            return;
        };
        let place = Place {
            incarnation: Some(trailer.incarnation),
            ..self.place(no, trailer.footer)
        };
        let base = u64::from(no.0) * self.geometry.extent_size;
        let start = self.geometry.records_start(no);
        let inside = |entry: &FooterEntry| {
            let at = base + u64::from(entry.offset_blocks) * self.block();
            let len = record_len(entry.payload_len, self.geometry.block_size);
            at >= start && at + len <= trailer.footer
        };
        let footer = bytes
            .and_then(|bytes| Footer::decode(&bytes[..trailer.len as usize], &place).ok())
            .filter(|footer| footer.entries.iter().all(inside));
        if let Some(footer) = footer {
            report.footers_read += 1;
            let seen = &mut self.seen[no.0 as usize];
            seen.tail = footer.records_end;
            seen.records = Some(footer.entries);
            return;
        }
        let (at, len) = (trailer.footer, u64::from(trailer.len));
        if bytes.is_none() {
            self.unreadable(no, at, len, findings);
        } else {
            findings.push(extent_finding(FindingKind::Footer, self.device, at, len));
        }
        self.begin_scan(no, queue);
    }

    /// Takes in the tables that are there, newest first, up to the first that is not.
    pub fn take_tables(&mut self, report: &mut RecoveryReport) {
        while let Some(no) = self.order.last().copied() {
            let seen = &mut self.seen[no.0 as usize];
            let Some(records) = seen.records.take() else {
                return;
            };
            self.order.pop();
            let journal = records
                .iter()
                .any(|entry| matches!(entry.subject, Subject::Journal { .. }));
            let kind = match seen.header {
                Some(header) => header.kind,
                None if journal => ExtentKind::Journal,
                None if records.iter().any(|entry| is_index(&entry.subject)) => ExtentKind::Index,
                None => ExtentKind::Data,
            };
            // One that was cleaned is free at once: it must not seem to be newer than what is appended to.
            let state = match kind {
                ExtentKind::Data if records.is_empty() => State::Free,
                _ => State::Sealed,
            };
            self.extents.adopt(no, state, Some(kind), seen.incarnation);
            if kind == ExtentKind::Journal {
                let tail = self.seen[no.0 as usize].tail;
                let gaps = gaps(&self.geometry, no, &records, tail);
                self.holdings.found_journal(no);
                for gap in &gaps {
                    // Whatever was there was appended before what stands behind it.
                    let behind = |entry: &&FooterEntry| self.address(no, entry) > gap.offset;
                    let before = records.iter().find(behind).map(|entry| entry.sequence);
                    self.journal_gaps.push((no, before));
                }
                self.damaged.extend(gaps);
            }
            self.take_table(no, &records, report);
            if self.seen[no.0 as usize].scanned {
                self.seen[no.0 as usize].records = Some(records);
            }
        }
    }

    fn address(&self, no: ExtentNo, entry: &FooterEntry) -> u64 {
        let base = u64::from(no.0) * self.geometry.extent_size;
        base + u64::from(entry.offset_blocks) * self.block()
    }

    fn take_table(&mut self, no: ExtentNo, entries: &[FooterEntry], report: &mut RecoveryReport) {
        for entry in entries {
            if let Subject::Tombstone(shard) = entry.subject {
                report.tombstones += 1;
                self.graves.dig(shard, no, entry.sequence);
            }
        }
        // Of each partition the highest of its journal records here.
        let mut tails: HashMap<PartitionId, (Seq, u64)> = HashMap::new();
        for entry in entries {
            let address = self.address(no, entry);
            let record = record_len(entry.payload_len, self.geometry.block_size);
            let tombstone = matches!(entry.subject, Subject::Tombstone(_));
            self.extents.wrote(no, record, tombstone);
            match entry.subject {
                Subject::Tombstone(_) => {}
                Subject::Shard(shard) => {
                    if let Some(by) = self.graves.claim(&shard, entry.sequence)
                        && !mutant!(Resurrect)
                    {
                        self.extents.pin(no, by);
                        report.shards_dead += 1;
                        continue;
                    }
                    let units = record.div_ceil(UNIT) as u16;
                    let candidate = Candidate {
                        block: address / self.block(),
                        units,
                    };
                    self.index.insert(self.index.hash(&shard), candidate);
                    self.extents.born(no, record);
                    report.shards += 1;
                }
                Subject::Journal {
                    partition,
                    first,
                    last,
                } => {
                    let tail = tails.entry(partition).or_insert((last, entry.sequence));
                    *tail = (tail.0.max(last), tail.1.max(entry.sequence));
                    if entry.damaged {
                        self.damaged.push(DamagedJournal {
                            offset: address,
                            len: record,
                            entries: Some((partition, first, last)),
                        });
                        continue;
                    }
                    let head = header_len(entry.payload_len, self.geometry.block_size);
                    report.journal_records += 1;
                    self.journal.push(JournalRecord {
                        partition,
                        at: address + u64::from(head),
                        len: entry.payload_len,
                        first,
                        last,
                        sequence: entry.sequence,
                    });
                }
                Subject::IndexChunk { .. } => {
                    report.chunks += 1;
                    let head = header_len(entry.payload_len, self.geometry.block_size);
                    let at = address + u64::from(head);
                    self.holdings
                        .found_chunk(at, entry.payload_len, entry.damaged);
                }
                Subject::IndexRoot { .. } => {
                    report.roots += 1;
                    self.roots.found(no, address, entry);
                }
            }
        }
        for (partition, (last, sequence)) in tails {
            self.holdings.found_record(no, partition, last, sequence);
        }
    }
}

/// Whether a record is of an index.
fn is_index(subject: &Subject) -> bool {
    matches!(
        subject,
        Subject::IndexChunk { .. } | Subject::IndexRoot { .. }
    )
}
