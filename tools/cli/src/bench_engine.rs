//! The engine under load, as a node would run it: real reactor, real engine, one device.
//!
//! Invariants:
//! - a fixed number of operations is under way at any time of the measurement; the next begins when one ends;
//! - an operation's time runs from handing it to the engine to the engine's answer; an append's answer
//!   means durable, a read's means verified;
//! - nothing is measured before the device is open, and an error ends the measurement, never counts in it.

use std::collections::HashMap;
use std::path::Path;
use std::time::Duration;

use ashlar_layout::crc::crc32;
use ashlar_layout::ids::{ClusterId, ShardId, StripeId};
use ashlar_layout::time::Instant;
use ashlar_node_engine::api::{self, Action, IoFailure, Memory, Output};
use ashlar_node_engine::engine::Engine;
use ashlar_node_engine::error::EngineError;
use ashlar_node_engine::opening::{OpenParams, Opened, Opening};
use ashlar_node_reactor::{
    Buf, Dev, Event, Handler, Io, OpenOptions, Options, Pool, Reactor, monotonic,
};
use hdrhistogram::Histogram;

use crate::fail::Fail;

/// Bytes of the buffer pool: room for the deepest work, and for what the engine needs itself.
const POOL_BYTES: usize = 64 << 20;

/// What the engine is to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Load {
    /// Append shards, numbered from this one on.
    Append {
        /// The first one's number.
        first: u64,
        /// Stop after so many.
        count: u64,
    },
    /// Read any of the first so many shards.
    Read {
        /// So many.
        shards: u64,
    },
}

/// How it went.
pub struct Measured {
    /// Operations that ended well.
    pub operations: u64,
    /// From the first one's beginning to the last one's end.
    pub elapsed: Duration,
    /// Nanoseconds per operation.
    pub latency: Histogram<u64>,
}

struct PoolMemory(Pool);

impl Memory for PoolMemory {
    type Buf = Buf;

    fn alloc(&mut self, len: usize) -> Option<Buf> {
        self.0.alloc(len)
    }
}

/// One run on one device.
pub struct Run<'a> {
    /// Where it is; formatted.
    pub path: &'a Path,
    /// The cluster that it was formatted for.
    pub cluster: ClusterId,
    /// What to do.
    pub load: Load,
    /// Bytes of each shard.
    pub payload: u32,
    /// Operations under way at once.
    pub depth: u32,
    /// For how long.
    pub limit: Duration,
    /// For the choice of shards.
    pub seed: u64,
}

impl Run<'_> {
    /// Opens the device, puts the load on it, and closes it in order.
    pub fn run(&self) -> Result<Measured, Fail> {
        let failed = |what: String| Fail::Refused(format!("{}: {what}", self.path.display()));
        // A short spin, as on a node that has a core for each data core.
        let options = Options {
            pool_bytes: POOL_BYTES,
            spin: Duration::from_micros(50),
            ..Options::default()
        };
        let mut reactor = Reactor::new(options).map_err(|e| failed(e.to_string()))?;
        let io = reactor.io();
        let dev = io
            .open_device(self.path, OpenOptions::default())
            .map_err(|e| Fail::Refused(e.to_string()))?;
        let info = io
            .device_info(dev)
            .ok_or_else(|| failed("it closed while it was opened".into()))?;
        let params = OpenParams {
            cluster: self.cluster,
            device: None,
            device_size: info.size,
            logical_block: info.logical_block,
            volatile_cache: info.volatile_cache,
        };
        let latency = histogram()?;
        let mut payload = vec![0u8; self.payload as usize];
        fill(&mut payload, self.seed);
        let mut bench = Bench {
            memory: PoolMemory(io.pool()),
            dev,
            state: State::Opening(Box::new(Opening::new(params))),
            load: self.load,
            payload_crc: crc32(&payload),
            payload,
            depth: self.depth as usize,
            limit: self.limit,
            random: self.seed | 1,
            issued: 0,
            begun: HashMap::new(),
            start: None,
            end: Instant::default(),
            latency,
            full: false,
            failure: None,
            closed: false,
        };
        let mut actions = Vec::new();
        let now = io.now();
        let ended = match &mut bench.state {
            State::Opening(opening) => opening.start(&mut bench.memory, &mut actions),
            _ => None,
        };
        bench.carry_out(actions, io);
        bench.opened(ended, now, io);
        reactor.run(&mut bench).map_err(|e| failed(e.to_string()))?;
        reactor.io().close_device(dev);
        if let Some(what) = bench.failure {
            return Err(failed(what));
        }
        Ok(Measured {
            operations: bench.latency.len(),
            elapsed: bench
                .start
                .map_or(Duration::ZERO, |start| bench.end.since(start)),
            latency: bench.latency,
        })
    }
}

