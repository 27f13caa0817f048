//! The head teaches: a replica that lacks what the log has forgotten is sent a snapshot of the index.
//!
//! Invariants:
//! - a lesson is one state, that of the entry at which it began; the log keeps what comes behind that until
//!   the lesson is over, as long as that is not too much;
//! - one part is under way at a time, and is sent again until the learner has it;
//! - payloads of inline objects go along, each verified against its entry; without one there is no lesson.

use ashlar_cluster_index::{Answer, Change, IndexError, Item, Name, Output, Question, Snapshot};
use ashlar_layout::ids::{DeviceNo, Seq};
use ashlar_layout::message::{ChainBody, LessonContent};
use ashlar_layout::page::{EntryKind, INDEX_VALUE_MAX};
use ashlar_layout::replica_state::{ITEMS_MAX, ItemRecord, Items, ReplicaState};
use ashlar_layout::root::{InlinePlace, ObjectValue};
use ashlar_layout::time::Instant;
use bytes::Bytes;

use crate::api::Action;
use crate::indexing::Why;
use crate::replica::{Purpose, Replica, Role};

/// Bytes of the items of a part, but one item at the least.
const PART_MAX: usize = 1 << 20;
/// For how many leases one of the two may hear nothing of the other before it gives a lesson up.
pub(crate) const AWAY_LEASES: u32 = 80;
/// So many parts say that a lesson is not wanted.
pub(crate) const UNWANTED: u64 = u64::MAX;
/// What an item costs beside its key, its value and its payload.
const OVERHEAD: usize = 64;

const _: () = assert!(PART_MAX + 2 * INDEX_VALUE_MAX <= ITEMS_MAX);

fn place_of(item: &Item) -> Option<InlinePlace> {
    let object = item.kind == EntryKind::Object;
    ObjectValue::inline(&item.value).filter(|_| object)?.0
}

/// A part of a lesson.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Part {
    content: LessonContent,
    end: bool,
    payload: Bytes,
}

/// A lesson that is being given.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Teaching {
    /// The entry at which it began.
    pub(crate) at: Seq,
    /// Tells it from others to the same replica.
    id: u64,
    snapshot: Snapshot,
    /// What is left of the replica's state.
    state: Bytes,
    /// The last item's key that was sent, or is being collected.
    after: Vec<u8>,
    more: bool,
    /// The number of the part that is under way, or being collected.
    number: u64,
    part: Option<Part>,
    /// Items that wait for payloads, and for how many.
    items: Vec<ItemRecord>,
    waiting: usize,
    broken: bool,
    /// The next part is being collected.
    collecting: bool,
    /// When the learner was sent the part that is under way, or the index asked for it in vain.
    pub(crate) tried_at: Instant,
    /// Since when the peer cannot be reached.
    pub(crate) down_since: Option<Instant>,
}

impl Replica {
    /// A replica asks to be taught.
    pub(crate) fn on_teach(&mut self, now: Instant, peer: DeviceNo, out: &mut Vec<Action>) {
        self.head.asked.insert(peer);
        // Before that, it may hold more than is applied here.
        if self.in_office() {
            self.teach(now, peer, out);
        }
    }

    /// A replica has to be taught, unless that is being done.
    pub(crate) fn teach(&mut self, now: Instant, peer: DeviceNo, out: &mut Vec<Action>) {
        let watched = self.head.progress.contains_key(&peer);
        let many = self.head.teaching.len() >= self.config.limits.lessons;
        let parts = self.splitting.is_some();
        if self.role != Role::Head
            || !watched
            || many
            || parts
            || self.head.teaching.contains_key(&peer)
        {
            return;
        }
        let Some(snapshot) = self.index.snapshot() else {
            return;
        };
        let at = snapshot.seq();
        let teaching = Teaching {
            at,
            id: self.token(),
            snapshot,
            state: Bytes::from(self.taught_at_entry(at).encode()),
            after: Vec::new(),
            more: true,
            number: 0,
            part: None,
            items: Vec::new(),
            waiting: 0,
            broken: false,
            collecting: false,
            tried_at: now,
            down_since: None,
        };
        self.head.teaching.insert(peer, teaching);
        self.next_part(now, peer, out);
    }

