//! The index of a partition: tables in memory, runs on the device, and the questions that wait.
//!
//! Invariants:
//! - what is told of a state is that state's, wherever its entries are meanwhile: in a table, in a table
//!   that is being written out, in runs that are being merged;
//! - a table is forgotten, and a run replaced, when the root that says so is durable, and not before;
//! - chunks of a run that was replaced are freed when that root is durable *and* no read of the run is
//!   under way or queued: no answer is ever made of what was written over them;
//! - one read of a page is under way, whoever waits for it;
//! - everything that waits is bounded: changes by the tables' bytes, questions by their number.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use ashlar_layout::ids::Seq;
use ashlar_layout::limits::LIST_PAGE_MAX;
use ashlar_layout::page::RunId;
use ashlar_layout::root::{AttachmentRecord, Chunk};
use bytes::Bytes;

use crate::api::{Action, Answer, Config, Event, IndexError, Output, Question, Snapshot, Stats};
use crate::ask::{Asked, Passed, Work};
use crate::beside::Standing;
use crate::cache::{Cache, PageKey, RunName};
use crate::clear::Doomed;
use crate::flow::Publishing;
use crate::job::Job;
use crate::key;
use crate::memtable::Memtable;
use crate::run::{Home, Pages, Run, Wanted, decode};
use crate::walk::{Held, Sources};

/// A table that waits to be written out.
#[derive(Clone, Debug)]
pub(crate) struct Frozen {
    pub(crate) table: Arc<Memtable>,
    /// The last entry of the journal that is in it.
    pub(crate) covered: Seq,
    pub(crate) attachment: Bytes,
}

/// A page that is being read.
#[derive(Clone, Debug)]
pub(crate) struct PageRead {
    wanted: Wanted,
    pub(crate) waiters: Vec<u64>,
}

/// What a token stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Pending {
    Page(PageKey),
    Span { job: u64, run: RunName },
    Write { job: u64, file: usize, chunk: usize },
    Sync,
    Root,
}

/// The index.
#[derive(Clone, Debug)]
pub struct Index {
    pub(crate) config: Config,
    pub(crate) home: Home,
    pub(crate) applied: Seq,
    pub(crate) covered: Seq,
    pub(crate) generation: u64,
    pub(crate) attachment: Option<AttachmentRecord>,
    pub(crate) active: Memtable,
    /// Oldest first.
    pub(crate) frozen: VecDeque<Frozen>,
    /// Newest first.
    pub(crate) runs: Vec<Arc<Run>>,
    pub(crate) retired: Vec<(RunName, Vec<Chunk>)>,
    /// What the durable root names, and the next one does not.
    pub(crate) doomed: Vec<Doomed>,
    pub(crate) damaged: BTreeSet<RunName>,
    pub(crate) asked: BTreeMap<u64, Asked>,
    pub(crate) reads: BTreeMap<PageKey, PageRead>,
    /// Pages whose read waits for others to end.
    pub(crate) queue: VecDeque<PageKey>,
    pub(crate) reading: usize,
    /// Questions that go on at the next turn.
    pub(crate) tired: VecDeque<u64>,
    /// How often each state is in use.
    pub(crate) snapshots: BTreeMap<u64, u32>,
    pub(crate) given: BTreeMap<u64, u32>,
    pub(crate) jobs: BTreeMap<u64, Job>,
    pub(crate) publishing: Option<Publishing>,
    pub(crate) pending: BTreeMap<u64, Pending>,
    pub(crate) next: u64,
    pub(crate) next_run: u32,
    /// A job may be able to go on.
    pub(crate) runnable: bool,
    /// The device has no room.
    pub(crate) no_room: bool,
    /// Journal space is wanted back: whatever is superseded is to be merged away.
    pub(crate) pressed: bool,
    /// Whether its runs are published by roots.
    pub(crate) standing: Standing,
    /// It has had versions, or what it was made of had.
    pub(crate) versions: bool,
    pub(crate) stopped: Option<IndexError>,
    pub(crate) bytes_in: u64,
    pub(crate) bytes_flushed: u64,
    pub(crate) bytes_merged: u64,
    pages_read: u64,
}

