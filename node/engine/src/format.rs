//! What a fresh device holds: four copies of its first superblock, and nothing else.
//!
//! Invariants:
//! - The device's name is new at each format, so that nothing that an earlier format left on the
//!   device is taken for a record of this one: no other byte has to be written.
//! - The owner epoch is 0 until the device is first opened.

use ashlar_layout::extent::{Geometry, GeometryError};
use ashlar_layout::ids::{ClusterId, DeviceId, DeviceNo, NodeId, OwnerEpoch};
use ashlar_layout::limits::SUPERBLOCK_COPIES;
use ashlar_layout::superblock::{self, Labels, Superblock};

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
        incarnation_ceiling: 1,
        record_ceiling: 1,
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
    Ok(plan)
}
