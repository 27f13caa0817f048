//! `ashlar bench device`: the engine beside fio, on the same device, in the same run.
//!
//! Each work alternates between the two, so that both meet the same moods of the device. Appends are
//! compared with fio writing the same payload in order with O_DSYNC; reads of whole shards with fio reading
//! blocks of the payload's size anywhere in what the shards take up.

use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use ashlar_layout::extent::Geometry;
use ashlar_layout::ids::{ClusterId, DeviceId, DeviceNo, NodeId};
use ashlar_layout::limits::BLOCK_SIZE;
use clap::{Args, Subcommand};
use hdrhistogram::Histogram;
use serde::Serialize;

use crate::bench_engine::{Load, Measured, Run, histogram};
use crate::bench_fio::{self, Job};
use crate::device_format::{self, Identity};
use crate::fail::Fail;
use crate::output::{self, Progress, human};
use crate::process::random;
use crate::rig_files::Aligned;

/// Measure what a device gives.
#[derive(Args)]
pub struct BenchArgs {
    #[command(subcommand)]
    command: BenchCommand,
}

#[derive(Subcommand)]
enum BenchCommand {
    /// Measure the engine on a device, beside fio on the same device. Overwrites the device.
    Device(DeviceBench),
}

/// What to measure.
#[derive(Args)]
pub struct DeviceBench {
    /// A block device, or a file that stands for one. Must be blank, or --force given.
    path: PathBuf,
    /// Overwrite the device even if it holds something: it is lost.
    #[arg(long)]
    force: bool,
    /// Seconds for each work and each of the two sides.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..=3600))]
    seconds: u64,
    /// Only works whose name contains this.
    #[arg(long, default_value = "")]
    work: String,
}

/// One kind of work.
struct Work {
    name: &'static str,
    append: bool,
    payload: u32,
    depth: u32,
}

const fn work(name: &'static str, append: bool, payload: u32, depth: u32) -> Work {
    Work {
        name,
        append,
        payload,
        depth,
    }
}

const WORKS: [Work; 6] = [
    work("append-4k-qd1", true, 4096, 1),
    work("append-4k-qd32", true, 4096, 32),
    work("append-1m-qd8", true, 1 << 20, 8),
    work("read-4k-qd1", false, 4096, 1),
    work("read-4k-qd32", false, 4096, 32),
    work("read-1m-qd8", false, 1 << 20, 8),
];

/// Times that each work alternates between the two sides.
const ROUNDS: u32 = 4;
/// Rounds at most, where the device is full before the time is over.
const ROUNDS_MAX: u32 = 64;
/// Shards that are there to be read, at most, and the bytes that they may take up.
const READ_SHARDS_MAX: u64 = 100_000;
const READ_BYTES_MAX: u64 = 1 << 30;

#[derive(Serialize)]
struct Figures {
    iops: f64,
    bytes_per_s: f64,
    p50_us: f64,
    p99_us: f64,
    p999_us: f64,
}

#[derive(Serialize)]
struct WorkResult {
    work: &'static str,
    #[serde(flatten)]
    ours: Figures,
    /// Our operations per second over those of fio; for works of one size also the ratio of bandwidths.
    ratio_to_fio: Option<f64>,
    /// Our median latency over that of fio.
    latency_ratio_to_fio: Option<f64>,
    fio: Option<Figures>,
    rounds: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    note: Option<String>,
}

/// Measurements of one side, put together.
struct Total {
    operations: u64,
    elapsed: Duration,
    latency: Histogram<u64>,
}

impl Total {
    fn new() -> Result<Total, Fail> {
        Ok(Total {
            operations: 0,
            elapsed: Duration::ZERO,
            latency: histogram()?,
        })
    }

    fn add(&mut self, measured: &Measured) -> Result<(), Fail> {
        self.operations += measured.operations;
        self.elapsed += measured.elapsed;
        self.latency
            .add(&measured.latency)
            .map_err(|e| Fail::Refused(e.to_string()))
    }

