//! `ashlar device inspect`: what a device says of itself, read with the layout crate alone.

use std::path::Path;

use ashlar_layout::checkpoint::Checkpoint;
use ashlar_layout::extent::{ExtentHeader, ExtentKind};
use ashlar_layout::footer::{TRAILER_LEN, Trailer, trailer_at};
use ashlar_layout::ids::ExtentNo;
use ashlar_layout::stamp::Place;
use ashlar_layout::superblock::{Label, Superblock};
use serde::Serialize;
use serde_json::json;

use crate::device_index;
use crate::device_read::{self, DeviceFile, Window};
use crate::fail::Fail;
use crate::output::{self, human};

/// Extents of each kind.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct ExtentCounts {
    /// Shards and tombstones.
    pub data: u32,
    /// Journal batches.
    pub journal: u32,
    /// Index pages.
    pub index: u32,
    /// Checkpoints.
    pub checkpoint: u32,
    /// Never opened, or their header cannot be read.
    pub blank: u32,
    /// Of those in use, how many have a footer.
    pub sealed: u32,
}

impl ExtentCounts {
    /// One more of a kind.
    pub fn count(&mut self, kind: Option<ExtentKind>) {
        match kind {
            Some(ExtentKind::Data) => self.data += 1,
            Some(ExtentKind::Journal) => self.journal += 1,
            Some(ExtentKind::Index) => self.index += 1,
            Some(ExtentKind::Checkpoint) => self.checkpoint += 1,
            None => self.blank += 1,
        }
    }
}

/// Prints what a device says of itself.
pub fn inspect(path: &Path, json: bool) -> Result<(), Fail> {
    let device = DeviceFile::open(path)?;
    let copies = device_read::copies(&device.file, path)?;
    let superblock = device_read::superblock(&device.file, path)?;
    let extents = extents(&device, &superblock)?;
    let checkpoint = match read_checkpoint(&device, &superblock) {
        None => None,
        Some(Ok(checkpoint)) => Some(Ok(checkpoint.record_sequence)),
        Some(Err(why)) => Some(Err(why)),
    };
    let indexes = device_index::roots(&device, &superblock);
    if json {
        let copies: Vec<_> = copies
            .found
            .iter()
            .zip(copies.offsets)
            .map(|(copy, offset)| match copy {
                Ok(copy) => json!({ "offset": offset, "sequence": copy.sequence }),
                Err(why) => json!({ "offset": offset, "error": why.to_string() }),
            })
            .collect();
        return output::json(&json!({
            "path": path,
            "size": device.size,
            "cluster": superblock.cluster,
            "device": superblock.device,
            "node": superblock.node,
            "device_no": superblock.device_no,
            "sequence": superblock.sequence,
            "owner_epoch": superblock.owner_epoch,
            "clean": superblock.clean,
            "block_size": superblock.block_size,
            "extent_size": superblock.extent_size,
            "device_size": superblock.device_size,
            "incarnation_ceiling": superblock.incarnation_ceiling,
            "record_ceiling": superblock.record_ceiling,
            "copies": copies,
            "extents": extents,
            "indexes": indexes,
            "checkpoint": checkpoint.map(|c| match c {
                Ok(sequence) => json!({ "record_sequence": sequence }),
                Err(why) => json!({ "error": why }),
            }),
        }));
    }
    let labels = &superblock.labels;
    let places: Vec<&str> = [&labels.region, &labels.zone, &labels.rack, &labels.host]
        .into_iter()
        .map(Label::as_str)
        .filter(|l| !l.is_empty())
        .collect();
    output::line(&format!("device      {}", superblock.device))?;
    output::line(&format!("cluster     {}", superblock.cluster))?;
    output::line(&format!(
        "stands as   device {} of node {}{}{}",
        superblock.device_no,
        superblock.node,
        if places.is_empty() { "" } else { " in " },
        places.join("/")
    ))?;
    output::line(&format!(
        "geometry    {} in blocks of {} and extents of {}",
        human(superblock.device_size),
        superblock.block_size,
        human(superblock.extent_size)
    ))?;
    output::line(&format!(
        "superblock  sequence {}, opened {} times, {}",
        superblock.sequence,
        superblock.owner_epoch,
        if superblock.clean {
            "closed in order"
        } else {
            "in use, or not closed in order"
        }
    ))?;
    for (i, (copy, offset)) in copies.found.iter().zip(copies.offsets).enumerate() {
        let text = match copy {
            Ok(copy) => format!("sequence {}", copy.sequence),
            Err(why) => why.to_string(),
        };
        output::line(&format!("  copy {i} at {offset:>12}: {text}"))?;
    }
    output::line(&format!(
        "extents     {} data, {} journal, {} index, {} checkpoint; {} of them sealed; {} blank",
        extents.data,
        extents.journal,
        extents.index,
        extents.checkpoint,
        extents.sealed,
        extents.blank
    ))?;
    for root in &indexes {
        output::line(&root.line())?;
    }
    output::line(&match checkpoint {
        None => "checkpoint  none yet".to_owned(),
        Some(Ok(sequence)) => format!("checkpoint  of records below {sequence}"),
        Some(Err(why)) => format!("checkpoint  {why}"),
    })
}

fn extents(device: &DeviceFile, superblock: &Superblock) -> Result<ExtentCounts, Fail> {
    let geometry = superblock.geometry();
    let mut counts = ExtentCounts::default();
    let mut window = Window::new(device);
    for no in 0..geometry.extent_count() {
        let extent = ExtentNo(no);
        let start = geometry.extent_start(extent);
        let mut place = Place {
            device: superblock.device,
            extent,
            incarnation: None,
            address: start,
        };
        let block = superblock.block_size as usize;
        let header = window
            .get(start, block, start + block as u64)
            .ok()
            .and_then(|bytes| ExtentHeader::decode(bytes, &place).ok());
        counts.count(header.map(|h| h.kind));
        let Some(header) = header else { continue };
        place.incarnation = Some(header.incarnation);
        let end = geometry.extent_end(extent);
        place.address = trailer_at(end);
        let trailer = window.get(place.address, TRAILER_LEN, end).ok();
        if trailer.is_some_and(|bytes| Trailer::decode(bytes, &place).is_ok()) {
            counts.sealed += 1;
        }
    }
    Ok(counts)
}

/// The checkpoint that the superblock names, if it names one; or why it is not believed.
pub fn read_checkpoint(
    device: &DeviceFile,
    superblock: &Superblock,
) -> Option<Result<Checkpoint, String>> {
    let named = superblock.checkpoint?;
    let mut window = Window::new(device);
    let len = named.len as usize;
    let bytes = match window.get(named.offset, len, named.offset.saturating_add(len as u64)) {
        Ok(bytes) => bytes,
        Err(e) => return Some(Err(format!("cannot be read: {e}"))),
    };
    Some(Checkpoint::decode(bytes, superblock.device, &named).map_err(|e| e.to_string()))
}
