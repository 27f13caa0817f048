//! What is not in a run yet: keys with their versions, in memory.
//!
//! Invariants:
//! - of a key the newest version is always kept, and of the older ones those that a snapshot sees;
//! - of one version the value that came last is kept, and what is older than the newest changes nothing;
//! - the bytes counted are at least those that the contents take.

use std::collections::BTreeMap;
use std::ops::Bound;

use ashlar_layout::page::EntryKind;
use ashlar_layout::root::Window;

use crate::clip;
use crate::key;

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
    objects: u64,
    last: u64,
}

impl Cell {
    fn at(&self, seq: u64) -> Option<&Version> {
        if self.newest.seq <= seq {
            return Some(&self.newest);
        }
        self.older.iter().find(|version| version.seq <= seq)
    }
}

/// Whether an entry counts as an object: its versions are counted with it, and not besides.
fn counts(key: &[u8], kind: EntryKind) -> bool {
    kind == EntryKind::Object && key::is_object(key)
}

impl Memtable {
    /// Adds a version that is newer than all there are of the key, or puts another value to the newest.
    /// `seen` tells whether a snapshot sees a version in this range of numbers, its end excluded.
    pub(crate) fn insert(&mut self, key: &[u8], version: Version, seen: impl Fn(u64, u64) -> bool) {
        let value = version.value.len();
        let Some(cell) = self.cells.get_mut(key) else {
            self.bytes += key.len() + value + OVERHEAD;
            self.entries += 1;
            self.objects += u64::from(counts(key, version.kind));
            self.last = self.last.max(version.seq);
            let older = Vec::new();
            let newest = version;
            self.cells.insert(key.into(), Cell { newest, older });
            return;
        };
        let seq = version.seq;
        if seq < cell.newest.seq {
            return;
        }
        self.last = self.last.max(seq);
        self.objects += u64::from(counts(key, version.kind));
        let before = std::mem::replace(&mut cell.newest, version);
        self.bytes += value;
        if seen(before.seq, seq) {
            self.bytes += OVERHEAD;
            self.entries += 1;
            cell.older.insert(0, before);
        } else {
            self.objects -= u64::from(counts(key, before.kind));
            self.bytes = self.bytes.saturating_sub(before.value.len());
        }
    }

    /// The newest version that there is of a key.
    pub(crate) fn newest(&self, key: &[u8]) -> Option<u64> {
        Some(self.cells.get(key)?.newest.seq)
    }

    /// No entry is newer than this.
    pub(crate) fn last(&self) -> u64 {
        self.last
    }

    /// How many entries are objects.
    pub(crate) fn objects(&self) -> u64 {
        self.objects
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

    /// Of each key that a window shows the newest version.
    pub(crate) fn newest_within<'a>(
        &'a self,
        windows: &'a [Window],
    ) -> impl Iterator<Item = (&'a [u8], &'a Version)> + use<'a> {
        let ends = |window: &Window, key: &[u8]| !window.to.is_empty() && *key >= *window.to;
        windows.iter().flat_map(move |window| {
            let from = self.range(&window.from, u64::MAX);
            from.take_while(move |(key, _)| !ends(window, key))
        })
    }

    /// All versions of the keys that a window shows.
    pub(crate) fn within(&self, windows: &[Window]) -> Self {
        let mut out = Self {
            last: self.last,
            ..Self::default()
        };
        let seen = self.cells.iter();
        for (key, cell) in seen.filter(|(key, _)| clip::sees(windows, key)) {
            out.bytes += key.len();
            for version in std::iter::once(&cell.newest).chain(&cell.older) {
                out.bytes += version.value.len() + OVERHEAD;
                out.entries += 1;
                out.objects += u64::from(counts(key, version.kind));
            }
            out.cells.insert(key.clone(), cell.clone());
        }
        out
    }

    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    pub(crate) fn entries(&self) -> u64 {
        self.entries
    }
}
