//! The index of a partition on a file opened for direct I/O: what loading, looking up, listing and opening
//! cost at several sizes.
//!
//! `cargo bench -p ashlar-bench --bench index -- [keys[+bytes]…]`: so many keys of objects of one stripe, or with so
//! many bytes embedded each; without an argument 10^4 and 10^6 keys, and 10^6 with 512 bytes. The file is in the
//! target folder and goes when the run ends. Everything happens on one thread, one I/O at a time: what
//! stands here is the cost of the state machine and of the device one behind the other, as a lone client sees it.

#![allow(clippy::unwrap_used, reason = "a bench that fails should stop")]

use std::fs::{File, OpenOptions};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use ashlar_cluster_index::{
    Action, Answer, Cache, Change, Config, Event, Index, Limits, List, Object, Opening, Output,
    Question,
};
use ashlar_layout::ids::{DeviceId, PartitionId, PgId, Seq, StripeId};
use ashlar_layout::manifest::{Body, Manifest, Stripe};
use ashlar_layout::page::CHUNK_MAX;
use ashlar_layout::root::Chunk;
use bytes::Bytes;
use hdrhistogram::Histogram;

const CHUNK: u64 = CHUNK_MAX as u64;
/// Chunks begin behind the roots.
const BASE: u64 = 4 * CHUNK;
const ALIGN: usize = 4096;
const BUCKET: &str = "bucket";
const FOLDER: u64 = 1000;

/// A file cut into chunks; the roots take turns in the first two.
struct Disk {
    file: File,
    free: Vec<u64>,
    slots: u64,
    buf: Vec<u8>,
    reads: u64,
    /// How often reads were waited for: those that are asked for together count once.
    waits: u64,
    written: u64,
}

impl Disk {
    fn new(path: &PathBuf) -> Self {
        let direct = i32::try_from(rustix::fs::OFlags::DIRECT.bits()).unwrap();
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(true);
        Self {
            file: options.custom_flags(direct).open(path).unwrap(),
            free: Vec::new(),
            slots: 0,
            buf: vec![0; CHUNK_MAX + ALIGN],
            reads: 0,
            waits: 0,
            written: 0,
        }
    }

    fn aligned(&mut self, len: usize) -> &mut [u8] {
        let from = self.buf.as_ptr().align_offset(ALIGN);
        &mut self.buf[from..from + len]
    }

    fn write(&mut self, at: u64, bytes: &[u8]) {
        let len = bytes.len().next_multiple_of(ALIGN);
        let buf = self.aligned(len);
        buf[..bytes.len()].copy_from_slice(bytes);
        buf[bytes.len()..].fill(0);
        let from = self.buf.as_ptr().align_offset(ALIGN);
        self.file
            .write_all_at(&self.buf[from..from + len], at)
            .unwrap();
        self.written += len as u64;
    }

    fn read(&mut self, at: u64, len: usize) -> Bytes {
        self.reads += 1;
        let from = self.buf.as_ptr().align_offset(ALIGN);
        let buf = &mut self.buf[from..from + len];
        self.file.read_exact_at(buf, at).unwrap();
        Bytes::copy_from_slice(buf)
    }

    fn carry_out(&mut self, action: Action) -> Option<Event> {
        Some(match action {
            Action::Read { token, at, len } => Event::Read {
                token,
                bytes: Some(self.read(at, len as usize)),
            },
            Action::Write { token, bytes } => {
                let slot = self.free.pop().unwrap_or_else(|| {
                    self.slots += 1;
                    self.slots - 1
                });
                let at = BASE + slot * CHUNK;
                self.write(at, &bytes);
                Event::Written {
                    token,
                    result: Ok(at),
                }
            }
            Action::Sync { token } => {
                self.file.sync_data().unwrap();
                Event::Synced { token, ok: true }
            }
            Action::WriteRoot {
                token,
                generation,
                bytes,
            } => {
                self.write(generation % 2 * CHUNK, &bytes);
                self.file.sync_data().unwrap();
                Event::RootWritten { token, ok: true }
            }
            Action::Free { chunks } => {
                let slot = |chunk: Chunk| (chunk.at - BASE) / CHUNK;
                self.free.extend(chunks.into_iter().map(slot));
                return None;
            }
            Action::Done { .. } | Action::Rooted => return None,
            Action::Damaged(error) => panic!("{error}"),
        })
    }
}

