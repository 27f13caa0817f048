//! What a device holds of the indexes of partitions: their newest roots, and what those name.
//!
//! Invariants:
//! - of two roots of a partition the one whose record has the higher sequence number is the newer;
//! - chunks are not read here: a root tells of them, and `device verify` has met their records.

use std::collections::BTreeMap;

use ashlar_layout::crc::crc32;
use ashlar_layout::extent::{ExtentHeader, ExtentKind};
use ashlar_layout::footer::{Footer, FooterEntry, TRAILER_LEN, Trailer, trailer_at};
use ashlar_layout::ids::{ExtentNo, PartitionId};
use ashlar_layout::page::GRAIN;
use ashlar_layout::record::{RecordHeader, Subject, header_len, index_record_at};
use ashlar_layout::root::Root;
use ashlar_layout::stamp::Place;
use ashlar_layout::superblock::Superblock;
use serde::Serialize;

use crate::device_read::{DeviceFile, Window};
use crate::output::human;

/// The newest root of a partition's index on a device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct IndexRoot {
    /// Whose index.
    pub partition: PartitionId,
    /// The root's own number.
    pub generation: u64,
    /// Byte offset of its record.
    pub offset: u64,
    /// What is in it, or why that cannot be told.
    #[serde(flatten)]
    pub content: Content,
}

/// What a root tells.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub enum Content {
    /// It is whole.
    Whole {
        /// The last entry of the journal that it covers.
        covered: u64,
        /// Runs,
        runs: usize,
        /// entries in them, outdated ones included,
        entries: u64,
        /// objects among those,
        objects: u64,
        /// bytes of objects that are embedded,
        embedded_bytes: u64,
        /// and of all chunks, those of what is kept for the replica included.
        bytes: u64,
        /// Addresses of the chunks.
        #[serde(skip)]
        chunks: Vec<u64>,
    },
    /// It is not.
    Damaged {
        /// Why.
        error: String,
    },
}

impl IndexRoot {
    /// A line for a person.
    pub fn line(&self) -> String {
        let IndexRoot {
            partition,
            generation,
            offset,
            content,
        } = self;
        let start = format!("index       of partition {partition}: root {generation} at {offset}");
        match content {
            Content::Whole {
                covered,
                runs,
                entries,
                bytes,
                ..
            } => format!(
                "{start}, entries up to {covered} covered, {runs} runs of {entries} entries, {}",
                human(*bytes)
            ),
            Content::Damaged { error } => format!("{start}: {error}"),
        }
    }
}

/// The newest root of each partition.
pub fn roots(device: &DeviceFile, superblock: &Superblock) -> Vec<IndexRoot> {
    let geometry = superblock.geometry();
    let mut window = Window::new(device);
    let mut newest: BTreeMap<PartitionId, (u64, FooterEntry)> = BTreeMap::new();
    for no in 0..geometry.extent_count() {
        let extent = ExtentNo(no);
        let base = u64::from(no) * geometry.extent_size;
        for entry in entries(&mut window, superblock, extent) {
            let Subject::IndexRoot { partition, .. } = entry.subject else {
                continue;
            };
            let before = newest.get(&partition);
            if before.is_none_or(|(_, before)| before.sequence < entry.sequence) {
                let at = base + u64::from(entry.offset_blocks) * u64::from(superblock.block_size);
                newest.insert(partition, (at, entry));
            }
        }
    }
    let mut roots = Vec::new();
    for (partition, (offset, entry)) in newest {
        let Subject::IndexRoot { generation, .. } = entry.subject else {
            continue;
        };
        let content = content(&mut window, superblock, partition, offset, &entry);
        roots.push(IndexRoot {
            partition,
            generation,
            offset,
            content: content.unwrap_or_else(|error| Content::Damaged { error }),
        });
    }
    roots
}

/// The records of an extent, if it is of kind index: by its footer, or else by their heads.
fn entries(window: &mut Window<'_>, superblock: &Superblock, extent: ExtentNo) -> Vec<FooterEntry> {
    let geometry = superblock.geometry();
    let block = superblock.block_size;
    let (start, end) = (geometry.extent_start(extent), geometry.extent_end(extent));
    let mut place = Place {
        device: superblock.device,
        extent,
        incarnation: None,
        address: start,
    };
    let header = window.get(start, block as usize, start + u64::from(block));
    let header = header
        .ok()
        .and_then(|bytes| ExtentHeader::decode(bytes, &place).ok());
    let Some(header) = header.filter(|header| header.kind == ExtentKind::Index) else {
        return Vec::new();
    };
    place.incarnation = Some(header.incarnation);
    place.address = trailer_at(end);
    let trailer = window.get(place.address, TRAILER_LEN, end).ok();
    let trailer = trailer.and_then(|bytes| Trailer::decode(bytes, &place).ok());
    if let Some(trailer) = trailer {
        place.address = trailer.footer;
        let footer = window.get(trailer.footer, trailer.len as usize, end).ok();
        if let Some(footer) = footer.and_then(|bytes| Footer::decode(bytes, &place).ok()) {
            return footer.entries;
        }
    }
    let base = u64::from(extent.0) * geometry.extent_size;
    let mut entries = Vec::new();
    let mut at = index_record_at(geometry.records_start(extent), block);
    while at < end {
        place.address = at;
        let bytes = window.get(at, block as usize, end).ok();
        match bytes.and_then(|bytes| RecordHeader::decode(bytes, &place).ok()) {
            Some(record) => {
                entries.push(FooterEntry::of(&record, base, block));
                at = index_record_at(at + record.record_len(block), block);
            }
            None => at += u64::from(block),
        }
    }
    entries
}

fn content(
    window: &mut Window<'_>,
    superblock: &Superblock,
    partition: PartitionId,
    offset: u64,
    entry: &FooterEntry,
) -> Result<Content, String> {
    let at = offset + u64::from(header_len(entry.payload_len, superblock.block_size));
    let len = u64::from(entry.payload_len);
    let bytes = window
        .get(at, entry.payload_len as usize, at + len)
        .map_err(|e| format!("cannot be read: {e}"))?;
    if crc32(bytes) != entry.payload_crc {
        return Err("it does not match its checksum".to_owned());
    }
    let root = Root::decode(bytes, superblock.device, partition).map_err(|e| e.to_string())?;
    let bytes = root
        .chunks()
        .map(|chunk| u64::from(chunk.grains) * GRAIN as u64);
    Ok(Content::Whole {
        covered: root.covered.0,
        runs: root.runs.len(),
        entries: root.runs.iter().map(|run| run.entries).sum(),
        objects: root.runs.iter().map(|run| run.objects).sum(),
        embedded_bytes: root.runs.iter().map(|run| run.embedded).sum(),
        bytes: bytes.sum(),
        chunks: root.chunks().map(|chunk| chunk.at).collect(),
    })
}