impl Index {
    /// The index of a partition that has no root on this device yet, with nothing in it.
    pub fn new(config: Config) -> Self {
        let home = Home {
            device: config.device,
            partition: config.partition,
        };
        Self {
            config,
            home,
            applied: Seq(0),
            covered: Seq(0),
            generation: 0,
            attachment: None,
            active: Memtable::default(),
            frozen: VecDeque::new(),
            runs: Vec::new(),
            retired: Vec::new(),
            doomed: Vec::new(),
            damaged: BTreeSet::new(),
            asked: BTreeMap::new(),
            reads: BTreeMap::new(),
            queue: VecDeque::new(),
            reading: 0,
            tired: VecDeque::new(),
            snapshots: BTreeMap::new(),
            given: BTreeMap::new(),
            jobs: BTreeMap::new(),
            publishing: None,
            pending: BTreeMap::new(),
            next: 0,
            next_run: 0,
            runnable: false,
            no_room: false,
            pressed: false,
            standing: Standing::Rooted,
            versions: false,
            stopped: None,
            bytes_in: 0,
            bytes_flushed: 0,
            bytes_merged: 0,
            pages_read: 0,
        }
    }

    /// A new partition's log begins behind this entry: the first one that is applied is the next. Nothing is
    /// durable by that: [`Index::covered`] stays where it is until a root says so.
    pub fn begin_at(&mut self, base: Seq) {
        self.applied = self.applied.max(base);
    }

    /// Everything up to this entry is in the runs.
    pub(crate) fn found_at(&mut self, covered: Seq) {
        self.covered = covered;
        self.applied = covered;
    }

    /// The last entry that was applied.
    pub fn applied(&self) -> Seq {
        self.applied
    }

    /// All entries up to this one are durable in runs: the journal may forget them, but for what stands in
    /// [`Index::pins`].
    pub fn covered(&self) -> Seq {
        self.covered
    }

    /// The extents in which journal entries stand that the durable root points to, ascending: none of them may be
    /// freed, however far the journal is trimmed. They change with [`Action::Rooted`].
    pub fn pins(&self) -> Vec<u32> {
        let mut pins: BTreeSet<u32> = self.runs.iter().flat_map(|run| run.pins()).collect();
        pins.extend(self.doomed.iter().flat_map(|doomed| &doomed.pins));
        pins.into_iter().collect()
    }

    /// Why it takes no more part: a write failed.
    pub fn stopped(&self) -> Option<&IndexError> {
        self.stopped.as_ref()
    }

    /// All chunks that are in use or being written, those of replaced runs that are still read included.
    pub fn live(&self) -> Vec<Chunk> {
        let runs = self.runs.iter().flat_map(|run| &run.record.chunks);
        let attachment = self.attachment.iter().flat_map(|it| &it.chunks);
        let retired = self.retired.iter().flat_map(|(_, chunks)| chunks);
        let retired = retired.chain(self.doomed.iter().flat_map(|it| &it.chunks));
        let mut live: Vec<Chunk> = runs.chain(attachment).chain(retired).copied().collect();
        // What a job wrote whose root was given up goes with what that root names.
        let discarded = self.publishing.as_ref().filter(|it| it.discarded);
        let discarded = discarded.map(|it| it.job);
        let jobs = self.jobs.iter().filter(|(id, _)| Some(**id) != discarded);
        live.extend(jobs.flat_map(|(_, job)| job.leavings()));
        live
    }

