//! The loop.
//!
//! Invariants:
//! - One turn: completions and what follows from them to the handler; `Deadline` if it is due;
//!   `on_batch` once; changed connections settled; the ring entered once, asleep if nothing is left
//!   to tell.
//! - A receive buffer goes back to the kernel as soon as the handler has seen its bytes, so the
//!   shared ring is full again when a turn ends.
//! - The reactor is dropped only after the kernel has let go of all memory that it was given, or
//!   that memory is leaked.

use std::net::SocketAddr;
use std::time::Duration;

use ashlar_layout::time::Instant;
use io_uring::cqueue;
use rustix::event::EventfdFlags;
use rustix::io::Errno;

use crate::clock::monotonic;
use crate::conn::Phase;
use crate::disk::DEVICES_MAX;
use crate::error::{ProbeError, ReactorError};
use crate::event::{ConnId, Event, Handler};
use crate::io::{Io, Pending};
use crate::pool::{BUF_ALIGN, Pool};
use crate::probe;
use crate::recv_ring::RecvRing;
use crate::ring::Ring;
use crate::sockets::{self, Limits};
use crate::spin::{Outcome, PREEMPTION, Spinner};
use crate::waker::Waker;

/// How long a dropped reactor waits for the kernel to finish what was under way.
const SHUT_DOWN_PATIENCE: Duration = Duration::from_secs(10);

/// How a reactor is to be set up.
#[derive(Clone, Debug)]
pub struct Options {
    /// Where to listen; port 0 lets the kernel choose.
    pub listen: Option<SocketAddr>,
    /// The cpu to pin the calling thread to.
    pub cpu: Option<usize>,
    /// Size of the buffer pool.
    pub pool_bytes: usize,
    /// How long to spin at most before sleeping; zero never spins. Where it does not pay, it is not
    /// done.
    pub spin: Duration,
    /// Entries of the submission queue, a power of two. (More operations than that may be under
    /// way.)
    pub entries: u32,
    /// How many connections there may be at once; those beyond are closed as they come.
    pub connections: u32,
    /// Receive buffers that the connections share, a power of two.
    pub recv_buffers: u16,
    /// Size of each, a multiple of [`BUF_ALIGN`].
    pub recv_buffer_bytes: u32,
    /// [`Event::Drained`] comes when a queue that was longer falls to this.
    pub send_low_water: usize,
    /// A connection whose queue grows beyond this ends with `ENOBUFS`: ask [`Io::queued`] before.
    pub send_limit: usize,
    /// How long a closed connection may do nothing before it is cut off.
    pub linger: Duration,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            listen: None,
            cpu: None,
            pool_bytes: 64 << 20,
            spin: Duration::ZERO,
            entries: 256,
            connections: 4096,
            recv_buffers: 64,
            recv_buffer_bytes: 32 << 10,
            send_low_water: 256 << 10,
            send_limit: 256 << 20,
            linger: Duration::from_secs(1),
        }
    }
}

impl Options {
    fn check(&self) -> Result<(), ReactorError> {
        let ensure = |fine: bool, option, value, reason| {
            if fine {
                Ok(())
            } else {
                Err(ReactorError::Option {
                    option,
                    value,
                    reason,
                })
            }
        };
        let count = u64::from(self.recv_buffers);
        let bytes = self.recv_buffer_bytes;
        let aligned = bytes > 0 && (bytes as usize).is_multiple_of(BUF_ALIGN) && bytes <= 1 << 20;
        ensure(
            self.entries.is_power_of_two() && self.entries <= 1 << 15,
            "entries",
            self.entries.into(),
            "not a power of two up to 32768",
        )?;
        ensure(
            count.is_power_of_two() && count <= 1 << 15,
            "recv_buffers",
            count,
            "not a power of two up to 32768",
        )?;
        ensure(
            aligned,
            "recv_buffer_bytes",
            bytes.into(),
            "not a multiple of 4096 up to 1 MiB",
        )?;
        ensure(
            self.connections <= 1 << 20,
            "connections",
            self.connections.into(),
            "more than 1048576",
        )?;
        ensure(
            self.pool_bytes > 0,
            "pool_bytes",
            0,
            "nothing can be done without buffers",
        )
    }
}

