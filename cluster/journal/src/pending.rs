//! Proposals that are not committed yet, and the state as it will be when they are.
//!
//! Invariants:
//! - entries are in the order of the log and end at its last entry;
//! - a precondition is judged by the *virtual* state: the index, with every pending entry applied. What
//!   the index says of a key that nothing is pending for is among the [`Facts`] that come along;
//! - what an entry displaces is settled when it gets its place in the log, or else asked of the index as
//!   it was then, with no entry of that key pending;
//! - an entry that changes two keys is pending for both of them;
//! - a refusal that rests on a pending entry is itself held back until that entry is committed:
//!   otherwise it would tell of a change that a crash may still undo;
//! - a request that is pending is not proposed twice: its retries wait for the same entry;
//! - what was refused stays refused, among the last `refusals_max` of them: a retry that was sent
//!   before the refusal arrived must not do what its client was told is not done. This holds as
//!   long as the reign lasts. Its end loses these, and needs them no more: a request names the reign
//!   that it is meant for, so what is still under way to this one is refused by the next.

use std::collections::{BTreeMap, VecDeque};
use std::hash::{Hash, Hasher};

use ashlar_layout::ids::{ClientId, RequestNo, Seq};
use ashlar_layout::manifest::{Manifest, Op, Precondition, VersionTag};
use ashlar_layout::message::{ErrorCode, WireError};

use crate::entry::Decoded;
use crate::versions;

/// How many may wait for one entry: its proposer, and retries of that.
const WAITERS_MAX: usize = 64;

/// Why something is refused; a [`WireError`] that can be hashed.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Refusal {
    pub(crate) code: ErrorCode,
    pub(crate) detail: String,
}

impl Refusal {
    pub(crate) fn new(code: ErrorCode, detail: impl Into<String>) -> Self {
        Self {
            code,
            detail: detail.into(),
        }
    }
}

impl From<Refusal> for WireError {
    fn from(refusal: Refusal) -> Self {
        WireError {
            code: refusal.code,
            detail: refusal.detail,
        }
    }
}

/// A refusal, and whether it rests on pending entries.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Judgement {
    pub(crate) refusal: Refusal,
    pub(crate) pending: bool,
}

/// A proposal in the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Proposal {
    pub(crate) seq: Seq,
    pub(crate) decoded: Decoded,
    pub(crate) bytes: usize,
    /// Who waits: the first one proposed it, the others are its retries.
    pub(crate) waiters: Vec<u64>,
    pub(crate) displaced: Displaced,
}

/// What the change of an entry displaces.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Displaced {
    /// This.
    Known(Option<Manifest>),
    /// What the index will answer to this question.
    Asked(u64),
}

/// What the index says, as far as it matters for a change.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Facts {
    /// Whether there is such a bucket.
    pub(crate) bucket: Option<bool>,
    /// Whether nothing is in it.
    pub(crate) empty: Option<bool>,
    /// The object.
    pub(crate) object: Option<Option<Held>>,
    /// The versions that the change depends on, in the order of [`versions::depends_on`]; of one that is about two
    /// keys, the object of the other one.
    pub(crate) versions: Vec<Option<Held>>,
    /// The question whose answer will be the object: nothing depends on it but what is displaced.
    pub(crate) asked: Option<u64>,
}

impl Hash for Proposal {
    /// Its number names the entry, and that determines the rest.
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.seq.hash(state);
        self.decoded.client.hash(state);
        self.decoded.request.hash(state);
        self.waiters.hash(state);
    }
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
struct PendingKey {
    entries: u32,
    object: Option<Held>,
}

/// An object, or a version of one, as a change finds it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Held {
    /// The entry that wrote it.
    pub(crate) version: Seq,
    pub(crate) manifest: Manifest,
    pub(crate) tag: Option<VersionTag>,
}

impl Held {
    /// Which version of its object it is: what is none is the null one.
    pub(crate) fn named(&self) -> VersionTag {
        self.tag.unwrap_or(VersionTag::of_plain(self.version))
    }

