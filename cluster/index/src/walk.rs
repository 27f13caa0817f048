//! Reading tables and runs as one map, at a snapshot.
//!
//! Invariants:
//! - of each key the newest version that the snapshot sees is shown, and none if that is a tombstone. As
//!   a rule the first table or run that has the key has that version; a payload that was put back is an old
//!   version in a new table. Of one version the newer table or run tells the value;
//! - a walk that must wait has noted from where it goes on: what was shown is not shown again, and what
//!   was not is not left out, though tables and runs be others when it goes on;
//! - a walk that goes on without having come any further keeps all pages that it had, so that a small
//!   cache delays it but never stops it; and what it asked for ahead of itself it keeps until it is there.

use std::iter::Peekable;
use std::sync::Arc;

use ashlar_layout::page::EntryKind;

use crate::api::IndexError;
use crate::cache::{PageKey, Shared};
use crate::filter;
use crate::key;
use crate::memtable::{Memtable, Version};
use crate::run::{Cursor, Pages, Run, State};

/// What there is to read, newest first.
pub(crate) struct Sources<'a> {
    pub(crate) tables: Vec<&'a Memtable>,
    pub(crate) runs: &'a [Arc<Run>],
    /// The last entry that is seen.
    pub(crate) seq: u64,
}

/// What is seen of a key.
#[derive(Clone, Copy)]
pub(crate) struct Seen<'a> {
    pub(crate) seq: u64,
    pub(crate) kind: EntryKind,
    pub(crate) value: &'a [u8],
}

/// What to do after a key.
pub(crate) enum Step {
    Next,
    /// On from this key.
    Seek(Vec<u8>),
    Stop,
    /// This key was not taken: on with it at the next turn.
    Tired,
}

/// How far a walk came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Walked {
    /// Nothing more follows.
    Finished,
    /// It was told to stop.
    Stopped,
    /// Pages are missing.
    Missing,
    /// It has worked long enough for once.
    Tired,
}

/// What a search for one key came to.
pub(crate) enum Got<R> {
    Found(R),
    Absent,
    Missing,
}

/// Is shown each key in turn.
pub(crate) type Visit<'v> = dyn FnMut(&[u8], Seen<'_>) -> Result<Step, IndexError> + 'v;

/// Pages that a question holds on to while it waits.
pub(crate) type Held = Vec<(PageKey, Shared)>;

impl Sources<'_> {
    /// Looks for one key.
    pub(crate) fn get<R>(
        &self,
        key: &[u8],
        pages: &mut Pages<'_>,
        found: &mut Held,
        read: impl FnOnce(Seen<'_>) -> R,
    ) -> Got<R> {
        let mut best: Option<&Version> = None;
        let newer = |best: Option<u64>, last: u64| best.is_none_or(|best| best < last);
        for table in &self.tables {
            let seq = best.map(|best| best.seq);
            if newer(seq, table.last())
                && let Some(version) = table.get(key, self.seq)
                && newer(seq, version.seq)
            {
                best = Some(version);
            }
        }
        let mut seq = best.map(|best| best.seq);
        let mut in_run: Option<Cursor> = None;
        let hash = filter::hash(key);
        for run in self.runs {
            let (first, last) = (run.record.first.0, run.record.last.0);
            if !newer(seq, last) || first > self.seq || !run.may_have(key, hash) {
                continue;
            }
            let mut cursor = Cursor::new(run);
            cursor.seek_exact(key, self.seq, pages);
            match cursor.state {
                State::Missing => {
                    found.extend(cursor.pages());
                    found.extend(in_run.iter().flat_map(Cursor::pages));
                    return Got::Missing;
                }
                State::At if cursor.spot.key == key && newer(seq, cursor.spot.seq) => {
                    seq = Some(cursor.spot.seq);
                    in_run = Some(cursor);
                }
                State::At | State::End => found.extend(cursor.pages()),
            }
        }
        match (&in_run, best) {
            (Some(cursor), _) => shown(cursor.seen(), read),
            (None, Some(version)) => shown(version.into(), read),
            (None, None) => Got::Absent,
        }
    }
}

fn shown<R>(seen: Seen<'_>, read: impl FnOnce(Seen<'_>) -> R) -> Got<R> {
    if seen.kind == EntryKind::Tombstone {
        return Got::Absent;
    }
    Got::Found(read(seen))
}

impl Cursor {
    fn seen(&self) -> Seen<'_> {
        Seen {
            seq: self.spot.seq,
            kind: self.spot.kind,
            value: self.value(),
        }
    }
}

impl<'a> From<&'a Version> for Seen<'a> {
    fn from(version: &'a Version) -> Self {
        Seen {
            seq: version.seq,
            kind: version.kind,
            value: &version.value,
        }
    }
}

/// Shows all keys from `from` on; `held` gets what the walk needs when it goes on.
pub(crate) fn walk(
    sources: &Sources<'_>,
    from: &mut Vec<u8>,
    pages: &mut Pages<'_>,
    held: &mut Held,
    budget: &mut usize,
    visit: &mut Visit<'_>,
) -> Result<Walked, IndexError> {
    let began = from.clone();
    let runs = sources.runs.iter();
    let runs = runs.filter(|run| run.record.first.0 <= sources.seq);
    let mut merged = Merged {
        seq: sources.seq,
        cursors: runs.map(Cursor::new).collect(),
        tables: sources.tables.iter().map(|t| (*t, None)).collect(),
    };
    let walked = merged.run(from, pages, budget, visit);
    if let Some(error) = pages.error.take() {
        return Err(error);
    }
    if matches!(walked, Ok(Walked::Missing | Walked::Tired)) {
        let now = merged.cursors.iter().flat_map(Cursor::pages).collect();
        let ahead = |page: &PageKey| merged.cursors.iter().any(|c| c.is_before(page));
        let stuck = *from == began;
        keep(held, pages.held, now, |page| stuck || ahead(page));
    }
    walked
}

