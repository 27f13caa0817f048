//! One replica: its state, and where each event goes.
//!
//! Invariants:
//! - nothing is answered from a state that is not committed: reads and proposals are served only
//!   by a head whose own `TermStart` is committed and applied, reads only within its lease;
//! - log base <= covered by the index <= applied <= committed, and applied <= durable here: what is in the
//!   index was committed, and its inline payloads are on the device;
//! - once stopped, a replica does nothing any more but refuse; the driver makes another.

use std::collections::{BTreeMap, VecDeque};
use std::hash::{Hash, Hasher};

use ashlar_cluster_index::{Cache, Index, Name};
use ashlar_layout::ids::{DeviceNo, Seq, Term};
use ashlar_layout::message::{ChainBody, ChainMessage, ErrorCode, Reply};
use ashlar_layout::replica_state::Bounds;
use ashlar_layout::time::Instant;
use bytes::Bytes;

use crate::api::{Action, Config, Event, Wanted};
use crate::bounds::Splitting;
use crate::chain::Chain;
use crate::dedup::Dedup;
use crate::digests::Marked;
use crate::election::Election;
use crate::entry::{self, Piece};
use crate::follower::Follower;
use crate::gate::Proposed;
use crate::head::{Asked, Head};
use crate::indexing::{Frozen, Why};
use crate::learn::Learning;
use crate::level::received;
use crate::log::Log;
use crate::mutants::mutant;
use crate::pending::{Facts, Refusal};
use crate::promise::Promise;
use crate::recall::Recall;
use crate::repair::Repair;
use crate::start::{Sealed, Starting};
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
    /// For the payload of an item of a lesson to this replica.
    Lesson {
        peer: DeviceNo,
        lesson: u64,
        item: usize,
    },
    /// To answer a peer's `Recall`.
    Recall { peer: DeviceNo, name: Name },
}

/// A read of the log, or of an inline object's entry that the log has forgotten.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Read {
    pub(crate) purpose: Purpose,
    pub(crate) first: Seq,
    pub(crate) last: Seq,
    /// The term of that one entry, where the log may not know it.
    pub(crate) term: Option<Term>,
}

/// The pages of the index in memory: whoever drives the replica lends them for each event.
#[derive(Clone, Debug)]
pub(crate) struct Shelf(pub(crate) Cache);

impl Hash for Shelf {
    /// What is in memory makes no difference to what is so.
    fn hash<H: Hasher>(&self, _: &mut H) {}
}

/// One replica of a partition. See the crate for how it is driven.
#[derive(Clone, Debug, Hash)]
pub struct Replica {
    pub(crate) config: Config,
    pub(crate) role: Role,
    pub(crate) stopped: Option<Refusal>,
    /// It met an entry that it cannot read.
    pub(crate) outdated: bool,
    /// The newest version of entries that may be written, by the map.
    pub(crate) level: u16,
    /// It lost its index: its log is not replayed, and what it promised is in doubt.
    pub(crate) blank: bool,
    /// It was made without a root of its index on its device: what it ever had there is in doubt until others tell.
    pub(crate) bare: bool,
    /// Its newest root says that entries behind its log's end may be lost.
    pub(crate) doubt_kept: bool,
    /// A record was damaged that may have held a promise: so said when it was started.
    pub(crate) damaged: bool,
    /// Its device may have lost partitions that were given away by entries up to this one: see
    /// [`ashlar_layout::replica_state::ReplicaState::renewed`].
    pub(crate) renewed: Seq,
    /// The newest reign that it promised itself to: its own, for a head.
    pub(crate) term: Term,
    /// The newest reign that it heard of.
    pub(crate) seen: Term,
    pub(crate) promise: Promise,
    pub(crate) election: Election,
    /// The members that the cluster map wants; none: it was not told.
    pub(crate) desired: Vec<DeviceNo>,
    /// What the cluster map wants of its bounds,
    pub(crate) wanted: Wanted,
    /// and what they are.
    pub(crate) bounds: Bounds,
    /// The child that is being made.
    pub(crate) splitting: Option<Splitting>,
    /// The driver was told that it is closed.
    pub(crate) said_closed: bool,
    /// Somebody wanted to make or remove a bucket that reaches beyond it.
    pub(crate) spans_asked: bool,
    /// Its process is about to end.
    pub(crate) leaves: bool,
    /// The driver was told that it may go.
    pub(crate) retired: bool,
    pub(crate) witness: Witness,
    pub(crate) log: Log,
    pub(crate) index: Index,
    /// By which name the driver knows this index: another one comes with each snapshot that is learned.
    pub(crate) lane: u32,
    pub(crate) lanes: u32,
    pub(crate) shelf: Shelf,
    /// What the index is asked, and for what.
    pub(crate) questions: BTreeMap<u64, Why>,
    /// The state that digests are made of.
    pub(crate) marked: Option<Marked>,
    /// Tables that are being written out, oldest first.
    pub(crate) frozen: VecDeque<Frozen>,
    /// Records up to this one are in what the index covers, or behind it in the log.
    pub(crate) rooted: u64,
    /// The newest record of this partition that is durable.
    pub(crate) position: u64,
    /// Bytes of entries applied since the index began to be written out last.
    pub(crate) unwritten: u64,
    /// Its index is damaged, or an entry is lost that others have forgotten: it has to learn anew.
    pub(crate) unsound: bool,
    /// When it asks to be taught (again).
    pub(crate) teach_at: Instant,
    pub(crate) learning: Option<Box<Learning>>,
    /// The lesson that it took last, and of which reign that was.
    pub(crate) learned: Option<(Term, u64)>,
    /// Payloads that are asked of peers.
    pub(crate) recalls: BTreeMap<Name, Recall>,
    pub(crate) dedup: Dedup,
    pub(crate) applied: Seq,
    pub(crate) committed: Seq,
    pub(crate) links: BTreeMap<DeviceNo, Link>,
    pub(crate) head: Head,
    pub(crate) follower: Follower,
    pub(crate) starting: Starting,
    pub(crate) full: bool,
    /// Space of the journal is wanted back.
    pub(crate) pressed: bool,
    pub(crate) tokens: u64,
    pub(crate) writes: BTreeMap<u64, Write>,
    pub(crate) reads: BTreeMap<u64, Read>,
    pub(crate) applying: Option<u64>,
    pub(crate) serves: BTreeMap<(DeviceNo, Seq), u64>,
    pub(crate) repairs: BTreeMap<Seq, Repair>,
}

