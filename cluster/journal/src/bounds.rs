//! What a partition holds, and how it gives a part of that, or all of it, to another partition.
//!
//! The cluster map says what is wanted: this partition ends where the next one begins, and these others are to be
//! made of what is behind that; or it is to become a part of another one. The head puts that into the log as an
//! entry of its own, once it can; what counts is that entry, not the map.
//!
//! Invariants:
//! - nothing is ordered, and nothing is read at the head, of a place that the log, committed or not, gives away;
//! - what is about two keys is ordered only where both are;
//! - at the entry of a split each replica makes the child of its own index as it is there, and writes its own index
//!   out no further before the child is durable on its device: a crash until then leaves the parent whole, and
//!   its log with the entry in it, and the child is made anew;
//! - what went away is hidden when a root that covers the entry is durable as well: no root that could bring a parent
//!   back to before the entry lacks what the child would be made of. Until that moment no lesson begins, and none that
//!   began before goes on; a reader who is not answered by then is sent on;
//! - a replica applies nothing behind the entry that closes it: so all that are closed are in the same state, once no
//!   child is being made any more: until then the index still has what is the child's;
//! - a child's log begins behind the entry that it was made at, in the reign of that entry. One that has nothing
//!   ("unborn") may promise, and learn, but wants no reign and bears no witness: of its parent's replicas enough are
//!   past that entry, and each of those has it born, or was taught the parent by one that did.

use ashlar_cluster_index::{self as index, Index, IndexError, Range};
use ashlar_layout::ids::{DeviceNo, PartitionId, Seq, Term};
use ashlar_layout::manifest::Op;
use ashlar_layout::message::ErrorCode;
use ashlar_layout::replica_state::{Bounds, Closed, ReplicaState};
use ashlar_layout::time::Instant;

use crate::api::{Action, Ask, Wanted};
use crate::dedup::Dedup;
use crate::entry::{self, Mark};
use crate::indexing::Why;
use crate::pending::{Refusal, source, target};
use crate::replica::Replica;

/// A place in the order of (bucket, key).
type Place = (String, String);

/// A child that is being made.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Splitting {
    child: PartitionId,
    pub(crate) seq: Seq,
    /// What the child gets.
    from: Place,
    to: Option<Place>,
    /// It was taken from the index,
    taken: bool,
    /// and is durable, or need not be made here: it is waited for a root of this index that covers the entry.
    pub(crate) durable: bool,
    /// Another entry of such a kind is next, and waits for the end of this one.
    pub(crate) holds_up: bool,
}

/// What the head has put into the log and is not applied yet.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Parting {
    seq: Seq,
    /// From here on; none: all.
    from: Option<Place>,
}

/// What a new partition begins with on a device.
#[derive(Clone, Debug)]
pub struct Newborn {
    /// Its index: nothing of it is durable but the chunks that it shares.
    pub(crate) index: Index,
    /// The entry that it is made at,
    pub(crate) at: Seq,
    /// and what is known there.
    pub(crate) state: ReplicaState,
    /// Its device had nothing of it before: it was there already when this entry was made.
    pub(crate) first: bool,
}

impl PartialEq for Newborn {
    /// Of one partition, the entry determines the rest.
    fn eq(&self, other: &Self) -> bool {
        self.at == other.at && self.state == other.state
    }
}

impl Eq for Newborn {}

impl Newborn {
    /// The chunks that it shares with those that it was made of: to be held for it before anything else.
    pub fn shared_chunks(&self) -> Vec<ashlar_layout::root::Chunk> {
        self.index.shared_chunks()
    }

    /// The extents of the journal that it needs of those that it was made of: pinned for it as early, and until its
    /// replica has said the first [`Action::Trim`] after [`Action::Born`]'s root.
    pub fn pins(&self) -> Vec<u32> {
        self.index.all_pins()
    }

