//! Entries that the log has and the device does not give back: fetched from a peer, written again.
//!
//! Invariants:
//! - what comes from a peer is taken only if it is the entry: number, term, checksum;
//! - its number does not change: it is written at another place, and replay takes that for the
//!   same entry, moved;
//! - an entry is asked of one peer at a time; when all were asked in vain, it is asked for again, and again,
//!   until it comes, or what it made comes with a snapshot.

use std::collections::BTreeSet;
use std::time::Duration;

use ashlar_layout::ids::{DeviceNo, Seq};
use ashlar_layout::message::ChainBody;
use ashlar_layout::time::Instant;
use bytes::Bytes;

use crate::api::Action;
use crate::entry::{self, Mark, Piece};
use crate::replica::{Replica, Role};

/// An entry under repair.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Repair {
    /// Whoever is asked now,
    peer: Option<DeviceNo>,
    /// since when,
    since: Instant,
    /// and who was before.
    tried: BTreeSet<DeviceNo>,
    /// It came, and is on its way to the device.
    writing: bool,
}

impl Repair {
    pub(crate) fn rebase(&mut self, by: Duration) {
        self.since = self.since - by;
    }
}

impl Replica {
    /// Gets entry `seq` again.
    pub(crate) fn repair(&mut self, now: Instant, seq: Seq, out: &mut Vec<Action>) {
        let many = self.repairs.len() >= self.config.limits.repairs;
        if many || self.repairs.contains_key(&seq) {
            // What needs it will come again.
            return;
        }
        self.repairs.insert(seq, Repair::default());
        match self.log.recent(seq).cloned() {
            Some(bytes) => self.rewrite(seq, bytes, out),
            None => self.ask_next(now, seq, out),
        }
    }

    fn rewrite(&mut self, seq: Seq, bytes: Bytes, out: &mut Vec<Action>) {
        let (Some(term), Some(repair)) = (self.log.term(seq), self.repairs.get_mut(&seq)) else {
            return;
        };
        repair.writing = true;
        repair.peer = None;
        let piece = Piece {
            seq,
            term,
            prev_term: None,
            mark: Mark::Nothing,
            bytes,
        };
        self.persist(seq, seq, &[piece], true, out);
    }

    fn ask_next(&mut self, now: Instant, seq: Seq, out: &mut Vec<Action>) {
        let Some(repair) = self.repairs.get(&seq) else {
            return;
        };
        let next = self
            .members_but_me()
            .into_iter()
            .find(|peer| self.is_up(*peer) && !repair.tried.contains(peer));
        let Some(repair) = self.repairs.get_mut(&seq) else {
            return;
        };
        repair.peer = next;
        repair.since = now;
        if let Some(peer) = next {
            repair.tried.insert(peer);
            return self.send(
                peer,
                ChainBody::Fetch {
                    first: seq,
                    last: seq,
                },
                Bytes::new(),
                out,
            );
        }
        repair.tried.clear();
        if seq > self.applied && !self.members_but_me().iter().any(|peer| !self.is_up(*peer)) {
            // All others may have forgotten it: then a snapshot has what it made.
            self.unsound = true;
        }
    }

    pub(crate) fn on_repair_entries(
        &mut self,
        now: Instant,
        from: DeviceNo,
        first: Seq,
        pieces: &[Piece],
        out: &mut Vec<Action>,
    ) {
        let Some(repair) = self.repairs.get(&first) else {
            return;
        };
        if repair.writing || repair.peer != Some(from) {
            return;
        }
        match pieces.first() {
            Some(piece) if self.log.term(first) == Some(piece.term) => {
                self.log.remember(first, piece.bytes.clone());
                self.rewrite(first, piece.bytes.clone(), out);
                self.use_repaired(now, first, &piece.bytes, out);
            }
            _ => self.ask_next(now, first, out),
        }
    }

    /// Applying waits for an entry that may be pushed out of memory before it is durable again.
    fn use_repaired(&mut self, now: Instant, seq: Seq, bytes: &Bytes, out: &mut Vec<Action>) {
        let next = seq.0 == self.applied.0 + 1 && seq <= self.committed;
        if next && let Ok(decoded) = entry::decode(bytes) {
            self.apply_read(seq, decoded, out);
        }
        if self.role == Role::Head {
            self.feed_all(now, out);
        }
    }

    /// Another copy of the entry is durable.
    pub(crate) fn repaired(&mut self, now: Instant, seq: Seq, out: &mut Vec<Action>) {
        self.repairs.remove(&seq);
        if self.role == Role::Head {
            self.feed_all(now, out);
        }
    }

    pub(crate) fn repair_deadline(&self) -> Option<Instant> {
        let waiting = self.repairs.values().filter(|repair| !repair.writing);
        waiting
            .map(|repair| repair.since + self.config.limits.resend)
            .min()
    }

    pub(crate) fn on_deadline_repair(&mut self, now: Instant, out: &mut Vec<Action>) {
        let resend = self.config.limits.resend;
        let overdue = |repair: &Repair| !repair.writing && repair.since + resend <= now;
        let overdue: Vec<Seq> = self
            .repairs
            .iter()
            .filter(|(_, r)| overdue(r))
            .map(|(seq, _)| *seq)
            .collect();
        for seq in overdue {
            self.ask_next(now, seq, out);
        }
    }

    pub(crate) fn repair_peer_down(&mut self, now: Instant, peer: DeviceNo, out: &mut Vec<Action>) {
        let asked: Vec<Seq> = self
            .repairs
            .iter()
            .filter(|(_, repair)| repair.peer == Some(peer))
            .map(|(seq, _)| *seq)
            .collect();
        for seq in asked {
            self.ask_next(now, seq, out);
        }
    }
}
