//! `ashlar gateway`: an S3 gateway in the foreground, and the key that it seals secrets with.

use std::io::Write;
use std::net::SocketAddr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use ashlar_node_gateway::{
    Gateway, GatewayOptions, Limits, Log, LogEntry, Ownership, ROOT_KEY_LEN, RootKey, Tally,
    gateway, lifecycle, server, tls,
};
use clap::{Args, Subcommand};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};

use crate::fail::Fail;
use crate::locate;
use crate::output;
use crate::process;
use crate::store;

/// The region of a gateway that was told none: what clients take if they are told none.
pub const REGION: &str = "us-east-1";
/// How long requests under way are waited for when the gateway ends.
const DRAIN: Duration = Duration::from_secs(20);
/// What names the file with the root key.
pub const ROOT_KEY_FILE: &str = "ASHLAR_ROOT_KEY_FILE";

/// Run an S3 gateway.
#[derive(Args)]
pub struct GatewayArgs {
    #[command(subcommand)]
    command: GatewayCommand,
}

#[derive(Subcommand)]
enum GatewayCommand {
    /// Run one gateway in the foreground until SIGTERM or Ctrl-C. Any number of them serve the same buckets.
    Run(RunArgs),
    /// Tell what came of the lifecycle rules of buckets. Gateways that run carry them out.
    Lifecycle(LifecycleArgs),
    /// Make a root key: the file that secrets of users, and keys of encrypted objects, are sealed with. Every gateway
    /// of a cluster has it. Keep a copy: without it those objects cannot be read by anybody.
    RootKey {
        /// The file to make; it must not be there.
        file: PathBuf,
    },
}

/// How to run a gateway.
#[derive(Args)]
struct RunArgs {
    /// Where to listen.
    #[arg(long, default_value = "127.0.0.1:9000", value_name = "ADDRESS:PORT")]
    listen: SocketAddr,
    /// The file with the root key. [default: that of the rig]
    #[arg(long, env = ROOT_KEY_FILE, value_name = "FILE")]
    root_key_file: Option<PathBuf>,
    /// The region that clients sign for.
    #[arg(long, default_value = REGION)]
    region: String,
    /// A host name of the gateway: below it each bucket has a name of its own (bucket.NAME). Repeatable.
    #[arg(long = "domain", value_name = "NAME")]
    domains: Vec<String>,
    /// Certificates for TLS, the gateway's own first (PEM).
    #[arg(long, requires = "tls_key", value_name = "FILE")]
    tls_cert: Option<PathBuf>,
    /// The key that goes with them (PEM).
    #[arg(long, requires = "tls_cert", value_name = "FILE")]
    tls_key: Option<PathBuf>,
    /// Refuse signatures of version 2, which boto3 makes for presigned URLs unless told otherwise.
    #[arg(long)]
    no_signature_v2: bool,
    /// Who owns what others put into new buckets where nothing else is asked for: BucketOwnerEnforced (the bucket's
    /// owner, and there are no ACLs), BucketOwnerPreferred or ObjectWriter (who puts it: clients of Ceph and MinIO
    /// expect this one).
    #[arg(
        long,
        default_value = BUCKET_OWNER_ENFORCED,
        value_name = "OWNERSHIP",
        value_parser = parse_ownership
    )]
    object_ownership: Ownership,
    /// Mebibytes that bodies on their way may take.
    #[arg(long, default_value_t = Limits::default().memory_mib, value_name = "MIB")]
    memory: u32,
    /// Tell of every request, not only of those that failed in the gateway or the store.
    #[arg(long)]
    log_requests: bool,
    /// Leave the session of whoever started it, to outlive that.
    #[arg(long, hide = true)]
    own_session: bool,
}

/// The ownership of new buckets where none is named.
const BUCKET_OWNER_ENFORCED: &str = Ownership::BucketOwnerEnforced.as_str();