/// For latencies of up to a minute, three digits exact.
pub fn histogram() -> Result<Histogram<u64>, Fail> {
    Histogram::new_with_bounds(1, 60_000_000_000, 3).map_err(|e| Fail::Refused(e.to_string()))
}

/// Bytes that no device compresses away.
fn fill(bytes: &mut [u8], seed: u64) {
    let mut state = seed | 1;
    for chunk in bytes.chunks_mut(8) {
        let word = xorshift(&mut state).to_le_bytes();
        chunk.copy_from_slice(&word[..chunk.len()]);
    }
}

fn xorshift(state: &mut u64) -> u64 {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    *state
}

fn shard(number: u64) -> ShardId {
    ShardId {
        stripe: StripeId {
            writer: 0xbe9c,
            attempt: number,
        },
        index: 0,
    }
}

enum State {
    Opening(Box<Opening<PoolMemory>>),
    Loaded(Box<Engine<PoolMemory>>),
    Failed,
}

struct Bench {
    memory: PoolMemory,
    dev: Dev,
    state: State,
    load: Load,
    payload: Vec<u8>,
    payload_crc: u32,
    depth: usize,
    limit: Duration,
    random: u64,
    issued: u64,
    begun: HashMap<u64, Instant>,
    start: Option<Instant>,
    end: Instant,
    latency: Histogram<u64>,
    full: bool,
    failure: Option<String>,
    closed: bool,
}

/// The number of the operation that ends it all.
const SHUTDOWN: u64 = u64::MAX;

impl Bench {
    fn fail(&mut self, what: String) {
        self.failure.get_or_insert(what);
        self.closed = true;
    }

    fn opened(
        &mut self,
        ended: Option<Result<Opened<PoolMemory>, ashlar_node_engine::error::OpenError>>,
        now: Instant,
        io: &mut Io,
    ) {
        match ended {
            None => {}
            Some(Ok(opened)) => {
                self.state = State::Loaded(Box::new(opened.engine));
                self.start = Some(monotonic());
                self.top_up(now, io);
            }
            Some(Err(e)) => {
                self.state = State::Failed;
                self.fail(e.to_string());
            }
        }
    }

    /// Whether another operation is to be begun.
    fn goes_on(&self) -> bool {
        let in_time = self
            .start
            .is_some_and(|start| monotonic().since(start) < self.limit);
        let in_count = match self.load {
            Load::Append { count, .. } => self.issued < count,
            Load::Read { .. } => true,
        };
        in_time && in_count && !self.full && self.failure.is_none()
    }

    /// Keeps the depth; when all is done, closes the device in order.
    fn top_up(&mut self, now: Instant, io: &mut Io) {
        while self.begun.len() < self.depth && self.goes_on() {
            let op = self.issued;
            let event = match self.load {
                Load::Append { first, .. } => match self.append(op, first + op) {
                    Some(event) => event,
                    None if self.begun.is_empty() => {
                        return self.fail("the buffer pool is too small".into());
                    }
                    None => break,
                },
                Load::Read { shards } => {
                    let number = xorshift(&mut self.random) % shards.max(1);
                    api::Event::ReadShard {
                        op,
                        shard: shard(number),
                        offset: 0,
                        len: u32::MAX,
                    }
                }
            };
            self.issued += 1;
            self.begun.insert(op, monotonic());
            self.engine(event, now, io);
        }
        if self.begun.is_empty() && !self.goes_on() && !self.closed {
            self.closed = true;
            self.begun.insert(SHUTDOWN, now);
            self.engine(api::Event::Shutdown { op: SHUTDOWN }, now, io);
        }
    }

