//! The store as openraft wants it: a log with a vote, and a state machine with snapshots.
//!
//! Invariants:
//! - an entry, a vote or a state is durable before openraft hears that it is written;
//! - entries are purged when what came of them is durable, and not before: openraft (0.9.25) asks for both at once when
//!   a snapshot is received, of two tasks;
//! - what others see of the state ([`Machine::watch`]) is what is durable, and follows the order of the log.

use std::fmt::Debug;
use std::ops::RangeBounds;
use std::sync::Arc;

use openraft::storage::{LogFlushed, LogState, RaftLogStorage, RaftStateMachine, Snapshot};
use openraft::{
    AnyError, EntryPayload, ErrorSubject, ErrorVerb, RaftLogReader, RaftSnapshotBuilder,
    StorageError, StorageIOError,
};
use redb::ReadableTable;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use crate::limits::ENTRIES_BYTES;
use crate::state::State;
use crate::store::{
    PURGED, SETTLED, SNAPSHOT, Store, StoreError, VOTE, decode, encode, get, put, redb_error,
};
use crate::types::{
    Applied, Entry, LogId, MemberId, Membership, Settled, SnapshotMeta, Types, Vote,
};

type Failure = StorageError<MemberId>;

fn failure(subject: ErrorSubject<MemberId>, verb: ErrorVerb) -> impl FnOnce(StoreError) -> Failure {
    move |error| StorageIOError::new(subject, verb, AnyError::new(&error)).into()
}

/// The log.
#[derive(Clone, Debug)]
pub struct Log {
    store: Store,
}

impl Log {
    /// The log in this store.
    pub fn new(store: Store) -> Log {
        Log { store }
    }

    /// The last entry that ever was in it.
    pub fn last(&self) -> Result<Option<LogId>, StoreError> {
        Ok(self.ends()?.last_log_id)
    }

    fn ends(&self) -> Result<LogState<Types>, StoreError> {
        const WHAT: &str = "the end of the log";
        self.store.read(WHAT, |facts, log| {
            let last_purged_log_id: Option<LogId> = get(facts, PURGED)?;
            let last = log.last().map_err(|e| redb_error(WHAT, e))?;
            let last: Option<Entry> = last.map(|(_, v)| decode(WHAT, v.value())).transpose()?;
            let last_log_id = last.map(|e| e.log_id).or(last_purged_log_id);
            Ok(LogState {
                last_purged_log_id,
                last_log_id,
            })
        })
    }

    /// Whether this very entry is in it, or was before it was purged.
    pub fn holds(&self, id: LogId) -> Result<bool, StoreError> {
        const WHAT: &str = "an entry of the log";
        self.store.read(WHAT, |facts, log| {
            if get::<LogId>(facts, PURGED)?.is_some_and(|purged| purged >= id) {
                return Ok(true);
            }
            let found = log.get(id.index).map_err(|e| redb_error(WHAT, e))?;
            let found: Option<Entry> = found.map(|v| decode(WHAT, v.value())).transpose()?;
            Ok(found.is_some_and(|entry| entry.log_id == id))
        })
    }

    fn entries(
        &self,
        range: impl RangeBounds<u64>,
        bytes_max: usize,
    ) -> Result<Vec<Entry>, StoreError> {
        const WHAT: &str = "the log";
        self.store.read(WHAT, |_, log| {
            let (mut entries, mut bytes) = (Vec::new(), 0);
            let found = log.range(range).map_err(|e| redb_error(WHAT, e))?;
            for item in found {
                let (_, value) = item.map_err(|e| redb_error(WHAT, e))?;
                bytes += value.value().len();
                if bytes > bytes_max && !entries.is_empty() {
                    break;
                }
                entries.push(decode(WHAT, value.value())?);
            }
            Ok(entries)
        })
    }
}

impl RaftLogReader<Types> for Log {
    async fn try_get_log_entries<R: RangeBounds<u64> + Clone + Debug + Send>(
        &mut self,
        range: R,
    ) -> Result<Vec<Entry>, Failure> {
        let entries = self.entries(range, usize::MAX);
        entries.map_err(failure(ErrorSubject::Logs, ErrorVerb::Read))
    }

