//! Device operations: what is asked, what is checked first, what the completions mean.
//!
//! Invariants:
//! - Every `read`, `write` and `flush` is answered by exactly one [`Event::Device`], with the
//!   buffer.
//! - The buffer of an operation lives in its slot in `ops` until the kernel has completed it,
//!   whatever becomes of the device, the handler or the reactor.
//! - A device's descriptor stays open while `in_flight` is not zero.
//! - Nothing is retried that reached the device and failed: the engine fences it instead. Only
//!   transfers that ended early are continued, and calls that were interrupted before they began
//!   are begun again.

use std::ops::Range;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;

use io_uring::types::FsyncFlags;
use io_uring::{opcode, squeue};
use rustix::io::Errno;

use crate::device::{self, DeviceInfo, DeviceKind, OpenOptions};
use crate::error::{DeviceIoError, DeviceOperation, OpenError};
use crate::event::{Dev, Event};
use crate::io::{Io, Pending};
use crate::pool::Buf;
use crate::ring::{File, Kind, Tag, on_file};

/// Devices that one reactor can have open.
pub(crate) const DEVICES_MAX: u32 = 64;

/// An open device.
pub(crate) struct Device {
    fd: OwnedFd,
    file: File,
    path: Arc<str>,
    info: DeviceInfo,
    read_only: bool,
    /// Durable writes need DSYNC.
    dsync: bool,
    in_flight: u32,
    closing: bool,
}

/// An operation that the kernel has.
pub(crate) struct DeviceOp {
    token: u64,
    dev: Dev,
    operation: DeviceOperation,
    offset: u64,
    buf: Option<Buf>,
    start: usize,
    len: usize,
    done: usize,
    /// How often it was begun without anything having been moved.
    restarts: u8,
}

/// An operation that is interrupted more often than that before it begins has failed.
const RESTARTS_MAX: u8 = 16;

impl Io {
    /// Opens a block device or file for direct I/O and claims it. Blocks for as long as the system
    /// calls take, and where it is busy for [`OpenOptions::patience`].
    pub fn open_device(&mut self, path: &Path, options: OpenOptions) -> Result<Dev, OpenError> {
        let too_many = || OpenError::TooMany {
            path: path.to_path_buf(),
            limit: DEVICES_MAX as usize,
        };
        let (slot, generation) = self.devices.vacancy().ok_or_else(too_many)?;
        let (fd, info) = device::open(path, options)?;
        let file = self.ring.register_file(slot, fd.as_raw_fd());
        let device = Device {
            file,
            path: info.path.as_str().into(),
            read_only: options.read_only,
            dsync: info.volatile_cache || info.kind == DeviceKind::File,
            info,
            in_flight: 0,
            closing: false,
            fd,
        };
        self.devices.insert(device).ok_or_else(too_many)?;
        Ok(Dev { slot, generation })
    }

    /// Closes a device and lets go of its lock: at once if nothing is under way on it, else with
    /// the last completion. What is asked of it from now on fails with [`DeviceIoError::Closed`].
    pub fn close_device(&mut self, dev: Dev) {
        if let Some(device) = self.devices.get_mut(dev.slot, dev.generation) {
            device.closing = true;
            self.bury_device(dev);
        }
    }

    /// What is known of an open device.
    pub fn device_info(&self, dev: Dev) -> Option<&DeviceInfo> {
        self.devices
            .get(dev.slot, dev.generation)
            .map(|device| &device.info)
    }

    /// Writes `buf[range]` at `offset`; if `durable`, it has reached stable storage when it
    /// completes.
    pub fn write(
        &mut self,
        dev: Dev,
        token: u64,
        offset: u64,
        buf: Buf,
        range: Range<usize>,
        durable: bool,
    ) {
        let operation = if durable {
            DeviceOperation::WriteDurable
        } else {
            DeviceOperation::Write
        };
        self.begin(dev, token, operation, offset, Some(buf), range);
    }

    /// Reads from `offset` into `buf[range]`.
    pub fn read(&mut self, dev: Dev, token: u64, offset: u64, buf: Buf, range: Range<usize>) {
        self.begin(dev, token, DeviceOperation::Read, offset, Some(buf), range);
    }

    /// Makes durable all writes whose completion has been told before this call. (It orders nothing
    /// that is still under way.)
    pub fn flush(&mut self, dev: Dev, token: u64) {
        self.begin(dev, token, DeviceOperation::Flush, 0, None, 0..0);
    }

