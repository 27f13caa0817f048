//! An index on a simulated device, and the driver between them.

use std::collections::BTreeMap;

use ashlar_cluster_index::{
    Action, Answer, Cache, Change, Config, Event, Index, IndexError, Item, Limits, Name, Object,
    Opening, Output, Question, Snapshot,
};
use ashlar_layout::ids::{DeviceId, PartitionId, PgId, Seq, StripeId, Term};
use ashlar_layout::manifest::{Body, Etag, Manifest, Stripe};
use ashlar_layout::page::PAGE_MAX;
use ashlar_layout::root::InlinePlace;
use bytes::Bytes;

use crate::device::{Device, Who};

/// Small bounds, so that a short history has many flushes, merges and waits.
pub fn small() -> Limits {
    Limits {
        table_bytes: 6 << 10,
        tables: 2,
        fanout: 3,
        runs: 24,
        merges: 2,
        questions: 64,
        reads: 6,
        ahead: 3,
        snapshots: 8,
        waste_bytes: 40_000,
        filter_bits: 10,
        step: 40,
        span_bytes: 12 << 10,
        chunks: 2,
        chunk_bytes: PAGE_MAX,
    }
}

pub const DEVICE: DeviceId = DeviceId(*b"device-of-index!");
/// The partition that has the device for itself.
pub const ME: Who = 7;

pub fn config(life: u64, limits: Limits) -> Config {
    Config {
        device: DEVICE,
        partition: PartitionId(ME),
        life,
        extent_size: EXTENT,
        limits,
    }
}

/// Bytes of an extent.
pub const EXTENT: u64 = 1 << 20;

pub struct Rig {
    pub index: Index,
    pub cache: Cache,
    pub device: Device,
    pub done: BTreeMap<u64, Result<Output, IndexError>>,
    pub damaged: Vec<IndexError>,
    pub life: u64,
    /// What it covered and pinned when it last told that a root is durable.
    pub told: Told,
    limits: Limits,
    cache_bytes: usize,
}

impl Rig {
    pub fn new(seed: u64, limits: Limits, cache_bytes: usize) -> Self {
        let mut device = Device::new(seed);
        device.chunk_max = limits.chunk_bytes;
        let (index, _) = open(&mut device, config(1, limits.clone())).unwrap();
        Self {
            index,
            cache: Cache::new(cache_bytes),
            device,
            done: BTreeMap::new(),
            damaged: Vec::new(),
            life: 1,
            told: (0, Vec::new()),
            limits,
            cache_bytes,
        }
    }

    /// Gives actions to whom they are for.
    pub fn give(&mut self, out: Vec<Action>) {
        let mut out = out;
        while !out.is_empty() {
            // Of a root the owner knows before anything is freed by it.
            let freed = out.iter().position(|it| matches!(it, Action::Free { .. }));
            let rooted = out.iter().position(|it| *it == Action::Rooted);
            assert!(rooted.is_none() || freed.is_none() || rooted < freed);
            for action in std::mem::take(&mut out) {
                match action {
                    Action::Done { question, result } => {
                        assert!(self.done.insert(question, result).is_none());
                    }
                    Action::Damaged(error) => self.damaged.push(error),
                    Action::Rooted => self.told = (self.index.covered().0, self.index.pins()),
                    other => {
                        if let Some(event) = self.device.submit(ME, other) {
                            self.index.on_event(event, &mut self.cache, &mut out);
                        }
                    }
                }
            }
        }
    }

    pub fn event(&mut self, event: Event) {
        let mut out = Vec::new();
        self.index.on_event(event, &mut self.cache, &mut out);
        self.give(out);
    }

    /// One thing happens, if anything can.
    pub fn step(&mut self) -> bool {
        let turn = self.index.wants_turn();
        if turn && (self.device.idle() || self.device.dice.once_in(2)) {
            self.event(Event::Turn);
            return true;
        }
        match self.device.complete() {
            Some((_, event)) => {
                self.event(event);
                true
            }
            None => false,
        }
    }

    /// Until nothing more happens.
    pub fn settle(&mut self) {
        let mut steps = 0;
        while self.step() {
            steps += 1;
            assert!(steps < 5_000_000, "it does not come to rest");
        }
    }

