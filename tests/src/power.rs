//! Disks that lose what was not flushed when their power fails, under real processes.
//!
//! A file system in user space (FUSE) shows files as they are written, and keeps what is written aside until it is
//! flushed. So the shipped binary, its rings, the kernel's `O_DIRECT` and `RWF_DSYNC` stand between the test and the
//! disk, and the host's page cache keeps nothing out of kindness.
//!
//! Invariants:
//! - a sector is 512 bytes and never torn. Behind a power cut it holds its last durable content, or that of
//!   any later write: each sector for itself;
//! - what a flush was answered for is durable; a disk that *lies* answers and makes nothing durable;
//! - while the power fails nothing is answered, until [`Disks::fail`] says that nobody is there to hear it: so nothing
//!   is acknowledged by what came after the cut;
//! - what is loose is kept in memory, and bounded by what nodes write without a flush.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, UNIX_EPOCH};

use fuser::{
    BackgroundSession, Config, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags,
    Generation, INodeNo, LockOwner, OpenFlags, ReplyAttr, ReplyData, ReplyEmpty, ReplyEntry,
    ReplyOpen, ReplyWrite, Request, WriteFlags,
};

use crate::content::Random;

/// Bytes of a sector: what is never torn.
pub const SECTOR: usize = 512;
/// For so long the kernel may trust what it was told of a file: its size never changes.
const TTL: Duration = Duration::from_secs(3600);

type Sector = [u8; SECTOR];

/// What becomes of the loose sectors of a disk when its power fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// None of them is durable.
    Lost,
    /// All are, as they were written last.
    Kept,
    /// Each for itself: what was durable, or any write since.
    Chance,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    On,
    /// Nobody is answered.
    Held,
    /// Everybody is refused.
    Off,
}

#[derive(Debug)]
struct Disk {
    name: String,
    file: File,
    len: u64,
    /// Of each sector that is not durable all that was written since it was.
    loose: BTreeMap<u64, Vec<Sector>>,
    flushes: u64,
}

#[derive(Debug)]
struct State {
    phase: Phase,
    lies: bool,
    disks: Vec<Disk>,
}

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    turned: Condvar,
}

/// How much a power cut took.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cut {
    /// Sectors that were not durable,
    pub loose: u64,
    /// of which so many lost what was written last.
    pub lost: u64,
    /// Flushes that were answered since the power came.
    pub flushes: u64,
}

/// Files whose power can fail.
pub struct Disks {
    shared: Arc<Shared>,
    folder: PathBuf,
    session: Option<BackgroundSession>,
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until there is somebody to answer.
    fn answering(&self) -> Result<MutexGuard<'_, State>, Errno> {
        let mut state = self.state();
        while state.phase == Phase::Held {
            state = self
                .turned
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
        }
        match state.phase {
            Phase::Off => Err(Errno::EIO),
            _ => Ok(state),
        }
    }

    fn turn(&self, phase: Phase) {
        self.state().phase = phase;
        self.turned.notify_all();
    }
}

impl State {
    fn disk(&mut self, ino: INodeNo) -> Result<&mut Disk, Errno> {
        let place = u64::from(ino).checked_sub(2);
        let place = place.and_then(|place| usize::try_from(place).ok());
        let disk = place.and_then(|place| self.disks.get_mut(place));
        disk.ok_or(Errno::ENOENT)
    }
}

impl Disk {
    fn read(&self, offset: u64, len: u64) -> io::Result<Vec<u8>> {
        let end = offset.saturating_add(len).min(self.len);
        let len = usize::try_from(end.saturating_sub(offset)).map_err(io::Error::other)?;
        let mut bytes = vec![0; len];
        self.file.read_exact_at(&mut bytes, offset)?;
        let (first, last) = (offset / SECTOR as u64, end.div_ceil(SECTOR as u64));
        for (sector, versions) in self.loose.range(first..last) {
            let Some(shown) = versions.last() else {
                continue;
            };
            // Reads need not begin with a sector.
            let at = sector * SECTOR as u64;
            let from = offset.max(at);
            let to = end.min(at + SECTOR as u64);
            let place = |at: u64, base: u64| usize::try_from(at - base).map_err(io::Error::other);
            bytes[place(from, offset)?..place(to, offset)?]
                .copy_from_slice(&shown[place(from, at)?..place(to, at)?]);
        }
        Ok(bytes)
    }

