//! What the reactor tells its handler, and the names that both use.

use std::fmt;
use std::net::SocketAddr;
use std::ops::Range;

use ashlar_layout::time::Instant;
use bytes::Bytes;
use rustix::io::Errno;

use crate::error::DeviceIoError;
use crate::io::Io;
use crate::pool::Buf;

/// A connection. Never reused: a stale one names nothing, and every call with it does nothing.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ConnId {
    pub(crate) slot: u32,
    pub(crate) generation: u32,
}

/// An open device. Never reused: operations on a stale one fail with [`DeviceIoError::Closed`].
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Dev {
    pub(crate) slot: u32,
    pub(crate) generation: u32,
}

impl ConnId {
    /// A name that a driver gives: it never gives a name twice.
    pub fn new(slot: u32, generation: u32) -> ConnId {
        ConnId { slot, generation }
    }

    /// The place in its driver's table.
    pub fn slot(self) -> u32 {
        self.slot
    }
}

impl Dev {
    /// A name that a driver gives: it never gives a name twice.
    pub fn new(slot: u32, generation: u32) -> Dev {
        Dev { slot, generation }
    }

    /// The place in its driver's table.
    pub fn slot(self) -> u32 {
        self.slot
    }
}

impl fmt::Debug for ConnId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "conn {}.{}", self.slot, self.generation)
    }
}

impl fmt::Debug for Dev {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "dev {}.{}", self.slot, self.generation)
    }
}

/// Something happened.
#[derive(Debug)]
pub enum Event<'a> {
    /// A peer connected to the address we listen on. Its data will follow.
    Accepted {
        /// The new connection.
        conn: ConnId,
        /// Who it is.
        peer: SocketAddr,
    },
    /// A connection that [`Io::connect`] began is there.
    Connected {
        /// The connection.
        conn: ConnId,
    },
    /// A connection is gone, whoever ended it: the last event of its id. A failed connect ends so
    /// too.
    Closed {
        /// The connection.
        conn: ConnId,
        /// Why, if it did not end in good order.
        error: Option<Errno>,
    },
    /// Bytes of the stream. All of them must be consumed: the memory is the kernel's again
    /// afterwards.
    Received {
        /// The connection.
        conn: ConnId,
        /// The bytes, at least one.
        data: &'a [u8],
    },
    /// The range that [`Io::recv_into`] named is full. `Received` events resume after it.
    Filled {
        /// The connection.
        conn: ConnId,
        /// The buffer that was handed in.
        buf: Buf,
    },
    /// The connection's send queue, which had been above the low-water mark, no longer is.
    Drained {
        /// The connection.
        conn: ConnId,
    },
    /// A read, write or flush is over.
    Device {
        /// What the operation was called when it was asked for.
        token: u64,
        /// How many bytes: all that were asked for (0 for a flush), or why not.
        result: Result<usize, DeviceIoError>,
        /// The buffer that was handed in; a flush has none.
        buf: Option<Buf>,
    },
    /// The time that [`Handler::next_deadline`] named has come.
    Deadline,
    /// Another thread called [`crate::Waker::wake`].
    Woken,
}

/// The logic that a reactor drives; or another driver, if it asks for nothing that is not in
/// [`crate::Driver`].
pub trait Handler<D = Io> {
    /// Takes one event. `now` is the same for all events of a batch.
    fn on_event(&mut self, now: Instant, event: Event<'_>, io: &mut D);

    /// Called once after each batch of events, before what they queued goes to the kernel.
    fn on_batch(&mut self, now: Instant, io: &mut D) {
        let _ = (now, io);
    }

    /// When to be called with [`Event::Deadline`] at the latest. Asked once per batch.
    fn next_deadline(&self) -> Option<Instant>;

    /// Ends [`crate::Reactor::run`] once true. Asked once per batch.
    fn finished(&self) -> bool;
}

/// A piece of what is to be sent.
#[derive(Debug)]
pub enum Chunk {
    /// Shared bytes.
    Bytes(Bytes),
    /// Part of a pool buffer, which goes back to the pool when it has been sent.
    Buf(Buf, Range<usize>),
}

impl Chunk {
    /// How many bytes it will send.
    pub fn len(&self) -> usize {
        match self {
            Chunk::Bytes(bytes) => bytes.len(),
            Chunk::Buf(_, range) => range.len(),
        }
    }

    /// Whether there is nothing in it.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The bytes.
    pub(crate) fn as_slice(&self) -> &[u8] {
        match self {
            Chunk::Bytes(bytes) => bytes,
            Chunk::Buf(buf, range) => &buf[range.clone()],
        }
    }
}

impl From<Bytes> for Chunk {
    fn from(bytes: Bytes) -> Chunk {
        Chunk::Bytes(bytes)
    }
}

impl From<Vec<u8>> for Chunk {
    fn from(bytes: Vec<u8>) -> Chunk {
        Chunk::Bytes(bytes.into())
    }
}
