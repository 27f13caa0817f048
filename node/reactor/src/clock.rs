//! The clocks of the process.

use std::sync::OnceLock;

use ashlar_layout::time::Instant;

/// Now, in nanoseconds since the process first asked; the same scale on every core.
#[allow(
    clippy::disallowed_methods,
    reason = "this is the driver that hands time to the logic; nobody else reads a clock"
)]
pub fn monotonic() -> Instant {
    static START: OnceLock<std::time::Instant> = OnceLock::new();
    let start = START.get_or_init(std::time::Instant::now);
    // 2^64 nanoseconds are 584 years.
    Instant(start.elapsed().as_nanos() as u64)
}

/// Milliseconds since 1970: what objects are stamped with.
#[allow(
    clippy::disallowed_methods,
    reason = "as above: a driver reads the clock, and hands it on"
)]
pub fn wall_ms() -> u64 {
    std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .map_or(0, |d| d.as_millis() as u64)
}