    /// Whether it is something else than a marker that there is no object.
    fn is_there(&self) -> bool {
        self.tag.is_none_or(|tag| !tag.marker)
    }
}

impl Hash for Held {
    /// The version names the entry, and that determines the rest.
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.version.hash(state);
    }
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
struct PendingBucket {
    entries: u32,
    bucket_entries: u32,
    exists: bool,
    keys: BTreeMap<Box<str>, PendingKey>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Deferred {
    until: Seq,
    reply_to: u64,
    refusal: Refusal,
}

/// See the module.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Pending {
    entries: VecDeque<Proposal>,
    bytes: usize,
    buckets: BTreeMap<Box<str>, PendingBucket>,
    requests: BTreeMap<(ClientId, RequestNo), Seq>,
    deferred: VecDeque<Deferred>,
    refused: BTreeMap<(ClientId, RequestNo), Refusal>,
    refused_order: VecDeque<(ClientId, RequestNo)>,
}

impl Pending {
    /// Remembers a refusal; of those at most `refusals_max`, the latest.
    pub(crate) fn refuse(
        &mut self,
        client: ClientId,
        request: RequestNo,
        refusal: &Refusal,
        refusals_max: usize,
    ) {
        self.refused.insert((client, request), refusal.clone());
        self.refused_order.push_back((client, request));
        if self.refused_order.len() > refusals_max
            && let Some(oldest) = self.refused_order.pop_front()
        {
            self.refused.remove(&oldest);
        }
    }

    /// How this request was refused, if it was.
    pub(crate) fn refused(&self, client: ClientId, request: RequestNo) -> Option<&Refusal> {
        self.refused.get(&(client, request))
    }

    /// Proposals and held refusals.
    pub(crate) fn len(&self) -> usize {
        self.entries.len() + self.deferred.len()
    }

    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    /// If this request is pending, `reply_to` waits for it too; `Some(false)` if too many do.
    pub(crate) fn join(
        &mut self,
        client: ClientId,
        request: RequestNo,
        reply_to: u64,
    ) -> Option<bool> {
        let seq = self.requests.get(&(client, request))?;
        let at = self
            .entries
            .binary_search_by_key(seq, |entry| entry.seq)
            .ok()?;
        let entry = self.entries.get_mut(at)?;
        let room = entry.waiters.len() < WAITERS_MAX;
        if room {
            entry.waiters.push(reply_to);
        }
        Some(room)
    }

    /// Whether that there is such a bucket, or not, is pending.
    pub(crate) fn knows_bucket(&self, bucket: &str) -> bool {
        self.buckets
            .get(bucket)
            .is_some_and(|overlay| overlay.bucket_entries > 0)
    }

    /// Whether a change of this object is pending.
    pub(crate) fn knows_object(&self, bucket: &str, key: &str) -> bool {
        let overlay = self.buckets.get(bucket);
        overlay.is_some_and(|overlay| overlay.keys.contains_key(key))
    }

    /// Whether a change of any object in this bucket is pending.
    pub(crate) fn knows_any_object(&self, bucket: &str) -> bool {
        let overlay = self.buckets.get(bucket);
        overlay.is_some_and(|overlay| !overlay.keys.is_empty())
    }

