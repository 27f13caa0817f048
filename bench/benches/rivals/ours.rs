//! The reactor of `ashlar-node-reactor`.

use std::path::Path;
use std::time::{Duration, Instant};

use ashlar_node_reactor::{Chunk, Dev, Event, Handler, Io, OpenOptions, Options, Reactor};
use bytes::Bytes;

use crate::{Announce, BLOCK, announce, offset};

struct Echo;

impl Handler for Echo {
    fn on_event(&mut self, _now: ashlar_node_reactor::Instant, event: Event<'_>, io: &mut Io) {
        if let Event::Received { conn, data } = event {
            io.send(conn, Chunk::Bytes(Bytes::copy_from_slice(data)));
        }
    }

    fn next_deadline(&self) -> Option<ashlar_node_reactor::Instant> {
        None
    }

    fn finished(&self) -> bool {
        false
    }
}

pub fn echo(to: Announce) {
    let options = Options {
        listen: "127.0.0.1:0".parse().ok(),
        ..Options::default()
    };
    let mut reactor = Reactor::new(options).unwrap_or_else(|e| panic!("no reactor: {e}"));
    announce(
        &to,
        reactor.local_addr().unwrap_or_else(|| panic!("it listens")),
    );
    reactor
        .run(&mut Echo)
        .unwrap_or_else(|e| panic!("the reactor failed: {e}"));
}

struct Append {
    dev: Dev,
    count: u64,
    sent: u64,
    done: u64,
}

impl Handler for Append {
    fn on_event(&mut self, _now: ashlar_node_reactor::Instant, event: Event<'_>, io: &mut Io) {
        let Event::Device { result, buf, .. } = event else {
            return;
        };
        result.unwrap_or_else(|e| panic!("a write failed: {e}"));
        self.done += 1;
        if let (Some(buf), true) = (buf, self.sent < self.count) {
            io.write(self.dev, self.sent, offset(self.sent), buf, 0..BLOCK, true);
            self.sent += 1;
        }
    }

    fn next_deadline(&self) -> Option<ashlar_node_reactor::Instant> {
        None
    }

    fn finished(&self) -> bool {
        self.done >= self.count
    }
}

pub fn appends(path: &Path, depth: usize, count: u64) -> Duration {
    let mut reactor =
        Reactor::new(Options::default()).unwrap_or_else(|e| panic!("no reactor: {e}"));
    let io = reactor.io();
    let dev = io
        .open_device(path, OpenOptions::default())
        .unwrap_or_else(|e| panic!("the file does not open: {e}"));
    let mut handler = Append {
        dev,
        count,
        sent: 0,
        done: 0,
    };
    let begun = Instant::now();
    while handler.sent < count.min(depth as u64) {
        let mut buf = io
            .alloc(BLOCK)
            .unwrap_or_else(|| panic!("the pool is empty"));
        buf.fill(0x5a);
        io.write(dev, handler.sent, offset(handler.sent), buf, 0..BLOCK, true);
        handler.sent += 1;
    }
    reactor
        .run(&mut handler)
        .unwrap_or_else(|e| panic!("the reactor failed: {e}"));
    begun.elapsed()
}
