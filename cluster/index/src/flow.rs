//! When tables are written out, runs merged, and roots published.
//!
//! Invariants:
//! - a root names only chunks that were written before a sync that succeeded;
//! - one root is under way at a time, and each has a higher generation than the one before;
//! - when a write fails nothing more is written, and nothing freed: what is durable is not known.
//!   Only "no room" is different: nothing was written, and the job is given up and begun anew later.

use std::sync::Arc;

use ashlar_layout::ids::Seq;
use ashlar_layout::root::{AttachmentRecord, Root, Window};
use bytes::Bytes;

use crate::api::{Action, IndexError, WriteFailure};
use crate::beside::Standing;
use crate::builder::{AttachmentBuilder, Builder};
use crate::cache::{Cache, RunName};
use crate::clear::Doomed;
use crate::index::{Index, Pending};
use crate::job::{Candidate, Job, Keep, Phase, Source, pick};
use crate::run::Run;
use crate::span::Span;

/// A root that is on its way, and what it makes true.
#[derive(Clone, Debug)]
pub(crate) struct Publishing {
    pub(crate) job: u64,
    pub(crate) runs: Vec<Arc<Run>>,
    pub(crate) covered: Seq,
    pub(crate) attachment: Option<AttachmentRecord>,
    /// A root will say so.
    pub(crate) rooted: bool,
    /// The sync that it waits for,
    sync: u64,
    /// or did wait for: its root is under way.
    pub(crate) root_under_way: bool,
    /// The index was cleared meanwhile: it makes nothing true, but its generation is used up.
    pub(crate) discarded: bool,
    /// What the index was narrowed to meanwhile.
    pub(crate) narrowed: Vec<Vec<Window>>,
    /// How many of the doomed it does not name.
    frees: usize,
}

impl Index {
    /// Lets the jobs work for one turn.
    pub(crate) fn run_jobs(&mut self, out: &mut Vec<Action>) {
        self.runnable = false;
        let budget = self.config.limits.step.max(1);
        for job in self.jobs.values_mut() {
            self.runnable |= job.step(budget);
        }
        self.keep_jobs(out);
    }

    /// Begins what is due, and gives out what the jobs want read and written.
    pub(crate) fn keep_jobs(&mut self, out: &mut Vec<Action>) {
        if self.stopped.is_some() || self.standing == Standing::Over {
            return;
        }
        self.begin_flush();
        self.begin_merges();
        let ids: Vec<u64> = self.jobs.keys().copied().collect();
        for id in ids {
            self.keep_job(id, out);
        }
        self.publish(out);
    }

    fn begin_flush(&mut self) {
        let flushing = |job: &Job| matches!(job.source, Source::Table { .. });
        let under_way = self.jobs.values().any(flushing);
        let crowded = self.runs.len() >= self.config.limits.runs.max(2);
        if under_way || crowded || self.no_room {
            return;
        }
        let Some(frozen) = self.frozen.front() else {
            return;
        };
        let (table, covered) = (frozen.table.clone(), frozen.covered);
        let attachment = frozen.attachment.clone();
        let entries = table.entries();
        let source = Source::Table {
            table,
            covered,
            after: None,
        };
        let keep = self.keep(self.runs.is_empty());
        let builder = self.builder(0, entries);
        let mut job = Job::new(source, Vec::new(), builder, keep);
        if !attachment.is_empty() {
            let id = self.run_id();
            job.attachment = Some(AttachmentBuilder::new(
                self.home,
                id,
                &attachment,
                &self.config,
            ));
        }
        self.add(job);
    }