    /// Applies a change, and freezes when that is wanted; waits where there is no room.
    pub fn apply(&mut self, seq: u64, change: Change) {
        let mut waited = 0;
        while self.index.apply(Seq(seq), change.clone()).is_err() {
            if self.index.wants_freeze() {
                self.freeze();
            } else {
                assert!(self.step(), "full, and nothing happens");
            }
            waited += 1;
            assert!(waited < 1_000_000, "full for ever");
        }
        if self.index.wants_freeze() {
            self.freeze();
        }
    }

    pub fn freeze(&mut self) -> bool {
        let mut out = Vec::new();
        let attachment = attachment(self.index.applied().0);
        let frozen = self.index.freeze(attachment, &mut out);
        self.give(out);
        frozen
    }

    pub fn ask(&mut self, question: Question, at: Option<Snapshot>) -> Answer {
        let mut out = Vec::new();
        let answer = self.index.ask(question, at, &mut self.cache, &mut out);
        self.give(out);
        answer
    }

    /// Asks and waits.
    pub fn answer(
        &mut self,
        question: Question,
        at: Option<Snapshot>,
    ) -> Result<Output, IndexError> {
        let mut answer = self.ask(question.clone(), at);
        while answer == Answer::Busy {
            assert!(self.step(), "busy, and nothing happens");
            answer = self.ask(question.clone(), at);
        }
        match answer {
            Answer::Ready(result) => result,
            Answer::Busy => unreachable!("asked until it was not"),
            Answer::Pending(id) => {
                let mut steps = 0;
                while !self.done.contains_key(&id) {
                    assert!(self.step(), "unanswered, and nothing happens");
                    steps += 1;
                    assert!(steps < 1_000_000, "unanswered for ever");
                }
                self.done.remove(&id).unwrap()
            }
        }
    }

    /// The power goes; the index is opened again. Gives what was attached.
    pub fn crash(&mut self) -> Result<Bytes, IndexError> {
        self.device.crash();
        self.life += 1;
        self.done.clear();
        self.cache = Cache::new(self.cache_bytes);
        let config = config(self.life, self.limits.clone());
        let (index, attachment) = open(&mut self.device, config)?;
        self.index = index;
        let told = self.told.clone();
        let placed = placed(&looked_at(ME, &self.index, &self.device).unwrap_or_default());
        check_pins(&placed, &told);
        self.told = (self.index.covered().0, self.index.pins());
        check_pins(&placed, &self.told);
        Ok(attachment)
    }
}

/// All entries of an index as they stand, without anything coming of it: of a copy, whose reads are answered at once.
pub fn looked_at(who: Who, index: &Index, device: &Device) -> Result<Vec<Item>, IndexError> {
    let (mut index, mut cache, mut out) = (index.clone(), Cache::new(0), Vec::new());
    for (token, bytes) in device.reading(who) {
        let read = Event::Read { token, bytes };
        index.on_event(read, &mut cache, &mut out);
    }
    let (after, max_bytes) = (Vec::new(), usize::MAX);
    let question = Question::Items { after, max_bytes };
    let mut asked = None;
    let mut answer = match index.ask(question, None, &mut cache, &mut out) {
        Answer::Ready(result) => Some(result),
        Answer::Pending(id) => {
            asked = Some(id);
            None
        }
        Answer::Busy => panic!("busy"),
    };
    while answer.is_none() {
        let actions = std::mem::take(&mut out);
        if actions.is_empty() {
            index.on_event(Event::Turn, &mut cache, &mut out);
        }
        for action in actions {
            match action {
                Action::Read { token, at, len } => {
                    let bytes = device.read(at, len);
                    let read = Event::Read { token, bytes };
                    index.on_event(read, &mut cache, &mut out);
                }
                Action::Done { question, result } if Some(question) == asked => {
                    answer = Some(result);
                }
                _ => {}
            }
        }
    }
    match answer {
        Some(Ok(Output::Items { items, .. })) => Ok(items),
        Some(Err(error)) => Err(error),
        other => panic!("{other:?}"),
    }
}

