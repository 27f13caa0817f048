//! What is recorded of audits, read and written in the reserved bucket.
//!
//! Invariants:
//! - a document that cannot be read, or is not what it should be, is told of as such: it does not count as not there;
//! - one that is there is written over only if it is the version that was read.

use std::collections::BTreeMap;
use std::time::{SystemTime, UNIX_EPOCH};

use ashlar_cluster_audit::orphans::ORPHANS;
use ashlar_cluster_audit::record::{self, BadRecord, DAYS, LOST, NOW};
use ashlar_cluster_audit::{Closed, Document, Kind, Loss, Orphans, Record, Tally, Window};
use ashlar_layout::ids::{PartitionId, Seq};
use ashlar_layout::manifest::Precondition;
use ashlar_layout::names::SYSTEM_BUCKET;
use ashlar_node_client::{Client, ClientError, Code, GetOptions, ListOptions, PutOptions};
use tokio::task::JoinSet;

/// Documents that are read at the same time.
const AT_ONCE: usize = 16;

/// Why the ledger could not be read or written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LedgerError {
    /// The store does not give or take it.
    #[error("{key} in the reserved bucket: {source}")]
    Store {
        /// Which document.
        key: String,
        /// Why.
        source: ClientError,
    },
    /// It is no such document.
    #[error("{key} in the reserved bucket: {source}")]
    Document {
        /// Which.
        key: String,
        /// What is wrong with it.
        source: BadRecord,
    },
}

impl LedgerError {
    fn store(key: &str) -> impl FnOnce(ClientError) -> LedgerError {
        let key = key.to_owned();
        move |source| LedgerError::Store { key, source }
    }

    fn document(key: &str) -> impl FnOnce(BadRecord) -> LedgerError {
        let key = key.to_owned();
        move |source| LedgerError::Document { key, source }
    }
}

/// Milliseconds since 1970.
pub fn wall_ms() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |d| u64::try_from(d.as_millis()).unwrap_or(u64::MAX))
}

/// Makes the reserved bucket, if it is not there.
pub async fn found(client: &Client) -> Result<(), LedgerError> {
    match client.create_bucket(SYSTEM_BUCKET).await {
        Err(error) if error.code() != Code::BucketExists => {
            Err(LedgerError::store("the bucket itself")(error))
        }
        _ => Ok(()),
    }
}

/// A document, if there is one, with its version.
pub async fn read<T: Document>(
    client: &Client,
    key: &str,
) -> Result<Option<(Seq, T)>, LedgerError> {
    let found = client.get(SYSTEM_BUCKET, key, GetOptions::default()).await;
    let mut found = match found {
        Ok(found) => found,
        Err(error) if matches!(error.code(), Code::NotFound | Code::NoSuchBucket) => {
            return Ok(None);
        }
        Err(error) => return Err(LedgerError::store(key)(error)),
    };
    let version = found.meta().version;
    let mut all = Vec::new();
    while let Some(piece) = found.next().await {
        all.extend_from_slice(&piece.map_err(LedgerError::store(key))?);
    }
    let document = record::decode(&all).map_err(LedgerError::document(key))?;
    Ok(Some((version, document)))
}

/// Writes a document if the one that is there is this version, or if there is none: then it says which version it is
/// now. Otherwise it says none.
pub async fn write<T: Document>(
    client: &Client,
    key: &str,
    document: &T,
    over: Option<Seq>,
) -> Result<Option<Seq>, LedgerError> {
    let bytes = record::encode(document).map_err(LedgerError::document(key))?;
    let options = PutOptions {
        precondition: over.map_or(Precondition::Absent, Precondition::Version),
        ..PutOptions::default()
    };
    match client
        .put_bytes(SYSTEM_BUCKET, key, bytes.into(), options)
        .await
    {
        Ok(done) => Ok(Some(done.version)),
        Err(error) if error.code() == Code::PreconditionFailed => Ok(None),
        Err(error) => Err(LedgerError::store(key)(error)),
    }
}

/// The keys that begin so, behind `after`.
async fn keys(client: &Client, prefix: &str, after: String) -> Result<Vec<String>, LedgerError> {
    let (mut keys, mut after) = (Vec::new(), after);
    loop {
        let options = ListOptions {
            prefix: prefix.to_owned(),
            after,
            ..ListOptions::default()
        };
        let page = match client.list(SYSTEM_BUCKET, options).await {
            Ok(page) => page,
            Err(error) if error.code() == Code::NoSuchBucket => return Ok(keys),
            Err(error) => return Err(LedgerError::store(prefix)(error)),
        };
        keys.extend(page.objects.into_iter().map(|entry| entry.key));
        match page.next {
            Some(next) => after = next,
            None => return Ok(keys),
        }
    }
}

