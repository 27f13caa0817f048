//! Scales: what the benches and the load generator share.
//!
//! Every figure here is a ratio to something measured in the same run on the same machine: a bare
//! TCP round trip ([`baseline::tcp_round_trip`]) or a bare durable write
//! ([`baseline::durable_write`]). Absolute times move; ratios hold.

pub mod baseline;
pub mod cpu;
pub mod disk;
pub mod drive;
pub mod echo;
pub mod http;