    /// What it has and did.
    pub fn stats(&self) -> Stats {
        let tables = self.frozen.iter().map(|f| &*f.table);
        let tables: Vec<&Memtable> = tables.chain([&self.active]).collect();
        let mut levels: Vec<u8> = self.runs.iter().map(|run| run.record.level).collect();
        levels.dedup();
        Stats {
            runs: self.runs.len(),
            levels: levels.len(),
            run_entries: self.runs.iter().map(|run| run.record.entries).sum(),
            run_bytes: self.runs.iter().map(|run| run.bytes()).sum(),
            embedded: self.runs.iter().map(|run| run.record.embedded).sum(),
            placed: self.runs.iter().map(|run| run.record.placed).sum(),
            objects: self.runs.iter().map(|run| run.objects()).sum::<u64>()
                + tables.iter().map(|table| table.objects()).sum::<u64>(),
            table_entries: tables.iter().map(|table| table.entries()).sum(),
            table_bytes: tables.iter().map(|table| table.bytes()).sum(),
            run_memory: self.runs.iter().map(|run| run.memory()).sum(),
            bytes_in: self.bytes_in,
            bytes_flushed: self.bytes_flushed,
            bytes_merged: self.bytes_merged,
            pages_read: self.pages_read,
            questions: self.asked.len(),
        }
    }

    /// Keeps the present state readable; none if too many are kept.
    pub fn snapshot(&mut self) -> Option<Snapshot> {
        let held: u32 = self.given.values().sum();
        if held as usize >= self.config.limits.snapshots {
            return None;
        }
        let seq = self.applied;
        *self.given.entry(seq.0).or_default() += 1;
        self.hold(seq.0);
        Some(Snapshot(seq))
    }

    /// Gives a snapshot back.
    pub fn release(&mut self, snapshot: Snapshot) {
        if drop_one(&mut self.given, snapshot.0.0) {
            self.let_go(snapshot.0.0);
            // Tombstones that were kept for it may go.
            self.runnable = true;
        }
    }

    fn hold(&mut self, seq: u64) {
        *self.snapshots.entry(seq).or_default() += 1;
    }

    fn let_go(&mut self, seq: u64) {
        drop_one(&mut self.snapshots, seq);
    }

    /// Looks for one object, as it is now.
    pub fn lookup(
        &mut self,
        bucket: &str,
        key: &str,
        cache: &mut Cache,
        out: &mut Vec<Action>,
    ) -> Answer {
        let work = Work::objects(vec![key::object(bucket, key)]);
        self.begin(work, self.applied.0, cache, out)
    }

    /// Asks something: of the present state, or of a snapshot's.
    pub fn ask(
        &mut self,
        question: Question,
        at: Option<Snapshot>,
        cache: &mut Cache,
        out: &mut Vec<Action>,
    ) -> Answer {
        let seq = at.map_or(self.applied, Snapshot::seq);
        if at.is_some() && !self.given.contains_key(&seq.0) {
            return Answer::Ready(Err(IndexError::NoSnapshot { seq }));
        }
        let too_many =
            matches!(&question, Question::Named(names) if names.len() > LIST_PAGE_MAX as usize);
        if too_many {
            return Answer::Busy;
        }
        self.begin(Work::new(question), seq.0, cache, out)
    }

    fn begin(&mut self, work: Work, seq: u64, cache: &mut Cache, out: &mut Vec<Action>) -> Answer {
        let mut asked = Asked {
            work,
            seq,
            held: Held::new(),
            waiting: 0,
            ahead: 0,
        };
        let (passed, missing) = self.pass(&mut asked, cache);
        match passed {
            Err(error) => Answer::Ready(Err(error)),
            Ok(Passed::Done(output)) => Answer::Ready(Ok(output)),
            Ok(_) if self.asked.len() >= self.config.limits.questions => Answer::Busy,
            Ok(passed) => {
                let id = self.number();
                self.hold(seq);
                self.park(id, asked, &passed, missing, out);
                Answer::Pending(id)
            }
        }
    }