/// One core's loop. It stays on the thread that made it.
pub struct Reactor {
    io: Io,
    /// `None` only if it had to be leaked.
    recv: Option<RecvRing>,
    spinner: Spinner,
    completions: Vec<cqueue::Entry>,
    notes: Vec<String>,
}

impl Reactor {
    /// Sets everything up on the calling thread, which is also the one to call [`Reactor::run`].
    pub fn new(options: Options) -> Result<Reactor, ReactorError> {
        options.check()?;
        if let Some(cpu) = options.cpu {
            pin(cpu).map_err(|errno| ReactorError::Pin { cpu, errno })?;
        }
        let mut notes = Vec::new();
        let mut ring = Ring::new(options.entries)?;
        notes.extend(probe::mode_note(ring.mode()));
        let pool = Pool::new(options.pool_bytes).map_err(|errno| ReactorError::Memory {
            bytes: options.pool_bytes,
            errno,
        })?;
        notes.extend(probe::register_pool(&ring, &pool));
        notes.extend(probe::make_file_table(
            &mut ring,
            options.connections + DEVICES_MAX,
        ));
        let mut recv = RecvRing::new(&ring, options.recv_buffers, options.recv_buffer_bytes)
            .map_err(probe::recv_ring_error)?;
        probe::check_multishot(&mut ring, &mut recv)?;
        let eventfd = rustix::event::eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)
            .map_err(|errno| ProbeError::Setup {
                what: "eventfd",
                errno,
            })?;
        let listener = match options.listen {
            Some(addr) => Some(
                sockets::listen(addr).map_err(|(step, errno)| ReactorError::Listen {
                    addr,
                    step,
                    errno,
                })?,
            ),
            None => None,
        };
        let limits = Limits {
            send_low_water: options.send_low_water,
            send_limit: options.send_limit,
            linger: options.linger,
        };
        let io = Io::new(ring, pool, options.connections, limits, listener, eventfd);
        let spinner = Spinner::new(options.spin);
        Ok(Reactor {
            io,
            recv: Some(recv),
            spinner,
            completions: Vec::new(),
            notes,
        })
    }

    /// What the handler acts with; here for setting up before [`Reactor::run`].
    pub fn io(&mut self) -> &mut Io {
        &mut self.io
    }

    /// Where it listens, with the port that the kernel chose.
    pub fn local_addr(&self) -> Option<SocketAddr> {
        self.io.listener.as_ref().map(|listener| listener.addr)
    }

    /// A handle that wakes the loop from any thread.
    pub fn waker(&self) -> Waker {
        Waker::new(self.io.eventfd.clone())
    }

    /// What this reactor does without, and why: for the log.
    pub fn notes(&self) -> &[String] {
        &self.notes
    }

    /// Runs until the handler has finished.
    pub fn run(&mut self, handler: &mut impl Handler) -> Result<(), ReactorError> {
        loop {
            self.io.now = monotonic();
            self.io.expire();
            self.dispatch(handler);
            let mut completions = std::mem::take(&mut self.completions);
            self.io.ring.reap(&mut completions);
            // What came in is judged by a time that is not before it came: whoever was stopped in between must
            // not take a lease for valid that ran out meanwhile.
            self.io.now = monotonic();
            for entry in completions.drain(..) {
                self.io.complete(&entry);
                self.dispatch(handler);
            }
            self.completions = completions;
            let now = self.io.now;
            if handler.next_deadline().is_some_and(|at| at <= now) {
                handler.on_event(now, Event::Deadline, &mut self.io);
                self.dispatch(handler);
            }
            handler.on_batch(now, &mut self.io);
            self.dispatch(handler);
            self.io.arm_waker();
            self.io.settle_all();
            let finished = handler.finished();
            let wake_at = handler
                .next_deadline()
                .into_iter()
                .chain(self.io.next_timer())
                .min();
            let idle = self.io.pending.is_empty() && !finished;
            self.enter(idle, wake_at)
                .map_err(|errno| ReactorError::Enter { errno })?;
            if finished {
                return Ok(());
            }
        }
    }

    /// Tells the handler all that is to be told.
    fn dispatch(&mut self, handler: &mut impl Handler) {
        let now = self.io.now;
        while let Some(pending) = self.io.pending.pop_front() {
            match pending {
                Pending::Event(event) => {
                    if !self.is_unwanted(&event) {
                        handler.on_event(now, event, &mut self.io);
                    }
                }
                Pending::Received { conn, buffer, len } => {
                    let Some(recv) = &mut self.recv else { continue };
                    deliver(&mut self.io, handler, conn, recv.bytes(buffer, len));
                    recv.recycle(buffer);
                }
                Pending::Stash(id) => {
                    let Some(conn) = self.io.conns.get_mut(id.slot, id.generation) else {
                        continue;
                    };
                    let stash = std::mem::take(&mut conn.stash);
                    deliver(&mut self.io, handler, id, &stash);
                    let ended = self
                        .io
                        .conns
                        .get(id.slot, id.generation)
                        .is_some_and(|conn| conn.eof && conn.stash.is_empty());
                    if ended {
                        self.io.end_of_stream(id.slot);
                    }
                }
            }
        }
    }

    /// Whether the handler has let go of the connection that an event is about.
    fn is_unwanted(&self, event: &Event<'_>) -> bool {
        match *event {
            Event::Connected { conn } | Event::Filled { conn, .. } | Event::Drained { conn } => {
                self.io
                    .conns
                    .get(conn.slot, conn.generation)
                    .is_none_or(|conn| conn.quiet)
            }
            _ => false,
        }
    }

    /// Submits what is queued, and waits for news if `idle`, until `wake_at` at the latest.
    fn enter(&mut self, idle: bool, wake_at: Option<Instant>) -> Result<(), Errno> {
        if !idle {
            return self.io.ring.enter(false, None);
        }
        if let Some(limit) = self.spinner.turn() {
            self.io.ring.enter(false, None)?;
            if self.spin(limit, wake_at) {
                // What is there may still have to be fetched from the kernel.
                return self.io.ring.enter(false, None);
            }
        }
        let timeout = wake_at.map(|at| at.since(monotonic()));
        let wait = timeout != Some(Duration::ZERO);
        self.io.ring.enter(wait, timeout)
    }

    /// Spins until there is news, or for `limit`. Says whether there is.
    fn spin(&mut self, limit: Duration, wake_at: Option<Instant>) -> bool {
        let start = monotonic();
        let mut last = start;
        let mut preempted = false;
        loop {
            if self.io.ring.has_news() {
                self.spinner.learn(Outcome::Hit);
                return true;
            }
            let now = monotonic();
            preempted |= now.since(last) > PREEMPTION;
            last = now;
            if wake_at.is_some_and(|at| at <= now) {
                // Nothing to be learned from a deadline.
                return false;
            }
            if now.since(start) >= limit {
                self.spinner.learn(if preempted {
                    Outcome::Preempted
                } else {
                    Outcome::Miss
                });
                return false;
            }
            std::hint::spin_loop();
        }
    }
}

