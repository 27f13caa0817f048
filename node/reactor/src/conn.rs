//! One connection: its queue, its receive state, and what the kernel is doing with it.
//!
//! Invariants:
//! - At most one receive (`reading`), one send (`sending`) and one connect are under way;
//!   `operations` counts them. A `Conn` is dropped, and its descriptor closed, only when that is
//!   zero. With it go the queue, the fill buffer and the send vector, so the kernel never works on
//!   freed memory.
//! - While `sending`, chunks are only appended to `queue`, never taken from it: the operation
//!   points into those at its front. (Moving a `Chunk` does not move its bytes: they are on the
//!   heap or in the arena.)
//! - While `reading` is `Fill`, nobody but the kernel touches `fill.buf`.
//! - `queued` is the sum of the chunks' lengths less `front_sent`.
//! - Bytes of the stream reach the handler in order: `stash` before what arrives later, and neither
//!   passes a `fill` that is waiting.

use std::collections::VecDeque;
use std::os::fd::OwnedFd;

use io_uring::{opcode, squeue};
use rustix::io::Errno;
use rustix::net::SocketAddrAny;

use crate::event::{Chunk, ConnId};
use crate::pool::Buf;
use crate::recv_ring;
use crate::ring::{File, Kind, Tag, on_file};

/// A fill shorter than this is copied out of the shared buffers: cancelling the multishot receive
/// and arming it again costs more than that.
pub(crate) const DIRECT_MIN: usize = 32 << 10;

/// Chunks per send operation.
const VECTOR: usize = 64;

/// Bytes per send operation: the grain at which progress is seen.
const SEND_MAX: usize = 1 << 20;

/// Where a connection is in its life. It only moves down this list.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Phase {
    /// The connect is under way.
    Connecting,
    /// Both directions work.
    Open,
    /// What is queued goes out; what comes in is thrown away.
    Closing,
    /// All is sent and our end is shut; waiting for the peer's end.
    Lingering,
    /// Waiting for the kernel to let go of it.
    Dead,
}

/// The receive that is under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reading {
    Nothing,
    /// Multishot, into the shared buffers.
    Multi,
    /// Into the fill buffer.
    Fill,
}

/// A range of a buffer that the stream's next bytes go to.
pub(crate) struct Fill {
    pub(crate) buf: Buf,
    pub(crate) at: usize,
    pub(crate) to: usize,
}

impl Fill {
    pub(crate) fn left(&self) -> usize {
        self.to - self.at
    }
}

/// What a vectored send points the kernel to.
struct SendVector {
    header: libc::msghdr,
    parts: [libc::iovec; VECTOR],
}

/// A connection.
pub(crate) struct Conn {
    pub(crate) id: ConnId,
    pub(crate) fd: OwnedFd,
    pub(crate) file: File,
    pub(crate) phase: Phase,
    /// The first thing that went wrong.
    pub(crate) error: Option<Errno>,
    pub(crate) operations: u32,
    /// The handler has let go of it: nothing but `Closed` is still told.
    pub(crate) quiet: bool,
    /// It is in the list of connections to settle before the ring is entered.
    pub(crate) dirty: bool,
    /// All its operations have been asked to end.
    pub(crate) cancelled: bool,
    /// Where it connects to; the kernel reads it until the connect is over.
    pub(crate) target: Option<Box<SocketAddrAny>>,

    pub(crate) queue: VecDeque<Chunk>,
    pub(crate) front_sent: usize,
    pub(crate) queued: usize,
    pub(crate) sent_total: u64,
    pub(crate) sending: bool,
    /// The queue has been above the low-water mark since the last `Drained`.
    pub(crate) was_high: bool,
    vector: Option<Box<SendVector>>,

    pub(crate) reading: Reading,
    /// The receive under way has been asked to end.
    pub(crate) stopping: bool,
    pub(crate) fill: Option<Fill>,
    pub(crate) paused: bool,
    pub(crate) eof: bool,
    pub(crate) stash: Vec<u8>,
}

impl Conn {
    pub(crate) fn new(id: ConnId, fd: OwnedFd, file: File, phase: Phase) -> Conn {
        Conn {
            id,
            fd,
            file,
            phase,
            error: None,
            operations: 0,
            quiet: false,
            dirty: false,
            cancelled: false,
            target: None,
            queue: VecDeque::new(),
            front_sent: 0,
            queued: 0,
            sent_total: 0,
            sending: false,
            was_high: false,
            vector: None,
            reading: Reading::Nothing,
            stopping: false,
            fill: None,
            paused: false,
            eof: false,
            stash: Vec::new(),
        }
    }

    pub(crate) fn tag(&self, kind: Kind) -> u64 {
        Tag::new(kind, self.id.slot, self.id.generation).pack()
    }

