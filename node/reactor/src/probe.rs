//! What the kernel offers, and what will be done without.
//!
//! Whatever matters is tried, not inferred from version numbers: distributions backport, containers
//! forbid. What cannot be done without is a typed error that says what to do; everything else is a
//! note.

use std::fmt;
use std::io::Write as _;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use io_uring::{cqueue, opcode, types};
use rustix::io::Errno;
use rustix::process::{Resource, Rlimit};
use serde::Serialize;

use crate::error::ProbeError;
use crate::pool::Pool;
use crate::recv_ring::{self, RecvRing};
use crate::ring::{Kind, Ring, RingMode, Tag, errno_of};

/// A resource limit; absent numbers mean "unlimited".
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Limit {
    /// What is in force.
    pub soft: Option<u64>,
    /// What this process may raise it to.
    pub hard: Option<u64>,
}

/// What the kernel offers, and what is done without.
#[derive(Clone, Debug, Serialize)]
pub struct Probe {
    /// The kernel's release.
    pub kernel: String,
    /// `kernel.io_uring_disabled`, where there is such a thing: 0 allows everyone, 1 only a group,
    /// 2 nobody.
    pub io_uring_disabled: Option<u32>,
    /// The ring accepted SINGLE_ISSUER.
    pub single_issuer: bool,
    /// The ring accepted DEFER_TASKRUN.
    pub defer_taskrun: bool,
    /// The ring had to fall back to COOP_TASKRUN.
    pub coop_taskrun: bool,
    /// A pool buffer could be registered.
    pub registered_buffers: bool,
    /// Files can be registered.
    pub registered_files: bool,
    /// Multishot receive into provided buffers works (it is required).
    pub multishot_receive: bool,
    /// Waiting for sockets need not count as waiting for disks.
    pub no_iowait: bool,
    /// The features that the kernel reports.
    pub features: Vec<&'static str>,
    /// The operations that this reactor uses, and that this kernel has.
    pub operations: Vec<&'static str>,
    /// Those that it lacks.
    pub operations_missing: Vec<&'static str>,
    /// Whether devices are polled for completions. Never so far: neither loop nor virtio disks
    /// support it, and a polling ring takes no flush.
    pub polling: bool,
    /// RLIMIT_MEMLOCK, bytes.
    pub memlock: Limit,
    /// RLIMIT_NOFILE.
    pub open_files: Limit,
    /// What will be done without, and why.
    pub notes: Vec<String>,
}

const OPERATIONS: [(u8, &str); 13] = [
    (opcode::AcceptMulti::CODE, "accept"),
    (opcode::Connect::CODE, "connect"),
    (opcode::RecvMulti::CODE, "recv"),
    (opcode::Send::CODE, "send"),
    (opcode::SendMsg::CODE, "sendmsg"),
    (opcode::AsyncCancel::CODE, "async-cancel"),
    (opcode::PollAdd::CODE, "poll-add"),
    (opcode::Read::CODE, "read"),
    (opcode::Write::CODE, "write"),
    (opcode::ReadFixed::CODE, "read-fixed"),
    (opcode::WriteFixed::CODE, "write-fixed"),
    (opcode::Fsync::CODE, "fsync"),
    (opcode::Nop::CODE, "nop"),
];

