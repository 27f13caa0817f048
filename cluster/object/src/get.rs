//! An object, or a part of it, on its way to its reader.
//!
//! Invariants:
//! - a byte is given out only after what it came in matched its checksum, and in order;
//! - at most `get_stripes` stripes are in memory, given out or not;
//! - all bytes of one reading are of one version: if a stripe cannot be read because the object was
//!   replaced or removed, the reading starts over if no byte was given out yet, and fails with
//!   [`ObjectError::ObjectChanged`] otherwise; it does not wait for a device that is late to see that. If only
//!   stripes of it were moved, it goes on with those;
//! - the end of a whole reading is only reached if the CRC-32 of all that was given out is the
//!   manifest's;
//! - while the object is only a guess, out of the cache, nothing is given out and nothing fails: what goes
//!   wrong then (its shards may be gone) only ends the guess.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;

use ashlar_layout::crc::{crc32, crc32_combine};
use ashlar_layout::ids::{PartitionId, Seq};
use ashlar_layout::manifest::{Body, Stripe, VersionTag};
use ashlar_layout::message::{ObjectMeta, Request};
use ashlar_layout::time::Instant;
use bytes::Bytes;

mod doubt;

use crate::ask::Ask;
use crate::call::{Action, Event, Machine, sooner};
use crate::cipher::{Chunk, DataKey};
use crate::common::Common;
use crate::cursor::Cursor;
use crate::error::ObjectError;
use crate::look::{Found, LANES, Look};
use crate::range::ByteRange;
use crate::stripe_read::{Part, StripeRead};
use crate::tree::decode_node;

#[derive(Debug)]
struct Reading {
    lane: u32,
    read: StripeRead,
}

/// The state machine that reads one object.
#[derive(Debug)]
pub struct Get {
    common: Arc<Common>,
    bucket: String,
    key: String,
    partition: PartitionId,
    id: Option<Seq>,
    asked: Option<ByteRange>,
    lane: u32,
    /// What the object is: until it has ended, what is read is a guess.
    look: Option<Look>,
    /// The guess was wrong, or its shards cannot be read.
    stumbled: bool,
    from_cache: bool,
    ask: Option<(u32, Ask)>,
    /// The version that a stripe could not be read of, and why: the running look-up decides.
    doubt: Option<(Seq, ObjectError)>,
    /// Whether the object still stands whose shards are gone, while others of them are late; and how many were gone
    /// when that was asked.
    stands: Option<(u32, Ask)>,
    missed: usize,
    /// Shards that their nodes did not have: reported if the object still stands at the end.
    missing: Vec<Action>,
    checking: bool,
    meta: Option<ObjectMeta>,
    range: Range<u64>,
    cursor: Option<Cursor>,
    node: Option<Reading>,
    reads: VecDeque<Reading>,
    chunks: VecDeque<Chunk>,
    cipher: Option<DataKey>,
    /// Bytes of the range whose stripes were asked for.
    asked_to: u64,
    /// Bytes of the range that are in `chunks`, or were given out.
    read_to: u64,
    given: u64,
    crc: u32,
    rebuilt: u64,
    restarts: u32,
    /// Where it was when it last went on with stripes that had been moved.
    resumed_at: u64,
    error: Option<ObjectError>,
    finished: bool,
}

impl Get {
    /// Reads `key` of `bucket`, or a part of it.
    pub fn new(
        common: Arc<Common>,
        bucket: &str,
        key: &str,
        range: Option<ByteRange>,
    ) -> Result<Get, ObjectError> {
        let partition = common.partition_of(bucket, key)?;
        Ok(Get {
            common,
            bucket: bucket.to_owned(),
            key: key.to_owned(),
            partition,
            id: None,
            asked: range,
            lane: 0,
            look: None,
            stumbled: false,
            from_cache: false,
            ask: None,
            doubt: None,
            stands: None,
            missed: 0,
            missing: Vec::new(),
            checking: false,
            meta: None,
            range: 0..0,
            cursor: None,
            node: None,
            reads: VecDeque::new(),
            chunks: VecDeque::new(),
            cipher: None,
            asked_to: 0,
            read_to: 0,
            given: 0,
            crc: 0,
            rebuilt: 0,
            restarts: 0,
            resumed_at: 0,
            error: None,
            finished: false,
        })
    }

