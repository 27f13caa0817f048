//! The backing of a rig's devices: files that are preallocated and written once, and loop devices on them.
//!
//! Written once, because the first write into reserved space of a filesystem costs several times
//! an overwrite: without it, every figure of a young rig would be of the filesystem.

use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::{FallocateFlags, OFlags, fallocate, statvfs};

use crate::fail::Fail;
use crate::output::{Progress, human};

/// Bytes of one write.
const CHUNK: usize = 4 << 20;
/// Addresses of buffers and offsets of direct I/O are multiples of this.
const ALIGN: usize = 4096;
/// Files that are written at the same time: enough for the disk, and not so many that they seek.
const WRITERS: usize = 3;

/// Memory whose usable part begins at a multiple of [`ALIGN`], as direct I/O wants it.
pub struct Aligned {
    bytes: Vec<u8>,
    start: usize,
    len: usize,
}

impl Aligned {
    /// Zeros.
    pub fn zeroed(len: usize) -> Aligned {
        let bytes = vec![0u8; len + ALIGN];
        let start = bytes.as_ptr().align_offset(ALIGN).min(ALIGN);
        Aligned { bytes, start, len }
    }
}

impl std::ops::Deref for Aligned {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes[self.start..self.start + self.len]
    }
}

impl std::ops::DerefMut for Aligned {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.bytes[self.start..self.start + self.len]
    }
}

/// Opens a file or device past the page cache, where that is possible.
pub fn open_direct(path: &Path, write: bool) -> io::Result<File> {
    let direct = i32::try_from(OFlags::DIRECT.bits()).unwrap_or_default();
    let mut options = File::options();
    options.read(true).write(write);
    match options.clone().custom_flags(direct).open(path) {
        // A filesystem without direct I/O, such as an older tmpfs.
        Err(e) if e.kind() == io::ErrorKind::InvalidInput => options.open(path),
        result => result,
    }
}

/// Makes `paths`, each of `size` bytes of zeros: they stand on the disk if they are `written`, else their space is only
/// reserved (if the filesystem can do that), and the first write to each place costs the filesystem a change of its
/// own records.
pub fn create(paths: &[PathBuf], size: u64, written: bool) -> Result<(), Fail> {
    if let Some(folder) = paths.first().and_then(|p| p.parent()) {
        let need = size.saturating_mul(paths.len() as u64);
        let stat = statvfs(folder).map_err(|e| Fail::io("cannot look at", folder)(e.into()))?;
        let free = stat.f_bavail.saturating_mul(stat.f_frsize);
        if free < need {
            return Err(Fail::Refused(format!(
                "{} files of {} need {}, and only {} are free in {}: give fewer --nodes or a smaller --size, \
                 or another --dir",
                paths.len(),
                human(size),
                human(need),
                human(free),
                folder.display()
            )));
        }
    }
    let total = size.saturating_mul(paths.len() as u64);
    let progress = Progress::bytes("writing device files", Some(total));
    let failed = AtomicBool::new(false);
    let work = std::sync::Mutex::new(paths.iter());
    let writer = || -> Result<(), Fail> {
        loop {
            let Some(path) = work.lock().ok().and_then(|mut paths| paths.next()) else {
                return Ok(());
            };
            if let Err(e) = create_one(path, size, written, &progress, &failed) {
                failed.store(true, Ordering::Relaxed);
                return Err(Fail::io("cannot write", path)(e));
            }
        }
    };
    std::thread::scope(|scope| {
        let writers: Vec<_> = (0..WRITERS.min(paths.len()))
            .map(|_| scope.spawn(writer))
            .collect();
        let mut result = Ok(());
        for writer in writers {
            let one = writer
                .join()
                .unwrap_or_else(|_| Err(Fail::Refused("a writer of device files panicked".into())));
            result = result.and(one);
        }
        result
    })
}

