//! The buffer pool: one arena, mapped once, registered with the ring, handed out in [`Buf`]s.
//!
//! Invariants:
//! - Two live `Buf`s never share a byte (the page allocator tiles the arena).
//! - The arena is unmapped only when the last `Pool` and the last `Buf` are gone, so a `Buf` may
//!   outlive the reactor. The kernel's own references to the pages end with the ring.
//! - A `Buf` that the kernel may read or write is owned by an operation slot, not by a handler.
//! - All of it belongs to one thread: neither `Pool` nor `Buf` is `Send`.

use std::cell::{Cell, RefCell};
use std::fmt;
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;
use std::rc::Rc;

use rustix::io::Errno;
use rustix::mm::{Advice, MapFlags, ProtFlags};

use crate::pages::Pages;

/// Every [`Buf`] begins at a multiple of this, and takes up a multiple of it.
pub const BUF_ALIGN: usize = 4096;

/// No [`Buf`] is longer: room for the largest shard with its header, and more.
pub const BUF_LEN_MAX: usize = 64 << 20;

/// The kernel registers at most 1 GiB per buffer, so the arena is registered in segments of that
/// size, and no `Buf` crosses one.
pub(crate) const SEGMENT: usize = 1 << 30;

const _: () = assert!(SEGMENT.is_multiple_of(BUF_ALIGN) && BUF_LEN_MAX <= SEGMENT);

/// An anonymous mapping of whole pages, zeroed, not inherited by children.
pub(crate) struct Mapping {
    base: NonNull<u8>,
    len: usize,
}

impl Mapping {
    pub(crate) fn new(len: usize) -> Result<Mapping, Errno> {
        // SAFETY: a fresh anonymous mapping at a place of the kernel's choice aliases nothing.
        let base = unsafe {
            rustix::mm::mmap_anonymous(
                std::ptr::null_mut(),
                len,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::PRIVATE,
            )
        }?;
        let mapping = Mapping {
            base: NonNull::new(base.cast()).ok_or(Errno::NOMEM)?,
            len,
        };
        // Both only make things faster: huge pages cost less to pin and to look up, and a child
        // process has no use for a copy of pinned memory.
        for advice in [Advice::LinuxHugepage, Advice::LinuxDontFork] {
            // SAFETY: the range is exactly the mapping made above, and neither advice changes what
            // the parent reads from it.
            let _ = unsafe { rustix::mm::madvise(base, len, advice) };
        }
        Ok(mapping)
    }

    pub(crate) fn base(&self) -> NonNull<u8> {
        self.base
    }

    pub(crate) fn len(&self) -> usize {
        self.len
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the mapping was made by `new` with this address and length, and its owner lets
        // go of it only when nothing points into it any more (see the owners' invariants).
        let _ = unsafe { rustix::mm::munmap(self.base.as_ptr().cast(), self.len) };
    }
}

struct Arena {
    mapping: Mapping,
    pages: RefCell<Pages>,
    registered: Cell<bool>,
}

/// A handle on the pool. Cheap to clone, and usable while `Io` is borrowed.
#[derive(Clone)]
pub struct Pool {
    arena: Rc<Arena>,
}

impl Pool {
    /// A pool of so many bytes, rounded up to whole pages, that is registered with no ring.
    ///
    /// # Errors
    /// `ENOMEM` if there is no such memory.
    pub fn new(bytes: usize) -> Result<Pool, Errno> {
        let len = bytes
            .checked_next_multiple_of(BUF_ALIGN)
            .ok_or(Errno::NOMEM)?;
        let pages = u32::try_from(len / BUF_ALIGN).map_err(|_| Errno::NOMEM)?;
        let mapping = Mapping::new(len)?;
        let segment = (SEGMENT / BUF_ALIGN) as u32;
        Ok(Pool {
            arena: Rc::new(Arena {
                mapping,
                pages: RefCell::new(Pages::new(pages, segment)),
                registered: Cell::new(false),
            }),
        })
    }

    /// A buffer of `len` bytes, or `None` when the pool has no such run left (or `len` is more than
    /// [`BUF_LEN_MAX`]): wait for others to come back. What is in it is whatever was there before.
    pub fn alloc(&self, len: usize) -> Option<Buf> {
        if len > BUF_LEN_MAX {
            return None;
        }
        let pages = len.max(1).div_ceil(BUF_ALIGN) as u32;
        let page = self.arena.pages.borrow_mut().take(pages)?;
        Some(Buf {
            arena: Rc::clone(&self.arena),
            page,
            pages,
            len,
        })
    }

    /// Bytes in the arena.
    pub fn capacity(&self) -> usize {
        self.arena.mapping.len()
    }

    /// Bytes not handed out, in whatever pieces.
    pub fn available(&self) -> usize {
        self.arena.pages.borrow().free() as usize * BUF_ALIGN
    }

    /// Whether the arena is registered with the ring, which spares pinning it for each operation.
    pub fn registered(&self) -> bool {
        self.arena.registered.get()
    }

    pub(crate) fn set_registered(&self, registered: bool) {
        self.arena.registered.set(registered);
    }

