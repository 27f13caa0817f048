//! What can go wrong, with what a person can do about it.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use rustix::io::Errno;
use thiserror::Error;

/// io_uring is not to be had here.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum ProbeError {
    /// The kernel was built without it, or is older than 5.1.
    #[error(
        "this kernel ({kernel}) has no io_uring (io_uring_setup: ENOSYS); Ashlar needs Linux 6.0 or newer \
         with CONFIG_IO_URING=y; in a container, a seccomp profile may also hide it"
    )]
    Missing {
        /// The kernel's release.
        kernel: String,
    },
    /// It is there, but this process may not use it.
    #[error("io_uring is forbidden to this process (io_uring_setup: {errno}): {remedy}")]
    Forbidden {
        /// EPERM or EACCES.
        errno: Errno,
        /// What to do about it.
        remedy: String,
    },
    /// It lacks something that cannot be done without.
    #[error("this kernel ({kernel}) lacks {what}; Ashlar needs Linux 6.0 or newer")]
    TooOld {
        /// The kernel's release.
        kernel: String,
        /// What is missing.
        what: &'static str,
    },
    /// A ring could not be made for want of a resource.
    #[error("cannot set up io_uring: {what}: {errno}{}", remedy_for(*errno))]
    Setup {
        /// The step that failed.
        what: &'static str,
        /// Why.
        errno: Errno,
    },
}

/// What to add to a message where a limit is the likely cause.
fn remedy_for(errno: Errno) -> &'static str {
    match errno {
        Errno::NOMEM => {
            " (locked memory is limited: set LimitMEMLOCK=infinity in the unit, or raise `ulimit -l`)"
        }
        Errno::MFILE | Errno::NFILE => " (too many open files: raise LimitNOFILE or `ulimit -n`)",
        _ => "",
    }
}

/// A reactor could not be made, or had to stop.
#[derive(Debug, Error)]
pub enum ReactorError {
    /// io_uring is missing, forbidden, or too old.
    #[error(transparent)]
    Uring(#[from] ProbeError),
    /// The pool's memory is not to be had.
    #[error("cannot map {bytes} bytes of buffer pool: {errno}")]
    Memory {
        /// How much was asked for.
        bytes: usize,
        /// Why not.
        errno: Errno,
    },
    /// The options contradict themselves or the machine.
    #[error("reactor option {option} = {value}: {reason}")]
    Option {
        /// Which.
        option: &'static str,
        /// What it was.
        value: u64,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// The address to listen on cannot be had.
    #[error("cannot listen on {addr}: {step}: {errno}")]
    Listen {
        /// The address.
        addr: SocketAddr,
        /// The call that failed.
        step: &'static str,
        /// Why.
        errno: Errno,
    },
    /// The thread cannot be pinned.
    #[error("cannot pin the thread to cpu {cpu}: {errno}")]
    Pin {
        /// The cpu.
        cpu: usize,
        /// Why not.
        errno: Errno,
    },
    /// Entering the ring failed in a way that no retry mends.
    #[error("io_uring_enter failed: {errno}")]
    Enter {
        /// Why.
        errno: Errno,
    },
}

/// A connection could not even be begun. What fails later arrives as [`crate::Event::Closed`].
#[derive(Debug, Error)]
#[error("cannot connect to {addr}: {errno}")]
pub struct ConnectError {
    /// Where to.
    pub addr: SocketAddr,
    /// Why not; `ENFILE` when [`crate::Options::connections`] are in use.
    pub errno: Errno,
}

/// A device could not be opened.
#[derive(Debug, Error)]
pub enum OpenError {
    /// Another process (or this one) has it open for itself, or it is mounted.
    #[error("{} is busy: it is in use by another process, or mounted", path.display())]
    Busy {
        /// The device.
        path: PathBuf,
    },
    /// Neither a block device nor a regular file.
    #[error("{} is a {what}, not a block device or a regular file", path.display())]
    WrongKind {
        /// The path.
        path: PathBuf,
        /// What it is.
        what: &'static str,
    },
    /// The file system under it cannot do direct I/O.
    #[error("{} cannot be opened for direct I/O ({reason}); put it on a disk file system such as ext4 or xfs", path.display())]
    NoDirectIo {
        /// The path.
        path: PathBuf,
        /// How that was noticed.
        reason: &'static str,
    },
    /// Its blocks are larger than the buffers' alignment.
    #[error("{} has logical blocks of {got} bytes; at most {expected} are supported", path.display())]
    BlockSize {
        /// The path.
        path: PathBuf,
        /// The most that is supported.
        expected: u32,
        /// What it has.
        got: u32,
    },
    /// This reactor has as many devices open as it can.
    #[error("cannot open {}: {limit} devices are open on this core already", path.display())]
    TooMany {
        /// The path.
        path: PathBuf,
        /// The limit.
        limit: usize,
    },
    /// A system call failed.
    #[error("cannot open {}: {step}: {errno}", path.display())]
    System {
        /// The path.
        path: PathBuf,
        /// The call.
        step: &'static str,
        /// Why.
        errno: Errno,
    },
}

impl OpenError {
    /// The error number behind it, where there is one.
    pub fn errno(&self) -> Option<Errno> {
        match self {
            OpenError::Busy { .. } => Some(Errno::BUSY),
            OpenError::System { errno, .. } => Some(*errno),
            _ => None,
        }
    }
}

/// What a device was asked to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DeviceOperation {
    /// Read.
    Read,
    /// Write.
    Write,
    /// Write, durable when it completes.
    WriteDurable,
    /// Make durable what has completed.
    Flush,
}

impl std::fmt::Display for DeviceOperation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            DeviceOperation::Read => "read",
            DeviceOperation::Write => "write",
            DeviceOperation::WriteDurable => "durable write",
            DeviceOperation::Flush => "flush",
        })
    }
}

