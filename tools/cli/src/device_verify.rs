//! `ashlar device verify`: reads every record of a device that nobody serves, and checks it.
//!
//! Invariants:
//! - an unreadable or damaged record never hides the ones behind it: the scan goes on block by block;
//! - what an earlier life of an extent left behind, and what was never written, is no finding;
//! - a sealed extent is held to its footer: each record that it names must be there, whole (but chunks of
//!   indexes that it calls damaged: they were nobody's).

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use ashlar_layout::checkpoint::{ExtentEntry, ExtentState};
use ashlar_layout::diagnosis::diagnose;
use ashlar_layout::extent::{ExtentHeader, ExtentKind, Geometry};
use ashlar_layout::footer::{Footer, FooterEntry, TRAILER_LEN, Trailer, trailer_at};
use ashlar_layout::ids::{ExtentNo, Incarnation};
use ashlar_layout::journal;
use ashlar_layout::message::FindingKind;
use ashlar_layout::page::GRAIN;
use ashlar_layout::record::{RecordHeader, Subject, header_len, index_record_at};
use ashlar_layout::stamp::{HEAD_LEN, HeadFault, Place};
use ashlar_layout::superblock::Superblock;
use serde::Serialize;
use serde_json::json;

use crate::device_index::{self, Content, IndexRoot};
use crate::device_inspect::{ExtentCounts, read_checkpoint};
use crate::device_read::{self, DeviceFile, Window};
use crate::fail::Fail;
use crate::output::{self, Progress, human};

/// Findings that are told one by one; the rest are counted.
const TOLD_MAX: usize = 10_000;

/// Something that is not as it should be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// Which fault.
    pub kind: FindingKind,
    /// Byte offset on the device.
    pub offset: u64,
    /// Bytes concerned, as far as is known.
    pub len: u64,
    /// What it is.
    pub detail: String,
}

/// What was found.
#[derive(Debug, Default, Serialize)]
pub struct Report {
    /// Extents of each kind.
    pub extents: ExtentCounts,
    /// Shard records that are whole.
    pub shards: u64,
    /// Tombstones that are whole.
    pub tombstones: u64,
    /// Journal batches that are whole.
    pub journal_batches: u64,
    /// Journal entries in them.
    pub journal_entries: u64,
    /// Chunks of indexes that are whole.
    pub index_chunks: u64,
    /// Roots of indexes that are whole, outdated ones included.
    pub index_roots: u64,
    /// The newest root of each index.
    pub indexes: Vec<IndexRoot>,
    /// Bytes of payload that match their checksums.
    pub payload_bytes: u64,
    /// Bytes that were read.
    pub bytes_read: u64,
    /// How many findings.
    pub findings_total: u64,
    /// The findings, the first ten thousand.
    pub findings: Vec<Finding>,
}

impl Report {
    fn finding(&mut self, kind: FindingKind, offset: u64, len: u64, detail: impl Into<String>) {
        self.findings_total += 1;
        if self.findings.len() < TOLD_MAX {
            self.findings.push(Finding {
                kind,
                offset,
                len,
                detail: detail.into(),
            });
        }
    }
}

/// Verifies a device and prints what was found; findings make it fail.
pub fn verify(path: &Path, json: bool) -> Result<(), Fail> {
    let device = DeviceFile::open(path)?;
    if device.is_served() {
        output::note(&format!(
            "{} is being served: what is written meanwhile may look damaged",
            path.display()
        ));
    }
    let superblock = device_read::superblock(&device.file, path)?;
    let report = check(&device, &superblock)?;
    if json {
        output::json(&json!({
            "path": path,
            "device": superblock.device,
            "cluster": superblock.cluster,
            "report": report,
        }))?;
    } else {
        for finding in &report.findings {
            let kind = serde_json::to_value(finding.kind).unwrap_or_default();
            output::line(&format!(
                "{:>14}  {:<12} {}",
                finding.offset,
                kind.as_str().unwrap_or("?"),
                finding.detail
            ))?;
        }
        output::line(&format!(
            "{}: {} shards, {} tombstones, {} journal entries in {} batches, {} index chunks and {} roots; \
             {} of payload whole; {} findings",
            path.display(),
            report.shards,
            report.tombstones,
            report.journal_entries,
            report.journal_batches,
            report.index_chunks,
            report.index_roots,
            human(report.payload_bytes),
            report.findings_total
        ))?;
    }
    if report.findings_total == 0 {
        return Ok(());
    }
    Err(Fail::Refused(format!(
        "{}: {} findings: what is listed cannot be read from this device; the cluster rebuilds it from others",
        path.display(),
        report.findings_total
    )))
}

