//! The world as one node sees it: what its core asks of the reactor, kept until the world carries it out.
//!
//! Invariants:
//! - nothing happens while the core is in charge: what it asks for becomes a [`Wish`], and what comes of it an
//!   event of a later batch;
//! - a connection's bytes are given out in order, into the buffer that the core named if it named one, and none while
//!   it is paused;
//! - after `Closed` nothing of a connection is told, nor after the core has closed it, but `Closed`.

use std::cell::Cell;
use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::ops::Range;
use std::path::Path;
use std::rc::Rc;

use ashlar_node_reactor::{
    Buf, Chunk, ConnId, ConnectError, Dev, DeviceInfo, DeviceIoError, DeviceKind, DeviceOperation,
    Driver, Errno, Event, Handler, Instant, OpenError, OpenOptions,
};
use bytes::{Buf as _, Bytes};

use crate::net;

/// Bytes that a kernel takes off a sender's hands before the receiver has them.
const KERNEL_BYTES: usize = 1 << 20;
/// As [`ashlar_node_reactor::Options`] has them.
const LOW_WATER: usize = 256 << 10;

/// What a core wants done.
pub enum Wish {
    /// Call somebody.
    Connect(ConnId, SocketAddr),
    /// Send bytes.
    Send(ConnId, Bytes),
    /// End a connection once all is sent.
    Close(ConnId),
    /// Cut it off.
    Abort(ConnId),
    /// Do something to a device.
    Device {
        /// Which of the node's, if it is open,
        device: Option<usize>,
        /// in which opening.
        dev: Dev,
        /// The core's name for it.
        token: u64,
        /// What.
        job: Job,
    },
}

/// What is to be done to a device.
pub enum Job {
    /// Write a part of a buffer.
    Write {
        /// Where.
        offset: u64,
        /// What, and which part of it.
        buf: Buf,
        /// Which part.
        range: Range<usize>,
        /// Whether it is to be durable when it ends.
        durable: bool,
    },
    /// Read into a part of a buffer.
    Read {
        /// Where.
        offset: u64,
        /// To where.
        buf: Buf,
        /// Which part of it.
        range: Range<usize>,
    },
    /// Make durable what was written.
    Flush,
}

/// What has happened to a node and is not told yet.
pub enum News {
    /// Somebody calls.
    Accepted(ConnId),
    /// A call is answered.
    Connected(ConnId),
    /// Bytes came.
    Bytes(ConnId, Bytes),
    /// So much of what was sent has arrived that there is room for more.
    Drained(ConnId),
    /// It is over.
    Closed(ConnId, Option<Errno>),
    /// A device is done.
    Device {
        /// The core's name for it.
        token: u64,
        /// What came of it.
        result: Result<usize, DeviceIoError>,
        /// Its buffer.
        buf: Option<Buf>,
    },
    /// A time has come, or somebody woke the core.
    Time,
}

#[derive(Default)]
struct Socket {
    /// Came, and is not told yet.
    inbox: VecDeque<Bytes>,
    fill: Option<(Buf, usize, usize)>,
    paused: bool,
    /// Closed by the core: nothing but the end is told.
    quiet: bool,
    /// The other side has ended it, and this is told behind the last byte.
    ended: Option<Option<Errno>>,
    /// Sent and not arrived.
    flying: usize,
    was_high: bool,
}

/// A device as its core may open it.
pub struct Place {
    /// What it says of itself.
    pub info: DeviceInfo,
    /// Nobody can open it.
    pub gone: bool,
    open: Option<Dev>,
}

/// One node's side of the world.
pub struct Port {
    /// The node's time.
    pub now: Instant,
    /// What its wall clock is ahead by, in milliseconds.
    pub wall_ms: u64,
    /// When its process was started, in milliseconds: a wall clock goes on over that.
    pub born_ms: u64,
    /// Its devices, by path.
    pub places: Vec<Place>,
    /// What its core wants, in order.
    pub wishes: Vec<Wish>,
    wires: Rc<Cell<u32>>,
    sockets: BTreeMap<ConnId, Socket>,
    openings: u32,
}

impl Port {
    /// The port of a node with these devices. `wires` numbers the connections of all.
    pub fn new(infos: Vec<DeviceInfo>, wires: Rc<Cell<u32>>) -> Port {
        let place = |info| Place {
            info,
            gone: false,
            open: None,
        };
        Port {
            now: Instant(1),
            wall_ms: 0,
            born_ms: 0,
            places: infos.into_iter().map(place).collect(),
            wishes: Vec::new(),
            wires,
            sockets: BTreeMap::new(),
            openings: 0,
        }
    }

    /// The process is gone, and all that it had with it.
    pub fn reset(&mut self) {
        self.wishes.clear();
        self.sockets.clear();
        for place in &mut self.places {
            place.open = None;
        }
    }

