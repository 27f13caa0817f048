//! The io_uring: how it is set up, how operations get in, how the kernel is entered.
//!
//! Invariants:
//! - No operation is lost: what does not fit the submission queue waits in `backlog`, in order, and
//!   goes before anything newer.
//! - `in_flight` is the number of operations that are in the queue or the kernel and will still
//!   complete; memory that they use must not be freed before (see `Reactor::drop`).
//! - Only the thread that made the ring touches it (`Ring` is not `Send`, as it must be for
//!   SINGLE_ISSUER).

use std::collections::VecDeque;
use std::marker::PhantomData;
use std::os::fd::RawFd;
use std::time::Duration;

use io_uring::types::{SubmitArgs, Timespec};
use io_uring::{EnterFlags, IoUring, cqueue, squeue};
use rustix::io::Errno;

use crate::error::ProbeError;
use crate::probe::{forbidden, kernel_release};

/// What an operation is, in the top byte of its user data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Kind {
    Accept = 1,
    Wake,
    Connect,
    Recv,
    Fill,
    Send,
    CancelRecv,
    Cancel,
    Device,
}

/// Kind, slot and the low bits of its generation, in the 64 bits that come back with a completion.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Tag {
    pub(crate) kind: Kind,
    pub(crate) slot: u32,
    pub(crate) generation: u32,
}

const GENERATION_MASK: u32 = (1 << 24) - 1;

impl Tag {
    pub(crate) fn new(kind: Kind, slot: u32, generation: u32) -> Tag {
        Tag {
            kind,
            slot,
            generation: generation & GENERATION_MASK,
        }
    }

    pub(crate) fn pack(self) -> u64 {
        u64::from(self.kind as u8) << 56 | u64::from(self.generation) << 32 | u64::from(self.slot)
    }

    pub(crate) fn unpack(data: u64) -> Option<Tag> {
        let kind = match (data >> 56) as u8 {
            1 => Kind::Accept,
            2 => Kind::Wake,
            3 => Kind::Connect,
            4 => Kind::Recv,
            5 => Kind::Fill,
            6 => Kind::Send,
            7 => Kind::CancelRecv,
            8 => Kind::Cancel,
            9 => Kind::Device,
            _ => return None,
        };
        Some(Tag {
            kind,
            slot: data as u32,
            generation: (data >> 32) as u32 & GENERATION_MASK,
        })
    }

    /// Whether the slot's present owner is the one that the operation was for.
    pub(crate) fn is_of(self, generation: u32) -> bool {
        self.generation == generation & GENERATION_MASK
    }
}

/// A descriptor, or its index in the table of registered files.
#[derive(Clone, Copy, Debug)]
pub(crate) enum File {
    Plain(RawFd),
    Fixed(u32),
}

/// Builds an operation on a [`File`], whichever kind it is.
macro_rules! on_file {
    ($file:expr, $fd:ident => $build:expr) => {
        match $file {
            $crate::ring::File::Plain(raw) => {
                let $fd = io_uring::types::Fd(raw);
                $build
            }
            $crate::ring::File::Fixed(index) => {
                let $fd = io_uring::types::Fixed(index);
                $build
            }
        }
    };
}
pub(crate) use on_file;

/// How the ring was set up in the end.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct RingMode {
    pub(crate) single_issuer: bool,
    pub(crate) defer_taskrun: bool,
    pub(crate) coop_taskrun: bool,
}

/// The ring.
pub(crate) struct Ring {
    uring: IoUring,
    backlog: VecDeque<squeue::Entry>,
    in_flight: usize,
    mode: RingMode,
    enter_flags: EnterFlags,
    fixed_files: u32,
    // Not Send: SINGLE_ISSUER binds the ring to this thread.
    _thread: PhantomData<*const ()>,
}

/// Sets up a ring in the best mode that this kernel takes.
pub(crate) fn build(entries: u32) -> Result<(IoUring, RingMode), ProbeError> {
    let best = RingMode {
        single_issuer: true,
        defer_taskrun: true,
        coop_taskrun: false,
    };
    let fallback = RingMode {
        single_issuer: false,
        defer_taskrun: false,
        coop_taskrun: true,
    };
    let mut refused = Errno::INVAL;
    for mode in [best, fallback, RingMode::default()] {
        let mut builder = IoUring::builder();
        builder
            .dontfork()
            .setup_clamp()
            .setup_cqsize(entries.saturating_mul(4));
        if mode.single_issuer {
            builder.setup_single_issuer();
        }
        if mode.defer_taskrun {
            builder
                .setup_defer_taskrun()
                .setup_taskrun_flag()
                .setup_submit_all();
        }
        if mode.coop_taskrun {
            builder
                .setup_coop_taskrun()
                .setup_taskrun_flag()
                .setup_submit_all();
        }
        match builder.build(entries).map_err(errno_of) {
            Ok(uring) => return Ok((uring, mode)),
            // The kernel does not know a flag: do without.
            Err(Errno::INVAL) => refused = Errno::INVAL,
            Err(Errno::NOSYS) => {
                return Err(ProbeError::Missing {
                    kernel: kernel_release(),
                });
            }
            Err(errno @ (Errno::PERM | Errno::ACCESS)) => return Err(forbidden(errno)),
            Err(errno) => {
                return Err(ProbeError::Setup {
                    what: "io_uring_setup",
                    errno,
                });
            }
        }
    }
    Err(ProbeError::Setup {
        what: "io_uring_setup",
        errno: refused,
    })
}

