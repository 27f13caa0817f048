//! Single behaviours of the whole replica, one by one, against the simulated driver.

use std::hash::{DefaultHasher, Hash, Hasher};

use ashlar_cluster_index::{Cache, Index};
use ashlar_layout::crc::crc32;
use ashlar_layout::ids::{ClientId, DeviceNo, PartitionId, RequestNo, Seq, Term};
use ashlar_layout::journal::Entry;
use ashlar_layout::manifest::{Body, Manifest, Op, Precondition};
use ashlar_layout::message::{
    BucketMeta, ChainBody, ChainMessage, ErrorCode, ObjectMeta, Reply, WireError,
};
use ashlar_layout::time::Instant;
use bytes::Bytes;

use crate::api::{Action, Answer, Ask, Config, Event, InlineRef, ListParams};
use crate::replica::Replica;
use crate::sim::{MICRO, MILLI, Plan, SCRIPTED, World, limits};

pub(crate) const QUIET: Plan = Plan {
    crashes: false,
    torn: false,
    lossy: false,
    pauses: false,
    jitter: false,
    victim: None,
    renews: false,
    forgetful: false,
    cuts: false,
    spares: 0,
    drift: false,
    forgets: false,
    #[cfg(feature = "mutants")]
    mutant: None,
};

/// A chain of three that serves.
fn world(seed: u64, plan: Plan) -> World {
    let mut world = World::new(seed, 3, plan);
    world.run_until(200 * MILLI);
    assert_eq!(world.reigning(), Some(0), "{}", world.status(0));
    world
}

fn create(bucket: &str) -> Op {
    Op::CreateBucket {
        bucket: bucket.to_owned(),
    }
}

pub(crate) fn put(key: &str, inline: &[u8]) -> Op {
    let manifest = Manifest::plain(inline.len() as u64, crc32(inline), Body::Inline);
    Op::Put {
        bucket: "bucket".to_owned(),
        key: key.to_owned(),
        manifest,
    }
}

pub(crate) fn delete(key: &str) -> Op {
    Op::Delete {
        bucket: "bucket".to_owned(),
        key: key.to_owned(),
    }
}

/// A replica without a past.
pub(crate) fn bare(config: Config) -> Replica {
    let index = Index::new(config.index.clone());
    Replica::new(config, index, &[]).unwrap()
}

pub(crate) fn persisted(token: u64, at: u64) -> Event {
    let position = at;
    Event::Persisted {
        token,
        at,
        position,
    }
}

impl Replica {
    /// An event that needs no pages.
    pub(crate) fn hear(&mut self, now: Instant, event: Event, out: &mut Vec<Action>) {
        self.on_event(now, event, &mut Cache::new(0), out);
        out.retain(|action| !matches!(action, Action::Trim { .. }));
    }
}

pub(crate) fn config(me: u32) -> Config {
    Config::new(
        PartitionId(7),
        DeviceNo(me),
        [1, 2, 3].map(DeviceNo).to_vec(),
    )
}

/// An object that was looked up.
#[derive(Debug)]
pub(crate) struct Looked {
    pub(crate) meta: ObjectMeta,
    pub(crate) payload: Bytes,
    pub(crate) place: Option<InlineRef>,
    pub(crate) as_of: Seq,
    pub(crate) config: u64,
}

pub(crate) struct Script {
    pub(crate) world: World,
    asked: u64,
    /// The time of changes.
    pub(crate) wall_ms: u64,
}

impl Script {
    pub(crate) fn new() -> Self {
        Self::with(QUIET)
    }

    pub(crate) fn with(plan: Plan) -> Self {
        Self::seeded(1, plan)
    }

    pub(crate) fn seeded(seed: u64, plan: Plan) -> Self {
        let mut script = Self {
            world: world(seed, plan),
            asked: SCRIPTED,
            wall_ms: 1234,
        };
        script.done(create("bucket"), Precondition::None, b"");
        script
    }

    /// Another client's put of "k", perhaps not for the first time.
    pub(crate) fn ask_of(&mut self, client: u64, request: u64, retry: Option<Seq>) -> Reply {
        self.asked += 1;
        let event = Event::Propose {
            reply_to: self.asked,
            term: self.world.head().term,
            client: ClientId(client),
            request: RequestNo(request),
            retry,
            precondition: Precondition::None,
            op: put("k", b"x"),
            inline: Bytes::from_static(b"x"),
            wall_ms: 1234,
        };
        let head = self.world.reigning().unwrap();
        self.world.tell(head, event);
        self.answer(self.asked)
    }

