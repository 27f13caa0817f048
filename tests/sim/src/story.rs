//! What all clients have come to know of a run, and the values that they put.

use std::collections::BTreeMap;

use ashlar_layout::ids::StripeId;
use ashlar_layout::manifest::Etag;
use ashlar_tests::history::{Key, Operation, Outcome, Value};
use ashlar_tests::shelf::Deed;
use bytes::{Bytes, BytesMut};

use crate::disk::Rng;
use crate::moves::Move;

/// The bucket of all keys.
pub const BUCKET: &str = "sim";

/// The name of a key. Some sort in one another's way.
pub fn key_name(key: Key) -> String {
    match key {
        0..FIRST_SHELF => format!("k{}/{key}", key % 3),
        _ => format!("v{}/{key}", key % 3),
    }
}

/// Keys from this one on are those of plans with versions.
pub const FIRST_SHELF: Key = 1000;
/// Keys whose objects have versions,
pub const SHELVES: [Key; 2] = [1000, 1001];
/// and keys whose objects never have, and get one another's.
pub const PAIR: [Key; 2] = [2001, 2004];

/// The bytes of a value.
pub fn content(value: Value, size: usize) -> Bytes {
    let mut rng = Rng(value);
    let mut bytes = BytesMut::with_capacity(size + 8);
    while bytes.len() < size {
        bytes.extend_from_slice(&rng.next().to_le_bytes());
    }
    bytes.truncate(size);
    bytes.freeze()
}

/// The tag of a value, which tells it.
pub fn etag(value: Value) -> Etag {
    let mut md5 = [0; 16];
    md5[..8].copy_from_slice(&value.to_le_bytes());
    md5[8] = 1;
    Etag { md5, parts: 0 }
}

/// The value that a tag tells.
pub fn value_of(etag: &Etag) -> Value {
    let mut value = [0; 8];
    value.copy_from_slice(&etag.md5[..8]);
    Value::from_le_bytes(value)
}

/// What all clients have come to know.
#[derive(Default)]
pub struct Story {
    /// What they did, and what they were told.
    pub operations: Vec<Operation>,
    /// The versions that conditions named, by the places of the operations,
    pub held: BTreeMap<usize, u64>,
    /// and what they put elsewhere.
    pub moves: Vec<Move>,
    /// The same of keys with versions, and of those whose objects are renamed.
    pub deeds: Vec<Deed>,
    /// What a node's wall clock was ahead by at most, in milliseconds.
    pub lead_ms: u64,
    /// What is wrong whatever else is true.
    pub wrong: Vec<String>,
    /// What each value is made of: other ones, one behind the other, or itself; and how many bytes of each.
    pub pieces: BTreeMap<Value, Vec<(Value, usize)>>,
    /// Stripes that objects named when all were read at last, and how many shards each has.
    pub named: BTreeMap<StripeId, usize>,
    /// Something was left behind, and rightly so: what is on the devices is not known to the shard.
    pub untidy: bool,
    /// More may be damaged than the redundancy bears: then answers may fail, and must not be wrong.
    pub beyond: bool,
    /// How often what came up.
    pub marks: BTreeMap<&'static str, u64>,
}

/// Marks that are faults.
pub const FAULTS: &[&str] = &[
    "all nodes at once",
    "bits rot",
    "client cut off",
    "client died",
    "clock jumps",
    "cut",
    "cut one way",
    "device formatted anew",
    "device gone, or back",
    "disk stuck",
    "network slow",
    "node cut off",
    "power cut",
    "process killed",
    "process stopped",
    "sectors cannot be read",
    "writes are lost",
    "writes fail",
];

/// The lines that `cargo xtask doubt` counts faults by.
pub fn faults<'a>(marks: &'a BTreeMap<&'static str, u64>) -> impl Iterator<Item = String> + 'a {
    let found = FAULTS.iter().filter_map(|kind| marks.get_key_value(kind));
    found.map(|(kind, count)| format!("doubt: {count} faults in simulations: {kind}"))
}

impl Story {
    /// Something came up.
    pub fn mark(&mut self, what: &'static str) {
        *self.marks.entry(what).or_default() += 1;
    }

    /// Whether some stripe certainly was put elsewhere.
    pub fn has_moved(&self) -> bool {
        self.moves.iter().any(|it| it.outcome == Outcome::Done)
    }

    /// How many bytes a value has, if somebody put it.
    pub fn size(&self, value: Value) -> Option<usize> {
        Some(self.pieces.get(&value)?.iter().map(|(_, size)| size).sum())
    }

    /// The bytes of a value, if somebody put it.
    pub fn content(&self, value: Value) -> Option<Bytes> {
        let mut all = BytesMut::new();
        for (piece, size) in self.pieces.get(&value)? {
            all.extend_from_slice(&content(*piece, *size));
        }
        Some(all.freeze())
    }

    /// Something that is wrong unless too much is damaged.
    pub fn lost(&mut self, now: u64, what: String) {
        if self.beyond {
            self.mark("lost, and said");
        } else {
            self.wrong(now, what);
        }
    }

    /// Something is wrong.
    pub fn wrong(&mut self, now: u64, what: String) {
        self.wrong
            .push(format!("at {} ms: {what}", now / 1_000_000));
    }
}
