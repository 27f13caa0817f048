//! What a handler acts with: the state of one reactor, and the way from completions to events.
//!
//! The methods are where they belong: connections in `sockets.rs`, devices in `disk.rs`.
//!
//! Invariants:
//! - A method of `Io` never waits and never calls the handler. What it finds out at once (a refused
//!   operation, say) goes through `pending`, like everything else.
//! - `pending` is empty before the next completion is looked at, so that events keep the kernel's
//!   order.
//! - `now` changes only between batches.

use std::collections::VecDeque;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use ashlar_layout::time::Instant;
use io_uring::{cqueue, opcode, types};
use rustix::io::Errno;

use crate::clock::monotonic;
use crate::conn::Conn;
use crate::disk::{DEVICES_MAX, Device, DeviceOp};
use crate::event::{ConnId, Event};
use crate::pool::{Buf, Pool};
use crate::ring::{Kind, Ring, Tag};
use crate::slots::Slots;
use crate::sockets::{Limits, Linger, Listener};

/// What is to be told next.
pub(crate) enum Pending {
    /// An event that needs nothing else.
    Event(Event<'static>),
    /// Bytes in one of the shared receive buffers.
    Received {
        conn: ConnId,
        buffer: u16,
        len: usize,
    },
    /// Bytes that waited while the connection was paused, or the end of its stream.
    Stash(ConnId),
}

/// What a handler acts with. Every method returns at once; what they queue goes to the kernel
/// together, at the end of the batch.
///
/// A stale [`ConnId`] or [`crate::Dev`] does no harm: calls with it do nothing, or answer with an
/// error event.
pub struct Io {
    pub(crate) ring: Ring,
    pub(crate) pool: Pool,
    pub(crate) now: Instant,
    pub(crate) conns: Slots<Box<Conn>>,
    /// Connections that `settle` must look at.
    pub(crate) dirty: Vec<u32>,
    pub(crate) devices: Slots<Device>,
    pub(crate) ops: Slots<DeviceOp>,
    pub(crate) pending: VecDeque<Pending>,
    pub(crate) lingering: VecDeque<Linger>,
    pub(crate) listener: Option<Listener>,
    pub(crate) limits: Limits,
    pub(crate) eventfd: Arc<OwnedFd>,
    wake_armed: bool,
}

impl Io {
    pub(crate) fn new(
        ring: Ring,
        pool: Pool,
        connections: u32,
        limits: Limits,
        listener: Option<Listener>,
        eventfd: OwnedFd,
    ) -> Io {
        Io {
            ring,
            pool,
            now: monotonic(),
            conns: Slots::new(connections),
            dirty: Vec::new(),
            devices: Slots::new(DEVICES_MAX),
            ops: Slots::new(u32::MAX),
            pending: VecDeque::new(),
            lingering: VecDeque::new(),
            listener,
            limits,
            eventfd: Arc::new(eventfd),
            wake_armed: false,
        }
    }

    /// The time of the current batch.
    pub fn now(&self) -> Instant {
        self.now
    }

    /// The pool, as a handle of its own that does not borrow this.
    pub fn pool(&self) -> Pool {
        self.pool.clone()
    }

    /// [`Pool::alloc`].
    pub fn alloc(&self, len: usize) -> Option<Buf> {
        self.pool.alloc(len)
    }

    /// Watches the eventfd of the wakers.
    pub(crate) fn arm_waker(&mut self) {
        if self.wake_armed {
            return;
        }
        self.wake_armed = true;
        let fd = types::Fd(self.eventfd.as_raw_fd());
        let poll = opcode::PollAdd::new(fd, libc::POLLIN as u32)
            .multi(true)
            .build();
        // SAFETY: it points to nothing; the descriptor stays open as long as this `Io`.
        unsafe {
            self.ring
                .push(poll.user_data(Tag::new(Kind::Wake, 0, 0).pack()))
        };
    }

    /// Turns a completion into what is to be told.
    pub(crate) fn complete(&mut self, entry: &cqueue::Entry) {
        let Some(tag) = Tag::unpack(entry.user_data()) else {
            debug_assert!(
                false,
                "a completion of nothing that we asked for: {entry:?}"
            );
            return;
        };
        let result = outcome(entry);
        let flags = entry.flags();
        match tag.kind {
            Kind::Accept => self.on_accept(result, flags),
            Kind::Wake => self.on_wake(flags),
            Kind::Connect => self.on_connect(tag.slot, result),
            Kind::Recv => self.on_recv(tag.slot, result, flags),
            Kind::Fill => self.on_fill(tag.slot, result),
            Kind::Send => self.on_send(tag.slot, result),
            Kind::CancelRecv => self.on_cancel_recv(tag, result),
            Kind::Cancel => {}
            Kind::Device => self.on_device(tag.slot, result),
        }
    }

    fn on_wake(&mut self, flags: u32) {
        let mut count = [0; 8];
        // Non-blocking: it may have been read already for an earlier completion.
        let woken = rustix::io::read(&*self.eventfd, &mut count).is_ok();
        if woken {
            self.pending.push_back(Pending::Event(Event::Woken));
        }
        if !cqueue::more(flags) {
            self.wake_armed = false;
        }
    }

    /// Ends everything that the kernel has of us. False if it did not let go of all of it in time:
    /// then the memory that it may still use must never be freed.
    pub(crate) fn shut_down(&mut self, patience: Duration) -> bool {
        self.ring.drop_backlog();
        let give_up = monotonic() + patience;
        let mut entries = Vec::new();
        let mut cancelled_at = usize::MAX;
        while self.ring.in_flight() > 0 {
            // Again whenever something has ended meanwhile: it may have begun something else.
            if self.ring.in_flight() < cancelled_at {
                cancelled_at = self.ring.in_flight();
                let cancel = opcode::AsyncCancel2::new(types::CancelBuilder::any()).build();
                let tag = Tag::new(Kind::Cancel, 0, 0).pack();
                // SAFETY: it points to nothing.
                unsafe { self.ring.push(cancel.user_data(tag)) };
            }
            let entered = self.ring.enter(true, Some(Duration::from_millis(50)));
            self.ring.reap(&mut entries);
            for entry in entries.drain(..) {
                let accept =
                    Tag::unpack(entry.user_data()).map(|tag| tag.kind) == Some(Kind::Accept);
                if accept && let Ok(fd) = outcome(&entry) {
                    // SAFETY: the kernel made this descriptor for this completion.
                    drop(unsafe { OwnedFd::from_raw_fd(fd.cast_signed()) });
                }
            }
            if entered.is_err() || (monotonic() > give_up && self.ring.in_flight() > 0) {
                return false;
            }
        }
        self.ring.unregister_all();
        true
    }

    /// Leaks whatever the kernel may still read or write.
    #[allow(
        clippy::disallowed_methods,
        reason = "the kernel did not let go of it: a leak is what keeps it from being reused"
    )]
    pub(crate) fn leak(&mut self) {
        std::mem::forget(std::mem::replace(&mut self.conns, Slots::new(0)));
        std::mem::forget(std::mem::replace(&mut self.ops, Slots::new(0)));
        std::mem::forget(std::mem::replace(&mut self.devices, Slots::new(0)));
        std::mem::forget(self.pool.clone());
    }
}

/// What a completion says.
fn outcome(entry: &cqueue::Entry) -> Result<u32, Errno> {
    let result = entry.result();
    u32::try_from(result).map_err(|_| Errno::from_raw_os_error(-result))
}
