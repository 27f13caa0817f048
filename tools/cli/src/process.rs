//! Processes of a rig's nodes: start, find again, signal, wait.
//!
//! Invariants:
//! - a process is known by its number *and* its start time, so a reused number is never signalled:
//!   the pidfd is opened first, and the start time is compared through it afterwards;
//! - waiting is done in poll(2) on pidfds and notify sockets, never by sleeping and looking again.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use serde::{Deserialize, Serialize};

use crate::fail::Fail;

/// Socket addresses hold no longer paths.
const SOCKET_PATH_MAX: usize = 100;

/// How a process is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// It runs or sleeps.
    Running,
    /// It was stopped by SIGSTOP.
    Stopped,
    /// There is no such process any more.
    Dead,
}

impl State {
    /// For a table.
    pub fn text(self) -> &'static str {
        match self {
            State::Running => "running",
            State::Stopped => "stopped",
            State::Dead => "dead",
        }
    }
}

/// A process that was started earlier, perhaps by another command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Process {
    /// Its number.
    pub pid: u32,
    /// When it started, in clock ticks since boot: field 22 of /proc/PID/stat.
    pub started: u64,
}

/// Status letter and start time of a process; none if it is gone.
fn stat(pid: u32) -> Option<(char, u64)> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    parse_stat(&text)
}

fn parse_stat(text: &str) -> Option<(char, u64)> {
    // The second field is the command in parentheses, and may hold anything, parentheses too.
    let mut fields = text.get(text.rfind(')')? + 1..)?.split_ascii_whitespace();
    let letter = fields.next()?.chars().next()?;
    let started = fields.nth(18)?.parse().ok()?;
    Some((letter, started))
}

impl Process {
    /// A process that has just been started.
    pub fn of(pid: u32) -> Option<Process> {
        stat(pid).map(|(_, started)| Process { pid, started })
    }

    /// Reads a pid file. A missing or senseless one is no process.
    pub fn read(path: &Path) -> Option<Process> {
        let text = std::fs::read_to_string(path).ok()?;
        let mut fields = text.split_ascii_whitespace();
        Some(Process {
            pid: fields.next()?.parse().ok()?,
            started: fields.next()?.parse().ok()?,
        })
    }

    /// Writes a pid file.
    pub fn write(&self, path: &Path) -> Result<(), Fail> {
        std::fs::write(path, format!("{} {}\n", self.pid, self.started))
            .map_err(Fail::io("cannot write", path))
    }

    /// How it is doing.
    pub fn state(&self) -> State {
        match stat(self.pid) {
            Some((letter, started)) if started == self.started => match letter {
                'T' | 't' => State::Stopped,
                'Z' | 'X' => State::Dead,
                _ => State::Running,
            },
            _ => State::Dead,
        }
    }

    /// A handle that cannot come to mean another process; none if it is dead.
    fn handle(&self) -> Option<OwnedFd> {
        let pid = Pid::from_raw(i32::try_from(self.pid).ok()?)?;
        let handle = pidfd_open(pid, PidfdFlags::empty()).ok()?;
        // The number may have been reused before the handle was opened: compare behind it.
        (self.state() != State::Dead).then_some(handle)
    }

    /// Sends a signal; false if it is dead.
    pub fn signal(&self, signal: Signal) -> io::Result<bool> {
        let Some(handle) = self.handle() else {
            return Ok(false);
        };
        match pidfd_send_signal(&handle, signal) {
            Ok(()) => Ok(true),
            Err(rustix::io::Errno::SRCH) => Ok(false),
            Err(e) => Err(e.into()),
        }
    }

    /// Waits until it is dead; false when the time is up.
    pub fn wait_dead(&self, limit: Duration) -> io::Result<bool> {
        let Some(handle) = self.handle() else {
            return Ok(true);
        };
        let end = Instant::now() + limit;
        loop {
            let left = end.saturating_duration_since(Instant::now());
            let mut fds = [PollFd::new(&handle, PollFlags::IN)];
            match poll(&mut fds, Some(&timespec(left))) {
                Ok(0) => return Ok(false),
                Ok(_) => return Ok(true),
                Err(rustix::io::Errno::INTR) => {}
                Err(e) => return Err(e.into()),
            }
        }
    }
}