/// A device operation failed.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum DeviceIoError {
    /// Offset, length or place in memory is not a multiple of what direct I/O demands.
    /// The device was not touched.
    #[error(
        "{device}: {operation} of {len} bytes at {offset} (from byte {start} of its buffer) is not aligned to {expected}"
    )]
    Misaligned {
        /// The device's path.
        device: Arc<str>,
        /// What was asked.
        operation: DeviceOperation,
        /// Where on the device.
        offset: u64,
        /// Where in the buffer.
        start: usize,
        /// How much.
        len: usize,
        /// The alignment that it should have.
        expected: u32,
    },
    /// It lies outside the device or the buffer. The device was not touched.
    #[error("{device}: {operation} of {len} bytes at {offset} leaves the {what} of {limit} bytes")]
    OutOfRange {
        /// The device's path.
        device: Arc<str>,
        /// What was asked.
        operation: DeviceOperation,
        /// Where on the device.
        offset: u64,
        /// How much.
        len: usize,
        /// "device" or "buffer".
        what: &'static str,
        /// Its size.
        limit: u64,
    },
    /// A write or flush of a device that was opened read-only. It was not touched.
    #[error("{device}: {operation} at {offset}, but the device was opened read-only")]
    ReadOnly {
        /// The device's path.
        device: Arc<str>,
        /// What was asked.
        operation: DeviceOperation,
        /// Where on the device.
        offset: u64,
    },
    /// The kernel moved fewer bytes than asked and will move no more: the device or file shrank.
    #[error("{device}: {operation} at {offset} ended after {got} of {expected} bytes")]
    Short {
        /// The device's path.
        device: Arc<str>,
        /// What was asked.
        operation: DeviceOperation,
        /// Where on the device.
        offset: u64,
        /// Bytes asked for.
        expected: usize,
        /// Bytes moved.
        got: usize,
    },
    /// The kernel reports an error.
    #[error("{device}: {operation} of {len} bytes at {offset} failed: {errno}")]
    Failed {
        /// The device's path.
        device: Arc<str>,
        /// What was asked.
        operation: DeviceOperation,
        /// Where on the device.
        offset: u64,
        /// How much.
        len: usize,
        /// Why.
        errno: Errno,
    },
    /// The device has been closed.
    #[error("{operation} at {offset}: the device has been closed")]
    Closed {
        /// What was asked.
        operation: DeviceOperation,
        /// Where on the device.
        offset: u64,
    },
}