    fn pass(
        &self,
        asked: &mut Asked,
        cache: &mut Cache,
    ) -> (Result<Passed, IndexError>, Vec<Wanted>) {
        let frozen = self.frozen.iter().rev().map(|f| &*f.table);
        let sources = Sources {
            tables: std::iter::once(&self.active).chain(frozen).collect(),
            runs: &self.runs,
            seq: asked.seq,
        };
        let mut held = Held::new();
        let mut pages = Pages {
            cache,
            held: &asked.held,
            missing: Vec::new(),
            error: None,
            ahead: asked.ahead,
            in_course: false,
        };
        let mut budget = self.config.limits.step.max(1);
        let passed = asked
            .work
            .pass(&sources, &mut pages, &mut held, &mut budget);
        let missing = pages.missing;
        // Each time that a walk waits in its course it asks for twice as much.
        let more = (2 * asked.ahead + 1).min(self.config.limits.ahead);
        asked.ahead = match (pages.in_course, missing.is_empty()) {
            (true, _) => more,
            (false, true) => asked.ahead,
            (false, false) => 0,
        };
        held.sort_by_key(|(key, _)| *key);
        held.dedup_by_key(|(key, _)| *key);
        asked.held = held;
        (passed, missing)
    }

    /// Puts a question where it waits.
    fn park(
        &mut self,
        id: u64,
        mut asked: Asked,
        passed: &Passed,
        mut missing: Vec<Wanted>,
        out: &mut Vec<Action>,
    ) {
        missing.sort_by_key(|wanted| wanted.key);
        missing.dedup_by_key(|wanted| wanted.key);
        if matches!(passed, Passed::Tired) || missing.is_empty() {
            asked.waiting = 0;
            self.tired.push_back(id);
        } else {
            asked.waiting = missing.len();
            for wanted in missing {
                self.want(id, wanted);
            }
            self.issue(out);
        }
        self.asked.insert(id, asked);
    }

    fn want(&mut self, id: u64, wanted: Wanted) {
        let key = wanted.key;
        if let Some(read) = self.reads.get_mut(&key) {
            read.waiters.push(id);
            return;
        }
        let waiters = vec![id];
        self.reads.insert(key, PageRead { wanted, waiters });
        self.queue.push_back(key);
    }

    /// Issues reads, as many as may be under way.
    fn issue(&mut self, out: &mut Vec<Action>) {
        while self.reading < self.config.limits.reads.max(1) {
            let Some(key) = self.queue.pop_front() else {
                return;
            };
            let token = self.number();
            let Some(read) = self.reads.get(&key) else {
                continue;
            };
            let len = read.wanted.child.len() as u32;
            let at = read.wanted.address;
            self.reading += 1;
            self.pages_read += 1;
            self.pending.insert(token, Pending::Page(key));
            out.push(Action::Read { token, at, len });
        }
    }

    /// Takes in what happened.
    pub fn on_event(&mut self, event: Event, cache: &mut Cache, out: &mut Vec<Action>) {
        match event {
            Event::Turn => {
                let turns = self.tired.len();
                for _ in 0..turns {
                    if let Some(id) = self.tired.pop_front() {
                        self.resume(id, cache, out);
                    }
                }
                self.run_jobs(out);
            }
            Event::Room => self.no_room = false,
            Event::Read { token, bytes } => match self.pending.remove(&token) {
                Some(Pending::Page(key)) => {
                    self.page_read(key, bytes, cache, out);
                    return self.free_retired(out);
                }
                Some(Pending::Span { job, .. }) => self.span_read(job, token, bytes, out),
                _ => {}
            },
            Event::Written { token, result } => {
                if let Some(Pending::Write { job, file, chunk }) = self.pending.remove(&token) {
                    self.chunk_written(job, file, chunk, result);
                }
            }
            Event::Synced { token, ok } => {
                if self.pending.remove(&token) == Some(Pending::Sync) {
                    self.synced(token, ok, cache, out);
                }
            }
            Event::RootWritten { token, ok } => {
                if self.pending.remove(&token) == Some(Pending::Root) {
                    self.root_written(ok, cache, out);
                }
            }
        }
        self.keep_jobs(out);
        self.free_retired(out);
    }

    /// Whether it could go on if it were given a [`Event::Turn`].
    pub fn wants_turn(&self) -> bool {
        self.runnable || !self.tired.is_empty()
    }