impl Replica {
    /// Handles an event, with the pages of indexes that are in memory. The actions are appended to `out`, to be
    /// carried out in their order.
    pub fn on_event(
        &mut self,
        now: Instant,
        event: Event,
        cache: &mut Cache,
        out: &mut Vec<Action>,
    ) {
        std::mem::swap(&mut self.shelf.0, cache);
        self.handle(now, event, out);
        std::mem::swap(&mut self.shelf.0, cache);
    }

    /// Whether it could go on if it were given a [`Event::Turn`].
    pub fn wants_turn(&self) -> bool {
        let learning = self.learning.as_ref();
        self.stopped.is_none()
            && (self.index.wants_turn()
                || self.may_apply_more()
                || learning.is_some_and(|learning| learning.wants_turn()))
    }

    fn handle(&mut self, now: Instant, event: Event, out: &mut Vec<Action>) {
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
                    inline,
                };
                let asked = Asked {
                    reply_to,
                    term,
                    retry,
                    precondition,
                };
                let facts = Facts::default();
                let proposed = Proposed {
                    asked,
                    decoded,
                    facts,
                };
                self.propose(now, proposed, out);
            }
            Event::Ask { reply_to, ask } => self.on_ask(now, reply_to, ask, out),
            Event::Message { message, payload } => self.on_message(now, message, payload, out),
            Event::Persisted {
                token,
                at,
                position,
            } => self.on_persisted(now, token, (at, position), out),
            Event::PersistFailed { token, full } => self.on_persist_failed(token, full, out),
            Event::LogRead { token, bytes } => self.on_log_read(now, token, bytes, out),
            Event::PeerUp { peer } => self.on_link(now, peer, Link::Up, out),
            Event::PeerDown { peer } => self.on_link(now, peer, Link::Down, out),
            Event::Desired { members } => self.on_desired(now, members, out),
            Event::Bounds { wanted } => self.on_bounds(wanted),
            Event::Level { entries } => self.on_level(entries),
            Event::ChildDurable { child } => self.on_child_durable(child),
            Event::Born { newborn } => self.on_born(now, *newborn, out),
            Event::InlineLost { name, version } => self.on_inline_lost(now, name, version, out),
            Event::Index { lane, event } => self.on_index(now, lane, event, out),
            Event::Turn => self.on_turn(now, out),
            Event::Leave => self.leaves = true,
            Event::Full { full } => {
                if self.full && !full {
                    self.index_has_room(now, out);
                }
                self.pressed |= full && !self.full;
                self.full = full;
            }
            Event::Deadline => self.on_deadline(now, out),
        }
        // Only now: handlers may change what is known to be committed in several places.
        self.apply(now, out);
        self.recompose(now, out);
        self.part(now, out);
        self.write_out(now, out);
        self.hide_child(out);
        // Another composition may count differently, and the index may have room again.
        self.apply(now, out);
        self.say_bounds(out);
        self.open_gates(now, out);
        self.retire(now, out);
        self.leave(now, out);
        self.tell_marked(now, out);
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
        let all = role.into_iter().chain(self.repair_deadline());
        let all = all.chain(self.recall_deadline());
        let all = all.chain(self.marked_deadline());
        all.chain(self.teach_deadline()).min()
    }

    /// Nothing is done any more.
    pub(crate) fn stop(&mut self, why: Refusal, out: &mut Vec<Action>) {
        self.abandon_pending(&why.detail, out);
        self.repairs.clear();
        for (name, recall) in std::mem::take(&mut self.recalls) {
            out.push(Action::Restored {
                name,
                version: recall.version,
                result: Err(why.clone().into()),
            });
        }
        self.unmark(out);
        for asked in std::mem::take(&mut self.questions).into_values() {
            if let Why::Reader(reader) = asked {
                let result = Err(why.clone().into());
                let reply_to = reader.reply_to;
                out.push(Action::Answer { reply_to, result });
            }
        }
        self.stopped = Some(why);
    }

    /// Whoever waits for a commit is told that it is not known whether there will be one.
    pub(crate) fn abandon_pending(&mut self, why: &str, out: &mut Vec<Action>) {
        for reply_to in self.head.gates.abandon() {
            let detail = format!(
                "partition {}: {why}; the change was not made by this attempt",
                self.config.partition
            );
            let error = Refusal::new(ErrorCode::NotServing, detail).into();
            out.push(Action::Reply {
                reply_to,
                reply: Reply::Error(error),
            });
        }
        self.pay_without(out);
        // Its answers were for this reign: in a later one others may wait at the same gates.
        self.questions
            .retain(|_, why| !matches!(why, Why::Gate { .. } | Why::Displaced));
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
            Event::Ask { reply_to, .. } => out.push(Action::Answer {
                reply_to,
                result: Err(error()),
            }),
            Event::InlineLost { name, version } => out.push(Action::Restored {
                name,
                version,
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
            ChainBody::Refused {
                promised,
                lease_us,
                config,
                members,
            } => {
                let chain = Chain { config, members };
                return self.on_refused(now, from, (promised, lease_us), chain, out);
            }
            ChainBody::Fetch { last: Seq(0), .. } => return self.on_question(now, from, out),
            ChainBody::Seal => return self.on_seal(now, from, term, out),
            // What was committed is so in every reign.
            ChainBody::Recall {
                bucket,
                key,
                id,
                version,
            } => return self.on_recall(from, Name { bucket, key, id }, version, out),
            ChainBody::Recalled {
                bucket,
                key,
                id,
                version,
                found,
            } => {
                let payload = found.then_some(payload);
                let name = Name { bucket, key, id };
                return self.on_recalled(now, from, name, version, payload, out);
            }
            _ => {}
        }
        self.seen = self.seen.max(term);
        if term < self.term {
            // Who teaches has to know as well: a learner that wanted to reign meanwhile is sent nothing else.
            if matches!(
                body,
                ChainBody::Append { .. } | ChainBody::Fetch { .. } | ChainBody::Lesson { .. }
            ) {
                self.refuse(now, term.head(), out);
            }
            return;
        }
        if term > self.term {
            // Its head is told that it has to be promised first: a learner may be sent nothing but its lesson.
            if matches!(body, ChainBody::Append { .. } | ChainBody::Lesson { .. }) {
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
                let pieces = match received(&payload, first, count, self.config.reads) {
                    Ok(pieces) => pieces,
                    Err(error) => return self.sent_newer(&error, out),
                };
                self.on_repair_entries(now, from, first, &pieces, out);
                if self.role == Role::Starting {
                    self.on_adopted_entries(now, from, first, &pieces, out);
                }
            }
            ChainBody::Sealed {
                last,
                last_term,
                holes,
                base,
                base_term,
            } => {
                let sealed = Sealed::new((last, last_term), holes, (base, base_term));
                self.on_sealed(now, from, sealed, out);
            }
            ChainBody::Over if follows && from == term.head() => self.on_over(now),
            ChainBody::Teach if self.role == Role::Head => self.on_teach(now, from, out),
            ChainBody::Lesson { .. } if follows => self.on_lesson(now, from, body, payload, out),
            ChainBody::Learned {
                lesson,
                parts,
                stamp,
            } => {
                self.on_learned(now, from, (lesson, parts), stamp, out);
            }
            ChainBody::Ack { durable, stamp } => self.on_ack(now, from, (durable, stamp), out),
            ChainBody::Mismatch { last, last_term } => {
                self.on_mismatch(now, from, last, last_term, out);
            }
            _ => {}
        }
    }

    fn on_persisted(
        &mut self,
        now: Instant,
        token: u64,
        (at, position): (u64, u64),
        out: &mut Vec<Action>,
    ) {
        let Some(write) = self.writes.remove(&token) else {
            return;
        };
        self.position = self.position.max(position);
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
            self.recall_peer_down(now, peer, out);
        }
        match self.role {
            Role::Starting => self.on_link_starting(now, peer, link, out),
            Role::Head => self.on_link_head(now, peer, link, out),
            Role::Follower if link == Link::Up => self.ask_too(now, peer, out),
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
        self.on_deadline_recall(now, out);
        self.on_deadline_marked(now, out);
        self.on_deadline_teach(now, out);
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
