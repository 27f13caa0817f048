//! Puts and gets against a rig: latency, and what an operation costs in processor time.
//!
//! In the same run, before the load: a bare TCP round trip over loopback and a bare durable write
//! on the rig's own disk. What a put or a get takes is given as a ratio to those (DESIGN 12).

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use ashlar_bench::baseline::micros;
use ashlar_bench::{baseline, cpu, disk, drive};
use ashlar_cluster_map::ClusterMap;
use ashlar_layout::limits::LIST_PAGE_MAX;
use ashlar_node_client::{Client, ClientError, ClientOptions, ListOptions, PutOptions};
use ashlar_tests::rig::{self, Options, Rig};
use bytes::Bytes;
use clap::Parser;
use hdrhistogram::Histogram;
use serde::Serialize;

const BUCKET: &str = "ashlar-load";
/// Different objects that are read and overwritten.
const KEYS: u64 = 500;

/// Load on a rig, as ratios to the bare machine.
#[derive(Parser)]
struct Cli {
    /// The rig's folder; without it, a rig of six nodes is made for the run and removed.
    #[arg(long, env = "ASHLAR_CLUSTER")]
    cluster: Option<PathBuf>,
    /// Seconds for each piece of work.
    #[arg(long, default_value_t = 5)]
    seconds: u64,
    /// Operations under way at a time, several numbers for several runs.
    #[arg(long, value_delimiter = ',', default_values_t = [1, 16])]
    clients: Vec<u64>,
    /// Which work; all of it if none is named.
    #[arg(long, value_delimiter = ',')]
    work: Vec<String>,
    /// One JSON document instead of a table.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, thiserror::Error)]
enum LoadError {
    #[error("{what}: {source}")]
    Io {
        what: String,
        source: std::io::Error,
    },
    #[error("{what}: {source}")]
    Store { what: String, source: ClientError },
    #[error("{0}")]
    Map(#[from] ashlar_cluster_map::MapError),
}

/// What an operation does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Put,
    /// Every get asks the chain's head where the object is.
    Get,
    /// What the client remembers is confirmed by witnesses, while the data is fetched.
    Cached,
    /// A page of as many keys as there are, up to 1,000.
    List,
}

/// What the bare machine gives.
#[derive(Clone, Copy, Debug, Serialize)]
struct Baseline {
    tcp_round_trip_us: f64,
    durable_4k_us: f64,
    read_4k_us: f64,
    durable_1m_qd8_mb_s: f64,
    /// A put of 4 KiB by threads that do nothing but send, write and sleep.
    chain_put_4k_us: f64,
}

/// One piece of work.
#[derive(Clone, Debug, Serialize)]
struct Row {
    work: &'static str,
    clients: u64,
    operations: u64,
    per_second: f64,
    mb_s: f64,
    p50_us: f64,
    p99_us: f64,
    p999_us: f64,
    /// Processor time of the client's process, per operation.
    client_cpu_us: f64,
    /// Processor time of all nodes, per operation.
    nodes_cpu_us: f64,
    /// p50 to what the bare machine needs for the same: a round trip and a durable write (put) or a read (get).
    /// Only for one client: with more, an operation waits for the others.
    ratio_to_bare: Option<f64>,
    /// Bytes that reach the devices, with parity, to what they take. Only for puts of 1 MiB.
    ratio_to_device: Option<f64>,
}

fn main() -> ExitCode {
    drive::ended("load", run(&Cli::parse()))
}

fn run(cli: &Cli) -> Result<(), LoadError> {
    let own = match &cli.cluster {
        Some(_) => None,
        None => Some(Rig::up(Options {
            size: "4G",
            // The first write to each place is slow otherwise.
            written: true,
            ..Options::default()
        })),
    };
    let dir = match (&cli.cluster, &own) {
        (Some(dir), _) => dir.as_path(),
        (None, Some(rig)) => rig.dir(),
        (None, None) => unreachable!("one of both was made above"),
    };
    let time = Duration::from_secs(cli.seconds);
    let bare = measure_bare(dir, time)?;
    let path = dir.join("map.json");
    let what = || path.display().to_string();
    let json = std::fs::read(&path).map_err(|source| LoadError::Io {
        what: what(),
        source,
    })?;
    let map = ClusterMap::from_json(&json)?;
    let overhead = map.class.shards() as f64 / f64::from(map.class.k);
    let nodes = rig::node_pids(dir);

    let runtime = rig::runtime();
    let mut rows = Vec::new();
    for clients in &cli.clients {
        for (work, kind, len) in [
            ("put-4k", Kind::Put, 4 << 10),
            ("get-4k", Kind::Get, 4 << 10),
            ("get-4k-cached", Kind::Cached, 4 << 10),
            ("put-1m", Kind::Put, 1 << 20),
            ("get-1m", Kind::Get, 1 << 20),
            ("get-1m-cached", Kind::Cached, 1 << 20),
            ("list-1000", Kind::List, 64),
        ] {
            if !cli.work.is_empty() && !cli.work.iter().any(|wanted| wanted == work) {
                continue;
            }
            let mut row =
                runtime.block_on(measure(&map, &nodes, work, kind, len, *clients, time))?;
            if *clients == 1 && len == 4 << 10 {
                let device = match kind {
                    Kind::Put => bare.durable_4k_us,
                    _ => bare.read_4k_us,
                };
                row.ratio_to_bare = Some(row.p50_us / (bare.tcp_round_trip_us + device));
            }
            if kind == Kind::Put && len == 1 << 20 {
                row.ratio_to_device = Some(row.mb_s * overhead / bare.durable_1m_qd8_mb_s);
            }
            if !cli.json {
                if rows.is_empty() {
                    print_head(&bare);
                }
                print_row(&row);
            }
            rows.push(row);
        }
    }
    if cli.json {
        println!(
            "{}",
            serde_json::json!({ "baseline": bare, "results": rows })
        );
    }
    Ok(())
}

fn measure_bare(dir: &Path, time: Duration) -> Result<Baseline, LoadError> {
    let (file, second) = (dir.join("bare.tmp"), dir.join("bare2.tmp"));
    let measure = || -> std::io::Result<Baseline> {
        disk::prepare(&file, 256 << 20)?;
        disk::prepare(&second, 64 << 20)?;
        let time = time.min(Duration::from_secs(3));
        let p50 = |histogram: Histogram<u64>| micros(&histogram, 0.5);
        Ok(Baseline {
            tcp_round_trip_us: p50(baseline::tcp_round_trip(64, time)?),
            durable_4k_us: p50(baseline::durable_write(&file, 4 << 10, time)?),
            read_4k_us: p50(baseline::direct_read(&file, 4 << 10, time)?),
            durable_1m_qd8_mb_s: baseline::durable_bandwidth(&file, 1 << 20, 8, time)? / 1e6,
            chain_put_4k_us: p50(baseline::chain_put([&file, &second], 4 << 10, time)?),
        })
    };
    let result = measure();
    for file in [&file, &second] {
        let _ = std::fs::remove_file(file);
    }
    result.map_err(|source| LoadError::Io {
        what: file.display().to_string(),
        source,
    })
}

async fn measure(
    map: &ClusterMap,
    nodes: &[u32],
    work: &'static str,
    kind: Kind,
    len: usize,
    clients: u64,
    time: Duration,
) -> Result<Row, LoadError> {
    let failed = |what: &str| {
        let what = format!("{work}: {what}");
        move |source| LoadError::Store { what, source }
    };
    let options = ClientOptions {
        cache: kind == Kind::Cached,
        ..ClientOptions::default()
    };
    let client = Client::connect(map.clone(), options).map_err(failed("connect"))?;
    if let Err(source) = client.create_bucket(BUCKET).await
        && source.code() != ashlar_node_client::Code::BucketExists
    {
        return Err(failed("bucket")(source));
    }
    let body = Bytes::from(ashlar_tests::content::Content { seed: 42, len }.bytes());
    let keys = match kind {
        Kind::Put => KEYS,
        Kind::Get | Kind::Cached => KEYS.min((256 << 20) / len as u64),
        Kind::List => u64::from(LIST_PAGE_MAX),
    };
    if kind != Kind::Put {
        for key in 0..keys {
            let key = key_name(len, key);
            let put = client.put_bytes(BUCKET, &key, body.clone(), PutOptions::default());
            put.await.map_err(failed("fill"))?;
        }
    }
    if kind == Kind::Cached {
        for key in 0..keys {
            drive::get(&client, BUCKET, &key_name(len, key), len)
                .await
                .map_err(failed("warm"))?;
        }
    }
    let (client_before, nodes_before) = (cpu::of_self(), cpu::of_processes(nodes));
    let begun = Instant::now();
    let next = Arc::new(AtomicU64::new(0));
    let mut lanes = tokio::task::JoinSet::new();
    for _ in 0..clients {
        let (client, body, next) = (client.clone(), body.clone(), next.clone());
        lanes.spawn(async move {
            let mut latencies = baseline::histogram();
            while begun.elapsed() < time {
                let key = key_name(len, next.fetch_add(1, Ordering::Relaxed) % keys);
                let start = Instant::now();
                match kind {
                    Kind::Put => {
                        let put =
                            client.put_bytes(BUCKET, &key, body.clone(), PutOptions::default());
                        put.await?;
                    }
                    Kind::Get | Kind::Cached => drive::get(&client, BUCKET, &key, len).await?,
                    Kind::List => {
                        let options = ListOptions {
                            prefix: format!("{len}/"),
                            ..ListOptions::default()
                        };
                        let page = client.list(BUCKET, options).await?;
                        assert_eq!(page.objects.len() as u64, keys);
                    }
                }
                latencies.saturating_record(baseline::nanos(start.elapsed()));
            }
            Ok::<_, ClientError>(latencies)
        });
    }
    let latencies = drive::latencies(lanes).await.map_err(failed("operation"))?;
    let took = begun.elapsed().as_secs_f64();
    let operations = latencies.len();
    let per_operation = |time: Duration| time.as_secs_f64() * 1e6 / operations.max(1) as f64;
    Ok(Row {
        work,
        clients,
        operations,
        per_second: operations as f64 / took,
        mb_s: operations as f64 * len as f64 / took / 1e6,
        p50_us: micros(&latencies, 0.5),
        p99_us: micros(&latencies, 0.99),
        p999_us: micros(&latencies, 0.999),
        client_cpu_us: per_operation(cpu::of_self().saturating_sub(client_before)),
        nodes_cpu_us: per_operation(cpu::of_processes(nodes).saturating_sub(nodes_before)),
        ratio_to_bare: None,
        ratio_to_device: None,
    })
}

fn key_name(len: usize, number: u64) -> String {
    format!("{len}/{number:06}")
}

fn print_head(bare: &Baseline) {
    println!(
        "bare: TCP round trip {:.0} us, durable 4 KiB {:.0} us, read 4 KiB {:.0} us, durable 1 MiB at depth 8 {:.0} MB/s, chained put of 4 KiB {:.0} us",
        bare.tcp_round_trip_us,
        bare.durable_4k_us,
        bare.read_4k_us,
        bare.durable_1m_qd8_mb_s,
        bare.chain_put_4k_us
    );
    println!(
        "{:13} {:>7} {:>9} {:>8} {:>9} {:>9} {:>9} {:>10} {:>10} {:>8} {:>9}",
        "work",
        "clients",
        "op/s",
        "MB/s",
        "p50 us",
        "p99 us",
        "p99.9 us",
        "client cpu",
        "nodes cpu",
        "to bare",
        "to device"
    );
}

fn print_row(row: &Row) {
    let ratio = |ratio: Option<f64>| ratio.map_or("-".to_owned(), |r| format!("{r:.2}"));
    println!(
        "{:13} {:>7} {:>9.0} {:>8.1} {:>9.0} {:>9.0} {:>9.0} {:>10.1} {:>10.1} {:>8} {:>9}",
        row.work,
        row.clients,
        row.per_second,
        row.mb_s,
        row.p50_us,
        row.p99_us,
        row.p999_us,
        row.client_cpu_us,
        row.nodes_cpu_us,
        ratio(row.ratio_to_bare),
        ratio(row.ratio_to_device)
    );
}