    fn page_read(
        &mut self,
        key: PageKey,
        bytes: Option<Bytes>,
        cache: &mut Cache,
        out: &mut Vec<Action>,
    ) {
        self.reading -= 1;
        let Some(PageRead { wanted, waiters }) = self.reads.remove(&key) else {
            return;
        };
        match decode(self.home.device, &wanted, bytes) {
            Ok(page) => {
                if self.has(key.run) {
                    cache.insert(key, page.clone());
                }
                for id in waiters {
                    let Some(asked) = self.asked.get_mut(&id) else {
                        continue;
                    };
                    asked.held.push((key, page.clone()));
                    asked.waiting -= 1;
                    if asked.waiting == 0 {
                        self.resume(id, cache, out);
                    }
                }
            }
            // A run that was replaced meanwhile says nothing any more: the others do.
            Err(_) if !self.has(key.run) => {
                for id in waiters {
                    if let Some(asked) = self.asked.get_mut(&id) {
                        asked.waiting -= 1;
                        if asked.waiting == 0 {
                            self.resume(id, cache, out);
                        }
                    }
                }
            }
            Err(error) => {
                self.damage(key.run, &error, out);
                for id in waiters {
                    self.answer(id, Err(error.clone()), out);
                }
            }
        }
        self.issue(out);
    }

    fn has(&self, run: RunName) -> bool {
        self.runs.iter().any(|it| it.name() == run)
    }

    /// A run is damaged: it is said once, and the run is not merged any more.
    pub(crate) fn damage(&mut self, run: RunName, error: &IndexError, out: &mut Vec<Action>) {
        if self.has(run) && self.damaged.insert(run) {
            out.push(Action::Damaged(error.clone()));
        }
    }

    fn resume(&mut self, id: u64, cache: &mut Cache, out: &mut Vec<Action>) {
        let Some(mut asked) = self.asked.remove(&id) else {
            return;
        };
        let (passed, missing) = self.pass(&mut asked, cache);
        match passed {
            Ok(Passed::Done(output)) => {
                self.let_go(asked.seq);
                self.done(id, Ok(output), out);
            }
            Err(error) => {
                self.let_go(asked.seq);
                self.done(id, Err(error), out);
            }
            Ok(passed) => self.park(id, asked, &passed, missing, out),
        }
    }

    fn answer(&mut self, id: u64, result: Result<Output, IndexError>, out: &mut Vec<Action>) {
        if let Some(asked) = self.asked.remove(&id) {
            self.let_go(asked.seq);
            self.done(id, result, out);
        }
    }

    fn done(&self, question: u64, result: Result<Output, IndexError>, out: &mut Vec<Action>) {
        out.push(Action::Done { question, result });
    }

    /// Frees what was replaced and is not being read any more.
    pub(crate) fn free_retired(&mut self, out: &mut Vec<Action>) {
        if self.retired.is_empty() {
            return;
        }
        let mut in_use: BTreeSet<RunName> = self.reads.keys().map(|key| key.run).collect();
        in_use.extend(self.pending.values().filter_map(|pending| match pending {
            Pending::Span { run, .. } => Some(*run),
            _ => None,
        }));
        self.retired.retain(|(run, chunks)| {
            let kept = in_use.contains(run);
            if !kept && !chunks.is_empty() {
                let chunks = chunks.clone();
                out.push(Action::Free { chunks });
            }
            kept
        });
    }

    pub(crate) fn number(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    pub(crate) fn run_id(&mut self) -> RunId {
        self.next_run += 1;
        RunId {
            life: self.config.life,
            no: self.next_run,
        }
    }

    /// The name of a run or attachment of its own.
    pub(crate) fn own(&self, id: RunId) -> RunName {
        RunName {
            origin: self.home.partition,
            id,
        }
    }

    /// What was replaced: it is freed once nothing reads it.
    pub(crate) fn retire(&mut self, run: RunName, chunks: Vec<Chunk>, cache: &mut Cache) {
        cache.drop_run(run);
        self.damaged.remove(&run);
        self.retired.push((run, chunks));
    }
}

/// Takes one off a count; whether there was one.
fn drop_one(counts: &mut BTreeMap<u64, u32>, seq: u64) -> bool {
    let Some(count) = counts.get_mut(&seq) else {
        return false;
    };
    *count -= 1;
    if *count == 0 {
        counts.remove(&seq);
    }
    true
}
