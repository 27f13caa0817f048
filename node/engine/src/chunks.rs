//! The index on its device, and extents of index and journal that come to be free.
//!
//! # Why nothing is lost
//! A chunk is durable when a flush has ended that began after its write was reported ([`Event::SyncIndex`]); a root
//! names durable chunks only, and is a durable record itself. What is freed because of a root is freed when
//! that root is durable. Both orders are the caller's. The engine's part is that an extent is opened
//! again only when [`crate::holdings`] knows of nobody who needs it.
//!
//! # Why nothing comes back
//! Freeing changes nothing on the device. As long as the extent has not durably got a new header, an opening finds
//! what was in it. That does no harm:
//! - *Chunks*: one that no root names is held by nobody after [`Event::KeepIndex`].
//! - *Roots*: the newest root of a partition is never in an extent that is free, so an older one that is found
//!   is never the newest.
//! - *Journal records*: a record that was trimmed lies below what the newest root says of its partition (through,
//!   position): its replica skips it unread, so it matters neither that it comes back nor that its extent has
//!   been written over in part by a batch whose header was lost. (Only a header that was never acknowledged can
//!   be lost; the records of that batch are of a later incarnation, and were not acknowledged either.) An extent
//!   that a run's places pin is not free.
//! - *Another life*: once the new header is durable, all that it stands before has a lower incarnation, of
//!   whatever kind the extent was, trailer and footer included, and is not seen.
//! - *Shards*: extents of journal and index hold neither shards nor tombstones. They kill nothing and are killed by
//!   nothing, so reusing them touches no pin of [`crate::extents`]. Where one follows on dead shards, their
//!   tombstones stay until its header is durable, as ever.
//! - *Forgotten partitions*: these come back at each opening, in part, until their extents were written over. The
//!   caller forgets them again.
//!
//! # Torn roots and rotten ones
//! A root that does not match was torn by a crash, and the one before it is the newest; or it was durable and
//! is rotten, and what it covers may be gone from the journal since. To tell these apart, no header of an
//! extent is handed to the device while a root is on its way there. So if any header has a first sequence number
//! above the root's, the root was durable; and if none has, no extent was opened since, so all that was freed because
//! of it is still there, and the root before it is as good. A torn root is left out of its extent's
//! footer, and until that is durable no other header is written: the question is never asked again. (An extent
//! whose own header is not there gets no footer; but in such a one no root was ever acknowledged.)
//!
//! [`Event::SyncIndex`]: crate::api::Event::SyncIndex
//! [`Event::KeepIndex`]: crate::api::Event::KeepIndex

use ashlar_layout::extent::ExtentKind;
use ashlar_layout::ids::{ExtentNo, PartitionId, Seq};
use ashlar_layout::page::GRAIN;

use crate::api::{Action, IoFailure, Memory, Output};
use crate::append::OpenExtent;
use crate::engine::{Engine, Purpose, StreamNo};
use crate::error::{EngineError, FindingKind, extent_finding};
use crate::extents::State;
use crate::holdings::Kept;

impl<M: Memory> Engine<M> {
    /// Whether chunks can be at this address.
    fn in_index(&self, at: u64) -> bool {
        self.geometry.extent_of(at).is_some_and(|no| {
            let extent = self.extents.get(no);
            extent.kind == Some(ExtentKind::Index) && extent.state != State::Free
        })
    }

    pub(crate) fn hold_index(&mut self, partition: PartitionId, mut ats: Vec<u64>) {
        ats.retain(|at| self.in_index(*at));
        self.holdings.hold(partition, ats);
    }

    pub(crate) fn free_index(&mut self, partition: PartitionId, ats: &[u64]) {
        let touched = self.holdings.let_go(partition, ats);
        self.free_unneeded(touched);
    }

    pub(crate) fn keep_index(
        &mut self,
        partition: PartitionId,
        ats: Vec<u64>,
        out: &mut Vec<Action<M::Buf>>,
    ) {
        let (there, gone): (Vec<u64>, Vec<u64>) = ats.iter().partition(|at| self.in_index(**at));
        let mut damage: Vec<(FindingKind, u64, u64)> = gone
            .into_iter()
            .map(|at| (FindingKind::RecordHeader, at, GRAIN as u64))
            .collect();
        let last = self.holdings.keep(partition, there, |at, kept| match kept {
            Kept::Whole => {}
            Kept::Damaged(len) => damage.push((FindingKind::RecordPayload, at, u64::from(len))),
            Kept::Unknown => damage.push((FindingKind::RecordHeader, at, GRAIN as u64)),
        });
        for (kind, at, len) in damage {
            self.find(extent_finding(kind, self.device, at, len), out);
        }
        if last {
            self.free_unneeded(self.holdings.all());
        }
    }

