//! What is on disk and on the wire. No I/O, no clock, no threads.
//!
//! FORMAT.md beside this crate is the one description of each byte.
//!
//! **Architecture invariant:** this crate alone is enough to read a dead device; it depends on no
//! other crate of the workspace, and does no I/O.
#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod checkpoint;
pub mod control;
pub mod crc;
pub mod diagnosis;
pub mod digest;
mod election;
pub mod extent;
pub mod footer;
pub mod frame;
pub mod ids;
pub mod journal;
pub mod limits;
pub mod lock;
pub mod manifest;
#[cfg(test)]
mod manifest_tests;
mod manifest_v1;
mod manifest_v4;
pub mod message;
pub mod names;
pub mod pace;
pub mod page;
pub mod record;
pub mod replica_state;
pub mod root;
pub mod slot;
pub mod stamp;
pub mod superblock;
pub mod time;
pub mod version;
