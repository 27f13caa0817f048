//! Files for benches: preallocated and written once, and memory that direct I/O takes.

use std::fs::File;
use std::io;
use std::ops::{Deref, DerefMut};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

use rustix::fs::OFlags;

/// What direct I/O wants addresses, offsets and lengths to be multiples of.
pub const ALIGN: usize = 4096;

/// Memory whose bytes begin at a multiple of [`ALIGN`].
#[derive(Debug)]
pub struct Aligned {
    bytes: Vec<u8>,
    start: usize,
    len: usize,
}

impl Aligned {
    /// `len` bytes that are not zeros: some devices are quick about zeros.
    pub fn filled(len: usize) -> Aligned {
        let mut bytes = vec![0x5a; len + ALIGN];
        let start = bytes.as_ptr().align_offset(ALIGN).min(ALIGN);
        for (i, byte) in bytes.iter_mut().enumerate() {
            *byte ^= (i >> 3) as u8;
        }
        Aligned { bytes, start, len }
    }

    /// Where the aligned part begins in the vector that [`Aligned::into_vec`] gives.
    pub fn start(&self) -> usize {
        self.start
    }

    /// The whole vector, for runtimes that take vectors.
    pub fn into_vec(self) -> Vec<u8> {
        self.bytes
    }
}

impl Deref for Aligned {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes[self.start..self.start + self.len]
    }
}

impl DerefMut for Aligned {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.bytes[self.start..self.start + self.len]
    }
}

/// The flags of a durable direct write: done when it is on the medium.
pub fn durable_direct() -> i32 {
    (OFlags::DIRECT | OFlags::DSYNC).bits().cast_signed()
}

/// Makes a file of `len` bytes and writes all of it: the first write into reserved space of a
/// filesystem costs several times an overwrite, and would be what is measured.
pub fn prepare(path: &Path, len: u64) -> io::Result<()> {
    let file = File::create(path)?;
    file.set_len(len)?;
    let block = Aligned::filled(1 << 20);
    let mut at = 0;
    while at < len {
        let part = usize::try_from(len - at)
            .unwrap_or(usize::MAX)
            .min(block.len());
        file.write_all_at(&block[..part], at)?;
        at += part as u64;
    }
    file.sync_all()
}

/// Opens a prepared file for durable direct writes.
pub fn open_durable(path: &Path) -> io::Result<File> {
    File::options()
        .read(true)
        .write(true)
        .custom_flags(durable_direct())
        .open(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn aligned_memory_is() {
        let buffer = Aligned::filled(10_000);
        assert_eq!(buffer.len(), 10_000);
        assert_eq!(buffer.as_ptr().align_offset(ALIGN), 0);
        assert!(buffer.start() + buffer.len() <= 10_000 + ALIGN);
    }
}