    /// What ought to be under way on the receiving side.
    pub(crate) fn wanted(&self) -> Reading {
        match self.phase {
            Phase::Connecting | Phase::Dead => Reading::Nothing,
            _ if self.eof => Reading::Nothing,
            Phase::Closing | Phase::Lingering => Reading::Multi,
            // While a stash waits to be delivered, reading more would only make it longer.
            Phase::Open if self.paused || !self.stash.is_empty() => Reading::Nothing,
            Phase::Open => match &self.fill {
                Some(fill) if fill.left() >= DIRECT_MIN => Reading::Fill,
                // Begun directly: end it so.
                Some(_) if self.reading == Reading::Fill => Reading::Fill,
                _ => Reading::Multi,
            },
        }
    }

    /// The operation that sends the front of the queue. The caller sets `sending`.
    pub(crate) fn send_operation(&mut self) -> squeue::Entry {
        let tag = self.tag(Kind::Send);
        // WAITALL: the kernel goes on by itself when the socket takes only part at first.
        let flags = libc::MSG_NOSIGNAL | libc::MSG_WAITALL;
        let first = &self.queue[0].as_slice()[self.front_sent..];
        if self.queue.len() == 1 || first.len() >= SEND_MAX {
            let len = first.len().min(SEND_MAX) as u32;
            return on_file!(self.file, fd =>
                opcode::Send::new(fd, first.as_ptr(), len).flags(flags).build())
            .user_data(tag);
        }
        let empty = libc::iovec {
            iov_base: std::ptr::null_mut(),
            iov_len: 0,
        };
        let vector = self.vector.get_or_insert_with(|| {
            // SAFETY: msghdr is a plain C struct of integers and pointers: all zeros is valid.
            let header = unsafe { std::mem::zeroed() };
            Box::new(SendVector {
                header,
                parts: [empty; VECTOR],
            })
        });
        let mut skip = self.front_sent;
        let mut left = SEND_MAX;
        let mut count = 0;
        for (chunk, part) in self.queue.iter().zip(&mut vector.parts) {
            let bytes = &chunk.as_slice()[skip..];
            skip = 0;
            let len = bytes.len().min(left);
            *part = libc::iovec {
                iov_base: bytes.as_ptr().cast_mut().cast(),
                iov_len: len,
            };
            left -= len;
            count += 1;
            if left == 0 {
                break;
            }
        }
        vector.header.msg_iov = vector.parts.as_mut_ptr();
        vector.header.msg_iovlen = count;
        let header: *const libc::msghdr = &vector.header;
        on_file!(self.file, fd =>
            opcode::SendMsg::new(fd, header).flags(flags as u32).build())
        .user_data(tag)
    }

    /// Takes `sent` bytes off the queue.
    pub(crate) fn consume(&mut self, sent: usize) {
        self.queued -= sent;
        self.sent_total += sent as u64;
        self.front_sent += sent;
        while let Some(front) = self.queue.front() {
            if self.front_sent < front.len() {
                break;
            }
            self.front_sent -= front.len();
            self.queue.pop_front();
        }
    }

    /// The multishot receive into the shared buffers.
    pub(crate) fn multi_operation(&self) -> squeue::Entry {
        on_file!(self.file, fd => opcode::RecvMulti::new(fd, recv_ring::GROUP).build())
            .user_data(self.tag(Kind::Recv))
    }

    /// The receive of the rest of the fill, if there is one.
    pub(crate) fn fill_operation(&mut self) -> Option<squeue::Entry> {
        let tag = self.tag(Kind::Fill);
        let fill = self.fill.as_mut()?;
        let rest = &mut fill.buf[fill.at..fill.to];
        // The kernel takes lengths of up to 2 GiB; a Buf is far below.
        let (start, len) = (rest.as_mut_ptr(), rest.len() as u32);
        let operation = on_file!(self.file, fd =>
            opcode::Recv::new(fd, start, len).flags(libc::MSG_WAITALL).build());
        Some(operation.user_data(tag))
    }

    /// Puts what is at hand into the fill, and returns what is left over, with the fill if it is
    /// complete.
    pub(crate) fn pour<'a>(&mut self, data: &'a [u8]) -> (&'a [u8], Option<Fill>) {
        // A direct receive owns the buffer; none of its bytes arrive here before it has ended.
        debug_assert_ne!(self.reading, Reading::Fill);
        let Some(fill) = &mut self.fill else {
            return (data, None);
        };
        let (now, later) = data.split_at(data.len().min(fill.left()));
        fill.buf[fill.at..fill.at + now.len()].copy_from_slice(now);
        fill.at += now.len();
        if fill.left() == 0 {
            (later, self.fill.take())
        } else {
            (later, None)
        }
    }
}