/// Who owns what is put, by its name.
pub fn parse_ownership(text: &str) -> Result<Ownership, String> {
    let names = Ownership::ALL.map(Ownership::as_str);
    Ownership::parse(text).ok_or_else(|| format!("it is one of {}", names.join(", ")))
}

/// What to tell of lifecycles.
#[derive(Args)]
struct LifecycleArgs {
    /// The file with the root key. [default: that of the rig]
    #[arg(long, env = ROOT_KEY_FILE, value_name = "FILE")]
    root_key_file: Option<PathBuf>,
    /// Before that, carry the rules out as if it was so many days later, and record nothing: for tests. What
    /// would end by then is gone.
    #[arg(long, hide = true, value_name = "DAYS")]
    days_ahead: Option<u64>,
}

/// Runs a gateway command.
pub fn run(args: GatewayArgs, cluster: Option<&Path>, json: bool) -> Result<(), Fail> {
    match args.command {
        GatewayCommand::Run(args) => serve(&args, cluster),
        GatewayCommand::Lifecycle(args) => tell_lifecycles(&args, cluster, json),
        GatewayCommand::RootKey { file } => {
            make_root_key(&file)?;
            if json {
                return output::json(&serde_json::json!({ "root_key_file": file }));
            }
            output::line(&format!(
                "made {}: keep a copy of it, for without it no user can be recognised",
                file.display()
            ))
        }
    }
}

/// Makes a root key in a file that only its owner can read.
pub fn make_root_key(path: &Path) -> Result<(), Fail> {
    let mut bytes = [0; ROOT_KEY_LEN];
    process::random(&mut bytes)?;
    write_secret(path, format!("{}\n", RootKey::to_text(&bytes)).as_bytes())
}

/// Writes a new file that only its owner can read.
pub fn write_secret(path: &Path, bytes: &[u8]) -> Result<(), Fail> {
    let mut file = std::fs::File::options()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
        .map_err(Fail::io("cannot make", path))?;
    file.write_all(bytes)
        .and_then(|()| file.sync_all())
        .map_err(Fail::io("cannot write", path))
}

/// The root key of a cluster: from the file that is named, or from the rig's.
pub fn root_key(file: Option<&Path>, cluster: Option<&Path>) -> Result<RootKey, Fail> {
    let of_rig = locate::folder(cluster).map(|dir| dir.join("gateway").join("root.key"));
    let path = match (file, of_rig) {
        (Some(file), _) => file.to_owned(),
        (None, Some(path)) => path,
        (None, None) => {
            return Err(Fail::Usage(format!(
                "name the file with the root key: --root-key-file, or {ROOT_KEY_FILE}"
            )));
        }
    };
    let text = std::fs::read_to_string(&path).map_err(Fail::io("cannot read", &path))?;
    RootKey::parse(&text).map_err(|error| Fail::Refused(format!("{}: {error}", path.display())))
}

fn log(all: bool) -> Log {
    Log(Arc::new(move |entry: &LogEntry<'_>| {
        let failed = entry.status >= 500 && entry.status != 501;
        if all || failed {
            let (code, message) = entry.refusal.unwrap_or(("-", ""));
            output::note(&format!(
                "{} {} {} {} {} {} {} {} us {code} {message}",
                entry.request_id,
                entry.peer,
                entry.user.unwrap_or("-"),
                entry.operation.unwrap_or("-"),
                entry.method,
                entry.path,
                entry.status,
                entry.micros,
            ));
        }
    }))
}

