//! Proposals that wait in front of the log: for what the index has to say, or for those before them.
//!
//! Invariants:
//! - of one object, and of one bucket, proposals get into the log in the order in which they came: while one
//!   waits, all later ones for the same thing wait behind it;
//! - a change of a bucket waits for all that wait for objects in it, and what comes for objects in it then waits
//!   behind that change. So what the index says of a bucket or an object, asked when nothing is pending
//!   for it, is still so when it has been said;
//! - what depends on versions of an object waits until no change of that is pending;
//! - what is about two keys waits behind what waits for either of them. Where it depends on what the index has to say,
//!   it waits as a change of its bucket does: so neither of them is changed meanwhile;
//! - everything that waits here is counted, and bounded with what is pending.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::hash::{Hash, Hasher};

use ashlar_layout::manifest::Op;

use crate::entry::Decoded;
use crate::head::Asked;
use crate::pending::{Facts, source, target};

/// A proposal that has no place in the log yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Proposed {
    pub(crate) asked: Asked,
    pub(crate) decoded: Decoded,
    pub(crate) facts: Facts,
}

impl Hash for Proposed {
    /// The request names the rest.
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.asked.reply_to.hash(state);
        self.decoded.client.hash(state);
        self.decoded.request.hash(state);
        self.facts.bucket.hash(state);
        self.facts.empty.hash(state);
    }
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
struct Gate {
    /// It waits for the answer to this question.
    question: Option<u64>,
    waiting: VecDeque<Proposed>,
}

/// See the module. The gate of a bucket is that of its empty key.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Gates {
    buckets: BTreeMap<Box<str>, BTreeMap<Box<str>, Gate>>,
    /// The buckets and keys of objects at whose gates nobody waits for an answer: looked through after each event.
    unasked: BTreeSet<(Box<str>, Box<str>)>,
    len: usize,
    bytes: usize,
}

impl Gates {
    /// How many wait.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// The bytes of their payloads.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Whether something is in front of this change: then it has to wait at the gate of this key.
    pub(crate) fn in_front<'a>(&self, op: &'a Op) -> Option<&'a str> {
        let (bucket, key) = target(op);
        let gates = self.buckets.get(bucket)?;
        if key.is_empty() || gates.contains_key("") {
            return Some("");
        }
        let mut keys = [key].into_iter().chain(source(op));
        keys.find(|key| gates.contains_key(*key))
    }

    /// Lets a proposal wait at the gate of this key of its bucket: behind all others, or, if it is what a
    /// question was asked for, before them.
    pub(crate) fn wait(&mut self, key: &str, proposed: Proposed, question: Option<u64>) {
        let (bucket, _) = target(&proposed.decoded.op);
        let bucket: Box<str> = bucket.into();
        self.len += 1;
        self.bytes += proposed.decoded.inline.len();
        let gates = self.buckets.entry(bucket.clone()).or_default();
        let gate = gates.entry(key.into()).or_default();
        if question.is_some() {
            gate.question = question;
            gate.waiting.push_front(proposed);
        } else {
            gate.waiting.push_back(proposed);
        }
        let asked = gate.question.is_some();
        let name = (bucket, key.into());
        if asked || key.is_empty() {
            self.unasked.remove(&name);
        } else {
            self.unasked.insert(name);
        }
    }

    /// Whether this is the question that a gate waits for: its answer may come when others wait there.
    pub(crate) fn awaits(&self, bucket: &str, key: &str, question: u64) -> bool {
        let gate = self.buckets.get(bucket).and_then(|gates| gates.get(key));
        gate.is_some_and(|gate| gate.question == Some(question))
    }

    /// Opens a gate: all that wait there, in their order.
    pub(crate) fn open(&mut self, bucket: &str, key: &str) -> VecDeque<Proposed> {
        let Some(gates) = self.buckets.get_mut(bucket) else {
            return VecDeque::new();
        };
        let waiting = gates.remove(key).unwrap_or_default().waiting;
        self.unasked.remove(&(bucket.into(), key.into()));
        if gates.is_empty() {
            self.buckets.remove(bucket);
        }
        self.len -= waiting.len();
        let bytes = waiting.iter().map(|proposed| proposed.decoded.inline.len());
        self.bytes -= bytes.sum::<usize>();
        waiting
    }

    /// Buckets at whose gate somebody waits for nothing but those in front, of whom there are none left, with
    /// the first one's change.
    pub(crate) fn free_buckets(&self) -> impl Iterator<Item = (&str, &Op)> {
        self.buckets.iter().filter_map(|(bucket, gates)| {
            let gate = gates.get("").filter(|gate| gate.question.is_none())?;
            let first = gate.waiting.front().filter(|_| gates.len() == 1)?;
            Some((&**bucket, &first.decoded.op))
        })
    }

    /// Objects at whose gate somebody waits for nothing but what is pending.
    pub(crate) fn free_objects(&self) -> impl Iterator<Item = (&str, &str)> {
        self.unasked.iter().map(|(bucket, key)| (&**bucket, &**key))
    }

    /// All that wait; nobody does afterwards.
    pub(crate) fn abandon(&mut self) -> Vec<u64> {
        let Gates { buckets, .. } = std::mem::take(self);
        let gates = buckets.into_values().flat_map(BTreeMap::into_values);
        let waiting = gates.flat_map(|gate| gate.waiting);
        waiting.map(|proposed| proposed.asked.reply_to).collect()
    }
}
