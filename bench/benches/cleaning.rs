//! What cleaning costs: write amplification at several fill levels, and an append beside it.
//!
//! `cargo bench -p ashlar-bench --bench cleaning -- [device MiB [shard KiB]]`; without arguments 512 and 64. The engine
//! owns a file in the target folder, opened for direct I/O, and four threads carry out its I/O. Shards are overwritten
//! uniformly at random (the new one written, then an old one deleted) until three times the live bytes were written;
//! the write amplification is that of the last two thirds. Appends wait one for the other; in turns of some hundred the
//! cleaner works, or does not, so that both medians are of the same minute.

#![allow(clippy::unwrap_used, reason = "a bench that fails should stop")]

use std::fs::File;
use std::ops::{Deref, DerefMut};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use ashlar_bench::disk::{Aligned, open_durable, prepare};
use ashlar_layout::ids::{ClusterId, DeviceId, DeviceNo, NodeId, ShardId, StripeId};
use ashlar_layout::time::Instant;
use ashlar_node_engine::api::{Action, Event, Memory, Output};
use ashlar_node_engine::engine::Engine;
use ashlar_node_engine::error::EngineError;
use ashlar_node_engine::format::{FormatParams, format_plan};
use ashlar_node_engine::opening::{OpenParams, Opening};
use hdrhistogram::Histogram;

const EXTENT: u64 = 16 << 20;
const THREADS: usize = 4;
/// More I/Os than an engine has under way here.
const DEPTH: usize = 1024;
/// Overwrites for which the cleaner works, or does not.
const TURN: u64 = 200;
const NOW: Instant = Instant(0);

struct Bytes(Aligned);

impl Deref for Bytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.0
    }
}

impl DerefMut for Bytes {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.0
    }
}

struct Heap;

impl Memory for Heap {
    type Buf = Bytes;

    fn alloc(&mut self, len: usize) -> Option<Bytes> {
        Some(Bytes(Aligned::filled(len.next_multiple_of(4096))))
    }
}

/// The device: I/Os go to threads and come back in any order. (Each write is durable, so a flush has nothing to do.)
struct Device {
    ask: SyncSender<Action<Bytes>>,
    done: Receiver<Event<Bytes>>,
    flying: usize,
}

fn carry_out(file: &File, action: Action<Bytes>) -> Option<Event<Bytes>> {
    let done = |io, buf| Event::IoDone {
        io,
        result: Ok(()),
        buf,
    };
    match action {
        Action::Write {
            io,
            offset,
            buf,
            len,
            ..
        } => {
            file.write_all_at(&buf[..len], offset).unwrap();
            Some(done(io, Some(buf)))
        }
        Action::Read {
            io,
            offset,
            mut buf,
            len,
        } => {
            file.read_exact_at(&mut buf[..len], offset).unwrap();
            Some(done(io, Some(buf)))
        }
        Action::Flush { io } => Some(done(io, None)),
        _ => None,
    }
}

impl Device {
    fn new(path: &Path) -> Device {
        let (ask, asked) = sync_channel(DEPTH);
        let (tell, done) = sync_channel(DEPTH);
        let asked = Arc::new(Mutex::new(asked));
        for _ in 0..THREADS {
            let (asked, tell) = (Arc::clone(&asked), tell.clone());
            let file = open_durable(path).unwrap();
            std::thread::spawn(move || {
                loop {
                    let action = asked.lock().unwrap().recv();
                    let Ok(action) = action else { return };
                    if let Some(event) = carry_out(&file, action) {
                        let _ = tell.send(event);
                    }
                }
            });
        }
        Device {
            ask,
            done,
            flying: 0,
        }
    }

    fn begin(&mut self, action: Action<Bytes>) {
        self.flying += 1;
        self.ask.send(action).unwrap();
    }

    fn wait(&mut self) -> Event<Bytes> {
        self.flying -= 1;
        self.done.recv().unwrap()
    }
}

struct Store {
    device: Device,
    engine: Engine<Heap>,
    heap: Heap,
    answered: Option<Result<Output<Bytes>, EngineError>>,
}

impl Store {
    fn open(path: &Path, size: u64) -> Store {
        let cluster = ClusterId([1; 16]);
        let id = DeviceId([2; 16]);
        let plan = format_plan(&FormatParams {
            cluster,
            device: id,
            device_size: size,
            block_size: 4096,
            extent_size: EXTENT,
            node: NodeId(1),
            device_no: DeviceNo(1),
            labels: Default::default(),
            first_number: 1,
        });
        let file = open_durable(path).unwrap();
        for (offset, bytes) in plan.unwrap() {
            let mut block = Aligned::filled(bytes.len().next_multiple_of(4096));
            block.fill(0);
            block[..bytes.len()].copy_from_slice(&bytes);
            file.write_all_at(&block, offset).unwrap();
        }
        let mut device = Device::new(path);
        let mut heap = Heap;
        let mut opening = Opening::new(OpenParams {
            cluster,
            device: Some(id),
            device_size: size,
            logical_block: 4096,
            volatile_cache: false,
        });
        let mut out = Vec::new();
        let mut ended = opening.start(&mut heap, &mut out);
        loop {
            out.drain(..).for_each(|action| device.begin(action));
            if let Some(opened) = ended {
                let engine = opened.unwrap().engine;
                return Store {
                    device,
                    engine,
                    heap,
                    answered: None,
                };
            }
            let event = device.wait();
            ended = opening.on_event(NOW, event, &mut heap, &mut out);
        }
    }