/// Checks everything on a device.
pub fn check(device: &DeviceFile, superblock: &Superblock) -> Result<Report, Fail> {
    let geometry = superblock.geometry();
    let mut report = Report::default();
    if device.size < superblock.device_size {
        report.finding(
            FindingKind::Unreadable,
            device.size,
            superblock.device_size - device.size,
            format!(
                "the device ends at byte {}, it was formatted with {}",
                device.size, superblock.device_size
            ),
        );
    }
    check_copies(device, superblock, &mut report)?;
    let entries = match read_checkpoint(device, superblock) {
        None => Vec::new(),
        Some(Ok(checkpoint)) => checkpoint.extents,
        Some(Err(why)) => {
            let offset = superblock.checkpoint.map_or(0, |c| c.offset);
            let len = superblock.checkpoint.map_or(0, |c| u64::from(c.len));
            report.finding(FindingKind::Rot, offset, len, format!("checkpoint: {why}"));
            Vec::new()
        }
    };
    let progress = Progress::bytes("verifying", Some(superblock.device_size));
    let mut scan = Scan {
        superblock,
        geometry,
        window: Window::new(device),
        chunks: BTreeSet::new(),
        report: &mut report,
    };
    for no in 0..geometry.extent_count() {
        scan.extent(ExtentNo(no), entries.get(no as usize));
        progress.inc(geometry.extent_size);
    }
    let chunks = scan.chunks;
    report.indexes = device_index::roots(device, superblock);
    hold_to_roots(&mut report, &chunks);
    Ok(report)
}

/// Each chunk that a newest root names must have been met, whole. (A root that is damaged has been told.)
fn hold_to_roots(report: &mut Report, met: &BTreeSet<u64>) {
    let mut missing = Vec::new();
    for root in &report.indexes {
        if let Content::Whole { chunks, .. } = &root.content {
            let gone = chunks.iter().filter(|at| !met.contains(at));
            missing.extend(gone.map(|at| (*at, root.generation, root.partition)));
        }
    }
    for (at, generation, partition) in missing {
        let detail = format!(
            "index chunk at byte {at}: root {generation} of partition {partition} names it, and it is not whole"
        );
        report.finding(FindingKind::Missing, at, GRAIN as u64, detail);
    }
}

fn check_copies(
    device: &DeviceFile,
    superblock: &Superblock,
    report: &mut Report,
) -> Result<(), Fail> {
    let copies = device_read::copies(&device.file, &device.path)?;
    for (i, (copy, offset)) in copies.found.iter().zip(copies.offsets).enumerate() {
        let detail = match copy {
            Ok(copy) if copy.sequence == superblock.sequence => continue,
            Ok(copy) => format!(
                "superblock copy {i} has sequence {}, the believed one {}",
                copy.sequence, superblock.sequence
            ),
            Err(why) => format!("superblock copy {i}: {why}"),
        };
        report.finding(FindingKind::Rot, offset, 4096, detail);
    }
    Ok(())
}

struct Scan<'a> {
    superblock: &'a Superblock,
    geometry: Geometry,
    window: Window<'a>,
    /// Addresses of the index chunks that are whole.
    chunks: BTreeSet<u64>,
    report: &'a mut Report,
}

