//! One replica: its state, and where each event goes.
//!
//! Invariants:
//! - nothing is answered from a state that is not committed: reads and proposals are served only
//!   by a head whose own `TermStart` is committed and applied, reads only within its lease;
//! - `applied <= committed` whenever the replica serves. Before that (replay) the index may be
//!   ahead of what is known to be committed, and is rebuilt if that part is removed;
//! - once stopped, a replica does nothing any more but refuse; the driver makes another.

use std::collections::BTreeMap;

use ashlar_layout::ids::{DeviceNo, Seq, Term};
use ashlar_layout::message::{ChainBody, ChainMessage, ErrorCode, Reply};
use ashlar_layout::time::Instant;
use bytes::Bytes;

use crate::api::{Action, Config, Event};
use crate::dedup::Dedup;
use crate::election::Election;
use crate::entry::{self, Piece};
use crate::follower::Follower;
use crate::head::{Asked, Head};
use crate::index::Index;
use crate::log::Log;
use crate::mutants::mutant;
use crate::pending::Refusal;
use crate::promise::Promise;
use crate::repair::Repair;
use crate::start::Starting;
use crate::witness::Witness;

/// What a replica is at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Role {
    /// The log is being replayed.
    Replaying,
    /// It follows the head.
    Follower,
    /// It wants to be the head: seals, and collects what it lacks.
    Starting,
    /// It is the head; it serves once its own first entry is committed and applied.
    Head,
}

/// Whether another replica can be reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Link {
    Up,
    Down,
}

/// Entries on their way to the device.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Write {
    pub(crate) first: Seq,
    /// Term and length of each.
    pub(crate) entries: Vec<(Term, u32)>,
    /// It is another copy of an entry under repair.
    pub(crate) copy: bool,
}

/// Why the log is read.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Purpose {
    /// To apply it.
    Apply,
    /// To send it to a follower that is behind.
    Feed(DeviceNo),
    /// To answer a peer's `Fetch`.
    Serve(DeviceNo),
}

/// A read of the log.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Read {
    pub(crate) purpose: Purpose,
    pub(crate) first: Seq,
    pub(crate) last: Seq,
}

/// One replica of a partition. See the crate for how it is driven.
#[derive(Clone, Debug, Hash)]
pub struct Replica {
    pub(crate) config: Config,
    pub(crate) role: Role,
    pub(crate) stopped: Option<Refusal>,
    /// The newest reign that it promised itself to: its own, for a head.
    pub(crate) term: Term,
    /// The newest reign that it heard of.
    pub(crate) seen: Term,
    pub(crate) promise: Promise,
    pub(crate) election: Election,
    /// The members that the cluster map wants; none: it was not told.
    pub(crate) desired: Vec<DeviceNo>,
    /// The driver was told that it may go.
    pub(crate) retired: bool,
    pub(crate) witness: Witness,
    pub(crate) log: Log,
    pub(crate) index: Index,
    pub(crate) dedup: Dedup,
    pub(crate) applied: Seq,
    pub(crate) committed: Seq,
    pub(crate) links: BTreeMap<DeviceNo, Link>,
    pub(crate) head: Head,
    pub(crate) follower: Follower,
    pub(crate) starting: Starting,
    pub(crate) full: bool,
    pub(crate) tokens: u64,
    pub(crate) writes: BTreeMap<u64, Write>,
    pub(crate) reads: BTreeMap<u64, Read>,
    pub(crate) applying: Option<u64>,
    pub(crate) serves: BTreeMap<(DeviceNo, Seq), u64>,
    pub(crate) repairs: BTreeMap<Seq, Repair>,
}

impl Replica {
    /// An empty one, to be filled by replay and started.
    pub fn new(config: Config) -> Self {
        Self {
            role: Role::Replaying,
            stopped: None,
            term: Term(0),
            seen: Term(0),
            promise: Promise::default(),
            election: Election::default(),
            desired: Vec::new(),
            retired: false,
            witness: Witness::default(),
            log: Log::new(config.limits.memory_bytes, &config.founders),
            index: Index::default(),
            dedup: Dedup::new(config.limits.clients, config.limits.requests),
            applied: Seq(0),
            committed: Seq(0),
            links: BTreeMap::new(),
            head: Head::default(),
            follower: Follower::default(),
            starting: Starting::default(),
            full: false,
            tokens: 0,
            writes: BTreeMap::new(),
            reads: BTreeMap::new(),
            applying: None,
            serves: BTreeMap::new(),
            repairs: BTreeMap::new(),
            config,
        }
    }