/// The error number in an I/O error of the `io-uring` crate, which has nothing else in them.
pub(crate) fn errno_of(error: std::io::Error) -> Errno {
    error
        .raw_os_error()
        .map_or(Errno::IO, Errno::from_raw_os_error)
}

impl Ring {
    pub(crate) fn new(entries: u32) -> Result<Ring, ProbeError> {
        let (uring, mode) = build(entries)?;
        let params = uring.params();
        if !params.is_feature_ext_arg() || !params.is_feature_nodrop() {
            return Err(ProbeError::TooOld {
                kernel: kernel_release(),
                what: "io_uring waits with a timeout (EXT_ARG) or lossless completions (NODROP)",
            });
        }
        let mut enter_flags = EnterFlags::empty();
        if params.is_feature_no_iowait() {
            // Waiting for a client is no reason to count as waiting for a disk.
            enter_flags |= EnterFlags::NO_IOWAIT;
        }
        Ok(Ring {
            uring,
            backlog: VecDeque::new(),
            in_flight: 0,
            mode,
            enter_flags,
            fixed_files: 0,
            _thread: PhantomData,
        })
    }

    pub(crate) fn mode(&self) -> RingMode {
        self.mode
    }

    pub(crate) fn uring(&self) -> &IoUring {
        &self.uring
    }

    pub(crate) fn in_flight(&self) -> usize {
        self.in_flight
    }

    /// Makes a table for `count` registered files; without one, descriptors are looked up by the
    /// kernel.
    pub(crate) fn make_file_table(&mut self, count: u32) -> Result<(), Errno> {
        self.uring
            .submitter()
            .register_files_sparse(count)
            .map_err(errno_of)?;
        self.fixed_files = count;
        Ok(())
    }

    /// As if the table could not have been made.
    #[cfg(test)]
    pub(crate) fn forget_file_table(&mut self) {
        self.fixed_files = 0;
    }

    /// Registers `fd` at `index`, if there is a table.
    pub(crate) fn register_file(&mut self, index: u32, fd: RawFd) -> File {
        if index < self.fixed_files
            && self
                .uring
                .submitter()
                .register_files_update(index, &[fd])
                .is_ok()
        {
            return File::Fixed(index);
        }
        File::Plain(fd)
    }

    /// Takes a file out of the table, so that closing the descriptor really closes it.
    pub(crate) fn unregister_file(&mut self, file: File) {
        if let File::Fixed(index) = file {
            // It cannot fail: the index is within the table, and -1 means "none".
            let result = self.uring.submitter().register_files_update(index, &[-1]);
            debug_assert!(result.is_ok(), "{result:?}");
        }
    }

    /// Queues an operation; it goes to the kernel at the next [`Ring::enter`].
    ///
    /// # Safety
    /// Everything that `entry` points to must stay valid, and must not be read or written in
    /// conflict with it, until its completion has been taken from [`Ring::reap`].
    pub(crate) unsafe fn push(&mut self, entry: squeue::Entry) {
        if !self.backlog.is_empty() {
            self.backlog.push_back(entry);
            return;
        }
        // SAFETY: promised by the caller.
        if unsafe { self.uring.submission().push(&entry) }.is_err() {
            self.backlog.push_back(entry);
            return;
        }
        self.in_flight += 1;
    }

    /// Moves as much of the backlog to the submission queue as fits.
    fn refill(&mut self) {
        let mut queue = self.uring.submission();
        while let Some(entry) = self.backlog.front() {
            // SAFETY: whoever pushed it promised that its memory lives until its completion.
            if unsafe { queue.push(entry) }.is_err() {
                break;
            }
            self.backlog.pop_front();
            self.in_flight += 1;
        }
    }

