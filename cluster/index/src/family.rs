//! Splitting and putting together: an index that takes over the runs of another one.
//!
//! No entry is copied but those in tables: the new index names the same chunks, and shows less of them. A merge of
//! such runs writes what is visible, under the new partition's own name, and lets go of the chunks.
//!
//! Invariants:
//! - whatever is taken over is named by a durable root of the index that it comes from;
//! - nothing of a new index is durable, and [`Index::covered`] is 0, until its own first root is: it has to be
//!   frozen, and until then a crash leaves only what there was before;
//! - a run stands once in an index, whatever it came by: what is visible of it is put together;
//! - runs stay in the order in which they stood, of whichever index.

use std::cmp::Ordering;
use std::collections::BTreeSet;
use std::sync::Arc;

use ashlar_layout::ids::Seq;
use ashlar_layout::page::EntryKind;
use ashlar_layout::root::{Chunk, ObjectValue, ROOT_MAX, Root, RootError, Window};

use crate::api::{Config, IndexError, Range};
use crate::cache::RunName;
use crate::clear::Doomed;
use crate::clip;
use crate::index::{Frozen, Index};
use crate::job::Phase;
use crate::key;
use crate::run::Run;

impl Index {
    /// The index of a new partition that takes over a range of this one, as it is at [`Index::applied`], and with it
    /// the records of these buckets (that of the bucket which the range begins inside of). `config` names a
    /// partition that had no index on this device.
    ///
    /// It shares [`Index::shared_chunks`] with this one: the owner holds them for it before this one may free
    /// any. What waits here to be written out is copied: that is least right after a freeze.
    pub fn fork(&self, config: Config, range: &Range, carry: &[String]) -> Index {
        let mut fork = Index::new(config);
        fork.begin_at(self.applied);
        fork.versions = self.versions;
        let windows = clip::windows(range, carry);
        let runs = self.runs.iter();
        fork.runs = runs.filter_map(|run| clipped(run, &windows)).collect();
        fork.take_tables(self, &windows);
        fork.runnable = true;
        fork
    }

    /// The index of a new partition that takes over two neighbours: of `left` all that is before the border, of
    /// `right` all that is not (so a bucket's record that the right one had carried along is the left one's again).
    /// It is at `applied`, which is neither's past. As with a fork: `config` names a partition that had no index here,
    /// chunks are shared, and nothing is durable yet.
    pub fn union(
        config: Config,
        left: &Index,
        right: &Index,
        border: (&str, &str),
        applied: Seq,
    ) -> Result<Index, IndexError> {
        let at = || Some((border.0.to_owned(), border.1.to_owned()));
        let below = Range {
            from: None,
            to: at(),
        };
        let above = Range {
            from: at(),
            to: None,
        };
        let mut union = Index::new(config);
        union.begin_at(applied.max(left.applied).max(right.applied));
        union.versions = left.versions || right.versions;
        let mut halves = [Vec::new(), Vec::new()];
        for ((from, range), half) in [(left, below), (right, above)].iter().zip(&mut halves) {
            let windows = clip::windows(range, &[]);
            let runs = from.runs.iter();
            *half = runs.filter_map(|run| clipped(run, &windows)).collect();
            union.take_tables(from, &windows);
        }
        let [left, right] = &halves;
        union.runs = interleaved(left, right)?;
        // Half a root is left for what comes.
        let got = union.root(0).encode()?.len();
        if got > ROOT_MAX / 2 {
            return Err(RootError::Length { got }.into());
        }
        union.runnable = true;
        Ok(union)
    }

    /// From now on only a range of it is visible, and the records of these buckets: the rest has become another
    /// partition's, in whose index it is durable by now. The next root says so; until then a crash brings all back.
    pub fn narrow(&mut self, range: &Range, carry: &[String]) {
        let windows = clip::windows(range, carry);
        // What is being written has entries that are not visible any more: it is begun anew. Only a root that is
        // under way is let be, and what it says is clipped when it is durable.
        let published = self.publishing.as_ref().map(|publishing| publishing.job);
        for (id, job) in &mut self.jobs {
            if Some(*id) != published {
                job.phase = Phase::Abandoned;
            }
        }
        if let Some(publishing) = &mut self.publishing {
            publishing.narrowed.push(windows.clone());
        }
        self.clip_runs(&windows);
        for frozen in &mut self.frozen {
            frozen.table = Arc::new(frozen.table.within(&windows));
        }
        self.active = self.active.within(&windows);
        self.runnable = true;
    }

    /// Shows no more of the runs than this; those of which nothing is visible go with the next root.
    pub(crate) fn clip_runs(&mut self, windows: &[Window]) {
        for run in std::mem::take(&mut self.runs) {
            match clipped(&run, windows) {
                Some(run) => self.runs.push(run),
                None => self.doom(Doomed::from(&*run)),
            }
        }
    }

    /// The chunks of runs that other partitions wrote: they may have them, too.
    pub fn shared_chunks(&self) -> Vec<Chunk> {
        let own = self.config.partition;
        let shared = self.runs.iter().filter(|run| run.record.origin != own);
        shared.flat_map(|run| &run.record.chunks).copied().collect()
    }

