//! Connections: what a handler may do with them, and what their completions mean.
//!
//! Invariants:
//! - `settle` is the only place that starts or cancels an operation of a connection, and it runs
//!   once per batch for each connection that changed (once more after a `send_first`): so sends
//!   coalesce, and a `recv_into` that the same batch satisfies costs nothing.
//! - A connection's last event is `Closed`, sent when the kernel has let go of it.
//! - At the end of the peer's stream, what we have queued is still sent; an end in the middle of a
//!   fill is `ECONNRESET`.

use std::net::SocketAddr;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::time::Duration;

use ashlar_layout::time::Instant;
use io_uring::{cqueue, opcode, types};
use rustix::io::Errno;
use rustix::net::{self, AddressFamily, Shutdown, SocketAddrAny, SocketFlags, SocketType};

use crate::conn::{Conn, Fill, Phase, Reading};
use crate::disk::DEVICES_MAX;
use crate::error::ConnectError;
use crate::event::{Chunk, ConnId, Event};
use crate::io::{Io, Pending};
use crate::pool::Buf;
use crate::ring::{File, Kind, Tag, on_file};

/// How long to wait before accepting again after the kernel refused to (descriptors used up, for
/// one).
const ACCEPT_RETRY: Duration = Duration::from_millis(100);

/// How connections are limited; see [`crate::Options`].
pub(crate) struct Limits {
    pub(crate) send_low_water: usize,
    pub(crate) send_limit: usize,
    pub(crate) linger: Duration,
}

/// The listening socket.
pub(crate) struct Listener {
    pub(crate) fd: OwnedFd,
    pub(crate) addr: SocketAddr,
    pub(crate) armed: bool,
    pub(crate) retry_at: Option<Instant>,
}

/// A closed connection that still sends, or waits for its peer: when to look at it again.
pub(crate) struct Linger {
    pub(crate) at: Instant,
    conn: ConnId,
    sent_total: u64,
}

/// Opens a socket and listens.
pub(crate) fn listen(addr: SocketAddr) -> Result<Listener, (&'static str, Errno)> {
    let fd = stream_socket(addr).map_err(|errno| ("socket", errno))?;
    net::sockopt::set_socket_reuseaddr(&fd, true).map_err(|errno| ("SO_REUSEADDR", errno))?;
    net::bind(&fd, &addr).map_err(|errno| ("bind", errno))?;
    net::listen(&fd, 1024).map_err(|errno| ("listen", errno))?;
    let actual = net::getsockname(&fd).map_err(|errno| ("getsockname", errno))?;
    let addr = SocketAddr::try_from(actual).map_err(|errno| ("getsockname", errno))?;
    Ok(Listener {
        fd,
        addr,
        armed: false,
        retry_at: None,
    })
}

fn stream_socket(addr: SocketAddr) -> Result<OwnedFd, Errno> {
    let family = if addr.is_ipv4() {
        AddressFamily::INET
    } else {
        AddressFamily::INET6
    };
    // Not non-blocking: io_uring would take that to mean EAGAIN instead of waiting.
    net::socket_with(family, SocketType::STREAM, SocketFlags::CLOEXEC, None)
}

/// How long bytes that this side sent on a connection that it made may stay unconfirmed before it is given
/// up, in milliseconds. The kernel's own waits double each time: behind a cut that is mended they would go on
/// for as long again as the cut lasted.
const UNCONFIRMED_MAX_MS: u32 = 400;

/// Small replies must not wait for acknowledgements, and a peer that vanished must be noticed in
/// the end.
fn tune(fd: &OwnedFd) -> Result<(), Errno> {
    net::sockopt::set_tcp_nodelay(fd, true)?;
    net::sockopt::set_socket_keepalive(fd, true)?;
    net::sockopt::set_tcp_keepidle(fd, Duration::from_secs(30))?;
    net::sockopt::set_tcp_keepintvl(fd, Duration::from_secs(10))?;
    net::sockopt::set_tcp_keepcnt(fd, 3)
}