    /// The same, of a version of the object; of the current one if there is none.
    #[must_use]
    pub fn of_version(mut self, id: Option<Seq>) -> Get {
        self.id = id;
        self
    }

    /// What is known of the object; `None` until it was looked up. Stands once a byte is there.
    pub fn meta(&self) -> Option<&ObjectMeta> {
        self.meta.as_ref().filter(|_| !self.is_guess())
    }

    /// Decrypts what is given out from now on: with this key it was encrypted ([`crate::Put::encrypted`]).
    pub fn decipher(&mut self, key: DataKey) {
        self.cipher = Some(key);
    }

    /// Whether witnesses said what the object is, and the head was not asked.
    pub fn from_cache(&self) -> bool {
        self.from_cache
    }

    fn is_guess(&self) -> bool {
        self.look.is_some()
    }

    /// The bytes that will be given out.
    pub fn range(&self) -> Range<u64> {
        self.range.clone()
    }

    /// Shards that had to be rebuilt so far.
    pub fn rebuilt(&self) -> u64 {
        self.rebuilt
    }

    /// Why there is not a single byte, if so.
    pub fn error_before_bytes(&self) -> Option<&ObjectError> {
        self.error
            .as_ref()
            .filter(|_| self.chunks.is_empty() && self.given == 0)
    }

    /// Whether [`Get::take`] has something to give, or to say.
    pub fn is_ready(&self) -> bool {
        !self.is_guess() && (!self.chunks.is_empty() || self.error.is_some() || self.finished)
    }

    /// The next bytes; `None` if there are none yet ([`Get::is_ready`] is false), or no more.
    pub fn take(
        &mut self,
        now: Instant,
        out: &mut Vec<Action>,
    ) -> Option<Result<Bytes, ObjectError>> {
        if self.is_guess() {
            return None;
        }
        if let Some(chunk) = self.chunks.pop_front() {
            self.given += chunk.bytes.len() as u64;
            self.advance(now, out);
            return Some(chunk.open(self.cipher.as_ref(), self.common.pool()));
        }
        let error = self.error.take()?;
        self.finished = true;
        Some(Err(error))
    }

    fn next_lane(&mut self) -> u32 {
        self.lane += 1;
        self.lane
    }

    /// Asks the head what the object is, or this version of it.
    fn ask(
        &mut self,
        now: Instant,
        id: Option<Seq>,
        payload: bool,
        out: &mut Vec<Action>,
    ) -> (u32, Ask) {
        let request = Request::Lookup {
            partition: self.partition,
            bucket: self.bucket.clone(),
            key: self.key.clone(),
            id,
            payload,
        };
        let lane = self.next_lane();
        let names = (self.bucket.as_str(), self.key.as_str());
        let common = self.common.clone();
        let mut ask = Ask::new(common, lane, names, self.partition, request, Bytes::new());
        ask.on_event(now, Event::Start, out);
        (lane, ask)
    }

    /// Finds out what the object is, and reads ahead what it may be.
    fn start(&mut self, now: Instant, out: &mut Vec<Action>) {
        let lane = self.next_lane();
        self.lane = lane + LANES - 1;
        match Look::new(self.common.clone(), &self.bucket, &self.key, true) {
            Ok(look) => {
                let mut look = look.of_version(self.id).with_lane(lane);
                look.on_event(now, Event::Start, out);
                let guess = look.guess();
                self.look = Some(look);
                if let Some(guess) = guess {
                    self.begin(guess.meta, guess.payload, guess.payload_crc);
                }
            }
            Err(error) => self.fail(error),
        }
    }

