//! The reactor: one thread, one io_uring, its sockets, its devices, its memory.
//!
//! A [`Reactor`] drives one [`Handler`]. Whatever the kernel finishes becomes an [`Event`]; the
//! handler answers by calling methods of [`Io`], which only *queue* work; the ring is entered once
//! per batch of events. There are no futures, no locks and no threads in here.
//!
//! **Invariant:** all `unsafe` of the node's I/O lives in this crate, and each use says why it is
//! sound. The rule behind nearly all of them: *memory that the kernel may touch is owned by a slot
//! that is released by the completion, never by the caller's loss of interest.*
//!
//! **Invariant:** nothing is decided in here. The reactor knows bytes, offsets and connections; it
//! has never heard of shards, frames or journals.
#![allow(
    unsafe_code,
    reason = "the one crate that hands memory and descriptors to the kernel; see the rule above"
)]
#![cfg_attr(test, allow(clippy::unwrap_used))]

mod clock;
mod conn;
mod device;
mod disk;
mod driver;
mod error;
mod event;
mod io;
mod pages;
mod pool;
mod probe;
mod reactor;
mod recv_ring;
mod ring;
mod slots;
mod sockets;
mod spin;
mod waker;

pub use clock::{monotonic, wall_ms};
pub use device::{CacheMode, DeviceInfo, DeviceKind, OpenOptions, inspect_device};
pub use driver::Driver;
pub use error::{
    ConnectError, DeviceIoError, DeviceOperation, OpenError, ProbeError, ReactorError,
};
pub use event::{Chunk, ConnId, Dev, Event, Handler};
pub use io::Io;
pub use pool::{BUF_ALIGN, BUF_LEN_MAX, Buf, Pool};
pub use probe::{Limit, Probe, probe};
pub use reactor::{Options, Reactor};
/// An error number of the kernel, as it appears in events and errors.
pub use rustix::io::Errno;
pub use waker::Waker;

pub use ashlar_layout::time::Instant;
