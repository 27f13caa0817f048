//! What audits and repairs take of a store, and what others feel of them, beside what its disk gives to fio in the same
//! run.
//!
//! One rig, whose devices are files of one disk. For each size of objects, in turns: fio reads the devices from front
//! to back; the nodes' auditors read all that is stored, as fast as they may; a device is taken away and another one
//! formatted in its place, until it has all its shards again. Then clients ask at a steady rate while nothing, an
//! audit, or a repair goes on beside them.

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

use ashlar_bench::baseline::{self, micros};
use ashlar_bench::{cpu, disk, drive};
use ashlar_node_client::{Client, ClientError, ClientOptions, PutOptions};
use ashlar_tests::content::{Content, Random};
use ashlar_tests::rig::{self, Options, Rig};
use bytes::Bytes;
use clap::Parser;
use hdrhistogram::Histogram;
use serde::Serialize;
use serde_json::Value;
use tokio::task::JoinSet;

const BUCKET: &str = "ashlar-audit";
/// Data and parity shards of a stripe.
const K: u64 = 4;
const SHARDS: u64 = 6;
/// Bytes that are stored of each size.
const BYTES: u64 = 1 << 30;
/// How long anything may take.
const PATIENCE: Duration = Duration::from_secs(900);
/// Bytes a second that auditors read of a device at the least when they are to be as fast as they can,
const ALL: &str = "100G";
/// and what that is unless it is said.
const FLOOR: &str = "1M";
/// Seconds of a pass: one after the other, and none for as long as this takes.
const ALWAYS: Option<&str> = Some("1");
const NEVER: Option<&str> = Some("86400");
/// Clients that ask at a steady rate, and how often each does.
const LANES: u64 = 8;
const EVERY: Duration = Duration::from_millis(40);
/// Bytes of what they ask for.
const ASKED: usize = 64 << 10;
const ASKED_KEYS: u64 = 500;

