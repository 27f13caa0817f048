//! What is on disk and on the wire. No I/O, no clock, no threads.
//!
//! FORMAT.md beside this crate is the one description of each byte.
//!
//! **Architecture invariant:** this crate alone is enough to read a dead device; it depends on no
//! other crate of the workspace, and does no I/O.

pub mod ids;
pub mod limits;
pub mod manifest;
pub mod message;
pub mod time;