    fn begin_merges(&mut self) {
        let merging = |jobs: &&Job| !jobs.inputs.is_empty();
        while self.jobs.values().filter(merging).count() < self.config.limits.merges
            && !self.no_room
        {
            let busy = |id: &RunName| {
                let merged = self.jobs.values().any(|job| job.inputs.contains(id));
                merged || self.damaged.contains(id)
            };
            let candidates: Vec<Candidate> = self
                .runs
                .iter()
                .map(|run| Candidate {
                    level: run.record.level,
                    entries: run.record.entries,
                    tombstones: run.record.tombstones,
                    placed: run.record.placed,
                    last: run.record.last.0,
                    busy: busy(&run.name()),
                })
                .collect();
            let oldest = self.snapshots.keys().next().copied().unwrap_or(u64::MAX);
            let limits = &self.config.limits;
            // What was frozen before it was wanted is to be merged as well.
            let pressed = self.pressed && self.frozen.is_empty();
            let waste = Some(limits.waste_bytes).filter(|_| !pressed);
            let Some((range, level)) = pick(&candidates, limits.fanout, waste, oldest) else {
                self.pressed &= self.runs.len() > 1 || !self.frozen.is_empty();
                return;
            };
            // Once is enough: what can be had was to be had from the runs that there are.
            self.pressed &= range.len() < self.runs.len();
            let bottom = range.end == self.runs.len();
            let inputs: Vec<Arc<Run>> = self.runs[range].to_vec();
            let entries = inputs.iter().map(|run| run.record.entries).sum();
            let span_bytes = self.config.limits.span_bytes;
            let span = |run: &Arc<Run>| Span::leaves(self.home.device, run, span_bytes);
            let spans = inputs.iter().map(span).collect();
            let ids = inputs.iter().map(|run| run.name()).collect();
            let keep = self.keep(bottom);
            let builder = self.builder(level, entries);
            self.add(Job::new(Source::Runs { spans }, ids, builder, keep));
        }
    }

    fn keep(&self, bottom: bool) -> Keep {
        Keep {
            snapshots: self.snapshots.keys().copied().collect(),
            bottom,
        }
    }

    fn builder(&mut self, level: u8, entries: u64) -> Builder {
        let id = self.run_id();
        Builder::new(self.home, id, level, entries, &self.config)
    }

    fn add(&mut self, job: Job) {
        let id = self.number();
        self.jobs.insert(id, job);
        self.runnable = true;
    }

    /// Gives out what a job wants read and written.
    fn keep_job(&mut self, id: u64, out: &mut Vec<Action>) {
        let Some(mut job) = self.jobs.remove(&id) else {
            return;
        };
        while let Some((file, chunk, bytes)) = job.next_write(self.config.limits.chunks.max(1)) {
            let token = self.number();
            let pending = Pending::Write {
                job: id,
                file,
                chunk,
            };
            self.pending.insert(token, pending);
            out.push(Action::Write { token, bytes });
            self.runnable = true;
        }
        if job.phase == Phase::Running {
            let mut reads = 0;
            let mut failed = None;
            for span in job.spans() {
                let token = self.number();
                match span.request(token) {
                    Ok(Some((at, len))) => {
                        reads += 1;
                        let run = span.run;
                        self.pending.insert(token, Pending::Span { job: id, run });
                        out.push(Action::Read { token, at, len });
                    }
                    Ok(None) => {}
                    Err(error) => failed = Some((span.run, error)),
                }
            }
            job.reads += reads;
            if let Some((run, error)) = failed {
                self.damage(run, &error, out);
                job.phase = Phase::Abandoned;
            }
        }
        job.settle();
        if job.phase != Phase::Abandoned || job.reads > 0 || job.writes > 0 {
            self.jobs.insert(id, job);
            return;
        }
        let chunks = job.leavings();
        if !chunks.is_empty() {
            out.push(Action::Free { chunks });
        }
    }

    pub(crate) fn span_read(
        &mut self,
        job: u64,
        token: u64,
        bytes: Option<Bytes>,
        out: &mut Vec<Action>,
    ) {
        let Some(running) = self.jobs.get_mut(&job) else {
            return;
        };
        let run = running.spans().iter().find(|span| span.awaits(token));
        let run = run.map(|span| span.run);
        if let Err(error) = running.arrived(token, bytes) {
            running.phase = Phase::Abandoned;
            if let Some(run) = run {
                self.damage(run, &error, out);
            }
        }
        self.runnable = true;
    }

    pub(crate) fn chunk_written(
        &mut self,
        job: u64,
        file: usize,
        chunk: usize,
        result: Result<u64, WriteFailure>,
    ) {
        let Some(running) = self.jobs.get_mut(&job) else {
            return;
        };
        running.writes -= 1;
        match result {
            Ok(at) => running.written(file, chunk, at),
            Err(WriteFailure::Full) => {
                running.phase = Phase::Abandoned;
                self.no_room = true;
            }
            Err(WriteFailure::Failed) => self.stop("a write"),
        }
        self.runnable = true;
    }