/// What to hold on to: what the cursors have, and some of what was held before.
fn keep(
    held: &mut Held,
    before: &[(PageKey, Shared)],
    now: Held,
    still: impl Fn(&PageKey) -> bool,
) {
    *held = now;
    for (key, page) in before {
        if still(key) && !held.iter().any(|(have, _)| have == key) {
            held.push((*key, page.clone()));
        }
    }
}

type Rest<'a> = Peekable<Box<dyn Iterator<Item = (&'a [u8], &'a Version)> + 'a>>;

struct Merged<'a> {
    seq: u64,
    cursors: Vec<Cursor>,
    tables: Vec<(&'a Memtable, Option<Rest<'a>>)>,
}

impl<'a> Merged<'a> {
    fn run(
        &mut self,
        from: &mut Vec<u8>,
        pages: &mut Pages<'_>,
        budget: &mut usize,
        visit: &mut Visit<'_>,
    ) -> Result<Walked, IndexError> {
        for cursor in &mut self.cursors {
            cursor.seek(from, self.seq, pages);
        }
        self.seek_tables(from);
        let mut current = Vec::new();
        while !self.missing() {
            if !self.least(&mut current) {
                return Ok(Walked::Finished);
            }
            from.clone_from(&current);
            if *budget == 0 {
                return Ok(Walked::Tired);
            }
            *budget -= 1;
            if !self.skip_unseen(&current, pages) {
                return Ok(Walked::Missing);
            }
            let step = match self.newest(&current) {
                Some(seen) if seen.kind != EntryKind::Tombstone => visit(&current, seen)?,
                _ => Step::Next,
            };
            match step {
                Step::Stop => return Ok(Walked::Stopped),
                Step::Tired => return Ok(Walked::Tired),
                // A walk goes forward, whatever it is told: it would never end otherwise.
                Step::Seek(target) if target > current => {
                    from.clone_from(&target);
                    for cursor in &mut self.cursors {
                        cursor.forward(&target, self.seq, pages);
                    }
                    self.seek_tables(&target);
                }
                Step::Next | Step::Seek(_) => {
                    key::step_past(from);
                    self.pass(&current, pages);
                }
            }
        }
        Ok(Walked::Missing)
    }

    fn missing(&self) -> bool {
        self.cursors.iter().any(|c| c.state == State::Missing)
    }

    fn seek_tables(&mut self, from: &[u8]) {
        for (table, range) in &mut self.tables {
            let all: Box<dyn Iterator<Item = _>> = Box::new(table.range(from, self.seq));
            *range = Some(all.peekable());
        }
    }

    /// The least key that any of them is at.
    fn least(&mut self, out: &mut Vec<u8>) -> bool {
        let at = self.cursors.iter().filter(|c| c.state == State::At);
        let mut least = at.map(|c| c.spot.key.as_slice()).min();
        for (_, range) in &mut self.tables {
            if let Some((key, _)) = range.as_mut().and_then(Peekable::peek)
                && least.is_none_or(|least| *key < least)
            {
                least = Some(key);
            }
        }
        let Some(least) = least else {
            return false;
        };
        out.clear();
        out.extend_from_slice(least);
        true
    }

    /// Steps over versions of this key that are too new; false if a page is missing for that.
    fn skip_unseen(&mut self, key: &[u8], pages: &mut Pages<'_>) -> bool {
        for cursor in &mut self.cursors {
            while cursor.state == State::At && cursor.spot.seq > self.seq && cursor.spot.key == key
            {
                cursor.next(pages);
            }
        }
        !self.missing()
    }

    /// Tables and cursors stand newest first: of one version the first one tells.
    fn newest(&mut self, key: &[u8]) -> Option<Seen<'_>> {
        let mut newest: Option<Seen<'_>> = None;
        let newer = |newest: &Option<Seen<'_>>, seq| newest.is_none_or(|n| n.seq < seq);
        for (_, range) in &mut self.tables {
            if let Some((at, version)) = range.as_mut().and_then(Peekable::peek)
                && *at == key
                && newer(&newest, version.seq)
            {
                newest = Some((*version).into());
            }
        }
        for cursor in &self.cursors {
            let spot = &cursor.spot;
            if cursor.state == State::At && newer(&newest, spot.seq) && spot.key == key {
                newest = Some(cursor.seen());
            }
        }
        newest
    }

    /// Steps over all versions of this key.
    fn pass(&mut self, key: &[u8], pages: &mut Pages<'_>) {
        for (_, range) in &mut self.tables {
            if let Some(range) = range {
                range.next_if(|(at, _)| *at == key);
            }
        }
        for cursor in &mut self.cursors {
            while cursor.state == State::At && cursor.spot.key == key {
                cursor.next(pages);
            }
        }
    }
}
