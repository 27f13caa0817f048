//! `ashlar put`: files, trees and standard input into the store.
//!
//! Invariants:
//! - a file that shrinks while it is read is an error, and nothing of it becomes visible; of one that
//!   grows, what was there at the start is stored;
//! - in a tree, what fails is told, the rest goes on, and the command fails at the end.

use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use ashlar_layout::ids::Seq;
use ashlar_layout::manifest::Precondition;
use ashlar_layout::names;
use ashlar_node_client::{Client, PutOptions, PutOutcome};
use clap::Args;
use serde_json::json;
use tokio::io::{AsyncRead, AsyncReadExt, ReadBuf};

use crate::address::{Address, Place};
use crate::fail::Fail;
use crate::output::{self, Progress, human};
use crate::store::{self, Many};
use crate::tree::{Found, Walk};

/// Paths that the walker may be ahead of the puts.
const AHEAD: usize = 256;

/// What to put.
#[derive(Args)]
pub struct PutArgs {
    /// A file, a folder with -r, or - for standard input.
    source: Place,
    /// Where to: ashlar://bucket/key. A key that is empty or ends in / gets the file's name.
    destination: Address,
    /// Put a whole folder: each file below it gets the key DESTINATION/PATH. Symbolic links are followed
    /// (never into a folder that they are in); sockets, pipes, devices and links to nothing are left out
    /// with a note; empty folders leave no trace.
    #[arg(short, long)]
    recursive: bool,
    /// Only if there is no such object yet.
    #[arg(long, conflicts_with = "if_version")]
    if_absent: bool,
    /// Only if the object is at just this version.
    #[arg(long, value_name = "VERSION")]
    if_version: Option<u64>,
}

impl PutArgs {
    fn precondition(&self) -> Precondition {
        match (self.if_absent, self.if_version) {
            (true, _) => Precondition::Absent,
            (false, Some(version)) => Precondition::Version(Seq(version)),
            (false, None) => Precondition::None,
        }
    }
}

/// Puts.
pub fn put(args: PutArgs, cluster: Option<&Path>, json: bool) -> Result<(), Fail> {
    let options = PutOptions {
        precondition: args.precondition(),
        ..PutOptions::default()
    };
    match (&args.source, args.recursive) {
        (Place::Pipe, true) => Err(Fail::Usage(
            "-r takes a folder, and - is standard input".into(),
        )),
        (Place::Pipe, false) => {
            let address = args.destination.clone().object()?;
            if address.key.ends_with('/') {
                return Err(Fail::Usage(format!(
                    "'{address}' ends in /: standard input has no name to put behind it"
                )));
            }
            store::with_client(cluster, |client| async move {
                let progress = Arc::new(Progress::bytes(&address.key, None));
                let body = Counted {
                    inner: tokio::io::stdin(),
                    progress: progress.clone(),
                };
                let result = client
                    .put(&address.bucket, &address.key, body, options)
                    .await
                    .map_err(Fail::store(format!("put - to {address}")));
                progress.finish();
                tell_one(&address, &result?, json)
            })
        }
        (Place::Path(path), false) => put_one(path, &args.destination, options, cluster, json),
        (Place::Path(path), true) => put_tree(path, &args.destination, options, cluster, json),
    }
}

fn put_one(
    path: &Path,
    destination: &Address,
    options: PutOptions,
    cluster: Option<&Path>,
    json: bool,
) -> Result<(), Fail> {
    let metadata = std::fs::metadata(path).map_err(Fail::io("cannot read", path))?;
    if metadata.is_dir() {
        return Err(Fail::Usage(format!(
            "{} is a folder: say -r to put it",
            path.display()
        )));
    }
    let mut address = destination.clone();
    if address.key.is_empty() || address.key.ends_with('/') {
        let name = path.file_name().and_then(|n| n.to_str()).ok_or_else(|| {
            Fail::Usage(format!(
                "{} has no name that can be a key: name one",
                path.display()
            ))
        })?;
        address.key.push_str(name);
        names::check_key(&address.key).map_err(|e| Fail::Usage(format!("'{address}': {e}")))?;
    }
    let path = path.to_owned();
    store::with_client(cluster, |client| async move {
        let size = metadata.is_file().then_some(metadata.len());
        let progress = Arc::new(Progress::bytes(&address.key, size));
        let result = put_file(&client, &path, &address, options, &progress).await;
        progress.finish();
        tell_one(&address, &result?, json)
    })
}

