//! Opening a device: claiming it, and learning what it is.
//!
//! Invariants:
//! - Direct I/O is in effect on every descriptor that leaves here: it was asked for, the descriptor
//!   still has the flag, and the file system does not merely tolerate it.
//! - An exclusive opening holds O_EXCL on a block device (which also shuts out mounts) and a lock
//!   on block devices and files alike, until the device is closed.
//! - What cannot be learned is taken to be the worse case: an unknown write cache is volatile.

use std::fs;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{AtFlags, FileType, FlockOperation, Mode, OFlags, SeekFrom, Stat, StatxFlags};
use rustix::io::Errno;
use serde::Serialize;

use crate::error::OpenError;
use crate::pool::BUF_ALIGN;

/// How long apart a busy device is tried again.
const BUSY_PAUSE: Duration = Duration::from_millis(20);
/// For how long, if nothing else is said.
const PATIENCE: Duration = Duration::from_millis(500);

/// Whether a device is to be treated as having a volatile write cache.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum CacheMode {
    /// As the kernel says; regular files count as volatile.
    #[default]
    Auto,
    /// It has one: durable writes carry DSYNC.
    Volatile,
    /// It has none, or one that survives a power cut: every completed write is durable. (Durable
    /// writes to a regular file carry DSYNC all the same: its file system has its own memory.)
    None,
}

/// What a device is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum DeviceKind {
    /// A block device or a partition of one.
    Block,
    /// A loop device.
    Loop,
    /// A regular file.
    File,
}

/// How to open a device.
#[derive(Clone, Copy, Debug)]
pub struct OpenOptions {
    /// Its write cache.
    pub cache: CacheMode,
    /// Refuse writes.
    pub read_only: bool,
    /// Refuse to share it with any other opener (the default).
    pub exclusive: bool,
    /// How long to wait, blocking, for an opener that may be about to let go: half a second unless
    /// told. A core that serves takes zero, and comes again.
    pub patience: Duration,
}

impl Default for OpenOptions {
    fn default() -> OpenOptions {
        OpenOptions {
            cache: CacheMode::Auto,
            read_only: false,
            exclusive: true,
            patience: PATIENCE,
        }
    }
}

/// What is known of a device.
#[derive(Clone, Debug, Serialize)]
pub struct DeviceInfo {
    /// Its path, as it was given.
    pub path: String,
    /// What it is.
    pub kind: DeviceKind,
    /// Bytes.
    pub size: u64,
    /// Offsets, lengths and places in memory must be multiples of this.
    pub logical_block: u32,
    /// What it can write without reading first.
    pub physical_block: u32,
    /// Whether a completed plain write may be lost in a power cut.
    pub volatile_cache: bool,
    /// Whether the kernel could poll it for completions (this reactor does not; see
    /// [`crate::Probe`]).
    pub polling: bool,
    /// For a loop device: whether it reaches its file by direct I/O.
    pub loop_direct: Option<bool>,
}

/// A step that failed, as an [`OpenError`].
fn system(path: &Path, step: &'static str) -> impl Fn(Errno) -> OpenError {
    move |errno| OpenError::System {
        path: path.to_path_buf(),
        step,
        errno,
    }
}

/// Looks at a device without claiming it.
pub fn inspect_device(path: &Path) -> Result<DeviceInfo, OpenError> {
    let options = OpenOptions {
        read_only: true,
        exclusive: false,
        ..OpenOptions::default()
    };
    open(path, options).map(|(_, info)| info)
}

/// Opens and claims a device.
pub(crate) fn open(path: &Path, options: OpenOptions) -> Result<(OwnedFd, DeviceInfo), OpenError> {
    // What it is decides how to open it, and opening a FIFO, for one, would hang.
    let before = rustix::fs::stat(path).map_err(system(path, "stat"))?;
    let file_type = FileType::from_raw_mode(before.st_mode);
    check_kind(path, file_type)?;
    let block = file_type == FileType::BlockDevice;

    let mut flags = OFlags::DIRECT | OFlags::CLOEXEC;
    flags |= if options.read_only {
        OFlags::RDONLY
    } else {
        OFlags::RDWR
    };
    if block && options.exclusive {
        flags |= OFlags::EXCL;
    }
    let fd = claim(path, flags, options)?;
    // The path may have been pointed elsewhere meanwhile; from here on only the descriptor counts.
    let stat = rustix::fs::fstat(&fd).map_err(system(path, "fstat"))?;
    if (stat.st_dev, stat.st_ino) != (before.st_dev, before.st_ino) {
        return Err(system(path, "open: the path was replaced meanwhile")(
            Errno::STALE,
        ));
    }
    check_direct(&fd, path)?;
    let mut info = if block {
        block_info(&fd, path, &stat)?
    } else {
        file_info(&fd, path, &stat)?
    };
    match options.cache {
        CacheMode::Auto => {}
        CacheMode::Volatile => info.volatile_cache = true,
        CacheMode::None => info.volatile_cache = false,
    }
    if info.logical_block as usize > BUF_ALIGN {
        return Err(OpenError::BlockSize {
            path: path.to_path_buf(),
            expected: BUF_ALIGN as u32,
            got: info.logical_block,
        });
    }
    Ok((fd, info))
}