    /// Two neighbours that are closed become one partition. None if one of them is not closed into `into`.
    /// `border` is the place where `right` begins, `config` what the new one's replica expects
    /// ([`Replica::expects_birth`]).
    pub fn of_two(
        into: PartitionId,
        config: index::Config,
        left: &Replica,
        right: &Replica,
        border: (&str, &str),
    ) -> Option<Result<Newborn, IndexError>> {
        let (ends, others) = (left.closed_into(into)?, right.closed_into(into)?);
        let dedup = left.dedup.with(&right.dedup);
        let at = ends.seq.max(others.seq).max(dedup.newest());
        let index = match Index::union(config, &left.index, &right.index, border, at) {
            Ok(index) => index,
            Err(error) => return Some(Err(error)),
        };
        let bounds = Bounds {
            from: left.bounds.from.clone(),
            to: right.bounds.to.clone(),
            closed: None,
        };
        let state = state_of(ends.term.max(others.term), &ends.members, &dedup, bounds);
        let first = ends.seq > left.renewed() || others.seq > right.renewed();
        Some(Ok(Newborn {
            index,
            at,
            state,
            first,
        }))
    }
}

/// What stands beside the index of a partition that was just made.
fn state_of(term: Term, members: &[DeviceNo], dedup: &Dedup, bounds: Bounds) -> ReplicaState {
    let (forgotten, clients) = dedup.save();
    ReplicaState {
        position: 0,
        promised: term,
        term,
        doubt: None,
        chain_seq: Seq(0),
        config: 1,
        members: members.to_vec(),
        forgotten,
        clients,
        bounds,
        renewed: Seq(0),
    }
}

impl Replica {
    pub(crate) fn on_bounds(&mut self, wanted: Wanted) {
        self.wanted = wanted;
    }

    /// Whether it is another partition's heir and has nothing of that, for whatever reason.
    pub(crate) fn has_nothing(&self) -> bool {
        self.config.heir && self.log.last() == Seq(0)
    }

    /// Up to which entry its device may have lost what the partition gave away. A head in office knows that what is
    /// behind its own first entry came later.
    pub(crate) fn renewed(&self) -> Seq {
        let start = self.head.term_start;
        let reigns = self.in_office() && self.committed >= start;
        match self.renewed {
            Seq(u64::MAX) if reigns => start,
            renewed => renewed,
        }
    }

    /// The same, and it never had anything.
    pub(crate) fn is_unborn(&self) -> bool {
        self.has_nothing() && !self.blank
    }

    /// Whether it does nothing any more, and another one has to be made of what is on the device.
    pub fn is_stopped(&self) -> bool {
        self.stopped.is_some()
    }

    /// Whether what it begins with is being made durable.
    pub fn is_being_born(&self) -> bool {
        self.learning
            .as_ref()
            .is_some_and(|learning| learning.is_birth())
    }

    /// How the index has to be made that it is born with; none if it has what it needs, or has to learn it.
    pub fn expects_birth(&self) -> Option<index::Config> {
        let expects = self.is_unborn() && self.stopped.is_none();
        expects.then(|| self.config.index.clone())
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.bounds.closed.is_some()
    }

    fn closed_into(&self, partition: PartitionId) -> Option<&Closed> {
        let closed = self
            .bounds
            .closed
            .as_ref()
            .filter(|_| self.splitting.is_none())?;
        (closed.into == partition && self.applied == closed.seq).then_some(closed)
    }

    /// Whether a child waits to be taken from the index as it is.
    pub(crate) fn bears(&self) -> bool {
        self.splitting.as_ref().is_some_and(|it| !it.taken)
    }

    /// Whether some client wanted to make or remove a bucket that reaches beyond this partition since the last
    /// call: its parts have to be merged for that.
    pub fn take_spans(&mut self) -> bool {
        std::mem::take(&mut self.spans_asked)
    }

    /// Has its index put into one run: two neighbours could not be made one, for runs that both have stand in another
    /// order in each of them.
    pub fn condense(&mut self) {
        self.index.press();
    }

    /// A place that divides it about in half, if its index knows one.
    pub fn middle(&self) -> Option<(String, String)> {
        self.index.middle()
    }

    /// What its index has and did.
    pub fn index_stats(&self) -> index::Stats {
        self.index.stats()
    }

    /// Entry `seq`, which is being applied, gives a part to a child.
    pub(crate) fn split_off(&mut self, seq: Seq, child: PartitionId, place: (&str, &str)) {
        let from = (place.0.to_owned(), place.1.to_owned());
        let to = self.bounds.to.replace(from.clone());
        self.splitting = Some(Splitting {
            child,
            seq,
            from,
            to,
            taken: false,
            durable: false,
            holds_up: false,
        });
        self.parted(seq);
    }