    /// Whether the process still has this opening of a device.
    pub fn has_open(&self, device: usize, dev: Dev) -> bool {
        self.places[device].open == Some(dev)
    }

    /// Tells the core one thing.
    pub fn tell(&mut self, core: &mut impl Handler<Port>, news: News) {
        let now = self.now;
        match news {
            News::Accepted(conn) => {
                self.sockets.insert(conn, Socket::default());
                let peer = SocketAddr::from(([127, 0, 0, 1], 1));
                core.on_event(now, Event::Accepted { conn, peer }, self);
            }
            News::Connected(conn) => {
                if self.sockets.get(&conn).is_some_and(|it| !it.quiet) {
                    core.on_event(now, Event::Connected { conn }, self);
                }
            }
            News::Bytes(conn, bytes) => {
                if let Some(socket) = self.sockets.get_mut(&conn)
                    && !socket.quiet
                {
                    socket.inbox.push_back(bytes);
                    self.give(core, conn);
                }
            }
            News::Drained(conn) => {
                if let Some(socket) = self.sockets.get_mut(&conn)
                    && !socket.quiet
                {
                    core.on_event(now, Event::Drained { conn }, self);
                }
            }
            News::Closed(conn, error) => {
                if let Some(socket) = self.sockets.get_mut(&conn) {
                    socket.ended = Some(error);
                    self.give(core, conn);
                }
            }
            News::Device { token, result, buf } => {
                core.on_event(now, Event::Device { token, result, buf }, self);
            }
            News::Time => core.on_event(now, Event::Deadline, self),
        }
    }

    /// So many of the bytes that were sent have arrived; whether the core is to be told that there is room.
    pub fn arrived(&mut self, conn: ConnId, bytes: usize) -> bool {
        let Some(socket) = self.sockets.get_mut(&conn) else {
            return false;
        };
        socket.flying = socket.flying.saturating_sub(bytes);
        let queued = socket.flying.saturating_sub(KERNEL_BYTES);
        let drained = socket.was_high && queued <= LOW_WATER;
        socket.was_high &= !drained;
        drained
    }

    /// Gives what the core resumed the reading of.
    pub fn give_resumed(&mut self, core: &mut impl Handler<Port>) {
        let waits = |socket: &Socket| !socket.inbox.is_empty() && !socket.paused;
        let resumed = self.sockets.iter().filter(|(_, socket)| waits(socket));
        let resumed: Vec<ConnId> = resumed.map(|(conn, _)| *conn).collect();
        for conn in resumed {
            self.give(core, conn);
        }
    }

    /// Gives out what came on a connection, as far as it is wanted, and its end behind that.
    fn give(&mut self, core: &mut impl Handler<Port>, conn: ConnId) {
        let now = self.now;
        while let Some(socket) = self.sockets.get_mut(&conn) {
            if socket.quiet {
                socket.inbox.clear();
            } else if let Some((mut buf, at, to)) = socket.fill.take() {
                if at == to {
                    core.on_event(now, Event::Filled { conn, buf }, self);
                    continue;
                }
                let Some(bytes) = socket.inbox.front_mut() else {
                    socket.fill = Some((buf, at, to));
                    break;
                };
                let n = bytes.len().min(to - at);
                buf[at..at + n].copy_from_slice(&bytes[..n]);
                bytes.advance(n);
                if bytes.is_empty() {
                    socket.inbox.pop_front();
                }
                if at + n == to {
                    core.on_event(now, Event::Filled { conn, buf }, self);
                } else {
                    socket.fill = Some((buf, at + n, to));
                }
                continue;
            }
            if socket.paused && !socket.quiet {
                return;
            }
            let Some(bytes) = socket.inbox.pop_front() else {
                break;
            };
            let data = &bytes[..];
            core.on_event(now, Event::Received { conn, data }, self);
        }
        let ended = self.sockets.get(&conn).and_then(|socket| socket.ended);
        if let Some(error) = ended {
            self.sockets.remove(&conn);
            core.on_event(now, Event::Closed { conn, error }, self);
        }
    }

    fn device(&self, dev: Dev) -> Option<usize> {
        self.places.iter().position(|it| it.open == Some(dev))
    }

    fn begin(&mut self, dev: Dev, token: u64, job: Job) {
        // One that is not open is answered by the world as well: nothing is told from in here.
        let device = self.device(dev);
        self.wishes.push(Wish::Device {
            device,
            dev,
            token,
            job,
        });
    }
}

impl Job {
    /// What the reactor calls it.
    pub fn operation(&self) -> DeviceOperation {
        match self {
            Job::Write { durable: true, .. } => DeviceOperation::WriteDurable,
            Job::Write { .. } => DeviceOperation::Write,
            Job::Read { .. } => DeviceOperation::Read,
            Job::Flush => DeviceOperation::Flush,
        }
    }

