//! The digest of a stretch of the map, to be compared with another replica's.
//!
//! Invariants:
//! - it is a function of what the map says at the question's state, and of the stretch: not of tables and runs, nor of
//!   tombstones or of versions that nobody sees, which are there or not as merges had time;
//! - what is each replica's own is no part of it: where a payload is, and the payload, of which the manifest has length
//!   and CRC, and which is checked by these whenever it is read;
//! - where a stretch ends follows from its entries too: two that have the same entries end at the same one;
//! - an entry that cannot be decoded is taken as it stands: it differs from every one that can;
//! - one turn hashes a bounded number of bytes, and one entry at the least: a core has other things to do meanwhile.

use ashlar_layout::digest::{DIGEST_BYTES, Digest, DigestEntry};
use ashlar_layout::ids::Seq;
use ashlar_layout::page::EntryKind;
use ashlar_layout::root::{ObjectValue, Window};
use sha2::{Digest as _, Sha256};

use crate::api::{IndexError, Stretch};
use crate::clip::{self, Ahead};
use crate::key;
use crate::walk::{Seen, Step};

/// How the kind of an entry is hashed that cannot be decoded: no kind has this number.
const UNDECODABLE: u8 = 0xff;
/// Bytes that one turn goes through: some ten microseconds, or a hundred where SHA-256 has no instructions of its own.
const TURN_BYTES: usize = 32 << 10;
/// Bytes that an entry counts as beside its own: it is decoded, and encoded anew.
const ENTRY_BYTES: usize = 256;

/// A digest in the making.
#[derive(Clone, Debug)]
pub(crate) struct Digesting {
    /// What is looked at.
    windows: Vec<Window>,
    max: u32,
    bytes: usize,
    /// What this turn has gone through.
    turn: usize,
    sum: Sha256,
    made: Digest,
}

impl Digesting {
    /// With nothing in it, and the key from which it is to be filled.
    pub(crate) fn new(stretch: Stretch) -> (Digesting, Vec<u8>) {
        let Stretch {
            range,
            carry,
            after,
            max,
        } = stretch;
        let mut from = after;
        if !from.is_empty() {
            key::step_past(&mut from);
        }
        let digesting = Digesting {
            windows: clip::windows(&range, &carry),
            max: max.max(1),
            bytes: 0,
            turn: 0,
            sum: Sha256::new(),
            made: Digest::default(),
        };
        (digesting, from)
    }

    /// Another turn begins.
    pub(crate) fn begin_turn(&mut self) {
        self.turn = 0;
    }

    /// Takes a key that the walk shows.
    pub(crate) fn visit(&mut self, key: &[u8], seen: Seen<'_>) -> Result<Step, IndexError> {
        match clip::ahead(&self.windows, key) {
            Ahead::Here => {}
            Ahead::From(window) => {
                let next = self.windows.get(window).map(|window| window.from.clone());
                return Ok(next.map_or(Step::Stop, Step::Seek));
            }
            Ahead::Nothing => return Ok(Step::Stop),
        }
        let turn = self.turn + key.len() + seen.value.len() + ENTRY_BYTES;
        if self.turn > 0 && turn > TURN_BYTES {
            return Ok(Step::Tired);
        }
        self.turn = turn;
        let (kind, value, told) = canonical(key, seen);
        let len = key.len() + value.len();
        let made = &mut self.made;
        let full = made.entries == self.max || self.bytes + len > DIGEST_BYTES;
        if made.entries > 0 && full {
            made.more = true;
            return Ok(Step::Stop);
        }
        let part = |bytes: &[u8]| (bytes.len() as u64).to_le_bytes();
        self.sum.update(part(key));
        self.sum.update(key);
        self.sum.update(seen.seq.to_le_bytes());
        self.sum.update([kind]);
        self.sum.update(part(&value));
        self.sum.update(&value);
        self.bytes += len;
        if made.entries == 0 {
            made.first = Some(told);
        }
        made.entries += 1;
        made.last.clear();
        made.last.extend_from_slice(key);
        Ok(Step::Next)
    }

    /// The digest, when the walk is over.
    pub(crate) fn finish(&mut self) -> Digest {
        let mut made = std::mem::take(&mut self.made);
        made.sum = std::mem::take(&mut self.sum).finalize().into();
        made
    }

    /// What it is of, and how far it is.
    pub(crate) fn progress(&self) -> impl std::hash::Hash + '_ {
        (&self.windows, self.max, self.made.entries, self.bytes)
    }
}

/// The kind and value of an entry that all replicas have alike, and what is told of it.
fn canonical(at: &[u8], seen: Seen<'_>) -> (u8, Vec<u8>, DigestEntry) {
    let mut told = named(at);
    told.version = Seq(seen.seq);
    let kind = seen.kind as u8;
    match seen.kind {
        EntryKind::Object => {
            if let Ok(mut value) = ObjectValue::decode(seen.value) {
                told.modified_ms = value.modified_ms;
                (told.size, told.crc) = (value.manifest.size, value.manifest.crc);
                (value.place, value.payload) = (None, Vec::new());
                return (kind, value.encode(), told);
            }
        }
        EntryKind::Bucket => {
            if let Ok(created) = <[u8; 8]>::try_from(seen.value) {
                told.modified_ms = u64::from_le_bytes(created);
                return (kind, seen.value.to_vec(), told);
            }
        }
        EntryKind::Tombstone | EntryKind::Child => {}
    }
    (UNDECODABLE, seen.value.to_vec(), told)
}

fn named(at: &[u8]) -> DigestEntry {
    let mut told = DigestEntry {
        at: at.to_vec(),
        ..DigestEntry::default()
    };
    if let Some(bucket) = key::bucket_name(at) {
        told.bucket = bucket.to_owned();
    } else if let Some((bucket, name)) = key::object_name(at) {
        (told.bucket, told.key) = (bucket.to_owned(), name.to_owned());
    } else if let Some((bucket, name, id)) = key::version_name(at) {
        (told.bucket, told.key, told.id) = (bucket, name, Some(id));
    }
    told
}