    fn write(&mut self, offset: u64, bytes: &[u8]) -> Result<(), Errno> {
        let len = bytes.len() as u64;
        let whole = offset.is_multiple_of(SECTOR as u64) && len.is_multiple_of(SECTOR as u64);
        if !whole || offset.saturating_add(len) > self.len {
            return Err(Errno::EINVAL);
        }
        let (versions, _) = bytes.as_chunks::<SECTOR>();
        for (version, sector) in versions.iter().zip(offset / SECTOR as u64..) {
            self.loose.entry(sector).or_default().push(*version);
        }
        Ok(())
    }

    /// Makes these sectors durable: one write for each run of neighbours.
    fn settle(&self, sectors: BTreeMap<u64, Sector>) -> io::Result<()> {
        let mut run: Vec<u8> = Vec::new();
        let mut begins = 0;
        for (sector, bytes) in sectors {
            let next = begins + (run.len() / SECTOR) as u64;
            if sector != next && !run.is_empty() {
                self.file.write_all_at(&run, begins * SECTOR as u64)?;
                run.clear();
            }
            if run.is_empty() {
                begins = sector;
            }
            run.extend_from_slice(&bytes);
        }
        self.file.write_all_at(&run, begins * SECTOR as u64)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.flushes += 1;
        let loose = std::mem::take(&mut self.loose);
        let shown = loose.into_iter();
        self.settle(
            shown
                .filter_map(|(sector, mut versions)| Some((sector, versions.pop()?)))
                .collect(),
        )
    }

    fn lose(&mut self, fate: Fate, random: &mut Random, cut: &mut Cut) -> io::Result<()> {
        let mut kept = BTreeMap::new();
        for (sector, mut versions) in std::mem::take(&mut self.loose) {
            let count = versions.len() as u64;
            let survives = match fate {
                Fate::Lost => 0,
                Fate::Kept => count,
                Fate::Chance => random.below(count + 1),
            };
            cut.loose += 1;
            cut.lost += u64::from(survives < count);
            let place = survives
                .checked_sub(1)
                .and_then(|place| usize::try_from(place).ok());
            if let Some(place) = place {
                kept.insert(sector, versions.swap_remove(place));
            }
        }
        cut.flushes += std::mem::take(&mut self.flushes);
        self.settle(kept)
    }

    fn attributes(&self, ino: u64) -> FileAttr {
        attributes(ino, FileType::RegularFile, self.len)
    }
}

impl Disks {
    /// Moves these files behind a file system that is mounted on `folder`, which is made, and puts links to them where
    /// they were. The error says what this system lacks: root, or FUSE.
    pub fn behind(folder: &Path, files: &[PathBuf]) -> io::Result<Disks> {
        std::fs::create_dir_all(folder)?;
        let mut disks = Vec::new();
        for (place, path) in files.iter().enumerate() {
            let beside = path.with_extension("platter");
            std::fs::rename(path, &beside)?;
            let name = format!("disk-{}", place + 1);
            std::os::unix::fs::symlink(folder.join(&name), path)?;
            let file = OpenOptions::new().read(true).write(true).open(&beside)?;
            disks.push(Disk {
                name,
                len: file.metadata()?.len(),
                file,
                loose: BTreeMap::new(),
                flushes: 0,
            });
        }
        let shared = Arc::new(Shared {
            state: Mutex::new(State {
                phase: Phase::On,
                lies: false,
                disks,
            }),
            turned: Condvar::new(),
        });
        let session = fuser::spawn_mount(Served(shared.clone()), folder, &Config::default())?;
        Ok(Disks {
            shared,
            folder: folder.to_owned(),
            session: Some(session),
        })
    }

    /// Whether flushes are answered and make nothing durable.
    pub fn lie(&self, lies: bool) {
        self.shared.state().lies = lies;
    }