fn create_one(
    path: &Path,
    size: u64,
    written: bool,
    progress: &Progress,
    failed: &AtomicBool,
) -> io::Result<()> {
    {
        let file = File::options()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(path)?;
        match fallocate(&file, FallocateFlags::empty(), 0, size) {
            // Writing it all reserves the space as well.
            Err(rustix::io::Errno::OPNOTSUPP) => file.set_len(size)?,
            Ok(()) if !written => return file.sync_all(),
            result => result?,
        }
    }
    let file = open_direct(path, true)?;
    let zeros = Aligned::zeroed(CHUNK);
    let mut at = 0;
    while at < size && !failed.load(Ordering::Relaxed) {
        let len = usize::try_from(size - at).unwrap_or(CHUNK).min(CHUNK);
        file.write_all_at(&zeros[..len], at)?;
        at += len as u64;
        progress.inc(len as u64);
    }
    file.sync_all()
}

/// Attaches a loop device with direct I/O to a file, or finds the one that is attached.
pub fn attach_loop(image: &Path) -> Result<PathBuf, Fail> {
    if let Some(device) = attached_loops(image)?.into_iter().next() {
        return Ok(device);
    }
    let out = losetup(
        &[
            "--find",
            "--show",
            "--direct-io=on",
            "--sector-size",
            "4096",
        ],
        Some(image),
    )?;
    let device = PathBuf::from(out.trim());
    if device.as_os_str().is_empty() {
        return Err(Fail::Refused(format!(
            "losetup named no device for {}",
            image.display()
        )));
    }
    Ok(device)
}

/// Detaches every loop device of a file.
pub fn detach_loops(image: &Path) -> Result<Vec<PathBuf>, Fail> {
    let devices = attached_loops(image)?;
    for device in &devices {
        losetup(&["--detach"], Some(device))?;
    }
    Ok(devices)
}

fn attached_loops(image: &Path) -> Result<Vec<PathBuf>, Fail> {
    let out = losetup(
        &["--noheadings", "--output", "NAME", "--associated"],
        Some(image),
    )?;
    Ok(out.lines().map(|line| PathBuf::from(line.trim())).collect())
}

fn losetup(arguments: &[&str], path: Option<&Path>) -> Result<String, Fail> {
    let output = Command::new("losetup")
        .args(arguments)
        .args(path)
        .output()
        .map_err(|e| {
            Fail::Refused(format!(
                "cannot run losetup: {e}; install util-linux, or leave out --loop"
            ))
        })?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let errors = String::from_utf8_lossy(&output.stderr);
    let root = if rustix::process::geteuid().is_root() {
        ""
    } else {
        "; loop devices need root: use sudo, or leave out --loop"
    };
    Err(Fail::Refused(format!("{}{root}", errors.trim())))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn files_have_their_size_and_are_not_made_twice() {
        for written in [true, false] {
            let folder = tempfile::tempdir().unwrap();
            let paths: Vec<PathBuf> = (0..4).map(|i| folder.path().join(i.to_string())).collect();
            let size = (5 << 20) + 4096;
            create(&paths, size, written).unwrap();
            for path in &paths {
                let bytes = std::fs::read(path).unwrap();
                assert_eq!(bytes.len() as u64, size);
                assert!(bytes.iter().all(|b| *b == 0));
            }
            assert!(matches!(
                create(&paths, size, written),
                Err(Fail::Io { .. })
            ));
        }
    }

    #[test]
    fn too_little_room_is_seen_before_anything_is_written() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("huge");
        let error = create(std::slice::from_ref(&path), 1 << 60, true).unwrap_err();
        assert!(error.to_string().contains("are free"), "{error}");
        assert!(!path.exists());
    }

    #[test]
    fn aligned_memory_is() {
        let buffer = Aligned::zeroed(10_000);
        assert_eq!(buffer.len(), 10_000);
        assert_eq!(buffer.as_ptr().align_offset(ALIGN), 0);
    }
}
