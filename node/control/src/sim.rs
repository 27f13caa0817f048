//! Control members on simulated machines: the shipped members, openraft and redb, in one thread and by a clock that
//! only goes when nothing is left to do.
//!
//! A run has one, three or five members, callers that change the map, make tokens and join with them, and nodes whose
//! heartbeats come or do not. Meanwhile members are killed, lose power in the midst of a commit, lose their disks (one
//! at a time), are cut off one way or both ways; disks and network are slow, wall clocks jump. At the end all is made
//! well, and [`judge`] says whether what was told fits what is.
//!
//! A run is a function of its seed but for one thing: where several tasks wait for the same news, tokio wakes them in
//! an order of its own. `RUSTFLAGS='--cfg tokio_unstable'` takes that from the seed as well.

pub(crate) mod disk;
mod judge;
mod net;
pub(crate) mod runtime;
mod tests;
mod work;
mod world;