impl Io {
    /// Begins to connect. [`Event::Connected`] or [`Event::Closed`] follows; what is sent before
    /// waits.
    pub fn connect(&mut self, addr: SocketAddr) -> Result<ConnId, ConnectError> {
        let fail = |errno| ConnectError { addr, errno };
        if self.conns.vacancy().is_none() {
            return Err(fail(Errno::NFILE));
        }
        let fd = stream_socket(addr).map_err(fail)?;
        tune(&fd).map_err(fail)?;
        net::sockopt::set_tcp_user_timeout(&fd, UNCONFIRMED_MAX_MS).map_err(fail)?;
        let id = self
            .add_conn(fd, Phase::Connecting)
            .ok_or(fail(Errno::NFILE))?;
        let Some(conn) = self.conns.at(id.slot) else {
            return Err(fail(Errno::NFILE));
        };
        let target = conn.target.insert(Box::new(SocketAddrAny::from(addr)));
        let (pointer, len) = (target.as_ptr(), target.addr_len());
        let operation = on_file!(conn.file, fd =>
            opcode::Connect::new(fd, pointer.cast(), len).build());
        let operation = operation.user_data(conn.tag(Kind::Connect));
        conn.operations += 1;
        // SAFETY: the address is boxed in the `Conn`, which lives until `operations` is zero.
        unsafe { self.ring.push(operation) };
        Ok(id)
    }

    /// Queues a chunk, in order. All that a batch queues for a connection goes out together.
    pub fn send(&mut self, conn: ConnId, chunk: impl Into<Chunk>) {
        let chunk = chunk.into();
        let (low, limit) = (self.limits.send_low_water, self.limits.send_limit);
        let Some(conn) = self.conns.get_mut(conn.slot, conn.generation) else {
            return;
        };
        if chunk.is_empty() || conn.quiet || conn.phase > Phase::Open {
            return;
        }
        conn.queued += chunk.len();
        conn.queue.push_back(chunk);
        conn.was_high |= conn.queued > low;
        let id = conn.id;
        if conn.queued > limit {
            self.fail(id.slot, Errno::NOBUFS);
        }
        self.touch(id.slot);
    }

    /// Puts what is queued to be sent in front of whatever the rest of the batch asks for. The kernel
    /// begins operations in their order, and to begin a write to a device takes it longer than a
    /// small send.
    pub fn send_first(&mut self) {
        self.settle_all();
    }

    /// Bytes queued on a connection and not yet taken by the kernel.
    pub fn queued(&self, conn: ConnId) -> usize {
        self.conns
            .get(conn.slot, conn.generation)
            .map_or(0, |conn| conn.queued)
    }

    /// Closes a connection once what is queued is sent. Nothing but [`Event::Closed`] follows.
    ///
    /// A peer that neither takes the rest nor ends its stream within [`crate::Options::linger`] is
    /// cut off.
    pub fn close(&mut self, conn: ConnId) {
        let Some(conn) = self.conns.get_mut(conn.slot, conn.generation) else {
            return;
        };
        conn.quiet = true;
        let id = conn.id;
        match conn.phase {
            // What is queued is still sent, if the peer answers in time.
            Phase::Connecting => self.start_lingering(id.slot),
            Phase::Open => self.start_closing(id.slot),
            Phase::Closing | Phase::Lingering | Phase::Dead => {}
        }
        self.touch(id.slot);
    }

    /// Cuts a connection off, whatever is queued. Nothing but [`Event::Closed`] follows.
    pub fn abort(&mut self, conn: ConnId) {
        let Some(conn) = self.conns.get_mut(conn.slot, conn.generation) else {
            return;
        };
        conn.quiet = true;
        conn.phase = Phase::Dead;
        let slot = conn.id.slot;
        self.touch(slot);
    }

    /// The next bytes of the stream land in `buf[from..to]`; then [`Event::Filled`] brings the
    /// buffer back. If the connection ends before, the buffer goes back to the pool.
    ///
    /// # Panics
    /// If the range is not within the buffer, or the last fill is not complete yet.
    pub fn recv_into(&mut self, conn: ConnId, buf: Buf, from: usize, to: usize) {
        assert!(
            from <= to && to <= buf.len(),
            "{from}..{to} of a buffer of {}",
            buf.len()
        );
        let Some(conn) = self.conns.get_mut(conn.slot, conn.generation) else {
            return;
        };
        if conn.quiet || conn.phase > Phase::Open {
            return;
        }
        assert!(
            conn.fill.is_none(),
            "{:?} is already filling a buffer",
            conn.id
        );
        let id = conn.id;
        if from == to {
            self.pending
                .push_back(Pending::Event(Event::Filled { conn: id, buf }));
            return;
        }
        conn.fill = Some(Fill { buf, at: from, to });
        self.touch(id.slot);
    }

    /// Stops reading, so that the peer's sends back up: no [`Event::Received`] before
    /// [`Io::resume`]. (A fill that is complete already is still told.)
    pub fn pause(&mut self, conn: ConnId) {
        let Some(conn) = self.conns.get_mut(conn.slot, conn.generation) else {
            return;
        };
        conn.paused = true;
        let slot = conn.id.slot;
        self.touch(slot);
    }