    /// The address ranges to register, one per segment.
    pub(crate) fn segments(&self) -> Vec<libc::iovec> {
        let base = self.arena.mapping.base().as_ptr();
        (0..self.arena.mapping.len())
            .step_by(SEGMENT)
            .map(|offset| libc::iovec {
                iov_base: base.wrapping_add(offset).cast(),
                iov_len: SEGMENT.min(self.arena.mapping.len() - offset),
            })
            .collect()
    }
}

impl fmt::Debug for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pool")
            .field("capacity", &self.capacity())
            .field("available", &self.available())
            .field("registered", &self.registered())
            .finish()
    }
}

/// A piece of the arena, aligned to [`BUF_ALIGN`], returned to the pool when it is dropped.
pub struct Buf {
    arena: Rc<Arena>,
    page: u32,
    pages: u32,
    len: usize,
}

impl Buf {
    /// Bytes that [`Buf::resize`] can reach: the length rounded up to [`BUF_ALIGN`].
    pub fn capacity(&self) -> usize {
        self.pages as usize * BUF_ALIGN
    }

    /// Changes the length, within the capacity. What comes into view is whatever was there before.
    ///
    /// # Panics
    /// If `len` is more than the capacity.
    pub fn resize(&mut self, len: usize) {
        assert!(
            len <= self.capacity(),
            "resize to {len}, capacity {}",
            self.capacity()
        );
        self.len = len;
    }

    /// The index of the registered buffer that holds it.
    pub(crate) fn segment(&self) -> u16 {
        // At most 2^32 pages of 4 KiB in segments of 1 GiB: 2^14.
        (self.page as usize * BUF_ALIGN / SEGMENT) as u16
    }

    fn start(&self) -> NonNull<u8> {
        // SAFETY: the page number came from the allocator of this arena, so the offset is within
        // the mapping.
        unsafe {
            self.arena
                .mapping
                .base()
                .add(self.page as usize * BUF_ALIGN)
        }
    }
}

impl Deref for Buf {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: the pages are mapped and initialised (the mapping began as zeros), belong to this
        // `Buf` alone, and live as long as the `Rc` in it. Memory that the kernel writes to is in a
        // `Buf` owned by an operation slot, which nobody dereferences before the completion.
        unsafe { std::slice::from_raw_parts(self.start().as_ptr(), self.len) }
    }
}

impl DerefMut for Buf {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as for `deref`, and `&mut self` proves that there is no other reference.
        unsafe { std::slice::from_raw_parts_mut(self.start().as_ptr(), self.len) }
    }
}

impl AsRef<[u8]> for Buf {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

impl AsMut<[u8]> for Buf {
    fn as_mut(&mut self) -> &mut [u8] {
        self
    }
}

impl Drop for Buf {
    fn drop(&mut self) {
        self.arena.pages.borrow_mut().give(self.page, self.pages);
    }
}

impl fmt::Debug for Buf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Buf(page {}, {} bytes)", self.page, self.len)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_are_aligned_disjoint_and_writable() {
        let pool = Pool::new(8 << 20).unwrap();
        let mut bufs = Vec::new();
        for index in 0..64u8 {
            let len = 1 + usize::from(index) * 1777;
            let mut buf = pool.alloc(len).unwrap();
            assert_eq!(buf.len(), len);
            assert_eq!(buf.as_ptr() as usize % BUF_ALIGN, 0);
            assert_eq!(buf.capacity() % BUF_ALIGN, 0);
            buf.fill(index);
            bufs.push(buf);
        }
        // Had any two shared a byte, the later fill would show in the earlier.
        for (index, buf) in bufs.iter().enumerate() {
            assert!(buf.iter().all(|&byte| usize::from(byte) == index));
        }
    }

    #[test]
    fn exhaustion_is_none_and_dropping_gives_back() {
        let pool = Pool::new(1 << 20).unwrap();
        let mut held: Vec<Buf> = std::iter::from_fn(|| pool.alloc(64 << 10)).collect();
        assert_eq!(held.len(), 16);
        assert_eq!(pool.available(), 0);
        assert!(pool.alloc(1).is_none());
        held.truncate(8);
        assert_eq!(pool.available(), 512 << 10);
        drop(held);
        assert_eq!(pool.available(), pool.capacity());
        assert!(pool.alloc(1 << 20).is_some());
        assert!(pool.alloc(BUF_LEN_MAX + 1).is_none());
        assert!(pool.alloc(usize::MAX).is_none());
    }

    #[test]
    fn a_buffer_outlives_its_pool() {
        let pool = Pool::new(1 << 20).unwrap();
        let mut buf = pool.alloc(100).unwrap();
        drop(pool);
        buf.fill(7);
        buf.resize(4096);
        assert_eq!(buf[..100], [7; 100]);
    }

    #[test]
    fn the_largest_shard_with_its_header_fits() {
        let pool = Pool::new(16 << 20).unwrap();
        let len = (4 << 20) + (64 << 10);
        let held: Vec<Buf> = std::iter::from_fn(|| pool.alloc(len)).collect();
        assert_eq!(held.len(), 3);
        assert!(held.iter().all(|buf| buf.segment() == 0));
    }

    #[test]
    #[should_panic(expected = "resize to 4097")]
    fn resizing_beyond_the_capacity_is_refused() {
        let pool = Pool::new(1 << 20).unwrap();
        pool.alloc(1).unwrap().resize(4097);
    }
}