    fn figures(&self, payload: u32) -> Figures {
        let iops = self.operations as f64 / self.elapsed.as_secs_f64().max(1e-9);
        let micros = |quantile| self.latency.value_at_quantile(quantile) as f64 / 1000.0;
        Figures {
            iops,
            bytes_per_s: iops * f64::from(payload),
            p50_us: micros(0.5),
            p99_us: micros(0.99),
            p999_us: micros(0.999),
        }
    }
}

/// Runs a bench command.
pub fn run(args: &BenchArgs, json: bool) -> Result<(), Fail> {
    let BenchCommand::Device(args) = &args.command;
    let works: Vec<&Work> = WORKS
        .iter()
        .filter(|w| w.name.contains(&args.work))
        .collect();
    if works.is_empty() {
        let names: Vec<&str> = WORKS.iter().map(|w| w.name).collect();
        return Err(Fail::Usage(format!(
            "no work's name contains '{}': there are {}",
            args.work,
            names.join(", ")
        )));
    }
    let size = prepare(&args.path, args.force)?;
    let fio = bench_fio::available();
    if let Err(why) = &fio {
        output::note(&format!("{why}: ratios cannot be given"));
    }
    let limit = Duration::from_secs(args.seconds);
    let bench = Bench {
        path: &args.path,
        size,
        limit,
        fio: fio.as_ref().err().cloned(),
    };
    if !json {
        output::line(&format!(
            "{} ({}), {} s for each work and side{}",
            args.path.display(),
            human(size),
            args.seconds,
            fio.as_ref()
                .map_or_else(|_| String::new(), |version| format!(", beside {version}"))
        ))?;
        output::line(
            "work                  iops      MB/s   p50 us   p99 us  p999 us    fio iops  ratio  p50 ratio",
        )?;
    }
    let progress = Progress::things("benchmarking", Some(works.len() as u64));
    let mut results = Vec::new();
    for work in works {
        let result = bench.work(work)?;
        progress.inc(1);
        if !json {
            output::line(&row(&result))?;
        }
        results.push(result);
    }
    progress.finish();
    if json {
        return output::json(&serde_json::json!({
            "results": results, "path": args.path, "size": size, "seconds": args.seconds,
            "fio": fio.as_ref().ok(),
        }));
    }
    Ok(())
}

fn row(result: &WorkResult) -> String {
    let ours = &result.ours;
    let ratio = |r: Option<f64>| r.map_or_else(|| "-".to_owned(), |r| format!("{r:.2}"));
    let fio = result
        .fio
        .as_ref()
        .map_or_else(|| "-".to_owned(), |f| format!("{:.0}", f.iops));
    format!(
        "{:<15} {:>10.0} {:>9.1} {:>8.1} {:>8.1} {:>8.1} {fio:>11} {:>6} {:>10}",
        result.work,
        ours.iops,
        ours.bytes_per_s / 1e6,
        ours.p50_us,
        ours.p99_us,
        ours.p999_us,
        ratio(result.ratio_to_fio),
        ratio(result.latency_ratio_to_fio),
    )
}

/// Claims the device, refuses one that holds something, and writes a sparse file once.
fn prepare(path: &Path, force: bool) -> Result<u64, Fail> {
    let (file, size) = device_format::claim(path)?;
    device_format::check_size(size - size % u64::from(BLOCK_SIZE))
        .map_err(|e| Fail::Refused(format!("{}: {e}", path.display())))?;
    if let Some(found) = device_format::look(&file, path, size)?
        && !force
    {
        return Err(Fail::Refused(format!(
            "{} holds {found}: the benchmark overwrites the device; if it may be lost, say --force",
            path.display()
        )));
    }
    let metadata = file.metadata().map_err(Fail::io("cannot look at", path))?;
    if metadata.is_file() {
        // First writes into a file's reserved space cost several times an overwrite: they would
        // be measured instead of the device.
        let progress = Progress::bytes("writing the file once", Some(size));
        let chunk = Aligned::zeroed(4 << 20);
        let mut at = 0;
        while at + chunk.len() as u64 <= size {
            file.write_all_at(&chunk, at)
                .map_err(Fail::io("cannot write", path))?;
            at += chunk.len() as u64;
            progress.inc(chunk.len() as u64);
        }
        file.sync_all().map_err(Fail::io("cannot write", path))?;
    }
    Ok(size)
}

