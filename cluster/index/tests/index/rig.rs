//! An index on a simulated device, and the driver between them.

use std::collections::BTreeMap;

use ashlar_cluster_index::{
    Action, Answer, Cache, Change, Config, Event, Index, IndexError, Limits, Object, Opening,
    Output, Question, Snapshot,
};
use ashlar_layout::ids::{DeviceId, PartitionId, Seq};
use ashlar_layout::manifest::{Body, Manifest};
use bytes::Bytes;

use crate::device::Device;

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
        snapshots: 8,
        filter_bits: 10,
        step: 40,
        span_bytes: 12 << 10,
        chunks: 2,
    }
}

pub fn config(life: u64, limits: Limits) -> Config {
    Config {
        device: DeviceId(*b"device-of-index!"),
        partition: PartitionId(7),
        life,
        limits,
    }
}

pub struct Rig {
    pub index: Index,
    pub cache: Cache,
    pub device: Device,
    pub done: BTreeMap<u64, Result<Output, IndexError>>,
    pub damaged: Vec<IndexError>,
    pub life: u64,
    limits: Limits,
    cache_bytes: usize,
}

impl Rig {
    pub fn new(seed: u64, limits: Limits, cache_bytes: usize) -> Self {
        let mut device = Device::new(seed);
        let (index, _) = open(&mut device, config(1, limits.clone())).unwrap();
        Self {
            index,
            cache: Cache::new(cache_bytes),
            device,
            done: BTreeMap::new(),
            damaged: Vec::new(),
            life: 1,
            limits,
            cache_bytes,
        }
    }

    /// Gives actions to whom they are for.
    pub fn give(&mut self, out: Vec<Action>) {
        let mut out = out;
        while !out.is_empty() {
            for action in std::mem::take(&mut out) {
                match action {
                    Action::Done { question, result } => {
                        assert!(self.done.insert(question, result).is_none());
                    }
                    Action::Damaged(error) => self.damaged.push(error),
                    other => {
                        if let Some(event) = self.device.submit(other) {
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
            Some(event) => {
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
        match self.ask(question, at) {
            Answer::Ready(result) => result,
            Answer::Busy => panic!("busy"),
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
        Ok(attachment)
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
    let root = device.root.clone().map(|(_, bytes)| bytes);
    let mut opening = Opening::new(config, root.as_deref())?;
    let mut out = Vec::new();
    let mut opened = opening.start(&mut out);
    loop {
        for action in out.drain(..) {
            assert!(device.submit(action).is_none());
        }
        if let Some(opened) = opened {
            let opened = opened?;
            device.keep_only(&opened.live);
            return Ok((opened.index, opened.attachment));
        }
        let event = device.complete().expect("it waits for something");
        opened = opening.on_event(event, &mut out);
    }
}

pub fn object(seq: u64) -> Object {
    Object {
        modified_ms: seq * 3,
        manifest: Manifest {
            size: seq * 5,
            crc: seq as u32,
            body: Body::Inline,
        },
        place: None,
    }
}

pub fn put(bucket: &str, key: &str, seq: u64) -> Change {
    Change::Put {
        bucket: bucket.to_owned(),
        key: key.to_owned(),
        object: object(seq),
    }
}