    /// What the object is, is known.
    fn on_looked(&mut self) {
        let Some(found) = self.look.take().and_then(Look::into_outcome) else {
            return;
        };
        let stumbled = std::mem::take(&mut self.stumbled);
        match found {
            // The guess was right, and what was read for it stands.
            Ok(Found {
                meta, from_cache, ..
            }) if self.meta.as_ref() == Some(&meta) && !stumbled => self.from_cache = from_cache,
            Ok(Found {
                meta,
                payload,
                payload_crc,
                from_cache,
            }) => {
                self.from_cache = from_cache;
                self.begin(meta, payload, payload_crc);
            }
            Err(error) => {
                self.chunks.clear();
                self.missing.clear();
                self.finished = false;
                self.fail(error);
            }
        }
    }

    fn fail(&mut self, error: ObjectError) {
        (self.node, self.cursor) = (None, None);
        self.reads.clear();
        if self.is_guess() {
            self.stumbled = true;
            return;
        }
        self.error = Some(error);
        (self.ask, self.stands) = (None, None);
    }

    fn bad(&self, detail: String) -> ObjectError {
        let (bucket, key) = (self.bucket.clone(), self.key.clone());
        ObjectError::BadManifest {
            bucket,
            key,
            detail,
        }
    }

    fn advance(&mut self, now: Instant, out: &mut Vec<Action>) {
        loop {
            if self.look.as_ref().is_some_and(Look::is_answered) {
                self.on_looked();
                continue;
            }
            if self.error.is_some() || self.finished || self.stumbled {
                return;
            }
            if self.ask.as_ref().is_some_and(|(_, ask)| ask.is_answered()) {
                self.on_told(out);
                continue;
            }
            if self
                .stands
                .as_ref()
                .is_some_and(|(_, ask)| ask.is_answered())
            {
                self.on_stands(now, out);
                continue;
            }
            if self.ask.is_some() || self.meta.is_none() {
                return;
            }
            if self.node.as_ref().is_some_and(|n| n.read.is_answered()) {
                self.on_node(now, out);
                continue;
            }
            // One stripe's bytes at a time: what is not fetched from here counts as held.
            if self.chunks.is_empty() && self.reads.front().is_some_and(|r| r.read.is_answered()) {
                self.on_part(now, out);
                continue;
            }
            if self.read_to == self.range.end && self.cursor.is_some() {
                if self.is_guess() {
                    return;
                }
                self.on_end(now, out);
                continue;
            }
            if !self.read_ahead(now, out) {
                let missed = self.missed_now();
                if missed > self.missed && self.stands.is_none() && !self.is_guess() {
                    self.missed = missed;
                    // A version stands though it is not the current one any more.
                    let of_version = self.meta.as_ref().and_then(|meta| meta.tag);
                    let id = of_version.map(VersionTag::slot).or(self.id);
                    self.stands = Some(self.ask(now, id, false, out));
                }
                return;
            }
        }
    }

    /// Starts to read the object that was found.
    fn begin(&mut self, meta: ObjectMeta, payload: Bytes, payload_crc: u32) {
        self.missing.clear();
        self.reads.clear();
        self.chunks.clear();
        (self.stands, self.missed) = (None, 0);
        self.node = None;
        self.cursor = None;
        self.finished = false;
        self.rebuilt = 0;
        self.crc = 0;
        let size = meta.manifest.size;
        self.range = match self.asked {
            None => 0..size,
            Some(asked) => match asked.resolve(size) {
                Some(range) => range,
                None => {
                    self.fail(ObjectError::RangeNotSatisfiable { range: asked, size });
                    return;
                }
            },
        };
        (self.asked_to, self.read_to) = (self.range.start, self.range.start);
        let (expected, body) = (meta.manifest.crc, meta.manifest.body.clone());
        self.meta = Some(meta);
        if body == Body::Inline {
            self.begin_inline(payload, payload_crc, size, expected);
            return;
        }
        if let Some(meta) = &self.meta
            && let Err(error) = meta.manifest.check()
        {
            self.fail(self.bad(error.to_string()));
            return;
        }
        self.cursor = Cursor::new(body, self.range.start);
    }

