//! Our reactor beside its rivals: monoio, glommio and tokio, each as its makers would use it.
//!
//! Two pieces of work. *Echo*: 64 bytes each way over 32 connections, one server thread on processor 0, the
//! same client on processor 1; beside the time, the server's processor time per request. *Append*: durable
//! direct writes of 4 KiB to a file that has been written before, one or 32 at a time, also by bare threads.
//!
//! `cargo bench -p ashlar-bench --features rivals`; `ASHLAR_BENCH_DIR` says on which disk to append.

mod glommio_rival;
mod monoio_rival;
mod ours;
mod tokio_rival;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::time::{Duration, Instant};

use ashlar_bench::disk::{self, Aligned};
use ashlar_bench::echo::EchoClient;
use ashlar_bench::{baseline, cpu};
use criterion::{BenchmarkId, Criterion, Throughput};

/// Bytes of one append.
const BLOCK: usize = 4096;
/// Bytes of the file that is appended to, round and round.
const FILE: u64 = 256 << 20;
const CONNECTIONS: usize = 32;

/// An echo server on a thread of its own; it lives as long as the process.
struct Server {
    address: SocketAddr,
    thread: i32,
}

/// Says where a server listens and which thread it is.
type Announce = SyncSender<(SocketAddr, i32)>;
/// Runs an echo server, for ever.
type Serve = fn(Announce);
/// Appends so often, so many at a time, and tells how long that took.
type Append = fn(&Path, usize, u64) -> Duration;

fn start(serve: Serve) -> Server {
    let (announce, announced) = sync_channel(1);
    std::thread::spawn(move || {
        cpu::pin(0);
        serve(announce);
    });
    let (address, thread) = announced
        .recv()
        .unwrap_or_else(|_| panic!("the server did not start"));
    Server { address, thread }
}

fn announce(announce: &Announce, address: SocketAddr) {
    let thread = rustix::thread::gettid().as_raw_nonzero().get();
    announce
        .send((address, thread))
        .unwrap_or_else(|_| panic!("nobody waits for the server"));
}

/// Where the next append goes.
fn offset(number: u64) -> u64 {
    (number * BLOCK as u64) % FILE
}

fn echo(c: &mut Criterion) {
    let mut group = c.benchmark_group("echo-64b");
    group.throughput(Throughput::Elements(1));
    let rivals: [(&str, Serve); 4] = [
        ("ours", ours::echo),
        ("monoio", monoio_rival::echo),
        ("glommio", glommio_rival::echo),
        ("tokio", tokio_rival::echo),
    ];
    cpu::pin(1);
    for (name, serve) in rivals {
        let server = start(serve);
        let mut client = EchoClient::connect(server.address, CONNECTIONS)
            .unwrap_or_else(|e| panic!("{name}: {e}"));
        let (mut requests, before) = (0u64, cpu::of_thread(server.thread).unwrap_or_default());
        group.bench_function(name, |b| {
            b.iter_custom(|iterations| {
                let begun = Instant::now();
                client
                    .run(iterations)
                    .unwrap_or_else(|e| panic!("{name}: {e}"));
                requests += iterations;
                begun.elapsed()
            });
        });
        let used = cpu::of_thread(server.thread)
            .unwrap_or_default()
            .saturating_sub(before);
        let per_request = used.as_secs_f64() * 1e6 / requests.max(1) as f64;
        println!("echo-64b/{name}: {per_request:.2} us of the server's processor per request");
    }
    group.finish();
}

/// The bare machine: threads that write and wait.
fn bare_appends(path: &Path, depth: usize, count: u64) -> Duration {
    let file = disk::open_durable(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let begun = Instant::now();
    std::thread::scope(|scope| {
        for lane in 0..depth as u64 {
            let file = &file;
            scope.spawn(move || {
                let block = Aligned::filled(BLOCK);
                for number in (lane..count).step_by(depth) {
                    std::os::unix::fs::FileExt::write_all_at(file, &block, offset(number))
                        .unwrap_or_else(|e| panic!("a bare write failed: {e}"));
                }
            });
        }
    });
    begun.elapsed()
}

fn appends(c: &mut Criterion) {
    let folder =
        std::env::var_os("ASHLAR_BENCH_DIR").map_or_else(std::env::temp_dir, PathBuf::from);
    let path = folder.join(format!("ashlar-rivals-{}", std::process::id()));
    disk::prepare(&path, FILE).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let rivals: [(&str, Append); 5] = [
        ("bare", bare_appends),
        ("ours", ours::appends),
        ("monoio", monoio_rival::appends),
        ("glommio", glommio_rival::appends),
        ("tokio", tokio_rival::appends),
    ];
    for depth in [1usize, 32] {
        let mut group = c.benchmark_group(format!("append-4k-qd{depth}"));
        group.throughput(Throughput::Elements(1));
        for (name, append) in rivals {
            group.bench_function(BenchmarkId::from_parameter(name), |b| {
                b.iter_custom(|iterations| append(&path, depth, iterations));
            });
        }
        group.finish();
    }
    let _ = std::fs::remove_file(&path);
}

fn main() {
    let round_trip = baseline::tcp_round_trip(64, Duration::from_secs(1));
    if let Ok(round_trip) = round_trip {
        let us = baseline::micros(&round_trip, 0.5);
        println!("bare TCP round trip of 64 bytes, two sleeping threads: {us:.1} us");
    }
    let mut criterion = Criterion::default()
        .sample_size(20)
        .warm_up_time(Duration::from_millis(500))
        .measurement_time(Duration::from_secs(3))
        .configure_from_args();
    echo(&mut criterion);
    appends(&mut criterion);
    criterion.final_summary();
}
