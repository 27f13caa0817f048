//! The disk engine of one device: append, acknowledge, read, delete, recover.
//!
//! | module | what it is |
//! |---|---|
//! | [`api`] | events in, actions out: the seam to the driver |
//! | [`error`] | what can go wrong, typed; what was found wrong on the device |
//! | [`mod@format`] | what a fresh device holds |
//! | [`opening`] | recovery: from a raw device to an [`engine::Engine`] |
//! | [`engine`] | the running engine |
//!
//! **Architecture invariants:**
//! - No I/O, no clock, no randomness: a driver (io_uring on nodes, a simulated disk in tests)
//!   carries out [`api::Action`]s and reports by [`api::Event::IoDone`].
//! - The extent is the log: a shard is durable by one write, and everything in memory can be
//!   rebuilt from the device. A checkpoint only saves reading.
//! - No byte leaves the engine that did not match its checksum.

#![cfg_attr(test, allow(clippy::unwrap_used))]

mod accept;
mod acknowledge;
pub mod api;
mod append;
pub mod audit;
#[cfg(test)]
mod audit_tests;
mod auditing;
pub mod census;
mod checkpoint;
mod chunks;
pub mod clean;
mod copying;
pub mod engine;
pub mod error;
mod extents;
pub mod format;
mod graves;
mod handover;
mod holdings;
pub mod index;
pub mod mutants;
mod opened;
pub mod opening;
mod queue;
mod read;
mod read_bytes;
mod recovery;
mod rewrite;
mod room;
mod roots;
mod scan;
mod superblocks;
mod verdict;
mod walking;