    fn begin_inline(&mut self, payload: Bytes, payload_crc: u32, size: u64, expected: u32) {
        if payload.len() as u64 != size || payload_crc != expected {
            let what = format!(
                "the inline object '{}' in bucket '{}' ({size} bytes, {} came)",
                self.key,
                self.bucket,
                payload.len()
            );
            self.fail(ObjectError::Corrupt {
                what,
                expected,
                got: payload_crc,
            });
            return;
        }
        // Both ends are within the payload: the range is within `size`.
        let bytes = payload.slice(self.range.start as usize..self.range.end as usize);
        if !bytes.is_empty() {
            self.chunks.push_back(Chunk { bytes, at: None });
        }
        self.finished = true;
    }

    /// Asks for the next stripe, or the next node; false if there is nothing to ask for now.
    fn read_ahead(&mut self, now: Instant, out: &mut Vec<Action>) -> bool {
        let held = self.reads.len() + usize::from(!self.chunks.is_empty());
        if self.node.is_some()
            || self.asked_to >= self.range.end
            || held >= self.common.tuning().get_stripes
        {
            return false;
        }
        let Some(cursor) = &mut self.cursor else {
            return false;
        };
        let Some(stripe) = cursor.stripes.get(cursor.next) else {
            let Some(node) = cursor.nodes.get(cursor.next_node).cloned() else {
                self.fail(self.bad("it names fewer bytes than it has".to_owned()));
                return true;
            };
            let want = 0..node.data_len;
            self.node = self.read(now, node, want, out);
            return true;
        };
        let start = cursor.at;
        let end = start + u64::from(stripe.data_len);
        // A stripe's length fits u32, and so do places in it.
        let want = (self.asked_to.max(start) - start) as u32
            ..(self.range.end.min(end).saturating_sub(start)) as u32;
        let stripe = stripe.clone();
        (cursor.next, cursor.at) = (cursor.next + 1, end);
        self.asked_to = self.range.end.min(end);
        if let Some(reading) = self.read(now, stripe, want, out) {
            self.reads.push_back(reading);
        }
        true
    }

    fn read(
        &mut self,
        now: Instant,
        stripe: Stripe,
        want: Range<u32>,
        out: &mut Vec<Action>,
    ) -> Option<Reading> {
        let lane = self.next_lane();
        match StripeRead::new(self.common.clone(), lane, stripe, want) {
            Ok(mut read) => {
                read.on_event(now, Event::Start, out);
                Some(Reading { lane, read })
            }
            Err(detail) => {
                self.fail(self.bad(detail));
                None
            }
        }
    }

    /// What came of a stripe, if it could be read.
    fn ended(&mut self, now: Instant, reading: Reading, out: &mut Vec<Action>) -> Option<Part> {
        self.missing.extend(reading.read.missing());
        match reading.read.into_outcome()? {
            Ok(part) => {
                self.rebuilt += u64::from(part.rebuilt);
                Some(part)
            }
            Err(error) => {
                self.doubt(now, error, out);
                None
            }
        }
    }

    fn on_node(&mut self, now: Instant, out: &mut Vec<Action>) {
        let Some(reading) = self.node.take() else {
            return;
        };
        let Some(part) = self.ended(now, reading, out) else {
            return;
        };
        let stripes = match decode_node(&part) {
            Ok(stripes) => stripes,
            Err(detail) => return self.fail(self.bad(detail)),
        };
        let Some(cursor) = &mut self.cursor else {
            return;
        };
        if let Err(detail) = cursor.enter(stripes, self.asked_to) {
            self.fail(self.bad(detail));
        }
    }