    pub(crate) fn ask_as(
        &mut self,
        request: u64,
        op: Op,
        precondition: Precondition,
        inline: &[u8],
    ) -> u64 {
        self.asked += 1;
        let event = Event::Propose {
            reply_to: self.asked,
            term: self.world.head().term,
            client: ClientId(42),
            request: RequestNo(request),
            retry: None,
            precondition,
            op,
            inline: Bytes::copy_from_slice(inline),
            wall_ms: self.wall_ms,
        };
        let head = self.world.reigning().unwrap();
        self.world.tell(head, event);
        self.asked
    }

    pub(crate) fn ask(&mut self, op: Op, precondition: Precondition, inline: &[u8]) -> u64 {
        self.ask_as(self.asked - SCRIPTED + 1, op, precondition, inline)
    }

    /// Runs until the question is answered; how long that took.
    fn wait(&mut self, asked: u64) -> u64 {
        let since = self.world.now;
        while !self.world.answers.contains_key(&asked) {
            let end = self.world.now + 10 * MICRO;
            self.world.run_until(end);
            assert!(
                self.world.now - since < 5000 * MILLI,
                "no answer: {}",
                self.world.status(0)
            );
        }
        self.world.now - since
    }

    pub(crate) fn answer(&mut self, asked: u64) -> Reply {
        self.wait(asked);
        self.world.answers.remove(&asked).unwrap()
    }

    pub(crate) fn done(
        &mut self,
        op: Op,
        precondition: Precondition,
        inline: &[u8],
    ) -> (Seq, Option<Manifest>) {
        let asked = self.ask(op, precondition, inline);
        match self.answer(asked) {
            Reply::Committed { seq, displaced } => (seq, displaced),
            other => panic!("{other:?}"),
        }
    }

    /// At whoever reigns, or else at the first replica.
    pub(crate) fn look(&self, key: &str) -> Result<Looked, WireError> {
        self.look_at(key, None)
    }

    /// The same, of a version.
    pub(crate) fn look_at(&self, key: &str, id: Option<Seq>) -> Result<Looked, WireError> {
        let node = self.world.reigning().unwrap_or(0);
        let ask = Ask::Lookup {
            bucket: "bucket".to_owned(),
            key: key.to_owned(),
            id,
        };
        match self.world.peek(node, ask)? {
            Answer::Found {
                meta,
                payload,
                place,
                as_of,
                config,
            } => Ok(Looked {
                meta,
                payload,
                place,
                as_of,
                config,
            }),
            other => panic!("{other:?}"),
        }
    }

    fn buckets(&self, after: &str, max: u32) -> (Vec<BucketMeta>, bool) {
        let after = after.to_owned();
        match self.world.peek(0, Ask::Buckets { after, max }) {
            Ok(Answer::Buckets { buckets, more }) => (buckets, more),
            other => panic!("{other:?}"),
        }
    }

    pub(crate) fn run(&mut self, millis: u64) {
        let end = self.world.now + millis * MILLI;
        self.world.run_until(end);
    }