    /// Reads again.
    pub fn resume(&mut self, conn: ConnId) {
        let Some(conn) = self.conns.get_mut(conn.slot, conn.generation) else {
            return;
        };
        if !conn.paused {
            return;
        }
        conn.paused = false;
        let id = conn.id;
        if !conn.stash.is_empty() || conn.eof {
            self.pending.push_back(Pending::Stash(id));
        }
        self.touch(id.slot);
    }

    fn add_conn(&mut self, fd: OwnedFd, phase: Phase) -> Option<ConnId> {
        let (slot, generation) = self.conns.vacancy()?;
        let id = ConnId { slot, generation };
        // The table of registered files begins with the devices.
        let file = self.ring.register_file(DEVICES_MAX + slot, fd.as_raw_fd());
        self.conns
            .insert(Box::new(Conn::new(id, fd, file, phase)))?;
        self.touch(slot);
        Some(id)
    }

    /// Notes that a connection changed.
    fn touch(&mut self, slot: u32) {
        if let Some(conn) = self.conns.at(slot)
            && !conn.dirty
        {
            conn.dirty = true;
            self.dirty.push(slot);
        }
    }

    /// Ends a connection because of an error.
    fn fail(&mut self, slot: u32, errno: Errno) {
        if let Some(conn) = self.conns.at(slot) {
            if conn.phase < Phase::Dead {
                conn.phase = Phase::Dead;
                conn.error = Some(errno);
            }
            self.touch(slot);
        }
    }

    fn start_closing(&mut self, slot: u32) {
        if let Some(conn) = self.conns.at(slot) {
            conn.phase = Phase::Closing;
            // Only the kernel may still want the buffer of a fill; an idle one can go.
            if conn.reading != Reading::Fill {
                conn.fill = None;
            }
            conn.stash = Vec::new();
            self.start_lingering(slot);
        }
    }

    /// From now on the connection must move something within each `linger`, or it is cut off.
    fn start_lingering(&mut self, slot: u32) {
        let at = self.now + self.limits.linger;
        if let Some(conn) = self.conns.at(slot) {
            let linger = Linger {
                at,
                conn: conn.id,
                sent_total: conn.sent_total,
            };
            self.lingering.push_back(linger);
        }
    }

    /// The peer has ended its stream, and all that it sent has been delivered.
    pub(crate) fn end_of_stream(&mut self, slot: u32) {
        let Some(conn) = self.conns.at(slot) else {
            return;
        };
        match conn.phase {
            Phase::Open if conn.fill.is_some() => self.fail(slot, Errno::CONNRESET),
            Phase::Open => {
                self.start_closing(slot);
                self.touch(slot);
            }
            _ => self.touch(slot),
        }
    }

    /// Brings what is under way on each changed connection in line with what ought to be.
    pub(crate) fn settle_all(&mut self) {
        while let Some(slot) = self.dirty.pop() {
            self.settle(slot);
        }
        self.settle_listener();
    }

    fn settle(&mut self, slot: u32) {
        let Some(conn) = self.conns.at(slot) else {
            return;
        };
        conn.dirty = false;
        if conn.phase <= Phase::Closing
            && conn.phase > Phase::Connecting
            && !conn.sending
            && !conn.queue.is_empty()
        {
            conn.sending = true;
            conn.operations += 1;
            let operation = conn.send_operation();
            // SAFETY: the chunks stay in the queue, and the queue, like the vector, in the boxed
            // `Conn`, until the completion has been seen (`sending`, `operations`).
            unsafe { self.ring.push(operation) };
        }
        if conn.phase == Phase::Closing && conn.queue.is_empty() {
            // Closing at once would reset the connection if the peer has sent something that we
            // did not read, and the reset could overtake our last bytes.
            conn.phase = match net::shutdown(&conn.fd, Shutdown::Write) {
                Ok(()) => Phase::Lingering,
                Err(_) => Phase::Dead,
            };
        }
        if conn.phase == Phase::Lingering && conn.eof {
            conn.phase = Phase::Dead;
        }
        if conn.phase == Phase::Dead {
            self.settle_dead(slot);
            return;
        }
        match (conn.reading, conn.wanted()) {
            (Reading::Nothing, Reading::Multi) => {
                conn.reading = Reading::Multi;
                conn.operations += 1;
                let operation = conn.multi_operation();
                // SAFETY: it points to nothing; the buffers it takes are the receive ring's,
                // which outlives all operations.
                unsafe { self.ring.push(operation) };
            }
            (Reading::Nothing, Reading::Fill) => {
                if let Some(operation) = conn.fill_operation() {
                    conn.reading = Reading::Fill;
                    conn.operations += 1;
                    // SAFETY: the buffer is in the `Conn`'s fill, where nobody touches it while
                    // `reading` is `Fill`, and lives until the completion (`operations`).
                    unsafe { self.ring.push(operation) };
                }
            }
            (reading, wanted) if reading != wanted && !conn.stopping => {
                conn.stopping = true;
                let kind = if reading == Reading::Fill {
                    Kind::Fill
                } else {
                    Kind::Recv
                };
                let operation = opcode::AsyncCancel::new(conn.tag(kind)).build();
                let operation = operation.user_data(conn.tag(Kind::CancelRecv));
                // SAFETY: it points to nothing.
                unsafe { self.ring.push(operation) };
            }
            _ => {}
        }
    }