    /// The power fails: from now on nothing is answered, and each disk's loose sectors meet their fate. `kill` kills
    /// whoever waits for an answer, `gone` waits until they are dead (a process dies when what it asked for is
    /// answered, not before). Then the power is back.
    pub fn fail(
        &self,
        fate: Fate,
        random: &mut Random,
        kill: impl FnOnce(),
        gone: impl FnOnce(),
    ) -> Cut {
        let mut cut = Cut::default();
        {
            let mut state = self.shared.state();
            state.phase = Phase::Held;
            for disk in &mut state.disks {
                disk.lose(fate, random, &mut cut)
                    .unwrap_or_else(|e| panic!("{} cannot be written: {e}", disk.name));
            }
        }
        kill();
        self.shared.turn(Phase::Off);
        gone();
        self.shared.turn(Phase::On);
        cut
    }
}

impl Drop for Disks {
    /// Unmounts. A process that was killed may have its files open for a moment longer: so the folder is empty at once,
    /// and the file system is gone when the last file is closed.
    fn drop(&mut self) {
        self.shared.turn(Phase::Off);
        let umount = Command::new("umount").arg("-l").arg(&self.folder).status();
        match umount {
            Ok(status) if status.success() => {
                // It has nothing to tell that anybody could still use.
                let _ = self.session.take().map(BackgroundSession::join);
            }
            failed => eprintln!("{} stays mounted: {failed:?}", self.folder.display()),
        }
    }
}

/// What the kernel asks.
struct Served(Arc<Shared>);

fn attributes(ino: u64, kind: FileType, size: u64) -> FileAttr {
    FileAttr {
        ino: INodeNo(ino),
        size,
        blocks: size / SECTOR as u64,
        atime: UNIX_EPOCH,
        mtime: UNIX_EPOCH,
        ctime: UNIX_EPOCH,
        crtime: UNIX_EPOCH,
        kind,
        perm: if kind == FileType::Directory {
            0o755
        } else {
            0o600
        },
        nlink: 1,
        uid: rustix::process::geteuid().as_raw(),
        gid: rustix::process::getegid().as_raw(),
        rdev: 0,
        blksize: 4096,
        flags: 0,
    }
}

impl Served {
    fn attributes(&self, ino: INodeNo) -> Result<FileAttr, Errno> {
        if ino == INodeNo::ROOT {
            return Ok(attributes(1, FileType::Directory, 0));
        }
        let mut state = self.0.state();
        Ok(state.disk(ino)?.attributes(u64::from(ino)))
    }

    fn find(&self, parent: INodeNo, name: &OsStr) -> Result<FileAttr, Errno> {
        let state = self.0.state();
        let mut disks = (2..).zip(&state.disks);
        let found = disks.find(|(_, disk)| parent == INodeNo::ROOT && name == disk.name.as_str());
        found
            .map(|(ino, disk)| disk.attributes(ino))
            .ok_or(Errno::ENOENT)
    }

    fn flush(&self, ino: INodeNo) -> Result<(), Errno> {
        let mut state = self.0.answering()?;
        match state.lies {
            true => Ok(()),
            false => state.disk(ino)?.flush().map_err(Errno::from),
        }
    }
}

impl Filesystem for Served {
    fn lookup(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        match self.find(parent, name) {
            Ok(attributes) => reply.entry(&TTL, &attributes, Generation(0)),
            Err(error) => reply.error(error),
        }
    }

    fn getattr(&self, _: &Request, ino: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        match self.attributes(ino) {
            Ok(attributes) => reply.attr(&TTL, &attributes),
            Err(error) => reply.error(error),
        }
    }

    fn open(&self, _: &Request, _: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        reply.opened(FileHandle(0), FopenFlags::empty());
    }

    fn read(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let read = self.0.answering().and_then(|mut state| {
            let disk = state.disk(ino)?;
            disk.read(offset, u64::from(size)).map_err(Errno::from)
        });
        match read {
            Ok(bytes) => reply.data(&bytes),
            Err(error) => reply.error(error),
        }
    }

    fn write(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        data: &[u8],
        _: WriteFlags,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let written = self.0.answering().and_then(|mut state| {
            state.disk(ino)?.write(offset, data)?;
            u32::try_from(data.len()).map_err(|_| Errno::EINVAL)
        });
        match written {
            Ok(len) => reply.written(len),
            Err(error) => reply.error(error),
        }
    }

    fn flush(&self, _: &Request, _: INodeNo, _: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        // A file is closed: that makes nothing durable.
        reply.ok();
    }

    fn fsync(&self, _: &Request, ino: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        match Served::flush(self, ino) {
            Ok(()) => reply.ok(),
            Err(error) => reply.error(error),
        }
    }
}
