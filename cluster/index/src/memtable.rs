//! What is not in a run yet: keys with their versions, in memory.
//!
//! Invariants:
//! - of a key the newest version is always kept, and of the older ones those that a snapshot sees;
//! - the bytes counted are at least those that the contents take.

use std::collections::BTreeMap;
use std::ops::Bound;

use ashlar_layout::page::EntryKind;

/// What a key and its version cost beside their bytes: node, boxes, slack.
const OVERHEAD: usize = 128;

/// What an entry of the journal made of a key.
#[derive(Clone, Debug)]
pub(crate) struct Version {
    pub(crate) seq: u64,
    pub(crate) kind: EntryKind,
    pub(crate) value: Box<[u8]>,
}

#[derive(Clone, Debug)]
struct Cell {
    newest: Version,
    /// Newest first.
    older: Vec<Version>,
}

/// A sorted table in memory.
#[derive(Clone, Debug, Default)]
pub(crate) struct Memtable {
    cells: BTreeMap<Box<[u8]>, Cell>,
    bytes: usize,
    entries: u64,
}

impl Cell {
    fn at(&self, seq: u64) -> Option<&Version> {
        if self.newest.seq <= seq {
            return Some(&self.newest);
        }
        self.older.iter().find(|version| version.seq <= seq)
    }
}

impl Memtable {
    /// Adds a version that is newer than all there are of the key. `seen` tells whether a snapshot
    /// sees a version in this range of numbers, its end excluded.
    pub(crate) fn insert(&mut self, key: &[u8], version: Version, seen: impl Fn(u64, u64) -> bool) {
        let value = version.value.len();
        let Some(cell) = self.cells.get_mut(key) else {
            self.bytes += key.len() + value + OVERHEAD;
            self.entries += 1;
            let older = Vec::new();
            let newest = version;
            self.cells.insert(key.into(), Cell { newest, older });
            return;
        };
        let seq = version.seq;
        let before = std::mem::replace(&mut cell.newest, version);
        self.bytes += value;
        if seen(before.seq, seq) {
            self.bytes += OVERHEAD;
            self.entries += 1;
            cell.older.insert(0, before);
        } else {
            self.bytes = self.bytes.saturating_sub(before.value.len());
        }
    }

    /// What a snapshot sees of a key here.
    pub(crate) fn get(&self, key: &[u8], seq: u64) -> Option<&Version> {
        self.cells.get(key)?.at(seq)
    }

    /// From a key on: each key, and what a snapshot sees of it here, if anything.
    pub(crate) fn range<'a>(
        &'a self,
        from: &[u8],
        seq: u64,
    ) -> impl Iterator<Item = (&'a [u8], &'a Version)> + use<'a> {
        let bounds = (Bound::Included(from), Bound::Unbounded);
        let cells = self.cells.range::<[u8], _>(bounds);
        cells.filter_map(move |(key, cell)| Some((&**key, cell.at(seq)?)))
    }

    /// Behind a key: each key and all of its versions, newest first.
    pub(crate) fn all_after<'a>(
        &'a self,
        after: Option<&[u8]>,
    ) -> impl Iterator<Item = (&'a [u8], impl Iterator<Item = &'a Version> + use<'a>)> + use<'a>
    {
        let from = after.map_or(Bound::Unbounded, Bound::Excluded);
        let cells = self.cells.range::<[u8], _>((from, Bound::Unbounded));
        cells.map(|(key, cell)| {
            let versions = std::iter::once(&cell.newest).chain(&cell.older);
            (&**key, versions)
        })
    }

    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    pub(crate) fn entries(&self) -> u64 {
        self.entries
    }
}
