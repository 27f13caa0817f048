//! Forgetting everything, so that another replica's map can be learned in its place.
//!
//! Invariants:
//! - nothing is freed before a root that does not name it is durable: until then a crash brings back what there
//!   was, and the extents that it points to stay pinned;
//! - a root that is under way meanwhile, whether it comes to be durable or not, is one of those that are to
//!   be superseded: its chunks wait, too, and so does the next root.

use ashlar_layout::ids::Seq;
use ashlar_layout::root::{AttachmentRecord, Chunk, decode_pins};

use crate::api::{Action, IndexError};
use crate::cache::RunName;
use crate::index::Index;
use crate::job::Phase;
use crate::memtable::Memtable;
use crate::opening::Opening;
use crate::run::{Run, name_of};

/// What goes with the next root.
#[derive(Clone, Debug)]
pub(crate) struct Doomed {
    pub(crate) name: RunName,
    pub(crate) chunks: Vec<Chunk>,
    /// The extents that it pins till then.
    pub(crate) pins: Vec<u32>,
}

impl From<&Run> for Doomed {
    fn from(run: &Run) -> Self {
        Self {
            name: run.name(),
            chunks: run.record.chunks.clone(),
            pins: run.pins(),
        }
    }
}

impl Index {
    /// Forgets all that it has: for a replica whose index is damaged, and that learns the map anew ([`Index::ingest`]).
    /// It is at entry 0, and covers nothing. What is durable stays as it is until the first root of what was learned
    /// supersedes it, so a crash before that brings back the damaged index, with what its owner gave along. Questions
    /// that wait are answered with an error, and snapshots are gone.
    pub fn clear(&mut self, out: &mut Vec<Action>) {
        for id in std::mem::take(&mut self.asked).into_keys() {
            let result = Err(IndexError::Cleared);
            let question = id;
            out.push(Action::Done { question, result });
        }
        self.tired.clear();
        self.snapshots.clear();
        self.given.clear();
        // Pages that nobody asked the device for yet are not wanted any more; the others are waited for.
        for page in std::mem::take(&mut self.queue) {
            self.reads.remove(&page);
        }
        for read in self.reads.values_mut() {
            read.waiters.clear();
        }
        for run in std::mem::take(&mut self.runs) {
            self.doom(Doomed::from(&*run));
        }
        let attachment = self.attachment.take();
        self.doom_attachment(attachment);
        let mut published = None;
        if let Some(mut publishing) = self.publishing.take()
            && publishing.root_under_way
        {
            for run in std::mem::take(&mut publishing.runs) {
                self.doom(Doomed::from(&*run));
            }
            let attachment = publishing.attachment.take();
            self.doom_attachment(attachment);
            publishing.discarded = true;
            published = Some(publishing.job);
            self.publishing = Some(publishing);
        }
        for (id, job) in &mut self.jobs {
            if Some(*id) != published {
                job.phase = Phase::Abandoned;
            }
        }
        self.frozen.clear();
        self.active = Memtable::default();
        self.damaged.clear();
        (self.applied, self.covered) = (Seq(0), Seq(0));
        self.runnable = true;
        self.keep_jobs(out);
        self.free_retired(out);
    }

    fn doom_attachment(&mut self, attachment: Option<AttachmentRecord>) {
        if let Some(AttachmentRecord { id, chunks, .. }) = attachment {
            let name = self.own(id);
            let pins = Vec::new();
            self.doom(Doomed { name, chunks, pins });
        }
    }

    /// Something goes with the next root that does not name it; what is said twice goes once.
    pub(crate) fn doom(&mut self, doomed: Doomed) {
        if self.doomed.iter().all(|it| it.name != doomed.name) {
            self.doomed.push(doomed);
        }
    }

    /// A root of this generation stands on the device, and cannot even be decoded: those of this index, which has
    /// nothing of it, are to be newer.
    pub fn supersede(&mut self, generation: u64) {
        self.generation = self.generation.max(generation);
    }
}

impl Opening {
    /// For one that ended with an error: an index with nothing in it, as [`Index::clear`] makes it of one that could be
    /// opened. Reads that are still under way may be answered to it.
    pub fn cleared(&self) -> Index {
        let mut index = Index::new(self.config.clone());
        index.next = self.next;
        let Some(root) = &self.root else {
            return index;
        };
        index.supersede(root.generation);
        for (at, record) in root.runs.iter().enumerate() {
            let pins = self.pins.get(&at).and_then(|bytes| decode_pins(bytes));
            index.doom(Doomed {
                name: name_of(record),
                chunks: record.chunks.clone(),
                pins: pins.unwrap_or_default(),
            });
        }
        index.doom_attachment(root.attachment.clone());
        index
    }
}