/// Documents that were asked for, and what was wrong with those that could not be read.
#[derive(Debug)]
pub struct Read<T> {
    /// By their keys.
    pub found: BTreeMap<String, T>,
    /// Why others are missing here.
    pub unread: Vec<String>,
}

async fn all<T: Document + Send + 'static>(client: &Client, keys: Vec<String>) -> Read<T> {
    let mut read = Read {
        found: BTreeMap::new(),
        unread: Vec::new(),
    };
    let (mut keys, mut tasks) = (keys.into_iter(), JoinSet::new());
    loop {
        while tasks.len() < AT_ONCE
            && let Some(key) = keys.next()
        {
            let client = client.clone();
            tasks.spawn(async move {
                let found = self::read::<T>(&client, &key).await;
                (key, found)
            });
        }
        match tasks.join_next().await {
            None => return read,
            Some(Ok((key, Ok(Some((_, document)))))) => drop(read.found.insert(key, document)),
            // It was removed since it was listed.
            Some(Ok((_, Ok(None)))) => {}
            Some(Ok((_, Err(error)))) => read.unread.push(error.to_string()),
            Some(Err(error)) => read.unread.push(format!("a reader panicked: {error}")),
        }
    }
}

/// What is recorded of all partitions.
pub async fn records(client: &Client) -> Result<Read<Record>, LedgerError> {
    let keys = keys(client, NOW, String::new()).await?;
    Ok(all(client, keys).await)
}

/// What is recorded of these partitions.
pub(crate) async fn records_of(
    client: &Client,
    partitions: impl Iterator<Item = PartitionId>,
) -> Read<Record> {
    all(client, partitions.map(record::now_key).collect()).await
}

/// What is known of shards that no object names, by devices.
pub async fn orphans(client: &Client) -> Result<Read<Orphans>, LedgerError> {
    let keys = keys(client, ORPHANS, String::new()).await?;
    Ok(all(client, keys).await)
}

/// The losses of these days, by when they were found.
pub async fn losses(client: &Client, window: Window) -> Result<Read<Loss>, LedgerError> {
    let keys = keys(client, LOST, String::new()).await?;
    let mut losses: Read<Loss> = all(client, keys).await;
    let day = |loss: &Loss| loss.found_ms / record::DAY_MS;
    losses.found.retain(|_, loss| window.has(day(loss)));
    Ok(losses)
}

/// What was counted on each of these days: those that are over, and those that partitions still count; and what no
/// object names.
pub async fn by_day(
    client: &Client,
    window: Window,
    now: &Read<Record>,
    orphans: &Read<Orphans>,
) -> Result<(BTreeMap<u64, Tally>, Vec<String>), LedgerError> {
    // Records first: a day that is closed meanwhile is in both then, and counted once.
    let first = record::day_key(window.first, "");
    let keys = keys(client, DAYS, first).await?;
    let keys = keys
        .into_iter()
        .filter(|key| record::day_of(key).is_some_and(|day| window.has(day)));
    let days: Read<Closed> = all(client, keys.collect()).await;
    let mut sums: BTreeMap<u64, Tally> = BTreeMap::new();
    for closed in days.found.values() {
        sums.entry(closed.day).or_default().add(&closed.tally);
    }
    for record in now.found.values() {
        for closed in std::iter::once(&record.today).chain(&record.closed) {
            let key = record::partition_day(closed.day, record.partition);
            if window.has(closed.day) && !days.found.contains_key(&key) {
                sums.entry(closed.day).or_default().add(&closed.tally);
            }
        }
    }
    for (day, count) in orphans.found.values().flat_map(|it| &it.found) {
        if window.has(*day) {
            let found = &mut sums.entry(*day).or_default().found;
            *found.entry(Kind::Orphan).or_default() += count;
        }
    }
    let unread = now.unread.iter().chain(&days.unread).chain(&orphans.unread);
    Ok((sums, unread.cloned().collect()))
}

/// Makes the document of a partition's day. Whoever was there first has made the same one.
pub async fn keep_day(
    client: &Client,
    partition: PartitionId,
    closed: &Closed,
) -> Result<(), LedgerError> {
    let key = record::partition_day(closed.day, partition);
    write(client, &key, closed, None).await.map(drop)
}

/// Makes the document of a loss; whether it was not known.
pub async fn keep_loss(client: &Client, loss: &Loss) -> Result<bool, LedgerError> {
    let key = record::lost_key(loss.stripe);
    Ok(write(client, &key, loss, None).await?.is_some())
}