/// Looks what the kernel offers, by trying it on a small ring of its own.
pub fn probe() -> Result<Probe, ProbeError> {
    let mut ring = Ring::new(8)?;
    let mode = ring.mode();
    let mut notes: Vec<String> = mode_note(mode).into_iter().collect();

    let mut known = io_uring::Probe::new();
    let mut operations = Vec::new();
    let mut operations_missing = Vec::new();
    if ring.uring().submitter().register_probe(&mut known).is_ok() {
        for (code, name) in OPERATIONS {
            let list = if known.is_supported(code) {
                &mut operations
            } else {
                &mut operations_missing
            };
            list.push(name);
        }
    }
    let features = features(&ring);
    let no_iowait = ring.uring().params().is_feature_no_iowait();

    // Small enough for any limit that lets a node run at all; the pool itself is tried at its
    // start.
    let pool = Pool::new(1 << 20).map_err(|errno| ProbeError::Setup {
        what: "mmap",
        errno,
    })?;
    notes.extend(register_pool(&ring, &pool));
    let files_note = make_file_table(&mut ring, 8);
    let registered_files = files_note.is_none();
    notes.extend(files_note);
    let mut recv = RecvRing::new(&ring, 8, 4096).map_err(recv_ring_error)?;
    check_multishot(&mut ring, &mut recv)?;
    let memlock = limit(Resource::Memlock);
    if let Some(soft) = memlock.soft {
        notes.push(format!(
            "locked memory is limited to {soft} bytes: without CAP_IPC_LOCK, a larger buffer pool is used \
             unregistered, which costs CPU for each operation; set LimitMEMLOCK=infinity in the unit"
        ));
    }
    notes.push(
        "devices are not polled for completions: a polling ring takes reads and writes only, and common \
         devices (loop, virtio) do not support it"
            .to_owned(),
    );
    Ok(Probe {
        kernel: kernel_release(),
        io_uring_disabled: io_uring_disabled(),
        single_issuer: mode.single_issuer,
        defer_taskrun: mode.defer_taskrun,
        coop_taskrun: mode.coop_taskrun,
        registered_buffers: pool.registered(),
        registered_files,
        multishot_receive: true,
        no_iowait,
        features,
        operations,
        operations_missing,
        polling: false,
        memlock,
        open_files: limit(Resource::Nofile),
        notes,
    })
}

impl fmt::Display for Probe {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let yes = |on: bool| if on { "yes" } else { "no" };
        writeln!(f, "kernel               {}", self.kernel)?;
        match self.io_uring_disabled {
            Some(value) => writeln!(
                f,
                "io_uring             allowed (io_uring_disabled = {value})"
            )?,
            None => writeln!(f, "io_uring             allowed")?,
        }
        writeln!(f, "single issuer        {}", yes(self.single_issuer))?;
        writeln!(f, "deferred task work   {}", yes(self.defer_taskrun))?;
        writeln!(f, "multishot receive    {}", yes(self.multishot_receive))?;
        writeln!(f, "registered buffers   {}", yes(self.registered_buffers))?;
        writeln!(f, "registered files     {}", yes(self.registered_files))?;
        writeln!(f, "polled devices       {}", yes(self.polling))?;
        writeln!(f, "locked memory        {}", self.memlock)?;
        writeln!(f, "open files           {}", self.open_files)?;
        writeln!(f, "features             {}", self.features.join(" "))?;
        writeln!(f, "operations           {}", self.operations.join(" "))?;
        if !self.operations_missing.is_empty() {
            writeln!(
                f,
                "missing operations   {}",
                self.operations_missing.join(" ")
            )?;
        }
        for note in &self.notes {
            writeln!(f, "note: {note}")?;
        }
        Ok(())
    }
}

impl fmt::Display for Limit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.soft, self.hard) {
            (None, _) => f.write_str("unlimited"),
            (Some(soft), None) => write!(f, "{soft} (can be raised)"),
            (Some(soft), Some(hard)) if soft < hard => {
                write!(f, "{soft} (can be raised to {hard})")
            }
            (Some(soft), Some(_)) => write!(f, "{soft}"),
        }
    }
}

fn features(ring: &Ring) -> Vec<&'static str> {
    let params = ring.uring().params();
    [
        (params.is_feature_single_mmap(), "single-mmap"),
        (params.is_feature_nodrop(), "nodrop"),
        (params.is_feature_submit_stable(), "submit-stable"),
        (params.is_feature_fast_poll(), "fast-poll"),
        (params.is_feature_ext_arg(), "ext-arg"),
        (params.is_feature_native_workers(), "native-workers"),
        (params.is_feature_resource_tagging(), "rsrc-tags"),
        (params.is_feature_skip_cqe_on_success(), "cqe-skip"),
        (params.is_feature_linked_file(), "linked-file"),
        (params.is_feature_recvsend_bundle(), "recvsend-bundle"),
        (params.is_feature_min_timeout(), "min-timeout"),
        (params.is_feature_no_iowait(), "no-iowait"),
    ]
    .into_iter()
    .filter_map(|(there, name)| there.then_some(name))
    .collect()
}