struct Rig {
    disk: Disk,
    index: Index,
    cache: Cache,
}

impl Rig {
    /// Carries everything out; the answer, if one was waited for.
    fn run(&mut self, mut actions: Vec<Action>, idle: bool) -> Option<Output> {
        let mut answer = None;
        loop {
            let reads = |action: &Action| matches!(action, Action::Read { .. });
            self.disk.waits += u64::from(actions.iter().any(reads));
            for action in std::mem::take(&mut actions) {
                match action {
                    Action::Done { result, .. } => answer = Some(result.unwrap()),
                    other => {
                        if let Some(event) = self.disk.carry_out(other) {
                            self.index.on_event(event, &mut self.cache, &mut actions);
                        }
                    }
                }
            }
            if actions.is_empty() {
                if !idle || !self.index.wants_turn() {
                    return answer;
                }
                self.index
                    .on_event(Event::Turn, &mut self.cache, &mut actions);
            }
        }
    }

    fn ask(&mut self, question: Question) -> Output {
        let mut out = Vec::new();
        match self.index.ask(question, None, &mut self.cache, &mut out) {
            Answer::Ready(result) => result.unwrap(),
            Answer::Pending(_) => self.run(out, true).unwrap(),
            Answer::Busy => panic!("busy"),
        }
    }

    fn lookup(&mut self, key: &str) -> bool {
        let mut out = Vec::new();
        let output = match self.index.lookup(BUCKET, key, &mut self.cache, &mut out) {
            Answer::Ready(result) => result.unwrap(),
            Answer::Pending(_) => self.run(out, true).unwrap(),
            Answer::Busy => panic!("busy"),
        };
        matches!(output, Output::Objects(found) if found[0].is_some())
    }

    fn freeze(&mut self) {
        let mut out = Vec::new();
        assert!(self.index.freeze(Bytes::new(), &mut out));
        self.run(out, true);
    }
}

fn config(life: u64) -> Config {
    Config {
        device: DeviceId([7; 16]),
        partition: PartitionId(1),
        life,
        extent_size: 16 << 20,
        limits: Limits::default(),
    }
}

/// The n-th of the keys, scattered over the whole range.
fn key(n: u64, keys: u64) -> String {
    // Odd and free of 5: every number below a power of ten comes once.
    let at = n.wrapping_mul(7_368_787) % keys;
    format!("folder-{:06}/object-{:09}", at / FOLDER, at)
}

/// An object of one stripe, 4+2; or of some bytes that are embedded.
fn object(n: u64, embedded: usize) -> Object {
    if embedded > 0 {
        return Object {
            modified_ms: 1_700_000_000_000 + n,
            manifest: Manifest::plain(embedded as u64, n as u32, Body::Inline),
            tag: None,
            place: None,
            payload: vec![n as u8; embedded].into(),
        };
    }
    let stripe = Stripe {
        id: StripeId {
            writer: 0x1234_5678_9abc,
            attempt: n,
        },
        pg: PgId(n as u32 % 97),
        k: 4,
        m: 2,
        data_len: 100_000,
        shard_crcs: (0..6)
            .map(|i| (n as u32).wrapping_mul(0x9e37 + i))
            .collect(),
    };
    Object {
        modified_ms: 1_700_000_000_000 + n,
        manifest: Manifest::plain(100_000, n as u32, Body::Stripes(vec![stripe])),
        tag: None,
        place: None,
        payload: Bytes::new(),
    }
}

fn load(rig: &mut Rig, keys: u64, embedded: usize) {
    let bucket = Change::PutBucket {
        bucket: BUCKET.to_owned(),
        created_ms: 1,
    };
    rig.index.apply(Seq(1), bucket).unwrap();
    for n in 0..keys {
        let put = Change::Put {
            bucket: BUCKET.to_owned(),
            key: key(n, keys),
            object: object(n, embedded),
        };
        rig.index.apply(Seq(n + 2), put).unwrap();
        if rig.index.wants_freeze() {
            rig.freeze();
        }
    }
    rig.freeze();
}