fn timespec(duration: Duration) -> Timespec {
    Timespec {
        tv_sec: i64::try_from(duration.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: i64::from(duration.subsec_nanos()),
    }
}

/// A node that was started, until it says that it serves.
pub struct Starting {
    /// Its number in the rig.
    pub node: u32,
    child: Option<Child>,
    /// Its number and start time.
    pub process: Process,
    handle: OwnedFd,
    socket: UnixDatagram,
    socket_path: PathBuf,
    log: PathBuf,
    log_from: u64,
    status: String,
}

impl Drop for Starting {
    fn drop(&mut self) {
        // The node goes on without: it only would have told its manager more.
        let _ = std::fs::remove_file(&self.socket_path);
    }
}

/// How a start ended.
pub enum Started {
    /// It serves.
    Ready,
    /// It died; this is how, and the tail of its log.
    Died(String),
    /// It is still at it; this is what it said last.
    Late(String),
}

/// The arguments that run the node of a folder.
pub fn node_args(folder: &Path) -> Vec<OsString> {
    let mut args: Vec<OsString> = ["node", "run", "--own-session", "--config"]
        .map(OsString::from)
        .to_vec();
    args.push(folder.join("node.toml").into_os_string());
    args
}

/// Says to whoever started us that we serve, if it wants to know.
pub fn notify_ready() {
    // If it has gone, nobody wants to know.
    let _ = sd_notify::notify(false, &[sd_notify::NotifyState::Ready]);
}

/// Starts a node (or what else lives in a folder) with these arguments, in a session of its own, so that it
/// outlives us.
pub fn spawn(node: u32, folder: &Path, args: &[OsString]) -> Result<Starting, Fail> {
    let program = std::env::current_exe().map_err(Fail::io(
        "cannot find our own program",
        Path::new("/proc/self/exe"),
    ))?;
    let log_path = folder.join("node.log");
    let log = File::options()
        .create(true)
        .append(true)
        .open(&log_path)
        .map_err(Fail::io("cannot open", &log_path))?;
    let log_from = log.metadata().map_or(0, |m| m.len());
    let errors = log
        .try_clone()
        .map_err(Fail::io("cannot open", &log_path))?;

    let (socket, socket_path) = notify_socket(folder)?;
    let child = Command::new(&program)
        .args(args)
        .env("NOTIFY_SOCKET", &socket_path)
        .env_remove("WATCHDOG_USEC")
        .env_remove("WATCHDOG_PID")
        .stdin(Stdio::null())
        .stdout(log)
        .stderr(errors)
        .spawn()
        .map_err(Fail::io("cannot start", &program))?;
    // We have not waited for it, so its number is its own even if it died at once.
    let process = Process::of(child.id()).ok_or_else(|| {
        Fail::Refused(format!(
            "node {node} could not be found after it was started"
        ))
    })?;
    let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
    let handle = pid
        .ok_or(rustix::io::Errno::SRCH)
        .and_then(|pid| pidfd_open(pid, PidfdFlags::empty()))
        .map_err(|e| Fail::io("cannot watch the process of", folder)(e.into()))?;
    process.write(&folder.join("pid"))?;
    let status = String::new();
    let log = log_path;
    let child = Some(child);
    Ok(Starting {
        node,
        child,
        process,
        handle,
        socket,
        socket_path,
        log,
        log_from,
        status,
    })
}

fn notify_socket(folder: &Path) -> Result<(UnixDatagram, PathBuf), Fail> {
    let mut path = folder.join("notify");
    if path.as_os_str().len() > SOCKET_PATH_MAX {
        let mut unique = [0u8; 8];
        random(&mut unique)?;
        let name = format!("ashlar-{:016x}", u64::from_le_bytes(unique));
        path = std::env::temp_dir().join(name);
    }
    match std::fs::remove_file(&path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => {
            return Err(Fail::io("cannot remove", &path)(e));
        }
        _ => {}
    }
    let socket = UnixDatagram::bind(&path).map_err(Fail::io("cannot make the socket", &path))?;
    socket
        .set_nonblocking(true)
        .map_err(Fail::io("cannot use the socket", &path))?;
    Ok((socket, path))
}

/// Fills `bytes` with random ones, from the kernel.
pub fn random(bytes: &mut [u8]) -> Result<(), Fail> {
    let mut done = 0;
    while let Some(rest) = bytes.get_mut(done..).filter(|rest| !rest.is_empty()) {
        match rustix::rand::getrandom(&mut *rest, rustix::rand::GetRandomFlags::empty()) {
            Ok(got) => done += got,
            Err(rustix::io::Errno::INTR) => {}
            Err(e) => return Err(Fail::io("cannot read", Path::new("/dev/urandom"))(e.into())),
        }
    }
    Ok(())
}

/// Waits until each node is ready, is dead, or the time is up. `progress` hears of each that is ready.
pub fn wait_ready(
    starting: &mut [Starting],
    limit: Duration,
    mut progress: impl FnMut(u32),
) -> Result<Vec<Started>, Fail> {
    let end = Instant::now() + limit;
    let mut outcomes: Vec<Option<Started>> = starting.iter().map(|_| None).collect();
    while outcomes.iter().any(Option::is_none) {
        let left = end.saturating_duration_since(Instant::now());
        let waiting: Vec<usize> = (0..starting.len())
            .filter(|i| matches!(outcomes.get(*i), Some(None)))
            .collect();
        let mut fds = Vec::with_capacity(2 * waiting.len());
        for i in &waiting {
            if let Some(node) = starting.get(*i) {
                fds.push(PollFd::from_borrowed_fd(node.socket.as_fd(), PollFlags::IN));
                fds.push(PollFd::from_borrowed_fd(node.handle.as_fd(), PollFlags::IN));
            }
        }
        match poll(&mut fds, Some(&timespec(left))) {
            Ok(0) => break,
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(e) => {
                return Err(Fail::io("cannot wait for", Path::new("the nodes"))(
                    e.into(),
                ));
            }
        }
        drop(fds);
        for i in waiting {
            let (Some(node), Some(outcome)) = (starting.get_mut(i), outcomes.get_mut(i)) else {
                continue;
            };
            if node.hear() {
                progress(node.node);
                *outcome = Some(Started::Ready);
            } else if node.process.state() == State::Dead {
                *outcome = Some(Started::Died(node.obituary()));
            }
        }
    }
    let late = |(node, outcome): (&Starting, Option<Started>)| {
        outcome.unwrap_or_else(|| Started::Late(node.status.clone()))
    };
    Ok(starting.iter().zip(outcomes).map(late).collect())
}

impl Starting {
    /// The child, to be waited for by whoever stays.
    pub fn into_child(mut self) -> Option<Child> {
        self.child.take()
    }

    /// Takes what the node has sent; true once it said that it is ready.
    fn hear(&mut self) -> bool {
        let mut message = [0u8; 4096];
        let mut ready = false;
        while let Ok(len) = self.socket.recv(&mut message) {
            let text = String::from_utf8_lossy(message.get(..len).unwrap_or_default()).into_owned();
            for line in text.lines() {
                ready |= line == "READY=1";
                if let Some(status) = line.strip_prefix("STATUS=") {
                    self.status = status.to_owned();
                }
            }
        }
        ready
    }

    /// How it died, and what it wrote before.
    fn obituary(&mut self) -> String {
        let how = match self.child.as_mut().map(Child::try_wait) {
            Some(Ok(Some(status))) => status.to_string(),
            _ => "it ended".to_owned(),
        };
        let tail = tail(&self.log, self.log_from);
        format!("{how}; the end of {} says:{tail}", self.log.display())
    }
}

/// The last lines of a log from a byte on, each indented on a line of its own.
fn tail(log: &Path, from: u64) -> String {
    const BYTES: u64 = 4096;
    const LINES: usize = 8;
    let read = || -> io::Result<Vec<u8>> {
        let mut file = File::open(log)?;
        let len = file.metadata()?.len();
        file.seek(SeekFrom::Start(from.max(len.saturating_sub(BYTES))))?;
        let mut bytes = Vec::new();
        file.take(BYTES).read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    let bytes = read().unwrap_or_default();
    let text = String::from_utf8_lossy(&bytes);
    let lines: Vec<&str> = text.lines().collect();
    let last = lines
        .get(lines.len().saturating_sub(LINES)..)
        .unwrap_or_default();
    if last.is_empty() {
        return "\n    (nothing)".to_owned();
    }
    last.iter().map(|line| format!("\n    {line}")).collect()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_stat_line_is_read_behind_any_command() {
        let rest = "S 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 4242 20";
        assert_eq!(
            parse_stat(&format!("17 (a b) c) {rest}")),
            Some(('S', 4242))
        );
        assert_eq!(parse_stat("17 (x"), None);
        assert_eq!(parse_stat("17 (x) S 1"), None);
    }

    #[test]
    fn a_process_is_known_by_its_start_time() {
        let me = Process::of(std::process::id()).unwrap();
        assert_eq!(me.state(), State::Running);
        let other = Process {
            started: me.started + 1,
            ..me
        };
        assert_eq!(other.state(), State::Dead);
        assert!(
            !other.signal(Signal::KILL).unwrap(),
            "a reused number is not signalled"
        );
        assert!(other.wait_dead(Duration::ZERO).unwrap());
        assert!(!me.wait_dead(Duration::ZERO).unwrap());
    }

    #[test]
    fn a_child_is_stopped_continued_and_killed() {
        let mut child = Command::new("sleep").arg("60").spawn().unwrap();
        let process = Process::of(child.id()).unwrap();
        assert!(process.signal(Signal::STOP).unwrap());
        rustix::process::waitpid(
            Some(Pid::from_child(&child)),
            rustix::process::WaitOptions::UNTRACED,
        )
        .unwrap();
        assert_eq!(process.state(), State::Stopped);
        assert!(process.signal(Signal::CONT).unwrap());
        assert!(process.signal(Signal::KILL).unwrap());
        assert!(process.wait_dead(Duration::from_secs(10)).unwrap());
        assert_eq!(process.state(), State::Dead, "a zombie is dead");
        child.wait().unwrap();
        assert!(!process.signal(Signal::KILL).unwrap());
    }
}