/// The kernel's release.
pub(crate) fn kernel_release() -> String {
    rustix::system::uname()
        .release()
        .to_string_lossy()
        .into_owned()
}

fn io_uring_disabled() -> Option<u32> {
    std::fs::read_to_string("/proc/sys/kernel/io_uring_disabled")
        .ok()?
        .trim()
        .parse()
        .ok()
}

/// The error for a kernel that has io_uring and does not let us.
pub(crate) fn forbidden(errno: Errno) -> ProbeError {
    ProbeError::Forbidden {
        errno,
        remedy: remedy(io_uring_disabled()),
    }
}

/// What to do about it, by what `kernel.io_uring_disabled` says.
fn remedy(disabled: Option<u32>) -> String {
    match disabled {
        Some(2) => "an administrator has disabled it; set `sysctl kernel.io_uring_disabled=0` (and in \
                    /etc/sysctl.d to keep it)"
            .to_owned(),
        Some(1) => "only members of the group in `sysctl kernel.io_uring_group` may use it; add the \
                    node's user to it, or set `sysctl kernel.io_uring_disabled=0`"
            .to_owned(),
        _ => "kernel.io_uring_disabled does not forbid it, so a seccomp filter or a security module does: in \
              a container, run with a seccomp profile that allows io_uring_setup, io_uring_enter and \
              io_uring_register (Docker: --security-opt seccomp=FILE); under systemd, see SystemCallFilter="
            .to_owned(),
    }
}

/// What to tell about the mode that the ring had to take.
pub(crate) fn mode_note(mode: RingMode) -> Option<String> {
    if mode.defer_taskrun {
        return None;
    }
    let instead = if mode.coop_taskrun {
        "COOP_TASKRUN"
    } else {
        "interrupts"
    };
    Some(format!(
        "the kernel refuses DEFER_TASKRUN (Linux 6.1 has it): completions are handled by {instead}, which costs some CPU"
    ))
}

fn limit(resource: Resource) -> Limit {
    let limit = rustix::process::getrlimit(resource);
    Limit {
        soft: limit.current,
        hard: limit.maximum,
    }
}

/// Raises a soft limit to the hard one.
fn raise(resource: Resource) {
    let limit = rustix::process::getrlimit(resource);
    // Should it fail, the caller finds out by what it wanted the limit for.
    let _ = rustix::process::setrlimit(
        resource,
        Rlimit {
            current: limit.maximum,
            maximum: limit.maximum,
        },
    );
}

/// Registers the pool's arena with the ring. The note says why, if that cannot be done.
pub(crate) fn register_pool(ring: &Ring, pool: &Pool) -> Option<String> {
    let segments = pool.segments();
    let register = || {
        // SAFETY: the segments are the pool's mapping, which every operation's `Buf` keeps alive;
        // the registration itself pins the pages, and ends with the ring.
        unsafe { ring.uring().submitter().register_buffers(&segments) }.map_err(errno_of)
    };
    let mut result = register();
    if matches!(result, Err(Errno::NOMEM | Errno::PERM)) {
        raise(Resource::Memlock);
        result = register();
    }
    pool.set_registered(result.is_ok());
    let errno = result.err()?;
    let limit = limit(Resource::Memlock);
    Some(format!(
        "the buffer pool of {} bytes is not registered with the ring ({errno}; RLIMIT_MEMLOCK is {limit}): \
         every operation pins its memory anew, which costs CPU; set LimitMEMLOCK=infinity in the unit",
        pool.capacity()
    ))
}