    fn append(&mut self, op: u64, number: u64) -> Option<api::Event<Buf>> {
        let State::Loaded(engine) = &self.state else {
            return None;
        };
        let room = engine.header_len(self.payload.len() as u32) as usize;
        let len = engine.record_len(self.payload.len() as u32) as usize;
        let mut buf = self.memory.alloc(len)?;
        // On a node the socket's bytes land here.
        let (payload, padding) = buf.get_mut(room..len)?.split_at_mut(self.payload.len());
        payload.copy_from_slice(&self.payload);
        padding.fill(0);
        Some(api::Event::WriteShard {
            op,
            shard: shard(number),
            buf,
            payload_len: self.payload.len() as u32,
            payload_crc: self.payload_crc,
        })
    }

    fn engine(&mut self, event: api::Event<Buf>, now: Instant, io: &mut Io) {
        let mut actions = Vec::new();
        if let State::Loaded(engine) = &mut self.state {
            engine.on_event(now, event, &mut self.memory, &mut actions);
        }
        self.carry_out(actions, io);
    }

    fn carry_out(&mut self, actions: Vec<Action<Buf>>, io: &mut Io) {
        for action in actions {
            match action {
                Action::Write {
                    io: token,
                    offset,
                    buf,
                    len,
                    durable,
                } => {
                    io.write(self.dev, token, offset, buf, 0..len, durable);
                }
                Action::Read {
                    io: token,
                    offset,
                    buf,
                    len,
                } => {
                    io.read(self.dev, token, offset, buf, 0..len);
                }
                Action::Flush { io: token } => io.flush(self.dev, token),
                Action::Done { op, result } => self.done(op, result),
                Action::Finding(finding) => self.fail(format!("finding: {finding}")),
                Action::Fenced { error } => self.fail(error.to_string()),
            }
        }
    }

    fn done(&mut self, op: u64, result: Result<Output<Buf>, EngineError>) {
        let Some(begun) = self.begun.remove(&op) else {
            return;
        };
        match result {
            Ok(_) if op == SHUTDOWN => {}
            Ok(_) => {
                self.end = monotonic();
                let nanos = u64::try_from(self.end.since(begun).as_nanos()).unwrap_or(u64::MAX);
                self.latency.saturating_record(nanos);
            }
            Err(EngineError::DeviceFull { .. }) => self.full = true,
            Err(e) => self.fail(e.to_string()),
        }
    }
}

impl Handler for Bench {
    fn on_event(&mut self, now: Instant, event: Event<'_>, io: &mut Io) {
        let Event::Device { token, result, buf } = event else {
            return;
        };
        let result = result.map(|_| ()).map_err(|e| {
            self.failure.get_or_insert(e.to_string());
            IoFailure {
                errno: rustix::io::Errno::IO.raw_os_error(),
            }
        });
        let event = api::Event::IoDone {
            io: token,
            result,
            buf,
        };
        let State::Opening(opening) = &mut self.state else {
            return self.engine(event, now, io);
        };
        let mut actions = Vec::new();
        let ended = opening.on_event(now, event, &mut self.memory, &mut actions);
        self.carry_out(actions, io);
        self.opened(ended, now, io);
    }

    fn on_batch(&mut self, now: Instant, io: &mut Io) {
        if !matches!(self.state, State::Loaded(_)) {
            return;
        }
        // What is answered at once (a full device) makes room for, or an end to, what follows; that goes
        // out with another kick, since no event need come to bring one.
        loop {
            self.top_up(now, io);
            let mut actions = Vec::new();
            if let State::Loaded(engine) = &mut self.state {
                engine.kick(now, &mut self.memory, &mut actions);
            }
            if actions.is_empty() {
                return;
            }
            self.carry_out(actions, io);
        }
    }

    fn next_deadline(&self) -> Option<Instant> {
        // The first turn has nothing to wait for if all was answered while it was being started.
        None
    }

    fn finished(&self) -> bool {
        (self.closed && self.begun.is_empty()) || self.failure.is_some()
    }
}