    /// Entry `seq`, which is being applied, is the last one that changes anything.
    pub(crate) fn close(&mut self, seq: Seq, into: PartitionId) {
        let term = self.log.term(seq).unwrap_or_default();
        let members = self.founders_at(seq, term);
        self.bounds.closed = Some(Closed {
            into,
            seq,
            term,
            members,
        });
        self.said_closed = false;
        self.parted(seq);
    }

    /// The members at an entry of this reign, from the head on if that is one: it may have been left out just before.
    fn founders_at(&self, seq: Seq, term: Term) -> Vec<DeviceNo> {
        let (_, chain) = self.log.chain_of(seq);
        let mut members = chain.order(term.head());
        members.retain(|member| chain.contains(*member));
        members
    }

    fn parted(&mut self, seq: Seq) {
        self.head.parting = self.head.parting.take().filter(|it| it.seq > seq);
    }

    /// Says what is to be done elsewhere.
    pub(crate) fn say_bounds(&mut self, out: &mut Vec<Action>) {
        if let Some(splitting) = self.splitting.as_mut().filter(|it| !it.taken) {
            // Said once: the driver takes the child before it gives another event.
            splitting.taken = true;
            let (child, seq) = (splitting.child, splitting.seq);
            let term = self.log.term(seq).unwrap_or_default();
            let members = self.founders_at(seq, term);
            out.push(Action::Bear { child, members });
        }
        if let Some(closed) = &self.bounds.closed
            && self.splitting.is_none()
            && !self.said_closed
        {
            self.said_closed = true;
            out.push(Action::Closed {
                into: closed.into,
                members: closed.members.clone(),
            });
        }
    }

    /// Takes the child that [`Action::Bear`] spoke of from the index: before any other event, for it is made of what
    /// there is at the entry of the split. `config` is what the child's replica expects.
    pub fn bear(&mut self, config: index::Config) -> Option<Newborn> {
        let splitting = self.splitting.as_ref()?;
        if self.applied != splitting.seq || config.partition != splitting.child {
            return None;
        }
        let Splitting { seq, from, to, .. } = splitting.clone();
        let range = Range {
            from: Some(from.clone()),
            to: to.clone(),
        };
        let index = self.index.fork(config, &range, &carried(Some(&from)));
        let term = self.log.term(seq)?;
        let members = self.founders_at(seq, term);
        let bounds = Bounds {
            from: Some(from),
            to,
            closed: None,
        };
        let state = state_of(term, &members, &self.dedup, bounds);
        Some(Newborn {
            index,
            at: seq,
            state,
            first: seq > self.renewed(),
        })
    }

    /// Whether this entry has to wait until a child is made: it is one of the same kind.
    pub(crate) fn holds_up(&mut self, op: &Op) -> bool {
        let Some(splitting) = &mut self.splitting else {
            return false;
        };
        splitting.holds_up = matches!(op, Op::Split { .. } | Op::Close { .. });
        splitting.holds_up
    }

    /// The child is durable on this device, or need not be made here.
    pub(crate) fn on_child_durable(&mut self, child: PartitionId) {
        if let Some(splitting) = self.splitting.as_mut().filter(|it| it.child == child) {
            splitting.durable = true;
        }
    }

    /// Whether the index is to be written out for the sake of a split; None: it may not be written out for it.
    pub(crate) fn writes_out_for_split(&self) -> Option<bool> {
        let Some(splitting) = &self.splitting else {
            return Some(false);
        };
        let under_way = self
            .frozen
            .back()
            .is_some_and(|last| last.covers(splitting.seq));
        let covered = self.index.covered() >= splitting.seq;
        splitting.durable.then_some(!covered && !under_way)
    }

    /// Hides what is the child's, once it may.
    pub(crate) fn hide_child(&mut self, out: &mut Vec<Action>) {
        let covered = self.index.covered();
        let ready = |it: &Splitting| it.durable && covered >= it.seq;
        if self.stopped.is_some() || !self.splitting.as_ref().is_some_and(ready) {
            return;
        }
        self.splitting = None;
        // A lesson of before would miss what is hidden now, and whoever took it would make its child without that.
        self.stop_all_teaching();
        self.unmark(out);
        self.send_readers_on(out);
        narrow(&mut self.index, &self.bounds);
    }