struct Bench<'a> {
    path: &'a Path,
    size: u64,
    limit: Duration,
    /// Why there is no fio, if so.
    fio: Option<String>,
}

impl Bench<'_> {
    fn work(&self, work: &Work) -> Result<WorkResult, Fail> {
        let mut ours = Total::new()?;
        let mut fio = Total::new()?;
        let slice = self.limit / ROUNDS;
        let mut readable = None;
        let mut rounds = 0;
        while ours.elapsed < self.limit.mul_f64(0.95) && rounds < ROUNDS_MAX {
            let measured = if work.append {
                let cluster = self.format()?;
                let load = Load::Append {
                    first: 0,
                    count: u64::MAX,
                };
                self.engine(cluster, work, load, slice)?
            } else {
                let (cluster, shards, _) = match readable {
                    Some(readable) => readable,
                    None => *readable.insert(self.populate(work.payload)?),
                };
                self.engine(cluster, work, Load::Read { shards }, slice)?
            };
            ours.add(&measured)?;
            rounds += 1;
            if self.fio.is_none() {
                let span = readable.map_or(self.size, |(_, _, bytes)| bytes);
                let job = Job {
                    path: self.path,
                    write: work.append,
                    block: work.payload,
                    depth: work.depth,
                    size: span.min(self.size),
                    // As long as ours: a device that was full early is not given longer now.
                    limit: measured.elapsed.max(Duration::from_millis(200)),
                };
                fio.add(&job.run()?)?;
            }
            if measured.operations == 0 {
                return Err(Fail::Refused(format!(
                    "{}: not one operation of {} ended",
                    self.path.display(),
                    work.name
                )));
            }
        }
        let figures = ours.figures(work.payload);
        let fio_figures = self.fio.is_none().then(|| fio.figures(work.payload));
        let ratio = |of: fn(&Figures) -> f64| {
            fio_figures
                .as_ref()
                .map(|fio| of(&figures) / of(fio).max(1e-9))
        };
        Ok(WorkResult {
            work: work.name,
            ratio_to_fio: ratio(|f| f.iops),
            latency_ratio_to_fio: ratio(|f| f.p50_us),
            ours: figures,
            fio: fio_figures,
            rounds,
            note: self.fio.clone(),
        })
    }

    fn engine(
        &self,
        cluster: ClusterId,
        work: &Work,
        load: Load,
        limit: Duration,
    ) -> Result<Measured, Fail> {
        let mut seed = [0u8; 8];
        random(&mut seed)?;
        let run = Run {
            path: self.path,
            cluster,
            load,
            payload: work.payload,
            depth: work.depth,
            limit,
            seed: u64::from_le_bytes(seed),
        };
        run.run()
    }

    fn format(&self) -> Result<ClusterId, Fail> {
        let mut cluster = ClusterId::default();
        random(&mut cluster.0)?;
        let mut device = DeviceId::default();
        random(&mut device.0)?;
        let identity = Identity {
            cluster,
            device,
            node: NodeId(1),
            no: DeviceNo(1),
        };
        device_format::format_image(self.path, &identity)?;
        Ok(cluster)
    }

    /// Fills the device with shards to be read: the cluster, how many, and the bytes they take up.
    fn populate(&self, payload: u32) -> Result<(ClusterId, u64, u64), Fail> {
        let cluster = self.format()?;
        let record = ashlar_layout::record::record_len(payload, BLOCK_SIZE);
        let room = (self.size / 2).min(READ_BYTES_MAX);
        let count = (room / record).clamp(1, READ_SHARDS_MAX);
        let filling = work("filling", true, payload, 64);
        let load = Load::Append { first: 0, count };
        let measured = self.engine(cluster, &filling, load, Duration::from_secs(600))?;
        if measured.operations < count {
            return Err(Fail::Refused(format!(
                "{}: only {} of {count} shards could be written to be read",
                self.path.display(),
                measured.operations
            )));
        }
        // Shards stand one behind the other, from the first extent on.
        let extent = Geometry::extent_size_for(BLOCK_SIZE, self.size);
        Ok((
            cluster,
            count,
            (count * record).next_multiple_of(extent).min(self.size),
        ))
    }
}