    /// Ends what is under way on a dead connection; buries it once nothing is.
    fn settle_dead(&mut self, slot: u32) {
        let Some(conn) = self.conns.at(slot) else {
            return;
        };
        if conn.operations > 0 {
            if conn.cancelled {
                return;
            }
            conn.cancelled = true;
            let builder = match conn.file {
                File::Plain(raw) => types::CancelBuilder::fd(types::Fd(raw)),
                File::Fixed(index) => types::CancelBuilder::fd(types::Fixed(index)),
            };
            let operation = opcode::AsyncCancel2::new(builder.all()).build();
            let operation = operation.user_data(conn.tag(Kind::Cancel));
            // SAFETY: it points to nothing.
            unsafe { self.ring.push(operation) };
            // Whatever the cancel misses ends by itself on a socket that is shut.
            let _ = net::shutdown(&conn.fd, Shutdown::Both);
            return;
        }
        if let Some(conn) = self.conns.remove(slot) {
            if conn.queued > 0 || conn.error.is_some() {
                // Cut off: say so to the peer by a reset instead of leaving it to guess.
                let _ = net::sockopt::set_socket_linger(&conn.fd, Some(Duration::ZERO));
            }
            self.ring.unregister_file(conn.file);
            let closed = Event::Closed {
                conn: conn.id,
                error: conn.error,
            };
            self.pending.push_back(Pending::Event(closed));
        }
    }

    fn settle_listener(&mut self) {
        let now = self.now;
        let Some(listener) = &mut self.listener else {
            return;
        };
        if listener.armed || listener.retry_at.is_some_and(|at| at > now) {
            return;
        }
        listener.retry_at = None;
        listener.armed = true;
        let fd = types::Fd(listener.fd.as_raw_fd());
        let operation = opcode::AcceptMulti::new(fd)
            .flags(libc::SOCK_CLOEXEC)
            .build();
        let operation = operation.user_data(Tag::new(Kind::Accept, 0, 0).pack());
        // SAFETY: it points to nothing; the descriptor stays open as long as `Io`.
        unsafe { self.ring.push(operation) };
    }

    /// When `expire` has something to do next.
    pub(crate) fn next_timer(&self) -> Option<Instant> {
        let linger = self.lingering.front().map(|linger| linger.at);
        let accept = self
            .listener
            .as_ref()
            .and_then(|listener| listener.retry_at);
        linger.into_iter().chain(accept).min()
    }

    /// Cuts off closed connections whose peer does nothing.
    pub(crate) fn expire(&mut self) {
        while let Some(linger) = self.lingering.pop_front_if(|linger| linger.at <= self.now) {
            let id = linger.conn;
            let Some(conn) = self.conns.get_mut(id.slot, id.generation) else {
                continue;
            };
            if conn.sent_total > linger.sent_total {
                let at = self.now + self.limits.linger;
                let sent_total = conn.sent_total;
                self.lingering.push_back(Linger {
                    at,
                    conn: id,
                    sent_total,
                });
            } else if conn.queued > 0 {
                self.fail(id.slot, Errno::TIMEDOUT);
            } else if conn.phase < Phase::Dead {
                conn.phase = Phase::Dead;
                self.touch(id.slot);
            }
        }
    }

    pub(crate) fn on_accept(&mut self, result: Result<u32, Errno>, flags: u32) {
        let now = self.now;
        if let Some(listener) = &mut self.listener
            && !cqueue::more(flags)
        {
            listener.armed = false;
            if result.is_err() {
                listener.retry_at = Some(now + ACCEPT_RETRY);
            }
        }
        let Ok(raw) = result else { return };
        // SAFETY: the kernel made this descriptor for this completion; nobody else has it.
        let fd = unsafe { OwnedFd::from_raw_fd(raw.cast_signed()) };
        // A peer that is gone again has no name any more: drop it, and likewise one too many.
        let name = net::getpeername(&fd).ok().flatten();
        let Some(peer) = name.and_then(|addr| SocketAddr::try_from(addr).ok()) else {
            return;
        };
        if tune(&fd).is_err() {
            return;
        }
        if let Some(conn) = self.add_conn(fd, Phase::Open) {
            self.pending
                .push_back(Pending::Event(Event::Accepted { conn, peer }));
        }
    }

