//! Buffers for stripes and shards, used again: fresh memory costs a page fault for each 4 KiB.
//!
//! Invariants:
//! - the pool keeps at most `keep` bytes; what comes back above that is freed;
//! - a buffer is lent to one holder at a time, and comes back when its last [`Bytes`] is dropped;
//! - what a buffer held before may still be in it: whoever takes one fills it.

use std::ops::{Deref, DerefMut};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;

/// Buffers shorter than this are not worth keeping.
const KEPT_MIN: usize = 16 * 1024;

#[derive(Debug, Default)]
struct Kept {
    buffers: Vec<Vec<u8>>,
    bytes: usize,
}

/// A bounded store of buffers. Clones share it.
#[derive(Clone, Debug)]
pub struct BufferPool {
    kept: Arc<Mutex<Kept>>,
    keep: usize,
}

impl BufferPool {
    /// A pool that keeps at most `keep` bytes.
    pub fn new(keep: usize) -> BufferPool {
        BufferPool {
            kept: Arc::default(),
            keep,
        }
    }

    /// A buffer of `len` bytes; what is in it is left over from its last holder, or zeros.
    pub fn take(&self, len: usize) -> PoolBuf {
        let found = if len < KEPT_MIN { None } else { self.find(len) };
        let mut bytes = match found {
            Some(bytes) => bytes,
            None => Vec::with_capacity(len.next_multiple_of(KEPT_MIN.min(4096))),
        };
        // Only what was never used has to be zeroed: a buffer keeps its length while it is kept.
        if bytes.len() < len {
            bytes.resize(len, 0);
        }
        PoolBuf {
            bytes,
            len,
            pool: self.clone(),
        }
    }

    /// The smallest kept buffer that is long enough and not more than twice as long.
    fn find(&self, len: usize) -> Option<Vec<u8>> {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let fits = |b: &Vec<u8>| (len..=len.saturating_mul(2)).contains(&b.capacity());
        let best = (0..kept.buffers.len())
            .filter(|i| fits(&kept.buffers[*i]))
            .min_by_key(|i| kept.buffers[*i].capacity())?;
        let found = kept.buffers.swap_remove(best);
        kept.bytes -= found.capacity();
        Some(found)
    }

    fn put_back(&self, bytes: Vec<u8>) {
        if bytes.capacity() < KEPT_MIN {
            return;
        }
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.bytes + bytes.capacity() <= self.keep {
            kept.bytes += bytes.capacity();
            kept.buffers.push(bytes);
        }
    }
}

/// A buffer on loan.
#[derive(Debug)]
pub struct PoolBuf {
    bytes: Vec<u8>,
    len: usize,
    pool: BufferPool,
}

impl PoolBuf {
    /// Keeps only the first `len` bytes.
    pub fn truncate(&mut self, len: usize) {
        self.len = self.len.min(len);
    }

    /// The buffer as shared bytes, without a copy.
    pub fn freeze(self) -> Bytes {
        Bytes::from_owner(self)
    }
}

impl Deref for PoolBuf {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
}

impl DerefMut for PoolBuf {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.bytes[..self.len]
    }
}

impl AsRef<[u8]> for PoolBuf {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

impl Drop for PoolBuf {
    fn drop(&mut self) {
        self.pool.put_back(std::mem::take(&mut self.bytes));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_comes_back_once_its_last_holder_is_gone() {
        let pool = BufferPool::new(1 << 20);
        let mut buf = pool.take(100_000);
        buf[7] = 9;
        let at = buf.as_ptr();
        let bytes = buf.freeze();
        let part = bytes.slice(7..8);
        drop(bytes);
        assert_eq!(pool.kept.lock().unwrap().buffers.len(), 0);
        assert_eq!(part[0], 9);
        drop(part);
        let again = pool.take(90_000);
        assert_eq!((again.as_ptr(), again.len()), (at, 90_000));
    }

    #[test]
    fn keeps_no_more_than_it_may() {
        let pool = BufferPool::new(100_000);
        let bufs: Vec<_> = (0..10).map(|_| pool.take(40_000)).collect();
        drop(bufs);
        let kept = pool.kept.lock().unwrap();
        assert_eq!(kept.buffers.len(), 2);
        assert!(kept.bytes <= 100_000);
    }

    #[test]
    fn a_much_larger_buffer_is_left_for_who_needs_it() {
        let pool = BufferPool::new(1 << 24);
        drop(pool.take(4 << 20));
        drop(pool.take(20_000));
        let small = pool.take(20_000);
        assert!(small.bytes.capacity() < 50_000);
        assert_eq!(pool.kept.lock().unwrap().buffers.len(), 1);
    }
}
