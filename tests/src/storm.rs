//! A load at full rate whose every operation is recorded: writers, readers and listers through the native client.
//!
//! Two sorts of keys: *hot* ones, which all tasks change and read, and *ledger* ones, each put by one task, never
//! changed after, and counted at the end. Half of the ledger's puts are on condition that there is no object: told
//! that there is one, its writer has met its own first attempt.
//!
//! Invariants:
//! - every value is put once; its bytes say which it is, and all of them are compared when it is read;
//! - a task has one operation under way, and every one that was sent is in the history.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use ashlar_layout::ids::Seq;
use ashlar_layout::limits::INLINE_MAX;
use ashlar_layout::manifest::Precondition;
use ashlar_node_client::{Client, ClientError, Code, DeleteOptions, ListOptions, PutOptions};
use bytes::Bytes;
use tokio::task::JoinSet;

use crate::content::{Content, Random};
use crate::history::{Clock, Condition, History, Key, Kind, Listing, Operation, Outcome, Value};
use crate::load;

/// Bytes at the head of an object that say which value it is.
const NAME: usize = 8;
/// Between a refusal and the next attempt, so that a store that refuses at once does not fill the history.
const BREATH: Duration = Duration::from_millis(2);
/// Keys on a page of a listing.
const PAGE: u32 = 100;

/// What the load is.
#[derive(Clone, Debug)]
pub struct Shape {
    /// The bucket.
    pub bucket: String,
    /// Tasks that change things.
    pub writers: u32,
    /// Tasks that read.
    pub readers: u32,
    /// Keys that all of them share.
    pub hot: Key,
    /// Repeats the tasks' choices.
    pub seed: u64,
}

/// A load.
#[derive(Debug)]
pub struct Storm {
    shape: Shape,
    clock: Clock,
    over: AtomicBool,
    values: AtomicU64,
    /// Reads and changes that were served.
    reads: AtomicU64,
    writes: AtomicU64,
    /// The first key that nobody has put yet.
    keys: AtomicU32,
}

/// A key's name: names sort as their numbers do.
fn name(key: Key) -> String {
    format!("key/{key:08}")
}

fn number(name: &str) -> Option<Key> {
    name.strip_prefix("key/")?.parse().ok()
}

fn length(value: Value) -> usize {
    let mut random = Random::new(value);
    let inline = u64::from(INLINE_MAX);
    let length = match random.below(20) {
        0 => inline + 1 + random.below(200_000),
        1 => inline - 1 + random.below(3),
        _ => NAME as u64 + random.below(6_000),
    };
    usize::try_from(length).unwrap_or(NAME)
}

/// A value's bytes.
fn bytes(value: Value) -> Vec<u8> {
    let mut bytes = value.to_le_bytes().to_vec();
    let len = length(value).saturating_sub(NAME);
    bytes.extend(Content { seed: value, len }.bytes());
    bytes
}

/// Which value these bytes are; why none.
fn value(bytes_read: &[u8]) -> Result<Value, String> {
    let named = bytes_read
        .first_chunk::<NAME>()
        .map(|b| Value::from_le_bytes(*b));
    let Some(value) = named else {
        return Err(format!("{} bytes that nobody put", bytes_read.len()));
    };
    if bytes_read.len() == length(value) && bytes_read == bytes(value) {
        return Ok(value);
    }
    Err(format!(
        "{} bytes that begin like value {value}, which has {}",
        bytes_read.len(),
        length(value)
    ))
}

fn failure(condition: Condition, error: &ClientError) -> Outcome {
    match error.code() {
        _ if error.is_uncertain() => Outcome::Unknown,
        Code::PreconditionFailed => Outcome::Unmet,
        // `If-Match` where there is nothing to match.
        Code::NotFound if condition != Condition::None => Outcome::Unmet,
        _ => Outcome::Refused,
    }
}

/// One task's hands.
struct Task {
    storm: Arc<Storm>,
    client: Client,
    number: u32,
    random: Random,
    history: History,
}

impl Storm {
    /// A load that has not begun.
    pub fn new(shape: Shape, clock: Clock) -> Arc<Storm> {
        Arc::new(Storm {
            keys: AtomicU32::new(shape.hot),
            values: AtomicU64::new(1),
            reads: AtomicU64::new(0),
            writes: AtomicU64::new(0),
            over: AtomicBool::new(false),
            shape,
            clock,
        })
    }

    fn task(self: &Arc<Storm>, client: &Client, number: u32) -> Task {
        let spread = u64::from(number + 1).wrapping_mul(0xa076_1d64_78bd_642f);
        Task {
            storm: self.clone(),
            client: client.clone(),
            number,
            random: Random::new(self.shape.seed ^ spread),
            history: History::default(),
        }
    }

