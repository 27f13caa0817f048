//! A load that keeps the books: many workers change the same keys through the native client, and the
//! [`Model`] records what was begun, what was acknowledged, and what nobody will ever know.

use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use ashlar_node_client::{
    Client, ClientError, ClientOptions, Code, DeleteOptions, GetOptions, ListOptions, PutOptions,
};
use bytes::Bytes;

use crate::content::{Content, Random};
use crate::model::{Model, Read, State};

/// What the workers do.
#[derive(Clone, Copy, Debug)]
pub struct Load {
    /// Workers, each with one change under way at a time.
    pub workers: u64,
    /// Keys that all of them share.
    pub keys: u64,
    /// Largest object, in bytes.
    pub len_max: u64,
    /// Of 100 changes so many are deletes.
    pub deletes: u64,
}

impl Load {
    /// Few keys or many, small objects or large ones.
    pub fn any(random: &mut Random) -> Load {
        Load {
            workers: 4 + random.below(12),
            keys: *random.pick(&[3, 20, 120]),
            len_max: *random.pick(&[4 << 10, 256 << 10, 9 << 20]),
            deletes: *random.pick(&[5, 25, 50]),
        }
    }
}

/// For a client that gives up soon: a dead store must not keep who works with it waiting.
pub fn hasty() -> ClientOptions {
    ClientOptions {
        unavailable_wait: Duration::from_millis(50),
        connect_timeout: Duration::from_millis(200),
        silence_max: Duration::from_secs(2),
        ..ClientOptions::default()
    }
}

/// The books, shared by the workers.
pub type Books = Arc<Mutex<Model>>;

fn open(books: &Books) -> MutexGuard<'_, Model> {
    books.lock().expect("no worker panics with the books open")
}

/// Runs until `until`, or until every worker has met an error after `until_error` became true.
///
/// A worker goes on after an error: while nodes are away, changes are refused or stay unknown.
pub async fn run(
    client: &Client,
    books: &Books,
    bucket: &str,
    load: Load,
    seed: u64,
    time: Duration,
) {
    let end = Instant::now() + time;
    let mut workers = tokio::task::JoinSet::new();
    for worker in 0..load.workers {
        let (client, books, bucket) = (client.clone(), books.clone(), bucket.to_owned());
        let mut random = Random::new(seed ^ (worker + 1).wrapping_mul(0xa076_1d64_78bd_642f));
        workers.spawn(async move {
            while Instant::now() < end {
                change(&client, &books, &bucket, load, &mut random).await;
            }
        });
    }
    while let Some(ended) = workers.join_next().await {
        if let Err(error) = ended {
            panic!("a worker panicked: {error}");
        }
    }
}

/// One put, overwrite or delete, with its entry in the books.
async fn change(client: &Client, books: &Books, bucket: &str, load: Load, random: &mut Random) {
    let key = key_name(random.below(load.keys));
    if random.below(100) < load.deletes {
        let id = open(books).begin(&key, State::Absent);
        let result = client.delete(bucket, &key, DeleteOptions::default()).await;
        settle(books, &key, id, result.map(|outcome| outcome.version.0));
    } else {
        let content = Content {
            seed: random.draw(),
            len: length(random, load.len_max),
        };
        let id = open(books).begin(&key, State::Holds(content));
        let body = Bytes::from(content.bytes());
        let result = client
            .put_bytes(bucket, &key, body, PutOptions::default())
            .await;
        settle(books, &key, id, result.map(|outcome| outcome.version.0));
    }
}

fn settle(books: &Books, key: &str, id: crate::model::ChangeId, result: Result<u64, ClientError>) {
    let mut books = open(books);
    match result {
        Ok(version) => books.acknowledge(key, id, version),
        Err(error) if error.is_uncertain() => {}
        // The client says that it certainly did not happen: hold it to that.
        Err(_) => books.refuse(key, id),
    }
}

/// Keys with the shapes that break things: nested, spaced, not ASCII, alike up to the last byte.
pub fn key_name(number: u64) -> String {
    match number % 5 {
        0 => format!("plain/{number:05}"),
        1 => format!("dir {}/with space {number}", number % 3),
        2 => format!("größe/キー/{number}"),
        3 => format!("deep/{}/{}/{number}", number % 2, number % 4),
        _ => format!("{}{number:05}", "long-".repeat(40)),
    }
}

/// Lengths around every edge: nothing, inline, just beyond inline, one stripe, several.
fn length(random: &mut Random, max: u64) -> usize {
    const INLINE: u64 = ashlar_layout::limits::INLINE_MAX as u64;
    const STRIPE: u64 = ashlar_layout::limits::STRIPE_DATA as u64;
    let len = match random.below(20) {
        0 => 0,
        1 => 1,
        2 => INLINE,
        3 => INLINE + 1,
        4..=12 => random.below(INLINE),
        13..=17 => random.below(1 << 20),
        18 => STRIPE + random.below(3),
        _ => random.below(3 * STRIPE),
    };
    usize::try_from(len.min(max)).unwrap_or(usize::MAX)
}

/// Reads every key of the books in peace and settles them; what is wrong, all of it.
pub async fn verify(client: &Client, books: &Books, bucket: &str) -> Vec<String> {
    let keys: Vec<String> = open(books).keys().map(str::to_owned).collect();
    let mut wrong = Vec::new();
    let mut held = Vec::new();
    for key in &keys {
        match read(client, bucket, key).await {
            Ok(Some((bytes, version))) => {
                held.push(key.clone());
                wrong.extend(open(books).settle(key, Read::Found(&bytes, version)).err());
            }
            Ok(None) => wrong.extend(open(books).settle(key, Read::Absent).err()),
            Err(error) => wrong.push(format!("{key}: cannot be read: {error}")),
        }
    }
    held.sort();
    match list(client, bucket, 7).await {
        Ok(listed) if listed != held => {
            let ghosts: Vec<_> = listed.iter().filter(|k| !held.contains(k)).collect();
            let missing: Vec<_> = held.iter().filter(|k| !listed.contains(k)).collect();
            wrong.push(format!(
                "the listing has {ghosts:?} too many and lacks {missing:?}"
            ));
        }
        Ok(_) => {}
        Err(error) => wrong.push(format!("the bucket cannot be listed: {error}")),
    }
    wrong
}

/// An object with its version, or that there is none.
pub async fn read(
    client: &Client,
    bucket: &str,
    key: &str,
) -> Result<Option<(Vec<u8>, u64)>, ClientError> {
    let mut stream = match client.get(bucket, key, GetOptions::default()).await {
        Ok(stream) => stream,
        Err(error) if is_absent(&error) => return Ok(None),
        Err(error) => return Err(error),
    };
    let version = stream.meta().version.0;
    let mut bytes = Vec::new();
    while let Some(piece) = stream.next().await {
        bytes.extend_from_slice(&piece?);
    }
    Ok(Some((bytes, version)))
}

/// Every key of a bucket, in pages of `page`.
pub async fn list(client: &Client, bucket: &str, page: u32) -> Result<Vec<String>, ClientError> {
    let mut keys = Vec::new();
    let mut after = String::new();
    loop {
        let options = ListOptions {
            after,
            max: page,
            ..ListOptions::default()
        };
        let answer = client.list(bucket, options).await?;
        keys.extend(answer.objects.into_iter().map(|o| o.key));
        match answer.next {
            Some(next) => after = next,
            None => return Ok(keys),
        }
    }
}

/// Whether an error says that there certainly is no such object.
pub fn is_absent(error: &ClientError) -> bool {
    matches!(error.code(), Code::NotFound)
}
