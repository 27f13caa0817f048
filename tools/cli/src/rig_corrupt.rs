//! `ashlar rig corrupt`: random blocks of a node's device become random bytes, as rot would do it.
//!
//! Invariants:
//! - never more blocks are overwritten than asked for, and none twice;
//! - all are chosen before the first is written: too few to choose from is an error, and nothing is changed;
//! - the same seed on the same bytes gives the same damage.

use std::collections::BTreeSet;
use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::Path;

use ashlar_layout::extent::ExtentHeader;
use ashlar_layout::ids::ExtentNo;
use ashlar_layout::stamp::Place;

use crate::device_read;
use crate::fail::Fail;
use crate::output;
use crate::process;
use crate::rig::{CorruptArgs, Rig};
use crate::rig_files::{Aligned, open_direct};

const BLOCK: u64 = 4096;
/// Bytes read at once while looking for blocks that hold something.
const CHUNK: u64 = 1 << 20;

/// Corrupts a node's device.
pub fn corrupt(rig: &Rig, args: &CorruptArgs, json: bool) -> Result<(), Fail> {
    let image = rig.image(args.node);
    let mut seed = [0u8; 8];
    process::random(&mut seed)?;
    let seed = args.seed.unwrap_or(u64::from_le_bytes(seed) >> 12);
    let file = open_direct(&image, true).map_err(Fail::io("cannot open", &image))?;
    let size = file
        .metadata()
        .map_err(Fail::io("cannot look at", &image))?
        .len();
    let blocks = if args.anywhere {
        (0..size / BLOCK).collect()
    } else {
        used_blocks(&file, &image, size)?
    };
    let chosen = choose(blocks, args.blocks, seed).map_err(|there_are| {
        Fail::Refused(format!(
            "node {}'s device has {there_are} blocks {}, fewer than {}: nothing was changed",
            args.node,
            if args.anywhere {
                "in all"
            } else {
                "that hold something"
            },
            args.blocks
        ))
    })?;
    let mut random = Random(seed ^ 0x5bd1_e995_9e37_79b9);
    let mut buffer = Aligned::zeroed(BLOCK as usize);
    for block in &chosen {
        for word in buffer.chunks_exact_mut(8) {
            word.copy_from_slice(&random.next().to_le_bytes());
        }
        file.write_all_at(&buffer, block * BLOCK)
            .map_err(Fail::io("cannot write", &image))?;
    }
    file.sync_all().map_err(Fail::io("cannot write", &image))?;
    if json {
        return output::json(&serde_json::json!({
            "node": args.node, "blocks": chosen.len(), "seed": seed, "device": image,
        }));
    }
    output::line(&format!(
        "overwrote {} random blocks of 4 KiB of node {}'s device with random bytes (--seed {seed})",
        chosen.len(),
        args.node
    ))
}

/// Blocks in extents that hold something, and that are not all zeros: where damage matters.
fn used_blocks(file: &File, path: &Path, size: u64) -> Result<Vec<u64>, Fail> {
    let mut blocks = Vec::new();
    let mut buffer = Aligned::zeroed(CHUNK as usize);
    for range in used_extents(file, path)? {
        let mut at = range.start;
        while at < range.end.min(size) {
            let len = CHUNK.min(range.end.min(size) - at);
            let bytes = &mut buffer[..len as usize];
            file.read_exact_at(bytes, at)
                .map_err(Fail::io("cannot read", path))?;
            for (i, block) in bytes.chunks_exact(BLOCK as usize).enumerate() {
                if block.iter().any(|b| *b != 0) {
                    blocks.push(at / BLOCK + i as u64);
                }
            }
            at += len;
        }
    }
    Ok(blocks)
}

fn used_extents(file: &File, path: &Path) -> Result<Vec<Range<u64>>, Fail> {
    let superblock = device_read::superblock(file, path)?;
    let geometry = superblock.geometry();
    let mut ranges = Vec::new();
    let mut buffer = Aligned::zeroed(BLOCK as usize);
    for no in 0..geometry.extent_count() {
        let extent = ExtentNo(no);
        let start = geometry.extent_start(extent);
        file.read_exact_at(&mut buffer, start)
            .map_err(Fail::io("cannot read", path))?;
        let place = Place {
            device: superblock.device,
            extent,
            incarnation: None,
            address: start,
        };
        if ExtentHeader::decode(&buffer, &place).is_ok() {
            ranges.push(start..geometry.extent_end(extent));
        }
    }
    Ok(ranges)
}

/// So many different ones of `blocks`; the number of blocks if that is too few.
fn choose(mut blocks: Vec<u64>, count: u64, seed: u64) -> Result<BTreeSet<u64>, usize> {
    let there_are = blocks.len();
    let count = usize::try_from(count)
        .ok()
        .filter(|c| *c <= there_are)
        .ok_or(there_are)?;
    let mut random = Random(seed);
    // The first steps of a shuffle: each block is as likely as any other.
    for i in 0..count {
        let j = i + (random.next() % (there_are - i) as u64) as usize;
        blocks.swap(i, j);
    }
    blocks.truncate(count);
    Ok(blocks.into_iter().collect())
}

/// SplitMix64: the damage needs to be repeatable, not unpredictable.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_choice_is_as_large_as_asked_and_repeatable() {
        let blocks: Vec<u64> = (100..200).collect();
        for count in [1, 50, 100] {
            let chosen = choose(blocks.clone(), count, 7);
            assert_eq!(chosen.as_ref().map(|c| c.len() as u64), Ok(count));
            assert!(chosen.iter().flatten().all(|b| blocks.contains(b)));
            assert_eq!(chosen, choose(blocks.clone(), count, 7));
        }
        assert_ne!(choose(blocks.clone(), 50, 7), choose(blocks.clone(), 50, 8));
        assert_eq!(choose(blocks, 101, 7), Err(100));
    }
}