    /// What a journal record of this partition holds: whole entries, the first of which is at
    /// device byte address `at`. Records come in the order in which they were appended to the
    /// device, before `Start`. Bytes that do not verify count as a damaged record.
    pub fn replay(&mut self, entries: &Bytes, at: u64) {
        let mut pieces = Vec::new();
        let damaged = entry::split(entries, &mut pieces).is_err();
        let mut at = at;
        for piece in &pieces {
            let len = piece.bytes.len();
            if piece.seq.0 == 0 {
                self.replay_promise(piece.term);
                at += len as u64;
                continue;
            }
            self.witness.raise(piece);
            self.apply_held(len);
            if let Some(lowest) = self.log.replay(piece, at)
                && lowest <= self.applied
            {
                self.reset_index();
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
        self.promise.doubtful |= hint.is_none_or(|(first, _)| first.0 == 0);
        if hint.is_none_or(|(_, last)| last.0 > 0) {
            self.log.replay_damaged(hint, self.promise.durable);
        }
    }

    /// Handles an event. The actions are appended to `out`, to be carried out in their order.
    pub fn on_event(&mut self, now: Instant, event: Event, out: &mut Vec<Action>) {
        if self.stopped.is_some() {
            return self.on_event_stopped(event, out);
        }
        match event {
            Event::Start {} => self.start(now, out),
            Event::Propose {
                reply_to,
                term,
                client,
                request,
                retry,
                precondition,
                op,
                inline,
                wall_ms,
            } => {
                let decoded = entry::Decoded {
                    client,
                    request,
                    time_ms: wall_ms,
                    op,
                };
                let asked = Asked {
                    reply_to,
                    term,
                    retry,
                    precondition,
                };
                self.propose(now, asked, decoded, &inline, out);
            }
            Event::Message { message, payload } => self.on_message(now, message, payload, out),
            Event::Persisted { token, at } => self.on_persisted(now, token, at, out),
            Event::PersistFailed { token, full } => self.on_persist_failed(token, full, out),
            Event::LogRead { token, bytes } => self.on_log_read(now, token, bytes, out),
            Event::PeerUp { peer } => self.on_link(now, peer, Link::Up, out),
            Event::PeerDown { peer } => self.on_link(now, peer, Link::Down, out),
            Event::Desired { members } => self.on_desired(now, members, out),
            Event::InlineLost { seq } => self.on_inline_lost(now, seq, out),
            Event::Full { full } => self.full = full,
            Event::Deadline => self.on_deadline(now, out),
        }
        // Only now: handlers may change what is known to be committed in several places.
        self.apply(now, out);
        self.recompose(now, out);
        // Another composition may count differently.
        self.apply(now, out);
        self.retire(now, out);
    }

    /// When to call with [`Event::Deadline`] at the latest; `None`: nothing is awaited.
    pub fn next_deadline(&self) -> Option<Instant> {
        if self.stopped.is_some() {
            return None;
        }
        let role = match self.role {
            Role::Replaying => None,
            Role::Follower => self.election_deadline(),
            Role::Starting => self.starting_deadline(),
            Role::Head => self.head_deadline(),
        };
        role.into_iter().chain(self.repair_deadline()).min()
    }

    /// Nothing is done any more.
    pub(crate) fn stop(&mut self, why: Refusal, out: &mut Vec<Action>) {
        self.abandon_pending(&why.detail, out);
        for (seq, repair) in std::mem::take(&mut self.repairs) {
            if repair.asked {
                out.push(Action::Restored {
                    seq,
                    result: Err(why.clone().into()),
                });
            }
        }
        self.stopped = Some(why);
    }

    /// Whoever waits for a commit is told that it is not known whether there will be one.
    pub(crate) fn abandon_pending(&mut self, why: &str, out: &mut Vec<Action>) {
        for reply_to in self.head.pending.abandon() {
            let detail = format!(
                "partition {}: {why}; whether the change was made is not known: send the request again",
                self.config.partition
            );
            let error = Refusal::new(ErrorCode::PartitionUnavailable, detail).into();
            out.push(Action::Reply {
                reply_to,
                reply: Reply::Error(error),
            });
        }
    }

    fn on_event_stopped(&mut self, event: Event, out: &mut Vec<Action>) {
        let partition = self.config.partition;
        let why = self
            .stopped
            .as_ref()
            .map_or("", |stopped| stopped.detail.as_str());
        let detail = format!("partition {partition} is not served: {why}");
        let error = || Refusal::new(ErrorCode::NotServing, detail.as_str()).into();
        match event {
            Event::Propose { reply_to, .. } => {
                out.push(Action::Reply {
                    reply_to,
                    reply: Reply::Error(error()),
                });
            }
            Event::InlineLost { seq } => out.push(Action::Restored {
                seq,
                result: Err(error()),
            }),
            _ => {}
        }
    }

    fn on_message(
        &mut self,
        now: Instant,
        message: ChainMessage,
        payload: Bytes,
        out: &mut Vec<Action>,
    ) {
        let ChainMessage {
            partition,
            from,
            to,
            term,
            body,
        } = message;
        let silent = self.role == Role::Replaying;
        let meant = partition == self.config.partition && to == self.config.me;
        if !meant || from == to || silent {
            return;
        }
        match body {
            ChainBody::Refused { promised, lease_us } => {
                return self.on_refused(now, from, promised, lease_us, out);
            }
            ChainBody::Fetch { last: Seq(0), .. } => return self.on_question(now, from, out),
            ChainBody::Seal => return self.on_seal(now, from, term, out),
            _ => {}
        }
        self.seen = self.seen.max(term);
        if term < self.term {
            if matches!(body, ChainBody::Append { .. } | ChainBody::Fetch { .. }) {
                self.refuse(now, term.head(), out);
            }
            return;
        }
        if term > self.term {
            // Its head is told that it has to be promised first.
            if matches!(body, ChainBody::Append { .. }) {
                self.refuse(now, term.head(), out);
            }
            return;
        }
        let follows = self.role == Role::Follower;
        match body {
            ChainBody::Append { .. } if follows => {
                self.on_append_follower(now, from, body, payload, out);
            }
            ChainBody::Fetch { first, last } if !follows || self.follower.sealed => {
                self.on_fetch(from, first, last, out);
            }
            ChainBody::Entries { first, count } => {
                let pieces = received(&payload, first, count);
                self.on_repair_entries(now, from, first, &pieces, out);
                if self.role == Role::Starting {
                    self.on_adopted_entries(now, from, first, &pieces, out);
                }
            }
            ChainBody::Sealed {
                last,
                last_term,
                holes,
            } => {
                self.on_sealed(now, from, last, last_term, holes, out);
            }
            ChainBody::Ack { durable, stamp } => self.on_ack(now, from, (durable, stamp), out),
            ChainBody::Mismatch { last, last_term } => {
                self.on_mismatch(now, from, last, last_term, out);
            }
            _ => {}
        }
    }

    fn on_persisted(&mut self, now: Instant, token: u64, at: u64, out: &mut Vec<Action>) {
        let Some(write) = self.writes.remove(&token) else {
            return;
        };
        if write.first == Seq(0) {
            return self.promised(now, out);
        }
        let mut at = at;
        for (seq, (term, len)) in (write.first.0..).zip(&write.entries) {
            self.log.written(Seq(seq), *term, at);
            at += u64::from(*len);
        }
        if write.copy {
            self.repaired(now, write.first, out);
        }
        match self.role {
            Role::Head => self.advance_commit(now),
            Role::Follower => self.acknowledge(false, out),
            Role::Starting | Role::Replaying => {}
        }
    }

    fn on_persist_failed(&mut self, token: u64, full: bool, out: &mut Vec<Action>) {
        let Some(write) = self.writes.remove(&token) else {
            return;
        };
        let why = if full {
            "its device has no room for the journal"
        } else {
            "its device failed to write the journal"
        };
        if full && !write.copy && write.first > Seq(0) && self.in_office() {
            // What is committed stays so and can be read. The entry that failed is not durable
            // here, so neither it nor anything behind it is ever committed in this reign; and since
            // no more is put into the log, nothing new gets ahead of it on the device. Followers
            // may hold it: the next reign finds out, hence the open outcome.
            self.head.stuck = true;
            return self.abandon_pending(why, out);
        }
        let detail = format!("replica {} stopped: {why}", self.config.me);
        self.stop(Refusal::new(ErrorCode::PartitionUnavailable, detail), out);
    }

    fn on_link(&mut self, now: Instant, peer: DeviceNo, link: Link, out: &mut Vec<Action>) {
        if peer == self.config.me {
            return;
        }
        self.links.insert(peer, link);
        if link == Link::Down {
            self.serves.retain(|(to, _), _| *to != peer);
            self.repair_peer_down(now, peer, out);
        }
        match self.role {
            Role::Starting => self.on_link_starting(now, peer, link, out),
            Role::Head => self.on_link_head(now, peer, link, out),
            Role::Follower | Role::Replaying => {}
        }
    }

    fn on_deadline(&mut self, now: Instant, out: &mut Vec<Action>) {
        match self.role {
            Role::Replaying => {}
            Role::Follower => self.on_deadline_election(now, out),
            Role::Starting => self.on_deadline_starting(now, out),
            Role::Head => self.on_deadline_head(now, out),
        }
        self.on_deadline_repair(now, out);
    }

    /// Puts new entries, contiguous and in order, into the log and on their way to the device.
    pub(crate) fn write(&mut self, pieces: &[Piece], out: &mut Vec<Action>) {
        let (Some(first), Some(last)) = (pieces.first(), pieces.last()) else {
            return;
        };
        for piece in pieces {
            if !mutant!(self, WitnessAfterReply) {
                self.witness.raise(piece);
            }
            self.log.write(piece);
        }
        self.persist(first.seq, last.seq, pieces, false, out);
    }

    /// Sends entries to the device: new ones, or another copy of one.
    pub(crate) fn persist(
        &mut self,
        first: Seq,
        last: Seq,
        pieces: &[Piece],
        copy: bool,
        out: &mut Vec<Action>,
    ) {
        let parts: Vec<Bytes> = pieces.iter().map(|piece| piece.bytes.clone()).collect();
        let entries = pieces
            .iter()
            .map(|piece| (piece.term, piece.bytes.len() as u32))
            .collect();
        let token = self.token();
        self.writes.insert(
            token,
            Write {
                first,
                entries,
                copy,
            },
        );
        out.push(Action::Persist {
            token,
            first,
            last,
            entries: entry::join(&parts),
        });
    }

    pub(crate) fn token(&mut self) -> u64 {
        self.tokens += 1;
        self.tokens
    }

    pub(crate) fn send(
        &self,
        to: DeviceNo,
        body: ChainBody,
        payload: Bytes,
        out: &mut Vec<Action>,
    ) {
        self.send_as(self.term, to, body, payload, out);
    }

    pub(crate) fn send_as(
        &self,
        term: Term,
        to: DeviceNo,
        body: ChainBody,
        payload: Bytes,
        out: &mut Vec<Action>,
    ) {
        let Config { partition, me, .. } = self.config;
        let message = ChainMessage {
            partition,
            from: me,
            to,
            term,
            body,
        };
        out.push(Action::Send {
            to,
            message,
            payload,
        });
    }

    pub(crate) fn is_up(&self, peer: DeviceNo) -> bool {
        self.links.get(&peer) == Some(&Link::Up)
    }
}

/// The entries of a message: `count` of them, contiguous from `first`. None if that is not so: what
/// is wrong with one makes the others doubtful too.
pub(crate) fn received(payload: &Bytes, first: Seq, count: u32) -> Vec<Piece> {
    let mut pieces = Vec::new();
    let whole = entry::split(payload, &mut pieces).is_ok();
    let contiguous = pieces
        .iter()
        .zip(first.0..)
        .all(|(piece, seq)| piece.seq.0 == seq);
    if !whole || !contiguous || pieces.len() != count as usize || first.0 == 0 {
        pieces.clear();
    }
    pieces
}