    /// Whether the change may be made at this time, as things will stand. What is not pending must be among the facts.
    pub(crate) fn judge(
        &self,
        facts: &Facts,
        precondition: Precondition,
        op: &Op,
        now_ms: u64,
    ) -> Result<(), Judgement> {
        let (bucket, key) = target(op);
        let overlay = self.buckets.get(bucket);
        let refuse = |code, detail: String, pending| {
            Err(Judgement {
                refusal: Refusal { code, detail },
                pending,
            })
        };
        let bucket_pending = self.knows_bucket(bucket);
        let exists = match overlay {
            Some(overlay) if bucket_pending => overlay.exists,
            _ => facts.bucket.unwrap_or(false),
        };
        match op {
            Op::TermStart | Op::Chain { .. } | Op::Split { .. } | Op::Close { .. } => {
                let detail = "that change is the head's own".to_owned();
                refuse(ErrorCode::BadRequest, detail, false)
            }
            Op::CreateBucket { .. } if exists => {
                let detail = format!("bucket {bucket:?} exists already");
                refuse(ErrorCode::BucketExists, detail, bucket_pending)
            }
            Op::CreateBucket { .. } => Ok(()),
            _ if !exists => {
                let detail = format!("there is no bucket {bucket:?}");
                refuse(ErrorCode::NoSuchBucket, detail, bucket_pending)
            }
            Op::DeleteBucket { .. } => {
                // A bucket that was made just now is empty: nothing is pending in it.
                let empty = bucket_pending || facts.empty.unwrap_or(false);
                if empty && !self.knows_any_object(bucket) {
                    return Ok(());
                }
                let detail = format!("bucket {bucket:?} still holds objects");
                refuse(ErrorCode::BucketNotEmpty, detail, overlay.is_some())
            }
            Op::Put { .. }
            | Op::Delete { .. }
            | Op::PutVersion { .. }
            | Op::DropVersion { .. }
            | Op::LockVersion { .. }
            | Op::Rename { .. }
            | Op::Relocate { .. } => {
                let current = match overlay.and_then(|overlay| overlay.keys.get(key)) {
                    Some(pending) => pending.object.as_ref(),
                    None => facts.object.iter().flatten().next(),
                };
                let version = current.map(|held| held.version);
                let there = current.is_some_and(Held::is_there);
                let pending = bucket_pending || self.knows_object(bucket, key);
                let holds = match precondition {
                    Precondition::None => true,
                    Precondition::Absent => !there,
                    Precondition::Present => there,
                    Precondition::Version(wanted) => version == Some(wanted),
                };
                if holds {
                    return match versions::judge(op, current, &facts.versions, now_ms) {
                        Ok(()) => Ok(()),
                        Err((code, what)) => {
                            refuse(code, format!("{bucket:?}/{key:?}: {what}"), pending)
                        }
                    };
                }
                let wanted = match precondition {
                    Precondition::Version(wanted) => format!("version {wanted}"),
                    Precondition::Absent => "no object".to_owned(),
                    _ => "an object".to_owned(),
                };
                let there = version.map_or("none".to_owned(), |v| format!("version {v}"));
                let detail = format!("{bucket:?}/{key:?}: {wanted} is asked for, there is {there}");
                refuse(ErrorCode::PreconditionFailed, detail, pending)
            }
        }
    }

    /// Entry `seq` is in the log.
    pub(crate) fn push(
        &mut self,
        facts: Facts,
        seq: Seq,
        decoded: Decoded,
        bytes: usize,
        reply_to: u64,
    ) {
        let (bucket, key) = target(&decoded.op);
        let overlay = self.buckets.entry(bucket.into()).or_default();
        overlay.entries += 1;
        let mut before = Displaced::Known(None);
        match &decoded.op {
            Op::CreateBucket { .. } | Op::DeleteBucket { .. } => {
                overlay.bucket_entries += 1;
                overlay.exists = matches!(decoded.op, Op::CreateBucket { .. });
            }
            Op::Put { .. }
            | Op::Delete { .. }
            | Op::PutVersion { .. }
            | Op::DropVersion { .. }
            | Op::LockVersion { .. }
            | Op::Rename { .. }
            | Op::Relocate { .. } => {
                let old = match overlay.keys.get(key) {
                    Some(pending) => Some(pending.object.clone()),
                    None => facts.object,
                };
                let object = versions::current_after(
                    &decoded.op,
                    seq,
                    old.as_ref().and_then(Option::as_ref),
                );
                before = match (old, facts.asked) {
                    (Some(old), _) => {
                        let displaced = versions::displaced(&decoded.op, old, facts.versions);
                        Displaced::Known(displaced)
                    }
                    (None, Some(question)) => Displaced::Asked(question),
                    (None, None) => Displaced::Known(None),
                };
                let changed = [(key, object)].into_iter();
                // Of two keys one has nothing any more.
                for (key, object) in changed.chain(source(&decoded.op).map(|key| (key, None))) {
                    let held = overlay.keys.entry(key.into()).or_default();
                    held.entries += 1;
                    held.object = object;
                }
            }
            Op::TermStart | Op::Chain { .. } | Op::Split { .. } | Op::Close { .. } => {}
        }
        self.bytes += bytes;
        self.requests.insert((decoded.client, decoded.request), seq);
        self.entries.push_back(Proposal {
            seq,
            decoded,
            bytes,
            waiters: vec![reply_to],
            displaced: before,
        });
    }