/// What stands at a block.
enum Step {
    /// A record of this life, so many bytes.
    Record(RecordHeader, u64),
    /// A record of an earlier life, so many bytes: ordinary remains.
    Stale(u64),
    /// Zeros.
    Blank,
    /// Anything else.
    Other(Option<String>),
    /// The device does not read it.
    Unreadable(String),
}

impl Scan<'_> {
    fn place(&self, extent: ExtentNo, incarnation: Option<Incarnation>, address: u64) -> Place {
        Place {
            device: self.superblock.device,
            extent,
            incarnation,
            address,
        }
    }

    fn extent(&mut self, extent: ExtentNo, known: Option<&ExtentEntry>) {
        let block = self.geometry.block_size as usize;
        let start = self.geometry.extent_start(extent);
        let end = self.geometry.extent_end(extent);
        self.report.bytes_read += end - start;
        let place = self.place(extent, None, start);
        let header = match self.window.get(start, block, end) {
            Ok(bytes) => ExtentHeader::decode(bytes, &place).map_err(|e| e.to_string()),
            Err(e) => Err(format!("extent header at byte {start}: {e}")),
        };
        self.report
            .extents
            .count(header.as_ref().ok().map(|h| h.kind));
        let used = known.is_some_and(|k| k.state != ExtentState::Free);
        let (kind, incarnation) = match (&header, known) {
            (Ok(header), _) => (Some(header.kind), Some(header.incarnation)),
            (Err(why), Some(known)) if used => {
                self.report
                    .finding(FindingKind::Rot, start, block as u64, why.clone());
                (known.kind, Some(known.incarnation))
            }
            // Never opened, as far as anything tells. Its header may have been lost since the
            // checkpoint, so it is looked through all the same.
            (Err(_), _) => (None, None),
        };
        if kind == Some(ExtentKind::Checkpoint) {
            // What the superblock names of it has been checked; the rest is out of date.
            return;
        }
        let freed = known.is_some_and(|k| {
            k.state == ExtentState::Free && incarnation.is_some_and(|i| i <= k.incarnation)
        });
        if freed {
            // What is still there is nobody's.
            return;
        }
        let sealed = known
            .is_some_and(|k| k.state == ExtentState::Sealed && Some(k.incarnation) == incarnation);
        let footer = self.footer(extent, incarnation, sealed);
        let stop = footer
            .as_ref()
            .map_or(end, |f| f.records_end.clamp(start, end));
        let orphan = |entry: &&FooterEntry| {
            entry.damaged && matches!(entry.subject, Subject::IndexChunk { .. })
        };
        let orphans = footer.iter().flat_map(|f| &f.entries).filter(orphan);
        let orphans = orphans.map(|entry| entry.sequence).collect();
        let index = kind == Some(ExtentKind::Index);
        let whole = self.records(extent, incarnation, stop, end, index, &orphans);
        if header.is_err() && !used && !whole.is_empty() {
            let detail = format!(
                "{} records stand behind an extent header that is lost",
                whole.len()
            );
            self.report
                .finding(FindingKind::Rot, start, block as u64, detail);
        }
        if let Some(footer) = footer {
            self.hold_to(&footer, extent, &whole);
        }
    }

    /// The footer of a sealed extent; one that should be there and is not, is a finding.
    fn footer(
        &mut self,
        extent: ExtentNo,
        incarnation: Option<Incarnation>,
        sealed: bool,
    ) -> Option<Footer> {
        let incarnation = incarnation?;
        let end = self.geometry.extent_end(extent);
        let at = trailer_at(end);
        let place = self.place(extent, Some(incarnation), at);
        let trailer = match self.window.get(at, TRAILER_LEN, end) {
            Ok(bytes) => Trailer::decode(bytes, &place).map_err(|e| e.to_string()),
            Err(e) => Err(format!("footer trailer at byte {at}: {e}")),
        };
        let footer = trailer.and_then(|trailer| {
            let place = self.place(extent, Some(incarnation), trailer.footer);
            match self.window.get(trailer.footer, trailer.len as usize, end) {
                Ok(bytes) => Footer::decode(bytes, &place).map_err(|e| e.to_string()),
                Err(e) => Err(format!("footer at byte {}: {e}", trailer.footer)),
            }
        });
        match footer {
            Ok(footer) => {
                self.report.extents.sealed += 1;
                Some(footer)
            }
            Err(why) => {
                if sealed {
                    self.report
                        .finding(FindingKind::Rot, at, TRAILER_LEN as u64, why);
                }
                None
            }
        }
    }

    /// Checks the records up to `stop`; gives the addresses and sequence numbers of those whose heads are whole.
    fn records(
        &mut self,
        extent: ExtentNo,
        incarnation: Option<Incarnation>,
        stop: u64,
        end: u64,
        index: bool,
        orphans: &BTreeSet<u64>,
    ) -> BTreeMap<u64, u64> {
        let block = u64::from(self.geometry.block_size);
        let mut whole = BTreeMap::new();
        let mut stale_until = 0;
        // What could not be read since the last record: a finding only once another one follows.
        let mut gap: Vec<(u64, Option<String>)> = Vec::new();
        let mut at = self.geometry.records_start(extent);
        // Blocks in front of a record of an index that may be unused.
        let mut padding = index_record_at(at, self.geometry.block_size);
        while at < stop {
            if index && at < padding {
                at += block;
                continue;
            }
            match self.step(extent, incarnation, at, end) {
                Step::Record(header, len) => {
                    self.close_gap(&mut gap, block);
                    if !orphans.contains(&header.sequence) {
                        self.record(&header, len, end);
                    }
                    whole.insert(at, header.sequence);
                    at += len;
                    padding = index_record_at(at, self.geometry.block_size);
                }
                Step::Stale(len) => {
                    stale_until = stale_until.max(at.saturating_add(len));
                    at += block;
                }
                Step::Blank => at += block,
                Step::Other(why) => {
                    if at >= stale_until {
                        gap.push((at, why));
                    }
                    at += block;
                }
                Step::Unreadable(why) => {
                    self.report.finding(FindingKind::Unreadable, at, block, why);
                    at += block;
                }
            }
        }
        // With a footer the end is known. Without one, what stands behind the last record is a write
        // that was under way when the power went, or older than this life, unless it is a damaged head.
        if stop < end {
            self.close_gap(&mut gap, block);
        } else {
            for (at, why) in gap {
                if let Some(why) = why {
                    self.report.finding(FindingKind::Rot, at, block, why);
                }
            }
        }
        whole
    }

    fn close_gap(&mut self, gap: &mut Vec<(u64, Option<String>)>, block: u64) {
        let mut run: Option<(u64, u64)> = None;
        for (at, why) in gap.drain(..) {
            if let Some(why) = why {
                self.report.finding(FindingKind::Rot, at, block, why);
            }
            run = match run {
                Some((start, len)) if start + len == at => Some((start, len + block)),
                Some((start, len)) => {
                    skipped(self.report, start, len);
                    Some((at, block))
                }
                None => Some((at, block)),
            };
        }
        if let Some((start, len)) = run {
            skipped(self.report, start, len);
        }
    }

    fn step(
        &mut self,
        extent: ExtentNo,
        incarnation: Option<Incarnation>,
        at: u64,
        end: u64,
    ) -> Step {
        let place = self.place(extent, None, at);
        let block = self.geometry.block_size as usize;
        let bytes = match self.window.get(at, block, end) {
            Ok(bytes) => bytes,
            Err(e) => return Step::Unreadable(e.to_string()),
        };
        let header = match RecordHeader::decode(bytes, &place) {
            Ok(header) => header,
            Err(error) => {
                return match error.fault {
                    HeadFault::Absent { .. } if bytes.iter().all(|b| *b == 0) => Step::Blank,
                    HeadFault::Absent { .. } | HeadFault::OtherDevice { .. } => Step::Other(None),
                    _ => Step::Other(Some(error.to_string())),
                };
            }
        };
        let len = header.record_len(self.geometry.block_size);
        match incarnation {
            Some(present) if header.incarnation < present => Step::Stale(len),
            Some(present) if header.incarnation > present => Step::Other(Some(format!(
                "record at byte {at} is of incarnation {}, ahead of the extent's {present}",
                header.incarnation
            ))),
            _ if at.saturating_add(len) > end => Step::Other(Some(format!(
                "record at byte {at} of {len} bytes leaves its extent"
            ))),
            _ => Step::Record(header, len),
        }
    }

    fn record(&mut self, header: &RecordHeader, len: u64, end: u64) {
        let at = header.address;
        let place = self.place(header.extent, Some(header.incarnation), at);
        let bytes = match self.window.get(at, len as usize, end) {
            Ok(bytes) => bytes,
            Err(e) => {
                let detail = format!("{} at byte {at}: {e}", what(header));
                self.report
                    .finding(FindingKind::Unreadable, at, len, detail);
                return;
            }
        };
        let room = header_len(header.payload_len, self.geometry.block_size) as usize;
        let payload = bytes
            .get(room..room + header.payload_len as usize)
            .unwrap_or_default();
        let pieces = header.pieces(bytes.get(..room).unwrap_or_default());
        let checked = pieces.and_then(|pieces| {
            // A damaged table does not make the payload wrong, but a part of it cannot be checked.
            pieces.verify(0, payload)?;
            header.verify_payload(payload)
        });
        if let Err(why) = checked {
            let detail = format!("{}: {why}", what(header));
            let kind = diagnose(bytes, &place, self.geometry.block_size);
            self.report.finding(kind, at, len, detail);
            return;
        }
        self.report.payload_bytes += u64::from(header.payload_len);
        match header.subject {
            Subject::Shard(_) => self.report.shards += 1,
            Subject::Tombstone(_) => self.report.tombstones += 1,
            Subject::IndexChunk { .. } => {
                self.chunks.insert(at + room as u64);
                self.report.index_chunks += 1;
            }
            Subject::IndexRoot { .. } => self.report.index_roots += 1,
            Subject::Journal { first, last, .. } => {
                self.report.journal_batches += 1;
                let mut next = first.0;
                for entry in journal::entries(payload) {
                    match entry {
                        Ok(entry) if entry.header.seq.0 == next => {
                            next += 1;
                            self.report.journal_entries += 1;
                        }
                        Ok(entry) => {
                            let detail = format!(
                                "journal batch at byte {at}: entry {} stands where {next} should",
                                entry.header.seq
                            );
                            self.report
                                .finding(FindingKind::WrongRecord, at, len, detail);
                            return;
                        }
                        Err(why) => {
                            let detail = format!("journal batch at byte {at}: {why}");
                            self.report.finding(FindingKind::Rot, at, len, detail);
                            return;
                        }
                    }
                }
                if next != last.0.wrapping_add(1) {
                    let detail = format!(
                        "journal batch at byte {at} ends before entry {next}, its head says {last}"
                    );
                    self.report
                        .finding(FindingKind::WrongRecord, at, len, detail);
                }
            }
        }
    }

    /// Each record that the footer names must have been met.
    fn hold_to(&mut self, footer: &Footer, extent: ExtentNo, whole: &BTreeMap<u64, u64>) {
        let base = u64::from(extent.0) * self.geometry.extent_size;
        for entry in &footer.entries {
            let at = base + u64::from(entry.offset_blocks) * u64::from(self.geometry.block_size);
            if whole.get(&at) == Some(&entry.sequence) {
                continue;
            }
            let detail = format!(
                "{} at byte {at}: the footer names it, and its head cannot be read",
                subject(&entry.subject)
            );
            self.report
                .finding(FindingKind::Missing, at, HEAD_LEN as u64, detail);
        }
    }
}

