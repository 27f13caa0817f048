//! Reading a device that nobody serves: with the layout crate alone, and without claiming it.
//!
//! Invariant: nothing here writes, and nothing trusts a length that the layout crate has not checked.

use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::os::unix::fs::{FileExt, FileTypeExt};
use std::path::{Path, PathBuf};

use ashlar_layout::limits::{EXTENT_SIZE_MAX, SUPERBLOCK_COPIES, SUPERBLOCK_STRIDE_MIN};
use ashlar_layout::superblock::{self, SUPERBLOCK_LEN, Superblock, SuperblockError};

use rustix::fs::{FlockOperation, flock};

use crate::fail::Fail;
use crate::rig_files::{Aligned, open_direct};

/// Bytes that a [`Window`] holds: a whole record and more.
const WINDOW: usize = 8 << 20;
/// What direct reads are aligned to, whatever the device's blocks are.
const ALIGN: u64 = 4096;

/// A device or file, opened for reading.
pub struct DeviceFile {
    /// Where it is.
    pub path: PathBuf,
    /// Bytes.
    pub size: u64,
    /// To read from.
    pub file: File,
}

impl DeviceFile {
    /// Opens it.
    pub fn open(path: &Path) -> Result<DeviceFile, Fail> {
        let kind = std::fs::metadata(path)
            .map_err(Fail::io("cannot look at", path))?
            .file_type();
        if !kind.is_file() && !kind.is_block_device() {
            return Err(Fail::Refused(format!(
                "{} is neither a block device nor a file",
                path.display()
            )));
        }
        let mut file = open_direct(path, false).map_err(Fail::io("cannot open", path))?;
        let size = file
            .seek(SeekFrom::End(0))
            .map_err(Fail::io("cannot look at", path))?;
        Ok(DeviceFile {
            path: path.to_owned(),
            size,
            file,
        })
    }

    /// Whether a node, or a command that writes, has claimed it at this moment.
    pub fn is_served(&self) -> bool {
        let shared = flock(&self.file, FlockOperation::NonBlockingLockShared);
        let served = shared == Err(rustix::io::Errno::WOULDBLOCK);
        if !served {
            // Looking must not keep a node from opening it.
            let _ = flock(&self.file, FlockOperation::Unlock);
        }
        served
    }
}

/// What stands in the places of the superblock's copies.
pub struct Copies {
    /// What was read at each place.
    pub found: [Result<Superblock, SuperblockError>; SUPERBLOCK_COPIES],
    /// Byte offset of each place.
    pub offsets: [u64; SUPERBLOCK_COPIES],
}

impl Copies {
    /// The superblock that is believed.
    pub fn elect(&self) -> Result<Superblock, superblock::ElectError> {
        let copies = std::array::from_fn(|i| self.found[i].as_ref().ok().cloned());
        superblock::elect(&copies)
    }

    /// How many copies can be read.
    pub fn readable(&self) -> usize {
        self.found.iter().filter(|copy| copy.is_ok()).count()
    }
}

/// Reads the copies of the superblock. Where they are depends on the extent size, which only they
/// tell: so the place that shows most copies is the right one.
pub fn copies(file: &File, path: &Path) -> Result<Copies, Fail> {
    let mut best: Option<Copies> = None;
    let mut stride = SUPERBLOCK_STRIDE_MIN;
    while stride <= EXTENT_SIZE_MAX {
        let copies = copies_at(file, path, stride)?;
        if best
            .as_ref()
            .is_none_or(|b| copies.readable() > b.readable())
        {
            best = Some(copies);
        }
        stride *= 2;
    }
    best.ok_or_else(|| Fail::Refused(format!("{} has no place for a superblock", path.display())))
}

fn copies_at(file: &File, path: &Path, extent_size: u64) -> Result<Copies, Fail> {
    let offsets: [u64; SUPERBLOCK_COPIES] =
        std::array::from_fn(|i| superblock::offset(i as u8, extent_size));
    let mut buffer = Aligned::zeroed(SUPERBLOCK_LEN);
    let mut read = |offset: u64| -> Result<Result<Superblock, SuperblockError>, Fail> {
        match file.read_exact_at(&mut buffer, offset) {
            Ok(()) => Ok(Superblock::decode(&buffer)),
            // A truncated file: the copy is not there.
            Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => Ok(Err(SuperblockError::Short {
                expected: SUPERBLOCK_LEN,
                got: 0,
            })),
            // A block that cannot be read is what the other copies are for.
            Err(e) if e.raw_os_error() == Some(rustix::io::Errno::IO.raw_os_error()) => {
                Ok(Err(SuperblockError::Short {
                    expected: SUPERBLOCK_LEN,
                    got: 0,
                }))
            }
            Err(e) => Err(Fail::io("cannot read", path)(e)),
        }
    };
    let found = [
        read(offsets[0])?,
        read(offsets[1])?,
        read(offsets[2])?,
        read(offsets[3])?,
    ];
    Ok(Copies { found, offsets })
}

/// The superblock that is believed; if there is none, what is there instead.
pub fn superblock(file: &File, path: &Path) -> Result<Superblock, Fail> {
    let copies = copies(file, path)?;
    copies.elect().map_err(|election| {
        let newer = copies.found.iter().find_map(|c| {
            c.as_ref()
                .err()
                .filter(|e| matches!(e, SuperblockError::NewerVersion { .. }))
        });
        let first = newer.or(copies.found[0].as_ref().err());
        match first {
            Some(why) => Fail::Refused(format!(
                "{}: {election}; the first copy: {why}",
                path.display()
            )),
            None => Fail::Refused(format!("{}: {election}", path.display())),
        }
    })
}

/// A sliding view of a device: bytes are read ahead in large pieces, once.
pub struct Window<'a> {
    device: &'a DeviceFile,
    buffer: Aligned,
    start: u64,
    len: usize,
}

impl<'a> Window<'a> {
    /// An empty view.
    pub fn new(device: &'a DeviceFile) -> Window<'a> {
        Window {
            device,
            buffer: Aligned::zeroed(WINDOW),
            start: 0,
            len: 0,
        }
    }

    /// `len` bytes from `at`, reading ahead up to `end`. `len` is at most a record's.
    pub fn get(&mut self, at: u64, len: usize, end: u64) -> io::Result<&[u8]> {
        let inside = at >= self.start && at + len as u64 <= self.start + self.len as u64;
        if !inside {
            self.fill(at, len, end)?;
        }
        let from = usize::try_from(at - self.start).unwrap_or(usize::MAX);
        from.checked_add(len)
            .and_then(|to| self.buffer.get(from..to))
            .ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
    }

    fn fill(&mut self, at: u64, len: usize, end: u64) -> io::Result<()> {
        let start = at - at % ALIGN;
        let need = (at - start) + len as u64;
        let need = usize::try_from(need.next_multiple_of(ALIGN)).unwrap_or(usize::MAX);
        let end = end.min(self.device.size);
        let ahead = usize::try_from(end.saturating_sub(start)).unwrap_or(usize::MAX);
        let ahead = ahead.min(WINDOW).max(need);
        if need > WINDOW {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        self.len = 0;
        self.start = start;
        let read = |buffer: &mut Aligned, len: usize| {
            self.device.file.read_exact_at(&mut buffer[..len], start)
        };
        let got = match read(&mut self.buffer, ahead) {
            Ok(()) => ahead,
            // Something in what was read ahead is unreadable, perhaps not what is wanted now.
            Err(_) if ahead > need => read(&mut self.buffer, need).map(|()| need)?,
            Err(e) => return Err(e),
        };
        self.len = got;
        Ok(())
    }
}
