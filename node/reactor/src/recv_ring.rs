//! The buffers that all connections receive into: a ring of them, shared with the kernel.
//!
//! Invariants:
//! - A buffer belongs to the kernel from the moment its number is published in the ring until a
//!   completion names it, and to us from then until [`RecvRing::recycle`].
//! - Nothing but `bytes` reads a buffer, and nothing in this process writes one.
//! - The mapping outlives the kernel's use of it: the reactor waits for all operations before it
//!   drops this.

use std::sync::atomic::{AtomicU16, Ordering};

use io_uring::types::BufRingEntry;
use rustix::io::Errno;

use crate::pool::{BUF_ALIGN, Mapping};
use crate::ring::{Ring, errno_of};

/// The only buffer group there is.
pub(crate) const GROUP: u16 = 0;

/// The ring of buffers.
pub(crate) struct RecvRing {
    mapping: Mapping,
    count: u16,
    size: u32,
    /// Where the buffers begin: the ring itself comes first, in whole pages.
    start: usize,
    tail: u16,
}

impl RecvRing {
    /// Maps `count` buffers (a power of two) of `size` bytes and gives them all to the kernel.
    pub(crate) fn new(ring: &Ring, count: u16, size: u32) -> Result<RecvRing, Errno> {
        let start = (usize::from(count) * size_of::<BufRingEntry>()).next_multiple_of(BUF_ALIGN);
        let mapping = Mapping::new(start + usize::from(count) * size as usize)?;
        let mut recv = RecvRing {
            mapping,
            count,
            size,
            start,
            tail: 0,
        };
        // SAFETY: the address is that of a page-aligned mapping with room for `count` entries,
        // and it stays mapped until the reactor has shut the ring down.
        unsafe {
            ring.uring().submitter().register_buf_ring_with_flags(
                recv.mapping.base().as_ptr() as u64,
                count,
                GROUP,
                0,
            )
        }
        .map_err(errno_of)?;
        for id in 0..count {
            recv.recycle(id);
        }
        Ok(recv)
    }

    /// What the kernel put into buffer `id`, which a completion has just handed over.
    pub(crate) fn bytes(&self, id: u16, len: usize) -> &[u8] {
        assert!(
            id < self.count && len <= self.size as usize,
            "buffer {id}, {len} bytes"
        );
        let offset = self.start + usize::from(id) * self.size as usize;
        // SAFETY: within the mapping by the assertion; initialised (it began as zeros). The kernel
        // does not write it again before `recycle`, which needs `&mut self`.
        unsafe { std::slice::from_raw_parts(self.mapping.base().add(offset).as_ptr(), len) }
    }

    /// Gives buffer `id` back to the kernel.
    pub(crate) fn recycle(&mut self, id: u16) {
        assert!(id < self.count, "buffer {id}");
        let index = usize::from(self.tail & (self.count - 1));
        let offset = self.start + usize::from(id) * self.size as usize;
        let entries = self.mapping.base().as_ptr().cast::<BufRingEntry>();
        // SAFETY: the entry lies within the ring part of the mapping. The kernel reads it only once
        // the tail has passed it, and the setters leave the tail, which overlays entry 0, alone.
        unsafe {
            let entry = &mut *entries.add(index);
            entry.set_addr(self.mapping.base().as_ptr().add(offset) as u64);
            entry.set_len(self.size);
            entry.set_bid(id);
        }
        self.tail = self.tail.wrapping_add(1);
        // SAFETY: `tail` points to an aligned u16 inside the mapping, which only this thread
        // writes; the kernel reads it. Release: the entry must be seen before it.
        unsafe {
            let tail = BufRingEntry::tail(entries).cast_mut();
            AtomicU16::from_ptr(tail).store(self.tail, Ordering::Release);
        }
    }
}
