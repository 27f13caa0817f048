//! What comes into an index: the journal's entries, another replica's, and values put anew.
//!
//! Invariants:
//! - entries of the journal come in order, once each: a second time they change nothing;
//! - over the bound nothing is taken, and the index is as it was.

use std::sync::Arc;

use ashlar_layout::ids::Seq;
use ashlar_layout::page::EntryKind;
use ashlar_layout::root::ObjectValue;
use bytes::Bytes;

use crate::api::{Action, Change, Full};
use crate::index::{Frozen, Index};
use crate::key;
use crate::memtable::Version;

impl Index {
    /// Applies entry `seq` of the journal: entries come in order, and those that are in it already
    /// change nothing.
    pub fn apply(&mut self, seq: Seq, change: Change) -> Result<(), Full> {
        if seq <= self.applied {
            return Ok(());
        }
        if let Some((key, kind, value)) = encoded(change) {
            self.put(seq, key, kind, value)?;
        }
        self.applied = seq;
        Ok(())
    }

    /// Takes an entry of another replica's snapshot, with its version, into an index that has nothing
    /// yet: each key once, in any order. Until [`Index::ingested`] it covers nothing, and a root of
    /// it is opened as if there were none.
    pub fn ingest(&mut self, version: Seq, change: Change) -> Result<(), Full> {
        let Some((key, kind, value)) = encoded(change) else {
            return Ok(());
        };
        self.put(version, key, kind, value)
    }

    /// Puts another value to a version that stands in the map, and is its key's newest: the payload of an
    /// object that had to be fetched from another replica. It is no entry of the journal, and is lost in a
    /// crash unless a root that was frozen later is durable: then it is what it was before.
    ///
    /// The owner sees to it that the key was neither put nor deleted since it looked: a version that nothing
    /// has any more would be there again.
    pub fn amend(&mut self, version: Seq, change: Change) -> Result<(), Full> {
        let Some((key, kind, value)) = encoded(change) else {
            return Ok(());
        };
        let tables = self.frozen.iter().map(|frozen| &*frozen.table);
        let newest = tables
            .chain([&self.active])
            .filter_map(|t| t.newest(&key))
            .max();
        if version > self.applied || newest > Some(version.0) {
            return Ok(());
        }
        self.put(version, key, kind, value)
    }

    /// All of a snapshot was ingested: the index is at this entry.
    pub fn ingested(&mut self, seq: Seq) {
        self.applied = self.applied.max(seq);
    }

    fn put(&mut self, seq: Seq, key: Vec<u8>, kind: EntryKind, value: Vec<u8>) -> Result<(), Full> {
        if self.active.bytes() >= 2 * self.config.limits.table_bytes {
            let frozen = self.frozen.iter().map(|f| f.table.bytes());
            let waiting = self.active.bytes() + frozen.sum::<usize>();
            return Err(Full { waiting });
        }
        self.bytes_in += (key.len() + value.len()) as u64;
        let value = value.into_boxed_slice();
        let seq = seq.0;
        let snapshots = &self.snapshots;
        let seen = |from: u64, to: u64| snapshots.range(from..to).next().is_some();
        self.active.insert(&key, Version { seq, kind, value }, seen);
        Ok(())
    }

    /// Whether so much is in memory that it should be written out: then call [`Index::freeze`].
    pub fn wants_freeze(&self) -> bool {
        self.active.bytes() >= self.config.limits.table_bytes && self.may_freeze()
    }

    fn may_freeze(&self) -> bool {
        self.frozen.len() < self.config.limits.tables
    }

    /// Journal space is wanted back: its runs are merged into one soon, so that nothing that is superseded points
    /// there any more. Only what was frozen before counts.
    pub fn press(&mut self) {
        self.pressed = self.runs.len() + self.frozen.len() > 1;
        self.runnable = true;
    }

    /// Begins to write out everything that was applied, together with what the owner will want to have
    /// back when it opens this state; false if too much is being written out already.
    pub fn freeze(&mut self, attachment: Bytes, out: &mut Vec<Action>) -> bool {
        if !self.may_freeze() {
            return false;
        }
        let newest = self.frozen.back().map_or(self.covered, |f| f.covered);
        if self.applied > newest || self.active.entries() > 0 {
            self.frozen.push_back(Frozen {
                table: Arc::new(std::mem::take(&mut self.active)),
                covered: self.applied,
                attachment,
            });
            self.keep_jobs(out);
        }
        true
    }
}

/// The entry that a change makes: key, kind and value.
fn encoded(change: Change) -> Option<(Vec<u8>, EntryKind, Vec<u8>)> {
    Some(match change {
        Change::Nothing => return None,
        Change::PutBucket { bucket, created_ms } => {
            let value = created_ms.to_le_bytes().to_vec();
            (key::bucket(&bucket), EntryKind::Bucket, value)
        }
        Change::DropBucket { bucket } => (key::bucket(&bucket), EntryKind::Tombstone, Vec::new()),
        Change::Put {
            bucket,
            key,
            object,
        } => {
            let value = ObjectValue {
                modified_ms: object.modified_ms,
                manifest: object.manifest,
                place: object.place,
                payload: object.payload.into(),
            };
            let value = value.encode();
            (key::object(&bucket, &key), EntryKind::Object, value)
        }
        Change::Delete { bucket, key } => {
            (key::object(&bucket, &key), EntryKind::Tombstone, Vec::new())
        }
    })
}
