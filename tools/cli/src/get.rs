//! `ashlar get`: objects and trees out of the store.
//!
//! Invariants:
//! - a file has its final name only once it is whole: it is written under another one in the same folder
//!   and renamed; what fails leaves nothing behind;
//! - no key leads out of the folder that a tree is written to.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use ashlar_node_client::{ByteRange, Client, GetOptions, GetStream};
use ashlar_node_gateway::is_encrypted;
use clap::Args;
use serde_json::json;
use tokio::io::AsyncWriteExt;

use crate::address::{Address, Place};
use crate::fail::Fail;
use crate::output::{self, Progress, human};
use crate::process::random;
use crate::store::{self, Many, Pages};
use crate::tree::key_path;

/// What to get.
#[derive(Args)]
pub struct GetArgs {
    /// An object, ashlar://bucket/key; with -r a bucket or a folder-like prefix.
    source: Address,
    /// A file, a folder, or - for standard output. [default: the last part of the key, here]
    destination: Option<Place>,
    /// Get everything below SOURCE/ into a folder, each object in a file of its own.
    #[arg(short, long)]
    recursive: bool,
    /// Only these bytes: FIRST-LAST (both included), FIRST- or -COUNT (the last ones), as in HTTP.
    #[arg(long, conflicts_with = "recursive", value_parser = parse_range, allow_hyphen_values = true)]
    range: Option<ByteRange>,
}

fn parse_range(text: &str) -> Result<ByteRange, String> {
    let bad = || format!("'{text}' is not a range: it takes FIRST-LAST, FIRST- or -COUNT");
    let number = |digits: &str| match digits.parse::<u64>() {
        Ok(number) if digits.bytes().all(|b| b.is_ascii_digit()) => Ok(number),
        _ => Err(bad()),
    };
    let (first, last) = text.split_once('-').ok_or_else(bad)?;
    match (first, last) {
        ("", count) => Ok(ByteRange::Suffix(number(count)?)),
        (first, "") => Ok(ByteRange::From(number(first)?)),
        (first, last) => {
            let (first, last) = (number(first)?, number(last)?);
            if first > last {
                Err(bad())
            } else {
                Ok(ByteRange::FromTo(first, last))
            }
        }
    }
}

/// Gets.
pub fn get(args: GetArgs, cluster: Option<&Path>, json: bool) -> Result<(), Fail> {
    if args.recursive {
        let folder = match args.destination {
            Some(Place::Path(path)) => path,
            Some(Place::Pipe) => {
                return Err(Fail::Usage("-r writes a folder: - cannot hold one".into()));
            }
            None => PathBuf::from("."),
        };
        return get_tree(&args.source, &folder, cluster, json);
    }
    let address = args.source.object()?;
    let options = GetOptions {
        range: args.range,
        version: None,
    };
    let place = match args.destination {
        Some(place) => place,
        None => Place::Path(PathBuf::from(".")),
    };
    match place {
        Place::Pipe => store::with_client(cluster, |client| async move {
            let mut stream = open(&client, &address, options).await?;
            let progress = progress(&stream, &address);
            let mut out = tokio::io::stdout();
            while let Some(piece) = stream.next().await {
                let piece = piece.map_err(Fail::store(format!("get {address}")))?;
                out.write_all(&piece).await.map_err(Fail::output)?;
                progress.inc(piece.len() as u64);
            }
            out.flush().await.map_err(Fail::output)
        }),
        Place::Path(path) => {
            let path = file_of(&path, &address)?;
            store::with_client(cluster, |client| async move {
                let stream = open(&client, &address, options).await?;
                let meta = stream.meta().clone();
                let progress = progress(&stream, &address);
                let size = save(stream, &address, &path, &progress).await?;
                progress.finish();
                if json {
                    return output::json(&json!({
                        "address": address.to_string(), "path": path, "bytes": size,
                        "version": meta.version, "size": meta.manifest.size,
                        "crc32": format!("{:08x}", meta.manifest.crc),
                    }));
                }
                output::line(&format!("{}  {}", path.display(), human(size)))
            })
        }
    }
}

async fn open(client: &Client, address: &Address, options: GetOptions) -> Result<GetStream, Fail> {
    let stream = client.get(&address.bucket, &address.key, options).await;
    let stream = stream.map_err(Fail::store(format!("get {address}")))?;
    match is_encrypted(stream.meta()) {
        Ok(false) => Ok(stream),
        Ok(true) => Err(Fail::Refused(format!(
            "get {address}: it is encrypted, and only a gateway, with its root key or the key that the object was put \
             with, can give its bytes: get it through S3"
        ))),
        Err(refusal) => Err(Fail::Refused(format!(
            "get {address}: whether it is encrypted cannot be told, perhaps because a newer gateway wrote it ({}): get \
             it through S3, or with a newer ashlar",
            refusal.message
        ))),
    }
}

fn progress(stream: &GetStream, address: &Address) -> Arc<Progress> {
    let range = stream.range();
    Arc::new(Progress::bytes(&address.key, Some(range.end - range.start)))
}

/// The file that an object goes to: in a folder it has the last part of the key as its name.
fn file_of(path: &Path, address: &Address) -> Result<PathBuf, Fail> {
    if !path.is_dir() {
        return Ok(path.to_owned());
    }
    let name = address.base_name();
    match key_path(name) {
        Ok(name) => Ok(path.join(name)),
        Err(_) => Err(Fail::Usage(format!(
            "'{address}' gives no name for a file in {}: name the file",
            path.display()
        ))),
    }
}