    /// What a learner is told of the entry at which its lesson began: of this device, nothing.
    fn taught_at_entry(&self, at: Seq) -> ReplicaState {
        ReplicaState {
            renewed: Seq(0),
            ..self.kept_at(at)
        }
    }

    /// Ends a lesson, for whatever reason.
    pub(crate) fn stop_teaching(&mut self, peer: DeviceNo) {
        if let Some(teaching) = self.head.teaching.remove(&peer) {
            self.index.release(teaching.snapshot);
        }
        self.questions.retain(|_, why| *why != Why::Lesson(peer));
    }

    /// A lesson came to nothing. If none can be begun at once, that is tried when the peer has waited long enough.
    fn lesson_failed(&mut self, now: Instant, peer: DeviceNo) {
        self.stop_teaching(peer);
        if let Some(progress) = self.progress_mut(peer) {
            progress.waiting_since.get_or_insert(now);
        }
    }

    /// Ends all lessons: its reign is over.
    pub(crate) fn stop_all_teaching(&mut self) {
        let peers: Vec<DeviceNo> = self.head.teaching.keys().copied().collect();
        for peer in peers {
            self.stop_teaching(peer);
        }
    }

    /// Whether this replica is being taught; it is shown that the head is there.
    pub(crate) fn encourage(&self, now: Instant, peer: DeviceNo, out: &mut Vec<Action>) -> bool {
        let Some(teaching) = self.head.teaching.get(&peer) else {
            return false;
        };
        let body = ChainBody::Lesson {
            at: teaching.at,
            lesson: teaching.id,
            part: teaching.number,
            content: LessonContent::Nothing,
            end: false,
            stamp: now.0,
        };
        self.send(peer, body, Bytes::new(), out);
        true
    }

    /// Collects the next part.
    fn next_part(&mut self, now: Instant, peer: DeviceNo, out: &mut Vec<Action>) {
        let most = self.config.limits.batch_bytes;
        let Some(teaching) = self.head.teaching.get_mut(&peer) else {
            return;
        };
        teaching.part = None;
        teaching.collecting = true;
        if teaching.number == 0 || !teaching.state.is_empty() {
            let len = most.min(teaching.state.len());
            let payload = teaching.state.split_to(len);
            teaching.part = Some(Part {
                content: LessonContent::State,
                end: false,
                payload,
            });
            return self.send_part(now, peer, out);
        }
        let question = Question::Items {
            after: teaching.after.clone(),
            max_bytes: most,
        };
        let snapshot = teaching.snapshot;
        let mut wants = Vec::new();
        let (index, cache) = (&mut self.index, &mut self.shelf.0);
        let answer = index.ask(question, Some(snapshot), cache, &mut wants);
        self.pass_on(self.lane, wants, out);
        match answer {
            Answer::Ready(result) => self.lesson_items(now, peer, result, out),
            Answer::Pending(question) => {
                self.questions.insert(question, Why::Lesson(peer));
            }
            // It is tried again when the learner has waited long enough.
            Answer::Busy => {
                if let Some(teaching) = self.head.teaching.get_mut(&peer) {
                    teaching.collecting = false;
                    teaching.tried_at = now;
                }
            }
        }
    }

    /// The learner has waited for long.
    pub(crate) fn teach_on(&mut self, now: Instant, peer: DeviceNo, out: &mut Vec<Action>) {
        match self.head.teaching.get(&peer) {
            Some(teaching) if teaching.collecting => {}
            Some(teaching) if teaching.part.is_none() => self.next_part(now, peer, out),
            _ => self.send_part(now, peer, out),
        }
    }