    fn begin(
        &mut self,
        dev: Dev,
        token: u64,
        operation: DeviceOperation,
        offset: u64,
        buf: Option<Buf>,
        range: Range<usize>,
    ) {
        let checked = match self.devices.get(dev.slot, dev.generation) {
            Some(device) if !device.closing => {
                device.check(operation, offset, buf.as_deref(), &range)
            }
            _ => Err(DeviceIoError::Closed { operation, offset }),
        };
        if let Err(error) = checked {
            let failed = Event::Device {
                token,
                result: Err(error),
                buf,
            };
            self.pending.push_back(Pending::Event(failed));
            return;
        }
        if operation != DeviceOperation::Flush && range.is_empty() {
            self.pending.push_back(Pending::Event(Event::Device {
                token,
                result: Ok(0),
                buf,
            }));
            return;
        }
        let op = DeviceOp {
            token,
            dev,
            operation,
            offset,
            buf,
            start: range.start,
            len: range.len(),
            done: 0,
            restarts: 0,
        };
        let Some((slot, _)) = self.ops.insert(op) else {
            // 2^32 operations, each with a buffer of its own: unreachable, but nothing is lost.
            debug_assert!(false, "the table of operations is unbounded");
            return;
        };
        if let Some(device) = self.devices.get_mut(dev.slot, dev.generation) {
            device.in_flight += 1;
        }
        self.issue(slot);
    }

    /// Gives (the rest of) an operation to the ring.
    fn issue(&mut self, slot: u32) {
        let Some(op) = self.ops.at(slot) else { return };
        let Some(device) = self.devices.get(op.dev.slot, op.dev.generation) else {
            return;
        };
        let tag = Tag::new(Kind::Device, slot, 0).pack();
        let entry = op.build(device, self.pool.registered()).user_data(tag);
        // SAFETY: the buffer is owned by the slot in `ops`, which is emptied only by the
        // operation's completion, and until then nobody else can reach it; at shutdown the reactor
        // waits for all operations or leaks the table. The descriptor stays open while `in_flight`
        // > 0.
        unsafe { self.ring.push(entry) };
    }

    pub(crate) fn on_device(&mut self, slot: u32, result: Result<u32, Errno>) {
        let Some(op) = self.ops.at(slot) else { return };
        let Some(device) = self.devices.get(op.dev.slot, op.dev.generation) else {
            return;
        };
        let result = match result {
            // Neither says that anything was tried.
            Err(Errno::INTR | Errno::AGAIN) if op.restarts < RESTARTS_MAX => {
                op.restarts += 1;
                return self.issue(slot);
            }
            Err(errno) => Err(DeviceIoError::Failed {
                device: Arc::clone(&device.path),
                operation: op.operation,
                offset: op.offset,
                len: op.len,
                errno,
            }),
            Ok(moved) => {
                // Only whole blocks count, so that what is left is aligned again.
                let block = device.info.logical_block as usize;
                let before = op.done;
                op.done += moved as usize;
                if op.done >= op.len {
                    Ok(op.len)
                } else {
                    op.done -= op.done % block;
                    if op.done > before {
                        return self.issue(slot);
                    }
                    Err(DeviceIoError::Short {
                        device: Arc::clone(&device.path),
                        operation: op.operation,
                        offset: op.offset,
                        expected: op.len,
                        got: before + moved as usize,
                    })
                }
            }
        };
        let Some(op) = self.ops.remove(slot) else {
            return;
        };
        if let Some(device) = self.devices.get_mut(op.dev.slot, op.dev.generation) {
            device.in_flight -= 1;
        }
        self.bury_device(op.dev);
        let done = Event::Device {
            token: op.token,
            result,
            buf: op.buf,
        };
        self.pending.push_back(Pending::Event(done));
    }

    /// Closes a device that is to be closed and has nothing under way.
    fn bury_device(&mut self, dev: Dev) {
        let ready = self
            .devices
            .get(dev.slot, dev.generation)
            .is_some_and(|device| device.closing && device.in_flight == 0);
        if ready && let Some(device) = self.devices.remove(dev.slot) {
            self.ring.unregister_file(device.file);
            // The ring may let go of its own reference a little later, and the lock goes with the
            // last.
            let _ = rustix::fs::flock(&device.fd, rustix::fs::FlockOperation::Unlock);
        }
    }
}