/// Makes the table of registered files, as large as it may be. The note says what is missing and
/// why.
pub(crate) fn make_file_table(ring: &mut Ring, count: u32) -> Option<String> {
    let mut made = count;
    let mut result = ring.make_file_table(count);
    if result == Err(Errno::MFILE) {
        // The kernel allows as many as there may be open files.
        raise(Resource::Nofile);
        let allowed = limit(Resource::Nofile).soft.unwrap_or(u64::MAX);
        made = count.min(u32::try_from(allowed).unwrap_or(u32::MAX));
        result = ring.make_file_table(made);
    }
    match result {
        Ok(()) if made == count => None,
        Ok(()) => Some(format!(
            "only {made} of {count} files can be registered with the ring (RLIMIT_NOFILE), and no more \
             connections than that can be open; set LimitNOFILE= in the unit"
        )),
        Err(errno) => Some(format!(
            "files cannot be registered with the ring ({errno}): descriptors are looked up for each operation"
        )),
    }
}

/// The error for a kernel without provided-buffer rings.
pub(crate) fn recv_ring_error(errno: Errno) -> ProbeError {
    if errno == Errno::INVAL {
        let what = "rings of provided buffers (IORING_REGISTER_PBUF_RING)";
        return ProbeError::TooOld {
            kernel: kernel_release(),
            what,
        };
    }
    ProbeError::Setup {
        what: "IORING_REGISTER_PBUF_RING",
        errno,
    }
}

/// Receives a byte by multishot receive, to see that the kernel can.
pub(crate) fn check_multishot(ring: &mut Ring, recv: &mut RecvRing) -> Result<(), ProbeError> {
    let setup = |errno| ProbeError::Setup {
        what: "trying a multishot receive",
        errno,
    };
    let (mut ours, theirs) = UnixStream::pair().map_err(|error| setup(errno_of(error)))?;
    let operation = opcode::RecvMulti::new(types::Fd(theirs.as_raw_fd()), recv_ring::GROUP).build();
    // SAFETY: it points to nothing, and the loop below waits until it is over.
    unsafe { ring.push(operation.user_data(Tag::new(Kind::Recv, 0, 0).pack())) };
    ours.write_all(&[42])
        .map_err(|error| setup(errno_of(error)))?;
    drop(ours);
    let mut entries = Vec::new();
    let mut works = false;
    // One byte, then the end of the stream: each is there already, so this cannot take long.
    while ring.in_flight() > 0 {
        ring.enter(true, Some(Duration::from_secs(1)))
            .map_err(setup)?;
        ring.reap(&mut entries);
        for entry in entries.drain(..) {
            if let Some(id) = cqueue::buffer_select(entry.flags()) {
                let len = usize::try_from(entry.result()).unwrap_or(0);
                works |= recv.bytes(id, len) == [42] && cqueue::more(entry.flags());
                recv.recycle(id);
            }
        }
    }
    if works {
        return Ok(());
    }
    Err(ProbeError::TooOld {
        kernel: kernel_release(),
        what: "multishot receive",
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_probe_tells_people_and_scripts_the_same() {
        let probe = probe().unwrap();
        assert!(probe.multishot_receive);
        assert!(probe.operations.contains(&"recv"), "{probe:?}");
        assert!(probe.operations_missing.is_empty(), "{probe:?}");
        let text = probe.to_string();
        assert!(text.contains(&probe.kernel) && text.contains("registered buffers"));
        assert!(probe.notes.iter().any(|note| note.contains("polled")));
    }

    #[test]
    fn each_way_of_forbidding_has_its_remedy() {
        assert!(remedy(Some(2)).contains("io_uring_disabled=0"));
        assert!(remedy(Some(1)).contains("io_uring_group"));
        assert!(remedy(Some(0)).contains("seccomp"));
        assert!(remedy(None).contains("seccomp"));
        let ProbeError::Forbidden { errno, .. } = forbidden(Errno::PERM) else {
            panic!()
        };
        assert_eq!(errno, Errno::PERM);
    }

    #[test]
    fn doing_without_has_a_stated_reason() {
        let best = RingMode {
            single_issuer: true,
            defer_taskrun: true,
            coop_taskrun: false,
        };
        assert_eq!(mode_note(best), None);
        let coop = RingMode {
            coop_taskrun: true,
            ..RingMode::default()
        };
        assert!(mode_note(coop).unwrap().contains("COOP_TASKRUN"));
        assert!(
            mode_note(RingMode::default())
                .unwrap()
                .contains("interrupts")
        );
    }
}