/// A turn of a small generator: the n-th of a row of numbers that look like chance.
fn scattered(n: u64) -> u64 {
    let mixed = (n + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    (mixed ^ (mixed >> 29)).wrapping_mul(0xbf58_476d_1ce4_e5b9) >> 7
}

fn timed(times: u64, mut run: impl FnMut(u64)) -> Histogram<u64> {
    let mut histogram = Histogram::new_with_bounds(1, 10_000_000_000, 3).unwrap();
    for n in 0..times {
        let began = Instant::now();
        run(n);
        histogram.saturating_record(began.elapsed().as_nanos() as u64);
    }
    histogram
}

fn show(what: &str, histogram: &Histogram<u64>, more: &str) {
    let us = |quantile| histogram.value_at_quantile(quantile) as f64 / 1000.0;
    println!(
        "  {what:<34} p50 {:>9.1} µs   p99 {:>9.1} µs   p99.9 {:>9.1} µs   {:>9.0}/s {more}",
        us(0.5),
        us(0.99),
        us(0.999),
        1e9 / histogram.mean(),
    );
}

fn open(disk: &mut Disk, life: u64) -> Index {
    let roots = [disk.read(0, CHUNK_MAX), disk.read(CHUNK, CHUNK_MAX)];
    let decode = |bytes: &Bytes| {
        let config = config(life);
        let root = ashlar_layout::root::Root::decode(bytes, config.device, config.partition);
        root.map_or(0, |root| root.generation)
    };
    let newest = roots.iter().max_by_key(|bytes| decode(bytes)).unwrap();
    let mut opening = Opening::new(config(life), Some(newest)).unwrap();
    let mut actions = Vec::new();
    let mut opened = opening.start(&mut actions);
    loop {
        if let Some(opened) = opened {
            return opened.unwrap().index;
        }
        let action = actions.pop().unwrap();
        let event = disk.carry_out(action).unwrap();
        opened = opening.on_event(event, &mut actions);
    }
}

fn page(rig: &mut Rig, prefix: String, delimiter: &str, after: String) -> usize {
    let question = Question::List(List {
        bucket: BUCKET.to_owned(),
        prefix,
        delimiter: delimiter.to_owned(),
        after,
        max: 1000,
    });
    match rig.ask(question) {
        Output::List(Some(page)) => page.objects.len() + page.prefixes.len(),
        other => panic!("{other:?}"),
    }
}

fn measure(path: &PathBuf, keys: u64, embedded: usize) {
    println!("{keys} keys, {embedded} bytes embedded");
    let mut disk = Disk::new(path);
    let zeros = vec![0; CHUNK_MAX];
    disk.write(0, &zeros);
    disk.write(CHUNK, &zeros);
    let index = Opening::new(config(1), None)
        .unwrap()
        .start(&mut Vec::new());
    let mut rig = Rig {
        disk,
        index: index.unwrap().unwrap().index,
        cache: Cache::new(32 << 20),
    };

    let began = Instant::now();
    load(&mut rig, keys, embedded);
    let took = began.elapsed();
    let stats = rig.index.stats();
    println!(
        "  load                               {:>9.0} keys/s, {:.1} s; {} runs on {} levels, {:.1} MB, {:.0} B a key",
        keys as f64 / took.as_secs_f64(),
        took.as_secs_f64(),
        stats.runs,
        stats.levels,
        stats.run_bytes as f64 / 1e6,
        stats.run_bytes as f64 / keys as f64,
    );
    println!(
        "  written for a byte of entries      {:>9.2} (flushes {:.2}, merges {:.2}); file {:.1} MB",
        (stats.bytes_flushed + stats.bytes_merged) as f64 / stats.bytes_in as f64,
        stats.bytes_flushed as f64 / stats.bytes_in as f64,
        stats.bytes_merged as f64 / stats.bytes_in as f64,
        rig.disk.slots as f64 * CHUNK as f64 / 1e6,
    );
    println!(
        "  memory of the runs                 {:>9.2} B a key",
        stats.run_memory as f64 / keys as f64
    );

    let opened = timed(5, |n| {
        let index = open(&mut rig.disk, n + 2);
        assert_eq!(index.stats().run_entries, stats.run_entries);
    });
    show("open", &opened, "");
    rig.index = open(&mut rig.disk, 100);

    let times = Duration::from_secs(2);
    let hot: Vec<String> = (0..500).map(|n| key(scattered(n) % keys, keys)).collect();
    hot.iter().for_each(|key| assert!(rig.lookup(key)));
    let hist = timed(200_000, |n| {
        assert!(rig.lookup(&hot[(scattered(n) % 500) as usize]));
    });
    show("get, 500 hot keys", &hist, "");
    let hist = timed(100_000, |n| {
        let absent = format!("folder-000000/absent-{}", scattered(n));
        assert!(!rig.lookup(&absent));
    });
    show("get, absent keys", &hist, "");
    let reads = rig.disk.reads;
    let count = 20_000.min(times.as_micros() as u64 / 100);
    let names: Vec<String> = (0..count).map(|n| key(scattered(n) % keys, keys)).collect();
    let hist = timed(count, |n| assert!(rig.lookup(&names[n as usize])));
    let reads = (rig.disk.reads - reads) as f64 / count as f64;
    show(
        "get, any key, cache of 32 MiB",
        &hist,
        &format!("{reads:.2} reads"),
    );
    let mut hist = Histogram::<u64>::new_with_bounds(1, 10_000_000_000, 3).unwrap();
    let reads = rig.disk.reads;
    for name in names.iter().take(5000) {
        rig.cache.clear();
        let began = Instant::now();
        assert!(rig.lookup(name));
        hist.saturating_record(began.elapsed().as_nanos() as u64);
    }
    let reads = (rig.disk.reads - reads) as f64 / hist.len() as f64;
    show("get, nothing cached", &hist, &format!("{reads:.2} reads"));

    for (what, cold) in [
        ("list 1000, cached", false),
        ("list 1000, nothing cached", true),
    ] {
        let mut hist = Histogram::<u64>::new_with_bounds(1, 10_000_000_000, 3).unwrap();
        let (reads, waits) = (rig.disk.reads, rig.disk.waits);
        let mut items = 0;
        for n in 0..500 {
            let near = if cold {
                scattered(n) % keys
            } else {
                5000 + n % 2 * 1000
            };
            let at = near.min(keys - keys / 5);
            let after = format!("folder-{:06}/object-{:09}", at / FOLDER, at);
            if cold {
                rig.cache.clear();
            }
            let began = Instant::now();
            items += page(&mut rig, String::new(), "", after);
            hist.saturating_record(began.elapsed().as_nanos() as u64);
        }
        let each = |count: u64| count as f64 / hist.len() as f64;
        let (reads, waits) = (each(rig.disk.reads - reads), each(rig.disk.waits - waits));
        let items = items as f64 / hist.len() as f64;
        show(
            what,
            &hist,
            &format!("{items:.0} items, {reads:.1} reads, {waits:.1} waits"),
        );
    }
    for (what, cold) in [
        ("list by /, cached", false),
        ("list by /, nothing cached", true),
    ] {
        let mut hist = Histogram::<u64>::new_with_bounds(1, 10_000_000_000, 3).unwrap();
        let reads = rig.disk.reads;
        let mut items = 0;
        for _ in 0..20 {
            if cold {
                rig.cache.clear();
            }
            let began = Instant::now();
            items += page(&mut rig, String::new(), "/", String::new());
            hist.saturating_record(began.elapsed().as_nanos() as u64);
        }
        let reads = (rig.disk.reads - reads) as f64 / hist.len() as f64;
        let items = items as f64 / hist.len() as f64;
        show(what, &hist, &format!("{items:.0} items, {reads:.1} reads"));
    }
}

fn main() {
    let size = |arg: &str| -> Option<(u64, usize)> {
        match arg.split_once('+') {
            Some((keys, embedded)) => Some((keys.parse().ok()?, embedded.parse().ok()?)),
            None => Some((arg.parse().ok()?, 0)),
        }
    };
    let given: Vec<(u64, usize)> = std::env::args().filter_map(|arg| size(&arg)).collect();
    let sizes = if given.is_empty() {
        vec![(10_000, 0), (1_000_000, 0), (1_000_000, 512)]
    } else {
        given
    };
    let path = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("index-bench");
    for (keys, embedded) in sizes {
        measure(&path, keys, embedded);
        std::fs::remove_file(&path).unwrap();
    }
}