    async fn limited_get_log_entries(
        &mut self,
        start: u64,
        end: u64,
    ) -> Result<Vec<Entry>, Failure> {
        let entries = self.entries(start..end, ENTRIES_BYTES);
        entries.map_err(failure(ErrorSubject::Logs, ErrorVerb::Read))
    }
}

impl RaftLogStorage<Types> for Log {
    type LogReader = Log;

    async fn get_log_state(&mut self) -> Result<LogState<Types>, Failure> {
        let ends = self.ends();
        ends.map_err(failure(ErrorSubject::Logs, ErrorVerb::Read))
    }

    async fn get_log_reader(&mut self) -> Log {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &Vote) -> Result<(), Failure> {
        let vote = *vote;
        let saved = self
            .store
            .writing("the vote", move |facts, _| put(facts, VOTE, &vote));
        let saved = saved.await;
        saved.map_err(failure(ErrorSubject::Vote, ErrorVerb::Write))
    }

    async fn read_vote(&mut self) -> Result<Option<Vote>, Failure> {
        let vote = self.store.vote();
        vote.map_err(failure(ErrorSubject::Vote, ErrorVerb::Read))
    }

    async fn append<I>(&mut self, entries: I, callback: LogFlushed<Types>) -> Result<(), Failure>
    where
        I: IntoIterator<Item = Entry> + Send,
        I::IntoIter: Send,
    {
        const WHAT: &str = "a log entry";
        let mut rows = Vec::new();
        for entry in entries {
            let bytes = encode(WHAT, &entry);
            let bytes = bytes.map_err(failure(ErrorSubject::Logs, ErrorVerb::Write))?;
            rows.push((entry.log_id.index, bytes));
        }
        let written = self.store.writing(WHAT, move |_, log| {
            for (index, bytes) in &rows {
                let inserted = log.insert(index, bytes.as_slice());
                inserted.map_err(|e| redb_error(WHAT, e))?;
            }
            Ok(())
        });
        written
            .await
            .map_err(failure(ErrorSubject::Logs, ErrorVerb::Write))?;
        callback.log_io_completed(Ok(()));
        Ok(())
    }

    async fn truncate(&mut self, from: LogId) -> Result<(), Failure> {
        const WHAT: &str = "to cut the log's end off";
        let cut = self.store.writing(WHAT, move |_, log| {
            let kept = log.retain_in(from.index.., |_, _| false);
            kept.map_err(|e| redb_error(WHAT, e))
        });
        cut.await
            .map_err(failure(ErrorSubject::Logs, ErrorVerb::Delete))
    }

    async fn purge(&mut self, upto: LogId) -> Result<(), Failure> {
        const WHAT: &str = "to purge the log's start";
        let settled = self.store.until_settled(WHAT, upto).await;
        settled.map_err(failure(ErrorSubject::Logs, ErrorVerb::Delete))?;
        let cut = self.store.writing(WHAT, move |facts, log| {
            put(facts, PURGED, &upto)?;
            let kept = log.retain_in(..=upto.index, |_, _| false);
            kept.map_err(|e| redb_error(WHAT, e))
        });
        cut.await
            .map_err(failure(ErrorSubject::Logs, ErrorVerb::Delete))
    }
}

#[derive(Debug, Serialize, Deserialize)]
struct Stored {
    meta: SnapshotMeta,
    state: State,
}

/// The state machine.
#[derive(Debug)]
pub struct Machine {
    store: Store,
    settled: Settled,
    seen: watch::Sender<Arc<State>>,
}

impl Machine {
    /// As it is in this store.
    pub fn open(store: Store) -> Result<Machine, StoreError> {
        let settled = store.settled()?;
        store.note_settled(settled.last);
        let (seen, _) = watch::channel(Arc::new(settled.state.clone()));
        Ok(Machine {
            store,
            settled,
            seen,
        })
    }

    /// The newest state that is durable here.
    pub fn watch(&self) -> watch::Receiver<Arc<State>> {
        self.seen.subscribe()
    }

    fn take_over(&mut self, settled: Settled) {
        self.store.note_settled(settled.last);
        if settled.state != self.settled.state {
            self.seen.send_replace(Arc::new(settled.state.clone()));
        }
        self.settled = settled;
    }
}

impl Drop for Machine {
    /// openraft ends it with the first error: who waits for what it writes waits in vain.
    fn drop(&mut self) {
        self.store.note_failed();
    }
}