    fn take(&mut self, out: Vec<Action<Bytes>>) {
        for action in out {
            match action {
                Action::Done { result, .. } => self.answered = Some(result),
                Action::Fenced { error } => panic!("{error}"),
                Action::Finding(finding) => panic!("{finding}"),
                io => self.device.begin(io),
            }
        }
    }

    fn event(&mut self, event: Event<Bytes>) {
        let mut out = Vec::new();
        self.engine.on_event(NOW, event, &mut self.heap, &mut out);
        self.engine.kick(NOW, &mut self.heap, &mut out);
        self.take(out);
    }

    /// Does one operation to its end; how long that took, or nothing if the device was too full.
    fn finish(&mut self, event: Event<Bytes>) -> Option<Duration> {
        let start = std::time::Instant::now();
        self.answered = None;
        self.event(event);
        while self.answered.is_none() {
            let event = self.device.wait();
            self.event(event);
        }
        let took = start.elapsed();
        match self.answered.take().unwrap() {
            Ok(_) => Some(took),
            Err(EngineError::DeviceFull { .. }) => None,
            Err(error) => panic!("{error}"),
        }
    }

    fn write(&mut self, number: u64, payload: &[u8]) -> Option<Duration> {
        let len = payload.len() as u32;
        let head = self.engine.header_len(len) as usize;
        let record = self.engine.record_len(len) as usize;
        let mut buf = self.heap.alloc(record).unwrap();
        buf[head..head + payload.len()].copy_from_slice(payload);
        self.finish(Event::WriteShard {
            op: 1,
            shard: shard(number),
            buf,
            payload_len: len,
            payload_crc: crc32fast::hash(payload),
        })
    }

    fn settle(&mut self) {
        while self.device.flying > 0 {
            let event = self.device.wait();
            self.event(event);
        }
    }
}

fn shard(number: u64) -> ShardId {
    ShardId {
        stripe: StripeId {
            writer: 1,
            attempt: number,
        },
        index: 0,
    }
}

fn main() {
    let mut sizes = std::env::args().skip(1).filter_map(|arg| arg.parse().ok());
    let size: u64 = sizes.next().unwrap_or(512) << 20;
    let len = sizes.next().unwrap_or(64) << 10;
    let path = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("cleaning.bench");
    println!(
        "{} MiB, extents of 16 MiB, shards of {} KiB",
        size >> 20,
        len >> 10
    );
    println!(
        "live of what shards may take | written for each byte | extents cleaned | \
         append alone, beside (us) | ratio | refused"
    );
    for percent in [50, 70, 85] {
        prepare(&path, size).unwrap();
        run(&path, size, len as usize, percent);
    }
    std::fs::remove_file(&path).unwrap();
}

fn run(path: &Path, size: u64, len: usize, percent: u64) {
    let mut store = Store::open(path, size);
    let payload = vec![0xa7; len];
    let stats = store.engine.stats();
    let extents = u64::from(stats.extents_total - stats.extents_reserved);
    let count = extents * EXTENT * percent / 100 / store.engine.record_len(len as u32);
    let mut live: Vec<u64> = (0..count).collect();
    for number in 0..count {
        store.write(number, &payload).unwrap();
    }
    let mut refused = 0;
    let mut random = 0x9e37_79b9_7f4a_7c15u64 ^ percent;
    let mut took = [
        Histogram::<u64>::new(3).unwrap(),
        Histogram::<u64>::new(3).unwrap(),
    ];
    let mut before = store.engine.cleaned();
    for next in count..3 * count {
        if next == count + 2 * count / 3 {
            before = store.engine.cleaned();
        }
        // Beside the cleaner's turns there are those without it, as long as there is room.
        let free = store.engine.room();
        let rests = next / TURN % 2 == 1 && free.free > free.reserved + 1;
        store.engine.clean_from(rests.then_some(0));
        if rests && next.is_multiple_of(TURN) {
            store.settle();
        }
        let extents_before = store.engine.cleaned().bytes;
        let Some(append) = store.write(next, &payload) else {
            refused += 1;
            continue;
        };
        let cleans = store.engine.cleaned().bytes > extents_before;
        if rests != cleans {
            let nanos = u64::try_from(append.as_nanos()).unwrap();
            took[usize::from(cleans)].record(nanos).unwrap();
        }
        random = random
            .wrapping_mul(0x5851_f42d_4c95_7f2d)
            .wrapping_add(0x1405_7b7e_f767_814f);
        let at = (random >> 33) as usize % live.len();
        let old = std::mem::replace(&mut live[at], next);
        store
            .finish(Event::DeleteShard {
                op: 2,
                shard: shard(old),
            })
            .unwrap();
    }
    let after = store.engine.cleaned();
    let appended = after.appended - before.appended;
    let copied = after.bytes - before.bytes;
    let median = took
        .each_ref()
        .map(|took| took.value_at_quantile(0.5) as f64 / 1000.0);
    println!(
        "{percent} % | {:.2} | {} | {:.0}, {:.0} ({} and {} of them) | {:.2} | {refused}",
        (appended + copied) as f64 / appended as f64,
        after.extents - before.extents,
        median[0],
        median[1],
        took[0].len(),
        took[1].len(),
        median[1] / median[0]
    );
}
