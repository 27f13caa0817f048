//! Shards as they stand in the files of devices, and damage of a known kind that is done to them.
//!
//! Invariants:
//! - what is written goes past the page cache, as what nodes read does: they meet it at once;
//! - a node may read while this writes. What is done to a record is done block by block, in such an order that whoever
//!   meets half of it finds the same kind;
//! - only records of which a CRC covers what is changed are changed: all that is done can be found.

use std::fs::File;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

use ashlar_cluster_map::ClusterMap;
use ashlar_layout::crc::crc32;
use ashlar_layout::extent::{ExtentHeader, ExtentKind, Geometry};
use ashlar_layout::ids::{DeviceId, DeviceNo, ExtentNo, Incarnation, ShardId, StripeId};
use ashlar_layout::limits::BLOCK_SIZE;
use ashlar_layout::message::{FindingKind, Reply, Request};
use ashlar_layout::record::{RecordHeader, Subject, header_len, table_end};
use ashlar_layout::stamp::{HeadFault, Place};
use ashlar_layout::superblock::Superblock;
use rustix::fs::OFlags;

use crate::content::Random;
use crate::wire::{Answer, Wire};

const BLOCK: usize = BLOCK_SIZE as usize;
const SECTOR: usize = 512;

/// Memory that begins at a multiple of a block.
struct Aligned {
    bytes: Vec<u8>,
    start: usize,
    len: usize,
}

impl Aligned {
    fn zeroed(len: usize) -> Aligned {
        let bytes = vec![0; len + BLOCK];
        let start = bytes.as_ptr().align_offset(BLOCK);
        Aligned { bytes, start, len }
    }

    fn get(&mut self) -> &mut [u8] {
        &mut self.bytes[self.start..self.start + self.len]
    }
}

/// Writes a shard to the device of a node as a put does that never comes to its end; `number` is one that no other such
/// call had. The shard, and its device.
pub fn leak(map: &ClusterMap, node: u32, number: u64) -> (ShardId, DeviceNo) {
    let its = map.devices.iter().find(|device| device.node.0 == node);
    let device = its.expect("each node has a device").no;
    let stripe = StripeId {
        writer: 0xabcd,
        attempt: number,
    };
    let shard = ShardId { stripe, index: 1 };
    let write = Request::ShardWrite { device, shard };
    let answer = Wire::greet(map, node).ask(map.epoch, &write, &[7; 20_000]);
    assert!(
        matches!(answer, Answer::Reply(Reply::Done, _)),
        "{shard} on device {device}: {answer:?}"
    );
    (shard, device)
}

/// Gives two files each other's names.
pub fn swap(one: &Path, other: &Path) {
    let beside = one.with_extension("beside");
    for (from, to) in [(one, beside.as_path()), (other, one), (&beside, other)] {
        std::fs::rename(from, to).unwrap_or_else(|e| panic!("{}: {e}", from.display()));
    }
}

/// What is done to a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Harm {
    /// One bit of head, table or payload is another.
    Bit,
    /// A sector in the midst of the payload is zeros.
    Sector,
    /// All of it is zeros.
    Zeros,
    /// It is zeros from a sector of the payload on.
    Tail,
    /// In the place of its head is one of an earlier life of the extent.
    Stale,
    /// In the place of its head is another record's.
    Foreign,
}

impl Harm {
    /// All of them.
    pub const ALL: [Harm; 6] = [
        Harm::Bit,
        Harm::Sector,
        Harm::Zeros,
        Harm::Tail,
        Harm::Stale,
        Harm::Foreign,
    ];

    /// What whoever reads the shard should call it.
    pub fn is_found_as(self) -> FindingKind {
        match self {
            Harm::Bit | Harm::Sector => FindingKind::Rot,
            Harm::Zeros => FindingKind::LostWrite,
            Harm::Tail => FindingKind::Torn,
            Harm::Stale => FindingKind::StaleIncarnation,
            Harm::Foreign => FindingKind::Misdirected,
        }
    }
}

/// The file of a device.
pub struct Image {
    file: File,
    device: DeviceId,
    geometry: Geometry,
}