    /// Where, and how much.
    pub fn place(&self) -> (u64, usize) {
        match self {
            Job::Write { offset, range, .. } | Job::Read { offset, range, .. } => {
                (*offset, range.len())
            }
            Job::Flush => (0, 0),
        }
    }

    /// The buffer, back.
    pub fn into_buf(self) -> Option<Buf> {
        match self {
            Job::Write { buf, .. } | Job::Read { buf, .. } => Some(buf),
            Job::Flush => None,
        }
    }
}

/// What a simulated disk says of itself.
pub fn disk_info(path: &str, size: u64, logical_block: u32, volatile_cache: bool) -> DeviceInfo {
    DeviceInfo {
        path: path.to_owned(),
        kind: DeviceKind::Block,
        size,
        logical_block,
        physical_block: 4096,
        volatile_cache,
        polling: false,
        loop_direct: None,
    }
}

impl Driver for Port {
    fn wall_ms(&self) -> u64 {
        self.wall_ms + self.born_ms + self.now.0 / 1_000_000
    }

    fn open_device(&mut self, path: &Path, _: OpenOptions) -> Result<Dev, OpenError> {
        let name = path.to_string_lossy();
        let failed = |errno| OpenError::System {
            path: path.to_owned(),
            step: "open",
            errno,
        };
        let place = self.places.iter_mut().find(|it| it.info.path == name);
        let place = place.ok_or(failed(Errno::NOENT))?;
        if place.gone {
            return Err(failed(Errno::NODEV));
        }
        if place.open.is_some() {
            return Err(OpenError::Busy {
                path: path.to_owned(),
            });
        }
        self.openings += 1;
        let dev = Dev::new(0, self.openings);
        place.open = Some(dev);
        Ok(dev)
    }

    fn close_device(&mut self, dev: Dev) {
        if let Some(device) = self.device(dev) {
            self.places[device].open = None;
        }
    }

    fn device_info(&self, dev: Dev) -> Option<&DeviceInfo> {
        Some(&self.places[self.device(dev)?].info)
    }

    fn write(
        &mut self,
        dev: Dev,
        token: u64,
        offset: u64,
        buf: Buf,
        range: Range<usize>,
        durable: bool,
    ) {
        let job = Job::Write {
            offset,
            buf,
            range,
            durable,
        };
        self.begin(dev, token, job);
    }

    fn read(&mut self, dev: Dev, token: u64, offset: u64, buf: Buf, range: Range<usize>) {
        self.begin(dev, token, Job::Read { offset, buf, range });
    }

    fn flush(&mut self, dev: Dev, token: u64) {
        self.begin(dev, token, Job::Flush);
    }

    fn connect(&mut self, addr: SocketAddr) -> Result<ConnId, ConnectError> {
        let wire = self.wires.get();
        self.wires.set(wire + 1);
        let conn = net::name(wire, 0);
        self.sockets.insert(conn, Socket::default());
        self.wishes.push(Wish::Connect(conn, addr));
        Ok(conn)
    }

    fn send(&mut self, conn: ConnId, chunk: Chunk) {
        let Some(socket) = self.sockets.get_mut(&conn) else {
            return;
        };
        if socket.quiet || chunk.is_empty() {
            return;
        }
        socket.flying += chunk.len();
        socket.was_high |= socket.flying > KERNEL_BYTES + LOW_WATER;
        let bytes = match chunk {
            Chunk::Bytes(bytes) => bytes,
            Chunk::Buf(buf, range) => Bytes::copy_from_slice(&buf[range]),
        };
        self.wishes.push(Wish::Send(conn, bytes));
    }

    fn send_first(&mut self) {}

    fn queued(&self, conn: ConnId) -> usize {
        let flying = self.sockets.get(&conn).map_or(0, |socket| socket.flying);
        flying.saturating_sub(KERNEL_BYTES)
    }

    fn close(&mut self, conn: ConnId) {
        if let Some(socket) = self.sockets.get_mut(&conn)
            && !std::mem::replace(&mut socket.quiet, true)
        {
            self.wishes.push(Wish::Close(conn));
        }
    }

    fn abort(&mut self, conn: ConnId) {
        if let Some(socket) = self.sockets.get_mut(&conn) {
            socket.quiet = true;
            self.wishes.push(Wish::Abort(conn));
        }
    }

    fn recv_into(&mut self, conn: ConnId, buf: Buf, from: usize, to: usize) {
        if let Some(socket) = self.sockets.get_mut(&conn)
            && !socket.quiet
        {
            socket.fill = Some((buf, from, to));
        }
    }

    fn pause(&mut self, conn: ConnId) {
        if let Some(socket) = self.sockets.get_mut(&conn) {
            socket.paused = true;
        }
    }

    fn resume(&mut self, conn: ConnId) {
        if let Some(socket) = self.sockets.get_mut(&conn) {
            socket.paused = false;
        }
    }
}
