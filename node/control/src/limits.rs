//! Every bound of the control plane, and how they relate. Relations are asserted when this compiles.

use std::time::Duration;

use ashlar_layout::limits::FRAME_PAYLOAD_MAX;

/// The state (map, history, tokens) as JSON, in bytes, at most.
pub const STATE_MAX: usize = 3 * 1024 * 1024;
/// What stands around a state or a map in a message, in bytes, at most.
pub const ENVELOPE_MAX: usize = 64 * 1024;
/// The payload of a connection's first frame, in bytes, at most.
pub const HELLO_MAX: u32 = 4 * 1024;
/// Log entries that one message carries, in bytes of JSON, about. One entry always goes.
pub const ENTRIES_BYTES: usize = 1024 * 1024;
/// and how many of them, at most.
pub const ENTRIES_MAX: u64 = 64;
/// Connections of clients and nodes, at most.
pub const CLIENTS_MAX: usize = 512;
/// Connections of control members, at most.
pub const MEMBERS_MAX: usize = 64;
/// Memory for requests that are being received or worked on, in KiB.
pub const REQUESTS_KIB: usize = 64 * 1024;
/// Chains that a heartbeat tells of, at most, and devices.
pub const REPORTS_MAX: usize = 4096;
/// How long a connection may take to say who it is.
pub const HELLO_TIME: Duration = Duration::from_secs(3);
/// How long the rest of a frame may take once it has begun.
pub const FRAME_TIME: Duration = Duration::from_secs(10);
/// How long a connection may be idle.
pub const IDLE_TIME: Duration = Duration::from_secs(120);
/// How long a watch waits at most before it answers that nothing has changed.
pub const WATCH_TIME: Duration = Duration::from_secs(30);
/// Log entries after which a snapshot is made.
pub const SNAPSHOT_EVERY: u64 = 1000;
/// Entries that stay in the log behind a snapshot, for members that are a little behind.
pub const LOG_KEPT: u64 = 200;

const _: () = assert!(STATE_MAX + ENVELOPE_MAX <= FRAME_PAYLOAD_MAX as usize);
const _: () = assert!(
    ENTRIES_BYTES <= STATE_MAX,
    "a batch is no larger than the largest entry"
);
const _: () = assert!(REQUESTS_KIB * 1024 > 4 * FRAME_PAYLOAD_MAX as usize);
const _: () = assert!(LOG_KEPT < SNAPSHOT_EVERY);
