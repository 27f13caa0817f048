//! What a fresh device holds: four copies of its first superblock, zeros where older ones may stand,
//! and nothing else.
//!
//! Invariants:
//! - The device's name is new at each format, so that nothing that an earlier format left on the
//!   device is taken for a record of this one: no other byte of it has to be written.
//! - No copy of an older superblock survives, however large the extents were then: two that agree
//!   could outvote those of this format.
//! - The owner epoch is 0 until the device is first opened.

use std::collections::BTreeSet;

use ashlar_layout::extent::{Geometry, GeometryError};
use ashlar_layout::ids::{ClusterId, DeviceId, DeviceNo, NodeId, OwnerEpoch};
use ashlar_layout::limits::{EXTENT_SIZE_MAX, SUPERBLOCK_COPIES, SUPERBLOCK_STRIDE_MIN};
use ashlar_layout::superblock::{self, Labels, SUPERBLOCK_LEN, Superblock};

/// What a device is formatted to be.
#[derive(Clone, Debug)]
pub struct FormatParams {
    /// The cluster that it joins.
    pub cluster: ClusterId,
    /// Its own name: new, random.
    pub device: DeviceId,
    /// Its size in bytes. What is left behind the last whole block is not used.
    pub device_size: u64,
    /// Bytes of a block; at least the device's logical block.
    pub block_size: u32,
    /// Bytes of an extent.
    pub extent_size: u64,
    /// The node that it is for.
    pub node: NodeId,
    /// Its number in the cluster map.
    pub device_no: DeviceNo,
    /// Its fault domains.
    pub labels: Labels,
    /// Where the numbers of its records, and of the lives of its extents, begin: 1 for a new name. Under a name that
    /// had a device before, above all that was ever used.
    pub first_number: u64,
}

/// Why a device cannot be formatted like this.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FormatError {
    /// It cannot be cut up like this.
    #[error(transparent)]
    Geometry(#[from] GeometryError),
}

/// What to write, as byte offsets on the device and the bytes for each. Write all of it, then flush.
pub fn format_plan(params: &FormatParams) -> Result<Vec<(u64, Vec<u8>)>, FormatError> {
    let block = u64::from(params.block_size.max(1));
    let superblock = Superblock {
        cluster: params.cluster,
        device: params.device,
        sequence: 1,
        parent_crc: 0,
        block_size: params.block_size,
        extent_size: params.extent_size,
        device_size: params.device_size - params.device_size % block,
        owner_epoch: OwnerEpoch(0),
        incarnation_ceiling: params.first_number,
        record_ceiling: params.first_number,
        checkpoint: None,
        node: params.node,
        device_no: params.device_no,
        labels: params.labels,
        clean: false,
        copy: 0,
    };
    let geometry: Geometry = superblock.geometry();
    geometry.check()?;
    let mut plan = Vec::with_capacity(SUPERBLOCK_COPIES);
    for copy in 0..SUPERBLOCK_COPIES as u8 {
        let bytes = superblock.encode(copy);
        plan.push((superblock::offset(copy, params.extent_size), bytes.to_vec()));
    }
    plan.extend(old_copies(&plan, params.device_size));
    Ok(plan)
}

/// Zeros for every place on the device where another extent size puts a copy, and `plan` does not.
fn old_copies(plan: &[(u64, Vec<u8>)], device_size: u64) -> Vec<(u64, Vec<u8>)> {
    let mut places = BTreeSet::new();
    let mut stride = SUPERBLOCK_STRIDE_MIN;
    while stride <= EXTENT_SIZE_MAX {
        places.extend((1..SUPERBLOCK_COPIES as u64).map(|copy| copy * stride));
        stride *= 2;
    }
    let zeros = |at| (at, vec![0; SUPERBLOCK_LEN]);
    let inside = |at: &u64| at + SUPERBLOCK_LEN as u64 <= device_size;
    let written = |at: &u64| plan.iter().any(|(offset, _)| offset == at);
    let stale = places.into_iter().filter(|at| inside(at) && !written(at));
    stale.map(zeros).collect()
}