fn tell_one(address: &Address, outcome: &PutOutcome, json: bool) -> Result<(), Fail> {
    if outcome.degraded_shards > 0 {
        output::note(&format!(
            "{address} is stored with less margin: {} shards of its {} stripes are missing",
            outcome.degraded_shards, outcome.stripes
        ));
    }
    if outcome.reduced_stripes > 0 {
        output::note(&format!(
            "{address}: {} of {} stripes have a smaller class, because devices are away; the margin is full",
            outcome.reduced_stripes, outcome.stripes
        ));
    }
    if json {
        return output::json(&json!({
            "address": address.to_string(), "bucket": address.bucket, "key": address.key,
            "version": outcome.version, "size": outcome.size,
            "crc32": format!("{:08x}", outcome.crc), "stripes": outcome.stripes,
            "degraded_shards": outcome.degraded_shards, "reduced_stripes": outcome.reduced_stripes,
        }));
    }
    output::line(&format!(
        "{address}  {}  version {}",
        human(outcome.size),
        outcome.version
    ))
}

/// Puts one file. Reads as many bytes as it has now, neither more nor fewer.
async fn put_file(
    client: &Client,
    path: &Path,
    address: &Address,
    mut options: PutOptions,
    progress: &Arc<Progress>,
) -> Result<PutOutcome, Fail> {
    let file = tokio::fs::File::open(path)
        .await
        .map_err(Fail::io("cannot read", path))?;
    let metadata = file
        .metadata()
        .await
        .map_err(Fail::io("cannot read", path))?;
    if metadata.is_dir() {
        return Err(Fail::io("cannot read", path)(
            std::io::ErrorKind::IsADirectory.into(),
        ));
    }
    // Files of /proc and /sys say that they are empty, pipes and devices have no length: those
    // are read to their end.
    let size = Some(metadata.len()).filter(|len| metadata.is_file() && *len > 0);
    options.size_exact = size;
    options.size_hint = size;
    let inner = file.take(size.unwrap_or(u64::MAX));
    let body = Counted {
        inner,
        progress: progress.clone(),
    };
    client
        .put(&address.bucket, &address.key, body, options)
        .await
        .map_err(Fail::store(format!("put {} to {address}", path.display())))
}

fn put_tree(
    root: &Path,
    destination: &Address,
    options: PutOptions,
    cluster: Option<&Path>,
    json: bool,
) -> Result<(), Fail> {
    let walk = Walk::new(root).map_err(Fail::io("cannot read the folder", root))?;
    let prefix = destination.tree_prefix();
    store::with_client(cluster, |client| async move {
        let progress = Arc::new(Progress::bytes("put", Some(0)));
        let (found, mut walked) = tokio::sync::mpsc::channel::<Found>(AHEAD);
        let walker = tokio::task::spawn_blocking(move || {
            for item in walk {
                // The other side has given up.
                if found.blocking_send(item).is_err() {
                    return;
                }
            }
        });
        let mut many = Many::new("files");
        let mut skipped = 0u64;
        while let Some(item) = walked.recv().await {
            let (path, relative, size) = match item {
                Found::File {
                    path,
                    relative,
                    size,
                } => (path, relative, size),
                Found::Skipped { path, why } => {
                    skipped += 1;
                    progress.note(&format!("left out {}: {why}", path.display()));
                    continue;
                }
                Found::Failed { path, why } => {
                    let error = Fail::Io {
                        doing: "cannot read",
                        path,
                        source: why,
                    };
                    many.fail(&progress, &error.to_string());
                    continue;
                }
            };
            let address = destination.with_key(format!("{prefix}{relative}"));
            if let Err(why) = names::check_key(&address.key) {
                many.fail(&progress, &format!("put {}: {why}", path.display()));
                continue;
            }
            progress.inc_total(size);
            let work = one_of_many(
                client.clone(),
                path,
                address,
                options.clone(),
                progress.clone(),
            );
            if !many.add(&progress, work).await {
                break;
            }
        }
        drop(walked);
        let _ = walker.await;
        let result = many.finish(&progress).await;
        if json {
            output::json(&json!({
                "objects": many.done, "bytes": many.bytes, "failed": many.failed, "skipped": skipped,
            }))?;
        } else {
            output::line(&format!("put {} objects, {}", many.done, human(many.bytes)))?;
        }
        result
    })
}

async fn one_of_many(
    client: Client,
    path: PathBuf,
    address: Address,
    options: PutOptions,
    progress: Arc<Progress>,
) -> Result<u64, Fail> {
    put_file(&client, &path, &address, options, &progress)
        .await
        .map(|outcome| outcome.size)
}

/// Counts what goes through.
struct Counted<R> {
    inner: R,
    progress: Arc<Progress>,
}

impl<R: AsyncRead + Unpin> AsyncRead for Counted<R> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        let before = buffer.filled().len();
        let result = Pin::new(&mut self.inner).poll_read(context, buffer);
        let read = buffer.filled().len() - before;
        if read > 0 {
            self.progress.inc(read as u64);
        }
        result
    }
}