    /// Begins: each task takes the next of `clients`. They go on until [`Storm::end`].
    pub fn begin(self: &Arc<Storm>, clients: &[Client]) -> JoinSet<History> {
        let mut tasks = JoinSet::new();
        let count = self.shape.writers + self.shape.readers;
        for (number, client) in (0..count).zip(clients.iter().cycle()) {
            let mut task = self.task(client, number);
            tasks.spawn(async move {
                while !task.storm.over.load(Ordering::Relaxed) {
                    if task.number < task.storm.shape.writers {
                        task.write().await;
                    } else {
                        task.read().await;
                    }
                }
                task.history
            });
        }
        tasks
    }

    /// How many reads and how many changes were served so far.
    pub fn served(&self) -> (u64, u64) {
        let count = |served: &AtomicU64| served.load(Ordering::Relaxed);
        (count(&self.reads), count(&self.writes))
    }

    /// Ends it; what all tasks recorded.
    pub async fn end(&self, mut tasks: JoinSet<History>) -> History {
        self.over.store(true, Ordering::Relaxed);
        let mut history = History::default();
        while let Some(ended) = tasks.join_next().await {
            history.merge(ended.unwrap_or_else(|e| panic!("a task of the load panicked: {e}")));
        }
        history
    }

    /// Reads every key and every page, in peace: whatever cannot be read now is wrong.
    pub async fn look(self: &Arc<Storm>, client: &Client) -> History {
        const HANDS: u32 = 16;
        let mut tasks = JoinSet::new();
        for hand in 0..HANDS {
            let mut task = self.task(client, self.shape.writers + self.shape.readers + hand);
            tasks.spawn(async move {
                let last = task.storm.keys.load(Ordering::Relaxed);
                for key in (hand..last).step_by(HANDS as usize) {
                    if task.get(key).await.is_err() {
                        let wrong = format!("key {key} cannot be read in peace");
                        task.history.wrong.push(wrong);
                    }
                }
                let mut from = Some(0).filter(|_| hand == 0);
                while let Some(key) = from {
                    from = match task.list(key).await {
                        Ok(next) => next,
                        Err(error) => {
                            let wrong = format!("the bucket cannot be listed in peace: {error}");
                            task.history.wrong.push(wrong);
                            None
                        }
                    };
                }
                task.history
            });
        }
        self.end(tasks).await
    }
}

impl Task {
    /// Keys are not alike: half of all goes to four.
    fn hot(&mut self) -> Key {
        let hot = u64::from(self.storm.shape.hot);
        let below = if self.random.below(2) == 0 {
            hot.min(4)
        } else {
            hot
        };
        u32::try_from(self.random.below(below)).unwrap_or(0)
    }

    async fn write(&mut self) {
        match self.random.below(100) {
            0..30 => {
                let key = self.hot();
                self.put(key, Condition::None, None).await;
            }
            30..40 => {
                let key = self.hot();
                self.put(key, Condition::Absent, None).await;
            }
            40..55 => {
                // Read, then replace just that, or fail.
                let key = self.hot();
                if let Ok(Some((value, version))) = self.get(key).await {
                    self.put(key, Condition::Is(value), Some(version)).await;
                }
            }
            55..65 => {
                let key = self.hot();
                self.delete(key, Condition::None, None).await;
            }
            65..70 => {
                let key = self.hot();
                if let Ok(Some((value, version))) = self.get(key).await {
                    self.delete(key, Condition::Is(value), Some(version)).await;
                }
            }
            _ => {
                let key = self.storm.keys.fetch_add(1, Ordering::Relaxed);
                let condition = *self.random.pick(&[Condition::None, Condition::Absent]);
                self.put(key, condition, None).await;
            }
        }
    }

    async fn read(&mut self) {
        let last = u64::from(self.storm.keys.load(Ordering::Relaxed));
        let any = u32::try_from(self.random.below(last.max(1))).unwrap_or(0);
        let failed = match self.random.below(100) {
            0..4 => self.list(any).await.is_err(),
            4..30 => self.get(any).await.is_err(),
            _ => {
                let key = self.hot();
                self.get(key).await.is_err()
            }
        };
        if failed {
            tokio::time::sleep(BREATH).await;
        }
    }

    async fn record(&mut self, operation: Operation) {
        self.history.operations.push(operation);
        if operation.served() {
            self.storm.writes.fetch_add(1, Ordering::Relaxed);
        } else {
            tokio::time::sleep(BREATH).await;
        }
    }

    fn begun(&self, key: Key, kind: Kind, condition: Condition) -> Operation {
        let now = self.storm.clock.now();
        Operation {
            client: self.number,
            key,
            kind,
            condition,
            outcome: Outcome::Unknown,
            version: 0,
            invoke: now,
            ret: now,
        }
    }