/// Removes a file that did not become whole.
struct Unfinished<'a> {
    path: &'a Path,
    whole: bool,
}

impl Drop for Unfinished<'_> {
    fn drop(&mut self) {
        if !self.whole {
            let _ = std::fs::remove_file(self.path);
        }
    }
}

/// Writes a stream to a file that appears only when it is whole.
async fn save(
    stream: GetStream,
    address: &Address,
    path: &Path,
    progress: &Progress,
) -> Result<u64, Fail> {
    let special = tokio::fs::metadata(path).await.is_ok_and(|m| !m.is_file());
    if special {
        // /dev/null, a pipe: there is nothing to rename over.
        let file = tokio::fs::File::options()
            .write(true)
            .open(path)
            .await
            .map_err(Fail::io("cannot write", path))?;
        return copy(stream, address, file, path, progress).await;
    }
    let mut unique = [0u8; 8];
    random(&mut unique)?;
    let name = format!(".ashlar-{:016x}.part", u64::from_le_bytes(unique));
    let part = path.parent().unwrap_or(Path::new("")).join(name);
    let file = tokio::fs::File::options()
        .write(true)
        .create_new(true)
        .open(&part)
        .await
        .map_err(Fail::io("cannot write", path))?;
    let mut unfinished = Unfinished {
        path: &part,
        whole: false,
    };
    let size = copy(stream, address, file, path, progress).await?;
    tokio::fs::rename(&part, path)
        .await
        .map_err(Fail::io("cannot write", path))?;
    unfinished.whole = true;
    Ok(size)
}

async fn copy(
    mut stream: GetStream,
    address: &Address,
    mut file: tokio::fs::File,
    path: &Path,
    progress: &Progress,
) -> Result<u64, Fail> {
    let range = stream.range();
    let mut size = 0;
    while let Some(piece) = stream.next().await {
        let piece = piece.map_err(Fail::store(format!("get {address}")))?;
        file.write_all(&piece)
            .await
            .map_err(Fail::io("cannot write", path))?;
        size += piece.len() as u64;
        progress.inc(piece.len() as u64);
    }
    // tokio's file tells of the last write's failure only here.
    file.flush().await.map_err(Fail::io("cannot write", path))?;
    let expected = range.end - range.start;
    if size != expected {
        return Err(Fail::Refused(format!(
            "get {address}: {size} bytes came instead of {expected}: nothing was kept"
        )));
    }
    Ok(size)
}

fn get_tree(
    source: &Address,
    folder: &Path,
    cluster: Option<&Path>,
    json: bool,
) -> Result<(), Fail> {
    let prefix = source.tree_prefix();
    store::with_client(cluster, |client| async move {
        let progress = Arc::new(Progress::bytes("get", Some(0)));
        let mut many = Many::new("objects");
        let mut pages = Pages::new(&client, source.with_key(prefix.clone()), "");
        let mut any = false;
        'pages: while let Some(page) = pages.next().await? {
            for entry in page.objects {
                any = true;
                let address = source.with_key(entry.key);
                let relative = address.key.strip_prefix(&prefix).unwrap_or(&address.key);
                let path = match key_path(relative) {
                    Ok(relative) => folder.join(relative),
                    Err(why) => {
                        many.fail(&progress, &format!("get {address}: {why}"));
                        continue;
                    }
                };
                progress.inc_total(entry.size);
                let work = one_of_many(client.clone(), address, path, progress.clone());
                if !many.add(&progress, work).await {
                    break 'pages;
                }
            }
        }
        let result = many.finish(&progress).await;
        if !any && !prefix.is_empty() {
            return Err(Fail::Refused(format!(
                "there is nothing below {}",
                source.with_key(prefix.clone())
            )));
        }
        if json {
            output::json(&json!({
                "objects": many.done, "bytes": many.bytes, "failed": many.failed,
            }))?;
        } else {
            output::line(&format!("got {} objects, {}", many.done, human(many.bytes)))?;
        }
        result
    })
}

async fn one_of_many(
    client: Client,
    address: Address,
    path: PathBuf,
    progress: Arc<Progress>,
) -> Result<u64, Fail> {
    let folder = path.parent().unwrap_or(Path::new("."));
    tokio::fs::create_dir_all(folder)
        .await
        .map_err(Fail::io("cannot make the folder", folder))?;
    if path.is_dir() {
        return Err(Fail::Refused(format!(
            "get {address}: {} is a folder, for other keys go on below it; get it by itself",
            path.display()
        )));
    }
    let stream = open(&client, &address, GetOptions::default()).await?;
    save(stream, &address, &path, &progress).await
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_those_of_http() {
        assert_eq!(parse_range("0-99"), Ok(ByteRange::FromTo(0, 99)));
        assert_eq!(parse_range("5-"), Ok(ByteRange::From(5)));
        assert_eq!(parse_range("-7"), Ok(ByteRange::Suffix(7)));
        for text in ["", "-", "9-3", "a-b", "1", "1-2-3", "+1-2"] {
            assert!(parse_range(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_folder_gets_the_last_part_of_the_key() {
        let folder = tempfile::tempdir().unwrap();
        let address: Address = "ashlar://photos/a/b.jpg".parse().unwrap();
        assert_eq!(
            file_of(folder.path(), &address).unwrap(),
            folder.path().join("b.jpg")
        );
        assert_eq!(file_of(Path::new("x"), &address).unwrap(), Path::new("x"));
        for text in ["ashlar://photos/a/..", "ashlar://photos/a/"] {
            let address: Address = text.parse().unwrap();
            assert!(file_of(folder.path(), &address).is_err(), "{text}");
        }
    }
}