fn skipped(report: &mut Report, at: u64, len: u64) {
    let detail = format!("{len} bytes among the records are none");
    report.finding(FindingKind::Skipped, at, len, detail);
}

fn what(header: &RecordHeader) -> String {
    subject(&header.subject)
}

fn subject(subject: &Subject) -> String {
    match subject {
        Subject::Shard(shard) => format!("shard {shard}"),
        Subject::Tombstone(shard) => format!("tombstone of shard {shard}"),
        Subject::Journal {
            partition,
            first,
            last,
        } => format!("journal of partition {partition}, entries {first} to {last}"),
        Subject::IndexChunk { partition } => format!("index chunk of partition {partition}"),
        Subject::IndexRoot {
            partition,
            generation,
        } => format!("index root {generation} of partition {partition}"),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::fs::File;
    use std::os::unix::fs::FileExt;
    use std::path::PathBuf;
    use std::time::Duration;

    use ashlar_layout::ids::{ClusterId, DeviceId, DeviceNo, NodeId};

    use super::*;
    use crate::bench_engine::{Load, Run};
    use crate::device_format::{Identity, format_image};

    const SHARDS: u64 = 300;
    const PAYLOAD: u32 = 100_000;

    /// A device with shards that the real engine has written: more than an extent of them.
    fn device(folder: &Path) -> PathBuf {
        let path = folder.join("device.img");
        File::create(&path).unwrap().set_len(96 << 20).unwrap();
        let cluster = ClusterId([3; 16]);
        let identity = Identity {
            cluster,
            device: DeviceId([4; 16]),
            node: NodeId(1),
            no: DeviceNo(1),
        };
        format_image(&path, &identity).unwrap();
        let run = Run {
            path: &path,
            cluster,
            load: Load::Append {
                first: 0,
                count: SHARDS,
            },
            payload: PAYLOAD,
            depth: 8,
            limit: Duration::from_secs(60),
            seed: 5,
        };
        assert_eq!(run.run().unwrap().operations, SHARDS);
        path
    }

    fn report(path: &Path) -> Report {
        let device = DeviceFile::open(path).unwrap();
        let superblock = device_read::superblock(&device.file, path).unwrap();
        check(&device, &superblock).unwrap()
    }

    #[test]
    fn a_whole_device_has_no_findings_and_damage_costs_what_it_hit() {
        let folder = tempfile::tempdir_in(".").unwrap();
        let path = device(folder.path());
        let whole = report(&path);
        assert_eq!(whole.findings, []);
        assert_eq!(whole.shards, SHARDS);
        assert_eq!(whole.payload_bytes, SHARDS * u64::from(PAYLOAD));
        assert!(whole.extents.sealed >= 1, "{:?}", whole.extents);

        // A head and a payload in the sealed extent, and a copy of the superblock.
        let file = File::options().read(true).write(true).open(&path).unwrap();
        let start = (64 << 10) + 4096;
        let record = ashlar_layout::record::record_len(PAYLOAD, 4096);
        for at in [
            start + 3 * record,
            start + 7 * record + 4096 + 50_000,
            32 << 20,
        ] {
            file.write_all_at(&[0xa5; 64], at).unwrap();
        }
        file.sync_all().unwrap();
        let hurt = report(&path);
        assert_eq!(hurt.shards, SHARDS - 2);
        let at = |kind| -> Vec<u64> {
            hurt.findings
                .iter()
                .filter(|f| f.kind == kind)
                .map(|f| f.offset)
                .collect()
        };
        assert_eq!(at(FindingKind::Missing), [start + 3 * record]);
        assert_eq!(at(FindingKind::Rot), [32 << 20, start + 7 * record]);
    }
}