    pub(crate) fn on_connect(&mut self, slot: u32, result: Result<u32, Errno>) {
        let Some(conn) = self.conns.at(slot) else {
            return;
        };
        conn.operations -= 1;
        conn.target = None;
        let id = conn.id;
        match result {
            Ok(_) if conn.phase == Phase::Connecting && conn.quiet => self.start_closing(slot),
            Ok(_) if conn.phase == Phase::Connecting => {
                conn.phase = Phase::Open;
                self.pending
                    .push_back(Pending::Event(Event::Connected { conn: id }));
            }
            Ok(_) => {}
            Err(errno) => self.fail(slot, errno),
        }
        self.touch(slot);
    }

    pub(crate) fn on_send(&mut self, slot: u32, result: Result<u32, Errno>) {
        let low = self.limits.send_low_water;
        let Some(conn) = self.conns.at(slot) else {
            return;
        };
        conn.operations -= 1;
        conn.sending = false;
        let id = conn.id;
        match result {
            Ok(0) => self.fail(slot, Errno::PIPE),
            Ok(sent) => {
                conn.consume(sent as usize);
                if conn.was_high && conn.queued <= low {
                    conn.was_high = false;
                    self.pending
                        .push_back(Pending::Event(Event::Drained { conn: id }));
                }
            }
            Err(Errno::INTR | Errno::AGAIN) => {}
            Err(errno) => self.fail(slot, errno),
        }
        self.touch(slot);
    }

    pub(crate) fn on_recv(&mut self, slot: u32, result: Result<u32, Errno>, flags: u32) {
        let Some(conn) = self.conns.at(slot) else {
            return;
        };
        let id = conn.id;
        if !cqueue::more(flags) {
            conn.operations -= 1;
            conn.reading = Reading::Nothing;
            conn.stopping = false;
        }
        if let Some(buffer) = cqueue::buffer_select(flags) {
            let len = result.unwrap_or(0) as usize;
            self.pending.push_back(Pending::Received {
                conn: id,
                buffer,
                len,
            });
        }
        match result {
            Ok(0) => self.on_end(slot),
            Ok(_) => {}
            // No buffer was free for a moment (they are by the end of the batch), or it was
            // cancelled.
            Err(Errno::NOBUFS | Errno::CANCELED | Errno::INTR | Errno::AGAIN) => {}
            Err(errno) => self.fail(slot, errno),
        }
        self.touch(slot);
    }

    pub(crate) fn on_fill(&mut self, slot: u32, result: Result<u32, Errno>) {
        let Some(conn) = self.conns.at(slot) else {
            return;
        };
        let id = conn.id;
        conn.operations -= 1;
        conn.reading = Reading::Nothing;
        conn.stopping = false;
        match result {
            Ok(0) => self.on_end(slot),
            Ok(got) => {
                if let Some(fill) = &mut conn.fill {
                    fill.at += got as usize;
                    if fill.left() == 0
                        && let Some(fill) = conn.fill.take()
                    {
                        let filled = Event::Filled {
                            conn: id,
                            buf: fill.buf,
                        };
                        self.pending.push_back(Pending::Event(filled));
                    }
                }
            }
            Err(Errno::CANCELED | Errno::INTR | Errno::AGAIN) => {}
            Err(errno) => self.fail(slot, errno),
        }
        self.touch(slot);
    }

    fn on_end(&mut self, slot: u32) {
        let Some(conn) = self.conns.at(slot) else {
            return;
        };
        conn.eof = true;
        // The end is told after the data, which waits in the stash while the handler pauses.
        if conn.stash.is_empty() {
            self.end_of_stream(slot);
        }
    }

    pub(crate) fn on_cancel_recv(&mut self, tag: Tag, result: Result<u32, Errno>) {
        // The receive was not there to be cancelled. Its own completion is then on its way and
        // tells the rest; should it be alive after all, `settle` must be free to try again.
        if result == Err(Errno::NOENT)
            && let Some(conn) = self.conns.at(tag.slot)
            && tag.is_of(conn.id.generation)
            && conn.reading != Reading::Nothing
        {
            conn.stopping = false;
            self.touch(tag.slot);
        }
    }
}