impl Image {
    /// Opens it; nodes may have it open as well.
    pub fn open(path: &Path) -> Image {
        let direct = i32::try_from(OFlags::DIRECT.bits()).unwrap_or_default();
        let mut options = File::options();
        options.read(true).write(true).custom_flags(direct);
        let file = options
            .open(path)
            .unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        let mut block = Aligned::zeroed(BLOCK);
        file.read_exact_at(block.get(), 0)
            .unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        let superblock = Superblock::decode(block.get())
            .unwrap_or_else(|e| panic!("{}: no superblock: {e}", path.display()));
        let geometry = superblock.geometry();
        assert_eq!(
            geometry.block_size, BLOCK_SIZE,
            "rigs have blocks of this size"
        );
        Image {
            file,
            device: superblock.device,
            geometry,
        }
    }

    /// Which device it says that it is.
    pub fn device(&self) -> DeviceId {
        self.device
    }

    fn read(&self, at: u64, into: &mut [u8]) {
        let read = self.file.read_exact_at(into, at);
        read.unwrap_or_else(|e| panic!("{} bytes at {at} of an image: {e}", into.len()));
    }

    /// The first bytes of it, as they are now.
    pub fn first(&self, bytes: usize) -> Vec<u8> {
        let mut all = Vec::with_capacity(bytes);
        let mut buffer = Aligned::zeroed(1 << 20);
        while all.len() < bytes {
            self.read(all.len() as u64, buffer.get());
            all.extend_from_slice(buffer.get());
        }
        all
    }

    /// One block, written at once.
    fn write(&self, at: u64, block: &mut Aligned) {
        let written = self.file.write_all_at(block.get(), at);
        written.unwrap_or_else(|e| panic!("a block at {at} of an image: {e}"));
    }

    fn write_block(&self, at: u64, bytes: &[u8]) {
        let mut block = Aligned::zeroed(BLOCK);
        block.get().copy_from_slice(bytes);
        self.write(at, &mut block);
    }

    fn change_block(&self, at: u64, change: impl FnOnce(&mut [u8])) {
        let mut block = Aligned::zeroed(BLOCK);
        self.read(at, block.get());
        change(block.get());
        self.write(at, &mut block);
    }

    fn place(&self, header: &RecordHeader) -> Place {
        Place {
            device: self.device,
            extent: header.extent,
            incarnation: Some(header.incarnation),
            address: header.address,
        }
    }

    /// The records of shards that stand on it, deleted ones among them, in their order.
    pub fn shards(&self) -> Vec<RecordHeader> {
        let mut found = Vec::new();
        let extent_len = self.geometry.extent_size as usize;
        let (mut block, mut extent) = (Aligned::zeroed(BLOCK), Aligned::zeroed(extent_len));
        for no in (0..self.geometry.extent_count()).map(ExtentNo) {
            let mut place = Place {
                device: self.device,
                extent: no,
                incarnation: None,
                address: self.geometry.extent_start(no),
            };
            self.read(place.address, block.get());
            let Ok(header) = ExtentHeader::decode(block.get(), &place) else {
                continue;
            };
            if header.kind != ExtentKind::Data {
                continue;
            }
            place.incarnation = Some(header.incarnation);
            let (start, end) = (
                self.geometry.records_start(no),
                self.geometry.extent_end(no),
            );
            let bytes = &mut extent.get()[..(end - start) as usize];
            self.read(start, bytes);
            let mut at = 0;
            while at < bytes.len() {
                place.address = start + at as u64;
                match RecordHeader::decode(&bytes[at..], &place) {
                    Ok(header) => {
                        at += header.record_len(BLOCK_SIZE) as usize;
                        if let Subject::Shard(_) = header.subject {
                            found.push(header);
                        }
                    }
                    Err(_) => at += BLOCK,
                }
            }
        }
        found
    }