impl RaftStateMachine<Types> for Machine {
    type SnapshotBuilder = Photographer;

    async fn applied_state(&mut self) -> Result<(Option<LogId>, Membership), Failure> {
        Ok((self.settled.last, self.settled.membership.clone()))
    }

    async fn apply<I>(&mut self, entries: I) -> Result<Vec<Applied>, Failure>
    where
        I: IntoIterator<Item = Entry> + Send,
        I::IntoIter: Send,
    {
        let mut next = self.settled.clone();
        let mut outcomes = Vec::new();
        #[cfg(test)]
        let entries: Vec<Entry> = entries.into_iter().collect();
        #[cfg(test)]
        self.store.tell_agreed(&entries);
        for entry in entries {
            next.last = Some(entry.log_id);
            outcomes.push(match entry.payload {
                EntryPayload::Blank => None,
                EntryPayload::Normal(command) => Some(next.state.apply(&command)),
                EntryPayload::Membership(membership) => {
                    next.membership = Membership::new(Some(entry.log_id), membership);
                    None
                }
            });
        }
        let stored = next.clone();
        let written = self
            .store
            .writing("the state", move |facts, _| put(facts, SETTLED, &stored));
        written
            .await
            .map_err(failure(ErrorSubject::StateMachine, ErrorVerb::Write))?;
        self.take_over(next);
        Ok(outcomes)
    }

    async fn get_snapshot_builder(&mut self) -> Photographer {
        Photographer {
            store: self.store.clone(),
            settled: self.settled.clone(),
        }
    }

    async fn begin_receiving_snapshot(&mut self) -> Result<Box<State>, Failure> {
        Ok(Box::default())
    }

    async fn install_snapshot(
        &mut self,
        meta: &SnapshotMeta,
        snapshot: Box<State>,
    ) -> Result<(), Failure> {
        let next = Settled {
            last: meta.last_log_id,
            membership: meta.last_membership.clone(),
            state: *snapshot,
        };
        let stored = Stored {
            meta: meta.clone(),
            state: next.state.clone(),
        };
        let settled = next.clone();
        let written = self.store.writing("a snapshot", move |facts, _| {
            put(facts, SNAPSHOT, &stored)?;
            put(facts, SETTLED, &settled)
        });
        written.await.map_err(failure(
            ErrorSubject::Snapshot(Some(meta.signature())),
            ErrorVerb::Write,
        ))?;
        self.take_over(next);
        Ok(())
    }

    async fn get_current_snapshot(&mut self) -> Result<Option<Snapshot<Types>>, Failure> {
        let stored = self
            .store
            .read("the snapshot", |facts, _| get::<Stored>(facts, SNAPSHOT));
        let stored = stored.map_err(failure(ErrorSubject::Snapshot(None), ErrorVerb::Read))?;
        Ok(stored.map(|stored| Snapshot {
            meta: stored.meta,
            snapshot: Box::new(stored.state),
        }))
    }
}

/// Makes a snapshot of the state as it was when this was made.
#[derive(Debug)]
pub struct Photographer {
    store: Store,
    settled: Settled,
}

impl RaftSnapshotBuilder<Types> for Photographer {
    async fn build_snapshot(&mut self) -> Result<Snapshot<Types>, Failure> {
        let settled = self.settled.clone();
        let index = settled.last.map_or(0, |l| l.index);
        let meta = SnapshotMeta {
            last_log_id: settled.last,
            last_membership: settled.membership,
            // The same entry gives the same state on every member, so its number is name enough.
            snapshot_id: format!("{index}"),
        };
        let stored = Stored {
            meta: meta.clone(),
            state: settled.state.clone(),
        };
        let written = self.store.writing("a snapshot", move |facts, _| {
            // One that was received meanwhile may be newer.
            let known: Option<Stored> = get(facts, SNAPSHOT)?;
            if known.is_some_and(|k| k.meta.last_log_id > stored.meta.last_log_id) {
                return Ok(());
            }
            put(facts, SNAPSHOT, &stored)
        });
        written.await.map_err(failure(
            ErrorSubject::Snapshot(Some(meta.signature())),
            ErrorVerb::Write,
        ))?;
        Ok(Snapshot {
            meta,
            snapshot: Box::new(settled.state),
        })
    }
}
