//! A reading whose stripes cannot be read: whether its object was replaced, or moved, or just cannot be read.

use ashlar_layout::manifest::Body;
use ashlar_layout::message::ObjectMeta;
use ashlar_layout::time::Instant;

use super::Get;
use crate::call::Action;
use crate::cursor::Cursor;
use crate::error::ObjectError;
use crate::look::{Looked, found, gone};

/// So often a reading starts over because the object was replaced, or goes on elsewhere without having come further.
const RESTARTS_MAX: u32 = 16;

impl Get {
    /// Shards that are gone of a stripe that waits for those that are late.
    pub(super) fn missed_now(&self) -> usize {
        let reads = self.reads.iter().chain(&self.node);
        reads.map(|r| r.read.missed()).max().unwrap_or(0)
    }

    /// Whether the object still stands whose shards are gone: if so, or if its stripes are another one's now, those
    /// that are late are waited for.
    pub(super) fn on_stands(&mut self, now: Instant, out: &mut Vec<Action>) {
        let told = self.stands.take().and_then(|(_, ask)| ask.into_outcome());
        let (Some(told), Some(known)) = (told, &self.meta) else {
            return;
        };
        let body = known.manifest.body.clone();
        let stays = match found((&self.bucket, &self.key), told) {
            Ok((meta, ..)) => body.without(&meta.manifest.body).is_none(),
            Err(error) => !gone(&error),
        };
        // They may have come while this was asked.
        if stays || self.missed_now() == 0 {
            return;
        }
        let (bucket, key) = (self.bucket.clone(), self.key.clone());
        let given = self.read_to - self.range.start;
        // What it is by now, if it is not that version.
        self.doubt(now, ObjectError::ObjectChanged { bucket, key, given }, out);
    }

    /// The object is not what it was.
    fn start_over(&mut self, found: Looked) {
        let (bucket, key) = (self.bucket.clone(), self.key.clone());
        if self.given > 0 || !self.chunks.is_empty() {
            if let Ok((meta, ..)) = &found
                && self.is_moved(meta)
            {
                return self.go_on(meta.clone());
            }
            let given = self.read_to - self.range.start;
            return self.fail(ObjectError::ObjectChanged { bucket, key, given });
        }
        self.restarts += 1;
        match found {
            Ok(_) if self.restarts > RESTARTS_MAX => {
                let given = 0;
                self.fail(ObjectError::ObjectChanged { bucket, key, given });
            }
            Ok((meta, payload, crc)) => self.begin(meta, payload, crc),
            Err(error) => self.fail(error),
        }
    }

    /// Whether it is what is being read, byte for byte, and only stands elsewhere.
    fn is_moved(&self, meta: &ObjectMeta) -> bool {
        self.meta.as_ref().is_some_and(|known| {
            let same = |meta: &ObjectMeta| {
                let it = &meta.manifest;
                let seal = (it.etag, it.attributes.clone());
                (meta.tag, meta.modified_ms, it.size, it.crc, seal)
            };
            let striped = meta.manifest.body != Body::Inline;
            striped && same(known) == same(meta) && meta.manifest.check().is_ok()
        })
    }

    /// Reads on where it is, of stripes that were moved.
    fn go_on(&mut self, meta: ObjectMeta) {
        // What reads a large object while all of it is moved stumbles often, and comes on.
        self.restarts = match self.read_to > self.resumed_at {
            true => 1,
            false => self.restarts + 1,
        };
        self.resumed_at = self.read_to;
        if self.restarts > RESTARTS_MAX {
            let (bucket, key) = (self.bucket.clone(), self.key.clone());
            let given = self.read_to - self.range.start;
            return self.fail(ObjectError::ObjectChanged { bucket, key, given });
        }
        self.missing.clear();
        self.reads.clear();
        (self.stands, self.missed, self.node) = (None, 0, None);
        self.asked_to = self.read_to;
        self.cursor = Cursor::new(meta.manifest.body.clone(), self.read_to);
        self.meta = Some(meta);
    }

    /// The look-up's answer: one because of doubt, or the check of what was missing.
    pub(super) fn on_told(&mut self, out: &mut Vec<Action>) {
        let Some((_, ask)) = self.ask.take() else {
            return;
        };
        let Some(told) = ask.into_outcome() else {
            return;
        };
        let (found, doubt) = (found((&self.bucket, &self.key), told), self.doubt.take());
        if self.checking {
            // Only a shard of an object that still stands is missing.
            if let (Ok((meta, ..)), Some(known)) = (&found, &self.meta)
                && meta.version == known.version
            {
                out.append(&mut self.missing);
            }
            self.missing.clear();
            self.finished = true;
            return;
        }
        match (found, doubt) {
            (Ok((meta, ..)), Some((version, error))) if meta.version == version => {
                // The object stands: it is just not readable.
                out.append(&mut self.missing);
                self.fail(error);
            }
            (Err(error), Some((_, cause))) if !gone(&error) => {
                // Neither the object nor its head can be read: the first is what was asked for.
                self.fail(cause);
            }
            (found, _) => self.start_over(found),
        }
    }

    /// A stripe could not be read. Whether that is because the object has changed, the head knows.
    pub(super) fn doubt(&mut self, now: Instant, error: ObjectError, out: &mut Vec<Action>) {
        if self.is_guess() {
            return self.fail(error);
        }
        let Some(version) = self.meta.as_ref().map(|m| m.version) else {
            return;
        };
        self.reads.clear();
        (self.node, self.stands) = (None, None);
        self.doubt = Some((version, error));
        // A restart may find an inline object.
        self.ask = Some(self.ask(now, self.id, true, out));
    }
}