    /// The extents that its runs pin, and those that what is still in tables will pin.
    pub fn all_pins(&self) -> Vec<u32> {
        let mut pins: BTreeSet<u32> = self.pins().into_iter().collect();
        let size = self.config.extent_size.max(1);
        let frozen = self.frozen.iter().map(|Frozen { table, .. }| &**table);
        for table in frozen.chain([&self.active]) {
            for (_, versions) in table.all_after(None) {
                let objects = versions.filter(|it| it.kind == EntryKind::Object);
                let places = objects.filter_map(|it| ObjectValue::inline(&it.value)?.0);
                pins.extend(places.map(|place| (place.at / size) as u32));
            }
        }
        pins.into_iter().collect()
    }

    /// The newest of each key that a window shows, of all tables.
    fn take_tables(&mut self, from: &Index, windows: &[Window]) {
        let frozen = from.frozen.iter().map(|Frozen { table, .. }| &**table);
        for table in frozen.chain([&from.active]) {
            for (key, version) in table.newest_within(windows) {
                self.active.insert(key, version.clone(), |_, _| false);
            }
        }
    }

    /// A place that divides the index about in half, by entries: for a split. It is no name of an object, but a
    /// border. Only what is in memory is looked at; none if that is too little, or if no place leaves a quarter of
    /// it on either side.
    pub fn middle(&self) -> Option<(String, String)> {
        // Half of a fence page's entries are taken to be where it begins, half right before it ends.
        let mut weights: Vec<(Vec<u8>, bool, u64)> = Vec::new();
        let mut borders = Vec::new();
        for run in &self.runs {
            let record = &run.record;
            let each = (record.entries / run.top.len().max(1) as u64).max(1);
            let pages = run.spans().enumerate();
            for (at, (from, to)) in
                pages.filter(|(_, page)| clip::touches(&record.clip, page.0, page.1))
            {
                // A version counts where its object does.
                weights.extend([
                    (key::place(from), true, each),
                    (key::place(to), false, each),
                ]);
                if at > 0 && clip::sees(&record.clip, from) {
                    borders.extend(key::border(from));
                }
            }
        }
        weights.sort_unstable();
        borders.sort_unstable();
        let total: u64 = weights.iter().map(|(_, _, weight)| weight).sum();
        let (mut weights, mut before) = (weights.into_iter().peekable(), 0);
        let mut best: Option<(u64, (String, String))> = None;
        for border in borders {
            let at = key::object(&border.0, &border.1);
            let behind = |key: &[u8], begins: bool| *key < *at || !begins && *key == *at;
            while let Some((_, _, weight)) =
                weights.next_if(|(key, begins, _)| behind(key, *begins))
            {
                before += weight;
            }
            // All of it may be in one key.
            if !self.runs.iter().any(|run| *run.record.lowest < *at) {
                continue;
            }
            let off = before.abs_diff(total - before);
            if best.as_ref().is_none_or(|(least, _)| off < *least) {
                best = Some((off, border));
            }
        }
        let (off, border) = best?;
        (off <= total / 2).then_some(border)
    }

    /// The root that says what is there now.
    pub(crate) fn root(&self, generation: u64) -> Root {
        Root {
            device: self.home.device,
            partition: self.home.partition,
            generation,
            covered: self.covered,
            attachment: self.attachment.clone(),
            runs: self.runs.iter().map(|run| run.record.clone()).collect(),
            versions: self.versions,
        }
    }
}

fn clipped(run: &Arc<Run>, windows: &[Window]) -> Option<Arc<Run>> {
    run.clipped(windows).map(Arc::new)
}

/// Two lists of runs as one: each in its own order, low levels first, and a run that is in both once.
fn interleaved(left: &[Arc<Run>], right: &[Arc<Run>]) -> Result<Vec<Arc<Run>>, IndexError> {
    let names =
        |runs: &[Arc<Run>]| -> BTreeSet<RunName> { runs.iter().map(|r| r.name()).collect() };
    let (mut in_left, mut in_right) = (names(left), names(right));
    let (mut left, mut right) = (left.iter().peekable(), right.iter().peekable());
    let mut out = Vec::new();
    loop {
        let order = match (left.peek(), right.peek()) {
            (None, None) => return Ok(out),
            (Some(_), None) => Ordering::Less,
            (None, Some(_)) => Ordering::Greater,
            (Some(a), Some(b)) if a.name() == b.name() => Ordering::Equal,
            (Some(a), Some(b)) => match (in_right.contains(&a.name()), in_left.contains(&b.name()))
            {
                (false, false) => a.record.level.cmp(&b.record.level).then(Ordering::Less),
                (false, true) => Ordering::Less,
                (true, false) => Ordering::Greater,
                (true, true) => {
                    let run = a.record.id;
                    return Err(IndexError::Crossed { run });
                }
            },
        };
        let a = left.next_if(|_| order.is_le());
        let b = right.next_if(|_| order.is_ge());
        a.map(|a| in_left.remove(&a.name()));
        b.map(|b| in_right.remove(&b.name()));
        match (a, b) {
            (Some(a), Some(b)) => {
                let mut both = Run::clone(a);
                both.record.clip = clip::join(&a.record.clip, &b.record.clip);
                out.push(Arc::new(both));
            }
            (a, b) => out.extend(a.or(b).cloned()),
        }
    }
}