    /// Publishes a job that is ready: first everything is made durable.
    fn publish(&mut self, out: &mut Vec<Action>) {
        if self.publishing.is_some() {
            return;
        }
        let ready = self.jobs.iter().find(|(_, job)| job.phase == Phase::Ready);
        let Some((id, job)) = ready else {
            return;
        };
        let mut runs = self.runs.clone();
        let merged = |run: &Arc<Run>| job.inputs.contains(&run.name());
        let at = runs.iter().position(merged);
        let inputs = runs.iter().filter(|run| merged(run));
        let (level, smallest) = inputs.fold((0, u64::MAX), |(level, smallest), run| {
            let record = &run.record;
            (level.max(record.level), smallest.min(record.entries))
        });
        runs.retain(|run| !merged(run));
        if let Some(mut run) = job.builder.run() {
            if at.is_some() && run.record.entries < smallest.saturating_mul(2) {
                // They were much the same keys: the run is none of the next level, where what is outdated in it
                // would wait, and keep extents, until there are as many of its kind as had to come for it.
                run.record.level = run.record.level.min(level);
            }
            runs.insert(at.unwrap_or(0), Arc::new(run));
        }
        let (covered, attachment) = match &job.source {
            Source::Table { covered, .. } => {
                let attachment = job.attachment.as_ref();
                (*covered, attachment.map(AttachmentBuilder::record))
            }
            Source::Runs { .. } => (self.covered, self.attachment.clone()),
        };
        let rooted = self.standing.publishes(covered);
        let job = *id;
        let token = self.number();
        self.publishing = Some(Publishing {
            job,
            runs,
            covered,
            attachment,
            rooted,
            sync: token,
            root_under_way: false,
            discarded: false,
            narrowed: Vec::new(),
            frees: self.doomed.len(),
        });
        self.pending.insert(token, Pending::Sync);
        out.push(Action::Sync { token });
    }

    pub(crate) fn synced(
        &mut self,
        token: u64,
        ok: bool,
        cache: &mut Cache,
        out: &mut Vec<Action>,
    ) {
        if !ok {
            return self.stop("a sync");
        }
        // That of a root that was given up says nothing of what the next one names.
        let publishing = self.publishing.as_mut().filter(|it| it.sync == token);
        let Some(publishing) = publishing else {
            return;
        };
        if !publishing.rooted {
            return self.publish_to_itself(cache);
        }
        publishing.root_under_way = true;
        let generation = self.generation + 1;
        let root = Root {
            device: self.home.device,
            partition: self.home.partition,
            generation,
            covered: publishing.covered,
            attachment: publishing.attachment.clone(),
            runs: publishing.runs.iter().map(|r| r.record.clone()).collect(),
            versions: self.versions,
        };
        match root.encode() {
            Ok(bytes) => {
                let token = self.number();
                self.pending.insert(token, Pending::Root);
                let bytes = Bytes::from(bytes);
                out.push(Action::WriteRoot {
                    token,
                    generation,
                    bytes,
                });
            }
            Err(error) => self.stopped = Some(error.into()),
        }
    }

    /// The root is durable: what it says is so from now on.
    pub(crate) fn root_written(&mut self, ok: bool, cache: &mut Cache, out: &mut Vec<Action>) {
        if !ok {
            return self.stop("the write of a root");
        }
        self.generation += 1;
        self.standing = self.standing.after_root();
        self.publish_to_itself(cache);
        // Before anything is freed: that happens when the event has been worked off.
        out.push(Action::Rooted);
    }

    /// What was to be published is so for the index itself.
    fn publish_to_itself(&mut self, cache: &mut Cache) {
        let Some(publishing) = self.publishing.take() else {
            return;
        };
        let Some(job) = self.jobs.remove(&publishing.job) else {
            return;
        };
        self.runnable = true;
        if publishing.discarded {
            return;
        }
        self.covered = publishing.covered;
        let doomed: Vec<Doomed> = self.doomed.drain(..publishing.frees).collect();
        for Doomed { name, chunks, .. } in doomed {
            self.retire(name, chunks, cache);
        }
        let before = std::mem::replace(&mut self.runs, publishing.runs);
        for run in before {
            if job.inputs.contains(&run.name()) {
                self.retire(run.name(), run.record.chunks.clone(), cache);
            }
        }
        let former = std::mem::replace(&mut self.attachment, publishing.attachment);
        if let Some(former) = former.filter(|it| self.attachment.as_ref() != Some(it)) {
            let name = self.own(former.id);
            self.retire(name, former.chunks, cache);
        }
        if job.inputs.is_empty() {
            self.frozen.pop_front();
            self.bytes_flushed += job.bytes;
        } else {
            self.bytes_merged += job.bytes;
        }
        for windows in publishing.narrowed {
            self.clip_runs(&windows);
        }
    }

    fn stop(&mut self, what: &'static str) {
        self.stopped = Some(IndexError::Stopped { what });
    }
}
