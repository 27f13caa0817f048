//! One replica: its state, and where each event goes.
//!
//! Invariants:
//! - nothing is answered from a state that is not committed: reads and proposals are served only
//!   by a head whose own `TermStart` is committed and applied;
//! - `applied <= committed` whenever the replica serves. Before that (replay) the index may be
//!   ahead of what is known to be committed, and is rebuilt if that part is removed;
//! - once stopped, a replica does nothing any more but refuse; the driver makes another.

use std::collections::BTreeMap;

use ashlar_layout::ids::{Seq, Term};
use ashlar_layout::message::{
    BucketMeta, ChainBody, ChainMessage, ErrorCode, ListPage, ObjectMeta, ReplicaStatus, Reply,
    WireError,
};
use ashlar_layout::time::Instant;
use bytes::Bytes;

use crate::api::{Action, Config, Event, InlineRef, ListParams};
use crate::dedup::Dedup;
use crate::entry::{self, Piece};
use crate::follower::Follower;
use crate::head::{Asked, Head};
use crate::index::Index;
use crate::list;
use crate::log::Log;
use crate::pending::Refusal;
use crate::repair::Repair;
use crate::start::Starting;

/// What a replica is at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Role {
    /// The log is being replayed.
    Replaying,
    /// It follows the head.
    Follower,
    /// It will be the head: seals, and collects what it lacks.
    Starting,
    /// It is the head; it serves once its own first entry is committed and applied.
    Head,
}

/// Whether another replica can be reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Link {
    /// Nothing was heard yet.
    Unknown,
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
    Feed(u8),
    /// To answer a peer's `Fetch`.
    Serve(u8),
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
    /// The head's reign: its own for a head; for a follower the one it sealed.
    pub(crate) term: Term,
    pub(crate) log: Log,
    pub(crate) index: Index,
    pub(crate) dedup: Dedup,
    pub(crate) applied: Seq,
    pub(crate) committed: Seq,
    pub(crate) links: Vec<Link>,
    pub(crate) head: Head,
    pub(crate) follower: Follower,
    pub(crate) starting: Starting,
    pub(crate) full: bool,
    pub(crate) tokens: u64,
    pub(crate) writes: BTreeMap<u64, Write>,
    pub(crate) reads: BTreeMap<u64, Read>,
    pub(crate) applying: Option<u64>,
    pub(crate) serves: BTreeMap<(u8, Seq), u64>,
    pub(crate) repairs: BTreeMap<Seq, Repair>,
}