    /// Whoever asked before the split, and has no answer yet, would miss what is hidden from now on.
    fn send_readers_on(&mut self, out: &mut Vec<Action>) {
        let readers = self.questions.iter().filter_map(|(question, why)| {
            let Why::Reader(reader) = why else {
                return None;
            };
            let bucket = match &reader.ask {
                Ask::Lookup { bucket, key, .. } if self.holds(bucket, key) => return None,
                Ask::List(params) | Ask::Versions(params, _)
                    if self.holds_to_end(&params.bucket) =>
                {
                    return None;
                }
                Ask::Lookup { bucket, .. } => bucket,
                Ask::List(params) | Ask::Versions(params, _) => &params.bucket,
                Ask::Buckets { .. } | Ask::Digest { .. } => "",
            };
            let result = Err(self.moved(bucket).into());
            let reply_to = reader.reply_to;
            Some((*question, Action::Answer { reply_to, result }))
        });
        for (question, answer) in readers.collect::<Vec<_>>() {
            self.questions.remove(&question);
            out.push(answer);
        }
    }

    /// Whether a place is in its bounds.
    fn holds(&self, bucket: &str, key: &str) -> bool {
        let at = |place: &Place| (bucket, key).cmp(&(place.0.as_str(), place.1.as_str()));
        let Bounds { from, to, .. } = &self.bounds;
        from.as_ref().is_none_or(|from| at(from).is_ge())
            && to.as_ref().is_none_or(|to| at(to).is_lt())
    }

    /// Whether nothing of a bucket is behind its bounds.
    fn holds_to_end(&self, bucket: &str) -> bool {
        let to = self.bounds.to.as_ref();
        to.is_none_or(|(of, _)| bucket < of.as_str())
    }

    /// Puts into the log what the map wants of this partition's bounds, if it is time.
    pub(crate) fn part(&mut self, now: Instant, out: &mut Vec<Action>) {
        let chain = self.log.chain();
        let rests = chain.settled() && self.log.chain_seq() <= self.committed;
        let busy = self.head.parting.is_some()
            || self.splitting.is_some()
            || self.is_closed()
            || self.full;
        if !self.in_office() || self.head.stuck || self.leaves || busy || !rests {
            return;
        }
        if let Some(border) = self.due() {
            let (child, bucket, key) = (border.0, border.1.0, border.1.1);
            let from = Some((bucket.clone(), key.clone()));
            let op = Op::Split { child, bucket, key };
            // If not now, then when a map allows it.
            if self.may_write(&op) {
                self.put_parting(now, op, from, out);
            }
            return;
        }
        let Some(into) = self.wanted.into else {
            return;
        };
        let same = |chain: &[DeviceNo], wanted: &[DeviceNo]| {
            chain.len() == wanted.len() && chain.iter().all(|member| wanted.contains(member))
        };
        let op = Op::Close { into };
        if same(&self.log.chain().members, &self.desired) && self.may_write(&op) {
            self.put_parting(now, op, None, out);
        }
    }

    /// The child that is to be split off next: the last one in the order. Of two that are wanted, the one behind
    /// was wanted of this partition, and not of the other child.
    fn due(&self) -> Option<(PartitionId, Place)> {
        let Bounds { from, to, .. } = &self.bounds;
        let wanted = self.wanted.children.iter();
        let inside = wanted.filter(|it| {
            let place = &it.from;
            from.as_ref().is_none_or(|from| place > from) && to.as_ref().is_none_or(|to| place < to)
        });
        let last = inside.max_by(|a, b| a.from.cmp(&b.from))?;
        Some((last.child, last.from.clone()))
    }

    fn put_parting(&mut self, now: Instant, op: Op, from: Option<Place>, out: &mut Vec<Action>) {
        let Some(piece) = self.own_piece(&entry::own(op), None, Mark::Any, out) else {
            return;
        };
        let seq = piece.seq;
        self.head.parting = Some(Parting { seq, from });
        self.append(now, piece, out);
        self.advance_commit(now);
    }

    /// Whether it may answer for this place.
    pub(crate) fn check_place(&self, bucket: &str, key: &str) -> Result<(), Refusal> {
        let at = |place: &Place| (bucket, key).cmp(&(place.0.as_str(), place.1.as_str()));
        if self.is_closed() || !self.holds(bucket, key) {
            return Err(self.moved(bucket));
        }
        match &self.head.parting {
            Some(parting) if parting.from.as_ref().is_none_or(|from| at(from).is_ge()) => {
                Err(self.busy("requests for what is being split off"))
            }
            _ => Ok(()),
        }
    }