    pub(crate) fn refused(
        &mut self,
        op: Op,
        precondition: Precondition,
        inline: &[u8],
    ) -> ErrorCode {
        let asked = self.ask(op, precondition, inline);
        match self.answer(asked) {
            Reply::Error(error) => error.code,
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn conditions_are_judged_by_what_is_committed_and_pending() {
    let mut script = Script::new();
    let none = Precondition::None;
    assert_eq!(
        script.refused(put("k", b"x"), Precondition::Present, b"x"),
        ErrorCode::PreconditionFailed
    );
    let (first, displaced) = script.done(put("k", b"x"), Precondition::Absent, b"x");
    assert_eq!(displaced, None);
    assert_eq!(
        script.refused(put("k", b"y"), Precondition::Absent, b"y"),
        ErrorCode::PreconditionFailed
    );
    let (second, displaced) = script.done(put("k", b"y"), Precondition::Version(first), b"y");
    assert_eq!(displaced.map(|manifest| manifest.crc), Some(crc32(b"x")));
    assert_eq!(
        script.refused(delete("k"), Precondition::Version(first), b""),
        ErrorCode::PreconditionFailed
    );

    // Two at once: the second sees the first, though that is not committed yet.
    let one = script.ask(delete("k"), Precondition::Version(second), b"");
    let two = script.ask(put("k", b"z"), Precondition::Present, b"z");
    let three = script.ask(put("k", b"z"), Precondition::Absent, b"z");
    assert!(
        !script.world.answers.contains_key(&two),
        "a refusal that rests on what may be undone"
    );
    assert!(matches!(
        script.answer(one),
        Reply::Committed {
            displaced: Some(_),
            ..
        }
    ));
    assert!(
        matches!(script.answer(two), Reply::Error(e) if e.code == ErrorCode::PreconditionFailed)
    );
    assert!(matches!(
        script.answer(three),
        Reply::Committed {
            displaced: None,
            ..
        }
    ));
    // Removing what is not there is no error.
    script.done(delete("k"), none, b"");
    assert_eq!(script.done(delete("k"), none, b"").1, None);
}

#[test]
fn buckets() {
    let mut script = Script::new();
    let none = Precondition::None;
    assert_eq!(
        script.refused(create("bucket"), none, b""),
        ErrorCode::BucketExists
    );
    assert_eq!(
        script.refused(create("No"), none, b""),
        ErrorCode::BadRequest
    );
    assert_eq!(
        script.refused(create("other"), Precondition::Absent, b""),
        ErrorCode::BadRequest
    );
    assert_eq!(
        script.refused(Op::TermStart, none, b""),
        ErrorCode::BadRequest
    );
    let drop = Op::DeleteBucket {
        bucket: "bucket".to_owned(),
    };
    // A pending put is enough to keep the bucket.
    let first = script.ask(put("k", b"x"), none, b"x");
    let second = script.ask(drop.clone(), none, b"");
    assert!(
        matches!(script.answer(second), Reply::Error(e) if e.code == ErrorCode::BucketNotEmpty)
    );
    assert!(matches!(script.answer(first), Reply::Committed { .. }));
    // And a pending delete of the last object is enough to let it go; then nothing goes in.
    script.ask(delete("k"), none, b"");
    let dropped = script.ask(drop.clone(), none, b"");
    let late = script.ask(put("k", b"x"), none, b"x");
    assert!(matches!(script.answer(late), Reply::Error(e) if e.code == ErrorCode::NoSuchBucket));
    assert!(matches!(script.answer(dropped), Reply::Committed { .. }));
    assert_eq!(script.refused(drop, none, b""), ErrorCode::NoSuchBucket);
    script.done(create("aaa"), none, b"");
    script.done(create("bbb"), none, b"");
    let (page, more) = script.buckets("", 1);
    assert_eq!(
        (page[0].name.as_str(), page[0].created_ms, more),
        ("aaa", 1234, true)
    );
    let (page, more) = script.buckets("aaa", 9);
    assert_eq!((page[0].name.as_str(), more), ("bbb", false));
    let error = script.world.peek(0, Ask::List(ListParams::default()));
    let error = error.unwrap_err();
    assert_eq!(error.code, ErrorCode::NoSuchBucket);
}

#[test]
fn a_retry_is_answered_and_not_done_again() {
    let mut script = Script::new();
    let first = script.ask_as(900, put("k", b"x"), Precondition::Absent, b"x");
    // One while it is pending, one afterwards, one after the head started again.
    let second = script.ask_as(900, put("k", b"x"), Precondition::Absent, b"x");
    let Reply::Committed { seq, .. } = script.answer(first) else {
        panic!("not committed")
    };
    let done = Reply::Committed {
        seq,
        displaced: None,
    };
    assert_eq!(script.answer(second), done);
    let third = script.ask_as(900, put("k", b"x"), Precondition::Absent, b"x");
    assert_eq!(script.answer(third), done);
    script.world.crash(0);
    script.run(300);
    let fourth = script.ask_as(900, put("k", b"x"), Precondition::Absent, b"x");
    assert_eq!(script.answer(fourth), done);
    assert_eq!(script.look("k").unwrap().meta.version, seq);
}

#[test]
fn payloads_are_checked_and_found_on_the_device() {
    let mut script = Script::new();
    let none = Precondition::None;
    assert_eq!(
        script.refused(put("k", b"right"), none, b"wrong"),
        ErrorCode::BadRequest
    );
    assert_eq!(
        script.refused(put("k", b"right"), none, b"righ"),
        ErrorCode::BadRequest
    );
    assert_eq!(
        script.refused(put("", b""), none, b""),
        ErrorCode::BadRequest
    );
    assert_eq!(
        script.refused(delete("k"), none, b"payload"),
        ErrorCode::BadRequest
    );
    // A short one is in the index, a long one where its entry is.
    script.done(put("k", b"right"), none, b"right");
    let found = script.look("k").unwrap();
    assert_eq!((found.as_of, found.config), (found.meta.version, 1));
    assert_eq!((&found.payload[..], found.place), (&b"right"[..], None));
    let long = [9; 100];
    script.done(put("k", &long), none, &long);
    let Looked {
        meta,
        payload,
        place,
        ..
    } = script.look("k").unwrap();
    assert!(payload.is_empty());
    let place = place.unwrap();
    let bytes = script.world.nodes[0].device.read(place.at, place.len);
    assert_eq!(Entry::decode(&bytes.unwrap()).unwrap().inline, long);
    assert_eq!((meta.modified_ms, place.seq), (1234, meta.version));
    let error = script.look("none").unwrap_err();
    assert_eq!(error.code, ErrorCode::NotFound);
}

#[test]
fn each_link_carries_a_payload_once() {
    let mut script = Script::new();
    for n in 0..20 {
        script.done(put(&format!("warm{n}"), b"x"), Precondition::None, b"x");
    }
    script.world.stats.clear();
    for n in 0..50 {
        script.done(put(&format!("k{n}"), b"x"), Precondition::None, b"x");
    }
    let count = |what| script.world.stats.get(what).copied().unwrap_or(0);
    assert_eq!(
        (count("to the first"), count("forwarded"), count("bypassed")),
        (50, 50, 0)
    );
}

#[test]
fn a_stopped_successor_is_bypassed_and_catches_up() {
    let mut script = Script::new();
    for n in 0..20 {
        script.done(put(&format!("warm{n}"), b"x"), Precondition::None, b"x");
    }
    script.world.pause(1);
    let asked = script.ask(put("k", b"x"), Precondition::None, b"x");
    let took = script.wait(asked);
    assert!(took < 60 * MILLI, "took {took} ns");
    for n in 0..100 {
        let asked = script.ask(
            put(&format!("k{n}"), &[7; 100]),
            Precondition::None,
            &[7; 100],
        );
        let took = script.wait(asked);
        assert!(took < 5 * MILLI, "took {took} ns");
    }
    let reads = script.world.stats.get("log reads").copied().unwrap_or(0);
    script.world.resume(1);
    let end = script.world.now + 3000 * MILLI;
    script.world.run_until(end);
    let follower = script.world.nodes[1].replica.as_ref().unwrap();
    assert_eq!(follower.applied, script.world.head().applied);
    assert_eq!(script.world.contents(1), script.world.contents(0));
    assert!(
        script.world.stats["log reads"] > reads,
        "what left memory is read from the log"
    );
}

#[test]
fn damage_without_a_place_is_taken_for_the_end() {
    let script = Script::new();
    let tail_damaged = |hint: &dyn Fn(Seq) -> Option<(Seq, Seq)>| {
        let node = &script.world.nodes[0];
        let last = node.replica.as_ref().unwrap().log.last();
        let mut replica = bare(config(1));
        replica.replay_damaged(hint(last));
        for record in &node.device.records {
            replica.replay(&record.bytes, record.at, record.position);
        }
        replica.hear(Instant(0), Event::Start {}, &mut Vec::new());
        assert_eq!(replica.log.last(), last);
        replica.log.tail_damaged()
    };
    assert!(tail_damaged(&|_| None));
    assert!(tail_damaged(&|last| Some((last, Seq(last.0 + 1)))));
    assert!(!tail_damaged(&|last| Some((Seq(1), last))));
}

#[test]
fn a_follower_acknowledges_only_what_is_shown_to_agree() {
    let script = Script::new();
    let mut follower = bare(config(2));
    for record in &script.world.nodes[1].device.records {
        follower.replay(&record.bytes, record.at, record.position);
    }
    let held = follower.log.last();
    let first_term = follower.log.term(Seq(1)).unwrap();
    let now = Instant(0);
    let append = |prev, prev_term| ChainBody::Append {
        prev,
        prev_term,
        count: 0,
        committed: Seq(99),
        stamp: 5,
    };
    follower.hear(now, Event::Start {}, &mut Vec::new());
    let mut tell = |round, body| {
        let message = ChainMessage {
            partition: PartitionId(7),
            from: DeviceNo(1),
            to: DeviceNo(2),
            term: Term::new(round, DeviceNo(1)),
            body,
        };
        let mut out = Vec::new();
        let payload = Bytes::new();
        follower.hear(now, Event::Message { message, payload }, &mut out);
        if let [Action::Persist { token, .. }] = out[..] {
            out.clear();
            follower.hear(now, persisted(token, 4096), &mut out);
        }
        // It begins to write its first root.
        out.retain(|action| !matches!(action, Action::Index { .. }));
        match &out[..] {
            [Action::Send { message, .. }] => Some((message.term.round(), message.body.clone())),
            [] => None,
            other => panic!("{other:?}"),
        }
    };
    let ack = |durable| ChainBody::Ack { durable, stamp: 5 };
    // A reign that it has not promised: it says so, and takes nothing.
    assert!(matches!(
        tell(9, append(Seq(1), first_term)),
        Some((1, ChainBody::Refused { promised, .. })) if promised == first_term
    ));
    assert!(matches!(
        tell(9, ChainBody::Seal),
        Some((9, ChainBody::Sealed { last, .. })) if last == held
    ));
    assert_eq!(
        tell(9, append(Seq(1), first_term)),
        Some((9, ack(Seq(1)))),
        "it holds {held}, but only the first is known to agree"
    );
    assert!(matches!(
        tell(9, append(held, Term(8))),
        Some((9, ChainBody::Mismatch { last, .. })) if last < held
    ));
    for body in [ChainBody::Seal, append(Seq(1), first_term)] {
        assert!(
            matches!(tell(8, body), Some((9, ChainBody::Refused { .. }))),
            "an older reign"
        );
    }
    assert_eq!(follower.committed, Seq(1), "no further than what agrees");
}

#[test]
fn bounds_are_told() {
    let mut script = Script::new();
    script.world.pause(1);
    script.world.pause(2);
    let most = limits().pending;
    let asked: Vec<u64> = (0..most as u64 + 5)
        .map(|n| script.ask(put(&format!("k{n}"), b"x"), Precondition::None, b"x"))
        .collect();
    for late in &asked[most..] {
        assert!(matches!(script.answer(*late), Reply::Error(e) if e.code == ErrorCode::Busy));
    }
    script.world.resume(1);
    for early in &asked[..most] {
        assert!(matches!(script.answer(*early), Reply::Committed { .. }));
    }
    script.world.tell(0, Event::Full { full: true });
    assert_eq!(
        script.refused(put("k", b"x"), Precondition::None, b"x"),
        ErrorCode::DeviceFull
    );
    script.done(delete("k0"), Precondition::None, b"");
    script.world.tell(0, Event::Full { full: false });
    script.done(put("k", b"x"), Precondition::None, b"x");
}

#[test]
fn a_failed_write_stops_the_replica_and_says_that_the_outcome_is_open() {
    let script = Script::new();
    let mut head = script.world.head().clone();
    let term = head.term;
    let now = Instant(script.world.now);
    let mut out = Vec::new();
    let event = |reply_to| Event::Propose {
        reply_to,
        term,
        client: ClientId(42),
        request: RequestNo(reply_to),
        retry: None,
        precondition: Precondition::None,
        op: put("k", b"x"),
        inline: Bytes::from_static(b"x"),
        wall_ms: 5,
    };
    head.hear(now, event(77), &mut out);
    let place = |wanted: fn(&Action) -> bool| out.iter().position(wanted).unwrap();
    let sent = place(|action| matches!(action, Action::Send { .. }));
    let written = place(|action| matches!(action, Action::Persist { .. }));
    assert!(sent < written, "forward first");
    let Action::Persist { token, .. } = out[written] else {
        unreachable!()
    };
    out.clear();
    head.hear(now, Event::PersistFailed { token, full: false }, &mut out);
    let Some(Action::Reply {
        reply_to: 77,
        reply: Reply::Error(error),
    }) = out.first()
    else {
        panic!("{out:?}")
    };
    assert_eq!(error.code, ErrorCode::PartitionUnavailable);
    assert!(error.detail.contains("not known"), "{}", error.detail);
    assert!(!head.serving(now));
    out.clear();
    head.hear(now, event(78), &mut out);
    assert!(matches!(
        &out[..],
        [Action::Reply {
            reply_to: 78,
            reply: Reply::Error(_)
        }]
    ));
    assert_eq!(head.next_deadline(), None);
}

#[test]
fn the_same_seed_gives_the_same_states() {
    let hash = |seed| {
        let plan = Plan {
            crashes: true,
            torn: true,
            lossy: true,
            pauses: true,
            jitter: true,
            victim: Some(1),
            cuts: true,
            drift: true,
            ..QUIET
        };
        let mut world = World::new(seed, 3, plan);
        world.unleash();
        world.run_until(300 * MILLI);
        let mut hasher = DefaultHasher::new();
        for node in &world.nodes {
            if let Some(replica) = &node.replica {
                replica.hash(&mut hasher);
                replica.clone().hash(&mut hasher);
            }
        }
        hasher.finish()
    };
    assert_eq!(hash(5), hash(5));
    assert_ne!(hash(5), hash(6));
}
