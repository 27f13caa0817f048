//! What tells two indexes apart, for a model checker.
//!
//! Two indexes are the same state if the same events make the same actions of both, and the same answers.
//! Left out is what follows from the rest: the entries in tables and runs (a function of the log up to
//! `applied`, of where it was cut, and of the states that were held meanwhile), what a question has found so far
//! (a function of what it asks and how far it is), and the pages that a job has in its hands. Left out are also
//! statistics, and the counters that number questions, I/O and runs: what was given out of them and is still
//! under way is in here. The configuration is the checker's own.
//!
//! Invariants:
//! - what is equal has the same hash: nothing goes in that depends on an address in memory, or on chance.

use std::hash::{Hash, Hasher};

use crate::ask::{Asked, Work};
use crate::flow::Publishing;
use crate::index::{Frozen, Index, PageRead};
use crate::job::{Job, Source};
use crate::memtable::Memtable;

impl Hash for Index {
    fn hash<H: Hasher>(&self, state: &mut H) {
        (self.applied, self.covered, self.generation).hash(state);
        (self.runnable, self.no_room, self.stopped.is_some()).hash(state);
        (self.standing, self.pressed).hash(state);
        // A value that was put anew is no entry of the log: the sizes tell of it.
        self.active.hash(state);
        self.frozen.hash(state);
        state.write_usize(self.runs.len());
        for run in &self.runs {
            (run.name(), &run.record.clip, run.filter.is_some()).hash(state);
        }
        self.attachment.as_ref().map(|it| it.id).hash(state);
        state.write_usize(self.retired.len());
        self.retired.iter().for_each(|(run, _)| run.hash(state));
        self.doomed.iter().for_each(|it| it.name.hash(state));
        self.damaged.hash(state);
        (&self.snapshots, &self.given).hash(state);
        (&self.asked, &self.tired).hash(state);
        (&self.reads, &self.queue, self.reading).hash(state);
        (&self.jobs, &self.publishing, &self.pending).hash(state);
    }
}

impl Hash for Memtable {
    fn hash<H: Hasher>(&self, state: &mut H) {
        (self.entries(), self.objects(), self.bytes(), self.last()).hash(state);
    }
}

impl Hash for Frozen {
    fn hash<H: Hasher>(&self, state: &mut H) {
        (&*self.table, self.covered, &self.attachment).hash(state);
    }
}

impl Hash for PageRead {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.waiters.hash(state);
    }
}

impl Hash for Publishing {
    fn hash<H: Hasher>(&self, state: &mut H) {
        (self.job, self.covered, self.runs.len()).hash(state);
        (self.root_under_way, self.discarded, &self.narrowed).hash(state);
    }
}

impl Hash for Asked {
    fn hash<H: Hasher>(&self, state: &mut H) {
        (&self.work, self.seq, self.waiting, self.ahead).hash(state);
        state.write_usize(self.held.len());
        self.held.iter().for_each(|(page, _)| page.hash(state));
    }
}

impl Hash for Work {
    fn hash<H: Hasher>(&self, state: &mut H) {
        std::mem::discriminant(self).hash(state);
        match self {
            Work::Objects { keys, found } => {
                keys.hash(state);
                found.iter().for_each(|found| found.is_some().hash(state));
            }
            Work::Bucket { key } => key.hash(state),
            Work::Empty {
                from, then, empty, ..
            } => (from, then, empty).hash(state),
            Work::Versions {
                bucket,
                bucket_key,
                listing,
            } => (bucket, bucket_key, listing.progress()).hash(state),
            Work::List {
                bucket,
                bucket_key,
                listing,
                from,
            } => {
                (bucket, bucket_key, from).hash(state);
                listing.progress().hash(state);
            }
            Work::Buckets {
                from,
                max,
                buckets,
                more,
            } => (from, max, buckets.len(), more).hash(state),
            Work::Items {
                from,
                max_bytes,
                bytes,
                items,
                more,
            } => (from, max_bytes, bytes, items.len(), more).hash(state),
            Work::Digest { from, digesting } => (from, digesting.progress()).hash(state),
        }
    }
}

impl Hash for Job {
    fn hash<H: Hasher>(&self, state: &mut H) {
        (&self.inputs, self.phase, self.writes, self.reads).hash(state);
        match &self.source {
            Source::Table { covered, after, .. } => (covered, after).hash(state),
            Source::Runs { spans } => spans.iter().for_each(|span| span.progress().hash(state)),
        }
        self.builder.progress().hash(state);
        let attachment = self.attachment.as_ref();
        attachment.map(|it| it.chunks.progress()).hash(state);
        self.kept().hash(state);
    }
}