    async fn put(&mut self, key: Key, condition: Condition, version: Option<u64>) {
        let value = self.storm.values.fetch_add(1, Ordering::Relaxed);
        let body = Bytes::from(bytes(value));
        let options = PutOptions {
            precondition: precondition(condition, version),
            ..PutOptions::default()
        };
        let mut operation = self.begun(key, Kind::Put(value), condition);
        let bucket = &self.storm.shape.bucket;
        let result = self
            .client
            .put_bytes(bucket, &name(key), body, options)
            .await;
        operation.ret = self.storm.clock.now();
        (operation.outcome, operation.version) = match result {
            Ok(outcome) => (Outcome::Done, outcome.version.0),
            Err(error) => (failure(condition, &error), 0),
        };
        self.record(operation).await;
    }

    async fn delete(&mut self, key: Key, condition: Condition, version: Option<u64>) {
        let options = DeleteOptions {
            precondition: precondition(condition, version),
            ..DeleteOptions::default()
        };
        let mut operation = self.begun(key, Kind::Delete, condition);
        let bucket = &self.storm.shape.bucket;
        let result = self.client.delete(bucket, &name(key), options).await;
        operation.ret = self.storm.clock.now();
        operation.outcome = match result {
            Ok(outcome) if outcome.existed => Outcome::Existed,
            Ok(_) => Outcome::Done,
            Err(error) => failure(condition, &error),
        };
        self.record(operation).await;
    }

    /// What is there, with its version.
    async fn get(&mut self, key: Key) -> Result<Option<(Value, u64)>, ()> {
        let mut operation = self.begun(key, Kind::Get, Condition::None);
        let result = load::read(&self.client, &self.storm.shape.bucket, &name(key)).await;
        operation.ret = self.storm.clock.now();
        let mut found = Ok(None);
        operation.outcome = match result {
            Ok(None) => Outcome::Absent,
            Ok(Some((bytes, version))) => match value(&bytes) {
                Ok(value) => {
                    operation.version = version;
                    found = Ok(Some((value, version)));
                    Outcome::Found(value)
                }
                Err(why) => {
                    let wrong = format!("key {key} at version {version} has {why}");
                    self.history.wrong.push(wrong);
                    Outcome::Refused
                }
            },
            Err(_) => {
                found = Err(());
                Outcome::Refused
            }
        };
        if operation.served() {
            self.storm.reads.fetch_add(1, Ordering::Relaxed);
        }
        self.history.operations.push(operation);
        found
    }

    /// One page from this key on; the first key of the next one.
    async fn list(&mut self, from: Key) -> Result<Option<Key>, ClientError> {
        let options = ListOptions {
            after: from.checked_sub(1).map(name).unwrap_or_default(),
            max: PAGE,
            ..ListOptions::default()
        };
        let invoke = self.storm.clock.now();
        let page = self.client.list(&self.storm.shape.bucket, options).await?;
        let ret = self.storm.clock.now();
        let next = page.next.as_deref().map(number);
        let shown: Option<BTreeMap<Key, u64>> = page
            .objects
            .iter()
            .map(|entry| Some((number(&entry.key)?, entry.version.0)))
            .collect();
        let (Some(shown), true) = (shown, next != Some(None)) else {
            let wrong = format!("a page from key {from} on names a key that nobody put: {page:?}");
            self.history.wrong.push(wrong);
            return Ok(None);
        };
        let to = next.flatten().map(|key| key.saturating_add(1));
        self.history.listings.push(Listing {
            invoke,
            ret,
            from,
            to,
            shown,
        });
        Ok(to)
    }
}

fn precondition(condition: Condition, version: Option<u64>) -> Precondition {
    match (condition, version) {
        (Condition::None, _) => Precondition::None,
        (Condition::Absent, _) => Precondition::Absent,
        (Condition::Is(_), Some(version)) => Precondition::Version(Seq(version)),
        (Condition::Present | Condition::Is(_), _) => Precondition::Present,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_say_which_value_they_are() {
        for number in [1, 2, 77, 1 << 40] {
            let mut read = bytes(number);
            assert_eq!(value(&read), Ok(number));
            read.pop();
            assert!(value(&read).is_err(), "cut short");
            let mut read = bytes(number);
            if let Some(last) = read.last_mut() {
                *last ^= 1;
            }
            assert!(value(&read).is_err(), "not the same");
        }
        assert!(value(&[1, 2, 3]).is_err());
        let sharded = (1..1000)
            .filter(|v| length(*v) > INLINE_MAX as usize)
            .count();
        assert!(
            (20..200).contains(&sharded),
            "{sharded} of 1000 are stored as shards"
        );
    }

    #[test]
    fn names_sort_as_numbers_do() {
        assert!(name(9) < name(10) && name(99_999) < name(100_000));
        assert_eq!(number(&name(123)), Some(123));
        assert_eq!(number("else"), None);
    }
}