    fn on_part(&mut self, now: Instant, out: &mut Vec<Action>) {
        let Some(reading) = self.reads.pop_front() else {
            return;
        };
        let (stripe, mut at) = (reading.read.stripe(), reading.read.want().start.into());
        let Some(part) = self.ended(now, reading, out) else {
            return;
        };
        for (bytes, crc) in part.chunks.into_iter().zip(part.crcs) {
            if self.is_whole() {
                let crc = crc.unwrap_or_else(|| crc32(&bytes));
                self.crc = crc32_combine(self.crc, crc, bytes.len() as u64);
            }
            let (len, place) = (bytes.len() as u64, Some((stripe, at)));
            (self.read_to, at) = (self.read_to + len, at + len);
            self.chunks.push_back(Chunk { bytes, at: place });
        }
    }

    fn is_whole(&self) -> bool {
        self.meta
            .as_ref()
            .is_some_and(|m| self.range == (0..m.manifest.size))
    }

    /// All bytes are there.
    fn on_end(&mut self, now: Instant, out: &mut Vec<Action>) {
        let expected = self.meta.as_ref().map_or(0, |m| m.manifest.crc);
        if self.is_whole() && self.crc != expected {
            let what = format!("the object '{}' in bucket '{}'", self.key, self.bucket);
            let got = self.crc;
            return self.fail(ObjectError::Corrupt {
                what,
                expected,
                got,
            });
        }
        self.cursor = None;
        if self.missing.is_empty() {
            self.finished = true;
        } else {
            self.checking = true;
            self.stands = None;
            self.ask = Some(self.ask(now, self.id, false, out));
        }
    }
}

impl Machine for Get {
    fn on_event(&mut self, now: Instant, event: Event, out: &mut Vec<Action>) {
        match event {
            Event::Start => self.start(now, out),
            Event::Answer { call, answer } => {
                let lane = call.lane;
                let event = Event::Answer { call, answer };
                if let Some(look) = self.look.as_mut().filter(|l| l.has_lane(lane)) {
                    look.on_event(now, event, out);
                } else if let Some((_, ask)) = self.ask.as_mut().filter(|(l, _)| *l == lane) {
                    ask.on_event(now, event, out);
                } else if let Some((_, ask)) = self.stands.as_mut().filter(|(l, _)| *l == lane) {
                    ask.on_event(now, event, out);
                } else if let Some(node) = self.node.as_mut().filter(|n| n.lane == lane) {
                    node.read.on_event(now, event, out);
                } else if let Some(reading) = self.reads.iter_mut().find(|r| r.lane == lane) {
                    reading.read.on_event(now, event, out);
                }
            }
            Event::Deadline => {
                if let Some(look) = &mut self.look {
                    look.on_event(now, Event::Deadline, out);
                }
                for (_, ask) in self.ask.iter_mut().chain(&mut self.stands) {
                    ask.on_event(now, Event::Deadline, out);
                }
                let reads = self.reads.iter_mut().chain(&mut self.node);
                for reading in reads {
                    reading.read.on_event(now, Event::Deadline, out);
                }
            }
            Event::Abort => {
                self.look = None;
                self.fail(ObjectError::Aborted);
            }
            Event::Inline(_) | Event::Stripe(_) | Event::End => return,
        }
        self.advance(now, out);
    }

    fn next_deadline(&self) -> Option<Instant> {
        let asks = self.ask.iter().chain(&self.stands);
        let ask = asks.filter_map(|(_, ask)| ask.next_deadline()).min();
        let reads = self.reads.iter().chain(&self.node);
        let reads = reads.filter_map(|r| r.read.next_deadline()).min();
        let look = self.look.as_ref().and_then(Look::next_deadline);
        sooner(look, sooner(ask, reads))
    }

    fn is_answered(&self) -> bool {
        self.is_ready()
    }

    fn is_settled(&self) -> bool {
        !self.is_guess() && (self.finished || self.error.is_some())
    }
}