/// Version and place of each of these objects that is in the journal.
pub fn placed(items: &[Item]) -> Vec<(u64, u64)> {
    let place = |item: &Item| match item.change() {
        Ok(Change::Put { object, .. }) => Some((item.version.0, object.place?.at)),
        _ => None,
    };
    items.iter().filter_map(place).collect()
}

/// What an owner was told: how far it is covered, and which extents are pinned.
pub type Told = (u64, Vec<u32>);

/// The owner was told that so much is covered, and which extents are pinned: all others it may have freed, but for
/// those with entries behind. So an index that is opened afterwards needs no others.
pub fn check_pins(placed: &[(u64, u64)], (covered, pins): &Told) {
    for (version, at) in placed {
        let extent = (at / EXTENT) as u32;
        let kept = version > covered || pins.binary_search(&extent).is_ok();
        assert!(
            kept,
            "version {version} in extent {extent} is needed, and was free"
        );
    }
}

/// What the owner attaches when it freezes at this entry.
pub fn attachment(seq: u64) -> Bytes {
    if seq.is_multiple_of(3) {
        return Bytes::new();
    }
    let len = (seq * 7919 % 150_000) as usize;
    Bytes::from([seq.to_le_bytes().to_vec(), vec![seq as u8; len]].concat())
}

pub fn open(device: &mut Device, config: Config) -> Result<(Index, Bytes), IndexError> {
    let who = config.partition.0;
    let root = device.roots.get(&who).map(|(_, bytes)| bytes.clone());
    let mut opening = Opening::new(config, root.as_deref())?;
    let mut out = Vec::new();
    let mut opened = opening.start(&mut out);
    loop {
        for action in out.drain(..) {
            assert!(device.submit(who, action).is_none());
        }
        if let Some(opened) = opened {
            let opened = opened?;
            device.keep_only(who, &opened.live);
            return Ok((opened.index, opened.attachment));
        }
        let (_, event) = device.complete().expect("it waits for something");
        opened = opening.on_event(event, &mut out);
    }
}

/// What an entry makes: embedded, in the journal, in stripes, or of no bytes at all.
pub fn object(seq: u64) -> Object {
    let (mut place, mut payload, mut body) = (None, Bytes::new(), Body::Inline);
    let size = match seq % 5 {
        0 | 1 => {
            let len = 1 + seq * 37 % 300;
            payload = vec![seq as u8; len as usize].into();
            len
        }
        2 | 3 => {
            place = Some(InlinePlace {
                term: Term(seq / 100),
                at: (seq * 7919 % 400) * (EXTENT / 4) + 4096,
                len: seq as u32 % 1000,
            });
            700 + seq % 300
        }
        _ if seq.is_multiple_of(2) => 0,
        _ => {
            body = Body::Stripes(vec![stripe(seq)]);
            seq * 5
        }
    };
    Object {
        modified_ms: seq * 3,
        manifest: Manifest {
            etag: Etag {
                md5: [seq as u8; 16],
                parts: seq as u16,
            },
            ..Manifest::plain(size, seq as u32, body)
        },
        tag: None,
        place,
        payload,
    }
}

/// The same, when its bytes were lost here and have been fetched from another replica.
pub fn restored(seq: u64) -> Object {
    let object = object(seq);
    Object {
        place: None,
        payload: vec![seq as u8; object.manifest.size as usize].into(),
        ..object
    }
}

fn stripe(attempt: u64) -> Stripe {
    Stripe {
        id: StripeId { writer: 5, attempt },
        pg: PgId(1),
        k: 4,
        m: 2,
        data_len: 4096,
        shard_crcs: vec![attempt as u32; 6],
    }
}

pub fn put(bucket: &str, key: &str, seq: u64) -> Change {
    Change::Put {
        bucket: bucket.to_owned(),
        key: key.to_owned(),
        object: object(seq),
    }
}

/// Asks for what is current of these, by bucket and key.
pub fn objects(names: Vec<(String, String)>) -> Question {
    let current = |(bucket, key)| Name {
        bucket,
        key,
        id: None,
    };
    Question::Named(names.into_iter().map(current).collect())
}