impl Replica {
    /// An empty one, to be filled by replay and started.
    pub fn new(config: Config) -> Self {
        let peers = usize::from(config.replicas.max(1));
        Self {
            role: Role::Replaying,
            stopped: None,
            term: Term(0),
            log: Log::new(config.limits.memory_bytes),
            index: Index::default(),
            dedup: Dedup::new(config.limits.clients, config.limits.requests),
            applied: Seq(0),
            committed: Seq(0),
            links: vec![Link::Unknown; peers],
            head: Head::new(peers),
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
            self.apply_held(len);
            if let Some(lowest) = self.log.replay(piece, at)
                && lowest <= self.applied
            {
                self.reset_index();
            }
            at += len as u64;
        }
        if damaged {
            let first = pieces.last().map(|piece| Seq(piece.seq.0 + 1));
            self.log
                .replay_damaged(first.map(|first| (first, Seq(u64::MAX))));
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
        self.log.replay_damaged(hint);
    }

    /// Handles an event. The actions are appended to `out`, to be carried out in their order.
    pub fn on_event(&mut self, now: Instant, event: Event, out: &mut Vec<Action>) {
        if self.stopped.is_some() {
            return self.on_event_stopped(event, out);
        }
        match event {
            Event::Start { term } => self.start(now, term, out),
            Event::Propose {
                reply_to,
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
            Event::InlineLost { seq } => self.on_inline_lost(now, seq, out),
            Event::Full { full } => self.full = full,
            Event::Deadline => self.on_deadline(now, out),
        }
        // Only now: handlers may change what is known to be committed in several places.
        self.apply(out);
    }

    /// When to call with [`Event::Deadline`] at the latest; `None`: nothing is awaited.
    pub fn next_deadline(&self) -> Option<Instant> {
        if self.stopped.is_some() {
            return None;
        }
        let role = match self.role {
            Role::Replaying | Role::Follower => None,
            Role::Starting => self.starting_deadline(),
            Role::Head => self.head_deadline(),
        };
        role.into_iter().chain(self.repair_deadline()).min()
    }

    /// Whether it answers proposals and reads: it is the head, and in office.
    pub fn serving(&self) -> bool {
        self.role == Role::Head && self.head.serving && self.stopped.is_none()
    }

    /// An object, and where its entry is if its payload is inline.
    pub fn lookup(
        &self,
        bucket: &str,
        key: &str,
    ) -> Result<(ObjectMeta, Option<InlineRef>), WireError> {
        self.check_serving()?;
        let Some(objects) = self.index.bucket(bucket) else {
            return Err(no_bucket(bucket));
        };
        let Some(object) = objects.get(key) else {
            let detail = format!("there is no object {key:?} in bucket {bucket:?}");
            return Err(Refusal::new(ErrorCode::NotFound, detail).into());
        };
        Ok((object.meta(), self.inline_ref(object)))
    }

    /// A page of a listing.
    pub fn list(&self, params: &ListParams) -> Result<ListPage, WireError> {
        self.check_serving()?;
        let objects = self.index.bucket(&params.bucket);
        let objects = objects.ok_or_else(|| no_bucket(&params.bucket))?;
        Ok(list::page(objects, params))
    }

    /// At most `max` buckets after this name, and whether there are more.
    pub fn list_buckets(
        &self,
        after: &str,
        max: u32,
    ) -> Result<(Vec<BucketMeta>, bool), WireError> {
        self.check_serving()?;
        Ok(self.index.buckets(after, max))
    }

    /// How it is doing.
    pub fn status(&self) -> ReplicaStatus {
        ReplicaStatus {
            partition: self.config.partition,
            role: if self.config.me == 0 {
                "head"
            } else {
                "follower"
            }
            .to_owned(),
            state: self.state(),
            term: self.term,
            last: self.log.last(),
            committed: self.committed,
            objects: self.index.objects(),
        }
    }

    fn state(&self) -> String {
        if let Some(stopped) = &self.stopped {
            return format!("stopped: {}", stopped.detail);
        }
        match self.role {
            Role::Replaying => "replaying".to_owned(),
            Role::Starting => self.starting_state(),
            Role::Head if self.head.stuck => {
                "serving reads only: its device had no room for the journal".to_owned()
            }
            Role::Head if self.head.serving => "serving".to_owned(),
            Role::Head => format!(
                "waiting for entry {} to be durable on {} replicas and applied (durable here up to \
                 {}, committed {}, applied {}; away: {})",
                self.head.term_start,
                self.config.quorum(),
                self.log.durable(),
                self.committed,
                self.applied,
                self.away(),
            ),
            Role::Follower if self.follower.sealed => "following".to_owned(),
            Role::Follower => "waiting for the head".to_owned(),
        }
    }

    /// Replicas that cannot be reached, for a person.
    pub(crate) fn away(&self) -> String {
        let me = self.config.me;
        let away: Vec<String> = (0..self.config.replicas)
            .filter(|peer| *peer != me && !self.is_up(*peer))
            .map(|peer| peer.to_string())
            .collect();
        if away.is_empty() {
            "none".to_owned()
        } else {
            format!("replicas {}", away.join(", "))
        }
    }

    pub(crate) fn check_serving(&self) -> Result<(), Refusal> {
        if self.serving() {
            return Ok(());
        }
        let partition = self.config.partition;
        let state = self.state();
        let detail = if self.config.me == 0 {
            format!("partition {partition} is not served yet: its head is {state}")
        } else {
            format!("this replica of partition {partition} is no head; it is {state}")
        };
        Err(Refusal::new(ErrorCode::NotServing, detail))
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
    fn abandon_pending(&mut self, why: &str, out: &mut Vec<Action>) {
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
            term,
            body,
        } = message;
        let known = from < self.config.replicas && from != self.config.me;
        if partition != self.config.partition || !known || self.role == Role::Replaying {
            return;
        }
        if self.role == Role::Follower {
            return self.on_message_follower(now, from, term, body, payload, out);
        }
        if term > self.term {
            let detail = format!(
                "replica {from} knows term {term}, newer than this head's {}",
                self.term
            );
            return self.stop(Refusal::new(ErrorCode::PartitionUnavailable, detail), out);
        }
        if term < self.term {
            return self.on_older_term(now, from, out);
        }
        match body {
            ChainBody::Fetch { first, last } => self.on_fetch(from, first, last, out),
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
            ChainBody::Ack { durable } => self.on_ack(now, from, durable, out),
            ChainBody::Mismatch { last, last_term } => {
                self.on_mismatch(now, from, last, last_term, out);
            }
            // Only a head says these, and there is no other one.
            ChainBody::Seal | ChainBody::Append { .. } => {}
        }
    }

    fn on_persisted(&mut self, now: Instant, token: u64, at: u64, out: &mut Vec<Action>) {
        let Some(write) = self.writes.remove(&token) else {
            return;
        };
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
        if full && !write.copy && self.serving() {
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

    fn on_link(&mut self, now: Instant, peer: u8, link: Link, out: &mut Vec<Action>) {
        if peer == self.config.me {
            return;
        }
        let Some(held) = self.links.get_mut(usize::from(peer)) else {
            return;
        };
        *held = link;
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
            Role::Replaying | Role::Follower => {}
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

    pub(crate) fn send(&self, to: u8, body: ChainBody, payload: Bytes, out: &mut Vec<Action>) {
        self.send_as(self.term, to, body, payload, out);
    }

    pub(crate) fn send_as(
        &self,
        term: Term,
        to: u8,
        body: ChainBody,
        payload: Bytes,
        out: &mut Vec<Action>,
    ) {
        let Config { partition, me, .. } = self.config;
        let message = ChainMessage {
            partition,
            from: me,
            term,
            body,
        };
        out.push(Action::Send {
            to,
            message,
            payload,
        });
    }

    pub(crate) fn is_up(&self, peer: u8) -> bool {
        self.links.get(usize::from(peer)) == Some(&Link::Up)
    }

    /// The other replicas that can be reached.
    pub(crate) fn up(&self) -> Vec<u8> {
        self.peers().filter(|peer| self.is_up(*peer)).collect()
    }

    /// The other replicas.
    pub(crate) fn peers(&self) -> impl Iterator<Item = u8> + use<> {
        let me = self.config.me;
        (0..self.config.replicas).filter(move |peer| *peer != me)
    }
}

fn no_bucket(bucket: &str) -> WireError {
    Refusal::new(
        ErrorCode::NoSuchBucket,
        format!("there is no bucket {bucket:?}"),
    )
    .into()
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