fn check_kind(path: &Path, file_type: FileType) -> Result<(), OpenError> {
    let what = match file_type {
        FileType::BlockDevice | FileType::RegularFile => return Ok(()),
        FileType::Directory => "directory",
        FileType::CharacterDevice => "character device",
        FileType::Fifo => "named pipe",
        FileType::Socket => "socket",
        _ => "special file",
    };
    Err(OpenError::WrongKind {
        path: path.to_path_buf(),
        what,
    })
}

fn no_direct_io(path: &Path, reason: &'static str) -> OpenError {
    OpenError::NoDirectIo {
        path: path.to_path_buf(),
        reason,
    }
}

/// Opens and locks, with some patience where somebody else has it. It may be udev, looking at a
/// device that has just appeared or been closed; or a process that was killed, whose last writes
/// the kernel has yet to finish.
#[allow(
    clippy::disallowed_methods,
    reason = "a lock of another program cannot be waited for with a limit in any other way"
)]
fn claim(path: &Path, flags: OFlags, options: OpenOptions) -> Result<OwnedFd, OpenError> {
    let mut waited = Duration::ZERO;
    loop {
        match try_claim(path, flags, options.exclusive) {
            Err(OpenError::Busy { .. }) if waited < options.patience => {
                waited += BUSY_PAUSE;
                std::thread::sleep(BUSY_PAUSE);
            }
            result => return result,
        }
    }
}

fn try_claim(path: &Path, flags: OFlags, exclusive: bool) -> Result<OwnedFd, OpenError> {
    let fd = rustix::fs::open(path, flags, Mode::empty()).map_err(|errno| match errno {
        Errno::BUSY => OpenError::Busy {
            path: path.to_path_buf(),
        },
        Errno::INVAL => no_direct_io(path, "the file system refuses O_DIRECT"),
        errno => system(path, "open")(errno),
    })?;
    if exclusive {
        rustix::fs::flock(&fd, FlockOperation::NonBlockingLockExclusive).map_err(|errno| {
            match errno {
                Errno::WOULDBLOCK | Errno::INTR => OpenError::Busy {
                    path: path.to_path_buf(),
                },
                errno => system(path, "flock")(errno),
            }
        })?;
    }
    Ok(fd)
}

/// Makes sure that direct I/O is really in effect.
fn check_direct(fd: &OwnedFd, path: &Path) -> Result<(), OpenError> {
    let flags = rustix::fs::fcntl_getfl(fd).map_err(system(path, "F_GETFL"))?;
    if !flags.contains(OFlags::DIRECT) {
        return Err(no_direct_io(path, "the descriptor lost O_DIRECT"));
    }
    let stat = rustix::fs::fstatfs(fd).map_err(system(path, "fstatfs"))?;
    const TMPFS: u64 = 0x0102_1994;
    const RAMFS: u64 = 0x8584_58f6;
    // A device node usually lies in a devtmpfs, which is a tmpfs too: only for files is that the
    // file system.
    let file = rustix::fs::fstat(fd)
        .is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile);
    if file && matches!(stat.f_type.cast_unsigned(), TMPFS | RAMFS) {
        return Err(no_direct_io(
            path,
            "it lives in memory: tmpfs takes O_DIRECT and ignores it",
        ));
    }
    Ok(())
}