    /// Ends lessons to those that have been away for long.
    fn end_lessons(&mut self, now: Instant) {
        let most = self.config.limits.lease * AWAY_LEASES;
        let teaching = self.head.teaching.iter();
        let away = teaching.filter(|(_, it)| it.down_since.is_some_and(|at| at + most <= now));
        for peer in away.map(|(peer, _)| *peer).collect::<Vec<_>>() {
            self.stop_teaching(peer);
        }
    }

    /// The index gave the next items.
    pub(crate) fn lesson_items(
        &mut self,
        now: Instant,
        peer: DeviceNo,
        result: Result<Output, IndexError>,
        out: &mut Vec<Action>,
    ) {
        let Some(teaching) = self.head.teaching.get_mut(&peer) else {
            return;
        };
        let Ok(Output::Items { items, more }) = result else {
            self.lesson_failed(now, peer);
            return self.make_way(now, out);
        };
        // Payloads come on top of what the index has.
        let mut bytes = 0;
        let fits = |item: &Item| {
            let place = place_of(item).map_or(0, |place| place.len as usize);
            let first = bytes == 0;
            bytes += item.key.len() + item.value.len() + place + OVERHEAD;
            first || bytes <= PART_MAX
        };
        let taken: Vec<Item> = items.iter().cloned().take_while(fits).collect();
        let more = more || taken.len() < items.len();
        if let Some(last) = taken.last() {
            teaching.after.clone_from(&last.key);
        }
        teaching.more = more;
        teaching.waiting = 0;
        teaching.items.clear();
        let mut places = Vec::new();
        for item in taken {
            if let Some(place) = place_of(&item) {
                places.push((teaching.items.len(), item.version, place));
            }
            teaching.items.push(ItemRecord {
                key: item.key,
                version: item.version,
                kind: item.kind as u8,
                value: item.value.to_vec(),
            });
        }
        teaching.waiting = places.len();
        let lesson = teaching.id;
        for (item, version, place) in places {
            let purpose = Purpose::Lesson { peer, lesson, item };
            self.read_place(purpose, version, place, out);
        }
        self.items_read(now, peer, out);
    }

    /// The payload of an item was read.
    pub(crate) fn lesson_read(
        &mut self,
        now: Instant,
        peer: DeviceNo,
        (lesson, item): (u64, usize),
        payload: Option<Bytes>,
        out: &mut Vec<Action>,
    ) {
        let teaching = self.head.teaching.get_mut(&peer);
        let Some(teaching) = teaching.filter(|it| it.id == lesson) else {
            return;
        };
        teaching.waiting = teaching.waiting.saturating_sub(1);
        let Some(record) = teaching.items.get_mut(item) else {
            return;
        };
        let filled = Some(&mut *record).and_then(|record| {
            let mut value = ObjectValue::decode(&record.value).ok()?;
            let payload = payload.filter(|payload| {
                let manifest = &value.manifest;
                payload.len() as u64 == manifest.size
                    && ashlar_layout::crc::crc32(payload) == manifest.crc
            })?;
            value.place = None;
            value.payload = payload.to_vec();
            record.value = value.encode();
            Some(())
        });
        if filled.is_none() {
            // It is asked of others; the learner will ask again, and then it is there.
            teaching.broken = true;
            let name = Item {
                key: record.key.clone(),
                version: record.version,
                kind: EntryKind::Object,
                value: Bytes::from(record.value.clone()),
            };
            let object = match name.change() {
                Ok(Change::Put { bucket, key, .. }) => Some((bucket, key, None)),
                Ok(Change::PutVersion {
                    bucket, key, id, ..
                }) => Some((bucket, key, Some(id))),
                _ => None,
            };
            if let Some((bucket, key, id)) = object {
                let of = Name { bucket, key, id };
                self.recall(now, of, name.version, false, out);
            }
        }
        self.items_read(now, peer, out);
    }

