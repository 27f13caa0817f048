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

use crate::api::{Action, Change, Full, Object};
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
        self.put_all(seq, encoded(change))?;
        self.applied = seq;
        Ok(())
    }

    /// Takes an entry of another replica's snapshot, with its version, into an index that has nothing
    /// yet: each key once, in any order. Until [`Index::ingested`] it covers nothing, and a root of
    /// it is opened as if there were none.
    pub fn ingest(&mut self, version: Seq, change: Change) -> Result<(), Full> {
        self.put_all(version, encoded(change))
    }

    /// Puts another value to an entry that stands in the map, and is its key's newest: the payload of an
    /// object that had to be fetched from another replica. It is no entry of the journal, and is lost in a
    /// crash unless a root that was frozen later is durable: then it is what it was before.
    ///
    /// The owner sees to it that the key was neither put nor deleted since it looked: a version that nothing
    /// has any more would be there again.
    pub fn amend(&mut self, version: Seq, change: Change) -> Result<(), Full> {
        let mut entries = encoded(change);
        entries.retain(|(key, ..)| {
            let tables = self.frozen.iter().map(|frozen| &*frozen.table);
            let newest = tables.chain([&self.active]);
            let newest = newest.filter_map(|table| table.newest(key)).max();
            version <= self.applied && newest <= Some(version.0)
        });
        self.put_all(version, entries)
    }

    /// All of a snapshot was ingested: the index is at this entry.
    pub fn ingested(&mut self, seq: Seq) {
        self.applied = self.applied.max(seq);
    }

    /// Puts all of them, or none.
    fn put_all(&mut self, seq: Seq, entries: Vec<Entry>) -> Result<(), Full> {
        if entries.is_empty() {
            return Ok(());
        }
        if self.active.bytes() >= 2 * self.config.limits.table_bytes {
            let frozen = self.frozen.iter().map(|f| f.table.bytes());
            let waiting = self.active.bytes() + frozen.sum::<usize>();
            return Err(Full { waiting });
        }
        let seq = seq.0;
        let snapshots = &self.snapshots;
        let seen = |from: u64, to: u64| snapshots.range(from..to).next().is_some();
        for (key, kind, value) in entries {
            self.bytes_in += (key.len() + value.len()) as u64;
            // An object that is a version is put together with that.
            self.versions |= key::is_version(&key);
            let value = value.into_boxed_slice();
            self.active.insert(&key, Version { seq, kind, value }, seen);
        }
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
            self.freeze_all(attachment, out);
        }
        true
    }

    /// The same with nothing new in it, for what the owner gives along, or to be there at the next opening.
    pub fn freeze_anyway(&mut self, attachment: Bytes, out: &mut Vec<Action>) -> bool {
        let may = self.may_freeze();
        if may {
            self.freeze_all(attachment, out);
        }
        may
    }

    /// Whether anything that was frozen is not durable yet.
    pub fn is_writing_out(&self) -> bool {
        !self.frozen.is_empty()
    }

    fn freeze_all(&mut self, attachment: Bytes, out: &mut Vec<Action>) {
        self.frozen.push_back(Frozen {
            table: Arc::new(std::mem::take(&mut self.active)),
            covered: self.applied,
            attachment,
        });
        self.keep_jobs(out);
    }
}

/// An entry: key, kind and value.
type Entry = (Vec<u8>, EntryKind, Vec<u8>);

/// The entries that a change makes.
fn encoded(change: Change) -> Vec<Entry> {
    let mut entries = Vec::new();
    encode_into(&mut entries, change);
    entries
}

fn encode_into(entries: &mut Vec<Entry>, change: Change) {
    entries.push(match change {
        Change::Nothing => return,
        Change::All(changes) => {
            for change in changes {
                encode_into(entries, change);
            }
            return;
        }
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
            let value = value_of(object);
            (key::object(&bucket, &key), EntryKind::Object, value)
        }
        Change::Delete { bucket, key } => {
            (key::object(&bucket, &key), EntryKind::Tombstone, Vec::new())
        }
        Change::PutVersion {
            bucket,
            key,
            id,
            object,
        } => {
            let value = value_of(object);
            (key::version(&bucket, &key, id), EntryKind::Object, value)
        }
        Change::DropVersion { bucket, key, id } => {
            let key = key::version(&bucket, &key, id);
            (key, EntryKind::Tombstone, Vec::new())
        }
    });
}

fn value_of(object: Object) -> Vec<u8> {
    ObjectValue {
        modified_ms: object.modified_ms,
        manifest: object.manifest,
        tag: object.tag,
        place: object.place,
        payload: object.payload.into(),
    }
    .encode()
}