    /// Does this to a record; `donor`: another one, and on which image.
    pub fn harm(
        &self,
        header: &RecordHeader,
        harm: Harm,
        random: &mut Random,
        donor: (&Image, &RecordHeader),
    ) {
        let at = header.address;
        let len = header.payload_len as usize;
        let room = header_len(header.payload_len, BLOCK_SIZE) as usize;
        let payload = at + room as u64;
        match harm {
            Harm::Bit => {
                let byte = match random.below(8) {
                    0 => random.below(table_end(header.payload_len).into()),
                    _ => room as u64 + random.below(len as u64),
                };
                let in_block = (byte % BLOCK as u64) as usize;
                let bit = 1 << random.below(8);
                let block = at + byte - in_block as u64;
                self.change_block(block, |bytes| bytes[in_block] ^= bit);
            }
            Harm::Sector => {
                // Neither the first nor the last one.
                let sectors = len / SECTOR;
                let from = (1 + random.below(sectors as u64 - 2)) as usize * SECTOR;
                let block = payload + (from / BLOCK * BLOCK) as u64;
                let from = from % BLOCK;
                self.change_block(block, |bytes| bytes[from..from + SECTOR].fill(0));
            }
            Harm::Zeros => {
                let blocks = header.record_len(BLOCK_SIZE) / BLOCK as u64;
                // Without its head it is a write that never came, whatever stands behind.
                for block in 0..blocks {
                    self.write_block(at + block * BLOCK as u64, &[0; BLOCK]);
                }
            }
            Harm::Tail => {
                let sectors = len / SECTOR;
                let from = random.below(sectors as u64 - 1) as usize * SECTOR;
                // From the end on: each block more leaves a shorter front.
                for block in (from / BLOCK..len.div_ceil(BLOCK)).rev() {
                    let kept = from.saturating_sub(block * BLOCK);
                    let block = payload + (block * BLOCK) as u64;
                    self.change_block(block, |bytes| bytes[kept..].fill(0));
                }
            }
            Harm::Stale => {
                let mut old = *header;
                let before = header.incarnation.0.checked_sub(1);
                old.incarnation = Incarnation(before.expect("the first life has number 1"));
                let bytes = vec![0xa5; len];
                old.payload_crc = crc32(&bytes);
                let mut record = vec![0; header.record_len(BLOCK_SIZE) as usize];
                record[room..room + len].copy_from_slice(&bytes);
                let sealed = old.seal(&mut record, BLOCK_SIZE);
                sealed.unwrap_or_else(|e| panic!("a record is not sealed: {e}"));
                self.write_block(at, &record[..BLOCK]);
            }
            Harm::Foreign => {
                let mut block = Aligned::zeroed(BLOCK);
                let (image, header) = donor;
                image.read(header.address, block.get());
                self.write_block(at, block.get());
            }
        }
    }

    /// Makes zeros of a region: from the first one of these records to the end of the last one. They are all that are
    /// in it.
    pub fn zero(&self, records: &[RecordHeader]) {
        for header in records {
            self.write_block(header.address, &[0; BLOCK]);
        }
        let (Some(first), Some(last)) = (records.first(), records.last()) else {
            return;
        };
        let end = last.address + last.record_len(BLOCK_SIZE);
        for at in (first.address..end).step_by(BLOCK) {
            self.write_block(at, &[0; BLOCK]);
        }
    }

    /// Puts back what was in the place of a record before it was written, as [`Image::first`] gave it: its first
    /// blocks. Says what that should be found as; none if it tells nothing, and then nothing is done.
    pub fn drop_write(&self, header: &RecordHeader, before: &[u8]) -> Option<FindingKind> {
        let at = usize::try_from(header.address).ok()?;
        let old = before.get(at..at + 2 * BLOCK)?;
        let kind = match RecordHeader::decode(old, &self.place(header)) {
            Err(e) if matches!(e.fault, HeadFault::Stale { .. }) => FindingKind::StaleIncarnation,
            _ if old[..SECTOR].iter().all(|byte| *byte == 0) => FindingKind::LostWrite,
            _ => return None,
        };
        for (no, block) in old.chunks(BLOCK).enumerate() {
            self.write_block(header.address + (no * BLOCK) as u64, block);
        }
        Some(kind)
    }
}