/// Audits and repairs beside the disk.
#[derive(Parser)]
struct Cli {
    /// Seconds for each piece of work, in each round.
    #[arg(long, default_value_t = 15)]
    seconds: u64,
    /// How often they take turns.
    #[arg(long, default_value_t = 3)]
    rounds: u32,
    /// Sizes of objects, in KiB.
    #[arg(long, value_delimiter = ',', default_values_t = [1024, 64])]
    sizes: Vec<usize>,
    /// One JSON document instead of tables.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, thiserror::Error)]
enum BenchError {
    #[error("{what}: {source}")]
    Io {
        what: String,
        source: std::io::Error,
    },
    #[error("{what}: {source}")]
    Store { what: String, source: ClientError },
    #[error("fio (it is needed for what the disk gives; apt has it): {0}")]
    Fio(String),
    #[error("{0} has not come within {PATIENCE:?}")]
    Late(&'static str),
}

/// What audits and repairs of objects of one size came to; medians of all rounds.
#[derive(Clone, Debug, Serialize)]
struct Rates {
    kib: usize,
    shard_bytes: u64,
    fio_read_mb_s: f64,
    fio_write_mb_s: f64,
    audit_mb_s: f64,
    /// To what fio reads.
    audit_ratio: f64,
    audit_cpu_s_per_gib: f64,
    /// Bytes of shards that are made again, a second,
    repair_mb_s: f64,
    /// stripes,
    repair_stripes_s: f64,
    /// to what one disk would take that has to be read k times and written once for each, and read back,
    repair_ratio_shared: f64,
    /// and to what the new device alone would take to be written.
    repair_ratio_own: f64,
    repair_cpu_s_per_gib: f64,
    /// Seconds until the first shard was there again.
    repair_begins_s: f64,
}

/// What clients that asked at a steady rate felt; all rounds.
#[derive(Clone, Debug, Serialize)]
struct Felt {
    beside: &'static str,
    operations: u64,
    p50_us: f64,
    p99_us: f64,
    p999_us: f64,
    /// Of all rounds the median of their p99 to that of the quiet one before it.
    p99_ratio: f64,
}

fn main() -> ExitCode {
    drive::ended("audit", run(&Cli::parse()))
}

fn io(what: impl Into<String>) -> impl FnOnce(std::io::Error) -> BenchError {
    let what = what.into();
    move |source| BenchError::Io { what, source }
}

fn median(mut of: Vec<f64>) -> f64 {
    of.sort_by(f64::total_cmp);
    of.get(of.len() / 2).copied().unwrap_or(f64::NAN)
}

fn mb(bytes: f64) -> f64 {
    bytes / 1e6
}

fn run(cli: &Cli) -> Result<(), BenchError> {
    let mut rates = Vec::new();
    let mut felt = Vec::new();
    for (nth, kib) in cli.sizes.iter().enumerate() {
        let mut rig = Rig::up(Options {
            size: "1G",
            // The first write to each place is slow otherwise.
            written: true,
            ..Options::default()
        });
        let runtime = rig::runtime();
        let client = runtime.block_on(async { rig.client(patient()) });
        let made = runtime.block_on(client.create_bucket(BUCKET));
        made.map_err(store("a bucket"))?;
        runtime.block_on(fill(&client, *kib << 10, BYTES / (*kib as u64 * 1024)))?;
        rates.push(measure(cli, &mut rig, *kib)?);
        if nth == 0 {
            felt = feel(cli, &mut rig)?;
        }
    }
    if cli.json {
        println!("{}", serde_json::json!({ "rates": rates, "felt": felt }));
        return Ok(());
    }
    for it in &rates {
        println!(
            "\nobjects of {} KiB, shards of {:.0} KiB; fio reads {:.0} MB/s and writes {:.0} MB/s",
            it.kib,
            it.shard_bytes as f64 / 1024.0,
            it.fio_read_mb_s,
            it.fio_write_mb_s
        );
        println!(
            "  audit   {:>7.0} MB/s, {:.2} of fio's, {:.2} s of processors a GiB",
            it.audit_mb_s, it.audit_ratio, it.audit_cpu_s_per_gib
        );
        println!(
            "  repair  {:>7.1} MB/s, {:.0} stripes/s, {:.2} of what the one disk takes for it, {:.2} of what the new \
             device would if it were another disk, {:.2} s of processors a GiB, from {:.1} s on",
            it.repair_mb_s,
            it.repair_stripes_s,
            it.repair_ratio_shared,
            it.repair_ratio_own,
            it.repair_cpu_s_per_gib,
            it.repair_begins_s
        );
        let hours = |tib: f64, mb_s: f64| tib * (1u64 << 40) as f64 / 1e6 / mb_s / 3600.0;
        for tib in [1.0, 4.0, 16.0] {
            println!(
                "  {tib:>4} TiB: audited in {:.1} h, made again in {:.1} h at these rates",
                hours(tib, it.audit_mb_s / SHARDS as f64),
                hours(tib, it.repair_mb_s)
            );
        }
    }
    println!(
        "\n{LANES} clients, each asking every {EVERY:?} (one in five puts {} KiB)",
        ASKED >> 10
    );
    println!(
        "{:<10} {:>10} {:>9} {:>9} {:>9} {:>10}",
        "beside", "operations", "p50 us", "p99 us", "p99.9 us", "p99 ratio"
    );
    for it in &felt {
        println!(
            "{:<10} {:>10} {:>9.0} {:>9.0} {:>9.0} {:>10.2}",
            it.beside, it.operations, it.p50_us, it.p99_us, it.p999_us, it.p99_ratio
        );
    }
    Ok(())
}

fn patient() -> ClientOptions {
    ClientOptions {
        unavailable_wait: Duration::from_secs(60),
        ..ClientOptions::default()
    }
}

fn store(what: &str) -> impl FnOnce(ClientError) -> BenchError {
    let what = what.to_owned();
    move |source| BenchError::Store { what, source }
}

async fn put(client: &Client, number: u64, body: Bytes) -> Result<(), BenchError> {
    let key = format!("k{number}");
    let done = client
        .put_bytes(BUCKET, &key, body, PutOptions::default())
        .await;
    done.map(|_| ()).map_err(store(&key))
}

/// Stores so many objects.
async fn fill(client: &Client, len: usize, objects: u64) -> Result<(), BenchError> {
    let mut lanes = JoinSet::new();
    for lane in 0..LANES {
        let client = client.clone();
        lanes.spawn(async move {
            let body = Bytes::from(Content { seed: lane, len }.bytes());
            for number in (lane..objects).step_by(LANES as usize) {
                put(&client, number, body.clone()).await?;
            }
            Ok(baseline::histogram())
        });
    }
    drive::latencies(lanes).await.map(|_| ())
}

/// What fio makes of files, in bytes a second.
fn fio(paths: &[PathBuf], rw: &str, seconds: u64) -> Result<f64, BenchError> {
    let names: Vec<&str> = paths.iter().filter_map(|path| path.to_str()).collect();
    let output = Command::new("fio")
        .args(["--name=it", "--bs=1M", "--direct=1", "--ioengine=io_uring"])
        .args(["--iodepth=16", "--time_based", "--output-format=json"])
        .arg(format!("--rw={rw}"))
        .arg(format!("--runtime={seconds}"))
        .arg(format!("--filename={}", names.join(":")))
        .output();
    let output = output.map_err(|e| BenchError::Fio(e.to_string()))?;
    let said: Option<Value> = serde_json::from_slice(&output.stdout).ok();
    let bytes = said.and_then(|said| said["jobs"][0][rw]["bw_bytes"].as_f64());
    bytes.filter(|bytes| *bytes > 0.0).ok_or_else(|| {
        BenchError::Fio(format!(
            "{} {}",
            output.status,
            String::from_utf8_lossy(&output.stderr)
        ))
    })
}

/// Ends the nodes, and starts them again, with a pass in so many seconds or without any.
fn again(rig: &mut Rig, pass: Option<&'static str>, floor: &'static str) {
    rig.again_with(|options| {
        options.audit = pass;
        options.audit_wait = pass.map(|_| "1");
        options.audit_floor = pass.map(|_| floor);
    });
}

/// What the ledger has counted.
fn counted(rig: &Rig) -> Option<Value> {
    let output = rig.run(&["durability", "--json"]);
    let said: Value = serde_json::from_slice(&output.stdout).ok()?;
    output
        .status
        .success()
        .then(|| said["measured"]["counted"].clone())
}

fn count(of: &Value, name: &str) -> u64 {
    of[name].as_u64().unwrap_or(0)
}

/// Waits until the ledger has more of something than this; what it has then, and when that was seen.
fn more(
    rig: &Rig,
    what: &'static str,
    than: u64,
    not_before: Instant,
) -> Result<(Instant, Value), BenchError> {
    let begun = Instant::now();
    while begun.elapsed() < PATIENCE {
        rig::pause(Duration::from_millis(250));
        if Instant::now() >= not_before
            && let Some(it) = counted(rig)
            && count(&it, what) > than
        {
            return Ok((Instant::now(), it));
        }
    }
    Err(BenchError::Late(what))
}

struct Scrub {
    bytes: f64,
    shards: f64,
    took: Duration,
    cpu: Duration,
}

/// Lets the auditors read for so long at the least, from one entry of the ledger to another.
fn scrub(rig: &Rig, seconds: u64) -> Result<Scrub, BenchError> {
    let now = Instant::now();
    let (_, before) = more(rig, "passes", 0, now)?;
    let (from, first) = more(rig, "shard_bytes", count(&before, "shard_bytes"), now)?;
    let pids = rig::node_pids(rig.dir());
    let used = cpu::of_processes(&pids);
    let last = count(&first, "shard_bytes");
    let until = from + Duration::from_secs(seconds);
    let sofar = loop {
        // The newest entry, and the next one behind it.
        rig::pause(Duration::from_millis(250));
        if Instant::now() >= until
            && let Some(it) = counted(rig)
        {
            break count(&it, "shard_bytes").max(last);
        }
    };
    let (to, end) = more(rig, "shard_bytes", sofar, until)?;
    Ok(Scrub {
        bytes: (count(&end, "shard_bytes") - last) as f64,
        shards: (count(&end, "shards") - count(&first, "shards")) as f64,
        took: to - from,
        cpu: cpu::of_processes(&pids).saturating_sub(used),
    })
}

fn shards_of(rig: &Rig, node: u32) -> u64 {
    let statuses = rig.status(node);
    let devices = statuses.iter().flat_map(|status| &status.devices);
    devices.map(|device| device.shards).sum()
}

/// Takes a node's device away and formats another one in its place; the shards that were on it. The node is down then.
fn replace(rig: &Rig, node: u32) -> Result<u64, BenchError> {
    let held = shards_of(rig, node);
    let path = rig.device(node);
    let name = path.display().to_string();
    let map = rig.map();
    let device = map.devices.iter().find(|it| it.node.0 == node);
    let number = device.map_or(0, |it| it.no.0).to_string();
    rig.nodes("kill", &[node]);
    let len = std::fs::metadata(&path).map_err(io(&name))?.len();
    std::fs::remove_file(&path).map_err(io(&name))?;
    disk::prepare(&path, len).map_err(io(&name))?;
    rig.ok(&["device", "format", "--force", "--device-no", &number, &name]);
    Ok(held)
}

struct Rebuilt {
    begins: Duration,
    /// Shards that came while it was timed, and in what time.
    shards: f64,
    took: Duration,
    cpu: Duration,
}

/// Starts the node, and waits until it has all its shards again.
fn rebuild(rig: &Rig, node: u32, held: u64) -> Result<Rebuilt, BenchError> {
    rig.nodes("start", &[node]);
    let begun = Instant::now();
    let pids = rig::node_pids(rig.dir());
    let mut first = None;
    while begun.elapsed() < PATIENCE {
        let has = shards_of(rig, node);
        let used = cpu::of_processes(&pids);
        if has > 0 && first.is_none() {
            first = Some((Instant::now(), has, used));
        }
        if let Some((at, had, before)) = first
            && has >= held
        {
            return Ok(Rebuilt {
                begins: at - begun,
                shards: (has - had) as f64,
                took: at.elapsed(),
                cpu: used.saturating_sub(before),
            });
        }
        rig::pause(Duration::from_millis(100));
    }
    Err(BenchError::Late(
        "the last shard of a device that was replaced",
    ))
}

/// A node that is no member of the journal's chain.
fn outside(rig: &Rig) -> u32 {
    let chain = rig.chain();
    let out = rig.all().into_iter().find(|node| !chain.contains(node));
    out.unwrap_or(1)
}

fn gib(bytes: f64) -> f64 {
    bytes / f64::from(1 << 30)
}

fn measure(cli: &Cli, rig: &mut Rig, kib: usize) -> Result<Rates, BenchError> {
    let devices: Vec<PathBuf> = rig.all().iter().map(|node| rig.device(*node)).collect();
    let spare = rig.scratch().join("spare");
    disk::prepare(&spare, 1 << 30).map_err(io("a file for fio"))?;
    let node = outside(rig);
    let (mut reads, mut writes, mut scrubs, mut rebuilds) = (vec![], vec![], vec![], vec![]);
    for _ in 0..cli.rounds {
        rig.rig(&["down"]);
        reads.push(fio(&devices, "read", cli.seconds)?);
        writes.push(fio(std::slice::from_ref(&spare), "write", cli.seconds)?);
        again(rig, ALWAYS, ALL);
        scrubs.push(scrub(rig, cli.seconds)?);
        again(rig, NEVER, ALL);
        let held = replace(rig, node)?;
        rebuilds.push(rebuild(rig, node, held)?);
    }
    remove(&spare)?;
    let bytes: f64 = scrubs.iter().map(|it| it.bytes).sum();
    let shards: f64 = scrubs.iter().map(|it| it.shards).sum();
    let shard = bytes / shards;
    let (read, write) = (median(reads), median(writes));
    let audit = median(
        scrubs
            .iter()
            .map(|it| it.bytes / it.took.as_secs_f64())
            .collect(),
    );
    let rate = |it: &Rebuilt| it.shards / it.took.as_secs_f64();
    let stripes = median(rebuilds.iter().map(rate).collect());
    let repair = stripes * shard;
    let shared = 1.0 / ((K + 1) as f64 / read + 1.0 / write);
    let per_gib = |cpu: Duration, bytes: f64| cpu.as_secs_f64() / gib(bytes);
    Ok(Rates {
        kib,
        shard_bytes: shard as u64,
        fio_read_mb_s: mb(read),
        fio_write_mb_s: mb(write),
        audit_mb_s: mb(audit),
        audit_ratio: audit / read,
        audit_cpu_s_per_gib: median(scrubs.iter().map(|it| per_gib(it.cpu, it.bytes)).collect()),
        repair_mb_s: mb(repair),
        repair_stripes_s: stripes,
        repair_ratio_shared: repair / shared,
        repair_ratio_own: repair / write,
        repair_cpu_s_per_gib: median(
            rebuilds
                .iter()
                .map(|it| per_gib(it.cpu, it.shards * shard))
                .collect(),
        ),
        repair_begins_s: median(rebuilds.iter().map(|it| it.begins.as_secs_f64()).collect()),
    })
}

fn remove(path: &Path) -> Result<(), BenchError> {
    std::fs::remove_file(path).map_err(io(path.display().to_string()))
}

/// Clients that ask at a steady rate for so long: each answer is timed from when its question was due, so that one
/// which is late makes all behind it late as well.
async fn ask(rig: &Rig, seconds: u64) -> Result<Histogram<u64>, BenchError> {
    let mut lanes = JoinSet::new();
    for lane in 0..LANES {
        let client = rig.client(patient());
        lanes.spawn(async move {
            let len = ASKED;
            let body = Bytes::from(Content { seed: lane, len }.bytes());
            let mut random = Random::new(lane);
            let mut latencies = baseline::histogram();
            let first = Instant::now() + EVERY.mul_f64(lane as f64 / LANES as f64);
            for nth in 0..(Duration::from_secs(seconds).as_millis() / EVERY.as_millis()) as u32 {
                let due = first + EVERY * nth;
                tokio::time::sleep_until(due.into()).await;
                let number = random.below(ASKED_KEYS);
                let key = format!("asked-{number}");
                if nth % 5 == 0 {
                    let options = PutOptions::default();
                    let done = client.put_bytes(BUCKET, &key, body.clone(), options).await;
                    done.map(|_| ()).map_err(store(&key))?;
                } else {
                    let got = drive::get(&client, BUCKET, &key, len).await;
                    got.map_err(store(&key))?;
                }
                latencies.saturating_record(baseline::nanos(due.elapsed()));
            }
            Ok(latencies)
        });
    }
    drive::latencies(lanes).await
}

/// What clients feel: of nothing, of audits, of a repair beside them, each with what is usual for the pace.
fn feel(cli: &Cli, rig: &mut Rig) -> Result<Vec<Felt>, BenchError> {
    let node = outside(rig);
    let runtime = rig::runtime();
    again(rig, None, FLOOR);
    runtime.block_on(async {
        let client = rig.client(patient());
        let body = Bytes::from(
            Content {
                seed: 1,
                len: ASKED,
            }
            .bytes(),
        );
        for number in 0..ASKED_KEYS {
            let key = format!("asked-{number}");
            let options = PutOptions::default();
            let done = client.put_bytes(BUCKET, &key, body.clone(), options).await;
            done.map(|_| ()).map_err(store(&key))?;
        }
        Ok(())
    })?;
    let names = ["nothing", "audit", "repair"];
    let mut sums = names.map(|_| (baseline::histogram(), Vec::new()));
    for _ in 0..cli.rounds {
        let mut quiet = f64::NAN;
        for (nth, (all, ratios)) in sums.iter_mut().enumerate() {
            again(rig, [None, ALWAYS, NEVER][nth], FLOOR);
            let held = match nth {
                2 => replace(rig, node)?,
                _ => 0,
            };
            if held > 0 {
                rig.nodes("start", &[node]);
            }
            // What is new to everybody is not what is asked about.
            runtime.block_on(ask(rig, 5))?;
            let part = runtime.block_on(ask(rig, cli.seconds))?;
            let p99 = micros(&part, 0.99);
            quiet = if nth == 0 { p99 } else { quiet };
            ratios.push(p99 / quiet);
            *all += part;
            if held > 0 {
                let done = shards_of(rig, node);
                eprintln!("repair: {done} of {held} shards are there at the end of it");
            }
        }
    }
    let felt = names.into_iter().zip(sums);
    let felt = felt.map(|(beside, (all, ratios))| Felt {
        beside,
        operations: all.len(),
        p50_us: micros(&all, 0.5),
        p99_us: micros(&all, 0.99),
        p999_us: micros(&all, 0.999),
        p99_ratio: median(ratios),
    });
    Ok(felt.collect())
}