    /// What was asked is answered, if the entry is still pending.
    pub(crate) fn settle(&mut self, question: u64, old: Option<Held>) -> Option<Option<Held>> {
        let asked = Displaced::Asked(question);
        let Some(entry) = self
            .entries
            .iter_mut()
            .find(|entry| entry.displaced == asked)
        else {
            return Some(old);
        };
        let displaced = versions::displaced(&entry.decoded.op, old, Vec::new());
        entry.displaced = Displaced::Known(displaced);
        None
    }

    /// Answers only when everything up to `until` is committed.
    pub(crate) fn defer(&mut self, until: Seq, reply_to: u64, refusal: Refusal) {
        self.deferred.push_back(Deferred {
            until,
            reply_to,
            refusal,
        });
    }

    /// Takes the proposal that is entry `seq`, which is committed.
    pub(crate) fn pop(&mut self, seq: Seq) -> Option<Proposal> {
        if self.entries.front()?.seq != seq {
            return None;
        }
        let proposal = self.entries.pop_front()?;
        self.bytes -= proposal.bytes;
        self.requests
            .remove(&(proposal.decoded.client, proposal.decoded.request));
        let (bucket, key) = target(&proposal.decoded.op);
        if let Some(overlay) = self.buckets.get_mut(bucket) {
            overlay.entries -= 1;
            match proposal.decoded.op {
                Op::CreateBucket { .. } | Op::DeleteBucket { .. } => overlay.bucket_entries -= 1,
                _ => {
                    for key in [key].into_iter().chain(source(&proposal.decoded.op)) {
                        if let Some(held) = overlay.keys.get_mut(key) {
                            held.entries -= 1;
                            if held.entries == 0 {
                                overlay.keys.remove(key);
                            }
                        }
                    }
                }
            }
            if overlay.entries == 0 {
                self.buckets.remove(bucket);
            }
        }
        Some(proposal)
    }

    /// A refusal that may be told now that everything up to `committed` is.
    pub(crate) fn pop_deferred(&mut self, committed: Seq) -> Option<(u64, Refusal)> {
        if self.deferred.front()?.until > committed {
            return None;
        }
        self.deferred
            .pop_front()
            .map(|deferred| (deferred.reply_to, deferred.refusal))
    }

    /// Everyone who waits; nothing is pending afterwards.
    pub(crate) fn abandon(&mut self) -> Vec<u64> {
        let Pending {
            entries, deferred, ..
        } = std::mem::take(self);
        let proposals = entries.into_iter().flat_map(|entry| entry.waiters);
        proposals
            .chain(deferred.into_iter().map(|deferred| deferred.reply_to))
            .collect()
    }
}

/// The bucket and key of a change; empty where it has none.
pub(crate) fn target(op: &Op) -> (&str, &str) {
    match op {
        Op::TermStart | Op::Chain { .. } | Op::Split { .. } | Op::Close { .. } => ("", ""),
        Op::CreateBucket { bucket } | Op::DeleteBucket { bucket } => (bucket, ""),
        Op::Put { bucket, key, .. }
        | Op::Delete { bucket, key }
        | Op::PutVersion { bucket, key, .. }
        | Op::DropVersion { bucket, key, .. }
        | Op::LockVersion { bucket, key, .. }
        | Op::Rename { bucket, key, .. }
        | Op::Relocate { bucket, key, .. } => (bucket, key),
    }
}

/// The other key that a change is about, if it is about two: the one that goes away.
pub(crate) fn source(op: &Op) -> Option<&str> {
    match op {
        Op::Rename { source, .. } => Some(source),
        _ => None,
    }
}