fn file_info(fd: &OwnedFd, path: &Path, stat: &Stat) -> Result<DeviceInfo, OpenError> {
    let wanted = StatxFlags::BASIC_STATS | StatxFlags::DIOALIGN;
    let statx =
        rustix::fs::statx(fd, "", AtFlags::EMPTY_PATH, wanted).map_err(system(path, "statx"))?;
    let known = statx.stx_mask & StatxFlags::DIOALIGN.bits() != 0;
    if known && statx.stx_dio_offset_align == 0 {
        return Err(no_direct_io(path, "the file system says so for this file"));
    }
    // Where the file system does not tell, a page is good enough for every disk there is.
    let align = statx.stx_dio_offset_align.max(statx.stx_dio_mem_align);
    Ok(DeviceInfo {
        path: path.display().to_string(),
        kind: DeviceKind::File,
        size: stat.st_size.cast_unsigned(),
        logical_block: if known { align } else { BUF_ALIGN as u32 },
        physical_block: statx.stx_blksize,
        volatile_cache: true,
        polling: false,
        loop_direct: None,
    })
}

fn block_info(fd: &OwnedFd, path: &Path, stat: &Stat) -> Result<DeviceInfo, OpenError> {
    let size = rustix::fs::seek(fd, SeekFrom::End(0)).map_err(system(path, "lseek"))?;
    let logical = rustix::fs::ioctl_blksszget(fd).map_err(system(path, "BLKSSZGET"))?;
    let physical = rustix::fs::ioctl_blkpbszget(fd).map_err(system(path, "BLKPBSZGET"))?;
    let (major, minor) = (
        rustix::fs::major(stat.st_rdev),
        rustix::fs::minor(stat.st_rdev),
    );
    let sysfs = Sysfs::of(major, minor);
    Ok(DeviceInfo {
        path: path.display().to_string(),
        kind: if sysfs.is_loop() {
            DeviceKind::Loop
        } else {
            DeviceKind::Block
        },
        size,
        logical_block: logical,
        physical_block: physical,
        volatile_cache: sysfs
            .attribute("queue/write_cache")
            .is_none_or(|cache| is_volatile(&cache)),
        polling: sysfs
            .attribute("queue/io_poll")
            .is_some_and(|poll| poll == "1"),
        loop_direct: sysfs.attribute("loop/dio").map(|dio| dio == "1"),
    })
}

/// What `queue/write_cache` says: "write back" or "write through".
fn is_volatile(cache: &str) -> bool {
    cache != "write through"
}

/// Where the kernel describes a block device.
struct Sysfs {
    directory: PathBuf,
}

impl Sysfs {
    fn of(major: u32, minor: u32) -> Sysfs {
        let device = PathBuf::from(format!("/sys/dev/block/{major}:{minor}"));
        // A partition has no queue of its own; its disk is the directory above, once links are
        // resolved.
        let whole = device
            .join("partition")
            .exists()
            .then(|| fs::canonicalize(&device).ok())
            .flatten()
            .and_then(|partition| partition.parent().map(Path::to_path_buf));
        Sysfs {
            directory: whole.unwrap_or(device),
        }
    }

    fn attribute(&self, name: &str) -> Option<String> {
        let text = fs::read_to_string(self.directory.join(name)).ok()?;
        Some(text.trim().to_owned())
    }

    fn is_loop(&self) -> bool {
        self.directory.join("loop").exists()
            || fs::canonicalize(&self.directory).is_ok_and(|path| {
                path.file_name()
                    .is_some_and(|name| name.to_string_lossy().starts_with("loop"))
            })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_cache_is_volatile() {
        assert!(!is_volatile("write through"));
        assert!(is_volatile("write back"));
        assert!(is_volatile("something new"));
        assert!(is_volatile(""));
    }

    #[test]
    fn what_is_no_device_is_named() {
        for (path, what) in [("/dev", "directory"), ("/dev/null", "character device")] {
            let error = inspect_device(Path::new(path)).unwrap_err();
            assert!(error.to_string().contains(what), "{error}");
        }
        let error = inspect_device(Path::new("/no/such/thing")).unwrap_err();
        assert_eq!(error.errno(), Some(Errno::NOENT));
    }

    #[test]
    fn memory_is_no_disk() {
        // Where /dev/shm is missing there is no tmpfs to try it on.
        let Ok(file) = tempfile::NamedTempFile::new_in("/dev/shm") else {
            return;
        };
        file.as_file().set_len(1 << 20).unwrap();
        let error = inspect_device(file.path()).unwrap_err();
        assert!(matches!(error, OpenError::NoDirectIo { .. }), "{error}");
    }
}