fn tell_lifecycles(args: &LifecycleArgs, cluster: Option<&Path>, json: bool) -> Result<(), Fail> {
    const DAY_MS: u64 = 24 * 60 * 60 * 1000;
    if let Some(days) = args.days_ahead {
        let options = GatewayOptions {
            region: REGION.to_owned(),
            domains: Vec::new(),
            version_2: true,
            ownership: Ownership::default(),
            root: root_key(args.root_key_file.as_deref(), cluster)?,
            limits: Limits::default(),
            log: log(false),
        };
        let gateway =
            Gateway::new(locate::map(cluster)?, options).map_err(Fail::store("the cluster"))?;
        let at = gateway::now_ms().saturating_add(days.saturating_mul(DAY_MS));
        let here = Path::new("this process");
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .enable_all()
            .build()
            .map_err(Fail::io("cannot start threads in", here))?;
        let gone = runtime.block_on(gateway.go_through_at(at));
        let tally = gone.map_err(|refusal| Fail::Refused(refusal.to_string()))?;
        return tell_tally("all buckets", &tally, json);
    }
    store::with_client(cluster, |client| async move {
        let records = lifecycle::records(&client).await;
        let records = records.map_err(|refusal| Fail::Refused(refusal.to_string()))?;
        if json {
            return output::json(&serde_json::json!({ "lifecycles": records }));
        }
        for (bucket, record) in records {
            if let Some(going) = &record.going {
                tell_tally(
                    &format!("{bucket}: being gone through"),
                    &going.tally,
                    false,
                )?;
            }
            if let Some(gone) = &record.gone {
                let ago = gateway::now_ms().saturating_sub(gone.ended_ms) / 1000;
                tell_tally(
                    &format!("{bucket}: gone through {ago} s ago"),
                    &gone.tally,
                    false,
                )?;
            }
        }
        Ok(())
    })
}

fn tell_tally(what: &str, tally: &Tally, json: bool) -> Result<(), Fail> {
    if json {
        return output::json(&serde_json::json!({ "tally": tally }));
    }
    output::line(&format!(
        "{what}: {} looked at, {} objects removed, {} uploads given up, {} failed",
        tally.seen, tally.removed, tally.aborted, tally.failed
    ))
}

fn serve(args: &RunArgs, cluster: Option<&Path>) -> Result<(), Fail> {
    if args.own_session {
        // It fails only if we lead a session already: then there is nothing to leave.
        let _ = rustix::process::setsid();
    }
    let map = locate::map(cluster)?;
    let options = GatewayOptions {
        region: args.region.clone(),
        domains: args
            .domains
            .iter()
            .map(|name| name.to_ascii_lowercase())
            .collect(),
        version_2: !args.no_signature_v2,
        ownership: args.object_ownership,
        root: root_key(args.root_key_file.as_deref(), cluster)?,
        limits: Limits {
            memory_mib: args.memory,
            ..Limits::default()
        },
        log: log(args.log_requests),
    };
    let tls = match (&args.tls_cert, &args.tls_key) {
        (Some(certificates), Some(key)) => {
            let made = tls::acceptor(certificates, key);
            Some(made.map_err(|error| Fail::Refused(error.to_string()))?)
        }
        _ => None,
    };
    let here = Path::new("this process");
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(Fail::io("cannot start threads in", here))?;
    runtime.block_on(async {
        let what = "the cluster";
        let gateway = Gateway::new(map, options).map_err(Fail::store(what))?;
        let gateway = Arc::new(gateway);
        gateway.found().await.map_err(Fail::store(what))?;
        let at = args.listen.to_string();
        let listener = TcpListener::bind(args.listen)
            .await
            .map_err(Fail::io("cannot listen on", Path::new(&at)))?;
        let address = listener
            .local_addr()
            .map_err(Fail::io("cannot listen on", Path::new(&at)))?;
        let listen = |kind| signal(kind).map_err(Fail::io("cannot wait for signals in", here));
        let mut interrupt = listen(SignalKind::interrupt())?;
        let mut terminate = listen(SignalKind::terminate())?;
        let scheme = if tls.is_some() { "https" } else { "http" };
        output::note(&format!("serving S3 on {scheme}://{address}"));
        process::notify_ready();
        let stop = async {
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
            }
        };
        let lifecycles = tokio::spawn(gateway.clone().keep_lifecycles());
        server::serve(gateway.clone(), listener, tls, stop, DRAIN).await;
        // What it was doing it did conditionally, and somebody else goes on with it.
        lifecycles.abort();
        gateway.drain(DRAIN).await;
        Ok(())
    })
}
