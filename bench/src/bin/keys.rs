//! A bucket of many keys in a running store: how fast it fills, what a page of a listing and a look-up take at each
//! size, natively and through S3, how much memory and space of the devices a key takes, and how long the whole store
//! takes to serve again when all of its nodes were killed. Partitions are split on the way, if there are enough keys.
//!
//! Device and network are measured in the same run: a read of 4 KiB of the rig's disk, and a bare TCP round trip.

use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use ashlar_bench::http::{Connection, HttpError, User};
use ashlar_bench::{baseline, drive};
use ashlar_cluster_s3::text::url_encode;
use ashlar_layout::ids::NodeId;
use ashlar_node_client::{Client, ClientError, ClientOptions, ListOptions, PutOptions};
use ashlar_tests::rig::{self, Options, Rig};
use ashlar_tests::s3;
use bytes::Bytes;
use clap::Parser;
use hdrhistogram::Histogram;
use serde::Serialize;

const BUCKET: &str = "many-keys";
/// Bytes of an object: it stands in the index itself.
const OBJECT: usize = 64;
const PAGE: u32 = 1000;

/// Many keys in a running store.
#[derive(Parser)]
struct Cli {
    /// Numbers of keys at which everything is measured, ascending.
    #[arg(long, value_delimiter = ',', default_values_t = [10_000, 100_000, 1_000_000])]
    keys: Vec<u64>,
    /// Puts under way at a time.
    #[arg(long, default_value_t = 64)]
    lanes: u64,
    /// Pages and look-ups measured at each size.
    #[arg(long, default_value_t = 300)]
    samples: u64,
    /// One JSON document instead of lines.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, thiserror::Error)]
enum KeysError {
    #[error("{0}")]
    Io(#[from] std::io::Error),
    #[error("{what}: {source}")]
    Store { what: String, source: ClientError },
    #[error("S3: {0}")]
    Http(#[from] HttpError),
    #[error("{0}")]
    Wrong(String),
}

/// What was measured at one size.
#[derive(Clone, Debug, Serialize)]
struct Row {
    keys: u64,
    partitions: usize,
    puts_per_s: f64,
    /// Pages of 1,000 keys.
    pages_per_s: f64,
    page_us: [f64; 3],
    /// Of the whole bucket through S3, page after page, one connection.
    s3_pages_per_s: f64,
    s3_page_us: [f64; 3],
    head_us: [f64; 3],
    /// p50 of a page, in reads of 4 KiB of the bare disk.
    page_to_disk_read: f64,
    /// From the start of killed nodes until a key was read and a page listed.
    recovery_s: f64,
    /// Memory of all three nodes for each key, three copies.
    memory_per_key: f64,
    /// Bytes used on all devices for each key, three copies.
    device_per_key: f64,
}

fn main() -> ExitCode {
    drive::ended("keys", run(&Cli::parse()))
}

fn name(key: u64) -> String {
    // Keys of one bucket that are neither put nor read in their order.
    format!("{:016x}/{key:010}", key.wrapping_mul(0x9e37_79b9_7f4a_7c15))
}

fn store(what: &str) -> impl FnOnce(ClientError) -> KeysError {
    let what = what.to_owned();
    move |source| KeysError::Store { what, source }
}

fn percentiles(histogram: &Histogram<u64>) -> [f64; 3] {
    [0.5, 0.99, 0.999].map(|q| baseline::micros(histogram, q))
}

fn run(cli: &Cli) -> Result<(), KeysError> {
    let rig = Rig::up(Options {
        nodes: 3,
        class: "2+1",
        size: "4G",
        // The first write to each place is slow otherwise.
        written: true,
        gateway: true,
        ..Options::default()
    });
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()?;
    let second = Duration::from_secs(1);
    let median = |latencies: Histogram<u64>| baseline::micros(&latencies, 0.5);
    let tcp = median(baseline::tcp_round_trip(100, second)?);
    let read = median(baseline::direct_read(&rig.device(1), 4096, second)?);
    if !cli.json {
        println!("TCP round trip {tcp:.0} us, read of 4 KiB {read:.0} us (medians, in this run)");
    }
    let client = runtime.block_on(async { rig.client(ClientOptions::default()) });
    let user = User::of_rig(&rig);
    runtime.block_on(user.create_bucket(s3::address(&rig), BUCKET))?;
    let empty = memory(&rig);
    let (mut rows, mut put) = (Vec::new(), 0);
    for keys in &cli.keys {
        let begun = Instant::now();
        runtime.block_on(fill(&client, put, *keys, cli.lanes))?;
        let puts_per_s = (keys - put) as f64 / begun.elapsed().as_secs_f64();
        put = *keys;
        let row = measure(
            cli,
            (&rig, &user),
            &runtime,
            &client,
            put,
            (puts_per_s, read, empty),
        )?;
        if !cli.json {
            print(&row);
        }
        rows.push(row);
    }
    if cli.json {
        let all = serde_json::json!({ "tcp_round_trip_us": tcp, "read_4k_us": read, "rows": rows });
        println!("{all}");
    }
    Ok(())
}

/// Puts keys up to this one.
async fn fill(client: &Client, from: u64, to: u64, lanes: u64) -> Result<(), KeysError> {
    let next = Arc::new(AtomicU64::new(from));
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..lanes {
        let (client, next) = (client.clone(), next.clone());
        tasks.spawn(async move {
            loop {
                let key = next.fetch_add(1, Ordering::Relaxed);
                if key >= to {
                    return Ok(());
                }
                let body = Bytes::from(vec![key as u8; OBJECT]);
                client
                    .put_bytes(BUCKET, &name(key), body, PutOptions::default())
                    .await?;
            }
        });
    }
    while let Some(done) = tasks.join_next().await {
        done.map_err(|e| KeysError::Wrong(e.to_string()))?
            .map_err(store("put"))?;
    }
    Ok(())
}

fn measure(
    cli: &Cli,
    (rig, user): (&Rig, &User),
    runtime: &tokio::runtime::Runtime,
    client: &Client,
    keys: u64,
    (puts_per_s, read, empty): (f64, f64, u64),
) -> Result<Row, KeysError> {
    let (mut pages, mut heads) = (baseline::histogram(), baseline::histogram());
    let begun = Instant::now();
    runtime.block_on(async {
        for sample in 0..cli.samples {
            let after = name(sample.wrapping_mul(0x0123_4567_89ab) % keys);
            let options = ListOptions {
                after,
                max: PAGE,
                ..ListOptions::default()
            };
            let since = Instant::now();
            client.list(BUCKET, options).await.map_err(store("list"))?;
            pages.saturating_record(baseline::nanos(since.elapsed()));
        }
        Ok::<(), KeysError>(())
    })?;
    let pages_per_s = cli.samples as f64 / begun.elapsed().as_secs_f64();
    runtime.block_on(async {
        for sample in 0..cli.samples * 4 {
            let key = name(sample.wrapping_mul(0x0765_4321) % keys);
            let since = Instant::now();
            client.head(BUCKET, &key).await.map_err(store("head"))?;
            heads.saturating_record(baseline::nanos(since.elapsed()));
        }
        Ok::<(), KeysError>(())
    })?;
    let begun = Instant::now();
    let s3_pages = runtime.block_on(list_all(rig, user, keys))?;
    let s3_pages_per_s = s3_pages.len() as f64 / begun.elapsed().as_secs_f64();
    let memory = memory(rig).saturating_sub(empty);
    let device = used(rig, runtime, client);
    rig.nodes("kill", &rig.all());
    let begun = Instant::now();
    rig.up_again();
    let fresh = runtime.block_on(async { rig.client(ClientOptions::default()) });
    runtime.block_on(async {
        let found = fresh
            .head(BUCKET, &name(keys / 2))
            .await
            .map_err(store("head"))?;
        let page = fresh
            .list(BUCKET, ListOptions::default())
            .await
            .map_err(store("list"))?;
        if found.manifest.size != OBJECT as u64 || page.objects.len() as u64 != keys.min(1000) {
            return Err(KeysError::Wrong(format!(
                "{found:?} was found, and {} keys",
                page.objects.len()
            )));
        }
        Ok(())
    })?;
    let recovery_s = begun.elapsed().as_secs_f64();
    let page_us = percentiles(&pages);
    Ok(Row {
        keys,
        partitions: runtime.block_on(async { fresh.map().partitions.len() }),
        puts_per_s,
        pages_per_s,
        page_us,
        s3_pages_per_s,
        s3_page_us: percentiles(&s3_pages),
        head_us: percentiles(&heads),
        page_to_disk_read: page_us[0] / read,
        recovery_s,
        memory_per_key: memory as f64 / keys as f64,
        device_per_key: device as f64 / keys as f64,
    })
}

/// Lists the whole bucket through S3, page after page, and finds this many keys: how long each page took.
async fn list_all(rig: &Rig, user: &User, keys: u64) -> Result<Histogram<u64>, KeysError> {
    let address = s3::address(rig);
    let mut connection = Connection::open(address).await?;
    let (mut pages, mut found, mut token) = (baseline::histogram(), 0, String::new());
    loop {
        let uri = format!("/{BUCKET}?{token}list-type=2&max-keys={PAGE}");
        let request = user.sign("GET", address, &uri, Bytes::new());
        let since = Instant::now();
        let page = connection.read(request).await?;
        pages.saturating_record(baseline::nanos(since.elapsed()));
        let page = String::from_utf8_lossy(&page);
        found += page.matches("<Key>").count() as u64;
        let next = page.split_once("<NextContinuationToken>");
        let Some((next, _)) = next.and_then(|(_, rest)| rest.split_once('<')) else {
            break;
        };
        token = format!("continuation-token={}&", url_encode(next));
    }
    if found != keys {
        return Err(KeysError::Wrong(format!(
            "{found} keys are listed of {keys}"
        )));
    }
    Ok(pages)
}

/// Resident bytes of all nodes.
fn memory(rig: &Rig) -> u64 {
    let of = |pid: u32| -> Option<u64> {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
        let line = status.lines().find(|line| line.starts_with("VmRSS:"))?;
        line.split_whitespace()
            .nth(1)?
            .parse::<u64>()
            .ok()
            .map(|kib| kib << 10)
    };
    let pids = rig::node_pids(rig.dir()).into_iter();
    pids.filter_map(of).sum()
}

/// Bytes used on all devices.
fn used(rig: &Rig, runtime: &tokio::runtime::Runtime, client: &Client) -> u64 {
    let nodes = rig.all().into_iter();
    let cores = nodes.filter_map(|node| runtime.block_on(client.node_status(NodeId(node))).ok());
    let devices = cores.flatten().flat_map(|core| core.devices);
    devices.map(|device| device.bytes_used).sum()
}

fn print(row: &Row) {
    let [p50, p99, p999] = row.page_us;
    let [s50, s99, s999] = row.s3_page_us;
    let [h50, h99, h999] = row.head_us;
    println!(
        "{:>9} keys, {} partitions: {:.0} puts/s; page of 1000: {:.0} a second, {p50:.0}/{p99:.0}/{p999:.0} us \
         ({:.1} disk reads), through S3 {:.0} a second, {s50:.0}/{s99:.0}/{s999:.0} us; \
         head {h50:.0}/{h99:.0}/{h999:.0} us (p50/p99/p99.9); serves after {:.2} s; \
         {:.0} bytes of memory and {:.0} of devices a key",
        row.keys,
        row.partitions,
        row.puts_per_s,
        row.pages_per_s,
        row.page_to_disk_read,
        row.s3_pages_per_s,
        row.recovery_s,
        row.memory_per_key,
        row.device_per_key,
    );
}