    fn moved(&self, bucket: &str) -> Refusal {
        let partition = self.config.partition;
        let detail = match &self.bounds.closed {
            Some(closed) => format!(
                "partition {partition} is a part of partition {} now: a newer map says so",
                closed.into
            ),
            None => format!(
                "partition {partition} does not hold that place of bucket {bucket:?} any more: a newer map says who \
                 does"
            ),
        };
        Refusal::new(ErrorCode::Moved, detail)
    }

    /// Whether a change may be ordered here.
    pub(crate) fn check_change(&mut self, op: &Op) -> Result<(), Refusal> {
        let (bucket, key) = target(op);
        self.check_place(bucket, key)?;
        match source(op) {
            None => Ok(()),
            Some(source) if self.holds(bucket, source) => self.check_place(bucket, source),
            Some(source) => Err(self.apart(bucket, key, source)),
        }
    }

    fn apart(&self, bucket: &str, key: &str, source: &str) -> Refusal {
        let detail = format!(
            "{bucket:?}/{key:?} is in partition {}, and {source:?} is in another one: an object gets another key \
             only where both are in one partition",
            self.config.partition
        );
        Refusal::new(ErrorCode::Apart, detail)
    }

    /// Whether a bucket may come or go: not as long as another partition has a part of its keys.
    pub(crate) fn check_spans(&mut self, op: &Op) -> Result<(), Refusal> {
        let (Op::CreateBucket { bucket } | Op::DeleteBucket { bucket }) = op else {
            return Ok(());
        };
        let parting = self.head.parting.as_ref().and_then(|it| it.from.as_ref());
        let mut ends = self.bounds.to.iter().chain(parting);
        if !ends.any(|(of, key)| of == bucket && !key.is_empty()) {
            return Ok(());
        }
        self.spans_asked = true;
        let detail = format!(
            "bucket {bucket:?} reaches from partition {} into the next one: it can be made or removed when the two \
             are merged",
            self.config.partition
        );
        Err(Refusal::new(ErrorCode::BucketSpans, detail))
    }

    /// Whether a reader may be answered.
    pub(crate) fn check_reader(&self, ask: &Ask) -> Result<(), Refusal> {
        match ask {
            Ask::Lookup { bucket, key, .. } => self.check_place(bucket, key),
            Ask::List(params) | Ask::Versions(params, _) => {
                let bucket = &params.bucket;
                let Bounds { from, to, closed } = &self.bounds;
                let behind = to
                    .as_ref()
                    .is_some_and(|to| to <= &(bucket.clone(), String::new()));
                let before = from.as_ref().is_some_and(|from| from.0 > *bucket);
                if closed.is_some() || behind || before {
                    return Err(self.moved(bucket));
                }
                self.check_whole()
            }
            Ask::Buckets { .. } if self.is_closed() => Err(self.moved("")),
            Ask::Buckets { .. } => self.check_whole(),
            // It says itself of which bounds it tells.
            Ask::Digest { .. } => Ok(()),
        }
    }

    /// Whether it can tell all that is in its bounds, and no more, and whoever asks knows these bounds: the map that
    /// the driver has is no older than what the log says.
    fn check_whole(&self) -> Result<(), Refusal> {
        let narrower = match (&self.bounds.to, &self.wanted.end) {
            (Some(to), Some(end)) => to < end,
            (Some(_), None) => true,
            (None, _) => false,
        };
        let parts = self.head.parting.is_some() || self.splitting.is_some();
        if narrower || parts {
            return Err(self.busy("lists while it is being split"));
        }
        Ok(())
    }
}

/// Shows nothing of an index but what is in bounds.
pub(crate) fn narrow(index: &mut Index, bounds: &Bounds) {
    if bounds.from.is_none() && bounds.to.is_none() {
        return;
    }
    let range = Range {
        from: bounds.from.clone(),
        to: bounds.to.clone(),
    };
    index.narrow(&range, &carried(range.from.as_ref()));
}

/// The bucket whose record goes with a range that begins here.
pub(crate) fn carried(from: Option<&Place>) -> Vec<String> {
    let inside = from.filter(|(_, key)| !key.is_empty());
    inside
        .map(|(bucket, _)| bucket.clone())
        .into_iter()
        .collect()
}