impl Drop for Reactor {
    fn drop(&mut self) {
        if !self.io.shut_down(SHUT_DOWN_PATIENCE) {
            self.io.leak();
            self.recv.take().map(Box::new).map(Box::leak);
        }
    }
}

/// Takes bytes of a stream to where they belong: the stash, the fill, the handler.
fn deliver(io: &mut Io, handler: &mut impl Handler, id: ConnId, mut data: &[u8]) {
    let now = io.now;
    while !data.is_empty() {
        let Some(conn) = io.conns.get_mut(id.slot, id.generation) else {
            return;
        };
        if conn.phase != Phase::Open || conn.quiet {
            return;
        }
        if conn.paused || !conn.stash.is_empty() {
            conn.stash.extend_from_slice(data);
            return;
        }
        let (rest, full) = conn.pour(data);
        match full {
            Some(fill) => {
                let filled = Event::Filled {
                    conn: id,
                    buf: fill.buf,
                };
                handler.on_event(now, filled, io);
            }
            // Poured away altogether, and the fill wants more.
            None if rest.is_empty() => return,
            None => {
                handler.on_event(
                    now,
                    Event::Received {
                        conn: id,
                        data: rest,
                    },
                    io,
                );
                return;
            }
        }
        data = rest;
    }
}

fn pin(cpu: usize) -> Result<(), Errno> {
    if cpu >= rustix::thread::CpuSet::MAX_CPU {
        return Err(Errno::INVAL);
    }
    let mut set = rustix::thread::CpuSet::new();
    set.set(cpu);
    rustix::thread::sched_setaffinity(None, &set)
}