impl Device {
    /// Whether an operation may go to the device at all.
    fn check(
        &self,
        operation: DeviceOperation,
        offset: u64,
        buf: Option<&[u8]>,
        range: &Range<usize>,
    ) -> Result<(), DeviceIoError> {
        let device = || Arc::clone(&self.path);
        if self.read_only && operation != DeviceOperation::Read {
            return Err(DeviceIoError::ReadOnly {
                device: device(),
                operation,
                offset,
            });
        }
        let Some(buf) = buf else { return Ok(()) };
        let len = range.end.saturating_sub(range.start);
        if range.start > range.end || range.end > buf.len() {
            let limit = buf.len() as u64;
            let what = "buffer";
            return Err(DeviceIoError::OutOfRange {
                device: device(),
                operation,
                offset,
                len,
                what,
                limit,
            });
        }
        let align = self.info.logical_block;
        let block = align as usize;
        if !offset.is_multiple_of(u64::from(align))
            || !len.is_multiple_of(block)
            || !range.start.is_multiple_of(block)
        {
            let (start, expected) = (range.start, align);
            return Err(DeviceIoError::Misaligned {
                device: device(),
                operation,
                offset,
                start,
                len,
                expected,
            });
        }
        if offset
            .checked_add(len as u64)
            .is_none_or(|end| end > self.info.size)
        {
            let (what, limit) = ("device", self.info.size);
            return Err(DeviceIoError::OutOfRange {
                device: device(),
                operation,
                offset,
                len,
                what,
                limit,
            });
        }
        Ok(())
    }
}

impl DeviceOp {
    fn build(&mut self, device: &Device, registered: bool) -> squeue::Entry {
        let Some(buf) = &mut self.buf else {
            return on_file!(device.file, fd =>
                opcode::Fsync::new(fd).flags(FsyncFlags::DATASYNC).build());
        };
        let segment = buf.segment();
        let rest = &mut buf[self.start + self.done..self.start + self.len];
        // A Buf is far shorter than 4 GiB.
        let (start, len) = (rest.as_mut_ptr(), rest.len() as u32);
        let offset = self.offset + self.done as u64;
        let durable = self.operation == DeviceOperation::WriteDurable;
        let flags = if durable && device.dsync {
            libc::RWF_DSYNC
        } else {
            0
        };
        match (self.operation, registered) {
            (DeviceOperation::Read, true) => on_file!(device.file, fd =>
                opcode::ReadFixed::new(fd, start, len, segment).offset(offset).build()),
            (DeviceOperation::Read, false) => on_file!(device.file, fd =>
                opcode::Read::new(fd, start, len).offset(offset).build()),
            (_, true) => on_file!(device.file, fd =>
                opcode::WriteFixed::new(fd, start, len, segment).offset(offset).rw_flags(flags).build()),
            (_, false) => on_file!(device.file, fd =>
                opcode::Write::new(fd, start, len).offset(offset).rw_flags(flags).build()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Handler, Instant, Options, Reactor};

    /// Ends with the first answer.
    #[derive(Default)]
    struct One(Option<(Result<usize, DeviceIoError>, Option<Buf>)>);

    impl Handler for One {
        fn on_event(&mut self, _now: Instant, event: Event<'_>, _io: &mut Io) {
            let Event::Device { result, buf, .. } = event else {
                panic!("{event:?}")
            };
            self.0 = Some((result, buf));
        }

        fn next_deadline(&self) -> Option<Instant> {
            None
        }

        fn finished(&self) -> bool {
            self.0.is_some()
        }
    }

    /// Where the test itself lies: a disk, while /tmp may be memory.
    fn build_directory() -> std::path::PathBuf {
        std::env::current_exe()
            .unwrap()
            .parent()
            .unwrap()
            .to_path_buf()
    }

    /// A write and a read back, with the pool registered or treated as if that had failed.
    #[test]
    fn it_works_with_and_without_registered_memory_and_files() {
        for (registered, file_table) in [(true, true), (false, true), (true, false), (false, false)]
        {
            let file = tempfile::NamedTempFile::new_in(build_directory()).unwrap();
            file.as_file().set_len(1 << 20).unwrap();
            let mut reactor = Reactor::new(Options {
                pool_bytes: 1 << 20,
                ..Options::default()
            })
            .unwrap();
            let io = reactor.io();
            if !registered {
                io.ring.uring().submitter().unregister_buffers().unwrap();
                io.pool.set_registered(false);
            }
            if !file_table {
                io.ring.forget_file_table();
            }
            assert_eq!(io.pool().registered(), registered);
            let dev = io.open_device(file.path(), OpenOptions::default()).unwrap();
            let mut buf = io.alloc(8192).unwrap();
            buf.fill(0x5a);
            io.write(dev, 1, 4096, buf, 0..8192, true);
            let mut answer = One::default();
            reactor.run(&mut answer).unwrap();
            let (result, buf) = answer.0.unwrap();
            assert_eq!(result, Ok(8192));
            let mut buf = buf.unwrap();
            buf.fill(0);
            reactor.io().read(dev, 2, 0, buf, 0..8192);
            let mut answer = One::default();
            reactor.run(&mut answer).unwrap();
            let (result, buf) = answer.0.unwrap();
            assert_eq!(result, Ok(8192));
            assert_eq!(buf.unwrap()[..], [[0; 4096], [0x5a; 4096]].concat());
        }
    }
}
