//! What the machine gives with nothing in between: the other side of every ratio.

use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;

use crate::disk::{self, Aligned};

/// A quantile of latencies in nanoseconds, in microseconds.
pub fn micros(latencies: &Histogram<u64>, quantile: f64) -> f64 {
    latencies.value_at_quantile(quantile) as f64 / 1e3
}

/// Latencies in nanoseconds, to three digits.
pub fn histogram() -> Histogram<u64> {
    // The only failure is of the digits, which are right here.
    // Bounds must be given: one that resizes itself does not do so when it saturates.
    Histogram::new_with_bounds(1, 100_000_000_000, 3)
        .unwrap_or_else(|_| unreachable!("these bounds and digits are allowed"))
}

/// Round trips of `len` bytes each way over loopback, one at a time, between two blocking threads.
pub fn tcp_round_trip(len: usize, time: Duration) -> io::Result<Histogram<u64>> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let address = listener.local_addr()?;
    let server = std::thread::spawn(move || -> io::Result<()> {
        let (mut stream, _) = listener.accept()?;
        stream.set_nodelay(true)?;
        let mut buffer = vec![0u8; len];
        while stream.read_exact(&mut buffer).is_ok() {
            stream.write_all(&buffer)?;
        }
        Ok(())
    });
    let mut stream = TcpStream::connect(address)?;
    stream.set_nodelay(true)?;
    let mut buffer = vec![1u8; len];
    let mut latencies = histogram();
    let end = Instant::now() + time;
    while Instant::now() < end {
        let begun = Instant::now();
        stream.write_all(&buffer)?;
        stream.read_exact(&mut buffer)?;
        latencies.saturating_record(nanos(begun.elapsed()));
    }
    drop(stream);
    server
        .join()
        .unwrap_or_else(|_| Err(io::Error::other("the echo server panicked")))?;
    Ok(latencies)
}

/// What a put takes at least where every thread sleeps: a head forwards `len` bytes to a follower,
/// both make them durable at the same time, each in its prepared file, the follower says so, and the
/// head answers. Blocking threads, one put at a time, as [`tcp_round_trip`].
pub fn chain_put(files: [&Path; 2], len: usize, time: Duration) -> io::Result<Histogram<u64>> {
    let (head_listener, follower_listener) = (
        TcpListener::bind("127.0.0.1:0")?,
        TcpListener::bind("127.0.0.1:0")?,
    );
    let (head_at, follower_at) = (head_listener.local_addr()?, follower_listener.local_addr()?);
    let [head_file, follower_file] = [disk::open_durable(files[0])?, disk::open_durable(files[1])?];
    let slots = (head_file
        .metadata()?
        .len()
        .min(follower_file.metadata()?.len())
        / len as u64)
        .max(1);
    let follower = std::thread::spawn(move || -> io::Result<()> {
        let (mut head, _) = follower_listener.accept()?;
        head.set_nodelay(true)?;
        let (mut buffer, block) = (vec![0u8; len], Aligned::filled(len));
        let mut slot = 0;
        while head.read_exact(&mut buffer).is_ok() {
            follower_file.write_all_at(&block, slot * len as u64)?;
            head.write_all(&[1])?;
            slot = (slot + 1) % slots;
        }
        Ok(())
    });
    let head = std::thread::spawn(move || -> io::Result<()> {
        let (mut client, _) = head_listener.accept()?;
        client.set_nodelay(true)?;
        let mut follower = TcpStream::connect(follower_at)?;
        follower.set_nodelay(true)?;
        let (mut buffer, block) = (vec![0u8; len], Aligned::filled(len));
        let mut slot = 0;
        while client.read_exact(&mut buffer).is_ok() {
            follower.write_all(&buffer)?;
            head_file.write_all_at(&block, slot * len as u64)?;
            follower.read_exact(&mut [0])?;
            client.write_all(&[1])?;
            slot = (slot + 1) % slots;
        }
        Ok(())
    });
    let mut client = TcpStream::connect(head_at)?;
    client.set_nodelay(true)?;
    let buffer = vec![1u8; len];
    let mut latencies = histogram();
    let end = Instant::now() + time;
    while Instant::now() < end {
        let begun = Instant::now();
        client.write_all(&buffer)?;
        client.read_exact(&mut [0])?;
        latencies.saturating_record(nanos(begun.elapsed()));
    }
    drop(client);
    for thread in [head, follower] {
        thread
            .join()
            .unwrap_or_else(|_| Err(io::Error::other("a replica panicked")))?;
    }
    Ok(latencies)
}

/// Durable direct overwrites of `len` bytes in a prepared file, one at a time.
pub fn durable_write(path: &Path, len: usize, time: Duration) -> io::Result<Histogram<u64>> {
    let file = disk::open_durable(path)?;
    let size = file.metadata()?.len();
    let block = Aligned::filled(len);
    let slots = (size / len as u64).max(1);
    let mut latencies = histogram();
    let end = Instant::now() + time;
    let mut slot = 0;
    while Instant::now() < end {
        let begun = Instant::now();
        file.write_all_at(&block, slot * len as u64)?;
        latencies.saturating_record(nanos(begun.elapsed()));
        slot = (slot + 1) % slots;
    }
    Ok(latencies)
}

/// Bytes per second of durable direct overwrites of `len` bytes, `depth` of them at a time.
pub fn durable_bandwidth(path: &Path, len: usize, depth: u64, time: Duration) -> io::Result<f64> {
    let file = disk::open_durable(path)?;
    let slots = (file.metadata()?.len() / len as u64 / depth).max(1);
    let begun = Instant::now();
    let writes: io::Result<u64> = std::thread::scope(|scope| {
        let worker = |lane: u64| {
            let file = &file;
            move || -> io::Result<u64> {
                let block = Aligned::filled(len);
                let mut writes = 0;
                while begun.elapsed() < time {
                    file.write_all_at(&block, (lane * slots + writes % slots) * len as u64)?;
                    writes += 1;
                }
                Ok(writes)
            }
        };
        let lanes: Vec<_> = (0..depth).map(|lane| scope.spawn(worker(lane))).collect();
        let join = |lane: std::thread::ScopedJoinHandle<'_, io::Result<u64>>| {
            lane.join()
                .unwrap_or_else(|_| Err(io::Error::other("a writer panicked")))
        };
        lanes.into_iter().map(join).sum()
    });
    Ok(writes? as f64 * len as f64 / begun.elapsed().as_secs_f64())
}

/// Direct reads of `len` bytes at scattered places of a prepared file, one at a time.
pub fn direct_read(path: &Path, len: usize, time: Duration) -> io::Result<Histogram<u64>> {
    let file = disk::open_durable(path)?;
    let size = file.metadata()?.len();
    let mut block = Aligned::filled(len);
    let slots = (size / len as u64).max(1);
    let mut latencies = histogram();
    let end = Instant::now() + time;
    let mut slot = 0u64;
    while Instant::now() < end {
        let begun = Instant::now();
        file.read_exact_at(&mut block, slot * len as u64)?;
        latencies.saturating_record(nanos(begun.elapsed()));
        slot = (slot
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407))
            % slots;
    }
    Ok(latencies)
}

/// Nanoseconds, for a histogram.
pub fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}
