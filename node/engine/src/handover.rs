//! The end of recovery: an engine is made of what was put together.
//!
//! Invariants:
//! - Of each kind the newest extent goes on, if it is unsealed, has room, and no extent that cannot be read
//!   hides how new it is; all other unsealed ones are sealed.
//! - What could not be read is neither free nor written to; and as it may hold another record of any shard, the
//!   extents of all tombstones are held then.
//! - An extent of kind index without a footer is never taken for free here, even if no record was found in it: a page
//!   may be whole whose record's head is not. Its partition says so ([`crate::holdings`]).
//! - One with a torn root is sealed, and one that may have lost a root stays as it is ([`crate::roots`]). One that
//!   goes on does so behind all chunks that count: a root stands behind those that it names, and it is recognised.

use std::collections::HashSet;

use ashlar_layout::extent::ExtentKind;
use ashlar_layout::footer::footer_len;

use crate::api::Memory;
use crate::append::{OpenExtent, Seal, Stream};
use crate::engine::{Engine, Numbers, Recovered};
use crate::extents::State;
use crate::mutants::mutant;
use crate::opening::{Opened, RecoveryReport};
use crate::recovery::Work;
use crate::superblocks::Superblocks;

impl Work {
    /// Makes an engine of it.
    pub fn hand_over<M: Memory>(
        mut self,
        superblocks: Superblocks<M::Buf>,
        numbers: Numbers,
        volatile_cache: bool,
        next_io: u64,
        mut report: RecoveryReport,
    ) -> Opened<M> {
        let mut streams = [
            Stream::new(ExtentKind::Journal),
            Stream::new(ExtentKind::Data),
            Stream::new(ExtentKind::Index),
        ];
        let mut seals = Vec::new();
        let named = superblocks.current().checkpoint;
        let mut unsealed = Vec::new();
        for no in self.all() {
            let seen = &mut self.seen[no.0 as usize];
            let checkpoint = seen.header.filter(|h| h.kind == ExtentKind::Checkpoint);
            let here = named.filter(|named| named.extent == no);
            let empty = seen
                .records
                .as_ref()
                .is_none_or(|records| records.is_empty());
            if let Some(header) = checkpoint {
                let used = here.is_some_and(|named| named.incarnation == header.incarnation);
                let state = if used { State::Open } else { State::Free };
                self.extents
                    .adopt(no, state, Some(header.kind), header.incarnation);
            } else if seen.unreadable {
                let kind = self.extents.get(no).kind;
                self.extents
                    .adopt(no, State::Quarantined, kind, seen.incarnation);
            } else if let (Some(named), None, true) = (here, seen.header, empty) {
                // Its header is damaged. It is freed when the superblock names another.
                let kind = Some(ExtentKind::Checkpoint);
                self.extents.adopt(no, State::Open, kind, named.incarnation);
            } else if let Some(entries) = seen.records.take() {
                // Searched: it has no footer, or none that can be used.
                let damaged = seen.tail > self.geometry.records_start(no);
                match seen.header {
                    // It stays sealed, without a footer.
                    _ if seen.no_footer => self.extents.has_no_footer(no),
                    Some(header)
                        if !entries.is_empty()
                            || (damaged && header.kind == ExtentKind::Journal)
                            || header.kind == ExtentKind::Index =>
                    {
                        unsealed.push((header.kind, seen.incarnation, no, entries));
                    }
                    // The next checkpoint must not tell of a header that is not there: the one that
                    // is would seem to be the trace of a lost write.
                    None if !entries.is_empty() => {
                        self.extents.header_missing(no, seen.floor);
                        self.extents.has_no_footer(no);
                    }
                    _ => {
                        self.extents
                            .adopt(no, State::Free, None, seen.incarnation.max(seen.floor))
                    }
                }
            } else if seen.skip || self.extents.get(no).state == State::Free {
                let incarnation = seen.incarnation.max(seen.floor);
                self.extents.adopt(no, State::Free, None, incarnation);
            }
        }
        // Of each kind the newest extent goes on, if it is unsealed and there is room in it. An older one
        // must not: a tombstone in it would be older than its record. Nor may any, where an extent that
        // cannot be read hides how new it is.
        let hidden = self
            .seen
            .iter()
            .any(|seen| seen.unreadable && seen.header.is_none());
        for (kind, incarnation, no, _) in &unsealed {
            self.extents
                .adopt(*no, State::Open, Some(*kind), *incarnation);
        }
        let kinds = [ExtentKind::Journal, ExtentKind::Data, ExtentKind::Index];
        let newest = kinds.map(|kind| {
            let of_kind = self
                .extents
                .iter()
                .filter(|(_, extent)| extent.state != State::Free && extent.kind == Some(kind));
            (kind, of_kind.map(|(_, extent)| extent.incarnation).max())
        });
        for (kind, incarnation, no, entries) in unsealed {
            let pos = self.seen[no.0 as usize].tail;
            let leaves_out = self.seen[no.0 as usize].torn_root;
            let room = self.geometry.extent_end(no)
                - footer_len(entries.len() + 1, self.geometry.block_size);
            let fits = pos + 2 * self.block() <= room;
            let goes_on =
                fits && !hidden && !leaves_out && newest.contains(&(kind, Some(incarnation)));
            let open = OpenExtent {
                no,
                incarnation,
                pos,
                entries,
                spare: true,
            };
            match streams.iter_mut().find(|stream| stream.kind == kind) {
                Some(stream) if goes_on => stream.open = Some(open),
                _ => seals.push(Seal {
                    extent: open,
                    writing: false,
                    settled: true,
                    leaves_out,
                }),
            }
        }
        let mut shadows = HashSet::new();
        if self.blind.is_some() {
            // One that kills what was found may be needed for what was not, as well.
            for by in self.graves.all().filter(|_| !mutant!(ForgetGraves)) {
                self.extents.hold(by);
            }
            shadows.extend(self.graves.closed());
        }
        for no in self.all() {
            self.extents.free_if_dead(no);
        }
        for (no, before) in std::mem::take(&mut self.journal_gaps) {
            let above = || self.sequence_above(no, ExtentKind::Journal, numbers.record);
            let before = before.unwrap_or_else(above);
            self.holdings.found_damage(no, before);
        }
        let (roots, damaged_roots) = self.settle_roots(numbers.record);
        self.index.trim();
        self.journal.sort_by_key(|record| record.sequence);
        report.shards = self.index.shards();
        let findings = report.findings;
        let mut engine = Engine::new(Recovered {
            superblocks,
            numbers,
            volatile_cache,
            extents: self.extents,
            index: self.index,
            holdings: self.holdings,
            streams,
            seals,
            blind: self.blind,
            shadows,
            next_io,
            findings,
        });
        engine.free_unneeded(engine.holdings.all());
        Opened {
            engine,
            journal: self.journal,
            damaged: self.damaged,
            roots,
            damaged_roots,
            report,
        }
    }
}