    /// Gives the kernel what is queued, lets it do its deferred work, and, if `wait`, sleeps
    /// until something completes or `timeout` is over.
    pub(crate) fn enter(&mut self, wait: bool, timeout: Option<Duration>) -> Result<(), Errno> {
        loop {
            self.refill();
            let more = !self.backlog.is_empty();
            let sleep = wait && !more;
            match self.enter_once(sleep, timeout.filter(|_| sleep)) {
                Ok(0) if more => return Ok(()),
                Ok(_) if more => {}
                Ok(_) => return Ok(()),
                // Interrupted, timed out, or the completion queue must be emptied first.
                Err(Errno::INTR | Errno::TIME | Errno::AGAIN | Errno::BUSY) => return Ok(()),
                Err(errno) => return Err(errno),
            }
        }
    }

    fn enter_once(&mut self, wait: bool, timeout: Option<Duration>) -> Result<usize, Errno> {
        let queued = {
            let mut queue = self.uring.submission();
            queue.sync();
            // Bounded by the size of the queue.
            queue.len() as u32
        };
        // Deferred work runs only when completions are asked for, so they always are.
        let mut flags = self.enter_flags | EnterFlags::GETEVENTS;
        let want = u32::from(wait);
        let submitter = self.uring.submitter();
        let result = match timeout {
            Some(timeout) => {
                flags |= EnterFlags::EXT_ARG;
                let time = Timespec::from(timeout);
                let args = SubmitArgs::new().timespec(&time);
                // SAFETY: EXT_ARG says that the argument is an io_uring_getevents_arg, which is
                // what SubmitArgs is; it and the time it points to outlive the call. The entries
                // submitted were vouched for in `push`.
                unsafe { submitter.enter(queued, want, flags.bits(), Some(&args)) }
            }
            // SAFETY: no argument; the entries submitted were vouched for in `push`.
            None => unsafe { submitter.enter::<()>(queued, want, flags.bits(), None) },
        };
        result.map_err(errno_of)
    }

    /// Whether a completion is there, or would be if the kernel were entered.
    pub(crate) fn has_news(&mut self) -> bool {
        !self.uring.completion().is_empty() || self.uring.submission().taskrun()
    }

    /// Takes the completions that are there.
    pub(crate) fn reap(&mut self, into: &mut Vec<cqueue::Entry>) {
        for entry in self.uring.completion() {
            if !cqueue::more(entry.flags()) {
                self.in_flight -= 1;
            }
            into.push(entry);
        }
    }

    /// Lets go of registered files and buffers now; the kernel would do it some time after the ring
    /// is closed, and keep locks and exclusive claims until then.
    pub(crate) fn unregister_all(&mut self) {
        let submitter = self.uring.submitter();
        // Either fails only if there was nothing registered.
        let _ = submitter.unregister_files();
        let _ = submitter.unregister_buffers();
    }

    /// Forgets what has not been given to the kernel's queue yet. For the end only.
    pub(crate) fn drop_backlog(&mut self) {
        self.backlog.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tags_come_back_as_they_went() {
        for kind in [
            Kind::Accept,
            Kind::Wake,
            Kind::Connect,
            Kind::Recv,
            Kind::Fill,
        ] {
            let tag = Tag::new(kind, 0xdead_beef, 0xffff_ffff);
            assert_eq!(Tag::unpack(tag.pack()), Some(tag));
            assert!(tag.is_of(0xffff_ffff) && !tag.is_of(0));
        }
        for kind in [Kind::Send, Kind::CancelRecv, Kind::Cancel, Kind::Device] {
            let tag = Tag::new(kind, 0, 1);
            assert_eq!(Tag::unpack(tag.pack()), Some(tag));
        }
        assert_eq!(Tag::unpack(0), None);
        assert_eq!(Tag::unpack(u64::MAX), None);
    }

    #[test]
    fn more_operations_than_the_queue_holds_all_complete_in_order() {
        let mut ring = Ring::new(4).unwrap();
        for slot in 0..1000 {
            let nop = io_uring::opcode::Nop::new().build();
            let tag = Tag::new(Kind::Device, slot, 0).pack();
            // SAFETY: a no-op points to nothing.
            unsafe { ring.push(nop.user_data(tag)) };
        }
        let mut seen = Vec::new();
        let mut entries = Vec::new();
        while seen.len() < 1000 {
            ring.enter(true, None).unwrap();
            ring.reap(&mut entries);
            seen.extend(
                entries
                    .drain(..)
                    .map(|entry| Tag::unpack(entry.user_data()).unwrap().slot),
            );
        }
        assert_eq!(seen, (0..1000).collect::<Vec<_>>());
        assert_eq!(ring.in_flight(), 0);
    }

    #[test]
    fn waiting_ends_with_the_timeout() {
        let mut ring = Ring::new(4).unwrap();
        let before = crate::clock::monotonic();
        ring.enter(true, Some(Duration::from_millis(5))).unwrap();
        assert!(crate::clock::monotonic().since(before) >= Duration::from_millis(5));
    }
}