    fn items_read(&mut self, now: Instant, peer: DeviceNo, out: &mut Vec<Action>) {
        let Some(teaching) = self.head.teaching.get_mut(&peer) else {
            return;
        };
        if teaching.waiting > 0 {
            return;
        }
        if teaching.broken {
            return self.lesson_failed(now, peer);
        }
        let items = Items {
            items: std::mem::take(&mut teaching.items),
        };
        teaching.part = Some(Part {
            content: LessonContent::Items,
            end: !teaching.more,
            payload: Bytes::from(items.encode()),
        });
        self.send_part(now, peer, out);
    }

    /// Sends the part that is under way (again).
    fn send_part(&mut self, now: Instant, peer: DeviceNo, out: &mut Vec<Action>) {
        let Some(teaching) = self.head.teaching.get_mut(&peer) else {
            return;
        };
        if let Some(part) = teaching.part.clone() {
            teaching.collecting = false;
            teaching.tried_at = now;
            let body = ChainBody::Lesson {
                at: teaching.at,
                lesson: teaching.id,
                part: teaching.number,
                content: part.content,
                end: part.end,
                stamp: now.0,
            };
            self.send(peer, body, part.payload, out);
        }
    }

    /// When a learner has waited for long.
    fn taught_at(&self, peer: DeviceNo, teaching: &Teaching) -> Option<Instant> {
        let sealed = self.progress(peer).is_some_and(|progress| progress.sealed);
        let waits = sealed && self.is_up(peer) && !teaching.collecting;
        waits.then_some(teaching.tried_at + self.config.limits.resend)
    }

    pub(crate) fn lessons_deadline(&self) -> Option<Instant> {
        let teaching = self.head.teaching.iter();
        teaching
            .filter_map(|(peer, it)| self.taught_at(*peer, it))
            .min()
    }

    pub(crate) fn on_deadline_lessons(&mut self, now: Instant, out: &mut Vec<Action>) {
        self.end_lessons(now);
        let teaching = self.head.teaching.iter();
        let due =
            teaching.filter(|(peer, it)| self.taught_at(**peer, it).is_some_and(|at| at <= now));
        for peer in due.map(|(peer, _)| *peer).collect::<Vec<_>>() {
            self.teach_on(now, peer, out);
        }
    }

    /// A learner has so many parts.
    pub(crate) fn on_learned(
        &mut self,
        now: Instant,
        peer: DeviceNo,
        (lesson, parts): (u64, u64),
        stamp: u64,
        out: &mut Vec<Action>,
    ) {
        if self.role != Role::Head {
            return;
        }
        if let Some(progress) = self
            .progress_mut(peer)
            .filter(|_| stamp > 0 && stamp <= now.0)
        {
            progress.stamp = progress.stamp.max(Some(Instant(stamp)));
        }
        if !self.progress(peer).is_some_and(|progress| progress.sealed) {
            // It was away, and has to seal this reign again first.
            return;
        }
        let teaching = self.head.teaching.get_mut(&peer);
        let Some(teaching) = teaching.filter(|it| it.id == lesson) else {
            return;
        };
        let at = teaching.at;
        if parts == UNWANTED {
            // It has more than this lesson would give it.
            self.stop_teaching(peer);
            return self.feed(now, peer, out);
        }
        if parts < teaching.number {
            // It was started anew, and has lost the lesson.
            self.lesson_failed(now, peer);
            return self.teach(now, peer, out);
        }
        let end = teaching.part.as_ref().is_some_and(|part| part.end);
        if parts != teaching.number + 1 || teaching.part.is_none() {
            return;
        }
        teaching.number = parts;
        if !end {
            return self.next_part(now, peer, out);
        }
        self.stop_teaching(peer);
        if let Some(progress) = self.progress_mut(peer) {
            progress.known = true;
            progress.matched = progress.matched.max(at);
            let next = progress.matched;
            progress.probe(Seq(next.0 + 1));
            progress.waiting_since = None;
        }
        self.advance_commit(now);
        self.feed(now, peer, out);
    }
}
