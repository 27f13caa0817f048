//! How a replica comes about: from the root of its index, and the log behind that.
//!
//! Invariants:
//! - what the index covers was committed, and everything that the replica knew when the index was written out
//!   stands beside it; the rest is in records that are replayed;
//! - a replica whose index is lost keeps what it promised, as far as it is replayed, and doubts that; its log
//!   counts for nothing, for it may begin behind a gap;
//! - a replica that never had a root on its device is bare: whether this is the device that once had all that, or one
//!   formatted anew under its number, nothing on it can tell. It replays what there is, and doubts all of it.

use std::collections::{BTreeMap, VecDeque};

use ashlar_cluster_index::{Cache, Index};
use ashlar_layout::control::ControlError;
use ashlar_layout::ids::{Seq, Term};
use ashlar_layout::journal::EntryError;
use ashlar_layout::replica_state::ReplicaState;
use ashlar_layout::time::Instant;
use bytes::Bytes;

use crate::api::{Config, Wanted};
use crate::bounds::narrow;
use crate::chain::Chain;
use crate::dedup::Dedup;
use crate::election::Election;
use crate::entry;
use crate::follower::Follower;
use crate::head::Head;
use crate::log::Log;
use crate::promise::Promise;
use crate::replica::{Replica, Role, Shelf};
use crate::start::Starting;
use crate::witness::Witness;

impl Replica {
    /// From what the device keeps of it: the index as it was opened, and what came along with it (nothing,
    /// if there was no index). The log behind that is replayed into it; then it is started.
    pub fn new(config: Config, index: Index, kept: &[u8]) -> Result<Self, ControlError> {
        let state = match kept {
            [] if index.covered() == Seq(0) => ReplicaState::default(),
            kept => ReplicaState::decode(kept)?,
        };
        Ok(Self::made(config, index, state))
    }

    fn made(config: Config, mut index: Index, mut state: ReplicaState) -> Self {
        // A root may cover an entry that gave something away, and still show that.
        narrow(&mut index, &state.bounds);
        if state.config == 0 {
            state.config = 1;
            state.members.clone_from(&config.founders);
        }
        let covered = index.covered();
        let chain = Chain {
            config: state.config,
            members: state.members,
        };
        let dedup = Dedup::new(config.limits.clients, config.limits.requests);
        let promise = Promise {
            durable: state.promised,
            ..Promise::default()
        };
        let mut log = Log::new(
            config.limits.memory_bytes,
            (covered, state.term),
            (state.chain_seq, chain),
        );
        log.doubt_tail(state.doubt);
        Self {
            role: Role::Replaying,
            blank: false,
            bare: false,
            damaged: false,
            doubt_kept: state.doubt.is_some(),
            renewed: state.renewed,
            stopped: None,
            outdated: false,
            level: config.reads,
            term: Term(0),
            seen: Term(0),
            promise,
            election: Election::default(),
            desired: Vec::new(),
            wanted: Wanted::default(),
            bounds: state.bounds,
            splitting: None,
            said_closed: false,
            spans_asked: false,
            leaves: false,
            retired: false,
            witness: Witness::behind(covered),
            log,
            index,
            lane: 0,
            lanes: 0,
            shelf: Shelf(Cache::new(0)),
            questions: BTreeMap::new(),
            marked: None,
            frozen: VecDeque::new(),
            rooted: state.position,
            position: state.position,
            unwritten: 0,
            unsound: false,
            teach_at: Instant::default(),
            learning: None,
            learned: None,
            recalls: BTreeMap::new(),
            dedup: dedup.load(state.forgotten, state.clients),
            applied: covered,
            committed: covered,
            links: BTreeMap::new(),
            head: Head::default(),
            follower: Follower::default(),
            starting: Starting::default(),
            full: false,
            pressed: false,
            tokens: 0,
            writes: BTreeMap::new(),
            reads: BTreeMap::new(),
            applying: None,
            serves: BTreeMap::new(),
            repairs: BTreeMap::new(),
            config,
        }
    }

    /// One whose index cannot be opened any more, and hence nothing can be said of its log either: it keeps its
    /// promises, as far as they are replayed, and counts for nothing until it has learned.
    pub fn blank(config: Config, index: Index) -> Self {
        let mut replica = Self::made(config, index, ReplicaState::default());
        replica.blank = true;
        replica.renewed = Seq(u64::MAX);
        replica
    }

    /// One whose device has no root of it. Unless it is shown otherwise ([`Replica::has_its_past`]), it keeps out
    /// of everything until others have told what it may have lost.
    pub fn bare(config: Config, index: Index) -> Self {
        let mut replica = Self::made(config, index, ReplicaState::default());
        replica.bare = true;
        replica
    }

    /// Its device has what this one is to be made of, as it was from the beginning: what is not here was never here.
    /// For one that is bare, before it is started.
    pub fn has_its_past(&mut self) {
        self.bare = false;
    }

    /// Whether it has been on its device, durably, ever since its partition began: whatever the partition gave
    /// away to others was there as well, or has not come yet.
    pub fn keeps_past(&self) -> bool {
        !self.blank && self.renewed == Seq(0) && self.index.generation() > 0
    }

    /// Whether a journal record with these entries, which is the device's record of this number, need not be
    /// replayed: all of it is in the index, or was settled before that.
    pub fn is_past(&self, last: Seq, position: u64) -> bool {
        last <= self.log.base() && position <= self.rooted
    }

    /// What a journal record of this partition holds: whole entries, the first of which is at
    /// device byte address `at`; `position` is the record's number. Records come in the order in which they
    /// were appended to the device, before `Start`; those that are past may be left out. Bytes that do not
    /// verify count as a damaged record.
    pub fn replay(&mut self, entries: &Bytes, at: u64, position: u64) {
        let mut pieces = Vec::new();
        let damaged = match entry::split(entries, self.config.reads, &mut pieces) {
            Err(error @ EntryError::NewerVersion { .. }) => return self.keeps_newer(&error),
            split => split.is_err(),
        };
        self.position = self.position.max(position);
        let mut at = at;
        for piece in &pieces {
            let len = piece.bytes.len();
            if piece.seq.0 == 0 {
                self.replay_promise(piece.term);
                at += len as u64;
                continue;
            }
            if !self.blank {
                self.witness.raise(piece);
                self.log.replay(piece, at);
            }
            at += len as u64;
        }
        if damaged {
            self.promise.doubtful |= pieces.is_empty();
            let first = pieces.last().map(|piece| Seq(piece.seq.0 + 1));
            self.log.replay_damaged(
                first.map(|first| (first, Seq(u64::MAX))),
                self.promise.durable,
            );
        }
    }

    /// A journal record that cannot be read stands here, in append order. `hint`: the first and
    /// last entry that it held, if its header still tells (`None` if it may have held anything).
    ///
    /// Its place matters: damage with entries behind it has made holes, which peers fill; damage
    /// behind everything else may have taken the last entries, and until a new reign has begun this
    /// replica alone does not vouch for the end of its log. Damage that is reported before anything
    /// was replayed is taken for the latter, unless its hint says that it lies within the log.
    pub fn replay_damaged(&mut self, hint: Option<(Seq, Seq)>) {
        let past = |(_, last): (Seq, Seq)| last > Seq(0) && last <= self.log.base();
        if hint.is_some_and(past) {
            return;
        }
        self.promise.doubtful |= hint.is_none_or(|(first, _)| first.0 == 0);
        if hint.is_none_or(|(_, last)| last.0 > 0) {
            self.log.replay_damaged(hint, self.promise.durable);
        }
    }
}