    pub(crate) fn trim_journal(
        &mut self,
        partition: PartitionId,
        through: Seq,
        position: u64,
        pins: Vec<u32>,
    ) {
        let touched = self.holdings.trim(partition, through, position, pins);
        self.free_unneeded(touched);
    }

    pub(crate) fn forget_partition(
        &mut self,
        partition: PartitionId,
        out: &mut Vec<Action<M::Buf>>,
    ) {
        for stream in [StreamNo::Journal, StreamNo::Index] {
            for op in self.streams[stream as usize].drain_partition(partition) {
                let device = self.device;
                let error = EngineError::Forgotten { device, partition };
                out.push(Action::Done {
                    op,
                    result: Err(error),
                });
            }
        }
        let touched = self.holdings.forget(partition, self.numbers.record);
        self.free_unneeded(touched);
    }

    /// Frees those of these extents of which nobody needs anything.
    pub(crate) fn free_unneeded(&mut self, among: impl IntoIterator<Item = ExtentNo>) {
        if self.fence.is_some() {
            return;
        }
        for no in among {
            let extent = self.extents.get(no);
            let needed = match extent.kind {
                Some(ExtentKind::Index) => self.holdings.needs_index(no),
                Some(ExtentKind::Journal) => self.holdings.needs_journal(no),
                _ => true,
            };
            if extent.state == State::Sealed && !needed {
                self.extents.release(no);
                self.holdings.gone(no);
            }
        }
    }

    fn root_flying(&self) -> bool {
        let index = &self.streams[StreamNo::Index as usize];
        index.flying.iter().any(|batch| batch.root)
    }

    /// Whether the header of an extent may be written now.
    pub(crate) fn may_open(&self) -> bool {
        !self.root_flying() && !self.seals.iter().any(|seal| seal.leaves_out)
    }

    /// Whether another root may be sent now: not if a header waits for one that is under way.
    pub(crate) fn may_send_root(&self) -> bool {
        let waits = self.streams.iter().any(|stream| {
            let new = |open: &OpenExtent| open.pos == self.geometry.extent_start(open.no);
            stream.open.as_ref().is_some_and(new) && !stream.queue.is_empty()
        });
        !self.root_flying() || !(waits || self.checkpoint_due() || self.cleaner.waits_to_erase())
    }

    /// Hands out the flush that syncs wait for: one at a time, so that what comes meanwhile shares the next.
    pub(crate) fn send_sync(&mut self, out: &mut Vec<Action<M::Buf>>) {
        if self.syncing || self.syncs.is_empty() {
            return;
        }
        let ops = std::mem::take(&mut self.syncs);
        self.syncing = true;
        self.flush(Purpose::Sync { ops }, out);
    }

    /// Hands out a flush. Where the device has no volatile cache, it is handed out all the same: that is said of
    /// the device, and not always of what lies between (a file, a loop device).
    pub(crate) fn flush(&mut self, purpose: Purpose, out: &mut Vec<Action<M::Buf>>) {
        let io = self.io(purpose);
        self.flushes += 1;
        out.push(Action::Flush { io });
    }

    pub(crate) fn synced(
        &mut self,
        ops: Vec<u64>,
        result: Result<(), IoFailure>,
        out: &mut Vec<Action<M::Buf>>,
    ) {
        self.syncing = false;
        if let Err(failure) = result {
            self.syncs.extend(ops);
            return self.fence("flush of the index", 0, failure, out);
        }
        for op in ops {
            out.push(Action::Done {
                op,
                result: Ok(Output::Durable),
            });
        }
    }

    /// The chunks of an extent are durable: its footer may name them.
    pub(crate) fn settled(
        &mut self,
        no: ExtentNo,
        result: Result<(), IoFailure>,
        out: &mut Vec<Action<M::Buf>>,
    ) {
        if let Err(failure) = result {
            let start = self.geometry.extent_start(no);
            return self.fence("flush of an extent", start, failure, out);
        }
        for seal in &mut self.seals {
            if seal.extent.no == no {
                seal.writing = false;
                seal.settled = true;
            }
        }
    }
}
