//! What a node says of how fast its devices may be read for audits and repairs.

use serde::{Deserialize, Serialize};
use wincode::{SchemaRead, SchemaWrite};

use crate::ids::DeviceNo;

/// How fast a device may be read for audits and repairs, so that others do not notice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, SchemaWrite, SchemaRead, Serialize, Deserialize)]
pub struct DevicePace {
    /// Its number in the map.
    pub device: DeviceNo,
    /// Bytes a second that all auditors together may read.
    pub allowed: u64,
    /// By so many hundredths the 99th percentile of others may be longer for it.
    pub percent: u32,
    /// That percentile with audits and repairs and without them, in microseconds, as it was last known.
    pub p99_us: Option<(u64, u64)>,
}
