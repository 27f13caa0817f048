//! Which versions of entries a replica writes, and which it reads.
//!
//! Invariants:
//! - a head orders nothing that takes an entry above what the newest map that it knows allows, or above what it reads
//!   itself. What is refused so was not done: it is judged behind the table of requests, like what a lock refuses;
//! - what a map allows was read by all nodes before, and is never taken back. So it makes no difference which of two
//!   heads knows which map: the one with the older map writes less than all read;
//! - what a replica cannot read it takes for no damage: it stops, and keeps what it has.

use ashlar_layout::ids::Seq;
use ashlar_layout::journal::{EntryError, entry_version};
use ashlar_layout::manifest::Op;
use ashlar_layout::message::ErrorCode;
use bytes::Bytes;

use crate::api::Action;
use crate::entry::{self, Piece};
use crate::pending::Refusal;
use crate::replica::Replica;

impl Replica {
    /// The map allows entries up to this version.
    pub(crate) fn on_level(&mut self, entries: u16) {
        self.level = entries;
    }

    /// Whether a head may write an entry of this operation.
    pub(crate) fn may_write(&self, op: &Op) -> bool {
        entry_version(op) <= self.level.min(self.config.reads)
    }

    /// Refuses a change that would have to wait for newer programs.
    pub(crate) fn check_level(&self, op: &Op) -> Result<(), Refusal> {
        if self.may_write(op) {
            return Ok(());
        }
        let detail = format!(
            "partition {}: the cluster is being upgraded: this change takes a journal entry of version {}, and those up \
             to {} may be written until all nodes read newer ones; 'ashlar cluster status' says which do not",
            self.config.partition,
            entry_version(op),
            self.level.min(self.config.reads),
        );
        Err(Refusal::new(ErrorCode::NotYet, detail))
    }

    /// Whether it was given an entry, by its device or by another replica, that only a newer program can read. It does
    /// nothing any more then.
    pub fn met_newer(&self) -> bool {
        self.outdated
    }

    fn outdated(&mut self, error: &EntryError) -> Refusal {
        self.outdated = true;
        let detail = format!(
            "replica {} stopped: {error}: start its node with the version of the program that the others have",
            self.config.me
        );
        Refusal::new(ErrorCode::NotServing, detail)
    }

    /// It was sent what it cannot read.
    pub(crate) fn sent_newer(&mut self, error: &EntryError, out: &mut Vec<Action>) {
        let why = self.outdated(error);
        self.stop(why, out);
    }

    /// Its log has what it cannot read: it does not begin.
    pub(crate) fn keeps_newer(&mut self, error: &EntryError) {
        self.stopped = Some(self.outdated(error));
    }
}

/// The entries of a message: `count` of them, contiguous from `first`. None if that is not so: what
/// is wrong with one makes the others doubtful too. An error: one of them is of a version above `reads`.
pub(crate) fn received(
    payload: &Bytes,
    first: Seq,
    count: u32,
    reads: u16,
) -> Result<Vec<Piece>, EntryError> {
    let mut pieces = Vec::new();
    let whole = match entry::split(payload, reads, &mut pieces) {
        Err(error @ EntryError::NewerVersion { .. }) => return Err(error),
        split => split.is_ok(),
    };
    let contiguous = pieces
        .iter()
        .zip(first.0..)
        .all(|(piece, seq)| piece.seq.0 == seq);
    if !whole || !contiguous || pieces.len() != count as usize || first.0 == 0 {
        pieces.clear();
    }
    Ok(pieces)
}
